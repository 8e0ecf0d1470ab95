"""Trees: parameters held in NamedTuples, tuples, lists and dicts, with arrays at the leaves.

    >>> named_leaves({"gate": 1, "experts": [2, 3]})
    {'gate': 1, 'experts.0': 2, 'experts.1': 3}

``None`` is a tree without leaves. Anything else that is not one of the four kinds is a leaf.
"""


def map(f, tree, *others):
    """``f`` applied to the leaves of one tree, or leaf by leaf to several of the same shape.

    ValueError where ``others`` are not built as ``tree`` is, naming the place. The keys of a
    dictionary may come in another order.
    """
    return _map(f, tree, others, None)


def _map(f, tree, others, path):
    """``map``; the path is a pair of the path above and a name, spelled out only for an error."""
    for other in others:
        if not _alike(tree, other):
            raise ValueError(f"tree.map: the trees differ at {_spelled(path) or 'the top'}: "
                             f"{_describe(tree)} and {_describe(other)}")
    if isinstance(tree, dict):
        return {name: _map(f, part, [other[name] for other in others], (path, name))
                for name, part in tree.items()}
    if isinstance(tree, (tuple, list)):
        named = hasattr(tree, "_fields")
        parts = [_map(f, part, rest, (path, name)) for name, part, *rest in
                 zip(tree._fields if named else range(len(tree)), tree, *others)]
        return type(tree)(*parts) if named else type(tree)(parts)
    return None if tree is None else f(tree, *others)


def _spelled(path):
    return "" if path is None else f"{_spelled(path[0])}.{path[1]}".lstrip(".")


def named_leaves(tree):
    """Leaves by name, in order: fields and keys joined by dots, places in a list by number."""
    return dict(_walk(tree, ""))


def leaves(tree):
    """The leaves, in the order of ``named_leaves``."""
    return [leaf for _, leaf in _walk(tree, "")]


def _walk(tree, path):
    names = _children(tree)
    if names is None:
        yield path.rstrip("."), tree
    else:
        for name in names:
            yield from _walk(_get(tree, name), f"{path}{name}.")


def _children(tree):
    """Names of a tree's parts, ``None`` for a leaf."""
    if isinstance(tree, dict):
        return list(tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return list(tree._fields)
    if isinstance(tree, (tuple, list)):
        return list(range(len(tree)))
    return [] if tree is None else None


def _alike(tree, other):
    """Whether two trees have parts of the same names in a container of the same kind."""
    if isinstance(tree, dict):
        return isinstance(other, dict) and tree.keys() == other.keys()
    if isinstance(tree, (tuple, list)):
        return type(tree) is type(other) and len(tree) == len(other)
    if tree is None or other is None:
        return tree is other
    return not isinstance(other, (dict, tuple, list))


def _get(tree, name):
    return getattr(tree, name) if hasattr(tree, "_fields") else tree[name]


def _describe(tree):
    names = _children(tree)
    if tree is None:
        return "None"
    if names is None:
        return f"a leaf ({type(tree).__name__})"
    return f"{type(tree).__name__} of {', '.join(str(name) for name in names) or 'nothing'}"

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
    return _map(f, tree, others, "")


def _map(f, tree, others, path):
    for other in others:
        if not _alike(tree, other):
            raise ValueError(f"tree.map: the trees differ at {path.rstrip('.') or 'the top'}: "
                             f"{_describe(tree)} and {_describe(other)}")
    names = _children(tree)
    if names is None:
        return f(tree, *others)
    if tree is None:
        return None
    parts = [_map(f, _get(tree, name), [_get(other, name) for other in others], f"{path}{name}.")
             for name in names]
    if isinstance(tree, dict):
        return dict(zip(names, parts))
    if hasattr(tree, "_fields"):
        return type(tree)(*parts)
    return type(tree)(parts)


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
    if _children(tree) is None:
        return _children(other) is None
    return type(tree) is type(other) and _children(tree) == _children(other)


def _get(tree, name):
    return getattr(tree, name) if hasattr(tree, "_fields") else tree[name]


def _describe(tree):
    names = _children(tree)
    if tree is None:
        return "None"
    if names is None:
        return f"a leaf ({type(tree).__name__})"
    return f"{type(tree).__name__} of {', '.join(str(name) for name in names) or 'nothing'}"

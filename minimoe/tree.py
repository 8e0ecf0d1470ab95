"""Trees: parameters held in NamedTuples, tuples, lists and dicts, with arrays at the leaves.

    >>> named_leaves({"gate": 1, "experts": [2, 3]})
    {'gate': 1, 'experts.0': 2, 'experts.1': 3}

``None`` is a tree without leaves. Anything else that is not one of the four kinds is a leaf.
"""


def map(f, tree, *others):
    """``f`` applied to the leaves of one tree, or leaf by leaf to several of the same shape.

    ValueError where ``others`` are not built as ``tree`` is, naming the place.
    """
    return _map(f, tree, others, "")


def _map(f, tree, others, path):
    if tree is None:
        return None
    names = _children(tree)
    if names is None:
        return f(tree, *others)
    for other in others:
        if _children(other) != names:
            raise ValueError(f"tree.map: the trees differ at {path.rstrip('.') or 'the top'}: "
                             f"{_describe(tree)} and {_describe(other)}")
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
    if tree is None:
        return
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
    return None


def _get(tree, name):
    return getattr(tree, name) if hasattr(tree, "_fields") else tree[name]


def _describe(tree):
    names = _children(tree)
    if names is None:
        return f"a leaf ({type(tree).__name__})"
    return f"{type(tree).__name__} of {', '.join(str(name) for name in names) or 'nothing'}"

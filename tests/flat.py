"""Whole models for ``check_vjp``: all parameters as one vector, so that it takes one direction."""
from minimoe import ops, tree


def flat(params):
    """Every entry of a tree of arrays. -> [N]"""
    return ops.concatenate([a.reshape(-1) for a in tree.leaves(params)])


def unflat(vector, params):
    """The tree that ``params`` is, with the entries of a vector, an array or a Tensor."""
    begin = 0

    def part(a):
        nonlocal begin
        begin += a.size
        return vector[begin - a.size:begin].reshape(a.shape)

    return tree.map(part, params)

"""Tokens to their experts and back: what lies between a router and its experts.

    T tokens, D width, E experts, K chosen per token, C slots per expert, R seats in all

Rows are moved by index, both ways and in both directions of differentiation: every seat holds one
choice at most, so nothing is ever added up under a shared index. Seats come padded, C for each
expert (``dispatch``, ``combine``), or packed, as many for each as it was given (``packed_seats``).
``dispatch_einsum`` and ``combine_einsum`` keep the contract of the padded pair in the papers'
literal form, two products with one seating array [T, E, C]: to be read, and to hold it to.
"""
from typing import Any, NamedTuple

from minimoe import ops
from minimoe.autodiff.tensor import Tensor, op, stop_gradient
from minimoe.backend import namespace, to_numpy
from minimoe.routing.topk import group

Array = Any     # of NumPy or CuPy; for the reader


class Routing(NamedTuple):
    """Where each token goes. A choice that was turned away is a False in ``keep``."""
    expert: Array   # [T, K] int    k-th expert chosen by each token
    slot: Array     # [T, K] int    its place in that expert's queue
    keep: Array     # [T, K] bool   False where it was turned away
    gate: Tensor    # [T, K]        weight on that expert's output


class Seats(NamedTuple):
    """Who sits where, and where everybody sits."""
    choice: Array   # [R] int       the choice in each seat, token * K + k; -1 in an empty one
    seat: Array     # [T, K] int    the seat of each choice; 0 for one turned away
    keep: Array     # [T, K] bool


def padded_seats(routing, n_experts, capacity):
    """C seats for each expert, some left empty. -> Seats, R = E * C"""
    expert, slot, keep, _ = routing
    xp = namespace(expert)
    basket = n_experts * capacity       # one seat more, for those turned away
    seat = xp.where(keep, expert * capacity + slot, basket)
    choice = xp.full(basket + 1, -1)
    choice[seat.reshape(-1)] = xp.arange(expert.size)
    return Seats(choice[:-1], xp.where(keep, seat, 0), keep)


def packed_seats(expert, keep, n_experts):
    """A seat for each choice kept, sorted by expert. [T, K] int, [T, K] bool -> Seats, E + 1 ints

    Expert e has the seats from ``ends[e]`` to ``ends[e + 1]``.
    """
    xp = namespace(expert)
    line = xp.where(keep, expert, n_experts).reshape(-1)                  # the rest sort to the end
    choice, counts = group(line, n_experts + 1)
    ends = [0, *to_numpy(xp.cumsum(counts)).tolist()][:n_experts + 1]
    seat = xp.empty_like(choice)
    seat[choice] = xp.arange(expert.size)
    return Seats(choice[:ends[-1]], xp.where(keep, seat.reshape(expert.shape), 0), keep), ends


def dispatch(x, routing, n_experts, capacity):
    """Each kept token in its slot, zeros in the slots left empty. [T, D] -> [E, C, D]"""
    seated = gather(x, padded_seats(routing, n_experts, capacity))        # [E*C, D]
    return seated.reshape(n_experts, capacity, x.shape[1])


def combine(y, routing):
    """The gated sum of what a token's experts made of it; zero where all turned it away.

    [E, C, D] -> [T, D]
    """
    E, C, D = y.shape
    return gather_back(y.reshape(E * C, D), routing.gate, padded_seats(routing, E, C))


def gather(x, seats):
    """The token in every seat, zeros in an empty one. [T, D] -> [R, D]"""
    return _gather(x, seats=seats)


def gather_back(y, gate, seats):
    """The gated sum over the seats of each token, zero if it has none. [R, D], [T, K] -> [T, D]"""
    return _gather_back(y, gate, seats=seats)


@op
def _gather(x, *, seats):
    def vjp(g):
        flow = _at_choice(g, seats, 0)
        for k in range(1, seats.seat.shape[1]):
            flow += _at_choice(g, seats, k)
        return (flow,)

    return _at_seats(x, seats), vjp


@op
def _gather_back(y, gate, *, seats):
    xp = namespace(y, gate)
    K = gate.shape[1]
    out = _at_choice(y, seats, 0) * gate[:, :1]
    for k in range(1, K):
        out += _at_choice(y, seats, k) * gate[:, k:k + 1]

    def to_y(g):
        flow = _at_seats(g, seats)
        if gate.size:
            flow *= gate.reshape(-1)[seats.choice][:, None]      # of an empty seat: 0 times any
        return flow

    def to_gate(g):
        return xp.stack([(g * _at_choice(y, seats, k)).sum(axis=-1) for k in range(K)], axis=-1)

    return out, (to_y, to_gate)


def _at_seats(x, seats):
    """The row of ``x`` of the token in each seat. [T, D] -> [R, D]"""
    xp = namespace(x)
    if not len(x):
        return xp.zeros((len(seats.choice), x.shape[1]), x.dtype)
    rows = x[seats.choice // seats.seat.shape[1]]
    xp.copyto(rows, 0, where=(seats.choice < 0)[:, None])
    return rows


def _at_choice(y, seats, k):
    """The row of ``y`` at the seat of each token's k-th choice. [R, D] -> [T, D]"""
    xp = namespace(y)
    if not len(y):
        return xp.zeros((len(seats.seat), y.shape[1]), y.dtype)
    rows = y[seats.seat[:, k]]
    xp.copyto(rows, 0, where=~seats.keep[:, k:k + 1])
    return rows


# -- The papers' literal form --------------------------------------------------------------------

def seating(routing, n_experts, capacity):
    """1 where choice k of token t sits in slot c of expert e, else 0. -> [T, K, E, C]"""
    xp = namespace(routing.expert)
    at_expert = routing.expert[..., None] == xp.arange(n_experts)        # [T, K, E]
    at_slot = routing.slot[..., None] == xp.arange(capacity)             # [T, K, C]
    kept = at_expert & routing.keep[..., None]
    return (kept[..., None] & at_slot[:, :, None]).astype(stop_gradient(routing.gate).dtype)


def dispatch_einsum(x, routing, n_experts, capacity):
    """``dispatch`` as GShard writes it: a product with a mask. [T, D] -> [E, C, D]"""
    mask = seating(routing, n_experts, capacity).sum(axis=1)             # [T, E, C]
    return ops.einsum("tec,td->ecd", mask, x)


def combine_einsum(y, routing):
    """``combine`` as GShard writes it: a product with gates in a mask. [E, C, D] -> [T, D]"""
    E, C, _ = y.shape
    weights = ops.einsum("tk,tkec->tec", routing.gate, seating(routing, E, C))
    return ops.einsum("tec,ecd->td", weights, y)

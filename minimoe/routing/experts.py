"""Products with one weight matrix for each expert, over its slots or over the rows it was given.

    T tokens, D width, H hidden width, E experts, C slots per expert, R rows

Padded to capacity, all experts have C rows, used or not. Packed (``dispatch.packed_seats``), rows
lie sorted by expert with nothing between them, and the work follows the tokens kept, whatever the
capacity and the number of experts. The loops here are over experts, never over tokens.
"""
from minimoe import ops
from minimoe.autodiff.tensor import op
from minimoe.backend import namespace
from minimoe.routing.dispatch import gather, gather_back, packed_seats


def expert_feed_forward(x, routing, w_in, w_out):
    """The gated sum of relu(x w_in[e]) w_out[e] over a token's choices kept; zero if it has none.

    [T, D], Routing, [E, D, H], [E, H, D] -> [T, D]

    One primitive, equal to ``gather``, ``relu_feed_forward`` and ``gather_back`` in turn; it is
    made of these where a token has one expert twice.
    """
    seats, ends = packed_seats(routing.expert, routing.keep, w_in.shape[0])
    if _some_expert_twice(routing.expert, seats):
        y = relu_feed_forward(gather(x, seats), w_in, w_out, ends=ends)  # [R, D]
        return gather_back(y, routing.gate, seats)
    return _gated_feed_forward(x, routing.gate, w_in, w_out, choice=seats.choice, ends=ends)


def relu_feed_forward(x, w_in, w_out, *, ends):
    """relu(x w_in) w_out, expert by expert. [R, D], [E, D, H], [E, H, D] -> [R, D]"""
    hidden = ops.relu(ragged_matmul(x, w_in, ends=ends))                 # [R, H]
    return ragged_matmul(hidden, w_out, ends=ends)


def expert_intermediates(x, routing, w_in, w_out, activation=ops.relu):
    """What each choice's expert was given, made of it and gave back; 0 if it turned it away.

    By the definition, to look at and to compare with: ``expert_feed_forward`` keeps none of it.
    [T, D], Routing, [E, D, H], [E, H, D] -> [T, K, D], [T, K, H], [T, K, D]
    """
    kept = routing.keep[:, :, None]                                      # [T, K, 1]
    inputs = ops.where(kept, x[:, None], 0.0)                            # [T, K, D]
    hidden = activation(ops.einsum("tkd,tkdh->tkh", inputs, ops.take(w_in, routing.expert)))
    hidden = ops.where(kept, hidden, 0.0)
    return inputs, hidden, ops.einsum("tkh,tkhd->tkd", hidden, ops.take(w_out, routing.expert))


@op
def expert_matmul(x, w):
    """Every expert's slots times its matrix. [E, C, D], [E, D, H] -> [E, C, H]"""
    xp = namespace(x, w)
    return x @ w, (lambda g: g @ xp.swapaxes(w, 1, 2), lambda g: xp.swapaxes(x, 1, 2) @ g)


@op
def ragged_matmul(x, w, *, ends):
    """Every expert's rows times its matrix. [R, D], [E, D, H] -> [R, H]

    An expert without rows costs nothing forward and has a gradient of zeros.
    """
    xp = namespace(x, w)
    E, D, H = w.shape
    parts = _parts(ends)

    def product(rows, matrices, width):
        out = xp.empty((len(rows), width), xp.result_type(rows, matrices))
        for e, part in enumerate(parts):
            xp.matmul(rows[part], matrices[e], out=out[part])
        return out

    def to_w(g):
        flow = xp.empty(w.shape, w.dtype)
        for e, part in enumerate(parts):
            xp.matmul(x[part].T, g[part], out=flow[e])
        return flow

    return product(x, w, H), (lambda g: product(g, xp.swapaxes(w, 1, 2), D), to_w)


@op
def _gated_feed_forward(x, gate, w_in, w_out, *, choice, ends):
    """``expert_feed_forward`` of packed choices, no token twice with one expert.

    Each expert's rows are fetched, used and added to their tokens while they are at hand; only the
    hidden layer is kept. The gate's cotangent <g, relu(x w_in) w_out> is <g w_out.T, relu(x w_in)>,
    so that what the expert gave need not be.
    """
    xp = namespace(x, gate, w_in, w_out)
    H, K = w_in.shape[2], gate.shape[1]
    token, share = choice // K, gate.reshape(-1)[choice][:, None]        # [R], [R, 1]
    parts = _parts(ends)
    dtype = xp.result_type(x, gate, w_in, w_out)
    hidden, zero = xp.empty((len(token), H), dtype), xp.zeros(H, dtype)
    y = xp.zeros((len(x), w_out.shape[2]), dtype)

    def add_to(total, at, rows):
        if K > 1:
            rows += total.take(at, axis=0)
        total[at] = rows

    for e, part in enumerate(parts):
        at, h = token[part], hidden[part]
        xp.matmul(x.take(at, axis=0), w_in[e], out=h)
        xp.maximum(h, zero, out=h)          # zeros, not 0, for which NumPy takes twice as long
        rows = h @ w_out[e]
        rows *= share[part]
        add_to(y, at, rows)

    def vjp(g):
        flow_x, flow_in, flow_out = xp.zeros_like(x), xp.empty_like(w_in), xp.empty_like(w_out)
        flow_share = xp.empty(len(token), gate.dtype)
        most = max([part.stop - part.start for part in parts], default=0)
        buffer = xp.empty((most, H), dtype)
        for e, part in enumerate(parts):
            at, h, flow = token[part], hidden[part], buffer[:part.stop - part.start]
            rows = g.take(at, axis=0)
            xp.matmul(rows, w_out[e].T, out=flow)
            flow_share[part] = (flow[:, None] @ h[:, :, None])[:, 0, 0]      # row by row
            flow *= h > 0
            flow *= share[part]
            rows *= share[part]
            xp.matmul(h.T, rows, out=flow_out[e])
            rows = x.take(at, axis=0)
            xp.matmul(rows.T, flow, out=flow_in[e])
            xp.matmul(flow, w_in[e].T, out=rows)
            add_to(flow_x, at, rows)
        flow_gate = xp.zeros(gate.size, gate.dtype)
        flow_gate[choice] = flow_share
        return flow_x, flow_gate.reshape(gate.shape), flow_in, flow_out

    return y, vjp


def _some_expert_twice(expert, seats):
    """Whether a token sits twice with one expert, where its seats are neighbours."""
    K = expert.shape[1]
    if K == 1:
        return False
    token, expert = seats.choice // K, expert.reshape(-1)[seats.choice]
    return bool(((token[1:] == token[:-1]) & (expert[1:] == expert[:-1])).any())


def _parts(ends):
    return [slice(*pair) for pair in zip(ends, ends[1:])]

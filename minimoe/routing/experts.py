"""Products with one weight matrix for each expert, over its slots or over the rows it was given.

    D width, H hidden width, E experts, C slots per expert, R rows

Padded to capacity, all experts have C rows, used or not. Packed (``dispatch.packed_seats``), rows
lie sorted by expert with nothing between them, and the work follows the tokens kept, whatever the
capacity and the number of experts. The loops here are over experts, never over tokens.
"""
from minimoe.autodiff.tensor import op
from minimoe.backend import namespace
from minimoe.routing.dispatch import gather, gather_back, packed_seats


def expert_feed_forward(x, routing, w_in, w_out):
    """The gated sum, over the choices kept, of relu(x w_in[e]) w_out[e]; zero for a token with none.

    [T, D], Routing, [E, D, H], [E, H, D] -> [T, D]
    """
    seats, ends = packed_seats(routing.expert, routing.keep, w_in.shape[0])
    y = relu_feed_forward(gather(x, seats), w_in, w_out, ends=ends)      # [R, D]
    return gather_back(y, routing.gate, seats)


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
    parts = [slice(ends[e], ends[e + 1]) for e in range(E)]

    def product(rows, matrices, width):
        out = xp.empty((len(rows), width), rows.dtype)
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
def relu_feed_forward(x, w_in, w_out, *, ends):
    """relu(x w_in) w_out, expert by expert, in one. [R, D], [E, D, H], [E, H, D] -> [R, D]

    Equal to ``ragged_matmul(relu(ragged_matmul(x, w_in)), w_out)``, without its temporaries: only
    the hidden layer is kept, and the cotangent of one expert's hidden rows is held at a time.
    """
    xp = namespace(x, w_in, w_out)
    E, D, H = w_in.shape
    parts = [slice(ends[e], ends[e + 1]) for e in range(E)]
    hidden = xp.empty((len(x), H), x.dtype)
    y = xp.empty((len(x), w_out.shape[2]), x.dtype)
    for e, part in enumerate(parts):
        rows = hidden[part]
        xp.matmul(x[part], w_in[e], out=rows)
        rows *= rows.real > 0
        xp.matmul(rows, w_out[e], out=y[part])

    def vjp(g):
        flow_x, flow_in, flow_out = xp.empty_like(x), xp.empty_like(w_in), xp.empty_like(w_out)
        most = max([part.stop - part.start for part in parts], default=0)
        buffer = xp.empty((most, H), x.dtype)
        for e, part in enumerate(parts):
            rows, flow = hidden[part], buffer[:part.stop - part.start]
            xp.matmul(rows.T, g[part], out=flow_out[e])
            xp.matmul(g[part], w_out[e].T, out=flow)
            flow *= rows > 0
            xp.matmul(x[part].T, flow, out=flow_in[e])
            xp.matmul(flow, w_in[e].T, out=flow_x[part])
        return flow_x, flow_in, flow_out

    return y, vjp

"""The LSTM over a whole sequence, as one primitive and step by step."""
from minimoe.autodiff.tensor import op
from minimoe.backend import namespace
from minimoe.ops.activations import sigmoid
from minimoe.ops.elementwise import tanh
from minimoe.ops.products import matmul
from minimoe.ops.shaping import split, stack


@op
def lstm_recurrence(z, hidden, cell, w_hidden):
    """The states of an LSTM, from what its input adds to the gates at each step.

        i, f, g, o = the four parts of z_t + h_(t-1) w_hidden, through sigmoid, but g through tanh
        c_t = f c_(t-1) + i g
        h_t = o tanh(c_t)

    Hochreiter and Schmidhuber (1997), with the forget gate of Gers et al. (2000). The order of the
    gates (input, forget, cell, output) is torch.nn.LSTM's. The result's rows 0 to S - 1 are the
    hidden states h_1 to h_S, its row S is the last cell state, c_S. ``hidden`` and ``cell``, the
    states to start from, may be anything that broadcasts. ValueError where shapes do not fit.
    [S, B, 4*H], [B, H], [B, H], [H, 4*H] -> [S + 1, B, H]
    """
    xp = namespace(z, hidden, cell, w_hidden)
    H = w_hidden.shape[0]
    if z.ndim != 3 or not z.shape[2] == w_hidden.shape[1] == 4 * H:
        raise ValueError(f"lstm_recurrence: needs z [S, B, 4*H] and w_hidden [H, 4*H]; "
                         f"got shapes {z.shape} and {w_hidden.shape}")
    S, B, _ = z.shape
    dtype = xp.result_type(z, hidden, cell, w_hidden)
    # sigmoid(x) is tanh(x / 2) / 2 + 1 / 2, so that all four gates are one tanh
    scale = xp.full((4, H), 0.5, z.real.dtype)
    scale[2] = 1
    shift, scale = (1 - scale).reshape(4 * H), scale.reshape(4 * H)

    gates = xp.empty((S, B, 4 * H), dtype)
    h = xp.empty((S + 2, B, H), dtype)         # before, during, and the last cell state
    c = xp.empty((S + 1, B, H), dtype)
    tanh_c = xp.empty((S, B, H), dtype)
    h[0], c[0] = hidden, cell
    for t in range(S):
        a = gates[t]
        xp.matmul(h[t], w_hidden, out=a)
        a += z[t]
        a *= scale
        xp.tanh(a, out=a)
        a *= scale
        a += shift
        i, f, g, o = a[:, :H], a[:, H:2 * H], a[:, 2 * H:3 * H], a[:, 3 * H:]
        xp.multiply(f, c[t], out=c[t + 1])
        c[t + 1] += i * g
        xp.tanh(c[t + 1], out=tanh_c[t])
        xp.multiply(o, tanh_c[t], out=h[t + 1])
    h[S + 1] = c[S]

    def vjp(flow):
        i, f, g, o = (gates[:, :, k * H:(k + 1) * H] for k in range(4))
        # the slope of each gate times what it is multiplied with: all but the cotangent of h or c
        to_z = gates - gates * gates
        to_z[:, :, :H] *= g
        to_z[:, :, H:2 * H] *= c[:-1]
        to_z[:, :, 2 * H:3 * H] = (1 - g * g) * i
        to_z[:, :, 3 * H:] *= tanh_c
        h_to_c = (1 - tanh_c * tanh_c) * o
        by_gate = to_z.reshape(S, B, 4, H)
        back = xp.ascontiguousarray(w_hidden.T)    # a few rows times this are quicker than times .T
        to_c, to_h = flow[S].copy(), xp.zeros((B, H), flow.dtype)
        for t in reversed(range(S)):
            to_h += flow[t]
            to_c += to_h * h_to_c[t]
            by_gate[t, :, :3] *= to_c[:, None]
            by_gate[t, :, 3] *= to_h
            to_c *= f[t]
            xp.matmul(to_z[t], back, out=to_h)
        to_w_hidden = h[:S].reshape(-1, H).T @ to_z.reshape(-1, 4 * H)    # all steps at once
        return to_z, to_h, to_c, to_w_hidden

    return h[1:], vjp


def lstm_recurrence_composed(z, hidden, cell, w_hidden):
    """``lstm_recurrence`` in elementary operations, for readers and tests."""
    H = w_hidden.shape[0]
    states = []
    for t in range(z.shape[0]):
        i, f, g, o = split(z[t] + matmul(hidden, w_hidden), [H] * 4)
        cell = sigmoid(f) * cell + sigmoid(i) * tanh(g)
        hidden = sigmoid(o) * tanh(cell)
        states.append(hidden)
    return stack([*states, cell])

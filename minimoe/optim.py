"""Optimisers and learning-rate schedules, as functions on trees.

    state = adam_init(params)
    for batch in batches:
        loss, gradients = value_and_grad(f, params, batch)
        learning_rate = 1e-3 * linear_warmup(state.step, 100) * cosine(state.step, 10_000)
        params, state = adam(params, gradients, state, learning_rate=learning_rate)

Each takes parameters (a tree of arrays or Tensors), their gradients (the same tree), a state and
the learning rate. It returns new parameters, as arrays, and the next state; it writes into none of
what it was given. Arrays keep their dtype and their library; the step is an integer of the host.
ValueError where a setting is out of range, or trees or shapes do not match; TypeError for a
gradient of another dtype.
"""
import math
from typing import Any, NamedTuple

from minimoe import tree
from minimoe.autodiff.tensor import stop_gradient
from minimoe.backend import namespace


# -- Gradient descent ----------------------------------------------------------------------------

class SGDState(NamedTuple):
    step: int        # updates made so far
    velocity: Any    # tree like the parameters


def sgd_init(params):
    """Nothing seen yet: a velocity of 0, for ``sgd`` and ``nesterov``."""
    return SGDState(0, _zeros(params))


def sgd(params, gradients, state, *, learning_rate, momentum=0.0, weight_decay=0.0):
    """v = momentum v + g, then p = p - learning_rate v, as torch.optim.SGD has it.

    ``weight_decay`` adds ``weight_decay * p`` to each gradient. Polyak's heavy ball (1964) and
    Sutskever et al. (ICML 2013, Eqs. 1-2) put the learning rate inside v, which differs once it
    changes between updates.
    """
    params, gradients = _checked("sgd", params, gradients, velocity=state.velocity)
    learning_rate, momentum, weight_decay = _settings(
        "sgd", learning_rate=learning_rate, momentum=momentum, weight_decay=weight_decay)
    gradients = _decayed(params, gradients, weight_decay)
    velocity = _velocity(momentum, state.velocity, gradients)
    params = tree.map(lambda p, v: p - learning_rate * v, params, velocity)
    return params, SGDState(state.step + 1, velocity)


def nesterov(params, gradients, state, *, learning_rate, momentum, weight_decay=0.0):
    """``sgd`` with a look ahead: v as there, then p = p - learning_rate (g + momentum v).

    The state is that of ``sgd_init``. Nesterov's accelerated gradient (Sutskever et al., ICML 2013,
    Eqs. 3-4) in the variables of torch.optim.SGD(nesterov=True).
    """
    params, gradients = _checked("nesterov", params, gradients, velocity=state.velocity)
    learning_rate, momentum, weight_decay = _settings(
        "nesterov", learning_rate=learning_rate, momentum=momentum, weight_decay=weight_decay)
    gradients = _decayed(params, gradients, weight_decay)
    velocity = _velocity(momentum, state.velocity, gradients)
    params = tree.map(lambda p, g, v: p - learning_rate * (g + momentum * v),
                      params, gradients, velocity)
    return params, SGDState(state.step + 1, velocity)


def _velocity(momentum, velocity, gradients):
    if momentum == 0:
        return gradients         # plain gradient descent pays nothing for the general case
    return tree.map(lambda v, g: momentum * v + g, velocity, gradients)


def _decayed(params, gradients, weight_decay):
    """The gradients of the loss plus weight_decay / 2 ||p||^2."""
    if weight_decay == 0:
        return gradients
    return tree.map(lambda p, g: g + weight_decay * p, params, gradients)


# -- Adam ----------------------------------------------------------------------------------------

class AdamState(NamedTuple):
    step: int        # updates made so far
    mean: Any        # running mean of the gradients, tree like the parameters
    square: Any      # running mean of their squares


def adam_init(params):
    """Nothing seen yet: means of 0, for ``adam`` and ``adamw``."""
    return AdamState(0, _zeros(params), _zeros(params))


def adam(params, gradients, state, *, learning_rate, beta1=0.9, beta2=0.999, epsilon=1e-8,
         weight_decay=0.0):
    """Steps of about ``learning_rate`` at any scale of gradients. arXiv:1412.6980v9, Algorithm 1.

    ``weight_decay`` adds ``weight_decay * p`` to each gradient, as in torch.optim.Adam, so that it
    is rescaled with them; ``adamw`` keeps it apart.
    """
    params, gradients = _checked("adam", params, gradients, mean=state.mean, square=state.square)
    learning_rate, beta1, beta2, epsilon, weight_decay = _settings(
        "adam", learning_rate=learning_rate, beta1=beta1, beta2=beta2, epsilon=epsilon,
        weight_decay=weight_decay)
    gradients = _decayed(params, gradients, weight_decay)
    t = state.step + 1
    mean, square = _moments(state, gradients, beta1, beta2)
    params = _adam_step(params, mean, square, t, learning_rate, beta1, beta2, epsilon)
    return params, AdamState(t, mean, square)


def _moments(state, gradients, beta1, beta2):
    """The running means of the gradients and of their squares."""
    return (tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, state.mean, gradients),
            tree.map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state.square, gradients))


def _adam_step(params, mean, square, t, learning_rate, beta1, beta2, epsilon):
    """The parameters after update t, the means corrected for having begun at 0."""
    def updated(p, m, v):
        m_hat, v_hat = m / (1 - beta1 ** t), v / (1 - beta2 ** t)
        return p - learning_rate * m_hat / (namespace(v).sqrt(v_hat) + epsilon)

    return tree.map(updated, params, mean, square)


def adamw(params, gradients, state, *, learning_rate, beta1=0.9, beta2=0.999, epsilon=1e-8,
          weight_decay=0.01):
    """Adam with decoupled weight decay. arXiv:1711.05101v3, Algorithm 2.

    Parameters shrink by ``learning_rate * weight_decay``, as in torch.optim.AdamW. The paper
    multiplies the decay by the schedule alone, not by the rate that the schedule scales.
    """
    learning_rate, weight_decay = _settings(
        "adamw", learning_rate=learning_rate, weight_decay=weight_decay)
    shrunk = tree.map(lambda p: stop_gradient(p) * (1 - learning_rate * weight_decay), params)
    return adam(shrunk, gradients, state, learning_rate=learning_rate, beta1=beta1, beta2=beta2,
                epsilon=epsilon)


class AMSGradState(NamedTuple):
    step: int        # updates made so far
    mean: Any        # running mean of the gradients, tree like the parameters
    square: Any      # running mean of their squares
    largest: Any     # the largest that it has been


def amsgrad_init(params):
    """Nothing seen yet: means of 0."""
    return AMSGradState(0, _zeros(params), _zeros(params), _zeros(params))


def amsgrad(params, gradients, state, *, learning_rate, beta1=0.9, beta2=0.999, epsilon=1e-8):
    """Adam, divided by the largest running square so far. arXiv:1904.09237v1, Algorithm 2.

    Means are corrected as Adam's are, as in torch.optim.Adam(amsgrad=True); in the paper they are
    not.
    """
    params, gradients = _checked("amsgrad", params, gradients, mean=state.mean,
                                 square=state.square, largest=state.largest)
    learning_rate, beta1, beta2, epsilon = _settings(
        "amsgrad", learning_rate=learning_rate, beta1=beta1, beta2=beta2, epsilon=epsilon)
    t = state.step + 1
    mean, square = _moments(state, gradients, beta1, beta2)
    largest = tree.map(lambda a, b: namespace(a).maximum(a, b), state.largest, square)
    params = _adam_step(params, mean, largest, t, learning_rate, beta1, beta2, epsilon)
    return params, AMSGradState(t, mean, square, largest)


# -- Adafactor -----------------------------------------------------------------------------------
# N. Shazeer and M. Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", 2018.
# arXiv:1804.04235v1. Where the paper and torch.optim.Adafactor part, the paper is what is built:
#
#     epsilon1          paper: added to the squared gradients     torch: a floor under the result,
#                       there as epsilon1^2, here as epsilon1; they agree for gradients well above
#     its default       paper: 1e-30                              torch: the dtype's epsilon
#     learning rate     paper: rho_t, as given                    torch: min(it, 1 / sqrt(t))
#     weight decay      paper: none                               torch: decoupled, not built
#     three axes        paper: not said    torch, and here: the last two make a matrix, of as many
#                       as the leading axes tell; update and parameters are scaled as one array

class AdafactorState(NamedTuple):
    """The running mean of squared gradients [..., I, J], of which only the margins are kept.

    A vector is a matrix of one row, whose margins are all of it: Algorithm 5 is Algorithm 4 there.
    """
    step: int        # updates made so far
    rows: Any        # tree like the parameters, [..., I, 1]: means over each row
    columns: Any     # tree like the parameters, [..., 1, J]: means over each column


def adafactor_init(params):
    """Nothing seen yet: means of 0."""
    squares = tree.map(_as_matrix, _zeros(params))
    return AdafactorState(0, tree.map(_row_means, squares), tree.map(_column_means, squares))


def adafactor(params, gradients, state, *, learning_rate, decay=0.8, epsilon1=1e-30, epsilon2=1e-3,
              clip=1.0):
    """Adafactor without momentum, Algorithms 4 (matrices) and 5 (vectors).

    Steps are relative: ``learning_rate``, the paper's rho_t, is multiplied by the root mean square
    of each parameter. Algorithm 6 has it min(1e-2, 1 / sqrt(t)), which is
    ``1e-2 * inverse_square_root(state.step, 10_000)``; its other values are the defaults here.
    """
    params, gradients = _checked("adafactor", params, gradients)
    learning_rate, decay, epsilon1, epsilon2, clip = _settings(
        "adafactor", learning_rate=learning_rate, decay=decay, epsilon1=epsilon1,
        epsilon2=epsilon2, clip=clip)
    t = state.step + 1
    beta2 = 1 - t ** -decay
    squares = tree.map(lambda g: _as_matrix(g * g + epsilon1), gradients)
    rows = tree.map(lambda r, s: beta2 * r + (1 - beta2) * _row_means(s), state.rows, squares)
    columns = tree.map(lambda c, s: beta2 * c + (1 - beta2) * _column_means(s),
                       state.columns, squares)

    def updated(p, g, r, c):
        xp = namespace(p)
        v_hat = r / r.mean(axis=-2, keepdims=True) * c     # in this order nothing underflows
        u = g / xp.sqrt(v_hat).reshape(g.shape)
        u = u / xp.maximum(1.0, _root_mean_square(u) / clip)
        return p - learning_rate * xp.maximum(epsilon2, _root_mean_square(p)) * u

    params = tree.map(updated, params, gradients, rows, columns)
    return params, AdafactorState(t, rows, columns)


def _as_matrix(x):
    return x if x.ndim >= 2 else x.reshape(1, -1)


def _row_means(x):
    return x.mean(axis=-1, keepdims=True)


def _column_means(x):
    return x.mean(axis=-2, keepdims=True)


def _root_mean_square(x):
    return namespace(x).sqrt((x * x).mean())


# -- What they share -----------------------------------------------------------------------------

def _zeros(params):
    return tree.map(lambda p: namespace(p).zeros_like(p), tree.map(stop_gradient, params))


def _checked(name, params, gradients, **moments):
    """Parameters and gradients as arrays, each leaf held to its parameter's shape and dtype."""
    params = tree.map(stop_gradient, params)
    gradients = tree.map(lambda _, g: stop_gradient(g), params, gradients)
    for kind, others in {"gradients": gradients, **moments}.items():
        tree.map(lambda p, other: _check_like(name, kind, p, other), params, others)
    return params, gradients


def _check_like(name, kind, p, other):
    if getattr(other, "shape", None) != p.shape:
        raise ValueError(f"{name}: {kind} must be shaped like the parameters; got "
                         f"{getattr(other, 'shape', type(other).__name__)} for {p.shape}")
    if other.dtype != p.dtype:
        raise TypeError(f"{name}: {kind} must have the parameters' dtype; "
                        f"got {other.dtype} for {p.dtype}")


def _settings(name, **settings):
    """The settings as Python numbers, which promote no array. ValueError for one out of range."""
    for setting, value in settings.items():
        below_1 = setting in ("momentum", "beta1", "beta2")
        if not 0 <= value < (1 if below_1 else math.inf):
            raise ValueError(f"{name}: {setting} must be at least 0 and "
                             f"{'below 1' if below_1 else 'finite'}; got {value}")
    return [float(value) for value in settings.values()]


# -- Learning-rate schedules ---------------------------------------------------------------------
# Each is a factor between 0 and 1 for the update that follows ``step`` others (0 for the first):
# multiplied with the highest learning rate, and with one another.

def constant(step):
    _check_steps("constant", step, 1)
    return 1.0


def linear_warmup(step, n_steps):
    """Up in equal parts: 1 / n_steps at the first update, 1 from the n-th on."""
    _check_steps("linear_warmup", step, n_steps)
    return min(1.0, (step + 1) / n_steps)


def inverse_square_root(step, n_steps):
    """sqrt(n_steps / t), and 1 for the first ``n_steps`` updates t = 1, 2, ...

    T5's 1 / sqrt(max(t, k)) is k^-1/2 of it (arXiv:1910.10683v4, Section 3.1.2); multiplied with
    ``linear_warmup`` it is the Transformer's schedule (arXiv:1706.03762v7, Eq. 3) over (D k)^-1/2.
    """
    _check_steps("inverse_square_root", step, n_steps)
    return math.sqrt(n_steps / max(step + 1, n_steps))


def cosine(step, n_steps, floor=0.0):
    """Half a wave from 1 down to ``floor``, which stays. arXiv:1608.03983v5, Eq. 5, no restarts."""
    _check_steps("cosine", step, n_steps)
    return floor + (1 - floor) * (1 + math.cos(math.pi * min(step, n_steps) / n_steps)) / 2


def linear_decay(step, n_steps, floor=0.0):
    """A line from 1 down to ``floor``, which stays."""
    _check_steps("linear_decay", step, n_steps)
    return floor + (1 - floor) * (1 - min(step, n_steps) / n_steps)


def _check_steps(name, step, n_steps):
    if not (step >= 0 and n_steps > 0):
        raise ValueError(f"{name}: step must be at least 0 and n_steps above 0; "
                         f"got {step} and {n_steps}")

"""Adaptive mixtures of local experts: competition in place of cooperation.

R. A. Jacobs, M. I. Jordan, S. J. Nowlan and G. E. Hinton, "Adaptive Mixtures of Local Experts",
Neural Computation 3(1):79-87, 1991. (The preprint numbers Eqs. (1.1)-(1.5), (2.1) as (1)-(6); the
number (2.1) is unconfirmed.)

    here          paper       meaning
    N             c           cases; the paper's c is one of them
    D, O          --          width of an input (its constant 1 included), of an output
    E             i, j        experts
    x             input       what experts and gate see
    logits        x_i         total weighted input of gate unit i; not the input vector
    p             p_i         mixing proportions, the prior: softmax of the logits
    h             --          posterior: whose case this was, once d is known
    d, o          d, o_i      desired output, output of each expert
    q             ||d-o_i||^2 squared error of each expert alone

Everything works on further leading axes, so that many starts are trained as one batch: parameters
[..., D, E], inputs [N, D].

Where sources part, the text is the default:

    variance in Eq. (1.3)    text: 1, its constant dropped; learnt, the constant kept, by Jordan and
                             Jacobs 1994: hierarchical_1994.gaussian_log_density
    what classifies          text: the blend; one draw of the switch: switch
    an expert's output       text: it decides by a line, where it is one half; read here as one
                             logistic unit
    weight decay, momentum   text: none; not built
"""
import math
from typing import NamedTuple

from minimoe import ops, tree
from minimoe.autodiff.tensor import Tensor, grad, stop_gradient


# -- The networks, Figure 1 ----------------------------------------------------------------------

class LocalExpertsParams(NamedTuple):
    w_experts: Tensor   # [D, E, O]
    w_gate: Tensor      # [D, E]


class LocalExpertsOutput(NamedTuple):
    o: Tensor           # [N, E, O]   every expert runs on every case
    logits: Tensor      # [N, E]


def init(rng, n_experts, width, n_outputs, scale=0.1):
    """Experts drawn from N(0, scale^2), the gate at zero: equal proportions for every case.

    The paper starts the gate unbiased and does not give the experts' scale. Experts that start
    equal get equal gradients and never separate, so ValueError for a scale that is not positive.
    """
    if not scale > 0:
        raise ValueError(f"init: scale must be positive, or the experts stay equal; got {scale}")
    w_experts = scale * rng.standard_normal((width, n_experts, n_outputs))
    one_output = w_experts[:, :, 0]
    return LocalExpertsParams(w_experts, one_output - one_output)


def expert_outputs(x, w_experts):
    """Each expert one logistic unit per output, so that it decides by a line (Section 3).

    [N, D], [D, E, O] -> [N, E, O]
    """
    return ops.sigmoid(linear_outputs(x, w_experts))


def linear_outputs(x, w_experts):
    """Each expert a linear map: for regression, and the link to competitive learning (Section 2).

    [N, D], [D, E, O] -> [N, E, O]
    """
    *starts, D, E, O = w_experts.shape
    o = x @ w_experts.reshape(*starts, D, E * O)                       # [N, E*O]
    return o.reshape(*o.shape[:-1], E, O)                              # [N, E, O]


def gate_logits(x, w_gate):
    """Total weighted input of each gate unit, Figure 1. [N, D], [D, E] -> [N, E]"""
    return x @ w_gate


def mixing_proportions(logits):
    """p_i = exp(x_i) / sum_j exp(x_j), Figure 1. [N, E] -> [N, E]"""
    return ops.softmax(logits, axis=-1)


def local_experts(params, x):
    """The network of Figure 1. [N, D] -> [N, E, O], [N, E]"""
    return LocalExpertsOutput(expert_outputs(x, params.w_experts), gate_logits(x, params.w_gate))


# -- Three errors for one network, Section 1 -----------------------------------------------------

def squared_errors(d, o):
    """q_i = ||d - o_i||^2. [N, O], [N, E, O] -> [N, E]

    Here, and in the errors, their gradients, ``responsibilities`` and ``blend``: ValueError for
    shapes that do not match (NumPy would broadcast them into nonsense without a word), for no case,
    no expert or no output, and for NaN.
    """
    _check(o, "d", d)
    return ops.square(d[..., None, :] - o).sum(axis=-1)                # [N, E]


def cooperative_error(d, o, logits):
    """||d - sum_i p_i o_i||^2: the experts work together on a blend. Eq. (1.1)

    The error of earlier work (Hampshire and Waibel; Jacobs, Jordan and Barto), in which every
    expert must cancel what the others leave. [N, O], [N, E, O], [N, E] -> [N]
    """
    _check(o, "d", d)
    return ops.square(d - blend(o, logits)).sum(axis=-1)               # [N]


def competitive_error(d, o, logits):
    """sum_i p_i ||d - o_i||^2: the expected error of an expert picked by p. Eq. (1.2)

    [N, O], [N, E, O], [N, E] -> [N]
    """
    _check(o, "logits", logits)
    return (mixing_proportions(logits) * squared_errors(d, o)).sum(axis=-1)


def mixture_error(d, o, logits):
    """-log sum_i p_i exp(-||d - o_i||^2 / 2): the error of the paper's simulations. Eq. (1.3)

    The negative log likelihood of a mixture of unit Gaussians around the experts' outputs, their
    constant dropped; never negative. Finite however far away d is. [N, O], [N, E, O], [N, E] -> [N]
    """
    return -ops.logsumexp(_log_joint(d, o, logits), axis=-1)


def responsibilities(d, o, logits):
    """h_i = p_i exp(-q_i / 2) / sum_j p_j exp(-q_j / 2), the factor in Eq. (1.5).

    [N, O], [N, E, O], [N, E] -> [N, E]
    """
    return ops.softmax(_log_joint(d, o, logits), axis=-1)


def _log_joint(d, o, logits):
    """log p_i - q_i / 2. [N, E]"""
    _check(o, "logits", logits)
    return ops.log_softmax(logits, axis=-1) - 0.5 * squared_errors(d, o)


def _check(o, name, a):
    """Whether ``a``, which is d [N, O] or logits [N, E], goes with o [N, E, O]."""
    N, E, O = (0, 0, 0, *o.shape)[-3:]
    if 0 in (N, E, O) or a.shape[-2:] != ((N, O) if name == "d" else (N, E)):
        raise ValueError(f"local_experts: needs o of shape [N, E, O], d [N, O] and logits [N, E], "
                         f"none of them 0; got o of {o.shape} and {name} of {a.shape}")
    if (o != o).any() or (a != a).any():
        raise ValueError(f"local_experts: o and {name} must be free of NaN")


# -- Their gradients, written out ----------------------------------------------------------------
# Of each case's error, so that a reader can see what autodiff will find: who is pulled, how hard.
# [N, O], [N, E, O], [N, E] -> [N, E, O], [N, E]

class ErrorGradients(NamedTuple):
    o: Tensor        # [N, E, O]
    logits: Tensor   # [N, E]


def cooperative_gradients(d, o, logits):
    """Every expert is pulled by the one residual that all of them share. Of Eq. (1.1)"""
    _check(o, "d", d)
    blended = blend(o, logits)                                         # [N, O]
    p = mixing_proportions(logits)                                     # [N, E]
    residual = (d - blended)[..., None, :]                             # [N, 1, O]
    return ErrorGradients(-2 * p[..., None] * residual,
                          -2 * p * (residual * (o - blended[..., None, :])).sum(axis=-1))


def competitive_gradients(d, o, logits):
    """Every expert is pulled towards d by its share p_i of the work. Eq. (1.4)

    The gate raises p_i where expert i does better than the expected error.
    """
    error = competitive_error(d, o, logits)[..., None]                 # [N, 1]
    p = mixing_proportions(logits)                                     # [N, E]
    return ErrorGradients(-2 * p[..., None] * (d[..., None, :] - o),
                          p * (squared_errors(d, o) - error))


def mixture_gradients(d, o, logits):
    """Every expert is pulled by its posterior h_i. Eq. (1.5)

    So the one that fits best learns fastest; and the gate moves from prior to posterior.
    """
    h = responsibilities(d, o, logits)                                 # [N, E]
    return ErrorGradients(-h[..., None] * (d[..., None, :] - o), mixing_proportions(logits) - h)


# -- Two outputs of one model --------------------------------------------------------------------

def blend(o, logits):
    """sum_i p_i o_i: what Eq. (1.1) trains, and what classifies. [N, E, O], [N, E] -> [N, O]"""
    _check(o, "logits", logits)
    return (mixing_proportions(logits)[..., None] * o).sum(axis=-2)


def chosen_expert(logits, u):
    """The expert that the stochastic switch of Figure 1 passes on. [N, E], [N] -> [N] int

    ``u`` is the draw, uniform on [0, 1): expert j where u falls on the j-th of the proportions laid
    end to end. The switch is how Eq. (1.2) is to be read; nothing is sampled while learning.
    """
    ends = ops.cumsum(mixing_proportions(stop_gradient(logits)), axis=-1)
    return (ends[..., :-1] <= u[..., None]).sum(axis=-1)


def switch(o, expert):
    """o_j of the chosen expert. [N, E, O], [N] int -> [N, O]"""
    O = o.shape[-1]
    index = ops.broadcast_to(expert[..., None, None], shape=(*expert.shape, 1, O))
    return ops.take_along_axis(o, index, axis=-2)[..., 0, :]


# -- Competitive learning, Section 2 -------------------------------------------------------------

def competitive_learning_log_likelihood(o, mu, logits):
    """log sum_i p_i k exp(-||mu_i - o||^2 / 2), k = (2 pi)^(-O/2). Eq. (2.1)

    A mixture model of the data vectors o themselves, with no input: put the desired outputs in
    place of o and the experts' in place of mu and it is Eq. (1.3). Soft competitive learning climbs
    it; hard competitive learning moves the nearest mu alone. [N, O], [E, O], [E] -> [N]
    """
    q = ops.square(o[..., None, :] - mu[..., None, :, :]).sum(axis=-1)   # [N, E]
    log_p = ops.log_softmax(logits, axis=-1)[..., None, :]             # [1, E]
    return ops.logsumexp(log_p - 0.5 * q, axis=-1) - o.shape[-1] / 2 * math.log(2 * math.pi)


# -- The network that the paper compares with, Section 3 -----------------------------------------

class BackpropParams(NamedTuple):
    w_hidden: Tensor   # [D, H]
    w_out: Tensor      # [H, O]
    b_out: Tensor      # [1, O]


def backprop_init(rng, n_hidden, width, n_outputs, scale=0.1):
    """All weights from N(0, scale^2); the paper gives no scale."""
    return BackpropParams(scale * rng.standard_normal((width, n_hidden)),
                          scale * rng.standard_normal((n_hidden, n_outputs)),
                          scale * rng.standard_normal((1, n_outputs)))


def backprop_outputs(params, x):
    """One hidden layer, logistic units throughout. [N, D] -> [N, O]"""
    hidden = ops.sigmoid(x @ params.w_hidden)                          # [N, H]
    return ops.sigmoid(hidden @ params.w_out + params.b_out)           # [N, O]


# -- A recorded run ------------------------------------------------------------------------------

RUN = {
    "in.x": "N D", "in.d": "N O", "in.u": "N", "in.cotangent": "N",
    "param.w_experts": "D E O", "param.w_gate": "D E",
}


def oracle(case):
    """Every intermediate of a run, in the order of computation, and the gradients of its errors.

    What is differentiated is <error, cotangent>, for each of the three errors in turn.
    """
    x, d, cotangent = case.inputs["x"], case.inputs["d"], case.inputs["cotangent"]
    params = tree.map(Tensor, LocalExpertsParams(**case.params))
    o, logits = local_experts(params, x)
    expert = chosen_expert(logits, case.inputs["u"])
    errors = {"cooperative_error": cooperative_error(d, o, logits),
              "competitive_error": competitive_error(d, o, logits),
              "mixture_error": mixture_error(d, o, logits)}
    return tree.map(stop_gradient, {
        "o": o, "logits": logits, "p": mixing_proportions(logits), "q": squared_errors(d, o),
        "expert": expert, "blend": blend(o, logits), "switch": switch(o, expert),
        "h": responsibilities(d, o, logits),
        **errors,
        "grad": {name: grad((error * cotangent).sum(), params) for name, error in errors.items()},
    })


# -- Cases and conventions -----------------------------------------------------------------------

def _clear_draws(arrays, rng):
    """Every u in the middle of an expert's share, so that rounding moves no choice."""
    logits = gate_logits(arrays["in.x"], arrays["param.w_gate"])
    p = mixing_proportions(logits)                                     # [N, E]
    middle = ops.cumsum(p, axis=-1) - p / 2
    expert = chosen_expert(logits, arrays["in.u"])
    arrays["in.u"] = ops.take_along_axis(middle, expert[:, None])[:, 0]


def _draws_on_borders(arrays, rng):
    """Equal proportions, and every u where one ends and the next begins."""
    arrays["param.w_gate"] *= 0
    E = arrays["param.w_gate"].shape[1]
    arrays["in.u"] = rng.integers(E, size=arrays["in.u"].shape) / E


def _many_experts(arrays, rng):
    arrays["param.w_experts"] *= 32    # or every h is its p, and the gate's gradient is rounding
    _clear_draws(arrays, rng)


def _far_target(arrays, rng):
    """Of the first case alone: its exp(-q / 2) are all 0, its gradients made small in return."""
    arrays["param.w_experts"] *= 8
    arrays["in.d"][0] = 64
    arrays["in.cotangent"][0] = 2**-12
    _clear_draws(arrays, rng)


def _certain_gate(arrays, rng):
    """Of the first case alone, by an input that only it has: a p of exactly 0."""
    arrays["in.x"][:, 0] = 0
    arrays["in.x"][0, 0] = 1
    arrays["param.w_gate"][0] *= 2048
    _clear_draws(arrays, rng)


CASES = {
    "roomy": ("", dict(N=8, D=3, E=4, O=2), "", _clear_draws),
    "dyadic": ("", dict(N=8, D=4, E=4, O=2), "exact", _clear_draws),
    "one_expert": ("", dict(N=5, D=3, E=1, O=2), "degenerate, E=1"),
    "one_case": ("", dict(N=1, D=4, E=3, O=3), "degenerate, one datum", _clear_draws),
    "many_experts": ("", dict(N=4, D=3, E=260, O=3), "wide", _many_experts),
    "draws_on_borders": ("", dict(N=8, D=3, E=4, O=2), "exact, ties", _draws_on_borders),
    "far_target": ("", dict(N=6, D=3, E=4, O=2), "extreme", _far_target),
    "certain_gate": ("", dict(N=6, D=3, E=4, O=2), "extreme", _certain_gate),
}


def _with_constant(paper):
    error = paper.mixture_error
    return lambda d, o, logits: error(d, o, logits) + o.shape[-1] / 2 * math.log(2 * math.pi)


CONVENTIONS = {
    "the Gaussian's constant is kept in Eq. (1.3)": {"mixture_error": _with_constant},
    "experts are linear, without the logistic": {"expert_outputs": "linear_outputs"},
}

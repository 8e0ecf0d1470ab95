"""Switch Transformers: every token to one expert.

W. Fedus, B. Zoph and N. Shazeer, "Switch Transformers: Scaling to Trillion Parameter Models with
Simple and Efficient Sparsity", JMLR 23(120):1-39, 2022. arXiv:2101.03961v3.

    here       paper           meaning
    T, D       T, d_model      tokens, width of a token
    E, H       N, d_ff         experts, hidden width of one expert
    K          k               experts chosen per token: 1, and 2 for the MoE-Base of Table 1
    C          C               slots per expert, Eq. (3)
    G          n, cores        groups, each of T / G tokens with C slots of its own for each expert
    logits     h(x)            of the router
    probs      p_i(x)          its probabilities, Eq. (1)
    gate       p_i(x)          of the chosen expert; multiplies the expert's output, Eq. (2)
    f, P       f_i, P_i        per expert: share of tokens, share of probability, Eqs. (5), (6)
    used       --              False at padding: a token that no expert is to see

Where text, pseudo-code (Appendix F), released code and the code of others part, the text is the
default. Released code is Mesh TensorFlow (mesh) and flaxformer:

    rounding of Eq. (3)    text: not said, here down; expert_capacity_mesh, _flaxformer, _deepspeed,
                           _fairseq, _tutel, _transformers. Pseudo-code: expert_capacity_pseudocode
    padding in the loss    text: not said, here no part of f and P. mesh: part of both, which is
                           load_balancing_loss without ``used``; load_balancing_loss_flaxformer,
                           _deepspeed
    f                      text: argmax p, before capacity; transformers 4.44: after it
                           (load_balancing_loss_transformers). Sampling, text: argmax p all the
                           same; mesh: what was sampled, which is ``routing.expert``
    f, P taken over        text: the batch; pseudo-code: each group, then averaged, here the default
                           of a layer. transformers: all layers at once
    f of K > 1             text: not said, here the first choice; load_balancing_loss_of_all_choices
    jitter                 text: scales the router's input; pseudo-code: logits_noise_pseudocode;
                           deepspeed: route_gumbel; tutel: logits_noise_tutel
    who is turned away     text: later tokens; deepspeed: a random choice,
                           route_random_token_selection; mesh switch_max, flaxformer, tutel: the
                           least probable, highest_gate_first
    a dropped token        text: zero; transformers 4.44: scaled, switch_ffn_transformers
"""
import math
from fractions import Fraction
from typing import NamedTuple

from minimoe import ops
from minimoe.autodiff.tensor import Tensor, stop_gradient
from minimoe.routing.dispatch import Routing
from minimoe.routing.experts import expert_feed_forward
from minimoe.routing.topk import group, slots, top_k


# -- The router, Section 2.1 ---------------------------------------------------------------------

class SwitchParams(NamedTuple):
    w_router: Tensor   # [D, E]
    w_in: Tensor       # [E, D, H]
    w_out: Tensor      # [E, H, D]


class SwitchOutput(NamedTuple):
    y: Tensor          # [T, D]   zero for a dropped token: the caller's residual carries it
    aux_loss: Tensor   # []       Eq. (4) without alpha
    routing: Routing


def router_logits(x, w_router):
    """h(x) = W_r x. ValueError where NaN or infinity comes of it. [T, D], [D, E] -> [T, E]"""
    logits = x @ w_router
    if not (abs(stop_gradient(logits)) < math.inf).all():
        raise ValueError("router_logits: tokens and router must be finite, and so must their "
                         "product; got NaN or infinity")
    return logits


def router_probs(x, w_router):
    """p_i(x) = exp(h_i) / sum_j exp(h_j). Eq. (1) [T, D], [D, E] -> [T, E]"""
    return ops.softmax(router_logits(x, w_router), axis=-1)


def route(probs, capacity, k=1, n_groups=1, used=None, order=None):
    """Each token to its k most probable experts, first come first served. Section 2.2

    The gates are the probabilities as they are: a single gate divided by itself would be 1, and
    the router would learn nothing. Of equal experts the lower index is chosen. Within each group
    (T / G tokens in a row) an expert takes ``capacity`` tokens, in their order or in ``order``, a
    permutation of all tokens; padding, False in ``used``, is turned away and takes no slot.
    ValueError for groups that do not divide the tokens, or a capacity below 0.
    [T, E] -> Routing [T, K]
    """
    return _first_come(probs, top_k(probs, k), capacity, n_groups, used, order)


def _first_come(probs, expert, capacity, n_groups=1, used=None, order=None):
    """The Routing of tokens whose experts are chosen."""
    if not capacity >= 0:
        raise ValueError(f"route: the capacity must be 0 or more; got {capacity}")
    slot = _slots(expert, probs.shape[-1], n_groups, used, order)      # [T, K]
    keep = slot < capacity
    if used is not None:
        keep = keep & used[:, None]
    return Routing(expert, slot, keep, ops.take_along_axis(probs, expert, axis=-1))


def _slots(expert, n_experts, n_groups=1, used=None, order=None):
    """Places in the queues of each group, 0 for a token that is not used. [T, K] int -> [T, K] int

    Those not used queue for one expert more, which nobody looks at.
    """
    if used is None:
        return slots(_queue(expert, n_experts, n_groups), n_experts * n_groups, order)
    expert = ops.where(used[:, None], expert, n_experts)
    queue = _queue(expert, n_experts + 1, n_groups)
    return slots(queue, (n_experts + 1) * n_groups, order) * used[:, None]


def _queue(expert, n_experts, n_groups):
    """The number of each choice's queue: one for each expert in each group. [T, K] int"""
    T, K = expert.shape
    _check_groups(T, n_groups)
    apart = expert.reshape(n_groups, T // n_groups, K)
    first = ops.cumsum(0 * apart[:, :1, :1] + n_experts, axis=0) - n_experts   # [G, 1, 1]
    return (apart + first).reshape(T, K)


def _check_groups(n_tokens, n_groups):
    if n_groups < 1 or n_tokens % n_groups:
        raise ValueError(f"route: needs a number of groups that divides {n_tokens} tokens; "
                         f"got {n_groups}")


# -- Capacity, Section 2.2 -----------------------------------------------------------------------

def expert_capacity(n_tokens, n_experts, capacity_factor, at_least=None):
    """Slots per expert in a group of ``n_tokens``, rounded down. Eq. (3)

    The paper does not say how to round. The product is taken exactly, because in floating point its
    order decides the answer: 100 tokens, 5 experts and a factor of 1.15 make 23 slots, but
    ``int(100 * 1.15 / 5)`` is 22. Never more slots than tokens; an infinite factor drops none.
    ValueError for a factor that is not positive, no expert, and for tokens that leave no slot to an
    expert unless ``at_least`` says how many it has then.
    """
    _check_capacity("expert_capacity", n_tokens, n_experts, capacity_factor)
    if capacity_factor == math.inf:
        return n_tokens
    capacity = math.floor(Fraction(str(capacity_factor)) * n_tokens / n_experts)
    if at_least is None and n_tokens and not capacity:
        raise ValueError(f"expert_capacity: {n_tokens} tokens and a factor of {capacity_factor} "
                         f"leave {n_experts} experts no slot; give at_least")
    return min(n_tokens, max(capacity, at_least or 0))


def _check_capacity(name, n_tokens, n_experts, capacity_factor):
    if n_tokens < 0 or n_experts < 1 or not capacity_factor > 0:
        raise ValueError(f"{name}: needs tokens, experts and a positive capacity factor; "
                         f"got {n_tokens}, {n_experts} and {capacity_factor}")


# -- The balance loss, Section 2.2 ---------------------------------------------------------------

def load_balancing_loss(probs, expert, n_groups=1, used=None):
    """N sum_i f_i P_i, averaged over groups. Eqs. (4)-(6), without alpha

    1 where f or P is uniform, E where one expert takes all; 1 is not a lower bound. Choices are
    counted before capacity turns any away, and counts carry no gradient: the loss reaches the
    router through P alone. Of several choices the first counts. A group of padding alone costs 0.
    [T, E], [T, K] int -> []
    """
    f = dispatched_fraction(expert[:, :1], probs.shape[-1], n_groups, used)    # [G, E]
    P = mean_probability(probs, n_groups, used)                        # [G, E]
    return _balance(f, P)


def dispatched_fraction(expert, n_experts, n_groups=1, used=None):
    """f_i, the share of tokens that chose expert i. Eq. (5) [T, K] int -> [G, E]"""
    T, K = expert.shape
    _check_groups(T, n_groups)
    n = _n_used(T, n_groups, used)
    if used is not None:
        expert = ops.where(used[:, None], expert, n_experts)
    queue = _queue(expert, n_experts + 1, n_groups).reshape(-1)
    _, counts = group(queue, (n_experts + 1) * n_groups)
    return counts.reshape(n_groups, n_experts + 1)[:, :-1] / n


def mean_probability(probs, n_groups=1, used=None):
    """P_i, the share of probability that expert i was given. Eq. (6) [T, E] -> [G, E]"""
    T, E = probs.shape
    _check_groups(T, n_groups)
    n = _n_used(T, n_groups, used)
    if used is not None:
        probs = ops.where(used[:, None], probs, 0.0)
    total = probs.reshape(n_groups, T // n_groups, E).sum(axis=1)      # [G, E]
    return total / n


def _n_used(n_tokens, n_groups, used):
    """Tokens in a group, but 1 where there is none. -> a number, or [G, 1] int"""
    if used is None:
        return max(n_tokens // n_groups, 1)
    n = used.reshape(n_groups, n_tokens // n_groups).sum(axis=1)[:, None]
    return n + (n == 0)


def _balance(f, P):
    """N sum_i f_i P_i, averaged over groups. [G, E], [G, E] -> []"""
    E = f.shape[-1]
    return E * (f.astype(stop_gradient(P).dtype) * P).sum(axis=-1).mean()


# -- The layer, Eq. (2) --------------------------------------------------------------------------

def switch_ffn(params, x, capacity, k=1, n_groups=1, used=None, router_input=None):
    """The Switch layer: y = sum over the k chosen of p_i(x) E_i(x). Eq. (2) [T, D] -> [T, D]

    E_i(x) = relu(x W_in) W_out. What the router sees may differ from ``x``: see ``jitter``. The
    balance loss is taken in each group and averaged, as in the pseudo-code; for that of the whole
    batch see ``load_balancing_loss``.
    """
    probs = router_probs(x if router_input is None else router_input, params.w_router)   # [T, E]
    routing = route(probs, capacity, k, n_groups, used)
    y = expert_feed_forward(x, routing, params.w_in, params.w_out)     # [T, D]
    aux_loss = load_balancing_loss(probs, routing.expert, n_groups, used)
    return SwitchOutput(y, aux_loss, routing)


# -- Initialisation, Section 2.4 -----------------------------------------------------------------

def init(rng, n_experts, width, hidden, scale=0.1):
    """All weights from ``truncated_normal``, the fan-in of an expert its own. Section 2.4

    T5 starts at a scale of 1.0; a tenth of it is what the paper recommends.
    """
    E, D, H = n_experts, width, hidden
    return SwitchParams(truncated_normal(rng, (D, E), D, scale),
                        truncated_normal(rng, (E, D, H), D, scale),
                        truncated_normal(rng, (E, H, D), H, scale))


def truncated_normal(rng, shape, fan_in, scale=0.1):
    """Draws from N(0, scale / fan_in), those beyond two standard deviations drawn anew.

    What is cut off is not made up for: the weights' variance is 0.774 of scale / fan_in, as with
    TensorFlow's initialiser. ValueError for a scale or fan-in that is not positive.
    """
    if not (scale > 0 and fan_in > 0):
        raise ValueError(f"truncated_normal: scale and fan-in must be positive; "
                         f"got {scale} and {fan_in}")
    z = rng.standard_normal(shape)
    while (beyond := abs(z) > 2).any():
        z[beyond] = rng.standard_normal(int(beyond.sum()))
    return math.sqrt(scale / fan_in) * z


# -- Exploration, Appendix C ---------------------------------------------------------------------

def jitter(x, u, eps=1e-2):
    """Each entry of ``x`` scaled by a draw from [1 - eps, 1 + eps]. Appendix C [T, D] -> [T, D]

    For the router's input alone; the experts get ``x`` itself. ``u``, shaped like ``x``, is the
    draw, uniform on [0, 1). The paper prints no eps; this one is that of the released code.
    ValueError for an eps outside [0, 1).
    """
    _check_eps("jitter", eps)
    return x * (1 - eps + 2 * eps * u)


def input_dropout(x, keep, rate=0.1):
    """Entries of the router's input at zero where ``keep`` is False. Appendix C [T, D] -> [T, D]

    The others are scaled up to keep the mean. ``keep`` is the draw: True with probability 1 - rate.
    ValueError for a rate outside [0, 1).
    """
    _check_eps("input_dropout", rate)
    return ops.where(keep, x / (1 - rate), 0.0)


def _check_eps(name, eps):
    if not 0 <= eps < 1:
        raise ValueError(f"{name}: what is given as rate or eps must lie in [0, 1); got {eps}")


def route_sampled(probs, u, capacity, n_groups=1, used=None):
    """Each token to an expert drawn from its probabilities. Appendix C [T, E] -> Routing [T, 1]

    ``u`` [T] is the draw, uniform on [0, 1): expert i where it falls on the i-th of the
    probabilities laid end to end. The gate is the probability of the expert drawn.
    """
    ends = ops.cumsum(stop_gradient(probs), axis=-1)                   # [T, E]
    expert = (ends[:, :-1] <= u[:, None]).sum(axis=-1)                 # [T]
    return _first_come(probs, expert[:, None], capacity, n_groups, used)

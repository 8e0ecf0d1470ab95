"""Products of experts: densities multiplied and renormalised, so that every expert has a veto.

G. E. Hinton, "Products of Experts", Proceedings of the Ninth International Conference on Artificial
Neural Networks (ICANN) 1:1-6, 1999; how to train them is in G. E. Hinton, "Training Products of
Experts by Minimizing Contrastive Divergence", Neural Computation 14(8):1771-1800, 2002, whose
numbers of equations and sections are used here (unconfirmed).

    here            paper        meaning
    D, H            --           visible units, hidden units of a restricted Boltzmann machine (RBM)
    M, C            n, --        experts, states that a datum can have
    N, R            --           data, chains
    log_p           p_m(d)       [M, C], of each expert the log probability of each state
    w, a, b         w_ij, --     weights and biases; the paper's biases are units that are always on
    free_energy     --           F(v): an RBM gives v a probability proportional to exp(-F(v))
    q               Q^0, Q^k     a distribution over all 2^D states; Q^inf is the model's own
    k               n            full steps of Gibbs sampling, hidden and back
    pi, mu, tau     --           of a unigauss expert: proportion, mean, precisions of its Gaussian

All gradients here point uphill, where the paper's do: add them. RBMs may have further leading axes,
many of them as one batch: w [..., D, H], v [..., N, D].

Where sources part, the text is the default:

    hidden statistics    probabilities in both phases, states only to make the reconstruction, as in
                         Hinton's own programs; programs that take the data's states:
                         positive_hidden_states; Eq. (7.4) as printed has states in both: not built
    reconstruction       of binary data, sampled: rbm_gibbs; of grey images, probabilities, Eq.
                         (9.1): mean_field_reconstruction
    uniform of unigauss  its density is 1 / A everywhere, so that a Gaussian may leave the box; a
                         choice of no Gaussian draws from the box itself (Murray's replication)
    step of unigauss     text: not said; Murray's, the mean's divided by its precision and no
                         precision grown beyond exp(10): unigauss_update
    chains that go on    not this paper's (Tieleman 2008): persistent_gradient
    log Z                not this paper's (Neal 2001; Salakhutdinov and Murray 2008):
                         annealed_importance_sampling
    products of HMMs     described in the paper; not built
"""
import math
from typing import NamedTuple

from minimoe import ops, tree
from minimoe.autodiff.tensor import Tensor, grad, stop_gradient
from minimoe.densities import LOG_2_PI

MOST_UNITS = 20          # 2^20 states are the most that are summed over,
UNITS_AT_ONCE = 14       # 2^14 at a time
HIGHEST_LOG_PRECISION = 10.0


# -- The product, Section 1 ----------------------------------------------------------------------

def log_product(log_p):
    """log of prod_m p_m(d) / sum_c prod_m p_m(c). Eq. (1.1) [M, C] -> [C]

    A state that one expert finds impossible is impossible. Experts need only be known up to a
    factor, which cancels. ValueError for NaN, and where every state has an expert against it.
    """
    return log_p.sum(axis=-2) - log_normalizer(log_p)[..., None]


def log_normalizer(log_p):
    """log sum_c prod_m p_m(c); of two normalised experts or more, at most 0. [M, C] -> []"""
    total = ops.logsumexp(log_p.sum(axis=-2), axis=-1)
    if not (stop_gradient(total) > -math.inf).all():
        raise ValueError("log_product: needs a state that no expert finds impossible, and no NaN")
    return total


def log_opinion_pool(log_p, weights):
    """The product of experts raised to powers: prod_m p_m^w_m, renormalised. [M, C], [M] -> [C]

    For weights that sum to 1, any q is as far from the pool as from the experts on average, less
    what the pool is from them: KL(q, pool) = sum w_m KL(q, p_m) - sum w_m KL(pool, p_m) (Heskes
    1998). An expert of weight 0 has no veto.
    """
    weights = weights[..., None]                                       # [M, 1]
    no_veto = (stop_gradient(weights) == 0) & (stop_gradient(log_p) == -math.inf)
    return log_product(weights * ops.where(no_veto, 0.0, log_p))


# -- Contrastive divergence, Section 3 -----------------------------------------------------------

def contrastive_gradient(statistics, params, data, reconstruction):
    """<d log p_m / d theta_m> over data less the same over their reconstructions. Eq. (3.6)

    Of d log p(d) / d theta_m, Eq. (2.1), the expectation over the model is replaced by one over
    what k steps of Gibbs sampling make of the data. It is the gradient of no function: it leaves
    out that the reconstructions depend on the parameters. ``statistics`` is ``rbm_statistics`` or
    ``unigauss_statistics``. [N, D], [R, D]
    """
    return tree.map(lambda up, down: up - down,
                    statistics(params, data), statistics(params, reconstruction))


def contrastive_divergence_loss(free_energy, params, data, reconstruction):
    """Mean free energy of data less that of reconstructions, which are constants. Eq. (3.6)

    Descending it is climbing ``contrastive_gradient``; its value says nothing. -> []
    """
    return (free_energy(params, data).mean(axis=-1)
            - free_energy(params, stop_gradient(reconstruction)).mean(axis=-1))


# -- Unigauss experts, Section 4 -----------------------------------------------------------------

class UnigaussParams(NamedTuple):
    """Each expert a Gaussian along the axes or, now and then, anything at all."""
    logit_pi: Tensor        # [M]
    mu: Tensor              # [M, D]
    log_tau: Tensor         # [M, D]


def unigauss_init(rng, n_experts, x):
    """Proportions of a half, circular Gaussians as wide as the data, means drawn from one as wide.

    ValueError for data that do not vary, or are not finite. [N, D]
    """
    variance = float(x.var(axis=0).mean())
    if not 0 < variance < math.inf:
        raise ValueError(f"unigauss_init: needs finite data that vary; their variance is "
                         f"{variance}")
    mu = 0.5 + math.sqrt(variance) * rng.standard_normal((n_experts, x.shape[1]))
    return UnigaussParams(0 * mu[:, 0], mu, 0 * mu - math.log(variance))


def unigauss_log_density(params, x, volume=1.0):
    """log of pi N(x; mu, 1 / tau) + (1 - pi) / A per expert, Section 4. [N, D] -> [N, M]"""
    uniform = -ops.softplus(params.logit_pi) - math.log(volume)        # [M]
    return uniform + ops.softplus(_log_odds(params, x, volume))


def unigauss_responsibilities(params, x, volume=1.0):
    """The probability that an expert's Gaussian, not its uniform, made x. [N, D] -> [N, M]"""
    return ops.sigmoid(_log_odds(params, x, volume))


def _log_odds(params, x, volume):
    """log of pi N(x) over (1 - pi) / A. [N, M]"""
    z = x[:, None] - params.mu                                         # [N, M, D]
    normal = 0.5 * (params.log_tau - LOG_2_PI - ops.exp(params.log_tau) * z * z).sum(axis=-1)
    return params.logit_pi + normal + math.log(volume)


def unigauss_statistics(params, x, volume=1.0):
    """The mean over data of d log p_m / d theta_m: what Eq. (3.6) takes twice. [N, D]"""
    r = unigauss_responsibilities(params, x, volume)                   # [N, M]
    pi, tau = ops.sigmoid(params.logit_pi), ops.exp(params.log_tau)
    z = x[:, None] - params.mu                                         # [N, M, D]
    return UnigaussParams((r - pi).mean(axis=0),
                          (r[..., None] * tau * z).mean(axis=0),
                          0.5 * (r[..., None] * (1 - tau * z * z)).mean(axis=0))


def unigauss_gibbs(params, x, u_choice, epsilon, u_box):
    """k steps of Gibbs sampling, Section 4: which Gaussians are used, x from their product.

    Draws uniform on [0, 1), standard normal and uniform again; the box is the unit cube, of which
    a point is drawn where no expert uses its Gaussian. ValueError for no data, no step, data that
    are not finite, and draws of another shape.
    [N, D], [k, N, M], [k, N, D], [k, N, D] -> [N, D]
    """
    _check_steps("unigauss_gibbs", u_choice, epsilon, u_box)
    if not x.size or not (abs(x) < math.inf).all():
        raise ValueError(f"unigauss_gibbs: needs data, all finite; got shape {x.shape}")
    tau = ops.exp(params.log_tau)
    for u, z, box in zip(u_choice, epsilon, u_box):
        _check_draws(z, x.shape)
        _check_draws(box, x.shape)
        chosen = _sampled(unigauss_responsibilities(params, x), u)     # [N, M]
        precision = chosen @ tau                                       # [N, D]
        none = chosen.sum(axis=-1, keepdims=True) == 0                 # [N, 1]
        safe = ops.where(none, 1.0, precision)
        x = ops.where(none, box, chosen @ (tau * params.mu) / safe + z / ops.sqrt(safe))
    return x


def unigauss_update(params, data, reconstruction, rate=1.0):
    """A step of contrastive divergence as Murray's replication of Section 4 takes it.

    The mean's gradient is divided by its precision, and a log precision above 10 grows no more.
    ``rate`` multiplies gradients that are means over data. [N, D], [N, D]
    """
    up = contrastive_gradient(unigauss_statistics, params, data, reconstruction)
    tau = ops.exp(params.log_tau)
    grows = (params.log_tau > HIGHEST_LOG_PRECISION) & (up.log_tau > 0)
    return UnigaussParams(params.logit_pi + rate * up.logit_pi,
                          params.mu + rate * up.mu / tau,
                          params.log_tau + rate * ops.where(grows, 0.0, up.log_tau))


# -- Restricted Boltzmann machines, Section 7 ----------------------------------------------------

class RBMParams(NamedTuple):
    w: Tensor    # [D, H]
    a: Tensor    # [D]
    b: Tensor    # [H]


def rbm_init(rng, mean, n_hidden, scale=0.01):
    """Weights from N(0, scale^2); the visible biases give the data's mean [D], kept off 0 and 1."""
    w = scale * rng.standard_normal((len(mean), n_hidden))
    return RBMParams(w, visible_bias(mean), 0 * w[0])


def visible_bias(mean, margin=0.01):
    """The biases with which independent units are on as often as in the data. [D] -> [D]"""
    p = ops.clip(mean, low=margin, high=1 - margin)
    return ops.log(p) - ops.log(1 - p)


def hidden_probs(params, v):
    """p(h_j = 1 | v) = sigmoid(b_j + sum_i v_i w_ij), Section 7. [N, D] -> [N, H]"""
    return _logistic(_into_hidden(params, v))


def visible_probs(params, h):
    """p(v_i = 1 | h) = sigmoid(a_i + sum_j w_ij h_j), Section 7. [N, H] -> [N, D]"""
    return _logistic(_into_visible(params, h))


def _logistic(x):
    """sigmoid(x) to an absolute eps, which is all that draws and averages see: half the time."""
    return 0.5 * ops.tanh(0.5 * x) + 0.5


def free_energy(params, v):
    """F(v) = -a v - sum_j log(1 + exp(b_j + v w_j)): p(v) = exp(-F(v)) / Z. [N, D] -> [N]

    Each term of the sum is one expert, a hidden unit that is on or off; the biases are one more
    (Section 7). Without log Z no two models can be compared.
    """
    return -(v * params.a[..., None, :]).sum(axis=-1) - ops.softplus(
        _into_hidden(params, v)).sum(axis=-1)


def _into_hidden(params, v):
    return v @ params.w + params.b[..., None, :]


def _into_visible(params, h):
    return h @ params.w.swapaxes(-1, -2) + params.a[..., None, :]


def expert_proportions(params):
    """Of each hidden unit's expert, as a mixture, the proportion of what is not uniform. -> [H]

    p_j(v) is proportional to 1 + exp(b_j + v w_j): with this proportion, independent units that are
    on with sigmoid(w_ij); otherwise any of the 2^D states alike.
    """
    return ops.sigmoid(_log_mass(params) - params.w.shape[-2] * math.log(2))


def expert_log_probs(params, v):
    """log p_j(v) of each hidden unit's expert, normalised over all 2^D states. [N, D] -> [N, H]

    Their product with that of the visible biases, by Eq. (1.1), is the machine.
    """
    log_n_states = params.w.shape[-2] * math.log(2)
    total = log_n_states + ops.softplus(_log_mass(params) - log_n_states)       # [H]
    return ops.softplus(_into_hidden(params, v)) - total[..., None, :]


def _log_mass(params):
    """log sum_v exp(b_j + v w_j) of each hidden unit. [H]"""
    return params.b + ops.softplus(params.w).sum(axis=-2)


def rbm_statistics(params, v, q=None):
    """<v_i p(h_j = 1 | v)>, <v_i>, <p(h_j = 1 | v)>: Eq. (7.4) is a difference of two such. [N, D]

    The average of -dF / d theta, over data or, with ``q`` [N], over a distribution.
    """
    return _moments(v, hidden_probs(params, v), q)


def _moments(v, h, q=None):
    """The averages of v_i h_j, v_i and h_j. [N, D], [N, H]"""
    if q is None:
        q = 0 * v[..., 0] + 1 / v.shape[-2]                            # [N]
    weighted, q = v * q[..., None], q[..., None, :]                    # [N, D], [1, N]
    return RBMParams(weighted.swapaxes(-1, -2) @ h, (q @ v)[..., 0, :], (q @ h)[..., 0, :])


class GibbsStep(NamedTuple):
    hidden_probs: Tensor    # [N, H]   p(h | v) of the v before
    h: Tensor               # [N, H]   states
    visible_probs: Tensor   # [N, D]   p(v | h)
    v: Tensor               # [N, D]   states


def gibbs_step(params, v, u_hidden, u_visible):
    """Hidden given visible, visible given hidden. Section 7 [N, D], [N, H], [N, D] -> GibbsStep"""
    hidden = hidden_probs(params, v)                                   # [N, H]
    h = _sampled(hidden, u_hidden)
    visible = visible_probs(params, h)                                 # [N, D]
    return GibbsStep(hidden, h, visible, _sampled(visible, u_visible))


def rbm_gibbs(params, v, u_hidden, u_visible):
    """v after k steps of Gibbs sampling. Section 7

    Draws uniform on [0, 1). The first hidden states may come from grey values as well as from
    states. ValueError for no data, no step, values outside [0, 1], and draws of another shape.
    [N, D], [k, N, H], [k, N, D] -> [N, D]
    """
    _check_steps("rbm_gibbs", u_hidden, u_visible)
    _check_values("rbm_gibbs", v)
    for u_h, u_v in zip(u_hidden, u_visible):
        v = gibbs_step(params, v, u_h, u_v).v
    return v


def rbm_contrastive_gradient(params, data, steps):
    """Eq. (3.6) of a machine, from the ``GibbsStep``s that made the reconstruction. Eq. (7.4)

    ``contrastive_gradient`` of ``rbm_statistics``, its two phases apart. [N, D] -> RBMParams
    """
    return tree.map(lambda up, down: up - down,
                    _moments(data, positive_hidden(params, data, steps)),
                    _moments(steps[-1].v, negative_hidden(params, steps)))


def positive_hidden(params, data, steps):
    """What <v_i h_j> over the data is made of: probabilities. [N, D] -> [N, H]"""
    return hidden_probs(params, data)


def positive_hidden_states(params, data, steps):
    """The states that the first step drew: the same average over draws, with more noise."""
    return steps[0].h


def negative_hidden(params, steps):
    """Over reconstructions: p(h | v_k) of the last v itself, not of the one it was made from."""
    return hidden_probs(params, steps[-1].v)


def mean_field_reconstruction(params, v, u_hidden):
    """Hidden states sampled once, the reconstruction left at its probabilities. Eq. (9.1)

    For grey images. ValueError for no data and values outside [0, 1]. [N, D], [N, H] -> [N, D]
    """
    _check_values("mean_field_reconstruction", v)
    return visible_probs(params, _sampled(hidden_probs(params, v), u_hidden))


def _sampled(probs, u):
    """1 with these probabilities, else 0, for draws uniform on [0, 1)."""
    _check_draws(u, probs.shape)
    return (u < probs).astype(u.dtype)


def _check_draws(u, shape):
    if u.shape != shape:       # NumPy would let many states share one draw without a word
        raise ValueError(f"products_of_experts: needs draws of shape {shape}; got {u.shape}")


def _check_values(name, v):
    if not v.shape[-2] or not ((v >= 0) & (v <= 1)).all():
        raise ValueError(f"{name}: needs data, with values from 0 to 1; got shape {v.shape}, or "
                         f"values outside, or NaN")


def _check_steps(name, *draws):
    steps = {len(u) for u in draws}
    if len(steps) > 1 or steps == {0}:
        raise ValueError(f"{name}: needs draws for one step or more, as many of each kind; got "
                         f"{', '.join(str(len(u)) for u in draws)}")


class PersistentGradient(NamedTuple):
    gradient: RBMParams
    h: Tensor               # [R, H]   hidden states that the chains have come to


def persistent_gradient(params, data, h, u_visible, u_hidden):
    """Eq. (3.6) where chains go on from where the last update left them, not from the data.

    Tieleman (2008): the chains take one step for each update, and updates are so small that the
    chains stay near equilibrium, and the gradient near that of the likelihood. Chains are kept by
    their hidden states ``h``, so that p(h | v) serves gradient and next state; they may be more or
    fewer than the data. Draws and errors as for ``rbm_gibbs``. [N, D], [R, H], [R, D], [R, H]
    """
    _check_values("persistent_gradient", data)
    N, R = data.shape[-2], h.shape[-2]
    fantasies = _sampled(visible_probs(params, h), u_visible)          # [R, D]
    v = ops.concatenate([data, fantasies], axis=-2)                    # [N+R, D]   in one pass
    probs = hidden_probs(params, v)                                    # [N+R, H]
    share = 0 * v[..., 0] + 1 / N                                      # [N+R]
    share[..., N:] = -1 / R
    return PersistentGradient(_moments(v, probs, share), _sampled(probs[..., N:, :], u_hidden))


# -- The truth, by enumeration -------------------------------------------------------------------
# What contrastive divergence is held to, where the smaller side of a machine has few units.

def all_states(n_units, like):
    """Every state of that many binary units, counting up. -> [2^n, n], in the dtype of ``like``

    ValueError for more than 20 units.
    """
    if n_units > MOST_UNITS:
        raise ValueError(f"all_states: at most {MOST_UNITS} units can be enumerated; got {n_units}")
    states = 0 * stop_gradient(like).reshape(-1, 1)[:1, :0]            # [1, 0]
    for _ in range(n_units):
        off = 0 * states.sum(axis=1, keepdims=True)                    # [states, 1]
        states = ops.concatenate([ops.concatenate([off, states], axis=1),
                                  ops.concatenate([off + 1, states], axis=1)])
    return states


def log_partition(params):
    """log Z, summed over the states of the side that has fewer units; exact. -> []

    ValueError where that side has more than 20.
    """
    *_, D, H = params.w.shape
    if D < H:
        params = RBMParams(params.w.swapaxes(-1, -2), params.b, params.a)
    n = min(D, H)
    if n > MOST_UNITS:
        raise ValueError(f"log_partition: at most {MOST_UNITS} units can be enumerated; got {n}")
    inner = all_states(min(n, UNITS_AT_ONCE), params.w)                # [states, at once]
    parts = []
    for outer in all_states(n - inner.shape[1], params.w):
        outer = ops.broadcast_to(outer, shape=(len(inner), len(outer)))
        h = ops.concatenate([outer, inner], axis=1)                    # [states, n]
        log_p = (h * params.b[..., None, :]).sum(axis=-1) + ops.softplus(
            _into_visible(params, h)).sum(axis=-1)                     # [states]
        parts.append(ops.logsumexp(log_p, axis=-1))
    return ops.logsumexp(ops.stack(parts, axis=-1), axis=-1)


def log_probs(params, v):
    """log p(v) = -F(v) - log Z. [N, D] -> [N]"""
    return -free_energy(params, v) - log_partition(params)[..., None]


def model_distribution(params):
    """log Q^inf: log p(v) of every state. -> [2^D]"""
    return log_probs(params, all_states(params.w.shape[-2], params.w))


def reconstructed(params, q, k=1):
    """Q^k: the distribution after k steps of Gibbs sampling from q. [2^D] -> [2^D]"""
    if k < 1:
        raise ValueError(f"reconstructed: needs 1 step or more; got {k}")
    *_, D, H = params.w.shape
    v, h = all_states(D, params.w), all_states(H, params.w)            # [2^D, D], [2^H, H]
    to_hidden = ops.exp(_log_bernoulli(h, _into_hidden(params, v)))    # [2^D, 2^H]
    to_visible = ops.exp(_log_bernoulli(v, _into_visible(params, h)))  # [2^H, 2^D]
    for _ in range(k):
        q = ((q[..., None, :] @ to_hidden) @ to_visible)[..., 0, :]
    return q


def _log_bernoulli(states, logits):
    """log prod_j p_j^s_j (1 - p_j)^(1 - s_j) of every row of logits for every state.

    [S, J], [R, J] -> [R, S]
    """
    return logits @ states.T - ops.softplus(logits).sum(axis=-1)[..., None]


def relative_entropy(q, log_p):
    """KL(q, p) = sum_c q_c log(q_c / p_c). [C], [C] -> []"""
    log_q = ops.log(ops.where(stop_gradient(q) > 0, q, 1.0))
    return (q * (log_q - log_p)).sum(axis=-1)


def contrastive_divergence(params, q, k=1):
    """KL(Q^0, Q^inf) - KL(Q^k, Q^inf), never negative. Eq. (3.1) [2^D] -> []"""
    log_p = model_distribution(params)
    return relative_entropy(q, log_p) - relative_entropy(reconstructed(params, q, k), log_p)


def exact_gradient(params, q):
    """Of sum_c q_c log p(c), with respect to each parameter. Eq. (2.1) [2^D]"""
    return _between(params, q, ops.exp(model_distribution(params)))


def expected_contrastive_gradient(params, q, k=1):
    """What ``contrastive_gradient`` is on average over draws. Eq. (3.6) [2^D]"""
    return _between(params, q, reconstructed(params, q, k))


def _between(params, q, other):
    v = all_states(params.w.shape[-2], params.w)
    return tree.map(lambda up, down: up - down,
                    rbm_statistics(params, v, q), rbm_statistics(params, v, other))


# -- log Z by annealed importance sampling -------------------------------------------------------

class AnnealedEstimate(NamedTuple):
    log_partition: Tensor     # []    log of an unbiased estimate of Z; itself too low on average
    log_weights: Tensor       # [R]   of each chain
    effective: Tensor         # []    how many equal weights theirs are worth


def annealed_importance_sampling(params, base, betas, u_start, draws):
    """log Z of one machine, from chains that go to it from independent units by steps in beta.

    ``base`` [D] are the biases of those, ``betas`` rise from 0 to 1, ``u_start`` [R, D] are the
    draws that R chains start from; ``draws`` gives, for each beta between the first and the last,
    a pair of draws [R, H], [R, D] for a Gibbs step, all uniform on [0, 1). Neal (2001), in the form
    of Salakhutdinov and Murray (2008). ValueError for betas that do not rise from 0 to 1, and for
    draws for more or fewer steps.
    """
    betas = [float(beta) for beta in betas]
    if betas[:1] != [0] or betas[-1:] != [1] or not all(
            before <= beta for before, beta in zip(betas, betas[1:])):
        raise ValueError("annealed_importance_sampling: betas must rise from 0 to 1")
    start = ops.broadcast_to(ops.sigmoid(base), shape=(len(u_start), len(base)))
    v = _sampled(start, u_start)                                       # [R, D]
    log_w = _annealed_ratio(params, base, betas[0], betas[1], v)       # [R]
    for beta, after, (u_hidden, u_visible) in zip(betas[1:-1], betas[2:], draws, strict=True):
        h = _sampled(ops.sigmoid(beta * _into_hidden(params, v)), u_hidden)      # [R, H]
        v = _sampled(ops.sigmoid((1 - beta) * base + beta * _into_visible(params, h)), u_visible)
        log_w = log_w + _annealed_ratio(params, base, beta, after, v)
    log_z_start = ops.softplus(base).sum() + params.w.shape[1] * math.log(2)
    total = ops.logsumexp(log_w, axis=0)
    return AnnealedEstimate(log_z_start + total - math.log(len(log_w)), log_w,
                            ops.exp(2 * total - ops.logsumexp(2 * log_w, axis=0)))


def annealed_log_prob(params, base, beta, v):
    """log p*(v) between independent units, beta = 0, and the machine, beta = 1. [N, D] -> [N]"""
    biases = (1 - beta) * base + beta * params.a                       # [D]
    return v @ biases + ops.softplus(beta * _into_hidden(params, v)).sum(axis=-1)


def _annealed_ratio(params, base, before, after, v):
    return annealed_log_prob(params, base, after, v) - annealed_log_prob(params, base, before, v)


# -- Recorded runs -------------------------------------------------------------------------------

def product_oracle(case):
    """Product and pool, and gradients of <log p, cotangent>."""
    log_p, weights = Tensor(case.inputs["log_p"]), Tensor(case.inputs["weights"])
    product, pool = log_product(log_p), log_opinion_pool(log_p, weights)
    cotangent = case.inputs["cotangent"]
    return tree.map(stop_gradient, {
        "log_normalizer": log_normalizer(log_p), "log_product": product, "log_opinion_pool": pool,
        "grad": {"log_product": grad((product * cotangent).sum(), {"log_p": log_p}),
                 "log_opinion_pool": grad((pool * cotangent).sum(),
                                          {"log_p": log_p, "weights": weights})}})


def unigauss_oracle(case):
    """Experts at the data, k steps of Gibbs sampling from there, and the update that they make."""
    x, draws = case.inputs["x"], [case.inputs[name] for name in ("u_choice", "epsilon", "u_box")]
    params = UnigaussParams(**case.params)
    reconstruction = unigauss_gibbs(params, x, *draws)
    return {
        "responsibilities": unigauss_responsibilities(params, x),
        "log_density": unigauss_log_density(params, x), "reconstruction": reconstruction,
        "statistics": unigauss_statistics(params, x)._asdict(),
        "update": unigauss_update(params, x, reconstruction, case.settings["rate"])._asdict()}


def rbm_oracle(case):
    """CD-k step by step, its mean-field form, persistent chains; the loss's gradient is -CD-k."""
    v, u_hidden, u_visible = (case.inputs[name] for name in ("v", "u_hidden", "u_visible"))
    params = RBMParams(**case.params)
    tensors = tree.map(Tensor, params)
    steps, state = [], v
    for draws in zip(u_hidden, u_visible):
        steps.append(gibbs_step(params, state, *draws))
        state = steps[-1].v
    positive, negative = positive_hidden(params, v, steps), negative_hidden(params, steps)
    mean_field = mean_field_reconstruction(params, v, u_hidden[0])
    persistent, h = persistent_gradient(params, v, *(
        case.inputs[f"chains.{name}"] for name in ("h", "u_visible", "u_hidden")))
    loss = contrastive_divergence_loss(free_energy, tensors, v, state)
    return tree.map(stop_gradient, {
        "steps": [step._asdict() for step in steps],
        "reconstruction": rbm_gibbs(params, v, u_hidden, u_visible),
        "positive_hidden": positive, "negative_hidden": negative,
        "positive": _moments(v, positive)._asdict(),
        "negative": _moments(state, negative)._asdict(),
        "contrastive_gradient": rbm_contrastive_gradient(params, v, steps)._asdict(),
        "mean_field": mean_field,
        "mean_field_gradient": contrastive_gradient(rbm_statistics, params, v,
                                                    mean_field)._asdict(),
        "h": h, "persistent_gradient": persistent._asdict(),
        "free_energy": free_energy(params, v), "loss": loss,
        "grad": {"loss": grad(loss, tensors)._asdict()}})


def scikit_learn_oracle(case):
    """``BernoulliRBM``: what it computes of data, and ``partial_fit``, an ascent by its chains."""
    v, flipped = case.inputs["v"], case.inputs["flipped"]
    params, rate = RBMParams(**case.params), case.settings["learning_rate"]
    gradient, h = persistent_gradient(params, v, *(
        case.inputs[f"chains.{name}"] for name in ("h", "u_visible", "u_hidden")))
    change = free_energy(params, ops.where(flipped, 1 - v, v)) - free_energy(params, v)
    return {
        "gibbs": rbm_gibbs(params, v, case.inputs["u_hidden"][None],
                           case.inputs["u_visible"][None]),
        "h": h, "hidden_probs": hidden_probs(params, v), "free_energy": free_energy(params, v),
        "score_samples": -v.shape[1] * ops.softplus(-change),
        "updated": tree.map(lambda p, g: p + rate * g, params, gradient)._asdict()}


def enumeration_oracle(case):
    """Everything exact of a small machine; ``grad`` has no term of the paper's left out."""
    q, k = case.inputs["q"], case.settings["k"]
    tensors = tree.map(Tensor, RBMParams(**case.params))
    divergence = contrastive_divergence(tensors, q, k)
    return tree.map(stop_gradient, {
        "log_partition": log_partition(tensors), "log_probs": model_distribution(tensors),
        "expert_proportions": expert_proportions(tensors),
        "expert_log_probs": expert_log_probs(tensors, all_states(tensors.w.shape[0], tensors.w)),
        "reconstructed": reconstructed(tensors, q, k),
        "exact_gradient": exact_gradient(tensors, q)._asdict(),
        "expected_contrastive_gradient": expected_contrastive_gradient(tensors, q, k)._asdict(),
        "contrastive_divergence": divergence,
        "grad": {"contrastive_divergence": grad(divergence, tensors)._asdict()}})


def annealing_oracle(case):
    """The estimate of log Z, and the weights that it is made of."""
    params, inputs = RBMParams(**case.params), case.inputs
    return annealed_importance_sampling(
        params, inputs["base"], inputs["betas"].tolist(), inputs["u_start"],
        zip(inputs["u_hidden"], inputs["u_visible"]))._asdict()


RBM = {"param.w": "D H", "param.a": "D", "param.b": "H"}
CHAINS = {"in.chains.h": "R H", "in.chains.u_visible": "R D", "in.chains.u_hidden": "R H"}
ORACLES = {
    "product": ({"in.log_p": "M C", "in.weights": "M", "in.cotangent": "C"}, product_oracle),
    "unigauss": ({
        "in.x": "N D", "in.u_choice": "K N M", "in.epsilon": "K N D", "in.u_box": "K N D",
        "set.rate": "", "param.logit_pi": "M", "param.mu": "M D", "param.log_tau": "M D",
    }, unigauss_oracle),
    "rbm": ({"in.v": "N D", "in.u_hidden": "K N H", "in.u_visible": "K N D", **CHAINS, **RBM},
            rbm_oracle),
    "scikit_learn": ({
        "in.v": "N D", "in.u_hidden": "N H", "in.u_visible": "N D",
        **{key: letters.replace("R", "N") for key, letters in CHAINS.items()},   # it divides by N
        "in.flipped": "bool N D", "set.learning_rate": "", **RBM}, scikit_learn_oracle),
    "enumeration": ({"in.q": "C", "set.k": "", **RBM}, enumeration_oracle),
    "annealing": ({
        "in.base": "D", "in.betas": "B", "in.u_start": "R D", "in.u_hidden": "T R H",
        "in.u_visible": "T R D", **RBM}, annealing_oracle),
}


# -- Cases and conventions -----------------------------------------------------------------------

def _clear(u, p):
    """Draws below p and above it as these are, but so far from it that rounding moves no state."""
    return ops.where(u.clip(1 / 256, None) < p, p / 2, ((1 + p) / 2).clip(None, 255 / 256))


def _opinions(sharpness=1.0):
    """Weights that sum to 1, one of them 0 perhaps; log p of this size."""
    def draw(arrays, rng):
        M = len(arrays["in.weights"])
        arrays["in.weights"] = rng.multinomial(64, [1 / M] * M) / 64
        arrays["in.log_p"] *= sharpness

    return draw


def _veto(arrays, rng):
    """The first expert all but excludes a state; the last, whose weight is 0, excludes another."""
    arrays["in.log_p"][0, 0] = -2**14
    arrays["in.log_p"][-1, 1] = -2**14
    arrays["in.weights"][:] = 0.5, 0.5, 0


def _gaussians(log_tau, logit_pi=0.0, spread=1.0):
    """Data near the experts' means; every expert clear about whether its Gaussian is used."""
    def draw(arrays, rng):
        mu = arrays["param.mu"] = rng.integers(256, size=arrays["param.mu"].shape) / 256
        arrays["param.log_tau"] = log_tau + 0.5 * arrays["param.log_tau"]
        arrays["param.logit_pi"] += logit_pi
        owner = rng.integers(len(mu), size=len(arrays["in.x"]))
        arrays["in.x"] = mu[owner] + spread * math.exp(-log_tau / 2) * arrays["in.x"]
        params = UnigaussParams(*(arrays[f"param.{name}"] for name in UnigaussParams._fields))
        x, draws = arrays["in.x"], [arrays[f"in.{name}"] for name in (
            "u_choice", "epsilon", "u_box")]
        for k, u in enumerate(draws[0]):
            u[:] = _clear(u, unigauss_responsibilities(params, x))
            x = unigauss_gibbs(params, x, *(a[k:k + 1] for a in draws))

    return draw


def _machine(scale=1.0, grey=False):
    """States of 0 and 1, or grey data; every draw of every step clear of its probability."""
    def draw(arrays, rng):
        v, h = arrays["in.v"], arrays["in.chains.h"]
        v[:] = rng.integers(256, size=v.shape) / 255 if grey else rng.integers(2, size=v.shape)
        h[:] = rng.integers(2, size=h.shape)
        arrays["param.w"] *= scale
        params = RBMParams(*(arrays[f"param.{name}"] for name in RBMParams._fields))
        N, D = v.shape
        for u_h, u_v in zip(*(arrays[f"in.{name}"].reshape(-1, N, width) for name, width in (
                ("u_hidden", h.shape[1]), ("u_visible", D)))):
            u_h[:] = _clear(u_h, hidden_probs(params, v))
            u_v[:] = _clear(u_v, gibbs_step(params, v, u_h, u_v).visible_probs)
            v = gibbs_step(params, v, u_h, u_v).v
        u_v, u_h = arrays["in.chains.u_visible"], arrays["in.chains.u_hidden"]
        u_v[:] = _clear(u_v, visible_probs(params, h))
        u_h[:] = _clear(u_h, hidden_probs(params, _sampled(visible_probs(params, h), u_v)))

    return draw


def _scored(scale=1.0):
    """And one unit of each datum to flip, as scikit-learn's pseudo-likelihood has it."""
    def draw(arrays, rng):
        _machine(scale)(arrays, rng)
        flipped = arrays["in.flipped"]
        flipped[:] = False
        flipped[range(len(flipped)), rng.integers(flipped.shape[1], size=len(flipped))] = True

    return draw


def _seen(n_data, scale=1.0):
    """q as it is seen in so many data."""
    def draw(arrays, rng):
        C = len(arrays["in.q"])
        arrays["in.q"] = rng.multinomial(n_data, [1 / C] * C) / n_data
        arrays["param.w"] *= scale

    return draw


def _rising(arrays, rng):
    T = len(arrays["in.u_hidden"])
    arrays["in.betas"] = [0, *sorted(rng.integers(1, 64, size=T).tolist()), 64] + 0 * arrays[
        "in.betas"]
    arrays["in.betas"] /= 64


CASES = {
    "three_opinions": ("product", dict(M=3, C=5), "", _opinions()),
    "one_opinion": ("product", dict(M=1, C=4), "degenerate, one expert", _opinions()),
    "one_state": ("product", dict(M=3, C=1), "degenerate", _opinions()),
    "sharp_opinions": ("product", dict(M=8, C=6), "extreme", _opinions(sharpness=32.0)),
    "veto": ("product", dict(M=3, C=5), "extreme", _veto),
    "unigauss_one_step": ("unigauss", dict(N=8, D=2, M=4, K=1, rate=0.5), "", _gaussians(3.0)),
    "unigauss_three_steps": ("unigauss", dict(N=6, D=3, M=5, K=3, rate=0.5), "", _gaussians(2.0)),
    "unigauss_one_datum": ("unigauss", dict(N=1, D=1, M=1, K=1, rate=1.0),
                           "degenerate, one expert, one datum", _gaussians(1.0)),
    "unigauss_mostly_flat": ("unigauss", dict(N=8, D=2, M=2, K=2, rate=0.5), "extreme",
                             _gaussians(2.0, logit_pi=-2.0)),
    "unigauss_held": ("unigauss", dict(N=8, D=1, M=4, K=2, rate=0.5), "extreme",
                      _gaussians(10.5, logit_pi=2.0, spread=0.25)),
    "cd_one_step": ("rbm", dict(N=8, D=6, H=4, K=1, R=3), "", _machine()),
    "cd_four_steps": ("rbm", dict(N=6, D=3, H=6, K=4, R=8), "", _machine()),
    "cd_dyadic": ("rbm", dict(N=8, D=6, H=4, K=1, R=4), "exact", _machine()),
    "cd_grey": ("rbm", dict(N=6, D=5, H=4, K=1, R=2), "", _machine(grey=True)),
    "cd_one_datum": ("rbm", dict(N=1, D=4, H=3, K=1, R=1), "degenerate, one datum", _machine()),
    "cd_one_unit": ("rbm", dict(N=8, D=3, H=1, K=2, R=2), "degenerate", _machine()),
    "cd_large_weights": ("rbm", dict(N=6, D=8, H=4, K=2, R=6), "extreme", _machine(1024.0)),
    "scikit_learn_batch": ("scikit_learn", dict(N=6, D=5, H=4, learning_rate=0.25), "",
                           _scored()),
    "scikit_learn_larger_batch": ("scikit_learn", dict(N=12, D=8, H=6, learning_rate=0.5), "",
                                  _scored(3.0)),
    "scikit_learn_one_datum": ("scikit_learn", dict(N=1, D=4, H=3, learning_rate=0.5),
                               "degenerate, one datum", _scored()),
    "scikit_learn_large_weights": ("scikit_learn", dict(N=4, D=8, H=3, learning_rate=0.25),
                                   "extreme", _scored(1024.0)),
    "all_states_one_step": ("enumeration", dict(D=4, H=3, C=16, k=1), "", _seen(256)),
    "all_states_three_steps": ("enumeration", dict(D=3, H=4, C=8, k=3), "", _seen(256)),
    "few_states_seen": ("enumeration", dict(D=4, H=2, C=16, k=2), "degenerate", _seen(4)),
    "one_unit_a_side": ("enumeration", dict(D=1, H=1, C=2, k=1), "degenerate", _seen(256, 4.0)),
    "all_states_large_weights": ("enumeration", dict(D=4, H=3, C=16, k=1), "extreme",
                                 _seen(256, 8.0)),
    "annealed": ("annealing", dict(D=5, H=4, R=6, T=8, B=10), "", _rising),
    "annealed_in_one_step": ("annealing", dict(D=4, H=3, R=4, T=1, B=3), "", _rising),
    "annealed_at_once": ("annealing", dict(D=4, H=3, R=4, T=0, B=2), "degenerate", _rising),
    "annealed_one_chain": ("annealing", dict(D=4, H=3, R=1, T=6, B=8), "degenerate", _rising),
}


def _plain_update(paper):
    def update(params, data, reconstruction, rate=1.0):
        up = paper.contrastive_gradient(paper.unigauss_statistics, params, data, reconstruction)
        return tree.map(lambda p, g: p + rate * g, params, up)
    return update


def _visible_by_probabilities(paper):
    step = paper.gibbs_step

    def of_probabilities(*given):
        found = step(*given)
        return found._replace(v=found.visible_probs)
    return of_probabilities


CONVENTIONS = {
    "the data's hidden units by their states": {"positive_hidden": "positive_hidden_states"},
    "visible units by their probabilities, as for grey images, Eq. (9.1)":
        {"gibbs_step": _visible_by_probabilities},
    "a unigauss expert's step is the gradient as it is": {"unigauss_update": _plain_update},
}

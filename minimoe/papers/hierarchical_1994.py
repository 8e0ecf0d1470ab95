"""Hierarchical mixtures of experts: a soft decision tree, fitted by EM.

M. I. Jordan and R. A. Jacobs, "Hierarchical Mixtures of Experts and the EM Algorithm", Neural
Computation 6:181-214, 1994.

The paper writes its equations for two levels; here there are any number of levels, and all nodes of
a level are one array.

    here             paper          meaning
    N, D, O          t, --, --      cases, width of an input (its constant 1 included), of an output
    nodes, branches  i, j           of one level: its gates, and the choices that each of them has
    leaves           ij             experts; numbered from left to right, the last level fastest
    x, y             x, y           input and target; d in 1991
    eta, mu          U_ij x, mu_ij  a leaf's linear predictor, and its output f(U_ij x)
    logits           xi_i, xi_ij    of each gate
    gates            g_i, g_j|i     prior of each branch, once its node has been reached
    log_density      ln P_ij(y)     of each leaf
    h                h_i, h_j|i     posterior of each branch, once its node has been reached
    paths            h_ij           the product from the root down: of posteriors, or of priors
    l, Q             l, Q           log likelihood; expected complete-data log likelihood

Gates of a level are [D, nodes, branches], and the levels before it decide how many nodes it has.
Parameters may have further leading axes, [..., D, nodes, branches], so that many starts are fitted
as one batch; inputs are [N, D]. A tree of one level, its variances 1, is the model of 1991.

Where sources part, the text is the default:

    noise of a leaf         text: Sigma_ij; here sigma_ij^2 I, learnt (GAUSSIAN) or kept
                            (GAUSSIAN_FIXED_VARIANCE); full covariance: not built
    M-step of the gates     text: IRLS, undamped, which promises nothing; here each Newton step is
                            halved until Q does not fall. Text, Algorithm 2: em_step_least_squares
    ridge                   text: suggests ridge regression, towards 0; here towards the present
                            weights, so that an expert without cases keeps its own and no M-step
                            can lower Q. 0 gives the paper's equations
    floor of a variance     text: none, and a leaf that owns one case takes l to infinity
    on-line inverse         text, as transcribed: running_inverse (unconfirmed); the authors' 1993
                            conference paper: running_inverse_weighted. Only the second one is
                            recursive weighted least squares (derived, and tested)
    annealed posteriors     in neither paper; not built
"""
import math
from typing import Callable, NamedTuple

from minimoe import ops, tree
from minimoe.autodiff.tensor import Tensor, grad, stop_gradient
from minimoe.backend import identity, solve
from minimoe.papers.local_experts_1991 import linear_outputs, squared_errors

ROUNDING = 1e-12               # relative; what is less is no fall of Q
LOG_SMALLEST = math.log(1e-12)   # of a posterior that Algorithm 2 takes the logarithm of


# -- The tree ------------------------------------------------------------------------------------

class HierarchicalParams(NamedTuple):
    w_gates: tuple      # a Tensor per level, root first: [D, nodes, branches]
    w_leaves: Tensor    # [D, leaves, O]
    variance: Tensor    # [leaves]   of Gaussian leaves; Bernoulli leaves have none and ignore it


def init(rng, branching, width, n_outputs, scale=0.5, variance=1.0):
    """All weights from N(0, scale^2), but 0 for each gate's last branch, which is the one to spare.

    ``branching`` is the number of branches at each level, root first: (2, 2, 3) has 12 leaves.
    ValueError for a scale that is not positive (leaves that start equal stay equal), and where
    there is no level or a level has no branch.
    """
    if not scale > 0:
        raise ValueError(f"init: scale must be positive, or the leaves stay equal; got {scale}")
    if not branching or min(branching) < 1:
        raise ValueError(f"init: branching needs a level, each of 1 branch or more; "
                         f"got {tuple(branching)}")
    w_gates, nodes = [], 1
    for branches in branching:
        w_gates.append(scale * rng.standard_normal((width, nodes, branches)))
        w_gates[-1][..., -1] = 0
        nodes *= branches
    w_leaves = scale * rng.standard_normal((width, nodes, n_outputs))
    one_output = w_leaves[0, :, 0]
    return HierarchicalParams(tuple(w_gates), w_leaves, one_output - one_output + variance)


def gate_log_probabilities(params, x):
    """ln g_i, ln g_j|i: a softmax of linear logits at every node. Eqs. (2.2)-(2.5)

    [N, D] -> per level [N, nodes, branches]. ValueError for levels that do not fit together, and
    for inputs that do not fit them, or that are not there or NaN.
    """
    _check_tree(params, x)
    return tuple(ops.log_softmax(linear_outputs(x, w), axis=-1) for w in params.w_gates)


def leaf_outputs(params, x, leaf):
    """mu_ij = f(U_ij x), f the kind of leaf's own. Eq. (2.1). [N, D] -> [N, leaves, O]"""
    return leaf.mean(linear_outputs(x, params.w_leaves))


def blend(gates, mu):
    """mu_i = sum_j g_j|i mu_ij, mu = sum_i g_i mu_i: from the leaves up.

    per level [N, nodes, branches], [N, leaves, O] -> [N, O]
    """
    for g in reversed(gates):
        mu = (g[..., None] * mu.reshape(*g.shape, mu.shape[-1])).sum(axis=-2)   # [N, nodes, O]
    return mu[..., 0, :]


def predict(params, x, leaf):
    """The output of the whole tree: what is expected of y. [N, D] -> [N, O]"""
    gates = tree.map(ops.exp, gate_log_probabilities(params, x))
    return blend(gates, leaf_outputs(params, x, leaf))


def log_paths(log_branches):
    """ln of the product of the branches from the root on, to every branch of every level.

    Of posteriors it gives ln h_ij, Eq. (2.12); of gates, the prior of each path. The last level
    has the leaves. per level [N, nodes, branches] -> the same
    """
    paths = [log_branches[0]]
    for log_b in log_branches[1:]:
        to_node = paths[-1].reshape(*log_b.shape[:-1], 1)              # [N, nodes, 1]
        paths.append(to_node + log_b)                                  # [N, nodes, branches]
    return tuple(paths)


def _of_leaves(paths):
    """The last level's. per level [N, nodes, branches] -> [N, leaves]"""
    *shape, nodes, branches = paths[-1].shape
    return paths[-1].reshape(*shape, nodes * branches)


def _check_tree(params, x):
    if x.ndim != 2 or 0 in x.shape or (x != x).any():
        raise ValueError(f"hierarchical: x must be of shape [N, D], neither of them 0, and free of "
                         f"NaN; got shape {x.shape}")
    D, nodes = x.shape[1], 1
    for level, w in enumerate(params.w_gates):
        if w.shape[-3:-1] != (D, nodes) or 0 in w.shape:
            raise ValueError(f"hierarchical: gates of level {level} must be of shape "
                             f"[{D}, {nodes}, branches], none of them 0; got {w.shape}")
        nodes *= w.shape[-1]
    shape, shape_of_variance = params.w_leaves.shape, params.variance.shape
    if shape[-3:-1] != (D, nodes) or 0 in shape or shape_of_variance[-1:] != (nodes,):
        raise ValueError(f"hierarchical: w_leaves must be of shape [{D}, {nodes}, O], none of them "
                         f"0, and variance [{nodes}]; got {shape} and {shape_of_variance}")


# -- Leaves: generalized linear models -----------------------------------------------------------

class Leaf(NamedTuple):
    """What one kind of leaf has that another has not."""
    mean: Callable          # f of Eq. (2.1): eta -> mu
    log_density: Callable   # y, eta, variance -> ln P_ij(y)   [N, leaves]
    score: Callable         # y, eta, variance -> its derivatives by eta and by variance
    fit: Callable           # the M-step, Eq. (2.22): params, x, y, h, settings -> params


def gaussian_log_density(y, eta, variance):
    """ln N(y; eta, variance I), with its constant. [N, O], [N, leaves, O], [leaves] -> [N, leaves]

    ValueError for shapes that do not match, NaN, or a variance that is not positive.
    """
    if not (stop_gradient(variance) > 0).all():
        raise ValueError("gaussian_log_density: every variance must be positive")
    variance = variance[..., None, :]                                  # [1, leaves]
    constant = y.shape[-1] * ops.log(2 * math.pi * variance)           # [1, leaves]
    return -0.5 * (squared_errors(y, eta) / variance + constant)


def gaussian_score(y, eta, variance):
    """Derivatives of ln N(y; eta, variance I). [N, O], .. -> [N, leaves, O], [N, leaves]"""
    variance = variance[..., None, :]                                  # [1, leaves]
    by_eta = (y[..., None, :] - eta) / variance[..., None]             # [N, leaves, O]
    misfit = squared_errors(y, eta) / variance - y.shape[-1]           # [N, leaves]
    return by_eta, 0.5 * misfit / variance


def bernoulli_log_density(y, eta):
    """ln of mu^y (1 - mu)^(1 - y), mu = sigmoid(eta), over all outputs; finite for any eta.

    [N, O], [N, leaves, O] -> [N, leaves]. ValueError for shapes that do not match, or targets
    other than 0 and 1.
    """
    if y.shape[-2:] != (eta.shape[-3], eta.shape[-1]) or ((y != 0) & (y != 1)).any():
        raise ValueError(f"bernoulli_log_density: needs targets 0 or 1 of shape [N, O] and eta of "
                         f"shape [N, leaves, O]; got {y.shape} and {eta.shape}")
    return (y[..., None, :] * eta - ops.softplus(eta)).sum(axis=-1)


def bernoulli_score(y, eta, variance):
    """Derivatives of the Bernoulli's ln P. [N, O], .. -> [N, leaves, O], [N, leaves]"""
    return y[..., None, :] - ops.sigmoid(eta), 0 * eta[..., 0]


# -- Likelihood and posteriors -------------------------------------------------------------------

def tree_log_likelihood(log_gates, log_density):
    """ln P(y | x) = ln sum_i g_i sum_j g_j|i P_ij(y), from the leaves up. Eq. (2.8)

    Its sum over cases is l, Eq. (2.13). per level [N, nodes, branches], [N, leaves] -> [N]
    """
    log_p = log_density
    for log_g in reversed(log_gates):
        log_p = ops.logsumexp(log_g + log_p.reshape(log_g.shape), axis=-1)   # [N, nodes]
    return log_p[..., 0]


def log_posteriors(log_gates, log_density):
    """ln h_i and ln h_j|i: whose case it was, once y is known. Eqs. (2.10), (2.11)

    per level [N, nodes, branches], [N, leaves] -> per level [N, nodes, branches]
    """
    log_p, log_h = log_density, []
    for log_g in reversed(log_gates):
        joint = log_g + log_p.reshape(log_g.shape)                     # [N, nodes, branches]
        log_h.append(ops.log_softmax(joint, axis=-1))
        log_p = ops.logsumexp(joint, axis=-1)                          # [N, nodes]
    return tuple(reversed(log_h))


def log_terms(params, x, y, leaf):
    """What likelihood and posteriors are made of: every gate, and every leaf's density of y.

    [N, D], [N, O] -> per level [N, nodes, branches], [N, leaves]
    """
    log_gates = gate_log_probabilities(params, x)
    eta = linear_outputs(x, params.w_leaves)                           # [N, leaves, O]
    return log_gates, leaf.log_density(y, eta, params.variance)


def expected_complete_log_likelihood(log_gates, log_density, h):
    """Q = sum_ij h_ij (ln g_i + ln g_j|i + ln P_ij(y)), with h held fixed. Eq. (2.21)

    ``h`` are the posteriors of all paths, so that each branch is paid for all leaves behind it.
    per level [N, nodes, branches], [N, leaves], per level [N, nodes, branches] -> [N]
    """
    h = [stop_gradient(level) for level in h]
    q = (_of_leaves(h) * log_density).sum(axis=-1)
    for level, log_g in zip(h, log_gates):
        q = q + (level * log_g).sum(axis=-1).sum(axis=-1)
    return q


# -- Gradient ascent -----------------------------------------------------------------------------

def gradients(params, x, y, leaf):
    """Of l, the sum over cases, written out. Eqs. (2.14)-(2.16)

    Each leaf is pulled towards y by its share h_ij of the case; each gate moves from its prior to
    its posterior, by the share of the case that reaches it. [N, D], [N, O] -> like the parameters
    """
    terms = log_terms(params, x, y, leaf)
    log_h = log_posteriors(*terms)
    paths = tree.map(ops.exp, log_paths(log_h))
    w_gates = tuple(
        _sum_over_cases(x, path.sum(axis=-1)[..., None] * (ops.exp(h) - ops.exp(g)))
        for path, h, g in zip(paths, log_h, terms[0]))                 # (2.15), (2.16)
    h = _of_leaves(paths)                                              # [N, leaves]
    eta = linear_outputs(x, params.w_leaves)
    by_eta, by_variance = leaf.score(y, eta, params.variance)
    return HierarchicalParams(w_gates,
                              _sum_over_cases(x, h[..., None] * by_eta),   # (2.14)
                              (h * by_variance).sum(axis=-2))


def _sum_over_cases(x, r):
    """sum_t x_t r_t. [N, D], [N, nodes, branches] -> [D, nodes, branches]"""
    *starts, N, nodes, branches = r.shape
    by_weight = x.T @ r.reshape(*starts, N, nodes * branches)          # [D, nodes*branches]
    return by_weight.reshape(*by_weight.shape[:-1], nodes, branches)


# -- EM ------------------------------------------------------------------------------------------
# On arrays, not Tensors: nothing here is differentiated.

class MStep(NamedTuple):
    """How the M-step is made safe; see the header."""
    ridge: float = 1e-6
    newton_steps: int = 10
    variance_floor: float = 1e-4


def em_step(params, x, y, leaf, settings=MStep()):
    """E-step, Eqs. (2.10)-(2.12); M-step, Eqs. (2.22)-(2.24). l does not fall.

    Generalized EM: Q need not reach its maximum, only not fall, and l does not fall either
    (Dempster, Laird and Rubin 1977). That holds from variances that are not below the floor.
    [N, D], [N, O] -> HierarchicalParams. ValueError where a ridge of 0 leaves a system singular.
    """
    params = tree.map(stop_gradient, params)
    h = tree.map(ops.exp, log_paths(log_posteriors(*log_terms(params, x, y, leaf))))
    w_gates = tuple(fit_gates(w, x, level, settings) for w, level in zip(params.w_gates, h))
    return leaf.fit(params._replace(w_gates=w_gates), x, y, _of_leaves(h), settings)


def em_step_least_squares(params, x, y, leaf, settings=MStep()):
    """Algorithm 2: each gate's logits fitted by least squares to ln h, in place of its likelihood.

    No iteration inside, but other estimates, and no promise: l may fall. Otherwise as ``em_step``.
    """
    params = tree.map(stop_gradient, params)
    log_h = log_posteriors(*log_terms(params, x, y, leaf))
    h = tree.map(ops.exp, log_paths(log_h))
    w_gates = tuple(
        _least_squares(w, x, ops.clip(target, low=LOG_SMALLEST), level.sum(axis=-1), settings.ridge)
        for w, target, level in zip(params.w_gates, log_h, h))
    return leaf.fit(params._replace(w_gates=w_gates), x, y, _of_leaves(h), settings)


def fit_gaussian_leaves(params, x, y, h, settings):
    """Weights by weighted least squares, then their variances. Eq. (2.22)

    sigma_ij^2 = sum_t h_ij ||y - U_ij x||^2 / (O sum_t h_ij), not below the floor. Here and for
    every kind of leaf: [N, D], [N, O], h_ij [N, leaves] -> HierarchicalParams
    """
    params = fit_gaussian_means(params, x, y, h, settings)
    q = squared_errors(y, linear_outputs(x, params.w_leaves))          # [N, leaves]
    kept = settings.ridge * params.variance      # which is all that a leaf without cases has
    variance = (((h * q).sum(axis=-2) + kept)
                / (y.shape[-1] * h.sum(axis=-2) + settings.ridge))     # [leaves]
    return params._replace(variance=ops.clip(variance, low=settings.variance_floor))


def fit_gaussian_means(params, x, y, h, settings):
    """U_ij = (sum_t h_ij y x^T) (sum_t h_ij x x^T)^-1: the variances stay. Eq. (2.22)"""
    return params._replace(
        w_leaves=_least_squares(params.w_leaves, x, y[..., None, :], h, settings.ridge))


def fit_bernoulli_leaves(params, x, y, h, settings):
    """IRLS. Eq. (2.22)

    Each output of a leaf is a gate that chooses yes or no: its logits are eta and 0, and the case
    that comes to it with weight h_ij is labelled by y.
    """
    *starts, D, leaves, O = params.w_leaves.shape
    w = ops.stack([params.w_leaves, 0 * params.w_leaves], axis=-1)     # [D, leaves, O, 2]
    yes = h[..., None] * y[..., None, :]                               # [N, leaves, O]
    labels = ops.stack([yes, h[..., None] - yes], axis=-1)             # [N, leaves, O, 2]
    w = fit_gates(w.reshape(*starts, D, leaves * O, 2), x,
                  labels.reshape(*labels.shape[:-3], leaves * O, 2), settings)
    return params._replace(w_leaves=w[..., 0].reshape(*starts, D, leaves, O))


def fit_gates(w, x, h, settings):
    """argmax of sum_t sum_j h_j ln g_j at every node of a level, by damped Newton (IRLS).

    Eqs. (2.23), (2.24). ``h`` are posteriors of paths, soft labels that carry the weight h_i with
    which a case reaches the node. Only differences of logits matter: the last column stays.
    [D, nodes, branches], [N, D], [N, nodes, branches] -> [D, nodes, branches]
    """
    if w.shape[-1] == 1:     # nothing to choose
        return w
    weight = h.sum(axis=-1)[..., None]                                 # [N, nodes, 1]

    def q(w):
        return (h * ops.log_softmax(linear_outputs(x, w), axis=-1)).sum(axis=-1).sum(axis=-2)

    for _ in range(settings.newton_steps):
        g = ops.softmax(linear_outputs(x, w), axis=-1)                 # [N, nodes, branches]
        gradient = _sum_over_cases(x, (h - weight * g)[..., :-1])      # [D, nodes, free]
        step = _newton_step(x, weight, g[..., :-1], gradient, settings.ridge)
        still = 0 * w[..., -1:]                                        # [D, nodes, 1]
        w = _climb(w, ops.concatenate([step, still], axis=-1), q)
    return w


def _newton_step(x, weight, g, gradient, ridge):
    """(minus the Hessian + ridge I)^-1 gradient, at every node.

    Block (a, b) of minus the Hessian is sum_t w_t g_ta (delta_ab - g_tb) x_t x_t^T.
    [N, D], [N, nodes, 1], [N, nodes, free], [D, nodes, free] -> [D, nodes, free]
    """
    *starts, D, nodes, free = gradient.shape
    curvature = (weight[..., None] * g[..., None]
                 * (identity(free, g) - g[..., None, :]))              # [N, nodes, free, free]
    blocks = _weighted_squares(x, curvature.reshape(*g.shape[:-2], nodes * free * free))
    hessian = (blocks.reshape(*starts, nodes, free, free, D, D).swapaxes(-3, -2)
               .reshape(*starts, nodes, free * D, free * D))
    columns = gradient.swapaxes(-3, -2).swapaxes(-2, -1)               # [nodes, free, D]
    step = solve(hessian + ridge * identity(free * D, x),
                 columns.reshape(*starts, nodes, free * D, 1))
    return step.reshape(columns.shape).swapaxes(-2, -1).swapaxes(-3, -2)


def _climb(w, step, q):
    """w + step, where each node's step is halved until its part of Q does not fall."""
    before = q(w)                                                      # [nodes]
    least = before - ROUNDING * abs(before)
    while (worse := q(w + step) < least).any():
        step = ops.where(worse[..., None, :, None], 0.5 * step, step)
    return w + step


def _least_squares(w, x, target, weight, ridge):
    """Weights that fit targets at every node; the ridge is towards the present ones.

    [D, nodes, O], [N, D], [N, nodes, O], [N, nodes] -> [D, nodes, O]
    """
    error = weight[..., None] * (target - linear_outputs(x, w))        # [N, nodes, O]
    moments = _weighted_squares(x, weight) + ridge * identity(x.shape[-1], x)   # [nodes, D, D]
    step = solve(moments, _sum_over_cases(x, error).swapaxes(-3, -2))  # [nodes, D, O]
    return w + step.swapaxes(-3, -2)


def _weighted_squares(x, weight):
    """sum_t w_t x_t x_t^T. [N, D], [N, nodes] -> [nodes, D, D]"""
    N, D = x.shape
    squares = (x[:, :, None] * x[:, None, :]).reshape(N, D * D)
    sums = weight.swapaxes(-2, -1) @ squares                           # [nodes, D*D]
    return sums.reshape(*sums.shape[:-1], D, D)


# -- On-line: one case at a time -----------------------------------------------------------------

class OnlineState(NamedTuple):
    params: HierarchicalParams
    gates: tuple        # per level [nodes, D, D]   running inverse of sum_t h_i x x^T
    leaves: Tensor      # [leaves, D, D]            and of sum_t h_ij x x^T


def online_init(params, ridge=1e-6):
    """Nothing seen yet: every running inverse is I / ridge."""
    def inverse(w):                                                    # [D, nodes, branches]
        one = w.swapaxes(-3, -2)[..., :1]                              # [nodes, D, 1]
        return 0 * one + identity(w.shape[-3], w) / ridge              # [nodes, D, D]

    return OnlineState(params, tree.map(inverse, params.w_gates), inverse(params.w_leaves))


def running_inverse(R, x, decay, h):
    """R := (R - R x x^T R / (decay + x^T R x)) / decay, the journal's, as transcribed.

    Every node counts every case in full, whatever h. [nodes, D, D], [D], [], [nodes] -> like R
    """
    return running_inverse_weighted(R, x, decay, 0 * h + 1)


def running_inverse_weighted(R, x, decay, h):
    """R := (R - R x x^T R / (decay / h + x^T R x)) / decay, of the 1993 conference paper.

    The inverse of decay R^-1 + h x x^T: each case counts by the share of it that the node had.
    [nodes, D, D], [D], [], [nodes] -> [nodes, D, D]
    """
    Rx = R @ x                                                         # [nodes, D]
    share = h / (decay + h * (Rx @ x))                                 # [nodes]
    return (R - share[..., None, None] * Rx[..., :, None] * Rx[..., None, :]) / decay


def online_step(state, x, y, decay, inverse=running_inverse):
    """Recursive least squares on one case, for Gaussian leaves. Eqs. (2.27)-(2.32)

    U_ij += h_ij (y - mu_ij) x^T R_ij; the gates likewise, towards ln h_i and, where a share h_i of
    the case reaches them, ln h_j|i: Algorithm 2, on-line. ``decay``, lambda, is 1 to forget
    nothing. state, [D], [O] -> state
    """
    params = tree.map(stop_gradient, state.params)
    log_h = log_posteriors(*log_terms(params, x[None], y[None], GAUSSIAN))
    h = tree.map(ops.exp, log_paths(log_h))

    def step(R, w, target, weight):
        R, weight = inverse(R, x, decay, weight[..., 0, :]), weight[..., 0, :]
        error = target - linear_outputs(x[None], w)                    # [1, nodes, branches]
        gain = (R @ x).swapaxes(-2, -1)[..., None]                     # [D, nodes, 1]
        return R, w + gain * (weight[..., None] * error[..., 0, :, :])[..., None, :, :]

    gates = [step(R, w, ops.clip(target, low=LOG_SMALLEST), level.sum(axis=-1))
             for R, w, target, level in zip(state.gates, params.w_gates, log_h, h)]
    R, w_leaves = step(state.leaves, params.w_leaves, y[None, None, :], _of_leaves(h))
    params = params._replace(w_gates=tuple(w for _, w in gates), w_leaves=w_leaves)
    return OnlineState(params, tuple(R for R, _ in gates), R)


# -- Kinds of leaves -----------------------------------------------------------------------------

GAUSSIAN = Leaf(mean=lambda eta: eta, log_density=gaussian_log_density,
                score=gaussian_score, fit=fit_gaussian_leaves)
GAUSSIAN_FIXED_VARIANCE = GAUSSIAN._replace(fit=fit_gaussian_means)
BERNOULLI = Leaf(mean=ops.sigmoid,
                 log_density=lambda y, eta, variance: bernoulli_log_density(y, eta),
                 score=bernoulli_score,
                 fit=fit_bernoulli_leaves)


# -- A recorded run ------------------------------------------------------------------------------

RUN = {
    "in.x": "N D", "in.y": "N O", "in.cotangent": "N",
    "param.w_gates.*": "...", "param.w_leaves": "D leaves O", "param.variance": "leaves",
    "set.bernoulli": "", "set.ridge": "", "set.newton_steps": "", "set.variance_floor": "",
    "set.decay": "",
}


def oracle(case):
    """Every intermediate of a run, the gradient of <l, cotangent>, and one step of each fit.

    The leaves are Gaussian, or Bernoulli where the setting ``bernoulli`` is 1. The on-line steps,
    which are for Gaussian leaves, see the first case alone.
    """
    x, y, cotangent = case.inputs["x"], case.inputs["y"], case.inputs["cotangent"]
    leaf = BERNOULLI if case.settings["bernoulli"] else GAUSSIAN
    settings = MStep(*(case.settings[name] for name in MStep._fields))
    levels = [name for name in case.params if name.startswith("w_gates.")]
    params = HierarchicalParams(tuple(case.params[f"w_gates.{i}"] for i in range(len(levels))),
                                case.params["w_leaves"], case.params["variance"])
    tensors = tree.map(Tensor, params)
    terms = log_terms(tensors, x, y, leaf)
    log_h = log_posteriors(*terms)
    h = tree.map(ops.exp, log_paths(log_h))
    l = tree_log_likelihood(*terms)
    state = online_init(params, settings.ridge)
    online = {name: online_step(state, x[0], y[0], case.settings["decay"], inverse)
              for name, inverse in [("running", running_inverse),
                                    ("running_weighted", running_inverse_weighted)]}
    return tree.map(stop_gradient, {
        "gates": tree.map(ops.exp, terms[0]), "mu": leaf_outputs(params, x, leaf),
        "prediction": predict(params, x, leaf), "log_density": terms[1],
        "log_likelihood": l, "h": tree.map(ops.exp, log_h), "paths": h,
        "Q": expected_complete_log_likelihood(*terms, h),
        "grad": {"log_likelihood": grad((l * cotangent).sum(), tensors)},
        "em": em_step(params, x, y, leaf, settings),
        "least_squares": em_step_least_squares(params, x, y, leaf, settings),
        **online,
    })


# -- Cases and conventions -----------------------------------------------------------------------

def _tree_of(*branching, bernoulli=False, change=None):
    """Gates of this branching, an input that is 1, positive variances; targets for the leaves."""
    def draw(arrays, rng):
        arrays["in.x"][:, -1] = 1
        D, nodes = arrays["in.x"].shape[1], 1
        for level, branches in enumerate(branching):
            arrays[f"param.w_gates.{level}"] = rng.standard_normal((D, nodes, branches))
            nodes *= branches
        arrays["param.w_leaves"] = rng.standard_normal(arrays["param.w_leaves"].shape)
        arrays["param.variance"] = 0.5 + rng.random(nodes)
        if bernoulli:
            arrays["in.y"] = 1.0 * (arrays["in.y"] > 0)
        if change:
            change(arrays)

    return draw


def _far_target(arrays):
    """Of the first case alone, of which every P_ij is 0; its gradient is made small in return."""
    arrays["in.y"][0] = 256
    arrays["in.cotangent"][0] = 2**-16


def _sure_gate(arrays):
    """The root sends the first case one way, by an input that only it has."""
    arrays["in.x"][:, 0] = 0
    arrays["in.x"][0, 0] = 1
    arrays["param.w_gates.0"][0] *= 1024


def _wrong_and_sure(arrays):
    """Gates so sure of the wrong branch that a whole Newton step overshoots."""
    arrays["param.w_gates.0"] *= 4


def _wrong_and_sure_below(arrays):
    arrays["param.w_gates.1"] *= 8


_GIVEN = dict(bernoulli=0, ridge=1.0, newton_steps=2, variance_floor=2**-6, decay=0.875)

CASES = {
    "two_by_two": ("", dict(N=16, D=3, O=2, n_w_gates=2, leaves=4, **_GIVEN), "", _tree_of(2, 2)),
    "three_levels": ("", dict(N=16, D=2, O=1, n_w_gates=3, leaves=12, **_GIVEN), "",
                     _tree_of(2, 3, 2)),
    "one_level": ("", dict(N=16, D=3, O=2, n_w_gates=1, leaves=5, **_GIVEN), "", _tree_of(5)),
    "one_leaf": ("", dict(N=8, D=3, O=2, n_w_gates=1, leaves=1, **_GIVEN), "degenerate, E=1",
                 _tree_of(1)),
    "one_case": ("", dict(N=1, D=3, O=2, n_w_gates=2, leaves=4, **_GIVEN),
                 "degenerate, one datum", _tree_of(2, 2)),
    "a_node_without_choice": ("", dict(N=16, D=3, O=2, n_w_gates=3, leaves=4, **_GIVEN),
                              "degenerate", _tree_of(2, 1, 2)),
    "yes_or_no": ("", dict(N=16, D=3, O=2, n_w_gates=2, leaves=6, **{**_GIVEN, "bernoulli": 1}),
                  "", _tree_of(2, 3, bernoulli=True)),
    "far_target": ("", dict(N=16, D=3, O=2, n_w_gates=2, leaves=4, **_GIVEN), "extreme",
                   _tree_of(2, 2, change=_far_target)),
    "sure_gate": ("", dict(N=16, D=3, O=2, n_w_gates=2, leaves=4, **_GIVEN), "extreme",
                  _tree_of(2, 2, change=_sure_gate)),
    "damped": ("", dict(N=16, D=3, O=2, n_w_gates=1, leaves=2, **{**_GIVEN, "ridge": 2**-4}), "",
               _tree_of(2, change=_wrong_and_sure)),
    "damped_below_the_root": (
        "", dict(N=16, D=2, O=2, n_w_gates=2, leaves=4, **{**_GIVEN, "ridge": 2**-4}), "",
        _tree_of(2, 2, change=_wrong_and_sure_below)),
}


def _towards_zero(paper):
    fitted = paper._least_squares
    return lambda w, x, target, weight, ridge: fitted(0 * w, x, target, weight, ridge)


CONVENTIONS = {
    "variances stay as they are": {"GAUSSIAN": "GAUSSIAN_FIXED_VARIANCE"},
    "gates by Algorithm 2, least squares to ln h": {"em_step": "em_step_least_squares"},
    "Newton steps are not damped, as in the text":
        {"_climb": lambda paper: lambda w, step, q: w + step},
    "the ridge of least squares is towards 0": {"_least_squares": _towards_zero},
    "the running inverse counts a case by its share": {
        "running_inverse": "running_inverse_weighted"},
}

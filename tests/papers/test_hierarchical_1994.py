import math

import numpy as np
import pytest

from minimoe import ops, oracle, tree
from minimoe.autodiff.check import check_vjp
from minimoe.autodiff.tensor import Tensor, grad
from minimoe.backend import to_numpy
from minimoe.oracle.trace import of_variant, trace
from minimoe.oracle.variants import conventions
from minimoe.papers import hierarchical_1994 as paper
from minimoe.papers import local_experts_1991
from tests.closeness import close

KINDS = {"gaussian": paper.GAUSSIAN, "fixed_variance": paper.GAUSSIAN_FIXED_VARIANCE,
         "bernoulli": paper.BERNOULLI}
all_kinds = pytest.mark.parametrize("leaf", KINDS.values(), ids=KINDS)
BRANCHINGS = [(2, 2), (2, 2, 3), (3,), (1,), (2, 1, 2)]
all_branchings = pytest.mark.parametrize("branching", BRANCHINGS, ids=str)
EXACT = paper.MStep(ridge=0.0, newton_steps=30)   # the paper's equations, where they are regular


def all_close(computed, expected, tolerance=1e-10):
    for one, other in zip(tree.leaves(computed), tree.leaves(expected), strict=True):
        close(one, other, tolerance)


def log_likelihoods(params, x, y, leaf):
    return paper.tree_log_likelihood(*paper.log_terms(params, x, y, leaf))


def posteriors(params, x, y, leaf):
    """Of every path, per level."""
    log_h = paper.log_posteriors(*paper.log_terms(params, x, y, leaf))
    return tree.map(ops.exp, paper.log_paths(log_h))


def stacked(starts):
    return tree.map(lambda *parts: ops.stack(parts), *starts)


@pytest.fixture
def problem(rng, move):
    """A tree with its cases: targets of any size, or yes and no."""
    def make(branching, leaf, N=7, D=3, O=2, scale=0.5):
        params = paper.init(rng, branching, D, O, scale=scale, variance=0.7)
        variance = params.variance * (0.5 + rng.random(params.variance.shape))
        params = params._replace(variance=variance)
        x, y = rng.standard_normal((N, D)), rng.standard_normal((N, O))
        x[:, -1] = 1
        return move((params, x, (y > 0) * 1.0 if leaf is paper.BERNOULLI else y))
    return make


@pytest.fixture
def zigzag(rng, move):
    """Three lines in turn, with noise: [N, 2], [N, 1]."""
    def make(N):
        t = rng.uniform(-2, 2, N)
        y = np.where(t < -0.5, -2 * t - 2, np.where(t < 0.7, 1 + t, 1 - 2 * t))
        x = np.stack([t, np.ones(N)], axis=1)
        return move((x, (y + 0.1 * rng.standard_normal(N))[:, None]))
    return make


# -- By hand -------------------------------------------------------------------------------------

@pytest.fixture
def by_hand(move):
    """One case, y = 1; its gates as logits, and the four leaves' outputs."""
    logits = move((np.log([[[0.8, 0.2]]]), np.log([[[0.9, 0.1], [0.5, 0.5]]])))
    return logits, move(np.array([[[1.1], [0.3], [-0.5], [0.7]]])), move(np.array([[1.0]]))


def terms_by_hand(logits, mu, y):
    density = paper.gaussian_log_density(y, mu, 0 * ops.stack([y[0, 0]] * 4) + 1)
    return tuple(ops.log_softmax(level) for level in logits), density


def test_prediction_by_hand(by_hand):
    logits, mu, _ = by_hand
    # 0.8 (0.9 * 1.1 + 0.1 * 0.3) + 0.2 (0.5 * -0.5 + 0.5 * 0.7) = 0.8 * 1.02 + 0.2 * 0.1
    close(paper.blend([ops.softmax(level) for level in logits], mu), [[0.836]])


def test_likelihood_and_posteriors_by_hand(by_hand):
    terms = terms_by_hand(*by_hand)
    # densities exp(-(0.1, 0.7, 1.5, 0.3)^2 / 2) / sqrt(2 pi) = .39695, .31225, .12952, .38139;
    # branches .9 * .39695 + .1 * .31225 = .38848 and .25545; all .8 * .38848 + .2 * .25545 = .36187
    close(paper.tree_log_likelihood(*terms), [-1.0164517606])
    log_h = paper.log_posteriors(*terms)
    root, below = (ops.exp(level) for level in log_h)
    close(root, [[[0.85881782, 0.14118218]]], 1e-8)
    close(below, [[[0.91962218, 0.08037782], [0.25350602, 0.74649398]]], 1e-8)
    paths = [ops.exp(level) for level in paper.log_paths(log_h)]
    close(paths[0], root)
    # (2.12): 0.85881782 * 0.91962218 = 0.78978791, and so on
    close(paths[1], [[[0.78978791, 0.06902991], [0.03579053, 0.10539165]]], 1e-8)


def test_gradients_by_hand(by_hand):
    logits, mu, y = by_hand
    logits, mu = tree.map(Tensor, (logits, mu))
    found = grad(paper.tree_log_likelihood(*terms_by_hand(logits, mu, y)).sum(), (mu, *logits))
    # h_ij (y - mu_ij);  h_i - g_i;  h_i (h_j|i - g_j|i)
    close(found[0][0, :, 0], [-0.07897879, 0.04832094, 0.05368580, 0.03161750], 1e-7)
    close(found[1], [[[0.05881782, -0.05881782]]], 1e-7)
    close(found[2], [[[0.01685187, -0.01685187], [-0.03480056, 0.03480056]]], 1e-6)


def test_densities_by_hand(move):
    y, eta = move((np.array([[1.0, 2.0]]), np.array([[[3.0, 2.0], [1.0, 2.0]]])))
    # squared distances 4 and 0; variances 4 and 1; two outputs, so 2/2 log(2 pi variance)
    close(paper.gaussian_log_density(y, eta, move(np.array([4.0, 1.0]))),
          [[-0.5 - math.log(8 * math.pi), -math.log(2 * math.pi)]])
    # yes at odds of 3 to 1, no at odds of 1 to 1: 3/4 * 1/2;  1/4 * 2/3
    y, eta = move((np.array([[1.0, 0.0]]), np.log([[[3.0, 1.0], [1 / 3, 0.5]]])))
    close(paper.bernoulli_log_density(y, eta), [[math.log(3 / 8), math.log(1 / 6)]])


@pytest.mark.parametrize("logit, taken", [(3.0, 1 / 2), (2.18, 1 / 2), (2.17, 1.0)])
def test_a_newton_step_is_halved_by_hand(move, logit, taken):
    # labels 1/2 and 1/2 at logits (a, 0): Q is even in a, and the step (1/2 - g) / (g (1 - g)) is
    # -sinh(a). From 3 it leads to -7.02, from 2.18 to -2.187, both further from the maximum at 0
    # than they came from, and half of it does not; from 2.17 it leads to -2.152, which is nearer
    w, x, h = move((np.array([[[logit, 0.0]]]), np.ones((1, 1)), np.array([[[0.5, 0.5]]])))
    settings = paper.MStep(ridge=0.0, newton_steps=1)
    close(paper.fit_gates(w, x, h, settings), [[[logit - taken * math.sinh(logit), 0.0]]])


def test_the_ridge_by_hand(move):
    # one leaf with w = 1 and a variance of 4, one case x = 1, y = 4: 1 + (4 - 1) / (1 + 2) = 2, so
    # q = 4, and (4 + 2 * 4) / (1 + 2) = 4. A gate at 0 that should say yes: half / (1/4 + 2)
    x, y, ridge = move(np.ones((1, 1))), move(np.array([[4.0]])), paper.MStep(2.0, newton_steps=1)
    leaf = paper.HierarchicalParams(move((np.zeros((1, 1, 1)),)), move(np.ones((1, 1, 1))),
                                    move(np.array([4.0])))
    fitted = paper.em_step(leaf, x, y, paper.GAUSSIAN, ridge)
    close(fitted.w_leaves, [[[2.0]]])
    close(fitted.variance, [4.0])
    gate = paper.fit_gates(move(np.zeros((1, 1, 2))), x, move(np.array([[[1.0, 0.0]]])), ridge)
    close(gate, [[[0.5 / 2.25, 0.0]]])


def test_on_line_inverses_by_hand(move):
    R, x, h = move((np.array([[[2.0]], [[2.0]]]), np.array([3.0]), np.array([0.5, 0.0])))
    # 1 / (0.9 / 2 + 9) and 1 / (0.9 / 2 + 0.5 * 9); a case that is not mine is only forgotten
    close(paper.running_inverse(R, x, 0.9, h), [[[1 / 9.45]], [[1 / 9.45]]])
    close(paper.running_inverse_weighted(R, x, 0.9, h), [[[1 / 4.95]], [[2 / 0.9]]])


# -- Gradients -----------------------------------------------------------------------------------

@all_kinds
@all_branchings
def test_gradients_of_the_likelihood(problem, rng, leaf, branching):
    params, x, y = problem(branching, leaf)
    check_vjp(lambda params: log_likelihoods(params, x, y, leaf), params, rng=rng)
    tensors = tree.map(Tensor, params)
    terms = paper.log_terms(tensors, x, y, leaf)
    by_autodiff = grad(paper.tree_log_likelihood(*terms).sum(), tensors)
    written = paper.gradients(params, x, y, leaf)
    for one, other in zip(tree.leaves(written), tree.leaves(by_autodiff), strict=True):
        assert one.shape == other.shape
        assert abs(to_numpy(one - other)).max() <= 1e-13 * (1 + abs(to_numpy(other)).max())
    # Q with h held is l to first order, even where h comes with its own record
    h = tree.map(ops.exp, paper.log_paths(paper.log_posteriors(*terms)))
    of_q = grad(paper.expected_complete_log_likelihood(*terms, h).sum(), tensors)
    for one, other in zip(tree.leaves(of_q), tree.leaves(by_autodiff), strict=True):
        assert abs(to_numpy(one - other)).max() <= 1e-13 * (1 + abs(to_numpy(other)).max())


@all_kinds
def test_gradients_of_the_rest(problem, rng, leaf):
    params, x, y = problem((2, 3), leaf)
    check_vjp(lambda params: paper.predict(params, x, leaf), params, rng=rng)
    terms = paper.log_terms(params, x, y, leaf)
    check_vjp(lambda *terms: paper.log_posteriors(*terms)[0], *terms, rng=rng)
    h = posteriors(params, x, y, leaf)
    check_vjp(lambda *terms: paper.expected_complete_log_likelihood(*terms, h), *terms, rng=rng)


# -- The tree ------------------------------------------------------------------------------------

@all_branchings
def test_the_tree_is_a_mixture_of_its_paths(problem, branching):
    params, x, y = problem(branching, paper.GAUSSIAN)
    log_gates, density = paper.log_terms(params, x, y, paper.GAUSSIAN)
    prior = paper.log_paths(log_gates)[-1].reshape(density.shape)
    close(ops.exp(prior).sum(axis=-1), 0 * density[:, 0] + 1, 1e-14)
    close(paper.tree_log_likelihood(log_gates, density), ops.logsumexp(prior + density), 1e-14)
    h = posteriors(params, x, y, paper.GAUSSIAN)
    close(h[-1].reshape(density.shape), ops.softmax(prior + density), 1e-13)
    for above, level in zip(h, h[1:]):      # each branch has what the leaves behind it have
        close(level.sum(axis=-1), above.reshape(level.shape[:-1]), 1e-13)
    prediction = (ops.exp(prior)[..., None] * paper.leaf_outputs(params, x, paper.GAUSSIAN))
    close(paper.predict(params, x, paper.GAUSSIAN), prediction.sum(axis=-2), 1e-13)


def test_one_level_of_unit_variance_is_the_model_of_1991(problem):
    params, x, y = problem((4,), paper.GAUSSIAN)
    params = params._replace(variance=0 * params.variance + 1)
    o = local_experts_1991.linear_outputs(x, params.w_leaves)
    logits = local_experts_1991.gate_logits(x, params.w_gates[0][:, 0])
    error = local_experts_1991.mixture_error(y, o, logits)
    close(log_likelihoods(params, x, y, paper.GAUSSIAN), -error - math.log(2 * math.pi))
    close(posteriors(params, x, y, paper.GAUSSIAN)[0][:, 0],
          local_experts_1991.responsibilities(y, o, logits))
    close(paper.predict(params, x, paper.GAUSSIAN), local_experts_1991.blend(o, logits))


@all_kinds
def test_without_gates_the_tree_is_the_mean_of_its_leaves(problem, leaf):
    params, x, _ = problem((2, 3), leaf)
    params = params._replace(w_gates=tree.map(lambda w: 0 * w, params.w_gates))
    close(paper.predict(params, x, leaf), paper.leaf_outputs(params, x, leaf).mean(axis=1))


def test_a_steep_gate_is_a_hard_decision_tree(problem):
    params, x, _ = problem((2, 3), paper.GAUSSIAN, N=60, D=6)
    steep = params._replace(w_gates=tree.map(lambda w: 1e6 * w, params.w_gates))
    found = to_numpy(paper.predict(steep, x, paper.GAUSSIAN))
    root, below = (to_numpy(w) for w in params.w_gates)
    leaves = to_numpy(params.w_leaves)
    reached = set()
    for x_t, found_t in zip(to_numpy(x), found):
        i = int((x_t @ root[:, 0]).argmax())
        j = int((x_t @ below[:, i]).argmax())
        reached.add((i, j))
        np.testing.assert_allclose(found_t, x_t @ leaves[:, 3 * i + j], rtol=1e-12)
    assert len(reached) >= 5


def test_two_branches_part_at_a_logistic_ridge(problem):
    """Eq. (2.6): along the difference of the two weight vectors, which is all that matters."""
    params, x, _ = problem((2, 2), paper.GAUSSIAN)
    below = params.w_gates[1]
    g = ops.exp(paper.gate_log_probabilities(params, x)[1])[..., 0]
    close(g, ops.sigmoid(x @ (below[:, :, 0] - below[:, :, 1])))


@all_branchings
def test_a_common_shift_of_a_gate_changes_nothing(problem, move, rng, branching):
    params, x, y = problem(branching, paper.GAUSSIAN)
    shifted = tuple(w + move(rng.standard_normal((*w.shape[:-1], 1))) for w in params.w_gates)
    close(log_likelihoods(params._replace(w_gates=shifted), x, y, paper.GAUSSIAN),
          log_likelihoods(params, x, y, paper.GAUSSIAN), 1e-13)


def test_branches_may_change_places(problem, move):
    params, x, y = problem((2, 3), paper.GAUSSIAN)
    nodes, leaves = move((np.array([1, 0]), np.array([3, 4, 5, 0, 1, 2])))
    root, below = params.w_gates
    swapped = paper.HierarchicalParams((root[..., nodes], below[:, nodes]),
                                       params.w_leaves[:, leaves], params.variance[leaves])
    close(log_likelihoods(swapped, x, y, paper.GAUSSIAN),
          log_likelihoods(params, x, y, paper.GAUSSIAN), 1e-14)


@pytest.mark.numpy_only("draws are made in NumPy")
def test_starts(rng):
    params = paper.init(rng, (2, 2, 3), width=5, n_outputs=40, scale=0.3, variance=0.2)
    assert [w.shape for w in params.w_gates] == [(5, 1, 2), (5, 2, 2), (5, 4, 3)]
    assert params.w_leaves.shape == (5, 12, 40)
    assert params.w_leaves.std() == pytest.approx(0.3, rel=0.1)
    assert params.w_gates[2][..., :2].std() == pytest.approx(0.3, rel=0.3)
    assert not any(w[..., -1].any() for w in params.w_gates)
    assert params.variance.tolist() == [0.2] * 12


# -- EM ------------------------------------------------------------------------------------------

@all_kinds
@all_branchings
def test_em_never_lowers_the_likelihood(zigzag, rng, move, leaf, branching):
    x, y = zigzag(50)
    if leaf is paper.BERNOULLI:
        y = (y > 0) * 1.0
    params = stacked([move(paper.init(rng, branching, 2, 1)) for _ in range(4)])
    l = []
    for _ in range(12):
        l.append(to_numpy(log_likelihoods(params, x, y, leaf).sum(axis=-1)))
        params = paper.em_step(params, x, y, leaf)
    l = np.array(l)                                                    # [12, starts]
    assert (np.diff(l, axis=0) >= -1e-8 * abs(l[1:])).all()
    assert (l[-1] > l[0] + 1).all()


@all_kinds
def test_an_m_step_raises_q_and_ends_where_its_gradient_vanishes(problem, leaf):
    params, x, y = problem((2, 3), leaf, N=60)
    h = posteriors(params, x, y, leaf)
    fitted = tree.map(Tensor, paper.em_step(params, x, y, leaf, EXACT))

    def q(params):
        return paper.expected_complete_log_likelihood(*paper.log_terms(params, x, y, leaf), h).sum()

    before, after = q(tree.map(Tensor, params)), q(fitted)
    assert float(after) > float(before) + 1
    gradient = grad(after, fitted)
    if leaf is not paper.GAUSSIAN:
        gradient = gradient._replace(variance=gradient.variance * 0)
    for g in tree.leaves(gradient):
        assert abs(to_numpy(g)).max() < 1e-9


def test_leaves_are_fitted_by_weighted_least_squares(problem):
    params, x, y = problem((2, 2), paper.GAUSSIAN, N=30)
    h = to_numpy(posteriors(params, x, y, paper.GAUSSIAN)[-1]).reshape(30, 4)
    fitted = paper.em_step(params, x, y, paper.GAUSSIAN, EXACT)
    x, y = to_numpy(x), to_numpy(y)
    for leaf in range(4):
        root = np.sqrt(h[:, leaf, None])
        w, *_ = np.linalg.lstsq(root * x, root * y, rcond=None)
        close(fitted.w_leaves[:, leaf], w)
        q = ((y - x @ w) ** 2).sum(axis=1)
        close(fitted.variance[leaf], h[:, leaf] @ q / (2 * h[:, leaf].sum()))


def test_with_the_constant_for_an_input_em_is_that_of_a_gaussian_mixture(problem):
    """The link to competitive learning: mu = sum h y / sum h, and p = mean h at each gate."""
    params, x, y = problem((2, 2), paper.GAUSSIAN, N=20, D=1)
    h = posteriors(params, x, y, paper.GAUSSIAN)
    fitted = paper.em_step(params, x, y, paper.GAUSSIAN_FIXED_VARIANCE, EXACT)
    leaves = h[1].reshape(20, 4)
    close(fitted.w_leaves[0], (leaves.T @ y) / leaves.sum(axis=0)[:, None])
    root, below = (ops.exp(level[0]) for level in paper.gate_log_probabilities(fitted, x))
    close(root, h[0].mean(axis=0))
    close(below, h[1].sum(axis=0) / h[0].sum(axis=0)[0][:, None])
    assert fitted.variance is params.variance


@pytest.mark.parametrize("far", [1, 30])
def test_algorithm_2_fits_logits_to_the_logarithms_of_posteriors(problem, far):
    """With the constant for an input: mean ln h_i, and mean ln h_j|i of what gets there."""
    params, x, y = problem((2, 2), paper.GAUSSIAN, N=20, D=1)
    y = far * y
    log_h = paper.log_posteriors(*paper.log_terms(params, x, y, paper.GAUSSIAN))
    fitted = paper.em_step_least_squares(params, x, y, paper.GAUSSIAN, EXACT)
    root, below = (to_numpy(level) for level in log_h)
    share = np.exp(root[:, 0])                                         # [N, nodes]
    assert (min(root.min(), below.min()) < math.log(1e-12)) == (far > 1)
    root, below = (level.clip(math.log(1e-12)) for level in (root, below))
    close(fitted.w_gates[0][0], [root.mean(axis=0)[0]])
    close(fitted.w_gates[1][0], (share[..., None] * below).sum(axis=0) / share.sum(axis=0)[:, None])
    all_close(fitted[1:], paper.em_step(params, x, y, paper.GAUSSIAN, EXACT)[1:], 1e-14)


def test_algorithm_2_holds_no_promise(zigzag, rng, move):
    """From the starts from which EM rises at every step, it falls somewhere, and ends lower."""
    x, y = zigzag(100)
    start = stacked([move(paper.init(rng, (2, 2), 2, 1, variance=0.05)) for _ in range(5)])
    l = {}
    for step in [paper.em_step, paper.em_step_least_squares]:
        params, l[step] = start, []
        for _ in range(25):
            l[step].append(to_numpy(
                log_likelihoods(params, x, y, paper.GAUSSIAN_FIXED_VARIANCE).sum(axis=-1)))
            params = step(params, x, y, paper.GAUSSIAN_FIXED_VARIANCE)
    em, least_squares = (np.diff(values, axis=0) for values in l.values())
    assert em.min() >= 0 and (least_squares.min(axis=0) < -1).sum() >= 3
    assert l[paper.em_step][-1].max() > l[paper.em_step_least_squares][-1].max()


def test_em_finds_the_pieces(zigzag, rng, move):
    x, y = zigzag(200)
    params = stacked([move(paper.init(rng, (2, 2), 2, 1)) for _ in range(10)])
    for _ in range(40):
        params = paper.em_step(params, x, y, paper.GAUSSIAN)
    error = to_numpy(ops.square(paper.predict(params, x, paper.GAUSSIAN) - y).mean(axis=(-1, -2)))
    line = paper.em_step(move(paper.init(rng, (1,), 2, 1)), x, y, paper.GAUSSIAN)
    error_of_line = float(line.variance[0])
    assert error.min() < 0.02 < 0.3 < error_of_line       # noise of 0.1 squared is 0.01
    assert np.median(error) < error_of_line / 4


def test_many_starts_at_once(problem, rng, move):
    for leaf in KINDS.values():
        _, x, y = problem((2, 3), leaf, N=20)
        starts = [move(paper.init(rng, (2, 3), 3, 2)) for _ in range(3)]

        def everything(params):
            terms = paper.log_terms(params, x, y, leaf)
            state = paper.online_init(params, ridge=1.0)
            return [terms, paper.predict(params, x, leaf), log_likelihoods(params, x, y, leaf),
                    posteriors(params, x, y, leaf), paper.gradients(params, x, y, leaf),
                    paper.expected_complete_log_likelihood(
                        *terms, posteriors(params, x, y, leaf)),
                    paper.em_step(params, x, y, leaf),
                    paper.em_step_least_squares(params, x, y, leaf),
                    paper.online_step(state, x[0], y[0], decay=0.9)]

        together = everything(stacked(starts))
        for i, start in enumerate(starts):
            for one, all_ in zip(tree.leaves(everything(start)), tree.leaves(together)):
                close(all_[i], one)


def test_em_keeps_single_precision(problem):
    params, x, y = tree.map(lambda a: a.astype("float32"), problem((2, 2), paper.GAUSSIAN, N=20))
    for step in [paper.em_step, paper.em_step_least_squares]:
        fitted = step(params, x, y, paper.GAUSSIAN)
        assert {to_numpy(a).dtype.name for a in tree.leaves(fitted)} == {"float32"}
        assert float(log_likelihoods(fitted, x, y, paper.GAUSSIAN).sum()) > -200


# -- Where it is easily lost ---------------------------------------------------------------------

@pytest.mark.parametrize("leaf", [paper.GAUSSIAN, paper.BERNOULLI], ids=["gaussian", "bernoulli"])
def test_far_away_everything_stays_finite(problem, leaf):
    """Where every density underflows, the posterior is still that of the nearest leaf."""
    params, x, y = problem((2, 2), leaf, N=9)
    if leaf is paper.GAUSSIAN:
        params, y = params._replace(variance=0 * params.variance + 1), y * 1e5
        assert (to_numpy(ops.exp(paper.log_terms(params, x, y, leaf)[1])) == 0).all()
        nearest = to_numpy(local_experts_1991.squared_errors(
            y, paper.leaf_outputs(params, x, leaf))).argmin(axis=-1)
        h = to_numpy(posteriors(params, x, y, leaf)[-1]).reshape(9, 4)
        assert (h == np.eye(4)[nearest]).all()
    else:
        params = params._replace(w_leaves=1e5 * params.w_leaves)
    for step in [paper.em_step, paper.em_step_least_squares]:
        fitted = step(params, x, y, leaf)
        assert all(np.isfinite(to_numpy(a)).all() for a in tree.leaves(fitted))
        assert np.isfinite(to_numpy(log_likelihoods(fitted, x, y, leaf))).all()


@pytest.mark.parametrize("leaf", [paper.GAUSSIAN, paper.BERNOULLI], ids=["gaussian", "bernoulli"])
def test_a_leaf_without_cases_keeps_what_it_has(problem, move, leaf):
    params, x, y = problem((2, 2), leaf)
    away = np.array([0.0, 0.0, 0.0, 1e4])                 # the constant's weight, of the last leaf
    params = params._replace(w_leaves=params.w_leaves + move(
        np.array([0.0, 0.0, 1.0])[:, None, None] * away[:, None]))
    if leaf is paper.BERNOULLI:
        y = 0 * y                                         # where it says yes
    h = to_numpy(posteriors(params, x, y, leaf)[-1]).reshape(-1, 4)
    assert (h[:, 3] == 0).all() and (h[:, :3].sum(axis=0) > 0).all()
    fitted = paper.em_step(params, x, y, leaf)
    assert (to_numpy(fitted.w_leaves)[:, 3] == to_numpy(params.w_leaves)[:, 3]).all()
    assert (to_numpy(fitted.w_leaves)[:, 0] != to_numpy(params.w_leaves)[:, 0]).all()
    close(fitted.variance[3], params.variance[3], 1e-14)


def test_a_leaf_of_one_case_stops_at_the_floor(problem):
    params, x, y = problem((2, 2), paper.GAUSSIAN, N=1)
    for _ in range(5):
        params = paper.em_step(params, x, y, paper.GAUSSIAN)
    assert (to_numpy(params.variance) == 1e-4).all()
    assert np.isfinite(to_numpy(log_likelihoods(params, x, y, paper.GAUSSIAN))).all()
    coarser = paper.em_step(params, x, y, paper.GAUSSIAN, paper.MStep(variance_floor=0.01))
    assert (to_numpy(coarser.variance) == 0.01).all()


def test_collinear_inputs_need_the_ridge(problem):
    params, x, y = problem((2, 2), paper.GAUSSIAN)
    x = x[:, [0, 0, 0]] if isinstance(x, np.ndarray) else ops.stack([x[:, 0]] * 3, axis=1)
    before = float(log_likelihoods(params, x, y, paper.GAUSSIAN).sum())
    fitted = paper.em_step(params, x, y, paper.GAUSSIAN)
    assert float(log_likelihoods(fitted, x, y, paper.GAUSSIAN).sum()) > before
    one = 0 * x[:, :1] + 1            # so that the system is singular to the last bit
    ones = ops.concatenate([one, one, one], axis=1)
    with pytest.raises(ValueError, match="solve: the systems must be regular"):
        paper.em_step_least_squares(params, ones, y, paper.GAUSSIAN, EXACT)


def test_equal_leaves_never_separate(problem):
    """A saddle of EM: every leaf has the same share of every case, to the last bit."""
    params, x, y = problem((2, 2), paper.GAUSSIAN, N=20)
    params = paper.HierarchicalParams(
        tree.map(lambda w: 0 * w, params.w_gates),
        ops.broadcast_to(params.w_leaves[:, :1], shape=params.w_leaves.shape),
        ops.broadcast_to(params.variance[:1], shape=params.variance.shape))
    for _ in range(3):
        params = paper.em_step(params, x, y, paper.GAUSSIAN)
    w_leaves = to_numpy(params.w_leaves)
    assert (w_leaves == w_leaves[:, :1]).all()
    assert not any(to_numpy(w).any() for w in params.w_gates)


# -- On-line -------------------------------------------------------------------------------------

@pytest.mark.parametrize("inverse", [paper.running_inverse, paper.running_inverse_weighted])
@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_on_line_one_leaf_is_recursive_least_squares(problem, inverse, decay):
    """A leaf alone has every case in full; old cases count decay^age, as does the start."""
    params, x, y = problem((1,), paper.GAUSSIAN)
    state = paper.online_init(params, ridge=0.5)
    for x_t, y_t in zip(x, y):
        state = paper.online_step(state, x_t, y_t, decay, inverse)
    x, y, start = to_numpy(x), to_numpy(y), to_numpy(params.w_leaves)[:, 0]
    counts = decay ** np.arange(7)[::-1, None]
    moments = x.T @ (counts * x) + 0.5 * decay ** 7 * np.eye(3)
    w = start + np.linalg.solve(moments, x.T @ (counts * (y - x @ start)))
    close(state.params.w_leaves[:, 0], w)
    close(state.leaves[0], np.linalg.inv(moments))
    close(state.gates[0][0], np.linalg.inv(moments))
    assert (to_numpy(state.params.variance) == to_numpy(params.variance)).all()


def test_on_line_only_the_weighted_inverse_is_that_of_weighted_moments(rng, move):
    x, h = rng.standard_normal((6, 3)), rng.random((6, 2))
    moments = np.eye(3) * 0.8 ** 6 + sum(
        0.8 ** (5 - t) * h[t, :, None, None] * x[t, :, None] * x[t] for t in range(6))
    found = {}
    for inverse in [paper.running_inverse, paper.running_inverse_weighted]:
        R = move(np.stack([np.eye(3), np.eye(3)]))
        for x_t, h_t in move(list(zip(x, h))):
            R = inverse(R, x_t, 0.8, h_t)
        found[inverse] = to_numpy(R)
    expected = np.linalg.inv(moments)
    close(found[paper.running_inverse_weighted], expected)
    assert abs(found[paper.running_inverse] - expected).max() > 0.01 * abs(expected).max()


@pytest.mark.parametrize("far", [1, 100])
@pytest.mark.parametrize("inverse", [paper.running_inverse, paper.running_inverse_weighted])
def test_an_on_line_step_is_what_the_paper_writes(problem, inverse, far):
    params, x, y = problem((2, 2), paper.GAUSSIAN)
    y = far * y
    state = paper.online_init(params, ridge=2.0)
    after = paper.online_step(state, x[0], y[0], 0.9, inverse)
    log_h = paper.log_posteriors(*paper.log_terms(params, x[:1], y[:1], paper.GAUSSIAN))
    (root,), (below,) = (to_numpy(level) for level in log_h)
    x_t, y_t = to_numpy(x[0]), to_numpy(y[0])

    def moved(w, R, h, target):
        """w + h (target - w x) x^T R, with R once it has seen x."""
        count = h if inverse is paper.running_inverse_weighted else 1.0
        R = np.linalg.inv(0.9 * np.linalg.inv(R) + count * np.outer(x_t, x_t))
        return w + np.outer(R @ x_t, h * (target - x_t @ w)), R

    w_root, w_below, w_leaves = (to_numpy(w) for w in [*params.w_gates, params.w_leaves])
    least = math.log(1e-12)
    assert (min(root.min(), below.min()) < least) == (far > 1)
    w, R = moved(w_root[:, 0], np.eye(3) / 2, 1.0, root[0].clip(least))
    close(after.params.w_gates[0][:, 0], w)
    close(after.gates[0][0], R)
    for i in range(2):
        h_i = math.exp(root[0, i])
        w, R = moved(w_below[:, i], np.eye(3) / 2, h_i, below[i].clip(least))
        close(after.params.w_gates[1][:, i], w)
        close(after.gates[1][i], R)
        for j in range(2):
            w, R = moved(w_leaves[:, 2 * i + j], np.eye(3) / 2, h_i * math.exp(below[i, j]), y_t)
            close(after.params.w_leaves[:, 2 * i + j], w)
            close(after.leaves[2 * i + j], R)


# -- Bad input -----------------------------------------------------------------------------------

@pytest.mark.numpy_only("nothing is computed")
@pytest.mark.parametrize("branching, scale, message", [
    ((2, 2), 0, "init: scale must be positive"), ((2, 2), math.nan, "init: scale must be positive"),
    ((), 1, "init: branching needs a level"), ((2, 0), 1, "init: branching needs a level")])
def test_starts_that_lead_nowhere_are_refused(rng, branching, scale, message):
    with pytest.raises(ValueError, match=message):
        paper.init(rng, branching, 3, 1, scale=scale)


@pytest.mark.parametrize("change, message", [
    (lambda p, x, y: (p, x[:0], y[:0]), r"x must be of shape \[N, D\]"),
    (lambda p, x, y: (p, x[0], y), r"x must be of shape \[N, D\]"),
    (lambda p, x, y: (p, x[:, :2], y), r"gates of level 0 must be of shape \[2, 1, branches\]"),
    (lambda p, x, y: (p._replace(w_gates=p.w_gates[1:]), x, y),
     r"gates of level 0 must be of shape \[3, 1, branches\].* got \(3, 2, 3\)"),
    (lambda p, x, y: (p._replace(w_gates=(p.w_gates[0], p.w_gates[1][..., :0])), x, y),
     r"gates of level 1 must be of shape \[3, 2, branches\]"),
    (lambda p, x, y: (p._replace(w_leaves=p.w_leaves[:, :5]), x, y), r"w_leaves must be of"),
    (lambda p, x, y: (p._replace(variance=p.variance[0]), x, y), r"and variance \[6\]; got"),
    (lambda p, x, y: (p._replace(w_leaves=p.w_leaves[..., :0]), x, y[:, :0]), "w_leaves must be"),
    (lambda p, x, y: (p, x, y[:, 0]), "needs"),
    (lambda p, x, y: (p, x, y[:3]), "needs"),
    (lambda p, x, y: (p, x, y[:, :1]), "needs")])
@all_kinds
def test_shapes_that_do_not_match_are_refused(problem, leaf, change, message):
    params, x, y = change(*problem((2, 3), leaf))
    with pytest.raises(ValueError, match=message):
        paper.em_step(params, x, y, leaf)


@all_kinds
def test_nan_is_refused(problem, leaf):
    for where, message in [(1, "hierarchical: x must be"), (2, "NaN|targets 0 or 1")]:
        arrays = problem((2, 3), leaf)
        arrays[where][0, 0] = math.nan
        with pytest.raises(ValueError, match=message):
            log_likelihoods(*arrays, leaf)


def test_values_that_no_leaf_can_have_are_refused(problem):
    params, x, y = problem((2, 3), paper.GAUSSIAN)
    for variance in [0 * params.variance, -params.variance, params.variance * math.nan]:
        with pytest.raises(ValueError, match="gaussian_log_density: every variance"):
            log_likelihoods(params._replace(variance=variance), x, y, paper.GAUSSIAN)
    with pytest.raises(ValueError, match="bernoulli_log_density: needs targets 0 or 1"):
        log_likelihoods(params, x, y, paper.BERNOULLI)


# -- Cases and conventions -----------------------------------------------------------------------

def traced(name):
    return trace(oracle.case(f"hierarchical_1994/{name}"))


@pytest.mark.numpy_only("cases are of NumPy")
def test_cases_are_what_they_are_named_for():
    assert (np.exp(traced("far_target")["log_density"][0]) == 0).all()
    assert traced("sure_gate")["gates.0"][0].max() == 1
    assert (traced("a_node_without_choice")["gates.1"] == 1).all()
    assert (traced("one_leaf")["gates.0"] == 1).all()
    assert set(oracle.case("hierarchical_1994/yes_or_no").run().inputs["y"].flat) == {0, 1}


@pytest.mark.numpy_only("cases are of NumPy")
@pytest.mark.parametrize("title, case, first", [
    ("variances stay as they are", "two_by_two", "em.variance"),
    ("gates by Algorithm 2, least squares to ln h", "three_levels", "em.w_gates.0"),
    ("Newton steps are not damped, as in the text", "damped", "em.w_gates.0"),
    ("Newton steps are not damped, as in the text", "damped_below_the_root", "em.w_gates.1"),
    ("the ridge of least squares is towards 0", "two_by_two", "em.w_leaves"),
    ("the running inverse counts a case by its share", "two_by_two", "running.params.w_gates.1")])
def test_a_convention_is_recognised_where_it_parts_first(title, case, first):
    variant, = [v for v in conventions("hierarchical_1994") if v.title == title]
    case = oracle.case(f"hierarchical_1994/{case}")
    report = oracle.compare(case, of_variant(variant, case))
    assert report.first_divergence.name == first
    match = report.identify()[0]
    assert match.variant.title == title and match.whole

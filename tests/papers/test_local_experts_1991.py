import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minimoe import ops, oracle, tree
from minimoe.autodiff.check import check_vjp
from minimoe.autodiff.tensor import Tensor, grad, stop_gradient, value_and_grad
from minimoe.backend import to_numpy
from minimoe.oracle.trace import of_variant, trace
from minimoe.oracle.variants import conventions
from minimoe.papers import local_experts_1991 as paper
from tests.closeness import close

ERRORS = {   # each error beside its gradients as the paper writes them
    "cooperative": (paper.cooperative_error, paper.cooperative_gradients),
    "competitive": (paper.competitive_error, paper.competitive_gradients),
    "mixture": (paper.mixture_error, paper.mixture_gradients)}
all_errors = pytest.mark.parametrize("error, gradients", ERRORS.values(), ids=ERRORS)


# -- By hand -------------------------------------------------------------------------------------

@pytest.fixture
def two_experts(move):
    """q_1 = 0.2^2 + 0.1^2 = 0.05 and q_2 = 0.7^2 + 0.4^2 = 0.65."""
    return (move(np.array([[1.0, 0.0]])), move(np.array([[[0.8, 0.1], [0.3, 0.4]]])),
            move(np.array([[0.2, -0.1]])))


def test_proportions_and_posterior_by_hand(two_experts):
    d, o, logits = two_experts
    # p_1 = 1 / (1 + exp(-0.3));  h_1 = 1 / (1 + exp(-0.3 - (0.65 - 0.05) / 2))
    p, h = 1 / (1 + math.exp(-0.3)), 1 / (1 + math.exp(-0.6))
    close(paper.mixing_proportions(logits), [[p, 1 - p]])
    close(paper.squared_errors(d, o), [[0.05, 0.65]])
    close(paper.responsibilities(d, o, logits), [[h, 1 - h]])
    # sum_i p_i o_i = (0.3 + 0.5 p, 0.4 - 0.3 p)
    close(paper.blend(o, logits), [[0.3 + 0.5 * p, 0.4 - 0.3 * p]])


@pytest.mark.parametrize("error, by_hand", [
    # (1 - 0.3 - 0.5 p)^2 + (0.4 - 0.3 p)^2, with p = 0.57444252
    (paper.cooperative_error, 0.222218663938),
    # 0.05 p + 0.65 (1 - p)
    (paper.competitive_error, 0.305334489913),
    # -log(p exp(-0.025) + (1 - p) exp(-0.325))
    (paper.mixture_error, 0.141867293983)])
def test_errors_by_hand(two_experts, error, by_hand):
    close(error(*two_experts), [by_hand], tolerance=1e-11)


@pytest.mark.parametrize("gradients, by_o, by_logits", [
    # residual e = (0.41277874, -0.22766726); -2 p_i e; -2 p_1 e.(o_1 - blend)
    (paper.cooperative_gradients, [[-0.47423532, 0.26156349], [-0.35132216, 0.19377100]],
     -0.13430028),
    # -2 p_i (d - o_i); p_1 (0.05 - 0.30533449)
    (paper.competitive_gradients, [[-0.22977701, 0.11488850], [-0.59578048, 0.34044599]],
     -0.14667499),
    # -h_i (d - o_i), h_1 = 0.64565631; p_1 - h_1
    (paper.mixture_gradients, [[-0.12913126, 0.06456563], [-0.24804059, 0.14173748]],
     -0.07121379)])
def test_gradients_by_hand(two_experts, gradients, by_o, by_logits):
    found = gradients(*two_experts)
    close(found.o, [by_o], tolerance=2e-8)     # the golden numbers have eight decimals
    close(found.logits, [[by_logits, -by_logits]], tolerance=5e-8)


def test_best_fitting_expert_moves_slowest_under_competition_and_fastest_under_the_mixture(move):
    # residuals of 1.2, 2 and 3 in one dimension, p = 1/3:
    # (1.4) 2/3 r, rising; (1.5) r exp(-r^2 / 2) / sum exp(-r^2 / 2), falling
    d, o, logits = (move(np.zeros((1, 1))), move(np.array([[[1.2], [2.0], [3.0]]])),
                    move(np.zeros((1, 3))))
    close(paper.competitive_gradients(d, o, logits).o[0, :, 0], [0.8, 4 / 3, 2.0])
    close(paper.mixture_gradients(d, o, logits).o[0, :, 0], [0.922467, 0.427467, 0.052633], 5e-7)


def test_the_switch_by_hand(move):
    # proportions of 1/4 laid end to end; a draw on a border belongs to the expert that begins there
    logits = move(np.zeros((7, 4)))
    u = move(np.array([0.0, 0.2, 0.25, 0.49, 0.5, 0.75, 0.999]))
    expert = paper.chosen_expert(logits, u)
    assert to_numpy(expert).tolist() == [0, 0, 1, 1, 2, 3, 3]
    o = move(np.arange(56.0).reshape(7, 4, 2))
    # case c, expert e: outputs 8 c + 2 e and the next number
    assert to_numpy(paper.switch(o, expert)).tolist() == [
        [0, 1], [8, 9], [18, 19], [26, 27], [36, 37], [46, 47], [54, 55]]


def test_competitive_learning_by_hand(move):
    # data at 0, two units at -1 and 1: the mean of two equal densities k exp(-1/2), k = (2 pi)^-1/2
    found = paper.competitive_learning_log_likelihood(
        move(np.zeros((1, 1))), move(np.array([[-1.0], [1.0]])), move(np.zeros(2)))
    close(found, [-0.5 * math.log(2 * math.pi) - 0.5])


def test_networks_by_hand(move):
    x = move(np.array([[2.0, 1.0]]))
    # one expert whose line runs through the input: 2 * 1 - 2 = 0, so it answers one half;
    # the other sees 2 * 0.5 = 1
    out = paper.local_experts(paper.LocalExpertsParams(
        move(np.array([[[1.0], [0.5]], [[-2.0], [0.0]]])), move(np.array([[3.0, 0], [0, 4]]))), x)
    close(out.o, [[[0.5], [1 / (1 + math.exp(-1))]]])
    close(out.logits, [[6.0, 4.0]])
    # hidden units at 1/2 and sigmoid(1); 2 * 1/2 - 1 = 0, so the output is one half
    backprop = paper.BackpropParams(move(np.array([[1.0, 0.5], [-2.0, 0.0]])),
                                    move(np.array([[2.0], [0.0]])), move(np.array([[-1.0]])))
    close(paper.backprop_outputs(backprop, x), [[0.5]])


# -- Gradients -----------------------------------------------------------------------------------

@all_errors
@pytest.mark.parametrize("N, E, O", [(5, 3, 2), (1, 1, 1), (3, 8, 1)])
def test_gradients_of_the_errors(draw, rng, error, gradients, N, E, O):
    d, o, logits = draw(N, O), draw(N, E, O), draw(N, E)
    check_vjp(error, d, o, logits, rng=rng)
    tensors = Tensor(o), Tensor(logits)
    found = grad(error(d, *tensors).sum(), tensors)
    for written, by_autodiff in zip(gradients(d, o, logits), found):
        assert written.shape == by_autodiff.shape
        close(written, by_autodiff, 1e-13)


def test_gradients_of_everything_else(draw, rng, move):
    d, o, logits = draw(4, 2), draw(4, 3, 2), draw(4, 3)
    expert = paper.chosen_expert(logits, move(rng.random(4)))
    check_vjp(paper.responsibilities, d, o, logits, rng=rng)
    check_vjp(paper.blend, o, logits, rng=rng)
    check_vjp(lambda o: paper.switch(o, expert), o, rng=rng)
    check_vjp(paper.competitive_learning_log_likelihood, d, draw(3, 2), draw(3), rng=rng)
    experts = move(paper.init(rng, n_experts=3, width=5, n_outputs=2))
    backprop = move(paper.backprop_init(rng, n_hidden=3, width=5, n_outputs=2))
    x = draw(4, 5)
    check_vjp(lambda params: paper.mixture_error(d, *paper.local_experts(params, x)), experts,
              rng=rng)
    check_vjp(lambda params: paper.backprop_outputs(params, x), backprop, rng=rng)
    check_vjp(lambda w: paper.linear_outputs(x, w), experts.w_experts, rng=rng)


def test_the_switch_carries_no_gradient_to_the_gate(draw, rng, move):
    logits = Tensor(draw(4, 3))
    expert = paper.chosen_expert(logits, move(rng.random(4)))
    assert not isinstance(expert, Tensor) and expert.dtype.kind == "i"


# -- Properties ----------------------------------------------------------------------------------

numbers = st.floats(-100, 100, width=32)
models = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3)).flatmap(
    lambda shape: st.tuples(arrays(float, (shape[0], shape[2]), elements=numbers),
                            arrays(float, shape, elements=numbers),
                            arrays(float, shape[:2], elements=numbers)))


@given(models)
def test_how_the_three_errors_are_related(move, model):
    d, o, logits = move(model)
    p, q = paper.mixing_proportions(logits), paper.squared_errors(d, o)
    E_coop, E_comp, E_mix = (to_numpy(error(d, o, logits)) for error, _ in ERRORS.values())
    rounding = 1e-12 * to_numpy(1 + q.max(axis=-1))
    assert (E_coop <= E_comp + rounding).all()             # Jensen: a square is convex
    assert (E_mix <= E_comp / 2 + rounding).all()          # Jensen: a logarithm is concave
    assert (E_mix >= -1e-14).all()
    # cooperation rewards what competition forbids: that experts disagree
    disagreement = (p * ops.square(o - paper.blend(o, logits)[:, None]).sum(axis=-1)).sum(axis=-1)
    assert (abs(E_coop + to_numpy(disagreement) - E_comp) <= rounding).all()
    for _, gradients in ERRORS.values():
        by_logits = gradients(d, o, logits).logits
        assert (abs(to_numpy(by_logits.sum(axis=-1)))
                <= 1e-12 * to_numpy(abs(by_logits).sum(axis=-1)) + rounding).all()


def test_the_mixture_error_is_0_only_where_every_expert_is_exact(draw):
    d, logits = draw(3, 2), draw(3, 4)
    o = ops.broadcast_to(d[:, None], shape=(3, 4, 2))
    assert (abs(to_numpy(paper.mixture_error(d, o, logits))) < 1e-15).all()
    assert (to_numpy(paper.mixture_error(d, o + 1e-3, logits)) > 0.9e-6).all()   # 2 * 1e-6 / 2


def test_near_the_targets_the_mixture_is_half_of_competition(draw):
    d, logits, error = draw(3, 2), draw(3, 4), draw(3, 4, 2)
    o = d[:, None] + 1e-5 * error                     # q of 1e-10: the second order is 1e-20
    close(paper.mixture_error(d, o, logits), paper.competitive_error(d, o, logits) / 2, 1e-5)
    mixture, competitive = (f(d, o, logits) for f in [paper.mixture_gradients,
                                                      paper.competitive_gradients])
    close(mixture.o, competitive.o / 2, 1e-9)
    close(mixture.logits, competitive.logits / 2, 1e-5)


@all_errors
def test_experts_and_cases_may_change_places(draw, move, error, gradients):
    d, o, logits = draw(5, 2), draw(5, 3, 2), draw(5, 3)
    experts, cases = move(np.array([2, 0, 1])), move(np.array([4, 2, 0, 1, 3]))
    close(error(d, o[:, experts], logits[:, experts]), error(d, o, logits), 1e-14)
    close(gradients(d, o[:, experts], logits[:, experts]).o, gradients(d, o, logits).o[:, experts],
          1e-14)
    close(error(d[cases], o[cases], logits[cases]), error(d, o, logits)[cases], 1e-14)


@all_errors
def test_a_common_shift_of_the_logits_changes_nothing(draw, error, gradients):
    d, o, logits = draw(5, 2), draw(5, 3, 2), draw(5, 3)
    close(error(d, o, logits + 1000.0), error(d, o, logits))


def test_one_expert_is_plain_least_squares(draw):
    d, o, logits = draw(4, 2), draw(4, 1, 2), draw(4, 1)
    q = paper.squared_errors(d, o)[:, 0]
    close(paper.mixture_error(d, o, logits), q / 2)
    close(paper.cooperative_error(d, o, logits), q)
    close(paper.competitive_error(d, o, logits), q)
    assert (to_numpy(paper.responsibilities(d, o, logits)) == 1).all()
    for _, gradients in ERRORS.values():
        assert (abs(to_numpy(gradients(d, o, logits).logits)) < 1e-14).all()


def test_switch_and_blend_agree_in_expectation(draw, move):
    """Exactly: the switch is constant in u between the borders, so the integral is a sum."""
    o, logits = draw(1, 5, 3), draw(1, 5)
    p = to_numpy(paper.mixing_proportions(logits))[0]
    middles = move(p.cumsum() - p / 2)                # one draw inside each proportion
    expert = paper.chosen_expert(ops.broadcast_to(logits, shape=(5, 5)), middles)
    assert to_numpy(expert).tolist() == [0, 1, 2, 3, 4]
    outputs = paper.switch(ops.broadcast_to(o, shape=(5, 5, 3)), expert)
    close((move(p)[:, None] * outputs).sum(axis=0), paper.blend(o, logits)[0])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_far_targets(move, dtype):
    """exp(-q / 2) is 0 for every expert, and the likelihood still tells them apart."""
    o = move(np.array([[[0.0], [2.0], [1.0]]], dtype))
    d, logits = move(np.array([[1000.0]], dtype)), move(np.zeros((1, 3), dtype))
    q = to_numpy(paper.squared_errors(d, o))[0]
    assert (q > 9.9e5).all()
    error = to_numpy(paper.mixture_error(d, o, logits))
    assert error.dtype == dtype
    np.testing.assert_allclose(error, [q[1] / 2 + math.log(3)], rtol=1e-6)
    assert to_numpy(paper.responsibilities(d, o, logits)).tolist() == [[0.0, 1.0, 0.0]]
    pull = to_numpy(paper.mixture_gradients(d, o, logits).o)
    assert pull[0, :, 0].tolist() == [0.0, -998.0, 0.0]


def test_a_proportion_may_underflow(move):
    # p = (1, exp(-2000)): 0 in floating point, but expert 2 is exact and expert 1 is 100 away,
    # so q_1 / 2 = 5000 against 2000, and the posterior is expert 2's
    d, o = move(np.array([[0.0]])), move(np.array([[[100.0], [0.0]]]))
    logits = move(np.array([[2000.0, 0.0]]))
    assert to_numpy(paper.mixing_proportions(logits)).tolist() == [[1.0, 0.0]]
    close(paper.mixture_error(d, o, logits), [2000.0])
    assert to_numpy(paper.responsibilities(d, o, logits)).tolist() == [[0.0, 1.0]]
    assert to_numpy(paper.mixture_gradients(d, o, logits).logits).tolist() == [[1.0, -1.0]]


def descend(error, params, x, d, steps, rate=0.5):
    for _ in range(steps):
        _, gradient = value_and_grad(
            lambda params: error(d, *paper.local_experts(params, x)).mean(), params)
        params = tree.map(lambda w, g: w - rate * g, params, gradient)
    return params


@all_errors
def test_equal_experts_never_separate(draw, error, gradients):
    """A saddle: h = p, so every expert gets the same gradient, to the last bit."""
    x, d, one = draw(6, 2), draw(6, 1), draw(2, 1, 1)
    params = paper.LocalExpertsParams(ops.broadcast_to(one, shape=(2, 4, 1)),
                                      ops.broadcast_to(0 * one[:, 0], shape=(2, 4)))
    params = descend(error, params, x, d, steps=50)
    w_experts, w_gate = (to_numpy(w) for w in params)
    assert (w_experts == w_experts[:, :1]).all() and (w_gate == w_gate[:, :1]).all()
    assert abs(w_experts[:, :1] - to_numpy(one)).max() > 0.01      # learnt, but alike
    assert (to_numpy(paper.mixing_proportions(paper.gate_logits(x, params.w_gate))) == 0.25).all()


def test_the_mixture_divides_the_cases_where_cooperation_blends(rng, move):
    """Two lines that no one expert can hold: under Eq. (1.3) each expert takes one."""
    x = np.stack([np.repeat([-1.0, 1.0], 20), np.tile(np.linspace(-1, 1, 20), 2), np.ones(40)], 1)
    d = 0.5 + 0.4 * np.sign(x[:, :1] * x[:, 1:2])
    x, d = move((x, d))
    params = move(paper.init(rng, n_experts=2, width=3, n_outputs=1, scale=0.5))
    fitted = descend(paper.mixture_error, params, x, d, steps=400, rate=20.0)
    p = to_numpy(paper.mixing_proportions(paper.gate_logits(x, fitted.w_gate)))
    sides = p[:20].mean(axis=0).argmax(), p[20:].mean(axis=0).argmax()
    assert sides[0] != sides[1]
    assert p[:20, sides[0]].min() > 0.9 and p[20:, sides[1]].min() > 0.9
    assert to_numpy(paper.competitive_error(d, *paper.local_experts(fitted, x))).mean() < 0.04


def test_the_link_to_competitive_learning(draw, rng):
    """With the constant 1 for an input, Eq. (1.3) is Eq. (2.1) but for the constant k."""
    d, mu, logits = draw(6, 2), draw(1, 3, 2), draw(1, 3)
    x = 0 * d[:, :1] + 1
    o, gate = paper.linear_outputs(x, mu), paper.gate_logits(x, logits)
    log_likelihood = paper.competitive_learning_log_likelihood(d, mu[0], logits[0])
    close(-paper.mixture_error(d, o, gate) - math.log(2 * math.pi), log_likelihood)


def test_an_m_step_of_the_link_ends_where_the_gradient_does(draw):
    """mu_i = sum h d / sum h and p_i = mean h: at these, with h held, Eq. (1.5) sums to zero."""
    d, mu, logits = draw(6, 2), draw(1, 3, 2), draw(1, 3)
    x = 0 * d[:, :1] + 1
    h = paper.responsibilities(d, paper.linear_outputs(x, mu), paper.gate_logits(x, logits))
    mu = (h[..., None] * d[:, None]).sum(axis=0) / h.sum(axis=0)[:, None]         # [E, O]
    p = h.mean(axis=0)
    by_mu = (h[..., None] * (d[:, None] - mu)).sum(axis=0)
    by_logits = (h - p).sum(axis=0)
    assert abs(to_numpy(by_mu)).max() < 1e-14 and abs(to_numpy(by_logits)).max() < 1e-14


def test_many_starts_at_once(draw, rng, move):
    starts = [move(paper.init(rng, n_experts=3, width=4, n_outputs=2)) for _ in range(5)]
    x, d, u = draw(5, 4), draw(5, 2), move(rng.random(5))

    def everything(params):
        o, logits = paper.local_experts(params, x)
        expert = paper.chosen_expert(logits, u)
        log_likelihood = paper.competitive_learning_log_likelihood(
            d, o[..., 0, :, :], logits[..., 0, :])
        return [o, logits, paper.blend(o, logits), expert, paper.switch(o, expert), log_likelihood,
                *(f(d, o, logits) for pair in ERRORS.values() for f in pair)]

    together = everything(tree.map(lambda *w: ops.stack(w), *starts))
    for i, start in enumerate(starts):
        for one, all_ in zip(tree.leaves(everything(start)), tree.leaves(together)):
            close(all_[i], one, 1e-14)
    backprops = [move(paper.backprop_init(rng, 3, 4, 2)) for _ in range(5)]
    together = paper.backprop_outputs(tree.map(lambda *w: ops.stack(w), *backprops), x)
    for i, start in enumerate(backprops):
        close(together[i], paper.backprop_outputs(start, x), 1e-14)


@pytest.mark.numpy_only("draws are made in NumPy")
def test_starts(rng):
    params = paper.init(rng, n_experts=40, width=5, n_outputs=10, scale=0.3)
    assert params.w_experts.shape == (5, 40, 10) and params.w_gate.shape == (5, 40)
    assert params.w_experts.std() == pytest.approx(0.3, rel=0.1) and not params.w_gate.any()
    backprop = paper.backprop_init(rng, n_hidden=60, width=5, n_outputs=3, scale=0.3)
    assert [w.shape for w in backprop] == [(5, 60), (60, 3), (1, 3)]
    assert backprop.w_hidden.std() == pytest.approx(0.3, rel=0.1)
    assert backprop.w_out.std() == pytest.approx(0.3, rel=0.2) and backprop.b_out.all()
    again = paper.init(np.random.default_rng(1), 2, 3, 1)
    assert (again.w_experts == paper.init(np.random.default_rng(1), 2, 3, 1).w_experts).all()


# -- Bad input -----------------------------------------------------------------------------------

@pytest.mark.numpy_only("nothing is computed")
@pytest.mark.parametrize("scale", [0, -0.1, math.nan])
def test_equal_starts_are_refused(rng, scale):
    with pytest.raises(ValueError, match="init: scale must be positive"):
        paper.init(rng, n_experts=2, width=3, n_outputs=1, scale=scale)


BAD_SHAPES = {
    "targets without an axis for outputs": ((4,), (4, 3, 1), (4, 3)),
    "another number of cases": ((1, 2), (4, 3, 2), (4, 3)),
    "another number of outputs": ((4, 1), (4, 3, 2), (4, 3)),
    "another number of experts": ((4, 2), (4, 3, 2), (4, 1)),
    "logits without an axis for cases": ((3, 2), (3, 3, 2), (3,)),
    "outputs without an axis for experts": ((4, 2), (4, 2), (4, 2)),
    "no case": ((0, 2), (0, 3, 2), (0, 3)),
    "no expert": ((4, 2), (4, 0, 2), (4, 0)),
    "no output": ((4, 0), (4, 3, 0), (4, 3))}


@pytest.mark.parametrize("function", [
    f for pair in ERRORS.values() for f in pair] + [paper.responsibilities])
@pytest.mark.parametrize("shapes", BAD_SHAPES.values(), ids=BAD_SHAPES)
def test_shapes_that_do_not_match_are_refused(move, function, shapes):
    with pytest.raises(ValueError, match="local_experts: needs o of shape"):
        function(*(move(np.ones(shape)) for shape in shapes))


def test_blend_and_squared_errors_refuse_them_too(move):
    d, o, logits = (move(np.ones(shape)) for shape in [(4,), (4, 3, 1), (4, 1)])
    with pytest.raises(ValueError, match=r"got o of \(4, 3, 1\) and d of \(4,\)"):
        paper.squared_errors(d, o)
    with pytest.raises(ValueError, match=r"got o of \(4, 3, 1\) and logits of \(4, 1\)"):
        paper.blend(o, logits)


@all_errors
@pytest.mark.parametrize("where", [0, 1, 2])
def test_nan_is_refused(draw, error, gradients, where):
    model = [draw(2, 2), draw(2, 3, 2), draw(2, 3)]
    model[where][(0,) * model[where].ndim] = math.nan
    for function in (error, gradients):
        with pytest.raises(ValueError, match="must be free of NaN"):
            function(*model)
    with pytest.raises(ValueError, match="must be free of NaN"):
        error(model[0], Tensor(model[1]), stop_gradient(model[2]))


# -- Cases and conventions -----------------------------------------------------------------------

def traced(name):
    case = oracle.case(f"local_experts_1991/{name}")
    return case.run(), trace(case)


@pytest.mark.numpy_only("cases are of NumPy")
def test_cases_are_what_they_are_named_for():
    run, far = traced("far_target")
    assert (np.exp(-far["q"][0] / 2) == 0).all() and (far["q"][1:] < 100).all()
    assert (traced("certain_gate")[1]["p"][0] == 0).any()
    run, tied = traced("draws_on_borders")
    assert (tied["expert_index"] == 4 * run.inputs["u"]).all() and len(set(run.inputs["u"])) > 2
    for name in ("roomy", "dyadic", "one_case", "many_experts", "far_target", "certain_gate"):
        run, found = traced(name)          # every draw is clear of the borders, as a bfloat16 is
        ends = np.cumsum(found["p"], axis=-1)
        gap = abs(ends - run.inputs["u"][:, None]).min(axis=-1)
        width = np.take_along_axis(found["p"], found["expert_index"][:, None], -1)[:, 0]
        assert (gap > width / 4).all()


@pytest.mark.numpy_only("cases are of NumPy")
@pytest.mark.parametrize("title, case, first", [
    ("the Gaussian's constant is kept in Eq. (1.3)", "roomy", "mixture_error"),
    ("experts are linear, without the logistic", "dyadic", "o")])
def test_a_convention_is_recognised_where_it_parts_first(title, case, first):
    variant, = [v for v in conventions("local_experts_1991") if v.title == title]
    case = oracle.case(f"local_experts_1991/{case}")
    report = oracle.compare(case, of_variant(variant, case))
    assert report.first_divergence.name == first
    match = report.identify()[0]
    assert match.variant.title == title and match.whole

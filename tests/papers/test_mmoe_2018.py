import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimoe import ops, tree
from minimoe.autodiff.check import check_vjp
from minimoe.autodiff.tensor import Tensor, grad, pullback
from minimoe.backend import to_numpy
from minimoe.nn import LinearParams
from minimoe.papers import mmoe_2018 as paper
from minimoe.papers.mmoe_2018 import MMoEParams, NormedParams
from tests.flat import flat, unflat


def close(computed, expected, tolerance=1e-12):
    computed, expected = to_numpy(computed), to_numpy(expected)
    assert computed.shape == expected.shape
    assert np.abs(computed - expected).max() <= tolerance * max(1, np.abs(expected).max())


def numbers(params):
    return sum(a.size for a in tree.leaves(params))


@pytest.fixture
def draw(rng, move):
    return lambda *shape: move(rng.standard_normal(shape))


@pytest.fixture
def made(draw):
    """Parameters like those given, every entry a draw: biases too."""
    return lambda params: tree.map(lambda a: draw(*a.shape), params)


@pytest.fixture
def model(rng, made):
    """Two tasks, three experts of two layers, four inputs."""
    return made(paper.mmoe_init(rng, 2, 3, 4, (5, 3), (2,)))


# -- By hand -------------------------------------------------------------------------------------

def test_two_experts_two_gates_by_hand(move):
    """f_1 = relu(x), f_2 = relu(-2 x + 1); gates 1/2, 1/2 and 1/4, 3/4; towers 2 v and v - 1."""
    def layer(w, b):
        return LinearParams(move(np.array(w, float)), move(np.array(b, float)))

    log_3 = math.log(3)
    params = MMoEParams((layer([[[1]], [[-2]]], [[0], [1]]),),
                        move(np.array([[[0, 0]], [[0, -log_3]]])),
                        (layer([[[2]], [[1]]], [[0], [-1]]),))
    out = paper.mmoe(params, move(np.array([[-1.0], [0.25]])))
    # x = -1: f = 0, 3; gate 2 has logits 0, log 3: 1/4, 3/4.  mixed 3/2, 9/4.  y = 3, 5/4
    # x = 1/4: f = 1/4, 1/2; mixed by gate 1 3/8.  y_1 = 3/4
    close(out.experts[:, :, 0], np.array([[0, .25], [3, .5]]))
    close(out.gate[:, 0], np.array([[.5, .5], [.25, .75]]))
    close(out.mixed[:, 0, 0], np.array([1.5, 2.25]))
    close(out.y[:, 0], np.array([3, 1.25]))
    assert float(out.y[0, 1]) == pytest.approx(.75)


def test_losses_by_hand(move):
    y, target = (move(np.array(a, float)) for a in ([[0, 2], [1, 4]], [[1, 1], [1, 0]]))
    # squared: (1 + 1) / 2 and (0 + 16) / 2; weighted 1 and 1/4
    squared = paper.squared_errors(y, target)
    assert float(paper.multi_task_loss(squared)) == 1 + 8
    assert float(paper.multi_task_loss(squared, task_weights=move(np.array([1, .25])))) == 3
    # the last case is not labelled for the second task: 1 + 0
    labelled = move(np.array([[True, True], [True, False]]))
    assert float(paper.multi_task_loss(squared, labelled)) == 1
    # a logit of 0: log 2 whatever the label; of 2 with label 1: log(1 + e^-2)
    logistic = to_numpy(paper.logistic_losses(y, target))
    assert logistic[0].tolist() == pytest.approx([math.log(2), math.log1p(math.exp(-2))])
    far = move(np.array([[1e4, -1e4]]))
    assert to_numpy(paper.logistic_losses(far, 0 * far)).tolist() == [[1e4, 0]]


@pytest.mark.numpy_only("counts parameters")
def test_as_many_parameters_as_the_paper_counts_and_as_there_are(rng):
    sizes = dict(n_tasks=2, n_experts=8, width=100, hidden=16, tower_hidden=8)
    assert paper.counted_parameters(**sizes) == 13056 and paper.matched_width(**sizes) == 113
    assert paper.matched_width(**{**sizes, "width": 10, "hidden": 4}) == 15
    shapes = (2, 8, 100, (16,), (8,))
    assert numbers(paper.mmoe_init(rng, *shapes)) == 14818
    assert numbers(paper.omoe_init(rng, *shapes)) == 14018
    assert numbers(paper.shared_bottom_init(rng, 2, 100, (113,), (8,))) == 13255


@pytest.mark.numpy_only("draws are made in NumPy")
def test_starts(rng):
    params = paper.mmoe_init(rng, 3, 4, 60, (50, 20), (30,))
    for name, a in tree.named_leaves(params).items():
        if a.ndim == 3:
            bound = math.sqrt(6 / sum(a.shape[1:]))
            assert abs(a).max() <= bound and a.std() == pytest.approx(bound / 3 ** .5, rel=.25)
        else:
            assert not a.any()
    assert params.w_gate.shape == (3, 60, 4) and params.towers[-1].w.shape == (3, 30, 1)
    assert paper.mmoe_init(rng, 1, 1, 2, (3,), ()).towers[0].w.shape == (1, 3, 1)   # no hidden one


# -- Gradients -----------------------------------------------------------------------------------

MODELS = {"shared_bottom": (paper.shared_bottom_init, (2, 4, (6,), (3,)),
                            lambda params, x: paper.shared_bottom(params, x)),
          "omoe": (paper.omoe_init, (2, 3, 4, (5,), (3,)), lambda p, x: paper.omoe(p, x).y),
          "mmoe": (paper.mmoe_init, (2, 3, 4, (5, 3), (3,)), lambda p, x: paper.mmoe(p, x).y)}


@pytest.mark.parametrize("name", MODELS)
def test_gradient_of_a_model(rng, made, draw, name):
    init, sizes, model = MODELS[name]
    params = made(init(rng, *sizes))
    check_vjp(lambda vector, x: model(unflat(vector, params), x), flat(params), draw(5, 4),
              rng=rng)


def test_gradients_of_others_and_of_losses(rng, move, made, draw):
    x, y, target = draw(6, 4), draw(2, 6), draw(2, 6)
    labelled = move(rng.random((2, 6)) < .6)
    for losses, answers in ((paper.squared_errors, target), (paper.logistic_losses, move(
            rng.integers(0, 2, (2, 6)).astype(float)))):
        check_vjp(lambda y: paper.multi_task_loss(losses(y, answers), labelled).reshape(1), y,
                  rng=rng)
    keep = move(rng.random((2, 6, 3)) < .7)
    check_vjp(lambda z: paper.gate_dropout(ops.softmax(z), keep), draw(2, 6, 3), rng=rng)
    towers = paper.layers_init(rng, 2, (3, 2, 1))
    deepctr = made(paper.MMoEDeepCTRParams(
        paper.layers_init(rng, 3, (4, 3)), paper.layers_init(rng, 2, (4, 5)),
        paper.layers_init(rng, 2, (5, 3))[0].w, towers))
    check_vjp(lambda v, x: paper.mmoe_deepctr(unflat(v, deepctr), x).y, flat(deepctr), x, rng=rng)
    rechub = made(rechub_like(rng))
    check_vjp(lambda v, x: paper.mmoe_torch_rechub(unflat(v, rechub), x).output.y, flat(rechub), x,
              rng=rng)


def rechub_like(rng):
    def normed(n, n_in, n_out):
        w, b = paper.layers_init(rng, n, (n_in, n_out))[0]
        return NormedParams(w, b, b, b)
    return paper.MMoERechubParams((normed(3, 4, 3),), normed(2, 4, 3), (normed(2, 3, 2),),
                                  paper.layers_init(rng, 2, (2, 1))[0])


def test_gradients_in_closed_form(model, draw):
    """dL/df_i = sum_k g^k_i delta^k; dL/dz^k_i = g^k_i delta^k . (f_i - f^k); dL/dW = x dL/dz."""
    x, cotangent = draw(6, 4), draw(2, 6)
    params = tree.map(Tensor, model)
    out = paper.mmoe(params, x)
    delta = pullback(out.y, cotangent, out.mixed)                      # [K, B, H]
    g, f, mixed = (a.array for a in (out.gate, out.experts, out.mixed))
    close(pullback(out.y, cotangent, out.experts),
          sum(g[k].T[:, :, None] * delta[k] for k in range(2)))
    to_logits = g * (delta[:, :, None] * (f.swapaxes(0, 1)[None] - mixed[:, :, None])).sum(-1)
    close(pullback(out.y, cotangent, params.w_gate), x.T @ to_logits)
    close(to_logits.sum(-1), 0 * to_logits[..., 0])


def test_without_a_label_of_a_task_nothing_of_it_moves(model, move, draw):
    params, x, target = tree.map(Tensor, model), draw(6, 4), draw(2, 6)
    labelled = move(np.array([[True] * 6, [False] * 6]))

    def gradient(labelled, task_weights=1.0):
        errors = paper.squared_errors(paper.mmoe(params, x).y, target)
        return grad(paper.multi_task_loss(errors, labelled, task_weights), params)

    found, alone = gradient(labelled), gradient(None, move(np.array([1.0, 0.0])))
    for of_task in (found.w_gate, *(leaf for layer in found.towers for leaf in layer)):
        assert not to_numpy(of_task[1]).any() and to_numpy(of_task[0]).any()
    for a, b in zip(tree.leaves(found.experts), tree.leaves(alone.experts)):
        close(a, b)


def test_an_expert_that_no_gate_wants_gets_nothing_and_equal_experts_leave_the_gate_alone(
        model, move, draw):
    x = abs(draw(6, 4)) + .1
    away = model.w_gate * 0
    away[:, :, 1] = -1e4                                   # exp(-1e3) is 0
    found = grad(paper.mmoe(params := tree.map(Tensor, model._replace(w_gate=away)), x).y.sum(),
                 params)
    for leaf in tree.leaves(found.experts):
        assert not to_numpy(leaf[1]).any() and to_numpy(leaf[0]).any()
    same = tuple(LinearParams(*(a[:1] + 0 * a for a in layer)) for layer in model.experts)
    params = tree.map(Tensor, model._replace(experts=same))
    found = grad((paper.mmoe(params, x).y * draw(2, 6)).sum(), params)
    assert abs(to_numpy(found.w_gate)).max() < 1e-12


# -- Identities ----------------------------------------------------------------------------------

def test_one_expert_is_a_shared_bottom_whatever_the_gates(rng, made, draw):
    params, x = made(paper.mmoe_init(rng, 3, 1, 4, (5,), (2,))), draw(6, 4)
    bottom = paper.shared_bottom(paper.SharedBottomParams(params.experts, params.towers), x)
    close(paper.mmoe(params, x).y, bottom)
    close(paper.omoe(params._replace(w_gate=params.w_gate[:1]), x).y, bottom)


def test_gates_of_0_take_the_mean_of_the_experts(model, draw):
    out = paper.mmoe(model._replace(w_gate=0 * model.w_gate), draw(6, 4))
    for k in range(2):
        close(out.mixed[k], out.experts.mean(axis=0))


def test_equal_gates_are_one_gate_whose_gradient_is_the_sum_of_theirs(model, draw):
    x, cotangent = draw(6, 4), draw(2, 6)
    one = model._replace(w_gate=model.w_gate[:1])
    many = model._replace(w_gate=model.w_gate[:1] + 0 * model.w_gate)
    found = []
    for function, params in ((paper.omoe, one), (paper.mmoe, many)):
        params = tree.map(Tensor, params)
        y = function(params, x).y
        found.append((y.array, grad((y * cotangent).sum(), params)))
    (y_one, of_one), (y_many, of_many) = found
    close(y_one, y_many)
    for a, b in zip(tree.leaves(of_one.experts), tree.leaves(of_many.experts)):
        close(a, b)
    close(of_one.w_gate, of_many.w_gate.sum(axis=0, keepdims=True))


def test_one_task_needs_one_gate(rng, made, draw):
    params, x = made(paper.mmoe_init(rng, 1, 3, 4, (5,), (2,))), draw(6, 4)
    close(paper.mmoe(params, x).y, paper.omoe(params, x).y)


@given(st.permutations(range(3)), st.integers(1, 4), st.integers(0, 5))
def test_the_order_of_experts_and_what_all_logits_share_are_nothing(move, order, B, seed):
    rng = np.random.default_rng(seed)
    params, x = move((paper.mmoe_init(rng, 2, 3, 4, (5,), (2,)), rng.standard_normal((B, 4))))
    order = move(np.array(order))
    experts = tuple(LinearParams(*(a[order] for a in layer)) for layer in params.experts)
    moved = MMoEParams(experts, params.w_gate[:, :, order] + x[0][None, :, None],
                       params.towers)
    close(paper.mmoe(moved, x).y, paper.mmoe(params, x).y)


@given(st.integers(0, 6), st.integers(0, 5))
def test_a_batch_in_two_parts_and_runs_side_by_side(move, cut, seed):
    rng = np.random.default_rng(seed)
    runs = [(paper.mmoe_init(rng, 2, 3, 4, (5, 3), (2,)), rng.standard_normal((6, 4)))
            for _ in range(2)]
    alone = [paper.mmoe(params, x).y for params, x in map(move, runs)]
    params, x = move(tree.map(lambda *arrays: np.stack(arrays), *runs))
    together = paper.mmoe(params, x)
    assert together.gate.shape == (2, 2, 6, 3)
    for y, expected in zip(together.y, alone):
        close(y, expected)
    parts = [paper.mmoe(params, part).y for part in (x[:, :cut], x[:, cut:])]
    close(ops.concatenate(parts, axis=-1), together.y)
    with_one_gate = paper.omoe(params._replace(w_gate=params.w_gate[:, :1]), x).y
    close(with_one_gate[1], paper.omoe(tree.map(lambda a: a[1], params)._replace(
        w_gate=params.w_gate[1, :1]), x[1]).y)


def test_dropping_nothing_or_everything_leaves_a_gate_as_it_was(draw, move):
    gate = ops.softmax(draw(2, 5, 3))
    for kept in (True, False):
        close(paper.gate_dropout(gate, move(np.full((2, 5, 3), kept))), gate)
    keep = move(np.array([True, False, True]) & np.ones((2, 5, 1), bool))
    left = to_numpy(paper.gate_dropout(gate, keep))
    assert (left[..., 1] == 0).all()
    close(move(left.sum(-1)), move(np.ones((2, 5))))
    close(move(left[..., 0] / left[..., 2]), gate[..., 0] / gate[..., 2])


def test_gates_of_large_inputs_are_finite(model, draw):
    out = paper.mmoe(model, 1e200 * draw(3, 4))
    close(out.gate.sum(axis=-1), 1 + 0 * out.gate[..., 0])


# -- Generated tasks -----------------------------------------------------------------------------

@given(st.integers(2, 6), st.floats(-1, 1), st.floats(1e-9, 1), st.integers(0, 3))
def test_the_cosine_of_task_vectors_is_p(move, D, p, apart, seed):
    raw = np.random.default_rng(seed).standard_normal((2, D))
    raw[1] = raw[0] + apart * raw[1]                        # perhaps nearly parallel
    u = to_numpy(paper.orthonormal_pair(move(raw)))
    assert np.abs(u @ u.T - np.eye(2)).max() < 1e-12
    w = to_numpy(paper.task_vectors(move(u), p, c=0.5))
    assert w[0] @ w[1] == pytest.approx(p / 4, abs=1e-12)
    assert (w * w).sum(axis=1) == pytest.approx([.25, .25])


def test_labels_by_hand(move):
    x, w = move(np.array([[1.0, 0.0], [0.0, 2.0]])), move(np.array([[1.0, 0.0], [0.5, 0.25]]))
    noise = move(np.array([[0.0, 0.25], [0.0, 0.0]]))
    y = to_numpy(paper.labels(x, w, [1, 2], [0, 1], noise))
    # w x is 1, 0 for the first task, 1/2, 1/2 for the second
    half = .5 + math.sin(.5) + math.sin(2)
    assert y.ravel().tolist() == pytest.approx(
        [1 + math.sin(1) + math.sin(3), math.sin(1) + .25, half, half])


# sample correlations of 10,000 labels, means over 20 trials of a prototype of the same equations
PEARSON = {2: (-.816, -.407, 0, .209, .428, .676, .857, .997),
           4: (-.908, -.357, 0, .180, .366, .576, .751, .998),
           10: (-.555, -.212, 0, .109, .217, .341, .460, .999)}


@pytest.mark.numpy_only("a statistical test of many draws")
@pytest.mark.parametrize("m", PEARSON)
def test_correlation_of_generated_labels(rng, m):
    for p, expected in zip((-1, -.5, 0, .25, .5, .75, .9, 1), PEARSON[m]):
        found = []
        for _ in range(4):
            w = paper.task_vectors(paper.orthonormal_pair(rng.standard_normal((2, 10))), p)
            y = paper.labels(rng.standard_normal((10_000, 10)), w, range(1, m + 1),
                             [(i - 1) ** 2 for i in range(1, m + 1)],
                             0.1 * rng.standard_normal((2, 10_000)))
            found.append(np.corrcoef(y)[0, 1])
        assert np.mean(found) == pytest.approx(expected, abs=.03)
    linear = paper.labels(rng.standard_normal((10_000, 10)), w, [], [],
                          0.1 * rng.standard_normal((2, 10_000)))
    assert np.corrcoef(linear)[0, 1] == pytest.approx(1 / 1.01, abs=2e-3)      # p = 1, c = 1


# -- Others --------------------------------------------------------------------------------------

def test_deepctr_with_a_gate_network_that_changes_nothing_is_the_papers(model, move, draw):
    x = abs(draw(6, 4))
    same = (LinearParams(move(np.stack([np.eye(4)] * 2)), move(np.zeros((2, 4)))),)
    theirs = paper.MMoEDeepCTRParams(model.experts, same, model.w_gate, model.towers)
    close(paper.mmoe_deepctr(theirs, x).y, paper.mmoe(model, x).y)


def test_batch_norm_takes_biases_away_and_evaluation_does_not_see_the_batch(rng, made, draw):
    params, x = made(rechub_like(rng)), draw(6, 4)
    tensors = tree.map(Tensor, params)
    out, batch = paper.mmoe_torch_rechub(tensors, x)
    found = grad((out.y * draw(2, 6)).sum(), tensors)
    for layer in (*found.experts, found.gates, *found.towers):
        assert abs(to_numpy(layer.b)).max() < 1e-12
    running = paper.running_statistics(paper.first_statistics(batch), batch, momentum=1.0)
    # by the batch's own variance, of n - 1 in place of n, 6 / 5 as large
    y = paper.linear(LinearParams(params.gates.w, params.gates.b), x[None])
    close(running.gates.mean, y.mean(axis=1))
    close(running.gates.variance, y.var(axis=1) * 6 / 5)
    together = paper.mmoe_torch_rechub(params, x, running).output.y
    close(paper.mmoe_torch_rechub(params, x[2:3], running).output.y, together[:, 2:3])


def test_baselines_by_hand(move, draw):
    two = {"w": move(np.array([1.0, 2.0]))}, {"w": move(np.array([3.0, 2.5]))}
    assert float(paper.l2_constrained_penalty(*two, 0.1)) == pytest.approx(.1 * 4.25)
    x = draw(2, 5, 3)
    alpha = move(np.array([[.5, .25], [0, 1.0]]))
    close(paper.cross_stitch(alpha, x), ops.stack([.5 * x[0] + .25 * x[1], x[1]]))
    ones = [move(np.ones(shape)) for shape in ((2, 3, 1), (4, 2), (5, 3), (6, 1))]
    weights = paper.tucker_weights(*ones)
    assert weights.shape == (4, 5, 6) and (to_numpy(weights) == 6).all()


# -- Bad input -----------------------------------------------------------------------------------

@pytest.mark.numpy_only("draws are made in NumPy")
@pytest.mark.parametrize("sizes", [(0, 3, 4, (5,), (2,)), (2, 0, 4, (5,), (2,)),
                                   (2, 3, 0, (5,), (2,)), (2, 3, 4, (0,), (2,))])
def test_nothing_of_something_is_refused(rng, sizes):
    with pytest.raises(ValueError, match="layers_init: needs at least one network, and widths"):
        paper.mmoe_init(rng, *sizes)


def test_what_does_not_fit_is_refused(rng, model, move, draw):
    for function, params in ((paper.mmoe, model),
                             (paper.omoe, model._replace(w_gate=model.w_gate[:1]))):
        with pytest.raises(ValueError, match=r"x must be \[\.\.\., B, 4\]; got \(6, 3\)"):
            function(params, draw(6, 3))
        with pytest.raises(ValueError, match=r"x must be .*; got \(4,\)"):
            function(params, draw(4))
    with pytest.raises(ValueError, match=r"omoe: needs one gate, .* got \(2, 4, 3\)"):
        paper.omoe(model, draw(6, 4))
    with pytest.raises(ValueError, match="mmoe: needs a gate for each of 2 towers"):
        paper.mmoe(model._replace(w_gate=model.w_gate[:1]), draw(6, 4))
    for losses in (paper.squared_errors, paper.logistic_losses):
        with pytest.raises(ValueError, match=r"one shape; got \(2, 6\) and \(2, 6, 1\)"):
            losses(draw(2, 6), draw(2, 6, 1))
    with pytest.raises(ValueError, match="multi_task_loss: .* one shape"):
        paper.multi_task_loss(draw(2, 6), move(np.ones(6, bool)))
    rechub = move(rechub_like(rng))
    with pytest.raises(ValueError, match="batch_norm: needs at least two entries"):
        paper.mmoe_torch_rechub(rechub, draw(1, 4))


def test_tasks_that_cannot_be_are_refused(draw):
    for p in (1.01, -1.5, math.nan):
        with pytest.raises(ValueError, match=r"task_vectors: p must lie in \[-1, 1\]"):
            paper.task_vectors(draw(2, 3), p)
    for shape in ((2, 1), (3, 4), (4,)):
        with pytest.raises(ValueError, match="orthonormal_pair: needs two vectors"):
            paper.orthonormal_pair(draw(*shape))
    with pytest.raises(ValueError, match=r"labels: noise must be \(2, 5\); got \(5,\)"):
        paper.labels(draw(5, 3), draw(2, 3), [1], [0], draw(5))

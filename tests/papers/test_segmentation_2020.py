import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minimoe import nn, ops, oracle, tree
from minimoe.autodiff.check import check_vjp
from minimoe.autodiff.tensor import Tensor, grad, pullback
from minimoe.backend import to_numpy
from minimoe.oracle.trace import of_variant, trace
from minimoe.oracle.variants import conventions
from minimoe.papers import segmentation_2020 as paper
from minimoe.papers.segmentation_2020 import FRRNOutput, MixtureParams
from tests.flat import flat, unflat


def numbers(params):
    return sum(a.size for a in tree.leaves(params))


def close(computed, expected, tolerance=1e-12):
    computed, expected = to_numpy(computed), np.asarray(expected)
    assert computed.shape == expected.shape
    assert np.abs(computed - expected).max() <= tolerance * max(1, np.abs(expected).max())


@pytest.fixture
def draw(rng, move):
    return lambda *shape: move(rng.standard_normal(shape))


def outputs(logits, features=(None, None)):
    return [FRRNOutput(o, f, ()) for o, f in zip(logits, features)]


# -- Sizes ---------------------------------------------------------------------------------------

@pytest.mark.numpy_only("counts parameters")
def test_as_many_parameters_as_the_sources_have(rng):
    assert numbers(paper.frrn_a_init(rng, n_classes=19)) == 17_746_803
    assert numbers(paper.frrn_mini_init(rng, n_classes=10)) == 27_074
    features = (480 // 16, 640 // 16, 384)
    for n_gates, parameters in [(1, 160_899), (11, 1_769_889), (38, 6_114_162)]:
        assert numbers(paper.gate_init(rng, n_gates, 2, features)) == parameters


@pytest.mark.numpy_only("draws are made in NumPy")
def test_starts(rng):
    params = paper.frrn_a_init(rng, n_classes=5, width=6, n_residual=4)
    for name, a in tree.named_leaves(params).items():
        if a.ndim > 1:
            bound = math.sqrt(6 / math.prod(a.shape[:-1]))
            assert abs(a).max() <= bound and a.std() == pytest.approx(bound / 3 ** .5, rel=0.3)
        else:
            assert (a == (1 if name.endswith("scale") else 0)).all()
    gate = paper.gate_init(rng, 40, 2, (5, 6, 7), n_hidden=8)
    for w, n_in in ((gate.w_conv, 9 * 14), (gate.w_hidden, 30), (gate.w_out, 8)):
        assert w.std() == pytest.approx(math.sqrt(2 / n_in), rel=0.1)
    assert not (gate.b_conv.any() or gate.b_hidden.any() or gate.b_out.any())


@pytest.mark.parametrize("init, network, factor", [
    (paper.frrn_a_init, paper.frrn_a, 16), (paper.frrn_mini_init, paper.frrn_mini, 4)])
def test_shapes_and_an_image_that_is_not_halved_evenly(rng, move, draw, init, network, factor):
    params = move(init(rng, 5, 2))
    out = network(params, draw(2, 2 * factor, factor, 3))
    width = params.encoder[-1][-1].second.scale.shape[0]
    assert out.logits.shape == (2, 2 * factor, factor, 5)
    assert out.features.shape == (2, 2, 1, width)
    for H, W in [(factor + factor // 2, factor), (factor, factor + 1)]:
        with pytest.raises(ValueError, match=f"a height and a width that {factor} divides"):
            network(params, draw(1, H, W, 3))
    with pytest.raises(ValueError, match="frrn: needs images"):
        network(params, draw(factor, factor, 3))


# -- The expert ----------------------------------------------------------------------------------

def test_gradient_of_a_network(rng, move, draw):
    params, x = move(paper.frrn_mini_init(rng, 3, 2)), draw(1, 4, 8, 3)
    label = move(rng.integers(0, 3, (1, 4, 8)))

    def loss(vector, x):
        out = paper.frrn_mini(unflat(vector, params), x)
        return paper.segmentation_loss(out.logits, label).reshape(1)

    check_vjp(loss, flat(params), x, rng=rng)


def test_a_unit_that_adds_nothing_passes_the_residual_stream_on(rng, move, draw):
    unit = move(paper.full_resolution_unit_init(rng, 2, 3, 4))
    unit = unit._replace(residual=nn.LinearParams(*(0 * a for a in unit.residual)))
    y, z = Tensor(draw(2, 2, 2, 2)), Tensor(draw(2, 4, 4, 4))
    norm, _ = paper.batch_norms()
    _, after = paper.full_resolution_unit(unit, y, z, 2, norm, ops.upsample_nearest)
    assert (to_numpy(after.array) == to_numpy(z.array)).all()
    g = draw(*z.shape)
    close(pullback(after, g, z), to_numpy(g), 0)


def test_evaluation_takes_each_image_by_itself(rng, move, draw):
    params, x = move(paper.frrn_mini_init(rng, 3, 2)), draw(3, 8, 4, 3)
    statistics = paper.frrn_mini(params, x).statistics
    together = paper.frrn_mini(params, x, statistics)
    for i in range(3):
        alone = paper.frrn_mini(params, x[i:i + 1], statistics)
        close(alone.logits, to_numpy(together.logits[i:i + 1]))
        close(alone.features, to_numpy(together.features[i:i + 1]))
    # in training, the others in the batch count
    trained = paper.frrn_mini(params, x)
    assert abs(to_numpy(paper.frrn_mini(params, x[:1]).logits - trained.logits[:1])).max() > 0.01


def test_statistics_by_hand(move):
    x = move(np.array([1.0, 2.0, 3.0, 6.0]).reshape(1, 2, 2, 1))
    mean, variance = paper.batch_statistics(x)
    assert float(mean[0]) == 3 and float(variance[0]) == pytest.approx((4 + 1 + 0 + 9) / 3)
    running, = paper.running_statistics(paper.first_statistics([(mean, variance)]),
                                        (paper.Statistics(mean, variance),))
    assert float(running.mean[0]) == pytest.approx(0.3)
    assert float(running.variance[0]) == pytest.approx(0.9 + 0.1 * 14 / 3)


def test_too_few_statistics_are_refused(rng, move, draw):
    params, x = move(paper.frrn_mini_init(rng, 3, 2)), draw(1, 8, 4, 3)
    statistics = paper.frrn_mini(params, x).statistics
    with pytest.raises(ValueError, match=f"more than {len(statistics) - 1} batch norms"):
        paper.frrn_mini(params, x, statistics[:-1])


# -- Gate and mixture ----------------------------------------------------------------------------

@pytest.fixture
def model(rng, move, draw):
    """Two experts' logits and features, a label, and the two gates."""
    B, H, W, K = 3, 2, 4, 4
    features, logits = [draw(B, 1, 2, 3) for _ in range(2)], [draw(B, H, W, K) for _ in range(2)]
    label = rng.integers(0, K, (B, H, W))
    label[0, 0] = 250
    gates = [tree.map(lambda a: draw(*a.shape), paper.gate_init(rng, G, 2, (1, 2, 3), n_hidden=5))
             for G in (1, K)]
    return features, logits, move(label), gates


def to_logits(s, label):
    """The cotangent of mixed logits: (softmax(s) - one-hot) / M, and 0 at ignored pixels."""
    s, label = to_numpy(s), to_numpy(label)
    p = np.exp(s) / np.exp(s).sum(axis=-1, keepdims=True)
    p[np.where(label == 250, 0, label)[..., None] == np.arange(s.shape[-1])] -= 1
    return p * (label != 250)[..., None] / (label != 250).sum()


@pytest.mark.parametrize("class_wise", [False, True])
def test_gradients_of_the_mixture_in_closed_form(model, draw, class_wise):
    _, logits, label, _ = model
    a = Tensor(draw(3, 2, 4) if class_wise else draw(3, 2))            # gate logits
    experts = [Tensor(o) for o in logits]
    gate = ops.softmax(a, axis=1)
    s = paper.weighted_sum(gate, experts)
    to_a, to_experts = grad(paper.segmentation_loss(s, label), (a, experts))
    delta, g = to_logits(s.array, label), to_numpy(gate.array)
    # q_ek = sum over pixels of delta_k o_ek; for one weight per image, summed over k, too
    q = np.stack([(delta * to_numpy(o)).sum(axis=(1, 2)) for o in logits], 1)    # [B, E, K]
    q = q if class_wise else q.sum(axis=-1)
    close(to_a, g * (q - (g * q).sum(axis=1, keepdims=True)))
    assert abs(to_numpy(to_a).sum(axis=1)).max() < 1e-15
    for e in range(2):
        close(to_experts[e], g.reshape(3, 2, 1, 1, -1)[:, e] * delta)


def test_gradient_of_mixed_probabilities_is_the_classical_one(model, draw):
    """g_e minus the mean responsibility, of each labelled pixel, of expert e."""
    _, logits, label, _ = model
    label = label * (label != 250)
    a = Tensor(draw(3, 2))
    p = paper.probability_mixture(ops.softmax(a, axis=1), logits)
    of_label = ops.take_along_axis(p, label[..., None])
    found = grad(-ops.log(of_label).sum() / 8, a)                      # per image: 8 pixels
    g = to_numpy(ops.softmax(a.array, axis=1))
    chosen = np.stack([np.take_along_axis(to_numpy(ops.softmax(o)), to_numpy(label)[..., None],
                                          axis=-1)[..., 0] for o in logits], 1)
    joint = g[:, :, None, None] * chosen                               # [B, E, H, W]
    close(found, g - (joint / joint.sum(axis=1, keepdims=True)).mean(axis=(2, 3)))


@pytest.mark.parametrize("mixture, G", [(paper.simple_mixture, 0), (paper.class_wise_mixture, 1)])
@pytest.mark.parametrize("extra", [False, True])
def test_gradient_of_a_mixture(model, rng, draw, mixture, G, extra):
    features, logits, label, gates = model
    w_extra = draw(3, 3, 4, 4) if extra else None

    def loss(gate, features, logits, *w):
        params = MixtureParams(unflat(gate, gates[G]), w[0] if w else None)
        out = mixture(params, outputs(logits, features))
        return paper.segmentation_loss(out.logits, label).reshape(1)

    check_vjp(loss, flat(gates[G]), features, logits, *([w_extra] if extra else []), rng=rng)


def test_by_hand(move):
    # two pixels, two classes; weights 3/4 and 1/4
    first, second = (move(np.array(o, float).reshape(1, 1, 2, 2))
                     for o in ([4, 0, 0, 8], [0, 8, 4, 0]))
    gate = move(np.array([[.75, .25]]))
    close(paper.weighted_sum(gate, [first, second])[0, 0], [[3, 2], [1, 6]])
    of_class = move(np.array([[[.75, .5], [.25, .5]]]))
    close(paper.weighted_sum(of_class, [first, second])[0, 0], [[3, 4], [1, 4]])
    close(paper.mean_ensemble([first, second])[0, 0], [[2, 4], [2, 4]])
    close(paper.max_ensemble([first, second])[0, 0], [[4, 8], [4, 8]])
    close(paper.centred(first)[0, 0], [[2, -2], [-4, 4]])
    p, q, r, s = (1 / (1 + math.exp(-d)) for d in (4, -8, -8, 4))
    close(paper.probability_mixture(gate, [first, second])[0, 0, :, 0],
          [.75 * p + .25 * q, .75 * r + .25 * s])


def test_loss_by_hand(move):
    logits = move(np.log(np.array([[.5, .5], [.2, .8], [.9, .1]])).reshape(1, 1, 3, 2))
    label = move(np.array([[[1, 0, 250]]]))
    assert float(paper.segmentation_loss(logits, label)) == pytest.approx(-math.log(.5 * .2) / 2)
    with pytest.raises(IndexError, match="labels must lie in"):
        paper.segmentation_loss(logits, move(np.array([[[1, 2, 0]]])))
    nothing = Tensor(logits)
    loss = paper.segmentation_loss(nothing, move(np.array([[[250, 250, 250]]])))
    assert float(loss.array) == 0 and not to_numpy(grad(loss, nothing)).any()


def test_one_expert_is_the_mixture_and_so_are_two_alike(model, rng, move):
    features, logits, label, (simple, class_wise) = model
    alone = move(paper.gate_init(rng, 1, 1, (1, 2, 3), n_hidden=5))
    out = paper.simple_mixture(MixtureParams(alone, None), outputs(logits[:1], features))
    assert (to_numpy(out.gate) == 1).all()
    assert (to_numpy(out.logits) == to_numpy(logits[0])).all()
    for mixture, gate in ((paper.simple_mixture, simple), (paper.class_wise_mixture, class_wise)):
        gate = tree.map(Tensor, gate)
        out = mixture(MixtureParams(gate, None), outputs([logits[0]] * 2, features))
        close(out.logits.array, to_numpy(logits[0]))
        flows = grad(paper.segmentation_loss(out.logits, label), gate)
        assert max(abs(to_numpy(a)).max() for a in flows) < 1e-16


def test_an_extra_convolution_that_is_the_identity(model, move):
    features, logits, _, (simple, _) = model
    experts, before = outputs(logits, features), [to_numpy(o).copy() for o in logits]
    plain = paper.simple_mixture(MixtureParams(simple, None), experts)
    kernel = move(paper.identity_kernel(4))
    close(paper.simple_mixture(MixtureParams(simple, kernel), experts).logits,
          to_numpy(plain.logits))
    for o, unchanged in zip(logits, before):               # experts' logits are still their own
        assert (to_numpy(o) == unchanged).all()


def test_a_number_added_to_a_pixels_logits(model, draw):
    """It changes no probability of the expert, nor of the simple mixture; but class-wise ones."""
    _, (first, second), _, _ = model
    moved = first + draw(3, 2, 4, 1)
    gate, of_class = ops.softmax(draw(3, 2), axis=1), ops.softmax(draw(3, 2, 4), axis=1)

    def change(mix):
        return abs(to_numpy(ops.softmax(mix(moved)) - ops.softmax(mix(first)))).max()

    assert change(lambda o: paper.weighted_sum(gate, [o, second])) < 1e-14
    assert change(lambda o: paper.weighted_sum(of_class, [o, second])) > 0.01
    assert change(lambda o: paper.weighted_sum(
        of_class, [paper.centred(o), paper.centred(second)])) < 1e-14


def test_a_saturated_gate_in_float32(move):
    a = Tensor(move(np.array([[200.0, -200.0]], np.float32)))
    gate = ops.softmax(a, axis=1)
    assert to_numpy(gate.array).tolist() == [[1, 0]]
    logits = [move(np.full((1, 2, 2, 3), 100.0, np.float32))] * 2
    label = move(np.zeros((1, 2, 2), int))
    flow = grad(paper.segmentation_loss(paper.weighted_sum(gate, logits), label), a)
    assert np.isfinite(to_numpy(flow)).all() and flow.dtype == "float32"


# -- Insight -------------------------------------------------------------------------------------

few = st.sampled_from([-1.0, 0.0, 0.5, 2.0])


@given(st.tuples(st.integers(1, 3), st.integers(1, 4)).flatmap(
    lambda NK: st.tuples(*(arrays(float, (1, 1, *NK), elements=few) for _ in range(2)))),
    st.sampled_from([0, .25, .5, 1]))
def test_masks_partition_and_no_simple_gate_overrules_agreement(move, logits, weight):
    gate = move(np.array([[weight, 1 - weight]]))
    logits = move(list(logits))
    first, second = (paper.predicted(o) for o in logits)
    mixed = paper.predicted(paper.weighted_sum(gate, logits))
    masks = [to_numpy(mask) for mask in paper.disagreement_masks(first, second, mixed)]
    assert (np.sum(masks, axis=0) == 1).all()
    agreed = to_numpy(first == second)
    assert (to_numpy(mixed == first)[agreed]).all()


def test_masks_by_hand(move):
    first, second, mixed = (move(np.array(a)) for a in ([1, 1, 1, 1, 1], [1, 2, 2, 2, 1],
                                                        [1, 1, 2, 3, 2]))
    masks = paper.disagreement_masks(first, second, mixed)
    assert [to_numpy(mask).astype(int).tolist() for mask in masks] == [
        [1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 1]]


def test_a_class_wise_gate_can_overrule_experts_that_agree(move):
    logits = [move(np.array([[[[2.0, 1.0]]]]))] * 2
    logits[1] = move(np.array([[[[20.0, 15.0]]]]))
    gate = move(np.array([[[1.0, 0.0], [0.0, 1.0]]]))      # class 0 from the first, 1 the second
    assert [int(paper.predicted(o)[0, 0, 0]) for o in logits] == [0, 0]
    assert int(paper.predicted(paper.weighted_sum(gate, logits))[0, 0, 0]) == 1


def test_of_equal_logits_the_first_class_is_predicted(move):
    assert int(paper.predicted(move(np.array([[[[1.0, 3.0, 3.0]]]])))[0, 0, 0]) == 1


def test_scores_by_hand(move):
    label, guess = move((np.array([[0, 0, 0], [1, 1, 250]]), np.array([[0, 0, 1], [1, 2, 3]])))
    confusion = paper.confusion_matrix(label, guess, 5)
    assert to_numpy(confusion).tolist() == [
        [2, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0] * 5, [0] * 5, [0] * 5]
    # class 0: 2 of 3; class 1: 1 of 3; class 2 is only predicted; 3 and 4 are not there
    iou = to_numpy(paper.intersection_over_union(confusion))
    assert iou[:3].tolist() == pytest.approx([2 / 3, 1 / 3, 0]) and np.isnan(iou[3:]).all()
    assert paper.mean_iou(confusion) == pytest.approx(1 / 3)
    assert paper.pixel_accuracy(confusion) == pytest.approx(3 / 5)
    for labels, n_classes in ((label + 3, 4), (label - 1, 4)):
        with pytest.raises(IndexError, match="classes must lie in 0 .. 3"):
            paper.confusion_matrix(labels, guess, n_classes)


# -- Bad input -----------------------------------------------------------------------------------

@pytest.mark.parametrize("shapes", [
    [(3, 2, 2, 3), (3, 2, 2, 3)],                          # another size of image
    [(3, 1, 2, 3), (3, 2, 1, 3)],                          # of two sizes
    [(3, 1, 2, 2), (3, 1, 2, 2)],                          # other channels
    [(3, 1, 2, 6)]])                                       # one expert
def test_features_that_do_not_fit_the_gate_are_refused(model, draw, shapes):
    _, _, _, (simple, _) = model
    with pytest.raises(ValueError, match="gate is of 2 experts, 6 channels together and 2 pixels"):
        paper.simple_gate(simple, [draw(*shape) for shape in shapes])


@pytest.mark.parametrize("gate, shapes", [
    ((1, 2), [(1, 2, 2, 3), (1, 2, 2, 4)]), ((1, 2), [(1, 2, 2, 3), (1, 2, 4, 3)]),
    ((1, 2), [(1, 2, 2, 3)]), ((1, 2, 4), [(1, 2, 2, 3), (1, 2, 2, 3)])])
def test_logits_that_do_not_fit_are_refused(draw, gate, shapes):
    with pytest.raises(ValueError, match="needs logits of one shape from 2 experts"):
        paper.weighted_sum(draw(*gate), [draw(*shape) for shape in shapes])


# -- Cases and conventions -----------------------------------------------------------------------

def traced(name):
    case = oracle.case(f"segmentation_2020/{name}")
    return case.run(), trace(case)


@pytest.mark.numpy_only("cases are of NumPy")
def test_cases_are_what_they_are_named_for():
    for name in ("frrn_mini_all_ignored", "nothing_labelled"):
        run, found = traced(name)
        assert (run.inputs["label"] == 250).all()
        assert all((a == 0).all() for key, a in found.items() if key.endswith("loss"))
    label = traced("frrn_mini_some_ignored")[0].inputs["label"]
    assert 0 < (label == 250).mean() < 0.5 and set(label.flat) == {0, 1, 2, 250}
    gate = traced("saturated_gate")[1]["simple.gate"]
    assert gate[0].max() > 0.999 and gate[1:].min() > 1e-3
    run, found = traced("tied_classes")
    logits = found["simple.logits"]
    assert (logits[..., 1] == logits[..., 2]).all()
    assert (np.argmax(logits, axis=-1) != 2).all()            # of equals, the first


@pytest.mark.numpy_only("cases are of NumPy")
@pytest.mark.parametrize("title, case, first", [
    ("probabilities are mixed, not logits", "two_experts", "simple.logits"),
    ("the class-wise mixture is of centred logits", "three_experts", "class_wise.logits"),
    ("a relu follows the sum of a residual unit", "frrn_mini", "features"),
    ("running variances are the population's", "frrn_mini_some_ignored", "running.0.variance")])
def test_a_convention_is_recognised_where_it_parts_first(title, case, first):
    variant, = [v for v in conventions("segmentation_2020") if v.title == title]
    case = oracle.case(f"segmentation_2020/{case}")
    report = oracle.compare(case, of_variant(variant, case))
    assert report.first_divergence.name == first
    match = report.identify()[0]
    assert match.variant.title == title and match.whole

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minimoe import ops, tree
from minimoe.autodiff.check import check_vjp
from minimoe.autodiff.tensor import Tensor, grad
from minimoe.backend import to_numpy
from minimoe.papers import limoe_2022 as limoe
from minimoe.papers.limoe_2022 import IMAGE, TEXT, AuxiliaryLosses
from minimoe.papers.vmoe_2021 import (
    Router, VMoEOutput, encoder_init, expert_capacity, importance_loss, load_loss,
    route_batch_prioritized, route_vanilla)
from tests.flat import flat, unflat

VANILLA, PRIORITY = route_vanilla, route_batch_prioritized


def close(computed, expected, tolerance=1e-12):
    computed, expected = to_numpy(computed), np.asarray(expected)
    assert computed.shape == expected.shape
    assert np.abs(computed - expected).max() <= tolerance * max(1, np.abs(expected).max())


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def routed(clean, modality, draws=None):
    """A layer without experts; where there are no draws, its noise is 0."""
    noisy = clean + (0 * clean if draws is None else draws) / clean.shape[-1]
    used = modality >= 0
    return VMoEOutput(None, importance_loss(clean, used=used),
                      load_loss(clean, noisy, 1, used=used), None,
                      Router(clean, noisy, ops.softmax(noisy)))


# -- Six tokens of four experts ------------------------------------------------------------------

SIX = np.array([[2, 0, 0, 0], [1.9, 0, 0, 0], [3, 0, 0, 0], [0, 1, 0, 0],      # of an image
                [0, 0, .5, 0], [2.5, 0, 0, 0]])                                # of a text
OF_SIX = np.array([0, 0, 0, 0, 1, 1])


@pytest.fixture
def six(move):
    clean, modality = move((SIX, OF_SIX))
    return routed(clean, modality), modality


def test_entropies_of_six_tokens(six):
    # gates of the largest logit a, the others 0: e^a / (e^a + 3)
    layer, modality = six
    made = layer.router
    close(made.gates.max(axis=1), [.711235, .690271, .870049, .475367, .354661, .802404], 1e-6)
    image, text = (made.gates[modality == m] for m in (IMAGE, TEXT))
    close(image.mean(axis=0), [.611608, .179546, .104423, .104423], 1e-6)
    close(text.mean(axis=0), [.508758, .140489, .210263, .140489], 1e-6)
    losses = limoe.auxiliary_losses(layer, modality, (3, 3))
    # log 3 = 1.098612 is 0.017721 above H = 1.080891 of images, and below H = 1.223148 of texts
    for name, expected in {"local_image": .918700, "local_text": 1.036697, "global_image": .017721,
                           "global_text": 0, "importance": .576446, "router_z": 5.548393}.items():
        assert float(getattr(losses, name)) == pytest.approx(expected, abs=1e-6), name
    assert float(limoe.global_loss(image)) == pytest.approx(-1.080891, abs=1e-6)
    assert float(limoe.global_loss(text)) == pytest.approx(-1.223148, abs=1e-6)
    close(made.gates.sum(axis=0), [3.463949, .999160, .838219, .698671], 1e-6)


@pytest.mark.parametrize("route, keep, kept, rates", [
    # five of them want expert 0, which has two slots: the first two, or those surest of it
    (VANILLA, [1, 1, 0, 1, 1, 0], [[2, 1, 0, 0], [0, 0, 1, 0]], [3 / 4, 1 / 2]),
    (PRIORITY, [0, 0, 1, 1, 1, 1], [[1, 1, 0, 0], [1, 0, 1, 0]], [2 / 4, 2 / 2])])
def test_who_is_served_of_six_tokens(six, route, keep, kept, rates):
    layer, modality = six
    assert expert_capacity(6, 4, 1, 1.0) == 2
    routing = route(layer.router.gates, 2, 1)
    assert to_numpy(routing.keep)[:, 0].astype(int).tolist() == keep
    counts = limoe.usage(routing, modality, 4)
    assert to_numpy(counts.chosen).tolist() == [[3, 1, 0, 0], [1, 0, 1, 0]]
    assert to_numpy(counts.kept).tolist() == kept
    assert to_numpy(limoe.success_rate(counts)).tolist() == rates
    assert to_numpy(limoe.expert_shares(counts)).tolist() == [[.75, .25, 0, 0], [.5, 0, .5, 0]]
    images_alone = limoe.usage(routing, modality - 2 * modality, 4)        # the others are padding
    assert to_numpy(images_alone.kept).tolist() == [kept[0], [0] * 4]
    assert to_numpy(limoe.success_rate(images_alone)).tolist() == [rates[0], 1]


def test_texts_starve_where_importance_finds_nothing_wrong(move):
    """4096 patches spread over eight experts, 768 words that all want the first, patches first."""
    E, images, words = 8, 4096, 768
    clean = np.zeros((images + words, E))
    clean[np.arange(images), np.arange(images) % E] = .1
    clean[images:, 0] = .1
    clean, modality = move((clean, np.repeat([0, 1], [images, words])))
    layer = routed(clean, modality)
    gates = layer.router.gates
    capacity = expert_capacity(images + words, E, 1, 1.0)
    assert capacity == 608
    counts = limoe.usage(route_vanilla(gates, capacity, 1), modality, E)
    # of 608 slots of the first expert patches take 512, and words the 96 that are left: 1/8 of 768
    assert to_numpy(limoe.success_rate(counts)).tolist() == [1, 1 / 8]
    assert int(counts.kept.sum()) / (images + words) == pytest.approx(.8618, abs=1e-4)
    losses = limoe.auxiliary_losses(layer, modality, (1, 1))
    assert float(losses.importance) == pytest.approx(2.94e-5, rel=1e-2)
    assert float(losses.local_text) == pytest.approx(2.0789, abs=1e-4)     # of log 8 = 2.0794
    served = limoe.success_rate(limoe.usage(route_batch_prioritized(gates, capacity, 1),
                                            modality, E))
    assert to_numpy(served).tolist() == [1, 1 / 8]                         # all are equally sure


# -- The contrastive loss ------------------------------------------------------------------------

def test_two_pairs_by_hand(move):
    # what is not on the diagonal is less by 1 and -1 in rows, by -2 and 2 in columns
    loss = limoe.contrastive_loss(move(np.array([[1.0, 0.0], [3.0, 2.0]])))
    rows = [math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))]
    columns = [math.log(1 + math.exp(2)), math.log(1 + math.exp(-2))]
    assert float(loss) == pytest.approx((sum(rows) + sum(columns)) / 4)


def test_chance_costs_the_log_of_the_batch_and_one_pair_nothing(rng, move):
    assert float(limoe.contrastive_loss(move(np.full((6, 6), 2.5)))) == pytest.approx(math.log(6))
    one = Tensor(move(np.array([[3.0]])))
    loss = limoe.contrastive_loss(one)
    assert float(loss) == 0 and float(grad(loss, one)[0, 0]) == 0


def test_gradient_of_the_contrastive_loss_in_closed_form(rng, move):
    z_image, z_text = (Tensor(move(rng.standard_normal((4, 3)))) for _ in range(2))
    t = Tensor(move(np.array(0.7)))
    A = limoe.scores(z_image, z_text, t)
    to_image, to_text, to_t, to_scores = grad(limoe.contrastive_loss(A), (z_image, z_text, t, A))
    a = to_numpy(A.array)
    flow = (softmax(a) + softmax(a.T).T - 2 * np.eye(4)) / 8
    s = math.exp(float(t))
    close(to_scores, flow)
    close(to_t, (flow * a).sum())
    close(to_image, s * flow @ to_numpy(z_text.array))
    close(to_text, s * flow.T @ to_numpy(z_image.array))


def test_unit_vectors(rng, move):
    u = move(rng.standard_normal((3, 4)))
    close(limoe.normalized(u), to_numpy(u) / np.linalg.norm(to_numpy(u), axis=1, keepdims=True))
    close(limoe.normalized(move(np.array([[3.0, 4.0]])), 1e-8), [[.6 - 1.2e-9, .8 - 1.6e-9]])
    check_vjp(limoe.normalized, u, rng=rng)
    nothing = Tensor(move(np.zeros((2, 3))))
    z = limoe.normalized(nothing)
    assert not to_numpy(z.array).any() and np.isfinite(to_numpy(grad(z.sum(), nothing))).all()


def test_scores_that_are_not_square_are_refused(rng, move):
    for shape in ((2, 3), (4,)):
        with pytest.raises(ValueError, match="contrastive_loss: needs as many images as texts"):
            limoe.contrastive_loss(move(rng.standard_normal(shape)))


# -- Entropy losses ------------------------------------------------------------------------------

def test_gradients_of_entropies_in_closed_form(rng, move):
    z = Tensor(move(rng.standard_normal((6, 5))))
    gates = ops.softmax(z)
    p = to_numpy(gates.array)
    n, H = len(p), -(p * np.log(p)).sum(axis=1, keepdims=True)
    to_local, = [grad(limoe.local_loss(gates), z)]
    close(to_local, -p * (np.log(p) + H) / n)
    mean = np.log(p.mean(axis=0))
    to_global = p * (mean - (p * mean).sum(axis=1, keepdims=True)) / n
    close(grad(limoe.global_loss(gates), z), to_global)
    H = -float(limoe.global_loss(gates))
    above, below = math.exp(H) * 1.01, math.exp(H) * .99
    loss = limoe.thresholded_global_loss(gates, above)
    assert float(loss) == pytest.approx(math.log(1.01))
    close(grad(loss, z), to_global)
    loss = limoe.thresholded_global_loss(gates, below)
    assert float(loss) == 0 and not to_numpy(grad(loss, z)).any()


def test_gradient_of_every_auxiliary_loss(rng, move):
    clean, draws = move((2 * rng.standard_normal((9, 4)), rng.standard_normal((9, 4))))
    modality = move(np.array([0, 1, 0, 0, -1, 1, 0, 1, -1]))

    def losses(clean):
        found = limoe.auxiliary_losses(routed(clean, modality, draws), modality, (4, 4))
        return ops.stack(list(found))

    assert to_numpy(losses(clean)).min() > 0
    check_vjp(losses, clean, rng=rng)


def test_local_and_global_together_are_mutual_information(rng, move):
    """Of token and expert, a token drawn at random: log E - I = local + global + log E."""
    p = softmax(3 * rng.standard_normal((7, 4)))
    information = (p * np.log(p / p.mean(axis=0))).sum() / 7
    gates = move(p)
    assert float(limoe.local_loss(gates) + limoe.global_loss(gates)) == pytest.approx(-information)


@pytest.mark.parametrize("soft_minimum", [1, 2, 3.5, 4])
def test_no_soft_minimum_asks_for_more_than_even_use(move, soft_minimum):
    for p in (np.full((3, 4), 1 / 4), np.eye(4)):
        assert float(limoe.thresholded_global_loss(move(p), soft_minimum)) == pytest.approx(
            0, abs=1e-15)
    on_one = move(np.eye(4)[[2, 2]])
    assert float(limoe.thresholded_global_loss(on_one, soft_minimum)) == pytest.approx(
        math.log(soft_minimum))


def test_a_soft_minimum_that_cannot_be_reached_is_refused(move):
    for soft_minimum in (4.1, .9, math.nan):
        with pytest.raises(ValueError, match="soft minimum must be between 1 and 4 experts"):
            limoe.thresholded_global_loss(move(np.full((2, 4), 1 / 4)), soft_minimum)


def test_gates_of_0_and_1_in_float32(move):
    z = Tensor(move(np.array([[300.0, 0, 0], [0, 300, 0]], np.float32)))
    gates = ops.softmax(z)
    assert to_numpy(gates.array).tolist() == [[1, 0, 0], [0, 1, 0]]
    loss = limoe.local_loss(gates) + limoe.global_loss(gates)
    assert float(loss) == pytest.approx(-math.log(2)) and loss.dtype == "float32"
    assert not to_numpy(grad(loss, z)).any()


def test_experts_in_use_by_hand(move):
    assert float(limoe.experts_in_use(move(np.eye(5)[[0, 1, 2]]))) == pytest.approx(3)
    # entropy of 1/2, 1/4, 1/4 is 3/2 log 2
    assert float(limoe.experts_in_use(move(np.array([[.5, .25, .25]])))) == pytest.approx(2 ** 1.5)


few = st.sampled_from([-1.0, 0.0, 0.5, 2.0])


@given(st.integers(1, 8).flatmap(lambda T: st.tuples(
    arrays(float, (T, 3), elements=few), arrays(int, T, elements=st.integers(-1, 1)),
    st.permutations(range(T)), st.permutations(range(3)))))
def test_losses_know_no_order_of_tokens_and_experts_and_no_padding(move, case):
    clean, modality, tokens, experts = (np.asarray(a) for a in case)
    modality[0] = max(modality[0], 0)
    tokens = tokens[modality[tokens] >= 0]                 # in another order, without padding
    found, other = (
        limoe.auxiliary_losses(routed(*move((a, m, b))), move(m), (2, 3))
        for a, b, m in ((clean, clean[::-1].copy(), modality),
                        (clean[tokens][:, experts], clean[::-1][tokens][:, experts],
                         modality[tokens])))
    for name, here, there in zip(AuxiliaryLosses._fields, found, other):
        assert (here is None) == (there is None)
        assert here is None or float(here) == pytest.approx(float(there), abs=1e-12), name


# -- Their average -------------------------------------------------------------------------------

def test_average_is_of_what_is_enabled_and_there(move):
    one, two = (AuxiliaryLosses(*[number + layer for number in range(7)]) for layer in (0.0, 10.0))
    images_alone = one._replace(local_text=None, global_text=None)
    assert limoe.auxiliary_loss([one], ("importance", "local_text")) == (0 + 4) / 2
    assert limoe.auxiliary_loss([one, two], ("load", "global_text")) == (1 + 6 + 11 + 16) / 4
    assert limoe.auxiliary_loss([images_alone], limoe.LIMOE) == (0 + 1 + 2 + 5) / 4
    assert limoe.training_loss(3.0, [one], ("router_z",)) == pytest.approx(3 + .04 * 2)
    for layers, enabled in (([one], ("entropy",)), ([one], ()), ([], limoe.LIMOE),
                            ([images_alone], ("global_text",))):
        with pytest.raises(ValueError, match="auxiliary_loss: needs some of importance, load"):
            limoe.auxiliary_loss(layers, enabled)


def test_one_expert_costs_nothing(rng, move):
    clean, draws = move(rng.standard_normal((2, 4, 1)))
    modality = move(np.array([0, 0, 1, 1]))
    losses = limoe.auxiliary_losses(routed(clean, modality, draws), modality, (1, 1))
    assert [float(loss) for name, loss in losses._asdict().items() if name != "router_z"] == [0] * 6


@pytest.mark.parametrize("modality, error", [
    (np.zeros(5, int), ValueError), (np.full(6, 2), ValueError), (np.full(6, -2), ValueError),
    (np.zeros(6), TypeError)])
def test_a_modality_that_does_not_fit_is_refused(six, move, modality, error):
    layer, _ = six
    for call in (lambda m: limoe.auxiliary_losses(layer, m, (1, 1)),
                 lambda m: limoe.usage(route_vanilla(layer.router.gates, 2, 1), m, 4)):
        with pytest.raises(error, match="modality"):
            call(move(modality))


# -- One tower -----------------------------------------------------------------------------------

B, S, R, P, V, E = 3, 4, 2, 3, 5, 3


@pytest.fixture
def tower(rng, move):
    """Parameters, patches and words."""
    encoder = encoder_init(rng, n_blocks=2, width=4, n_heads=2, hidden=5, n_experts=E, layers=(1,))
    params = limoe.init(rng, S, P, R, V, encoder, n_embedding=3)
    params = tree.map(lambda a: a + .5 * rng.standard_normal(a.shape), params)
    return move((params, rng.standard_normal((B, S, P)), rng.integers(V, size=(B, R))))


@pytest.mark.numpy_only("draws are made in NumPy")
def test_start(rng):
    encoder = encoder_init(rng, 2, width=20, n_heads=2, hidden=5, n_experts=E, layers=(1,))
    params = limoe.init(rng, 30, 50, 40, 60, encoder, n_embedding=30)
    for a, deviation in ((params.patch.w, 50 ** -.5), (params.word.table, 20 ** -.5),
                         (params.w_image, 20 ** -.5), (params.w_text, 20 ** -.5),
                         (params.patch_position, .02), (params.word_position, .02)):
        assert a.std() == pytest.approx(deviation, rel=.1)
    assert math.exp(params.t) == pytest.approx(10) and not params.patch.b.any()


def test_gradient_of_training(rng, move, tower):
    params, patches, words = tower
    draws = move(rng.standard_normal((1, B * (S + R), E)))

    def loss(vector, patches):
        out = limoe.limoe(unflat(vector, params), patches, words, 5, draws)
        losses = [limoe.auxiliary_losses(layer, out.modality, (3, 3))
                  for layer in out.layers]
        found = limoe.scores(out.z_image, out.z_text, unflat(vector, params).t)
        return limoe.training_loss(limoe.contrastive_loss(found), losses).reshape(1)

    check_vjp(loss, flat(params), patches, rng=rng)


def test_modalities_meet_in_the_queues_of_experts_alone(rng, tower):
    params, patches, words = tower
    together = limoe.limoe(params, patches, words, B * (S + R))
    images, texts = (limoe.limoe(params, *given, B * (S + R))
                     for given in ((patches, None), (None, words)))
    close(together.z_image, to_numpy(images.z_image))
    close(together.z_text, to_numpy(texts.z_text))
    assert images.z_text is None and texts.z_image is None
    assert to_numpy(together.modality).tolist() == [0] * B * S + [1] * B * R
    # no room for all: who is served depends on the others
    scarce = limoe.limoe(params, patches, words, 2)
    assert abs(to_numpy(scarce.z_text) - to_numpy(together.z_text)).max() > 1e-3
    close((together.z_image * together.z_image).sum(axis=1), np.ones(B))


def test_padding_is_as_if_it_were_not_there(rng, move, tower):
    params, patches, words = tower
    used = move(np.array([[True, False]] * B))
    draws = rng.standard_normal((1, B * (S + R), E))
    padded = limoe.limoe(params, patches, words, 4, move(draws), used)
    there = to_numpy(padded.modality) >= 0
    cut = params._replace(word_position=params.word_position[:1])
    short = limoe.limoe(cut, patches, words[:, :1], 4, move(draws[:, there]))
    close(padded.z_image, to_numpy(short.z_image))
    close(padded.z_text, to_numpy(short.z_text))
    assert not to_numpy(padded.layers[0].routing.keep)[~there].any()
    losses = [limoe.auxiliary_losses(out.layers[0], out.modality, (2, 2))
              for out in (padded, short)]
    for one, other in zip(*losses):
        assert float(one) == pytest.approx(float(other))
    nothing = limoe.limoe(params, patches, words, 4, used=move(np.zeros((B, R), bool)))
    assert not to_numpy(nothing.z_text).any()


# -- Zero-shot -----------------------------------------------------------------------------------

def test_zero_shot_by_hand(move):
    prompts = move(np.array([[[1.0, 0], [0, 1]], [[0, -1.0], [0, -1]]]))
    classes = limoe.class_embedding(prompts)
    close(classes, [[.5 ** .5, .5 ** .5], [0, -1]])
    images = move(np.array([[.9, -.1], [.1, -.9], [-1.0, 0]]))
    assert to_numpy(limoe.zero_shot(images, classes)).tolist() == [0, 1, 1]

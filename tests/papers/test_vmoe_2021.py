import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimoe import nn, ops, tree
from minimoe.autodiff.check import check_vjp
from minimoe.autodiff.tensor import Tensor, grad
from minimoe.backend import to_numpy
from minimoe.papers import gshard_2020, sparsely_gated_2017, switch_2021
from minimoe.papers import vmoe_2021 as paper
from tests.closeness import close, listed


@pytest.fixture
def layer(rng, move):
    """Parameters, tokens and draws: experts unlike one another, gates and priorities far apart."""
    def make(T=12, D=6, H=5, E=4):
        params = paper.init_apart(rng, E, D, H)
        params = params._replace(w_router=3 * params.w_router, b_in=1e6 * params.b_in / 3,
                                 b_out=1e6 * params.b_out / 3)
        x, z = rng.standard_normal((T, D)), rng.standard_normal((T, E))
        gates = np.sort(paper.router(x, params.w_router, z).gates, axis=-1)
        assert np.diff(np.log(gates[:, -3:])).min() > 1e-3
        assert np.diff(np.sort(gates[:, -1])).min() > 1e-4
        return move(params), move(x), move(z)
    return make


# -- By hand -------------------------------------------------------------------------------------

def test_noise_comes_before_the_softmax_and_the_softmax_before_the_choice(move):
    x, w = move(np.array([[1.0]])), move(np.array([[0.0, 0.0, 0.0, math.log(4)]]))
    # epsilon = z / 4: logits log 2, 0, 0 and log 4 give 2, 1, 1 and 4 eighths
    made = paper.router(x, w, move(np.array([[4 * math.log(2), 0, 0, 0]])))
    close(made.noisy, [[math.log(2), 0, 0, math.log(4)]])
    close(made.clean, [[0, 0, 0, math.log(4)]])
    close(made.gates, [[.25, .125, .125, .5]])
    close(paper.keep_top_k(made.gates, 2), [[.25, 0, 0, .5]])          # not normalised
    close(paper.router(x, w).gates, [[1 / 7, 1 / 7, 1 / 7, 4 / 7]])


GATES = [[.50, .30, .20], [.45, .35, .20], [.80, .15, .05], [.60, .10, .30], [.05, .55, .40]]


def test_algorithms_1_and_2_by_hand(move):
    gates = move(np.array(GATES))
    vanilla = paper.route_vanilla(gates, 2, k=2)
    assert listed(vanilla.expert) == [[0, 1], [0, 1], [0, 1], [0, 2], [1, 2]]
    # first choices, expert 0: tokens 0 1 2 3; expert 1: token 4. Then second ones, expert 1:
    # tokens 0 1 2 behind token 4; expert 2: tokens 3 4
    assert listed(vanilla.slot) == [[0, 1], [1, 2], [2, 3], [3, 0], [0, 1]]
    assert listed(vanilla.keep) == [[True, True], [True, False], [False, False], [False, True],
                                    [True, True]]
    close(vanilla.gate, [[.50, .30], [.45, .35], [.80, .15], [.60, .30], [.55, .40]])
    # by largest gate: tokens 2 3 4 0 1. Expert 0: 2 3 0 1; expert 1: 4, then 2 0 1; expert 2: 3 4
    prioritized = paper.route_batch_prioritized(gates, 2, k=2)
    assert listed(prioritized.slot) == [[2, 2], [3, 3], [0, 1], [1, 0], [0, 1]]
    assert listed(prioritized.keep) == [[False, False], [False, False], [True, True], [True, True],
                                        [True, True]]
    close(prioritized.gate, vanilla.gate)
    # by sum: .80 .80 .95 .90 .95, tokens 2 4 3 0 1, the former of two equal ones first
    close(paper.sum_of_gates(gates, 2), [.80, .80, .95, .90, .95])
    by_sum = paper.route_batch_prioritized(gates, 1, k=2, score=paper.sum_of_gates)
    assert listed(by_sum.slot) == [[2, 2], [3, 3], [0, 1], [1, 1], [0, 0]]


def test_priorities_that_are_equal_keep_the_order_of_tokens(move):
    score = move(np.array([.5, .7, .5, .7, .5]))
    assert listed(paper.highest_first(score)) == [1, 3, 0, 2, 4]


SIX = [[2, 0, 0, 0], [1.9, 0, 0, 0], [3, 0, 0, 0], [0, 1, 0, 0], [0, 0, .5, 0], [2.5, 0, 0, 0]]


def test_six_tokens_that_a_second_program_routed(move):
    logits = move(np.array(SIX))
    gates = ops.softmax(logits)
    close(gates.max(axis=-1), [.711235, .690271, .870049, .475367, .354661, .802404], 1e-6)
    close(gates.sum(axis=0), [3.463949, .999160, .838219, .698671], 1e-6)
    close(paper.importance_loss(logits), [.576446], 1e-6)
    capacity = paper.expert_capacity(6, 4, 1, 1.0)
    vanilla = paper.route_vanilla(gates, capacity, 1).keep[:, 0]
    prioritized = paper.route_batch_prioritized(gates, capacity, 1).keep[:, 0]
    assert listed(vanilla.nonzero()[0]) == [0, 1, 3, 4]
    assert listed(prioritized.nonzero()[0]) == [2, 3, 4, 5]


def test_evenly_spread_images_starve_text_that_has_one_expert(move):
    # token i of 4096 prefers expert i mod 8 by a little, 768 more all prefer expert 0: 608 slots
    logits = np.zeros((4864, 8))
    logits[np.arange(4096), np.arange(4096) % 8] = 0.1
    logits[4096:, 0] = 0.1
    capacity = paper.expert_capacity(4864, 8, 1, 1.0)
    keep = paper.route_vanilla(move(ops.softmax(logits)), capacity, 1).keep
    # expert 0: 512 + 768 tokens, of which 608 - 512 = 96 of the 768 are taken
    assert capacity == 608 and bool(keep[:4096].all()) and int(keep[4096:].sum()) == 96 == 768 // 8
    # Imp_0 - 608 is 7 / 8 of 768 times exp(.1)'s part of a row, - 608 / 7 of it for the others
    close(paper.importance_loss(move(logits)), [2.94e-5], 1e-3)


def test_load_by_hand(move):
    # E = 2, sigma = 1/2; the largest noisy logit is .5: p = 1 - Phi(0) and 1 - Phi(1)
    clean, noisy = move(np.array([[.5, 0.0]])), move(np.array([[.5, .25]]))
    p = [.5, 0.15865525393145707]
    by_hand = ((p[0] - p[1]) / (p[0] + p[1])) ** 2
    close(paper.load_loss(clean, noisy, 1), [by_hand])
    assert by_hand == pytest.approx(.268578, abs=5e-7)                 # (.341345 / .658655)^2
    # k = 2: the threshold is .25: 1 - Phi(-.5) and 1 - Phi(.5)
    p = [0.6914624612740131, 0.3085375387259869]
    close(paper.load_loss(clean, noisy, 2), [(p[0] - p[1]) ** 2])


def test_losses_are_at_their_ends(move):
    E = 4
    uniform, one = move(np.zeros((8, E))), move(np.array([[200.0, 0, 0, 0]] * 8))
    close(paper.importance_loss(uniform) + 1, [1.0])
    close(paper.importance_loss(one), [E - 1.0])
    close(paper.load_loss(uniform, uniform, 1) + 1, [1.0])
    close(paper.load_loss(one, one, 1), [E - 1.0])
    groups = ops.concatenate([uniform, one])        # alone each is 0 or 3; together (5 3, 3 1) / 8
    close(paper.importance_loss(groups, n_groups=2), [(E - 1) / 2])
    # 2 + 8, 2, 2, 2 of 16: mean 4, variance (36 + 3 * 4) / 4 = 12
    close(paper.importance_loss(groups), [12 / 16])


@pytest.mark.numpy_only("numbers")
def test_capacity_by_hand():
    # 2.5 and 3.5 go to the even; 23 is exact; of 12 tokens no more than 12 come
    assert paper.expert_capacity(10, 4, 1, 1.0) == 2 and paper.expert_capacity(14, 4, 1, 1.0) == 4
    assert paper.expert_capacity(100, 5, 1, 1.15) == 23
    assert paper.expert_capacity(12, 4, 2, 8.0) == 12
    assert paper.expert_capacity(50, 8, 2, 1.05) == 13                 # 13.125
    # released: 13.125 up to 14, up to 16; 100 * 1.1 is a little more than 110, so 12 and not 11
    assert paper.expert_capacity_vmoe(50, 8, 2, 1.05) == 16
    assert paper.expert_capacity_vmoe(100, 10, 1, 1.1, multiple_of=1) == 12
    assert paper.expert_capacity(100, 10, 1, 1.1) == 11


@pytest.mark.numpy_only("numbers")
def test_blocks_with_experts_by_hand():
    assert paper.every(8, 2) == (1, 3, 5, 7) and paper.every(12, 5) == (4, 9)
    assert paper.last(8, 2) == (5, 7) and paper.last(32, 5) == (23, 25, 27, 29, 31)
    assert paper.last(7, 1) == (5,)


MODELS = [    # blocks, D, H, patches, side of one; blocks with experts; the paper's millions
    ((8, 512, 2048, 49, 32), paper.every(8, 2), 36.5, 296.9),
    ((12, 768, 3072, 49, 32), paper.every(12, 2), 102.1, 980.6),
    ((12, 768, 3072, 196, 16), paper.every(12, 2), 100.5, 979.0),
    ((24, 1024, 4096, 49, 32), paper.last(24, 2), 325.3, 845.8),
    ((24, 1024, 4096, 196, 16), paper.every(24, 2), 323.1, 3446.0),
    ((32, 1280, 5120, 256, 14), paper.last(32, 5), 655.8, 2688.6),
    ((32, 1280, 5120, 256, 14), paper.every(32, 2), 655.8, 7160.8)]


@pytest.mark.parametrize("size, layers, dense, sparse", MODELS,
                         ids=["S/32", "B/32", "B/16", "L/32", "L/16", "H/14", "H/14 every 2"])
@pytest.mark.numpy_only("whole numbers")
def test_models_have_as_many_parameters_as_the_paper_says(size, layers, dense, sparse):
    *shape, patch = size
    jft = (*shape, 3 * patch ** 2, 18291)
    assert round(paper.n_parameters(*jft) / 1e6, 1) == dense
    assert round(paper.n_parameters(*jft, 32, layers) / 1e6, 1) == sparse


@pytest.mark.numpy_only("whole numbers")
def test_parameters_are_those_that_are_drawn(rng):
    encoder = paper.encoder_init(rng, 4, 6, 2, 5, 3, paper.every(4, 2))
    params = paper.vmoe_init(rng, 9, 8, 7, encoder)
    params = params._replace(representation=nn.linear_init(rng, 6, 6))
    assert sum(a.size for a in tree.leaves(params)) == paper.n_parameters(
        4, 6, 5, 9, 8, 7, 3, paper.every(4, 2))
    assert [isinstance(block.feed_forward, paper.VMoEParams) for block in encoder.blocks] == [
        False, True, False, True]


def test_patches_by_hand(move):
    image = move(np.arange(24.0).reshape(1, 4, 6, 1))
    assert listed(paper.patches(image, 2)) == [[
        [0, 1, 6, 7], [2, 3, 8, 9], [4, 5, 10, 11],
        [12, 13, 18, 19], [14, 15, 20, 21], [16, 17, 22, 23]]]
    colours = move(np.arange(8.0).reshape(1, 2, 2, 2))
    assert listed(paper.patches(colours, 2)) == [[list(range(8))]]
    assert listed(paper.patches(colours, 1)) == [[[0, 1], [2, 3], [4, 5], [6, 7]]]


@pytest.mark.numpy_only("numbers")
def test_the_training_loss_by_hand():
    def of(importance, load):
        return paper.VMoEOutput(None, importance, load, None, None)

    # 2 + .01 * (.6 + .2 + .4 + .4) / 2
    assert paper.training_loss(2.0, [of(.6, .2), of(.4, .4)]) == pytest.approx(2.008)
    assert paper.training_loss(2.0, [of(.6, None)], weight=.1) == pytest.approx(2.03)
    assert paper.training_loss(2.0, []) == 2.0


# -- Gradients -----------------------------------------------------------------------------------

@pytest.mark.parametrize("capacity", [12, 3])
@pytest.mark.parametrize("route", [paper.route_vanilla, paper.route_batch_prioritized])
def test_gradients_of_the_layer(layer, rng, capacity, route):
    params, x, z = layer()

    def outputs(params, x):
        out = paper.moe_layer(params, x, capacity, 2, z, n_groups=2, route=route)
        return ops.concatenate([out.y.reshape(-1), out.importance_loss.reshape(1),
                                out.load_loss.reshape(1)])

    check_vjp(outputs, params, x, rng=rng)


def test_the_gradient_of_importance_by_hand(draw):
    """p_ik (a_k - sum_e p_ie a_e), a = 2 E Imp / n^2."""
    clean = draw(7, 4)
    p = to_numpy(ops.softmax(clean))
    a = 2 * 4 * p.sum(axis=0) / 7 ** 2
    leaf = Tensor(clean)
    close(grad(paper.importance_loss(leaf), leaf), p * (a - (p @ a)[:, None]))


def test_the_gradient_of_load_by_hand(draw):
    """(c_j phi(u_ij) - 1[j = t_i] sum_e c_e phi(u_ie)) E / n: the threshold has its part."""
    clean, z = draw(7, 4), draw(7, 4)
    leaf = Tensor(clean)
    flow = grad(paper.load_loss(leaf, leaf + z / 4, 2), leaf)
    clean, noisy = to_numpy(clean), to_numpy(clean + z / 4)
    t = np.argsort(-noisy, axis=-1)[:, 1]
    u = (noisy[np.arange(7), t][:, None] - clean) * 4
    load = np.array([[math.erfc(v / math.sqrt(2)) / 2 for v in row] for row in u]).mean(axis=0)
    mean, variance = load.mean(), load.var()
    c = 2 * (load - mean) / (4 * mean ** 2) - 2 * variance / (4 * mean ** 3)
    weighed = c * np.exp(-u ** 2 / 2) / math.sqrt(2 * math.pi)
    expected = weighed.copy()
    expected[np.arange(7), t] -= weighed.sum(axis=-1)
    close(flow, expected * 4 / 7)


def test_the_gradient_of_a_gate_by_hand(layer):
    """<v, e(x)> p_e (1[k = e] - p_k) for every expert k; zero for a token turned away."""
    params, x, z = layer()
    cotangent = to_numpy(x + 1)
    gates = paper.router(x, params.w_router, z).gates
    logits = Tensor(ops.log(gates))
    routing = paper.route_vanilla(ops.softmax(logits), 2, 1)
    flow = to_numpy(grad((paper.expert_mlp(params, x, routing) * (x + 1)).sum(), logits))
    p, expert, keep = to_numpy(gates), to_numpy(routing.expert)[:, 0], to_numpy(routing.keep)[:, 0]
    assert 0 < keep.sum() < len(keep)
    for t, (e, kept) in enumerate(zip(expert, keep)):
        w_in, b_in, w_out, b_out = (to_numpy(a[e]) for a in params[1:])
        made = to_numpy(ops.gelu(to_numpy(x)[t] @ w_in + b_in)) @ w_out + b_out
        by_hand = kept * (cotangent[t] @ made) * p[t, e] * (np.eye(4)[e] - p[t])
        np.testing.assert_allclose(flow[t], by_hand, atol=1e-13)


def model(rng, class_token=True):
    """Two blocks, the second with experts, for 5 patches of 4 numbers and 3 classes."""
    encoder = paper.encoder_init(rng, 2, 6, 2, 5, 3, paper.every(2, 2), paper.init_apart)
    params = paper.vmoe_init(rng, 5, 4, 3, encoder, class_token)
    return params._replace(head=nn.linear_init(rng, 6, 3),
                           representation=nn.linear_init(rng, 6, 6))


def test_the_gradient_of_a_model_without_class_token(rng, move):
    params = model(rng, class_token=False)
    params, x, z = move((params, rng.standard_normal((2, 5, 4)), rng.standard_normal((1, 10, 3))))

    def loss(x):
        out = paper.vmoe(params, x, 3, 1, z, route=paper.route_batch_prioritized)
        return paper.training_loss(out.logits.sum(), out.layers)

    check_vjp(loss, x, rng=rng)


# -- Properties ----------------------------------------------------------------------------------

def literal(gates, capacity, k, visits):
    """An algorithm of one group in Python: the tokens kept, by rank. -> [T, k] bool"""
    T, E = gates.shape
    free, keep = [capacity] * E, np.zeros((T, k), bool)
    chosen = np.argsort(-gates, axis=-1, kind="stable")[:, :k]
    for i in range(k):
        for t in visits:
            e = chosen[t, i]
            keep[t, i] = free[e] > 0
            free[e] -= keep[t, i]
    return keep


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 6), st.integers(0, 2 ** 32 - 1))
@settings(max_examples=80)
def test_allocation_is_the_loop_that_it_is_printed_as(move, T, E, capacity, seed):
    rng = np.random.default_rng(seed)
    k = int(rng.integers(1, E + 1))
    gates = rng.choice([1.0, 2.0, 2.0, 4.0], (T, E)) / 32              # ties are likely, sums exact
    chosen = np.sort(gates, axis=-1)[:, -k:]
    for score, s in [(paper.largest_gate, chosen[:, -1]), (paper.sum_of_gates, chosen.sum(axis=1))]:
        order = sorted(range(T), key=lambda t: (-s[t], t))
        found = paper.route_batch_prioritized(move(gates), capacity, k, score=score)
        np.testing.assert_array_equal(to_numpy(found.keep), literal(gates, capacity, k, order))
    vanilla = paper.route_vanilla(move(gates), capacity, k)
    np.testing.assert_array_equal(to_numpy(vanilla.keep), literal(gates, capacity, k, range(T)))
    # an expert is as full whoever comes first
    counts = [np.bincount(to_numpy(r.expert[r.keep]), minlength=E) for r in (vanilla, found)]
    assert counts[0].tolist() == counts[1].tolist()


def test_priority_does_not_depend_on_where_a_token_stands(layer, rng, move):
    params, x, z = layer()
    order = move(rng.permutation(12))

    def layer_of(route, x, z):
        return paper.moe_layer(params, x, 2, 2, z, route=route).y

    prioritized = layer_of(paper.route_batch_prioritized, x, z)
    close(layer_of(paper.route_batch_prioritized, x[order], z[order]), prioritized[order])
    vanilla = layer_of(paper.route_vanilla, x, z)
    moved = layer_of(paper.route_vanilla, x[order], z[order])
    assert float(abs(moved - vanilla[order]).max()) > 0.1


def test_at_one_choice_whoever_is_kept_is_surer_than_whoever_is_not(layer):
    params, x, z = layer(T=40)
    routing = paper.moe_layer(params, x, 4, 1, z, route=paper.route_batch_prioritized).routing
    expert, keep, gate = (to_numpy(a)[:, 0] for a in (routing.expert, routing.keep, routing.gate))
    crowded = [e for e in range(4) if not keep[expert == e].all()]
    assert crowded
    for e in crowded:
        assert gate[(expert == e) & keep].min() > gate[(expert == e) & ~keep].max()


def test_all_experts_with_room_are_a_dense_mixture(layer):
    params, x, z = layer()
    hidden = ops.gelu(x @ params.w_in + params.b_in[:, None])          # [E, T, H]
    made = hidden @ params.w_out + params.b_out[:, None]               # [E, T, D]
    gates = paper.router(x, params.w_router, z).gates
    for route in (paper.route_vanilla, paper.route_batch_prioritized):
        out = paper.moe_layer(params, x, 12, 4, z, route=route)
        close(out.y, (made * gates.T[:, :, None]).sum(axis=0))


def test_groups_are_layers_of_their_own(layer):
    params, x, z = layer()
    for route in (paper.route_vanilla, paper.route_batch_prioritized):
        whole = paper.moe_layer(params, x, 2, 2, z, n_groups=3, route=route)
        parts = [paper.moe_layer(params, x[i:i + 4], 2, 2, z[i:i + 4], route=route)
                 for i in (0, 4, 8)]
        close(whole.y, ops.concatenate([part.y for part in parts]))
        for loss in ("importance_loss", "load_loss"):
            close(getattr(whole, loss), [sum(float(getattr(part, loss)) for part in parts) / 3])


def test_padding_is_as_if_it_were_not_there(layer, move):
    params, x, z = layer()
    used = np.arange(12) % 4 != 1
    for route in (paper.route_vanilla, paper.route_batch_prioritized):
        out = paper.moe_layer(params, x, 2, 2, z, route=route, used=move(used))
        alone = paper.moe_layer(params, x[move(used)], 2, 2, z[move(used)], route=route)
        close(out.y[move(used)], alone.y)
        assert not to_numpy(out.y)[~used].any()
        close(out.importance_loss, alone.importance_loss)
        close(out.load_loss, alone.load_loss)
    nobody = paper.moe_layer(params, x, 2, 2, z, used=move(used & False))
    assert float(nobody.importance_loss) == float(nobody.load_loss) == 0


def test_without_noise_there_is_no_load_and_no_noise_is_noise_of_zero(layer):
    params, x, z = layer()
    silent, zero = (paper.moe_layer(params, x, 2, 2, noise) for noise in (None, 0 * z))
    assert silent.load_loss is None
    close(silent.y, zero.y)
    close(silent.importance_loss, paper.moe_layer(params, x, 2, 2, z).importance_loss)


def test_importance_and_load_are_the_earlier_papers_of_other_arguments(draw):
    clean, z = draw(9, 5), draw(9, 5)
    noisy = clean + z / 5
    earlier = sparsely_gated_2017
    close(paper.importance_loss(clean),
          earlier.importance_loss(earlier.importance(ops.softmax(clean))))
    p = earlier.load_probability(clean, 0 * clean + 1 / 5, earlier.kth_inclusive(noisy, 2))
    close(paper.load_loss(clean, noisy, 2), earlier.load_loss(earlier.load(p)))


def test_algorithms_are_what_other_papers_have_as_options(draw):
    gates = ops.softmax(2 * draw(16, 4))
    for ours, theirs in [
            (paper.route_vanilla(gates, 3, 2), switch_2021.route(gates, 3, k=2)),
            (paper.route_batch_prioritized(gates, 3, 2), switch_2021.route(
                gates, 3, k=2, order=gshard_2020.highest_gate_first(gates)))]:
        for mine, other in zip(ours, theirs):
            assert listed(mine) == listed(other)


def test_kinds_of_sequences_meet_in_the_experts_alone(rng, move):
    encoder = move(model(rng).encoder)
    image, text = move((rng.standard_normal((3, 5, 6)), rng.standard_normal((2, 4, 6))))
    both = paper.encode(encoder, [image, text], 23, 1)
    for i, kind in enumerate((image, text)):
        close(both.y[i], paper.encode(encoder, [kind], 23, 1).y[0])
    # with a slot each, those in front are served: images, whatever text there is
    full = paper.encode(encoder, [image, text], 1, 1)
    close(full.y[0], paper.encode(encoder, [image], 1, 1).y[0])
    keep = full.layers[0].routing.keep
    assert keep.shape == (23, 1) and int(keep[:15].sum()) > int(keep[15:].sum())


def test_padding_of_a_sequence_is_neither_read_nor_routed(rng, move):
    encoder = move(model(rng).encoder)
    x = move(rng.standard_normal((2, 5, 6)))
    used = move(np.array([[True] * 3 + [False] * 2] * 2))
    padded = paper.encode(encoder, [x], 2, 1, used=[used])
    close(padded.y[0][:, :3], paper.encode(encoder, [x[:, :3]], 2, 1).y[0])


def test_the_mean_of_tokens_is_classified_without_a_class_token(rng, move):
    params = model(rng, class_token=False)._replace(representation=None)
    x = move(rng.standard_normal((3, 5, 4)))
    params = move(params)
    tokens = paper.encode(params.encoder, [x @ params.patch.w + params.position], 15, 1).y[0]
    close(paper.vmoe(params, x, 15, 1).logits, tokens.mean(axis=1) @ params.head.w + params.head.b)


@pytest.mark.numpy_only("draws are NumPy's")
def test_starts(rng):
    same, apart = (init(rng, 3, 40, 50) for init in (paper.init, paper.init_apart))
    for together, own in zip(same[1:], apart[1:]):
        assert (together == together[0]).all() and (own[0] != own[1]).all()
        assert together.shape == own.shape
    assert abs(same.w_in).max() < math.sqrt(6 / 90) and abs(same.b_out).max() < 1e-5
    assert same.w_in[0].std() == pytest.approx(math.sqrt(2 / 90), rel=0.1)
    w_router = paper.init(rng, 400, 100, 2).w_router
    assert w_router.std() == pytest.approx(0.1, rel=0.02)
    params = paper.vmoe_init(rng, 5, 4, 3, model(rng).encoder)
    assert not (params.head.w.any() or params.class_token.any()) and params.representation is None
    assert params.position.shape == (6, 6)


# -- Bad input -----------------------------------------------------------------------------------

@pytest.mark.parametrize("call, message", [
    (lambda p, x, z: paper.moe_layer(p, x[None], 2, 1), r"x must be \[T, 6\]"),
    (lambda p, x, z: paper.moe_layer(p, x[:, :5], 2, 1), r"x must be \[T, 6\].*got \(12, 5\)"),
    (lambda p, x, z: paper.moe_layer(p, x, 2, 1, z[1:]), r"z must be \[12, 4\]"),
    (lambda p, x, z: paper.moe_layer(p, x, 2, 5), "k must be between 1 and 4"),
    (lambda p, x, z: paper.moe_layer(p, x, -1, 1), "capacity must be 0 or more"),
    (lambda p, x, z: paper.moe_layer(p, x, 2, 1, n_groups=5), "divides 12 tokens"),
    (lambda p, x, z: paper.moe_layer(p, x * math.nan, 2, 1), "got NaN"),
    (lambda p, x, z: paper.moe_layer(p, x, 2, 1, used=z[:, 0] > 9), None),
    (lambda p, x, z: paper.moe_layer(p, x, 2, 1, used=z[:3, 0] > 0), "12 booleans"),
    (lambda p, x, z: paper.expert_capacity(12, 4, 5, 1.0), "k of the experts"),
    (lambda p, x, z: paper.expert_capacity(12, 4, 1, 0.0), "positive, finite ratio"),
    (lambda p, x, z: paper.expert_capacity(12, 4, 1, 0.1), "leave a slot"),         # 0.3
    (lambda p, x, z: paper.expert_capacity_vmoe(12, 4, 1, math.inf), "finite ratio"),
    (lambda p, x, z: paper.every(8, 9), "between 1 and 8 blocks; got 9"),
    (lambda p, x, z: paper.last(8, 5), "between 1 and 4, every second of 8"),
    (lambda p, x, z: paper.patches(x.reshape(1, 8, 9, 1), 2), r"divides the image's \(8, 9\)"),
])
def test_what_is_refused(layer, call, message):
    if message is None:
        call(*layer())
    else:
        with pytest.raises(ValueError, match=message):
            call(*layer())


def test_the_encoder_wants_a_part_for_each_layer_and_kind(rng, move):
    encoder, x = move((model(rng).encoder, rng.standard_normal((2, 5, 6))))
    with pytest.raises(ValueError, match="z must have 1 parts, one for each layer with experts"):
        paper.encode(encoder, [x], 9, 1, z=[None, None])
    with pytest.raises(ValueError, match="used must have 1 parts, one for each kind of sequence"):
        paper.encode(encoder, [x], 9, 1, used=[None, None])

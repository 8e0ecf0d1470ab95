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
from minimoe.papers import gshard_2020 as gshard
from minimoe.papers import switch_2021 as switch
from minimoe.routing.experts import expert_feed_forward
from minimoe.routing.topk import top_k


def close(computed, expected, tolerance=1e-12):
    np.testing.assert_allclose(to_numpy(computed), to_numpy(np.asarray(expected) if isinstance(
        expected, (list, float)) else expected), rtol=tolerance, atol=tolerance)


def lists(routing):
    """Expert, slot and keep of a Routing of one choice."""
    return tuple(to_numpy(a)[:, 0].tolist() for a in routing[:3])


def numbers(*arrays):
    return [to_numpy(a).tolist() for a in arrays]


@pytest.fixture
def start(rng, move):
    """Parameters of a layer, at a scale where experts differ."""
    def make(E=4, D=5, H=6, scale=1.0):
        return move(switch.init(rng, E, D, H, scale))
    return make


def clear(rng, move, params, T, k=1, margin=0.03):
    """Tokens that are sure of their k experts, in their order: nothing changes nearby."""
    found = []
    while len(found) < T:
        x = rng.standard_normal((1, params.w_router.shape[0]))
        p = to_numpy(switch.router_probs(move(x), params.w_router))[0]
        if (-np.diff(-np.sort(-p)))[:k].min(initial=1.0) > margin:
            found.append(x[0])
    return move(np.stack(found))


# -- By hand -------------------------------------------------------------------------------------

SIX = np.array([(.6, .3, .1), (.7, .2, .1), (.5, .4, .1), (.8, .15, .05), (.55, .05, .4),
                (.2, .7, .1)])


def test_six_tokens_by_hand(move):
    probs, C = move(SIX), switch.expert_capacity(6, 3, 1.0)
    routing = switch.route(probs, C)
    # C = 6 / 3 = 2: tokens 2, 3 and 4 find expert 0 full
    assert C == 2
    assert lists(routing) == ([0, 0, 0, 0, 0, 1], [0, 1, 2, 3, 4, 0],
                              [True, True, False, False, False, True])
    close(routing.gate[:, 0], [.6, .7, .5, .8, .55, .7])
    # f = (5, 1, 0) / 6; P = (3.35, 1.8, 0.85) / 6; 3 (5/6 * 3.35/6 + 1/6 * 0.3) = 1.5458333
    close(switch.dispatched_fraction(routing.expert, 3), [[5 / 6, 1 / 6, 0]])
    close(switch.mean_probability(probs), [[3.35 / 6, .3, .85 / 6]])
    close(switch.load_balancing_loss(probs, routing.expert), 1.5458333333333334)
    # of token 0: N / T p_j (f_j - sum_i f_i p_i), where the sum is 5/6 * 0.6 + 1/6 * 0.3 = 0.55
    logits = Tensor(move(np.log(SIX)))
    aux_loss = switch.load_balancing_loss(ops.softmax(logits), routing.expert)
    close(grad(aux_loss, logits)[0], [.085, -.0575, -.0275])


def test_no_token_left_behind_by_hand(move):
    # stage 2: token 2 takes the free slot of expert 1, where token 3 then finds none; 4 goes to 2
    routing = switch.route_no_token_left_behind(move(SIX), 2, n_stages=2)
    assert lists(routing) == ([0, 0, 1, 0, 2, 1], [0, 1, 1, 3, 0, 0],
                              [True, True, True, False, True, True])
    close(routing.gate[:, 0], [.6, .7, .4, .8, .4, .7])
    # stage 3: token 3 goes to expert 2
    routing = switch.route_no_token_left_behind(move(SIX), 2)
    assert lists(routing) == ([0, 0, 1, 2, 2, 1], [0, 1, 1, 1, 0, 0], [True] * 6)
    close(routing.gate[3], [.05])
    # one stage is the plain route
    for one, plain in zip(switch.route_no_token_left_behind(move(SIX), 2, 1),
                          switch.route(move(SIX), 2)):
        assert numbers(one) == numbers(plain)


@pytest.mark.parametrize("P, expert, n_groups, by_hand", [
    ([[.25] * 4] * 8, [0] * 8, 1, 1.0),                  # P uniform: all ties, which go to expert 0
    ([[.7, .1, .1, .1]] * 4, [0, 1, 2, 3], 1, 1.0),      # f uniform
    ([[1., 0, 0, 0]] * 5, [0] * 5, 1, 4.0),              # one expert takes all
    ([[.5, .5, 0, 0]] * 2 + [[0, 0, 1., 0]] * 2, [0, 0, 2, 2], 1, 1.5),   # 4 (1/2 1/4 + 1/2 1/2)
    # groups apart: 4 (1 * 1/2) and 4 (1 * 1)
    ([[.5, .5, 0, 0]] * 2 + [[0, 0, 1., 0]] * 2, [0, 0, 2, 2], 2, 3.0)])
def test_values_of_the_balance_loss(move, P, expert, n_groups, by_hand):
    found = switch.load_balancing_loss(move(np.array(P)), move(np.array(expert)[:, None]), n_groups)
    close(found, by_hand)


def test_the_balance_loss_goes_below_one(move):
    # 8 experts, 4 of them never chosen; each token gives its own and those 4 a fifth each:
    # f_i P_i = 1/4 * 1/20 for four experts, and 8 * 4 / 80 = 0.4
    own = np.arange(4)
    P = np.concatenate([np.eye(4), np.ones((4, 4))], axis=1) / 5
    expert = top_k(move(P), 1)
    assert to_numpy(expert)[:, 0].tolist() == own.tolist()
    close(switch.load_balancing_loss(move(P), expert), 0.4)


def test_padding_in_others_losses_by_hand(move):
    probs = move(np.array([[.8, .2], [.6, .4], [.3, .7], [.9, .1]]))
    expert, used = top_k(probs, 1), move(np.array([True, True, True, False]))
    # f = (2, 1) / 3, P = (1.7, 1.3) / 3: 2 (3.4 + 1.3) / 9
    close(switch.load_balancing_loss(probs, expert, used=used), 2 * 4.7 / 9)
    # the same counts and sums, over 4: 2 (3.4 + 1.3) / 16
    close(switch.flaxformer_load_balancing_loss(probs, expert, used=used), 2 * 4.7 / 16)
    # counts of three, the probabilities of all: 2 (2 * 2.6 + 1 * 1.4) / 16
    close(switch.deepspeed_load_balancing_loss(probs, expert, used), 2 * 6.6 / 16)
    # mesh: all in both: 2 (3 * 2.6 + 1 * 1.4) / 16
    close(switch.load_balancing_loss(probs, expert), 2 * 9.2 / 16)


def test_losses_of_several_choices_by_hand(move):
    probs = move(np.array([[.5, .3, .2], [.6, .1, .3]]))
    expert = top_k(probs, 2)                                  # 0 and 1; 0 and 2
    # first choices f = (1, 0, 0), all f = (2, 1, 1) / 4, any f = (2, 1, 1) / 2; P = (.55, .2, .25)
    close(switch.load_balancing_loss(probs, expert), 3 * .55)
    close(switch.all_choices_load_balancing_loss(probs, expert), 3 * (1.1 + .45) / 4)
    close(switch.flaxformer_load_balancing_loss(probs, expert), 3 * (1.1 + .45) / 2)


def test_what_gshard_makes_of_the_same_choices(rng, move):
    """Its loss, (1 / E) sum f P, is smaller by E^2; as released it is the same."""
    P = rng.dirichlet(np.ones(4), 12)
    probs, gates = move(P), move(P.reshape(3, 4, 4))
    expert = top_k(probs, 2)
    found = switch.load_balancing_loss(probs, expert, n_groups=3)
    by_gshard = gshard.auxiliary_loss(gates, expert.reshape(3, 4, 2))
    close(found, 16 * by_gshard.mean())
    close(found, gshard.released_auxiliary_loss(gates, expert.reshape(3, 4, 2)).mean())


def test_transformers_loses_dropped_tokens_to_expert_0(move):
    probs = move(np.array([[.1, .9], [.2, .8], [.3, .7], [.6, .4]]))
    routing = switch.route(probs, 1)                          # experts 1, 1, 1, 0; one slot each
    # f = (3, 1) / 4, P = (1.2, 2.8) / 4: 2 (3.6 + 2.8) / 16; before capacity 2 (1.2 + 8.4) / 16
    close(switch.transformers_load_balancing_loss([probs], [routing], 1), .8)
    close(switch.load_balancing_loss(probs, routing.expert), 1.2)


def test_z_loss_by_hand(move):
    # two logits of 1 and of 3: (1 + log 2)^2 and (3 + log 2)^2
    logits = move(np.array([[1., 1], [3, 3]]))
    close(switch.router_z_loss(logits), ((1 + math.log(2)) ** 2 + (3 + math.log(2)) ** 2) / 2)
    close(switch.router_z_loss(logits, move(np.array([False, True]))), (3 + math.log(2)) ** 2)
    assert switch.router_z_loss(logits, move(np.zeros(2, bool))) == 0
    assert switch.router_z_loss(logits[:0]) == 0


def test_who_is_turned_away_by_hand(move):
    probs = move(np.array([[.6, .4], [.9, .1], [.7, .3], [.8, .2]]))
    # two slots, all to expert 0: the first two; the most certain, 1 and 3; those of largest draw
    assert lists(switch.route(probs, 2))[2] == [True, True, False, False]
    order = gshard.highest_gate_first(probs)
    assert numbers(order) == [[1, 3, 2, 0]]
    assert lists(switch.route(probs, 2, order=order)) == (
        [0] * 4, [3, 0, 2, 1], [False, True, False, True])
    u = move(np.array([[.2, .9], [.1, .9], [.8, .0], [.5, .0]]))
    assert lists(switch.route_random_token_selection(probs, u, 2)) == (
        [0] * 4, [0, 0, 0, 1], [False, False, True, True])


def test_exploration_by_hand(move):
    u = move(np.array([[0.0, 0.5, 0.75]]))
    close(switch.jitter(move(np.array([[2., 3, 4]])), u, eps=.1), [[1.8, 3.0, 4.2]])
    close(switch.logits_noise_pseudocode(move(np.zeros((1, 3))), u, eps=.1), [[.9, 1.0, 1.05]])
    close(switch.logits_noise_tutel(move(np.zeros((1, 2))), move(np.array([[2., -1]])), 3.0),
          [[3.0, -1.5]])
    close(switch.input_dropout(move(np.array([[9., 9]])), move(np.array([[True, False]]))),
          [[10.0, 0]])
    # probabilities (.2, .5, .3) laid end to end; a draw on a border belongs to what begins there
    probs = move(np.array([[.25, .5, .25]] * 5))
    routing = switch.route_sampled(probs, move(np.array([0.0, .24, .25, .75, .99])), 5)
    assert lists(routing)[:2] == ([0, 0, 1, 2, 2], [0, 1, 0, 0, 1])
    close(routing.gate[:, 0], [.25, .25, .5, .25, .25])
    # Gumbel draws move the choice, not the gate
    logits = move(np.log(np.array([[.6, .3, .1]] * 2)))
    routing = switch.route_gumbel(logits, move(np.array([[0., 0, 0], [0, 0, 2]])), 2)
    assert lists(routing)[0] == [0, 2]
    close(routing.gate[:, 0], [.6, .1])


def test_distillation_by_hand(move):
    # student (1/2, 1/2): both cross-entropies are log 2; student (3/4, 1/4), label 1, teacher
    # (.6, .4): .75 log 4 + .25 (.6 log 4/3 + .4 log 4)
    logits = move(np.log(np.array([[.5, .5], [.75, .25]])))
    teacher = move(np.array([[.9, .1], [.6, .4]]))
    found = switch.distillation_loss(logits, move(np.array([0, 1])), teacher)
    close(found, [math.log(2),
                  .75 * math.log(4) + .25 * (.6 * math.log(4 / 3) + .4 * math.log(4))])


def test_training_loss_by_hand(move):
    total = switch.training_loss(move(np.array(2.0)), [move(np.array(a)) for a in (1.5, 3.5)])
    close(total, 2.05)                                         # one for each layer: 2 + 5 / 100


def test_dropped_by_transformers_and_by_the_paper(move):
    params = switch.SwitchParams(*move((np.zeros((2, 2)), np.ones((2, 2, 1)), np.ones((2, 1, 2)))))
    x = move(np.array([[1., 2], [3, 4]]))
    # all ties, so both to expert 0, at a gate of 1/2; relu(1 + 2) = 3 in both outputs
    close(switch.switch_ffn(params, x, 1).y, [[1.5, 1.5], [0, 0]])
    close(switch.switch_ffn_transformers(params, x, 1, 1).y, [[1.5, 1.5], [1.5, 2]])


# -- Capacity ------------------------------------------------------------------------------------

RULES = {"paper": switch.expert_capacity, "pseudocode": switch.expert_capacity_pseudocode,
         "mesh": switch.expert_capacity_mesh, "flaxformer": switch.expert_capacity_flaxformer,
         "deepspeed": switch.expert_capacity_deepspeed, "fairseq": switch.expert_capacity_fairseq,
         "tutel": switch.expert_capacity_tutel}


@pytest.mark.numpy_only("numbers, no arrays")
@pytest.mark.parametrize("T, E, factor, by_rule", [
    #                paper, pseudo-code, mesh, flaxformer, deepspeed, fairseq, tutel
    (1024, 8, 1.25, (160, 159, 160, 160, 160, 160, 160)),   # all agree where the share is whole
    (100, 5, 1.15, (23, 22, 22, 23, 23, 23, 23)),   # 114.99999999999999 / 5 in mesh
    (100, 8, 1.0, (12, 11, 12, 12, 13, 13, 13)),    # 12.5: down, to even, up
    (108, 8, 1.0, (13, 12, 13, 14, 14, 14, 14)),    # 13.5: to even is up
    (100, 4, 1.2, (30, 29, 30, 30, 31, 30, 30)),    # float32's 1.2 is more
    (100, 2, 1.1, (55, 54, 55, 55, 55, 55, 55)),    # float64's 1.1 * 50 is 55.00000000000001
    (10, 4, 1.5, (3, 2, 4, 4, 8, 4, 4)),            # 3.75, and the least that each allows
    (2, 2, 2.0, (2, 1, 4, 4, 8, 2, 2)),             # never more than tokens: but the least wins
    (7, 3, 1.7, (3, 2, 4, 4, 8, 5, 5))])            # 3.97; fairseq: 1.7 * 3
def test_every_rule_of_capacity(T, E, factor, by_rule):
    assert tuple(rule(T, E, factor) for rule in RULES.values()) == by_rule


@pytest.mark.numpy_only("numbers, no arrays")
def test_bounds_of_capacity():
    assert switch.expert_capacity(10, 3, math.inf) == 10
    assert switch.expert_capacity(10, 3, 99.0) == 10            # never more slots than tokens
    assert switch.expert_capacity(3, 8, 1.0, at_least=1) == 1
    assert switch.expert_capacity(3, 8, 1.0, at_least=4) == 3
    assert switch.expert_capacity(0, 8, 1.0) == 0
    assert switch.expert_capacity_mesh(100, 8, 1.0, at_least=20) == 20
    assert switch.expert_capacity_tutel(100, 8, 1.0, k=2) == 26
    assert switch.expert_capacity_fairseq_evaluation(101) == 26
    assert [switch.expert_capacity_transformers(n) for n in (50, 100)] == [50, 64]


def test_full_capacity_drops_none(move):
    expert = move(np.array([[0, 1], [0, 2], [0, 1]]))
    assert switch.expert_capacity_full(expert, 4) == 3
    assert switch.expert_capacity_full(expert[:, :1], 4, move(np.array([True, False, True]))) == 2


# -- Gradients -----------------------------------------------------------------------------------

def test_gradient_of_the_task_in_closed_form(rng, move, start, draw):
    """dL/dh_j = a p_i (u . E_i(x)) (delta_ij - p_j), and a p_i u goes to the expert's output."""
    params = start()
    x, u = clear(rng, move, params, 9), draw(9, 5)
    logits = Tensor(switch.router_logits(x, params.w_router))
    w_out = Tensor(params.w_out)
    routing = switch.route(ops.softmax(logits), 2)
    y = expert_feed_forward(x, routing, params.w_in, w_out)
    by_logits, by_w_out = (to_numpy(g) for g in grad((y * u).sum(), (logits, w_out)))

    x, u, w_in, w_out, h = (to_numpy(a) for a in (x, u, params.w_in, params.w_out, logits.array))
    p = np.exp(h) / np.exp(h).sum(axis=1, keepdims=True)
    expert, _, keep = lists(routing)
    assert 0 < sum(keep) < 9
    expected_w_out = np.zeros_like(w_out)
    for t, (i, kept) in enumerate(zip(expert, keep)):
        hidden = np.maximum(x[t] @ w_in[i], 0)
        slope = kept * p[t, i] * (u[t] @ (hidden @ w_out[i])) * (np.eye(4)[i] - p[t])
        np.testing.assert_allclose(by_logits[t], slope, rtol=1e-12, atol=1e-14)
        expected_w_out[i] += kept * np.outer(hidden, p[t, i] * u[t])
        assert kept or not by_logits[t].any()       # dropped: nothing of the task, to the last bit
    np.testing.assert_allclose(by_w_out, expected_w_out, rtol=1e-12, atol=1e-14)


def test_gradient_of_the_balance_loss_in_closed_form(draw):
    """N / T p_j (f_j - sum_i f_i p_i), of dropped tokens as of the others."""
    logits = Tensor(draw(9, 4))
    probs = ops.softmax(logits)
    expert = top_k(probs, 1)
    found = to_numpy(grad(switch.load_balancing_loss(probs, expert), logits))
    p, f = to_numpy(probs.array), to_numpy(switch.dispatched_fraction(expert, 4))[0]
    np.testing.assert_allclose(found, 4 / 9 * p * (f - (p @ f)[:, None]), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found.sum(axis=1), 0, atol=1e-15)


@pytest.mark.parametrize("k, n_groups, capacity", [(1, 1, 2), (1, 3, 1), (2, 3, 2), (3, 1, 9)])
def test_gradients_of_the_layer(rng, move, start, k, n_groups, capacity):
    params = start()
    x, used = clear(rng, move, params, 9, k), move(np.arange(9) % 4 != 2)

    def layer(params, x):
        out = switch.switch_ffn(params, x, capacity, k, n_groups, used)
        return out.y + out.aux_loss

    check_vjp(layer, params, x, rng=rng)


def test_gradients_of_the_other_layers(rng, move, start, draw):
    params = start()
    x, kept = clear(rng, move, params, 8, k=4, margin=0.01), move(rng.random((8, 6)) > .4)

    def with_route(route, experts=expert_feed_forward):
        def layer(params, x):
            probs = switch.router_probs(x, params.w_router)
            return experts(x, route(probs), params.w_in, params.w_out)
        check_vjp(layer, params, x, rng=rng)

    u = move(rng.random(8))
    with_route(lambda probs: switch.route_no_token_left_behind(probs, 2))
    with_route(lambda probs: switch.route_sampled(probs, u, 2))
    with_route(lambda probs: switch.route(probs, 2),
               lambda *args: switch.expert_dropout(*args, kept))
    check_vjp(lambda params, x: switch.switch_ffn_transformers(params, x, 1, 2).y, params, x,
              rng=rng)
    w_gate = draw(4, 5, 6)
    check_vjp(lambda w_gate, params, x: switch.expert_geglu(x, switch.route(
        switch.router_probs(x, params.w_router), 2), w_gate, params.w_in, params.w_out),
        w_gate, params, x, rng=rng)


def test_gradients_of_the_losses(rng, move, draw):
    logits, expert = draw(8, 4), move(rng.integers(4, size=(8, 2)))
    used, label, teacher = move(np.arange(8) % 3 != 1), move(rng.integers(4, size=8)), draw(8, 4)
    for loss in (
            lambda p: switch.all_choices_load_balancing_loss(p, expert, 2, used),
            lambda p: switch.flaxformer_load_balancing_loss(p, expert, 2, used),
            lambda p: switch.deepspeed_load_balancing_loss(p, expert[:, :1], used),
            lambda p: switch.transformers_load_balancing_loss(
                [p, p * p], [switch.route(ops.softmax(teacher), 1)] * 2, 2),
            switch.router_z_loss, lambda p: switch.router_z_loss(p, used)):
        check_vjp(loss, logits, rng=rng)
    check_vjp(lambda logits, teacher: switch.distillation_loss(
        logits, label, ops.softmax(teacher)), logits, teacher, rng=rng)


def test_gradients_of_attention(rng, move, start, draw):
    """Queries and keys from matrices, values from networks."""
    matrices, networks = start(E=3, D=4, H=6), start(E=3, D=4, H=5)
    projection = switch.SwitchProjectionParams(matrices.w_router, matrices.w_in)
    networks = networks._replace(w_router=matrices.w_router, w_out=draw(3, 5, 6))
    params = switch.SwitchAttentionParams(projection, projection._replace(w=draw(3, 4, 6)),
                                          networks, draw(2, 3, 4))

    def project(params, x, capacity):
        kind = switch.switch_ffn if len(params) == 3 else switch.switch_projection
        return kind(params, x, capacity)

    def attention(params, x, bias):
        out = switch.switch_attention(params, x, 2, project, bias)
        return out.y + out.aux_loss

    check_vjp(attention, params, clear(rng, move, matrices, 6).reshape(2, 3, 4), draw(2, 3, 3),
              rng=rng)


# -- Routes, by loops ----------------------------------------------------------------------------

def queues_by_loop(wanted, used, capacity, n_groups, order):
    """``wanted``: for each token the experts of each of its rounds. Slot and keep of each."""
    T, K = len(wanted), len(wanted[0])
    slot, keep, waiting = np.zeros((T, K), int), np.zeros((T, K), bool), {}
    for k in range(K):
        for t in order:
            if used[t]:
                queue = waiting.setdefault((t * n_groups // T, wanted[t][k]), [])
                slot[t, k], keep[t, k] = len(queue), len(queue) < capacity
                queue.append(t)
    return slot.tolist(), keep.tolist()


def ranked_by_loop(p, k):
    return sorted(range(len(p)), key=lambda i: -p[i])[:k]        # of equals the first: stable


few = st.sampled_from([0.0, 0.25, 0.5])     # ties are likely
sizes = st.tuples(st.integers(1, 3), st.integers(0, 4), st.integers(1, 4))    # G, T / G, E
routers = sizes.flatmap(lambda s: st.tuples(
    st.just(s[0]), arrays(float, (s[0] * s[1], s[2]), elements=few),
    arrays(bool, s[0] * s[1]), st.integers(1, s[2]), st.integers(0, 3)))


@given(routers)
def test_routes_by_loop(move, router):
    n_groups, P, is_used, k, capacity = router
    T, E = P.shape
    probs, used = move(P), move(is_used)
    ranked = [ranked_by_loop(p, E) for p in P.tolist()]
    routing = switch.route(probs, capacity, k, n_groups, used)
    wanted = [r[:k] for r in ranked]
    slot, keep = queues_by_loop(wanted or [[0] * k], is_used, capacity, n_groups, range(T))
    if T:
        assert numbers(*routing[:3]) == [wanted, slot, keep]
        assert numbers(routing.gate) == [[[P[t, i] for i in wanted[t]] for t in range(T)]]
    assert all(a.shape == (T, k) for a in routing)

    order = sorted(range(T), key=lambda t: -P[t].max())
    found = switch.route(probs, capacity, 1, n_groups, used, gshard.highest_gate_first(probs))
    if T:
        slot, keep = queues_by_loop([r[:1] for r in ranked], is_used, capacity, n_groups, order)
        assert numbers(*found[1:3]) == [slot, keep]


@given(routers)
def test_no_token_left_behind_by_loop(move, router):
    n_groups, P, used, n_stages, capacity = router
    T, E = P.shape
    ranked = [ranked_by_loop(p, E) for p in P.tolist()]
    seated, place = {}, {}
    for stage in range(n_stages):
        for t in range(T):
            if used[t] and t not in place:
                i, g = ranked[t][stage], t * n_groups // T
                if seated.get((g, i), 0) < capacity:
                    place[t] = (i, seated.get((g, i), 0))
                    seated[g, i] = place[t][1] + 1
    routing = switch.route_no_token_left_behind(move(P), capacity, n_stages, n_groups, move(used))
    expert, slot, keep = lists(routing)
    assert [t for t in range(T) if keep[t]] == sorted(place)
    assert {t: (expert[t], slot[t]) for t in place} == place
    assert all(expert[t] == ranked[t][0] for t in range(T) if t not in place)
    assert to_numpy(routing.gate)[:, 0].tolist() == [P[t, expert[t]] for t in range(T)]
    if n_stages == E and capacity * E * n_groups >= T:
        assert len(place) == used.sum()           # nobody is left behind where there is room


@given(routers, st.data())
def test_random_token_selection_by_loop(move, router, data):
    n_groups, P, used, _, capacity = router
    T, E = P.shape
    u = data.draw(arrays(float, (T, E), elements=st.floats(0, 1), unique=True))
    routing = switch.route_random_token_selection(move(P), move(u), capacity, n_groups, move(used))
    expert, slot, keep = lists(routing)
    for g in range(n_groups):
        for i in range(E):
            tokens = [t for t in range(T) if used[t] and expert[t] == i and t * n_groups // T == g]
            lucky = sorted(tokens, key=lambda t: -u[t, i])[:capacity]
            assert [t for t in tokens if keep[t]] == sorted(lucky)
            assert [slot[t] for t in sorted(lucky)] == list(range(len(lucky)))
    assert not any(keep[t] for t in range(T) if not used[t])


@given(routers)
def test_losses_by_loop(move, router):
    n_groups, P, used, k, _ = router
    T, E = P.shape
    ranked, S = [ranked_by_loop(p, E)[:k] for p in P.tolist()], T // n_groups
    first = every = 0.0
    for g in range(n_groups):
        tokens = [t for t in range(g * S, g * S + S) if used[t]]
        for i in range(E):
            mean = sum(P[t, i] for t in tokens) / max(len(tokens), 1)
            first += E * mean * sum(ranked[t][0] == i for t in tokens) / max(len(tokens), 1)
            every += E * mean * sum(ranked[t].count(i) for t in tokens) / max(len(tokens), 1) / k
    probs, expert = move(P), top_k(move(P), k)
    close(switch.load_balancing_loss(probs, expert, n_groups, move(used)), first / n_groups)
    close(switch.all_choices_load_balancing_loss(probs, expert, n_groups, move(used)),
          every / n_groups)


# -- Properties of the layer ---------------------------------------------------------------------

@pytest.mark.parametrize("k, n_groups, capacity", [
    (1, 1, 2), (1, 4, 1), (2, 2, 3), (3, 1, 12), (4, 3, 2), (1, 1, 0)])
def test_the_einsum_form_is_the_indexed_one(rng, start, draw, k, n_groups, capacity):
    params, x, u = start(), draw(12, 5), draw(12, 5)
    leaves = tree.map(Tensor, (params, x))
    found = []
    for layer in (switch.switch_ffn, switch.switch_ffn_einsum):
        out = layer(*leaves, capacity, k, n_groups)
        found.append([out.y.array, out.aux_loss.array, *tree.leaves(grad(
            (out.y * u).sum() + out.aux_loss, leaves))])
    for indexed, einsum in zip(*found):
        close(indexed, einsum)


def test_experts_and_tokens_may_change_places(rng, move, start, draw):
    params, x = start(), draw(10, 5)
    out = switch.switch_ffn(params, x, 2)
    order = move(np.array([2, 0, 3, 1]))
    permuted = switch.SwitchParams(params.w_router[:, order], params.w_in[order],
                                   params.w_out[order])
    again = switch.switch_ffn(permuted, x, 2)
    close(again.y, out.y)
    close(again.aux_loss, out.aux_loss)
    assert numbers(order[again.routing.expert], again.routing.keep) == numbers(
        out.routing.expert, out.routing.keep)
    tokens = move(rng.permutation(10))
    assert not (to_numpy(switch.switch_ffn(params, x[tokens], 2).y)
                == to_numpy(out.y[tokens])).all()              # who is dropped has changed
    roomy = switch.switch_ffn(params, x, switch.expert_capacity(10, 4, 4.0)).y
    close(switch.switch_ffn(params, x[tokens], 10).y, roomy[tokens])


def test_one_expert_is_a_dense_layer(start, draw):
    params, x = tree.map(Tensor, start(E=1)), draw(6, 5)
    out = switch.switch_ffn(params, x, switch.expert_capacity(6, 1, 1.0))
    close(out.y.array, ops.relu(x @ params.w_in.array[0]) @ params.w_out.array[0])
    close(out.aux_loss.array, 1.0)
    assert not to_numpy(grad(out.y.sum() + out.aux_loss, params).w_router).any()


def test_all_experts_are_a_dense_mixture(start, draw):
    params, x = start(), draw(6, 5)
    out = switch.switch_ffn(params, x, switch.expert_capacity(6, 4, math.inf), k=4)
    probs = switch.router_probs(x, params.w_router)
    every = ops.einsum("eth,ehd->etd", ops.relu(ops.einsum("td,edh->eth", x, params.w_in)),
                       params.w_out)
    close(out.y, ops.einsum("te,etd->td", probs, every))
    assert to_numpy(out.routing.keep).all()


def test_an_infinite_factor_drops_none(start, draw):
    params, x = start(), draw(9, 5)
    together = switch.switch_ffn(params, x, switch.expert_capacity(9, 4, math.inf)).y
    alone = [switch.switch_ffn(params, x[t:t + 1], 1).y for t in range(9)]
    close(together, ops.concatenate(alone, axis=0))


def test_all_to_one_expert(move, start, draw):
    params, x = start(), draw(7, 5)
    first = 0 * x[:, :1] + 1
    x, w_router = ops.concatenate([first, x[:, 1:]], axis=1), 0 * params.w_router
    w_router[0, 2] += 50.0
    leaves = tree.map(Tensor, params._replace(w_router=w_router))
    out = switch.switch_ffn(leaves, x, 3)
    assert lists(out.routing) == ([2] * 7, list(range(7)), [True] * 3 + [False] * 4)
    close(out.aux_loss.array, 4.0)
    by_w_in = to_numpy(grad((out.y * x).sum(), leaves).w_in)
    assert by_w_in[2].any() and not by_w_in[[0, 1, 3]].any()
    assert not to_numpy(out.y.array)[3:].any()


def test_everything_dropped(rng, start, draw):
    leaves = tree.map(Tensor, (start(), draw(6, 5)))
    out = switch.switch_ffn(*leaves, 0)
    assert not to_numpy(out.y.array).any()
    assert not any(to_numpy(g).any() for g in tree.leaves(grad(out.y.sum(), leaves)))
    assert to_numpy(grad(out.aux_loss, leaves)[0].w_router).any()     # they still count


@pytest.mark.parametrize("T, n_groups", [(0, 1), (0, 2), (4, 1), (4, 2)])
def test_nobody_to_route(move, start, draw, T, n_groups):
    """An empty batch, and one of padding alone: zeros and no loss."""
    leaves = tree.map(Tensor, (start(), draw(T, 5)))
    out = switch.switch_ffn(*leaves, 2, 1, n_groups, move(np.zeros(T, bool)))
    assert out.y.shape == (T, 5) and not to_numpy(out.y.array).any()
    assert float(out.aux_loss) == 0.0 and not to_numpy(out.routing.keep).any()
    assert not any(to_numpy(g).any()
                   for g in tree.leaves(grad(out.y.sum() + out.aux_loss, leaves)))
    routing = switch.route_no_token_left_behind(draw(T, 4), 2, n_groups=n_groups,
                                                used=move(np.zeros(T, bool)))
    assert not to_numpy(routing.keep).any()


def test_padding_takes_no_slot_and_no_part(rng, move, start, draw):
    """The rows that are used come out as if the others were not there."""
    params, x = start(), draw(10, 5)
    used = np.array([1, 0, 1, 1, 0, 1, 1, 0, 1, 1], bool)
    out = switch.switch_ffn(params, x, 2, used=move(used))
    alone = switch.switch_ffn(params, x[move(np.flatnonzero(used))], 2)
    close(out.y[move(np.flatnonzero(used))], alone.y)
    close(out.aux_loss, alone.aux_loss)
    assert not to_numpy(out.y)[~used].any()


def test_groups_do_not_see_each_other(start, draw):
    params, x = start(), draw(12, 5)
    out = switch.switch_ffn(params, x, 1, n_groups=3)
    alone = [switch.switch_ffn(params, x[i:i + 4], 1) for i in (0, 4, 8)]
    close(out.y, ops.concatenate([a.y for a in alone], axis=0))
    close(out.aux_loss, sum(a.aux_loss for a in alone) / 3)


def test_a_later_token_never_drops_an_earlier_one(start, draw):
    """Slots are given in order, so what follows may change as it will; by gates it may not."""
    params, x, other = start(), draw(12, 5), draw(12, 5)
    changed = ops.concatenate([x[:6], other[6:]], axis=0)
    first, again = (switch.switch_ffn(params, a, 2) for a in (x, changed))
    assert numbers(first.y[:6]) == numbers(again.y[:6])
    kept = []
    for a in (x, changed):
        probs = switch.router_probs(a, params.w_router)
        kept.append(lists(switch.route(probs, 1, order=gshard.highest_gate_first(probs)))[2][:6])
    assert kept[0] != kept[1]


def test_a_router_of_zeros(start, draw):
    params = start()
    out = switch.switch_ffn(params._replace(w_router=0 * params.w_router), draw(6, 5), 6)
    close(out.aux_loss, 1.0)
    assert lists(out.routing)[0] == [0] * 6


def test_experts_see_their_input_without_jitter(start, draw):
    params, x = start(), draw(6, 5)
    routed = switch.switch_ffn(params, x, 6, router_input=2 * x)      # surer, of the same expert
    plain = switch.switch_ffn(params, x, 6)
    assert lists(routed.routing) == lists(plain.routing)
    close(routed.y / routed.routing.gate, plain.y / plain.routing.gate)


def test_the_mean_of_the_pseudocodes_noise_cancels(rng, move, draw):
    logits, u = draw(5, 4), move(rng.random((5, 4)))
    noisy = switch.logits_noise_pseudocode(logits, u, eps=.3)
    close(ops.softmax(noisy), ops.softmax(logits + .3 * (2 * u - 1)))


def test_dropout_in_experts(rng, move, start, draw):
    params, x = start(), draw(8, 5)
    routing = switch.route(switch.router_probs(x, params.w_router), 3)
    every = move(np.ones((8, 6), bool))
    plain = expert_feed_forward(x, routing, params.w_in, params.w_out)
    close(switch.expert_dropout(x, routing, params.w_in, params.w_out, every, .5), 2 * plain)
    close(switch.expert_dropout(x, routing, params.w_in, params.w_out, every, 0), plain)
    # over both draws of one unit, the mean is what there is without
    half = move(np.arange(6) % 2 == 0) & every
    both = [switch.expert_dropout(x, routing, params.w_in, params.w_out, keep, .5)
            for keep in (half, ~half)]
    close((both[0] + both[1]) / 2, plain)
    # and with two choices each expert of a token meets the mask of that token
    two = switch.route(switch.router_probs(x, params.w_router), 8, k=2)
    mask = move(rng.random((8, 6)) > .5)
    apart = sum(switch.expert_dropout(x, switch.Routing(*(a[:, k:k + 1] for a in two)), params.w_in,
                                      params.w_out, mask, .5) for k in (0, 1))
    close(switch.expert_dropout(x, two, params.w_in, params.w_out, mask, .5), apart)


@pytest.mark.parametrize("project", [switch.switch_projection, switch.switch_ffn])
def test_attention_with_one_expert_is_attention(move, start, draw, project):
    """One matrix or network for all: the gates are 1."""
    networks = [start(E=1, D=4, H=6)._replace(w_out=draw(1, 6, 6)) for _ in range(3)]
    x, causal = draw(2, 5, 4), move(np.triu(np.full((5, 5), -np.inf), 1))
    projected = [x @ p.w_in[0] for p in networks]
    if project is switch.switch_ffn:
        projected = [ops.relu(y) @ p.w_out[0] for y, p in zip(projected, networks)]
    else:
        networks = [switch.SwitchProjectionParams(p.w_router, p.w_in) for p in networks]
    params = switch.SwitchAttentionParams(*networks, w_out=draw(2, 3, 4))
    out = switch.switch_attention(params, x, 10, project, causal)
    heads = [y.reshape(2, 5, 2, 3).swapaxes(1, 2) for y in projected]
    expected = ops.einsum("basw,awd->bsd", ops.attention(*heads, causal), params.w_out)
    close(out.y, expected)
    close(out.aux_loss, 3.0)


def test_geglu_by_its_formula(start, draw):
    params, x, w_gate = start(), draw(6, 5), draw(4, 5, 6)
    routing = switch.route(switch.router_probs(x, params.w_router), 2)
    y = to_numpy(switch.expert_geglu(x, routing, w_gate, params.w_in, params.w_out))
    for t, (e, keep) in enumerate(zip(lists(routing)[0], lists(routing)[2])):
        hidden = ops.gelu(x[t] @ w_gate[e]) * (x[t] @ params.w_in[e])
        np.testing.assert_allclose(
            y[t], keep * to_numpy(routing.gate[t, 0] * (hidden @ params.w_out[e])), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_everything_keeps_its_dtype(rng, move, start, draw, dtype):
    params, x = tree.map(lambda a: a.astype(dtype), (start(), draw(6, 5)))
    used, u = move(np.arange(6) > 1), move(rng.random((6, 5))).astype(dtype)
    out = switch.switch_ffn(params, x, 2, used=used, router_input=switch.jitter(x, u))
    probs = switch.router_probs(x, params.w_router)
    expert = out.routing.expert
    for a in (out.y, out.aux_loss, out.routing.gate, switch.switch_ffn_einsum(params, x, 2).y,
              switch.all_choices_load_balancing_loss(probs, expert),
              switch.flaxformer_load_balancing_loss(probs, expert),
              switch.deepspeed_load_balancing_loss(probs, expert, used),
              switch.switch_ffn_transformers(params, x, 2, 2).y,
              switch.input_dropout(x, u > .1), switch.router_z_loss(probs),
              switch.router_z_loss(probs, used)):
        assert a.dtype == dtype


# -- Selective precision -------------------------------------------------------------------------

def test_where_the_up_cast_happens(rng, move):
    """Who is chosen otherwise than in float64, of 4096 tokens that are bfloat16 themselves."""
    D, T, flips = 256, 4096, {}
    rounded = ops.round_to_bfloat16
    x = rounded(move(rng.standard_normal((T, D)).astype("float32")))
    for E in (8, 64, 256):
        w_router = rounded(move(switch.truncated_normal(rng, (D, E), D).astype("float32")))
        exact = top_k(switch.router_probs(x.astype("float64"), w_router.astype("float64")), 1)
        probs = {"input": switch.router_probs_cast_input(x, w_router),
                 "logits": switch.router_probs_cast_logits(x, w_router),
                 "probs": switch.router_probs_cast_probs(x, w_router)}
        flips[E] = {name: float((to_numpy(top_k(p, 1)) != to_numpy(exact)).mean())
                    for name, p in probs.items()}
        largest = np.sort(to_numpy(probs["probs"]), axis=1)[:, -2:]
        assert (largest[:, 0] == largest[:, 1]).mean() >= 0.01        # ties, which decide
        assert flips[E]["input"] <= 1e-3
        assert flips[E]["probs"] > flips[E]["logits"]
        assert 1e-4 < abs(to_numpy(probs["probs"]).sum(axis=1) - 1).max() < 0.01
    assert flips[8]["logits"] < flips[64]["logits"] < flips[256]["logits"]


def test_experts_in_bfloat16(start, draw):
    """Off by what bfloat16 is: 2^-9 of each factor, and nothing of a token that is dropped."""
    params, x = tree.map(lambda a: a.astype("float32"), (start(), draw(12, 5)))
    routing = switch.route(switch.router_probs_cast_input(x, params.w_router), 2)
    y = switch.expert_feed_forward_bfloat16(x, routing, params.w_in, params.w_out)
    exact = expert_feed_forward(x, routing, params.w_in, params.w_out)
    assert y.dtype == "float32"
    assert numbers(ops.round_to_bfloat16(y)) == numbers(y)
    error = abs(to_numpy(y - exact)).max() / abs(to_numpy(exact)).max()
    assert 2 ** -11 < error < 2 ** -5
    keep = to_numpy(routing.keep)[:, 0]
    assert not keep.all() and not to_numpy(y)[~keep].any()


def test_gradients_pass_the_rounding(start, draw):
    """Those of float32 but for the values that were rounded on the way."""
    params, x = tree.map(lambda a: a.astype("float32"), (start(), draw(8, 5)))
    routing = switch.route(switch.router_probs(x, params.w_router), 8)
    flows = []
    for experts in (expert_feed_forward, switch.expert_feed_forward_bfloat16):
        w_in, w_out = Tensor(params.w_in), Tensor(params.w_out)
        flows.append(grad(experts(x, routing, w_in, w_out).sum(), (w_in, w_out)))
    for exact, rounded in zip(*flows):
        assert abs(to_numpy(rounded - exact)).max() < 2 ** -5 * abs(to_numpy(exact)).max()


# -- Starts --------------------------------------------------------------------------------------

@pytest.mark.numpy_only("draws are made in NumPy")
def test_a_truncated_start(rng):
    w = switch.truncated_normal(rng, (400, 500), fan_in=50, scale=.1)
    sigma = math.sqrt(.1 / 50)
    assert abs(w).max() <= 2 * sigma and abs(w).max() > 1.99 * sigma
    # of 200,000 draws the variance is known to 0.3 per cent
    assert w.var() == pytest.approx(.77374 * sigma ** 2, rel=.01)
    assert switch.truncation_corrected(w).var() == pytest.approx(sigma ** 2, rel=.01)
    # a tenth of the scale is a standard deviation smaller by the root of ten
    larger = switch.truncated_normal(np.random.default_rng(0), (400, 500), 50, 1.0)
    np.testing.assert_allclose(larger, math.sqrt(10) * w, rtol=1e-12)


@pytest.mark.numpy_only("draws are made in NumPy")
@pytest.mark.parametrize("init, router, inward, outward", [
    # scale 0.1, D = 50, H = 80, fan-ins of 50, 50 and 80, truncated
    (switch.init, .8796 * math.sqrt(.1 / 50), .8796 * math.sqrt(.1 / 50),
     .8796 * math.sqrt(.1 / 80)),
    (switch.init_flaxformer, .02, .8796 * math.sqrt(.1 / 50), .8796 * math.sqrt(.1 / 80)),
    (switch.init_transformers, 1.0, 50 ** -.5, 50 ** -.5)])
def test_starts(rng, init, router, inward, outward):
    params = init(rng, n_experts=40, width=50, hidden=80)
    assert [w.shape for w in params] == [(50, 40), (40, 50, 80), (40, 80, 50)]
    assert params.w_router.std() == pytest.approx(router, rel=.05)
    assert params.w_in.std() == pytest.approx(inward, rel=.01)
    assert params.w_out.std() == pytest.approx(outward, rel=.01)


# -- The tables ----------------------------------------------------------------------------------

BASE, LARGE, XXL = (768, 2048, 64, 12, 12), (1024, 2816, 64, 16, 24), (4096, 10240, 64, 64, 24)


@pytest.mark.numpy_only("numbers, no arrays")
@pytest.mark.parametrize("weights, printed", [
    (switch.t5_parameters(*BASE), .2), (switch.t5_parameters(*LARGE), .7),
    (switch.t5_parameters(*XXL), 11), (switch.switch_parameters(128, 12, *BASE), 7),
    (switch.expert_parameters(128, 24, *LARGE[:2]), 26),      # the experts alone; with the rest, 27
    # all 30 layers are Switch layers, of two matrices
    (switch.switch_parameters(2048, 30, 2080, 6144, 64, 32, 15, n_matrices=2), 1571),
    (switch.switch_parameters(128, 24, *XXL), 394)])          # printed 395; ours is 394.54
def test_sizes_of_table_9(weights, printed):
    """In billions, cut off to the digits that are printed."""
    digits = 10 if printed < 1 else 1
    assert int(digits * weights / 1e9) / digits == printed


@pytest.mark.numpy_only("numbers, no arrays")
def test_a_misprint_in_table_9():
    """Switch-XXL's 395 billion weights take 128 experts: with the 64 that are printed, 201."""
    assert round(switch.switch_parameters(128, 24, *XXL) / 1e9) == 395
    assert round(switch.switch_parameters(64, 24, *XXL) / 1e9) == 201


@pytest.mark.numpy_only("numbers, no arrays")
@pytest.mark.parametrize("n_experts, printed, compressed", [
    (16, 1.1, .82), (32, 2.0, .90), (64, 3.8, .95), (128, 7.4, .97), (256, 14.7, .99)])
def test_sizes_of_table_7(n_experts, printed, compressed):
    weights = switch.switch_parameters(n_experts, 12, *BASE)
    assert round(weights / 1e9, 1) == printed
    # the student's 223 million save .79, .89, .94, .97 and .98: what is printed is up to .03 more
    assert 0 <= compressed - (1 - switch.t5_parameters(*BASE) / weights) < .03


@pytest.mark.numpy_only("numbers, no arrays")
@pytest.mark.parametrize("student, dense, teacher, printed", [
    (-1.631, -1.636, -1.444, 3), (-1.598, -1.636, -1.444, 20), (-1.580, -1.636, -1.444, 29),
    (-1.587, -1.636, -1.505, 37), (-1.585, -1.636, -1.474, 32), (-1.579, -1.636, -1.444, 30),
    (-1.582, -1.636, -1.432, 27), (-1.578, -1.636, -1.427, 28), (76.6, 74.6, 81.3, 30)])
def test_shares_of_tables_6_to_8(student, dense, teacher, printed):
    """To the rounding of what is printed: 0.001 of a difference of 0.13 to 0.21."""
    assert 100 * switch.share_kept(student, dense, teacher) == pytest.approx(printed, abs=1.0)


# -- Bad input -----------------------------------------------------------------------------------

@pytest.mark.numpy_only("numbers, no arrays")
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("T, E, factor", [(-1, 4, 1.0), (8, 0, 1.0), (8, 4, 0.0), (8, 4, -1.0),
                                          (8, 4, math.nan)])
def test_capacities_that_mean_nothing(rule, T, E, factor):
    with pytest.raises(ValueError, match="needs tokens, experts and a positive, finite capacity"):
        rule(T, E, factor)


@pytest.mark.numpy_only("numbers, no arrays")
def test_capacity_without_a_slot():
    with pytest.raises(ValueError, match="3 tokens and a factor of 1.0 leave 8 experts no slot"):
        switch.expert_capacity(3, 8, 1.0)
    with pytest.raises(ValueError, match="expert_capacity_mesh: needs .*finite.* got 8, 4 and inf"):
        switch.expert_capacity_mesh(8, 4, math.inf)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e308])
def test_what_is_not_finite_is_not_routed(move, bad):
    x = move(np.array([[1., bad], [0, 0]]))
    with np.errstate(over="ignore", invalid="ignore"):
        with pytest.raises(ValueError, match="router_logits: .* finite.* got NaN or infinity"):
            switch.router_probs(x, move(np.array([[1., 2], [10, 20]])))


def test_huge_logits(move):
    probs = switch.router_probs(move(np.array([[1e4, -1e4]])), move(np.eye(2)))
    assert numbers(probs) == [[[1.0, 0.0]]]


def test_bad_input_is_refused(rng, move, start, draw):
    params, x = start(), draw(6, 5)
    probs = switch.router_probs(x, params.w_router)
    labels, ones = top_k(probs, 1)[:, 0], move(np.ones(6, int))
    refused = [
        ("route: the capacity must be 0 or more; got -1", switch.route, probs, -1),
        ("capacity must be 0 or more; got nan", switch.route_no_token_left_behind, probs, math.nan),
        ("k must be between 1 and 4 experts; got 5", switch.route, probs, 1, 5),
        ("groups that divides 6 tokens; got 4", switch.route, probs, 1, 1, 4),
        ("divides 6 tokens; got 0", switch.load_balancing_loss, probs, labels[:, None], 0),
        ("used must be 6 booleans.*got bool of shape .5,", switch.route, probs, 1, 1, 1,
         ones[1:] > 0),
        ("used must be 6 booleans.*got int64", switch.dispatched_fraction, labels[:, None], 4, 1,
         ones),
        ("between 1 and 4 experts; got 0", switch.route_no_token_left_behind, probs, 1, 0),
        ("jitter: eps must lie in .0, 1.; got 1", switch.jitter, x, x, 1),
        ("logits_noise_pseudocode: eps", switch.logits_noise_pseudocode, x, x, -.1),
        ("dropout: the rate must lie in .0, 1.; got 1.0", switch.input_dropout, x, x > 0, 1.0),
        ("training_loss: alpha must be 0 or more", switch.training_loss, x, [], -1e-2),
        ("share must lie in .0, 1.; got 1.5", switch.distillation_loss, probs, labels, probs, 1.5),
        ("scale and fan-in must be positive; got 0", switch.truncated_normal, rng, (2, 3), 3, 0)]
    for message, function, *args in refused:
        with pytest.raises(ValueError, match=message):
            function(*args)

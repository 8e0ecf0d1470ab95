"""The Switch Transformer, and T5: checkpoints of transformers 4.44.2 with runs of them; its own
routing; what is refused."""
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from minimoe import nn, ops, tree
from minimoe.autodiff.check import check_vjp
from minimoe.autodiff.tensor import Tensor, grad
from minimoe.backend import to_numpy
from minimoe.data.huggingface import read_checkpoint
from minimoe.oracle.disagreements import disagreements
from minimoe.oracle.runs import Run, read_arrays
from minimoe.papers import switch_2021 as switch
from tests.flat import flat, unflat

RECORDED = Path(__file__).resolve().parents[2] / "reference_runs" / "recorded" / "transformers"
CASES = sorted(path.stem for path in RECORDED.glob("*.npz"))


# -- Checkpoints: logits, routing, losses and all gradients --------------------------------------

def read_case(case, move):
    """Configuration, tensors, inputs and outputs."""
    config, tensors = read_checkpoint(RECORDED / case)
    arrays = read_arrays(RECORDED / f"{case}.npz")
    inputs = {key[3:]: move(a) for key, a in arrays.items() if key.startswith("in.")}
    return config, tensors, inputs, {k[4:]: a for k, a in arrays.items() if k.startswith("out.")}


def drawn_keeps(params, inputs):
    """The draws for dropout, in the order in which they were recorded."""
    draws = iter(inputs[key] for key in sorted(inputs) if key.startswith("keep."))
    return [nn.T5StackKeep(next(draws), [nn.T5LayerKeep(*(
        next(draws) if p.cross is not None or not name.startswith("cross") else None
        for name in nn.T5LayerKeep._fields)) for p in stack.layers], next(draws))
        for stack in (params.encoder, params.decoder)]


def with_dropout(params, inputs, rate, max_distance, epsilon, **_):
    keep = drawn_keeps(params, inputs)
    settings = {"rate": rate, "max_distance": max_distance, "epsilon": epsilon}
    memory = nn.t5_encode(params, inputs["source"], inputs["source_used"], keep=keep[0], **settings)
    y = nn.t5_decode(params, inputs["target"], memory, inputs["target_used"],
                     inputs["source_used"], keep=keep[1], **settings)
    return switch.SwitchTransformerOutput(nn.t5_logits(params, y), [], [], [])


def loss_of(logits, label):
    """Mean cross-entropy where there is a label."""
    there = label >= 0
    losses = ops.cross_entropy(logits, ops.where(there, label, 0))
    return ops.where(there, losses, 0.0).sum() / int(there.sum())


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_computes_what_transformers_does(case, move):
    config, tensors, inputs, recorded = read_case(case, move)
    arrays, settings = switch.from_transformers(config, tensors)
    params = tree.map(Tensor, move(arrays))
    if any(key.startswith("keep.") for key in inputs):
        out = with_dropout(params, inputs, config["dropout_rate"], **settings)
    else:
        out = switch.switch_transformer_transformers(
            params, inputs["source"], inputs["target"], source_used=inputs["source_used"],
            target_used=inputs["target_used"], **settings)

    B = len(inputs["source"])
    computed = {"logits": out.logits}
    for i, (probs, routing) in enumerate(zip(out.probs, out.routings)):
        computed[f"probs.{i}"] = probs.reshape(B, -1, config["num_experts"])
        computed[f"expert.{i}"] = (routing.expert * routing.keep).reshape(B, -1)
    loss = loss_of(out.logits, inputs["label"])
    if "encoder_aux_loss" in recorded:
        computed |= dict(zip(("encoder_aux_loss", "decoder_aux_loss"), out.aux_losses))
        loss = loss + config["router_aux_loss_coef"] * sum(out.aux_losses)
    computed = tree.map(lambda y: getattr(y, "array", y), {**computed, "loss": loss})
    theirs = {k.removeprefix("grad."): recorded.pop(k) for k in list(recorded)
              if k.startswith("grad.")}
    assert disagreements(computed, Run(tensors, {}, {}, recorded)) == []
    grads, _ = switch.from_transformers(config, theirs)
    assert disagreements(grad(loss, params), Run({}, {}, {}, tree.named_leaves(grads))) == []


@pytest.mark.numpy_only("reads what was recorded")
def test_tokens_are_dropped_in_the_case_that_says_so():
    config, tensors, inputs, _ = read_case("switch_dropping_float64", lambda a: a)
    params, settings = switch.from_transformers(config, tensors)
    out = switch.switch_transformer_transformers(params, inputs["source"], inputs["target"],
                                                 **settings)
    dropped = [int((~routing.keep).sum()) for routing in out.routings]
    assert len(dropped) == 3 and min(dropped) > 0
    everything = {**settings, "capacity": 8}
    others = switch.switch_transformer_transformers(params, inputs["source"], inputs["target"],
                                                    **everything)
    assert abs(others.logits - out.logits).max() > 1e-3


def test_sequences_are_routed_apart_in_transformers(move):
    config, tensors, inputs, _ = read_case("switch_dropping_float64", move)
    params, settings = switch.from_transformers(config, tensors)
    params, (source, target) = move(params), (inputs["source"], inputs["target"])
    both, second = (switch.switch_transformer_transformers(params, source[n:], target[n:],
                                                           **settings).logits for n in (0, 1))
    np.testing.assert_allclose(to_numpy(both[1:]), to_numpy(second), rtol=0, atol=1e-12)


# -- By hand -------------------------------------------------------------------------------------

@pytest.mark.numpy_only("no arrays")
@pytest.mark.parametrize("step, expected", [
    (0, []), (1, [0, 1, 2, 3, 4, 5]), (2, [1, 3, 5]), (3, [1, 4]), (6, [1])])
def test_which_layers_are_switch_layers(step, expected):
    assert [i for i in range(6) if switch.is_switch_layer(i, step)] == expected


def test_start(rng, move):
    p = move(switch.init_transformer(rng, vocabulary=40, width=32, n_heads=2, head_width=8,
                                     hidden=64, n_layers=4, n_experts=3, scale=0.1))
    kinds = [[type(layer.feed_forward) for layer in stack.layers]
             for stack in (p.encoder, p.decoder)]
    assert kinds == [[nn.FeedForwardParams, switch.SwitchParams] * 2] * 2
    dense, sparse = p.encoder.layers[:2]
    assert sparse.feed_forward.w_in.shape == (3, 32, 64)
    for w, fan_in in [(dense.attention.w_query, 32 * 8), (dense.feed_forward.w_out, 64),
                      (sparse.feed_forward.w_in, 32), (sparse.feed_forward.w_router, 32)]:
        scaled = to_numpy(w) / np.sqrt(0.1 / fan_in)
        assert abs(scaled).max() <= 2
        assert abs(scaled.std() - 0.8796) < 4 * 0.8796 / np.sqrt(2 * w.size)
    assert abs(float(p.embedding.std()) - 1) < 4 / np.sqrt(2 * p.embedding.size)


# -- The paper's routing -------------------------------------------------------------------------

V, B, S, R, D = 13, 2, 6, 4, 6
ROOMY = partial(switch.expert_capacity, capacity_factor=np.inf)
TIGHT = partial(switch.expert_capacity, capacity_factor=0.75)


@pytest.fixture
def params(rng, move):
    """Two layers a stack, with routers that are sure of themselves."""
    drawn = switch.init_transformer(rng, V, D, n_heads=2, head_width=3, hidden=7, n_layers=2,
                                    n_experts=3, scale=1.0)
    return move(tree.map(lambda a: a * 3 if a.shape == (D, 3) else a, drawn))


@pytest.fixture
def source(rng, move):
    return move(rng.integers(2, V, (B, S)))


@pytest.fixture
def target(rng, move):
    return move(rng.integers(2, V, (B, R)))


def layers_of(params):
    return [layer for stack in (params.encoder, params.decoder) for layer in stack.layers]


def close(a, b):
    np.testing.assert_allclose(to_numpy(a), to_numpy(b), rtol=0, atol=1e-12)


def test_without_switch_layers_it_is_t5(rng, source, target, move):
    dense = move(switch.init_transformer(rng, V, D, 2, 3, 7, n_layers=2, n_experts=3, step=0))
    out = switch.switch_transformer(dense, source, target, TIGHT)
    assert (to_numpy(out.logits) == to_numpy(nn.t5(dense, source, target))).all()
    assert out.aux_losses == out.probs == out.routings == []


def test_one_expert_is_the_dense_layer(rng, source, target, move):
    p = move(switch.init_transformer(rng, V, D, 2, 3, 7, n_layers=2, n_experts=1))
    out = switch.switch_transformer(p, source, target, ROOMY)

    def dense(layer):
        if isinstance(layer.feed_forward, nn.FeedForwardParams):
            return layer
        _, w_in, w_out = layer.feed_forward
        return layer._replace(feed_forward=nn.FeedForwardParams(w_in[0], w_out[0]))

    as_t5 = p._replace(encoder=p.encoder._replace(layers=list(map(dense, p.encoder.layers))),
                       decoder=p.decoder._replace(layers=list(map(dense, p.decoder.layers))))
    close(out.logits, nn.t5(as_t5, source, target))
    assert [float(loss) for loss in out.aux_losses] == [1.0, 1.0]


def test_gradient(params, rng, source, target, move):
    source_used, target_used = move(np.arange(S) < [[S], [4]]), move(np.arange(R) < [[R], [3]])
    out = switch.switch_transformer(params, source, target, TIGHT, source_used, target_used)
    assert not to_numpy(out.routings[0].keep)[to_numpy(source_used).ravel()].all()

    def loss(vector):
        out = switch.switch_transformer(unflat(vector, params), source, target, TIGHT, source_used,
                                        target_used)
        return switch.training_loss(out.logits, out.aux_losses)

    check_vjp(loss, flat(params), rng=rng)


def test_padding_is_not_routed(params, source, target, move):
    source_used, target_used = move(np.arange(S) < [[S], [4]]), move(np.arange(R) < [[R], [3]])

    def run(source, target):
        out = switch.switch_transformer(params, source, target, TIGHT, source_used, target_used)
        used = to_numpy(target_used)
        return [to_numpy(out.logits)[used], *map(to_numpy, out.aux_losses)], out.routings

    found, routings = run(source, target)
    for routing, used in zip(routings, (source_used, target_used)):
        assert not to_numpy(routing.keep)[~to_numpy(used).ravel()].any()
    source, target = source.copy(), target.copy()
    source[1, 4:], target[1, 3:] = 2, 3
    for before, after in zip(found, run(source, target)[0]):
        close(before, after)


def test_a_sequence_sees_none_of_those_behind_it(params, source, target):
    # queues are in order of tokens: what comes later in the batch turns nobody away
    before = switch.switch_transformer(params, source, target, TIGHT)
    assert not all(routing.keep.all() for routing in before.routings)
    source, target = source.copy(), target.copy()
    source[1], target[1] = 5, 6
    after = switch.switch_transformer(params, source, target, TIGHT)
    close(before.logits[:1], after.logits[:1])


def test_groups_have_capacities_of_their_own(params, source, target):
    together = switch.switch_transformer(params, source, target, TIGHT, n_groups=B)
    for n in range(B):
        apart = switch.switch_transformer(params, source[n:n + 1], target[n:n + 1], TIGHT)
        close(together.logits[n:n + 1], apart.logits)


def test_jitter_is_of_the_routers_input_alone(params, rng, source, target, move):
    calm = switch.switch_transformer(params, source, target, ROOMY)
    middle, drawn = ([move(a) for a in draws] for draws in (
        [np.full((B * n, D), 0.5) for n in (S, R)], [rng.random((B * n, D)) for n in (S, R)]))
    close(switch.switch_transformer(params, source, target, ROOMY, jitter_draws=middle).logits,
          calm.logits)
    jittered = switch.switch_transformer(params, source, target, ROOMY, jitter_draws=drawn)
    # of the first Switch layer no more changes than the gate, which is its router's alone
    assert (to_numpy(jittered.routings[0].expert) == to_numpy(calm.routings[0].expert)).all()
    assert 1e-4 < abs(to_numpy(jittered.probs[0]) - to_numpy(calm.probs[0])).max() < 0.1


def test_draws_for_jitter_must_be_as_many_as_switch_layers(params, source, target, move):
    for n in (1, 3):
        draws = [move(np.full((B * S, D), 0.5)), *[move(np.full((B * R, D), 0.5))] * (n - 1)]
        with pytest.raises(ValueError, match=f"jitter for each of 2 Switch layers; got {n}"):
            switch.switch_transformer(params, source, target, ROOMY, jitter_draws=draws)


def test_dropout_has_another_rate_in_experts(params, rng, source, target, move):
    def run(rate, expert_rate, keep):
        return switch.switch_transformer(params, source, target, ROOMY, keep=keep, rate=rate,
                                         expert_rate=expert_rate).logits

    keep = [move(nn.t5_keep(rng, stack, shape, rate=0.0, n_read=S))
            for stack, shape in ((params.encoder, (B, S)), (params.decoder, (B, R)))]
    plain = switch.switch_transformer(params, source, target, ROOMY).logits
    close(run(0.0, 0.0, keep), plain)
    # nothing is dropped, but what is kept is scaled: in the experts by 1 / (1 - 1/2)
    doubled = params
    for name in ("encoder", "decoder"):
        stack = getattr(params, name)
        sparse = stack.layers[1].feed_forward
        layer = stack.layers[1]._replace(feed_forward=sparse._replace(w_out=2 * sparse.w_out))
        doubled = doubled._replace(**{name: stack._replace(layers=[stack.layers[0], layer])})
    close(run(0.0, 0.5, keep),
          switch.switch_transformer(doubled, source, target, ROOMY).logits)


# -- Checkpoints that are refused ----------------------------------------------------------------

@pytest.mark.numpy_only("nothing is computed")
@pytest.mark.parametrize("changes, message", [
    ({"model_type": "bert"}, "needs a model_type of switch_transformers or t5; got bert"),
    ({"model_type": None}, "got None"),
    ({"dense_act_fn": "gelu_new"}, "dense_act_fn must be relu; got gelu_new"),
    ({"feed_forward_proj": "gated-gelu"}, "feed_forward_proj must be relu; got gated-gelu"),
    ({"is_gated_act": True}, "is_gated_act must be False; got True"),
    ({"router_bias": True}, "router_bias must be False; got True"),
    ({"num_experts": 4}, r"tensors are missing: encoder.block.1.layer.1.mlp.experts.expert_3.wi"
                         r".weight, .*; of another shape: .*router.classifier.weight \(3, 8\) for "
                         r"\(4, 8\)"),
    ({"decoder_sparse_step": 0}, r"missing: decoder.block.1.layer.2.mlp.wi.weight, "
                                 r"decoder.block.1.layer.2.mlp.wo.weight; unexpected: .* and 4 "),
    ({"d_ff": 13}, r"of another shape: .* and \d+ more"),
    ({"tie_word_embeddings": False}, "tensors are missing: lm_head.weight$"),
])
def test_a_checkpoint_that_does_not_fit_is_refused(changes, message):
    config, tensors = read_checkpoint(RECORDED / "switch_dropping_float64")
    with pytest.raises(ValueError, match=f"^from_transformers: .*{message}"):
        switch.from_transformers({**config, **changes}, tensors)


@pytest.mark.numpy_only("nothing is computed")
def test_a_configuration_that_lacks_sizes_is_refused():
    config, tensors = read_checkpoint(RECORDED / "switch_dropping_float64")
    for key in ("d_kv", "num_experts"):
        del config[key]
    with pytest.raises(ValueError, match="from_transformers: the configuration lacks d_kv, "
                                         "num_experts"):
        switch.from_transformers(config, tensors)


@pytest.mark.numpy_only("nothing is computed")
def test_copies_of_the_embedding_and_an_old_leftover_are_passed_over():
    config, tensors = read_checkpoint(RECORDED / "switch_dropping_float64")
    shared = tensors["shared.weight"]
    copies = {"encoder.embed_tokens.weight": shared, "decoder.embed_tokens.weight": shared,
              "lm_head.weight": shared,
              "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": shared}
    params, _ = switch.from_transformers(config, {**tensors, **copies})
    assert params.head is None and params.embedding is shared


@pytest.mark.numpy_only("nothing is computed")
def test_settings_are_those_of_the_configuration():
    config, tensors = read_checkpoint(RECORDED / "switch_dropping_float64")
    _, settings = switch.from_transformers({**config, "layer_norm_epsilon": 1e-3}, tensors)
    assert settings == {"capacity": 2, "max_distance": 12, "epsilon": 1e-3}
    for key in ("expert_capacity", "relative_attention_max_distance", "layer_norm_epsilon",
                "encoder_sparse_step", "decoder_sparse_step"):
        del config[key]
    _, settings = switch.from_transformers(config, tensors)      # theirs where nothing is said
    assert settings == {"capacity": 64, "max_distance": 128, "epsilon": 1e-6}

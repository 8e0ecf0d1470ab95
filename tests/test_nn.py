from pathlib import Path

import numpy as np
import pytest

from minimoe import nn, ops, tree
from minimoe.autodiff.check import check_vjp
from minimoe.autodiff.tensor import Tensor, grad
from minimoe.backend import to_numpy
from minimoe.oracle.runs import read_arrays

RECORDED = Path(__file__).resolve().parents[1] / "reference_runs" / "recorded" / "nn"
CASES = sorted(path.stem for path in RECORDED.glob("*.npz"))


# -- Recorded runs: values and all gradients -----------------------------------------------------
# Each layer from (settings, differentiated, plain): outputs by name.

def attention(settings, given, plain):
    params = nn.AttentionParams(**{name: given[name] for name in nn.AttentionParams._fields})
    y = nn.multi_head_attention(params, given["x"], given.get("memory", given["x"]),
                                plain.get("mask"), given.get("bias"))
    return {"y": y}


def hidden_rows(settings, given, plain):
    bias = ops.where(plain["mask"], 0.0, -np.inf)
    return {"y": ops.attention(given["query"], given["key"], given["value"], bias)}


def lstm(settings, given, plain):
    n_layers = sum(name.endswith(".b") for name in given)
    layers = [nn.LSTMParams(*(given[f"{i}.{name}"] for name in nn.LSTMParams._fields))
              for i in range(n_layers)]
    starts = None
    if "hidden" in given:
        starts = [(given["hidden"][i], given["cell"][i]) for i in range(n_layers)]
    outputs = nn.stacked_lstm(layers, given["x"], starts)
    return {"y": outputs[-1].hidden, "cell": ops.stack([out.cell for out in outputs]),
            "hidden": ops.stack([out.hidden[-1] for out in outputs])}


LAYERS = {
    "linear": lambda settings, given, plain: {
        "y": nn.linear(nn.LinearParams(given["w"], given["b"]), given["x"])},
    "layer_norm": lambda settings, given, plain: {
        "y": nn.layer_norm(nn.LayerNormParams(given["scale"], given["shift"]), given["x"],
                           settings["epsilon"])},
    "embedding": lambda settings, given, plain: {
        "y": nn.embedding(nn.EmbeddingParams(given["table"]), plain["index"])},
    "attention": attention,
    "hidden_rows": hidden_rows,
    "relative_causal": lambda settings, given, plain: {
        "y": nn.causal_relative_position_bias(given["table"], **settings)},
    "relative": lambda settings, given, plain: {
        "y": nn.relative_position_bias(given["table"], **settings)},
    "lstm": lstm,
}


def layer_of(case):
    return LAYERS[max((name for name in LAYERS if case.startswith(name)), key=len)]


@pytest.mark.parametrize("case", CASES)
def test_layer_is_that_of_torch(case, move):
    arrays = read_arrays(RECORDED / f"{case}.npz")
    parts = {"in": {}, "param": {}, "set": {}, "out": {}}
    for key, array in arrays.items():
        group, _, name = key.partition(".")
        parts[group][name] = array
    cotangents = {name: move(parts["in"].pop(name))
                  for name in list(parts["in"]) if name.startswith("cotangent.")}
    given = {**parts["in"], **parts["param"]}
    plain = {name: move(given.pop(name)) for name in ("index", "mask") if name in given}
    tensors = tree.map(Tensor, move(given))
    settings = {name: array.item() for name, array in parts["set"].items()}

    outputs = layer_of(case)(settings, tensors, plain)
    loss = sum((y * cotangents[f"cotangent.{name}"]).sum() for name, y in outputs.items())
    found = {**tree.map(lambda y: y.array, outputs),
             **{f"grad.{name}": flow for name, flow in grad(loss, tensors).items()}}
    assert found.keys() == parts["out"].keys()
    for name, expected in parts["out"].items():
        # every logit of a query moves alike with b_key, so its gradient is rounding alone
        like = parts["out"]["grad.w_key"] if name == "grad.b_key" else expected
        assert abs(to_numpy(found[name]) - expected).max() <= 1e-12 * abs(like).max(), name


# -- Gradients: the layers as they are called ----------------------------------------------------

def test_attention_gradient(rng, move):
    params = tree.map(lambda p: p + 0.3 * rng.standard_normal(p.shape),
                      nn.attention_init(rng, width=6, n_heads=2))
    x, memory = rng.standard_normal((2, 5, 6)), rng.standard_normal((2, 4, 6))
    table, mask = rng.standard_normal((8, 2)), rng.random((2, 1, 5, 4)) < 0.5
    mask[0, 0, 1] = False
    params, x, memory, table, mask = move((params, x, memory, table, mask))

    def layer(params, x, memory, table):
        bias = nn.relative_position_bias(table, 5, 4, max_distance=16)
        return nn.multi_head_attention(params, x, memory, mask, bias)

    check_vjp(layer, params, x, memory, table, rng=rng)


def test_lstm_gradient(rng, move):
    layers = [nn.lstm_init(rng, 3, 4), nn.lstm_init(rng, 4, 2)]
    layers, x = move((layers, rng.standard_normal((5, 2, 3))))

    def both(layers, x):
        below, above = nn.stacked_lstm(layers, x)
        return ops.concatenate([above.hidden.reshape(-1), above.cell.reshape(-1),
                                below.cell.reshape(-1)])

    check_vjp(both, layers, x, rng=rng)


# -- Properties ----------------------------------------------------------------------------------

def test_a_position_under_a_causal_mask_does_not_see_what_follows(rng, move):
    assert to_numpy(nn.causal_mask(move(np.ones((2, 3, 1))))).tolist() == [
        [True, False, False], [True, True, False], [True, True, True]]
    params = move(nn.attention_init(rng, width=4, n_heads=2))
    x = move(rng.standard_normal((3, 5, 4)))
    later = x.copy()
    later[:, 3:] += 1
    y, z = (to_numpy(nn.multi_head_attention(params, a, a, nn.causal_mask(a))) for a in (x, later))
    assert np.array_equal(y[:, :3], z[:, :3])
    assert (y[:, 3:] != z[:, 3:]).all()


def test_a_position_that_may_read_nothing_gives_the_bias_alone(rng, move):
    params = nn.attention_init(rng, width=4, n_heads=2)._replace(b_out=np.arange(4.0))
    params, x = move((params, rng.standard_normal((1, 3, 4))))
    mask = move(np.array([[True, False, True], [False, False, False], [True, True, True]]))
    table = move(rng.standard_normal((4, 2)))
    for bias in (None, nn.relative_position_bias(table, 3, 3, max_distance=8)):
        y = to_numpy(nn.multi_head_attention(params, x, x, mask, bias))
        assert y[0, 1].tolist() == [0, 1, 2, 3]


def test_large_logits_neither_overflow_nor_lose_the_softmax(rng, move):
    params = tree.map(lambda p: 1e3 * p, nn.attention_init(rng, width=4, n_heads=1))
    params, x = move((params, rng.standard_normal((1, 6, 4))))
    value = to_numpy(nn.linear(nn.LinearParams(params.w_value[:, 0], params.b_value[0]), x))
    y = to_numpy(nn.multi_head_attention(params, x, x))
    read = np.linalg.solve(to_numpy(params.w_out[0]).T, y[0].T).T    # each row one row of value
    assert abs(read[:, None] - value[0]).max(axis=-1).min(axis=-1) == pytest.approx(0, abs=1e-6)


def test_an_mlp_by_hand(move):
    first = nn.LinearParams(np.array([[1.0, -1.0]]), np.array([0.0, 1.0]))
    last = nn.LinearParams(np.array([[2.0], [3.0]]), np.array([-5.0]))
    # x = 2: hidden (2, -1), relu (2, 0), 2 * 2 - 5;  x = -3: hidden (-3, 4), relu (0, 4), 3 * 4 - 5
    layers, x = move(((first, last), np.array([[2.0], [-3.0]])))
    assert to_numpy(nn.mlp(layers, x)).tolist() == [[-1], [7]]
    assert to_numpy(nn.mlp(layers, x, activation=ops.negative)).tolist() == [[-6], [-11]]


def test_a_bias_that_is_none_is_left_out(rng, move):
    x = move(rng.standard_normal((2, 3, 4)))
    with_zeros = move([nn.linear_init(rng, 4, 2)._replace(b=np.zeros(2)),
                       nn.attention_init(rng, 4, 2),
                       nn.lstm_init(rng, 4, 3)._replace(b=np.zeros(12))])
    none = [params._replace(**{name: None for name in params._fields if name.startswith("b")})
            for params in with_zeros]
    layers = [nn.linear, lambda params, x: nn.multi_head_attention(params, x, x),
              lambda params, x: nn.lstm(params, x).hidden]
    for layer, zeros, without in zip(layers, with_zeros, none):
        assert np.array_equal(to_numpy(layer(zeros, x)), to_numpy(layer(without, x)))


def test_a_sequence_may_be_read_in_two_parts(rng, move):
    params, x = move((nn.lstm_init(rng, 3, 4), rng.standard_normal((7, 2, 3))))
    whole = nn.lstm(params, x)
    first = nn.lstm(params, x[:3])
    rest = nn.lstm(params, x[3:], first.hidden[-1], first.cell)
    assert to_numpy(rest.hidden).tolist() == pytest.approx(to_numpy(whole.hidden[3:]), rel=1e-14)
    assert to_numpy(rest.cell) == pytest.approx(to_numpy(whole.cell), rel=1e-14)


def test_float32_stays(rng, move):
    params = (nn.linear_init(rng, 4, 3), nn.layer_norm_init(4), nn.embedding_init(rng, 5, 4),
              nn.attention_init(rng, 4, 2), nn.lstm_init(rng, 4, 2), rng.standard_normal((4, 2)))
    params, x = move(tree.map(lambda p: p.astype(np.float32),
                              (params, rng.standard_normal((2, 3, 4)))))
    linear, norm, embedding, heads, lstm, table = tree.map(Tensor, params)
    bias = nn.causal_relative_position_bias(table, 3, 3, max_distance=8)
    mask = nn.causal_mask(x)
    outputs = [nn.linear(linear, x), nn.layer_norm(norm, x), *nn.lstm(lstm, x),
               nn.embedding(embedding, move(np.array([1, 1]))), bias,
               nn.multi_head_attention(heads, x, x), nn.multi_head_attention(heads, x, x, mask),
               nn.multi_head_attention(heads, x, x, mask, bias)]
    for y in outputs:
        assert y.dtype == "float32"


@pytest.mark.parametrize("draw, scale", [
    (lambda rng: nn.linear_init(rng, 300, 200).w, 300 ** -0.5 / 3 ** 0.5),
    (lambda rng: nn.embedding_init(rng, 300, 200).table, 1.0),
    (lambda rng: nn.attention_init(rng, 256, 4).w_key, (6 / 512) ** 0.5 / 3 ** 0.5),
    (lambda rng: nn.attention_init(rng, 256, 4).w_out, (6 / 512) ** 0.5 / 3 ** 0.5),
    (lambda rng: nn.lstm_init(rng, 200, 100).w_in, 100 ** -0.5 / 3 ** 0.5)])
def test_parameters_are_drawn_at_the_scale_that_is_cited(draw, scale, rng, move):
    w = to_numpy(move(draw(rng)))
    assert w.std() == pytest.approx(scale, rel=0.02)
    assert abs(w.mean()) < 0.02 * scale


# -- Bad input -----------------------------------------------------------------------------------

def test_bad_input_is_refused(rng, move):
    params, x = move((nn.attention_init(rng, 4, 2), rng.standard_normal((1, 3, 4))))
    with pytest.raises(TypeError, match="masked: the mask must be boolean; got "
                                        "float64"):
        nn.multi_head_attention(params, x, x, move(np.ones((3, 3))))
    with pytest.raises(ValueError, match="attention_init: the width must be a multiple of the "
                                         "number of heads; got 5 and 2"):
        nn.attention_init(rng, 5, 2)
    with pytest.raises(ValueError, match="relative_position_bias: needs an even number of "
                                         "buckets; got 7"):
        nn.relative_position_bias(move(np.ones((7, 2))), 3, 3)
    for n_buckets, max_distance in [(1, 8), (16, 8)]:
        with pytest.raises(ValueError, match="bucket_starts: needs 2 buckets or more"):
            nn.causal_relative_position_bias(move(np.ones((n_buckets, 2))), 3, 3, max_distance)
    with pytest.raises(ValueError, match="stacked_lstm: needs a pair of states for each of 1 "
                                         "layers; got 2"):
        nn.stacked_lstm([move(nn.lstm_init(rng, 4, 2))], x, [(0.0, 0.0)] * 2)


def test_buckets_by_hand(move):
    # 32 buckets up to 128, halved by direction: 8 for one distance each, then 8 that each reach
    # 16^(1/8) = sqrt(2) times as far: 8, 11.3, 16, 22.6, 32, 45.3, 64, 90.5
    assert nn.bucket_starts(16, 128) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91]
    table = move(np.arange(8.0)[:, None])
    # 8 buckets, halved: 0, 1, then 2 and up to 4 exclusive, then the rest; keys after come second
    bias = to_numpy(nn.relative_position_bias(table, 1, 6, max_distance=8))[0]
    assert bias.tolist() == [[0, 5, 6, 6, 7, 7]]
    bias = to_numpy(nn.relative_position_bias(table, 6, 1, max_distance=8))[0]
    assert bias[:, 0].tolist() == [0, 1, 2, 2, 3, 3]

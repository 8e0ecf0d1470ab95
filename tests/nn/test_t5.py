"""T5's layers and stacks. Whole models are held to those of transformers beside the Switch ones:
``tests/papers/test_switch_transformer_2021.py``."""
import math

import numpy as np
import pytest

from minimoe import nn, ops, tree
from minimoe.autodiff.check import check_vjp
from minimoe.autodiff.tensor import Tensor, grad
from minimoe.backend import to_numpy
from tests.flat import flat, unflat

V, D, B, S, R = 11, 6, 2, 5, 4


@pytest.fixture
def params(rng, move):
    """Two layers a stack, all scales away from 1."""
    drawn = nn.t5_init(rng, V, D, n_heads=3, head_width=4, hidden=7, n_layers=2, n_buckets=8)
    return move(tree.map(lambda a: a * rng.uniform(0.5, 1.5, a.shape), drawn))


@pytest.fixture
def source(rng, move):
    return move(rng.integers(2, V, (B, S)))


@pytest.fixture
def target(rng, move):
    return move(rng.integers(2, V, (B, R)))


def close(a, b):
    return np.testing.assert_allclose(to_numpy(a), to_numpy(b), rtol=0, atol=1e-12)


# -- By hand -------------------------------------------------------------------------------------

def test_attention_does_not_divide_by_the_root_of_its_width(move):
    one, ones = np.eye(4)[:, None], np.ones(4)      # [D, A, W], A = 1, W = D = 4
    w_out, zero = np.eye(4)[None], np.zeros((4, 3))
    attention = nn.AttentionParams(one, one, one, w_out, None, None, None, None)
    layer = nn.T5LayerParams(ones, attention, None, None, ones,
                             nn.FeedForwardParams(zero, zero.T))
    stack = nn.T5StackParams([layer], np.zeros((8, 1)), ones)
    params = move(nn.T5Params(np.eye(4)[:2], stack, None, None))
    x = to_numpy(nn.t5_encode(params, move(np.array([[0, 1]])), epsilon=0.0))[0]
    # rows of the identity have mean square 1/4, so the norm makes them 2 e_0 and 2 e_1: logits of
    # the first query are 4 and 0, not 2 and 0. x_0 = (1 + 2 p, 2 (1 - p), 0, 0) before the norm
    p = math.exp(4) / (math.exp(4) + 1)
    first = np.array([1 + 2 * p, 2 * (1 - p), 0, 0])
    close(x[0], first / math.sqrt((first ** 2).mean()))
    close(x[1], x[0][[1, 0, 2, 3]])


def test_logits_by_the_embedding_are_scaled(move):
    embedding = np.array([[1.0, 2, 0, 0], [0, 0, 3, 4]])
    y = move(np.array([[[1.0, 1, 1, 1]]]))
    params = move(nn.T5Params(embedding, None, None, None))
    assert to_numpy(nn.t5_logits(params, y)).tolist() == [[[1.5, 3.5]]]      # (3, 7) / sqrt(4)
    with_head = params._replace(head=move(embedding.T))
    assert to_numpy(nn.t5_logits(with_head, y)).tolist() == [[[3.0, 7.0]]]


def test_the_decoder_is_given_what_comes_before(move):
    shifted = nn.shift_right(move(np.array([[5, 6, 7], [8, 9, 1]])))
    assert to_numpy(shifted).tolist() == [[0, 5, 6], [0, 8, 9]]
    assert to_numpy(nn.shift_right(move(np.array([[5, 6]])), start=3)).tolist() == [[3, 5]]


def test_start_has_variance_one_over_fan_in(rng, move):
    p = move(nn.t5_init(rng, vocabulary=50, width=32, n_heads=2, head_width=8, hidden=64,
                        n_layers=1))
    layer = p.decoder.layers[0]
    for w, fan_in in [(p.embedding, 1), (layer.attention.w_query, 32 * 8), (layer.cross.w_key, 32),
                      (layer.cross.w_value, 32), (layer.cross.w_out, 16),
                      (layer.feed_forward.w_in, 32), (layer.feed_forward.w_out, 64)]:
        # the standard deviation of n normal numbers is known to 1 / sqrt(2 n)
        assert abs(float(w.std()) * math.sqrt(fan_in) - 1) < 4 / math.sqrt(2 * w.size)
    assert p.encoder.layers[0].cross is None and p.head is None
    assert p.encoder.position_table.shape == (32, 2)


# -- Gradients -----------------------------------------------------------------------------------

def test_gradient_of_a_whole_model(params, rng, source, target, move):
    source_used, target_used = move(np.arange(S) < [[S], [3]]), move(np.arange(R) < [[R], [2]])
    check_vjp(lambda v: nn.t5(unflat(v, params), source, target, source_used, target_used),
              flat(params), rng=rng)


def test_gradient_under_dropout(params, rng, source, target, move):
    keep = move((nn.t5_keep(rng, params.encoder, (B, S), rate=0.3),
                 nn.t5_keep(rng, params.decoder, (B, R), rate=0.3, n_read=S)))

    def model(vector):
        p = unflat(vector, params)
        memory = nn.t5_encode(p, source, keep=keep[0], rate=0.3)
        return nn.t5_decode(p, target, memory, keep=keep[1], rate=0.3)

    check_vjp(model, flat(params), rng=rng)


def test_the_embedding_has_the_gradients_of_all_its_uses(params, source, target):
    def loss(p):
        return ops.square(nn.t5(p, source, target)).sum()

    tied = tree.map(Tensor, params)
    apart = tree.map(Tensor, params._replace(head=params.embedding.T * D ** -0.5))
    of_parts = grad(loss(apart), apart)
    close(grad(loss(tied), tied).embedding, of_parts.embedding + of_parts.head.T * D ** -0.5)


# -- Properties ----------------------------------------------------------------------------------

def test_no_position_sees_those_after_it(params, source, target):
    before = to_numpy(nn.t5(params, source, target))
    changed = target.copy()
    changed[:, 2] = (changed[:, 2] + 1) % V
    after = to_numpy(nn.t5(params, source, changed))
    assert (after[:, :2] == before[:, :2]).all()
    assert (abs(after[:, 2:] - before[:, 2:]) > 1e-6).any(axis=-1).all()


def test_padding_is_as_if_it_were_not_there(params, source, target, move):
    padded = nn.t5(params, source, target, move(np.arange(S) < [[3], [3]]),
                   move(np.arange(R) < [[3], [3]]))
    close(padded[:, :3], nn.t5(params, source[:, :3], target[:, :3]))


def test_an_empty_source_is_finite(params, source, target, move):
    logits = nn.t5(params, source, target, move(np.arange(S) < [[S], [0]]))
    assert np.isfinite(to_numpy(logits)).all()


def test_all_layers_share_the_position_table(params, source):
    # the first layer's attention says nothing; the table still matters, to the second
    first = params.encoder.layers[0]
    silent = first._replace(attention=first.attention._replace(w_out=0 * first.attention.w_out))
    encoder = params.encoder._replace(layers=[silent, params.encoder.layers[1]])
    table = encoder.position_table.copy()
    table[1] += 1
    y, z = (to_numpy(nn.t5_encode(params._replace(encoder=encoder._replace(position_table=t)),
                                  source)) for t in (encoder.position_table, table))
    assert abs(y - z).max() > 1e-3


def test_dropout_that_drops_nothing(params, rng, source, target, move):
    keep = [move(nn.t5_keep(rng, stack, shape, rate=0.0, n_read=S))
            for stack, shape in ((params.encoder, (B, S)), (params.decoder, (B, R)))]
    memory = nn.t5_encode(params, source, keep=keep[0], rate=0.0)
    y = nn.t5_decode(params, target, memory, keep=keep[1], rate=0.0)
    close(nn.t5_logits(params, y), nn.t5(params, source, target))


@pytest.mark.numpy_only("draws are NumPy's")
def test_draws_keep_as_many_as_they_should(params, rng):
    drawn = np.concatenate([a.ravel() for a in tree.leaves(
        nn.t5_keep(rng, params.decoder, (30, 8), rate=0.3, n_read=S))])
    assert abs(drawn.mean() - 0.7) < 4 * math.sqrt(0.3 * 0.7 / drawn.size)


# -- Bad input -----------------------------------------------------------------------------------

def test_bad_input_is_refused(params, rng, source, move):
    keep = move(nn.t5_keep(rng, params.encoder, (B, S), rate=0.5))
    with pytest.raises(ValueError, match=r"dropout: the rate must lie in \[0, 1\); got 1"):
        nn.t5_encode(params, source, keep=keep, rate=1)
    with pytest.raises(TypeError, match="masked: the mask must be boolean; got int"):
        nn.t5_encode(params, source, used=source)
    with pytest.raises(IndexError):
        nn.t5_encode(params, source + V)

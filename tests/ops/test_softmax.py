import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minimoe import ops
from minimoe.autodiff.tensor import Tensor, grad, pullback
from minimoe.backend import to_numpy

INF = np.inf
rows = arrays(float, st.tuples(st.integers(1, 3), st.integers(1, 6)),
              elements=st.sampled_from([-300.0, -1.0, 0.0, 0.5, 1.0, 300.0]))     # ties likely


@given(x=rows, shift=st.integers(-2**20, 2**20))
def test_a_row_may_be_shifted(move, x, shift):
    x, shifted = move((x, x + shift))                 # an exact sum, so the answers are equal
    assert (to_numpy(ops.softmax(shifted)) == to_numpy(ops.softmax(x))).all()
    assert (to_numpy(ops.log_softmax(shifted)) == to_numpy(ops.log_softmax(x))).all()
    assert to_numpy(ops.logsumexp(shifted)) == pytest.approx(to_numpy(ops.logsumexp(x)) + shift)


@given(x=rows)
def test_the_three_agree_and_probabilities_add_up(move, x):
    x = move(x)
    p, log_p = to_numpy(ops.softmax(x)), to_numpy(ops.log_softmax(x))
    assert p.sum(axis=-1) == pytest.approx(1)
    assert np.exp(log_p) == pytest.approx(p)
    assert to_numpy(x) - to_numpy(ops.logsumexp(x, keepdims=True)) == pytest.approx(log_p)


@pytest.mark.parametrize("f", [ops.softmax, ops.log_softmax, ops.logsumexp])
def test_a_masked_entry_is_as_good_as_absent(move, rng, f):
    x, kept = rng.standard_normal((3, 5)), [0, 2, 3]
    masked = np.full((3, 5), -INF)
    masked[:, kept] = x[:, kept]
    whole, part = Tensor(move(masked)), Tensor(move(x[:, kept]))
    g = rng.standard_normal((3, 5))
    if f is ops.logsumexp:
        answers, g_part = slice(None), g[:, 0]
        g = g_part
    else:
        answers, g_part = (slice(None), kept), g[:, kept]
        g = np.where(np.isin(np.arange(5), kept), g, 0)
    y, y_part = f(whole), f(part)
    assert to_numpy(y.array)[answers] == pytest.approx(to_numpy(y_part.array), rel=1e-14)
    flow = to_numpy(pullback(y, move(g), whole))
    assert flow[:, kept] == pytest.approx(to_numpy(pullback(y_part, move(g_part), part)), abs=1e-15)
    assert (flow[:, [1, 4]] == 0).all()


def test_logsumexp_of_nothing_is_minus_infinity_with_gradient_0(move):
    # PyTorch gives NaN for the gradient of such a row
    x = Tensor(move(np.array([[-INF, -INF], [-INF, 1.0]])))
    y = ops.logsumexp(x)
    assert to_numpy(y.array).tolist() == [-INF, 1.0]
    assert to_numpy(grad(y[1:].sum(), x)).tolist() == [[0, 0], [0, 1]]


def test_logsumexp_of_infinity_is_infinity(move):
    y = ops.logsumexp(move(np.array([[INF, 1000.0], [INF, INF]])))
    assert to_numpy(y).tolist() == [INF, INF]


def test_softmax_of_nothing_is_nan(move):
    with np.errstate(invalid="ignore"):
        p = to_numpy(ops.softmax(move(np.array([[-INF, -INF], [-INF, 1.0]]))))
    assert np.isnan(p[0]).all() and p[1].tolist() == [0, 1]


@pytest.mark.parametrize("f", [ops.softmax, ops.log_softmax, ops.logsumexp])
def test_a_nan_reaches_all_that_it_enters(move, f):
    y = to_numpy(f(move(np.array([[np.nan, 1000.0], [0.0, 0.0]]))))
    assert np.isnan(y[0]).all() and np.isfinite(y[1]).all()


def test_cross_entropy_by_hand(move):
    # softmax is 1/4, 3/4
    logits = Tensor(move(np.log([[1.0, 3.0], [1.0, 3.0]])))
    loss = ops.cross_entropy(logits, move(np.array([0, 1])))
    assert to_numpy(loss.array) == pytest.approx(-np.log([0.25, 0.75]))
    assert to_numpy(grad(loss.sum(), logits)) == pytest.approx(
        np.array([[-0.75, 0.75], [0.25, -0.25]]))


@pytest.mark.parametrize("label, error, message", [
    (np.array([0, 3]), IndexError, "cross_entropy: labels must lie in 0 .. 2; got 0 to 3"),
    (np.array([-1, 2]), IndexError, "cross_entropy: labels must lie in 0 .. 2; got -1 to 2"),
    (np.array([0.0, 1.0]), TypeError, "labels must be an integer array; got float64"),
    (1, TypeError, "labels must be an integer array; got int"),
    (np.array([[0, 1]]), ValueError, r"one label per row, shape \(2,\); got \(1, 2\)")])
def test_labels_that_do_not_fit(move, label, error, message):
    with pytest.raises(error, match=message):
        ops.cross_entropy(move(np.zeros((2, 3))), move(label))


def test_cross_entropy_of_no_rows(move):
    logits = Tensor(move(np.zeros((0, 3))))
    loss = ops.cross_entropy(logits, move(np.zeros(0, int)))
    assert loss.shape == (0,) and grad(loss.sum(), logits).shape == (0, 3)

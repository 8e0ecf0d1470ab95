import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimoe import ops
from minimoe.autodiff.tensor import Tensor, pullback
from minimoe.backend import to_numpy
from tests.ops.primitives import leaves_inputs_alone_in_float32


def image(*rows):
    """One image of one channel. -> [1, H, W, 1]"""
    return np.array(rows, float)[None, :, :, None]


def pixels(y):
    return to_numpy(y)[0, :, :, 0].tolist()


def test_conv2d_by_hand(move):
    x, w = move(image([1, 2, 3], [4, 5, 6])), move(image([1, 10], [100, 1000]))
    w = w.reshape(2, 2, 1, 1)
    # 1 + 10 2 + 100 4 + 1000 5, and one to the right
    assert pixels(ops.conv2d(x, w)) == [[5421, 6532]]
    # zeros around: the first window sees 1 in its last corner, the second 1 and 2 in its last row
    assert pixels(ops.conv2d(x, w, padding=1)) == [
        [1000, 2100, 3200, 300], [4010, 5421, 6532, 603], [40, 54, 65, 6]]
    assert pixels(ops.conv2d(x, w, padding=1, stride=2)) == [[1000, 3200], [40, 65]]


@given(st.data())
def test_conv2d_is_its_sum(move, data):
    draw = data.draw
    P, Q = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    padding, stride = draw(st.integers(0, min(P, Q) - 1)), draw(st.integers(1, 3))
    H = draw(st.integers(max(P - 2 * padding, 1), 6))
    W = draw(st.integers(max(Q - 2 * padding, 1), 6))
    B, C, O = (draw(st.integers(1, 3)) for _ in range(3))
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    x, w = rng.standard_normal((B, H, W, C)), rng.standard_normal((P, Q, C, O))
    framed = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(framed, (P, Q), axis=(1, 2))
    expected = np.einsum("bhwcpq,pqco->bhwo", windows[:, ::stride, ::stride], w)
    x, w = Tensor(move(x)), Tensor(move(w))
    y = ops.conv2d(x, w, stride=stride, padding=padding)
    np.testing.assert_allclose(to_numpy(y.array), expected, atol=1e-13)
    # bilinear: <g, y> is <x, flow to x> and <w, flow to w>
    g = move(rng.standard_normal(y.shape))
    for a, flow in zip((x, w), pullback(y, g, (x, w))):
        assert float((a.array * flow).sum()) == pytest.approx(float((g * y.array).sum()), abs=1e-11)


def test_max_pool_by_hand(move):
    x = Tensor(move(image([1, 2, 5, 5], [3, 0, 5, 4])))
    y = ops.max_pool(x, size=2)
    assert pixels(y.array) == [[3, 5]]
    flow = pullback(y, move(image([10, 20])), x)
    assert pixels(flow) == [[0, 0, 20, 0], [10, 0, 0, 0]]        # of three 5s, the first


def test_max_pool_passes_nan_on(move):
    x = Tensor(move(image([1, np.nan], [np.nan, 0])))
    y = ops.max_pool(x, size=2)
    assert np.isnan(pixels(y.array)).all()
    assert pixels(pullback(y, move(image([1])), x)) == [[0, 1], [0, 0]]


def test_upsampling_by_hand(move):
    x = move(image([0, 4]))
    assert pixels(ops.upsample_nearest(x, factor=2)) == [[0, 0, 4, 4], [0, 0, 4, 4]]
    # centres at -1/4, 1/4, 3/4 and 5/4 of the way from the first pixel to the second
    assert pixels(ops.upsample_bilinear(x, factor=2)) == [[0, 1, 3, 4], [0, 1, 3, 4]]


@pytest.mark.parametrize("upsample", [ops.upsample_nearest, ops.upsample_bilinear])
@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_upsampling_keeps_constants_and_its_adjoint_the_sum(upsample, factor, rng, move):
    x = Tensor(move(np.full((2, 3, 2, 2), 7.0)))
    y = upsample(x, factor=factor)
    assert y.shape == (2, 3 * factor, 2 * factor, 2) and (to_numpy(y.array) == 7).all()
    g = rng.standard_normal(y.shape)
    flow = to_numpy(pullback(y, move(g), x))
    assert flow.sum(axis=(1, 2)) == pytest.approx(g.sum(axis=(1, 2)))


@pytest.mark.parametrize("f, shapes", [
    (lambda x, w: ops.conv2d(x, w, padding=1, stride=2), [(2, 5, 4, 3), (3, 3, 3, 2)]),
    (lambda x: ops.max_pool(x, size=2), [(2, 4, 6, 3)]),
    (lambda x: ops.upsample_nearest(x, factor=2), [(2, 4, 6, 3)]),
    (lambda x: ops.upsample_bilinear(x, factor=2), [(2, 4, 6, 3)]),
    (lambda *a: ops.batch_norm(*a, epsilon=1e-5), [(2, 4, 6, 3), (3,), (3,)])])
def test_inputs_are_left_alone_and_float32_stays(f, shapes, rng, move):
    arrays = [move(rng.standard_normal(shape).astype("float32")) for shape in shapes]
    leaves_inputs_alone_in_float32(f, arrays, rng, move)


@pytest.mark.parametrize("call, message", [
    (lambda a: ops.conv2d(a(1, 4, 4, 2), a(3, 3, 1, 2)), r"needs x \[B, H, W, C\] and w"),
    (lambda a: ops.conv2d(a(4, 4, 2), a(3, 3, 2, 2)), r"needs x \[B, H, W, C\] and w"),
    (lambda a: ops.conv2d(a(1, 4, 4, 2), a(3, 3, 2, 2), padding=3), "padding from 0, below"),
    (lambda a: ops.conv2d(a(1, 4, 4, 2), a(3, 3, 2, 2), padding=-1), "padding from 0, below"),
    (lambda a: ops.conv2d(a(1, 4, 4, 2), a(3, 3, 2, 2), stride=0), "a stride from 1"),
    (lambda a: ops.conv2d(a(1, 4, 2, 2), a(3, 3, 2, 2)), "must fit into the image"),
    (lambda a: ops.max_pool(a(1, 4, 6, 2), size=4), "windows of 4 must fill the image"),
    (lambda a: ops.max_pool(a(4, 6, 2), size=2), "max_pool: needs images"),
    (lambda a: ops.upsample_nearest(a(1, 4, 6, 2), factor=0), "upsample_nearest: needs images"),
    (lambda a: ops.upsample_bilinear(a(4, 6, 2), factor=2), "upsample_bilinear: needs images")])
def test_bad_input_is_refused(call, message, move):
    with pytest.raises(ValueError, match=message):
        call(lambda *shape: move(np.ones(shape)))

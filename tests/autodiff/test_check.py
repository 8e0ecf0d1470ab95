"""``check_vjp`` has been shown every error that it exists to catch, and cries no wolf."""
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minimoe import Tensor, check_vjp, op, ops, stop_gradient
from minimoe.autodiff.check import VjpError
from minimoe.backend import namespace, to_numpy


def drawn(move, rng, *shapes):
    return move(tuple(rng.standard_normal(shape) for shape in shapes))


def rejected(f, *args, rng, match, side=0):
    with pytest.raises(VjpError, match=match):
        check_vjp(f, *args, rng=rng, side=side)


# -- Planted errors ------------------------------------------------------------------------------

def tanh_with(change):
    """tanh, its derivative changed from what it should be."""
    @op
    def tanh(x):
        y = namespace(x).tanh(x)
        return y, lambda g: (change(g * (1 - y * y)),)
    return tanh


def entry_doubled(flow):
    flow = flow.copy()
    flow[1, 2] *= 2
    return flow


@pytest.mark.parametrize("change, worst", [
    (lambda flow: 2 * flow, r"worst at \(\d, \d\): vjp"),
    (lambda flow: -flow, "worst at"),
    (lambda flow: flow * (1 + 1e-11), "relative error .*e-12, allowed 1e-13; worst at"),
    (lambda flow: 0 * flow, "vjp 0, derivative"),
    (lambda flow: flow.T, "worst at"),
    (lambda flow: flow[::-1], "worst at"),
    (lambda flow: namespace(flow).roll(flow, 1, axis=1), "worst at"),
    (lambda flow: flow + 1e-6 * flow.mean(), "worst at"),
    (entry_doubled, r"worst at \(1, 2\)"),
], ids=["factor", "sign", "eleventh digit", "zero", "transposed", "reversed", "shifted", "mean",
        "one entry"])
def test_a_wrong_derivative(move, rng, change, worst):
    x, = drawn(move, rng, (3, 3))
    check_vjp(tanh_with(lambda flow: flow), x, rng=rng)
    rejected(tanh_with(change), x, rng=rng, match=f"check_vjp: argument 0: .*{worst}")


def test_the_worst_entry_of_many(move, rng):
    def one_wrong(flow):
        flow = flow.copy()
        flow[17, 43] *= 1.01
        return flow

    evaluations = []

    def f(x):
        evaluations.append(x)
        return tanh_with(one_wrong)(x)

    x, = drawn(move, rng, (40, 60))
    rejected(f, x, rng=rng, match=r"worst at \(17, 43\)")
    assert len(evaluations) < x.size       # halves are searched before single entries


def test_the_message_gives_both_numbers(move, rng):
    x = move(np.array(2.0))
    with pytest.raises(VjpError) as caught:
        check_vjp(op(lambda x: (x * x, lambda g: (3 * g * x,))), x, rng=np.random.default_rng(0))
    g = np.random.default_rng(0).standard_normal(())
    assert str(caught.value) == (
        f"check_vjp: argument 0: relative error {caught.value.args[0].split()[5]} allowed 1e-13; "
        f"worst at (): vjp {6 * g:.6g}, derivative {4 * g:.6g}")


def test_softmax_wrong_by_a_factor(move, rng):
    """What a cotangent of ones, or a loss that sums, would never show."""
    @op
    def softmax(x):
        p = ops.softmax(x)
        return p, lambda g: (7 * p * (g - (g * p).sum(axis=-1, keepdims=True)),)

    x, = drawn(move, rng, (3, 4))
    check_vjp(lambda x: softmax(x).sum(axis=-1), x, rng=rng)
    rejected(softmax, x, rng=rng, match="argument 0: relative error")


def product(to_a, to_b):
    @op
    def product(a, b):
        return a * b, (lambda g: to_a(g, a, b), lambda g: to_b(g, a, b))
    return product


@pytest.mark.parametrize("to_a, to_b, match", [
    (lambda g, a, b: g * a, lambda g, a, b: g * b, "argument 0:"),          # one for the other
    (lambda g, a, b: g * b, lambda g, a, b: 0 * g, "argument 1:"),
    (lambda g, a, b: g * b, lambda g, a, b: g * a + 1e-9 * g, "argument 1:"),
])
def test_the_wrong_argument_is_named(move, rng, to_a, to_b, match):
    a, b = drawn(move, rng, (2, 3), (2, 3))
    rejected(product(to_a, to_b), a, b, rng=rng, match=match)


def test_a_missing_gradient(move, rng):
    @op
    def product(a, b):
        return a * b, (lambda g: g * b, None)

    a, b = drawn(move, rng, (2, 3), (2, 3))
    rejected(product, a, b, rng=rng, match="argument 1: .* vjp -?0, derivative")
    rejected(lambda a, b: a * stop_gradient(b) + b, a, b, rng=rng, match="argument 1: ")


def test_a_missing_sum_over_what_was_broadcast(move, rng):
    @op
    def scaled(x, scale):
        return x * scale, (lambda g: g * scale, lambda g: (g * x)[0])     # not its sum over rows

    x, scale = drawn(move, rng, (3, 4), (4,))
    rejected(scaled, x, scale, rng=rng, match="argument 1: ")


class Layer(NamedTuple):
    w: Tensor
    b: Tensor


def test_leaves_of_trees_are_named(move, rng):
    def layer(params, x):
        return ops.tanh(x @ params["layers"][0].w + params["layers"][0].b) * params["scale"]

    def wrong(params, x):
        bias = params["layers"][0].b
        return layer(params, x) + 0.5 * (bias - stop_gradient(bias))

    params = {"layers": [Layer(*drawn(move, rng, (3, 4), (4,))), None], "scale": move(np.array(2.))}
    x, = drawn(move, rng, (5, 3))
    assert check_vjp(layer, params, x, rng=rng) <= 1e-13
    rejected(wrong, params, x, rng=rng, match=r"argument 0 \(layers\.0\.b\): ")


def test_a_vjp_that_writes_into_its_cotangent(move, rng):
    @op
    def double(x):
        def vjp(g):
            g *= 2
            return (g,)
        return 2 * x, vjp

    x, = drawn(move, rng, (3,))
    rejected(double, x, rng=rng, match="check_vjp: the cotangent was written into")


@pytest.mark.parametrize("backward", [False, True])
def test_inputs_that_are_written_into(move, rng, backward):
    def add_one(x):
        x += 1

    @op
    def square(x):
        y = x * x
        if not backward:
            add_one(x)

        def vjp(g):
            flow = 2 * g * (x if backward else x - 1)
            if backward:
                add_one(x)
            return (flow,)
        return y, vjp

    y, x = drawn(move, rng, (3,), (3,))
    rejected(lambda y, x: y * square(x), y, x, rng=rng, match="argument 1 was written into")


def test_a_vjp_that_writes_into_what_it_saved(move, rng):
    @op
    def exp(x):
        y = namespace(x).exp(x)

        def vjp(g):
            nonlocal y
            flow = g * y
            y = flow
            return (flow,)
        return y, vjp

    x, = drawn(move, rng, (3,))
    rejected(exp, x, rng=rng, match="argument 0: the vjp is not linear in its cotangent")


@pytest.mark.parametrize("vjp", [
    lambda g: abs(g), lambda g: g * g, lambda g: g.clip(-0.1, 0.1), lambda g: g + 1e-9,
    lambda g: g / (1e-20 + abs(g).max())])
def test_a_vjp_that_is_not_linear(move, rng, vjp):
    x, = drawn(move, rng, (5,))
    rejected(op(lambda x: (1 * x, lambda g: (vjp(g),))), x, rng=rng, match="not linear")


def test_a_vjp_that_is_right_only_once(move, rng):
    calls = []

    @op
    def double(x):
        return 2 * x, lambda g: (calls.append(0) or (2 if len(calls) == 1 else 3) * g,)

    x, = drawn(move, rng, (3,))
    rejected(double, x, rng=rng, match="or changes from call to call")


@pytest.mark.parametrize("spoilt", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite(move, rng, spoilt):
    @op
    def f(x, y):
        def to_y(g):
            flow = 1 * g
            flow[1] = spoilt
            return flow
        return x + y, (lambda g: g, to_y)

    x, y = drawn(move, rng, (3,), (3,))
    rejected(f, x, y, rng=rng, match="argument 1: the vjp is not finite")


@pytest.mark.parametrize("changed", [
    lambda x: x * (1 + 1e-10), lambda x: x + 1e-9, lambda x: x[:1], lambda x: x[:, None]])
def test_a_value_that_differs_between_tensors_and_arrays(move, rng, changed):
    x, = drawn(move, rng, (3,))
    rejected(lambda x: changed(x) if isinstance(x, Tensor) else 1 * x, x, rng=rng,
             match="the value on Tensors differs from the value on arrays")


def test_what_stop_gradient_hides_is_part_of_the_function(move, rng):
    x, = drawn(move, rng, (3,))
    rejected(lambda x: x * stop_gradient(x), x, rng=rng, match="argument 0: relative error")
    constant = 1 * x
    check_vjp(lambda x: x * constant, x, rng=rng)


def test_a_formula_that_drops_the_imaginary_part_is_not_believed(move, rng):
    """Complex step and vjp are wrong alike; differences are not."""
    @op
    def square(x):
        return x * x.real, lambda g: (g * x,)

    x, = drawn(move, rng, (3,))
    rejected(square, x, rng=rng, match="allowed 1e-06")


# -- Kinks and jumps -----------------------------------------------------------------------------

KINK = np.array([0.7, 0.0, -1.3, 2.0])


@pytest.mark.parametrize("f", [
    ops.abs, ops.relu, lambda x: ops.maximum(x, 0.0), lambda x: ops.clip(x, low=0.0, high=1.0),
    lambda x: 1e6 + 0.01 * ops.abs(x), lambda x: ops.exp(3 * x) + 1e-3 * ops.abs(x),
    lambda x: (1e5 * ops.tanh(x) + ops.relu(x)).sum(), lambda x: ops.relu(1e8 * x) * 1e-8,
    lambda x: ops.max(ops.stack([x, x * x]), axis=0).sum(),
    lambda x: x * ops.where(stop_gradient(x) >= 0, 1.0, 2.0)],
    ids=["abs", "relu", "maximum", "clip", "small beside a large value",
         "small beside a large slope", "in a sum", "steep", "tie", "branch"])
def test_a_kink_that_was_not_announced(move, rng, f):
    rejected(f, move(KINK), rng=rng, match="argument 0: the function has a kink or a jump here "
                                           r"\(slopes .* and .*\); move away, or give a side")


def test_kinks_elsewhere_do_no_harm(move, rng):
    """However near, up to a millionth."""
    for distance in 10.0 ** np.arange(-6, 1):
        x = move(KINK + distance)
        for f in (ops.abs, ops.relu, lambda x: ops.maximum(x, 0.0)):
            assert check_vjp(f, x, rng=rng) <= 1e-13


@pytest.mark.parametrize("f, above, below", [
    (ops.relu, False, True),                           # the cotangent of 0 is 0
    (lambda x: ops.relu(-x), True, False),
    (lambda x: ops.clip(x, low=0.0), True, False),     # passes where low <= x
    (lambda x: ops.clip(x, high=0.0), False, True),
    (ops.abs, False, False),
    (ops.tanh, True, True)])
def test_the_side_of_a_subgradient(move, rng, f, above, below):
    for side, right in [(1, above), (-1, below)]:
        if right:
            assert check_vjp(f, move(KINK), rng=rng, side=side) <= 1e-6
        else:
            rejected(f, move(KINK), rng=rng, side=side, match=r"allowed 1e-06; worst at \(1,\)")


@pytest.mark.parametrize("scores", [[1.0, 1.0], [1.0, 1.0 + 1e-15], [0.0, 0.0]])
def test_a_routing_jump(move, rng, scores):
    """Two experts tie for a token: the least change sends it to the other."""
    values = move(np.array([3.0, -2.0]))

    def routed(scores):
        chosen = stop_gradient(scores).argmax(axis=-1)
        probs = ops.softmax(scores)
        return ops.take_along_axis(probs * values, chosen[..., None], axis=-1)

    check_vjp(routed, move(np.array([[1.0, 1.5], [2.0, 0.3]])), rng=rng)
    rejected(routed, move(np.array([[1.0, 1.5], scores])), rng=rng, match="a kink or a jump here")


def test_a_jump_to_one_side_only(move, rng):
    @op
    def floor(x):
        return namespace(x).floor(x.real) + 0 * x, lambda g: (0 * g,)

    check_vjp(floor, move(np.array([0.5, 1.2])), rng=rng)
    rejected(floor, move(np.array([0.5, 1.0])), rng=rng, match="a kink or a jump here")


def test_a_jump_on_the_side_that_was_given(move, rng):
    step = op(lambda x: (1.0 * (x.real > 0) + 0 * x, lambda g: (0 * g,)))
    rejected(step, move(np.array([0.0])), rng=rng, side=1, match="argument 0: relative error")
    check_vjp(step, move(np.array([0.0])), rng=rng, side=-1)


# -- Functions that are not analytic -------------------------------------------------------------

def real_only(f, slope):
    @op
    def g(x):
        if x.dtype.kind == "c":
            raise TypeError("no complex numbers")
        return f(x), lambda g: (g * slope(x),)
    return g


@pytest.mark.parametrize("factor, right", [(1.0, True), (1 + 1e-5, False), (-1.0, False)])
def test_differences_where_complex_numbers_are_refused(move, rng, factor, right):
    x, = drawn(move, rng, (3, 2))
    f = real_only(ops.tanh, lambda x: factor * (1 - ops.tanh(x) ** 2))
    if right:
        assert check_vjp(f, x, rng=rng) <= 1e-8
    else:
        rejected(f, x, rng=rng, match="allowed 1e-06; worst at")


def test_differences_where_the_function_is_not_analytic(move, rng):
    modulus = op(lambda x: ((x * x.conj()).real ** 0.5, lambda g: (g * namespace(x).sign(x),)))
    x, = drawn(move, rng, (4,))
    assert check_vjp(modulus, x, rng=rng) <= 1e-8
    rejected(modulus, move(KINK), rng=rng, match="a kink or a jump here")


def test_differences_where_complex_numbers_get_another_value(move, rng):
    def f(x):
        return ops.square(x) + (x.dtype.kind == "c")

    x, = drawn(move, rng, (4,))
    assert 1e-15 < check_vjp(f, x, rng=rng) <= 1e-8
    rejected(lambda x: f(tanh_with(lambda flow: 1.01 * flow)(x)), x, rng=rng, match="1e-06")


def test_differences_where_the_imaginary_part_is_lost_on_the_way(move, rng):
    @op
    def stored(x):
        kept = namespace(x).zeros(x.shape)
        kept[...] = x * x
        return kept, lambda g: (2 * g * x,)

    x, = drawn(move, rng, (4,))
    assert check_vjp(stored, x, rng=rng) <= 1e-8


# -- Arguments and results of another kind -------------------------------------------------------

@pytest.mark.parametrize("dtype", ["int64", "float32", "bool", "complex128"])
def test_arguments_must_be_float64(move, rng, dtype):
    x, = drawn(move, rng, (3,))
    with pytest.raises(TypeError, match=f"must be float64 arrays; argument 1 is {dtype}"):
        check_vjp(lambda x, y: x * y, x, move(np.ones(3, dtype)), rng=rng)


def test_arguments_must_be_arrays(move, rng):
    x, = drawn(move, rng, (3,))
    for other, name in [(2, "int"), (2.0, "float"), ("x", "str")]:
        with pytest.raises(TypeError, match=rf"argument 0 \(b\) is {name}"):
            check_vjp(lambda p: p["a"], {"a": x, "b": other}, rng=rng)


def test_there_must_be_something_to_check(move, rng):
    for args in [(), ({},), (None, [])]:
        with pytest.raises(ValueError, match="needs at least one array"):
            check_vjp(lambda *args: move(np.ones(2)), *args, rng=rng)


def test_the_side_must_be_one(move, rng):
    with pytest.raises(ValueError, match="side must be -1, 0 or 1; got 2"):
        check_vjp(ops.tanh, move(np.ones(2)), rng=rng, side=2)


def test_results_must_be_arrays_of_arrays_and_tensors_of_tensors(move, rng):
    x, = drawn(move, rng, (3,))
    for f, got in [(lambda x: (x, x), "tuple"), (lambda x: 1.0, "float"),
                   (lambda x: Tensor(1 * stop_gradient(x)), "Tensor"), (lambda x: x > 0, "bool"),
                   (lambda x: x.astype("float32"), "float32")]:
        with pytest.raises(TypeError, match=f"given arrays, .* a float64 array; got {got}"):
            check_vjp(f, x, rng=rng)
    with pytest.raises(TypeError, match="given Tensors, the function must return one; got "):
        check_vjp(stop_gradient, x, rng=rng)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_everything_must_be_finite(move, rng, value):
    x, spoilt = move(np.ones(2)), move(np.array([1.0, value]))
    with pytest.raises(ValueError, match="arguments must be finite; argument 1 is not"):
        check_vjp(lambda x, y: x * y, x, spoilt, rng=rng)
    with pytest.raises(ValueError, match="the function's value must be finite"):
        check_vjp(lambda x: x + spoilt, x, rng=rng)


# -- No false alarms -----------------------------------------------------------------------------

@pytest.mark.parametrize("f, x", [
    (lambda x: ops.tanh(50 * x), KINK),
    (lambda x: ops.tanh(1e8 * x), 1e-7 * KINK),
    (ops.tanh, [1e8, 20.0, 1e-8, 0.0]),                   # saturated beside what is not
    (ops.sigmoid, [-1e8, 40.0, -800.0, 1e-8]),
    (ops.softplus, [-40.0, 800.0, 1e8, -1e-8]),
    (ops.logsumexp, 1e8 * KINK),
    (ops.logsumexp, 1e8 + KINK),                          # smooth within a unit, a kink from afar
    (ops.sin, 1e8 + KINK),
    (lambda x: ops.softmax(x).sum(), KINK),               # gradients of zero, but for rounding
    (lambda x: ops.softmax(x).sum(), np.full(10, 1e8)),
    (lambda x: ops.logsumexp(x) - ops.logsumexp(x + 3) + 3, KINK),
    (lambda x: ops.log_softmax(x + x.sum()), KINK),
    (lambda x: ops.layer_norm(x, 2.0, 1.0, epsilon=0.0), 1e6 + KINK),
    (lambda x: ops.layer_norm(1e-6 * x, 2.0, 1.0, epsilon=1e-12), KINK),
    (ops.var, 1e8 + KINK),
    (lambda x: (x - x).sum(), KINK),
    (lambda x: (x + 1e12) - 1e12, KINK),                  # a staircase: differences see nothing
    (lambda x: ops.sin(1e16 * x), KINK),
    (lambda x: ops.log1p(1e5 * ops.log1p(x * x)), 1e-3 * KINK),     # complex log1p is less exact
    (lambda x: ops.square(x - move_free(x)), KINK),       # zero, and so is its gradient
    (ops.exp, [-700.0, 100.0]),
    (ops.sigmoid, [-650.0, -680.0, -700.0, -740.0]),      # digits are lost in a complex step
    (lambda x: x ** 20, 10 * KINK),
    (lambda x: 1e-200 * x, KINK),
    (lambda x: x * x, [1e-300, 1e-310, 5e-324, 0.0]),
    (lambda x: x * 0 + 1, KINK),
    (lambda x: x, KINK),
    (lambda x: x.reshape(2, 2).T[1], KINK),
    (lambda x: x * 2.0, np.float64(3.0)),
    (lambda x: x.sum() * x, np.zeros((0, 3))),
    (lambda x: x[:0] * 2.0, KINK),
    (lambda x: x.sum(), KINK),
])
def test_a_correct_function_passes(move, rng, f, x):
    for _ in range(5):
        assert check_vjp(f, move(np.asarray(x)), rng=rng) <= 1e-13


def move_free(x):
    """The same numbers as a constant."""
    return stop_gradient(x) * 0 + 1 * namespace(stop_gradient(x)).asarray(KINK)


def test_hidden_choices_do_no_harm(move, rng):
    """An intermediate of -inf, whose cotangent is 0; and one that a wrong vjp gives another."""
    x, = drawn(move, rng, (2, 3))
    mask = move(np.array([[True, False, True], [True, True, True]]))

    def hidden(x):
        return ops.where(mask, x, -np.inf)

    @op
    def leaking(x):
        p = ops.softmax(x)
        return p, lambda g: (p * (g - (g * p).sum(axis=-1, keepdims=True)) + g,)

    assert check_vjp(lambda x: ops.softmax(hidden(x)), x, rng=rng) <= 1e-13
    assert check_vjp(lambda x: ops.logsumexp(hidden(x)), x, rng=rng) <= 1e-13
    rejected(lambda x: leaking(hidden(x)), x, rng=rng, match="argument 0: relative error")


def test_sums_in_any_order_pass(move, rng):
    """As a GPU adds them up: in another order each time."""
    index = rng.integers(0, 3, 200)

    @op
    def gathered(x):
        def vjp(g):
            flow = 0 * x
            for i in rng.permutation(len(index)):
                flow[index[i]] += g[i]
            return (flow,)
        return x[move(index)], vjp

    x, = drawn(move, rng, (3, 4))
    assert check_vjp(lambda x: ops.tanh(gathered(x)), x, rng=rng) <= 1e-13
    assert check_vjp(lambda x: ops.softmax(gathered(x)).sum(), x, rng=rng) <= 1e-13


SMOOTH = {
    "tanh": ops.tanh, "sigmoid": ops.sigmoid, "softplus": ops.softplus, "sin": ops.sin,
    "square": ops.square, "gelu_tanh": ops.gelu_tanh, "relu": ops.relu, "abs": ops.abs,
    "softmax": lambda x: ops.softmax(x, axis=0),
    "log_softmax": lambda x: ops.log_softmax(x, axis=0),
    "logsumexp": lambda x: ops.logsumexp(x, axis=0, keepdims=True),
    "mean": lambda x: ops.mean(x, axis=0, keepdims=True),
    "root": lambda x: ops.sqrt(1 + x * x), "inverse": lambda x: 1 / (1 + x * x),
    "bell": lambda x: ops.exp(-x * x), "cumsum": lambda x: ops.cumsum(x, axis=0),
    "reverse": lambda x: x[::-1], "twice": lambda x: ops.concatenate([x, 2 * x]),
    "large": lambda x: 1e4 * x, "small": lambda x: 1e-4 * x}
JOINED = {"sum": lambda x, y: x + y, "product": lambda x, y: x * y,
          "quotient": lambda x, y: x / (1 + y * y), "larger": ops.maximum}
exponents = st.floats(-8, 8)


@settings(max_examples=60)
@given(before=st.lists(st.sampled_from(sorted(SMOOTH)), max_size=2),
       join=st.sampled_from(sorted(JOINED)),
       after=st.lists(st.sampled_from(sorted(SMOOTH)), max_size=2),
       shape=st.sampled_from([(3,), (1,), (2, 3), (4, 1), (17,), (3, 0), (2, 2, 2)]),
       sizes=st.tuples(exponents, exponents), seed=st.integers(0, 2**32))
def test_no_composition_is_rejected(move, before, join, after, shape, sizes, seed):
    """Of any shape and magnitude, as long as f keeps some digits of its arguments."""
    steps = []

    def f(p):
        steps[:] = [p["x"]]
        for name in before:
            steps.append(SMOOTH[name](steps[-1]))
        steps.append(JOINED[join](steps[-1], p["y"])[None])
        for name in after:
            steps.append(SMOOTH[name](steps[-1]))
        return steps[-1]

    rng = np.random.default_rng(seed)
    x, y = 10 ** sizes[0] * rng.standard_normal(shape), 10 ** sizes[1] * rng.standard_normal(())
    value = f({"x": x, "y": y})
    assume(all(abs(z).max(initial=0) <= 1e12 for z in steps))
    for _ in range(4):
        p = {name: a * (1 + 1e-15 * rng.choice([-1, 1], a.shape)) for name, a in zip("xy", (x, y))}
        assume(abs(f(p) - value).max(initial=0) <= 1e-6 * abs(value).max(initial=0))
    assert check_vjp(f, {"x": move(x), "y": move(np.asarray(y))}, rng=rng) <= 1e-6


@settings(max_examples=60)
@given(name=st.sampled_from(sorted(set(SMOOTH) - {"large", "small"})), exponent=exponents,
       factor=st.sampled_from([0.5, -1.0, 1.001]), seed=st.integers(0, 2**32))
def test_no_wrong_factor_passes(move, name, exponent, factor, seed):
    """Wherever the gradient is large enough to be told from rounding."""
    rng = np.random.default_rng(seed)
    x = 10 ** exponent * rng.standard_normal((5,))
    scaled = op(lambda y: (1 * y, lambda g: (factor * g,)))
    y = SMOOTH[name](x)
    slope = SMOOTH[name](x + 1e-30j * x).imag / 1e-30
    assume(abs(slope).max() > 1e-4 * abs(y).max())
    rejected(lambda x: scaled(SMOOTH[name](x)), move(x), rng=rng, match="argument 0: ")


def test_it_needs_no_more_than_the_function_on_arrays_and_tensors(move, rng):
    """Inputs and outputs are those that a function on arrays is given, and none is changed."""
    seen = set()

    def f(x):
        seen.add(type(x))
        return x * 2.0

    x, = drawn(move, rng, (3,))
    before = to_numpy(x).copy()
    assert check_vjp(f, x, rng=rng) <= 1e-15
    assert seen == {type(x), Tensor}
    np.testing.assert_array_equal(to_numpy(x), before)

"""Reverse mode: what is recorded, how cotangents flow back, and what they cost."""
import gc
import operator
import time
import tracemalloc
from typing import NamedTuple

import numpy as np
import pytest

from minimoe import Tensor, grad, op, ops, pullback, stop_gradient, value_and_grad
from minimoe.backend import to_numpy


def tensor(move, values, dtype="float64"):
    return Tensor(move(np.array(values, dtype)))


def same(found, expected, dtype="float64"):
    """Exactly these numbers, in an array of this dtype and shape."""
    assert found.dtype == dtype
    np.testing.assert_array_equal(to_numpy(found), np.array(expected), strict=False)
    assert found.shape == np.shape(expected)
    return True


# -- Making one ----------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", ["int64", "bool", "complex128", "complex64", "float16", "uint8"])
def test_only_float32_and_float64_carry_gradients(move, dtype):
    with pytest.raises(TypeError, match=f"Tensor: needs a floating-point array .*; got {dtype}"):
        Tensor(move(np.zeros(3, dtype)))


@pytest.mark.parametrize("value", [1.0, 2, [1.0, 2.0], None, "x"])
@pytest.mark.numpy_only("none of these is an array of either library")
def test_only_arrays_become_tensors(value):
    with pytest.raises(TypeError, match=f"floating-point array; got {type(value).__name__}"):
        Tensor(value)


def test_a_tensor_is_not_made_of_a_tensor(move):
    with pytest.raises(TypeError, match="got Tensor"):
        Tensor(tensor(move, [1.0]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_it_describes_its_array(move, dtype):
    array = move(np.ones((2, 3), dtype))
    x = Tensor(array)
    assert x.array is array and x.parents == () and x.vjp is None
    assert (x.shape, x.ndim, x.size, x.dtype, len(x)) == ((2, 3), 2, 6, dtype, 2)
    assert repr(x) == f"Tensor({array!r})"
    assert float(tensor(move, 2.5)) == 2.5


@pytest.mark.numpy_only("array scalars are NumPy's alone")
def test_an_array_scalar_is_an_array():
    x = Tensor(np.float64(3.0))
    assert same(grad(x * x, x), 6.0)


# -- Operators -----------------------------------------------------------------------------------

BINARY = [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow,
          operator.matmul]


@pytest.mark.parametrize("apply", BINARY)
def test_operators_with_arrays_on_either_side(move, apply):
    a, b = move(np.array([1.5, 2.0, 0.5])), move(np.array([3.0, 0.25, 2.0]))
    expected = apply(a, b)
    for left, right in [(Tensor(a), Tensor(b)), (Tensor(a), b), (a, Tensor(b))]:
        y = apply(left, right)
        assert type(y) is Tensor
        assert same(y.array, to_numpy(expected))
        assert len(y.parents) == isinstance(left, Tensor) + isinstance(right, Tensor)


@pytest.mark.parametrize("number", [2, 2.0, np.float64(2.0), np.float32(2.0), np.int64(2)])
@pytest.mark.parametrize("apply", BINARY[:-1])
def test_operators_with_numbers_on_either_side(move, apply, number):
    x = tensor(move, [1.5, 2.0, 0.5])
    values = to_numpy(x.array)
    assert same(apply(x, number).array, apply(values, number))
    assert same(apply(number, x).array, apply(number, values))


@pytest.mark.parametrize("apply", BINARY[:-1])
def test_gradients_of_both_sides(move, apply):
    a, b = 1.5, 3.0
    expected = {operator.add: (1, 1), operator.sub: (1, -1), operator.mul: (b, a),
                operator.truediv: (1 / b, -a / b**2),
                operator.pow: (b * a**(b - 1), a**b * np.log(a))}[apply]
    x, y = tensor(move, a), tensor(move, b)
    both = grad(apply(x, y), (x, y))
    alone = grad(apply(x, b), x), grad(apply(a, y), y)
    for found in (both, alone):
        assert [float(part) for part in found] == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("compare", [operator.lt, operator.le, operator.gt, operator.ge,
                                     operator.eq, operator.ne])
def test_comparisons_give_plain_booleans(move, compare):
    a, b = move(np.array([1.0, 2.0, 3.0])), move(np.array([2.0, 2.0, 2.0]))
    expected = to_numpy(compare(a, b))
    for left, right in [(Tensor(a), Tensor(b)), (Tensor(a), b), (a, Tensor(b)), (Tensor(a), 2.0),
                        (Tensor(a), np.float64(2.0))]:
        found = compare(left, right)
        assert type(found) is type(a) and found.dtype == bool
        np.testing.assert_array_equal(to_numpy(found), expected)
    np.testing.assert_array_equal(to_numpy(compare(np.float64(2.0), Tensor(a))),
                                  compare(2.0, to_numpy(a)))


def test_methods_and_operators_of_arrays(move):
    values = np.arange(6.0).reshape(2, 3)
    x = tensor(move, values)
    assert same((-x).array, -values)
    assert same(x.T.array, values.T)
    assert same(x[1].array, values[1])
    assert same(x[:, 1:].array, values[:, 1:])
    assert same(x.sum().array, 15.0)
    assert same(x.sum(axis=0, keepdims=True).array, [[3.0, 5.0, 7.0]])
    assert same(x.mean(axis=1).array, [1.0, 4.0])
    assert same(x.max(axis=1).array, [2.0, 5.0])
    assert same(x.min(axis=1).array, [0.0, 3.0])
    assert same(x.reshape(3, 2).array, values.reshape(3, 2))
    assert same(x.reshape((6,)).array, values.ravel())
    assert same(x.transpose().array, values.T)
    assert same(x.transpose(1, 0).array, values.T)
    assert same(x.transpose((1, 0)).array, values.T)
    assert same(x.swapaxes(0, 1).array, values.T)
    assert same(x.astype("float32").array, values, dtype="float32")
    assert [float(row.sum()) for row in x] == [3.0, 12.0]


def test_a_tensor_has_no_truth_value(move):
    with pytest.raises(TypeError, match="no truth value"):
        bool(tensor(move, 1.0))


@pytest.mark.parametrize("function", [np.asarray, np.exp, lambda x: np.concatenate([x, x])])
def test_numpy_is_not_handed_a_tensor_without_a_word(move, function):
    with pytest.raises(TypeError):
        function(tensor(move, [1.0, 2.0]))


def test_in_place_arithmetic_does_not_write_into_an_array(move):
    a = move(np.array([1.0, 2.0]))
    x = tensor(move, [3.0, 4.0])
    before = x
    x += 1.0
    assert type(x) is Tensor and x is not before
    assert same(before.array, [3.0, 4.0])
    y = a
    try:
        y += x       # either is refused, or becomes a Tensor; never numbers in an object array
    except TypeError:
        pass
    else:
        assert type(y) is Tensor
    assert same(a, [1.0, 2.0])


# -- Gradients -----------------------------------------------------------------------------------

class Pair(NamedTuple):
    a: Tensor
    b: Tensor


def test_gradient_is_a_tree_like_its_parameters(move):
    a, b, c = tensor(move, [1.0, 2.0]), tensor(move, 3.0), tensor(move, [[5.0]])
    params = {"pair": Pair(a, b), "more": [c, None], "none": ()}
    gradient = grad((a * b).sum() + (c * c).sum(), params)
    assert list(gradient) == ["pair", "more", "none"]
    assert type(gradient["pair"]) is Pair and gradient["none"] == ()
    assert same(gradient["pair"].a, [3.0, 3.0]) and same(gradient["pair"].b, 3.0)
    assert same(gradient["more"][0], [[10.0]]) and gradient["more"][1] is None


def test_pullback_weighs_outputs_by_the_cotangent(move):
    x = tensor(move, [1.0, 2.0, 3.0])
    assert same(pullback(x * x, move(np.array([1.0, 0.0, -2.0])), x), [2.0, 0.0, -12.0])


def test_value_and_gradient_of_a_function_of_arrays(move):
    params = Pair(move(np.array([1.0, 2.0])), move(np.array(3.0)))
    value, gradient = value_and_grad(lambda p, scale: (p.a * p.b).sum() * scale, params, 2.0)
    assert not isinstance(value, Tensor) and float(value) == 18.0
    assert same(gradient.a, [6.0, 6.0]) and same(gradient.b, 6.0)


def test_value_and_gradient_takes_tensors_as_new_parameters(move):
    x = tensor(move, 3.0)
    y = x * x
    value, gradient = value_and_grad(lambda y: y * y, y)
    assert float(value) == 81.0 and same(gradient, 18.0)


def test_stopped_values_are_constants(move):
    x = tensor(move, [1.0, 2.0])
    stopped = stop_gradient(x)
    assert stopped is x.array and stop_gradient(stopped) is stopped and stop_gradient(2.0) == 2.0
    assert same(grad((x * stopped).sum(), x), [1.0, 2.0])
    assert same(stop_gradient(move(np.array([1 + 2j, 3 - 1j]))), [1.0, 3.0])


def test_gradient_of_an_intermediate(move):
    x = tensor(move, 3.0)
    y = x * x            # 9
    z = y * x            # 27, reached from x by two paths
    found = grad(z * y, (x, y, z))      # z y = x^5; with y free, y^2 x; with z free, z y
    assert [float(part) for part in found] == [5 * 3.0**4, 2 * 9.0 * 3.0, 9.0]


def test_the_output_itself_may_be_asked_for(move):
    x = tensor(move, [1.0, 2.0])
    g = move(np.array([3.0, 4.0]))
    found = pullback(x, g, x)
    assert same(found, [3.0, 4.0]) and found is not g
    y = x * 2.0
    assert same(pullback(y, g, (y, x))[0], [3.0, 4.0])


def test_what_the_loss_does_not_depend_on_gets_zeros(move):
    x, unused = tensor(move, [1.0, 2.0]), tensor(move, [[1.0], [2.0]], "float32")
    later = x * 3.0
    gradient = grad(x.sum(), (x, unused, later))
    assert same(gradient[1], [[0.0], [0.0]], "float32") and same(gradient[2], [0.0, 0.0])


def test_a_parameter_named_twice_is_answered_twice(move):
    x = tensor(move, [1.0, 2.0])
    first, second = grad((x * x).sum(), [x, x])
    first += 1.0
    assert same(first, [3.0, 5.0]) and same(second, [2.0, 4.0])


def test_a_tensor_used_twice_in_one_operation(move):
    x = tensor(move, [2.0, 3.0])
    assert same(grad((x * x).sum(), x), [4.0, 6.0])
    assert same(grad(ops.concatenate([x, x, x]).sum(), x), [3.0, 3.0])


def test_two_passes_over_one_graph_agree(move, rng):
    x = tensor(move, rng.standard_normal((4, 3)))
    y = ops.softmax(x @ x.T) * 2.0
    g = move(rng.standard_normal((4, 4)))
    first, second = pullback(y, g, x), pullback(y, g, x)
    assert first is not second and same(first, to_numpy(second))


OUTPUTS_THAT_PASS_THE_COTANGENT_ON = {
    "x + y": lambda x, y: x + y,
    "x + x": lambda x, y: x + x + y,
    "sum": lambda x, y: (x + y).sum(),
    "reshape": lambda x, y: x.reshape(4) + y.reshape(4),
    "transpose": lambda x, y: (x + y).T,
    "broadcast": lambda x, y: ops.broadcast_to(x + y, shape=(3, 2, 2)),
    "stack": lambda x, y: ops.stack([x, y]),
    "concatenate": lambda x, y: ops.concatenate([x, y, y]),
    "shared": lambda x, y: _same_cotangent_for_both(x, y),
    "einsum": lambda x, y: ops.einsum("ij->ji", x) + ops.einsum("ij->ij", y),
}


@op
def _same_cotangent_for_both(a, b):
    def vjp(g):
        g = 2 * g
        return g, g
    return 2 * (a + b), vjp


@pytest.mark.parametrize("name", OUTPUTS_THAT_PASS_THE_COTANGENT_ON)
def test_gradients_share_no_memory(move, rng, name):
    """Each may be changed in place, as optimisers do, without a change to any other."""
    x, y = tensor(move, rng.standard_normal((2, 2))), tensor(move, rng.standard_normal((2, 2)))
    between = x * 1.0
    out = OUTPUTS_THAT_PASS_THE_COTANGENT_ON[name](between, y)
    g = move(rng.standard_normal(out.shape))
    kept = to_numpy(g).copy()
    gradient = pullback(out, g, [x, y, out, x, between])
    expected = [to_numpy(part).copy() for part in gradient]
    for i, part in enumerate(gradient):
        part += 100.0
        part -= 100.0
        part *= 0.0
        for other, unchanged in list(zip(gradient, expected))[i + 1:]:
            np.testing.assert_array_equal(to_numpy(other), unchanged)
    np.testing.assert_array_equal(to_numpy(g), kept)


def test_a_gradient_that_is_already_its_own_is_not_copied(move):
    made = []

    @op
    def double(x):
        def vjp(g):
            made.append(2 * g)
            return (made[-1],)
        return 2 * x, vjp

    x = tensor(move, [1.0, 2.0])
    gradient = grad(double(x).sum(), x)
    made[0] += 1.0
    assert same(gradient, [3.0, 3.0])


# -- Shapes and precisions -----------------------------------------------------------------------

@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 3), (4, 1), (2, 1, 1), (2, 1, 3), (2, 4, 3),
                                   (1, 1, 1), (1, 4, 1)])
def test_a_cotangent_is_summed_where_its_argument_was_broadcast(move, rng, shape):
    x = tensor(move, rng.standard_normal(shape))
    y = move(rng.standard_normal((2, 4, 3)))
    g = rng.standard_normal((2, 4, 3))
    indices = np.broadcast_to(np.arange(x.size).reshape(shape), g.shape)
    for out, weight in [(x + y, 1.0), (y - x, -1.0), (x * y, to_numpy(y)), (y * x, to_numpy(y))]:
        expected = np.bincount(indices.ravel(), (g * weight).ravel()).reshape(shape)
        found = pullback(out, move(g), x)
        assert found.shape == shape
        np.testing.assert_allclose(to_numpy(found), expected, rtol=1e-13, atol=1e-14)


def test_both_sides_may_be_broadcast(move):
    row, column = tensor(move, [[1.0, 2.0, 3.0]]), tensor(move, [[1.0], [2.0]])
    gradient = grad((row * column).sum(), (row, column))
    assert same(gradient[0], [[3.0, 3.0, 3.0]]) and same(gradient[1], [[6.0], [6.0]])


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0)])
def test_arrays_of_no_entries(move, shape):
    x, bias = tensor(move, np.zeros(shape)), tensor(move, [[2.0]])
    gradient = grad((x * bias).sum(), (x, bias))
    assert same(gradient[0], np.zeros(shape)) and same(gradient[1], [[0.0]])


def test_no_axes(move):
    x = tensor(move, 2.0)
    gradient = grad(ops.exp(x) * 3.0, x)
    assert gradient.shape == () and float(gradient) == 3 * np.exp(2.0)
    assert type(gradient) is type(x.array)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_computation_keeps_its_precision(move, dtype):
    x = tensor(move, [1.0, 2.0], dtype)
    y = ops.tanh(x * 2.0 + 1) ** 2
    assert y.dtype == dtype
    assert grad(y.sum(), x).dtype == dtype


def test_a_gradient_has_its_parameters_precision(move):
    single, double = tensor(move, [1.0, 2.0], "float32"), tensor(move, [3.0, 4.0])
    loss = (single * double).sum() + (single * single).sum() + (double * single).sum()
    assert loss.dtype == "float64"
    gradient = grad(loss, (single, double))
    assert same(gradient[0], [8.0, 12.0], "float32") and same(gradient[1], [2.0, 4.0])


def test_a_cotangent_is_taken_in_the_outputs_precision(move):
    seen = []

    @op
    def look(x):
        return x, lambda g: seen.append(g.dtype) or (g,)

    x = tensor(move, [1.0], "float32")
    assert pullback(look(x), move(np.array([0.5])), x).dtype == "float32"
    assert seen == ["float32"]


def test_a_float64_cotangent_is_not_added_in_float32s_place(move):
    """It comes third, between 3 - 2 and -1: in float32 nothing would be left of it."""
    y = tensor(move, [1.0], "float32")
    oldest = (y * -1.0).sum()
    exact = (y * move(np.array([2.0**-30]))).sum().astype("float32")
    loss = oldest + exact + y.sum() * -2.0 + y.sum() * 3.0       # newest first, back to y
    assert same(grad(loss, y), [2.0**-30], "float32")


# -- User-defined operations ---------------------------------------------------------------------

@op
def product_apart(a, b):
    return a * b, (lambda g: g * b, lambda g: g * a)


@op
def product_together(a, b):
    return a * b, lambda g: (g * b, g * a)


@op
def product_apart_scaled(a, b, *, by=1.0):
    return a * b * by, (lambda g: g * b * by, lambda g: g * a * by)


@op
def product_together_scaled(a, b, *, by=1.0):
    return a * b * by, lambda g: (g * b * by, g * a * by)


PRODUCTS = [product_apart, product_together, product_apart_scaled, product_together_scaled]


@pytest.mark.parametrize("product", PRODUCTS)
def test_an_operation_gives_arrays_for_arrays(move, product):
    a, b = move(np.array([2.0, 3.0])), move(np.array([5.0, 7.0]))
    assert type(product(a, b)) is type(a) and same(product(a, b), [10.0, 21.0])


@pytest.mark.parametrize("product", PRODUCTS)
def test_both_forms_of_vjp_with_constants_among_the_arguments(move, product):
    a, b = move(np.array([2.0, 3.0])), move(np.array([5.0, 7.0]))
    x, y = Tensor(a), Tensor(b)
    first, second = grad(product(x, y).sum(), (x, y))
    assert same(first, [5.0, 7.0]) and same(second, [2.0, 3.0])
    assert same(grad(product(x, b).sum(), x), [5.0, 7.0])
    assert same(grad(product(a, y).sum(), y), [2.0, 3.0])


def test_nothing_is_kept_or_computed_for_a_constant(move):
    computed = []

    @op
    def product(a, b, c):
        return a * b * c, tuple(lambda g, name=name: computed.append(name) or g for name in "abc")

    x = tensor(move, [2.0])
    y = product(1.0, x, 3.0)
    assert y.parents == [x] and len(y.vjp) == 1
    grad(y.sum(), x)
    assert computed == ["b"]


@pytest.mark.parametrize("together", [False, True])
def test_none_where_there_is_no_gradient(move, together):
    @op
    def choose(x, index, y):
        to_x, to_y = lambda g: 2 * g, lambda g: 3 * g
        vjp = (to_x, None, to_y)
        return 2 * x + 3 * y, (lambda g: (to_x(g), None, to_y(g))) if together else vjp

    x, y = tensor(move, [1.0, 2.0]), tensor(move, [3.0, 4.0])
    index = tensor(move, [0.0, 0.0])
    gradient = grad(choose(x, index, y).sum(), (x, index, y))
    assert [to_numpy(part).tolist() for part in gradient] == [[2, 2], [0, 0], [3, 3]]
    assert same(grad(choose(x, 7, y).sum(), y), [3.0, 3.0])


def test_no_gradient_flows_past_none(move):
    @op
    def blocked(x):
        return 2 * x, (None,)

    x = tensor(move, [1.0])
    assert same(grad((blocked(ops.exp(x)) + x).sum(), x), [1.0])


@pytest.mark.parametrize("vjp", [(lambda g: g,), (lambda g: g,) * 3])
def test_a_vjp_for_another_number_of_arrays(move, vjp):
    @op
    def two(a, b):
        return a + b, vjp

    @op
    def two_with_a_setting(a, b, *, by=1.0):
        return a + b, vjp

    x = tensor(move, [1.0])
    for f, name in [(two, "two"), (two_with_a_setting, "two_with_a_setting")]:
        for arguments in [(x, x), (x, 1.0), (1.0, x)]:
            with pytest.raises(TypeError, match=f"{name}: a vjp has one function for each "
                                                f"positional array; got {len(vjp)} for 2"):
                f(*arguments)


@pytest.mark.parametrize("cotangents, got", [(lambda g: g, "ndarray"), (lambda g: (g, g), "2"),
                                             (lambda g: (), "0"), (lambda g: None, "NoneType")])
def test_a_vjp_that_does_not_return_one_cotangent_for_each_array(move, cotangents, got):
    @op
    def f(x):
        return 2 * x, cotangents

    x = tensor(move, [1.0])
    with pytest.raises(TypeError, match=f"one cotangent for each of 1 arguments; got {got}"):
        grad(f(x).sum(), x)


def test_a_tensor_by_keyword_is_refused(move):
    x = tensor(move, [1.0])
    for f in (product_apart_scaled, product_together_scaled):
        with pytest.raises(TypeError, match=f"{f.__name__}: arrays are positional; "
                                            f"got a Tensor as b"):
            f(x, b=x)
    with pytest.raises(TypeError, match="positional"):
        product_apart(x, b=x)


def test_operations_of_any_number_of_arrays(move):
    @op
    def total(first, *rest):
        return first + sum(rest), lambda g: (g,) * (1 + len(rest))

    x, y = tensor(move, [1.0]), tensor(move, [2.0])
    assert same(total(x, y).array, [3.0])
    gradient = grad(total(x, 5.0, y, y).sum(), (x, y))
    assert same(gradient[0], [1.0]) and same(gradient[1], [2.0])


def test_an_operation_may_have_an_optional_array(move):
    @op
    def shifted(x, shift=1.0):
        return x + shift, lambda g: (g,)

    x = tensor(move, [1.0])
    assert same(shifted(x).array, [2.0]) and same(grad(shifted(x).sum(), x), [1.0])


def test_it_keeps_its_name_and_documentation(move):
    for f in (ops.multiply, ops.softmax):
        assert f.__doc__ and f.__module__.startswith("minimoe.ops")
    assert (ops.multiply.__name__, ops.softmax.__name__) == ("multiply", "softmax")


def test_numpy_and_cupy_arrays_do_not_mix(move):
    here, there = np.ones(2), move(np.ones(2))
    if type(here) is type(there):
        assert same(ops.add(Tensor(here), there).array, [2.0, 2.0])
        return
    for arguments in [(Tensor(here), there), (here, Tensor(there)), (Tensor(there), Tensor(here))]:
        for f in (ops.add, product_apart_scaled):
            with pytest.raises(TypeError, match="NumPy and CuPy arrays in one call"):
                f(*arguments)
    x = Tensor(there)
    with pytest.raises(TypeError, match="NumPy and CuPy arrays in one call"):
        pullback(x * 2.0, here, x)


def test_a_type_error_inside_an_operation_is_passed_on(move):
    @op
    def fails(x):
        raise TypeError("its own")

    @op
    def fails_with_two(x, y):
        raise TypeError("its own")

    x = tensor(move, [1.0])
    with pytest.raises(TypeError, match="its own"):
        fails(x)
    with pytest.raises(TypeError, match="its own"):
        fails_with_two(x, 1.0)


# -- Errors --------------------------------------------------------------------------------------

def test_the_loss_must_be_a_scalar_tensor(move):
    x = tensor(move, [1.0, 2.0])
    with pytest.raises(ValueError, match=r"grad: the loss must be a scalar; got shape \(2,\)"):
        grad(x * x, x)
    with pytest.raises(ValueError, match=r"got shape \(1,\)"):
        grad((x * x)[:1], x)
    with pytest.raises(TypeError, match="grad: needs a Tensor .*; got float"):
        grad(3.0, x)
    with pytest.raises(TypeError, match="grad: needs a Tensor .*, on which nothing was recorded"):
        grad(x.array.sum(), x)
    with pytest.raises(TypeError, match="grad: needs a Tensor .*; got tuple"):
        value_and_grad(lambda x: (x.sum(), x), x)
    with pytest.raises(TypeError, match="pullback: needs a Tensor .*; got ndarray"):
        pullback(x.array, x.array, x)


def test_the_loss_must_be_of_floats(move):
    x = tensor(move, 1.0)
    with pytest.raises(TypeError, match="grad: needs a Tensor of float32 or float64; got complex"):
        grad(x * 1j, x)


def test_parameters_must_be_tensors(move):
    x = tensor(move, 1.0)
    with pytest.raises(TypeError, match="pullback: parameters must be Tensors; b is ndarray"):
        grad(x * x, {"a": x, "b": x.array})
    with pytest.raises(TypeError, match="parameters must be Tensors; params is float"):
        grad(x * x, 1.0)
    with pytest.raises(TypeError, match="got int64"):
        value_and_grad(lambda x: x.sum(), move(np.arange(3)))


def test_the_cotangent_must_fit_the_output(move):
    x = tensor(move, [1.0, 2.0])
    y = x * x
    for shape in [(), (1,), (3,), (2, 1)]:
        with pytest.raises(ValueError, match=r"shaped like the output, \(2,\)"):
            pullback(y, move(np.ones(shape)), x)
    for g, got in [(1.0, "float"), ([1.0, 1.0], "list")]:
        with pytest.raises(TypeError, match=f"the cotangent: needs .* array; got {got}"):
            pullback(y, g, x)
    for dtype in ("int64", "bool", "complex128"):
        with pytest.raises(TypeError, match=f"the cotangent: .* got {dtype}"):
            pullback(y, move(np.ones(2, dtype)), x)


def test_derivatives_are_of_first_order_only(move):
    x = tensor(move, [1.0, 2.0])
    with pytest.raises(TypeError, match="first order only: the cotangent must be an array"):
        pullback(x * x, Tensor(x.array), x)
    once = grad((x * x * x).sum(), x)
    with pytest.raises(TypeError, match="nothing was recorded"):
        grad(once.sum(), x)


@pytest.mark.parametrize("shape", [(), (1,), (2,), (3, 2), (4, 3), (3, 1)])
def test_a_vjp_that_gives_a_wrong_shape(move, shape):
    @op
    def bad(x):
        return 2 * x, lambda g: (move(np.ones(shape)),)

    x = tensor(move, np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"a vjp gave a cotangent of shape .* to an argument "
                                         r"of shape \(2, 3\)"):
        grad(bad(x).sum(), x)


# -- What it costs -------------------------------------------------------------------------------

def test_a_graph_of_a_hundred_thousand_operations(move):
    """Built, differentiated and let go again: nothing recurses."""
    x = tensor(move, [1.0, -1.0])
    y = x
    for _ in range(50_000):
        y = y * 0.5
        y = y + x
    gradient = grad(y.sum(), x)
    np.testing.assert_allclose(to_numpy(gradient), [2.0, 2.0], rtol=1e-12)
    del y
    gc.collect()


def test_a_thousand_uses_through_900_doublings(move):
    start = time.perf_counter()
    x = tensor(move, 1.0)
    y = x
    for _ in range(900):
        y = y + y
    loss = y * 2.0**-900
    for _ in range(1000):
        loss = loss + x
    assert float(grad(loss, x)) == 1001.0
    assert time.perf_counter() - start < 1.0


ENTRIES = 20_000


def extra_arrays(f):
    """How many arrays of ENTRIES numbers are held at once, at most, beyond those there before."""
    tracemalloc.start()
    try:
        f()
        return tracemalloc.get_traced_memory()[1] / (8 * ENTRIES)
    finally:
        tracemalloc.stop()


@pytest.mark.numpy_only("the memory of NumPy arrays is what tracemalloc sees")
@pytest.mark.parametrize("chain", [
    lambda x, w, y: ops.sin(y),
    lambda x, w, y: y * x,
    lambda x, w, y: x * y,
    lambda x, w, y: y + ops.sin(y),
    lambda x, w, y: ops.sin(w) * y,            # the branch waits, or the trunk does: either order
    lambda x, w, y: y * ops.sin(w),
    lambda x, w, y: ops.tanh(ops.tanh(w) + y),
    lambda x, w, y: ops.tanh(y + ops.tanh(w)),
], ids=["sin(y)", "y*x", "x*y", "y+sin(y)", "sin(w)*y", "y*sin(w)", "tanh(tanh(w)+y)",
        "tanh(y+tanh(w))"])
def test_cotangents_are_dropped_once_used(chain):
    """A pass over 50 steps holds no more arrays at once than a pass over 10."""
    def backward(steps):
        x, w = Tensor(np.full(ENTRIES, 0.9)), Tensor(np.full(ENTRIES, 0.5))
        y = x
        for _ in range(steps):
            y = chain(x, w, y)
        loss = y.sum()
        return extra_arrays(lambda: grad(loss, (x, w)))

    few, many = backward(10), backward(50)
    assert many < few + 0.5
    assert many < 7.5


@pytest.mark.numpy_only("the memory of NumPy arrays is what tracemalloc sees")
def test_operations_on_arrays_record_nothing():
    x = np.full(ENTRIES, 0.9)

    def forward():
        y = x
        for _ in range(50):
            y = ops.sin(y)

    assert extra_arrays(forward) < 3.5

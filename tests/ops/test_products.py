import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimoe import ops
from minimoe.autodiff.check import check_vjp
from minimoe.autodiff.tensor import Tensor, grad
from minimoe.backend import to_numpy

SIZES = {"a": 2, "b": 3, "c": 1, "d": 4, "e": 2}
groups = st.lists(st.lists(st.sampled_from("abcde"), unique=True, max_size=4).map("".join),
                  min_size=1, max_size=3).filter(any)


@st.composite
def subscripts(draw):
    inputs = draw(groups)
    letters = sorted(set("".join(inputs)))
    output = "".join(draw(st.lists(st.sampled_from(letters), unique=True)))
    return ",".join(inputs) + "->" + output


@given(formula=subscripts())
def test_einsum_is_the_sum_of_products_and_its_vjp_the_derivative(move, rng, formula):
    operands = [np.array(rng.standard_normal([SIZES[letter] for letter in group]))
                for group in formula.partition("->")[0].split(",")]
    expected = np.einsum(formula, *operands)
    assert to_numpy(ops.einsum(formula, *move(operands))) == pytest.approx(expected, abs=1e-12)
    check_vjp(lambda *operands: ops.einsum(formula, *operands), *move(operands), rng=rng)


@pytest.mark.parametrize("formula, message", [
    ("ij,jk", "an output after ->"), ("ii,ij->j", "distinct letters"), ("ij,jk->ii", "distinct"),
    ("...i,ij->j", "distinct letters"), ("ij->j", "for each of 2 operands"),
    ("ij,jk->iz", "distinct letters"),
    ("ijk,kl->l", r"'ijk' in .* names 3 axes; got shape \(2, 3\)"),
    ("ij,ik->jk", "'i' in 'ij,ik->jk' must have one size; got 2 and 3")])
def test_formulas_that_do_not_fit(move, formula, message):
    with pytest.raises(ValueError, match=f"einsum: .*{message}"):
        ops.einsum(formula, move(np.ones((2, 3))), move(np.ones((3, 4))))


def test_matmul_needs_an_axis(move):
    with pytest.raises(ValueError, match=r"matmul: needs at least one axis each; got shapes \(\)"):
        ops.matmul(move(np.array(2.0)), move(np.ones(3)))


def test_matmul_of_shapes_that_do_not_fit(move):
    with pytest.raises(ValueError):
        ops.matmul(move(np.ones((5, 2, 3))), move(np.ones((4, 2))))


def test_products_over_nothing_are_0(move):
    a, b = Tensor(move(np.ones((2, 0)))), Tensor(move(np.ones((0, 3))))
    for y in (a @ b, ops.einsum("ij,jk->ik", a, b)):
        assert to_numpy(y.array).tolist() == [[0.0] * 3] * 2
        assert [g.shape for g in grad(y.sum(), [a, b])] == [(2, 0), (0, 3)]

"""The checks can fail: what is wrong by design is rejected, by each check that should see it."""
import numpy as np
import pytest

from minimoe import check_vjp, op, ops
from minimoe.autodiff.check import VjpError
from minimoe.oracle.disagreements import ROUNDING, TOLERANCE, coarsest, disagreements
from minimoe.oracle.runs import RunError
from minimoe.papers import local_experts_1991
from tests.replay import RUNS

ONE_OF_EACH_KIND = list({run.name: run for run in reversed(RUNS)}.values())[::-1]


def replayed(recorded):
    """A recorded run, and what the paper computes from its inputs."""
    run, outputs = recorded.read()
    return run, outputs(run)


def nudged(array, dtype):
    """The array with one number wrong: by one, or the other way round, or by a little more than is
    let pass, which in a run of float64 is its ninth digit.
    """
    array = array.copy()
    place = np.unravel_index(array.size // 2, array.shape)
    if array.dtype == bool:
        array[place] = ~array[place]
    elif array.dtype.kind in "iu":
        array[place] += 1
    elif np.isfinite(array[place]):
        scale = abs(array[np.isfinite(array)]).max()
        array[place] += 20 * max(TOLERANCE[dtype] * scale, ROUNDING * np.finfo(dtype).eps)
    else:
        array[place] = 0
    return array


@pytest.mark.parametrize("recorded", RUNS, ids=str)
def test_a_recorded_run_with_one_number_wrong_is_rejected(recorded):
    run, computed = replayed(recorded)
    assert disagreements(computed, run) == [] and run.outputs
    dtype = coarsest(run)
    for name, array in run.outputs.items():
        wrong = run._replace(outputs={**run.outputs, name: nudged(array, dtype)})
        found, = disagreements(computed, wrong)
        assert (found.output, found.places) == (name, 1)
        assert found.first == np.unravel_index(array.size // 2, array.shape)


@pytest.mark.parametrize("recorded", ONE_OF_EACH_KIND, ids=str)
def test_a_recorded_run_that_lacks_an_output_is_rejected(recorded):
    run, computed = replayed(recorded)
    for name, array in run.outputs.items():
        rest = {other: a for other, a in run.outputs.items() if other != name}
        said = f"out.{name} is missing" if rest else "has no output to compare"
        with pytest.raises(RunError, match=said):
            disagreements(computed, run._replace(outputs=rest))
        with pytest.raises(RunError, match=f"out.{name}: needs shape"):
            longer = np.concatenate([array[None], array[None]])
            disagreements(computed, run._replace(outputs={**rest, name: longer}))


# -- Errors planted in the library itself --------------------------------------------------------

def softmax_doubled(x, *, axis=-1):
    """Its value right, its vjp twice what it should be."""
    @op
    def softmax(x):
        p = ops.exp(ops.log_softmax(x, axis=axis))
        return p, lambda g: (2 * p * (g - (g * p).sum(axis=axis, keepdims=True)),)
    return softmax(x)


def softmax_of_the_first_axis(x, *, axis=-1):
    return softmax_right(x, axis=0)


def softmax_not_normalised_back(x, *, axis=-1):
    """The vjp of exp(x) / constant."""
    @op
    def softmax(x):
        p = ops.exp(ops.log_softmax(x, axis=axis))
        return p, lambda g: (p * g,)
    return softmax(x)


softmax_right = ops.softmax
ERROR = local_experts_1991.competitive_error


@pytest.mark.parametrize("wrong, seen_by_check", [
    (softmax_doubled, True), (softmax_not_normalised_back, True),
    (softmax_of_the_first_axis, False)])      # a vjp that is right, of a function that is not
def test_a_wrong_operation_is_seen(monkeypatch, rng, wrong, seen_by_check):
    runs = [run for run in RUNS if run.paper == "local_experts_1991"]
    d, o, logits = (rng.standard_normal(shape) for shape in [(4, 2), (4, 3, 2), (4, 3)])
    check_vjp(ERROR, d, o, logits, rng=rng)
    monkeypatch.setattr(ops, "softmax", wrong)
    if seen_by_check:
        with pytest.raises(VjpError, match="argument 2: relative error"):
            check_vjp(ERROR, d, o, logits, rng=rng)
    else:
        check_vjp(ERROR, d, o, logits, rng=rng)
    rejected = [str(run) for run in runs if disagreements(*reversed(replayed(run)))]
    assert len(rejected) >= 3


def test_an_error_without_its_factor_is_seen(monkeypatch):
    """A closed form that is right but for a constant passes a check of its vjp, not the replay."""
    right = local_experts_1991.squared_errors
    monkeypatch.setattr(local_experts_1991, "squared_errors", lambda d, o: 0.5 * right(d, o))
    recorded = next(run for run in RUNS if run.paper == "local_experts_1991")
    names = {found.output for found in disagreements(*reversed(replayed(recorded)))}
    assert {"q", "competitive_error", "grad.competitive_error.w_experts"} <= names

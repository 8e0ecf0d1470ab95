import numpy as np
import pytest

from minimoe.oracle.disagreements import disagreements
from minimoe.oracle.runs import Run, RunError


def computed(dtype="float64"):
    """What an oracle returns: a tree of outputs, in the order of computation."""
    return {"expert": np.array([0, 2, 1, 2]), "keep": np.array([True, False, True, True]),
            "y": np.array([[1.0, -4.0], [2.0, 0.0]], dtype), "loss": np.array(0.5, dtype),
            "grad": {"w_gate": np.array([3.0, 1e-9], dtype)}}


def run(dtype="float64", **outputs):
    out = computed(dtype)
    recorded = {"expert": out["expert"], "keep": out["keep"], "y": out["y"], "loss": out["loss"],
                "grad.w_gate": out["grad"]["w_gate"]}
    return Run({"x": np.ones(3, dtype)}, {}, {}, recorded | outputs)


def lines(run, **settings):
    dtype = run.inputs["x"].dtype
    return [str(found) for found in disagreements(computed(dtype), run, **settings)]


def changed(name, place, value, dtype="float64"):
    array = run(dtype).outputs[name].copy()
    array[place] = value
    return run(dtype, **{name: array})


def test_a_run_agrees_with_itself():
    assert lines(run()) == []


def test_the_kind_of_integer_does_not_matter():
    assert lines(run(expert=np.array([0, 2, 1, 2], np.uint8))) == []


def test_an_integer_off_by_one_is_named_with_its_place():
    assert lines(changed("expert", 2, 2)) == [
        "expert differs in 1 of 4 places, first at (2,): computed 1, recorded 2"]


def test_a_flipped_boolean_is_named_with_its_place():
    assert lines(changed("keep", slice(1, 3), [True, False])) == [
        "keep differs in 2 of 4 places, first at (1,): computed False, recorded True"]


def test_floats_are_held_to_the_largest_of_their_array():
    # 1e-10 of 4 is let pass, wherever in the array: 1.8e6 eps of 1, or 4.5e5 of 4
    assert lines(changed("y", (1, 1), 3.9e-10)) == []
    assert lines(changed("y", (1, 1), 4.1e-10)) == [
        "y differs in 1 of 4 places, first at (1, 1): computed 0.0, recorded 4.1e-10; "
        "error up to 4.6e+05 eps, tolerance 4.5e+05"]


def test_disagreements_come_in_the_order_of_computation():
    wrong = run(**{"grad.w_gate": np.zeros(2), "y": np.zeros((2, 2)),
                   "expert": np.zeros(4, int)})
    found = disagreements(computed(), wrong)
    assert [difference.output for difference in found] == ["expert", "y", "grad.w_gate"]
    assert [difference.places for difference in found] == [3, 3, 2]


@pytest.mark.parametrize("recorded", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_agrees_with_none_that_is(recorded):
    found, = disagreements(computed(), changed("y", (0, 1), recorded))
    assert (found.places, found.first, found.error) == (1, (0, 1), np.inf)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_agrees_with_itself_alone(value):
    y = np.array([1.0, value])
    assert disagreements({"y": y}, Run({}, {}, {}, {"y": y.copy()})) == []
    found, = disagreements({"y": y}, Run({}, {}, {}, {"y": np.array([1.0, 2.0])}))
    assert found.first == (1,)


def test_what_cancels_to_nothing_is_held_to_the_rounding_of_numbers_near_one():
    zero = np.zeros(3)
    assert disagreements({"y": zero}, Run({}, {}, {}, {"y": zero + 1e-15})) == []
    found, = disagreements({"y": zero}, Run({}, {}, {}, {"y": zero + 2e-15}))
    assert found.places == 3


def test_float32_anywhere_in_a_run_loosens_its_tolerance():
    assert lines(changed("y", (1, 1), 3.9e-5, "float32")) == []
    assert len(lines(changed("y", (1, 1), 4.1e-5, "float32"))) == 1
    y = computed()["y"]
    assert len(lines(run(y=y + 1e-6))) == 1
    assert lines(run(y=(y + 1e-6).astype("float32"))) == []


@pytest.mark.parametrize("outputs, said", [
    ({"y": None}, "out.y is missing"),
    ({"z": np.ones(3)}, "out.z is unknown; the outputs are expert, keep, y, loss, grad.w_gate"),
    ({"y": np.zeros(4)}, "out.y: needs shape (2, 2); got (4,)"),
    ({"loss": np.array([0.5])}, "out.loss: needs shape (); got (1,)"),
    ({"expert": np.zeros(4)}, "out.expert: needs integers; got float64"),
    ({"keep": np.ones(4, int)}, "out.keep: needs booleans; got int64"),
    ({"loss": np.array(1)}, "out.loss: needs floats; got int64"),
])
def test_outputs_that_cannot_be_compared(outputs, said):
    mine = {name: array for name, array in run(**outputs).outputs.items() if array is not None}
    with pytest.raises(RunError) as caught:
        disagreements(computed(), run()._replace(outputs=mine))
    assert str(caught.value) == said


def test_outputs_may_be_missing_where_that_is_said():
    wrong = changed("expert", 2, 2)
    some = wrong._replace(outputs={"expert": wrong.outputs["expert"]})
    assert len(lines(some, partial=True)) == 1
    with pytest.raises(RunError, match="has no output to compare"):
        disagreements(computed(), some._replace(outputs={}), partial=True)
    with pytest.raises(RunError, match="out.z is unknown"):
        disagreements(computed(), some._replace(outputs={"z": np.ones(1)}), partial=True)

import json

import numpy as np
import pytest

from minimoe.oracle.runs import Run, RunError, read_arrays, read_run, write_run

SCHEMA = {"in.x": "N D", "in.d": "N",
          "param.w_gate": "D E", "param.w_tree.*": "... D", "set.capacity": ""}


@pytest.fixture
def arrays(rng):
    return {"in.x": rng.standard_normal((6, 3)), "in.d": rng.standard_normal(6),
            "param.w_gate": rng.standard_normal((3, 4)),
            "param.w_tree.0": rng.standard_normal((2, 3)),
            "param.w_tree.1": rng.standard_normal((2, 5, 3)),
            "set.capacity": np.array(7), "out.expert": np.arange(6), "out.y": np.ones(6)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mine.npz"


def refused(path, schema=SCHEMA):
    """What read_run says of a file, less the file's name, which begins every line."""
    with pytest.raises(RunError) as caught:
        read_run(path, schema)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    return [line.removeprefix(f"{path}: ") for line in lines]


def test_a_run_is_read_by_group_and_name(arrays, path):
    np.savez(path, **arrays)
    run = read_run(path, SCHEMA)
    assert list(run.inputs) == ["x", "d"]
    assert list(run.params) == ["w_gate", "w_tree.0", "w_tree.1"]
    assert run.settings == {"capacity": 7} and type(run.settings["capacity"]) is int
    assert np.array_equal(run.params["w_tree.1"], arrays["param.w_tree.1"])
    assert run.outputs["expert"].dtype == arrays["out.expert"].dtype


def test_an_input_may_be_of_integers_or_booleans(arrays, path):
    schema = SCHEMA | {"in.token": "int N", "in.padding": "bool N"}
    given = arrays | {"in.token": np.arange(6), "in.padding": np.zeros(6, bool)}
    np.savez(path, **given)
    assert read_run(path, schema).inputs["token"].dtype == np.arange(6).dtype
    np.savez(path, **given | {"in.token": np.ones(6), "in.padding": np.arange(6)})
    assert refused(path, schema) == ["in.token: needs integers; got float64",
                                     "in.padding: needs booleans; got int64"]
    np.savez(path, **given | {"in.token": np.arange(5)})
    assert refused(path, schema) == ["in.token: shape (5,) does not fit N: N is 6 in in.x"]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_write_run_or_numpy_saves_is_what_is_read(arrays, path, tmp_path, save):
    save(path, **arrays)
    run = read_run(path, SCHEMA)
    other = tmp_path / "no_ending"
    write_run(other, run)
    again = read_arrays(other)
    assert list(again) == list(arrays)
    assert all(np.array_equal(again[key], arrays[key]) for key in arrays)


def test_a_tree_of_outputs_is_written_under_its_names(path):
    write_run(path, Run({}, {}, {"steps": 3}, {"grad": {"w": np.ones(2), "v": [np.zeros(1)]}}))
    assert list(read_arrays(path)) == ["set.steps", "out.grad.w", "out.grad.v.0"]


def test_numbers_of_json_that_say_no_dtype_are_floats_where_floats_are_asked_for(tmp_path, arrays):
    path = tmp_path / "mine.json"
    plain = {key: array.tolist() for key, array in arrays.items()}
    path.write_text(json.dumps(plain | {"in.d": [1, 2, 3, 4, 5, 6], "in.token": [0] * 6}))
    run = read_run(path, SCHEMA | {"in.token": "int N"})
    assert run.inputs["d"].dtype == np.float64 and run.inputs["token"].dtype == np.int64
    assert run.settings == {"capacity": 7} and type(run.settings["capacity"]) is int
    path.write_text(json.dumps(plain | {
        "in.d": {"dtype": "int64", "shape": [6], "data": [1, 2, 3, 4, 5, 6]}}))
    assert refused(path) == ["in.d: needs floats; got int64"]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_floats_may_be_narrow(path, arrays, dtype):
    np.savez(path, **{key: array.astype(dtype) if array.dtype == float else array
                      for key, array in arrays.items()})
    run = read_run(path, SCHEMA)
    assert run.inputs["x"].dtype == run.outputs["y"].dtype == dtype


# -- Keys that do not fit ------------------------------------------------------------------------

@pytest.mark.parametrize("changed, said", [
    ({"in.d": None}, ["in.d is missing"]),
    ({"param.w_tree.0": None, "param.w_tree.1": None}, ["param.w_tree.0 is missing"]),
    ({"param.w_tree.0": None},
     ["param.w_tree.0 is missing", f"param.w_tree.1 is unknown; this paper's runs have "
                                   f"{', '.join(SCHEMA)}"]),
    ({"in.y": np.ones(6)}, [f"in.y is unknown; this paper's runs have {', '.join(SCHEMA)}"]),
    ({"x": np.ones(6)}, ["x is unknown; a key begins in., param., set. or out."]),
    ({"in.x": np.ones(6)}, ["in.x: shape (6,) does not fit N D"]),
    ({"in.d": np.ones(5)}, ["in.d: shape (5,) does not fit N: N is 6 in in.x"]),
    ({"param.w_gate": np.ones((4, 3))},
     ["param.w_gate: shape (4, 3) does not fit D E: D is 3 in in.x"]),
    ({"param.w_gate": np.ones((3, 0))}, ["param.w_gate: shape (3, 0) holds nothing"]),
    ({"param.w_tree.1": np.array(1.0)}, ["param.w_tree.1: shape () does not fit ... D"]),
    ({"param.w_tree.1": np.ones((3, 4))},
     ["param.w_tree.1: shape (3, 4) does not fit ... D: D is 3 in in.x"]),
    ({"set.capacity": np.ones(2, int)}, ["set.capacity: shape (2,) does not fit a number"]),
    ({"in.d": np.arange(6)}, ["in.d: needs floats; got int64"]),
    ({"in.d": np.array([1, 2, np.nan, 4, 5, 6])}, ["in.d: holds NaN or infinity"]),
    ({"param.w_gate": np.full((3, 4), np.inf)}, ["param.w_gate: holds NaN or infinity"]),
])
def test_keys_that_do_not_fit(arrays, path, changed, said):
    changed = {key: array for key, array in (arrays | changed).items() if array is not None}
    np.savez(path, **changed)
    assert refused(path) == said

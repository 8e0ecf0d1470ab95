import io
import zipfile

import numpy as np
import pytest

from minimoe.oracle.runs import LARGEST, Run, RunError, read_arrays, read_run, write_run

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


def save_member(path, data, name="in.x.npy"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, data)


def npy(array):
    file = io.BytesIO()
    np.lib.format.write_array(file, array)
    return file.getvalue()


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


def test_byte_order_and_memory_order_do_not_matter(arrays, path):
    x = arrays["in.x"]
    np.savez(path, **arrays | {"in.x": np.asfortranarray(x).astype(">f8")})
    read = read_run(path, SCHEMA).inputs["x"]
    assert np.array_equal(read, x) and read.dtype.isnative


# -- Files that are not ours ---------------------------------------------------------------------

def test_no_file_and_a_directory(path, tmp_path):
    assert refused(path) == ["No such file or directory"]
    assert refused(tmp_path) == ["Is a directory"]


def test_an_empty_file(path):
    path.touch()
    assert refused(path) == ["is empty"]


@pytest.mark.parametrize("data", [b"x", b"N D E\n" * 100, npy(np.ones(3))])
def test_a_file_that_is_no_zip(path, data):
    path.write_bytes(data)
    assert refused(path) == ["is not a .npz file, as numpy.savez writes it"]


@pytest.mark.parametrize("name", ["archive/data.pkl", "in.x", "in.x.npy\n.npy"])
def test_a_zip_of_something_else(path, name):
    save_member(path, b"", name)
    assert refused(path) == [f"{name!a} is not an array saved by numpy.savez"]


def test_a_file_cut_short_anywhere(arrays, path):
    np.savez(path, **arrays)
    whole = path.read_bytes()
    for length in range(4, len(whole), 7):
        path.write_bytes(whole[:length])
        assert refused(path) == ["is truncated or damaged"]


def test_a_flipped_byte_is_found_or_does_no_harm(arrays, path, rng):
    np.savez_compressed(path, **arrays)
    whole = path.read_bytes()
    n_refused = 0
    for place in rng.choice(len(whole), 400, replace=False):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            read_run(path, SCHEMA)
        except RunError as error:
            n_refused += 1
            assert all(line.startswith(f"{path}: ") for line in str(error).splitlines())
    assert n_refused > 200   # the rest hit dates and permissions, which nobody reads


def test_a_flipped_byte_in_a_header_never_escapes(arrays, path, rng):
    whole = npy(arrays["in.x"])
    for place in rng.integers(0, 128, 400):
        damaged = bytearray(whole)
        damaged[place] = rng.integers(256)
        save_member(path, damaged)
        try:
            read_arrays(path)
        except RunError as error:
            assert str(error).startswith(f"{path}: in.x ")


def test_a_pickled_array(arrays, path):
    np.savez(path, **arrays | {"in.x": np.array([[{}]])})
    assert refused(path) == ["in.x holds pickled objects, which are never loaded"]


@pytest.mark.parametrize("dtype", ["complex128", "<U1", "float16", "longdouble", "M8[s]", "V3"])
def test_a_kind_of_number_that_no_run_has(arrays, path, dtype):
    np.savez(path, **arrays | {"in.x": np.zeros((6, 3), dtype)})
    assert refused(path) == [f"in.x holds {np.dtype(dtype)}; "
                             f"needs float32, float64, integers or booleans"]


def test_a_header_that_claims_more_than_is_there(path):
    small = npy(np.ones((1000, 2)))
    huge = small.replace(b"(1000, 2), }       ", b"(10000000000, 2), }")
    assert len(huge) == len(small) and huge != small
    save_member(path, huge)
    assert refused(path) == [
        "in.x has shape (10000000000, 2), which takes 160,000,000,000 bytes; it has 16,000"]


def test_an_archive_that_claims_more_than_a_run_can_be(path):
    save_member(path, npy(np.ones(3)))
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\1\2")
    data[central + 24:central + 28] = (2**31).to_bytes(4, "little")   # size once unpacked
    path.write_bytes(data)
    assert refused(path) == [f"unpacks to 2,147,483,648 bytes, more than {LARGEST:,}"]


@pytest.mark.filterwarnings("ignore:Duplicate name")   # writing it is what warns
def test_a_key_that_is_there_twice(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("in.x.npy", npy(np.ones(3)))
        archive.writestr("in.x.npy", npy(np.zeros(3)))
    assert refused(path) == ["in.x is there twice"]


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
    ({"in.d": np.arange(6)}, ["in.d: needs float32 or float64; got int64"]),
    ({"in.d": np.array([1, 2, np.nan, 4, 5, 6])}, ["in.d: holds NaN or infinity"]),
    ({"param.w_gate": np.full((3, 4), np.inf)}, ["param.w_gate: holds NaN or infinity"]),
])
def test_keys_that_do_not_fit(arrays, path, changed, said):
    changed = {key: array for key, array in (arrays | changed).items() if array is not None}
    np.savez(path, **changed)
    assert refused(path) == said

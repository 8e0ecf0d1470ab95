"""Files of anybody's: what is read, and one clear error each for what is not."""
import json
import os
import struct
import time
import tracemalloc
import zipfile
from io import BytesIO

import numpy as np
import pytest
from safetensors.numpy import save as save_safetensors

from minimoe.oracle.files import END, ENTRY, LOCAL, SMALL, RunError, read_file
from tests.fuzz import ALLOWANCE, FORMATS, corpus, fuzz


@pytest.fixture
def path(tmp_path):
    return lambda ending: tmp_path / f"mine{ending}"


@pytest.fixture
def npz(path):
    return path(".npz")


@pytest.fixture
def safetensors(path):
    return path(".safetensors")


@pytest.fixture
def in_json(path):
    def write(text):
        path(".json").write_text(text)
        return path(".json")
    return write


def refused(path):
    """What read_file says of a file, less the file's name, which begins the line."""
    with pytest.raises(RunError) as caught:
        read_file(path)
    name, said = str(caught.value).split(": ", 1)
    assert name == str(path) and "\n" not in said and len(said) < 400
    return said


def npy(array):
    file = BytesIO()
    np.lib.format.write_array(file, array)
    return file.getvalue()


def save_member(path, data, name="in.x.npy"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, data)


def save_header(path, header, data=b"", length=None):
    """A file of safetensors with whatever header."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = struct.pack("<Q", len(header)) if length is None else length
    path.write_bytes(length + header + data)


def tensor(dtype, shape, *place):
    return {"dtype": dtype, "shape": shape, "data_offsets": list(place)}


def same(found, arrays):
    """Whether keys, dtypes, shapes and every number are the same."""
    return found.keys() == arrays.keys() and all(
        found[key].dtype == array.dtype and np.array_equal(found[key], array, equal_nan=True)
        for key, array in arrays.items())


# -- What is read --------------------------------------------------------------------------------

ALL = {"half": np.array([1.5, -np.inf], np.float16), "float": np.array([[0.1, np.nan]], np.float32),
       "double": np.array([[[0.1], [-0.0]]]), "number": np.array(3.5), "nothing": np.zeros((0, 3)),
       "bool": np.array([True, False]), "byte": np.array([-128, 127], np.int8),
       "long": np.array([-2**63, 2**63 - 1]), "unsigned": np.array([2**64 - 1], np.uint64)}


def as_json(array):
    """As a user of another language would write it."""
    spelled = {np.inf: "Infinity", -np.inf: "-Infinity"}
    flat = [spelled.get(x, "NaN" if x != x else x) for x in array.ravel().tolist()]
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": flat}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_is_read(npz, save):
    save(npz, **ALL)
    arrays, dtypes = read_file(npz)
    assert same(arrays, ALL)
    assert dtypes == {key: array.dtype.name for key, array in ALL.items()}
    assert all(array.flags.writeable and array.flags.aligned for array in arrays.values())


def test_safetensors_are_read(safetensors):
    safetensors.write_bytes(save_safetensors(ALL, metadata={"by": "somebody"}))
    arrays, dtypes = read_file(safetensors)
    assert same(arrays, ALL)
    assert dtypes == {key: array.dtype.name for key, array in ALL.items()}


def test_json_is_read(in_json):
    file = in_json(json.dumps({"__metadata__": {"by": ["somebody", None]},
                               **{key: as_json(array) for key, array in ALL.items()}}))
    arrays, dtypes = read_file(file)
    assert same(arrays, ALL) and np.signbit(arrays["double"][0, 1, 0])
    assert dtypes == {key: array.dtype.name for key, array in ALL.items()}


def test_plain_lists_of_json_are_64_bits_wide_and_of_no_stated_dtype(in_json):
    file = in_json('{"y": [[1, 2.5], [3, "NaN"]], "k": [[1], [2]], "b": true, "e": [], "n": -3}')
    arrays, dtypes = read_file(file)
    assert same(arrays, {"y": np.array([[1, 2.5], [3, np.nan]]), "k": np.array([[1], [2]]),
                         "b": np.array(True), "e": np.zeros(0), "n": np.array(-3)})
    assert set(dtypes.values()) == {""}


def test_data_of_json_may_be_nested_as_the_shape_says(in_json):
    file = in_json('\ufeff \n{"y": {"shape": [2, 1], "dtype": "float32", "data": [[1], [1e-50]]}}')
    assert same(read_file(file).arrays, {"y": np.array([[1], [0]], np.float32)})


@pytest.mark.parametrize("order", "<>")
def test_byte_order_and_memory_order_of_an_archive_do_not_matter(npz, rng, order):
    x, k = rng.standard_normal((6, 3, 2)), rng.integers(9, size=(2, 5))
    np.savez(npz, x=np.asfortranarray(x).astype(f"{order}f8"), k=k.T.astype(f"{order}i2"))
    arrays = read_file(npz).arrays
    assert same(arrays, {"x": x, "k": k.T.astype(np.int16)})
    assert all(array.dtype.isnative for array in arrays.values())


def test_bfloat16_is_widened_and_remembered(safetensors, in_json):
    # 1, -2, and the smallest above 1, which is 1 + 2^-7
    bits = np.array([0x3f80, 0xc000, 0x3f81], "<u2")
    save_header(safetensors, {"y": tensor("BF16", [3], 0, 6)}, bits.tobytes())
    arrays, dtypes = read_file(safetensors)
    assert same(arrays, {"y": np.array([1, -2, 1 + 2**-7], np.float32)})
    assert dtypes == {"y": "bfloat16"}
    file = in_json('{"y": {"dtype": "bfloat16", "shape": [1], "data": [1.0078125]}}')
    assert read_file(file) == ({"y": np.array([1 + 2**-7], np.float32)}, {"y": "bfloat16"})


@pytest.mark.parametrize("format", FORMATS)
def test_the_beginning_tells_the_format_before_the_ending_does(tmp_path, format):
    path = tmp_path / "mine.txt"
    path.write_bytes(corpus()[format][0])
    assert read_file(path).arrays
    os.rename(path, tmp_path / "mine.npz")
    assert read_file(tmp_path / "mine.npz").arrays


# -- What is not ---------------------------------------------------------------------------------

def test_no_file_a_directory_and_a_pipe(tmp_path):
    assert refused(tmp_path / "none") == "No such file or directory"
    assert refused(tmp_path) == "Is a directory"
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe") == "is no regular file"


@pytest.mark.parametrize("ending", [*FORMATS, ""])
def test_an_empty_file(path, ending):
    path(ending).touch()
    assert refused(path(ending)) == "is empty"


@pytest.mark.parametrize("data", [b"x", b"N D E\n" * 100, npy(np.ones(3)), bytes(20)])
def test_a_file_of_another_format(path, data):
    for ending in ("", ".csv", ".npz"):
        path(ending).write_bytes(data)
    assert refused(path("")) == "is neither a .npz file, nor .safetensors, nor .json"
    assert refused(path(".csv")) == refused(path(""))
    assert refused(path(".npz")) == "is not a .npz file, as numpy.savez writes it"


def test_a_pickle(path):
    path(".pt").write_bytes(b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00}.")
    assert refused(path(".pt")) == "is a pickle, which is never loaded"


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_cut_short_anywhere(path, format):
    for whole in corpus()[format]:
        for length in range(1, len(whole), 7):
            path(format).unlink(missing_ok=True)   # on a disk, faster than writing over it
            path(format).write_bytes(whole[:length])
            refused(path(format))


# -- .npz

def test_an_archive_cut_short(npz):
    np.savez(npz, **ALL)
    whole = npz.read_bytes()
    for length in range(4, len(whole), 7):
        npz.unlink()
        npz.write_bytes(whole[:length])
        assert refused(npz) == "is truncated or damaged"


@pytest.mark.parametrize("name", ["archive/data.pkl", "in.x", "in.x.npy\n.npy", "x" * 300 + ".npy"])
def test_an_archive_of_something_else(npz, name):
    save_member(npz, b"", name)
    assert refused(npz) == f"{name[:60]!a} is not an array saved by numpy.savez"


def test_a_member_that_is_no_array(npz):
    save_member(npz, b"0.5, 0.25 ")
    assert refused(npz) == "in.x is not an array saved by numpy.savez"


def test_a_byte_of_a_compressed_array_that_is_wrong(npz, rng):
    np.savez_compressed(npz, x=rng.standard_normal(100))
    data = bytearray(npz.read_bytes())
    data[len(data) // 2] ^= 1
    npz.write_bytes(data)
    assert refused(npz) == "x is truncated or damaged"


def test_a_pickled_array(npz):
    np.savez(npz, x=np.array([[{}]]))
    assert refused(npz) == "x holds pickled objects, which are never loaded"


@pytest.mark.parametrize("dtype, name", [
    ("complex128", "complex128"), ("longdouble", "longdouble"), ("<U1", "'<U1'"),
    ("<M8[s]", "'<M8[s]'"), ("V3", "'|V3'")])
def test_a_kind_of_number_that_no_run_has(npz, dtype, name):
    np.savez(npz, x=np.zeros((6, 3), dtype))
    assert refused(npz) == (f"x holds {name}; needs float16, bfloat16, float32, float64, integers "
                            f"or booleans")


def test_a_structured_array(npz):
    np.savez(npz, x=np.zeros(3, [("a", float), ("b", int)]))
    assert refused(npz).startswith("x holds a structured array; needs float16")


@pytest.mark.parametrize("old, new, said", [
    (b"(1000, 2), }       ", b"(10000000000, 2), }",
     "has shape (10000000000, 2), which takes 160,000,000,000 bytes; it has 16,000"),
    (b"(1000, 2), }       ", b"(1000, 2, 2, 1), } ",
     "has shape (1000, 2, 2, 1), which takes 32,000 bytes; it has 16,000"),
    (b"(1000, 2), }" + 38 * b" ", b"(" + 48 * b"9" + b"}", "is truncated or damaged"),
    (b"'<f8'", b"'|f8'", "holds '|f8', which does not say the order of its bytes"),
    (b"'<f8'", b"'=f8'", "holds '=f8', which does not say the order of its bytes"),
    (b"'<f8'", b"'|O8'", "holds pickled objects, which are never loaded"),
    (b"'<f8'", b"'<>8'", "holds '<>8'; needs "),
    (b"'shape': ", b"'descr': ", "is truncated or damaged"),
    (b"False", b"Maybe", "is truncated or damaged"),
    (b"\x93NUMPY\x01", b"\x93NUMPY\x09", "is not an array saved by numpy.savez"),
    (b"\x93NUMPY\x01\x00v\x00", b"\x93NUMPY\x02\x00v\x00", "has a header of "),
])
def test_a_header_that_claims_what_is_not_so(npz, old, new, said):
    right = npy(np.ones((1000, 2)))
    wrong = right.replace(old, new)
    assert len(wrong) == len(right) and wrong != right
    save_member(npz, wrong)
    assert refused(npz).startswith(f"in.x {said}")


def test_booleans_that_are_neither(npz, safetensors):
    save_member(npz, npy(np.ones(3, bool))[:-1] + b"\x02")
    assert refused(npz) == "in.x holds booleans other than 0 and 1"
    save_header(safetensors, {"keep": tensor("BOOL", [2], 0, 2)}, b"\1\3")
    assert refused(safetensors) == "keep holds booleans other than 0 and 1"


def test_an_archive_that_unpacks_to_far_more_than_it_is(npz):
    np.savez_compressed(npz, x=np.zeros(SMALL // 8 - 20), y=np.zeros(1))
    size = npz.stat().st_size
    assert size < SMALL / 500
    assert refused(npz) == (f"unpacks to {SMALL - 160 + 128 + 136:,} bytes or more, for {size:,} "
                            f"that it has; save it with numpy.savez, uncompressed")
    np.savez_compressed(npz, x=np.zeros(SMALL // 8 - 60), y=np.zeros(1))
    assert read_file(npz).arrays["x"].size == SMALL // 8 - 60


def directory_of(npz):
    data = bytearray(npz.read_bytes())
    return data, data.index(b"PK\1\2")


def test_an_archive_that_claims_gigabytes(npz):
    save_member(npz, npy(np.ones(3)))
    data, entry = directory_of(npz)
    data[entry + 24:entry + 28] = (2**31).to_bytes(4, "little")   # size once unpacked
    npz.write_bytes(data)
    assert refused(npz).startswith("unpacks to 2,147,483,648 bytes or more, for ")


def test_members_that_overlap(npz):
    np.savez(npz, x=np.ones(100), y=np.ones(100))
    data, entry = directory_of(npz)
    second = data.index(b"PK\1\2", entry + 1)
    data[second + 42:second + 46] = bytes(4)   # where it begins
    npz.write_bytes(data)
    assert refused(npz) == "'y.npy' overlaps the member before it"


@pytest.mark.parametrize("place, byte", [(8, 1), (10, 12)])   # encrypted; by bzip2
def test_members_that_are_encrypted_or_of_a_rare_compression(npz, place, byte):
    save_member(npz, npy(np.ones(3)))
    data, entry = directory_of(npz)
    data[entry + place] = byte
    npz.write_bytes(data)
    assert refused(npz) == ("'in.x.npy' is encrypted, or not compressed as numpy.savez does")


def test_an_archive_beyond_four_gigabytes(npz):
    save_member(npz, npy(np.ones(3)))
    data = npz.read_bytes()
    npz.write_bytes(data[:-6] + b"\xff\xff\xff\xff" + data[-2:])   # where its directory begins
    assert refused(npz) == "is an archive of more than 4 GiB, which is not read"


@pytest.mark.filterwarnings("ignore:Duplicate name")   # writing it is what warns
def test_a_key_of_an_archive_that_is_there_twice(npz):
    with zipfile.ZipFile(npz, "w") as archive:
        archive.writestr("in.x.npy", npy(np.ones(3)))
        archive.writestr("in.x.npy", npy(np.zeros(3)))
    assert refused(npz) == "in.x is there twice"


# -- .safetensors

HALVES = {"a": tensor("F64", [2], 0, 16), "b": tensor("F32", [1], 16, 20)}


@pytest.mark.parametrize("header, n_bytes, said", [
    ({"a": tensor("F64", [2], 0, 16), "b": tensor("F32", [1], 12, 16)}, 16, "b overlaps a"),
    ({"a": tensor("F64", [2], 0, 16), "b": tensor("F64", [2], 0, 16)}, 16, "b overlaps a"),
    ({"a": tensor("F64", [2], 4, 20)}, 20, "4 bytes after the header belong to no tensor"),
    ({"a": tensor("F64", [1], 0, 8), "b": tensor("F32", [1], 9, 13)}, 13,
     "1 bytes after a belong to no tensor"),
    (HALVES, 19, "has 19 bytes of tensors; its header says 20"),
    (HALVES, 21, "has 21 bytes of tensors; its header says 20"),
    ({"a": tensor("F64", [2**40], 0, 2**43)}, 0,
     "has 0 bytes of tensors; its header says 8,796,093,022,208"),
    ({"a": tensor("F64", [2**40], 0, 16)}, 16,
     "a has shape (1099511627776,), which takes 8,796,093,022,208 bytes; it has 16"),
    ({"a": tensor("F64", 9 * [2**63], 0, 16)}, 16,
     f"a has shape {(9 * (2**63,))}, which takes far too many bytes; it has 16"),
    ({"a": tensor("U8", [0, 2**62, 2**62], 0, 0)}, 0,
     f"a has shape {(0, 2**62, 2**62)}, which no array can have"),
    ({"a": tensor("F64", 40 * [1], 0, 8)}, 8, "a has 40 axes; needs 32 at most"),
    ({"a": tensor("F64", [-1], 0, 8)}, 8, "a has a shape that is no list of sizes"),
    ({"a": tensor("F64", [True], 0, 8)}, 8, "a has a shape that is no list of sizes"),
    ({"a": tensor("F64", 1, 0, 8)}, 8, "a has a shape that is no list of sizes"),
    ({"a": tensor("F64", [1], 8, 0)}, 8, "a has data_offsets that are no beginning and end"),
    ({"a": tensor("F64", [1], 0, 8.0)}, 8, "a has data_offsets that are no beginning and end"),
    ({"a": tensor("F64", [1], 0)}, 8, "a has data_offsets that are no beginning and end"),
    ({"a": tensor("F8_E4M3", [1], 0, 1)}, 1, "a holds 'F8_E4M3'; needs float16, bfloat16, float32, "
                                             "float64, integers or booleans"),
    ({"a": tensor(64, [1], 0, 8)}, 8, "a holds '64'; needs float16, bfloat16, float32, float64, "
                                      "integers or booleans"),
    ({"a": {"dtype": "F64", "shape": [1]}}, 8,
     "a needs a dtype, a shape and data_offsets, and nothing else"),
    ({"a": []}, 0, "a needs a dtype, a shape and data_offsets, and nothing else"),
    ([], 0, "holds no object of arrays by key"),
    ({"a\nb": tensor("F64", [1], 0, 8)}, 8, "has a key that is no name: 'a\\nb'"),
    (b'{"a": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}, "a": {}}', 8,
     "a is there twice"),
    (b'{"a": {"dtype": "F64", "shape": [1], "shape": [1], "data_offsets": [0, 8]}}', 8,
     "shape is there twice"),
    (b'{"a": ' + 100_000 * b"[", 0, "is nested too deeply"),
    (b'{"a": "\xff"}', 0, "is truncated or damaged: it is not JSON in UTF-8"),
])
def test_a_header_of_safetensors_that_claims_what_is_not_so(safetensors, header, n_bytes, said):
    save_header(safetensors, header, bytes(n_bytes))
    assert refused(safetensors).startswith(said)


def test_a_header_of_safetensors_that_claims_terabytes_or_is_big_endian(safetensors):
    header = json.dumps(HALVES).encode()
    n = len(header)
    save_header(safetensors, header, bytes(20), struct.pack("<Q", 2**42))
    assert refused(safetensors) == (f"claims a header of 4,398,046,511,104 bytes; {n + 20} follow")
    save_header(safetensors, header, bytes(20), struct.pack(">Q", n))
    assert refused(safetensors) == (
        f"claims a header of {int.from_bytes(struct.pack('>Q', n), 'little'):,} bytes; {n + 20} "
        f"follow; that length is big-endian, and needs to be little-endian")


# -- .json

@pytest.mark.parametrize("text, said", [
    ('{"y": [1, 2], "y": [3]}', "y is there twice"),
    ('{"y": {"dtype": "float64", "shape": [1], "data": [1], "data": [2]}}', "data is there twice"),
    ('{"y": [1, NaN]}', 'holds NaN, which JSON does not have; needs "NaN"'),
    ('{"y": [1, -Infinity]}', 'holds -Infinity, which JSON does not have; needs "-Infinity"'),
    ('{"y": [1, 2', "is truncated or damaged: line 1, column 12: Expecting ',' delimiter"),
    ('{"y": [1, 1e400]}', "y holds a number too large for float64"),
    ('{"y": [1, 9223372036854775808]}', "y holds a number too large for int64"),
    ('{"y": {"dtype": "uint8", "shape": [1], "data": [-1]}}',
     "y holds a number too large for uint8"),
    ('{"y": {"dtype": "float32", "shape": [1], "data": [1e39]}}',
     "y holds a number too large for float32"),
    ('{"y": {"dtype": "float64", "shape": [1], "data": [1%s]}}' % (400 * "0"),
     "y holds a number too large for float64"),
    ('{"y": 1%s}' % (5000 * "0"), "is truncated or damaged: it is not JSON in UTF-8"),
    ('{"y": {"dtype": "int64", "shape": [1], "data": [2.0]}}', "y holds something else than int64"),
    ('{"y": {"dtype": "int64", "shape": [1], "data": [true]}}',
     "y holds something else than int64"),
    ('{"y": {"dtype": "bool", "shape": [1], "data": [1]}}', "y holds something else than bool"),
    ('{"y": [1, true]}', "y holds something else than float64"),
    ('{"y": [1, null]}', "y holds something else than float64"),
    ('{"y": [1, {}]}', "y holds something else than float64"),
    ('{"y": "big"}', "y holds text other than NaN, Infinity, -Infinity"),
    ('{"y": {"dtype": "complex64", "shape": [1], "data": [1]}}', "y holds 'complex64'; needs "),
    ('{"y": {"dtype": ">f8", "shape": [1], "data": [1]}}', "y holds '>f8'; needs "),
    ('{"y": {"dtype": 64, "shape": [1], "data": [1]}}', "y holds '64'; needs "),
    ('{"y": {"dtype": "float64", "data": [1]}}', "y needs dtype, shape and data, and nothing else"),
    ('{"y": {"dtype": "float64", "shape": [2], "data": [1]}}',
     "y has shape (2,); its data have (1,)"),
    ('{"y": {"dtype": "float64", "shape": [4], "data": [[1, 2], [3, 4]]}}',
     "y has shape (4,); its data have (2, 2)"),
    ('{"y": {"dtype": "float64", "shape": [1099511627776], "data": []}}',
     "y has shape (1099511627776,); its data have (0,)"),
    ('{"y": {"dtype": "float64", "shape": [0, 4611686018427387904, 9], "data": []}}',
     "y has shape (0, 4611686018427387904, 9), which no array can have"),
    ('{"y": [[1, 2], [3]]}', "y is a list of lists of different lengths"),
    ('{"y": [[1, 2], 3]}', "y is a list of lists of different lengths"),
    ('{"y": [1, [2]]}', "y holds something else than float64"),
    ('{"y": %s1%s}' % (40 * "[", 40 * "]"), "y has more than 32 axes"),
    ('{"y": %s1%s}' % (50_000 * "[", 50_000 * "]"), "is nested too deeply"),
    ('{"a\\nb": 1}', "has a key that is no name: 'a\\nb'"),
    ('{"y": [1]} 2', "is truncated or damaged: line 1, column 12: Extra data"),
])
def test_json_that_is_no_run(in_json, text, said):
    assert refused(in_json(text)).startswith(said)


def test_json_of_a_list_is_known_by_its_ending(in_json):
    assert refused(in_json("[1, 2]")) == "holds no object of arrays by key"


def test_json_in_another_encoding(path):
    path(".json").write_bytes('{"y": 1}'.encode("utf-16"))
    assert refused(path(".json")) == "is truncated or damaged: it is not JSON in UTF-8"


@pytest.mark.parametrize("text", [",".join(["[]"] * 400_000), ",".join(["{}"] * 60_000),
                                  ",".join(["0"] * 500_000)])
def test_json_that_would_take_far_more_memory_than_it_is_long(in_json, text):
    assert refused(in_json(f'{{"y": [{text}]}}')) == (
        f"has {len(text) + 9:,} bytes of JSON, which would take far more memory; "
        f"save it as .npz or .safetensors")


def test_a_letter_beyond_ascii_does_not_make_long_arrays_too_long(in_json, rng):
    x = rng.standard_normal(100_000)
    text = json.dumps({"__metadata__": {"by": "M\u00fcller"}, "x": x.tolist()})
    assert len(text) > 2e6 and "\\u00fc" in text
    assert same(read_file(in_json(text)).arrays, {"x": x})
    assert same(read_file(in_json(text.replace("\\u00fc", "\u00fc"))).arrays, {"x": x})


@pytest.mark.parametrize("format, write", [
    (".npz", lambda path: np.savez(path, **{str(i): np.ones(1) for i in range(4097)})),
    (".safetensors", lambda path: save_header(
        path, {str(i): tensor("U8", [0], 0, 0) for i in range(4097)})),
    (".json", lambda path: path.write_text(json.dumps({str(i): 1 for i in range(4097)}))),
])
def test_more_arrays_than_any_run_has(path, format, write):
    write(path(format))
    assert refused(path(format)) == "holds 4,097 arrays; needs 4,096 at most"


# -- Memory and time -----------------------------------------------------------------------------

def peak_and_seconds(path):
    """Bytes that reading a file takes at most, and how long the processor takes."""
    times = []
    for measured in (False, True):
        if measured:
            tracemalloc.start()
        began = time.process_time()
        try:
            read_file(path)
        except RunError:
            pass
        times.append(time.process_time() - began)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, times[0]


def archive_of(*members):
    """An archive of stated members: name, method, packed bytes, what they unpack to."""
    data, directory = b"", b""
    for name, method, packed, size in members:
        directory += ENTRY.pack(b"PK\1\2", 20, 20, 0, method, 0, 0, 0, len(packed), size, len(name),
                                0, 0, 0, 0, 0, len(data)) + name
        data += LOCAL.pack(b"PK\3\4", 20, 0, method, 0, 0, 0, len(packed), size, len(name), 0)
        data += name + packed
    n = len(members)
    return data + directory + END.pack(b"PK\5\6", 0, 0, n, n, len(directory), len(data), 0)


def saved(save, *arrays):
    file = BytesIO()
    save(file, *arrays)
    return file.getvalue()


@pytest.mark.parametrize("ending, data", [
    (".npz", lambda: saved(np.savez_compressed, np.zeros(2**23))),
    (".npz", lambda: saved(np.savez_compressed, np.zeros(SMALL // 8 - 20))),
    (".npz", lambda: archive_of((b"x.npy", 8, b"\0\0\0\xff\xff" * 2**21, 200))),   # empty blocks
    (".npz", lambda: archive_of(*[(b"%d.npy" % i, 0, b"", 0) for i in range(5000)])),
    (".safetensors", lambda: struct.pack("<Q", 2**22) + b'{"a":[' + b"[]," * 2**21),
    (".json", lambda: b'{"a": [' + b"{}," * 40_000 + b"0]}"),
    (".json", lambda: b'{"a": [' + b"[1]," * 80_000 + b"[0]]}"),
    (".json", lambda: b'{"a": [' + b'"NaN",' * 150_000 + b"0]}"),
    (".json", lambda: b'{"a": [' + (b"9" * 4000 + b",") * 500 + b"0]}"),
    (".json", lambda: b'{"__metadata__": "' + b"a" * 2**22 + b'\\ud83d\\ude00"}'),
    (".json", lambda: b'{"__metadata__": "' + b'\\\\\\"a' * 2**20 + b'\\ud83d\\ude00"}'),
    (".json", lambda: '{"__metadata__": "\U0001f600%s"}'.encode() % (b"a" * 2**22)),
    (".json", lambda: b'{"__metadata__": "' + b'\\"' * 2**21),
    (".json", lambda: b'{"' + b"k" * 2**23 + b'": 1}'),
    (".json", lambda: b'{"a":' + b"[" * 2**22),
])
def test_a_file_that_is_made_to_be_costly(path, ending, data):
    file = path(ending)
    file.write_bytes(data())
    peak, seconds = peak_and_seconds(file)
    assert peak < 4 * file.stat().st_size + SMALL + 2**19
    assert seconds < 1


@pytest.mark.parametrize("save", [
    lambda path, x: np.savez(path, x=x), lambda path, x: np.savez_compressed(path, x=x),
    lambda path, x: np.savez(path, x=x.T.astype(">f8")),
    lambda path, x: path.write_bytes(save_safetensors({"x": x})),
    lambda path, x: save_header(path, {"x": tensor("BF16", [4 * x.size], 0, x.nbytes)},
                                x.tobytes()),
    lambda path, x: path.write_text(json.dumps({"x": x[:100].tolist()})),
], ids=["npz", "compressed", "transposed", "safetensors", "bfloat16", "json"])
def test_memory_is_four_times_the_file_at_most(tmp_path, rng, save):
    path = tmp_path / "mine.npz"
    save(path, rng.standard_normal((1000, 1000)))
    assert read_file(path).arrays
    assert peak_and_seconds(path)[0] < 4 * path.stat().st_size + 2**19


# -- Mutated files -------------------------------------------------------------------------------

@pytest.mark.parametrize("format", FORMATS)
def test_of_mutated_files_nothing_but_a_run_error_comes(format):
    found = fuzz(1000, seed=1, formats=(format,), sample=20)
    assert not found.escaped
    assert found.files == 1000 and found.refused > 500
    assert found.slowest.seconds < 1
    assert found.excess < ALLOWANCE

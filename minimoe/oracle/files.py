"""Arrays from a file of anybody's: ``.npz``, ``.safetensors`` or ``.json``.

A file may come from anywhere. Nothing in it is unpickled, what it claims is held against the bytes
that are there before memory is taken, and whatever is wrong with it is one RunError. However a file
is made, reading it takes no more memory than

    4 times its size, and SMALL, and half a megabyte of buffers

SMALL is for what unpacks: an archive may unpack to 4 times its own size, or to SMALL where that is
more, and text is counted before it is parsed, because a list in Python takes 30 times its text. Of
arrays there are MOST_ARRAYS at most, because each takes its time however small it is.

JSON holds an object, each array of it in full, or as a number or a nested list where 64 bits will
do; numbers that JSON does not have are strings, and what stands under ``__metadata__`` is not read:

    {"out.y": {"dtype": "float32", "shape": [2, 2], "data": [[0.5, "NaN"], ["-Infinity", 2]]},
     "out.keep": [true, false], "set.capacity": 2}
"""
import json
import math
import os
import re
import stat
import struct
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

SMALL = 2**24                # bytes
CHUNK = 2**16
MOST_AXES, MOST_ARRAYS = 32, 4096
METADATA = "__metadata__"    # a key of JSON and of safetensors: text about the file, no array
DAMAGED = "is truncated or damaged"

INTEGERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
FLOATS = {"float16", "float32", "float64"}
DTYPES = {"bool", *INTEGERS, *FLOATS}
NEEDED = "needs float16, bfloat16, float32, float64, integers or booleans"


class ArrayFile(NamedTuple):
    """What a file holds, by key and in its order.

    ``dtypes`` are as the file names them: ``bfloat16`` for what is widened to float32, and nothing
    where a list in JSON does not say, in which ``[1, 2]`` may stand for floats.
    """
    arrays: dict
    dtypes: dict


class RunError(ValueError):
    """A file or run that cannot be used; each argument is one thing that is wrong, in one line."""

    def __str__(self):
        return "\n".join(self.args)


def read_file(path):
    """An ArrayFile: booleans, integers and floats of 16, 32 and 64 bits, in native byte order.

    Which of the three formats it is, its beginning says, and its ending where that is damaged.
    RunError for anything else, and for a file that is missing or damaged.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):
            raise RunError("is no regular file")
        with open(path, "rb") as file, _reports_damage():
            return _read(file, os.fstat(file.fileno()).st_size, Path(path).suffix)
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}") from None
    except RunError as error:
        raise RunError(f"{path}: {error}") from None


@contextmanager
def _reports_damage(where=""):
    """Turns what damaged bytes make Python and NumPy raise into a RunError, and says where."""
    try:
        yield
    except RunError as error:
        raise RunError(f"{where}{error}") from None
    except (struct.error, zlib.error, UnicodeDecodeError):
        raise RunError(f"{where}{DAMAGED}") from None


def _read(file, size, ending):
    start = file.read(9)
    file.seek(0)
    if not start:
        raise RunError("is empty")
    found = _format(start, size) or ending
    if found not in FORMATS:
        raise RunError("is neither a .npz file, nor .safetensors, nor .json")
    arrays, dtypes = {}, {}
    for key, array, dtype in FORMATS[found](file, size):
        arrays[key], dtypes[key] = array, dtype
    return ArrayFile(arrays, dtypes)


def _format(start, size):
    """The ending that a file's first bytes are of, or None."""
    if start[:2] == b"PK":
        return ".npz"
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= size - 8:
        return ".safetensors"
    if b"\0" not in start and start.removeprefix(BYTE_ORDER_MARK).lstrip()[:1] == b"{":
        return ".json"
    if start[:1] == b"\x80" and start[8:] != b"{":
        raise RunError("is a pickle, which is never loaded")
    return None


def _checked(key, seen=()):
    """A key that can be shown in an error."""
    if not key.isprintable() or len(key) > 200:
        raise RunError(f"has a key that is no name: {key[:60]!a}")
    if key in seen:
        raise RunError(f"{key} is there twice")
    return key


def _check_number(n_arrays):
    if n_arrays > MOST_ARRAYS:
        raise RunError(f"holds {n_arrays:,} arrays; needs {MOST_ARRAYS:,} at most")


def _check_size(shape, dtype, there):
    """``shape`` takes the bytes that are there; RunError otherwise."""
    claimed = math.prod(shape) * dtype.itemsize
    if claimed != there:
        takes = f"{claimed:,}" if claimed < 2**64 else "far too many"
        raise RunError(f"has shape {shape}, which takes {takes} bytes; it has {there:,}")


def _filled(shape, dtype, readinto, order="C"):
    """An array in native byte order, of bytes that are read in chunks."""
    flat = np.empty(math.prod(shape), dtype)
    if flat.size:
        view = memoryview(flat.view(np.uint8))
        for begin in range(0, len(view), CHUNK):
            part = view[begin:begin + CHUNK]
            if readinto(part) != len(part):   # the file has shrunk since it was opened
                raise RunError(DAMAGED)
    if dtype == bool and (flat.view(np.uint8) > 1).any():
        raise RunError("holds booleans other than 0 and 1")
    if not flat.dtype.isnative:
        flat = flat.byteswap(inplace=True).view(dtype.newbyteorder("="))
    return _shaped(flat, shape, order)


def _shaped(flat, shape, order="C"):
    try:
        return flat.reshape(shape, order=order)
    except ValueError:   # (0, 2**62): nothing there, and still too large
        raise RunError(f"has shape {shape}, which no array can have") from None


# -- .npz ----------------------------------------------------------------------------------------

END = struct.Struct("<4s4H2IH")        # of an archive: where its directory is
ENTRY = struct.Struct("<4s6H3I5H2I")   # of the directory
LOCAL = struct.Struct("<4s5H3I2H")     # before a member
NPY_HEADER = re.compile(               # in any order; each is there once if all three are
    r"\{\s*" + r",\s*".join([r"""(?:
        ['"]descr['"]:\s*['"](?P<descr%d>[^'"]*)['"]
        | ['"]fortran_order['"]:\s*(?P<fortran%d>True|False)
        | ['"]shape['"]:\s*\((?P<shape%d>(?:\d{1,19},\s*)*(?:\d{1,19})?)\))"""] * 3)
    % (1, 1, 1, 2, 2, 2, 3, 3, 3) + r",?\s*\}\s*", re.VERBOSE)
LONGEST_HEADER = 10_000                # as NumPy has it
NPY_DTYPES = {f"{letter}{bits // 8}": f"{name}{bits}"
              for letter, name in (("i", "int"), ("u", "uint"), ("f", "float"))
              for bits in (8, 16, 32, 64) if f"{name}{bits}" in DTYPES} | {"b1": "bool"}
UNUSABLE = {"c8": "complex64", "c16": "complex128", "f16": "longdouble"}


class Member(NamedTuple):
    """Of an archive, as its directory has it."""
    name: str
    deflated: bool
    checksum: int
    packed: int     # bytes, here and below
    size: int
    offset: int


def _npz(file, size):
    """Key, array and dtype of each member of an archive."""
    if file.read(2) != b"PK":
        raise RunError("is not a .npz file, as numpy.savez writes it")
    seen = set()
    for member in _members(file, size):
        key = member.name.removesuffix(".npy")
        if key == member.name or not key.isprintable() or len(key) > 200:
            raise RunError(f"{member.name[:60]!a} is not an array saved by numpy.savez")
        if key in seen:
            raise RunError(f"{key} is there twice")
        seen.add(key)
        with _reports_damage(f"{key} "):
            array, dtype = _npy(member, Unpacker(file, member))
        yield key, array, dtype


def _members(file, size):
    """The directory of an archive, whose members lie one after another.

    What they claim to unpack to is what will be allocated, so it is limited here.
    """
    file.seek(max(size - END.size - 2**16 + 1, 0))   # a comment may follow
    tail = file.read()
    place = tail.rfind(b"PK\5\6")
    if place < 0:
        raise RunError(DAMAGED)
    *_, n_members, n_bytes, where, n_comment = END.unpack_from(tail, place)
    if 2**32 - 1 in (n_bytes, where):
        raise RunError("is an archive of more than 4 GiB, which is not read")
    _check_number(n_members)
    end = size - len(tail) + place
    if place + END.size + n_comment != len(tail) or where + n_bytes > end:
        raise RunError(DAMAGED)
    file.seek(where)
    directory = file.read(n_bytes)
    place = taken = unpacked = 0
    for _ in range(n_members):
        (signature, _, _, flags, method, _, _, checksum, n_packed, n_unpacked, n_name, n_extra,
         n_comment, *_, offset) = ENTRY.unpack_from(directory, place)
        place += ENTRY.size
        name = directory[place:place + n_name].decode("utf-8")
        place += n_name + n_extra + n_comment
        if signature != b"PK\1\2" or place > n_bytes:
            raise RunError(DAMAGED)
        if method not in (0, 8) or flags & 1:
            raise RunError(f"{name[:60]!a} is encrypted, or not compressed as numpy.savez does")
        if offset < taken:
            raise RunError(f"{name[:60]!a} overlaps the member before it")
        taken = offset + LOCAL.size + n_name + n_packed
        unpacked += n_unpacked
        if taken > where:
            raise RunError(DAMAGED)
        if unpacked > max(4 * size, SMALL):
            raise RunError(f"unpacks to {unpacked:,} bytes or more, for {size:,} that it has; "
                           f"save it with numpy.savez, uncompressed")
        yield Member(name, method == 8, checksum, n_packed, n_unpacked, offset)


class Unpacker:
    """Reads a member as it is unpacked, so that it never lies in memory twice."""

    def __init__(self, file, member):
        file.seek(member.offset)
        signature, _, flags, method, *_, n_name, n_extra = LOCAL.unpack(file.read(LOCAL.size))
        name = file.read(n_name)
        if (signature != b"PK\3\4" or name != member.name.encode() or flags & 1
                or (method == 8) != member.deflated):
            raise RunError(DAMAGED)
        file.seek(n_extra, os.SEEK_CUR)
        self.file, self.left, self.checksum = file, member.packed, 0
        self.inflate = zlib.decompressobj(-zlib.MAX_WBITS) if member.deflated else None

    def read(self, n):
        """The next ``n`` bytes; RunError where there are fewer."""
        data = self._inflated(n) if self.inflate else self._packed(n)
        if len(data) < n:
            raise RunError(DAMAGED)
        self.checksum = zlib.crc32(data, self.checksum)
        return data

    def readinto(self, view):
        view[:] = self.read(len(view))
        return len(view)

    def _packed(self, n):
        data = self.file.read(min(n, self.left))
        self.left -= len(data)
        return data

    def _inflated(self, n):
        data = b""
        while len(data) < n and not self.inflate.eof:
            packed = self.inflate.unconsumed_tail or self._packed(CHUNK)
            piece = self.inflate.decompress(packed, n - len(data))
            if not packed and not piece:
                break
            data += piece
        return data


def _npy(member, unpacker):
    """The array in a member, and its dtype."""
    magic = unpacker.read(8)
    if magic[:6] != b"\x93NUMPY" or magic[6] not in (1, 2, 3):
        raise RunError("is not an array saved by numpy.savez")
    width = 2 if magic[6] == 1 else 4
    n = int.from_bytes(unpacker.read(width), "little")
    if n > min(LONGEST_HEADER, member.size):
        raise RunError(f"has a header of {n:,} bytes; needs {LONGEST_HEADER:,} at most")
    dtype, shape, order = _npy_header(unpacker.read(n).decode("latin1"))
    _check_size(shape, dtype, member.size - 8 - width - n)
    array = _filled(shape, dtype, unpacker.readinto, order)
    if unpacker.checksum != member.checksum:
        raise RunError(DAMAGED)
    return array, array.dtype.name


def _npy_header(header):
    """Dtype, shape and memory order."""
    if re.match(r"""\{\s*['"]descr['"]:\s*\[""", header):
        raise RunError(f"holds a structured array; {NEEDED}")
    match = NPY_HEADER.fullmatch(header)
    found = {name[:-1]: text for name, text in match.groupdict().items()
             if text is not None} if match else {}
    if len(found) < 3:
        raise RunError(DAMAGED)
    descr = found["descr"]
    if "O" in descr[:2]:
        raise RunError("holds pickled objects, which are never loaded")
    code = descr.lstrip("<>|=")
    name = NPY_DTYPES.get(code)
    if name is None or len(code) < len(descr) - 1:
        raise RunError(f"holds {UNUSABLE.get(code, ascii(descr[:20]))}; {NEEDED}")
    dtype = np.dtype(name)
    if dtype.itemsize > 1:
        if descr[0] not in "<>":
            raise RunError(f"holds {descr!a}, which does not say the order of its bytes")
        dtype = dtype.newbyteorder(descr[0])
    return (dtype, _checked_shape([int(n) for n in re.findall(r"\d+", found["shape"])]),
            "F" if found["fortran"] == "True" else "C")


def _checked_shape(shape):
    """A tuple; RunError for what can be no array's shape."""
    if type(shape) is not list or any(type(n) is not int or not 0 <= n < 2**64 for n in shape):
        raise RunError("has a shape that is no list of sizes")
    if len(shape) > MOST_AXES:
        raise RunError(f"has {len(shape)} axes; needs {MOST_AXES} at most")
    return tuple(shape)


# -- .safetensors --------------------------------------------------------------------------------

SAFETENSORS_DTYPES = {"BOOL": "bool", "BF16": "bfloat16", **{
    f"{letter}{bits}": f"{name}{bits}"
    for letter, name in (("I", "int"), ("U", "uint"), ("F", "float"))
    for bits in (8, 16, 32, 64) if f"{name}{bits}" in DTYPES}}


def _safetensors(file, size):
    """Key, array and dtype of each tensor: the length of a header, the header, then their bytes."""
    length = file.read(8)
    n = int.from_bytes(length, "little")
    if len(length) < 8 or n > size - 8:
        little = ("; that length is big-endian, and needs to be little-endian"
                  if int.from_bytes(length, "big") <= size - 8 else "")
        raise RunError(f"claims a header of {n:,} bytes; {max(size - 8, 0):,} follow{little}")
    header = _parsed(file.read(n))
    tensors = {_checked(key): _tensor(key, entry) for key, entry in header.items()
               if key != METADATA}
    end, last = 0, "the header"
    for begin, stop, key in sorted((*place, key) for key, (*_, place) in tensors.items()):
        if begin != end:
            raise RunError(f"{key} overlaps {last}" if begin < end else
                           f"{begin - end:,} bytes after {last} belong to no tensor")
        end, last = stop, key
    if end != size - 8 - n:
        raise RunError(f"has {size - 8 - n:,} bytes of tensors; its header says {end:,}")
    for key, (name, dtype, shape, (begin, _)) in tensors.items():
        file.seek(8 + n + begin)
        with _reports_damage(f"{key} "):
            array = _filled(shape, dtype, file.readinto)
        yield key, _widened(array) if name == "bfloat16" else array, name


def _tensor(key, entry):
    """Dtype, the one to read it in, shape, and the place of a tensor."""
    with _reports_damage(f"{key} "):
        if type(entry) is not dict or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise RunError("needs a dtype, a shape and data_offsets, and nothing else")
        name, place = entry["dtype"], entry["data_offsets"]
        if type(name) is not str or name not in SAFETENSORS_DTYPES:
            raise RunError(f"holds {str(name)[:20]!a}; {NEEDED}")
        shape = _checked_shape(entry["shape"])
        if (type(place) is not list or len(place) != 2
                or any(type(n) is not int for n in place) or not 0 <= place[0] <= place[1] < 2**64):
            raise RunError("has data_offsets that are no beginning and end")
        name = SAFETENSORS_DTYPES[name]
        dtype = np.dtype("uint16" if name == "bfloat16" else name).newbyteorder("<")
        _check_size(shape, dtype, place[1] - place[0])
        return name, dtype, shape, place


def _widened(halves):
    """float32 of the bits of bfloat16, which are its upper half."""
    wide = halves.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


# -- .json ---------------------------------------------------------------------------------------

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
COST = {b",": 72, b"[": 96, b"{": 320, b":": 400}   # bytes at most that Python takes for each
NOT_IN_JSON = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def _json(file, size):
    """Key, array and dtype of each member of an object."""
    for key, value in _parsed(file.read().removeprefix(BYTE_ORDER_MARK)).items():
        if key != METADATA:
            with _reports_damage(f"{_checked(key)} "):
                array, dtype = _array_in_full(value) if type(value) is dict else _plain(value)
            yield key, array, dtype


def _parsed(data):
    """The object in the bytes of JSON; RunError where a key is there twice."""
    cost = sum(data.count(mark) * cost for mark, cost in COST.items()) + _cost_of_text(data)
    if cost > 4 * len(data) + SMALL:
        raise RunError(f"has {len(data):,} bytes of JSON, which would take far more memory; "
                       f"save it as .npz or .safetensors")
    try:
        parsed = json.loads(data.decode("utf-8"), object_pairs_hook=_without_duplicates,
                            parse_constant=_no_constant)
    except RunError:
        raise
    except RecursionError:
        raise RunError("is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise RunError(f"{DAMAGED}: line {error.lineno}, column {error.colno}: "
                       f"{error.msg}") from None
    except ValueError:   # UnicodeDecodeError, or an integer of thousands of digits
        raise RunError(f"{DAMAGED}: it is not JSON in UTF-8") from None
    if type(parsed) is not dict:
        raise RunError("holds no object of arrays by key")
    _check_number(len(parsed))
    return parsed


def _cost_of_text(data):
    """Bytes for the text itself and the strings in it, where one letter can make all wider."""
    if data.isascii() and b"\\" not in data:
        return 3 * len(data)                            # as read, as text, and strings
    rest = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    strings = sum(match.end() - match.start() for match in re.finditer(rb'"[^"]*"', rest))
    return (2 if data.isascii() else 5) * len(data) + 7 * strings


def _without_duplicates(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set()
        for key, _ in pairs:
            seen.add(_checked(key, seen))
    return found


def _no_constant(name):
    raise RunError(f'holds {name}, which JSON does not have; needs "{name}"')


def _array_in_full(value):
    """Of dtype, shape and data, the data nested or flat."""
    if value.keys() != {"dtype", "shape", "data"}:
        raise RunError("needs dtype, shape and data, and nothing else")
    name, shape = value["dtype"], _checked_shape(value["shape"])
    if type(name) is not str or name not in DTYPES | {"bfloat16"}:
        raise RunError(f"holds {str(name)[:20]!a}; {NEEDED}")
    numbers, found = _flat(value["data"])
    if found not in (shape, (math.prod(shape),)):
        raise RunError(f"has shape {shape}; its data have {found}")
    return _shaped(_array(numbers, "float32" if name == "bfloat16" else name), shape), name


def _plain(value):
    """Of a number or a nested list, which say no dtype."""
    numbers, shape = _flat(value)
    types = {type(number) for number in numbers}
    name = "bool" if types == {bool} else "int64" if types == {int} else "float64"
    return _array(numbers, name).reshape(shape), ""


def _flat(value):
    """What lists of lists hold, in one list, and their shape."""
    level, shape = [value], ()
    while level and type(level[0]) is list:
        n = len(level[0])
        if any(type(part) is not list or len(part) != n for part in level):
            raise RunError("is a list of lists of different lengths")
        shape += (n,)
        if len(shape) > MOST_AXES:
            raise RunError(f"has more than {MOST_AXES} axes")
        level = [number for part in level for number in part]
    return level, shape


def _array(numbers, name):
    """A list of numbers as an array of one axis."""
    types = {type(number) for number in numbers}
    if name == "bool" and types - {bool} or name in INTEGERS and types - {int} or (
            types - {int, float, bool} if name not in FLOATS else types - {int, float, str}):
        raise RunError(f"holds something else than {name}")
    n_infinite = 0
    if str in types:
        n_infinite = sum(number in ("Infinity", "-Infinity") for number in numbers)
        if any(type(number) is str and number not in NOT_IN_JSON for number in numbers):
            raise RunError(f"holds text other than {', '.join(NOT_IN_JSON)}")
        numbers = [NOT_IN_JSON[number] if type(number) is str else number for number in numbers]
    try:
        with np.errstate(over="ignore", under="ignore"):
            array = np.array(numbers, name)
    except OverflowError:
        raise RunError(f"holds a number too large for {name}") from None
    if name in FLOATS and np.isinf(array).sum() != n_infinite:
        raise RunError(f"holds a number too large for {name}")
    return array


FORMATS = {".npz": _npz, ".safetensors": _safetensors, ".json": _json}

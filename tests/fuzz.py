"""Files of the three formats, mutated: arrays come of each, or one RunError in one line.

    python -m tests.fuzz --files 1000000 --seed 0

Not a test: ``oracle/test_files.py`` runs a few thousand of the same. A file is made again from its
seed and number alone, ``mutated(seed, number, formats)``.
"""
import argparse
import copy
import io
import json
import os
import struct
import sys
import tempfile
import time
import tracemalloc
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save as save_safetensors

from minimoe.oracle.files import SMALL, RunError, read_file

FORMATS = (".npz", ".safetensors", ".json")
ALLOWANCE = SMALL + 2**19   # bytes beyond 4 times the file: what files.py says, and buffers
MEMORY = "/dev/shm"         # a file system where there is one, far faster than a disk
LONGEST_ERROR = 2000        # characters
NUMBERS = (0, 1, 2, 7, 8, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40,
           2**62, 2**63, 2**64 - 1)
WORDS = (b"<f8", b">f8", b"|O", b"|b1", b"<f2", b"|V8", b"True", b"F64", b"F32", b"BF16", b"F16",
         b"BOOL", b"U8", b"C64", b"float32", b"bool", b"int8", b"bfloat16", b"NaN", b'"NaN"',
         b'"-Infinity"', b"1e999", b"-1", b"1.5", b"null", b"true", b"\\u0000", b"\xff", b"\0",
         b"[", b"]", b"{", b"}", b"(", b")", b",", b":", b'"', b"'", b"[" * 40, b"[" * 5000,
         b"9" * 20, b"9" * 5000, b"PK\1\2", b"PK\3\4", b"PK\5\6", b"\x93NUMPY", b"__metadata__",
         b'"a": 1,', b'"dtype":', b'"data_offsets": [0, 8]', b" " * 64)
VALUES = (None, True, False, *NUMBERS, -1, 1.5, -0.0, 1e308, 10**400, "", "NaN", "Infinity", "F64",
          "F32", "F16", "BF16", "BOOL", "I64", "U8", "float64", "float32", "float16", "bfloat16",
          "bool", "int64", "uint8", "object", ">f8", [], [[]], [[], []], {}, [1, [2]],
          [[1], [2, 3]], [0, 8], [8, 16], [8, 0], [2, 3], [[1, 2], [3, 4.5]], [True, 1], [0] * 40,
          {"data": [1]},
          {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]},
          {"dtype": "float64", "shape": [2], "data": [1, 2]})


class Slowest(NamedTuple):
    seconds: float
    number: int


class Found(NamedTuple):
    """What came of the mutated files."""
    files: int
    refused: int
    escaped: list       # (number, what came out) of each that gave anything else than a RunError
    slowest: Slowest
    peak: int           # bytes, largest of a sample of the files
    excess: int         # bytes beyond 4 times the file, largest of that sample
    sampled: int
    errors: dict        # how often, of the first word of each error


def corpus():
    """Whole files of each format."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 3))
    arrays = {"in.x": x, "param.w.0": np.asfortranarray(x.astype(np.float32)),
              "in.used": np.array([True, False, True, True]), "set.capacity": np.array(2),
              "out.expert": rng.integers(4, size=(4, 1)), "out.y": x.astype(">f8").T,
              "out.f": x[0].astype(np.float16), "out.nothing": np.zeros((0, 3))}
    contiguous = {key: array.astype(array.dtype.newbyteorder("="), order="C")
                  for key, array in arrays.items()}
    in_full = {key: {"dtype": array.dtype.name, "shape": list(array.shape),
                     "data": array.ravel().tolist()} for key, array in contiguous.items()}
    nested = {key: array.tolist() for key, array in contiguous.items()}
    archives = []
    for save in (np.savez, np.savez_compressed):
        archives.append(io.BytesIO())
        save(archives[-1], **arrays)
    return {".npz": [archive.getvalue() for archive in archives],
            ".safetensors": [save_safetensors(contiguous, metadata={"by": "minimoe"}),
                             save_safetensors({"out.y": x})],
            ".json": [json.dumps(in_full).encode(),
                      json.dumps({**nested, "out.z": [0.5, "NaN", "-Infinity"]}, indent=1).encode(),
                      b'{"__metadata__": {"by": "minimoe"}, "out.y": [[0.5, 1], [2, -3e-5]]}']}


WHOLE = corpus()


# -- Mutations: bytes, another file's bytes, generator -> bytes -----------------------------------

def flip_bits(data, other, rng):
    changed = bytearray(data)
    for place in rng.integers(len(data), size=rng.integers(1, 9)):
        changed[place] ^= 1 << rng.integers(8)
    return bytes(changed)


def truncate(data, other, rng):
    return data[:rng.integers(len(data))]


def delete(data, other, rng):
    begin, end = _slice(data, rng)
    return data[:begin] + data[end:]


def repeat(data, other, rng):
    begin, end = _slice(data, rng)
    return data[:end] + data[begin:end] * int(rng.integers(1, 9)) + data[end:]


def splice(data, other, rng):
    """The beginning of one file and the end of another, or a part of another in the middle."""
    begin, end = _slice(other, rng)
    place = rng.integers(len(data) + 1)
    if rng.integers(2):
        return data[:place] + other[begin:]
    return data[:place] + other[begin:end] + data[place + (end - begin) * rng.integers(2):]


def write_number(data, other, rng):
    """A number that matters over 1, 2, 4 or 8 bytes, little-endian or big-endian."""
    number, n = NUMBERS[rng.integers(len(NUMBERS))], 1 << int(rng.integers(4))
    place = rng.integers(len(data))
    order = "big" if rng.integers(4) == 0 else "little"
    return data[:place] + (number % 2**(8 * n)).to_bytes(n, order) + data[place + n:]


def write_word(data, other, rng):
    """A word of the formats, written in or over."""
    word = WORDS[rng.integers(len(WORDS))]
    place = rng.integers(len(data) + 1)
    return data[:place] + word + data[place + len(word) * rng.integers(2):]


def edit_text(data, other, rng):
    """A number in the text of a header made another."""
    digits = [place for place, byte in enumerate(data[:600]) if 48 <= byte < 58]
    if not digits:
        return data
    place = digits[rng.integers(len(digits))]
    number = str(NUMBERS[rng.integers(len(NUMBERS))]).encode()
    return data[:place] + number + data[place + 1:]


MUTATIONS = (flip_bits, truncate, delete, repeat, splice, write_number, write_word, edit_text)


def _slice(data, rng):
    begin = int(rng.integers(len(data) + 1))
    return begin, min(len(data), begin + int(rng.integers(1, 65)))


def _some(data, other, rng):
    """One mutation, or up to four one after another."""
    for _ in range(max(1, rng.integers(-2, 5))):
        if data:
            data = MUTATIONS[rng.integers(len(MUTATIONS))](data, other, rng)
    return data


def _inside_npz(data, other, rng):
    """One member mutated in an archive that is otherwise whole, its checksum right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    chosen, file = rng.integers(len(members)), io.BytesIO()
    how = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[rng.integers(2)]
    with zipfile.ZipFile(file, "w", how) as archive:
        for number, (name, content) in enumerate(members):
            archive.writestr(name, _some(content, other, rng) if number == chosen else content)
    return file.getvalue()


def _inside_safetensors(data, other, rng):
    """The header mutated, and its length right."""
    n = int.from_bytes(data[:8], "little")
    header = _inside_json(data[8:8 + n], other, rng)
    return struct.pack("<Q", len(header)) + header + data[8 + n:]


def _inside_json(data, other, rng):
    """Values made others in JSON that stays JSON, or mutated text."""
    if rng.integers(2):
        return _some(data, other, rng)
    whole = json.loads(data)
    for _ in range(rng.integers(1, 3)):
        _change_value(whole, rng)
    return json.dumps(whole).encode()


def _change_value(whole, rng):
    """Another value at some place: at the top of the tree as likely as deep down."""
    inner = whole
    while True:
        names = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        if not names:
            return
        name = names[rng.integers(len(names))]
        if not isinstance(inner[name], (dict, list)) or rng.integers(4) == 0:
            break
        inner = inner[name]
    if rng.integers(8) == 0:
        del inner[name]
    elif rng.integers(8) == 0:
        inner[name] = [inner[name]]
    else:
        inner[name] = copy.deepcopy(VALUES[rng.integers(len(VALUES))])


INSIDE = {".npz": _inside_npz, ".safetensors": _inside_safetensors, ".json": _inside_json}


def mutated(seed, number, formats=FORMATS):
    """Format and bytes of one mutated file."""
    rng = np.random.default_rng((seed, number))
    ending = formats[number % len(formats)]
    data = WHOLE[ending][rng.integers(len(WHOLE[ending]))]
    others = WHOLE[FORMATS[rng.integers(len(FORMATS))]]
    other = others[rng.integers(len(others))]
    return ending, (INSIDE[ending] if rng.integers(2) else _some)(data, other, rng)


# -- Reading them --------------------------------------------------------------------------------

def fuzz(n_files, seed=0, formats=FORMATS, sample=50, first=0, report=None):
    """Found, of so many mutated files; the memory of one in ``sample`` is measured."""
    refused = peak = sampled = 0
    escaped, errors, slowest, excess = [], {}, Slowest(0.0, -1), -2**63
    with tempfile.TemporaryDirectory(dir=MEMORY if os.path.isdir(MEMORY) else None) as place:
        for number in range(first, first + n_files):
            ending, data = mutated(seed, number, formats)
            path = Path(place, f"mine{ending}")
            path.write_bytes(data)
            measured = number % sample == 0
            if measured:
                tracemalloc.start()
            began = time.process_time()
            try:
                read_file(path)
            except RunError as error:
                refused += 1
                said = str(error).removeprefix(f"{path}: ")
                if len(said) == len(str(error)) or "\n" in said or len(said) > LONGEST_ERROR:
                    escaped.append((number, repr(error)))
                words = " ".join(word for word in said.split()[:4] if word.isalpha())
                errors[words] = errors.get(words, 0) + 1
            except Exception as error:
                escaped.append((number, repr(error)))
            seconds = time.process_time() - began
            if measured:
                taken = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                sampled += 1
                peak, excess = max(peak, taken), max(excess, taken - 4 * len(data))
            elif seconds > slowest.seconds:
                slowest = Slowest(seconds, number)
            if report and (number + 1) % 50_000 == 0:
                report(number + 1)
    return Found(n_files, refused, escaped, slowest, peak, excess, sampled, errors)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    args = parser.parse_args()
    began = time.perf_counter()
    found = fuzz(args.files, args.seed, first=args.first,
                 report=lambda number: print(f"{number:,}", file=sys.stderr))
    seconds = time.perf_counter() - began
    print(f"{found.files:,} mutated files, seed {args.seed}, in {seconds:.0f} s: "
          f"{found.refused:,} refused, {found.files - found.refused:,} read")
    print(f"slowest: {found.slowest.seconds * 1000:.1f} ms of the processor, "
          f"file {found.slowest.number}")
    print(f"memory, of {found.sampled:,}: {found.peak:,} bytes at most, "
          f"{found.excess:,} beyond 4 times the file at most")
    for words, times in sorted(found.errors.items(), key=lambda pair: -pair[1])[:25]:
        print(f"    {times:>9,}  {words}")
    for number, error in found.escaped[:20]:
        print(f"escaped: file {number}: {error[:300]}")
    return 1 if found.escaped or found.slowest.seconds > 1 or found.excess > ALLOWANCE else 0


if __name__ == "__main__":
    sys.exit(main())

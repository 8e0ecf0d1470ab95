"""Checkpoints as Hugging Face's libraries save them: ``config.json`` and safetensors files.

From a folder on this machine: nothing is downloaded, and nothing unpickled. Which tensors a model
needs, and what they are here, is in the file of its paper: ``from_transformers``.
"""
import json
from pathlib import Path

import numpy as np

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


def read_checkpoint(folder):
    """The settings and the tensors by name, as they are in the files. -> dict, dict of arrays

    ``model.safetensors``, or the files that ``model.safetensors.index.json`` lists. float64 and
    float32 stay so, float16 and bfloat16 become float32. ImportError without the package
    safetensors; ValueError, naming the file, for one that is missing, damaged or of another kind,
    and for tensors that are not where the index says.
    """
    folder = Path(folder)
    config = _read_json(folder / CONFIG)
    if (folder / WEIGHTS).exists():
        return config, _read_tensors(folder / WEIGHTS)
    if not (folder / INDEX).exists():
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        raise ValueError(f"read_checkpoint: {folder} has neither {WEIGHTS} nor {INDEX}" + (
            f"; {pickled[0]} is a pickle, which is never loaded: save the model once more with "
            f"save_pretrained(..., safe_serialization=True)" if pickled else ""))
    return config, _read_shards(folder)


def _read_json(path):
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"read_checkpoint: {path}: {error.strerror}") from None
    except ValueError:
        raise ValueError(f"read_checkpoint: {path}: is not JSON") from None
    if not isinstance(found, dict):
        raise ValueError(f"read_checkpoint: {path}: is not a JSON object")
    return found


def _read_shards(folder):
    """The tensors of all files in the index, each from the file that it names."""
    place = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(place, dict) or not all(
            isinstance(name, str) and Path(name).name == name for name in place.values()):
        raise ValueError(f"read_checkpoint: {folder / INDEX}: its weight_map does not name files "
                         f"beside it")
    tensors = {}
    for file in sorted(set(place.values())):
        found, wanted = _read_tensors(folder / file), {n for n in place if place[n] == file}
        if found.keys() != wanted:
            raise ValueError(f"read_checkpoint: {folder / file}: holds other tensors than the "
                             f"index says: {', '.join(sorted(found.keys() ^ wanted)[:3])}")
        tensors |= found
    return tensors


def _read_tensors(path):
    try:
        from safetensors import SafetensorError, deserialize
    except ImportError:
        raise ImportError("read_checkpoint: needs safetensors: "
                          "pip install 'minimoe[checkpoints]'") from None
    try:
        return {name: _array(name, **tensor) for name, tensor in deserialize(path.read_bytes())}
    except OSError as error:
        raise ValueError(f"read_checkpoint: {path}: {error.strerror}") from None
    except SafetensorError as error:
        raise ValueError(f"read_checkpoint: {path}: is damaged, or not a safetensors file: "
                         f"{error}") from None
    except TypeError as error:
        raise ValueError(f"read_checkpoint: {path}: {error}") from None


def _array(name, data, shape, dtype):
    """An array of the bytes of a tensor, which are little-endian."""
    if dtype == "BF16":      # the first half of a float32
        halves = np.frombuffer(data, "<u2").astype(np.uint32)
        return (halves << 16).view(np.float32).reshape(shape)
    if dtype not in DTYPES:
        raise TypeError(f"{name} holds {dtype}; needs {', '.join(DTYPES)} or BF16")
    array = np.frombuffer(data, np.dtype(DTYPES[dtype]).newbyteorder("<")).reshape(shape)
    return array.astype(np.float32 if dtype == "F16" else DTYPES[dtype], copy=False)

import json
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from minimoe.data.huggingface import read_checkpoint

RECORDED = Path(__file__).resolve().parents[2] / "reference_runs" / "recorded" / "transformers"


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of two tensors."""
    (tmp_path / "config.json").write_text('{"d_model": 2}')
    save_file({"a": np.array([[1.0, 2.0]]), "b": np.array([3], "f2")},
              tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture
def shards(tmp_path):
    """One that ``save_pretrained`` wrote in two files."""
    shutil.copytree(RECORDED / "switch_everywhere", tmp_path, dirs_exist_ok=True)
    return tmp_path


def write_raw(path, dtype, data):
    """A safetensors file of one vector, in a dtype that NumPy need not know."""
    header = json.dumps({"a": {"dtype": dtype, "shape": [2], "data_offsets": [0, len(data)]}})
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + data)


def test_a_checkpoint_is_what_was_saved(folder):
    config, tensors = read_checkpoint(str(folder))
    assert config == {"d_model": 2}
    assert tensors["a"].tolist() == [[1.0, 2.0]] and tensors["a"].dtype == np.float64
    assert tensors["b"].tolist() == [3.0] and tensors["b"].dtype == np.float32


def test_bfloat16_becomes_float32(folder):
    write_raw(folder / "model.safetensors", "BF16", np.array([0x3f80, 0xc049], "<u2").tobytes())
    _, tensors = read_checkpoint(folder)
    # 0xc049 = 1 1000 0000 100 1001: -2 (1 + 73/128)
    assert tensors["a"].tolist() == [1.0, -3.140625] and tensors["a"].dtype == np.float32


def test_shards_are_put_together(shards):
    _, tensors = read_checkpoint(shards)
    place = json.loads((shards / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(place.values())) == 2 and tensors.keys() == place.keys()


def refused(folder, message):
    with pytest.raises(ValueError, match=message):
        read_checkpoint(folder)


def test_files_that_are_missing_or_of_another_kind(folder):
    (folder / "model.safetensors").write_bytes(b"not a header, and too short")
    refused(folder, r"model.safetensors: is damaged, or not a safetensors file: ")
    write_raw(folder / "model.safetensors", "I64", bytes(16))
    refused(folder, r"model.safetensors: a holds I64; needs F64, F32, F16 or BF16")
    (folder / "model.safetensors").unlink()
    refused(folder, r"has neither model.safetensors nor model.safetensors.index.json$")
    (folder / "pytorch_model.bin").touch()
    refused(folder, r"pytorch_model.bin is a pickle, which is never loaded: save the model once")
    (folder / "config.json").write_text("[1]")
    refused(folder, r"config.json: is not a JSON object")
    (folder / "config.json").write_text("{")
    refused(folder, r"config.json: is not JSON")
    (folder / "config.json").write_bytes(b"\xff")
    refused(folder, r"config.json: is not JSON")
    refused(folder / "elsewhere", r"config.json: No such file or directory")


def test_shards_that_are_not_what_the_index_says(shards):
    index = shards / "model.safetensors.index.json"
    place = json.loads(index.read_text())["weight_map"]

    def with_places(places):
        index.write_text(json.dumps({"weight_map": places}))

    with_places({**place, "shared.weight": "../model.safetensors"})
    refused(shards, "its weight_map does not name files beside it")
    with_places([])
    refused(shards, "its weight_map does not name files beside it")
    with_places({**place, "more.weight": place["shared.weight"]})
    refused(shards, r"holds other tensors than the index says: more.weight")
    with_places({name: file for name, file in place.items() if name != "shared.weight"})
    refused(shards, r"holds other tensors than the index says: shared.weight")
    with_places({**place, "more.weight": "model-00003-of-00002.safetensors"})
    refused(shards, r"model-00003-of-00002.safetensors: No such file or directory")


def test_without_safetensors_the_error_says_how_to_install_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"safetensors: pip install 'minimoe\[checkpoints\]'"):
        read_checkpoint(folder)

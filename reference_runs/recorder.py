"""What recorders share: one seed, one file format, one manifest.

A recorder runs PyTorch, or a third-party package, in float64 and saves what went in and what came
out. It never imports minimoe: an oracle may not be judged by itself. Files are ``.npz`` with flat
keys (``in.x``, ``param.w_gate``, ``set.capacity``, ``out.y``, ``out.grad.w_gate``), and the
manifest says where each came from. PyTorch is needed to record, never to test:

    pip install torch==2.13.0 numpy        # in an environment of its own
    python -m reference_runs.papers.local_experts_1991
"""
import hashlib
import json
import platform
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
RECORDED = HERE / "recorded"
MANIFEST = HERE / "manifest.json"
KINDS = ("authors", "third-party", "torch", "transcription")   # strongest first


def start(seed):
    """The generator that every draw of a case comes from; PyTorch's own is never used."""
    return np.random.default_rng(seed)


def save(case, *, source, seed, packages=("torch", "numpy"), beside=(), **groups):
    """Write ``recorded/<case>.npz`` and its entry in the manifest.

    ``groups`` are dictionaries of arrays, numbers or PyTorch tensors: ``in``, ``param``, ``set``
    and ``out``, whose names become the keys. ``source`` says where the outputs come from: its
    ``kind`` is one of ``KINDS``. ``beside`` names files below ``recorded`` that belong to the case.
    Written twice from the same arrays, the bytes are the same.
    """
    if source.get("kind") not in KINDS:
        raise ValueError(f"save: a source's kind is one of {', '.join(KINDS)}; "
                         f"got {source.get('kind')!r}")
    arrays = {f"{group}.{name}": _plain(value)
              for group, named in groups.items() for name, value in named.items()}
    path = RECORDED / f"{case}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    manifest = json.loads(MANIFEST.read_text()) if MANIFEST.exists() else {}
    manifest[case] = {
        "sha256": _sha256(path),
        "source": source,
        "seed": seed,
        "versions": {"python": platform.python_version(),
                     **{name: _version(name) for name in packages}},
        "arrays": {key: f"{a.dtype}{list(a.shape)}" for key, a in arrays.items()},
        **({"beside": {name: _sha256(RECORDED / name) for name in beside}} if beside else {}),
    }
    MANIFEST.write_text(json.dumps(dict(sorted(manifest.items())), indent=1) + "\n")
    print(f"recorded {case}: {len(arrays)} arrays, {path.stat().st_size:,} bytes")


def gradients(losses, leaves):
    """``grad.<loss>.<leaf>`` of each; zeros where a loss does not depend on a leaf."""
    import torch
    found = {}
    for loss, value in losses.items():
        flows = torch.autograd.grad(
            value, list(leaves.values()), retain_graph=True, allow_unused=True,
        ) if value.requires_grad else [None] * len(leaves)
        found.update({f"grad.{loss}.{name}": torch.zeros_like(leaf) if flow is None else flow
                      for (name, leaf), flow in zip(leaves.items(), flows)})
    return found


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _plain(value):
    """A contiguous NumPy array, from whatever the recorder holds."""
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return np.ascontiguousarray(value).reshape(np.shape(value))


def _version(name):
    from importlib.metadata import version
    return version(name)

"""What every operation is held to: its recorded PyTorch runs, and points to check its vjp at.

The recorded runs are the list of cases. ``check_vjp`` takes their shapes, indices and settings, and
draws floating entries anew, away from kinks.
"""
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minimoe import ops
from minimoe.autodiff.check import check_vjp
from minimoe.autodiff.tensor import Tensor, pullback
from minimoe.backend import to_numpy

RECORDED = Path(__file__).resolve().parents[2] / "reference_runs" / "recorded" / "ops"
SPREAD = {                      # operations that do not take their arrays one by one
    "concatenate": lambda *arrays, axis: ops.concatenate(arrays, axis),
    "einsum": lambda *operands, subscripts: ops.einsum(subscripts, *operands),
    "getitem": lambda x, *key: ops.getitem(x, key=key),
    "split": lambda x, sizes, axis: ops.concatenate(ops.split(x, sizes, axis)[::-1], axis),
    "stack": lambda *arrays, axis: ops.stack(arrays, axis)}
POSITIVE = {"divide", "log", "log1p", "log_gamma", "power", "sqrt"}     # arguments drawn for these
CAST = {"astype", "round_to_bfloat16"}   # steps: the derivative of what they round, by definition


class Case(NamedTuple):
    """One case of a recorded run."""

    inputs: dict        # argument -> array
    settings: dict
    cotangent: np.ndarray
    value: np.ndarray
    gradients: dict     # floating argument -> array


@cache
def cases(name):
    """The recorded cases of an operation."""
    found = []
    with np.load(RECORDED / f"{name}.npz", allow_pickle=False) as run:
        while f"in.{len(found)}.cotangent" in run:
            i = len(found)
            inputs = _group(run, f"in.{i}.")
            settings = {key: _setting(a.tolist()) for key, a in _group(run, f"set.{i}.").items()}
            found.append(Case(inputs, settings, inputs.pop("cotangent"), run[f"out.{i}.value"],
                              _group(run, f"out.{i}.grad.")))
    return found


def _group(run, prefix):
    return {key.removeprefix(prefix): run[key] for key in run if key.startswith(prefix)}


def _setting(value):
    return tuple(map(_setting, value)) if isinstance(value, list) else value


def apply(name, arguments, settings):
    """The operation, on arrays or Tensors in the order of the recorded inputs."""
    return SPREAD.get(name, getattr(ops, name))(*arguments, **settings)


def distance_from_pytorch(name, move):
    """The largest errors of values and of gradients, each relative to the scale of its tensor."""
    worst = [0.0, 0.0]
    for case in cases(name):
        arguments = {key: Tensor(move(x)) if key in case.gradients else move(x)
                     for key, x in case.inputs.items()}
        out = apply(name, arguments.values(), case.settings)
        gradients = pullback(out, move(case.cotangent),
                             {key: arguments[key] for key in case.gradients})
        worst[0] = max(worst[0], distance(to_numpy(out.array), case.value))
        for key, recorded in case.gradients.items():
            worst[1] = max(worst[1], distance(to_numpy(gradients[key]), recorded))
    return worst


def distance(computed, recorded):
    """The largest difference relative to the largest finite entry; infinite where kinds differ."""
    finite = np.isfinite(recorded)
    if (computed.shape != recorded.shape or computed.dtype != recorded.dtype
            or not np.array_equal(computed[~finite], recorded[~finite], equal_nan=True)):
        return np.inf
    computed, recorded = computed[finite], recorded[finite]
    error, scale = np.abs(computed - recorded), np.abs(recorded)
    return float(error.max(initial=0) / (scale.max(initial=0) or 1))


def vjp_error(name, move, rng):
    """The largest relative error that ``check_vjp`` finds, in the shapes of the recorded cases."""
    worst = 0.0
    for case in cases(name):
        def f(*floating):
            drawn = iter(floating)
            arguments = [next(drawn) if key in case.gradients else move(x)
                         for key, x in case.inputs.items()]
            return apply(name, arguments, case.settings)

        points = [move(np.array(rng.uniform(0.3, 2.5, x.shape) if name in POSITIVE
                                else rng.standard_normal(x.shape)))
                  for x in map(case.inputs.get, case.gradients)]
        worst = max(worst, check_vjp(f, *points, rng=rng))
    return worst

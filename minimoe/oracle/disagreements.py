"""Where a run parts from what a paper's ``oracle`` computes from the same inputs."""
from typing import NamedTuple

import numpy as np

from minimoe import tree
from minimoe.backend import to_numpy
from minimoe.oracle.runs import RunError, kind_of
from minimoe.oracle.tolerances import OF_A_RUN as TOLERANCE

ROUNDING = 8   # eps: let pass also where that number is tiny, for terms near 1 that cancelled


class Disagreement(NamedTuple):
    """One output, the places where it differs, and the first of them.

    ``error`` is the largest, in eps of the output's scale, and ``tolerance`` what would have been
    let pass; both None where equality is asked.
    """
    output: str
    places: int
    size: int
    first: tuple
    computed: object
    recorded: object
    error: float | None
    tolerance: float | None

    def __str__(self):
        line = (f"{self.output} differs in {self.places} of {self.size} places, first at "
                f"{self.first}: computed {self.computed}, recorded {self.recorded}")
        if self.error is None:
            return line
        return f"{line}; error up to {self.error:.2g} eps, tolerance {self.tolerance:.2g}"


def disagreements(computed, run, partial=False):
    """Each output of a run that differs from ``computed``, in the order of computation.

    ``computed`` is the tree that the paper's ``oracle`` returns. Integers and booleans must be
    equal; floats agree within ``TOLERANCE``, of the coarsest dtype in the run. RunError for
    outputs that are missing (``partial`` lets some be), unknown, or of another shape or kind.
    """
    computed = {name: to_numpy(leaf) for name, leaf in tree.named_leaves(computed).items()}
    problems = list(_problems(computed, run.outputs, partial))
    if problems:
        raise RunError(*problems)
    dtype = coarsest(run)
    found = (_difference(name, value, run.outputs[name], dtype)
             for name, value in computed.items() if name in run.outputs)
    return [difference for difference in found if difference]


def _problems(computed, recorded, partial):
    if not recorded:
        yield "has no output to compare; their keys begin out."
        return
    for name, value in computed.items():
        if name not in recorded:
            if not partial:
                yield f"out.{name} is missing"
        elif recorded[name].shape != value.shape:
            yield f"out.{name}: needs shape {value.shape}; got {recorded[name].shape}"
        elif kind_of(recorded[name]) != kind_of(value):
            yield f"out.{name}: needs {kind_of(value)}; got {recorded[name].dtype}"
    for name in recorded:
        if name not in computed:
            yield f"out.{name} is unknown; the outputs are {', '.join(computed)}"


def coarsest(run):
    """The dtype whose tolerance a run is given: float32 where anything in it is."""
    arrays = [*run.inputs.values(), *run.params.values(), *run.outputs.values()]
    return "float32" if any(a.dtype == np.float32 for a in arrays) else "float64"


def _difference(name, computed, recorded, dtype):
    """A Disagreement, or None."""
    differs = (computed != recorded) & ~((computed != computed) & (recorded != recorded))
    error = tolerance = None
    if computed.dtype.kind == "f":
        size = np.abs(computed)
        scale = size.max(where=np.isfinite(size), initial=0.0)
        eps = np.finfo(dtype).eps
        allowed = max(TOLERANCE[dtype] * scale, ROUNDING * eps)
        with np.errstate(invalid="ignore", over="ignore"):   # infinities, and numbers of any size
            distance = np.nan_to_num(np.abs(computed - recorded), nan=np.inf, posinf=np.inf)
        differs &= ~(distance <= allowed)
        worst = distance.max(where=differs, initial=0.0)
        unit = eps * (scale or 1.0)
        error, tolerance = float(worst / unit), float(allowed / unit)
    if not differs.any():
        return None
    first = tuple(np.argwhere(differs)[0].tolist())
    return Disagreement(name, int(differs.sum()), differs.size, first,
                        computed[first], recorded[first], error, tolerance)

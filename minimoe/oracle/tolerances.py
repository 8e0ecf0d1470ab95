"""How far a number may lie from the paper's: the one place where that is decided.

Integers, booleans, shapes and kinds: equal. Floats: within

    c * eps(dtype) * S

not by each element's own last digits, because two libraries that both are right part by far more
than those wherever a sum cancels, and yet by a few eps of the scale S of what was summed. Both c
and S belong to one intermediate of one case, and are measured. The paper's own code computes the
case once in float32, and three times in float64 with every number that goes in moved by an eps of
float32, up or down; the largest distance from the trace in float64, in eps of float32, is its
noise A. Then

    S = max(largest size in the paper's array, A / 8, 1 / 8),   c = 8 A / S, at least 16, at most 64

so that a candidate may err by sixteen eps of the array's scale, or eight times as far as rounding
moves the same computation, where that is more: a gradient that is zero because large terms cancel
has their scale. And it may always err by two eps of 1: a loss near 0 is often the logarithm of a
probability near 1. The noise is that of the way there, so one c serves every dtype, low ones too.

A case of the class ``exact`` has nothing to round before the first transcendental: in float64 and
float32 its logits must be equal to the last bit.

A run of the user's own, or a recorded one, is not a case: nobody chose its numbers so that rounding
stays small. It is held to ``OF_A_RUN``, times S, in float64 and float32.

A decision of the router is judged only where its margin, the gap between the scores of the chosen
and of the next best, is above 8 eps(dtype) of the largest score: what lies below is undetermined,
ties among them.
"""
from typing import NamedTuple

import numpy as np

LEAST, MOST = 16.0, 64.0
TIMES = 8.0               # the noise of the same computation
MARGIN = 8.0              # eps of the largest score: below it, either choice is right
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
OF_A_RUN = {"float64": 1e-10, "float32": 1e-5}   # of the largest number in an array
EXACT = ("logits", "clean")   # of a case of the class exact


class Tolerance(NamedTuple):
    """Of one intermediate of one case."""
    c: float
    scale: float      # S
    exact: bool = False

    def allowed(self, dtype):
        """The distance that is let pass."""
        if self.exact and dtype in ("float64", "float32"):
            return 0.0
        return self.c * EPS[dtype] * self.scale


def coarser(dtype, want):
    """The dtype that decides: the one computed in, or the array's own where that holds less.

    What a paper has in float32, whatever it is given, is held to the eps of float32.
    """
    return max(dtype, want.dtype.name, key=EPS.get)


def scale(want, of_nothing=1.0):
    """The largest finite size in an array, or ``of_nothing`` where there is none above zero."""
    sizes = np.abs(want[np.isfinite(want)])
    return float(sizes.max(initial=0.0)) or of_nothing


def errors(got, want):
    """The distance of each number from the one wanted; equal infinities and NaNs are at 0."""
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.abs(got.astype(np.float64) - want)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    return np.where(same, 0.0, np.nan_to_num(distance, nan=np.inf, posinf=np.inf))


def measured(want, noisy, exact=False):
    """The Tolerance of every intermediate of floats. -> dict

    ``want`` is the trace in float64, ``noisy`` traces of the same case whose rounding is that of
    float32; one in which a decision or a count came out otherwise tells nothing. ``exact`` is for a
    case of that class.
    """
    noisy = [trace for trace in noisy if all(
        (trace[name] == array).all() for name, array in want.items() if array.dtype.kind != "f")]
    found = {}
    for name, array in want.items():
        if array.dtype.kind == "f":
            noise = max((float(errors(trace[name], array).max(initial=0.0)) for trace in noisy),
                        default=0.0) / EPS["float32"]
            noise = noise if np.isfinite(noise) else 0.0
            size = max(scale(array, 0.0), noise * TIMES / MOST, 2 / LEAST)
            c = min(max(TIMES * noise / size, LEAST), MOST)
            found[name] = Tolerance(c, size, exact and name.rpartition(".")[2] in EXACT)
    return found


def of_a_run(want, dtype):
    """The Tolerance of every intermediate of floats in a run whose numbers nobody chose. -> dict

    Never less than ``LEAST`` eps of 1: terms near 1 may have cancelled.
    """
    c = max(OF_A_RUN.get(dtype, 0.0) / EPS[dtype], LEAST)
    return {name: Tolerance(c, max(scale(array), LEAST / c)) for name, array in want.items()
            if array.dtype.kind == "f"}


def margin_of_noise(scores, dtype):
    """The margin below which a router's decision is undetermined."""
    return MARGIN * EPS[dtype] * scale(scores)

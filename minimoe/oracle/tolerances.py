"""How far a number may lie from the paper's: the one place where that is decided.

Integers, booleans, shapes and kinds: equal. Floats: within

    c * eps(dtype) * S,    S the largest size in the paper's array, 1 where all of it is zero

not by each element's own last digits, because two libraries that both are right part by far more
than those wherever a sum cancels, and yet by a few eps of the array's scale. The constant c belongs
to one intermediate of one case and is measured: four times the error, in eps * S, of the paper's
own computation in float32 against that in float64, at least 8 and at most 64. That measures
how much the way to it magnifies rounding, so one c serves every dtype, low ones too: who computes
in bfloat16 may err four times as far as the same computation in that precision would.

A case of the class ``exact`` has nothing to round before the first transcendental: its logits must
be equal to the last bit, in every dtype.

A decision of the router is judged only where its margin, the gap between the scores of the chosen
and of the next best, is above 8 eps(dtype) of the largest score: what lies below is undetermined,
ties among them.
"""
import numpy as np

LEAST, MOST = 8.0, 64.0
TIMES = 4.0               # the error of the same computation in float32
MARGIN = 8.0              # eps of the largest score: below it, either choice is right
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
EXACT = ("logits", "clean")   # of a case of the class exact


def scale(want):
    """S, the largest finite size in an array; 1 where there is none above zero."""
    sizes = np.abs(want[np.isfinite(want)])
    return float(sizes.max(initial=0.0)) or 1.0


def errors(got, want):
    """The distance of each number from the one wanted; equal infinities and NaNs are at 0."""
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.abs(got.astype(np.float64) - want)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    return np.where(same, 0.0, np.nan_to_num(distance, nan=np.inf, posinf=np.inf))


def constants(double, single):
    """c of every intermediate of floats, from its trace in float64 and in float32. -> dict"""
    return {name: constant(single[name], want) for name, want in double.items()
            if want.dtype.kind == "f"}


def constant(single, double):
    """c of one intermediate."""
    error = errors(single, double).max(initial=0.0) / (EPS["float32"] * scale(double))
    return float(min(max(TIMES * error, LEAST), MOST))


def allowed(name, want, c, dtype, exact=False):
    """The distance that is let pass in one intermediate."""
    if exact and name in EXACT:
        return 0.0
    return c * EPS[dtype] * scale(want)


def margin_of_noise(scores, dtype):
    """The margin below which a router's decision is undetermined."""
    return MARGIN * EPS[dtype] * scale(scores)

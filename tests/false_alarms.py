"""How often the oracle accuses the innocent: layers by loops, on random cases, in three precisions.

    python -m tests.false_alarms --cases 10000 --seed 0

Every report that is not ok, or that names a known bug or a convention, is printed. The cases have
random sizes, settings and numbers, some with much padding.
"""
import argparse
import sys

import numpy as np
from tqdm import tqdm

from minimoe import oracle
from minimoe.oracle.cases import Case
from tests.oracle.independent import LAYERS, exactly, to_bfloat16

ROUNDING = {"float64": exactly, "float32": exactly, "bfloat16": to_bfloat16}


def padded(arrays, rng):
    """Some tokens are padding, in a third of the cases."""
    if "in.used" in arrays and rng.integers(3) == 0:
        arrays["in.used"] = rng.random(arrays["in.used"].shape) < 0.7


def random_cases(n, seed):
    """So many cases, kinds in turn. -> iterator of the function and the Case"""
    rng = np.random.default_rng(seed)
    for i in range(n):
        kind = list(LAYERS)[i % len(LAYERS)]
        function, sizes = LAYERS[kind]
        paper, _, inner = kind.partition("/")
        given = sizes(rng)
        names = ("capacity", "k", "n_groups")
        settings = {name: given.pop(name) for name in names if name in given}
        yield function, Case(f"{paper}/random_{seed}_{i}", paper, inner, given, settings, (),
                             padded)


def alarms(n, seed, dtypes=tuple(ROUNDING)):
    """Reports that should not be. -> iterator of (case, dtype, Report or None)"""
    for function, case in random_cases(n, seed):
        for dtype in dtypes:
            report = oracle.check(lambda c: function(c, ROUNDING[dtype]), case, dtype=dtype)
            accused = not report.ok or report.identify() or report.diagnose()
            yield case, dtype, report if accused else None


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    found, n = 0, 0
    for case, dtype, report in tqdm(alarms(args.cases, args.seed), total=3 * args.cases):
        n += 1
        if report:
            found += 1
            tqdm.write(f"{case.sizes} {case.settings}\n{report}\n")
    print(f"{found} false alarms in {n} reports of {args.cases} cases")
    return found > 0


if __name__ == "__main__":
    sys.exit(main())

"""Replay vectors with other kernels of the linear algebra, and with one thread and two.

    minimoe vectors --out vectors --format npz
    python -m tests.vector_replay vectors

OpenBLAS is told to be another processor's, in a process of its own each time; every case is then
computed and held to the vectors: integers exactly, floats by the tolerances of the manifest. Where
a processor lacks what a kernel needs, OpenBLAS takes another, and says so in the output.
"""
import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

CORES = ("Haswell", "Zen", "Nehalem")
THREADS = (1, 2)


def replay(directory):
    """Hold every case to its file. -> errors in eps x scale by case, those out of bounds"""
    from minimoe import oracle
    from minimoe.oracle.runs import read_arrays
    from minimoe.oracle.tolerances import EPS, Tolerance, errors
    worst, wrong = 0.0, []
    for entry in json.loads((directory / "manifest.json").read_text())["cases"]:
        want = read_arrays(directory / entry["file"])
        for name, got in oracle.trace(oracle.case(entry["id"])).items():
            recorded = want[f"out.{name}"]
            if recorded.dtype.kind != "f":
                if not np.array_equal(got, recorded):
                    wrong.append(f"{entry['id']}: {name} is not equal")
                continue
            tolerance = Tolerance(**entry["tolerances"][name])
            error = float(errors(got, recorded).max(initial=0.0))
            in_eps = error / (EPS["float64"] * tolerance.scale)
            worst = max(worst, in_eps)
            if error > tolerance.allowed("float64"):
                wrong.append(f"{entry['id']}: {name} is off by {in_eps:.2g} eps")
    return worst, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--here", action="store_true", help="in this process, as it is")
    args = parser.parse_args()
    if args.here:
        worst, wrong = replay(args.directory)
        print("\n".join([*wrong, f"{len(wrong)} out of bounds; worst {worst:.2g} eps x scale"]))
        return len(wrong) > 0
    failed = False
    for core in CORES:
        for threads in THREADS:
            done = subprocess.run(
                [sys.executable, "-m", "tests.vector_replay", str(args.directory), "--here"],
                env={**os.environ, "OPENBLAS_CORETYPE": core, "OPENBLAS_VERBOSE": "2",
                     "OPENBLAS_NUM_THREADS": str(threads)}, capture_output=True, text=True)
            kernel = next((line for line in (done.stdout + done.stderr).splitlines()
                           if line.startswith("Core: ")), "Core: not said").removeprefix("Core: ")
            print(f"{core} ({kernel}), {threads} threads: {done.stdout.splitlines()[-1]}")
            failed |= done.returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main())

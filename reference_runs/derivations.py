"""Derive the cases of the oracle a second time, and say how near to minimoe's numbers that is.

    python -m reference_runs.derivations [PAPER ...]

A paper's recorder derives: its ``DERIVATIONS`` has, for a kind of run, the function by which that
kind was recorded, from inputs, parameters and settings to outputs by name, in PyTorch and float64;
``THIRD_PARTY`` says which kinds are a third party's own code. Here, and here alone, a recorder's
numbers meet minimoe's: every output of every case is compared, integers must be equal and floats
within the tolerance that the oracle publishes. What agrees is written to derivations.json, beside
the oracle, and becomes part of the exported vectors; what does not is printed, and is an error.
"""
import importlib
import json
import sys
import traceback
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context

import numpy as np

from minimoe import oracle
from minimoe.oracle import index, tolerances
from minimoe.oracle.report import tolerances_of
from minimoe.oracle.schema import HERE
from minimoe.oracle.trace import computed, standard

DERIVED = HERE / "derivations.json"


def derive(case):
    """One case: its entry, or None, and what disagrees."""
    recorder = importlib.import_module(f"reference_runs.papers.{case.paper}")
    if case.kind not in getattr(recorder, "DERIVATIONS", {}):
        return None, ["has no derivation"]
    run = case.run()
    want = computed(case, run)
    try:
        found = recorder.DERIVATIONS[case.kind](tensors(run.inputs), tensors(run.params),
                                                dict(run.settings))
    except Exception:
        return None, traceback.format_exc().splitlines()[-3:]
    got = {standard(name): array(value) for name, value in found.items()}
    worst, faults = compared(got, want, tolerances_of(case, run, want))
    return {"by": by(recorder, case.kind), "agreement": worst}, faults


def tensors(arrays):
    import torch       # here, so that the comparison is tested where there is no PyTorch
    return {name: torch.from_numpy(a.copy()) for name, a in arrays.items()}


def array(value):
    return value.detach().numpy() if hasattr(value, "detach") else np.asarray(value)


def compared(got, want, tolerance):
    """The largest distance in eps of an array's scale, and a line for each output that disagrees.
    """
    worst, faults = 0.0, []
    for name in sorted(got.keys() ^ want.keys()):
        faults.append(f"{name} is {'not derived' if name in want else 'no output of the paper'}")
    for name in (name for name in want if name in got):
        a, b = got[name], want[name]
        if a.shape != b.shape:
            faults.append(f"{name}: shape {a.shape}, minimoe's {b.shape}")
        elif name not in tolerance:
            if a.dtype.kind == "f" or (a != b).any():
                faults.append(f"{name}: {a.ravel()[:9]}, minimoe's {b.ravel()[:9]}")
        else:
            error = float(tolerances.errors(a, b).max(initial=0.0))
            dtype = tolerances.coarser("float64", b)
            eps = error / tolerances.EPS[dtype] / tolerance[name].scale
            worst = max(worst, eps)
            if error > tolerance[name].allowed(dtype):
                faults.append(f"{name}: {eps:.3g} eps, of {tolerance[name].c:.3g}"
                              f"{', must be equal' if tolerance[name].exact else ''}")
    return worst, faults


def by(recorder, kind):
    file = recorder.DERIVATIONS[kind].__module__.replace(".", "/") + ".py"
    package = getattr(recorder, "THIRD_PARTY", {}).get(kind)
    if package:
        return f"{package} {version(package)}, called by {file}"
    return f"PyTorch {version('torch').partition('+')[0]}, from the paper: {file}"


def derive_paper(paper):
    entries, faults = {}, {}
    for case in oracle.cases(paper):
        entry, wrong = derive(case)
        if wrong:
            faults[case.id] = wrong
        else:
            entries[case.id] = [{**entry, "agreement": float(f"{entry['agreement']:.3g}")}]
    return entries, faults


def main(papers):
    """Derive; the number of cases that were not."""
    papers = [index.find(paper) for paper in papers] or index.names()
    kept = json.loads(DERIVED.read_text()) if DERIVED.exists() else {}
    failed = 0
    for paper in papers:         # each in a process of its own: recorders set PyTorch's own default
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            entries, faults = process.submit(derive_paper, paper).result()
        kept = {id: entry for id, entry in kept.items() if not id.startswith(f"{paper}/")}
        kept.update(entries)
        failed += len(faults)
        worst = max((entry["agreement"] for id in entries for entry in entries[id]), default=0.0)
        print(f"{paper}: {len(entries)} derived, to {worst:.3g} eps; {len(faults)} not")
        for id, lines in faults.items():
            print(f"  {id}", *lines, sep="\n    ")
    there = {case.id: None for case in oracle.cases()}
    kept = {id: kept[id] for id in there if id in kept}
    DERIVED.write_text(json.dumps(kept, indent=1) + "\n", encoding="ascii")
    return failed


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)

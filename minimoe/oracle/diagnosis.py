"""Which convention, or which known bug, explains where an implementation parts from a paper.

A variant of the paper explains a difference where the numbers given are the variant's and not the
paper's. It is named where it explains the first of the differences on its branch of the
computation and is contradicted by nothing that was given.
"""
import hashlib
from collections import OrderedDict
from typing import NamedTuple

import numpy as np

from minimoe import tree
from minimoe.autodiff.tensor import stop_gradient
from minimoe.oracle import tolerances
from minimoe.oracle.kinds import module_of
from minimoe.oracle.trace import follows, of_variant
from minimoe.oracle.variants import Variant, conventions

KEPT = 512        # traces of variants, so that a report that is asked twice is not computed twice


class Match(NamedTuple):
    """A variant that explains a difference, and the outputs where the numbers given are its own."""
    variant: Variant
    explains: tuple
    whole: bool      # nothing is left that differs

    def __str__(self):
        source = f" ({self.variant.source})" if self.variant.reported else ""
        rest = "" if self.whole else "; it does not explain everything"
        return f"{self.variant}{source}: explains {', '.join(self.explains)}{rest}"

    def as_json(self):
        return {"name": self.variant.name, "title": self.variant.title,
                "reported": list(self.variant.reported), "explains": list(self.explains),
                "whole": self.whole}


def diagnose(report):
    """The known bugs that explain a report's differences, the fullest explanation first."""
    from minimoe.oracle.known_bugs import KNOWN_BUGS

    return _matches(report, [bug for bug in KNOWN_BUGS if _kind(report.case) in bug.concerns])


def identify(report):
    """The conventions that do, and scales: an output that is the paper's times a size."""
    return _matches(report, conventions(report.case.paper)) + _scales(report)


def _kind(case):
    return f"{case.paper}/{case.kind}" if case.kind else case.paper


def _matches(report, variants):
    if not _differing(report) and not report.misfits:
        return []
    given = _digest(report.run)
    found = [_match(report, variant, given) for variant in variants]
    return sorted(filter(None, found), key=lambda match: (not match.whole, -len(match.explains)))


def _differing(report):
    return [finding for finding in report.findings
            if finding.status in ("differs", "follows")]


def _match(report, variant, given):
    """A Match, or None."""
    other = _trace(report, variant, given)
    if other is None:
        return None
    explains, left = [], []
    for finding in report.findings:
        got, want, varied = (traces.get(finding.name) for traces in (
            report.got, report.want, other))
        if finding.name in report.misfits:
            same = varied is not None and report.misfits[finding.name] == varied.shape
            (explains if same else left).append(finding.name)
            continue
        if got is None or finding.status == "undetermined":
            continue
        if varied is None or varied.shape != want.shape:
            return None
        same = _close(finding, got, want, varied, report.dtype)
        if finding.status == "agrees":
            if not same:
                return None            # contradicted: the paper's numbers are here
        elif same:
            explains.append(finding.name)
        else:
            left.append(finding.name)
    if not explains or any(follows(explains[0], name) and _before(report, name, explains[0])
                           for name in left):
        return None
    return Match(variant, tuple(explains), not left)


def _before(report, name, other):
    names = [finding.name for finding in report.findings]
    return names.index(name) < names.index(other)


def _close(finding, got, want, varied, dtype):
    if varied.dtype.kind != "f":
        return bool((got == varied).all())
    eps = tolerances.EPS[tolerances.coarser(dtype, varied)]
    scale = max(tolerances.scale(varied), finding.scale or tolerances.scale(want))
    bound = max(finding.tolerance or 0, tolerances.LEAST) * eps * scale
    return bool((tolerances.errors(got, varied) <= bound).all())


# -- Traces of variants --------------------------------------------------------------------------

_traces = OrderedDict()      # None for a variant that a case's sizes do not allow


def _trace(report, variant, given):
    """A variant's trace of what went in, without gradients where none were given; or None."""
    gradients = any("grad." in name for name in report.got)
    key = (report.case.paper, report.case.kind, given, gradients,
           *map(id, (variant.replaces, variant.alters, variant.changes)))
    if key not in _traces:
        _traces[key] = variant, _computed(report, variant, gradients)   # the ids stay its own
        if len(_traces) > KEPT:
            _traces.popitem(last=False)
    return _traces[key][1]


def _computed(report, variant, gradients):
    if not gradients and hasattr(module_of(report.case.paper), "grad"):
        variant = variant._replace(replaces={**variant.replaces, "grad": lambda paper: _no_grad})
    try:
        return of_variant(variant, report.case, report.run)
    except Exception:      # whatever a function that is wrong, and sizes that do not suit it, raise
        return None


def _no_grad(loss, params):
    return tree.map(lambda p: 0 * stop_gradient(p), params)


def _digest(run):
    digest = hashlib.sha256(repr(run.settings).encode())
    for name, array in {**run.inputs, **run.params}.items():
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()


# -- Scales --------------------------------------------------------------------------------------

def _scales(report):
    """Outputs that are the paper's times a number made of the case's sizes, as matches."""
    found, differing = [], _differing(report)
    for finding in report.findings:
        if finding.status != "differs" or finding.error is None:
            continue
        for factor, name in _factors(report.case).items():
            scaled = [other.name for other in differing if _is_scaled(report, other, factor)]
            if finding.name in scaled:
                title = f"{finding.name} is the paper's times {name} = {factor:g}"
                found.append(Match(Variant("", title, (), {}), tuple(scaled),
                                   len(scaled) == len(differing)))
                break
    return found


def _is_scaled(report, finding, factor):
    got, want = report.got[finding.name], report.want[finding.name]
    return want.dtype.kind == "f" and _close(finding, got, want, want * factor, report.dtype)


def _factors(case):
    """Numbers by which correct implementations scale, with their names."""
    sizes = {"E": case.sizes.get("E"), "K": case.settings.get("k"),
             "G": case.settings.get("n_groups"),
             **{letter: case.sizes.get(letter) for letter in "TNBM"}, "2": 2}
    named = {}
    for name, n in sizes.items():
        if n and n > 1:
            for factor, text in ((n, name), (1 / n, f"1/{name}"), (n * n, f"{name}^2"),
                                 (1 / (n * n), f"1/{name}^2")):
                named.setdefault(float(factor), text)
    named.setdefault(-1.0, "-1")
    named.setdefault(float(np.log(2.0)), "log 2")
    return named

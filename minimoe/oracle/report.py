"""Where an implementation parts from a paper on one case, and what is to be made of it."""
import difflib
from typing import NamedTuple

import numpy as np

from minimoe import tree
from minimoe.oracle import diagnosis, tolerances
from minimoe.oracle.cases import case as find_case
from minimoe.oracle.runs import kind_of
from minimoe.oracle.trace import as_dtype, computed, follows, known_as
from minimoe.oracle.variants import private_copy

AGREES, DIFFERS, FOLLOWS, UNDETERMINED, NOT_GIVEN = (
    "agrees", "differs", "follows", "undetermined", "not given")


class Finding(NamedTuple):
    """One intermediate. Errors are in units of eps x S, its scale: see ``tolerances``."""
    name: str
    status: str                    # agrees, differs, follows, undetermined, not given
    error: float | None = None     # the largest; None for integers and booleans
    tolerance: float | None = None
    scale: float | None = None     # S
    places: int = 0                # that differ
    size: int = 0
    first: tuple | None = None     # of the places that differ
    got: object = None             # there
    want: object = None
    note: str = ""

    @property
    def where(self):
        """The first place that differs, in words."""
        if self.name.rpartition(".")[2] in PER_CHOICE and len(self.first) >= 2:
            rest = "".join(f", {i}" for i in self.first[2:])
            return f"token {self.first[0]}, choice {self.first[1]}{rest}"
        return str(self.first) if self.first else "the number"


PER_CHOICE = ("expert_index", "position_in_expert", "keep", "margin", "expert_inputs", "hidden",
              "expert_outputs")


class Report:
    """What ``check`` and ``compare`` find.

    ``ok`` where nothing differs and nothing was wrong with what was given. ``findings`` has every
    intermediate of the paper's trace, in the order of computation; ``problems`` what could not be
    used, a line each. ``want`` is the paper's trace, ``got`` what was given, ``misfits`` the shapes
    of what was given in another shape.
    """

    def __init__(self, case, run, dtype, findings, problems, got, want, notes, misfits):
        self.case, self.run, self.dtype = case, run, dtype
        self.findings, self.problems, self.notes = findings, problems, notes
        self.got, self.want, self.misfits = got, want, misfits

    @property
    def ok(self):
        return not self.problems and self.first_divergence is None and any(
            finding.status == AGREES for finding in self.findings)

    @property
    def first_divergence(self):
        """The first Finding, in the order of computation, that differs; None where none does."""
        return next((finding for finding in self.findings if finding.status == DIFFERS), None)

    def of(self, *statuses):
        return [finding for finding in self.findings if finding.status in statuses]

    def identify(self):
        """The conventions that explain a difference. -> list of diagnosis.Match"""
        return diagnosis.identify(self)

    def diagnose(self):
        """The known bugs that explain a difference. -> list of diagnosis.Match"""
        return diagnosis.diagnose(self)

    def __str__(self):
        return "\n".join(_lines(self))

    def as_json(self):
        """The same for programs: a dict of what JSON has."""
        return {
            "case": self.case.id, "kind": self.case.kind, "dtype": self.dtype, "ok": self.ok,
            "problems": self.problems, "notes": self.notes,
            "first_divergence": self.first_divergence and self.first_divergence.name,
            "findings": [_plain(finding) for finding in self.findings],
            "conventions": [match.as_json() for match in self.identify()],
            "known_bugs": [match.as_json() for match in self.diagnose()]}


def _plain(finding):
    def plain(x):
        if isinstance(x, np.generic):
            x = x.item()
        return str(x) if isinstance(x, float) and not np.isfinite(x) else x
    return {**{name: plain(value) for name, value in finding._asdict().items()},
            "first": finding.first and list(finding.first)}


# -- Comparing -----------------------------------------------------------------------------------

def compare(case, outputs, dtype="float64", problems=(), run=None):
    """Hold outputs, arrays by name, to what a paper makes of a case. -> Report

    ``run`` stands in for the case's own arrays: a user's, of the same kind. Nothing is changed in
    ``outputs``, which may have any of the trace's names (``trace.ALIASES`` are understood).
    ValueError for a dtype that has no tolerance.
    """
    if dtype not in tolerances.EPS:
        raise ValueError(f"compare: dtype must be one of {', '.join(tolerances.EPS)}; got {dtype}")
    own = run is not None
    if not own:
        case = find_case(case)
        run = case.run()
    want = computed(case, as_dtype(run, "float64"))
    tolerance = tolerances.of_a_run(want, dtype) if own else tolerances_of(case, run, want)
    problems, got, misfits = list(problems), {}, {}
    for name, array in outputs.items():
        problem = _take(got, misfits, name, array, want)
        if problem:
            problems.append(problem)
    want, notes, loose = _with_decisions(case, run, got, want, dtype)
    findings, differing = [], []
    for name, array in want.items():
        finding = _finding(name, got.get(name), array, tolerance.get(name), dtype)
        if finding.status == DIFFERS:
            if any(follows(name, earlier) for earlier in loose):
                finding = finding._replace(status=UNDETERMINED)
            elif any(follows(name, earlier) for earlier in differing):
                finding = finding._replace(status=FOLLOWS)
            differing.append(name)
        if name in loose and finding.status in (DIFFERS, FOLLOWS, AGREES):
            finding = finding._replace(status=UNDETERMINED, note=loose[name])
        findings.append(finding)
    return Report(case, run, dtype, findings, problems, got, want, notes, misfits)


def _take(got, misfits, given, array, want):
    """Put an output under the trace's name for it; what is wrong with it, or None."""
    name = known_as(given, want)
    if name is None:
        near = difflib.get_close_matches(given, want, n=3, cutoff=0.5)
        return (f"{given} is not an intermediate of this case; "
                f"{'near' if near else 'there are'}: {', '.join(near or want)}")
    if name in got:
        return f"{given} is given twice, once as {name}"
    if not isinstance(array, np.ndarray):
        return f"{given}: needs an array; got {type(array).__name__}"
    wanted = want[name]
    if array.dtype.kind not in "biuf":
        return f"{given}: needs {kind_of(wanted)}; got {array.dtype}"
    if array.shape != wanted.shape:
        if array.size != wanted.size or array.squeeze().shape != wanted.squeeze().shape:
            misfits[name] = array.shape
            return f"{given}: needs shape {wanted.shape}; got {array.shape}"
        array = array.reshape(wanted.shape)      # [T] for [T, 1], where there is one choice
    kinds = {array.dtype.kind, wanted.dtype.kind}
    if ("f" in kinds) != (kinds == {"f"}):
        whole = array.dtype.kind == "f" and np.isfinite(array).all() and (array % 1 == 0).all()
        if wanted.dtype.kind == "f" or not whole:
            return f"{given}: needs {kind_of(wanted)}; got {array.dtype}"
        array = array.astype(np.int64)
    elif wanted.dtype.kind == "b" and array.dtype.kind != "b":
        if not np.isin(array, (0, 1)).all():
            return f"{given}: needs booleans; got {array.dtype}"
        array = array.astype(bool)
    got[name] = array
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = ~np.isfinite(array) & np.isfinite(wanted)
        if bad.any():
            first = tuple(np.argwhere(bad)[0].tolist())
            return f"{given} is {array[first]} in {bad.sum()} places, first at {first}"
    return None


def tolerances_of(case, run, want):
    """The Tolerance of every intermediate of floats of a run of a case's kind. -> dict"""
    exact = "exact" in case.tags
    noisy = [as_dtype(run, "float32")]
    if not exact:                 # where zeros and ties are meant, a nudge would be another case
        noisy += [nudged(as_dtype(run, "float64"), seed) for seed in range(3)]
    traces = []
    for other in noisy:
        try:
            traces.append(computed(case, other))
        except ValueError:        # a nudge that the paper refuses
            continue
    return tolerances.measured(want, traces, exact)


def nudged(run, seed):
    """The run with every float moved by an eps of float32, up or down; 0 and 1 stay."""
    rng = np.random.default_rng(seed)

    def nudge(x):
        if x.dtype.kind != "f":
            return x
        moved = x * (1 + tolerances.EPS["float32"] * rng.choice([-1.0, 1.0], x.shape))
        return np.where(x == 1, x, moved)
    return run._replace(inputs=tree.map(nudge, run.inputs), params=tree.map(nudge, run.params))


def _finding(name, got, want, tolerance, dtype):
    if got is None:
        return Finding(name, NOT_GIVEN, size=want.size)
    error = allowed = scale = None
    if tolerance is None:
        wrong = got != want
    else:
        dtype = tolerances.coarser(dtype, want)
        distance, bound = tolerances.errors(got, want), tolerance.allowed(dtype)
        scale = tolerance.scale
        unit = tolerances.EPS[dtype] * scale
        wrong, error = distance > bound, float(distance.max(initial=0.0) / unit)
        allowed = bound / unit
    if not wrong.any():
        return Finding(name, AGREES, error, allowed, scale, size=want.size)
    first = tuple(np.argwhere(wrong)[0].tolist())
    return Finding(name, DIFFERS, error, allowed, scale, int(wrong.sum()), want.size, first,
                   got[first].item(), want[first].item())


# -- Decisions -----------------------------------------------------------------------------------

def _with_decisions(case, run, got, want, dtype):
    """The trace to compare with, where a decision's scores are within rounding of each other.

    Decisions that differ only there are taken for the user's right, and the paper is computed again
    with them. -> trace, notes, {name of a decision: why what follows from it cannot be judged}
    """
    notes, loose, taken = [], {}, {}
    for name, close in list(_close(run, want, dtype)):
        share = f"{close.sum()} of {close.size} tokens decide within rounding of a tie"
        chosen = got.get(name)
        if chosen is None:
            loose[name] = f"{share}; give {name} to be judged"
            notes.append(f"{name}: {loose[name]}")
            continue
        moved = (chosen != want[name]).reshape(*close.shape, -1).any(axis=-1)
        if moved.any() and (moved <= close).all():
            forced = _forced(case, run, want, {**taken, name: chosen})
            if forced is None:
                loose[name] = f"{share}, and {moved.sum()} decide otherwise than the paper"
                notes.append(f"{name}: {loose[name]}")
            else:
                want, taken[name] = forced, chosen
                notes.append(f"{name}: {share}; {moved.sum()} decide otherwise than the paper, "
                             "which is computed again with these decisions")
    return want, notes, loose


def _close(run, want, dtype):
    """Name of each decision that has some within rounding, and which those are. [T] bool"""
    for name in want:
        prefix, _, last = name.rpartition(".")
        beside = f"{prefix}." if prefix else ""
        if last == "expert_index" and beside + "margin" in want:
            margin = want[beside + "margin"]
            scores = next((want[beside + score] for score in ("noisy", "logits", "clean", "gates")
                           if beside + score in want), margin)
            close = (margin < tolerances.margin_of_noise(scores, dtype)).any(axis=-1)
        elif last == "wanted" and beside + "gate" in want and "u" in run.inputs:
            u = run.inputs["u"]                         # a second expert where 2 g_2 > u
            margin = np.abs(2 * want[beside + "gate"][..., 1].reshape(u.shape) - u)
            close = margin < tolerances.margin_of_noise(np.ones(1), dtype)
        elif last == "position_in_expert" and beside + "score" in want:
            close = _near_another(want[beside + "score"], dtype)
        else:
            continue
        if close.any():
            yield name, close


def _near_another(score, dtype):
    """Whose place in a queue by score is within rounding of another's. [T] -> [T] bool"""
    order = score.argsort(kind="stable")
    near = np.diff(score[order]) < tolerances.margin_of_noise(score, dtype)
    close = np.zeros(len(score), bool)
    close[order[1:]] |= near
    close[order[:-1]] |= near
    return close


STANDS_FOR = {"expert_index": "top_k", "wanted": "second_random"}   # in the papers


def _forced(case, run, want, taken):
    """The trace with a user's decisions in place of the paper's, or None where that cannot be."""
    def make(name, chosen):
        def decide(paper):
            right = getattr(paper, STANDS_FOR[name.rpartition(".")[2]])

            def decided(*args, **settings):
                found = right(*args, **settings)
                return chosen.reshape(found.shape) if found.size == chosen.size else found
            return decided
        return decide
    try:
        trace = computed(case, as_dtype(run, "float64"), private_copy(case.paper, {
            STANDS_FOR[name.rpartition(".")[2]]: make(name, chosen)
            for name, chosen in taken.items()}))
    except (AttributeError, KeyError, ValueError):
        return None
    return trace if all((trace[name] == chosen).all() for name, chosen in taken.items()) else None


# -- In words ------------------------------------------------------------------------------------

def _lines(report):
    first = report.first_divergence
    given = report.of(AGREES, DIFFERS, FOLLOWS, UNDETERMINED)
    verdict = "agrees with" if report.ok else "parts from" if first else "cannot be held to"
    yield f"{verdict} {report.case.id} in {report.dtype}"
    for problem in report.problems:
        yield f"  problem: {problem}"
    for note in report.notes:
        yield f"  note: {note}"
    if not given:
        yield "  nothing was given that the paper's trace has"
        return
    width = max(len(finding.name) for finding in given)
    for finding in given:
        yield f"  {MARKS[finding.status]} {finding.name:<{width}}  {_said(finding)}"
    not_given = [finding.name for finding in report.of(NOT_GIVEN)
                 if not finding.name.startswith("grad.")]
    if not_given:
        yield f"  not given: {', '.join(not_given)}"
    if first:
        before = [f for f in report.findings[:report.findings.index(first)] if f.status == AGREES]
        agreed = f"{before[-1].name} {_said(before[-1])}; " if before else ""
        yield f"first divergence: {agreed}{first.name} {_said(first)}"
    for match in report.identify():
        yield f"convention: {match}"
    for match in report.diagnose():
        yield f"known bug: {match}"


MARKS = {AGREES: "=", DIFFERS: "X", FOLLOWS: ".", UNDETERMINED: "?"}


def _said(finding):
    if finding.status == AGREES:
        return ("agrees" if finding.error is None
                else f"agrees to {finding.error:.2g} eps (of {finding.tolerance:.2g})")
    if finding.status == UNDETERMINED:
        return f"undetermined: {finding.note or 'follows from choices within rounding of a tie'}"
    differs = (f"differs first at {finding.where}: yours {_shown(finding.got)}, paper's "
               f"{_shown(finding.want)}; {finding.places} of {finding.size} places")
    if finding.error is not None:
        differs += f", up to {finding.error:.2g} eps (of {finding.tolerance:.2g})"
    return f"{differs}; a consequence" if finding.status == FOLLOWS else differs


def _shown(value):
    return f"{value:.6g}" if isinstance(value, float) else str(value)

"""What the adapters share: a check, what it found on every case, and the table of all of them.

An adapter translates one package: it gives a package's own code the case's weights in the package's
layout and the case's draws for the package's own, and hands back what that code computed under the
paper's names. It mends nothing. Whatever differs must have been read in the package's source: a
difference without a ``Reading`` is an error, and so is a reading of something that does not differ.
"""
import hashlib
import json
import platform
import re
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Callable, NamedTuple
from unittest import mock

from minimoe import oracle

RECORDED = Path(__file__).resolve().parents[1] / "third_party.json"


class Reading(NamedTuple):
    """Where the package's source does what makes the difference."""
    at: str              # the output that differs
    source: str          # file and function
    why: str             # in a sentence
    name: str = ""       # what the oracle must call it in a case or more: "R2", or a convention


class Check(NamedTuple):
    """One entry point of a package, held to the cases of some kinds of run."""
    package: str
    what: str                    # the entry point, and how it was set
    paper: str
    by_kind: dict                # of a kind, what ``oracle.check`` calls
    readings: tuple = ()
    fits: Callable = lambda case: True      # the cases that the entry point can be given
    dtype: str = "float32"
    adapter: str = "torch"
    gradients: bool = False


@contextmanager
def calls(owner, name):
    """Every call of a function that is found at its owner: its first argument, and its result."""
    made, right = [], getattr(owner, name)

    def kept(first, *rest, **settings):
        made.append((first, right(first, *rest, **settings)))
        return made[-1][1]

    with mock.patch.object(owner, name, kept):
        yield made


def returned(module):
    """A list in which every output of a module's forward will be."""
    found = []
    module.register_forward_hook(lambda module, given, output: found.append(output))
    return found


def held(check):
    """What ``oracle.check`` says of every case that fits. -> one entry of the record"""
    cases = [case for case in oracle.cases(check.paper)
             if case.kind in check.by_kind and check.fits(case)]
    if {case.kind for case in cases} != set(check.by_kind):
        raise ValueError(f"held: a kind of {check.what} has no case that fits it")
    found = {case.id: _of_case(check, case) for case in cases}
    _all_read(check, found)
    beside = ("numpy",) if check.adapter == "numpy" else ("torch", "numpy")
    return {"package": check.package, "version": version(check.package), "what": check.what,
            "paper": check.paper, "kinds": list(check.by_kind), "dtype": check.dtype,
            "gradients": check.gradients, "versions": {
                "python": platform.python_version(), **{name: version(name) for name in beside}},
            "readings": [reading._asdict() for reading in check.readings],
            "given": list(dict.fromkeys(name for of_case in found.values()
                                        for name in of_case.pop("given"))), "cases": found}


def _of_case(check, case):
    report = oracle.check(check.by_kind[case.kind], case, check.adapter, check.dtype,
                          check.gradients)
    named = [*report.diagnose(), *report.identify()]
    given = [finding for finding in report.findings if finding.status != "not given"]
    return {
        "sha256": digest(case), "problems": report.problems, "given": [f.name for f in given],
        "error": round(max((finding.error or 0.0 for finding in given
                            if finding.status == "agrees"), default=0.0), 2),
        "differ": {finding.name: [match.variant.name or match.variant.title for match in named
                                  if finding.name in match.explains]
                   for finding in report.findings if finding.status == "differs"}}


def digest(case):
    """Of all that goes into a case: the record is of these very arrays."""
    run = case.run()
    made = hashlib.sha256(repr(sorted(run.settings.items())).encode())
    for group in (run.inputs, run.params):
        for name, array in group.items():
            made.update(f"{name} {array.dtype.str} {array.shape}".encode() + array.tobytes())
    return made.hexdigest()


def _all_read(check, found):
    """ValueError where a difference was not read, or a reading is of none."""
    differ = {name for of_case in found.values() for name in of_case["differ"]}
    read = {reading.at for reading in check.readings}
    if differ - read:
        raise ValueError(f"held: {check.what}, {check.paper}, differs at "
                         f"{', '.join(sorted(differ - read))}, which nobody has read")
    if read - differ:
        raise ValueError(f"held: {check.what}, {check.paper}, does not differ at "
                         f"{', '.join(sorted(read - differ))}")
    wrong = [problem for of_case in found.values() for problem in of_case["problems"]
             if not NOT_A_NUMBER.search(problem)]
    if wrong:
        raise ValueError(f"held: {check.what}, {check.paper}: {'; '.join(wrong)}")
    for reading in check.readings:
        names = {name for of_case in found.values() for name in of_case["differ"].get(
            reading.at, ())}
        if reading.name and reading.name not in names:
            raise ValueError(f"held: {check.what}, {check.paper}: {reading.at} is not called "
                             f"{reading.name}, but {', '.join(sorted(names)) or 'nothing'}")


NOT_A_NUMBER = re.compile(r" is (nan|-?inf) in ")


def write(entries):
    """Put entries in the record, in place of all those of the same packages and versions."""
    held = {(entry["package"], entry["version"]) for entry in entries}
    kept = [entry for entry in read() if (entry["package"], entry["version"]) not in held]
    RECORDED.write_text(json.dumps(sorted([*kept, *entries], key=_place), indent=1) + "\n")


def _place(entry):
    numbers = [int(part) for part in re.findall(r"\d+", entry["version"])]
    return entry["package"], numbers, entry["paper"], entry["what"], entry["kinds"]


def read():
    return json.loads(RECORDED.read_text()) if RECORDED.exists() else []


# -- The table -----------------------------------------------------------------------------------

KNOWN_BUG = re.compile(r"[A-Z]\d+[a-z]?")


def table(entries):
    """The record as a table in Markdown. -> str"""
    rows = [("package", "what was held", "to", "cases", "outcome"), ("---",) * 5]
    for entry in entries:
        first, *others = entry["kinds"]
        kinds = [f"`{entry['paper']}/{first}`".replace("/`", "`"), *map("`{}`".format, others)]
        rows.append((f"{entry['package']} {entry['version']}", entry["what"], ", ".join(kinds),
                     str(len(entry["cases"])), outcome(entry)))
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def outcome(entry):
    """What was found, in a cell. A source is named where it is not the one named before."""
    cases, parts, source = entry["cases"].values(), [], None
    agreeing = [case for case in cases if not case["differ"] and not case["problems"]]
    if agreeing:
        error = max(case["error"] for case in agreeing)
        share = "all" if len(agreeing) == len(cases) else f"{len(agreeing)}"
        parts.append(f"agrees in {share}, to {error:.1f} eps of {entry['dtype']}")
    for alike in _alike(entry["readings"]):
        first = alike[0]
        where = " and ".join(f"`{reading['at']}` in {_count(reading, entry)}" for reading in alike)
        named = "" if first["source"] == source else f" ({first['source']})"
        parts.append(f"{_called(first['name'])} at {where}: {first['why']}{named}")
        source = first["source"]
    return "<br>".join(parts)


def _alike(readings):
    """Readings of one cause at several outputs, side by side. -> list of lists"""
    causes = {}
    for reading in readings:
        causes.setdefault((reading["name"], reading["why"], reading["source"]), []).append(reading)
    return causes.values()


def _called(name):
    if KNOWN_BUG.fullmatch(name):
        return f"known bug **{name}**"
    return "convention" if name else "differs"


def _count(reading, entry):
    """Of the cases that the oracle calls so or, of a reading without a name, of the rest."""
    at, name = reading["at"], reading["name"]
    beside = [other["name"] for other in entry["readings"] if other["at"] == at]
    named = [case["differ"][at] for case in entry["cases"].values() if at in case["differ"]]
    found = sum(name in names if name else not set(beside) & set(names) for names in named)
    if len(beside) > 1 or found == len(named):
        return f"{found}"
    return f"{len(named)} (called so in {found})"

"""What experiments share: settings, progress, claims and tables in print, the record of a run.

An experiment is a module ``minimoe.experiments.<paper>`` with one function

    run(settings: Settings) -> Result

and whoever runs it, the command line above all, writes

    settings = Settings(seed=0, quick=False, backend="numpy", data=None)
    check("local_experts_1991", settings)                # BackendError, DataError
    outcome = conduct("local_experts_1991", settings)
    print(text(outcome))                                 # tables, and the claims
    figure, record = write(outcome, "runs")              # <paper>.png and <paper>.json
    sys.exit(0 if met(outcome) else 1)                   # 1: a claim was judged and does not hold

``as_record(outcome)`` is what ``write`` puts into the .json file, for programs. An experiment that
can read a file of the user's says what it is, in a line ``DATA``.
"""
import importlib
import importlib.metadata
import json
import math
import os
import platform
import shlex
import shutil
import sys
import textwrap
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minimoe import tree
from minimoe.backend import is_array, mover, namespace

VERDICTS = {True: "holds", False: "UNMET", None: "reported"}


class Settings(NamedTuple):
    seed: int = 0
    quick: bool = False        # smoke-sized: too few starts to judge the claims by
    backend: str = "numpy"     # or cupy
    data: str | None = None    # a file of the user's, which few experiments read


class Claim(NamedTuple):
    claim: str
    paper: str                 # what the paper reports
    measured: str
    holds: bool | None         # None: reported, not judged


class Table(NamedTuple):
    title: str
    header: tuple              # of strings
    rows: list                 # of tuples of strings, as long as the header
    note: str = ""


class Result(NamedTuple):
    title: str
    claims: list               # of Claim
    tables: list               # of Table
    figure: Any                # a matplotlib Figure
    details: dict              # settings of the experiment, and the numbers behind the claims


class Outcome(NamedTuple):
    paper: str
    settings: Settings
    result: Result
    seconds: float


class DataError(Exception):
    """The file that the settings name is of no use; why, in one line."""


def check(paper, settings):
    """What can be said before anything is run; the experiment of a paper, by its full name.

    BackendError where the backend cannot be used here, DataError where a file is given that the
    experiment does not read or that cannot be opened; ModuleNotFoundError for no such experiment.
    """
    mover(settings.backend)
    experiment = importlib.import_module(f"minimoe.experiments.{paper}")
    if settings.data is not None:
        if not hasattr(experiment, "DATA"):
            raise DataError(f"the experiment of {paper} reads no file")
        with reading():
            open(settings.data, "rb").close()
    return experiment


@contextmanager
def reading():
    """What goes wrong with a user's file in here, OSError or ValueError, ends as DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(error.strerror or str(error)) from error
    except ValueError as error:
        raise DataError(" ".join(str(error).split())) from error


def conduct(paper, settings):
    """Run the experiment of a paper; of a quick run no claim is judged. Errors as ``check``."""
    experiment = check(paper, settings)
    start = time.perf_counter()
    result = experiment.run(settings)
    if settings.quick:
        result = result._replace(claims=[claim._replace(holds=None) for claim in result.claims])
    return Outcome(paper, settings, result, time.perf_counter() - start)


def met(outcome):
    """Whether no claim that was judged is unmet."""
    return all(claim.holds is not False for claim in outcome.result.claims)


def move(settings, arrays):
    """Every array of a tree, on the backend of the settings."""
    to_backend = mover(settings.backend)
    return tree.map(lambda x: to_backend(x) if is_array(x) else x, arrays)


def progress(total, label):
    """A progress bar on standard error, and none where that is no terminal. A context manager."""
    from tqdm import tqdm
    return tqdm(total=total, desc=label, leave=False, disable=not sys.stderr.isatty(),
                nrows=24,   # not asked for: a terminal that does not know its size says 0
                bar_format="{desc:<34} {bar} {n_fmt}/{total_fmt} {postfix}")


def notice(line):
    """Say at once, on standard error, what a run will go without."""
    print(f"minimoe: {line}", file=sys.stderr)


def in_parallel(settings, function, cases, label):
    """``function(settings, case)`` of every case, in their order, one process to a processor.

    The products of one process run on one thread, so that processes do not queue for each other's;
    on a GPU, and for a single case, all run in this process. ``function`` is a module's own, and
    what it takes and gives can be pickled. A case that fails ends them all, with its error.
    """
    results = [None] * len(cases)
    n_processes = min(_processors(), len(cases))
    with progress(len(cases), label) as bar:
        if settings.backend != "numpy" or n_processes < 2:
            for i, case in enumerate(cases):
                results[i] = function(settings, case)
                bar.update()
            return results
        with _one_thread(), ProcessPoolExecutor(n_processes, get_context("spawn")) as pool:
            waiting = {pool.submit(function, settings, case): i for i, case in enumerate(cases)}
            try:
                for done in as_completed(waiting):
                    results[waiting[done]] = done.result()
                    bar.update()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return results


def _processors():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _one_thread():
    """For the processes started meanwhile, which read these when they import NumPy."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def by_row(measures):
    """{(part, row, seed): {measure: number}} -> {part: {row: {measure: [seeds]}}}"""
    groups, found = {}, {}
    for (part, row, _), numbers in measures.items():
        groups.setdefault((part, row), []).append(numbers)
    for (part, row), runs in groups.items():
        found.setdefault(part, {})[row] = {
            measure: np.array([numbers[measure] for numbers in runs]) for measure in runs[0]}
    return found


def means(rows, measure):
    """Of one measure over seeds. {row: {measure: [seeds]}} -> {row: mean}"""
    return {row: measures[measure].mean() for row, measures in rows.items()}


def spread(values, digits=0):
    """``mean (SD)`` of a sample, as papers print it; SD with n - 1."""
    values = np.asarray(values, float)
    if not values.size:
        return "--"
    deviation = f"{values.std(ddof=1):.{digits}f}" if values.size > 1 else "--"
    return f"{values.mean():.{digits}f} ({deviation})"


def ranged(values, digits):
    """``mean [least, largest]`` of an array: what claims about a few seeds are told by."""
    return f"{values.mean():.{digits}f} [{values.min():.{digits}f}, {values.max():.{digits}f}]"


# -- Figures -------------------------------------------------------------------------------------

def panels(titles, columns, size, title):
    """A Figure of panels in rows, each with a letter and a title; the Figure and its axes."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=15, x=0.01, ha="left", weight="bold")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    axes = figure.subplots(math.ceil(len(titles) / columns), columns, squeeze=False).ravel()
    for letter, axis, name in zip("ABCDEFGHI", axes, titles):
        axis.set_title(f"{letter}.  {name}", loc="left", fontsize=11)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


# -- In print ------------------------------------------------------------------------------------

def text(outcome, width=None):
    """Title, tables and claims as plain text, wrapped to ``width``: the terminal's, 60 to 120."""
    width = width or min(max(shutil.get_terminal_size((100, 24)).columns, 60), 120)
    result = outcome.result
    parts = [_wrapped(result.title, width) + "\n" + "=" * min(width, len(result.title))]
    parts += [format_table(table, width) for table in result.tables]
    parts.append(format_claims(result.claims, width))
    parts.append(_wrapped(_summary(outcome), width))
    return "\n\n".join(parts)


def _summary(outcome):
    judged = [claim.holds for claim in outcome.result.claims if claim.holds is not None]
    found = (f"{sum(judged)} of {len(judged)} claims hold" if judged
             else "No claim was judged" + (": a quick run only shows that everything works"
                                           if outcome.settings.quick else ""))
    return f"{found}. {outcome.seconds:.1f} s on {outcome.settings.backend}."


def format_table(table, width):
    """Columns padded to their widest entry, the first one to the left; then the note."""
    rows = [table.header, *table.rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.header))]

    def line(row):
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))]
        return "  ".join(cells).rstrip()

    lines = [_wrapped(table.title, width), "", line(table.header),
             "  ".join("-" * w for w in widths), *map(line, table.rows)]
    return "\n".join(lines + ([_wrapped(table.note, width)] if table.note else []))


def format_claims(claims, width):
    """Verdict, claim, the paper's figure and ours side by side, each wrapped in its column."""
    first = max(map(len, VERDICTS.values()))
    share = (width - first - 6) // 10
    widths = [first, 4 * share, 3 * share, 3 * share]

    def block(cells):
        columns = [textwrap.wrap(cell, w) or [""] for cell, w in zip(cells, widths)]
        height = max(map(len, columns))
        return "\n".join("  ".join((column[i] if i < len(column) else "").ljust(w)
                                   for column, w in zip(columns, widths)).rstrip()
                         for i in range(height))

    head = block(["", "claim", "paper", "measured here"])
    rows = [block([VERDICTS[c.holds], c.claim, c.paper, c.measured]) for c in claims]
    return "\n".join([head, "  ".join("-" * w for w in widths), "\n\n".join(rows)])


def _wrapped(paragraphs, width):
    return "\n".join(textwrap.fill(line, width) for line in paragraphs.split("\n"))


# -- On file -------------------------------------------------------------------------------------

def write(outcome, directory):
    """Write ``<paper>.png`` and ``<paper>.json`` into a directory, made if missing; their paths."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    figure, record = (directory / f"{outcome.paper}.{kind}" for kind in ("png", "json"))
    outcome.result.figure.savefig(figure, metadata={"Software": None})
    record.write_text(json.dumps(as_record(outcome), indent=1, allow_nan=False) + "\n",
                      encoding="utf-8")
    return figure, record


def as_record(outcome):
    """All that a run was and found, as plain dictionaries, lists, numbers and text.

    Two runs with the same settings on one machine differ in ``seconds`` alone.
    """
    settings, result = outcome.settings, outcome.result
    command = f"minimoe run {outcome.paper} --seed {settings.seed} --backend {settings.backend}"
    array = move(settings, np.zeros(1))
    return plain({
        "paper": outcome.paper,
        "title": result.title,
        "command": (command + (" --quick" if settings.quick else "")
                    + (f" --data {shlex.quote(settings.data)}" if settings.data else "")),
        "settings": settings._asdict(),
        "met": met(outcome),
        "claims": [claim._asdict() for claim in result.claims],
        "tables": [table._asdict() for table in result.tables],
        "details": result.details,
        "versions": {"python": platform.python_version(),
                     **{name: _version(name) for name in ("minimoe", "numpy", "scipy")},
                     settings.backend: namespace(array).__version__},
        "device": f"{array.device}, {platform.machine()}, {os.cpu_count()} processors",
        "seconds": round(outcome.seconds, 2),
    })


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def plain(value):
    """What JSON can hold: arrays as lists, and ``None`` for a number that is not finite."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value

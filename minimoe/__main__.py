"""The command line: ``minimoe`` or ``python -m minimoe``, one verb a job.

Exit codes: 0 done; 1 a claim is unmet, or a run disagrees; 2 the request or its file cannot be
used, said in one line; 130 interrupted.
"""
import argparse
import importlib.util
import json
import os
import sys
import tempfile
import textwrap
from contextlib import contextmanager
from pathlib import Path

from minimoe.backend import BackendError
from minimoe.cli import vectors as vectors_
from minimoe.oracle import index, tolerances
from minimoe.oracle.cases import Case, UnknownCase, case as find_case, cases as find_cases
from minimoe.oracle.kinds import UnknownKind, find_kind
from minimoe.oracle.report import compare as oracle_compare
from minimoe.oracle.vectors import VectorsError


class UnusableRequest(Exception):
    """What was asked for cannot be done; each argument is one line for the user."""


def main(argv=None):
    """Run one verb and return the exit code."""
    args = _parser().parse_args(argv)
    try:
        code = args.verb(args)
        sys.stdout.flush()
        return code
    except (UnusableRequest, index.UnknownPaper, UnknownKind, UnknownCase,
            VectorsError) as error:
        for line in error.args:
            print(f"minimoe: {line}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("minimoe: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:   # whoever reads us, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:   # a full disk behind standard output; files have their own report
        print(f"minimoe: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2


def _parser():
    parser = argparse.ArgumentParser(
        prog="minimoe", description="Mixture-of-experts papers, 1991 to 2022, from scratch.",
        epilog="A paper goes by its name or the beginning of it: local_experts_1991, local.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(function, *, paper=True, example):
        parser = verbs.add_parser(
            function.__name__, help=function.__doc__.partition("\n")[0],
            description=function.__doc__, epilog=f"example: {example}")
        parser.set_defaults(verb=function)
        if paper:
            parser.add_argument("paper", metavar="PAPER", help="a paper, or how its name begins")
        parser.add_argument("--json", action="store_true", help="print the same for programs")
        return parser

    papers_ = verb(papers, paper=False, example="minimoe papers --by loss")
    papers_.add_argument("--by", choices=index.KINDS, help="every function of this kind instead")
    verb(show, example="minimoe show local_experts")
    run_ = verb(run, example="minimoe run local_experts --seed 1 --out runs")
    run_.add_argument("--seed", type=_seed, default=0, help="of every random draw (default 0)")
    run_.add_argument("--backend", choices=("numpy", "cupy"), default="numpy",
                      help="where arrays live (default numpy)")
    run_.add_argument("--quick", action="store_true", help="a short run, to see that it works")
    run_.add_argument("--out", type=Path, default=Path("runs"), metavar="DIR",
                      help="where the figure and the record go (default runs)")
    run_.add_argument("--data", metavar="FILE", help="a data set, where a paper's experiment reads "
                                                     "one; its documentation says which")
    cases_ = verb(cases, paper=False, example="minimoe cases switch --tags padding")
    cases_.add_argument("pattern", metavar="PAPER[/CASE]", nargs="?", default="",
                        help="a paper, or cases of it: gshard/all_*")
    cases_.add_argument("--tags", default="", help="only those with all of these, a,b")
    vectors_.add_arguments(verb(vectors_.vectors, paper=False,
                                example="minimoe vectors switch --out vectors --format json"))
    compare_ = verb(compare, paper=False, example="minimoe compare switch/overflowing mine.npz")
    compare_.add_argument("key", metavar="KEY", help="a case, or a paper or one of its kinds")
    compare_.add_argument("file", metavar="FILE", help="arrays: .npz, .safetensors or .json")
    compare_.add_argument("--dtype", choices=tolerances.EPS,
                          help="what was computed in (default: as the arrays are)")
    compare_.add_argument("--figure", type=Path, metavar="FILE",
                          help="draw where the routing, or the first divergence, differs")
    return parser


def _seed(text):
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"needs a whole number from 0; got {text}")
    return int(text)


# -- Verbs ---------------------------------------------------------------------------------------

def papers(args):
    """list the papers, or every function of one kind"""
    if args.by:
        return _list([(name, function) for name in index.names()
                      for function in index.functions(name)
                      if index.KINDS[args.by](function.name)], args.json)
    found = [index.paper(name) for name in index.names()]
    if args.json:
        return _print_json([paper._asdict() for paper in found])
    for paper in found:
        _print_paper(paper)
    return 0


def show(args):
    """list a paper's equations, each with its function, file and line"""
    name = index.find(args.paper)
    if not args.json:
        _print_paper(index.paper(name))
    functions = index.functions(name)
    numbered = [function for function in functions if function.equation]
    return _list([(name, function) for function in numbered or functions], args.json)   # or all


def run(args):
    """run a paper's experiment: print its claims, save figure and record"""
    from minimoe.experiments import harness

    name = index.find(args.paper)
    if importlib.util.find_spec(f"minimoe.experiments.{name}") is None:
        raise UnusableRequest(f"{name} has no experiment")
    settings = harness.Settings(args.seed, args.quick, args.backend, args.data)
    with _usable(settings):
        harness.check(name, settings)
    with _writing_to(args.out):   # tried now, not after minutes of work
        args.out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=args.out).close()
    with _usable(settings):
        outcome = harness.conduct(name, settings)
    with _writing_to(args.out):
        figure, record = harness.write(outcome, args.out)
    if args.json:
        _print_json(harness.as_record(outcome))
    else:
        print(f"{harness.text(outcome)}\n\nfigure: {figure}\nrecord: {record}")
    return 0 if harness.met(outcome) else 1


@contextmanager
def _usable(settings):
    from minimoe.experiments.harness import DataError

    try:
        yield
    except BackendError as error:
        raise UnusableRequest(f"--backend {settings.backend}: {error}")
    except DataError as error:
        raise UnusableRequest(f"--data {settings.data}: {error}")


@contextmanager
def _writing_to(path, option="--out"):
    try:
        yield
    except OSError as error:
        raise UnusableRequest(f"{option} {path}: {error.strerror}")


def cases(args):
    """list the cases to hold an implementation to, or say what goes into one"""
    found = find_cases(args.pattern, args.tags)
    if args.json:
        return _print_json([{"id": case.id, "kind": case.kind, "tags": case.tags,
                             "sizes": case.sizes, "settings": case.settings} for case in found])
    for case in found:
        print(f"{case.id:<40} {case.kind:<20} {', '.join(case.tags)}".rstrip())
    if len(found) == 1:
        run = found[0].run()
        print()
        for name, array in {**run.inputs, **run.params}.items():
            print(f"    {name:<30} {array.dtype} {list(array.shape)}")
        for name, value in run.settings.items():
            print(f"    {name:<30} {value}")
    if not found:
        print("none in the papers here")
    return 0


def compare(args):
    """say where an implementation first parts from a paper, and what that is known as

    KEY is a case, PAPER/CASE, and FILE the outputs of that case, by the names that the paper's
    trace has; or KEY is a paper, PAPER or PAPER/KIND, and FILE a whole run: what went in (in.x,
    param.w, set.k) and what came out (out.y).
    """
    from minimoe.oracle.files import RunError, read_file

    is_kind, is_case = _known(args.key)
    try:
        file = read_file(args.file)
        whole = any(key.startswith(("in.", "param.", "set.")) for key in file.arrays)
        if is_kind and (whole or not is_case):
            case, run, outputs = _whole_run(args, file)
        else:
            case, run, outputs = find_case(args.key), None, _outputs(file)
    except RunError as error:
        raise UnusableRequest(*error.args)
    dtype = args.dtype or next((dtype for dtype in reversed(tolerances.EPS)
                                if dtype in file.dtypes.values()), "float64")
    try:
        report = oracle_compare(case, outputs, dtype, run=run)
    except (ValueError, TypeError, ArithmeticError) as error:   # the paper's refusal of the values
        raise UnusableRequest(f"{args.file}: {' '.join(str(error).split())}")
    if args.figure:
        from minimoe.cli.figure import draw
        with _writing_to(args.figure, "--figure"):
            draw(report, args.figure)
    if args.json:
        _print_json(report.as_json())
    else:
        print(report)
    return 0 if report.ok else 1 if report.first_divergence else 2


def _known(key):
    """Whether a key names a kind of run, and whether a case; refused where it names neither."""
    paper, _, rest = key.partition("/")
    paper, said = index.find(paper), None
    try:
        find_kind(paper, rest)
    except UnknownKind as error:
        said = error
    try:
        find_case(key)
    except UnknownCase:
        if said:
            raise UnusableRequest(f"{said}; for its cases: minimoe cases {paper}") from None
        return True, False
    return not said, True


def _whole_run(args, file):
    """The kind of run that was asked for, as a case, a user's run of it and its outputs."""
    from minimoe.oracle.runs import as_run

    paper, _, kind = args.key.partition("/")
    paper = index.find(paper)
    run = as_run(file, args.file, find_kind(paper, kind).run)
    name = f"{paper}/{kind}" if kind else paper
    return Case(name, paper, kind, {}, run.settings, (), None), run, run.outputs


def _outputs(file):
    """The outputs in a file, which may hold what went in as well; numbers of no kind are floats."""
    return {key.removeprefix("out."): array if file.dtypes[key] else array.astype(float)
            for key, array in file.arrays.items() if not key.startswith(("in.", "param.", "set."))}


# -- Printing ------------------------------------------------------------------------------------

def _list(functions, as_json):
    """Print functions, each with the name of its paper."""
    if as_json:
        return _print_json([{"paper": paper, **function._asdict()}
                            for paper, function in functions])
    if not functions:
        print("none in the papers here")
    width = max([20, *(len(function.equation) for _, function in functions)])
    for _, (equation, name, summary, file, line) in functions:
        print(f"{equation or '--':<{width}} {name:<35} {_short(file)}:{line}\n    {summary}")
    return 0


def _print_paper(paper):
    citation = textwrap.fill(paper.citation, 100, initial_indent="    ", subsequent_indent="    ")
    print(f"{paper.name}\n    {paper.title}\n{citation}\n")


def _print_json(value):
    print(json.dumps(value, indent=1))
    return 0


def _short(file):
    """A path as seen from here, where it lies below."""
    return file.removeprefix(f"{Path.cwd()}{os.sep}")


if __name__ == "__main__":
    sys.exit(main())

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

import numpy as np

from minimoe import tree
from minimoe.backend import BackendError
from minimoe.oracle import index
from minimoe.oracle.kinds import UnknownKind, find_kind


class UnusableRequest(Exception):
    """What was asked for cannot be done; each argument is one line for the user."""


def main(argv=None):
    """Run one verb and return the exit code."""
    args = _parser().parse_args(argv)
    try:
        code = args.verb(args)
        sys.stdout.flush()
        return code
    except (UnusableRequest, index.UnknownPaper, UnknownKind) as error:
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
    compare_ = verb(compare, example="minimoe compare local_experts mine.npz")
    compare_.add_argument("file", metavar="FILE", help="a run saved by numpy.savez")
    compare_.add_argument("--partial", action="store_true", help="let outputs be missing")
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
def _writing_to(directory):
    try:
        yield
    except OSError as error:
        raise UnusableRequest(f"--out {directory}: {error.strerror}")


def compare(args):
    """say where a run saved as a file parts from the paper

    Where a paper has several kinds of run, its kind goes with its name: PAPER/KIND.
    """
    from minimoe.experiments.harness import plain
    from minimoe.oracle.disagreements import disagreements
    from minimoe.oracle.runs import RunError, read_run

    paper, _, kind = args.paper.partition("/")
    paper = index.find(paper)
    oracle = find_kind(paper, kind)
    name = f"{paper}/{kind}" if kind else paper
    try:
        run = read_run(args.file, oracle.run)
    except RunError as error:
        raise UnusableRequest(*error.args)
    try:
        with np.errstate(all="ignore"):   # the numbers are the user's, infinities among them
            computed = oracle.outputs(_in_float64(run))
            found = disagreements(computed, run, partial=args.partial)
    except RunError as error:
        raise UnusableRequest(*(f"{args.file}: {line}" for line in error.args))
    except (ValueError, TypeError, ArithmeticError) as error:   # the paper's refusal of the values
        raise UnusableRequest(f"{args.file}: {' '.join(str(error).split())}")
    not_given = [output for output in tree.named_leaves(computed) if output not in run.outputs]
    if args.json:
        _print_json(plain({
            "paper": name, "agrees": not found, "not_given": not_given,
            "disagreements": [difference._asdict() for difference in found]}))
    else:
        for difference in found:
            print(difference)
        if not_given:
            print(f"not given: {', '.join(not_given)}")
        if not found:
            print(f"agrees with {name} in {len(run.outputs)} outputs")
    return 1 if found else 0


def _in_float64(run):
    """The same run, computed so that whatever a float32 lost was lost by the user."""
    def exact(x):
        return x.astype(np.float64, copy=False) if x.dtype.kind == "f" else x
    return run._replace(inputs=tree.map(exact, run.inputs), params=tree.map(exact, run.params))


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

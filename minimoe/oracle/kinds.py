"""The kinds of run that a paper can compute again, as the foot of its file declares them.

A paper of one kind has ``RUN``, the keys of what goes in and their shapes, and ``oracle``, from a
run to its outputs. A paper of several has ``ORACLES``, such a pair under the name of each.
"""
import importlib
from typing import Callable, NamedTuple


class Oracle(NamedTuple):
    run: dict            # key: shape in letters, as ``read_run`` takes it
    outputs: Callable    # Run -> tree of arrays


class UnknownKind(LookupError):
    """A kind of run that a paper does not have."""


def module_of(paper):
    return importlib.import_module(f"minimoe.papers.{paper}")


def kinds(paper, module=None):
    """Every kind of run of a paper, by name; of a single one, the name is empty.

    ``module`` is a private copy of the paper's, where that is to be asked instead.
    """
    module = module or module_of(paper)
    if hasattr(module, "ORACLES"):
        return {name: Oracle(*pair) for name, pair in module.ORACLES.items()}
    return {"": Oracle(module.RUN, module.oracle)}


def find_kind(paper, kind="", module=None):
    """The Oracle of one kind of run of a paper; UnknownKind, naming those there are."""
    found = kinds(paper, module)
    if kind not in found:
        names = ", ".join("/".join(filter(None, (paper, name))) for name in found)
        wanted = f"no run is called {paper}/{kind}" if kind else f"{paper} has several kinds of run"
        raise UnknownKind(f"{wanted}; there {'are' if len(found) > 1 else 'is'}: {names}")
    return found[kind]

"""A paper with something in it done otherwise: a convention of others, or a known bug.

A variant is a function that stands in for one of the paper's own. It is looked up in a private copy
of the paper's module, so that every function of the paper that calls it sees the variant, and
nobody else does: the paper itself is never changed.
"""
import importlib.util
from typing import Callable, NamedTuple


class Variant(NamedTuple):
    """One way to do otherwise."""
    name: str                # of a known bug, its number: "A8"; of a convention, empty
    title: str               # what is otherwise, in a line
    concerns: tuple          # kinds of run, "switch_2021/layer"; of a convention, the paper
    replaces: dict           # name of a function: a function's name, or (module) -> function
    reported: tuple = ()     # where: "huggingface/transformers#28093"
    alters: Callable | None = None   # (Run, module) -> Run: what goes in, where that is otherwise
    changes: Callable | None = None  # (trace, Run, module) -> outputs that are otherwise, by name

    def __str__(self):
        return f"{self.name}: {self.title}" if self.name else self.title


def private_copy(paper, replaces):
    """A new module with all that a paper's has, but for what is replaced.

    ValueError for a name that the paper does not have.
    """
    spec = importlib.util.find_spec(f"minimoe.papers.{paper}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    names = vars(module)
    missing = [name for given in replaces.items() for name in given
               if isinstance(name, str) and name not in names]
    if missing:
        raise ValueError(f"private_copy: {paper} has no {', '.join(missing)}")
    names.update({name: names[other] if isinstance(other, str) else other(module)
                  for name, other in replaces.items()})
    return module


def conventions(paper):
    """The conventions that a paper's file names, as variants. -> list of Variant"""
    from minimoe.oracle.kinds import module_of

    return [Variant("", title, (paper,), replaces)
            for title, replaces in getattr(module_of(paper), "CONVENTIONS", {}).items()]

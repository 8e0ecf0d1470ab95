"""A paper with something in it done otherwise: a convention of others, or a known bug.

A variant is a function that stands in for one of the paper's own. It is looked up in a private copy
of the paper's module, so that every function of the paper that calls it sees the variant, and
nobody else does: the paper itself is never changed.
"""
import builtins
import functools
from types import FunctionType, ModuleType
from typing import Callable, NamedTuple

from minimoe.oracle.kinds import module_of


FOUND_HERE = "found here"     # by holding released code to a paper, and reported by nobody
PLAIN = {str, int, float, bool, type(None), type, ModuleType}     # with nothing in it to replace


class Variant(NamedTuple):
    """One way to do otherwise."""
    name: str                # of a known bug, its number: "A8"; of a convention, empty
    title: str               # what is otherwise, in a line
    concerns: tuple          # kinds of run, "switch_2021/layer"; of a convention, the paper
    replaces: dict           # name of a function: a function's name, or (module) -> function
    reported: tuple = ()     # where: "huggingface/transformers#28093", or "found here in ..."
    alters: Callable | None = None   # (Run, module) -> Run: what goes in, where that is otherwise
    changes: Callable | None = None  # (trace, Run, module) -> outputs that are otherwise, by name

    def __str__(self):
        return f"{self.name}: {self.title}" if self.name else self.title

    @property
    def source(self):
        """Who says so, in words."""
        places = ", ".join(self.reported)
        return places if places.startswith(FOUND_HERE) else f"reported: {places}"


def bug(name, title, reported, *forms):
    """A known bug as it looks in each of several papers. -> list of Variant

    ``reported`` is where it was, separated by commas; ``forms`` are of ``form``.
    """
    reported = tuple(place.strip() for place in reported.split(","))
    return [Variant(name, title, kinds, replaces, reported, alters, changes)
            for kinds, replaces, alters, changes in forms]


def form(kinds, alters=None, changes=None, **replaces):
    """A bug in some kinds of run of one paper: what is replaced there, or goes in or comes out."""
    return (kinds,) if isinstance(kinds, str) else tuple(kinds), replaces, alters, changes


def private_copy(paper, replaces):
    """A new module with all that a paper's has, but for what is replaced. -> module

    Its functions are the paper's own, and look up what they call in the copy; so do those that
    stand in a table or are a default. What stands in for a function may call the one that it
    stands in for: it is given, and sees, the paper as it was. ValueError for a name that the paper
    does not have.
    """
    original = vars(module_of(paper))
    missing = [name for given in replaces.items() for name in given
               if isinstance(name, str) and name not in original]
    if missing:
        raise ValueError(f"private_copy: {paper} has no {', '.join(missing)}")
    copy, before = ModuleType(f"{paper} with {', '.join(replaces)}"), ModuleType(paper)
    made = {}                        # of each object that was copied, by its id: the copy

    def copied(value):
        if id(value) in made:
            return made[id(value)]
        if type(value) in PLAIN:
            return value
        found = made[id(value)] = _copied(value, original, vars(copy), copied)
        return found

    def fill(module):
        vars(module).update({name: copied(value) for name, value in original.items()
                             if not name.startswith("__")}, __builtins__=builtins)

    fill(before)
    stand_ins = {id(original[name]): (_copied(original[other], original, vars(before), copied)
                                      if isinstance(other, str) else other(before))
                 for name, other in replaces.items()}
    made.clear()
    made.update(stand_ins)
    fill(copy)
    return copy


def _copied(value, original, names, copied):
    """A function that looks things up in ``names``, or a container of such; else what it is."""
    if isinstance(value, FunctionType) and value.__globals__ is original:
        return _function(value, names, copied)
    if isinstance(value, functools.partial):
        return functools.partial(copied(value.func), *map(copied, value.args),
                                 **{name: copied(a) for name, a in value.keywords.items()})
    if type(value) is dict:
        return {name: copied(a) for name, a in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(copied, value))
    return type(value)(map(copied, value)) if type(value) in (tuple, list) else value


def _function(value, names, copied):
    if not isinstance(value, FunctionType):
        return value
    function = FunctionType(value.__code__, names, value.__name__, None, value.__closure__)
    function.__doc__ = value.__doc__
    function.__defaults__ = value.__defaults__ and tuple(map(copied, value.__defaults__))
    function.__kwdefaults__ = value.__kwdefaults__ and {
        name: copied(a) for name, a in value.__kwdefaults__.items()}
    return function


def conventions(paper):
    """The conventions that a paper's file names, as variants. -> list of Variant"""
    return [Variant("", title, (paper,), replaces)
            for title, replaces in getattr(module_of(paper), "CONVENTIONS", {}).items()]

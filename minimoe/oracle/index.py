"""The index of papers, read from the syntax trees of their files: nothing is listed by hand.

A paper's docstring opens with its title and cites it in the paragraph below. A function cites its
equation, figure or section in its own docstring, and says what it is by its name.
"""
import ast
import difflib
import re
from pathlib import Path
from typing import NamedTuple

PAPERS = Path(__file__).resolve().parents[1] / "papers"

CITATION = re.compile(
    r"Eqs?\. \([\w.]+\)(?:(?:-|, | and )\([\w.]+\))*"
    r"|(?:Algorithm|Figure|Section|Table) (?:[A-Z]\.)?\d+(?:\.\d+)*"
    r"|Appendix [A-Z][\d.]*\b")

KINDS = {   # of function, by what its name begins or ends with
    "gate": lambda name: name.startswith(("gate", "route", "mixing")),
    "loss": lambda name: name.endswith(("_loss", "_error", "_log_likelihood")),
    "capacity": lambda name: name.startswith("expert_capacity"),
}


class Paper(NamedTuple):
    name: str
    title: str
    citation: str
    file: str


class Function(NamedTuple):
    equation: str   # as cited, or empty
    name: str
    summary: str    # first line of the docstring
    file: str
    line: int


class UnknownPaper(LookupError):
    """No paper, or more than one, answers to a name."""


def names():
    """Every paper's, oldest first."""
    found = [path.stem for path in PAPERS.glob("*_[0-9][0-9][0-9][0-9].py")]
    return sorted(found, key=lambda name: (name[-4:], name))


def find(given):
    """The one paper that ``given`` begins: its name, else one of its words.

    UnknownPaper, naming those near, where there is none or more than one.
    """
    known = names()
    wanted = given.lower().replace("-", "_")
    found = (wanted and ([name for name in known if name.startswith(wanted)]
                         or [name for name in known if f"_{wanted}" in name]))
    if not found:
        words = {word: name for name in known for word in [*name.split("_"), name[:-5], name]}
        near = difflib.get_close_matches(wanted, words, n=3, cutoff=0.5)
        near = list(dict.fromkeys(words[word] for word in near))
        raise UnknownPaper(f"no paper is called {given!r}; "
                           f"{'near' if near else 'there are'}: {', '.join(near or known)}")
    if len(found) > 1 and wanted not in found:
        raise UnknownPaper(f"{given!r} may be any of: {', '.join(found)}")
    return found[0]


def paper(name):
    """Title and citation of a paper."""
    title, citation, *_ = _docstring(_tree(name)).split("\n\n")
    return Paper(name, title, " ".join(citation.split()), str(_file(name)))


def functions(name):
    """The public functions of a paper, in the order of its file."""
    return [Function(_equation(_docstring(node)), node.name, _docstring(node).partition("\n")[0],
                     str(_file(name)), node.lineno)
            for node in _tree(name).body
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]


def _file(name):
    return PAPERS / f"{name}.py"


def _tree(name):
    return ast.parse(_file(name).read_text(encoding="utf-8"))


def _docstring(node):
    return ast.get_docstring(node) or ""


def _equation(docstring):
    """What a docstring cites: in its first line, or else further down."""
    first, _, rest = docstring.partition("\n")
    return ", ".join(CITATION.findall(first)) or ", ".join(CITATION.findall(rest))

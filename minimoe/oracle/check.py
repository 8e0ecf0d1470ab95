"""Hold a user's own function to a paper on one case."""
import hashlib

import numpy as np

from minimoe import tree
from minimoe.oracle.adapters import AdapterError, adapter as find_adapter
from minimoe.oracle.cases import case as find_case
from minimoe.oracle.report import compare
from minimoe.oracle.tolerances import EPS
from minimoe.oracle.trace import computed, known_as


class Given(dict):
    """What a function is given: inputs, parameters and settings by name.

    ``given["w_router"]`` and ``given.w_router`` are the same; names with dots go by item, and
    ``given.w_gates`` is a list where they are numbered. ``size`` has the sizes by letter.
    """

    def __init__(self, named, sizes):
        super().__init__(named)
        self.size = dict(sizes)

    def __getattr__(self, name):
        if name in self:
            return self[name]
        below = {key[len(name) + 1:]: value for key, value in self.items()
                 if key.startswith(f"{name}.")}
        if not below:
            raise AttributeError(f"this case has no {name}; it has {', '.join(self)}")
        if all(key.isdecimal() for key in below):
            return list(below.values())
        return Given(below, self.size)


def check(fn, key, adapter="numpy", dtype="float64", gradients=False):
    """Call a user's function with a case, and hold what it returns to the paper. -> Report

    ``fn`` takes one argument, a ``Given``, its arrays ``adapter``'s and in ``dtype``, and returns
    whichever of the trace's intermediates it has: a dict or a NamedTuple, by name. With
    ``gradients``, those of the stated scalars, the paper's ``grad.L.x``, are taken by the
    framework: of output L where it is a number, of <L, cotangent> where the case has one of its
    shape, else of its mean.

    What goes wrong in ``fn`` is a problem of the report: that it raises, returns something else,
    or writes into what it was given. UnknownCase for a key, AdapterError for a framework that is
    not imported or has no gradients, ValueError for a dtype without a tolerance.
    """
    case, framework = find_case(key), find_adapter(adapter)
    if dtype not in EPS:
        raise ValueError(f"check: dtype must be one of {', '.join(EPS)}; got {dtype!r}")
    if gradients and framework.gradients is None:
        raise AdapterError(f"adapter {adapter}: has no gradients here; return them yourself, as "
                           "grad.L.x")
    run = case.run()
    outputs, problems = call(fn, case, run, framework, dtype, gradients)
    return compare(case, outputs, dtype, problems)


def call(fn, case, run, framework, dtype, gradients=False):
    """Call a user's function with a run of a case's kind.

    -> outputs by the name they were given, as NumPy's arrays; what went wrong, a line each
    """
    arrays = {**run.inputs, **run.params}
    given = {name: framework.to_user(array, dtype) for name, array in arrays.items()}
    before = {name: _hash(framework, array) for name, array in given.items()}
    leaves = {name: framework.track(given[name]) if gradients else given[name]
              for name, array in arrays.items() if array.dtype.kind == "f"}
    given = Given({**given, **leaves, **run.settings}, case.sizes)
    outputs, problems = {}, []
    try:
        named, problems = _named(fn(given))
        if gradients and named:
            named.update(_gradients(framework, named, leaves, given,
                                    computed(case, run)))
        outputs, said = _to_numpy(framework, named)
        problems += said
    except Exception as error:
        said = " ".join(str(error).split())
        problems.append(f"the function raised {type(error).__name__}: {said[:300]}")
    problems += [f"the function wrote into {name}, which it was given"
                 for name, digest in before.items() if _hash(framework, given[name]) != digest]
    return outputs, problems


def _hash(framework, array):
    return hashlib.sha256(framework.to_numpy(array).tobytes()).digest()


def _named(returned):
    """What was returned as a flat dict, and what is wrong with it."""
    if hasattr(returned, "_asdict"):
        returned = returned._asdict()
    if not isinstance(returned, dict):
        return {}, [f"the function returned {type(returned).__name__}; needs a dict or a "
                    "NamedTuple of intermediates by name"]
    flat, problems = {}, []
    for name, value in returned.items():
        if not isinstance(name, str):
            problems.append(f"the function returned a name that is a {type(name).__name__}: "
                            f"{name!r}")
        elif hasattr(value, "_asdict") or isinstance(value, dict):
            flat.update({f"{name}.{inner}": leaf
                         for inner, leaf in tree.named_leaves(value).items()})
        elif value is not None:
            flat[name] = value
    return flat, problems


def _to_numpy(framework, named):
    outputs, problems = {}, []
    for name, value in named.items():
        try:
            outputs[name] = framework.to_numpy(value)
        except AdapterError as error:
            problems.append(f"{name}: {error}")
        except (TypeError, ValueError, RuntimeError) as error:
            problems.append(f"{name}: cannot be read: {' '.join(str(error).split())[:200]}")
    return outputs, problems


def _gradients(framework, named, leaves, given, want):
    """The gradients that the trace has and the user's framework can take. -> dict"""
    wanted = {}                        # of each output, the leaves that it is differentiated by
    for name in want:
        output, leaf = _gradient(name, want, leaves)
        if leaf:
            wanted.setdefault(output, []).append(leaf)
    found = {}
    for given_name, value in list(named.items()):
        output = known_as(given_name, want)
        if output not in wanted or any(f"grad.{output}.{leaf}" in named
                                       for leaf in wanted[output]):
            continue
        scalar = _scalar(value, want[output], given)
        parts, = framework.gradients([scalar], [leaves[leaf] for leaf in wanted[output]])
        found.update({f"grad.{output}.{leaf}": part
                      for leaf, part in zip(wanted[output], parts)})
    return found


def _gradient(name, want, leaves):
    """Output and leaf of a gradient's name, grad.L.x, each of which may have dots; or two Nones."""
    words = name.removeprefix("grad.").split(".")
    for n in range(1, len(words)) if name.startswith("grad.") else ():
        output, leaf = ".".join(words[:n]), ".".join(words[n:])
        if output in want and leaf in leaves:
            return output, leaf
    return None, None


def _scalar(value, want, given):
    """What is differentiated of an output."""
    if not want.ndim:
        return value if not getattr(value, "shape", ()) else value.sum()
    cotangent = given.get("cotangent")
    if cotangent is not None and np.shape(want) == tuple(cotangent.shape):
        return (value * cotangent).sum()
    return value.mean()

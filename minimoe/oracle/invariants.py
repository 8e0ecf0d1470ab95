"""What must hold of a layer of experts whatever its numbers are: checks that need no expected data.

Each calls the function under test twice or more, on inputs that are changed in a way whose effect
is known: tokens permuted, experts renumbered, the batch split. ``HOLDS`` says for which papers.
"""
from typing import Callable, NamedTuple

import numpy as np

from minimoe import ops
from minimoe.oracle.adapters import AdapterError, adapter as find_adapter
from minimoe.oracle.cases import case as find_case
from minimoe.oracle.check import call
from minimoe.oracle.kinds import find_kind
from minimoe.oracle.tolerances import EPS, scale
from minimoe.oracle.trace import computed, known_as

HELD, BROKEN, UNTOLD = "holds", "broken", "cannot be told"
TIMES = 64.0      # eps of an array's scale: the two calls sum in different orders

OF_TOKENS = ("logits", "probs", "gates", "clean", "noise", "noisy", "std", "expert_index", "gate",
             "keep", "expert_inputs", "hidden", "expert_outputs", "y")
OF_EXPERTS = ("logits", "probs", "gates", "clean", "noise", "noisy", "std", "f", "P", "m", "count",
              "count_first", "importance", "load", "load_hard")
OF_THE_BATCH = ("aux_loss", "z_loss", "importance_loss", "load_loss", "f", "P", "m")


class Invariant(NamedTuple):
    """One thing that must hold, and what was found."""
    name: str
    says: str         # in a line
    papers: tuple     # of which it should hold
    status: str       # holds, broken, cannot be told
    detail: str = ""

    def __str__(self):
        detail = f": {self.detail}" if self.detail else ""
        return f"{self.name}: {self.status}{detail}"


class Broken(Exception):
    """An invariant that does not hold; one line."""


class Untold(Exception):
    """One that this function, or this kind of run, cannot be asked; one line."""


def invariants(fn, key="switch_2021/roomy", adapter="numpy", dtype="float64"):
    """Which invariants hold of a user's function, a layer of experts. -> list of Invariant

    ``fn`` is what ``check`` takes; ``key`` names a case of the kind of run that it implements, one
    with an input ``x`` of tokens, whose arrays are the first that it is given. What is wanted of a
    paper is in each Invariant's ``papers``. UnknownCase and AdapterError as in ``check``.
    ValueError for a case without tokens.
    """
    case = find_case(key)
    schema = find_kind(case.paper, case.kind).run
    if len(schema.get("in.x", "").split()) < 2:
        raise ValueError(f"invariants: needs a kind of run with tokens, in.x; {case.id} has none")
    under_test = _UnderTest(fn, case, find_adapter(adapter), dtype, schema)
    found = []
    for name, (says, papers, holds) in HOLDS.items():
        try:
            detail, status = holds(under_test) or "", HELD
        except Broken as error:
            detail, status = str(error), BROKEN
        except (Untold, AdapterError) as error:
            detail, status = str(error), UNTOLD
        found.append(Invariant(name, says, papers, status, detail))
    return found


class _UnderTest(NamedTuple):
    """A function, and how to call it on a case's arrays after a change."""
    fn: Callable
    case: object
    framework: object
    dtype: str
    schema: dict

    @property
    def token(self):
        """The letter of the axis of tokens: the last but one of ``x``."""
        return self.schema["in.x"].split()[-2]

    def run(self):
        """The case's arrays, with a slot for every choice."""
        return self.roomy(self.case.run())

    def roomy(self, run):
        settings = dict(run.settings)
        if "capacity" in settings:
            settings["capacity"] = run.inputs["x"].shape[-2] * settings.get("k", 2)
        return run._replace(settings=settings)

    def outputs(self, run, gradients=False):
        """What the function makes of a run, by the trace's names. Broken where it fails."""
        want = computed(self.case, run)
        named, problems = call(self.fn, self.case, run, self.framework, self.dtype,
                               gradients)
        if problems:
            raise Broken(problems[0])
        return {known_as(name, want) or name: array for name, array in named.items()}

    def along(self, run, letter, change):
        """The run with every array changed along its axes of one letter."""
        def part(group, arrays):
            return {name: _along(array, self._axes(f"{group}.{name}", letter), change)
                    for name, array in arrays.items()}
        return run._replace(inputs=part("in", run.inputs), params=part("param", run.params))

    def _axes(self, key, letter):
        letters = [word for word in self.schema.get(key, "").split()
                   if word not in ("int", "bool", "...")]
        return [axis for axis, word in enumerate(letters) if word == letter]


def _along(array, axes, change):
    for axis in axes:
        array = change(array, axis)
    return array


def _same(under_test, got, want, name, what):
    """Broken where two outputs that should be equal are not."""
    if got.shape != want.shape:
        raise Broken(f"{name} has shape {got.shape} {what}, {want.shape} before")
    if want.dtype.kind == "f":
        differ = ~(np.abs(got - want) <= TIMES * EPS[under_test.dtype] * scale(want))
    else:
        differ = got != want
    if differ.any():
        first = tuple(np.argwhere(differ)[0].tolist())
        raise Broken(f"{name} differs {what}, first at {first}: {got[first]}, {want[first]} before")


def _last(name):
    return name.rpartition(".")[2]


def _token_axis(array, n_tokens):
    """The axis of an output that has the tokens: the first of that length."""
    return next((axis for axis, n in enumerate(array.shape) if n == n_tokens), None)


def _compare(under_test, before, after, names, change, what):
    """Hold outputs after to those before, changed; Untold where there is none to hold."""
    found = [name for name in before if _last(name) in names and name in after
             and not name.startswith("grad.")]
    if not found:
        raise Untold(f"give one of {', '.join(names)}")
    for name in found:
        _same(under_test, after[name], change(name, before[name]), name, what)
    return f"of {', '.join(found)}"


# -- The invariants ------------------------------------------------------------------------------

def _repeats(under_test):
    run = under_test.run()
    first, second = under_test.outputs(run), under_test.outputs(run)
    for name, array in first.items():
        if not np.array_equal(array, second[name], equal_nan=array.dtype.kind == "f"):
            raise Broken(f"{name} differs from call to call")


def _permute_tokens(under_test):
    run = under_test.run()
    n = run.inputs["x"].shape[-2]
    order = np.random.default_rng(0).permutation(n)
    before = under_test.outputs(run)
    after = under_test.outputs(under_test.along(run, under_test.token,
                                                lambda a, axis: a.take(order, axis)))

    def permuted(name, array):
        axis = _token_axis(array, n)
        return array if axis is None else array.take(order, axis)
    what = "when tokens are permuted"
    _compare(under_test, before, after, OF_TOKENS, permuted, what)
    losses = [name for name in before if _last(name) in OF_THE_BATCH]
    if losses:
        _compare(under_test, before, after, OF_THE_BATCH, lambda name, array: array, what)


def _permute_experts(under_test):
    run = under_test.run()
    E = under_test.case.sizes.get("E")
    if E is None:
        raise Untold("this kind of run has no experts, letter E")
    order = np.roll(np.arange(E), 1)
    before = under_test.outputs(run)
    after = under_test.outputs(under_test.along(run, "E", lambda a, axis: a.take(order, axis)))
    rank = np.argsort(order)
    n_chosen = next((array.shape[-1] for name, array in before.items()
                     if _last(name) == "expert_index"), None)

    def renumbered(name, array):
        if _last(name) == "expert_index":
            return rank[array]
        dense = _last(name) == "gate" and n_chosen != E     # a gate [T, E], not [T, K]
        if (dense or _last(name) in OF_EXPERTS) and array.ndim and array.shape[-1] == E:
            return array.take(order, -1)
        return array
    _compare(under_test, before, after, (*OF_TOKENS, *OF_EXPERTS, *OF_THE_BATCH), renumbered,
             "when experts are renumbered, router and all")


def _split(under_test):
    run = under_test.run()
    n = run.inputs["x"].shape[-2]
    before = under_test.outputs(run)
    halves = [under_test.outputs(under_test.along(
        run, under_test.token, lambda a, axis: a.take(part, axis)))
        for part in np.array_split(np.arange(n), 2)]
    after = {name: np.concatenate([half[name] for half in halves], _token_axis(array, n))
             for name, array in before.items()
             if _last(name) in OF_TOKENS and _token_axis(array, n) is not None}
    _compare(under_test, before, after, OF_TOKENS, lambda name, array: array,
             "when the batch is split in two")


def _duplicate(under_test):
    run = under_test.run()
    before = under_test.outputs(run)
    twice = under_test.roomy(under_test.along(
        run, under_test.token, lambda a, axis: np.concatenate([a, a], axis)))
    after = under_test.outputs(twice)
    _compare(under_test, before, after, OF_THE_BATCH, lambda name, array: array,
             "when the batch is there twice")


def _padding(under_test):
    run = under_test.run()
    used = next((name for name in ("used", "present") if name in run.inputs), None)
    if used is None:
        raise Untold("this kind of run takes no padding")
    n, more = run.inputs["x"].shape[-2], 3
    rng = np.random.default_rng(2)

    def padded(a, axis):
        shape = list(a.shape)
        shape[axis] = more
        rest = (np.zeros(shape, bool) if a.dtype == bool else
                rng.integers(1, 4, shape).astype(a.dtype) / (4 if a.dtype.kind == "f" else 1))
        return np.concatenate([a, rest.astype(a.dtype)], axis)
    before = under_test.outputs(run)
    after = under_test.outputs(under_test.along(run, under_test.token, padded))

    def cut(name, array):
        axis = _token_axis(array, n + more)
        return array if axis is None else array.take(range(n), axis)
    after = {name: cut(name, array) for name, array in after.items()}
    _compare(under_test, before, after, (*OF_TOKENS, *OF_THE_BATCH), lambda name, array: array,
             "when padding is appended")


def _spare(under_test):
    run = under_test.run()
    if "capacity" not in run.settings:
        raise Untold("this kind of run has no capacity")
    before = under_test.outputs(run)
    larger = run._replace(settings={**run.settings, "capacity": 2 * run.settings["capacity"]})
    after = under_test.outputs(larger)
    for name, array in before.items():
        if _last(name) == "keep" and not array[_owed(run, array)].all():
            raise Broken(f"{name} turns tokens away although every choice has a slot")
    _compare(under_test, before, after, (*OF_TOKENS, *OF_THE_BATCH), lambda name, array: array,
             "when there are slots to spare")


def _owed(run, keep):
    """Which choices are to be kept where there is a slot for all: not padding's, and not a second
    choice that a draw decides on. [T, K] bool
    """
    owed = np.ones(keep.shape, bool)
    if "used" in run.inputs:
        owed &= run.inputs["used"].reshape(-1, 1)
    if "u" in run.inputs:
        owed[:, 1:] = False
    return owed


def _dense(under_test):
    run = under_test.run()
    E = under_test.case.sizes.get("E")
    if "k" not in run.settings or not {"w_in", "w_out"} <= set(run.params):
        raise Untold("this kind of run has no k, or no experts of two layers")
    run = under_test.roomy(run._replace(settings={**run.settings, "k": E}))
    outputs = under_test.outputs(run)
    probs = outputs.get("probs", outputs.get("gates"))
    if probs is None or "y" not in outputs:
        raise Untold("give probs and y")
    params, activation = run.params, ACTIVATIONS.get(under_test.case.paper, ops.relu)
    hidden = activation(np.einsum("td,edh->teh", run.inputs["x"], params["w_in"])
                        + params.get("b_in", 0))                       # [T, E, H]
    made = np.einsum("teh,ehd->ted", hidden, params["w_out"]) + params.get("b_out", 0)
    y = np.einsum("te,ted->td", probs, made)
    used = run.inputs.get("used")
    y = y if used is None else y * used[:, None]
    _same(under_test, outputs["y"], y.astype(outputs["y"].dtype), "y",
          "from sum_e p_e E_e(x) when all experts are chosen")


def _balanced(under_test):
    run = under_test.run()
    routers = [name for name in run.params if "router" in name or "gate" in name]
    if not routers:
        raise Untold("this kind of run has no router, w_router or w_gate")
    params = {**run.params, **{name: np.zeros_like(run.params[name]) for name in routers}}
    own = under_test.framework.gradients is not None
    outputs = under_test.outputs(run._replace(params=params), gradients=own)
    found = {name: array for name, array in outputs.items() if name.startswith("grad.")}
    if not found:
        raise Untold("give gradients, grad.L.x, or an adapter that takes them")
    for name, array in found.items():
        if not np.isfinite(array).all():
            raise Broken(f"{name} is not finite where all experts are equally probable")


ACTIVATIONS = {"vmoe_2021": ops.gelu}      # of experts that are not ReLU networks
SPARSE = ("sparsely_gated_2017", "gshard_2020", "switch_2021", "vmoe_2021")
HOLDS = {
    "repeats": ("the same inputs, draws included, give the same outputs", ("every paper",),
                _repeats),
    "permute tokens": ("with a slot for every choice, tokens do not see each other's order",
                       SPARSE, _permute_tokens),
    "permute experts": ("experts have no order: renumbered with the router's columns, all follows",
                        SPARSE, _permute_experts),
    "split the batch": ("with a slot for every choice, half a batch gives half the outputs",
                        SPARSE, _split),
    "duplicate the batch": ("losses are means: a batch twice over costs what it costs once",
                            SPARSE, _duplicate),
    "append padding": ("padding changes nothing, in outputs or in losses",
                       ("switch_2021", "gshard_2020", "vmoe_2021"), _padding),
    "slots to spare": ("with a slot for every choice, more slots change nothing",
                       ("gshard_2020", "switch_2021", "vmoe_2021"), _spare),
    "all experts are dense": ("all experts chosen: the sum of all, weighted by the probabilities",
                              ("switch_2021", "vmoe_2021"), _dense),
    "balanced gradient": ("gradients are finite where all experts are equally probable", SPARSE,
                          _balanced),
}

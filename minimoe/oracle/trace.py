"""What a paper computes of a case: every intermediate by name, in the order of computation."""
import re

import numpy as np

from minimoe import tree
from minimoe.backend import to_numpy
from minimoe.oracle import variants
from minimoe.oracle.kinds import find_kind

# The field's names, for what the papers' files call more shortly; users may give either.
STANDARD = {"expert": "expert_index", "slot": "position_in_expert"}
ALIASES = {"combine_weight": "gate", "combine_weights": "gate", "keep_mask": "keep",
           "router_logits": "logits", "router_probs": "probs", "aux": "aux_loss",
           "load_balancing_loss": "aux_loss", "output": "y", "expert_in": "expert_inputs",
           "expert_out": "expert_outputs", "position": "position_in_expert"}

# What each intermediate of a layer of experts is computed from, by the last part of its name.
SOURCES = {
    "probs": ("logits", "noisy"), "gates": ("logits",), "noisy": ("clean", "noise"),
    "noise": ("std",), "expert_index": ("logits", "probs", "gates", "noisy"),
    "margin": ("logits", "probs", "gates", "noisy"), "score": ("gates",),
    "position_in_expert": ("expert_index", "score"),
    "gate": ("probs", "gates", "noisy", "expert_index", "keep"), "wanted": ("gate",),
    "keep": ("position_in_expert", "expert_index", "wanted"),
    "expert_inputs": ("expert_index", "keep"), "hidden": ("expert_inputs",),
    "expert_outputs": ("hidden",), "weights": ("gate", "keep", "position_in_expert"),
    "y": ("gate", "keep", "expert_outputs"), "f": ("expert_index",), "m": ("gates",),
    "P": ("probs",), "count_first": ("expert_index",), "count": ("expert_index",),
    "aux_loss": ("f", "P", "m", "count_first", "expert_index", "probs"), "z_loss": ("logits",),
    "loss": ("y", "aux_loss"), "importance": ("gate",), "p": ("noisy", "std", "clean"),
    "load": ("p",), "load_hard": ("expert_index",), "importance_loss": ("importance",),
    "load_loss": ("load",),
}


def trace(case, dtype="float64"):
    """Every intermediate of a case by its name, in the order of computation. -> dict of arrays

    Computed in ``dtype``, float64 or float32.
    """
    return computed(case, as_dtype(case.run(), dtype))


def computed(case, run, module=None):
    """What the paper, or a private copy of its module, makes of a run. -> dict of arrays"""
    oracle = find_kind(case.paper, case.kind, module)
    with np.errstate(all="ignore"):
        found = oracle.outputs(run)
    return {standard(name): to_numpy(leaf) for name, leaf in tree.named_leaves(found).items()}


def of_variant(variant, case, run=None):
    """The trace of a case, in float64, with something done otherwise. -> dict of arrays"""
    module = variants.private_copy(case.paper, variant.replaces)
    run = as_dtype(case.run() if run is None else run, "float64")
    if variant.alters:
        run = variant.alters(run, module)
    found = computed(case, run, module)
    if variant.changes:
        found.update(variant.changes(found, run, module))
    return found


def as_dtype(run, dtype):
    """The same run with its floats in another dtype."""
    def cast(x):
        return x.astype(dtype) if x.dtype.kind == "f" else x
    return run._replace(inputs=tree.map(cast, run.inputs), params=tree.map(cast, run.params))


def standard(name):
    """A name with its parts in the field's terms: "expert" is "expert_index"."""
    return ".".join(STANDARD.get(part, part) for part in name.split("."))


def known_as(name, names):
    """The one of ``names`` that a user means by ``name``, or None."""
    parts = [ALIASES.get(part, part) for part in standard(name).split(".")]
    return next((found for found in (name, standard(name), ".".join(parts)) if found in names),
                None)


def follows(later, earlier):
    """Whether one output of a trace may differ because an earlier one does.

    Of a layer of experts, as ``SOURCES`` tells; of anything else, whatever comes later may.
    """
    prefix, _, last = later.rpartition(".")
    before, _, first = earlier.rpartition(".")
    if later.startswith("grad.") or ".grad." in later:
        loss = re.search(r"(?:^|\.)grad\.([^.]+)", later)[1]
        inner = later[:later.index("grad.")] + loss
        return earlier.startswith("grad.") is False and (
            loss not in SOURCES or inner == earlier or follows(inner, earlier))
    if prefix != before or last not in SOURCES or first not in {*SOURCES, *_roots()}:
        return True
    return first in _ancestors(last)


def _roots():
    return {source for sources in SOURCES.values() for source in sources}


def _ancestors(name):
    found, left = set(), [name]
    while left:
        for source in SOURCES.get(left.pop(), ()):
            if source not in found:
                found.add(source)
                left.append(source)
    return found

"""The Switch Transformer: checkpoints of transformers 4.44.2 and runs of them, and its own routing."""
import json
import struct
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from minimoe import nn, ops, tree
from minimoe.autodiff.check import check_vjp
from minimoe.autodiff.tensor import Tensor, grad
from minimoe.backend import to_numpy
from minimoe.data.huggingface import read_checkpoint
from minimoe.oracle.disagreements import disagreements
from minimoe.oracle.runs import Run, read_arrays
from minimoe.papers import switch_2021 as switch

RECORDED = Path(__file__).resolve().parents[2] / "reference_runs" / "recorded" / "transformers"
CASES = sorted(path.stem for path in RECORDED.glob("*.npz"))


# -- Checkpoints: logits, routing, losses and all gradients --------------------------------------

def read_case(case, move):
    """Configuration, tensors, inputs and outputs."""
    config, tensors = read_checkpoint(RECORDED / case)
    arrays = read_arrays(RECORDED / f"{case}.npz")
    inputs = {key[3:]: move(a) for key, a in arrays.items() if key.startswith("in.")}
    return config, tensors, inputs, {k[4:]: a for k, a in arrays.items() if k.startswith("out.")}


def drawn_keeps(params, inputs):
    """The draws for dropout, in the order in which they were recorded."""
    draws = iter(inputs[key] for key in sorted(inputs) if key.startswith("keep."))
    return [nn.T5StackKeep(next(draws), [nn.T5LayerKeep(*(
        next(draws) if p.cross is not None or not name.startswith("cross") else None
        for name in nn.T5LayerKeep._fields)) for p in stack.layers], next(draws))
        for stack in (params.encoder, params.decoder)]


def with_dropout(params, inputs, rate, max_distance, epsilon, **_):
    keep = drawn_keeps(params, inputs)
    settings = {"rate": rate, "max_distance": max_distance, "epsilon": epsilon}
    memory = nn.t5_encode(params, inputs["source"], inputs["source_used"], keep=keep[0], **settings)
    y = nn.t5_decode(params, inputs["target"], memory, inputs["target_used"],
                     inputs["source_used"], keep=keep[1], **settings)
    return switch.SwitchTransformerOutput(nn.t5_logits(params, y), [], [], [])


def loss_of(logits, label):
    """Mean cross-entropy where there is a label."""
    there = label >= 0
    losses = ops.cross_entropy(logits, ops.where(there, label, 0))
    return ops.where(there, losses, 0.0).sum() / int(there.sum())


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_computes_what_transformers_does(case, move):
    config, tensors, inputs, recorded = read_case(case, move)
    arrays, settings = switch.from_transformers(config, tensors)
    params = tree.map(Tensor, move(arrays))
    if any(key.startswith("keep.") for key in inputs):
        out = with_dropout(params, inputs, config["dropout_rate"], **settings)
    else:
        out = switch.switch_transformer_transformers(
            params, inputs["source"], inputs["target"], source_used=inputs["source_used"],
            target_used=inputs["target_used"], **settings)

    B = len(inputs["source"])
    computed = {"logits": out.logits}
    for i, (probs, routing) in enumerate(zip(out.probs, out.routings)):
        computed[f"probs.{i}"] = probs.reshape(B, -1, config["num_experts"])
        computed[f"expert.{i}"] = (routing.expert * routing.keep).reshape(B, -1)
    loss = loss_of(out.logits, inputs["label"])
    if "encoder_aux_loss" in recorded:
        computed |= dict(zip(("encoder_aux_loss", "decoder_aux_loss"), out.aux_losses))
        loss = loss + config["router_aux_loss_coef"] * sum(out.aux_losses)
    computed = tree.map(lambda y: getattr(y, "array", y), {**computed, "loss": loss})
    theirs = {k.removeprefix("grad."): recorded.pop(k) for k in list(recorded)
              if k.startswith("grad.")}
    assert disagreements(computed, Run(tensors, {}, {}, recorded)) == []
    grads, _ = switch.from_transformers(config, theirs)
    assert disagreements(grad(loss, params), Run({}, {}, {}, tree.named_leaves(grads))) == []

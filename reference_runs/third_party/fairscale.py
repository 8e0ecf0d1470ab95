"""fairscale: MOELayer with Top2Gate, one process with all experts.

Where it asks for float32, it gets float64: its gradients are then not lost in rounding.
"""
import tempfile
from contextlib import contextmanager
from unittest import mock

import torch
from fairscale.nn.moe import moe_layer, top2gate

from reference_runs.third_party.holding import Check, Reading, calls, returned

GATE = "top2gate.py: top2gating"


class Expert(torch.nn.Module):
    def __init__(self, w_in, w_out):
        super().__init__()
        self.w_in, self.w_out = w_in, w_out

    def forward(self, x):
        return torch.relu(x @ self.w_in) @ self.w_out


@contextmanager
def one_process():
    with tempfile.TemporaryDirectory() as folder, \
            mock.patch.object(torch, "float", torch.float64), \
            mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store",
                                             rank=0, world_size=1)
        try:
            yield
        finally:
            torch.distributed.destroy_process_group()


def layer_of(x, gumbel, case):
    """Logits, choices, combine weights, dispatch mask, loss and output of one group.

    [S, D], [S, E] -> [S, E], [S, 2], [S, E, C], [S, E, C], [], [S, D]
    """
    D, E = case.w_gate.shape
    gate = top2gate.Top2Gate(D, E)
    del gate.wg.weight
    gate.wg.weight = case.w_gate.T
    experts = torch.nn.ModuleList([Expert(case.w_in[e], case.w_out[e]) for e in range(E)])
    logits, gated = returned(gate.wg), returned(gate)
    with one_process(), calls(top2gate, "one_hot") as chosen, \
            mock.patch.dict(top2gate.gumbel_map, {x.device: lambda shape: gumbel}):
        y = moe_layer.MOELayer(gate, experts)(x[:, None])[:, 0]
    loss, weights, dispatched = gated[0]
    expert = torch.stack([index for index, _ in chosen[:2]], dim=-1)
    return logits[0], expert, weights, dispatched, loss, y


def as_recorded(case):
    """The kind that was made of it."""
    _, _, weights, dispatched, loss, y = layer_of(case.x, case.gumbel, case)
    return {"dispatched": dispatched, "weights": weights, "aux_loss": loss, "y": y}


def as_gshard(case):
    """The paper's layer: no noise, so that the second choice is the second best."""
    quiet = torch.zeros_like(case.x[0] @ case.w_gate)
    groups = [layer_of(x, quiet, case) for x in case.x]
    logits, expert, weights, dispatched, loss, y = (torch.stack(parts) for parts in zip(*groups))
    keep = dispatched.any(dim=-1).gather(2, expert)
    return {"logits": logits, "expert_index": expert.reshape(-1, 2), "keep": keep.reshape(-1, 2),
            "weights": weights, "aux_loss": loss, "y": y}


def its_capacity(case):
    """A capacity of 2 S / E is all there is, and E must divide S."""
    S, E = case.sizes["S"], case.sizes["E"]
    return S and S % E == 0 and case.settings["capacity"] == 2 * S // E


def checks():
    return [
        Check("fairscale", "MOELayer with Top2Gate", "gshard_2020", {"fairscale": as_recorded},
              dtype="float64", gradients=True),
        Check("fairscale", "MOELayer with Top2Gate, no noise", "gshard_2020", {"layer": as_gshard},
              (Reading("keep", GATE, "there is no draw that a second choice must pass: each is "
                       "dispatched if there is room",
                       "weights are normalised after dropping, and each second choice is "
                       "dispatched"),), its_capacity, dtype="float64", gradients=True)]

"""st-moe-pytorch: MoE with TopNGating, one group at a time; its experts are the paper's.

Its capacity comes of a factor and is at least 4.
"""
import torch
from st_moe_pytorch.st_moe_pytorch import MoE

from reference_runs.third_party.fairscale import Expert
from reference_runs.third_party.holding import Check, Reading, calls, returned
from reference_runs.third_party.mixture_of_experts import (
    DISPATCHED, RELEASED, drawn, factor, its_capacity)

FILE = "st_moe_pytorch.py"


def layer_of(groups, draws, w_gate, w_in, w_out, k, capacity, **settings):
    """The outputs of MoE, its losses averaged over no group, by the paper's names.

    A choice after the first passes with probability min(1, 2 g). [G, S, D], [G, S] or [G, 1]
    """
    (D, E), (G, S, _) = w_gate.shape, groups.shape
    layer = MoE(D, E, gating_top_n=k, threshold_train=0.5,
                capacity_factor_train=factor(capacity, S, E),
                experts=torch.nn.ModuleList([Expert(w_in[e], w_out[e]) for e in range(E)]),
                **settings).train()
    logits, gated, found, experts = returned(layer.gate.to_gates), returned(layer.gate), [], []
    for x, u in zip(groups, draws):
        with drawn(torch.stack([u.expand(S)] * k)[:, None]), \
                calls(torch.nn.functional, "one_hot") as chosen:
            found.append(torch.func.functional_call(
                layer, {"gate.to_gates.weight": w_gate.T}, x[None]))
        experts.append(chosen[0][0].movedim(0, -1))                    # [1, S, k]
    expert = torch.cat(experts)                                        # [G, S, k]
    kept = torch.cat([combine for _, combine, *_ in gated]).bool().any(dim=-1)     # [G, S, E]
    return {"logits": torch.cat(logits), "expert_index": expert.reshape(G * S, k),
            "keep": kept.gather(2, expert).reshape(G * S, k),
            "y": torch.cat([out.outputs for out in found]),
            "aux_loss": torch.stack([out.balance_loss for out in found]),
            "z_loss": torch.stack([out.router_z_loss for out in found])}


def as_gshard(case, **settings):
    """The paper's layer."""
    found = layer_of(case.x, case.u, case.w_gate, case.w_in, case.w_out, 2, case.capacity,
                     **settings)
    return {name: value for name, value in found.items() if name != "z_loss"}


def as_gshard_plainly(case):
    """The same without a straight-through gradient by the dispatch."""
    return as_gshard(case, straight_through_dispatch_tensor=False)


def as_switch(case):
    """The Switch layer of two choices or three, all of which are dispatched."""
    groups = case.x.reshape(case.n_groups, -1, case.x.shape[-1])
    found = layer_of(groups, torch.zeros(len(groups), 1), case.w_router, case.w_in, case.w_out,
                     case.k, case.capacity)
    return {**found, "logits": found["logits"].reshape(len(case.x), -1),
            "y": found["y"].reshape(case.x.shape), "aux_loss": found["aux_loss"].mean(),
            "z_loss": found["z_loss"].mean()}


def checks():
    gating = f"{FILE}: TopNGating.forward"
    released = Reading("aux_loss", gating, "the mean over experts is multiplied by E^2", RELEASED)
    after = Reading("aux_loss", gating, "f counts after capacity: the first choices that it is "
                    "made of are a view of the mask from which full experts' tokens are struck out")
    taken = Reading("keep", gating, "a second choice that did not pass the draw takes no number in "
                    "the queue", DISPATCHED)
    through = [Reading(f"grad.y.{leaf}", gating, "straight_through_dispatch_tensor: what is "
                       "dispatched gets the gradient of its weight, too")
               for leaf in ("x", "w_gate")]
    return [
        Check("st-moe-pytorch", "MoE", "gshard_2020", {"layer": as_gshard},
              (taken, released, after, *through), its_capacity, gradients=True),
        Check("st-moe-pytorch", "MoE, straight_through_dispatch_tensor=False", "gshard_2020",
              {"layer": as_gshard_plainly}, (taken, released, after), its_capacity,
              gradients=True),
        Check("st-moe-pytorch", "MoE, gating_top_n 2 and 3", "switch_2021", {"layer": as_switch},
              (Reading("y", gating, "gates are divided by their sum, before any is dropped",
                       "k gates are divided by their sum"), after), more_choices)]


def more_choices(case):
    group = case.sizes["T"] // case.settings["n_groups"]
    return (case.settings["k"] in (2, 3) and "padding" not in case.tags
            and 4 <= case.settings["capacity"] <= group)

"""mixture-of-experts: MoE with Top2Gating, one group at a time.

Its capacity comes of a factor and is at least 4. Its loss is asked for without its coefficient.
"""
from unittest import mock

import torch
from mixture_of_experts.mixture_of_experts import MoE, Top2Gating

from reference_runs.third_party.holding import Check, Reading, calls, returned

FILE = "mixture_of_experts.py"


def factor(capacity, n_tokens, n_experts):
    """The factor that makes this capacity, wherever the product is cut off."""
    return (min(capacity, n_tokens) + 0.5) * n_experts / n_tokens


def drawn(u):
    """Tensor.uniform_ gives u."""
    return mock.patch.object(torch.Tensor, "uniform_", lambda zeros, low, high: u)


def as_gshard(case, policy="random"):
    """The paper's layer: a second choice passes with probability min(1, 2 g_2)."""
    (D, E), S = case.w_gate.shape, case.x.shape[1]
    layer = MoE(D, E, case.w_in.shape[-1], second_policy_train=policy, second_threshold_train=0.5,
                capacity_factor_train=factor(case.capacity, S, E), loss_coef=1.0).train()
    weights = {"gate.w_gating": case.w_gate, "experts.w1": case.w_in, "experts.w2": case.w_out}
    found, experts, gated = [], [], returned(layer.gate)
    for x, u in zip(case.x, case.u):
        with drawn(u[None]), calls(torch.nn.functional, "one_hot") as chosen:
            found.append(torch.func.functional_call(layer, weights, x[None]))
        experts.append(torch.stack([index for index, _ in chosen[:2]], dim=-1))
    expert = torch.cat(experts)                                        # [G, S, 2]
    keep = torch.cat([dispatched for dispatched, *_ in gated]).bool().any(dim=-1)   # [G, S, E]
    return {"expert_index": expert.reshape(-1, 2), "keep": keep.gather(2, expert).reshape(-1, 2),
            "y": torch.cat([y for y, _ in found]),
            "aux_loss": torch.stack([loss for _, loss in found])}


def as_recorded(case, policy="random", **settings):
    """The kinds that were made of its gate."""
    E, S = case.w_gate.shape[1], case.x.shape[1]
    gate = Top2Gating(case.w_gate.shape[0], E, second_policy_train=policy,
                      capacity_factor_train=factor(case.capacity, S, E), **settings).train()
    used = case.get("used")
    with drawn(case.get("u")):
        dispatched, weights, loss = torch.func.functional_call(
            gate, {"w_gating": case.w_gate},
            (case.x, None if used is None else used.to(case.x.dtype)))
    return {"dispatched": dispatched != 0, "weights": weights, "aux_loss": loss}


def random(case):
    return as_recorded(case, second_threshold_train=case.threshold)


def every(case):
    return as_recorded(case, "all")


def its_capacity(case):
    """4 or more, and no more than there are tokens."""
    S = case.sizes["S"]
    return S and 4 <= case.settings["capacity"] <= S


DISPATCHED = ("second choices that are not dispatched take no number, as in Mesh TensorFlow, "
              "lingvo, NLLB")
RELEASED = "the auxiliary loss is E^2 times as large, as in all released code but fairscale's"


def checks():
    return [
        Check("mixture-of-experts", "MoE, policy random", "gshard_2020", {"layer": as_gshard}, (
            Reading("keep", f"{FILE}: Top2Gating.forward", "a second choice that did not pass the "
                    "draw takes no number in the queue", DISPATCHED),
            Reading("aux_loss", f"{FILE}: Top2Gating.forward", "the mean over experts is "
                    "multiplied by E^2", RELEASED)), its_capacity, gradients=True),
        Check("mixture-of-experts", "Top2Gating, policies random and all", "gshard_2020",
              {"mesh": random, "mesh_padded": random, "mesh_all": every}, fits=its_capacity)]

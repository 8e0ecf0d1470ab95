"""DeepSpeed: the gates top1gating, top2gating and topkgating, of one process.

A capacity is given as the least that there may be, under a factor of 0.
"""
from unittest import mock

import torch
from deepspeed.moe import sharded_moe

from reference_runs.third_party.holding import Check, Reading, calls

FILE = "sharded_moe.py"


def groups_of(case):
    """Logits of each group, which are what its gates are given. -> [G, S, E]"""
    logits = case.x @ case.w_router
    return logits.reshape(case.n_groups, -1, logits.shape[-1])


def top1(case):
    """A Switch layer's router: choices, who is kept, and the loss."""
    found, used = [], case.used.reshape(case.n_groups, -1)
    with calls(torch.nn.functional, "one_hot") as chosen:
        for logits, present in zip(groups_of(case), used):
            found.append(sharded_moe.top1gating(
                logits, 0.0, case.capacity, used_token=None if used.all() else present.long(),
                use_rts=False, sparse_routes=True))
    return {"expert_index": torch.cat([index for index, _ in chosen])[:, None],
            "keep": torch.cat([out[3].T for out in found]) >= 0,
            "aux_loss": torch.stack([out[0] for out in found]).mean()}


def top1_as_recorded(case):
    """The kind that was made of it, its three settings."""
    here, found = case.logits.device, {}
    settings = {"used_token": case.used.long(), "sparse_routes": True}
    with mock.patch.dict(sharded_moe.exp_selection_uniform_map, {here: lambda shape: case.u}), \
            mock.patch.dict(sharded_moe.gumbel_map, {here: lambda shape: case.gumbel}):
        runs = {
            "random_token_selection": sharded_moe.top1gating(
                case.logits, case.capacity_factor, case.at_least, use_rts=True, **settings),
            "all_kept": sharded_moe.top1gating(
                case.logits, case.capacity_factor, case.at_least, use_rts=False,
                drop_tokens=False, **settings),
            "gumbel": sharded_moe.top1gating(
                case.logits, float(case.logits.shape[1]), case.at_least,
                noisy_gate_policy="RSample", use_rts=False, **settings)}
    for name, (loss, capacity, _, expert, slot, gate, _) in runs.items():
        found.update({f"{name}.expert": expert.T, f"{name}.slot": slot.T, f"{name}.gate": gate.T,
                      f"{name}.aux_loss": loss})
    return {**found, "capacity": runs["random_token_selection"][1],
            "all_kept_capacity": runs["all_kept"][1]}


def top_k(case, drop_policy):
    """A Switch layer's router of k choices; gates where nobody is turned away."""
    with calls(torch, "topk") as chosen:
        found = [sharded_moe.topkgating(logits, case.k, 0.0, case.capacity, sparse_routes=True,
                                        drop_policy=drop_policy) for logits in groups_of(case)]
    expert = torch.cat([result.indices for _, result in chosen
                        if result.indices.shape[-1:] == (case.k,)][:case.n_groups])
    keep = torch.cat([out[3].T for out in found]) >= 0
    gate = torch.cat([out[5].T for out in found])
    return {"expert_index": expert, "keep": keep, **({"gate": gate} if keep.all() else {}),
            "aux_loss": torch.stack([out[0] for out in found]).mean()}


def top_k_by_position(case):
    return top_k(case, "position")


def top_k_by_probability(case):
    return top_k(case, "probs")


def top2_as_recorded(case):
    """The kind that was made of it."""
    with mock.patch.dict(sharded_moe.gumbel_map, {case.logits.device: lambda shape: case.gumbel}):
        loss, weights, dispatched, count = sharded_moe.top2gating(
            case.logits + 0, 0.0, case.capacity)       # it adds the draws in place
    return {"count": count, "dispatched": dispatched, "weights": weights, "aux_loss": loss}


def top2_as_gshard(case):
    """The paper's gate, the second choice the second best."""
    found, experts = [], []
    for logits in case.x @ case.w_gate:
        with calls(torch.nn.functional, "one_hot") as chosen:
            found.append(sharded_moe.top2gating(logits + 0, 0.0, case.capacity,
                                                top2_2nd_expert_sampling=False))
        experts.append(torch.stack([index for index, _ in chosen[:2]], dim=-1))
    loss, weights, dispatched = (torch.stack([out[i] for out in found]) for i in range(3))
    expert = torch.stack(experts)                                      # [G, S, 2]
    keep = dispatched.any(dim=-1).gather(2, expert)
    return {"expert_index": expert.reshape(-1, 2), "keep": keep.reshape(-1, 2),
            "weights": weights, "aux_loss": loss}


def its_tokens(case):
    """Slots for one token or more, but no more than there are tokens in a group."""
    return 0 < case.settings["capacity"] <= case.sizes["T"] // case.settings["n_groups"]


def one_choice(case):
    return case.settings["k"] == 1 and its_tokens(case)


def more_choices(case):
    return case.settings["k"] > 1 and "padding" not in case.tags and its_tokens(case)


ALL_CHOICES = Reading("aux_loss", f"{FILE}: topkgating", "f is the share of all k choices",
                      "f is the share of all choices, as in Mesh TensorFlow and DeepSpeed")
DIVIDED = Reading("gate", f"{FILE}: topkgating", "gates are divided by the sum of those kept",
                  "k gates are divided by their sum")


def checks():
    return [
        Check("deepspeed", "top1gating: random token selection, none dropped, Gumbel noise",
              "switch_2021", {"deepspeed": top1_as_recorded}),
        Check("deepspeed", "top1gating, use_rts=False", "switch_2021", {"layer": top1}, (
            Reading("keep", f"{FILE}: top1gating", "who stays in a full expert is who torch.topk "
                    "picks among equal ones, which it does not define, and not who came first"),
            Reading("aux_loss", f"{FILE}: top1gating", "padding is not counted in f, but is in P "
                    "and in both divisors", "padding is part of P and in the divisor of f, as in "
                    "DeepSpeed")), one_choice),
        Check("deepspeed", "topkgating, drop_policy position", "switch_2021",
              {"layer": top_k_by_position}, (
                  Reading("keep", f"{FILE}: topkgating", "all choices of a token queue before the "
                          "next token's, not all first choices before the second ones"),
                  DIVIDED, ALL_CHOICES), more_choices),
        Check("deepspeed", "topkgating, drop_policy probs", "switch_2021",
              {"layer": top_k_by_probability}, (
                  Reading("keep", f"{FILE}: topkgating", "those of the largest gates stay in an "
                          "expert, be they first or second choices"), DIVIDED, ALL_CHOICES),
              more_choices),
        Check("deepspeed", "top2gating", "gshard_2020", {"deepspeed": top2_as_recorded}),
        Check("deepspeed", "top2gating, top2_2nd_expert_sampling=False", "gshard_2020",
              {"layer": top2_as_gshard}, (
                  Reading("keep", f"{FILE}: top2gating", "there is no draw that a second choice "
                          "must pass: each is dispatched if there is room", "weights are "
                          "normalised after dropping, and each second choice is dispatched"),
                  Reading("weights", f"{FILE}: top2gating", "weights are divided by the sum of "
                          "those that were kept", "weights are normalised after dropping, as in "
                          "fairscale, DeepSpeed, fairseq and NLLB"),
                  Reading("aux_loss", f"{FILE}: top2gating", "the mean over experts is multiplied "
                          "by E^2", "the auxiliary loss is E^2 times as large, as in all released "
                          "code but fairscale's")),
              lambda case: case.sizes["S"] > 0 and case.settings["capacity"] > 0)]

"""Hugging Face transformers: SwitchTransformers, NLLB-MoE, and Mixtral's balance loss.

A group of ours is a sequence of theirs. Choices are read where a router makes them one-hot, places
from the running count that it takes; what routers and classifiers return is kept by hooks.
"""
from functools import partial
from importlib.metadata import version
from unittest import mock

import torch
from transformers import NllbMoeConfig, SwitchTransformersConfig
from transformers.models.mixtral import modeling_mixtral as mixtral
from transformers.models.nllb_moe import modeling_nllb_moe as nllb
from transformers.models.switch_transformers import modeling_switch_transformers as switch

from reference_runs.third_party.holding import Check, Reading, calls, returned

VERSION = tuple(int(part) for part in version("transformers").split(".")[:2])
SWITCH, NLLB, MIXTRAL = (f"{name}.py" for name in (
    "modeling_switch_transformers", "modeling_nllb_moe", "modeling_mixtral"))


# -- SwitchTransformers --------------------------------------------------------------------------

def switch_layer(case):
    """SwitchTransformersSparseMLP, and the model's two losses of its router's logits."""
    found, by_sequence, index = routed(case, case.n_groups)
    if VERSION == (5, 0):        # its model has no losses: asked for router logits, it fails
        return found
    if index is None:            # SwitchTransformersForConditionalGeneration._unpack_router_logits
        index = by_sequence.argmax(dim=-1)
    return {**found, "z_loss": switch.router_z_loss_func(by_sequence),
            "aux_loss": switch.load_balancing_loss_func(torch.softmax(by_sequence, dim=-1), index)}


def switch_jitter(case):
    """The same in training, with the draws of the case in place of its own."""
    def uniform(like, low, high, **settings):
        initialising = like.shape != (1, *case.u.shape)        # weights that are not used
        return like if initialising else like.copy_(low + (high - low) * case.u[None])

    with mock.patch.object(torch.Tensor, "uniform_", uniform):
        found = routed(case, 1, router_jitter_noise=case.eps, dropout_rate=0.0)[0]
    return {f"jitter.{name}": value for name, value in found.items()}


def routed(case, n_groups, **settings):
    """What the layer computes, its logits by sequence, and the experts that it says were chosen.

    In training where there are ``settings``. It is given a copy, as it may write into its input.
    """
    (D, E), H = case.w_router.shape, case.w_in.shape[-1]
    x = case.x.reshape(n_groups, -1, D).clone()
    layer = switch.SwitchTransformersSparseMLP(SwitchTransformersConfig(
        d_model=D, d_ff=H, num_experts=E, expert_capacity=case.capacity, **settings)).train(
            bool(settings))
    weights = {"router.classifier.weight": case.w_router.T}
    for e in range(E):
        weights[f"experts.expert_{e}.wi.weight"] = case.w_in[e].T
        weights[f"experts.expert_{e}.wo.weight"] = case.w_out[e].T
    logits, routing = returned(layer.router.classifier), returned(layer.router)
    with calls(torch.nn.functional, "one_hot") as chosen, calls(torch, "cumsum") as counts:
        y = torch.func.functional_call(layer, weights, x)
    y, index = (y[0], y[1][1]) if isinstance(y, tuple) else (y, None)
    gate, mask = (routing[0][i] for i in ((0, 1) if VERSION == (5, 0) else (1, 0)))
    T, logits = len(case.x), logits[0].reshape(n_groups, -1, E)
    expert, places = chosen[0][0].reshape(T, 1), counts[0][1].reshape(T, E) - 1
    return {"logits": logits.reshape(T, E), "expert_index": expert,
            "position_in_expert": places.gather(1, expert),
            "keep": mask.reshape(T, E).bool().any(dim=-1, keepdim=True),
            "gate": gate.reshape(T, 1), "y": y.reshape(T, D)}, logits, index


def one_choice(case):
    return case.settings["k"] == 1 and case.sizes["T"] > 0 and "padding" not in case.tags


# -- NLLB-MoE ------------------------------------------------------------------------------------

def nllb_layer(x, u, used, capacity, weights, scale=1.0, **settings):
    """NllbMoeSparseMLP of one group: logits, choices, weights of experts, and output.

    A scale below 1 is that of evaluation, where it makes up for a dropout in training.
    [S, D], [S] or None, [S] or None -> [S, E], [S, 2], [S, E], [S, D]; and first choices kept, [S]
    """
    (D, E), H = weights["w_gate"].shape, weights["w_in"].shape[-1]
    layer = nllb.NllbMoeSparseMLP(NllbMoeConfig(
        d_model=D, num_experts=E, expert_capacity=capacity, activation_dropout=0.0,
        moe_token_dropout=1.0 - scale, moe_eval_capacity_token_fraction=-1.0,
        router_ignore_padding_tokens=False, **settings), H).train(scale == 1.0)
    named = {"router.classifier.weight": weights["w_gate"].T}
    for e in range(E):
        for part, name in ("fc1", "in"), ("fc2", "out"):
            w = weights[f"w_{name}"][e].T
            named[f"experts.expert_{e}.{part}.weight"] = w
            named[f"experts.expert_{e}.{part}.bias"] = (
                weights[f"b_{name}"][e] if f"b_{name}" in weights else torch.zeros_like(w[:, 0]))
    padding = None if used is None else ~used
    logits, routed = returned(layer.router.classifier), returned(layer.router)
    with calls(torch.nn.functional, "one_hot") as chosen, \
            mock.patch.object(torch, "rand_like", lambda like: u.to(like.dtype)):
        y = torch.func.functional_call(layer, named, (x[None], padding))
    expert = torch.stack([index for index, _ in chosen[:2]], dim=-1)
    mask, combining = routed[0][:2]
    y = y[0] if isinstance(y, tuple) else y
    return logits[0].reshape(-1, E), expert, combining, y[0], mask.argmax(dim=-1)


def nllb_as_configured(case, **settings):
    """A kind of ours that was made of it."""
    weights = {name: case[name] for name in ("w_gate", "w_in", "w_out", "b_in", "b_out")}
    logits, _, combining, y, first = nllb_layer(
        case.x, case.get("u"), case.get("used"), case.capacity, weights, case.scale, **settings)
    return {"first": first, "dispatched": combining != 0, "weights": combining, "y": y,
            "aux_loss": nllb_loss(logits, combining, first, case.get("used"))}


def nllb_loss(logits, combining, first, used):
    """The model's balance loss of one layer: of what is left after capacity, or of its logits."""
    if VERSION >= (5, 0):
        mask = None if used is None else used[None].to(logits.dtype)
        return nllb.load_balancing_loss_func((logits,), logits.shape[-1], 2, mask)
    return nllb.load_balancing_loss_func(combining, first[:, None])


def nllb_as_gshard(case):
    """The paper's layer by NllbMoeSparseMLP, second choices at random as there."""
    weights = {name: case[name] for name in ("w_gate", "w_in", "w_out")}
    masks = case.get("used", [None] * len(case.x))
    groups = [nllb_layer(x, u, used, case.capacity, weights, second_expert_policy="random")
              for x, u, used in zip(case.x, case.u, masks)]
    logits, expert, combining, y, first = (torch.stack(parts) for parts in zip(*groups))
    loss = torch.stack([nllb_loss(*group) for group in zip(logits, combining, first, masks)])
    return {"logits": logits, "expert_index": expert.reshape(-1, 2),
            "keep": combining.gather(2, expert).reshape(-1, 2) != 0, "y": y, "aux_loss": loss}


# -- Mixtral -------------------------------------------------------------------------------------

def mixtral_loss(case):
    """load_balancing_loss_func of one layer."""
    logits = case.x @ case.w_router
    mask = None if case.used.all() else case.used.reshape(1, -1).to(logits.dtype)
    return {"logits": logits, "aux_loss": mixtral.load_balancing_loss_func(
        (logits,), case.w_router.shape[1], case.k, mask)}


def one_group(case):
    return case.settings["n_groups"] == 1 and case.sizes["T"] > 0


# -- What is held, and what was read -------------------------------------------------------------

LAYER = f"{SWITCH}: SwitchTransformersSparseMLP.forward"
ROUTER = f"{SWITCH}: SwitchTransformersTop1Router.forward"
UNMASKED = "router_ignore_padding_tokens is kept, and read nowhere: the router is given no mask"


def of_switch(*readings, **settings):
    return Check("transformers", "SwitchTransformersSparseMLP", "switch_2021",
                 {"layer": switch_layer}, readings, one_choice, gradients=True, **settings)


def of_padded_switch(*more):
    return Check("transformers", "SwitchTransformersSparseMLP, padded batches", "switch_2021",
                 {"layer": switch_layer}, (
                     Reading("position_in_expert", ROUTER, f"{UNMASKED}, so padding takes slots",
                             "R7"),
                     Reading("aux_loss", f"{SWITCH}: load_balancing_loss_func",
                             "padding is counted in f and in P", "A3"), *more,
                     Reading("z_loss", f"{SWITCH}: router_z_loss_func",
                             "the mean is over padding, too", "A10a")),
                 lambda case: case.settings["k"] == 1 and "padding" in case.tags)


def of_jitter(*more):
    return Check("transformers", "SwitchTransformersSparseMLP, router_jitter_noise",
                 "switch_2021", {"exploration": switch_jitter}, (
                     Reading("jitter.y", ROUTER, "the jitter is multiplied into the router's "
                             "input in place, and float32 is not copied: the experts get it, too",
                             "R4"), *more))


AFTER_CAPACITY = Reading(
    "aux_loss", LAYER, "the expert that is counted is the argmax of the mask after capacity, 0 for "
    "a token that was dropped", "f counts after capacity, the dropped for expert 0, as in "
    "transformers")
SWITCH_CHECKS = {
    (4, 44): [
        of_switch(
            Reading("y", LAYER, "the output starts as a copy of the input, all of which is then "
                    "multiplied by its gate: a dropped token is not zero", "R2"),
            Reading("y", LAYER, "which experts run is read from a mask that was transposed before "
                    "it was reshaped: tokens of an expert that is left out come back as their "
                    "gate times themselves", "R3a"),
            AFTER_CAPACITY),
        of_padded_switch(AFTER_CAPACITY._replace(name="")),
        of_jitter(Reading("jitter.y", LAYER, "that, and a dropped token that is not zero"))],
    (5, 0): [
        of_switch(Reading(
            "position_in_expert", ROUTER, "tokens come as one row each, so the running sum is "
            "along an axis of length 1: everybody is the first in its queue, and no token is ever "
            "dropped", "R1"))],
    (5, 24): [of_switch(), of_padded_switch(), of_jitter()],
}

NLLB_KINDS = {
    "nllb": {}, "nllb_padded": {},
    "nllb_prioritized": {"batch_prioritized_routing": True},
    "nllb_random": {"second_expert_policy": "random"},
    "nllb_normalized_before": {"normalize_router_prob_before_dropping": True},
    "nllb_random_normalized_before": {"second_expert_policy": "random",
                                      "normalize_router_prob_before_dropping": True}}
TWO_EXPERTS = Reading(
    "y", f"{NLLB}: NllbMoeExperts.forward", "a mask that is one-hot already is made one-hot again, "
    "and its 0 and 1 are taken for experts: expert 1 gets every first choice, expert 0 all the "
    "rest, and the others never run")
BOTH_CHOICES = Reading(
    "aux_loss", f"{NLLB}: load_balancing_loss_func", "E sum f P of both choices: E^2 times the "
    "paper's, and f adds up to 2")
OF_LOGITS = BOTH_CHOICES._replace(why="E sum f P of both choices, where in 4.44 it was of the "
                                      "first choices and weights that capacity has left")
BY_CHANCE = Reading(
    "keep", f"{NLLB}: NllbMoeTop2Router.route_tokens", "the second choice passes if twice its raw "
    "gate, not its share of both, exceeds the draw, and takes a number only then",
    "NLLB's gating by chance")


def of_nllb(*readings):
    return Check("transformers", "NllbMoeSparseMLP, every policy", "gshard_2020",
                 {kind: partial(nllb_as_configured, **settings)
                  for kind, settings in NLLB_KINDS.items()}, readings)


def of_gshard(*readings):
    return Check("transformers", "NllbMoeSparseMLP, policy random", "gshard_2020",
                 {"layer": nllb_as_gshard, "layer_padded": nllb_as_gshard}, readings,
                 lambda case: case.sizes["S"] > 0)


NLLB_CHECKS = {
    (4, 44): [
        of_nllb(),
        of_gshard(
            BY_CHANCE,
            Reading("y", f"{NLLB}: NllbMoeTop2Router.normalize_router_probabilities",
                    "weights are divided by the sum of those that were kept: alone, one is 1",
                    "weights are normalised after dropping, as in fairscale, DeepSpeed, fairseq "
                    "and NLLB"),
            Reading("aux_loss", f"{NLLB}: NllbMoeSparseMLP.forward", "P is the mean of weights "
                    "after capacity, not of gates, and f counts after capacity, too",
                    "NLLB's gating by chance"))],
    (5, 0): [of_nllb(TWO_EXPERTS._replace(name="N1"), OF_LOGITS)],
    (5, 24): [of_nllb(TWO_EXPERTS._replace(name="N1"), OF_LOGITS),
              of_gshard(BY_CHANCE, TWO_EXPERTS, BOTH_CHOICES)],
}


def of_mixtral():
    function = f"{MIXTRAL}: load_balancing_loss_func"
    return Check("transformers", "Mixtral's load_balancing_loss_func", "switch_2021",
                 {"layer": mixtral_loss}, (
                     Reading("aux_loss", function, "the mean is over tokens, the sum over choices: "
                             "f adds up to k", "A8"),
                     Reading("aux_loss", function, "of padding alone, it is 0 / 0")), one_group)


MIXTRAL_CHECKS = {(4, 44): [of_mixtral()], (5, 0): [], (5, 24): [of_mixtral()]}


def checks():
    return [*SWITCH_CHECKS[VERSION], *NLLB_CHECKS[VERSION], *MIXTRAL_CHECKS[VERSION]]

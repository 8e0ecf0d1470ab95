"""Routing, capacity, dispatch and weights gone wrong, as reported of others' code.

As in ``wrong_balance``: titles are ours, a report is no verdict, ``paper`` is the paper as it was.

    T tokens, E experts, K experts chosen per token, G groups, C slots per expert
"""
import math

import numpy as np

from minimoe import ops, tree
from minimoe.autodiff.tensor import stop_gradient
from minimoe.oracle.variants import FOUND_HERE, bug, form

FLAT = "switch_2021/layer", "switch_2021/expert_dropout", "switch_2021/encoder_decoder"
SWITCH = (*FLAT, "switch_2021/exploration", "switch_2021/pseudocode", "switch_2021/transformers")
GSHARD = "gshard_2020/layer", "gshard_2020/layer_padded", "gshard_2020/transformer"
VMOE_LAYERS = "vmoe_2021/layer", "vmoe_2021/layer_batch_prioritized"
VMOE = (*VMOE_LAYERS, "vmoe_2021/routing", "vmoe_2021/vmoe")
NLLB = tuple(f"gshard_2020/nllb{setting}" for setting in (
    "", "_padded", "_prioritized", "_random", "_normalized_before", "_random_normalized_before"))
LIMOE = "limoe_2022/losses", "limoe_2022/tower", "limoe_2022/tower_padded"
SPARSELY_GATED = tuple(f"sparsely_gated_2017/{kind}" for kind in (
    "layer", "layer_padded", "layer_tensor2tensor", "layer_davidmrau"))


def _rerouted(change, name="_first_come"):
    """``name``, which makes a Routing of scores and more, with a change to what it makes.

    ``change(routing, scores, used)``, ``used`` a column, [T, 1] bool.
    """
    def make(paper):
        right = getattr(paper, name)

        def routed(*args, **settings):
            routing = right(*args, **settings)
            used = settings.get("used")
            if used is None and args:
                used = next((a for a in args[2:] if getattr(a, "dtype", None) == bool), None)
            return change(routing, args[0], np.ones((len(args[0]), 1), bool) if used is None
                          else used[:, None])
        return routed
    return make


def _unaware_of_padding(name, place=4):
    """``name``, whose argument ``place`` says which tokens are used, not told so."""
    def make(paper):
        right = getattr(paper, name)

        def routed(*args, **settings):
            args = [None if i == place else a for i, a in enumerate(args)]
            return right(*args, **{**settings, "used": None} if "used" in settings else settings)
        return routed
    return make


def _without_capacity(name, place):
    """``name``, whose argument ``place`` is the capacity, with room for all."""
    def make(paper):
        right = getattr(paper, name)
        return lambda *args, **settings: right(*args[:place], math.inf, *args[place + 1:],
                                               **{**settings, "capacity": math.inf}
                                               if "capacity" in settings else settings)
    return make


# -- R1: a running sum along an axis of length 1 -------------------------------------------------

def _all_in_front(name, place):
    """``name``, whose argument ``place`` is the capacity, with all first in their queues."""
    def make(paper):
        unlimited = _without_capacity(name, place)(paper)

        def routed(*args, **settings):
            routing = unlimited(*args, **settings)
            return routing._replace(slot=0 * routing.slot, keep=routing.keep & (0 < args[place]))
        return routed
    return make


def _first_place(paper):
    return lambda expert, wanted, n_experts, used=None, order=None: 0 * expert


def _z_of_largest(paper):
    right = paper.router_z_loss
    return lambda logits, used=None: right(
        ops.softmax(logits).max(axis=-1, keepdims=True), used)


# -- R2: a dropped token comes back ---------------------------------------------------------------

def _returned(right):
    def expert_feed_forward(x, routing, w_in, w_out):
        dropped = ops.where(routing.keep, 0.0, routing.gate).sum(axis=-1, keepdims=True)   # [T, 1]
        return right(x, routing, w_in, w_out) + dropped * x
    return expert_feed_forward


def _returned_of_mlp(paper):
    def expert_mlp(params, x, routing, activation=ops.gelu):
        dropped = ops.where(routing.keep, 0.0, routing.gate).sum(axis=-1, keepdims=True)
        return paper.expert_mlp(params, x, routing, activation) + dropped * x
    return expert_mlp


# -- R3: [G, T/G, E] transposed to [G, E, T/G] and read as [T, E] ----------------------------------

def _transposed(scores, n_groups):
    T, E = scores.shape
    return stop_gradient(scores).reshape(n_groups, T // n_groups, E).swapaxes(1, 2).reshape(T, E)


def _running_those_listed(paper):
    """The experts that run are read from the map: tokens of others come back times their gates."""
    def switch_ffn(params, x, capacity, k=1, n_groups=1, used=None, router_input=None):
        out = paper.switch_ffn(params, x, capacity, k, n_groups, used, router_input)
        routing, E = out.routing, params.w_in.shape[0]
        chosen = (routing.expert[:, :, None] == np.arange(E)) & routing.keep[:, :, None]
        runs = _transposed(chosen.any(axis=1), n_groups).any(axis=0)   # [E]
        runs = runs[routing.expert]                                    # [T, K]
        back = ops.where(routing.keep & ~runs, routing.gate, 0.0).sum(axis=-1, keepdims=True)
        y = paper.expert_feed_forward(x, routing._replace(keep=routing.keep & runs), params.w_in,
                                      params.w_out)
        return out._replace(y=y + back * x)
    return switch_ffn


def _scrambled_route(paper):
    def route(probs, capacity, k=1, n_groups=1, used=None, order=None):
        expert = paper.top_k(_transposed(probs, n_groups), k)
        return paper._first_come(probs, expert, capacity, n_groups, used, order)
    return route


def _scrambled_top_two(paper):
    return lambda gates: paper.top_two(stop_gradient(gates).swapaxes(1, 2).reshape(gates.shape))


def _scrambled_imported_route(paper):
    def route(gates, capacity, k=1, n_groups=1, used=None, order=None):
        found = paper.route(_transposed(gates, n_groups), capacity, k, n_groups, used, order)
        return found._replace(gate=ops.take_along_axis(gates, found.expert, axis=-1))
    return route


# -- R4: jitter in place -------------------------------------------------------------------------

def _jittered_in_place(trace, run, module):
    """What the paper makes of jittered tokens without jitter; they are a factor times tokens."""
    x, u, eps = run.inputs["x"], run.inputs["u"], run.settings["eps"]
    factor = module.jitter(np.ones_like(x), u, eps)
    inputs = {**run.inputs, "x": factor * x, "u": np.full_like(u, 0.5)}
    found = tree.named_leaves(module.exploration_oracle(run._replace(inputs=inputs))["jitter"])
    names = [name for name in trace if name.startswith("jitter.")]
    return {name: factor * leaf if name.endswith(".x") else leaf
            for name, leaf in zip(names, found.values())}


# -- R6: the third choice queues behind the second ones alone -------------------------------------

def _slots_after_the_last(paper, expert, n_experts, n_groups, used, order=None):
    columns = []
    for k in range(expert.shape[1]):
        own = expert[:, k:k + 1]
        place = paper.slots_in_groups(own, n_experts, n_groups, used, order)
        if k:
            before = paper.counts_in_groups(expert[:, k - 1:k], n_experts, n_groups, used)
            group = np.arange(len(own))[:, None] // (len(own) // n_groups)
            place = place + before[group, own] * (1 if used is None else used)
        columns.append(place)
    return np.concatenate(columns, axis=1)


def _colliding(paper):
    def _first_come(probs, expert, capacity, n_groups=1, used=None, order=None):
        if expert.shape[1] < 3 or order is not None:
            raise ValueError("two choices of a token never collide")
        routing = paper._first_come(probs, expert, capacity, n_groups, used)
        used = None if used is None else used[:, None]
        slot = _slots_after_the_last(paper, expert, probs.shape[-1], n_groups, used)
        return routing._replace(slot=slot, keep=(slot < capacity) & (used is None or used))
    return _first_come


def _sharing_slots(paper):
    """Who has one slot of an expert is added up there, and is given what comes of the sum."""
    def switch_ffn(params, x, capacity, k=1, n_groups=1, used=None, router_input=None):
        out = paper.switch_ffn(params, x, capacity, k, n_groups, used, router_input)
        S, parts = x.shape[0] // n_groups, []
        for g in range(n_groups):
            rows = slice(g * S, (g + 1) * S)
            routing = out.routing._replace(**{name: part[rows] for name, part in
                                              out.routing._asdict().items()})
            seats = paper.seating(routing, params.w_in.shape[0], capacity)    # [S, K, E, C]
            inputs = ops.einsum("tkec,td->ecd", seats, x[rows])
            hidden = ops.relu(paper.expert_matmul(inputs, params.w_in))
            weights = ops.einsum("tk,tkec->tec", routing.gate, seats)
            parts.append(ops.einsum("tec,ecd->td", weights,
                                    paper.expert_matmul(hidden, params.w_out)))
        return out._replace(y=ops.concatenate(parts))
    return switch_ffn


def _colliding_route(paper):
    from minimoe.routing import topk

    def route(gates, capacity, k=1, n_groups=1, used=None, order=None):
        if k < 3:
            raise ValueError("two choices of a token never collide")
        routing = paper.route(gates, capacity, k, n_groups, used, order)
        used = None if used is None else used[:, None]
        slot = _slots_after_the_last(topk, routing.expert, gates.shape[-1], n_groups, used, order)
        return routing._replace(slot=slot, keep=(slot < capacity) & (used is None or used))
    return route


# -- R8: weights of a single choice, [T], normalised along what is left ----------------------------

def _over_tokens(routing, scores, used):
    if routing.gate.shape[1] != 1:
        raise ValueError("only of one choice are weights [T]")
    return routing._replace(gate=routing.gate / routing.gate.sum(axis=0))


# -- R9: flags of normalisation -----------------------------------------------------------------

def _logits_for_weights(paper):
    def switch_ffn(params, x, capacity, k=1, n_groups=1, used=None, router_input=None):
        out = paper.switch_ffn(params, x, capacity, k, n_groups, used, router_input)
        logits = paper.router_logits(x if router_input is None else router_input, params.w_router)
        routing = out.routing._replace(
            gate=ops.take_along_axis(logits, out.routing.expert, axis=-1))
        return out._replace(routing=routing, y=paper.expert_feed_forward(
            x, routing, params.w_in, params.w_out))
    return switch_ffn


def _logits_for_weights_of_mlp(paper):
    def moe_layer(params, x, capacity, k, z=None, n_groups=1, route=paper.route_vanilla, used=None,
                  activation=ops.gelu):
        out = paper.moe_layer(params, x, capacity, k, z, n_groups, route, used, activation)
        routing = out.routing._replace(
            gate=ops.take_along_axis(out.router.noisy, out.routing.expert, axis=-1))
        return out._replace(routing=routing, y=paper.expert_mlp(params, x, routing, activation))
    return moe_layer


def _raw(paper):
    return lambda gate: gate


def _raw_top_k(paper):
    return lambda noisy, k: ops.where(paper.top_k_mask(noisy, k), ops.softmax(noisy), 0.0)


# -- R10: the gate multiplies what goes into an expert --------------------------------------------

def _gated_inputs(paper):
    """y is the same where experts have neither biases nor a kink but at 0, as here."""
    def expert_intermediates(x, routing, w_in, w_out, activation=ops.relu):
        gate = routing.gate[:, :, None]                                # [T, K, 1]
        inputs, _, _ = paper.expert_intermediates(x, routing, w_in, w_out, activation)
        inputs = gate * inputs
        kept, expert = routing.keep[:, :, None], routing.expert
        hidden = activation(ops.einsum("tkd,tkdh->tkh", inputs, ops.take(w_in, expert)))
        hidden = ops.where(kept, hidden, 0.0)
        return inputs, hidden, ops.einsum("tkh,tkhd->tkd", hidden, ops.take(w_out, expert))
    return expert_intermediates


def _gated_inputs_of_mlp(paper):
    def expert_mlp(params, x, routing, activation=ops.gelu):
        seats, ends = paper.packed_seats(routing.expert, routing.keep, params.w_in.shape[0])
        gate = ops.take(routing.gate.reshape(-1), seats.choice)        # [R]
        rows = gate[:, None] * paper.gather(x, seats)
        hidden = activation(paper._expert_linear(rows, params.w_in, params.b_in, ends))
        outputs = paper._expert_linear(hidden, params.w_out, params.b_out, ends)
        return paper.gather_back(outputs, 0 * stop_gradient(routing.gate) + 1, seats)
    return expert_mlp


def _gated_intermediates_of_mlp(paper):
    def expert_intermediates(params, x, routing, activation=ops.gelu):
        kept, expert = routing.keep[:, :, None], routing.expert

        def linear(x, w, b):
            return ops.einsum("tkd,tkdh->tkh", x, ops.take(w, expert)) + ops.take(b, expert)

        inputs, _, _ = paper.expert_intermediates(params, x, routing, activation)
        inputs = routing.gate[:, :, None] * inputs
        hidden = ops.where(kept, activation(linear(inputs, params.w_in, params.b_in)), 0.0)
        return inputs, hidden, ops.where(kept, linear(hidden, params.w_out, params.b_out), 0.0)
    return expert_intermediates


# -- R11: softmax along the wrong axis ------------------------------------------------------------

def _softmax_over_tokens(paper):
    return lambda x, w_router: ops.softmax(paper.router_logits(x, w_router), axis=0)


def _gates_over_tokens(paper):
    return lambda logits: ops.softmax(logits, axis=1)


def _router_over_tokens(paper):
    def router(x, w_router, z=None):
        made = paper.router(x, w_router, z)
        return made._replace(gates=ops.softmax(made.noisy, axis=0))
    return router


def _gate_over_cases(paper):
    return lambda w_gate, x: ops.softmax(paper._for_each(x) @ w_gate, axis=-2)


def _proportions_over_cases(paper):
    return lambda logits: ops.softmax(logits, axis=-2)


# -- R12: an index in a byte ---------------------------------------------------------------------

def _within_a_byte(scores, lowest=-math.inf):
    if scores.shape[-1] <= 256:
        raise ValueError("256 experts have indices below 256")
    return ops.where(np.arange(scores.shape[-1]) < 256, stop_gradient(scores), lowest)


def _top_k_within_a_byte(paper):
    return lambda scores, k: paper.top_k(_within_a_byte(scores), k)


def _route_within_a_byte(paper):
    def route(gates, capacity, k=1, n_groups=1, used=None, order=None):
        found = paper.route(_within_a_byte(gates), capacity, k, n_groups, used, order)
        return found._replace(gate=ops.take_along_axis(gates, found.expert, axis=-1))
    return route


# -- R13, R14: what goes in -----------------------------------------------------------------------

def _ten_experts(run, module):
    names = [name for name in run.params if name.endswith(("w_router", "w_gate"))]
    E = run.params[names[0]].shape[-1] if names else run.inputs["gates"].shape[-1]
    return run._replace(settings={**run.settings, "k": min(10, E)})


def _one_router(run, module):
    names = [name for name in run.params if name.endswith(("w_router", "w_gate"))]
    first = run.params[names[0]]
    return run._replace(params={**run.params, **{
        name: first for name in names if run.params[name].shape == first.shape}})


def _one_gate(run, module):
    def shared(name, w):
        return 0 * w + w[..., :1, :, :] if name.endswith("w_gate") else w     # [K, D, E]
    return run._replace(params={name: shared(name, w) for name, w in run.params.items()})


# -- R15, R16: noise ------------------------------------------------------------------------------

def _noise_of_gate(paper):
    return lambda w_gate, w_noise: paper.GateParams(w_gate, w_gate)


def _std_of_zero(paper):
    right = paper.noisy_top_k

    def noisy_top_k(clean, raw, epsilon, k, *parts, **named):
        if np.any(epsilon):
            raise ValueError("in training there is noise")
        found = right(clean, raw, epsilon, k, lambda raw: ops.square(0 * raw), *parts[1:], **named)
        threshold = paper.kth_excluding(found.noisy, k)
        return found._replace(p=ops.normal_cdf((clean - threshold) / found.std))
    return noisy_top_k


# -- R17: a router in bfloat16 --------------------------------------------------------------------

def _rounded(x):
    dtype = str(x.dtype)
    return ops.astype(ops.round_to_bfloat16(ops.astype(x, dtype="float32")), dtype=dtype)


def _rounding(name):
    def make(paper):
        right = getattr(paper, name)
        return lambda *args: _rounded(right(*args))
    return make


# -- R18: of equal experts the last, or the first --------------------------------------------------

def _last_of_equals(paper):
    def route(probs, capacity, k=1, n_groups=1, used=None, order=None):
        expert = probs.shape[-1] - 1 - paper.top_k(stop_gradient(probs)[:, ::-1], k)
        return paper._first_come(probs, expert, capacity, n_groups, used, order)
    return route


def _loss_of_first(paper):
    def load_balancing_loss(probs, expert, n_groups=1, used=None):
        expert = paper.top_k(probs, expert.shape[1])
        return paper.load_balancing_loss(probs, expert, n_groups, used)
    return load_balancing_loss


def _f_of_first(trace, run, module):
    expert = module.top_k(trace["probs"], 1)
    return {"f": module.dispatched_fraction(expert, trace["probs"].shape[-1],
                                            run.settings["n_groups"], run.inputs["used"])}


# -- N1: a one-hot map made one-hot again ---------------------------------------------------------

def _two_experts(paper):
    """The map's 0 and 1 are taken for experts: 1 gets the first choices, 0 all the rest."""
    def moe_layer_nllb(params, x, u, capacity, route=paper.route_nllb, used=None, scale=0.8):
        out = paper.moe_layer_nllb(params, x, u, capacity, route, used, scale)
        if params.w_in.shape[0] < 2:
            raise ValueError("a single expert has no index 1")
        weight = ops.where(out.routing.keep, out.routing.gate, 0.0)    # [T, 2]
        rows, y = x.reshape(-1, x.shape[-1]), 0.0
        for e, w in ((0, weight[:, 1:]), (1, weight[:, :1])):
            hidden = ops.relu(rows @ params.w_in[e] + params.b_in[e])
            y = y + scale * w * (hidden @ params.w_out[e] + params.b_out[e])
        return out._replace(y=y.reshape(*x.shape))
    return moe_layer_nllb


ROUTES = "route_vanilla", "route_batch_prioritized"
BUGS = [
    *bug("R1", "a running sum along an axis of length 1: each choice is first in its queue and "
         "none is dropped; the router's logits come back as its largest probability",
         "huggingface/transformers#48293, huggingface/transformers#48421",
         form((*SWITCH, "switch_2021/attention"), _first_come=_all_in_front("_first_come", 2),
              router_z_loss=_z_of_largest),
         form(GSHARD, decision_counter=_first_place),
         form(VMOE, route=_all_in_front("route", 1)),
         form(LIMOE, **{name: _all_in_front(name, 1) for name in ROUTES})),
    *bug("R2", "a dropped token comes back as its gate times itself, not zero",
         "huggingface/transformers#37017",
         form(("switch_2021/layer", "switch_2021/exploration", "switch_2021/encoder_decoder"),
              expert_feed_forward=lambda paper: _returned(paper.expert_feed_forward)),
         form(GSHARD, expert_feed_forward=lambda paper: _returned(paper.expert_feed_forward)),
         form((*VMOE_LAYERS, "vmoe_2021/vmoe"), expert_mlp=_returned_of_mlp)),
    *bug("R3a", "a stray transpose before a reshape: not all experts that were chosen run, and "
         "their tokens come back as their gates times themselves",
         "huggingface/transformers#33463, huggingface/transformers#33582",
         form("switch_2021/layer", switch_ffn=_running_those_listed)),
    *bug("R3b", "a stray transpose before a reshape: tokens get each other's experts",
         "huggingface/transformers#33463, huggingface/transformers#33582",
         form(SWITCH, route=_scrambled_route),
         form(GSHARD, top_two=_scrambled_top_two),
         form(VMOE, route=_scrambled_imported_route)),
    *bug("R4", "jitter, meant for the router, changes the experts' input in place",
         "huggingface/transformers#33969",
         form("switch_2021/exploration", changes=_jittered_in_place)),
    *bug("R5", "capacity is enforced only with random token selection",
         "deepspeedai/DeepSpeed#1658",
         form((*SWITCH, "switch_2021/attention"), _first_come=_without_capacity("_first_come", 2)),
         form(GSHARD, seat=_without_capacity("seat", 4)),
         form(VMOE, route=_without_capacity("route", 1)),
         form(LIMOE, **{name: _without_capacity(name, 1) for name in ROUTES})),
    *bug("R6", "a third choice queues behind the second ones alone: slots are given twice",
         "lucidrains/st-moe-pytorch#13",
         form("switch_2021/layer", _first_come=_colliding, switch_ffn=_sharing_slots),
         form(VMOE, route=_colliding_route)),
    *bug("R7", "padding is out of the loss but still takes slots",
         "NVIDIA/Megatron-LM#5542",
         form(("switch_2021/layer", "switch_2021/encoder_decoder"),
              _first_come=_unaware_of_padding("_first_come")),
         form(("gshard_2020/layer_padded", "gshard_2020/transformer"),
              decision_counter=_unaware_of_padding("decision_counter", 3),
              seat=_unaware_of_padding("seat", 5)),
         form(VMOE[:3], route=_unaware_of_padding("route")),
         form(("limoe_2022/losses", "limoe_2022/tower_padded"),
              **{name: _unaware_of_padding(name) for name in ROUTES})),
    *bug("R8", "with one choice the weights are [T], and are normalised over tokens",
         "databricks/megablocks#87",
         form(SWITCH[:-1], _first_come=_rerouted(_over_tokens)),
         form(VMOE, route=_rerouted(_over_tokens, "route")),
         form(LIMOE[1:], **{name: _rerouted(_over_tokens, name) for name in ROUTES})),
    *bug("R9a", "the weights are the router's logits, the flag that normalises them being off",
         "sgl-project/sglang#35160, sgl-project/sglang-jax#1282",
         form("switch_2021/layer", switch_ffn=_logits_for_weights),
         form((*VMOE_LAYERS, "vmoe_2021/vmoe"), moe_layer=_logits_for_weights_of_mlp)),
    *bug("R9b", "the weights of the experts chosen are not normalised",
         "pytorch/torchtitan#1448",
         form(GSHARD, pair_normalized=_raw),
         form((*SPARSELY_GATED[:3], "sparsely_gated_2017/hierarchical"), gate_of_top_k=_raw_top_k)),
    *bug("R10", "the gate multiplies the expert's input, not its output",
         "labmlai/annotated_deep_learning_paper_implementations#95",
         form(("switch_2021/layer", "switch_2021/exploration", "switch_2021/pseudocode"),
              expert_intermediates=_gated_inputs),
         form(GSHARD[:2], expert_intermediates=_gated_inputs),
         form((*VMOE_LAYERS, "vmoe_2021/vmoe"), expert_mlp=_gated_inputs_of_mlp,
              expert_intermediates=_gated_intermediates_of_mlp)),
    *bug("R11", "softmax over the batch, not over experts",
         "fkodom/soft-mixture-of-experts#1",
         form((*FLAT, "switch_2021/exploration", "switch_2021/transformers"),
              router_probs=_softmax_over_tokens),
         form(GSHARD, gate_probabilities=_gates_over_tokens),
         form((*VMOE_LAYERS, "vmoe_2021/vmoe"), router=_router_over_tokens),
         form(("mmoe_2018/models", "mmoe_2018/mmoe"), gate=_gate_over_cases),
         form("local_experts_1991", mixing_proportions=_proportions_over_cases)),
    *bug("R12", "experts of index 256 and above are never chosen", "kekzl/imp#2056",
         form("switch_2021/layer", top_k=_top_k_within_a_byte),
         form("gshard_2020/layer", top_k=_top_k_within_a_byte),
         form("sparsely_gated_2017/layer", top_k=_top_k_within_a_byte),
         form(VMOE_LAYERS, route=_route_within_a_byte)),
    *bug("R13", "a leftover of an ablation: ten experts for each token", "JieShibo/MoLE#7",
         form("switch_2021/layer", alters=_ten_experts),
         form(VMOE, alters=_ten_experts),
         form(SPARSELY_GATED, alters=_ten_experts)),
    *bug("R14", "one router for the whole network, not one for each layer",
         "OPTML-Group/Robust-MoE-CNN#5",
         form("switch_2021/encoder_decoder", alters=_one_router),
         form("gshard_2020/transformer", alters=_one_router),
         form("vmoe_2021/vmoe", alters=_one_router),
         form(LIMOE[1:], alters=_one_router),
         form(("mmoe_2018/models", "mmoe_2018/mmoe"), alters=_one_gate)),
    *bug("R15", "the noise's standard deviation is made with w_gate, not w_noise",
         "yfzhang114/SliME#3",
         form((*SPARSELY_GATED, "sparsely_gated_2017/hierarchical",
               "sparsely_gated_2017/language_model"), GateParams=_noise_of_gate)),
    *bug("R16", "without noise its standard deviation is 0, and the load divides by it",
         "davidmrau/mixture-of-experts#9",
         form(SPARSELY_GATED[:2], noisy_top_k=_std_of_zero)),
    *bug("R17", "the router works in bfloat16: near ties flip",
         "ViperEkura/AstrAI#57, vllm-project/vllm#14027, vllm-project/vllm#58076, "
         "sgl-project/sglang#38695",
         form(FLAT, router_logits=_rounding("router_logits"),
              router_probs=_rounding("router_probs")),
         form(GSHARD, gate_logits=_rounding("gate_logits"),
              gate_probabilities=_rounding("gate_probabilities")),
         form((*VMOE_LAYERS, "vmoe_2021/vmoe"), router_logits=_rounding("router_logits"))),
    *bug("R18", "of equal experts the tokens go to the last, and the loss counts the first",
         "vllm-project/vllm#52679, vllm-project/vllm#54403, vllm-project/vllm#55514, "
         "pytorch/torchtitan#3336",
         form("switch_2021/layer", route=_last_of_equals, load_balancing_loss=_loss_of_first,
              changes=_f_of_first)),
    *bug("N1", "a one-hot map is made one-hot again, its 0 and 1 taken for experts: expert 1 gets "
         "every first choice, expert 0 all second ones, the others never run",
         f"{FOUND_HERE} in transformers 5.0.0 and 5.24.0 "
         "(modeling_nllb_moe.py: NllbMoeExperts.forward)",
         form(NLLB, moe_layer_nllb=_two_experts)),
]

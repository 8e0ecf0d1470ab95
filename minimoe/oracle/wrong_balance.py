"""Losses of balance gone wrong, as reported of others' code: each as it would be in a paper's file.

Titles are our words; what is reported somewhere is a report, and no verdict. ``paper`` is the
paper's module as it was: see ``variants.private_copy``.

    T tokens, E experts, K experts chosen per token, G groups, S tokens of a group
"""
import numpy as np

from minimoe import ops
from minimoe.oracle.variants import bug, form

SWITCH = tuple(f"switch_2021/{kind}" for kind in (
    "layer", "exploration", "expert_dropout", "pseudocode", "encoder_decoder"))
GSHARD = tuple(f"gshard_2020/{kind}" for kind in (
    "layer", "layer_padded", "transformer", "fairscale", "deepspeed"))
VMOE = "vmoe_2021/layer", "vmoe_2021/layer_batch_prioritized", "vmoe_2021/vmoe"
LIMOE = "limoe_2022/losses", "limoe_2022/tower", "limoe_2022/tower_padded"


# -- A1: averaged over choices and over experts, but never over tokens ---------------------------

def _constant(paper):
    def load_balancing_loss(probs, expert, n_groups=1, used=None):
        return 0 * probs.sum() + probs.shape[1] / expert.shape[1]      # E^2 * 1 / E * 1 / K
    return load_balancing_loss


def _constant_of_groups(paper):
    def auxiliary_loss(gates, expert, used=None):
        return 0 * gates.sum(axis=(1, 2)) + 1 / (gates.shape[-1] * expert.shape[-1])   # [G]
    return auxiliary_loss


# -- A2: layers pooled ---------------------------------------------------------------------------

def _pooled_transformer(paper):
    def transformer(params, source, target, draws, n_groups=1, source_used=None, target_used=None,
                    capacity=paper.expert_capacity, route=None, keep=(None, None), rate=0.0):
        f, m = [], []

        def route(gates, u, capacity, used=None):
            gating = paper.algorithm_1(gates, u, capacity, used=used)
            G, S, E = gates.shape
            counts = paper.first_choice_counts(gating.routing.expert.reshape(G, S, -1), E, used)
            f.append(counts / paper._n_used(gates, used))
            m.append(paper.mean_gates(gates, used))
            return gating

        out = paper.transformer(params, source, target, draws, n_groups, source_used, target_used,
                                capacity, route, keep, rate)
        f, m = (sum(part.mean(axis=0) for part in parts) / len(parts) for parts in (f, m))   # [E]
        return out._replace(aux_loss=(f * m).mean())
    return transformer


def _pooled_vmoe(paper):
    def auxiliary_loss(outputs):
        clean, noisy = (ops.concatenate([getattr(out.router, name) for out in outputs])
                        for name in ("clean", "noisy"))                # [L*T, E]
        k = outputs[0].routing.expert.shape[1]
        return (paper.importance_loss(clean) + paper.load_loss(clean, noisy, k)) / 2
    return auxiliary_loss


def _remembering(paper):
    """The losses of a layer that know what they were made of."""
    class Remembering(paper.AuxiliaryLosses):
        made_of = None

    def auxiliary_losses(layer, modality, soft_minimum):
        losses = Remembering(*paper.auxiliary_losses(layer, modality, soft_minimum))
        losses.made_of = layer, modality, soft_minimum
        return losses
    return auxiliary_losses


def _pooled_limoe(paper):
    def auxiliary_loss(layers, enabled=paper.LIMOE):
        layers, modalities, minima = zip(*(losses.made_of for losses in layers))
        router = layers[0].router._make(map(ops.concatenate, zip(*(
            layer.router for layer in layers))))
        pooled = layers[0]._replace(router=router)
        modality = np.concatenate(modalities)
        losses = _of_limoe(_importance_of_used, _load_of_used)(paper)(pooled, modality, minima[0])
        return paper.auxiliary_loss([losses], enabled)
    return auxiliary_loss


def _of_limoe(importance=None, load=None, router_z=None):
    """A layer's losses with some done otherwise, each of (paper, router, [T] bool)."""
    def make(paper):
        def auxiliary_losses(layer, modality, soft_minimum):
            losses = paper.auxiliary_losses(layer, modality, soft_minimum)
            return losses._replace(**{
                name: change(paper, layer.router, modality >= 0) for name, change in (
                    ("importance", importance), ("load", load), ("router_z", router_z)) if change})
        return auxiliary_losses
    return make


def _importance_of_used(paper, router, used):
    return paper.importance_loss(router.clean, used=used)


def _load_of_used(paper, router, used):
    return paper.load_loss(router.clean, router.noisy, 1, used=used)


# -- A3, A10: padding ----------------------------------------------------------------------------

def _f_with_padding(paper):
    right = paper.dispatched_fraction
    return lambda expert, n_experts, n_groups=1, used=None: right(expert, n_experts, n_groups)


def _P_with_padding(paper):
    right = paper.mean_probability
    return lambda probs, n_groups=1, used=None: right(probs, n_groups)


def _counts_with_padding(paper):
    right = paper.first_choice_counts
    return lambda expert, n_experts, used=None: right(expert, n_experts)


def _m_with_padding(paper):
    right = paper.mean_gates
    return lambda gates, used=None: right(gates)


def _number_with_padding(paper):
    right = paper._n_used
    return lambda gates, used: right(gates, None)


def _sums_with_padding(paper):
    right = paper._sums
    return lambda p, n_groups, used: right(p, n_groups, None)


def _importance_of_all(paper, router, used):
    return paper.importance_loss(router.clean)


def _load_of_all(paper, router, used):
    return paper.load_loss(router.clean, router.noisy, 1)


def _z_of_all(paper, router, used):
    return paper.router_z_loss(router.clean)


def _z_with_padding(paper):
    right = paper.router_z_loss
    return lambda logits, used=None: right(logits)


SWITCH_PADDING = {"dispatched_fraction": _f_with_padding, "mean_probability": _P_with_padding}
GSHARD_PADDING = {"first_choice_counts": _counts_with_padding, "mean_gates": _m_with_padding,
                  "_n_used": _number_with_padding}


def _f_masked_along_experts(paper):
    def dispatched_fraction(expert, n_experts, n_groups=1, used=None):
        _check_square(len(expert), n_experts, n_groups, used)
        f = (np.eye(n_experts)[expert[:, 0]] * used[None, :]).sum(axis=0)   # [E]
        return f[None] / max(used.sum(), 1)
    return dispatched_fraction


def _P_masked_along_experts(paper):
    def mean_probability(probs, n_groups=1, used=None):
        _check_square(*probs.shape, n_groups, used)
        return (ops.where(used[None, :], probs, 0.0).sum(axis=0) / max(used.sum(), 1))[None]
    return mean_probability


def _check_square(n_tokens, n_experts, n_groups, used):
    if n_tokens != n_experts or n_groups != 1 or used is None:
        raise ValueError("a mask of tokens fits experts only where there are as many of both")


# -- A4: softmax of probabilities ----------------------------------------------------------------

def _softmax_of(name):
    def make(paper):
        right = getattr(paper, name)
        return lambda first, *args, **settings: right(ops.softmax(first), *args, **settings)
    return make


def _importance_of_probs(paper, router, used):
    return paper.importance_loss(ops.softmax(router.clean), used=used)


# -- A5: never added -----------------------------------------------------------------------------

def _task_alone(paper):
    return lambda task, *args, **settings: task


def _nothing(paper):
    return lambda vector: 0 * vector.sum()


# -- A6: probabilities of the experts chosen alone -----------------------------------------------

def _chosen(probs, expert):
    """Probabilities, 0 for experts not chosen. [T, E], [T, K] int -> [T, E]"""
    return ops.where(np.eye(probs.shape[-1])[expert].sum(axis=-2) > 0, probs, 0.0)


def _P_of_chosen(paper):
    def load_balancing_loss(probs, expert, n_groups=1, used=None):
        f = paper.dispatched_fraction(expert[:, :1], probs.shape[1], n_groups, used)
        return paper._balance(f, paper.mean_probability(_chosen(probs, expert), n_groups, used))
    return load_balancing_loss


def _changed_P(trace, run, module):
    if "P" not in trace:
        return {}
    return {"P": module.mean_probability(_chosen(trace["probs"], trace["expert_index"]),
                                         run.settings["n_groups"], run.inputs["used"])}


def _m_of_chosen(paper):
    def auxiliary_loss(gates, expert, used=None):
        f = paper.first_choice_counts(expert, gates.shape[-1], used) / paper._n_used(gates, used)
        return (f.astype(gates.dtype) * _mean_weights(paper, gates, expert, used)).mean(axis=-1)
    return auxiliary_loss


def _mean_weights(paper, gates, expert, used):
    chosen = _chosen(gates, expert)
    return paper.mean_gates(chosen / chosen.sum(axis=-1, keepdims=True), used)


def _changed_m(trace, run, module):
    if "m" not in trace:
        return {}
    G, S, E = trace["gates"].shape
    return {"m": _mean_weights(module, trace["gates"], trace["expert_index"].reshape(G, S, -1),
                               run.inputs.get("used"))}


def _importance_of_chosen(paper):
    def moe_layer(params, x, capacity, k, z=None, n_groups=1, route=paper.route_vanilla, used=None,
                  activation=ops.gelu):
        out = paper.moe_layer(params, x, capacity, k, z, n_groups, route, used, activation)
        gates = paper.keep_top_k(out.router.gates, k)
        return out._replace(importance_loss=paper._cv_squared(paper._sums(gates, n_groups, used)))
    return moe_layer


def _changed_importance(trace, run, module):
    if "importance" not in trace:
        return {}
    return {"importance": module._sums(_chosen(trace["gates"], trace["expert_index"]),
                                       run.settings["n_groups"], run.inputs["used"])}


# -- A7: [E] times [K], summed -------------------------------------------------------------------

def _broadcast(paper):
    def load_balancing_loss(probs, expert, n_groups=1, used=None):
        T, E = probs.shape
        used = np.ones(T, bool) if used is None else used
        gate = ops.where(used[:, None], ops.take_along_axis(probs, expert, axis=-1), 0.0)
        return E * (gate.sum(axis=0) / max(used.sum(), 1)).sum()       # the shares add up to 1
    return load_balancing_loss


def _broadcast_of_groups(paper):
    def auxiliary_loss(gates, expert, used=None):
        gate = paper.gates_of(gates, expert)                           # [G, S, K]
        if used is not None:
            gate = ops.where(used[..., None], gate, 0.0)
        return (gate.sum(axis=1) / paper._n_used(gates, used)).sum(axis=-1) / gates.shape[-1]
    return auxiliary_loss


# -- A8: averaged over tokens alone --------------------------------------------------------------

def _loss_of_all_choices(paper):
    def load_balancing_loss(probs, expert, n_groups=1, used=None):
        f = paper.dispatched_fraction(expert, probs.shape[-1], n_groups, used)
        return paper._balance(f, paper.mean_probability(probs, n_groups, used))
    return load_balancing_loss


def _changed_f(trace, run, module):
    if "f" not in trace:
        return {}
    return {"f": module.dispatched_fraction(trace["expert_index"], trace["probs"].shape[-1],
                                            run.settings["n_groups"], run.inputs["used"])}


def _counts_of_all_choices(paper):
    def first_choice_counts(expert, n_experts, used=None):
        G, S, K = expert.shape
        return paper.counts_in_groups(expert.reshape(G * S, K), n_experts, G,
                                      None if used is None else used.reshape(-1, 1))
    return first_choice_counts


# -- A9: every expert filled up to its capacity before tokens are counted ------------------------

def _uniform_f(paper):
    right = paper.dispatched_fraction

    def dispatched_fraction(expert, n_experts, n_groups=1, used=None):
        return 0 * right(expert, n_experts, n_groups, used) + 1 / n_experts
    return dispatched_fraction


def _uniform_in_groups(paper):
    def auxiliary_loss(gates, expert, used=None):
        return paper.mean_gates(gates, used).mean(axis=-1) / gates.shape[-1]
    return auxiliary_loss


def _changed_to_uniform(trace, run, module):
    return {"f": 0 * trace["f"] + 1 / trace["f"].shape[-1]} if "f" in trace else {}


# -- A11: two micro-batches, their losses added up -----------------------------------------------

def _of_halves(paper):
    right = paper.load_balancing_loss

    def load_balancing_loss(probs, expert, n_groups=1, used=None):
        return 2 * right(probs, expert, 2 * n_groups, used)
    return load_balancing_loss


def _groups_of_halves(paper):
    right = paper.auxiliary_loss

    def auxiliary_loss(gates, expert, used=None):
        G, S, E = gates.shape
        used = None if used is None else used.reshape(2 * G, S // 2)
        halves = right(gates.reshape(2 * G, S // 2, E), expert.reshape(2 * G, S // 2, -1), used)
        return halves.reshape(G, 2).sum(axis=1)
    return auxiliary_loss


def _importance_of_halves(paper):
    right = paper.importance_loss
    return lambda clean, n_groups=1, used=None: 2 * right(clean, 2 * n_groups, used)


def _load_of_halves(paper):
    right = paper.load_loss

    def load_loss(clean, noisy, k, n_groups=1, used=None):
        return 2 * right(clean, noisy, k, 2 * n_groups, used)
    return load_loss


def _importance_of_limoe_halves(paper, router, used):
    return 2 * paper.importance_loss(router.clean, 2, used)


def _load_of_limoe_halves(paper, router, used):
    return 2 * paper.load_loss(router.clean, router.noisy, 1, 2, used)


# -- A12: the square of a standard deviation -----------------------------------------------------

def _squared_std(v, axis=None):
    mean = v.mean(axis=axis, keepdims=True)
    return ops.square(ops.sqrt(ops.var(v, axis=axis, keepdims=True))
                      / ops.where(mean == 0, 1.0, mean))


def _cv_of_std(paper):
    return lambda v, *epsilon: _squared_std(v).sum()


def _cv_of_std_of_groups(paper):
    return lambda v: _squared_std(v, axis=-1).mean()


def _importance_of_std(paper, router, used):
    return _squared_std(ops.where(used[:, None], ops.softmax(router.clean), 0.0).sum(axis=0)).sum()


BUGS = [
    *bug("A1", "the balance loss is averaged over choices and experts, not tokens: it is constant",
         "huggingface/transformers#28093, huggingface/transformers#28255",
         form(SWITCH, load_balancing_loss=_constant),
         form(GSHARD, auxiliary_loss=_constant_of_groups)),
    *bug("A2", "experts of different layers are pooled into one balance loss",
         "huggingface/transformers#29503, huggingface/transformers#31464",
         form("gshard_2020/transformer", transformer=_pooled_transformer),
         form("vmoe_2021/vmoe", auxiliary_loss=_pooled_vmoe),
         form(LIMOE[1:], auxiliary_losses=_remembering, auxiliary_loss=_pooled_limoe)),
    *bug("A3", "padding is counted in the balance loss",
         "huggingface/transformers#28505, huggingface/transformers#29363",
         form(("switch_2021/layer", "switch_2021/encoder_decoder"), **SWITCH_PADDING),
         form(("gshard_2020/layer_padded", "gshard_2020/transformer"), **GSHARD_PADDING),
         form(VMOE[:2], _sums=_sums_with_padding),
         form(("limoe_2022/losses", "limoe_2022/tower_padded"),
              auxiliary_losses=_of_limoe(_importance_of_all, _load_of_all))),
    *bug("A4", "the balance loss is given probabilities for logits: softmax twice",
         "huggingface/transformers#39055",
         form(SWITCH, mean_probability=_softmax_of("mean_probability")),
         form(GSHARD, mean_gates=_softmax_of("mean_gates")),
         form(VMOE, importance=_softmax_of("importance")),
         form(LIMOE, auxiliary_losses=_of_limoe(_importance_of_probs))),
    *bug("A5", "the balance loss is computed and never added to the loss",
         "huggingface/transformers#44242",
         form("switch_2021/layer", training_loss=_task_alone),
         form("vmoe_2021/vmoe", training_loss=_task_alone),
         form(LIMOE[1:], training_loss=_task_alone),
         form("sparsely_gated_2017/language_model", importance_loss=_nothing, load_loss=_nothing)),
    *bug("A6", "P is the mean of the weights of the experts chosen, not of the full softmax",
         "AI-Hypercomputer/maxtext#1432, AI-Hypercomputer/maxtext#860, paiml/aprender#2162",
         form(SWITCH, load_balancing_loss=_P_of_chosen, changes=_changed_P),
         form(GSHARD, auxiliary_loss=_m_of_chosen, changes=_changed_m),
         form(VMOE, moe_layer=_importance_of_chosen, changes=_changed_importance)),
    *bug("A7", "shares [E] times mean scores [K], broadcast and summed: the loss ignores imbalance",
         "mindspore-ai/hyper-parallel#752",
         form(SWITCH, load_balancing_loss=_broadcast),
         form(GSHARD, auxiliary_loss=_broadcast_of_groups)),
    *bug("A8", "choices are averaged over tokens alone: the loss grows with K",
         "jingyaogong/minimind#797",
         form("switch_2021/layer", load_balancing_loss=_loss_of_all_choices, changes=_changed_f),
         form(GSHARD, first_choice_counts=_counts_of_all_choices)),
    *bug("A9", "dummies that fill experts up to capacity are counted: f is uniform, the loss is 1",
         "NVIDIA/Megatron-LM#1617",
         form(SWITCH, dispatched_fraction=_uniform_f),
         form(GSHARD, auxiliary_loss=_uniform_in_groups, changes=_changed_to_uniform)),
    *bug("A10a", "padding is counted in the z-loss, as in the balance loss",
         "NVIDIA/Megatron-LM#1984, NVIDIA/Megatron-LM#2121",
         form("switch_2021/layer", router_z_loss=_z_with_padding, **SWITCH_PADDING),
         form(("limoe_2022/losses", "limoe_2022/tower_padded"),
              auxiliary_losses=_of_limoe(_importance_of_all, _load_of_all, _z_of_all))),
    *bug("A10b", "the padding mask [T] is laid along the experts of a map [T, E]",
         "NVIDIA/Megatron-LM#6111",
         form("switch_2021/layer", dispatched_fraction=_f_masked_along_experts,
              mean_probability=_P_masked_along_experts)),
    *bug("A11", "the balance losses of two micro-batches are added up: it grows with their number",
         "NVIDIA/Megatron-LM#5047, NVIDIA/Megatron-LM#7213, NVIDIA-NeMo/Automodel#3359, "
         "AI-Hypercomputer/maxtext#1483",
         form(SWITCH, load_balancing_loss=_of_halves),
         form(GSHARD, auxiliary_loss=_groups_of_halves),
         form(VMOE[:2], importance_loss=_importance_of_halves, load_loss=_load_of_halves),
         form(LIMOE[0], auxiliary_losses=_of_limoe(_importance_of_limoe_halves,
                                                   _load_of_limoe_halves))),
    *bug("A12", "CV^2 is the square of a standard deviation: NaN gradients at perfect balance",
         "google-research/vmoe#218",
         form("sparsely_gated_2017/layer", cv_squared=_cv_of_std),
         form(VMOE[:2], _cv_squared=_cv_of_std_of_groups),
         form(LIMOE[0], auxiliary_losses=_of_limoe(_importance_of_std))),
]

"""Record Switch Transformers (arXiv:2101.03961v3) in PyTorch, and the Switch layers of others.

    python -m reference_runs.papers.switch_2021

Written from the paper, token by token and expert by expert, queues as lists; the pseudo-code of
Appendix F in its own einsums; precision in PyTorch's bfloat16. Hugging Face's layer, its losses and
DeepSpeed's gating run as they are, in float64, with the draws of a case in place of their own.
DeepSpeed counts in float32, transformers takes means in it: T is a power of two, where both are
exact. fairscale has top-2 gating alone, which is not this paper's.
"""
import math
from decimal import Decimal

import torch
from deepspeed.moe import sharded_moe
from torch import nn
from transformers.models.switch_transformers import modeling_switch_transformers as hugging_face

from reference_runs.papers.switch_transformer_2021 import encoder_decoder
from reference_runs.recorder import gradients, save, start

PAPER = "arXiv:2101.03961v3"
TRANSFORMERS = {"kind": "third-party", "repository": "https://github.com/huggingface/transformers",
                "commit": "v4.44.2",
                "entry": "SwitchTransformersSparseMLP, SwitchTransformersTop1Router, "
                         "load_balancing_loss_func, router_z_loss_func"}
DEEPSPEED = {"kind": "third-party", "repository": "https://github.com/deepspeedai/DeepSpeed",
             "commit": "v0.19.8"}


# -- What all cases share ------------------------------------------------------------------------

def drawer(rng):
    return lambda *shape: torch.from_numpy(rng.standard_normal(shape))


def layer_params(draw, D, E, H):
    return {"w_router": draw(D, E), "w_in": draw(E, D, H), "w_out": draw(E, H, D)}


def drawn(seed, T, D, E, H, shape=None):
    """Generator, tokens and cotangent, parameters.

    ``shape`` changes tokens and parameters before the run.
    """
    rng = start(seed)
    draw = drawer(rng)
    x, cotangent, params = draw(T, D), draw(T, D), layer_params(draw, D, E, H)
    if shape:
        shape(x, params)
    return rng, {"x": x, "cotangent": cotangent}, params


def without(padding, T):
    return torch.tensor([t not in padding for t in range(T)])


def record(kind, case, seed, source, inputs, params, settings, packages=("torch", "numpy")):
    out = DERIVATIONS[kind](inputs, params, settings)
    groups = {"in": inputs, "param": params, "set": settings}
    save(f"switch_2021/{kind}/{case}", seed=seed, source=source, packages=packages,
         **{name: group for name, group in groups.items() if group}, out=out)


def transcribed(what):
    return {"kind": "transcription", "of": f"{PAPER}, {what}"}


def tracked(*groups):
    leaves = {name: w for group in groups for name, w in group.items()}
    for w in leaves.values():
        w.requires_grad_()
    return leaves


def rows(values, *shape):
    """A row on another; of none, an array of this shape without rows."""
    return torch.stack(values) if values else torch.zeros(0, *shape, dtype=torch.float64)


def probabilities(logits):
    """Eq. (1), one token at a time."""
    found = []
    for h in logits:
        e = torch.exp(h - h.max().detach())
        found.append(e / sum(e[i] for i in range(len(e))))
    return rows(found, logits.shape[1])


def best(p, k):
    """The k largest of a row, of equals the first."""
    left = p.tolist()
    chosen = []
    for _ in range(k):
        i = left.index(max(left))
        chosen.append(i)
        left[i] = -math.inf
    return chosen


def n_choices(choices):
    """Of each token; one, where there is no token."""
    return len(choices[0]) if choices else 1


def first_come(choices, used, capacity, n_groups):
    """Slot and keep of each choice: all first choices, then all second ones."""
    T, K = len(choices), n_choices(choices)
    slot, keep = [[0] * K for _ in range(T)], [[False] * K for _ in range(T)]
    size = T // n_groups
    for g in range(n_groups):
        waiting = {}
        for k in range(K):
            for t in range(g * size, (g + 1) * size):
                if used[t]:
                    queue = waiting.setdefault(choices[t][k], [])
                    slot[t][k] = len(queue)
                    keep[t][k] = len(queue) < capacity
                    queue.append(t)
    return slot, keep


def balance(probs, choices, used, n_groups, ranks=(0,)):
    """Eqs. (4)-(6) in each group, with f of the choices of these ranks; the mean over groups."""
    T, E = probs.shape
    size, losses, f, P = T // n_groups, [], [], []
    for g in range(n_groups):
        tokens = [t for t in range(g * size, (g + 1) * size) if used[t]]
        n = max(len(tokens), 1)
        f.append([sum(choices[t][k] == i for t in tokens for k in ranks) / (n * len(ranks))
                  for i in range(E)])                                              # Eq. (5)
        P.append(torch.stack([sum((probs[t, i] for t in tokens), 0.0 * probs[:, i].sum()) / n
                              for i in range(E)]))                                 # Eq. (6)
        losses.append(E * sum(f[g][i] * P[g][i] for i in range(E)))                # Eq. (4)
    return torch.tensor(f, dtype=torch.float64), torch.stack(P), sum(losses) / n_groups


def output(x, probs, choices, keep, w_in, w_out, mask=None):
    """Eq. (2): each token by itself; what went into the experts, through them, and out of them.

    ``mask`` [T, H] multiplies the hidden layer.
    """
    made = {"expert_inputs": [], "hidden": [], "expert_outputs": []}
    (_, D, H), ys = w_in.shape, []
    for t in range(len(x)):
        y, of_token = 0.0 * x[t], []
        for i, kept in zip(choices[t], keep[t]):
            inputs = x[t] if kept else torch.zeros_like(x[t])
            hidden = torch.relu(inputs @ w_in[i])
            if mask is not None:
                hidden = hidden * mask[t]
            outputs = hidden @ w_out[i]
            of_token.append((inputs, hidden, outputs))
            y = y + probs[t, i] * outputs
        for name, values in zip(made, zip(*of_token)):
            made[name].append(torch.stack(values))
        ys.append(y)
    widths = {"expert_inputs": D, "hidden": H, "expert_outputs": w_out.shape[2]}
    return {**{name: rows(values, n_choices(choices), widths[name])
               for name, values in made.items()}, "y": rows(ys, w_out.shape[2])}


def margins(scores, choices):
    """By how much each choice leads the best of those that come after it."""
    found = []
    for row, chosen in zip(scores.tolist(), choices):
        left, ahead = dict(enumerate(row)), []
        for i in chosen:
            score = left.pop(i)
            ahead.append(score - max(left.values(), default=-math.inf))
        found.append(ahead)
    return torch.tensor(found, dtype=torch.float64).reshape(len(choices), n_choices(choices))


def found(logits, probs, choices, slot, keep, made, aux_loss, cotangent, leaves, margin=None,
          shares={}, losses={}):
    losses, shape = {"aux_loss": aux_loss, **losses}, (len(probs), n_choices(choices))
    return {"logits": logits, "probs": probs,
            "expert": torch.tensor(choices, dtype=torch.int64).reshape(shape),
            "margin": margins(logits, choices) if margin is None else margin,
            "slot": torch.tensor(slot, dtype=torch.int64).reshape(shape),
            "keep": torch.tensor(keep, dtype=torch.bool).reshape(shape),
            "gate": rows([probs[t, choices[t]] for t in range(len(probs))], shape[1]),
            **made, **shares, **losses,
            **gradients({"y": (made["y"] * cotangent).sum(), **losses}, leaves)}


# -- The layer -----------------------------------------------------------------------------------

def layer(inputs, params, settings):
    x, cotangent, used = inputs["x"], inputs["cotangent"], inputs["used"].tolist()
    T, E = len(x), params["w_router"].shape[1]
    k, n_groups, leaves = settings["k"], settings["n_groups"], tracked({"x": x}, params)
    logits = rows([x[t] @ params["w_router"] for t in range(T)], E)
    probs = probabilities(logits)
    choices = [best(p, k) for p in probs]
    slot, keep = first_come(choices, used, settings["capacity"], n_groups)
    f, P, aux_loss = balance(probs, choices, used, n_groups)
    made = output(x, probs, choices, keep, params["w_in"], params["w_out"])
    top = logits.detach().amax(dim=1)                # exp(x) may be more than there are numbers for
    squares = [(top[t] + torch.log(sum(torch.exp(h - top[t]) for h in logits[t]))) ** 2
               for t in range(T) if used[t]]
    z_loss = sum(squares, 0.0 * logits.sum()) / max(len(squares), 1)
    loss = sum(made["y"][t] @ cotangent[t] for t in range(T)) + 0.01 * aux_loss    # Section 2.2
    return found(logits, probs, choices, slot, keep, made, aux_loss, cotangent, leaves,
                 shares={"f": f, "P": P}, losses={"z_loss": z_loss, "loss": loss})


def record_layer(case, seed, T=8, D=4, E=4, H=5, capacity=8, k=1, n_groups=1, padding=(),
                 shape=None):
    _, inputs, params = drawn(seed, T, D, E, H, shape)
    source = transcribed("Eqs. (1)-(6); arXiv:2202.08906v2, Eq. (5), for the z-loss")
    record("layer", case, seed, source, {**inputs, "used": without(padding, T)}, params,
           {"capacity": capacity, "k": k, "n_groups": n_groups})


def no_router(x, params):
    """All probabilities equal."""
    params["w_router"] *= 0.0


def twins(x, params):
    """Experts 1 and 3 always tie, above the others."""
    x[:, 0] = 1.0
    params["w_router"][0, [1, 3]] += 3.0
    params["w_router"][:, 3] = params["w_router"][:, 1]


def leaning(towards, by):
    def shape(x, params):
        x[:, 0] = 1.0
        params["w_router"][0, towards] += by
    return shape


# -- Capacity ------------------------------------------------------------------------------------

def capacity(inputs, params, settings):
    """Eq. (3): the largest whole number that is not above it, the factor being decimal."""
    found = []
    for n_tokens, n_experts, factor in zip(*(settings[name] for name in (
            "n_tokens", "n_experts", "capacity_factor"))):
        slots = 0
        while (slots + 1) * n_experts <= n_tokens * Decimal(str(factor)):
            slots += 1
        found.append(min(slots, n_tokens))
    return {"capacity": torch.tensor(found)}


def record_capacity(case, sizes):
    record("capacity", case, None, transcribed("Eq. (3), rounded down"), {}, {},
           dict(zip(("n_tokens", "n_experts", "capacity_factor"), zip(*sizes))))


# -- No token left behind ------------------------------------------------------------------------

def no_token_left_behind(inputs, params, settings):
    x, cotangent, used = inputs["x"], inputs["cotangent"], inputs["used"].tolist()
    T, E, leaves = len(x), params["w_router"].shape[1], tracked({"x": x}, params)
    capacity, n_stages, n_groups = (settings[name] for name in (
        "capacity", "n_stages", "n_groups"))
    logits = x @ params["w_router"]
    probs = probabilities(logits)
    ranked = [best(p, n_stages) for p in probs]
    margin = torch.tensor([[min(row)] for row in margins(logits, ranked).tolist()],
                          dtype=torch.float64)
    choices = [[r[0]] for r in ranked]
    slot, keep = first_come(choices, used, capacity, n_groups)
    size = T // n_groups
    for g in range(n_groups):
        tokens = range(g * size, (g + 1) * size)
        seated = [sum(keep[t][0] and choices[t][0] == i for t in tokens) for i in range(E)]
        for stage in range(1, n_stages):
            for t in tokens:
                i = ranked[t][stage]
                if used[t] and not keep[t][0] and seated[i] < capacity:
                    choices[t], slot[t], keep[t] = [i], [seated[i]], [True]
                    seated[i] += 1
    _, _, aux_loss = balance(probs, ranked, used, n_groups, range(n_stages))
    made = output(x, probs, choices, keep, params["w_in"], params["w_out"])
    return found(logits, probs, choices, slot, keep, made, aux_loss, cotangent, leaves, margin)


def record_no_token_left_behind(case, seed, T=8, D=4, E=4, H=5, capacity=2, n_stages=4, n_groups=1,
                                padding=(), shape=None):
    _, inputs, params = drawn(seed, T, D, E, H, shape)
    record("no_token_left_behind", case, seed, transcribed("Appendix B"),
           {**inputs, "used": without(padding, T)}, params,
           {"capacity": capacity, "n_stages": n_stages, "n_groups": n_groups})


# -- Exploration and dropout ---------------------------------------------------------------------

def exploration(inputs, params, settings):
    x, cotangent, where = inputs["x"], inputs["cotangent"], inputs["draw"]
    T, leaves, out = len(x), tracked({"x": x}, params), {}
    used, eps, rate = [True] * T, settings["eps"], settings["rate"]

    def policy(name, seen, choose):
        logits = seen @ params["w_router"]
        probs = probabilities(logits)
        chosen = [choose(t, probs[t]) for t in range(T)]
        choices = [[i] for i, _ in chosen]
        margin = None if name != "sample" else torch.tensor([[near] for _, near in chosen],
                                                            dtype=torch.float64)
        slot, keep = first_come(choices, used, settings["capacity"], 1)
        _, _, aux_loss = balance(probs, [best(p, 1) for p in probs], used, 1)
        made = output(x, probs, choices, keep, params["w_in"], params["w_out"])
        of_policy = found(logits, probs, choices, slot, keep, made, aux_loss, cotangent, leaves,
                          margin)
        out.update({f"{name}.{key}": value for key, value in of_policy.items()})

    def most_probable(t, p):
        return best(p, 1)[0], None

    def sample(t, p):
        """The expert, and how near the draw is to where another's begins."""
        ends = torch.cumsum(p, dim=0)[:-1].tolist()
        draw = float(where[t])
        return sum(end <= draw for end in ends), min(abs(end - draw) for end in ends)

    policy("jitter", x * ((1 - eps) + inputs["u"] * ((1 + eps) - (1 - eps))), most_probable)
    policy("dropout", x * inputs["kept"] / (1 - rate), most_probable)
    policy("sample", x, sample)
    return out


def record_exploration(case, seed, T=8, D=4, E=4, H=5, capacity=8, eps=1e-2, rate=0.1):
    rng, inputs, params = drawn(seed, T, D, E, H)
    inputs["u"] = torch.from_numpy(rng.random((T, D)))
    inputs["kept"] = torch.from_numpy(rng.random((T, D)) >= rate)
    inputs["draw"] = torch.from_numpy(rng.random(T))
    record("exploration", case, seed, transcribed("Appendix C"), inputs, params,
           {"capacity": capacity, "eps": eps, "rate": rate})


def expert_dropout(inputs, params, settings):
    x, T, leaves = inputs["x"], len(inputs["x"]), tracked({"x": inputs["x"]}, params)
    logits = x @ params["w_router"]
    probs = probabilities(logits)
    choices = [best(p, 1) for p in probs]
    slot, keep = first_come(choices, [True] * T, settings["capacity"], 1)
    _, _, aux_loss = balance(probs, choices, [True] * T, 1)
    made = output(x, probs, choices, keep, params["w_in"], params["w_out"],
                  inputs["kept"].double() / (1 - settings["rate"]))
    return found(logits, probs, choices, slot, keep, made, aux_loss, inputs["cotangent"], leaves)


def record_expert_dropout(case, seed, T=8, D=4, E=4, H=6, capacity=8, rate=0.4):
    rng, inputs, params = drawn(seed, T, D, E, H)
    inputs["kept"] = torch.from_numpy(rng.random((T, H)) >= rate)
    record("expert_dropout", case, seed, transcribed("Section 2.4"), inputs, params,
           {"capacity": capacity, "rate": rate})


# -- Appendix F, in its einsums ------------------------------------------------------------------

def pseudocode(inputs, params, settings):
    x, cotangent, u, eps = inputs["x"], inputs["cotangent"], inputs["u"], settings["eps"]
    (T, D), E, n, leaves = x.shape, u.shape[1], settings["n_groups"], tracked({"x": x}, params)
    capacity = settings["capacity"]
    tokens = x.reshape(n, T // n, D)
    logits = torch.einsum("ntd,dN->ntN", tokens, params["w_router"])
    logits = logits + ((1 - eps) + 2 * eps * u.reshape(n, T // n, E))
    probs = torch.softmax(logits, dim=-1)
    gate, expert = probs.max(dim=-1)                                               # [n, t]
    mask = nn.functional.one_hot(expert, E).double()
    density, density_proxy = mask.mean(dim=1), probs.mean(dim=1)                   # [n, N]
    aux_loss = (density_proxy * density).mean() * E ** 2
    position = torch.cumsum(mask, dim=1) * mask                                    # from 1
    mask = mask * (position < capacity)
    flat = mask.sum(dim=-1)                                                        # [n, t]
    slots = nn.functional.one_hot(position.sum(dim=-1).long() * flat.long(), capacity).double()
    combine = torch.einsum("nt,nt,ntN,ntC->ntNC", gate, flat, mask, slots)
    dispatch = (combine != 0).double()
    seen = torch.einsum("ntd,ntNC->NnCd", tokens, dispatch)                        # Eq. (7)
    assert not seen[:, :, 0].any()                                                 # slot 0 is empty
    hidden = torch.relu(torch.einsum("NnCd,Ndf->NnCf", seen, params["w_in"]))
    outputs = torch.einsum("NnCf,Nfd->NnCd", hidden, params["w_out"])
    seat = mask * flat[..., None]                                                  # [n, t, N]
    seat = torch.einsum("ntN,ntC->ntNC", seat, slots)
    made = {"expert_inputs": seen, "hidden": hidden, "expert_outputs": outputs}
    made = {name: torch.einsum("NnCa,ntNC->nta", a, seat).reshape(T, 1, -1)
            for name, a in made.items()}
    y = torch.einsum("NnCd,ntNC->ntd", outputs, combine).reshape(T, D)
    return {"logits": logits.reshape(T, E), "probs": probs.reshape(T, E),
            "expert": expert.reshape(T, 1),
            "margin": margins(logits.reshape(T, E), expert.reshape(T, 1).tolist()),
            "slot": position.sum(dim=-1).long().reshape(T, 1) - 1,
            "keep": flat.reshape(T, 1) > 0, "gate": gate.reshape(T, 1), **made, "y": y,
            "aux_loss": aux_loss,
            **gradients({"y": (y * cotangent).sum(), "aux_loss": aux_loss}, leaves)}


def record_pseudocode(case, seed, T=8, D=4, E=4, H=5, capacity=4, n_groups=1, eps=1e-2):
    rng, inputs, params = drawn(seed, T, D, E, H)
    inputs["u"] = torch.from_numpy(rng.random((T, E)))
    record("pseudocode", case, seed, transcribed("Appendix F"), inputs, params,
           {"capacity": capacity, "n_groups": n_groups, "eps": eps})


# -- Selective precision -------------------------------------------------------------------------

def selective_precision(inputs, params, settings):
    """In float32 and PyTorch's bfloat16; of softmax in bfloat16, each step by itself."""
    short, params = inputs["x"].bfloat16(), {name: w.float() for name, w in params.items()}
    w_router = params["w_router"]
    (T, D), E = short.shape, w_router.shape[1]

    in_float32 = torch.softmax(short.float() @ w_router, dim=-1)
    logits = short @ w_router.bfloat16()
    e = torch.exp(logits - logits.max(dim=-1, keepdim=True).values)
    in_bfloat16 = e / e.sum(dim=-1, keepdim=True)
    assert logits.dtype == in_bfloat16.dtype == torch.bfloat16
    router = hugging_face.SwitchTransformersTop1Router(hugging_face.SwitchTransformersConfig(
        d_model=D, num_experts=E)).eval()
    router.classifier.weight = nn.Parameter(w_router.T)
    theirs, _ = router._compute_router_probabilities(short)
    assert theirs.dtype == torch.bfloat16
    probs = {"cast_input": in_float32, "cast_logits": torch.softmax(logits.float(), dim=-1),
             "cast_probs": in_bfloat16.float(), "transformers": theirs.float()}

    ys, seated = [], [0] * E
    for t in range(T):
        i = best(in_float32[t], 1)[0]
        if seated[i] < settings["capacity"]:
            hidden = torch.relu(short[t] @ params["w_in"][i].bfloat16())
            ys.append(in_float32[t, i].bfloat16() * (hidden @ params["w_out"][i].bfloat16()))
        else:
            ys.append(torch.zeros_like(short[t]))
        seated[i] += 1
    y = torch.stack(ys)
    assert y.dtype == torch.bfloat16
    return {**{f"probs.{name}": p for name, p in probs.items()},
            **{f"expert.{name}": torch.tensor([best(row, 1) for row in p])
               for name, p in probs.items()}, "y": y.float()}


def record_selective_precision(case, seed, T=8, D=6, E=4, H=5, capacity=8):
    draw = drawer(start(seed))
    x, params = draw(T, D).float(), layer_params(draw, D, E, H)
    record("selective_precision", case, seed,
           {**transcribed("Section 2.4"),
            "probs.transformers": "transformers' SwitchTransformersTop1Router"},
           {"x": x}, {name: w.float() for name, w in params.items()}, {"capacity": capacity},
           ("torch", "numpy", "transformers"))


# -- Attention, distillation ---------------------------------------------------------------------

def attention(inputs, params, settings):
    x, bias, cotangent = inputs["x"], inputs["bias"], inputs["cotangent"]
    (B, S, D), (heads, W, _) = x.shape, params["w_out"].shape
    leaves, T = tracked({"x": x}, params), B * S

    tokens, projected, out, aux_losses = x.reshape(T, D), {}, {}, []
    for name in ("query", "key", "value"):
        logits = tokens @ params[f"{name}.w_router"]
        probs = probabilities(logits)
        choices = [best(p, 1) for p in probs]
        slot, keep = first_come(choices, [True] * T, settings["capacity"], 1)
        aux_losses.append(balance(probs, choices, [True] * T, 1)[2])
        gate = torch.stack([probs[t, choices[t]] for t in range(T)])
        y = torch.stack([gate[t, 0] * (tokens[t] @ params[f"{name}.w"][choices[t][0]])
                         if keep[t][0] else torch.zeros(heads * W, dtype=torch.float64)
                         for t in range(T)])
        out.update({f"{name}.logits": logits, f"{name}.expert": torch.tensor(choices),
                    f"{name}.margin": margins(logits, choices), f"{name}.slot": torch.tensor(slot),
                    f"{name}.keep": torch.tensor(keep), f"{name}.gate": gate, f"{name}.y": y})
        projected[name] = y.reshape(B, S, heads, W).transpose(1, 2)
    y = nn.functional.scaled_dot_product_attention(
        projected["query"], projected["key"], projected["value"], attn_mask=bias)
    y = sum(y[:, a] @ params["w_out"][a] for a in range(heads))
    aux_loss = sum(aux_losses)
    return {**out, "y": y, "aux_loss": aux_loss,
            **gradients({"y": (y * cotangent).sum(), "aux_loss": aux_loss}, leaves)}


def record_attention(case, seed, B=2, S=4, D=4, E=3, heads=2, W=3, capacity=8):
    draw = drawer(start(seed))
    x, cotangent, bias = draw(B, S, D), draw(B, S, D), draw(heads, S, S)
    params = {}
    for name in ("query", "key", "value"):
        params[f"{name}.w_router"], params[f"{name}.w"] = draw(D, E), draw(E, D, heads * W)
    params["w_out"] = draw(heads, W, D)
    record("attention", case, seed,
           {**transcribed("Appendix A"), "y": "torch.nn.functional.scaled_dot_product_attention"},
           {"x": x, "bias": bias, "cotangent": cotangent}, params, {"capacity": capacity})


def distillation(inputs, params, settings):
    logits, cotangent, of_teacher = inputs["logits"], inputs["cotangent"], settings["of_teacher"]
    leaves, cross_entropy = tracked({"logits": logits}), nn.functional.cross_entropy
    loss = (1 - of_teacher) * cross_entropy(logits, inputs["label"], reduction="none")
    loss = loss + of_teacher * cross_entropy(logits, inputs["teacher_probs"], reduction="none")
    g, = torch.autograd.grad((loss * cotangent).sum(), leaves.values())
    return {"loss": loss, "grad.logits": g}


def record_distillation(case, seed, T=6, V=7, of_teacher=0.25):
    rng = start(seed)
    draw = drawer(rng)
    logits, cotangent, teacher_probs = draw(T, V), draw(T), torch.softmax(draw(T, V), dim=-1)
    label = torch.from_numpy(rng.integers(V, size=T))
    record("distillation", case, seed,
           {"kind": "torch", "of": "torch.nn.functional.cross_entropy, twice"},
           {"logits": logits, "label": label, "teacher_probs": teacher_probs,
            "cotangent": cotangent}, {}, {"of_teacher": of_teacher})


# -- Hugging Face's ------------------------------------------------------------------------------

def transformers(inputs, params, settings):
    x, cotangent = inputs["x"], inputs["cotangent"]
    (B, S, D), (L, E, _, H) = x.shape, params["w_in"].shape
    leaves, y, out, passed = tracked({"x": x}, params), x, {}, []
    config = hugging_face.SwitchTransformersConfig(
        d_model=D, d_ff=H, num_experts=E, expert_capacity=settings["capacity"])
    for i in range(L):
        module = hugging_face.SwitchTransformersSparseMLP(config).double().eval()
        module.router.dtype = torch.float64
        weights = {"router.classifier.weight": params["w_router"][i].T}
        for e in range(E):
            weights[f"experts.expert_{e}.wi.weight"] = params["w_in"][i, e].T
            weights[f"experts.expert_{e}.wo.weight"] = params["w_out"][i, e].T
        mask, gate, _ = torch.func.functional_call(
            module.router, {"classifier.weight": params["w_router"][i].T}, y)
        y, (logits, expert) = torch.func.functional_call(module, weights, y)
        passed.append((logits, expert))
        T = B * S
        out.update({f"layer.{i}.logits": logits.reshape(T, E),
                    f"layer.{i}.keep": mask.any(dim=-1).reshape(T, 1),
                    f"layer.{i}.expert": expert.reshape(T, 1),
                    f"layer.{i}.gate": gate.reshape(T, 1), f"layer.{i}.y": y.reshape(T, D)})
    model = hugging_face.SwitchTransformersForConditionalGeneration
    logits, expert = model._unpack_router_logits(None, passed)
    z_loss = hugging_face.router_z_loss_func(logits)
    aux_loss = hugging_face.load_balancing_loss_func(nn.Softmax(dim=-1)(logits), expert)
    losses = {"y": (y * cotangent).sum(), "aux_loss": aux_loss, "z_loss": z_loss}
    return {**out, "aux_loss": aux_loss, "z_loss": z_loss, **gradients(losses, leaves)}


def record_transformers(case, seed, B=2, S=4, D=4, E=4, H=5, L=1, capacity=4, shape=None):
    draw = drawer(start(seed))
    x, cotangent = draw(B, S, D), draw(B, S, D)
    params = {"w_router": draw(L, D, E), "w_in": draw(L, E, D, H), "w_out": draw(L, E, H, D)}
    if shape:
        shape(params)
    record("transformers", case, seed, TRANSFORMERS, {"x": x, "cotangent": cotangent}, params,
           {"capacity": capacity}, ("torch", "numpy", "transformers"))


def all_alike(params):
    params["w_router"] *= 0.0


# -- DeepSpeed's ---------------------------------------------------------------------------------

def deepspeed(inputs, params, settings):
    logits, used, cotangent = inputs["logits"], inputs["used"], inputs["cotangent"]
    E, leaves, here = logits.shape[1], tracked({"logits": logits}), logits.device
    capacity = settings["capacity_factor"], settings["at_least"]
    sharded_moe.exp_selection_uniform_map[here] = lambda shape: inputs["u"]     # for its own draws
    sharded_moe.gumbel_map[here] = lambda shape: inputs["gumbel"]
    given = {"used_token": used.long(), "sparse_routes": True}
    found = {
        "random_token_selection": sharded_moe.top1gating(logits, *capacity, use_rts=True, **given),
        "all_kept": sharded_moe.top1gating(
            logits, *capacity, use_rts=False, drop_tokens=False, **given),
        "gumbel": sharded_moe.top1gating(
            logits, float(E), capacity[1], noisy_gate_policy="RSample", use_rts=False, **given)}
    out = {"probs": torch.softmax(logits, dim=1),
           "capacity": found["random_token_selection"][1],
           "all_kept_capacity": found["all_kept"][1]}
    for name, (aux_loss, _, _, expert, slot, gate, _) in found.items():
        out.update({f"{name}.expert": expert.long().T, f"{name}.slot": slot.long().T,
                    f"{name}.gate": gate.T, f"{name}.aux_loss": aux_loss})
        losses = {"gate": (gate[0] * cotangent).sum(), "aux_loss": aux_loss}
        out.update({f"{name}.{key}": g for key, g in gradients(losses, leaves).items()})
    return out


def record_deepspeed(case, seed, T=16, E=4, capacity_factor=1.0, at_least=2, padding=(),
                     scale=1.0):
    rng = start(seed)
    draw = drawer(rng)
    logits, cotangent = scale * draw(T, E), draw(T)
    u = torch.from_numpy(rng.random((T, E)))
    gumbel = -torch.log(-torch.log(torch.from_numpy(rng.random((T, E)))))
    record("deepspeed", case, seed, {**DEEPSPEED, "entry": "deepspeed.moe.sharded_moe.top1gating"},
           {"logits": logits, "u": u, "gumbel": gumbel, "used": without(padding, T),
            "cotangent": cotangent}, {},
           {"capacity_factor": capacity_factor, "at_least": at_least},
           ("torch", "numpy", "deepspeed"))


SIZES = ("n_tokens", "n_experts", "capacity_factor", "at_least")


def capacity_deepspeed(inputs, params, settings):
    return {"capacity": torch.tensor([
        int(sharded_moe._capacity(torch.zeros(T, E), *map(torch.tensor, (factor, least))))
        for T, E, factor, least in zip(*(settings[name] for name in SIZES))])}


def record_capacity_deepspeed(case):
    """Among others, sizes where float32 rounds 1.2 * 25 up to 31, and float64 1.1 * 50 to 56."""
    sizes = [(100, 5, 1.15, 8), (1024, 8, 1.25, 8), (64, 64, 1.0, 4), (100, 7, 1.0, 4),
             (10, 3, 0.3, 0), (7, 2, 2.0, 0), (100, 4, 1.2, 8), (100, 2, 1.1, 8), (100, 6, 0.9, 8)]
    record("capacity_deepspeed", case, None,
           {**DEEPSPEED, "entry": "deepspeed.moe.sharded_moe._capacity"}, {}, {},
           dict(zip(SIZES, zip(*sizes))), ("torch", "numpy", "deepspeed"))


DERIVATIONS = {
    "layer": layer, "capacity": capacity, "no_token_left_behind": no_token_left_behind,
    "exploration": exploration, "expert_dropout": expert_dropout, "pseudocode": pseudocode,
    "selective_precision": selective_precision, "attention": attention,
    "distillation": distillation, "transformers": transformers, "deepspeed": deepspeed,
    "capacity_deepspeed": capacity_deepspeed, "encoder_decoder": encoder_decoder}
THIRD_PARTY = {"transformers": "transformers", "deepspeed": "deepspeed",
               "capacity_deepspeed": "deepspeed", "encoder_decoder": "transformers"}


if __name__ == "__main__":
    record_layer("roomy", seed=0)
    record_layer("overflowing", seed=1, T=12, capacity=2)
    record_layer("ties", seed=2, capacity=2, shape=twins)
    record_layer("all_equal", seed=3, capacity=3, shape=no_router)              # all to expert 0
    record_layer("one_starved", seed=4, shape=leaning(2, -9.0))
    record_layer("all_to_one", seed=5, capacity=3, shape=leaning(1, 6.0))
    record_layer("one_expert", seed=6, E=1)
    record_layer("two_choices", seed=7, T=10, capacity=4, k=2)
    record_layer("three_choices", seed=8, T=10, E=5, capacity=5, k=3)
    record_layer("groups", seed=9, T=12, capacity=1, n_groups=3)
    record_layer("padding", seed=10, T=12, capacity=2, padding=(0, 4, 5, 11))
    record_layer("padded_groups", seed=11, T=12, capacity=2, k=2, n_groups=3,
                 padding=(1, 4, 5, 6, 7))
    record_layer("all_padding", seed=12, T=4, padding=range(4))

    record_capacity("as_in_the_paper",
                    [(64, 4, 1.0), (64, 4, 1.25), (64, 4, 2.0), (1024, 128, 1.25)])
    record_capacity("rounding",
                    [(100, 5, 1.15), (100, 7, 1.0), (7, 2, 2.0), (50, 2, 1.1), (3, 2, 8.0)])

    record_no_token_left_behind("all_placed", seed=20)
    record_no_token_left_behind("two_stages", seed=21, T=12, n_stages=2, shape=leaning(1, 4.0))
    record_no_token_left_behind("ties", seed=22, capacity=2, shape=twins)
    record_no_token_left_behind("groups", seed=23, T=12, capacity=1, n_groups=3)
    record_no_token_left_behind("padding", seed=24, T=12, E=3, capacity=2, n_stages=3, n_groups=2,
                                padding=(0, 3, 7))

    record_exploration("roomy", seed=30)
    record_exploration("overflowing", seed=31, T=12, capacity=2, eps=0.5, rate=0.5)
    record_expert_dropout("roomy", seed=40)
    record_expert_dropout("overflowing", seed=41, T=12, capacity=2, rate=0.1)
    record_pseudocode("roomy", seed=50, capacity=9)
    record_pseudocode("overflowing", seed=51, T=12, capacity=3)
    record_pseudocode("groups", seed=52, T=12, capacity=2, n_groups=3)

    record_selective_precision("roomy", seed=60)
    record_selective_precision("overflowing", seed=61, T=16, E=8, D=16, capacity=2)
    # ties by which bfloat16 chooses otherwise
    record_selective_precision("ties", seed=78, T=16, E=32, D=8)

    record_attention("roomy", seed=70)
    record_attention("overflowing", seed=71, capacity=2)
    record_distillation("a_quarter", seed=80)
    record_distillation("teacher_alone", seed=81, of_teacher=1.0)

    record_transformers("roomy", seed=90)
    record_transformers("overflowing", seed=91, S=8, capacity=1)
    record_transformers("ties", seed=92, capacity=2, shape=all_alike)
    record_transformers("stack", seed=93, S=8, L=2, capacity=2)

    record_deepspeed("roomy", seed=100, capacity_factor=4.0)
    record_deepspeed("overflowing", seed=101, T=32, at_least=0, scale=2.0)
    record_deepspeed("padding", seed=102, padding=(0, 3, 4, 9, 15))
    record_capacity_deepspeed("sizes")

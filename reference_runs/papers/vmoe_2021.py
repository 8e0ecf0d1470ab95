"""Record V-MoE (arXiv:2106.05974v1) in PyTorch, and the Vision Transformer of transformers.

    pip install transformers==4.44.2
    python -m reference_runs.papers.vmoe_2021

The authors' code is written for a JAX that can no longer be installed, so that their algorithms are
written here as printed: rank after rank, token after token, a list of free slots for each expert;
an expert is applied to one token at a time, and losses are sums over tokens. The Transformer around
them is made of torch.nn.functional's operators. Gradients are torch.autograd's. The Vision
Transformer without experts is the library's, unmodified.
"""
import math
from decimal import ROUND_HALF_EVEN, Decimal

import torch
import torch.nn.functional as F

from reference_runs.recorder import gradients, save, start

PAPER = "arXiv:2106.05974v1, Sections 2 and 4, Algorithms 1 and 2, Appendix A.2"
TRANSCRIPTION = {"kind": "transcription", "of": PAPER}
TRANSFORMER = {"kind": "transcription", "operators": "torch.nn.functional",
               "of": f"{PAPER}; arXiv:2010.11929v2, Eqs. (1)-(4)"}
VIT = {"kind": "third-party", "repository": "https://github.com/huggingface/transformers",
       "commit": "v4.44.2", "entry": "ViTModel, under a torch.nn.Linear"}
LEAD = 1e-4     # of one gate before the next, at least, unless ties are the point


# -- The algorithms, one group -------------------------------------------------------------------

def best(row, k):
    """The k experts of the largest gates; of equals the first."""
    return sorted(range(len(row)), key=lambda e: (-row[e].item(), e))[:k]


def allocate(gates, visits, B_e, k, present):
    """Algorithm 1, the tokens visited in the order ``visits``: places by (token, rank).

    An expert numbers whoever comes; those whose number is not one of its slots are turned away.
    """
    T, E = gates.shape
    chosen = [best(gates[t], k) for t in range(T)]
    slot, keep, came = {}, {}, [0] * E
    for i in range(k):
        for t in visits:
            slot[t, i], keep[t, i] = 0, False
            if present[t]:
                e = chosen[t][i]
                slot[t, i], keep[t, i] = came[e], came[e] in range(B_e)
                came[e] += 1
    return chosen, slot, keep


def visits_of(gates, k, score):
    """The order of Algorithm 2, or of Algorithm 1 without a score."""
    T = len(gates)
    if score is None:
        return list(range(T))
    s = [score(gates[t][best(gates[t], k)]).item() for t in range(T)]
    left, order = list(range(T)), []
    while left:
        order.append(max(left, key=lambda t: (s[t], -t)))
        left.remove(order[-1])
    return order


SCORES = {"vanilla": None, "batch_prioritized": torch.max, "by_sum": torch.sum}
ALGORITHMS = ("vanilla", "batch_prioritized")


def run_routing(gates, used, capacity, k, n_groups, score):
    """Of all groups, one after the other: expert, slot, keep, gate. [T, k] each"""
    T, S = len(gates), len(gates) // n_groups
    found = {"expert": [], "slot": [], "keep": [], "gate": []}
    for start_of_group in range(0, T, S or 1):
        of_group = gates[start_of_group:start_of_group + S]
        chosen, slot, keep = allocate(of_group, visits_of(of_group, k, score), capacity, k,
                                      used[start_of_group:start_of_group + S].tolist())
        for t in range(S):
            found["expert"].append(chosen[t])
            found["slot"].append([slot[t, i] for i in range(k)])
            found["keep"].append([keep[t, i] for i in range(k)])
            found["gate"].append(torch.stack([of_group[t][e] for e in chosen[t]]))
    kinds = {"expert": torch.int64, "slot": torch.int64, "keep": torch.bool}
    gate = rows(found.pop("gate"), gates, k)
    scores = {} if score is None else {"score": rows([score(row) for row in gate], gates)}
    return {**{name: torch.tensor(a, dtype=kinds[name]).reshape(T, k)
               for name, a in found.items()}, "gate": gate, **scores}


def rows(values, like, *shape):
    """A row on another; of none, an array of this shape without rows."""
    return torch.stack(values) if values else like.new_zeros(0, *shape)


def margins(scores, expert):
    """By how much each choice leads the best of those that come after it. [T, k]"""
    found = torch.zeros(expert.shape, dtype=scores.dtype)
    for t, chosen in enumerate(expert.tolist()):
        left = dict(enumerate(scores[t].tolist()))
        for i, e in enumerate(chosen):
            found[t, i] = left.pop(e) - max(left.values(), default=-math.inf)
    return found


def routing(inputs, params, settings):
    found, gates = {}, inputs["gates"]
    for name, score in SCORES.items():
        places = run_routing(gates, inputs["used"], score=score, **settings)
        found |= {f"{name}.{part}": a for part, a in
                  {**places, "margin": margins(gates, places["expert"])}.items()}
    return found


def capacity(inputs, params, settings):
    """Section 2.4, the ratio being decimal; no more slots than there are tokens."""
    found = []
    for N, E, k, C in zip(*(settings[name] for name in CAPACITY)):
        slots = (Decimal(str(C)) * k * N / E).to_integral_value(ROUND_HALF_EVEN)
        found.append(min(int(slots), N))
    return {"capacity": torch.tensor(found)}


CAPACITY = ("n_tokens", "n_experts", "k", "capacity_ratio")


# -- The layer -----------------------------------------------------------------------------------

def softmax(row):
    e = torch.exp(row - row.max().detach())
    return e / e.sum()


def run_router(x, w_router, z):
    E = w_router.shape[1]
    clean = rows([row @ w_router for row in x], x, E)
    noisy = clean + z * (1 / E)
    return {"clean": clean, "noisy": noisy, "gates": rows([softmax(row) for row in noisy], x, E)}


def cv_squared(v):
    """Of one group; 0 where nobody is there."""
    return v.var(correction=0) / v.mean() ** 2 if v.any() else v.sum()


def importance(clean, used):
    present = [softmax(row) for row, there in zip(clean, used) if there]
    return torch.stack([sum((p[e] for p in present), 0 * clean.sum())
                        for e in range(clean.shape[1])])


def load(clean, noisy, k, used):
    E = clean.shape[1]
    normal = torch.distributions.Normal(torch.zeros((), dtype=clean.dtype), 1 / E)
    found = [0 * clean.sum() for _ in range(E)]
    for t in range(len(clean)):
        if used[t]:
            threshold = noisy[t][best(noisy[t], k)[-1]]
            for e in range(E):
                found[e] = found[e] + 1 - normal.cdf(threshold - clean[t, e])
    return torch.stack(found)


def balance(router, used, k, n_groups):
    """Importance and load of each group, and the losses, averaged over groups."""
    parts = list(zip(*(a.chunk(n_groups) for a in (router["clean"], router["noisy"], used))))
    found = {"importance": torch.stack([importance(clean, here) for clean, _, here in parts]),
             "load": torch.stack([load(clean, noisy, k, here) for clean, noisy, here in parts])}
    losses = {f"{name}_loss": sum(map(cv_squared, a)) / n_groups for name, a in found.items()}
    return {**found, **losses}


def experts_of(x, routing, p):
    """What each choice's expert is given, makes of it and gives back, and y."""
    made, ys = {"expert_inputs": [], "hidden": [], "expert_outputs": []}, []
    for t in range(len(x)):
        y, of_token = torch.zeros_like(x[t]), []
        for e, kept, gate in zip(*(routing[name][t] for name in ("expert", "keep", "gate"))):
            parts = x[t], p["b_in"][0], x[t]
            if kept:
                hidden = F.gelu(x[t] @ p["w_in"][e] + p["b_in"][e])
                parts = x[t], hidden, hidden @ p["w_out"][e] + p["b_out"][e]
                y = y + gate * parts[2]
            of_token.append(parts if kept else map(torch.zeros_like, parts))
        for name, values in zip(made, zip(*of_token)):
            made[name].append(torch.stack(values))
        ys.append(y)
    (_, D, H), k = p["w_in"].shape, routing["expert"].shape[1]
    return {**{name: rows(values, x, k, width) for (name, values), width in
               zip(made.items(), (D, H, D))}, "y": rows(ys, x, D)}


def run_layer(x, z, used, p, capacity, k, n_groups, score):
    """Every intermediate, in the order of computation."""
    router = run_router(x, p["w_router"], z)
    places = run_routing(router["gates"], used, capacity, k, n_groups, score)
    return {**router, **places, "margin": margins(router["noisy"], places["expert"]),
            **experts_of(x, places, p), **balance(router, used, k, n_groups)}


def layer(inputs, params, settings, score=None):
    leaves = tracked({"x": inputs["x"], **params})
    found = run_layer(inputs["x"], inputs["z"], inputs["used"], params, score=score, **settings)
    losses = {"y": (found["y"] * inputs["cotangent"]).sum(),
              **{name: found[name] for name in ("importance_loss", "load_loss")}}
    return {**found, **gradients(losses, leaves)}


def layer_batch_prioritized(inputs, params, settings):
    return layer(inputs, params, settings, torch.max)


def tracked(leaves):
    for leaf in leaves.values():
        leaf.requires_grad_()
    return leaves


def check_lead(gates):
    """Neither who is chosen nor who is served first is a matter of digits."""
    ranked = gates.sort(dim=-1).values
    assert ranked.diff(dim=-1).min() > LEAD and ranked[:, -1].sort().values.diff().min() > LEAD, (
        "a narrow choice")


# -- Cases ---------------------------------------------------------------------------------------

class Draw:
    """Draws of one case."""

    def __init__(self, seed, dtype=torch.float64):
        self.rng, self.dtype = start(seed), dtype

    def normal(self, *shape, scale=1.0):
        return torch.from_numpy(scale * self.rng.standard_normal(shape)).to(self.dtype)

    def present(self, T, n_padding):
        used = torch.ones(T, dtype=bool)
        used[self.rng.permutation(T)[:n_padding]] = False
        return used

    def experts(self, D, H, E, prefix=""):
        return {f"{prefix}{name}": a for name, a in {
            "w_router": self.normal(D, E, scale=2 * D ** -0.5),
            "w_in": self.normal(E, D, H, scale=D ** -0.5), "b_in": self.normal(E, H, scale=0.3),
            "w_out": self.normal(E, H, D, scale=H ** -0.5),
            "b_out": self.normal(E, D, scale=0.3)}.items()}

    def linear(self, name, D, H):
        return {f"{name}.w": self.normal(D, H, scale=D ** -0.5),
                f"{name}.b": self.normal(H, scale=0.3)}

    def norm(self, name, D):
        return {f"{name}.scale": 1 + self.normal(D, scale=0.2),
                f"{name}.shift": self.normal(D, scale=0.3)}

    def attention(self, name, D, A):
        W = D // A
        return {**{f"{name}.w_{part}": self.normal(D, A, W, scale=D ** -0.5)
                   for part in ("query", "key", "value")},
                f"{name}.w_out": self.normal(A, W, D, scale=D ** -0.5),
                **{f"{name}.b_{part}": self.normal(A, W, scale=0.3)
                   for part in ("query", "key", "value")},
                f"{name}.b_out": self.normal(D, scale=0.3)}


def record(kind, case, source, seed, inputs, params, settings, packages=("torch", "numpy")):
    out = DERIVATIONS[kind](inputs, params, settings)
    groups = {"set": settings, "param": params, "out": out, "in": inputs}
    save(f"vmoe_2021/{kind}/{case}", source=source, seed=seed, packages=packages, **groups)
    return out


def record_routing(case, seed, T, E, capacity, k, n_groups=1, n_padding=0, tied=False):
    draw = Draw(seed)
    logits = draw.normal(T, E)
    if tied:                                  # powers of two: equal gates are equal to the last bit
        shares = 2.0 ** logits.round()
        gates = torch.stack([row / 2 ** row.sum().log2().ceil() for row in shares])
    else:
        gates = torch.softmax(2 * logits, dim=-1)
    inputs = {"gates": gates, "used": draw.present(T, n_padding)}
    record("routing", case, TRANSCRIPTION, seed, inputs, {},
           {"capacity": capacity, "k": k, "n_groups": n_groups})


def record_layer(case, seed, T, D, H, E, capacity, k, n_groups=1, n_padding=0, towards=0.0,
                 dtype=torch.float64):
    """``towards`` adds to every token's logit of expert 0. By both algorithms where they differ."""
    draw = Draw(seed, dtype)
    x, z, cotangent = draw.normal(T, D), draw.normal(T, E), draw.normal(T, D)
    params, used = draw.experts(D, H, E), draw.present(T, n_padding)
    x[:, 0], params["w_router"][0, 0] = 1.0, towards or params["w_router"][0, 0]
    check_lead(run_router(x, params["w_router"], z)["gates"])
    inputs = {"x": x, "z": z, "used": used, "cotangent": cotangent}
    for kind in ("layer", "layer_batch_prioritized")[:1 if capacity >= T else 2]:
        record(kind, case, TRANSCRIPTION, seed, inputs, params,
               {"capacity": capacity, "k": k, "n_groups": n_groups})


def record_capacity(case, sizes):
    record("capacity", case, {"kind": "transcription", "of": "arXiv:2106.05974v1, Section 2.4"},
           None, {}, {}, dict(zip(CAPACITY, zip(*sizes))))


# -- The Vision Transformer of transformers ------------------------------------------------------

def vit_names(n_blocks, A, patch_size, D):
    """Our name of each parameter: the library's, and what makes the one of the other, and back."""
    def join(w):                                  # [D, A, W] -> [A*W, D]
        return w.reshape(len(w), -1).T

    def split(w):
        return w.T.reshape(w.shape[1], A, -1)

    def join_out(w):                              # [A, W, D] -> [D, A*W]
        return w.reshape(-1, w.shape[-1]).T

    def split_out(w):
        return w.T.reshape(A, -1, len(w))

    def squares(w):                               # [P*P*C, D] -> [D, C, P, P]
        return w.reshape(patch_size, patch_size, -1, D).permute(3, 2, 0, 1)

    def transposed(w):
        return w.T

    def same(a):
        return a

    linear, vector = (transposed, transposed), (same, same)
    names = {"patch.w": ("embeddings.patch_embeddings.projection.weight",
                         lambda w: w.permute(2, 3, 1, 0).reshape(-1, len(w)), squares),
             "patch.b": ("embeddings.patch_embeddings.projection.bias", *vector),
             "class_token": ("embeddings.cls_token", lambda a: a[0, 0], lambda a: a[None, None]),
             "position": ("embeddings.position_embeddings", lambda a: a[0], lambda a: a[None]),
             "encoder.norm.scale": ("layernorm.weight", *vector),
             "encoder.norm.shift": ("layernorm.bias", *vector),
             "representation.w": ("pooler.dense.weight", *linear),
             "representation.b": ("pooler.dense.bias", *vector)}
    for i in range(n_blocks):
        ours, theirs = f"encoder.blocks.{i}", f"encoder.layer.{i}"
        for norm, layernorm in [("attention_norm", "layernorm_before"),
                                ("feed_forward_norm", "layernorm_after")]:
            names[f"{ours}.{norm}.scale"] = f"{theirs}.{layernorm}.weight", *vector
            names[f"{ours}.{norm}.shift"] = f"{theirs}.{layernorm}.bias", *vector
        for part in ("query", "key", "value"):
            module = f"{theirs}.attention.attention.{part}"
            names[f"{ours}.attention.w_{part}"] = f"{module}.weight", split, join
            names[f"{ours}.attention.b_{part}"] = (
                f"{module}.bias", lambda b: b.reshape(A, -1), lambda b: b.reshape(-1))
        names[f"{ours}.attention.w_out"] = (
            f"{theirs}.attention.output.dense.weight", split_out, join_out)
        names[f"{ours}.attention.b_out"] = f"{theirs}.attention.output.dense.bias", *vector
        for j, module in enumerate(("intermediate", "output")):
            names[f"{ours}.feed_forward.{j}.w"] = f"{theirs}.{module}.dense.weight", *linear
            names[f"{ours}.feed_forward.{j}.b"] = f"{theirs}.{module}.dense.bias", *vector
    return names


def vit(size, patch_size, C, D, A, H, V):
    """The library's model under a head, and where it keeps each parameter of ours."""
    from transformers import ViTConfig, ViTModel

    model = ViTModel(ViTConfig(
        hidden_size=D, num_hidden_layers=2, num_attention_heads=A, intermediate_size=H,
        hidden_act="gelu", layer_norm_eps=1e-6, image_size=size, patch_size=patch_size,
        num_channels=C)).double().eval()
    head = torch.nn.Linear(D, V).double()
    theirs = dict(model.named_parameters())
    places = {name: (theirs[at], ours, back)
              for name, (at, ours, back) in vit_names(2, A, patch_size, D).items()}
    assert len(places) == len(theirs), "a parameter without a name of ours"
    places |= {"head.w": (head.weight, lambda w: w.T, lambda w: w.T),
               "head.b": (head.bias, lambda b: b, lambda b: b)}
    return model, head, places


def vision_transformer(inputs, params, settings):
    B, *size, C = inputs["image"].shape
    D, A, _ = params["encoder.blocks.0.attention.w_query"].shape
    H, V = params["encoder.blocks.0.feed_forward.0.w"].shape[1], params["head.w"].shape[1]
    model, head, places = vit(tuple(size), settings["patch_size"], C, D, A, H, V)
    for name, (p, _, back) in places.items():
        p.data.copy_(back(params[name]))
    image = inputs["image"].permute(0, 3, 1, 2)
    tokens = model.embeddings(image)
    logits = head(model(image).pooler_output)
    (logits * inputs["cotangent"]).sum().backward()
    return {"tokens": tokens, "logits": logits,
            **{f"grad.{name}": ours(p.grad) for name, (p, ours, _) in places.items()
               if not name.endswith("b_key")}}         # which softmax takes away: rounding


def record_vision_transformer(case, seed, B, size, patch_size, C, D, A, H, V):
    draw = Draw(seed)
    model, head, places = vit(size, patch_size, C, D, A, H, V)
    for name, p in [*model.named_parameters(), *head.named_parameters()]:
        scale = 0.3 if p.ndim == 1 else p[0].numel() ** -0.5
        is_scale = "layernorm" in name and name.endswith("weight")
        p.data.copy_(draw.normal(*p.shape, scale=scale) + is_scale)
    inputs = {"image": draw.normal(B, *size, C), "cotangent": draw.normal(B, V)}
    params = {name: ours(p).detach() for name, (p, ours, _) in places.items()}
    record("vision_transformer", case, VIT, seed, inputs, params, {"patch_size": patch_size},
           packages=("torch", "numpy", "transformers"))


# -- V-MoE ---------------------------------------------------------------------------------------

def attention(p, name, x):
    """PyTorch's, given the projections as it wants them."""
    D, A, W = p[f"{name}.w_query"].shape
    parts = ("query", "key", "value")
    x = x.swapaxes(0, 1)
    y, _ = F.multi_head_attention_forward(
        x, x, x, D, A, torch.cat([p[f"{name}.w_{part}"].reshape(D, A * W).T for part in parts]),
        torch.cat([p[f"{name}.b_{part}"].reshape(A * W) for part in parts]), None, None, False, 0.0,
        p[f"{name}.w_out"].reshape(A * W, D).T, p[f"{name}.b_out"], need_weights=False)
    return y.swapaxes(0, 1)


def run_vmoe(p, x, z, capacity, k, n_groups, score):
    """Logits, and what each layer with experts found."""
    def linear(name, x):
        return F.linear(x, p[f"{name}.w"].T, p[f"{name}.b"])

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], p[f"{name}.scale"], p[f"{name}.shift"], eps=1e-6)

    B, found = len(x), []
    tokens = linear("patch", x)
    x = torch.cat([p["class_token"].expand(B, 1, -1), tokens], dim=1) + p["position"]
    for i in range(4):
        block = f"encoder.blocks.{i}"
        x = x + attention(p, f"{block}.attention", norm(f"{block}.attention_norm", x))
        seen = norm(f"{block}.feed_forward_norm", x)
        ff = f"{block}.feed_forward"
        if i % 2 == 0:
            x = x + linear(f"{ff}.1", F.gelu(linear(f"{ff}.0", seen)))
            continue
        experts = {name.removeprefix(f"{ff}."): a for name, a in p.items() if name.startswith(ff)}
        tokens = seen.reshape(-1, seen.shape[-1])
        used = torch.ones(len(tokens), dtype=bool)
        made = run_layer(tokens, z[i // 2], used, experts, capacity, k, n_groups, score)
        x = x + made["y"].reshape(x.shape)
        found.append({name: a for name, a in made.items() if name not in NOT_OF_A_MODEL})
    seen = norm("encoder.norm", x)[:, 0]
    return linear("head", torch.tanh(linear("representation", seen))), found


def record_vmoe(case, seed, B, S, P, D, A, H, E, V, capacity, k, n_groups=1, dtype=torch.float64):
    draw = Draw(seed, dtype)
    params = {**draw.linear("patch", P, D), "class_token": draw.normal(D),
              "position": draw.normal(S + 1, D)}
    for i in range(4):
        block = f"encoder.blocks.{i}"
        params |= {**draw.norm(f"{block}.attention_norm", D),
                   **draw.attention(f"{block}.attention", D, A),
                   **draw.norm(f"{block}.feed_forward_norm", D)}
        if i % 2 == 0:
            params |= {**draw.linear(f"{block}.feed_forward.0", D, H),
                       **draw.linear(f"{block}.feed_forward.1", H, D)}
        else:
            params |= draw.experts(D, H, E, f"{block}.feed_forward.")
    params |= {**draw.norm("encoder.norm", D), **draw.linear("representation", D, D),
               **draw.linear("head", D, V)}
    x, z = draw.normal(B, S, P), draw.normal(2, B * (S + 1), E)
    label = torch.from_numpy(draw.rng.integers(0, V, B))
    out = record("vmoe", case, TRANSFORMER, seed, {"x": x, "z": z, "label": label}, params,
                 {"capacity": capacity, "k": k, "n_groups": n_groups})
    for name, a in out.items():
        if name.endswith(".gates"):
            check_lead(a)


NOT_OF_A_MODEL = ("expert_inputs", "hidden", "expert_outputs", "importance", "load")


def vmoe(inputs, params, settings):
    params, out = tracked(params), {}
    for name in ALGORITHMS:
        logits, found = run_vmoe(params, inputs["x"], inputs["z"], score=SCORES[name], **settings)
        balance = sum(layer["importance_loss"] + layer["load_loss"] for layer in found)
        loss = F.cross_entropy(logits, inputs["label"]) + 0.01 * balance / 2
        grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        out |= {f"{name}.layers.{i}.{part}": a for i, layer in enumerate(found)
                for part, a in layer.items()}
        out |= {f"{name}.logits": logits, f"{name}.loss": loss,
                **{f"{name}.grad.{leaf}": torch.zeros_like(p) if g is None else g
                   for (leaf, p), g in zip(params.items(), grads) if not leaf.endswith("b_key")}}
    return out


DERIVATIONS = {"routing": routing, "layer": layer, "capacity": capacity,
               "layer_batch_prioritized": layer_batch_prioritized,
               "vision_transformer": vision_transformer, "vmoe": vmoe}
PACKAGES = {"vision_transformer": "transformers"}


if __name__ == "__main__":
    record_routing("roomy", seed=0, T=12, E=4, capacity=12, k=2)
    record_routing("overflowing", seed=1, T=16, E=4, capacity=3, k=2)
    record_routing("ties", seed=2, T=16, E=4, capacity=3, k=2, tied=True)
    record_routing("groups_and_padding", seed=3, T=18, E=3, capacity=2, k=2, n_groups=3,
                   n_padding=5)
    record_routing("one_choice", seed=4, T=14, E=3, capacity=2, k=1)
    record_routing("all_experts", seed=5, T=8, E=3, capacity=5, k=3)
    record_routing("no_slot", seed=6, T=6, E=3, capacity=0, k=1)

    small = {"D": 5, "H": 6}
    record_layer("roomy", seed=10, T=10, E=4, capacity=10, k=2, **small)
    record_layer("overflowing", seed=16, T=14, E=4, capacity=3, k=2, **small)
    record_layer("one_choice", seed=12, T=12, E=4, capacity=2, k=1, **small)
    record_layer("all_to_one", seed=13, T=10, E=3, capacity=4, k=1, towards=4.0, **small)
    record_layer("groups_and_padding", seed=14, T=15, E=3, capacity=2, k=2, n_groups=3, n_padding=4,
                 **small)
    record_layer("float32", seed=17, T=12, E=4, capacity=3, k=2, dtype=torch.float32, **small)

    record_capacity("several_sizes", [(64, 8, 2, 1.05), (196, 32, 2, 1.05), (50, 4, 1, 0.5),
                                      (9, 6, 1, 1.0), (15, 6, 1, 1.0), (100, 5, 2, 1.15),
                                      (7, 2, 2, 3.0), (1024, 32, 1, 0.1)])

    record_vision_transformer("square", seed=20, B=3, size=(8, 8), patch_size=4, C=1, D=8, A=2,
                              H=10, V=5)
    record_vision_transformer("colour", seed=21, B=2, size=(4, 6), patch_size=2, C=3, D=6, A=3,
                              H=8, V=4)

    model = {"P": 4, "D": 6, "A": 2, "H": 8, "V": 5}
    record_vmoe("roomy", seed=31, B=3, S=4, E=4, capacity=15, k=2, **model)
    record_vmoe("overflowing", seed=30, B=4, S=4, E=4, capacity=3, k=2, **model)
    record_vmoe("groups", seed=34, B=4, S=3, E=3, capacity=2, k=1, n_groups=2, **model)
    record_vmoe("float32", seed=33, B=3, S=4, E=3, capacity=4, k=2, dtype=torch.float32, **model)

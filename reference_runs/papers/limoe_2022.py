"""Record LIMoE (arXiv:2206.02770v1) in PyTorch.

    python -m reference_runs.papers.limoe_2022

The kind contrastive is transformers' CLIPModel, unmodified, given what its two towers would have
pooled: heads, unit vectors, learned temperature and loss are its own. The kinds losses and tower
are written from the paper, token by token and expert by expert; attention, layer norm and GELU are
PyTorch's.
"""
import math

import torch
from torch.nn.functional import gelu, layer_norm
from transformers import CLIPConfig, CLIPModel

from reference_runs.recorder import save, start

PAPER = "limoe_2022"
CLIP = {"kind": "third-party", "repository": "huggingface/transformers", "commit": "4.44.2",
        "entry": "transformers.CLIPModel"}
PAPERS = ("arXiv:2206.02770v1, Eqs. (1), (2); arXiv:2106.05974v1, Sections 2 and 4.1, Algorithms 1 "
          "and 2, Appendix A.2")
MODALITIES = ("image", "text")
IN_USE = ("importance", "load", "router_z", "local_text", "global_image", "global_text")


# -- transformers --------------------------------------------------------------------------------

def record(kind, case, source, seed, inputs, params, settings, packages=("torch", "numpy")):
    out = DERIVATIONS[kind](inputs, params, settings)
    save(f"{PAPER}/{kind}/{case}", source=source, seed=seed, packages=packages,
         **{"in": inputs, "param": params, "set": settings, "out": out})


def contrastive(pooled, params, settings):
    leaves = {name: a.requires_grad_() for name, a in {**pooled, **params}.items()}
    D, Z = params["w_image"].shape
    config = CLIPConfig(projection_dim=Z, text_config={"hidden_size": D, "num_hidden_layers": 0},
                        vision_config={"hidden_size": D, "num_hidden_layers": 0})
    model = CLIPModel(config).to(pooled["image"].dtype)
    model.vision_model, model.text_model = Pooled(pooled["image"]), Pooled(pooled["text"])
    for module, name in ((model.visual_projection, "w_image"), (model.text_projection, "w_text")):
        del module.weight
        module.weight = params[name].T
    del model.logit_scale
    model.logit_scale = params["t"]
    out = model(return_loss=True)
    gradients = torch.autograd.grad(out.loss, leaves.values())
    return {"z_image": out.image_embeds, "z_text": out.text_embeds, "scores": out.logits_per_image,
            "loss": out.loss, **{f"grad.{name}": g for name, g in zip(leaves, gradients)}}


def record_contrastive(case, seed, B, D, Z, dtype=torch.float64):
    rng = start(seed)

    def draw(*shape):
        return torch.from_numpy(rng.standard_normal(shape)).to(dtype)

    pooled = {"image": draw(B, D), "text": draw(B, D)}
    params = {"w_image": draw(D, Z), "w_text": draw(D, Z), "t": draw()}
    record("contrastive", case, CLIP, seed, pooled, params, {},
           packages=("torch", "numpy", "transformers"))


class Pooled(torch.nn.Module):
    """In the place of a tower: what it pooled."""
    def __init__(self, pooled):
        super().__init__()
        self.pooled = pooled

    def forward(self, **_):
        return None, self.pooled


# -- Losses of the router, token by token --------------------------------------------------------

def entropy(p):
    return sum((-q * torch.log(q) for q in p if q > 0), torch.zeros((), dtype=p.dtype))


def cv_squared(parts):
    """0 where nobody is there."""
    mean = sum(parts) / len(parts)
    if mean == 0:
        return 0.0 * mean
    return sum((part - mean) ** 2 for part in parts) / len(parts) / mean ** 2


def log_sum_exp(row):
    return torch.log(sum(torch.exp(one) for one in row))


def shares(clean, noisy, there):
    """Importance and load of each expert, over the tokens that are there."""
    E = clean.shape[1]
    normal = torch.distributions.Normal(0.0, 1.0)
    importance, load = [0.0 * clean.sum()] * E, [0.0 * clean.sum()] * E
    for i in there:
        threshold = noisy[i, first_largest(noisy[i])]
        total = sum(torch.exp(one) for one in clean[i])
        for e in range(E):
            importance[e] = importance[e] + torch.exp(clean[i, e]) / total
            load[e] = load[e] + 1 - normal.cdf((threshold - clean[i, e]) * E)      # sigma = 1 / E
    return importance, load


def auxiliary_losses(clean, noisy, modality, soft_minimum):
    """By name; a modality that is absent has no entropies. Padding, -1, is left out of all."""
    there = [i for i in range(len(clean)) if modality[i] >= 0]
    importance, load = shares(clean, noisy, there)
    z = sum((log_sum_exp(clean[i]) ** 2 / len(there) for i in there), 0.0 * clean.sum())
    losses = {"importance": cv_squared(importance), "load": cv_squared(load), "router_z": z}
    local, spread = {}, {}
    for m, name in enumerate(MODALITIES):
        rows = [torch.exp(noisy[i] - log_sum_exp(noisy[i])) for i in there if modality[i] == m]
        if rows:
            mean = sum(rows) / len(rows)
            local[f"local_{name}"] = sum(entropy(row) for row in rows) / len(rows)
            spread[f"global_{name}"] = torch.clamp(math.log(soft_minimum[m]) - entropy(mean), min=0)
    return {**losses, **local, **spread}


def first_largest(row):
    return max(range(len(row)), key=lambda e: (float(row[e].detach()), -e))


def seated(noisy, modality, capacity, by_priority):
    """Expert, place and keep; in no queue does padding stand."""
    T, E = noisy.shape
    probs = torch.softmax(noisy.detach(), dim=-1)
    expert = [first_largest(probs[i]) for i in range(T)]
    order = sorted(range(T), key=lambda i: -float(probs[i].max())) if by_priority else range(T)
    came, slot, keep = [0] * E, [0] * T, [False] * T
    for i in order:
        if modality[i] >= 0:
            slot[i] = came[expert[i]]
            keep[i] = slot[i] < capacity
            came[expert[i]] += 1
    return expert, slot, keep


def routed(noisy, expert):
    """What a router found, of one choice each."""
    T = len(noisy)
    gates = torch.stack([torch.exp(row - log_sum_exp(row)) for row in noisy])
    margin = [row[e] - max([row[j] for j in range(len(row)) if j != e], default=-math.inf)
              for row, e in zip(noisy.tolist(), expert)]
    return {"noisy": noisy, "gates": gates, "expert": column(expert),
            "margin": torch.tensor(margin, dtype=noisy.dtype)[:, None],
            "score": gates.max(dim=-1).values,
            "gate": torch.stack([gates[i, expert[i]] for i in range(T)])[:, None]}


def column(values):
    return torch.tensor(values)[:, None]


def counted(expert, keep, modality, E):
    """What each modality chose and was given, expert by expert, and its success rate."""
    chosen, kept = torch.zeros(2, E, dtype=int), torch.zeros(2, E, dtype=int)
    for e, k, m in zip(expert, keep, modality):
        if m >= 0:
            chosen[m, e] += 1
            kept[m, e] += k
    rates = [int(k.sum()) / int(c.sum()) if c.any() else 1.0 for k, c in zip(kept, chosen)]
    return {"chosen": chosen, "kept": kept, "success": torch.tensor(rates, dtype=torch.float64)}


def losses(inputs, params, settings):
    clean, modality = inputs["clean"].requires_grad_(), inputs["modality"].tolist()
    T, E = clean.shape
    noisy, capacity = clean + inputs["draws"] / E, settings["capacity"]
    found = {}
    for name, by_priority in (("vanilla", False), ("priority", True)):
        expert, slot, keep = seated(noisy, modality, capacity, by_priority)
        counts = counted(expert, keep, modality, E)
        found |= {f"{name}.{key}": value for key, value in
                  {"slot": column(slot), "keep": column(keep), **counts}.items()}
    places = routed(noisy, expert)
    found["priority.score"] = places.pop("score")
    importance, load = shares(clean, noisy, [i for i in range(T) if modality[i] >= 0])
    of = auxiliary_losses(clean, noisy, modality, settings["soft_minimum"])
    return {**places, **found,
            "importance": torch.stack(importance), "load": torch.stack(load),
            **{f"loss.{name}": loss for name, loss in of.items()},
            **{f"grad.{name}": torch.autograd.grad(loss, clean, retain_graph=True)[0]
               for name, loss in of.items()}}


def record_losses(case, seed, modality, E, capacity, soft_minimum, scale=1.0, ties=False,
                  dtype=torch.float64):
    """``ties``: logits of 0 and 1 without noise, so that many are as sure as others."""
    rng = start(seed)
    T = len(modality)
    clean = torch.from_numpy(scale * rng.standard_normal((T, E))).to(dtype)
    draws = torch.from_numpy(rng.standard_normal((T, E))).to(dtype)
    if ties:
        clean, draws = (clean > 0).to(dtype), 0 * draws
    record("losses", case,
           {"kind": "transcription", "of": PAPERS, "distribution": "torch.distributions"}, seed,
           {"clean": clean, "draws": draws, "modality": torch.tensor(modality)}, {},
           {"capacity": capacity, "soft_minimum": [float(s) for s in soft_minimum]})


# -- One tower, token by token -------------------------------------------------------------------

def attention(p, x, used):
    """One sequence: each position reads those that are used. [S, D] -> [S, D]"""
    A, W, _ = p["w_out"].shape
    rows = []
    for i in range(len(x)):
        total = p["b_out"]
        for a in range(A):
            query = x[i] @ p["w_query"][:, a] + p["b_query"][a]
            keys = [x[j] @ p["w_key"][:, a] + p["b_key"][a] for j in range(len(x))]
            e = [torch.exp(query @ key / math.sqrt(W)) if here else 0.0
                 for key, here in zip(keys, used)]
            for j in range(len(x)):
                value = x[j] @ p["w_value"][:, a] + p["b_value"][a]
                share = e[j] / sum(e) if any(used) else 0.0     # of padding alone, nothing is read
                total = total + share * value @ p["w_out"][a]
        rows.append(total)
    return torch.stack(rows)


def norm(p, x):
    return layer_norm(x, x.shape[-1:], p["scale"], p["shift"], eps=1e-6)


def part(params, prefix):
    return {name.removeprefix(prefix): p for name, p in params.items() if name.startswith(prefix)}


def experts(p, x, draws, modality, capacity):
    """A layer on all tokens, each by itself. -> list of D, and what the router did"""
    T, E = draws.shape
    clean = torch.stack([row @ p["w_router"] for row in x])
    noisy = clean + draws / E
    expert, slot, keep = seated(noisy, modality, capacity, by_priority=True)
    y = []
    for i in range(T):
        e = expert[i]
        hidden = gelu(x[i] @ p["w_in"][e] + p["b_in"][e])
        gate = torch.exp(noisy[i, e] - log_sum_exp(noisy[i]))
        out = gate * (hidden @ p["w_out"][e] + p["b_out"][e])
        y.append(out if keep[i] else torch.zeros_like(out))
    return y, (clean, noisy, expert, slot, keep, torch.stack(y))


def tower(params, patches, words, used, draws, capacity):
    """Sequences of both modalities side by side, images first. -> unit vectors, routers"""
    items = [(0, patch_row, [True] * len(patch_row)) for patch_row in patches]
    items += [(1, word_row, here) for word_row, here in zip(words, used.tolist())]
    modality = [m if here else -1 for m, _, mask in items for here in mask]
    x = [(row @ params["patch.w"] + params["patch.b"] + params["patch_position"]) if m == 0
         else params["word.table"][row] + params["word_position"] for m, row, _ in items]
    left, routers = iter(draws), []
    for block in range(N_BLOCKS):
        p = part(params, f"encoder.blocks.{block}.")
        x = [row + attention(part(p, "attention."), norm(part(p, "attention_norm."), row), here)
             for row, (_, _, here) in zip(x, items)]
        seen = [norm(part(p, "feed_forward_norm."), row) for row in x]
        if block in WITH_EXPERTS:
            tokens = [token for row in seen for token in row]
            y, router = experts(part(p, "feed_forward."), tokens, next(left), modality, capacity)
            routers.append(router)
            changes, y = [], iter(y)
            for row in seen:
                changes.append(torch.stack([next(y) for _ in row]))
        else:
            p = part(p, "feed_forward.")
            changes = [gelu(row @ p["0.w"] + p["0.b"]) @ p["1.w"] + p["1.b"] for row in seen]
        x = [row + change for row, change in zip(x, changes)]
    z = ([], [])
    for row, (m, _, here) in zip(x, items):
        row = norm(part(params, "encoder.norm."), row)
        if not any(here):                                   # nothing was said: a zero
            z[m].append(0.0 * row[0] @ params[f"w_{MODALITIES[m]}"])
            continue
        mean = sum(token for token, h in zip(row, here) if h) / sum(here)
        u = mean @ params[f"w_{MODALITIES[m]}"]
        z[m].append(u / torch.sqrt((u * u).sum()))
    return torch.stack(z[0]), torch.stack(z[1]), modality, routers


N_BLOCKS, WITH_EXPERTS = 3, (1, 2)


def tower_params(draw, D, A, W, H, E, P, S, V, R, Z):
    """Named as minimoe names them, in that order."""
    def normal(*shape):
        return draw(*shape) / 2

    params = {"patch.w": normal(P, D), "patch.b": normal(D), "patch_position": normal(S, D),
              "word.table": normal(V, D), "word_position": normal(R, D)}
    for block in range(N_BLOCKS):
        shapes = {"attention_norm.scale": (D,), "attention_norm.shift": (D,),
                  **{f"attention.w_{name}": (D, A, W) for name in ("query", "key", "value")},
                  "attention.w_out": (A, W, D),
                  **{f"attention.b_{name}": (A, W) for name in ("query", "key", "value")},
                  "attention.b_out": (D,), "feed_forward_norm.scale": (D,),
                  "feed_forward_norm.shift": (D,)}
        if block in WITH_EXPERTS:
            shapes |= {"feed_forward.w_router": (D, E), "feed_forward.w_in": (E, D, H),
                       "feed_forward.b_in": (E, H), "feed_forward.w_out": (E, H, D),
                       "feed_forward.b_out": (E, D)}
        else:
            shapes |= {"feed_forward.0.w": (D, H), "feed_forward.0.b": (H,),
                       "feed_forward.1.w": (H, D), "feed_forward.1.b": (D,)}
        params |= {f"encoder.blocks.{block}.{name}": normal(*shape) + name.endswith("scale")
                   for name, shape in shapes.items()}
    return {**params, "encoder.norm.scale": normal(D) + 1, "encoder.norm.shift": normal(D),
            "w_image": normal(D, Z), "w_text": normal(D, Z), "t": normal() + 1}


def record_tower(case, seed, B, capacity, soft_minimum, E=3, S=4, R=3, padded=False,
                 dtype=torch.float64):
    rng = start(seed)
    P, V, Z = 3, 6, 3

    def draw(*shape):
        return torch.from_numpy(rng.standard_normal(shape)).to(dtype)

    params = tower_params(draw, D=4, A=2, W=2, H=5, E=E, P=P, S=S, V=V, R=R, Z=Z)
    patches, draws = draw(B, S, P), draw(len(WITH_EXPERTS), B * (S + R), E)
    words = torch.from_numpy(rng.integers(V, size=(B, R)))
    length = rng.integers(1, R + 1, size=B) if padded else [R] * B
    used = torch.tensor([[r < n for r in range(R)] for n in length])
    record("tower_padded" if padded else "tower", case,
           {"kind": "transcription", "of": PAPERS + "; arXiv:2010.11929v2, Section 3.1",
            "operators": "torch.nn.functional: layer_norm, gelu"}, seed,
           {"patches": patches, "words": words, "draws": draws,
            **({"used": used} if padded else {})}, params,
           {"capacity": capacity, "soft_minimum": [float(s) for s in soft_minimum]})


def training_step(inputs, params, settings):
    """The loss of training of a tower, and what its layers found."""
    params = {name: p.requires_grad_() for name, p in params.items()}
    words, soft_minimum = inputs["words"], settings["soft_minimum"]
    used = inputs.get("used", torch.ones(words.shape, dtype=torch.bool))
    z_image, z_text, modality, routers = tower(params, inputs["patches"], words, used,
                                               inputs["draws"], settings["capacity"])
    B, E = len(words), inputs["draws"].shape[-1]
    scores = torch.exp(params["t"]) * torch.stack([torch.stack([u @ v for v in z_text])
                                                   for u in z_image])
    contrastive = -sum((torch.log_softmax(scores, 1) + torch.log_softmax(scores, 0))[j, j]
                       for j in range(B)) / (2 * B)
    found, auxiliary = {}, []
    for layer, (clean, noisy, expert, slot, keep, y) in enumerate(routers):
        of = auxiliary_losses(clean, noisy, modality, soft_minimum)
        auxiliary += [of[name] for name in IN_USE]
        counts = counted(expert, keep, modality, E)
        del counts["success"]
        found |= {f"layer.{layer}.{key}": value for key, value in {
            "clean": clean, **routed(noisy, expert), "slot": column(slot), "keep": column(keep),
            **counts, "y": y, **{f"loss.{name}": loss for name, loss in of.items()}}.items()}
    mean = sum(auxiliary) / len(auxiliary)
    loss = contrastive + 0.04 * mean
    gradients = torch.autograd.grad(loss, params.values(), allow_unused=True)
    return {"modality": torch.tensor(modality), **found, "z_image": z_image, "z_text": z_text,
            "scores": scores, "contrastive": contrastive, "auxiliary": mean, "loss": loss,
            **{f"grad.{name}": torch.zeros_like(p) if g is None else g
               for (name, p), g in zip(params.items(), gradients)
               if not name.endswith("b_key")}}          # which softmax takes away: rounding


DERIVATIONS = {"contrastive": contrastive, "losses": losses, "tower": training_step,
               "tower_padded": training_step}
PACKAGES = {"contrastive": "transformers"}


if __name__ == "__main__":
    record_contrastive("square", seed=0, B=5, D=6, Z=4)
    record_contrastive("one_pair", seed=1, B=1, D=3, Z=2)
    record_contrastive("float32", seed=2, B=6, D=8, Z=5, dtype=torch.float32)
    images_first = [0] * 12 + [1] * 4
    record_losses("roomy", seed=3, modality=images_first, E=4, capacity=16, soft_minimum=(4, 3.9))
    record_losses("dropping", seed=4, modality=images_first, E=4, capacity=4, soft_minimum=(4, 4))
    record_losses("threshold_met", seed=5, modality=[1, 0, 0, 1, 0, 0, 1, 0], E=3, capacity=3,
                  soft_minimum=(1, 1.5), scale=0.3)
    record_losses("images_alone", seed=6, modality=[0] * 9, E=5, capacity=2, soft_minimum=(5, 5))
    record_losses("padded", seed=7, modality=[0] * 8 + [1, 1, -1, -1, 1, 1, 1, -1], E=4,
                  capacity=3, soft_minimum=(4, 4), scale=2.0)
    record_losses("ties", seed=14, modality=images_first, E=4, capacity=3, soft_minimum=(4, 4),
                  ties=True)
    record_losses("float32", seed=8, modality=images_first, E=4, capacity=4, soft_minimum=(4, 4),
                  dtype=torch.float32)
    record_tower("roomy", seed=9, B=3, capacity=21, soft_minimum=(2, 3))
    record_tower("dropping", seed=10, B=4, capacity=6, soft_minimum=(3, 2.5))
    record_tower("float32", seed=11, B=3, capacity=8, soft_minimum=(3, 3), dtype=torch.float32)
    record_tower("roomy", seed=12, B=3, capacity=21, soft_minimum=(3, 3), padded=True)
    record_tower("dropping", seed=13, B=4, capacity=5, soft_minimum=(3, 3), padded=True)

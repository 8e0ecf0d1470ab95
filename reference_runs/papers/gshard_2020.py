"""Record GShard (arXiv:2006.16668v1) in PyTorch, and others' implementations of it.

    python -m reference_runs.papers.gshard_2020

Algorithm 1 is written as printed: one group at a time, one token after the other, a counter for
each expert; an expert is applied to one token at a time. The Transformer around it is made of
torch.nn.functional's operators. Gradients are torch.autograd's.

Third parties are run unmodified, but for two things. Their draws are given: fairscale's and
DeepSpeed's Gumbel samples by the table in which they keep their sampler, the uniform ones of
transformers and mixture-of-experts by torch.rand_like and Tensor.uniform_. And where they ask for
float32, they get float64.
"""
import math
import tempfile
from contextlib import contextmanager
from importlib.metadata import version
from unittest import mock

import torch
import torch.nn.functional as F

from reference_runs.engine.nn import t5_bucket
from reference_runs.recorder import gradients, save, start

PAPER = {"kind": "transcription", "of": "arXiv:2006.16668v1, Algorithm 1 and Eqs. (1)-(3)"}
TRANSFORMER = {"kind": "transcription", "operators": "torch.nn.functional",
               "of": "arXiv:2006.16668v1, Section 2.1, as the file's header has it; "
                     "arXiv:1910.10683v4, Section 2.1"}
CPU = torch.device("cpu")


def third_party(repository, release, entry, **more):
    return {"kind": "third-party", "repository": f"https://github.com/{repository}",
            "commit": f"v{release}", "entry": entry, **more}


# -- Algorithm 1, one group ----------------------------------------------------------------------

def rows(values, *shape):
    """A row on another; of none, an array of this shape without rows."""
    return torch.stack(values) if values else torch.zeros(0, *shape, dtype=torch.float64)


def top_two(row):
    """The largest and the second largest of a row; of equals the first."""
    e1 = max(range(len(row)), key=lambda e: (row[e].item(), -e))
    e2 = max((e for e in range(len(row)) if e != e1), key=lambda e: (row[e].item(), -e))
    return e1, e2


def algorithm_1(logits, rnd, C, present):
    """logits [S, E], rnd [S], present: S of bool. What it has made, by name."""
    S, E = logits.shape
    found = {"expert": [[0, 0] for _ in range(S)], "gate": [[None, None] for _ in range(S)],
             "slot": [[0, 0] for _ in range(S)], "keep": [[False, False] for _ in range(S)],
             "margin": [], "wanted": []}
    G = {}                                                  # (s, e, slot): weight
    c = [0] * E                                                                        # line 1
    g = [torch.exp(row - row.max().detach()) for row in logits]
    g = [row / row.sum() for row in g]                                                 # line 2
    n = max(sum(present), 1)
    m = [sum([g[s][e] for s in range(S) if present[s]], 0 * rows(g, E)[:, e].sum()) / n
         for e in range(E)]                                                            # line 3
    for s in range(S):                                                                 # line 4
        e1, e2 = top_two(g[s])                                                         # line 5
        g1 = g[s][e1] / (g[s][e1] + g[s][e2])                                          # line 6
        found["expert"][s] = [e1, e2]
        third = max([logits[s, e].item() for e in range(E) if e not in (e1, e2)],
                    default=-math.inf)
        found["margin"].append([logits[s, e1].item() - logits[s, e2].item(),
                                logits[s, e2].item() - third])
        found["gate"][s][0] = g1
        if not present[s]:
            continue
        slot = c[e1]                                                                   # line 7
        found["slot"][s][0] = slot
        if slot < C:                                                                   # line 8
            G[s, e1, slot] = g1                                                        # line 9
            found["keep"][s][0] = True
        c[e1] = slot + 1                                                               # line 11
    first = list(c)
    aux_loss = sum(c[e] / n * m[e] for e in range(E)) / E                              # line 13
    for s in range(S):                                                                 # line 14
        e1, e2 = top_two(g[s])                                                         # line 15
        g2 = g[s][e2] / (g[s][e1] + g[s][e2])                                          # line 16
        found["gate"][s][1] = g2
        found["wanted"].append(2 * g2.item() > rnd[s].item())
        if not present[s]:
            continue
        slot = c[e2]                                                                   # line 18
        found["slot"][s][1] = slot
        if slot < C and 2 * g2.item() > rnd[s].item():                                 # line 19
            G[s, e2, slot] = g2                                                        # line 20
            found["keep"][s][1] = True
        c[e2] = slot + 1                                                               # line 22
    weights = torch.zeros(S, E, C, dtype=logits.dtype)
    for place, weight in G.items():
        weights = weights.index_put(tuple(torch.tensor([i]) for i in place), weight)
    f = torch.tensor(first, dtype=logits.dtype) / n
    return {**found, "gates": rows(g, E), "f": f, "m": torch.stack(m), "count_first": first,
            "count": c, "weights": weights, "aux_loss": aux_loss}


def by_choice(x, found, w_in, w_out):
    """What the experts of one group are given and make, for each choice; zeros if not kept."""
    made = {"expert_inputs": [], "hidden": [], "expert_outputs": []}
    for row, experts, kept in zip(x, found["expert"], found["keep"]):
        inputs = torch.stack([row * int(k) for k in kept])
        hidden = torch.stack([F.relu(a @ w_in[e]) for a, e in zip(inputs, experts)])
        outputs = torch.stack([a @ w_out[e] for a, e in zip(hidden, experts)])
        for name, value in zip(made, (inputs, hidden, outputs)):
            made[name].append(value)
    widths = zip(made, (w_in.shape[1], w_in.shape[2], w_out.shape[2]))
    return {name: rows(made[name], 2, width) for name, width in widths}


def experts_of(x, weights, w_in, w_out):
    """y_s for one group, Eqs. (2) and (3). x [S, D], weights [S, E, C]"""
    S, E, C = weights.shape
    found = []
    for s in range(S):
        y = 0 * x[s] @ w_in[0] @ w_out[0]
        for e in range(E):
            for slot in range(C):
                if weights[s, e, slot] != 0:
                    y = y + weights[s, e, slot] * (F.relu(x[s] @ w_in[e]) @ w_out[e])
        found.append(y)
    return rows(found, w_out.shape[2])


def run_layer(x, u, capacity, params, used=None):
    """All outputs for x [G, S, D], by name; then the mean loss over groups."""
    G, S, _ = x.shape
    logits = torch.stack([rows([row @ params["w_gate"] for row in group], params["w_gate"].shape[1])
                          for group in x])
    present = [[True] * S] * G if used is None else used.tolist()
    groups = [algorithm_1(logits[g], u[g], capacity, present[g]) for g in range(G)]
    y = torch.stack([experts_of(x[g], groups[g]["weights"], params["w_in"], params["w_out"])
                     for g in range(G)])
    out = {"logits": logits, **{name: torch.stack([group[name] for group in groups])
                                for name in ("gates", "f", "m", "weights", "aux_loss")}, "y": y}
    made = [by_choice(x[g], groups[g], params["w_in"], params["w_out"]) for g in range(G)]
    out.update({name: torch.cat([group[name] for group in made]) for name in made[0]})
    out["margin"] = torch.tensor([row for group in groups for row in group["margin"]],
                                 dtype=logits.dtype).reshape(G * S, 2)
    out["wanted"] = torch.tensor([group["wanted"] for group in groups], dtype=torch.bool)
    for name, dtype in (("expert", torch.int64), ("slot", torch.int64), ("keep", torch.bool)):
        out[name] = torch.tensor([row for group in groups for row in group[name]],
                                 dtype=dtype).reshape(G * S, 2)
    out["gate"] = rows([torch.stack(row) for group in groups for row in group["gate"]], 2)
    for name in ("count_first", "count"):
        out[name] = torch.tensor([group[name] for group in groups])
    return out, out["aux_loss"].mean()


def tracked(**leaves):
    for leaf in leaves.values():
        leaf.requires_grad_()
    return leaves


def record(kind, case, seed, source, inputs, params, settings, packages=("torch", "numpy")):
    groups = {"set": settings, "param": params, "out": DERIVATIONS[kind](inputs, params, settings),
              "in": inputs}
    if kind in ("layer", "layer_padded", "transformer"):
        groups = {"param": params, **groups}
    save(f"gshard_2020/{kind}/{case}", source=source, seed=seed, packages=packages,
         **{name: group for name, group in groups.items() if group})


class Draw:
    """Draws of one case."""

    def __init__(self, seed):
        self.rng = start(seed)

    def normal(self, *shape, scale=1.0):
        return scale * torch.from_numpy(self.rng.standard_normal(shape))

    def uniform(self, *shape):
        return torch.from_numpy(self.rng.random(shape))

    def gumbel(self, *shape):
        return torch.from_numpy(self.rng.gumbel(size=shape))

    def present(self, *shape, share=0.7):
        return torch.from_numpy(self.rng.random(shape) < share)

    def integers(self, high, *shape):
        return torch.from_numpy(self.rng.integers(0, high, shape))

    def experts(self, D, H, E):
        return {"w_gate": self.normal(D, E, scale=D ** -0.5),
                "w_in": self.normal(E, D, H, scale=D ** -0.5),
                "w_out": self.normal(E, H, D, scale=H ** -0.5)}


def layer(inputs, params, settings):
    leaves = tracked(x=inputs["x"], **params)
    out, aux_loss = run_layer(inputs["x"], inputs["u"], settings["capacity"], params,
                              inputs.get("used"))
    return {**out, **gradients({"y": (out["y"] * inputs["cotangent"]).sum(),
                                "aux_loss": aux_loss}, leaves)}


def record_layer(case, seed, G, S, D, H, E, capacity=None, change=None, padded=False):
    """``change`` is given x and the gate's weights, and returns them changed."""
    draw = Draw(seed)
    x, u, cotangent, params = (draw.normal(G, S, D), draw.uniform(G, S), draw.normal(G, S, D),
                               draw.experts(D, H, E))
    used = draw.present(G, S) if padded else None
    if padded:
        used[-1] = False                                    # a group of padding alone
    if change:
        x, params["w_gate"] = change(x, params["w_gate"])
    capacity = 2 * S // E if capacity is None else capacity
    inputs = {"x": x, "u": u, "cotangent": cotangent}
    record("layer_padded" if padded else "layer", case, seed, PAPER,
           {**inputs, "used": used} if padded else inputs, params, {"capacity": capacity})


def tied(x, w_gate):
    """Whole numbers, and each expert's logits twice: ties for first and for second."""
    w_gate = torch.round(2 * w_gate)
    w_gate[:, 1::2] = w_gate[:, ::2]
    return torch.round(x), w_gate


def starved(x, w_gate):
    """The last expert is nobody's first or second."""
    x[..., 0], w_gate[0, -1] = 1.0, -30.0
    return x, w_gate


def all_to_one(x, w_gate):
    """Expert 0 is everybody's first."""
    x[..., 0], w_gate[0, 0] = 1.0, 8.0
    return x, w_gate


# -- fairscale and DeepSpeed ---------------------------------------------------------------------

@contextmanager
def given(gumbel_map, gumbel):
    """The draws, and float64 for float32."""
    with mock.patch.dict(gumbel_map, {CPU: lambda shape: gumbel}), \
            mock.patch.object(torch, "float", torch.float64), \
            mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        yield


class Expert(torch.nn.Module):
    def __init__(self, w_in, w_out):
        super().__init__()
        self.w_in, self.w_out = w_in, w_out

    def forward(self, x):
        return F.relu(x @ self.w_in) @ self.w_out


@contextmanager
def one_process():
    with tempfile.NamedTemporaryFile() as file:
        torch.distributed.init_process_group("gloo", init_method=f"file://{file.name}", rank=0,
                                             world_size=1)
        yield
        torch.distributed.destroy_process_group()


def fairscale(inputs, params, settings):
    """MOELayer with Top2Gate, one process with all experts."""
    from fairscale.nn.moe import moe_layer, top2gate

    x, leaves = inputs["x"], tracked(x=inputs["x"], **params)
    D, E = params["w_gate"].shape
    gate = top2gate.Top2Gate(D, E)
    del gate.wg.weight
    gate.wg.weight = params["w_gate"].T
    experts = torch.nn.ModuleList([Expert(params["w_in"][e], params["w_out"][e])
                                   for e in range(E)])
    with one_process(), given(top2gate.gumbel_map, inputs["gumbel"]):
        layer = moe_layer.MOELayer(gate, experts)
        y = layer(x[:, None])[:, 0]
        _, weights, dispatched = gate(x)
        return {"dispatched": dispatched, "weights": weights, "aux_loss": layer.l_aux, "y": y,
                **gradients({"y": (y * inputs["cotangent"]).sum(), "aux_loss": layer.l_aux},
                            leaves)}


def record_fairscale(case, seed, S, D, H, E, change=None):
    draw = Draw(seed)
    x, gumbel, cotangent, params = (draw.normal(S, D), draw.gumbel(S, E), draw.normal(S, D),
                                    draw.experts(D, H, E))
    if change:
        x, params["w_gate"] = change(x, params["w_gate"])
    record("fairscale", case, seed,
           third_party("facebookresearch/fairscale", version("fairscale"),
                       "fairscale.nn.moe: MOELayer, Top2Gate", dtype="float64 for float32"),
           {"x": x, "gumbel": gumbel, "cotangent": cotangent}, params, {},
           ("torch", "numpy", "fairscale"))


def top2gating(logits, gumbel, *capacity):
    """The gate alone: its loss, weights, mask and counts; capacity by a factor and a least one."""
    from deepspeed.moe import sharded_moe

    with given(sharded_moe.gumbel_map, gumbel):
        return sharded_moe.top2gating(logits + 0, *capacity)      # it adds the draws in place


def deepspeed(inputs, params, settings):
    leaves = tracked(logits=inputs["logits"])
    aux_loss, weights, dispatched, count = top2gating(inputs["logits"], inputs["gumbel"], 0.0,
                                                      settings["capacity"])
    return {"count": count, "dispatched": dispatched, "weights": weights, "aux_loss": aux_loss,
            **gradients({"weights": (weights * inputs["cotangent"]).sum(), "aux_loss": aux_loss},
                        leaves)}


def record_deepspeed(case, seed, S, E, capacity_factor, min_capacity):
    draw = Draw(seed)
    logits, gumbel = draw.normal(S, E), draw.gumbel(S, E)
    _, weights, _, _ = top2gating(logits, gumbel, capacity_factor, min_capacity)
    record("deepspeed", case, seed,
           third_party("deepspeedai/DeepSpeed", version("deepspeed"),
                       "deepspeed.moe.sharded_moe: top2gating", dtype="float64 for float32"),
           {"logits": logits, "gumbel": gumbel, "cotangent": draw.normal(*weights.shape)}, {},
           {"capacity": weights.shape[-1]}, ("torch", "numpy", "deepspeed"))


# -- Mesh TensorFlow's gating, as mixture-of-experts has it in PyTorch ---------------------------

def top2_gating(inputs, w_gate, policy, threshold=None, **settings):
    """Top2Gating in training: the gate alone.

    Its policy "threshold" lacks an axis and fails, unless S is E or 1.
    """
    from mixture_of_experts.mixture_of_experts import Top2Gating

    gate = Top2Gating(*w_gate.shape, second_policy_train=policy, second_threshold_train=threshold,
                      **settings).train()
    del gate.w_gating
    gate.w_gating = w_gate
    used = inputs["used"].double() if "used" in inputs else None
    with mock.patch.object(torch.Tensor, "uniform_", lambda zeros, low, high: inputs["u"]), \
            mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        return gate(inputs["x"], used)


def mesh(inputs, params, settings):
    """The capacity is that of a factor, at least 4."""
    leaves = tracked(x=inputs["x"], **params)
    _, S, _ = inputs["x"].shape
    E, capacity = params["w_gate"].shape[1], settings["capacity"]
    dispatched, weights, aux_loss = top2_gating(
        inputs, params["w_gate"], "random" if "u" in inputs else "all", settings.get("threshold"),
        capacity_factor_train=(capacity + 0.5) * E / S)       # which is rounded down
    assert weights.shape[-1] == capacity
    return {"dispatched": dispatched != 0, "weights": weights, "aux_loss": aux_loss,
            **gradients({"weights": (weights * inputs["cotangent"]).sum(), "aux_loss": aux_loss},
                        leaves)}


def record_mesh(kind, case, seed, G, S, D, E, policy, threshold=None, padded=False, **settings):
    draw = Draw(seed)
    x, u, w_gate, used = (draw.normal(G, S, D), draw.uniform(G, S), draw.normal(D, E),
                          draw.present(G, S))
    inputs = {"x": x, **({"u": u} if policy == "random" else {}),
              **({"used": used} if padded else {})}
    _, weights, _ = top2_gating(inputs, w_gate, policy, threshold, **settings)
    inputs = {**inputs, "cotangent": draw.normal(*weights.shape)}
    record(kind, case, seed,
           third_party("lucidrains/mixture-of-experts", version("mixture-of-experts"),
                       "mixture_of_experts.mixture_of_experts: Top2Gating",
                       second_policy_train=policy, dtype="float64 for float32"),
           {name: inputs[name] for name in ("x", "u", "cotangent", "used") if name in inputs},
           {"w_gate": w_gate},
           {"capacity": weights.shape[-1], **({} if threshold is None else
                                              {"threshold": threshold})},
           ("torch", "numpy", "mixture-of-experts"))


# -- transformers --------------------------------------------------------------------------------

def nllb_layer(inputs, params, capacity, evaluate, dropout=0.2, **settings):
    """NllbMoeSparseMLP of these parameters; its output, weights and first choices.

    The capacity is configured, or that of training; in evaluation a fraction of all tokens.
    """
    from transformers import NllbMoeConfig
    from transformers.models.nllb_moe import modeling_nllb_moe as nllb

    E, D, H = params["w_in"].shape
    layer = nllb.NllbMoeSparseMLP(NllbMoeConfig(
        d_model=D, num_experts=E, expert_capacity=capacity, activation_dropout=0.0,
        moe_token_dropout=dropout if evaluate else 0.0, router_ignore_padding_tokens=False,
        **settings), H).double().train(not evaluate)
    layer.router.dtype = torch.float64

    def give(module, name, weight):
        delattr(module, name)
        setattr(module, name, weight)

    give(layer.router.classifier, "weight", params["w_gate"].T)
    for e, expert in enumerate(layer.experts.values()):
        for part, name in (expert.fc1, "in"), (expert.fc2, "out"):
            give(part, "weight", params[f"w_{name}"][e].T)
            give(part, "bias", params[f"b_{name}"][e])
    with mock.patch.object(torch, "rand_like", lambda like: inputs["u"].to(like.dtype)):
        y, (weights, first) = layer(inputs["x"][None],
                                    ~inputs["used"] if "used" in inputs else None)
    return layer, y[0], weights, first


NLLB = {"nllb": {}, "nllb_padded": {}, "nllb_prioritized": {"batch_prioritized_routing": True},
        "nllb_random": {"second_expert_policy": "random"},
        "nllb_normalized_before": {"normalize_router_prob_before_dropping": True},
        "nllb_random_normalized_before": {"second_expert_policy": "random",
                                          "normalize_router_prob_before_dropping": True}}


def nllb(kind):
    """NllbMoeSparseMLP, and load_balancing_loss_func of its one layer."""
    def derive(inputs, params, settings):
        from transformers.models.nllb_moe import modeling_nllb_moe

        leaves, scale = tracked(x=inputs["x"], **params), settings["scale"]
        _, y, weights, first = nllb_layer(
            inputs, params, settings["capacity"], scale < 1, 1 - scale,
            moe_eval_capacity_token_fraction=-1.0, **NLLB[kind])
        aux_loss = modeling_nllb_moe.load_balancing_loss_func(weights, first[:, None])
        return {"first": first, "dispatched": weights != 0, "weights": weights, "y": y,
                "aux_loss": aux_loss,
                **gradients({"y": (y * inputs["cotangent"]).sum(), "aux_loss": aux_loss}, leaves)}
    return derive


def record_nllb(kind, case, seed, T, D, H, E, capacity=None, evaluate=False, padded=False,
                change=None, **settings):
    draw = Draw(seed)
    x, cotangent, params = draw.normal(T, D), draw.normal(T, D), draw.experts(D, H, E)
    params.update(b_in=draw.normal(E, H), b_out=draw.normal(E, D))
    u = draw.uniform(T).float().double()
    used = draw.present(T)
    if change:
        x, params["w_gate"] = change(x, params["w_gate"])
    inputs = {"x": x, "cotangent": cotangent}
    if NLLB[kind].get("second_expert_policy") == "random":
        inputs["u"] = u
    if padded:
        inputs["used"] = used
    layer, *_ = nllb_layer(inputs, params, capacity, evaluate, **NLLB[kind], **settings)
    record(kind, case, seed,
           third_party("huggingface/transformers", version("transformers"),
                       "NllbMoeSparseMLP, NllbMoeTop2Router, load_balancing_loss_func",
                       **NLLB[kind], **settings),
           inputs, params,
           {"capacity": layer.router.expert_capacity, "scale": 0.8 if evaluate else 1.0},
           ("torch", "numpy", "transformers"))


def nllb_loss(inputs, params, settings):
    """The loss of several layers, as NllbMoeForConditionalGeneration makes it.

    Means over layers are float32 there: exact for a power of two.
    """
    from transformers import NllbMoeConfig
    from transformers.models.nllb_moe import modeling_nllb_moe as nllb

    x, w_gate, outputs = inputs["x"], params["w_gate"].requires_grad_(), []
    _, D, E = w_gate.shape
    for layer in range(len(x)):
        router = nllb.NllbMoeTop2Router(NllbMoeConfig(
            d_model=D, num_experts=E, expert_capacity=settings["capacity"])).train()
        router.dtype = torch.float64
        del router.classifier.weight
        router.classifier.weight = w_gate[layer].T
        top_1_mask, weights = router(x[layer][None])
        outputs.append((weights, top_1_mask.argmax(dim=-1)))
    joined = nllb.NllbMoeForConditionalGeneration._unpack_router_logits(None, outputs)
    aux_loss = nllb.load_balancing_loss_func(*joined)
    return {"first": torch.stack([first for _, first in outputs]), "aux_loss": aux_loss,
            "grad.w_gate": torch.autograd.grad(aux_loss, w_gate)[0]}


def record_nllb_loss(case, seed, L, T, D, E, capacity):
    draw = Draw(seed)
    record("nllb_loss", case, seed,
           third_party("huggingface/transformers", version("transformers"),
                       "NllbMoeTop2Router, _unpack_router_logits, load_balancing_loss_func"),
           {"x": draw.normal(L, T, D)}, {"w_gate": draw.normal(L, D, E)},
           {"capacity": capacity}, ("torch", "numpy", "transformers"))


# -- The Transformer -----------------------------------------------------------------------------

def attention(p, name, x, memory, bias):
    """One head after the other; p holds parameters by name."""
    y = 0
    for a in range(p[f"{name}.w_query"].shape[1]):
        query, key, value = (z @ p[f"{name}.{w}"][:, a] for z, w in
                             [(x, "w_query"), (memory, "w_key"), (memory, "w_value")])
        read = F.scaled_dot_product_attention(query, key, value, attn_mask=bias[:, a], scale=1.0)
        y = y + read @ p[f"{name}.w_out"][a]
    return y


def stack(p, name, embedding, words, u, used, n_groups, memory=None, memory_used=None):
    """One stack: its output, and what ``run_layer`` found in each layer with experts."""
    B, S = words.shape
    table = p[f"{name}.position_table"]
    causal = memory is not None
    bias = torch.stack([torch.stack([table[t5_bucket(r - s, len(table), 128, not causal)]
                                     for r in range(S)]) for s in range(S)])       # [S, S, A]
    bias = bias.permute(2, 0, 1).expand(B, -1, -1, -1)
    hidden = ~used[:, None, None, :].expand(B, 1, S, S)
    if causal:
        hidden = hidden | torch.ones(S, S, dtype=torch.bool).triu(1)
    bias = bias.masked_fill(hidden, -math.inf)
    x, found = F.embedding(words, p[embedding]), []
    D = x.shape[-1]

    def norm(x, scale):
        return F.rms_norm(x, (D,), p[scale], eps=1e-6)

    for i in range(u.shape[0]):
        layer = f"{name}.layers.{i}"
        h = norm(x, f"{layer}.attention_norm")
        x = x + attention(p, f"{layer}.attention", h, h, bias)
        if causal:
            h = norm(x, f"{layer}.cross_norm")
            seen = torch.zeros(B, p[f"{layer}.cross.w_query"].shape[1], S, memory.shape[1],
                               dtype=x.dtype).masked_fill(~memory_used[:, None, None], -math.inf)
            x = x + attention(p, f"{layer}.cross", h, memory, seen)
        h = norm(x, f"{layer}.feed_forward_norm")
        experts = {w: p.get(f"{layer}.feed_forward.{w}") for w in ("w_gate", "w_in", "w_out")}
        if experts["w_gate"] is None:
            x = x + F.linear(F.relu(F.linear(h, experts["w_in"][0].T)), experts["w_out"][0].T)
            continue
        size = B * S // n_groups
        out, aux_loss = run_layer(
            h.reshape(n_groups, size, D), u[i].reshape(n_groups, size),
            2 * size // experts["w_in"].shape[0], experts, used.reshape(n_groups, size))
        x = x + out["y"].reshape(x.shape)
        found.append((out, aux_loss))
    return norm(x, f"{name}.norm"), found


def transformer(inputs, params, settings):
    leaves, n_groups = tracked(**params), settings["n_groups"]
    memory, encoded = stack(params, "encoder", "source_embedding", inputs["source"],
                            inputs["draws.encoder"], inputs["source_used"], n_groups)
    y, decoded = stack(params, "decoder", "target_embedding", inputs["target"],
                       inputs["draws.decoder"], inputs["target_used"], n_groups, memory,
                       inputs["source_used"])
    logits = y @ params["w_logits"]
    outputs = encoded + decoded
    aux_loss = sum(loss for _, loss in outputs) / len(outputs)
    return {**{f"routings.{i}.{name}": out[name] for i, (out, _) in enumerate(outputs)
               for name in ("expert", "slot", "keep", "gate")},
            "logits": logits, "aux_loss": aux_loss,
            **gradients({"logits": (logits * inputs["cotangent"]).sum(), "aux_loss": aux_loss},
                        leaves)}


def record_transformer(case, seed, B, S, R, D, A, W, H, E, V, n_groups, n_buckets=8):
    draw = Draw(seed)
    params = {"source_embedding": draw.normal(V + 1, D), "target_embedding": draw.normal(V, D)}
    for name in ("encoder", "decoder"):
        for i in range(2):
            layer, parts = f"{name}.layers.{i}", ["attention"]
            if name == "decoder":
                parts.append("cross")
            for part in parts:
                params[f"{layer}.{part}_norm"] = 1 + draw.normal(D, scale=0.1)
                for w in ("w_query", "w_key", "w_value"):
                    params[f"{layer}.{part}.{w}"] = draw.normal(D, A, W, scale=D ** -0.5)
                params[f"{layer}.{part}.w_out"] = draw.normal(A, W, D, scale=(A * W) ** -0.5)
            params[f"{layer}.feed_forward_norm"] = 1 + draw.normal(D, scale=0.1)
            experts = draw.experts(D, H, E) if i == 0 else draw.experts(D, H + 1, 1)
            if i == 1:
                del experts["w_gate"]
            params.update({f"{layer}.feed_forward.{w}": a for w, a in experts.items()})
        params[f"{name}.position_table"] = draw.normal(n_buckets, A)
        params[f"{name}.norm"] = 1 + draw.normal(D, scale=0.1)
    params["w_logits"] = draw.normal(D, V)
    source, target = draw.integers(V + 1, B, S), draw.integers(V, B, R)
    source_used, target_used = draw.present(B, S), draw.present(B, R)
    source_used[:, 0] = target_used[:, 0] = True            # someone to read, for everybody
    u_source, u_target = draw.uniform(2, B, S), draw.uniform(2, B, R)
    cotangent = draw.normal(B, R, V) * target_used[..., None]
    record("transformer", case, seed, TRANSFORMER,
           {"source": source, "target": target, "source_used": source_used,
            "target_used": target_used, "draws.encoder": u_source, "draws.decoder": u_target,
            "cotangent": cotangent}, params, {"n_groups": n_groups})


DERIVATIONS = {"layer": layer, "layer_padded": layer, "fairscale": fairscale,
               "deepspeed": deepspeed, "mesh": mesh, "mesh_padded": mesh, "mesh_all": mesh,
               **{kind: nllb(kind) for kind in NLLB}, "nllb_loss": nllb_loss,
               "transformer": transformer}
THIRD_PARTY = {"fairscale": "fairscale", "deepspeed": "deepspeed",
               **dict.fromkeys(("mesh", "mesh_padded", "mesh_all"), "mixture-of-experts"),
               **dict.fromkeys((*NLLB, "nllb_loss"), "transformers")}


if __name__ == "__main__":
    small = {"D": 4, "H": 5}
    record_layer("roomy", seed=0, G=1, S=8, E=4, capacity=16, **small)
    record_layer("overflowing", seed=1, G=1, S=12, E=4, capacity=3, **small)
    record_layer("paper_capacity", seed=2, G=1, S=12, E=4, **small)
    record_layer("ties", seed=3, G=1, S=10, E=4, capacity=4, change=tied, **small)
    record_layer("starved", seed=4, G=1, S=8, E=4, change=starved, **small)
    record_layer("all_to_one", seed=5, G=1, S=8, E=4, change=all_to_one, **small)
    record_layer("several_groups", seed=6, G=4, S=4, E=4, **small)
    record_layer("two_experts", seed=7, G=2, S=4, E=2, capacity=3, **small)
    record_layer("one_token", seed=8, G=1, S=1, E=2, **small)
    record_layer("padded", seed=9, G=3, S=6, E=3, capacity=2, padded=True, **small)

    record_fairscale("roomy", seed=10, S=8, E=4, **small)
    record_fairscale("overflowing", seed=11, S=12, E=4, change=all_to_one, **small)
    record_fairscale("starved", seed=12, S=9, E=3, change=starved, **small)
    record_deepspeed("roomy", seed=13, S=8, E=4, capacity_factor=2.0, min_capacity=4)
    record_deepspeed("overflowing", seed=14, S=12, E=4, capacity_factor=0.5, min_capacity=2)
    record_deepspeed("rounded_up", seed=15, S=9, E=4, capacity_factor=1.0, min_capacity=0)

    record_nllb("nllb", "training", seed=16, T=12, E=4, **small)
    record_nllb("nllb", "overflowing", seed=17, T=12, E=4, capacity=3, **small)
    record_nllb("nllb", "evaluation", seed=18, T=10, E=4, evaluate=True,
                moe_eval_capacity_token_fraction=0.25, **small)
    record_nllb("nllb", "all_to_one", seed=19, T=8, E=4, capacity=4, change=all_to_one, **small)
    record_nllb("nllb_padded", "padded", seed=20, T=12, E=4, capacity=3, padded=True, **small)
    record_nllb("nllb_prioritized", "prioritized", seed=21, T=12, E=4, capacity=3, **small)
    record_nllb("nllb_random", "random", seed=22, T=12, E=4, capacity=3, **small)
    record_nllb("nllb_normalized_before", "overflowing", seed=23, T=12, E=4, capacity=3,
                **small)
    record_nllb("nllb_normalized_before", "evaluation", seed=24, T=8, E=3, evaluate=True,
                **small)
    record_nllb("nllb_random_normalized_before", "random", seed=25, T=12, E=4,
                capacity=3, **small)

    record_nllb_loss("two_layers", seed=28, L=2, T=12, D=4, E=4, capacity=3)
    record_nllb_loss("four_layers", seed=34, L=4, T=10, D=4, E=3, capacity=5)

    gate = {"D": 4, "E": 4}
    record_mesh("mesh", "roomy", seed=29, G=1, S=8, policy="random", threshold=0.2,
                capacity_factor_train=4.0, **gate)
    record_mesh("mesh", "overflowing", seed=30, G=2, S=16, policy="random", threshold=0.5, **gate)
    record_mesh("mesh_padded", "padded", seed=31, G=2, S=14, policy="random", threshold=0.5,
                padded=True, **gate)
    record_mesh("mesh_all", "overflowing", seed=32, G=2, S=12, policy="all", **gate)
    record_mesh("mesh_all", "roomy", seed=33, G=1, S=10, policy="all", capacity_factor_train=2.0,
                **gate)

    model = {"D": 4, "A": 2, "W": 3, "H": 5, "V": 6}
    record_transformer("one_group", seed=26, B=2, S=5, R=4, E=3, n_groups=1, **model)
    record_transformer("several_groups", seed=27, B=3, S=4, R=6, E=4, n_groups=3, **model)

"""Record the sparsely-gated mixture of experts (arXiv:1701.06538v1) in PyTorch.

    python -m reference_runs.papers.sparsely_gated_2017

Written from the paper, row by row and expert by expert. Normal probabilities are those of
torch.distributions, the LSTMs torch.nn.LSTM, gradients torch.autograd's; of equal logits a stable
torch.sort takes the lower index first. The layer as davidmrau/mixture-of-experts has it, which is
no package, is written from its moe.py at commit f662999; Tensor2Tensor's, which
sparsely_gated_2017_tensor2tensor records by its own code, is derived here from expert_utils.py.
Nothing overflows: there is no capacity.
"""
import math
from functools import partial

import torch
from torch.distributions import Normal
from torch.nn.functional import cross_entropy, softplus

from reference_runs.recorder import gradients, save, start

torch.set_default_dtype(torch.float64)
STANDARD = Normal(torch.tensor(0.0), torch.tensor(1.0))
OPERATORS = {"probability": "torch.distributions.Normal.cdf"}


def source(what, **operators):
    return {"kind": "transcription", "of": f"Shazeer et al. 2017, {what}", **operators}


# -- One row -------------------------------------------------------------------------------------

def ranked(values):
    """Places of a row's entries, the largest first; of equals, the lower place."""
    return torch.sort(values.detach(), descending=True, stable=True).indices.tolist()


def kth_excluding(noisy, k, i):
    """The k-th largest of a row without its entry i; None if there are not so many. Of (8)"""
    others = [noisy[j] for j in range(len(noisy)) if j != i]
    if k > len(others):
        return None
    return others[ranked(torch.stack(others))[k - 1]]


def margins(noisy, k):
    """From each of the k largest to the next."""
    descending = torch.sort(noisy.detach(), descending=True).values.tolist() + [-math.inf]
    return torch.tensor([descending[i] - descending[i + 1] for i in range(k)])


def probability(clean, std, threshold):
    """(9) for one expert."""
    if threshold is None:
        return torch.tensor(1.0)
    return STANDARD.cdf((clean - threshold) / std)


def gating(x, w_gate, w_noise, epsilon, k, floor=0.0):
    """(3)-(5) and (9) for one row: x [D], epsilon [E]. ``floor`` is added to the noise's deviation.
    """
    E = w_gate.shape[1]
    clean = torch.stack([x @ w_gate[:, i] for i in range(E)])
    std = torch.stack([softplus(x @ w_noise[:, i]) + floor for i in range(E)])
    noise = torch.stack([epsilon[i] * std[i] for i in range(E)])
    noisy = torch.stack([clean[i] + noise[i] for i in range(E)])                     # (4)
    chosen = ranked(noisy)[:k]
    kept = torch.stack([noisy[i] if i in chosen else torch.tensor(-math.inf)
                        for i in range(E)])                                          # (5)
    gate = torch.softmax(kept, dim=0)                                                # (3)
    p = torch.stack([probability(clean[i], std[i], kth_excluding(noisy, k, i))
                     for i in range(E)])                                             # (9)
    return {"clean": clean, "std": std, "noise": noise, "noisy": noisy,
            "expert": torch.tensor(chosen), "margin": margins(noisy, k), "gate": gate, "p": p}


def gating_davidmrau(x, w_gate, w_noise, epsilon, k):
    """noisy_top_k_gating and _prob_in_top_k for one row, in training."""
    E = w_gate.shape[1]
    clean = x @ w_gate
    std = softplus(x @ w_noise) + 1e-2
    noise = epsilon * std
    noisy = clean + noise
    probs = torch.softmax(noisy, dim=0)
    chosen = ranked(probs)[:min(k + 1, E)]
    top = [probs[i] for i in chosen]               # k + 1 of them: probabilities, not logits
    total = sum(top[:k]) + 1e-6
    gate = torch.stack([probs[i] / total if i in chosen[:k] else torch.tensor(0.0)
                        for i in range(E)])
    p = []
    for i in range(E):
        if k == E:
            p.append((gate[i] > 0).to(torch.float64))       # _gates_to_load
        elif noisy[i] > top[k]:
            p.append(STANDARD.cdf((clean[i] - top[k]) / std[i]))
        else:
            p.append(STANDARD.cdf((clean[i] - top[k - 1]) / std[i]))
    return {"clean": clean, "std": std, "noise": noise, "noisy": noisy,
            "expert": torch.tensor(chosen[:k]), "margin": margins(noisy, k), "gate": gate,
            "p": torch.stack(p)}


def feed_forward(x, w_in, w_out):
    """One expert, of Appendix C.1: x [D]. Its hidden layer, and what it makes."""
    hidden = torch.relu(x @ w_in)
    return hidden, hidden @ w_out


def mixed(x, gates, experts):
    """(1) for one row: of as many experts, (w_in, w_out), as gates; and what it is made of."""
    made = [feed_forward(x, *expert) for expert in experts]
    return {"expert_inputs": torch.stack([x for _ in made]),
            "hidden": torch.stack([hidden for hidden, _ in made]),
            "expert_outputs": torch.stack([output for _, output in made]),
            "y": sum(gate * output for gate, (_, output) in zip(gates, made))}


def together(rows, *of_a_row):
    """Each thing of all rows; of none, as ``of_a_row`` says, names and widths."""
    if not rows:
        return {name: torch.zeros(0, *widths, dtype=torch.int64 if name == "expert" else None)
                for names, widths in of_a_row for name in names.split()}
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


# -- All rows ------------------------------------------------------------------------------------

def cv_squared(v):
    """Of nothing but zeros, 0."""
    v = v.reshape(-1)
    if not v.any():
        return 0 * v.sum()
    return ((v - v.mean()) ** 2).mean() / v.mean() ** 2


def cv_squared_davidmrau(v):
    if len(v) == 1:
        return 0 * v.sum()
    return v.var() / (v.mean() ** 2 + 1e-10)


def cv_squared_tensor2tensor(v):
    n = len(v) + 1e-10
    mean = v.sum() / n
    return ((v - mean) ** 2).sum() / n / (mean ** 2 + 1e-10)


def column_sums(rows, E):
    return torch.stack([sum((row[i] for row in rows), torch.tensor(0.0)) for i in range(E)])


def flat_layer(x, epsilon, w_gate, w_noise, w_in, w_out, k, gating=gating):
    """(1), (6) and (10)."""
    E, D, H = w_in.shape
    rows = [gating(x[t], w_gate, w_noise, epsilon[t], k) for t in range(len(x))]
    out = together(rows, ("clean std noise noisy", [E]), ("expert margin", [k]), ("gate p", [E]))
    counts = [sum(i in row["expert"].tolist() for row in rows) for i in range(E)]
    made = [mixed(x[t], row["gate"][row["expert"]],
                  [(w_in[i], w_out[i]) for i in row["expert"].tolist()])
            for t, row in enumerate(rows)]
    return {**out, "load_hard": torch.tensor(counts),
            **together(made, ("expert_inputs expert_outputs", [k, D]), ("hidden", [k, H]),
                       ("y", [D])),
            "importance": column_sums(out["gate"], E), "load": column_sums(out["p"], E)}


def with_losses(out, cotangent, leaves, cv_squared=cv_squared):
    losses = {"importance_loss": cv_squared(out["importance"]),                      # (7)
              "load_loss": cv_squared(out["load"])}                                  # (11)
    return {**out, **losses,
            **gradients({"y": (out["y"] * cotangent).sum(), **losses}, leaves)}


def tracked(**leaves):
    for leaf in leaves.values():
        leaf.requires_grad_()
    return leaves


def record(kind, case, seed, source, **groups):
    out = DERIVATIONS[kind](groups["in"], groups["param"], groups.get("set", {}))
    save(f"sparsely_gated_2017/{kind}/{case}", source=source, seed=seed, **groups, out=out)


class Draw:
    """Standard normal arrays of one case, in order; those that are leaves are kept by name."""

    def __init__(self, seed):
        self.rng = start(seed)
        self.leaves = {}

    def __call__(self, *shape):
        return torch.from_numpy(self.rng.standard_normal(shape))

    def leaf(self, name, *shape, scale=1.0):
        self.leaves[name] = scale * self(*shape)
        return self.leaves[name]

    def params(self, *but):
        return {name: leaf for name, leaf in self.leaves.items() if name not in but}


def flat_draws(draw, T, D, E, H):
    """x, the parameters of a layer, epsilon, cotangent."""
    return (draw.leaf("x", T, D), draw.leaf("gate.w_gate", D, E), draw.leaf("gate.w_noise", D, E),
            draw.leaf("w_in", E, D, H), draw.leaf("w_out", E, H, D), draw(T, E), draw(T, D))


EXPERTS = ("gate.w_gate", "gate.w_noise", "w_in", "w_out")


def layer(inputs, params, settings, gating=gating, cv_squared=cv_squared):
    leaves = tracked(x=inputs["x"], **params)
    out = flat_layer(inputs["x"], inputs["epsilon"], *(params[name] for name in EXPERTS),
                     settings["k"], gating)
    return with_losses(out, inputs["cotangent"], leaves, cv_squared)


def layer_davidmrau(inputs, params, settings):
    return layer(inputs, params, settings, gating_davidmrau, cv_squared_davidmrau)


def layer_tensor2tensor(inputs, params, settings):
    """As far as its code has names for it."""
    out = layer(inputs, params, settings, partial(gating, floor=1e-2), cv_squared_tensor2tensor)
    unnamed = ("noise", "margin", "expert_inputs", "hidden", "expert_outputs")
    return {name: value for name, value in out.items() if name not in unnamed}


def record_layer(case, seed, T, D, E, H, k, kind="layer", arrange=None, what="Eqs. (1)-(11)",
                 operators=OPERATORS):
    """``arrange`` changes what was drawn, in place."""
    draw = Draw(seed)
    x, w_gate, w_noise, w_in, w_out, epsilon, cotangent = flat_draws(draw, T, D, E, H)
    if arrange is not None:
        arrange(x, w_gate, w_noise, epsilon)
    record(kind, case, seed, source(what, **operators),
           **{"in": {"x": x, "epsilon": epsilon, "cotangent": cotangent}}, set={"k": k},
           param=draw.params("x"))


def record_davidmrau(case, seed, **shapes):
    record_layer(case, seed, kind="layer_davidmrau",
                 what="as davidmrau/mixture-of-experts, f662999, has it", **shapes)


def layer_padded(inputs, params, settings):
    """The flat layer given only the rows that are there."""
    x, epsilon, leaves = inputs["x"], inputs["epsilon"], tracked(x=inputs["x"], **params)
    T, D = x.shape
    there = [t for t in range(T) if inputs["present"][t]]
    out = flat_layer(x[there], epsilon[there], *(params[name] for name in EXPERTS), settings["k"])
    del out["load_hard"]
    rows = dict(zip(there, out["y"]))
    out["y"] = torch.stack([rows.get(t, torch.zeros(D)) for t in range(T)])
    return with_losses(out, inputs["cotangent"], leaves)


def record_padded(case, seed, present, D, E, H, k):
    draw = Draw(seed)
    x, _, _, _, _, epsilon, cotangent = flat_draws(draw, len(present), D, E, H)
    record("layer_padded", case, seed, source("Eqs. (1)-(11)", **OPERATORS),
           param=draw.params("x"), set={"k": k},
           **{"in": {"x": x, "epsilon": epsilon, "cotangent": cotangent,
                     "present": torch.tensor(present)}})


# What makes a case: the first input is 1 in every row where a weight is to be a bias.

def ties(x, w_gate, w_noise, epsilon):
    """Logits from a few values, and equal draws: rows with two, three and all experts equal."""
    x[:] = torch.round(x)
    w_gate[:], w_noise[:] = torch.round(w_gate / 2), torch.zeros_like(w_noise)
    epsilon[:] = torch.round(epsilon)
    x[0], epsilon[0] = 0, 0


def starved(x, w_gate, w_noise, epsilon):
    """Nobody comes to expert 1; and yet its probability is not 0."""
    x[:, 0], w_gate[0, 1] = 1, -9


def all_to_one(x, w_gate, w_noise, epsilon):
    """Every first choice is expert 2."""
    x[:, 0], w_gate[0, 2] = 1, 15


def no_noise(x, w_gate, w_noise, epsilon):
    epsilon[:] = 0


def zero_start(x, w_gate, w_noise, epsilon):
    """The gate of Appendix A, at zero."""
    w_gate[:], w_noise[:] = 0, 0


# -- Two levels, Appendix B ----------------------------------------------------------------------

def hierarchical(inputs, params, settings):
    x, leaves = inputs["x"], tracked(x=inputs["x"], **params)
    primary, secondary = ([params[f"{level}.{name}"] for name in ("w_gate", "w_noise")]
                          for level in ("primary", "secondary"))
    w_in, w_out, k1, k2 = params["w_in"], params["w_out"], settings["k1"], settings["k2"]
    T, (A, B, _, _) = len(x), w_in.shape
    first = [gating(x[t], *primary, inputs["epsilon_primary"][t], k1) for t in range(T)]
    second = {}      # by group and row, in this order
    for i in range(A):
        for t in range(T):
            if i in first[t]["expert"].tolist():
                place = first[t]["expert"].tolist().index(i)
                second[i, t] = gating(x[t], secondary[0][i], secondary[1][i],
                                      inputs["epsilon_secondary"][t, place], k2)
    expert, gate, made = [], [], []
    for t in range(T):
        pairs = [(i, j) for i in first[t]["expert"].tolist()
                 for j in second[i, t]["expert"].tolist()]
        products = [first[t]["gate"][i] * second[i, t]["gate"][j] for i, j in pairs]
        expert.append(torch.tensor([i * B + j for i, j in pairs]))
        gate.append(torch.stack(products))
        made.append(mixed(x[t], products,
                          [(w_in[i, j], w_out[i, j]) for i, j in pairs]))            # (12)

    importance, load = [], []
    for i in range(A):
        rows = [t for t in range(T) if (i, t) in second]                             # X^(i)
        load_of_group = sum(first[t]["p"][i] for t in range(T))
        for j in range(B):
            importance.append(sum((first[t]["gate"][i] * second[i, t]["gate"][j] for t in rows),
                                  torch.tensor(0.0)))                                # (13)
            load.append(load_of_group * sum(second[i, t]["p"][j] for t in rows) / len(rows)
                        if rows else torch.tensor(0.0))                              # (14)

    def level(name, rows):
        return {f"{name}.{key}": value for key, value in together(rows).items()}

    out = {**level("primary", first), **level("secondary", list(second.values())),
           "expert": torch.stack(expert), "gate": torch.stack(gate), **together(made),
           "importance": torch.stack(importance).reshape(A, B),
           "load": torch.stack(load).reshape(A, B)}
    return with_losses(out, inputs["cotangent"], leaves)


def record_hierarchical(case, seed, T, D, A, B, H, k1, k2, arrange=None):
    draw = Draw(seed)
    x, w_gate = draw.leaf("x", T, D), draw.leaf("primary.w_gate", D, A)
    draw.leaf("primary.w_noise", D, A)
    draw.leaf("secondary.w_gate", A, D, B)
    draw.leaf("secondary.w_noise", A, D, B)
    draw.leaf("w_in", A, B, D, H)
    draw.leaf("w_out", A, B, H, D)
    inputs = {"x": x, "epsilon_primary": draw(T, A), "epsilon_secondary": draw(T, k1, B),
              "cotangent": draw(T, D)}
    if arrange is not None:
        arrange(x, w_gate, inputs)
    record("hierarchical", case, seed, source("Eqs. (12)-(14)", **OPERATORS), **{"in": inputs},
           param=draw.params("x"), set={"k1": k1, "k2": k2})


def group_starved(x, w_gate, inputs):
    """Nobody comes to group 1."""
    x[:, 0], w_gate[0, 1] = 1, -40


def hierarchical_ties(x, w_gate, inputs):
    """The first two rows are 0 and without noise: all groups and experts are equal."""
    x[:2] = 0
    inputs["epsilon_primary"][:2] = 0
    inputs["epsilon_secondary"][:2] = 0


# -- The language model, Appendix C.1 ------------------------------------------------------------

def as_torch_lstm(w_in, w_hidden, b):
    """torch.nn.LSTM of these weights: its matrices are the transposes, its second bias is 0."""
    D, H = w_in.shape[0], w_hidden.shape[0]
    lstm = torch.nn.LSTM(D, H)
    weights = {"weight_ih_l0": w_in.T, "weight_hh_l0": w_hidden.T, "bias_ih_l0": b,
               "bias_hh_l0": torch.zeros(4 * H)}
    return lambda x: torch.func.functional_call(lstm, weights, (x,))[0]


def language_model(inputs, params, settings):
    words, targets, leaves = inputs["words"], inputs["targets"], tracked(**params)
    (S, B), V = words.shape, params["w_softmax"].shape[1]
    below, above = ([params[f"lstm_{place}.{name}"] for name in ("w_in", "w_hidden", "b")]
                    for place in ("below", "above"))

    def dropout(y, name):
        return y * inputs[f"keep.{name}"] / (1 - settings["drop_prob"])

    state = {"embedding": dropout(params["embedding.table"][words], "embedding")}
    state["lstm_below"] = state["embedding"] + dropout(
        as_torch_lstm(*below)(state["embedding"]), "lstm_below")
    rows = torch.stack([state["lstm_below"][s, b] for s in range(S) for b in range(B)])
    layer = flat_layer(rows, inputs["epsilon"], *(params[f"moe.{name}"] for name in EXPERTS),
                       settings["k"])
    y = torch.stack([torch.stack([layer["y"][s * B + b] for b in range(B)]) for s in range(S)])
    state["moe"] = state["lstm_below"] + dropout(torch.sigmoid(y), "moe")
    state["lstm_above"] = state["moe"] + dropout(
        as_torch_lstm(*above)(state["moe"]), "lstm_above")
    logits = state["lstm_above"] @ params["w_softmax"]
    errors = cross_entropy(logits.reshape(S * B, V), targets.reshape(-1), reduction="none")
    loss = errors.mean() + cv_squared(layer["importance"]) + cv_squared(layer["load"])
    flows = torch.autograd.grad(loss, list(leaves.values()))
    chosen = [layer["gate"][t, layer["expert"][t]] for t in range(S * B)]
    return {**{f"state.{name}": value for name, value in state.items()},
            "expert": layer["expert"], "gate": torch.stack(chosen),
            "importance": layer["importance"], "load": layer["load"], "logits": logits,
            "cross_entropy": errors.reshape(S, B), "loss": loss,
            **{f"grad.{name}": flow for name, flow in zip(leaves, flows)}}


def record_language_model(case, seed, S, B, V, D, E, H, k, drop_prob):
    draw = Draw(seed)
    draw.leaf("embedding.table", V, D)
    for place in ("below", "above"):
        for name, shape in ("w_in", (D, 4 * D)), ("w_hidden", (D, 4 * D)), ("b", (4 * D,)):
            draw.leaf(f"lstm_{place}.{name}", *shape, scale=0.5)
    for name, shape in zip(EXPERTS, ((D, E), (D, E), (E, D, H), (E, H, D))):
        draw.leaf(f"moe.{name}", *shape)
    draw.leaf("w_softmax", D, V)
    epsilon = draw(S * B, E)
    words, targets = torch.from_numpy(draw.rng.integers(0, V, (2, S, B)))
    keep = {f"keep.{name}": torch.from_numpy(draw.rng.random((S, B, D)) >= drop_prob)
            for name in ("embedding", "lstm_below", "moe", "lstm_above")}
    record("language_model", case, seed,
           source("Appendix C.1", lstm="torch.nn.LSTM", **OPERATORS), param=draw.leaves,
           set={"k": k, "drop_prob": drop_prob},
           **{"in": {"words": words, "targets": targets, "epsilon": epsilon, **keep}})


# -- Adam in little memory, Appendix D -----------------------------------------------------------

def factored_adam(inputs, params, settings):
    """Number by number."""
    flow_w, flow_b = inputs["gradients.w"], inputs["gradients.b"]
    learning_rate, beta2, epsilon = (settings[name] for name in (
        "learning_rate", "beta2", "epsilon"))
    N, E, D, H = flow_w.shape
    w, b = params["w"].clone(), params["b"].clone()
    rows, columns = torch.zeros(E, D, 1), torch.zeros(E, 1, H)
    of_b = [0.0] * H
    steps = []
    for t in range(N):
        second_moment = torch.zeros(E, D, H)
        correction = 1 - beta2 ** (t + 1)
        for e in range(E):
            for i in range(D):
                mean = sum(flow_w[t, e, i, j] ** 2 for j in range(H)) / H
                rows[e, i, 0] = beta2 * rows[e, i, 0] + (1 - beta2) * mean
            for j in range(H):
                mean = sum(flow_w[t, e, i, j] ** 2 for i in range(D)) / D
                columns[e, 0, j] = beta2 * columns[e, 0, j] + (1 - beta2) * mean
            middle = sum(rows[e, i, 0] for i in range(D)) / D
            for i in range(D):
                for j in range(H):
                    if middle > 0:
                        second_moment[e, i, j] = rows[e, i, 0] * columns[e, 0, j] / middle
                    w[e, i, j] -= learning_rate * flow_w[t, e, i, j] / (
                        math.sqrt(second_moment[e, i, j] / correction) + epsilon)
        for j in range(H):
            of_b[j] = beta2 * of_b[j] + (1 - beta2) * float(flow_b[t, j]) ** 2
            b[j] -= learning_rate * flow_b[t, j] / (math.sqrt(of_b[j] / correction) + epsilon)
        steps.append({"rows": rows.clone(), "columns": columns.clone(),
                      "second_moment": second_moment, "w": w.clone(), "b": b.clone()})
    return {name: torch.stack([step[name] for step in steps]) for name in steps[0]}


def record_factored_adam(case, seed, N, E, D, H, learning_rate, beta2, epsilon, unused=None):
    """Expert ``unused`` has gradients of 0 for the first half of the updates."""
    draw = Draw(seed)
    draw.leaf("w", E, D, H)
    draw.leaf("b", H)
    flow_w = draw(N, E, D, H) * 10 ** draw(N, E, D, H)
    flow_b = draw(N, H)
    if unused is not None:
        flow_w[:N // 2, unused] = 0
    record("factored_adam", case, seed, source("Appendix D"),
           **{"in": {"gradients.w": flow_w, "gradients.b": flow_b}}, param=draw.leaves,
           set={"learning_rate": learning_rate, "beta2": beta2, "epsilon": epsilon})


# -- Strictly balanced gating, Appendix F --------------------------------------------------------

def strictly_balanced(inputs, params, settings):
    x, cotangent, k = inputs["x"], inputs["cotangent"], settings["k"]
    w_gate, threshold, w_in, w_out = (params[name] for name in (
        "w_gate", "threshold", "w_in", "w_out"))
    (T, D), E, leaves = x.shape, len(threshold), tracked(x=x, **params)
    probs = torch.stack([torch.softmax(x[t] @ w_gate, dim=0) for t in range(T)])     # (15)
    m = max(k * T // E, 1)
    mask = torch.zeros(T, E, dtype=torch.bool)
    for i in range(E):
        for t in ranked(probs[:, i])[:m]:
            mask[t, i] = True                                                        # (18)
    threshold_mask = torch.tensor([[bool(probs[t, i] > threshold[i]) for i in range(E)]
                                   for t in range(T)])                               # (19)

    def gated(mask):
        gate, y = [], []
        for t in range(T):
            among = [i for i in range(E) if mask[t, i]]
            total = sum(probs[t, i] for i in among)
            shares = {i: probs[t, i] / total for i in among}                         # (16)
            gate.append(torch.stack([shares.get(i, torch.tensor(0.0)) for i in range(E)]))
            y.append(sum((share * feed_forward(x[t], w_in[i], w_out[i])[1]
                          for i, share in shares.items()), torch.zeros(D)))
        return torch.stack(gate), torch.stack(y)

    gate, y = gated(mask)
    threshold_gate, y_inferred = gated(threshold_mask)
    importance = column_sums(gate, E)
    constant = probs.detach()
    threshold_loss = sum((int(threshold_mask[t, i]) - int(mask[t, i]))
                         * (constant[t, i] - threshold[i])
                         for t in range(T) for i in range(E))                        # (20)
    losses = {"importance_loss": cv_squared(importance), "threshold_loss": threshold_loss}
    return {"probs": probs, "mask": mask, "gate": gate, "threshold_mask": threshold_mask,
            "threshold_gate": threshold_gate, "importance": importance, "y": y,
            "y_inferred": y_inferred, **losses,
            **gradients({"y": (y * cotangent).sum(),
                         "y_inferred": (y_inferred * cotangent).sum(), **losses}, leaves)}


def record_strictly_balanced(case, seed, T, D, E, H, k, arrange=None):
    draw = Draw(seed)
    x, w_gate = draw.leaf("x", T, D), draw.leaf("w_gate", D, E)
    threshold = draw.leaf("threshold", E)
    threshold[:] = 1 / E + 0.05 * threshold
    draw.leaf("w_in", E, D, H)
    draw.leaf("w_out", E, H, D)
    cotangent = draw(T, D)
    if arrange is not None:
        arrange(x, w_gate, threshold)
    record("strictly_balanced", case, seed, source("Eqs. (15)-(20)"), param=draw.params("x"),
           set={"k": k}, **{"in": {"x": x, "cotangent": cotangent}})


def equal_rows(x, w_gate, threshold):
    """Three rows alike, and two: each column is full before the last of them."""
    x[4], x[6] = x[1], x[1]
    x[5] = x[2]


def left_out(x, w_gate, threshold):
    """Row 3, in the middle of all, has no expert in either mask; expert 0 no row in inference."""
    x[3] = 0
    threshold[:] = 0.3
    threshold[0] = 0.999


# -- Attention, Appendix G -----------------------------------------------------------------------

def attention(inputs, params, settings):
    source_rows, target, cotangent = (inputs[name] for name in ("source", "target", "cotangent"))
    u, w, v = (params[name] for name in ("u", "w", "v"))
    (S, _), (R, _), H = source_rows.shape, target.shape, len(v)
    leaves = tracked(source=source_rows, target=target, **params)

    def scores(joined):
        return torch.stack([torch.stack([
            sum(v[q] * joined(source_rows[i] @ u[:, q], target[j] @ w[:, q]) for q in range(H))
            for j in range(R)]) for i in range(S)])

    out = {"gnmt": scores(lambda a, b: torch.tanh(a + b)),                           # (21)
           "product": scores(lambda a, b: torch.tanh(a) * torch.tanh(b))}            # (22)
    return {**out, **gradients({name: (a * cotangent).sum() for name, a in out.items()}, leaves)}


def record_attention(case, seed, S, R, D, H):
    draw = Draw(seed)
    source_rows, target = draw.leaf("source", S, D), draw.leaf("target", R, D)
    draw.leaf("u", D, H)
    draw.leaf("w", D, H)
    draw.leaf("v", H)
    record("attention", case, seed, source("Eqs. (21), (22)"),
           **{"in": {"source": source_rows, "target": target, "cotangent": draw(S, R)}},
           param=draw.params("source", "target"))


DERIVATIONS = {
    "layer": layer, "layer_padded": layer_padded, "layer_tensor2tensor": layer_tensor2tensor,
    "layer_davidmrau": layer_davidmrau, "hierarchical": hierarchical,
    "strictly_balanced": strictly_balanced, "language_model": language_model,
    "factored_adam": factored_adam, "attention": attention}


if __name__ == "__main__":
    SHAPE = {"T": 12, "D": 4, "E": 5, "H": 3}
    record_layer("two_of_five", 0, k=2, **SHAPE)
    record_layer("one_of_five", 1, k=1, **SHAPE)
    record_layer("three_of_five", 2, k=3, **SHAPE)
    record_layer("all_of_five", 3, k=5, **SHAPE)
    record_layer("four_of_sixteen", 4, T=6, D=3, E=16, H=2, k=4)
    record_layer("one_expert", 5, T=4, D=3, E=1, H=2, k=1)
    record_layer("one_row", 6, T=1, D=4, E=5, H=3, k=2)
    record_layer("ties", 7, k=2, arrange=ties, **SHAPE)
    record_layer("starved", 8, k=2, arrange=starved, **SHAPE)
    record_layer("all_to_one", 9, k=1, arrange=all_to_one, **SHAPE)
    record_layer("no_noise", 10, k=2, arrange=no_noise, **SHAPE)
    record_layer("zero_start", 11, k=2, arrange=zero_start, **SHAPE)
    record_davidmrau("two_of_five", 20, k=2, **SHAPE)
    record_davidmrau("one_of_five", 21, k=1, **SHAPE)
    record_davidmrau("all_of_five", 22, k=5, **SHAPE)
    record_davidmrau("starved", 23, k=2, arrange=starved, **SHAPE)
    record_davidmrau("one_expert", 24, T=4, D=3, E=1, H=2, k=1)
    record_padded("middle_and_end", 30, [True, False, True, True, False, True, True, False], D=4,
                  E=5, H=3, k=2)
    record_padded("one_row_left", 31, [False, False, True, False], D=4, E=5, H=3, k=1)
    record_hierarchical("two_and_two", 40, T=10, D=4, A=3, B=4, H=2, k1=2, k2=2)
    record_hierarchical("one_and_one", 41, T=10, D=4, A=3, B=4, H=2, k1=1, k2=1)
    record_hierarchical("all", 42, T=5, D=3, A=2, B=3, H=2, k1=2, k2=3)
    record_hierarchical("group_starved", 43, T=10, D=4, A=4, B=2, H=2, k1=2, k2=1,
                        arrange=group_starved)
    record_hierarchical("ties", 44, T=8, D=4, A=3, B=4, H=2, k1=2, k2=3, arrange=hierarchical_ties)
    record_hierarchical("one_group", 45, T=5, D=3, A=1, B=4, H=2, k1=1, k2=2)
    record_language_model("dropout", 50, S=4, B=3, V=6, D=4, E=5, H=3, k=2, drop_prob=0.3)
    record_language_model("no_dropout", 51, S=3, B=2, V=5, D=3, E=4, H=2, k=3, drop_prob=0.0)
    record_factored_adam("matrices", 60, N=8, E=3, D=4, H=2, learning_rate=0.1, beta2=0.9,
                         epsilon=1e-8)
    record_factored_adam("unused", 61, N=8, E=2, D=2, H=5, learning_rate=0.01, beta2=0.999,
                         epsilon=1e-3, unused=1)
    record_strictly_balanced("two_of_four", 70, T=8, D=3, E=4, H=2, k=2)
    record_strictly_balanced("rounded_down", 71, T=7, D=3, E=5, H=2, k=2)
    record_strictly_balanced("all", 72, T=6, D=3, E=4, H=2, k=4)
    record_strictly_balanced("equal_rows", 73, T=8, D=3, E=4, H=2, k=1, arrange=equal_rows)
    record_strictly_balanced("left_out", 74, T=8, D=3, E=4, H=2, k=1, arrange=left_out)
    record_attention("short", 80, S=5, R=4, D=3, H=2)
    record_attention("one_by_one", 81, S=1, R=1, D=2, H=4)

"""Record multi-gate mixture-of-experts (Ma et al., KDD 2018) in PyTorch.

    pip install --no-deps deepctr-torch==0.3.0 torch-rechub==0.9.0 pandas scikit-learn tqdm
    python -m reference_runs.papers.mmoe_2018

The kinds shared_bottom, mmoe and deepctr are SharedBottom and MMOE of DeepCTR-Torch, mmoe with an
empty list of gate layers, which makes its gate the paper's; torch_rechub is torch-rechub's MMOE.
All unmodified, in float64: hooks read what goes between their modules. The kinds models,
generated_tasks and baselines are written from the paper, case by case and expert by expert.
"""
import math
from functools import partial
from importlib.metadata import version

import torch
import torch.nn.functional as F

from reference_runs.recorder import save, start

PAPER = "mmoe_2018"
TEXT = "Ma et al., KDD 2018"


# -- Drawing and saving --------------------------------------------------------------------------

def normal(rng, *shape, scale=1.0, dtype=torch.float64):
    return (scale * torch.from_numpy(rng.standard_normal(shape))).to(dtype)


def gradients(loss, leaves):
    found = torch.autograd.grad(
        loss, list(leaves.values()), retain_graph=True, allow_unused=True,
    ) if loss.requires_grad else [None] * len(leaves)
    return {name: torch.zeros_like(leaf) if g is None else g
            for (name, leaf), g in zip(leaves.items(), found)}


def record(kind, case, source, seed, inputs, params, settings, packages=("torch", "numpy")):
    out = DERIVATIONS[kind](inputs, params, settings)
    save(f"{PAPER}/{kind}/{case}", source=source, seed=seed, packages=packages,
         **{"in": inputs, "param": params, "set": settings, "out": out})


def tracked(arrays):
    return {name: a.requires_grad_() for name, a in arrays.items()}


def named(prefix, values):
    return {f"{prefix}.{name}": value for name, value in values.items()}


# -- The paper's models, case by case ------------------------------------------------------------

def layer(params, name, i, x, relu=True):
    """Network i of a stack: one linear map, of one case."""
    y = params[f"{name}.b"][i] + sum(x[d] * params[f"{name}.w"][i, d] for d in range(len(x)))
    return torch.where(y > 0, y, torch.zeros_like(y)) if relu else y


def tower(params, name, k, v):
    return layer(params, f"{name}.1", k, layer(params, f"{name}.0", k, v), relu=False)[0]


def one_case_gate(w, x):
    logits = torch.stack([(w[:, i] * x).sum() for i in range(w.shape[1])])
    e = torch.exp(logits - logits.max())
    return e / e.sum()                                                   # Eq. (8)


def moe(params, w_gates, x, K):
    """Eqs. (5) to (8); every gate is of one task, but a single gate is of all."""
    E = len(params["moe.experts.0.b"])
    rows = {"experts": [], "gate": [], "mixed": [], "y": []}
    for case in x:
        f = [layer(params, "moe.experts.0", i, case) for i in range(E)]
        g = [one_case_gate(w, case) for w in w_gates]
        mixed = [sum(gate[i] * f[i] for i in range(E)) for gate in g]    # Eq. (7)
        y = [tower(params, "moe.towers", k, mixed[k % len(mixed)]) for k in range(K)]
        for name, value in (("experts", f), ("gate", g), ("mixed", mixed), ("y", y)):
            rows[name].append(torch.stack(value))
    return {name: torch.stack(value, 1) for name, value in rows.items()}


def losses(y, target, labelled, task_weights):
    squared = logistic = 0.0
    for k in range(len(y)):
        there = [b for b in range(y.shape[1]) if labelled[k, b]]
        for b in there:
            part = task_weights[k] / len(there)
            squared = squared + part * (y[k, b] - target[k, b]) ** 2
            sign = 1 if target[k, b] > 0 else -1
            logistic = logistic - part * F.logsigmoid(sign * y[k, b])
    return {name: torch.as_tensor(loss, dtype=y.dtype)
            for name, loss in (("squared", squared), ("logistic", logistic))}


def models(inputs, params, settings):
    x, params = inputs["x"].requires_grad_(), tracked(params)
    target, cotangent, labelled, task_weights, keep = (
        inputs[name] for name in ("target", "cotangent", "labelled", "task_weights", "keep"))
    K, B, E = keep.shape

    def of_loss(y, leaves):
        found = losses(y, target, labelled, task_weights)
        return {**found, **{f"grad.{loss}.{name}": g for loss, value in found.items()
                            for name, g in gradients(value, {"x": x, **leaves}).items()}}

    def part(which):
        return {name.partition(".")[2]: p for name, p in params.items() if name.startswith(which)}

    bottom = torch.stack([torch.stack([
        tower(params, "bottom.towers", k, layer(params, "bottom.bottom.0", 0, row))
        for row in x]) for k in range(K)])                               # Eq. (1)
    out = named("bottom", {"y": bottom, **of_loss(bottom, part("bottom."))})
    for name, w_gate in (("omoe", params["one_gate"]), ("mmoe", params["moe.w_gate"])):
        found = moe(params, w_gate, x, K)
        out |= named(name, {**found, **of_loss(found["y"], {**part("moe."), "w_gate": w_gate})})
    rows = []
    for k in range(K):
        for b in range(B):
            gate = found["gate"][k, b]
            kept = keep[k, b] if bool(keep[k, b].any()) else torch.ones(E, dtype=torch.bool)
            left = torch.stack([gate[i] if kept[i] else 0 * gate[i] for i in range(E)])
            rows.append(left / left.sum())
    dropped = torch.stack(rows).reshape(K, B, E)
    return {**out, "dropped.gate": dropped,
            **gradients((dropped * cotangent).sum(), {"dropped.grad": params["moe.w_gate"]})}


def record_models(case, seed, B, D, E, K, H, U, W, scale=1.0, missing=0.0, task_weights=None,
                  dtype=torch.float64):
    rng = start(seed)

    def draw(*shape):
        return normal(rng, *shape, scale=scale, dtype=dtype)

    params = {"bottom.bottom.0.w": draw(1, D, W), "bottom.bottom.0.b": draw(1, W),
              "bottom.towers.0.w": draw(K, W, U), "bottom.towers.0.b": draw(K, U),
              "bottom.towers.1.w": draw(K, U, 1), "bottom.towers.1.b": draw(K, 1),
              "one_gate": draw(1, D, E),
              "moe.experts.0.w": draw(E, D, H), "moe.experts.0.b": draw(E, H),
              "moe.w_gate": draw(K, D, E),
              "moe.towers.0.w": draw(K, H, U), "moe.towers.0.b": draw(K, U),
              "moe.towers.1.w": draw(K, U, 1), "moe.towers.1.b": draw(K, 1)}
    x = normal(rng, B, D, dtype=dtype)
    target, cotangent = normal(rng, K, B, dtype=dtype), normal(rng, K, B, E, dtype=dtype)
    labelled = torch.from_numpy(rng.random((K, B)) >= missing)
    if missing:
        labelled[0] = False                                  # a task without any label
    keep = torch.from_numpy(rng.random((K, B, E)) < 0.7)
    keep[0, 0] = False                                       # a case of which nothing is kept
    task_weights = torch.tensor(task_weights or [1.0] * K, dtype=dtype)
    record("models", case, {"kind": "transcription", "of": f"{TEXT}, Eqs. (1) and (5)-(8)"}, seed,
           {"x": x, "target": target, "labelled": labelled, "task_weights": task_weights,
            "keep": keep, "cotangent": cotangent}, params, {})


def generated_tasks(inputs, params, settings):
    draw, x, noise = (inputs[name] for name in ("draw", "x", "noise"))
    p, c, alpha, beta = (settings[name] for name in ("p", "c", "alpha", "beta"))
    u = torch.linalg.qr(draw.T)[0].T                         # by Householder, up to signs
    u = torch.stack([u[i] * torch.sign((u[i] * draw[i]).sum()) for i in range(2)])
    w = torch.stack([c * u[0], c * (p * u[0] + math.sqrt(1 - p * p) * u[1])])
    y = torch.empty(2, len(x), dtype=torch.float64)
    for k in range(2):
        for b in range(len(x)):
            z = float(w[k] @ x[b])
            y[k, b] = z + sum(math.sin(a * z + s) for a, s in zip(alpha, beta)) + noise[k, b]
    return {"u": u, "w": w, "y": y}


def record_generated_tasks(case, seed, B, D, p, c, alpha, beta, near=None):
    rng = start(seed)
    draw, x = normal(rng, 2, D), normal(rng, B, D)
    noise = normal(rng, 2, B, scale=0.1)
    if near is not None:                                     # two vectors almost the same
        draw[1] = draw[0] + near * draw[1]
    record("generated_tasks", case,
           {"kind": "transcription", "of": f"{TEXT}, Section 3.2, Eqs. (2)-(4)"}, seed,
           {"draw": draw, "x": x, "noise": noise}, {},
           {"p": p, "c": c, "alpha": alpha, "beta": beta})


def baselines(inputs, params, settings):
    params, x = tracked(params), inputs["x"].requires_grad_()
    K, (R, S, T) = len(x), params["core"].shape
    of_networks = {name: p for name, p in params.items() if name.startswith(("first", "second"))}
    network = [name.partition(".")[2] for name in of_networks if name.startswith("first")]
    penalty = settings["strength"] * sum(
        ((params[f"first.{name}"] - params[f"second.{name}"]) ** 2).sum() for name in network)
    stitched = torch.stack([sum(params["alpha"][k, j] * x[j] for j in range(K))
                            for k in range(K)])
    weights = sum(params["core"][a, b, t] * torch.einsum(
        "i,j,k->ijk", params["u_in"][:, a], params["u_out"][:, b], params["u_task"][:, t])
        for a in range(R) for b in range(S) for t in range(T))
    factors = {str(i): params[name] for i, name in enumerate(("core", "u_in", "u_out", "u_task"))}
    grads = {**named("penalty", gradients(penalty, of_networks)),
             **named("stitched", gradients((stitched * inputs["stitched_cotangent"]).sum(),
                                           {"alpha": params["alpha"], "x": x})),
             **named("weights", gradients((weights * inputs["weights_cotangent"]).sum(), factors))}
    return {"penalty": penalty, "stitched": stitched, "weights": weights, **named("grad", grads)}


def record_baselines(case, seed, D, H, U, K, B, R, S, T, strength):
    rng = start(seed)

    def draw(*shape):
        return normal(rng, *shape)

    network = {"bottom.0.w": (1, D, H), "bottom.0.b": (1, H), "towers.0.w": (K, H, U),
               "towers.0.b": (K, U), "towers.1.w": (K, U, 1), "towers.1.b": (K, 1)}
    params = {f"{which}.{name}": draw(*shape) for which in ("first", "second")
              for name, shape in network.items()}
    params |= {"alpha": draw(K, K), "core": draw(R, S, T), "u_in": draw(D, R), "u_out": draw(H, S),
               "u_task": draw(K, T)}
    inputs = {"x": draw(K, B, H), "stitched_cotangent": draw(K, B, H),
              "weights_cotangent": draw(D, H, K)}
    record("baselines", case,
           {"kind": "transcription", "of": f"{TEXT}, Section 6.1, the baselines"}, seed, inputs,
           params, {"strength": strength})


# -- The packages --------------------------------------------------------------------------------

def stacks(name, modules, parts):
    """Where the package keeps what we call ``name``: {our key: modules' tensors, transposed?}"""
    found = {}
    for ours, theirs in parts.items():
        tensors = [getattr(module, theirs) for module in modules]
        found[f"{name}.{ours}" if ours else name] = tensors, tensors[0].ndim == 2
    return found


LINEAR = {"w": "weight", "b": "bias"}
NORM = {"scale": "weight", "shift": "bias"}


def collected(kept, of):
    """Stacks of what ``of`` gives for each tensor, in our layout."""
    return {name: torch.stack([of(t).T if transposed else of(t) for t in tensors])
            for name, (tensors, transposed) in kept.items()}


def put(kept, params):
    """Our parameters in the places where the package keeps them."""
    for name, (tensors, transposed) in kept.items():
        for t, a in zip(tensors, params[name], strict=True):
            t.data.copy_(a.T if transposed else a)


def fill(rng, model, scale):
    """Every parameter from a normal draw, also those that start at 0 or 1."""
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(normal(rng, *p.shape, scale=scale))


def listening(modules):
    """What the modules give in the next pass, in their order."""
    heard = {}
    for i, module in enumerate(modules):
        module.register_forward_hook(lambda _, given, out, i=i: heard.__setitem__(i, (given, out)))
    return heard


def targets(rng, binary, B):
    rows = [torch.from_numpy(rng.integers(0, 2, B)).double() if b else normal(rng, B)
            for b in binary]
    return torch.stack(rows)


def third_party(repository, package, entry):
    return {"kind": "third-party", "repository": f"https://github.com/{repository}",
            "commit": f"v{version(package)}", "entry": entry}


def deepctr(kind, binary, D, E, H, U, J=None, G=None):
    """SharedBottom, MMOE without gate layers or MMOE with one, and where it keeps parameters."""
    from deepctr_torch.inputs import DenseFeat
    from deepctr_torch.models import MMOE, SharedBottom

    columns = [DenseFeat("x", D)]
    common = {"tower_dnn_hidden_units": (U,),
              "task_types": ["binary" if b else "regression" for b in binary],
              "task_names": [f"task {k}" for k in range(len(binary))], "l2_reg_embedding": 0}
    if kind == "shared_bottom":
        model = SharedBottom(columns, bottom_dnn_hidden_units=(H,), **common).double()
        kept = stacks("bottom.0", [model.bottom_dnn.linears[0]], LINEAR)
    else:
        model = MMOE(columns, num_experts=E, expert_dnn_hidden_units=(J, H),
                     gate_dnn_hidden_units=(G,) if G else (), **common).double()
        kept = {}
        for i in range(2):
            kept |= stacks(f"experts.{i}", [dnn.linears[i] for dnn in model.expert_dnn], LINEAR)
        if G:
            kept |= stacks("gate_mlp.0", [dnn.linears[0] for dnn in model.gate_dnn], LINEAR)
        kept |= stacks("w_gate", model.gate_dnn_final_layer, {"": "weight"})
    kept |= stacks("towers.0", [dnn.linears[0] for dnn in model.tower_dnn], LINEAR)
    kept |= stacks("towers.1", model.tower_dnn_final_layer, {"w": "weight"})
    kept |= stacks("towers.1", model.out, {"b": "bias"})
    return model, kept


def run_deepctr(kind, inputs, params, settings):
    K, H, U = params["towers.0.w"].shape
    E, J = params["experts.0.w"].shape[::2] if "experts.0.w" in params else (None, None)
    G = params["w_gate"].shape[1] if kind == "deepctr" else None
    x, target, binary = inputs["x"].requires_grad_(), inputs["target"], settings["binary"]
    model, kept = deepctr(kind, binary, x.shape[1], E, H, U, J, G)
    put(kept, params)
    out = {}
    if kind != "shared_bottom":
        experts, gates = listening(model.expert_dnn), listening(model.gate_dnn_final_layer)
        before = listening(model.tower_dnn)
    predicted = model(x)                                     # [B, K]
    if kind != "shared_bottom":
        out = {"experts": torch.stack([experts[e][1] for e in range(E)]),
               "gate": torch.stack([gates[k][1].softmax(1) for k in range(K)]),
               "mixed": torch.stack([before[k][0][0] for k in range(K)])}
    model.compile("adam", ["binary_crossentropy" if b else "mse" for b in binary])
    loss = sum(model.loss_func[k](predicted[:, k], target[k], reduction="sum") for k in range(K))
    g, = torch.autograd.grad(loss, x, retain_graph=True)
    loss.backward()
    return {**out, "predicted": predicted.T, "loss": loss,
            **named("grad.loss", {"x": g, **collected(kept, lambda t: t.grad)})}


def record_deepctr(kind, case, seed, B, D, E, H, U, binary, J=None, G=None, scale=0.7):
    rng = start(seed)
    model, kept = deepctr(kind, binary, D, E, H, U, J, G)
    fill(rng, model, scale)
    inputs = {"x": normal(rng, B, D), "target": targets(rng, binary, B)}
    record(kind, case, third_party("shenweichen/DeepCTR-Torch", "deepctr-torch",
                                   f"deepctr_torch.models.{type(model).__name__}"), seed, inputs,
           collected(kept, lambda t: t.detach()), {"binary": binary},
           packages=("torch", "numpy", "deepctr-torch"))


def rechub(binary, B, D, E, J, H, U):
    """MMOE, where it keeps parameters, and where statistics.

    The inputs are rows of an embedding table, as dense ones are cast to float32.
    """
    from torch_rechub.basic.features import SparseFeature
    from torch_rechub.models.multi_task import MMOE

    types = ["classification" if b else "regression" for b in binary]
    model = MMOE([SparseFeature("x", vocab_size=B, embed_dim=D)], types, E, {"dims": [J, H]},
                 [{"dims": [U]} for _ in binary]).double()
    kept = {}
    for i in range(2):
        for place, parts in ((4 * i, LINEAR), (4 * i + 1, NORM)):     # linear, norm, relu, dropout
            kept |= stacks(f"experts.{i}", [net.mlp[place] for net in model.experts], parts)
    for name, nets in (("gates", model.gates), ("towers.0", model.towers)):
        for place, parts in ((0, LINEAR), (1, NORM)):
            kept |= stacks(name, [net.mlp[place] for net in nets], parts)
    kept |= stacks("out", [net.mlp[4] for net in model.towers], LINEAR)
    statistics = {"mean": "running_mean", "variance": "running_var"}
    running = {}
    for name, nets, place in (("experts.0", model.experts, 1), ("experts.1", model.experts, 5),
                              ("gates", model.gates, 1), ("towers.0", model.towers, 1)):
        running |= stacks(name, [net.mlp[place] for net in nets], statistics)
    return model, types, kept, running


def torch_rechub(inputs, params, settings):
    from torch_rechub.utils.data import get_loss_func

    (B, D), (E, _, J), (K, H, U) = (a.shape for a in (
        inputs["x"], params["experts.0.w"], params["towers.0.w"]))
    model, types, kept, running = rechub(settings["binary"], B, D, E, J, H, U)
    put(kept, params)
    target, rows = inputs["target"], {"x": torch.arange(B)}
    x = model.embedding.embed_dict["x"].weight
    x.data.copy_(inputs["x"])

    experts, gates, before = map(listening, (model.experts, model.gates, model.towers))
    predicted = model.train()(rows)                          # [B, K]
    out = {"experts": torch.stack([experts[e][1] for e in range(E)]),
           "gate": torch.stack([gates[k][1] for k in range(K)]),
           "mixed": torch.stack([before[k][0][0] for k in range(K)])}
    loss = sum(get_loss_func(types[k])(predicted[:, k], target[k]) for k in range(K)) / K
    loss.backward()
    running = {name: value.clone() for name, value in collected(running, lambda t: t).items()}
    evaluated = model.eval()(rows)
    return {**out, "predicted": predicted.T, "loss": loss, **named("running", running),
            "evaluated": evaluated.T,
            **named("grad.loss", {"x": x.grad, **{
                name: g for name, g in collected(kept, lambda t: t.grad).items()
                if name == "out.b" or not name.endswith(".b")}})}     # rounding before a norm


def record_torch_rechub(case, seed, B, D, E, J, H, U, binary, scale=0.7):
    rng = start(seed)
    model, _, kept, _ = rechub(binary, B, D, E, J, H, U)
    fill(rng, model, scale)
    inputs = {"x": model.embedding.embed_dict["x"].weight.detach(),
              "target": targets(rng, binary, B)}
    record("torch_rechub", case, third_party("datawhalechina/torch-rechub", "torch-rechub",
                                             "torch_rechub.models.multi_task.MMOE"), seed, inputs,
           collected(kept, lambda t: t.detach()), {"binary": binary},
           packages=("torch", "numpy", "torch-rechub"))


DERIVATIONS = {"models": models, "generated_tasks": generated_tasks, "baselines": baselines,
               "shared_bottom": partial(run_deepctr, "shared_bottom"),
               "mmoe": partial(run_deepctr, "mmoe"), "deepctr": partial(run_deepctr, "deepctr"),
               "torch_rechub": torch_rechub}
PACKAGES = {"shared_bottom": "deepctr-torch", "mmoe": "deepctr-torch", "deepctr": "deepctr-torch",
            "torch_rechub": "torch-rechub"}


if __name__ == "__main__":
    sizes = {"D": 5, "H": 4, "U": 3, "W": 6}
    record_models("two_tasks", seed=0, B=7, E=4, K=2, **sizes)
    record_models("missing_labels", seed=1, B=6, E=3, K=3, missing=0.4,
                  task_weights=[1.0, 0.5, 2.0], **sizes)
    record_models("saturated_gates", seed=2, B=5, E=3, K=2, scale=12.0, **sizes)
    record_models("one_case", seed=3, B=1, E=2, K=2, **sizes)
    record_models("one_expert_one_task", seed=4, B=4, E=1, K=1, **sizes)
    record_models("float32", seed=5, B=6, E=4, K=2, dtype=torch.float32, **sizes)
    four = {"alpha": [1.0, 2.0, 3.0, 4.0], "beta": [0.0, 1.0, 4.0, 9.0]}
    record_generated_tasks("half_related", seed=6, B=12, D=6, p=0.5, c=1.0, **four)
    record_generated_tasks("one_task_twice", seed=7, B=6, D=5, p=1.0, c=0.3, **four)
    record_generated_tasks("opposite", seed=8, B=6, D=2, p=-1.0, c=2.0, alpha=[1.0], beta=[0.5])
    record_generated_tasks("nearly_parallel", seed=9, B=4, D=8, p=-0.25, c=1.0, near=1e-3, **four)
    record_baselines("two_tasks", seed=10, D=4, H=3, U=2, K=2, B=5, R=2, S=3, T=2, strength=0.3)
    record_baselines("three_tasks", seed=11, D=3, H=5, U=3, K=3, B=2, R=3, S=2, T=2, strength=1.0)
    small = {"D": 5, "H": 4, "U": 3}
    record_deepctr("shared_bottom", "binary", seed=12, B=7, E=None, binary=[1, 1], **small)
    record_deepctr("shared_bottom", "mixed", seed=13, B=6, E=None, binary=[0, 1, 0], **small)
    record_deepctr("mmoe", "binary", seed=14, B=7, E=3, J=6, binary=[1, 1], **small)
    record_deepctr("mmoe", "mixed", seed=15, B=6, E=4, J=3, binary=[0, 1, 0], **small)
    record_deepctr("mmoe", "one_case", seed=16, B=1, E=2, J=3, binary=[0, 1], **small)
    record_deepctr("deepctr", "binary", seed=17, B=7, E=3, J=6, G=4, binary=[1, 1], **small)
    record_deepctr("deepctr", "regression", seed=18, B=6, E=4, J=3, G=5, binary=[0, 0], **small)
    record_torch_rechub("binary", seed=19, B=9, E=3, J=6, binary=[1, 1], **small)
    record_torch_rechub("mixed", seed=20, B=6, E=4, J=3, binary=[0, 1, 0], **small)
    record_torch_rechub("two_cases", seed=21, B=2, E=2, J=3, binary=[1, 0], **small)

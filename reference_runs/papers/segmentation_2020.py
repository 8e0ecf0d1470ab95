"""Record the segmentation experts and their mixture (CVPR Workshops 2020) in PyTorch.

    python -m reference_runs.papers.segmentation_2020

Written from the papers, with torch.nn.functional for convolution, batch norm, pooling and
interpolation, channels first, unit by unit; gates are computed class by class, and masks and
confusion pixel by pixel. Arrays are saved with channels last, kernels as [height, width, in, out].
"""
import torch
import torch.nn.functional as F

from reference_runs.recorder import save, start

NETWORK = {"kind": "transcription", "of": "arXiv:1611.08323v2, Figure 2 and Table 1",
           "operations": "torch.nn.functional conv2d, batch_norm, max_pool2d, interpolate"}
MIXTURE = {"kind": "transcription", "of": "Pavlitskaya et al., CVPR Workshops 2020: gate, mixture"}
IGNORED = 250


class Network:
    """A network's parameters, drawn when they are first asked for, and the statistics it met."""

    def __init__(self, rng=None, params=None, running=None):
        self.rng, self.params, self.batch, self.running = rng, params or {}, [], running

    def get(self, name, *shape, near=0.0):
        if name not in self.params:
            self.params[name] = near + 0.4 * torch.from_numpy(self.rng.standard_normal(shape))
        return self.params[name]

    def conv_norm(self, name, x, size, n_out):
        n_in = x.shape[1]
        w = self.get(f"{name}.w", size, size, n_in, n_out)
        scale = self.get(f"{name}.scale", n_out, near=1.0)
        shift = self.get(f"{name}.shift", n_out)
        y = F.conv2d(x, w.permute(3, 2, 0, 1).contiguous(), padding=size // 2)
        place = len(self.batch)
        mean, variance = torch.zeros(n_out).double(), torch.ones(n_out).double()
        if self.running is not None:
            mean, variance = self.running[place]
        self.batch.append((mean, variance))          # F.batch_norm writes the running ones into it
        return F.batch_norm(y, mean, variance, scale, shift, training=self.running is None,
                            momentum=0.1, eps=1e-5)

    def linear(self, name, x, n_out):
        w, b = self.get(f"{name}.w", x.shape[1], n_out), self.get(f"{name}.b", n_out)
        return F.conv2d(x, w.T[:, :, None, None].contiguous(), b)

    def residual_unit(self, name, x, n_out):
        y = F.relu(self.conv_norm(f"{name}.first", x, 3, n_out))
        y = self.conv_norm(f"{name}.second", y, 3, n_out)
        if x.shape[1] != n_out:
            w = self.get(f"{name}.w_project", x.shape[1], n_out)
            x = F.conv2d(x, w.T[:, :, None, None].contiguous())
        return x + y

    def full_resolution_unit(self, name, y, z, factor, n_out, mode):
        u = torch.cat([y, F.max_pool2d(z, factor)], 1)
        y = F.relu(self.conv_norm(f"{name}.first", u, 3, n_out))
        y = F.relu(self.conv_norm(f"{name}.second", y, 3, n_out))
        back = self.linear(f"{name}.residual", y, z.shape[1])
        return y, z + F.interpolate(back, scale_factor=factor, **mode)


BILINEAR = {"mode": "bilinear", "align_corners": False}


def frrn_a(net, x, C, Z, K):
    y = F.relu(net.conv_norm("stem", x, 5, C))
    for i in range(3):
        y = net.residual_unit(f"before.{i}", y, C)
    z = net.conv_norm("split", y, 1, Z)
    y, features, z = streams(net, y, z, [(2 * C, 3), (4 * C, 4), (8 * C, 2), (8 * C, 2)],
                             [(4 * C, 2), (4 * C, 2), (2 * C, 2)], {"mode": "nearest"})
    y = torch.cat([F.interpolate(y, scale_factor=2, **BILINEAR), z], 1)
    for i in range(3):
        y = net.residual_unit(f"after.{i}", y, C)
    return net.linear("classes", y, K), features


def frrn_mini(net, x, C, Z, K):
    y = F.relu(net.conv_norm("stem", x, 5, C))
    y = net.residual_unit("before.0", y, C)
    z = net.linear("split", y, Z)
    y, features, z = streams(net, y, z, [(2 * C, 1), (3 * C, 1)], [(2 * C, 1)], BILINEAR)
    y = torch.cat([F.interpolate(y, scale_factor=2, **BILINEAR), z], 1)
    return net.linear("classes", net.residual_unit("after.0", y, C), K), features


def streams(net, y, z, encoder, decoder, mode):
    factor = 1
    for i, (width, n) in enumerate(encoder):
        y, factor = F.max_pool2d(y, 2), 2 * factor
        for j in range(n):
            y, z = net.full_resolution_unit(f"encoder.{i}.{j}", y, z, factor, width, mode)
    features = y
    for i, (width, n) in enumerate(decoder):
        y, factor = F.interpolate(y, scale_factor=2, **BILINEAR), factor // 2
        for j in range(n):
            y, z = net.full_resolution_unit(f"decoder.{i}.{j}", y, z, factor, width, mode)
    return y, features, z


def cross_entropy(logits, label):
    """Of no label at all, 0."""
    if (label == IGNORED).all():
        return 0 * logits.sum()
    return F.cross_entropy(logits, label, ignore_index=IGNORED)


def network(function):
    def derive(inputs, params, settings):
        x, label, cotangent = inputs["x"].requires_grad_(), inputs["label"], inputs["cotangent"]
        for w in params.values():
            w.requires_grad_()
        C, K = len(params["stem.scale"]), len(params["classes.b"])
        Z = params["split.w"].shape[-1]
        net = Network(params=params)
        logits, features = function(net, x.permute(0, 3, 1, 2), C, Z, K)
        loss = cross_entropy(logits, label)
        seen, = torch.autograd.grad((features.permute(0, 2, 3, 1) * cotangent).sum(), x,
                                    retain_graph=True)
        gradients = torch.autograd.grad(loss, [x, *params.values()])
        evaluating = Network(params=params, running=net.batch)
        evaluated, _ = function(evaluating, x.permute(0, 3, 1, 2), C, Z, K)
        return {"logits": logits.permute(0, 2, 3, 1), "features": features.permute(0, 2, 3, 1),
                "loss": loss, "evaluated": evaluated.permute(0, 2, 3, 1),
                **{f"running.{i}.{name}": value for i, pair in enumerate(net.batch)
                   for name, value in zip(("mean", "variance"), pair)},
                "grad.features.x": seen,
                **{f"grad.loss.{name}": g for name, g in zip(["x", *params], gradients)}}
    return derive


def record_network(case, function, seed, B, H, W, C, Z, K, n_ignored=0):
    rng = start(seed)
    net = Network(rng)
    x = torch.from_numpy(rng.standard_normal((B, H, W, 3)))
    label = torch.from_numpy(rng.integers(0, K, (B, H, W)))
    label.view(-1)[torch.from_numpy(rng.permutation(label.numel())[:n_ignored])] = IGNORED
    _, features = function(net, x.permute(0, 3, 1, 2), C, Z, K)          # which draws
    cotangent = torch.from_numpy(rng.standard_normal(features.permute(0, 2, 3, 1).shape))
    inputs = {"x": x, "label": label, "cotangent": cotangent}
    save(f"segmentation_2020/{case}", source=NETWORK, seed=seed,
         **{"in": inputs}, param=net.params, out=network(function)(inputs, net.params, {}))


# -- The mixture ---------------------------------------------------------------------------------

def one_gate(features, w_conv, b_conv, w_hidden, b_hidden, w_out, b_out, i):
    """The i-th gate's logits. [B, E]"""
    joined = torch.cat([f.permute(0, 3, 1, 2) for f in features], 1)
    y = F.conv2d(joined, w_conv[..., i].permute(2, 0, 1)[None].contiguous(), b_conv[i:i + 1],
                 padding=1)
    y = F.relu(F.linear(F.relu(y).flatten(1), w_hidden[i].T, b_hidden[i]))
    return F.linear(y, w_out[i].T, b_out[i])


def mixture(gates, logits, w_extra):
    """``gates``: a list of one, or of one for each class."""
    K = logits[0].shape[-1]
    s = torch.stack([sum(gates[k % len(gates)][:, e, None, None] * logits[e][..., k]
                         for e in range(len(logits))) for k in range(K)], 1)     # [B, K, H, W]
    if w_extra is not None:
        s = F.conv2d(s, w_extra.permute(3, 2, 0, 1).contiguous(), padding=1)
    return s


def masks(first, second, mixed):
    names = ("perfect", "normal_1", "normal_2", "critical")
    found = {name: torch.zeros_like(mixed, dtype=torch.bool) for name in names}
    for place in torch.cartesian_prod(*map(torch.arange, mixed.shape)).tolist():
        a, b, c = (int(classes[tuple(place)]) for classes in (first, second, mixed))
        name = ("perfect" if a == b == c else "normal_1" if a == c else "normal_2" if b == c
                else "critical")
        found[name][tuple(place)] = True
    return found


def confusion(label, mixed, K):
    counts = torch.zeros(K, K, dtype=torch.int64)
    for truth, guess in zip(label.flatten().tolist(), mixed.flatten().tolist()):
        if truth != IGNORED:
            counts[truth, guess] += 1
    return counts


def derive_mixture(inputs, params, settings):
    E = sum(name.startswith("logits.") for name in inputs)
    features, logits = ([inputs[f"{name}.{e}"].requires_grad_() for e in range(E)]
                        for name in ("features", "logits"))
    for w in params.values():
        w.requires_grad_()
    label, K, extra = inputs["label"], logits[0].shape[-1], params["w_extra"]
    gate_params = {gate: {name: params[f"{gate}.{name}"] for name in (
        "w_conv", "b_conv", "w_hidden", "b_hidden", "w_out", "b_out")}
        for gate in ("simple", "class_wise")}
    first, second, *_ = (o.argmax(-1) for o in logits)
    out = {}
    for name, params in gate_params.items():
        of_gates = [one_gate(features, **params, i=i) for i in range(len(params["b_conv"]))]
        gates = [torch.softmax(z, 1) for z in of_gates]
        out[f"gate_logits.{name}"] = torch.stack(of_gates, 2)
        for ending, w_extra in (("", None), ("_extra", extra)):
            s = mixture(gates, logits, w_extra)
            loss = cross_entropy(s, label)
            wanted = {**{f"logits.{e}": a for e, a in enumerate(logits)},
                      **{f"features.{e}": a for e, a in enumerate(features)},
                      **{f"{name}.{key}": p for key, p in params.items()},
                      **({"w_extra": extra} if ending else {})}
            found = torch.autograd.grad(loss, list(wanted.values()), retain_graph=True)
            mixed = s.argmax(1)
            gate = gates[0] if name == "simple" else torch.stack(gates, 2)
            out |= {f"{name}{ending}.{key}": value for key, value in {
                "gate": gate, "logits": s.permute(0, 2, 3, 1), "loss": loss,
                **{f"masks.{mask}": where for mask, where in masks(first, second, mixed).items()},
                "confusion": confusion(label, mixed, K)}.items()}
            out |= {f"grad.{name}{ending}.loss.{key}": g for key, g in zip(wanted, found)}
            if name == "simple" and not ending:
                out["probability_mixture"] = sum(
                    gate[:, e, None, None, None] * torch.softmax(logits[e], -1) for e in range(E))
    out["mean_ensemble"] = torch.stack(logits).mean(0)
    out["max_ensemble"] = torch.stack(logits).amax(0)
    out["centred"] = logits[0] - logits[0].mean(-1, keepdim=True)
    return out


def record_mixture(case, seed, E, B, H, W, h, w, n_features, K, hidden, scale=1.0, n_ignored=0):
    rng = start(seed)

    def draw(*shape):
        return scale * torch.from_numpy(rng.standard_normal(shape))

    features = {f"features.{e}": draw(B, h, w, n_features) for e in range(E)}
    logits = {f"logits.{e}": draw(B, H, W, K) for e in range(E)}
    label = torch.from_numpy(rng.integers(0, K, (B, H, W)))
    label.view(-1)[torch.from_numpy(rng.permutation(label.numel())[:n_ignored])] = IGNORED
    params = {}
    for name, G in (("simple", 1), ("class_wise", K)):
        for key, shape in (
                ("w_conv", (3, 3, E * n_features, G)), ("b_conv", (G,)),
                ("w_hidden", (G, h * w, hidden)), ("b_hidden", (G, hidden)),
                ("w_out", (G, hidden, E)), ("b_out", (G, E))):
            params[f"{name}.{key}"] = draw(*shape)
    params["w_extra"] = draw(3, 3, K, K)
    inputs = {"label": label, **features, **logits}
    save(f"segmentation_2020/mixture/{case}", source=MIXTURE, seed=seed, **{"in": inputs},
         param=params, out=derive_mixture(inputs, params, {}))


DERIVATIONS = {"frrn_a": network(frrn_a), "frrn_mini": network(frrn_mini),
               "mixture": derive_mixture}


if __name__ == "__main__":
    record_network("frrn_a/narrow", frrn_a, seed=0, B=2, H=16, W=16, C=1, Z=2, K=3)
    record_network("frrn_mini/narrow", frrn_mini, seed=1, B=2, H=8, W=12, C=2, Z=2, K=3)
    record_network("frrn_mini/some_ignored", frrn_mini, seed=2, B=1, H=4, W=8, C=3, Z=2, K=5,
                   n_ignored=10)
    record_mixture("two_experts", seed=3, E=2, B=2, H=4, W=6, h=2, w=3, n_features=2, K=3, hidden=4)
    record_mixture("three_experts", seed=4, E=3, B=1, H=4, W=4, h=2, w=2, n_features=1, K=4,
                   hidden=3, n_ignored=5)
    record_mixture("saturated_gate", seed=5, E=2, B=2, H=2, W=2, h=1, w=2, n_features=2, K=2,
                   hidden=3, scale=12.0)

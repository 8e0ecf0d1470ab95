"""Record products of experts (ICANN 1999; Neural Computation 14(8):1771-1800) in PyTorch.

    python -m reference_runs.papers.products_of_experts_1999

Written from the papers, datum by datum and unit by unit; every gradient is torch.autograd's of a
log probability. The kind scikit_learn is its BernoulliRBM, run unmodified on draws that were
recorded; densities are those of torch.distributions.
"""
import itertools
from unittest import mock

import numpy as np
import torch
from sklearn.neural_network import BernoulliRBM
from torch.distributions import Categorical, Normal
from torch.nn.functional import logsigmoid, softplus as softplus_below

from reference_runs.recorder import save, start

torch.set_default_dtype(torch.float64)
PAPER = "products_of_experts_1999"
SCIKIT_LEARN = {"kind": "third-party", "repository": "scikit-learn/scikit-learn", "commit": "1.9.1",
                "entry": "sklearn.neural_network.BernoulliRBM"}


def source(what, **operators):
    return {"kind": "transcription", "of": f"Hinton 2002, {what}", **operators}


def normal(rng, *shape, scale=1.0):
    return torch.from_numpy(scale * rng.standard_normal(shape))


def uniform(rng, *shape):
    return torch.from_numpy(rng.random(shape))


def coins(rng, *shape):
    return torch.from_numpy((rng.random(shape) < 0.5).astype(float))


def record(kind, case, seed, source, inputs, params={}, settings={}, packages=("torch", "numpy")):
    groups = {"in": inputs, "param": params, "set": settings}
    save(f"{PAPER}/{kind}/{case}", seed=seed, source=source, packages=packages,
         **{name: group for name, group in groups.items() if group},
         out=DERIVATIONS[kind](inputs, params, settings))


def gradients(name, value, leaves):
    """Of a scalar, by name."""
    for leaf in leaves.values():
        leaf.requires_grad_()
    found = torch.autograd.grad(value(), list(leaves.values()))
    for leaf in leaves.values():
        leaf.requires_grad_(False)
    return {f"{name}.{key}": g for key, g in zip(leaves, found)}


# -- The product ---------------------------------------------------------------------------------

def product(log_p):
    """(1.1), state by state: log p [C], log of what they are divided by."""
    joint = torch.stack([sum(log_p[m, c] for m in range(len(log_p)))
                         for c in range(log_p.shape[1])])
    return Categorical(logits=joint).logits, torch.logsumexp(joint, dim=0)


def derive_product(inputs, params, settings):
    log_p, weights, cotangent = (inputs[name] for name in ("log_p", "weights", "cotangent"))

    def pool():
        return product(torch.stack([weights[m] * log_p[m] for m in range(len(log_p))]))[0]

    log_product, log_normalizer = product(log_p)
    return {"log_normalizer": log_normalizer, "log_product": log_product,
            "log_opinion_pool": pool(),
            **gradients("grad.log_product", lambda: product(log_p)[0] @ cotangent,
                        {"log_p": log_p}),
            **gradients("grad.log_opinion_pool", lambda: pool() @ cotangent,
                        {"log_p": log_p, "weights": weights})}


def record_product(case, seed, M, C, scale=1.0):
    rng = start(seed)
    log_p, weights = normal(rng, M, C, scale=scale), torch.softmax(normal(rng, M), dim=0)
    record("product", case, seed,
           source("Eq. (1.1); Heskes 1998", log_product="torch.distributions.Categorical"),
           {"log_p": log_p, "weights": weights, "cotangent": normal(rng, C)})


# -- Unigauss experts ----------------------------------------------------------------------------

def unigauss(x, logit_pi, mu, log_tau):
    """log p_m(x) on the unit cube, and how probable it is that the Gaussian made x: two numbers."""
    normals = Normal(mu, torch.exp(-0.5 * log_tau)).log_prob(x).sum()
    gaussian, flat = logsigmoid(logit_pi) + normals, logsigmoid(-logit_pi)
    log_p = torch.logaddexp(gaussian, flat)
    return log_p, torch.exp(gaussian - log_p)


def unigauss_step(x, u, epsilon, box, params):
    """One datum: the experts that use their Gaussian, and a draw from the product of these."""
    chosen = [expert for expert, u_m in zip(zip(*params.values()), u)
              if u_m < unigauss(x, *expert)[1]]
    if not chosen:
        return box
    precision = sum(torch.exp(log_tau) for _, _, log_tau in chosen)
    mean = sum(torch.exp(log_tau) * mu for _, mu, log_tau in chosen) / precision
    return mean + epsilon / torch.sqrt(precision)


def derive_unigauss(inputs, params, settings):
    x, u_choice, epsilon, u_box = (inputs[name] for name in ("x", "u_choice", "epsilon", "u_box"))
    (N, D), (K, _, M), rate = x.shape, u_choice.shape, settings["rate"]
    params = {name: params[name] for name in ("logit_pi", "mu", "log_tau")}      # as unigauss has

    def experts(x):
        return [unigauss(x, *expert) for expert in zip(*params.values())]

    def statistics(data):
        return gradients("statistics", lambda: sum(
            log_p for x in data for log_p, _ in experts(x)) / N, params)

    reconstruction = []
    for n in range(N):
        v = x[n]
        for k in range(K):
            v = unigauss_step(v, u_choice[k, n], epsilon[k, n], u_box[k, n], params)
        reconstruction.append(v)
    up, down = statistics(x), statistics(reconstruction)
    step = {name: up[f"statistics.{name}"] - down[f"statistics.{name}"] for name in params}
    step["mu"] = step["mu"] / torch.exp(params["log_tau"])
    for m, i in itertools.product(range(M), range(D)):
        if params["log_tau"][m, i] > 10 and step["log_tau"][m, i] > 0:
            step["log_tau"][m, i] = 0
    return {"responsibilities": torch.stack([torch.stack([r for _, r in experts(v)]) for v in x]),
            "log_density": torch.stack([torch.stack([p for p, _ in experts(v)]) for v in x]),
            "reconstruction": torch.stack(reconstruction), **up,
            **{f"update.{name}": p + rate * step[name] for name, p in params.items()}}


def record_unigauss(case, seed, N, D, M, K, log_tau, logit_pi=0.0):
    rng = start(seed)
    params = {"logit_pi": logit_pi + normal(rng, M), "mu": uniform(rng, M, D),
              "log_tau": log_tau + normal(rng, M, D)}
    owner = rng.integers(0, M, N)           # data are where one of the experts puts them
    x = params["mu"][owner] + torch.exp(-params["log_tau"][owner] / 2) * normal(rng, N, D)
    u_choice, u_box = uniform(rng, K, N, M), uniform(rng, K, N, D)
    inputs = {"x": x, "u_choice": u_choice, "epsilon": normal(rng, K, N, D), "u_box": u_box}
    record("unigauss", case, seed,
           source("Section 4, Eq. (3.6); its update as in I. Murray's replication",
                  log_density="torch.distributions.Normal"), inputs, params, {"rate": 0.5})


# -- Restricted Boltzmann machines ---------------------------------------------------------------

def softplus(x):
    """torch's, which is x itself above 20, and yet 2e-9 from it."""
    return softplus_below(x, threshold=700.0)


def machine(rng, D, H, scale=1.0):
    return {"w": normal(rng, D, H, scale=scale), "a": normal(rng, D), "b": normal(rng, H)}


def log_unnormalized(v, w, a, b):
    """log p*(v): the sum over hidden states taken unit by unit."""
    return a @ v + sum(softplus(b[j] + w[:, j] @ v) for j in range(len(b)))


def probs_of_hidden(v, w, a, b):
    return torch.stack([torch.sigmoid(b[j] + w[:, j] @ v) for j in range(len(b))])


def probs_of_visible(h, w, a, b):
    return torch.stack([torch.sigmoid(a[i] + w[i] @ h) for i in range(len(a))])


def below(u, probs):
    return torch.stack([torch.tensor(float(u_i < p)) for u_i, p in zip(u, probs)])


def difference(name, data, reconstruction, params):
    """The mean over data of d log p* / d theta less that over reconstructions, by autograd."""
    def value():
        return (sum(log_unnormalized(v, **params) for v in data) / len(data)
                - sum(log_unnormalized(v, **params) for v in reconstruction) / len(reconstruction))
    return value(), gradients(name, value, params)


def averages(name, v, h):
    """Of v_i h_j, v_i and h_j, datum by datum."""
    return {f"{name}.w": sum(torch.outer(*pair) for pair in zip(v, h)) / len(v),
            f"{name}.a": sum(v) / len(v), f"{name}.b": sum(h) / len(h)}


def persistent(params, chains):
    """Visible states that the chains reconstruct, and the hidden states that follow."""
    v = [below(u, probs_of_visible(h, **params)) for h, u in zip(chains["h"], chains["u_visible"])]
    h = [below(u, probs_of_hidden(v_r, **params)) for v_r, u in zip(v, chains["u_hidden"])]
    return v, torch.stack(h)


def derive_rbm(inputs, params, settings):
    v, u_hidden, u_visible = (inputs[name] for name in ("v", "u_hidden", "u_visible"))
    K, N, _ = u_hidden.shape
    chains = {name: inputs[f"chains.{name}"] for name in ("h", "u_visible", "u_hidden")}

    steps, state = [], v
    for k in range(K):
        step = {"hidden_probs": [probs_of_hidden(state[n], **params) for n in range(N)]}
        step["h"] = [below(u_hidden[k, n], step["hidden_probs"][n]) for n in range(N)]
        step["visible_probs"] = [probs_of_visible(step["h"][n], **params) for n in range(N)]
        step["v"] = [below(u_visible[k, n], step["visible_probs"][n]) for n in range(N)]
        steps.append(step)
        state = step["v"]
    reconstruction, mean_field = state, steps[0]["visible_probs"]
    positive, negative = ([probs_of_hidden(v_n, **params) for v_n in side]
                          for side in (v, reconstruction))
    fantasies, h = persistent(params, chains)
    loss, contrastive = difference("contrastive_gradient", v, reconstruction, params)
    return {**{f"steps.{k}.{name}": torch.stack(value) for k, step in enumerate(steps)
               for name, value in step.items()},
            "reconstruction": torch.stack(reconstruction), "h": h,
            "positive_hidden": torch.stack(positive), "negative_hidden": torch.stack(negative),
            **averages("positive", v, positive), **averages("negative", reconstruction, negative),
            "mean_field": torch.stack(mean_field),
            "free_energy": torch.stack([-log_unnormalized(v_n, **params) for v_n in v]),
            **contrastive,
            **difference("mean_field_gradient", v, mean_field, params)[1],
            **difference("persistent_gradient", v, fantasies, params)[1],
            "loss": -loss, **{key.replace("contrastive_gradient", "grad.loss"): -g
                              for key, g in contrastive.items()}}


def record_rbm(case, seed, N, D, H, K, R, scale=1.0, grey=False):
    rng = start(seed)
    params, v = machine(rng, D, H, scale), uniform(rng, N, D) if grey else coins(rng, N, D)
    u_hidden, u_visible = uniform(rng, K, N, H), uniform(rng, K, N, D)
    chains = {"h": coins(rng, R, H), "u_visible": uniform(rng, R, D),
              "u_hidden": uniform(rng, R, H)}
    record("rbm", case, seed, source("Section 7, Eqs. (3.6), (7.4) and (9.1); Tieleman 2008"),
           {"v": v, "u_hidden": u_hidden, "u_visible": u_visible,
            **{f"chains.{name}": value for name, value in chains.items()}}, params)


class Draws:
    """A generator that gives what was drawn before, in scikit-learn's order."""

    def __init__(self, *arrays):
        self.arrays = list(arrays)

    def uniform(self, size):
        return self._next(size)

    def randint(self, low, high, size):
        found = self._next((size,))
        assert (low <= found).all() and (found < high).all()
        return found

    def _next(self, shape):
        found = self.arrays.pop(0)
        assert found.shape == tuple(shape)
        return found


def derive_scikit_learn(inputs, params, settings):
    inputs, params = ({name: a.numpy() for name, a in group.items()} for group in (inputs, params))
    v, (N, H) = inputs["v"], inputs["chains.h"].shape
    model = BernoulliRBM(n_components=H, learning_rate=settings["learning_rate"], batch_size=N)
    model.components_, model.h_samples_ = params["w"].T.copy(), inputs["chains.h"].copy()
    model.intercept_visible_, model.intercept_hidden_ = params["a"].copy(), params["b"].copy()
    out = {"hidden_probs": model.transform(v), "free_energy": model._free_energy(v)}
    model.random_state_ = Draws(inputs["u_hidden"], inputs["u_visible"])
    out["gibbs"] = model.gibbs(v).astype(float)
    place = inputs["flipped"].argmax(axis=1)
    with mock.patch("sklearn.neural_network._rbm.check_random_state", lambda _: Draws(place)):
        out["score_samples"] = model.score_samples(v)
    model.random_state_ = Draws(inputs["chains.u_visible"], inputs["chains.u_hidden"])
    model.partial_fit(v)
    return {**out, "h": model.h_samples_, "updated.w": model.components_.T,
            "updated.a": model.intercept_visible_, "updated.b": model.intercept_hidden_}


def record_scikit_learn(case, seed, N, D, H, scale=1.0):
    rng = start(seed)
    params, v, h = machine(rng, D, H, scale), coins(rng, N, D), coins(rng, N, H)
    u = {name: uniform(rng, *shape) for name, shape in [
        ("hidden", (N, H)), ("visible", (N, D)), ("h", (N, H)), ("v", (N, D))]}
    place = torch.from_numpy(rng.integers(0, D, N))
    record("scikit_learn", case, seed, SCIKIT_LEARN,
           {"v": v, "u_hidden": u["hidden"], "u_visible": u["visible"], "chains.h": h,
            "chains.u_visible": u["v"], "chains.u_hidden": u["h"],
            "flipped": torch.arange(D) == place[:, None]}, params, {"learning_rate": 0.3},
           ("scikit-learn", "numpy"))


# -- Small machines, state by state --------------------------------------------------------------

def states(n):
    return [torch.tensor(state, dtype=torch.float64)
            for state in itertools.product([0, 1], repeat=n)]


def bernoulli(state, probs_of_others, w, a, b):
    """The probability of a state, given the other side's."""
    return torch.prod(torch.where(state == 1, probs_of_others, 1 - probs_of_others))


def after_steps(q, k, w, a, b):
    """Q^k, by walking from every state through every hidden state to every state."""
    visible, hidden = states(len(a)), states(len(b))
    for _ in range(k):
        reached = [torch.tensor(0.0)] * len(visible)
        for v, q_v in zip(visible, q):
            p_h = probs_of_hidden(v, w, a, b)
            for h in hidden:
                through = q_v * bernoulli(h, p_h, w, a, b)
                p_v = probs_of_visible(h, w, a, b)
                reached = [r + through * bernoulli(end, p_v, w, a, b)
                           for r, end in zip(reached, visible)]
        q = reached
    return torch.stack(list(q))


def log_probs_of_all(w, a, b):
    """log p(v), from the energies of all pairs of a visible and a hidden state."""
    joint = torch.stack([torch.stack([a @ v + b @ h + v @ w @ h for h in states(len(b))])
                         for v in states(len(a))])
    log_z = torch.logsumexp(joint.reshape(-1), dim=0)
    return torch.logsumexp(joint, dim=1) - log_z, log_z


def kl(q, log_p):
    return sum(q_c * (torch.log(q_c) - log_p_c) for q_c, log_p_c in zip(q, log_p) if q_c > 0)


def derive_enumeration(inputs, params, settings):
    q, k, (D, H) = inputs["q"], settings["k"], params["w"].shape

    def likelihood():
        return q @ log_probs_of_all(**params)[0]

    def divergence():
        log_p, _ = log_probs_of_all(**params)
        return kl(q, log_p) - kl(after_steps(q, k, **params), log_p)

    q_k = after_steps(q, k, **params)

    def direction():
        log_p = torch.stack([log_unnormalized(v, **params) for v in states(D)])
        return (q - q_k) @ log_p

    log_p, log_z = log_probs_of_all(**params)
    experts = [torch.log_softmax(torch.stack([softplus(params["b"][j] + params["w"][:, j] @ v)
                                              for v in states(D)]), dim=0) for j in range(H)]
    proportions = []
    for j in range(H):      # exp(b + w v) is what is not uniform, 1 what is
        on = sum(torch.exp(params["b"][j] + params["w"][:, j] @ v) for v in states(D))
        proportions.append(on / (2 ** D + on))
    return {"log_partition": log_z, "log_probs": log_p,
            "expert_proportions": torch.stack(proportions),
            "expert_log_probs": torch.stack(experts, dim=1), "reconstructed": q_k,
            **gradients("exact_gradient", likelihood, params),
            **gradients("expected_contrastive_gradient", direction, params),
            "contrastive_divergence": divergence(),
            **gradients("grad.contrastive_divergence", divergence, params)}


def record_enumeration(case, seed, D, H, k, scale=1.0, data=None):
    rng = start(seed)
    params = machine(rng, D, H, scale)
    q = torch.softmax(normal(rng, 2 ** D), dim=0)
    if data:
        drawn = rng.integers(0, 2 ** D, data)
        q = torch.from_numpy(np.bincount(drawn, minlength=2 ** D) / data)
    record("enumeration", case, seed, source("Eqs. (1.1), (2.1), (3.1) and (3.6)"), {"q": q},
           params, {"k": k})


# -- Annealed importance sampling ----------------------------------------------------------------

def derive_annealing(inputs, params, settings):
    base, betas, u_start, u_hidden, u_visible = (inputs[name] for name in (
        "base", "betas", "u_start", "u_hidden", "u_visible"))
    R, T, H = len(u_start), len(u_hidden), len(params["b"])

    def between(beta):
        return {"w": beta * params["w"], "a": (1 - beta) * base + beta * params["a"],
                "b": beta * params["b"]}

    log_weights = []
    for r in range(R):
        v, log_w = below(u_start[r], torch.sigmoid(base)), torch.tensor(0.0)
        for t in range(1, T + 2):
            log_w = log_w + (log_unnormalized(v, **between(betas[t]))
                             - log_unnormalized(v, **between(betas[t - 1])))
            if t <= T:
                h = below(u_hidden[t - 1, r], probs_of_hidden(v, **between(betas[t])))
                v = below(u_visible[t - 1, r], probs_of_visible(h, **between(betas[t])))
        log_weights.append(log_w)
    w = torch.exp(torch.stack(log_weights))
    z = torch.prod(1 + torch.exp(base)) * 2 ** H * w.mean()
    return {"log_partition": torch.log(z), "log_weights": torch.stack(log_weights),
            "effective": w.sum() ** 2 / (w ** 2).sum()}


def record_annealing(case, seed, D, H, R, T):
    """T steps between, hence T + 2 betas."""
    rng = start(seed)
    params, base = machine(rng, D, H), normal(rng, D)
    betas = torch.from_numpy(np.sort(np.concatenate([[0.0, 1.0], rng.random(T)])))
    record("annealing", case, seed, source("Section 7; Salakhutdinov and Murray 2008"),
           {"base": base, "betas": betas, "u_start": uniform(rng, R, D),
            "u_hidden": uniform(rng, T, R, H), "u_visible": uniform(rng, T, R, D)}, params)


DERIVATIONS = {"product": derive_product, "unigauss": derive_unigauss, "rbm": derive_rbm,
               "scikit_learn": derive_scikit_learn, "enumeration": derive_enumeration,
               "annealing": derive_annealing}
THIRD_PARTY = {"scikit_learn": "scikit-learn"}


if __name__ == "__main__":
    record_product("three_experts", seed=0, M=3, C=5)
    record_product("one_expert", seed=1, M=1, C=4)
    record_product("sharp", seed=2, M=8, C=6, scale=100.0)         # exp(-800) is 0
    record_unigauss("one_step", seed=3, N=7, D=2, M=4, K=1, log_tau=3.0)
    record_unigauss("three_steps", seed=4, N=6, D=3, M=5, K=3, log_tau=2.0)
    record_unigauss("thin", seed=5, N=6, D=1, M=4, K=2, log_tau=10.0, logit_pi=2.0)   # held at 10
    record_unigauss("mostly_flat", seed=6, N=8, D=2, M=2, K=2, log_tau=1.0, logit_pi=-4.0)
    record_rbm("one_step", seed=7, N=6, D=5, H=4, K=1, R=3)
    record_rbm("four_steps", seed=8, N=5, D=3, H=6, K=4, R=7)
    record_rbm("grey", seed=9, N=6, D=5, H=4, K=1, R=2, grey=True)
    record_rbm("large_weights", seed=10, N=6, D=8, H=4, K=2, R=6, scale=20.0)   # probabilities of 0
    record_scikit_learn("one_batch", seed=11, N=6, D=5, H=4)
    record_scikit_learn("large_weights", seed=12, N=4, D=8, H=3, scale=20.0)
    record_enumeration("one_step", seed=13, D=4, H=3, k=1)
    record_enumeration("three_steps", seed=14, D=3, H=4, k=3)
    record_enumeration("few_data", seed=15, D=4, H=2, k=2, data=3)   # most states were never seen
    record_enumeration("large_weights", seed=16, D=4, H=3, k=1, scale=5.0)
    record_annealing("uneven", seed=17, D=5, H=4, R=6, T=8)
    record_annealing("in_one_step", seed=18, D=4, H=3, R=5, T=1)

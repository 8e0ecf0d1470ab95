"""Record hierarchical mixtures of experts (Neural Computation 6:181-214) in PyTorch.

    python -m reference_runs.papers.hierarchical_1994

Written from the paper, case by case, each tree walked by recursion from its root, each node fitted
by itself: least squares by torch.linalg.lstsq on stacked rows, Newton steps with the gradient and
the Hessian that torch.autograd finds, running inverses by torch.linalg.inv. Densities are those of
torch.distributions. The last digit of a least squares fit differs from one recording to the next.
"""
import math

import torch
from torch.autograd.functional import hessian, jacobian
from torch.distributions import Bernoulli, Normal

from reference_runs.recorder import save, start

torch.set_default_dtype(torch.float64)
SOURCE = {"kind": "transcription",
          "of": "Jordan and Jacobs 1994, Eqs. (2.1)-(2.32) and Algorithm 2",
          "log_density": "torch.distributions.Normal and Bernoulli",
          "least_squares": "torch.linalg.lstsq"}


# -- The tree, one case at a time ----------------------------------------------------------------

def walk(x, y, w_gates, w_leaves, variance, bernoulli, level=0, node=0):
    """What is known at a node, for one case: of itself and, by place, of everything below it."""
    if level == len(w_gates):
        eta = w_leaves[:, node].T @ x
        if bernoulli:
            mu, log_p = torch.sigmoid(eta), Bernoulli(logits=eta).log_prob(y).sum()
        else:
            mu, log_p = eta, Normal(eta, variance[node].sqrt()).log_prob(y).sum()
        return {"output": mu, "log_p": log_p, "mu": {node: mu}, "log_density": {node: log_p},
                "log_g": {}, "log_h": {}}
    branches = w_gates[level].shape[2]
    logits = torch.stack([w_gates[level][:, node, j] @ x for j in range(branches)])
    log_g = logits - torch.logsumexp(logits, dim=0)                              # (2.3), (2.5)
    below = [walk(x, y, w_gates, w_leaves, variance, bernoulli, level + 1, node * branches + j)
             for j in range(branches)]
    joint = torch.stack([log_g[j] + below[j]["log_p"] for j in range(branches)])
    found = {"output": sum(torch.exp(log_g[j]) * below[j]["output"] for j in range(branches)),
             "log_p": torch.logsumexp(joint, dim=0)}                             # (2.8)
    for name in ["mu", "log_density", "log_g", "log_h"]:
        found[name] = {place: value for b in below for place, value in b[name].items()}
    found["log_g"][level, node] = log_g
    found["log_h"][level, node] = torch.log_softmax(joint, dim=0)                # (2.10), (2.11)
    return found


def by_level(cases, name, branching):
    """[N, nodes, branches] of each level, from what the walks found."""
    return [torch.stack([torch.stack([found[name][level, node]
                                      for node in range(math.prod(branching[:level]))])
                         for found in cases]) for level in range(len(branching))]


def at_leaves(cases, name):
    return torch.stack([torch.stack([found[name][leaf] for leaf in sorted(found[name])])
                        for found in cases])


def shares(log_h, level, node):
    """With what weight each case reaches a node: the product of the branches above. (2.12)"""
    if level == 0:
        return torch.ones(len(log_h[0]), dtype=torch.float64)
    branches = log_h[level - 1].shape[2]
    parent, branch = divmod(node, branches)
    return shares(log_h, level - 1, parent) * torch.exp(log_h[level - 1][:, parent, branch])


# -- The M-step, one node at a time --------------------------------------------------------------

def least_squares(w, x, target, weight, ridge):
    """argmin of sum_t weight_t |target_t - w x_t|^2 + ridge |w - its present value|^2."""
    rows = torch.cat([weight.sqrt()[:, None] * x, math.sqrt(ridge) * torch.eye(x.shape[1])])
    aims = torch.cat([weight.sqrt()[:, None] * target, math.sqrt(ridge) * w])
    return torch.linalg.lstsq(rows, aims).solution


def newton(w, q, ridge, steps):
    """Climbs q from w, a vector, halving each step until q does not fall."""
    for _ in range(steps):
        step = torch.linalg.solve(ridge * torch.eye(len(w)) - hessian(q, w), jacobian(q, w))
        while q(w + step) < q(w) - 1e-12 * abs(q(w)):
            step = step / 2
        w = w + step
    return w


def fit_gate(w, x, h, ridge, steps):
    """(2.23), (2.24) at one node: w [D, branches], h [N, branches]; the last column stays."""
    D, branches = w.shape
    if branches == 1:
        return w

    def q(free):
        logits = x @ torch.cat([free.reshape(branches - 1, D), w[:, -1][None]]).T
        return (h * torch.log_softmax(logits, dim=1)).sum()

    free = newton(w[:, :-1].T.reshape(-1), q, ridge, steps)
    return torch.cat([free.reshape(branches - 1, D).T, w[:, -1:]], dim=1)


def fit_yes_or_no(w, x, y, h, ridge, steps):
    """(2.22) for one output of one Bernoulli leaf: w [D], y [N], h [N]."""
    return newton(w, lambda w: (h * Bernoulli(logits=x @ w).log_prob(y)).sum(), ridge, steps)


def fit_leaf(w, variance, x, y, h, bernoulli, ridge, steps, floor):
    """(2.22) for one leaf: w [D, O]."""
    O = y.shape[1]
    if bernoulli:
        return torch.stack([fit_yes_or_no(w[:, o], x, y[:, o], h, ridge, steps)
                            for o in range(O)], dim=1), variance
    w = least_squares(w, x, y, h, ridge)
    misfit = sum(h[t] * ((y[t] - x[t] @ w) ** 2).sum() for t in range(len(x)))
    return w, torch.clamp((misfit + ridge * variance) / (O * h.sum() + ridge), min=floor)


def m_step(params, x, y, log_h, settings, fit):
    """New parameters by name; ``fit(w, level, node, share)`` fits a gate."""
    w_gates, w_leaves, variance = params
    out = {}
    for level, w in enumerate(w_gates):
        out[f"w_gates.{level}"] = torch.stack(
            [fit(w[:, node], level, node, shares(log_h, level, node))
             for node in range(w.shape[1])], dim=1)
    leaves = [fit_leaf(w_leaves[:, leaf], variance[leaf], x, y, shares(log_h, len(w_gates), leaf),
                       settings["bernoulli"], settings["ridge"], settings["newton_steps"],
                       settings["variance_floor"]) for leaf in range(w_leaves.shape[1])]
    out["w_leaves"] = torch.stack([w for w, _ in leaves], dim=1)
    out["variance"] = torch.stack([v for _, v in leaves])
    return out


# -- On-line -------------------------------------------------------------------------------------

def online_step(params, x, y, log_h, settings, weighted):
    """(2.27)-(2.32) on the case x [D], y [O], from inverses of I / ridge."""
    w_gates, w_leaves, variance = params
    decay, ridge = settings["decay"], settings["ridge"]
    out, gates = {}, {}

    def moved(w, target, share):
        moments = decay * ridge * torch.eye(len(x))
        moments = moments + (share if weighted else 1.0) * torch.outer(x, x)
        R = torch.linalg.inv(moments)
        return w + torch.outer(R @ x, share * (target - x @ w)), R

    for level, w in enumerate(w_gates):
        found = [moved(w[:, node], torch.clamp(log_h[level][0, node], min=math.log(1e-12)),
                       shares(log_h, level, node)[0]) for node in range(w.shape[1])]
        out[f"params.w_gates.{level}"] = torch.stack([w for w, _ in found], dim=1)
        gates[f"gates.{level}"] = torch.stack([R for _, R in found])
    found = [moved(w_leaves[:, leaf], y, shares(log_h, len(w_gates), leaf)[0])
             for leaf in range(w_leaves.shape[1])]
    out["params.w_leaves"] = torch.stack([w for w, _ in found], dim=1)
    out["params.variance"] = variance
    return {**out, **gates, "leaves": torch.stack([R for _, R in found])}


# -- A run ---------------------------------------------------------------------------------------

def derive(inputs, named, settings):
    x, y, cotangent = inputs["x"], inputs["y"], inputs["cotangent"]
    bernoulli, ridge, N = settings["bernoulli"], settings["ridge"], len(x)
    w_gates = [named[f"w_gates.{level}"] for level in range(len(named) - 2)]
    w_leaves, variance = named["w_leaves"], named["variance"]
    branching = [w.shape[2] for w in w_gates]

    for w in named.values():
        w.requires_grad_()
    cases = [walk(x[t], y[t], w_gates, w_leaves, variance, bernoulli) for t in range(N)]
    l = sum(cotangent[t] * cases[t]["log_p"] for t in range(N))
    gradients = torch.autograd.grad(l, list(named.values()), allow_unused=True)
    for w in named.values():
        w.requires_grad_(False)

    params = w_gates, w_leaves, variance
    log_g, log_h = (by_level(cases, name, branching) for name in ["log_g", "log_h"])
    log_g, log_h = ([level.detach() for level in levels] for levels in (log_g, log_h))
    log_density = at_leaves(cases, "log_density").detach()
    paths = [torch.stack([shares(log_h, level, node)[:, None] * torch.exp(log_h[level][:, node])
                          for node in range(log_h[level].shape[1])], dim=1)
             for level in range(len(branching))]

    Q = []                                                                       # (2.21)
    for t in range(N):
        terms = []
        for leaf in range(math.prod(branching)):
            log_p, node = log_density[t, leaf], leaf
            for level in reversed(range(len(branching))):
                node, branch = divmod(node, branching[level])
                log_p = log_p + log_g[level][t, node, branch]
            terms.append(shares(log_h, len(branching), leaf)[t] * log_p)
        Q.append(sum(terms))

    def by_newton(w, level, node, share):
        h = share[:, None] * torch.exp(log_h[level][:, node])
        return fit_gate(w, x, h, ridge, settings["newton_steps"])

    def by_least_squares(w, level, node, share):
        target = torch.clamp(log_h[level][:, node], min=math.log(1e-12))
        return least_squares(w, x, target, share, ridge)

    linear = [walk(x[t], y[t], *params, bernoulli=0) for t in range(N)]
    log_h_linear = by_level(linear, "log_h", branching)   # the on-line form is for Gaussian leaves
    steps = {"em": m_step(params, x, y, log_h, settings, by_newton),
             "least_squares": m_step(params, x, y, log_h, settings, by_least_squares),
             "running": online_step(params, x[0], y[0], log_h_linear, settings, weighted=False),
             "running_weighted": online_step(params, x[0], y[0], log_h_linear, settings,
                                             weighted=True)}
    return {**{f"gates.{level}": torch.exp(g) for level, g in enumerate(log_g)},
            "mu": at_leaves(cases, "mu"),
            "prediction": torch.stack([found["output"] for found in cases]),
            "log_density": log_density,
            "log_likelihood": torch.stack([found["log_p"] for found in cases]),
            **{f"h.{level}": torch.exp(h) for level, h in enumerate(log_h)},
            **{f"paths.{level}": path for level, path in enumerate(paths)},
            "Q": torch.stack(Q),
            **{f"grad.log_likelihood.{name}": torch.zeros_like(w) if g is None else g
               for (name, w), g in zip(named.items(), gradients)},
            **{f"{step}.{name}": value for step, values in steps.items()
               for name, value in values.items()}}


def record(case, seed, N, D, O, branching, bernoulli=0, far=1.0, long=1.0, ridge=1e-3):
    """``far`` scales the targets, ``long`` the last case's input."""
    rng = start(seed)

    def draw(*shape):
        return torch.from_numpy(rng.standard_normal(shape))

    x, y, cotangent = draw(N, D), far * draw(N, O), draw(N)
    x[:, -1] = 1
    x[-1] *= long
    if bernoulli:
        y = (y > 0).double()
    named = {f"w_gates.{level}": draw(D, math.prod(branching[:level]), branches)
             for level, branches in enumerate(branching)}
    named["w_leaves"] = draw(D, math.prod(branching), O)
    named["variance"] = torch.from_numpy(0.5 + rng.random(math.prod(branching)))
    settings = {"bernoulli": bernoulli, "ridge": ridge, "newton_steps": 3, "variance_floor": 1e-2,
                "decay": 0.9}
    inputs = {"x": x, "y": y, "cotangent": cotangent}
    save(f"hierarchical_1994/{case}", source=SOURCE, seed=seed, **{"in": inputs}, param=named,
         set=settings, out=derive(inputs, named, settings))


DERIVATIONS = {"": derive}


if __name__ == "__main__":
    record("two_by_two", seed=0, N=12, D=3, O=2, branching=(2, 2))
    record("three_levels", seed=1, N=12, D=3, O=1, branching=(2, 2, 2))
    record("mixed_branching", seed=2, N=12, D=2, O=2, branching=(3, 1, 2))
    record("one_level", seed=3, N=12, D=3, O=2, branching=(5,))
    record("one_leaf", seed=4, N=6, D=3, O=2, branching=(1,))
    record("one_case", seed=5, N=1, D=3, O=2, branching=(2, 2))
    record("bernoulli", seed=6, N=12, D=3, O=2, branching=(2, 3), bernoulli=1)
    record("far_targets", seed=7, N=12, D=3, O=2, branching=(2, 2), far=1000.0)   # every P_ij is 0
    record("extreme_logits", seed=8, N=12, D=3, O=2, branching=(2, 2), long=500.0, ridge=10.0)

"""Record adaptive mixtures of local experts (Neural Computation 3(1):79-87) in PyTorch.

    python -m reference_runs.papers.local_experts_1991

Written from the paper, case by case and expert by expert. The mixture's likelihood, Eq. (1.3), is
PyTorch's own: torch.distributions.MixtureSameFamily, less the Gaussian's constant, which the paper
drops. Gradients are torch.autograd's.
"""
import math

import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from reference_runs.recorder import save, start

SOURCE = {"kind": "transcription",
          "of": "Jacobs et al. 1991, Figure 1 and Eqs. (1.1)-(1.5)",
          "mixture_error": "torch.distributions.MixtureSameFamily"}


def run_case(x, d, u, w_experts, w_gate):
    """All outputs for one case: x [D], d [O], u []."""
    D, E, O = w_experts.shape
    logits = torch.stack([sum(x[k] * w_gate[k, i] for k in range(D)) for i in range(E)])
    o = torch.stack([torch.stack([torch.sigmoid(sum(x[k] * w_experts[k, i, j] for k in range(D)))
                                  for j in range(O)]) for i in range(E)])
    weights = [torch.exp(logit - logits.max().detach()) for logit in logits]
    p = [weight / sum(weights) for weight in weights]
    q = [((d - o[i]) ** 2).sum() for i in range(E)]

    expert, covered = 0, p[0]
    while u >= covered and expert < E - 1:
        expert += 1
        covered = covered + p[expert]

    blend = sum(p[i] * o[i] for i in range(E))
    mixture = MixtureSameFamily(Categorical(logits=logits), Independent(Normal(o, 1.0), 1))
    error = -mixture.log_prob(d) - O / 2 * math.log(2 * math.pi)                  # Eq. (1.3)
    log_p = logits - torch.logsumexp(logits, dim=0)
    return {
        "o": o, "logits": logits, "p": torch.stack(p), "q": torch.stack(q),
        "expert": torch.tensor(expert), "blend": blend, "switch": o[expert],
        "h": torch.softmax(log_p - torch.stack(q) / 2, dim=0),
        "cooperative_error": ((d - blend) ** 2).sum(),                            # Eq. (1.1)
        "competitive_error": sum(p[i] * q[i] for i in range(E)),                  # Eq. (1.2)
        "mixture_error": error,
    }


def derive(inputs, params, settings):
    x, d, u, cotangent = (inputs[name] for name in ("x", "d", "u", "cotangent"))
    for w in params.values():
        w.requires_grad_()
    N = len(x)
    cases = [run_case(x[c], d[c], u[c], **params) for c in range(N)]
    out = {name: torch.stack([found[name] for found in cases]) for name in cases[0]}
    gradients = {}
    for error in ["cooperative_error", "competitive_error", "mixture_error"]:
        loss = sum(cotangent[c] * cases[c][error] for c in range(N))
        found = torch.autograd.grad(loss, list(params.values()), retain_graph=True,
                                    materialize_grads=True)
        gradients.update({f"grad.{error}.{name}": g for name, g in zip(params, found)})
    return {**out, **gradients}


def record(case, seed, N, D, E, O, far=1.0, long=1.0):
    """``far`` scales the targets, ``long`` the first case's input."""
    rng = start(seed)

    def draw(*shape):
        return torch.from_numpy(rng.standard_normal(shape))

    x, d, cotangent = draw(N, D), far * draw(N, O), draw(N)
    x[0] *= long
    u = torch.from_numpy(rng.random(N))
    params = {"w_experts": draw(D, E, O), "w_gate": draw(D, E)}
    inputs = {"x": x, "d": d, "u": u, "cotangent": cotangent}
    save(f"local_experts_1991/{case}", source=SOURCE, seed=seed, **{"in": inputs}, param=params,
         out=derive(inputs, params, {}))


DERIVATIONS = {"": derive}


if __name__ == "__main__":
    record("roomy", seed=0, N=8, D=3, E=4, O=2)
    record("one_case", seed=1, N=1, D=4, E=3, O=3)
    record("one_expert", seed=2, N=5, D=3, E=1, O=2)
    record("many_experts", seed=3, N=6, D=5, E=16, O=1)
    record("far_targets", seed=4, N=6, D=3, E=4, O=2, far=1000.0)       # exp(-q / 2) is 0
    record("extreme_logits", seed=5, N=6, D=3, E=4, O=2, long=1000.0)   # a p of exactly 0

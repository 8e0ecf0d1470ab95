"""Record multimodal variational autoencoders (arXiv:1802.05335v3) in PyTorch.

    pip install --no-deps multivae==1.0.3 pythae==0.1.2 torchmetrics lightning-utilities
    pip install scikit-learn pandas nltk cloudpickle pydantic imageio
    python -m reference_runs.papers.mvae_2018

The kinds multivae and log_likelihood are MultiVae's MVAE, unmodified, with the encoders and
decoders below and the recorded draws in place of PyTorch's own; product and objective are written
from the paper, datum by datum, with densities and divergences of torch.distributions.
"""
from unittest import mock

import torch
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence
from torch.nn import Linear, Module, ModuleList

import reference_runs.without_torchvision  # noqa: F401   before multivae

from multivae.data.datasets.base import IncompleteDataset, MultimodalBaseDataset
from multivae.models import MVAE, MVAEConfig
from pythae.models.base.base_model import BaseDecoder, BaseEncoder
from pythae.models.base.base_utils import ModelOutput

from reference_runs.recorder import save, start

torch.set_default_dtype(torch.float64)
torch.distributions.Distribution.set_default_validate_args(False)    # grey pixels are no coins
PAPER = "mvae_2018"
MULTIVAE = {"kind": "third-party", "repository": "AgatheSenellart/MultiVae", "commit": "1.0.3",
            "entry": "multivae.models.MVAE"}
PACKAGES = ("torch", "numpy", "multivae", "pythae")
M, D, H, WIDTHS = 3, 3, 4, (5, 4, 3)


# -- Networks ------------------------------------------------------------------------------------

class Encoder(BaseEncoder):
    def __init__(self, width, D, H):
        BaseEncoder.__init__(self)
        self.latent_dim = D
        self.hidden = ModuleList([Linear(width, H)])
        self.mean, self.log_variance = Linear(H, D), Linear(H, D)

    def forward(self, x):
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return ModelOutput(embedding=self.mean(x), log_covariance=self.log_variance(x))


class Decoder(BaseDecoder):
    def __init__(self, width, D, H):
        BaseDecoder.__init__(self)
        self.layers = ModuleList([Linear(D, H), Linear(H, width)])

    def forward(self, z):
        return ModelOutput(reconstruction=self.layers[1](torch.relu(self.layers[0](z))))


class Networks(Module):
    def __init__(self, widths, D, H):
        super().__init__()
        self.widths, self.D = widths, D
        self.encoders = ModuleList([Encoder(width, D, H) for width in widths])
        self.decoders = ModuleList([Decoder(width, D, H) for width in widths])

    @classmethod
    def drawn(cls, rng):
        networks = cls(WIDTHS, D, H)
        with torch.no_grad():
            for p in networks.parameters():
                p.copy_(normal(rng, *p.shape))
        return networks

    @classmethod
    def of(cls, params):
        """Those that have these parameters, by name."""
        first = [params[f"encoders.{m}.hidden.0.w"] for m in range(M)]
        networks = cls([len(w) for w in first], len(params["encoders.0.mean.b"]),
                       first[0].shape[1])
        for name, p in networks.named(lambda p: p.data).items():     # views of what is its own
            p.copy_(params[name])
        return networks

    def named(self, of):
        """What ``of`` gives for each parameter, by the name and in the layout of [input, output].

        torch.nn.Linear holds its matrix the other way round.
        """
        found = {}
        for name, p in self.named_parameters():
            name = name.replace(".layers.", ".").replace(".weight", ".w").replace(".bias", ".b")
            found[name] = of(p).T if name.endswith(".w") else of(p)
        return found


def normal(rng, *shape):
    return torch.from_numpy(rng.standard_normal(shape))


def data(rng, N):
    """Two modalities of grey pixels, one of labels."""
    label = torch.from_numpy(rng.integers(0, WIDTHS[2], N))
    return [*(torch.from_numpy(rng.random((N, width))) for width in WIDTHS[:2]),
            torch.nn.functional.one_hot(label, WIDTHS[2]).to(torch.float64)]


# -- Products, expert by expert ------------------------------------------------------------------

def product(experts):
    """Mean and log-variance of a product of densities N(mean, variance)^power, for one number."""
    precision = sum(power / variance for _, variance, power in experts)
    mean = sum(power * mean / variance for mean, variance, power in experts) / precision
    return mean, -torch.log(precision)


def released(experts, epsilon=1e-8):
    """As ProductOfExperts of the released code, line by line."""
    variances = [variance + epsilon for _, variance, _ in experts]
    T = [1 / (variance + epsilon) for variance in variances]
    mean = sum(mean * t for (mean, _, _), t in zip(experts, T)) / sum(T)
    return mean, torch.log(1 / sum(T) + epsilon)


def derive_product(inputs, params, settings):
    mean, log_variance, present = (inputs[name] for name in ("mean", "log_variance", "present"))
    M, N, D = mean.shape
    leaves = {"mean": mean.requires_grad_(), "log_variance": log_variance.requires_grad_()}
    prior = (torch.zeros(()), torch.ones(()), 1)

    def everywhere(one):
        both = [[one(n, d, [(mean[m, n, d], torch.exp(log_variance[m, n, d]), 1)
                            for m in range(M)]) for d in range(D)] for n in range(N)]
        return [torch.stack([torch.stack([pair[i] for pair in row]) for row in both])
                for i in range(2)]

    variance = torch.exp(log_variance)
    out = {"standard_deviation": torch.sqrt(variance), "precision": 1 / variance}
    for name, one in {
            "product_of_experts": lambda n, d, experts: product(
                [prior, *(e for m, e in enumerate(experts) if present[m, n])]),
            "product_with_quotients": lambda n, d, experts: product(
                [*experts, (*prior[:2], 1 - M)]),
            "product_of_experts_released": lambda n, d, experts: released([*experts, prior]),
    }.items():
        found = with_deviation(*everywhere(one))
        out.update({f"{name}.{part}": value for part, value in found.items()})
        for part in leaves:
            gradients = torch.autograd.grad((found[part] * inputs["cotangent"]).sum(),
                                            list(leaves.values()), allow_unused=True,
                                            retain_graph=True)
            out.update({f"grad.{name}.{part}.{key}": torch.zeros_like(a) if g is None else g
                        for (key, a), g in zip(leaves.items(), gradients)})
    return out


def record_product(case, seed, M, N, D, missing=False, narrow=0.0):
    rng = start(seed)
    mean, log_variance = normal(rng, M, N, D), normal(rng, M, N, D)
    log_variance = -narrow - log_variance.abs()       # at most the prior's: a quotient exists
    present = torch.ones(M, N, dtype=bool)
    if missing:
        present = torch.from_numpy(rng.random((M, N)) < 0.5)
        present[:, 0] = False
    inputs = {"mean": mean, "log_variance": log_variance, "present": present,
              "cotangent": normal(rng, N, D)}
    save(f"{PAPER}/product/{case}", seed=seed,
         source={"kind": "transcription", "of": "arXiv:1802.05335v3, Eq. (3); "
                 "mhw32/multimodal-vae-public at 2a358eb, ProductOfExperts"},
         **{"in": inputs}, out=derive_product(inputs, {}, {}))


def with_deviation(mean, log_variance):
    return {"mean": mean, "log_variance": log_variance,
            "standard_deviation": torch.sqrt(torch.exp(log_variance))}


# -- The objective, datum by datum ---------------------------------------------------------------

def log_likelihood(m, x, logits):
    if m == 2:
        return Categorical(logits=logits).log_prob(x.argmax())
    return Bernoulli(logits=logits).log_prob(x).sum()


def bound(networks, x, members, epsilon, weights, beta):
    """For one datum: x is {m: [D_m]} of what it has. All terms of the bound, and the bound."""
    D = networks.D
    found = [networks.encoders[m](x[m][None]) for m in members if m in x]
    experts = [(e.embedding[0], torch.exp(e.log_covariance[0]), 1) for e in found]
    mean, log_variance = product([(torch.zeros(D), torch.ones(D), 1), *experts])
    posterior = Normal(mean, torch.exp(log_variance / 2))
    z = mean + posterior.scale * epsilon
    kl = kl_divergence(posterior, Normal(torch.zeros(D), torch.ones(D))).sum()
    found = {m: log_likelihood(m, x[m], networks.decoders[m](z).reconstruction)
             if m in x else torch.tensor(0.0) for m in members}
    return {**{f"posterior.{name}": a for name, a in with_deviation(mean, log_variance).items()},
            "z": z, **{f"log_likelihoods.{i}": found[m] for i, m in enumerate(members)}, "kl": kl,
            "elbo": -beta * kl + sum(weights[m] * found[m] for m in members)}


def derive_objective(inputs, params, settings, multivae=False):
    """The text's objective, or MultiVae's."""
    networks, x = Networks.of(params), [inputs[f"x.{m}"] for m in range(M)]
    present, epsilon = inputs["present"], inputs["epsilon"]
    chosen = [tuple(m for m in range(M) if row[m]) for row in settings["chosen"]]
    weights, beta, N = settings["weights"], settings["beta"], len(x[0])
    by_datum = [[bound(networks, {m: x[m][n] for m in range(M) if present[m, n]}, members,
                       epsilon[i, n], weights, beta) for n in range(N)]
                for i, members in enumerate(chosen)]
    stacked = [{name: torch.stack([found[name] for found in data]) for name in data[0]}
               for data in by_datum]
    elbos = torch.stack([found.pop("elbo") for found in stacked])
    x = [torch.where(here[:, None], a, 0.0) for a, here in zip(x, present)]
    experts = [encoder(a) for encoder, a in zip(networks.encoders, x)]
    objective = -loss_of_multivae(networks, x, present, chosen, epsilon, weights, beta) \
        if multivae else sum(elbos[:, n].sum() for n in range(N)) / N
    if objective.requires_grad:          # not where nothing is there
        objective.backward()
    return {**{f"experts.{m}.{name}": a for m, found in enumerate(experts) for name, a in
               with_deviation(found.embedding, found.log_covariance).items()},
            **{".".join([*name.split(".")[:1], str(i), *name.split(".")[1:]]): value
               for i, found in enumerate(stacked) for name, value in found.items()},
            "elbos": elbos, "objective": objective,
            **{f"grad.objective.{name}": g for name, g in networks.named(
                lambda p: torch.zeros_like(p) if p.grad is None else p.grad).items()}}


def derive_multivae(inputs, params, settings):
    return derive_objective(inputs, params, settings, multivae=True)


def record_objective(case, seed, N, chosen, missing, weights=(1.0, 1.0, 1.0), beta=1.0,
                     multivae=False):
    rng = start(seed)
    networks = Networks.drawn(rng)
    x = data(rng, N)
    present = torch.ones(M, N, dtype=bool)
    if missing:
        present = torch.from_numpy(rng.random((M, N)) < 0.6)
        present[:, 0] = False
        present[:, 1] = True
        x = [a * here[:, None] for a, here in zip(x, present)]
    inputs = {**{f"x.{m}": a for m, a in enumerate(x)}, "present": present,
              "epsilon": normal(rng, len(chosen), N, D)}
    params = networks.named(lambda p: p.detach())
    settings = {"chosen": [[int(m in members) for m in range(M)] for members in chosen],
                "weights": weights, "beta": beta}
    save(f"{PAPER}/{'multivae' if multivae else 'objective'}/{case}", seed=seed,
         packages=PACKAGES if multivae else PACKAGES[:2],
         source={**MULTIVAE, "all before objective": "transcription"} if multivae else
         {"kind": "transcription", "of": "arXiv:1802.05335v3, Eqs. (2)-(4)",
          "densities": "torch.distributions"},
         **{"in": inputs}, param=params, set=settings,
         out=derive_objective(inputs, params, settings, multivae))


# -- MultiVae ------------------------------------------------------------------------------------

def model(networks, k, weights, warmup, subsampling=True):
    names = [f"m{m}" for m in range(M)]
    config = MVAEConfig(
        n_modalities=M, latent_dim=networks.D, k=k, use_subsampling=subsampling,
        input_dims={n: (w,) for n, w in zip(names, networks.widths)},
        decoders_dist=dict(zip(names, ("bernoulli", "bernoulli", "categorical"))), warmup=warmup,
        uses_likelihood_rescaling=True, rescale_factors=dict(zip(names, weights)))
    return MVAE(config, dict(zip(names, networks.encoders)), dict(zip(names, networks.decoders)))


def loss_of_multivae(networks, x, present, chosen, epsilon, weights, beta):
    """Draws are handed to it where it asks for them: which pairs, and what samples z."""
    pairs = [(0, 1), (0, 2), (1, 2)]
    assert chosen[:4] == [(0, 1, 2), (0,), (1,), (2,)][:len(chosen)]
    mvae = model(networks, max(len(chosen) - 4, 0), weights, warmup=10, subsampling=len(chosen) > 1)
    named = {f"m{m}": a for m, a in enumerate(x)}
    rows = torch.ones(len(chosen), len(x[0]), dtype=bool)
    inputs = MultimodalBaseDataset(named)
    if not present.all():
        inputs = IncompleteDataset(named, {f"m{m}": here for m, here in enumerate(present)})
        rows = torch.stack([present[list(members)].any(dim=0) for members in chosen])
    draws = iter([e[here] for e, here in zip(epsilon, rows) if here.any()])
    # its beta is (epoch - 1 + batch_ratio) / warmup before that epoch
    epoch = 10 if beta == 1 else 1 + int(beta * 10)
    with mock.patch("torch.distributions.normal._standard_normal",
                    lambda shape, dtype, device: take(draws, shape)), \
            mock.patch("multivae.models.mvae.mvae_model.choice",
                       lambda *_, **__: [pairs.index(pair) for pair in chosen[4:]]):
        return mvae(inputs, epoch=epoch, batch_ratio=beta * 10 - epoch + 1).loss


def take(draws, shape):
    found = next(draws)
    assert found.shape == shape
    return found


def derive_log_likelihood(inputs, params, settings):
    """A datum at a time, so that what it adds up over a batch is seen of each."""
    networks, x = Networks.of(params), [inputs[f"x.{m}"] for m in range(M)]
    epsilon = inputs["epsilon"]
    K, N, _ = epsilon.shape
    mvae = model(networks, 0, (1.0, 1.0, 1.0), warmup=0)
    found, steps = [], []
    for n in range(N):
        draws = iter([epsilon[:, n:n + 1]])
        with mock.patch("torch.distributions.normal._standard_normal",
                        lambda shape, dtype, device: take(draws, shape)):
            found.append(-mvae.compute_joint_nll(MultimodalBaseDataset(
                {f"m{m}": a[n:n + 1] for m, a in enumerate(x)}), K=K, batch_size_K=K))
        steps.append([importance_weight(networks, [a[n] for a in x], epsilon[k, n])
                      for k in range(K)])

    def stacked(name):
        return torch.stack([torch.stack([of_datum[k][name] for of_datum in steps])
                            for k in range(K)])

    return {**{name: stacked(name)[0] if name.startswith("posterior") else stacked(name)
               for name in steps[0][0]}, "log_likelihood": torch.stack(found)}


def record_log_likelihood(case, seed, N, K):
    rng = start(seed)
    params = Networks.drawn(rng).named(lambda p: p.detach())
    x, epsilon = data(rng, N), normal(rng, K, N, D)
    inputs = {**{f"x.{m}": a for m, a in enumerate(x)}, "epsilon": epsilon}
    save(f"{PAPER}/log_likelihood/{case}", seed=seed, packages=PACKAGES,
         source={**MULTIVAE, "entry": "multivae.models.MVAE.compute_joint_nll",
                 "all before log_likelihood": "transcription"},
         **{"in": inputs}, param=params, out=derive_log_likelihood(inputs, params, {}))


def importance_weight(networks, x, epsilon):
    """Of one sample of one datum: its log weight, and all that this is made of."""
    D = networks.D
    experts = [encoder(a[None]) for encoder, a in zip(networks.encoders, x)]
    mean, log_variance = product([(torch.zeros(D), torch.ones(D), 1), *(
        (e.embedding[0], torch.exp(e.log_covariance[0]), 1) for e in experts)])
    q = Normal(mean, torch.exp(log_variance / 2))
    z = mean + q.scale * epsilon
    decoded = [decoder(z).reconstruction for decoder in networks.decoders]
    log_p = [log_likelihood(m, a, logits) for m, (a, logits) in enumerate(zip(x, decoded))]
    log_prior, log_q = (density.log_prob(z).sum()
                        for density in (Normal(torch.zeros(D), torch.ones(D)), q))
    return {**{f"posterior.{name}": a for name, a in with_deviation(mean, log_variance).items()},
            "z": z, **{f"decoded.{m}": logits for m, logits in enumerate(decoded)},
            "log_prior": log_prior, "log_posterior": log_q,
            **{f"log_likelihoods.{m}": value for m, value in enumerate(log_p)},
            "log_w": log_prior + sum(log_p) - log_q}


DERIVATIONS = {"product": derive_product, "objective": derive_objective,
               "multivae": derive_multivae, "log_likelihood": derive_log_likelihood}
THIRD_PARTY = {"multivae": "multivae", "log_likelihood": "multivae"}


if __name__ == "__main__":
    EACH = [(0, 1, 2), (0,), (1,), (2,)]
    record_product("complete", seed=0, M=2, N=4, D=3)
    record_product("missing", seed=1, M=4, N=6, D=2, missing=True)
    record_product("narrow", seed=2, M=3, N=3, D=2, narrow=16.0)   # the small numbers count
    record_objective("complete", seed=3, N=4, chosen=[*EACH, (0, 2)], missing=False)
    record_objective("missing", seed=4, N=8, chosen=[*EACH, (1, 2)], missing=True,
                     weights=(1.0, 0.5, 10.0), beta=0.3)
    record_objective("joint", seed=5, N=1, chosen=EACH[:1], missing=False)
    record_objective("complete", seed=6, N=4, chosen=EACH, missing=False, multivae=True)
    record_objective("missing", seed=7, N=8, chosen=[*EACH, (0, 1), (1, 2)], missing=True,
                     weights=(1.0, 0.5, 10.0), beta=0.25, multivae=True)
    record_log_likelihood("complete", seed=8, N=3, K=5)

"""Record mixture-of-experts variational autoencoders (arXiv:1911.03393v1) in PyTorch.

    python -m reference_runs.papers.mmvae_2019

The kinds multivae and multivae_iwae are MultiVae's MMVAE, unmodified, with the encoders and
decoders below and the recorded draws in place of PyTorch's own. The kind bounds is written from the
paper and from the released objectives.py, datum by datum and sample by sample, with densities of
torch.distributions; gradients that are not autograd's own of a bound are made with hooks on the
samples, as the paper's authors and MultiVae make them.
"""
import math
from unittest import mock

import torch
from torch.distributions import Laplace, kl_divergence
from torch.nn import Linear, Module, ModuleList, Parameter

from reference_runs.papers.mvae_2018 import (       # before multivae, as it is there
    PACKAGES, BaseDecoder, BaseEncoder, IncompleteDataset, ModelOutput, MultimodalBaseDataset,
    normal, take)
from reference_runs.recorder import save, start

from multivae.models import MMVAE, MMVAEConfig

PAPER = "mmvae_2019"
MULTIVAE = {"kind": "third-party", "repository": "AgatheSenellart/MultiVae", "commit": "1.0.3",
            "entry": "multivae.models.MMVAE"}
M, D, H, WIDTHS = 2, 3, 4, (5, 4)


class Encoder(BaseEncoder):
    def __init__(self, width, D, H):
        BaseEncoder.__init__(self)
        self.latent_dim = D
        self.hidden = ModuleList([Linear(width, H)])
        self.location, self.scale = Linear(H, D), Linear(H, D)

    def forward(self, x):
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return ModelOutput(embedding=self.location(x), log_covariance=self.scale(x))


class Decoder(BaseDecoder):
    def __init__(self, width, D, H):
        BaseDecoder.__init__(self)
        self.layers = ModuleList([Linear(D, H), Linear(H, width)])

    def logits(self, z):
        return self.layers[1](torch.relu(self.layers[0](z)))

    def forward(self, z):
        mean = torch.sigmoid(self.logits(z))
        return ModelOutput(reconstruction=mean.clamp(1e-6, 1 - 1e-6))


class Networks(Module):
    def __init__(self, widths, D, H):
        super().__init__()
        self.widths, self.D = widths, D
        self.encoders = ModuleList([Encoder(width, D, H) for width in widths])
        self.decoders = ModuleList([Decoder(width, D, H) for width in widths])
        self.prior = Parameter(torch.empty(D))

    @classmethod
    def drawn(cls, rng, scale):
        networks = cls(WIDTHS, D, H)
        with torch.no_grad():
            for p in networks.parameters():
                p.copy_(scale * normal(rng, *p.shape))
        return networks

    @classmethod
    def of(cls, params):
        """Those that have these parameters, by name."""
        first = [params[f"encoders.{m}.hidden.0.w"] for m in range(M)]
        networks = cls([len(w) for w in first], len(params["prior"]), first[0].shape[1])
        for name, p in networks.named(lambda p: p.data).items():     # views of what is its own
            p.copy_(params[name])
        return networks

    def named(self, of):
        """What ``of`` gives for each parameter, as in mvae_2018."""
        found = {}
        for name, p in self.named_parameters():
            name = name.replace(".layers.", ".").replace(".weight", ".w").replace(".bias", ".b")
            found[name] = of(p).T if name.endswith(".w") else of(p)
        return {**{name: a for name, a in found.items() if name != "prior"},
                "prior": found["prior"]}

    def gradients(self, loss):
        for p in self.parameters():
            p.grad = None
        loss.backward(retain_graph=True)
        return self.named(lambda p: torch.zeros_like(p) if p.grad is None else p.grad.clone())


def draws(rng, K, B):
    return ([torch.from_numpy(rng.random((B, width))) for width in WIDTHS],
            torch.from_numpy(rng.random((M, K, B, D))))


def inputs(x, u, **more):
    return {"x.0": x[0], "x.1": x[1], "u": u, **more}


# -- Bounds, sample by sample --------------------------------------------------------------------

class Datum:
    """One datum: its posteriors, samples [M][K] and all log weights [M][K].

    ``stopped``: with parameters of posteriors that carry no gradient, as DReG has them.
    """
    def __init__(self, networks, x, u, rho, stopped=False):
        self.q, D = [], networks.D
        for m in range(M):
            out = networks.encoders[m](x[m][None])
            scale = D * torch.softmax(out.log_covariance[0], dim=0) + 1e-6
            self.q.append(Laplace(out.embedding[0], scale))
        self.p = Laplace(torch.zeros(D), D * torch.softmax(networks.prior, dim=0))
        self.z = [[self.q[m].icdf(u[m, k]) for k in range(len(u[m]))] for m in range(M)]
        densities = [Laplace(q.loc.detach(), q.scale.detach()) for q in self.q] if stopped \
            else self.q
        self.by_dimension = [[[densities[r].log_prob(z) for z in row] for row in self.z]
                             for r in range(M)]
        self.log_q = [[[found.sum() for found in row] for row in rows]
                      for rows in self.by_dimension]
        self.log_mixture = [[torch.logsumexp(torch.stack([of[m][k] for of in self.log_q]), dim=0)
                             - math.log(M) for k in range(len(u[m]))] for m in range(M)]
        self.log_prior = [[self.p.log_prob(z).sum() for z in row] for row in self.z]
        self.decoded = [[[networks.decoders[d].logits(z) for z in row] for row in self.z]
                        for d in range(M)]
        self.kl = [kl_divergence(q, self.p).sum() for q in self.q]
        self.log_p = [[[Laplace(networks.decoders[d](z).reconstruction, 0.75).log_prob(x[d]).sum()
                        for z in row] for row in self.z] for d in range(M)]
        self.log_w = [[self.log_prior[m][k] - self.log_mixture[m][k]
                       + sum(rho[d] * self.log_p[d][m][k] for d in range(M))
                       for k in range(len(row))] for m, row in enumerate(self.z)]

    def naive_elbo(self, rho):
        K = len(self.z[0])
        return sum(sum(sum(rho[d] * self.log_p[d][m][k] for d in range(M)) for k in range(K)) / K
                   - self.kl[m] for m in range(M)) / M

    def elbo(self):
        return sum(sum(row) / len(row) for row in self.log_w) / M

    def looser(self):
        return sum(log_mean_exp(row) for row in self.log_w) / M

    def tighter(self):
        return log_mean_exp([w for row in self.log_w for w in row])

    def cheap_elbo(self):
        """m_elbo_naive of the released code: lpx_zs of [r][d], weighted where r is not d."""
        total = 0
        for r in range(M):
            for d in range(M):
                z = self.z[d][0].detach()
                omega = 1.0
                if r != d:
                    log_q = [self.q[i].log_prob(z).sum() for i in (r, d)]
                    omega = torch.exp(log_q[0] - log_q[1].detach())
                total = total + omega * self.log_p[d][d][0]
            total = total - kl_divergence(self.q[r], self.p).sum()
        return total / M

    def weights(self, together):
        """w~, constants: over the samples of each modality, or over all."""
        log_w = torch.stack([torch.stack(row) for row in self.log_w]).detach()
        if together:
            return torch.softmax(log_w.reshape(-1), dim=0).reshape(log_w.shape)
        return torch.softmax(log_w, dim=1)

    def surrogate(self, together, squared):
        """sum w~ log w, on whose way back hooks multiply by w~ again what goes through samples."""
        w = self.weights(together)
        if squared:
            for m, row in enumerate(self.z):
                for k, z in enumerate(row):
                    z.register_hook(lambda g, factor=w[m, k]: factor * g)
        total = sum(w[m, k] * self.log_w[m][k] for m in range(M) for k in range(len(self.z[0])))
        return total if together else total / M


def log_mean_exp(log_w):
    return torch.logsumexp(torch.stack(log_w), dim=0) - math.log(len(log_w))


def derive_bounds(inputs, params, settings):
    networks, x = Networks.of(params), [inputs["x.0"], inputs["x.1"]]
    u, rho, B = inputs["u"], settings["rho"], len(inputs["x.0"])

    def all_data(**settings):
        return [Datum(networks, [a[b] for a in x], u[:, :, b], rho, **settings) for b in range(B)]

    data = all_data()
    bounds = {"naive_elbo": [datum.naive_elbo(rho) for datum in data],
              "elbo": [datum.elbo() for datum in data],
              "looser_bound": [datum.looser() for datum in data],
              "tighter_bound": [datum.tighter() for datum in data],
              "cheap_elbo": [datum.cheap_elbo() for datum in data]}
    gradients = {f"grad.{name}": networks.gradients(sum(of_data) / B)
                 for name, of_data in bounds.items()}
    for name, squared in (("dreg_gradient", True), ("released_gradient", False)):
        for bound, together in (("looser", False), ("tighter", True)):
            gradients[f"{name}.{bound}"] = networks.gradients(
                sum(datum.surrogate(together, squared) for datum in all_data(stopped=True)))

    def by_datum(of):
        """[..., B] of nested lists of numbers or vectors, one for each datum."""
        found = [stacked(of(datum)) for datum in data]
        return torch.stack(found, dim=-1)

    def stacked(nested):
        return torch.stack([stacked(part) for part in nested]) if isinstance(nested, list) \
            else nested

    return {"location": by_datum(lambda d: [q.loc for q in d.q]).swapaxes(1, 2),
            "scale": by_datum(lambda d: [q.scale for q in d.q]).swapaxes(1, 2),
            "prior_scale": data[0].p.scale, "z": by_datum(lambda d: d.z).swapaxes(2, 3),
            "log_prior": by_datum(lambda d: d.log_prior),
            "log_densities_of_dimensions": by_datum(lambda d: d.by_dimension).swapaxes(3, 4),
            "component_log_densities": by_datum(lambda d: d.log_q),
            **{f"decoded.{m}": by_datum(lambda d: d.decoded[m]).swapaxes(2, 3)
               for m in range(M)}, "kl": by_datum(lambda d: d.kl),
            "log_likelihoods": by_datum(lambda d: d.log_p),
            "log_mixture_posterior": by_datum(lambda d: d.log_mixture),
            "log_w": by_datum(lambda d: d.log_w),
            "looser_weights": by_datum(lambda d: d.weights(False)),
            "tighter_weights": by_datum(lambda d: d.weights(True)),
            **{name: torch.stack(of_data) for name, of_data in bounds.items()},
            **{f"{name}.{key}": g for name, named in gradients.items()
               for key, g in named.items()}}


def record_bounds(case, seed, K, B, rho=(1.0, 1.0), scale=0.7):
    rng = start(seed)
    params = Networks.drawn(rng, scale).named(lambda p: p.detach())
    given, settings = inputs(*draws(rng, K, B)), {"rho": rho}
    save(f"{PAPER}/bounds/{case}", seed=seed,
         source={"kind": "transcription", "of": "arXiv:1911.03393v1, Section 3; iffsid/mmvae at "
                 "54398d7, objectives.py", "densities": "torch.distributions.Laplace"},
         **{"in": given}, param=params, set=settings,
         out=derive_bounds(given, params, settings))


# -- MultiVae ------------------------------------------------------------------------------------

def model(networks, loss, K, rho):
    names = [f"m{m}" for m in range(M)]
    config = MMVAEConfig(
        n_modalities=M, latent_dim=networks.D, K=K,
        input_dims={n: (w,) for n, w in zip(names, networks.widths)},
        decoders_dist=dict.fromkeys(names, "laplace"), loss=loss, uses_likelihood_rescaling=True,
        decoder_dist_params={name: {"scale": 0.75} for name in names},
        rescale_factors=dict(zip(names, rho)))
    mmvae = MMVAE(config, dict(zip(names, networks.encoders)), dict(zip(names, networks.decoders)))
    with torch.no_grad():
        mmvae.prior_log_var.copy_(networks.prior)
    return mmvae


def derive_multivae(inputs, params, settings, iwae=False):
    """The losses that it trains by, or the bound that it tests by."""
    networks, u, rho = Networks.of(params), inputs["u"], settings["rho"]
    x, K = [inputs["x.0"], inputs["x.1"]], u.shape[1]
    present = inputs.get("present", torch.ones(M, len(x[0]), dtype=bool))
    named = {f"m{m}": a * here[:, None] for m, (a, here) in enumerate(zip(x, present))}
    data = MultimodalBaseDataset(named)
    if not present.all():
        data = IncompleteDataset(named, {f"m{m}": here for m, here in enumerate(present)})

    def run(loss):
        mmvae = model(networks, loss, K, rho)
        left = iter(u)

        def uniform(tensor, *_):
            """Laplace.rsample asks for draws from (-1, 1)."""
            return tensor.copy_(2 * take(left, tensor.shape) - 1)

        with mock.patch.object(torch.Tensor, "uniform_", uniform):
            out = mmvae(data, detailed_output=True)
        if iwae:
            out.loss = mmvae.iwae(out.qz_xs, out.zss, out.recon, data).loss
        gradients = networks.gradients(-out.loss)
        gradients["prior"] = mmvae.prior_log_var.grad[0].clone()
        return -out.loss, gradients

    value, plain = run("iwae_looser")
    gradients = {"grad.tighter_bound": plain} if iwae else {
        "dreg_gradient": run("dreg_looser")[1], "grad.looser_bound": plain}
    return {"tighter_bound" if iwae else "looser_bound": value,
            **{f"{name}.{key}": g for name, named in gradients.items()
               for key, g in named.items()}}


def derive_iwae(inputs, params, settings):
    return derive_multivae(inputs, params, settings, iwae=True)


def record_multivae(case, seed, K, B, rho=(1.0, 1.0), missing=False, iwae=False):
    rng = start(seed)
    params = Networks.drawn(rng, 0.7).named(lambda p: p.detach())
    x, u = draws(rng, K, B)
    present = torch.ones(M, B, dtype=bool)
    if missing:
        present = torch.from_numpy(rng.random((M, B)) < 0.5)
        present[seed % M] |= ~present.any(dim=0)
        x = [a * here[:, None] for a, here in zip(x, present)]
    given, settings = inputs(x, u, **({} if iwae else {"present": present})), {"rho": rho}
    save(f"{PAPER}/{'multivae_iwae' if iwae else 'multivae'}/{case}", seed=seed, packages=PACKAGES,
         source={**MULTIVAE, "entry": "multivae.models.MMVAE" + (".iwae" if iwae else "")},
         **{"in": given}, param=params, set=settings,
         out=derive_multivae(given, params, settings, iwae))


DERIVATIONS = {"bounds": derive_bounds, "multivae": derive_multivae, "multivae_iwae": derive_iwae}
THIRD_PARTY = {"multivae": "multivae", "multivae_iwae": "multivae"}


if __name__ == "__main__":
    record_bounds("one_sample", seed=0, K=1, B=4)
    record_bounds("three_samples", seed=1, K=3, B=3, rho=(1.0, 1.25))
    record_bounds("far_apart", seed=2, K=2, B=2, scale=3.0)
    record_multivae("one_sample", seed=3, K=1, B=4)
    record_multivae("five_samples", seed=4, K=5, B=4, rho=(1.0, 1.25))
    record_multivae("missing", seed=5, K=4, B=6, missing=True)
    record_multivae("one_sample", seed=6, K=1, B=3, iwae=True)
    record_multivae("four_samples", seed=7, K=4, B=3, rho=(2.0, 1.0), iwae=True)

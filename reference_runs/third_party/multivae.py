"""MultiVae: MVAE and MMVAE, on the networks and the draws of a case."""
from unittest import mock

import torch

import reference_runs.without_torchvision  # noqa: F401   before multivae

from multivae.data.datasets.base import IncompleteDataset, MultimodalBaseDataset
from multivae.models import MMVAE, MVAE, MMVAEConfig, MVAEConfig
from pythae.models.base.base_model import BaseDecoder, BaseEncoder
from pythae.models.base.base_utils import ModelOutput

from reference_runs.third_party.holding import Check, Reading

torch.set_default_dtype(torch.float64)
torch.distributions.Distribution.set_default_validate_args(False)    # grey pixels are no coins


# -- Networks ------------------------------------------------------------------------------------

class Encoder(BaseEncoder):
    """One hidden layer, and two heads of these names."""

    def __init__(self, given, heads):
        super().__init__()
        self.given, self.heads = given, heads
        self.latent_dim = given[f"{heads[0]}.b"].shape[0]

    def forward(self, x):
        hidden = torch.relu(x @ self.given["hidden.0.w"] + self.given["hidden.0.b"])
        mean, spread = (hidden @ self.given[f"{head}.w"] + self.given[f"{head}.b"]
                        for head in self.heads)
        return ModelOutput(embedding=mean, log_covariance=spread)


class Decoder(BaseDecoder):
    def __init__(self, given, squash):
        super().__init__()
        self.given, self.squash = given, squash

    def forward(self, z):
        hidden = torch.relu(z @ self.given["0.w"] + self.given["0.b"])
        return ModelOutput(reconstruction=self.squash(hidden @ self.given["1.w"]
                                                      + self.given["1.b"]))


def part(case, prefix):
    return {name.removeprefix(prefix): value for name, value in case.items()
            if name.startswith(prefix)}


def networks(case, n_modalities, heads, squash):
    names = [f"m{m}" for m in range(n_modalities)]
    return names, {name: Encoder(part(case, f"encoders.{m}."), heads)
                   for m, name in enumerate(names)}, {
        name: Decoder(part(case, f"decoders.{m}."), squash) for m, name in enumerate(names)}


def dataset(names, case):
    data = {name: case[f"x.{m}"] for m, name in enumerate(names)}
    if "present" not in case or case.present.all():
        return MultimodalBaseDataset(data)
    here = dict(zip(names, case.present))
    return IncompleteDataset({name: x * here[name][:, None] for name, x in data.items()}, here)


# -- MVAE ----------------------------------------------------------------------------------------

def mvae(case, **settings):
    names, encoders, decoders = networks(case, 3, ("mean", "log_variance"), lambda logits: logits)
    dims = {name: tuple(case[f"x.{m}"].shape[1:]) for m, name in enumerate(names)}
    latent_dim = case["encoders.0.mean.b"].shape[0]
    return names, MVAE(MVAEConfig(
        n_modalities=3, latent_dim=latent_dim, input_dims=dims, decoders_dist=dict(
            zip(names, ("bernoulli", "bernoulli", "categorical"))), **settings),
        encoders, decoders)


def mvae_objective(case):
    """Its loss, with the case's subsets and the draws handed over where it asks for them."""
    chosen = [[m for m, taken in enumerate(row) if taken] for row in case.chosen]
    names, model = mvae(
        case, k=max(len(chosen) - 4, 0), use_subsampling=len(chosen) > 1, warmup=10,
        uses_likelihood_rescaling=True,
        rescale_factors={f"m{m}": weight for m, weight in enumerate(case.weights)})
    data, pairs = dataset(names, case), [(0, 1), (0, 2), (1, 2)]
    rows = [case.present[members].any(dim=0) for members in chosen]
    draws = iter([e[here] for e, here in zip(case.epsilon, rows) if here.any()])
    epoch = 10 if case.beta == 1 else 1 + int(case.beta * 10)    # of its warm-up, before that
    with mock.patch("torch.distributions.normal._standard_normal", lambda *_, **__: next(draws)), \
            mock.patch("multivae.models.mvae.mvae_model.choice", lambda *_, **__: [
                pairs.index(tuple(members)) for members in chosen[4:]]):
        out = model(data, epoch=epoch, batch_ratio=case.beta * 10 - epoch + 1)
    found = {"objective": -out.loss}
    for i, members in enumerate(chosen):
        mean, log_variance = model.compute_mu_log_var_subset(data, [names[m] for m in members])
        found.update({f"posterior.{i}.mean": mean, f"posterior.{i}.log_variance": log_variance})
    return found


def mvae_log_likelihood(case):
    """A datum at a time, so that what it adds up over a batch is seen of each."""
    names, model = mvae(case, use_subsampling=False)
    found, K = [], len(case.epsilon)
    for n in range(case.epsilon.shape[1]):
        data = MultimodalBaseDataset({name: case[f"x.{m}"][n:n + 1]
                                      for m, name in enumerate(names)})
        with mock.patch("torch.distributions.normal._standard_normal",
                        lambda *_, **__: case.epsilon[:, n:n + 1]):
            found.append(-model.compute_joint_nll(data, K=K, batch_size_K=K))
    return {"log_likelihood": torch.stack(found)}


# -- MMVAE ---------------------------------------------------------------------------------------

def squashed(logits):
    return torch.sigmoid(logits).clamp(1e-6, 1 - 1e-6)


def mmvae(case, loss):
    """The loss that is trained by, and what a forward pass has on the way to it."""
    names, encoders, decoders = networks(case, 2, ("location", "scale"), squashed)
    model = MMVAE(MMVAEConfig(
        n_modalities=2, latent_dim=case.prior.shape[0], K=case.u.shape[1], loss=loss,
        input_dims={name: tuple(case[f"x.{m}"].shape[1:]) for m, name in enumerate(names)},
        decoders_dist=dict.fromkeys(names, "laplace"), uses_likelihood_rescaling=True,
        decoder_dist_params={name: {"scale": 0.75} for name in names},
        rescale_factors=dict(zip(names, case.rho))), encoders, decoders)
    del model.prior_log_var
    model.prior_log_var = case.prior[None]
    data, left = dataset(names, case), iter(case.u)

    def uniform(tensor, *_):
        """Laplace.rsample asks for draws from (-1, 1)."""
        return tensor.copy_(2 * next(left) - 1)

    with mock.patch.object(torch.Tensor, "uniform_", uniform):
        return names, model, data, model(data, detailed_output=True)


def mmvae_losses(case):
    """Its two losses to train by."""
    return {"looser_bound": -mmvae(case, "iwae_looser")[-1].loss}


def mmvae_iwae(case):
    """The bound that it tests by."""
    _, model, data, out = mmvae(case, "iwae_looser")
    return {"tighter_bound": -model.iwae(out.qz_xs, out.zss, out.recon, data).loss}


def mmvae_bounds(case):
    """The paper's steps, as far as its forward pass has them."""
    names, model, data, out = mmvae(case, "iwae_looser")
    log_w, _ = model.compute_k_lws(out.qz_xs, out.zss, out.recon, data)
    return {"location": torch.stack([out.qz_xs[name].loc for name in names]),
            "scale": torch.stack([out.qz_xs[name].scale for name in names]),
            "z": torch.stack([out.zss[name] for name in names]),
            "log_w": torch.stack([log_w[name] for name in names])}


def checks():
    def check(what, paper, by_kind, *readings, **settings):
        return Check("multivae", what, paper, by_kind, readings, dtype="float64", **settings)

    return [
        check("MVAE", "mvae_2018", {"multivae": mvae_objective}, gradients=True),
        check("MVAE", "mvae_2018", {"objective": mvae_objective}, Reading(
            "objective", "mvae_model.py: MVAE._filter_inputs_with_masks", "the bound of a subset "
            "is averaged over the data that have one of its members, not over all",
            "a bound is averaged over the data that have one of its members, as in MultiVae"),
            gradients=True),
        check("MVAE.compute_joint_nll", "mvae_2018", {"log_likelihood": mvae_log_likelihood}),
        check("MMVAE, loss and iwae", "mmvae_2019",
              {"multivae": mmvae_losses, "multivae_iwae": mmvae_iwae}),
        check("MMVAE.compute_k_lws", "mmvae_2019", {"bounds": mmvae_bounds}, Reading(
            "log_w", "mmvae_model.py: MMVAE.pz_params", "a millionth is added to the prior's "
            "scales, not to the posteriors' alone",
            "the prior's scales are a millionth wider, as released for CUB"))]

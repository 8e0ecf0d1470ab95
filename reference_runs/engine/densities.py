"""Record torch.distributions, values and gradients.

    python -m reference_runs.engine.densities

What is differentiated is <output, cotangent>; ``out.grad.mean`` is with respect to ``in.mean``.
Products of Gaussians are in no library of PyTorch's: they are transcribed in their plain form, a
loop over experts that adds precisions.
"""
import torch
from torch.distributions import (
    Bernoulli, Categorical, Independent, Laplace, MixtureSameFamily, Normal, kl_divergence)

from reference_runs.recorder import save, start


def record(case, seed, of, function, inputs, plain={}, kind="torch"):
    """``inputs`` are differentiated, ``plain`` ones are not."""
    rng = start(seed)
    inputs = {name: torch.as_tensor(draw(rng)).requires_grad_() for name, draw in inputs.items()}
    plain = {name: torch.as_tensor(draw(rng)) for name, draw in plain.items()}
    y = function(**inputs, **plain)
    cotangent = torch.from_numpy(rng.standard_normal(tuple(y.shape)))
    (y * cotangent).sum().backward()
    save(f"densities/{case}", source={"kind": kind, "of": of}, seed=seed,
         **{"in": {**inputs, **plain, "cotangent": cotangent}},
         out={"y": y, **{f"grad.{name}": a.grad for name, a in inputs.items()}})


def normal(*shape, scale=1.0):
    return lambda rng: scale * rng.standard_normal(shape)


def positive(*shape):
    return lambda rng: rng.gamma(2.0, size=shape)


def uniform(*shape):
    return lambda rng: rng.random(shape)


def gaussian(mean, log_variance):
    return Normal(mean, torch.exp(log_variance / 2))


def product(mean, log_variance, log_weight):
    """Mean and variance of the weighted product, one expert after the other."""
    precision, moment = 0.0, 0.0
    for m, v, a in zip(mean, log_variance.exp(), log_weight.exp()):
        precision = precision + a / v
        moment = moment + a * m / v
    return torch.stack([moment / precision, 1 / precision])


def overlap(mean, log_variance):
    """log of the integral of the product of two Gaussians: the density of one mean in the other."""
    (a, b), (v, w) = mean, log_variance.exp()
    return Normal(a, torch.sqrt(v + w)).log_prob(b)


if __name__ == "__main__":
    record("gaussian", 0, "torch.distributions.Normal",
           lambda x, mean, log_variance: gaussian(mean, log_variance).log_prob(x),
           {"x": normal(4, 3), "mean": normal(4, 3), "log_variance": normal(4, 3, scale=2)})
    record("laplace", 1, "torch.distributions.Laplace",
           lambda x, location, scale: Laplace(location, scale).log_prob(x),
           {"x": normal(4, 3), "location": normal(4, 3), "scale": positive(4, 3)})
    record("bernoulli", 2, "torch.distributions.Bernoulli",
           lambda x, logits: Bernoulli(logits=logits, validate_args=False).log_prob(x),
           {"logits": normal(5, 3, scale=3)},
           {"x": lambda rng: (rng.random((5, 3)) < 0.5).astype(float)})
    record("categorical", 3, "torch.distributions.Categorical",
           lambda logits, label: Categorical(logits=logits).log_prob(label),
           {"logits": normal(6, 4, scale=2)}, {"label": lambda rng: rng.integers(0, 4, 6)})
    record("mixture", 4, "torch.distributions.MixtureSameFamily of independent Normals",
           lambda x, mean, log_variance, logits: MixtureSameFamily(
               Categorical(logits=logits),
               Independent(gaussian(mean.transpose(0, 1), log_variance.transpose(0, 1)), 1),
           ).log_prob(x),
           {"x": normal(5, 3), "mean": normal(4, 5, 3), "log_variance": normal(4, 5, 3),
            "logits": normal(4)})
    record("laplace_sample", 5, "torch.distributions.Laplace.icdf",
           lambda location, scale, u: Laplace(location, scale).icdf(u),
           {"location": normal(6, 3), "scale": positive(6, 3)}, {"u": uniform(6, 3)})
    record("gaussian_kl", 6, "torch.distributions.kl_divergence",
           lambda mean, log_variance, other_mean, other_log_variance: kl_divergence(
               gaussian(mean, log_variance), gaussian(other_mean, other_log_variance)),
           {"mean": normal(4, 3), "log_variance": normal(4, 3), "other_mean": normal(4, 3),
            "other_log_variance": normal(4, 3)})
    record("laplace_kl", 7, "torch.distributions.kl_divergence",
           lambda location, scale, other_location, other_scale: kl_divergence(
               Laplace(location, scale), Laplace(other_location, other_scale)),
           {"location": normal(4, 3), "scale": positive(4, 3), "other_location": normal(4, 3),
            "other_scale": positive(4, 3)})
    record("bernoulli_kl", 8, "torch.distributions.kl_divergence",
           lambda logits, other_logits: kl_divergence(
               Bernoulli(logits=logits), Bernoulli(logits=other_logits)),
           {"logits": normal(5, 3), "other_logits": normal(5, 3)})
    record("categorical_kl", 9, "torch.distributions.kl_divergence",
           lambda logits, other_logits: kl_divergence(
               Categorical(logits=logits), Categorical(logits=other_logits)),
           {"logits": normal(5, 4, scale=2), "other_logits": normal(5, 4, scale=2)})
    record("product", 10, "the product of Gaussians: precisions add", product,
           {"mean": normal(3, 4, 2), "log_variance": normal(3, 4, 2),
            "log_weight": normal(3, 4, 2)}, kind="transcription")
    record("log_normalizer", 11, "torch.distributions.Normal", overlap,
           {"mean": normal(2, 4, 3), "log_variance": normal(2, 4, 3)})

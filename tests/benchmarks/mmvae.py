"""What a training step of the MMVAE costs, beside MultiVae's on PyTorch.

    python -m tests.benchmarks.mmvae [seconds for each comparison]

Two modalities of 64 pixels, encoders 64-128-(10, 10), decoders 10-128-64, batch 100, float32: the
looser bound with the doubly reparametrised gradient, draws, forward, backward, and a step of Adam
with AMSGrad; K = 1 and K = 10 samples. Both have the same networks, Laplace posteriors with softmax
scales, a learnt prior, and Laplace pixels of scale 0.75. They take turns as in the benchmark of the
engine, and the fastest run of each counts.

Twice: in a fresh process, where glibc gives the memory of every step back to the system and the
next step pays for it page by page; and once the process has freed a large array, after which glibc
keeps what is freed (its thresholds adapt to the largest so far, up to 32 MiB).
"""
import sys

import numpy as np

from minimoe import tree
from minimoe.autodiff.tensor import Tensor
from minimoe.optim import amsgrad, amsgrad_init
from minimoe.papers.mmvae_2019 import dreg_gradient, init, laplace_log_likelihood
import reference_runs.without_torchvision  # noqa: F401   before multivae
from tests.benchmarks import THREADS
from tests.benchmarks.engine import load, race

B, D, WIDTH, HIDDEN = 100, 10, 64, (128,)
TARGET = 1.0


def minimoe(x, params, K):
    rng = np.random.default_rng(0)
    state = amsgrad_init(params)

    def step():
        nonlocal params, state
        u = rng.random((2, K, B, D), "f")
        found = dreg_gradient(tree.map(Tensor, params), x, u, (laplace_log_likelihood,) * 2)
        downhill = tree.map(lambda g: g / -B, found.gradient)
        params, state = amsgrad(params, downhill, state, learning_rate=1e-3)
    return step


def multivae(torch, x, params, K):
    """MultiVae's MMVAE with these parameters; None where it is not installed."""
    if not load("multivae.models"):
        return None
    from multivae.data.datasets.base import MultimodalBaseDataset
    from multivae.models import MMVAE, MMVAEConfig
    from pythae.models.base.base_model import BaseDecoder, BaseEncoder
    from pythae.models.base.base_utils import ModelOutput

    def linear(layer):
        module = torch.nn.Linear(*layer.w.shape)
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(layer.w.T))
            module.bias.copy_(torch.from_numpy(layer.b))
        return module

    class Encoder(BaseEncoder):
        def __init__(self, params):
            BaseEncoder.__init__(self)
            self.latent_dim = D
            self.hidden = torch.nn.Sequential(*(part for layer in params.hidden
                                                for part in (linear(layer), torch.nn.ReLU())))
            self.location, self.scale = linear(params.location), linear(params.scale)

        def forward(self, x):
            h = self.hidden(x)
            return ModelOutput(embedding=self.location(h), log_covariance=self.scale(h))

    class Decoder(BaseDecoder):
        def __init__(self, layers):
            BaseDecoder.__init__(self)
            *hidden, last = layers
            self.layers = torch.nn.Sequential(
                *(part for layer in hidden for part in (linear(layer), torch.nn.ReLU())),
                linear(last), torch.nn.Sigmoid())

        def forward(self, z):
            return ModelOutput(reconstruction=self.layers(z).clamp(1e-6, 1 - 1e-6))

    names = ("a", "b")
    config = MMVAEConfig(
        n_modalities=2, latent_dim=D, input_dims={name: (WIDTH,) for name in names}, K=K,
        decoders_dist=dict.fromkeys(names, "laplace"), loss="dreg_looser",
        decoder_dist_params={name: {"scale": 0.75} for name in names})
    model = MMVAE(config, dict(zip(names, map(Encoder, params.encoders))),
                  dict(zip(names, map(Decoder, params.decoders))))
    updater = torch.optim.Adam(model.parameters(), lr=1e-3, amsgrad=True)
    data = MultimodalBaseDataset(dict(zip(names, map(torch.from_numpy, x))))

    def step():
        updater.zero_grad()
        (model(data).loss / B).backward()
        updater.step()
    return step


def main():
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10
    torch = load("torch")
    if torch:
        torch.set_num_threads(THREADS)
        torch.distributions.Distribution.set_default_validate_args(False)   # the faster for it
    rng = np.random.default_rng(0)
    x = tuple(rng.random((B, WIDTH), "f") for _ in range(2))
    params = tree.map(lambda p: p.astype("f"), init(rng, (WIDTH,) * 2, D, HIDDEN))
    for memory in ("fresh", "kept"):
        if memory == "kept":
            np.ones(31 * 2**20 // 8)        # made, and freed at once
        for K in (1, 10):
            compare(seconds, f"K = {K:<3} memory {memory}", {
                "minimoe": minimoe(x, params, K),
                "multivae": torch and multivae(torch, x, params, K)})


def compare(seconds, what, contestants):
    best = race(seconds, contestants)
    ours = best["minimoe"]
    line = f"MMVAE, DReG, looser, {what:<22} {ours * 1e3:8.2f} ms"
    if "multivae" in best:
        line += (f"{ours / best['multivae']:6.2f} x MultiVae's {best['multivae'] * 1e3:.2f} ms "
                 f"(target {TARGET})")
    print(line, flush=True)


if __name__ == "__main__":
    main()

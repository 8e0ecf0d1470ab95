"""What a training step of MMoE costs, beside DeepCTR-Torch's and torch-rechub's.

    python -m tests.benchmarks.mmoe [seconds for each comparison]

The paper's sizes: 100 inputs, 8 experts of 16 units, 2 binary tasks with towers of 8; batches of 64
and of 1,024, float32. A step is forward, backward and Adam. Each package meets the same equations
here: DeepCTR-Torch with linear gates, which are the paper's, and with its default's, a layer of 64
units before them; torch-rechub with its batch norms. They take turns as in the benchmark of the
engine, and the fastest run of each counts.
"""
import sys

import numpy as np

from minimoe import tree
from minimoe.autodiff.tensor import Tensor, grad
from minimoe.optim import adam, adam_init
from minimoe.papers import mmoe_2018 as paper
from tests.benchmarks import THREADS
from tests.benchmarks.engine import load, race

K, E, D, H, U, G = 2, 8, 100, 16, 8, 64
TARGET = 0.5


def minimoe(params, outputs, x, label):
    params = tree.map(lambda p: p.astype("f"), params)
    state = adam_init(params)

    def step():
        nonlocal params, state
        tensors = tree.map(Tensor, params)
        loss = paper.multi_task_loss(paper.logistic_losses(outputs(tensors, x), label))
        params, state = adam(params, grad(loss, tensors), state, learning_rate=1e-3)
    return step


def with_gate_mlp(rng):
    moe = paper.mmoe_init(rng, K, E, D, (H,), (U,))
    return paper.MMoEDeepCTRParams(moe.experts, paper.layers_init(rng, K, (D, G)),
                                   paper.layers_init(rng, K, (G, E))[0].w, moe.towers)


def with_batch_norm(rng):
    def normed(n, n_in, n_out):
        w, b = paper.layers_init(rng, n, (n_in, n_out))[0]
        return paper.NormedParams(w, b, b + 1, b)
    return paper.MMoERechubParams((normed(E, D, H),), normed(K, D, E), (normed(K, H, U),),
                                  paper.layers_init(rng, K, (U, 1))[0])


def stepping(torch, model, given, label):
    """A step of a package's model: ``given`` is what its forward takes."""
    updater = torch.optim.Adam(model.parameters(), lr=1e-3)
    target = torch.from_numpy(label.T.copy())
    cross_entropy = torch.nn.functional.binary_cross_entropy
    model.train()

    def step():
        updater.zero_grad()
        predicted = model(given)
        sum(cross_entropy(predicted[:, k], target[:, k]) for k in range(K)).backward()
        updater.step()
    return step


def deepctr(torch, gates, x, label):
    if not (torch and load("deepctr_torch")):
        return None
    from deepctr_torch.inputs import DenseFeat
    from deepctr_torch.models import MMOE
    model = MMOE([DenseFeat("x", D)], E, (H,), gates, (U,))
    return stepping(torch, model, torch.from_numpy(x), label)


def torch_rechub(torch, x, label):
    if not (torch and load("torch_rechub")):
        return None
    from torch_rechub.basic.features import DenseFeature
    from torch_rechub.models.multi_task import MMOE
    model = MMOE([DenseFeature("x", D)], ["classification"] * K, E, {"dims": [H]},
                 [{"dims": [U]}] * K)
    return stepping(torch, model, {"x": torch.from_numpy(x)}, label)


def main():
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10
    torch = load("torch")
    if torch:
        torch.set_num_threads(THREADS)
    rng = np.random.default_rng(0)
    for B in (64, 1024):
        x, label = rng.standard_normal((B, D), "f"), rng.integers(0, 2, (K, B)).astype("f")
        compare(seconds, f"paper's gates, batch {B}", "DeepCTR-Torch", minimoe(
            paper.mmoe_init(rng, K, E, D, (H,), (U,)), lambda p, x: paper.mmoe(p, x).y, x, label),
            deepctr(torch, (), x, label))
        compare(seconds, f"gates of two layers, batch {B}", "DeepCTR-Torch", minimoe(
            with_gate_mlp(rng), lambda p, x: paper.mmoe_deepctr(p, x).y, x, label),
            deepctr(torch, (G,), x, label))
        compare(seconds, f"batch norms, batch {B}", "torch-rechub", minimoe(
            with_batch_norm(rng), lambda p, x: paper.mmoe_torch_rechub(p, x).output.y, x, label),
            torch_rechub(torch, x, label))


def compare(seconds, what, package, ours, theirs):
    best = race(seconds, {"minimoe": ours, package: theirs})
    line = f"MMoE, {what:<34} {best['minimoe'] * 1e3:8.2f} ms"
    if package in best:
        line += (f"{best['minimoe'] / best[package]:6.2f} x {package}'s "
                 f"{best[package] * 1e3:.2f} ms (target {TARGET})")
    print(line, flush=True)


if __name__ == "__main__":
    main()

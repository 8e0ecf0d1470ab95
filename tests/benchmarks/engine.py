"""What the engine costs, beside PyTorch and HIPS autograd on the same machine at the same time.

    python -m tests.benchmarks.engine [seconds for each comparison]

Contestants take turns of a quarter of a second, so that a busy machine troubles all of them alike,
and the fastest run of each counts. (Shorter turns would not be fair: the threads of one library go
on waiting for work, on a core, for a while after it has returned.) Where PyTorch or HIPS autograd
is not installed, a line says so, without its ratios. Targets stand beside what is reached.
"""
import importlib
import sys
import time
import tracemalloc

import numpy as np

from minimoe import nn, ops, optim, tree
from minimoe.autodiff.tensor import Tensor, grad, pullback, value_and_grad
from tests.benchmarks import THREADS


TURN = 0.25    # seconds


def load(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        print(f"{name} is not installed: no comparison with it")
        return None


def race(seconds, contestants):
    """The fastest run of each contestant in seconds, by name; those that are None are left out."""
    contestants = {name: run for name, run in contestants.items() if run}
    best = dict.fromkeys(contestants, float("inf"))
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, run in contestants.items():
            run()                                   # once without a clock
            turn_ends = time.perf_counter() + TURN
            while (begun := time.perf_counter()) < turn_ends:
                run()
                best[name] = min(best[name], time.perf_counter() - begun)
    return best


def report(what, best, at_most=None, faster_than_hips=None):
    ours = best["minimoe"]
    words = [f"{what:<60}{ours * 1e3:9.2f} ms"]
    if "torch" in best:
        words.append(f"{ours / best['torch']:6.2f} x PyTorch" + (
            f" (target {at_most})" if at_most else ""))
    if "autograd" in best:
        words.append(f"{best['autograd'] / ours:6.1f} x faster than HIPS autograd" + (
            f" (target > {faster_than_hips})" if faster_than_hips else ""))
    print("".join(words), flush=True)


# -- Overhead: small arrays, many operations -----------------------------------------------------

def chained(x, w, b):
    for _ in range(500):
        x = x * w + b
    return x.sum()


def chain(seconds, torch, autograd):
    rng = np.random.default_rng(0)
    arrays = 1 + 0.01 * rng.standard_normal((3, 4))

    def ours(n):
        tensors = [Tensor(a) for a in arrays[:n]]
        return grad(chained(*tensors, *arrays[n:]), tensors)

    def torchs(n):
        tensors = [torch.from_numpy(a.copy()).requires_grad_(i < n) for i, a in enumerate(arrays)]
        chained(*tensors).backward()

    def hips(n):
        return autograd.grad(lambda some: chained(*some, *arrays[n:]))(tuple(arrays[:n]))

    for n, what, targets in [(1, "the 4 numbers", (0.5, 5)), (3, "all operands", ())]:
        best = race(seconds, {"minimoe": lambda: ours(n), "torch": torch and (lambda: torchs(n)),
                              "autograd": autograd and (lambda: hips(n))})
        report(f"1,000 + and * on 4 numbers, gradient of {what}", best, *targets)


# -- Training step, LSTM, attention: float32 -----------------------------------------------------

def mlp_loss(layers, x, label):
    hidden = ops.relu(nn.linear(layers[0], x))
    return ops.cross_entropy(nn.linear(layers[1], hidden), label).mean()


def mlp(seconds, torch):
    rng = np.random.default_rng(0)
    x, label = rng.standard_normal((128, 784)).astype("f"), rng.integers(0, 10, 128)
    layers = as_float32([nn.linear_init(rng, 784, 256), nn.linear_init(rng, 256, 10)])
    state = optim.sgd_init(layers)

    def ours():
        nonlocal layers, state
        _, gradients = value_and_grad(mlp_loss, layers, x, label)
        layers, state = optim.sgd(layers, gradients, state, learning_rate=1e-3)

    def contestant():
        model = torch.nn.Sequential(torch.nn.Linear(784, 256), torch.nn.ReLU(),
                                    torch.nn.Linear(256, 10))
        updater = torch.optim.SGD(model.parameters(), lr=1e-3)
        inputs, labels = torch.from_numpy(x), torch.from_numpy(label)

        def step():
            updater.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), labels).backward()
            updater.step()
        return step

    report("MLP 784-256-10, batch 128: forward, backward, update",
           race(seconds, {"minimoe": ours, "torch": torch and contestant()}), 1.1)


def lstm(seconds, torch):
    S, B, D = 32, 32, 256
    rng = np.random.default_rng(0)
    x, cotangent = rng.standard_normal((2, S, B, D)).astype("f")
    params = as_float32(nn.lstm_init(rng, D, D))

    def ours():
        tensors = tree.map(Tensor, params)
        pullback(nn.lstm(tensors, x).hidden, cotangent, tensors)

    def contestant():
        model = torch.nn.LSTM(D, D)
        inputs, g = torch.from_numpy(x), torch.from_numpy(cotangent)

        def step():
            model.zero_grad()
            model(inputs)[0].backward(g)
        return step

    report(f"LSTM, {S} steps, batch {B}, width {D}: forward, backward",
           race(seconds, {"minimoe": ours, "torch": torch and contestant()}), 1.5)


def attention(seconds, torch):
    B, S, D, A = 8, 128, 256, 8
    rng = np.random.default_rng(0)
    x, cotangent = rng.standard_normal((2, B, S, D)).astype("f")
    params = as_float32(nn.attention_init(rng, D, A))
    heads = rng.standard_normal((4, B, A, S, D // A)).astype("f")     # query, key, value, cotangent

    def ours():
        tensors = tree.map(Tensor, (params, x))
        pullback(nn.multi_head_attention(*tensors, tensors[1]), cotangent, tensors)

    def ours_alone():
        tensors = [Tensor(a) for a in heads[:3]]
        pullback(ops.attention(*tensors), heads[3], tensors)

    def contestant():
        model = torch.nn.MultiheadAttention(D, A, batch_first=True)
        inputs, g = torch.from_numpy(x).requires_grad_(), torch.from_numpy(cotangent)

        def step():
            model.zero_grad()
            inputs.grad = None
            model(inputs, inputs, inputs, need_weights=False)[0].backward(g)
        return step

    def contestant_alone():
        *inputs, g = (torch.from_numpy(a) for a in heads)
        inputs = [a.requires_grad_() for a in inputs]
        path = torch.nn.attention.SDPBackend(torch._fused_sdp_choice(*inputs)).name
        print(f"MultiheadAttention calls scaled_dot_product_attention, which takes {path}")

        def step():
            for a in inputs:
                a.grad = None
            torch.nn.functional.scaled_dot_product_attention(*inputs).backward(g)
        return step

    report(f"attention, batch {B}, {S} positions, width {D}, {A} heads",
           race(seconds, {"minimoe": ours, "torch": torch and contestant()}), 1.4)
    report("  of which scaled dot-product attention alone",
           race(seconds, {"minimoe": ours_alone, "torch": torch and contestant_alone()}))


def as_float32(params):
    return tree.map(lambda p: p.astype("f"), params)


# -- Deep and wide graphs ------------------------------------------------------------------------

def graphs():
    begun = time.perf_counter()
    x = Tensor(np.ones(4))
    y = x
    for _ in range(50_000):
        y = y * 0.9999 + 1e-4
    grad(y.sum(), x)
    print(f"{'100,000 chained operations, forward and backward':<60}"
          f"{time.perf_counter() - begun:9.2f} s")

    begun = time.perf_counter()
    x = Tensor(np.ones(4))
    y = x
    for _ in range(1000):                  # used 1,000 times, then 2^900 paths
        y = y + x
    for _ in range(900):
        y = y + y
    grad((y * 2.0 ** -900).sum(), x)
    print(f"{'a tensor used 1,000 times, then 900 doublings':<60}"
          f"{time.perf_counter() - begun:9.2f} s (target 1)")

    for n in (100, 400):
        print(f"{f'{n} operations on 2 MiB: peak memory of the backward pass':<60}"
              f"{peak_memory(n):9.1f} arrays of that size")


def peak_memory(n):
    """Of the backward pass alone, through a chain of n operations; in arrays like theirs."""
    large = np.ones(2 ** 18)
    x, w = Tensor(large), Tensor(large.copy())
    y = x
    for _ in range(n // 2):
        y = ops.tanh(y * w)
    loss = y.sum()
    tracemalloc.start()
    grad(loss, (x, w))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / large.nbytes


def main():
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10
    torch, autograd = load("torch"), load("autograd")
    if torch:
        torch.set_num_threads(THREADS)
    chain(seconds, torch, autograd)
    mlp(seconds, torch)
    lstm(seconds, torch)
    attention(seconds, torch)
    graphs()


if __name__ == "__main__":
    main()

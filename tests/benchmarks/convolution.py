"""What a convolution costs, beside PyTorch on the same machine at the same time.

    python -m tests.benchmarks.convolution [seconds for each comparison]

Value and gradients of image and kernel, in float32, by the rules of ``tests.benchmarks.engine``.
PyTorch has its images with channels first, its default; and, where a line says so, last, as minimoe
has them.
"""
import sys

import numpy as np

from minimoe import ops
from minimoe.autodiff.tensor import Tensor, pullback
from tests.benchmarks import THREADS
from tests.benchmarks.engine import load, race, report


def conv2d(seconds, torch, B, H, W, C, O, size, at_most=None):
    rng = np.random.default_rng(0)
    x, g = (rng.standard_normal((B, H, W, n)).astype("f") for n in (C, O))
    w = rng.standard_normal((size, size, C, O)).astype("f")
    padding = size // 2

    def ours():
        tensors = [Tensor(a) for a in (x, w)]
        return pullback(ops.conv2d(*tensors, padding=padding), g, tensors)

    def contestant(layout):
        def made(a, axes):
            return torch.from_numpy(a.transpose(axes).copy()).contiguous(memory_format=layout)
        image, kernel = (made(a, axes).requires_grad_() for a, axes in
                         ((x, (0, 3, 1, 2)), (w, (3, 2, 0, 1))))
        cotangent = made(g, (0, 3, 1, 2))

        def step():
            image.grad = kernel.grad = None
            torch.nn.functional.conv2d(image, kernel, padding=padding).backward(cotangent)
            return image.grad, kernel.grad
        check(step())
        return step

    def check(theirs):
        image, kernel = (a.numpy() for a in theirs)
        for a, b in zip(ours(), (image.transpose(0, 2, 3, 1), kernel.transpose(2, 3, 1, 0))):
            assert abs(a - b).max() < 1e-4 * abs(b).max()

    what = f"conv2d {size}x{size}, {B} x {C} x {H} x {W} -> {O}"
    first = race(seconds, {"minimoe": ours,
                           "torch": torch and contestant(torch.contiguous_format)})
    report(what, first, at_most)
    if torch:
        last = race(seconds, {"minimoe": ours, "torch": contestant(torch.channels_last)})
        report("  PyTorch with channels last", last)


def main():
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10
    torch = load("torch")
    if torch:
        torch.set_num_threads(THREADS)
    conv2d(seconds, torch, 8, 64, 64, 16, 16, size=3, at_most=3.5)
    conv2d(seconds, torch, 8, 24, 32, 8, 8, size=3)
    conv2d(seconds, torch, 2, 64, 64, 64, 64, size=3)


if __name__ == "__main__":
    main()

"""What the tests of the large primitives share."""
import numpy as np

from minimoe import tree
from minimoe.autodiff.tensor import Tensor, pullback
from minimoe.backend import to_numpy


def leaves_inputs_alone_in_float32(f, arrays, rng, move):
    """Assert that value and gradients of float32 are float32, and that nothing is written into."""
    before = tree.map(lambda a: to_numpy(a).copy(), arrays)
    tensors = [Tensor(a) for a in arrays]
    out = f(*tensors)
    g = move(rng.standard_normal(out.shape).astype(np.float32))
    flows = pullback(out, g, tensors)
    again = pullback(out, g, tensors)                      # what was kept is as it was
    assert {a.dtype for a in [out, *flows]} == {np.dtype("float32")}
    for a, b in zip(arrays, before):
        assert np.array_equal(to_numpy(a), b)
    for a, b in zip(flows, again):
        assert np.array_equal(to_numpy(a), to_numpy(b))

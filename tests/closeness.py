"""What tests of the papers compare by."""
import numpy as np

from minimoe.backend import to_numpy


def close(computed, expected, tolerance=1e-10):
    """Within ``tolerance`` of the largest number expected."""
    expected = np.asarray(expected) if isinstance(expected, list) else to_numpy(expected)
    allowed = tolerance * np.abs(expected).max(initial=0.0)
    np.testing.assert_allclose(to_numpy(computed), expected, rtol=0, atol=allowed)


def listed(integers):
    return to_numpy(integers).tolist()

"""A strict twin of CuPy for machines without a GPU: CuPy's rules, NumPy's arithmetic.

It has the names and parameters that the real CuPy was recorded to have, and no others. Where CuPy
differs from NumPy it does as CuPy does: no implicit conversion, reductions that stay arrays,
integer indices that wrap, duplicate writes and scatter-adds in random order. Beyond CuPy, it
refuses what CuPy would copy to the device without a word (an index that is a list or a NumPy
array) or hand over (a NumPy function called on its array), and it counts where the host waits.
"""
import sys

from tests.strict_cupy.differences import reseed
from tests.strict_cupy.library import MODULES
from tests.strict_cupy.syncs import host_syncs

__all__ = ["host_syncs", "install"]


def install(monkeypatch):
    """Be ``cupy`` and ``cupyx`` until the end of the test; random orders begin anew."""
    reseed()
    for name in [name for name in sys.modules if name.partition(".")[0] in ("cupy", "cupyx")]:
        monkeypatch.delitem(sys.modules, name)
    for name, module in MODULES.items():
        monkeypatch.setitem(sys.modules, name, module)
    return MODULES["cupy"]

"""minimoe: the mixture-of-experts papers, from scratch, on a small reverse-mode autodiff engine.

What it offers is imported when it is first asked for: the plugin of pytest, which is loaded in
every test run where minimoe is installed, must not load NumPy there.
"""
import importlib

_PLACES = {"ops": "minimoe.ops", "oracle": "minimoe.oracle",
           "check_vjp": "minimoe.autodiff.check",
           **dict.fromkeys(("Tensor", "grad", "op", "pullback", "stop_gradient", "value_and_grad"),
                           "minimoe.autodiff.tensor")}
__all__ = sorted(_PLACES)


def __getattr__(name):
    if name not in _PLACES:
        raise AttributeError(f"module 'minimoe' has no attribute {name!r}")
    importlib.import_module("minimoe.ops")          # gives Tensor its operators
    found = importlib.import_module(_PLACES[name])
    if found.__name__ != f"minimoe.{name}":
        found = getattr(found, name)
    globals()[name] = found
    return found


def __dir__():
    return __all__

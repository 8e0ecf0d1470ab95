"""The recorded namespace of the real CuPy, and its parameters as Python signatures."""
import json
from functools import lru_cache
from inspect import Parameter, Signature
from pathlib import Path

RECORD = json.loads((Path(__file__).resolve().parents[2] / "reference_runs" / "recorded"
                     / "cupy_namespace.json").read_text())
UFUNC_METHODS = {"at": "a, indices, b=", "reduce": "array, axis=, dtype=, out=, keepdims=",
                 "accumulate": "array, axis=, dtype=, out=",
                 "reduceat": "array, indices, axis=, dtype=, out="}


@lru_cache(maxsize=None)
def signature(text):
    """The signature written ``a, axis=, *, dtype=``, where ``=`` marks what may be left out."""
    parameters, kind = [], Parameter.POSITIONAL_OR_KEYWORD
    for word in text.split(", ") if text else []:
        if word == "/":
            parameters = [p.replace(kind=Parameter.POSITIONAL_ONLY) for p in parameters]
        elif word.startswith("**"):
            parameters.append(Parameter(word[2:], Parameter.VAR_KEYWORD))
        elif word.startswith("*"):
            kind = Parameter.KEYWORD_ONLY
            if word != "*":
                parameters.append(Parameter(word[1:], Parameter.VAR_POSITIONAL))
        else:
            default = None if word.endswith("=") else Parameter.empty
            parameters.append(Parameter(word.rstrip("="), kind, default=default))
    return Signature(parameters)


def parameters(entry):
    """The parameters of a recorded callable as text; a ufunc's last ones are its outputs."""
    if isinstance(entry, str):
        return entry
    inputs = ", ".join(f"x{i}" for i in range(entry["inputs"]))
    outputs = entry["loops"].split()[0].partition("->")[2]
    named = "out=" if len(outputs) == 1 else ", ".join(f"out{i}=" for i in range(len(outputs)))
    return f"{inputs}, {named}, *, casting=, dtype="

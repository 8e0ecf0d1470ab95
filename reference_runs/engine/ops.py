"""Record the primitive operations: PyTorch's operator of the same name, values and gradients.

    python -m reference_runs.engine.ops

One file per operation, with several cases numbered from 0. ``in.<case>.<argument>`` are the arrays,
in order; ``set.<case>.<name>`` the settings, named as minimoe names them; ``out.<case>.value`` is
PyTorch's answer, and ``out.<case>.grad.<argument>`` its gradient of <value, cotangent> for each
floating argument. Among the inputs are kinks, ties, masks, and entries far out.
"""
import numpy as np
import torch
import torch.nn.functional as F

from reference_runs.recorder import save, start

INF = float("inf")
TABLE = {}       # operation -> (PyTorch's name, the function, cases: a function of the generator)


def recorded(name, of, function):
    """Enter the cases that the decorated function draws."""
    def enter(cases):
        TABLE[name] = of, function, cases
        return cases
    return enter


def run(name):
    of, function, cases = TABLE[name]
    rng = start(0)
    inputs, settings, out = {}, {}, {}
    for i, (arrays, set_) in enumerate(cases(rng)):
        tensors = {key: torch.from_numpy(np.array(a)) for key, a in arrays.items()}
        floating = {key: x.requires_grad_() for key, x in tensors.items() if x.is_floating_point()}
        value = function(*tensors.values(), **set_)
        cotangent = torch.from_numpy(np.array(rng.standard_normal(value.shape))).to(value.dtype)
        if name == "round_to_bfloat16":     # PyTorch would round the cotangent, too
            cotangent = cotangent.bfloat16().float()
        gradients = torch.autograd.grad(value, list(floating.values()), cotangent)
        inputs |= {f"{i}.{key}": x for key, x in tensors.items()} | {f"{i}.cotangent": cotangent}
        settings |= {f"{i}.{key}": setting for key, setting in set_.items()}
        out |= {f"{i}.value": value,
                **{f"{i}.grad.{key}": g for key, g in zip(floating, gradients)}}
    save(f"ops/{name}", source={"kind": "torch", "of": of}, seed=0,
         **{"in": inputs}, set=settings, out=out)


# Functions of one array, entry by entry: (PyTorch's name, special entries, least entry drawn)

FAR = [-1e300, -745.2, -40, -38, -20, -6, -1e-300, 0, 1e-300, 6, 20, 40, 1e300]
ENTRY_BY_ENTRY = {
    "abs": (torch.abs, [0.0, *FAR], -3),
    "cos": (torch.cos, [0.0, 1e-300, 1e3], -3),
    "erf": (torch.erf, FAR, -3),
    "exp": (torch.exp, [-745.2, -700, 0, 1e-300], -3),
    "expm1": (torch.expm1, [-745.2, -40, -1e-300, 1e-300, 0], -3),
    "gelu": (F.gelu, FAR[1:], -3),
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), FAR[1:-1], -3),
    "log": (torch.log, [1e-3, 1, 1e300], 0.1),
    "log1p": (torch.log1p, [-0.99, -1e-300, 0, 1e-300, 1e300], -0.9),
    "log_gamma": (torch.lgamma, [-2.5, -0.25, 0.5, 1 - 1e-9, 1, 1 + 1e-9, 2, 2 + 1e-9, 170], 0.1),
    "log_normal_cdf": (torch.special.log_ndtr, [-38, -20, -6, -1, 0, 6, 20], -3),
    "negative": (torch.neg, FAR, -3),
    "normal_cdf": (torch.special.ndtr, FAR, -3),
    "relu": (torch.relu, FAR, -3),
    "sigmoid": (torch.sigmoid, FAR, -3),
    "sin": (torch.sin, [0.0, 1e-300, 1e3], -3),
    "softplus": (lambda x: F.softplus(x, threshold=INF), [-745.2, -40, -1e-300, 0, 30, 700], -3),
    "sqrt": (torch.sqrt, [1e-3, 1e300], 0.1),
    "square": (torch.square, [0, 1e-200, 1e100], -3),
    "tanh": (torch.tanh, FAR, -3),
}
NAMES = {"gelu": "torch.nn.functional.gelu", "gelu_tanh": "torch.nn.functional.gelu, tanh",
         "softplus": "torch.nn.functional.softplus, no threshold",
         "normal_cdf": "torch.special.ndtr", "log_normal_cdf": "torch.special.log_ndtr",
         "log_gamma": "torch.lgamma", "negative": "torch.neg"}
for name, (function, special, least) in ENTRY_BY_ENTRY.items():
    @recorded(name, NAMES.get(name, f"torch.{name}"), function)
    def _(rng, special=special, least=least):
        yield {"x": rng.uniform(least, 3, (4, 5))}, {}
        yield {"x": np.array(special, float)}, {}


# Arithmetic

def _two(first, second):
    """Arguments of several shapes, and a kink's worth of equal entries."""
    def cases(rng):
        for a, b in [((3, 4), (3, 4)), ((3, 1), (4,)), ((), (2, 3)), ((2, 1, 3), (4, 1))]:
            yield {"a": first(rng, a), "b": second(rng, b)}, {}
        equal = first(rng, 5)
        yield {"a": equal, "b": equal.copy()}, {}
    return cases


def _normal(rng, shape):
    return rng.standard_normal(shape)


def _away_from_0(rng, shape):
    return rng.uniform(0.5, 2, shape) * rng.choice([-1, 1], shape)


for name, of, second in [("add", "add", _normal), ("subtract", "sub", _normal),
                         ("multiply", "mul", _normal), ("divide", "div", _away_from_0),
                         ("maximum", "maximum", _normal), ("minimum", "minimum", _normal)]:
    recorded(name, f"torch.{of}", getattr(torch, of))(_two(_normal, second))


@recorded("power", "torch.pow", torch.pow)
def _(rng):
    yield {"x": rng.uniform(0.1, 3, (3, 4)), "c": rng.standard_normal(4)}, {}
    yield {"x": np.array([0, 0, 2, 1e-3]), "c": np.array([2, 0, 0, 3.0])}, {}
    yield {"x": np.array([2.0]), "c": rng.standard_normal(5)}, {}


@recorded("where", "torch.where", torch.where)
def _(rng):
    for shape in [(3, 4), (4,), ()]:
        yield {"condition": rng.random((3, 4)) < 0.5, "a": rng.standard_normal(shape),
               "b": rng.standard_normal((3, 1))}, {}


@recorded("clip", "torch.clamp", lambda x, low, high: torch.clamp(x, low, high))
def _(rng):
    x = np.concatenate([2 * rng.standard_normal(12), [-1, 0.5, 1, -INF, INF]])
    yield {"x": x}, {"low": -1.0, "high": 0.5}
    yield {"x": x}, {"low": 0.0, "high": INF}


# Precision

@recorded("astype", "torch.Tensor.to", lambda x, dtype: x.to(getattr(torch, dtype)))
def _(rng):
    yield {"x": rng.standard_normal((3, 4))}, {"dtype": "float32"}
    yield {"x": rng.standard_normal((3, 4)).astype("float32")}, {"dtype": "float64"}


@recorded("round_to_bfloat16", "torch.Tensor.bfloat16", lambda x: x.bfloat16().float())
def _(rng):
    """Ties to even either way, the largest floats, subnormals, infinities, NaN; then any bits."""
    bits = np.array([0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001, 0xBF808000, 0x7F7FFFFF,
                     0x7F7F7FFF, 0x00000001, 0x00007FFF, 0x00008001, 0x007FFFFF, 0x80000000,
                     0x7F800000, 0xFF800000, 0x7FC00000], "uint32")
    yield {"x": bits.view("float32")}, {}
    yield {"x": rng.integers(0, 2**32, 200, dtype="uint32").view("float32")}, {}


# Products

@recorded("matmul", "torch.matmul", torch.matmul)
def _(rng):
    for a, b in [((3, 4), (4, 2)), ((2, 3, 4), (4, 2)), ((3, 4), (2, 4, 2)),
                 ((5, 1, 3, 4), (2, 4, 3)), ((4,), (4,)), ((4,), (4, 2)), ((3, 4), (4,)),
                 ((2, 3, 4), (4,)), ((4,), (2, 4, 3))]:
        yield {"a": rng.standard_normal(a), "b": rng.standard_normal(b)}, {}


@recorded("einsum", "torch.einsum",
          lambda *operands, subscripts: torch.einsum(subscripts, operands))
def _(rng):
    size = dict(b=2, t=3, q=3, k=4, e=2, c=3, h=2, d=5)
    for subscripts in ["td,ed->te", "btd,ehd->bteh", "bqhd,bkhd->bhqk", "bhqk,bkhd->bqhd",
                       "tec,td->ecd", "ecd,edh->ech", "te,ted->td", "te,te->t", "te,td->ted",
                       "td->dt", "td->", "te,cd->dt", "td,de,eh->th", "te,te,td->d", ",td->td"]:
        groups = subscripts.partition("->")[0].split(",")
        yield ({str(i): rng.standard_normal([size[letter] for letter in group])
                for i, group in enumerate(groups)}, {"subscripts": subscripts})


# Reductions

def _reductions(rng):
    for axis in [0, -1, (0, 2)]:
        for keepdims in [False, True]:
            yield {"x": rng.standard_normal((2, 3, 4))}, {"axis": axis, "keepdims": keepdims}


for name, of in [("sum", "sum"), ("mean", "mean"), ("max", "amax"), ("min", "amin")]:
    @recorded(name, f"torch.{of}",
              lambda x, axis, keepdims, of=of: getattr(torch, of)(x, axis, keepdim=keepdims))
    def _(rng):
        yield from _reductions(rng)
        yield {"x": np.array([[2.0, 1, 2], [1, 1, 1]])}, {"axis": 1, "keepdims": False}      # ties


@recorded("var", "torch.var", lambda x, axis, keepdims, ddof: torch.var(
    x, axis, correction=ddof, keepdim=keepdims))
def _(rng):
    for arrays, settings in _reductions(rng):
        yield arrays, {**settings, "ddof": 0}
    yield {"x": rng.standard_normal((5, 2))}, {"axis": 0, "keepdims": False, "ddof": 1}


@recorded("cumsum", "torch.cumsum", lambda x, axis: torch.cumsum(x, axis))
def _(rng):
    for axis in [0, 1, -1]:
        yield {"x": rng.standard_normal((2, 3, 4))}, {"axis": axis}


# Softmax and its kin; a mask is an entry of -inf

def _rows(rng):
    yield {"x": rng.standard_normal((3, 4, 5))}, {"axis": -1}
    yield {"x": rng.standard_normal((3, 4))}, {"axis": 0}
    x = 300 * rng.standard_normal((4, 6))
    x[0] += 1e8
    x[1, :3] = -INF
    x[2, 1:] = -INF
    yield {"x": x}, {"axis": -1}


recorded("softmax", "torch.softmax", lambda x, axis: torch.softmax(x, axis))(_rows)


@recorded("log_softmax", "torch.log_softmax", lambda x, axis: torch.log_softmax(x, axis))
def _(rng):
    for arrays, settings in _rows(rng):
        yield {"x": np.maximum(arrays["x"], -1e4)}, settings


@recorded("logsumexp", "torch.logsumexp", lambda x, axis, keepdims: torch.logsumexp(
    x, axis, keepdim=keepdims))
def _(rng):
    for arrays, settings in _rows(rng):
        yield arrays, {**settings, "keepdims": True}
    yield {"x": np.array([[-INF, 0, -1], [-INF, -INF, 1]])}, {"axis": 1, "keepdims": False}
    yield {"x": rng.standard_normal((2, 3, 4))}, {"axis": (0, 2), "keepdims": False}


@recorded("cross_entropy", "torch.nn.functional.cross_entropy",
          lambda logits, label: F.cross_entropy(logits.reshape(-1, logits.shape[-1]),
                                                label.reshape(-1), reduction="none"
                                                ).reshape(label.shape))
def _(rng):
    yield {"logits": rng.standard_normal((2, 3, 4)), "label": rng.integers(0, 4, (2, 3))}, {}
    yield {"logits": 300 * rng.standard_normal((6, 5)), "label": rng.integers(0, 5, 6)}, {}


# Normalization

@recorded("layer_norm", "torch.nn.functional.layer_norm",
          lambda x, scale, shift, epsilon: F.layer_norm(x, x.shape[-1:], scale, shift, epsilon))
def _(rng):
    for shape in [(3, 4), (2, 3, 8), (5,)]:
        yield ({"x": 3 + rng.standard_normal(shape), "scale": rng.standard_normal(shape[-1]),
                "shift": rng.standard_normal(shape[-1])}, {"epsilon": 1e-5})


@recorded("rms_norm", "torch.nn.functional.rms_norm",
          lambda x, scale, epsilon: F.rms_norm(x, x.shape[-1:], scale, epsilon))
def _(rng):
    for shape in [(3, 4), (2, 3, 8), (5,)]:
        yield ({"x": rng.standard_normal(shape), "scale": rng.standard_normal(shape[-1])},
               {"epsilon": 1e-6})


def _images(x):
    """Channels last, as minimoe has them, to channels first, as PyTorch has them."""
    return x.permute(0, 3, 1, 2)


def _back(y):
    return y.permute(0, 2, 3, 1)


@recorded("batch_norm", "torch.nn.functional.batch_norm, training",
          lambda x, scale, shift, epsilon: F.batch_norm(
              x.reshape(-1, x.shape[-1]), None, None, scale, shift, True, eps=epsilon
              ).reshape(x.shape))
def _(rng):
    for shape in [(2, 3, 5, 4), (6, 3), (2, 3, 1), (3, 1, 2, 5)]:
        yield ({"x": 3 + rng.standard_normal(shape), "scale": rng.standard_normal(shape[-1]),
                "shift": rng.standard_normal(shape[-1])}, {"epsilon": 1e-5})


# Images, which minimoe has with channels last

@recorded("conv2d", "torch.nn.functional.conv2d", lambda x, w, stride, padding: _back(
    F.conv2d(_images(x), w.permute(3, 2, 0, 1).contiguous(), stride=stride, padding=padding)))
def _(rng):
    for x, w, stride, padding in [
            ((2, 5, 6, 3), (3, 3, 3, 4), 1, 1), ((2, 5, 6, 3), (3, 3, 3, 4), 2, 0),
            ((1, 7, 8, 2), (3, 3, 2, 1), 3, 2), ((2, 4, 5, 3), (1, 1, 3, 2), 1, 0),
            ((1, 8, 7, 1), (5, 5, 1, 3), 1, 2), ((2, 6, 5, 2), (2, 3, 2, 3), 2, 1),
            ((1, 3, 4, 2), (3, 4, 2, 2), 1, 0), ((2, 5, 4, 2), (1, 1, 2, 3), 2, 0)]:
        yield ({"x": rng.standard_normal(x), "w": rng.standard_normal(w)},
               {"stride": stride, "padding": padding})


@recorded("max_pool", "torch.nn.functional.max_pool2d",
          lambda x, size: _back(F.max_pool2d(_images(x), size)))
def _(rng):
    for shape, size in [((2, 4, 6, 3), 2), ((1, 8, 4, 2), 4), ((2, 3, 2, 1), 1)]:
        yield {"x": rng.standard_normal(shape)}, {"size": size}
    yield {"x": rng.integers(0, 2, (3, 6, 6, 2)).astype(float)}, {"size": 3}                 # ties


for name, mode in [("upsample_nearest", {"mode": "nearest"}),
                   ("upsample_bilinear", {"mode": "bilinear", "align_corners": False})]:
    @recorded(name, f"torch.nn.functional.interpolate, {mode['mode']}",
              lambda x, factor, mode=mode: _back(
                  F.interpolate(_images(x), scale_factor=factor, **mode)))
    def _(rng):
        for shape, factor in [((2, 3, 4, 2), 2), ((1, 2, 1, 3), 3), ((2, 3, 3, 1), 4),
                              ((1, 2, 2, 2), 1)]:
            yield {"x": rng.standard_normal(shape)}, {"factor": factor}


# Shapes and places

@recorded("reshape", "torch.reshape", lambda x, shape: torch.reshape(x, shape))
def _(rng):
    yield {"x": rng.standard_normal((2, 3, 4))}, {"shape": (6, 4)}
    yield {"x": rng.standard_normal((2, 3, 4))}, {"shape": (4, -1)}


@recorded("transpose", "torch.permute", lambda x, axes: torch.permute(x, axes))
def _(rng):
    yield {"x": rng.standard_normal((2, 3, 4))}, {"axes": (2, 0, 1)}
    yield {"x": rng.standard_normal((2, 3, 4))}, {"axes": (-2, -1, 0)}


@recorded("swapaxes", "torch.swapaxes", lambda x, first, second: torch.swapaxes(x, first, second))
def _(rng):
    yield {"x": rng.standard_normal((2, 3, 4))}, {"first": 0, "second": -1}


@recorded("broadcast_to", "torch.broadcast_to", lambda x, shape: torch.broadcast_to(x, shape))
def _(rng):
    for shape in [(3, 1), (4,), ()]:
        yield {"x": rng.standard_normal(shape)}, {"shape": (2, 3, 4)}


@recorded("concatenate", "torch.concatenate", lambda *arrays, axis: torch.concatenate(arrays, axis))
def _(rng):
    for axis, shapes in [(0, [(2, 3), (1, 3), (4, 3)]), (-1, [(2, 1, 3), (2, 1, 2)])]:
        yield ({str(i): rng.standard_normal(shape) for i, shape in enumerate(shapes)},
               {"axis": axis})


@recorded("stack", "torch.stack", lambda *arrays, axis: torch.stack(arrays, axis))
def _(rng):
    for axis in [0, 1, -1]:
        yield {str(i): rng.standard_normal((2, 3)) for i in range(3)}, {"axis": axis}


@recorded("split", "torch.split, the pieces joined in reverse", lambda x, sizes, axis: torch.cat(
    torch.split(x, sizes, axis)[::-1], axis))
def _(rng):
    yield {"x": rng.standard_normal((2, 6))}, {"sizes": (1, 3, 2), "axis": -1}
    yield {"x": rng.standard_normal((5, 2, 2))}, {"sizes": (5,), "axis": 0}


@recorded("pad", "torch.nn.functional.pad", lambda x, widths, value: F.pad(
    x, [n for pair in reversed(widths) for n in pair], value=value))
def _(rng):
    yield {"x": rng.standard_normal((2, 3))}, {"widths": ((1, 2), (0, 3)), "value": -1.5}


@recorded("getitem", "torch.Tensor.__getitem__", lambda x, *key: x[key])
def _(rng):
    x = rng.standard_normal((4, 3, 2))
    yield {"x": x, "0": np.array([1, -1, 1])}, {}
    yield {"x": x, "0": np.array([0, 3, 0]), "1": np.array([2, 1, 2])}, {}
    yield {"x": x, "0": np.array([[0], [-2]]), "1": np.array([2, 2, 0])}, {}
    yield {"x": x, "0": rng.random((4, 3)) < 0.5}, {}


@recorded("take", "torch.index_select", lambda x, index, axis: torch.index_select(
    x, axis, index.reshape(-1)).unflatten(axis, index.shape))
def _(rng):
    yield {"x": rng.standard_normal((4, 3)), "index": rng.integers(0, 4, 9)}, {"axis": 0}
    yield {"x": rng.standard_normal((2, 4, 3)), "index": rng.integers(0, 4, (2, 5))}, {"axis": 1}


@recorded("take_along_axis", "torch.gather", lambda x, index, axis: torch.gather(x, axis, index))
def _(rng):
    yield {"x": rng.standard_normal((3, 4)), "index": rng.integers(0, 4, (3, 6))}, {"axis": -1}
    yield {"x": rng.standard_normal((3, 4)), "index": rng.integers(0, 3, (5, 4))}, {"axis": 0}


@recorded("scatter_add", "torch.index_add", lambda target, index, values: torch.index_add(
    target, 0, index, values))
def _(rng):
    yield {"target": rng.standard_normal((4, 3)), "index": rng.integers(0, 4, 9),
           "values": rng.standard_normal((9, 3))}, {}
    yield {"target": rng.standard_normal(5), "index": rng.integers(0, 5, 9),
           "values": rng.standard_normal(9)}, {}


if __name__ == "__main__":
    for name in TABLE:
        run(name)

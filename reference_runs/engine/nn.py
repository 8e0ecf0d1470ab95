"""Record the layers of torch.nn, forward and backward.

    python -m reference_runs.engine.nn

Parameters are drawn in minimoe's layout and handed to PyTorch's modules in theirs, by operations
that PyTorch differentiates too. What is differentiated is the sum of <output, cotangent> over all
outputs; ``out.grad.x`` and ``out.grad.w`` are with respect to ``in.x`` and ``param.w``.
"""
import math

import torch
from torch.func import functional_call

from reference_runs.recorder import save, start


def drawing(rng):
    return lambda *shape: torch.from_numpy(rng.standard_normal(shape)).requires_grad_()


def record(case, seed, of, run, inputs, params, rng, kind="torch", plain={}, settings={}):
    """``inputs`` and ``params`` are differentiated, ``plain`` inputs are not."""
    out = run(**inputs, **params)
    cotangents = {f"cotangent.{name}": torch.from_numpy(rng.standard_normal(y.shape))
                  for name, y in out.items()}
    sum((y * cotangents[f"cotangent.{name}"]).sum() for name, y in out.items()).backward()
    gradients = {f"grad.{name}": a.grad for name, a in {**inputs, **params}.items()}
    save(f"nn/{case}", source={"kind": kind, "of": of}, seed=seed, param=params, set=settings,
         **{"in": {**inputs, **plain, **cotangents}}, out={**out, **gradients})


# -- Linear, layer norm, embedding ---------------------------------------------------------------

def linear(case, seed, leading, D, H):
    rng = start(seed)
    draw = drawing(rng)
    record(case, seed, "torch.nn.functional.linear",
           lambda x, w, b: {"y": torch.nn.functional.linear(x, w.T, b)},
           {"x": draw(*leading, D)}, {"w": draw(D, H), "b": draw(H)}, rng)


def layer_norm(case, seed, leading, D, epsilon):
    rng = start(seed)
    draw = drawing(rng)
    record(case, seed, "torch.nn.functional.layer_norm",
           lambda x, scale, shift: {"y": torch.nn.functional.layer_norm(
               x, (D,), scale, shift, epsilon)},
           {"x": draw(*leading, D)}, {"scale": draw(D), "shift": draw(D)}, rng,
           settings={"epsilon": epsilon})


def embedding(case, seed, shape, N, D):
    rng = start(seed)
    index = torch.from_numpy(rng.integers(0, N, shape))     # with repeats: each is paid back
    record(case, seed, "torch.nn.functional.embedding",
           lambda table: {"y": torch.nn.functional.embedding(index, table)},
           {}, {"table": drawing(rng)(N, D)}, rng, plain={"index": index})


# -- Attention -----------------------------------------------------------------------------------

def attention_params(draw, D, A):
    W = D // A
    return {"w_query": draw(D, A, W), "w_key": draw(D, A, W), "w_value": draw(D, A, W),
            "w_out": draw(A, W, D), "b_query": draw(A, W), "b_key": draw(A, W),
            "b_value": draw(A, W), "b_out": draw(D)}


def multi_head(hidden=None, bias=None, padding=None):
    """torch.nn.MultiheadAttention, whose masks are True where nothing may be read."""
    def run(x, memory=None, *, w_query, w_key, w_value, w_out, b_query, b_key, b_value, b_out):
        D, A, _ = w_query.shape
        module = torch.nn.MultiheadAttention(D, A, batch_first=True, dtype=torch.float64)
        weights = {
            "in_proj_weight": torch.cat([w.reshape(D, D).T for w in (w_query, w_key, w_value)]),
            "in_proj_bias": torch.cat([b.reshape(D) for b in (b_query, b_key, b_value)]),
            "out_proj.weight": w_out.reshape(D, D).T, "out_proj.bias": b_out}
        memory = x if memory is None else memory
        mask = hidden
        if bias is not None:             # per head: torch wants batches times heads in front
            mask = bias.expand(len(x), *bias.shape).reshape(-1, *bias.shape[1:])
        y, _ = functional_call(module, weights, (x, memory, memory),
                               {"attn_mask": mask, "key_padding_mask": padding,
                                "need_weights": False})
        return {"y": y}
    return run


def self_attention(case, seed, B, S, D, A, causal=False, padded=False):
    rng = start(seed)
    draw = drawing(rng)
    plain, hidden, padding = {}, None, None
    if causal:
        hidden = torch.ones(S, S).triu(1).bool()
        plain["mask"] = ~hidden
    if padded:
        padding = torch.arange(S) >= torch.arange(S, S - B, -1)[:, None]     # [B, S]
        plain["mask"] = ~padding[:, None, None, :]
    record(case, seed, "torch.nn.MultiheadAttention", multi_head(hidden, padding=padding),
           {"x": draw(B, S, D)}, attention_params(draw, D, A), rng, plain=plain)


def biased_attention(case, seed, B, S, D, A):
    rng = start(seed)
    draw = drawing(rng)
    bias = draw(A, S, S)
    run = multi_head(bias=bias)
    record(case, seed, "torch.nn.MultiheadAttention", lambda bias, **others: run(**others),
           {"x": draw(B, S, D), "bias": bias}, attention_params(draw, D, A), rng)


def cross_attention(case, seed, B, S, R, D, A):
    rng = start(seed)
    draw = drawing(rng)
    record(case, seed, "torch.nn.MultiheadAttention", multi_head(),
           {"x": draw(B, S, D), "memory": draw(B, R, D)}, attention_params(draw, D, A), rng)


def hidden_rows(case, seed, B, A, S, R, W):
    """Attention alone, with queries that may read nothing: they get zeros, and pass on none."""
    rng = start(seed)
    draw = drawing(rng)
    mask = torch.from_numpy(rng.random((B, 1, S, R)) < 0.6)
    mask[0, 0, 1] = mask[-1, 0, S - 1] = False
    record(case, seed, "torch.nn.functional.scaled_dot_product_attention",
           lambda query, key, value: {"y": torch.nn.functional.scaled_dot_product_attention(
               query, key, value, attn_mask=mask)},
           {"query": draw(B, A, S, W), "key": draw(B, A, R, W), "value": draw(B, A, R, W)},
           {}, rng, plain={"mask": mask})


def t5_bucket(offset, n_buckets, max_distance, bidirectional):
    """Bucket of one offset (key less query), with the logarithm that the released code takes."""
    first = 0
    if bidirectional:
        n_buckets //= 2
        first = n_buckets if offset > 0 else 0
        distance = abs(offset)
    else:
        distance = max(-offset, 0)
    exact = n_buckets // 2
    if distance < exact:
        return first + distance
    steps = math.log(distance / exact) / math.log(max_distance / exact) * (n_buckets - exact)
    return first + min(exact + int(steps), n_buckets - 1)


def relative_bias(case, seed, S, R, N, A, max_distance, bidirectional):
    """T5's bias, one head, query and key after the other."""
    rng = start(seed)

    def run(table):
        return {"y": torch.stack([torch.stack([torch.stack([
            table[t5_bucket(r - s, N, max_distance, bidirectional), a]
            for r in range(R)]) for s in range(S)]) for a in range(A)])}

    record(case, seed, "arXiv:1910.10683v4, Section 2.1, and the bucketing of mesh_tensorflow", run,
           {}, {"table": drawing(rng)(N, A)}, rng, kind="transcription",
           settings={"n_queries": S, "n_keys": R, "max_distance": max_distance})


# -- LSTM ----------------------------------------------------------------------------------------

def lstm(case, seed, S, B, D, H, layers, from_zeros=False):
    rng = start(seed)
    draw = drawing(rng)
    params = {}
    for i in range(layers):
        params.update({f"{i}.w_in": draw(H if i else D, 4 * H), f"{i}.w_hidden": draw(H, 4 * H),
                       f"{i}.b": draw(4 * H)})

    def run(x, hidden=None, cell=None, **params):
        module = torch.nn.LSTM(D, H, layers, dtype=torch.float64)
        weights = {}
        for i in range(layers):
            weights[f"weight_ih_l{i}"] = params[f"{i}.w_in"].T
            weights[f"weight_hh_l{i}"] = params[f"{i}.w_hidden"].T
            weights[f"bias_ih_l{i}"] = 0.75 * params[f"{i}.b"]     # only their sum acts
            weights[f"bias_hh_l{i}"] = 0.25 * params[f"{i}.b"]
        states = None if hidden is None else (hidden, cell)
        y, (h, c) = functional_call(module, weights, (x, states))
        return {"y": y, "hidden": h, "cell": c}

    states = {} if from_zeros else {"hidden": draw(layers, B, H), "cell": draw(layers, B, H)}
    record(case, seed, "torch.nn.LSTM", run, {"x": draw(S, B, D), **states}, params, rng)


if __name__ == "__main__":
    linear("linear", 0, leading=(7,), D=5, H=3)
    linear("linear_batched", 1, leading=(2, 4), D=1, H=6)
    layer_norm("layer_norm", 2, leading=(6,), D=8, epsilon=1e-5)
    layer_norm("layer_norm_batched", 3, leading=(3, 2), D=5, epsilon=0.1)
    embedding("embedding", 4, shape=(4, 5), N=6, D=3)
    embedding("embedding_of_one", 5, shape=(), N=3, D=4)
    self_attention("attention_self", 6, B=2, S=5, D=6, A=3)
    self_attention("attention_one_head", 7, B=1, S=4, D=5, A=1)
    self_attention("attention_causal", 8, B=2, S=6, D=8, A=2, causal=True)
    self_attention("attention_padded", 9, B=3, S=5, D=4, A=2, padded=True)
    biased_attention("attention_biased", 10, B=2, S=4, D=6, A=2)
    cross_attention("attention_cross", 11, B=2, S=3, R=7, D=8, A=4)
    hidden_rows("hidden_rows", 12, B=2, A=2, S=4, R=5, W=3)
    relative_bias("relative", 13, S=9, R=40, N=16, A=2, max_distance=32, bidirectional=True)
    relative_bias("relative_short", 14, S=30, R=9, N=8, A=3, max_distance=20, bidirectional=True)
    relative_bias("relative_causal", 15, S=26, R=26, N=8, A=2, max_distance=20,
                  bidirectional=False)
    lstm("lstm", 16, S=5, B=3, D=4, H=6, layers=1)
    lstm("lstm_from_zeros", 17, S=3, B=2, D=5, H=2, layers=1, from_zeros=True)
    lstm("lstm_one_step", 18, S=1, B=1, D=2, H=3, layers=1)
    lstm("lstm_two_layers", 19, S=4, B=2, D=3, H=4, layers=2)
    lstm("lstm_three_layers", 20, S=6, B=3, D=2, H=3, layers=3, from_zeros=True)

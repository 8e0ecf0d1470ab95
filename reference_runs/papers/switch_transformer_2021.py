"""Record whole Switch Transformers, and T5, of transformers 4.44.2: checkpoints and runs of them.

    pip install transformers==4.44.2 safetensors
    python -m reference_runs.papers.switch_transformer_2021

Tiny models, their weights from our own generator, in evaluation mode unless dropout is recorded: a
checkpoint as ``save_pretrained`` writes it, and a run of it with logits, routing, losses and the
gradient of the loss (cross-entropy and 0.01 times the balance losses) for every parameter. The
library computes norms and softmax in float32 whatever the model's dtype is; in the float64 cases
these two casts are undone, and nothing else is. Its z-loss is off.

Last, the paper's own routing in the library's T5: its feed-forward layers replaced by the layer of
Eqs. (1)-(6), token by token.
"""
import contextlib
import shutil
from unittest import mock

import torch
from torch import nn
from transformers import (
    SwitchTransformersConfig, SwitchTransformersForConditionalGeneration, T5Config,
    T5ForConditionalGeneration)
from transformers.models.switch_transformers.modeling_switch_transformers import (
    SwitchTransformersLayerNorm)
from transformers.models.t5.modeling_t5 import T5LayerNorm

from reference_runs.recorder import RECORDED, save, start

PACKAGES = ("torch", "numpy", "transformers", "safetensors")
SOURCE = {"kind": "third-party", "repository": "https://github.com/huggingface/transformers",
          "commit": "v4.44.2", "entry": "SwitchTransformersForConditionalGeneration"}
SIZES = {"vocab_size": 24, "d_model": 8, "d_kv": 2, "num_heads": 3, "d_ff": 12,
         "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12,
         "decoder_start_token_id": 0}
B, S, R, PAD = 2, 8, 8, -100
LEAD = 1e-3     # of the best expert before the second, at least: routing is no matter of digits


# -- float64 throughout --------------------------------------------------------------------------

def rms_norm(self, x):
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def without_casts(dtype):
    """Undo the library's casts of float64 to float32; leave a float32 model as it is."""
    undone = contextlib.ExitStack()
    if dtype == torch.float64:
        cast = torch.Tensor.float
        for norm in (SwitchTransformersLayerNorm, T5LayerNorm):
            undone.enter_context(mock.patch.object(norm, "forward", rms_norm))
        undone.enter_context(mock.patch.object(
            torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else cast(x)))
    return undone


# -- Models --------------------------------------------------------------------------------------

def switch_transformer(rng, dtype, **settings):
    config = SwitchTransformersConfig(**{**SIZES, "router_z_loss_coef": 0.0,
                                         "router_aux_loss_coef": 0.01, **settings})
    config.router_dtype = str(dtype).removeprefix("torch.")
    return drawn(SwitchTransformersForConditionalGeneration(config), rng, dtype)


def t5(rng, dtype, **settings):
    return drawn(T5ForConditionalGeneration(T5Config(**{**SIZES, **settings})), rng, dtype)


def drawn(model, rng, dtype):
    """Weights from the generator, wide enough apart that each of them matters."""
    model = model.to(dtype).eval()
    for name, p in model.named_parameters():
        z = torch.from_numpy(rng.standard_normal(tuple(p.shape)))
        if name.endswith("norm.weight"):
            z = 1 + 0.2 * z
        elif "relative_attention_bias" not in name and not name.startswith("shared"):
            z = z / p.shape[1] ** 0.5
        p.data.copy_(z * (2 if "classifier" in name else 1))
    return model


def checkpoint(model, case, **shards):
    """``save_pretrained`` beside the case's run; the names of the files written."""
    folder = RECORDED / case
    shutil.rmtree(folder, ignore_errors=True)
    if getattr(model.config, "router_dtype", None) == "float64":
        model.config.router_dtype = "float32"      # the other is not one that the library loads
    model.save_pretrained(folder, **shards)
    (folder / "generation_config.json").unlink()
    paths = sorted(folder.iterdir())
    for path in paths:
        path.chmod(0o644)
    return [path.relative_to(RECORDED).as_posix() for path in paths]


# -- Runs ----------------------------------------------------------------------------------------

def draw_inputs(rng, padded):
    """Symbols 2 and up; where padded, the end of the second sequence is no part of it."""
    source = torch.from_numpy(rng.integers(2, SIZES["vocab_size"], (B, S)))
    label = torch.from_numpy(rng.integers(2, SIZES["vocab_size"], (B, R)))
    used = {"source": torch.ones(B, S, dtype=bool), "target": torch.ones(B, R, dtype=bool)}
    if padded:
        used["source"][1, 5:] = False
        used["target"][1, 6:] = False
        source[1, 5:] = 0
        label[1, 6:] = PAD
    return source, label, used


def run(model, source, label, used):
    target = model._shift_right(label)
    out = model(input_ids=source, attention_mask=used["source"].long(), labels=label,
                decoder_input_ids=target, decoder_attention_mask=used["target"].long())
    out.loss.backward()
    inputs = {"source": source, "source_used": used["source"], "target": target,
              "target_used": used["target"], "label": label}
    grads = {f"grad.{name}": p.grad for name, p in model.named_parameters()}
    return out, inputs, {"logits": out.logits, "loss": out.loss, **grads}


def routing(out):
    """Of each Switch layer: what its router gave, and the expert, 0 for a dropped token."""
    found, i = {}, 0
    for layer in (*out.encoder_router_logits, *out.decoder_router_logits):
        if len(layer) == 2:
            probs = torch.softmax(layer[0], dim=-1)
            best = probs.topk(2, dim=-1).values
            assert (best[..., 0] - best[..., 1]).min() > LEAD, "a narrow choice"
            found |= {f"expert.{i}": layer[1], f"probs.{i}": probs}
            i += 1
    return found


def record_switch(case, seed, dtype=torch.float64, padded=False, shards={}, **settings):
    rng = start(seed)
    model = switch_transformer(rng, dtype, **settings)
    with without_casts(dtype):
        out, inputs, outputs = run(model, *draw_inputs(rng, padded))
    losses = {f"{stack}_aux_loss": getattr(out, f"{stack}_aux_loss")
              for stack in ("encoder", "decoder") if torch.is_tensor(
                  getattr(out, f"{stack}_aux_loss"))}
    case = f"transformers/{case}"
    save(case, source=SOURCE, seed=seed, packages=PACKAGES,
         beside=checkpoint(model, case, **shards),
         **{"in": inputs, "out": {**routing(out), **losses, **outputs}})


def record_t5(case, seed, dtype=torch.float64, padded=False, rate=0.0, **settings):
    rng = start(seed)
    model = t5(rng, dtype, dropout_rate=rate, **settings)
    keep = []

    def dropout(x, p=0.5, training=True, inplace=False):
        if not training:
            return x
        keep.append(torch.from_numpy(rng.random(tuple(x.shape)) >= p))
        return torch.where(keep[-1], x / (1 - p), 0.0)

    with without_casts(dtype), mock.patch.object(nn.functional, "dropout", dropout):
        _, inputs, outputs = run(model.train(rate > 0), *draw_inputs(rng, padded))
    case = f"transformers/{case}"
    save(case, source={**SOURCE, "entry": "T5ForConditionalGeneration"}, seed=seed,
         packages=PACKAGES, beside=checkpoint(model, case),
         **{"in": {**inputs, **{f"keep.{i:02}": k for i, k in enumerate(keep)}}, "out": outputs})


# -- The paper's routing -------------------------------------------------------------------------

class SwitchLayer(nn.Module):
    """Eqs. (1)-(6), each token by itself; what it found is kept for the record."""

    def __init__(self, weights, capacity_factor, used):
        super().__init__()
        self.capacity_factor, self.used = capacity_factor, used
        for name, w in weights.items():
            setattr(self, name, nn.Parameter(w))

    def forward(self, x):
        tokens, used = x.reshape(-1, x.shape[-1]), self.used.reshape(-1)
        T, E = len(tokens), self.w_router.shape[1]
        capacity = int(self.capacity_factor * T / E)                           # Eq. (3)
        self.probs = torch.softmax(tokens @ self.w_router, dim=-1)             # Eq. (1)
        self.expert, seated, self.keep, rows = self.probs.argmax(dim=-1), [0] * E, [], []
        for token, p, e, is_used in zip(tokens, self.probs, self.expert.tolist(), used.tolist()):
            self.keep.append(is_used and seated[e] < capacity)
            rows.append(torch.zeros_like(token))
            if self.keep[-1]:
                seated[e] += 1
                rows[-1] = p[e] * (torch.relu(token @ self.w_in[e]) @ self.w_out[e])   # Eq. (2)
        routed = [t for t in range(T) if used[t]]
        self.aux_loss = E * sum(                                               # Eq. (4)
            sum(int(self.expert[t] == e) for t in routed) / len(routed)        # Eq. (5)
            * sum(self.probs[t, e] for t in routed) / len(routed)              # Eq. (6)
            for e in range(E))
        return torch.stack(rows).reshape(x.shape)


def drawn_layer(rng, n_experts=3):
    D, H = SIZES["d_model"], SIZES["d_ff"]
    return {"w_router": torch.from_numpy(rng.standard_normal((D, n_experts))),
            "w_in": torch.from_numpy(rng.standard_normal((n_experts, D, H))) / D**0.5,
            "w_out": torch.from_numpy(rng.standard_normal((n_experts, H, D))) / H**0.5}


def named(model, of):
    """Parameters, or what ``of`` makes of each, by their name in minimoe and in its shapes."""
    D, A, W = model.config.d_model, model.config.num_heads, model.config.d_kv
    found = {"embedding": of(model.shared.weight)}

    def attention(place, module):
        for name in ("query", "key", "value"):
            weight = of(getattr(module, name[0]).weight)
            found[f"{place}.w_{name}"] = weight.T.reshape(D, A, W)
        found[f"{place}.w_out"] = of(module.o.weight).T.reshape(A, W, D)

    for stack in ("encoder", "decoder"):
        blocks = getattr(model, stack).block
        for i, block in enumerate(blocks):
            place = f"{stack}.layers.{i}"
            attention(f"{place}.attention", block.layer[0].SelfAttention)
            found[f"{place}.attention_norm"] = of(block.layer[0].layer_norm.weight)
            if stack == "decoder":
                attention(f"{place}.cross", block.layer[1].EncDecAttention)
                found[f"{place}.cross_norm"] = of(block.layer[1].layer_norm.weight)
            found[f"{place}.feed_forward_norm"] = of(block.layer[-1].layer_norm.weight)
            network = block.layer[-1].DenseReluDense
            if isinstance(network, SwitchLayer):
                for name in ("w_router", "w_in", "w_out"):
                    found[f"{place}.feed_forward.{name}"] = of(getattr(network, name))
            else:
                found[f"{place}.feed_forward.w_in"] = of(network.wi.weight).T
                found[f"{place}.feed_forward.w_out"] = of(network.wo.weight).T
        bias = blocks[0].layer[0].SelfAttention.relative_attention_bias
        found[f"{stack}.position_table"] = of(bias.weight)
        found[f"{stack}.norm"] = of(getattr(model, stack).final_layer_norm.weight)
    return found


def placed(model, params, capacity_factor, used):
    """The model with these parameters; each stack's second feed-forward layer a Switch layer."""
    switches = []
    for stack in ("encoder", "decoder"):
        place = f"{stack}.layers.1.feed_forward"
        switches.append(SwitchLayer({name: params[f"{place}.{name}"].clone() for name in (
            "w_router", "w_in", "w_out")}, capacity_factor, used[stack]))
        getattr(model, stack).block[1].layer[-1].DenseReluDense = switches[-1]
    with torch.no_grad():                 # what ``named`` gives are views of the model's own
        for name, p in named(model, lambda p: p.data).items():
            p.copy_(params[name])
    return switches


def encoder_decoder(inputs, params, settings):
    V, D = params["embedding"].shape
    _, A, W = params["encoder.layers.0.attention.w_query"].shape
    model = T5ForConditionalGeneration(T5Config(
        vocab_size=V, d_model=D, num_heads=A, d_kv=W, num_layers=2,
        d_ff=params["encoder.layers.0.feed_forward.w_in"].shape[1], decoder_start_token_id=0,
        relative_attention_num_buckets=len(params["encoder.position_table"]),
        relative_attention_max_distance=128)).double().eval()
    used = {"encoder": inputs["source_used"], "decoder": inputs["target_used"]}
    switches = placed(model, params, settings["capacity_factor"], used)
    with without_casts(torch.float64):
        logits = model(input_ids=inputs["source"], attention_mask=used["encoder"].long(),
                       decoder_input_ids=inputs["target"],
                       decoder_attention_mask=used["decoder"].long()).logits
    out = {"logits": logits}
    for i, layer in enumerate(switches):
        out |= {f"aux_losses.{i}": layer.aux_loss, f"probs.{i}": layer.probs,
                f"expert.{i}": layer.expert[:, None],
                f"keep.{i}": torch.tensor(layer.keep)[:, None]}
    for name, loss in (("logits", (logits * inputs["cotangent"]).sum()),
                       ("aux_losses", sum(layer.aux_loss for layer in switches))):
        model.zero_grad()
        loss.backward(retain_graph=True)
        grads = named(model, lambda p: torch.zeros_like(p) if p.grad is None else p.grad.clone())
        out |= {f"grad.{name}.{key}": g for key, g in grads.items()}
    return out


def record_encoder_decoder(case, seed, capacity_factor, padded):
    rng = start(seed)
    model = t5(rng, torch.float64, num_layers=2, relative_attention_max_distance=128)
    source, label, used = draw_inputs(rng, padded)
    for stack in (model.encoder, model.decoder):
        stack.block[1].layer[-1].DenseReluDense = SwitchLayer(drawn_layer(rng), capacity_factor,
                                                              None)
    params = named(model, lambda p: p.detach())
    cotangent = torch.from_numpy(rng.standard_normal((B, R, SIZES["vocab_size"])))
    inputs = {"source": source, "target": model._shift_right(label), "cotangent": cotangent,
              "source_used": used["source"], "target_used": used["target"]}
    out = encoder_decoder(inputs, params, {"capacity_factor": capacity_factor})
    for name in (n for n in out if n.startswith("probs.")):
        best = out[name].topk(2, dim=-1).values
        assert (best[:, 0] - best[:, 1]).min() > LEAD, "a narrow choice"
    save(f"switch_2021/encoder_decoder/{case}", seed=seed, packages=PACKAGES[:3],
         source={"kind": "transcription", "of": "arXiv:2101.03961v3, Eqs. (1)-(6)",
                 "within": "transformers.T5ForConditionalGeneration"},
         **{"in": inputs, "param": params, "set": {"capacity_factor": capacity_factor},
            "out": out})


if __name__ == "__main__":
    switch = {"num_layers": 4, "num_sparse_encoder_layers": 2,       # layers 1 and 3
              "num_decoder_layers": 2, "num_sparse_decoder_layers": 1, "num_experts": 3}
    for name, dtype in (("float64", torch.float64), ("float32", torch.float32)):
        record_switch(f"switch_dropping_{name}", seed=0, dtype=dtype, expert_capacity=2, **switch)
        record_switch(f"switch_padding_{name}", seed=1, dtype=dtype, expert_capacity=8,
                      padded=True, tie_word_embeddings=False, **switch)
        record_t5(f"t5_padding_{name}", seed=2, dtype=dtype, padded=True, num_layers=2)
    record_switch("switch_everywhere", seed=3, expert_capacity=3, num_layers=2, num_experts=2,
                  num_sparse_encoder_layers=2, num_decoder_layers=1, num_sparse_decoder_layers=1,
                  shards={"max_shard_size": "10KB"})
    record_t5("t5_dropout", seed=4, rate=0.25, padded=True, num_layers=2,
              tie_word_embeddings=False)
    record_encoder_decoder("overflowing", seed=5, capacity_factor=0.75, padded=False)
    record_encoder_decoder("padding", seed=6, capacity_factor=1.25, padded=True)

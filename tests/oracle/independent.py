"""Layers written again, token by token and expert by expert, for the oracle to find nothing in.

Plain loops over NumPy's numbers, from the equations and not from minimoe's code. ``r`` rounds what
every operation gives: to nothing, or to bfloat16.
"""
import math

import numpy as np


def to_bfloat16(x):
    """The nearest number that a bfloat16 holds. Any shape, float32 -> float32"""
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32)


def exactly(x):
    return x


def _row(x, w, r):
    """x W of one token."""
    return r(np.array([sum((x[d] * w[d, e] for d in range(len(x))), x.dtype.type(0))
                       for e in range(w.shape[1])], x.dtype))


def _softmax(row, r):
    e = r(np.array([r(np.exp(a - row.max())) for a in row], row.dtype))
    return r(e / e.sum())


def _best(row, k):
    """The k largest, of equals the first."""
    left, found = list(row), []
    for _ in range(k):
        i = max(range(len(left)), key=lambda j: (left[j], -j))
        found.append(i)
        left[i] = -math.inf
    return found


def _expert(x, w_in, w_out, r):
    return _row(np.maximum(_row(x, w_in, r), 0), w_out, r)


def switch(c, r=exactly):
    """Switch's layer: queues as lists, all first choices before any second one."""
    T, E, k, G = len(c.x), c.w_router.shape[1], c.k, c.n_groups
    logits = np.array([_row(x, c.w_router, r) for x in c.x]).reshape(T, E)
    probs = np.array([_softmax(row, r) for row in logits]).reshape(T, E)
    chosen = [_best(p, k) for p in probs]
    position, keep = np.zeros((T, k), int), np.zeros((T, k), bool)
    losses = []
    for g in range(G):
        tokens = [t for t in range(g * T // G, (g + 1) * T // G) if c.used[t]]
        taken = [0] * E
        for rank in range(k):
            for t in tokens:
                i = chosen[t][rank]
                position[t, rank] = taken[i]
                keep[t, rank] = taken[i] < c.capacity
                taken[i] += 1
        n = max(len(tokens), 1)
        f = [sum(chosen[t][0] == i for t in tokens) / n for i in range(E)]
        P = [sum((probs[t][i] for t in tokens), probs.dtype.type(0)) / n for i in range(E)]
        losses.append(E * sum(f[i] * P[i] for i in range(E)))
    y = np.zeros_like(c.x)
    for t in range(T):
        for rank, i in enumerate(chosen[t]):
            if keep[t, rank]:
                y[t] = r(y[t] + r(probs[t, i] * _expert(c.x[t], c.w_in[i], c.w_out[i], r)))
    return {"logits": logits, "probs": probs,
            "expert_index": np.array(chosen, int).reshape(T, k), "position_in_expert": position,
            "keep": keep, "y": y, "aux_loss": r(np.asarray(sum(losses) / G, c.x.dtype))}


def gshard(c, r=exactly):
    """GShard's layer: Algorithm 1 decision by decision."""
    G, S, D = c.x.shape
    E = c.w_gate.shape[1]
    experts, gates, wanted, keep, places = ([] for _ in range(5))
    y, logits, losses = np.zeros_like(c.x), [], []
    for g in range(G):
        rows = [_row(x, c.w_gate, r) for x in c.x[g]]
        p = [_softmax(row, r) for row in rows]
        chosen = [_best(row, 2) for row in p]
        weight = [r(np.array([row[i], row[j]]) / r(row[i] + row[j]))
                  for row, (i, j) in zip(p, chosen)]
        second = [bool(2 * w[1] > u) for w, u in zip(weight, c.u[g])]
        taken, kept, place = [0] * E, np.zeros((S, 2), bool), np.zeros((S, 2), int)
        for s in range(S):
            place[s, 0] = taken[chosen[s][0]]
            kept[s, 0] = place[s, 0] < c.capacity
            taken[chosen[s][0]] += 1
        for s in range(S):               # who is not wanted takes a number all the same
            place[s, 1] = taken[chosen[s][1]]
            kept[s, 1] = second[s] and place[s, 1] < c.capacity
            taken[chosen[s][1]] += 1
        counts = [sum(first == i for first, _ in chosen) for i in range(E)]
        losses.append(sum(counts[i] / S * sum(row[i] for row in p) / S for i in range(E)) / E)
        for s in range(S):
            for rank, i in enumerate(chosen[s]):
                if kept[s, rank]:
                    made = _expert(c.x[g, s], c.w_in[i], c.w_out[i], r)
                    y[g, s] = r(y[g, s] + r(weight[s][rank] * made))
        logits.append(rows)
        for whole, part in ((experts, chosen), (gates, weight), (wanted, second), (keep, kept),
                            (places, place)):
            whole.extend(part)
    return {"logits": np.array(logits), "expert_index": np.array(experts), "gate": np.array(gates),
            "wanted": np.array(wanted).reshape(G, S), "keep": np.array(keep), "y": y,
            "aux_loss": r(np.array(losses, c.x.dtype))}


def sparsely_gated(c, r=exactly):
    """Noisy top-k gating, importance and load."""
    T, E, k, eps = len(c.x), c.gate.w_gate.shape[1], c.k, c.epsilon
    clean = np.array([_row(x, c.gate.w_gate, r) for x in c.x])
    raw = np.array([_row(x, c.gate.w_noise, r) for x in c.x])
    std = r(np.logaddexp(0, raw))
    noisy = r(clean + r(std * eps))
    y, gate, p = np.zeros_like(c.x), np.zeros((T, E), c.x.dtype), np.zeros((T, E), c.x.dtype)
    chosen = [_best(row, k) for row in noisy]
    for t in range(T):
        weights = _softmax(noisy[t][chosen[t]], r)
        for w, i in zip(weights, chosen[t]):
            gate[t, i] = w
            y[t] = r(y[t] + r(w * _expert(c.x[t], c.w_in[i], c.w_out[i], r)))
        for i in range(E):
            others = sorted((noisy[t, j] for j in range(E) if j != i), reverse=True)
            above = (clean[t, i] - others[k - 1]) / std[t, i] if k < E else math.inf
            p[t, i] = 0.5 * math.erfc(-above / math.sqrt(2))
    importance, load = gate.sum(axis=0), p.sum(axis=0)
    return {"clean": clean, "noisy": noisy, "expert_index": np.array(chosen), "y": y,
            "importance": importance, "load": load,
            "importance_loss": _cv_squared(importance), "load_loss": _cv_squared(load)}


def _cv_squared(v):
    mean = sum(v) / len(v)
    return np.asarray(sum((a - mean)**2 for a in v) / len(v) / mean**2, v.dtype)


def vmoe(c, r=exactly, by_priority=False):
    """V-MoE's layer: the noise on the logits, queues as lists, rank after rank."""
    T, E, k, G = len(c.x), c.w_router.shape[1], c.k, c.n_groups
    clean = np.array([_row(x, c.w_router, r) for x in c.x]).reshape(T, E)
    noisy = r(clean + r(c.z / np.asarray(E, c.z.dtype)))
    gates = np.array([_softmax(row, r) for row in noisy]).reshape(T, E)
    chosen = [_best(row, k) for row in noisy]
    position, keep = np.zeros((T, k), int), np.zeros((T, k), bool)
    importance, load = np.zeros((G, E), c.x.dtype), np.zeros((G, E), c.x.dtype)
    for g in range(G):
        tokens = [t for t in range(g * T // G, (g + 1) * T // G) if c.used[t]]
        taken = [0] * E
        for rank in range(k):
            for t in sorted(tokens, key=lambda t: -max(gates[t])) if by_priority else tokens:
                i = chosen[t][rank]
                position[t, rank] = taken[i]
                keep[t, rank] = taken[i] < c.capacity
                taken[i] += 1
        for t in tokens:
            importance[g] += _softmax(clean[t], r)
            for i in range(E):
                above = (clean[t, i] - noisy[t, chosen[t][-1]]) * E
                load[g, i] += 0.5 * math.erfc(-above / math.sqrt(2))
    y = np.zeros_like(c.x)
    for t in range(T):
        for rank, i in enumerate(chosen[t]):
            if keep[t, rank]:
                hidden = r(_row(c.x[t], c.w_in[i], r) + c.b_in[i])
                hidden = r(np.array([a / 2 * math.erfc(-a / math.sqrt(2)) for a in hidden],
                                    c.x.dtype))
                made = r(_row(hidden, c.w_out[i], r) + c.b_out[i])
                y[t] = r(y[t] + r(gates[t, i] * made))
    losses = {name: np.asarray(np.mean([_cv_squared(v) if v.any() else 0.0 for v in shares]),
                               c.x.dtype)
              for name, shares in (("importance_loss", importance), ("load_loss", load))}
    return {"clean": clean, "noisy": noisy, "gates": gates,
            "expert_index": np.array(chosen, int).reshape(T, k), "position_in_expert": position,
            "keep": keep, "y": y, "importance": importance, "load": load, **losses}


def prioritized_vmoe(c, r=exactly):
    """The same, the surest tokens served first."""
    return vmoe(c, r, by_priority=True)


def local_experts(c, r=exactly):
    """The mixture of 1991: experts, gate, posterior, and all three errors."""
    N, E, O = len(c.x), c.w_experts.shape[1], c.w_experts.shape[2]
    o = np.array([[[1 / (1 + np.exp(-sum(c.x[n, d] * c.w_experts[d, e, i]
                                         for d in range(c.x.shape[1]))))
                    for i in range(O)] for e in range(E)] for n in range(N)], c.x.dtype)
    logits = np.array([_row(x, c.w_gate, r) for x in c.x])
    p = np.array([_softmax(row, r) for row in logits])
    o = r(o)
    q = r(np.array([[sum((c.d[n, i] - o[n, e, i])**2 for i in range(O)) for e in range(E)]
                    for n in range(N)], c.x.dtype))
    likely = np.array([[p[n, e] * np.exp(-q[n, e] / 2) for e in range(E)] for n in range(N)])
    return {"o": o, "logits": logits, "p": p, "q": q,
            "h": likely / likely.sum(axis=1, keepdims=True),
            "competitive_error": (p * q).sum(axis=1),
            "mixture_error": -np.log(likely.sum(axis=1))}


# paper, kind of run, function, sizes and settings of a random case
LAYERS = {
    "switch_2021/layer": (switch, lambda rng: dict(
        T=4 * int(rng.integers(1, 6)), D=int(rng.integers(1, 9)), E=int(rng.integers(2, 9)),
        H=int(rng.integers(1, 9)), capacity=int(rng.integers(0, 7)), k=int(rng.integers(1, 3)),
        n_groups=int(rng.choice([1, 2, 4])))),
    "gshard_2020/layer": (gshard, lambda rng: dict(
        G=int(rng.integers(1, 4)), S=int(rng.integers(1, 9)), D=int(rng.integers(1, 9)),
        E=int(rng.integers(2, 9)), H=int(rng.integers(1, 9)), capacity=int(rng.integers(0, 7)))),
    "sparsely_gated_2017/layer": (sparsely_gated, lambda rng: dict(
        T=int(rng.integers(2, 17)), D=int(rng.integers(1, 9)), E=int(rng.integers(3, 9)),
        H=int(rng.integers(1, 9)), k=int(rng.integers(1, 3)))),
    **{key: (function, lambda rng: dict(
        T=4 * int(rng.integers(1, 6)), D=int(rng.integers(1, 9)), E=int(rng.integers(2, 9)),
        H=int(rng.integers(1, 9)), capacity=int(rng.integers(0, 7)), k=int(rng.integers(1, 3)),
        n_groups=int(rng.choice([1, 2, 4]))))
       for key, function in (("vmoe_2021/layer", vmoe),
                             ("vmoe_2021/layer_batch_prioritized", prioritized_vmoe))},
    "local_experts_1991": (local_experts, lambda rng: dict(
        N=int(rng.integers(1, 9)), D=int(rng.integers(1, 6)), E=int(rng.integers(1, 6)),
        O=int(rng.integers(1, 4)))),
}

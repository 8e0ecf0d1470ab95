"""Switch Transformers at the size of a laptop: what more experts buy, and what they need.

Three kinds of evidence. *Chains*: the small model of Markov chains of ``experiments.chains`` around
a Switch layer, for more experts at the same operations, capacity, the balance loss, exploration and
initialisation. *Gates alone*: routers without training, for selective precision, no token left
behind, and what an even gate drops by chance. *Text*: T5 with a Switch layer in each stack against
T5 without, on span corruption of the characters of ``minimoe.data.python_text``.

Chains and text are float32. Runs of one seed share data and, where shapes agree, starting weights.
Figures that the paper gives have its table beside them; thresholds of claims without one come from
a prototype of the same equations.
"""
import math
from functools import partial
from typing import Callable, NamedTuple

import numpy as np

from minimoe import nn, ops, tree
from minimoe.autodiff.tensor import Tensor, grad
from minimoe.backend import to_numpy
from minimoe.data.python_text import python_text
from minimoe.data.span_corruption import END, examples
from minimoe.experiments import harness
from minimoe.experiments.chains import (
    BATCH, WIDTH, Layer, Recipe, first_choices, recorded, starved, steps_to, train)
from minimoe.experiments.harness import Claim, Result, Table, means, ranged, spread
from minimoe.optim import adam, adam_init, inverse_square_root, linear_warmup
from minimoe.papers import switch_2021 as switch
from minimoe.papers.gshard_2020 import expected_overflow
from minimoe.routing.experts import expert_feed_forward
from minimoe.routing.topk import top_k

ALPHA = 1e-2
EXPERTS = (1, 2, 4, 8, 16)
FACTORS = (0.5, 1.0, 1.25, 2.0)
SENTINELS = 16
CASTS = {"input": switch.router_probs_cast_input, "logits": switch.router_probs_cast_logits,
         "probs": switch.router_probs_cast_probs}
CROWDS = ((64, 8), (256, 8), (1024, 8), (256, 64), (1024, 64), (4096, 64))   # tokens, experts
LEFT_BEHIND = {        # bias, capacity factor: without a place after stages 1 to 4, of a prototype
    (0, 1.0): (.033, .018, .011, .008), (1, 1.0): (.389, .270, .185, .122),
    (1, 1.25): (.299, .174, .092, .033)}
# The paper's figures are negative log perplexities: the less negative, the better
TABLE_1 = {1.0: -1.561, 1.25: -1.553, 2.0: -1.554}           # by capacity factor
TABLE_3 = {0.1: "-2.72 (0.01)", 1.0: "-3.60 (0.68)"}         # by scale of the start
TABLE_11 = {"argmax": -1.471, "sample": -1.570, "dropout": -1.480, "jitter": -1.468}


# -- Chains --------------------------------------------------------------------------------------

class Policy(NamedTuple):
    """How a Switch layer sends its tokens."""
    apply: Callable     # params, x [T, D], draws, capacity -> SwitchOutput
    draws: Callable     # rng -> those of a batch


def argmax(params, x, draws, capacity):
    return switch.switch_ffn(params, x, capacity)


def input_dropout(params, x, keep, capacity):
    return switch.switch_ffn(params, x, capacity, router_input=switch.input_dropout(x, keep))


def input_jitter(params, x, u, capacity):
    return switch.switch_ffn(params, x, capacity, router_input=switch.jitter(x, u))


def sample(params, x, u, capacity):
    probs = switch.router_probs(x, params.w_router)                    # [T, E]
    return _routed(params, x, probs, switch.route_sampled(probs, u, capacity))


def no_token_left_behind(params, x, draws, capacity):
    probs = switch.router_probs(x, params.w_router)                    # [T, E]
    return _routed(params, x, probs, switch.route_no_token_left_behind(probs, capacity))


def _routed(params, x, probs, routing):
    """The layer where tokens may go elsewhere than to argmax p, of which f is made all the same."""
    y = expert_feed_forward(x, routing, params.w_in, params.w_out)     # [T, D]
    return switch.SwitchOutput(y, switch.load_balancing_loss(probs, top_k(probs, 1)), routing)


POLICIES = {
    "argmax": Policy(argmax, lambda rng: None),
    "sample": Policy(sample, lambda rng: rng.random(BATCH)),
    "dropout": Policy(input_dropout, lambda rng: rng.random((BATCH, WIDTH)) >= 0.1),
    "jitter": Policy(input_jitter, lambda rng: rng.random((BATCH, WIDTH))),
    "no token left behind": Policy(no_token_left_behind, lambda rng: None)}


class OnChains(NamedTuple):
    recipe: Recipe
    n_experts: int = 8
    capacity_factor: float = 1.25
    policy: str = "argmax"        # of POLICIES, in training
    evaluated: str = "argmax"     # where it is measured
    scale: float = 0.1            # of the starting weights
    seed: int = 0


class Run(NamedTuple):
    measures: dict        # of numbers
    steps: np.ndarray     # [looks]
    curve: np.ndarray     # [looks]   excess then, or loss, held out
    shares: np.ndarray    # [E]       of tokens held out, by the expert they chose; on chains


def on_chains(settings, case):
    capacity = switch.expert_capacity(BATCH, case.n_experts, case.capacity_factor)

    def layer(policy):
        return Layer(partial(switch.init, n_experts=case.n_experts, width=WIDTH, hidden=WIDTH,
                             scale=case.scale),
                     partial(policy.apply, capacity=capacity), policy.draws)

    trained = train(settings, case.seed, layer(POLICIES[case.policy]),
                    case.recipe._replace(scale=case.scale), layer(POLICIES[case.evaluated]))
    first = [outputs[0] for outputs in trained.outputs]       # of the first block, of each batch
    shares = first_choices(trained, case.n_experts)                    # [E]
    return Run({"excess": trained.excess, "starved": starved(shares),
                "dropped": 1 - np.mean([out.routing.keep.mean() for out in first]),
                "balance": np.mean([out.aux_loss for out in first])},
               trained.steps, trained.curve, shares)


# -- Text ----------------------------------------------------------------------------------------

class OnText(NamedTuple):
    n_experts: int = 0            # 0: no Switch layer
    hidden: int = 32              # of a feed-forward layer, or of an expert
    steps: int = 500
    batch: int = 64               # stretches of text
    length: int = 32              # characters in a stretch
    rate: float = 6e-3            # the highest, after 50 steps; from the 200th on 1 / sqrt(step)
    width: int = 32
    n_heads: int = 2
    n_layers: int = 2             # in each stack, the second a Switch layer
    capacity_factor: float = 2.0
    scale: float = 1.0            # T5's own; a tenth of it slows so short a training
    watch: int = 25               # steps between looks
    held_out: int = 1024          # stretches
    seed: int = 0


def on_text(settings, case):
    start, data, test = np.random.default_rng([settings.seed, case.seed]).spawn(3)
    text = python_text()
    vocabulary = END + 1 + len(text.symbols) + SENTINELS
    params = switch.init_transformer(
        start, vocabulary, case.width, case.n_heads, case.width // case.n_heads, case.hidden,
        case.n_layers, case.n_experts, step=2 if case.n_experts else 0, scale=case.scale)
    params = harness.move(settings, tree.map(lambda p: p.astype(np.float32), params))

    def drawn(rng, characters, n):
        return examples(rng, characters + END + 1, n, case.length, vocabulary, SENTINELS)

    held_out = drawn(test, text.test, case.held_out)
    state, steps, curve = adam_init(params), [], []
    for step in range(case.steps + 1):
        if step % case.watch == 0:
            out, loss = corrupted(settings, params, held_out, case.capacity_factor)
            steps.append(step)
            curve.append(float(loss))
        if step == case.steps:
            break
        tensors = tree.map(Tensor, params)
        batch = drawn(data, text.train, case.batch)
        trained_on, loss = corrupted(settings, tensors, batch, case.capacity_factor)
        loss = switch.training_loss(loss, trained_on.aux_losses, ALPHA)
        params, state = adam(params, grad(loss, tensors), state, learning_rate=(
            case.rate * linear_warmup(state.step, 50) * inverse_square_root(state.step, 200)))
    keep = [to_numpy(routing.keep).mean() for routing in out.routings]
    return Run({"loss": curve[-1], "dropped": 1 - np.mean(keep) if keep else 0.0,
                "weights": sum(p.size for p in tree.leaves(params))},
               np.array(steps), np.array(curve), None)


def corrupted(settings, params, batch, capacity_factor):
    """What the model gives, and its cross-entropy of a target's token, sentinels included."""
    source, target = harness.move(settings, tuple(batch))
    capacity = partial(switch.expert_capacity, capacity_factor=capacity_factor)
    out = switch.switch_transformer(params, source, nn.shift_right(target), capacity)
    return out, ops.cross_entropy(out.logits, target).mean()


# -- Gates alone ---------------------------------------------------------------------------------

class Precision(NamedTuple):
    changed: dict      # of CASTS: share of tokens whose expert is not that of float64
    ties: float        # share of tokens with two largest probabilities, softmax in bfloat16
    sum_error: float   # of those probabilities, the largest
    gate_error: float  # relative, the largest


def precision(settings, rng, n_experts, n_draws):
    """Routers of width 256 on 4096 tokens, their input and weights rounded to bfloat16."""
    changed, others = [], []
    for _ in range(n_draws):
        w = switch.truncated_normal(rng, (256, n_experts), 256)
        x, w = (ops.round_to_bfloat16(harness.move(settings, a.astype(np.float32)))
                for a in (rng.standard_normal((4096, 256)), w))
        exact = to_numpy(switch.router_probs(x.astype(np.float64), w.astype(np.float64)))   # [T, E]
        found = {cast: to_numpy(f(x, w)) for cast, f in CASTS.items()}
        expert = exact.argmax(axis=-1)                                 # [T]
        changed.append([(p.argmax(axis=-1) != expert).mean() for p in found.values()])
        p = found["probs"].astype(np.float64)
        top = np.sort(p, axis=-1)
        others.append([(top[:, -1] == top[:, -2]).mean(), abs(p.sum(axis=-1) - 1).max(),
                       abs(p.max(axis=-1) / exact.max(axis=-1) - 1).max()])
    ties, sum_error, gate_error = np.transpose(others)
    return Precision(dict(zip(CASTS, np.mean(changed, axis=0))), ties.mean(), sum_error.max(),
                     gate_error.max())


def left_behind(settings, rng, bias, capacity_factor, n_draws):
    """Share of 1024 tokens without a place after 1, 2, ... 8 stages. -> [8]

    Logits of 8 experts from N(0, 1), and ``bias`` times 1 at the first down to -1 at the last.
    """
    T, E = 1024, 8
    capacity = switch.expert_capacity(T, E, capacity_factor)
    found = []
    for _ in range(n_draws):
        logits = rng.standard_normal((T, E)) + bias * np.linspace(1, -1, E)
        probs = ops.softmax(harness.move(settings, logits), axis=-1)
        found.append([1 - float(switch.route_no_token_left_behind(probs, capacity, n).keep.mean())
                      for n in range(1, E + 1)])
    return np.mean(found, axis=0)


class Overflow(NamedTuple):
    exact: float
    simulated: float
    error: float          # standard, of the simulated one


def overflow(settings, rng, n_tokens, n_experts, n_draws):
    """What is dropped by capacity factor where each expert is as likely as any other."""
    found = {}
    draws = (harness.move(settings, rng.random((n_tokens, n_experts))) for _ in range(n_draws))
    slot = np.stack([to_numpy(switch.route(u, n_tokens).slot)[:, 0] for u in draws])   # [draws, T]
    for factor in (1.0, 1.25, 1.5, 2.0):
        C = switch.expert_capacity(n_tokens, n_experts, factor)
        dropped = (slot >= C).mean(axis=-1)                            # [draws]
        found[factor] = Overflow(expected_overflow(n_tokens, n_experts, C), dropped.mean(),
                                 dropped.std(ddof=1) / math.sqrt(n_draws))
    return found


class Gates(NamedTuple):
    precision: dict       # by number of experts
    left_behind: dict     # by bias and capacity factor
    overflow: dict        # by tokens and experts, then by capacity factor


def gates_alone(settings):
    few = settings.quick
    rng = np.random.default_rng(settings.seed)
    return Gates(
        {E: precision(settings, rng, E, 1 if few else 8) for E in (8, 64, 256)},
        {setting: left_behind(settings, rng, *setting, 1 if few else 10)
         for setting in LEFT_BEHIND},
        {crowd: overflow(settings, rng, *crowd, 2 if few else 100) for crowd in CROWDS})


# -- The experiment ------------------------------------------------------------------------------

DEEP = [(rate, scale) for rate in (0.06, 0.1) for scale in (0.1, 1.0)]
TEXT = {"dense": OnText(), "Switch, 8 experts": OnText(8),
        "dense, 4 times as wide": OnText(hidden=128)}
DENSE, SPARSE, WIDE = TEXT


def plan(quick):
    """What is trained, by part, row and seed; a quick run has one seed and a few steps of each."""
    long, even = (Recipe(steps, aux_weight=ALPHA) for steps in (500, 400))
    even = even._replace(watch=0)
    lopsided = even._replace(offset=1.0)
    short = lopsided._replace(steps=100, rate=1e-2)
    deep = even._replace(steps=60, n_blocks=6)
    parts = {
        "text": (2, TEXT),
        "scaling": (5, {E: OnChains(long, E, 2.0) for E in EXPERTS}),
        "balance": (5, {alpha: OnChains(lopsided._replace(aux_weight=alpha))
                        for alpha in (0.0, ALPHA)}),
        "capacity": (5, {factor: OnChains(even, capacity_factor=factor) for factor in FACTORS}),
        "left_behind": (5, {1.0: OnChains(even, 8, 1.0, *["no token left behind"] * 2)}),
        "exploration": (5, {policy: OnChains(lopsided, policy=policy)
                            for policy in ("sample", "dropout", "jitter")}),
        "deep": (8, {(rate, scale): OnChains(deep._replace(rate=rate), scale=scale)
                     for rate, scale in DEEP}),
        "start": (8, {scale: OnChains(short, scale=scale) for scale in (0.1, 1.0, 10.0)})}
    cases = {(part, row, seed): case._replace(seed=seed) for part, (n_seeds, rows) in parts.items()
             for row, case in rows.items() for seed in range(n_seeds)}
    if quick:
        cases = {key: in_short(case) for key, case in cases.items() if key[-1] == 0}
    return cases


def in_short(case):
    if isinstance(case, OnText):
        return case._replace(steps=2, watch=1, batch=32, held_out=32)
    return case._replace(recipe=case.recipe._replace(steps=2, watch=case.recipe.watch and 1,
                                                     held_out=1))


def trained(settings, case):
    return (on_text if isinstance(case, OnText) else on_chains)(settings, case)


def run(settings):
    """Every part of ``plan``, and gates alone."""
    cases = plan(settings.quick)
    runs = dict(zip(cases, harness.in_parallel(settings, trained, list(cases.values()),
                                               "chains and text")))
    gates = gates_alone(settings)
    found = harness.by_row({(part, row, seed): {
        **result.measures, **steps_saved(runs, part, row, seed)}
        for (part, row, seed), result in runs.items()})
    found["exploration"]["argmax"] = found["balance"][ALPHA]
    return Result(
        "Switch Transformers (Fedus, Zoph and Shazeer, 2021), on Markov chains and on the text of "
        "Python's own help",
        [*judged(found, gates), *reported(found)],
        [table_of_scaling(found["scaling"]), table_of_capacity(found), table_of_balance(found),
         table_of_exploration(found["exploration"]), table_of_starts(found),
         table_of_text(found["text"]), table_of_precision(gates.precision),
         table_of_left_behind(gates.left_behind), table_of_overflow(gates.overflow)],
        draw(runs, found, gates),
        {"trained": {name(part, row): recorded(cases[part, row, 0])
                     for part, row, seed in cases if seed == 0},
         "found": {name(part, row): measures for part, rows in found.items()
                   for row, measures in rows.items()},
         "curves": {name(part, row): {"steps": mean_curve(runs, part, row)[0],
                                      "mean": mean_curve(runs, part, row)[1]}
                    for part in ("scaling", "text") for row in found[part]},
         "gates_alone": {
             "precision": {E: row._asdict() for E, row in gates.precision.items()},
             "left_behind": {name(*setting): unplaced
                             for setting, unplaced in gates.left_behind.items()},
             "overflow": {name(*crowd): {factor: cell._asdict() for factor, cell in row.items()}
                          for crowd, row in gates.overflow.items()}}})


def steps_saved(runs, part, row, seed):
    """Where there is a dense model: all its steps over those that reach what it ends with.

    NaN where they never do.
    """
    dense = {"scaling": 1, "text": DENSE}.get(part)
    if dense is None:
        return {}
    if row == dense:
        return {"faster": 1.0}
    last, ends = runs[part, dense, seed].steps[-1], runs[part, dense, seed].curve[-1]
    return {"faster": last / max(steps_to(runs[part, row, seed], ends), 1)}


def name(*row):
    """For the record."""
    parts = [part for piece in row for part in (piece if isinstance(piece, tuple) else (piece,))]
    return ", ".join(part if isinstance(part, str) else f"{part:g}" for part in parts)


def mean_curve(runs, part, row):
    """Over seeds. -> [looks], [looks]"""
    seeds = [result for (p, r, _), result in runs.items() if (p, r) == (part, row)]
    return seeds[0].steps, np.mean([result.curve for result in seeds], axis=0)


# -- Claims --------------------------------------------------------------------------------------
# Of means over seeds.

def judged(found, gates):
    """What the paper claims, or follows from it, and these tasks can show."""
    yield from judged_scaling(found["scaling"])
    yield from judged_balance(found["balance"])
    yield judged_capacity(found["capacity"])
    yield from judged_exploration(found["exploration"])
    yield from judged_starts(found)
    yield from judged_precision(gates.precision)
    yield from judged_left_behind(gates.left_behind)
    yield from judged_overflow(gates.overflow)


def judged_scaling(rows):
    excess = means(rows, "excess")
    one, *more = [excess[E] for E in EXPERTS]
    faster = rows[8]["faster"]
    yield Claim(
        "More experts at the same operations a token are better: excess falls from 1 to 2, 4 and "
        "8 experts, to at most 0.75 times with 2 and 0.40 times with 8.",
        "better with every doubling from 2 to 256 (Figure 4)",
        ", ".join(f"{value:.3f}" for value in (one, *more)) + " with 1, 2, 4, 8, 16; "
        + ", ".join(f"{value / one:.2f}" for value in more) + " times",
        bool(one > more[0] > more[1] > more[2] and more[0] <= 0.75 * one and more[2] <= 0.4 * one))
    yield Claim(
        "They are faster, step for step: 8 experts reach what one ends with in at most 1 / 2.5 of "
        "the steps.",
        "64 experts: 1 / 7.5 of T5-Base's (Figure 4)",
        f"1 / {ranged(faster, 1)}; 2, 4, 16: "
        + ", ".join(f"1 / {rows[E]['faster'].mean():.1f}" for E in (2, 4, 16)),
        bool(faster.mean() >= 2.5))


def judged_balance(rows):
    without, with_loss = ({measure: values.mean() for measure, values in rows[alpha].items()}
                          for alpha in (0.0, ALPHA))
    yield Claim(
        "The balance loss keeps tokens: with alpha = 0.01, at least 4 times fewer are dropped than "
        "with 0, and at most 15 % of experts are starved, of a tenth of a fair share.",
        "drops are typically below 1 %",
        f"{with_loss['dropped']:.1%} against {without['dropped']:.0%}; starved "
        f"{with_loss['starved']:.0%} against {without['starved']:.0%}",
        bool(4 * with_loss["dropped"] <= without["dropped"] and with_loss["starved"] <= 0.15))
    yield Claim(
        "And quality: excess is at most 0.65 times that without it.",
        "0.01 was the best of 0.1 to 0.00001",
        f"{with_loss['excess']:.2f} against {without['excess']:.2f}: "
        f"{with_loss['excess'] / without['excess']:.2f} times",
        bool(with_loss["excess"] <= 0.65 * without["excess"]))


def judged_capacity(rows):
    excess, dropped = ([means(rows, measure)[factor] for factor in FACTORS]
                       for measure in ("excess", "dropped"))
    gains = -np.diff(excess)
    return Claim(
        "Half the capacity drops half the tokens: 0.5, within 0.01, at a factor of 0.5; drops and "
        "excess fall with every larger factor.",
        "not said",
        ", ".join(f"{value:.1%}" for value in dropped) + " dropped; excess "
        + ", ".join(f"{value:.3f}" for value in excess),
        bool(abs(dropped[0] - 0.5) <= 0.01 and (np.diff(dropped) < 0).all() and (gains > 0).all()))


def judged_exploration(rows):
    excess = means(rows, "excess")
    others = [excess[policy] for policy in ("argmax", "dropout", "jitter")]
    yield Claim(
        "Sampling an expert is the worst way to explore, by at least 0.2; argmax, dropout and "
        "jitter lie within 0.1 of each other.",
        "sample -1.570, the others -1.480 to -1.468 (Table 11)",
        ", ".join(f"{policy} {excess[policy]:.2f}" for policy in TABLE_11),
        bool(excess["sample"] >= max(others) + 0.2 and max(others) - min(others) <= 0.1))


def judged_starts(found):
    start, deep = means(found["start"], "excess"), means(found["deep"], "excess")
    pairs = paired(found["deep"])
    yield Claim(
        "A start can be too large: 10 times T5's scale costs at least 0.3 more than T5's and a "
        "tenth of it.",
        "not tried",
        ", ".join(f"{value:.2f}" for value in start.values()) + " with scales of 0.1, 1, 10",
        bool(start[10.0] >= 0.3 + max(start[0.1], start[1.0])))
    yield Claim(
        "Where training is on the verge, 6 blocks at 20 and 33 times the rate, a tenth of T5's "
        "scale is better.",
        "-2.72 against -3.60 (Table 3)",
        "; ".join(f"{deep[rate, 0.1]:.3f} against {deep[rate, 1.0]:.3f}" for rate in (0.06, 0.1))
        + f"; in {pairs.sum()} of {pairs.size} pairs of runs",
        bool(all(deep[rate, 0.1] < deep[rate, 1.0] for rate in (0.06, 0.1))))


def paired(rows):
    """Whether the smaller scale is the better, of each pair of runs."""
    return np.concatenate([rows[rate, 0.1]["excess"] < rows[rate, 1.0]["excess"]
                           for rate in (0.06, 0.1)])


def judged_precision(rows):
    changed = np.array([list(row.changed.values()) for row in rows.values()])   # [3, 3]
    ties = [row.ties for row in rows.values()]
    yield Claim(
        "Selective precision routes as float32 does if the router's input is cast: at most 0.1 % "
        "of tokens go elsewhere; if its logits are, the more the more experts.",
        "-1.716 against -1.718 (Table 2), of which cast is not said",
        "input " + in_percent(changed[:, 0], 2) + "; logits " + in_percent(changed[:, 1], 2)
        + " with 8, 64, 256",
        bool((changed[:, 0] <= 1e-3).all() and (np.diff(changed[:, 1]) > 0).all()))
    yield Claim(
        "A softmax in bfloat16 is worst: more tokens go elsewhere, whatever the number of experts, "
        "and at least 1 % have two experts with the same, largest probability.",
        "bfloat16 throughout: -3.780, diverged (Table 2)",
        in_percent(changed[:, 2], 2) + "; ties " + in_percent(ties),
        bool((changed[:, 2] > changed[:, :2].max(axis=1)).all() and min(ties) >= 0.01))


def judged_left_behind(rows):
    error = max(abs(rows[setting][:4] - expected).max()
                for setting, expected in LEFT_BEHIND.items())
    yield Claim(
        "Each stage of no token left behind finds places for more, and 8 stages with 8 experts for "
        "all; after 1 to 4 stages as many are left as in a prototype, within 2 %.",
        "almost none is dropped (Appendix B)",
        "left after 1, 2, 3, 4, 8 stages: " + "; ".join(
            in_percent(unplaced[[0, 1, 2, 3, 7]]) for unplaced in rows.values())
        + f"; off by at most {error:.1%}",
        bool(error <= 0.02 and all((np.diff(unplaced) <= 0).all() and unplaced[-1] == 0
                                   for unplaced in rows.values())))


def judged_overflow(rows):
    cells = [cell for row in rows.values() for cell in row.values() if cell.exact >= 1e-3]
    off = np.array([abs(cell.simulated - cell.exact) / cell.error if cell.error else np.inf
                    for cell in cells])
    yield Claim(
        "Chance alone drops tokens of an even gate as the binomial distribution says: within 3 "
        "standard errors wherever it says 0.1 % or more, one case of all excepted.",
        "below 1 %, whatever the number of experts",
        f"{(off <= 3).sum()} of {off.size} cases; the largest difference is {off.max():.1f} "
        "standard errors",
        bool((off > 3).sum() <= 1))


def reported(found):
    """What the paper says that these tasks do not carry, and how far they do."""
    exploration, deep, start = (found[part] for part in ("exploration", "deep", "start"))
    capacity, rescued = found["capacity"][1.0], found["left_behind"][1.0]
    text, excess = found["text"], means(found["capacity"], "excess")
    gains = excess[1.0] - excess[1.25], excess[1.25] - excess[2.0]
    by_argmax = exploration["argmax"]["excess"]
    yield Claim(
        "Low capacity factors do: from 1.25 to 2 excess gains at most half of what it gains from 1 "
        "to 1.25. Not judged: with five seeds the ratio is mostly noise.",
        "nothing, against 0.008 (Table 1)",
        f"{gains[1]:.3f} against {gains[0]:.3f}, for three times as many slots", None)
    yield Claim(
        "Not reproduced: that jitter is better than argmax, and argmax than dropout. Their order "
        "is noise here.",
        "-1.468, -1.471, -1.480 (Table 11)",
        "less excess than argmax: " + ", ".join(
            f"{policy} {ranged(by_argmax - exploration[policy]['excess'], 2)}"
            for policy in ("jitter", "dropout")), None)
    yield Claim(
        "Not reproduced: that a tenth of T5's scale makes runs 68 times more alike.",
        "SD 0.01 against 0.68 (Table 3)",
        "SD " + "; ".join(f"{deep[rate, 0.1]['excess'].std(ddof=1):.3f} against "
                          f"{deep[rate, 1.0]['excess'].std(ddof=1):.3f}" for rate in (0.06, 0.1))
        if len(deep[DEEP[0]]["excess"]) > 1 else "one seed", None)
    yield Claim(
        "Not reproduced at an ordinary rate: that a tenth of T5's scale is better.",
        "-2.72 against -3.60 (Table 3)",
        f"{start[0.1]['excess'].mean():.2f} against {start[1.0]['excess'].mean():.2f} after 100 "
        "steps at a rate of 0.01", None)
    yield Claim(
        "That no token left behind brings no quality.",
        "no empirical benefit (Appendix B)",
        f"at a capacity factor of 1, {rescued['dropped'].mean():.1%} are dropped against "
        f"{capacity['dropped'].mean():.1%}; excess {rescued['excess'].mean():.3f} against "
        f"{capacity['excess'].mean():.3f}", None)
    yield Claim(
        f"Not reproduced: that a Switch T5 is far ahead of a dense one, after {TEXT[DENSE].steps} "
        "steps of span corruption. Feed-forward layers 4 times as wide, with about as many "
        "weights as the experts have, show how little there is to gain.",
        "-1.554 against -1.731; 64 experts take 1 / 7.5 of the steps",
        f"loss {ranged(text[SPARSE]['loss'], 3)} against {ranged(text[DENSE]['loss'], 3)}, and "
        f"{ranged(text[WIDE]['loss'], 3)} if wide; what dense ends with, in "
        f"{as_steps(text[SPARSE]['faster'])} of its {TEXT[DENSE].steps} steps, and "
        f"{as_steps(text[WIDE]['faster'])} if wide", None)
    yield Claim(
        "Speed in hours, C4 and fine-tuning, distillation, the divergence of bfloat16, a trillion "
        "weights.",
        "Tables 1 to 10",
        "not measured: out of reach of two processors", None)


def as_steps(faster):
    """Of each seed."""
    return " and ".join("never" if math.isnan(value) else f"{TEXT[DENSE].steps / value:.0f}"
                        for value in faster)


def in_percent(values, digits=1):
    return ", ".join(f"{100 * value:.{digits}f}" for value in values) + " %"


# -- Tables --------------------------------------------------------------------------------------

def table_of_scaling(rows):
    one = rows[1]["excess"].mean()
    return Table(
        "More experts at the same operations a token (Figure 4), chains; mean (SD) of seeds",
        ("experts", "excess", "times that of 1", "times fewer steps", "dropped"),
        [(str(E), spread(row["excess"], 3), f"{row['excess'].mean() / one:.2f}",
          spread(row["faster"], 1), f"{row['dropped'].mean():.1%}") for E, row in rows.items()],
        "Excess: nats above the entropy of the chains. Steps: until what 1 expert ends with.")


def table_of_capacity(found):
    rows = [(f"{factor:g}", spread(row["dropped"], 3), spread(row["excess"], 3),
             f"{TABLE_1[factor]:.3f}" if factor in TABLE_1 else "")
            for factor, row in found["capacity"].items()]
    rescued = found["left_behind"][1.0]
    rows.append(("1, no token left behind", spread(rescued["dropped"], 3),
                 spread(rescued["excess"], 3), ""))
    return Table("Capacity (Table 1), 8 experts on chains; mean (SD) of seeds",
                 ("capacity factor", "dropped", "excess", "paper"), rows)


def table_of_balance(found):
    return Table(
        "The balance loss, 8 experts on chains whose symbols have much in common",
        ("alpha", "dropped", "starved experts", "N sum f P", "excess"),
        [(f"{alpha:g}", spread(row["dropped"], 3), f"{row['starved'].mean():.0%}",
          spread(row["balance"], 2), spread(row["excess"], 3))
         for alpha, row in found["balance"].items()],
        "Starved: chosen by less than a tenth of a fair share of tokens.")


def table_of_exploration(rows):
    return Table(
        "Exploration (Table 11), as above with alpha = 0.01; measured by argmax",
        ("", "excess", "dropped", "paper"),
        [(policy, spread(rows[policy]["excess"], 3), spread(rows[policy]["dropped"], 3),
          f"{paper:.3f}") for policy, paper in TABLE_11.items()])


def table_of_starts(found):
    rows = [("1 block, rate 0.01", scale, found["start"][scale]) for scale in found["start"]]
    rows += [(f"6 blocks, rate {rate:g}", scale, row)
             for (rate, scale), row in found["deep"].items()]
    return Table("The scale of the start (Table 3), chains; mean (SD) of seeds",
                 ("", "scale", "excess", "dropped", "paper"),
                 [(label, f"{scale:g}", spread(row["excess"], 3), spread(row["dropped"], 3),
                   TABLE_3.get(scale, "")) for label, scale, row in rows])


def table_of_text(rows):
    return Table(
        "T5 on span corruption of characters: loss held out; mean (SD) of seeds",
        ("model", "weights", "loss", "times fewer steps", "dropped"),
        [(model, f"{row['weights'][0]:.0f}", spread(row["loss"], 3), spread(row["faster"], 2),
          f"{row['dropped'].mean():.1%}") for model, row in rows.items()],
        "Dense and Switch have the same operations a token, but for the router. Steps: until what "
        "the dense model ends with; nan: not within as many.")


def table_of_precision(rows):
    return Table(
        "Selective precision: tokens that go elsewhere than in float64, by what is cast to float32",
        ("experts", *CASTS, "ties", "sum - 1, at most", "gate off by, at most"),
        [(str(E), *(f"{value:.2%}" for value in row.changed.values()), f"{row.ties:.1%}",
          f"{row.sum_error:.4f}", f"{row.gate_error:.2%}") for E, row in rows.items()],
        "The last three of a softmax in bfloat16.")


def table_of_left_behind(rows):
    return Table(
        "No token left behind: share of tokens without a place, and a prototype's",
        ("bias, capacity factor", *(f"{n} stages" for n in (1, 2, 3, 4)), "prototype", "8 stages"),
        [(name(*setting), *(f"{value:.3f}" for value in unplaced[:4]),
          " ".join(f"{value:.3f}" for value in LEFT_BEHIND[setting]), f"{unplaced[-1]:.3f}")
         for setting, unplaced in rows.items()])


def table_of_overflow(rows):
    factors = list(next(iter(rows.values())))
    return Table(
        "Dropped by chance, where each expert is as likely as any other: exact | simulated",
        ("tokens, experts", *(f"{factor:g}" for factor in factors)),
        [(name(*crowd), *(f"{cell.exact:.5f} | {cell.simulated:.5f}" for cell in row.values()))
         for crowd, row in rows.items()], "By capacity factor.")


# -- The figure ----------------------------------------------------------------------------------

BLUE, ORANGE, GREY = "#1f5fa8", "#d9822b", "#8a8a8a"
SHADES = ("#b9cfe8", "#86add6", "#5289c0", "#2a69aa", "#0d3b73")     # by number of experts
SMALL = {"markersize": 5, "alpha": 0.6, "markeredgewidth": 0}


def draw(runs, found, gates):
    figure, axes = harness.panels(
        ["More experts, the same operations", "... and fewer steps to the same loss",
         "Half the capacity drops half the tokens", "Without the balance loss, few experts work",
         "Sampling explores at a price", "No token left behind",
         "A router in bfloat16 sends tokens elsewhere", "A start can be too large",
         "T5 on the text of Python's help"],
        columns=3, size=(17, 15), title="Switch Transformers: every token to one expert")
    draw_scaling(axes[0], found["scaling"])
    draw_curves(axes[1], runs)
    draw_capacity(axes[2], found)
    draw_balance(axes[3], runs)
    draw_exploration(axes[4], found["exploration"])
    draw_left_behind(axes[5], gates.left_behind)
    draw_precision(axes[6], gates.precision)
    draw_starts(axes[7], found)
    draw_text(axes[8], runs)
    return figure


def dots(axis, place, values, colour, **settings):
    """One a seed, side by side."""
    aside = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else [0]
    axis.plot(place + np.array(aside), np.sort(values), "o", color=colour, **SMALL, **settings)


def draw_scaling(axis, rows):
    excess = means(rows, "excess")
    axis.plot(range(len(rows)), list(excess.values()), color=BLUE, linewidth=2)
    for place, (E, row) in enumerate(rows.items()):
        dots(axis, place, row["excess"], BLUE, label="one run" if E == 1 else None)
        axis.annotate(f"{excess[E] / excess[1]:.2f}x", (place, excess[E]), xytext=(6, 9),
                      textcoords="offset points", fontsize=10, weight="bold")
    axis.set_xticks(range(len(rows)), rows)
    axis.set(xlabel="experts; each token goes to one of them", ylim=(0, 1.15 * excess[1]),
             ylabel="excess over the entropy of the chains (nats)")
    axis.legend(fontsize=9)


def draw_curves(axis, runs):
    ends = None
    for E, shade in zip(EXPERTS, SHADES):
        steps, curve = mean_curve(runs, "scaling", E)
        axis.plot(steps, curve, color=shade, linewidth=2, label=f"{E} expert{'s' * (E > 1)}")
        ends = curve[-1] if ends is None else ends
        there = curve <= ends
        if E in (2, 8) and there.any():
            first = steps[there.argmax()]
            axis.plot(first, ends, "o", color=shade, markersize=8)
            axis.annotate(f"{steps[-1] / first:.1f}x", (first, ends), xytext=(4, 7),
                          textcoords="offset points", fontsize=10, weight="bold")
    axis.axhline(ends, color="black", linestyle="--", linewidth=1, label="what 1 expert ends with")
    axis.set(xlabel="step", ylabel="excess (nats), mean of runs", yscale="log")
    axis.set_yticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])
    axis.minorticks_off()
    axis.legend(fontsize=9)


def draw_capacity(axis, found):
    rows = found["capacity"]
    excess, dropped = means(rows, "excess"), means(rows, "dropped")
    axis.plot(list(rows), list(excess.values()), color=BLUE, linewidth=2)
    for factor, row in rows.items():
        axis.plot(np.full(len(row["excess"]), factor), row["excess"], "o", color=BLUE, **SMALL)
        axis.annotate(f"{dropped[factor]:.0%} dropped", (factor, excess[factor]), xytext=(8, 8),
                      textcoords="offset points", fontsize=10)
    rescued = found["left_behind"][1.0]["excess"]
    axis.plot(np.full(len(rescued), 1.0), rescued, "D", color=ORANGE, **SMALL,
              label="no token left behind")
    axis.set(xlabel="capacity factor", ylabel="excess (nats)", xlim=(0.4, 2.4),
             ylim=(0, 1.15 * max(excess.values())))
    axis.legend(fontsize=9)


def draw_balance(axis, runs):
    """Shares of tokens, experts in order, mean and runs; beyond capacity they are dropped."""
    for shift, alpha, colour in [(-0.2, 0.0, ORANGE), (0.2, ALPHA, BLUE)]:
        shares = np.stack([np.sort(result.shares)[::-1] for (part, row, _), result in runs.items()
                           if (part, row) == ("balance", alpha)])      # [seeds, E]
        E = shares.shape[1]
        place = np.arange(1, E + 1) + shift
        axis.bar(place, shares.mean(axis=0), 0.38, color=colour, alpha=0.5,
                 label=f"alpha = {alpha:g}")
        axis.plot(place, shares.T, "o", color=colour, markersize=3)
    axis.axhline(1.25 / E, color="black", linestyle="--", linewidth=1,
                 label="capacity: what is above is dropped")
    axis.set(xlabel="experts, from most to least chosen", ylabel="share of tokens")
    axis.legend(fontsize=9)


def draw_exploration(axis, rows):
    excess = means(rows, "excess")
    for place, (policy, paper) in enumerate(TABLE_11.items()):
        colour = ORANGE if policy == "sample" else BLUE
        axis.bar(place, excess[policy], 0.6, color=colour, alpha=0.35)
        dots(axis, place, rows[policy]["excess"], colour)
        worse = TABLE_11["argmax"] - paper
        axis.text(place, 0.02, f"paper {worse:+.3f}" if worse else "", ha="center", fontsize=9)
    axis.set_xticks(range(len(TABLE_11)), TABLE_11)
    axis.set(ylabel="excess (nats), measured by argmax", ylim=(0, None),
             xlabel="how a token's expert is chosen in training.\n"
                    "paper: how much worse than argmax, in nats")


def draw_left_behind(axis, rows):
    for (bias, factor), colour in zip(rows, (SHADES[1], ORANGE, BLUE)):
        unplaced = rows[bias, factor]
        axis.plot(range(1, len(unplaced) + 1), 100 * unplaced, "o-", color=colour,
                  label=("uneven" if bias else "even") + f" gate, capacity factor {factor:g}")
        axis.plot(range(1, 5), 100 * np.array(LEFT_BEHIND[bias, factor]), "x", color="black",
                  markersize=8)
    axis.plot([], [], "x", color="black", label="a prototype's")
    axis.set(xlabel="stages: how many experts a token tries", ylabel="tokens without a place (%)",
             ylim=(-1, None))
    axis.legend(fontsize=9)


def draw_precision(axis, rows):
    labels = {"input": "router's input cast to float32", "logits": "logits cast to float32",
              "probs": "softmax in bfloat16"}
    for shift, cast, colour in zip((-0.27, 0, 0.27), CASTS, (BLUE, SHADES[1], ORANGE)):
        values = [100 * row.changed[cast] for row in rows.values()]
        bars = axis.bar(np.arange(len(rows)) + shift, values, 0.25, color=colour,
                        label=labels[cast])
        axis.bar_label(bars, fmt="%.2f", fontsize=9)
    axis.set_xticks(range(len(rows)), rows)
    axis.set(xlabel="experts", ylabel="tokens that go elsewhere than in float64 (%)",
             ylim=(0, 2.0))
    axis.legend(fontsize=9, loc="upper left")


def draw_starts(axis, found):
    labels = []
    for place, (scale, row) in enumerate(found["start"].items()):
        dots(axis, place, row["excess"], BLUE)
        labels.append(f"{scale:g}")
    for pair, rate in enumerate((0.06, 0.1)):
        small, large = (found["deep"][rate, scale]["excess"] for scale in (0.1, 1.0))
        place = len(labels) + 0.5
        axis.plot([place, place + 1], np.stack([small, large]), "o-", color=ORANGE, linewidth=1,
                  **SMALL)
        labels += ["0.1", "1"]
        axis.text(place + 0.5, 0.04, f"6 blocks,\nrate {rate:g}", ha="center", fontsize=9,
                  color=ORANGE)
    axis.text(1, 0.04, "1 block,\nrate 0.01", ha="center", fontsize=9, color=BLUE)
    axis.set_xticks([0, 1, 2, 3.5, 4.5, 5.5, 6.5], labels)
    axis.set(xlabel="scale of the starting weights; 1 is T5's, 0.1 the paper's.\n"
                    "A line joins two runs that differ in nothing else",
             ylabel="excess (nats)", ylim=(0, None))


def draw_text(axis, runs):
    for model, colour in zip(TEXT, (GREY, BLUE, ORANGE)):
        steps, curve = mean_curve(runs, "text", model)
        axis.plot(steps, curve, color=colour, linewidth=2, label=model)
        for (part, row, _), result in runs.items():
            if (part, row) == ("text", model):
                axis.plot(steps, result.curve, color=colour, linewidth=0.6, alpha=0.6)
    ends = mean_curve(runs, "text", DENSE)[1][-1]
    axis.axhline(ends, color="black", linestyle="--", linewidth=1, label="what dense ends with")
    axis.set(xlabel="step", ylabel="loss held out (nats per token of the target)",
             ylim=(0.9 * ends, 1.35 * ends))
    axis.legend(fontsize=9)

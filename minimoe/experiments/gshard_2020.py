"""GShard at the size of a laptop: experts, balance, groups and capacity, and names to translate.

Three kinds of evidence. *Chains*: the small model of Markov chains of ``experiments.chains``,
around the layer of Section 2.2, for equal steps with more experts, the auxiliary loss, groups and
counters; its dense model has one expert, as the paper's has. *Gates alone*: Algorithm 1 on random
logits, and what is lost where tokens choose at random. *Translation*: the encoder-decoder of
Section 2.1, small, from 26 languages into English, letter by letter. Its words are the names of
languages in ``minimoe.data.language_names``: how one held out is spelled was never trained on, but
what it means was, in other spellings. A feed-forward layer is as wide as two experts, so that each
letter has the same work in all models, but for the gate.

All is float32, but the gates alone. Runs of one seed share data and, where shapes agree, draws and
starting weights. The weight of the auxiliary loss is 0.01 E^2: the paper gives none. In training
the letters of 64 words are one group, whose slots are counted with its padding.
"""
import math
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from minimoe import nn, ops, tree
from minimoe.autodiff.tensor import Tensor, grad
from minimoe.backend import to_numpy
from minimoe.data.language_names import (
    END, LANGUAGES, LONGEST, PADDING, Words, decoded, encoded, language_names, n_source, n_target,
    split, symbols)
from minimoe.experiments import harness
from minimoe.experiments.chains import (
    BATCH, WIDTH, Layer, LayerOutput, Recipe, dense_layer, first_choices, recorded, starved,
    steps_to, train)
from minimoe.experiments.harness import Claim, Result, Table, ranged, spread
from minimoe.optim import adam, adam_init, linear_decay, linear_warmup
from minimoe.papers import gshard_2020 as gshard
from minimoe.papers.switch_2021 import init as switch_init

AUX_WEIGHT = 1e-2      # times E^2
EXPERTS = (1, 2, 4, 8, 16)
GROUPS = (1, 4, 16, 64)
SIGMAS = (0.1, 1.0, 3.0)
CROWDS = ((64, 8), (256, 8), (1024, 8), (256, 16), (1024, 64), (4096, 64))   # tokens, experts
FACTORS = (1.0, 1.25, 1.5, 2.0)      # of capacity, in units of S / E
COUNTERS = {"Algorithm 1": (gshard.second_random, gshard.decision_counter),
            "dispatched": (gshard.second_random, gshard.dispatched_counter),
            "all second choices": (gshard.second_all, gshard.decision_counter)}
TRANSLATORS = (1, 4, 16)             # experts
NO_LOSS = "16, no loss"
MODELS = {1: "dense", 4: "4 experts", 16: "16 experts", NO_LOSS: "16, no auxiliary loss"}
LAST = 50              # steps of training over which its losses are averaged
# Gates alone: passes the draw, mean 2 g_2; then of second choices kept, by COUNTERS; then of slots
# filled, by the first two. Of a prototype of the same equations, not the paper's.
EXPECTED = {0.1: (.972, .971, .931, .942, .958, .966, .971),
            1.0: (.738, .739, .704, .738, .955, .852, .869),
            3.0: (.451, .447, .432, .451, .959, .716, .726)}


# -- Chains --------------------------------------------------------------------------------------

class OnChains(NamedTuple):
    recipe: Recipe
    n_experts: int = 8             # 1: a feed-forward layer
    hidden: int = 32               # of it, or of an expert
    n_groups: int = 1
    capacity_factor: float = 2.0   # in units of S / E
    counter: str = "Algorithm 1"   # of COUNTERS
    seed: int = 0


class OfChains(NamedTuple):
    measures: dict        # of numbers
    steps: np.ndarray     # [looks]
    curve: np.ndarray     # [looks]   excess then
    shares: Any           # [E]       of first choices; None without experts


def on_chains(settings, case):
    if case.n_experts == 1:
        trained = train(settings, case.seed, dense_layer(case.hidden), case.recipe)
        return OfChains({"excess": trained.excess}, trained.steps, trained.curve, None)
    recipe = case.recipe._replace(aux_weight=case.recipe.aux_weight * case.n_experts ** 2)
    trained = train(settings, case.seed, sparse_layer(case), recipe)
    shares = first_choices(trained, case.n_experts)                    # [E]
    keep = np.concatenate([outputs[0].routing.keep for outputs in trained.outputs])
    return OfChains({"excess": trained.excess, "largest": shares.max(), "starved": starved(shares),
                     "lost": (~keep.any(axis=-1)).mean(), "second": keep[:, 1].mean()},
                    trained.steps, trained.curve, shares)


def sparse_layer(case):
    """The layer of Section 2.2, tokens in groups, started as Switch's."""
    G, S, E = case.n_groups, BATCH // case.n_groups, case.n_experts
    capacity = math.floor(case.capacity_factor * S / E)
    second, counter = COUNTERS[case.counter]
    route = partial(gshard.algorithm_1, second=second, counter=counter)

    def init(rng):
        return gshard.GShardParams(*switch_init(rng, E, WIDTH, case.hidden))

    def apply(params, x, u):
        out = gshard.moe_layer(params, x.reshape(G, S, WIDTH), u, capacity, route)
        return LayerOutput(out.y.reshape(BATCH, WIDTH), out.aux_loss, out.routing)

    return Layer(init, apply, lambda rng: rng.random((G, S)))


# -- Gates alone ---------------------------------------------------------------------------------

def gates_alone(rng, sigma, n_groups):
    """Algorithm 1 on logits from N(0, sigma^2), S = 1024, E = 8: the columns of ``EXPECTED``.

    Last of all, the share of tokens whose first choice was lost.
    """
    S, E = 1024, 8
    capacity = gshard.expert_capacity(S, E)
    gates = gshard.gate_probabilities(sigma * rng.standard_normal((n_groups, S, E)))
    u = rng.random((n_groups, S))
    second = gshard.pair_normalized(gshard.gates_of(gates, gshard.top_two(gates)))[..., 1]
    keep = [gshard.algorithm_1(gates, u, capacity, *rule).routing.keep.reshape(n_groups, S, 2)
            for rule in COUNTERS.values()]
    return np.array([(2 * second > u).mean(), 2 * second.mean(),
                     *(kept[..., 1].mean() for kept in keep),
                     *(kept.sum() / (n_groups * E * capacity) for kept in keep[:2]),
                     max((~kept[..., 0]).mean() for kept in keep)])


class Overflow(NamedTuple):
    exact: float
    simulated: float
    error: float          # standard, of the simulated one


def overflow(rng, n_tokens, n_experts, n_groups):
    """What Algorithm 1's first pass loses of tokens that choose at random, by FACTORS."""
    S, E = n_tokens, n_experts
    expert = rng.integers(E, size=(n_groups, S, 2))
    slot = gshard.decision_counter(expert, np.ones((n_groups, S), bool), E)[..., 0]    # [G, S]
    found = {}
    for factor in FACTORS:
        C = int(factor * S / E)
        lost = (slot >= C).mean(axis=-1)                               # [G]
        found[factor] = Overflow(gshard.expected_overflow(S, E, C), lost.mean(),
                                 lost.std(ddof=1) / math.sqrt(n_groups))
    return found


# -- Translation ---------------------------------------------------------------------------------

class Translation(NamedTuple):
    n_experts: int
    aux_weight: float = AUX_WEIGHT    # times E^2
    steps: int = 400
    batch: int = 64                   # words
    rate: float = 2e-2                # the highest, after 100 steps; then down to a twentieth
    width: int = 32
    hidden: int = 32                  # of an expert; a feed-forward layer has twice that
    n_layers: int = 2                 # in each stack, experts in the first
    n_heads: int = 4
    watch: int = 50                   # steps between looks at the words held out
    held_out: int | None = None       # words; None: all
    seed: int = 0


class OfTranslation(NamedTuple):
    measures: dict        # of numbers
    steps: np.ndarray     # [looks]
    curve: np.ndarray     # [looks]          cross-entropy of a letter, held out
    shares: Any           # [2, E]           of first choices, held out, encoder and decoder
    by_language: Any      # [languages, E]   of the letters of each, by first choice, encoder
    words: list           # of (language, source, English, what the model says)


class Learnt(NamedTuple):
    params: Any               # TransformerParams of arrays
    steps: np.ndarray         # [looks]
    curve: np.ndarray         # [looks]
    turned_away: np.ndarray   # [steps, 2]   of the letters of each step, by both experts


def on_translation(settings, case):
    divide, start, data, luck = np.random.default_rng([settings.seed, case.seed]).spawn(4)
    pairs = language_names()
    known = symbols(pairs)
    training, test = (encoded(part, known) for part in split(divide, pairs))
    test = tree.map(lambda a: a[:case.held_out], test)
    E, dense = case.n_experts, case.n_experts == 1
    params = gshard.transformer_init(
        start, n_source(known), n_target(known), case.n_layers, case.width, case.n_heads,
        case.width // case.n_heads, 2 * case.hidden, E,
        expert_hidden=2 * case.hidden if dense else case.hidden)
    learnt = learn(settings, case, params, training, test, data, luck)
    out, _ = translate(settings, learnt.params, test, **ROOM)
    said = likeliest(settings, learnt.params, test.source)
    found = {"weights": sum(p.size for p in tree.leaves(params)),
             "cross_entropy": learnt.curve[-1],
             "wrong": 1 - (said == test.target).all(axis=1).mean()}
    shares = by_language = None
    if not dense:
        (encoder, used), _ = of_layers = list(letters(out.routings, test))
        shares = np.stack([first_choice(*of_layer, E).mean(axis=0)
                           for of_layer in of_layers])                 # [2, E]
        by_language = language_by_expert(encoder, used, test.source, E)
        found |= {"largest": (shares.max(axis=-1) * E).mean(), "starved": starved(shares).mean(),
                  "cv": (shares.std(axis=-1) * E).mean(),
                  "turned_away": learnt.turned_away[-LAST:].mean()}
    return OfTranslation(found, learnt.steps, learnt.curve, shares, by_language,
                         shown(test, said, known))


def learn(settings, case, params, training, test, data, luck):
    """``data`` picks the words of each step, ``luck`` makes the draws of the gates. -> Learnt"""
    params = harness.move(settings, tree.map(lambda p: p.astype(np.float32), params))
    state, steps, curve, turned_away = adam_init(params), [], [], []
    for step in range(case.steps + 1):
        if step % case.watch == 0 or step == case.steps:
            steps.append(step)
            curve.append(float(translate(settings, params, test, **ROOM)[1]))
        if step == case.steps:
            break
        chosen = data.integers(len(training.source), size=case.batch)
        words = without_empty_columns(tree.map(lambda a: a[chosen], training))
        tensors = tree.map(Tensor, params)
        out, loss = translate(settings, tensors, words,
                              gshard.transformer_draws(luck, params, *words))
        loss = loss + case.aux_weight * case.n_experts ** 2 * out.aux_loss
        params, state = adam(params, grad(loss, tensors), state, learning_rate=(
            case.rate * linear_warmup(state.step, 100)
            * linear_decay(state.step, case.steps, 0.05)))
        turned_away.append([1 - taken(routing)[used].mean()
                            for routing, used in letters(out.routings, words)])
    return Learnt(params, np.array(steps), np.array(curve), np.array(turned_away))


def translate(settings, params, words, draws=None, **rules):
    """What the model gives, and its cross-entropy of a letter, END included. Without draws: 0."""
    if draws is None:
        n_layers = len(params.encoder.layers)
        draws = gshard.TransformerDraws(*(np.zeros((n_layers, *a.shape)) for a in words))
    source, target, draws = harness.move(settings, (*words, draws))
    used = target != PADDING
    out = gshard.transformer(params, source, nn.shift_right(target), draws,
                             source_used=source != PADDING, target_used=used, **rules)
    losses = ops.where(used, ops.cross_entropy(out.logits, target), 0.0)   # [B, R]
    return out, losses.sum() / int(used.sum())


def room_for_all(group_size, n_experts):
    return group_size


# Where a model is measured: both choices of every letter, so that nothing hangs on its neighbours
ROOM = {"capacity": room_for_all, "route": partial(gshard.algorithm_1, second=gshard.second_all)}


def likeliest(settings, params, source):
    """The likeliest letter, one after the other. [N, S] int -> [N, R] int"""
    target = np.full((len(source), LONGEST + 1), END)
    for i in range(target.shape[1]):
        out, _ = translate(settings, params, Words(source, target[:, :i + 1]), **ROOM)
        target[:, i] = 1 + to_numpy(out.logits)[:, i, 1:].argmax(axis=-1)     # never PADDING
    ended = (target == END).cumsum(axis=1) - (target == END) > 0
    return np.where(ended, PADDING, target)


def without_empty_columns(words):
    return tree.map(lambda a: a[:, :(a != PADDING).sum(axis=1).max()], words)


def letters(routings, words):
    """The routing of each layer with experts, encoder first, and which of its tokens are letters.

    The language of a source and the END of a target count as letters.
    """
    for routing, indices in zip(routings, words):
        yield tree.map(to_numpy, routing._replace(gate=None)), (indices != PADDING).ravel()


def taken(routing):
    """Whether any expert took a token. [T]"""
    return routing.keep.any(axis=-1)


def first_choice(routing, used, n_experts):
    """One-hot. -> [letters, E]"""
    return routing.expert[used][:, :1] == np.arange(n_experts)


def language_by_expert(routing, used, source, n_experts):
    """How the gate of the encoder divides the letters of each language. -> [languages, E]"""
    language = np.repeat(source[:, 0] - 1, source.shape[1])[used]      # [letters]
    counts = np.zeros((len(LANGUAGES), n_experts))
    np.add.at(counts, language, first_choice(routing, used, n_experts))
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def shown(test, said, known):
    """Some words held out, of as many languages: (language, source, English, the model's)."""
    return [(LANGUAGES[test.source[i, 0] - 1], spelled(test.source[i], known),
             decoded(test.target[i], known), decoded(said[i], known))
            for i in np.linspace(0, len(said) - 1, 12).astype(int)]


def spelled(source, known):
    """What a row of a source says, without its language. [S] int -> str"""
    return "".join(known.source[i - 1 - len(LANGUAGES)] for i in source[1:] if i != PADDING)


# -- The experiment ------------------------------------------------------------------------------

def plan(quick, names):
    """Every case by part, row and seed; ``names``: whether there are any to translate."""
    tight = OnChains(Recipe(steps=300, aux_weight=AUX_WEIGHT, watch=0), capacity_factor=1.25)
    long, even = (Recipe(steps, aux_weight=AUX_WEIGHT) for steps in (500, 400))
    lopsided = even._replace(offset=1.0, watch=0)
    parts = {
        "translation": {**{E: Translation(E) for E in TRANSLATORS[::-1]},
                        NO_LOSS: Translation(16, aux_weight=0.0)} if names else {},
        "experts": {**{E: OnChains(long, E) for E in EXPERTS},
                    "dense, twice as wide": OnChains(long, 1, hidden=64)},
        "balance": {weight: OnChains(lopsided._replace(aux_weight=weight))
                    for weight in (0.0, AUX_WEIGHT)},
        "groups": {G: tight._replace(capacity_factor=2.0, n_groups=G) for G in GROUPS},
        "counters": {name: tight._replace(counter=name) for name in COUNTERS}}
    seeds = {"translation": 3, "experts": 4, "balance": 4, "groups": 4, "counters": 4}
    cases = {(part, row, seed): case._replace(seed=seed) for part, rows in parts.items()
             for row, case in rows.items()
             for seed in range(5 if (part, row) == ("experts", 1) else seeds[part])}
    if quick:
        cases = {key: in_short(case) for key, case in cases.items() if key[-1] == 0}
    return cases


def in_short(case):
    if isinstance(case, Translation):
        return case._replace(steps=4, watch=2, held_out=30, batch=16)
    return case._replace(recipe=case.recipe._replace(steps=4, watch=case.recipe.watch and 2,
                                                     held_out=1))


def trained(settings, case):
    return (on_translation if isinstance(case, Translation) else on_chains)(settings, case)


def run(settings):
    """Every part of ``plan``; a quick run has one seed and a few steps of each."""
    missing = None
    try:
        language_names()
    except ModuleNotFoundError as error:
        missing = str(error)
        harness.notice(f"no translation: {missing}")
    cases = plan(settings.quick, names=missing is None)
    results = harness.in_parallel(settings, trained, list(cases.values()), "all runs")
    runs = dict(zip(cases, results))
    found = harness.by_row({key: result.measures for key, result in runs.items()})
    rng = np.random.default_rng(settings.seed)
    found["gates"] = {sigma: gates_alone(rng, sigma, 2 if settings.quick else 100)
                      for sigma in SIGMAS}
    found["overflow"] = {(S, E): overflow(rng, S, E, 4 if settings.quick else 2 ** 19 // S)
                         for S, E in CROWDS}
    found["speed"] = {E: speed_ups(runs, E) for E in EXPERTS[1:]}
    claims = [*judged_chains(found), *judged_gates(found), *reported(found)]
    if missing is None:
        claims += [*judged_translation(found["translation"]),
                   *reported_translation(found["translation"])]
    else:
        claims.append(Claim(
            "Translation: held-out error falls with experts, and the auxiliary loss evens out "
            "their load.", BLEU, f"not measured: {missing}", None))
    tables = [table_of_experts(found), table_of_rows(found), table_of_gates(found["gates"]),
              table_of_overflow(found["overflow"])]
    if missing is None:
        tables += [table_of_translation(found["translation"]), table_of_words(runs)]
    return Result(
        "GShard (Lepikhin et al., 2021), on Markov chains and on names of languages",
        claims, tables, draw(runs, found, missing),
        {"trained": {f"{part}, {row}": recorded(case)
                     for (part, row, seed), case in cases.items() if seed == 0},
         "seeds": {f"{part}, {row}": seed + 1 for part, row, seed in cases},
         "babel": version("Babel") if missing is None else missing,
         "found": {part: {str(row): measures for row, measures in rows.items()}
                   for part, rows in found.items()},
         "curves": {f"{part}, {row}, {seed}": {"steps": result.steps, "curve": result.curve}
                    for (part, row, seed), result in runs.items() if result.steps.size},
         "words": {f"{row}": runs["translation", row, 0].words for row in TRANSLATORS}
         if missing is None else None})


def speed_ups(runs, n_experts):
    """In how many times fewer steps experts reach the dense model's last excess; NaN if never."""
    found = []
    for (part, row, seed), result in runs.items():
        if (part, row) == ("experts", n_experts):
            dense = runs["experts", 1, seed]
            found.append(dense.steps[-1] / steps_to(result, dense.curve[-1]))
    return np.array(found)


# -- Claims --------------------------------------------------------------------------------------
# Of means over seeds, where nothing else is said.

BLEU = ("36.7, 40.0 and 41.3 BLEU with 128, 512 and 2048 experts in 12 layers, 39.0, 43.7 and 44.3 "
        "in 36; 36.9 of 96 dense layers")


def judged_chains(found):
    """What the layer does for a model of chains."""
    excess = {E: found["experts"][E]["excess"] for E in EXPERTS}
    means = np.array([excess[E].mean() for E in EXPERTS])
    gains = means[:-1] - means[1:]
    ratio = means[EXPERTS.index(8)] / means[0]
    yield Claim(
        "More experts are better in as many steps: the excess falls with each doubling from 1 to "
        "16, each doubling gains less than the one before, and 8 experts leave at most 0.40 of "
        "what the dense model does.",
        "at 12 layers +3.3 BLEU from 128 to 512 experts, +1.3 from 512 to 2048",
        "excess " + ", ".join(f"{mean:.3f}" for mean in means) + " with "
        + ", ".join(map(str, EXPERTS)) + f" experts; gains {', '.join(f'{g:.3f}' for g in gains)}; "
        f"8 experts leave {ratio:.2f}",
        bool((gains > 0).all() and (np.diff(gains) < 0).all() and ratio <= 0.40))
    speed = found["speed"][8]
    yield Claim(
        "They learn in fewer steps: 8 experts reach the dense model's final loss in at most "
        "1 / 2.5 of its steps, with every seed.",
        "0.7 nats after 995 G tokens with 128 experts in 12 layers, 141 with 512",
        f"{ranged(speed, 1)} times fewer; 16 experts {ranged(found['speed'][16], 1)}",
        bool((speed >= 2.5).all()))
    without, with_loss = (found["balance"][weight] for weight in (0.0, AUX_WEIGHT))
    yield Claim(
        "From a lopsided start, the auxiliary loss leaves at most 2 % of experts with less than a "
        "tenth of their fair share of first choices, fewer than without it, and a smaller excess.",
        "said, not measured",
        f"{with_loss['starved'].mean():.1%} against {without['starved'].mean():.1%} of experts; "
        f"excess {with_loss['excess'].mean():.3f} against {without['excess'].mean():.3f}",
        bool(with_loss["starved"].mean() <= min(0.02, without["starved"].mean() - 1e-9)
             and with_loss["excess"].mean() < without["excess"].mean()))
    groups = found["groups"]
    lost, second, excess = ([groups[G][measure].mean() for G in GROUPS]
                            for measure in ("lost", "second", "excess"))
    yield Claim(
        "Groups cost nothing while they are large: of 1024 tokens in groups of 1024 or 256, none "
        "(fewer than 0.05 %) is left without an expert, but the smaller the groups, the fewer "
        "second choices are kept.",
        "said, not measured",
        f"without an expert {', '.join(f'{share:.2%}' for share in lost)} in groups of "
        f"{', '.join(str(BATCH // G) for G in GROUPS)}; second choices kept "
        f"{', '.join(f'{share:.3f}' for share in second)}",
        bool(max(lost[:2]) < 5e-4 and (np.diff(second) < 0).all()))
    yield Claim(
        "Groups of 16 tokens, 4 slots an expert, are too small: more than 2 % of tokens lose both "
        "experts, and the excess is worse by at least 0.03.",
        "not measured",
        f"{lost[-1]:.1%}; excess {excess[-1]:.3f} against {excess[0]:.3f}",
        bool(lost[-1] > 0.02 and excess[-1] - excess[0] >= 0.03))


def judged_gates(found):
    """What Algorithm 1 does whatever is learnt."""
    gates = found["gates"]
    off = {sigma: abs(gates[sigma][:-1] - EXPECTED[sigma]).max() for sigma in SIGMAS}
    yield Claim(
        "On random logits the draw, the counters and the slots do what a second program of the "
        "same equations found: each share within 0.01 of its, and no first choice is lost.",
        "not measured",
        "farthest off by " + ", ".join(f"{off[sigma]:.4f}" for sigma in SIGMAS)
        + f" at sigma = {', '.join(map(str, SIGMAS))}; first choices lost "
        f"{max(gates[sigma][-1] for sigma in SIGMAS):.4f}",
        bool(max(off.values()) <= 0.01 and not any(gates[sigma][-1] for sigma in SIGMAS)))
    z = np.array([deviations(entry) for crowd in found["overflow"].values()
                  for entry in crowd.values() if entry.exact > 5e-5])
    yield Claim(
        "What is lost where tokens choose at random is what the binomial says: of all shares of "
        "0.01 % or more, all simulated ones but one at most are within 3 standard errors, and none "
        "is beyond 4.",
        "not measured",
        f"{(z <= 3).sum()} of {z.size} within 3 standard errors, the farthest {z.max():.1f}",
        bool((z > 3).sum() <= 1 and (z <= 4).all()))


def deviations(entry):
    """How many standard errors a simulation is off."""
    return abs(entry.simulated - entry.exact) / entry.error if entry.error else np.inf


def judged_translation(rows):
    dense, four, sixteen = (rows[E] for E in TRANSLATORS)
    entropy, wrong = ([row[measure].mean() for row in (dense, four, sixteen)]
                      for measure in ("cross_entropy", "wrong"))
    yield Claim(
        "Translation, with the same work for each letter: held-out error falls from the dense "
        "model to 4 experts to 16, both the cross-entropy of a letter and the share of words that "
        "are not right.",
        BLEU,
        f"{', '.join(f'{e:.3f}' for e in entropy)} nats; "
        f"{', '.join(f'{w:.1%}' for w in wrong)} of words wrong",
        bool((np.diff(entropy) < 0).all() and (np.diff(wrong) < 0).all()))
    without = rows[NO_LOSS]
    yield Claim(
        "Translation: the auxiliary loss evens out the load of 16 experts: the coefficient of "
        "variation of first choices, the largest share, and how many experts have less than a "
        "tenth of a fair one, are all smaller with it.",
        "said, not measured",
        f"coefficient of variation {sixteen['cv'].mean():.2f} against {without['cv'].mean():.2f}; "
        f"largest share {sixteen['largest'].mean():.1f} against {without['largest'].mean():.1f} "
        f"times a fair one; {sixteen['starved'].mean():.0%} against "
        f"{without['starved'].mean():.0%} of experts starved",
        all(bool(sixteen[measure].mean() < without[measure].mean())
            for measure in ("cv", "largest", "starved")))


def reported(found):
    """What these models show, and the paper does not claim."""
    experts = found["experts"]
    counters = found["counters"]
    yield Claim(
        "The dense model of the chains has the work of one expert, where tokens go to two; one "
        "twice as wide has the work of both.",
        "feed-forward layers as wide as one expert",
        f"excess {ranged(experts[1]['excess'], 3)} and "
        f"{ranged(experts['dense, twice as wide']['excess'], 3)}; "
        f"{ranged(experts[2]['excess'], 3)} of two experts", None)
    yield Claim(
        "Where slots are scarce (1.25 S / E), counting the choices that were turned away costs "
        "second choices: Algorithm 1 against counting those dispatched, and against dispatching "
        "all.",
        "not discussed",
        "kept " + ", ".join(f"{row['second'].mean():.2f}" for row in counters.values())
        + "; excess " + ", ".join(f"{row['excess'].mean():.3f}" for row in counters.values()),
        None)
    layer, einsums, dispatching = both_ways()
    yield Claim(
        "The einsums of Algorithm 2 give what gathering and scattering give, and for moving tokens "
        "multiply S / H times as much as the experts do, however many there are.",
        "a gather is named as an alternative",
        f"outputs differ by {abs(layer - einsums).max():.0e} at most; S / H = 1024 / 8192 makes "
        f"{dispatching:.1%} of the experts' multiplications", None)
    yield Claim(
        "BLEU, 600 billion weights, roofline shares, and all-to-all exchange growing as the root "
        "of the number of devices.",
        "44.3 BLEU in 4 days on 2048 TPU cores", "not measured: the machines are not available",
        None)


def both_ways():
    """A layer by gathers and by einsums, in float64; the paper's S / H, from its counts."""
    rng = np.random.default_rng(0)
    params = gshard.init(rng, 4, 8, 16)
    x, u = rng.standard_normal((2, 12, 8)), rng.random((2, 12))
    layer, einsums = (form(params, x, u, gshard.expert_capacity(12, 4)).y
                      for form in (gshard.moe_layer, gshard.algorithm_2))
    S, M, H = 1024, 1024, 8192
    return layer, einsums, (gshard.dispatch_operations(S, S, M)
                            / gshard.expert_operations(S, M, H))


def reported_translation(rows):
    dense, sixteen, without = (rows[row] for row in (1, 16, NO_LOSS))
    yield Claim(
        "Translation: without the auxiliary loss more letters find both their experts full in "
        "training.",
        "said, not measured",
        f"{sixteen['turned_away'].mean():.2%} with it, {without['turned_away'].mean():.2%} "
        f"without, in the last {LAST} steps; cross-entropy {ranged(sixteen['cross_entropy'], 3)} "
        f"and {ranged(without['cross_entropy'], 3)}", None)
    yield Claim(
        "Translation: single seeds agree with the mean.",
        "one run each",
        "16 experts are better than the dense model by "
        + ", ".join(f"{gain:.3f}" for gain in dense["cross_entropy"] - sixteen["cross_entropy"])
        + " nats", None)


# -- Tables --------------------------------------------------------------------------------------

def table_of_experts(found):
    rows = [(str(row) if row != 1 else "1 (dense)", spread(measures["excess"], 3),
             f"{measures['excess'].mean() / found['experts'][1]['excess'].mean():.2f}",
             ranged(found["speed"][row], 1) if row in found["speed"] else "",
             spread(measures["second"], 2) if "second" in measures else "")
            for row, measures in found["experts"].items()]
    return Table("Chains: experts at as many steps; mean (SD) of seeds",
                 ("experts", "excess", "of dense", "times fewer steps [range]",
                  "second choices kept"), rows,
                 "excess: nats above the entropy of the chains, after 500 steps. times fewer "
                 "steps: until the final loss of the dense model.")


def table_of_rows(found):
    rows = [("from a lopsided start: " + ("with loss" if weight else "no loss"), measures)
            for weight, measures in found["balance"].items()]
    rows += [(f"groups of {BATCH // G}", measures) for G, measures in found["groups"].items()]
    rows += [(f"1.25 S / E slots: {name}", measures)
             for name, measures in found["counters"].items()]
    return Table(
        "Chains, 8 experts: balance (400 steps), groups and counters (300); mean of seeds",
        ("", "excess", "largest share", "starved", "no expert", "second kept"),
        [(name, spread(m["excess"], 3), f"{m['largest'].mean():.2f}", f"{m['starved'].mean():.1%}",
          f"{m['lost'].mean():.2%}", f"{m['second'].mean():.3f}") for name, m in rows],
        "largest share: of first choices; 0.125 is fair. starved: experts with less than a tenth "
        "of that. no expert: tokens that both of theirs turned away.")


def table_of_gates(gates):
    rows = [(str(sigma), *(cell for value, expected in zip(gates[sigma], EXPECTED[sigma])
                           for cell in (f"{value:.3f}", f"{expected:.3f}"))) for sigma in SIGMAS]
    names = ("draw passed", "mean 2 g_2", "kept", "kept, dispatched", "kept, all", "slots filled",
             "filled, dispatched")
    return Table("Algorithm 1 on logits from N(0, sigma^2): 1024 tokens, 8 experts, 256 slots",
                 ("sigma", *(cell for name in names for cell in (name, "expected"))), rows,
                 "kept: second choices; by Algorithm 1, by the dispatched counter, and where all "
                 "are to be dispatched. expected: of a second program.")


def table_of_overflow(crowds):
    rows = [(f"{S} tokens, {E} experts",
             *(f"{entry.exact:.5f} ({entry.simulated:.5f})" for entry in crowd.values()))
            for (S, E), crowd in crowds.items()]
    return Table("Lost where tokens choose at random: exact (simulated), by slots of an expert",
                 ("", *(f"{factor:g} S / E" for factor in FACTORS)), rows)


def table_of_translation(rows):
    def cells(m):
        yield f"{m['weights'][0]:.0f}"
        yield ranged(m["cross_entropy"], 3)
        yield f"{m['wrong'].mean():.1%}"
        for key, form in [("cv", ".2f"), ("largest", ".2f"), ("starved", ".1%"),
                          ("turned_away", ".1%")]:
            yield format(m[key].mean(), form) if key in m else ""

    return Table(
        "Translation: names of languages from 26 languages into English, spellings held out",
        ("", "weights", "nats a letter [range]", "words wrong", "CV", "largest", "starved",
         "turned away"), [(name, *cells(rows[row])) for row, name in MODELS.items()],
        "CV: coefficient of variation of first choices over experts, mean of both stacks. largest: "
        "share, times a fair one. starved: less than a tenth of it. turned away, by both experts: "
        f"in the last {LAST} steps of training. All else with both choices and room for all.")


def table_of_words(runs):
    models = [runs["translation", E, 0].words for E in TRANSLATORS]
    rows = [(language, source, english, *(model[i][-1] for model in models))
            for i, (language, source, english, _) in enumerate(models[0])]
    return Table("What they say: words held out, first seed",
                 ("", "source", "English", "dense", "4 experts", "16 experts"), rows)


# -- The figure ----------------------------------------------------------------------------------
# One dot is one seed.

BLUE, ORANGE, GREEN, GREY = "#14457d", "#d9822b", "#3f8f5f", "#8a8a8a"
SHADES = {1: "#8a8a8a", 2: "#9ecae1", 4: "#6baed6", 8: "#2f7ebc", 16: "#14457d"}


def draw(runs, found, missing):
    figure, axes = harness.panels(
        ["Chains: more experts, less excess", "Chains: the same loss in fewer steps",
         "Chains: the auxiliary loss feeds every expert", "Chains: small groups lose tokens",
         "Gates alone: which second choices are kept", "Lost where tokens choose at random",
         "Translation: words held out, while it learns",
         "Translation: the load of 16 experts", "Translation: who reads which language"],
        columns=3, size=(19, 16), title="GShard: two experts a token, the second by chance")
    draw_excess(axes[0], found["experts"])
    draw_curves(axes[1], runs)
    draw_balance(axes[2], runs)
    draw_groups(axes[3], found["groups"])
    draw_gates(axes[4], found["gates"])
    draw_overflow(axes[5], found["overflow"])
    if missing is None:
        draw_learning(axes[6], runs, found["translation"])
        draw_load(axes[7], runs)
        draw_languages(axes[8], runs["translation", 16, 0].by_language)
    else:
        for axis in axes[6:]:
            axis.set_axis_off()
            axis.text(0.5, 0.5, "Babel is not installed", ha="center", va="center", color=GREY)
    return figure


def draw_excess(axis, experts):
    axis.plot(EXPERTS, [experts[E]["excess"].mean() for E in EXPERTS], color=BLUE, zorder=1)
    for E in EXPERTS:
        values = experts[E]["excess"]
        axis.plot(np.full(len(values), E), values, "o", color=SHADES[E], markersize=8, alpha=0.8,
                  markeredgecolor="white")
        axis.annotate(f"{values.mean():.3f}", (E, values.mean()), xytext=(8, 8),
                      textcoords="offset points", fontsize=9)
    wide = experts["dense, twice as wide"]["excess"]
    axis.plot(np.full(len(wide), 1), wide, "s", markerfacecolor="none", color=ORANGE, markersize=8,
              label="dense, twice as wide: the work of two experts")
    axis.set_xscale("log", base=2)
    axis.set_xticks(EXPERTS, ["1\n(dense)", *map(str, EXPERTS[1:])])
    axis.set(ylim=(0, None), xlabel="experts, of which each token uses two",
             ylabel="excess after 500 steps, nats")
    axis.legend(fontsize=9)


def draw_curves(axis, runs):
    """The mean curve of each number of experts; where each crosses the dense model's last value."""
    curves = {E: np.mean([result.curve for (part, row, seed), result in runs.items()
                          if (part, row) == ("experts", E) and seed < 4], axis=0)
              for E in EXPERTS}
    steps = runs["experts", 1, 0].steps
    last = curves[1][-1]
    axis.axhline(last, color=GREY, linewidth=1, linestyle=":")
    axis.annotate("where the dense model ends", (steps[-1], last), xytext=(0, -14),
                  textcoords="offset points", ha="right", fontsize=9, color=GREY)
    for E, curve in curves.items():
        there = steps[curve <= last][:1]
        axis.plot(there, np.full(len(there), last), "o", color=SHADES[E], markersize=8,
                  markeredgecolor="white", zorder=3)
        name = f"{E} experts" if E > 1 else "dense"
        axis.plot(steps, curve, color=SHADES[E], linewidth=2,
                  label=name + "".join(f": there after {at} steps" for at in there))
    axis.set(ylim=(0, None), xlim=(0, None), xlabel="steps", ylabel="excess, nats")
    axis.legend(fontsize=9)


def draw_balance(axis, runs):
    """Shares of first choices, each run's experts by size."""
    for weight, colour, label in [(0.0, ORANGE, "without the loss"),
                                  (AUX_WEIGHT, BLUE, "with it")]:
        shares = [np.sort(result.shares)[::-1] for (part, row, _), result in runs.items()
                  if (part, row) == ("balance", weight)]
        for i, share in enumerate(shares):
            axis.plot(np.arange(1, 9), 100 * share, "o-", color=colour, alpha=0.7, markersize=5,
                      linewidth=1.2, label=None if i else label)
    axis.axhline(12.5, color=GREY, linewidth=1, linestyle=":", label="a fair share")
    axis.set(ylim=(0, None), xlabel="8 experts of each run, by size",
             ylabel="first choices, %")
    axis.legend(fontsize=9)


def draw_groups(axis, groups):
    sizes = [BATCH // G for G in GROUPS]
    places = np.arange(len(sizes))
    for measure, colour, label in [("second", BLUE, "second choices kept"),
                                   ("lost", ORANGE, "tokens without any expert")]:
        values = [groups[G][measure] for G in GROUPS]
        axis.plot(places, [100 * v.mean() for v in values], color=colour, label=label)
        for place, v in zip(places, values):
            axis.plot(np.full(len(v), place), 100 * v, "o", color=colour, markersize=6, alpha=0.7,
                      markeredgewidth=0)
    for place, G in zip(places, GROUPS):
        axis.annotate(f"excess\n{groups[G]['excess'].mean():.3f}", (place, 1), xycoords=(
            "data", "axes fraction"), xytext=(0, -4), textcoords="offset points", ha="center",
            va="top", fontsize=9, color=GREY)
    axis.set_xticks(places, [f"{size}\n{size // 4} slots" for size in sizes])
    axis.set(xlabel="tokens in a group, and slots in each of 8 experts", ylabel="%",
             ylim=(-1, 50), xlim=(-0.4, len(sizes) - 0.6))
    axis.legend(fontsize=9, loc="center right", bbox_to_anchor=(1, 0.72))


def draw_gates(axis, gates):
    """Bars by rule, in groups by sigma; a diamond is what the second program found."""
    bars = [(0, "pass the draw", GREY), (2, "kept by Algorithm 1", BLUE),
            (3, "counting those dispatched", GREEN), (4, "dispatching all", ORANGE)]
    for i, (column, label, colour) in enumerate(bars):
        x = np.arange(len(SIGMAS)) + 0.2 * (i - 1.5)
        axis.bar(x, [100 * gates[sigma][column] for sigma in SIGMAS], 0.18, color=colour,
                 label=label)
        axis.plot(x, [100 * EXPECTED[sigma][column] for sigma in SIGMAS], "D", color="black",
                  markerfacecolor="none", markersize=5, linestyle="",
                  label="expected" if i == 3 else None)
    axis.set_xticks(range(len(SIGMAS)), [f"$\\sigma$ = {sigma:g}" for sigma in SIGMAS])
    axis.set(ylim=(0, 135), ylabel="second choices, %", xlabel="logits from N(0, $\\sigma^2$)")
    axis.set_yticks(range(0, 101, 20))
    axis.legend(fontsize=9, ncols=2, loc="upper center")


def draw_overflow(axis, crowds):
    """The formula as lines, simulations as dots with 3 standard errors."""
    colours = [BLUE, "#2f7ebc", "#6baed6", GREEN, ORANGE, "#b03a1b"]
    for colour, ((S, E), crowd) in zip(colours, crowds.items()):
        slots = np.arange(S // E, 2 * S // E + 1, max(1, S // E // 40))
        exact = np.array([gshard.expected_overflow(S, E, int(C)) for C in slots])
        axis.plot(slots * E / S, np.where(exact > 1e-6, exact, np.nan), color=colour,
                  linewidth=1.3, label=f"{S} tokens, {E} experts")
        seen = {factor: entry for factor, entry in crowd.items() if entry.simulated > 1e-6}
        axis.errorbar(list(seen), [entry.simulated for entry in seen.values()],
                      [min(3 * entry.error, 0.9 * entry.simulated) for entry in seen.values()],
                      fmt="o", color=colour, markersize=5)
    axis.set(yscale="log", ylim=(5e-6, 0.5), xlabel="slots of an expert, times S / E",
             ylabel="tokens lost (dots: simulated)")
    axis.set_xticks(FACTORS)
    axis.legend(fontsize=9)


def draw_learning(axis, runs, rows):
    for E in TRANSLATORS:
        of = [result for (part, row, _), result in runs.items()
              if (part, row) == ("translation", E)]
        for result in of:
            axis.plot(result.steps, result.curve, color=SHADES[E], alpha=0.35, linewidth=1)
        axis.plot(of[0].steps, np.mean([result.curve for result in of], axis=0), color=SHADES[E],
                  linewidth=2.4, label=f"{MODELS[E]}: {100 * rows[E]['wrong'].mean():.0f} % of "
                  "words wrong in the end")
    axis.set(yscale="log", xlabel="steps of 64 words", ylabel="cross-entropy of a letter, nats")
    axis.set_yticks([0.4, 0.6, 0.8, 1, 1.5, 2, 3], ["0.4", "0.6", "0.8", "1", "1.5", "2", "3"])
    axis.minorticks_off()
    axis.legend(fontsize=9)


def draw_load(axis, runs):
    """Shares of first choices, each run's experts by size; the two stacks by line style."""
    for row, colour, label in [(NO_LOSS, ORANGE, "without the loss"),
                               (16, BLUE, "with it")]:
        of = [result.shares for (part, other, _), result in runs.items()
              if (part, other) == ("translation", row)]
        for i, shares in enumerate(of):
            for share, style, stack in zip(shares, ("o-", "s--"), ("encoder", "decoder")):
                axis.plot(np.arange(1, 17), 100 * np.sort(share)[::-1], style, color=colour,
                          alpha=0.6, markersize=4, linewidth=1.1,
                          label=None if i else f"{stack}, {label}")
    axis.axhline(100 / 16, color=GREY, linewidth=1, linestyle=":", label="a fair share")
    axis.set(ylim=(0, None), xlabel="16 experts of each run, by size",
             ylabel="first choices of letters held out, %")
    axis.legend(fontsize=9)


def draw_languages(axis, by_language):
    """Languages in the order of the expert that reads most of each."""
    experts = np.argsort(-by_language.sum(axis=0), kind="stable")
    shares = by_language[:, experts]
    order = np.lexsort((-shares.max(axis=1), shares.argmax(axis=1)))
    image = axis.imshow(100 * shares[order], cmap="Blues", vmin=0, aspect="auto",
                        interpolation="nearest")
    bar = axis.figure.colorbar(image, ax=axis, fraction=0.05, pad=0.02)
    bar.set_label("letters of the language, %", fontsize=9)
    bar.outline.set_visible(False)
    axis.set_yticks(range(len(order)), [LANGUAGES[i] for i in order], fontsize=8)
    axis.set_xticks([])
    axis.set(xlabel="16 experts of the encoder, with the loss")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)

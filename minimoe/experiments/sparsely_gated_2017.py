"""A noisy top-k gate with and without its losses: Table 6 and Figure 2 of the paper, in miniature.

The paper's corpora are out of reach, so two tasks stand in for them. *Topics*
(``minimoe.data.topics``): x is a word's embedding plus a topic's, and the layer, with sigmoid and
residual as in Appendix C.1, stands before a softmax over what the word may mean. Word embeddings
start from N(1, 0.5^2): what all inputs share is what lets a gate favour experts whatever the
input, and the table of means shows how much hangs on it. *Text*: the language model of Appendix
C.1 whole, embedding, LSTM, MoE, LSTM, softmax, all 32 wide, reads the characters of
``minimoe.data.python_text``, 16 at a time from states of 0, without dropout.

Adam descends cross-entropy plus the two losses, on the paper's schedule with 50 steps of warm-up.
Balance is averaged over the last 50 batches, load being the smooth one of Eq. (10); perplexity is
of examples held out, without noise. The runs of one seed share task, data, noise and, where they
have the same shapes, starting weights. All in float64.
"""
from itertools import zip_longest
from typing import Any, Callable, NamedTuple

import numpy as np

from minimoe import nn, ops, tree
from minimoe.autodiff.tensor import Tensor, grad, stop_gradient
from minimoe.backend import to_numpy
from minimoe.data import topics
from minimoe.data.python_text import python_text
from minimoe.data.topics import TOPICS, WORDS
from minimoe.experiments import harness
from minimoe.experiments.harness import Claim, Result, Table, means, ranged, spread
from minimoe.optim import adam, adam_init
from minimoe.papers.sparsely_gated_2017 import (
    LanguageModelOutput, SparselyGatedParams, importance_loss, init, language_model,
    language_model_init, learning_rate_factor, load_loss, moe, noisy_top_k, noisy_top_k_davidmrau)

WIDTH = 32
BATCH = 512            # examples of topics; 32 sequences of 16 characters
WINDOW = 16
WARM_UP = 50           # steps
LAST = 50              # batches, over which balance is averaged
TOP = 20               # of an expert's examples, those of the largest gates
SHOWN = 7              # endings of text for each expert, and their length
MEASURES = {"perplexity": "perplexity", "cv_importance": "CV(Importance)",
            "cv_load": "CV(Load)", "overload": "max/mean load"}
TABLE_6 = {w: dict(zip(MEASURES, figures)) for w, figures in {        # (w_importance, w_load)
    (0, 0): (39.8, 3.04, 3.01, 17.80), (0.2, 0): (35.6, 0.06, 0.17, 1.47),
    (0, 0.2): (35.7, 0.22, 0.04, 1.15), (0.1, 0.1): (35.6, 0.06, 0.05, 1.14),
    (0.01, 0.01): (35.7, 0.48, 0.11, 1.37), (1, 1): (35.7, 0.03, 0.02, 1.07)}.items()}
NEITHER, IMPORTANCE, LOAD, BOTH, WEAK, STRONG = TABLE_6
MODELS = {"one wide expert": (1, 1, 16), "2, always on": (2, 2, 8), "4": (4, 2, 8),
          "8": (8, 2, 8), "16": (16, 2, 8)}   # experts, k, hidden: the same operations but the gate
TABLE_7 = {"MoE-1-Wide": 46.1, "MoE-4": 45.0, "MoE-32": 39.7, "MoE-256": 35.7,
           "MoE-1024-h": 34.6, "MoE-4096-h": 34.1}     # perplexity after 10 epochs


# -- The experiment ------------------------------------------------------------------------------

class Case(NamedTuple):
    task: Callable                        # on_topics or on_text
    w: tuple                              # w_importance, w_load
    seed: int = 0
    n_experts: int = 16
    k: int = 2
    hidden: int = 8
    rate: float = 0.03
    steps: int = 400
    held_out: int | None = 8192           # examples or windows of text; None: all there are
    centre: float | None = 1.0            # mean of the word embeddings of topics at the start
    noisy_top_k: Callable = noisy_top_k   # of topics; or another's


class Run(NamedTuple):
    measures: dict     # of numbers
    shown: dict        # what the figure shows of it


def plan(quick):
    """What is trained: {part: (seeds, {row: case})}. A quick run has a few steps of each."""
    text = Case(on_text, BOTH, hidden=32, rate=0.02, held_out=None, centre=None)
    topic = Case(on_topics, BOTH)
    slow = topic._replace(rate=0.01, steps=600)
    parts = {
        "text": (2, {w: text._replace(w=w) for w in TABLE_6}),
        "longer": (1, {w: topic._replace(w=w, steps=1200) for w in (BOTH, STRONG)}),
        "capacity": (3, {model: slow._replace(n_experts=n_experts, k=k, hidden=hidden, centre=0.0)
                         for model, (n_experts, k, hidden) in MODELS.items()}),
        "centre": (1, {(centre, *w): slow._replace(w=w, centre=centre)
                       for centre in (0.0, 2.0) for w in (NEITHER, BOTH)}),
        "table_6": (3, {w: topic._replace(w=w) for w in TABLE_6}),
        "davidmrau": (3, {w: topic._replace(w=w, noisy_top_k=noisy_top_k_davidmrau)
                          for w in (LOAD, BOTH)})}
    if quick:
        parts = {part: (1, {row: case._replace(steps=3, held_out=500)
                            for row, case in rows.items()})
                 for part, (_, rows) in parts.items()}
    return parts


def run(settings):
    """Every case of ``plan``, with every seed."""
    planned = plan(settings.quick)
    cases = {(part, row, seed): case._replace(seed=seed)
             for part, (seeds, rows) in planned.items() for row, case in rows.items()
             for seed in range(seeds)}
    runs = dict(zip(cases, harness.in_parallel(settings, trained, list(cases.values()),
                                               "topics and text")))
    found = harness.by_row({key: result.measures for key, result in runs.items()})
    first = {(part, row): result.shown for (part, row, seed), result in runs.items() if seed == 0}
    endings = first["text", BOTH]["endings"]
    return Result(
        "The sparsely-gated mixture-of-experts layer (Shazeer et al., 2017), on generated topics "
        "and on the text of Python's own help",
        [*judged(found), *reported(found)],
        [table_6(found["table_6"]), table_of_capacity(found["capacity"]),
         table_of_text(found["text"]), table_of_specialisation(found["table_6"]),
         table_of_endings(endings), table_of_means(found["centre"])],
        draw(found, first),
        {"trained": {part: {"seeds": seeds,
                            "rows": {name(row): recorded(case) for row, case in rows.items()}}
                     for part, (seeds, rows) in planned.items()},
         "batch": BATCH, "warm_up": WARM_UP, "last_batches": LAST,
         "best_perplexity": topics.best_perplexity(),
         "characters": {part: len(index) for part, index in python_text()._asdict().items()},
         "found": {part: {name(row): measures for row, measures in rows.items()}
                   for part, rows in found.items()},
         "endings": endings})


def recorded(case):
    """The settings of a row, for the record."""
    fields = case._asdict()
    del fields["seed"]
    return {key: value.__name__ if callable(value) else value for key, value in fields.items()}


def name(row):
    """Of a row of ``plan``, in print."""
    return row if isinstance(row, str) else ", ".join(f"{number:g}" for number in row)


# -- Training ------------------------------------------------------------------------------------

class Batch(NamedTuple):
    read: Any             # the model's own input: a pair [T], [T] int, or characters [S, B] int
    target: np.ndarray    # [T] or [S, B] int
    epsilon: np.ndarray   # [T, E], or the number 0


class Balance(NamedTuple):
    """Of every batch, as it was trained on."""
    importance: np.ndarray   # [steps, E]
    load: np.ndarray         # [steps, E]
    rows: np.ndarray         # [steps, E] int   that each expert was given


def trained(settings, case):
    return case.task(settings, case)


def descend(settings, case, model, params, batches):
    """The parameters after a step for every batch, and how balanced the batches were."""
    params = harness.move(settings, params)
    state, history = adam_init(params), []
    for batch in batches:
        read, target, epsilon = harness.move(settings, batch)
        tensors = tree.map(Tensor, params)
        out = model(tensors, read, epsilon)
        w_importance, w_load = case.w
        loss = (ops.cross_entropy(out.logits, target).mean()
                + w_importance * importance_loss(out.importance) + w_load * load_loss(out.load))
        params, state = adam(params, grad(loss, tensors), state, learning_rate=(
            case.rate * learning_rate_factor(state.step, WARM_UP)))
        rows = np.bincount(to_numpy(out.routing.expert).ravel(), minlength=case.n_experts)
        history.append((to_numpy(stop_gradient(out.importance)), to_numpy(stop_gradient(out.load)),
                        rows))
    return params, Balance(*map(np.stack, zip(*history)))


def held_out(settings, model, params, batch):
    """Perplexity without noise; expert [T, k] and gate [T, k] of every example. Host arrays."""
    out = model(params, harness.move(settings, batch.read), 0)
    errors = ops.cross_entropy(out.logits, harness.move(settings, batch.target))
    return np.exp(float(errors.mean())), to_numpy(out.routing.expert), to_numpy(out.routing.gate)


def balance_of(balance):
    """The three measures of Table 6, and the overload in rows given, over the last batches."""
    def variation(v):
        return (v.std(axis=-1) / v.mean(axis=-1)).mean()

    def overload(v):
        return (v.max(axis=-1) / v.mean(axis=-1)).mean()

    importance, load, rows = (part[-LAST:] for part in balance)          # [50, E]
    return {"cv_importance": variation(importance), "cv_load": variation(load),
            "overload": overload(load), "overload_rows": overload(rows)}


# -- Topics --------------------------------------------------------------------------------------

class TopicParams(NamedTuple):
    words: nn.EmbeddingParams    # [32, D]
    topics: nn.EmbeddingParams   # [16, D]
    moe: SparselyGatedParams
    softmax: nn.LinearParams     # [D, 32]


def on_topics(settings, case):
    task, start, data, noise, test = np.random.default_rng([settings.seed, case.seed]).spawn(5)
    meanings = topics.meanings(task)

    def batch_of(rng, n, epsilon):
        topic, word, target = topics.examples(rng, meanings, n)
        return Batch((topic, word), target, epsilon)

    def model(params, read, epsilon):
        return topic_model(params, *read, epsilon, case)

    batches = (batch_of(data, BATCH, noise.standard_normal((BATCH, case.n_experts)))
               for _ in range(case.steps))
    params, balance = descend(settings, case, model, topic_init(start, case), batches)
    batch = batch_of(test, case.held_out, 0)
    perplexity, expert, gate = held_out(settings, model, params, batch)
    topic, word = batch.read
    by_topic = shares(topic, TOPICS, expert, gate, case.n_experts)
    by_word = shares(word, WORDS, expert, gate, case.n_experts)
    return Run({"perplexity": perplexity, **balance_of(balance),
                "topic": mutual_information(by_topic), "word": mutual_information(by_word),
                **purity(topic, word, expert, gate, case.n_experts)},
               {"rows": balance.rows, "by_topic": by_topic, "by_word": by_word})


def topic_init(rng, case):
    of_words, of_topics = (rng.standard_normal((n, WIDTH)) for n in (WORDS, TOPICS))
    softmax = rng.standard_normal((WIDTH, WORDS)) / np.sqrt(WIDTH)
    return TopicParams(nn.EmbeddingParams(case.centre + 0.5 * of_words),
                       nn.EmbeddingParams(0.5 * of_topics),
                       init(rng, case.n_experts, WIDTH, case.hidden),
                       nn.LinearParams(softmax, np.zeros(WORDS)))


def topic_model(params, topic, word, epsilon, case):
    """[T] int, [T] int, [T, E] -> logits [T, words]"""
    x = nn.embedding(params.words, word) + nn.embedding(params.topics, topic)    # [T, D]
    out = moe(params.moe, x, epsilon, case.k, case.noisy_top_k)
    logits = nn.linear(params.softmax, x + ops.sigmoid(out.y))
    return LanguageModelOutput(logits, out.importance, out.load, out.routing)


# -- What experts specialise in ------------------------------------------------------------------

def shares(kind, n_kinds, expert, gate, n_experts):
    """How the gate divides every kind of example. [T] int, [T, k] int, [T, k] -> [kinds, E]

    The joint distribution of a kind and an expert: it sums to 1.
    """
    joint = np.zeros((n_kinds, n_experts))
    np.add.at(joint, (kind[:, None], expert), gate)
    return joint / gate.sum()


def mutual_information(joint):
    """Between kind and expert, over the logarithm of the number of kinds. [kinds, E] -> []"""
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0)         # [kinds, E]
    seen = joint > 0
    return (joint[seen] * np.log(joint[seen] / apart[seen])).sum() / np.log(len(joint))


def purity(topic, word, expert, gate, n_experts):
    """Of an expert's top examples, the share that have one topic or one word in common.

    The mean over experts that are given as many as ``TOP``, and how many those are.
    """
    found = []
    for e in range(n_experts):
        top = largest_gates(e, expert, gate)[:TOP]
        if len(top) == TOP:
            found.append(max(np.bincount(kind[top]).max() for kind in (topic, word)) / TOP)
    return {"purity": np.mean(found) if found else np.nan, "experts_in_use": len(found)}


def largest_gates(e, expert, gate):
    """The rows that expert e was given, those with its largest gates first."""
    row, choice = np.nonzero(expert == e)
    return row[np.argsort(-gate[row, choice], kind="stable")]


# -- Text ----------------------------------------------------------------------------------------

def on_text(settings, case):
    start, data, noise = np.random.default_rng([settings.seed, case.seed]).spawn(3)
    text = python_text()
    params = language_model_init(start, len(text.symbols), WIDTH,
                                 init(start, case.n_experts, WIDTH, case.hidden))

    def model(params, read, epsilon):
        return language_model(params, read, epsilon, case.k)

    batches = (windows(text.train, data.integers(len(text.train) - WINDOW, size=BATCH // WINDOW),
                       noise.standard_normal((BATCH, case.n_experts))) for _ in range(case.steps))
    params, balance = descend(settings, case, model, params, batches)
    batch = windows(text.test, np.arange(0, len(text.test) - WINDOW, WINDOW)[:case.held_out], 0)
    perplexity, expert, gate = held_out(settings, model, params, batch)
    return Run({"perplexity": perplexity, **balance_of(balance)},
               {"endings": endings(text.symbols, batch.read, expert, gate, case.n_experts)})


def windows(characters, starts, epsilon):
    """As many characters from each start, and those that come next. -> Batch"""
    place = starts + np.arange(WINDOW + 1)[:, None]                      # [S + 1, B]
    return Batch(characters[place[:-1]], characters[place[1:]], epsilon)


def endings(symbols, read, expert, gate, n_experts):
    """What was read up to where each expert's gates are largest, as in Table 9. -> E lists

    The last ``SHOWN`` characters, all different, and none across the start of a window.
    """
    found = []
    for e in range(n_experts):
        seen = {}
        for step, sequence in zip(*np.divmod(largest_gates(e, expert, gate), read.shape[1])):
            if step >= SHOWN - 1 and len(seen) < SHOWN:
                last = read[step - SHOWN + 1:step + 1, sequence]
                seen["".join(symbols[i] for i in last)] = None
        found.append(list(seen))
    return found


# -- Claims --------------------------------------------------------------------------------------
# Of means over seeds, but where ranges are said to be disjoint.

def judged(found):
    """What the paper claims and these tasks can show."""
    yield from judged_table_6(found["table_6"])
    yield from judged_capacity(found["capacity"])
    yield from judged_text(found["text"])
    with_losses, without = (specialisation(found["table_6"][w]) for w in (BOTH, NEITHER))
    yield Claim(
        "Experts specialise where the losses keep them all in use: normalised mutual information "
        "with topic and with word add up to at least 0.45, and to at least 4 times what they do "
        "without losses.",
        "shown by the contexts of three experts (Table 9)",
        f"{ranged(with_losses, 2)} with both losses, {ranged(without, 3)} without: "
        f"{with_losses.mean() / without.mean():.1f} times",
        bool(with_losses.mean() >= max(0.45, 4 * without.mean())))


def judged_table_6(rows):
    perplexity, cv_importance, cv_load, overload = (means(rows, measure) for measure in MEASURES)
    mild = [perplexity[w] for w in (IMPORTANCE, LOAD, BOTH, WEAK)]
    even = IMPORTANCE, LOAD, BOTH
    worst = [max(measure[w] for w in even) for measure in (cv_importance, cv_load, overload)]
    order = [overload[w] for w in (NEITHER, WEAK, BOTH, STRONG)]
    yield Claim(
        "Without either loss few experts take nearly all: max/mean load is at least 5 of a "
        "possible 8, CV(Importance) at least 2.",
        "17.80 of a possible 64; 3.04",
        f"{ranged(rows[NEITHER]['overload'], 2)}; {ranged(rows[NEITHER]['cv_importance'], 2)}",
        bool(overload[NEITHER] >= 5 and cv_importance[NEITHER] >= 2))
    yield Claim(
        "Any of the losses restores quality: with weights of up to 0.2, perplexity is at least 1.4 "
        "times lower than without, and the four rows lie within 10 % of one another.",
        "39.8 against 35.6 to 35.7: 1.1 times",
        f"{perplexity[NEITHER]:.2f} against {min(mild):.2f} to {max(mild):.2f}: at least "
        f"{perplexity[NEITHER] / max(mild):.2f} times; within {max(mild) / min(mild) - 1:.0%}",
        bool(perplexity[NEITHER] >= 1.4 * max(mild) and max(mild) <= 1.1 * min(mild)))
    yield Claim(
        "Any of the losses evens out importance and load: with (0.2, 0), (0, 0.2) and (0.1, 0.1), "
        "CV(Importance) is at most 0.35, CV(Load) 0.25 and max/mean load 1.5.",
        "at most 0.22, 0.17 and 1.47",
        "at most {:.2f}, {:.2f} and {:.2f}".format(*worst),
        bool(worst[0] <= 0.35 and worst[1] <= 0.25 and worst[2] <= 1.5))
    yield Claim(
        "Each loss does most for what it is made of: CV(Load) is lower with (0, 0.2) than with "
        "(0.2, 0), CV(Importance) the other way round.",
        "0.04 against 0.17; 0.06 against 0.22",
        f"{cv_load[LOAD]:.3f} against {cv_load[IMPORTANCE]:.3f}; {cv_importance[IMPORTANCE]:.3f} "
        f"against {cv_importance[LOAD]:.3f}",
        bool(cv_load[LOAD] < cv_load[IMPORTANCE]
             and cv_importance[IMPORTANCE] < cv_importance[LOAD]))
    yield Claim(
        "The larger both weights, the smaller the worst overload: max/mean load falls from (0, 0) "
        "over (0.01, 0.01) and (0.1, 0.1) to (1, 1).",
        "17.80, 1.37, 1.14, 1.07",
        ", ".join(f"{value:.2f}" for value in order),
        bool((np.diff(order) < 0).all()))


def judged_capacity(models):
    wide, *sparse = means(models, "perplexity").values()
    ratios = np.divide(sparse[1:], sparse[:-1])
    yield Claim(
        "Experts that are all always on are one expert of their joint width: perplexity within "
        "10 %.",
        "45.0 (MoE-4) against 46.1 (MoE-1-Wide)",
        f"{sparse[0]:.2f} against {wide:.2f}",
        bool(max(wide, sparse[0]) <= 1.1 * min(wide, sparse[0])))
    yield Claim(
        "At the same operations, more experts are better: each doubling lowers perplexity by at "
        "least 7 %, and 16 of which 2 are used are at least 24 % below 2.",
        "4096 experts, 4 used: 24 % below 4",
        ", ".join(f"{value:.2f}" for value in sparse) + " with 2, 4, 8, 16: each doubling by at "
        f"least {1 - ratios.max():.0%}, altogether by {1 - sparse[-1] / sparse[0]:.0%}",
        bool((ratios <= 0.93).all() and sparse[-1] <= 0.76 * sparse[0]))


def judged_text(rows):
    overload = means(rows, "overload")
    others = [value for w, value in overload.items() if w != NEITHER]
    load, importance = ([rows[w][measure] for w in (LOAD, IMPORTANCE)]
                        for measure in ("cv_load", "cv_importance"))
    yield Claim(
        "The same in a language model of real text: max/mean load is at least 2.2 without losses, "
        "and at most 1.6 in every other row.",
        "17.80; at most 1.47",
        f"{ranged(rows[NEITHER]['overload'], 2)}; {min(others):.2f} to {max(others):.2f}",
        bool(overload[NEITHER] >= 2.2 and max(others) <= 1.6))
    yield Claim(
        "There too each loss does most for what it is made of, and the ranges over seeds are "
        "disjoint: CV(Load) with (0, 0.2) and with (0.2, 0), CV(Importance) the other way round.",
        "0.04 against 0.17; 0.06 against 0.22",
        f"{ranged(load[0], 3)} against {ranged(load[1], 3)}; {ranged(importance[1], 3)} against "
        f"{ranged(importance[0], 3)}",
        bool(load[0].max() < load[1].min() and importance[1].max() < importance[0].min()))


def reported(found):
    """What the paper says, or leaves open, that these tasks do not carry; and how far they do."""
    rows = found["table_6"]
    short, late, text, centre = (
        means(found[part], "perplexity") for part in ("table_6", "longer", "text", "centre"))
    yield Claim(
        "Does not carry over at this budget: that weights of 1 cost no quality. In batches of "
        f"{BATCH} the losses drown the task at first; with more steps it recovers.",
        "35.7 against 35.6",
        f"perplexity with (1, 1) {short[STRONG]:.2f}, with (0.1, 0.1) {short[BOTH]:.2f}; "
        f"after 3 times the steps {late[STRONG]:.2f} and {late[BOTH]:.2f}", None)
    yield Claim(
        "Does not carry over at this length of training: that the losses improve the perplexity of "
        "a language model.",
        "39.8 without, 35.6 with (0.1, 0.1)",
        f"per character {text[NEITHER]:.2f} without, {text[BOTH]:.2f} with (0.1, 0.1)", None)
    collapsed = found["centre"][(0.0, *NEITHER)]
    yield Claim(
        "How far a gate collapses without losses hangs on what its inputs share: with word "
        "embeddings from N(0, 0.5^2) it hardly does. From N(2, 0.5^2) the model barely learns, "
        "with losses or without.",
        "not said",
        f"mean 0: max/mean load {collapsed['overload'].mean():.2f}, perplexity "
        f"{centre[(0.0, *NEITHER)]:.2f}, {centre[(0.0, *BOTH)]:.2f} with (0.1, 0.1); mean 2: "
        f"perplexity {centre[(2.0, *NEITHER)]:.1f} and {centre[(2.0, *BOTH)]:.1f}", None)
    yield Claim(
        f"That the {TOP} examples of an expert's largest gates have much in common is no sign of "
        "balance: a collapsed gate's live experts score as high.",
        "shown for three experts (Table 9)",
        "; ".join(f"{rows[w]['purity'].mean():.0%} share a topic or a word, with "
                  f"{span(rows[w]['experts_in_use'])} of 16 experts in use, {label}"
                  for w, label in [(BOTH, "with (0.1, 0.1)"), (NEITHER, "without losses")]), None)
    blind, rescued = (found["davidmrau"][w] for w in (LOAD, BOTH))
    yield Claim(
        "A known error of one widely copied implementation (davidmrau, since April 2024: logits "
        "compared with probabilities) hides a collapse: with (0, 0.2) its own CV(Load) is low.",
        "not theirs",
        f"CV(Load) {blind['cv_load'].mean():.3f}, while the rows given have max/mean "
        f"{blind['overload_rows'].mean():.1f} and perplexity is {blind['perplexity'].mean():.2f}; "
        f"with (0.1, 0.1), {rescued['overload_rows'].mean():.2f} and "
        f"{rescued['perplexity'].mean():.2f}", None)
    yield Claim(
        "Perplexities of one and of a hundred billion words, and of translation, with up to "
        "131,072 experts.",
        "34.1 with 4096 experts against 34.7 of an LSTM with 17 times the operations",
        "not measured: the corpora and the machines are not available", None)


def specialisation(row):
    """Normalised mutual information with topic and with word, added up. [seeds]"""
    return row["topic"] + row["word"]


def span(counts):
    low, high = counts.min(), counts.max()
    return f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"


# -- Tables --------------------------------------------------------------------------------------

def table_6(rows):
    return Table(
        "Table 6: the losses, on topics; mean (SD) of seeds, beside the paper's",
        ("w_imp, w_load", *(cell for label in MEASURES.values() for cell in (label, "paper"))),
        [(name(w), *(cell for measure, paper in TABLE_6[w].items()
                     for cell in (spread(row[measure], 2),
                                  f"{paper:.{1 if measure == 'perplexity' else 2}f}")))
         for w, row in rows.items()],
        f"16 experts, 2 used, for which max/mean load is at most 8; the paper's are 256, 4 and 64. "
        f"No model can do better than a perplexity of {topics.best_perplexity():.3f}.")


def table_of_capacity(models):
    wide = models["one wide expert"]["perplexity"].mean()
    here = [(label, *map(str, MODELS[label][1:]), spread(model["perplexity"], 2),
             f"{model['perplexity'].mean() / wide:.2f}") for label, model in models.items()]
    paper = [(label, f"{perplexity:.1f}", f"{perplexity / TABLE_7['MoE-1-Wide']:.2f}")
             for label, perplexity in TABLE_7.items()]
    return Table(
        "Capacity at the same operations, on topics with embeddings from N(0, 0.5^2)",
        ("experts", "used", "hidden", "perplexity", "ratio", "paper", "perplexity", "ratio"),
        [ours + theirs for ours, theirs in zip_longest(here, paper, fillvalue=("",) * 5)],
        "ratio: to one wide expert. The paper's models (Table 7, after 10 epochs) use 4 experts, "
        "all but the first.")


def table_of_text(rows):
    return Table(
        "The same losses in an LSTM-MoE-LSTM language model of text; mean (SD) of seeds",
        *cells_of(rows, "w_imp, w_load", 3), "16 experts, 2 used. Perplexity is of characters.")


def table_of_means(rows):
    return Table(
        "How much hangs on the mean of the word embeddings: topics, rate 0.01, 600 steps, one seed",
        *cells_of(rows, "mean, w_imp, w_load", 2))


def cells_of(rows, corner, digits):
    """Header and rows of a table of all measures."""
    return ((corner, *MEASURES.values()),
            [(name(row), *(spread(measures[measure], digits) for measure in MEASURES))
             for row, measures in rows.items()])


def table_of_specialisation(rows):
    return Table(
        "What experts specialise in, on held-out topics without noise; mean (SD) of seeds",
        ("w_imp, w_load", "topic", "word", "sum", "purity", "experts in use"),
        [(name(w), spread(row["topic"], 3), spread(row["word"], 3),
          spread(specialisation(row), 3), spread(row["purity"], 2), span(row["experts_in_use"]))
         for w, row in rows.items()],
        "topic, word: mutual information of expert and topic (word), weighted by the gate, over "
        f"ln {TOPICS} (ln {WORDS}). purity: share of the {TOP} examples of the largest gates that "
        f"have one topic or one word in common, over experts that are given as many: those in use.")


def table_of_endings(endings):
    """Five for each expert; an expert that is never chosen has none."""
    rows = [(f"expert {e + 1}", *[f"'{ending}'" for ending in shown[:5]] + [""] * (5 - len(shown)))
            for e, shown in enumerate(endings)]
    return Table("Table 9 in small: the text up to where each expert's gates are largest, with "
                 "(0.1, 0.1)", ("", *(f"gate {i + 1}" for i in range(5))), rows,
                 "Held-out text, without noise, first seed. The gate has read the last character, "
                 "and what came before through the LSTM below.")


# -- The figure ----------------------------------------------------------------------------------
# One dot is one seed, a hollow diamond the paper's. Maps are of the first seed.

BLUE, ORANGE, GREEN, RED, GREY = "#14457d", "#d9822b", "#3f8f5f", "#b03a1b", "#8a8a8a"
HERE = {"linestyle": "", "marker": "o", "markersize": 6, "alpha": 0.7, "markeredgewidth": 0}
PAPER = {"linestyle": "", "marker": "D", "markersize": 7, "markerfacecolor": "none",
         "markeredgewidth": 1.3}


def draw(found, first):
    figure, axes = harness.panels(
        ["The losses even out the gate: topics (Table 6)",
         "The same in a language model of text",
         "The most loaded expert", "What the losses do to quality",
         "How many rows each expert is given, while the gate learns",
         "Which topics and words each expert takes",
         "More experts at the same operations (Figure 2)",
         "What the text model's experts wait for (Table 9)"],
        columns=4, size=(23, 10.5),
        title="A sparsely-gated mixture of experts, with and without its balancing losses")
    draw_variation(axes[0], [(found["table_6"], "", HERE), (TABLE_6, ", paper", PAPER)])
    draw_variation(axes[1], [(found["text"], "", HERE)])
    draw_overload(axes[2], found)
    draw_quality(axes[3], found)
    draw_rows_given(axes[4], [first["table_6", w]["rows"] for w in (NEITHER, BOTH)])
    draw_kinds(axes[5], [first["table_6", w] for w in (NEITHER, BOTH)])
    draw_capacity(axes[6], found["capacity"])
    draw_endings(axes[7], first["text", BOTH]["endings"])
    return figure


def draw_variation(axis, sources):
    for rows, suffix, style in sources:
        for aside, measure, colour in [(-0.16, "cv_importance", BLUE), (0.16, "cv_load", ORANGE)]:
            draw_column(axis, rows, measure, aside, style, colour, MEASURES[measure] + suffix)
    axis.set(yscale="log", ylim=(0.012, 6), ylabel="coefficient of variation over experts")
    label_rows(axis)


def draw_overload(axis, found):
    draw_column(axis, found["table_6"], "overload", -0.16, HERE, BLUE, "topics")
    draw_column(axis, found["text"], "overload", 0, HERE, GREEN, "text")
    draw_column(axis, TABLE_6, "overload", 0.16, PAPER, "black", "paper, 4 of 256 experts used")
    axis.axhline(8, color=GREY, linestyle=":", linewidth=1, label="2 of 16 experts take all")
    axis.set(yscale="log", ylim=(0.9, 40), ylabel="max(Load) / mean(Load)")
    axis.set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    axis.minorticks_off()
    label_rows(axis)


def draw_quality(axis, found):
    """Perplexities over that of the row (0.1, 0.1), so that all three tasks fit one axis."""
    for rows, aside, style, colour, label in [
            (found["table_6"], -0.16, HERE, BLUE, "topics"),
            (found["text"], 0, HERE, GREEN, "text"), (TABLE_6, 0.16, PAPER, "black", "paper")]:
        one = np.mean(rows[BOTH]["perplexity"])
        ratios = {w: {"ratio": row["perplexity"] / one} for w, row in rows.items()}
        draw_column(axis, ratios, "ratio", aside, style, colour, label)
    axis.axhline(1, color=GREY, linewidth=0.8, zorder=0)
    axis.set(ylim=(0.8, None), ylabel="perplexity, times that with (0.1, 0.1)")
    label_rows(axis)


def draw_column(axis, rows, measure, aside, style, colour, label):
    """A measure, one number or one a seed, of every row of Table 6."""
    for place, row in enumerate(rows.values()):
        values = np.atleast_1d(row[measure])
        axis.plot(np.full(len(values), place + aside), values, color=colour,
                  label=None if place else label, **style)


def label_rows(axis):
    axis.set_xticks(range(len(TABLE_6)), [name(w).replace(", ", "\n") for w in TABLE_6])
    axis.set_xlabel("weights of the losses: importance above, load below")
    axis.legend(fontsize=8, loc="upper center")


def draw_rows_given(axis, rows):
    """Over an even share, in every batch; the experts in the order of their rows in the end."""
    maps = [(given / given.mean(axis=-1, keepdims=True)).T[
        np.argsort(-given[-LAST:].sum(axis=0), kind="stable")] for given in rows]      # [E, steps]
    with np.errstate(divide="ignore"):
        bar = draw_maps(axis, [np.log2(given).clip(-3, 3) for given in maps],
                        "times an even share, 1/8 to 8", cmap="RdBu_r", vmin=-3, vmax=3)
    bar.set_ticks([-3, -2, -1, 0, 1, 2, 3], labels=["1/8", "1/4", "1/2", "1", "2", "4", "8"])
    axis.set_xlabel("step")


def draw_kinds(axis, shown):
    """The share of each topic and of each word that an expert takes, in orders that show it."""
    maps = []
    for joints in ((run["by_topic"], run["by_word"]) for run in shown):
        topic, word = ((joint / joint.sum(axis=1, keepdims=True)).T for joint in joints)
        E = len(topic)
        order = np.argsort(np.concatenate([topic, word], axis=1).argmax(axis=1), kind="stable")
        topic, word = (kind[order] for kind in (topic, word))            # [E, kinds]
        topic, word = (kind[:, np.argsort(kind.argmax(axis=0), kind="stable")]
                       for kind in (topic, word))
        maps.append(np.concatenate([topic, np.full((E, 1), np.nan), word], axis=1))
    draw_maps(axis, maps, "share of the topic's or word's gates", cmap="Blues", vmin=0)
    axis.set_xticks([TOPICS / 2 - 0.5, TOPICS + WORDS / 2 + 0.5],
                    [f"{TOPICS} topics", f"{WORDS} words"])
    axis.tick_params(length=0)


def draw_maps(axis, maps, label, **colours):
    """Two maps [E, N], that without losses above. -> the bar of their colours"""
    E, N = maps[0].shape
    image = axis.imshow(np.concatenate([maps[0], np.full((2, N), np.nan), maps[1]]),
                        aspect="auto", interpolation="nearest", **colours)
    bar = axis.figure.colorbar(image, ax=axis, fraction=0.06, pad=0.02, label=label)
    bar.outline.set_visible(False)
    axis.set_yticks([E / 2 - 0.5, E * 1.5 + 1.5], [f"{E} experts, no losses",
                                                   f"{E} experts, with (0.1, 0.1)"],
                    rotation=90, va="center")
    axis.tick_params(length=0, axis="y")
    axis.spines[:].set_visible(False)
    return bar


def draw_capacity(axis, models):
    """Perplexity against how many experts there are for each that is used."""
    here = [model["perplexity"] for model in models.values()]
    for perplexities, more, style, colour, label in [
            (here, [1, 2, 4, 8], HERE, BLUE, "topics, 2 experts used"),
            (list(TABLE_7.values()), [1, 8, 64, 256, 1024], PAPER, "black",
             "paper, 4 experts used")]:
        one = np.mean(perplexities[1])
        for x, values in zip([0.3, *more], perplexities):
            axis.plot(np.full(np.size(values), x), values / one, color=colour, **style)
        axis.plot(more, [np.mean(values) / one for values in perplexities[1:]], color=colour,
                  linewidth=1)
        axis.plot([], [], color=colour, label=label, **{**style, "linestyle": "-"})
    axis.set_xscale("log", base=2)
    axis.set_xticks([0.3, 1, 2, 4, 8, 64, 256, 1024],
                    ["one\nwide", "1", "2", "4", "8", "64", "256", "1024"])
    axis.minorticks_off()
    axis.set(xlabel="experts for each one that is used", ylim=(0, 1.2),
             ylabel="perplexity, times that of experts always on")
    axis.legend(fontsize=8, loc="lower left")


def draw_endings(axis, endings):
    """Eight experts, in two rows of four; the last character stands out."""
    axis.set(xlim=(0, 4), ylim=(2 * SHOWN + 3.2, -0.6))
    axis.set_axis_off()
    for e, shown in enumerate(endings[:8]):
        x, top = e % 4 + 0.5, (e // 4) * (SHOWN + 2.2)
        axis.text(x, top, f"expert {e + 1}", ha="center", va="center", fontsize=9, weight="bold",
                  color=BLUE)
        for i, ending in enumerate(shown):
            before, last = ending[:-1], ending[-1]
            for characters, colour, weight in [(before + " ", GREY, "normal"),
                                               (" " * len(before) + last, RED, "bold")]:
                axis.text(x, top + 1.1 + i, characters, ha="center", va="center",
                          family="monospace", fontsize=10, color=colour, weight=weight,
                          parse_math=False)

"""A product-of-experts posterior on paired digits: what trains its experts, what one missing costs.

The paper's data sets are out of reach; two modalities of handwritten digits stand in for them
(``minimoe.experiments.modalities``). Encoders are 64-128-(10, 10) and decoders 10-128-64, with
ReLU; pixels are Laplace of scale 0.75 around sigmoids; beta rises over 10 of 30 epochs, as
released. Every row is trained with three seeds, which share data, starting weights and draws.

Trained by the joint bound alone, an encoder need never do without the other; sub-sampled, the
bounds of both modalities alone are added to it. *Weakly supervised* rows keep a few of the pairs,
and of all others one modality, drawn at random. Codes are means of posteriors, the prior expert
included. In float32.
"""
from typing import NamedTuple

import numpy as np

from minimoe import ops
from minimoe.autodiff.tensor import grad
from minimoe.densities import gaussian_kl, gaussian_sample, log_mean_exp
from minimoe.experiments import harness, modalities
from minimoe.experiments.harness import Claim, Result, Table, spread
from minimoe.experiments.modalities import EPOCHS, LATENT, each, over_seeds
from minimoe.papers.mmvae_2019 import laplace_log_likelihood
from minimoe.papers.mvae_2018 import (
    annealing_factor, decode, encode, importance_log_likelihood, init, objective, posterior_of,
    subsets)

SEEDS = 3
ANNEALING = 10         # epochs
DRAWS = 100            # of a posterior, by which likelihoods are estimated
ACTIVE = 0.1           # nats, from which a dimension of the posterior is in use
GIVEN = {"both": (0, 1), "itself": None, "the other": None, "neither": ()}
LIKELIHOODS = (laplace_log_likelihood, laplace_log_likelihood)
JOINT, SUB, AT_ONCE = "joint bound only", "sub-sampled", "sub-sampled, not annealed"
WEAK = {f"{share:.0%} of pairs kept": share for share in (0.3, 0.1, 0.03)}


# -- The experiment ------------------------------------------------------------------------------

class Case(NamedTuple):
    row: str
    seed: int
    alone: bool = True          # whether the bounds of single modalities are climbed too
    annealing: int = ANNEALING  # epochs; 1: none
    paired: float = 1.0         # the share of pairs that are complete
    epochs: int = EPOCHS
    n_train: int = modalities.TRAIN
    n_test: int = modalities.TEST


class Run(NamedTuple):
    measures: dict     # of numbers
    shown: dict        # what the figure shows of it


def plan(quick):
    """What is trained. A quick run has one seed, and one epoch on few digits, of each."""
    cases = []
    for seed in range(1 if quick else SEEDS):
        cases += [Case(JOINT, seed, alone=False), Case(SUB, seed),
                  Case(AT_ONCE, seed, annealing=1),
                  *(Case(row, seed, paired=share) for row, share in WEAK.items())]
    return [case._replace(epochs=1, n_train=100, n_test=100) if quick else case for case in cases]


def run(settings):
    """Every case of ``plan``."""
    cases = plan(settings.quick)
    runs = harness.in_parallel(settings, trained, cases, "all runs")
    found = over_seeds(cases, [one.measures for one in runs])
    first = {case.row: one.shown for case, one in zip(cases, runs) if case.seed == 0}
    return Result(
        "The multimodal VAE with a product-of-experts posterior (Wu and Goodman, 2018), on pairs "
        "of digits that share their class",
        [*judged(found), *reported(found)],
        [table_of_coherence(found), table_of_missing(found)],
        draw(found, first),
        {"cases": [case._asdict() for case in cases], "latent": LATENT,
         "hidden": modalities.HIDDEN, "batch": modalities.BATCH, "rate": modalities.RATE,
         "found": found,
         "objective": {row: shown["history"] for row, shown in first.items()}})


# -- Training ------------------------------------------------------------------------------------

def trained(settings, case):
    rng, start, training, test = np.random.default_rng([settings.seed, case.seed]).spawn(4)
    data = modalities.problem(rng, case.n_train, case.n_test)
    present = kept(rng, len(data.train.label), case.paired)
    chosen = subsets(2) if case.alone else subsets(2)[:1]

    def step(params, x, rng, epoch, batch, n_batches):
        *x, here = x
        epsilons = rng.standard_normal((len(chosen), len(here), LATENT), "f")
        climbed = objective(
            params, x, chosen, harness.move(settings, epsilons), LIKELIHOODS,
            None if case.paired == 1 else here.T,
            beta=annealing_factor(batch, epoch, n_batches, case.annealing))
        return climbed, grad(climbed, params)

    params, history = modalities.train(
        settings, training, init(start, modalities.WIDTHS, LATENT, modalities.HIDDEN),
        (data.train.a, data.train.b, present), step, case.epochs)
    measures, shown = measured(params, data, test)
    return Run(measures, {**shown, "history": history})


def kept(rng, n, paired):
    """Which modalities a pair keeps: both in the share that is complete, else A or B. -> [n, 2]"""
    complete, only = rng.random((n, 1)) < paired, rng.random((n, 1)) < 0.5
    return complete | np.concatenate([only, ~only], axis=1)


# -- Measures ------------------------------------------------------------------------------------

def measured(params, data, rng):
    """Of a trained model on the test pairs: numbers, and what is shown."""
    judged = modalities.judges(data)
    train, test = (experts_of(params, pairs) for pairs in (data.train, data.test))
    codes = [tuple(posterior_of(experts, (m,)).mean for experts in (train, test))
             for m in range(2)]
    both = [posterior_of(experts, (0, 1)).mean for experts in (train, test)]
    draws = rng.standard_normal((modalities.FROM_PRIOR, LATENT), "f")
    classify = modalities.logistic_regression(both[0], data.train.label)
    dimensions = gaussian_kl(*posterior_of(test, (0, 1))).mean(axis=0)   # [D]
    measures = {
        **modalities.coherences(params.decoders, codes, draws, data, judged),
        "latent_both": float((classify(both[1]) == data.test.label).mean()),
        "kl": float(dimensions.sum()), "active": int((dimensions > ACTIVE).sum()),
        **likelihoods(params, data.test, test, rng)}
    return measures, pictures(params, data.test, codes, both, draws) | {
        "dimensions": np.sort(dimensions)[::-1]}


def experts_of(params, pairs):
    return [encode(encoder, a) for encoder, a in zip(params.encoders, (pairs.a, pairs.b))]


def likelihoods(params, pairs, experts, rng):
    """How well a modality is foretold by both, by itself, by the other, by neither.

    log of its density averaged over draws from the posterior given these, and over modalities; and
    that of the pair, by importance sampling from the posterior given both.
    """
    x = pairs.a, pairs.b
    draws = rng.standard_normal((DRAWS, len(pairs.label), LATENT), "f")
    found = {}
    for given in GIVEN:
        each_of = []
        for m in range(2):
            members = {"both": (0, 1), "itself": (m,), "the other": (1 - m,), "neither": ()}[given]
            z = gaussian_sample(*posterior_of(experts, members), draws) if members else draws
            log_p = LIKELIHOODS[m](x[m], decode(params.decoders[m], z))   # [K, N]
            each_of.append(float(log_mean_exp(log_p, axis=0).mean()))
        found[f"given {given}"] = float(np.mean(each_of))
    found["log_p"] = float(importance_log_likelihood(
        params.decoders, x, posterior_of(experts, (0, 1)), draws, LIKELIHOODS).mean())
    return found


def pictures(params, pairs, codes, both, draws):
    """One of each digit across and back, and what draws from the prior become."""
    at = modalities.one_of_each(pairs.label)
    a, b, joint = (z[at] for z in (codes[0][1], codes[1][1], both[1]))
    some = draws[:20].reshape(2, 10, -1)

    def image(m, z):
        return ops.sigmoid(decode(params.decoders[m], z))

    return {"a": pairs.a[at], "b": pairs.b[at], "a_to_b": image(1, a), "b_to_a": image(0, b),
            "both_to_a": image(0, joint), "both_to_b": image(1, joint),
            "prior_a": image(0, some), "prior_b": image(1, some)}


# -- Claims --------------------------------------------------------------------------------------

def across(row):
    """Cross coherence, the mean of both directions. [seeds]"""
    return (row["a_to_b"] + row["b_to_a"]) / 2


def judged(found):
    joint, sub = across(found[JOINT]), across(found[SUB])
    yield Claim(
        "Sub-sampling matters: with the bounds of single modalities, cross-generation hits the "
        "class more often than with the joint bound alone, by at least 0.15 on average.",
        "said, for inference with missing modalities",
        f"{each(sub)} against {each(joint)}: {(sub - joint).mean():+.2f}",
        bool((sub - joint).mean() >= 0.15))


def reported(found):
    sub, joint, at_once = found[SUB], found[JOINT], found[AT_ONCE]
    yield Claim(
        "What a missing modality costs, in nats of log p of one modality, given both, itself, the "
        "other or neither.",
        "not said so",
        "; ".join(f"{row}: " + ", ".join(f"{found[row]['given ' + given].mean():.1f}"
                                         for given in GIVEN) for row in (JOINT, SUB)), None)
    yield Claim(
        "Sub-sampling costs the model of whole pairs next to nothing: log p of a pair, by "
        "importance sampling.",
        "MNIST, sub-sampled: bounds of 188.8 nats",
        f"{spread(joint['log_p'], 1)} with the joint bound only, {spread(sub['log_p'], 1)} "
        "sub-sampled", None)
    yield Claim(
        "Annealing keeps dimensions of the posterior in use.",
        "used throughout, no comparison",
        f"{sub['active'].mean():.1f} of {LATENT} dimensions in use with, "
        f"{at_once['active'].mean():.1f} without; KL {sub['kl'].mean():.1f} and "
        f"{at_once['kl'].mean():.1f} nats; cross coherence {across(sub).mean():.2f} and "
        f"{across(at_once).mean():.2f}", None)
    yield Claim(
        "Does not carry over to as few images: that a small share of complete pairs is enough. "
        "Codes of one modality stay readable, and crossing is lost with the pairs.",
        "MNIST, 60,000 images: a few per cent of pairs nearly do",
        "; ".join(f"{row}: {across(found[row]).mean():.2f}" for row in (SUB, *WEAK)), None)


# -- Tables --------------------------------------------------------------------------------------

def table_of_coherence(found):
    columns = {"a_to_b": "A to B", "b_to_a": "B to A", "joint": "joint", "latent_a": "latent A",
               "latent_b": "latent B", "latent_both": "latent A, B"}
    return Table(
        "How often the class is right; mean (SD) of seeds",
        ("", *columns.values()),
        [(row, *(spread(numbers[measure], 3) for measure in columns))
         for row, numbers in found.items()],
        "Across: class of what one modality's code is decoded to in the other. Joint: whether both "
        "decoders make the same class of a draw from the prior. Latent: a linear classifier of "
        "codes.")


def table_of_missing(found):
    return Table(
        "What a missing modality costs: mean log p of a modality, in nats, and of the pair; mean "
        "(SD) of seeds",
        ("", *(f"given {given}" for given in GIVEN), "log p(A, B)", "KL", "in use"),
        [(row, *(spread(numbers[f"given {given}"], 1) for given in GIVEN),
          spread(numbers["log_p"], 1), spread(numbers["kl"], 1), spread(numbers["active"], 1))
         for row, numbers in found.items()],
        f"By {DRAWS} draws from the posterior. In use: dimensions of the joint posterior whose KL "
        f"is above {ACTIVE} nats.")


# -- The figure ----------------------------------------------------------------------------------

BLUE, ORANGE, GREEN, GREY = "#14457d", "#d9822b", "#3f8f5f", "#8a8a8a"
DOT = {"linestyle": "", "marker": "o", "markersize": 7, "alpha": 0.75, "markeredgewidth": 0}


def draw(found, first):
    figure, axes = harness.panels(
        ["Sub-sampling teaches experts to work alone", "Across, from A to B and from B to A",
         "What a missing modality costs", "Few pairs among few images are not enough",
         "Annealing keeps dimensions in use", "Pairs drawn from the prior"],
        columns=3, size=(19, 10.5),
        title="A product of experts over two modalities that share the digit")
    draw_across(axes[0], found)
    draw_crossings(axes[1], first)
    draw_missing(axes[2], found)
    draw_weak(axes[3], found)
    draw_dimensions(axes[4], first)
    modalities.draw_images(
        axes[5], [first[row][f"prior_{m}"][i] for i in range(2) for row in (JOINT, SUB)
                  for m in "ab"],
        [f"{row}: {m}" for _ in range(2) for row in (JOINT, SUB) for m in "AB"])
    return figure


def draw_across(axis, found):
    rows = [JOINT, SUB, AT_ONCE]
    for aside, measure, colour, label in [
            (-0.2, "a_to_b", BLUE, "A to B"), (0, "b_to_a", ORANGE, "B to A"),
            (0.2, "joint", GREEN, "joint")]:
        for place, row in enumerate(rows):
            values = found[row][measure]
            axis.plot(np.full(len(values), place + aside), values, color=colour,
                      label=None if place else label, **DOT)
    axis.axhline(0.1, color=GREY, linewidth=1, linestyle=":", label="chance")
    axis.set_xticks(range(len(rows)), [row.replace(", ", ",\n") for row in rows])
    axis.set(ylim=(0, 1), ylabel="share with the right class")
    axis.legend(fontsize=9, loc="lower right")


def draw_crossings(axis, first):
    rows, labels = [], []
    for given, wanted in ("ab", "ba"):
        rows += [first[SUB][given], *(first[row][f"{given}_to_{wanted}"] for row in (JOINT, SUB)),
                 first[SUB][f"both_to_{wanted}"]]
        labels += [f"{given.upper()} given", JOINT, SUB, f"{SUB}, both given"]
    modalities.draw_images(axis, rows, labels)


def draw_missing(axis, found):
    for row, colour, aside in [(JOINT, ORANGE, -0.1), (SUB, BLUE, 0.1)]:
        means = []
        for place, given in enumerate(GIVEN):
            values = found[row][f"given {given}"]
            means.append(values.mean())
            axis.plot(np.full(len(values), place + aside), values, color=colour,
                      label=None if place else row, **DOT)
        axis.plot(np.arange(len(GIVEN)) + aside, means, color=colour, linewidth=1)
    axis.set_xticks(range(len(GIVEN)), GIVEN)
    axis.set(xlabel="given", ylabel="log p of a modality, nats")
    axis.legend(fontsize=9)


def draw_weak(axis, found):
    shares = [1, *WEAK.values()]
    for measure, colour, label in [("a_to_b", BLUE, "A to B"), ("b_to_a", ORANGE, "B to A"),
                                   ("latent_a", GREEN, "latent A"), ("latent_b", GREY, "latent B")]:
        values = [found[row][measure] for row in (SUB, *WEAK)]
        axis.plot(shares, [value.mean() for value in values], color=colour, linewidth=1)
        for place, share in enumerate(shares):
            axis.plot(np.full(len(values[place]), share), values[place], color=colour,
                      label=None if place else label, **DOT)
    axis.axhline(0.1, color=GREY, linewidth=1, linestyle=":")
    axis.set_xscale("log")
    axis.set_xticks(shares, [f"{share:.0%}" for share in shares])
    axis.minorticks_off()
    axis.set(ylim=(0, 1), xlabel="pairs that are complete", ylabel="share with the right class")
    axis.legend(fontsize=9, loc="lower right")


def draw_dimensions(axis, first):
    for aside, row, colour in [(-0.2, SUB, BLUE), (0.2, AT_ONCE, ORANGE)]:
        axis.bar(np.arange(LATENT) + aside, first[row]["dimensions"], 0.4, color=colour,
                 label="annealed" if row == SUB else "not annealed")
    axis.set_xticks(range(LATENT), range(1, LATENT + 1))
    axis.set(xlabel="dimension of the joint posterior, by its KL", ylabel="KL, nats")
    axis.legend(fontsize=9)

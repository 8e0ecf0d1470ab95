"""Adaptive mixtures of local experts on real vowels: Table 1 and Figures 2 and 3 of the paper.

Two pairs of overlapping vowels are told apart by their first two formants
(``minimoe.data.peterson_barney.two_pairs``). Mixtures of 4 and 8 experts and back-propagation
networks with 6 and 12 hidden units, of as many parameters, descend their errors with all cases at
once and a fixed step, until the mean squared error of the blend is at most 0.08. The paper found
the step of each system by a limited search, but gives neither the steps nor the scale of the
starting weights: here N(0, 0.1^2) throughout, gates at 0, and the table of steps shows how the four
in ``SYSTEMS`` fare among others. Gradients are averaged over cases. All starts of a system are one
batch, which a start leaves once it has converged.
"""
from typing import Any, Callable, NamedTuple

import numpy as np

from minimoe import ops, tree
from minimoe.autodiff.tensor import Tensor, grad, stop_gradient
from minimoe.backend import special, to_numpy
from minimoe.data.peterson_barney import two_pairs
from minimoe.experiments import harness
from minimoe.experiments.harness import Claim, Result, Table, spread
from minimoe.papers.local_experts_1991 import (
    backprop_init, backprop_outputs, blend, competitive_error, cooperative_error, init,
    local_experts, mixing_proportions, mixture_error)

CRITERION = 0.08       # mean squared error of the blend over the training cases, Section 3
LIMIT = 5000           # of epochs
IN_USE = 0.05          # an expert is, if its proportion exceeds this on some training case
ENTIRELY = 0.9         # and has a vowel to itself, if its mean proportion on it exceeds this
VOWELS = {"iy": "[i] heed", "ih": "[\u026a] hid", "aa": "[a] hod", "ah": "[\u028c] hud"}
PAPER = {              # Table 1: epochs, their SD, % correct in training and in test
    "4 experts": (1124, 23, 88, 90), "8 experts": (1083, 12, 88, 90),
    "backprop 6": (2209, 83, 88, 90), "backprop 12": (2435, 124, 88, 90)}


# -- Systems and their training ------------------------------------------------------------------

class System(NamedTuple):
    init: Callable     # rng, scale -> params
    errors: Callable   # params, x, d -> the error descended [..., N], what is predicted [..., N, O]
    step: float


class Trained(NamedTuple):
    params: Any            # tree of arrays [starts, ...], as each start ended
    epochs: np.ndarray     # [starts]   updates until the criterion; NaN where it was not met
    history: list          # (epoch, params), every ``watch`` epochs


def mixture(n_experts, step, error=mixture_error):
    """Local experts that descend one of the paper's three errors."""
    def errors(params, x, d):
        o, logits = local_experts(params, x)
        return error(d, o, logits), blend(stop_gradient(o), stop_gradient(logits))

    return System(lambda rng, scale: init(rng, n_experts, 3, 1, scale), errors, step)


def backprop(n_hidden, step):
    """The network that the paper compares with; half its squared error is descended."""
    def errors(params, x, d):
        y = backprop_outputs(params, x)
        return 0.5 * ops.square(d - y).sum(axis=-1), stop_gradient(y)

    return System(lambda rng, scale: backprop_init(rng, n_hidden, 3, 1, scale), errors, step)


def train(system, cases, starts, settings, label, *, scale=0.1, criterion=CRITERION, limit=LIMIT,
          watch=0):
    """Gradient descent from a number of starts at once, each until the criterion or the limit.

    Start r draws its weights from its own generator, so it is the same whatever their number.
    """
    rngs = np.random.default_rng(settings.seed).spawn(starts)
    params = tree.map(lambda *a: np.stack(a), *(system.init(rng, scale) for rng in rngs))
    ended = tree.map(np.copy, params)
    epochs = np.full(starts, np.nan)
    running = np.arange(starts)                     # which start each entry of the batch is
    history = []
    params, x, d = harness.move(settings, (params, cases.x, cases.d))
    with harness.progress(starts, label) as bar:
        for epoch in range(limit + 1):
            tensors = tree.map(Tensor, params)
            errors, predicted = system.errors(tensors, x, d)
            squared = to_numpy(((d - predicted) ** 2).mean(axis=(-2, -1)))     # [running]
            done = squared <= criterion
            watched = watch and epoch % watch == 0
            if watched or done.any() or epoch == limit:
                _store(ended, params, running)
            if watched:
                history.append((epoch, tree.map(np.copy, ended)))
            epochs[running[done]] = epoch
            bar.set_postfix_str(f"epoch {epoch}", refresh=False)
            bar.update(int(done.sum()))
            if done.all():
                break
            gradients = grad(errors.mean(axis=-1).sum(), tensors)
            params = tree.map(lambda p, g: p - system.step * g, params, gradients)
            if done.any():
                left = harness.move(settings, np.flatnonzero(~done))
                params, running = tree.map(lambda p: p[left], params), running[~done]
    return Trained(ended, epochs, history)


def _store(ended, params, running):
    """Write the parameters of the starts that still run where the host keeps those of all."""
    for all_starts, p in zip(tree.leaves(ended), tree.leaves(params)):
        all_starts[running] = to_numpy(p)


SYSTEMS = {"4 experts": mixture(4, step=20), "8 experts": mixture(8, step=20),
           "backprop 6": backprop(6, step=14), "backprop 12": backprop(12, step=32)}
ERRORS = {"cooperative, Eq. (1.1)": mixture(4, step=4, error=cooperative_error),
          "competitive, Eq. (1.2)": mixture(4, step=8, error=competitive_error),
          "mixture, Eq. (1.3)": mixture(4, step=16, error=mixture_error)}


# -- The experiment ------------------------------------------------------------------------------

def run(settings):
    """All of Section 3; a quick run has 2 starts in place of 25."""
    training, test = two_pairs()
    starts, fewer, fewest = (2, 2, 1) if settings.quick else (25, 10, 5)

    main = {name: train(system, training, starts, settings, name, watch=5)
            for name, system in SYSTEMS.items()}
    slow = train(mixture(4, step=4), training, fewest, settings, "4 experts, small step", watch=10,
                 limit=300 if settings.quick else LIMIT)
    found = {name: measured(SYSTEMS[name], trained, training, test)
             for name, trained in main.items()}
    contrast = {name: cooperation(train(system, training, fewer, settings, name), training)
                for name, system in ERRORS.items()}
    other_steps = {
        (name, step): main[name].epochs[:fewest] if step == system.step else train(
            system._replace(step=step), training, fewest, settings, f"{name}, step {step}").epochs
        for name, system in SYSTEMS.items()
        for step in ((32,) if settings.quick else (4, 8, 14, 20, 32))}
    other_scales = {
        (name, scale): train(SYSTEMS[name], training, fewer, settings,
                             f"{name}, weights {scale}", scale=scale).epochs
        for name in ("4 experts", "backprop 6")
        for scale in ((0.5,) if settings.quick else (0.3, 0.5))}
    centre = training.x[:, :2].mean(axis=0)                            # [2]
    alone = {name: nearest_point(line_of_one(training, vowels, settings), centre)
             for name, vowels in [("X", ["iy", "ih", "aa", "ah"]), ("T0", ["iy", "ih"]),
                                  ("T1", ["aa", "ah"])]}
    paths = np.stack([nearest_point(params.w_experts[..., 0].swapaxes(-2, -1), centre)
                      for _, params in slow.history])                  # [T, starts, E, 2]

    entropies = gate_entropies(main["4 experts"].history, training)
    claims = [*judged(found, contrast),
              meeting_at_X(paths, [epoch for epoch, _ in slow.history], alone["X"]),
              *reported(found, other_steps, other_scales)]
    return Result(
        "Adaptive mixtures of local experts (Jacobs, Jordan, Nowlan and Hinton, 1991), on the "
        "vowels of Peterson and Barney",
        claims,
        [table_1(found), table_of_tests(found), table_of_errors(contrast),
         table_of_entropies(entropies), table_of_steps(other_steps)],
        draw(training, main, found, contrast, entropies, paths[:, 0], alone),
        {"criterion": CRITERION, "starting_scale": 0.1,
         "steps": {name: system.step for name, system in {**SYSTEMS, **ERRORS}.items()},
         "systems": found, "errors": contrast,
         "gate_entropy": {epoch: values.mean() for epoch, values in entropies.items()},
         "epochs_by_step": {f"{name}, {step}": e for (name, step), e in other_steps.items()},
         "epochs_by_scale": {f"{name}, {scale}": e for (name, scale), e in other_scales.items()}})


def measured(system, trained, training, test):
    """What Table 1 is made of, one entry per start."""
    def percent_correct(cases):
        _, predicted = system.errors(trained.params, cases.x, cases.d)
        right = (predicted > 0.5) == (cases.d > 0.5)                   # [starts, N, O]
        return 100 * right.mean(axis=(-2, -1))

    found = {"parameters": sum(p[0].size for p in tree.leaves(trained.params)),
             "step": system.step, "epochs": trained.epochs,
             "training": percent_correct(training), "test": percent_correct(test)}
    if hasattr(trained.params, "w_gate"):
        p = mixing_proportions(local_experts(trained.params, training.x).logits)
        found["in_use"] = (p.max(axis=-2) > IN_USE).sum(axis=-1)       # [starts]
        found["proportions"] = mean_by_vowel(p, training)              # [starts, vowels, E]
    return found


def mean_by_vowel(p, cases):
    """[..., N, E] -> [..., vowels, E]"""
    return np.stack([p[..., cases.vowel == vowel, :].mean(axis=-2) for vowel in VOWELS], axis=-2)


def cooperation(trained, cases):
    """How good the blend is, and how good the experts are when picked by their proportions."""
    o, logits = local_experts(trained.params, cases.x)
    p = mixing_proportions(logits)
    return {"epochs": trained.epochs,
            "blend": cooperative_error(cases.d, o, logits).mean(axis=-1),      # [starts]
            "switch": competitive_error(cases.d, o, logits).mean(axis=-1),
            "largest_proportion": p.max(axis=-1).mean(axis=-1)}


def gate_entropies(history, cases):
    """-sum_i p_i log p_i, the mean over cases: {epoch: [starts]}"""
    def entropy(params):
        log_p = ops.log_softmax(local_experts(params, cases.x).logits, axis=-1)
        return -(np.exp(log_p) * log_p).sum(axis=-1).mean(axis=-1)

    return {epoch: entropy(params) for epoch, params in history}


def line_of_one(cases, vowels, settings):
    """The weights of a single expert trained on some vowels alone. [3]"""
    chosen = np.isin(cases.vowel, vowels)
    trained = train(mixture(1, step=4), cases._replace(x=cases.x[chosen], d=cases.d[chosen]),
                    1, settings, f"one expert, {' '.join(vowels)}", criterion=0.0,
                    limit=300 if settings.quick else 4000)
    return trained.params.w_experts[0, :, 0, 0]


def nearest_point(weights, centre):
    """The point nearest to the centre of those where an expert's output is one half: its line.

    The paper takes the one nearest to the origin, which does not tell these lines apart: those of
    both pairs pass it. [..., 3], [2] -> [..., 2]
    """
    normal = weights[..., :2]
    aside = (normal @ centre + weights[..., 2]) / (normal ** 2).sum(axis=-1)
    return centre - aside[..., None] * normal


# -- Claims --------------------------------------------------------------------------------------

def judged(found, contrast):
    """What the paper claims and this task can show."""
    four, eight, six, twelve = (found[name] for name in SYSTEMS)
    ratio = mean(four["epochs"]) / mean(six["epochs"])
    sd_ratio = deviation(four["epochs"]) / deviation(six["epochs"])
    in_use = np.concatenate([four["in_use"], eight["in_use"]])
    owners = [owners_of_pairs(system["proportions"]) for system in (four, eight)]
    share = np.concatenate([share for share, _ in owners])             # [starts]
    apart = np.concatenate([apart for _, apart in owners])             # [starts]
    test = {name: system["test"].mean() for name, system in found.items()}
    yield Claim(
        "Mixtures learn faster: every start converges, and 4 experts need less than 0.6 times the "
        "epochs of 6 hidden units.",
        "1124 epochs against 2209: 0.51 times, p >> 0.999",
        f"{converged(four, eight)}; {epochs_spread(four['epochs'])} epochs against "
        f"{epochs_spread(six['epochs'])}: "
        f"{ratio:.2f} times, p = {t_test(four, six)[1]:.0e}",
        bool(not np.isnan([four["epochs"], eight["epochs"]]).any() and ratio < 0.6))
    yield Claim(
        "The start matters less to them: the SD of the epochs of 4 experts is less than a quarter "
        "of that of 6 hidden units.",
        "SD 23 against 83: 0.28 times",
        f"SD {deviation(four['epochs']):.0f} against {deviation(six['epochs']):.0f}: "
        f"{sd_ratio:.2f} times",
        bool(sd_ratio < 0.25))
    yield Claim(
        f"2 or 3 experts stay in use in every run, of 4 and of 8: the others' proportions never "
        f"exceed {IN_USE}.",
        "all but 2 or 3 experts end with proportions of effectively 0, in all runs",
        f"{range_of(in_use)} in use over {in_use.size} runs",
        bool(((in_use == 2) | (in_use == 3)).all()))
    yield Claim(
        f"They divide the task as it is made: in every run one expert has a mean proportion above "
        f"{ENTIRELY} on both heed and hid, and another on both hod and hud.",
        "some experts go to the line between one pair of vowels, others to that of the other pair "
        "(Figure 3)",
        f"{apart.sum()} of {apart.size} runs; the least such proportion is {share.min():.3f}",
        bool((apart & (share > ENTIRELY)).all()))
    yield Claim(
        "All four generalise: mean test accuracy of at least 89 % each, and for back-propagation "
        "the test set is the easier one.",
        "88 % in training and 90 % in test, all four",
        "test " + ", ".join(f"{t:.1f}" for t in test.values()) + " %; backprop in training "
        f"{six['training'].mean():.1f} and {twelve['training'].mean():.1f} %",
        bool(min(test.values()) >= 89 and all(net["test"].mean() > net["training"].mean()
                                              for net in (six, twelve))))
    cooperative, _, mixed = (error["switch"] / error["blend"] for error in contrast.values())
    yield Claim(
        "The cooperative error leaves experts that are wrong on their own: picked by their "
        "proportions they do more than 1.4 times worse than the blend; under the mixture error, "
        "less than 1.1 times.",
        "argued in Section 1, not measured",
        f"{cooperative.mean():.3f} ({cooperative.min():.3f} to {cooperative.max():.3f}) and "
        f"{mixed.mean():.3f} ({mixed.min():.3f} to {mixed.max():.3f}) times, over "
        f"{mixed.size} starts",
        bool(cooperative.mean() > 1.4 and mixed.mean() < 1.1))


def meeting_at_X(paths, epochs, X):
    """What Figure 3 shows. [T, starts, E, 2], [T], [2]"""
    farthest = np.linalg.norm(paths - X, axis=-1).max(axis=-1)         # [T, starts]
    nearest, end = farthest.min(axis=0), farthest[-1]                  # [starts]
    when = np.array(epochs)[farthest.argmin(axis=0)]                   # [starts]
    return Claim(
        "At first all experts drift to X, the line that a single expert learns on all four vowels; "
        "then they part.",
        "drawn for one run (Figure 3)",
        f"the farthest of 4 experts' lines comes within {nearest.max():.2f} kHz of X, at epochs "
        f"{when.min()} to {when.max()} of {nearest.size} runs with a step of 4, and ends at least "
        f"{end.min():.2f} kHz away", None)


def reported(found, other_steps, other_scales):
    """What the paper says, or suggests, that this task does not carry; and how far it does."""
    four, eight, six, twelve = (found[name] for name in SYSTEMS)
    epochs = {name: epochs_spread(system["epochs"]) for name, system in found.items()}
    scales = sorted({scale for _, scale in other_scales})
    small, large = min(step for _, step in other_steps), max(step for _, step in other_steps)
    yield Claim(
        "Does not carry over: by how much mixtures win depends on the scale of the starting "
        "weights.",
        "the scale is not given",
        "epochs of 4 experts against 6 hidden units: " + "; ".join(
            f"from N(0, {s}^2) {epochs_spread(other_scales['4 experts', s])} against "
            f"{epochs_spread(other_scales['backprop 6', s])}, "
            f"{mean(other_scales['4 experts', s]) / mean(other_scales['backprop 6', s]):.2f} times"
            for s in scales), None)
    yield Claim(
        "Does not carry over: at one small step for both, mixtures and back-propagation need about "
        "as many epochs. Mixtures win because they stay stable at larger steps.",
        "each system has its own step, which is not given",
        f"at step {small}, {epochs_spread(other_steps['4 experts', small])} epochs of 4 experts, "
        f"{epochs_spread(other_steps['backprop 6', small])} of 6 hidden units", None)
    yield Claim(
        "Does not carry over: 8 experts are faster than 4 only at large steps.",
        "1083 epochs against 1124, p > 0.95",
        f"at their steps of 20, {epochs['8 experts']} against {epochs['4 experts']}; at step "
        f"{large}, {epochs_spread(other_steps['8 experts', large])} against "
        f"{epochs_spread(other_steps['4 experts', large])}", None)
    yield Claim(
        "12 hidden units are slower than 6, each at its own step.",
        "2435 epochs against 2209, p > 0.95",
        f"{epochs['backprop 12']} against {epochs['backprop 6']}, "
        f"p = {t_test(twelve, six)[1]:.0e}", None)
    yield Claim(
        "Does not carry over: that mixtures and networks are equally accurate. At the criterion, "
        "mixtures are a few points better in training.",
        "88 % in training and 90 % in test, all four",
        f"in training {four['training'].mean():.1f} and {eight['training'].mean():.1f} % against "
        f"{six['training'].mean():.1f} and {twelve['training'].mean():.1f} %", None)


def owners_of_pairs(proportions):
    """Who has each pair of vowels to itself. [starts, vowels, E] -> [starts], [starts] bool

    The lesser of the two owners' mean proportions on the vowels of its pair, and whether the owners
    are two experts.
    """
    pairs = proportions.reshape(len(proportions), 2, 2, -1).min(axis=2)    # [starts, pairs, E]
    owner = pairs.argmax(axis=-1)                                          # [starts, pairs]
    return pairs.max(axis=-1).min(axis=-1), owner[:, 0] != owner[:, 1]


def t_test(first, second):
    """Student's t of the epochs of two systems, variances pooled, and its two-sided p."""
    first, second = met(first["epochs"]), met(second["epochs"])
    if min(first.size, second.size) < 2:
        return np.nan, np.nan
    freedom = first.size + second.size - 2
    pooled = (first.size * first.var() + second.size * second.var()) / freedom
    with np.errstate(divide="ignore", invalid="ignore"):      # all starts alike
        t = (first.mean() - second.mean()) / np.sqrt(pooled * (1 / first.size + 1 / second.size))
    return t, special(t).betainc(freedom / 2, 0.5, freedom / (freedom + t * t))


def met(epochs):
    """The epochs of those starts that met the criterion."""
    return epochs[~np.isnan(epochs)]


def mean(epochs):
    """Over the starts that met the criterion; NaN where none did."""
    return met(epochs).mean() if met(epochs).size else np.nan


def deviation(epochs):
    """SD, with n - 1, over the starts that met the criterion; NaN where fewer than two did."""
    return met(epochs).std(ddof=1) if met(epochs).size > 1 else np.nan


def epochs_spread(epochs):
    return spread(met(epochs))


def converged(*systems):
    return " and ".join(f"{met(system['epochs']).size} of {system['epochs'].size}"
                        for system in systems) + " starts converge"


# -- Tables --------------------------------------------------------------------------------------

def table_1(found):
    rows = []
    for name, system in found.items():
        epochs, sd, training, test = PAPER[name]
        rows.append((name, str(system["parameters"]), f"{system['step']}",
                     f"{met(system['epochs']).size} of {system['epochs'].size}",
                     epochs_spread(system["epochs"]), f"{epochs} ({sd})",
                     spread(system["training"], 1), str(training),
                     spread(system["test"], 1), str(test),
                     range_of(system["in_use"]) if "in_use" in system else ""))
    return Table(
        f"Table 1: epochs until the mean squared error is {CRITERION} or less, mean (SD) of starts",
        ("system", "weights", "step", "converged", "epochs", "paper", "% training", "paper",
         "% test", "paper", "in use"), rows,
        f"in use: experts whose proportion exceeds {IN_USE} on some training case.")


def range_of(counts):
    low, high = counts.min(), counts.max()
    return str(low) if low == high else f"{low} to {high}"


def table_of_tests(found):
    compared = [("4 experts", "backprop 6", "p >> 0.999"),
                ("8 experts", "backprop 12", "p >> 0.999"),
                ("8 experts", "4 experts", "p > 0.95"), ("backprop 6", "backprop 12", "p > 0.95")]
    rows = []
    for first, second, paper in compared:
        a, b = found[first], found[second]
        t, p = t_test(a, b)
        rows.append((f"{first} against {second}",
                     f"{mean(a['epochs']) / mean(b['epochs']):.2f}",
                     f"{PAPER[first][0] / PAPER[second][0]:.2f}",
                     f"{t:.1f}", f"{p:.0e}", paper))
    freedom = met(found["4 experts"]["epochs"]).size + met(found["backprop 6"]["epochs"]).size - 2
    return Table("Are the differences in epochs more than chance?",
                 ("", "ratio", "paper", "t", "p of chance", "paper, 1 - p"), rows,
                 f"Student's t, two-sided, pooled variance, {freedom} degrees of freedom in the "
                 f"first row.")


def table_of_errors(contrast):
    rows = [(name, epochs_spread(error["epochs"]), spread(error["blend"], 4),
             spread(error["switch"], 4), f"{(error['switch'] / error['blend']).mean():.3f}",
             spread(error["largest_proportion"], 2)) for name, error in contrast.items()]
    return Table("Cooperation against competition: 4 experts, three errors, at the criterion",
                 ("error descended", "epochs", "blend's error", "switch's error", "ratio",
                  "largest proportion"), rows,
                 "switch: the expected error of one expert picked by the proportions, Eq. (1.2).")


def table_of_entropies(entropies):
    last = max(entropies)
    rows = [(f"{epoch}", spread(entropies[epoch], 3))
            for epoch in sorted({0, 50, 100, 150, 200, 300, 500, last} & set(entropies))]
    return Table("How symmetry breaks: entropy of the gate of 4 experts, in nats, mean over cases",
                 ("epoch", "mean (SD) over starts"), rows,
                 "log 4 = 1.386: no preference at all. A start that has converged keeps its last.")


def table_of_steps(other_steps):
    steps = sorted({step for _, step in other_steps})

    def cell(epochs):
        done = met(epochs)
        failed = "" if done.size == epochs.size else f" [{done.size} of {epochs.size}]"
        return (f"{done.mean():.0f}" if done.size else "never") + failed

    rows = [(name, *(cell(other_steps[name, step]) for step in steps)) for name in SYSTEMS]
    return Table("Mean epochs by step, a few starts each", ("system", *map(str, steps)), rows,
                 f"[n of m]: so many starts converged within {LIMIT} epochs.")


# -- The figure ----------------------------------------------------------------------------------
# The first start is the one that is drawn.

COLOURS = {"iy": "#1f5fa8", "ih": "#6fb1e6", "aa": "#b03a1b", "ah": "#f0a050"}
MARKERS = {"iy": "o", "ih": "^", "aa": "s", "ah": "D"}
FIRST, SECOND, IDLE = "#14457d", "#8c2a10", "#9a9a9a"   # expert of each pair, expert of none


def draw(training, main, found, contrast, entropies, path, alone):
    figure, axes = harness.panels(
        ["Who decides where: vowels, experts and the gate", "The experts' lines while they learn",
         "The symmetry breaks", "Epochs until the criterion: faster, and surer",
         "Cooperation leaves experts that need each other", "Who takes which vowel"],
        columns=3, size=(17, 10.5),
        title="Adaptive mixtures of local experts on the vowels of Peterson and Barney")
    params = tree.map(lambda p: p[0], main["4 experts"].params)
    proportions = found["4 experts"]["proportions"][0]                 # [vowels, E]
    owners = proportions.reshape(2, 2, -1).min(axis=1).argmax(axis=-1)   # [pairs]
    draw_plane(axes[0], training, params, dict(zip(owners.tolist(), (FIRST, SECOND))))
    draw_paths(axes[1], training, path, alone)
    draw_entropies(axes[2], entropies)
    draw_epochs(axes[3], found)
    draw_contrast(axes[4], contrast)
    draw_proportions(axes[5], proportions)
    return figure


def draw_plane(axis, cases, params, owners):
    """Figure 2: data, the line on which each expert's output is one half, the gate's boundaries."""
    low, high = np.array([0.15, 0.7]), np.array([1.25, 3.7])
    F1, F2 = np.meshgrid(*(np.linspace(a, b, 300) for a, b in zip(low, high)))
    plane = np.stack([F1, F2, np.ones_like(F1)], axis=-1).reshape(-1, 3)
    best = local_experts(params, plane).logits.argmax(axis=-1).reshape(F1.shape)
    for expert, colour in owners.items():
        axis.contourf(F1, F2, best == expert, levels=[0.5, 1.5], colors=[colour], alpha=0.1)
    if best.max() > best.min():
        axis.contour(F1, F2, best, levels=np.arange(best.min(), best.max()) + 0.5, colors="black",
                     linewidths=1.2, linestyles="dashdot")
    for vowel, label in VOWELS.items():
        x = cases.x[cases.vowel == vowel]
        axis.plot(x[:, 0], x[:, 1], MARKERS[vowel], color=COLOURS[vowel], markersize=4.5,
                  markeredgecolor="white", markeredgewidth=0.4, label=label)
    for expert, weights in enumerate(params.w_experts[:, :, 0].T):     # [3]
        point = nearest_point(weights, (low + high) / 2)
        along = point + np.array([-weights[1], weights[0]])
        name = f"line of expert {expert + 1}"
        if expert in owners:
            axis.axline(point, along, color=owners[expert], linewidth=2.4, label=name)
        elif (low < point).all() and (point < high).all():
            axis.axline(point, along, color=IDLE, linewidth=0.9, linestyle=":",
                        label=f"{name}, idle")
    axis.plot([], [], "-.", color="black", linewidth=1.2, label="boundary of the gate")
    axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]),
             xlabel="first formant F1 (kHz)", ylabel="second formant F2 (kHz)")
    axis.legend(fontsize=8, loc="upper right")


def draw_paths(axis, cases, path, alone):
    """Figure 3: where each expert's line is, every tenth epoch. [T, E, 2]"""
    for vowel in VOWELS:
        x = cases.x[cases.vowel == vowel]
        axis.plot(x[:, 0], x[:, 1], MARKERS[vowel], color=COLOURS[vowel], markersize=3, alpha=0.2)
    ends = [np.linalg.norm(path[-1] - alone[name], axis=-1).argmin() for name in ("T0", "T1")]
    colours = {**dict.fromkeys(range(path.shape[1]), IDLE), ends[0]: FIRST, ends[1]: SECOND}
    for expert, colour in colours.items():
        axis.plot(*path[:, expert].T, ".-", color=colour, markersize=4, linewidth=0.8)
    for colour, label in [(FIRST, "expert that ends at T0"), (SECOND, "expert that ends at T1"),
                          (IDLE, "idle in the end")]:
        axis.plot([], [], ".-", color=colour, markersize=4, linewidth=0.8, label=label)
    axis.legend(fontsize=8, loc="upper right")
    for name, point in alone.items():
        axis.plot(*point, "*", color="black", markersize=14, markeredgecolor="white", zorder=4)
        axis.annotate(name, point, xytext=(9, 8), textcoords="offset points", weight="bold",
                      fontsize=12)
    axis.set(xlim=(0, 1.5), ylim=(0.5, 3.2), ylabel="F2 (kHz)",
             xlabel="F1 (kHz). A line is drawn as its point nearest to the centre of the data.\n"
                    "X, T0, T1: one expert alone, on all vowels, on [i] and [\u026a], on [a] and "
                    "[\u028c]")


def draw_entropies(axis, entropies):
    epochs, values = list(entropies), np.stack(list(entropies.values()))   # [T, starts]
    axis.axvspan(100, 200, color="#f3e3b3", label="epochs 100 to 200")
    axis.plot(epochs, values, color="#7d8fb3", linewidth=0.6, alpha=0.7)
    axis.plot([], [], color="#7d8fb3", linewidth=0.6, label="one start")
    axis.plot(epochs, values.mean(axis=-1), color=FIRST, linewidth=2.5, label="mean of all starts")
    axis.axhline(np.log(4), color="black", linestyle="--", linewidth=1,
                 label="log 4: no preference at all")
    axis.set(xlabel="epoch", ylabel="entropy of the gate (nats), mean over cases", ylim=(0, 1.5))
    axis.legend(fontsize=8)


def draw_epochs(axis, found):
    """One dot a start, in order, and the paper's mean and SD beside them."""
    for place, (name, system) in enumerate(found.items()):
        epochs = np.sort(met(system["epochs"]))
        colour = FIRST if "in_use" in system else SECOND
        aside = np.linspace(-0.22, 0.1, len(epochs))
        axis.plot(place + aside, epochs, "o", color=colour, alpha=0.55, markersize=5)
        paper, sd, *_ = PAPER[name]
        axis.errorbar(place + 0.3, paper, sd, fmt="D", color="black", markersize=6, capsize=4)
    axis.plot([], [], "o", color=FIRST, label="mixtures, every start")
    axis.plot([], [], "o", color=SECOND, label="back-propagation, every start")
    axis.errorbar([], [], [], fmt="D", color="black", capsize=4, label="the paper's mean and SD")
    axis.set_xticks(range(len(found)), found)
    axis.set(ylabel="epochs", ylim=(0, None))
    axis.legend(fontsize=8, loc="upper left")


def draw_contrast(axis, contrast):
    place = np.arange(len(contrast))
    for shift, kind, colour, label in [(-0.2, "blend", "#8fb8de", "the blend of all experts"),
                                       (0.2, "switch", FIRST, "one expert, picked by the gate")]:
        values = np.array([error[kind].mean() for error in contrast.values()])
        axis.bar(place + shift, values, 0.38, color=colour, label=label)
        for x, value in zip(place + shift, values):
            axis.text(x, value + 0.002, f"{value:.3f}", ha="center", fontsize=9)
    axis.axhline(CRITERION, color="black", linestyle="--", linewidth=1, label="the criterion")
    axis.set_xticks(place, [name.replace(", ", "\n") for name in contrast])
    axis.set(ylabel="mean squared error when training stops", ylim=(0, 0.18),
             xlabel="error that was descended")
    axis.legend(fontsize=8, loc="upper right")


def draw_proportions(axis, proportions):
    """[vowels, E]"""
    axis.imshow(proportions, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(proportions):
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=12,
                  color="white" if value > 0.5 else "black")
    axis.set_xticks(range(proportions.shape[1]),
                    [f"expert {e + 1}" for e in range(proportions.shape[1])])
    axis.set_yticks(range(len(VOWELS)), VOWELS.values())
    axis.set_xlabel("mean proportion of each expert on each vowel, at the end")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)

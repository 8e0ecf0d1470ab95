"""Hierarchical mixtures of experts: EM on a tree that fits a broken line.

The paper's own data come from the simulator of a robot arm, which is not available. In its place, a
function of four straight pieces: 400 inputs uniform on (-2, 2), targets with noise of SD 0.1. The
tree has two levels of two branches and linear Gaussian leaves; all weights start from N(0, 0.5^2).
Trees with learnt variances show what is fitted. Those with their variance kept at 0.05 show how
fast, against gradient ascent from the same starts: there both climb the same function of the same
weights. All starts are one batch.
"""
from typing import NamedTuple

import numpy as np

from minimoe import ops, tree
from minimoe.autodiff.tensor import Tensor, grad
from minimoe.backend import to_numpy
from minimoe.experiments import harness
from minimoe.experiments.harness import Claim, Result, Table
from minimoe.papers.hierarchical_1994 import (
    GAUSSIAN, GAUSSIAN_FIXED_VARIANCE, HierarchicalParams, em_step, em_step_least_squares,
    gate_log_probabilities, init, log_paths, log_terms, predict, tree_log_likelihood)

CASES, NOISE = 400, 0.1
BRANCHING = (2, 2)
EM_STEPS = 60
KEPT_VARIANCE = 0.05
RATES = (0.03, 0.1, 0.3)         # of gradient ascent, on the gradient's mean over cases
GAIN_STEPS, GAIN = 40, 0.98      # converged: this share of what EM gains in that many steps
NO_FALL = 1e-8                   # relative to the log likelihood: less is rounding
GRID = np.linspace(-2, 2, 801)


class Fit(NamedTuple):
    params: tuple                # HierarchicalParams of arrays [starts, ...]
    l: np.ndarray                # [steps + 1, starts]   log likelihood before and after each step


def broken_line(x):
    """-2x - 2, x + 1, 1 - 2x, -1 + (x - 1) / 2: joined at -1, 0 and 1. [...] -> [...]"""
    return np.select([x < -1, x < 0, x < 1], [-2 * x - 2, x + 1, 1 - 2 * x], -1 + 0.5 * (x - 1))


def inputs(x):
    """With their constant 1. [N] -> [N, 2]"""
    return np.stack([x, np.ones_like(x)], axis=-1)


def run(settings):
    """EM, Algorithm 2, gradient ascent; a quick run has 2 starts of each, in place of 10, 10, 5."""
    starts, fewer, ascent_steps = (2, 2, 300) if settings.quick else (10, 5, 3000)
    rng = np.random.default_rng(settings.seed)
    x = rng.uniform(-2, 2, CASES)                                      # [N]
    y = broken_line(x) + NOISE * rng.standard_normal(CASES)            # [N]
    data = harness.move(settings, (inputs(x), y[:, None]))
    params = tree.map(lambda *a: np.stack(a),
                      *(init(r, BRANCHING, 2, 1) for r in rng.spawn(starts)))
    params = harness.move(settings, params)
    kept = params._replace(variance=0 * params.variance + KEPT_VARIANCE)

    learnt = fit("EM, learnt variances", params, data, em_step, GAUSSIAN)
    em = fit("EM, kept variance", kept, data, em_step, GAUSSIAN_FIXED_VARIANCE)
    algorithm_2 = fit("Algorithm 2", kept, data, em_step_least_squares, GAUSSIAN_FIXED_VARIANCE)
    ascent = {rate: gradient_ascent(tree.map(lambda p: p[:fewer], kept), data, rate, ascent_steps)
              for rate in RATES}

    line, *_ = np.linalg.lstsq(inputs(x), y, rcond=None)
    errors = {"line": distance(inputs(GRID) @ line),
              **{name: distance(tree_on_grid(f)) for name, f in
                 [("learnt", learnt), ("em", em), ("algorithm_2", algorithm_2)]}}
    target = em.l[0] + GAIN * (em.l[GAIN_STEPS] - em.l[0])             # [starts]
    arrival = {"em": first_at(em.l, target),
               **{rate: first_at(l, target[:fewer]) for rate, l in ascent.items()}}

    claims = [rises(learnt, em), beats_the_line(errors, learnt.l), faster(arrival, em, ascent),
              not_every_start(errors), lets_l_fall(algorithm_2, em), not_reproduced()]
    return Result(
        "Hierarchical mixtures of experts and the EM algorithm (Jordan and Jacobs, 1994), on a "
        "broken line",
        claims, [table_of_errors(errors), table_of_iterations(arrival, em, ascent)],
        draw(x, y, line, learnt, em, algorithm_2, ascent, errors),
        {"cases": CASES, "noise": NOISE, "branching": BRANCHING, "em_steps": EM_STEPS,
         "starting_scale": 0.5, "kept_variance": KEPT_VARIANCE, "ascent_steps": ascent_steps,
         "mean_squared_errors": errors, "iterations_to_gain": arrival,
         "log_likelihood": {"learnt": learnt.l[-1], "em": em.l[-1],
                            "algorithm_2": algorithm_2.l[-1],
                            **{rate: l[-1] for rate, l in ascent.items()}}})


# -- Fits ----------------------------------------------------------------------------------------

def log_likelihood(params, data, leaf):
    """l, Eq. (2.13), of every start. -> [starts]"""
    return tree_log_likelihood(*log_terms(params, *data, leaf)).sum(axis=-1)


def fit(label, params, data, step, leaf):
    """As many steps of EM, or of what stands in for it."""
    l = [to_numpy(log_likelihood(params, data, leaf))]
    with harness.progress(EM_STEPS, label) as bar:
        for _ in range(EM_STEPS):
            params = step(params, *data, leaf)
            l.append(to_numpy(log_likelihood(params, data, leaf)))
            bar.update()
    return Fit(tree.map(to_numpy, params), np.stack(l))


def gradient_ascent(params, data, rate, steps):
    """l on the way up its gradient, Eqs. (2.14)-(2.16), by autodiff. -> [steps + 1, starts]

    The variances stay. Where too large a rate takes l out of the range of numbers, to minus
    infinity, a start stands still.
    """
    weights, history = (params.w_gates, params.w_leaves), []
    with harness.progress(steps, f"gradient ascent, rate {rate}") as bar, \
            np.errstate(over="ignore", invalid="ignore"):
        for _ in range(steps + 1):
            tensors = tree.map(Tensor, weights)
            l = log_likelihood(HierarchicalParams(*tensors, params.variance), data,
                               GAUSSIAN_FIXED_VARIANCE)                # [starts]
            history.append(l.array)
            moves = (abs(l.array) < np.inf)[:, None, None, None]       # [starts, 1, 1, 1]
            weights = tree.map(lambda w, g: ops.where(moves, w + rate / CASES * g, w),
                               weights, grad(l.sum(), tensors))
            bar.update()
    return np.stack([to_numpy(l) for l in history])


def tree_on_grid(fitted):
    """[starts, 801]"""
    return predict(fitted.params, inputs(GRID), GAUSSIAN)[..., 0]


def distance(prediction):
    """Mean squared error to the function itself, without noise. [..., 801] -> [...]"""
    return ((prediction - broken_line(GRID)) ** 2).mean(axis=-1)


def first_at(l, target):
    """The first iteration at which l has come to the target; NaN where it never does.

    [steps + 1, starts], [starts] -> [starts]
    """
    there = l >= target
    return np.where(there.any(axis=0), there.argmax(axis=0), np.nan)


# -- Claims --------------------------------------------------------------------------------------

def least_rise(fits):
    """The smallest step of l, relative to l, of each start."""
    return np.concatenate([(np.diff(f.l, axis=0) / abs(f.l[1:])).min(axis=0) for f in fits])


def rises(learnt, em):
    rise = least_rise([learnt, em])
    return Claim(
        f"EM never lowers the likelihood: no step of any run lowers l by more than {NO_FALL:.0e} "
        "of itself.",
        "guaranteed (Dempster, Laird and Rubin, 1977)",
        f"{(rise >= -NO_FALL).sum()} of {rise.size} runs, half of them with learnt variances; the "
        f"least step over {EM_STEPS} is {rise.min():+.0e} of l",
        bool((rise >= -NO_FALL).all()))


def beats_the_line(errors, l):
    """Of the start that a user would keep, who cannot see the errors: that of the highest l."""
    kept = errors["learnt"][l[-1].argmax()]
    return Claim(
        "A tree of linear experts fits what one line cannot: the run of the highest likelihood has "
        "less than a third of the best line's mean squared error to the function without noise.",
        "robot arm: relative error 0.10 against 0.31 of a linear fit, 0.32 times",
        f"{kept:.4f} against {errors['line']:.4f}, {kept / errors['line']:.4f} times; the highest "
        f"of {l.shape[1]} runs with learnt variances",
        bool(kept < errors["line"] / 3))


def not_every_start(errors):
    ratio = errors["learnt"] / errors["line"]                          # [starts]
    return Claim(
        "Does not carry over: that EM arrives from every start. Some stay at worse optima.",
        "robot arm: 10 of 10 runs converged; of back-propagation, 5",
        f"{(ratio < 1 / 3).sum()} of {ratio.size} runs end below a third of the line's error; "
        f"median {np.median(ratio):.3f} times, from {ratio.min():.4f} to {ratio.max():.2f}", None)


def faster(arrival, em, ascent):
    fastest = np.stack([np.nan_to_num(arrival[rate], nan=np.inf) for rate in RATES]).min(axis=0)
    by_em = arrival["em"][:fastest.size]
    arrived = fastest[np.isfinite(fastest)]
    best = np.max([l[-1] for l in ascent.values()], axis=0)            # [starts]
    limit = len(ascent[RATES[0]]) - 1
    return Claim(
        f"EM needs far fewer iterations: from every start it gains {GAIN:.0%} of what {GAIN_STEPS} "
        f"steps of EM gain before gradient ascent does, at the best of {len(RATES)} rates.",
        "robot arm: converged in 35 epochs; back-propagation in 5,500",
        f"EM after {by_em.min():.0f} to {by_em.max():.0f} iterations; gradient ascent in "
        f"{arrived.size} of {fastest.size} starts within {limit}"
        + (f", the first after {arrived.min():.0f}" if arrived.size else "")
        + f". At the end gradient ascent is higher in {(best > em.l[-1][:best.size]).sum()}",
        bool((by_em < fastest).all()))


def lets_l_fall(algorithm_2, em):
    falls = least_rise([algorithm_2]) < -NO_FALL
    below = algorithm_2.l[-1] < em.l[-1]
    return Claim(
        "Does not carry over: that least squares gates (Algorithm 2) do nearly as well as maximum "
        "likelihood ones. They come with no promise either.",
        "robot arm: relative error 0.12 after 39 epochs, against 0.10 after 35",
        f"l falls at some step in {falls.sum()} of {falls.size} starts, and ends below that of EM "
        f"in {below.sum()}", None)


def not_reproduced():
    return Claim(
        "A tree of 16 leaves fits the forward dynamics of a robot arm as well as back-propagation, "
        "in far fewer epochs (Tables 1 and 2).",
        "relative error 0.10 after 35 epochs against 0.09 after 5,500",
        "not measured: the simulator of the arm is not available", None)


# -- Tables --------------------------------------------------------------------------------------

def table_of_errors(errors):
    names = {"learnt": "EM, learnt variances", "em": f"EM, variance {KEPT_VARIANCE}",
             "algorithm_2": f"Algorithm 2, variance {KEPT_VARIANCE}"}
    rows = [(label, *(f"{value:.4f}" for value in
                      (errors[name].min(), np.median(errors[name]), errors[name].max())),
             f"{(errors[name] < 0.01).sum()} of {errors[name].size}")
            for name, label in names.items()]
    line = f"{errors['line']:.4f}"
    return Table(f"Mean squared error to the function without noise, after {EM_STEPS} steps",
                 ("", "best start", "median", "worst start", "below 0.01"),
                 [*rows, ("the best line", line, line, line, "")])


def table_of_iterations(arrival, em, ascent):
    def cell(iterations):
        return "never" if np.isnan(iterations) else f"{iterations:.0f}"

    rows = [(str(start + 1), cell(arrival["em"][start]),
             *(cell(arrival[rate][start]) for rate in RATES),
             f"{em.l[-1][start]:.1f}", *(f"{ascent[rate][-1][start]:.1f}" for rate in RATES))
            for start in range(len(arrival[RATES[0]]))]
    rates = [f"rate {rate}" for rate in RATES]
    return Table(f"EM against gradient ascent, variance {KEPT_VARIANCE}: iterations to {GAIN:.0%} "
                 f"of what {GAIN_STEPS} steps of EM gain, and l in the end",
                 ("start", "EM", *rates, "l: EM", *rates), rows,
                 f"EM ends after {EM_STEPS} steps, gradient ascent after "
                 f"{len(ascent[RATES[0]]) - 1}; -inf: it has diverged.")


# -- The figure ----------------------------------------------------------------------------------

LEAVES = ("#14457d", "#d9822b", "#3f8f5f", "#8c2a10")


def draw(x, y, line, learnt, em, algorithm_2, ascent, errors):
    best = int(learnt.l[-1].argmax())
    params = tree.map(lambda p: p[best], learnt.params)
    prior = np.exp(log_paths(gate_log_probabilities(params, inputs(GRID)))[-1])
    prior = prior.reshape(len(GRID), -1)                               # [801, leaves]
    figure, axes = harness.panels(
        ["A tree of four lines fits a broken line", "Who answers where: the gates of that tree",
         "How near each start comes to the function",
         "EM never lowers the likelihood", "EM against gradient ascent",
         "Algorithm 2 makes no promise"],
        columns=3, size=(17, 10.5), title="Hierarchical mixtures of experts, fitted by EM")
    draw_fit(axes[0], x, y, line, params, prior)
    axes[1].stackplot(GRID, prior.T, colors=LEAVES, alpha=0.75,
                      labels=[f"leaf {leaf + 1}" for leaf in range(len(LEAVES))])
    axes[1].set(xlabel="x", ylabel="prior of each leaf, stacked", xlim=(-2, 2), ylim=(0, 1))
    axes[1].legend(fontsize=8, loc="lower left")
    draw_errors(axes[2], errors)
    draw_rises(axes[3], learnt)
    draw_ascent(axes[4], em, ascent)
    draw_algorithm_2(axes[5], em, algorithm_2, len(ascent[RATES[0]][0]))
    return figure


def draw_fit(axis, x, y, line, params, prior):
    """Data and function; the tree's output; each leaf's line where the gates rely on it."""
    axis.plot(x, y, ".", color="#b9b9b9", markersize=4, label="data, with noise")
    axis.plot(GRID, broken_line(GRID), color="black", linewidth=1, linestyle="--",
              label="the function")
    axis.plot(GRID, inputs(GRID) @ line, color="#777777", linewidth=1.2, linestyle=":",
              label="the best line")
    for leaf, colour in enumerate(LEAVES):
        own = np.where(prior[:, leaf] > 0.5, inputs(GRID) @ params.w_leaves[:, leaf, 0], np.nan)
        axis.plot(GRID, own, color=colour, linewidth=7, alpha=0.35, solid_capstyle="butt",
                  label=f"leaf {leaf + 1}, where its prior exceeds one half")
    axis.plot(GRID, predict(params, inputs(GRID), GAUSSIAN)[:, 0], color="black", linewidth=1.6,
              label="the tree of the highest likelihood")
    axis.set(xlabel="x", ylabel="y", xlim=(-2, 2), ylim=(-2.1, 3.6))
    axis.legend(fontsize=8, loc="upper right")


def draw_errors(axis, errors):
    labels = {"learnt": "EM,\nlearnt variances", "em": f"EM,\nvariance {KEPT_VARIANCE}",
              "algorithm_2": f"Algorithm 2,\nvariance {KEPT_VARIANCE}"}
    for place, name in enumerate(labels):
        values = np.sort(errors[name])
        axis.plot(place + np.linspace(-0.2, 0.2, len(values)), values, "o", color="#14457d",
                  alpha=0.6)
        axis.plot([place - 0.3, place + 0.3], [np.median(values)] * 2, color="#14457d",
                  linewidth=2)
    axis.axhline(errors["line"], color="black", linestyle="--", linewidth=1, label="the best line")
    axis.plot([], [], "o", color="#14457d", label="one start")
    axis.plot([], [], color="#14457d", linewidth=2, label="median of the starts")
    axis.set_xticks(range(len(labels)), labels.values())
    axis.set(yscale="log", ylim=(1e-5, 0.5),
             ylabel="mean squared error to the function without noise")
    axis.legend(fontsize=8, loc="lower center", ncols=3)


def draw_rises(axis, learnt):
    axis.plot(learnt.l, color="#14457d", linewidth=1, alpha=0.7)
    axis.plot([], [], color="#14457d", label="one start, learnt variances")
    axis.set(xlabel="step of EM", ylabel="log likelihood")
    axis.legend(fontsize=8, loc="lower right")


def draw_ascent(axis, em, ascent):
    """On a logarithmic axis, so that both can be seen."""
    colours = dict(zip(RATES, ("#f0a050", "#b03a1b", "#b9b9b9")))
    for rate, l in ascent.items():
        axis.plot(np.arange(1, len(l) + 1), l, color=colours[rate], linewidth=0.9)
        axis.plot([], [], color=colours[rate], label=f"gradient ascent, rate {rate}")
    starts = ascent[RATES[0]].shape[1]
    axis.plot(np.arange(1, len(em.l) + 1), em.l[:, :starts], color="#14457d", linewidth=1.8)
    axis.plot([], [], color="#14457d", linewidth=1.8, label="EM")
    axis.set(xscale="log", xlabel="iteration, counted from 1", ylabel="log likelihood",
             ylim=(-800, 250))
    axis.legend(fontsize=8, loc="lower right")


def draw_algorithm_2(axis, em, algorithm_2, starts):
    """A few starts, or the lines hide each other."""
    axis.plot(em.l[:, :starts], color="#14457d", linewidth=1.8)
    axis.plot(algorithm_2.l[:, :starts], color="#b03a1b", linewidth=1)
    axis.plot([], [], color="#14457d", linewidth=1.8, label="EM")
    axis.plot([], [], color="#b03a1b", linewidth=1, label="Algorithm 2, from the same starts")
    axis.set(xlabel="step", ylabel="log likelihood", ylim=(-800, 250))
    axis.legend(fontsize=8, loc="lower right")

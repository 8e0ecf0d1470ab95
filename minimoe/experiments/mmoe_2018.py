"""A gate for each task: generated tasks of known relatedness, or UCI's census where it is given.

*Generated tasks* (Section 3.2): two tasks whose vectors have a cosine of p, fresh data at every
step, so that nothing can be overfitted. The paper leaves batch, steps, m, c, alpha and beta open;
here batches of 64, Adam at 0.01, c = 1, alpha_i = i, beta_i = (i - 1)^2 and noise of variance 0.01,
as in Google Research's generator but for m and the noise. Labels are standardised by a set of 2,000
cases of each run, on which the final loss is measured: squared error, averaged over both tasks, so
that 1 is the loss of predicting the mean. Two sizes: *narrow*, D = 10, experts of 4, m = 4, where
one gate has 4 numbers to serve both tasks with; and *the paper's*, D = 100, experts of 16, m = 2.
The three models have as many parameters by the paper's count. Runs of one setting are one batched
array, with tasks, data and starting weights of their own; the models of a run share tasks and data.

Thresholds of the claims are from a prototype of the same equations, which found the paper's order
(MMoE, then OMoE, then shared bottom) in no single setting: so what sets MMoE apart is judged at the
narrow size, what sets both gated models apart at the paper's, over both correlations together.

*Census* (Section 6.3), in place of them with ``--data FILE``: a third of the rows, drawn at random,
are held out; AUC on them of five runs, untuned, with the paper's figures beside it. The paper
trained on UCI's other file, with settings tuned for each model; so nothing but the correlation of
the labels is judged. On ``census-income.test`` the means of the four models lie within 0.001 of one
another, in an order that is not the paper's.
"""
from typing import Any, NamedTuple

import numpy as np

from minimoe import tree
from minimoe.autodiff.tensor import Tensor, grad
from minimoe.backend import to_numpy
from minimoe.data import census_income
from minimoe.experiments import harness
from minimoe.experiments.harness import Claim, Result, Table, spread
from minimoe.optim import adam, adam_init, cosine
from minimoe.papers import mmoe_2018 as paper

DATA = "UCI's Census-Income (KDD), census-income.data or census-income.test, plain or gzip"
BOTTOM, OMOE, MMOE, SINGLE = "shared bottom", "OMoE", "MMoE", "single task"
MODELS = (BOTTOM, OMOE, MMOE)
E, U, K = 8, 8, 2                 # experts, width of a tower's hidden layer, tasks
BATCH, RATE, C, NOISE = 64, 1e-2, 1.0, 0.1
MEASURED_ON = 2000                # cases of each run
WINDOW = 50                       # steps, over which a curve is averaged


# -- Models --------------------------------------------------------------------------------------

def init(model, rng, n_tasks, width, hidden):
    """One of the models, float32; the shared bottom as wide as makes the paper's count equal."""
    if model in (BOTTOM, SINGLE):
        hidden = paper.matched_width(K, E, width, hidden, U)
        params = paper.shared_bottom_init(rng, n_tasks, width, (hidden,), (U,))
    else:
        of_model = paper.omoe_init if model == OMOE else paper.mmoe_init
        params = of_model(rng, n_tasks, E, width, (hidden,), (U,))
    return tree.map(lambda a: a.astype(np.float32), params)


def outputs(model, params, x):
    """[R, B, D] -> [R, K, B]"""
    if model in (BOTTOM, SINGLE):
        return paper.shared_bottom(params, x)
    return (paper.omoe if model == OMOE else paper.mmoe)(params, x).y


def stacked(runs):
    """Parameters of runs side by side."""
    return tree.map(lambda *arrays: np.stack(arrays), *runs)


class Training(NamedTuple):
    """A model in training."""
    params: Any
    state: Any


def step(model, training, x, target, losses, rate):
    """The model a step later, and the loss of each run. [R, B, D], [R, K, B] -> Training, [R]"""
    params = tree.map(Tensor, training.params)
    loss = paper.multi_task_loss(losses(outputs(model, params, x), target))     # [R]
    updated = adam(training.params, grad(loss.sum(), params), training.state, learning_rate=rate)
    return Training(*updated), loss.array


# -- The experiment ------------------------------------------------------------------------------

def run(settings):
    if settings.data is not None:
        return on_census(settings)
    return on_generated_tasks(settings)


# -- Generated tasks -----------------------------------------------------------------------------

class Size(NamedTuple):
    name: str
    width: int
    hidden: int
    m: int
    steps: int
    correlations: tuple
    runs: int


NARROW = Size("narrow", 10, 4, 4, 2000, (0.5, 0.9, 1.0), 20)
PAPERS = Size("the paper's", 100, 16, 2, 4000, (0.5, 1.0), 16)


class Case(NamedTuple):
    """All runs of three models at one correlation."""
    size: Size
    p: float


class Found(NamedTuple):
    loss: dict       # model: [runs]      at the end
    curve: dict      # model: [windows]   of the training loss, mean over runs
    entropy: dict    # model: [runs]      of a gate over log E, mean over gates and cases
    overlap: Any     # [runs]             of MMoE's gates: sum_i min(g^1_i, g^2_i), mean over cases


def on_generated_tasks(settings):
    sizes = [PAPERS, NARROW]                            # the longest first
    if settings.quick:
        sizes = [size._replace(steps=2, runs=2) for size in sizes]
    cases = [Case(size, p) for size in sizes for p in size.correlations]
    results = harness.in_parallel(settings, trained, cases, "generated tasks")
    found = {size.name: {case.p: result for case, result in zip(cases, results)
                         if case.size == size} for size in sizes}
    pearson = correlations(settings, trials=2 if settings.quick else 20)
    return Result(
        "Multi-gate mixture-of-experts (Ma et al., 2018), on generated tasks of known relatedness",
        [*judged(found, pearson), *reported(found)],
        [table_of_losses(found, size) for size in sizes[::-1]] + [table_of_gates(found),
                                                                  table_of_pearson(pearson)],
        draw(found, pearson),
        {"sizes": {size.name: size._asdict() for size in sizes}, "experts": E, "tower": U,
         "batch": BATCH, "rate": RATE, "c": C, "noise": NOISE, "measured_on": MEASURED_ON,
         "window": WINDOW, "pearson": pearson,
         "found": {size: {p: one._asdict() for p, one in rows.items()}
                   for size, rows in found.items()}})


def sinusoids(m):
    """alpha and beta."""
    return range(1, m + 1), [(i - 1) ** 2 for i in range(1, m + 1)]


def generated(settings, rng, w, n, m):
    """Fresh cases of every run. [R, K, D] -> [R, n, D], [R, K, n]"""
    R, _, D = w.shape
    x = rng.standard_normal((R, n, D), np.float32)
    noise = np.float32(NOISE) * rng.standard_normal((R, K, n), np.float32)
    x, noise = harness.move(settings, (x, noise))
    return x, paper.labels(x, w, *sinusoids(m), noise)


def trained(settings, case):
    """The three models at one correlation. Of one seed, other correlations see the same draws."""
    size = case.size
    tasks, data, *starts = np.random.default_rng([settings.seed, size.width]).spawn(2 + size.runs)
    u = paper.orthonormal_pair(tasks.standard_normal((size.runs, K, size.width)))
    w = harness.move(settings, paper.task_vectors(u, case.p, C).astype(np.float32))
    x, y = generated(settings, data, w, MEASURED_ON, size.m)
    mean, deviation = y.mean(axis=-1, keepdims=True), y.std(axis=-1, keepdims=True)
    held_out = x, (y - mean) / deviation
    models = {}
    for model, rngs in zip(MODELS, zip(*(rng.spawn(len(MODELS)) for rng in starts))):
        params = harness.move(settings, stacked(
            [init(model, rng, K, size.width, size.hidden) for rng in rngs]))
        models[model] = Training(params, adam_init(params))
    losses = {model: [] for model in MODELS}
    for _ in range(size.steps):
        x, y = generated(settings, data, w, BATCH, size.m)
        y = (y - mean) / deviation
        for model in MODELS:
            models[model], loss = step(model, models[model], x, y, paper.squared_errors, RATE)
            losses[model].append(loss.mean() / K)
    return tree.map(to_numpy, measured(models, losses, *held_out))


def measured(models, losses, x, y):
    loss = {model: paper.squared_errors(outputs(model, training.params, x), y).mean(axis=(-2, -1))
            for model, training in models.items()}
    gates = {model: paper.gate(models[model].params.w_gate, x) for model in (OMOE, MMOE)}
    overlap = gates[MMOE].min(axis=-3).sum(axis=-1).mean(axis=-1)             # of [R, K, B, E]
    return Found(loss, {model: windows(values) for model, values in losses.items()},
                 {model: entropy(gate) for model, gate in gates.items()}, overlap)


def windows(values):
    """Means of WINDOW values, or of all where there are fewer. -> [windows]"""
    values = np.array([float(value) for value in values])
    size = min(WINDOW, len(values))
    return values[:len(values) // size * size].reshape(-1, size).mean(axis=1)


def entropy(gate):
    """1 for an even gate, 0 for one that has settled on one expert. [R, K, B, E] -> [R]"""
    gate = to_numpy(gate)
    terms = np.where(gate > 0, gate * np.log(np.maximum(gate, 1e-30)), 0)
    return -terms.sum(axis=-1).mean(axis=(-2, -1)) / np.log(gate.shape[-1])


# Pearson correlation of 10,000 labels, mean of 20 trials, of a prototype of the same equations
COSINES = (-1, -0.5, 0, 0.25, 0.5, 0.75, 0.9, 1)
PEARSON = {2: (-.816, -.407, 0, .209, .428, .676, .857, .997),
           4: (-.908, -.357, 0, .180, .366, .576, .751, .998),
           10: (-.555, -.212, 0, .109, .217, .341, .460, .999)}


def correlations(settings, trials):
    """Of generated labels: {m: [cosines, trials]}"""
    rng = np.random.default_rng([settings.seed, 1])
    settings = settings._replace(backend="numpy")
    found = {}
    for m in PEARSON:
        rows = []
        for p in COSINES:
            u = paper.orthonormal_pair(rng.standard_normal((trials, K, 10)))
            w = paper.task_vectors(u, p, C).astype(np.float32)
            _, y = generated(settings, rng, w, 10_000, m)
            rows.append([np.corrcoef(pair)[0, 1] for pair in y])
        found[m] = np.array(rows)
    return found


# -- Claims --------------------------------------------------------------------------------------

def loss_of(found, size, model, p):
    return found[size][p].loss[model]


def compared(pairs):
    """``0.0350 / 0.0212 = 1.65; ...``, and the ratios of means."""
    ratios = [float(a.mean() / b.mean()) for a, b in pairs]
    return "; ".join(f"{a.mean():.4f} / {b.mean():.4f} = {ratio:.2f}"
                     for (a, b), ratio in zip(pairs, ratios)), ratios


def judged(found, pearson):
    def narrow(model, p):
        return loss_of(found, NARROW.name, model, p)

    def papers(model):
        """Losses at both correlations, [2, runs]."""
        return np.stack([loss_of(found, PAPERS.name, model, p) for p in PAPERS.correlations])

    said, (at_half, at_1) = compared([(narrow(OMOE, p), narrow(MMOE, p)) for p in (0.5, 1.0)])
    yield Claim("Narrow: one gate is worse than two where tasks differ (OMoE over MMoE at least "
                "1.35 at p = 0.5) and not where they are the same (at most 1.4 at p = 1)",
                "OMoE degrades with the correlation, MMoE hardly", f"p = 0.5, 1: {said}",
                at_half >= 1.35 and at_1 <= 1.4)
    said, (one, two) = compared([(narrow(model, 0.5), narrow(model, 1.0))
                                 for model in (OMOE, MMOE)])
    yield Claim("Narrow: what less related tasks cost, loss at p = 0.5 over loss at 1, is at least "
                "1.5 for OMoE and at most 1.6 for MMoE", "as above", f"OMoE, MMoE: {said}",
                one >= 1.5 and two <= 1.6)
    deviations = [narrow(model, 0.5).std(ddof=1) for model in (OMOE, MMOE)]
    yield Claim("Narrow: runs of OMoE at p = 0.5 differ more than runs of MMoE (SD)",
                "OMoE's spread grows as the correlation falls",
                "{:.4f} against {:.4f}".format(*deviations), bool(deviations[0] > deviations[1]))
    said, ratios = compared([(papers(model), papers(BOTTOM)) for model in (OMOE, MMOE)])
    yield Claim("The paper's size: both gated models beat the shared bottom, 0.9 times its loss or "
                "less, at p = 0.5 and 1 together", "in every setting, on average",
                f"OMoE, MMoE: {said}", max(ratios) <= 0.9)
    deviation = {model: np.sqrt(papers(model).var(axis=1, ddof=1).mean()) for model in MODELS}
    yield Claim("The paper's size: runs of the gated models differ less than those of the shared "
                "bottom, 0.7 times its SD or less, both correlations together",
                "much larger variance of the shared bottom",
                f"OMoE {deviation[OMOE]:.4f}, MMoE {deviation[MMOE]:.4f}; shared bottom "
                f"{deviation[BOTTOM]:.4f}",
                bool(max(deviation[OMOE], deviation[MMOE]) <= 0.7 * deviation[BOTTOM]))
    off = max(np.abs(pearson[m].mean(axis=1) - PEARSON[m]).max() for m in PEARSON)
    rises = all((np.diff(pearson[m].mean(axis=1)) > 0).all() for m in PEARSON)
    yield Claim("The correlation of labels rises with the cosine p, and is what a prototype had, "
                "to 0.03", "rises with p (Figure 2)", f"off by at most {off:.3f}",
                bool(off <= 0.03 and rises))
    off, sizes = identities()
    yield Claim("Exactly: a shared bottom of 113 units and 14,818 parameters of MMoE at the "
                "paper's sizes; one expert is a shared bottom; equal gates are one gate, whose "
                "gradient is the sum of theirs; gates of 0 take the mean of the experts",
                "113", f"{sizes[0]} units, {sizes[1]:,} parameters; identities to {off:.0e}",
                sizes == (113, 14818) and off < 1e-12)


def identities():
    """How far what must be equal differs, in float64; and the sizes at which the paper counts."""
    rng = np.random.default_rng(0)
    x, cotangent = rng.standard_normal((6, 5)), rng.standard_normal((K, 6))
    many = paper.mmoe_init(rng, K, 4, 5, (3,), (2,))
    one = many._replace(w_gate=many.w_gate[:1])
    same = many._replace(w_gate=np.repeat(one.w_gate, K, axis=0))
    alone = paper.mmoe_init(rng, K, 1, 5, (3,), (2,))

    def gradients(model, params):
        tensors = tree.map(Tensor, params)
        return grad((model(tensors, x).y * cotangent).sum(), tensors)

    even = paper.mmoe(many._replace(w_gate=0 * many.w_gate), x)
    pairs = [(paper.mmoe(alone, x).y,
              paper.shared_bottom(paper.SharedBottomParams(alone.experts, alone.towers), x)),
             (paper.mmoe(same, x).y, paper.omoe(one, x).y),
             (gradients(paper.mmoe, same).w_gate.sum(axis=0),
              gradients(paper.omoe, one).w_gate[0]),
             (even.mixed, np.broadcast_to(even.experts.mean(axis=0), even.mixed.shape))]
    sizes = (paper.matched_width(2, 8, 100, 16, 8),
             sum(a.size for a in tree.leaves(paper.mmoe_init(rng, 2, 8, 100, (16,), (8,)))))
    return max(float(np.abs(a - b).max()) for a, b in pairs), sizes


def reported(found):
    """The paper's observations that no single setting here is held to."""
    for name, rows in found.items():
        places = {p: sorted(MODELS, key=lambda model: one.loss[model].mean())
                  for p, one in rows.items()}
        inner = "; ".join(f"p = {p:g}: " + " < ".join(
            f"{model} {spread(rows[p].loss[model], 4)}" for model in order)
            for p, order in places.items())
        yield Claim(f"Size {name}: the order of the mean losses",
                    "MMoE < OMoE < shared bottom, but MMoE and OMoE alike at p = 1", inner, None)
    for name, rows in found.items():
        least = "; ".join(f"p = {p:g}: " + ", ".join(f"{one.loss[model].min():.4f}"
                                                     for model in MODELS)
                          for p, one in rows.items())
        yield Claim(f"Size {name}: the least loss of {', '.join(MODELS)}", "comparable", least,
                    None)


# -- Tables --------------------------------------------------------------------------------------

def table_of_losses(found, size):
    rows = [(f"p = {p:g}", *(f"{spread(one.loss[model], 4)} {one.loss[model].min():.4f}"
                             for model in MODELS),
             f"{one.loss[OMOE].mean() / one.loss[MMOE].mean():.2f}")
            for p, one in found[size.name].items()]
    return Table(f"Final loss, size {size.name}: {size.runs} runs of {size.steps:,} steps",
                 ("", *MODELS, "OMoE / MMoE"), rows,
                 "Mean (SD) and least. D = {}, experts of {}, m = {}; shared bottom of {} units."
                 .format(size.width, size.hidden, size.m,
                         paper.matched_width(K, E, size.width, size.hidden, U)))


def table_of_gates(found):
    rows = [(f"{name}, p = {p:g}", spread(one.entropy[OMOE], 2), spread(one.entropy[MMOE], 2),
             spread(one.overlap, 2)) for name, rows in found.items() for p, one in rows.items()]
    return Table("What gates came to", ("", "entropy of OMoE's", "of MMoE's", "overlap of MMoE's"),
                 rows, "Entropy over log 8: 1 where all experts weigh the same, 0 where one has "
                       "all. Overlap: what both tasks' gates share, 1 where they are equal.")


def table_of_pearson(pearson):
    rows = [(f"m = {m}", *(f"{row.mean():.3f}" for row in values)) for m, values in pearson.items()]
    return Table("Pearson correlation of generated labels, 10,000 cases",
                 ("", *(f"p = {p:g}" for p in COSINES)), rows)


# -- Figure --------------------------------------------------------------------------------------

COLOURS = {BOTTOM: "#777777", OMOE: "#d9752b", MMOE: "#2f6da8", SINGLE: "#8e6bb0"}


def draw(found, pearson):
    figure, axes = harness.panels(
        ["Narrow experts: what less related tasks cost", "Narrow, p = 0.5: on the way",
         "The paper's size: every run's final loss", "Labels of generated tasks"],
        columns=2, size=(13, 9), title="A gate for each task")
    draw_narrow(axes[0], found[NARROW.name])
    draw_curves(axes[1], found[NARROW.name][0.5])
    draw_runs(axes[2], found[PAPERS.name])
    draw_pearson(axes[3], pearson)
    return figure


def draw_narrow(axis, rows):
    for shift, model in zip((-.012, 0, .012), MODELS):
        p = np.array(list(rows)) + shift
        losses = np.stack([one.loss[model] for one in rows.values()])
        axis.plot(p, losses.mean(axis=1), "-", color=COLOURS[model], linewidth=2, label=model)
        axis.plot(p, losses, "o", color=COLOURS[model], markersize=3, alpha=.45)
    axis.set(xlabel="p, the cosine of the tasks' vectors: 1 is the same task twice",
             ylabel="final loss, mean and runs", ylim=(0, None))
    axis.set_xticks(list(rows))
    axis.legend(fontsize=9)


def draw_curves(axis, one):
    for model, curve in one.curve.items():
        axis.plot(WINDOW * (np.arange(len(curve)) + .5), curve, color=COLOURS[model], linewidth=2,
                  label=model)
    axis.set(xlabel="step", ylabel="loss of new cases, mean of runs", yscale="log")
    axis.set_yticks([0.02, 0.05, 0.1, 0.2, 0.5, 1], ["0.02", "0.05", "0.1", "0.2", "0.5", "1"])
    axis.minorticks_off()
    axis.legend(fontsize=9)


def draw_runs(axis, rows):
    places, names = [], []
    for group, (p, one) in enumerate(rows.items()):
        for i, model in enumerate(MODELS):
            place, loss = 4 * group + i, one.loss[model]
            jitter = np.linspace(-.22, .22, len(loss))
            axis.plot(place + jitter, np.sort(loss), "o", color=COLOURS[model], markersize=4,
                      alpha=.7)
            axis.plot([place - .32, place + .32], [loss.mean()] * 2, color="black", linewidth=1.5)
            places.append(place)
            names.append(f"{model}\np = {p:g}")
    axis.set_xticks(places, names, fontsize=9)
    axis.set(ylabel="final loss: runs in order, and mean", ylim=(0, None))


def draw_pearson(axis, pearson):
    for (m, values), shade in zip(pearson.items(), ("#9ecae1", "#2f6da8", "#14355c")):
        axis.plot(COSINES, values.mean(axis=1), "o-", color=shade, label=f"m = {m} sinusoids")
        axis.plot(COSINES, PEARSON[m], "x", color="black", markersize=8)
    axis.plot([], [], "x", color="black", label="a prototype's")
    axis.plot([-1, 1], [-1, 1], "--", color="#777777", linewidth=1, label="none, and no noise: p")
    axis.set(xlabel="p, the cosine of the tasks' vectors", ylabel="Pearson correlation of labels")
    axis.legend(fontsize=9)


# -- Census --------------------------------------------------------------------------------------

GROUPS = {"group 1": ("income", "never_married"), "group 2": ("education", "never_married")}
TASKS = {"income": "income above $50,000", "education": "at least college",
         "never_married": "never married"}
CORRELATION = {"group 1": 0.1768, "group 2": 0.2373}     # absolute, of 10,000 rows
AUC = {"group 1": {       # the paper's: main task best and mean, auxiliary at that best and mean
    SINGLE: (.9398, .9337, .9933, .9922), BOTTOM: (.9361, .9295, .9915, .9921),
    OMOE: (.9387, .9319, .9928, .9923), MMOE: (.9410, .9359, .9926, .9927)},
    "group 2": {
    SINGLE: (.8843, .8792, .9933, .9922), BOTTOM: (.8836, .8813, .9927, .9917),
    OMOE: (.8852, .8813, .9915, .9912), MMOE: (.8860, .8826, .9932, .9924)}}
CENSUS_RATE, CENSUS_BATCH, CENSUS_HIDDEN = 3e-3, 512, 16


class CensusCase(NamedTuple):
    """All runs of one model on its tasks."""
    model: str
    tasks: tuple
    rows: Any                 # census_income.CensusIncome
    steps: int = 500
    runs: int = 5


def on_census(settings):
    with harness.reading():
        rows = census_income.read(settings.data)
        split(settings, rows)
    short = {"steps": 2, "runs": 2} if settings.quick else {}
    cases = [CensusCase(model, tasks, rows, **short) for model in (MMOE, OMOE, BOTTOM)
             for tasks in GROUPS.values()]
    cases += [CensusCase(SINGLE, (task,), rows, **short) for task in TASKS]
    results = harness.in_parallel(settings, trained_on_census, cases, "census")
    by_tasks = {(case.model, case.tasks): result for case, result in zip(cases, results)}
    found = {}                # group: {model: [tasks, runs]}
    for group, tasks in GROUPS.items():
        single = np.concatenate([by_tasks[SINGLE, (task,)] for task in tasks])
        found[group] = {SINGLE: single, **{model: by_tasks[model, tasks] for model in MODELS}}
    correlation = {group: float(np.corrcoef(*(getattr(rows, task) for task in tasks))[0, 1])
                   for group, tasks in GROUPS.items()}
    case = cases[0]
    return Result(
        "Multi-gate mixture-of-experts (Ma et al., 2018), on UCI's Census-Income",
        list(of_census(found, correlation)),
        [table_of_auc(found, group, case) for group in GROUPS], draw_census(found),
        {"rows": len(rows.income), "held_out": len(split(settings, rows)[1]),
         "inputs": Inputs(rows).width, "experts": E, "hidden": CENSUS_HIDDEN, "tower": U,
         "steps": case.steps, "runs": case.runs, "batch": CENSUS_BATCH, "rate": CENSUS_RATE,
         "correlation": correlation, "auc": found})


def split(settings, rows):
    """Rows to train on and rows held out, a third. ValueError where a label is all alike in one."""
    N = len(rows.income)
    order = np.random.default_rng([settings.seed, 2]).permutation(N)
    parts = order[N // 3:], order[:N // 3]
    for task in TASKS:
        label = getattr(rows, task)
        if not all(0 < label[part].sum() < len(part) for part in parts):
            raise ValueError(f"needs more rows than {N}: of those to train on or of those held "
                             f"out, all have the same label ({TASKS[task]})")
    return parts


class Inputs:
    """Rows as a network reads them: log(1 + n), standardised, of numbers; a 1 for other values."""

    def __init__(self, rows, train=slice(None)):
        numeric = np.log1p(rows.numeric)
        centre, deviation = numeric[train].mean(axis=0), numeric[train].std(axis=0)
        self.numeric = ((numeric - centre) / np.maximum(deviation, 1e-6)).astype(np.float32)
        ends = self.numeric.shape[1] + np.cumsum([len(levels) for levels in rows.levels])
        self.place = rows.nominal + np.concatenate([[self.numeric.shape[1]], ends[:-1]])
        self.width = int(ends[-1])

    def __call__(self, index):
        """[...] int -> [..., D]"""
        x = np.zeros((index.size, self.width), np.float32)
        x[:, :self.numeric.shape[1]] = self.numeric[index.ravel()]
        np.put_along_axis(x, self.place[index.ravel()], 1, axis=1)
        return x.reshape(*index.shape, self.width)


def trained_on_census(settings, case):
    """AUC of each task and run on the rows held out. [tasks, runs]"""
    train, held_out = split(settings, case.rows)
    inputs = Inputs(case.rows, train)
    label = np.stack([getattr(case.rows, task) for task in case.tasks]).astype(np.float32)
    order, *starts = np.random.default_rng([settings.seed, 3]).spawn(1 + case.runs)
    params = harness.move(settings, stacked(
        [init(case.model, rng, len(case.tasks), inputs.width, CENSUS_HIDDEN) for rng in starts]))
    training = Training(params, adam_init(params))
    for i in range(case.steps):
        index = train[order.integers(0, len(train), (case.runs, CENSUS_BATCH))]
        x, y = harness.move(settings, (inputs(index), label[:, index].swapaxes(0, 1).copy()))
        training, _ = step(case.model, training, x, y, paper.logistic_losses,
                           CENSUS_RATE * cosine(i, case.steps))
    score = np.concatenate([to_numpy(outputs(case.model, training.params, harness.move(
        settings, inputs(part)))) for part in np.array_split(held_out, -(-len(held_out) // 4096))],
        axis=-1)                                                       # [R, K, N]
    return np.array([[auc(one[k], label[k][held_out] > 0) for one in score]
                     for k in range(len(case.tasks))])


def auc(score, label):
    """The probability that a case of label True scores above one of label False; ties count half.

    By ranks, as in the test of Mann and Whitney. ValueError where all labels are the same.
    [N], [N] bool -> number
    """
    n_true, n_false = int(label.sum()), int((~label).sum())
    if not n_true or not n_false:
        raise ValueError("auc: needs cases of both labels; got one")
    _, place, n = np.unique(score, return_inverse=True, return_counts=True)
    rank = np.cumsum(n) - (n - 1) / 2                  # of equals the mean, from 1
    return float((rank[place][label].sum() - n_true * (n_true + 1) / 2) / (n_true * n_false))


def of_census(found, correlation):
    yield Claim("The labels correlate as in the paper, but for the sign, to 0.02",
                ", ".join(f"{group} {value:.4f}" for group, value in CORRELATION.items()),
                ", ".join(f"{group} {value:.4f}" for group, value in correlation.items()),
                all(abs(abs(correlation[group]) - value) <= 0.02
                    for group, value in CORRELATION.items()))
    for group, tasks in GROUPS.items():
        for k, place in ((0, 1), (1, 3)):
            mean = {model: row[k].mean() for model, row in found[group].items()}
            theirs = {model: row[place] for model, row in AUC[group].items()}
            yield Claim(f"{group.capitalize()}, {TASKS[tasks[k]]}: the order of the mean AUC",
                        ordered(theirs), ordered(mean), None)


def ordered(mean):
    return " > ".join(f"{model} {mean[model]:.4f}" for model in sorted(mean, key=mean.get)[::-1])


def table_of_auc(found, group, case):
    rows = []
    for model, (main, auxiliary) in found[group].items():
        best = main.argmax()
        paper_best, paper_mean, paper_at_best, paper_auxiliary = AUC[group][model]
        rows.append((model, spread(main, 4), f"{paper_mean:.4f}", f"{main[best]:.4f}",
                     f"{paper_best:.4f}", spread(auxiliary, 4), f"{paper_auxiliary:.4f}",
                     f"{auxiliary[best]:.4f}", f"{paper_at_best:.4f}"))
    main, auxiliary = (TASKS[task] for task in GROUPS[group])
    return Table(f"{group.capitalize()}: {main}; auxiliary task {auxiliary}. AUC on rows held out",
                 ("", "main mean", "paper", "best", "paper", "aux. mean", "paper", "at best",
                  "paper"), rows,
                 f"Mean (SD) of {case.runs} runs of {case.steps} steps, none of them tuned; the "
                 "paper's of 400, tuned for each model, on other rows. At best: the auxiliary task "
                 "in the run that is best at the main one; of single tasks, the run of that place.")


def draw_census(found):
    titles = [f"{group.capitalize()}: {TASKS[task]}" for group, tasks in GROUPS.items()
              for task in tasks]
    figure, axes = harness.panels(titles, columns=2, size=(12, 8),
                                  title="Census-Income: AUC on rows held out")
    places = [(group, k) for group in GROUPS for k in range(K)]
    for axis, (group, k) in zip(axes, places):
        for place, (model, row) in enumerate(found[group].items()):
            axis.plot(place + np.linspace(-.12, .12, len(row[k])), row[k], "o",
                      color=COLOURS[model], markersize=5)
            axis.plot([place - .25, place + .25], [row[k].mean()] * 2, color="black")
            axis.plot(place + .32, AUC[group][model][2 * k + 1], "x", color="black", markersize=8)
        axis.plot([], [], "o", color="black", label="a run; the line is their mean")
        axis.plot([], [], "x", color="black", label="the paper's mean")
        axis.set_xticks(range(len(found[group])), list(found[group]))
        axis.set_ylabel("AUC")
        axis.legend(fontsize=9)
    return figure

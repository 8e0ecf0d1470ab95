"""Products of experts on a grid, on bars and stripes, and on real handwritten digits.

Five studies, of which ``unigauss_grid`` has the first and ``boltzmann_machines`` the others: 15
unigauss experts on 24 clusters, beside a mixture of 15 Gaussians; the step of contrastive
divergence on machines of 8 visible and 4 hidden units, where all is known exactly; learning by the
exact gradient, by CD-k and by persistent chains; log Z by annealing; and a product for each digit,
whose score is read by a softmax. The paper's digits are 16 x 16 pixels from the post, these are
8 x 8 (``minimoe.data.digits``), so its error of 1.1 % is not what is tried for. All in float64.
"""
import numpy as np

from minimoe.experiments import harness
from minimoe.experiments.boltzmann_machines import (
    annealing, bars_and_stripes, cosines, digit_scores, features, learning_steps, patterns)
from minimoe.experiments.harness import Claim, Result, Table
from minimoe.experiments.modalities import image_grid
from minimoe.experiments.unigauss_grid import EXPERTS, MISSING, STAGES, is_thin, study

SCALES = (20, 5, 1)                          # of the weights of small machines
KS = (1, 2, 4, 8, 16, 32, 64)                # of CD-k
METHODS = {"exact gradient": "exact", "CD-10": 10, "CD-1": 1, "persistent chains": "persistent"}
HIDDEN = (8, 12)                             # of the machines whose log Z is estimated
LENGTHS = (100, 1000, 5000)                  # steps of annealing
READERS = {"raw": "largest score", "pixels": "softmax of pixels",
           "scores": "softmax of 10 scores", "normalised": "largest score less log Z by AIS",
           "nearest": "nearest of 1000 neighbours"}


# -- The experiment ------------------------------------------------------------------------------

def plan(quick):
    """What is run: {study: [(function, its arguments)]}, the longest first."""
    updates, machines, epochs, repeats = (100, 2, 3, 1) if quick else (4000, 6, 100, 3)
    stages = {1: 20, 2: 10} if quick else STAGES
    return {
        "grid": [(study, dict(stages=stages, fits=2 if quick else 30))] * (1 if quick else 4),
        "bars": [(bars_and_stripes, dict(method=method, machines=machines, updates=updates))
                 for method in METHODS.values()],
        "digits": [(digit_scores, dict(epochs=epochs, steps=20 if quick else 500))] * repeats,
        "features": [(features, dict(epochs=3 if quick else 658))],
        "annealing": [(annealing, dict(n_hidden=n_hidden, epochs=2 if quick else 60,
                                       lengths=(5, 10, 20) if quick else LENGTHS))
                      for n_hidden in HIDDEN],
        "steps": [(learning_steps, dict(machines=20 if quick else 200, scale=scale))
                  for scale in SCALES],
        "cosines": [(cosines, dict(machines=5 if quick else 40, ks=KS,
                                   chains=2 if quick else 50))]}


def run(settings):
    """Every part of ``plan``, each with a generator of its own."""
    planned = plan(settings.quick)
    parts = [(name, part) for name, several in planned.items() for part in several]
    rngs = np.random.default_rng(settings.seed).spawn(len(parts))
    cases = [(function, arguments, rng) for (_, (function, arguments)), rng in zip(parts, rngs)]
    found = {name: [] for name in planned}
    for (name, _), result in zip(parts, harness.in_parallel(settings, one, cases, "all parts")):
        found[name].append(result)
    best, lengths = best_start(found["grid"]), planned["annealing"][0][1]["lengths"]
    return Result(
        "Products of experts (Hinton, 1999) trained by contrastive divergence (Hinton, 2002), on a "
        "grid, on bars and stripes, and on handwritten digits",
        [*judged(found), *reported(found)],
        [table_of_grid(found["grid"], planned["grid"][0][1]["stages"]),
         table_of_steps(found["steps"]), table_of_cosines(found["cosines"][0]),
         table_of_bars(found["bars"]), table_of_annealing(found["annealing"], lengths),
         table_of_digits(found["digits"])],
        draw(found, best, lengths),
        {"plan": {name: [arguments for _, arguments in several]
                  for name, several in planned.items()},
         "grid": [{"score": start.score, "missing": start.missing, "thin": start.thin,
                   "params": start.params._asdict(), "mixture_score": start.mixture_score,
                   "mixture_missing": start.mixture_missing} for start in found["grid"]],
         "steps": dict(zip(map(str, SCALES), found["steps"])),
         "cosines": {**found["cosines"][0], "ks": KS},
         "bars": dict(zip(METHODS, found["bars"])), "annealing": found["annealing"],
         "digits": found["digits"], "features_on": found["features"][0]["on"]})


def one(settings, case):
    function, arguments, rng = case
    return function(settings, rng, **arguments)


def best_start(grid):
    """The start that ends with the best score."""
    return max(grid, key=lambda start: start.score[-1])


# -- Claims --------------------------------------------------------------------------------------

def judged(found):
    """What the papers claim, or imply, and these studies can show."""
    divergence, entropy = (100 * (found["steps"][0][measure] > 0).mean()
                           for measure in ("contrastive_divergence", "relative_entropy"))
    yield Claim(
        f"A step of CD-1 improves what it should: with weights from N(0, {SCALES[0]}^2), at least "
        "99 % of them lower CD_1, and 98 % raise the likelihood.",
        "almost always, and usually: histograms over 100,000 and 1,000 machines (unconfirmed)",
        f"{divergence:.1f} % and {entropy:.1f} % of {found['steps'][0]['relative_entropy'].size}",
        bool(divergence >= 99 and entropy >= 98))
    cos = found["cosines"][0]
    yield Claim(
        "The term that Eq. (3.6) leaves out is small: its cosine with minus the gradient of CD_1 "
        "exceeds 0.9 in every machine.",
        "small, and seldom against the others",
        f"cosine of at least {cos['divergence'].min():.3f}, median "
        f"{np.median(cos['divergence']):.3f}; {100 * cos['opposed']:.1f} % of single weights go "
        f"the other way", bool(cos["divergence"].min() > 0.9))
    medians = np.median(cos["expected"], axis=1)
    yield Claim(
        f"CD-k nears the gradient of the likelihood as k grows: the median cosine never falls, and "
        f"at k = {KS[-1]} that of every machine exceeds 0.99.",
        "as k grows, Q^k becomes Q^inf",
        ", ".join(f"{m:.4f}" for m in medians) + f" for k = {', '.join(map(str, KS))}; the least "
        f"at the end {cos['expected'][-1].min():.5f}",
        bool((np.diff(medians) > -1e-12).all() and cos["expected"][-1].min() > 0.99))
    yield from judged_grid(found["grid"])
    yield from judged_learning(found)
    yield judged_digits(found["digits"])


def judged_grid(grid):
    best = best_start(grid)
    vague = EXPERTS - best.thin.sum()
    yield Claim(
        "15 unigauss experts find the grid: in the best start 10 are thin strips, 5 along each "
        "axis, 5 stay vague, and the mean log density of the data exceeds 3.5.",
        "10 thin and 5 vague (Section 4)",
        f"{best.thin[0]} and {best.thin[1]} thin, {vague} vague, {best.score[-1]:.3f}; all starts: "
        + each(f"{start.thin.sum()} thin, {start.score[-1]:.2f}" for start in grid),
        bool((best.thin == 5).all() and best.score[-1] > 3.5))
    gains = np.array([start.score[-1] - start.score[0] for start in grid])
    yield Claim(
        "More steps of Gibbs sampling make it better: every start ends with a higher score than "
        "CD-1 leaves it with.",
        "CD-1 alone leaves clusters of very unequal weight (Murray's replication)",
        each(" to ".join(f"{score:.2f}" for score in start.score) for start in grid),
        bool((gains > 0).all()))
    yield Claim(
        "It makes data where it never saw any: the missing point of the grid gets a probability "
        "between 0.005 and 0.06 in the best start; a fair share is 0.04.",
        "the product generates data at the missing point",
        f"{best.missing[-1]:.4f}, and {best.mixture_missing:.0e} by a mixture of as many "
        f"Gaussians; all starts: {each(f'{start.missing[-1]:.4f}' for start in grid)}",
        bool(0.005 < best.missing[-1] < 0.06))


def judged_learning(found):
    ends = {name: run[max(run)].mean() for name, run in zip(METHODS, found["bars"])}
    exact, ten, single = (ends[name] for name in ("exact gradient", "CD-10", "CD-1"))
    yield Claim(
        "Few steps leave a bias: on bars and stripes, the log likelihood that CD-1 ends in is more "
        "than 0.2 below that of the exact gradient, that of CD-10 within 0.1 of it.",
        "CD-1 is biased, and works well enough",
        f"{exact:.3f} exact, {ten:.3f} by CD-10, {single:.3f} by CD-1; at best "
        f"{-np.log(len(patterns())):.3f}",
        bool(exact - single > 0.2 and abs(ten - exact) < 0.1))
    errors = [machine["estimates"] - machine["log_partition"] for machine in found["annealing"]]
    yield Claim(
        f"Annealed importance sampling finds log Z: with {LENGTHS[1]} steps and 100 chains, it is "
        "off by less than 0.15; and the machines are better than independent pixels.",
        "not in these papers",
        "; ".join(f"{h} hidden units: {machine['log_partition']:.3f}, off by {error[1]:+.3f}, log "
                  f"likelihood {machine['log_likelihood']:.2f} against "
                  f"{machine['independent_pixels']:.2f}"
                  for h, machine, error in zip(HIDDEN, found["annealing"], errors)),
        bool(all(abs(error[1]) < 0.15 and machine["log_likelihood"] > machine["independent_pixels"]
                 for machine, error in zip(found["annealing"], errors))))


def judged_digits(digits):
    accuracy = {reader: np.array([split[reader] for split in digits]) for reader in READERS}
    scores, raw, pixels = (accuracy[reader] for reader in ("scores", "raw", "pixels"))
    return Claim(
        "One product for each digit recognises digits, once a softmax has learnt how their scores "
        "compare: at least 0.96 right in each split; on average 0.08 more than by the largest "
        "score, and 0.015 more than by a softmax of the pixels.",
        "1.1 % errors, 5.1 % for nearest neighbours, on 16 x 16 pixels and more data",
        f"{each(f'{s:.3f}' for s in scores)} right, mean {scores.mean():.3f}; largest score "
        f"{raw.mean():.3f}; pixels {pixels.mean():.3f}",
        bool(scores.min() >= 0.96 and (scores - raw).mean() >= 0.08
             and (scores - pixels).mean() >= 0.015))


def reported(found):
    """What is worth knowing, and has no threshold."""
    best = best_start(found["grid"])
    yield Claim(
        "A mixture of as many Gaussians, fitted by EM, cannot: it has a Gaussian for each cluster "
        "or stretches one over several.",
        "a mixture cannot be sharper than its experts (Section 1)",
        f"mean log density {best.mixture_score:.3f} against {best.score[-1]:.3f}, with "
        f"{5 * EXPERTS - 1} against {5 * EXPERTS} parameters", None)
    rises = np.array([np.diff(start.score) > 0 for start in found["grid"]])
    yield Claim(
        "Not every stage need make every start better: one that is stuck with too few strips "
        "may lose a little.",
        "not said",
        f"{rises.sum()} of {rises.size} stages raise the score", None)
    accuracy = {reader: np.mean([split[reader] for split in found["digits"]])
                for reader in READERS}
    yield Claim(
        "It is log Z that the read-out learns: taken off by annealing, without any label for it, "
        "the largest score is about as good as the softmax.",
        "log Z is unknown, so the scores are read by a trained network",
        f"{accuracy['normalised']:.3f} right; softmax of scores {accuracy['scores']:.3f}, nearest "
        f"of 1000 neighbours {accuracy['nearest']:.3f}", None)
    ends = {name: run[max(run)].mean() for name, run in zip(METHODS, found["bars"])}
    yield Claim(
        "Persistent chains lie between CD-1 and CD-10 at a step of 0.1, which is large for them.",
        "not in these papers (Tieleman 2008)",
        f"log likelihood {ends['persistent chains']:.3f} at the end, "
        f"{max(v.mean() for v in found['bars'][3].values()):.3f} at best, against "
        f"{ends['CD-1']:.3f} by CD-1", None)
    yield Claim(
        "Of the features of one machine of all digits, about a third is on for an image.",
        "about a third of 500, on 16 x 16 pixels (unconfirmed)",
        f"{100 * found['features'][0]['on']:.0f} % of 100", None)


def each(values):
    return "; ".join(values)


# -- Tables --------------------------------------------------------------------------------------

def table_of_grid(grid, stages):
    rows = [(f"{i + 1}", *(f"{score:.3f}" for score in start.score), f"{start.thin.sum()}",
             f"{start.missing[0]:.4f}", f"{start.missing[-1]:.4f}", f"{start.mixture_score:.3f}",
             f"{start.mixture_missing:.0e}") for i, start in enumerate(grid)]
    return Table(
        "15 unigauss experts on 24 clusters: mean log density of the data after each stage",
        ("start", *(f"CD-{k}" for k in stages), "thin", "missing, first", "missing, last",
         "mixture", "its missing"), rows,
        "Uniform: 0; the clusters' own density: 4.005; 25 equal clusters: 3.964. missing: "
        "probability about the missing point.")


def table_of_steps(steps):
    rows = [(f"N(0, {scale}^2)", f"{100 * (falls['contrastive_divergence'] > 0).mean():.1f}",
             f"{100 * (falls['relative_entropy'] > 0).mean():.1f}")
            for scale, falls in zip(SCALES, steps)]
    return Table(f"A step of CD-1 on {steps[0]['relative_entropy'].size} small machines",
                 ("weights", "% that lower CD_1", "% that raise the likelihood"), rows)


def table_of_cosines(cos):
    rows = [(f"{k}", f"{np.median(expected):.5f}", f"{expected.min():.5f}",
             f"{np.median(sampled):.5f}", f"{sampled.min():.5f}")
            for k, expected, sampled in zip(KS, cos["expected"], cos["sampled"])]
    return Table(f"Cosine of CD-k with the gradient of the likelihood, {cos['expected'].shape[1]} "
                 f"machines with weights from N(0, 1)",
                 ("k", "expected: median", "least", "sampled: median", "least"), rows,
                 "sampled: 50 chains from each of 20 data, whose noise remains.")


def table_of_bars(bars):
    rows = [(name, *(f"{run[update].mean():.3f}" for update in ends(run)),
             f"{run[max(run)].min():.3f} to {run[max(run)].max():.3f}")
            for name, run in zip(METHODS, bars)]
    return Table(f"Bars and stripes: log likelihood as {bars[0][0].size} machines learn it, mean",
                 ("", *(f"{update}" for update in ends(bars[0])), "in the end"), rows,
                 f"No model has more than -log {len(patterns())} = "
                 f"{-np.log(len(patterns())):.3f}.")


def ends(run):
    """Some updates at which a run was watched: a quarter, a half and all of it."""
    last = max(run)
    return [max(u for u in run if u <= share * last) for share in (0.25, 0.5, 1)]


def table_of_annealing(machines, lengths):
    rows = [(f"{h} hidden units", f"{machine['log_partition']:.3f}",
             *(f"{estimate - machine['log_partition']:+.3f} ({effective:.0f})"
               for estimate, effective in zip(machine["estimates"], machine["effective"])))
            for h, machine in zip(HIDDEN, machines)]
    return Table("log Z, and how far annealing is off by its number of steps",
                 ("", "exact", *(f"{T} steps" for T in lengths)), rows,
                 "In brackets the effective number of the 100 chains.")


def table_of_digits(digits):
    rows = [(name, *(f"{split[reader]:.3f}" for split in digits),
             f"{np.mean([split[reader] for split in digits]):.3f}")
            for reader, name in READERS.items()]
    return Table("Digits: fraction of 497 test digits recognised",
                 ("read by", *(f"split {i + 1}" for i in range(len(digits))), "mean"), rows)


# -- The figure ----------------------------------------------------------------------------------

PRODUCT, MIXTURE, QUIET = "#14457d", "#b03a1b", "#9a9a9a"
COLOURS = {"exact gradient": "#222222", "CD-10": "#14457d", "CD-1": "#b03a1b",
           "persistent chains": "#e0952f"}


def draw(found, best, lengths):
    figure, axes = harness.panels(
        ["A mixture of 15 Gaussians on 24 clusters", "A product of 15 unigauss experts",
         "The experts of the product: strips", "CD-k nears the exact gradient",
         "What learning by each ends in: bars and stripes", "log Z by annealing",
         "Filters: 100 hidden units, the largest first", "Fantasies: where persistent chains end",
         "Digits: who reads the scores"],
        columns=3, size=(16, 15.5),
        title="Products of experts, trained by contrastive divergence")
    draw_density(axes[0], best.mixture_log_p, best.data,
                 f"mean log density {best.mixture_score:.2f}, missing point "
                 f"{best.mixture_missing:.0e}")
    draw_density(axes[1], best.log_p, best.data,
                 f"mean log density {best.score[-1]:.2f}, missing point {best.missing[-1]:.3f} "
                 f"(a fair share is 0.040)")
    draw_experts(axes[2], best)
    draw_cosines(axes[3], found["cosines"][0])
    draw_bars(axes[4], found["bars"])
    draw_annealing(axes[5], found["annealing"], lengths)
    w = found["features"][0]["w"].T                                    # [hidden, PIXELS]
    w = w[np.argsort(-np.linalg.norm(w, axis=-1))]
    draw_images(axes[6], w, "RdBu_r", np.abs(w).max() * 0.4)
    draw_images(axes[7], found["features"][0]["fantasies"], "Greys", None)
    draw_digits(axes[8], found["digits"])
    return figure


def draw_density(axis, log_p, data, caption):
    axis.imshow(log_p, origin="lower", extent=(0, 1, 0, 1), cmap="magma", vmin=-6, vmax=7,
                interpolation="antialiased")
    axis.plot(*data.T, ".", color="white", markersize=1.2, alpha=0.35)
    mark_missing(axis, "white")
    axis.set(xlabel=caption, xticks=[], yticks=[])


def mark_missing(axis, colour):
    axis.plot(*MISSING, "o", markersize=22, markerfacecolor="none", markeredgecolor=colour,
              markeredgewidth=1.5)
    axis.annotate("no data here", MISSING, xytext=(0, -26), textcoords="offset points",
                  color=colour, ha="center", fontsize=9)


def draw_experts(axis, best):
    """An ellipse of two standard deviations for each expert, cut off by the box."""
    from matplotlib.patches import Ellipse
    axis.plot(*best.data.T, ".", color=QUIET, markersize=3)
    sd = np.exp(-0.5 * best.params.log_tau)                            # [M, 2]
    pi = 1 / (1 + np.exp(-best.params.logit_pi))
    strips = is_thin(best.params)
    for mu, size, p, strip in zip(best.params.mu, sd, pi, strips):
        axis.add_patch(Ellipse(
            mu, *(4 * size), edgecolor=PRODUCT if strip else MIXTURE, linewidth=1.4,
            facecolor=PRODUCT if strip else "none", alpha=0.25 + 0.5 * p if strip else 0.6,
            linestyle="-" if strip else ":"))
    mark_missing(axis, "black")
    axis.set(xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[], aspect="equal",
             xlabel="2 SD of each Gaussian; dotted: experts that stay vague")


def draw_cosines(axis, cos):
    for name, colour, label in [("sampled", MIXTURE, "sampled, 1000 chains a machine"),
                                ("expected", PRODUCT, "expected, no noise")]:
        off = np.maximum(1 - cos[name], 1e-16)
        axis.fill_between(KS, off.min(axis=1), off.max(axis=1), color=colour, alpha=0.15)
        axis.plot(KS, np.median(off, axis=1), "o-", color=colour,
                  label=f"{label}: median and range")
    axis.set_xscale("log", base=2)
    axis.set_xticks(KS, map(str, KS))
    axis.set(yscale="log", xlabel="k", ylim=(1e-12, 1),
             ylabel="1 - cosine with the gradient of the likelihood")
    axis.legend(fontsize=8, loc="lower left")


def draw_bars(axis, bars):
    for (name, colour), run in zip(COLOURS.items(), bars):
        values = np.stack(list(run.values()))                          # [watched, machines]
        axis.plot(list(run), values, color=colour, linewidth=0.6, alpha=0.4)
        axis.plot(list(run), values.mean(axis=1), color=colour, linewidth=2.2,
                  label=f"{name}: {values[-1].mean():.2f}")
    axis.axhline(-np.log(len(patterns())), color=QUIET, linestyle="--", linewidth=1,
                 label="best possible: -2.64")
    axis.set(xlabel="updates", ylabel="log likelihood, mean over 14 patterns", ylim=(-6.4, -2.5))
    axis.legend(fontsize=8, loc="lower right")
    for i, pattern in enumerate(patterns()[[1, 3, 5, 9]]):
        inset = axis.inset_axes([0.05 + 0.11 * i, 0.76, 0.09, 0.09])
        inset.imshow(pattern.reshape(3, 3), cmap="Greys", vmin=0, vmax=1)
        inset.set(xticks=[], yticks=[])


def draw_annealing(axis, machines, lengths):
    for (h, colour), machine in zip(zip(HIDDEN, (PRODUCT, MIXTURE)), machines):
        axis.plot(lengths, machine["estimates"] - machine["log_partition"], "o-", color=colour,
                  label=f"{h} hidden units, log Z = {machine['log_partition']:.2f}")
    axis.axhspan(-0.15, 0.15, color="#f3e3b3", zorder=0)
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set(xscale="log", xlabel="steps of annealing, 100 chains", ylim=(-0.25, 0.25),
             ylabel="estimate less exact log Z")
    axis.legend(fontsize=8)


def draw_images(axis, images, cmap, limit):
    """[100, 64] as 10 x 10 pictures."""
    low, high = (0, 1) if limit is None else (-limit, limit)
    axis.imshow(image_grid(images.reshape(10, 10, 64)), cmap=cmap, vmin=low, vmax=high)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def draw_digits(axis, digits):
    for place, reader in enumerate(READERS):
        values = np.array([split[reader] for split in digits])
        colour = PRODUCT if reader in ("scores", "normalised") else QUIET
        axis.barh(place, values.mean(), color=colour, height=0.6)
        axis.plot(values, np.full(len(values), place + 0.38), "o", color="black", markersize=4)
        axis.text(0.61, place, f"{READERS[reader]}: {values.mean():.3f}", color="white",
                  va="center", fontsize=10, weight="bold")
    axis.set(xlim=(0.6, 1), ylim=(len(READERS) - 0.5, -0.5), yticks=[],
             xlabel="fraction of test digits recognised; a dot for each split")

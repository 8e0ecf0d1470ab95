"""Weighted products of experts: who is noise is not heard, and who knows nothing claims nothing.

The paper's hand poses and surgical videos are out of reach. Digits with a modality that may be
noise stand in for them: *frozen* experts, whose credibility alone is learnt (``frozen_experts``);
VAEs of *halves* and of *pairs* with a label (``noisy_modalities``). Gaussian *processes* show the
calibration that Cao and Fleet weigh experts for (``gaussian_processes``). The runs of one seed
share data, starting weights where shapes agree, and noise. Pairs are of float32, all else of
float64.
"""
import numpy as np

from minimoe.experiments import harness, modalities
from minimoe.experiments.frozen_experts import (
    ENTROPY, LEARNT, ORACLE, PLAIN, UNIFORM, WITH_PRIOR, Frozen, frozen_experts)
from minimoe.experiments.gaussian_processes import (
    COMMITTEE, EQUAL, FUSIONS, RAW, SEEN, WHOLE, Processes, calibration)
from minimoe.experiments.gaussian_processes import ENTROPY as NORMALIZED
from minimoe.experiments.gaussian_processes import PLAIN as OF_PROCESSES
from minimoe.experiments.harness import Claim, Result, Table, ranged, spread
from minimoe.experiments.noisy_modalities import (
    CLEAN, GPOE, LEVELS, MODALITIES, MVAE, POE, SCALED, UPON, Halves, Pairs, from_halves,
    from_pairs, gaussian_pixels)
from minimoe.papers.generalized_poe_2022 import (
    PriorExpert, fixed_weights, scaled_softmax_weights, sigmoid_weights)

SEEDS = {"frozen": 3, "halves": 4, "pairs": 3, "processes": 1}
SOFTMAX, ANY, ONE, LABEL, GAUSSIAN = (
    "softmax", "softmax, any level", "softmax, one score", "softmax, label too",
    "softmax, trained on gaussian")
FROZEN = {
    SOFTMAX: Frozen(), ANY: Frozen(all_levels=True), ONE: Frozen(n_scores=1),
    "scaled softmax": Frozen(weights=scaled_softmax_weights),
    "scaled softmax, prior": Frozen(weights=scaled_softmax_weights, prior=PriorExpert()),
    "sigmoid, prior": Frozen(weights=sigmoid_weights, prior=PriorExpert()),
    "constants": Frozen(weights=fixed_weights),
    GAUSSIAN: Frozen(pixels=gaussian_pixels), LABEL: Frozen(with_label=True)}
RUNS = {Frozen: frozen_experts, Halves: from_halves, Pairs: from_pairs, Processes: calibration}


# -- The experiment ------------------------------------------------------------------------------

def plan(quick):
    """{(part, row, seed): case}. A quick run takes one seed, and a few steps of each."""
    rows = {"frozen": FROZEN,
            "halves": {row: Halves(row) for row in (MVAE, POE, GPOE, SCALED)},
            "pairs": {row: Pairs(row) for row in (CLEAN, MVAE, POE, GPOE)},
            "processes": {"": Processes()}}
    small = {"frozen": {"steps": 5}, "halves": {"epochs": 1, "n_train": 200},
             "pairs": {"epochs": 1, "n_train": 100, "n_test": 100}, "processes": {"n_draws": 2}}
    cases = {}
    for part, of_part in rows.items():
        for row, case in of_part.items():
            for seed in range(1 if quick else SEEDS[part]):
                case = case._replace(**small[part] if quick else {})
                cases[part, row, seed] = (case._replace(seed=seed) if "seed" in case._fields
                                          else case)
    return cases


def measured(settings, case):
    return RUNS[type(case)](settings, case)


def run(settings):
    """Every case of ``plan``."""
    cases = plan(settings.quick)
    results = harness.in_parallel(settings, measured, list(cases.values()), "all runs")
    frozen, halves, pairs, processes = (
        gathered(part, cases, results) for part in ("frozen", "halves", "pairs", "processes"))
    first = {(part, row): shown for (part, row, seed), (_, shown) in zip(cases, results)
             if seed == 0}
    return Result(
        "Generalised products of experts (Joshi et al., 2022; Cao and Fleet, 2014), on digits with "
        "a modality that is noise, and on Gaussian processes",
        [*judged_frozen(frozen), *judged_models(halves, pairs), *judged_processes(processes),
         *reported(frozen, halves, pairs, processes)],
        [table_of_frozen(frozen), table_of_weights(frozen), table_of_halves(halves),
         table_of_pairs(pairs), table_of_trust(frozen, pairs), table_of_generation(pairs),
         table_of_processes(processes)],
        draw(frozen, halves, pairs, first),
        {"cases": {", ".join(map(str, key)): recorded(case) for key, case in cases.items()},
         "levels": LEVELS,
         "found": {part: {", ".join(map(str, key)): numbers for key, numbers in of_part.items()}
                   for part, of_part in (("frozen", frozen), ("halves", halves), ("pairs", pairs),
                                         ("processes", processes))}})


def gathered(part, cases, results):
    """{key: [seeds]} of a part; keys of frozen experts have their row in front."""
    found = {}
    for (of_part, row, _), (measures, _) in zip(cases, results):
        for key, number in measures.items() if of_part == part else ():
            found.setdefault((row, *key) if part == "frozen" else key, []).append(number)
    return {key: np.concatenate([np.atleast_1d(number) for number in numbers])
            for key, numbers in found.items()}


def recorded(case):
    """The settings of a case, for the record."""
    return {key: getattr(value, "__name__", value) for key, value in case._asdict().items()}


# -- Claims --------------------------------------------------------------------------------------

def of(frozen, condition, product, measure, row=SOFTMAX):
    return frozen[row, condition, product, measure]


def over_levels(found, row, measure, product=None):
    """Mean over seeds at every level. -> [levels]"""
    middle = () if product is None else (product,)
    return np.array([found[row, level, *middle, measure].mean() for level in LEVELS])


def judged_frozen(frozen):
    learnt, plain, oracle = (of(frozen, "uniform", product, "rmse")
                             for product in (LEARNT, PLAIN, ORACLE))
    yield Claim(
        "Credibility learnt for frozen experts undoes the harm of noise that replaces one of two "
        "modalities: for every seed the error is below 0.7 of the plain product's.",
        "state of the art under noise, on two tasks of its own",
        f"RMSE {ranged(learnt, 3)} against {ranged(plain, 3)}",
        bool((learnt < 0.7 * plain).all()))
    yield Claim(
        "It is then as good as knowing which modality is noise: within 5 % for every seed.",
        "not measured", f"{ranged(learnt / oracle, 3)} of the error of the clean half alone",
        bool((learnt <= 1.05 * oracle).all()))
    weight, clean = (of(frozen, "uniform", LEARNT, "weight"),
                     [of(frozen, "clean", LEARNT, f"weight {m}") for m in range(2)])
    yield Claim(
        "Weight leaves the modality that is corrupted: below 0.05 on average, for every seed.",
        "contributions vary with credibility (abstract)",
        f"{ranged(weight, 4)}; on clean digits {np.min(clean):.2f} to {np.max(clean):.2f}",
        bool((weight < 0.05).all()))
    learnt, plain = (of(frozen, "clean", product, "rmse") for product in (LEARNT, PLAIN))
    yield Claim(
        "Nothing is lost on clean digits: the error is at most 1.02 of the plain product's, for "
        "every seed.",
        "not measured", f"{ranged(learnt / plain, 3)} of it", bool((learnt <= 1.02 * plain).all()))
    errors = {product: over_levels(frozen, ANY, "rmse", product)
              for product in (LEARNT, PLAIN, WITH_PRIOR)}
    yield Claim(
        "At every level of noise the error is below that of the plain product and of MVAE's, if "
        "credibility is learnt on noise of any level.",
        "not measured",
        "; ".join(f"{level:.0%} of pixels: {errors[LEARNT][i]:.2f} against {errors[PLAIN][i]:.2f} "
                  f"and {errors[WITH_PRIOR][i]:.2f}"
                  for i, level in enumerate(LEVELS) if level in (0, 0.25, 0.5, 1)),
        bool((errors[LEARNT] < np.minimum(errors[PLAIN], errors[WITH_PRIOR])).all()))
    weights = over_levels(frozen, ANY, "weight", LEARNT)
    yield Claim(
        "The noisier a modality is, the less it is heard: its weight falls from level to level.",
        "contributions vary with credibility (abstract)",
        ", ".join(f"{weight:.3f}" for weight in weights), bool((np.diff(weights) < 0).all()))


def judged_models(halves, pairs):
    plain, learnt = (halves[row, 1.0, "mse"] for row in (POE, GPOE))
    yield Claim(
        "Learnt together with encoders and decoder, on the same noise, the gain is small: over "
        "seeds, halves are made whole with a lower squared error than by the plain product, "
        "without a prior expert in either.",
        "state of the art", f"{ranged(learnt, 4)} against {ranged(plain, 4)}",
        bool(learnt.mean() < plain.mean()))
    before, after = (pairs[row, 1.0, "error"] for row in (CLEAN, UPON))
    yield Claim(
        "An MVAE that never met noise is misled by it; the same experts, weighed by a credibility "
        "that is learnt afterwards, less so: with one image of a pair all noise and no label, "
        "fewer digits are misread, for every seed.",
        "not measured",
        f"{ranged(before, 3)} misread, weighed {ranged(after, 3)}; by the clean image alone "
        f"{ranged(pairs[CLEAN, 'image B alone', 'error'], 3)}", bool((after < before).all()))
    falls = [pairs[row, 1.0, "weight of image A"] / pairs[row, 0.0, "weight of image A"]
             for row in (UPON, GPOE)]
    yield Claim(
        "There too weight leaves the image that is noise: it has less than half of what it has in "
        "clean pairs, for every seed, learnt afterwards or together.",
        "contributions vary with credibility (abstract)",
        f"{ranged(falls[0], 3)} of it, learnt together {ranged(falls[1], 3)}",
        bool(max(fall.max() for fall in falls) < 0.5))


def judged_processes(processes):
    def measure(name, of_measure, split="random"):
        return processes[split, name, of_measure]

    far = {name: np.concatenate([measure(name, "far", split) for split in ("blocks", "random")])
           for name in FUSIONS}
    yield Claim(
        "Far from the data the plain product of 8 processes is 8 times too sure; with weights that "
        "sum to one it is the prior again, and so is the robust committee: within 1 %.",
        "by construction",
        "; ".join(f"{name} {far[name].mean():.4f}" for name in
                  (OF_PROCESSES, EQUAL, NORMALIZED, COMMITTEE)) + " of the prior's variance",
        bool(abs(far[OF_PROCESSES] * 8 - 1).max() < 0.01 and max(
            abs(far[name] - 1).max() for name in (EQUAL, NORMALIZED, COMMITTEE)) < 0.01))
    apart = max(measure(EQUAL, "mean apart from PoE", split).max()
                for split in ("blocks", "random"))
    yield Claim(
        "Equal weights leave the plain product's mean as it is, to rounding.",
        "by construction", f"at most {apart:.0e} apart", bool(apart < 1e-11))
    yield Claim(
        "Entropy changes that are not divided by their sum, and no prior expert: far from the data "
        "the variance has no bounds.",
        "not theirs", f"{far[RAW].mean():.0e} times the prior's, in the least case "
        f"{far[RAW].min():.0e}", bool(far[RAW].mean() > 1e3))
    plain, learnt = (measure(name, "coverage").mean() for name in (OF_PROCESSES, NORMALIZED))
    yield Claim(
        "With the data shared out at random, the plain product claims too much: its 95 % "
        "intervals hold less than 93 % of the function, those of the entropy-weighted product more "
        "than 95 %.",
        "robust (abstract; no figure read)", f"{plain:.1%} and {learnt:.1%}",
        bool(plain < 0.93 and learnt > 0.95))


def reported(frozen, halves, pairs, processes):
    """What the paper leaves open, or does not carry over; and how far it does."""
    yield Claim(
        "End to end the encoders' own variances learn to tell noise, so that weights fall less; "
        "most of what MVAE loses, the prior expert costs it.",
        "not said",
        f"weight of the corrupted half {ranged(halves[GPOE, 1.0, 'weight'], 2)}; squared error "
        + ", ".join(f"{row} {halves[row, 1.0, 'mse'].mean():.4f}"
                    for row in (MVAE, SCALED, POE, GPOE)), None)
    yield Claim(
        "Trained on noise from the start, all three products read a pair with one image of noise "
        "about as well.", "state of the art",
        ", ".join(f"{row} {ranged(pairs[row, 1.0, 'error'], 3)}" for row in (MVAE, POE, GPOE)),
        None)
    told = [pairs[GPOE, condition, "weight of label"] for condition in ("nothing", "label")]
    yield Claim(
        "A wrong label looks like a right one, and who judges each modality by itself cannot tell: "
        "its weight stays. What helps is that labels are believed less altogether.",
        "noise so strong that it changes what a modality means (abstract)",
        f"weight {ranged(told[0], 3)} of right, {ranged(told[1], 3)} of wrong ones; misread with a "
        f"wrong label: {ranged(pairs[CLEAN, 'label', 'error'], 3)} by MVAE trained clean, "
        f"{ranged(pairs[UPON, 'label', 'error'], 3)} with its experts weighed", None)
    unseen = {name: [of(frozen, name, product, "rmse").mean()
                     for product in (LEARNT, PLAIN, ORACLE)] for name in ("gaussian", "blank")}
    yield Claim(
        "Credibility knows the noise it was trained on: stronger noise it half sees through, a "
        "half that is blank it takes for a digit.", "not said",
        "; ".join("{}: {:.2f} against {:.2f}, {:.2f} by the clean half".format(name, *rmse)
                  for name, rmse in unseen.items()), None)
    sum_to_one, scaled = (frozen[row, "clean", LEARNT, "nll"].mean()
                          for row in (SOFTMAX, "scaled softmax"))
    yield Claim(
        "Weights that sum to one are too unsure where modalities know different things; weights "
        "that sum to their number are not.", "not said",
        f"-log density on clean digits {sum_to_one:.2f}, plain product "
        f"{of(frozen, 'clean', PLAIN, 'nll').mean():.2f}, scaled {scaled:.2f}", None)
    constants = frozen["constants", "uniform", LEARNT, "rmse"]
    yield Claim(
        "What helps is to weigh each datum: learnt constants, the same for all, do not.",
        "an extra network for each modality (abstract)",
        f"RMSE {ranged(constants, 3)}; one score to a datum "
        f"{ranged(frozen[ONE, 'uniform', LEARNT, 'rmse'], 3)}", None)
    blocks = {name: processes["blocks", name, "coverage"].mean() for name in FUSIONS}
    yield Claim(
        "Where each expert has neighbouring data, the plain product is nearly calibrated; raw "
        "entropies and the committee are over-confident near the data, however they are shared.",
        "not said", ", ".join(f"{name} {coverage:.0%}" for name, coverage in blocks.items()), None)
    yield Claim(
        "Hand poses in three dimensions and surgical video, with noise in one modality.",
        "state of the art on both",
        "not measured: neither the data nor the paper's tables are available", None)


# -- Tables --------------------------------------------------------------------------------------

def table_of_frozen(frozen):
    def cells(condition):
        return [f"{of(frozen, condition, product, 'rmse').mean():.3f} "
                f"({of(frozen, condition, product, 'nll').mean():.1f})"
                for product in (PLAIN, WITH_PRIOR, UNIFORM, ENTROPY, LEARNT, ORACLE)]

    rows = {"clean": "clean", **{f"{level:.0%} of pixels": level for level in LEVELS[2::2]},
            "gaussian noise": "gaussian", "blank": "blank"}
    return Table(
        "Frozen experts on two halves, one corrupted: RMSE (-log density) of each product, mean "
        "over seeds",
        ("the half is", PLAIN, WITH_PRIOR, UNIFORM, ENTROPY, LEARNT, ORACLE),
        [(name, *cells(condition)) for name, condition in rows.items()],
        "Credibility is learnt on uniform noise in all pixels. MVAE's: the product with a prior "
        "expert; uniform: weights of one half; entropy: normalised entropy changes, which an "
        "expert of constant variance has constant; clean only: the product of who is not "
        "corrupted.")


def table_of_weights(frozen):
    def cells(row):
        noise = "gaussian" if row == GAUSSIAN else "uniform"
        found = [frozen[row, condition, LEARNT, measure]
                 for condition in ("clean", noise) for measure in ("rmse", "nll")]
        return (spread(found[0], 3), spread(found[1], 1), spread(found[2], 3), spread(found[3], 1),
                spread(frozen[row, noise, LEARNT, "weight"], 3))

    return Table(
        "Ways to make weights, on the same frozen experts; mean (SD) of seeds",
        ("weights", "clean RMSE", "-log density", "one noisy: RMSE", "-log density",
         "weight of the noisy"),
        [(row, *cells(row)) for row in FROZEN],
        "Weights for every dimension, but of one score. Noise as in training, in all pixels.")


def table_of_halves(halves):
    def cells(row, clean_half):
        return [*(spread(halves[row, level, "mse"], 4) for level in (0.0, 0.5, 1.0)),
                spread(clean_half, 4), spread(halves[row, 1.0, "accuracy"], 2),
                spread(halves[row, 1.0, "weight"], 2)]

    return Table(
        "Halves to whole digits, end to end, trained with noise; mean (SD) of seeds",
        ("product", "MSE, clean", "half the pixels", "all", "clean half alone", "accuracy, all",
         "weight, all"),
        [(row, *cells(row, halves[row, 1.0, "mse of the clean half"]))
         for row in (MVAE, POE, GPOE, SCALED)],
        "accuracy: of a logistic regression on posterior means, fitted to clean training digits; "
        "weight: of the corrupted half.")


def table_of_pairs(pairs):
    conditions = {"clean": 0.0, "half A's pixels": 0.5, "all of A": 1.0, "no A": "image B alone"}
    rows = (CLEAN, UPON, MVAE, POE, GPOE)
    return Table(
        "Pairs without their label: digits misread, by noise in image A; mean (SD) of seeds",
        ("", *conditions),
        [(row, *(spread(pairs[row, condition, "error"], 3) for condition in conditions.values()))
         for row in rows],
        "Read by the label's decoder at the posterior mean. The first two rows have the same "
        "encoders and decoders, which never met noise; the others are trained with it.")


def table_of_trust(frozen, pairs):
    def cells(row, condition):
        weights = [pairs[row, condition, f"weight of {name}"] for name in MODALITIES]
        return [spread(pairs[row, condition, "error"], 3), *(spread(w, 3) for w in weights)]

    conditions = ("nothing", *MODALITIES)
    of_frozen = [(f"frozen, {name}", f"{frozen[LABEL, condition, LEARNT, 'rmse'].mean():.3f} RMSE",
                  *(spread(frozen[LABEL, condition, LEARNT, f"weight {m}"], 3) for m in range(3)))
                 for name, condition in (("nothing", "clean"), ("upper half", "modality 0"),
                                         ("lower half", "modality 1"), ("label", "modality 2"))]
    return Table(
        "Three modalities, the label the third: who is believed, by what is corrupted; mean (SD)",
        ("model, corrupted", "misread", "weight of A", "of B", "of the label"),
        [*((f"{row}, {condition}", *cells(row, condition))
           for row in (CLEAN, UPON, GPOE) for condition in conditions), *of_frozen],
        "A corrupted label is another digit's. Weights of the second model sum to 3. Frozen "
        "experts: A and B are the halves.")


def table_of_generation(pairs):
    made = [f"image {to} from {given}" for given in MODALITIES for to in "AB"]
    return Table(
        "Cross-generation: how often what is made is the digit; mean (SD) of seeds",
        ("", *(name.replace("image ", "") for name in made), "all from the prior"),
        [(row, *(spread(pairs[row, name, "coherence"], 2) for name in made),
          spread(pairs[row, "all from the prior", "coherence"], 2))
         for row in (CLEAN, MVAE, POE, GPOE)],
        "Judged by logistic regressions on real images; drawn from the prior, both images and the "
        "label have to agree.")


def table_of_processes(processes):
    def cells(name, split):
        numbers = [processes[split, name, measure].mean()
                   for measure in ("rmse", "nlpd", "coverage", "far")]
        return "{:.3f} {:.3f} {:.3f} {:.4g}".format(*numbers).split()

    return Table(
        f"8 Gaussian processes of 20 data each; mean of {len(processes['blocks', WHOLE, 'rmse'])} "
        "draws",
        ("product", "blocks: RMSE", "NLPD", "coverage", "far",
         "random: RMSE", "NLPD", "coverage", "far"),
        [(name, *cells(name, "blocks"), *cells(name, "random")) for name in FUSIONS],
        "Of the latent function where data are; coverage of the 95 % interval; far: variance out "
        "of their sight, where the prior's is 1.")


# -- The figure ----------------------------------------------------------------------------------
# Lines are means over seeds, bands from the least to the largest; pictures are of the first seed.

BLUE, ORANGE, GREEN, RED, GREY = "#14457d", "#d9822b", "#3f8f5f", "#b03a1b", "#8a8a8a"


def draw(frozen, halves, pairs, first):
    figure, axes = harness.panels(
        ["Half a digit is noise; who is believed, and what comes out",
         "Frozen experts: the error, by noise",
         "The weight of the modality that is noise",
         "Made by a gPoE from one modality alone",
         "Pairs: digits misread, by noise in one image",
         "Halves, trained with noise: the error",
         "Who is believed, if this is corrupted",
         "A function foretold by 8 processes: the plain product",
         "Weighted by entropy, and by a robust committee"],
        columns=3, size=(20, 17), title="Products of experts that weigh their experts")
    draw_digits(axes[0], first["frozen", SOFTMAX])
    draw_frozen(axes[1], frozen)
    draw_weights(axes[2], frozen, halves, pairs)
    draw_generated(axes[3], first["pairs", GPOE][GPOE])
    draw_misread(axes[4], pairs)
    draw_halves(axes[5], halves)
    draw_trust(axes[6], pairs)
    shown = first["processes", ""]
    draw_processes(axes[7], shown, {OF_PROCESSES: RED})
    draw_processes(axes[8], shown, {NORMALIZED: BLUE, COMMITTEE: ORANGE})
    return figure


def draw_digits(axis, shown):
    upper_and_lower = np.repeat(shown["weights"], 32, axis=1)            # [10, 64]
    rows = {"the digit": shown["digit"], "what is seen": shown["seen"],
            "weights": upper_and_lower, PLAIN: shown[PLAIN], LEARNT: shown[LEARNT],
            "clean half alone": shown[ORACLE]}
    modalities.draw_images(axis, list(rows.values()), list(rows))
    axis.set_xlabel("weights: of the upper and the lower half, from white for 0 to black for 1")


def band(axis, numbers, colour, label, **style):
    """Of {level: [seeds]}."""
    each = np.array([numbers[level] for level in LEVELS])                # [levels, seeds]
    axis.fill_between(LEVELS, each.min(axis=1), each.max(axis=1), color=colour, alpha=0.15,
                      linewidth=0)
    axis.plot(LEVELS, each.mean(axis=1), color=colour, label=label, **style)


def by_level(axis, ylabel):
    axis.set(xlabel="share of its pixels that are noise", ylabel=ylabel, xlim=(0, 1))
    axis.set_ylim(bottom=0)
    axis.legend(fontsize=8, frameon=False)


def draw_frozen(axis, frozen):
    for row, product, colour, label, style in (
            (ANY, PLAIN, RED, PLAIN, {}), (ANY, WITH_PRIOR, ORANGE, "MVAE's, with a prior", {}),
            (SOFTMAX, LEARNT, BLUE, "gPoE, trained on full noise", {"linestyle": "--"}),
            (ANY, LEARNT, BLUE, "gPoE, trained on any level", {}),
            (ANY, ORACLE, GREY, "clean half alone", {"linestyle": ":"})):
        # at level 0, too, one half is left out
        found = {level: frozen[row, level, product, "rmse"] for level in LEVELS}
        band(axis, found, colour, label, **style)
    by_level(axis, "RMSE of z")


def draw_weights(axis, frozen, halves, pairs):
    for colour, label, style, found in (
            (BLUE, "frozen, trained on full noise", {"linestyle": "--"},
             {level: frozen[SOFTMAX, level, LEARNT, "weight"] for level in LEVELS}),
            (BLUE, "frozen, trained on any level", {},
             {level: frozen[ANY, level, LEARNT, "weight"] for level in LEVELS}),
            (GREEN, "halves, end to end", {},
             {level: halves[GPOE, level, "weight"] for level in LEVELS}),
            (ORANGE, "pairs, end to end", {},
             {level: pairs[GPOE, level, "weight of image A"] for level in LEVELS})):
        band(axis, found, colour, label, **style)
    by_level(axis, "weight, of 1 for both")


def draw_generated(axis, shown):
    rows = {"A": shown["A"], "B": shown["B"],
            **{name: shown[name] for name in shown if "from" in name},
            "A drawn": shown["A drawn"], "B drawn": shown["B drawn"]}
    modalities.draw_images(axis, list(rows.values()), list(rows))
    axis.set_xlabel("A and B: real, of one digit; drawn: both from one draw of the prior")


def draw_misread(axis, pairs):
    for row, colour, label, style in (
            (CLEAN, RED, "MVAE, trained clean", {}),
            (UPON, BLUE, "its experts, weighed by credibility", {}),
            (MVAE, ORANGE, "MVAE's, trained with noise", {"linestyle": "--"}),
            (POE, GREY, "PoE, trained with noise", {"linestyle": "--"}),
            (GPOE, GREEN, "gPoE, trained with noise", {"linestyle": "--"})):
        band(axis, {level: pairs[row, level, "error"] for level in LEVELS}, colour, label, **style)
    axis.axhline(pairs[CLEAN, "image B alone", "error"].mean(), color="black", linestyle=":",
                 linewidth=1, label="MVAE, trained clean, without that image")
    by_level(axis, "share misread")


def draw_halves(axis, halves):
    for row, colour in ((MVAE, ORANGE), (SCALED, GREEN), (POE, GREY), (GPOE, BLUE)):
        band(axis, {level: halves[row, level, "mse"] for level in LEVELS}, colour, row)
    by_level(axis, "squared error of a pixel")


def draw_trust(axis, pairs):
    conditions = ("nothing", *MODALITIES)
    for m, (name, colour) in enumerate(zip(MODALITIES, (BLUE, GREEN, ORANGE))):
        each = np.array([pairs[GPOE, condition, f"weight of {name}"] for condition in conditions])
        place = np.arange(4) + 0.26 * (m - 1)
        axis.bar(place, each.mean(axis=1), width=0.24, color=colour, alpha=0.8,
                 label=f"weight of {name}")
        for i in range(each.shape[1]):
            axis.plot(place, each[:, i], linestyle="", marker="o", markersize=3, color="black",
                      alpha=0.5)
    axis.set_xticks(range(4), ["nothing", "image A\n(noise)", "image B\n(noise)",
                               "label\n(another digit's)"])
    axis.set_ylabel("mean weight in the gPoE, of 1 for all")
    axis.legend(fontsize=8, frameon=False)


def draw_processes(axis, shown, colours):
    process, fused = shown["process"], shown["fused"]

    def around(name):
        mean, deviation = fused[name].mean, np.exp(0.5 * fused[name].log_variance)
        return mean - 1.96 * deviation, mean + 1.96 * deviation

    axis.fill_between(process.at, *around(WHOLE), color=GREY, alpha=0.3, linewidth=0,
                      label="one process of all data, 95 %")
    for name, colour in colours.items():
        axis.plot(process.at, fused[name].mean, color=colour, linewidth=1, label=name)
        for bound in around(name):
            axis.plot(process.at, bound, color=colour, linewidth=1, linestyle="--")
    axis.plot(process.x, process.y, linestyle="", marker=".", markersize=3, color="black",
              label="data, shared out at random")
    axis.axvline(-SEEN, color=GREY, linewidth=0.5)
    axis.axvline(SEEN, color=GREY, linewidth=0.5)
    axis.set(xlabel="x", ylim=(-3.5, 3.5))
    axis.legend(fontsize=8, frameon=False, loc="lower center", ncols=2)

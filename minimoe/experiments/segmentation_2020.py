"""Experts for highways and for towns, and a gate that tells them apart: generated road scenes.

The paper's A2D2 images are out of reach; ``minimoe.data.road_scenes`` paints small ones in which,
as there, each kind of road has classes that the other lacks. FRRN-mini stands for FRRN-A. Per seed:
an expert trained on 240 highway scenes, one on 240 urban ones, and a single network, the baseline,
on both, for as many steps as one expert and again for as many as both. Then the experts are frozen
and four gates trained on both sets: simple and class-wise, without and with the extra convolution.

*Mixed* is 100 scenes of highways and 100 of towns that nobody was trained on; *ambiguous* 100
scenes that neither expert's training resembles. All in float32. Thresholds of the claims are from a
prototype of the same equations, and judged on means over the seeds: of the 12 runs that --seed 0 to
3 make, two gave the right expert less than 0.95 on one kind of road (0.94 and 0.89), and in two the
mixture erred less than twice as often where the experts disagree (1.8 and 1.7 times).
"""
from typing import NamedTuple

import numpy as np

from minimoe import tree
from minimoe.autodiff.tensor import Tensor, grad
from minimoe.backend import to_numpy
from minimoe.data import road_scenes
from minimoe.data.road_scenes import (
    CLASSES, IN_TOWNS_ALONE, ON_HIGHWAYS_ALONE, PEDESTRIAN, Scenes)
from minimoe.experiments import harness
from minimoe.experiments.harness import Claim, Result, Table, ranged
from minimoe.optim import adam, adam_init, cosine
from minimoe.papers import segmentation_2020 as paper
from minimoe.papers.segmentation_2020 import (
    FRRNOutput, MixtureParams, confusion_matrix, frrn_mini, mean_iou, predicted)

SEEDS = 3
TRAIN, TEST = 240, 100                  # scenes of each kind of road
RATE, FLOOR = 5e-3, 0.02                # Adam's, and the part of it that cosine decay leaves
BATCH, DECAY = 8, 1e-4
GATE_BATCH, GATE_STEPS, HIDDEN = 16, 200, 16
K = len(CLASSES)
HIGHWAY, URBAN, BASELINE, TWICE = ("highway expert", "urban expert", "baseline",
                                   "baseline, twice the steps")
EXPERTS = (HIGHWAY, URBAN)
MEAN, MAX = "ensemble, mean of logits", "ensemble, max of logits"
SIMPLE, SIMPLE_EXTRA = "MoE simple", "MoE simple + conv"
CLASS_WISE, CLASS_WISE_EXTRA = "MoE class-wise", "MoE class-wise + conv"
PROBABILITIES = "MoE simple, of probabilities"
MIXTURES = {SIMPLE: (paper.simple_mixture, 1, False),       # gates, extra convolution
            SIMPLE_EXTRA: (paper.simple_mixture, 1, True),
            CLASS_WISE: (paper.class_wise_mixture, K, False),
            CLASS_WISE_EXTRA: (paper.class_wise_mixture, K, True)}
A2D2 = {BASELINE: 50.32, HIGHWAY: 22.38, URBAN: 49.63, MEAN: 43.52, MAX: 45.58, SIMPLE: 49.91,
        SIMPLE_EXTRA: 50.81, CLASS_WISE: 50.00, CLASS_WISE_EXTRA: 50.85}     # mIoU, FRRN-A
SETS = ("highway", "urban", "mixed", "ambiguous")


# -- The experiment ------------------------------------------------------------------------------

class Case(NamedTuple):
    """A network to be trained."""
    network: str
    seed: int
    steps: int
    train: int = TRAIN       # scenes of each kind of road


class Network(NamedTuple):
    params: paper.FRRNParams
    running: tuple           # of Statistics


class Mixing(NamedTuple):
    """The gates of one seed to be trained, and everything to be measured."""
    seed: int
    networks: dict           # name: Network
    steps: int = GATE_STEPS
    train: int = TRAIN
    test: int = TEST


class Found(NamedTuple):
    """Of one seed."""
    miou: dict               # model: {set: per cent}
    accuracy: dict           # model: {set: per cent of pixels}
    weight: dict             # set: [N]   the simple gate's, of the highway expert
    disagreement: dict       # what: share of pixels
    masks: dict              # mask: {set: share of pixels}
    partition: bool          # the four masks cover every pixel once
    overruled: int           # pixels where experts agree and the simple mixture does not
    shown: dict              # of a few scenes, for the figure


def run(settings):
    quick = settings.quick
    seeds, steps, small = (1, 2, {"train": 16}) if quick else (SEEDS, 300, {})
    cases = [Case(name, seed, steps * (2 if name == TWICE else 1), **small)
             for name in (TWICE, *EXPERTS, BASELINE) for seed in range(seeds)]
    networks = dict(zip(cases, harness.in_parallel(settings, trained, cases, "networks")))
    if quick:
        small = {"train": 16, "test": 12, "steps": 2}
    mixings = [Mixing(seed, {case.network: network for case, network in networks.items()
                             if case.seed == seed}, **small) for seed in range(seeds)]
    found = harness.in_parallel(settings, mixed, mixings, "gates")
    return Result(
        "Mixture of expert models for semantic segmentation (Pavlitskaya et al., 2020), on "
        "generated road scenes",
        [*judged(found), *reported(found)], [table_of_models(found), table_of_roads(found),
                                             table_of_disagreement(found)],
        draw(found),
        {"seeds": seeds, "steps": steps, "train": TRAIN, "test": TEST, "batch": BATCH, "rate": RATE,
         "floor": FLOOR, "weight_decay": DECAY, "gate": {
             "batch": GATE_BATCH, "steps": GATE_STEPS, "hidden": HIDDEN}, "classes": CLASSES,
         "found": [{key: value for key, value in one._asdict().items() if key != "shown"}
                   for one in found]})


# -- Data ----------------------------------------------------------------------------------------

class Data(NamedTuple):
    train: dict     # context: Scenes
    test: dict


def data(settings, seed, n_train, n_test):
    """The scenes of one seed, images of mean near 0 and float32."""
    rngs = np.random.default_rng([settings.seed, seed]).spawn(5)
    painters = (road_scenes.highway, road_scenes.urban, road_scenes.ambiguous)
    names = ("highway", "urban", "ambiguous")

    def made(rng, paint, n):
        image, label = road_scenes.scenes(rng, paint, n)
        return Scenes(((image - .5) / .25).astype(np.float32), label)

    train = {name: made(rng, paint, n_train) for name, rng, paint in zip(names, rngs, painters[:2])}
    test = {name: made(rng, paint, n_test) for name, rng, paint in zip(names, rngs[2:], painters)}
    return Data(train, test)


def joined(*parts):
    return Scenes(*(np.concatenate(arrays) for arrays in zip(*parts)))


def batches(rng, n, size, steps):
    """Indices: every scene once, in a random order, before any comes again."""
    queue = np.concatenate([rng.permutation(n) for _ in range(-(-size * steps // n))])
    return queue[:size * steps].reshape(steps, size)


# -- Networks ------------------------------------------------------------------------------------

def trained(settings, case):
    """A network after its steps, as host arrays. Starting weights are shared within a seed."""
    train = data(settings, case.seed, case.train, 1).train
    scenes = {HIGHWAY: train["highway"], URBAN: train["urban"]}.get(
        case.network, joined(*train.values()))
    start, order, flips = np.random.default_rng([settings.seed, case.seed, 1]).spawn(3)
    params = harness.move(settings, as_float32(paper.frrn_mini_init(start, K)))
    state, running = adam_init(params), None
    for index in batches(order, len(scenes.label), BATCH, case.steps):
        batch = Scenes(*(part[index] for part in scenes))
        image, label = harness.move(settings, tuple(
            road_scenes.flipped(batch, flips.random(len(index)) < .5)))
        tensors = tree.map(Tensor, params)
        out = frrn_mini(tensors, image)
        gradients = grad(paper.segmentation_loss(out.logits, label), tensors)
        rate = RATE * cosine(state.step, case.steps, FLOOR)
        params, state = adam(decayed(params, rate * DECAY), gradients, state, learning_rate=rate)
        running = paper.running_statistics(
            running or paper.first_statistics(out.statistics), out.statistics)
    return tree.map(to_numpy, Network(params, running))


def as_float32(params):
    return tree.map(lambda p: p.astype(np.float32), params)


def decayed(params, by):
    """Matrices and kernels shrunk, as by decoupled weight decay."""
    return tree.map(lambda p: p * (1 - by) if p.ndim > 1 else p, params)


def applied(settings, network, image):
    """Logits and features of every image, in evaluation. -> FRRNOutput of host arrays"""
    network = harness.move(settings, network)
    outputs = [frrn_mini(network.params, harness.move(settings, image[i:i + 50]), network.running)
               for i in range(0, len(image), 50)]
    return FRRNOutput(*(np.concatenate([to_numpy(out[place]) for out in outputs])
                        for place in range(2)), ())


# -- Mixtures ------------------------------------------------------------------------------------

def mixed(settings, case):
    """Four gates trained on frozen experts, and what all models of a seed make of its scenes."""
    scenes = data(settings, case.seed, case.train, case.test)
    union = joined(*scenes.train.values())
    frozen = [applied(settings, case.networks[name], union.image) for name in EXPERTS]
    params = {name: trained_gate(settings, case, name, frozen, union.label) for name in MIXTURES}
    everything = {context: outputs_of(settings, case, params, part.image)
                  for context, part in scenes.test.items()}
    return measured(scenes.test, everything)


def trained_gate(settings, case, name, frozen, label):
    """The gate, and the extra convolution, of one mixture."""
    mixture, n_gates, extra = MIXTURES[name]
    start, order = np.random.default_rng([settings.seed, case.seed, 2]).spawn(2)
    gate = paper.gate_init(start, n_gates, len(EXPERTS), frozen[0].features.shape[1:], HIDDEN)
    params = MixtureParams(gate, paper.identity_kernel(K) if extra else None)
    params = harness.move(settings, as_float32(params))
    state = adam_init(params)
    for index in batches(order, len(label), GATE_BATCH, case.steps):
        experts, labels = harness.move(settings, (
            [FRRNOutput(out.logits[index], out.features[index], ()) for out in frozen],
            label[index]))
        tensors = tree.map(Tensor, params)
        loss = paper.segmentation_loss(mixture(tensors, experts).logits, labels)
        params, state = adam(params, grad(loss, tensors), state,
                             learning_rate=RATE * cosine(state.step, case.steps))
    return tree.map(to_numpy, params)


class Outputs(NamedTuple):
    classes: dict            # model: [N, 24, 32] int
    weight: np.ndarray       # [N]   the simple gate's, of the highway expert


def outputs_of(settings, case, params, image):
    """What every model takes the pixels of the images for."""
    networks = {name: applied(settings, network, image)
                for name, network in case.networks.items()}
    experts = harness.move(settings, [networks[name] for name in EXPERTS])
    logits = [out.logits for out in experts]
    mixtures = {name: mixture(harness.move(settings, params[name]), experts)
                for name, (mixture, _, _) in MIXTURES.items()}
    gate = mixtures[SIMPLE].gate
    scores = {**{name: out.logits for name, out in (*networks.items(), *mixtures.items())},
              MEAN: paper.mean_ensemble(logits), MAX: paper.max_ensemble(logits),
              PROBABILITIES: paper.probability_mixture(gate, logits)}
    return Outputs({name: to_numpy(predicted(score)) for name, score in scores.items()},
                   to_numpy(gate)[:, 0])


# -- Measures ------------------------------------------------------------------------------------

def measured(test, everything):
    """Everything of one seed, from labels and predicted classes by context. -> Found"""
    def of_set(name, part):
        contexts = ("highway", "urban") if name == "mixed" else (name,)
        return np.concatenate([part(context) for context in contexts])

    label = {name: of_set(name, lambda context: test[context].label) for name in SETS}
    classes = {name: {model: of_set(name, lambda c: everything[c].classes[model])
                      for model in everything["urban"].classes} for name in SETS}
    confusion = {model: {name: confusion_matrix(label[name], classes[name][model], K)
                         for name in SETS} for model in classes["mixed"]}
    first, second, mixture = ({name: classes[name][model] for name in SETS}
                              for model in (*EXPERTS, SIMPLE))
    masks = {name: paper.disagreement_masks(first[name], second[name], mixture[name])
             for name in SETS}
    return Found(
        {model: {name: 100 * mean_iou(c) for name, c in of.items()}
         for model, of in confusion.items()},
        {model: {name: 100 * paper.pixel_accuracy(c) for name, c in of.items()}
         for model, of in confusion.items()},
        {name: everything[name].weight for name in everything},
        disagreement(label, first, second, mixture),
        {mask: {name: getattr(masks[name], mask).mean() for name in SETS}
         for mask in paper.DisagreementMasks._fields},
        all((np.sum(of, axis=0) == 1).all() for of in masks.values()),
        sum(int(((first[name] == second[name]) & (mixture[name] != first[name])).sum())
            for name in SETS),
        shown(test, everything))


def disagreement(label, first, second, mixture):
    """How often the experts differ, by class; and how often the mixture errs where they do."""
    differ = {name: first[name] != second[name] for name in SETS}
    unseen = np.isin(label["mixed"], (*ON_HIGHWAYS_ALONE, *IN_TOWNS_ALONE))
    wrong, apart = mixture["ambiguous"] != label["ambiguous"], differ["ambiguous"]
    return {"unseen": share(differ["mixed"], unseen), "shared": share(differ["mixed"], ~unseen),
            "pedestrians": share(differ["mixed"], label["mixed"] == PEDESTRIAN),
            "error_apart": share(wrong, apart), "error_agreed": share(wrong, ~apart)}


def share(what, where):
    """NaN where nothing is."""
    return float(what[where].mean()) if where.any() else np.nan


def shown(test, everything):
    """A scene of each context, and a second ambiguous one: images and classes."""
    town, verge = (test["ambiguous"].label == c for c in (
        road_scenes.BUILDING, road_scenes.VEGETATION))
    truck, walker = (test["ambiguous"].label == c for c in (road_scenes.TRUCK, PEDESTRIAN))

    def clearest(score):
        return int(score.argmax())

    def pixels(mask):
        return mask.sum(axis=(1, 2))

    of_highway, of_town = test["highway"].label, test["urban"].label
    places = {
        "highway": ("highway", clearest(pixels(of_highway == road_scenes.TRUCK)
                                        + pixels(of_highway == road_scenes.CAR))),
        "urban": ("urban", clearest(pixels(of_town == PEDESTRIAN))),
        "a truck in town": ("ambiguous", clearest(np.minimum(pixels(truck), pixels(town)))),
        "pedestrians on a verge": ("ambiguous",
                                   clearest(np.where(pixels(verge) > 100, pixels(walker), 0)))}
    return {title: {"image": test[context].image[i], "label": test[context].label[i],
                    "weight": float(everything[context].weight[i]),
                    **{model: everything[context].classes[model][i]
                       for model in (*EXPERTS, SIMPLE)}}
            for title, (context, i) in places.items()}


# -- Claims --------------------------------------------------------------------------------------

def over(found, measure):
    """[seeds]"""
    return np.array([measure(one) for one in found])


def judged(found):
    """The claims, of means over seeds; but what is so by construction is so for every seed."""
    def miou(model, name="mixed"):
        return over(found, lambda one: one.miou[model][name])

    own = np.stack([miou(HIGHWAY, "highway"), miou(URBAN, "urban")])
    other = np.stack([miou(HIGHWAY, "urban"), miou(URBAN, "highway")])
    simple, single = miou(SIMPLE), np.maximum(miou(HIGHWAY), miou(URBAN))
    weights = {name: over(found, lambda one: one.weight[name].mean()) for name in found[0].weight}
    right = np.stack([weights["highway"], 1 - weights["urban"]])       # [2, seeds]
    unseen, shared, apart, agreed = (
        over(found, lambda one: one.disagreement[key])
        for key in ("unseen", "shared", "error_apart", "error_agreed"))
    yield Claim("An expert is good on its own kind of road (65 % mIoU) and 40 points worse on the "
                "other", "highway and urban experts part on highway + urban: 22.4 against 49.6 %",
                f"own {ranged(own, 1)}, other {ranged(other, 1)}",
                bool((own.mean(axis=1) >= 65).all()
                     and ((own - other).mean(axis=1) >= 40).all()))
    yield Claim("On both, the mixture beats its better expert by 30 points, the ensemble of "
                "largest logits by 5, and the baseline of one expert's steps by 2",
                "simple 49.9 %; expert 49.6, max 45.6, baseline 50.3",
                f"simple {ranged(simple, 1)}; expert {ranged(single, 1)}, "
                f"max {ranged(miou(MAX), 1)}, baseline {ranged(miou(BASELINE), 1)}",
                bool((simple - single).mean() >= 30 and (simple - miou(MAX)).mean() >= 5
                     and (simple - miou(BASELINE)).mean() >= 2))
    yield Claim("It stays within 5 points of one network trained for as many steps as both "
                "experts", "similar quality", f"{ranged(miou(TWICE) - simple, 1)} points below",
                bool((miou(TWICE) - simple).mean() <= 5))
    yield Claim("The gate gives the right expert 0.95 of the weight on either kind of road, and "
                "the highway expert 0.3 to 0.7 on average over ambiguous scenes", "not given here",
                f"right expert {ranged(right, 3)}; ambiguous {ranged(weights['ambiguous'], 2)}",
                bool((right.mean(axis=1) >= .95).all()
                     and .3 <= weights["ambiguous"].mean() <= .7))
    yield Claim("The experts disagree on pixels of classes that one of them never saw: on 0.9 of "
                "them, 2.5 times as often as on classes that both know",
                "disagreement marks what an expert does not know",
                f"unseen {ranged(unseen, 2)}, shared {ranged(shared, 2)}",
                bool(unseen.mean() >= .9 and unseen.mean() >= 2.5 * shared.mean()))
    yield Claim("Where experts disagree on ambiguous scenes, the mixture errs twice as often as "
                "where they agree", "disagreement marks what is not to be trusted",
                f"error {ranged(apart, 3)} against {ranged(agreed, 3)}",
                bool(apart.mean() >= 2 * agreed.mean()))
    overruled = over(found, lambda one: one.overruled)
    yield Claim("The four masks cover every pixel once, and the simple mixture never overrules "
                "experts that agree", "by construction",
                f"{overruled.sum()} pixels overruled in {len(found)} seeds",
                bool(all(one.partition for one in found) and not overruled.any()))


def reported(found):
    """What is told and not judged."""
    def miou(model, name="mixed"):
        return over(found, lambda one: one.miou[model][name])

    yield Claim("The twice-trained baseline on ambiguous scenes: one weight for an image cannot "
                "give each half of a scene to the expert that knows it", "not measured",
                f"baseline {ranged(miou(TWICE, 'ambiguous'), 1)}, "
                f"simple {ranged(miou(SIMPLE, 'ambiguous'), 1)}", None)
    undecided = over(found, lambda one: ((one.weight["ambiguous"] > .1)
                                         & (one.weight["ambiguous"] < .9)).mean())
    yield Claim("Ambiguous scenes on which neither expert has 0.9 of the weight: the gate takes "
                "nearly every scene for one kind of road or the other", "not measured",
                f"{ranged(100 * undecided, 0)} %", None)
    yield Claim("Class-wise gates and the extra convolution",
                "simple 49.9; + conv 50.8; class-wise 50.0; + conv 50.9",
                "; ".join(ranged(miou(name), 1) for name in MIXTURES), None)
    yield Claim("Probabilities mixed in place of logits", "not measured",
                f"changes mIoU by at most {abs(miou(PROBABILITIES) - miou(SIMPLE)).max():.2f}",
                None)
    in_mixed, in_ambiguous = (100 * over(found, lambda one: one.masks["critical"][name]).max()
                              for name in ("mixed", "ambiguous"))
    yield Claim("Critical pixels, on which the mixture is against both experts",
                "shown in pictures", f"at most {in_mixed:.2f} % of mixed, {in_ambiguous:.2f} % of "
                "ambiguous", None)


# -- Tables --------------------------------------------------------------------------------------

def table_of_models(found):
    rows = [(model, f"{A2D2[model]:.1f}" if model in A2D2 else "--",
             ranged(over(found, lambda one: one.miou[model]["mixed"]), 1),
             ranged(over(found, lambda one: one.accuracy[model]["mixed"]), 1),
             ranged(over(found, lambda one: one.miou[model]["ambiguous"]), 1))
            for model in (HIGHWAY, URBAN, BASELINE, TWICE, MEAN, MAX, *MIXTURES)]
    return Table("Highways and towns together", ("model", "A2D2 mIoU %", "mIoU %", "pixels right %",
                                                 "ambiguous mIoU %"), rows,
                 "A2D2: FRRN-A, the authors' figures of 2024; those of 2020 were not at hand. Mean "
                 "[least, largest] over seeds.")


def table_of_roads(found):
    rows = [(model, *(ranged(over(found, lambda one: one.miou[model][name]), 1)
                      for name in ("highway", "urban")))
            for model in (HIGHWAY, URBAN, BASELINE, TWICE, SIMPLE)]
    return Table("mIoU % on each kind of road", ("model", "highway", "urban"), rows,
                 "One predicted pixel of a class that a kind of road lacks counts as a class with "
                 "an IoU of 0.")


def table_of_disagreement(found):
    rows = [(mask.replace("_", " "), *(ranged(over(
        found, lambda one: 100 * one.masks[mask][name]), 1) for name in SETS))
        for mask in paper.DisagreementMasks._fields]
    return Table("Agreement of the experts and the simple mixture, % of pixels", ("mask", *SETS),
                 rows, "normal 1: with the highway expert against the urban one; normal 2: the "
                       "other way round; critical: against both.")


# -- Figure --------------------------------------------------------------------------------------

PALETTE = ("#8ec9f0", "#4d4d4d", "#ffffff", "#4f9d45", "#d62728", "#b0b7bf", "#f2b01e", "#a0634a",
           "#e3c9a8", "#8e44ad")
MASKS = ("#f4f4f4", "#9ecae1", "#fdd0a2", "#d7191c")
BLUE, ORANGE, GREY = "#2f6da8", "#d9752b", "#777777"


def draw(found):
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    figure = Figure(figsize=(15, 14), dpi=120, layout="constrained")
    figure.suptitle("Two segmentation experts and their mixture", fontsize=15, x=0.01, ha="left",
                    weight="bold")
    above, below = figure.subfigures(2, 1, height_ratios=[2.1, 1])
    scenes = found[0].shown
    columns = ("scene", "labels", HIGHWAY, URBAN, "mixture", "disagreement")
    axes = above.subplots(len(scenes), len(columns), squeeze=False)
    classes = {"cmap": ListedColormap(PALETTE), "vmin": -.5, "vmax": K - .5}
    for row, (title, scene) in zip(axes, scenes.items()):
        masks = paper.disagreement_masks(*(scene[model] for model in (*EXPERTS, SIMPLE)))
        row[0].imshow((scene["image"] * .25 + .5).clip(0, 1))
        for axis, name in zip(row[1:5], ("label", *EXPERTS, SIMPLE)):
            axis.imshow(scene[name], **classes)
        row[5].imshow(np.argmax(masks, axis=0), cmap=ListedColormap(MASKS), vmin=-.5, vmax=3.5)
        row[0].set_ylabel(title, fontsize=11)
        row[4].set_xlabel(f"weight of the highway expert {scene['weight']:.2f}", fontsize=9)
        for axis, name in zip(row[2:5], (*EXPERTS, SIMPLE)):
            wrong = scene[name] != scene["label"]
            axis.set_ylabel(f"{100 * wrong.mean():.0f} % wrong", fontsize=9)
    for axis, name in zip(axes[0], columns):
        axis.set_title(name, fontsize=12)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    colours = (*zip(CLASSES, PALETTE), *zip(("all agree", "with highway", "with urban",
                                             "critical"), MASKS))
    above.legend(handles=[Patch(facecolor=colour, edgecolor="grey", label=name)
                          for name, colour in colours], loc="outside lower center",
                 ncols=len(colours), fontsize=9, frameon=False, handlelength=1, columnspacing=1.1)
    of_models, of_gate, of_classes = below.subplots(1, 3, width_ratios=[1.5, 1, 1.3])
    draw_models(of_models, found)
    draw_gate(of_gate, found)
    draw_disagreement(of_classes, found)
    for axis in (of_models, of_gate, of_classes):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def draw_models(axis, found):
    models = (HIGHWAY, URBAN, MEAN, MAX, BASELINE, TWICE, *MIXTURES)[::-1]
    for place, model in enumerate(models):
        values = over(found, lambda one: one.miou[model]["mixed"])
        colour = ORANGE if model in MIXTURES else BLUE if model in EXPERTS else GREY
        axis.barh(place, values.mean(), color=colour, alpha=.45)
        axis.plot(values, np.full(len(values), place), "o", color=colour, markersize=4)
        if model in A2D2:
            axis.plot(A2D2[model], place, "kx")
    axis.plot([], [], "kx", label="A2D2, the authors' figures of 2024")
    axis.plot([], [], "o", color=GREY, markersize=4, label="one seed")
    axis.set_yticks(range(len(models)), models, fontsize=9)
    axis.set(xlabel="mIoU on highways and towns (%)", xlim=(0, 100))
    axis.set_title("One network, two experts, ensembles, mixtures", loc="left", fontsize=11)
    axis.legend(fontsize=9, loc="upper right")


def draw_gate(axis, found):
    bins = np.linspace(0, 1, 21)
    for name, colour in (("highway", BLUE), ("urban", ORANGE), ("ambiguous", "#9467bd")):
        weight = np.concatenate([one.weight[name] for one in found])
        axis.hist(weight, bins, color=colour, alpha=.5, label=name)
    axis.set(xlabel="simple gate's weight of the highway expert", ylabel="scenes, all seeds")
    axis.set_title("What the gate makes of a scene", loc="left", fontsize=11)
    axis.legend(fontsize=9, loc="upper center")


def draw_disagreement(axis, found):
    bars = ((0, "classes one\nnever saw", "unseen", ORANGE),
            (1, "classes\nof both", "shared", BLUE),
            (2.6, "where experts\ndisagree", "error_apart", ORANGE),
            (3.6, "where\nthey agree", "error_agreed", BLUE))
    for place, _, key, colour in bars:
        values = over(found, lambda one: one.disagreement[key])
        axis.bar(place, values.mean(), .6, color=colour, alpha=.45)
        axis.plot(np.full(len(values), place), values, "o", color=colour, markersize=4)
    for place, text in ((.5, "Experts disagree\n(mixed)"), (3.1, "The mixture errs\n(ambiguous)")):
        axis.text(place, 1.03, text, ha="center", fontsize=9)
    axis.set_xticks([bar[0] for bar in bars], [bar[1] for bar in bars], fontsize=9)
    axis.set(ylabel="share of pixels", ylim=(0, 1.15))
    axis.set_title("What disagreement marks", loc="left", fontsize=11)

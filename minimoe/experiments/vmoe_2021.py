"""V-MoE in the small: digits, and what is left of them as experts are given fewer slots.

A Vision Transformer of four blocks reads the digits of ``minimoe.data.digits`` as 16 patches of
2 x 2 pixels and a class token; its second and fourth block have 8 experts, of which a token
chooses 2. It is trained with vanilla allocation at the capacity ratio of 1.05. Then, without noise
and without training it further, the ratio is lowered step by step, and test images are classified
by both algorithms: Algorithm 1, first come first served, and Algorithm 2, batch priority. In
training and after it, 8 images are routed together; those of the test are shuffled into groups
several times, and accuracy is averaged, as to come last in a group is no fault of an image.

All is float32; GELU is the released code's, by tanh. Claims, and the numbers in them, were fixed
before the runs that they are judged by.
"""
from functools import partial
from typing import NamedTuple

import numpy as np

from minimoe import ops, tree
from minimoe.autodiff.tensor import Tensor, grad
from minimoe.backend import to_numpy
from minimoe.data.digits import shuffled
from minimoe.experiments import harness
from minimoe.experiments.harness import Claim, Result, Table, ranged
from minimoe.optim import adam_init, adamw, cosine, linear_warmup
from minimoe.papers import vmoe_2021 as paper

SEEDS, TRAIN, TEST = 5, 1437, 360
RATIO = 1.05                                       # of capacity, in training
RATIOS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
LOW = RATIOS[RATIOS.index(0.5):]                   # at which the algorithms are compared
SHOWN = (0.5, 0.2)                                 # in pictures
STAYS = 0.02                                       # of accuracy: what may be lost
IMAGES = 8                                         # of a group
ALGORITHMS = {"vanilla": paper.route_vanilla, "batch priority": paper.route_batch_prioritized}
VANILLA, PRIORITY = ALGORITHMS
PIXELS, PATCH = 8, 2                               # on a side
S = (PIXELS // PATCH) ** 2 + 1                     # tokens of an image
forward = partial(paper.vmoe, activation=ops.gelu_tanh)


# -- The experiment ------------------------------------------------------------------------------

class Case(NamedTuple):
    seed: int
    steps: int = 250
    batch: int = 64          # images
    rate: float = 3e-3       # the highest, after 50 steps; then down to a twentieth
    decay: float = 0.1       # of weights
    width: int = 32
    n_heads: int = 2
    hidden: int = 64         # of an MLP, or of an expert
    n_blocks: int = 4
    every: int = 2           # of how many blocks one has experts
    n_experts: int = 8
    k: int = 2
    shuffles: int = 3        # of the test's images into groups
    test: int = TEST


class Found(NamedTuple):
    accuracy: dict           # algorithm: {ratio: of test images}
    kept: dict               # algorithm: {ratio: share of choices with a slot}, of all layers
    by_place: dict           # algorithm: {ratio: [8]}   the same by an image's place in its group
    ink: dict                # algorithm: {ratio: mean of patches with a slot, and of those without}
    classes: dict            # algorithm: {ratio: share of class tokens with a slot}
    full: float              # accuracy with a slot for every choice
    nothing: float           # and with none
    trained: dict            # of the last step: cross-entropy, share kept, balance losses
    pictures: dict           # of one group: its images, and which patches had a slot


class Seen(NamedTuple):
    """What some ratio and algorithm did to the test's images."""
    right: np.ndarray        # [N] bool
    taken: np.ndarray        # [L, N, S]   share of a token's choices with a slot


def run(settings):
    cases = [Case(seed) for seed in range(SEEDS)]
    if settings.quick:
        cases = [case._replace(steps=4, shuffles=1, test=40) for case in cases[:1]]
    found = harness.in_parallel(settings, measured, cases, "seeds")
    return Result(
        "V-MoE (Riquelme et al., 2021), on handwritten digits",
        [*judged(found), *reported(found)],
        [table_of_accuracy(found), table_of_slots(found)], draw(found),
        {"case": {name: value for name, value in cases[0]._asdict().items() if name != "seed"},
         "seeds": len(cases), "train": TRAIN, "capacity_ratio": RATIO, "images_of_a_group": IMAGES,
         "found": [{key: value for key, value in one._asdict().items() if key != "pictures"}
                   for one in found]})


def measured(settings, case):
    divide, start, luck = np.random.default_rng([settings.seed, case.seed]).spawn(3)
    train, test = shuffled(divide, TRAIN)
    mean, std = train.image.mean(), train.image.std()
    x, x_test = (tokens_of((data.image - mean) / std) for data in (train, test))
    params, last = trained(settings, case, x, train.label, start, luck)
    orders = [divide.permutation(TEST)[:case.test] for _ in range(case.shuffles)]

    def seen(algorithm, ratio):
        return [classified(settings, case, params, x_test[order], test.label[order], algorithm,
                           capacity_at(case, ratio)) for order in orders]

    looks = {name: {ratio: seen(algorithm, ratio) for ratio in RATIOS}
             for name, algorithm in ALGORITHMS.items()}
    ends = [np.mean([classified(settings, case, params, x_test[order], test.label[order],
                                paper.route_vanilla, capacity).right for order in orders])
            for capacity in (IMAGES * S, 0)]
    inks = [x_test[order].mean(axis=-1) * std + mean for order in orders]       # [N, S - 1]

    def each(what):
        return {name: {ratio: what(of_ratio) for ratio, of_ratio in of_algorithm.items()}
                for name, of_algorithm in looks.items()}

    return Found(
        each(lambda looks: np.mean([look.right for look in looks])),
        each(lambda looks: np.mean([look.taken for look in looks])),
        each(lambda looks: np.mean([look.taken.mean(axis=(0, 2)).reshape(-1, IMAGES).mean(axis=0)
                                    for look in looks], axis=0)),
        each(lambda looks: ink_of(looks, inks)),
        each(lambda looks: np.mean([look.taken[:, :, 0] > 0 for look in looks])),
        *ends, last,
        {"image": test.image[orders[0][:IMAGES]],
         **{name: {ratio: looks[name][ratio][0].taken[0, :IMAGES, 1:] > 0 for ratio in SHOWN}
            for name in ALGORITHMS}})


def tokens_of(image):
    """The patches of each image, row after row. [N, 64] -> [N, 16, 4]"""
    return paper.patches(image.reshape(-1, PIXELS, PIXELS, 1), PATCH).astype(np.float32)


def capacity_at(case, ratio):
    return paper.expert_capacity(IMAGES * S, case.n_experts, case.k, ratio)


def trained(settings, case, x, label, start, luck):
    """``start`` draws the weights, ``luck`` batches and noise. -> parameters, of the last step"""
    layers = paper.every(case.n_blocks, case.every)
    encoder = paper.encoder_init(start, case.n_blocks, case.width, case.n_heads, case.hidden,
                                 case.n_experts, layers)
    params = paper.vmoe_init(start, S - 1, PATCH ** 2, 10, encoder)
    params = harness.move(settings, tree.map(lambda p: p.astype(np.float32), params))
    capacity, state = capacity_at(case, RATIO), adam_init(params)
    for _ in range(case.steps):
        chosen = luck.integers(len(x), size=case.batch)
        z = luck.standard_normal((len(layers), case.batch * S, case.n_experts), dtype=np.float32)
        batch, z, targets = harness.move(settings, (x[chosen], z, label[chosen]))
        tensors = tree.map(Tensor, params)
        out = forward(tensors, batch, capacity, case.k, z, case.batch // IMAGES)
        cross_entropy = ops.cross_entropy(out.logits, targets).mean()
        gradients = grad(paper.training_loss(cross_entropy, out.layers), tensors)
        params, state = adamw(params, gradients, state, weight_decay=case.decay, learning_rate=(
            case.rate * linear_warmup(state.step, 50) * cosine(state.step, case.steps, 0.05)))
    return params, {
        "cross_entropy": float(cross_entropy),
        "kept": np.mean([float(layer.routing.keep.mean()) for layer in out.layers]),
        "importance_loss": np.mean([float(layer.importance_loss) for layer in out.layers]),
        "load_loss": np.mean([float(layer.load_loss) for layer in out.layers])}


def classified(settings, case, params, x, label, algorithm, capacity):
    """Of all images, routed in groups without noise. -> Seen"""
    out = forward(params, harness.move(settings, x), capacity, case.k, n_groups=len(x) // IMAGES,
                  route=algorithm)
    taken = [to_numpy(layer.routing.keep).mean(axis=-1).reshape(-1, S) for layer in out.layers]
    return Seen(to_numpy(out.logits).argmax(axis=-1) == label, np.stack(taken))


def ink_of(looks, inks):
    """Mean ink of patches that an expert of the first layer took, and of those none did."""
    taken = np.stack([look.taken[0, :, 1:] > 0 for look in looks])     # [shuffles, N, S - 1]
    inks = np.stack(inks)
    return [float(inks[of].mean()) if of.any() else None for of in (taken, ~taken)]


# -- Claims --------------------------------------------------------------------------------------

def accuracies(found, name):
    """[seeds, ratios]"""
    return np.array([[one.accuracy[name][ratio] for ratio in RATIOS] for one in found])


def held(found, name):
    """Down to which ratio each seed's accuracy stays within ``STAYS`` of the full one. [seeds]

    2 where it does not at 1, so that it counts as worse than any.
    """
    full = np.array([one.full for one in found])[:, None]
    stays = (accuracies(found, name) >= full - STAYS).cumprod(axis=1).sum(axis=1)
    return np.array([2.0, *RATIOS])[stays]


def judged(found):
    low = slice(RATIOS.index(LOW[0]), None)
    vanilla, priority = (accuracies(found, name).mean(axis=0) for name in ALGORITHMS)
    gains = (priority - vanilla)[low]
    yield Claim(
        "With fewer slots, priority is better: accuracy, averaged over seeds, is above that of "
        f"vanilla allocation at every capacity ratio from {LOW[0]} down to {LOW[-1]}.",
        "shown in figures down to 0.1: with priority, performance falls later and more slowly",
        "points gained at " + ", ".join(f"{ratio}: {100 * gain:+.1f}"
                                        for ratio, gain in zip(LOW, gains)),
        bool((gains > 0).all()))
    longer = [held(found, name) for name in ALGORITHMS]
    yield Claim(
        f"It holds longer: accuracy stays within {100 * STAYS:.0f} points of that with a slot for "
        "every choice down to a lower ratio than with vanilla allocation, on average.",
        "as little as half of the compute at inference",
        f"down to {ranged(longer[1], 2)} with priority, {ranged(longer[0], 2)} without",
        bool(longer[1].mean() < longer[0].mean()))


def reported(found):
    """What is told and not judged."""
    full = np.array([one.full for one in found])
    nothing = np.array([one.nothing for one in found])
    yield Claim("What the experts are worth: accuracy with a slot for every choice, and with none",
                "not measured", f"{ranged(100 * full, 1)} %; {ranged(100 * nothing, 1)} %", None)
    kept, importance, load = (np.array([one.trained[name] for one in found])
                              for name in ("kept", "importance_loss", "load_loss"))
    yield Claim(f"Balance at the end of training: share of choices with a slot at {RATIO}",
                "not given", f"{ranged(kept, 2)}; importance loss {ranged(importance, 3)}, load "
                f"loss {ranged(load, 3)}", None)
    first, last = (np.array([one.by_place[name][LOW[0]] for one in found]).mean(axis=0)
                   for name in ALGORITHMS)
    yield Claim(
        f"Vanilla allocation drops whole images, priority drops patches of all: at {LOW[0]}, the "
        "share of choices with a slot of the first and of the last image of a group",
        "tokens are prioritised across the entire batch",
        f"vanilla {first[0]:.2f} and {first[-1]:.2f}; priority {last[0]:.2f} and {last[-1]:.2f}",
        None)
    ratio = SHOWN[-1]
    inks = {name: [one.ink[name][ratio] for one in found] for name in ALGORITHMS}
    told = [f"{name} {_mean(kept)} and {_mean(dropped)}"
            for name, of in inks.items() for kept, dropped in [zip(*of)]]
    yield Claim(f"Patches dropped by all their experts at {ratio} have less ink: mean ink of those "
                "kept and of those dropped, in the first layer with experts",
                "shown in pictures: background goes first", "; ".join(told), None)
    classes = [np.array([one.classes[name][ratio] for one in found]) for name in ALGORITHMS]
    yield Claim(f"Class tokens with a slot at {ratio}, of both layers", "not given",
                f"vanilla {ranged(classes[0], 2)}, priority {ranged(classes[1], 2)}", None)


def _mean(values):
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.2f}" if known else "--"


# -- Tables --------------------------------------------------------------------------------------

def table_of_accuracy(found):
    columns = [100 * accuracies(found, name) for name in ALGORITHMS]
    rows = [(f"{ratio}", *(ranged(column[:, i], 1) for column in columns),
             ranged((columns[1] - columns[0])[:, i], 1)) for i, ratio in enumerate(RATIOS)]
    return Table("Test images classified rightly, %", ("capacity ratio", *ALGORITHMS, "gained"),
                 rows, "Mean [least, largest] over seeds.")


def table_of_slots(found):
    rows = []
    for ratio in (1.0, *SHOWN):
        for name in ALGORITHMS:
            places = np.mean([one.by_place[name][ratio] for one in found], axis=0)
            kept = np.mean([one.kept[name][ratio] for one in found])
            rows.append((f"{ratio} {name}", f"{kept:.2f}", *(f"{place:.2f}" for place in places)))
    return Table("Choices with a slot, by an image's place in its group of 8",
                 ("", "all", *(f"{place}." for place in range(1, IMAGES + 1))), rows)


# -- Figure --------------------------------------------------------------------------------------

BLUE, ORANGE, GREY = "#1f5fa8", "#d9822b", "#8a8a8a"
COLOURS = {VANILLA: ORANGE, PRIORITY: BLUE}


def draw(found):
    figure, axes = harness.panels(
        ["Accuracy as slots are taken away", "Who is given the slots that there are",
         *(f"C = {ratio}: patches that no expert of the first layer takes, in orange"
           for ratio in SHOWN)],
        2, (13, 9), "V-MoE: batch priority routing on digits")
    draw_accuracy(axes[0], found)
    draw_places(axes[1], found)
    for axis, ratio in zip(axes[2:], SHOWN):
        draw_patches(axis, found[0].pictures, ratio)
    return figure


def draw_accuracy(axis, found):
    for name, colour in COLOURS.items():
        rows = 100 * accuracies(found, name)
        axis.plot(RATIOS, rows.mean(axis=0), "o-", color=colour, linewidth=2, label=name)
        axis.fill_between(RATIOS, rows.min(axis=0), rows.max(axis=0), color=colour, alpha=0.15,
                          linewidth=0)
    for value, text, style in [(np.mean([one.full for one in found]), "a slot for all", ":"),
                               (np.mean([one.nothing for one in found]), "no slots at all", "--")]:
        axis.axhline(100 * value, color=GREY, linestyle=style, linewidth=1.2, label=text)
    axis.invert_xaxis()
    axis.set(xlabel="capacity ratio C at inference", ylabel="test images classified rightly, %")
    axis.legend(fontsize=9, loc="lower left", title="mean, and range over seeds",
                title_fontsize=9)


def draw_places(axis, found):
    for name, colour in COLOURS.items():
        for ratio, style in zip(SHOWN, ("o-", "s--")):
            places = np.mean([one.by_place[name][ratio] for one in found], axis=0)
            axis.plot(range(1, IMAGES + 1), 100 * places, style, color=colour, linewidth=1.6,
                      markersize=5, label=f"{name}, C = {ratio}")
    axis.set(xlabel="an image's place in its group of 8", ylim=(0, 105),
             ylabel="choices of its tokens with a slot, %")
    axis.legend(fontsize=9, loc="upper right")


def draw_patches(axis, pictures, ratio):
    """The images of one group, as they are and with what each algorithm drops painted over."""
    rows = [("images", np.ones((IMAGES, S - 1), bool)),
            *((name, pictures[name][ratio]) for name in ALGORITHMS)]
    gap, n = 1, PIXELS + 1
    canvas = np.ones((len(rows) * n - gap, IMAGES * n - gap, 3))
    for i, (_, kept) in enumerate(rows):
        for j in range(IMAGES):
            canvas[i * n:i * n + PIXELS, j * n:j * n + PIXELS] = painted(
                pictures["image"][j], kept[j])
    axis.imshow(canvas, interpolation="nearest")
    axis.set_yticks([i * n + PIXELS / 2 - 0.5 for i in range(len(rows))],
                    [name.replace(" ", "\n") for name, _ in rows], fontsize=9)
    axis.set_xticks([j * n + PIXELS / 2 - 0.5 for j in range(IMAGES)], range(1, IMAGES + 1))
    axis.set_xlabel("one group of 8 images, in the order in which they are routed")
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def painted(image, kept):
    """A digit in grey on white, its dropped patches tinted. [64], [16] bool -> [8, 8, 3]"""
    ink = image.reshape(PIXELS, PIXELS, 1)
    n = PIXELS // PATCH
    kept = kept.reshape(n, n).repeat(PATCH, axis=0).repeat(PATCH, axis=1)[:, :, None]
    paper_white = np.where(kept, np.array([0.93, 0.93, 0.93]), np.array([0.95, 0.62, 0.28]))
    return paper_white * (1 - 0.85 * ink)

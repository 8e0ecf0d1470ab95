"""A mixture-of-experts posterior beside a product: vetoes, gradients, and crossing between digits.

*Densities*: two experts along one axis, their normalised product beside their equal mixture, all in
closed form. *Estimators*: gradients of the bounds for z a number, prior N(0, 1), two data that are
N(z, 0.5^2), and Gaussian posteriors, where everything is known. *Digits*: MNIST and SVHN are out of
reach; pairs of digits that share their class (``minimoe.experiments.modalities``) stand in.
Encoders 64-128-(10, 10), decoders 10-128-64, ReLU; pixels are Laplace of scale 0.75 around
sigmoids. The MMVAE has Laplace posteriors and prior and K = 10; the MVAE, as in its paper,
Gaussians and one sample, so that the two differ in more than the posterior. *Single* rows are
MMVAEs of one modality. Three seeds of what is judged; codes are means of posteriors. In float32.
"""
import math
from typing import Any, NamedTuple

import numpy as np

from minimoe import ops, tree
from minimoe.autodiff.tensor import Tensor, grad
from minimoe.densities import (
    gaussian_log_density, gaussian_sample, log_mean_exp, product_of_gaussians)
from minimoe.experiments import harness, modalities
from minimoe.experiments.harness import Claim, Result, Table, spread
from minimoe.experiments.modalities import EPOCHS, LATENT, each, over_seeds
from minimoe.papers import mmvae_2019 as mmvae, mvae_2018 as mvae
from minimoe.papers.mmvae_2019 import (
    LOOSER, TIGHTER, Posteriors, doubly_reparametrised, laplace_log_likelihood,
    sticking_the_landing)

SEEDS = 3
ANNEALING = 10                     # epochs, of the MVAE
SAMPLES = 10                       # K
LIKELIHOODS = (laplace_log_likelihood, laplace_log_likelihood)
DREG, RELEASED, PLAIN = "MMVAE, DReG", "MMVAE, as released", "MMVAE, plain IWAE"
SUB, JOINT = "MVAE, sub-sampled", "MVAE, joint bound only"
SINGLE = ("single VAE of A", "single VAE of B")
ONCE = (RELEASED, *SINGLE)         # trained with the first seed alone: reported, not judged
GRADIENTS = {DREG: mmvae.dreg_gradient, RELEASED: mmvae.released_gradient,
             PLAIN: mmvae.iwae_gradient}
PAPER = {"MMVAE": {"a_to_b": 0.691, "b_to_a": 0.864, "joint": 0.421, "latent_a": 0.913,
                   "latent_b": 0.680},
         "MVAE": {"a_to_b": 0.095, "b_to_a": 0.093, "joint": 0.127},
         "single VAEs": {"latent_a": 0.853, "latent_b": 0.207}}   # A is MNIST, B is SVHN


def run(settings):
    """Densities, estimators, and every training of ``plan``."""
    cases = plan(settings.quick)
    runs = harness.in_parallel(settings, trained, cases, "all trainings")
    found = over_seeds(cases, [one.measures for one in runs])
    first = {case.row: one.shown for case, one in zip(cases, runs) if case.seed == 0}
    densities = veto(), over_confidence()
    estimated = estimators(settings)
    return Result(
        "The multimodal VAE with a mixture-of-experts posterior (Shi et al., 2019), beside the "
        "product of experts",
        [*judged_densities(*densities), *judged_estimators(estimated), *judged_digits(found),
         *reported(found)],
        [table_of_veto(densities[0]), table_of_over_confidence(densities[1]),
         table_of_estimators(estimated), table_of_criteria(found), table_of_synergy(found)],
        draw(densities, estimated, found, first),
        {"cases": [case._asdict() for case in cases], "latent": LATENT, "samples": SAMPLES,
         "hidden": modalities.HIDDEN, "batch": modalities.BATCH, "rate": modalities.RATE,
         "veto": densities[0], "over_confidence": densities[1],
         "estimators": {name: row._asdict() for name, row in estimated.items()},
         "found": found,
         "objective": {row: shown["history"] for row, shown in first.items()}})


# -- Densities: the veto, and an expert that is sure and wrong -----------------------------------

SEPARATIONS = (0, 2, 4, 8)
WIDTHS = (1.0, 0.5, 0.1, 0.03)
WEIGHTS = (0.1, 0.01)              # of the wrong expert in a product of weights that sum to 1


def product(mean, deviation, weight=(1.0, 1.0)):
    """Of two Gaussians along one axis: its mean and variance."""
    mean, log_variance = product_of_gaussians(
        np.array(mean)[:, None], 2 * np.log(np.array(deviation))[:, None],
        np.log(np.array(weight))[:, None])
    return float(mean[0]), float(np.exp(log_variance[0]))


def log_gaussian(x, mean, variance):
    return gaussian_log_density(x, mean, np.log(variance))


def log_mixture(x, means, deviations):
    return log_mean_exp(np.stack([log_gaussian(x, mean, deviation ** 2)
                                  for mean, deviation in zip(means, deviations)]), axis=0)


def veto():
    """log densities of N(0, 1) and N(distance, 1), multiplied and mixed. {distance: {...}}"""
    found = {}
    for distance in SEPARATIONS:
        experts = (0.0, float(distance)), (1.0, 1.0)
        mean, variance = product(*experts)
        found[distance] = {
            "product at an expert": log_gaussian(0.0, mean, variance),
            "mixture at an expert": log_mixture(0.0, *experts),
            "product between": log_gaussian(distance / 2, mean, variance),
            "mixture between": log_mixture(distance / 2, *experts)}
    return tree.map(float, found)


def over_confidence():
    """The truth is N(0, 1), and so is expert 1; expert 2 is N(5, s^2).

    The mean log density of the truth: exact of products, by quadrature of the mixture. {s: {...}}
    """
    x = np.linspace(-12, 12, 240001)
    truth = np.exp(log_gaussian(x, 0.0, 1.0)) * (x[1] - x[0])

    def expected(mean, variance):
        return -0.5 * (math.log(2 * math.pi * variance) + (1 + mean ** 2) / variance)

    found = {}
    for s in WIDTHS:
        experts = (0.0, 5.0), (1.0, s)
        mean, variance = product(*experts)
        found[s] = {"mean": mean, "variance": variance, "product": expected(mean, variance),
                    "mixture": float((truth * log_mixture(x, *experts)).sum()),
                    **{f"weight {w}": expected(*product(*experts, (1 - w, w))) for w in WEIGHTS}}
    return found


# -- Estimators: Gaussian posteriors of a number -------------------------------------------------

DRAWS = 50_000
DATA_DEVIATION = 0.5


class Toy(NamedTuple):
    mean: tuple          # of the posteriors
    deviation: tuple
    x: tuple             # one for each posterior
    K: int
    bound: Any = LOOSER


class Estimates(NamedTuple):
    """Of the gradient in the posteriors' means, by estimator: [M] each."""
    mean: dict
    deviation: dict      # of one draw
    error: dict          # of the mean


TOYS = {
    "M=1, K=1": Toy((-0.5,), (0.9,), (0.3,), 1), "M=1, K=5": Toy((-0.5,), (0.9,), (0.3,), 5),
    "M=1, K=25": Toy((-0.5,), (0.9,), (0.3,), 25),
    "M=2, K=5, overlap": Toy((-0.5, 0.6), (0.7, 0.9), (0.3, 0.5), 5),
    "M=2, K=5, overlap, tighter": Toy((-0.5, 0.6), (0.7, 0.9), (0.3, 0.5), 5, TIGHTER),
    "M=2, K=5, apart": Toy((-4.0, 4.0), (0.5, 0.5), (0.3, 0.5), 5)}


def estimators(settings):
    """Each toy's gradient by three estimators, from the same draws. {toy: Estimates}"""
    n = 2000 if settings.quick else DRAWS
    return {name: estimates(toy, np.random.default_rng([settings.seed, place]).standard_normal(
        (len(toy.mean), toy.K, n))) for place, (name, toy) in enumerate(TOYS.items())}


def estimates(toy, epsilon):
    """epsilon: [M, K, N], of N independent draws of the whole estimate."""
    M, _, N = epsilon.shape
    mean = Tensor(np.array(toy.mean)[:, None] + np.zeros((M, N)))
    log_variance = 2 * np.log(np.array(toy.deviation))[:, None]          # [M, 1]
    z = gaussian_sample(mean[:, None], log_variance[:, None], epsilon)   # [M, K, N]

    def log_weights(z, mean):
        log_q = [gaussian_log_density(z, mean[m], log_variance[m]) for m in range(M)]
        log_p = gaussian_log_density(z, 0.0, 0.0)
        for x in toy.x:
            log_p = log_p + gaussian_log_density(x, z, 2 * math.log(DATA_DEVIATION))
        return log_p - log_mean_exp(ops.stack(log_q), axis=0)

    def by(estimator):
        """The samples have an axis of one dimension there, as latent variables have."""
        mean_1 = Tensor(mean.array)
        z_1 = gaussian_sample(mean_1[:, None], log_variance[:, None], epsilon)[..., None]
        _, found, _ = estimator(lambda z: log_weights(z[..., 0], mean_1.array), z_1, mean_1, (),
                                toy.bound)
        return found

    found = {"plain": grad(toy.bound.value(log_weights(z, mean)).sum(), mean),
             "w once": by(sticking_the_landing), "w squared": by(doubly_reparametrised)}
    return Estimates({name: g.mean(axis=1) for name, g in found.items()},
                     {name: g.std(axis=1) for name, g in found.items()},
                     {name: g.std(axis=1) / math.sqrt(N) for name, g in found.items()})


def errors_apart(row, one, other):
    """The difference of two estimators' means, in its standard errors (as if independent). [M]"""
    return (row.mean[one] - row.mean[other]) / np.hypot(row.error[one], row.error[other])


# -- Digits --------------------------------------------------------------------------------------

class Case(NamedTuple):
    row: str
    seed: int
    epochs: int = EPOCHS
    n_train: int = modalities.TRAIN
    n_test: int = modalities.TEST
    n_importance: int = 200        # samples of each posterior, by which log p is estimated


class Run(NamedTuple):
    measures: dict     # of numbers
    shown: dict        # what the figure shows of it


def plan(quick):
    """What is trained, longest first. A quick run: one seed, one epoch on few digits, of each."""
    cases = [Case(row, seed) for row in (*GRADIENTS, SUB, JOINT, *SINGLE)
             for seed in range(1 if quick or row in ONCE else SEEDS)]
    return [case._replace(epochs=1, n_train=100, n_test=100, n_importance=10) if quick else case
            for case in cases]


def trained(settings, case):
    rng, start, training, test = np.random.default_rng([settings.seed, case.seed]).spawn(4)
    data = modalities.problem(rng, case.n_train, case.n_test)
    if case.row in GRADIENTS:
        return mixture(settings, case, data, start, training, test)
    if case.row in SINGLE:
        return single(settings, case, data, start, training, test)
    return products(settings, case, data, start, training, test)


def climb(settings, case, start, training, x, gradient):
    """An MMVAE of these modalities, trained."""
    likelihoods = (laplace_log_likelihood,) * len(x)

    def step(params, x, rng, *_):
        u = harness.move(settings, rng.random((len(x), SAMPLES, len(x[0]), LATENT), "f"))
        bound, uphill = gradient(params, x, u, likelihoods)
        return bound.mean(), tree.map(lambda g: g / len(x[0]), uphill)

    params = mmvae.init(start, (64,) * len(x), LATENT, modalities.HIDDEN)
    return modalities.train(settings, training, params, x, step, case.epochs)


def mixture(settings, case, data, start, training, test):
    params, history = climb(settings, case, start, training, data.train[:2], GRADIENTS[case.row])
    q_train, q = (mmvae.posteriors(params.encoders, pairs[:2]) for pairs in (data.train, data.test))
    scale = mmvae.prior_scale(params.prior)
    draws = mmvae.laplace_sample(0.0, scale, test.random((modalities.FROM_PRIOR, LATENT), "f"))
    judged = modalities.judges(data)
    codes = list(zip(q_train.location, q.location))
    samples = mmvae.samples(q, test.random((2, 1, *q.scale.shape[1:]), "f"))[:, 0]   # [M, N, D]
    return Run({**modalities.coherences(params.decoders, codes, draws, data, judged),
                **synergies(params, scale, q, data.test[:2], case.n_importance, test),
                **conflict(params.decoders, *opposed(
                    test, data.test, lambda x: one_of(test, mmvae.posteriors(params.encoders, x))),
                    judged)},
               {**pictures(params.decoders, data.test, q.location, draws), "history": history,
                "samples": samples, "label": data.test.label})


def single(settings, case, data, start, training, test):
    """An MMVAE of one modality: it has its own latent accuracy and log likelihood."""
    m = SINGLE.index(case.row)
    params, history = climb(settings, case, start, training, (data.train[m],),
                            mmvae.dreg_gradient)
    q_train, q = (mmvae.posteriors(params.encoders, (pairs[m],))
                  for pairs in (data.train, data.test))
    classify = modalities.logistic_regression(q_train.location[0], data.train.label)
    name = "ab"[m]
    log_p = marginal(params.decoders[0], mmvae.prior_scale(params.prior), q, data.test[m],
                     2 * case.n_importance, test)
    return Run({f"latent_{name}": mmvae.latent_accuracy(classify, q.location[0], data.test.label),
                f"log_p_{name}, own": log_p}, {"history": history})


def products(settings, case, data, start, training, test):
    """The MVAE, with the same networks."""
    chosen = mvae.subsets(2) if case.row == SUB else mvae.subsets(2)[:1]

    def step(params, x, rng, epoch, batch, n_batches):
        epsilons = harness.move(settings, rng.standard_normal(
            (len(chosen), len(x[0]), LATENT), "f"))
        beta = mvae.annealing_factor(batch, epoch, n_batches, ANNEALING)
        climbed = mvae.objective(params, x, chosen, epsilons, LIKELIHOODS, beta=beta)
        return climbed, grad(climbed, params)

    params, history = modalities.train(
        settings, training, mvae.init(start, modalities.WIDTHS, LATENT, modalities.HIDDEN),
        data.train[:2], step, case.epochs)

    def posterior(pairs, members):
        experts = [mvae.encode(encoder, a) for encoder, a in zip(params.encoders, pairs)]
        return mvae.posterior_of(experts, members)

    def sample(x):
        q = posterior(x, (0, 1))
        return gaussian_sample(*q, test.standard_normal(q.mean.shape, "f"))

    codes = [tuple(posterior(pairs[:2], (m,)).mean for pairs in (data.train, data.test))
             for m in range(2)]
    draws = test.standard_normal((modalities.FROM_PRIOR, LATENT), "f")
    judged = modalities.judges(data)
    return Run({**modalities.coherences(params.decoders, codes, draws, data, judged),
                **conflict(params.decoders, *opposed(test, data.test, sample), judged)},
               {**pictures(params.decoders, data.test, [code for _, code in codes], draws),
                "history": history})


# -- Measures ------------------------------------------------------------------------------------

def synergies(params, scale, q, x, n, rng):
    """log p of each modality, with the posteriors of both, its own, the other's; means over data.

    As many samples in all three.
    """
    found = {}
    for m, name in enumerate("ab"):
        for label, taken in (("both", slice(None)), ("own", slice(m, m + 1)),
                             ("other", slice(1 - m, 2 - m))):
            of_taken = Posteriors(*(part[taken] for part in q))
            found[f"log_p_{name}, {label}"] = marginal(
                params.decoders[m], scale, of_taken, x[m], 2 * n // len(of_taken.scale), rng)
    return found


def marginal(decoder, scale, q, x, n, rng, at_once=50):
    """The mean over data of ``marginal_log_likelihood``, for a few data at a time."""
    total = 0.0
    for i in range(0, len(x), at_once):
        part = Posteriors(*(a[:, i:i + at_once] for a in q))
        M, B, D = part.scale.shape
        z = mmvae.samples(part, rng.random((M, n, B, D), "f"))
        total += float(mmvae.marginal_log_likelihood(
            decoder, scale, part, x[i:i + at_once], z, laplace_log_likelihood).sum())
    return total / len(x)


def one_of(rng, q):
    """A sample of the mixture: a modality drawn for each datum, and one of its samples. [N, D]"""
    M, N, D = q.scale.shape
    z = mmvae.samples(q, rng.random((M, 1, N, D), "f"))[:, 0]            # [M, N, D]
    return z[rng.integers(M, size=N), np.arange(N)]


def opposed(rng, pairs, sample):
    """z of pairs whose digits are different, and these. [N, D], [N] int, [N] int"""
    order = rng.permutation(len(pairs.label))
    differ = pairs.label != pairs.label[order]
    a, b = pairs.a[differ], pairs.b[order][differ]
    return sample((a, b)), pairs.label[differ], pairs.label[order][differ]


def conflict(decoders, z, label_a, label_b, judged):
    """Where A shows one digit and B another: how often what is decoded is A's, is B's."""
    made = [judge(mvae.decode(layers, z)) for judge, layers in zip(judged.of_images, decoders)]
    return {"follows_a": float((made[0] == label_a).mean()),
            "follows_b": float((made[0] == label_b).mean())}


def pictures(decoders, pairs, codes, draws):
    """Two of each digit across, and what draws from the prior become: [2, 10, 64] each."""
    at = np.stack([modalities.one_of_each(pairs.label, which) for which in range(2)])
    some = draws[:20].reshape(2, 10, -1)

    def image(m, z):
        return ops.sigmoid(mvae.decode(decoders[m], z))

    return {"a": pairs.a[at], "b": pairs.b[at], "a_to_b": image(1, codes[0][at]),
            "b_to_a": image(0, codes[1][at]), "prior_a": image(0, some), "prior_b": image(1, some)}


# -- Claims --------------------------------------------------------------------------------------

CRITERIA = {"latent_a": "latent A", "latent_b": "latent B", "joint": "joint", "a_to_b": "A to B",
            "b_to_a": "B to A"}
ACROSS = ("a_to_b", "b_to_a")
LATENTS = ("latent_a", "latent_b")


def judged_densities(distances, sure):
    far = distances[8]
    yield Claim(
        "A veto: where two experts are 8 apart, the product has fallen by exp(-16) at each one's "
        "own mean and peaks where neither believes; the mixture loses log 2.",
        "said: a product vetoes, a mixture votes",
        f"log density at an expert: product {far['product at an expert']:.3f}, mixture "
        f"{far['mixture at an expert']:.3f}, it alone -0.919; between them "
        f"{far['product between']:.3f} and {far['mixture between']:.3f}",
        bool(abs(far["product between"] - far["product at an expert"] - 16) < 1e-9
             and far["mixture at an expert"] >= -0.5 * math.log(2 * math.pi) - math.log(2)))
    yield Claim(
        "An expert that is sure and wrong silences the others in a product, not in a mixture: the "
        "truth's mean log density falls without bound, and stays above that of the good expert "
        "less log 2.",
        "said: an over-confident expert",
        f"sd 1 to 0.03: product {sure[1.0]['product']:.2f} to {sure[0.03]['product']:.1f}, mixture "
        f"{sure[1.0]['mixture']:.3f} to {sure[0.03]['mixture']:.3f}",
        bool(np.all(np.diff([row["product"] for row in sure.values()]) < 0)
             and sure[0.03]["product"] < -1e4
             and min(row["mixture"] for row in sure.values())
             >= -0.5 * (math.log(2 * math.pi) + 1) - math.log(2) - 1e-9))


def judged_estimators(estimated):
    one = ["M=1, K=1", "M=1, K=5", "M=1, K=25"]
    apart = [float(abs(errors_apart(estimated[name], "w squared", "plain")).max())
             for name in (*one, "M=2, K=5, apart")]
    yield Claim(
        "The doubly reparametrised gradient has the mean of the plain one for one modality, and "
        "for posteriors far apart: within 4 standard errors.",
        "Tucker et al. 2019, for one posterior",
        f"at most {max(apart):.1f}", max(apart) < 4)
    biased = [float(abs(errors_apart(estimated[name], other, "plain")).min())
              for name, other in [("M=2, K=5, overlap", "w squared"), ("M=1, K=5", "w once"),
                                  ("M=1, K=25", "w once")]]
    yield Claim(
        "It is biased for two posteriors that overlap; and with w once, as the authors' code has "
        "it, for one modality already: by 4 standard errors or more.",
        "not said",
        ", ".join(f"{value:.0f}" for value in biased), min(biased) > 4)
    noise = {name: [float(abs(estimated[toy].mean[name][0]) / estimated[toy].deviation[name][0])
                    for toy in one] for name in ("plain", "w squared")}
    yield Claim(
        "As K grows, the plain gradient drowns in noise and the doubly reparametrised one does "
        "not: signal over noise for one modality and K = 1, 5, 25.",
        "Rainforth et al. 2018; Tucker et al. 2019",
        "; ".join(f"{name}: {each(values)}" for name, values in noise.items()),
        bool(np.all(np.diff(noise["plain"]) < 0)
             and noise["w squared"][2] > max(noise["w squared"][0], 10 * noise["plain"][2])))


def judged_digits(found):
    dreg, plain, sub = (found[row] for row in (DREG, PLAIN, SUB))
    lowest = min(dreg[way].min() for way in ACROSS)
    above = min((dreg[way] - sub[way]).min() for way in ACROSS)
    yield Claim(
        "Cross coherence: with the mixture, for every seed and both ways, at least 0.80, and at "
        "least 0.10 above the sub-sampled product.",
        "86.4 and 69.1 % against 9.5 and 9.3 %",
        "; ".join(f"{CRITERIA[way]} {each(dreg[way])} against {each(sub[way])}" for way in ACROSS),
        bool(lowest >= 0.8 and above >= 0.1))
    lowest = min(dreg[way].min() for way in LATENTS)
    above = min((dreg[way] - sub[way]).min() for way in LATENTS)
    yield Claim(
        "Latent factorisation: a linear classifier reads the digit from the mixture's codes with "
        "at least 0.90, and at least 0.05 above the sub-sampled product, for every seed.",
        "91.3 % (MNIST) and 68.0 % (SVHN)",
        "; ".join(f"{CRITERIA[way]} {each(dreg[way])}, against {each(sub[way])}"
                  for way in LATENTS),
        bool(lowest >= 0.9 and above >= 0.05))
    means = [np.mean([row[way] for way in ACROSS]) for row in (dreg, plain)]
    yield Claim(
        "DReG trains at least as well as the plain gradient: mean cross coherence.",
        "chosen for its signal",
        "{:.3f} against {:.3f}".format(*means), bool(means[0] >= means[1]))
    tilt = abs(dreg["follows_a"].mean() - dreg["follows_b"].mean())
    yield Claim(
        "An even vote: where A and B show different digits, a sample of the mixture follows each "
        "as often, within 0.06.",
        "said: a mixture takes a vote",
        f"A {dreg['follows_a'].mean():.2f}, B {dreg['follows_b'].mean():.2f}; the sub-sampled "
        f"product: {sub['follows_a'].mean():.2f} and {sub['follows_b'].mean():.2f}",
        bool(tilt < 0.06))


def reported(found):
    dreg, released, sub, joint = (found[row] for row in (DREG, RELEASED, SUB, JOINT))
    yield Claim(
        "The margin in latent factorisation is smaller against a product trained by the joint "
        "bound alone, whose codes tell the digit even where its decoders do not; and against one "
        "VAE for each modality.",
        "single VAEs: 85.3 % and 20.7 %",
        "; ".join(f"{CRITERIA[way]} {each(joint[way])}; single VAE {each(found[row][way])}"
                  for way, row in zip(LATENTS, SINGLE)), None)
    yield Claim(
        "Joint coherence: both decoders make the same digit of a draw from the prior.",
        "42.1 % against MVAE's 12.7 %",
        f"{each(dreg['joint'])} against {each(sub['joint'])}", None)
    yield Claim(
        "The gradient that the authors' code really takes, with w once, trains no worse.",
        "not said",
        "; ".join(f"{CRITERIA[way]} {each(released[way])} against {each(dreg[way])} of DReG"
                  for way in ACROSS), None)
    yield Claim(
        "Synergy: the posteriors of both modalities should explain one better than its own does, "
        "and that better than the other's; here both and its own are alike, the other's is behind. "
        "(log p in nats.)",
        "a table that could not be had",
        "; ".join(f"{name.upper()}: " + ", ".join(
            f"{dreg[f'log_p_{name}, {label}'].mean():.2f} ({label})"
            for label in ("both", "own", "other")) for name in "ab"), None)


# -- Tables --------------------------------------------------------------------------------------

def table_of_veto(distances):
    columns = list(distances[0])
    return Table("Two experts, N(0, 1) and N(distance, 1): log densities",
                 ("distance", *columns),
                 [(str(distance), *(f"{row[column]:.3f}" for column in columns))
                  for distance, row in distances.items()])


def table_of_over_confidence(sure):
    columns = list(sure[1.0])
    return Table("Truth and expert 1 are N(0, 1), expert 2 is N(5, s^2): mean log density of the "
                 "truth", ("s", *columns),
                 [(f"{s:g}", *(f"{row[column]:.4f}" if column in ("mean", "variance") else
                               f"{row[column]:.3f}" for column in columns))
                  for s, row in sure.items()],
                 "mean, variance: of the product. weight: of expert 2, in a product where expert 1 "
                 "has the rest.")


def table_of_estimators(estimated):
    names = ("plain", "w once", "w squared")

    def cell(row, name):
        return "; ".join(f"{mean:.3f} ({deviation:.2f})" for mean, deviation in
                         zip(row.mean[name], row.deviation[name]))

    return Table("Gradients of the bounds in the posteriors' means: mean (SD of a draw)",
                 ("", *names), [(label, *(cell(row, name) for name in names))
                                for label, row in estimated.items()],
                 f"Of {DRAWS:,} draws. w once: what the authors' code does; w squared: DReG.")


def table_of_criteria(found):
    def row(numbers, cell):
        return [cell(numbers[measure]) if measure in numbers else "" for measure in CRITERIA]

    return Table(
        "Three of the four criteria, as shares; mean (SD) of seeds",
        ("", *CRITERIA.values()),
        [*((label, *row(numbers, lambda v: spread(v, 3))) for label, numbers in found.items()),
         *((f"paper, {label}", *row(numbers, lambda v: f"{v:.3f}"))
           for label, numbers in PAPER.items())],
        "The paper's A is MNIST and its B SVHN (its figures are unconfirmed). Latent: a linear "
        "classifier of codes. Joint: whether both decoders make the same class of a draw from the "
        "prior. Across: whether what is made is of the class given.")


def table_of_synergy(found):
    labels = ("both", "own", "other")
    rows = []
    for name, label_of_single in zip("ab", SINGLE):
        key = f"log_p_{name}, "
        rows += [(f"{name.upper()}, {row}", *(spread(found[row][key + label], 2)
                                              for label in labels)) for row in GRADIENTS]
        rows.append((f"{name.upper()}, {label_of_single}", "",
                     spread(found[label_of_single][key + "own"], 2), ""))
    return Table("The fourth, synergy: log p of a modality, in nats, by the posteriors of whom; "
                 "mean (SD) of seeds", ("", *labels), rows)


# -- The figure ----------------------------------------------------------------------------------

BLUE, ORANGE, GREEN, RED, GREY = "#14457d", "#d9822b", "#3f8f5f", "#b03a1b", "#8a8a8a"
DOT = {"linestyle": "", "marker": "o", "markersize": 7, "alpha": 0.75, "markeredgewidth": 0}


def draw(densities, estimated, found, first):
    figure, axes = harness.panels(
        ["A product vetoes, a mixture votes", "Sure and wrong: what is left of the truth",
         "Signal and noise of a gradient in one draw", "The criteria, beside the paper's",
         "Across: from A to B", "Across: from B to A", "Pairs drawn from the prior",
         "Where A and B show different digits"],
        columns=4, size=(23, 10.5),
        title="A mixture of experts over two modalities, beside a product")
    draw_densities(axes[0])
    draw_over_confidence(axes[1], densities[1])
    draw_noise(axes[2], estimated)
    draw_criteria(axes[3], found)
    for axis, given, wanted in [(axes[4], "a", "b"), (axes[5], "b", "a")]:
        draw_rows(axis, [(first[DREG][given], "given"), *(
            (first[row][f"{given}_to_{wanted}"], label) for row, label in [
                (DREG, "mixture"), (SUB, "product"), (JOINT, "joint only")])])
    draw_rows(axes[6], [(first[row][f"prior_{m}"], f"{label}: {m.upper()}")
                        for row, label in [(DREG, "mixture"), (SUB, "product")] for m in "ab"])
    draw_conflict(axes[7], found)
    return figure


def draw_rows(axis, images):
    """Pairs of images [2, 10, 64] and a label: the first of each, then the second of each."""
    modalities.draw_images(axis, [rows[i] for i in range(2) for rows, _ in images],
                           [label for _ in range(2) for _, label in images])


def draw_densities(axis):
    """Two experts 4 apart, of which the second is surer."""
    x = np.linspace(-4, 7, 1000)
    experts = (0.0, 4.0), (1.0, 0.5)
    for mean, deviation, label in zip(*experts, ("expert 1", "expert 2")):
        axis.fill_between(x, np.exp(log_gaussian(x, mean, deviation ** 2)), color=GREY, alpha=0.25,
                          linewidth=0)
        axis.text(mean, 0.02, label, ha="center", va="bottom", fontsize=9)
    axis.plot(x, np.exp(log_gaussian(x, *product(*experts))), color=ORANGE, label="product")
    axis.plot(x, np.exp(log_mixture(x, *experts)), color=BLUE, label="mixture")
    axis.set(xlabel="z", ylabel="density", ylim=(0, None))
    axis.legend(fontsize=9)


def draw_over_confidence(axis, sure):
    s = np.geomspace(0.03, 2, 100)
    for weights, colour, label in [((1.0, 1.0), ORANGE, "product"),
                                   ((0.9, 0.1), GREEN, "of weights 0.9 and 0.1"),
                                   ((0.99, 0.01), RED, "of weights 0.99 and 0.01")]:
        lost = []
        for deviation in s:
            mean, variance = product((0.0, 5.0), (1.0, deviation), weights)
            lost.append(0.5 * (math.log(2 * math.pi * variance) + (1 + mean ** 2) / variance))
        axis.plot(s, lost, color=colour, label=label)
    axis.plot(list(sure), [-row["mixture"] for row in sure.values()], color=BLUE, marker="o",
              label="mixture")
    axis.set(xscale="log", yscale="log", xlabel="standard deviation of the wrong expert",
             ylabel="nats that the truth costs")
    axis.invert_xaxis()
    axis.legend(fontsize=9)


def draw_noise(axis, estimated):
    K = (1, 5, 25)
    for name, colour in [("plain", ORANGE), ("w once", GREY), ("w squared", BLUE)]:
        rows = [estimated[f"M=1, K={k}"] for k in K]
        axis.errorbar(np.array(K) * {"plain": 0.93, "w once": 1, "w squared": 1.07}[name],
                      [row.mean[name][0] for row in rows],
                      [row.deviation[name][0] for row in rows], color=colour, marker="o",
                      capsize=3, label={"w once": "w once (released)",
                                        "w squared": "w squared (DReG)"}.get(name, name))
    axis.axhline(0, color=GREY, linewidth=0.8)
    axis.set_xscale("log")
    axis.set_xticks(K, K)
    axis.minorticks_off()
    axis.set(xlabel="K, one modality", ylabel="gradient in the posterior's mean, and its SD")
    axis.legend(fontsize=9)


def draw_criteria(axis, found):
    for row, colour, aside in [(DREG, BLUE, -0.24), (PLAIN, GREEN, -0.08), (SUB, ORANGE, 0.08),
                               (JOINT, RED, 0.24)]:
        for place, measure in enumerate(CRITERIA):
            values = found[row][measure]
            axis.plot(np.full(len(values), place + aside), values, color=colour,
                      label=None if place else row, **DOT)
    for label, colour, aside in [("MMVAE", BLUE, -0.24), ("MVAE", ORANGE, 0.08)]:
        places = [place for place, measure in enumerate(CRITERIA) if measure in PAPER[label]]
        axis.plot(np.array(places) + aside, [PAPER[label][list(CRITERIA)[place]]
                                             for place in places],
                  linestyle="", marker="D", markersize=7, markerfacecolor="none", color=colour,
                  label=f"{label}, paper (MNIST, SVHN)")
    axis.set_xticks(range(len(CRITERIA)), CRITERIA.values())
    axis.set(ylim=(0, 1.02), ylabel="share")
    axis.legend(fontsize=8, loc="lower left")


def draw_conflict(axis, found):
    for place, (row, label) in enumerate([(DREG, "mixture"), (SUB, "product,\nsub-sampled"),
                                          (JOINT, "product,\njoint only")]):
        for aside, measure, colour in [(-0.12, "follows_a", BLUE), (0.12, "follows_b", ORANGE)]:
            values = found[row][measure]
            axis.plot(np.full(len(values), place + aside), values, color=colour,
                      label=None if place else measure.replace("_a", " A").replace("_b", " B"),
                      **DOT)
    axis.axhline(0.1, color=GREY, linewidth=1, linestyle=":", label="chance")
    axis.set_xticks(range(3), ["mixture", "product,\nsub-sampled", "product,\njoint only"])
    axis.set(ylim=(0, 0.6), ylabel="share of generated A")
    axis.legend(fontsize=9)

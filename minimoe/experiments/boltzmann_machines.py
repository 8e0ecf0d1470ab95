"""What contrastive divergence is held to on restricted Boltzmann machines: five small studies.

Where a machine is small enough to be enumerated the truth is known: ``learning_steps``, whether a
step of CD-1 improves what it should (Hinton 2002, Section 5); ``cosines``, how near CD-k is to the
gradient of the likelihood; ``bars_and_stripes``, what learning by each ends in; ``annealing``, log
Z by sampling. ``digit_scores`` recognises handwritten digits by a product for each class, and
``features`` is one machine for all of them. Each takes settings and a generator, and many machines
are one batch.
"""
import numpy as np

from minimoe import ops, tree
from minimoe.autodiff.tensor import Tensor, grad, value_and_grad
from minimoe.backend import to_numpy
from minimoe.data.digits import digits, shuffled
from minimoe.experiments import harness
from minimoe.optim import nesterov, sgd_init
from minimoe.papers.products_of_experts_1999 import (
    RBMParams, all_states, annealed_importance_sampling, contrastive_divergence,
    contrastive_gradient, exact_gradient, expected_contrastive_gradient, free_energy,
    hidden_probs, log_partition, log_probs, mean_field_reconstruction, model_distribution,
    persistent_gradient, rbm_gibbs, rbm_init, rbm_statistics, relative_entropy, visible_bias,
    visible_probs)

VISIBLE, HIDDEN = 8, 4         # of the machines of learning_steps and cosines
DIGITS, PIXELS = 10, 64


def uniform(settings, rng):
    """A function from a shape to draws, where the settings compute."""
    return lambda *shape: harness.move(settings, rng.random(shape))


def ascend(params, gradient, rate):
    return tree.map(lambda p, g: p + rate * g, params, gradient)


def cosine(a, b):
    """Of the angle between two directions of all parameters, machine by machine. -> [machines]"""
    def inner(a, b):
        return sum((x * y).reshape(len(x), -1).sum(axis=-1) for x, y in zip(a, b))
    return to_numpy(inner(a, b) / ops.sqrt(inner(a, a) * inner(b, b)))


def empirical(rng, machines, size):
    """The distributions of data drawn from all states alike. -> [machines, 2^VISIBLE]"""
    drawn = rng.integers(0, 2 ** VISIBLE, (machines, size))
    return np.stack([np.bincount(d, minlength=2 ** VISIBLE) / size for d in drawn])


def random_machines(rng, machines, scale):
    """Weights from N(0, scale^2), no biases."""
    w = scale * rng.standard_normal((machines, VISIBLE, HIDDEN))
    return RBMParams(w, 0 * w[..., 0], 0 * w[:, 0])


# -- The step, where everything is known ---------------------------------------------------------

def learning_steps(settings, rng, machines, scale, rate=1e-3):
    """By how much a step of exact CD-1 on the weights alone lowers CD_1, and KL(Q^0, Q^inf)."""
    params = random_machines(rng, machines, scale)
    q = empirical(rng, machines, size=10)
    params, q = harness.move(settings, (params, q))
    after = params._replace(w=params.w + rate * expected_contrastive_gradient(params, q).w)

    def measures(params):
        return (contrastive_divergence(params, q), relative_entropy(q, model_distribution(params)))

    falls = [to_numpy(a - b) for a, b in zip(measures(params), measures(after))]
    return dict(zip(("contrastive_divergence", "relative_entropy"), falls))


def cosines(settings, rng, machines, ks, chains):
    """The angles of CD-k: with minus the gradient of CD_1, and with that of the likelihood.

    {"divergence": [machines], "expected": [len(ks), machines], "sampled": [len(ks), machines]}; the
    sampled estimate is of so many chains from each of 20 data. Weights are from N(0, 1).
    """
    params, q = harness.move(settings, (random_machines(rng, machines, 1.0),
                                        empirical(rng, machines, size=20)))
    tensors = tree.map(Tensor, params)
    slope = grad(contrastive_divergence(tensors, q).sum(), tensors)
    exact = exact_gradient(params, q)
    place = np.stack([np.repeat(np.arange(2 ** VISIBLE), np.round(20 * row).astype(int))
                      for row in to_numpy(q)])                         # [machines, 20]
    data = all_states(VISIBLE, params.w)[harness.move(settings, place)]
    v = ops.concatenate([data] * chains, axis=1)                       # [machines, 20*chains, D]
    draw, steps = uniform(settings, rng), 0
    expected, sampled = [], []
    for k in ks:
        v = rbm_gibbs(params, v, draw(k - steps, *v.shape[:2], HIDDEN), draw(k - steps, *v.shape))
        steps = k
        sampled.append(cosine(contrastive_gradient(rbm_statistics, params, data, v), exact))
        expected.append(cosine(expected_contrastive_gradient(params, q, k), exact))
    opposed = np.sign(to_numpy(slope.w)) == np.sign(to_numpy(
        expected_contrastive_gradient(params, q).w))
    return {"divergence": cosine(tree.map(lambda g: -g, slope)[:1],
                                 expected_contrastive_gradient(params, q)[:1]),
            "opposed": float(opposed.mean()),
            "expected": np.stack(expected), "sampled": np.stack(sampled)}


# -- Learning, where the likelihood is known -----------------------------------------------------

def patterns():
    """The bars and the stripes of 3 x 3 pixels; all off and all on are both, and there once."""
    states = np.array(np.meshgrid(*[[0.0, 1.0]] * 3, indexing="ij")).reshape(3, -1).T  # [8, 3]
    bars = np.repeat(states[:, None], 3, axis=1).reshape(-1, 9)
    stripes = np.repeat(states[:, :, None], 3, axis=2).reshape(-1, 9)
    return np.unique(np.concatenate([bars, stripes]), axis=0)          # [14, 9]


def bars_and_stripes(settings, rng, method, machines, updates, watch=50):
    """Mean log likelihood as several 9 x 8 machines learn: {update: [machines]}

    ``method`` is "exact", "persistent" or the k of CD-k; 10 chains for each pattern. Starting
    weights come from the seed of the settings, so that all methods have the same.
    """
    v, starts = patterns(), np.random.default_rng(settings.seed)
    params = [rbm_init(starts, np.full(9, 0.5), 8) for _ in range(machines)]
    params = harness.move(settings, tree.map(lambda *p: np.stack(p), *params))
    place = (v @ 2 ** np.arange(9)[::-1]).astype(int)
    q = np.bincount(place, minlength=512) / len(v)                     # [512]
    data = np.broadcast_to(np.tile(v, (10, 1)), (machines, 10 * len(v), 9)).copy()
    v, q, data = harness.move(settings, (v, q, data))
    draw, n = uniform(settings, rng), data.shape[1]
    h = (draw(machines, n, 8) < 0.5).astype("float64")                 # of persistent chains
    found = {}
    for update in range(updates + 1):
        if update % watch == 0:
            found[update] = to_numpy(log_probs(params, v).mean(axis=-1))
        if method == "exact":
            gradient = exact_gradient(params, q)
        elif method == "persistent":
            gradient, h = persistent_gradient(params, data, h, draw(machines, n, 9),
                                              draw(machines, n, 8))
        else:
            reconstruction = rbm_gibbs(params, data, draw(method, machines, n, 8),
                                       draw(method, machines, n, 9))
            gradient = contrastive_gradient(rbm_statistics, params, data, reconstruction)
        params = ascend(params, gradient, 0.1)
    return found


def annealing(settings, rng, n_hidden, epochs, lengths):
    """A machine of the binarised digits: log Z by enumeration, and by AIS of these lengths."""
    v = (digits().image > 0.5).astype(float)
    mean = v.mean(axis=0)
    params = harness.move(settings, rbm_init(rng, mean, n_hidden))
    draw = uniform(settings, rng)
    for _ in range(epochs):
        for batch in np.array_split(rng.permutation(len(v)), len(v) // 20):
            data = harness.move(settings, v[batch])
            reconstruction = rbm_gibbs(params, data, draw(1, len(batch), n_hidden),
                                       draw(1, len(batch), PIXELS))
            params = ascend(params, contrastive_gradient(
                rbm_statistics, params, data, reconstruction), 0.05)
    base, data = harness.move(settings, (visible_bias(mean), v))
    found = [annealed(settings, rng, params, base, T) for T in lengths]
    independent = RBMParams(0 * params.w, base, 0 * params.b)
    return {"log_partition": float(log_partition(params)),
            "estimates": np.array([float(estimate.log_partition) for estimate in found]),
            "effective": np.array([float(estimate.effective) for estimate in found]),
            "log_likelihood": float(log_probs(params, data).mean()),
            "independent_pixels": float(log_probs(independent, data).mean())}


def annealed(settings, rng, params, base, steps, chains=100):
    """Annealed importance sampling, the betas evenly spaced."""
    draw, (D, H) = uniform(settings, rng), params.w.shape
    return annealed_importance_sampling(
        params, base, np.linspace(0, 1, steps + 1), draw(chains, D),
        ((draw(chains, H), draw(chains, D)) for _ in range(steps - 1)))


# -- Digits --------------------------------------------------------------------------------------

def digit_scores(settings, rng, epochs, steps):
    """Accuracies on test digits of what reads one machine's score for each class, and of others.

    1000 digits train the machines, 300 the read-outs, and 497 are for the test. "normalised" are
    scores less log Z by annealing in so many steps.
    """
    training, reading, test = shuffled(rng, 1000, 300)
    params = class_machines(settings, rng, training, epochs)
    scores = [-to_numpy(free_energy(params, harness.move(settings, part.image))).T
              for part in (reading, test)]                             # [N, DIGITS] each
    mean, sd = scores[0].mean(axis=0), scores[0].std(axis=0)

    def accuracy(read):
        return float((read == test.label).mean())

    log_z = [float(annealed(settings, rng, RBMParams(*machine), machine[1], steps).log_partition)
             for machine in zip(*params)]                              # [DIGITS]
    nearest = (test.image[:, None] - training.image[None]) ** 2
    return {"raw": accuracy(scores[1].argmax(axis=-1)),
            "normalised": accuracy((scores[1] - np.array(log_z)).argmax(axis=-1)),
            "scores": accuracy(read_out((scores[0] - mean) / sd, reading.label,
                                        (scores[1] - mean) / sd)),
            "pixels": accuracy(read_out(reading.image, reading.label, test.image)),
            "nearest": accuracy(training.label[nearest.sum(axis=-1).argmin(axis=-1)])}


def class_machines(settings, rng, data, epochs, n_hidden=50, batch=10, rate=0.05, decay=1e-4):
    """A machine for each digit, all trained at once by CD-1 with Eq. (9.1).

    An epoch takes as many batches of each class as the smallest fills. Momentum is 0.9 after the
    first 10 epochs.
    """
    images = [data.image[data.label == digit] for digit in range(DIGITS)]
    params = [rbm_init(rng, of_class.mean(axis=0), n_hidden) for of_class in images]
    params = harness.move(settings, tree.map(lambda *p: np.stack(p), *params))
    velocity, draw = tree.map(lambda p: 0 * p, params), uniform(settings, rng)
    n_batches = min(map(len, images)) // batch
    for epoch in range(epochs):
        shuffled_images = np.stack([of_class[rng.permutation(len(of_class))[:n_batches * batch]]
                                    for of_class in images], axis=1)   # [n, DIGITS, PIXELS]
        for v in shuffled_images.reshape(n_batches, batch, DIGITS, PIXELS).swapaxes(1, 2):
            v = harness.move(settings, v)                              # [DIGITS, batch, PIXELS]
            up = contrastive_gradient(rbm_statistics, params, v, mean_field_reconstruction(
                params, v, draw(DIGITS, batch, n_hidden)))
            up = up._replace(w=up.w - decay * params.w)
            velocity = tree.map(lambda m, g: (0.9 if epoch >= 10 else 0) * m + g, velocity, up)
            params = ascend(params, velocity, rate)
    return params


def read_out(x, label, test, strength=10.0, steps=3000):
    """Softmax of a linear map, fitted by cross-entropy and an L2 penalty. -> labels of ``test``

    The penalty is 1 / (2 strength) of the squared weights, beside the sum over the data.
    """
    x, test = (np.concatenate([a, np.ones_like(a[:, :1])], axis=1) for a in (x, test))

    def loss(w):
        return (ops.cross_entropy(x @ w, label).mean()
                + (w[:-1] * w[:-1]).sum() / (2 * strength * len(x)))

    w = np.zeros((x.shape[1], DIGITS))
    state, rate = sgd_init(w), 2 / (np.linalg.norm(x, 2) ** 2 / len(x))
    for _ in range(steps):
        _, gradient = value_and_grad(loss, w)
        w, state = nesterov(w, gradient, state, learning_rate=rate, momentum=0.97)
    return (test @ w).argmax(axis=-1)


def features(settings, rng, epochs, n_hidden=100, rate=0.05):
    """One machine for all digits, by persistent chains: its weights, and where the chains end.

    Batches are of 100, as many of each digit, as in Section 9; the rate falls to 0 in a line.
    {"w": [PIXELS, n_hidden], "fantasies": [100, PIXELS], "on": fraction of hidden units}
    """
    image, label = digits()
    of_digit = [np.flatnonzero(label == digit) for digit in range(DIGITS)]
    n_batches = min(map(len, of_digit)) // 10
    params = harness.move(settings, rbm_init(rng, image.mean(axis=0), n_hidden))
    draw = uniform(settings, rng)
    h = (draw(100, n_hidden) < 0.5).astype("float64")
    for epoch in range(epochs):
        order = np.stack([rng.permutation(index)[:10 * n_batches] for index in of_digit])
        for batch in order.reshape(DIGITS, n_batches, 10).swapaxes(0, 1):
            gradient, h = persistent_gradient(
                params, harness.move(settings, image[batch.ravel()]), h, draw(100, PIXELS),
                draw(100, n_hidden))
            params = ascend(params, gradient, rate * (1 - epoch / epochs))
    on = hidden_probs(params, harness.move(settings, image))
    return {"w": to_numpy(params.w), "fantasies": to_numpy(visible_probs(params, h)),
            "on": float(on.mean())}

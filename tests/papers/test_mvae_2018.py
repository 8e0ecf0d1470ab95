import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minimoe import nn, ops, oracle, tree
from minimoe.autodiff.check import check_vjp
from minimoe.autodiff.tensor import Tensor, grad
from minimoe.backend import to_numpy
from minimoe.densities import gaussian_kl, gaussian_log_density
from minimoe.oracle.trace import of_variant, trace
from minimoe.oracle.variants import conventions
from minimoe.papers import mvae_2018 as paper
from minimoe.papers.mvae_2018 import Gaussian

PIXELS = (paper.bernoulli_log_likelihood, paper.bernoulli_log_likelihood)


def close(computed, expected, tolerance=1e-10):
    """Within ``tolerance`` of the largest number expected."""
    expected = np.asarray(expected) if isinstance(expected, list) else to_numpy(expected)
    np.testing.assert_allclose(to_numpy(computed), expected, rtol=0,
                               atol=tolerance * np.abs(expected).max(initial=0.0))


@pytest.fixture
def two_experts(move):
    """Means (1, -2) and (3, 0.5), variances (0.5, 1) and (0.25, 4): precisions 2, 1 and 4, 1/4."""
    return (move(np.array([[[1.0, -2]], [[3, 0.5]]])),
            move(np.log(np.array([[[0.5, 1]], [[0.25, 4]]]))))


@pytest.fixture
def model(rng, move):
    """Two modalities, 5 and 4 wide, and two data."""
    params = move(paper.init(rng, (5, 4), latent=3, hidden=(6, 4)))
    return params, move((rng.random((2, 5)), rng.random((2, 4))))


def drawn(move, rng, *shape):
    return move(rng.standard_normal(shape))


# -- By hand -------------------------------------------------------------------------------------

def test_the_product_by_hand(two_experts):
    # precisions with the prior's: 1 + 2 + 4 = 7 and 1 + 1 + 1/4 = 9/4
    # means: (2 + 12) / 7 = 2 and (-2 + 1/8) / (9/4) = -5/6
    mean, log_variance = paper.product_of_experts(*two_experts)
    close(mean, [[2.0, -5 / 6]])
    close(log_variance, [[-math.log(7), -math.log(9 / 4)]])
    # KL to N(0, 1): half of mean^2 + variance - 1 - log variance; 2.544384 + 0.474910
    close(gaussian_kl(mean, log_variance), [[2.544384, 0.474910]], 1e-6)


def test_quotients_by_hand(move):
    # precisions 2, 4 and 3/2, 4/3 less the prior's 1: 5 and 11/6; means (2 + 12) / 5 and
    # (3/2 * -2 + 4/3 * 1/2) / (11/6) = -14/11
    mean = move(np.array([[[1.0, -2]], [[3, 0.5]]]))
    log_variance = -move(np.log(np.array([[[2, 1.5]], [[4, 4 / 3]]])))
    found = paper.product_with_quotients(mean, log_variance)
    close(found.mean, [[14 / 5, -14 / 11]])
    close(found.log_variance, [[-math.log(5), -math.log(11 / 6)]])


def test_the_released_product_counts_its_small_number_twice_and_once_more(two_experts, move):
    # with 1/2 for epsilon and two experts of variance 1: precisions 1 / (1 + 1) each, variance 1
    one = move(np.zeros((2, 1, 1)))
    found = paper.product_of_experts_released(one + 3, one, epsilon=0.5)
    close(found.mean, [[3.0]])
    close(found.log_variance, [[math.log(1.5)]])
    # with the prior among them and the released number it is the product, to that number's order
    mean, log_variance = two_experts
    prior = 0 * mean[:1]
    stacked = [ops.concatenate([a, prior]) for a in (mean, log_variance)]
    for a, b in zip(paper.product_of_experts_released(*stacked),
                    paper.product_of_experts(mean, log_variance)):
        close(a, b, 1e-6)


def test_the_bound_by_hand(move):
    # z = 2 + sqrt(1/4) * 2 = 3, which the decoder passes on: logit 3 for a pixel of 1
    # posterior N(2, 1/4) from an expert of precision 3 and mean 8/3, and the prior
    layer = nn.LinearParams(move(np.eye(1)), move(np.zeros(1)))
    decoders = ((layer,), (layer,))
    expert = Gaussian(move(np.array([[8 / 3]])), move(np.array([[-math.log(3)]])))
    kl = 0.5 * (4 + 0.25 - 1 - math.log(0.25))
    log_likelihood = -math.log1p(math.exp(-3))
    x, two = (move(np.ones((1, 1))),) * 2, move(np.full((1, 1), 2.0))
    found = paper.elbo(decoders, x, (expert, expert), (0,), two, PIXELS)
    close(found, [log_likelihood - kl])
    found = paper.elbo(decoders, x, (expert, expert), (0,), two, PIXELS, weights=(10.0, 5.0),
                       beta=0.5)
    close(found, [10 * log_likelihood - 0.5 * kl])


@pytest.mark.numpy_only("lists of whole numbers")
def test_subsets():
    assert paper.subsets(2) == [(0, 1), (0,), (1,)]
    assert paper.subsets(1) == [(0,)]
    assert paper.subsets(3, [(0, 2)]) == [(0, 1, 2), (0,), (1,), (2,), (0, 2)]


@pytest.mark.numpy_only("draws of the host, one at a time")
def test_subsets_of_random_size():
    # of 5 modalities, sizes 2, 3, 4 take a third of [0, 1) each; the smallest draws are in
    order = np.array([0.5, 0.1, 0.9, 0.3, 0.7])
    assert paper.subset_of_random_size(5, 0.0, order) == (1, 3)
    assert paper.subset_of_random_size(5, 0.34, order) == (0, 1, 3)
    assert paper.subset_of_random_size(5, 0.999, order) == (0, 1, 3, 4)


@pytest.mark.numpy_only("numbers of the host")
def test_annealing_by_hand():
    # 4 batches in an epoch, 2 epochs: an eighth more a batch, and 1 from the second epoch on
    steps = [(batch, epoch) for epoch in (1, 2, 3) for batch in range(4)]
    ramps = {f: [f(*step, 4, 2) for step in steps] for f in (
        paper.annealing_factor, paper.annealing_factor_fashion, paper.annealing_factor_multivae)}
    assert list(ramps.values()) == [[1 / 8, 2 / 8, 3 / 8, 4 / 8] + 8 * [1.0],
                                    [5 / 8, 6 / 8, 7 / 8, 8 / 8] + 8 * [1.0],
                                    [0, 1 / 8, 2 / 8, 3 / 8] + 8 * [1.0]]


# -- Gradients -----------------------------------------------------------------------------------

def test_gradients_of_the_products(draw, move, rng):
    mean, log_variance = draw(3, 4, 2), draw(3, 4, 2)
    present = move(np.array([[1, 0, 0, 1], [1, 1, 0, 0], [1, 1, 0, 1]], bool))
    for product, narrower in [(lambda *e: paper.product_of_experts(*e, present), 0),
                              (paper.product_of_experts_released, 0),
                              (paper.product_with_quotients, 3)]:
        check_vjp(lambda *e: ops.stack(product(*e)), mean, log_variance - narrower, rng=rng)


def test_gradients_of_the_objectives(move, rng):
    params, x = move((paper.init(rng, (2, 1), latent=1, hidden=(2,)),
                      (rng.random((2, 2)), rng.random((2, 1)))))
    epsilons, many = drawn(move, rng, 3, 2, 1), drawn(move, rng, 3, 2, 1)
    present = move(np.array([[True, False], [True, True]]))
    check_vjp(lambda params: paper.objective_multivae(
        params, x, paper.subsets(2), epsilons, PIXELS, present, (2.0, 0.5), 0.7), params, rng=rng)
    proposal = Gaussian(*drawn(move, rng, 2, 2, 1))
    check_vjp(lambda decoders: paper.importance_log_likelihood(decoders, x, proposal, many, PIXELS),
              params.decoders, rng=rng)


# -- Properties ----------------------------------------------------------------------------------

numbers = st.sampled_from([-700.0, -3.0, -1.0, 0.0, 1.0, 2.5, 700.0])
experts = st.tuples(st.integers(1, 4), st.integers(1, 3)).flatmap(lambda MD: st.tuples(
    arrays(float, (MD[0], 1, MD[1]), elements=st.sampled_from([-2.0, 0.0, 1.0, 5.0])),
    arrays(float, (MD[0], 1, MD[1]), elements=numbers), arrays(bool, (MD[0], 1))))


@given(experts)
def test_a_product_lies_among_its_experts_and_is_surer_than_any(move, drawn_experts):
    mean, log_variance, present = move(drawn_experts)
    found = [to_numpy(a) for a in paper.product_of_experts(mean, log_variance, present)]
    mean, log_variance, present = drawn_experts
    taken = np.concatenate([mean[present[:, 0]], np.zeros((1, *mean.shape[1:]))])
    assert (taken.min(axis=0) - 1e-12 <= found[0]).all()
    assert (found[0] <= taken.max(axis=0) + 1e-12).all()
    assert (found[1] <= np.minimum(log_variance[present[:, 0]].min(axis=0, initial=0), 0)).all()


def test_a_modality_that_is_missing_is_as_if_it_were_not_there(model, move, rng):
    params, x = model
    epsilons = drawn(move, rng, 1, 2, 3)
    nowhere = move(np.array([[True, True], [False, False]]))
    unread = (x[0], x[1] * math.nan)
    found = paper.elbos(params, unread, [(0, 1)], epsilons, PIXELS, nowhere)
    close(found, paper.elbos(params, x, [(0,)], epsilons, PIXELS))
    tensors = tree.map(Tensor, params)
    gradient = grad(paper.objective(tensors, unread, [(0, 1)], epsilons, PIXELS, nowhere), tensors)
    assert all(np.isfinite(to_numpy(g)).all() for g in tree.leaves(gradient))
    for unused in (gradient.encoders[1], gradient.decoders[1]):
        assert not any(to_numpy(g).any() for g in tree.leaves(unused))


def test_a_datum_without_modalities_has_the_prior_and_a_bound_of_0(model, move, rng):
    params, x = model
    present = move(np.array([[False, True], [False, True]]))
    bounds = paper.elbos(params, x, paper.subsets(2), drawn(move, rng, 3, 2, 3), PIXELS, present)
    assert to_numpy(bounds)[:, 0].tolist() == [0, 0, 0] and (to_numpy(bounds)[:, 1] != 0).all()
    experts = [paper.encode(encoder, a) for encoder, a in zip(params.encoders, x)]
    posterior = paper.posterior_of(experts, (0, 1), present)
    assert not to_numpy(posterior.mean)[0].any() and not to_numpy(posterior.log_variance)[0].any()


def test_the_objectives_differ_by_whom_they_average_over(model, move, rng):
    params, x = model
    present = move(np.array([[True, True], [True, False]]))     # B is seen once of two
    epsilons = drawn(move, rng, 3, 2, 3)
    given = params, x, paper.subsets(2), epsilons, PIXELS, present
    bounds = to_numpy(paper.elbos(*given))
    close(paper.objective(*given), bounds.sum() / 2)
    close(paper.objective_multivae(*given), (bounds[0].sum() + bounds[1].sum()) / 2
          + bounds[2].sum())
    everyone = (*given[:-1], move(np.ones((2, 2), bool)))
    close(paper.objective_multivae(*everyone), paper.objective(*everyone))
    close(paper.objective(*everyone), paper.objective(*given[:-1]))


def test_without_single_bounds_a_modality_of_no_use_trains_nobody(move, rng):
    """The reason to sub-sample: with a sure partner, an expert's gradient is next to nothing."""
    x = move((rng.random((5, 4)), rng.random((5, 4))))
    sure = paper.init(rng, (4, 4), latent=2, hidden=(3,))
    head = sure.encoders[0].log_variance
    certain = sure.encoders[0]._replace(log_variance=head._replace(b=head.b - 15))
    params = tree.map(Tensor, move(sure._replace(encoders=(certain, sure.encoders[1]))))
    epsilons = drawn(move, rng, 3, 5, 2)

    def pull(chosen):
        gradient = grad(paper.objective(params, x, chosen, epsilons[:len(chosen)], PIXELS),
                        params)
        return max(np.abs(to_numpy(g)).max() for g in tree.leaves(gradient.encoders[1]))

    assert pull(paper.subsets(2)[:1]) < 1e-4 < 1e-2 < pull(paper.subsets(2))


def test_the_posterior_of_linear_gaussian_modalities_is_the_exact_one(move):
    """x_m | z is N(z, v_m): each likelihood is an expert, and their product is the posterior."""
    v, x = np.array([0.5, 2.0]), np.array([1.0, -1.0])
    found = paper.product_of_experts(move(x[:, None, None]), move(np.log(v)[:, None, None]))
    z = np.linspace(-8, 8, 20001)
    joint = np.exp(sum(gaussian_log_density(x[m], z, np.log(v[m])) for m in range(2))
                   + gaussian_log_density(z, 0.0, 0.0))
    mean = (joint * z).sum() / joint.sum()
    close(found.mean, [[mean]], 1e-9)
    close(found.log_variance, [[math.log((joint * (z - mean) ** 2).sum() / joint.sum())]], 1e-9)


def test_importance_weights_find_the_likelihood_that_bounds_lie_below(move, rng):
    """One coin of logit z: p(x = 1) is 1/2, whatever z's proposal."""
    layer = nn.LinearParams(move(np.eye(1)), move(np.zeros(1)))
    x, many = (move(np.ones((1, 1))),), drawn(move, rng, 200_000, 1, 1)
    wide = Gaussian(move(np.array([[0.4]])), move(np.array([[0.3]])))
    found = paper.importance_log_likelihood(((layer,),), x, wide, many, PIXELS[:1])
    close(found, [-math.log(2)], 0.01)
    one_by_one = paper.importance_log_likelihood(((layer,),), x, wide, many[:1000].reshape(
        1, 1000, 1), PIXELS[:1])
    assert float(to_numpy(one_by_one).mean()) < -math.log(2)     # K = 1 is the bound


@pytest.mark.numpy_only("draws are made in NumPy")
def test_starts_have_the_shapes_of_their_modalities(rng):
    params = paper.init(rng, (5, 4), latent=3, hidden=(7, 6))
    assert [layer.w.shape for layer in params.encoders[0].hidden] == [(5, 7), (7, 6)]
    assert params.encoders[1].mean.w.shape == params.encoders[1].log_variance.w.shape == (6, 3)
    assert [layer.w.shape for layer in params.decoders[1]] == [(3, 6), (6, 7), (7, 4)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_everything_runs_in_its_dtype(model, move, rng, dtype):
    params, x, epsilons = tree.map(lambda a: a.astype(dtype), (*model, drawn(move, rng, 3, 2, 3)))
    present = move(np.array([[True, False], [True, True]]))
    tensors = tree.map(Tensor, params)
    for objective in (paper.objective, paper.objective_multivae):
        climbed = objective(tensors, x, paper.subsets(2), epsilons, PIXELS, present,
                            (1.0, 2.0), 0.5)
        assert climbed.dtype == dtype


# -- Bad input -----------------------------------------------------------------------------------

def test_a_quotient_that_is_no_density_is_refused(move):
    wide = move(np.zeros((2, 1, 1)) + 1.0)
    with pytest.raises(ValueError, match="product_with_quotients: the precisions of the"):
        paper.product_with_quotients(wide, wide)


def test_modalities_that_do_not_fit_are_refused(model, move, rng):
    params, x = model
    epsilons = drawn(move, rng, 3, 2, 3)
    with pytest.raises(ValueError, match=r"needs as many data of each modality; got \[2, 1\]"):
        paper.objective(params, (x[0], x[1][:1]), paper.subsets(2), epsilons, PIXELS)
    with pytest.raises(ValueError, match=r"present must have shape \(2, 2\); got \(2, 1\)"):
        paper.objective(params, x, paper.subsets(2), epsilons, PIXELS, move(np.ones((2, 1), bool)))
    with pytest.raises(ValueError, match="elbos: needs a draw for each of 3 subsets; got 2"):
        paper.objective(params, x, paper.subsets(2), epsilons[:2], PIXELS)


@pytest.mark.numpy_only("nothing is computed")
def test_two_modalities_have_no_subset_between(rng):
    with pytest.raises(ValueError, match="needs 3 modalities or more; got 2"):
        paper.subset_of_random_size(2, 0.5, rng.random(2))


# -- Cases and conventions -----------------------------------------------------------------------

def traced(name):
    case = oracle.case(f"mvae_2018/{name}")
    return case.run(), trace(case)


@pytest.mark.numpy_only("cases are of NumPy")
def test_cases_are_what_they_are_named_for():
    run, found = traced("some_missing")
    present = run.inputs["present"]
    assert not present[:, 0].any() and present[:, 1].all()
    assert 0 < present[:, 2:].mean() < 1
    assert (found["elbos"][:, 0] == 0).all()                  # nothing seen, nothing to explain
    assert traced("nothing_there")[1]["objective"] == 0
    run, found = traced("one_of_each")
    assert run.inputs["present"].sum(axis=0).tolist() == [1, 1, 1, 1]
    run, found = traced("one_sure_one_not")
    sure, unsure = (found[f"experts.{m}.log_variance"][:, 0] for m in range(2))
    assert (sure < -8).all() and (unsure > 8).all()
    assert (traced("product_one_sure")[0].inputs["log_variance"][0, 0] < -16).all()
    label = traced("complete")[0].inputs["x.2"]
    assert set(label.flat) == {0, 1} and (label.sum(axis=1) == 1).all()


@pytest.mark.numpy_only("cases are of NumPy")
@pytest.mark.parametrize("title, case, first", [
    ("small numbers in the product, as released", "product_one_sure", "product_of_experts.mean"),
    ("small numbers in the product, as released", "some_missing", "posterior.0.mean"),
    ("experts are posteriors, whose priors are divided out",
     "product_missing", "product_of_experts.mean"),
    ("a bound is averaged over the data that have one of its members, as in MultiVae",
     "some_missing", "objective"),
    ("a bound is averaged over all data", "multivae_one_of_each", "objective")])
def test_a_convention_is_recognised_where_it_parts_first(title, case, first):
    variant, = [v for v in conventions("mvae_2018") if v.title == title]
    case = oracle.case(f"mvae_2018/{case}")
    report = oracle.compare(case, of_variant(variant, case))
    assert report.first_divergence.name == first
    match = report.identify()[0]
    assert match.variant.title == title and match.whole

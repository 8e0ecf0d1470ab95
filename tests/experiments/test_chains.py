"""The model of Markov chains that experiments put their layers into."""
import numpy as np
import pytest

from minimoe.data.markov_chains import tokens
from minimoe.experiments import chains
from minimoe.experiments.chains import LayerOutput, Recipe, Trained, dense_layer, train
from minimoe.experiments.harness import Settings
from minimoe.routing.dispatch import Routing

SHORT = Recipe(steps=20, watch=5, held_out=2)


def test_excess_by_hand(rng):
    # chain 0 is sure of symbol 0, chain 1 takes either of two; the model knows nothing of either:
    # log 32 above the first, log 32 - log 2 above the second
    tables = np.zeros((2, 32, 32))
    tables[0, :, 0], tables[1, :, :2] = 1, 0.5
    params = chains.chain_init(rng, dense_layer(4), 1, 0.0)
    params = params._replace(w_out=0 * params.w_out)
    read = tokens(rng, tables, 1024)
    read.language[:] = np.arange(1024) % 4 == 0        # one in four from chain 1
    excess, outputs = chains.evaluate(Settings(), params, dense_layer(4), tables, [(read, [None])])
    assert excess == pytest.approx(np.log(32) - np.log(2) / 4)
    assert outputs[0][0].y.shape == (1024, 32)


def test_the_dense_model_learns_and_is_watched_from_the_start():
    trained = train(Settings(), 0, dense_layer(32), SHORT)
    assert trained.steps.tolist() == [0, 5, 10, 15, 20]
    assert (np.diff(trained.curve) < 0).all() and trained.excess < trained.curve[2]
    assert trained.params.w_out.dtype == trained.outputs[1][0].y.dtype == np.float32
    again = train(Settings(), 0, dense_layer(32), SHORT._replace(watch=0))
    assert again.excess == trained.excess and again.curve.size == 0


def test_runs_of_a_seed_share_what_they_can_and_other_seeds_do_not():
    untrained = Recipe(steps=0, held_out=1)
    one = train(Settings(), 1, dense_layer(32), untrained)
    shifted = train(Settings(), 1, dense_layer(8), untrained._replace(offset=1.0, n_blocks=2))
    assert (one.params.w_out == shifted.params.w_out).all()
    assert (one.params.languages == shifted.params.languages).all()
    difference = shifted.params.symbols - one.params.symbols
    np.testing.assert_allclose(difference, np.tile(difference[:1], (32, 1)), atol=1e-6)
    assert [len(layer) for layer in (one.params.layers, shifted.params.layers)] == [1, 2]
    for other in (train(Settings(seed=1), 1, dense_layer(32), untrained),
                  train(Settings(), 2, dense_layer(32), untrained)):
        assert not np.isclose(other.params.languages, one.params.languages).any()


def test_a_layer_is_given_its_draws_and_its_loss_is_descended():
    """The loss of this layer pulls its only weight to the mean of its draws, which is 3."""
    seen = []

    def apply(params, x, draws):
        seen.append(draws)
        return LayerOutput(0 * x, (params - draws).sum() * (params - draws).sum())

    layer = chains.Layer(lambda rng: np.zeros(1), apply, lambda rng: 3 + 0 * rng.random(1))
    recipe = Recipe(steps=20, watch=0, held_out=1, aux_weight=1.0, rate=0.3)
    trained = train(Settings(), 0, layer, recipe)
    assert abs(trained.params.layers[0][0] - 3) < 1
    assert len(seen) == 21 and all(draws.dtype == np.float32 for draws in seen)
    measured = chains.Layer(None, lambda params, x, draws: LayerOutput(0 * x, 7.0))
    assert train(Settings(), 0, layer, recipe, measured).outputs[0][0].aux_loss == 7.0


def test_steps_to_an_excess():
    run = Trained(None, 0.2, [], np.array([0, 10, 20]), np.array([0.9, 0.5, 0.3]))
    assert chains.steps_to(run, 0.5) == 10
    assert np.isnan(chains.steps_to(run, 0.2))


def test_shares_of_first_choices_and_who_starves():
    # 10 tokens over two batches: expert 0 has 7 first choices, 1 has 3, 2 none
    firsts = [[0, 0, 0, 1, 1], [0, 0, 0, 0, 1]]
    outputs = [[LayerOutput(None, 0.0, Routing(np.array([[e, 2] for e in first]), *[None] * 3))]
               for first in firsts]
    shares = chains.first_choices(Trained(None, 0.0, outputs, None, None), 3)
    assert shares == pytest.approx([0.7, 0.3, 0])
    assert chains.starved(shares) == pytest.approx(1 / 3)
    assert chains.starved(np.array([0.034, 0.033, 0.933])) == pytest.approx(1 / 3)

import re
from pathlib import Path

import numpy as np
import pytest

from minimoe import optim, tree
from minimoe.autodiff.tensor import Tensor, value_and_grad
from minimoe.backend import to_numpy
from minimoe.oracle.runs import read_arrays

RECORDED = Path(__file__).resolve().parents[1] / "reference_runs" / "recorded" / "optim"
FUNCTIONS = {"sgd": (optim.sgd_init, optim.sgd), "nesterov": (optim.sgd_init, optim.nesterov),
             "adam": (optim.adam_init, optim.adam), "adamw": (optim.adam_init, optim.adamw),
             "amsgrad": (optim.amsgrad_init, optim.amsgrad),
             "adafactor": (optim.adafactor_init, optim.adafactor)}
SETTINGS = {"lr": "learning_rate", "betas.0": "beta1", "betas.1": "beta2", "eps": "epsilon",
            "eps.0": "epsilon1", "eps.1": "epsilon2", "d": "clip", "momentum": "momentum",
            "weight_decay": "weight_decay", "nesterov": None, "beta2_decay": None, "amsgrad": None}
CASES = sorted(path.stem for path in RECORDED.glob("*.npz") if path.stem != "schedules")
EVERY = pytest.mark.parametrize("name", FUNCTIONS)


def group(arrays, prefix):
    return {key[len(prefix):]: a for key, a in arrays.items() if key.startswith(prefix)}


def settings_for(name, **others):
    return {"learning_rate": 0.1, **({"momentum": 0.9} if name == "nesterov" else {}), **others}


# -- Recorded trajectories -----------------------------------------------------------------------

@pytest.mark.parametrize("case", CASES)
def test_trajectory_is_that_of_torch(case, move):
    arrays = read_arrays(RECORDED / f"{case}.npz")
    recorded = {key: float(a) for key, a in group(arrays, "set.").items()}
    init, update = FUNCTIONS[case.partition("_")[0]]
    settings = {SETTINGS[key]: value for key, value in recorded.items() if SETTINGS[key]}
    if "beta2_decay" in recorded:
        settings["decay"] = -recorded["beta2_decay"]
    highest = settings.pop("learning_rate")
    params, gradients = move(group(arrays, "param.")), move(group(arrays, "in.gradient."))
    state = init(params)
    expected = group(arrays, "out.")
    for t in range(25):
        rate = min(highest, (t + 1) ** -0.5) if update is optim.adafactor else highest
        params, state = update(params, tree.map(lambda g: g[t], gradients), state,
                               learning_rate=rate, **settings)
        for name, p in params.items():
            error = abs(to_numpy(p) - expected[name][t]).max() / abs(expected[name]).max()
            assert error <= 1e-12, (name, t)
    assert state.step == 25


@pytest.mark.numpy_only("reads the names of the recorded cases")
def test_every_optimiser_has_two_recorded_settings_or_more():
    counts = [sum(case.partition("_")[0] == name for case in CASES) for name in FUNCTIONS]
    assert min(counts) >= 2


# -- By hand -------------------------------------------------------------------------------------

def test_first_step_of_adam_is_the_sign_of_the_gradient(move):
    params, g = move((np.array([1.0, 1.0, 1.0]), np.array([1e-3, -5.0, 0.0])))
    new, _ = optim.adam(params, g, optim.adam_init(params), learning_rate=0.25, epsilon=1e-30)
    assert to_numpy(new).tolist() == pytest.approx([0.75, 1.25, 1.0], rel=1e-12)


def test_amsgrad_remembers_the_largest_square(move):
    # with both betas 0, means are the last gradient's: squares of 100 and then 1, the largest 100
    x = move(np.array([1.0]))
    settings = {"learning_rate": 0.1, "beta1": 0.0, "beta2": 0.0, "epsilon": 0.0}
    x, state = optim.amsgrad(x, move(np.array([10.0])), optim.amsgrad_init(x), **settings)
    assert to_numpy(x).tolist() == pytest.approx([0.9])
    x, state = optim.amsgrad(x, move(np.array([1.0])), state, **settings)
    # Adam's step would be 0.1; it is a tenth of that
    assert to_numpy(x).tolist() == pytest.approx([0.89])
    assert to_numpy(state.largest).tolist() == [100.0]


def test_adafactor_adds_epsilon1_to_the_squares_of_gradients(move):
    # at the first update the squares are g^2 + epsilon1: 9 + 16 for a vector, whatever the decay;
    # the update 3 / 5 is not clipped, and the parameter's root mean square is 2
    params, g = move((np.array([2.0]), np.array([3.0])))
    new, state = optim.adafactor(params, g, optim.adafactor_init(params), learning_rate=0.5,
                                 epsilon1=16.0)
    assert to_numpy(state.columns).tolist() == [[25.0]]
    assert to_numpy(new).tolist() == pytest.approx([2.0 - 0.5 * 2.0 * 0.6])


def test_adafactor_keeps_margins_alone(move):
    params = move({"w": np.ones((2, 3, 4)), "b": np.ones(5)})
    state = optim.adafactor_init(params)
    assert [a.shape for a in tree.leaves(state.rows)] == [(2, 3, 1), (1, 1)]
    assert [a.shape for a in tree.leaves(state.columns)] == [(2, 1, 4), (1, 5)]


def test_adafactor_is_finite_where_float32_squares_vanish(move):
    params, g = move((np.ones((3, 4), np.float32), np.zeros((3, 4), np.float32)))
    new, _ = optim.adafactor(params, g, optim.adafactor_init(params), learning_rate=0.1)
    assert to_numpy(new).tolist() == np.ones((3, 4)).tolist()


# -- Properties ----------------------------------------------------------------------------------

@EVERY
def test_finds_the_minimum_of_a_bowl(name, move):
    centre = move({"a": np.array([0.3, -0.2]), "b": [np.array([[0.1, 0.5], [-0.4, 0.2]])]})
    init, update = FUNCTIONS[name]

    def loss(p):
        return ((p["a"] - centre["a"]) ** 2).sum() + ((p["b"][0] - centre["b"][0]) ** 2).sum()

    params = tree.map(lambda c: c * 0 + 1, centre)
    state = init(params)
    settings = settings_for(name, **({"weight_decay": 0.0} if name == "adamw" else {}))
    for step in range(300):
        _, gradients = value_and_grad(loss, params)
        settings["learning_rate"] = 0.1 * optim.cosine(step, 300)
        params, state = update(params, gradients, state, **settings)
    assert float(loss(params)) < 1e-3


@EVERY
def test_inputs_are_left_alone_and_float32_stays(name, rng, move):
    before = {"w": rng.standard_normal((3, 2)).astype(np.float32),
              "b": (rng.standard_normal(2).astype(np.float32), None)}
    params, gradients = move(tree.map(np.copy, before)), move(tree.map(np.copy, before))
    init, update = FUNCTIONS[name]
    settings = settings_for(name, learning_rate=np.float64(0.1))
    first, middle = update(params, gradients, init(params), **settings)
    kept = tree.map(lambda a: to_numpy(a).copy(), (first, middle[1:]))
    again, last = update(first, gradients, middle, **settings)
    for a in tree.leaves((first, again, last[1:])):
        assert a.dtype == "float32"
    for was, now in [(before, params), (before, gradients), (kept, (first, middle[1:]))]:
        for a, b in zip(tree.leaves(was), tree.leaves(now)):
            assert np.array_equal(a, to_numpy(b))
    assert again["b"][1] is None and isinstance(last.step, int)


@EVERY
def test_tensors_are_taken_as_arrays(name, rng, move):
    x, g = move((rng.standard_normal(3), rng.standard_normal(3)))
    init, update = FUNCTIONS[name]
    plain, _ = update(x, g, init(x), **settings_for(name))
    new, state = update(Tensor(x), Tensor(g), init(Tensor(x)), **settings_for(name))
    assert not isinstance(new, Tensor) and (new == plain).all()
    assert not any(isinstance(a, Tensor) for a in tree.leaves(state))


# -- Bad input -----------------------------------------------------------------------------------

@EVERY
@pytest.mark.parametrize("rate", [-0.1, np.nan, np.inf])
def test_a_bad_learning_rate_is_refused(name, rate, move):
    x = move(np.ones(3))
    init, update = FUNCTIONS[name]
    with pytest.raises(ValueError, match=f"{name}: learning_rate must be at least 0 and finite"):
        update(x, x, init(x), **settings_for(name, learning_rate=rate))


@pytest.mark.parametrize("name, bad, what", [
    ("sgd", {"momentum": 1.0}, "momentum must be at least 0 and below 1; got 1.0"),
    ("sgd", {"weight_decay": -1e-3}, "weight_decay must be at least 0 and finite; got -0.001"),
    ("nesterov", {"momentum": -0.5}, "momentum must be"),
    ("adam", {"beta1": 1.0}, "beta1 must be"), ("adam", {"beta2": -0.1}, "beta2 must be"),
    ("adamw", {"weight_decay": -1.0}, "weight_decay must be"),
    ("adafactor", {"clip": -1.0}, "clip must be")])
def test_a_bad_setting_is_refused(name, bad, what, move):
    x = move(np.ones(3))
    init, update = FUNCTIONS[name]
    with pytest.raises(ValueError, match=re.escape(f"{name}: {what}")):
        update(x, x, init(x), **settings_for(name, **bad))


@EVERY
def test_gradients_that_do_not_fit_are_refused(name, move):
    init, update = FUNCTIONS[name]
    params, other = move({"w": np.ones((2, 3))}), move({"v": np.ones((2, 3))})
    row, narrow = move({"w": np.ones((1, 3))}), move({"w": np.ones((2, 3), np.float32)})
    with pytest.raises(ValueError, match="the trees differ at the top"):
        update(params, other, init(params), **settings_for(name))
    with pytest.raises(ValueError, match=r"gradients must be shaped like the parameters; got "
                                         r"\(1, 3\) for \(2, 3\)"):
        update(params, row, init(params), **settings_for(name))
    with pytest.raises(TypeError, match="dtype; got float32 for float64"):
        update(params, narrow, init(params), **settings_for(name))
    with pytest.raises(ValueError, match="the trees differ at the top"):
        update(params, params, init(other), **settings_for(name))


# -- Schedules -----------------------------------------------------------------------------------

def test_schedules_are_those_of_torch(move):
    arrays = read_arrays(RECORDED / "schedules.npz")
    for key, expected in group(arrays, "out.").items():
        floor = {} if key == "linear_warmup" else {"floor": 0.1}
        factors = [getattr(optim, key)(step, 20, **floor) for step in range(len(expected))]
        assert factors == pytest.approx(expected.tolist(), rel=1e-12), key


def test_schedules_by_hand(move):
    assert [optim.constant(step) for step in (0, 10)] == [1, 1]
    assert [optim.linear_warmup(step, 4) for step in range(6)] == [.25, .5, .75, 1, 1, 1]
    assert [optim.inverse_square_root(step, 4) for step in (0, 3, 15, 99)] == [1, 1, 0.5, 0.2]
    assert [optim.linear_decay(step, 4) for step in range(6)] == [1, .75, .5, .25, 0, 0]
    assert [optim.cosine(step, 4) for step in (0, 2, 4, 9)] == pytest.approx([1, .5, 0, 0])
    assert optim.cosine(9, 4, floor=0.2) == 0.2


@pytest.mark.parametrize("schedule", [optim.linear_warmup, optim.inverse_square_root,
                                      optim.cosine, optim.linear_decay])
def test_steps_out_of_range_are_refused(schedule, move):
    for step, n_steps in [(-1, 10), (0, 0)]:
        with pytest.raises(ValueError, match=f"{schedule.__name__}: step must be at least 0"):
            schedule(step, n_steps)
    with pytest.raises(ValueError, match="constant: "):
        optim.constant(-1)

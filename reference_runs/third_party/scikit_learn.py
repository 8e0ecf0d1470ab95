"""scikit-learn: BernoulliRBM, on the draws of a case."""
from unittest import mock

from sklearn.neural_network import BernoulliRBM

from reference_runs.third_party.holding import Check, Reading


class Draws:
    """A generator that gives what was drawn before, in scikit-learn's order."""

    def __init__(self, *arrays):
        self.arrays = list(arrays)

    def uniform(self, size):
        return self.arrays.pop(0).reshape(size)

    def randint(self, low, high, size):
        return self.arrays.pop(0).reshape(size)


def machine(case, rate=0.1):
    model = BernoulliRBM(n_components=case.w.shape[1], learning_rate=rate, batch_size=len(case.v))
    model.components_ = case.w.T.copy()
    model.intercept_visible_, model.intercept_hidden_ = case.a.copy(), case.b.copy()
    return model


def as_recorded(case):
    """Everything that the kind made of it has."""
    model = machine(case, case.learning_rate)
    found = {"hidden_probs": model.transform(case.v), "free_energy": model._free_energy(case.v)}
    model.random_state_ = Draws(case.u_hidden, case.u_visible)
    found["gibbs"] = model.gibbs(case.v).astype(float)
    place = case.flipped.argmax(axis=1)
    with mock.patch("sklearn.neural_network._rbm.check_random_state", lambda _: Draws(place)):
        found["score_samples"] = model.score_samples(case.v)
    model.h_samples_ = case["chains.h"].copy()
    model.random_state_ = Draws(case["chains.u_visible"], case["chains.u_hidden"])
    model.partial_fit(case.v)
    return {**found, "h": model.h_samples_, "updated.w": model.components_.T,
            "updated.a": model.intercept_visible_, "updated.b": model.intercept_hidden_}


def as_rbm(case):
    """The paper's machine: Gibbs sampling step by step, and the update by persistent chains.

    The update is made at a rate so large that what it is added to does not round it.
    """
    rate = 2.0**30
    model, v = machine(case, rate), case.v
    found = {"free_energy": model._free_energy(v), "positive_hidden": model.transform(v)}
    for i, (u_hidden, u_visible) in enumerate(zip(case.u_hidden, case.u_visible)):
        found[f"steps.{i}.hidden_probs"] = model.transform(v)
        model.random_state_ = Draws(u_hidden, u_visible)
        found[f"steps.{i}.v"] = v = model.gibbs(v).astype(float)
    found.update(reconstruction=v, negative_hidden=model.transform(v))
    model.h_samples_ = case["chains.h"].copy()
    model.random_state_ = Draws(case["chains.u_visible"], case["chains.u_hidden"])
    model.partial_fit(case.v)
    updated = {"w": model.components_.T - case.w, "a": model.intercept_visible_ - case.a,
               "b": model.intercept_hidden_ - case.b}
    return {**found, "h": model.h_samples_,
            **{f"persistent_gradient.{name}": step / rate for name, step in updated.items()}}


def checks():
    reading = Reading(
        "persistent_gradient.w", "_rbm.py: BernoulliRBM._fit", "what the chains have is divided "
        "by the number of data, not of chains: in a last batch that is smaller than batch_size, "
        "they count for too much")
    return [Check("scikit-learn", "BernoulliRBM", "products_of_experts_1999",
                  {"rbm": as_rbm, "scikit_learn": as_recorded}, (reading,),
                  adapter="numpy", dtype="float64")]

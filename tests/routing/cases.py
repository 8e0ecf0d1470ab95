"""What the tests of routing share: routings of every kind, and the comparison of two layers."""
import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minimoe import Tensor, pullback
from minimoe.backend import to_numpy
from minimoe.routing.dispatch import Routing
from minimoe.routing.topk import slots, top_k

few_values = st.sampled_from([-np.inf, -1.0, 0.0, 1.0])     # ties are likely
score_tables = st.tuples(st.integers(0, 8), st.integers(1, 5)).flatmap(
    lambda shape: arrays(float, shape, elements=few_values))


class Case:
    """A routing of T tokens to E experts of C slots, K to each, and numbers drawn to go with it."""

    def __init__(self, move, routing, n_experts, capacity, seed=0):
        self.move, self.routing, self.E, self.C = move, routing, n_experts, capacity
        self.T, self.K = routing.expert.shape
        self.rng = np.random.default_rng(seed)

    def normal(self, *shape):
        return self.move(self.rng.standard_normal(shape))

    def with_gate(self, gate):
        return self.routing._replace(gate=gate)


@st.composite
def cases(draw, move):
    """By scores full of ties, or of any experts, one perhaps twice; anybody may be turned away."""
    scores = draw(score_tables)
    T, E = scores.shape
    if draw(st.booleans()):
        expert = to_numpy(top_k(move(scores), draw(st.integers(1, min(E, 3)))))
    else:
        expert = draw(arrays(int, (T, draw(st.integers(1, 3))), elements=st.integers(0, E - 1)))
    order = draw(st.none() | st.permutations(range(T)))
    slot = slots(move(expert), E, None if order is None else move(np.array(order, dtype=int)))
    capacity = draw(st.integers(0, 4))
    here = draw(st.just(True) | arrays(bool, expert.shape))
    keep = (to_numpy(slot) < capacity) & here
    seed = draw(st.integers(0, 99))
    gate = np.random.default_rng(seed).standard_normal(expert.shape)
    gate *= draw(st.just(1.0) | arrays(float, expert.shape, elements=st.sampled_from([0.0, 1.0])))
    return Case(move, Routing(move(expert), slot, move(keep), move(gate)), E, capacity, seed)


def example(move, T, E, K, capacity, seed=0):
    """Tokens to their best experts, as many as there is room for."""
    rng = np.random.default_rng(seed)
    expert = top_k(move(rng.standard_normal((T, E))), K)
    slot = slots(expert, E)
    routing = Routing(expert, slot, slot < capacity, move(rng.standard_normal((T, K))))
    return Case(move, routing, E, capacity, seed)


def assert_equal_with_gradients(layers, arguments, g):
    """All layers give the value and the gradients of the first, to 1e-12."""
    results = []
    for layer in layers:
        tensors = [Tensor(a) for a in arguments]
        y = layer(*tensors)
        results.append([to_numpy(a) for a in [y.array, *pullback(y, g, tensors)]])
    for result in results[1:]:
        for a, expected in zip(result, results[0], strict=True):
            np.testing.assert_allclose(a, expected, rtol=1e-12, atol=1e-12)

"""What batch priority adds to the vanilla dispatch of V-MoE.

    python -m tests.benchmarks.vmoe [seconds for each size]

From gates [T, E] in float32: who is chosen, who sits where, tokens to their seats and back, both
ways by the same functions; the order of tokens is all that differs. *alone* is choosing and seating
without moving a token. Capacity is that of training, at a ratio of 1.05. The two take turns as in
the benchmark of the engine, and the fastest run of each counts. T = 1576 is 8 images of B/16.
"""
import sys

import numpy as np

from minimoe import ops
from minimoe.papers import vmoe_2021 as paper
from minimoe.routing.dispatch import gather, gather_back, packed_seats
from tests.benchmarks import THREADS
from tests.benchmarks.engine import race

AT_MOST = 1.15
SIZES = ((1576, 768, 8, 2), (1576, 768, 32, 2), (4096, 512, 8, 1), (4096, 512, 32, 2),
         (4096, 256, 32, 1))                                           # T, D, E, k
ROUTES = {"vanilla": paper.route_vanilla, "priority": paper.route_batch_prioritized}


def dispatches(x, gates, capacity, k, route):
    def step():
        routing = route(gates, capacity, k)
        seats, _ = packed_seats(routing.expert, routing.keep, gates.shape[1])
        return gather_back(gather(x, seats), routing.gate, seats)
    return step


def ratio(seconds, make):
    best = race(seconds, {name: make(route) for name, route in ROUTES.items()})
    return best["priority"] / best["vanilla"], best["vanilla"]


def main(seconds=4.0):
    print(f"{THREADS} threads; times of vanilla, and priority as a multiple; target {AT_MOST} for "
          f"the dispatch, * where missed.\n\n{'T':>6} {'D':>4} {'E':>3} {'k':>2} "
          f"{'dispatch':>20} {'alone':>20}")
    rng = np.random.default_rng(0)
    for T, D, E, k in SIZES:
        x = rng.standard_normal((T, D), dtype="f")
        w_router = rng.standard_normal((D, E), dtype="f") * np.float32(D ** -0.5)
        gates = ops.softmax(x @ w_router)
        capacity = paper.expert_capacity(T, E, k, 1.05)
        cells = []
        for make in (lambda route: dispatches(x, gates, capacity, k, route),
                     lambda route: lambda: route(gates, capacity, k)):
            times, base = ratio(seconds / 2, make)
            missed = "*" if not cells and times > AT_MOST else " "
            cells.append(f"{base * 1e3:9.2f} ms {times:6.2f}{missed}")
        print(f"{T:6} {D:4} {E:3} {k:2} {' '.join(cells)}", flush=True)


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))

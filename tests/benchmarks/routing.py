"""What a layer of experts costs, beside its bare products and beside layers made of PyTorch.

    python -m tests.benchmarks.routing [--size 128x1 ...] [--seconds 15]

Forward and backward in float32: router, softmax, choice, queue, experts of two matrices and a relu,
and the gated sum; gradients of the tokens, the router and the experts. T = 4096 tokens. k = 1 is
Switch, with capacity factor 1.25; k = 2 turns nobody away here.

    products   the yardstick: the six products of all experts with as many rows, shared out evenly,
               as NumPy's own batched matmul makes them, [E, R, D] @ [E, D, H] and so on, with fresh
               results: forward, gradient of the inputs, gradient of the weights
    memory     the highest resident memory of two steps, above what is held before them (inputs,
               parameters, libraries), each layer in a process of its own, warmed up on few tokens;
               results and gradients count

Contestants take turns as in the benchmark of the engine, and the fastest run of each counts; who
needs twice minimoe's time in the first turn is let off the rest. What is not installed is named and
left out. All have the same tokens, router and experts, relu without bias, except where a note says
otherwise.
"""
import argparse
import contextlib
import ctypes
import multiprocessing
import os
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minimoe import Tensor, ops, pullback
from minimoe.routing.dispatch import Routing
from minimoe.routing.experts import expert_feed_forward
from minimoe.routing.topk import slots, top_k
from tests.benchmarks import THREADS
from tests.benchmarks.engine import race

STATUS = Path("/proc/self/status")
AT_MOST = 1.25         # times the bare products
T = 4096


class Size(NamedTuple):
    T: int
    D: int
    H: int
    E: int
    k: int

    @property
    def capacity(self):
        return self.T * 5 // (self.E * 4) if self.k == 1 else self.T


SIZES = {f"8x{k}wide": Size(T, 512, 2048, 8, k) for k in (1, 2)}
SIZES |= {f"{E}x{k}": Size(T, 256, 512, E, k) for E in (8, 16, 32, 64, 128) for k in (1, 2)}


class Case(NamedTuple):
    """The numbers that all contestants are given."""
    x: np.ndarray           # [T, D]
    g: np.ndarray           # [T, D]     cotangent of the output
    w_router: np.ndarray    # [D, E]
    w_in: np.ndarray        # [E, D, H]
    w_out: np.ndarray       # [E, H, D]


def draw(size):
    rng = np.random.default_rng(0)
    T, D, H, E, _ = size

    def normal(*shape, scale=1.0):
        return rng.standard_normal(shape, dtype="f") * np.float32(scale)

    return Case(normal(T, D), normal(T, D), normal(D, E, scale=D ** -0.5),
                normal(E, D, H, scale=D ** -0.5), normal(E, H, D, scale=H ** -0.5))


# -- NumPy ---------------------------------------------------------------------------------------

def minimoe(size, case):
    x, g, *weights = case

    def step():
        tensors = [Tensor(a) for a in (x, *weights)]
        y, _ = layer(size, *tensors)
        return pullback(y, g, tensors)
    return step


def layer(size, x, w_router, w_in, w_out):
    probs = ops.softmax(x @ w_router)                                    # [T, E]
    expert = top_k(probs, size.k)                                        # [T, K]
    slot = slots(expert, size.E)
    gate = ops.take_along_axis(probs, expert, axis=1)
    routing = Routing(expert, slot, slot < size.capacity, gate)
    return expert_feed_forward(x, routing, w_in, w_out), routing


def products(size, case):
    """The bare products, on as many rows as the layer keeps."""
    x, _, w_router, w_in, w_out = case
    _, routing = layer(size, x, w_router, w_in, w_out)
    rows = int(routing.keep.sum()) // size.E
    x, g = np.random.default_rng(1).standard_normal((2, size.E, rows, size.D), dtype="f")

    def step():
        hidden = x @ w_in                                                # [E, R, H]
        y = hidden @ w_out
        to_out = hidden.swapaxes(1, 2) @ g
        to_hidden = g @ w_out.swapaxes(1, 2)
        to_in = x.swapaxes(1, 2) @ to_hidden
        return y, to_hidden @ w_in.swapaxes(1, 2), to_in, to_out
    return step


# -- PyTorch -------------------------------------------------------------------------------------

def torch_step(module, x, g, output=lambda y: y):
    import torch
    x, g = torch.from_numpy(x).requires_grad_(), torch.from_numpy(g)

    def step():
        module.zero_grad()
        x.grad = None
        output(module(x)).backward(g)
    return step


def torch_experts(case):
    """One relu expert for each pair of matrices."""
    import torch
    experts = torch.nn.ModuleList()
    for w_in, w_out in zip(case.w_in, case.w_out):
        experts.append(torch.nn.Sequential(linear(w_in), torch.nn.ReLU(), linear(w_out)))
    return experts


def linear(w):
    import torch
    module = torch.nn.Linear(*w.shape, bias=False, device="meta")
    module.weight = torch.nn.Parameter(torch.from_numpy(w.T.copy()))
    return module


def index_add(size, case):
    """Written here in the usual way: each expert gets its tokens, and adds to them, by index."""
    import torch

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.router, self.experts = linear(case.w_router), torch_experts(case)

        def forward(self, x):
            gate, expert = torch.softmax(self.router(x), -1).topk(size.k)
            y = torch.zeros_like(x)
            for e, module in enumerate(self.experts):
                token, choice = torch.where(expert == e)
                if size.k == 1:
                    token, choice = token[:size.capacity], choice[:size.capacity]
                rows = module(x[token]) * gate[token, choice, None]
                y = y.index_add(0, token, rows)
            return y

    return torch_step(Layer(), case.x, case.g)


def sparse_dispatcher(size, case):
    """Written here after davidmrau's mixture-of-experts: gates [T, E], one sort, one index_add."""
    import torch

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.router, self.experts = linear(case.w_router), torch_experts(case)

        def forward(self, x):
            top, expert = torch.softmax(self.router(x), -1).topk(size.k)
            gates = torch.zeros(size.T, size.E).scatter(1, expert, top)
            e, token = gates.T.nonzero(as_tuple=True)                    # sorted by expert
            parts = x[token].split(torch.bincount(e, minlength=size.E).tolist())
            rows = torch.cat([module(part) for module, part in zip(self.experts, parts)])
            return torch.zeros_like(x).index_add(0, token, rows * gates[token, e, None])

    return torch_step(Layer(), case.x, case.g)


def transformers(size, case):
    from transformers.models.switch_transformers import modeling_switch_transformers as switch
    config = switch.SwitchTransformersConfig(
        d_model=size.D, d_ff=size.H, num_experts=size.E, expert_capacity=size.capacity,
        dropout_rate=0.0, router_jitter_noise=0.0)
    module = switch.SwitchTransformersSparseMLP(config)
    module.router.classifier = linear(case.w_router)
    for expert, (wi, _, wo) in zip(module.experts.values(), torch_experts(case)):
        expert.wi, expert.wo = wi, wo
    return torch_step(module, case.x[None], case.g[None], lambda y: y[0])


def deepspeed(size, case):
    from deepspeed.moe.sharded_moe import MOELayer, TopKGate
    gate = TopKGate(size.D, size.E, size.k, capacity_factor=1.25 if size.k == 1 else 1.0,
                    use_rts=False, top2_2nd_expert_sampling=False)
    gate.wg = linear(case.w_router)
    module = MOELayer(gate, deepspeed_experts(case), "alone", 1, size.E)
    return torch_step(lambda_module(module, lambda x: module(x, None)), case.x, case.g)


def deepspeed_experts(case):
    from deepspeed.moe.experts import Experts
    first, *_ = experts = torch_experts(case)
    module = Experts(first)
    module.deepspeed_experts, module.num_local_experts = experts, len(experts)
    return module


def lambda_module(module, call):
    """``module``, called in another way."""
    import torch

    class Called(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, x):
            return call(x)
    return Called()


def fairscale(size, case):
    import torch.distributed as dist
    from fairscale.nn.moe import MOELayer, Top2Gate
    if not dist.is_initialized():
        meeting = Path(tempfile.mkdtemp()) / "meeting"
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
    gate = Top2Gate(size.D, size.E)
    gate.wg = linear(case.w_router)
    return torch_step(MOELayer(gate, torch_experts(case)), case.x.reshape(size.E, -1, size.D),
                      case.g.reshape(size.E, -1, size.D))


def mixture_of_experts(size, case):
    import torch
    from mixture_of_experts import MoE
    module = MoE(size.D, num_experts=size.E, hidden_dim=size.H, activation=torch.nn.ReLU,
                 second_policy_train="all")
    module.gate.w_gating.data = torch.from_numpy(case.w_router.copy())
    module.experts.w1.data = torch.from_numpy(case.w_in.copy())
    module.experts.w2.data = torch.from_numpy(case.w_out.copy())
    return torch_step(module, case.x[None], case.g[None], lambda y: y[0])


def st_moe_pytorch(size, case):
    from st_moe_pytorch import MoE
    module = MoE(size.D, num_experts=size.E, gating_top_n=2, threshold_train=0.0,
                 experts=torch_experts(case))
    module.gate.to_gates = linear(case.w_router)
    return torch_step(module, case.x[None], case.g[None], lambda y: y.outputs)


class Peer(NamedTuple):
    make: object
    package: str
    choices: tuple      # the k that it knows
    note: str


PEERS = {
    "index_add": Peer(index_add, "torch", (1, 2), "written here; does what minimoe does"),
    "dispatcher": Peer(sparse_dispatcher, "torch", (1, 2), "written here after davidmrau's; k = 1: "
                       "turns nobody away, a few rows more"),
    "transformers": Peer(transformers, "transformers", (1,), "SwitchTransformersSparseMLP; a token "
                         "turned away is passed through, times its gate"),
    "deepspeed": Peer(deepspeed, "deepspeed", (1, 2), "MOELayer by index; computes empty slots, "
                      "capacity k T / E, k = 1: 1.25 T / E, and its balance loss; k = 2: gates "
                      "that sum to 1, experts overflow"),
    "fairscale": Peer(fairscale, "fairscale", (2,), "MOELayer by einsum, in E groups; computes "
                      "empty slots, capacity 2 T / E; gates that sum to 1, random second expert"),
    "mixture": Peer(mixture_of_experts, "mixture_of_experts", (2,), "mixture-of-experts' MoE by "
                    "einsum; LESS WORK: capacity 1.25 T / E for 2 T choices; gates that sum to 1"),
    "st-moe": Peer(st_moe_pytorch, "st_moe_pytorch", (2,), "st-moe-pytorch's MoE by einsum, given "
                   "relu experts; LESS WORK: as mixture; gates that sum to 1"),
}


def installed():
    """The peers whose packages are here; a line for each that is not."""
    found = {}
    for name, peer in PEERS.items():
        try:
            with quiet():
                __import__("torch").set_num_threads(THREADS)
                __import__(peer.package)
            found[name] = peer
        except ImportError:
            print(f"{name}: {peer.package} is not installed: no comparison with it")
    return found


@contextlib.contextmanager
def quiet():
    """Nothing on the terminal: packages greet whoever imports them."""
    with open(os.devnull, "w") as nowhere:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield


# -- Memory --------------------------------------------------------------------------------------

def print_memory(sizes, peers):
    """A table of the megabytes that each takes. To be called before anybody has begun threads."""
    print(f"\nMemory in MB, and what {T} tokens more add to ours; * where a peer takes less.\n\n"
          f"{'size':8} {'minimoe':>8} {'tokens':>9} {heading()}")
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as processes:
        for name in sizes:
            size = SIZES[name]
            layers = {"minimoe": minimoe} | knowing(size, peers)
            jobs = [(make, size) for make in layers.values()]
            jobs.append((minimoe, size._replace(T=2 * T)))
            *used, of_twice = processes.imap(memory, jobs)
            used = dict(zip(layers, used))
            ours = used["minimoe"]
            cells = [cell(used.get(peer), 0, peer in used and used[peer] < ours) for peer in PEERS]
            print(f"{name:8} {ours:8.0f} {of_twice - ours:+9.0f} {' '.join(cells)}", flush=True)


def memory(job):
    """MB that two steps take at most, above what is held before them."""
    make, size = job
    few = Size(128, 64, 64, 8, size.k)
    with quiet():
        make(few, draw(few))()
        step = make(size, draw(size))
    trim()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")        # the highest level begins anew
    for _ in range(2):
        result = step()
        del result
    return (resident("VmHWM") - before) / 1e3


def trim():
    """Give back what was freed while the layer was made: used again, it would leave no trace."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim:
        malloc_trim(0)


def resident(name):
    """A level of memory, in kB."""
    return int(re.search(rf"{name}:\s*(\d+)", STATUS.read_text())[1])


# -- Report --------------------------------------------------------------------------------------

def print_times(sizes, peers, seconds):
    print(f"\nMilliseconds, times the products (target {AT_MOST}), times each peer (target 1); "
          f"* where missed.\n\n{'size':8} {'minimoe':>8} {'products':>9} {heading()}")
    for name in sizes:
        size = SIZES[name]
        case = draw(size)
        with quiet():
            runs = {peer: make(size, case) for peer, make in knowing(size, peers).items()}
        runs |= {"minimoe": minimoe(size, case), "products": products(size, case)}
        best = race(1, runs)                            # which is one turn for each, if not more
        near = {other: run for other, run in runs.items() if best[other] < 2 * best["minimoe"]}
        for other, time in race(seconds, near).items():
            best[other] = min(best[other], time)
        ours = best["minimoe"]
        ratios = {other: ours / time for other, time in best.items()}
        cells = [cell(ratios["products"], 2, ratios["products"] > AT_MOST, 9)]
        cells += [cell(ratios.get(peer), 2, ratios.get(peer, 0) > 1) for peer in PEERS]
        print(f"{name:8} {ours * 1e3:8.1f} {' '.join(cells)}", flush=True)


def knowing(size, peers):
    """Those peers that know this number of choices, and how each is made."""
    return {name: peer.make for name, peer in peers.items() if size.k in peer.choices}


def heading():
    return " ".join(f"{name:>12}" for name in PEERS)


def cell(x, digits, missed, width=12):
    return f"{'-':>{width}}" if x is None else f"{x:{width - 1}.{digits}f}{'*' if missed else ' '}"


def main():
    parser = argparse.ArgumentParser(
        description="A layer of experts beside its bare products and beside PyTorch's layers.")
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES), metavar="SIZE",
                        help="experts x choices: " + ", ".join(SIZES))
    parser.add_argument("--seconds", type=float, default=15, help="of timing for each size")
    args = parser.parse_args()
    peers = installed()
    for name, peer in peers.items():
        print(f"{name}: {peer.note}")
    print(f"\n{THREADS} threads, T = {T}; D = 256, H = 512; wide: D = 512, H = 2048.")
    if STATUS.exists():
        print_memory(args.size, peers)
    print_times(args.size, peers, args.seconds)


if __name__ == "__main__":
    main()

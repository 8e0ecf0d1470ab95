"""Record trajectories of torch.optim, and learning rates of torch.optim.lr_scheduler.

    python -m reference_runs.engine.optim

Parameters are a vector, a matrix, a stack of matrices and a number; gradients are drawn in advance
for 25 updates, of scales from 1e-3 to 1e1, and do not depend on the parameters: what is recorded is
the optimiser alone. ``out.<name>`` holds the parameter after every update.
"""
import numpy as np
import torch

from reference_runs.recorder import save, start

STEPS = 25
SHAPES = {"vector": (5,), "matrix": (4, 3), "experts": (2, 3, 4), "number": ()}


def trajectory(case, seed, optimiser, settings):
    rng = start(seed)
    params = {name: torch.from_numpy(np.array(rng.standard_normal(shape)))
              for name, shape in SHAPES.items()}
    gradients = {name: torch.from_numpy(
        rng.standard_normal((STEPS, *shape)) * 10.0 ** rng.uniform(-3, 1, (STEPS, *shape)))
        for name, shape in SHAPES.items()}
    at_start = {name: p.clone() for name, p in params.items()}
    steps = {name: [] for name in params}
    updater = optimiser(params.values(), **settings)
    for t in range(STEPS):
        for name, p in params.items():
            p.grad = gradients[name][t]
        updater.step()
        for name, p in params.items():
            steps[name].append(p.clone())
    flat = {name: value for name, value in settings.items() if not isinstance(value, tuple)}
    for name, values in settings.items():
        if isinstance(values, tuple):
            flat.update({f"{name}.{i}": value for i, value in enumerate(values)})
    save(f"optim/{case}", seed=seed, set=flat, param=at_start,
         source={"kind": "torch", "of": f"torch.optim.{optimiser.__name__}"},
         **{"in": {f"gradient.{name}": g for name, g in gradients.items()}},
         out={name: torch.stack(values) for name, values in steps.items()})


def schedules(steps=30):
    """Factors for each update: three of torch's schedulers, run on a rate of 1."""
    def factors(scheduler, **settings):
        updater = torch.optim.SGD([torch.zeros(1, dtype=torch.float64)], lr=1.0)
        schedule = scheduler(updater, **settings)
        found = []
        for _ in range(steps):
            found.append(schedule.get_last_lr()[0])
            updater.step()
            schedule.step()
        return np.array(found)

    lr = torch.optim.lr_scheduler
    save("optim/schedules", seed=None, set={"n_steps": 20, "floor": 0.1},
         source={"kind": "torch", "of": "torch.optim.lr_scheduler.LinearLR, CosineAnnealingLR"},
         out={"linear_warmup": factors(lr.LinearLR, start_factor=1 / 20, total_iters=19),
              "linear_decay": factors(lr.LinearLR, start_factor=1.0, end_factor=0.1,
                                      total_iters=20),
              "cosine": factors(lr.CosineAnnealingLR, T_max=20, eta_min=0.1)[:21]})


if __name__ == "__main__":
    SGD, Adam, AdamW, Adafactor = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW,
                                   torch.optim.Adafactor)
    trajectory("sgd_plain", 0, SGD, {"lr": 0.1})
    trajectory("sgd_decay", 1, SGD, {"lr": 0.03, "weight_decay": 0.2})
    trajectory("sgd_momentum", 2, SGD, {"lr": 0.03, "momentum": 0.9, "weight_decay": 0.01})
    trajectory("nesterov", 3, SGD, {"lr": 0.03, "momentum": 0.8, "nesterov": True})
    trajectory("nesterov_decay", 4, SGD, {"lr": 0.03, "momentum": 0.95, "nesterov": True,
                                          "weight_decay": 0.1})
    trajectory("adam", 5, Adam, {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8})
    trajectory("adam_decay", 6, Adam, {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3,
                                       "weight_decay": 0.1})
    trajectory("adamw", 7, AdamW, {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8,
                                   "weight_decay": 0.01})
    trajectory("adamw_strong", 8, AdamW, {"lr": 0.1, "betas": (0.0, 0.5), "eps": 1e-4,
                                          "weight_decay": 0.5})
    trajectory("amsgrad", 11, Adam, {"lr": 0.01, "betas": (0.9, 0.999), "eps": 1e-8,
                                     "amsgrad": True})
    trajectory("amsgrad_short", 12, Adam, {"lr": 0.1, "betas": (0.5, 0.7), "eps": 1e-3,
                                           "amsgrad": True})
    # eps[0] far below the gradients: where it counts, paper and torch part
    trajectory("adafactor", 9, Adafactor, {"lr": 0.01, "beta2_decay": -0.8, "eps": (1e-30, 1e-3),
                                           "d": 1.0})
    trajectory("adafactor_clipped", 10, Adafactor, {"lr": 0.5, "beta2_decay": -0.5,
                                                    "eps": (1e-30, 2.0), "d": 1.5})
    schedules()

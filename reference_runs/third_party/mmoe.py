"""DeepCTR-Torch and torch-rechub: MMOE, on the weights of a case.

torch-rechub casts dense inputs to float32; here they are rows of an embedding table.
"""
import torch
from deepctr_torch.inputs import DenseFeat
from deepctr_torch.models import MMOE as DeepCTR
from deepctr_torch.models import SharedBottom
from torch_rechub.basic.features import SparseFeature
from torch_rechub.models.multi_task import MMOE as Rechub
from torch_rechub.utils.data import get_loss_func

from reference_runs.third_party.holding import Check, Reading, returned

LINEAR, NORM = {"w": "weight", "b": "bias"}, {"scale": "weight", "shift": "bias"}


def gave(modules, named, parts):
    """Put each of a stack of weights in its module, a matrix the other way round."""
    for ours, theirs in parts.items():
        for module, value in zip(modules, named[ours]):
            delattr(module, theirs)
            setattr(module, theirs, value.T if value.ndim == 2 else value)


def part(case, prefix, new=""):
    return {new + name.removeprefix(prefix): value for name, value in case.items()
            if name.startswith(prefix)}


def received(modules):
    """A list of what modules are given, as they come."""
    found = []
    for module in modules:
        module.register_forward_pre_hook(lambda module, given: found.append(given[0]))
    return found


def widths(case, name):
    return [case[f"{name}.{i}.w"].shape[-1] for i in range(2) if f"{name}.{i}.w" in case]


# -- DeepCTR-Torch -------------------------------------------------------------------------------

def deepctr(case):
    """MMOE, with a layer in its gates where the case has one, and SharedBottom."""
    x, (K, D, U) = case.x, (len(case.binary), case.x.shape[1], case["towers.0.w"].shape[-1])
    settings = {"tower_dnn_hidden_units": (U,), "l2_reg_embedding": 0,
                "task_types": ["binary" if b else "regression" for b in case.binary],
                "task_names": [f"task {k}" for k in range(K)]}
    found = {}
    if "bottom.0.w" in case:
        model = SharedBottom([DenseFeat("x", D)], bottom_dnn_hidden_units=(
            case["bottom.0.w"].shape[-1],), **settings).to(x.dtype)
        gave([model.bottom_dnn.linears[0]], part(case, "bottom.0."), LINEAR)
    else:
        gate_layers = widths(case, "gate_mlp")
        model = DeepCTR([DenseFeat("x", D)], num_experts=len(case["experts.0.w"]),
                        expert_dnn_hidden_units=widths(case, "experts"),
                        gate_dnn_hidden_units=gate_layers, **settings).to(x.dtype)
        for i in range(2):
            gave([dnn.linears[i] for dnn in model.expert_dnn], part(case, f"experts.{i}."),
                 LINEAR)
        if gate_layers:
            gave([dnn.linears[0] for dnn in model.gate_dnn], part(case, "gate_mlp.0."),
                 LINEAR)
        gave(model.gate_dnn_final_layer, {"w": case.w_gate}, {"w": "weight"})
        experts = [returned(dnn) for dnn in model.expert_dnn]
        gates = [returned(layer) for layer in model.gate_dnn_final_layer]
    gave([dnn.linears[0] for dnn in model.tower_dnn], part(case, "towers.0."), LINEAR)
    gave(model.tower_dnn_final_layer, part(case, "towers.1."), {"w": "weight"})
    gave(model.out, part(case, "towers.1."), {"b": "bias"})
    mixed = received(model.tower_dnn)
    predicted = model(x)                                               # [B, K]
    if "bottom.0.w" not in case:
        found = {"experts": torch.stack([out for out, in experts]),
                 "gate": torch.stack([out.softmax(1) for out, in gates]),
                 "mixed": torch.stack(mixed)}
    model.compile(None, ["binary_crossentropy" if b else "mse" for b in case.binary])
    loss = sum(model.loss_func[k](predicted[:, k], case.target[k], reduction="sum")
               for k in range(K))
    return {**found, "predicted": predicted.T, "loss": loss}


# -- torch-rechub --------------------------------------------------------------------------------

PLACES = {"experts.0": ("experts", 0), "experts.1": ("experts", 4), "gates": ("gates", 0),
          "towers.0": ("towers", 0)}     # each a linear map, a norm, an activation and a dropout


def rechub_in_training(case, weights):
    """The model, on weights by the names of its kind, and what it makes of the case."""
    B, D = case.x.shape
    types = ["classification" if b else "regression" for b in case.binary]
    model = Rechub([SparseFeature("x", vocab_size=B, embed_dim=D)], types,
                   len(weights["experts.0.w"]), {"dims": widths(weights, "experts")},
                   [{"dims": [weights["towers.0.w"].shape[-1]]} for _ in types]).to(case.x.dtype)
    del model.embedding.embed_dict["x"].weight
    model.embedding.embed_dict["x"].weight = case.x
    for name, (nets, place) in PLACES.items():
        for after, parts in enumerate((LINEAR, NORM)):
            gave([net.mlp[place + after] for net in getattr(model, nets)],
                 part(weights, f"{name}."), parts)
    gave([net.mlp[4] for net in model.towers], part(weights, "out."), LINEAR)
    experts, gates = ([returned(net) for net in nets] for nets in (model.experts, model.gates))
    mixed = received(model.towers)
    predicted = model.train()({"x": torch.arange(B)})                  # [B, K]
    loss = sum(get_loss_func(kind)(predicted[:, k], case.target[k])
               for k, kind in enumerate(types)) / len(types)
    return model, {"experts": torch.stack([out for out, in experts]),
                   "gate": torch.stack([out for out, in gates]), "mixed": torch.stack(mixed),
                   "predicted": predicted.T, "loss": loss}


def rechub_as_recorded(case):
    """The kind that was made of it: training, and evaluation one batch later."""
    model, found = rechub_in_training(case, case)
    return {**found, "evaluated": model.eval()({"x": torch.arange(len(case.x))}).T}


def rechub_as_paper(case):
    """The paper's weights; norms as they start, gates without a bias."""
    weights = {**case, "gates.w": case.w_gate, "gates.b": torch.zeros_like(case.w_gate[:, 0]),
               **part(case, "towers.1.", "out.")}
    for name in PLACES:
        weights[f"{name}.scale"] = torch.ones_like(weights[f"{name}.w"][:, 0])
        weights[f"{name}.shift"] = torch.zeros_like(weights[f"{name}.w"][:, 0])
    found = rechub_in_training(case, weights)[1]
    return {**found, "loss": len(case.binary) * len(case.x) * found["loss"]}    # summed there


def normed(case):
    """Two data or more, of which there is a variance."""
    return case.sizes["B"] > 1


def checks():
    settled = {"dtype": "float64", "gradients": True}
    return [
        Check("deepctr-torch", "MMOE, gate_dnn_hidden_units=()", "mmoe_2018", {"mmoe": deepctr},
              **settled),
        Check("deepctr-torch", "MMOE with a layer in its gates; SharedBottom", "mmoe_2018",
              {"deepctr": deepctr, "shared_bottom": deepctr}, **settled),
        Check("torch-rechub", "MMOE", "mmoe_2018", {"torch_rechub": rechub_as_recorded},
              fits=normed, **settled),
        Check("torch-rechub", "MMOE, norms as they start", "mmoe_2018", {"mmoe": rechub_as_paper},
              (Reading("experts", "layers.py: MLP", "there is a batch norm "
                       "after every linear map, in experts, gates and towers: what a case gets "
                       "depends on its batch"),), normed, **settled)]

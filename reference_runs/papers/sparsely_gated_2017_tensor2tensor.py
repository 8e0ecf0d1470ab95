"""Record the layer of arXiv:1701.06538v1 as Tensor2Tensor has it, in its expert_utils.py.

    python -m reference_runs.papers.sparsely_gated_2017_tensor2tensor

The package is run as it is: noisy_top_k_gating with its own variables, SparseDispatcher around
experts of relu units, and cv_squared. The draw it makes is fed to it, in the place of the operation
that would make it. It computes in float32, and so do these runs. In an environment of its own:

    pip install tensorflow-cpu==2.15.1
    pip install --no-deps tensor2tensor==1.15.7 tensorflow-addons==0.23.0 typeguard==2.13.3 \\
        tensorflow-probability==0.23.0 tf-slim six cloudpickle decorator dm-tree
"""
import numpy as np
import tensorflow.compat.v1 as tf
from tensor2tensor.utils import expert_utils

from reference_runs.recorder import save, start

SOURCE = {"kind": "third-party", "repository": "https://github.com/tensorflow/tensor2tensor",
          "commit": "1.15.7 of the package index",
          "entry": "tensor2tensor.utils.expert_utils: noisy_top_k_gating, SparseDispatcher, "
                   "cv_squared"}
tf.disable_v2_behavior()


def outputs(graph, leaves, cotangent, E, k):
    """Everything to be recorded, as TensorFlow's own tensors; and where the draw goes in."""
    gate, load = expert_utils.noisy_top_k_gating(leaves["x"], E, True, k, name="gate")
    w_gate, w_noise = tf.trainable_variables()
    draw, = [op.outputs[0] for op in graph.get_operations() if op.type == "RandomStandardNormal"]
    dispatcher = expert_utils.SparseDispatcher(E, gate)
    rows = dispatcher.dispatch(leaves["x"])
    y = dispatcher.combine([
        tf.matmul(tf.nn.relu(tf.matmul(rows[e], leaves["w_in"][e])), leaves["w_out"][e])
        for e in range(E)])
    importance = tf.reduce_sum(gate, 0)
    losses = {"importance_loss": expert_utils.cv_squared(importance),
              "load_loss": expert_utils.cv_squared(load)}

    clean, raw = (graph.get_tensor_by_name(f"gate/{name}:0") for name in ("MatMul", "MatMul_1"))
    std, noisy = (graph.get_tensor_by_name(f"gate/{name}:0") for name in ("mul", "add_1"))
    top, chosen = expert_utils._my_top_k(noisy, min(k + 1, E))
    out = {"clean": clean, "std": std, "noisy": noisy, "expert": chosen[:, :k], "gate": gate}
    if k < E:
        out["p"] = expert_utils._prob_in_top_k(clean, noisy, std, top, k)
    out |= {"load_hard": tf.to_int64(expert_utils._gates_to_load(gate)), "load": load,
            "importance": importance, "y": y, **losses}
    leaves = {"x": leaves["x"], "gate.w_gate": w_gate, "gate.w_noise": w_noise,
              "w_in": leaves["w_in"], "w_out": leaves["w_out"]}
    for name, loss in {"y": tf.reduce_sum(y * cotangent), **losses}.items():
        for leaf, flow in zip(leaves.values(), tf.gradients(loss, list(leaves.values()))):
            leaf_name = next(key for key, value in leaves.items() if value is leaf)
            out[f"grad.{name}.{leaf_name}"] = tf.zeros_like(leaf) if flow is None else flow
    return out, draw, w_gate, w_noise


def record(case, seed, T, D, E, H, k, starved=False):
    rng = start(seed)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    x, epsilon, cotangent = normal(T, D), normal(T, E), normal(T, D)
    params = {"gate.w_gate": normal(D, E), "gate.w_noise": normal(D, E),
              "w_in": normal(E, D, H), "w_out": normal(E, H, D)}
    if starved:                                        # nobody comes to expert 1
        x[:, 0], params["gate.w_gate"][0, 1] = 1, -9

    with tf.Graph().as_default() as graph, tf.Session() as session:
        leaves = {"x": tf.constant(x), "w_in": tf.constant(params["w_in"]),
                  "w_out": tf.constant(params["w_out"])}
        tensors, draw, w_gate, w_noise = outputs(graph, leaves, cotangent, E, k)
        session.run(tf.global_variables_initializer())
        w_gate.load(params["gate.w_gate"], session)
        w_noise.load(params["gate.w_noise"], session)
        out = session.run(tensors, {draw: epsilon})
    if k == E:
        out["p"] = np.ones_like(out["gate"])           # there is none; the load counts rows
    save(f"sparsely_gated_2017/layer_tensor2tensor/{case}", source=SOURCE, seed=seed, param=params,
         packages=("tensor2tensor", "tensorflow-cpu", "numpy"), set={"k": k}, out=out,
         **{"in": {"x": x, "epsilon": epsilon, "cotangent": cotangent}})


if __name__ == "__main__":
    record("two_of_five", 90, T=12, D=4, E=5, H=3, k=2)
    record("one_of_five", 91, T=12, D=4, E=5, H=3, k=1)
    record("three_of_five", 92, T=12, D=4, E=5, H=3, k=3)
    record("all_of_five", 93, T=12, D=4, E=5, H=3, k=5)
    record("four_of_sixteen", 94, T=6, D=3, E=16, H=2, k=4)
    record("starved", 95, T=12, D=4, E=5, H=3, k=2, starved=True)

"""sequential.py MODEL RUN EXPORTS: Grams, held-out Grams, targets and losses of settings that follow their own prefix, from the activations of two transformers
models: the original, and EXPORTS/SETTING/base, the setting's merged export. In double from float32 activations."""
import os
import re
import sys

import h5py
import numpy as np
import torch
from transformers import AutoModelForCausalLM

import decode

MODEL, RUN, EXPORTS = sys.argv[1:4]
INPUTS = {"attn_in": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], "attn_out": ["self_attn.o_proj"],
          "mlp_in": ["mlp.gate_proj", "mlp.up_proj"], "mlp_out": ["mlp.down_proj"]}
ALPHA = {"prefix": 0, "half": 0.5, "full": 1}
FOLDER = os.path.dirname(MODEL.rstrip("/")) + "/tiny"
SETS = {"grams": np.load(f"{FOLDER}/calib.npy")[: 8 * 256].reshape(8, 256), "heldout": np.load(f"{FOLDER}/heldout.npy")[: 4 * 256].reshape(4, 256)}
worst, failures, moved = {}, [], []


def near(what, where, off, most):
    worst[what] = max(worst.get(what, 0), off)
    if not off <= most:
        failures.append(f"{where}: {what} off by {off:.2e}, expected at most {most:.0e}")


def load(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def activations(model, ids):
    """{(layer, input): (tokens, width) in double}"""
    kept, hooks = {}, []
    for layer, block in enumerate(model.model.layers):
        for name, readers in INPUTS.items():
            hook = lambda module, args, key=(layer, name): kept.__setitem__(key, args[0].reshape(-1, args[0].shape[-1]).double().numpy())
            hooks.append(block.get_submodule(readers[0]).register_forward_pre_hook(hook))
    with torch.no_grad():
        model(torch.tensor(ids.astype(np.int64)))
    for h in hooks:
        h.remove()
    return kept


original = load(MODEL)
X = {s: activations(original, ids) for s, ids in SETS.items()}
weights = {k: v.double().numpy() for k, v in original.state_dict().items()}
for setting in sorted(os.listdir(f"{RUN}/solutions")):
    alpha = ALPHA[re.search(r"(prefix|half|full)$", setting).group()]
    (base,) = [d for d in (f"{EXPORTS}/{setting}/base", f"{EXPORTS}/{setting}") if os.path.exists(d + "/config.json")]
    prefix = load(base)
    for folder, ids in SETS.items():
        Xq = activations(prefix, ids)
        for (layer, name), xq in Xq.items():
            where, H = f"{setting}, {folder}, layer {layer}, {name}", xq.T @ xq
            with h5py.File(f"{RUN}/solutions/{setting}/{folder}/layer-{layer:03d}.h5") as f:
                assert f.attrs["activations"] in ("prefix", b"prefix")
                near("Gram", where, np.linalg.norm(decode.full_gram(f[name]) - H) / np.linalg.norm(H), 2e-5)
                targets = {r: f[f"{name}/target_{r.split('.')[1]}"][...] for r in INPUTS[name] if alpha and folder == "grams"}
                assert bool(alpha and folder == "grams") == any("target" in k for k in f[name]), where
            for reader in INPUTS[name]:
                module = f"model.layers.{layer}.{reader}"
                W = weights[module + ".weight"]
                if targets:
                    mu = 0.01 * np.diag(H).mean() * np.eye(len(H))
                    W1 = np.linalg.solve(H + mu, (W @ (X[folder][layer, name].T @ xq + mu)).T).T
                    W0, W1 = W, W + alpha * (W1 - W)
                    size = lambda x: np.sqrt(np.einsum("ij,ij->", x @ H, x))  # what it does to the outputs: rounding of C moves weak directions
                    near("target", where + ", " + reader, size(targets[reader] - W1) / size(W0), 1e-5)
                    moved.append(size(W1 - W0) / size(W0))
                    W = targets[reader].astype(np.float64)
                elif alpha:
                    with h5py.File(f"{RUN}/solutions/{setting}/grams/layer-{layer:03d}.h5") as f:
                        W = f[f"{name}/target_{reader.split('.')[1]}"][...].astype(np.float64)
                E = W - prefix.state_dict()[module + ".weight"].double().numpy()
                with h5py.File(f"{RUN}/solutions/{setting}/layer-{layer:03d}.h5") as f:
                    g = f[reader] if "loss" in f[reader] else f[reader + "/rank-8"]
                    stored = g["loss" if folder == "grams" else "loss_heldout"][8]
                near("loss", where + ", " + reader, abs(np.einsum("ij,ij->", E @ H, E) - stored) / stored, 2e-4)
assert max(moved) > 1e-2, moved
print("largest deviations:", {k: f"{v:.1e}" for k, v in worst.items()})
for line in failures[:10]:
    print(line)
sys.exit(bool(failures))

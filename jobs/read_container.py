# %% [markdown]
# # Reading what cloqwork made: a run with h5py and numpy, its export with PEFT
#
# A notebook in plain text: every `# %%` begins a cell (VS Code, Spyder, PyCharm and Jupytext open it as such), and the whole is a script too:
#
#     python jobs/read_container.py runs/tiny refine-b4-g64 3 self_attn.q_proj 16        # RUN SETTING LAYER MATRIX RANK: as many as you like
#
# It takes one matrix of a finished run from its stored codes to Q + BA, computes its loss and holds that against the stored curve and against the
# tail of the spectrum, which no adapter of that rank can beat; then it loads the export and finds the same numbers in the model. It needs
# h5py, numpy, safetensors and torch; its last cell needs what the export's README.md names. README, "The container", describes the files.

# %% What to read: change it here, or give arguments
import glob
import os
import sys

import h5py
import numpy as np

chosen = [] if "ipykernel" in sys.modules else sys.argv[1:]
chosen += ["runs/tiny", "refine-b4-g64", "3", "self_attn.q_proj", "16"][len(chosen):]
run, setting, layer, matrix, rank = chosen[0], chosen[1], int(chosen[2]), chosen[3], int(chosen[4])

# %% The master file links everything: settings, layers, matrices
file = h5py.File(f"{run}/run.h5")
print(f"{file.attrs['model']}: {file.attrs['layers']} layers, {file.attrs['tokens']} calibration tokens; settings: {', '.join(file['solutions'])}")
solution = file[f"solutions/{setting}/layer-{layer:03d}/{matrix}"]
if "ranks" in solution.attrs:  # codes that belong to a rank, a group for each; those of `refine` serve larger ranks, too
    solution = solution[f"rank-{max(int(r) for r in solution.attrs['ranks'].split(',') if int(r) <= rank)}"]
about = solution.attrs
print(f"{setting} layer {layer} {solution.name[1:]}: {about['method']}, {about['bits']} bits, {about['group']} columns a scale, {about['seconds']:.3g} s of one rank")

# %% Q from its codes: a row is a stream of bits in 32-bit words, lowest bit first; weight = scale (code - zero)
assert about["grid"] == "uniform" and "widths" not in solution, f"{setting} has no uniform grid: read its export (--to dense, or bnb for NF4)"
A = solution["lora_A"][:rank].astype(np.float64)  # of one solution for all ranks: the first rows of A and columns of B
B = solution["lora_B"][:, :rank].astype(np.float64)
assert len(A) == rank, f"{setting} has adapters up to rank {len(A)}"
(rows, columns), bits = (len(B), A.shape[1]), int(about["bits"])
stream = np.unpackbits(solution["codes"][...].view(np.uint8), axis=1, bitorder="little")[:, : columns * bits]
codes = stream.reshape(rows, columns, bits) @ (1 << np.arange(bits))
group = np.arange(columns) // (about["group"] or columns)
Q = solution["scales"][...].astype(np.float64)[:, group] * (codes - solution["zeros"][...].astype(np.float64)[:, group])

# %% The Gram H = sum of x xᵀ over the matrix's inputs: the tiles of its lower triangle
def gram(stored):
    tiles, n, t = stored["tiles"][...], int(stored["tiles"].attrs["n"]), int(stored["tiles"].attrs["tile"])
    h = np.zeros((-(-n // t) * t,) * 2)
    for i in range(len(h) // t):
        for j in range(i + 1):
            h[i * t : (i + 1) * t, j * t : (j + 1) * t] = tiles[i * (i + 1) // 2 + j]
    return (np.tril(h) + np.tril(h, -1).T)[:n, :n]


inputs = {"o_proj": "attn_out", "gate_proj": "mlp_in", "up_proj": "mlp_in", "down_proj": "mlp_out"}.get(matrix.split(".")[-1], "attn_in")
own = f"{run}/solutions/{setting}/grams"  # of a setting that follows its own prefix (act_quantizer)
with h5py.File(f"{own if os.path.isdir(own) else run + '/grams'}/layer-{layer:03d}.h5") as grams:
    H = gram(grams[inputs])
    target = grams[inputs].get("target_" + matrix.split(".")[-1])
    W = target[...].astype(np.float64) if target else None  # what such a setting with `cross` is fitted to

# %% W from the checkpoint
if W is None:
    from safetensors import safe_open

    name = f"model.layers.{layer}.{matrix}.weight"
    for path in sorted(glob.glob(f"{file.attrs['model']}/*.safetensors")):
        with safe_open(path, framework="pt") as shard:  # torch, as numpy has no bfloat16
            if name in shard.keys():
                W = shard.get_tensor(name).double().numpy()

# %% The loss, and its proof
E = W - Q - B @ A
loss, reference = float(np.sum(E @ H * E)), float(about["reference"])
curve, tail = solution["loss"][...], float(solution["eigenvalues"][rank:].sum())
print(f"relative loss: {curve[0] / reference:.6g} without adapter, {loss / reference:.6g} at rank {rank}, stored as {curve[rank] / reference:.6g}")
assert abs(loss - curve[rank]) <= 1e-6 * curve[rank], "the stored numbers do not give the stored loss"
if about["certificate"] == "gram":
    print(f"no adapter of rank {rank} for these codes has less than {tail / reference:.6g}; this one is {loss / tail - 1:.1e} above")
    assert abs(loss - tail) <= 1e-6 * curve[0], "the adapter is not the best of its rank"

# %% The export: the same Q and BA in the model that everybody's libraries load
exports = glob.glob(f"{glob.escape(run)}/export/{glob.escape(setting)}-r{rank}-*/adapter")
if not exports:
    print(f"no export yet: mpirun -n 2 build/cloqwork export {run} --setting {setting} --rank {rank} --to gptq")
    sys.exit()

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # compiling a kernel takes longer than all of this
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GPTQConfig

folder = os.path.dirname(exports[0])
# gptq_torch: the kernel that computes in float32 and can be trained on any machine
kernel = {"quantization_config": GPTQConfig(bits=bits, backend="gptq_torch")} if folder.endswith("-gptq") else {}
base = AutoModelForCausalLM.from_pretrained(f"{folder}/base", dtype=torch.float32, **kernel)
model = PeftModel.from_pretrained(base, f"{folder}/adapter", is_trainable=True)
linear = model.get_submodule(f"base_model.model.model.layers.{layer}.{matrix}")
with torch.no_grad():
    loaded_Q = linear.base_layer(torch.eye(columns)).T.double().numpy()
    loaded_BA = linear.scaling["default"] * (linear.lora_B["default"].weight @ linear.lora_A["default"].weight).double().numpy()
off_Q, off_BA = (float(np.abs(a - b).max() / np.abs(b).max()) for a, b in ((loaded_Q, Q), (loaded_BA, B @ A)))
print(f"{folder}: Q and BA of the loaded model are within {off_Q:.1e} and {off_BA:.1e} of the container's")
assert off_Q < 6e-4 and off_BA < 1e-5, "the loaded model has other weights than the container"  # GPTQ's kernels round Q to half precision

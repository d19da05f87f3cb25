"""architectures.py WHAT MODEL FOLDER (the last counts): small random checkpoints of several architectures (biases, q/k norms, tied heads, shards, windows) through the
program, exported in every format, loaded by the real libraries: the same logits as the dense export, which the adapter moves towards the
original's. One case has only some linears as targets. CLOQWORK and MPIRUN name the program."""
import os
import subprocess
import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM

import forward
from loading import difference, kl, load_adapter, load_base, logits

forward.SMALL.update(intermediate_size=256)  # GPTQ holds multiples of 32
CASES = ["llama-bias", "mistral-window", "qwen2-tied", "qwen3"]
SOME = {"mistral-window": ["q_proj", "v_proj", "down_proj"]}  # other linears stay as they are
LINEARS = [f"self_attn.{n}_proj" for n in "qkvo"] + [f"mlp.{n}_proj" for n in ("gate", "up", "down")]


def cloqwork(*arguments):
    done = subprocess.run([os.environ["MPIRUN"], "-n", "2", os.environ["CLOQWORK"], *arguments, "--quiet"], text=True, capture_output=True)
    if done.returncode:
        sys.exit(f"cloqwork {' '.join(arguments)} ended with {done.returncode}: {done.stderr}")


def judge(name, folder):
    model, run = f"{folder}/{name}", f"{folder}/{name}-run"
    linears = [n for n in LINEARS if n.split(".")[1] in SOME.get(name, n)]
    forward.make_checkpoint(model, name)
    tokens = np.random.default_rng(5).integers(0, forward.SMALL["vocab_size"], 40 * 64).astype(np.int32)
    np.save(f"{folder}/tokens.npy", tokens)
    with open(f"{folder}/job.yaml", "w") as f:
        f.write(f"model: {model}\noutput: {run}\ncalibration: {{ tokens: {folder}/tokens.npy, windows: 16, length: 64 }}\n"
                f"targets: [{', '.join(n.split('.')[1] for n in linears)}]\n"
                "options: { grid_type: sym, nf_double: on }\n"
                "sweep: [{ method: cloq-nomagr, bits: 4, group: 32, rank: 16 }, { method: nf4-cloq, bits: 4, group: 32, rank: 16 }]\n")
    cloqwork("run", f"{folder}/job.yaml")
    windows = list(torch.from_numpy(tokens[-256:].astype(np.int64)).reshape(4, 64))
    original = logits(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval(), windows)
    found, faults, bare = {}, [], None
    uniform, nf4 = "cloq-nomagr-b4-g32-grid_type_sym", "nf4-cloq-b4-g32-nf_double_on"
    for form, setting, extra in (("gptq", uniform, []), ("compressed-tensors", uniform, []), ("dense", uniform, ["--dtype", "float16"]), ("bnb", nf4, [])):
        out = f"{run}/{form}"
        cloqwork("export", run, "--setting", setting, "--to", form, "--out", out, *extra)
        cloqwork("verify", out)
        base = load_base(form, f"{out}/base", faults)
        bare = kl(original, logits(base, windows))
        layers = forward.SMALL["num_hidden_layers"]
        peft, wrong = load_adapter(base, f"{out}/adapter", {f"model.layers.{i}.{n}": 16 for i in range(layers) for n in linears})
        faults += wrong
        found[form] = logits(peft.eval(), windows)
        left = kl(original, found[form])
        if not left < bare:
            faults.append(f"{form}: KL to the original: {bare:.4f} without adapter, {left:.4f} with it")
        print(f"{name} {form}: KL {bare:.4f} without adapter, {left:.4f} with it", flush=True)
    for form in ("gptq", "compressed-tensors"):
        apart = difference(found["dense"], found[form])
        print(f"{name} {form}: {apart:.1e} from dense", flush=True)
        if not apart < 5e-4:  # the loaders round scale times code to float16, as the dense export does here; GPTQ holds biases so, too
            faults.append(f"logits of {form} and dense are {apart:.1e} apart")
    print(f"{name}: {'; '.join(faults) or 'ok'}", flush=True)
    return not faults


sys.exit(0 if all([judge(name, sys.argv[-1]) for name in CASES]) else 1)

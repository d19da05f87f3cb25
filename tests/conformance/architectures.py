"""architectures.py WHAT MODEL FOLDER (the last counts): small random checkpoints of several architectures (biases, q/k norms, tied heads, shards, windows) through the
program, exported as GPTQ and dense, loaded by transformers, gptqmodel and PEFT: both give the same logits, which the adapter moves
towards the original's. CLOQWORK and MPIRUN name the program."""
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
LINEARS = [f"self_attn.{n}_proj" for n in "qkvo"] + [f"mlp.{n}_proj" for n in ("gate", "up", "down")]


def cloqwork(*arguments):
    done = subprocess.run([os.environ["MPIRUN"], "-n", "2", os.environ["CLOQWORK"], *arguments, "--quiet"], text=True, capture_output=True)
    if done.returncode:
        sys.exit(f"cloqwork {' '.join(arguments)} ended with {done.returncode}: {done.stderr}")


def judge(name, folder):
    model, run = f"{folder}/{name}", f"{folder}/{name}-run"
    forward.make_checkpoint(model, name)
    tokens = np.random.default_rng(5).integers(0, forward.SMALL["vocab_size"], 40 * 64).astype(np.int32)
    np.save(f"{folder}/tokens.npy", tokens)
    with open(f"{folder}/job.yaml", "w") as f:
        f.write(f"model: {model}\noutput: {run}\ncalibration: {{ tokens: {folder}/tokens.npy, windows: 16, length: 64 }}\n"
                "sweep: { method: cloq-nomagr, bits: 2, group: 32, rank: 16 }\n")
    cloqwork("run", f"{folder}/job.yaml")
    windows = list(torch.from_numpy(tokens[-256:].astype(np.int64)).reshape(4, 64))
    original = logits(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval(), windows)
    found, faults, bare = {}, [], None
    for form, extra in (("gptq", []), ("dense", ["--dtype", "float32"])):
        out = f"{run}/{form}"
        cloqwork("export", run, "--to", form, "--out", out, *extra)
        cloqwork("verify", out)
        base = load_base(form, f"{out}/base", faults)
        bare = kl(original, logits(base, windows))
        layers = forward.SMALL["num_hidden_layers"]
        peft, wrong = load_adapter(base, f"{out}/adapter", {f"model.layers.{i}.{n}": 16 for i in range(layers) for n in LINEARS})
        faults += wrong
        found[form] = logits(peft.eval(), windows)
    apart, left = difference(found["dense"], found["gptq"]), kl(original, found["dense"])
    if not apart < 1e-3:  # GPTQ holds biases in 16 bits
        faults.append(f"logits of gptq and dense are {apart:.1e} apart")
    if not left < bare:
        faults.append(f"KL to the original: {bare:.4f} without adapter, {left:.4f} with it")
    print(f"{name}: {'; '.join(faults) or 'ok'} (gptq and dense {apart:.1e} apart; KL {bare:.4f} without adapter, {left:.4f} with it)", flush=True)
    return not faults


sys.exit(0 if all([judge(name, sys.argv[-1]) for name in CASES]) else 1)

"""One judge of two quantized models: relative loss tr((W - V) H (W - V)^T) / tr(W H W^T) on held-out Grams, and perplexity on held-out tokens.

    judge_models.py ORIGINAL GRAMS TOKENS.npy GPTQ OURS [--windows 4] [--length 2048] [--threads 2]

GRAMS: what `cloqwork grams --to npy` wrote; GPTQ: a folder that transformers loads with gptqmodel; OURS: a dense folder with the adapter merged in.
Both models are judged as matrices in float, in the original's place.
"""
import argparse
import os
import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "conformance"))
from loading import load_base, loaded_weight

INPUTS = {"q_proj": "attn_in", "k_proj": "attn_in", "v_proj": "attn_in", "o_proj": "attn_out", "gate_proj": "mlp_in", "up_proj": "mlp_in", "down_proj": "mlp_out"}


def linears(model):
    return {name: module for name, module in model.named_modules() if name.rsplit(".", 1)[-1] in INPUTS}


def relative_loss(grams, original, weights):
    """Geometric mean over the matrices."""
    logs = []
    for name, w in original.items():
        number, kind = int(name.split(".")[2]), INPUTS[name.rsplit(".", 1)[-1]]
        h = np.load(os.path.join(grams, f"layer-{number:03d}.{kind}.npy")).astype(np.float64)
        e = w.astype(np.float64) - weights[name]
        logs.append(np.log(np.einsum("ij,ij->", e @ h, e) / np.einsum("ij,ij->", w @ h, w.astype(np.float64))))
    return float(np.exp(np.mean(logs)))


@torch.no_grad()
def perplexity(model, ids, windows, length):
    """Each window predicts all its tokens but the first."""
    total = 0.0
    for k in range(windows):
        window = torch.from_numpy(ids[k * length:(k + 1) * length].astype(np.int64))[None]
        scores = model(window).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(scores, window[0, 1:], reduction="sum"))
    return float(np.exp(total / (windows * (length - 1))))


def main():
    parser = argparse.ArgumentParser()
    for name in ("original", "grams", "tokens", "gptq", "ours"):
        parser.add_argument(name)
    for name, value in (("windows", 4), ("length", 2048), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    faults, ids = [], np.load(args.tokens)
    model = AutoModelForCausalLM.from_pretrained(args.original, dtype=torch.float32).eval()
    original = {name: module.weight.detach().numpy().copy() for name, module in linears(model).items()}
    quantized = load_base("gptq", args.gptq, faults)
    found = {"gptqmodel": {name: loaded_weight("gptq", module) for name, module in linears(quantized).items()}}
    del quantized
    dense = AutoModelForCausalLM.from_pretrained(args.ours, dtype=torch.float32)
    found["cloqwork"] = {name: module.weight.detach().numpy().copy() for name, module in linears(dense).items()}
    del dense
    print(f"{'':10} relative loss  perplexity\n{'original':10} {0:13.5f} {perplexity(model, ids, args.windows, args.length):11.3f}")
    judged = {}
    for who, weights in found.items():
        for name, module in linears(model).items():
            module.weight.data = torch.from_numpy(np.ascontiguousarray(weights[name]))
        judged[who] = relative_loss(args.grams, original, weights), perplexity(model, ids, args.windows, args.length)
        print(f"{who:10} {judged[who][0]:13.5f} {judged[who][1]:11.3f}")
        print(f"RAW {who}_relative_loss {judged[who][0]:.6g}\nRAW {who}_perplexity {judged[who][1]:.5g}")
    print(f"BENCH loss_vs_gptqmodel {judged['cloqwork'][0] / judged['gptqmodel'][0]:.3f}")
    if faults:
        sys.exit("\n".join(faults))


main()

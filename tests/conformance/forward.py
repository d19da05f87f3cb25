"""forward.py DRIVER [FOLDER...]: hidden states after every layer and logits of our forward pass against transformers in float32.

Without folders, small checkpoints with random weights are written for every architecture and spelling that the reader accepts.
"""
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers.utils import logging

TOLERANCE = 2e-4  # of the largest magnitude of what is compared
WINDOWS, LENGTH = 2, 300

SMALL = dict(vocab_size=331, hidden_size=96, intermediate_size=200, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
             max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=False)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)

# name: config class, what differs, dtype, shard size, and how config.json is rewritten ("v4": rope_theta and rope_scaling outside)
CASES = {
    "llama-mha": (LlamaConfig, dict(num_key_value_heads=6), "F32", None, "v5"),
    "llama-gqa-v4": (LlamaConfig, dict(rope_parameters=dict(rope_type="default", rope_theta=500000.0)), "F32", None, "v4"),
    "llama-old": (LlamaConfig, dict(num_key_value_heads=6), "F16", None, "old"),
    "llama3-rope-v5": (LlamaConfig, dict(rope_parameters=dict(LLAMA3, rope_theta=500000.0)), "BF16", None, "v5"),
    "llama3-rope-v4": (LlamaConfig, dict(rope_parameters=dict(LLAMA3, rope_theta=500000.0)), "F32", "200KB", "v4"),
    "llama-linear": (LlamaConfig, dict(rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=10000.0)), "F32", None, "v4-type"),
    "llama-bias": (LlamaConfig, dict(attention_bias=True, mlp_bias=True), "F32", None, "v5"),
    "llama-head-dim-tied": (LlamaConfig, dict(head_dim=24, tie_word_embeddings=True), "BF16", None, "v5"),
    "mistral-window": (MistralConfig, dict(sliding_window=37, head_dim=16), "F32", "150KB", "v5"),
    "mistral-no-window": (MistralConfig, dict(sliding_window=None, head_dim=32), "F16", None, "v4"),
    "qwen2-tied": (Qwen2Config, dict(tie_word_embeddings=True, rms_norm_eps=1e-6), "BF16", None, "v4"),
    "qwen2-window": (Qwen2Config, dict(use_sliding_window=True, sliding_window=50, max_window_layers=1), "F32", None, "v5"),
    "qwen2-window-off": (Qwen2Config, dict(use_sliding_window=False, sliding_window=8), "F32", None, "v4"),
    "qwen3": (Qwen3Config, dict(head_dim=32, num_key_value_heads=3, rms_norm_eps=1e-6), "BF16", "200KB", "v5"),
    "qwen3-bias-window-v4": (Qwen3Config, dict(head_dim=48, attention_bias=True, use_sliding_window=True, sliding_window=130,
                                               max_window_layers=2), "F32", None, "v4"),
}
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def rewrite_config(folder, spelling):
    path = os.path.join(folder, "config.json")
    with open(path) as f:
        config = json.load(f)
    rope = config.pop("rope_parameters")
    if spelling == "v5":
        config["rope_parameters"] = rope
    else:
        config["rope_theta"] = rope.pop("rope_theta")
        kind = rope.pop("rope_type")
        config["rope_scaling"] = None if kind == "default" else {"type" if spelling == "v4-type" else "rope_type": kind, **rope}
    if spelling != "v5":
        config.pop("layer_types", None)
    if spelling == "old":  # Llama 1 had neither of these
        for key in ("num_key_value_heads", "rope_theta", "rope_scaling", "head_dim", "attention_bias", "mlp_bias"):
            config.pop(key, None)
    with open(path, "w") as f:
        json.dump(config, f)


def make_checkpoint(folder, name):
    cls, changes, dtype, shards, spelling = CASES[name]
    torch.manual_seed(sum(map(ord, name)))
    model = AutoModelForCausalLM.from_config(cls(**{**SMALL, **changes}))
    for key, p in model.named_parameters():
        with torch.no_grad():
            if p.ndim == 1:  # norms near 1, biases near 0: both away from where an omission would not show
                p.copy_((1.0 if "norm" in key else 0.0) + 0.3 * torch.randn_like(p))
            else:
                p.copy_(torch.randn_like(p) * (1.0 if "embed" in key else 1.5 / p.shape[1] ** 0.5))
    model.to(DTYPES[dtype]).save_pretrained(folder, **({"max_shard_size": shards} if shards else {}))
    if shards:
        assert os.path.exists(os.path.join(folder, "model.safetensors.index.json")), "expected shards"
    if spelling == "old":  # Llama 1 files also held the frequencies
        path = os.path.join(folder, "model.safetensors")
        tensors = load_file(path)
        for i in range(SMALL["num_hidden_layers"]):
            tensors[f"model.layers.{i}.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
        save_file(tensors, path, metadata={"format": "pt"})
    rewrite_config(folder, spelling)


def reference(folder, ids):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    hidden = []
    hooks = [layer.register_forward_hook(lambda m, i, o: hidden.append((o[0] if isinstance(o, tuple) else o).numpy()))
             for layer in model.model.layers]
    with torch.no_grad():
        logits = model(torch.from_numpy(ids), use_cache=False).logits.numpy()
    for h in hooks:
        h.remove()
    return hidden, logits


def vocabulary(folder):
    with open(os.path.join(folder, "config.json")) as f:
        return json.load(f)["vocab_size"]


def compare(driver, folder, work, name, windows, length, integer):
    ids = np.random.default_rng(1).integers(0, vocabulary(folder), size=(windows, length))
    tokens, out = os.path.join(work, "tokens.npy"), os.path.join(work, "out.bin")
    np.save(tokens, ids.reshape(-1).astype(integer))
    run = subprocess.run([driver, folder, tokens, str(windows), str(length), out], capture_output=True, text=True)
    if run.returncode:
        print(f"FAIL {name}: {run.stderr.strip()}")
        return False
    hidden, logits = reference(folder, ids)
    ours = np.fromfile(out, dtype=np.float32)
    worst, at = 0.0, 0
    for theirs in hidden + [logits]:
        mine = ours[at:at + theirs.size].reshape(theirs.shape)
        at += theirs.size
        error = np.abs(mine - theirs).max() / np.abs(theirs).max()
        worst = max(worst, float("inf") if not np.isfinite(error) else float(error))
    good = at == ours.size and worst <= TOLERANCE
    print(f"{'ok  ' if good else 'FAIL'} {name}: largest difference {worst:.2e} of the largest magnitude")
    return good


def main():
    driver, folders = sys.argv[1], sys.argv[2:]
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    good = True
    with tempfile.TemporaryDirectory() as work:
        for folder in folders:
            good &= compare(driver, folder, work, folder, 1, 128, "<i4")
        if not folders:
            integers = ["<u2", "<i4", "<i8", "<u4", "<i2", "<u8"]
            for i, name in enumerate(CASES):
                folder = os.path.join(work, name)
                make_checkpoint(folder, name)
                good &= compare(driver, folder, work, name, WINDOWS, LENGTH, integers[i % len(integers)])
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

"""Exports in the libraries that people load them with: transformers, PEFT, gptqmodel through optimum, bitsandbytes, compressed-tensors.

Every function returns a list of faults, empty where all is well."""
import os
import tempfile
import warnings

import numpy as np
import torch
from peft import PeftModel, get_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig, GPTQConfig
from transformers.utils import logging

from decode import ROUND, read_safetensors

warnings.filterwarnings("ignore")
logging.set_verbosity_error()
logging.disable_progress_bar()
torch.set_num_threads(1)


def load_base(form, folder, faults, packed=False):
    """The model in float32 as far as its loader allows. packed: compressed-tensors as the folder's own config says, which the first forward
    makes dense; transformers 5.23 unpacks mixed widths right in this way only (dequantize=True takes the first group for all)."""
    how = {}
    if form == "gptq":
        how["quantization_config"] = GPTQConfig(bits=4, backend="gptq_torch")  # the bits are the folder's: the loader takes the backend alone
    elif form == "compressed-tensors" and not packed:
        how["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **how)
    faults += [f"{kind}: {sorted(info[kind])[:2]}" for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs") if info[kind]]
    if form == "bnb":  # the loader keeps the checkpoint's type for everything that is not quantized
        for module in model.modules():
            if type(module).__name__ == "Linear4bit":  # and not the kernel of some CPUs that rounds absmax to bfloat16
                module.compute_dtype, module.compute_type_is_set, module.support_avx512bf16_for_cpu = torch.float32, True, False
        for name, p in model.named_parameters():
            if p.dtype in (torch.bfloat16, torch.float16):
                p.data = p.data.float()
        for name, b in model.named_buffers():
            if b.dtype in (torch.bfloat16, torch.float16):
                b.data = b.data.float()
    model.eval()
    if packed:
        logits(model, torch.zeros((1, 4), dtype=torch.int64))
    return model


def loaded_weight(form, module):
    """float32 [out, in] of a linear, as the library sees it."""
    if form == "gptq":
        w = module.dequantize_weight().T
    elif form == "bnb":
        import bitsandbytes
        w = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
    else:
        w = module.weight
    return w.detach().float().numpy()


def expected_weights(form, expected, dtype, packed):
    """({module: what the library must show}, {module: what its forward in float32 uses}). gptqmodel and compressed-tensors round scale times
    code to fp16, except where packed layers are unpacked in the model's own type; bitsandbytes shows the product rounded to the checkpoint's
    type and uses it unrounded."""
    if form == "bnb":
        return {m: o.weight for m, o in expected.items()}, {m: o.product for m, o in expected.items()}
    rounding = ROUND[dtype if form == "dense" else "float32" if packed else "float16"]
    shown = {m: rounding(o.weight) for m, o in expected.items()}
    return shown, shown


def weight_faults(form, model, expected):
    """Every quantized linear's weight in the library is the expected one, bit for bit. To be called before the first forward."""
    faults = []
    for name, w in expected.items():
        found = loaded_weight(form, model.get_submodule(name))
        if found.shape != w.shape or not np.array_equal(found, w):
            off = np.abs(found - w).max() if found.shape == w.shape else np.inf
            faults.append(f"{name}: the library's weight differs from the container's by {off:.3g}")
    return faults


def load_adapter(model, folder, ranks):
    """(PEFT model, faults): every module there with its rank and factor exactly 1, every tensor the file's, nothing else."""
    faults = []
    peft = PeftModel.from_pretrained(model, folder, is_trainable=True)
    _, tensors, _ = read_safetensors(os.path.join(folder, "adapter_model.safetensors"))
    state = get_peft_model_state_dict(peft)
    missing, extra = sorted(set(state) - set(tensors)), sorted(set(tensors) - set(state))
    if missing or extra:
        faults.append(f"adapter: {len(missing)} modules' tensors are not in the file, {len(extra)} of the file are not loaded: {(missing + extra)[0]}")
    for name in set(state) & set(tensors):
        if not np.array_equal(state[name].float().numpy(), tensors[name].astype(np.float32)):
            faults.append(f"{name}: not loaded as it stands in the file")
    found = {n.removeprefix("base_model.model."): m for n, m in peft.named_modules() if hasattr(m, "lora_A") and "default" in m.lora_A}
    if set(found) != set(ranks):
        faults.append(f"modules with an adapter: {sorted(set(found) ^ set(ranks))[:2]}")
    for name, m in found.items():
        if m.scaling["default"] != 1.0:
            faults.append(f"{name}: factor {m.scaling['default']}")
        if m.lora_A["default"].weight.shape[0] != ranks.get(name):
            faults.append(f"{name}: rank {m.lora_A['default'].weight.shape[0]}, expected {ranks.get(name)}")
    return peft, faults


def set_factor(peft, factor):
    for m in peft.modules():
        if hasattr(m, "lora_A") and "default" in m.lora_A:
            m.scaling["default"] = float(factor)


@torch.no_grad()
def logits(model, windows):
    """A list of float32 [length, vocabulary]; all windows go in one batch, since some kernels unpack the weights at every forward."""
    return list(model(input_ids=torch.stack(list(windows)), use_cache=False).logits.float())


def kl(reference, found):
    """Mean over positions of KL(reference || found), in nats."""
    total = 0.0
    for a, b in zip(reference, found):
        p, q = torch.log_softmax(a.double(), -1), torch.log_softmax(b.double(), -1)
        total += float((p.exp() * (p - q)).sum(-1).mean())
    return total / len(reference)


def difference(reference, found):
    return max(float((a - b).abs().max()) for a, b in zip(reference, found)) / max(float(a.abs().max()) for a in reference)


def strength_faults(peft, original, windows):
    """The adapter moves the model towards the original, and its factor is 1: half and twice of it are worse. Returns faults and figures."""
    figures = {}
    for factor in (0, 0.5, 1, 2):
        set_factor(peft, factor)
        figures[factor] = kl(original, logits(peft, windows))
    set_factor(peft, 1)
    faults = [f"KL to the original at factor {f}: {figures[f]:.4g}, at 1: {figures[1]:.4g}" for f in (0, 0.5, 2) if not figures[1] < figures[f]]
    return faults, figures


def training_faults(peft, batch, folder):
    """Five AdamW steps lower the loss, move every adapter tensor, and nothing else; saved and loaded again it is the same model."""
    faults = []
    trainable = {n: p for n, p in peft.named_parameters() if p.requires_grad}
    if not trainable or any("lora_" not in n for n in trainable):
        faults.append(f"trainable: {len(trainable)} tensors, {[n for n in trainable if 'lora_' not in n][:2]}")
    if any(p.dtype != torch.float32 for p in trainable.values()):
        faults.append(f"trainable tensors of {sorted({str(p.dtype) for p in trainable.values()})}")
    before = {n: p.detach().clone() for n, p in trainable.items()}
    peft.train()
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-3)
    losses = []
    for step in range(6):
        loss = peft(input_ids=batch, labels=batch, use_cache=False).loss
        losses.append(float(loss.detach()))
        if step == 5:
            break
        loss.backward()
        still = [n for n, p in trainable.items() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
        if still:
            faults.append(f"step {step}: no gradient in {len(still)} adapter tensors: {still[0]}")
        optimizer.step()
        optimizer.zero_grad()
    peft.eval()
    if not losses[-1] < losses[0]:
        faults.append(f"the loss after five steps is {losses[-1]:.5g}, before {losses[0]:.5g}")
    still = [n for n, p in trainable.items() if torch.equal(p, before[n])]
    if still:
        faults.append(f"{len(still)} adapter tensors did not move: {still[0]}")

    trained = logits(peft, batch[:1])
    with tempfile.TemporaryDirectory(dir=folder) as saved:
        peft.save_pretrained(saved)
        peft.load_adapter(saved, adapter_name="again")
        peft.set_adapter("again")
        again = logits(peft, batch[:1])
        peft.set_adapter("default")
        peft.delete_adapter("again")
    if difference(trained, again) > 1e-6:
        faults.append(f"saved and loaded again: logits differ by {difference(trained, again):.3g}")
    return faults, losses


def folder_faults(model, folder):
    """The folder works as a model: its tokenizer loads, text comes back, ten tokens are generated."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "the quick brown fox"
    ids = tokenizer(text, return_tensors="pt").input_ids
    faults = [] if tokenizer.decode(ids[0], skip_special_tokens=True) == text else [f"the tokenizer returns {tokenizer.decode(ids[0])!r}"]
    out = model.generate(input_ids=ids, min_new_tokens=10, max_new_tokens=10, do_sample=False)
    if out.shape[1] != ids.shape[1] + 10:
        faults.append(f"generate gave {out.shape[1] - ids.shape[1]} tokens, expected 10")
    return faults


@torch.no_grad()
def perplexity(model, windows):
    """exp of the mean over windows of the mean NLL of all tokens but the first, from logits in float32."""
    nll = []
    for w in windows:
        x = model(input_ids=w[None], use_cache=False).logits[0, :-1].float()
        nll.append(float(torch.nn.functional.cross_entropy(x, w[1:])))
    return float(np.exp(np.mean(nll)))


class Reference:
    """The original checkpoint in float32, and what its logits become with given weights: neither exporter nor loader takes part."""

    def __init__(self, folder):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.original = {}

    def logits(self, windows):
        return logits(self.model, windows)

    @torch.no_grad()
    def logits_with(self, weights, windows):
        """weights: {module: float32 array}"""
        for name, w in weights.items():
            p = self.model.get_submodule(name).weight
            self.original.setdefault(name, p.data)
            p.data = torch.from_numpy(w)
        found = logits(self.model, windows)
        for name in weights:
            self.model.get_submodule(name).weight.data = self.original[name]
        return found

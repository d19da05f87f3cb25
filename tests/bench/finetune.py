"""What a start is worth after training: LoRA from the exports of several settings of a run, on the same tokens in the same order.

    mpirun -n 2 build/cloqwork run jobs/smollm2.yaml --set output=runs/finetune --set \\
        'sweep=[{method: [{quantizer: nf, init: zero}, loftq, cloq, refine], bits: [2, 3, 4], group: 64, rank: 16}]'
    python tests/bench/finetune.py runs/finetune --model models/smollm2 --train models/smollm2/calib.npy --heldout models/smollm2/heldout.npy

({quantizer: nf, init: zero} is QLoRA's start at any of these bits.) Every setting is exported as dense float32 (what its quantized base computes
with; the base is frozen), trained with AdamW (no weight decay, gradients clipped to norm 1, constant rate) at each rate of the grid, and evaluated on
held-out windows before and after. The unquantized model with a fresh adapter of the same rank, `original`, is the mark to reach. Then, of each number of
bits, the best setting and the next one run with two further seeds at their own best rates: a seed is an order of the training windows.

A run is a file OUT/SETTING-RATE-SEED.json, and one that is there is not done again, so that it may be stopped at any time; files that were made in another
way are refused. OUT/results.json, which `cloqwork report` shows, and OUT/table.md hold all of them. With 60 steps of 2 x 512 tokens and three rates SmolLM2's 13 starts take 39
runs and 12 more of further seeds, 51 x (60 steps and an evaluation): the time left is printed after every run."""
import argparse
import hashlib
import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LAST = 5  # steps whose mean loss stands for the end of training


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run")
    p.add_argument("--model", required=True, help="the original checkpoint")
    p.add_argument("--train", required=True, help="token ids, .npy")
    p.add_argument("--heldout", required=True, help="token ids, .npy")
    p.add_argument("--out", help="default: RUN/finetune")
    p.add_argument("--settings", help="comma-separated; default: all of the run")
    p.add_argument("--rank", type=int, default=16)
    p.add_argument("--steps", type=int, default=60)
    p.add_argument("--batch", type=int, default=2)
    p.add_argument("--length", type=int, default=512)
    p.add_argument("--windows", type=int, default=16, help="of held-out tokens")
    p.add_argument("--rates", default="1e-4,5e-4,1.5e-3", help="of learning, comma-separated")
    p.add_argument("--split", help="of the exports' factors: cloq, qera or balanced; default: each method's own")
    p.add_argument("--seeds", type=int, default=3, help="of the two best settings of each number of bits")
    a = p.parse_args()
    a.out = a.out or os.path.join(a.run, "finetune")
    a.rates = [float(x) for x in a.rates.split(",")]
    a.settings = a.settings.split(",") if a.settings else sorted(os.listdir(os.path.join(a.run, "solutions")))
    return a


def windows(path, length):
    ids = np.load(path)
    return ids[: len(ids) // length * length].reshape(-1, length).astype(np.int64)


def identity(a):
    """What a result was made from; two results with different ones do not stand in one table."""
    tokens = {name: hashlib.sha256(np.load(path).tobytes()).hexdigest() for name, path in (("train", a.train), ("heldout", a.heldout))}
    return {**tokens, "rank": a.rank, "steps": a.steps, "batch": a.batch, "length": a.length, "windows": a.windows, "split": a.split, "torch": torch.__version__}


def export(a, setting, folder):
    program = os.environ.get("CLOQWORK", "build/cloqwork")
    split = ["--split", a.split] if a.split else []
    done = subprocess.run([program, "export", a.run, "--setting", setting, "--rank", str(a.rank), "--to", "dense", "--dtype", "float32", "--out", folder, *split],
                          capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        sys.exit(f"finetune: {setting}: the export ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")


def start(a, setting, folder, seed):
    """The model that training begins with: only A and B learn."""
    torch.manual_seed(seed)
    if setting != "original":
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(f"{folder}/base", dtype=torch.float32), f"{folder}/adapter", is_trainable=True)
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.float32)
    return get_peft_model(model, LoraConfig(r=a.rank, lora_alpha=a.rank, target_modules=LINEARS, task_type="CAUSAL_LM"))


@torch.no_grad()
def heldout_loss(a, model):
    model.eval()
    losses = [model(input_ids=w, labels=w).loss.item() for w in torch.from_numpy(windows(a.heldout, a.length)[: a.windows]).split(1)]
    return statistics.fmean(losses)


def train(a, model, rate, seed):
    """The loss of every step."""
    model.train()
    data = windows(a.train, a.length)
    if len(data) < a.steps * a.batch:
        sys.exit(f"finetune: {a.train}: expected {a.steps * a.batch} windows of {a.length} tokens, found {len(data)}")
    order = np.random.default_rng(seed).permutation(len(data))
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=rate, weight_decay=0)
    losses = []
    for step in range(a.steps):
        batch = torch.from_numpy(data[order[step * a.batch : (step + 1) * a.batch]])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def finite(x):
    """JSON has no infinity: None stands for what diverged."""
    return x if math.isfinite(x) else None


def perplexity(loss):
    return math.exp(loss) if loss < 700 else None


def write(path, text):
    with open(path + ".tmp", "w") as f:
        f.write(text)
    os.replace(path + ".tmp", path)


class Bench:
    def __init__(self, a):
        self.a, self.made_from, self.results, self.seconds = a, identity(a), {}, []
        os.makedirs(a.out, exist_ok=True)

    def path(self, setting, rate, seed):
        return os.path.join(self.a.out, f"{setting}-{rate:g}-{seed}.json")

    def load(self, setting, rate, seed):
        path = self.path(setting, rate, seed)
        if not os.path.exists(path):
            return False
        with open(path) as f:
            result = json.load(f)
        for key, value in self.made_from.items():
            if result["made_from"].get(key) != value:
                sys.exit(f"finetune: {path}: {key}: expected {value}, found {result['made_from'].get(key)}; take another --out")
        self.results[setting, rate, seed] = result
        return True

    def do(self, setting, jobs, left):
        """(rate, seed) pairs of one setting; left: runs of the others that are still to come."""
        missing = [job for job in jobs if not self.load(setting, *job)]
        if not missing:
            return
        folder = tempfile.mkdtemp(prefix="export-", dir=self.a.out)
        try:
            if setting != "original":
                os.rmdir(folder)
                export(self.a, setting, folder)
            for i, (rate, seed) in enumerate(missing):
                begun = time.monotonic()
                model = start(self.a, setting, folder, seed)
                before = self.before(setting, model)
                losses = train(self.a, model, rate, seed)
                after = heldout_loss(self.a, model)
                self.seconds.append(time.monotonic() - begun)
                result = {"setting": setting, "rate": rate, "seed": seed, "heldout_before": finite(before), "heldout_after": finite(after),
                          "perplexity_before": perplexity(before), "perplexity_after": perplexity(after), "losses": [finite(x) for x in losses],
                          "seconds": self.seconds[-1], "made_from": self.made_from}
                write(self.path(setting, rate, seed), json.dumps(result))
                self.results[setting, rate, seed] = result
                hours = statistics.fmean(self.seconds) * (len(missing) - i - 1 + left) / 3600
                print(f"{setting} rate {rate:g} seed {seed}: held-out loss {before:.4f} -> {after:.4f}, {self.seconds[-1]:.0f} s, {hours:.1f} h left",
                      file=sys.stderr, flush=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def before(self, setting, model):
        """Held-out loss of the start, which neither rate nor seed changes: B is the setting's, or zero."""
        known = [r["heldout_before"] for (s, _, _), r in self.results.items() if s == setting]
        return known[0] if known and known[0] is not None else heldout_loss(self.a, model)

    def best(self, setting):
        """Its first-seed result at the rate that ends lowest; one that diverged is the last choice."""
        ours = [r for (s, _, seed), r in self.results.items() if s == setting and seed == 0]
        return min(ours, key=end)

    def seeds(self, setting):
        rate = self.best(setting)["rate"]
        return [r for (s, x, _), r in sorted(self.results.items()) if s == setting and x == rate and r["perplexity_after"] is not None]

    def rows(self, settings):
        """Of each setting at its best rate; losses are the first seed's."""
        for setting in settings:
            b, after = self.best(setting), [r["perplexity_after"] for r in self.seeds(setting)]
            if not after:
                continue  # it diverged at every rate
            yield {"setting": setting, "perplexity_before": b["perplexity_before"], "first_loss": b["losses"][0], "last_loss": statistics.fmean(b["losses"][-LAST:]),
                   "rate": b["rate"], "perplexity_after": statistics.fmean(after), "deviation": statistics.stdev(after) if len(after) > 1 else None, "seeds": len(after)}


def markdown(rows):
    lines = ["| start | perplexity before | first step's loss | last steps' loss | best rate | perplexity after | seeds |", "|---|---|---|---|---|---|---|"]
    for r in rows:
        after = f"{r['perplexity_after']:.2f}" + (f" ± {r['deviation']:.2f}" if r["deviation"] is not None else "")
        lines.append(f"| {r['setting']} | {r['perplexity_before']:.4g} | {r['first_loss']:.3f} | {r['last_loss']:.3f} | {r['rate']:g} | {after} | {r['seeds']} |")
    return "\n".join(lines) + "\n"


def end(result):
    return math.inf if result["heldout_after"] is None else result["heldout_after"]


def bits_of(setting):
    found = re.search(r"-b(\d+)(-|$)", setting)
    return int(found[1]) if found else None


def main():
    a = arguments()
    bench, settings = Bench(a), ["original", *a.settings]
    grid = [(rate, 0) for rate in a.rates]
    extra = len({bits_of(s) for s in a.settings}) * 2 * (a.seeds - 1)
    for i, setting in enumerate(settings):
        bench.do(setting, grid, (len(settings) - i - 1) * len(grid) + extra)
    for bits in sorted({bits_of(s) for s in a.settings}, key=str):
        two = sorted((s for s in a.settings if bits_of(s) == bits), key=lambda s: end(bench.best(s)))[:2]
        for setting in two:
            bench.do(setting, [(bench.best(setting)["rate"], seed) for seed in range(1, a.seeds)], 0)
    rows = list(bench.rows(settings))
    write(os.path.join(a.out, "results.json"), json.dumps({"made_from": bench.made_from, "table": rows, "results": list(bench.results.values())}))
    write(os.path.join(a.out, "table.md"), markdown(rows))
    print(markdown(rows), end="")


main()

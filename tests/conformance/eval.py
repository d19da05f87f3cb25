"""eval.py EVAL.json: recomputes every figure of `cloqwork eval --json` with transformers and numpy; they may differ by 1e-5 relative."""
import json, math, os, sys
import h5py, numpy as np, torch
from transformers import AutoModelForCausalLM
from decode import read_container

LIMIT = 1e-5
found = json.load(open(sys.argv[1]))
T, n = found["length"], found["windows"]
ids = np.load(found["tokens"])
assert len(ids) >= n * T
windows = torch.tensor(ids[: n * T].astype(np.int64).reshape(n, T))
model = AutoModelForCausalLM.from_pretrained(found["model"], dtype=torch.float32).eval()
linears = dict(model.named_modules())
original = {k: v.detach().clone() for k, v in model.state_dict().items()}
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))


def log_softmax():
    """For each window (T - 1, V) log probabilities in double of float32 logits."""
    for w in windows:
        with torch.no_grad():
            yield torch.log_softmax(model(w[None]).logits[0, :-1].double(), -1)


def figures(rank, p, q):
    """p: the original's log probabilities, q: these."""
    rows, nll, base, kl, same = torch.arange(T - 1), [], [], [], []
    for w, a, b in zip(windows, p, q):
        nll.append(-b[rows, w[1:]].mean().item())
        base.append(-a[rows, w[1:]].mean().item())
        kl.append((a.exp() * (a - b)).sum(-1).mean().item())
        same.append((a.argmax(-1) == b.argmax(-1)).double().mean().item())
    nll, base, kl, same = map(np.array, (nll, base, kl, same))
    se = lambda x: x.std(ddof=1) / math.sqrt(n)
    return {"rank": rank, "perplexity": math.exp(nll.mean()), "nll": nll.mean(), "nll_se": se(nll),
            "nll_minus_original": (nll - base).mean(), "nll_minus_original_se": se(nll - base), "kl": kl.mean(), "kl_se": se(kl),
            "top1_agreement": same.mean(), "top1_agreement_se": se(same), "tokens": n * (T - 1)}


def set_weights(name, rank):
    model.load_state_dict(original)
    for layer in range(model.config.num_hidden_layers):
        with h5py.File(f"{found['run']}/solutions/{name}/layer-{layer:03d}.h5") as f:
            paths = [f"model.layers.{layer}.{p}" for p in f]
        for path in paths:
            s = read_container(found["run"], name, path)
            merged = s.weight + s.B[:, :rank].astype(np.float64) @ s.A[:rank].astype(np.float64)
            linears[path].weight.data.copy_(torch.tensor(merged.astype(np.float32)))


worst = {}


def compare(what, mine, theirs):
    assert mine.keys() == theirs.keys(), (what, set(mine) ^ set(theirs))
    assert mine["rank"] == theirs["rank"], what
    for k, x in theirs.items():
        if k == "rank":
            continue
        y = mine[k]
        # differences are held against what they are differences of; one position more or less agrees where two logits are equal to rounding
        scale = {"nll_minus_original": theirs["nll"], "nll_minus_original_se": theirs["nll_se"], "kl_se": max(theirs["kl_se"], theirs["kl"])}.get(k, x)
        error = abs(x - y) / abs(scale) if scale else abs(x - y)
        room = 1.5 / theirs["tokens"] if k.startswith("top1_agreement") else 0
        worst[k] = max(worst.get(k, 0), error)
        assert error <= LIMIT + room, f"{what}: {k}: expected {x}, found {y}"


p = list(log_softmax())
reference = figures(None, p, p)
compare("original", found["original"], reference)
assert found["original"]["kl"] == 0 and found["original"]["top1_agreement"] == 1 and found["original"]["nll_minus_original"] == 0
points = 0
for s in found["settings"]:
    for point in s["points"]:
        set_weights(s["name"], point["rank"])
        compare(f"{s['name']} at rank {point['rank']}", point, figures(point["rank"], p, log_softmax()))
        points += 1
print(f"{points} points agree; largest relative differences:", ", ".join(f"{k} {v:.1e}" for k, v in worst.items() if v))

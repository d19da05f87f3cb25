"""peers.py MODEL FOLDER RANK LAYERS LINEAR,…: codes and factors of a run against the libraries and papers that its methods come from.

The checkpoint is cut to its first layers and written in float32, so that a quantized weight is what its levels say and no loader's rounding stands
between the two sides. bitsandbytes quantizes (QLoRA), PEFT alternates (LoftQ) and splits (PiSSA, which is lasq-w); QERA, LQER, EoRA and QA-LoRA
are written out as their papers have them, with roots and inverses, in numpy and double. Products are compared, not factors: a pair of signs is free.
One line per check and matrix type; exit code 1 if any failed."""
import json
import os
import statistics
import sys

import bitsandbytes.functional as bnb
import h5py
import numpy as np
import peft
import torch
from peft.utils import loftq_utils

import decode
from export import FAILED, OUT, cloqwork, cut, report

torch.set_num_threads(1)
INPUT = {"q_proj": "attn_in", "k_proj": "attn_in", "v_proj": "attn_in", "o_proj": "attn_out", "gate_proj": "mlp_in", "up_proj": "mlp_in", "down_proj": "mlp_out"}
WINDOWS, LENGTH, POOL, POOL_RANK = 16, 256, 16, 4
EXACT = {"adapter_solver": "dense", "adapter_tolerance": 1e-12}


class Gram:
    """H with its eigenvectors, its diagonal's root, and what LQER scales by."""

    def __init__(self, run, layer, name):
        with h5py.File(f"{run}/grams/layer-{layer:03d}.h5") as f:
            g = f[name]
            self.h, self.largest_mean = decode.full_gram(g).astype(np.float64), np.maximum(g["max_mean_abs"][...], 1e-4)
        self.values, self.vectors = np.linalg.eigh(self.h)
        self.condition = self.values[-1] / max(self.values[0], 1e-300)
        self.values = np.maximum(self.values, self.values[self.values > 0].min())  # as EoRA's authors do

    def loss(self, e):
        return float(np.sum((e @ self.h) * e))


def best(m, r):
    """U sigma, V^T of the largest r, and the share of m's energy in the others."""
    u, s, vt = np.linalg.svd(m, full_matrices=False)
    return u[:, :r] * s[:r], vt[:r], np.sum(s[r:] ** 2) / np.sum(s**2)


# ---- the papers, literally: the product, and the share of the energy that it leaves in the metric it fits ----


def qera_exact(e, g, r):
    """SVD_r(E R) R^-1 with R the symmetric root of H."""
    root = (g.vectors * np.sqrt(g.values)) @ g.vectors.T
    us, vt, left = best(e @ root, r)
    return us @ np.linalg.solve(root, vt.T).T, left


def eora(e, g, r):
    """SVD_r(E Q sqrt(L)) (Q sqrt(L))^-1 in the eigenspace of H."""
    us, vt, left = best(e @ (g.vectors * np.sqrt(g.values)), r)
    return us @ (vt / np.sqrt(g.values)) @ g.vectors.T, left


def diagonal(e, d, r):
    us, vt, left = best(e * d, r)
    return us @ (vt / d), left


def qera_approx(e, g, r):
    return diagonal(e, np.sqrt(np.diag(g.h)), r)


def lqer(e, g, r):
    """S = mean |x|, the largest over batches, normalised as the authors do: a constant that drops out."""
    d = g.largest_mean / np.sqrt(g.largest_mean.min() * g.largest_mean.max())
    return diagonal(e, d, r)


def qa_lora(e, g, r):
    """Alternating least squares for B C Pool, from a random C until nothing moves."""
    pool = np.kron(np.eye(e.shape[1] // POOL), np.ones((1, POOL)))
    hp, k = pool @ g.h @ pool.T, e @ g.h @ pool.T
    c, last = np.random.default_rng(0).standard_normal((r, pool.shape[0])), None
    right = np.linalg.solve(hp, k.T).T  # K HP^-1
    for _ in range(20000):
        b = np.linalg.solve(c @ hp @ c.T, c @ k.T).T
        c = np.linalg.solve(b.T @ b, b.T @ right)
        c = np.linalg.qr(c.T)[0].T if last is None else c
        product = b @ c
        if last is not None and np.abs(product - last).max() <= 1e-13 * np.abs(product).max():
            break
        last = product
    product = product @ pool
    return product, g.loss(e - product) / g.loss(e)


# ---- the comparison ----


def relative(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


class World:
    def __init__(self, model, folder, rank, layers, linears):
        self.run, self.rank, self.layers, self.linears = f"{folder}/run", rank, layers, linears
        self.config, self.tensors = cut(model, f"{folder}/model", layers, "float32")
        exact = {"bits": 3, "group": 64, "rank": rank, "options": EXACT}
        sweep = [{"method": "qlora", "bits": 4, "group": 64, "rank": 1, "options": {"nf_double": ["off", "on"]}},
                 {"method": "loftq", "bits": [2, 4], "group": 64, "rank": rank, "options": {"loftq_T": [1, 5], "adapter_tolerance": 1e-12}},
                 {"method": "lasq-w", "bits": 4, "group": 64, "rank": rank, "options": {"adapter_tolerance": 1e-12}},
                 {"method": ["qera-exact", "eora"], **exact},
                 {"method": ["qera-approx", "lqer"], **exact, "options": {"adapter_tolerance": 1e-12}},
                 {"method": "qa-lora", "bits": 3, "group": POOL, "rank": POOL_RANK}]
        with open(f"{folder}/job.yaml", "w") as f:
            json.dump({"model": f"{folder}/model", "output": self.run, "sweep": sweep, "targets": linears,
                       "calibration": {"tokens": f"{model}/calib.npy", "windows": WINDOWS, "length": LENGTH, "sampling": "sequential"}}, f)
        cloqwork("run", f"{folder}/job.yaml", "--quiet", ranks=2)
        self.settings = {}
        for name in os.listdir(f"{self.run}/solutions"):
            with h5py.File(f"{self.run}/solutions/{name}/layer-000.h5") as f:
                self.settings[name] = dict(f.attrs)
        self.grams = {}

    def setting(self, **wanted):
        names = [n for n, a in self.settings.items() if all(str(a[k]) == v for k, v in wanted.items())]
        assert len(names) == 1, (wanted, names, list(self.settings))
        return names[0]

    def gram(self, layer, linear):
        key = layer, INPUT[linear]
        if key not in self.grams:
            self.grams[key] = Gram(self.run, *key)
        return self.grams[key]

    def matrices(self, setting, rank=0):
        """(layer, linear, its original weight, its solution) of every matrix."""
        for layer in range(self.layers):
            for linear in self.linears:
                module = next(m for m in decode.modules_of({"num_hidden_layers": self.layers}) if m.startswith(f"model.layers.{layer}.") and m.endswith(linear))
                found = decode.read_container(self.run, setting, module, rank)
                yield layer, linear, self.tensors[f"{module}.weight"], found


class Line:
    """Faults and the largest figures of one check over all matrices."""

    def __init__(self, name):
        self.name, self.faults, self.figures = name, [], {}

    def __call__(self, where, what, value, most):
        self.figures[what] = max(self.figures.get(what, 0), value)
        if not value <= most:
            self.faults.append(f"{where}: {what}: {value:.3g}, at most {most:.3g}")

    def end(self):
        report(self.name, self.faults, ", ".join(f"{k} {v:.1e}" if isinstance(v, float) else f"{k} {v}" for k, v in self.figures.items()))


NF4 = decode.NF["nf4"]
TIE = 1e-6  # of a block's absmax: nearer to the middle of two levels than float arithmetic of two libraries agrees


def blocks_of(w, absmax):
    """w / absmax of its block of 64, in double."""
    return (w.reshape(absmax.shape + (-1,)) / np.where(absmax > 0, absmax, 1)[..., None].astype(np.float64)).reshape(w.shape)


def middles(levels, x):
    """Distance of x to the nearest middle of two levels."""
    middle = (levels[1:].astype(np.float64) + levels[:-1]) / 2
    return np.abs(x[..., None] - middle).min(axis=-1)


def judge_qlora(world):
    single, double = (Line(f"QLoRA, bitsandbytes, double quantization {x}") for x in ("off", "on"))
    for layer, linear, w, q in world.matrices(world.setting(method="qlora", nf_double="off")):
        packed, state = bnb.quantize_4bit(torch.from_numpy(w), blocksize=64, quant_type="nf4")
        theirs = np.stack([packed.numpy().ravel() >> 4, packed.numpy().ravel() & 15], axis=1).reshape(w.shape)
        single(linear, "absmax", int(np.sum(state.absmax.numpy() != q.absmax.ravel())), 0)
        other = theirs != q.codes
        single(linear, "ties", int(np.sum(other)), 4)
        single(linear, "of another value", int(np.sum(other & (middles(NF4, blocks_of(w, q.absmax)) > TIE))), 0)
        single(linear, "B", float(np.abs(q.B).max()), 0)
    single.end()
    for layer, linear, w, q in world.matrices(world.setting(method="qlora", nf_double="on")):
        # The library rounds weights to the levels of the exact absmax, then quantizes that. Ours are the nearest levels of the absmax that is
        # loaded: they differ where a middle lies between the two, and are then nearer to the weight.
        packed, state = bnb.quantize_4bit(torch.from_numpy(w), blocksize=64, quant_type="nf4", compress_statistics=True)
        theirs = np.stack([packed.numpy().ravel() >> 4, packed.numpy().ravel() & 15], axis=1).reshape(w.shape)
        nested = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
        exact = np.abs(w.reshape(-1, 64)).max(axis=1)
        step = np.abs(exact - exact.mean()).max()
        double(linear, "absmax beyond the library's error", float((np.abs(q.absmax.ravel() - exact) - np.abs(nested.numpy() - exact)).max() / step), 1e-6)
        double(linear, "share of second-level codes that differ", float(np.mean(np.abs(nested.numpy() - q.absmax.ravel()) > 1e-5 * step)), 0.02)
        other = theirs != q.codes
        double(linear, "share of codes that differ", float(np.mean(other)), 0.02)
        a = np.repeat(q.absmax.reshape(-1), 64).reshape(w.shape).astype(np.float64)
        further = np.abs(NF4[q.codes] * a - w) - np.abs(NF4[theirs] * a - w)
        double(linear, "further from the weight", float((further / a).max()), TIE)
    double.end()


def peft_loftq(w, bits, rank, rounds):
    """PEFT's own routine, which insists on a GPU by name: here its "cuda" is "cpu"."""
    routine = loftq_utils.loftq_init.__wrapped__
    routine.__code__ = routine.__code__.replace(co_consts=tuple("cpu" if c == "cuda" else c for c in routine.__code__.co_consts))
    return (x.double().numpy() for x in loftq_utils.loftq_init(torch.from_numpy(w), bits, rank, num_iter=rounds))


def written_loftq(w, bits, rank, rounds):
    """The routine of LoftQ's authors, which PEFT dropped at 0.20 for other than four bits: normal quantiles, nearest level, SVD in float."""
    inverse, offset, half = statistics.NormalDist().inv_cdf, 0.9677083, 2 ** (bits - 1)
    above, below = ([inverse(p) for p in np.linspace(offset, 0.5, n + 1)[:-1]] for n in (half, half - 1))
    levels = torch.tensor(sorted([-x for x in below] + [0.0] + above)) / max(above)
    w, p = torch.from_numpy(w), 0
    for _ in range(rounds):
        blocks = (w - p).reshape(-1, 64)
        largest = blocks.abs().amax(dim=1, keepdim=True)
        share = blocks * (1 / largest)  # as bitsandbytes has it; theirs divides, and puts weights of half the largest one, exactly, on the other side
        base = (levels[(share[..., None] - levels).abs().argmin(dim=-1)] * largest).reshape(w.shape)
        u, s, vt = torch.linalg.svd(w - base, full_matrices=False)
        a, b = s[:rank, None].sqrt() * vt[:rank], u[:, :rank] * s[:rank].sqrt()
        p = b @ a
    return (x.double().numpy() for x in (base, a, b))


def judge_loftq(world, bits, who, routine):
    once, often = Line(f"LoftQ, {who}, {bits} bits, T = 1"), Line(f"LoftQ, {who}, {bits} bits, T = 5")
    levels = decode.NF[f"nf{bits}"]
    for layer, linear, w, q in world.matrices(world.setting(method="loftq", bits=str(bits), loftq_T="1"), world.rank):
        base, a, b = routine(w, bits, world.rank, 1)
        other = np.abs(base - q.weight) > 1e-5 * np.abs(w).max()
        once(linear, "ties", int(np.sum(other)), 4)
        once(linear, "of another value", int(np.sum(other & (middles(levels, blocks_of(w, q.absmax)) > TIE))), 0)
        once(linear, "values", float(np.abs(base - q.weight)[~other].max() / np.abs(w).max()), 1e-6)
        # the library's SVD is in float: 1e-4 of the product leaves room for singular values that lie close together
        once(linear, "product", relative(q.B.astype(np.float64) @ q.A, b @ a), 1e-4 if not other.any() else 1e-2)
        ours, theirs = (np.linalg.norm(w - x - y) for x, y in ((q.weight, q.B.astype(np.float64) @ q.A), (base, b @ a)))
        once(linear, "norm of what is left", float(abs(ours / theirs - 1)), 1e-5)
    once.end()
    equal = 0
    for layer, linear, w, q in world.matrices(world.setting(method="loftq", bits=str(bits), loftq_T="5"), world.rank):
        # From the second round on both quantize what an SVD left, theirs one in float: equal to six digits only. A weight near the middle of two levels
        # may take the other one; the next SVD sees that, and if its singular values lie close together, so do all that follow. Then the rounds
        # end at another of many equally good places, and the norms alone agree.
        base, a, b = routine(w, bits, world.rank, 5)
        products = q.B.astype(np.float64) @ q.A, b @ a
        other = float(np.mean(np.abs(base - q.weight) > 1e-5 * np.abs(w).max()))
        ours, theirs = (np.linalg.norm(w - x - y) for x, y in zip((q.weight, base), products))
        often(linear, "norm of what is left", float(abs(ours / theirs - 1)), 1e-3)
        often(linear, "largest share of values that differ", other, 0.05)
        if other == 0:
            often(linear, "product of those without any", relative(*products), 1e-3)
            equal += 1
    often(linear, "matrices, all with values that differ", int(equal == 0), 0)
    often.end()


def judge_pissa(world):
    """lasq-w is PEFT's PiSSA, whose base is then quantized."""
    line = Line("lasq-w, PEFT's PiSSA and bitsandbytes")
    for layer, linear, w, q in world.matrices(world.setting(method="lasq-w"), world.rank):
        model = torch.nn.Sequential(torch.nn.Linear(w.shape[1], w.shape[0], bias=False))
        model[0].weight.data = torch.from_numpy(w.copy())
        peft.get_peft_model(model, peft.LoraConfig(r=world.rank, lora_alpha=world.rank, init_lora_weights="pissa", target_modules=["0"]))
        layer = model[0]
        a, b = (x["default"].weight.detach().double().numpy() for x in (layer.lora_A, layer.lora_B))
        line(linear, "product", relative(q.B.astype(np.float64) @ q.A, b @ a), 1e-4)
        packed, state = bnb.quantize_4bit(layer.base_layer.weight.data.contiguous(), blocksize=64, quant_type="nf4")
        theirs = np.stack([packed.numpy().ravel() >> 4, packed.numpy().ravel() & 15], axis=1).reshape(w.shape)
        other = theirs != q.codes
        rest = w - q.B.astype(np.float64) @ q.A
        line(linear, "share of codes that differ", float(np.mean(other)), 1e-3)
        line(linear, "of another value", int(np.sum(other & (middles(NF4, blocks_of(rest, q.absmax)) > 1e-4))), 0)
    line.end()


def judge_paper(world, method, formula, rank, **wanted):
    """The product of a literal formula, and its loss. A root of H loses half of its digits: where H is nearly singular, the product is not determined
    by the loss and not compared."""
    line = Line(f"{method}, its paper's formula in numpy")
    compared, on_diagonal = 0, method in ("qera-approx", "lqer")
    for layer, linear, w, q in world.matrices(world.setting(method=method, **wanted)):
        g, e = world.gram(layer, linear), (w - q.weight).astype(np.float64)
        (theirs, left), ours = formula(e, g, rank), q.B.astype(np.float64)[:, :rank] @ q.A[:rank]
        where = f"layer {layer} {linear}"
        if on_diagonal or g.condition < 1e9:
            compared += 1
            line(where, "product", relative(ours, theirs), 1e-6)
            line(where, "loss", float(abs(g.loss(e - theirs) - q.loss[rank]) / g.loss(e)), 1e-7 if on_diagonal else 1e-9)  # on H it is stationary
            line(where, "own loss", float(abs(q.eigenvalues[rank:].sum() / q.eigenvalues.sum() - left)), 1e-8)  # the squares of LQER's scales are floats
        else:
            line(where, "loss above the formula's where H is singular", float((q.loss[rank] - g.loss(e - theirs)) / g.loss(e)), 1e-7)
    line("all matrices", "none compared", int(compared == 0), 0)
    line.end()


def judge_statistic(world, model):
    """What LQER scales by, of the first layer's attention inputs, from the embedding and the norm alone."""
    tokens = np.load(f"{model}/calib.npy")[: WINDOWS * LENGTH].astype(np.int64)
    x = world.tensors["model.embed_tokens.weight"][tokens].astype(np.float64)
    x *= world.tensors["model.layers.0.input_layernorm.weight"] / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + world.config["rms_norm_eps"])
    expected = np.abs(x).reshape(WINDOWS, LENGTH, -1).mean(axis=1).max(axis=0)
    found = world.gram(0, "q_proj").largest_mean
    line = Line("LQER, largest mean |x| of a window, from the embedding")
    line("attn_in", "relative", float(np.abs(found / np.maximum(expected, 1e-4) - 1).max()), 1e-5)
    line.end()


if __name__ == "__main__":
    model, folder, rank, layers, linears = sys.argv[1:]
    world = World(model, folder, int(rank), int(layers), linears.split(","))
    judge_qlora(world)
    judge_loftq(world, 4, "PEFT", peft_loftq)
    judge_loftq(world, 2, "its authors' routine", written_loftq)
    judge_pissa(world)
    judge_paper(world, "qera-exact", qera_exact, world.rank)
    judge_paper(world, "eora", eora, world.rank)
    judge_paper(world, "qera-approx", qera_approx, world.rank)
    judge_paper(world, "lqer", lqer, world.rank)
    judge_paper(world, "qa-lora", qa_lora, POOL_RANK)
    judge_statistic(world, model)
    print(f"{len(FAILED)} failed" if FAILED else "all good", file=OUT, flush=True)
    sys.exit(bool(FAILED))

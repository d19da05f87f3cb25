"""What the judges of solutions share: a run's solutions, weights and Grams; comparisons that remember how near they came to their limit; slow
and clear quantizers. The arguments are MODEL RUN."""
import functools
import os
import re
import sys

import h5py
import numpy as np

import decode

MODEL, RUN = sys.argv[1:3]
INPUT = {"q_proj": "attn_in", "k_proj": "attn_in", "v_proj": "attn_in", "o_proj": "attn_out", "gate_proj": "mlp_in", "up_proj": "mlp_in", "down_proj": "mlp_out"}
MODULES = [f"model.layers.{i}.{part}.{name}" for i in (0, 1) for part, names in decode.LINEARS.items() for name in names]
_, TENSORS, _ = decode.read_safetensors(os.path.join(MODEL, "model.safetensors"))
SETTINGS = sorted(os.listdir(os.path.join(RUN, "solutions")))
failures, worst, checks = [], {}, 0


def expect(holds, *what):
    global checks
    checks += 1
    if not holds:
        failures.append(" ".join(str(x) for x in what))


def near(what, found, expected, scale, most):
    """|found - expected| <= most scale, everywhere; remembers how near each kind of comparison came to its limit."""
    off = float(np.max(np.abs(np.asarray(found) - np.asarray(expected)))) / scale if scale else 0.0
    kind = what.split(":")[0]
    worst[kind] = max(worst.get(kind, (0, 0)), (off / most, off))
    expect(off <= most, what, f"off by {off:.2e}, expected at most {most:.0e}")


def same_codes(what, found, expected, most=0):
    """most: how many rows may differ, as ties make them."""
    rows = int((found != expected).any(axis=1).sum())
    kind = what.split(":")[0]
    worst[kind] = max(worst.get(kind, (0, 0)), (rows / max(most, 1), rows))
    expect(rows <= most, what, f"codes of {rows} rows of {len(found)} differ, expected at most {most}")


@functools.cache
def weight(module):
    return TENSORS[module + ".weight"].astype(np.float32)


@functools.cache
def inputs(module, folder="grams"):
    """Gram in double, and mean |x| and its largest over windows."""
    layer, name = re.fullmatch(r"model\.layers\.(\d+)\..*\.(.*)", module).groups()
    with h5py.File(os.path.join(RUN, folder, f"layer-{int(layer):03d}.h5")) as f:
        g = f[INPUT[name]]
        return decode.full_gram(g).astype(np.float64), g["mean_abs"][...], g["max_mean_abs"][...]


@functools.cache
def solved(setting, module, rank=0):
    return decode.read_container(RUN, setting, module, rank)


def residual(s, module):
    """In float, as the program holds it: W and Q are floats, their difference has more digits where Q is far from W."""
    return (weight(module) - s.weight.astype(np.float32)).astype(np.float64)


def product(s, rank):
    return s.B[:, :rank].astype(np.float64) @ s.A[:rank].astype(np.float64)


def loss(e, h):
    return float(np.einsum("ij,ij->", e @ h, e))


def best(e, rank):
    """SVD of e cut at the rank, by its singular values."""
    u, s, v = np.linalg.svd(e, full_matrices=False)
    return u[:, :rank] * s[:rank] @ v[:rank]


# ---- quantizers, slow and clear ----


def half(x):
    return np.asarray(x, np.float64).astype(np.float32).astype(np.float16)


def uniform_grid(w, size, bits, symmetric=False, real=False):
    """scales and zeros (n, groups) in double, as they are stored."""
    g = w.astype(np.float64).reshape(len(w), -1, size)
    lo, hi, top = np.minimum(g.min(axis=2), 0), np.maximum(g.max(axis=2), 0), 2**bits - 1
    if symmetric:
        scale = half(2 * np.maximum(-lo, hi) / top).astype(np.float64)
        return scale, np.full_like(scale, 2 ** (bits - 1))
    scale = half((hi - lo) / top).astype(np.float64)
    zero = np.clip(-lo / scale, 0, top)
    return scale, half(zero).astype(np.float64) if real else np.rint(zero)


def encode(x, scale, zero, top):
    """Codes of one column or many; with an integer zero the same as rint(x / s) + z, ties apart."""
    v = np.rint(x / scale + zero) if np.any(zero != np.rint(zero)) else np.rint(x / scale) + zero
    return np.clip(v, 0, top)


def rtn(w, size, scale, zero, bits):
    group_of = np.arange(w.shape[1]) // size
    return encode(w.astype(np.float64), scale[:, group_of], zero[:, group_of], 2**bits - 1)


def gptq(w, h, size, scale, zero, tops, order=None):
    """OPTQ as published (arXiv 2210.17323), with the inverse; static groups. tops: the largest code of every column."""
    m = w.shape[1]
    order = np.arange(m) if order is None else order
    w, h, group_of = w.astype(np.float64)[:, order], h[np.ix_(order, order)].copy(), (np.arange(m) // size)[order]
    dead = np.diag(h) == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    h += 0.01 * np.mean(np.diag(h)) * np.eye(m)
    f = np.linalg.cholesky(np.linalg.inv(h)).T
    codes = np.empty_like(w)
    for j in range(m):
        s, z = scale[:, group_of[j]], zero[:, group_of[j]]
        codes[:, j] = encode(w[:, j], s, z, tops[order[j]])
        w[:, j:] -= np.outer((w[:, j] - s * (codes[:, j] - z)) / f[j, j], f[j, j:])
    back = np.empty_like(codes)
    back[:, order] = codes
    return back


def normal_float(w, bits, size=32):
    """In float with a reciprocal, as bitsandbytes does: weights of bfloat16 hit midpoints often, and this decides them."""
    levels = decode.NF[f"nf{bits}"]
    absmax = np.abs(w.reshape(len(w), -1, size)).max(axis=2)
    x = w * np.repeat(np.float32(1) / absmax, size, axis=1)
    return np.searchsorted((levels[1:] + levels[:-1]) / np.float32(2), x, side="left"), absmax


# ---- settings by their names ----


def method_of(setting):
    return re.match(r"(.*?)-b\d+-g\d+", setting).group(1)


def bits_of(setting):
    return int(re.search(r"-b(\d+)-g", setting).group(1))


def check_curves(module, s, where):
    """The stored loss curves of a solution, both Grams, against its stored numbers: none, one, half and all of its ranks."""
    e = residual(s, module)
    expect(bool(np.isfinite(e).all() and np.isfinite(s.A).all() and np.isfinite(s.B).all()), where, "finite")
    for folder, stored in (("grams", s.loss), ("heldout", s.heldout)):
        h = inputs(module, folder)[0]
        for r in {0, 1, len(s.A) // 2, len(s.A)}:
            near(f"loss of stored numbers: {where} {folder} r={r}", stored[r], loss(e - product(s, r), h), stored[0], 1e-9)


def finish(summary):
    """Prints how near every kind of comparison came to its limit and what failed; ends the program."""
    for kind, (share, off) in sorted(worst.items()):
        print(f"{kind:45} {off:9.2e}  {100 * share:5.1f} % of its limit")
    print(f"{len(SETTINGS)} settings, {summary}, {checks} checks, {len(failures)} failed")
    for line in failures[:40]:
        print("FAILED:", line, file=sys.stderr)
    sys.exit(bool(failures))

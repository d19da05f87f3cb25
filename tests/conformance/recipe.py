"""The recipe of refine (spec "refine") and of the methods that are its rows, in numpy, in double: rows side by side, columns one after the other.
Written from the spec alone; shares nothing with the program.

W (n, m), H (m, m); a grid is scale, zero (n, groups), as stored; codes (n, m); values scale * (code - zero)."""
import numpy as np

STEPS = np.arange(0.40, 1.051, 0.05)
NEIGHBOURS = [(t, 0) for t in (1, 0.94, 0.97, 1.03, 1.06)] + [(1, -1), (1, 1)]


def half(x):
    """As a scale is stored: fp16, finite and positive."""
    x = np.clip(np.asarray(x, np.float64), 0, 65504).astype(np.float32).astype(np.float16).astype(np.float64)
    return np.where(x > 0, x, 2.0**-14)


def half_zero(x):
    return np.clip(x, -65504, 65504).astype(np.float32).astype(np.float16).astype(np.float64)


def encode(x, scale, zero, top, real=False):
    v = np.rint(x / scale + zero) if real else np.rint(x / scale) + zero
    return np.clip(v, 0, top)


def values(codes, scale, zero, size):
    return np.repeat(scale, size, axis=1) * (codes - np.repeat(zero, size, axis=1))


def quadratic(e, m):
    """tr(e m e^T)"""
    return float(np.einsum("ij,ij->", e @ m, e))


# ---- grids ----


def min_max(w, size, bits, real=False):
    g, top = w.reshape(len(w), -1, size), 2**bits - 1
    lo, hi = np.minimum(g.min(axis=2), 0), np.maximum(g.max(axis=2), 0)
    none = lo == hi
    lo, hi = np.where(none, -1, lo), np.where(none, 1, hi)
    scale = half((hi - lo) / top)
    zero = np.clip(-lo / scale, 0, top)
    return scale, half_zero(zero) if real else np.rint(zero)


def search(w, weight, size, bits, real=False):
    """Scales by zeros, least weighted square, then three refits of the scale to the codes."""
    n, top = len(w), 2**bits - 1
    g, h = w.reshape(n, -1, size), np.broadcast_to(weight, w.shape).reshape(n, -1, size)
    lo, hi = np.minimum(g.min(axis=2), 0), np.maximum(g.max(axis=2), 0)

    def error(s, z):
        c = encode(g, s[..., None], z[..., None], top, real)
        return (h * (s[..., None] * (c - z[..., None]) - g) ** 2).sum(axis=2), c

    scale, zero = min_max(w, size, bits)
    least, _ = error(scale, zero)
    for t in STEPS:
        s = half(t * (hi - lo) / top)
        z0 = np.rint(top / 2 - (hi + lo) / 2 / s)
        for k in range(4) if bits == 2 else (-1, 0, 1):
            z = np.full_like(s, k) if bits == 2 else np.clip(z0 + k, 0, top)
            e, _ = error(s, z)
            better = e < least
            least, scale, zero = np.where(better, e, least), np.where(better, s, scale), np.where(better, z, zero)
    for _ in range(3):
        _, c = error(scale, zero)
        d = c - zero[..., None]
        den = (h * d * d).sum(axis=2)
        s = half(np.maximum((h * d * g).sum(axis=2), 0) / np.where(den > 0, den, 1))
        e, _ = error(s, zero)
        better = (e < least) & (den > 0)
        least, scale = np.where(better, e, least), np.where(better, s, scale)
    return scale, zero


# ---- codes ----


def optq(w, h, scale, zero, size, bits, damping, real=False, act=False):
    """OPTQ (arXiv 2210.17323) with the inverse, damping absolute; static groups. act: columns by descending diagonal of h."""
    m, top = w.shape[1], 2**bits - 1
    order = np.argsort(-np.diag(h), kind="stable") if act else np.arange(m)
    factor = np.linalg.cholesky(np.linalg.inv(h[np.ix_(order, order)] + damping * np.eye(m))).T
    w, codes = w[:, order], np.empty_like(w)
    for begin in range(0, m, 64):
        end = min(begin + 64, m)
        errors = np.empty((len(w), end - begin))
        for j in range(begin, end):
            s, z = scale[:, order[j] // size], zero[:, order[j] // size]
            codes[:, order[j]] = c = encode(w[:, j], s, z, top, real)
            errors[:, j - begin] = (w[:, j] - s * (c - z)) / factor[j, j]
            w[:, j + 1 : end] -= np.outer(errors[:, j - begin], factor[j, j + 1 : end])
        w[:, end:] -= errors @ factor[begin:end, end:]
    return codes


# ---- the adapter ----


def deflate(m, a, shrink=0.0):
    """M - M A^T (A M A^T)^-1 A M (methods 2.3); shrink: an eigenvalue d of A M A^T is deflated by the part d / (d + shrink)."""
    am = a @ m
    d, v = np.linalg.eigh(am @ a.T)
    keep = d > 1e-12 * d[-1]
    z = (v[:, keep] / np.sqrt(d[keep] + shrink)).T @ am
    return m - z.T @ z


def ritz(e, h, rank, start=None, steps=3, exact=False):
    """U (n, rank) orthonormal, A = U^T E, the loss they leave, the basis to start from next."""
    eh = e @ h
    total = float(np.einsum("ij,ij->", eh, e))
    k = min(rank + 8, len(e))
    if exact:
        d, v = np.linalg.eigh(eh @ e.T)
        y = v[:, ::-1][:, :k]
        d = d[::-1]
    else:
        y = start if start is not None and start.shape[1] == k else np.random.default_rng(0).standard_normal((len(e), k))
        for _ in range(steps):
            y, _ = np.linalg.qr(y)
            y = eh @ (e.T @ y)
        y, _ = np.linalg.qr(y)
        small = (y.T @ eh) @ (e.T @ y)
        d, v = np.linalg.eigh((small + small.T) / 2)
        y, d = y @ v[:, ::-1], d[::-1]
    return y[:, :rank], y[:, :rank].T @ e, max(total - float(d[:rank].sum()), 0.0), y


def optimum(e, h, rank):
    """The exact loss of the best rank-r adapter on H."""
    d = np.linalg.eigvalsh(e @ h @ e.T)
    return float(d[: len(d) - rank].sum())


# ---- descent ----


def refit(codes, y, p, scale, zero, bits, real=False):
    """Scale and zero anew for codes (n, size) of a group; y = R + Q P_gg. Rows whose loss does not fall stay."""
    d = codes - zero[:, None]
    base = -2 * scale * (d * y).sum(axis=1) + scale**2 * np.einsum("ij,ij->i", d @ p, d)
    if real:
        cp, ones = codes @ p, p.sum(axis=0)
        a, b, c = np.einsum("ij,ij->i", cp, codes), -cp.sum(axis=1), ones.sum()
        u, v = (codes * y).sum(axis=1), -y.sum(axis=1)
        det = a * c - b * b
        fine = det > 1e-10 * a * c
        det = np.where(fine, det, 1)
        s, t = (c * u - b * v) / det, (a * v - b * u) / det
        fine &= s > 0
        s = np.where(fine, half(np.where(fine, s, 1)), scale)
        z = np.where(fine, half_zero(t / s), zero)
    else:
        best, s, z = np.full(len(codes), -np.inf), scale, zero
        for k in range(2**bits):
            x = codes - k
            num, den = (x * y).sum(axis=1), np.einsum("ij,ij->i", x @ p, x)
            gain = np.where((num > 0) & (den > 0), num**2 / np.where(den > 0, den, 1), -np.inf)
            better = gain > best
            best, z = np.where(better, gain, best), np.where(better, k, z)
            s = np.where(better, half(np.where(better, num / np.where(den > 0, den, 1), 1)), s)
    x = codes - z[:, None]
    after = -2 * s * (x * y).sum(axis=1) + s**2 * np.einsum("ij,ij->i", x @ p, x)
    better = after < base
    return np.where(better, s, scale), np.where(better, z, zero)


def cyclic(q, r, p, floor, scale, zero, bits, real=False):
    """One exact sweep of a group: q (n, size) values, r = (E P) of the group; both move. Returns the codes."""
    top, codes = 2**bits - 1, np.rint(q / scale[:, None] + zero[:, None])
    for j in range(q.shape[1]):
        if p[j, j] <= floor:
            continue
        c = encode(q[:, j] + r[:, j] / p[j, j], scale, zero, top, real)
        change = scale * (c - zero) - q[:, j]
        r -= np.outer(change, p[j])
        q[:, j] += change
        codes[:, j] = c
    return codes


def candidates(q, y, p, floor, codes, scale, zero, bits):
    """Neighbours of the grid: snap, sweep, rescale, keep the least of q P q^T - 2 q y^T."""
    top = 2**bits - 1

    def objective(v):
        return np.einsum("ij,ij->i", v @ p, v) - 2 * (v * y).sum(axis=1)

    least, result = objective(q), (codes, scale, zero)
    for t, k in NEIGHBOURS:
        s, z = half(scale * t), np.clip(zero + k, 0, top)
        c = encode(q, s[:, None], z[:, None], top)
        v = s[:, None] * (c - z[:, None])
        c = cyclic(v, y - v @ p, p, floor, s, z, bits)
        d = c - z[:, None]
        num, den = (d * y).sum(axis=1), np.einsum("ij,ij->i", d @ p, d)
        fits = (num > 0) & (den > 0)
        rescaled = half(np.where(fits, num / np.where(den > 0, den, 1), 1))
        better_scale = fits & (objective(rescaled[:, None] * d) < objective(s[:, None] * d))
        s = np.where(better_scale, rescaled, s)
        f = objective(s[:, None] * d)
        better = f < least
        least = np.where(better, f, least)
        result = (np.where(better[:, None], c, result[0]), np.where(better, s, result[1]), np.where(better, z, result[2]))
    return result


def sweep(w, p, codes, scale, zero, size, bits, grid="refit", real=False):
    """A round of descent in the metric P; grid: stays, refit, candidates. New codes, scale, zero."""
    codes, scale, zero = codes.copy(), scale.copy(), zero.copy()
    q, floor = values(codes, scale, zero, size), 1e-12 * np.diag(p).max()
    e = w - q
    for g in range(w.shape[1] // size):
        at = slice(g * size, (g + 1) * size)
        block, c, v = p[at, at], codes[:, at], q[:, at].copy()
        s, z = scale[:, g], zero[:, g]
        r = e @ p[:, at]
        y = r + v @ block
        if grid == "candidates":
            c, s, z = candidates(v, y, block, floor, c, s, z, bits)
        if grid != "stays":
            s, z = refit(c, y, block, s, z, bits, real)
        v = s[:, None] * (c - z[:, None])
        c = cyclic(v, y - v @ block, block, floor, s, z, bits, real)
        codes[:, at], scale[:, g], zero[:, g] = c, s, z
        q[:, at] = v
        e[:, at] = w[:, at] - v
    return codes, scale, zero


# ---- the whole ----

PLANS = {
    "refine": dict(shapes=6, descents=4, eigenvectors=True, regrid=True, deflated=True, grid="refit"),
    "varpro": dict(shapes=0, descents=2, deflated=True),
    "bidup": dict(shapes=0, descents=2, deflated=False),
    "projq": dict(shapes=2, descents=0, deflated=True),
    "gptq-intrinsic": dict(shapes=1, descents=2, eigenvectors=True, shrink=True, deflated=False),
}


def refine(w, h, bits, rank, size, shapes, descents, eigenvectors=False, shrink=False, regrid=False, deflated=True, grid="stays", ridge=0.03, damping=0.01,
           real=False, act=False, exact=False):
    """codes, scale, zero of least loss. ridge and damping: relative to the mean of H's diagonal. exact: eigenvectors instead of ritz."""
    w, h = w.astype(np.float64), h.astype(np.float64)
    mean = np.mean(np.diag(h))
    lam, m = damping * mean, h + ridge * mean * np.eye(len(h)) if deflated else h
    scale, zero = search(w, np.diag(h), size, bits, real) if regrid else min_max(w, size, bits, real)
    codes = optq(w, h, scale, zero, size, bits, lam, real, act)
    u, a, f, y = ritz(w - values(codes, scale, zero, size), h, rank, exact=exact)
    best = f, codes, scale, zero
    for k in range(shapes):
        v = w
        if k == 0 and eigenvectors:
            p = deflate(h, np.linalg.eigh(h)[1][:, ::-1][:, :rank].T, shrink=lam if shrink else 0)
        else:
            p = deflate(h, a)
            if regrid:
                v = w - u @ a
                scale, zero = search(v, np.maximum(np.diag(p), 0), size, bits, real)
        codes = optq(v, p, scale, zero, size, bits, lam, real, act)
        u, a, f, y = ritz(w - values(codes, scale, zero, size), h, rank, y, exact=exact)
        if f < best[0]:
            best = f, codes, scale, zero
    _, codes, scale, zero = best
    u, a, f, y = ritz(w - values(codes, scale, zero, size), m, rank, y, exact=exact)
    best = f, codes, scale, zero
    for _ in range(descents):
        target, p = (w, deflate(m, a)) if deflated else (w - u @ a, h)
        codes, scale, zero = sweep(target, p, codes, scale, zero, size, bits, grid, real)
        u, a, f, y = ritz(w - values(codes, scale, zero, size), m, rank, y, 2, exact)
        if f < best[0]:
            best = f, codes, scale, zero
    return best[1:]

"""methods.py MODEL RUN: what a sweep over all methods left in RUN, judged by numpy: losses from the stored numbers, codes by slow clear
quantizers, adapters by singular values, and the order that the mathematics demands between methods (spec methods, section 14)."""
import re

import numpy as np

import decode
from judge import (MODULES, SETTINGS, best, bits_of, check_curves, expect, finish, gptq, half, inputs, loss, method_of, near, normal_float, product,
                   residual, rtn, same_codes, solved, uniform_grid, weight, worst)


def ranks_of(setting):
    return (2, 4) if method_of(setting) == "qa-lora" else (4, 8)


# ---- every solution: its losses again, from what is stored ----

JOINT = {"loftq", "loftq-int", "lasq-w", "lasq-q", "rtn-lasq-w", "rtn-lasq-q", "caldera", "odlri", "l4q"}


def is_joint(setting):
    return method_of(setting) in JOINT and not setting.endswith("loftq_T_1")


def variants(setting):
    return ranks_of(setting) if is_joint(setting) else (0,)


def check_losses():
    curves = 0
    for setting in SETTINGS:
        for module in MODULES:
            for rank in variants(setting):
                s, where = solved(setting, module, rank), f"{setting} {module} rank {rank}"
                expect(s.A.shape[0] == (rank or ranks_of(setting)[-1]), where, "rank", s.A.shape)
                check_curves(module, s, where)
                curves += 2
    return curves


# ---- relations between methods at the same codes ----

GRAM = {"cloq", "cloq-nomagr", "cloq-rtn", "qera-exact", "eora", "nf-cloq", "nf4-cloq", "slim-llm", "billm"}


def check_order():
    most = 0
    for module in MODULES:
        same = {}
        for setting in SETTINGS:
            if not is_joint(setting):
                same.setdefault(solved(setting, module).attrs["base_fingerprint"], []).append(setting)
        for names in same.values():
            most = max(most, len(names))
            optimal = [n for n in names if method_of(n) in GRAM and "damping" not in n]
            for n in optimal:
                f = solved(n, module).loss
                expect(all(b <= a + 1e-10 * f[0] for a, b in zip(f, f[1:])), n, module, "a loss curve that rises")
                for other in names:
                    g = solved(other, module).loss
                    upto = min(len(f), len(g))
                    over = float(np.max(f[:upto] - g[:upto])) / f[0]
                    worst["optimal on the Gram"] = max(worst.get("optimal on the Gram", (0, 0)), (max(over, 0) / 1e-10, over))
                    expect(over <= 1e-10, module, n, "is above", other, f"by {over:.1e} of the loss without adapter")
    for bits in (2, 3):  # the groups are what was meant
        for names in (("cloq-rtn", "qlora-int", "svd", "lqer", "qera-approx", "qera-exact"), ("cloq-nomagr", "eora", "optq-lqer", "optq-svd", "qa-lora")):
            prints = {solved(f"{n}-b{bits}-g32", m).attrs["base_fingerprint"] for n in names for m in MODULES[:1]}
            expect(len(prints) == 1, names, "have different codes at", bits, "bits")
    return most


def check_same_products():
    pairs = [("qera-exact-b{}-g32", "cloq-rtn-b{}-g32", 8), ("eora-b{}-g32", "cloq-nomagr-b{}-g32", 8)]
    for module in MODULES:
        for bits in (2, 3):
            for one, other, rank in pairs:
                a, b = solved(one.format(bits), module), solved(other.format(bits), module)
                p = product(b, rank)
                near(f"same product: {one} {module}", product(a, rank), p, np.abs(p).max(), 1e-8)
                near(f"same curve: {one} {module}", a.loss, b.loss, b.loss[0], 1e-10)
        # LoftQ's first step is LasQ-e's whole, and both are the plain SVD
        for one, other in (("loftq-b2-g32-loftq_T_1", "nf-svd-b2-g32"), ("lasq-e-b2-g32", "nf-svd-b2-g32"), ("loftq-int-b2-g32-loftq_T_1", "svd-b2-g32")):
            a, b = solved(one, module), solved(other, module)
            same_codes(f"same codes: {one} {module}", a.codes, b.codes)
            near(f"same product: {one} {module}", product(a, 8), product(b, 8), np.abs(product(b, 8)).max(), 1e-8)
        for damped in (n for n in SETTINGS if "adapter_damping" in n):
            a, b = solved(damped, module), solved(damped.split("-adapter_damping")[0], module)
            expect(a.attrs["base_fingerprint"] == b.attrs["base_fingerprint"], damped, module, "codes")
            expect(bool((a.loss >= b.loss - 1e-10 * b.loss[0]).all()), damped, module, "is below the adapter without damping")
            expect(bool((a.loss[1:] <= a.loss[0]).all()), damped, module, "does worse than no adapter")


# ---- adapters: each the best in its own metric ----


def check_optima():
    for module in MODULES:
        h, mean_abs, most_abs = inputs(module)
        pool = np.kron(np.eye(len(h) // 32), np.ones((1, 32)))
        hp = pool @ h @ pool.T
        inverse = np.linalg.pinv(hp, rcond=1e-7, hermitian=True)
        metrics = {"svd": np.ones(len(h)), "optq-svd": np.ones(len(h)), "nf-svd": np.ones(len(h)), "lasq-e": np.ones(len(h)), "lqer": most_abs,
                   "optq-lqer": most_abs, "qera-approx": np.sqrt(np.diag(h))}
        for setting in SETTINGS:
            name = method_of(setting)
            if is_joint(setting) or "damping" in setting:
                continue
            s, where = solved(setting, module), f"{setting} {module}"
            e = residual(s, module)
            if name in GRAM:
                values = np.linalg.eigvalsh(e @ h @ e.T)[::-1]
                tail = np.append(np.cumsum(values[::-1])[::-1], 0)[: len(s.loss)]
                near(f"tail of the spectrum of E H E^T: {where}", s.loss, tail, s.loss[0], 1e-6)
                near(f"eigenvalues: {where}", s.eigenvalues[:-1], values[: len(s.loss) - 1], values[0], 1e-5)
            elif name == "qa-lora":
                k = e @ h @ pool.T
                values = np.linalg.eigvalsh(k @ inverse @ k.T)[::-1][: len(s.loss) - 1]
                near(f"pooled optimum: {where}", s.loss, s.loss[0] - np.append(0, np.cumsum(values)), s.loss[0], 1e-6)
                expect(bool((s.A.reshape(len(s.A), -1, 32) == s.A[:, ::32, None]).all()), where, "A differs within a group")
            elif name in metrics or "loftq_T_1" in setting:
                d = metrics.get(name, np.ones(len(h)))
                values = np.linalg.svd(e * d, compute_uv=False) ** 2
                total = values.sum()
                for r in range(len(s.loss)):
                    found = float((((e - product(s, r)) * d) ** 2).sum())
                    near(f"tail of the spectrum of E D: {where} r={r}", found, values[r:].sum(), total, 1e-6)
            else:
                expect(name in ("qlora", "qlora-int"), where, "has no check")
                expect(not s.B.any() and bool((s.loss == s.loss[0]).all()), where, "B is not 0")
                expect(0.9 / np.sqrt(len(h)) < np.abs(s.A).max() <= 1 / np.sqrt(len(h)), where, "A is not uniform on +-1 / sqrt(m)")


# ---- codes ----


def check_codes():
    for module in MODULES:
        w, h = weight(module), inputs(module)[0]
        m = w.shape[1]
        for setting in SETTINGS:
            name, bits, where = method_of(setting), bits_of(setting), f"{setting} {module}"
            if is_joint(setting) and "loftq" not in name:
                continue
            size = m if "-g0" in setting else 32
            symmetric, real = "grid_type_sym" in setting, "grid_zero_real" in setting
            if name in ("cloq-rtn", "cloq-nomagr"):
                s = solved(setting, module)
                scale, zero = uniform_grid(w, size, bits, symmetric, real)
                expect(np.array_equal(s.scales.astype(np.float64), scale) and np.array_equal(s.zeros.astype(np.float64), zero), where, "grid")
                order = np.argsort(-np.diag(h), kind="stable") if "order_act" in setting else None
                if name == "cloq-rtn":
                    same_codes(f"round to nearest: {where}", s.codes, rtn(w, size, scale, zero, bits))
                else:
                    same_codes(f"OPTQ: {where}", s.codes, gptq(w, h, size, scale, zero, [2**bits - 1] * m, order))
            elif name == "slim-llm":
                s = solved(setting, module)
                expect(np.mean(s.widths) == bits and set(s.widths) <= {bits - 1, bits, bits + 1}, where, "widths", s.widths)
                order = np.argsort(-np.diag(h), kind="stable") if "order_act" in setting else None
                tops = np.repeat(2.0 ** s.widths - 1, size)
                same_codes(f"SliM's OPTQ: {where}", s.codes, gptq(w, h, size, s.scales.astype(np.float64), s.zeros.astype(np.float64), tops, order))
            elif name in ("nf-cloq", "nf4-cloq", "lasq-e"):
                s = solved(setting, module)
                codes, absmax = normal_float(w, bits)
                expect(np.array_equal(s.absmax, absmax), where, "absmax")
                same_codes(f"normal float: {where}", s.codes, codes)
            elif name == "billm":
                s = solved(setting, module)
                count = s.salient.reshape(-1, size).sum(axis=1)
                expect(bool(((count >= 1) & (count <= 50)).all()) and set(s.salient) == {0, 1}, where, "salient columns a group", count)
                expect(not np.signbit(s.magnitudes).any(), where, "a magnitude below 0")


# ---- methods that go to and fro ----


def quantize(setting, x):
    """Codes of x by the setting's own data-free quantizer, the grid fitted to x."""
    bits = bits_of(setting)
    if "int" in setting or "rtn" in setting:
        scale, zero = uniform_grid(x, 32, bits)
        codes = rtn(x, 32, scale, zero, bits)
        return codes, np.repeat(scale, 32, axis=1) * (codes - np.repeat(zero, 32, axis=1))
    codes, absmax = normal_float(x, bits)
    return codes, decode.bfloat16(decode.NF[f"nf{bits}"][codes] * np.repeat(absmax, 32, axis=1)).astype(np.float64)


def check_joint():
    for module in MODULES:
        w, h = weight(module), inputs(module)[0]
        wide = w.astype(np.float64)
        for setting in filter(is_joint, SETTINGS):
            for rank in ranks_of(setting):
                s, where = solved(setting, module, rank), f"{setting} {module} rank {rank}"
                kept = int(s.attrs["round"]) - 1
                p, e = product(s, rank), residual(s, module)
                near(f"the kept round: {where}", s.rounds[kept], s.loss[rank], s.loss[0], 1e-6)
                {"loftq": loftq, "lasq": lasq, "l4q": l4q, "caldera": caldera, "odlri": best_kept}[re.search("loftq|lasq|l4q|caldera|odlri", setting).group()](
                    setting, module, rank, s, where, kept, p, e, w, wide, h)


def loftq(setting, module, rank, s, where, kept, p, e, w, wide, h):
    expect(len(s.rounds) == 5 and kept == 4, where, "rounds", s.rounds, kept)
    near(f"LoftQ's last SVD: {where}", ((e - p) ** 2).sum(), ((e - best(e, rank)) ** 2).sum(), (e**2).sum(), 1e-6)
    q = before = 0.0
    for _ in range(5):
        _, q = quantize(setting, (wide - before).astype(np.float32))
        before = best(wide - q, rank)
    near(f"LoftQ's five steps: {where}", s.rounds[-1], loss(wide - q - before, h), s.rounds[-1], 0.02)


def lasq(setting, module, rank, s, where, kept, p, e, w, wide, h):
    start = wide if "lasq-w" in setting else quantize(setting, w)[1]
    near(f"LasQ's components: {where}", ((start - p) ** 2).sum(), ((start - best(start, rank)) ** 2).sum(), (start**2).sum(), 1e-6)
    target = w if "q0" in setting else (wide - p).astype(np.float32)
    same_codes(f"LasQ's base: {where}", s.codes, quantize(setting, target)[0], max(4, len(w) // 32))


def l4q(setting, module, rank, s, where, kept, p, e, w, wide, h):
    g = wide.reshape(len(w), -1, 32)
    scale = half(np.maximum(np.abs(g.min(axis=2) / 2), np.abs(g.max(axis=2)))).astype(np.float64)
    zero = np.full_like(scale, 2.0)
    if bits_of(setting) == 3:
        scale = half(np.maximum(np.abs(g.min(axis=2) / 4), np.abs(g.max(axis=2) / 3))).astype(np.float64)
        zero += 2
    first = np.repeat(scale, 32, axis=1) * (rtn(w, 32, scale, zero, bits_of(setting)) - np.repeat(zero, 32, axis=1))
    near(f"L4Q's start: {where}", s.rounds[0], loss(wide - first, h), s.rounds[0], 1e-5)
    expect(len(s.rounds) == 101 and kept == int(np.argmin(s.rounds)) and s.loss[0] <= s.rounds[0] * (1 + 1e-6), where, "best step", kept)
    expect(not s.B.any() and bool((s.loss == s.loss[0]).all()), where, "B is not 0")


def best_kept(setting, module, rank, s, where, kept, p, e, w, wide, h):
    expect(kept == int(np.argmin(s.rounds)), where, "kept", kept, "of", s.rounds)
    values = np.linalg.eigvalsh(e @ h @ e.T)[: len(e) - rank]
    near(f"last product of an alternation on the Gram: {where}", s.loss[rank], values.sum(), s.loss[0], 1e-6)


def caldera(setting, module, rank, s, where, kept, p, e, w, wide, h):
    best_kept(setting, module, rank, s, where, kept, p, e, w, wide, h)
    bits = bits_of(setting)
    if "joint_start" in setting:
        return
    plain = solved(f"cloq-nomagr-b{bits}-g32", module)
    near(f"the first round is cloq-nomagr: {where}", s.rounds[0], plain.loss[rank], plain.loss[0], 1e-6)
    expect(s.loss[rank] <= plain.loss[rank] * (1 + 1e-6), where, "is worse than its first round")
    if "refit" in setting:
        return
    scale, zero = uniform_grid(w, 32, bits)
    expect(np.array_equal(s.scales.astype(np.float64), scale) and np.array_equal(s.zeros.astype(np.float64), zero), where, "a frozen grid")
    target = w if kept == 0 else (wide - product(plain, rank)).astype(np.float32)
    same_codes(f"CALDERA's OPTQ: {where}", s.codes, gptq(target, h, 32, scale, zero, [2**bits - 1] * w.shape[1]), max(4, len(w) // 32))


curves = check_losses()
shared = check_order()
check_same_products()
check_optima()
check_codes()
check_joint()
finish(f"{curves} curves, up to {shared} settings on the same codes")

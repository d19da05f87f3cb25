"""export.py gptq|bnb|compressed-tensors|dense|methods|smollm2 MODEL FOLDER: runs a job, exports it, and judges the exports twice.

decode.py reads their bytes and compares with the container; loading.py loads them with the libraries that people use. Then exports are
broken on purpose: each must be caught by the same checks, and by `cloqwork verify`. One line per check; exit code 1 if any failed."""
import glob
import json
import os
import shutil
import subprocess
import sys
import time

import h5py
import numpy as np

import decode
from decode import Malformed

OUT = os.fdopen(os.dup(1), "w")  # the libraries log to standard output too: they get standard error
os.dup2(2, 1)
FAILED = []
os.environ["OMPI_MCA_ess_singleton_isolated"] = "1"  # one rank needs no launcher


def report(name, faults, note=""):
    print(f"{'FAILED' if faults else 'ok':6} {name}{': ' + note if note and not faults else ''}", file=OUT, flush=True)
    for f in faults[:5]:
        print(f"       {f}", file=OUT, flush=True)
    if faults:
        FAILED.append(name)
    return not faults


def caught(name, faults):
    """A broken export must have faults."""
    report(name, [] if faults else ["not noticed"], faults[0] if faults else "")


def cloqwork(*args, ranks=1, code=0):
    launch = [os.environ["MPIRUN"], "-n", str(ranks)] if ranks > 1 else []
    r = subprocess.run(launch + [os.environ["CLOQWORK"], *args], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=800)
    if code is not None and r.returncode != code:
        raise SystemExit(f"cloqwork {' '.join(args)}: code {r.returncode}, expected {code}: {r.stderr[-2000:]}")
    return r


class Case:
    """An export: settings and ranks as the command takes them, and what each module must become. split: as asked for; None: the first setting's own."""

    def __init__(self, form, name, setting, rank, *options, split=None, adapter_dtype="float32", packed=False):
        self.packed = packed  # as load_base takes it
        self.form, self.name, self.split, self.adapter_dtype = form, name, split, adapter_dtype
        self.settings = setting if isinstance(setting, list) else [setting]
        self.ranks = rank if isinstance(rank, list) else [rank]
        self.options = list(options) + (["--split", split] if split else []) + ["--adapter-dtype", adapter_dtype]
        self.merge = "--merge" in options
        self.dtype = options[options.index("--dtype") + 1] if "--dtype" in options else "bfloat16"  # that of both checkpoints

    @staticmethod
    def choose(list_, module):
        """The last PATTERN=VALUE that names the module, by its last part or by all of it; the patterns here are plain names."""
        value = None
        for item in list_:
            key, _, v = str(item).rpartition("=")
            if not key or key in (module, module.rsplit(".", 1)[1]):
                value = v
        return value

    def export(self, world):
        out = os.path.join(world.folder, f"{self.form}-{self.name}")
        args = ["export", world.run, "--to", self.form, "--out", out] + self.options
        for s in self.settings:
            args += ["--setting", s]
        for r in self.ranks:
            args += ["--rank", str(r)]
        cloqwork(*args, ranks=world.ranks)
        self.expect(world)
        return out

    def expect(self, world):
        self.expected, self.rank = {}, {}
        for m in world.modules:
            rank = int(self.choose(self.ranks, m))
            setting = self.choose(self.settings, m)
            ours = decode.read_container(world.run, setting, m, rank or world.largest_rank(setting))
            self.split = self.split or ours.attrs["split"]
            ours.A, ours.B = ours.A[:rank], ours.B[:, :rank]
            self.expected[m] = ours
            if rank and not self.merge:
                self.rank[m] = rank


# ---- the bytes ----


def near(a, b, tolerance):
    return a.shape == b.shape and float(np.abs(a - b).max()) <= tolerance * float(np.abs(b).max())


def bytes_faults(case, folder, world):
    """The folder against the container and the checkpoint, read by decode.py."""
    faults = []
    try:
        config, t, types = decode.read_base(os.path.join(folder, "base"))
        if case.form == "gptq" and decode.read_json(folder, "base", "quantize_config.json") != config["quantization_config"]:
            faults.append("quantize_config.json is not config.json's quantization_config")
        own = {k: v for k, v in config.items() if k not in ("quantization_config", "dtype", "torch_dtype")}
        if own != {k: v for k, v in world.config.items() if k not in ("dtype", "torch_dtype")}:
            faults.append("config.json: other keys than the checkpoint's")
        for m, ours in case.expected.items():
            found = decode.DECODERS[case.form](config, t, types, m)
            if case.form == "dense":
                exact = ours.weight + (ours.B.astype(np.float64) @ ours.A if case.merge else 0)
                step = {"float32": 2.0**-22, "float16": 2.0**-10, "bfloat16": 2.0**-7}[case.dtype] if case.merge else 0
                w = decode.ROUND[case.dtype](exact)
                if found.dtype != {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[case.dtype]:
                    faults.append(f"{m}: dtype {found.dtype}")
                if not np.all(np.abs(found.weight - w) <= step * np.abs(w) + (2e-7 * np.abs(w).max() if case.merge else 0)):
                    faults.append(f"{m}: weight is not the container's")
                continue
            for part in ("codes", "scales", "zeros", "absmax"):
                if hasattr(found, part) and not np.array_equal(getattr(found, part), getattr(ours, part)):
                    faults.append(f"{m}: {part} are not the container's")
            if not np.array_equal(found.weight, ours.weight):
                faults.append(f"{m}: weight is not the container's: differs by {np.abs(found.weight - ours.weight).max():.3g}")
        for name, a in world.checkpoint.items():
            if name.removesuffix(".weight") not in case.expected and not (name in t and np.array_equal(t[name], a)):
                faults.append(f"{name}: not as in the checkpoint")
    except (Malformed, KeyError, ValueError, OSError) as e:
        faults.append(f"base: {type(e).__name__}: {e}")
    if not case.rank:
        return faults + (["an adapter that nobody asked for"] if os.path.exists(os.path.join(folder, "adapter")) else [])
    try:
        metadata, adapter = decode.read_adapter(os.path.join(folder, "adapter"), world.modules)
        if {m: a.A.shape[0] for m, a in adapter.items()} != case.rank:
            faults.append(f"adapter: modules {sorted(set(adapter) ^ set(case.rank))[:3]}")
        if metadata.get("base_fingerprint") != decode.read_json(folder, "base", "cloqwork.json")["base_fingerprint"]:
            faults.append("adapter: its base_fingerprint is not that of the base beside it")
        if decode.read_json(folder, "adapter", "cloqwork.json")["split"] != case.split:
            faults.append(f"adapter: its sidecar does not say split {case.split}")
        loose = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1.6e-2}[case.adapter_dtype]
        for m, a in adapter.items():
            ours = case.expected[m]
            if (case.split, case.adapter_dtype) == ("cloq", "float32"):
                same = np.array_equal(a.A, ours.A) and np.array_equal(a.B, ours.B)
            else:
                values = ours.eigenvalues[: a.A.shape[0]]
                part = np.where(values > 1e-16 * values[0], values, 1) ** {"cloq": 0, "qera": 0.5, "balanced": 0.25}[case.split]
                same = near(a.B, ours.B * part, loose) and near(a.A, ours.A / part[:, None], loose)
            if not same or a.scale != 1 or not near(a.B.astype(np.float64) @ a.A, ours.B.astype(np.float64) @ ours.A, loose):
                faults.append(f"{m}: the adapter's product, times {a.scale}, is not the container's")
    except (Malformed, KeyError, ValueError, OSError) as e:
        faults.append(f"adapter: {type(e).__name__}: {e}")
    return faults


# ---- the libraries ----


class Loaded:
    """What loading a folder gave: faults of the weights, of the adapter, of its strength."""

    def __init__(self, case, folder, world, packed=False):
        import loading

        self.faults, packed = [], packed or case.packed
        self.model = loading.load_base(case.form, os.path.join(folder, "base"), self.faults, packed)
        shown, used = loading.expected_weights(case.form, case.expected, "float32" if case.merge else case.dtype, packed)
        if not case.merge:
            self.faults += loading.weight_faults(case.form, self.model, shown)
            self.model, more = loading.load_adapter(self.model, os.path.join(folder, "adapter"), case.rank)
            self.faults += more
        self.whole = {m: (used[m] + o.B @ o.A).astype(np.float32) for m, o in case.expected.items()}
        self.logits = loading.logits(self.model, world.windows)
        self.difference = loading.difference(world.reference.logits_with(self.whole, world.windows), self.logits)


# To what the reference's dense arithmetic in float32 and the libraries' agree, relative to the largest logit: 1e-6 on the tiny model, and up
# to 2e-4 where 30 layers of 2-bit noise amplify the rounding.
LOGITS = 1e-4
LOGITS_DEEP = 1e-3


def library_faults(case, folder, world, strength):
    """What the libraries can say against a folder; strength: this test alone, for faults that no library sees."""
    import loading

    try:
        l = Loaded(case, folder, world)
        faults = l.faults + ([f"logits differ by {l.difference:.3g}"] if l.difference > LOGITS else [])
        return loading.strength_faults(l.model, world.original, world.windows)[0] if strength else faults
    except Exception as e:  # a library that refuses has noticed
        return [f"{type(e).__name__}: {e}"]


def judge(case, world, full=True):
    import loading

    t0 = time.time()
    folder = case.export(world)
    name = f"{world.name} {case.form} {case.name}"
    report(f"{name}: bytes", bytes_faults(case, folder, world))
    verdict = cloqwork("verify", folder, "--run", world.run, ranks=world.ranks, code=None)
    report(f"{name}: verify", [] if verdict.returncode == 0 else [f"code {verdict.returncode}: {verdict.stderr[-300:]}"])
    l = Loaded(case, folder, world)
    report(f"{name}: loaded weights and adapter", l.faults)
    tolerance = {"float32": LOGITS if world.name == "tiny" else LOGITS_DEEP, "float16": 2e-3, "bfloat16": 2e-2}[case.dtype if case.merge else case.adapter_dtype]
    report(f"{name}: logits", [] if l.difference <= tolerance else [f"differ by {l.difference:.3g}"], f"{l.difference:.1e}")
    if full and not case.merge:
        if world.whole:
            faults, kl = loading.strength_faults(l.model, world.original, world.windows)
            report(f"{name}: strength", faults, " ".join(f"{f}: {v:.3g}" for f, v in kl.items()))
        faults, losses = loading.training_faults(l.model, world.windows[:1, :128], world.folder)
        report(f"{name}: training", faults, f"loss {losses[0]:.4f} to {losses[-1]:.4f}")
    report(f"{name}: folder", loading.folder_faults(l.model, os.path.join(folder, "base")), f"{time.time() - t0:.0f} s in all")
    return folder


def judge_bytes(case, world):
    """What needs no library."""
    folder = case.export(world)
    verdict = cloqwork("verify", folder, "--run", world.run, ranks=world.ranks, code=None)
    faults = [] if verdict.returncode == 0 else [f"verify: code {verdict.returncode}: {verdict.stderr[-300:]}"]
    report(f"{world.name} {case.form} {case.name}: bytes, verify", bytes_faults(case, folder, world) + faults)
    return folder


def judge_perplexity(case, world, folder):
    """`cloqwork eval` against a plain loop over the windows on the export with its adapter."""
    import loading

    setting, rank = case.settings[0], int(case.ranks[0])
    found = json.loads(cloqwork("eval", world.run, "--settings", setting, "--rank", str(rank), "--json", ranks=2).stdout)
    windows = np.load(world.heldout).astype(np.int64)[: found["windows"] * found["length"]].reshape(found["windows"], found["length"])
    import torch

    windows = torch.from_numpy(windows)
    points = {p["rank"]: p for s in found["settings"] if s["name"] == setting for p in s["points"]}
    model = Loaded(case, folder, world).model
    pairs = {"original": (found["original"]["perplexity"], loading.perplexity(world.reference.model, windows)),
             "base and adapter": (points[rank]["perplexity"], loading.perplexity(model, windows))}
    with model.disable_adapter():
        pairs["base"] = points[0]["perplexity"], loading.perplexity(model, windows)
    for what, (ours, theirs) in pairs.items():
        report(f"{world.name} {case.form} {case.name}: perplexity of {what}", [] if abs(ours / theirs - 1) <= 1e-4 else [f"{ours}, transformers {theirs}"],
               f"{ours:.6g}, {abs(ours / theirs - 1):.1e} off")


# ---- broken on purpose ----


def edit_tensors(path, change):
    metadata, t, types = decode.read_safetensors(path)
    t = {n: a.copy() for n, a in t.items()}
    change(t)
    decode.write_safetensors(path, metadata, t, types)


def edit_json(path, change):
    c = decode.read_json(path)
    change(c)
    with open(path, "w") as f:
        json.dump(c, f)


def base_file(folder):
    return sorted(glob.glob(os.path.join(folder, "base", "*.safetensors")))[0]


MODULE = "model.layers.1.mlp.up_proj"


def zero_point_off_by_one(folder):
    def change(t):
        suffix = "qzeros" if f"{MODULE}.qzeros" in t else "weight_zero_point"
        t[f"{MODULE}.{suffix}"] -= np.int32(0x11111111)  # of 4 bits, symmetric: no field borrows
    edit_tensors(base_file(folder), change)


def v1_labelled_v2(folder):
    for path, key in (("config.json", "quantization_config"), ("quantize_config.json", None)):
        edit_json(os.path.join(folder, "base", path), lambda c, key=key: (c[key] if key else c).update(checkpoint_format="gptq_v2", format="gptq_v2"))


def nibbles_swapped(folder):
    def change(t):
        t[f"{MODULE}.weight"] = t[f"{MODULE}.weight"] << 4 | t[f"{MODULE}.weight"] >> 4
    edit_tensors(base_file(folder), change)


def adapter_doubled(folder):
    def change(t):
        for n in t:
            if "lora_B" in n:
                t[n] *= 2
    edit_tensors(os.path.join(folder, "adapter", "adapter_model.safetensors"), change)


def module_missing(folder):
    def change(t):
        for x in "AB":
            del t[f"base_model.model.{MODULE}.lora_{x}.weight"]
    edit_tensors(os.path.join(folder, "adapter", "adapter_model.safetensors"), change)


def alpha_doubled(folder):
    edit_json(os.path.join(folder, "adapter", "adapter_config.json"), lambda c: c.update(lora_alpha=2 * c["r"]))


def adapter_of(other):
    def change(folder):
        shutil.rmtree(os.path.join(folder, "adapter"))
        shutil.copytree(os.path.join(other, "adapter"), os.path.join(folder, "adapter"))
    return change


def codes_damaged(folder):
    def change(t):
        for suffix in ("qweight", "weight_packed", "weight"):
            if f"{MODULE}.{suffix}" in t:
                a = t[f"{MODULE}.{suffix}"].reshape(-1)
                i = int(np.argmax(np.abs(a)))
                a[i] = -a[i] if a.dtype == np.float32 else a[i] ^ 4
                return
    edit_tensors(base_file(folder), change)


def judge_broken(case, world, folder, name, change, words):
    """words: one of them must be in the line of `cloqwork verify`."""
    bad = os.path.join(world.folder, "broken")
    shutil.rmtree(bad, ignore_errors=True)
    shutil.copytree(folder, bad)
    change(bad)
    name = f"{world.name} {case.form} {case.name}, broken: {name}"
    caught(f"{name}: bytes", bytes_faults(case, bad, world))
    caught(f"{name}: libraries", library_faults(case, bad, world, change is adapter_doubled))
    v = cloqwork("verify", bad, code=None)
    lines = [line for line in v.stderr.splitlines() if line.startswith("cloqwork:")]
    good = v.returncode == 3 and len(lines) == 1 and any(w in lines[0] for w in words)
    report(f"{name}: verify", [] if good else [f"code {v.returncode}, expected 3 and one line with one of {words}: {v.stderr[-400:]}"], lines[0] if lines else "")


# ---- the runs ----


def cut(model, folder, layers, dtype="bfloat16"):
    """The first layers of a checkpoint, and what else it has; its config and tensors."""
    config, tensors, _ = decode.read_base(model)
    config = {**{k: v for k, v in config.items() if k != "dtype"}, "num_hidden_layers": layers, "torch_dtype": dtype}
    kept = {n: a for n, a in tensors.items() if not n.startswith("model.layers.") or int(n.split(".")[2]) < layers}
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors*", "*.npy"))
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f)
    decode.write_safetensors(os.path.join(folder, "model.safetensors"), {"format": "pt"}, kept, dict.fromkeys(kept, {"float32": "F32", "bfloat16": "BF16"}[dtype]))
    return config, kept


class World:
    """A model, a run on it, and the original's logits on a few held-out windows."""

    def __init__(self, name, model, tokens, folder, jobs):
        import torch

        import loading

        self.ranks = 1 if name == "tiny" else 2  # of export and verify
        self.whole = True  # and not a model's first layers, whose output means nothing: nearer to it layer by layer need not be nearer in KL
        self.name, self.model, self.folder, self.heldout = name, model, folder, os.path.join(tokens, "heldout.npy")
        self.run = os.path.join(folder, "run")
        job = os.path.join(folder, "job.yaml")
        for sweep, options in jobs:
            with open(job, "w") as f:
                json.dump({"model": model, "output": self.run, "sweep": sweep, "options": options,
                           "calibration": {"tokens": os.path.join(tokens, "calib.npy"), "windows": 4, "length": 256},
                           "heldout": {"tokens": self.heldout, "windows": 2, "length": 256, "sampling": "sequential"}}, f)
            t0 = time.time()
            cloqwork("run", job, "--quiet", ranks=2)
            print(f"       {name}: {sorted(os.listdir(os.path.join(self.run, 'solutions')))} in {time.time() - t0:.0f} s", file=OUT, flush=True)
        self.config, self.checkpoint, _ = decode.read_base(model)
        self.modules = decode.modules_of(self.config)
        self.reference = loading.Reference(model)
        shape = (4, 256) if name == "tiny" else (2, 128)  # where the vocabulary is large and the adapter's effect too, few will do
        self.windows = torch.from_numpy(np.load(self.heldout)[: shape[0] * shape[1]].astype(np.int64).reshape(shape))
        self.original = self.reference.logits(self.windows)

    def largest_rank(self, setting):
        with h5py.File(os.path.join(self.run, "solutions", setting, "layer-000.h5"), "r") as f:
            return max(int(r) for r in f.attrs["ranks"].split(","))


BITS = [2, 3, 4, 8]
GRIDS = {"sym": "-grid_type_sym", "asym": ""}


def uniform_setting(bits, grid, group=64):
    return f"cloq-b{bits}-g{group}-magr_K_10{GRIDS[grid]}"


def tiny(model, folder, sweeps):
    return World("tiny", model, model, folder, sweeps)


def run_gptq(model, folder):
    world = tiny(model, folder, [([{"method": "cloq", "bits": BITS, "group": 64, "rank": 8}, {"method": "cloq", "bits": 4, "group": 0, "rank": 8}],
                                  {"magr_K": 10, "grid_type": ["sym", "asym"]})])
    made = {}
    for grid in GRIDS:
        for bits in BITS:
            case = Case("gptq", f"{bits}-bit {grid}", uniform_setting(bits, grid), 8)
            made[bits, grid] = case, judge(case, world)
    judge(Case("gptq", "4-bit sym per row", uniform_setting(4, "sym", 0), [8, "down_proj=4", "model.layers.0.self_attn.k_proj=2"], split="qera"), world)
    case, folder = made[4, "sym"]
    for name, change, words in (("zero point off by one", zero_point_off_by_one, ["qzeros"]), ("v1 labelled v2", v1_labelled_v2, ["config", "qzeros", "q_proj"]),
                                ("a code damaged", codes_damaged, ["qweight"]), ("adapter times 2", adapter_doubled, ["lora_B"]),
                                ("lora_alpha times 2", alpha_doubled, ["lora_alpha", "adapter_config"]), ("a module missing", module_missing, [MODULE]),
                                ("adapter of another base", adapter_of(made[3, "sym"][1]), ["base_fingerprint", "another base", "belongs"])):
        judge_broken(case, world, folder, name, change, words)
    judge_perplexity(case, world, folder)


def run_bnb(model, folder):
    world = tiny(model, folder, [({"method": "nf4-cloq", "bits": 4, "group": 64, "rank": 8}, {"nf_double": ["off", "on"]})])
    single, double = Case("bnb", "NF4", "nf4-cloq-b4-g64", 8), Case("bnb", "NF4 double", "nf4-cloq-b4-g64-nf_double_on", 8, split="balanced")
    folders = judge(single, world), judge(double, world)
    for case, folder in ((single, folders[0]), (double, folders[1])):
        judge_broken(case, world, folder, "nibbles swapped", nibbles_swapped, [MODULE])
    judge_broken(single, world, folders[0], "a module missing", module_missing, [MODULE])
    judge_broken(single, world, folders[0], "adapter of another base", adapter_of(folders[1]), ["base_fingerprint", "another base", "belongs"])
    judge_perplexity(single, world, folders[0])


def run_compressed(model, folder):
    world = tiny(model, folder, [([{"method": "cloq", "bits": BITS, "group": 64, "rank": 16}, {"method": "cloq", "bits": 4, "group": 0, "rank": 16}],
                                  {"magr_K": 10, "grid_type": "sym"}),
                                 ({"method": "cloq", "bits": 4, "group": 64, "rank": 16}, {"magr_K": 10})])
    cases = [Case("compressed-tensors", f"{bits}-bit sym", uniform_setting(bits, "sym"), 8) for bits in BITS]
    cases.append(Case("compressed-tensors", "4-bit asym", uniform_setting(4, "asym"), 8))
    cases.append(Case("compressed-tensors", "4-bit sym per row", uniform_setting(4, "sym", 0), 8))
    cases.append(Case("compressed-tensors", "mixed bits and ranks", [uniform_setting(3, "sym"), "down_proj=" + uniform_setting(8, "sym"),
                                                                     "model.layers.0.self_attn.v_proj=" + uniform_setting(4, "sym", 0)],
                      [8, "v_proj=16", "model.layers.3.mlp.down_proj=4", "k_proj=0"], packed=True))
    folders = {c.name: judge(c, world) for c in cases}
    for case in cases[1:4]:
        l = Loaded(case, folders[case.name], world, packed=True)
        report(f"tiny compressed-tensors {case.name}: loaded packed", l.faults + ([] if l.difference <= LOGITS else [f"logits differ by {l.difference:.3g}"]),
               f"{l.difference:.1e}")
    case = cases[2]
    judge_broken(case, world, folders[case.name], "a code damaged", codes_damaged, ["weight_packed"])
    judge_broken(cases[4], world, folders["4-bit asym"], "zero point changed", zero_point_off_by_one, ["weight_zero_point"])
    judge_broken(case, world, folders[case.name], "adapter times 2", adapter_doubled, ["lora_B"])


def run_dense(model, folder):
    world = tiny(model, folder, [([{"method": "cloq", "bits": 2, "group": 64, "rank": 16}, {"method": "nf4-cloq", "bits": 4, "group": 64, "rank": 16}],
                                  {"magr_K": 10})])
    setting = uniform_setting(2, "asym")
    exact = Case("dense", "float32", setting, 8, "--dtype", "float32")
    folder = judge(exact, world)
    judge(Case("dense", "bfloat16, mixed ranks", setting, [16, "q_proj=3", "k_proj=0", "model.layers.5.mlp.down_proj=8"], adapter_dtype="bfloat16"), world)
    judge(Case("dense", "float16", setting, 8, "--dtype", "float16", adapter_dtype="float16"), world)
    judge(Case("dense", "NF4 and 2 bits mixed", [setting, "q_proj=nf4-cloq-b4-g64"], 8, "--dtype", "float32"), world)
    for dtype in ("float32", "float16", "bfloat16"):
        judge(Case("dense", f"merged {dtype}", setting, 16, "--merge", "--dtype", dtype), world)
    judge_broken(exact, world, folder, "a weight damaged", codes_damaged, [MODULE])
    judge_broken(exact, world, folder, "adapter times 2", adapter_doubled, ["lora_B"])
    judge_broken(exact, world, folder, "a module missing", module_missing, [MODULE])
    judge_perplexity(exact, world, folder)


def run_methods(model, folder):
    """The other methods: variants of a rank, splits of their own, grids that only dense weights can hold."""
    world = tiny(model, folder, [([{"method": "loftq", "bits": [2, 4], "group": 64, "rank": [4, 8]},
                                   {"method": ["loftq-int", "caldera", "odlri"], "bits": 4, "group": 64, "rank": 8},
                                   {"method": ["svd", "eora"], "bits": 4, "group": 64, "rank": 8},
                                   {"method": "qa-lora", "bits": 4, "group": 32, "rank": 4},
                                   {"method": "l4q", "bits": 4, "group": 64, "rank": 4, "options": {"l4q_steps": 10}},
                                   {"method": "slim-llm", "bits": 3, "group": 32, "rank": 8},
                                   {"method": "billm", "bits": 1, "group": 64, "rank": 8},
                                   {"method": "cloq-rtn", "bits": 4, "group": 64, "rank": 8, "options": {"grid_zero": "real"}}], {})])
    judge(Case("bnb", "LoftQ", "loftq-b4-g64", 8), world, full=False)
    judge(Case("gptq", "loftq-int", "loftq-int-b4-g64", 8), world, full=False)
    judge_bytes(Case("bnb", "LoftQ, another rank", "loftq-b4-g64", 4), world)
    judge_bytes(Case("bnb", "LoftQ, two ranks", "loftq-b4-g64", [4, "down_proj=8", "k_proj=0"]), world)
    for name in ("eora", "caldera", "odlri", "svd"):
        judge_bytes(Case("gptq", name, f"{name}-b4-g64", 8), world)
    judge_bytes(Case("gptq", "qa-lora", "qa-lora-b4-g32", 4), world)
    for split in ("cloq", "qera", "balanced"):
        judge_bytes(Case("gptq", f"eora, split {split}", "eora-b4-g64", 8, split=split), world)
    for name, setting, rank in (("LoftQ, 2 bits", "loftq-b2-g64", 8), ("slim-llm", "slim-llm-b3-g32", 8), ("billm", "billm-b1-g64", 8),
                                ("real zero points", "cloq-rtn-b4-g64-grid_zero_real", 8)):
        judge_bytes(Case("dense", name, setting, rank, "--dtype", "float32"), world)
        judge_bytes(Case("dense", f"{name}, merged", setting, rank, "--merge", "--dtype", "float32"), world)
    # L4Q promises weights that are quantized with the adapter in them: nothing is left to merge, and the folders without adapter are the model.
    l4q = "l4q-b4-g64-l4q_steps_10"
    judge_bytes(Case("gptq", "l4q, fresh adapter", l4q, 4), world)
    case = Case("gptq", "l4q, no adapter", l4q, 0)
    judge_bytes(case, world)
    merged = Case("dense", "l4q, merged", l4q, 4, "--merge", "--dtype", "float32")
    config, t, types = decode.read_base(os.path.join(judge_bytes(merged, world), "base"))
    other = [m for m, ours in case.expected.items() if not np.array_equal(decode.dense(config, t, types, m).weight, ours.weight)]
    report("tiny dense l4q: merged weights are the dequantized codes", other)


def run_smollm2(model, folder):
    four, two, nf = "cloq-nomagr-b4-g64-grid_type_sym", "cloq-rtn-b2-g64", "nf4-cloq-b4-g64-nf_double_on"
    first = os.path.join(folder, "model")
    layers = int(os.environ.get("LAYERS", 11))
    cut(model, first, layers)
    world = World("SmolLM2", first, model, folder, [
        ({"method": "cloq-rtn", "bits": 2, "group": 64, "rank": 8}, {}),
        ([{"method": "cloq-nomagr", "bits": 4, "group": 64, "rank": 8}, {"method": "nf4-cloq", "bits": 4, "group": 64, "rank": 8}],
         {"grid_type": "sym", "nf_double": "on"})])
    world.whole = layers == decode.read_json(model, "config.json")["num_hidden_layers"]
    judge(Case("gptq", "4-bit sym", four, 8), world)
    judge(Case("gptq", "2-bit asym", two, 8), world, full=False)  # rounded to nearest: hardly a model any more
    judge(Case("bnb", "NF4 double", nf, 8), world)
    judge(Case("compressed-tensors", "4-bit sym, mixed ranks", four, [8, "k_proj=4"]), world)
    exact = Case("dense", "4-bit float32", four, 8, "--dtype", "float32")
    judge_perplexity(exact, world, judge(exact, world))


RUNS = {"gptq": run_gptq, "bnb": run_bnb, "compressed-tensors": run_compressed, "dense": run_dense, "methods": run_methods, "smollm2": run_smollm2}

if __name__ == "__main__":
    which, model, folder = sys.argv[1:]
    RUNS[which](model, folder)
    print(f"{len(FAILED)} failed" if FAILED else "all good", file=OUT, flush=True)
    sys.exit(bool(FAILED))

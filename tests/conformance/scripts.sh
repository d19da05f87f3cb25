#!/bin/bash
# The Python scripts that stand beside the program, as a user runs them. jobs/read_container.py: plain codes, codes of a rank, codes of a larger rank,
# own Grams and targets, the export in PEFT; it finds a changed code, a changed adapter and an export of something else. tests/bench/finetune.py: a
# few steps lower the loss, what is done is not done again, results of another kind are refused.
. "$(dirname "$0")/../scenario/common.sh"
python=${CLOQWORK_PYTHON:-}
[ -n "$python" ] || { echo "skipped: CLOQWORK_PYTHON is not set"; exit 77; }
"$python" -c 'from importlib.metadata import version; [version(n) for n in "h5py numpy safetensors torch peft gptqmodel".split()]' 2>/dev/null ||
  { echo "skipped: $python lacks h5py, numpy, safetensors, torch, peft or gptqmodel"; exit 77; }
export OMPI_MCA_ess_singleton_isolated=1

cat >"$WORK/job.yaml" <<J
model: $PROJECT/data/tiny
output: $WORK/run
calibration: { tokens: $PROJECT/data/tiny/calib.npy, windows: 8, length: 64 }
targets: [v_proj, o_proj, up_proj, down_proj]
sweep:
  - { method: cloq-nomagr, bits: 3, group: 64, rank: [4, 16] }
  - { method: refine, bits: 2, group: 64, rank: [4, 8], options: { refine_rounds: 3+2 } }
  - { method: lqer, bits: 2, group: 0, rank: 4, options: { act_quantizer: cross } }
J
LIMIT=300 on 1 run "$WORK/job.yaml" --quiet >/dev/null || fault "the run ended with $?"
on 1 export "$WORK/run" --setting cloq-nomagr-b3-g64 --rank 4 --to gptq >/dev/null || fault "the export ended with $?"

TORCHDYNAMO_DISABLE=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 OMP_NUM_THREADS=1 "$python" - "$PROJECT" "$WORK/run" 2>"$WORK/log" <<'P' || { tail -n 20 "$WORK/log" >&2; fault "the scripts"; }
import contextlib, glob, io, json, os, re, runpy, shutil, sys

import h5py
import numpy as np

project, run = sys.argv[1:]


def script(name, *arguments):
    """What it prints with these arguments, and what it ends with."""
    sys.argv, text, end = [name, run, *arguments], io.StringIO(), None
    with contextlib.redirect_stdout(text):
        try:
            runpy.run_path(f"{project}/{name}", run_name="__main__")
        except (SystemExit, AssertionError) as e:
            end = e
    return text.getvalue(), end


def good(pattern, *arguments):
    text, end = script(*arguments)
    assert (end is None or getattr(end, "code", end) is None) and re.search(pattern, text), (arguments, end, text)
    return text


def bad(words, *arguments):
    text, end = script(*arguments)
    assert end is not None and words in str(end), (arguments, end, text)


def change(setting, layer, name, index, how):
    with h5py.File(f"{run}/solutions/{setting}/layer-{layer:03d}.h5", "r+") as f:
        f[name][index] = how(f[name][index])


cloq, refine, cross, reader = "cloq-nomagr-b3-g64", "refine-b2-g64-refine_rounds_3+2", "lqer-b2-g0-act_quantizer_cross", "jobs/read_container.py"
good("no adapter of rank 4 (?s:.*)of the loaded model are within", reader, cloq, "1", "mlp.down_proj", "4")
good("no export yet", reader, cloq, "0", "mlp.up_proj", "16")
good("rank-4: refine.*\n.*\nno adapter of rank 7", reader, refine, "5", "self_attn.o_proj", "7")
good("stored as.*\nno export yet", reader, cross, "2", "self_attn.v_proj", "4")
bad("adapters up to rank 16", reader, cloq, "0", "mlp.up_proj", "17")

np.save(f"{run}/few.npy", np.load(f"{project}/data/tiny/heldout.npy")[:512])  # held out and trained on: the loss must fall
tune = ["tests/bench/finetune.py", "--model", f"{project}/data/tiny", "--train", f"{run}/few.npy", "--heldout", f"{run}/few.npy",
        "--settings", f"{cloq},{cross}", "--rank", "4", "--batch", "2", "--length", "64", "--windows", "8", "--rates", "5e-4,1e-3", "--seeds", "2", "--steps"]
good(rf"\| original .*\n\| {cloq} .*\n\| {cross} .* ± .*\| 2 \|", *tune, "4")
kept = sorted(glob.glob(f"{run}/finetune/*-*.json"))
assert len(kept) == 2 * 3 + 2 and not glob.glob(f"{run}/finetune/export-*"), os.listdir(f"{run}/finetune")
for path in kept:
    with open(path) as f:
        r = json.load(f)
    assert len(set(r["losses"])) == 4 and r["heldout_after"] < r["heldout_before"], (path, r)
times = [os.stat(path).st_mtime_ns for path in kept]
with open(f"{run}/finetune/table.md") as f:
    good(re.escape(f.read()), *tune, "4")
assert [os.stat(path).st_mtime_ns for path in kept] == times
bad("steps: expected 5, found 4", *tune, "5")
with open(f"{run}/finetune/results.json") as f:
    assert [r["setting"] for r in json.load(f)["table"]] == ["original", cloq, cross]

run = shutil.copytree(run, f"{run}-spoiled")  # the scripts hold files of the other one open
change(cloq, 0, "mlp.up_proj/codes", (5, 1), lambda code: code ^ 1)
bad("do not give the stored loss", reader, cloq, "0", "mlp.up_proj", "16")
change(refine, 5, "self_attn.o_proj/rank-4/lora_A", (0, 0), lambda a: 2 * a)
bad("do not give the stored loss", reader, refine, "5", "self_attn.o_proj", "4")
os.rename(f"{run}/export/{cloq}-r4-gptq", f"{run}/export/{cloq}-r16-gptq")
bad("other weights than the container", reader, cloq, "1", "mlp.down_proj", "16")
P
finish

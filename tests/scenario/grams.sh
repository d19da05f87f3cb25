#!/usr/bin/env bash
# Grams that are not made here: merged from runs on other tokens, taken from files of other programs, written for them. The merge of two
# halves is the calibration on the whole to float rounding, with the same bits on any number of ranks and in any order.
. "$(dirname "$0")/common.sh"
command -v python3 >/dev/null || exit 77

# Halves of the calibration tokens and the whole: sequential windows, so that the whole is just both.
python3 - "$PROJECT/data/tiny/calib.npy" "$WORK" <<'P' || exit 77
import struct, sys
raw = open(sys.argv[1], "rb").read()
n = struct.unpack("<H", raw[8:10])[0]
head, data = raw[10:10 + n].decode(), raw[10 + n:]
width = int(head.split("'descr': '")[1][2])
def put(name, part):
    text = "{'descr': '%s', 'fortran_order': False, 'shape': (%d,), }" % (head.split("'descr': '")[1].split("'")[0], len(part) // width)
    text += " " * (-(len(text) + 11) % 64) + "\n"
    open(sys.argv[2] + "/" + name, "wb").write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + part)
half = 1024 * width
put("first.npy", data[:half])
put("second.npy", data[half:2 * half])
put("whole.npy", data[:2 * half])
P

# job NAME CALIBRATION [HELDOUT]: a job on the tiny model with its output in $WORK/NAME
job() {
  cat >"$WORK/$1.yaml" <<J
model: $PROJECT/data/tiny
output: $WORK/$1
calibration: $2
${3:+heldout: $3}
sweep: { method: [cloq], bits: [2], group: [64], rank: [4] }
options: { magr_K: 5 }
J
}
held="{ tokens: $PROJECT/data/tiny/heldout.npy, windows: 4, length: 128 }"
job first "{ tokens: $WORK/first.npy, windows: 8, length: 128, sampling: sequential }" "$held"
job second "{ tokens: $WORK/second.npy, windows: 8, length: 128, sampling: sequential }" "$held"
job whole "{ tokens: $WORK/whole.npy, windows: 16, length: 128, sampling: sequential }" "$held"
for name in first second whole; do
  on 2 calibrate "$WORK/$name.yaml" --quiet 2>"$WORK/err" || fault "calibrate of $name ended with $?: $(cat "$WORK/err")"
done

# refuse CODE PATTERN ARGS...
refuse() {
  local code=$1 pattern=$2 rc=0
  shift 2
  LIMIT=60 on 2 "$@" --quiet >/dev/null 2>"$WORK/err" || rc=$?
  [ "$rc" -eq "$code" ] || fault "$*: expected code $code, found $rc: $(cat "$WORK/err")"
  [ "$(grep -c '^cloqwork: ' "$WORK/err")" -eq 1 ] || fault "$*: expected one line, found: $(cat "$WORK/err")"
  grep -qE "$pattern" "$WORK/err" || fault "$*: expected '$pattern', found: $(cat "$WORK/err")"
}
good() {
  local ranks=$1
  shift
  on "$ranks" "$@" --quiet >"$WORK/out" 2>"$WORK/err" || fault "$* on $ranks ranks ended with $?: $(cat "$WORK/err")"
}

# merged: any ranks, any order, the same bits; close to the whole; held-out ones as they were
job c1 "{ tokens: $WORK/whole.npy }" "$held"
job c2 "{ merge: [$WORK/second, $WORK/first] }"
job c3 "{ merge: [$WORK/first, $WORK/second] }" "$held"
good 1 merge "$WORK/c1.yaml" --from "$WORK/first" --from "$WORK/second"
good 2 calibrate "$WORK/c2.yaml"
good 3 merge "$WORK/c3.yaml"
datasets "$WORK/c1" >"$WORK/one"
for name in c2 c3; do
  datasets "$WORK/$name" >"$WORK/other"
  cmp -s "$WORK/one" "$WORK/other" || fault "$name differs from the merge on one rank in the other order"
done
[ "$(grep -c . "$WORK/one")" -eq 144 ] || fault "expected 6 layers x 2 sets x 4 inputs x 3 datasets, found $(grep -c . "$WORK/one")"
datasets "$WORK/whole" | grep heldout >"$WORK/other"
grep heldout "$WORK/one" | cmp -s - "$WORK/other" || fault "the held-out Grams are not those of the sources"
good 2 grams "$WORK/c1" --to npy --out "$WORK/merged-npy" --layers 3
good 1 grams "$WORK/whole" --to npy --out "$WORK/whole-npy" --layers 3
python3 - "$WORK" <<'P' || fault "the merge of two halves is not the calibration on the whole to float rounding"
import array, json, sys
def load(run, name, code):
    raw = open(sys.argv[1] + "/" + run + "-npy/layer-003." + name + ".npy", "rb").read()
    return array.array(code, raw[128:])
for name in ("attn_in", "attn_out", "mlp_in", "mlp_out"):
    a, b = load("merged", name, "f"), load("whole", name, "f")
    n = int(len(a) ** 0.5)
    assert len(b) == n * n and n in (128, 384)
    root = [a[k * n + k] ** 0.5 for k in range(n)]
    worst = max(abs(a[i * n + j] - b[i * n + j]) / (root[i] * root[j]) for i in range(n) for j in range(n))
    assert worst < 1e-6, (name, worst)
    for which in ("mean_abs", "max_mean_abs"):
        x, y = load("merged", name + "." + which, "d"), load("whole", name + "." + which, "d")
        assert len(x) == n and all(abs(p - q) <= 1e-6 * q for p, q in zip(x, y)), (name, which)
        assert which == "mean_abs" or all(p >= q for p, q in zip(x, load("merged", name + ".mean_abs", "d")))
a, b = (json.load(open(sys.argv[1] + "/" + run + "-npy/grams.json")) for run in ("merged", "whole"))
assert a["tokens"] == b["tokens"] == 2048 and a["source_tokens"] == "1024,1024" and a["model_fingerprint"] == b["model_fingerprint"], a
P

# the run directory goes on by itself, also when its sources are gone
good 2 run "$WORK/c1"
good 2 verify "$WORK/c1"
mkdir "$WORK/away" && mv "$WORK/first" "$WORK/second" "$WORK/away"
good 2 run "$WORK/c1"
good 1 status "$WORK/c1" --complete
rm "$WORK/c2/grams/layer-004.h5"
refuse 3 'layer-004.*sources' calibrate "$WORK/c2"
mv "$WORK/away"/* "$WORK"
good 2 calibrate "$WORK/c2"
datasets "$WORK/c2" >"$WORK/other"
cmp -s "$WORK/one" "$WORK/other" || fault "a merge that went on differs"
no_temporaries "$WORK/c2"

# merges of merges: the same tokens are found however deep
job third "{ tokens: $PROJECT/data/tiny/calib.npy, windows: 4, length: 128, seed: 9 }" "$held"
good 2 calibrate "$WORK/third.yaml"
job deep "{ merge: [$WORK/c1, $WORK/third] }"
good 2 merge "$WORK/deep.yaml"
refuse 3 'expected tokens that nothing else' merge "$WORK/deep.yaml" --set output="$WORK/no" --from "$WORK/c1" --from "$WORK/second"
refuse 3 'expected tokens that nothing else' merge "$WORK/deep.yaml" --set output="$WORK/no" --from "$WORK/first" --from "$WORK/first"
refuse 3 'no-run' merge "$WORK/deep.yaml" --set output="$WORK/no" --from "$WORK/first" --from "$WORK/no-run"
refuse 2 'made from something else' merge "$WORK/deep.yaml" --from "$WORK/first" --from "$WORK/second"
refuse 2 'expected --from' merge "$WORK/first.yaml"
refuse 3 'held-out' merge "$WORK/deep.yaml" --set output="$WORK/no" --from "$WORK/first" --set "heldout={tokens: $WORK/first.npy, windows: 8, length: 128}"
refuse 3 'heldout.npy.*expected a source with held-out' merge "$WORK/first.yaml" --set output="$WORK/no" --from "$WORK/first" --set heldout.windows=3
job narrow "{ tokens: $WORK/first.npy, windows: 4, length: 128, sampling: sequential }"
good 2 calibrate "$WORK/narrow.yaml" --set 'targets=[q_proj]'
refuse 3 'attn_out.*fewer targets' merge "$WORK/deep.yaml" --set output="$WORK/no" --from "$WORK/narrow" --from "$WORK/second"
cp -r "$PROJECT/data/tiny" "$WORK/other-model"
python3 - "$WORK/other-model/model.safetensors" <<'P'
import struct, sys
f = open(sys.argv[1], "r+b"); n = struct.unpack("<Q", f.read(8))[0]; f.seek(8 + n); b = f.read(2); f.seek(8 + n); f.write(bytes([b[0] ^ 1, b[1]]))
P
refuse 3 "expected Grams of the job's model" merge "$WORK/deep.yaml" --set output="$WORK/no" --set model="$WORK/other-model" --from "$WORK/first"
# a source with a flipped bit is not merged
cp -r "$WORK/first" "$WORK/damaged"
python3 - "$WORK/damaged/grams/layer-002.h5" <<'P'
import sys
f = open(sys.argv[1], "r+b"); f.seek(100000); b = f.read(1); f.seek(100000); f.write(bytes([b[0] ^ 4]))
P
rm -rf "$WORK/no"
refuse 3 'damaged/grams/layer-002.h5' merge "$WORK/deep.yaml" --set output="$WORK/no" --from "$WORK/damaged"
[ ! -e "$WORK/no/grams/layer-002.h5" ] || fault "a damaged Gram was merged"

# to files and back: the same bits, from both formats
for format in npy safetensors; do
  good 3 grams "$WORK/first" --to $format --out "$WORK/$format"
  job "from-$format" "{ import: $WORK/$format }"
  good 2 calibrate "$WORK/from-$format.yaml"
  datasets "$WORK/first" >"$WORK/one"
  datasets "$WORK/from-$format" >"$WORK/other"
  cmp -s "$WORK/one" "$WORK/other" || fault "Grams that went through $format differ"
done
refuse 2 'expected an empty folder' grams "$WORK/first" --to npy --out "$WORK/npy"
refuse 2 'expected --to' grams "$WORK/first" --to csv --out "$WORK/csv"
# they are the same tokens as before they went
refuse 3 'expected tokens that nothing else' merge "$WORK/deep.yaml" --set output="$WORK/no" --from "$WORK/from-npy" --from "$WORK/first"
good 2 run "$WORK/from-npy"
good 2 verify "$WORK/from-npy"

# files of another program: a Gram of its own making, no sidecar
import_job() { job foreign "{ import: $WORK/plain }"; }
python3 - "$WORK/npy" "$WORK/plain" <<'P'
import os, shutil, struct, sys
os.mkdir(sys.argv[2])
for f in sorted(os.listdir(sys.argv[1])):
    if f.startswith("layer-") and "mean" not in f:
        shutil.copy(sys.argv[1] + "/" + f, sys.argv[2])
P
import_job
refuse 3 'expected a count of tokens' calibrate "$WORK/foreign.yaml"
good 2 grams "$WORK/foreign.yaml" --from "$WORK/plain" --tokens 1024
grep -q 'count: 1024' "$WORK/foreign/job.yaml" || fault "the count of tokens is not in job.yaml"
good 1 solve "$WORK/foreign"
h5dump -A "$WORK/foreign/grams/layer-000.h5" | grep -q imported || fault "no provenance in an imported Gram"

# bad_entry ROW COLUMN VALUE: one number of mlp_in of layer 1, in a fresh copy
bad_entry() {
  cp "$WORK/npy/layer-001.mlp_in.npy" "$WORK/plain/layer-001.mlp_in.npy"
  python3 - "$WORK/plain/layer-001.mlp_in.npy" "$@" <<'P'
import struct, sys
path, row, col, value = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
f = open(path, "r+b"); f.seek(128 + 4 * (row * 128 + col)); f.write(struct.pack("<f", value))
P
  rm -rf "$WORK/foreign"
}
bad_entry 5 3 nan
refuse 3 'layer-001.mlp_in.npy: row 5, column 3: expected a finite' calibrate "$WORK/foreign.yaml" --set calibration.count=1024
bad_entry 5 3 1e6
refuse 3 'row 5, column 3: expected a symmetric' calibrate "$WORK/foreign.yaml" --set calibration.count=1024
bad_entry 5 5 -1
refuse 3 'row 5, column 5: expected a finite number of at least 0 on the diagonal' calibrate "$WORK/foreign.yaml" --set calibration.count=1024
bad_entry 5 5 1e-6
refuse 3 'mlp_in.npy: row 5' calibrate "$WORK/foreign.yaml" --set calibration.count=1024
cp "$WORK/npy/layer-001.mlp_in.npy" "$WORK/plain/layer-001.mlp_in.npy"
cp "$WORK/npy/layer-001.attn_in.npy" "$WORK/plain/layer-001.mlp_out.npy"
refuse 3 'expected 384 x 384, the width of mlp_out, found 128 x 128' calibrate "$WORK/foreign.yaml" --set calibration.count=1024
rm "$WORK/plain/layer-001.mlp_out.npy"
refuse 3 'layer-001.mlp_out.npy.*found neither' calibrate "$WORK/foreign.yaml" --set calibration.count=1024
no_temporaries "$WORK/foreign"

finish

#!/bin/bash
# Methods that refine codes for the adapter that follows: a matrix with known losses (fixture.py), then a sweep over the tiny model, verified by the
# program, and by numpy (refine.py).
. "$(dirname "$0")/../scenario/common.sh"
python=${CLOQWORK_PYTHON:-}
[ -n "$python" ] || { echo "CLOQWORK_PYTHON is not set: skipped"; exit 77; }
"$python" -c 'import h5py, numpy' 2>/dev/null || { echo "h5py or numpy is missing: skipped"; exit 77; }
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

OMPI_MCA_ess_singleton_isolated=1 "$python" "$PROJECT/tests/conformance/fixture.py" "${REFINE_DRIVER:-$BUILD/tests/conformance_refine}" ||
  fault "the known losses are not found"

cat >"$WORK/job.yaml" <<J
model: $PROJECT/data/tiny
output: $WORK/run
calibration: { tokens: $PROJECT/data/tiny/calib.npy, windows: 16, length: 256 }
heldout: { tokens: $PROJECT/data/tiny/heldout.npy, windows: 8, length: 256, sampling: sequential }
sweep:
  - { method: [refine, varpro, bidup, projq, gptq-intrinsic, cloq, cloq-nomagr], bits: [2, 3], group: 32, rank: [3, 8] }
  - { method: refine, bits: [2, 3], group: 32, rank: [3, 8], options: { refine_rounds: 6+4 } }
  - { method: refine, bits: 2, group: 32, rank: [3, 8], options: { refine_rounds: 6+4, refine_candidates: on } }
  - { method: refine, bits: 2, group: 32, rank: [3, 8], options: { refine_rounds: 6+4, grid_zero: real } }
  - { method: refine, bits: 2, group: 32, rank: [3, 8], options: { refine_rounds: 6+4, optq_order: natural } }
  - { method: varpro, bits: [2, 3], group: 32, rank: [3, 8], options: { joint_grid: refit } }
J
on 2 calibrate "$WORK/job.yaml" --layers 0-1 --quiet || fault "calibrate ended with $?"
on 2 solve "$WORK/job.yaml" --layers 0-1 --quiet || fault "solve ended with $?"
on 2 verify "$WORK/job.yaml" --layers 0-1 >"$WORK/out" 2>&1 || fault "verify ended with $?: $(cat "$WORK/out")"
"$python" "$PROJECT/tests/conformance/refine.py" "$PROJECT/data/tiny" "$WORK/run" || fault "numpy finds something else"

# a list of rounds that contradicts the stored numbers, under checksums that do not: spoil ENTRY VALUE PATTERN
setting=varpro-b2-g32 && file=$WORK/run/solutions/$setting/layer-000.h5
cp "$file" "$WORK/kept.h5"
spoil() {
  "$python" - "$file" "$1" "$2" <<'P' || fault "the list of rounds is not spoiled"
import hashlib, re, sys
import h5py, numpy as np

def digest(f): # of all attributes (src/store/attributes.c)
    each = []
    def add(name, o):
        for key, v in o.attrs.items():
            kind = "text" if isinstance(v, str) else "int" if isinstance(v, np.integer) else "real"
            text = v if kind == "text" else str(v) if kind == "int" else re.sub(r"\.?0*p", "p", float(v).hex())
            if name or key not in ("complete", "attributes_sha256"):
                each.append(hashlib.sha256(b"".join(s.encode() + b"\0" for s in (name, key, kind, text))).hexdigest().encode() + b"\0")
    add("", f)
    f.visititems(add)
    return hashlib.sha256(b"".join(sorted(each))).hexdigest()

file, entry, value = sys.argv[1:]
with h5py.File(file, "r+") as f:
    assert digest(f) == f.attrs["attributes_sha256"], "the digest is not made as the program makes it"
    group = f["self_attn.k_proj/rank-8"]
    rounds = group["rounds"]
    kept = int(group.attrs["round"]) - 1
    rounds[(kept if entry == "kept" else kept - 1)] = float(value) * rounds[kept]
    rounds.attrs["sha256"] = hashlib.sha256(rounds[...].tobytes()).hexdigest()
    f.attrs["attributes_sha256"] = digest(f)
P
  on 2 verify "$WORK/job.yaml" --layers 0-0 --settings $setting >"$WORK/out" 2>&1 && fault "verify passed a list of rounds with the $1 one times $2"
  grep -q "layer-000.h5: self_attn.k_proj/rank-8: rounds: $3" "$WORK/out" || fault "verify, the $1 one times $2: expected a line with $3, found: $(cat "$WORK/out")"
  cp "$WORK/kept.h5" "$file"
}
spoil kept 0.8 "expected the kept one's loss, at least"
spoil other inf 'expected a loss of round'
finish

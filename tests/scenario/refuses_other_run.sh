#!/usr/bin/env bash
# A run directory that belongs to something else, is taken, or is full; and verify on a damaged one.
. "$(dirname "$0")/common.sh"

small_job "$WORK/job.yaml" "$WORK/run"
on 2 run "$WORK/job.yaml" --quiet >"$WORK/table" || fault "the run ended with $?"
grep -q 'cloq-b2-g64' "$WORK/table" || fault "no table of results on standard output"
on 2 verify "$WORK/job.yaml" >"$WORK/out" 2>&1 || fault "verify of a good run ended with $?: $(cat "$WORK/out")"

refuse() {
  local code=$1 pattern=$2 rc=0
  shift 2
  LIMIT=60 on 2 run "$WORK/job.yaml" --quiet "$@" >/dev/null 2>"$WORK/err" || rc=$?
  [ "$rc" -eq "$code" ] || fault "$*: expected code $code, found $rc: $(cat "$WORK/err")"
  grep -q "$pattern" "$WORK/err" || fault "$*: expected '$pattern', found: $(cat "$WORK/err")"
}
# other tokens, other model: named, and the job file stays
cp "$WORK/run/job.yaml" "$WORK/job-before"
refuse 2 'tokens_fingerprint' --set calibration.seed=7
refuse 2 'rank_max: expected 64, found .*: sweep: \[..., {rank: 64, label: NAME}\]' --set sweep.rank=[8,64]
cp -r "$PROJECT/data/tiny" "$WORK/other-model"
python3 - "$WORK/other-model/model.safetensors" <<'P' || exit 77
import struct, sys
f = open(sys.argv[1], "r+b"); n = struct.unpack("<Q", f.read(8))[0]; f.seek(8 + n); b = f.read(2); f.seek(8 + n); f.write(bytes([b[0] ^ 1, b[1]]))
P
refuse 2 'model_fingerprint' --set model="$WORK/other-model"
cmp -s "$WORK/run/job.yaml" "$WORK/job-before" || fault "a refused run replaced job.yaml"

# taken by a live job: whoever holds the kernel's lock
held "$WORK/run/.lock"
refuse 6 'no other job.*somebody' --set sweep.bits=[3]
release
# left by a dead one of this host, even if its process number lives again; by the same job of another host; by another job of another host
on 2 run "$WORK/job.yaml" --quiet >/dev/null || fault "a stale lock stopped the run: $?"
echo "slurm-14 elsewhere 1" >"$WORK/run/.lock"
SLURM_JOB_ID=14 on 1 run "$WORK/job.yaml" --quiet >/dev/null || fault "a requeued job's own lock stopped it: $?"
echo "slurm-14 elsewhere 1" >"$WORK/run/.lock"
refuse 6 'slurm-14 elsewhere 1); if that job has ended, remove the file'
rm "$WORK/run/.lock"

# a flipped bit in the middle of a file is found by two ranks, too, and named (scenario.flip: by one, all over a run)
for file in grams/layer-002.h5 solutions/cloq-b4-g64-magr_K_10/layer-005.h5; do
  cp "$WORK/run/$file" "$WORK/kept"
  python3 -c "
import os
f = open('$WORK/run/$file', 'r+b'); at = os.path.getsize(f.name) // 2; f.seek(at); b = f.read(1); f.seek(at); f.write(bytes([b[0] ^ 4]))"
  on 2 verify "$WORK/job.yaml" >"$WORK/out" 2>&1 && fault "verify passed with a bit of $file flipped"
  grep -q "$file" "$WORK/out" || fault "the damaged $file is not named: $(cat "$WORK/out")"
  cp "$WORK/kept" "$WORK/run/$file"
done

# a full disk: a small tmpfs where one can be mounted
mkdir "$WORK/small"
if mount -t tmpfs -o size=1500k tmpfs "$WORK/small" 2>/dev/null; then
  trap 'umount "$WORK/small"; cleanup' EXIT
  refuse 4 'disk' --set output="$WORK/small/run"
  head -c 1200000 /dev/zero >"$WORK/small/filler"
  umount "$WORK/small"
  mount -t tmpfs -o size=24m tmpfs "$WORK/small"
  rm -rf "$WORK/small/run"
  (while [ ! -e "$WORK/small/run/grams/layer-002.h5" ]; do sleep 0.02; done; head -c 40m /dev/zero >"$WORK/small/filler") 2>/dev/null &
  refuse 6 'No space left\|cannot be written' --set output="$WORK/small/run"
  wait
  rm -f "$WORK/small/filler"
  on 2 run "$WORK/job.yaml" --quiet --set output="$WORK/small/run" >/dev/null 2>"$WORK/err" || fault "after room was made the run ended with $?: $(cat "$WORK/err")"
fi
finish

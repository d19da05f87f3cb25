# shellcheck shell=bash
# Sourced by the scenarios: a scratch folder, the program on N ranks, and checks that name what went wrong.
set -u
: "${CLOQWORK:?} ${MPIRUN:=mpirun} ${PROJECT:?}"
WORK=$(mktemp -d "${TMPDIR:-/tmp}/cloqwork-test.XXXXXX")
trap 'cleanup' EXIT
cleanup() { rm -rf "$WORK"; }
failures=0

fault() {
  echo "FAILED: $*" >&2
  failures=$((failures + 1))
}
finish() {
  [ "$failures" -eq 0 ] && echo "ok" || echo "$failures failures"
  [ "$failures" -eq 0 ]
  exit
}

# on RANKS ARGS...: the program under a time limit: a hang is a failure with code 124. One rank needs no launcher, but a folder for Open MPI's files that
# no other has.
on() {
  local ranks=$1
  shift
  if [ "$ranks" = 1 ]; then
    OMPI_MCA_ess_singleton_isolated=1 OMPI_MCA_orte_tmpdir_base=$WORK/mpi-$BASHPID timeout -k 5 "${LIMIT:-120}" "$CLOQWORK" "$@" </dev/null
    return
  fi
  timeout -k 5 "${LIMIT:-120}" "$MPIRUN" -n "$ranks" "$CLOQWORK" "$@" </dev/null
}

# A job on the tiny model that takes a second or two: small_job FILE OUTPUT
small_job() {
  cat >"$1" <<J
model: $PROJECT/data/tiny
output: $2
calibration: { tokens: $PROJECT/data/tiny/calib.npy, windows: 8, length: 128 }
heldout: { tokens: $PROJECT/data/tiny/heldout.npy, windows: 4, length: 128 }
sweep: { method: [cloq], bits: [2, 4], group: [64], rank: [4, 16] }
options: { magr_K: 10 }
J
}

# smallest_model FOLDER: the smallest model there can be, one layer cut out of the tiny one.
smallest_model() {
  mkdir "$1"
  python3 - "$PROJECT/data/tiny" "$1" <<'P' || exit 1
import json, math, shutil, struct, sys

source, target = sys.argv[1:]
narrow = {128: 32, 384: 64, 64: 32}
with open(source + "/model.safetensors", "rb") as f:
    header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
    data = f.read()
kept, body = {}, b""
for name, t in header.items():
    if name == "__metadata__" or ("layers." in name and "layers.0." not in name):
        continue
    shape = [narrow.get(n, n) for n in t["shape"]]
    begin, size = t["data_offsets"][0], 2 * math.prod(shape)
    kept[name] = {"dtype": t["dtype"], "shape": shape, "data_offsets": [len(body), len(body) + size]}
    body += data[begin : begin + size]
text = json.dumps(kept).encode()
with open(target + "/model.safetensors", "wb") as f:
    f.write(struct.pack("<Q", len(text)) + text + body)
with open(source + "/config.json") as f:
    config = json.load(f)
config.update(num_hidden_layers=1, hidden_size=32, intermediate_size=64, num_attention_heads=1, num_key_value_heads=1)
with open(target + "/config.json", "w") as f:
    json.dump(config, f)
for name in ("tokenizer.json", "tokenizer_config.json"):
    shutil.copy(source + "/" + name, target)
P
}

# datasets FOLDER: name and SHA-256 of every dataset of every container below it, sorted: what "the same result" means.
datasets() {
  (cd "$1" && find . -name '*.h5' ! -name run.h5 | sort | xargs -rn 1 h5dump -A) | awk '
    /^HDF5 / { f = substr($2, 2, length($2) - 2) } /DATASET|GROUP/ { name = $2 } /"sha256"/ { want = 1 } want && /\(0\):/ { print f, name, $2; want = 0 }'
}

# held FILE: the kernel's lock on it, by a process that lives and calls itself somebody, until `release`
held() {
  echo "somebody $(hostname) 1" >"$1" || exit
  python3 -c "
import fcntl, sys, time
f = open('$1', 'r+')
fcntl.lockf(f, fcntl.LOCK_EX)
open('$WORK/held', 'w')
time.sleep(100)" &
  holder=$!
  while [ ! -e "$WORK/held" ]; do sleep 0.05; done
  rm "$WORK/held"
}
release() {
  kill $holder
  wait $holder 2>/dev/null
}

# no_temporaries FOLDER: no temporary file, and no file under a final name that cannot be opened.
no_temporaries() {
  local left
  left=$(find "$1" -name '*.tmp*' 2>/dev/null)
  [ -z "$left" ] || fault "temporary files left: $left"
}

# shellcheck shell=bash
# Sourced by the conformance tests of exports: export_tests WHAT [MODEL FOLDER] runs export.py WHAT (or $script) in a scratch folder.
set -u
: "${CLOQWORK:?} ${MPIRUN:=mpirun} ${PROJECT:?}"
# gptqmodel compiles its kernel by torch.compile, which takes longer than all tests together.
export CLOQWORK MPIRUN TORCHDYNAMO_DISABLE=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1

export_tests() {
  local missing python=${CLOQWORK_PYTHON:-} what=$1 model=${2:-$PROJECT/data/tiny} folder rc=0
  [ -n "$python" ] || { echo "skipped: CLOQWORK_PYTHON is not set"; exit 77; }
  # By their metadata: importing them takes seconds.
  missing=$("$python" -c 'from importlib.metadata import version
for n in "torch transformers peft accelerate optimum gptqmodel bitsandbytes compressed-tensors h5py numpy".split():
    try: version(n)
    except Exception: print(n)')
  [ -z "$missing" ] || { echo "skipped: $python lacks" $missing; exit 77; }
  folder=$(mktemp -d "${TMPDIR:-/tmp}/cloqwork-export.XXXXXX") || exit 1
  "$python" "$PROJECT/tests/conformance/${script:-export.py}" "$what" "$model" "$folder" 2>"$folder/log" || rc=$?
  [ $rc -eq 0 ] || tail -n 40 "$folder/log" >&2
  rm -rf "$folder"
  exit $rc
}

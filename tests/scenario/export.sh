#!/usr/bin/env bash
# Exports as a user makes them: the same bytes on any number of ranks, every kind of bad input refused in one line with nothing left
# behind, faults, kills and full disks likewise, and verify finding whatever was changed afterwards.
[ -w /dev/shm ] && export TMPDIR=/dev/shm # hundreds of small exports, each synced
. "$(dirname "$0")/common.sh"
command -v python3 >/dev/null || exit 77

cat >"$WORK/job.yaml" <<J
model: $PROJECT/data/tiny
output: $WORK/run
calibration: { tokens: $PROJECT/data/tiny/calib.npy, windows: 4, length: 128 }
heldout: { tokens: $PROJECT/data/tiny/heldout.npy, windows: 2, length: 128 }
sweep:
  - { method: cloq-nomagr, bits: [2, 4, 5], group: 64, rank: [4, 8] }
  - { method: { quantizer: nf4, init: cloq }, bits: 4, group: 64, rank: [4, 8] }
J
on 2 run "$WORK/job.yaml" --quiet >/dev/null || fault "the run ended with $?"
setting=cloq-nomagr-b4-g64
other=cloq-nomagr-b2-g64

# the same bytes on any number of ranks
for ranks in 1 2 3; do
  on $ranks export "$WORK/run" --setting $setting --rank 8 --to gptq --out "$WORK/out-$ranks" --quiet >/dev/null || fault "export on $ranks ranks ended with $?"
  diff -r "$WORK/out-1" "$WORK/out-$ranks" >/dev/null || fault "$ranks ranks: the export differs from that of one rank: $(diff -rq "$WORK/out-1" "$WORK/out-$ranks")"
  on $ranks verify "$WORK/out-1" >"$WORK/stdout" 2>&1 || fault "verify on $ranks ranks ended with $?: $(cat "$WORK/stdout")"
  grep -q 'same tensors, bit for bit' "$WORK/stdout" || fault "verify did not compare with the run: $(cat "$WORK/stdout")"
done

# the default place, formats by name, and an export that has moved
on 2 export "$WORK/job.yaml" --setting nf4-cloq-b4-g64 --rank 4 --to bnb --quiet >/dev/null || fault "an export to its default place ended with $?"
mv "$WORK/run/export/nf4-cloq-b4-g64-r4-bnb" "$WORK/moved" || fault "the default place is not RUN/export/SETTING-rR-FORMAT"
(cd / && on 1 verify "$WORK/moved" --run "$WORK/run") >/dev/null 2>&1 || fault "verify of a moved export ended with $?"

# refuse CODE PATTERN ARGS...: on one rank and on three in turn, so that either way is seen often
turn=0
refuse() {
  local code=$1 pattern=$2 ranks rc lines
  shift 2
  turn=$((turn + 1))
  for ranks in $((turn % 2 ? 1 : 3)); do
    rc=0
    LIMIT=60 on "$ranks" export "$@" --quiet >"$WORK/stdout" 2>"$WORK/stderr" || rc=$?
    lines=$(grep -c '^cloqwork: ' "$WORK/stderr")
    [ "$rc" -eq "$code" ] || fault "$* on $ranks ranks: expected code $code, found $rc: $(head -c 600 "$WORK/stderr")"
    [ "$lines" -eq 1 ] || fault "$* on $ranks ranks: expected one line, found $lines: $(head -c 600 "$WORK/stderr")"
    grep -qE -- "$pattern" "$WORK/stderr" || fault "$*: expected a line with '$pattern', found: $(cat "$WORK/stderr")"
    [ ! -e "$WORK/new" ] && [ ! -e "$WORK/new.tmp" ] || fault "$*: something was left behind: $(ls -d "$WORK"/new*)"
    rm -rf "$WORK/new" "$WORK/new.tmp"
  done
}
run=("$WORK/run" --out "$WORK/new")
refuse 2 '--rank: expected at most 8.*found 9' "${run[@]}" --setting $setting --rank 9 --to gptq
refuse 2 '--rank: expected a rank.*found x' "${run[@]}" --setting $setting --rank x --to gptq
refuse 2 'expected a rank, such as 4,8' "${run[@]}" --setting $setting --to gptq
refuse 2 'unknown setting cloq-nomagr-b3-g64, did you mean cloq-nomagr-b' "${run[@]}" --setting cloq-nomagr-b3-g64 --rank 8 --to gptq
refuse 2 '--setting: expected one of the run.s 4 settings' "${run[@]}" --rank 8 --to gptq
refuse 2 '--to: expected gptq, bnb' "${run[@]}" --setting $setting --rank 8
refuse 2 'unknown format gptg, did you mean gptq' "${run[@]}" --setting $setting --rank 8 --to gptg
refuse 2 'expected an NF4 grid.*gptq can hold it' "${run[@]}" --setting $setting --rank 8 --to bnb
refuse 2 'found NF4: bnb can hold it' "${run[@]}" --setting nf4-cloq-b4-g64 --rank 8 --to gptq
refuse 2 'found NF4: bnb can hold it' "${run[@]}" --setting nf4-cloq-b4-g64 --rank 8 --to compressed-tensors
refuse 2 'found 5: dense can hold it' "${run[@]}" --setting cloq-nomagr-b5-g64 --rank 8 --to gptq
refuse 2 'same bits.*compressed-tensors .if symmetric. or dense can hold it' "${run[@]}" --setting $setting --setting "down_proj=$other" --rank 8 --to gptq
refuse 2 'expected symmetric codes .*dense can hold it' "${run[@]}" --setting $setting --setting "down_proj=$other" --rank 8 --to compressed-tensors
refuse 2 'matches dawn_proj, found none' "${run[@]}" --setting $setting --setting "dawn_proj=$other" --rank 8 --to compressed-tensors
refuse 2 'gptq cannot hold W = Q \+ BA: dense can' "${run[@]}" --setting $setting --rank 8 --to gptq --merge
refuse 2 '--split: expected cloq, qera or balanced' "${run[@]}" --setting $setting --rank 8 --to gptq --split half
refuse 2 '--adapter-dtype: expected float32' "${run[@]}" --setting $setting --rank 8 --to gptq --adapter-dtype float8
refuse 2 'expected an empty folder, found adapter|found base' "$WORK/run" --out "$WORK/out-1" --setting $setting --rank 8 --to gptq
refuse 2 'expected no such file or an empty folder' "$WORK/run" --out "$WORK/job.yaml" --setting $setting --rank 8 --to gptq
refuse 3 'no solutions|expected the solutions' "$WORK/job.yaml" --set output="$WORK/nothing" --out "$WORK/new" --setting $setting --rank 8 --to gptq
mv "$WORK/run/solutions/$setting/layer-003.h5" "$WORK/kept.h5"
refuse 3 'expected the solution of layer 3' "${run[@]}" --setting $setting --rank 8 --to gptq
mv "$WORK/kept.h5" "$WORK/run/solutions/$setting/layer-003.h5"

# grids that a format cannot hold, and ranks that a method with codes of its own for each was not solved for
cat >"$WORK/others.yaml" <<J
model: $PROJECT/data/tiny
output: $WORK/others
calibration: { tokens: $PROJECT/data/tiny/calib.npy, windows: 4, length: 128 }
targets: [k_proj]
sweep:
  - { method: [slim-llm, lasq-w], bits: 2, group: 64, rank: [4, 8] }
  - { method: billm, bits: 1, group: 64, rank: [4, 8] }
  - { method: eora, bits: 4, group: 64, rank: [4, 8], options: { grid_zero: real } }
J
on 2 run "$WORK/others.yaml" --quiet >/dev/null || fault "the run of other methods ended with $?"
others=("$WORK/others" --out "$WORK/new")
for form in gptq compressed-tensors; do
  refuse 2 "$form: .*found several: dense can hold it" "${others[@]}" --setting slim-llm-b2-g64 --rank 8 --to $form
  refuse 2 "$form: .*found a binary one: dense can hold it" "${others[@]}" --setting billm-b1-g64 --rank 8 --to $form
  refuse 2 "$form: .*found a normal float of less than 4 bits: dense can hold it" "${others[@]}" --setting lasq-w-b2-g64 --rank 8 --to $form
  refuse 2 "$form: .*found real ones: dense can hold it" "${others[@]}" --setting eora-b4-g64-grid_zero_real --rank 8 --to $form
done
refuse 2 'bnb: .*found a binary one: dense can hold it' "${others[@]}" --setting billm-b1-g64 --rank 8 --to bnb
refuse 2 'bnb: .*found a normal float of 2 bits: dense can hold it' "${others[@]}" --setting lasq-w-b2-g64 --rank 8 --to bnb
for setting_name in slim-llm-b2-g64 eora-b4-g64-grid_zero_real; do
  refuse 2 'bnb: .*found a uniform one of [24] bits: dense can hold it' "${others[@]}" --setting $setting_name --rank 8 --to bnb
done
refuse 2 'expected one of the ranks that it was solved for, 4,8, found 6' "${others[@]}" --setting lasq-w-b2-g64 --rank 6 --to dense
refuse 2 'expected one of the ranks that it was solved for, 4,8, found 9' "${others[@]}" --setting lasq-w-b2-g64 --rank 9 --to dense

# one bit of a weight of the checkpoint has changed since; codes that are damaged
cp -r "$PROJECT/data/tiny" "$WORK/changed"
python3 - "$WORK/changed/model.safetensors" <<'P'
import json, struct, sys
with open(sys.argv[1], "r+b") as f:
    n, = struct.unpack("<Q", f.read(8))
    begin = json.loads(f.read(n))["model.layers.2.mlp.up_proj.weight"]["data_offsets"][0]
    f.seek(8 + n + begin)
    byte = f.read(1)[0]
    f.seek(8 + n + begin)
    f.write(bytes([byte ^ 1]))
P
refuse 3 'checkpoint has changed since calibration' "$WORK/job.yaml" --set model="$WORK/changed" --out "$WORK/new" --setting $setting --rank 8 --to gptq
file=$WORK/run/solutions/$setting/layer-001.h5
cp "$file" "$WORK/kept.h5"
for name in codes lora_A; do
  python3 - "$file" "$(h5dump -pH -d "/mlp.down_proj/$name" "$WORK/kept.h5" | sed -n 's/.*OFFSET \([0-9]*\).*/\1/p')" <<'P'
import sys
with open(sys.argv[1], "r+b") as f:
    f.seek(int(sys.argv[2]) + 100)
    byte = f.read(1)[0]
    f.seek(int(sys.argv[2]) + 100)
    f.write(bytes([byte ^ 4]))
P
  refuse 3 'mlp.down_proj(: damaged codes or grid|/lora_A: damaged data)' "${run[@]}" --setting $setting --rank 8 --to gptq
  cp "$WORK/kept.h5" "$file"
done

# a disk that fills up half-way: one line, code 6, nothing under the final name
if unshare -m mount -t tmpfs -o size=1m tmpfs "$WORK/changed" 2>/dev/null; then
  for size in 300k 700k 1100k; do
    rc=0
    unshare -m sh -c 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"' sh "$size" "$WORK/changed" \
      sh -c '"$1" -n 2 "$2" export "$3" --setting "$4" --rank 8 --to gptq --out "$5/new" --quiet >/dev/null 2>"$6"; rc=$?; ls -A "$5" >>"$7"; exit $rc' \
      sh "$MPIRUN" "$CLOQWORK" "$WORK/run" $setting "$WORK/changed" "$WORK/stderr" "$WORK/left" </dev/null || rc=$?
    [ $rc -eq 6 ] || fault "a disk of $size: expected code 6, found $rc: $(cat "$WORK/stderr")"
    [ "$(grep -c '^cloqwork: ' "$WORK/stderr")" -eq 1 ] && grep -q 'No space left' "$WORK/stderr" || fault "a disk of $size: $(cat "$WORK/stderr")"
  done
  [ ! -s "$WORK/left" ] || fault "full disks: left behind: $(cat "$WORK/left")"
else
  echo "cannot mount a tmpfs: full disks are not tried"
fi

# faults: the n-th operation that can fail does, on either rank
for rank in 0 1; do
  total=$(CLOQWORK_FAULT=$rank:0 on 2 export "${run[@]}" --setting $setting --rank 8 --to gptq --quiet 2>&1 | sed -n "s/.*rank $rank: \([0-9]*\) operations.*/\1/p")
  rm -rf "$WORK/new"
  [ "${total:-0}" -gt 100 ] || fault "expected hundreds of operations that can fail on rank $rank, found ${total:-none}"
  for at in 1 $(seq 5 $((${total:-100} / ${FAULTS:-6} + 1)) "${total:-100}"); do
    rc=0
    LIMIT=30 CLOQWORK_FAULT=$rank:$at on 2 export "${run[@]}" --setting $setting --rank 8 --to gptq --quiet >/dev/null 2>"$WORK/stderr" || rc=$?
    case $rc in 3 | 4 | 6) ;; *) fault "fault $at of $total on rank $rank: expected code 3, 4 or 6, found $rc: $(head -c 400 "$WORK/stderr")" ;; esac
    [ "$(grep -c '^cloqwork: ' "$WORK/stderr")" -eq 1 ] || fault "fault $at on rank $rank: expected one line, found: $(head -c 600 "$WORK/stderr")"
    [ ! -e "$WORK/new" ] || fault "fault $at on rank $rank: an export stands under its final name"
    rm -rf "$WORK/new" "$WORK/new.tmp"
  done
done

# killed: what is left does not disturb the next one
RANDOM=${SEED:-4711}
for _ in 1 2 3; do
  "$MPIRUN" -n 2 "$CLOQWORK" export "${run[@]}" --setting $setting --rank 8 --to gptq --quiet >/dev/null 2>&1 </dev/null &
  launcher=$!
  sleep "0.$((RANDOM % 9))"
  pkill -9 -f "^[^ ]*cloqwork export $WORK/run" 2>/dev/null
  wait "$launcher" 2>/dev/null
  [ ! -e "$WORK/new" ] || diff -rq "$WORK/out-1" "$WORK/new" >/dev/null || fault "killed: a broken export stands under its final name"
  [ -e "$WORK/new" ] || on 2 export "${run[@]}" --setting $setting --rank 8 --to gptq --quiet >/dev/null || fault "the export after a kill ended with $?"
  diff -rq "$WORK/out-1" "$WORK/new" >/dev/null || fault "the export after a kill differs"
  rm -rf "$WORK/new"
done

# found PATTERN CODE-OF-PYTHON: a copy of the export, changed by Python that knows `base` and `adapter`, must be found
found() {
  local rc=0
  rm -rf "$WORK/broken"
  cp -r "$WORK/out-1" "$WORK/broken"
  python3 - "$WORK/broken" "$WORK" <<P || fault "the change itself failed"
import json, shutil, struct, sys
root, work = sys.argv[1:]
base, adapter = root + "/base", root + "/adapter"
def tensor(path, name):
    raw = open(path, "rb").read()
    n, = struct.unpack("<Q", raw[:8])
    a, b = json.loads(raw[8:8 + n])[name]["data_offsets"]
    return 8 + n + a, 8 + n + b
def edit(path, name, change):
    a, b = tensor(path, name)
    raw = bytearray(open(path, "rb").read())
    raw[a:b] = change(raw[a:b])
    open(path, "wb").write(raw)
def edit_json(path, change):
    o = json.load(open(path))
    change(o)
    json.dump(o, open(path, "w"))
$2
P
  on 2 verify "$WORK/broken" >"$WORK/stdout" 2>"$WORK/stderr" || rc=$?
  [ $rc -eq 3 ] || fault "$2: expected code 3, found $rc: $(cat "$WORK/stderr")"
  grep -qE -- "$1" "$WORK/stderr" || fault "$2: expected a line with '$1', found: $(cat "$WORK/stderr")"
}
on 2 export "$WORK/run" --setting $other --rank 8 --to gptq --out "$WORK/other" --quiet >/dev/null || fault "export of another setting ended with $?"
model="base + '/model.safetensors'" factors="adapter + '/adapter_model.safetensors'"
q=model.layers.0.self_attn.q_proj
found "$q: expected codes and grid of fingerprint|$q.qzeros: expected SHA-256" "edit($model, '$q.qzeros', lambda d: bytes((d[0] + 1,)) + d[1:])"
found 'embed_tokens.weight: expected SHA-256' "edit($model, 'model.embed_tokens.weight', lambda d: bytes((d[0] ^ 1,)) + d[1:])"
found 'lora_B.weight: expected SHA-256' "edit($factors, 'base_model.model.$q.lora_B.weight', lambda d: bytes((d[0] ^ 1,)) + d[1:])"
found 'scale 1, found rank 8, alpha 16' "edit_json(adapter + '/adapter_config.json', lambda o: o.update(lora_alpha=16))"
found 'config.json: quantization: checkpoint_format: expected "gptq_v2", found "gptq"' "edit_json(base + '/config.json', lambda o: o['quantization_config'].update(checkpoint_format='gptq', format='gptq'))"
found 'rslora' "edit_json(adapter + '/adapter_config.json', lambda o: o.update(use_rslora=True))"
found 'the adapter belongs to another base' "shutil.rmtree(adapter); shutil.copytree(work + '/other/adapter', adapter)"
found 'base_fingerprint: expected .* as in' "shutil.copy(work + '/other/adapter/adapter_model.safetensors', adapter)"
found 'expected tensor|expected SHA-256|another type or shape' "shutil.copy(work + '/other/base/model.safetensors', base)"
found 'base_fingerprint: expected .* from its modules' "edit_json(base + '/cloqwork.json', lambda o: o['modules']['$q'].update(fingerprint='0' * 64))"
finish

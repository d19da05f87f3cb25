#!/usr/bin/env bash
# Settings that follow their own prefix (options.act_quantizer): the same bits on any number of ranks and teams, in parts, and after kills; verified,
# reported, evaluated, planned; what cannot be asked for. What the numbers are worth: conformance.sequential.
. "$(dirname "$0")/common.sh"
command -v h5dump >/dev/null || exit 77

cat >"$WORK/job.yaml" <<J
model: $PROJECT/data/tiny
output: $WORK/calm
calibration: { tokens: $PROJECT/data/tiny/calib.npy, windows: 8, length: 64 }
heldout: { tokens: $PROJECT/data/tiny/heldout.npy, windows: 4, length: 64 }
targets: [q_proj, o_proj, gate_proj, down_proj]
sweep:
  - { method: cloq-nomagr, bits: 2, group: 64, rank: [4, 16], options: { act_quantizer: [fp, prefix] } }
  - { method: lqer, bits: 2, group: 64, rank: [4, 16], options: { act_quantizer: cross } }
J
good() { # RANKS ARGS...
  local ranks=$1
  shift
  on "$ranks" "$@" >"$WORK/out" 2>"$WORK/err" || fault "$* on $ranks ended with $?: $(head -c 2000 "$WORK/out") $(cat "$WORK/err")"
}
refused() { # CODE TEXT ARGS...
  local code=$1 text=$2 rc=0
  shift 2
  on 2 "$@" >"$WORK/out" 2>"$WORK/err" || rc=$?
  [ $rc -eq "$code" ] || fault "$*: expected code $code, found $rc"
  grep -qF "$text" "$WORK/err" || fault "$*: expected '$text', found $(cat "$WORK/err")"
}
same() { # WHAT RUN
  datasets "$2" | cmp -s - "$WORK/expected" || fault "$1: datasets differ: $(datasets "$2" | diff "$WORK/expected" - | grep '^>' | awk '{ print $2, $3 }' | head -4)"
}

# ---- the same bits, whoever works ----

good 2 run "$WORK/job.yaml" --quiet
datasets "$WORK/calm" >"$WORK/expected"
[ "$(grep -c target_ "$WORK/expected")" = 24 ] || fault "expected 24 target weights (one setting, six layers, four linears), found $(grep -c target_ "$WORK/expected")"
good 1 run "$WORK/job.yaml" --quiet --set output="$WORK/one"
same "one rank" "$WORK/one"
good 3 run "$WORK/job.yaml" --quiet --set output="$WORK/teams" --set parallel.team=1
same "three teams" "$WORK/teams"

# ---- in parts, and after kills ----

good 2 run "$WORK/job.yaml" --quiet --set output="$WORK/parts" --layers 0-1
refused 2 'expected layer 2 to be done before layer 4, found it missing' solve "$WORK/job.yaml" --quiet --set output="$WORK/parts" --layers 4-5 --settings '*cross'
good 3 run "$WORK/job.yaml" --quiet --set output="$WORK/parts"
same "in parts" "$WORK/parts"
for kill in 1 2 3; do
  "$MPIRUN" -n 2 "$CLOQWORK" solve "$WORK/job.yaml" --quiet --set output="$WORK/killed" >/dev/null 2>&1 </dev/null &
  launcher=$!
  [ $kill -eq 1 ] && { wait $launcher; cp -r "$WORK/calm/grams" "$WORK/calm/heldout" "$WORK/killed/"; continue; } # without Grams: refused
  sleep "0.$((2 * kill + 1))"
  pkill -9 -n -f "^[^ ]*cloqwork solve $WORK/job.yaml .*$WORK/killed"
  wait $launcher 2>/dev/null
done
good 2 run "$WORK/job.yaml" --quiet --set output="$WORK/killed"
same "after kills" "$WORK/killed"
no_temporaries "$WORK/killed"
twice=$(sed -n 's/.*"unit":"\([^"]*\)".*/\1/p' "$WORK/killed/metrics.jsonl" | sort | uniq -d)
[ -z "$twice" ] || fault "done twice: $(echo "$twice" | head -3)"

# layers missing in the middle: those alone are made again
cp -r "$WORK/one" "$WORK/gaps"
rm "$WORK"/gaps/solutions/*prefix/layer-00[13].h5
: >"$WORK/gaps/metrics.jsonl"
good 2 run "$WORK/job.yaml" --quiet --set output="$WORK/gaps"
same "with gaps" "$WORK/gaps"
made=$(sed -n 's/.*"unit":"\(solutions[^"]*\/layer-[0-9]*\)".*/\1/p' "$WORK/gaps/metrics.jsonl" | grep -v '/grams/' | sed 's/.*layer-//' | tr '\n' ' ')
[ "$made" = "001 003 " ] || fault "gaps: expected layers 001 003 to be made, found $made"

# ---- what a user sees ----

good 2 verify "$WORK/calm"
grep -q '; 0 wrong' "$WORK/out" || fault "verify: expected nothing wrong, found: $(cat "$WORK/out")"
good 1 status "$WORK/calm" --complete
good 1 report "$WORK/calm" --json
good 2 eval "$WORK/calm" --settings '*cross' --rank 16 --set eval.windows=2 --set eval.tokens="$PROJECT/data/tiny/heldout.npy" --set eval.length=128
good 1 plan "$WORK/job.yaml" --set output="$WORK/new"
grep -q '^by prefix .* 12 .* 12 ' "$WORK/out" || fault "plan: expected 12 units that follow their prefix, found: $(cat "$WORK/out")"
grep -q '"drift":0\.[0-9]*.*"drift_heldout":0\.' "$WORK/calm/metrics.jsonl" || fault "metrics.jsonl: expected how far the prefix drifts"

# ---- what cannot be ----

refused 2 'options.act_adapter: expected prefix with act_quantizer: prefix (codes and adapter see the same inputs), found fp' \
  plan "$WORK/job.yaml" --set output="$WORK/new" --set options.act_adapter=fp
refused 2 'makes Grams of its own: expected calibration.tokens, found calibration.merge' \
  plan "$WORK/job.yaml" --set output="$WORK/new" --set "calibration={merge: [$WORK/calm]}"
refused 2 'options.xgram_alpha: expected a number from 0 to 1, found 1.5' plan "$WORK/job.yaml" --set options.xgram_alpha=1.5
finish

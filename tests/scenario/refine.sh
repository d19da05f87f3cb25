#!/usr/bin/env bash
# Codes that are refined for a rank: which ranks have codes of their own, the others served by those of a smaller one with more columns of the
# adapter; the same bits on any number of ranks, and after a kill; verified, reported, evaluated and exported at every rank; few tokens; a damaged
# record found. What the numbers are worth: conformance.refine.
. "$(dirname "$0")/common.sh"
command -v h5dump >/dev/null || exit 77
command -v python3 >/dev/null || exit 77

# job NAME CALIBRATION METHODS [OPTIONS]
job() {
  cat >"$WORK/$1.yaml" <<J
model: $PROJECT/data/tiny
output: $WORK/$1
calibration: $2
heldout: { tokens: $PROJECT/data/tiny/heldout.npy, windows: 2, length: 64 }
targets: [k_proj, gate_proj, down_proj]
sweep: { method: $3, bits: [2], group: [32], rank: [2, 4, 16] }
options: { refine_rounds: 3+2, joint_rounds: 1${4:+, $4} }
J
}
good() { # RANKS ARGS...
  local ranks=$1
  shift
  on "$ranks" "$@" >"$WORK/out" 2>"$WORK/err" || fault "$* on $ranks ended with $?: $(head -c 2000 "$WORK/out") $(cat "$WORK/err")"
}
# attribute FILE GROUP NAME
attribute() { h5dump -a "$2/$3" "$1" 2>/dev/null | sed -n 's/.*(0): "\{0,1\}\([^"]*\)"\{0,1\}$/\1/p'; }
is() { # WHAT FOUND EXPECTED
  [ "$2" = "$3" ] || fault "$1: expected $3, found ${2:-nothing}"
}
tokens="tokens: $PROJECT/data/tiny/calib.npy"

# ---- the same bits, whoever works; every method of the kind ----

job every "{ $tokens, windows: 8, length: 64 }" '[refine, varpro, bidup, projq, gptq-intrinsic]'
for ranks in 1 2 3; do
  good $ranks run "$WORK/every.yaml" --set output="$WORK/every-$ranks" --layers 1-1 --quiet
  datasets "$WORK/every-$ranks" >"$WORK/datasets-$ranks"
done
is 'datasets of refined codes' "$(grep -c ' "rounds" ' "$WORK/datasets-1")" 30 # five methods, three matrices, two variants
for other in 2 3; do
  cmp -s "$WORK/datasets-1" "$WORK/datasets-$other" ||
    fault "$other ranks: expected the datasets of one rank, found others: $(diff "$WORK/datasets-1" "$WORK/datasets-$other" | grep '^>' | awk '{ print $2, $3 }' | head -6)"
done
good 2 verify "$WORK/every.yaml" --set output="$WORK/every-1" --layers 1-1
grep -q ', 0 wrong\|; 0 wrong' "$WORK/out" || fault "verify: expected nothing wrong, found: $(cat "$WORK/out")"

# ---- which ranks have codes of their own ----

file=$WORK/every-1/solutions/refine-b2-g32-refine_rounds_3+2/layer-001.h5
[ -e "$file" ] || file=$(ls "$WORK"/every-1/solutions/refine-*/layer-001.h5)
is 'spread: variants' "$(attribute "$file" /mlp.down_proj ranks)" 2,16 # 4 is not above twice 2
is 'spread: extends' "$(attribute "$file" /mlp.down_proj extends)" 1
is 'columns of the smaller adapter' "$(h5dump -H -d /mlp.down_proj/rank-2/lora_A "$file" | sed -n 's/.*SIMPLE { ( \([0-9]*\), .*/\1/p')" 15

# the other rules beside it: what spread has is taken over, adapters of more or fewer columns alone are their own
job rules "{ $tokens, windows: 8, length: 64 }" refine 'refine_ranks: [each, spread, smallest]'
good 2 run "$WORK/rules.yaml" --layers 1-1 --quiet
good 1 verify "$WORK/rules.yaml" --layers 1-1
good 1 report "$WORK/rules.yaml" --json
python3 - "$WORK/out" <<'P' || fault "the report of three rules is not as expected"
import json, sys
found = {}
for s in json.load(open(sys.argv[1]))["settings"]:
    rule = next((r for r in ("each", "smallest") if s["name"].endswith(r)), "spread")
    found[rule] = s["variants"], s["matrices"]["all"]["relative_loss"], s["matrices"]["all"]["adapter_size"]
assert {r: f[0] for r, f in found.items()} == {"each": [16, 2, 4, 16], "spread": [16, 2, 2, 16], "smallest": [2, 2, 2, 2]}, found
each, spread, smallest = (found[r][1] for r in ("each", "spread", "smallest"))
assert each[1] == spread[1] == smallest[1], "rank 2 is the same codes under every rule"
assert each[3] == spread[3] and each[2] < spread[2] < spread[1], (each, spread)
assert abs(spread[2] - smallest[2]) <= 1e-6 * spread[2] and smallest[3] < smallest[2], "more columns lose less"
assert all(0 < f[2] < 2 for f in found.values()), found
P

# ---- report, eval, export ----

job all "{ $tokens, windows: 8, length: 64 }" refine
good 2 run "$WORK/all.yaml" --quiet
good 1 report "$WORK/all.yaml"
grep -q 'codes of r=2 serve r=4, too' "$WORK/out" || fault "report: expected a line that says which codes serve rank 4, found: $(cat "$WORK/out")"
grep -q 'adapter at r=16: 0\.[0-9]* of W; the codes were made for it: Q without it is useless' "$WORK/out" || fault "report: expected the adapter's size"
grep -q 'warning: few calibration tokens a column: mlp_out 1.33;' "$WORK/out" || fault "report: expected a warning of few tokens, found: $(head -5 "$WORK/out")"
good 2 eval "$WORK/all.yaml" --rank 1,2,4,9,16 --quiet
is 'points of eval' "$(grep -c '^  \(base\|r=\)' "$WORK/out")" 6
rc=0
on 1 eval "$WORK/all.yaml" --rank 17 --quiet >/dev/null 2>"$WORK/err" || rc=$?
is 'eval at a rank beyond the largest: exit code' $rc 2
good 1 plan "$WORK/all.yaml" --set output="$WORK/none"
grep -q '^codes refined for a rank  *36  *36  *0  *0$' "$WORK/out" || fault "plan: expected 36 refined matrices, found: $(cat "$WORK/out")"
for rank in 1 2 4 16; do
  for to in gptq dense; do
    good 1 export "$WORK/all.yaml" --rank $rank --to $to --out "$WORK/export-$to-$rank" --quiet
    good 1 verify "$WORK/export-$to-$rank"
    grep -q 'Not to be used alone' "$WORK/export-$to-$rank/base/README.md" || fault "export --rank $rank --to $to: expected the card to say what the base is not"
  done
done
grep -q 'made for an adapter of another rank' "$WORK/export-gptq-4/adapter/README.md" || fault "export: expected the card to say whose codes rank 4 has"
grep -q 'made for an adapter of another rank' "$WORK/export-gptq-16/adapter/README.md" && fault "export: rank 16 has codes of its own"
base_of() { sed -n 's/.*"base_fingerprint": "\([0-9a-f]*\)".*/\1/p' "$1/base/cloqwork.json" | head -1; }
is 'the base of rank 4' "$(base_of "$WORK/export-gptq-4")" "$(base_of "$WORK/export-gptq-2")"
[ "$(base_of "$WORK/export-gptq-16")" != "$(base_of "$WORK/export-gptq-2")" ] || fault "export: rank 16: expected another base than rank 2's"

# ---- killed, run again; further ranks ----

datasets "$WORK/all" >"$WORK/expected"
for after in 1 3; do
  "$MPIRUN" -n 2 "$CLOQWORK" run "$WORK/all.yaml" --quiet --set output="$WORK/killed" >/dev/null 2>&1 </dev/null &
  launcher=$!
  sleep $after
  for victim in $(pgrep -P "$launcher"); do kill -9 "$victim" 2>/dev/null; done
  wait "$launcher" 2>/dev/null
done
good 2 run "$WORK/all.yaml" --quiet --set output="$WORK/killed"
datasets "$WORK/killed" | cmp -s - "$WORK/expected" || fault "after a kill: datasets differ from the undisturbed run"
no_temporaries "$WORK/killed"

before=$(wc -l <"$WORK/all/metrics.jsonl")
good 2 run "$WORK/all.yaml" --quiet --set 'sweep.rank=[2,16]' # codes for 2 and 16 are there
good 2 run "$WORK/all.yaml" --quiet --set 'sweep.rank=[2,3,16]'
is 'lines of metrics' "$(wc -l <"$WORK/all/metrics.jsonl")" "$before"
rc=0
on 1 run "$WORK/all.yaml" --quiet --set 'sweep.rank=[2,5,16]' >/dev/null 2>"$WORK/err" || rc=$?
is 'another variant in a finished run: exit code' $rc 2
grep -q 'variants: expected 2,5,16, found 2,16' "$WORK/err" || fault "another variant: expected a line that names the variants, found: $(cat "$WORK/err")"

# ---- fewer tokens than columns; a record that is not the solution's ----

job few "{ $tokens, windows: 3, length: 32, seed: 1 }" '[refine, varpro]'
good 2 run "$WORK/few.yaml" --layers 1-1
grep -q 'solve: warning: few calibration tokens a column: attn_in 0.75, mlp_in 0.75, mlp_out 0.25;' "$WORK/err" || fault "96 tokens: expected one warning, found: $(grep warning "$WORK/err")"
good 2 verify "$WORK/few.yaml" --layers 1-1
finish

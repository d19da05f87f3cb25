#!/usr/bin/env bash
# cloqwork eval: the same numbers on any number of ranks and teams and in any batches; what is there is not computed again; stops and goes
# on; every kind of bad input. That the numbers are right: conformance.eval.
. "$(dirname "$0")/common.sh"
command -v python3 >/dev/null || exit 77

small_job "$WORK/job.yaml" "$WORK/run"
sed -i 's/heldout: .*/heldout: { tokens: "'"${PROJECT//\//\\/}"'\/data\/tiny\/heldout.npy", windows: 21, length: 150 }/; s/\[2, 4\]/[2, 8]/' "$WORK/job.yaml"
on 2 run "$WORK/job.yaml" --quiet >/dev/null 2>"$WORK/err" || fault "run ended with $?: $(cat "$WORK/err")"

# eval RANKS ARGS...: from nothing; the JSON to $WORK/json
evaluate() {
  local ranks=$1
  shift
  on "$ranks" eval "$WORK/job.yaml" --json "$@" >"$WORK/json" 2>"$WORK/err" || fault "eval $* on $ranks ranks ended with $?: $(cat "$WORK/err")"
}
fresh() {
  rm -rf "$WORK/run/eval"
  evaluate "$@"
}
same() { cmp -s "$WORK/first.json" "$WORK/json" || fault "$1: other numbers: $(diff "$WORK/first.json" "$WORK/json" | head -5)"; }

fresh 1
cp "$WORK/json" "$WORK/first.json"
python3 - "$WORK" <<'P' || fault "the numbers"
import json, math, sys
work = sys.argv[1]
e = json.load(open(work + "/first.json"))
o = e["original"]
keys = {"rank", "perplexity", "nll", "nll_se", "nll_minus_original", "nll_minus_original_se", "kl", "kl_se", "top1_agreement", "top1_agreement_se", "tokens"}
assert set(o) == keys and o["rank"] is None and o["kl"] == 0 and o["kl_se"] == 0 and o["top1_agreement"] == 1 and o["nll_minus_original"] == 0
assert o["tokens"] == 21 * 149 and 1 < o["perplexity"] < 256 and math.isclose(o["perplexity"], math.exp(o["nll"]), rel_tol=1e-12)
two, eight = [s["points"] for s in sorted(e["settings"], key=lambda s: s["name"])]
assert [p["rank"] for p in two] == [p["rank"] for p in eight] == [0, 4, 16]
assert all(set(p) == keys and math.isclose(p["nll_minus_original"], p["nll"] - o["nll"], abs_tol=1e-12) for p in two + eight)
assert two[0]["kl"] > two[1]["kl"] > two[2]["kl"] > 10 * eight[0]["kl"] > 0 and eight[0]["kl"] < 1e-4 and eight[0]["top1_agreement"] > 0.99
for name, points in [("original", [o])] + [(s["name"], s["points"]) for s in e["settings"]]:
    f = json.load(open(f"{work}/run/eval/{name}.json"))
    assert f["points"] == points and f["windows"] == 21 and f["length"] == 150 and f["model_fingerprint"] == e["model_fingerprint"], name
P
fresh 2 && same "two ranks"
fresh 3 && same "three ranks"
fresh 3 --set parallel.team=2 && same "two teams"
fresh 2 --set parallel.team=1 && same "a rank per team"
# long windows are cut, their parts dealt to the ranks of a team
cut=(--set eval.length=700 --set eval.windows=4)
fresh 1 "${cut[@]}"
mv "$WORK/json" "$WORK/cut.json"
for way in "2 parallel.team=2" "3 parallel.team=3" "3 parallel.team=2"; do
  fresh "${way% *}" "${cut[@]}" --set "${way#* }"
  cmp -s "$WORK/cut.json" "$WORK/json" || fault "windows of 700 tokens, $way: other numbers: $(diff "$WORK/cut.json" "$WORK/json" | head -5)"
done
# fewer windows than teams
fresh 1 --set eval.windows=1
mv "$WORK/json" "$WORK/cut.json"
fresh 3 --set eval.windows=1 --set parallel.team=1
cmp -s "$WORK/cut.json" "$WORK/json" || fault "one window and three teams: other numbers: $(diff "$WORK/cut.json" "$WORK/json" | head -5)"
# batches: as little memory as one variant takes
on 2 eval "$WORK/job.yaml" --set parallel.memory_per_node=0.002 --rank 5 >/dev/null 2>"$WORK/err" && fault "0.002 GiB: expected a refusal"
least=$(sed -n 's/.*expected at least \([0-9.]*\) GiB.*/\1/p' "$WORK/err")
fresh 2 --set parallel.memory_per_node="$(awk -v g="$least" 'BEGIN { print 1.03 * g }')" && same "batches"
[ "$(grep -c '"unit":"eval/' "$WORK/run/metrics.jsonl")" -ge 7 ] || fault "expected a line of metrics for every batch"
at_a_time=$(sed -n 's/.*tokens, \([0-9]*\) at a time.*/\1/p' "$WORK/err")
[ "${at_a_time:-9}" -lt 6 ] || fault "expected several batches, found $at_a_time of 6 points at a time"

# again: nothing is computed; a further rank: that alone; its numbers are its own
evaluate 2 && same "again"
grep -q 'all 6 points are there' "$WORK/err" || fault "expected nothing to do: $(cat "$WORK/err")"
evaluate 2 --rank 8,4 --settings '*b2*'
grep -q '1 of 3 points to do' "$WORK/err" || fault "expected one point to do: $(cat "$WORK/err")"
cp "$WORK/json" "$WORK/eight.json"
fresh 1 --rank 8 --settings '*b2*'
python3 - "$WORK" <<'P' || fault "rank 8"
import json, sys
a, b = (json.load(open(f"{sys.argv[1]}/{n}"))["settings"][0]["points"] for n in ("eight.json", "json"))
assert [p["rank"] for p in a] == [0, 4, 8] and [p["rank"] for p in b] == [0, 8] and b == [a[0], a[2]]
P
# another length: computed again, and said
evaluate 2 --set eval.length=64
grep -q 'made from something else (.*): evaluated again' "$WORK/err" || fault "expected a word on other tokens: $(cat "$WORK/err")"

# stops, and goes on
rm -rf "$WORK/run/eval"
on 2 eval "$WORK/job.yaml" --max-hours 0.0000001 --quiet >/dev/null 2>"$WORK/err"
rc=$?
[ $rc -eq 75 ] || fault "--max-hours: expected code 75, found $rc: $(cat "$WORK/err")"
[ -z "$(find "$WORK/run/eval" -name '*.json*' 2>/dev/null)" ] || fault "a result of a stopped evaluation"
evaluate 2 && same "after a stop"
on 1 report "$WORK/job.yaml" --json >"$WORK/report.json" || fault "report ended with $?"
on 1 report "$WORK/run" >"$WORK/table" || fault "report ended with $?"
grep -q 'KL to original' "$WORK/table" || fault "expected KL in the report"
python3 - "$WORK" <<'P' || fault "the report's numbers"
import json, math, sys
r, e = (json.load(open(f"{sys.argv[1]}/{n}")) for n in ("report.json", "first.json"))
def same(a, b):
    return len(a) == len(b) and all(x.keys() == y.keys() and all(x[k] == y[k] or math.isclose(x[k], y[k], rel_tol=1e-9) for k in x) for x, y in zip(a, b))
assert same(r["eval"]["points"], [e["original"]])
points = {s["name"]: s["points"] for s in e["settings"]}
assert len(points) == len(r["settings"]) == 2 and all(same(s["eval"]["points"], points[s["name"]]) for s in r["settings"])
P

# refuse CODE PATTERN ARGS...: one line, on 1 and on 3 ranks, and the results that are there stay
refuse() {
  local code=$1 pattern=$2 ranks rc
  shift 2
  for ranks in 1 3; do
    rc=0
    on "$ranks" eval "$@" --quiet >"$WORK/stdout" 2>"$WORK/stderr" || rc=$?
    [ "$rc" -eq "$code" ] || fault "$* on $ranks ranks: expected code $code, found $rc: $(head -c 600 "$WORK/stderr")"
    [ "$(grep -c '^cloqwork: ' "$WORK/stderr")" -eq 1 ] && grep -qE "$pattern" "$WORK/stderr" ||
      fault "$*: expected one line with '$pattern', found: $(head -c 600 "$WORK/stderr")"
  done
}
job=$WORK/job.yaml
refuse 2 'rank.*expected at most 16.*found 64' "$job" --rank 8,64
refuse 2 'rank.*8;16' "$job" --rank '8;16'
refuse 2 'rank.*0' "$job" --rank 0
refuse 2 'settings .*b7.*b2' "$job" --settings '*b7*'
refuse 2 'layers' "$job" --layers 0-3
refuse 2 'eval.*length' "$job" --set eval.length=1
refuse 2 'eval.*windows.*random' "$job" --set eval.tokens="$PROJECT/data/tiny/heldout.npy" --set eval.sampling=random
refuse 2 'eval.token.*tokens' "$job" --set eval.token=x
refuse 3 'missing.npy' "$job" --set eval.tokens="$WORK/missing.npy"
refuse 3 'expected 3 windows of 300000' "$job" --set eval.windows=3 --set eval.length=300000
grep -v heldout "$job" >"$WORK/no_tokens.yaml"
refuse 2 'neither an eval nor a heldout section' "$WORK/no_tokens.yaml"
refuse 3 'solutions: expected a setting with all 6 layers solved' "$job" --set output="$WORK/elsewhere"
python3 - "$WORK" <<'P'
import struct, sys
head = b"{'descr': '<u2', 'fortran_order': False, 'shape': (4000,), }".ljust(117) + b"\n"
open(sys.argv[1] + "/outside.npy", "wb").write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + struct.pack("<4000H", *([5] * 3999 + [256])))
P
refuse 3 'outside.npy.*position 3999.*vocabulary.*256' "$job" --set eval.tokens="$WORK/outside.npy"
mkdir "$WORK/other"
cp "$PROJECT"/data/tiny/*.json "$WORK/other/"
# a final norm that makes the logits overflow: nothing that calibration or the solver looks at
python3 - "$PROJECT/data/tiny/model.safetensors" "$WORK/other/model.safetensors" <<'P'
import json, struct, sys
raw = bytearray(open(sys.argv[1], "rb").read())
n = struct.unpack("<Q", raw[:8])[0]
begin, end = json.loads(raw[8:8 + n])["model.norm.weight"]["data_offsets"]
raw[8 + n + begin:8 + n + end] = b"\x60\x7f" * ((end - begin) // 2)
open(sys.argv[2], "wb").write(raw)
P
refuse 3 'layer-000.h5.*another checkpoint' "$job" --set model="$WORK/other"
on 2 run "$job" --set model="$WORK/other" --set output="$WORK/overflow" --set sweep.bits=8 --quiet >/dev/null 2>&1 || fault "run of the model that overflows ended with $?"
refuse 5 'original: window 0: expected finite logits' "$job" --set model="$WORK/other" --set output="$WORK/overflow" --set sweep.bits=8
[ -z "$(find "$WORK/overflow/eval" -name '*.json*' 2>/dev/null)" ] || fault "a result of a model that overflows"
evaluate 1 && same "after all refusals"
no_temporaries "$WORK/run"
finish

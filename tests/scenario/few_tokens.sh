#!/usr/bin/env bash
# Fewer calibration tokens than columns: a singular Gram. One warning per kind of input; everything stays finite, and optimal for these tokens:
# verify holds every loss against the tail of the spectrum. Tokens added later (merge) end these; with fewer than 4 a
# column one stays, in the log and in the report. (attn_in of layer 0 is as singular as the text has few distinct bytes.)
. "$(dirname "$0")/common.sh"
command -v python3 >/dev/null || exit 77

# job NAME CALIBRATION
job() {
  cat >"$WORK/$1.yaml" <<J
model: $PROJECT/data/tiny
output: $WORK/$1
calibration: $2
heldout: { tokens: $PROJECT/data/tiny/heldout.npy, windows: 4, length: 128 }
sweep: { method: [cloq, cloq-nomagr], bits: [2], group: [64], rank: [4, 16] }
options: { magr_K: 10 }
J
}
job few "{ tokens: $PROJECT/data/tiny/calib.npy, windows: 3, length: 32, seed: 1 }"
on 2 run "$WORK/few.yaml" >"$WORK/out" 2>"$WORK/err" || fault "96 tokens: the run ended with $?: $(cat "$WORK/err")"
for line in 'attn_in of layer 0: 96 tokens for 128 columns: numerical rank [1-9][0-9]; the solution is still' 'attn_out of layer 0: 96 tokens for 128' \
  'mlp_in of layer 0: 96 tokens for 128' 'mlp_out of layer 0: 96 tokens for 384 columns: numerical rank 9[0-6]'; do
  [ "$(grep -c "warning: $line" "$WORK/err")" -eq 1 ] || fault "expected one warning '$line', found: $(grep warning "$WORK/err")"
done
[ "$(grep -c 'warning: .*numerical rank' "$WORK/err")" -eq 4 ] || fault "expected four warnings, found: $(grep warning "$WORK/err")"
few='few calibration tokens a column: attn_in 0.75, attn_out 0.75, mlp_in 0.75, mlp_out 0.25;'
[ "$(grep -c "warning: $few" "$WORK/err")" -eq 1 ] || fault "expected one warning of few tokens, found: $(grep warning "$WORK/err")"
[ "$(grep -c "warning: $few" "$WORK/out")" -eq 1 ] || fault "expected the report to warn, too, found: $(head -3 "$WORK/out")"
on 3 verify "$WORK/few" >"$WORK/out" 2>&1 || fault "96 tokens: verify ended with $?: $(cat "$WORK/out")"
on 1 report "$WORK/few" --json >"$WORK/report.json" || fault "no report: $?"
grep -qi 'nan\|inf' "$WORK/report.json" && fault "the report holds numbers that are not finite"

# one token: a Gram of rank one
job one "{ tokens: $PROJECT/data/tiny/calib.npy, windows: 1, length: 1, seed: 2 }"
on 2 run "$WORK/one.yaml" --quiet >"$WORK/out" 2>"$WORK/err" || fault "one token: the run ended with $?: $(cat "$WORK/err")"
on 1 verify "$WORK/one" >"$WORK/out" 2>&1 || fault "one token: verify ended with $?: $(cat "$WORK/out")"

# more tokens later: the sum is no longer singular
job more "{ tokens: $PROJECT/data/tiny/calib.npy, windows: 16, length: 32, seed: 5 }"
on 2 calibrate "$WORK/more.yaml" --quiet || fault "calibrate ended with $?"
on 2 merge "$WORK/few.yaml" --set output="$WORK/both" --from "$WORK/few" --from "$WORK/more" --quiet || fault "merge ended with $?"
on 2 run "$WORK/both" >"$WORK/out" 2>"$WORK/err" || fault "after the merge the run ended with $?: $(cat "$WORK/err")"
grep -q 'numerical rank' "$WORK/err" && fault "expected no singular Gram with 608 tokens, found: $(grep warning "$WORK/err")"
grep -q 'warning: few calibration tokens a column: mlp_out 1.58;' "$WORK/err" || fault "608 tokens: expected one warning, found: $(grep warning "$WORK/err")"
finish

#!/usr/bin/env bash
# Teams side by side: Grams have the same bits for any number of teams and ranks, with streams in memory or in a scratch file, after a stop, a kill,
# and after a failure of any team, which ends all of them with one line.
. "$(dirname "$0")/common.sh"
command -v h5dump >/dev/null || exit 77

cat >"$WORK/job.yaml" <<J
model: $PROJECT/data/tiny
output: $WORK/one
calibration: { tokens: $PROJECT/data/tiny/calib.npy, windows: 22, length: 1000 }
heldout: { tokens: $PROJECT/data/tiny/heldout.npy, windows: 3, length: 300, sampling: sequential }
sweep: { method: cloq-nomagr, bits: 4, group: 64, rank: 8 }
J
on 1 calibrate "$WORK/job.yaml" --quiet || fault "one team of one rank ended with $?"
datasets "$WORK/one" >"$WORK/expected"
[ "$(wc -l <"$WORK/expected")" -gt 100 ] || fault "expected hundreds of datasets, found $(wc -l <"$WORK/expected")"

# again RANKS WHAT ARGS...: to the end, with the bytes of one team
again() {
  local rc=0
  on "$1" calibrate "$WORK/job.yaml" --set output="$WORK/other" --quiet "${@:3}" 2>"$WORK/err" || rc=$?
  [ $rc -eq 0 ] || fault "$2 ended with $rc: $(cat "$WORK/err")"
  datasets "$WORK/other" | cmp -s - "$WORK/expected" || fault "$2: datasets differ from those of one rank"
  no_temporaries "$WORK/other"
  rm -rf "$WORK/other"
}

# ranks and ranks of a team: 2 x 1, 2 x 2, 3 x 2, teams of 2 and 1
for shape in 2:1 4:2 6:2 3:2; do again "${shape%:*}" "$shape" --set parallel.team="${shape#*:}"; done
mkdir "$WORK/scratch"
again 3 "scratch file" --set parallel.team=1 --set parallel.scratch="$WORK/scratch" --set parallel.checkpoint_minutes=0
[ -z "$(ls -A "$WORK/scratch")" ] || fault "the scratch folder is not empty"
rc=0
on 2 calibrate "$WORK/job.yaml" --set output="$WORK/other" --set parallel.scratch="$WORK/nowhere" --quiet 2>"$WORK/err" || rc=$?
[ $rc -eq 6 ] && [ "$(grep -c '^cloqwork:' "$WORK/err")" -eq 1 ] || fault "a scratch folder that is not there: expected code 6 and one line, found $rc: $(cat "$WORK/err")"
rm -rf "$WORK/other"

# little memory: the streams, 0.01 GiB of the need, leave it
on 2 calibrate "$WORK/job.yaml" --set output="$WORK/other" --set parallel.memory_per_node=0.02 2>&1 | grep -q "streams lie in a file in $WORK/other" ||
  fault "streams stayed in memory where a node has 0.02 GiB"
rm -rf "$WORK/other"

# a signal: streams are saved by whichever team would begin next; another number of teams goes on from there
for signal in USR1 KILL; do
  rc=0
  "$MPIRUN" -n 3 "$CLOQWORK" calibrate "$WORK/job.yaml" --set output="$WORK/other" --set parallel.team=1 --quiet >/dev/null 2>"$WORK/err" </dev/null &
  launcher=$!
  for _ in $(seq 600); do
    [ -e "$WORK/other/grams/layer-001.h5" ] && break
    sleep 0.01
  done
  victims=$(pgrep -f "^[^ ]*cloqwork calibrate $WORK/job.yaml .*$WORK/other")
  [ $signal = KILL ] && victims=$(shuf -n 1 <<<"$victims")
  kill -$signal $victims 2>/dev/null
  wait $launcher || rc=$?
  case $signal:$rc in
  USR1:75) [ -e "$WORK/other/grams/streams.state" ] || fault "USR1: no streams were saved" ;;
  KILL:[1-9]*) ;;
  *:0) echo "$signal came after the end" ;;
  *) fault "$signal: ended with $rc: $(cat "$WORK/err")" ;;
  esac
  again 4 "after $signal" --set parallel.team=2
done

# a fault in any team, between the first layer and the last: all teams end, with one line
RANDOM=${SEED:-77}
total=$(CLOQWORK_FAULT=0:0 on 3 calibrate "$WORK/job.yaml" --set output="$WORK/other" --set parallel.team=1 --quiet 2>&1 | sed -n "s/.*rank 0: \([0-9]*\) operations.*/\1/p")
[ "${total:-0}" -gt 1000 ] || fault "expected more than 1000 operations of a rank, found '$total'"
rm -rf "$WORK/other"
ended=0
for rank in 0 1 2 0 1 2; do
  rm -rf "$WORK/other"
  at=$((total / 4 + RANDOM % (total * 3 / 5))) rc=0
  LIMIT=40 CLOQWORK_FAULT=$rank:$at on 3 calibrate "$WORK/job.yaml" --set output="$WORK/other" --set parallel.team=1 --set parallel.checkpoint_minutes=0 --quiet 2>"$WORK/err" || rc=$?
  case $rc in
  0) ;; # an operation that is forgiven
  3 | 4 | 6)
    ended=$((ended + 1))
    [ "$(grep -c '^cloqwork:' "$WORK/err")" -eq 1 ] || fault "fault $rank:$at: expected one line, found: $(cat "$WORK/err")"
    ;;
  *) fault "fault $rank:$at: ended with $rc: $(cat "$WORK/err")" ;;
  esac
done
[ $ended -ge 3 ] || fault "expected at least 3 of 6 faults to end a run, found $ended"
again 2 "after a fault"
finish

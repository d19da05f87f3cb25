#!/usr/bin/env bash
# Killed at random moments, stopped by signals, run again: always the bytes of an undisturbed run, and nothing finished is done twice.
. "$(dirname "$0")/common.sh"
command -v h5dump >/dev/null || exit 77
KILLS=${KILLS:-30}

small_job "$WORK/job.yaml" "$WORK/calm"
on 2 run "$WORK/job.yaml" --quiet >/dev/null || fault "the undisturbed run ended with $?"
datasets "$WORK/calm" >"$WORK/expected"
[ "$(wc -l <"$WORK/expected")" -gt 100 ] || fault "expected hundreds of datasets, found $(wc -l <"$WORK/expected")"

start=$(date +%s%N)
rm -rf "$WORK/timing"
on 2 run "$WORK/job.yaml" --quiet --set output="$WORK/timing" >/dev/null
span=$((($(date +%s%N) - start) / 1000000))

# units_twice RUN: units that metrics.jsonl names more than once
units_twice() { sed -n 's/.*"unit":"\([^"]*\)".*/\1/p' "$1/metrics.jsonl" 2>/dev/null | sort | uniq -d; }

# to_the_end WHAT: the run that was killed ends well, with the bytes of the undisturbed one and nothing done twice
to_the_end() {
  local rc=0
  on 2 run "$WORK/job.yaml" --quiet --set output="$WORK/killed" >/dev/null 2>"$WORK/err" || rc=$?
  [ $rc -eq 0 ] || fault "$1: the run after it ended with $rc: $(cat "$WORK/err")"
  datasets "$WORK/killed" | cmp -s - "$WORK/expected" || fault "$1: datasets differ from the undisturbed run"
  no_temporaries "$WORK/killed"
  [ -z "$(units_twice "$WORK/killed")" ] || fault "$1: done twice: $(units_twice "$WORK/killed" | head -3)"
  rm -rf "$WORK/killed"
}

layer_files() { find "$1" -name 'layer-*.h5' 2>/dev/null; }
count_files() { layer_files "$1" | wc -l; }

# KILLS kills that found a running rank, up to five in a row on one run, so that restarts are restarted too. The moment is drawn from the files
# that are still to come and lies at random about the time that one takes after it, so that how busy the machine is changes nothing; the first
# of them begins with start-up. A run that was over before the kill came does not count, and is checked like the others.
RANDOM=${SEED:-4711}
rm -rf "$WORK/killed"
tries=0 hits=0 files=$(count_files "$WORK/calm") startup=$((span / 3))
while [ "$hits" -lt "$KILLS" ] && [ "$tries" -lt $((6 * KILLS)) ]; do
  tries=$((tries + 1))
  there=$(count_files "$WORK/killed")
  file=$((there + RANDOM % (files - there + 1)))
  after=$((RANDOM % ((file > there ? 2 * span / files : startup) + 1)))
  "$MPIRUN" -n 2 "$CLOQWORK" run "$WORK/job.yaml" --quiet --set output="$WORK/killed" >/dev/null 2>&1 </dev/null &
  launcher=$!
  while [ "$(count_files "$WORK/killed")" -lt "$file" ] && kill -0 "$launcher" 2>/dev/null; do sleep 0.01; done
  sleep "$(printf '%d.%03d' $((after / 1000)) $((after % 1000)))"
  victim=$(pgrep -f "^[^ ]*cloqwork run $WORK/job.yaml .*$WORK/killed" | shuf -n 1 --random-source=<(yes "$tries"))
  hit=
  [ -n "$victim" ] && kill -9 "$victim" 2>/dev/null && hit=1
  wait "$launcher" 2>/dev/null
  for f in $(layer_files "$WORK/killed"); do
    h5dump -A "$f" >/dev/null 2>&1 || fault "kill $hits, $after ms after file $file: $f has its final name and cannot be opened"
  done
  [ -n "$hit" ] && hits=$((hits + 1))
  if [ -z "$hit" ] || [ $((hits % 5)) -eq 0 ]; then to_the_end "kill $hits, $after ms after file $file"; fi
done
[ -d "$WORK/killed" ] && to_the_end "the last kill"
echo "SIGKILL: $hits kills of a running rank in $tries runs, every one checked to the end"
[ "$hits" -eq "$KILLS" ] || fault "expected $KILLS kills that found a running rank, found $hits in $tries runs"

# stop SIGNAL WAIT: a run that gets the signal on every rank WAIT seconds after its first layer was calibrated; its exit code. On a fast machine
# the signal may come after the end (code 0): then once more, sooner.
stop() {
  local launcher rc
  for wait in "$2" 0 0 0 0; do
    rm -rf "$WORK/stopped"
    "$MPIRUN" -n 2 "$CLOQWORK" run "$WORK/job.yaml" --quiet --set output="$WORK/stopped" >/dev/null 2>"$WORK/err" </dev/null &
    launcher=$!
    for _ in $(seq 400); do
      [ -e "$WORK/stopped/grams/layer-000.h5" ] && break
      sleep 0.02
    done
    sleep "$wait"
    pkill "-$1" -f "^[^ ]*cloqwork run $WORK/job.yaml .*$WORK/stopped"
    rc=0
    wait "$launcher" || rc=$?
    [ $rc -eq 0 ] || break
  done
  return $rc
}

# SIGTERM and SIGUSR1, SIGNALS times each: code 75, then the same result
for n in $(seq $((2 * ${SIGNALS:-1}))); do
  rc=0 signal=USR1 after=$((RANDOM % (span / 2 + 1)))
  [ $((n % 2)) -eq 1 ] || signal=TERM
  stop $signal "$(printf '%d.%03d' $((after / 1000)) $((after % 1000)))" || rc=$?
  [ $rc -eq 75 ] || fault "$signal: expected code 75, found $rc: $(cat "$WORK/err")"
  on 1 status "$WORK/job.yaml" --set output="$WORK/stopped" --complete >/dev/null 2>&1 && fault "$signal: status calls a stopped run complete"
  on 2 run "$WORK/job.yaml" --quiet --set output="$WORK/stopped" >/dev/null 2>"$WORK/err" || fault "$signal: the run after it ended with $?: $(cat "$WORK/err")"
  datasets "$WORK/stopped" | cmp -s - "$WORK/expected" || fault "$signal: datasets differ from the undisturbed run"
  [ -z "$(units_twice "$WORK/stopped")" ] || fault "$signal: done twice: $(units_twice "$WORK/stopped" | head -3)"
  on 1 status "$WORK/job.yaml" --set output="$WORK/stopped" --complete >/dev/null 2>&1 || fault "$signal: status does not call the finished run complete"
done

# again on a finished run: nothing is computed
before=$(wc -l <"$WORK/calm/metrics.jsonl")
on 2 run "$WORK/job.yaml" --quiet >/dev/null || fault "the run on a finished run ended with $?"
[ "$(wc -l <"$WORK/calm/metrics.jsonl")" -eq "$before" ] || fault "a finished run computed something again"

# a smaller LoRA rank on a finished run costs nothing and is shown
on 2 run "$WORK/job.yaml" --quiet --set 'sweep.rank=[4,9,16]' >"$WORK/table" || fault "a further rank ended with $?"
[ "$(wc -l <"$WORK/calm/metrics.jsonl")" -eq "$before" ] || fault "a further rank computed something again"
grep -q ' r=9 ' "$WORK/table" || fault "a further rank is not in the table"

# other ranks: Grams to the bit, and solutions
for ranks in 1 3; do
  on $ranks run "$WORK/job.yaml" --quiet --set output="$WORK/other" >/dev/null || fault "$ranks ranks ended with $?"
  datasets "$WORK/other" | cmp -s - "$WORK/expected" || fault "$ranks ranks: datasets differ from those of 2: $(datasets "$WORK/other" | diff - "$WORK/expected" | head -4)"
  rm -rf "$WORK/other"
done
finish

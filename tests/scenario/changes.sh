#!/usr/bin/env bash
# The world changes while a job works: its folder cannot be written, another job begins at the same moment, the clock jumps, the checkpoint shrinks or
# is another one. One line and the right code, and afterwards the bytes of an undisturbed run.
. "$(dirname "$0")/common.sh"
command -v h5dump >/dev/null || exit 77

cp -r "$PROJECT/data/tiny" "$WORK/model"
small_job "$WORK/job.yaml" "$WORK/calm"
sed -i "s|^model: .*|model: $WORK/model|" "$WORK/job.yaml"
on 2 run "$WORK/job.yaml" --quiet >/dev/null || fault "the undisturbed run ended with $?"
datasets "$WORK/calm" >"$WORK/expected"

# one_line WHAT PATTERN: what standard error says
one_line() {
  [ "$(grep -c '^cloqwork: ' "$WORK/err")" -eq 1 ] && grep -q "$2" "$WORK/err" || fault "$1: expected one line with '$2', found: $(head -c 600 "$WORK/err")"
}
# as_calm WHAT OUTPUT: the run ends well, with the bytes of the undisturbed one
as_calm() {
  on 2 run "$WORK/job.yaml" --quiet --set output="$2" >/dev/null 2>"$WORK/err" || fault "$1: the run after it ended with $?: $(cat "$WORK/err")"
  datasets "$2" | cmp -s - "$WORK/expected" || fault "$1: datasets differ from the undisturbed run"
  no_temporaries "$2"
  rm -rf "$2"
}

# A folder that cannot be written: nothing new in it, but what is there can be read and verified.
read_only() {
  unshare -m sh -c 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"' sh "$WORK/calm" "$MPIRUN" -n 2 "$CLOQWORK" "$@" </dev/null >/dev/null 2>"$WORK/err"
}
if unshare -m true 2>/dev/null && read_only methods; then
  rc=0
  read_only run "$WORK/job.yaml" --quiet --set 'sweep.bits=[3]' || rc=$?
  [ $rc -eq 6 ] || fault "a read-only folder: expected code 6, found $rc"
  one_line "a read-only folder" 'Read-only file system'
  read_only verify "$WORK/job.yaml" --quiet || fault "verify in a read-only folder ended with $?: $(cat "$WORK/err")"
else
  echo "cannot mount: a read-only folder is not tried"
fi

# Two jobs begin on one directory at the same moment: one does the work, the other one is refused (or finds all done).
first=0 second=0
on 2 run "$WORK/job.yaml" --quiet --set output="$WORK/both" >/dev/null 2>"$WORK/one" &
launcher=$!
on 2 run "$WORK/job.yaml" --quiet --set output="$WORK/both" >/dev/null 2>"$WORK/two" || second=$?
wait $launcher || first=$?
case $first,$second in 0,6 | 6,0 | 0,0) ;; *) fault "two runs on one directory: expected codes 0 and 6, found $first and $second: $(cat "$WORK/one" "$WORK/two")" ;; esac
as_calm "two runs on one directory" "$WORK/both"

# The clock jumps, back two days and forward three, at every look: times are told wrongly, and that is all.
cc -shared -fPIC -o "$WORK/clock.so" -x c - <<'C' || fault "the clock cannot be built"
#include <sys/time.h>
#include <time.h>
static long jump(void) {
  static int looks;
  return looks++ % 2 ? 3 * 86400 : -2 * 86400;
}
time_t time(time_t *t) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  now.tv_sec += jump();
  if (t) *t = now.tv_sec;
  return now.tv_sec;
}
int gettimeofday(struct timeval *restrict t, void *restrict zone) {
  struct timespec now;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &now);
  *t = (struct timeval){now.tv_sec + jump(), now.tv_nsec / 1000};
  return 0;
}
C
rc=0
timeout -k 5 "${LIMIT:-120}" "$MPIRUN" -n 2 env LD_PRELOAD="$WORK/clock.so" "$CLOQWORK" run "$WORK/job.yaml" --quiet --set output="$WORK/jumped" \
  >/dev/null 2>"$WORK/err" </dev/null || rc=$?
[ $rc -eq 0 ] || fault "a clock that jumps: the run ended with $rc: $(cat "$WORK/err")"
on 1 status "$WORK/job.yaml" --set output="$WORK/jumped" --complete >/dev/null 2>&1 || fault "a clock that jumps: status ended with $?"
as_calm "a clock that jumps" "$WORK/jumped"

# The checkpoint shrinks while the job reads it, as a disk that fails would show: one line and code 6 on all ranks; made whole, the job goes on.
for _ in 1 2 3 4 5; do # on a fast machine it may come too late (code 0): then once more
  rm -rf "$WORK/cut"
  rc=0
  on 2 run "$WORK/job.yaml" --quiet --set output="$WORK/cut" >/dev/null 2>"$WORK/err" &
  launcher=$!
  for _ in $(seq 400); do
    [ -e "$WORK/cut/grams/layer-000.h5" ] && break
    sleep 0.02
  done
  truncate -s 100000 "$WORK/model/model.safetensors"
  wait $launcher || rc=$?
  cp "$PROJECT/data/tiny/model.safetensors" "$WORK/model/"
  [ $rc -eq 0 ] || break
done
[ $rc -eq 6 ] || fault "a checkpoint that shrinks: expected code 6, found $rc: $(cat "$WORK/err")"
grep -q '^cloqwork: .*mapped' "$WORK/err" || fault "a checkpoint that shrinks: found $(cat "$WORK/err")"
as_calm "a checkpoint that shrinks" "$WORK/cut"

# Another checkpoint between calibrate and solve, found by the samples that its fingerprint takes of every tensor: here in the last one's last number.
printf '\x01' | dd of="$WORK/model/model.safetensors" bs=1 seek=$(($(stat -c %s "$WORK/model/model.safetensors") - 2)) conv=notrunc status=none
cmp -s "$WORK/model/model.safetensors" "$PROJECT/data/tiny/model.safetensors" && fault "the checkpoint was not changed"
rc=0
on 2 solve "$WORK/job.yaml" --quiet --set 'sweep.bits=[3]' >/dev/null 2>"$WORK/err" || rc=$?
[ $rc -eq 2 ] || fault "another checkpoint between calibrate and solve: expected code 2, found $rc"
one_line "another checkpoint between calibrate and solve" 'model_fingerprint'
finish

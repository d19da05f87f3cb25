#!/usr/bin/env bash
# Jobs that solve other settings of one run directory side by side, as the elements of an array do, then collect: the bytes of one run.
# What would collide is refused: the same setting twice, the whole beside a setting, a setting beside the whole.
. "$(dirname "$0")/common.sh"
command -v h5dump >/dev/null || exit 77

small_job "$WORK/job.yaml" "$WORK/calm"
on 2 run "$WORK/job.yaml" --quiet >/dev/null || fault "the undisturbed run ended with $?"
datasets "$WORK/calm" >"$WORK/expected"

sed -i "s|^output:.*|output: $WORK/run|" "$WORK/job.yaml"
on 2 calibrate "$WORK/job.yaml" --quiet || fault "calibrate ended with $?"
for setting in cloq-b2-g64-magr_K_10 cloq-b4-g64-magr_K_10; do
  on 1 solve "$WORK/job.yaml" --quiet --settings $setting 2>"$WORK/$setting.err" &
  solvers[$!]=$setting
done
for job in "${!solvers[@]}"; do
  wait "$job" || fault "solve of ${solvers[$job]} beside another ended with $?: $(cat "$WORK/${solvers[$job]}.err")"
done
on 1 status "$WORK/job.yaml" --complete >/dev/null 2>&1 && fault "status calls a run without master file complete"
on 1 collect "$WORK/job.yaml" --quiet || fault "collect ended with $?"
on 1 status "$WORK/job.yaml" --complete >/dev/null || fault "status does not call the collected run complete"
datasets "$WORK/run" | cmp -s - "$WORK/expected" || fault "datasets differ from those of one run"
[ -z "$(find "$WORK/run" -name .lock)" ] || fault "locks left: $(find "$WORK/run" -name .lock)"

refuse() {
  local rc=0
  LIMIT=60 on 2 "$@" --quiet >/dev/null 2>"$WORK/err" || rc=$?
  [ "$rc" -eq 6 ] || fault "$*: expected code 6, found $rc: $(cat "$WORK/err")"
  grep -q 'no other job.*somebody' "$WORK/err" || fault "$*: expected the other job's name, found: $(cat "$WORK/err")"
}
held "$WORK/run/solutions/cloq-b2-g64-magr_K_10/.lock"
refuse solve "$WORK/job.yaml" --settings cloq-b2-g64-magr_K_10
refuse calibrate "$WORK/job.yaml"
refuse collect "$WORK/job.yaml" --set 'sweep.bits=[4]'
on 2 solve "$WORK/job.yaml" --quiet --settings cloq-b4-g64-magr_K_10 || fault "a taken setting stopped the solve of another: $?"
release
held "$WORK/run/.lock"
refuse solve "$WORK/job.yaml" --settings cloq-b4-g64-magr_K_10
(sleep 2 && release) & # a job that is only beginning is waited for
on 2 solve "$WORK/job.yaml" --quiet --settings cloq-b4-g64-magr_K_10 || fault "solve did not wait for a job that was beginning: $?"
finish

#!/usr/bin/env bash
# The sbatch files on a real Slurm: on 2 and 4 nodes, as the chain of submit.sh, through a time limit, a requeue, power cuts, a killed rank
# and a full disk. Always the bytes of an undisturbed run, and nothing that had finished is computed again.
. "$PROJECT/tests/scenario/common.sh"
. "$PROJECT/tests/slurm/cluster.sh"
command -v h5dump >/dev/null || skip "h5dump is not installed"
cluster_up
trap 'cluster_down; cleanup' EXIT

# The owner's home: scripts, program and model as he would have them. Ranks of one node meet in its /dev/shm, nodes meet over lo.
mkdir -p "$B/home"/{build,data,logs}
cp -r "$PROJECT/slurm" "$B/home/"
cp -r "$PROJECT/data/tiny" "$B/home/data/"
cp "$CLOQWORK" "$B/home/build/cloqwork"
export CLOQWORK=$B/home/build/cloqwork # the checkout may be closed to the owner
cat >"$B/home/job.yaml" <<J
model: data/tiny
output: undisturbed
calibration: { tokens: data/tiny/calib.npy, windows: 8, length: 256 }
heldout: { tokens: data/tiny/heldout.npy, windows: 4, length: 256 }
sweep:
  - { method: refine, bits: 2, group: 64, rank: 8, options: { refine_rounds: 3+2 } }
  - { method: cloq, bits: [2, 3], group: 64, rank: 8, options: { magr_K: 5 } }
J
UNITS=24 # lines of metrics.jsonl: 6 layers, of Grams and of 3 settings
chown -R nobody "$B/home"
cd "$B/home" || exit
on 1 run job.yaml --quiet >/dev/null || fault "the undisturbed run ended with $?"
datasets undisturbed >"$B/expected"
export OMPI_MCA_btl=vader,tcp,self OMPI_MCA_btl_tcp_if_include=lo OMPI_MCA_btl_vader_single_copy_mechanism=none
unset OMPI_ALLOW_RUN_AS_ROOT OMPI_ALLOW_RUN_AS_ROOT_CONFIRM OMPI_MCA_orte_tmpdir_base # as the owner has it

# job RUN SBATCH-OPTIONS...: a cloqwork.sbatch job on run directory RUN; its id
job() { as_owner sbatch --parsable --ntasks-per-node=1 "${@:2}" slurm/cloqwork.sbatch job.yaml --set output="$1" --quiet; }
of() { scontrol show job -o "$1" 2>/dev/null | head -n 1 | sed -n "s/.* $2=\([^ ]*\).*/\1/p"; }
log() { cat "$B"/home/logs/*-"$1".out; }
ranks() { pgrep -f "^[^ ]*build/cloqwork run .*output=$1 "; }

# until WHAT CONDITION...: waits for it, four minutes at most
until_true() {
  local what=$1 end=$((SECONDS + 240))
  shift
  until "$@"; do
    [ $SECONDS -lt $end ] || { fault "$what: waited 240 s in vain"; return 1; }
    sleep 0.1
  done
}
at_work() { compgen -G "$B/home/$1/solutions/*/layer-*.h5" >/dev/null; } # in the middle: some solutions are there, others not
came_back() { [ "$(of "$1" Restarts)" -ge 1 ]; }
is_over() { [[ $(of "$1" JobState) =~ ^(COMPLETED|FAILED|TIMEOUT|CANCELLED|NODE_FAIL|OUT_OF_MEMORY)$ ]]; }

# same WHAT RUN: complete, the bytes of the undisturbed run, nothing done twice, nothing left over
same() {
  local twice
  as_owner build/cloqwork status job.yaml --set output="$2" --complete >/dev/null 2>&1 || fault "$1: not complete"
  datasets "$2" | cmp -s - "$B/expected" || fault "$1: datasets differ from those of the undisturbed run"
  twice=$(sed -n 's/.*"unit":"\([^"]*\)".*/\1/p' "$2/metrics.jsonl" | sort | uniq -d)
  [ -z "$twice" ] || fault "$1: done twice: $twice"
  no_temporaries "$2"
  [ -z "$(find "$2" -name .lock)" ] || fault "$1: a lock is left"
}
# ends WHAT ID RUN: the job completes with the undisturbed run's result
ends() {
  local before=$failures
  until_true "$1" is_over "$2" || { log "$2"; return; }
  [ "$(of "$2" JobState)" = COMPLETED ] || { fault "$1: job ended as $(of "$2" JobState)"; log "$2"; }
  same "$1" "$3"
  [ "$failures" -gt "$before" ] || echo "$1: ok, Restarts=$(of "$2" Restarts), $(wc -l <"$3/metrics.jsonl") of $UNITS units noted, $SECONDS s"
}

nodes() {
  local id
  id=$(job "on$1" -N "$1")
  ends "$1 nodes" "$id" "on$1"
  [ "$(of "$id" NumNodes)" = "$1" ] || fault "$1 nodes: ran on $(of "$id" NumNodes)"
  [ "$(wc -l <"on$1/metrics.jsonl")" -eq $UNITS ] || fault "$1 nodes: expected $UNITS lines in metrics.jsonl"
}

interactive() {
  as_owner salloc -Q -N 2 --ntasks-per-node=1 srun --mpi=pmix build/cloqwork run job.yaml --set output=salloc --quiet >/dev/null || fault "salloc: $?"
  same salloc salloc
}

chain() {
  local lines ids
  export CLOQWORK_MPIRUN="$MPIRUN --oversubscribe --bind-to none"
  lines=$(as_owner slurm/submit.sh --dry-run job.yaml --set output=chain) || fault "submit.sh --dry-run: $?"
  [ "$(grep -c '^[a-z]*=$(sbatch --parsable .*\.sbatch .*job.yaml --set output=chain)$' <<<"$lines")" -eq 3 ] ||
    fault "submit.sh --dry-run: expected three sbatch lines, found: $lines"
  [ -z "$(squeue -h)" ] || fault "submit.sh --dry-run submitted something"
  ids=$(as_owner slurm/submit.sh job.yaml --set output=chain | awk '/^(calibrate|solve|collect) / { printf "%s ", $2 }') || fault "submit.sh: $?"
  read -r calibrate sweep collect <<<"$ids"
  ends chain "$collect" chain
  [ "$(wc -l <chain/metrics.jsonl)" -eq $UNITS ] || fault "chain: expected $UNITS lines in metrics.jsonl"
  [ "$(of "$calibrate" JobState)" = COMPLETED ] || fault "chain: calibration ended as $(of "$calibrate" JobState): $(log "$calibrate")"
  [ "$(ls logs/cloqwork-sweep-"$sweep"_*.out | wc -l)" -eq 3 ] || fault "chain: expected three elements"
  grep -q 'verified' "logs/cloqwork-collect-$collect.out" || fault "chain: not verified: $(log "$collect")"
  grep -q 'relative loss' "logs/cloqwork-collect-$collect.out" || fault "chain: no report: $(log "$collect")"
}

# The rank is stopped in the middle of the work until the warning (USR1, 200 in hex) waits for it: so the limit meets a run of any speed.
limit() {
  local id rank
  id=$(job limit -N 1 -t 1 --signal=B:USR1@20 -w n1)
  until_true limit at_work limit || return
  rank=$(ranks limit)
  kill -STOP "$rank"
  warned() { awk '/^ShdPnd:/ { exit !($2 ~ /[2367abef]..$/) }' "/proc/$rank/status"; }
  until_true "limit: the warning" warned
  kill -CONT "$rank"
  until_true "limit: back in the queue" came_back "$id" || log "$id"
  ends "time limit" "$id" limit
  log "$id" | grep -q 'stopped on request; requeued' || fault "limit: not requeued by the script: $(log "$id")"
}

# power NODE WHAT NODES: the node loses its power in the middle of the work, and has it again once the job is back in the queue
power() {
  local id
  id=$(job "cut$1" -N 2 -w "$3")
  until_true "$2" at_work "cut$1" || return
  power_off "$1"
  until_true "$2: back in the queue" came_back "$id" || log "$id"
  power_on "$1"
  ends "$2" "$id" "cut$1"
}

requeued() {
  local id
  id=$(job requeued -N 2)
  until_true requeue at_work requeued || return
  as_owner scontrol requeue "$id"
  until_true "requeue: back in the queue" came_back "$id" || log "$id"
  ends "scontrol requeue" "$id" requeued
}

killed() {
  local id
  id=$(job killed -N 2)
  until_true killed at_work killed || return
  kill -9 "$(ranks killed | tail -n 1)"
  ends "rank killed" "$id" killed
  log "$id" | grep -q 'try 1 ended with code' || fault "rank killed: no second try: $(log "$id")"
}

# The disk fills up in the middle: the job ends with one clear line, and the same sbatch line ends well once there is room.
disk() {
  local id
  id=$(job "$B/small/run" -N 2)
  until_true disk compgen -G "$B/small/run/solutions/*/layer-*.h5" >/dev/null || return
  as_owner head -c 100m /dev/zero >"$B/small/filler" 2>/dev/null
  until_true disk is_over "$id"
  [[ $(of "$id" JobState),$(of "$id" ExitCode) =~ ^FAILED,[46]:0$ ]] || fault "disk: expected code 4 or 6, found $(of "$id" ExitCode): $(log "$id")"
  log "$id" | tail -n 8 | grep -q 'free disk\|No space left' || fault "disk: no clear line: $(log "$id")"
  no_temporaries "$B/small/run"
  rm "$B/small/filler"
  id=$(job "$B/small/run" -N 2)
  ends "full disk" "$id" "$B/small/run"
}

# side_by_side FUNCTION...: each line "function arguments" in a process of its own; their faults add up here
side_by_side() {
  local pids=() p
  for p in "$@"; do
    (trap - EXIT; failures=0; $p; exit $failures) &
    pids+=($!)
  done
  for p in "${pids[@]}"; do wait "$p" || failures=$((failures + $?)); done
}
side_by_side 'nodes 2' 'nodes 4' interactive
side_by_side chain
side_by_side limit 'power 2 second_node n[1-2]' 'power 3 batch_node n[3-4]'
side_by_side requeued killed disk
finish

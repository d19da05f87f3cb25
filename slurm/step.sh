# shellcheck shell=bash
# Sourced by the sbatch files, and by submit.sh for `program`: what a job of cloqwork needs under Slurm.
#
#   program          the program as an array: CLOQWORK, or inside the Apptainer image CLOQWORK_IMAGE, or cloqwork in PATH, or build/cloqwork
#                    of the folder the job was submitted from
#   step VERB JOB.yaml [ARGS]...
#                    the verb on all tasks of the allocation, until what it makes lies on the disk. Returns only then; otherwise the script
#                    ends here: requeued after a signal, with the program's exit code after a failure that a retry cannot cure
#   launch VERB JOB.yaml [ARGS]...
#                    the same once, for verbs that make nothing; $rc is the exit code
#
# CLOQWORK_SRUN replaces srun's --cpu-bind=cores, CLOQWORK_REQUEUES the 20 times that a job may come back.

export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} BLIS_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} OPENBLAS_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun no longer inherits --cpus-per-task

# module load cloqwork          # slurm/modulefile: the program and what it was built with
# spack load cloqwork           # slurm/spack.yaml

if [ -n "${CLOQWORK_IMAGE:-}" ]; then
  program=(apptainer exec "$CLOQWORK_IMAGE" cloqwork)
else
  program=("${CLOQWORK:-$(command -v cloqwork || echo "${SLURM_SUBMIT_DIR:-.}/build/cloqwork")}")
fi
command -v "${program[0]}" >/dev/null || { echo "step.sh: ${program[0]}: expected a program, found none (set CLOQWORK or CLOQWORK_IMAGE)" >&2; exit 2; }

signals=0 child='' rc=1
pass_on() { while kill -USR1 "$child" 2>/dev/null; do sleep 10; done; } # until srun is gone: one that is only starting does not hear it
trap 'signals=$((signals + 1)); if [ -n "$child" ]; then pass_on & fi' USR1

# The signal comes to the script, which hands it on; a trap runs only between foreground commands, hence srun in the background and wait.
launch() {
  srun --mpi=pmix --kill-on-bad-exit=1 ${CLOQWORK_SRUN:---cpu-bind=cores} "${program[@]}" "$@" &
  child=$!
  if [ $signals -gt 0 ]; then pass_on & fi # came before the trap knew whom to tell
  while :; do
    local seen=$signals
    wait "$child"
    rc=$?
    [ "$signals" = "$seen" ] && break # otherwise the trap ended the wait, not the program
  done
  child=''
}

# srun has been seen to return 0 for a launch that never happened: only what lies on the disk counts.
proved() {
  case $1 in
  calibrate) "${program[@]}" plan "${@:2}" --json | grep -q '^ *"gram_units_to_do": 0,' ;;
  solve) "${program[@]}" plan "${@:2}" --json | grep -q '^ *"solution_units_to_do": 0,' ;;
  *) "${program[@]}" status --complete "${@:2}" ;;
  esac
}

step() {
  local try
  for try in 1 2 3; do
    [ $signals -gt 0 ] && { rc=75; break; }
    launch "$@" # after a failed launch the next srun gets a fresh step, and with it fresh PMIx sockets
    if [ $rc -eq 0 ]; then
      proved "$@" && return 0
      rc=1
    fi
    case $rc in 75) break ;; 2 | 3 | 4 | 5) exit $rc ;; esac
    echo "cloqwork $1: try $try ended with code $rc" >&2
    sleep $((5 * try))
  done
  [ $signals -gt 0 ] && rc=75 # the signal itself ends a launch that does not catch it yet
  if [ $rc -eq 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "${CLOQWORK_REQUEUES:-20}" ]; then
    echo "cloqwork $1: stopped on request; requeued" >&2
    # an element by its own name: the id of an array's last element means the whole array; the requeue ends this script
    scontrol requeue "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}" && sleep 60
    echo "cloqwork $1: the requeue was refused; submit the same line again" >&2
  fi
  exit $rc
}

#!/usr/bin/env bash
# A job as a chain under Slurm: calibration, then an array with an element for each setting, then the master file, verify and report.
#
#   slurm/submit.sh [--dry-run] [--nodes N] [--ranks R] JOB.yaml [--set key=value]...
#
#   --dry-run   print the lines that would be given to the shell, and submit nothing
#   --nodes N   nodes of the calibration (default: as many as make it take about an hour)
#   --ranks R   ranks of a node (default: its cores, or as many as its memory holds)
#
# Nodes, memory and time limits come from `cloqwork plan`, run here with a node's number of ranks, and from what sinfo says of the nodes. The
# rate is measured on this machine's cores; limits are generous, and a job that meets its limit goes on by itself after a requeue. Start it
# where paths of the job file hold. Partition, account and the like: sbatch's own variables, SBATCH_PARTITION, SBATCH_ACCOUNT …
# CLOQWORK_MPIRUN replaces mpirun for the plan.
set -euo pipefail
slurm=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$slurm/step.sh"
die() {
  echo "submit.sh: $2" >&2
  exit "$1"
}
count() { if [[ $2 =~ ^[1-9][0-9]*$ ]]; then echo "$2"; else die 2 "$1: expected a number of at least 1, found '$2'"; fi; }

dry='' nodes='' ranks=''
while [ $# -gt 0 ]; do
  case $1 in
  --dry-run) dry=1; shift ;;
  --nodes) nodes=$(count --nodes "${2:-}"); shift 2 ;;
  --ranks) ranks=$(count --ranks "${2:-}"); shift 2 ;;
  -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
  *) break ;;
  esac
done
[ $# -gt 0 ] || die 2 "expected a job file, found no argument; --help says more"

# The largest kind of node of the partition that jobs go to: how many, cores, MB, the longest time limit.
kinds=$(sinfo -h ${SBATCH_PARTITION:+-p "$SBATCH_PARTITION"} -e -o '%P %D %c %m %l') || die 6 "sinfo: expected the cluster's nodes, found none"
read -r partition most cores memory longest < <(awk -v any="${SBATCH_PARTITION:-}" 'any != "" || $1 ~ /\*$/' <<<"$kinds" | sort -k2,2nr | head -n 1) ||
  die 2 "sinfo: expected a default partition, found none (set SBATCH_PARTITION)"
ranks=${ranks:-$cores}

# plan on as many ranks as a node will have: memory is theirs together. Fewer ranks where a node cannot hold so many.
plan() {
  ${CLOQWORK_MPIRUN:-mpirun --oversubscribe --bind-to none} -n "$ranks" "${program[@]}" plan "$@" --json \
    --set parallel.memory_per_node="$(awk -v mb="$memory" 'BEGIN { printf "%.3f", mb / 1024 }')"
}
until planned=$(plan "$@" 2>&1); do
  rc=$?
  if [ $rc -ne 4 ] || [ "$ranks" -eq 1 ]; then grep '^cloqwork: ' <<<"$planned" >&2 || echo "$planned" >&2; exit $rc; fi
  ranks=$((ranks / 2))
done
value() { sed -n "s/^  \"$1\": \([0-9.e+-]*\),*$/\1/p" <<<"$planned"; }

read -ra settings < <("${program[@]}" plan "$@" | sed -n 's/^settings *[0-9]*: //p') || true
[ ${#settings[@]} -gt 0 ] || die 70 "plan: expected the names of the settings, found none"

# Seconds that one node takes, if its cores are like those of this machine.
read -r calibrate solve < <(awk -v c="$(value calibrate_seconds)" -v s="$(value solve_seconds)" -v here="$(nproc)" -v ranks="$ranks" -v n=${#settings[@]} \
  'BEGIN { own = here < ranks ? here : ranks; printf "%d %d\n", c * own / ranks, s * own / ranks / n }')
layers=$(value layers)
least() { if [ "$1" -lt "$2" ]; then echo "$1"; else echo "$2"; fi; }
nodes_for() { least $(($1 / 3600 + 1)) "$(least "$most" "$layers")"; } # about an hour; a layer belongs to one node
# Four times what is expected, half an hour at least, the partition's limit at most; in minutes.
limit=$(awk -F '[-:]' '/[0-9]/ { n = NF; d = $0 ~ /-/ ? $1 : 0; h = n - ($0 ~ /-/) > 2 ? $(n - 2) : 0; print d * 1440 + h * 60 + $(n - 1) } !/[0-9]/ { print 10000000 }' <<<"$longest")
minutes() { least $((30 + $1 * 4 / 60)) "$limit"; }
megabytes() { least $(($1 * 5 / 4 / 1048576 + 512)) "$memory"; }

nodes=${nodes:-$(nodes_for "$calibrate")}
solve_nodes=$(nodes_for "$solve")
common=(--parsable "--ntasks-per-node=$ranks")
solve_memory=--mem=$(megabytes $(($(value rank_bytes_solve) * ranks)))M

jobs=() # ids so far; of a dry run the shell variables that will hold them
submit() { # NAME ARGS...
  if [ -n "$dry" ]; then
    printf '%s=$(sbatch' "$1"
    printf ' %s' "${@:2}"
    printf ')\n'
    id="\$$1"
  else
    id=$(sbatch "${@:2}")
    id=${id%%;*} # without the cluster's name
    jobs+=("$id")
  fi
}
quoted=()
for word in "$@"; do
  if [ -n "$dry" ]; then quoted+=("$(printf %q "$word")"); else quoted+=("$word"); fi
done
if [ -n "$dry" ]; then echo "mkdir -p logs"; slurm=$(printf %q "$slurm"); else mkdir -p logs; fi
submit calibrate "${common[@]}" -N "$nodes" -t "$(minutes $((calibrate / nodes)))" "--mem=$(megabytes $(($(value rank_bytes_calibrate) * ranks)))M" \
  "$slurm/cloqwork.sbatch" calibrate "${quoted[@]}"
submit sweep "${common[@]}" -N "$solve_nodes" -t "$(minutes $((solve / solve_nodes)))" "$solve_memory" "--array=0-$((${#settings[@]} - 1))" \
  --dependency=afterok:"$id" --kill-on-invalid-dep=yes "$slurm/sweep.sbatch" "${quoted[@]}"
submit collect "${common[@]}" -N 1 -t "$(minutes $((solve * ${#settings[@]} / 4)))" "$solve_memory" --dependency=afterany:"$id" \
  "$slurm/collect.sbatch" "${quoted[@]}"
[ -n "$dry" ] && exit

cat <<T
calibrate  ${jobs[0]}   $nodes node(s) of ${partition%\*}, $ranks ranks each    logs/cloqwork-${jobs[0]}.out
solve      ${jobs[1]}   ${#settings[@]} settings, $solve_nodes node(s) each          logs/cloqwork-sweep-${jobs[1]}_K.out
collect    ${jobs[2]}   master file, verify, report             logs/cloqwork-collect-${jobs[2]}.out

squeue -j $(IFS=,; echo "${jobs[*]}")                what waits and runs
cloqwork status $1               what is done
scancel ${jobs[*]}                       end it; the same line of submit.sh goes on from there
T

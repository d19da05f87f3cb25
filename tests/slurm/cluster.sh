# shellcheck shell=bash
# Sourced: a real Slurm with four virtual nodes on this machine, for one test. Debian's slurmd, each with its own host name, process
# tree and /dev/shm in namespaces of the kernel; no systemd, no database.
#
#   cluster_up            $B (a scratch folder), $SLURM_CONF, nodes n1 to n4 of 2 cores; the script ends with code 77 and one line where
#                         that cannot be (no root, no namespaces, no Slurm)
#   power_off N, power_on N  the power of node N: its namespace is killed, started again
#   as_owner COMMAND...   as the unprivileged owner of the jobs
#
# Odd lines of slurm.conf: cred_expire, else a requeued job waits two minutes; %n in TmpFS, else nodes share PMIx's folders;
# config_overrides, for more cores than there are. In a node sh is the first process: slurmd there would leave zombies.
NODES=4
PORT=$((20000 + $$ % 9000)) # and the NODES above it
B=$(mktemp -d /tmp/cq.XXXXXX) # short: sockets live below it
export B SLURM_CONF=$B/slurm.conf

skip() {
  echo "skipped: $*"
  exit 77
}

as_owner() { (cd "$B/home" && exec runuser -u nobody -- env HOME="$B/home" "$@"); }

power_on() {
  setsid "$B/node.sh" "n$1" &
  echo $! >"$B/run/node.n$1.pid"
  disown # its end is not news
}
power_off() { kill -9 "$(cat "$B/run/node.n$1.pid")"; }

cluster_down() {
  local p
  jobs -p | xargs -r kill 2>/dev/null
  for p in "$B"/run/node.n*.pid; do
    [ -e "$p" ] && kill -9 "$(cat "$p")"
  done 2>/dev/null
  for p in slurmctld munged; do
    [ -e "$B/run/$p.pid" ] && kill "$(cat "$B/run/$p.pid")"
  done
  mountpoint -q "$B/small" && umount "$B/small"
  for _ in $(seq 50); do # the nodes need a moment to die
    rm -rf "$B" 2>/dev/null && break
    sleep 0.1
  done
}

cluster_up() {
  local program
  trap cluster_down EXIT
  trap 'exit 1' TERM INT
  [ "$(id -u)" -eq 0 ] || skip "the virtual nodes need root"
  for program in slurmctld slurmd munged sbatch; do
    command -v $program >/dev/null || skip "$program is not installed"
  done
  unshare --uts --mount --pid --fork --kill-child --propagation private sh -c \
    'hostname n0 && mount -t proc proc /proc && mount -t tmpfs tmpfs /dev/shm' 2>/dev/null || skip "this machine gives no namespaces (CAP_SYS_ADMIN)"
  mkdir -p "$B"/{run,log,state,spool,tmp,home,small}
  chmod 755 "$B"
  mount -t tmpfs -o size=40m tmpfs "$B/small" # before the nodes: they see it too
  chown nobody "$B/home" "$B/small"
  if ! munge -n 2>/dev/null | unmunge >/dev/null 2>&1; then
    install -d -o munge -g munge /run/munge
    runuser -u munge -- /usr/sbin/munged || skip "munged does not start"
    cp /run/munge/munged.pid "$B/run/munged.pid"
  fi
  cat >"$SLURM_CONF" <<C
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
SlurmctldPort=$PORT
SlurmctldPidFile=$B/run/slurmctld.pid
SlurmdPidFile=$B/run/slurmd.%n.pid
SlurmctldLogFile=$B/log/slurmctld.log
SlurmdLogFile=$B/log/slurmd.%n.log
StateSaveLocation=$B/state
SlurmdSpoolDir=$B/spool/%n
TmpFS=$B/tmp/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1
JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$B/log/jobcomp.txt
MpiDefault=pmix
ReturnToService=2
SlurmdTimeout=10
KillWait=5
JobRequeue=1
NodeName=DEFAULT CPUs=2 Boards=1 SocketsPerBoard=1 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=4000 State=UNKNOWN
NodeName=n[1-$NODES] NodeAddr=127.0.0.1 Port=[$((PORT + 1))-$((PORT + NODES))]
PartitionName=batch Nodes=n[1-$NODES] Default=YES MaxTime=8:00:00 State=UP
C
  cat >"$B/node.sh" <<'N'
#!/bin/bash
export NODE=$1
exec unshare --uts --mount --pid --fork --kill-child --propagation private sh -c '
 hostname $NODE; mount -t proc proc /proc; mount -t tmpfs -o size=4g tmpfs /dev/shm
 rm -rf $B/tmp/$NODE $B/spool/$NODE; mkdir -m 1777 -p $B/tmp/$NODE; mkdir -p $B/spool/$NODE
 slurmd -D -N $NODE -f $SLURM_CONF & while :; do wait; sleep 1; done' </dev/null >>$B/log/node.$NODE.out 2>&1
N
  chmod +x "$B/node.sh"
  slurmctld -f "$SLURM_CONF" || skip "slurmctld does not start: $(tail -n 1 "$B/log/slurmctld.log")"
  for n in $(seq $NODES); do power_on "$n"; done
  for _ in $(seq 200); do
    [ "$(sinfo -h -t idle -o %D 2>/dev/null)" = $NODES ] && return
    sleep 0.1
  done
  skip "the virtual nodes do not come up: $(sinfo -h -N -o '%N %T' 2>&1 | tr '\n' ' ') $(tail -qn 1 "$B"/log/slurmd.*.log)"
}

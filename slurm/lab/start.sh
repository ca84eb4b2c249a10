#!/usr/bin/env bash
# Starts a SLURM cluster of several nodes on this machine; see README.md. Needs root.
#
#   [LAB_STATE=FOLDER] [NODES=2] [CPUS=16] [GPUS=2] slurm/lab/start.sh
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
lab=$(cd "$(dirname "$0")" && pwd)
state=${LAB_STATE:=/tmp/dist-train-slurm-lab}
nodes=${NODES:-2}
gpus=${GPUS:-2}

die() {
    echo "start.sh: $*" >&2
    exit "${code:-2}"
}

prepare_state() {
    rm -rf "$state"
    mkdir -p "$state"/{etc,controller,spool,log,pid,munge,gpus}
    chmod 711 "$state/munge" # or munged refuses to put its socket there
    (umask 077 && head -c 1024 /dev/urandom >"$state/munge/key")
}

# Names resolve from a file alone: without a DNS server each reverse lookup would hang for 10 s.
write_names() {
    local i
    echo "127.0.0.1 localhost" >"$state/etc/hosts"
    echo "10.77.0.1 ctl" >>"$state/etc/hosts"
    for ((i = 0; i < nodes; i++)); do echo "10.77.0.$((10 + i)) n$i" >>"$state/etc/hosts"; done
    echo "# no server" >"$state/etc/resolv.conf"
    sed 's/^hosts:.*/hosts: files/' /etc/nsswitch.conf >"$state/etc/nsswitch.conf"
}

# GPUs are pretended. SLURM wants device files: these are clones of /dev/null.
write_gpus() {
    local i
    : >"$state/etc/gres.conf"
    for ((i = 0; i < gpus; i++)); do
        mknod "$state/gpus/gpu$i" c 1 3
        echo "NodeName=n[0-$((nodes - 1))] Name=gpu File=$state/gpus/gpu$i" >>"$state/etc/gres.conf"
    done
}

# Everything that waits for minutes on a real cluster waits for seconds here.
write_slurm_conf() {
    : >"$state/etc/plugstack.conf" # or the package's own would be read
    echo "CgroupAutomount=no" >"$state/etc/cgroup.conf"
    cat >"$state/etc/slurm.conf" <<END
ClusterName=lab
SlurmctldHost=ctl(10.77.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits for cred_expire + 1 s before it starts again (121 s by default).
AuthInfo=socket=$state/munge/socket,cred_expire=${CRED_EXPIRE:-5}
StateSaveLocation=$state/controller
SlurmdSpoolDir=$state/spool/%n
SlurmctldPidFile=$state/pid/slurmctld
SlurmdPidFile=$state/pid/slurmd-%n
SlurmctldLogFile=$state/log/slurmctld.log
SlurmdLogFile=$state/log/slurmd-%n.log
SlurmctldDebug=debug
SlurmdDebug=debug
LogTimeFormat=iso8601_ms
PlugStackConfig=$state/etc/plugstack.conf
MailProg=/bin/true
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
KillWait=${KILL_WAIT:-5}
SlurmdTimeout=${SLURMD_TIMEOUT:-6}
MessageTimeout=5
TCPTimeout=2
BatchStartTimeout=5
MinJobAge=3600
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
NodeName=n[0-$((nodes - 1))] CPUs=${CPUS:-16} RealMemory=256000 Gres=gpu:$gpus State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=${GRACE:-30}
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
END
}

# The controller's namespaces hold all others: when its first process ends, so does everything.
start_controller() {
    local starter
    setsid env -i PATH="$PATH" HOME="$HOME" LANG=C.UTF-8 SLURM_CONF="$state/etc/slurm.conf" \
        unshare --net --uts --mount --pid --fork --kill-child=KILL --mount-proc \
        bash "$lab/bin/controller.sh" "$state" "$nodes" </dev/null >"$state/log/controller.log" 2>&1 &
    starter=$!
    for _ in {1..200}; do
        read -r controller <"/proc/$starter/task/$starter/children" || true
        [[ ! ${controller:-} ]] || break
        sleep 0.02
    done 2>/dev/null
    controller=${controller%% *}
    [[ $controller ]] || code=4 die "no namespaces here: $(cat "$state/log/controller.log")"
    echo "$controller" >"$state/pid/controller"
}

wait_for_nodes() {
    local idle
    for _ in {1..300}; do
        idle=$("$lab/bin/lab" sinfo -h -N -p debug -t idle -o %N 2>/dev/null | wc -l) || true
        [[ $idle != "$nodes" ]] || return 0
        [[ -e /proc/$controller ]] || break
        sleep 0.05
    done
    tail -n 30 "$state"/log/*.log >&2
    code=5 die "the nodes did not come up: see the logs above, in $state/log"
}

[[ $EUID == 0 ]] || die "only root can make namespaces"
for command in slurmctld slurmd sbatch munged ip unshare nsenter; do
    command -v "$command" >/dev/null || die "$command is missing: run slurm/lab/install.sh"
done
[[ ! -e $state/pid/controller ]] || code=3 die "$state is in use: run slurm/lab/stop.sh"
export LAB_STATE
prepare_state
write_names
write_gpus
write_slurm_conf
start_controller
wait_for_nodes
echo "$nodes nodes are up; state in $state"

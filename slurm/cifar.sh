#!/usr/bin/env bash
# Trains on any number of nodes and GPUs, and goes on by itself after whatever ends the job early.
# Submit it from the repository's folder; sbatch's own options come before the script's name:
#
#   sbatch slurm/cifar.sh [RECIPE] [--section.field value ...]
#   sbatch --nodes=2 --gpus-per-node=8 --cpus-per-task=64 slurm/cifar.sh resnet18
#   sbatch --nodes=2 --gpus-per-node=0 slurm/cifar.sh cnn2
#
# docs/slurm.md tells what happens on time limits, preemption, failures and scancel.
#
# --- Site settings: a line with two # is off; sbatch's command line wins over every line here.
##SBATCH --partition=gpu
##SBATCH --account=project
#SBATCH --time=01:00:00
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#
# --- What the rest relies on (slurm/sweep.sh has the same lines).
#SBATCH --job-name=cifar
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --output=slurm/logs/%x-%j.out
set -euo pipefail

# --- Site settings that are no options of sbatch; `MODULES=... sbatch ...` wins over them.
MODULES=${MODULES:-}           # for `module load`, such as "python/3.12 cuda"
VENV=${VENV:-.venv}            # the Python environment, if that folder exists
MAX_REQUEUES=${MAX_REQUEUES:-20}
STOP_SECONDS=${STOP_SECONDS:-90} # to save in; must be less than what --signal leaves
PROCESSES_PER_NODE=${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
PROCESSES_PER_NODE=$((PROCESSES_PER_NODE > 0 ? PROCESSES_PER_NODE : 1))

say() { printf '%(%F %T)T slurm: %s\n' -1 "$*"; }

# Signals become the trainer's stop file, which works with any launcher: the trainer saves itself
# at the next step and ends. This runs as a signal handler, so no $(...) in here.
stop() {
    say "SIG$1: asking the run to save itself and stop"
    asked=$1
    touch "$run/STOP"
    { sleep "$STOP_SECONDS" && kill -KILL "$step"; } 2>/dev/null & # a run that hangs
}

# Something already listens there, on this node, which is the one with rank 0.
taken() { (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

newest_checkpoint() { find "$run/checkpoints" -name 'step-*.pt' 2>/dev/null | sort | tail -n 1 || true; }

requeue() {
    local requeues=${SLURM_RESTART_COUNT:-0}
    if ((requeues >= MAX_REQUEUES)); then
        say "$1; not requeued, as MAX_REQUEUES is $MAX_REQUEUES: submit again with --name ${run##*/}"
        exit 75
    fi
    say "$1; requeueing, for time $((requeues + 1)) of $MAX_REQUEUES"
    trap '' TERM # it comes with the requeue
    scontrol requeue "$SLURM_JOB_ID" || say "cannot requeue: submit again with --name ${run##*/}"
    exit 75
}

# --- Where
: "${SLURM_JOB_ID:?start this with sbatch, see docs/slurm.md}"
if [[ ! -f dist_train/main.py ]]; then
    say "$PWD is not the repository's folder: submit from there, or use sbatch --chdir"
    exit 2
fi
# shellcheck disable=SC2086 # several modules are several words
[[ -z $MODULES ]] || module load $MODULES
[[ ! -d $VENV ]] || PATH=$(cd "$VENV" && pwd)/bin:$PATH

if ((${SLURM_RESTART_COUNT:-0} > MAX_REQUEUES)); then # SLURM itself requeues after node failures
    say "requeued $SLURM_RESTART_COUNT times, and MAX_REQUEUES is $MAX_REQUEUES"
    exit 75
fi

# --- Which run: the same one each time this job starts. A wrong flag ends the job here.
job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
cache=${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/dist_train-$UID # on each node's own disk
flags=(--name "${SLURM_JOB_NAME//[^[:alnum:]._-]/-}-$job" --data.cache "$cache" "$@")
settings=$(python -m dist_train show "${flags[@]}")
setting() { sed -En "s/^$1 +(.*[^ ]) +(default|command line|recipe [^ ]+)\$/\1/p" <<<"$settings"; }
run=$(setting output)/$(setting name)
mkdir -p "$run"
rm -f "$run/STOP"
before=$(newest_checkpoint)

# --- Who meets where: job ids differ, and so do the ports of two jobs on one node. The range lies
# below those that systems hand out themselves.
read -r master < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
port=$((10000 + SLURM_JOB_ID % 20000))
while taken "$port"; do port=$((port + 1)); done
say "job $job, start $((${SLURM_RESTART_COUNT:-0} + 1)): $SLURM_JOB_NUM_NODES nodes x" \
    "$PROCESSES_PER_NODE processes, meeting at $master:$port"

# --- Run. A task that fails gives the others a minute: rank 0 may be writing a checkpoint.
asked='' step=''
trap 'stop USR1' USR1
trap 'stop TERM' TERM
export PET_SHUTDOWN_TIMEOUT=$STOP_SECONDS
[[ $(setting data.cache) == "$cache" ]] || cache='' # a folder of the user's own
# A folder in /tmp that somebody else made could hold anything.
# shellcheck disable=SC2016 # each node expands it
ON_EACH_NODE='
if [[ $1 ]] && ! { mkdir -p -m 700 "$1" && [[ -O $1 ]]; }; then
    echo "slurm: $1 on $(hostname) cannot be made or is not ours: set TMPDIR, or --data.cache" >&2
    exit 2
fi
exec accelerate launch --machine_rank "$SLURM_NODEID" "${@:2}"'
srun --export=ALL --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --kill-on-bad-exit=0 --wait=60 \
    bash -c "$ON_EACH_NODE" launch "$cache" \
    --config_file launch/many_nodes.yaml --num_machines "$SLURM_JOB_NUM_NODES" \
    --num_processes $((SLURM_JOB_NUM_NODES * PROCESSES_PER_NODE)) \
    --main_process_ip "$master" --main_process_port "$port" dist_train/main.py "${flags[@]}" &
step=$!
while kill -0 "$step" 2>/dev/null; do wait "$step" || true; done # signals interrupt `wait`
status=0
wait "$step" || status=$?

# --- And then? The launcher's exit code says little; the run's folder says all.
if [[ -e $run/summary.json ]]; then
    say "$run is finished"
elif [[ $asked == USR1 ]]; then
    requeue "stopped before the time limit, or for another job"
elif [[ $asked || -e $run/STOP ]]; then
    say "$run was stopped; unless SLURM requeues it, submit again with --name ${run##*/}"
    exit 75
elif ((status == 0)); then # --dry_run alone ends well without a summary
    rmdir "$run" 2>/dev/null || true # it may be another run's
    say "the dry run went well"
elif [[ $(newest_checkpoint) != "$before" ]]; then
    # A lost node ends the others before SLURM knows of it. What fails always gets no further.
    requeue "ended with code $status, but further than it was before"
else
    say "$run failed with code $status and got no further: not requeued"
    exit "$((status ? status : 1))"
fi

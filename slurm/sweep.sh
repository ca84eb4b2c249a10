#!/usr/bin/env bash
# A job array that trains one configuration a task, each as slurm/cifar.sh does:
#
#   sbatch --array=1-3 slurm/sweep.sh slurm/sweep.txt [--section.field value ...]
#   sbatch --array=1-100%8 ...                                     at most 8 at a time
#
# Task N takes the Nth configuration of the file: a line [RECIPE] [--section.field value ...].
# Empty lines and lines that start with # do not count. Flags after the file are for all tasks.
#
# --- Site settings: a line with two # is off; sbatch's command line wins over every line here.
##SBATCH --partition=gpu
##SBATCH --account=project
#SBATCH --time=01:00:00
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#
# --- What the rest relies on (slurm/cifar.sh has the same lines).
#SBATCH --job-name=sweep
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --output=slurm/logs/%x-%A_%a.out
set -euo pipefail

die() {
    echo "slurm: $*" >&2
    exit 2
}

task=${SLURM_ARRAY_TASK_ID:-}
file=${1:-}
[[ $task && $file ]] || die "usage: sbatch --array=1-N slurm/sweep.sh FILE [--section.field value ...]"
shift
[[ -r $file ]] || die "cannot read $PWD/$file"
mapfile -t configurations < <(grep -v '^[[:space:]]*\(#\|$\)' "$file")
((task >= 1 && task <= ${#configurations[@]})) ||
    die "no configuration $task: $file has ${#configurations[@]}, so --array=1-${#configurations[@]}"
read -ra flags <<<"${configurations[task - 1]}"
exec bash slurm/cifar.sh "${flags[@]}" "$@" # exec: the signals are for this process

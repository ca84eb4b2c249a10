#!/usr/bin/env bash
# Ends the lab whose state is in $LAB_STATE, and all of its jobs. The logs stay.
set -euo pipefail
state=${LAB_STATE:-/tmp/dist-train-slurm-lab}
controller=$(cat "$state/pid/controller" 2>/dev/null) || exit 0

running() { grep -q controller.sh "/proc/$controller/cmdline" 2>/dev/null; } # and no reused id

# The first process of a PID namespace takes all others along.
! running || kill -KILL "$controller"
for _ in {1..100}; do
    running || break
    sleep 0.05
done
rm -f "$state"/pid/*
echo "the lab is stopped; its logs are in $state/log"

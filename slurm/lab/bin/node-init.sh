#!/usr/bin/env bash
# The first process of a node's namespaces: waits for its network, then starts slurmd.
set -euo pipefail
node=$1

hostname "$node"
for _ in {1..500}; do
    ip link show eth0 >/dev/null 2>&1 && break
    sleep 0.01
done
ip link set lo up
ip addr add "10.77.0.$((10 + ${node#n}))/24" dev eth0
ip link set eth0 up
slurmd -N "$node"
# bash reaps the orphans that a first process inherits, while it waits.
sleep infinity &
wait $!

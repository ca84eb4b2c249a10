#!/usr/bin/env bash
# The first process of the lab's own namespaces: the controller, which is also the login node.
set -euo pipefail
bin=$(cd "$(dirname "$0")" && pwd)
state=$1
nodes=$2

hostname ctl
for file in hosts resolv.conf nsswitch.conf; do
    mount --bind "$state/etc/$file" "$(readlink -f "/etc/$file")"
done
ip link set lo up
ip link add switch type bridge
ip addr add 10.77.0.1/24 dev switch
ip link set switch up
# --force: the folders above may be private, as those of tests are.
munged --force --key-file="$state/munge/key" --socket="$state/munge/socket" \
    --pid-file="$state/munge/pid" --log-file="$state/munge/log" --seed-file="$state/munge/seed"
slurmctld -i
for ((i = 0; i < nodes; i++)); do bash "$bin/node.sh" up "n$i" & done
# bash reaps the orphans that a first process inherits, while it waits.
sleep infinity &
wait $!

#!/usr/bin/env bash
# Two machines on this one, joined by a wire as slow as one likes (root, iproute2): what does
# training cost that has to go through it?
#
#   launch/slow_link.sh 100mbit resnet9 --train.local_steps 8 --train.max_steps 32
#
# Each is a network namespace; both run `dist-train train` with the arguments given, on half the
# cores. Run directories are written as usual.
set -euo pipefail
(($# >= 2)) || { sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2; }
rate=$1
shift
cd "$(dirname "$0")/.."
name=slow$$

clean_up() {
    trap - EXIT
    for node in 0 1; do
        ip netns pids "$name-$node" 2> /dev/null | xargs -r kill 2> /dev/null || true
        ip netns del "$name-$node" 2> /dev/null || true
    done
}
trap clean_up EXIT

for node in 0 1; do ip netns add "$name-$node"; done
ip link add wire0 netns "$name-0" type veth peer name wire1 netns "$name-1"
for node in 0 1; do
    in_node=(ip netns exec "$name-$node")
    "${in_node[@]}" ip link set lo up
    "${in_node[@]}" ip address add "10.77.0.$((node + 1))/24" dev "wire$node"
    "${in_node[@]}" ip link set "wire$node" up
    "${in_node[@]}" tc qdisc add dev "wire$node" root tbf rate "$rate" burst 256kb latency 400ms
done

threads=$(($(nproc) / 2))
for node in 0 1; do
    GLOO_SOCKET_IFNAME=wire$node ip netns exec "$name-$node" \
        .venv/bin/python -m torch.distributed.run --nnodes 2 --node_rank "$node" \
        --nproc_per_node 1 --master_addr 10.77.0.1 --master_port 29500 \
        -m dist_train train "$@" --runtime.threads $((threads > 0 ? threads : 1)) &
done
status=0
wait -n || status=$?
wait -n || status=$?
exit "$status"

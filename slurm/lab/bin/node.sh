#!/usr/bin/env bash
# Starts, breaks and mends a node; runs in the lab's own namespaces (`lab node ACTION NODE`).
#
#   up      starts it
#   kill    ends all its processes: their peers see closed connections
#   crash   the same behind a cut cable, as when the power fails: nobody is told
#   part    cuts the cable: everything goes on, alone
#   heal    mends the cable
set -euo pipefail
bin=$(cd "$(dirname "$0")" && pwd)
action=$1
node=$2
state=${SLURM_CONF%/etc/slurm.conf}

cable() { ip link set "cable-$node" "$1"; }
end() { kill -KILL "$(cat "$state/pid/$node")"; }

up() {
    local starter init=
    setsid unshare --net --uts --mount --pid --fork --kill-child=KILL --mount-proc \
        bash "$bin/node-init.sh" "$node" </dev/null >>"$state/log/$node.log" 2>&1 &
    starter=$!
    for _ in {1..500}; do
        read -r init <"/proc/$starter/task/$starter/children" || true
        [[ ! $init ]] || break
        sleep 0.01
    done 2>/dev/null
    init=${init%% *}
    echo "$init" >"$state/pid/$node"
    ip link del "cable-$node" 2>/dev/null || true
    ip link add "cable-$node" type veth peer name eth0 netns "$init"
    ip link set "cable-$node" master switch up
}

case $action in
up) up ;;
kill) end ;;
crash) cable down && end ;;
part) cable down ;;
heal) cable up ;;
*) echo "node.sh: $action: expected up, kill, crash, part or heal" >&2 && exit 2 ;;
esac

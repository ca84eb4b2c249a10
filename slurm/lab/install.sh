#!/usr/bin/env bash
# Installs what the lab needs from Debian's or Ubuntu's packages; takes seconds. Nothing is started,
# upgraded or removed, and the machine does not become part of any cluster.
set -euo pipefail

needed=(slurmctld slurmd sbatch munged ip unshare nsenter)
packages=(slurmctld slurmd slurm-client munge iproute2 util-linux)

die() {
    echo "install.sh: $*" >&2
    exit 2
}

missing() {
    local command
    for command in "${needed[@]}"; do
        command -v "$command" >/dev/null || echo "$command"
    done
}

install_packages() {
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends --no-remove \
        --no-upgrade -o DPkg::Lock::Timeout=120 "${packages[@]}"
}

PATH=$PATH:/usr/sbin:/sbin
[[ $(missing) ]] || exit 0
[[ $EUID == 0 ]] || die "missing $(missing | xargs): root can install them"
command -v apt-get >/dev/null || die "missing $(missing | xargs), and there is no apt-get"

# Debian asks this file whether a package may start its service: 101 says no.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
fi
# The package lists may be missing or too old.
install_packages || { apt-get update && install_packages; }
[[ ! $(missing) ]] || die "the packages do not have $(missing | xargs)"

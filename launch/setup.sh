#!/usr/bin/env bash
# Makes .venv with all that dist_train needs, FFCV included, on a bare Debian or Ubuntu.
#
#   launch/setup.sh                      what `make setup` runs; returns at once when all is in place
#   PYTHON=python3.12 launch/setup.sh    the Python of a new .venv; else the first one >= 3.11
#
# It needs Python >= 3.11; FFCV and torch.compile need a C++ compiler and some headers. What is missing
# comes through apt when root runs this. Where that cannot be, the rest is installed without FFCV:
# the trainer then uses its resident loader.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*"; }
die() { say "$@" >&2; exit 2; }
[[ $(uname) == Linux ]] || die "expected Linux (WSL 2 on Windows, a container on a Mac), this is $(uname)"

# --- Nothing to do? The stamp says for what, and where, the last complete setup was made.
stamp=.venv/setup-stamp
inputs() { cat pyproject.toml launch/constraints.txt launch/setup.sh | sha256sum; }
place() { printf '%s, %s' "$PWD" "$(.venv/bin/python -V 2>&1 || true)"; }
stamped() { sed -n "$1p" "$stamp" 2>/dev/null; }
leave_if_done() {
    if [[ $(stamped 1) == "$(place)" && $(stamped 2) == "$(inputs)" ]]; then
        say "$(stamped 3)"
        exit 0
    fi
}
leave_if_done

# --- One setup at a time in this folder.
mkdir -p .venv
exec 9>.venv/setup.lock
if command -v flock >/dev/null && ! flock --nonblock 9; then
    say "waiting for another setup of this folder"
    flock 9
    leave_if_done
fi
log=.venv/setup.log
: >"$log"
run() { printf '\n$ %s\n' "$*" >>"$log" && "$@" >>"$log" 2>&1; }
run_or_die() {
    if ! run "$@"; then
        tail -n 20 "$log" >&2
        die "failed: $* (its output ends above, all of it is in $log)"
    fi
}

# --- A Python.
apt_install() {
    say "installing $* with apt (about a minute)"
    export DEBIAN_FRONTEND=noninteractive
    run apt-get update || true
    run apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=300 "$@" ||
        tail -n 5 "$log" >&2
}
may_apt() { [[ $EUID == 0 ]] && command -v apt-get >/dev/null; }
if [[ ${PYTHON:-} ]]; then candidates=("$PYTHON"); else candidates=(python3 python3.13 python3.12 python3.11); fi
find_python() { # sets `python` to the first candidate that will do
    for python in "${candidates[@]}"; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && return
    done
    python=
}
find_python
if [[ ! $python && ! ${PYTHON:-} ]] && may_apt; then
    apt_install python3
    find_python
fi
[[ $python ]] || die "no Python >= 3.11 (tried ${candidates[*]}); install one, or name one:" \
    "PYTHON=/path/to/python3 launch/setup.sh"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')

# --- System packages.
has_header() { "$python" -c 'import os, sysconfig as s; open(os.path.join(s.get_path("include"), "Python.h"))'; }
find_missing() { # sets `missing` to the Debian packages that are still needed
    missing=()
    command -v g++ >/dev/null || missing+=(g++)
    has_header 2>/dev/null || missing+=("python$version-dev")
    command -v pkg-config >/dev/null || missing+=(pkg-config)
    pkg-config --exists opencv4 2>/dev/null || missing+=(libopencv-dev)
    pkg-config --exists libturbojpeg 2>/dev/null || missing+=(libturbojpeg0-dev)
    # Debian splits off the part of venv that brings pip; where uv exists, it does both.
    command -v uv >/dev/null || "$python" -c 'import ensurepip' 2>/dev/null ||
        missing+=("python$version-venv")
}
find_missing
if ((${#missing[@]})) && may_apt; then
    apt_install "${missing[@]}"
    find_missing
fi
if [[ ${missing[*]} == *-venv* ]]; then
    die "cannot make .venv: install python$version-venv or uv, then run this again"
fi

# --- An empty .venv, or the finished one of an earlier version of the requirements.
export UV_PYTHON_DOWNLOADS=never UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-300}"
# As pip does. Else each process compiles torch's sources itself, for 7 s, where PYTHONDONTWRITEBYTECODE
# is set, as it is in many containers.
export UV_COMPILE_BYTECODE=1
if [[ -f /etc/ssl/certs/ca-certificates.crt ]]; then # trust whom the machine trusts, as pip does
    export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-1}"
fi
fresh=
if [[ $(stamped 1) != "$(place)" ]]; then
    fresh=yes
    find .venv -mindepth 1 -maxdepth 1 ! -name 'setup.l*' -exec rm -rf {} +
fi
rm -f "$stamp"
uv=$(command -v uv || true)
if [[ $uv ]]; then
    [[ ! $fresh ]] || run_or_die "$uv" venv --allow-existing --python "$python" .venv
else
    uv=.venv/bin/uv
    [[ ! $fresh ]] || run_or_die "$python" -m venv .venv
    [[ -x $uv ]] || run_or_die .venv/bin/python -m pip install -c launch/constraints.txt uv
    # uv does not read pip's settings: tell it the index that pip uses on this machine.
    index=${PIP_INDEX_URL:-$(.venv/bin/python -m pip config get global.index-url 2>/dev/null || true)}
    [[ ! $index ]] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"
fi

# --- Packages.
install() {
    "$uv" pip install --python .venv/bin/python --constraints launch/constraints.txt \
        --build-constraints launch/constraints.txt "$@"
}
packages() { # from uv's cache alone where that suffices: a second clone asks the network for nothing
    run install --offline "$@" || run install "$@"
}
imports() { run .venv/bin/python -c "import $1"; }

say "installing packages into .venv with Python $version (5 GB, log in $log)"
run_or_die packages -e '.[dev,export,tensorboard,dashboard]'

ffcv=(-r pyproject.toml --extra ffcv)
without_ffcv=
if ((${#missing[@]})); then
    without_ffcv="it needs ${missing[*]} (apt-get install ${missing[*]}, or: conda install -c \
conda-forge compilers pkg-config opencv libjpeg-turbo)"
elif ! { packages "${ffcv[@]}" && imports 'torch, torchvision, ffcv'; } &&
    # A wheel in uv's cache that was built against an older OpenCV no longer loads: build it anew.
    ! { run install --reinstall-package ffcv "${ffcv[@]}" && imports 'torch, torchvision, ffcv'; }; then
    tail -n 20 "$log" >&2
    without_ffcv="it could not be installed, see above and $log"
fi
if [[ $without_ffcv ]]; then
    say "going on without FFCV: $without_ffcv" >&2
    run "$uv" pip uninstall --python .venv/bin/python ffcv || true
    run_or_die imports 'torch, torchvision'
fi

# --- Done.
ready="ready: $(.venv/bin/python - "${without_ffcv:+without}" <<'PYTHON'
import importlib.metadata
import platform
import sys

names = ["torch", "torchvision", "accelerate", "wandb"]
versions = [f"{name} {importlib.metadata.version(name)}" for name in names]
if sys.argv[1]:
    versions.append("no FFCV (once it can be built: rm -r .venv, make setup)")
else:
    versions.append("ffcv " + importlib.metadata.version("ffcv"))
print("Python", platform.python_version() + ",", ", ".join(versions))
PYTHON
)"
{ place && printf '\n' && inputs && printf '%s\n' "$ready"; } >"$stamp.new"
mv "$stamp.new" "$stamp"
say "$ready"

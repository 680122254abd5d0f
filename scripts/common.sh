# Sourced by the other scripts: where we are, and how things that are missing are had.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=${VENV:-.venv}
PY=$VENV/bin/python
export PIP_QUIET=1 PIP_DISABLE_PIP_VERSION_CHECK=1

say() { printf '\033[1m== %s\033[0m\n' "$*" >&2; }
[ -t 2 ] && [ -z "${NO_COLOR:-}" ] || say() { printf '== %s\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$1" >&2; [ $# -lt 2 ] || printf '\nhint: %s\n' "$2" >&2; exit 1; }

# apt_install PACKAGE...: as root on a machine with apt-get; fails elsewhere. Services that come along are not started.
apt_install() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    say "apt-get install $*"
    apt-get -qq update >&2 || true
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" >&2
}

# need_python: set PYTHON to an interpreter that is new enough and can make virtual environments.
need_python() {
    PYTHON=${PYTHON:-python3}
    command -v "$PYTHON" >/dev/null || fail "$PYTHON is missing" "install Python 3.11 or newer, or set PYTHON"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "$("$PYTHON" --version) is too old" "install Python 3.11 or newer, or set PYTHON"
    "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || apt_install python3-venv ||
        fail "$PYTHON cannot make virtual environments (no ensurepip)" "apt-get install python3-venv"
}

# need_servers: what the tests of stores start for themselves; without them they are skipped with the reason.
need_servers() {
    local missing=()
    PATH=$PATH:/usr/sbin command -v nginx >/dev/null || missing+=(nginx-light)
    command -v redis-server >/dev/null || command -v valkey-server >/dev/null || missing+=(redis-server)
    [ ${#missing[@]} = 0 ] || apt_install "${missing[@]}" || say "missing, and their tests are skipped: ${missing[*]}"
}

need_rust() {
    command -v cargo >/dev/null || fail "cargo is missing" "install Rust 1.87 or newer: https://rustup.rs"
    command -v cc >/dev/null || apt_install gcc libc6-dev || fail "cc is missing" "apt-get install gcc libc6-dev"
}

# need_venv: a virtual environment with a pip that knows dependency groups.
need_venv() {
    [ -x "$PY" ] && "$PY" -m pip --version >/dev/null 2>&1 && return
    need_python
    say "making $VENV"
    "$PYTHON" -m venv --clear "$VENV"
    "$PY" -m pip install --upgrade pip
}

#!/usr/bin/env bash
# Make .venv from requirements.lock and install this checkout into it (editable). Does nothing when that is done
# already: the stamp carries the hash of the lock and of pyproject.toml. Run it as `make venv`.
set -euo pipefail
cd "$(dirname "$0")/.."
. .ci/pip_settings.sh

say() { printf '%s\n' "$*" >&2; }

# What tests/cloud makes pretend machines of. Without root, or without apt, those tests are skipped and say so.
install_debian_packages() {
  local missing="" pair
  for pair in sshd:openssh-server sudo:sudo rsync:rsync nc:netcat-openbsd ip:iproute2 curl:curl ps:procps patch:patch; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair##*:}"
  done
  if [ -z "$missing" ] || [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then return; fi
  say "Installing for the cloud tests:$missing"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq >&2 || true
  # shellcheck disable=SC2086 # one word for each package
  apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 || say "That failed; the cloud tests will be skipped."
}
install_debian_packages

stamp=".venv/.installed-$(cat requirements.lock pyproject.toml | sha256sum | cut -c1-16)"
if [ -e "$stamp" ]; then exit 0; fi

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      printf '%s' "$candidate"
      return
    fi
  done
  say "No Python 3.11 or later was found (looked for ${PYTHON:-python3.11, python3.12, python3.13, python3})."
  say "Install one, or name it: make $1 PYTHON=/path/to/python3.11"
  exit 1
}

make_venv() { # $1 python; Debian ships venv without ensurepip, in a package of its own
  local version
  if "$1" -m venv .venv >/dev/null 2>&1; then return; fi
  rm -rf .venv
  version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    say "$1 cannot make virtual environments yet; installing python$version-venv"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq >&2 || true
    apt-get install -y -qq "python$version-venv" >&2 || apt-get install -y -qq python3-venv >&2 || true
    if "$1" -m venv .venv; then return; fi
    rm -rf .venv
  fi
  say "$1 -m venv failed: its venv module has no ensurepip."
  say "On Debian and Ubuntu, as root: apt-get install python$version-venv. Then run make again."
  exit 1
}

# A .venv whose Python is gone (moved folder, upgraded system) cannot be repaired, only made again.
if [ -d .venv ] && ! .venv/bin/python -c '' 2>/dev/null; then rm -rf .venv; fi
if [ ! -d .venv ]; then
  python=$(find_python "${1:-venv}")
  say "Making .venv with $("$python" --version) ..."
  make_venv "$python"
fi

uv_pin=$(grep -m1 -E '^uv==' requirements.lock)
if ! .venv/bin/uv --version >/dev/null 2>&1; then
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "$uv_pin" >&2
fi

use_pip_settings .venv/bin/python
# Compiled now, once: uv leaves it to the first import, and where Python may not write bytecode every start would pay.
say "Installing requirements.lock (a minute or two the first time) ..."
export VIRTUAL_ENV="$PWD/.venv"
.venv/bin/uv pip install --quiet --compile-bytecode --requirement requirements.lock
.venv/bin/uv pip install --quiet --no-deps --no-build-isolation --editable .
rm -f .venv/.installed-*
touch "$stamp"
say "Ready: .venv/bin/alpaca-jobs --help"

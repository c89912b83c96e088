#!/usr/bin/env bash
# Write requirements.lock from pyproject.toml. Run it as `make lock`, or `make lock ARGS=--upgrade`.
# It wants a CPU build of torch where pip finds its wheels (PIP_FIND_LINKS): the lock then leaves the CUDA libraries
# open, so that one lock serves laptops (which never fetch them) and GPU machines (whose torch brings its own).
set -euo pipefail
cd "$(dirname "$0")/.."
. .ci/pip_settings.sh
use_pip_settings .venv/bin/python

new=$(mktemp)
trap 'rm -f "$new"' EXIT
# The pins stand except torch's: as 2.13.0 it would be read as "the build with CUDA" and never as 2.13.0+cpu.
grep -v '^torch==' requirements.lock >"$new"
export UV_CUSTOM_COMPILE_COMMAND="make lock"
.venv/bin/uv pip compile pyproject.toml --quiet --extra sky --extra node --extra dev \
  --python-version 3.11 --no-emit-index-url --no-emit-find-links --output-file "$new" "$@" >/dev/null
if grep -q '^nvidia-' "$new"; then
  echo "make lock: the torch found here brings CUDA libraries. Point PIP_FIND_LINKS at a CPU build of it." >&2
  exit 1
fi
# A CPU build names itself 2.13.0+cpu; pinned like that, no other machine would find it.
sed -i 's/^torch==\(.*\)+cpu$/torch==\1/' "$new"
cp "$new" requirements.lock

#!/usr/bin/env bash
# The whole test suite. Quick tests run in two processes; those that fill both CPUs by themselves, or start a cloud, one
# after the other. Arguments go to both (a path, -k ...); either may then find nothing to do, not both.
set -uo pipefail
cd "$(dirname "$0")/.."

run() {
  printf '\n-- pytest %s\n' "$*"
  .venv/bin/python -m pytest "$@"
}

run -n 2 -m "not slow and not cloud" "$@"
quick=$?
run -m "slow or cloud" "$@"
slow=$?
if [ $quick = 5 ] && [ $slow = 5 ]; then exit 5; fi # pytest's word for: nothing was chosen
for code in $quick $slow; do
  if [ "$code" != 0 ] && [ "$code" != 5 ]; then exit "$code"; fi
done

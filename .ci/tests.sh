#!/usr/bin/env bash
# The whole test suite, every test once. What is neither slow nor a cloud runs two at a time, tests that start processes
# (the marker `process`, which only `make check` leaves out) among them; what fills both CPUs by itself, or starts a
# cloud, one after the other. Arguments go to both (a path, -k ...); either may then find nothing to do, not both.
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

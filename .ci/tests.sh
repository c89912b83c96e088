#!/usr/bin/env bash
# The whole test suite, two or three tests at a time: quick ones, slow ones, then the cloud in a box (one box for each of the two).
# Arguments go to all three (a path, -k ...); some may then find nothing to do, not all. TESTS_SECONDS is for all three.
set -uo pipefail
cd "$(dirname "$0")/.."

failed=0 chosen=0
run() {
  # A suite that takes too long ends with what it has to say, before a limit around it ends it without a word.
  if [ -n "${TESTS_SECONDS:-}" ]; then set -- "--session-timeout=$((TESTS_SECONDS > SECONDS ? TESTS_SECONDS - SECONDS : 1))" "$@"; fi
  printf '\n-- pytest %s\n' "$*"
  .venv/bin/python -m pytest "$@"
  local code=$?
  if [ $code = 5 ]; then return; fi # pytest's word for: nothing was chosen
  chosen=1
  if [ $code != 0 ]; then failed=$code; fi
}

# Only its own folder is read for the cloud in a box, unless a path is given: importing every test takes a while.
cloud=(tests/cloud)
for word in "$@"; do if [ -e "${word%%::*}" ]; then cloud=(); fi; done

# Each begins with one half of the tests, so that a file is mostly with one of them, and what it shares is made once.
run -n 2 --dist worksteal -m "not slow and not cloud" "$@"
# A file's tests share what they have trained. Three at a time: more than half of their time they wait.
run -n 3 --dist loadfile --no-loadscope-reorder -p tests.longest_first -m "slow and not cloud" "$@"
run -n 2 --dist worksteal -p tests.longest_first -m cloud "${cloud[@]}" "$@"
if [ $chosen = 0 ]; then exit 5; fi
exit $failed

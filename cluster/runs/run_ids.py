"""Run ids: the job's name and a short random suffix, the same over all recoveries and resumes of a run."""

from __future__ import annotations

import random
import re
import secrets

from cluster.errors import WrongInput

# No vowels, so that no words appear; no 0/o, 1/l/i, so that a run id can be read out.
SUFFIX_ALPHABET = "bcdfghjkmnpqrstvwxz23456789"
SUFFIX_LENGTH = 5
_RUN_ID = re.compile(rf"[a-z0-9](?:[a-z0-9-]{{0,38}}[a-z0-9])?-[{SUFFIX_ALPHABET}]{{{SUFFIX_LENGTH}}}")


def new_run_id(job_name: str, *, rng: random.Random | None = None) -> str:
    """Make a run id such as alpaca-7b-x3fkd (27**5, 14 million, for each job name).

    Args:
        job_name: a valid JobSpec.name.
        rng: where the suffix comes from; tests pass a seeded random.Random.
    """
    rng = rng or secrets.SystemRandom()
    return f"{job_name}-{''.join(rng.choice(SUFFIX_ALPHABET) for _ in range(SUFFIX_LENGTH))}"


def is_run_id(value: str) -> bool:
    """Whether this could be a run id."""
    return _RUN_ID.fullmatch(value) is not None


def check_run_id(value: str) -> str:
    """Return a valid run id as it is; raise WrongInput for anything else (also for what could leave its folder)."""
    if not is_run_id(value):
        raise WrongInput(
            f"{value!r:.80} is not a run id; those look like alpaca-7b-x3fkd (the job's name and {SUFFIX_LENGTH} "
            "characters). See them with: alpaca-jobs runs"
        )
    return value

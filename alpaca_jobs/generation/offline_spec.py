"""What `teacher: offline` stands for: the demo teacher of offline_teacher.py, written as any other teacher."""

from __future__ import annotations

from alpaca_jobs.spec import TeacherSpec

OFFLINE_MODEL = "offline-demo"


def offline_teacher_spec(base_url: str | None = None, *, word: str = "offline") -> TeacherSpec:
    """Return the spec of the offline teacher.

    Args:
        base_url: where this start of its server listens; None where nothing is asked (planning requests), since the
            port is no part of what a request is.
        word: the job's: offline, or offline-batch for its Batch API.
    """
    return TeacherSpec(
        model=OFFLINE_MODEL,
        base_url=base_url,
        api="completions",
        api_key_env=None,
        batch_api=word == "offline-batch",
        price_per_million_input_usd=0.0,
        price_per_million_output_usd=0.0,
    )

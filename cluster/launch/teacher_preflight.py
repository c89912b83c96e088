"""Asking a teacher which models it has, before machines are paid to find out that it has not the one of the job."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from alpaca_jobs.errors import TeacherError
from alpaca_jobs.generation.completer import list_models
from alpaca_jobs.spec import JobSpec, TeacherSpec

LIMIT_S = 5.0
"""Longest that a launch is held up by the question."""
_NAMED = 5


def teacher_warnings(job: JobSpec, environ: Mapping[str, str]) -> list[str]:
    """Return what a job's teacher says against its model, in sentences; nothing is billed, and nothing is refused.

    It is not asked where the run serves it itself, or where its key is not in this shell. A server may list no models,
    or stand where only the nodes reach it: then the sentence says that it could not be asked.
    """
    teacher = job.data.teacher
    if "generate" not in job.stages or not isinstance(teacher, TeacherSpec) or teacher.serve is not None:
        return []
    key = environ.get(teacher.api_key_env) if teacher.api_key_env else None
    if teacher.needs_key and not key:
        return []
    where = teacher.base_url or "the OpenAI API"
    try:
        models = asyncio.run(list_models(teacher, key, limit_s=LIMIT_S))
    except TeacherError as exc:
        return [f"{where} could not be asked from here whether it has {teacher.model} ({exc}). The run will ask it."]
    if teacher.model in models:
        return []
    listed = ", ".join(models[:_NAMED]) + (f" and {len(models) - _NAMED} more" if len(models) > _NAMED else "")
    return [f"{where} lists no model {teacher.model}; it lists {listed or 'none'}. Check data.teacher.model."]

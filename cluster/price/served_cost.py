"""What a teacher of the run's own takes: tokens over a throughput, and the same tokens' price at an API. Pure.

tokens/s = min(requests in flight x tokens/s of one, GPUs x bf16 peak x utilisation / (2 FLOPs x parameters))
"""

from __future__ import annotations

from dataclasses import dataclass

from alpaca_jobs.known_models import parameters_by_name
from alpaca_jobs.spec import DataSpec, TeacherSpec
from alpaca_jobs.teacher_prices import list_price
from cluster.node.in_flight import MOST_PER_ACTOR
from cluster.price.hardware import peak_flops

FLOPS_PER_PARAMETER_AND_TOKEN = 2
"""Of the forward pass alone. Source: Kaplan et al., arXiv:2001.08361, section 2.1."""
UTILISATION = 0.1
"""Share of the peak that many short answers at a time reach while they are written; ours, not measured yet."""
START_S = 300.0
"""Installing the server and loading the model; ours, not measured yet."""
COMPARED_API = "gpt-4o-mini"
SERVED_SOURCE = "prior: ours, not measured yet; 2 FLOPs a parameter and token, arXiv:2001.08361"


@dataclass(frozen=True)
class ServedSpeed:
    """How fast a served model answers.

    Attributes:
        tokens_per_second: of all requests in flight together.
        words: how that comes about.
    """

    tokens_per_second: float
    words: str


def served_speed(data: DataSpec, *, tokens_per_second_each: float) -> ServedSpeed:
    """The throughput of the job's own teacher: what its requests in flight can use, and at most what its GPUs give.

    Args:
        tokens_per_second_each: of one request in flight, however many there are.
    """
    assert isinstance(data.teacher, TeacherSpec)
    at_once = data.num_actors * (MOST_PER_ACTOR if data.concurrency == "auto" else data.concurrency)
    asked = at_once * tokens_per_second_each
    words = f"{at_once} in flight x {tokens_per_second_each:g} tokens/s"
    name, _, count = (data.teacher.server.gpus or "").partition(":")
    peak = peak_flops(name, infra="", instance_type="") if name else None
    size = parameters_by_name(data.teacher.model)
    if peak is None or size is None:
        return ServedSpeed(asked, f"{words}; what its GPUs give is not known")
    most = int(count or 1) * peak * UTILISATION / (FLOPS_PER_PARAMETER_AND_TOKEN * size)
    if most < asked:
        return ServedSpeed(
            most, f"{count or 1} {name} x peak x {UTILISATION:.0%} / (2 x {size / 1e9:.3g} B parameters)"
        )
    key = "num_actors" if data.concurrency == "auto" else "concurrency"
    return ServedSpeed(asked, f"{words}, below what {count or 1} {name} give, {most:,.0f}: raise data.{key}")


def at_an_api_usd(prompt_tokens: float, completion_tokens: float) -> tuple[float, str] | None:
    """Dollars for the same tokens at an API's list price, and its source; None where the table does not hold it."""
    price = list_price(COMPARED_API, None)
    if price is None:
        return None
    usd = (prompt_tokens * price.input_usd + completion_tokens * price.output_usd) / 1e6
    return usd, f"{price.source}, read on {price.as_of}"

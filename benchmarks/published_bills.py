"""Check the estimate against bills that others have published: prints the table of docs/ESTIMATE.md.

    python benchmarks/published_bills.py

(a) puts a published throughput in and predicts another number with it: LLaMA's tokens per second at 65B for its GPU
hours, Vicuna-13B's day for the 7B's bill, and each Vicuna's on-demand bill for its spot bill; (b) uses the one MFU
prior for everything. No constant belongs to a single row.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from alpaca_jobs.known_models import KNOWN_MODELS
from alpaca_jobs.spec import DataSpec, TeacherSpec
from cluster.course import Course
from cluster.plan import SECONDS_PER_HOUR, Pricing
from cluster.price.assumptions import Assumptions
from cluster.price.courses import STATE_BYTES_PER_PARAMETER, WEIGHTS_BYTES_PER_PARAMETER
from cluster.price.offers import SNAPSHOT, load_offers
from cluster.price.simulation import play, quantiles
from cluster.price.teacher_cost import estimate_teacher
from cluster.price.throughput import MFU_PRIOR, Throughput, measured_mfu

A100_FLOPS = 312e12
P7 = KNOWN_MODELS["huggyllama/llama-7b"].num_parameters
P13 = KNOWN_MODELS["huggyllama/llama-13b"].num_parameters
P65 = KNOWN_MODELS["huggyllama/llama-65b"].num_parameters

# LLaMA, arXiv:2302.13971: section 2.4 (65B: "around 380 tokens/sec/GPU on 2048 A100", 1.4 T tokens, "approximately 21
# days") and table 15 (GPU hours of 7B and 13B, 1.0 T tokens each).
LLAMA_TOKENS_PER_SECOND_PER_GPU = 380.0
# Alpaca, crfm.stanford.edu/2023/03/13/alpaca.html: 3 hours on 8 A100-80GB, under 100 USD; data under 500 USD.
ALPACA_TOKENS = 3 * 6.66e6
# Vicuna, lmsys.org/blog/2023-03-30-vicuna: 8 A100, one day; 40 times Alpaca's data; 3 epochs (FastChat's command);
# 7B 500 -> 140 USD, 13B 1,000 -> 300 USD by going from on demand to managed spot.
VICUNA_TOKENS = 3 * 40 * 6.66e6
VICUNA_13B_HOURS = 24.0
VICUNA_13B_USD, VICUNA_7B_USD = 1000.0, 500.0
VICUNA_7B_HOURS = VICUNA_7B_USD / (VICUNA_13B_USD / VICUNA_13B_HOURS)  # the same machine at the same price
# Spot over on-demand list price of 8 A100 on GCP at that time: a2-highgpu-8g + A100 x 8 in us-central1, (1.774745 +
# 7.04) / (5.915816 + 23.472) USD per hour. Source: skypilot-org/skypilot-catalog, catalogs/v2/gcp.csv, commit d72d6709.
GCP_SPOT_SHARE = (1.774745 + 7.04) / (5.915816 + 23.472)
# text-davinci-003, the teacher: 0.02 USD per 1,000 tokens in and out (OpenAI's price list, 2023-03).
DAVINCI_USD_PER_MILLION = 20.0

LLAMA_MFU = measured_mfu(
    num_parameters=P65, tokens=LLAMA_TOKENS_PER_SECOND_PER_GPU, seconds=1.0, num_gpus=1, peak_flops=A100_FLOPS
)


def _mfu_of(num_parameters: int, tokens: float, hours: float) -> float:
    """MFU of a run on 8 A100."""
    seconds = hours * SECONDS_PER_HOUR
    return measured_mfu(
        num_parameters=num_parameters, tokens=tokens, seconds=seconds, num_gpus=8, peak_flops=A100_FLOPS
    )


VICUNA_MFU = _mfu_of(P13, VICUNA_TOKENS, VICUNA_13B_HOURS)
VICUNA_7B_MFU = _mfu_of(P7, VICUNA_TOKENS, VICUNA_7B_HOURS)
ALPACA_MFU = _mfu_of(P7, ALPACA_TOKENS, 3.0)


@dataclass(frozen=True)
class Row:
    """One published number and its two estimates.

    Attributes:
        with_throughput: (a), or None where nothing else was published about such a run that could be put in.
        with_prior: (b).
        is_bound: published as "under".
    """

    what: str
    published: float
    unit: str
    with_throughput: float | None
    with_prior: float | None
    is_bound: bool = False


def gpu_hours(num_parameters: int, tokens: float, mfu: float) -> float:
    """A100 hours for so many tokens."""
    seconds = Throughput(1, A100_FLOPS, mfu, 0.0).seconds(num_parameters=num_parameters, tokens=tokens)
    return seconds / SECONDS_PER_HOUR


def vicuna_usd(num_parameters: int, mfu: float, *, is_spot: bool) -> float:
    """Median bill of Vicuna on 8 A100, at the on-demand price per hour that the 13B's bill implies."""
    priors = Assumptions()
    per_byte_s = num_parameters / priors.transfer_bytes_per_s
    course = Course(
        work_s=gpu_hours(num_parameters, VICUNA_TOKENS, mfu) / 8 * SECONDS_PER_HOUR,
        work_spread=0.0,
        start_s=priors.boot_s + WEIGHTS_BYTES_PER_PARAMETER * per_byte_s,
        restart_s=priors.boot_s + STATE_BYTES_PER_PARAMETER * per_byte_s,
        away_s=priors.away_s,
        save_interval_s=priors.save_interval_s,
        losses_per_hour=priors.hazard.per_node_hour if is_spot else 0.0,
    )
    price = VICUNA_13B_USD / VICUNA_13B_HOURS * (GCP_SPOT_SHARE if is_spot else 1.0)
    games = play(course, draws=2000, seed=0)
    return quantiles([game.billed_s / SECONDS_PER_HOUR * price for game in games]).p50


def rows() -> tuple[Row, ...]:
    """Every published number that REFERENCE names, in its unit."""
    teacher = TeacherSpec(
        model="text-davinci-003",
        base_url="http://127.0.0.1/v1",
        price_per_million_input_usd=DAVINCI_USD_PER_MILLION,
        price_per_million_output_usd=DAVINCI_USD_PER_MILLION,
    )
    data_usd = estimate_teacher(DataSpec(teacher=teacher)).cost_usd
    alpaca_hours = gpu_hours(P7, ALPACA_TOKENS, MFU_PRIOR) / 8
    return (
        _time_row("LLaMA-7B, 1.0 T tokens", 82_432.0, "GPU h", P7, 1e12, LLAMA_MFU),
        _time_row("LLaMA-13B, 1.0 T tokens", 135_168.0, "GPU h", P13, 1e12, LLAMA_MFU),
        _time_row("LLaMA-65B, 1.4 T tokens on 2,048 GPUs", 21.0, "days", P65, 1.4e12, LLAMA_MFU, num_gpus=2048),
        _vicuna_row("Vicuna-13B, on demand", VICUNA_13B_USD, P13, VICUNA_MFU),
        _vicuna_row("Vicuna-7B, on demand", VICUNA_7B_USD, P7, VICUNA_MFU),
        _vicuna_row("Vicuna-13B, spot", 300.0, P13, VICUNA_MFU, is_spot=True),
        _vicuna_row("Vicuna-7B, spot", 140.0, P7, VICUNA_7B_MFU, is_spot=True),
        _time_row("Alpaca-7B on 8 GPUs", 3.0, "h", P7, ALPACA_TOKENS, None, num_gpus=8),
        Row("Alpaca-7B, on demand", 100.0, "USD", _alpaca_usd(3.0), _alpaca_usd(alpaca_hours), is_bound=True),
        Row("Alpaca's 52,000 rows from the teacher", 500.0, "USD", None, data_usd, is_bound=True),
    )


def _alpaca_usd(hours: float) -> float:
    """Bill at the median over clouds of today's lowest on-demand price of 8 A100-80GB ("on most cloud providers")."""
    lowest: dict[str, float] = {}
    for offer in load_offers(catalogs=SNAPSHOT, machines="gpu"):
        price = offer.price_per_hour_usd
        if offer.gpus == "A100-80GB:8" and offer.pricing is Pricing.ON_DEMAND and price is not None:
            lowest[offer.infra] = min(price, lowest.get(offer.infra, price))
    return (hours + Assumptions().boot_s / SECONDS_PER_HOUR) * statistics.median(lowest.values())


def _time_row(
    what: str, published: float, unit: str, num_parameters: int, tokens: float, mfu: float | None, *, num_gpus: int = 1
) -> Row:
    share = num_gpus * (24.0 if unit == "days" else 1.0)
    put_in = gpu_hours(num_parameters, tokens, mfu) / share if mfu else None
    return Row(what, published, unit, put_in, gpu_hours(num_parameters, tokens, MFU_PRIOR) / share)


def _vicuna_row(what: str, published: float, num_parameters: int, mfu: float, *, is_spot: bool = False) -> Row:
    put_in, prior = (vicuna_usd(num_parameters, one, is_spot=is_spot) for one in (mfu, MFU_PRIOR))
    return Row(what, published, "USD", put_in, prior)


def table() -> str:
    """The rows as Markdown."""
    lines = [
        f"| what | published | (a) published throughput put in | (b) MFU prior {MFU_PRIOR:.0%} for all |",
        "|---|---:|---:|---:|",
    ]
    for row in rows():
        published = f"{'under ' if row.is_bound else ''}{_number(row.published)} {row.unit}"
        lines.append(f"| {row.what} | {published} | {_cell(row, row.with_throughput)} | {_cell(row, row.with_prior)} |")
    return "\n".join(lines)


def _cell(row: Row, value: float | None) -> str:
    if value is None:
        return ""
    if row.is_bound:
        return f"{_number(value)} (holds)" if value <= row.published else f"{_number(value)} (broken)"
    return f"{_number(value)} ({value / row.published - 1:+.0%})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    print(f"MFU put in: LLaMA {LLAMA_MFU:.1%}, Vicuna {VICUNA_MFU:.1%}, Alpaca {ALPACA_MFU:.1%}\n")
    print(table())

"""Facts about base models that this project knows by name, so that a job can be checked and priced without a download.

A model that is not here still trains; only the checks that need its size or context are left to the user.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class KnownModel:
    """Size and context of a base model.

    Attributes:
        num_parameters: all parameters, embeddings included.
        context_length: tokens it was trained for, or None where the job's own max_length decides.
        has_rope: whether positions are rotary embeddings, which can be stretched over a longer context.
    """

    num_parameters: int
    context_length: int | None
    has_rope: bool = True


# Source: parameter totals and `max_position_embeddings` as published in each model's repository on Hugging Face
# (safetensors totals and config.json); LLaMA sizes also in arXiv:2302.13971, table 2, OPT in arXiv:2205.01068, table 1.
KNOWN_MODELS: dict[str, KnownModel] = {
    "tiny-llama": KnownModel(1_000_000, None),
    "huggyllama/llama-7b": KnownModel(6_738_415_616, 2048),
    "huggyllama/llama-13b": KnownModel(13_015_864_320, 2048),
    "huggyllama/llama-30b": KnownModel(32_528_943_616, 2048),
    "huggyllama/llama-65b": KnownModel(65_285_660_672, 2048),
    "meta-llama/Llama-2-7b-hf": KnownModel(6_738_415_616, 4096),
    "meta-llama/Llama-2-13b-hf": KnownModel(13_015_864_320, 4096),
    "meta-llama/Meta-Llama-3-8B": KnownModel(8_030_261_248, 8192),
    "mistralai/Mistral-7B-v0.1": KnownModel(7_241_732_096, 32_768),
    "facebook/opt-125m": KnownModel(125_239_296, 2048, has_rope=False),
    "facebook/opt-1.3b": KnownModel(1_315_758_080, 2048, has_rope=False),
    "facebook/opt-6.7b": KnownModel(6_658_473_984, 2048, has_rope=False),
    "Qwen/Qwen2.5-0.5B": KnownModel(494_032_768, 32_768),
    "openai-community/gpt2": KnownModel(124_439_808, 1024, has_rope=False),
}

_SIZE_IN_NAME = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)[bB](?![A-Za-z0-9])")


def parameters_by_name(model: str) -> int | None:
    """A model's size: known here, or as its name says it (Qwen2.5-7B-Instruct); None where neither does."""
    if model in KNOWN_MODELS:
        return KNOWN_MODELS[model].num_parameters
    sizes = _SIZE_IN_NAME.findall(model.rpartition("/")[2])
    return round(float(sizes[0]) * 1e9) if len(sizes) == 1 else None

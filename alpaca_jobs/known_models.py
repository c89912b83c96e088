"""Facts about base models that this project knows by name, so that a job can be checked and priced without a download.

A model that is not here still trains. Where its name tells its size (Some-7B-Chat), that size is taken as a guess and
said to be one; else the checks that need its size or context are left to the user.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from alpaca_jobs.model_shapes import ModelShape, shape_by_size


@dataclass(frozen=True)
class KnownModel:
    """Size, context and shape of a base model.

    Attributes:
        num_parameters: all parameters, embeddings included; of tied embeddings one.
        context_length: tokens it was trained for, or None where the job's own max_length decides.
        shape: its layers and widths.
        has_rope: whether positions are rotary embeddings, which can be stretched over a longer context.
    """

    num_parameters: int
    context_length: int | None
    shape: ModelShape
    has_rope: bool = True


@dataclass(frozen=True)
class SizedModel:
    """How large a model is, known or guessed.

    Attributes:
        guess: how the size was guessed, in words; empty where it is known.
        is_whole: whether its files can only be read all at once, by every rank.
    """

    num_parameters: int
    shape: ModelShape
    guess: str = ""
    is_whole: bool = False

    @property
    def active_parameters(self) -> int:
        """Parameters that one token goes through: all but those of its idle experts."""
        return self.num_parameters - self.shape.idle_parameters

    def with_words(self, count: int) -> SizedModel:
        """The model with so many more words in its vocabulary, each a row of either embedding."""
        shape = self.shape.with_words(count)
        grown = shape.embedding_parameters - self.shape.embedding_parameters
        return replace(self, num_parameters=self.num_parameters + grown, shape=shape)


_LLAMA_7B = ModelShape(32, 4096, 11008, 32, 32, 32_000)
_LLAMA_13B = ModelShape(40, 5120, 13824, 40, 40, 32_000)
_LLAMA_3_8B = ModelShape(32, 4096, 14336, 32, 8, 128_256)
_LLAMA_3_70B = ModelShape(80, 8192, 28672, 64, 8, 128_256)
_LLAMA_3_1B = ModelShape(16, 2048, 8192, 32, 8, 128_256, is_tied=True)
_LLAMA_3_3B = ModelShape(28, 3072, 8192, 24, 8, 128_256, is_tied=True)

# Source: parameter totals, `max_position_embeddings` and widths as published in each model's repository on Hugging Face
# (safetensors totals and config.json; for Qwen2.5's base models the context of the model card); LLaMA sizes also in
# arXiv:2302.13971, table 2, OPT in arXiv:2205.01068, table 1. A test counts every total again from the widths.
KNOWN_MODELS: dict[str, KnownModel] = {
    "tiny-llama": KnownModel(1_000_000, None, ModelShape(4, 128, 352, 4, 4, 4096, is_tied=True)),
    "huggyllama/llama-7b": KnownModel(6_738_415_616, 2048, _LLAMA_7B),
    "huggyllama/llama-13b": KnownModel(13_015_864_320, 2048, _LLAMA_13B),
    "huggyllama/llama-30b": KnownModel(32_528_943_616, 2048, ModelShape(60, 6656, 17920, 52, 52, 32_000)),
    "huggyllama/llama-65b": KnownModel(65_285_660_672, 2048, ModelShape(80, 8192, 22016, 64, 64, 32_000)),
    "meta-llama/Llama-2-7b-hf": KnownModel(6_738_415_616, 4096, _LLAMA_7B),
    "meta-llama/Llama-2-7b-chat-hf": KnownModel(6_738_415_616, 4096, _LLAMA_7B),
    "meta-llama/Llama-2-13b-hf": KnownModel(13_015_864_320, 4096, _LLAMA_13B),
    "meta-llama/Llama-2-13b-chat-hf": KnownModel(13_015_864_320, 4096, _LLAMA_13B),
    "meta-llama/Llama-2-70b-hf": KnownModel(68_976_648_192, 4096, ModelShape(80, 8192, 28672, 64, 8, 32_000)),
    "meta-llama/Meta-Llama-3-8B": KnownModel(8_030_261_248, 8192, _LLAMA_3_8B),
    "meta-llama/Meta-Llama-3-8B-Instruct": KnownModel(8_030_261_248, 8192, _LLAMA_3_8B),
    "meta-llama/Meta-Llama-3-70B": KnownModel(70_553_706_496, 8192, _LLAMA_3_70B),
    "meta-llama/Llama-3.1-8B": KnownModel(8_030_261_248, 131_072, _LLAMA_3_8B),
    "meta-llama/Llama-3.1-8B-Instruct": KnownModel(8_030_261_248, 131_072, _LLAMA_3_8B),
    "meta-llama/Llama-3.1-70B": KnownModel(70_553_706_496, 131_072, _LLAMA_3_70B),
    "meta-llama/Llama-3.1-70B-Instruct": KnownModel(70_553_706_496, 131_072, _LLAMA_3_70B),
    "meta-llama/Llama-3.2-1B": KnownModel(1_235_814_400, 131_072, _LLAMA_3_1B),
    "meta-llama/Llama-3.2-1B-Instruct": KnownModel(1_235_814_400, 131_072, _LLAMA_3_1B),
    "meta-llama/Llama-3.2-3B": KnownModel(3_212_749_824, 131_072, _LLAMA_3_3B),
    "meta-llama/Llama-3.2-3B-Instruct": KnownModel(3_212_749_824, 131_072, _LLAMA_3_3B),
    "lmsys/vicuna-7b-v1.5": KnownModel(6_738_415_616, 4096, _LLAMA_7B),
    "lmsys/vicuna-13b-v1.5": KnownModel(13_015_864_320, 4096, _LLAMA_13B),
    "mistralai/Mistral-7B-v0.1": KnownModel(7_241_732_096, 32_768, ModelShape(32, 4096, 14336, 32, 8, 32_000)),
    "mistralai/Mistral-7B-v0.3": KnownModel(7_248_023_552, 32_768, ModelShape(32, 4096, 14336, 32, 8, 32_768)),
    "mistralai/Mistral-7B-Instruct-v0.3": KnownModel(7_248_023_552, 32_768, ModelShape(32, 4096, 14336, 32, 8, 32_768)),
    "facebook/opt-125m": KnownModel(
        125_239_296,
        2048,
        ModelShape(12, 768, 3072, 12, 12, 50_272, is_tied=True, is_gated=False, wide_copies=2),
        has_rope=False,
    ),
    "facebook/opt-1.3b": KnownModel(
        1_315_758_080,
        2048,
        ModelShape(24, 2048, 8192, 32, 32, 50_272, is_tied=True, is_gated=False, wide_copies=2),
        has_rope=False,
    ),
    "facebook/opt-6.7b": KnownModel(
        6_658_473_984,
        2048,
        ModelShape(32, 4096, 16384, 32, 32, 50_272, is_tied=True, is_gated=False, wide_copies=2),
        has_rope=False,
    ),
    "openai-community/gpt2": KnownModel(
        124_439_808,
        1024,
        ModelShape(12, 768, 3072, 12, 12, 50_257, is_tied=True, is_gated=False, wide_copies=5),
        has_rope=False,
    ),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": KnownModel(1_100_048_384, 2048, ModelShape(22, 2048, 5632, 32, 4, 32_000)),
    "HuggingFaceTB/SmolLM2-135M": KnownModel(134_515_008, 8192, ModelShape(30, 576, 1536, 9, 3, 49_152, is_tied=True)),
    "HuggingFaceTB/SmolLM2-360M": KnownModel(361_821_120, 8192, ModelShape(32, 960, 2560, 15, 5, 49_152, is_tied=True)),
    "HuggingFaceTB/SmolLM2-1.7B": KnownModel(
        1_711_376_384, 8192, ModelShape(24, 2048, 8192, 32, 32, 49_152, is_tied=True)
    ),
    "internlm/internlm-7b": KnownModel(7_321_948_160, 2048, ModelShape(32, 4096, 11008, 32, 32, 103_168)),
    "internlm/internlm2_5-7b": KnownModel(7_737_708_544, 32_768, ModelShape(32, 4096, 14336, 32, 8, 92_544)),
    "internlm/internlm2_5-7b-chat": KnownModel(7_737_708_544, 32_768, ModelShape(32, 4096, 14336, 32, 8, 92_544)),
}

# (size in the name, parameters, context of the base model, shape). The Instruct models' config.json says 32,768.
_QWEN_2_5 = (
    ("0.5B", 494_032_768, 32_768, ModelShape(24, 896, 4864, 14, 2, 151_936, is_tied=True)),
    ("1.5B", 1_543_714_304, 32_768, ModelShape(28, 1536, 8960, 12, 2, 151_936, is_tied=True)),
    ("3B", 3_085_938_688, 32_768, ModelShape(36, 2048, 11008, 16, 2, 151_936, is_tied=True)),
    ("7B", 7_615_616_512, 131_072, ModelShape(28, 3584, 18944, 28, 4, 152_064)),
    ("14B", 14_770_033_664, 131_072, ModelShape(48, 5120, 13824, 40, 8, 152_064)),
    ("32B", 32_763_876_352, 131_072, ModelShape(64, 5120, 27648, 40, 8, 152_064)),
    ("72B", 72_706_203_648, 131_072, ModelShape(80, 8192, 29568, 64, 8, 152_064)),
)
# The same of Qwen3, whose base models were trained for 32,768 tokens, and the others' config.json says 40,960.
_QWEN_3 = (
    ("0.6B", 596_049_920, ModelShape(28, 1024, 3072, 16, 8, 151_936, 128, is_tied=True)),
    ("1.7B", 1_720_574_976, ModelShape(28, 2048, 6144, 16, 8, 151_936, 128, is_tied=True)),
    ("4B", 4_022_468_096, ModelShape(36, 2560, 9728, 32, 8, 151_936, 128, is_tied=True)),
    ("8B", 8_190_735_360, ModelShape(36, 4096, 12288, 32, 8, 151_936, 128)),
    ("14B", 14_768_307_200, ModelShape(40, 5120, 17408, 40, 8, 151_936, 128)),
)


def _with_qk_norms(shape: ModelShape) -> ModelShape:
    return replace(shape, more_norms=shape.query_size + shape.kv_size)


KNOWN_MODELS.update(
    {f"Qwen/Qwen2.5-{name}": KnownModel(total, context, shape) for name, total, context, shape in _QWEN_2_5}
    | {f"Qwen/Qwen2.5-{name}-Instruct": KnownModel(total, 32_768, shape) for name, total, _, shape in _QWEN_2_5}
    | {f"Qwen/Qwen3-{name}-Base": KnownModel(total, 32_768, _with_qk_norms(shape)) for name, total, shape in _QWEN_3}
    | {f"Qwen/Qwen3-{name}": KnownModel(total, 40_960, _with_qk_norms(shape)) for name, total, shape in _QWEN_3}
)

_SIZE_IN_NAME = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([bBmM])(?![A-Za-z0-9])")


def parameters_by_name(model: str) -> int | None:
    """A model's size: known here, or as its name says it (Some-7B-Instruct); None where neither does."""
    if model in KNOWN_MODELS:
        return KNOWN_MODELS[model].num_parameters
    sizes = _SIZE_IN_NAME.findall(model.rpartition("/")[2])
    if len(sizes) != 1:
        return None
    number, unit = sizes[0]
    return round(float(number) * (1e9 if unit in "bB" else 1e6))


def size_of(model: str, *, num_parameters: int | None = None) -> SizedModel | None:
    """A model's size and shape: known here, else guessed from the size that is given or that its name tells, and said
    to be guessed; None where nothing tells its size.

    Args:
        num_parameters: what the user says it is; None for what is known.
    """
    known = KNOWN_MODELS.get(model)
    if known is not None and num_parameters in (None, known.num_parameters):
        return SizedModel(known.num_parameters, known.shape)
    if num_parameters is not None:
        return SizedModel(num_parameters, shape_by_size(num_parameters), "its shape is guessed from the size given")
    told = parameters_by_name(model)
    if told is None or told == 0:
        return None
    return SizedModel(told, shape_by_size(told), f"{told / 1e9:.3g} B parameters are a guess by its name")

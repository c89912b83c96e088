"""Facts about models by name: every total is counted again from the widths, and a guess says that it is one."""

from __future__ import annotations

import pytest

from alpaca_jobs.known_models import KNOWN_MODELS, KnownModel, parameters_by_name, size_of
from alpaca_jobs.model_shapes import ModelShape, shape_by_size

LLAMA_LIKE = sorted(name for name, one in KNOWN_MODELS.items() if one.shape.is_gated and name != "tiny-llama")


def _counted(name: str, known: KnownModel) -> int:
    """All parameters from the widths: matrices, norms, and the biases of the families that have some."""
    shape = known.shape
    small = 2 * shape.hidden_size  # two norms a layer
    if name.startswith("Qwen/Qwen2.5"):
        small += shape.query_size + 2 * shape.kv_size  # biases of queries, keys and values
    if name == "internlm/internlm-7b":
        small += shape.query_size + 2 * shape.kv_size + shape.hidden_size  # and of the output
    if name.startswith("Qwen/Qwen3"):
        small += 2 * (shape.head_size or 0)  # norms of queries and keys
    layers = shape.num_layers * (shape.layer_parameters + small)
    return layers + shape.hidden_size + shape.embedding_parameters


@pytest.mark.parametrize("name", LLAMA_LIKE)
def test_published_total_is_what_the_widths_make(name: str) -> None:
    assert _counted(name, KNOWN_MODELS[name]) == KNOWN_MODELS[name].num_parameters


@pytest.mark.parametrize("name", sorted(set(KNOWN_MODELS) - set(LLAMA_LIKE) - {"tiny-llama"}))
def test_models_with_biases_and_learned_positions_come_to_within_a_percent(name: str) -> None:
    known = KNOWN_MODELS[name]
    positions = (known.context_length or 0) * known.shape.hidden_size
    assert _counted(name, known) + positions == pytest.approx(known.num_parameters, rel=0.01)


def test_the_models_that_people_tune_are_known() -> None:
    for name in ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-72B-Instruct", "meta-llama/Llama-3.1-8B", "internlm/internlm-7b"):
        sized = size_of(name)
        assert sized is not None
        assert not sized.guess


def test_a_size_in_a_name_is_a_guess_and_says_so() -> None:
    sized = size_of("nobody/Some-7B-Chat")
    assert sized is not None
    assert (sized.num_parameters, sized.guess) == (7_000_000_000, "7 B parameters are a guess by its name")
    assert (sized.shape.num_layers, sized.shape.hidden_size) == (32, 4096)
    assert parameters_by_name("HuggingFaceTB/SmolLM-135M") == 135_000_000
    assert size_of("a/b") is None
    assert size_of("nobody/Mix-8x7B") is None  # several experts: the name does not tell the size


def test_a_given_size_counts_before_the_name() -> None:
    sized = size_of("nobody/Some-7B-Chat", num_parameters=13_000_000_000)
    assert sized is not None
    assert (sized.num_parameters, sized.shape.hidden_size) == (13_000_000_000, 5120)
    assert "guessed" in sized.guess


@pytest.mark.parametrize("name", [name for name, one in KNOWN_MODELS.items() if one.num_parameters > 3e9])
def test_a_guessed_shape_keeps_about_as_much_in_memory_as_the_real_one(name: str) -> None:
    """layers x hidden size, which activations go by: within a third of the real one, or above."""
    known = KNOWN_MODELS[name]
    guessed = shape_by_size(known.num_parameters)
    real = known.shape.num_layers * known.shape.hidden_size
    assert 0.66 * real <= guessed.num_layers * guessed.hidden_size <= 2.5 * real


def test_adapters_are_rank_times_in_and_out() -> None:
    shape = ModelShape(32, 4096, 14336, 32, 8, 128_256)
    # q: 4096 + 4096; v: 4096 + 1024; 32 layers of rank 8.
    assert shape.adapter_parameters(8, ("q_proj", "v_proj")) == 32 * 8 * (8192 + 5120)
    assert shape.adapter_parameters(1, ("gate_proj",)) == 32 * (4096 + 14336)
    assert shape.adapter_parameters(2, ("embed_tokens", "lm_head")) == 2 * 2 * (shape.vocab_size + 4096)

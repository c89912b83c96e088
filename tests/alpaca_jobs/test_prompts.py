"""The prompt formats, written out again by hand: a changed character would change every trained model."""

from __future__ import annotations

from alpaca_jobs import prompts
from alpaca_jobs.prompts import render_prompt


def test_the_template_with_an_input_is_alpacas_to_the_letter() -> None:
    assert render_prompt("Add them.", "1 and 2") == (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n"
        "\n"
        "### Instruction:\n"
        "Add them.\n"
        "\n"
        "### Input:\n"
        "1 and 2\n"
        "\n"
        "### Response:"
    )


def test_the_template_without_an_input_is_alpacas_to_the_letter() -> None:
    assert render_prompt("Say hello.") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n"
        "\n"
        "### Instruction:\n"
        "Say hello.\n"
        "\n"
        "### Response:"
    )


def test_braces_in_a_row_are_only_text() -> None:
    prompt = render_prompt("Explain {input} and {instruction} and {}.", '{"a": {instruction}}')
    assert "Explain {input} and {instruction} and {}.\n" in prompt
    assert '### Input:\n{"a": {instruction}}\n' in prompt


def test_the_vicuna_pieces_make_version_1_1_to_the_letter() -> None:
    user, assistant = prompts.VICUNA_USER, prompts.VICUNA_ASSISTANT
    text = prompts.VICUNA_SYSTEM + prompts.VICUNA_AFTER_USER
    for number in (1, 2):
        text += f"{user}: q{number}{prompts.VICUNA_AFTER_USER}{assistant}: a{number}</s>"
    assert text == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. "
        "USER: q1 ASSISTANT: a1</s>USER: q2 ASSISTANT: a2</s>"
    )

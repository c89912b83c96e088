"""The prompts that trained models depend on, to the letter: Alpaca's two templates and Vicuna's conversation format.

A model answers well only when inference uses the very text it was trained with, so nothing here may be reworded.
"""

from __future__ import annotations

PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
"""Alpaca's template for a row with an input. Source: Stanford Alpaca, train.py, PROMPT_DICT (2023-03)."""

PROMPT_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
"""Alpaca's template for a row without an input, and the one for inference. Source: as above."""

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""Opening of every Vicuna v1.1 conversation. Source: FastChat, fastchat/conversation.py, vicuna_v1.1."""
VICUNA_USER = "USER"
VICUNA_ASSISTANT = "ASSISTANT"
VICUNA_AFTER_USER = " "
"""What follows the system text and every user turn; after an assistant turn comes the end-of-sequence token."""


def render_prompt(instruction: str, input: str = "") -> str:
    """Return Alpaca's training prompt of one row; it ends right after `### Response:`, without a newline.

    Args:
        instruction: what to do.
        input: what to do it with; the empty string picks the template without an input.
    """
    return fill_template(PROMPT_WITH_INPUT if input else PROMPT_WITHOUT_INPUT, instruction, input)


def fill_template(template: str, instruction: str, input: str = "") -> str:
    """Put an instruction and an input into a template that holds {instruction} and, behind it, perhaps {input}."""
    # Two plain replacements, not str.format: rows contain braces (code, JSON), and the instruction may hold "{input}".
    head, tail = template.split("{instruction}")
    return head + instruction + tail.replace("{input}", input)

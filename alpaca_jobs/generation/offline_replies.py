"""What the offline teacher reads in a request, and its replies in OpenAI's shapes: completions and chat. Pure."""

from __future__ import annotations

from typing import Any

from alpaca_jobs.generation.offline_spec import OFFLINE_MODEL

CHARACTERS_PER_TOKEN = 4


def find_problem(body: dict[str, Any], *, is_chat: bool) -> tuple[int, str, str] | None:
    """Return (status, message, code) of what is wrong with a request, or None."""
    if body.get("model") != OFFLINE_MODEL:
        return (
            404,
            f"The model {body.get('model')!r} does not exist; this server has {OFFLINE_MODEL}.",
            "model_not_found",
        )
    if body.get("stream"):
        return 400, "This demo server does not stream.", "unsupported_value"
    if not read_prompt(body, is_chat=is_chat):
        return 400, f"{'messages' if is_chat else 'prompt'} is missing or no text.", "invalid_request"
    return None


def read_prompt(body: dict[str, Any], *, is_chat: bool) -> str:
    """Return what is asked, of either API; empty if that is no text."""
    if not is_chat:
        prompt = body.get("prompt")
        return prompt if isinstance(prompt, str) else ""
    messages = body.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    content = last.get("content") if isinstance(last, dict) else None
    return content if isinstance(content, str) else ""


def cut_answer(text: str, finish_reason: str, stop: Any, max_tokens: int) -> tuple[str, str]:
    """Apply stop sequences and the token limit, as a model server does."""
    for sequence in [stop] if isinstance(stop, str) else stop or []:
        if sequence in text:
            text, finish_reason = text[: text.index(sequence)], "stop"
    if count_tokens(text) > max_tokens:
        return text[: max_tokens * CHARACTERS_PER_TOKEN], "length"
    return text, finish_reason


def count_tokens(text: str) -> int:
    """Return how many tokens a text is counted as."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)


def render_answer(digest: bytes, prompt: str, text: str, finish_reason: str, *, is_chat: bool) -> dict[str, Any]:
    """Return an answer in the shape of either API, marked as demo data."""
    usage = {"prompt_tokens": count_tokens(prompt), "completion_tokens": count_tokens(text)}
    said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
    return {
        "id": f"demo-{digest.hex()[:16]}",
        "object": "chat.completion" if is_chat else "text_completion",
        "created": 0,
        "model": OFFLINE_MODEL,
        "demo": True,
        "choices": [{"index": 0, "logprobs": None, "finish_reason": finish_reason, **said}],
        "usage": {**usage, "total_tokens": sum(usage.values())},
    }


def render_error(message: str, code: str) -> dict[str, Any]:
    """Return a refusal in OpenAI's shape."""
    return {"error": {"message": message, "type": "demo_error", "param": None, "code": code}}

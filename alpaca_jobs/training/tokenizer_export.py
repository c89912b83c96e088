"""The tokenizer's folder as it goes out with a model: its chat template writes the prompts the model was trained with.

A base model's tokenizer brings a chat template of its own, or none. Trained with a recipe's prompts, the model would be
asked in another format by everything that goes by the template: `apply_chat_template`, pipelines, servers.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from alpaca_jobs import prompts
from alpaca_jobs.data.rows import Row
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.chat_template import jinja_error
from alpaca_jobs.training.data import encode_examples
from alpaca_jobs.training.reading import Conversation
from alpaca_jobs.training.recipes import to_example
from alpaca_jobs.training.tokenizer import RowTokenizer, write_folder

logger = logging.getLogger(__name__)

TEMPLATE_FILE: Final = "chat_template.jinja"
"""Where transformers 5 keeps it; a chat_template in tokenizer_config.json is the older place."""
_CONFIG: Final = "tokenizer_config.json"
_PROBE: Final = (("Name two colours.", "Red and blue."), ("And one more?", "Green."))


def tokenizer_to_export(train: TrainSpec, files: Mapping[str, bytes], tokenizer: RowTokenizer) -> dict[str, bytes]:
    """The files of a tokenizer's folder, with the recipe's prompts as their chat template.

    A template is written only if it gives the very ids of training; where none does there is none, and a warning says
    so. Recipe pretrain and `template: chat` leave it as it is. With `rope_scaling`, `model_max_length` is raised to the
    rows trained on: pipelines cut there.
    """
    made = dict(files)
    config = json.loads(made[_CONFIG])
    longest = config.get("model_max_length")
    if train.rope_scaling is not None and isinstance(longest, int) and longest < train.max_length:
        config["model_max_length"] = train.max_length
    if train.recipe != "pretrain" and train.template == "recipe":
        config.pop("chat_template", None)
        made.pop(TEMPLATE_FILE, None)
        made[_CONFIG] = _rendered(config)
        template, why = _fitting_template(train, made, tokenizer)
        if template:
            made[TEMPLATE_FILE] = template.encode()
        else:
            logger.warning(
                "The exported tokenizer has no chat template (%s). Ask the model with the prompts it was trained with, "
                "as plain text.", why,
            )  # fmt: skip
    made[_CONFIG] = _rendered(config)
    return made


def _rendered(config: Mapping[str, Any]) -> bytes:
    return (json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _fitting_template(train: TrainSpec, files: Mapping[str, bytes], tokenizer: RowTokenizer) -> tuple[str, str]:
    """The template, or nothing and why: a trained model is exported whatever its tokenizer makes of a template."""
    try:
        found = _try_templates(train, files, tokenizer)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, jinja_error()) as exc:
        return "", f"{type(exc).__name__}: {exc}"
    return found or "", "none gives the tokens of training"


def _try_templates(train: TrainSpec, files: Mapping[str, bytes], tokenizer: RowTokenizer) -> str | None:
    with tempfile.TemporaryDirectory() as scratch:
        from transformers import AutoTokenizer

        write_folder(files, Path(scratch))
        loaded: Any = AutoTokenizer.from_pretrained(scratch)
    exchanges = _PROBE if train.recipe == "vicuna" else _PROBE[:1]
    shown = Conversation(exchanges) if train.recipe == "vicuna" else Row(exchanges[0][0], "", exchanges[0][1])
    example = to_example(shown, train.templates[0] if train.templates else None)
    (trained,) = encode_examples([example], tokenizer, max_length=2**30)
    chat = [
        {"role": role, "content": text}
        for exchange in exchanges
        for role, text in zip(("user", "assistant"), exchange, strict=True)
    ]
    begin = "".join(loaded.convert_ids_to_tokens(list(tokenizer.prefix)))
    for gap in ("", " "):  # behind a special token LLaMA's tokenizer lacks the space that it puts before other texts
        template = recipe_template(train, begin=begin + gap if begin else "")
        ids = loaded.apply_chat_template(chat, chat_template=template, tokenize=True, return_dict=False)
        if ids == trained.ids.tolist():
            return template
    return None


def recipe_template(train: TrainSpec, *, begin: str) -> str:
    """The recipe's prompts as a Jinja template; of several templates of the job, the first.

    Args:
        begin: what stands before every text.
    """
    if train.recipe == "vicuna":
        return _vicuna(begin)
    text = train.templates[0].prompt_no_input if train.templates else prompts.PROMPT_WITHOUT_INPUT
    head, tail = text.split("{instruction}")
    return (
        f"{{{{ {_quoted(begin)} }}}}{{% for message in messages %}}"
        f"{{% if message['role'] == 'user' %}}{{{{ {_quoted(head)} + message['content'] + {_quoted(tail)} }}}}"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
        "{% else %}{{ raise_exception('These prompts have no ' + message['role'] + ' turns: put it into the first user "
        "turn.') }}{% endif %}{% endfor %}"
    )


def _vicuna(begin: str) -> str:
    user, said = f"{prompts.VICUNA_USER}: ", f"{prompts.VICUNA_AFTER_USER}{prompts.VICUNA_ASSISTANT}:"
    return (
        f"{{{{ {_quoted(begin)} }}}}{{% if messages[0]['role'] == 'system' %}}{{{{ messages[0]['content'] }}}}"
        f"{{% else %}}{{{{ {_quoted(prompts.VICUNA_SYSTEM)} }}}}{{% endif %}}"
        f"{{{{ {_quoted(prompts.VICUNA_AFTER_USER)} }}}}"
        f"{{% for message in messages %}}{{% if message['role'] == 'user' %}}"
        f"{{{{ {_quoted(user)} + message['content'] + {_quoted(said)} }}}}"
        "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
        "{% elif not loop.first %}{{ raise_exception('Only the first turn may be the system, not turn ' + "
        "loop.index|string + ' (' + message['role'] + ').') }}{% endif %}{% endfor %}"
    )


def _quoted(text: str) -> str:
    """A text as Jinja writes it in an expression; its escapes are Python's."""
    return json.dumps(text, ensure_ascii=False)

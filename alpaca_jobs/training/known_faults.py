"""Faults that circulate in base models' files, recognised before training is paid for; and quantised weights.

Early conversions of LLaMA (spring 2023) name the tokenizer's class as a development version of transformers did, and
leave the special tokens empty or map the end to another token: a model trained with them never stops.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from alpaca_jobs.errors import ModelError

logger = logging.getLogger(__name__)

_CONFIG: Final = "tokenizer_config.json"
_SPECIALS: Final = "special_tokens_map.json"
_SENTENCEPIECE: Final = "tokenizer.model"
NO_CHAT_TEMPLATE: Final = (
    "train.template is chat, but the base model's tokenizer has no chat template. Take the model's chat or instruct "
    "version, or a recipe's own template (train.template: recipe)."
)
_OTHERS: Final = frozenset({"tokenizer.json", "vocab.json", "vocab.txt", "tekken.json"})
_NO_ENDS: Final = {"<s>": "the token that begins texts", "<unk>": "the token that unknown text in them becomes"}
"""LLaMA's other special tokens, where early conversions put its end token."""


def check_tokenizer_files(folder: Path, model: str) -> None:
    """Look at a model's tokenizer files before the library does, whose own words lead nowhere (a RecursionError).

    Raises:
        ModelError: a class that no released transformers has, an end token that is the empty text, or files that only
            sentencepiece reads, where that is not installed.
    """
    refuse_sentencepiece_alone([path.name for path in folder.iterdir()], model)
    config = _read(folder / _CONFIG)
    name = str(config.get("tokenizer_class", ""))
    if name.startswith("LLaMATokenizer"):
        raise ModelError(
            f"{model}: {_CONFIG} names the class {name}, which only a development version of transformers had (March "
            f"2023); since 4.28 it is {name.replace('LLaMA', 'Llama')}. Its special tokens are often wrong as well. "
            f"Correct the class there, and compare eos_token with the original ('</s>'); or take a newer conversion, "
            "such as huggyllama/llama-7b."
        )
    for file, body in ((_CONFIG, config), (_SPECIALS, _read(folder / _SPECIALS))):
        if "eos_token" in body and _text(body["eos_token"]) == "":
            raise ModelError(
                f"{model}: eos_token in {file} is the empty text, so no answer would ever end and the model "
                "would never stop. Set it to the base model's own end token (LLaMA: '</s>', id 2), or take a newer "
                "conversion."
            )


def refuse_sentencepiece_alone(names: Collection[str], model: str) -> None:
    """Refuse a tokenizer that is tokenizer.model alone: transformers says of it that tiktoken is missing, which does
    not help. Many conversions of LLaMA of 2023 have nothing else.

    Args:
        names: of a model's files.

    Raises:
        ModelError: as it says.
    """
    if _SENTENCEPIECE in names and not _OTHERS & set(names) and find_spec("sentencepiece") is None:
        raise ModelError(
            f"{model} has its tokenizer as {_SENTENCEPIECE} alone, which sentencepiece reads, and that is not part of "
            "what runs a job. Write tokenizer.json where it is installed (AutoTokenizer.from_pretrained(...)"
            ".save_pretrained(...)) and put that beside it, or take a conversion that has one, such as "
            "huggyllama/llama-7b."
        )


def check_config(folder: Path, model: str) -> None:
    """Look at a model's config.json. Raises as `refuse_quantised`."""
    refuse_quantised(_read(folder / "config.json").get("quantization_config"), model)


def refuse_quantised(found: Any, model: str) -> None:
    """Refuse weights that are codes: read as numbers they are noise, and training has no use for codes.

    Args:
        found: `quantization_config` of the model's configuration, or None.

    Raises:
        ModelError: there is one.
    """
    if found is None:
        return
    method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
    raise ModelError(
        f"train.model is {model}, whose weights are quantised ({method or 'quantization_config in its config.json'}); "
        "training needs them as plain numbers. Name the model that it was made from."
    )


def check_tokenizer(tokenizer: Any, folder: Path | None, model: str) -> None:
    """Look at a loaded tokenizer's end token.

    Raises:
        ModelError: the end token is what every unknown text becomes, or LLaMA's beginning or unknown token.
    """
    end, unknown = tokenizer.eos_token, tokenizer.unk_token
    if end is None:
        return
    if unknown is not None and end != unknown and tokenizer.eos_token_id == tokenizer.unk_token_id:
        raise ModelError(
            f"{model}: its tokenizer's eos_token is {end!r}, which its vocabulary lacks: it becomes {unknown!r} (id "
            f"{tokenizer.unk_token_id}), as all unknown text does. Set eos_token in {_CONFIG} to a token that is there."
        )
    vocabulary = tokenizer.get_vocab()
    if end in _NO_ENDS and "</s>" in vocabulary:
        raise ModelError(
            f"{model}: its tokenizer's eos_token is {end!r} (id {tokenizer.eos_token_id}), {_NO_ENDS[end]}; "
            f"'</s>' (id {vocabulary['</s>']}) ends them. A model trained with it would never stop. Correct eos_token "
            f"in {_CONFIG} and {_SPECIALS}."
        )
    if folder is not None:
        _compare(folder, tokenizer.eos_token_id, model)


def check_adapted_end(folder: Path, end: int, model: str) -> None:
    """Look whether a model with frozen embeddings can say its end token at all: one that its tokenizer has and its
    embeddings lack is given the mean of their rows, whose logit is the mean of all logits and so never the highest.

    Raises:
        ModelError: it cannot.
    """
    config = _read(folder / "config.json")
    size = config.get("vocab_size") or (config.get("text_config") or {}).get("vocab_size")
    if isinstance(size, int) and end >= size:
        raise ModelError(
            f"{model}: its tokenizer ends answers with id {end}, and its embeddings have {size} rows: the model does "
            "not know that token. Beside frozen embeddings it would stay the mean of the others, and a model trained "
            f"so would never stop. Correct eos_token in {_CONFIG} (LLaMA: '</s>', id 2), or set lora.train_embeddings: "
            "true."
        )


def _compare(folder: Path, end: int, model: str) -> None:
    """Say where the model's own configuration stops at another token; the export corrects it."""
    for file in ("config.json", "generation_config.json"):
        said = _read(folder / file).get("eos_token_id")
        ends = said if isinstance(said, list) else [said]
        if said is not None and end not in ends:
            logger.warning(
                "%s: %s says that id %s ends an answer, its tokenizer says %d. Training goes by the tokenizer, and the "
                "exported model stops there.", model, file, said, end,
            )  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # what is missing or broken is the library's to name
    return body if isinstance(body, dict) else {}


def _text(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token

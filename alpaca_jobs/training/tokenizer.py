"""Tokenizers: one trained on the run's own rows for `tiny-llama`, the base model's otherwise; kept as the bytes of its
files.

A tokenizer travels as {file name: bytes}, so a recovered run uses the very tokenizer its checkpoints were trained with.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from alpaca_jobs.errors import ModelError
from alpaca_jobs.training.hub import TINY_LLAMA, foreign_model_errors, resolve_model
from alpaca_jobs.training.known_faults import check_tokenizer, check_tokenizer_files

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TokenizerFiles = Mapping[str, bytes]

PAD_TOKEN = "[PAD]"
"""Added when a base tokenizer has no padding token. Source: Stanford Alpaca's train.py, DEFAULT_PAD_TOKEN."""
TINY_VOCAB_SIZE = 2000
_TINY_SPECIALS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
_GENERIC_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Classes without behaviour of their own: tokenizer.json says everything."""


class Encoder(Protocol):
    """Text to ids, many texts at once; special tokens written out in a text are text, never parsed."""

    def __call__(self, texts: Sequence[str]) -> list[list[int]]: ...


@dataclass(frozen=True)
class RowTokenizer:
    """What training needs of a tokenizer.

    Attributes:
        encode: texts to ids, without special tokens.
        prefix: ids the tokenizer puts before every text (BOS for LLaMA, nothing for GPT-2).
        eos_id: ends every answer.
        pad_id: fills padded batches.
        vocab_size: one more than the highest id, added tokens included: so many rows an embedding needs. Where ids have
            gaps, that is more than there are tokens.
        encode_after: `encode` for texts behind a special token, such as the turns of a conversation after its first.
            None: they are encoded as others. LLaMA's tokenizer, as transformers 5 loads it, puts a space before what
            all text begins with and before nothing else.
    """

    encode: Encoder
    prefix: tuple[int, ...]
    eos_id: int
    pad_id: int
    vocab_size: int
    encode_after: Encoder | None = None


def build_tokenizer(model: str, texts: Iterable[str]) -> dict[str, bytes]:
    """Make the files of the tokenizer folder for a base model.

    Args:
        model: `tiny-llama`, a local folder, or a name on the Hugging Face hub.
        texts: the run's rows as text; only tiny-llama's tokenizer is trained on them. The same texts in the same order
            give the same bytes in any process.

    Raises:
        ModelError: there is no such model, or it has no tokenizer or no end-of-sequence token.
    """
    if model == TINY_LLAMA:
        return _train_tiny(texts)
    folder = resolve_model(model)
    here = Path(folder) if Path(folder).is_dir() else None
    if here is not None:
        check_tokenizer_files(here, model)
    with foreign_model_errors(model, "tokenizer"):
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    check_tokenizer(tokenizer, here, model)
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"The tokenizer of {model} has no end-of-sequence token, so a model trained with it would never stop. "
            f"Set eos_token in its tokenizer_config.json, or choose another base model."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save_pretrained(scratch)
        return read_folder(Path(scratch))


def read_folder(folder: Path) -> dict[str, bytes]:
    """All files of a folder tree as {relative name: bytes}, sorted by name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def write_folder(files: TokenizerFiles, folder: Path) -> None:
    """The inverse of read_folder; the folder is made if missing."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def load_tokenizer(files: TokenizerFiles) -> RowTokenizer:
    """Make the tokenizer of build_tokenizer's files ready to encode rows.

    A generic tokenizer is loaded by the `tokenizers` library alone: importing transformers takes seconds, and every
    recovery would pay them.

    Raises:
        ModelError: the files are not a tokenizer, or it lacks an end-of-sequence or padding token.
    """
    config = _parse_config(files)
    if config.get("tokenizer_class") in _GENERIC_CLASSES and "tokenizer.json" in files:
        return _load_generic(files["tokenizer.json"], config)
    with tempfile.TemporaryDirectory() as scratch:
        write_folder(files, Path(scratch))
        with foreign_model_errors("the saved tokenizer", "tokenizer"):
            from transformers import AutoTokenizer

            tokenizer: Any = AutoTokenizer.from_pretrained(scratch)

    def encode(texts: Sequence[str], *, add_special_tokens: bool = False) -> list[list[int]]:
        if not texts:
            return []
        batch = tokenizer(
            list(texts),
            add_special_tokens=add_special_tokens,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        ids: list[list[int]] = batch["input_ids"]
        return ids

    return RowTokenizer(
        encode=encode,
        prefix=_prefix(encode(["a"], add_special_tokens=True)[0], encode(["a"])[0]),
        eos_id=_required("end-of-sequence", tokenizer.eos_token_id),
        pad_id=_required("padding", tokenizer.pad_token_id),
        vocab_size=_rows_for(tokenizer.get_vocab()),
        encode_after=_after_special(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else None,
    )


def _load_generic(definition: bytes, config: Mapping[str, Any]) -> RowTokenizer:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(definition.decode())
    encode = _plain_encoder(tokenizer)
    return RowTokenizer(
        encode=encode,
        prefix=_prefix(tokenizer.encode("a").ids, tokenizer.encode("a", add_special_tokens=False).ids),
        eos_id=_required("end-of-sequence", _special_id(tokenizer, config, "eos_token")),
        pad_id=_required("padding", _special_id(tokenizer, config, "pad_token")),
        vocab_size=_rows_for(tokenizer.get_vocab(with_added_tokens=True)),
        encode_after=_after_special(definition.decode()),
    )


def _plain_encoder(tokenizer: Tokenizer) -> Encoder:
    """An encoder to which special tokens written out in a text are text; it changes the tokenizer's settings."""
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [entry.ids for entry in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    return encode


def _after_special(definition: str) -> Encoder | None:
    """How texts behind a special token are encoded; None where that is how all texts are.

    Source: tokenizers, pre_tokenizers/metaspace.rs: with prepend_scheme `first` only what stands at the very beginning
    of all text gets a space before it. Other ways of adding one (a normalizer's Prepend, ByteLevel's add_prefix_space,
    `always`) do it behind every special token.
    """
    from tokenizers import Tokenizer

    body = json.loads(definition)
    step = body.get("pre_tokenizer") or {}
    schemes = [one for one in (step, *step.get("pretokenizers", ())) if one.get("prepend_scheme") == "first"]
    for one in schemes:
        one["prepend_scheme"] = "never"
    return _plain_encoder(Tokenizer.from_str(json.dumps(body))) if schemes else None


def _train_tiny(texts: Iterable[str]) -> dict[str, bytes]:
    """A byte-level BPE: any text can be encoded, and nothing is unknown."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY_VOCAB_SIZE,
        min_frequency=2,
        special_tokens=list(_TINY_SPECIALS.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    config = {**_TINY_SPECIALS, "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    return {
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
    }


def _parse_config(files: TokenizerFiles) -> Mapping[str, Any]:
    try:
        config = json.loads(files["tokenizer_config.json"])
    except (KeyError, ValueError) as exc:
        raise ModelError(
            "The saved tokenizer has no readable tokenizer_config.json (its files: "
            f"{', '.join(sorted(files)) or 'none'}). It was probably written by hand; build it again from the base "
            "model."
        ) from exc
    if not isinstance(config, dict):
        raise ModelError(f"The saved tokenizer_config.json holds a {type(config).__name__}; an object is right.")
    return config


def _special_id(tokenizer: Tokenizer, config: Mapping[str, Any], name: str) -> int | None:
    token = config.get(name)
    text = token.get("content") if isinstance(token, dict) else token
    return tokenizer.token_to_id(text) if isinstance(text, str) else None


def _rows_for(vocabulary: Mapping[str, int]) -> int:
    return max(vocabulary.values(), default=-1) + 1


def _prefix(with_specials: Sequence[int], plain: Sequence[int]) -> tuple[int, ...]:
    """Ids before the text; ids after it (some tokenizers add EOS) are left out, since training adds EOS itself."""
    for start in range(len(with_specials) - len(plain) + 1):
        if list(with_specials[start : start + len(plain)]) == list(plain):
            return tuple(with_specials[:start])
    raise ModelError(
        f"The tokenizer encodes 'a' as {list(plain)} without and {list(with_specials)} with special tokens, and one "
        "does not contain the other, so it cannot be said where a text begins. Choose another tokenizer."
    )


def _required(name: str, token_id: int | None) -> int:
    if token_id is None:
        raise ModelError(
            f"The saved tokenizer has no {name} token. Build it again from the base model, or name the token in "
            "tokenizer_config.json."
        )
    return token_id

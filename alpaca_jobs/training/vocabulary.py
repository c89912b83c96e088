"""A larger vocabulary: the words of another tokenizer merged into a base model's, for text that has too few of them.

Both have to be byte-pair encoders of one kind. The base's tokens keep their ids and its merges stay first, so text that
the base model knows is still cut as it was trained; the other's tokens get the ids after them, and its merges come
last. The model's new embedding rows begin as the mean of the old ones (model.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alpaca_jobs.data.record_files import read_bytes
from alpaca_jobs.errors import ModelError
from alpaca_jobs.training.run_models import exported_file

_FILE = "tokenizer.json"


def extend_tokenizer(files: Mapping[str, bytes], source: str) -> dict[str, bytes]:
    """The files of a tokenizer's folder with another one's words added.

    Args:
        files: the base's folder, {file name: bytes}.
        source: the other: a tokenizer.json, a folder that holds one, or a run's URI.

    Raises:
        ModelError: either is no byte-pair encoder, they are of different kinds, or there is nothing to add.
    """
    if _FILE not in files:
        raise ModelError(
            f"train.tokenizer.extend is {source}, but the base model's tokenizer has no {_FILE} (its files: "
            f"{', '.join(sorted(files))}), so nothing can be merged into it. Save it as a fast tokenizer first."
        )
    base, other = json.loads(files[_FILE]), _parse(read_tokenizer(source), source)
    merged = merge_vocabularies(base, other, source)
    dropped = {"tokenizer.model", "vocab.json", "merges.txt"}  # the same words in other forms, without the new ones
    kept = {name: data for name, data in files.items() if name not in dropped}
    return {**kept, _FILE: json.dumps(merged, ensure_ascii=False).encode()}


def read_tokenizer(source: str) -> bytes:
    """The bytes of a tokenizer.json: the file itself, the one in a folder, or that of a run's exported model."""
    if source.endswith(".json"):
        return read_bytes(source)
    if "://" in source:
        return exported_file(source, _FILE)
    return read_bytes(str(Path(source) / _FILE))


def merge_vocabularies(base: dict[str, Any], other: dict[str, Any], source: str) -> dict[str, Any]:
    """Merge two definitions in the form of tokenizer.json; special tokens of the other one are left out.

    Raises:
        ModelError: see `extend_tokenizer`.
    """
    for name, one in (("The base model's tokenizer", base), (source, other)):
        if one.get("model", {}).get("type") != "BPE":
            raise ModelError(
                f"{name} is of the kind {one.get('model', {}).get('type')}; only byte-pair encoders (BPE) can be "
                "merged. Train the other tokenizer as BPE on text of the new language."
            )
    if _spelling(base) != _spelling(other):
        raise ModelError(
            f"The base model's tokenizer spells spaces {_spelling(base)} and {source} {_spelling(other)}, so their "
            "words are not the same texts. Train the other tokenizer with the base's normalizer and pre-tokenizer."
        )
    special = {entry["content"] for entry in other.get("added_tokens", ())}
    model = base["model"]
    vocabulary: dict[str, int] = dict(model["vocab"])
    last = max([*vocabulary.values(), *(entry["id"] for entry in base.get("added_tokens", ()))])
    new = [token for token, _ in sorted(other["model"]["vocab"].items(), key=lambda entry: entry[1])]
    taken = {entry["content"] for entry in base.get("added_tokens", ())} | special
    new = [token for token in new if token not in vocabulary and token not in taken]
    if not new:
        raise ModelError(f"{source} has no word that the base model's tokenizer lacks. Leave train.tokenizer out.")
    vocabulary.update({token: last + 1 + place for place, token in enumerate(new)})
    merges = [_pair(merge) for merge in model["merges"]]
    known = set(merges)
    for merge in map(_pair, other["model"]["merges"]):
        if merge not in known and {*merge, "".join(merge)} <= vocabulary.keys():
            merges.append(merge)
    return {**base, "model": {**model, "vocab": vocabulary, "merges": [list(merge) for merge in merges]}}


def _pair(merge: Any) -> tuple[str, str]:
    """Merges are pairs in newer files and "a b" in older ones."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _spelling(definition: Mapping[str, Any]) -> str:
    """How a space is written in a token: Ġ by byte-level encoders, ▁ by those made from sentencepiece."""
    parts = json.dumps([definition.get("normalizer"), definition.get("pre_tokenizer")])
    if "ByteLevel" in parts:
        return "as Ġ (byte level)"
    return "as ▁" if "\\u2581" in parts or "Metaspace" in parts else "as they are"


def _parse(data: bytes, source: str) -> dict[str, Any]:
    try:
        made = json.loads(data)
        if isinstance(made, dict):
            return made
    except ValueError as exc:
        raise ModelError(f"{source} is not a tokenizer.json ({exc}). Name the file of a fast tokenizer.") from exc
    raise ModelError(f"{source} is not a tokenizer.json: it holds a {type(made).__name__}, not an object.")

"""What would end a run on a machine that was paid for, said of a base model before: by its list of files and what the
small ones say. Pure, but for the table of what transformers here knows.

What a machine finds, and where: base_weights.py, known_faults.py, model.py, rope.py, tokenizer.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from alpaca_jobs.config_shapes import FAMILIES, linear_layers
from alpaca_jobs.errors import ModelError
from alpaca_jobs.model_shapes import EMBEDDINGS
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.architectures import Architectures, architectures_here
from alpaca_jobs.training.base_model import INDEXES, BaseModel
from alpaca_jobs.training.known_faults import (
    NO_CHAT_TEMPLATE,
    check_tokenizer_files,
    refuse_quantised,
    refuse_sentencepiece_alone,
)
from alpaca_jobs.training.rope import stretch_context

TOKEN: Final = "HF_TOKEN"
_TOKENIZERS: Final = ("tokenizer.json", "tekken.json", "vocab.txt", "vocab.json")
_TOKENIZER_CONFIG: Final = "tokenizer_config.json"
_TOKENIZER_ENDINGS: Final = (".model", ".tiktoken")
_CODES: Final = ("I8", "U8", "I32", "F8_E4M3", "F8_E5M2", "F4")
_ENCODERS: Final = frozenset(
    ("albert", "bert", "camembert", "data2vec-text", "deberta", "deberta-v2", "distilbert", "electra", "ernie",
     "esm", "eurobert", "jina_embeddings_v3", "longformer", "modernbert", "mpnet", "nomic_bert", "roberta", "xlm",
     "xlm-roberta", "xlm-roberta-xl", "xlnet")
)  # fmt: skip
_ENCODERS_AND_DECODERS: Final = frozenset(
    ("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "encoder-decoder", "led", "m2m_100", "marian",
     "mbart", "mt5", "mvp", "pegasus", "plbart", "prophetnet", "t5", "t5gemma", "umt5", "whisper")
)  # fmt: skip
_OTHER_HEADS: Final = (
    "ForMaskedLM", "ForPreTraining", "ForQuestionAnswering", "ForSequenceClassification", "ForTokenClassification"
)  # fmt: skip
_NO_ROPE: Final = ("opt", "gpt2", "bloom", "mpt", "gpt_neo", "gpt_bigcode")
_OTHER_KINDS: Final = (
    (".gguf", "GGUF files, which are quantised for llama.cpp"),
    (".pth", "weights in LLaMA's own layout (.pth)"),
    (".bin", "files that transformers does not read"),
    (".msgpack", "weights for Flax"),
    (".h5", "weights for TensorFlow"),
    (".safetensors", "safetensors in another program's layout"),
)


def check_base(base: BaseModel, train: TrainSpec) -> None:
    """Refuse a base model that a machine could not train.

    Raises:
        ModelError: says what was found, what is wanted and what to do.
    """
    _check_kind(base, architectures_here())
    _check_weights(base)
    _check_tokenizer(base)
    if train.template == "chat" and _lacks_chat_template(base):
        raise ModelError(f"{base.name}: {NO_CHAT_TEMPLATE}")
    _check_context(base, train)
    missing, names = layers_not_there(base, train), linear_layers(base.config)
    if train.lora is not None and names and len(missing) == len(train.lora.target_modules):
        raise ModelError(
            f"train.lora.target_modules is {', '.join(missing)}, but {base.name} ({base.config['model_type']}) has no "
            f"layers of those names. Its linear layers are called {', '.join(names)}: name some of these."
        )


def layers_not_there(base: BaseModel, train: TrainSpec) -> list[str]:
    """What of train.lora.target_modules the model has no layers for; none where its layers are not known here."""
    names = linear_layers(base.config)
    if train.lora is None or not names:
        return []
    return [one for one in train.lora.target_modules if one.rpartition(".")[2] not in {*names, *EMBEDDINGS}]


def check_token(base: BaseModel, secrets: Collection[str], *, has_login: bool) -> None:
    """Refuse a gated or private model that the run's machines would ask for without a token.

    Args:
        has_login: whether they share this machine's login at the hub (a local run).

    Raises:
        ModelError: they have none.
    """
    if base.is_closed and TOKEN not in secrets and not has_login:
        raise ModelError(
            f"train.model is {base.name}, which the Hugging Face hub hands out only to accounts with leave: yours has "
            f"it, but the run's machines would ask without a token. Add {TOKEN} to the job's secrets, and set it here: "
            f"export {TOKEN}=..."
        )


def _check_kind(base: BaseModel, here: Architectures | None) -> None:
    name, config, sizes = base.name, base.config, base.sizes
    if not config:
        _refuse_without_config(base)
        return
    refuse_quantised(config.get("quantization_config"), name)
    if sizes is not None and {"quantize_config.json", "quant_config.json"} & sizes.keys():
        refuse_quantised({"quant_method": "as its quantize_config.json says"}, name)
    codes = sum(count for kind, count in base.stored.items() if kind in _CODES)
    if codes > sum(base.stored.values()) / 2:
        refuse_quantised({"quant_method": ", ".join(sorted(set(base.stored) & set(_CODES)))}, name)
    kind = str(config.get("model_type") or "")
    made = " ".join(str(one) for one in config.get("architectures") or ())
    wanted = "training needs a decoder-only language model, such as LLaMA, Qwen or Mistral"
    if config.get("is_encoder_decoder") is True or kind in _ENCODERS_AND_DECODERS:
        raise ModelError(f"train.model is {name}, an encoder with a decoder ({made or kind}); {wanted}. Name one.")
    if kind in _ENCODERS:
        raise ModelError(
            f"train.model is {name}, an encoder ({made or kind}), which writes no text; {wanted}. Name one."
        )
    if made and all(one.endswith(_OTHER_HEADS) for one in made.split()):
        raise ModelError(
            f"train.model is {name}, made for another task ({made}), and without the part that writes text; {wanted}. "
            "Name the model that it was made from."
        )
    if "auto_map" in config and kind not in (FAMILIES.keys() if here is None else here.causal):
        raise ModelError(
            f"train.model is {name}, whose architecture ({made or kind}) is code that comes with the model, and such "
            "code is not run. Name a checkpoint that transformers' own classes load; for InternLM how to make one is "
            "in docs/TRAINING.md (Models)."
        )
    if here is not None and kind not in here.causal:
        found = "has no class for language modelling" if kind in here.known else "does not know"
        raise ModelError(
            f"train.model is {name}, of model_type {kind or 'none'}, which transformers here {found}; {wanted}. Name "
            "one, or install a version of transformers that knows it."
        )
    if isinstance(config.get("text_config"), dict) and "num_hidden_layers" not in config:
        raise ModelError(
            f"train.model is {name} ({made or kind}), a model of text and of something else, such as pictures: the "
            f"configuration of its language model is inside another one (text_config). Only text is trained here; "
            "name a model of text alone, or the language model saved by itself."
        )


def _refuse_without_config(base: BaseModel) -> None:
    name, sizes = base.name, base.sizes
    if "adapter_config.json" in base.texts:
        of = base.json("adapter_config.json").get("base_model_name_or_path")
        raise ModelError(
            f"train.model is {name}, which holds adapters alone{f' (of {of})' if of else ''}; a whole model is wanted. "
            "Merge them by hand (peft's merge_and_unload, then save_pretrained) and name that."
        )
    if "config.json" in base.texts:
        raise ModelError(f"train.model is {name}, and its config.json is no JSON object. Copy or download it again.")
    if sizes is not None:
        raise ModelError(
            f"train.model is {name}, but it holds no config.json{_instead(sizes)}, so from_pretrained cannot load it. "
            "Name the repository or folder that holds config.json and the weights."
        )


def _check_weights(base: BaseModel) -> None:
    sizes = base.sizes
    if sizes is None:
        return
    files = base.weight_files
    if not files:
        raise ModelError(
            f"train.model is {base.name}, but it holds no weights that transformers reads{_instead(sizes)}: "
            "model.safetensors or pytorch_model.bin is wanted. Name the model that was converted for transformers."
        )
    index = INDEXES[0 if files[0].endswith(".safetensors") else 1]
    named = base.json(index).get("weight_map")
    if missing := sorted(set(named.values()) - set(files)) if isinstance(named, dict) else []:
        raise ModelError(
            f"train.model is {base.name}, whose {index} names {len(missing)} files that are not there "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}). It is not complete: upload or download "
            "it again, or name another revision (train.revision)."
        )


def _instead(sizes: Collection[str]) -> str:
    for ending, words in _OTHER_KINDS:
        if any(name.endswith(ending) for name in sizes):
            return f", only {words}"
    return f" ({', '.join(sorted(sizes)[:4]) or 'no file at all'})"


def _check_tokenizer(base: BaseModel) -> None:
    sizes = base.sizes
    if sizes is not None and not any(name in _TOKENIZERS or name.endswith(_TOKENIZER_ENDINGS) for name in sizes):
        raise ModelError(
            f"train.model is {base.name}, which holds no tokenizer: tokenizer.json or tokenizer.model is wanted. Save "
            "the tokenizer of the model that it was made from beside the weights (save_pretrained), and name that."
        )
    refuse_sentencepiece_alone(sizes or (), base.name)
    with tempfile.TemporaryDirectory() as folder:
        for name, text in base.texts.items():
            Path(folder, name).write_bytes(text)
        check_tokenizer_files(Path(folder), base.name)


def _lacks_chat_template(base: BaseModel) -> bool:
    """Whether it is known to be neither in tokenizer_config.json nor in a file of its own (chat_template.jinja)."""
    if not base.sizes or any("chat_template" in name for name in base.sizes):
        return False
    is_read = _TOKENIZER_CONFIG in base.texts or _TOKENIZER_CONFIG not in base.sizes
    return is_read and not base.json(_TOKENIZER_CONFIG).get("chat_template")


def _check_context(base: BaseModel, train: TrainSpec) -> None:
    """As rope.py does it on the machine, by config.json alone."""
    config = base.config
    kind = str(config.get("model_type") or "")
    if kind not in FAMILIES and train.rope_scaling is not None:
        return  # whether its positions can be stretched is transformers' to say
    context = config.get("max_position_embeddings", config.get("n_positions"))
    given: dict[str, Any] = {} if kind in _NO_ROPE else {"rope_theta": config.get("rope_theta", 10_000.0)}
    scaled = config.get("rope_parameters") or config.get("rope_scaling")
    if isinstance(scaled, dict) and any(isinstance(one, dict) for one in scaled.values()):
        given = {}  # another one for each kind of layer
    elif isinstance(scaled, dict) and given:
        given |= {"rope_type": scaled.get("type", "default"), **scaled}
    stretch_context(SimpleNamespace(max_position_embeddings=context, model_type=kind, rope_parameters=given), train)

"""Export: the model of a committed step as a folder that from_pretrained of transformers loads; one process, no GPU.

Tensor by tensor (export_parts.py). tiny-llama with merged adapters, and a model that transformers stores in a way that
cannot be taken apart, are put together in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alpaca_jobs.errors import ModelError, TrainingError
from alpaca_jobs.run_layout import EVAL_LOSS
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.adapters import add_adapters, merge_adapters, trained_embeddings, write_adapters
from alpaca_jobs.training.base_weights import Fill, open_base
from alpaca_jobs.training.engines.protocol import kept_tensors, trained_parameters
from alpaca_jobs.training.export_parts import Merged, stored_form, write_committed, write_configuration
from alpaca_jobs.training.hub import TINY_LLAMA
from alpaca_jobs.training.making import name_base, weights_folder
from alpaca_jobs.training.model import build_model, build_without_memory
from alpaca_jobs.training.model_card import DATA_CARD, CardFacts, render_model_card
from alpaca_jobs.training.recipes import end_ids
from alpaca_jobs.training.tokenizer import RowTokenizer, load_tokenizer, write_folder
from alpaca_jobs.training.tokenizer_export import tokenizer_to_export
from alpaca_jobs.training.weights import weights_digest
from alpaca_jobs.weights.shards import ModelFolder
from alpaca_jobs.weights.sources import DTYPES, TensorInfo
from checkpoints.best import metric_of
from checkpoints.keys import CommitRef

if TYPE_CHECKING:
    from checkpoints.manifest import Manifest
    from checkpoints.torch_bridge import Checkpointer

MAX_SHARD_SIZE = "5GB"


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        files: names relative to the folder, sorted.
        weights_digest: SHA-256 over all tensors, independent of files.
        meta: of the commit the weights come from.
    """

    files: tuple[str, ...]
    weights_digest: str
    meta: Mapping[str, Any]


def export_model(
    train: TrainSpec,
    *,
    checkpointer: Checkpointer,
    ref: CommitRef,
    tokenizer_files: Mapping[str, bytes],
    facts: CardFacts,
    folder: Path,
    merge: bool = False,
) -> Exported:
    """Write the weights of commit `ref`, configuration, tokenizer and model card into a folder.

    Method lora: the adapters as peft reads them (PeftModel.from_pretrained); with `merge` the whole model with the
    adapters folded in, and the adapters themselves in the folder `adapter`.

    Weights keep the type they were trained in (`train.dtype`). An older commit is not taken instead of a damaged one:
    it would be another model. Train again from the older one instead.

    Args:
        facts: for the card; step, losses and digest are filled in from what is exported.
        folder: made if missing; has to be empty.

    Raises:
        Damaged: the commit's bytes are not what was committed.
        ModelError: the base model cannot be loaded.
        TrainingError: the folder cannot be written, or is full.
    """
    tokenizer = load_tokenizer(tokenizer_files)
    tokenizer_files = tokenizer_to_export(train, tokenizer_files, tokenizer)
    job = _Export(train, tokenizer, tokenizer_files, checkpointer, ref, folder)
    if train.method != "lora":
        manifest = job.whole_model()
    elif merge:
        manifest = job.merged()
    else:
        manifest = job.adapters()
    digest = weights_digest(folder)
    hexes = manifest.meta["losses"]["hex"]
    loss = float.fromhex(hexes[-1]) if hexes else None
    eval_loss = metric_of(manifest, EVAL_LOSS)
    facts = replace(facts, step=ref.position, loss=loss, weights_digest=digest, eval_loss=eval_loss)
    if train.method == "lora" and not merge:
        facts = replace(facts, adapter_ends=end_ids(train, tokenizer, tokenizer_files))
    card = render_model_card(train, facts)
    if facts.data_card is not None:
        (folder / DATA_CARD).write_bytes(facts.data_card)
    (folder / "README.md").write_text(card, encoding="utf-8")
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return Exported(files=tuple(files), weights_digest=digest, meta=manifest.meta)


@dataclass(frozen=True)
class _Export:
    """What every kind of export is made from; each method writes one and returns the commit's manifest."""

    train: TrainSpec
    tokenizer: RowTokenizer
    tokenizer_files: Mapping[str, bytes]
    checkpointer: Checkpointer
    ref: CommitRef
    folder: Path

    def whole_model(self) -> Manifest:
        model = self._model()
        tensors = kept_tensors(model, adapters_only=False)
        form = stored_form(model, tensors, self._dtype)
        if form is None:
            self._give_memory(model)
            manifest = self._load(kept_tensors(model, adapters_only=False))
            self._write_in_memory(model)
            return manifest
        with _disk_errors(self.folder, _written(form.wanted)), ModelFolder(self.folder, form.wanted) as out:
            self._write_others(model, out.partial)
            write_committed(out, tensors, form, dtype=self._dtype, checkpointer=self.checkpointer, ref=self.ref)
        return self._load({})

    def adapters(self) -> Manifest:
        model = self._model()
        add_adapters(model, self.train)
        adapters, manifest = self._trained(model)
        with _disk_errors(self.folder, _num_bytes(adapters.values())):
            write_adapters(adapters, self.train, self.folder, embeddings=trained_embeddings(model))
            write_folder(self.tokenizer_files, self.folder)
        return manifest

    def merged(self) -> Manifest:
        self._check_base()
        model = self._model()
        base = None if self.train.model == TINY_LLAMA else open_base(weights_folder(self.train), model)
        form = None if base is None else stored_form(model, kept_tensors(model, adapters_only=False), self._dtype)
        if base is None or form is None:
            return self._merged_in_memory()
        add_adapters(model, self.train)
        adapters, manifest = self._trained(model)
        merged = Merged(model, base, adapters)
        with _disk_errors(self.folder, _written(form.wanted)), ModelFolder(self.folder, form.wanted) as out:
            write_adapters(adapters, self.train, out.partial / "adapter", embeddings=trained_embeddings(model))
            self._write_others(self._model(), out.partial)
            merged.write(out, form, self._dtype)
        return manifest

    def _check_base(self) -> None:
        """Adapters belong to the weights they were trained beside: on others they would be noise that looks well."""
        trained = self._load({}).meta.get("base")
        if trained is None:
            return
        here = name_base(self.train)
        if trained["weights"] != here["weights"]:
            raise ModelError(
                f"The adapters of {self.ref} were trained beside {trained['model']} ({trained['weights']}), but "
                f"{here['model']} is {here['weights']} now: the base model has changed, and merged into it they would "
                "make another model. Put the old one back (train.revision pins one of the hub), or set export.merge: "
                "false."
            )

    def _merged_in_memory(self) -> Manifest:
        model: Any = build_model(self.train, self.tokenizer, device=torch.device("cpu"))
        add_adapters(model, self.train)
        adapters = kept_tensors(model, adapters_only=True)
        manifest = self._load(adapters)
        with _disk_errors(self.folder, _num_bytes(adapters.values())):
            write_adapters(adapters, self.train, self.folder / "adapter", embeddings=trained_embeddings(model))
        merge_adapters(model)
        self._write_in_memory(model)
        return manifest

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.train.dtype)
        return dtype

    def _model(self) -> Any:
        """The model without memory; tiny-llama, which is made from its seed, with it."""
        if self.train.model == TINY_LLAMA:
            return build_model(self.train, self.tokenizer, device=torch.device("cpu"))
        return build_without_memory(self.train, self.tokenizer)

    def _give_memory(self, model: Any) -> None:
        cpu = torch.device("cpu")
        for _ in Fill(None, None, params=cpu, buffers=cpu).one_by_one(model):
            pass

    def _load(self, tensors: Mapping[str, Tensor]) -> Manifest:
        return self.checkpointer.load(self.ref, {"model": tensors}, partial=True)

    def _trained(self, model: Any) -> tuple[dict[str, Tensor], Manifest]:
        adapters = {
            name: torch.empty(param.shape, dtype=param.dtype) for name, param in trained_parameters(model).items()
        }
        return adapters, self._load(adapters)

    def _write_in_memory(self, model: Any) -> None:
        with _disk_errors(self.folder, _num_bytes(model.parameters())):
            self.folder.mkdir(parents=True, exist_ok=True)
            model.to(self._dtype)
            self._generate_as_trained(model)
            model.save_pretrained(self.folder, max_shard_size=MAX_SHARD_SIZE)
            write_folder(self.tokenizer_files, self.folder)

    def _write_others(self, model: Any, folder: Path) -> None:
        model.to(self._dtype)
        self._generate_as_trained(model)
        write_configuration(model, folder)
        write_folder(self.tokenizer_files, folder)

    def _generate_as_trained(self, model: Any) -> None:
        """Stop at what ended every answer, whatever the base model's configuration says; keep a cache."""
        model.eval()
        ends = end_ids(self.train, self.tokenizer, self.tokenizer_files)
        eos = ends[0] if len(ends) == 1 else list(ends)
        for config in (model.generation_config, model.config):
            config.eos_token_id, config.pad_token_id = eos, self.tokenizer.pad_id
        model.config.use_cache = True


def _written(wanted: Mapping[str, TensorInfo]) -> int:
    return sum(info.count * DTYPES[info.dtype].itemsize for info in wanted.values())


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextmanager
def _disk_errors(folder: Path, num_bytes: int) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        if folder.is_file():
            raise NotADirectoryError(f"{folder} is a file")
        yield
    except (OSError, SafetensorError, ModelError) as exc:
        if isinstance(exc, ModelError) and not isinstance(exc.__cause__, OSError):
            raise
        raise TrainingError(
            f"The model cannot be written to {folder}: {exc.__cause__ or exc}. It needs {num_bytes / 2**30:.1f} GiB "
            "there. Make room or name another folder, then resume: the checkpoints are unharmed."
        ) from exc

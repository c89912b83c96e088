"""Does a model fit? Bytes on each GPU by engine, method, length and offload, against what the GPU has. Pure.

With P all parameters, T the trained ones (P, or LoRA's adapters and the embeddings that lora.train_embeddings trains
whole), F the frozen ones (0, or the rest of P), d bytes a number of the forward pass (2 in bfloat16), W ranks and S
shards (W; with `sharding: hybrid` the GPUs of a machine):

    engine   parameters        masters  gradients  optimizer  beside them
    single   d F + d T         4T       4T         8T
    ddp      d F + d T         4T       4T         8T         4T of gradients under way between ranks
    fsdp     (d F + 4T) / S    -        4T / S     8T / S     two layers and both embeddings gathered, in d; one
                                                              layer's and the embeddings' gradients whole, in d + 4,
                                                              of those that are trained
    zero2    d F + d T         4T / W   4T / W     8T / W     a bucket of 5e8 gradients, in d + 4
    zero3    (d F + d T) / W   4T / W   4T / W     8T / W     the bucket, and 1e9 parameters gathered, in d

fsdp also holds 4T of whole gradients between micro batches where that is at most 15 % of a GPU's memory, and nothing is
offloaded. float32 has no masters with single and ddp: d T are they. With cpu_offload fsdp and zero3 keep the sharded
part in host memory, zero2 its masters, gradients and optimizer. With every engine all machines together keep 12T more
in theirs: the copy of masters and optimizer that a save is stored from. Activations and the loss:
cluster/price/activations.py.

Source: what the engines keep, alpaca_jobs/training/engines/ (float32 masters and moments, gradients added up in
float32) and optimizer.py; the copy, checkpoints/torch_snapshot.py; frozen parameters in the type of the forward pass,
making.py; DeepSpeed's defaults reduce_bucket_size and stage3_max_live_parameters, deepspeed.ai/docs/config-json.
ZeRO's table: arXiv:1910.02054, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from alpaca_jobs.known_models import SizedModel
from alpaca_jobs.model_shapes import ModelShape
from alpaca_jobs.spec import TrainSpec
from cluster.price.activations import activation_bytes, dtype_bytes, loss_bytes
from cluster.price.hardware import GPUS

USABLE_SHARE = 0.92
"""Of a GPU's memory; the rest is CUDA's context, NCCL's buffers and gaps that the allocator cannot hand out. Ours, not
measured yet."""
HOST_SHARE = 0.9
"""Of a machine's memory; the rest is the system, Ray and the rows. Ours, not measured yet."""
HELD_SHARE = 0.15
"""Of a GPU's memory, up to which fsdp keeps whole gradients until a step's last micro batch: engines/fsdp.py."""
_BUCKET, _LIVE = 5e8, 1e9
_GIB = 2**30


@dataclass(frozen=True)
class Machines:
    """The GPUs of a job: what each is, how many in a machine, how many machines."""

    gpu_name: str
    gpus_per_node: int
    num_nodes: int = 1

    @property
    def num_gpus(self) -> int:
        """Of all machines together; a training rank each."""
        return self.gpus_per_node * self.num_nodes


@dataclass(frozen=True)
class MemoryFit:
    """What a job needs on each GPU against what the GPU has.

    Attributes:
        engine: what spreads the model.
        parts_gib: on each GPU: weights, gradients, optimizer, gathered, activations.
        tokens: of the micro batch that the activations are of.
        memory_gib: of one GPU.
        host_gib: what each machine keeps for its GPUs (cpu_offload); 0 without.
        saved_gib: what each machine keeps of the copy that saves are stored from.
        loaded_gib: what its ranks hold together while each loads all of a model, in float32, whose files cannot be read
            in parts (alpaca_jobs/training/making.py); 0 for any other.
    """

    model: SizedModel
    machines: Machines
    engine: str
    is_lora: bool
    parts_gib: Mapping[str, float]
    tokens: float
    memory_gib: float
    host_gib: float
    saved_gib: float = 0.0
    loaded_gib: float = 0.0

    @property
    def needed_gib(self) -> float:
        """On each GPU."""
        return sum(self.parts_gib.values())

    @property
    def fits(self) -> bool:
        """Whether it is within what can be used of a GPU."""
        return self.needed_gib <= USABLE_SHARE * self.memory_gib

    @property
    def kept_gib(self) -> float:
        """In the memory of each machine, at the most."""
        return max(self.host_gib + self.saved_gib, self.loaded_gib)

    def fits_host(self, memory_gib: float | None) -> bool:
        """Whether a machine with so much memory keeps what is kept there; True where that is not known."""
        return memory_gib is None or self.kept_gib <= HOST_SHARE * memory_gib

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {gib:.1f}" for name, gib in self.parts_gib.items() if gib >= 0.05)
        size = f"{self.model.num_parameters / 1e9:.2f} B parameters"
        guessed = f" ({self.model.guess})" if self.model.guess else ""
        return (
            f"{size}{guessed}, {'LoRA' if self.is_lora else 'all trained'}, engine {self.engine} on "
            f"{self.machines.num_gpus} x {self.machines.gpu_name}, {self.tokens:,.0f} tokens in a micro batch: "
            f"{self.needed_gib:.1f} GiB on each GPU ({parts}), and {USABLE_SHARE:.0%} of its {self.memory_gib:.0f} GiB "
            "can be used"
        )


def memory_fit(
    train: TrainSpec, model: SizedModel, machines: Machines, *, row_tokens: float | None = None
) -> MemoryFit | None:
    """Count what training keeps on each GPU; None for a GPU that is not known here.

    Args:
        train: of method full or lora.
        row_tokens: mean tokens of a row; None where nobody has counted them, and then every row is as long as may be.
    """
    gpu = GPUS.get(machines.gpu_name)
    if gpu is None:
        return None
    engine = engine_of(train, machines.num_gpus)
    kept = _kept(train, model, machines, engine)
    moved = kept.movable if train.cpu_offload else ()
    tokens = micro_batch_tokens(train, row_tokens)
    parts = {
        **{name: value for name, value in kept.parts.items() if name not in moved},
        "gathered": kept.gathered,
        "activations": activation_bytes(train, model.shape, tokens) + loss_bytes(train, model.shape, tokens),
    }
    host = machines.gpus_per_node * sum(kept.parts[name] for name in moved)
    return MemoryFit(
        model=model, machines=machines, engine=engine, is_lora=train.method == "lora",
        parts_gib={name: value / _GIB for name, value in parts.items()},
        tokens=tokens, memory_gib=gpu.memory_gib, host_gib=host / _GIB,
        saved_gib=12 * trained_parameters(train, model) / machines.num_nodes / _GIB,
        loaded_gib=machines.gpus_per_node * 4 * model.num_parameters / _GIB if model.is_whole else 0.0,
    )  # fmt: skip


def engine_of(train: TrainSpec, num_gpus: int) -> str:
    """The rule of alpaca_jobs/training/engines/choice.py, which lies beside torch; a test holds the two together."""
    if train.engine != "auto":
        return train.engine
    return "single" if num_gpus == 1 and not train.cpu_offload else "fsdp"


def micro_batch_tokens(train: TrainSpec, row_tokens: float | None) -> float:
    """The most tokens of one micro batch to reckon with.

    Rows are spread over micro batches by their tokens (alpaca_jobs/training/batching.py), so that none holds more than
    the mean of all and one longest row.
    """
    most = float(train.micro_batch_size * train.max_length)
    if row_tokens is None or train.recipe == "pretrain":
        return most
    return min(most, train.micro_batch_size * row_tokens + train.max_length)


def trained_parameters(train: TrainSpec, model: SizedModel) -> int:
    """Parameters that training changes: all, or LoRA's adapters and the embeddings that are trained beside them."""
    if train.lora is None:
        return model.num_parameters
    adapters = model.shape.adapter_parameters(train.lora.rank, train.lora.target_modules)
    return adapters + (model.shape.embedding_parameters if train.trains_embeddings else 0)


@dataclass(frozen=True)
class _Kept:
    """What an engine keeps, in bytes: on each GPU by part, and the parts that cpu_offload moves to the machine."""

    parts: Mapping[str, float]
    movable: tuple[str, ...] = ()
    gathered: float = 0.0


def _kept(train: TrainSpec, model: SizedModel, machines: Machines, engine: str) -> _Kept:
    trained, size = float(trained_parameters(train, model)), dtype_bytes(train)
    whole = model.shape.embedding_parameters if train.trains_embeddings else 0
    frozen = 0.0 if train.lora is None else float(model.num_parameters - whole)
    ranks = machines.num_gpus
    if engine in ("single", "ddp"):
        masters = 4 * trained if size != 4 else 0.0
        under_way = 4 * trained if ranks > 1 else 0.0
        weights, gradients = size * (frozen + trained) + masters, 4 * trained + under_way
        return _Kept({"weights": weights, "gradients": gradients, "optimizer": 8 * trained})
    if engine == "fsdp":
        shards = machines.gpus_per_node if train.sharding == "hybrid" else ranks
        parts = {
            "weights": (size * frozen + 4 * trained) / shards,
            "gradients": 4 * trained / shards,
            "optimizer": 8 * trained / shards,
        }
        is_held = not train.cpu_offload and 4 * trained <= HELD_SHARE * GPUS[machines.gpu_name].memory_gib * _GIB
        held = 4 * trained if is_held else 0.0
        return _Kept(parts, tuple(parts), _gathered(train, model.shape, size) + held)
    is_third = engine == "deepspeed-zero3"
    parts = {
        "masters": 4 * trained / ranks,
        "gradients": 4 * trained / ranks,
        "optimizer": 8 * trained / ranks,
        "weights": size * (frozen + trained) / (ranks if is_third else 1),
    }
    bucket = size * _BUCKET + 4 * min(_BUCKET, trained)
    live = size * min(_LIVE, model.num_parameters) if is_third else 0.0
    return _Kept(parts, tuple(parts)[: 4 if is_third else 3], bucket + live)


def _gathered(train: TrainSpec, shape: ModelShape, size: int) -> float:
    """What FSDP2 has whole on each GPU for a while: this layer and the next, and the embeddings all the time."""
    layer, ends = shape.layer_parameters, shape.embedding_parameters
    trained = (layer if train.lora is None else 0) + (ends if train.lora is None or train.trains_embeddings else 0)
    return float(size * (2 * layer + ends) + (size + 4) * trained)

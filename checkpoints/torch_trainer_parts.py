"""What a Trainer has that is saved: model, optimizer, schedule, fp16's loss scale; alone, under DDP, FSDP2, DeepSpeed.

Under FSDP and DeepSpeed a Trainer that resumes loads files of its own while it prepares. `leave_loading_to_callback`
has it prepare as at the beginning; the callback then loads into what was prepared, each rank its own part.
Source: transformers 5.17, Trainer._prepare_for_training; accelerate 1.15, AcceleratorState.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

from checkpoints.errors import StateMismatch
from checkpoints.torch_optimizer import make_moments, unwrapped
from checkpoints.torch_zero import apply_zero_state, zero_state

SCALER = "scaler"
"""fp16's loss scale and what moves it, in a state."""
Sharding = Literal["none", "fsdp", "zero"]
"""Whether each rank has all of the model (none), an FSDP2 part of it, or what DeepSpeed's ZeRO leaves it."""


def is_trainer(candidate: Any) -> bool:
    """Whether this is a Trainer, and not the model that one trains."""
    return hasattr(candidate, "callback_handler") and hasattr(candidate, "accelerator")


def sharding_of(trainer: Any) -> Sharding:
    """How a Trainer that was made shards its model, whether its arguments say so or `accelerate launch` does.

    Raises:
        StateMismatch: in a way that cannot be saved here.
    """
    if trainer.is_deepspeed_enabled:
        return "zero"
    if getattr(trainer, "is_fsdp_xla_enabled", False):
        raise StateMismatch("StoreCallback does not know FSDP of torch_xla. Use DDP, FSDP2 or DeepSpeed.")
    if not trainer.is_fsdp_enabled:
        return "none"
    if getattr(trainer.accelerator.state.fsdp_plugin, "fsdp_version", 1) != 2:
        raise StateMismatch(
            "StoreCallback found FSDP version 1, which torch and transformers are about to drop, and saves version 2. "
            'Set TrainingArguments(fsdp=True, fsdp_config={"version": 2}), or "fsdp_version: 2" for accelerate.'
        )
    return "fsdp"


def check_unsharded(args: Any, parts: Mapping[str, Any]) -> None:
    """For a callback that was never given its Trainer.

    Raises:
        StateMismatch: the model is sharded after all, which only the Trainer can say in time.
    """
    sharded = (
        getattr(args, "deepspeed", None)
        or getattr(args, "fsdp", None)
        or isinstance(parts.get("model"), FSDPModule | FullyShardedDataParallel)
        or type(parts.get("optimizer")).__name__ == "DeepSpeedOptimizerWrapper"
    )
    if sharded:
        raise StateMismatch(
            "StoreCallback was given a model, and this Trainer trains with FSDP or DeepSpeed. Give it the Trainer: "
            "trainer.train(resume_from_checkpoint=callback.resume_folder(trainer))"
        )


def write_weights(model: Any, folder: Path) -> None:
    """Write the weights of an unsharded model where a Trainer that resumes looks for them, on every rank.

    Each rank has a folder of its own, perhaps on a machine of its own, and transformers writes on rank 0 alone.
    Source: transformers 5.17, PreTrainedModel.should_save_on_this_rank.
    """
    model.save_pretrained(folder)
    if not any(folder.rglob("*.safetensors")):
        from safetensors.torch import save_model

        save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})


def leave_loading_to_callback(trainer: Any) -> None:
    """Have `trainer` take counters and the position in its data from the folder, and nothing else.

    Raises:
        StateMismatch: this version of transformers is built otherwise.
    """
    prepare = getattr(trainer, "_prepare_for_training", None)
    if prepare is None:
        raise StateMismatch(
            "this version of transformers prepares its training in a way that StoreCallback does not know, so it "
            "cannot resume under FSDP or DeepSpeed. Install transformers 5.17, or use Checkpointer in your own loop."
        )

    def prepare_without_loading(max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        return prepare(max_steps, train_dataloader, None)

    trainer._prepare_for_training = prepare_without_loading


def get_parts(sharding: Sharding, trainer: Any, parts: Mapping[str, Any]) -> dict[str, Any]:
    """{"model", "optim", "scheduler"} or, of DeepSpeed, {"zero", "scheduler"}: to be saved, or loaded into. Under fp16
    also {"scaler"}, the loss scale and what moves it; DeepSpeed's own is a part of "zero".

    Args:
        parts: what a Trainer passes to its callbacks.
    """
    schedule = {name: value for name, value in parts["lr_scheduler"].state_dict().items() if _is_plain(value)}
    if sharding == "zero":
        return {"zero": zero_state(trainer.model_wrapped), "scheduler": schedule}
    # Where there are no moments, torch would make them by a step of accelerate's optimizer: it counts, and before the
    # first loss the scale of fp16, which it goes through, refuses it. So nothing could be resumed.
    optimizer = unwrapped(parts["optimizer"])
    make_moments(optimizer)
    weights, moments = get_state_dict(parts["model"], optimizer)
    state = {"model": weights, "optim": moments, "scheduler": schedule}
    if (scaler := _scaler(parts)) is not None:
        state[SCALER] = scaler.state_dict()
    return state


def apply_parts(sharding: Sharding, trainer: Any, parts: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Make the Trainer go on from `state`, which is of `get_parts` and was loaded into; collective."""
    if sharding == "zero":
        apply_zero_state(trainer.model_wrapped, state["zero"])
    else:
        set_state_dict(
            parts["model"],
            unwrapped(parts["optimizer"]),
            model_state_dict=state["model"],
            optim_state_dict=state["optim"],
        )
        if (scaler := _scaler(parts)) is not None and SCALER in state:
            scaler.load_state_dict(state[SCALER])
    scheduler = parts["lr_scheduler"]
    scheduler.load_state_dict({**scheduler.state_dict(), **state["scheduler"]})


def _scaler(parts: Mapping[str, Any]) -> Any:
    """The GradScaler of fp16, which accelerate keeps beside the optimizer it wraps; None in other types.

    Source: accelerate 1.15, AcceleratedOptimizer.scaler.
    """
    scaler = getattr(parts["optimizer"], "scaler", None)
    return scaler if scaler is not None and scaler.is_enabled() else None


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(entry) for entry in value)
    return value is None or isinstance(value, bool | int | float | str)

"""DeepSpeed's ZeRO (stages 1, 2, 3) through the ordinary Checkpointer: named tensors, any world size, no pickle.

    state = zero_state(engine)                     # views of the engine's own memory, no copy; all ranks
    checkpointer.save(step, state, meta=..., fingerprint=...)

    state = zero_state(engine)                     # after a restart, on any number of ranks
    loaded = checkpointer.load_newest(candidates, state)
    if loaded:
        apply_zero_state(engine, state)            # counters, and the 16-bit weights made anew; collective

ZeRO keeps 32-bit weights and moments in flat partitions whose cuts depend on the world size and fall inside parameters.
Here every parameter goes by its name and shape (FlatShard), as FSDP2 has it; so there is nothing to convert before a
run goes on with another number of ranks, another stage, or in one process. The state is

    {"model": {name: weights, the 32-bit master copy where there is one; also frozen ones and buffers},
     "optimizer": {"exp_avg": {name: ...}, "exp_avg_sq": {name: ...}, "steps": (trainable parameters,) float32},
     "engine": {counters, learning rates, loss scale, schedule: plain values}}

of which any part can be loaded alone (`{"model": state["model"]}`). DeepSpeed itself is not imported here: what is read
are the attributes of engine.optimizer. Source: deepspeed 0.19.8, runtime/zero/stage_1_and_2.py and stage3.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from checkpoints.errors import StateMismatch
from checkpoints.torch_flat import FlatShard

_COUNTERS = ("global_steps", "global_samples", "micro_steps", "skipped_steps")
_ADAMS = ("Adam", "AdamW", "DeepSpeedCPUAdam", "FusedAdam")


@dataclass(frozen=True)
class _Piece:
    """This rank's part of one trainable parameter: `numel` elements of its flat partition `flat`, from `at` on; they
    are the parameter's elements from `start` on."""

    name: str
    size: torch.Size
    flat: torch.Tensor
    at: int
    numel: int
    start: int

    def of(self, flat: torch.Tensor) -> FlatShard:
        return FlatShard(flat.detach()[self.at : self.at + self.numel], size=self.size, start=self.start)


def zero_state(engine: Any) -> dict[str, Any]:
    """What a ZeRO engine has to keep, as views of its own memory: save it, or load into it and then apply it.

    Moments that the optimizer has not made yet are made here, as zeros, which is what its first step would do.

    Args:
        engine: from deepspeed.initialize, with ZeRO stage 1, 2 or 3 and an Adam.

    Raises:
        StateMismatch: the engine is set up in a way whose state is not all in reach (NVMe offload, experts, another
            optimizer), or stands between two steps.
    """
    _check(engine)
    zero = engine.optimizer
    pieces = list(_pieces(zero))
    adam = zero.optimizer
    for flat in _flats(zero):
        _make_moments(adam, flat)
    if not _is_stage_3(zero):
        zero._lazy_init_hp_params_optimizer_state()  # so that DeepSpeed's own calls find them too
    trained = {piece.name: piece.of(piece.flat) for piece in pieces}
    order = [name for name, param in engine.module.named_parameters() if param.requires_grad]
    model: dict[str, torch.Tensor] = {name: trained[name] for name in order}
    model.update(_untrained(engine.module))
    moments = {
        key: {piece.name: piece.of(adam.state[piece.flat][key]) for piece in pieces}
        for key in ("exp_avg", "exp_avg_sq")
    }
    step = max((float(adam.state[flat]["step"]) for flat in _flats(zero)), default=0.0)
    return {
        "model": model,
        "optimizer": {
            **{key: {name: shards[name] for name in order} for key, shards in moments.items()},
            "steps": torch.full((len(order),), step, dtype=torch.float32),
        },
        "engine": {
            **{name: int(getattr(engine, name)) for name in _COUNTERS},
            "groups": [_plain_items(group) for group in adam.param_groups],
            "loss_scaler": _plain_items(vars(zero.loss_scaler)),
            "schedule": _plain_items(engine.lr_scheduler.state_dict()) if engine.lr_scheduler is not None else {},
        },
    }


def apply_zero_state(engine: Any, state: Mapping[str, Any]) -> None:
    """After `state` (of `zero_state`, or a part of it) was loaded into: make the engine go on from it. Collective."""
    zero = engine.optimizer
    if "optimizer" in state:
        step = float(state["optimizer"]["steps"].max()) if len(state["optimizer"]["steps"]) else 0.0
        for flat in _flats(zero):
            kept = zero.optimizer.state[flat]
            kept["step"] = torch.full_like(kept["step"], step) if torch.is_tensor(kept["step"]) else int(step)
    if "engine" in state:
        counters = state["engine"]
        for name in _COUNTERS:
            setattr(engine, name, counters[name])
        for group, values in zip(zero.optimizer.param_groups, counters["groups"], strict=True):
            group.update({name: _like(group.get(name), value) for name, value in values.items()})
        vars(zero.loss_scaler).update(counters["loss_scaler"])
        if engine.lr_scheduler is not None:
            engine.lr_scheduler.load_state_dict({**engine.lr_scheduler.state_dict(), **counters["schedule"]})
    _renew_weights(zero)


def _check(engine: Any) -> None:
    zero = engine.optimizer
    if not (_is_stage_3(zero) or hasattr(zero, "single_partition_of_fp32_groups")):
        problem = f"its optimizer is a {type(zero).__name__}, which partitions nothing"
        advice = 'set zero_optimization.stage to 1, 2 or 3 (bf16 with stage 1 also wants "grad_accum_dtype": "bf16")'
    elif _is_stage_3(zero) and (zero.swap_optimizer or zero.params_in_nvme_and_cpu):
        problem, advice = "its state lies on NVMe", "offload to the CPU instead"
    elif getattr(engine, "has_moe_layers", False):
        problem, advice = "it has mixture-of-experts layers", "use FSDP2 for them"
    elif type(zero.optimizer).__name__ not in _ADAMS:
        problem = f"its optimizer is {type(zero.optimizer).__name__}"
        advice = f"use one of {', '.join(_ADAMS)}"
    elif engine.micro_steps % engine.gradient_accumulation_steps():
        problem = f"{engine.micro_steps % engine.gradient_accumulation_steps()} micro batches of a step are in it"
        advice = "save after engine.step() has made a whole step: gradients are not saved"
    else:
        return
    raise StateMismatch(f"this DeepSpeed engine cannot be saved: {problem}. Please {advice}.")


def _is_stage_3(zero: Any) -> bool:
    return hasattr(zero, "fp32_partitioned_groups_flat")


def _flats(zero: Any) -> list[torch.Tensor]:
    """The flat 32-bit partitions, which are the optimizer's parameters."""
    return list(zero.fp32_partitioned_groups_flat if _is_stage_3(zero) else zero.single_partition_of_fp32_groups)


def _pieces(zero: Any) -> Iterator[_Piece]:
    if _is_stage_3(zero):
        yield from _pieces_of_stage_3(zero)
        return
    for params, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
        for param in params:
            link, name = param._hp_mapping, zero.param_names[param]
            if link is None:  # the parameter lies in other ranks' partitions
                yield _Piece(name, param.shape, flat, 0, 0, 0)
            else:
                here, there = link.hp_fragment_address, link.lp_fragment_address
                yield _Piece(name, param.shape, flat, here.start, here.numel, there.start)


def _pieces_of_stage_3(zero: Any) -> Iterator[_Piece]:
    for params in zero.fp16_groups:
        for param in params:
            group, at, length = zero.grad_position[zero.get_param_id(param)]
            start, numel = _own_run(param, length)
            yield _Piece(
                zero.param_names[param], param.ds_shape, zero.fp32_partitioned_groups_flat[group], at, numel, start
            )


def _own_run(param: Any, length: int) -> tuple[int, int]:
    """(start, numel) of this rank's partition of a stage 3 parameter, without the padding at the end."""
    rank = torch.distributed.get_rank(param.ds_process_group)
    start = min(rank * length, param.ds_numel)
    return start, min(length, param.ds_numel - start)


def _untrained(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Frozen parameters, and the buffers that count as state."""
    for name, param in module.named_parameters():
        if param.requires_grad:
            continue
        part = getattr(param, "ds_tensor", None)
        if part is None:
            yield name, param.detach()
        else:
            start, numel = _own_run(param, part.ds_numel)
            yield name, FlatShard(part.detach()[:numel], size=param.ds_shape, start=start)  # type: ignore[attr-defined]
    for prefix, owner in module.named_modules():
        for name, buffer in owner.named_buffers(prefix, recurse=False):
            if name.rpartition(".")[2] not in owner._non_persistent_buffers_set:
                yield name, buffer


def _make_moments(adam: torch.optim.Optimizer, flat: torch.Tensor) -> None:
    """As the optimizer's first step would: torch's fused kernel reads its steps on the GPU, and refuses others."""
    kept = adam.state[flat]
    if len(kept) == 0:
        of_torch = type(adam).__module__.startswith("torch.")
        on_device = adam.defaults.get("fused") or adam.defaults.get("capturable")
        place = flat.device if on_device else torch.device("cpu")
        kept["step"] = torch.zeros((), dtype=torch.float32, device=place) if of_torch else 0
        kept["exp_avg"], kept["exp_avg_sq"] = torch.zeros_like(flat), torch.zeros_like(flat)


def _renew_weights(zero: Any) -> None:
    """The weights that training computes with, made from the 32-bit ones; all ranks."""
    if not _is_stage_3(zero):
        zero.update_lp_params()
        return
    for group, flat in enumerate(zero.fp32_partitioned_groups_flat):
        zero.fp16_partitioned_groups_flat[group].data.copy_(flat.data)
        zero._unflatten_partitioned_parameters(group)
    if zero.persistent_parameters:  # small ones are kept whole on every rank
        zero.persistent_parameters[0].partition(zero.persistent_parameters)
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def _plain_items(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(entry) for entry in value) and len(value) > 0
    return value is None or isinstance(value, bool | int | float | str)


def _like(old: Any, new: Any) -> Any:
    return tuple(new) if isinstance(old, tuple) else new

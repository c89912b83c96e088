"""Faster kernels for the same arithmetic: compiled decoder layers; on GPUs norms in one kernel, TF32 for float32."""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn

from alpaca_jobs.errors import TrainingError
from alpaca_jobs.spec import TrainSpec
from alpaca_jobs.training.attention import keep_uncompiled
from alpaca_jobs.training.norms import fuse_norms


def use_fast_kernels(model: nn.Module, train: TrainSpec, *, device: torch.device) -> None:
    """Switch on what the job asks for, in place; before the model is sharded.

    Raises:
        TrainingError: compiling is asked for on a machine without a compiler.
    """
    if device.type == "cuda":
        torch.backends.cuda.matmul.fp32_precision = "tf32" if train.tf32 else "ieee"
        if not train.compile:
            fuse_norms(model)
    if train.compile:
        _refuse_without_compiler(device)
        compile_layers(model)
        if torch.are_deterministic_algorithms_enabled():
            torch.use_deterministic_algorithms(True)  # now that there is a compiler to be told


def _refuse_without_compiler(device: torch.device) -> None:
    """Its code for CPUs is C++; on a GPU, Triton compiles what starts its kernels, by $CC, gcc or clang. Source: triton
    3.6, runtime/build.py.
    """
    is_cpu = device.type == "cpu"
    names = ("g++", "clang++") if is_cpu else ("gcc", "clang")
    if any(map(shutil.which, names)) or (not is_cpu and os.environ.get("CC")):
        return
    raise TrainingError(
        f"train.compile is true, but this machine has neither {' nor '.join(names)}, which torch.compile needs for "
        f"{'CPUs' if is_cpu else 'GPUs'}. Install one, or leave train.compile out."
    )


def compile_layers(model: nn.Module) -> int:
    """Compile every decoder layer, in place; returns how many. Layer by layer, because one compiled layer serves all
    of them, and FSDP gathers and frees parameters between them.
    """
    keep_uncompiled()
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    for layer in layers:
        layer.compile(dynamic=True)  # micro batches differ in length
    return len(layers)

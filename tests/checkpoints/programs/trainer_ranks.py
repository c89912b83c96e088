"""Hugging Face's Trainer on gloo and the CPU: `python trainer_ranks.py RANK WORLD STARTS`; prints its answers.

STARTS is JSON: a list of {"meet", "jobs"}, each played by processes of their own (forks.py); a job is {"how": "ddp",
"fsdp" or "zero", "uri": the run, "steps": as planned, "die_at": step or null}. At "die_at" the process is gone on the
spot, the start's later jobs with it: its answer is the position of the newest commit. test_torch_trainer.py looks at
the answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
import warnings
from typing import Any

warnings.simplefilter("ignore")  # what transformers and DeepSpeed warn about is not ours to fix
RANK, WORLD = (int(text) for text in sys.argv[1:3])
os.environ.update(
    DS_ACCELERATOR="cpu", RANK=str(RANK), LOCAL_RANK=str(RANK), WORLD_SIZE=str(WORLD),
    LOCAL_WORLD_SIZE=str(WORLD), LOCAL_SIZE=str(WORLD), GLOO_SOCKET_IFNAME="lo", DS_SKIP_CUDA_CHECK="1",
)  # fmt: skip

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from accelerate import FullyShardedDataParallelPlugin  # noqa: E402
from accelerate.state import AcceleratorState, DistributedType, PartialState  # noqa: E402
from accelerate.utils import TorchDynamoPlugin  # noqa: E402
from forks import in_child  # noqa: E402
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments  # noqa: E402

from checkpoints.best import Metric  # noqa: E402
from checkpoints.keys import TRAIN_ONLY  # noqa: E402
from checkpoints.reader import list_commits  # noqa: E402
from checkpoints.store import Store  # noqa: E402
from checkpoints.torch_trainer import StoreCallback  # noqa: E402

ZERO = {
    "zero_optimization": {"stage": 2}, "train_micro_batch_size_per_gpu": "auto", "train_batch_size": "auto",
    "gradient_accumulation_steps": "auto", "gradient_clipping": 1.0, "zero_force_ds_cpu_optimizer": False,
    "zero_allow_untested_optimizer": True,
}  # fmt: skip


COMMITTED_WITHIN_S = 60.0


def newest(uri: str) -> int:
    """Position of a run's newest commit; 0 without one."""
    return next((ref.position for ref in list_commits(Store.open(uri), TRAIN_ONLY)), 0)


class Death:
    """Ends the process after a step, as a machine that is taken away does; once the step before is committed, which
    another process may still be at.
    """

    def __init__(self, step: int | None, uri: str) -> None:
        self._step, self._uri = step, uri

    def on_step_end(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        if state.global_step != self._step:
            return
        give_up_at = time.monotonic() + COMMITTED_WITHIN_S
        while time.monotonic() < give_up_at and newest(self._uri) < self._step - 1:
            time.sleep(0.05)
        os._exit(0)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("on_"):
            return lambda *args, **parts: None
        raise AttributeError(name)


def model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61, hidden_size=16, intermediate_size=34, num_hidden_layers=2, num_attention_heads=2,
        attention_dropout=0.2,
    )  # fmt: skip
    made = LlamaForCausalLM(config)
    made.model.embed_tokens.requires_grad_(False)  # a frozen part
    return made


def rows() -> list[dict[str, torch.Tensor]]:
    """Rows of different lengths, so that the ranks draw different amounts of random numbers."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for number in range(24):
        ids = torch.randint(0, 61, (4 + number % 5,), generator=generator)
        found.append({"input_ids": ids, "labels": ids.clone()})
    return found


def _shard(how: str, arguments: TrainingArguments) -> None:
    """accelerate shards on GPUs and falls back to DDP on the CPU without a word: here it is told to go on."""
    assert arguments.device.type == "cpu"  # with that the ranks have met
    os.environ.pop("ACCELERATE_USE_CPU", None)
    kind = DistributedType.DEEPSPEED if how == "zero" else DistributedType.FSDP
    PartialState().distributed_type = kind
    if how == "fsdp":
        state = AcceleratorState(mixed_precision="no", dynamo_plugin=TorchDynamoPlugin(), _from_accelerator=True)
        state.distributed_type = kind
        state.fsdp_plugin = FullyShardedDataParallelPlugin(**arguments.fsdp_plugin_args)


def make_trainer(how: str, steps: int, folder: str, callbacks: list[Any]) -> Trainer:
    if how == "zero":
        from deepspeed.ops import __compatible_ops__

        __compatible_ops__["deepspeed_shm_comm"] = False  # as engines/deepspeed.py has it: nothing is compiled here
    more: dict[str, Any] = {"ddp": {}, "fsdp": {"fsdp": True, "fsdp_config": {}}, "zero": {"deepspeed": ZERO}}[how]
    arguments = TrainingArguments(
        folder, max_steps=steps, per_device_train_batch_size=1,
        per_device_eval_batch_size=1, save_strategy="no", report_to=[], learning_rate=1e-2,
        use_cpu=True, logging_steps=1, disable_tqdm=True, eval_strategy="steps", eval_steps=2, seed=5, **more,
    )  # fmt: skip
    if how != "ddp":
        _shard(how, arguments)
    return Trainer(model=model(), args=arguments, train_dataset=rows(), eval_dataset=rows()[:4], callbacks=callbacks)  # type: ignore[arg-type]


def digests(trainer: Trainer, how: str) -> dict[str, str]:
    """Digest of every whole tensor of the model, and under FSDP of the optimizer's moments; collective."""
    if how == "zero":
        from deepspeed.utils import safe_get_full_fp32_param

        found = {
            name: safe_get_full_fp32_param(param) if param.requires_grad else param.detach()
            for name, param in trainer.model_wrapped.module.named_parameters()
        }
    else:
        from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

        options = StateDictOptions(full_state_dict=True, flatten_optimizer_state_dict=True)
        found = {**get_model_state_dict(trainer.model, options=options)}
        moments = get_optimizer_state_dict(trainer.model, trainer.optimizer, options=options)
        found.update({name: value for name, value in moments.items() if isinstance(value, torch.Tensor)})
    return {
        name: hashlib.sha256(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in found.items()
    }


def run(job: dict[str, Any]) -> dict[str, Any]:
    callback = StoreCallback(
        job["uri"], every_steps=2, lease_s=5.0, timeout_s=60.0, best_by=Metric("eval_loss"), keep=2
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        trainer = make_trainer(job["how"], job["steps"], folder, [callback, Death(job["die_at"], job["uri"])])
        resumed = callback.resume_folder(trainer)
        trainer.train(resume_from_checkpoint=resumed)
    parts = [
        sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in trainer.model.parameters()),
        sum(p.numel() for p in trainer.model.parameters()),
    ]
    return {
        "resumed": None if resumed is None else callback._loaded.ref.position,  # type: ignore[union-attr]
        "digests": digests(trainer, job["how"]),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "wrapped": type(trainer.model_wrapped).__name__,
        "held": parts,
        "random": hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest(),
    }


def play(start: dict[str, Any]) -> list[dict[str, Any]]:
    """One start: its jobs, one after the other."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=start["meet"], rank=RANK, world_size=WORLD)
    answers = [run(job) for job in start["jobs"]]
    dist.barrier()
    dist.destroy_process_group()
    return answers


def main() -> None:
    answers = []
    for start in json.loads(sys.argv[3]):
        answer = in_child(lambda: play(start))  # noqa: B023 - called at once
        if answer is None:
            answer = newest(start["jobs"][0]["uri"])
        answers.append(answer)
    sys.stdout.write("ANSWER " + json.dumps(answers) + "\n")


main()

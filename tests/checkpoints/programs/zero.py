"""DeepSpeed's ZeRO on gloo and the CPU: `python zero.py RANK STARTS`; prints one line of JSON.

STARTS is JSON: a list of {"world": ranks, "port", "jobs"}, each played by processes of its own of the first so many
ranks (forks.py). A job is {"stage": 1, 2 or 3, "uri": a fresh run, "from": [URI, step] or null, "steps": [first, last],
"dtype": "fp32" or "bf16"}. Each trains a small model over the given steps, the same rows in the same global batches on
any number of ranks, from the commit in `from`, and commits the last one. test_torch_zero.py looks at the answers.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from typing import Any

warnings.simplefilter("ignore")  # what DeepSpeed warns about is not ours to fix
RANK = int(sys.argv[1])
os.environ.update(
    DS_ACCELERATOR="cpu", RANK=str(RANK), LOCAL_RANK=str(RANK), GLOO_SOCKET_IFNAME="lo",
    DS_SKIP_CUDA_CHECK="1",
)  # fmt: skip

import deepspeed  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from deepspeed.ops import __compatible_ops__  # noqa: E402
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state  # noqa: E402
from forks import in_child  # noqa: E402

from checkpoints.attempts import AttemptLog  # noqa: E402
from checkpoints.fence import Fence  # noqa: E402
from checkpoints.keys import TRAIN_ONLY, CommitRef  # noqa: E402
from checkpoints.store import Store  # noqa: E402
from checkpoints.torch_bridge import Checkpointer  # noqa: E402
from checkpoints.torch_zero import apply_zero_state, zero_state  # noqa: E402

__compatible_ops__["deepspeed_shm_comm"] = False  # as engines/deepspeed.py has it: nothing is compiled here
BATCH = 12  # rows in a step: divided by 1, 2, 3 and 4


def make_engine(stage: int, dtype: str) -> Any:
    torch.manual_seed(0)
    # Sizes that no world size divides; a frozen layer, a buffer.
    model = torch.nn.Sequential(
        torch.nn.Linear(7, 13), torch.nn.LayerNorm(13), torch.nn.Linear(13, 11), torch.nn.Linear(11, 5)
    )
    model[2].requires_grad_(False)
    model[1].register_buffer("seen", torch.zeros(3))
    config = {
        "train_batch_size": BATCH,
        "train_micro_batch_size_per_gpu": BATCH // dist.get_world_size(),
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True}},
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 20},
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": dtype == "bf16"},
    }
    trained = [param for param in model.parameters() if param.requires_grad]
    engine, *_ = deepspeed.initialize(model=model, model_parameters=trained, config=config)
    return engine


def train(engine: Any, step: int) -> float:
    rows = torch.randn(BATCH, 7, generator=torch.Generator().manual_seed(step))
    world = dist.get_world_size()
    mine = rows[RANK * BATCH // world : (RANK + 1) * BATCH // world].to(next(engine.module.parameters()).dtype)
    loss = engine(mine).float().square().mean()
    engine.backward(loss)
    engine.step()
    engine.module[1].seen.fill_(float(step))
    return float(loss)


def digests(engine: Any) -> dict[str, str]:
    """Digest of everything the engine keeps, as DeepSpeed itself puts it together."""
    found: dict[str, torch.Tensor] = {}
    for name, param in engine.module.named_parameters():
        if param.requires_grad:
            found[name] = safe_get_full_fp32_param(param)
            for key in ("exp_avg", "exp_avg_sq"):
                found[f"{name}.{key}"] = safe_get_full_optimizer_state(param, key)
    gathered = [param for param in engine.module.parameters() if hasattr(param, "ds_id")]
    with deepspeed.zero.GatheredParameters(gathered, enabled=bool(gathered)):
        for name, param in engine.module.named_parameters():
            found[f"{name} as computed with"] = param.detach().float().clone()
    found["seen"] = engine.module[1].seen
    flats = getattr(engine.optimizer, "fp32_partitioned_groups_flat", None)
    flats = flats if flats is not None else engine.optimizer.single_partition_of_fp32_groups
    found["step"] = torch.tensor([float(engine.optimizer.optimizer.state[flat]["step"]) for flat in flats[:1]])
    return {
        name: hashlib.sha256(tensor.contiguous().float().numpy().tobytes()).hexdigest()[:16]
        for name, tensor in found.items()
    }


def run(job: dict[str, Any]) -> dict[str, Any]:
    store = Store.open(job["uri"])
    log = AttemptLog(store, TRAIN_ONLY)
    if RANK == 0:
        log.claim(1, {})
        log.put_base(1, None)
    dist.barrier()
    engine = make_engine(job["stage"], job["dtype"])
    fence = Fence(log, 1)
    checkpointer = Checkpointer(store, TRAIN_ONLY, stage="train", attempt=1, fence=fence)
    answer: dict[str, Any] = {}
    if job["from"]:
        uri, step = job["from"]
        reader = Checkpointer(Store.open(uri), TRAIN_ONLY, stage="train", attempt=1, fence=None)
        state = zero_state(engine)
        reader.load(CommitRef("train", step, 1), state)
        apply_zero_state(engine, state)
        reader.close()
        answer["loaded"] = digests(engine)
        answer["global_steps"] = engine.global_steps
    first, last = job["steps"]
    answer["losses"] = [train(engine, step) for step in range(first, last + 1)]
    if last >= first:
        answer["trained"] = digests(engine)
        checkpointer.save(last, zero_state(engine), meta={}, fingerprint="")
        checkpointer.wait()
    checkpointer.close()
    engine.destroy()
    return answer


def play(start: dict[str, Any]) -> list[dict[str, Any]]:
    """One start: a process group, its jobs one after the other."""
    world = str(start["world"])
    os.environ.update(WORLD_SIZE=world, LOCAL_SIZE=world)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=start["meet"], rank=RANK, world_size=start["world"])
    deepspeed.init_distributed("gloo", verbose=False)
    answers = [run(job) for job in start["jobs"]]
    dist.destroy_process_group()
    return answers


def main() -> None:
    starts = [start for start in json.loads(sys.argv[2]) if start["world"] > RANK]
    answers = [in_child(lambda: play(start)) for start in starts]  # noqa: B023 - called at once
    sys.stdout.write("ANSWER " + json.dumps(answers) + "\n")  # among what DeepSpeed prints


if __name__ == "__main__":
    main()

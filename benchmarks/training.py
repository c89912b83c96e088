"""Training on CPU: Hugging Face's Trainer with the padded recipe, TRL's packing, and ours, lever by lever.

    python benchmarks/training.py            # everything: ten minutes and torch.compile's, which are ten at most
    python benchmarks/training.py --quick    # smaller model and groups: a minute, to see that it runs

Same rows (Alpaca's lengths, half of each row is answer), same model (hidden 512, 8 layers, vocabulary 32,000, float32),
same optimizer steps. A group is one optimizer step of `--rows` rows; the first is left out, the median of the others
counts. Real tokens per second: padding excluded. TRL takes part if it and `datasets` are installed; they are in no
lock of ours. Prints `aim met: yes|no` per aim, exits 1 on a
no.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import multiprocessing
import os
import queue
import signal
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from padded_recipe import Clock, examples, train_padded, trainer_arguments
from training_data import alpaca_rows, padded_tokens, tokenizer_folder

from alpaca_jobs.spec import CheckpointSpec, TrainSpec
from alpaca_jobs.training.batching import global_batch
from alpaca_jobs.training.data import TokenizedRows

AIMS = {4: 1.45, 32: 2.4}
SEED = 42
ON_CPU: dict[str, Any] = {"use_cpu": True, "dataloader_pin_memory": False}
LEVERS: tuple[tuple[str, dict[str, Any]], ...] = (
    (
        "rows side by side, logits of targets alone",
        {"cross_entropy": "plain", "prefetch_steps": 0, "attention": "mask"},
    ),
    ("+ attention row by row", {"cross_entropy": "plain", "prefetch_steps": 0}),
    ("+ chunked cross entropy", {"prefetch_steps": 0}),
    ("+ next batch made ahead (all defaults)", {}),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller model, two groups of 32 short rows")
    parser.add_argument("--rows", type=int, default=32, help="rows of one group")
    parser.add_argument("--groups", type=int, default=5, help="groups that are measured")
    parser.add_argument(
        "--compile-limit", type=int, default=600, metavar="SECONDS",
        help="how long the last lever, torch.compile, may take with its compiling; 0 leaves it out",
    )  # fmt: skip
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    import transformers

    transformers.utils.logging.disable_progress_bar()
    sys.exit(0 if run(arguments) else 1)


def run(arguments: argparse.Namespace) -> bool:
    """Print all measurements; return whether every aim was met."""
    threads = os.cpu_count() or 1
    torch.set_num_threads(threads)
    rows, groups = arguments.rows, 2 if arguments.quick else arguments.groups
    data = alpaca_rows(rows * (groups + 1), vocab_size=32_000 if not arguments.quick else 2_000)
    order = [
        list(global_batch(step, seed=SEED, num_rows=len(data), global_batch_size=rows)[1])
        for step in range(1, groups + 2)
    ]
    tokens = [int(data.lengths[batch].sum()) for batch in order]
    print(f"{threads} cores, load {os.getloadavg()[0]:.1f}; torch {torch.__version__}; {groups} groups of {rows} rows, "
          f"{data.lengths.mean():.0f} tokens a row")  # fmt: skip
    waste = {size: padded_tokens(data.lengths, order, size) / sum(tokens) for size in AIMS}
    print(f"padding: {waste[4]:.2f} tokens computed per real one at micro batch 4, {waste[32]:.2f} at 32\n")
    with tempfile.TemporaryDirectory() as scratch:
        folder = _model_folder(Path(scratch) / "model", is_quick=arguments.quick)
        padded = {
            size: _report(f"Trainer, padded, micro batch {size}", _trainer(folder, data, order, size), tokens)
            for size in AIMS
        }
        _report("Trainer, rows side by side, micro batch 4", _trainer(folder, data, order, 4, is_flat=True), tokens)
        missing = [name for name in ("trl", "datasets") if importlib.util.find_spec(name) is None]
        if missing:
            print(f"TRL's packing is left out: not installed here: {', '.join(missing)}")
        else:
            _report("TRL, packed to 512 tokens", *_trl(folder, data, order))
        ours = 0.0
        for name, keys in LEVERS:
            rate = _report(f"ours, {name}", _ours(folder, data, rows, groups, threads, keys), tokens)
            ours = max(ours, rate)
        work = (folder, data, rows, groups, threads, {"compile": True})
        compiled = in_limit(_ours, work, threads=threads, seconds=arguments.compile_limit)
        if isinstance(compiled, str):
            print(f"ours, + torch.compile is left out: {compiled}", flush=True)
        else:
            ours = max(ours, _report("ours, + torch.compile", compiled, tokens))
    print(f"\nload {os.getloadavg()[0]:.1f}")
    met = True
    for size, aim in AIMS.items():
        ratio = ours / padded[size]
        met &= ratio >= aim
        print(f"ours over the padded recipe at micro batch {size}: {ratio:.2f} times; at least {aim} is the aim. "
              f"aim met: {'yes' if ratio >= aim else 'no'}")  # fmt: skip
    return met


def in_limit(
    function: Callable[..., list[float]], given: Sequence[Any], *, threads: int, seconds: float
) -> list[float] | str:
    """What the function returns in a process of its own within these seconds, or in words why it did not."""
    if seconds <= 0:
        return "no time was given to it"
    context = multiprocessing.get_context("spawn")  # OpenMP's threads do not survive a fork
    answers = context.Queue()
    process = context.Process(target=_answer, args=(answers, function, given, threads))
    process.start()
    try:
        answer: list[float] | str = answers.get(timeout=seconds)
    except queue.Empty:
        answer = f"it was not done after {seconds:.0f} s"
        assert process.pid is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the compiler's processes, too
        process.kill()  # where it has not come to make a group of its own
    process.join()
    return answer


def _answer(answers: Any, function: Callable[..., list[float]], given: Sequence[Any], threads: int) -> None:
    os.setsid()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    try:
        answers.put(function(*given))
    except Exception as exc:  # noqa: BLE001 - whatever it is, the caller says it
        answers.put(f"{type(exc).__name__}: {' '.join(str(exc).split())[:300]}")


def _report(name: str, seconds: list[float], tokens: list[int]) -> float:
    """Print the median rate of the groups after the first; return it in real tokens per second."""
    rates = [count / spent for count, spent in zip(tokens, seconds, strict=True)][1:]
    rate = statistics.median(rates)
    print(f"{name:<60} {rate:8.0f} tokens/s   ({min(rates):.0f} to {max(rates):.0f})", flush=True)
    return rate


def _model_folder(folder: Path, *, is_quick: bool) -> str:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    hidden, layers, vocab = (64, 2, 2_000) if is_quick else (512, 8, 32_000)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=hidden * 43 // 16, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64, max_position_embeddings=2048,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer_folder(folder)
    return str(folder)


def _trainer(
    folder: str, data: TokenizedRows, order: list[list[int]], size: int, *, is_flat: bool = False
) -> list[float]:
    """The published recipe (padded_recipe.py)."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return train_padded(model, data, order, size, folder, is_flat=is_flat, **ON_CPU)


def _trl(folder: str, data: TokenizedRows, order: list[list[int]]) -> tuple[list[float], list[int]]:
    """TRL's SFTTrainer with packing, bins of 512 tokens; the tokens of its steps are counted as it makes them."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
    from trl import SFTConfig, SFTTrainer

    counted: list[int] = []
    clock = Clock()
    accumulation = max(1, round(sum(int(data.lengths[batch].sum()) for batch in order) / len(order) / 512))
    rows = [
        {"input_ids": example["input_ids"], "assistant_masks": [int(label != -100) for label in example["labels"]]}
        for example in examples(data, order)
    ]

    class Counting(SFTTrainer):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            counted.append(int(inputs["input_ids"].numel()))
            return super().training_step(model, inputs, *args, **kwargs)

    trainer = Counting(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        args=trainer_arguments(
            SFTConfig, folder, size=1, accumulation=accumulation, packing=True, max_length=512, bf16=False,
            gradient_checkpointing=False, **ON_CPU,  # the loss is on `assistant_masks`
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
        callbacks=[clock.callback],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    steps = [sum(counted[begin : begin + accumulation]) for begin in range(0, len(counted), accumulation)]
    return clock.seconds, steps[: len(clock.seconds)]


def _ours(folder: str, data: TokenizedRows, rows: int, groups: int, threads: int, keys: dict[str, Any]) -> list[float]:
    """Our loop on one rank; seconds of every step."""
    from training_data import run_ours

    train = TrainSpec(
        model=folder, global_batch_size=rows, micro_batch_size=4, epochs=1, max_length=2048, dtype="float32",
        seed=SEED, max_steps=groups + 1, **keys,
    )  # fmt: skip
    return run_ours(train, CheckpointSpec(interval_steps=10**6), data, Path(folder), threads=threads)


if __name__ == "__main__":
    main()

"""The parts of training_gpu.py: which trainings each one measures, and what it says about them."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu_training.aims import (
    ALPACA_EPOCHS,
    ALPACA_ROWS,
    GLOBAL_BATCH,
    HOURS_AIM,
    LINK_BYTES_PER_S,
    MFU_AIM,
    MFU_TARGET,
    NUM_GPUS,
    PADDED_AIM,
    PUBLISHED_GPU,
    PUBLISHED_GPU_HOURS,
    SAVES_AIM,
    Verdicts,
    alpaca_7b_flops,
    exchange_gpu_hours,
    gpu_hours,
)
from gpu_training.checks import Curve, losses_of, waits_of
from gpu_training.children import NotMeasured, PartFailed, Work, in_child
from gpu_training.models import SHAPES, TINY, How, Shape, needed_bytes
from gpu_training.runs import (
    Measured,
    SavesCost,
    Told,
    device_facts,
    free_bytes,
    measure_ours,
    measure_padded,
    measure_saves,
    train_to_the_end,
    write_weights,
)

from alpaca_jobs import examples
from alpaca_jobs.spec_io import load_job
from alpaca_jobs.training.flops import PEAK_BF16_FLOPS, peak_bf16_flops

WIDE = "7B-width, 8 layers"
JOB_KEYS = (
    "micro_batch_size", "compile", "gradient_checkpointing", "attention", "cross_entropy", "exactness", "dtype",
)  # fmt: skip
"""What of a job file decides the speed of a step, besides the model."""
LONGEST_ROW = 546
"""Tokens of the longest row that training_data.py draws."""
MEAN_ROW = 130
LOSS_TOLERANCE = 0.02
"""Nats, in bfloat16: as tests/alpaca_jobs/training/test_engines.py has it for engines."""
Missing = NotMeasured | PartFailed


class Bench:
    """One run of the program. What was measured once is not measured again for another part."""

    def __init__(self, *, on_gpu: bool, is_tiny: bool, is_quick: bool, scratch: str) -> None:
        self._is_tiny, self._short = is_tiny, is_tiny or is_quick
        self.verdicts = Verdicts(is_tiny=is_tiny)
        self._micro = 4 if is_tiny else 16
        rows, groups, steps, warm_up = (8, 2, 1, 1) if is_tiny else (128, 5, 1 if is_quick else 4, 4)
        self._work = Work("cuda:0" if on_gpu else "cpu", rows, groups, steps, warm_up, threads=1, scratch=scratch)
        if not on_gpu:  # some CPUs have no bfloat16; what the job file says is tried all the same
            self._work = replace(self._work, dtype="float32")
        self._known: dict[tuple[str, str, int], Measured | Missing] = {}
        self._gpu, self._memory = in_child(device_facts, self._work) if on_gpu else ("a CPU", 0)
        peak = peak_bf16_flops(self._gpu)
        self._no_peak = f"no sourced peak for {self._gpu} in alpaca_jobs/training/flops.py"
        print(f"{self._gpu}, {self._memory / 2**30:.0f} GiB, peak "
              f"{'not known' if peak is None else f'{peak / 1e12:.0f} TFLOP/s in bf16'}; torch {torch.__version__}; "
              f"{groups} groups of {steps} steps of {rows} rows, micro batches of {self._micro}")  # fmt: skip

    def full(self) -> None:
        """Full fine-tuning, each model without and with torch.compile; the better of the two is judged."""
        for name in ("1.3B", "3B", WIDE) if not self._short else ("1.3B", WIDE):
            best = self._best(name, "full", {})
            if name != "1.3B":
                self._judge_mfu(f"full fine-tuning, {name}", best)
        share = replace(self._work, rows=self._micro, steps=4 * self._work.steps)
        self._ours(WIDE, "full", {"micro_batch_size": self._micro}, work=share)
        self._judge_losses()
        self._judge_waits()

    def padded(self) -> None:
        """The published recipe at its micro batch of 4 and at ours, with the same model and rows."""
        what = f"ours over the padded recipe at micro batch 4, {WIDE} (at least {PADDED_AIM:.0f} times)"
        as_published = self._padded(4, "as published")
        if self._micro != 4:
            self._padded(self._micro, "as ours")
        ours = self._best(WIDE, "full", {})
        if not isinstance(as_published, Measured):
            self._missing(what, as_published)
        elif not isinstance(ours, Measured):
            self._missing(what, ours)
        else:
            ratio = ours.rate / as_published.rate
            self.verdicts.judge(f"{what}: {ratio:.2f} times", is_met=ratio >= PADDED_AIM)

    def lora(self) -> None:
        """LoRA beside a frozen base of 7 and of 8 billion parameters."""
        for name in ("LLaMA-7B", "Llama-3-8B") if not self._short else ("LLaMA-7B",):
            self._judge_mfu(f"LoRA, {name}", self._best(name, "lora", {"method": "lora"}))

    def saves(self) -> None:
        """Saves in the background: what one costs, and what share of the time that is."""
        name = "1.3B"
        what = f"saves in the background, {name} (at most {SAVES_AIM:.0%} of the time)"
        state_bytes, free = 12 * self._shape(name).num_parameters, free_bytes(self._work.scratch)
        if free < 4 * state_bytes:
            self.verdicts.not_measured(
                what, f"{free / 2**30:.0f} GiB are free in the scratch folder, and four states of "
                f"{state_bytes / 2**30:.0f} GiB are wanted: name another folder with --scratch",
            )  # fmt: skip
            return
        keys = {"micro_batch_size": self._micro}
        found = self._measure(name, "full", self._micro * MEAN_ROW, measure_saves, keys)
        if not isinstance(found, SavesCost):
            self._missing(what, found, is_new=True)
            return
        stall_s = statistics.median(save.stall_s for save in found.saves)
        seconds = statistics.median(save.seconds for save in found.saves)
        print(f"a step without a save {found.step_s:.3f} s; a save of {found.saves[0].bytes / 2**30:.2f} GiB: training "
              f"stood still {stall_s:.3f} s, committed after {seconds:.1f} s; with the slower steps meanwhile it cost "
              f"{statistics.median(found.lost_s):.3f} s ({min(found.lost_s):.3f} to {max(found.lost_s):.3f})\n"
              f"`interval_steps: auto`, a machine lost every hour: every {found.interval_steps} steps, "
              f"{found.interval_steps * found.step_s:.0f} s (by: {found.interval_by})")  # fmt: skip
        self.verdicts.judge(f"{what}: {found.share:.2%}", is_met=found.share <= SAVES_AIM)

    def kill(self) -> None:
        """A run killed with SIGKILL and gone on with, beside one that was not: the job's own loop, real checkpoints."""
        for exactness in ("bits", "rows") if not self._short else ("bits",):
            what = f"a run killed and gone on with, 0.4B, exactness {exactness}"
            try:
                self._kill_one(what, exactness)
            except (NotMeasured, PartFailed) as found:
                self._missing(what, found, is_new=True)

    def bits(self) -> None:
        """What `exactness: bits` costs."""
        plain = self._ours(WIDE, "full", {"micro_batch_size": self._micro})
        bits = self._ours(WIDE, "full", {"micro_batch_size": self._micro, "exactness": "bits"})
        if isinstance(plain, Measured) and isinstance(bits, Measured):
            print(f"the price of `exactness: bits`: {1 - bits.rate / plain.rate:.1%} of the tokens per second")

    def hours(self) -> None:
        """alpaca-7b.yaml's GPU hours, by arithmetic from the MFU that the file's own keys come to."""
        what = f"alpaca-7b.yaml (at most {HOURS_AIM:.1f} GPU hours, a tenth of the published {PUBLISHED_GPU_HOURS:.0f})"
        train = load_job(Path(examples.__file__).with_name("alpaca-7b.yaml")).train
        keys = {key: getattr(train, key) for key in JOB_KEYS}
        keys["micro_batch_size"] = min(train.micro_batch_size, self._work.rows)
        found = self._ours(WIDE, "full", keys)
        print(f"{ALPACA_EPOCHS} passes over {ALPACA_ROWS:,} rows through LLaMA-7B are {alpaca_7b_flops():.2e} FLOPs")
        if not isinstance(found, Measured):
            self._missing(what, found)
        elif found.mfu is None:
            self.verdicts.not_measured(what, self._no_peak)
        else:
            here = peak_bf16_flops(self._gpu)
            if here is not None:
                print(f"at MFU {found.mfu:.1%} of this GPU's {here / 1e12:.0f} TFLOP/s: "
                      f"{gpu_hours(found.mfu, here):.2f} GPU hours")  # fmt: skip
            computing = gpu_hours(found.mfu, PEAK_BF16_FLOPS[PUBLISHED_GPU])
            passes = -(-GLOBAL_BATCH // (NUM_GPUS * train.micro_batch_size))
            exchange = exchange_gpu_hours(micro_batches=passes)
            self.verdicts.judge(
                f"{what}: {computing + exchange:.2f}: computing {computing:.2f} at this MFU of the published A100's "
                f"{PEAK_BF16_FLOPS[PUBLISHED_GPU] / 1e12:.0f} TFLOP/s, and at most {exchange:.2f} of exchange among "
                f"{NUM_GPUS} GPUs, {passes} micro batches a step, by bytes over {LINK_BYTES_PER_S / 1e9:.0f} GB/s with "
                "nothing hidden behind computing",
                is_met=computing + exchange <= HOURS_AIM,
            )

    def _best(self, name: str, how: How, keys: dict[str, Any]) -> Measured | Missing:
        """The faster of our loop without and with torch.compile."""
        keys = {"micro_batch_size": self._micro, **keys}
        found = [self._ours(name, how, keys)]
        if not self._short:  # minutes of compiling
            found.append(self._ours(name, how, {**keys, "compile": True}))
        measured = [one for one in found if isinstance(one, Measured)]
        return max(measured, key=lambda one: one.rate) if measured else found[0]

    def _ours(self, name: str, how: How, keys: dict[str, Any], *, work: Work | None = None) -> Measured | Missing:
        rows = (work or self._work).rows
        known = (name, repr(sorted(keys.items())), rows)
        if known not in self._known:
            tokens = int(keys["micro_batch_size"]) * MEAN_ROW
            found = self._measure(name, how, tokens, measure_ours, keys, work=work)
            words = ", ".join(f"{key} {value}" for key, value in keys.items() if value != "auto")
            self._show(f"ours, {name}, {rows} rows a step, {words}", found)
            self._known[known] = found
        return self._known[known]

    def _padded(self, size: int, words: str) -> Measured | Missing:
        found: Measured | Missing = self._measure(WIDE, "padded", size * LONGEST_ROW, measure_padded, size)
        self._show(f"Trainer, padded, {WIDE}, micro batch {size} ({words})", found)
        return found

    def _measure(
        self, name: str, how: How, tokens: int, function: Callable[..., Any], *args: Any, work: Work | None = None
    ) -> Any:
        """What the function returns in a child, or why there is nothing."""
        shape = self._shape(name)
        needed = needed_bytes(shape, how=how, tokens=tokens)
        if self._memory and needed > self._memory:
            return NotMeasured(
                f"it needs about {needed / 2**30:.0f} GiB of GPU memory, and {self._gpu} has {self._memory / 2**30:.0f}"
            )
        try:
            return in_child(function, work or self._work, shape, *args)
        except (NotMeasured, PartFailed) as found:
            return found

    def _kill_one(self, what: str, exactness: str) -> None:
        work, last_saved, told = replace(self._work, rows=2 * self._micro), [0], dict[int, str]()
        steps, every = (9, 3) if self._is_tiny else (24, 6)
        keys = {"micro_batch_size": self._micro, "exactness": exactness, "max_steps": steps}

        def kill_when(one: Told) -> bool:
            kind, step, loss = one
            if kind == "saved":
                last_saved[0] = step
            else:
                told[step] = loss
            return bool(last_saved[0]) and len(told) >= last_saved[0] + 2  # past a commit, with work to lose

        with tempfile.TemporaryDirectory(dir=work.scratch) as folder:
            model, run = f"{folder}/model", f"{folder}/run"
            in_child(write_weights, work, self._shape("0.4B"), model)
            _, whole = in_child(train_to_the_end, work, model, f"{folder}/undisturbed", keys, every)
            if in_child(train_to_the_end, work, model, run, keys, every, kill_when=kill_when) is not None:
                raise PartFailed("it was done before it could be killed")
            begin, rest = in_child(train_to_the_end, work, model, run, keys, every)
        print(f"exactness {exactness}: killed after step {len(told)}, gone on from step {begin} to {begin + len(rest)}")
        if not begin:
            raise PartFailed("it began anew: the committed state was not found")
        ends = [float.fromhex(text) for text in rest], [float.fromhex(text) for text in whole[begin:]]
        differences = [abs(one - other) for one, other in zip(*ends, strict=True)]
        if exactness == "bits":
            same = rest == whole[begin:] and [told[step] for step in sorted(told)] == list(whole[: len(told)])
            self.verdicts.judge(f"{what}: losses have {'the same bits' if same else 'other bits'}", is_met=same)
        if exactness == "rows" or max(differences):
            print(f"losses differ by at most {max(differences):.1e} nats, at losses of about {ends[0][-1]:.2f}")

    def _shape(self, name: str) -> Shape:
        return TINY if self._is_tiny else SHAPES[name]

    def _show(self, name: str, found: Measured | Missing) -> None:
        if isinstance(found, PartFailed):
            self.verdicts.broke(name, str(found))
            return
        if isinstance(found, NotMeasured):
            print(f"{name}: not measured: {found}", flush=True)
            return
        text = f"{name}: {found.rate:.0f} real tokens/s ({min(found.rates):.0f} to {max(found.rates):.0f})"
        if found.mfu is not None:
            text += f", MFU {found.mfu:.1%} ({min(found.mfus):.1%} to {max(found.mfus):.1%})"
        if found.peak_gib is not None:
            text += f", {found.peak_gib:.1f} GiB"
        print(f"{text}, layout {found.layout}", flush=True)

    def _judge_losses(self) -> None:
        """The same rows by flash attention and by masks: what a kernel gets wrong shows in the losses."""
        what = f"losses of 0.4B by flash attention and by masks (at most {LOSS_TOLERANCE} apart)"
        curves = []
        for attention in ("auto", "mask"):
            keys = {"micro_batch_size": self._micro, "attention": attention}
            found = self._measure("0.4B", "full", self._micro * MEAN_ROW, losses_of, keys)
            if not isinstance(found, Curve):
                self._missing(what, found, is_new=True)
                return
            curves.append(found)
        apart = max(abs(one - two) for one, two in zip(curves[0].losses, curves[1].losses, strict=True))
        layouts = " and ".join(curve.layout for curve in curves)
        self.verdicts.judge(
            f"{what}: {apart:.4f} over {len(curves[0].losses)} steps, layouts {layouts}",
            is_met=apart <= LOSS_TOLERANCE and curves[0].layout == "rows",
        )

    def _judge_waits(self) -> None:
        """One wait a step: for what all ranks agree on."""
        what = "times a step waits for the GPU, 0.4B (at most once)"
        if self._work.device == "cpu":
            self.verdicts.not_measured(what, "there is no GPU to wait for")
            return
        found = self._measure("0.4B", "full", self._micro * MEAN_ROW, waits_of, {"micro_batch_size": self._micro})
        if not isinstance(found, tuple):
            self._missing(what, found, is_new=True)
        else:
            self.verdicts.judge(f"{what}: {', '.join(map(str, found))}", is_met=max(found) <= 1)

    def _judge_mfu(self, what: str, found: Measured | Missing) -> None:
        what = f"{what}: MFU on real tokens (at least {MFU_AIM:.0%}, hoped for {MFU_TARGET:.0%})"
        if not isinstance(found, Measured):
            self._missing(what, found)
        elif found.mfu is None:
            self.verdicts.not_measured(what, self._no_peak)
        else:
            self.verdicts.judge(f"{what}: {found.mfu:.1%}", is_met=found.mfu >= MFU_AIM)

    def _missing(self, what: str, found: Missing, *, is_new: bool = False) -> None:
        """An aim without its measurement; `is_new`: nobody has said yet why."""
        if is_new and isinstance(found, PartFailed):
            self.verdicts.broke(what, str(found))
        self.verdicts.not_measured(what, str(found) if isinstance(found, NotMeasured) else "it broke")

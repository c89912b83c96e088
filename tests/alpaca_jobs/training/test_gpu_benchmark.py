"""benchmarks/training_gpu.py without a GPU: every path of it runs, says nothing about aims, and knows why it cannot."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PARTS = ("full", "padded", "lora", "saves", "kill", "bits", "hours")


def _run(repo_root: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/training_gpu.py", *arguments]
    return subprocess.run(
        command, cwd=repo_root, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environ}
    )


@pytest.mark.slow
@pytest.mark.process
def test_every_part_runs_on_tiny_shapes_and_counts_for_no_aim(repo_root: Path, tmp_path: Path) -> None:
    done = _run(repo_root, "--device", "cpu", "--tiny", "--scratch", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line[3:] for line in done.stdout.splitlines() if line.startswith("== ")] == list(PARTS)
    assert "aim met" not in done.stdout
    assert "0 broke, 4 not measured" in done.stdout, done.stdout  # three need a peak, one a GPU to wait for
    assert "0.0000 over 3 steps, layouts rows and positions" in done.stdout, done.stdout  # masks, by another layout
    assert "losses have the same bits" in done.stdout, done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.process
def test_it_runs_from_a_checkout_that_is_not_installed(repo_root: Path, tmp_path: Path) -> None:
    """Its own folder is all that Python puts on the path; where ours is installed, that is hidden from it here."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.meta_path[:] = [one for one in sys.meta_path if 'editable' not in repr(one).lower()]\n"
    )
    code = f"import sys; sys.path[:] = [one for one in sys.path if one not in ('', {str(repo_root)!r})]\n"
    code += f"sys.path.insert(0, {str(repo_root / 'benchmarks')!r}); sys.argv[1:] = ['--help']\n"
    code += f"import runpy\ntry: runpy.run_path({str(repo_root / 'benchmarks/training_gpu.py')!r}, run_name='__main__')"
    code += "\nexcept SystemExit: pass\nimport gpu_training.bench; print('imported')"
    environ = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")
    assert done.stdout.rstrip().endswith("imported")


def test_a_trainer_without_accelerate_is_not_measured_and_not_broken(
    repo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(repo_root / "benchmarks"))
    from gpu_training import runs
    from gpu_training.children import NotMeasured, Work, in_child
    from gpu_training.models import TINY

    monkeypatch.setattr(runs, "has_accelerate", lambda: False)
    work = Work("cpu", rows=4, groups=1, steps=1, warm_up=1, threads=1, scratch="/tmp", dtype="float32")
    with pytest.raises(NotMeasured, match="accelerate is not installed here: pip install accelerate"):
        in_child(runs.measure_padded, work, TINY, 4)


@pytest.mark.process
def test_without_a_gpu_it_says_what_is_wanted(repo_root: Path) -> None:
    done = _run(repo_root, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("No CUDA GPU was found here")
    assert "an H100's class" in done.stderr


def test_thirty_percent_is_what_a_tenth_of_the_published_hours_takes(
    repo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/TRAINING.md says."""
    monkeypatch.syspath_prepend(str(repo_root / "benchmarks"))
    from gpu_training.aims import HOURS_AIM, PUBLISHED_GPU, gpu_hours

    from alpaca_jobs.training.flops import PEAK_BF16_FLOPS

    assert gpu_hours(0.30, PEAK_BF16_FLOPS[PUBLISHED_GPU]) == pytest.approx(HOURS_AIM, rel=0.05)


def test_the_exchange_counts_and_smaller_micro_batches_cost_as_many_times(
    repo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/TRAINING.md says: 0.43 GPU hours for one forward pass a step, so that an MFU of 36 % is a tenth."""
    monkeypatch.syspath_prepend(str(repo_root / "benchmarks"))
    from gpu_training.aims import GLOBAL_BATCH, HOURS_AIM, NUM_GPUS, PUBLISHED_GPU, exchange_gpu_hours, gpu_hours

    from alpaca_jobs.examples import example_text
    from alpaca_jobs.spec_io import parse_job
    from alpaca_jobs.training.flops import PEAK_BF16_FLOPS

    one = exchange_gpu_hours(micro_batches=1)
    assert one == pytest.approx(0.43, abs=0.005)
    assert exchange_gpu_hours(micro_batches=4) == pytest.approx(4 * one)
    computing = gpu_hours(0.36, PEAK_BF16_FLOPS[PUBLISHED_GPU])
    assert computing + one < HOURS_AIM < computing + 4 * one
    train = parse_job(example_text("alpaca-7b"), "alpaca-7b").train
    assert train.micro_batch_size * NUM_GPUS == GLOBAL_BATCH == train.global_batch_size


def test_an_aim_not_met_and_a_part_that_broke_end_in_1_one_not_measured_does_not(
    repo_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(repo_root / "benchmarks"))
    from gpu_training.aims import Verdicts

    verdicts = Verdicts(is_tiny=False)
    verdicts.judge("fast: 51 %", is_met=True)
    verdicts.not_measured("large", "it needs 90 GiB")
    assert verdicts.end() == 0
    said = capsys.readouterr().out
    assert "large. aim met: no (not measured: it needs 90 GiB)" in said
    assert "aims: 1 met, 0 not met, 1 not measured; 0 measurements broke" in said
    verdicts.judge("faster: 40 %", is_met=False)
    assert verdicts.end() == 1
    assert "aim met: no" in capsys.readouterr().out
    broken = Verdicts(is_tiny=True)
    broken.broke("compiled", "no such kernel")
    assert broken.end() == 1


@pytest.mark.process
def test_the_roofline_says_what_fused_norms_and_larger_chunks_are_worth(repo_root: Path) -> None:
    command = [sys.executable, "benchmarks/gpu_roofline.py", "--gpu", "NVIDIA A100", "--shape", "0.4B", "--top", "1"]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    mfus = [float(found) for found in re.findall(r"MFU at most ([\d.]+)%", done.stdout)]
    assert mfus[0] < mfus[1] < mfus[2] < 80, "products are taken to reach 80 % of the peak"
    assert "x aten.mm" in done.stdout.splitlines()[-1], done.stdout

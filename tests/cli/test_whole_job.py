"""The commands with the real nodes: Ray, a teacher over HTTP, two FSDP ranks, kills. What a newcomer sees."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROMISED = {
    "kills", "kills_by_phase", "attempts", "regions", "bit_identical", "weights_digest", "losses_digest",
    "lost_steps_max", "rows_lost", "rows_duplicated", "corrupt_resumes", "requests_repeated",
}  # fmt: skip


@pytest.fixture
def small_job(tmp_path: Path) -> str:
    """The demo, made smaller: fewer rows and steps, everything else as it ships."""
    from alpaca_jobs.examples import example_text
    from alpaca_jobs.spec_io import change_job, parse_job, render_job

    job = change_job(
        parse_job(example_text("demo"), "demo"),
        {
            "store": f"file://{tmp_path}/runs",
            "data.num_rows": 64,
            "train.global_batch_size": 32,
            "train.epochs": 10,
            "checkpoints.interval_steps": 4,
        },
    )
    path = tmp_path / "job.yaml"
    path.write_text(render_job(job), encoding="utf-8")
    return str(path)


def test_a_run_killed_three_times_ends_with_the_same_bits(run_cli: Cli, small_job: str) -> None:
    drilled = run_cli("drill", small_job, "--kills", "3", "--seed", "7", "--json", timeout=800)
    assert drilled.returncode == 0, drilled.stderr
    result = json.loads(drilled.stdout)
    assert PROMISED - result.keys() == set()
    assert result["kills"] == sum(result["kills_by_phase"].values()) == 3
    assert result["attempts"] == 4
    assert all(one != other for one, other in zip(result["regions"], result["regions"][1:], strict=False))
    assert result["bit_identical"] is True
    for name in ("weights_digest", "losses_digest"):
        assert result[name]["undisturbed"] == result[name]["killed"]
    assert (result["rows_lost"], result["rows_duplicated"], result["corrupt_resumes"]) == (0, 0, 0)
    assert result["lost_steps_in_bound"] is True


def test_stages_by_themselves_end_in_a_model_that_transformers_loads(
    run_cli: Cli, small_job: str, tmp_path: Path
) -> None:
    rows, model = tmp_path / "rows.json", tmp_path / "model"
    generated = run_cli("generate", small_job, "--out", str(rows), "--yes", "--json", timeout=300)
    assert generated.returncode == 0, generated.stderr
    kept = json.loads(rows.read_text(encoding="utf-8"))
    assert len(kept) == json.loads(generated.stdout)["rows"] == 64
    assert set(kept[0]) == {"instruction", "input", "output"}
    trained = run_cli("train", small_job, "--rows", str(rows), "--yes", "--json", timeout=500)
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["step"] == 20  # 64 rows / 32 a step, 10 times
    exported = run_cli("export", "--to", str(model), "--json")
    assert exported.returncode == 0, exported.stderr
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model)
    asked = tokenizer("Below is an instruction", return_tensors="pt")
    assert loaded.generate(**asked, max_new_tokens=2).shape[1] > asked["input_ids"].shape[1]


def test_a_job_with_review_stops_before_training_and_goes_on_when_accepted(
    run_cli: Cli, small_job: str, tmp_path: Path
) -> None:
    from alpaca_jobs.spec_io import change_job, load_job, render_job

    job = change_job(load_job(Path(small_job)), {"data.review": True, "data.num_rows": 32, "train.epochs": 2})
    Path(small_job).write_text(render_job(job), encoding="utf-8")
    launched = run_cli("launch", small_job, "--yes", "--json", timeout=300)
    assert launched.returncode == 0, launched.stderr
    report = json.loads(launched.stdout)
    assert (report["outcome"], report["rows"], report["step"]) == ("review", 32, None)
    view = json.loads(run_cli("status", "--json").stdout)
    assert view["state"] == "review"
    page = Path(view["data_card"].removeprefix("file://")).read_text(encoding="utf-8")
    assert "Apache-2.0" in page
    assert "<svg" in page
    resumed = run_cli("resume", "--yes", "--json", timeout=300)
    assert resumed.returncode == 0, resumed.stderr
    done = json.loads(resumed.stdout)
    assert (done["outcome"], done["step"], done["requests_repeated"]) == ("done", 2, 0)
    model = tmp_path / "model"
    assert run_cli("export", "--to", str(model)).returncode == 0
    assert "Apache-2.0" in (model / "README.md").read_text(encoding="utf-8")

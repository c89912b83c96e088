"""Two ranks: what is preempted and resumed ends with the bits of what was not, and a damaged checkpoint is passed over.

One start of two processes carries all trainings of this file (rank_worker.py); each test looks at its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from checkpoints.keys import CommitRef, Layout, Stage
from checkpoints.reader import CommitReader
from checkpoints.store import Store

# The first test waits for all trainings: 15 s alone, 100 s on a busy machine.
pytestmark = [pytest.mark.process, pytest.mark.timeout(400)]

LAYOUT = Layout((Stage("train", "checkpoints", "step-", 8),))
NUM_STEPS = 12  # 40 rows in batches of 7: six steps an epoch, the last one of five rows
TINY = {
    "model": "tiny-llama",
    "global_batch_size": 7,
    "micro_batch_size": 2,
    "learning_rate": 2e-3,
    "epochs": 2,
    "max_length": 128,
    "dtype": "float32",
    "exactness": "bits",
}
ONE_ROW = {**TINY, "global_batch_size": 1, "micro_batch_size": 1, "max_steps": 3}

EVALUATED = {"eval": {"file": "held-out.jsonl", "every_steps": 4}}
"""rank_worker.py holds rows of its own making out; the file is named and not read."""

Answers = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the stores of all trainings here."""
    return tmp_path_factory.mktemp("stores")


def _runs(stores: Path, tiny_opt: Path) -> list[dict[str, Any]]:
    def run(name: str, store: str, attempt: int, **more: Any) -> dict[str, Any]:
        return {"name": name, "store": f"file://{stores / store}", "attempt": attempt, "train": TINY, **more}

    opt = {**TINY, "model": str(tiny_opt), "dtype": "bfloat16"}
    evaluated = {**TINY, **EVALUATED}
    early = {"file": "held-out.jsonl", "every_steps": 1, "stop_after": 2}
    diverging = {**TINY, "learning_rate": 2.0, "max_grad_norm": 100.0, "lr_schedule": "constant", "eval": early}
    return [
        run("undisturbed", "undisturbed", 1),
        run("finished before", "undisturbed", 2),
        run("one row a step", "one-row", 1, train=ONE_ROW),
        run("stopped", "resumed", 1, stop_at=8, stop_on_rank=1),
        run("resumed", "resumed", 2),
        run("from step 5", "again", 1, stop_at=10),
        run("past damage", "again", 2, damage=str(stores / "again/checkpoints/step-00000010")),
        run(
            "all damaged",
            "again",
            3,
            damage=str(stores / "again/checkpoints/step-00000010/attempt-000002"),
            from_step=10,
        ),
        run("other job", "resumed", 3, train={**TINY, "learning_rate": 1e-3}),
        run("noticed", "noticed", 1, notice={"rank": 1, "step": 7, "seconds": 30.0}),
        run("late notice", "late", 1, notice={"rank": 1, "step": 7, "seconds": 0.0}),
        run("OPT undisturbed", "opt-undisturbed", 1, train=opt),
        run("OPT stopped", "opt-resumed", 1, train=opt, stop_at=3),
        run("OPT resumed", "opt-resumed", 2, train=opt),
        run("OPT evaluated", "opt-evaluated", 1, train={**opt, **EVALUATED}, held_out=9),
        run("evaluated", "evaluated", 1, train=evaluated, held_out=9),
        run("evaluated, stopped", "evaluated-2", 1, train=evaluated, held_out=9, stop_at=8),
        run("evaluated, resumed", "evaluated-2", 2, train=evaluated, held_out=9),
        run("diverging", "diverging", 1, train=diverging, held_out=9),
        run("diverging, again", "diverging", 2, train=diverging, held_out=9),
    ]


@pytest.fixture(scope="module")
def answers(stores: Path, tiny_opt: Path, train_on_two_ranks: Any) -> Answers:
    """What every training of this file said, by name; one answer per rank."""
    told: Answers = train_on_two_ranks(_runs(stores, tiny_opt))
    return told


def _state_digests(stores: Path, store: str, step: int, attempt: int) -> list[str]:
    """Digests of every block of model and optimizer in a commit."""
    manifest = CommitReader.open(
        Store.open(f"file://{stores / store}"), LAYOUT, CommitRef("train", step, attempt)
    ).manifest
    return [block.digest for entry in manifest.objects for block in entry.blocks]


def _meta(stores: Path, store: str, step: int, attempt: int) -> dict[str, Any]:
    reader = CommitReader.open(Store.open(f"file://{stores / store}"), LAYOUT, CommitRef("train", step, attempt))
    return dict(reader.manifest.meta)


def test_an_undisturbed_run_commits_at_its_interval_and_at_the_end(answers: Answers) -> None:
    first, second = answers["undisturbed"]
    assert first["stopped_by"] == second["stopped_by"] == "done"
    assert first["saved"] == [5, 10, 12]
    assert first["saved_step"] == second["saved_step"] == NUM_STEPS
    assert first["losses"] == second["losses"]
    assert first["was_loaded"]
    assert first["loaded"] is None
    assert not second["was_loaded"]  # only rank 0 tells the node


def test_resume_at_the_same_world_size_gives_the_same_bits(answers: Answers, stores: Path) -> None:
    undisturbed, stopped, resumed = (answers[name][0] for name in ("undisturbed", "stopped", "resumed"))
    assert stopped["stopped_by"] == "stop"
    assert stopped["saved_step"] == 8  # asked on rank 1, saved on both
    assert resumed["loaded"] == 8
    assert stopped["losses"] + resumed["losses"] == undisturbed["losses"]
    assert _state_digests(stores, "resumed", 12, 2) == _state_digests(stores, "undisturbed", 12, 1)


def test_resume_with_dropout_in_bfloat16_gives_the_same_bits(answers: Answers, stores: Path) -> None:
    undisturbed, stopped, resumed = (answers[f"OPT {name}"][0] for name in ("undisturbed", "stopped", "resumed"))
    assert stopped["losses"] + resumed["losses"] == undisturbed["losses"]
    assert _state_digests(stores, "opt-resumed", 12, 2) == _state_digests(stores, "opt-undisturbed", 12, 1)


def test_every_checkpoint_holds_the_losses_of_all_steps_and_counts_rows(answers: Answers, stores: Path) -> None:
    metas = [_meta(stores, "resumed", *commit) for commit in ((5, 1), (8, 1), (10, 2), (12, 2))]
    for meta in metas:
        assert meta["losses"] == {"first_step": 1, "hex": answers["undisturbed"][0]["losses"][: meta["step"]]}
    assert [meta["rows_seen"] for meta in metas] == [35, 54, 68, 80]
    assert metas[-1]["tokens_seen"] == _meta(stores, "undisturbed", 12, 1)["tokens_seen"]


def test_a_damaged_newest_checkpoint_is_passed_over_on_every_rank(answers: Answers, stores: Path) -> None:
    first, second = answers["past damage"]
    assert first["loaded"] == 5
    assert len(first["fallbacks"]) == 1
    assert "is damaged" in first["fallbacks"][0]
    assert "step-00000010" in first["fallbacks"][0]
    assert first["losses"] == second["losses"] == answers["undisturbed"][0]["losses"][5:]
    assert _state_digests(stores, "again", 12, 2) == _state_digests(stores, "undisturbed", 12, 1)


def test_when_every_checkpoint_is_damaged_no_rank_starts_over(answers: Answers) -> None:
    for answer in answers["all damaged"]:
        assert answer["error"] == "NoGoodCommit"
        assert "nothing starts over silently" in answer["text"]


def test_a_checkpoint_of_another_training_is_refused_in_words(answers: Answers) -> None:
    for answer in answers["other job"]:
        assert answer["error"] == "TrainingError"
        assert "belongs to another training" in answer["text"]


def test_a_notice_on_one_rank_makes_all_save_at_that_step(answers: Answers) -> None:
    first, second = answers["noticed"]
    assert first["stopped_by"] == second["stopped_by"] == "notice"
    assert first["saved_step"] == second["saved_step"] == first["final_step"] == 7
    assert "step 7 was saved" in first["words"]


def test_a_notice_that_a_save_does_not_fit_starts_none_and_says_so(answers: Answers) -> None:
    first = answers["late notice"][0]
    assert first["stopped_by"] == "notice"
    assert (first["final_step"], first["saved_step"]) == (7, 5)
    assert "none was begun: step 5 is the newest committed, 2 steps will be repeated" in first["words"]


def test_a_training_that_was_finished_makes_no_step_and_no_commit(answers: Answers, stores: Path) -> None:
    first = answers["finished before"][0]
    assert (first["loaded"], first["steps"], first["saved"], first["saved_step"]) == (12, [], [], 12)
    assert first["stopped_by"] == "done"


def test_a_rank_without_rows_takes_part_with_no_weight(
    answers: Answers, worker: Any, one_rank: None, tmp_path: Path
) -> None:
    alone = worker.train_once({"store": f"file://{tmp_path}", "attempt": 1, "train": ONE_ROW}, rank=0, world_size=1)
    theirs = [float.fromhex(loss) for loss in answers["one row a step"][0]["losses"]]
    assert [float.fromhex(loss) for loss in alone["losses"]] == pytest.approx(theirs, abs=1e-5)
    assert alone["grad_norms"] == pytest.approx(answers["one row a step"][0]["grad_norms"], rel=1e-4)


def test_another_world_size_trains_on_the_same_batches(
    answers: Answers, stores: Path, worker: Any, one_rank: None, tmp_path: Path
) -> None:
    """One rank continues what two began, from the very checkpoint, and agrees with them to rounding."""
    import shutil

    shutil.copytree(stores / "resumed", tmp_path / "resumed")
    run = {"store": f"file://{tmp_path / 'resumed'}", "attempt": 9, "train": TINY, "from_step": 8}
    alone = worker.train_once(run, rank=0, world_size=1)
    assert alone["loaded"] == 8
    theirs = [float.fromhex(loss) for loss in answers["undisturbed"][0]["losses"][8:]]
    assert [float.fromhex(loss) for loss in alone["losses"]] == pytest.approx(theirs, abs=1e-5)
    assert alone["grad_norms"] == pytest.approx(answers["undisturbed"][0]["grad_norms"][8:], rel=1e-4)


def test_a_run_with_evaluation_trains_to_the_bits_of_one_without(answers: Answers, stores: Path) -> None:
    undisturbed, evaluated = answers["undisturbed"][0], answers["evaluated"][0]
    assert evaluated["losses"] == undisturbed["losses"]
    assert _state_digests(stores, "evaluated", 12, 1) == _state_digests(stores, "undisturbed", 12, 1)
    opt = answers["OPT evaluated"][0]  # with dropout
    assert opt["losses"] == answers["OPT undisturbed"][0]["losses"]
    assert _state_digests(stores, "opt-evaluated", 12, 1) == _state_digests(stores, "opt-undisturbed", 12, 1)
    assert len(opt["evaluations"]) == 3


def test_the_loss_of_held_out_rows_is_the_mean_over_their_tokens_whatever_the_ranks(
    answers: Answers, worker: Any, one_rank: None, tmp_path: Path
) -> None:
    first = answers["evaluated"][0]
    assert [step for step, _ in first["evaluations"]] == [4, 8, 12]
    assert first["evaluations_begun"] == 3
    assert answers["evaluated"][1]["evaluations"] == []  # only rank 0 tells the node
    run = {"store": f"file://{tmp_path}", "attempt": 1, "train": {**TINY, **EVALUATED}, "held_out": 9}
    alone = worker.train_once(run, rank=0, world_size=1)
    theirs = [float.fromhex(loss) for _, loss in first["evaluations"]]
    assert [float.fromhex(loss) for _, loss in alone["evaluations"]] == pytest.approx(theirs, abs=1e-5)


def test_a_resumed_run_evaluates_at_the_same_steps_with_the_same_bits(answers: Answers, stores: Path) -> None:
    undisturbed, stopped, resumed = (answers[f"evaluated{part}"][0] for part in ("", ", stopped", ", resumed"))
    assert stopped["saved_step"] == 8
    assert stopped["evaluations"] == undisturbed["evaluations"][:1], "asked to leave, it left, and did not evaluate"
    assert resumed["evaluations"] == undisturbed["evaluations"][1:]
    meta = _meta(stores, "evaluated-2", 12, 2)
    assert meta["evaluations"] == undisturbed["evaluations"] == _meta(stores, "evaluated", 12, 1)["evaluations"]


def test_every_state_that_is_the_best_so_far_is_saved_with_its_loss(answers: Answers, stores: Path) -> None:
    first = answers["evaluated"][0]
    losses = {step: float.fromhex(loss) for step, loss in first["evaluations"]}
    assert first["best"] == [4, 8, 12], "this one learns all the time"
    assert first["saved"] == [4, 5, 8, 10, 12]
    assert {step: _meta(stores, "evaluated", step, 1)["metrics"]["eval_loss"] for step in losses} == losses
    assert "metrics" not in _meta(stores, "evaluated", 5, 1)
    assert _meta(stores, "evaluated-2", 8, 2)["metrics"]["eval_loss"] == losses[8], "saved again, now with its loss"


def test_training_stops_early_and_a_resume_does_not_go_on(answers: Answers, stores: Path) -> None:
    first, second = answers["diverging"]
    assert first["stopped_by"] == second["stopped_by"] == "done"
    steps, best = [step for step, _ in first["evaluations"]], first["best"][-1]
    assert steps == list(range(1, first["final_step"] + 1))
    assert first["final_step"] == best + 2 < NUM_STEPS
    assert f"Stopped early after step {best + 2}: 2 evaluations in a row brought no lower loss" in first["words"]
    assert first["saved_step"] == first["final_step"]
    again = answers["diverging, again"][0]
    assert (again["steps"], again["saved"], again["words"]) == ([], [], first["words"])

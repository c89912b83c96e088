"""Every error ends in its exit code and in words; a traceback is for a file, not for the reader."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path

import pytest
import typer

from alpaca_jobs import errors as alpaca_errors
from checkpoints import errors as checkpoint_errors
from cli import render
from cli.entry import run
from cli.exits import ExitCode, MissingExtra, Refused, code_of, guarded, require_modules, settle, tell
from cluster import errors as cluster_errors
from cluster.runs.home import Home


def _tree(base: type[Exception]) -> list[type[Exception]]:
    return [base, *(found for child in base.__subclasses__() for found in _tree(child))]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (alpaca_errors.SpecError("x"), ExitCode.WRONG_INPUT),
        (alpaca_errors.TeacherUnreachable("x"), ExitCode.SURROUNDINGS_FAILED),
        (alpaca_errors.BudgetExceeded("x"), ExitCode.STOPPED_BY_LIMIT),
        (alpaca_errors.TrainingError("x"), ExitCode.JOB_FAILED),
        (cluster_errors.RunNotFound("x"), ExitCode.WRONG_INPUT),
        (cluster_errors.NoCapacity("x"), ExitCode.SURROUNDINGS_FAILED),
        (cluster_errors.RunFailed("x"), ExitCode.JOB_FAILED),
        (checkpoint_errors.StoreError("x"), ExitCode.SURROUNDINGS_FAILED),
        (Refused("x"), ExitCode.WRONG_INPUT),
        (ModuleNotFoundError("No module named 'ray'", name="ray"), ExitCode.SURROUNDINGS_FAILED),
        (ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn"), ExitCode.SURROUNDINGS_FAILED),
        (OSError(28, "No space left on device"), ExitCode.SURROUNDINGS_FAILED),
        (ZeroDivisionError("x"), ExitCode.JOB_FAILED),
    ],
)
def test_each_error_has_its_exit_code(error: Exception, code: ExitCode) -> None:
    assert tell(error) == code


def test_every_class_of_the_three_trees_carries_a_code() -> None:
    for base in (alpaca_errors.AlpacaError, checkpoint_errors.CheckpointError, cluster_errors.ClusterError):
        for error in _tree(base):
            assert code_of(error.__new__(error)) in set(ExitCode), error


def test_our_errors_are_told_in_their_own_words(capsys: pytest.CaptureFixture[str]) -> None:
    tell(alpaca_errors.DataError("seeds.jsonl is empty."))
    assert capsys.readouterr() == ("", "seeds.jsonl is empty.\n")


def test_an_unforeseen_error_leaves_its_traceback_in_a_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALPACA_JOBS_HOME", str(tmp_path / "home"))

    @guarded
    def command() -> None:
        raise ZeroDivisionError("by hand")

    with pytest.raises(typer.Exit) as exited:
        command()
    assert exited.value.exit_code == ExitCode.JOB_FAILED
    said = capsys.readouterr().err
    log = next((tmp_path / "home" / "logs").iterdir())
    assert str(log) in said
    assert "Traceback" not in said
    assert "ZeroDivisionError: by hand" in log.read_text(encoding="utf-8")


def test_whoever_has_no_home_folder_is_told_to_name_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "ALPACA_JOBS_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 7)  # nobody's number, as a container may be given

    @guarded
    def command() -> None:
        Home.default()

    with pytest.raises(typer.Exit) as exited:
        command()
    assert exited.value.exit_code == ExitCode.SURROUNDINGS_FAILED
    assert capsys.readouterr().err.startswith("HOME is not set, and this system has no home folder for you. Set one: ")


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALPACA_JOBS_DEBUG", "1")
    tell(alpaca_errors.SpecError("unknown key"))
    assert "SpecError: unknown key" in capsys.readouterr().err


def test_a_missing_extra_is_its_pip_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert tell(ModuleNotFoundError("No module named 'openai'", name="openai")) == ExitCode.SURROUNDINGS_FAILED
    assert "pip install 'alpaca-jobs[data]'" in capsys.readouterr().err


def test_required_modules_that_are_there_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    require_modules("openai", "ray")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"ray, sky not installed.*\n.*alpaca-jobs\[node,sky\]"):
        require_modules("ray", "sky")


def test_ctrl_c_that_comes_while_pydantic_builds_a_model_is_130_too() -> None:
    from pydantic_core import SchemaError

    @guarded
    def command() -> None:
        raise SchemaError('Field "train":\n  SchemaError: Error building "literal" validator:\n  KeyboardInterrupt: ')

    with pytest.raises(typer.Exit) as caught:
        command()
    assert caught.value.exit_code == 130


class _Interrupted:
    """Ctrl-C comes while the class is made that has this attribute, as in the middle of an import."""

    def __set_name__(self, owner: type, name: str) -> None:
        raise KeyboardInterrupt


def test_ctrl_c_that_comes_while_a_class_is_made_is_130_too(monkeypatch: pytest.MonkeyPatch) -> None:
    @guarded
    def interrupted() -> None:
        type("X", (), {"a": _Interrupted()})

    with pytest.raises(typer.Exit) as stopped:
        interrupted()
    assert stopped.value.exit_code == ExitCode.INTERRUPTED
    monkeypatch.setattr("cli.main.app", lambda: type("X", (), {"a": _Interrupted()}))  # or before a command runs
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == ExitCode.INTERRUPTED


def test_ctrl_c_is_130() -> None:
    @guarded
    def command() -> None:
        raise KeyboardInterrupt

    with pytest.raises(typer.Exit) as exited:
        command()
    assert exited.value.exit_code == ExitCode.INTERRUPTED


@pytest.mark.parametrize("own", [typer.Exit(4), typer.BadParameter("no")])
def test_typers_own_exits_pass_through(own: Exception) -> None:
    @guarded
    def command() -> None:
        raise own

    with pytest.raises(type(own)):
        command()


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (errno.ENOSPC, ExitCode.SURROUNDINGS_FAILED, "Make room"),
        (errno.EROFS, ExitCode.SURROUNDINGS_FAILED, "may write to"),
        (errno.EACCES, ExitCode.SURROUNDINGS_FAILED, "may write to"),
        (errno.ENOTDIR, ExitCode.WRONG_INPUT, "A folder is wanted"),
    ],
)
def test_what_a_machine_refuses_is_said_with_its_place_and_advice(
    capsys: pytest.CaptureFixture[str], number: int, code: ExitCode, said: str
) -> None:
    error = OSError(number, os.strerror(number), "/data/rows.json")
    assert tell(error) == code
    told = capsys.readouterr().err
    assert told.startswith(f"/data/rows.json: {os.strerror(number)}. ")
    assert said in told
    assert "did not foresee" not in told


def _stdout_into(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.FileIO(os.open(path, os.O_WRONLY), "w"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", stream)


def test_a_result_that_does_not_fit_on_the_disk_is_no_success(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        _stdout_into("/dev/full", patched)
        sys.stdout.write("a result")
        assert settle(ExitCode.DONE) == ExitCode.SURROUNDINGS_FAILED
        assert settle(ExitCode.DONE) == ExitCode.DONE  # what could not be written is not tried again at exit
        sys.stdout.close()
    assert "No space left on device" in capsys.readouterr().err


def test_a_reader_that_is_gone_changes_no_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", os.fdopen(write, "w"))
        sys.stdout.write("a result")
        assert settle(ExitCode.DONE) == ExitCode.DONE
        sys.stdout.close()


def test_a_table_whose_reader_is_gone_is_no_failed_job(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", os.fdopen(write, "w"))
        with pytest.raises(typer.Exit) as end:
            guarded(render.out_grid)(render.Grid(("a",), (("b",),)))
        assert end.value.exit_code == ExitCode.DONE
        sys.stdout.close()

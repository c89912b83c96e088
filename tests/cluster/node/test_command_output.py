"""What a command prints: in the log while it is little, counted where it is much, in pieces where it has no end."""

from __future__ import annotations

import io
import logging

import pytest

from cluster.node.command_output import LINES_AT_ONCE, LINES_PER_S, CommandOutput, last_words, read_lines


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_flood_is_counted_and_its_end_is_told_whole(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    output = CommandOutput(clock=clock)
    with caplog.at_level(logging.INFO):
        for number in range(LINES_AT_ONCE + 1000):
            output.take(f"line {number}")
        clock.now += 1.0
        traceback = ["Traceback (most recent call last):", *(f"  File {n}" for n in range(30)), "ValueError: 7"]
        for line in traceback:
            output.take(line)
        output.close()
        output.close()
    said = [record.getMessage() for record in caplog.records]
    assert said[:LINES_AT_ONCE] == [f"line {number}" for number in range(LINES_AT_ONCE)]
    left_out = 1000 + len(traceback) - int(LINES_PER_S)
    assert f"{left_out} lines that the command printed are not in this log" in said[LINES_AT_ONCE + int(LINES_PER_S)]
    assert said[-len(traceback) :] == traceback
    assert len(said) == LINES_AT_ONCE + int(LINES_PER_S) + 1 + 100
    assert output.last_words() == "ValueError: 7"


def test_what_is_left_out_is_said_while_it_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    output = CommandOutput(clock=clock)
    with caplog.at_level(logging.WARNING):
        for _ in range(200):
            clock.now += 1.0
            for _ in range(100):
                output.take("on and on")
    assert len(caplog.records) == 3


def test_few_lines_are_logged_once_and_nothing_is_said_of_them(caplog: pytest.LogCaptureFixture) -> None:
    output = CommandOutput()
    with caplog.at_level(logging.INFO):
        for line in ("one", "two"):
            output.take(line)
        output.close()
    assert [record.getMessage() for record in caplog.records] == ["one", "two"]


def test_what_has_no_line_ends_is_read_in_pieces() -> None:
    class Endless(io.RawIOBase):
        asked = 0

        def readline(self, limit: int | None = -1, /) -> bytes:
            assert limit is not None
            assert 0 < limit <= 2**20  # memory holds no more than this
            self.asked += 1
            return b"y" * limit

    lines = read_lines(Endless())
    assert {next(lines) for _ in range(5)} == {"y" * 4000}
    bar = b"".join(b"\r%d/100" % n for n in range(101))
    assert list(read_lines(io.BytesIO(b"one\n\n" + bar + b"\n" + b"\xff.\n"))) == ["one", "100/100", "\ufffd."]


TORCHRUN = """\
Traceback (most recent call last):
  File "trainer.py", line 70, in <module>
    main()
checkpoints.errors.StateMismatch: make the Trainer first
[rank1]: Traceback (most recent call last):
[rank1]:   File "trainer.py", line 70, in <module>
[rank1]:     main()
[rank1]: ValueError: 7 rows
W1122 18:04:24.316000 31997 torch/distributed/elastic/multiprocessing/api.py:1028] Sending process 32064 SIGTERM
Traceback (most recent call last):
  File "<frozen runpy>", line 198, in _run_module_as_main
    raise ChildFailedError(
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
trainer.py FAILED
------------------------------------------------------------
  traceback : To enable traceback see: https://pytorch.org/docs/stable/elastic/errors.html
============================================================"""


def test_the_last_words_are_those_that_say_something() -> None:
    report = TORCHRUN.splitlines()
    assert last_words(report) == "ValueError: 7 rows"
    assert last_words(report[:4] + report[8:]) == "checkpoints.errors.StateMismatch: make the Trainer first"
    assert last_words(report[8:]).endswith("ChildFailedError:")
    assert (
        last_words(["Traceback (most recent call last):", "  File x", "OSError: a disk", "no luck", "----"])
        == "no luck"
    )
    assert last_words(["====", ""]) == ""

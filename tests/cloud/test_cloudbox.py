"""The parts of the box that judge: what was billed twice, and where a secret is. Without a box."""

from __future__ import annotations

import base64
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

BEGAN = datetime(2026, 11, 22, 6, 40, 0, tzinfo=UTC)
NOW_S = BEGAN.timestamp() + 3600


def said(instance: str, began_s: float, ended_s: float | None, **more: Any) -> dict[str, Any]:
    """An instance as moto's DescribeInstances has it, with what of it is read."""
    at = BEGAN.timestamp()
    found: dict[str, Any] = {
        "InstanceId": instance, "InstanceType": "m6i.large", "InstanceLifecycle": "spot",
        "LaunchTime": datetime.fromtimestamp(at + began_s, UTC), "State": {"Code": 16, "Name": "running"},
        "StateTransitionReason": "",
    }  # fmt: skip
    if ended_s is not None:
        ended = datetime.fromtimestamp(at + ended_s, UTC)
        found["State"] = {"Code": 48, "Name": "terminated"}
        found["StateTransitionReason"] = f"User initiated ({ended:%Y-%m-%d %H:%M:%S} UTC)"
    return {**found, **more}


@pytest.mark.parametrize(
    ("times", "wanted", "seconds"),
    [
        ([], 1, 0.0),
        ([(0, 100), (100, 200)], 1, 0.0),  # the next one from the second the last one ended
        ([(0, 100), (40, 200)], 1, 60.0),
        ([(0, 100), (40, 200)], 2, 0.0),
        ([(0, 100), (10, 20), (50, None)], 1, 60.0),  # 10 with one beside it, 50 with another
        ([(0, 50), (0, 50), (40, 90), (40, 90)], 2, 10.0),  # two by two
        ([(0, None), (0, None)], 1, 3600.0),
    ],
)
def test_what_was_billed_beyond_the_machines_that_a_run_wants(
    times: list[tuple[float, float | None]], wanted: int, seconds: float
) -> None:
    from bills import bill_of, billed_beyond_s

    bills = [bill_of("us-east-1", said(f"i-{number}", *both)) for number, both in enumerate(times)]
    assert billed_beyond_s(bills, wanted, now_s=NOW_S) == seconds


def test_a_bill_is_instance_seconds_times_the_catalogs_price() -> None:
    from bills import bill_of

    spot = bill_of("us-east-2", said("i-1", 0, 1800))
    assert spot.usd(now_s=NOW_S) == pytest.approx(0.5 * 0.01 * 4.0)
    own = bill_of("us-east-2", said("i-2", 0, None, InstanceType="m6i.xlarge", InstanceLifecycle=None))
    assert own.usd(now_s=NOW_S) == pytest.approx(0.192)


def test_an_instance_that_is_gone_and_does_not_say_since_when_is_refused() -> None:
    from bills import bill_of

    with pytest.raises(ValueError, match="i-1 is terminated, and does not say since when"):
        bill_of("us-east-1", said("i-1", 0, 10, StateTransitionReason=""))


def test_a_secret_is_found_wherever_it_is_not_meant_to_be(tmp_path: Path) -> None:
    from account import SECRETS
    from secret_places import leaked_files, leaked_objects

    task, cloud = SECRETS["the teacher's key"], SECRETS["the account's key"]
    home = tmp_path / "home"
    places = {
        "home/.sky/api_server/requests.db": (task, False),
        "home/.sky/api_server/requests.db-wal": (task, False),
        "home/.sky/managed_jobs/demo/one.yaml": (task, False),
        "home/.aws/credentials": (cloud, False),
        "home/.sky/state.db": (task, True),
        "home/.sky/managed_jobs.log": (task, True),
        "home/.sky/spot_jobs.db.bak": (task, True),
        "home/.sky/spot_jobs.db": (cloud, True),
        "tmp/sky-tmp_x1/tmpab/copy": (cloud, False),
        "tmp/sky-tmp_x1/tmpab/task": (task, True),
        "tmp/.aws/credentials": (cloud, True),
        "server.log": (task, True),
    }
    for name, (secret, _) in places.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"before " + secret.value.encode() + b" after")
    (tmp_path / "harmless").write_text("sk-box-")
    expected = {f"{secret.name} in {tmp_path / name}" for name, (secret, leaks) in places.items() if leaks}
    assert set(leaked_files(tmp_path, home, SECRETS)) == expected
    objects = iter([("a/job.json", b"{}"), ("a/log", task.value.encode())])
    assert leaked_objects(objects, SECRETS) == ["the teacher's key in a/log"]


@pytest.mark.parametrize("before", range(4))
def test_a_secret_is_found_in_base64_wherever_it_begins(before: int) -> None:
    from account import SECRETS

    for secret in SECRETS.values():
        assert secret.is_in(base64.b64encode(b"x" * before + secret.value.encode() + b"yz"))
        assert not secret.is_in(base64.b64encode(b"x" * before + secret.value.encode()[:-4] + b"____"))


def test_a_secret_on_a_command_line_is_seen_unless_it_is_skypilots_ssh() -> None:
    from secret_places import CommandLines, Secret

    key = f"sk-of-this-test-{uuid4().hex}"  # a box beside this test looks at the same processes
    program = "import sys; print(1, flush=True); sys.stdin.read()"
    with CommandLines({"it": Secret("task", "the test's key", key)}) as seen:
        for name in ("ssh", "python-of-ours"):
            child = subprocess.Popen(
                [name, "-c", program, key], executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            try:
                assert child.stdout is not None
                child.stdout.readline()
                seen.look()
            finally:
                child.communicate()
    assert seen.leaks == ["the test's key on the command line of python-of-ours"]
    assert seen.looked_at > 1


def test_the_places_are_those_that_the_documentation_names() -> None:
    from secret_places import IN_COMMANDS, IN_FILES

    text = (Path(__file__).parents[2] / "docs" / "SECURITY.md").read_text(encoding="utf-8")
    table = text.partition("it is here and nowhere else:")[2].partition("\n\n")[2].partition("\n\n")[0]
    cells = [line.split("|")[1:3] for line in table.splitlines()[2:]]
    whose = {"task": "the job's secrets", "cloud": "the account's key"}
    known = [(f"`{place}`", whose[one]) for one, place in (*IN_FILES, *IN_COMMANDS)]
    assert [(place.strip(), words.strip()) for place, words in cells] == known

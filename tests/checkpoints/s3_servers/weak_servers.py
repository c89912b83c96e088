"""S3 servers that ignore `If-None-Match`: two writers of one key both win, and neither is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from s3_server import BUCKET, S3Server, free_port, program, running, wait_until_it_answers


@contextmanager
def rclone(folder: Path) -> Iterator[S3Server]:
    """`rclone serve s3` over a folder; the test is skipped where it is not installed."""
    command = program("rclone", "rclone/bin/rclone")  # Debian 12's rclone is too old to serve S3
    server = S3Server(f"http://127.0.0.1:{free_port()}")
    (folder / "data" / BUCKET).mkdir(parents=True)
    address = ("--addr", server.endpoint.removeprefix("http://"))
    with running(
        [command, "serve", "s3", *address, "--auth-key", f"{server.key},{server.secret}", str(folder / "data")],
        folder,
        {"RCLONE_CONFIG": str(folder / "rclone.conf")},  # not the user's
    ) as process:
        wait_until_it_answers(server.endpoint, process, folder)
        yield server


@contextmanager
def s3rver(folder: Path) -> Iterator[S3Server]:
    """s3rver over a folder; the test is skipped where it is not installed."""
    command, node = program("s3rver", "s3rver/node_modules/s3rver/bin/s3rver.js"), program("node")
    server = S3Server(f"http://127.0.0.1:{free_port()}", "S3RVER", "S3RVER")  # the one identity that it knows
    address = ("--address", "127.0.0.1", "--port", server.endpoint.rpartition(":")[2])
    (folder / "data").mkdir()
    with running(
        [node, command, "--directory", str(folder / "data"), *address, "--configure-bucket", BUCKET], folder
    ) as process:
        wait_until_it_answers(server.endpoint, process, folder)
        yield server

"""Hearing in time that this machine will be taken away: one thread that asks the cloud's metadata service.

    AWS      two minutes before a spot machine ends     cluster/node/notice_aws.py
    GCP      thirty seconds                             cluster/node/notice_gcp.py
    Azure    thirty seconds                             cluster/node/notice_azure.py

What it hears becomes a `Notice`, as SIGTERM does (cluster/node/main.py): the stages save what fits and leave. A cloud
that has no such service gives no notice but SIGTERM. The services answer on addresses of this machine alone.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from typing import Final

from cluster.exits import Notice
from cluster.node.metadata import NoAnswer, NoticeSource
from cluster.node.notice_aws import URL as AWS_URL
from cluster.node.notice_aws import AwsNotices
from cluster.node.notice_azure import URL as AZURE_URL
from cluster.node.notice_azure import AzureNotices
from cluster.node.notice_gcp import HOST as GCP_HOST
from cluster.node.notice_gcp import GcpNotices
from cluster.recovery import StopReason

logger = logging.getLogger(__name__)

# Off the window that a cloud promises: the news has to arrive, and the machine's clock may be off.
SAFETY_S: Final = 10.0
_RETRY_S: Final = 5.0


class NoticeWatch:
    """Asks in a thread of its own until a notice comes or `stop` is called; a service that fails is asked again.

    Args:
        source: the cloud's.
        on_notice: called once, from the thread, with the window already shortened by SAFETY_S.
    """

    def __init__(self, source: NoticeSource, on_notice: Callable[[Notice], None]) -> None:
        self._source, self._on_notice = source, on_notice
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="notice-watch", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End the watch; an answer that is still waited for is let go."""
        self._stopping.set()

    def _watch(self) -> None:
        advised, failed = "", False
        while not self._stopping.is_set():
            pause_s = self._source.pause_s
            try:
                heard = self._source.look()
            except NoAnswer as exc:
                if not failed:
                    logger.warning("this machine's notices cannot be read, and are asked for again: %s", exc)
                heard, failed, pause_s = None, True, max(pause_s, _RETRY_S)
            else:
                failed = False
            if heard is not None and heard.seconds_left is not None and not self._stopping.is_set():
                logger.warning("%s", heard.words)
                self._on_notice(Notice(StopReason.PREEMPTED, max(heard.seconds_left - SAFETY_S, 0.0)))
                return
            if heard is not None and heard.words != advised:
                logger.warning("%s", heard.words)
                advised = heard.words
            self._stopping.wait(pause_s)


def watch_for_notice(
    infra: str, on_notice: Callable[[Notice], None], environ: Mapping[str, str] = os.environ
) -> NoticeWatch | None:
    """Start the watch that belongs to a cloud; None where the cloud has no such service, or it was switched off.

    Args:
        infra: aws, gcp, azure; others have nothing to ask.
        environ: AWS_EC2_METADATA_SERVICE_ENDPOINT and AWS_EC2_METADATA_DISABLED as AWS's own tools read them,
            GCE_METADATA_HOST as Google's do, ALPACA_JOBS_AZURE_METADATA for an address instead of Azure's.
    """
    source = source_for(infra, environ)
    if source is None:
        return None
    watch = NoticeWatch(source, on_notice)
    watch.start()
    return watch


def source_for(infra: str, environ: Mapping[str, str]) -> NoticeSource | None:
    """The service to ask; None where there is none."""
    match infra:
        case "aws":
            if environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
                return None
            return AwsNotices(environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or AWS_URL)
        case "gcp":
            return GcpNotices(environ.get("GCE_METADATA_HOST") or GCP_HOST)
        case "azure":
            return AzureNotices(environ.get("ALPACA_JOBS_AZURE_METADATA") or AZURE_URL)
        case _:
            return None

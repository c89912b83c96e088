"""s3:// : S3 and what speaks like it, through s3fs's client.

s3fs gives the session, the credentials and the event loop; the calls are made one by one, because its conveniences
retry a conditional put by themselves (the retry is then refused by our own first one), cache listings, and hide the
HTTP status that tells "refused" from "broken". Retrying is Store's.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from checkpoints.store_body import ViewFile
from checkpoints.store_errors import error_code, http_status, is_missing

PART_BYTES = 8 * 2**20
"""Size of one part of a multipart upload; objects up to twice this go in one request. S3 wants at least 5 MiB and at
most 10,000 parts. Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html (2026-11-20)."""
PARTS_AT_A_TIME = 4
MAX_PARTS = 10_000
_DELETE_BATCH = 1000  # the most that DeleteObjects takes
_CLIENTS: list[Any] = []
"""Every client stays, as in fsspec's own cache, which a forked child empties: s3fs, closing what nobody holds any more,
would take the parent's sockets out of the epoll set that both share, and the parent's next request would hear no answer
until its time-out."""


class S3Driver:
    """Objects below `prefix` of `bucket`.

    `connect` makes a fresh s3fs file system: one per process, since neither its event loop nor its
    sockets survive a fork.
    """

    def __init__(self, connect: Callable[[], Any], bucket: str, prefix: str) -> None:
        self._connect = connect
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._lock = threading.Lock()
        self._filesystem: Any = None
        self._pid = 0
        self.uri = f"s3://{bucket}/{self._prefix}".rstrip("/")

    def write(self, key: str, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        if len(view) <= 2 * PART_BYTES:
            self._call("put_object", Key=self._key(key), Body=ViewFile(view))
        else:
            self._write_parts(self._key(key), view)

    def create(self, key: str, data: bytes) -> bool:
        try:
            self._call("put_object", Key=self._key(key), Body=data, IfNoneMatch="*")
        except OSError as exc:
            # s3fs raises FileExistsError, OSError(EINVAL) or OSError(EIO) for this, by server: the status is the fact.
            if http_status(exc) == 412 or error_code(exc) == "PreconditionFailed" or isinstance(exc, FileExistsError):
                return False
            raise
        return True

    def read(self, key: str, start: int, length: int | None) -> bytes:
        span = {} if start == 0 and length is None else {"Range": _http_range(start, length)}

        async def take(body: Any) -> bytes:
            data: bytes = await body.read()
            return data

        found: bytes | None = self._get(key, span, take)
        return found or b""

    def read_into(self, key: str, start: int, view: memoryview) -> int:
        async def take(body: Any) -> int:
            done = 0
            # Chunk by chunk as they come from the socket; aiohttp itself raises when the answer ends too early.
            async for chunk in body.raw_stream.content.iter_any():
                view[done : done + len(chunk)] = chunk
                done += len(chunk)
            return done

        return self._get(key, {"Range": _http_range(start, len(view))}, take) or 0

    def _get(self, key: str, span: dict[str, str], take: Callable[[Any], Any]) -> Any:
        """What `take` makes of the answer's body; None where the object ends before the span."""

        async def fetch() -> Any:
            answer = await self._fs()._call_s3("get_object", Bucket=self._bucket, Key=self._key(key), **span)
            body = answer["Body"]
            try:
                return await take(body)
            finally:
                body.close()

        try:
            return self._run(fetch)
        except OSError as exc:
            if http_status(exc) == 416 or error_code(exc) == "InvalidRange":
                return None
            raise

    def size(self, key: str) -> int | None:
        try:
            return int(self._call("head_object", Key=self._key(key))["ContentLength"])
        except OSError as exc:
            if is_missing(exc):
                return None
            raise

    def list(self, prefix: str) -> list[str]:
        found: list[str] = []
        more: dict[str, Any] = {}
        while True:
            page = self._call("list_objects_v2", Prefix=self._key(prefix), **more)
            found += [entry["Key"][len(self._prefix) :] for entry in page.get("Contents", ())]
            if not page.get("IsTruncated"):
                return found
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def delete(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), _DELETE_BATCH):
            batch = [{"Key": self._key(key)} for key in keys[start : start + _DELETE_BATCH]]
            answer = self._call("delete_objects", Delete={"Objects": batch, "Quiet": True})
            for failed in answer.get("Errors", ()):
                denied = failed.get("Code") == "AccessDenied"
                raise (PermissionError if denied else ConnectionError)(f"{failed.get('Key')}: {failed.get('Message')}")

    def abort_unfinished(self, prefix: str, wanted: Callable[[str], bool]) -> int:
        count = 0
        more: dict[str, Any] = {}
        while True:
            page = self._call("list_multipart_uploads", Prefix=self._key(prefix), **more)
            for upload in page.get("Uploads", ()):
                if wanted(upload["Key"][len(self._prefix) :]):
                    self._call("abort_multipart_upload", Key=upload["Key"], UploadId=upload["UploadId"])
                    count += 1
            if not page.get("IsTruncated"):
                return count
            more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def _write_parts(self, key: str, view: memoryview) -> None:
        part_bytes = max(PART_BYTES, -(-len(view) // MAX_PARTS))
        starts = range(0, len(view), part_bytes)
        upload = self._call("create_multipart_upload", Key=key)["UploadId"]

        def send(number: int) -> dict[str, Any]:
            part = view[starts[number] : starts[number] + part_bytes]
            answer = self._call("upload_part", Body=ViewFile(part), Key=key, UploadId=upload, PartNumber=number + 1)
            return {"PartNumber": number + 1, "ETag": answer["ETag"]}

        try:
            with ThreadPoolExecutor(PARTS_AT_A_TIME, thread_name_prefix="s3-part") as pool:
                parts = list(pool.map(send, range(len(starts))))
            self._call("complete_multipart_upload", Key=key, UploadId=upload, MultipartUpload={"Parts": parts})
        except BaseException:
            self._abort_quietly(key, upload)
            raise

    def _abort_quietly(self, key: str, upload: str) -> None:
        try:
            self._call("abort_multipart_upload", Key=key, UploadId=upload)
        except OSError:
            return  # the failure that brought us here is the one to tell; a sweep aborts what dangles

    def _call(self, verb: str, **arguments: Any) -> Any:
        async def call() -> Any:
            return await self._fs()._call_s3(verb, Bucket=self._bucket, **arguments)

        return self._run(call)

    def _run(self, make: Callable[[], Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(make(), self._fs().loop).result()

    def _fs(self) -> Any:
        if self._pid != os.getpid():
            with self._lock:
                if self._pid != os.getpid():
                    self._filesystem = self._connect()
                    if not any(client is self._filesystem for client in _CLIENTS):
                        _CLIENTS.append(self._filesystem)
                    self._pid = os.getpid()
        return self._filesystem

    def _key(self, key: str) -> str:
        return self._prefix + key


def _http_range(start: int, length: int | None) -> str:
    return f"bytes={start}-" if length is None else f"bytes={start}-{start + length - 1}"

"""URI -> driver: which schemes there are, what a store's URL may hold, and the options each library is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from checkpoints.errors import StoreError
from checkpoints.store_driver import Driver
from checkpoints.store_errors import redact

SCHEMES = ("file", "memory", "s3", "gs", "az")


def open_driver(uri: str, options: dict[str, Any]) -> Driver:
    """The driver for a store's URI; its library is imported now, and nothing is read or written.

    Raises:
        StoreError: another scheme, credentials inside the URL, or the scheme's package is not installed.
    """
    scheme, path = _split_uri(uri)
    if scheme == "file":
        from checkpoints.store_local import LocalDriver

        return LocalDriver(Path(path))
    filesystem = _filesystem_maker("abfs" if scheme == "az" else scheme, options)
    if scheme == "memory":
        from checkpoints.store_memory import MemoryDriver

        return MemoryDriver(filesystem(), path)
    if scheme == "s3":
        from checkpoints.store_s3 import S3Driver

        bucket, _, prefix = path.partition("/")
        return S3Driver(filesystem, bucket, prefix)
    from checkpoints.store_fsspec import ConditionalFsspecDriver

    return ConditionalFsspecDriver(filesystem, scheme, path)


def _split_uri(uri: str) -> tuple[str, str]:
    """(scheme, path) of a store's URI; a path is absolute for file, "bucket/prefix" for the others."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return "file", str(Path(uri).expanduser().resolve())
    if scheme not in SCHEMES:
        raise StoreError(
            f"{redact(uri)}: no store here speaks {scheme}://. Use {', '.join(f'{known}://' for known in SCHEMES)} or "
            "a plain path: these can promise that of two writers of one key exactly one wins."
        )
    if scheme == "file":
        # file://./runs and file://runs are not what the RFC says, and exactly what people write.
        return "file", str(Path(unquote(rest)).expanduser().resolve())
    if "@" in rest.partition("/")[0]:
        raise StoreError(
            f"{scheme}://***@{rest.partition('@')[2]}: a store's URL is written into plans and logs, so it may not "
            "hold credentials. Put them into the environment or the cloud's own configuration."
        )
    if scheme != "memory" and not urlsplit(uri).netloc:
        raise StoreError(f"{uri}: the bucket is missing. Write {scheme}://BUCKET/PREFIX.")
    return scheme, rest.strip("/")


def _filesystem_maker(protocol: str, options: dict[str, Any]) -> Callable[[], Any]:
    """A function that gives the fsspec file system for `protocol`: a fresh one after a fork, which none survives."""

    def make() -> Any:
        import fsspec

        if protocol == "memory":
            return fsspec.filesystem("memory")
        cached = {"use_listings_cache": False, **options}
        try:
            filesystem = fsspec.filesystem(protocol, **(_s3_options(cached) if protocol == "s3" else cached))
        except ImportError as exc:
            package, extra = _PACKAGES[protocol]
            raise StoreError(
                f"{protocol}:// needs the package {package}, which is not installed here. Run: pip install {extra}"
            ) from exc
        if protocol == "s3":
            filesystem.retries = 1  # retrying is Store's: a conditional put must not be repeated unseen
        return filesystem

    return make


_PACKAGES = {"s3": ("s3fs", "s3fs"), "gs": ("gcsfs", "'alpaca-jobs[gcs]'"), "abfs": ("adlfs", "'alpaca-jobs[azure]'")}


def _s3_options(options: dict[str, Any]) -> dict[str, Any]:
    """Our defaults under the caller's: one try (Store retries), time-outs that end, connections for parallel parts."""
    config = {
        "connect_timeout": 10,
        "read_timeout": 60,
        "max_pool_connections": 32,
        "retries": {"max_attempts": 0},
        **options.get("config_kwargs", {}),
    }
    return {**options, "config_kwargs": config}

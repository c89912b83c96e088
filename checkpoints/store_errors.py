"""Foreign errors -> ours, most specific class first, in words that never hold a credential. Pure.

The libraries behind the drivers are not imported here: what they raise is recognised by what it carries (errno, an
HTTP status, botocore's error code) and, last, by the names of its classes.
"""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Iterator

from checkpoints.errors import CheckpointError, ObjectMissing, StoreError, StoreFull, StorePermission, StoreUnreachable

_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_PERMISSION_ERRNOS = {errno.EACCES, errno.EPERM}
_RIGHTS = {"reading": "read", "looking at": "read", "listing": "list and read"}
"""What a refused verb takes; whoever writes (every other verb) needs all four rights before long."""
_TRANSIENT_STATUS = {408, 409, 425, 429}
_FULL_CODES = {"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "QuotaExceededException", "EntityTooLarge"}
_PERMISSION_CODES = {
    "ExpiredToken",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "RequestTimeTooSkewed",
    "AccessDenied",
}
_TRANSIENT_CODES = {"SlowDown", "RequestTimeout", "InternalError", "ServiceUnavailable", "OperationAborted"}
# Class names of botocore, aiohttp, google-auth and the Azure SDK; matched anywhere in an exception's ancestry.
_PERMISSION_CLASSES = {
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError",
    "ProfileNotFound", "ClientAuthenticationError", "DefaultCredentialsError", "RefreshError",
}  # fmt: skip
_NO_CREDENTIALS_CLASSES = {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"}
_SIGN_IN = {
    "s3": "aws configure, or export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "gcloud auth application-default login",
    "az": "az login",
}
_CHECK_CREDENTIALS = "Check the credentials in use and the bucket's policy."
_TRANSIENT_CLASSES = {
    "HTTPClientError", "EndpointConnectionError", "ConnectionClosedError", "ReadTimeoutError", "ConnectTimeoutError",
    "ResponseStreamingError", "IncompleteReadError", "IncompleteRead", "ResponseParserError", "FSTimeoutError",
    "ClientConnectionError", "ClientPayloadError", "ServerDisconnectedError", "ServerTimeoutError",
    "ServiceRequestError", "ServiceResponseError", "TransportError",
    "ProxyError", "ConnectionError", "Timeout", "ChunkedEncodingError", "ChecksumError",  # of requests and gcsfs
}  # fmt: skip
_SECRETS = re.compile(
    r"(?i)\b(?:AKIA|ASIA)[0-9A-Z]{12,}\b"
    r"|(?<=://)[^/@\s]+:[^/@\s]+(?=@)"
    r"|(?<=sig=)[^&\s]+|(?<=signature=)[^&\s]+|(?<=credential=)[^&\s]+|(?<=token=)[^&\s]+|(?<=secret=)[^&\s]+"
    r"|(?<=AccountKey=)[^;\s]+|(?<=Bearer )\S+"
)


def redact(text: str) -> str:
    """Replace what looks like a key, token or signature by ***."""
    return _SECRETS.sub("***", text)


def http_status(error: BaseException) -> int | None:
    """The HTTP status an error (or its cause) carries, in whatever attribute its library keeps it."""
    for link in _chain(error):
        response = getattr(link, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if isinstance(status, int):
                return status
        for name in ("status_code", "status", "code"):
            status = getattr(link, name, None)
            if isinstance(status, int) and 100 <= status < 600:
                return status
    return None


def error_code(error: BaseException) -> str:
    """botocore's error code ("NoSuchBucket"), "" when there is none."""
    for link in _chain(error):
        response = getattr(link, "response", None)
        if isinstance(response, dict):
            code = response.get("Error", {}).get("Code")
            if isinstance(code, str):
                return code
    return ""


def is_missing(error: BaseException) -> bool:
    """Whether the error says that the object (not its bucket) is not there."""
    if error_code(error) == "NoSuchBucket":
        return False
    return isinstance(error, FileNotFoundError) or http_status(error) == 404


def translate(error: BaseException, *, uri: str, key: str, doing: str) -> CheckpointError:
    """The error of this package that says what `error` says; raise it `from` the original.

    Args:
        uri: the store's root, for the words.
        key: what was being worked on, "" for the store as a whole.
        doing: the verb, as in "while putting".
    """
    if isinstance(error, CheckpointError):
        return error
    place = f"{uri.rstrip('/')}/{key}" if key else uri
    said = redact(f"{type(error).__name__}: {error}")
    if error_code(error) == "NoSuchBucket":
        return StoreError(f"{uri}: there is no such bucket. Create it, or correct the store's URL. ({said})")
    if is_missing(error) and doing.startswith("putting"):
        return StoreError(
            f"{place}: nothing can be written there ({doing}; {said}). Its folder or bucket is not there and cannot be "
            "made. Make it, or correct the store's URL."
        )
    if is_missing(error):
        return ObjectMissing(key, f"{place} does not exist ({doing}).")
    if _is_full(error):
        return StoreFull(
            f"{place}: no space or quota left ({doing}; {said}). Nothing was committed and the commits before it are "
            "whole. Free space, or give the run another store, then resume it."
        )
    if _class_names(error) & _NO_CREDENTIALS_CLASSES:
        scheme = uri.partition("://")[0]
        return StorePermission(
            f"{place}: there are no credentials on this machine for it ({doing}; {said}). "
            f"Sign in: {_SIGN_IN.get(scheme, 'as its provider says')}."
        )
    if _errno(error) == errno.ENOTDIR:
        return StoreError(f"{uri}: a file stands where a folder is wanted ({doing}; {said}). Name another place.")
    if _errno(error) == errno.EROFS:
        return StorePermission(
            f"{place}: its file system is read-only ({doing}; {said}). "
            "Have it mounted for writing, or name another place."
        )
    if _is_permission(error):
        rights = _RIGHTS.get(doing, "list, read, write and delete")
        return StorePermission(
            f"{place}: the store refused ({doing}; {said}). This identity needs to {rights} below {uri}. "
            + ("Check the folder's owner and mode." if _is_local(uri) else _CHECK_CREDENTIALS)
        )
    if _is_transient(error):
        return StoreUnreachable(
            f"{place}: the store could not be reached ({doing}; {said}). It was tried several times. "
            "Check the network and the endpoint; resuming later continues from the newest commit."
        )
    return StoreError(f"{place}: the store failed ({doing}; {said}). Retrying is not known to help.")


def _is_local(uri: str) -> bool:
    return uri.startswith("file://")


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    for _ in range(8):
        if link is None:
            return
        yield link
        link = link.__cause__


def _class_names(error: BaseException) -> set[str]:
    return {cls.__name__ for link in _chain(error) for cls in type(link).__mro__}


def _errno(error: BaseException) -> int | None:
    return error.errno if isinstance(error, OSError) else None


def _is_full(error: BaseException) -> bool:
    return _errno(error) in _FULL_ERRNOS or http_status(error) == 507 or error_code(error) in _FULL_CODES


def _is_permission(error: BaseException) -> bool:
    if isinstance(error, PermissionError) or _errno(error) in _PERMISSION_ERRNOS:
        return True
    if http_status(error) in (401, 403) or error_code(error) in _PERMISSION_CODES:
        return True
    if isinstance(error, OSError) and error.errno is None and str(error).startswith("Forbidden: "):
        return True  # gcsfs 2026.10.1 (retry.py, validate_response): of a 403 it tells nothing but this
    return bool(_class_names(error) & _PERMISSION_CLASSES)


def _is_transient(error: BaseException) -> bool:
    status = http_status(error)
    if status is not None and (status >= 500 or status in _TRANSIENT_STATUS) and status != 501:
        return True
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror) or error_code(error) in _TRANSIENT_CODES:
        return True
    return bool(_class_names(error) & _TRANSIENT_CLASSES)

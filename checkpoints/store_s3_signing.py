"""Signing a body whose SHA-256 is known, without reading it once more.

Over plain http a request to S3 is signed with the SHA-256 of its body (over https with a fixed word in its place),
which botocore computes, on the one thread that sends everything. A block of a checkpoint has been hashed before, by the
same algorithm, so its digest is handed on with it.
Source: https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html (2026-11-22).
"""

from __future__ import annotations

from functools import cache
from typing import Any

_NAME = "s3v4-known-digest"


def sign_with_known_digests(client: Any) -> None:
    """Have an S3 client sign a body's own `sha256` (hex; see ViewFile), where it has one, in place of hashing it.

    Args:
        client: botocore's or aiobotocore's; only its put_object is changed. Calling it again does nothing.
    """
    import botocore.auth

    botocore.auth.AUTH_TYPE_MAPS.setdefault(_NAME, _auth_class())
    client.meta.events.register("choose-signer.s3.PutObject", _choose, unique_id=_NAME)


def _choose(signature_version: Any, signing_name: str, context: Any, **_: Any) -> str | None:
    """Ours for what S3 signs with version 4, which goes by either name until botocore itself has chosen. Signatures of
    other kinds (version 2, 4a, S3 Express, presigned, unsigned, none) stay what they are."""
    is_plain = signature_version in ("v4", "s3v4") and signing_name == "s3" and not context.get("unsigned_payload")
    return _NAME if is_plain else None


@cache
def _auth_class() -> Any:
    from botocore.auth import S3SigV4Auth

    class KnownDigestAuth(S3SigV4Auth):  # type: ignore[misc] # botocore has no types
        def payload(self, request: Any) -> Any:
            known = getattr(request.body, "sha256", None)
            is_signed = getattr(self, "_should_sha256_sign_payload", None)
            return known if known and is_signed is not None and is_signed(request) else super().payload(request)

    return KnownDigestAuth

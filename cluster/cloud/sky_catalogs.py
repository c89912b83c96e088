"""Fresh price catalogs through SkyPilot's own catalog code; the only reason for which `offers` ever imports it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from cluster.errors import BackendMissing, CatalogError

_FOLDER = Path("~/.sky/catalogs/v8")


def refresh_catalogs(clouds: Sequence[str]) -> tuple[str, ...]:
    """Let SkyPilot fetch its newest price catalogs into its cache, where `load_offers` reads them.

    Returns:
        Clouds whose catalog somebody wrote by hand: SkyPilot leaves those alone, and so nothing was fetched.

    Raises:
        BackendMissing: SkyPilot is not installed.
        CatalogError: a catalog could not be fetched; what was there before still is.
    """
    try:
        version("skypilot")  # `import sky` proves nothing in a checkout, whose sky/ folder holds templates
    except PackageNotFoundError as exc:
        raise BackendMissing(
            "--live asks SkyPilot for prices, and it is not installed here.\n"
            "Install with: pip install 'alpaca-jobs[sky]', or leave --live out to use the snapshot."
        ) from exc
    from sky import clouds as _registered  # noqa: F401 - read_catalog looks clouds up in the registry this fills
    from sky.catalog import common

    by_hand = []
    for cloud in clouds:
        name = f"{cloud}/vms.csv"
        if Path(common.get_catalog_path(name)).is_file() and common.is_catalog_modified(name):
            by_hand.append(cloud)
        else:
            _fetch(name)
    return tuple(by_hand)


def _fetch(name: str) -> None:
    import requests
    from sky.catalog import common

    digest = _FOLDER.expanduser() / ".meta" / f"{name}.md5"
    before = digest.stat().st_mtime_ns if digest.is_file() else None
    failed = f"SkyPilot could not fetch {name}. What was there before is still used without --live; is there a network?"
    try:
        with redirect_stdout(sys.stderr):  # SkyPilot's own talk
            _ = common.read_catalog(name, pull_frequency_hours=0).shape  # fetches when the table is first looked at
    except requests.exceptions.RequestException as exc:
        raise CatalogError(f"{failed} ({type(exc).__name__})") from exc
    # After a failed fetch SkyPilot warns and goes on with the old file; only a fetch that worked writes the digest.
    if not digest.is_file() or digest.stat().st_mtime_ns == before:
        raise CatalogError(failed)

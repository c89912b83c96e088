"""`offers --live` with the real SkyPilot: its own catalog code fetches, from a server here, or fails and says so."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from alpaca_jobs.generation.offline_teacher import running
from cluster.cloud.sky_catalogs import refresh_catalogs
from cluster.errors import BackendMissing

CATALOG = (
    "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone\n"
    "g9,L4,1,4,16,,1.5,0.5,us-east-1,use1-az1\n"
)


@pytest.fixture
def catalog_server(tmp_path: Path) -> Iterator[str]:
    file = tmp_path / "hosted" / "v8" / "aws" / "vms.csv"
    file.parent.mkdir(parents=True)
    file.write_text(CATALOG, encoding="utf-8")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path / "hosted"))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            return

    with running(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as server:
        yield f"http://127.0.0.1:{server.server_address[1]}"


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_live_prices_are_fetched_by_skypilot_and_read_by_us(tmp_path: Path, catalog_server: str) -> None:
    """The address is the one thing that is not SkyPilot's own: its servers are out of reach of a test."""
    program = (
        "import sys, sky.skylet.constants as constants\n"
        "from cluster.price.offers import load_offers\n"
        "from cluster.cloud.sky_catalogs import refresh_catalogs\n"
        "constants.HOSTED_CATALOG_DIR_URL = sys.argv[1]\n"
        "print('by hand:', refresh_catalogs(['aws']), refresh_catalogs(['aws']))\n"
        "prices = load_offers(['aws'])\n"
        "print('offers:', [(one.instance_type, one.price_per_hour_usd) for one in prices], prices.sources[0])\n"
        "constants.HOSTED_CATALOG_DIR_URL = 'http://127.0.0.1:9'\n"
        "try: refresh_catalogs(['aws'])\n"
        "except Exception as exc: print('refused:', type(exc).__name__, exc)\n"
        "prices.sources[0].path.write_text('mine')\n"
        "print('by hand:', refresh_catalogs(['aws']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, catalog_server],
        env={**os.environ, "HOME": str(tmp_path / "home"), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stdout.splitlines() if line.startswith(("by hand", "offers", "refused"))]
    assert said[0] == "by hand: () ()"
    assert "[('g9', 1.5), ('g9', 0.5)] aws from SkyPilot's catalog of " in said[1]
    assert said[2].startswith("refused: CatalogError SkyPilot could not fetch aws/vms.csv.")
    assert said[3] == "by hand: ('aws',)"


def test_without_skypilot_the_pip_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path without any installed package: the same question to importlib.metadata, another answer."""
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(BackendMissing, match=r"pip install 'alpaca-jobs\[sky\]'"):
        refresh_catalogs(["aws"])

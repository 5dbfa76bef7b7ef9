"""A real PostgreSQL for every test that asks for one.

The embedded server, or the one that BPR_ETL_TEST_DATABASE_URL names; its role must be allowed to create databases.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from hypothesis import HealthCheck, settings

from etl.pipeline import database
from etl.postgres import embedded
from etl.settings.model import Settings
from etl.settings.sources import load_settings

settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.load_profile("here")

TALLY = "tally"
"""The name under which a test's counts travel with its report, from xdist's workers too."""

FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "shared_buffers": "128MB"}


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """URL of a server's maintenance database, in which databases may be created."""
    if given := os.environ.get("BPR_ETL_TEST_DATABASE_URL"):
        yield given
        return
    # Not pytest's tmp_path: as root, the server's own OS user can't enter it.
    folder = Path(tempfile.mkdtemp(prefix="bpr-test-"))
    folder.chmod(0o755)
    server = embedded.start(folder / "pg", parameters=FAST)
    try:
        yield server.url()
    finally:
        embedded.stop(folder / "pg")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def make_database(server_url: str) -> Iterator[Callable[..., str]]:
    """Makes databases, from a template or empty, and drops them in the end: `make_database(template=url)` -> url."""
    made: list[str] = []

    def make(template: str | None = None) -> str:
        name = f"bpr_test_{uuid.uuid4().hex[:12]}"
        source = urlsplit(template).path.lstrip("/") if template else "template1"
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{source}"')
        made.append(name)
        return urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))

    yield make
    with psycopg.connect(server_url, autocommit=True) as connection:
        for name in made:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture
def database_url(make_database: Callable[..., str]) -> str:
    """URL of a fresh, empty database."""
    return make_database()


@pytest.fixture(scope="session")
def small_world_template(make_database: Callable[..., str]) -> str:
    """URL of a database with the synthetic world at scale 0.03, never written to: a template for others."""
    url = make_database()
    database.synth(load_settings({"database_url": url, "scale": 0.03}, {}))
    return url


@pytest.fixture
def small_world(make_database: Callable[..., str], small_world_template: str) -> str:
    """URL of a database of one's own with the small synthetic world in it."""
    return make_database(small_world_template)


@pytest.fixture
def settings_for(tmp_path: Path) -> Callable[..., Settings]:
    """Settings for a database, publishing to a folder of the test's own; further options by name."""

    def make(url: str, **options: object) -> Settings:
        return load_settings({"database_url": url, "out": str(tmp_path / "out"), **options}, {})

    return make


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Callable[[str, float], None]:
    """Counts what a test tried, for the account at the end: `tally("connection cuts", 12)`. Same names add up."""

    def count(what: str, number: float = 1) -> None:
        request.node.user_properties.append((TALLY, (what, number)))

    return count


@pytest.fixture
def effort(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """How much of a fault to try: `effort(quick, full)` is the second with `--full`, which `make test-faults` gives."""
    return lambda quick, full: full if request.config.getoption("--full") else quick


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The account of the fault suite, added up over all workers."""
    totals: dict[str, float] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, value in report.user_properties if report.when == "call" else []:
                if name == TALLY:
                    totals[value[0]] = totals.get(value[0], 0) + value[1]
    if totals:
        terminalreporter.section("what was tried")
        for what, number in sorted(totals.items()):
            terminalreporter.line(f"{number:>12,.0f}  {what}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-golden", action="store_true", help="write the golden files anew")
    parser.addoption("--full", action="store_true", help="try faults by the thousand: minutes, not seconds")

"""A database and a folder that nights are run on until something breaks, and what must hold of them at every moment."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

import etl
from etl.errors import EtlError
from etl.settings.sources import load_settings
from etl.snapshots.reading.snapshot import LATEST
from tests.states import data_files, database_state

ROOT = Path(__file__).parents[2]
SEEDS = (1, 2)
"""Two nights whose rows and files differ, each the other's state before."""

SECONDS_TO_STOP = 12.0
"""Within which a command ends after a signal. Promised are 5, on a machine that does nothing else."""

Command = tuple[str, ...]


@dataclass
class Ended:
    """How a command ended: its code (negative for a signal), what it printed, and how long it took."""

    code: int
    out: str
    err: str
    seconds: float


@dataclass
class Nights:
    """Nights of two seeds, in turns. `with_options` is what a whole night of a seed leaves: the tables', and the data files'."""

    url: str
    out: Path
    settled: dict[int, tuple[dict[str, str], dict[str, str]]] = field(default_factory=dict)

    @classmethod
    def prepared(cls, url: str, out: Path) -> Nights:
        """After a whole night of each seed; the last one is SEEDS[-1]'s."""
        nights = cls(url, out)
        etl.run(load_settings({"database_url": url, "out": str(out), "seed": SEEDS[0]}, {}))
        for seed in (SEEDS[1], *SEEDS):
            report = etl.run(load_settings({"database_url": url, "out": str(out), "seed": seed}, {}))
            nights.settled[seed] = database_state(url), data_files(report.snapshot)
        assert nights.settled[SEEDS[0]][0] != nights.settled[SEEDS[1]][0]
        assert nights.settled[SEEDS[0]][1] != nights.settled[SEEDS[1]][1]
        return nights

    def command(self, seed: int, *more: str) -> Command:
        """The arguments of a night."""
        return ("run", "--out", str(self.out), "--seed", str(seed), "--wait-lock", "--max-wait", "20", *more)

    def forget_versions(self) -> None:
        """Give the backfill something to do. It is on disk when this returns: some tests cut the power next."""
        with psycopg.connect(self.url) as connection:
            connection.execute("SET LOCAL synchronous_commit = on")
            connection.execute(
                """UPDATE "BehavioralSignal" SET "modelVersion" = NULL WHERE "userId" IN
                (SELECT "id" FROM "User" WHERE starts_with("email", 'shadow-'))"""
            )

    def published(self) -> dict[str, str]:
        """The data files of the snapshot that LATEST names."""
        return data_files(self.out / "snapshots" / (self.out / LATEST).read_text())

    def require_before_or_after(self, before: tuple[dict[str, str], dict[str, str]], seed: int) -> str:
        """Both tables and folder are as before or as after a night, and the folder is not ahead. Gives which."""
        tables, files = database_state(self.url), self.published()
        after = self.settled[seed]
        assert tables in (before[0], after[0]), "the database is in a state between"
        assert files in (before[1], after[1]), "the folder is in a state between"
        if files == after[1] != before[1]:
            assert tables == after[0], "the folder is ahead of the database"
        for snapshot in (self.out / "snapshots").iterdir():
            assert (snapshot / "manifest.json").exists(), "a folder among the snapshots is none"
        if tables == before[0]:
            return "before"
        return "after" if files == after[1] else "folder behind"

    def state(self) -> tuple[dict[str, str], dict[str, str]]:
        """What tables and folder hold now."""
        return database_state(self.url), self.published()

    def require_mended(self, seed: int) -> None:
        """The next night succeeds, leaves the same bytes as ever, and nothing else."""
        ended = call(self.command(seed), self.url)
        assert ended.code == 0, ended.err
        assert database_state(self.url) == self.settled[seed][0]
        assert self.published() == self.settled[seed][1]
        assert sorted(path.name for path in self.out.iterdir()) == [LATEST, "snapshots"]
        self.require_no_session()
        self.keep_few()

    def require_no_session(self, seconds: float = SECONDS_TO_STOP) -> None:
        """No server process of ours is left, at the latest after so many seconds."""
        deadline = time.monotonic() + seconds
        with psycopg.connect(self.url, autocommit=True) as connection:
            while left := connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
                "AND backend_type = 'client backend'"
            ).fetchone()[0]:
                assert time.monotonic() < deadline, f"{left} server processes are left"
                time.sleep(0.05)

    def keep_few(self) -> None:
        """Throw away all snapshots but the newest."""
        keep_newest(self.out)

    def other_seed(self) -> int:
        """The seed whose night is not the one that is published."""
        return next(seed for seed in SEEDS if self.settled[seed][1] != self.published())

    def night(self, seed: int, url: str | None = None) -> EtlError | None:
        """A night in this process, by another URL if one is given; gives the error that it ended with."""
        try:
            etl.run(load_settings({"database_url": url or self.url, "out": str(self.out), "seed": seed}, {}))
        except EtlError as error:
            return error
        return None


def keep_newest(out: Path) -> None:
    """Throw away all snapshots of a folder but the newest: a thousand of them would fill the disk."""
    latest = (out / LATEST).read_text()
    for snapshot in (out / "snapshots").iterdir():
        if snapshot.name != latest:
            shutil.rmtree(snapshot)


def until_it_waits(url: str, process: subprocess.Popen[str]) -> None:
    """Until a session of the database waits for somebody's lock; the process is the one that is to wait."""
    with psycopg.connect(url, autocommit=True) as looking:
        while not looking.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ).fetchone()[0]:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)


def end_sessions(url: str) -> None:
    """What an administrator does: end every session of a database but one's own."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )


def start(arguments: Command, url: str, spec: dict[str, object] | None = None) -> subprocess.Popen[str]:
    """Start the command line on a database, to be hit by a signal where `spec` says; stdout and stderr are pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults.child", json.dumps(spec or {"at": "never"}), *arguments],
        cwd=ROOT,
        env={**os.environ, "BPR_ETL_DATABASE_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def call(
    arguments: Command,
    url: str,
    spec: dict[str, object] | None = None,
    meanwhile: Callable[[subprocess.Popen[str]], object] = lambda _: None,
) -> Ended:
    """Run the command line to its end; `meanwhile` is done while it runs."""
    began = time.monotonic()
    process = start(arguments, url, spec)
    try:
        meanwhile(process)
        out, err = process.communicate(timeout=120)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return Ended(process.returncode, out, err, time.monotonic() - began)

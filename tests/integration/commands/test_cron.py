"""The recipe for cron with the real command on a real database: what it prints is what cron mails."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.faults.calling import ROOT, environment

RECIPES = ROOT / "docs" / "recipes"


@pytest.fixture
def night(small_world, tmp_path):
    """Run the script once: its exit code, and what it prints; `without` names settings that its file lacks."""
    command = tmp_path / "bin" / "bpr-etl"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "cli.py"} "$@"\n')
    command.chmod(0o755)

    def run(*without: str) -> tuple[int, str]:
        ours = {"DATABASE_URL": small_world, "BPR_ETL_OUT": str(tmp_path / "out")}
        lines = (RECIPES / "env").read_text(encoding="utf-8").splitlines()
        settings = [line for line in lines if not line.startswith(("#", *ours, *without))]
        file = tmp_path / "env"
        file.write_text("\n".join([*settings, *(f"{name}='{value}'" for name, value in ours.items())]))
        path = f"{command.parent}:/usr/bin:/bin"
        env = environment(PATH=path, BPR_ETL_ENV=str(file), BPR_ETL_PAUSES="0.01")
        done = subprocess.run(
            ["sh", RECIPES / "bpr-etl-cron"], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    return run


def halve_the_trips(url: str) -> None:
    with psycopg.connect(url) as connection:
        connection.execute(
            'DELETE FROM "Trip" WHERE "id" IN (SELECT "id" FROM "Trip" ORDER BY "id" LIMIT '
            '(SELECT count(*) / 2 FROM "Trip"))'
        )


def snapshots(folder: Path) -> int:
    return len(list((folder / "out" / "snapshots").iterdir()))


def test_a_good_night_is_silent_and_one_that_lost_half_of_the_trips_is_not(night, small_world, tmp_path):
    assert night() == (0, "")
    assert snapshots(tmp_path) == 1
    assert night() == (0, "")  # nothing has changed
    halve_the_trips(small_world)
    code, said = night()
    assert code == 5
    assert re.match(r"bpr-etl run ended with exit code 5:\nError: .*trips read", said), said
    assert "Traceback" not in said
    assert snapshots(tmp_path) == 1


def test_without_fail_on_change_it_is_a_warning_that_is_printed(night, small_world, tmp_path):
    assert night("BPR_ETL_FAIL_ON_CHANGE") == (0, "")
    halve_the_trips(small_world)
    code, said = night("BPR_ETL_FAIL_ON_CHANGE")
    assert code == 0
    assert "trips read" in said
    assert all("[warning" in line for line in said.splitlines())
    assert snapshots(tmp_path) == 2

"""The demonstration as a newcomer sees it: one command, a server of its own, files that hold, nothing left running."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from etl.postgres import embedded
from etl.snapshots.validation import validate_snapshot

ROOT = Path(__file__).parents[3]


@pytest.fixture
def data_dir() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="bpr-demo-"))  # not pytest's tmp_path: the server's own user can't enter it
    folder.chmod(0o755)
    yield folder / "pg"
    embedded.stop(folder / "pg")
    shutil.rmtree(folder, ignore_errors=True)


def test_a_demonstration_publishes_says_where_to_look_and_leaves_nothing_running(data_dir, tmp_path):
    command = [sys.executable, "-m", "etl", "demo", "--scale", "0.03", "--data-dir", str(data_dir), "--out", "made"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        # The command is for the database that the environment names, not for the demo's own.
        env={**os.environ, "PYTHONPATH": str(ROOT), "BPR_ETL_PASSWORD_COMMAND": "false"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "Where to look:" in done.stdout
    assert "validate --snapshot made" in done.stdout
    assert f"db start --data-dir {data_dir}" in done.stdout
    (snapshot,) = (tmp_path / "made" / "snapshots").iterdir()
    assert (tmp_path / "made" / "LATEST").read_text().strip() == snapshot.name
    assert [finding for finding in validate_snapshot(snapshot) if finding.broken] == []
    assert embedded.find_running(data_dir) is None

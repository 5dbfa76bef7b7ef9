"""The demonstration as a newcomer sees it: one command, a server of its own, files that hold, nothing left running."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
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


def demo(data_dir: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "etl",
        "demo",
        "--scale",
        "0.1",
        "--data-dir",
        str(data_dir),
        "--out",
        "made",
        *words,
    ]
    # The command is for the database that the environment names, not for the demo's own.
    env = {**os.environ, "PYTHONPATH": str(ROOT), "BPR_ETL_PASSWORD_COMMAND": "false"}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=300)


def test_a_demonstration_compares_negatives_says_what_it_left_and_takes_it_away(data_dir, tmp_path):
    done = demo(data_dir, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("Starting PostgreSQL") or "Starting PostgreSQL" in done.stderr.splitlines()[0]
    lines = done.stdout.splitlines()
    assert lines[0].startswith("Done: a snapshot was published")
    snapshots = {name: tmp_path / name / "snapshots" for name in ("made", "made-recommended")}
    (snapshot,) = snapshots["made"].iterdir()
    assert (tmp_path / "made" / "LATEST").read_text().strip() == snapshot.name
    assert [finding for finding in validate_snapshot(snapshot) if finding.broken] == []
    manifests = {
        name: json.loads((next(each.iterdir()) / "manifest.json").read_text()) for name, each in snapshots.items()
    }
    assert [each["settings"]["negatives"] for each in manifests.values()] == [["ranking"], ["recommended"]]
    assert manifests["made"]["published"]["events"] == manifests["made-recommended"]["published"]["events"]
    for name, row in (("made", "negatives: ranking"), ("made-recommended", "negatives: recommended")):
        found = json.loads((next(snapshots[name].iterdir()) / "probe.json").read_text())["rankings"]["model"]["all"]
        (line,) = [line for line in lines if line.startswith(row)]
        assert f"{found['auc']['mean']:.3f} (" in line
        assert f"{found['ndcg_at_10']['mean']:.3f} (" in line
    rows = sum(manifests["made"]["published"]["triples"].values())
    assert re.fullmatch(rf"OK: {rows:,} triples in \d+ s, made/snapshots/{snapshot.name}", lines[-1])
    assert f"demo --out made --data-dir {data_dir} --remove" in done.stdout
    assert embedded.find_running(data_dir) is None

    (tmp_path / "made-recommended" / ".bpr-etl-demo").unlink()
    gone = demo(data_dir, tmp_path, "--remove")
    assert gone.returncode == 0, gone.stderr
    assert gone.stdout.splitlines() == [
        "Removed: made",
        f"Removed: {data_dir}",
        "Left: made-recommended: it was not made by demo",
    ]
    assert [each.name for each in tmp_path.iterdir()] == ["made-recommended"]
    assert not data_dir.exists()


def test_removing_leaves_a_server_with_tables_of_its_own(data_dir, tmp_path):
    with embedded.shared_server(data_dir) as server, psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("CREATE TABLE mine (id int)")
        connection.execute("CREATE DATABASE bpr_etl_demo")
    gone = demo(data_dir, tmp_path, "--remove")
    assert gone.stdout.splitlines() == [
        "Removed: the database bpr_etl_demo",
        f"Left: {data_dir}: it holds other tables or databases",
    ]
    with embedded.shared_server(data_dir) as server, psycopg.connect(server.url()) as connection:
        assert connection.execute("SELECT count(*) FROM mine").fetchone() == (0,)
        assert connection.execute("SELECT FROM pg_database WHERE datname = 'bpr_etl_demo'").fetchone() is None

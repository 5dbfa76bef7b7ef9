"""The same source and settings give the same bytes: for any number of threads and any physical order of the rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

import etl
from etl.pipeline import database
from tests.states import data_files, database_state

ROOT = Path(__file__).parents[3]


def run_with_threads(url: str, out: Path, threads: int) -> dict:
    """The whole command in a process of its own, since Polars reads its number of threads once."""
    command = [sys.executable, "cli.py", "run", "--json", "--out", str(out), "--small-catalog", "keep"]
    environment = os.environ | {"POLARS_MAX_THREADS": str(threads), "BPR_ETL_DATABASE_URL": url}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def shuffle(url: str) -> None:
    """Give every source table another physical order of its rows."""
    tables = ("BehavioralSignal", "ItinerarySlot", "Trip", "ActivityNode", "User")
    with psycopg.connect(url) as connection:
        connection.execute("SET session_replication_role = replica")
        for table in tables:
            connection.execute(f'CREATE TEMP TABLE t AS SELECT * FROM "{table}"')
            connection.execute(f'DELETE FROM "{table}"')
            connection.execute(f'INSERT INTO "{table}" SELECT * FROM t ORDER BY md5("id")')
            connection.execute("DROP TABLE t")


def test_threads_and_physical_order_change_nothing(make_database, tmp_path):
    """More than a million triples: below, a writer that varies with threads would not show it."""
    url = make_database()
    database.synth(etl.Settings(database_url=url, scale=1.3))
    one = run_with_threads(url, tmp_path / "one", 1)
    assert sum(one["published"]["triples"].values()) > 1_000_000
    rows = database_state(url)
    shuffle(url)
    two = run_with_threads(url, tmp_path / "two", 2)
    assert database_state(url) == rows
    assert data_files(two["snapshot"]) == data_files(one["snapshot"])


def bytes_of(url: str, out: Path, *options: str, threads: int) -> tuple[dict, list]:
    """What a run publishes, cut and threaded like this; and the database's rows."""
    command = [sys.executable, "cli.py", "run", "--json", "--out", str(out), *options]
    environment = os.environ | {"POLARS_MAX_THREADS": str(threads), "BPR_ETL_DATABASE_URL": url}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return data_files(json.loads(done.stdout)["snapshot"]), database_state(url)


def test_buckets_change_nothing_at_the_design_s_size(make_database, tmp_path, effort):
    """1 bucket and 64, 1 thread and 2, with all that could see the difference: split, draws by popularity, shuffle, history."""
    url = make_database()
    database.synth(etl.Settings(database_url=url, scale=1.0))
    teaching = ("--negatives", "ranking,catalog:4", "--catalog-alpha", "0.5", "--split", "last-trip", "--shuffle")
    teaching += ("--task", "triples", "--task", "next", "--history")
    for options in (teaching, ())[: effort(1, 2)]:
        one = bytes_of(url, tmp_path / "one", "--buckets", "1", *options, threads=1)
        many = bytes_of(url, tmp_path / "many", "--buckets", "64", *options, threads=2)
        assert many == one


@pytest.mark.slow
def test_buckets_change_nothing_at_scale_10(make_database, tmp_path):
    url = make_database()
    database.synth(etl.Settings(database_url=url, scale=10.0))
    one = bytes_of(url, tmp_path / "one", "--buckets", "1", threads=1)
    for buckets, threads in ((64, 2), (3, 1)):
        assert bytes_of(url, tmp_path / f"{buckets}", "--buckets", str(buckets), threads=threads) == one

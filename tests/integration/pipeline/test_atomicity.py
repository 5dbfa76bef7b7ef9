"""All of a night or nothing: a failure after any step leaves every table and LATEST as they were."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

import etl
from etl.errors import ConnectError, DataError, SchemaError
from etl.pipeline import database
from etl.pipeline import run as pipeline
from etl.pipeline.context import RunResult
from etl.postgres.connection import ConflictError
from etl.runtime import cancellation as stopping
from etl.snapshots.reading.snapshot import STAGING
from tests.states import database_state, folder_state

STEPS = [
    "read",
    "compare",
    "delete",
    "personas",
    "write personas",
    "read back",
    "registry",
    "rankings",
    "write events",
    "compact",
    "stage files",
    "report",
    "secure files",
    "backfill",
    "check",
]


class Injected(Exception):  # noqa: N818
    """Not a kind of EtlError: nothing may catch it on its way."""


@pytest.fixture
def fail_after(monkeypatch):
    """Make a run fail as soon as the named step is done; `times` bounds how often."""

    def arm(name, error, times=1):
        original = RunResult.step
        left = [times]

        @contextmanager
        def step(self, step_name):
            with original(self, step_name) as rows:
                yield rows
            if step_name == name and left[0]:
                left[0] -= 1
                raise error

        monkeypatch.setattr(RunResult, "step", step)

    return arm


def test_the_steps_tried_are_the_steps_there_are(small_world, settings_for):
    report = etl.run(settings_for(small_world))
    assert [name for name, *_ in report.steps] == [*STEPS, "switch"]


@pytest.mark.parametrize("step", STEPS)
def test_a_failure_leaves_everything_as_it_was(small_world, settings_for, fail_after, tmp_path, step):
    etl.run(settings_for(small_world, seed=1))
    with psycopg.connect(small_world) as connection:
        connection.execute('UPDATE "BehavioralSignal" SET "modelVersion" = NULL')
    rows, files = database_state(small_world), folder_state(tmp_path / "out")
    fail_after(step, Injected(step))
    with pytest.raises(Injected):
        etl.run(settings_for(small_world))
    assert database_state(small_world) == rows
    assert folder_state(tmp_path / "out") == files
    again = etl.run(settings_for(small_world))
    assert (tmp_path / "out" / "LATEST").read_text() == Path(again.snapshot).name


def test_a_killed_run_s_staging_folder_is_cleared(small_world, settings_for, tmp_path):
    litter = tmp_path / "out" / f"{STAGING}dead"
    (litter / "triples").mkdir(parents=True)
    (tmp_path / "out" / f"{STAGING}LATEST").write_text("x")
    etl.run(settings_for(small_world))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["LATEST", "snapshots"]


def test_links_in_out_are_not_followed(small_world, settings_for, tmp_path):
    """Who may write to --out leads nobody to another file: what a link names stays, and the run goes through."""
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("precious")
    out.mkdir()
    for name, target in {"x": elsewhere, "LATEST": elsewhere / "precious", "nowhere": tmp_path / "nowhere"}.items():
        (out / f"{STAGING}{name}").symlink_to(target)
    (out / "LATEST").symlink_to(elsewhere / "precious")
    report = etl.run(settings_for(small_world))
    assert sorted(p.name for p in out.iterdir()) == ["LATEST", "snapshots"]
    assert not (out / "LATEST").is_symlink()
    assert (out / "LATEST").read_text() == Path(report.snapshot).name
    assert {p.name: p.read_text() for p in elsewhere.iterdir()} == {"precious": "precious"}


def test_a_copy_that_the_server_refuses(small_world, settings_for, tmp_path):
    """The message names the table and the constraint, and none of the row's values."""
    with psycopg.connect(small_world) as connection:
        connection.execute('ALTER TABLE "RankingEvent" ADD CONSTRAINT "no_late_days" CHECK ("dayNumber" < 3) NOT VALID')
    rows = database_state(small_world)
    with pytest.raises(DataError) as refused:
        etl.run(settings_for(small_world))
    assert "no_late_days" in str(refused.value)
    assert "RankingEvent" in str(refused.value)
    assert "Failing row" not in str(refused.value)
    assert "\n" not in str(refused.value)
    assert database_state(small_world) == rows
    assert not (tmp_path / "out" / "LATEST").exists()
    assert folder_state(tmp_path / "out") == {}


def test_a_trigger_that_changes_rows_is_found_out(small_world, settings_for):
    """Count and checksum are read back inside the transaction."""
    with psycopg.connect(small_world) as connection:
        connection.execute(
            """CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN IF NEW."dayNumber" = 2 THEN NEW."latencyMs" := 1; END IF; RETURN NEW; END $$"""
        )
        connection.execute(
            'CREATE TRIGGER meddle BEFORE INSERT ON "RankingEvent" FOR EACH ROW EXECUTE FUNCTION meddle()'
        )
    rows = database_state(small_world)
    with pytest.raises(DataError, match="is not what was sent"):
        etl.run(settings_for(small_world))
    assert database_state(small_world) == rows


def test_a_column_of_the_wrong_type_is_refused_before_its_bytes_are_taken(small_world, settings_for):
    """int32 into float4 has the same width: COPY would store nonsense without a word."""
    with psycopg.connect(small_world) as connection:
        connection.execute('ALTER TABLE "RankingEvent" ALTER COLUMN "latencyMs" TYPE float4')
    rows = database_state(small_world)
    with pytest.raises(SchemaError, match="latencyMs"):
        etl.run(settings_for(small_world))
    assert database_state(small_world) == rows


def test_a_serialisation_failure_retries_the_whole(small_world, settings_for, fail_after):
    fail_after("backfill", ConflictError("Somebody else changed the same rows."), times=2)
    report = etl.run(settings_for(small_world))
    assert report.retries == 2
    assert database.validate_database(settings_for(small_world)).broken == []


def test_a_real_serialisation_failure_is_retried(small_world, settings_for, monkeypatch):
    """An application updates a signal that the backfill wants, after the night's snapshot was taken."""
    original, done = pipeline.load.register_models, []

    def meddling(*arguments):
        if not done:
            done.append(True)
            with psycopg.connect(small_world) as connection:
                connection.execute(
                    """UPDATE "BehavioralSignal" SET "signalType" = 'view' WHERE "id" = (SELECT min("id") FROM "BehavioralSignal"
                    WHERE "userId" IN (SELECT "id" FROM "User" WHERE starts_with("email", 'shadow-')))"""
                )
        return original(*arguments)

    monkeypatch.setattr(pipeline.load, "register_models", meddling)
    assert etl.run(settings_for(small_world)).retries == 1


def test_serialisation_failures_without_end_end_the_run(small_world, settings_for, fail_after, monkeypatch):
    monkeypatch.setattr(stopping.CancelToken, "sleep", lambda *_: None)
    rows = database_state(small_world)
    fail_after("read", ConflictError("Somebody else changed the same rows."), times=99)
    with pytest.raises(ConflictError, match="Tried 5 times"):
        etl.run(settings_for(small_world))
    assert database_state(small_world) == rows


def test_an_output_folder_that_takes_no_files(small_world, settings_for, tmp_path):
    (tmp_path / "out").write_text("a file, not a folder")
    rows = database_state(small_world)
    with pytest.raises(ConnectError, match="Cannot write"):
        etl.run(settings_for(small_world))
    assert database_state(small_world) == rows

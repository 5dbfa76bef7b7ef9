"""OpenLineage events: what they say is valid and true, and no server that they go to can harm a run."""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import etl
from etl.errors import ConnectError, DataError
from etl.pipeline import lineage
from etl.runtime.cancellation import CancelledError, CancelToken
from etl.settings.sources import load_settings

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")
pytest.importorskip("openlineage.client", reason="OpenLineage is not installed: pip install 'bpr-etl[lineage]'")

URI, TEXT, COUNT = {"type": "string", "format": "uri", "pattern": "^[a-z]+:"}, {"type": "string"}, {"type": "integer"}


def _facets(**known: dict) -> dict:
    """The spec's facets: each says who made it and by which schema. `known` are those whose own schema is checked, too."""
    base = {"properties": {"_producer": URI, "_schemaURL": URI}, "required": ["_producer", "_schemaURL"]}
    return {
        "type": "object",
        "properties": {name: {"type": "object", **schema} for name, schema in known.items()},
        "additionalProperties": {"type": "object"},
        "patternProperties": {"": base},
    }


def _dataset(name: str, statistics: dict) -> dict:
    field = {
        "type": "object",
        "properties": {"name": TEXT, "type": TEXT, "fields": {"type": "array"}},
        "required": ["name"],
    }
    columns = {"properties": {"fields": {"type": "array", "items": field}}}
    version = {"properties": {"datasetVersion": TEXT}, "required": ["datasetVersion"]}
    return {
        "type": "object",
        "properties": {
            "namespace": TEXT,
            "name": TEXT,
            "facets": _facets(schema=columns, version=version),
            name: _facets(**statistics),
        },
        "required": ["namespace", "name"],
    }


STATISTICS = {"properties": {"rowCount": COUNT, "size": COUNT}}
RUN_EVENT = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "eventTime": {**TEXT, "format": "date-time"},
        "producer": URI,
        "schemaURL": URI,
        "eventType": {"enum": ["START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER"]},
        "run": {
            "type": "object",
            "properties": {
                "runId": {**TEXT, "format": "uuid"},
                "facets": _facets(
                    errorMessage={
                        "properties": {"message": TEXT, "programmingLanguage": TEXT},
                        "required": ["message", "programmingLanguage"],
                    },
                    processing_engine={"properties": {"version": TEXT, "name": TEXT}, "required": ["version"]},
                ),
            },
            "required": ["runId"],
        },
        "job": {
            "type": "object",
            "properties": {
                "namespace": TEXT,
                "name": TEXT,
                "facets": _facets(
                    jobType={
                        "properties": {"processingType": TEXT, "integration": TEXT, "jobType": TEXT},
                        "required": ["processingType", "integration"],
                    }
                ),
            },
            "required": ["namespace", "name"],
        },
        "inputs": {"type": "array", "items": _dataset("inputFacets", {"inputStatistics": STATISTICS})},
        "outputs": {"type": "array", "items": _dataset("outputFacets", {"outputStatistics": STATISTICS})},
    },
    "required": ["eventTime", "producer", "schemaURL", "run", "job"],
}
"""RunEvent of the specification 2-0-2 and the facets that are used, written from the published text."""


@pytest.fixture
def setting_for(settings_for, monkeypatch) -> Callable[..., etl.Settings]:
    """Settings as `settings_for` makes them, with variables of the environment."""

    def make(url: str, variables: dict[str, str], **options: object) -> etl.Settings:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        given = {"database_url": url, "out": settings_for(url).out, **options}
        return load_settings(given, {**variables, "HOME": os.environ.get("HOME", "/")})

    return make


@pytest.fixture
def to_file(tmp_path) -> tuple[dict[str, str], Callable[[], list[dict]]]:
    """Variables that send events to a file, and what reads them from there, valid ones only."""
    path = tmp_path / "events.jsonl"
    variables = {
        "OPENLINEAGE__TRANSPORT": json.dumps({"type": "file", "log_file_path": str(path), "append": True}),
        "OPENLINEAGE_NAMESPACE": "nightly",
        "OPENLINEAGE_API_KEY": "key-of-the-server",
    }

    def read() -> list[dict]:
        events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for event in events:
            jsonschema.validate(event, RUN_EVENT, format_checker=jsonschema.FormatChecker())
        return events

    return variables, read


def rows_of(datasets: list[dict], statistics: str) -> dict[str, int]:
    """Row counts by the last part of the dataset's name."""
    side = f"{statistics.removesuffix('Statistics')}Facets"
    return {each["name"].replace("/", ".").rpartition(".")[2]: each[side][statistics]["rowCount"] for each in datasets}


def test_a_run_names_what_it_read_and_wrote(small_world, setting_for, to_file):
    variables, read = to_file
    password = "secret-of-the-database"  # noqa: S105
    parts = urlsplit(small_world)
    url = small_world.replace(parts.netloc, f"{parts.username}:{password}@{parts.netloc.rpartition('@')[2]}")
    ran = etl.run(setting_for(url, variables))
    start, complete = read()
    assert (start["eventType"], complete["eventType"]) == ("START", "COMPLETE")
    assert start["run"]["runId"] == complete["run"]["runId"]
    assert (complete["job"]["namespace"], complete["job"]["name"]) == ("nightly", "bpr-etl.run")
    counts = ran.counts
    models = {"users": "User", "trips": "Trip", "slots": "ItinerarySlot", "nodes": "ActivityNode"}
    assert rows_of(complete["inputs"], "inputStatistics") == {
        models[name]: rows for name, rows in counts["source_rows"].items()
    }
    assert {each["namespace"] for each in complete["inputs"]} == {f"postgres://localhost:{parts.port or 5432}"}
    outputs = rows_of(complete["outputs"], "outputStatistics")
    assert outputs.pop("PersonaDimension") == counts["persona_rows"]
    assert outputs.pop("RankingEvent") == counts["ranking_events"]
    assert outputs.pop("BehavioralSignal") == counts["signals_backfilled"]
    published = counts["published"]
    partitioned = {table: sum(published[table].values()) for table in ("triples", "events", "interactions")}
    snapshot = etl.open_snapshot(ran.snapshot)
    whole = {name: snapshot.files[f"{name}.parquet"].rows for name in ("users", "items", "trips")}
    assert outputs == {**partitioned, **whole}
    triples = next(each for each in complete["outputs"] if each["name"].endswith("/triples"))
    assert triples["namespace"] == "file"
    assert Path(triples["name"]).parent == Path(ran.snapshot).parents[1]
    assert triples["facets"]["version"]["datasetVersion"] == Path(ran.snapshot).name
    assert {"name": "weight", "type": "Float32"}.items() <= triples["facets"]["schema"]["fields"][9].items()
    assert [each["name"] for each in complete["inputs"][0]["facets"]["schema"]["fields"]] == ["id", "email"]
    for secret in (password, "key-of-the-server"):
        assert secret not in json.dumps([start, complete])


def test_export_reads_ranking_events_and_expand_a_snapshot(small_world, setting_for, settings_for, to_file, tmp_path):
    variables, read = to_file
    first = etl.run(settings_for(small_world))
    settings = setting_for(small_world, variables)
    exported = etl.export(settings)
    etl.expand(settings, snapshot=first.snapshot)
    newest = etl.expand(settings)
    copy = shutil.copytree(first.snapshot, tmp_path / "copy")
    etl.expand(settings, snapshot=str(copy))
    _, export, _, expand, _, of_newest, _, of_copy = read()
    expanded = newest.counts["expanded_from"]
    assert expanded != Path(newest.snapshot).name
    assert {each["facets"]["version"]["datasetVersion"] for each in of_newest["inputs"]} == {expanded}
    assert {each["name"] for each in of_copy["inputs"]} == {
        f"{copy}/{name}" for name in ("events", "users", "items", "trips")
    }
    inputs = rows_of(export["inputs"], "inputStatistics")
    assert inputs["RankingEvent"] == exported.counts["source_rows"]["events"]
    assert {each["namespace"] for each in export["outputs"]} == {"file"}  # the database was not written
    assert set(rows_of(expand["inputs"], "inputStatistics")) == {"events", "users", "items", "trips"}
    assert {each["facets"]["version"]["datasetVersion"] for each in expand["inputs"]} == {Path(first.snapshot).name}
    assert {each["name"] for each in expand["inputs"]} < {each["name"] for each in expand["outputs"]}


@pytest.mark.parametrize(
    ("options", "kind", "state", "said"),
    [
        ({"expect_users": "1"}, DataError, "FAIL", "--expect-users says 1±0%"),
        ({"database_url": "postgresql://etl:geheim@127.0.0.1:1/app"}, ConnectError, "FAIL", "exit code 3"),
    ],
)
def test_a_failed_run_says_why_without_secrets(small_world, setting_for, to_file, options, kind, state, said):
    variables, read = to_file
    with pytest.raises(kind):
        etl.run(setting_for(small_world, variables), **options)
    start, end = read()
    assert (start["eventType"], end["eventType"]) == ("START", state)
    assert said in end["run"]["facets"]["errorMessage"]["message"]
    assert "geheim" not in json.dumps(end)


def test_a_cancelled_run_is_aborted(small_world, setting_for, to_file):
    variables, read = to_file
    stop = CancelToken()
    with pytest.raises(CancelledError):
        etl.run(setting_for(small_world, variables), stop=stop, progress=lambda *_: stop.cancel())
    assert [each["eventType"] for each in read()] == ["START", "ABORT"]


def test_no_events_without_being_asked_for(small_world, setting_for, to_file, tmp_path):
    variables, _ = to_file
    etl.run(setting_for(small_world, {**variables, "OPENLINEAGE_DISABLED": "True"}))
    etl.run(setting_for(small_world, {**variables, "OPENLINEAGE_DISABLED": ""}), dry_run=True)
    etl.run(setting_for(small_world, {}))
    assert not (tmp_path / "events.jsonl").exists()


class Lineage(BaseHTTPRequestHandler):
    """Takes events, answers all with the server's `status`, and waits `pause` seconds before it does."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.server.pause)
        self.server.taken.append((self.path, json.loads(body)))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@contextmanager
def server(status: int, pause: float = 0.0) -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Lineage) as running:
        running.status, running.pause, running.taken = status, pause, []
        running.daemon_threads = True
        running.block_on_close = False
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def test_events_reach_a_server(small_world, setting_for):
    with server(201) as running:
        etl.run(setting_for(small_world, {"OPENLINEAGE_URL": f"http://127.0.0.1:{running.server_port}"}))
        assert [(path, each["eventType"]) for path, each in running.taken] == [
            ("/api/v1/lineage", "START"),
            ("/api/v1/lineage", "COMPLETE"),
        ]
        for _, event in running.taken:
            jsonschema.validate(event, RUN_EVENT, format_checker=jsonschema.FormatChecker())


@contextmanager
def refusing() -> Iterator[int]:
    """A port where nothing listens, as long as the block."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@contextmanager
def failing(status: int, pause: float = 0.0) -> Iterator[int]:
    with server(status, pause) as running:
        yield running.server_port


@pytest.mark.parametrize("opened", [refusing, lambda: failing(500), lambda: failing(403), lambda: failing(201, 60.0)])
def test_a_server_that_fails_or_hangs_neither_fails_nor_delays_a_run(small_world, setting_for, caplog, opened):
    with opened() as port:
        settings = setting_for(small_world, {"OPENLINEAGE_URL": f"http://etl:geheim@127.0.0.1:{port}"})
        began = time.perf_counter()
        ran = etl.run(settings)
        late = time.perf_counter() - began - ran.seconds
    assert ran.snapshot is not None
    assert late < lineage.PATIENCE_SECONDS + 3  # the rest is connecting, and a slow machine
    warned = [each.getMessage() for each in caplog.records if each.name == lineage.__name__]
    assert len(warned) == 1
    assert "Events for OpenLineage" in warned[0]
    assert "geheim" not in caplog.text


def test_a_file_that_can_not_be_written_is_a_warning(small_world, setting_for, caplog):
    transport = json.dumps({"type": "file", "log_file_path": "/proc/none/events", "append": True})
    assert etl.run(setting_for(small_world, {"OPENLINEAGE__TRANSPORT": transport})).snapshot is not None
    assert "Events for OpenLineage could not be sent" in caplog.text


def test_without_the_extra_a_log_line_says_what_to_install(small_world, setting_for, monkeypatch, caplog):
    monkeypatch.setattr(lineage, "find_spec", lambda _: None)
    with caplog.at_level("INFO"):
        etl.run(setting_for(small_world, {"OPENLINEAGE_URL": "http://127.0.0.1:1"}))
    assert "pip install 'bpr-etl[lineage]'" in caplog.text

"""Files of a snapshot on their way out and back: what is written is looked at, and what is damaged is named, not guessed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.errors import ConnectError, DataError
from etl.runtime.files import file_sha256
from etl.snapshots import parquet
from etl.snapshots import writer as stage
from etl.snapshots.manifest import FileEntry
from etl.snapshots.parquet import PartCopier, PartWriter, ThreadPart, file_info, open_writer, write_file, writer_pool
from etl.snapshots.reading.events import _batches, _merged, id_indexes
from etl.snapshots.reading.snapshot import MANIFEST, Snapshot, find_snapshot, open_snapshot, read_file, read_vocabulary
from etl.snapshots.stores.store import LocalStore
from etl.snapshots.validation import _as_listed
from etl.triples.dataset import ENCODED_EVENTS
from etl.triples.vocabulary import Vocabulary
from tests.manifests import FILE, SOUND

ROWS = pl.DataFrame({"id": [f"u{number}" for number in range(10)], "number": range(10)})


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "rows.parquet"
    ROWS.write_parquet(path)
    return path


# ---------------------------------------------------------------------------------------------------- on the way out


@pytest.mark.parametrize("sizes", [(10,), (1, 9), (3, 0, 7), (0, 10), (4, 4, 2)])
def test_frames_of_any_size_are_written_as_the_same_bytes(monkeypatch, tmp_path, sizes):
    monkeypatch.setattr(parquet, "ROW_GROUP", 4)
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    cut = [ROWS.slice(start, size) for start, size in zip(starts, sizes, strict=True)]
    written = write_file(tmp_path / "cut.parquet", cut)
    whole = write_file(tmp_path / "whole.parquet", [ROWS])
    assert (written.rows, written.sha256) == (10, whole.sha256)
    assert pl.read_parquet(written.path).equals(ROWS)
    metadata = pq.read_metadata(written.path)
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [4, 4, 2]


def test_a_frame_without_rows_is_a_file_with_its_columns(tmp_path):
    written = write_file(tmp_path / "none.parquet", [ROWS.clear()])
    assert written.rows == 0
    assert pl.read_parquet(written.path).schema == ROWS.schema


def test_a_failure_while_frames_are_made_leaves_no_file_open(tmp_path):
    def frames():
        yield ROWS
        raise DataError("no more")

    with pytest.raises(DataError, match="no more"):
        write_file(tmp_path / "half.parquet", frames())
    assert pq.read_metadata(tmp_path / "half.parquet").num_rows == 0  # ended as a file, though nobody will name it
    with pytest.raises(DataError, match="not one"):
        write_file(tmp_path / "none.parquet", (frame for frame in _refused("not one")))
    assert not (tmp_path / "none.parquet").exists()


def _refused(why: str):
    raise DataError(why)
    yield  # a generator that gives nothing


def test_however_many_partitions_are_on_their_way_none_of_their_files_stays_open(monkeypatch, tmp_path):
    monkeypatch.setattr(parquet, "ROW_GROUP", 4)
    schema = pa.schema([pa.field("number", pa.int64())])

    def encode(batches: Sequence[range]) -> pa.Table:
        return pa.table([pa.array([value for batch in batches for value in batch], pa.int64())], schema)

    def opened() -> int:
        return sum(path.resolve().suffix == ".parquet" for path in Path("/proc/self/fd").iterdir())

    with writer_pool(2) as two:
        parts = [
            PartWriter(tmp_path / str(place), 100, partial(ThreadPart, encode=encode, pool=two)) for place in range(40)
        ]
        for start in (0, 6, 12):  # a whole row group each time, and rows that wait
            for each in parts:
                each.add(range(start, start + 6), 6)
        assert opened() <= 2
        for each in parts:
            each.end()
        written = [file for each in parts for file in each.written()]
    with open_writer(tmp_path / "whole.parquet", schema) as whole:
        whole.write_table(encode([range(18)]), row_group_size=4)
    assert {file.sha256 for file in written} == {file_sha256(tmp_path / "whole.parquet")}


def test_a_file_that_holds_other_rows_than_were_written_is_not_published(file):
    assert file_info(file, 10).sha256 == file_sha256(file)
    with pytest.raises(DataError, match=r"rows.parquet has 10 rows on disk, and 11 were written. Run again."):
        file_info(file, 11)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: path.unlink(), (ConnectError, "is not there")),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"?"), (DataError, "is not what its manifest says")),
    ],
)
def test_a_file_that_is_copied_is_the_one_that_its_manifest_names(file, tmp_path, harm, said):
    written = file_info(file, 10)
    with writer_pool(1) as one:  # so two copies may be pending, and the others wait for these
        copies = PartCopier(tmp_path / "sound", [written] * 9, one)
        named = [tmp_path / "sound" / f"part-{number:05}.parquet" for number in range(9)]
        assert copies.written() == [replace(written, path=path) for path in named]
    harm(file)
    with writer_pool() as two, pytest.raises(said[0], match=said[1]):
        PartCopier(tmp_path / "harmed", [written], two).written()


def test_two_cities_that_would_share_a_folder_are_refused(monkeypatch):
    """Names keep apart what names can; that hashes meet is not to be expected, and then nothing is mixed."""
    assert stage.city_folders(["B", "A"]) == {"A": "city=A", "B": "city=B"}
    for name in ("city_folder", "_hashed_folder"):
        monkeypatch.setattr(stage, name, lambda _: "city=~same")
    with pytest.raises(DataError, match=r"Two cities would share the folder city=~same. Rename one of them."):
        stage.city_folders(["B", "A"])


# --------------------------------------------------------------------------------------------------- on the way back


def test_a_file_that_is_missing_and_one_that_is_none_are_told_apart(file):
    assert read_file(file.parent, file.name).equals(ROWS)
    with pytest.raises(ConnectError, match=r"other.parquet is not there"):
        read_file(file.parent, "other.parquet")
    for harmed in (b"", b"PAR1", file.read_bytes()[:50]):
        file.write_bytes(harmed)
        with pytest.raises(DataError, match=r"rows.parquet can't be read"):
            read_file(file.parent, file.name)


def test_events_whose_file_is_missing_or_harmed_are_not_read_as_none(tmp_path):
    ids = pl.Series(["a"])
    path = tmp_path / "part-00000.parquet"

    def read() -> list[pl.DataFrame]:
        return list(_batches([path], "Rome", id_indexes(Vocabulary(ids, ids, ids)), ENCODED_EVENTS.schema))

    with pytest.raises(ConnectError, match=r"part-00000.parquet is not there"):
        read()
    for harmed in (b"", b"PAR1" + bytes(60)):
        path.write_bytes(harmed)
        with pytest.raises(DataError, match=r"part-00000.parquet can't be read"):
            read()
    ROWS.write_parquet(path)  # a sound file, but of something else
    with pytest.raises(DataError, match=r"part-00000.parquet can't be read"):
        read()


def test_a_manifest_says_where_a_snapshot_is(tmp_path):
    (tmp_path / MANIFEST).write_text(json.dumps(SOUND))
    assert open_snapshot(tmp_path).folder == find_snapshot(tmp_path) == tmp_path
    with pytest.raises(ConnectError, match=r"is no snapshot: it has no manifest.json"):
        find_snapshot(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    "harmed",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
        json.dumps(SOUND).encode().replace(b'"rows_per_file": 1', b'"rows_per_file": ' + b"9" * 5_000),
        json.dumps(SOUND).encode().replace(b'"seconds": 1.0', b'"seconds": NaN'),
        json.dumps(SOUND).encode().replace(b'"run_id": "0"', b'"run_id": "\\ud800"'),
        *(
            json.dumps(SOUND | changed).encode()
            for changed in (
                {"files": 3},
                {"files": [{}]},
                {"files": [FILE]},  # no city has this folder
                {"files": [FILE | {"path": "events/x.parquet"}]},
                {"cities": {"city=Rome": "Rome"}, "files": [FILE, FILE]},
                {"cities": {"city=Rome": 7}},
                {"settings": 7},
                {"started_at": "yesterday"},
                {"source_rows": {"trips": -1}},
                {"published": SOUND["published"] | {"signs": {"Rome": "high"}}},
            )
        ),
    ],
)
def test_a_manifest_that_is_none_is_named(tmp_path, harmed):
    (tmp_path / MANIFEST).write_bytes(harmed)
    with pytest.raises(DataError, match=r"manifest.json can't be read as a manifest"):
        open_snapshot(tmp_path)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../x.parquet", "events/../../x.parquet", "..", "a//b", "a\x00b", "", "a" * 300]
)
def test_a_manifest_names_no_file_outside_its_folder(tmp_path, path):
    (tmp_path / MANIFEST).write_text(json.dumps(SOUND | {"files": [FILE | {"path": path}]}))
    with pytest.raises(DataError, match=r"is outside of its folder|is too long for a file system"):
        open_snapshot(tmp_path)


def test_what_is_listed_and_is_no_file_is_never_read(tmp_path):
    (tmp_path / MANIFEST).write_text(json.dumps(SOUND | {"files": [FILE | {"path": "users.parquet"}]}))
    os.mkfifo(tmp_path / "users.parquet")  # to read it would never end
    with pytest.raises(DataError, match=r"users.parquet is not a file"):
        open_snapshot(tmp_path)


@pytest.mark.parametrize(
    ("column", "values", "says"),
    [
        ("user_id", [1, 2], "user_id is Int64, and not String"),
        ("user_idx", ["0", "1"], "user_idx is String, and not UInt32"),
        ("user_id", ["a", None], "user_id has nulls"),
        ("affinity_dining", ["a", "b"], "affinity_dining is String, and not Float64"),
    ],
)
def test_columns_are_of_the_types_that_published_ones_have(tmp_path, column, values, says):
    pl.DataFrame({column: values}).write_parquet(tmp_path / "users.parquet")
    with pytest.raises(DataError, match=says):
        read_file(tmp_path, "users.parquet")


@pytest.mark.parametrize(("ids", "indexes"), [(["a", "a"], [0, 1]), (["a", "b"], [1, 0]), (["a", "b"], [0, 7])])
def test_indexes_are_row_numbers_and_ids_are_unique(tmp_path, ids, indexes):
    (tmp_path / MANIFEST).write_text(json.dumps(SOUND))
    for kind in ("user", "item"):
        pl.DataFrame(
            {f"{kind}_id": ids, f"{kind}_idx": indexes}, schema_overrides={f"{kind}_idx": pl.UInt32}
        ).write_parquet(tmp_path / f"{kind}s.parquet")
    with pytest.raises(DataError, match=r"users.parquet is not in the order of its user_idx, or has an id twice"):
        read_vocabulary(tmp_path)


@pytest.mark.parametrize("latest", [b"", b"..", b"a/b", b".staging-x", b"\xff\x1b[31m", b"a" * 300, b"a\x00b"])
def test_latest_holds_one_name_or_is_named(tmp_path, latest):
    (tmp_path / "LATEST").write_bytes(latest)
    for look in (lambda: find_snapshot(tmp_path), LocalStore(tmp_path).latest_name):
        with pytest.raises(DataError, match=r"^LATEST in .* does not hold the name of a snapshot") as raised:
            look()
        assert str(raised.value).isprintable()


def test_a_file_is_what_its_manifest_says_by_size_bytes_and_rows(file):
    entry = FileEntry(file.name, 10, file.stat().st_size, file_sha256(file))
    assert _as_listed(file, entry)
    assert not _as_listed(file, replace(entry, bytes=entry.bytes + 1))
    assert not _as_listed(file, replace(entry, sha256="0" * 64))
    assert not _as_listed(file, replace(entry, rows=11))


def test_events_of_one_second_are_in_the_order_of_their_trips_and_those_of_a_city_in_that_of_their_file():
    """The files have whole seconds: within a city their order says more, between cities trip, day and id have to do."""
    events = [  # place, second, trip, day, id, city: as read, city by city
        *(
            (0, 5, 4, 1, "a", "Kyoto"),
            (0, 5, 1, 1, "b", "Kyoto"),
            (0, 6, 9, 1, "c", "Kyoto"),
            (1, 5, 0, 1, "d", "Kyoto"),
        ),
        *(
            (0, 5, 2, 1, "e", "Tokyo"),
            (0, 5, 4, 2, "f", "Tokyo"),
            (0, 5, 6, 1, "g", "Tokyo"),
            (0, 7, 1, 1, "h", "Tokyo"),
        ),
    ]
    names = ("place", "timestamp", "trip_idx", "day_number", "event_id", "city")
    rows = pl.DataFrame(events, schema=names, orient="row")
    assert "".join(_merged(rows, keep_order=True)["event_id"]) == "eabfgchd"
    assert "".join(_merged(rows, keep_order=False)["event_id"]) == "beafgchd"
    apart = rows.filter(city="Kyoto")
    assert "".join(_merged(apart, keep_order=True)["event_id"]) == "abcd"


def test_repr_of_a_snapshot_leaves_out_the_manifest():
    snapshot = Snapshot(Path("name"), {"format": 1}, "s3://bucket/snapshots/name", remote=True)
    assert "format" not in repr(snapshot)
    assert "s3://bucket/snapshots/name" in repr(snapshot)

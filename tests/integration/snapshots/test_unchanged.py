"""Files that would be the same as in the newest snapshot are linked: the same bytes, and no other snapshot depends on them."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest

import etl
from etl.errors import DataError
from etl.snapshots.validation import validate_snapshot
from tests.states import database_state, folder_state

OF_ONE_RUN = (
    "snapshot",
    "run_id",
    "started_at",
    "ended_at",
    "profile",
    "linked_from",
    "written",
    "signals_backfilled",
    "files",
)
"""What a manifest says of the run, and not of the data. Of the files, the report and the card tell of the run."""


def manifest_of(result: etl.RunResult) -> dict:
    return json.loads((Path(result.snapshot) / "manifest.json").read_text(encoding="utf-8"))


def data_files(result: etl.RunResult) -> dict[str, Path]:
    found = Path(result.snapshot).rglob("*.parquet")
    return {path.relative_to(result.snapshot).as_posix(): path for path in found}


def inodes(result: etl.RunResult) -> dict[str, int]:
    return {name: path.stat().st_ino for name, path in data_files(result).items()}


def require_valid(result: etl.RunResult) -> None:
    assert not [finding for finding in validate_snapshot(Path(result.snapshot)) if finding.broken]


def require_written(result: etl.RunResult, *before: etl.RunResult) -> None:
    """The run wrote its files: none is one of an earlier snapshot's, and all are as listed."""
    assert "linked_from" not in manifest_of(result)
    for each in before:
        assert not set(inodes(result).values()) & set(inodes(each).values())
    require_valid(result)


@pytest.mark.parametrize("options", [{}, {"split": "last-trip", "task": "triples,next", "buckets": 3, "ids": "both"}])
def test_unchanged_files_are_linked(small_world, settings_for, tmp_path, options):
    """And the snapshot is what it would be without that, counts and warnings included."""
    first = etl.run(settings_for(small_world, **options))
    second = etl.run(settings_for(small_world, **options))
    assert manifest_of(second)["linked_from"] == Path(first.snapshot).name
    assert inodes(second) == inodes(first) != {}
    fresh = etl.run(settings_for(small_world, out=str(tmp_path / "fresh"), **options))
    require_written(fresh, first)
    assert {n: p.read_bytes() for n, p in data_files(second).items()} == {
        n: p.read_bytes() for n, p in data_files(fresh).items()
    }
    own, other = ({k: v for k, v in manifest_of(each).items() if k not in OF_ONE_RUN} for each in (second, fresh))
    assert own == other
    require_valid(second)


def test_an_export_links_what_the_run_before_it_wrote(small_world, settings_for):
    etl.run(settings_for(small_world))
    first, second = etl.export(settings_for(small_world)), etl.export(settings_for(small_world))
    assert manifest_of(second)["linked_from"] == Path(first.snapshot).name
    assert inodes(second) == inodes(first)


def test_a_snapshot_outlives_the_one_that_it_is_linked_from(small_world, settings_for):
    first = etl.run(settings_for(small_world))
    second = etl.run(settings_for(small_world, keep=1))
    assert not Path(first.snapshot).exists()
    require_valid(second)
    third = etl.run(settings_for(small_world, keep=1))
    assert inodes(third)
    require_valid(third)


@pytest.mark.parametrize(
    "options", [{"seed": 1}, {"negatives": "catalog:4"}, {"rows_per_file": 100}, {"min_catalog": 1}]
)
def test_other_options_write_other_files(small_world, settings_for, options):
    first = etl.run(settings_for(small_world))
    require_written(etl.run(settings_for(small_world, **options)), first)


@pytest.mark.parametrize(
    "change",
    [
        """UPDATE "ActivityNode" SET "name" = "name" || '!' WHERE "id" = (SELECT min("id") FROM "ActivityNode")""",
        """UPDATE "ActivityNode" SET "latitude" = 0 WHERE "id" = (SELECT min("id") FROM "ActivityNode")""",
        """UPDATE "ActivityNode" SET "status" = 'archived' WHERE "id" = (SELECT max("id") FROM "ActivityNode")""",
        """UPDATE "ItinerarySlot" SET "status" = 'proposed' WHERE "id" = (
        SELECT s."id" FROM "ItinerarySlot" s JOIN "Trip" t ON t."id" = s."tripId" JOIN "User" u ON u."id" = t."userId"
        WHERE starts_with(u."email", 'shadow-') AND s."status" = 'confirmed' ORDER BY s."id" LIMIT 1)""",
        """UPDATE "Trip" SET "startDate" = "startDate" + interval '1 s' WHERE "id" = (
        SELECT min(t."id") FROM "Trip" t JOIN "User" u ON u."id" = t."userId" WHERE starts_with(u."email", 'shadow-'))""",
    ],
)
def test_whatever_reaches_a_file_writes_all_of_them(small_world, settings_for, change):
    first = etl.run(settings_for(small_world))
    with psycopg.connect(small_world) as connection:
        assert connection.execute(change).rowcount == 1
    second = etl.run(settings_for(small_world))
    require_written(second, first)
    assert manifest_of(second)["content_sha256"] != manifest_of(first)["content_sha256"]


@pytest.mark.parametrize("harm", ["other bytes", "cut", "gone", "link"])
@pytest.mark.parametrize("which", [0, -1])
def test_damaged_files_are_written_again(small_world, settings_for, tmp_path, harm, which):
    """Damage of the newest snapshot does not spread, whichever file has it."""
    first = etl.run(settings_for(small_world))
    path = sorted(data_files(first).values())[which]
    content = path.read_bytes()
    path.unlink()
    if harm == "other bytes":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif harm == "cut":
        path.write_bytes(content[:-1])
    elif harm == "link":
        (tmp_path / "elsewhere").write_bytes(content)
        path.symlink_to(tmp_path / "elsewhere")
    second = etl.run(settings_for(small_world))
    assert "linked_from" not in manifest_of(second)
    require_valid(second)
    assert manifest_of(second)["content_sha256"] == manifest_of(first)["content_sha256"]


def test_a_file_system_without_links_gets_copies_of_its_own(small_world, settings_for, monkeypatch):
    """Also where the links end in the middle: what was linked is not left there."""
    first = etl.run(settings_for(small_world))
    before, linked, link = folder_state(Path(first.snapshot)), [], Path.hardlink_to

    def refused_at_the_third(self: Path, target: Path) -> None:
        linked.append(self)
        if len(linked) == 3:
            raise OSError(1, "Operation not permitted")
        link(self, target)

    monkeypatch.setattr(Path, "hardlink_to", refused_at_the_third)
    second = etl.run(settings_for(small_world))
    assert len(linked) == 3
    require_written(second, first)
    assert manifest_of(second)["content_sha256"] == manifest_of(first)["content_sha256"]
    assert folder_state(Path(first.snapshot)) == before


def test_a_run_that_fails_after_linking_leaves_the_older_files(small_world, settings_for, monkeypatch):
    first = etl.run(settings_for(small_world))
    files, rows = folder_state(Path(first.snapshot)), database_state(small_world)

    def broken(*_: object) -> None:
        raise DataError("no")

    monkeypatch.setattr("etl.pipeline.publication.write_manifest", broken)
    with pytest.raises(DataError):
        etl.run(settings_for(small_world))
    assert folder_state(Path(first.snapshot)) == files
    assert database_state(small_world) == rows

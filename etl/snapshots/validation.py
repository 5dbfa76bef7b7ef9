"""Check a published snapshot against its manifest, and its tables against its events."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from etl.load.constraints import Finding
from etl.runtime.cancellation import CancelToken
from etl.runtime.files import file_sha256
from etl.snapshots.manifest import FileEntry
from etl.snapshots.reading.snapshot import MANIFEST, PROBE, REPORT, STAGING, Snapshot, damaged, read_file
from etl.snapshots.stores.locations import local_snapshot

_POSITIVE = "every triple's positive is one that its event selected"
_NEGATIVE = "no negative is a positive of its event"
_TWICE = "no (event, positive, negative) stands twice"
_ONCE = "every event stands once, in one part of the split"
_ACCOUNT = "every positive is in the triples or counted as left out"
_FLAT = "interactions has every selected item of every event, in its place"
_CHOICE = "every choice of next is an item that its event selected, and no negative of its own"
_ONE_DRAW = "no (choice, negative) stands twice in next"
_CHOICES = "every choice of the manifest is in next"
_BESIDE = frozenset({PROBE, REPORT, *(f"{STAGING}{name}" for name in (PROBE, REPORT, MANIFEST))})
_CHECKS = {
    "events": (_ONCE,),
    "interactions": (_FLAT,),
    "triples": (_POSITIVE, _NEGATIVE, _TWICE, _ACCOUNT),
    "next": (_CHOICE, _ONE_DRAW, _CHOICES),
}
"""The checks of each table, besides those of its files."""
_UNITS = {_ONCE: "events", _ACCOUNT: "positives", _FLAT: "interactions", _CHOICES: "choices"}
"""What is counted by the checks that do not count triples or rows of next."""


def validate_snapshot(
    location: str | Path, environ: Mapping[str, str] | None = None, stop: CancelToken | None = None
) -> list[Finding]:
    """Check a published snapshot against its manifest: the rows, bytes and SHA-256 of every file, and that none is unlisted.

    If these are as listed, also check the tables against each other (`_CHECKS`). Raises DataError if the manifest can't be
    read.
    """
    with local_snapshot(str(location), environ, stop=stop) as opened:
        return _validated(opened)


def _validated(opened: Snapshot) -> list[Finding]:
    snapshot = opened.folder
    listed = opened.files
    there = {p.relative_to(snapshot).as_posix() for p in snapshot.rglob("*") if p.is_file()} - {MANIFEST}
    # A killed probe may leave files that no manifest lists yet. Readers ignore them.
    missing, unlisted = sorted(set(listed) - there), sorted(name for name in there - set(listed) if name not in _BESIDE)
    changed = [name for name in sorted(there & set(listed)) if not _as_listed(snapshot / name, listed[name])]
    findings = [
        Finding("every file of the manifest is there", len(missing), ", ".join(missing[:3])),
        Finding("every file is in the manifest", len(unlisted), ", ".join(unlisted[:3])),
        Finding("every file has the rows, bytes and SHA-256 of the manifest", len(changed), ", ".join(changed[:3])),
    ]
    if any(finding.broken for finding in findings):
        return findings
    try:
        return [*findings, *_training(opened)]
    except pl.exceptions.PolarsError as error:  # a column that is not there, an index past the end
        raise damaged(snapshot, error) from None


def _as_listed(path: Path, entry: FileEntry) -> bool:
    if path.stat().st_size != entry.bytes or file_sha256(path) != entry.sha256:
        return False
    try:
        return path.suffix != ".parquet" or pq.read_metadata(path.absolute()).num_rows == entry.rows
    except (OSError, pa.ArrowException):
        return False


def _training(opened: Snapshot) -> list[Finding]:
    """Check the tables that there are against the events, one partition at a time."""
    items = read_file(opened.folder, "items.parquet", ["item_id"])["item_id"]
    tables = [kind for kind in _CHECKS if opened.data_files(kind)]
    broken = {check: 0 for kind in {"events": None, **dict.fromkeys(tables)} for check in _CHECKS[kind]}
    seen: list[pl.Series] = []
    selected = with_triples = choices = 0
    for folder in sorted({path.parent for _, _, path in opened.data_files("events")}):
        events = _part(opened, folder, ["event_id", "selected_ids"])
        seen.append(events["event_id"])
        positions = pl.int_ranges(1, pl.col("selected_ids").list.len() + 1, dtype=pl.Int32)
        taken = events.with_columns(position=positions).explode(
            "selected_ids", "position", empty_as_null=False, keep_nulls=False
        )
        selected += taken.height
        found = {kind: _rows(opened, kind, folder, items) for kind in tables if kind != "events"}
        with_triples += _pairs(found.get("triples"))
        choices += _pairs(found.get("next"))
        for kind, rows in found.items():
            for check, number in _broken(kind, rows, taken).items():
                broken[check] += number
    published = opened.manifest["published"]
    broken[_ONCE] = sum(map(len, seen)) - (pl.concat(seen).n_unique() if seen else 0)
    if _ACCOUNT in broken:
        broken[_ACCOUNT] = abs(selected - with_triples - sum(published["positives_left_out"].values()))
    if _CHOICES in broken:
        broken[_CHOICES] = abs(choices - published["choices"])
    return [Finding(check, number, unit=_unit(check)) for check, number in broken.items()]


def _unit(check: str) -> str:
    return _UNITS.get(check, "rows of next" if check in _CHECKS["next"] else "triples")


def _pairs(rows: pl.DataFrame | None) -> int:
    """The number of (event, positive) that have a row."""
    return 0 if rows is None else rows.select("event_id", "pos_item").n_unique()


def _broken(kind: str, rows: pl.DataFrame, taken: pl.DataFrame) -> dict[str, int]:
    """Count the violations of the checks of a partition's table; `taken` has one row per (event, selected item)."""
    if kind == "interactions":
        item = taken.rename({"selected_ids": "item_id"}).select("event_id", "item_id", "position")
        more, less = (a.join(b, on=item.columns, how="anti").height for a, b in ((rows, item), (item, rows)))
        return {_FLAT: max(more, less, abs(rows.height - item.height))}
    right = taken.select("event_id", pos_item="selected_ids")
    unknown = rows.join(right, on=["event_id", "pos_item"], how="anti").height
    twice = rows.height - rows.select("event_id", "pos_item", "neg_item").n_unique()
    if kind == "next":
        return {_CHOICE: unknown + rows.filter(pl.col("pos_item") == pl.col("neg_item")).height, _ONE_DRAW: twice}
    of_event = ["event_id", "neg_item"], ["event_id", "pos_item"]
    negative = rows.join(right, left_on=of_event[0], right_on=of_event[1], how="semi").height
    return {_POSITIVE: unknown, _NEGATIVE: negative, _TWICE: twice}


def _rows(opened: Snapshot, kind: str, events: Path, items: pl.Series) -> pl.DataFrame:
    """The rows of a table in the partition of some events, with ids as texts."""
    folder = opened.folder / kind / events.relative_to(opened.folder / "events")
    texts = ["event_id", "item_id", "position"] if kind == "interactions" else ["event_id", "pos_item", "neg_item"]
    if not folder.is_dir():
        types = {"position": pl.Int32}
        return pl.DataFrame(schema={name: types.get(name, pl.String) for name in texts})
    rows = _part(opened, folder)
    if texts[1] in rows.columns:
        return rows.select(texts)
    indexes = {f"{side}_item": items[rows[f"{side}_idx"].cast(pl.Int64)] for side in ("pos", "neg")}
    return rows.select("event_id").with_columns(**indexes)


def _part(opened: Snapshot, folder: Path, columns: list[str] | None = None) -> pl.DataFrame:
    names = sorted(path.relative_to(opened.folder).as_posix() for path in folder.glob("*.parquet"))
    return pl.concat([read_file(opened.folder, name, columns) for name in names])

"""Check a published snapshot against its manifest, and its events, splits and triples against each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from etl.load.constraints import Finding
from etl.runtime.cancellation import CancelToken
from etl.runtime.files import file_sha256
from etl.snapshots.locations import local_snapshot
from etl.snapshots.manifest import FileEntry
from etl.snapshots.reader import MANIFEST, PROBE, REPORT, STAGING, Snapshot, damaged, read_file

_POSITIVE = "every triple's positive is one that its event selected"
_NEGATIVE = "no negative is a positive of its event"
_TWICE = "no (event, positive, negative) stands twice"
_ONCE = "every event stands once, in one part of the split"
_ACCOUNT = "every positive is in the triples or counted as left out"
_BESIDE = frozenset({PROBE, REPORT, *(f"{STAGING}{name}" for name in (PROBE, REPORT, MANIFEST))})
_TRAINING = (_POSITIVE, _NEGATIVE, _TWICE, _ONCE, _ACCOUNT)
_UNITS = {_ONCE: "events", _ACCOUNT: "positives"}
"""What is counted by the checks that do not count triples."""


def validate_snapshot(
    location: str | Path, environ: Mapping[str, str] | None = None, stop: CancelToken | None = None
) -> list[Finding]:
    """Check a published snapshot against its manifest: the rows, bytes and SHA-256 of every file, and that none is unlisted.

    If these are as listed, also check the events, splits and triples (`_TRAINING`). Raises DataError if the manifest can't be
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
    """Check events, splits and triples, one partition at a time."""
    items = read_file(opened.folder, "items.parquet", ["item_id"])["item_id"]
    broken = dict.fromkeys(_TRAINING, 0)
    seen: list[pl.Series] = []
    selected = with_triples = 0
    for folder in sorted({path.parent for _, _, path in opened.data_files("events")}):
        events = _part(opened, folder, ["event_id", "selected_ids"])
        seen.append(events["event_id"])
        taken = events.explode("selected_ids", empty_as_null=False, keep_nulls=False)
        selected += taken.height
        triples = opened.folder / "triples" / folder.relative_to(opened.folder / "events")
        if triples.is_dir():
            rows = _texts(_part(opened, triples), items)
            with_triples += rows.select("event_id", "pos_item").n_unique()
            for check, number in _broken(rows, taken).items():
                broken[check] += number
    broken[_ONCE] = sum(map(len, seen)) - (pl.concat(seen).n_unique() if seen else 0)
    left_out = sum(opened.manifest["published"]["positives_left_out"].values())
    broken[_ACCOUNT] = abs(selected - with_triples - left_out)
    return [Finding(check, number, unit=_UNITS.get(check, "triples")) for check, number in broken.items()]


def _broken(triples: pl.DataFrame, taken: pl.DataFrame) -> dict[str, int]:
    """Count the violations of each check of a partition's triples; `taken` has one row per (event, selected item)."""
    right = taken.rename({"selected_ids": "pos_item"})
    return {
        _POSITIVE: triples.join(right, on=["event_id", "pos_item"], how="anti").height,
        _NEGATIVE: triples.join(
            right, left_on=["event_id", "neg_item"], right_on=["event_id", "pos_item"], how="semi"
        ).height,
        _TWICE: triples.height - triples.select("event_id", "pos_item", "neg_item").n_unique(),
    }


def _part(opened: Snapshot, folder: Path, columns: list[str] | None = None) -> pl.DataFrame:
    names = sorted(path.relative_to(opened.folder).as_posix() for path in folder.glob("*.parquet"))
    return pl.concat([read_file(opened.folder, name, columns) for name in names])


def _texts(triples: pl.DataFrame, items: pl.Series) -> pl.DataFrame:
    """The event and the items of triples as ids, also if they were published as indexes."""
    if "pos_item" in triples.columns:
        return triples.select("event_id", "pos_item", "neg_item")
    return triples.select(
        "event_id", pos_item=items[triples["pos_idx"].cast(pl.Int64)], neg_item=items[triples["neg_idx"].cast(pl.Int64)]
    )

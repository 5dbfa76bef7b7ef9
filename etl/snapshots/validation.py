"""A published snapshot against its manifest, and the laws of its events, splits and triples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from etl.load.constraints import Finding
from etl.runtime.cancellation import CancelToken
from etl.runtime.files import file_sha256
from etl.snapshots.locations import local_snapshot
from etl.snapshots.reader import MANIFEST, PROBE, REPORT, STAGING, Snapshot, damaged, read_file

_POSITIVE = "every triple's positive is one that its event selected"
_NEGATIVE = "no negative is a positive of its event"
_TWICE = "no (event, positive, negative) stands twice"
_ONCE = "every event stands once, in one part of the split"
_ACCOUNT = "every positive is in the triples or counted as left out"
_BESIDE = frozenset({PROBE, REPORT, *(f"{STAGING}{name}" for name in (PROBE, REPORT, MANIFEST))})
_TRAINING = (_POSITIVE, _NEGATIVE, _TWICE, _ONCE, _ACCOUNT)


def validate_snapshot(
    location: str | Path, environ: Mapping[str, str] | None = None, stop: CancelToken | None = None
) -> list[Finding]:
    """Check a published snapshot against its manifest: every file's rows, bytes and SHA-256, and that no file is unlisted.

    Also the laws of events, splits and triples (`_TRAINING`), where the files are what they were. Raises DataError when the
    manifest can't be read.
    """
    with local_snapshot(str(location), environ, stop=stop) as opened:
        return _validated(opened)


def _validated(opened: Snapshot) -> list[Finding]:
    snapshot = opened.folder
    listed = {entry["path"]: entry for entry in opened.manifest["files"]}
    there = {p.relative_to(snapshot).as_posix() for p in snapshot.rglob("*") if p.is_file()} - {MANIFEST}
    # What a probe that was killed has left is nothing that anybody reads: the manifest names it when it is whole.
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


def _as_listed(path: Path, entry: dict[str, Any]) -> bool:
    if path.stat().st_size != entry["bytes"]:
        return False
    if file_sha256(path) != entry["sha256"]:
        return False
    try:
        return path.suffix != ".parquet" or pq.read_metadata(path.absolute()).num_rows == entry["rows"]
    except (OSError, pa.ArrowException):
        return False


def _training(opened: Snapshot) -> list[Finding]:
    """The laws of events, splits and triples, a partition at a time."""
    items = read_file(opened.folder, "items.parquet", ["item_id"])["item_id"]
    broken = dict.fromkeys(_TRAINING, 0)
    seen: list[pl.Series] = []
    selected = told = 0
    for folder in sorted({path.parent for _, _, path in opened.data_files("events")}):
        events = _part(opened, folder, ["event_id", "selected_ids"])
        seen.append(events["event_id"])
        taken = events.explode("selected_ids", empty_as_null=False, keep_nulls=False)
        selected += taken.height
        triples = opened.folder / "triples" / folder.relative_to(opened.folder / "events")
        if triples.is_dir():
            rows = _texts(_part(opened, triples), items)
            told += rows.select("event_id", "pos_item").n_unique()
            for law, number in _broken(rows, taken).items():
                broken[law] += number
    broken[_ONCE] = sum(map(len, seen)) - (pl.concat(seen).n_unique() if seen else 0)
    left_out = sum(opened.manifest["published"]["positives_left_out"].values())
    broken[_ACCOUNT] = abs(selected - told - left_out)
    return [Finding(law, number) for law, number in broken.items()]


def _broken(triples: pl.DataFrame, taken: pl.DataFrame) -> dict[str, int]:
    """How often each law of a partition's triples is broken; `taken` has a row per (event, node selected)."""
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
    """The triples' event and nodes as texts, also where they were published as indexes."""
    if "pos_item" in triples.columns:
        return triples.select("event_id", "pos_item", "neg_item")
    return triples.select(
        "event_id", pos_item=items[triples["pos_idx"].cast(pl.Int64)], neg_item=items[triples["neg_idx"].cast(pl.Int64)]
    )

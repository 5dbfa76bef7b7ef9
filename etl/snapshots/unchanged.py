"""Link the data files of the newest snapshot where writing them again would give the same bytes.

Files depend on the dataset, the options, the code and the libraries alone. A manifest records a hash of these. Where it is that
of the newest snapshot, its files are linked into the new one: nothing is generated, encoded or written.
"""

from __future__ import annotations

import hashlib
import shutil
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from etl.runtime.executor import versions
from etl.runtime.files import file_sha256
from etl.snapshots.manifest import DataSummary, PartitionEntry, file_entries
from etl.snapshots.reading.snapshot import SNAPSHOTS
from etl.snapshots.stores.store import LocalStore, Store
from etl.snapshots.writer import StageOptions
from etl.transform.hashing import update_with_frame
from etl.triples.dataset import Dataset

_CODE = ("snapshots", "transform", "triples")
"""The packages that decide the bytes of files. A release under development changes without another version."""


def inputs_sha256(dataset: Dataset, options: StageOptions) -> str | None:
    """Return the hash of all that decides the data files; None where that of the events is not known."""
    if dataset.events.sha256 is None:
        return None
    digest = hashlib.sha256(repr((options, dataset.events.sha256, versions(), _code_sha256())).encode())
    for frame in (dataset.users, dataset.items, dataset.trips):
        update_with_frame(digest, frame)
    return digest.hexdigest()


@cache
def _code_sha256() -> str:
    digest = hashlib.sha256()
    for file in sorted(file for package in _CODE for file in (Path(__file__).parents[1] / package).rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def link_data_files(store: Store, inputs: str | None, folder: Path) -> DataSummary | None:
    """Link the newest snapshot's data files into an empty folder. Returns their summary; None where they must be written.

    That is so for other inputs, in an object store, on a file system without hard links, and where a file is not what the
    manifest says: then nothing is left in the folder.
    """
    latest = store.latest() if inputs is not None and isinstance(store, LocalStore) else None
    if latest is None or latest.get("inputs_sha256") != inputs:
        return None
    summary, source = _summary_of(latest), Path(store.location) / SNAPSHOTS / str(store.latest_name())
    if summary.content_sha256 == latest["content_sha256"] and all(
        _linked(source / each.path, folder / each.path, each.sha256) for each in summary.files
    ):
        return summary
    for left in folder.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    return None


def _linked(source: Path, path: Path, sha256: str) -> bool:
    """Link a file, and return whether it is a regular one of this hash."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(source)
        return not path.is_symlink() and file_sha256(path) == sha256
    return False


def _summary_of(manifest: dict[str, Any]) -> DataSummary:
    """Return what was staged for a snapshot, from its manifest."""
    published = manifest["published"]
    summary = DataSummary(
        files=[each for each in file_entries(manifest) if each.path.endswith(".parquet")],
        folders=manifest["cities"],
        partitions=msgspec.convert(published["partitions"], list[PartitionEntry]),
        neg_sources=published["triples_by_neg_source"],
        exhausted_users=published["users_with_whole_catalog_seen"],
        popularity_correlation=published["signs"],
        tasks=tuple(manifest["settings"]["task"]),
        linked_from=manifest["snapshot"],
    )
    same = (
        "positives_left_out",
        "positives_in_another_city",
        "choices_left_out",
        "cities_left_out",
        "negatives",
        "split",
    )
    return replace(summary, **{name: published[name] for name in same if name in published})

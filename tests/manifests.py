"""A manifest that can be read, of a snapshot without files: a start for those that tests need."""

from typing import Any

SOUND: dict[str, Any] = {
    "snapshot": "20261128T030000000000Z-0123456789ab",
    "content_sha256": "0" * 64,
    "run_id": "0",
    "started_at": "2026-11-28T03:00:00+00:00",
    "ended_at": "2026-11-28T03:00:01+00:00",
    "tool": {"name": "bpr-etl", "version": "0"},
    "libraries": {},
    "settings": {"negatives": ["ranking"], "split": "none", "audience": "shadow", "rows_per_file": 1},
    "profile": {"steps": [], "seconds": 1.0, "peak_mib": 1},
    "warnings": [],
    "published": {
        "events": {},
        "triples": {},
        "triples_by_neg_source": {},
        "positives_left_out": {},
        "cities_left_out": {},
        "negatives": {},
        "signs": {},
        "split": {},
        "partitions": [],
        **dict.fromkeys(("positives", "users", "items", "users_with_whole_catalog_seen", "items_gone"), 0),
    },
    "cities": {},
    "files": [],
}

FILE: dict[str, Any] = {"path": "events/city=Rome/part-00000.parquet", "rows": 1, "bytes": 1, "sha256": "0" * 64}

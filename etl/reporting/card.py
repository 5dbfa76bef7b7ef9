"""README.md: a snapshot's dataset card, for people and for Hugging Face `datasets`, which reads its header.

It depends on the manifest and the columns of the files alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

TABLES = {
    "triples": "One row per (event, positive, negative): the user preferred the positive.",
    "next": "One row per (choice of the next place, negative), with the place before and distances.",
    "interactions": "One row per selected item of an event, in visiting order.",
    "events": "One row per ranking event, with its lists of items.",
    "users": "One row per user, in the order of `user_idx`, with persona features and counts in train.",
    "items": "One row per item, in the order of `item_idx`, with counts in train.",
    "trips": "One row per trip that has a published event.",
}
"""The tables in the order of the card, and their rows."""

_HISTORY = {
    "n_before": "how often the user selected it before",
    "days_since": "days since the user last selected it; null if never",
}
COLUMNS = {
    **dict.fromkeys(("user_id", "item_id", "event_id", "trip_id"), "id in the source database"),
    **dict.fromkeys(("user_idx",), "row number in users.parquet"),
    **dict.fromkeys(("item_idx", "prev_idx", "pos_idx", "neg_idx"), "row number in items.parquet"),
    "pos_item": "item that was selected",
    "neg_item": "item that was not selected",
    "prev_item": "item selected before it in the trip",
    "timestamp": "time of the event, seconds since 1970, UTC",
    "day_number": "day of the trip",
    "neg_source": "where the negative comes from: ranking, shown or catalog",
    "pos_in_candidates": "whether the positive was one of the event's candidates",
    "weight": "weight of the row in the loss",
    "step": "number of the choice in its trip, from 1",
    "same_day": "whether `prev_item` is of the same day",
    "pos_km": "distance from `prev_item` to the positive in km; null if unknown",
    "neg_km": "distance from `prev_item` to the negative in km; null if unknown",
    "is_new": "whether the user selects the item for the first time",
    "position": "place among the day's selected items, from 1",
    **{f"pos_{name}": f"positive: {text}" for name, text in _HISTORY.items()},
    **{f"neg_{name}": f"negative: {text}" for name, text in _HISTORY.items()},
    "surface": "where in the application the ranking was made",
    "model_name": "model that made the ranking",
    "model_version": "version of that model",
    "candidate_ids": "items that could be ranked",
    "ranked_ids": "items in the order of the ranking",
    "selected_ids": "items that were selected, in visiting order",
    "shown_ids": "other items of the day, in visiting order",
    "city": "city",
    "category": "category",
    "name": "name",
    "latitude": "degrees north",
    "longitude": "degrees east",
    "status": "state of the row in the source database, or `gone`",
    "start_us": "start of the trip, microseconds since 1970; null if out of range",
    "n_trips": "trips in train",
    "n_events": "events in train",
    "n_selected": "selections in train",
    "n_triples": "triples in train",
    "n_candidate": "events in train that had it as a candidate",
    "n_positive": "triples in train that have it as the positive",
    "n_negative": "triples in train that have it as the negative",
    "n_users": "users who selected it in train",
}
"""The meaning of each column. Persona features are described by `describe`."""


def describe(column: str) -> str:
    """The meaning of a column; of one of the persona features if it is no other."""
    if column in COLUMNS:
        return COLUMNS[column]
    for end, text in (("_confidence", "confidence in the value, 0 to 1"), ("_source", "where the value comes from")):
        if column.endswith(end):
            return f"`{column.removesuffix(end)}`: {text}"
    return "affinity to the category" if column.startswith("affinity_") else "persona dimension"


def build_card(manifest: Mapping[str, Any], folder: Path) -> str:
    """Build the card of a staged snapshot from its manifest and the footers of one file per table in `folder`."""
    counts = _counts(manifest)
    parts = list(_header(counts)) + list(_body(manifest, counts))
    for table in counts:
        schema = pq.read_schema(
            next(folder / each["path"] for each in manifest["files"] if _table(each["path"]) == table).absolute()
        )
        parts += [f"\n### {table}\n", TABLES[table], "", "| column | type | meaning |", "|---|---|---|"]
        parts += [f"| `{field.name}` | {_type(field)} | {describe(field.name)} |" for field in schema]
    return "\n".join(parts) + "\n"


def _table(path: str) -> str:
    return path.split("/", 1)[0].removesuffix(".parquet")


def _type(field: Any) -> str:
    return str(field.type).replace("<element: ", " of ").replace(">", "")


def _counts(manifest: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """The rows of each table by part of the split; without a split, and for whole files, under an empty name."""
    found: dict[str, dict[str, int]] = {}
    for entry in manifest["files"]:
        table, *folders = entry["path"].split("/")
        if not entry["path"].endswith(".parquet"):
            continue
        part = folders[0].removeprefix("split=") if folders and folders[0].startswith("split=") else ""
        parts = found.setdefault(table.removesuffix(".parquet"), {})
        parts[part] = parts.get(part, 0) + entry["rows"]
    return {table: found[table] for table in TABLES if table in found}


def _header(counts: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """The header for Hugging Face: the files of each part of each table. It refuses parts without rows."""
    yield from ("---", "tags: [recommender-systems, bpr, implicit-feedback]", "configs:")
    for table, parts in counts.items():
        with_rows = [part for part in ("train", "valid", "test", "") if parts.get(part)]
        if not with_rows:
            continue
        yield f"- config_name: {table}"
        if table == next(iter(counts)):
            yield "  default: true"
        yield "  data_files:"
        for part in with_rows:
            yield f"  - split: {part or 'train'}"
            yield f"    path: {json.dumps(_pattern(table, part))}"
    yield "---"


def _pattern(table: str, part: str) -> str:
    if table in {"users", "items", "trips"}:
        return f"{table}.parquet"
    return f"{table}/{f'split={part}/' if part else ''}city=*/*.parquet"


def _body(manifest: Mapping[str, Any], counts: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    tool, main = manifest["tool"], next(iter(counts))
    yield f"""
# {manifest["snapshot"]}

Training data for ranking places by preference (Bayesian Personalized Ranking), made from a trip planner's database by
{tool["name"]} {tool["version"]}. Content hash `{manifest["content_sha256"]}`. The data of the tables never change; the
manifest lists every file with its rows and SHA-256.

## Tables and splits

| table | split | rows |
|---|---|---:|"""
    for table, parts in counts.items():
        for part, rows in parts.items():
            yield f"| {table} | {part or 'all rows'} | {rows:,} |"
    yield f"""
{len(manifest["cities"]):,} cities. Files are partitioned by `split` (if there is one) and `city`. A city's folder is its
percent-encoded name; `cities` in manifest.json has the full names. Train on `train` only.

## How to load it

`path` is this folder.

```python
# bpr-etl: real names of cities, only the files that are asked for; `batches` and `torch` for training
import bpr_etl

rows = bpr_etl.open_snapshot(path).scan("{main}", split="train").collect()
```

```python
import polars as pl

keys = {{"split": pl.String, "city": pl.String}}
rows = pl.scan_parquet(f"{{path}}/{main}/**/*.parquet", hive_schema=keys).collect()
```

```python
import pandas as pd

items = pd.read_parquet(f"{{path}}/items.parquet", partitioning=None)
```

```python
import duckdb

rows = duckdb.sql(f"FROM read_parquet('{{path}}/{main}/**/*.parquet', hive_types_autocast=false)").pl()
```

```python
from datasets import load_dataset  # a part without rows is left out; cities are no column

rows = load_dataset(path, "{main}")
```

## How it was made

Settings that decide the data:

```json
{json.dumps(manifest["settings"], indent=2, ensure_ascii=False, sort_keys=True)}
```

## Licence and personal data

Licence: to be stated by the owner of the data. Ids are those of the source database: the rows say where each user went and
when. Name the snapshot and its content hash to cite it.

## Columns"""

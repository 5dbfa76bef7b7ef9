"""Two published snapshots side by side: what came, what went, what moved. Reads their files; nothing is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from etl.errors import DataError
from etl.reporting.drift import Drift, drift
from etl.reporting.history import Change, changes, run_metrics
from etl.snapshots.reader import Snapshot
from etl.transform.schemas import DIMENSIONS

REQUIRED_FILES = ("users.parquet", "items.parquet", "events/")
"""How the paths begin of the files that are read."""

_GONE = "gone"
_NUMBERS = ("cuisine_openness",)
_TEXTS = tuple(name for name in DIMENSIONS if name not in {*_NUMBERS, "category_affinities"})
_DECILES = 10


@dataclass(frozen=True)
class City:
    """A city's events and triples, before and after; None where the snapshot has no such city, or no triples of it."""

    name: str
    events: tuple[int | None, int | None]
    triples: tuple[int | None, int | None]


@dataclass(frozen=True)
class SetChange:
    """Users or items of two snapshots: how many there were and are, how many came and went."""

    before: int
    after: int
    added: int
    gone: int


@dataclass(frozen=True)
class Comparison:
    """What differs between two snapshots. `same_data`: their data files are equal, byte by byte.

    `statuses` counts items by (status before, status after), where that changed; `moved_items` those whose city or category
    did. `settings` has what decided and differs, as (before, after).
    """

    before: str
    after: str
    same_data: bool
    settings: Mapping[str, tuple[Any, Any]]
    figures: list[Change]
    users: SetChange
    items: SetChange
    statuses: Mapping[tuple[str, str], int]
    moved_items: int
    cities: list[City]
    drifts: list[Drift]

    def facts(self) -> dict[str, Any]:
        """What `--json` prints."""
        return asdict(self) | {
            "settings": {name: {"before": old, "after": new} for name, (old, new) in self.settings.items()},
            "statuses": [{"before": old, "after": new, "items": n} for (old, new), n in self.statuses.items()],
            "cities": [
                {
                    "city": city.name,
                    **{f"{what}_{when}": getattr(city, what)[i] for what in ("events", "triples") for i, when in _WHEN},
                }
                for city in self.cities
            ],
            "drifts": [asdict(each) | {"mover": _top_contributor(each)} for each in self.drifts],
        }


_WHEN = ((0, "before"), (1, "after"))


def _top_contributor(found: Drift) -> dict[str, Any] | None:
    return dict(zip(("group", "before", "after"), found.mover, strict=True)) if found.mover else None


def compare_snapshots(before: Snapshot, after: Snapshot) -> Comparison:
    """Compare two snapshots, each as it lies on this machine. Raises DataError where a file can't be read."""
    try:
        users, items = _set_change(before, after, "user"), _set_change(before, after, "item")
        both = _common_items(before, after)
        statuses = both.filter(pl.col("status") != pl.col("status_after")).group_by("status", "status_after").len()
        moved = (pl.col(name).ne_missing(pl.col(f"{name}_after")) for name in ("city", "category"))
        return Comparison(
            before.manifest["snapshot"],
            after.manifest["snapshot"],
            before.manifest["content_sha256"] == after.manifest["content_sha256"],
            _settings(before, after),
            changes(run_metrics(before.manifest), run_metrics(after.manifest)),
            users,
            items,
            {(old, new): n for old, new, n in statuses.sort("status", "status_after").iter_rows()},
            both.filter(pl.any_horizontal(*moved)).height,
            _cities(before, after),
            [each for each in _drifts(before, after) if each is not None],
        )
    except PermissionError:  # no fault of the snapshot's
        raise
    except (pl.exceptions.PolarsError, OSError, KeyError) as error:
        raise DataError(
            f"The snapshots can't be compared ({error}). `bpr-etl validate --snapshot` says whether each is whole."
        ) from None


def _settings(before: Snapshot, after: Snapshot) -> dict[str, tuple[Any, Any]]:
    names = sorted({*before.settings, *after.settings})
    pairs = {name: (before.settings.get(name), after.settings.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _scan(snapshot: Snapshot, name: str) -> pl.LazyFrame:
    # Absolute and no pattern: a folder may be called out[1] or file:x.
    return pl.scan_parquet((snapshot.folder / name).absolute(), glob=False, hive_partitioning=False)


def _present(snapshot: Snapshot, kind: str) -> pl.LazyFrame:
    """Users or items, but for those that only an earlier vocabulary or an event still names."""
    rows = _scan(snapshot, f"{kind}s.parquet")
    return rows.filter(pl.col("status") != _GONE) if "status" in rows.collect_schema() else rows


def _set_change(before: Snapshot, after: Snapshot, kind: str) -> SetChange:
    key = f"{kind}_id"
    old, new = (_present(each, kind).select(key) for each in (before, after))
    counts = pl.collect_all(
        [
            old.select(pl.len()),
            new.select(pl.len()),
            new.join(old, on=key, how="anti").select(pl.len()),
            old.join(new, on=key, how="anti").select(pl.len()),
        ]
    )
    return SetChange(*(int(each.item()) for each in counts))


def _common_items(before: Snapshot, after: Snapshot) -> pl.DataFrame:
    columns = ("item_id", "status", "city", "category")
    old, new = (_scan(each, "items.parquet").select(columns) for each in (before, after))
    return old.join(new, on="item_id", how="inner", suffix="_after").collect()


def _cities(before: Snapshot, after: Snapshot) -> list[City]:
    """Every city of either, the largest move of triples first."""

    def of(snapshot: Snapshot, what: str) -> Mapping[str, int]:
        return dict(snapshot.manifest["published"][what])

    events, triples = ([of(each, what) for each in (before, after)] for what in ("events", "triples"))
    names = sorted({*events[0], *events[1]}, key=str.encode)
    cities = [
        City(name, (events[0].get(name), events[1].get(name)), (triples[0].get(name), triples[1].get(name)))
        for name in names
    ]
    return sorted(cities, key=lambda city: -abs((city.triples[1] or 0) - (city.triples[0] or 0)))


def _drifts(before: Snapshot, after: Snapshot) -> Iterator[Drift | None]:
    pairs = zip(_selection_counts(before), _selection_counts(after), strict=True)
    for name, (old, new) in zip(("positives over items", "positives over categories"), pairs, strict=True):
        yield drift(name, old, new)
    yield drift("triples over cities", *(each.manifest["published"]["triples"] for each in (before, after)))
    for dimension in _TEXTS:
        yield drift(f"users' {dimension}", *(_labels(each, dimension) for each in (before, after)))
    for dimension in _NUMBERS:
        yield drift(f"users' {dimension}", *_deciles(before, after, dimension))


def _selection_counts(snapshot: Snapshot) -> tuple[dict[str, float], dict[str, float]]:
    """How often each item was selected, by its name with the start of its id, and each category."""
    parts = [
        _scan(snapshot, path.relative_to(snapshot.folder).as_posix()) for _, _, path in snapshot.data_files("events")
    ]
    if not parts:
        return {}, {}
    chosen = (
        pl.concat([part.select(item_id="selected_ids") for part in parts])
        .explode("item_id")
        .drop_nulls()
        .group_by("item_id")
        .len("rows")
    )
    items = _scan(snapshot, "items.parquet").select("item_id", "category", "name")
    rows = chosen.join(items, on="item_id", how="left").collect(engine="streaming")
    named = rows.select(pl.format("{} ({})", pl.col("name").fill_null("?"), "item_id"), "rows")
    by_category = rows.group_by(pl.col("category").fill_null("?")).agg(pl.col("rows").sum())
    return _counts(named), _counts(by_category)


def _counts(rows: pl.DataFrame) -> dict[str, float]:
    return {str(group): float(number) for group, number in rows.iter_rows()}


def _labels(snapshot: Snapshot, dimension: str) -> dict[str, float]:
    """Users by the value of a dimension; those without a persona have none."""
    return _counts(_present(snapshot, "user").select(dimension).drop_nulls().group_by(dimension).len().collect())


def _deciles(before: Snapshot, after: Snapshot, dimension: str) -> tuple[dict[str, float], dict[str, float]]:
    """Users by the tenths that the earlier snapshot's values fall into."""
    old, new = (
        _present(each, "user").select(pl.col(dimension).cast(pl.Float64)).drop_nulls().collect()[dimension]
        for each in (before, after)
    )
    cuts = sorted({old.quantile(step / _DECILES) or 0.0 for step in range(1, _DECILES)}) if len(old) else []
    return _binned(old, cuts), _binned(new, cuts)


def _binned(values: pl.Series, cuts: list[float]) -> dict[str, float]:
    """How many values lie between two cuts each, by words for them."""
    bounds = ["the least", *(f"{cut:g}" for cut in cuts), "the most"]
    places, rows = np.unique(np.searchsorted(cuts, values.to_numpy(), side="left"), return_counts=True)
    return {f"{bounds[place]} to {bounds[place + 1]}": float(n) for place, n in zip(places, rows, strict=True)}

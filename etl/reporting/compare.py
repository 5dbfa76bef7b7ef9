"""Compare two published snapshots: settings, metrics, users, items, cities, and how far distributions have moved.

The drift of a distribution is its population stability index: PSI = sum over groups of (after - before) * ln(after / before),
in shares. The customary thresholds are 0.10 and 0.25 (N. Siddiqi, "Credit Risk Scorecards", Wiley 2006). With few rows or many
groups PSI is high by chance alone: about a chi-square variable of groups - 1 degrees of freedom, times 1/n + 1/m (Yurdakul and
Naranjo, "Statistical properties of the population stability index", J. Risk Model Validation 14(4), 2020). What chance can
reach is therefore added to both thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import polars as pl

from etl.errors import DataError
from etl.reporting.history import Metric, run_metrics
from etl.snapshots.reading.snapshot import Snapshot
from etl.transform.schemas import DIMENSIONS
from etl.triples.dataset import GONE

REQUIRED_FILES = ("users.parquet", "items.parquet", "events/")
"""Prefixes of the paths that are read."""

MODERATE, MUCH = 0.10, 0.25
STEADY, MOVED, MOVED_MUCH = "steady", "moved", "moved much"
OTHERS = "(all that are rare)"

_RARE = 5.0
"""Groups with fewer rows (mean of both snapshots) are pooled, as for a chi-square test (Cochran, Biometrics 10, 1954)."""

_UNSEEN = 0.5
"""Rows that an empty group counts as: a share of 0 has no logarithm."""

_DEVIATIONS = 2.0
_OPENNESS = "cuisine_openness"
_TEXTS = tuple(name for name in DIMENSIONS if name not in {_OPENNESS, "category_affinities"})
_DECILES = 10

Distribution = Mapping[str, float]
"""Rows by group."""


@dataclass(frozen=True)
class CityChange:
    """Events and triples of a city; None where the snapshot lacks the city, or has no triples of it."""

    city: str
    events_before: int | None
    events_after: int | None
    triples_before: int | None
    triples_after: int | None


@dataclass(frozen=True)
class SetChange:
    """Numbers of users or items of two snapshots."""

    before: int
    after: int
    added: int
    gone: int


@dataclass(frozen=True)
class Drift:
    """How far a distribution has moved: its PSI over `groups` groups, the PSI that chance can reach, and the verdict.

    `mover` is the group that contributes most, with its shares `before` and `after`; None where there is none.
    """

    name: str
    psi: float
    groups: int
    chance: float
    verdict: str
    mover: Mapping[str, Any] | None


@dataclass(frozen=True)
class Comparison:
    """The differences of two snapshots.

    `same_data`: their data files are equal, byte by byte. `settings` has the differing settings, `before` and `after`.
    `statuses` counts `items` by status `before` and `after` where it changed. `moved_items` counts the items whose city or
    category changed.
    """

    before: str
    after: str
    same_data: bool
    settings: Mapping[str, Mapping[str, Any]]
    figures: list[Metric]
    users: SetChange
    items: SetChange
    statuses: list[dict[str, Any]]
    moved_items: int
    cities: list[CityChange]
    drifts: list[Drift]

    def facts(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        figures = [
            {"name": each.name, "before": each.before, "after": each.value, "share": each.change}
            for each in self.figures
        ]
        return asdict(self) | {"figures": figures}


def compare_snapshots(before: Snapshot, after: Snapshot) -> Comparison:
    """Compare two local snapshots. Raises DataError where a file can't be read."""
    try:
        users, items = _set_change(before, after, "user"), _set_change(before, after, "item")
        both = _common_items(before, after)
        changed = both.filter(pl.col("status") != pl.col("status_after"))
        statuses = changed.group_by(before="status", after="status_after").len("items").sort("before", "after")
        moved = (pl.col(name).ne_missing(pl.col(f"{name}_after")) for name in ("city", "category"))
        old, new = run_metrics(before.manifest), run_metrics(after.manifest)
        names = sorted({*before.settings, *after.settings})
        settings = {name: {"before": before.settings.get(name), "after": after.settings.get(name)} for name in names}
        return Comparison(
            before.manifest["snapshot"],
            after.manifest["snapshot"],
            before.manifest["content_sha256"] == after.manifest["content_sha256"],
            {name: pair for name, pair in settings.items() if pair["before"] != pair["after"]},
            [Metric(name, value, old[name]) for name, value in new.items() if name in old],
            users,
            items,
            statuses.to_dicts(),
            both.filter(pl.any_horizontal(*moved)).height,
            _cities(before, after),
            [each for each in _drifts(before, after) if each is not None],
        )
    except PermissionError:  # the snapshot itself is not at fault
        raise
    except (pl.exceptions.PolarsError, OSError, KeyError) as error:
        raise DataError(
            f"The snapshots can't be compared ({error}). `bpr-etl validate --snapshot` says whether each is whole."
        ) from None


def _scan(snapshot: Snapshot, name: str) -> pl.LazyFrame:
    # Absolute, without globbing: a folder may be called out[1] or file:x.
    return pl.scan_parquet((snapshot.folder / name).absolute(), glob=False, hive_partitioning=False)


def _present(snapshot: Snapshot, kind: str) -> pl.LazyFrame:
    """Return users or items without those that only an earlier vocabulary or an event still names."""
    rows = _scan(snapshot, f"{kind}s.parquet")
    return rows.filter(pl.col("status") != GONE) if "status" in rows.collect_schema() else rows


def _set_change(before: Snapshot, after: Snapshot, kind: str) -> SetChange:
    key = f"{kind}_id"
    old, new = (_present(each, kind).select(key) for each in (before, after))
    sets = (old, new, new.join(old, on=key, how="anti"), old.join(new, on=key, how="anti"))
    return SetChange(*(int(each.item()) for each in pl.collect_all([rows.select(pl.len()) for rows in sets])))


def _common_items(before: Snapshot, after: Snapshot) -> pl.DataFrame:
    columns = ("item_id", "status", "city", "category")
    old, new = (_scan(each, "items.parquet").select(columns) for each in (before, after))
    return old.join(new, on="item_id", how="inner", suffix="_after").collect()


def _cities(before: Snapshot, after: Snapshot) -> list[CityChange]:
    """Return every city of either snapshot, the largest change of triples first."""
    old, new = (each.manifest["published"] for each in (before, after))
    cities = [
        CityChange(name, *(each[what].get(name) for what in ("events", "triples") for each in (old, new)))
        for name in sorted({*old["events"], *new["events"]}, key=str.encode)
    ]
    return sorted(cities, key=lambda city: -abs((city.triples_after or 0) - (city.triples_before or 0)))


# --- drift -----------------------------------------------------------------------------------------------------------


def drift(name: str, before: Distribution, after: Distribution) -> Drift | None:
    """Return the drift between two distributions; None where either has no rows."""
    counts = _pooled(before, after)
    n, m = (sum(pair[side] for pair in counts.values()) for side in (0, 1))
    if not n or not m:
        return None
    parts = {}
    for group, (old, new) in counts.items():
        share, now = max(old, _UNSEEN) / n, max(new, _UNSEEN) / m
        parts[group] = (now - share) * math.log(now / share)
    psi, freedom = sum(parts.values()), len(counts) - 1
    # Mean and two deviations of the chi-square: two samples of one distribution nearly always stay below.
    chance = (freedom + _DEVIATIONS * math.sqrt(2 * freedom)) * (1 / n + 1 / m)
    verdict = MOVED_MUCH if psi >= MUCH + chance else MOVED if psi >= MODERATE + chance else STEADY
    most = max(parts, key=lambda group: (parts[group], group))
    old, new = counts[most]
    mover = {"group": most, "before": old / n, "after": new / m} if parts[most] > 0 else None
    return Drift(name, psi, len(counts), chance, verdict, mover)


def _pooled(before: Distribution, after: Distribution) -> dict[str, tuple[float, float]]:
    """Return {group: (rows before, rows after)} with rare groups pooled."""
    counts: dict[str, tuple[float, float]] = {}
    for group in sorted({*before, *after}):
        pair = (before.get(group, 0.0), after.get(group, 0.0))
        pool = group if sum(pair) >= 2 * _RARE else OTHERS
        so_far = counts.get(pool, (0.0, 0.0))
        counts[pool] = (so_far[0] + pair[0], so_far[1] + pair[1])
    return {group: pair for group, pair in counts.items() if sum(pair)}


def _drifts(before: Snapshot, after: Snapshot) -> Iterator[Drift | None]:
    pairs = zip(_selection_counts(before), _selection_counts(after), strict=True)
    for name, (old, new) in zip(("positives over items", "positives over categories"), pairs, strict=True):
        yield drift(name, old, new)
    yield drift("triples over cities", *(each.manifest["published"]["triples"] for each in (before, after)))
    for dimension in _TEXTS:
        yield drift(f"users' {dimension}", *(_labels(each, dimension) for each in (before, after)))
    yield drift(f"users' {_OPENNESS}", *_deciles(before, after))


def _selection_counts(snapshot: Snapshot) -> tuple[dict[str, float], dict[str, float]]:
    """Return how often each item, as "name (id)", and each category was selected."""
    paths = [path.relative_to(snapshot.folder).as_posix() for _, _, path in snapshot.data_files("events")]
    if not paths:
        return {}, {}
    selected = pl.concat([_scan(snapshot, path).select(item_id="selected_ids") for path in paths]).explode("item_id")
    counts = selected.drop_nulls().group_by("item_id").len("rows")
    items = _scan(snapshot, "items.parquet").select("item_id", "category", "name")
    rows = counts.join(items, on="item_id", how="left").collect(engine="streaming")
    named = rows.select(pl.format("{} ({})", pl.col("name").fill_null("?"), "item_id"), "rows")
    by_category = rows.group_by(pl.col("category").fill_null("?")).agg(pl.col("rows").sum())
    return _counts(named), _counts(by_category)


def _counts(rows: pl.DataFrame) -> dict[str, float]:
    return {str(group): float(number) for group, number in rows.iter_rows()}


def _labels(snapshot: Snapshot, dimension: str) -> dict[str, float]:
    """Return users by the value of a dimension. Users without a persona are not counted."""
    return _counts(_present(snapshot, "user").select(dimension).drop_nulls().group_by(dimension).len().collect())


def _deciles(before: Snapshot, after: Snapshot) -> Iterator[dict[str, float]]:
    """Yield users by the deciles of the earlier snapshot's openness, before and after."""
    old, new = (
        _present(each, "user").select(pl.col(_OPENNESS).cast(pl.Float64)).drop_nulls().collect()[_OPENNESS]
        for each in (before, after)
    )
    cuts = sorted({old.quantile(step / _DECILES) or 0.0 for step in range(1, _DECILES)}) if len(old) else []
    names = ["the least", *(f"{cut:g}" for cut in cuts), "the most"]
    labels = pl.Series([f"{low} to {high}" for low, high in pairwise(names)])
    for values in (old, new):
        bins = pl.Series(cuts, dtype=pl.Float64).search_sorted(values, side="left")
        yield _counts(labels.gather(bins).value_counts())

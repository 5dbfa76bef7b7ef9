"""Earlier runs of an output location: their metrics, the range expected of the next one, listing and pruning them.

An earlier run is a published snapshot's manifest. A run's own counts are read in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import islice
from math import isfinite, nan, sqrt
from statistics import median
from typing import Any

from etl.errors import ConnectError, DataError
from etl.settings.model import ROW_SETTINGS, TRIPLE_SETTINGS, Settings
from etl.snapshots.reading.snapshot import STAGING
from etl.snapshots.stores.store import LocalStore, Store

HISTORY_LENGTH = 29
"""How many earlier runs are compared with: four of each weekday. With this run they are the 30 that the report shows."""

MIN_RUNS = 5
"""There is an expected range from this many earlier runs on. With fewer, one odd run would be a quarter of them."""

_DEFAULTS = Settings().manifest_settings()
_WEEK, _TWO_WEEKS, _MIN_WEEKDAYS = 7, 14, 3
_MIN_TOLERANCE, _MAX_TOLERANCE, _SPREADS, _DEVIATIONS = 0.05, 0.30, 12.0, 3.0

MONITORED = ("shadow users", "trips read", "ranking events", "triples", "positives", "users", "items")
"""The metrics that `--max-change` limits. Excluded rows and AUC are not: a change from 0 to 3 has no relative size."""

TRIPLE_METRICS = frozenset(
    {
        *("triples", "positives", "choices", "cities", "left out: positives", "left out: choices"),
        *("AUC", "AUC of popularity"),
    }
)
"""Metrics that all of TRIPLE_SETTINGS decide; ROW_SETTINGS alone decide the others."""


@dataclass(frozen=True)
class PreviousRun:
    """An earlier snapshot: its name, its settings, and its metrics."""

    name: str
    settings: Mapping[str, Any]
    metrics: Mapping[str, float]

    @cached_property
    def published_at(self) -> datetime | None:
        """When it was published."""
        return published_at(self.name)


@dataclass(frozen=True)
class Metric:
    """A metric of a run, compared with the `runs` earlier ones that are comparable.

    `before` is the value of the last of these, snapshot `since`. `expected` is the expected range; None with too few runs.
    """

    name: str
    value: float
    before: float | None = None
    since: str | None = None
    runs: int = 0
    expected: tuple[float, float] | None = None

    @property
    def change(self) -> float | None:
        """The relative change since the last run (-0.5: half of it is gone); None where that had 0 or is missing."""
        return (self.value - self.before) / self.before if self.before else None

    @property
    def is_count(self) -> bool:
        """Whether it counts something."""
        return not self.name.startswith("AUC")

    @property
    def monitored(self) -> bool:
        """Whether `--max-change` limits it."""
        return self.name in MONITORED

    @property
    def out_of_range(self) -> bool:
        """Whether it is out of its expected range."""
        return self.expected is not None and not self.expected[0] <= self.value <= self.expected[1]

    @property
    def stays(self) -> bool:
        """Whether it is out of range on the same side as the last run, and not further: then it is no new change."""
        if self.expected is None or self.before is None:
            return False
        (low, high), width = self.expected, (self.expected[1] - self.expected[0]) / 2
        less = self.value < low and self.before < low and self.value >= self.before - width
        return less or (self.value > high and self.before > high and self.value <= self.before + width)


@dataclass(frozen=True)
class Compared:
    """The result of `compare`: the monitored metrics that moved too far.

    `changed_settings` names the deciding settings that no earlier run shares. What they decide was not compared.
    """

    moved: list[Metric]
    changed_settings: list[str]


# --- metrics of one run ----------------------------------------------------------------------------------------------


_TIME = re.compile(r"\d{8}T\d{12}Z", re.ASCII)


def published_at(name: str) -> datetime | None:
    """Return when a snapshot of this name was published; None where the name does not begin with a time."""
    time = name.partition("-")[0]
    try:  # not strptime, whose import and first use take 0.01 s
        return datetime.fromisoformat(f"{time[:15]}.{time[15:]}") if _TIME.fullmatch(time) else None
    except ValueError:
        return None


def run_metrics(manifest: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics that a manifest, or a run's counts, has, by name, in the order in which they are shown.

    `ranking events`, `users`, `items` and `cities` are those published (cities: those with rows to train on). The names are
    published
    (`list --json`, the metrics file); `etl.reporting.wording.format_metric` has the labels for people.
    """
    published, probe = manifest.get("published", {}), manifest.get("probe", {})
    triples = published.get("triples")
    metrics = {
        "shadow users": manifest.get("shadow_users"),
        "trips read": manifest.get("source_rows", {}).get("trips"),
        "ranking events": _total(published.get("events")),
        "triples": _total(triples),
        **{name: published.get(name) for name in ("positives", "choices", "users", "items")},
        "cities": None if triples is None else _cities_with_rows(triples, published.get("next", {})),
        "left out: positives": _total(published.get("positives_left_out")),
        "left out: choices": _total(published.get("choices_left_out")),
        "left out: trip-days": _total(manifest.get("days_without_event")),
        "left out: events": _total(manifest.get("events_left_out")),
        "set aside rows": _total({f: sum(r.values()) for f, r in manifest["set_aside"].items()})
        if "set_aside" in manifest
        else None,
        "AUC": probe.get("auc", {}).get("mean"),
        "AUC of popularity": probe.get("auc_of_popularity", {}).get("mean"),
    }
    return {name: value for name, value in metrics.items() if value is not None}


def _cities_with_rows(*tables: Mapping[str, int]) -> int:
    return len({city for rows in tables for city, number in rows.items() if number})


def _total(parts: Mapping[str, float] | None) -> float | None:
    return None if parts is None else sum(parts.values())


# --- the expected range ----------------------------------------------------------------------------------------------


def expected_range(
    earlier: Sequence[tuple[datetime | None, float]], now: datetime | None, *, counts: bool = True
) -> tuple[float, float] | None:
    """Return the range that a metric is expected in, from its values in earlier runs; None with fewer than 5 of them.

    The middle is the median of the last seven runs, times the weekday's usual share of it: the median of at least three such
    days. With fewer, the range reaches from the least to the greatest share that is possible. The range goes down from the
    middle by 12 times the median deviation of the earlier runs from their own middles, at least 5% and at most 30% (30% in
    the first two weeks, when most weekdays are unknown), and up by the same factor. The range of a count reaches at least
    three of its standard deviations (square roots) either way. A single bad run moves none of these medians.
    """
    known = [(_day(moment), value) for moment, value in earlier if isfinite(value)]
    if len(known) < MIN_RUNS:
        return None
    shares = list(_shares_of_level(known))
    typical = _typical(_day(now), shares)
    share = _MAX_TOLERANCE if len(known) < _TWO_WEEKS else _tolerance(shares)
    level = _level(known)
    low, high = level * min(typical), level * max(typical)
    slack = [_DEVIATIONS * sqrt(max(each, 1.0)) if counts else 0.0 for each in (low, high)]
    return min(low * (1 - share), low - slack[0]), max(high / (1 - share), high + slack[1])


_Series = Sequence[tuple[float, float]]
"""Values of runs, oldest first, each with its day since 1970; nan where the moment is unknown."""


def _day(moment: datetime | None) -> float:
    return nan if moment is None else moment.timestamp() / 86_400


def _level(earlier: _Series) -> float:
    return median(value for _, value in earlier[-_WEEK:])


def _shares_of_level(earlier: _Series) -> Iterator[tuple[float, float]]:
    """Yield each run's value as a share of the level before it, from the fourth run on."""
    for number in range(_MIN_WEEKDAYS, len(earlier)):
        if level := _level(earlier[:number]):
            yield earlier[number][0], earlier[number][1] / level


def _typical(day: float, shares: _Series) -> list[float]:
    """Return the median share of a day's weekday; with fewer than three such days, all shares that are possible."""
    # Days of one weekday are whole weeks apart, give or take half a day: a job at midnight starts before or after it.
    same = [share for other, share in shares if abs((day - other + 0.5) % _WEEK - 0.5) <= 0.5]  # False for nan
    return [median(same)] if len(same) >= _MIN_WEEKDAYS else [1.0, *same]


def _tolerance(shares: _Series) -> float:
    """Return the deviation that is still normal, as a share: from how far each run was from what the others predict."""
    moves = []
    for number, (day, share) in enumerate(shares):
        typical = _typical(day, [*shares[:number], *shares[number + 1 :]])
        moves.append(min(abs(share / each - 1) if each else 0.0 for each in typical))
    return min(_MAX_TOLERANCE, max(_MIN_TOLERANCE, _SPREADS * median(moves))) if moves else _MIN_TOLERANCE


# --- comparison ------------------------------------------------------------------------------------------------------


def compare_with_history(
    runs: Sequence[PreviousRun], settings: Mapping[str, Any], metrics: Mapping[str, float], now: datetime | None
) -> list[Metric]:
    """Compare a run's metrics with the earlier runs (oldest first). `now` is when the run is published.

    A metric is compared with those runs that have the same values of all settings that decide it.
    """
    found = []
    for name, value in metrics.items():
        had = [run for run in runs if name in run.metrics and not _differing(run.settings, settings, _deciding(name))]
        series = [(run.published_at, run.metrics[name]) for run in had]
        range_ = expected_range(series, now, counts=not name.startswith("AUC"))
        found.append(Metric(name, value, series[-1][1], had[-1].name, len(had), range_) if had else Metric(name, value))
    return found


def compare(
    runs: Sequence[PreviousRun], settings: Mapping[str, Any], found: Sequence[Metric], allowed: float
) -> Compared:
    """Return the metrics (of `compare_with_history`) that moved too far since the earlier runs (oldest first).

    That is out of the expected range; where there is none, a relative change of more than `allowed` since the last run. Any
    value may follow a 0.
    """
    moved = [
        each
        for each in found
        if each.monitored
        and (each.out_of_range if each.expected else each.change is not None and abs(each.change) > allowed)
    ]
    differing = [
        name
        for names in (ROW_SETTINGS, TRIPLE_SETTINGS)
        if runs and all(_differing(run.settings, settings, names) for run in runs)
        for name in _differing(runs[-1].settings, settings, names)
    ]
    moved.sort(key=lambda each: MONITORED.index(each.name))
    return Compared(moved, list(dict.fromkeys(differing)))


def _deciding(metric: str) -> tuple[str, ...]:
    return TRIPLE_SETTINGS if metric in TRIPLE_METRICS else ROW_SETTINGS


def _differing(before: Mapping[str, Any], now: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    # A setting that an older release did not have had its default there.
    old, new = _DEFAULTS | dict(before), _DEFAULTS | dict(now)
    return [name for name in names if old.get(name) != new.get(name)]


# --- the snapshots of an output location -----------------------------------------------------------------------------


@dataclass(frozen=True)
class SnapshotInfo:
    """A snapshot in a list. `published_at` is the end of its run in UTC. None: unknown."""

    name: str
    latest: bool
    published_at: str | None = None
    events: int | None = None
    triples: int | None = None
    users: int | None = None
    auc: float | None = None
    bytes: int | None = None
    trouble: str | None = None


@dataclass(frozen=True)
class Pruned:
    """What a prune removed, or would remove: snapshots, oldest first, and incomplete folders (`litter`).

    `sizes` has the bytes of each of these, `bytes` those of the snapshots. `strays` were left alone: they are no snapshots.
    """

    removed: list[str]
    litter: list[str]
    kept: list[str]
    bytes: int
    keep: int
    sizes: dict[str, int]
    strays: list[str]


def require_published(store: Store) -> None:
    """Raise ConnectError where nothing was ever published: the location is probably mistyped."""
    if store.latest_name() is None and not store.folders():
        raise ConnectError(f"{store.location} has no snapshots: nothing was published there yet. Check the path.")


def list_snapshots(store: Store) -> list[SnapshotInfo]:
    """Return the complete snapshots, oldest first. `trouble` says why a manifest can't be read."""
    latest = store.latest_name()
    return [_info(store, name, latest=name == latest) for name in store.names()]


def _info(store: Store, name: str, *, latest: bool) -> SnapshotInfo:
    try:
        manifest = store.manifest(name)
        found = run_metrics(manifest)
        events, triples, users = (
            None if key not in found else int(found[key]) for key in ("ranking events", "triples", "users")
        )
        size = sum(entry["bytes"] for entry in manifest["files"])
        return SnapshotInfo(name, latest, manifest.get("ended_at"), events, triples, users, found.get("AUC"), size)
    except (ConnectError, DataError, KeyError, TypeError, AttributeError) as error:
        return SnapshotInfo(name, latest, trouble=str(error))


def published(store: Store, now: datetime) -> list[str]:
    """Return the names under snapshots/ up to the one that LATEST names, sorted.

    Newer ones were never made the newest, were withdrawn by hand, or have a wrong date. Where LATEST names none that exists:
    all that are not dated after `now`.
    """
    folders, latest = store.folders(), store.latest_name()
    if latest in folders:
        return folders[: folders.index(latest) + 1]
    return [name for name in folders if not _is_after(name, now)]


def previous_runs(store: Store, names: Sequence[str]) -> list[PreviousRun]:
    """Read the last snapshots of these names, oldest first. Unreadable ones are omitted."""
    found = []
    # islice: an object store is asked about no more snapshots than needed.
    newest = list(islice(filter(store.is_complete, reversed(names)), HISTORY_LENGTH))
    for name in reversed(newest):
        with suppress(DataError, ConnectError, OSError, AttributeError, TypeError):  # a manifest of any shape
            manifest = store.manifest(name)
            found.append(PreviousRun(name, dict(manifest.get("settings", {})), run_metrics(manifest)))
    return found


def _is_after(name: str, now: datetime) -> bool:
    """Whether a snapshot is dated after now: a clock was wrong when it was published, or is wrong now."""
    moment = published_at(name)
    return moment is not None and moment > now


def misdated(store: Store, now: datetime) -> str | None:
    """Name the snapshots that are dated after `now`; None where there are none."""
    names = [name for name in store.folders() if store.ours(name) and _is_after(name, now)]
    names = [name for name in names if store.is_complete(name)]
    if not names:
        return None
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return f"dated after now ({now:%Y-%m-%d %H:%M} UTC): {', '.join(names[:3])}{more}"


def incomplete(store: Store) -> list[str]:
    """Return the folders that are not complete snapshots: of a run in progress, or of one that was killed."""
    staged = [path.name for path in store.root.glob(f"{STAGING}*")] if isinstance(store, LocalStore) else []
    return [*store.incomplete(), *sorted(staged)]


def to_remove(names: Sequence[str], latest: str | None, keep: int) -> list[str]:
    """Return the snapshots (of `names`, oldest first) to remove so that `keep` stay: the oldest, never LATEST's."""
    stay = set(names[-keep:])
    if latest is not None and latest in names and latest not in stay:  # LATEST was set back by hand
        stay = {latest, *names[len(names) - keep + 1 :]}
    return [name for name in names if name not in stay]


def prune(store: Store, keep: int, now: datetime, *, dry_run: bool = False) -> Pruned:
    """Remove all but the newest `keep` snapshots, and what killed runs and prunes left. `store` is locked for writing.

    Snapshots dated after `now` count as the oldest; otherwise they would stay forever. Snapshots whose name has another form
    than ours (renamed, to keep them) and links are left alone and do not count. A snapshot's manifest is removed first, which
    makes the rest an incomplete folder: a later prune continues where this one was interrupted.

    Raises ConnectError where something can't be removed.
    """
    ours = filter(store.ours, store.names())
    names = sorted(ours, key=lambda name: (not _is_after(name, now), name))
    litter, removed = store.incomplete(), to_remove(names, store.latest_name(), keep)
    sizes = {name: store.size(name) for name in [*litter, *removed]}
    if not dry_run:
        for name in sizes:
            _remove(store, name)
    kept, freed = [name for name in names if name not in removed], sum(sizes[name] for name in removed)
    return Pruned(removed, litter, kept, freed, keep, sizes, store.strays())


def _remove(store: Store, name: str) -> None:
    try:
        with suppress(FileNotFoundError):  # already removed by another program
            store.remove(name)
    except OSError as error:
        raise ConnectError(
            f"{store.location_of(name)} can't be removed: {error.strerror or error}. Check its permissions."
        ) from None

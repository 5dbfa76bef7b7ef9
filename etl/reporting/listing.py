"""The snapshots that an --out has: a line about each, and taking the oldest away."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from etl.errors import ConnectError, DataError
from etl.reporting.history import HISTORY_LENGTH, PreviousRun, published_at, run_metrics
from etl.snapshots.reader import STAGING
from etl.snapshots.store import LocalStore, Store


@dataclass(frozen=True)
class SnapshotInfo:
    """A snapshot in a list. `published_at` is its run's end in UTC; figures: `etl.reporting.history`; None: unknown."""

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
    """What a prune took away, or would take away: snapshots, oldest first, and what was none any more, or not yet."""

    removed: list[str]
    litter: list[str]
    kept: list[str]
    bytes: int
    keep: int


def require_published(store: Store) -> None:
    """Raise ConnectError where nothing was ever published: the place is likely to be mistyped."""
    if store.latest_name() is None and not store.folders():
        raise ConnectError(f"{store.location} has no snapshots: nothing was published there yet. Check the path.")


def list_snapshots(store: Store) -> list[SnapshotInfo]:
    """The whole snapshots, oldest first. One whose manifest can't be read has a line that says so."""
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
    """The names under snapshots/ up to the one that LATEST names, sorted.

    What is newer was never made the newest, was taken back by somebody, or has a wrong date. Where LATEST names none that is
    there, all that are not dated after `now`.
    """
    folders, latest = store.folders(), store.latest_name()
    if latest in folders:
        return folders[: folders.index(latest) + 1]
    return [name for name in folders if not _after(name, now)]


def previous_runs(store: Store, names: Sequence[str]) -> list[PreviousRun]:
    """The last snapshots of these names, oldest first. What can't be read is left out."""
    found = []
    newest = islice(
        filter(store.is_complete, reversed(names)), HISTORY_LENGTH
    )  # an object store is asked for no more of them
    for name in reversed(list(newest)):
        with suppress(DataError, ConnectError, OSError, AttributeError, TypeError):  # a manifest of any shape
            manifest = store.manifest(name)
            found.append(PreviousRun(name, dict(manifest.get("settings", {})), run_metrics(manifest)))
    return found


def _after(name: str, now: datetime) -> bool:
    """Whether a snapshot is dated after now: a clock was wrong when it was published, or is."""
    moment = published_at(name)
    return moment is not None and moment > now


def misdated(store: Store, now: datetime) -> str | None:
    """The snapshots that are dated after `now`, by name; None where there are none."""
    names = [name for name in store.folders() if store.ours(name) and _after(name, now)]
    if not names:
        return None
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return f"dated after now ({now:%Y-%m-%d %H:%M} UTC): {', '.join(names[:3])}{more}"


def incomplete(store: Store) -> list[str]:
    """What is no snapshot any more, or not yet: a run at work makes such folders, and a killed one leaves them behind."""
    staged = [path.name for path in store.root.glob(f"{STAGING}*")] if isinstance(store, LocalStore) else []
    return [*store.incomplete(), *sorted(staged)]


def to_remove(names: Sequence[str], latest: str | None, keep: int) -> list[str]:
    """Which snapshots go where `keep` are to stay: the oldest, never the one that LATEST names. `names`: oldest first."""
    stay = set(names[-keep:])
    if (
        latest is not None and latest in names and latest not in stay
    ):  # LATEST was put back by hand: it takes the place of one
        stay = {latest, *names[len(names) - keep + 1 :]}
    return [name for name in names if name not in stay]


def prune(store: Store, keep: int, now: datetime, *, dry_run: bool = False) -> Pruned:
    """Take away all but the newest `keep` snapshots, and what killed runs and prunes have left; `store` is held for writing.

    What is dated after `now` counts as the oldest: it would take a place for ever.

    A snapshot's manifest goes first: from then on it is none, and whatever ends the prune, the next one takes up the rest.
    What has another name than we give (a snapshot that somebody renamed, to keep it), or is a link, is left alone and does not
    count.
    Raises ConnectError where something can't be removed.
    """
    names = sorted((name for name in store.names() if store.ours(name)), key=lambda name: (not _after(name, now), name))
    litter, removed = store.incomplete(), to_remove(names, store.latest_name(), keep)
    lines = {name: _info(store, name, latest=False) for name in removed}
    if not dry_run:
        for name in [*litter, *removed]:
            _remove(store, name)
    freed = sum(line.bytes or 0 for line in lines.values())
    return Pruned(removed, litter, [name for name in names if name not in removed], freed, keep)


def _remove(store: Store, name: str) -> None:
    try:
        with suppress(FileNotFoundError):  # somebody else took it away: as well
            store.remove(name)
    except OSError as error:
        raise ConnectError(
            f"{store.location_of(name)} can't be removed: {error.strerror or error}. Check its rights."
        ) from None

"""The commands about snapshots: `list`, `inspect`, `diff`, `convert`, `prune` and `validate --snapshot`.

A command's docstring is its help. Libraries are imported inside the commands, so that `--help` answers at once.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etl.commands.runner import CommandResult, observe_step
from etl.errors import ConnectError, DataError, NothingToDo, SettingsError
from etl.errors import escape_control_characters as escape
from etl.runtime.cancellation import CancelToken
from etl.settings.model import Settings

if TYPE_CHECKING:
    from etl.reporting.history import Pruned


def list_(settings: Settings, _stop: CancelToken) -> CommandResult:
    """List the snapshots of an --out folder: when, how much, and which is the newest."""
    from etl.commands.terminal import tables
    from etl.reporting import history
    from etl.snapshots.stores import locations

    store = locations.open_store(settings.out, settings.environ)
    history.require_published(store)
    snapshots, unfinished = history.list_snapshots(store), history.incomplete(store)
    output: list[Any] = [tables.list_table(settings.out, snapshots)]
    strays = store.strays()
    if unfinished:
        named = ", ".join(map(escape, unfinished))
        output += ["", f"Unfinished (a run at work, or what a killed one left): {named}"]
    output += _stray_lines(strays)
    shown = [asdict(each) for each in reversed(snapshots)]
    return CommandResult({"out": settings.out, "snapshots": shown, "unfinished": unfinished, "strays": strays}, output)


def _stray_lines(strays: list[str]) -> list[str]:
    named = ", ".join(map(escape, strays))
    return [f"Left alone, because it is no snapshot and no part of one: {named}"] if strays else []


def inspect(settings: Settings, _stop: CancelToken) -> CommandResult:
    """Say what a snapshot is: its settings, counts, partitions, files and their columns."""
    from etl.commands.terminal import console, tables
    from etl.snapshots.stores import locations

    location = settings.snapshot or settings.out
    with locations.local_snapshot(location, settings.environ, kinds=()) as snapshot:
        manifest = snapshot.manifest
    files = [entry["path"] for entry in manifest["files"] if entry["path"].endswith(".parquet")]
    first = {path.partition("/")[0]: path for path in reversed(files)}
    with locations.local_snapshot(location, settings.environ, kinds=tuple(first.values())) as snapshot:
        columns = {kind: _columns(snapshot.folder / first[kind]) for kind in sorted(first)}
    facts = {name: value for name, value in manifest.items() if name != "files"}
    facts |= {"files": manifest["files"], "columns": {kind: dict(pairs) for kind, pairs in columns.items()}}
    warnings = [f"Warning: {escape(each)}" for each in manifest.get("warnings", [])]
    shown = [tables.inspect_tables(manifest), console.exclusions_tables(manifest, verbose=settings.verbose)]
    shown += tables.columns_text(columns) if settings.verbose else []
    return CommandResult(facts, [*shown, "", *warnings])


def _columns(path: Any) -> list[tuple[str, str]]:
    """The columns of a Parquet file and their types, in the file's order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path.absolute())
    except (OSError, pa.ArrowInvalid) as error:
        raise ConnectError(
            f"{path} can't be read ({error}). `bpr-etl validate --snapshot` says what is wrong with the snapshot."
        ) from None
    types = ((each.name, each.type.value_type if pa.types.is_dictionary(each.type) else each.type) for each in schema)
    return [(name, str(type_)) for name, type_ in types]


def diff(settings: Settings, _stop: CancelToken, *, newer: str | None = None) -> CommandResult:
    """Compare two snapshots: rows, users, items, cities, settings, and how far distributions have moved."""
    from etl.commands.terminal import tables
    from etl.reporting import compare
    from etl.snapshots.stores import locations

    older, newer = _resolve_pair(settings, newer)
    with (
        locations.local_snapshot(older, settings.environ, kinds=compare.REQUIRED_FILES) as before,
        locations.local_snapshot(newer, settings.environ, kinds=compare.REQUIRED_FILES) as after,
    ):
        found = compare.compare_snapshots(before, after)
    return CommandResult(found.facts(), [tables.diff_tables(found)])


def _resolve_pair(settings: Settings, newer: str | None) -> tuple[str, str]:
    """The locations of the two snapshots to compare, the older first."""
    from etl.snapshots.stores import locations

    older = settings.snapshot or settings.out
    if newer:
        locations.is_url(newer)  # raises for what is no location, before anything is read
        return older, newer
    store = locations.open_store(older, settings.environ)
    names, latest = store.names(), store.latest_name()
    before = [name for name in names if latest and name < latest]
    if latest not in names or not before:
        raise SettingsError(
            f"In {older} there are not two snapshots to compare, its newest and one before: name two, or an --out that has two."
        )
    return store.location_of(before[-1]), store.location_of(str(latest))


def convert(settings: Settings, stop: CancelToken, *, folder: str | None = None) -> CommandResult:
    """Write a snapshot's interactions, users and items as another program's files, into a new folder."""
    from etl.snapshots import conversion
    from etl.snapshots.stores import locations

    target = Path(folder or "dataset/bpr")
    with (
        locations.local_snapshot(
            settings.snapshot or settings.out, settings.environ, conversion.REQUIRED_FILES, stop
        ) as snapshot,
        observe_step(settings, stop, "convert") as (_, count),
    ):
        rows = conversion.to_recbole(snapshot, target, stop.raise_if_cancelled)
        count(sum(rows.values()))
    lines = [escape(f"{target / name}: {found:,} rows") for name, found in rows.items()]
    return CommandResult({"to": settings.to, "folder": str(target), "rows": rows}, lines)


def prune(settings: Settings, stop: CancelToken) -> CommandResult:
    """Remove the oldest snapshots, never the newest; exit 99 when there is nothing to remove."""
    from etl.pipeline.context import utc_now
    from etl.reporting import history
    from etl.snapshots import publish
    from etl.snapshots.stores import locations

    if settings.keep is None:
        raise SettingsError("How many snapshots are to stay? Say it, like --keep 14.")
    store = locations.open_store(settings.out, settings.environ)
    history.require_published(store)  # a mistyped --out must not be created by locking it
    if settings.dry_run:
        found = history.prune(store, settings.keep, utc_now(), dry_run=True)
    else:
        with publish.locked_store(settings.out, settings.lock_timeout, stop, settings.environ) as locked:
            found = history.prune(locked, settings.keep, utc_now())
    nothing = not found.removed and not found.litter
    return CommandResult(
        asdict(found) | {"dry_run": settings.dry_run},
        _prune_lines(found, dry_run=settings.dry_run),
        NothingToDo.exit_code if nothing else 0,
    )


def _prune_lines(found: Pruned, *, dry_run: bool) -> list[str]:
    from etl.reporting.wording import format_bytes

    would = "would be removed" if dry_run else "removed"
    sized = {name: f"{escape(name)}, {format_bytes(size)}" for name, size in found.sizes.items()}
    lines = [f"{would}: {sized[name]}" for name in found.removed]
    lines += [f"{would}: {sized[name]} (no snapshot: it has no manifest)" for name in found.litter]
    strays = _stray_lines(found.strays)
    if not lines:
        return [*strays, f"Nothing to remove: {len(found.kept):,} there, --keep {found.keep:,}."]
    total = f"{len(found.removed):,} ({format_bytes(found.bytes)})"
    return [*lines, *strays, f"Snapshots {would}: {total}; {len(found.kept):,} stay."]


def validate_snapshot(settings: Settings, stop: CancelToken) -> CommandResult:
    """Check a published snapshot against its manifest."""
    from etl.commands.terminal.console import findings_lines
    from etl.snapshots import validation

    with observe_step(settings, stop, "check files"):
        findings = validation.validate_snapshot(settings.snapshot or settings.out, settings.environ, stop)
    return CommandResult(
        {"findings": [asdict(finding) for finding in findings]},
        [findings_lines(findings)],
        DataError.exit_code if any(each.broken for each in findings) else 0,
    )

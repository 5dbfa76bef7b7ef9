"""The commands that look at what there is: `list`, `inspect`, `diff`, `prune`, `doctor`. See `etl.commands.publish`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from etl.commands.runner import CommandResult
from etl.errors import ConnectError, NothingToDo, SettingsError, escape_control_characters
from etl.runtime.cancellation import CancelToken
from etl.settings.model import Settings

if TYPE_CHECKING:
    from rich.console import RenderableType

    from etl.reporting.listing import Pruned


def list_(settings: Settings, _stop: CancelToken) -> CommandResult:
    """The snapshots of an --out, the newest first, and what is unfinished there."""
    from etl.commands import tables
    from etl.reporting import listing as history
    from etl.snapshots import locations

    place = locations.open_store(settings.out, settings.environ)
    history.require_published(place)
    lines, unfinished = history.list_snapshots(place), history.incomplete(place)
    shown: list[RenderableType | str] = [tables.render_uncut(tables.list_table(settings.out, lines))]
    if unfinished:
        shown += [
            "",
            f"Unfinished (a run at work, or what a killed one left): {', '.join(map(escape_control_characters, unfinished))}",
        ]
    facts = {"out": settings.out, "snapshots": [asdict(line) for line in reversed(lines)], "unfinished": unfinished}
    return CommandResult(facts, shown)


def inspect(settings: Settings, _stop: CancelToken) -> CommandResult:
    """A snapshot's manifest in words, and the columns of each kind of its files."""
    from etl.commands import console as summary
    from etl.commands import tables
    from etl.snapshots import locations

    location = settings.snapshot or settings.out
    with locations.local_snapshot(location, settings.environ, kinds=()) as snapshot:
        manifest = snapshot.manifest
    files = [entry["path"] for entry in manifest["files"] if entry["path"].endswith(".parquet")]
    first = {tables.kind_of(path): path for path in reversed(files)}
    with locations.local_snapshot(location, settings.environ, kinds=tuple(first.values())) as snapshot:
        columns = {kind: _columns(snapshot.folder / first[kind]) for kind in sorted(first)}
    facts = {name: value for name, value in manifest.items() if name != "files"}
    facts |= {"files": manifest["files"], "columns": {kind: dict(pairs) for kind, pairs in columns.items()}}
    warnings: list[RenderableType | str] = [
        f"Warning: {escape_control_characters(each)}" for each in manifest.get("warnings", [])
    ]
    shown = [tables.inspect_tables(manifest), summary.exclusions_table(manifest), *tables.columns_text(columns)]
    return CommandResult(facts, [*shown, "", *warnings])


def _columns(path: Any) -> list[tuple[str, str]]:
    """The columns of a Parquet file and their types; none where it is not there."""
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
    """Two snapshots side by side; of one --out its newest and the one before, unless a second is named."""
    from etl.commands import tables
    from etl.reporting import compare
    from etl.snapshots import locations

    older, newer = _resolve_pair(settings, newer)
    with (
        locations.local_snapshot(older, settings.environ, kinds=compare.REQUIRED_FILES) as before,
        locations.local_snapshot(newer, settings.environ, kinds=compare.REQUIRED_FILES) as after,
    ):
        found = compare.compare_snapshots(before, after)
    return CommandResult(found.facts(), [tables.diff_tables(found)])


def _resolve_pair(settings: Settings, newer: str | None) -> tuple[str, str]:
    """Where the two snapshots of a `diff` are."""
    from etl.snapshots import locations

    older = settings.snapshot or settings.out
    if newer:
        locations.is_url(newer)  # which refuses what is no place, before anything is looked at
        return older, newer
    place = locations.open_store(older, settings.environ)
    names, latest = place.names(), place.latest_name()
    before = [name for name in names if latest and name < latest]
    if latest not in names or not before:
        raise SettingsError(
            f"In {older} there are not two snapshots to compare, its newest and one before: name two, or an --out that has two."
        )
    return place.location_of(before[-1]), place.location_of(str(latest))


def prune(settings: Settings, stop: CancelToken) -> CommandResult:
    """Take away the oldest snapshots of an --out, and what killed runs have left; exit 99 where there is nothing to take."""
    from etl.pipeline.context import utc_now
    from etl.reporting import listing as history
    from etl.snapshots import locations, publish

    if settings.keep is None:
        raise SettingsError("How many snapshots are to stay? Say it, like --keep 14.")
    reading = locations.open_store(settings.out, settings.environ)
    history.require_published(reading)  # a mistyped --out is not made by holding it
    if settings.dry_run:
        found = history.prune(reading, settings.keep, utc_now(), dry_run=True)
    else:
        with publish.locked_store(settings.out, settings.lock_timeout, stop, settings.environ) as place:
            found = history.prune(place, settings.keep, utc_now())
    nothing = not found.removed and not found.litter
    return CommandResult(
        asdict(found) | {"dry_run": settings.dry_run},
        _prune_lines(found, dry_run=settings.dry_run),
        NothingToDo.exit_code if nothing else 0,
    )


def _prune_lines(found: Pruned, *, dry_run: bool) -> list[RenderableType | str]:
    from etl.reporting.numbers import format_bytes

    would = "would be removed" if dry_run else "removed"
    shown: list[RenderableType | str] = [f"{would}: {escape_control_characters(name)}" for name in found.removed]
    shown += [f"{would}: {escape_control_characters(name)} (no snapshot: it has no manifest)" for name in found.litter]
    if not shown:
        return [f"Nothing to remove: {len(found.kept):,} there, --keep {found.keep:,}."]
    return [
        *shown,
        f"Snapshots {would}: {len(found.removed):,} ({format_bytes(found.bytes)}); {len(found.kept):,} stay.",
    ]


def doctor(settings: Settings, stop: CancelToken) -> CommandResult:
    """Every check, how it stands, and what to do; the exit code of the first that failed."""
    from etl.commands import doctor as examination
    from etl.commands import tables
    from etl.commands.doctor_check import exit_code
    from etl.pipeline.context import utc_now

    checks = list(examination.run_checks(settings, utc_now, stop))
    return CommandResult(
        {"checks": [asdict(check) for check in checks]}, [tables.checks_table(checks), ""], exit_code(checks)
    )

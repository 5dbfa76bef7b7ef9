"""Guards: limits that stop a run before anything is committed or published, and warnings that do not stop it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from etl.errors import DataError
from etl.extract import queries
from etl.pipeline.context import RunResult
from etl.postgres.connection import Connection
from etl.postgres.scope import Scope
from etl.reporting.history import Compared, Metric
from etl.reporting.wording import by_reason, describe_kind
from etl.settings.model import ROW_SETTINGS, Settings
from etl.settings.values import Task, advice, format_option, suggestion
from etl.snapshots.manifest import DataSummary
from etl.transform.personas import SEED_LABELS
from etl.triples.partitions import MIN_CORRELATION, SMALL_CATALOG

if TYPE_CHECKING:
    from etl.evaluation.probe import ProbeResult

_NEARLY_ALL = 0.9
_MIN_CONFIRMED = 0.5
_KINDS = 5
KEEP_FOREIGN_ROWS = "--keep-foreign-rows leaves such rows."
_NOTHING = "Nothing was committed or published."


def check_user_count(settings: Settings, shadow: int, users: int | None) -> None:
    """Raise DataError if the number of shadow users is not as expected, or too large a share of all users.

    `users` counts all users; it may be None if `max_shadow_share` is None.
    """
    expected = settings.expect_users
    if expected is not None and not expected.accepts(shadow):
        raise DataError(
            f"There are {shadow:,} shadow users, and --expect-users says {expected.label}. {_NOTHING} Check whether users "
            "were added or deleted, or whether --shadow-prefix or --shadow-domain was changed."
        )
    if settings.max_shadow_share is not None and users and shadow > settings.max_shadow_share * users:
        raise DataError(
            f"{shadow:,} of {users:,} users ({shadow / users:.1%}) would be shadow users, and --max-shadow-share allows "
            f"{settings.max_shadow_share:.1%}. {_NOTHING} Check --shadow-prefix and --shadow-domain."
        )


def check_rejected_share(settings: Settings, rejected: Mapping[str, tuple[int, int]]) -> None:
    """Raise DataError if a larger share than `max_bad` of any kind of row was rejected: {kind: (rejected, all)}."""
    if settings.max_bad is None:
        return
    over = [
        f"{rows:,} of {of:,} {kind} ({rows / of:.2%})"
        for kind, (rows, of) in rejected.items()
        if rows > settings.max_bad * of
    ]
    if over:
        raise DataError(
            f"Too many rows were rejected: {'; '.join(over)}, and --max-bad allows {settings.max_bad:.2%}. {_NOTHING} "
            "The same run without --max-bad, with --dry-run, shows the reasons."
        )


def check_scope(connection: Connection, scope: Scope, settings: Settings, result: RunResult) -> None:
    """Raise DataError if there are too many shadow users, another number than expected, or none by mistake.

    Adds a warning if their addresses have several domains, or if there are intentionally no shadow users.
    """
    domains = [(str(domain), int(users)) for domain, users in connection.fetch_rows(queries.shadow_domains(scope))]
    shadow = sum(users for _, users in domains)
    users = connection.fetch_int(queries.user_count(scope)) if settings.max_shadow_share is not None else None
    check_user_count(settings, shadow, users)
    if warning := multiple_domains_warning(domains):
        result.warnings.append(warning)
    if not shadow:
        _handle_no_shadow_users(connection.fetch_int(queries.user_count(scope)), scope, settings, result)


def _handle_no_shadow_users(users: int, scope: Scope, settings: Settings, result: RunResult) -> None:
    """Raise DataError, since the prefix or the database is probably the wrong one; add a warning if the settings allow it.

    After a run with shadow users, --allow-empty is not enough: an empty snapshot would replace one with data as the
    newest.
    """
    where = f" and ends with @{scope.domain}" if scope.domain else ""
    said = (
        f"No user's email begins with {scope.prefix!r}{where}, of {users:,} users, so there is nothing to learn from. "
        "Check --shadow-prefix, --shadow-domain and the database's name"
    )
    before = next((each for each in reversed(result.previous_runs) if each.metrics.get("shadow users")), None)
    if settings.expect_users is None and settings.audience == "shadow":
        if before is not None:
            raise DataError(
                f"{said}; snapshot {before.name} had {before.metrics['shadow users']:,.0f}, and an empty one would follow. "
                "If that is intended, set --expect-users 0."
            )
        if not settings.allow_empty:
            raise DataError(f"{said}. {_NOTHING} If that is intended, set --expect-users 0.")
    result.warnings.append(f"{said}.")


def count_foreign_rows(connection: Connection, scope: Scope, result: RunResult) -> None:
    """Count the shadow users' rows that a run does not make, by kind, and report whether they are kept."""
    kinds = foreign_rows(connection, scope)
    result.counts["foreign_rows"] = {"kept": scope.keep_foreign_rows, "kinds": kinds}
    if kinds and scope.keep_foreign_rows:
        result.notes.append(
            f"Shadow users' rows that a run does not make are left as they are: {describe_kinds(kinds)}."
        )
    elif kinds:
        result.warnings.append(
            f"Shadow users' rows that a run does not make are deleted: {describe_kinds(kinds)}. {KEEP_FOREIGN_ROWS}"
        )


def foreign_rows(connection: Connection, scope: Scope) -> list[dict[str, Any]]:
    """Returns the kinds of the shadow users' rows that a run does not make: model, the values that differ, number of rows."""
    return [
        {"model": model, **dict(zip(scope.made[model], values, strict=True)), "rows": rows}
        for model in ("PersonaDimension", "RankingEvent")
        for *values, rows in connection.fetch_rows(queries.foreign_rows(scope, model))
    ]


def describe_kinds(kinds: Sequence[Mapping[str, Any]]) -> str:
    """Returns the kinds of `foreign_rows` as one phrase: the first few one by one, the others as a sum."""
    shown = [f"{kind['rows']:,} of {kind['model']} ({describe_kind(kind)})" for kind in kinds[:_KINDS]]
    rest = sum(kind["rows"] for kind in kinds[_KINDS:])
    return ", ".join([*shown, *([f"{rest:,} of {len(kinds) - _KINDS} more kinds"] if rest else [])])


def count_surfaces(connection: Connection, scope: Scope, settings: Settings, result: RunResult) -> int:
    """Count the audience's ranking events by surface, exported or not. Returns how many are exported.

    Adds a warning if --surface names a surface that no event has.
    """
    rows = [(str(surface), int(all_), int(taken)) for surface, all_, taken in _surfaces(connection, scope, settings)]
    result.counts["surfaces"] = {surface: taken for surface, _, taken in rows if taken}
    result.counts["surfaces_excluded"] = {surface: all_ - taken for surface, all_, taken in rows if taken < all_}
    known = [surface for surface, _, _ in rows]
    if len(known) > 1:
        shown = ", ".join(f"{surface} {taken:,} of {all_:,}" for surface, all_, taken in rows[:_KINDS])
        result.notes.append(f"Exported ranking events by surface: {shown}.")
    for surface in settings.surface:
        if surface not in known:
            result.warnings.append(
                f"--surface names {surface!r}, which no ranking event has{suggestion(surface, known) or '.'} "
                f"There are: {', '.join(known[:_KINDS]) or 'none'}."
            )
    return sum(taken for _, _, taken in rows)


def _surfaces(connection: Connection, scope: Scope, settings: Settings) -> list[tuple[Any, ...]]:
    return connection.fetch_rows(queries.event_surfaces(scope, settings.audience))


def check_confirmed(counted: Sequence[pl.DataFrame], result: RunResult) -> list[str]:
    """Sum up the results of `count_confirmed`. Returns a warning for each model with less than half confirmed."""
    if not counted:
        return []
    model = ["surface", "model_name", "model_version"]
    rows = pl.concat(counted).group_by(model).sum().sort(model)
    positives, confirmed = (int(rows[name].sum()) for name in ("positives", "confirmed"))
    share = confirmed / positives if positives else None
    by_model = rows.to_dicts()
    result.counts["confirmed_positives"] = {
        "positives": positives,
        "confirmed": confirmed,
        "share": share,
        "by_model": by_model,
    }
    return [
        (
            f"Of {row['positives']:,} positives of ranking events by {row['model_name']} {row['model_version']} on the surface "
            f"{row['surface']}, {row['confirmed']:,} ({row['confirmed'] / row['positives']:.0%}) are confirmed by a slot of "
            "their day (confirmed, active or completed). Their selectedIds may be what a model placed, not what users chose. "
            "Export other events (--surface, --audience), or have the application log what users confirm."
        )
        for row in by_model
        if row["confirmed"] < _MIN_CONFIRMED * row["positives"]
    ]


_NONE = {"triples": "There are no triples", "next": "There is no choice of a next place with negatives"}
_LEFT_OUT = {"triples": ("positives", "positives_left_out"), "next": ("choices", "choices_left_out")}
"""By task: what its rows are made from, and the manifest's key of those that have no row."""


def check_rows(
    task: Task, rows: Mapping[str | None, int], split: str, published: Mapping[str, Any], *, allowed: bool
) -> list[str]:
    """Raise DataError if a task has no rows, or none in train, unless that is allowed. Returns the warnings.

    `rows` has the number of rows by part of the split; without a split, one number under None. `published` are the
    counts of the data files.
    """
    empty = [part for part, number in rows.items() if not number]
    if not empty:
        return []
    if len(empty) == len(rows):
        what = f"{_NONE[task]}: {_why_none(task, published)}."
    else:
        counted = ", ".join(f"{part} {number:,}" for part, number in rows.items())
        what = f"A part of --split {split} has no {'triples' if task == 'triples' else 'rows of next'} ({counted})."
    if "train" in empty or None in empty:
        if not allowed:
            raise DataError(f"{what} {_NOTHING} {_remedy(task, published)}; if that is intended, set --allow-empty.")
        return [f"{what} That was allowed: files without rows are published, so that readers find the columns."]
    return [f"{what} It is published as a file without rows: check whether the split is the right one."]


def _why_none(task: Task, published: Mapping[str, Any]) -> str:
    events = sum(published["events"].values())
    examples, key = _LEFT_OUT[task]
    excluded = [loss for loss in by_reason(examples, published[key]) if loss.rows]
    if not events:
        return "there is no ranking event to make them of"
    if excluded:
        return "; ".join(f"{loss.rows:,} {examples} were excluded because the {loss.why}" for loss in excluded)
    if task == "next" and sum(published["interactions"].values()):
        return "no trip has a second selected item"
    return f"nothing was selected in any of {events:,} ranking events"


def _remedy(task: Task, published: Mapping[str, Any]) -> str:
    reasons = published[_LEFT_OUT[task][1]]
    if not sum(reasons.values()):
        return "Check the database, --shadow-prefix, --audience and --split"
    most = max(reasons, key=lambda reason: reasons[reason])
    options = {SMALL_CATALOG: "--min-catalog and --small-catalog"}.get(most, "--negatives and --reject")
    return f"Check {options}, and --split"


def check_auc(found: ProbeResult, settings: Settings, after: str) -> None:
    """Raise DataError if the model's AUC is below `fail_below`. `after` is the message's sentence about the snapshot."""
    ours, popularity = found.auc
    if settings.fail_below is not None and not ours >= settings.fail_below:
        raise DataError(
            f"A model trained on these triples has AUC {ours:.3f}, and --fail-below asks for "
            f"{settings.fail_below:g} (popularity has {popularity:.3f}). {after} {found.advice}"
        )


def unused_seed_warnings(personas: pl.DataFrame) -> list[str]:
    """Returns a warning if nearly all users have the default of a dimension: seeds may have other keys than expected.

    `personas` has one row per (user, dimension), with `source`.
    """
    users = personas["user_id"].n_unique()
    found = personas.filter(pl.col("source").is_in(["default", "reconstructed"])).group_by("dimension").len()
    unused = found.filter(pl.col("len") > _NEARLY_ALL * users)["dimension"].sort().to_list()
    if not unused:
        return []
    keys = ", ".join((*SEED_LABELS.values(), "cuisine_openness", "category_affinities"))
    return [
        (
            f"Nearly all of {users:,} users have no usable value for {', '.join(unused)} in Trip.personaSeed, so defaults were "
            f"used. The keys that are read are {keys}: check whether the application writes these."
        )
    ]


def clipped_affinities_warning(clipped: int, affinities: int) -> list[str]:
    """Returns a warning if most affinities of seeds are outside 0 to 1: they may be on another scale."""
    if clipped <= affinities / 2:
        return []
    return [
        (
            f"{clipped:,} of {affinities:,} values in category_affinities of Trip.personaSeed are not from 0 to 1 and were "
            "clipped, so that many users like all categories equally. Check the scale on which the application writes them."
        )
    ]


def multiple_domains_warning(domains: Sequence[tuple[str, int]]) -> str | None:
    """Returns a warning if the shadow users' addresses have more than one domain. `domains` are (domain, users)."""
    if len(domains) < 2:
        return None
    shown = ", ".join(f"{domain or '(none)'} {users:,}" for domain, users in domains[:5])
    more = f" and {len(domains) - 5} more" if len(domains) > 5 else ""
    return (
        f"The shadow users' email addresses have {len(domains)} domains ({shown}{more}). If some belong to real people, set "
        "--shadow-domain."
    )


def check_max_change(compared: Compared, allowed: float, *, stops: bool) -> list[str]:
    """Returns a warning that names the metrics which changed too much since earlier runs, and says what to do.

    With `stops`, raises DataError instead, unless the previous run already showed the same change.
    """
    if not compared.moved:
        return []
    what = " ".join(_moved(compared.moved, allowed))
    see = "Check whether the source lost or gained rows (a restore, a purge, another database, another --shadow-prefix)"
    if stops and not all(each.stays for each in compared.moved):
        raise DataError(f"{what} {_NOTHING} {see}; if that is correct, run once with --no-fail-on-change.")
    return [f"{what} {see}; `bpr-etl diff` shows what else changed. If that is correct, nothing need be done."]


def comparison_skipped_note(compared: Compared) -> list[str]:
    """Returns a note if all previous runs had other settings, so that this run's metrics can't be compared with theirs."""
    if not compared.changed_settings:
        return []
    options = ", ".join(map(format_option, compared.changed_settings))
    what = "The figures" if set(compared.changed_settings) & set(ROW_SETTINGS) else "Triples and positives"
    return [f"{what} were not compared with earlier snapshots: none of them has the same {options}."]


def _moved(moved: Sequence[Metric], allowed: float) -> Iterator[str]:
    """Yields a sentence for the metrics with an expected range, and one per snapshot that others are compared with."""
    if ranged := [each for each in moved if each.expected]:
        said = ", ".join(f"{_describe_move(each)}, expected {_range(each)}" for each in ranged)
        yield f"Outside of the expected range of {max(each.runs for each in ranged)} earlier runs (--max-change): {said}."
    for name in dict.fromkeys(each.since for each in moved if not each.expected):
        said = ", ".join(_describe_move(each) for each in moved if not each.expected and each.since == name)
        yield f"Since snapshot {name}: {said}; --max-change allows {allowed:.0%}."


def _describe_move(figure: Metric) -> str:
    share = "" if figure.change is None else f" ({figure.change:+.0%})"
    return f"{figure.name} went from {figure.before:,.0f} to {figure.value:,.0f}{share}"


def _range(figure: Metric) -> str:
    low, high = figure.expected or (0, 0)
    return f"{max(low, 0):,.0f} to {high:,.0f}"


def rejected_shares(counts: Mapping[str, Any], rejected: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Returns how many rows were not used, by kind: (rows, of how many).

    `counts` are the run's so far; `rejected` are the rows that broke a schema.
    """
    dropped, too_large, skipped, left_out = (
        sum(counts.get(name, {}).values())
        for name in ("affinities_dropped", "openness_dropped", "days_without_event", "events_left_out")
    )
    seeds = counts.get("shadow_users", 0) - counts.get("shadow_users_without_persona", 0)
    return {
        **{f"rows of {frame}": share for frame, share in rejected.items()},
        "affinities of seeds": (dropped, rejected.get("seed_affinities", (0, 0))[1]),
        "openness of seeds": (too_large, seeds),
        "trip-days": (skipped, skipped + counts.get("ranking_events", 0)),
        "logged events": (left_out, counts.get("source_rows", {}).get("events", 0)),
    }


def unknown_city_warnings(settings: Settings, summary: DataSummary) -> Iterator[str]:
    """Yields a warning for each --city-weight of a city without events: it has no effect, and may be a typing error."""
    cities = sorted(summary.folders.values())
    for city, _ in settings.city_weight:
        if city not in cities:
            yield f"--city-weight names {city!r}, which has no events{suggestion(city, cities) or '.'}"


def bias_warnings(settings: Settings, summary: DataSummary) -> Iterator[str]:
    """Yields a warning that names the cities whose triples are likely to train a bad model, which shows without training."""
    low = {
        city: value
        for city, value in summary.popularity_correlation.items()
        if value is not None and value < MIN_CORRELATION
    }
    if low:
        named = ", ".join(f"{city} {value:.2f}" for city, value in low.items())
        yield (
            "These triples may train a model that ranks popular items too low: frequently selected items are not positives "
            f"more often than negatives (popularity correlation {named}, expected at least {MIN_CORRELATION}). "
            f"{advice(settings.negatives)} "
            "`bpr-etl probe` measures it; docs/negatives.md explains."
        )

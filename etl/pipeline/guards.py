"""Limits that a person sets on a night: whose rows it may touch, and how many bad ones it may leave out.

Pure: numbers in, a sentence or nothing out. Each of them stops the run before anything is committed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etl.errors import DataError
from etl.extract import queries
from etl.postgres.connection import Connection
from etl.postgres.scope import Scope
from etl.reporting.history import Compared, Metric
from etl.reporting.wording import by_reason
from etl.runtime.run_record import RunResult
from etl.settings.model import ROW_SETTINGS, Settings
from etl.settings.values import ExpectedCount
from etl.triples.partitions import SMALL_CATALOG

_NOTHING = "Nothing was committed or published."


@dataclass(frozen=True)
class Limits:
    """What is allowed; None where nobody set a limit. Shares are of 1."""

    expect_users: ExpectedCount | None = None
    max_shadow_share: float | None = None
    max_bad: float | None = None

    def check_user_count(self, shadow: int, users: int | None) -> None:
        """Raise DataError where the shadow users are not as many as expected, or too many among all users.

        `users` counts all of them; it is needed where there is a limit to the share.
        """
        if self.expect_users is not None and not self.expect_users.accepts(shadow):
            raise DataError(
                f"There are {shadow:,} shadow users, and --expect-users says {self.expect_users.label}. {_NOTHING} See whether "
                "users came or went, or whether --shadow-prefix or --shadow-domain is another one now."
            )
        if self.max_shadow_share is not None and users and shadow > self.max_shadow_share * users:
            raise DataError(
                f"{shadow:,} of {users:,} users ({shadow / users:.1%}) would be shadow users, and --max-shadow-share allows "
                f"{self.max_shadow_share:.1%}. {_NOTHING} See whether --shadow-prefix and --shadow-domain say what you mean."
            )

    def check_rejected_share(self, bad: Mapping[str, tuple[int, int]]) -> None:
        """Raise DataError where too large a share of some kind of row was set aside: {kind: (set aside, of)}."""
        if self.max_bad is None:
            return
        over = [
            f"{rows:,} of {of:,} {kind} ({rows / of:.2%})"
            for kind, (rows, of) in bad.items()
            if rows > self.max_bad * of
        ]
        if over:
            raise DataError(
                f"Too much was set aside: {'; '.join(over)}, and --max-bad allows {self.max_bad:.2%}. {_NOTHING} "
                "The same run without --max-bad, with --dry-run, says why each was."
            )


def limits(settings: Settings) -> Limits:
    """The limits that a person has set."""
    return Limits(settings.expect_users, settings.max_shadow_share, settings.max_bad)


def check_scope(connection: Connection, scope: Scope, settings: Settings, report: RunResult) -> None:
    """Raise DataError where the open snapshot has more shadow users than allowed, not those expected, or none of its users.

    Adds a warning where there are some of several domains, or nobody at all.
    """
    domains = [(str(domain), int(users)) for domain, users in connection.fetch_rows(queries.shadow_domains(scope))]
    shadow = sum(users for _, users in domains)
    users = connection.fetch_int(queries.user_count(scope)) if settings.max_shadow_share is not None else None
    limits(settings).check_user_count(shadow, users)
    if warning := multiple_domains_warning(domains):
        report.warnings.append(warning)
    if not shadow:
        _handle_no_shadow_users(connection.fetch_int(queries.user_count(scope)), scope, settings, report)


def _handle_no_shadow_users(users: int, scope: Scope, settings: Settings, report: RunResult) -> None:
    """Warn of a run without shadow users, where that is meant; else a word or a name is wrong: raise DataError.

    After a run that had some, --allow-empty is not enough: an empty snapshot would follow one that is not.
    """
    where = f" and ends with @{scope.domain}" if scope.domain else ""
    said = (
        f"No user's email begins with {scope.prefix!r}{where}, of {users:,} users, so there is nothing to learn from. "
        "See --shadow-prefix, --shadow-domain and the database's name"
    )
    before = next((night for night in reversed(report.previous_runs) if night.metrics.get("shadow users")), None)
    if settings.expect_users is None and settings.audience == "shadow":
        if before is not None:
            raise DataError(
                f"{said}; snapshot {before.name} was of {before.metrics['shadow users']:,.0f}, and an empty one would follow. "
                "Where that is meant, say --expect-users 0."
            )
        if not settings.allow_empty:
            raise DataError(f"{said}. Nothing was committed or published. Where that is meant, say --expect-users 0.")
    report.warnings.append(f"{said}.")


def check_triples(
    triples: Mapping[str | None, int], split: str, published: Mapping[str, Any], *, allowed: bool
) -> list[str]:
    """Raise DataError where there are no triples, or none in train, unless that is allowed; a warning for each part without.

    `triples` are those of each part of the split, of all under None where there is no split; `published` is what was counted.
    """
    empty = [part for part, number in triples.items() if not number]
    if not empty:
        return []
    if len(empty) == len(triples):
        what = f"There are no triples: {_why_none(published)}."
    else:
        counted = ", ".join(f"{part} {number:,}" for part, number in triples.items())
        what = f"A part of --split {split} has no triples ({counted})."
    if "train" in empty or None in empty:
        if not allowed:
            raise DataError(f"{what} {_NOTHING} {_remedy(published)}; where that is meant, say --allow-empty.")
        return [f"{what} That was allowed: files without rows are published, so that readers find the columns."]
    return [f"{what} It is published as a file without rows: see whether the split is the right one."]


def _why_none(published: Mapping[str, Any]) -> str:
    events = sum(published["events"].values())
    left_out = [loss for loss in by_reason("positives", published["positives_left_out"]) if loss.rows]
    if not events:
        return "there is no ranking event to make them of"
    if not left_out:
        return f"nothing was selected in any of {events:,} ranking events"
    return "; ".join(f"{loss.rows:,} positives were left out because the {loss.why}" for loss in left_out)


def _remedy(published: Mapping[str, Any]) -> str:
    reasons = published["positives_left_out"]
    if not sum(reasons.values()):
        return "See whether the database, --shadow-prefix, --audience and --split are the right ones"
    most = max(reasons, key=lambda reason: reasons[reason])
    options = {SMALL_CATALOG: "--min-catalog and --small-catalog"}.get(most, "--negatives and --reject")
    return f"See {options}, and --split"


def multiple_domains_warning(domains: Sequence[tuple[str, int]]) -> str | None:
    """A warning where the shadow users' addresses are of more than one domain; `domains` are (domain, users)."""
    if len(domains) < 2:
        return None
    shown = ", ".join(f"{domain or '(none)'} {users:,}" for domain, users in domains[:5])
    more = f" and {len(domains) - 5} more" if len(domains) > 5 else ""
    return (
        f"The shadow users' addresses are of {len(domains)} domains ({shown}{more}). If some are real people's, say "
        "--shadow-domain."
    )


def check_max_change(compared: Compared, allowed: float, *, stops: bool) -> list[str]:
    """A warning that names the figures which moved too far since the runs before, and says what to do.

    Raises DataError instead, where that is to stop the run: what moved that far in the last one already does not.
    """
    if not compared.moved:
        return []
    what = " ".join(_moved(compared.moved, allowed))
    see = "See whether the source lost rows or gained some (a restore, a purge, another database, another --shadow-prefix)"
    if stops and not all(each.stays for each in compared.moved):
        raise DataError(f"{what} {_NOTHING} {see}; if it is right so, run once with --no-fail-on-change.")
    return [f"{what} {see}; `bpr-etl diff` shows what else changed. If it is right so, nothing need be done."]


def comparison_skipped_note(compared: Compared) -> list[str]:
    """A note where the night before was made with other settings, so that its figures say nothing about this one's."""
    if not compared.changed_settings:
        return []
    options = ", ".join(f"--{name.replace('_', '-')}" for name in compared.changed_settings)
    what = "The figures" if set(compared.changed_settings) & set(ROW_SETTINGS) else "Triples and positives"
    return [f"{what} were not compared with the snapshots before: none of them has the same {options}."]


def _moved(moved: Sequence[Metric], allowed: float) -> Iterator[str]:
    """What moved, in a sentence for those with an expected range, and in one for each snapshot that others moved since."""
    if ranged := [each for each in moved if each.expected]:
        said = ", ".join(f"{_went(each)}, expected {_range(each)}" for each in ranged)
        yield f"Not what the {max(each.runs for each in ranged)} runs before lead one to expect (--max-change): {said}."
    for name in dict.fromkeys(each.since for each in moved if not each.expected):
        said = ", ".join(_went(each) for each in moved if not each.expected and each.since == name)
        yield f"Since snapshot {name}: {said}; --max-change allows {allowed:.0%}."


def _went(figure: Metric) -> str:
    share = "" if figure.change is None else f" ({figure.change:+.0%})"
    return f"{figure.name} went from {figure.before:,.0f} to {figure.value:,.0f}{share}"


def _range(figure: Metric) -> str:
    low, high = figure.expected or (0, 0)
    return f"{max(low, 0):,.0f} to {high:,.0f}"


def rejected_shares(counts: Mapping[str, Any], set_aside: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """What was set aside of what there was, by kind: (rows, of).

    `counts` are a run's own, as far as it has come; `set_aside` has the rows that broke a frame's contract.
    """
    dropped, too_large, skipped, left_out = (
        sum(counts.get(name, {}).values())
        for name in ("affinities_dropped", "openness_dropped", "days_without_event", "events_left_out")
    )
    seeds = counts.get("shadow_users", 0) - counts.get("shadow_users_without_persona", 0)
    return {
        **{f"rows of {frame}": share for frame, share in set_aside.items()},
        "affinities of seeds": (dropped, set_aside.get("seed_affinities", (0, 0))[1]),
        "openness of seeds": (too_large, seeds),
        "trip-days": (skipped, skipped + counts.get("ranking_events", 0)),
        "logged events": (left_out, counts.get("source_rows", {}).get("events", 0)),
    }

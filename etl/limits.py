"""Limits that a person sets on a night: whose rows it may touch, and how many bad ones it may leave out.

Pure: numbers in, a sentence or nothing out. Each of them stops the run before anything is committed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etl.choices import parse_expected
from etl.errors import DataError
from etl.nights import OF_ROWS, Change, Compared

_NOTHING = "Nothing was committed or published."


@dataclass(frozen=True)
class Limits:
    """What is allowed; None where nobody set a limit. Shares are of 1."""

    expect_users: str | None = None
    max_shadow_share: float | None = None
    max_bad: float | None = None

    def require_users(self, shadow: int, users: int | None) -> None:
        """Raise DataError where the shadow users are not as many as expected, or too many among all users.

        `users` counts all of them; it is needed where there is a limit to the share.
        """
        if self.expect_users is not None and not (expected := parse_expected(self.expect_users)).holds(shadow):
            raise DataError(
                f"There are {shadow:,} shadow users, and --expect-users says {expected}. {_NOTHING} See whether users "
                "came or went, or whether --shadow-prefix or --shadow-domain is another one now."
            )
        if self.max_shadow_share is not None and users and shadow > self.max_shadow_share * users:
            raise DataError(
                f"{shadow:,} of {users:,} users ({shadow / users:.1%}) would be shadow users, and --max-shadow-share allows "
                f"{self.max_shadow_share:.1%}. {_NOTHING} See whether --shadow-prefix and --shadow-domain say what you mean."
            )

    def require_few_bad(self, bad: Mapping[str, tuple[int, int]]) -> None:
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


def several_domains(domains: Sequence[tuple[str, int]]) -> str | None:
    """A warning where the shadow users' addresses are of more than one domain; `domains` are (domain, users)."""
    if len(domains) < 2:
        return None
    shown = ", ".join(f"{domain or '(none)'} {users:,}" for domain, users in domains[:5])
    more = f" and {len(domains) - 5} more" if len(domains) > 5 else ""
    return (
        f"The shadow users' addresses are of {len(domains)} domains ({shown}{more}). If some are real people's, say "
        "--shadow-domain."
    )


def require_usual(compared: Compared, allowed: float, *, stops: bool) -> list[str]:
    """A warning that names the figures which moved further than `--max-change` allows, and says what to do.

    Raises DataError instead, where that is to stop the night.
    """
    if not compared.moved:
        return []
    snapshots = dict.fromkeys(name for name, _ in compared.moved)
    said = "; ".join(
        f"Since snapshot {name}: {', '.join(_moved(change) for of, change in compared.moved if of == name)}"
        for name in snapshots
    )
    what = f"{said}; --max-change allows {allowed:.0%}."
    see = "See whether the source lost rows or gained some (a restore, a purge, another database, another --shadow-prefix)"
    if stops:
        raise DataError(f"{what} {_NOTHING} {see}; if it is right so, run once with --no-fail-on-change.")
    return [f"{what} {see}; `bpr-etl diff` shows what else changed. If it is right so, nothing need be done."]


def not_compared(compared: Compared) -> list[str]:
    """A note where the night before was made with other settings, so that its figures say nothing about this one's."""
    if not compared.differs:
        return []
    options = ", ".join(f"--{name.replace('_', '-')}" for name in compared.differs)
    what = "The figures" if set(compared.differs) & set(OF_ROWS) else "Triples and positives"
    return [f"{what} were not compared with the snapshots before: none of them has the same {options}."]


def _moved(change: Change) -> str:
    return f"{change.name} went from {change.before:,.0f} to {change.after:,.0f} ({change.share:+.0%})"


def bad_shares(counts: Mapping[str, Any], set_aside: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
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

"""What came of a night, as a textfile that Prometheus's node_exporter collects (`--metrics-file`).

Written by failed nights, too: these keep the figures, and the time, of the last night that went well.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from etl.errors import NothingToDo, SettingsError
from etl.reporting.history import run_metrics
from etl.runtime.files import put

MAX_CITIES = 100
"""With more cities than these, triples are not told by city: each would be a time series of its own."""

Sample = tuple[str, dict[str, str], float]

LAST_RUN, LAST_SUCCESS = "bpr_etl_last_run_timestamp_seconds", "bpr_etl_last_success_timestamp_seconds"
_ALWAYS = {
    LAST_RUN: "When bpr-etl last ended, well or not, in seconds since 1970 UTC.",
    LAST_SUCCESS: "When bpr-etl last ended well (exit code 0, or 99: nothing to do), in seconds since 1970 UTC.",
    "bpr_etl_exit_code": "Exit code of the last run: 0 done, 99 nothing to do, anything else failed.",
    "bpr_etl_run_seconds": "How long the last run took, in seconds.",
    "bpr_etl_peak_memory_bytes": "The most memory that the last run's process held, in bytes.",
}
_ON_SUCCESS = {
    "bpr_etl_step_seconds": ("Seconds of a step of the last good run; steps go on side by side.", ["step"]),
    "bpr_etl_rows": ("What the last good run came to: users, trips, events, triples and so on, by figure.", ["figure"]),
    "bpr_etl_left_out_rows": ("Rows that the last good run left out, by what they are and why.", ["what", "reason"]),
    "bpr_etl_triples": (f"Triples of a city in the last good run; only up to {MAX_CITIES} cities.", ["city"]),
    "bpr_etl_warnings": ("How many warnings the last good run gave.", []),
    "bpr_etl_auc": ("AUC of the last good run's probe, from 0 to 1, by ranking.", ["ranking"]),
}
METRICS = {
    **dict.fromkeys(_ALWAYS, ()),
    **{name: tuple(labels) for name, (_, labels) in _ON_SUCCESS.items()},
}
"""Every metric's name, and its labels."""


@dataclass(frozen=True)
class Outcome:
    """A run that has ended: when, after how long, with which exit code, and what `--json` says of it (empty: it failed)."""

    ended_at: datetime
    seconds: float
    exit_code: int
    peak_bytes: float
    facts: Mapping[str, Any]

    @property
    def succeeded(self) -> bool:
        """Whether it is a success: nothing to do is one."""
        return self.exit_code in (0, NothingToDo.exit_code)


def require_writable(path: Path) -> None:
    """Raise SettingsError where the file can't be written: told before a night's work, not after it."""
    folder = path.parent
    other = path.exists() and not path.is_file()  # to put a file in a device's or a pipe's place would harm others
    if other or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        why = "it is not a file" if other else f"{folder} is no folder that this user may write to"
        raise SettingsError(f"--metrics-file {path} can't be written: {why}. Make the folder, or name another file.")


def write(path: Path, outcome: Outcome) -> None:
    """Write the file anew: who reads it sees the old one or the new one, whole. Raises OSError."""
    registry = CollectorRegistry()
    earlier = list(_previous_samples(path))
    _write_always(registry, outcome, earlier)
    samples = list(_of(outcome.facts)) if outcome.succeeded else earlier
    for name, (text, labels) in _ON_SUCCESS.items():
        own = [(words, value) for of, words, value in samples if of == name]
        if not own:
            continue
        gauge = Gauge(name, text, labels, registry=registry)
        for words, value in own:
            with suppress(ValueError):  # an earlier file with labels of another release
                (gauge.labels(**words) if labels else gauge).set(value)
    # Not *.prom on its way: the collector takes up every file of that name. Readable for its user, whatever our umask says.
    put(path, generate_latest(registry), ".", 0o644)


def _write_always(registry: CollectorRegistry, outcome: Outcome, earlier: list[Sample]) -> None:
    values = {
        LAST_RUN: outcome.ended_at.timestamp(),
        LAST_SUCCESS: outcome.ended_at.timestamp() if outcome.succeeded else _value(earlier, LAST_SUCCESS),
        "bpr_etl_exit_code": outcome.exit_code,
        "bpr_etl_run_seconds": outcome.seconds,
        "bpr_etl_peak_memory_bytes": outcome.peak_bytes,
    }
    for name, value in values.items():
        if value is not None:  # a first night that failed has no success before it
            Gauge(name, _ALWAYS[name], registry=registry).set(value)


def _value(samples: list[Sample], name: str) -> float | None:
    return next((value for of, _, value in samples if of == name), None)


def _previous_samples(path: Path) -> Iterator[Sample]:
    """The samples of the file as it lies there; none where it can't be read as one."""
    try:
        families = list(text_string_to_metric_families(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return
    yield from ((each.name, dict(each.labels), each.value) for family in families for each in family.samples)


def _of(facts: Mapping[str, Any]) -> Iterator[Sample]:
    """The samples of a good night, from what `--json` says of it."""
    yield "bpr_etl_warnings", {}, len(facts.get("warnings", []))
    for step in facts.get("steps", []):
        yield "bpr_etl_step_seconds", {"step": step["step"]}, step["seconds"]
    for name, value in run_metrics(facts).items():
        if name.startswith("AUC"):
            yield "bpr_etl_auc", {"ranking": name.partition(" of ")[2] or "model"}, value
        elif not name.startswith("left out"):  # which the next has by reason
            yield "bpr_etl_rows", {"figure": name.replace(" ", "_")}, value
    for (what, reason), number in _left_out(facts).items():
        yield "bpr_etl_left_out_rows", {"what": what, "reason": reason}, number
    triples = facts.get("published", {}).get("triples", {})
    if len(triples) <= MAX_CITIES:
        yield from (("bpr_etl_triples", {"city": city}, number) for city, number in triples.items())


def _left_out(facts: Mapping[str, Any]) -> dict[tuple[str, str], int]:
    """Rows left out, by what and why. Their number does not grow with the data's: reasons and rules are the program's."""
    published = facts.get("published", {})
    groups = {
        "affinities": facts.get("affinities_dropped", {}),
        "openness": facts.get("openness_dropped", {}),
        "trip_days": facts.get("days_without_event", {}),
        "events": facts.get("events_left_out", {}),
        "positives": published.get("positives_left_out", {}),
        **{f"rows_of_{frame}": rules for frame, rules in facts.get("set_aside", {}).items()},
    }
    found = {(what, reason): number for what, reasons in groups.items() for reason, number in reasons.items()}
    if "shadow_users_without_persona" in facts:
        found["shadow_users", "without_persona"] = facts["shadow_users_without_persona"]
    if "cities_left_out" in published:
        events = published["events"]
        found["events", "small_catalog"] = sum(events[city] for city in published["cities_left_out"])
    return found

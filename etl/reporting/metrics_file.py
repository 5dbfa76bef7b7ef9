"""The outcome of a run as a textfile for the collector of Prometheus's node_exporter (`--metrics-file`).

Failed runs write it, too. They keep the samples, and the time, of the last run that succeeded.
"""

from __future__ import annotations

import os
from collections import Counter
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
from etl.reporting.wording import exclusions
from etl.runtime.files import put
from etl.snapshots.reading.snapshot import SNAPSHOTS

MAX_CITIES = 100
"""With more cities, triples are not split by city: each would be a time series of its own."""

_BEGINNINGS = (b"# HELP bpr_etl_", b"# TYPE bpr_etl_", b"bpr_etl_")
"""How a metrics file of ours begins, a damaged one too."""

Sample = tuple[str, dict[str, str], float]

LAST_RUN, LAST_SUCCESS = "bpr_etl_last_run_timestamp_seconds", "bpr_etl_last_success_timestamp_seconds"
METRICS: dict[str, tuple[str, tuple[str, ...]]] = {
    LAST_RUN: ("When bpr-etl last ended, well or not, in seconds since 1970 UTC.", ()),
    LAST_SUCCESS: ("When bpr-etl last ended well (exit code 0, or 99: nothing to do), in seconds since 1970 UTC.", ()),
    "bpr_etl_exit_code": ("Exit code of the last run: 0 done, 99 nothing to do, anything else failed.", ()),
    "bpr_etl_run_seconds": ("How long the last run took, in seconds.", ()),
    "bpr_etl_peak_memory_bytes": ("The most memory that the last run's process held, in bytes.", ()),
    "bpr_etl_step_seconds": ("Seconds of a step of the last successful run; some steps run in parallel.", ("step",)),
    "bpr_etl_rows": ("Rows of the last successful run: users, trips, events, triples and so on.", ("figure",)),
    "bpr_etl_written_rows": (
        "Rows of a table that the last successful run inserted, deleted or left unchanged.",
        ("table", "what"),
    ),
    "bpr_etl_left_out_rows": ("Rows that the last successful run excluded, by kind and reason.", ("what", "reason")),
    "bpr_etl_triples": (f"Triples of a city in the last successful run; up to {MAX_CITIES} cities.", ("city",)),
    "bpr_etl_warnings": ("Number of warnings of the last successful run.", ()),
    "bpr_etl_auc": ("AUC of the last successful run's probe, from 0 to 1, by ranking.", ("ranking",)),
}
"""Every metric's text and labels."""


@dataclass(frozen=True)
class Outcome:
    """A run that has ended. `facts` is what `--json` prints, empty where the run failed."""

    ended_at: datetime
    seconds: float
    exit_code: int
    peak_bytes: float
    facts: Mapping[str, Any]

    @property
    def succeeded(self) -> bool:
        """Whether the run succeeded; "nothing to do" is a success."""
        return self.exit_code in (0, NothingToDo.exit_code)


def require_writable(path: Path, out: str) -> None:
    """Raise SettingsError where the file must not or can't be written. Called before the run, so that no work is lost.

    `out` is the output location: a file among its snapshots would spoil one of them.
    """
    folder = path.parent
    snapshots = Path(out, SNAPSHOTS).resolve()
    if why := _foreign_content(path):
        pass
    elif "://" not in out and path.resolve().is_relative_to(snapshots):
        why = f"it would be among the snapshots in {snapshots}"
    elif not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        why = f"{folder} is no folder that this user may write to"
    if why:
        raise SettingsError(f"--metrics-file {path} can't be written: {why}. Make the folder, or name another file.")


def _foreign_content(path: Path) -> str | None:
    """Return why a path must not be replaced: it exists and is no metrics file of ours. None if it may be."""
    if not path.exists():
        return None
    if not path.is_file():  # replacing a device or a pipe would harm other programs
        return "it is not a file"
    with suppress(OSError), path.open("rb") as file:
        start = file.read(32)
        if start and not start.startswith(_BEGINNINGS):
            return "it holds something else than metrics of bpr-etl"
    return None


def write(path: Path, outcome: Outcome) -> None:
    """Replace the file atomically. Raises OSError, and ValueError where it is no metrics file."""
    if why := _foreign_content(path):
        raise ValueError(why)
    registry = CollectorRegistry()
    found = [*(_samples(outcome.facts) if outcome.succeeded else _previous_samples(path)), *_outcome_samples(outcome)]
    for name, (text, labels) in METRICS.items():
        own = [(values, value) for of, values, value in found if of == name]
        if not own:
            continue
        gauge = Gauge(name, text, labels, registry=registry)
        for values, value in own:  # a later one replaces one with the same labels
            with suppress(ValueError):  # an earlier file with labels of another release
                (gauge.labels(**values) if labels else gauge).set(value)
    # The temporary name must not end in .prom: the collector reads every such file. The mode lets the collector's user read it.
    put(path, generate_latest(registry), ".", 0o644)


def _outcome_samples(outcome: Outcome) -> Iterator[Sample]:
    """Yield the samples of any run, well or not."""
    yield LAST_RUN, {}, outcome.ended_at.timestamp()
    if outcome.succeeded:
        yield LAST_SUCCESS, {}, outcome.ended_at.timestamp()
    yield "bpr_etl_exit_code", {}, outcome.exit_code
    yield "bpr_etl_run_seconds", {}, outcome.seconds
    yield "bpr_etl_peak_memory_bytes", {}, outcome.peak_bytes


def _previous_samples(path: Path) -> Iterator[Sample]:
    """Yield the samples of the present file; none where it can't be parsed."""
    try:
        families = list(text_string_to_metric_families(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return
    yield from ((each.name, dict(each.labels), each.value) for family in families for each in family.samples)


def _samples(facts: Mapping[str, Any]) -> Iterator[Sample]:
    """Yield the samples of a successful run, from what `--json` prints."""
    yield "bpr_etl_warnings", {}, len(facts.get("warnings", []))
    for step in facts.get("steps", []):
        yield "bpr_etl_step_seconds", {"step": step["step"]}, step["seconds"]
    for name, value in run_metrics(facts).items():
        if name.startswith("AUC"):
            yield "bpr_etl_auc", {"ranking": name.partition(" of ")[2] or "model"}, value
        elif not name.startswith("left out"):  # bpr_etl_left_out_rows has these by reason
            yield "bpr_etl_rows", {"figure": name.replace(" ", "_")}, value
    for table, counts in facts.get("written", {}).items():
        yield from (("bpr_etl_written_rows", {"table": table, "what": what}, number) for what, number in counts.items())
    # Reasons and rules are the program's: the number of these series does not grow with the data.
    rows: Counter[tuple[str, str]] = Counter()
    for each in exclusions(facts):
        if each.labels is not None:
            rows[each.labels] += each.rows
    for (what, reason), number in rows.items():
        yield "bpr_etl_left_out_rows", {"what": what, "reason": reason}, number
    triples = facts.get("published", {}).get("triples", {})
    if len(triples) <= MAX_CITIES:
        yield from (("bpr_etl_triples", {"city": city}, number) for city, number in triples.items())

"""The run record: steps with their seconds and rows, counts, notes and warnings; and who follows a run.

Becomes the summary on the terminal, the JSON object and the manifest.
"""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from etl.runtime.cancellation import CancelToken
from etl.runtime.resources import __version__
from etl.settings.model import Settings

LIBRARIES = ("polars", "pyarrow", "connectorx", "adbc-driver-postgresql", "dataframely", "polars-hash", "numpy")

Progress = Callable[[str, int, int], object]
"""Called as work goes on: what is being done (a step's name, or that, a colon and more), pieces done, pieces in all."""


def no_progress(_what: str, _done: int, _total: int) -> None:
    """A `Progress` that does nothing."""


class RunObserver:
    """Follows a run. Its methods are called by several threads; here each of them does nothing."""

    def on_run_start(self, record: RunRecord) -> None:
        """A run begins, or begins again after a conflict with another session."""

    def on_step_start(self, step: Step) -> None:
        """A step begins, or goes on."""

    def on_step_end(self, step: Step, seconds: float) -> None:
        """A step ends, or pauses until its next piece, after so many seconds."""

    def on_progress(self, what: str, done: int, total: int) -> None:
        """See `Progress`."""


class ProgressObserver(RunObserver):
    """Passes progress on to a function."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_progress(self, what: str, done: int, total: int) -> None:
        """Call it."""
        self._progress(what, done, total)


@dataclass
class Step:
    """A step of a run: its seconds, its rows where it counts any, and the process's peak memory at its end, in MiB.

    `since` is when it began or went on, by `time.perf_counter`; None while it rests.
    """

    name: str
    seconds: float = 0.0
    rows: int | None = None
    peak_mib: float = 0.0
    since: float | None = field(default=None, repr=False, compare=False)

    def add(self, rows: int) -> None:
        """Count some more rows."""
        self.rows = (self.rows or 0) + rows

    def __iter__(self) -> Iterator[Any]:
        return iter((self.name, self.seconds, self.rows))


@cache
def library_versions() -> dict[str, str]:
    """Returns the versions of what decides the published bytes, and Python's."""
    from importlib.metadata import version  # noqa: PLC0415 - 0.01 s, which `--help` need not wait for

    return {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()}


def peak_mib() -> float:
    """Returns the most memory that this process has had so far, in MiB.

    Linux's VmHWM where there is one: `ru_maxrss` begins with the peak of the process that started this one.
    """
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@dataclass
class RunRecord:
    """What a run has done so far. Steps stand in the order in which they began; one that is done by bucket is one step.

    `counts` are those of the manifest. Some steps go on at the same time (the server takes the COPY while files are written),
    so the steps' seconds add up to more than `seconds`.
    """

    run_id: str
    started_at: datetime
    steps: list[Step] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    snapshot: str | None = None
    committed: bool = False
    retries: int = 0
    stop: CancelToken = field(default_factory=CancelToken, repr=False, compare=False)
    observer: RunObserver = field(default_factory=RunObserver, repr=False, compare=False)
    _began: float = field(default_factory=time.perf_counter, repr=False)

    def __post_init__(self) -> None:
        self.observer.on_run_start(self)

    @property
    def seconds(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._began

    def get_step(self, name: str) -> Step:
        """Returns the step of this name. A new one takes its place in the list now, though it may begin later."""
        found = next((each for each in self.steps if each.name == name), None)
        if found is None:
            self.steps.append(found := Step(name))
        return found

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[int], None]]:
        """Time a step, or go on with it. Yields a function that adds to the step's rows.

        Raises CancelledError where the run was cancelled.
        """
        self.stop.raise_if_cancelled()
        step = self.get_step(name)
        step.since = start = time.perf_counter()
        self.observer.on_step_start(step)
        try:
            yield step.add
        finally:
            seconds = time.perf_counter() - start
            step.seconds, step.since = step.seconds + seconds, None
            step.peak_mib = peak_mib()
            self.observer.on_step_end(step, seconds)

    def progress(self, what: str, done: int, total: int) -> None:
        """A `Progress` that tells the observer. Raises CancelledError where the run was cancelled."""
        self.stop.raise_if_cancelled()
        self.observer.on_progress(what, done, total)

    def facts_for_json(self) -> dict[str, Any]:
        """Returns what `--json` prints: `positives` are those that have a triple, as on the terminal.

        All that ranking events select, which the manifest counts as `positives`, are `positives_selected`.
        """
        counts = dict(self.counts)
        if "positives" in counts:
            counts["positives_selected"] = counts.pop("positives")
        if "published" in counts:
            counts["positives"] = counts["published"]["positives"]
        return {
            "run_id": self.run_id,
            "snapshot": self.snapshot,
            "committed": self.committed,
            "retries": self.retries,
            "notes": self.notes,
            "warnings": self.warnings,
            **self.timings(),
            **counts,
        }

    def timings(self) -> dict[str, Any]:
        """Returns seconds and rows per step, the seconds of the whole run, and the process's peak memory until now."""
        return {
            "steps": [{"step": each.name, "seconds": round(each.seconds, 3), "rows": each.rows} for each in self.steps],
            "seconds": round(self.seconds, 3),
            "peak_mib": round(peak_mib()),
        }

    def manifest_facts(self, settings: Settings, now: datetime) -> dict[str, Any]:
        """Returns what the manifest says of the run. It holds no secret."""
        return {
            "run_id": self.run_id,
            "started_at": self.started_at.isoformat(),
            "ended_at": now.isoformat(),
            "tool": {"name": "bpr-etl", "version": __version__},
            "libraries": library_versions(),
            "settings": settings.manifest_settings(),
            "profile": self.timings(),
            "warnings": self.warnings,
            **self.counts,
        }

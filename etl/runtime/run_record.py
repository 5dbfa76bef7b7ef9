"""A run's account of itself: seconds and rows per step, counts, notes, warnings. Becomes summary, JSON and manifest."""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from etl.runtime.cancellation import CancelToken
from etl.runtime.version import __version__
from etl.settings.model import Settings

LIBRARIES = ("polars", "pyarrow", "connectorx", "adbc-driver-postgresql", "dataframely", "polars-hash", "numpy")


Progress = Callable[[str, int, int], object]
"""Told of progress: what is being done, how many steps of it are done, of how many."""


class RunObserver:
    """Told of a run as it goes on, by several threads at a time. This one does nothing with it.

    Also a `Progress`, which is told of a step's name and how far it is.
    """

    def __call__(self, what: str, done: int, of: int) -> None:
        """Something that is done piece by piece has come so far."""

    def on_run_start(self, report: RunResult) -> None:
        """A run begins, or begins anew after it was in somebody's way."""

    def on_step_start(self, step: Step) -> None:
        """A step begins, or goes on."""

    def on_step_end(self, step: Step, seconds: float) -> None:
        """A step ends, or pauses until its next piece, after so many seconds."""


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


def peak_mib() -> float:
    """The most memory that this process has had so far, in MiB.

    Linux's VmHWM where there is one: `ru_maxrss` begins with the peak of the process that started this one.
    """
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@dataclass
class RunResult:
    """What a run did: seconds and rows per step, counts, warnings, and where the snapshot is. Becomes summary and JSON.

    `snapshot` is None where nothing was published (a dry run, or `skip_unchanged` with the newest snapshot's data).
    `committed` is whether the database was written. `counts` are those of the manifest. `nights` are the last snapshots before
    this one in the same --out, oldest first, `figures` what this one comes to beside them.

    Steps stand in the order in which they began. One that is done by bucket is one step. Some go on beside others (the server
    takes the COPY while files are written), so the steps' seconds are more than the `seconds` of all of it.
    """

    run_id: str
    started_at: datetime
    steps: list[Step] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    previous_runs: list[Any] = field(default_factory=list)
    metrics: list[Any] = field(default_factory=list)
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
        """Since the beginning."""
        return time.perf_counter() - self._began

    def get_step(self, name: str) -> Step:
        """The step of this name; it has its place from now on, if it hadn't one already."""
        found = next((each for each in self.steps if each.name == name), None)
        if found is None:
            self.steps.append(found := Step(name))
        return found

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[int], None]]:
        """Time a step, or go on with it; what the block calls with a number is added to the step's rows.

        Raises StoppedError where an end was asked for.
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

    def facts_for_json(self) -> dict[str, Any]:
        """What `--json` prints: `positives` are those that have a triple, as on the terminal.

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
        """Seconds and rows per step, seconds of all of it, and the process's peak memory until now."""
        return {
            "steps": [{"step": each.name, "seconds": round(each.seconds, 3), "rows": each.rows} for each in self.steps],
            "seconds": round(self.seconds, 3),
            "peak_mib": round(peak_mib()),
        }

    def manifest_facts(self, settings: Settings, now: datetime) -> dict[str, Any]:
        """The manifest's account of the run: nothing in it is a secret."""
        return {
            "run_id": self.run_id,
            "started_at": self.started_at.isoformat(),
            "ended_at": now.isoformat(),
            "tool": {"name": "bpr-etl", "version": __version__},
            "libraries": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
            "settings": settings.manifest_settings(),
            "profile": self.timings(),
            "warnings": self.warnings,
            **self.counts,
        }

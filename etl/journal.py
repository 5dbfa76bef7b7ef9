"""A run's account of itself: seconds and rows per step, counts, notes, warnings. Becomes summary, JSON and manifest."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from typing import Any

from etl import __version__
from etl.config import Settings

log = logging.getLogger(__name__)

LIBRARIES = ("polars", "pyarrow", "connectorx", "adbc-driver-postgresql", "dataframely", "polars-hash", "numpy")


@dataclass
class Report:
    """What a run did: seconds and rows per step, counts per step, and where the snapshot is. Becomes summary and JSON."""

    run_id: str
    started_at: datetime
    steps: list[tuple[str, float, int | None]] = field(default_factory=list)
    counts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    snapshot: str | None = None
    committed: bool = False
    retries: int = 0

    @contextmanager
    def step(self, name: str) -> Iterator[Callable[[int], None]]:
        """Time a step; what the block calls with a number becomes the step's rows."""
        rows: list[int] = []
        start = time.perf_counter()
        yield rows.append
        self.steps.append((name, time.perf_counter() - start, rows[-1] if rows else None))
        log.debug("%s: %.2f s", name, self.steps[-1][1])

    def facts_for_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "run_id": self.run_id,
            "snapshot": self.snapshot,
            "committed": self.committed,
            "retries": self.retries,
            "notes": self.notes,
            "warnings": self.warnings,
            "steps": [{"step": name, "seconds": round(seconds, 3), "rows": rows} for name, seconds, rows in self.steps],
            **self.counts,
        }

    def facts(self, settings: Settings, now: datetime) -> dict[str, Any]:
        """The manifest's account of the run: nothing in it is a secret."""
        return {
            "run_id": self.run_id,
            "started_at": self.started_at.isoformat(),
            "ended_at": now.isoformat(),
            "tool": {"name": "bpr-etl", "version": __version__},
            "libraries": {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()},
            "settings": settings.public(),
            "warnings": self.warnings,
            **self.counts,
        }

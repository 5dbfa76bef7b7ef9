"""The work on the server in a run's transaction: one thread does it in order, while others rank and hash."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import polars as pl

from etl.load.changes import TableWriter
from etl.pipeline.context import RunResult
from etl.postgres.bulk_read import BackgroundReads
from etl.runtime.workers import OrderedWorker

T = TypeVar("T")


@dataclass(frozen=True)
class Writes:
    """Work on the server: done by one thread in the order submitted, each piece as a step of the run.

    Rows are hashed by another thread. `standing` has the hashes of the existing rows, by model; None if all are replaced.
    """

    result: RunResult
    worker: OrderedWorker
    hashing: ThreadPoolExecutor
    standing: BackgroundReads | None

    def submit(self, step: str, work: Callable[[Callable[[int], None]], T]) -> Future[T]:
        """Schedule `work`. It is called with a function that counts the step's rows."""
        self.result.get_step(step)  # steps are listed in the order in which they were submitted

        def timed() -> T:
            with self.result.step(step) as rows:
                return work(rows)

        return self.worker.submit(timed)

    def begin(self, table: TableWriter, earlier: TableWriter | None = None) -> None:
        """Wait for the hashes of a table's rows, or delete the rows if all are to be replaced.

        They are also deleted if nearly all rows of the `earlier` table were new, as after a change of the seed: these most
        likely are, too, and comparing them would cost more than it could save.
        """
        standing = self.standing
        if standing is None:
            self.submit("delete", lambda rows: rows(table.delete()))
            return

        def compare(rows: Callable[[int], None]) -> None:
            if earlier is not None and earlier.is_mostly_new:
                self._delete(table)
            else:
                rows(table.compare(standing.result(table.model)))

        self.submit("compare", compare)
        self.result.get_step("delete")

    def add(
        self, step: str, table: TableWriter, to_rows: Callable[[Any], pl.DataFrame], frame: pl.DataFrame
    ) -> Future[None]:
        """Write a frame as the table's rows. The caller must not use the frame object afterwards."""
        converted = self.hashing.submit(to_rows, frame)

        def work(rows: Callable[[int], None]) -> None:
            batch = converted.result()
            table.learn(batch)
            # A clone: Polars deadlocks if two threads use one frame object and one of them converts it to Arrow.
            rows(table.add(batch, self.hashing.submit(table.hash, batch.clone())))
            if table.should_replace:
                self._delete(table)
                rows(table.copy_held())

        return self.submit(step, work)

    def end(self, step: str, table: TableWriter) -> None:
        """Write the rows that were held back until all were known, and check the table."""

        def work(rows: Callable[[int], None]) -> None:
            self._delete(table)
            rows(table.copy_held())
            table.check()

        self.submit(step, work)

    def _delete(self, table: TableWriter) -> None:
        with self.result.step("delete") as rows:
            rows(table.delete())

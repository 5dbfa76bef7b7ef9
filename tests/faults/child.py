"""`python -m tests.faults.child SPEC ARGUMENT...`: the real command line, which sends itself a signal at a chosen moment.

The moment is told by a number that does not depend on the machine's speed: the n-th call (or return) of a Python function
of `etl`, in whichever thread; or by a name: a step's begin or end, the n-th batch of a COPY, the n-th write to a file.
"""

# ruff: noqa: PLC0415 - what is armed is imported only then; the rest as the command line itself does it
from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ETL = str(Path(__file__).parents[2] / "etl") + os.sep


def hit(number: int) -> None:
    """Send ourselves the signal; SIGKILL does not come back."""
    os.kill(os.getpid(), number)


def at_call(n: int, act: Callable[[], None]) -> Callable[[], int]:
    """Act at the n-th call or return of a function of `etl`; gives how many there have been so far."""
    count = itertools.count(1)
    seen = [0]

    def profile(frame: Any, event: str, _argument: object) -> None:
        if event in {"call", "return"} and frame.f_code.co_filename.startswith(ETL):
            seen[0] = next(count)
            if seen[0] == n:
                act()

    threading.setprofile(profile)
    return lambda: seen[0]


def at_step(name: str, edge: str, act: Callable[[], None]) -> None:
    """Act at the first begin or end of a step."""
    from etl.runtime.run_record import RunRecord

    original, done = RunRecord.step, []

    @contextmanager
    def step(self: RunRecord, step_name: str) -> Iterator[Callable[[int], None]]:
        hits = step_name == name and not done
        if hits:
            done.append(True)
        if hits and edge == "begin":
            act()
        with original(self, step_name) as rows:
            yield rows
        if hits and edge == "end":
            act()

    RunRecord.step = step  # type: ignore[method-assign]


def at_copy(n: int, act: Callable[[], None]) -> None:
    """Act when the n-th batch of all COPYs is handed to the driver: the server has the ones before it."""
    import pyarrow as pa

    from etl.postgres.connection import Connection

    original, count = Connection.copy, itertools.count(1)

    def copy(self: Connection, schema: str, table: str, rows: pa.RecordBatchReader) -> int:
        def watched() -> Iterator[pa.RecordBatch]:
            for batch in rows:
                if next(count) == n:
                    act()
                yield batch

        return original(self, schema, table, pa.RecordBatchReader.from_batches(rows.schema, watched()))

    Connection.copy = copy  # type: ignore[method-assign]


def at_write(n: int, act: Callable[[], None]) -> None:
    """Act at the n-th write of a row group, before it is on its way."""
    import pyarrow.parquet as pq

    original, count = pq.ParquetWriter.write_table, itertools.count(1)

    def write_table(self: Any, *arguments: Any, **options: Any) -> Any:
        if next(count) == n:
            act()
        return original(self, *arguments, **options)

    pq.ParquetWriter.write_table = write_table


def at_link(n: int, act: Callable[[], None]) -> None:
    """Act when the n-th file of the newest snapshot has been linked into the new one."""
    original, count = Path.hardlink_to, itertools.count(1)

    def hardlink_to(self: Path, target: Any) -> None:
        original(self, target)
        if next(count) == n:
            act()

    Path.hardlink_to = hardlink_to  # type: ignore[method-assign]


def at_upload(n: int, act: Callable[[], None]) -> None:
    """Act when the n-th file is sent to an object store; in a folder, when the n-th is put on disk."""
    from etl.snapshots.stores import object_store as objects
    from etl.snapshots.stores import store

    count = itertools.count(1)

    def counted(original: Callable[..., None]) -> Callable[..., None]:
        def watched(*arguments: Any) -> None:
            if next(count) == n:
                act()
            original(*arguments)

        return watched

    objects.ObjectStore._upload = counted(objects.ObjectStore._upload)  # type: ignore[method-assign]
    store._sync = counted(store._sync)


def at_latest(act: Callable[[], None]) -> None:
    """Act when LATEST is about to be written."""
    from etl.snapshots.reading.snapshot import LATEST
    from etl.snapshots.stores import object_store as objects
    from etl.snapshots.stores import store

    def watched(original: Callable[..., None]) -> Callable[..., None]:
        def write(self: Any, path: str, content: bytes) -> None:
            if path == LATEST:
                act()
            original(self, path, content)

        return write

    def write_latest(self: Any, name: str, original: Any = objects.ObjectStore.write_latest) -> None:
        act()
        original(self, name)

    store.LocalStore.write = watched(store.LocalStore.write)  # type: ignore[method-assign]
    objects.ObjectStore.write_latest = write_latest  # type: ignore[method-assign]


def main() -> None:
    """Arm what the specification says, and be `bpr-etl`."""
    spec = json.loads(sys.argv[1])
    sys.argv = ["bpr-etl", *sys.argv[2:]]
    number = getattr(signal, spec.get("signal", "SIGKILL"))

    def act() -> None:
        hit(number)

    kind = spec["at"]
    if kind == "step":
        at_step(spec["name"], spec["edge"], act)
    elif kind == "copy":
        at_copy(spec["n"], act)
    elif kind == "write":
        at_write(spec["n"], act)
    elif kind == "link":
        at_link(spec["n"], act)
    elif kind == "upload":
        at_upload(spec["n"], act)
    elif kind == "latest":
        at_latest(act)
    seen = at_call(spec["n"] if kind == "call" else -1, act) if kind in {"call", "count"} else None
    import cli

    try:
        cli.main()
    finally:
        if kind == "count" and seen is not None:
            sys.stderr.write(f"calls: {seen()}\n")


if __name__ == "__main__":
    main()

"""Times reading the slots, the largest query of a run, with connectorx and ADBC.

connectorx on 1, 2 and 4 connections and streamed; ADBC whole and streamed.

Each reader runs in a process of its own, which reports seconds and peak memory. A process that reads nothing shows what the
libraries take. The streamed readers drop each batch. A second process per reader sums a hash over all rows, in any order:
all readers must have read the same rows.

    python -m benchmarks.reading.readers [--database-url URL] [--scales 1 10] [--rounds 3] [--save]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from benchmarks.harness.command import command_parser, present, with_exit_codes
from benchmarks.harness.database import PREFIX, fresh_database, server
from benchmarks.harness.measure import CallResult, call_in_process, interleave
from benchmarks.harness.results import environment, table_row, variant_entry
from etl.extract import queries
from etl.pipeline import database
from etl.postgres.naming import Naming
from etl.postgres.scope import Scope
from etl.postgres.url import parse_url
from etl.settings.sources import load_settings

NOTHING = "nothing read"
BATCH_ROWS = 65_536
VARIANTS = (
    NOTHING,
    "connectorx, 1 partition",
    "connectorx, 2 partitions",
    "connectorx, 4 partitions",
    "connectorx, streamed",
    "ADBC, whole",
    "ADBC, streamed",
)

_SLOTS = queries.slots(Scope(Naming("model"), PREFIX), "shadow")


def read(url: str, name: str, *, check: bool) -> dict[str, Any]:
    """Read the slots in one way. Returns seconds, rows, and with `check` a checksum (which takes memory of its own).

    The libraries are loaded before the clock starts.
    """
    import adbc_driver_postgresql.dbapi  # noqa: F401, PLC0415 - each reader is alone in a process
    import connectorx  # noqa: F401, PLC0415

    address = parse_url(url, {})
    start, rows, checksum = time.perf_counter(), 0, 0
    for part in _parts(name, str(address.connectorx_url(tls=False, name="bpr-etl-benchmark")), address.libpq):
        rows += part.num_rows
        if check:
            checksum = (checksum + _checksum(pl.DataFrame(pl.from_arrow(part)))) % 2**64
    return {"seconds": time.perf_counter() - start, "rows": rows, "checksum": str(checksum)}


def _parts(name: str, url: str, libpq: str) -> Iterator[Any]:
    """Yield what a reader returns: one table, or batch after batch."""
    import adbc_driver_postgresql.dbapi as adbc  # noqa: PLC0415
    import connectorx  # noqa: PLC0415

    library, _, way = name.partition(", ")
    if name == NOTHING:
        return
    if library == "connectorx" and way == "streamed":
        yield from connectorx.read_sql(
            url, _SLOTS, protocol="binary", return_type="arrow_stream", batch_size=BATCH_ROWS
        )
    elif library == "connectorx":
        parts = int(way.split()[0])
        # A list of queries is what connectorx reads at once; the hash is one that any PostgreSQL has.
        sql = (
            [f'{_SLOTS} AND hashtext(s."id") & {parts - 1} = {part}' for part in range(parts)] if parts > 1 else _SLOTS
        )
        yield connectorx.read_sql(url, sql, protocol="binary", return_type="arrow")
    else:
        with adbc.connect(libpq) as connection, connection.cursor() as cursor:
            cursor.execute(_SLOTS)
            if way == "whole":
                yield cursor.fetch_arrow_table()
            else:
                yield from cursor.fetch_record_batch()


def _checksum(part: pl.DataFrame) -> int:
    """Return an order-independent sum of row hashes. Types are unified, because connectorx streams int4 as int64."""
    alike = part.select(pl.col(pl.String), pl.col("day_number", "sort_order").cast(pl.Int32))
    return int(alike.hash_rows().to_numpy().sum(dtype=np.uint64))


def measure(url: str, rounds: int) -> dict[str, Any]:
    """Compare what all readers read, then time each in processes of its own. The database holds a synthetic world."""
    answers = {name: _read(url, name, check=True).answer for name in VARIANTS[1:]}
    if len({(answer["rows"], answer["checksum"]) for answer in answers.values()}) != 1:
        raise RuntimeError(f"The readers read different rows: {answers}.")
    peaks: dict[str, list[float]] = {name: [] for name in VARIANTS}

    def once(name: str) -> float:
        done = _read(url, name, check=False)
        peaks[name].append(done.peak_mib)
        return done.seconds

    seconds = interleave({name: partial(once, name) for name in VARIANTS}, rounds)
    return {
        "rows": {"slots": answers[VARIANTS[1]]["rows"]},
        "variants": {name: variant_entry(seconds[name], statistics.median(peaks[name])) for name in VARIANTS},
    }


def _read(url: str, name: str, *, check: bool) -> CallResult:
    return call_in_process("benchmarks.reading.readers:read", url=url, name=name, check=check)


def markdown(results: dict[str, Any]) -> str:
    """Seconds and peak memory of each reader at each scale."""
    by_scale = results["by_scale"]
    heads = [f"scale {scale}, {part}" for scale in by_scale for part in ("s", "MiB")]
    lines = [table_row(("reader", *heads)), table_row(("---", *("---:" for _ in heads)))]
    for name in VARIANTS:
        cells = []
        for found in by_scale.values():
            each = found["variants"][name]
            cells += [f"{each['median']:.2f}", f"{each['peak_mib']:,.0f}"]
        lines.append(table_row((name, *cells)))
    rows = ", ".join(f"{found['rows']['slots']:,} at scale {scale}" for scale, found in by_scale.items())
    return "\n".join(lines) + f"\n\nSlots read: {rows}.\n"


@with_exit_codes
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table."""
    parser = command_parser("reading.readers", "Ways to read the slots.", database=True)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 10.0], help="sizes of the synthetic world")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    by_scale: dict[str, Any] = {}
    with server(given.database_url) as url_of:
        made_with = environment(url_of(""))
        for scale in given.scales:
            with fresh_database(url_of, "readers") as url:
                database.synth(load_settings({"database_url": url, "scale": scale}, {}))
                by_scale[f"{scale:g}"] = measure(url, given.rounds)
    results = {
        "made_with": made_with,
        "rows": {f"slots at scale {scale}": found["rows"]["slots"] for scale, found in by_scale.items()},
        "variants": {
            f"{name}, scale {scale}": each
            for scale, found in by_scale.items()
            for name, each in found["variants"].items()
        },
        "targets": [],
        "by_scale": by_scale,
    }
    head = "# Reading the slots\n\n`python -m benchmarks readers --save`."
    return present("readers", results, head, markdown(results), save=given.save)


if __name__ == "__main__":
    sys.exit(main())

"""PySpark's way from events to triples, run by an interpreter that has PySpark: it imports nothing of this project.

    PYTHON benchmarks/triples/spark.py SNAPSHOT OUT ROUNDS FOLDER...

Prints one JSON line: seconds per round (starting the session is not timed, and a first round that warms the JVM up is left
out), the JVM's peak memory, Spark's version.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any


def triples(session: Any, snapshot: Path, folders: list[str]) -> Any:
    """Return the triples as a lazy frame: selected items are removed from the candidates before they are exploded."""
    paths = [str(snapshot / "events" / folder) for folder in folders]
    session.read.option("basePath", str(snapshot / "events")).parquet(*paths).createOrReplaceTempView("events")
    return session.sql("""
        SELECT user_id, pos_item, neg_item, timestamp, event_id, trip_id, day_number, 'ranking' AS neg_source,
               array_contains(candidate_ids, pos_item) AS pos_in_candidates, CAST(1 AS FLOAT) AS weight, city
        FROM (SELECT *, filter(candidate_ids, item -> NOT array_contains(selected_ids, item)) AS left_over FROM events)
        LATERAL VIEW explode(selected_ids) AS pos_item
        LATERAL VIEW explode(left_over) AS neg_item""")


def main(arguments: list[str]) -> int:
    """Time the rounds and print the results; the last round's files stay."""
    spark = importlib.import_module("pyspark.sql")  # by name: this file is also checked where there is no PySpark
    snapshot, out, rounds, *folders = arguments
    session = (
        spark.SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.memory", "6g")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.hadoop.parquet.compression.codec.zstd.level", "1")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("ERROR")
    seconds = []
    for _ in range(int(rounds) + 1):
        shutil.rmtree(out, ignore_errors=True)
        start = time.perf_counter()
        rows = triples(session, Path(snapshot), folders)
        rows.write.partitionBy("city").option("compression", "zstd").parquet(out)
        seconds.append(time.perf_counter() - start)
    answer = {"seconds": seconds[1:], "peak_mib": _peak(session), "version": session.version}
    session.stop()
    print(json.dumps(answer), flush=True)
    return 0


def _peak(session: Any) -> float | None:
    """Return the JVM's peak resident memory in MiB, if Linux reports it."""
    pid = session.sparkContext._jvm.java.lang.ProcessHandle.current().pid()  # noqa: SLF001 - PySpark has no other door
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

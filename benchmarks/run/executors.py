"""Compares runs on Ray with local runs, at the design's size and 10 times that, and a run that loses a Ray node.

The cluster is several node processes with one core each on this machine. It is up when the time begins; starting it is
measured separately. All runs are further runs (nothing to backfill) and must publish the same bytes. With few cores, shared by
driver, workers and server, Ray can hardly win: this measures what it costs.

    python -m benchmarks.run.executors [--database-url URL] [--scales 1 10] [--rounds 3] [--save]
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import etl
from benchmarks.harness.command import command_parser, present, with_exit_codes
from benchmarks.harness.database import fresh_database, server, vacuum
from benchmarks.harness.measure import interleave, median_ratio, seconds_of
from benchmarks.harness.results import environment, table_row, variant_entry, variants_table
from etl.pipeline import database
from etl.runtime.cancellation import CancelToken
from etl.runtime.executor import RAY
from etl.runtime.ray_executor import cluster
from etl.settings.sources import load_settings

NODES, STORE = 2, 256 << 20
BUCKETS = {1.0: 8, 10.0: 16}
"""Into how many buckets Ray's runs are cut; a run here takes what it takes by itself (1 and 4)."""

STEPS = ("rankings", "write events", "compact", "stage files")
Seconds = dict[str, list[float]]


class Cluster:
    """A cluster of node processes on loopback with a session of this process: a head without cores, and the others."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster  # noqa: PLC0415 - after the environment has been told

        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.others = [self.cluster.add_node(num_cpus=1, object_store_memory=STORE) for _ in range(NODES)]
        self.cluster.connect()
        self.cluster.wait_for_nodes()

    def kill_one(self) -> None:
        """Kill a node process with its workers and its data, like the loss of a machine."""
        self.cluster.remove_node(self.others.pop(), allow_graceful=False)


@contextmanager
def start_cluster() -> Iterator[Cluster]:
    """Yield a cluster for the length of the block."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_LOG_TO_DRIVER": "0"}
    import ray  # noqa: PLC0415

    made = Cluster()
    try:
        yield made
    finally:
        ray.shutdown()
        made.cluster.shutdown()


@dataclass
class Runs:
    """Runs on one database: the steps' seconds of each variant, and what all of them published."""

    url: str
    folder: Path
    steps: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    contents: set[str] = field(default_factory=set)
    triples: int = 0

    def run(
        self, name: str, engine: str, buckets: int | None, progress: Callable[[str, int, int], object] | None = None
    ) -> float:
        """Run once. Returns its seconds. Raises RuntimeError if it publishes other bytes than the runs before it."""
        vacuum(self.url)
        out = self.folder / "out"
        settings = load_settings({"database_url": self.url, "out": str(out), "engine": engine, "buckets": buckets}, {})
        reports: list[Any] = []
        told = progress or (lambda _what, _done, _of: None)
        seconds = seconds_of(lambda: reports.append(etl.run(settings, progress=told)))
        self.contents.add(Path(str(reports[0].snapshot)).name.split("-")[1])
        self.triples = sum(reports[0].counts["published"]["triples"].values())
        if len(self.contents) != 1:
            raise RuntimeError(f"{name}: two runs on the same source published different bytes.")
        shutil.rmtree(out)
        self.steps.setdefault(name, []).append({step: took for step, took, _ in reports[0].steps})
        return seconds

    def medians(self, name: str) -> dict[str, float]:
        """Return seconds of the steps that an executor takes part in: medians of all rounds."""
        runs = self.steps[name][1:] or self.steps[name]  # the first one is the comparison, and warms workers up
        return {step: sorted(run[step] for run in runs)[len(runs) // 2] for step in STEPS}


def compare_at(runs: Runs, scale: float, rounds: int) -> Seconds:
    """Time local runs, local runs with the cluster's number of buckets, and Ray runs, in turns; bytes are compared first."""
    buckets = BUCKETS.get(scale, 16)
    variants: dict[str, tuple[str, int | None]] = {
        "local": ("local", None),
        f"local, {buckets} buckets": ("local", buckets),
        f"Ray, {NODES} nodes of 1 core, {buckets} buckets": (RAY, buckets),
    }
    for name, (engine, count) in variants.items():
        runs.run(name, engine, count)

    def timed_run(name: str) -> Callable[[], float]:
        return lambda: runs.run(name, *variants[name])

    return interleave({name: timed_run(name) for name in variants}, rounds)


def time_run_with_lost_node(runs: Runs, cluster: Cluster, buckets: int) -> float:
    """Time a run in which a node is lost when half of the buckets are staged."""
    lost: list[threading.Thread] = []

    def told(what: str, done: int, of: int) -> None:
        if what == "stage files" and done >= of // 2 and not lost:
            lost.append(threading.Thread(target=cluster.kill_one))
            lost[0].start()

    seconds = runs.run("Ray, a node killed in mid-run", RAY, buckets, told)
    if not lost:
        raise RuntimeError("The run ended before a node could be killed.")
    lost[0].join()
    return seconds


def time_cluster_start() -> Seconds:
    """Time the start of a cluster, its first task, and its end."""
    seconds: Seconds = {f"a cluster of its own: {what}": [] for what in ("start", "first task", "end")}
    for _ in range(3):
        began = time.perf_counter()
        with cluster(None, CancelToken()) as engine:
            started = time.perf_counter()
            engine.submit(_no_task, engine.broadcast(None)).result()
            done = time.perf_counter()
        moments = (began, started, done, time.perf_counter())
        for each, (first, second) in zip(seconds.values(), pairwise(moments), strict=True):
            each.append(second - first)
    return seconds


def _no_task(_shared: None) -> None:
    """A step that does nothing."""


def measure(url_of: Callable[[str], str], scales: Sequence[float], rounds: int, folder: Path) -> dict[str, Any]:
    """Run all measurements."""
    results: dict[str, Any] = {"variants": {name: variant_entry(each) for name, each in time_cluster_start().items()}}
    results |= {"steps": {}, "ratios": {}, "triples": {}}
    for scale in scales:
        with fresh_database(url_of, "executors") as url, start_cluster() as cluster:
            results["made_with"] = environment(url)
            database.synth(load_settings({"database_url": url, "scale": scale}, {}))
            runs = Runs(url, folder)
            seconds = compare_at(runs, scale, rounds)
            here, there = seconds["local"], list(seconds.values())[-1]
            if scale == max(scales):
                seconds["Ray, a node killed in mid-run"] = [
                    time_run_with_lost_node(runs, cluster, BUCKETS.get(scale, 16))
                ]
        at = f"scale {scale:g}: "
        results["variants"] |= {at + name: variant_entry(each) for name, each in seconds.items()}
        results["steps"] |= {at + name: runs.medians(name) for name in runs.steps}
        results["ratios"][f"scale {scale:g}"] = round(median_ratio(there, here), 3)
        results["triples"][f"scale {scale:g}"] = runs.triples
    return results


def markdown(results: dict[str, Any]) -> str:
    """Format the ratios, the variants, and the steps that an executor takes part in."""
    lines = [
        f"{scale}: {results['triples'][scale]:,} triples; a run on Ray takes {each:.2f} times as long as a local run."
        for scale, each in results["ratios"].items()
    ]
    table = [table_row(("variant", *(f"{step}, s" for step in STEPS))), table_row(("---", *("---:" for _ in STEPS)))]
    table += [table_row((name, *(f"{each[step]:.2f}" for step in STEPS))) for name, each in results["steps"].items()]
    steps = "\n".join(table)
    said = "  \n".join(lines)
    return f"{said}\n\n{variants_table(results['variants'])}\nSteps, medians; some run at the same time:\n\n{steps}\n"


@with_exit_codes
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the tables."""
    parser = command_parser("run.executors", "Compare runs on Ray with local runs.", database=True)
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 10.0], help="sizes of the synthetic world")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    with (
        server(given.database_url) as url_of,
        tempfile.TemporaryDirectory(prefix="bpr-engines-", dir=os.environ.get("BPR_ETL_BENCH_DIR")) as folder,
    ):
        results = measure(url_of, sorted(given.scales), given.rounds, Path(folder))
    head = (
        "# Runs on Ray and local runs\n\n`python -m benchmarks executors --save`: further runs, bytes compared "
        f"first. The cluster: {NODES} node processes of one core each on this machine, which driver and server share."
    )
    return present("executors", results, head, markdown(results), save=given.save)


if __name__ == "__main__":
    sys.exit(main())

"""A night on Ray beside a night in this process, at the design's size and ten times that; then one that loses a machine.

The cluster is one of several node processes on this machine, a core each, which stands when the time begins; what starting one
takes is measured by itself. Further nights, with nothing to backfill; all must publish the very same bytes. Where cores are few
and shared with the driver and the server, Ray can hardly win: what is measured here is what it costs.

    python -m benchmarks.engines [--database-url URL] [--scales 1 10] [--rounds 3] [--save]
"""

from __future__ import annotations

import argparse
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
from benchmarks.measure import ratio, side_by_side, timed
from benchmarks.surroundings import circumstances, fresh_database, keep, line, server, tidy, variant, variants_table
from etl.commands import database
from etl.errors import EtlError
from etl.runtime.cancellation import CancelToken
from etl.runtime.executor import RAY
from etl.runtime.ray_executor import cluster
from etl.settings.model import load_settings

NODES, STORE = 2, 256 << 20
BUCKETS = {1.0: 8, 10.0: 16}
"""Into how many buckets Ray's nights are cut; a night here takes what it takes by itself (1 and 4)."""

STEPS = ("rankings", "write events", "compact", "stage files")
Seconds = dict[str, list[float]]


class Nodes:
    """A cluster of node processes on loopback, in which this process has a session: a head without cores, and the others."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster  # noqa: PLC0415 - after the environment has been told

        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.others = [self.cluster.add_node(num_cpus=1, object_store_memory=STORE) for _ in range(NODES)]
        self.cluster.connect()
        self.cluster.wait_for_nodes()

    def kill_one(self) -> None:
        """End a node process with its workers and what it keeps, as when a machine goes."""
        self.cluster.remove_node(self.others.pop(), allow_graceful=False)


@contextmanager
def nodes() -> Iterator[Nodes]:
    """A cluster for the length of a block."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_LOG_TO_DRIVER": "0"}
    import ray  # noqa: PLC0415

    made = Nodes()
    try:
        yield made
    finally:
        ray.shutdown()
        made.cluster.shutdown()


@dataclass
class Nights:
    """Nights on one database: the steps' seconds of each variant, and what all of them published."""

    url: str
    folder: Path
    steps: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    contents: set[str] = field(default_factory=set)
    triples: int = 0

    def run(
        self, name: str, engine: str, buckets: int | None, progress: Callable[[str, int, int], object] | None = None
    ) -> float:
        """One night; gives its seconds. Raises RuntimeError when it publishes other bytes than those before it."""
        tidy(self.url)
        out = self.folder / "out"
        settings = load_settings({"database_url": self.url, "out": str(out), "engine": engine, "buckets": buckets}, {})
        reports: list[Any] = []
        told = progress or (lambda _what, _done, _of: None)
        seconds = timed(lambda: reports.append(etl.run(settings, progress=told)))
        self.contents.add(Path(str(reports[0].snapshot)).name.split("-")[1])
        self.triples = sum(reports[0].counts["published"]["triples"].values())
        if len(self.contents) != 1:
            raise RuntimeError(f"{name}: two nights on the same source published different bytes.")
        shutil.rmtree(out)
        self.steps.setdefault(name, []).append({step: took for step, took, _ in reports[0].steps})
        return seconds

    def medians(self, name: str) -> dict[str, float]:
        """Seconds of the steps that an engine has a part in, medians of all rounds."""
        nights = self.steps[name][1:] or self.steps[name]  # the first one is the comparison, and warms workers up
        return {step: sorted(night[step] for night in nights)[len(nights) // 2] for step in STEPS}


def side_by_side_at(nights: Nights, scale: float, rounds: int) -> Seconds:
    """Here, here in as many buckets as there, and there: compared first, then in turns."""
    buckets = BUCKETS.get(scale, 16)
    variants: dict[str, tuple[str, int | None]] = {
        "local": ("local", None),
        f"local, {buckets} buckets": ("local", buckets),
        f"Ray, {NODES} nodes of 1 core, {buckets} buckets": (RAY, buckets),
    }
    for name, (engine, count) in variants.items():
        nights.run(name, engine, count)

    def timed_night(name: str) -> Callable[[], float]:
        return lambda: nights.run(name, *variants[name])

    return side_by_side({name: timed_night(name) for name in variants}, rounds)


def with_a_loss(nights: Nights, cluster: Nodes, buckets: int) -> float:
    """A night in which a node is lost when half of the buckets are staged."""
    lost: list[threading.Thread] = []

    def told(what: str, done: int, of: int) -> None:
        if what == "stage files" and done >= of // 2 and not lost:
            lost.append(threading.Thread(target=cluster.kill_one))
            lost[0].start()

    seconds = nights.run("Ray, a node killed in mid-run", RAY, buckets, told)
    if not lost:
        raise RuntimeError("The night ended before a node could be killed.")
    lost[0].join()
    return seconds


def starting() -> Seconds:
    """What a cluster of our own takes to start, to do its first task, and to end."""
    seconds: Seconds = {f"a cluster of its own: {what}": [] for what in ("start", "first task", "end")}
    for _ in range(3):
        began = time.perf_counter()
        with cluster(None, CancelToken()) as engine:
            started = time.perf_counter()
            engine.submit(_nothing, engine.broadcast(None)).result()
            done = time.perf_counter()
        moments = (began, started, done, time.perf_counter())
        for each, (first, second) in zip(seconds.values(), pairwise(moments), strict=True):
            each.append(second - first)
    return seconds


def _nothing(_shared: None) -> None:
    """A step that does nothing."""


def measure(url_of: Callable[[str], str], scales: Sequence[float], rounds: int, folder: Path) -> dict[str, Any]:
    """All of it."""
    results: dict[str, Any] = {"variants": {name: variant(each) for name, each in starting().items()}}
    results |= {"steps": {}, "ratios": {}, "triples": {}}
    for scale in scales:
        with fresh_database(url_of, "engines") as url, nodes() as cluster:
            results["made_with"] = circumstances(url)
            database.synth(load_settings({"database_url": url, "scale": scale}, {}))
            nights = Nights(url, folder)
            seconds = side_by_side_at(nights, scale, rounds)
            here, there = seconds["local"], list(seconds.values())[-1]
            if scale == max(scales):
                seconds["Ray, a node killed in mid-run"] = [with_a_loss(nights, cluster, BUCKETS.get(scale, 16))]
        at = f"scale {scale:g}: "
        results["variants"] |= {at + name: variant(each) for name, each in seconds.items()}
        results["steps"] |= {at + name: nights.medians(name) for name in nights.steps}
        results["ratios"][f"scale {scale:g}"] = round(ratio(there, here), 3)
        results["triples"][f"scale {scale:g}"] = nights.triples
    return results


def markdown(results: dict[str, Any]) -> str:
    """The ratios, the variants, and the steps that an engine has a part in."""
    lines = [
        f"{scale}: {results['triples'][scale]:,} triples; a night on Ray takes {each:.2f} times what it takes here."
        for scale, each in results["ratios"].items()
    ]
    table = [line(("variant", *(f"{step}, s" for step in STEPS))), line(("---", *("---:" for _ in STEPS)))]
    table += [line((name, *(f"{each[step]:.2f}" for step in STEPS))) for name, each in results["steps"].items()]
    steps = "\n".join(table)
    said = "  \n".join(lines)
    return f"{said}\n\n{variants_table(results['variants'])}\nSteps, medians; some go on beside others:\n\n{steps}\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, and give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description="A night on Ray beside one here.")
    parser.add_argument("--database-url", help="a server where databases may be created (default: the embedded one)")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 10.0], help="sizes of the synthetic world")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/engines.json and .md")
    given = parser.parse_args(arguments)
    try:
        with (
            server(given.database_url) as url_of,
            tempfile.TemporaryDirectory(prefix="bpr-engines-", dir=os.environ.get("BPR_ETL_BENCH_DIR")) as folder,
        ):
            results = measure(url_of, sorted(given.scales), given.rounds, Path(folder))
    except EtlError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(markdown(results), end="")
    if given.save:
        head = (
            "# A night on Ray beside a night here\n\n`python -m benchmarks.engines --save`: further nights, bytes compared "
            f"first. The cluster: {NODES} node processes of one core each on this machine, beside the driver and the server."
        )
        keep("engines", results, head, markdown(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())

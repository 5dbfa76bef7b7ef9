"""A night at the design's size: the whole command in a process of its own, as cron calls it, and its steps.

On a fresh database with the synthetic world at scale 1: the first night, with everything to backfill, then further nights
with nothing to backfill. Every further night must publish the very bytes of the one before.

    python -m benchmarks.night [--database-url URL] [--nights 5] [--scale 1] [--save]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.surroundings import RESULTS, circumstances, fresh_database, line, said, server
from etl import pipeline
from etl.config import resolve
from etl.errors import EtlError

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Night:
    """One night: seconds of the whole process, seconds per step inside it, and what it published."""

    seconds: float
    steps: dict[str, float]
    rows: dict[str, int]
    content: str


def one_night(url: str, out: str) -> Night:
    """Run the command and read its JSON answer."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "cli.py", "run", "--json", "--out", out],
        cwd=ROOT,
        env=os.environ | {"BPR_ETL_DATABASE_URL": url},
        stdout=subprocess.PIPE,
        check=True,
    )
    seconds = time.perf_counter() - start
    answer = json.loads(done.stdout)
    steps = {step["step"]: step["seconds"] for step in answer["steps"]}
    rows = {step["step"]: step["rows"] for step in answer["steps"] if step["rows"] is not None}
    return Night(round(seconds, 3), steps, rows, Path(answer["snapshot"]).name.split("-")[1])


def measure(url: str, out: str, nights: int, scale: float) -> list[Night]:
    """The first night and the further ones. Raises RuntimeError when two of them publish different bytes."""
    pipeline.synth(resolve({"database_url": url, "scale": scale}, {}))
    measured = [one_night(url, out) for _ in range(nights + 1)]
    if len({night.content for night in measured}) != 1:
        raise RuntimeError("Two nights on the same source published different bytes.")
    return measured


def markdown(nights: Sequence[Night]) -> str:
    """Seconds per step: the first night, and the median of the further ones."""
    first, further = nights[0], nights[1:]
    lines = [line(("step", "rows", "first night, s", "further nights, s")), line(("---", "---:", "---:", "---:"))]
    for name in first.steps:
        later = statistics.median(night.steps[name] for night in further)
        rows = f"{first.rows[name]:,}" if name in first.rows else ""
        lines.append(line((name, rows, f"{first.steps[name]:.2f}", f"{later:.2f}")))
    inside = statistics.median(sum(night.steps.values()) for night in further)
    whole = statistics.median(night.seconds for night in further)
    lines.append(line(("all steps", "", f"{sum(first.steps.values()):.2f}", f"{inside:.2f}")))
    lines.append(line(("the whole process", "", f"{first.seconds:.2f}", f"{whole:.2f}")))
    return "\n".join(lines) + "\n"


def save(nights: Sequence[Night], scale: float, made_with: dict[str, Any]) -> None:
    """Write `results/night.json` and `results/night.md`."""
    RESULTS.mkdir(exist_ok=True)
    document = {"made_with": made_with, "scale": scale, "nights": [asdict(night) for night in nights]}
    (RESULTS / "night.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    head = (
        f"# A night at scale {scale:g}\n\n`python -m benchmarks.night --save`: the first night has everything to backfill, "
        f"the further ones ({len(nights) - 1}, medians) nothing.\n\n{said(made_with)}\n\n"
    )
    (RESULTS / "night.md").write_text(head + markdown(nights), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, and give the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.night", description="Time nights of the whole command.")
    parser.add_argument("--database-url", help="a server where databases may be created (default: the embedded one)")
    parser.add_argument("--nights", type=int, default=5, help="how many nights after the first")
    parser.add_argument("--scale", type=float, default=1.0, help="size of the synthetic world")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/night.json and .md")
    given = parser.parse_args(arguments)
    try:
        with (
            server(given.database_url) as url_of,
            fresh_database(url_of, "night") as url,
            tempfile.TemporaryDirectory(prefix="bpr-night-") as out,
        ):
            nights = measure(url, out, given.nights, given.scale)
            made_with = circumstances(url)
    except EtlError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(markdown(nights), end="")
    if given.save:
        save(nights, given.scale, made_with)
    return 0


if __name__ == "__main__":
    sys.exit(main())

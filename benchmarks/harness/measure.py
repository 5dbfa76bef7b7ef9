"""Timing and memory measurement.

The machine is noisy: one time says little, and times from different hours can't be compared. So the variants of a comparison
take turns, round after round. Results are medians, and the median of the ratios of paired rounds. Memory is measured in a
process of its own.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

_CHILD = """
import importlib, json, sys, time
module, _, name = sys.argv[1].partition(":")
function = getattr(importlib.import_module(module), name)
arguments = json.loads(sys.argv[2])
start = time.perf_counter()
answer = function(**arguments)
seconds = time.perf_counter() - start
# Not ru_maxrss: it begins with the peak of the process that started this one.
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
print("\\n" + json.dumps({"answer": answer, "seconds": seconds, "peak_mib": peak}))
"""

# A small process between this one and the command: a child's ru_maxrss begins with its parent's peak (docs/pitfalls.md, 21).
_WATCHER = """
import json, os, subprocess, sys, time
started, start = time.time(), time.perf_counter()
with open(sys.argv[1], "wb") as answer:
    child = subprocess.Popen(sys.argv[2:], stdout=answer)
    _, status, used = os.wait4(child.pid, 0)
seconds = time.perf_counter() - start
print(json.dumps({"exit_code": os.waitstatus_to_exitcode(status), "started_at": started, "seconds": seconds,
                  "user": used.ru_utime, "system": used.ru_stime, "peak_mib": used.ru_maxrss / 1024}))
"""


@dataclass(frozen=True)
class CallResult:
    """Result of a function in a process of its own: its return value, seconds inside it, peak memory of the process in MiB."""

    answer: Any
    seconds: float
    peak_mib: float


def call_in_process(target: str, environment: Mapping[str, str] | None = None, **arguments: Any) -> CallResult:
    """Call `module:function` with JSON-able keyword arguments in a new interpreter; its return value must be JSON-able, too.

    Where the answer is a mapping with `seconds`, those count: a function may time only the part that is compared.
    """
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, target, json.dumps(arguments)],
        cwd=ROOT,
        env=dict(environment) if environment is not None else None,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    found = json.loads(done.stdout.strip().splitlines()[-1])
    answer = found["answer"]
    seconds = answer["seconds"] if isinstance(answer, dict) and "seconds" in answer else found["seconds"]
    return CallResult(answer, float(seconds), float(found["peak_mib"]))


@dataclass(frozen=True)
class CommandResult:
    """Result of a command: stdout, start (seconds since 1970), wall seconds, processor time, peak memory in MiB."""

    answer: str
    started_at: float
    seconds: float
    user: float
    system: float
    peak_mib: float


def run_command(command: Sequence[str], environment: Mapping[str, str] | None = None) -> CommandResult:
    """Run a command as a process of its own, as cron does. Raises RuntimeError when it fails."""
    with tempfile.TemporaryDirectory(prefix="bpr-watched-") as folder:
        answer = Path(folder) / "stdout"
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _WATCHER, str(answer), *command],
            cwd=ROOT,
            env=dict(environment) if environment is not None else None,
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        found = json.loads(done.stdout)
        if code := found.pop("exit_code"):
            raise RuntimeError(f"`{' '.join(command)}` ended with exit code {code}.")
        return CommandResult(answer.read_text(encoding="utf-8"), **found)


def seconds_of(work: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleave(variants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Return seconds per variant and round. Variants report their own seconds; the order rotates from round to round."""
    names = list(variants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for place in range(len(names)):
            name = names[(place + turn) % len(names)]
            seconds[name].append(variants[name]())
    return seconds


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Return the median of the ratios of paired rounds."""
    return statistics.median(above / below for above, below in zip(numerator, denominator, strict=True))

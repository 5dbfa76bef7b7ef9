"""Result files: the environment of a measurement, entries for variants and targets, Markdown tables."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from etl.postgres.connection import connect
from etl.postgres.url import parse_url
from etl.runtime.resources import __version__
from etl.runtime.run_record import LIBRARIES

RESULTS = Path(__file__).resolve().parents[1] / "results"


def table_row(cells: Iterable[str]) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def environment(url: str | None = None) -> dict[str, Any]:
    """What a measurement depends on apart from the code: versions, the server's (None without one), the machine."""
    libraries = {name: version(name) for name in LIBRARIES}
    return {
        "tool": __version__,
        "libraries": libraries | {"python": platform.python_version()},
        "server": _server_version(url) if url is not None else None,
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _proc_field("/proc/cpuinfo", "model name") or platform.machine(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
    }


def _server_version(url: str) -> str:
    with connect(parse_url(url, {})) as connection:
        return str(connection.fetch_rows("SELECT current_setting('server_version')")[0][0])


def _proc_field(path: str, name: str) -> str | None:
    """Return the first value of a field in one of the kernel's files; None if there is no such file or field."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError:
        return None
    values = (
        value.strip() for key, _, value in (row.partition(":") for row in text.splitlines()) if key.strip() == name
    )
    return next(values, None)


def describe_environment(made_with: Mapping[str, Any]) -> str:
    """Describe the environment in one sentence."""
    libraries = ", ".join(f"{name} {number}" for name, number in made_with["libraries"].items())
    server = f", PostgreSQL {made_with['server']}" if made_with.get("server") else ""
    memory = f", {made_with['memory_mib'] / 1024:.0f} GiB" if "memory_mib" in made_with else ""
    cpu = f" ({made_with['cpu']})" if "cpu" in made_with else ""
    return f"bpr-etl {made_with['tool']}{server}, {made_with['cores']} cores{cpu}{memory}; {libraries}."


def variant_entry(seconds: Sequence[float], peak_mib: float | None = None) -> dict[str, Any]:
    """Return the entry of a variant in the common shape of results."""
    account: dict[str, Any] = {
        "seconds": [round(each, 4) for each in seconds],
        "median": round(statistics.median(seconds), 4),
    }
    return account | ({} if peak_mib is None else {"peak_mib": round(peak_mib, 1)})


def target_entry(
    what: str, measured: float, *, at_most: float | None = None, at_least: float | None = None
) -> dict[str, Any]:
    """Return the entry of a target: what was measured, and whether it is met. Exactly one bound is given."""
    if (at_most is None) == (at_least is None):
        raise ValueError("Give one bound, `at_most` or `at_least`.")
    met = measured <= at_most if at_most is not None else at_least is not None and measured >= at_least
    said_so = f"at most {at_most:g}" if at_most is not None else f"at least {at_least:g}"
    return {"what": what, "target": said_so, "measured": round(measured, 3), "met": met}


def targets_table(targets: Iterable[Mapping[str, Any]]) -> str:
    """Return the targets as a Markdown table."""
    lines = [table_row(("what", "target", "measured", "")), table_row(("---", "---:", "---:", "---"))]
    lines += [
        table_row((each["what"], each["target"], f"{each['measured']:,.2f}", "met" if each["met"] else "**missed**"))
        for each in targets
    ]
    return "\n".join(lines) + "\n"


def variants_table(variants: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the variants as a Markdown table: median, fastest and slowest round, peak memory where it was measured."""
    lines = [table_row(("variant", "median, s", "rounds, s", "peak, MiB")), table_row(("---", "---:", "---:", "---:"))]
    for name, each in variants.items():
        rounds = f"{min(each['seconds']):.2f} to {max(each['seconds']):.2f} ({len(each['seconds'])})"
        peak = f"{each['peak_mib']:,.0f}" if "peak_mib" in each else ""
        lines.append(table_row((name, f"{each['median']:.2f}", rounds, peak)))
    return "\n".join(lines) + "\n"


def save_results(name: str, results: Mapping[str, Any], head: str, text: str) -> None:
    """Write `results/<name>.json` and `<name>.md`: the head, the environment, the tables."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(
        f"{head}\n\n{describe_environment(results['made_with'])}\n\n{text}", encoding="utf-8"
    )

"""Collects all results: targets, medians, plots, and the generated section of docs/performance.md.

Reads `benchmarks/results/*.json`; measures nothing. Writes `results/README.md`, the plots `results/side_by_side.svg` and
`results/scale.svg` (they need matplotlib, extra `bench`), and the part of docs/performance.md between
`<!-- performance -->` and `<!-- /performance -->`, if the page has these lines.

    python -m benchmarks.harness.collect
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.harness.results import RESULTS, describe_environment, table_row

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
BEGIN, END = "<!-- performance -->", "<!-- /performance -->"
ORDER = ("run", "steady", "triples", "candidates", "sampling", "server_writes", "readers", "scale", "expand_scale")
PANELS = {
    "run": "A run at the design's size",
    "triples": "From events to triples on disk",
    "candidates": "Candidates, 10,000 nodes a city",
}
PLOTS = {
    "side_by_side.svg": "bpr-etl compared with other ways: seconds, logarithmic",
    "scale.svg": "Seconds and peak memory against scale, logarithmic",
}
_LARGEST = ", 10,000 nodes"
_SETUP_PARTS = frozenset({"synth"})
_RESULTS_LINK = "../benchmarks/results"  # from the page

Results = Mapping[str, Mapping[str, Any]]


def read(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """Return the results that have targets or variants, by name."""
    found = {}
    for path in sorted(folder.glob("*.json"), key=lambda path: (_sort_key(path.stem), path.stem)):
        document = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(document, dict) and ("targets" in document or "variants" in document):
            found[path.stem] = document
    return found


def _sort_key(name: str) -> int:
    return ORDER.index(name) if name in ORDER else len(ORDER)


def targets(results: Results, folder: str) -> str:
    """All targets in one table, missed ones included. `folder` is the path to the result pages, relative to the page."""
    lines = [table_row(("what", "target", "measured", "", "from")), table_row(("---", "---", "---:", "---", "---"))]
    for name, document in results.items():
        for each in document.get("targets", ()):
            met = "met" if each["met"] else "**missed**"
            source = f"[{name}]({folder}{name}.md)"
            lines.append(table_row((each["what"], each["target"], _format_number(each["measured"]), met, source)))
    return "\n".join(lines) + "\n"


def _format_number(value: float) -> str:
    """Format with three significant digits, or without decimals from 100 on."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def page(results: Results) -> str:
    """Return the text of the results' README."""
    head = (
        "# Measurements\n\n`make bench` (minutes) and `make bench-full` (an hour or more) measure again; `python -m "
        "benchmarks.harness.collect` makes this page from the JSON files. Ratios are medians of paired rounds.\n"
    )
    plots = [f"![{what}]({name})\n" for name, what in PLOTS.items() if (RESULTS / name).exists()]
    parts = [head, f"## Targets\n\n{targets(results, '')}", *plots]
    for name, document in results.items():
        parts.append(f"## [{name}]({name}.md)\n\n{describe_environment(document['made_with'])}\n")
        if document.get("variants"):
            parts.append(_medians(document["variants"]))
    return "\n".join(parts)


def _medians(variants: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [table_row(("variant", "median, s", "rounds", "peak, MiB")), table_row(("---", "---:", "---:", "---:"))]
    for name, each in variants.items():
        peak = f"{each['peak_mib']:,.0f}" if each.get("peak_mib") is not None else ""
        lines.append(table_row((name, _format_number(each["median"]), str(len(each["seconds"])), peak)))
    return "\n".join(lines) + "\n"


def section(results: Results) -> str:
    """Return the section of docs/performance.md: environments, targets, plots."""
    machines: dict[str, list[str]] = {}
    for name, document in results.items():
        machines.setdefault(describe_environment(document["made_with"]), []).append(name)
    made_with = "\n\n".join(f"{', '.join(names)}: {where}" for where, names in machines.items())
    plots = "\n\n".join(
        f"![{what}]({_RESULTS_LINK}/{name})" for name, what in PLOTS.items() if (RESULTS / name).exists()
    )
    more = "More, with every variant: [every measurement](measured.md)."
    return f"{BEGIN}\n\n{made_with}\n\n{targets(results, f'{_RESULTS_LINK}/')}\n{plots}\n\n{more}\n\n{END}"


def update_page(results: Results, of: Path = PAGE) -> bool:
    """Rewrite the section. Returns false if the page has no markers for it."""
    text = of.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        return False
    of.write_text(f"{before}{section(results)}{after}", encoding="utf-8")
    return True


def panels(results: Results) -> dict[str, dict[str, float]]:
    """Return medians by panel and variant. Of candidates, only those at the largest size."""
    found = {}
    for name, title in PANELS.items():
        medians = {what: each["median"] for what, each in results.get(name, {}).get("variants", {}).items()}
        if any(what.endswith(_LARGEST) for what in medians):
            medians = {w.removesuffix(_LARGEST): m for w, m in medians.items() if w.endswith(_LARGEST)}
        if medians:
            found[title] = medians
    return found


def scale_curves(results: Results) -> dict[str, list[tuple[float, float, float]]]:
    """Return (scale, seconds, peak MiB) by what was run, from `scales` of scale.json and expand_scale.json."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for source in ("scale", "expand_scale"):
        for account in results.get(source, {}).get("scales", ()):
            for what, used in _measured_parts(account):
                point = (account["scale"], used["seconds"], used["peak_mib"])
                found.setdefault(what or "expand alone", []).append(point)
    return found


def _measured_parts(account: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the parts of a scale's entry that have seconds and memory; the entry itself has an empty name."""
    for what, used in {"": account, **account}.items():
        if what not in _SETUP_PARTS and isinstance(used, Mapping) and {"seconds", "peak_mib"} <= used.keys():
            yield what, used


def draw(results: Results) -> None:
    """Draw the plots that have data."""
    if find_spec("matplotlib") is None:
        print("No plots: matplotlib is not installed (the extra `bench`).", file=sys.stderr)
        return
    from benchmarks.harness.plots import bars, curves  # noqa: PLC0415 - matplotlib is an extra

    if side_by_side := panels(results):
        bars(side_by_side, RESULTS / "side_by_side.svg")
    if scales := scale_curves(results):
        curves(scales, RESULTS / "scale.svg")


def main(arguments: Sequence[str] | None = None) -> int:
    """Collect the results and print the targets."""
    argparse.ArgumentParser(
        prog="python -m benchmarks.harness.collect", description="Put the results together."
    ).parse_args(arguments)
    results = read()
    if not results:
        print(f"There are no results in {RESULTS}: run `python -m benchmarks --save` first.", file=sys.stderr)
        return 1
    draw(results)
    (RESULTS / "README.md").write_text(page(results), encoding="utf-8")
    print(targets(results, ""), end="")
    if not update_page(results):
        print(f"{PAGE.name} is as it was: it has no {BEGIN} and {END}.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())

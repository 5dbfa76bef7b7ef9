"""All results in one place: the targets in one table, the variants' medians, the plots, and the section of docs/performance.md.

Reads `benchmarks/results/*.json` and measures nothing. Writes `results/README.md`, `results/side_by_side.svg` and
`results/scale.svg` (these with matplotlib, the extra `bench`), and, in docs/performance.md, what stands between the lines
`<!-- performance -->` and `<!-- /performance -->`, if they are there.

    python -m benchmarks.collect
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.surroundings import RESULTS, line, said

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- performance -->", "<!-- /performance -->"
ORDER = ("night", "triples", "candidates", "draws", "floors", "readers", "scale", "expand_scale")
PANELS = {
    "night": "A night at the design's size",
    "triples": "From events to triples on disk",
    "candidates": "Candidates, 10,000 nodes a city",
}
PLOTS = {
    "side_by_side.svg": "Ours beside the other ways: seconds, logarithmic",
    "scale.svg": "Seconds and peak memory against scale, logarithmic",
}
_LARGEST = ", 10,000 nodes"
_MADE_FIRST = frozenset({"synth"})
_WHERE = "../benchmarks/results"  # from the page

Results = Mapping[str, Mapping[str, Any]]


def read(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """The results of the common shape, by name: those that have targets or variants."""
    found = {}
    for path in sorted(folder.glob("*.json"), key=lambda path: (_place(path.stem), path.stem)):
        document = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(document, dict) and ("targets" in document or "variants" in document):
            found[path.stem] = document
    return found


def _place(name: str) -> int:
    return ORDER.index(name) if name in ORDER else len(ORDER)


def targets(results: Results, folder: str) -> str:
    """All targets in one table, misses included; `folder` is where the pages lie, seen from the one that shows it."""
    lines = [line(("what", "target", "measured", "", "from")), line(("---", "---", "---:", "---", "---"))]
    for name, document in results.items():
        for each in document.get("targets", ()):
            met = "met" if each["met"] else "**missed**"
            source = f"[{name}]({folder}{name}.md)"
            lines.append(line((each["what"], each["target"], _figure(each["measured"]), met, source)))
    return "\n".join(lines) + "\n"


def _figure(value: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def page(results: Results) -> str:
    """The results' own README."""
    head = (
        "# What was measured\n\n`make bench` (minutes) and `make bench-full` (up to an hour) measure again; `python -m "
        "benchmarks.collect` makes this page of what the JSON files here say. Ratios are medians of paired rounds.\n"
    )
    plots = [f"![{what}]({name})\n" for name, what in PLOTS.items() if (RESULTS / name).exists()]
    parts = [head, f"## Targets\n\n{targets(results, '')}", *plots]
    for name, document in results.items():
        parts.append(f"## [{name}]({name}.md)\n\n{said(document['made_with'])}\n")
        if document.get("variants"):
            parts.append(_medians(document["variants"]))
    return "\n".join(parts)


def _medians(variants: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [line(("variant", "median, s", "rounds", "peak, MiB")), line(("---", "---:", "---:", "---:"))]
    for name, each in variants.items():
        peak = f"{each['peak_mib']:,.0f}" if each.get("peak_mib") is not None else ""
        lines.append(line((name, _figure(each["median"]), str(len(each["seconds"])), peak)))
    return "\n".join(lines) + "\n"


def section(results: Results) -> str:
    """The page's section: circumstances, targets, plots."""
    machines: dict[str, list[str]] = {}
    for name, document in results.items():
        machines.setdefault(said(document["made_with"]), []).append(name)
    made_with = "\n\n".join(f"{', '.join(names)}: {where}" for where, names in machines.items())
    plots = "\n\n".join(f"![{what}]({_WHERE}/{name})" for name, what in PLOTS.items() if (RESULTS / name).exists())
    more = "More, with every variant: [every measurement](measured.md)."
    return f"{BEGIN}\n\n{made_with}\n\n{targets(results, f'{_WHERE}/')}\n{plots}\n\n{more}\n\n{END}"


def update_page(results: Results, of: Path = PAGE) -> bool:
    """Write the section anew; false where the page has no place for it."""
    text = of.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        return False
    of.write_text(f"{before}{section(results)}{after}", encoding="utf-8")
    return True


def panels(results: Results) -> dict[str, dict[str, float]]:
    """What is shown side by side: medians, of candidates those at the largest size alone."""
    found = {}
    for name, title in PANELS.items():
        medians = {what: each["median"] for what, each in results.get(name, {}).get("variants", {}).items()}
        if any(what.endswith(_LARGEST) for what in medians):
            medians = {w.removesuffix(_LARGEST): m for w, m in medians.items() if w.endswith(_LARGEST)}
        if medians:
            found[title] = medians
    return found


def lines_of_scale(results: Results) -> dict[str, list[tuple[float, float, float]]]:
    """(scale, seconds, peak MiB) by what was run: `scales` of scale.json and expand_scale.json."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for source in ("scale", "expand_scale"):
        for account in results.get(source, {}).get("scales", ()):
            for what, used in _used(account):
                point = (account["scale"], used["seconds"], used["peak_mib"])
                found.setdefault(what or "expand alone", []).append(point)
    return found


def _used(account: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The parts of one scale's account that say seconds and memory, or the account itself, which has no name."""
    for what, used in {"": account, **account}.items():
        if what not in _MADE_FIRST and isinstance(used, Mapping) and {"seconds", "peak_mib"} <= used.keys():
            yield what, used


def draw(results: Results) -> None:
    """The plots, where there is something to show."""
    if find_spec("matplotlib") is None:
        print("No plots: matplotlib is not installed (the extra `bench`).", file=sys.stderr)
        return
    from benchmarks.plots import bars, curves  # noqa: PLC0415 - matplotlib is an extra

    if side_by_side := panels(results):
        bars(side_by_side, RESULTS / "side_by_side.svg")
    if scales := lines_of_scale(results):
        curves(scales, RESULTS / "scale.svg")


def main(arguments: Sequence[str] | None = None) -> int:
    """Collect, and say what was written."""
    argparse.ArgumentParser(prog="python -m benchmarks.collect", description="Put the results together.").parse_args(
        arguments
    )
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

"""What the models of docs/consumers.md are worth: its recipes, run as they stand there, next to popularity by users.

On the five cities of `benchmarks.run.realdata`, where BPR_ETL_REALDATA names their folder, and on the synthetic world at the
design's size, published with `--split last-trip --negatives recommended --small-catalog keep --task triples --task next`.
A recipe whose library is missing is left out. RecBole needs an environment of its own, which `--recbole` names.

    python -m benchmarks.training_value.recipes [--database-url URL] [--recbole PYTHON] [--save]
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import etl
from benchmarks.harness.command import command_parser, present, with_exit_codes
from benchmarks.harness.database import fresh_database, server
from benchmarks.harness.results import environment, table_row
from benchmarks.run import realdata
from benchmarks.training_value.row_order import PAGE
from etl.pipeline import database
from etl.settings.sources import load_settings
from etl.snapshots.conversion import to_recbole
from etl.snapshots.reading.snapshot import open_snapshot

OPTIONS = {
    "split": "last-trip",
    "negatives": ["recommended"],
    "small_catalog": "keep",
    "task": ["triples", "next"],
    "schema": "public",
}
JUDGED = {
    "BPR with early stopping": None,
    "Interactions with implicit": "implicit",
    "Interactions with LensKit": "lenskit",
    "Interactions with Cornac": "cornac",
}
"""The recipes that `Held-out figures` judges, and the library of each."""

HELD_OUT, NEXT, RECBOLE = "Held-out figures", "A next-item model in PyTorch", "RecBole"
Figures = dict[str, list[float]]


def recipes() -> dict[str, str]:
    """Return the code of each recipe, by its heading."""
    sections = PAGE.read_text(encoding="utf-8").split("\n## ")[1:]
    found = {
        each.partition("\n")[0]: re.search(r"^```python\n(.*?)^```$", each, re.DOTALL | re.MULTILINE)
        for each in sections
    }
    return {name: code.group(1) for name, code in found.items() if code}


def installed(library: str | None) -> bool:
    """Whether a library is there."""
    try:
        return library is None or bool(version(library))
    except PackageNotFoundError:
        return False


def worlds(url_of: Any, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield each world with its snapshot's folder."""
    data = realdata.locate()
    with fresh_database(url_of, "recipes") as url:
        if data is not None:
            realdata.fill(url, "model", realdata.read_world([data / city for city in realdata.CITIES]))
            yield "five cities", _publish(url, folder / "five")
    with fresh_database(url_of, "recipes") as url:
        database.synth(load_settings({"database_url": url}, {}))
        yield "synthetic world", _publish(url, folder / "synthetic")


def _publish(url: str, out: Path) -> str:
    return str(etl.run(load_settings({"database_url": url, "out": str(out), **OPTIONS}, {})).snapshot)


def figures_of(root: str, recbole: str | None, folder: Path) -> dict[str, Figures]:
    """Run the recipes on a snapshot. Returns AUC and NDCG@10 by ranking, in a table for each way to judge."""
    code, names = recipes(), {"root": root}

    def run(name: str, **more: Any) -> dict[str, Any]:
        variables = {**names, **more}
        exec(compile(code[name], f"{PAGE}, {name}", "exec"), variables)  # noqa: S102 - our own page
        return variables

    judged = run(HELD_OUT)
    found = {"popularity by users": judged["popularity"], "own history, then popularity": judged["history"]}
    found |= {name: run(name, **judged)["model"] for name, library in JUDGED.items() if installed(library)}
    tables: dict[str, Figures] = {"trip": {name: list(map(float, pair)) for name, pair in found.items()}}
    if recbole:
        tables["RecBole"] = _with_recbole(recbole, code[RECBOLE], root, folder)
    if installed("torch"):
        tables["next"] = {name: [float(share)] for name, share in run(NEXT)["figures"].items()}
    return tables


def _with_recbole(python: str, code: str, root: str, folder: Path) -> Figures:
    to_recbole(open_snapshot(Path(root)), folder / "dataset" / "bpr", lambda: None)
    done = subprocess.run([python, "-c", code], cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    lines = re.findall(r"^(.*): AUC ([\d.]+), NDCG@10 ([\d.]+)$", done.stdout, re.MULTILINE)
    return {name: [float(auc), float(ndcg)] for name, auc, ndcg in lines}


TITLES = {
    "trip": "Which items of the city does the held-out trip hold? AUC / NDCG@10, mean over users, by `Held-out figures`.",
    "RecBole": "The same, by RecBole's own evaluation: items that are new to the user, among those of all cities.",
    "next": "Which new item comes next? The share of rows of `next/` in test whose chosen item has the higher score.",
}


def markdown(found: dict[str, dict[str, Figures]]) -> str:
    """Return a table for each way to judge, with a column for each world."""
    parts = []
    for kind, title in TITLES.items():
        columns = {world: tables[kind] for world, tables in found.items() if kind in tables}
        rows = list(dict.fromkeys(name for column in columns.values() for name in column))
        if rows:
            lines = [table_row(("", *columns)), table_row(("---", *("---:" for _ in columns)))]
            lines += [table_row((name, *(_cell(column.get(name)) for column in columns.values()))) for name in rows]
            parts.append(f"{title}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _cell(figures: list[float] | None) -> str:
    return " / ".join(f"{each:.3f}" for each in figures or ())


@with_exit_codes
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the recipes and print the tables."""
    parser = command_parser("training_value.recipes", "Run the recipes of docs/consumers.md.", database=True)
    parser.add_argument("--recbole", metavar="PYTHON", help="interpreter that has RecBole")
    given = parser.parse_args(arguments)
    with (
        server(given.database_url) as url_of,
        tempfile.TemporaryDirectory(prefix="bpr-recipes-") as name,
    ):
        found = {}
        for world, root in worlds(url_of, Path(name)):
            folder = Path(name) / f"of {world}"
            folder.mkdir()
            found[world] = figures_of(root, given.recbole, folder)
        made_with = environment()
    libraries = {name: version(name) for name in ("implicit", "lenskit", "cornac", "torch") if installed(name)}
    used = ", ".join(f"{name} {number}" for name, number in libraries.items())
    head = (
        "# What the models of docs/consumers.md are worth\n\n`python -m benchmarks recipes --save`: the recipes "
        "as they stand there, on the five cities of the Flickr User-POI Visits (Lim et al., IJCAI 2015; Melbourne: Wang et "
        "al., CIKM 2016) and on the synthetic world at the design's size, published with `--split last-trip --negatives "
        f"recommended --small-catalog keep --task triples --task next`. {used}."
    )
    results = {"made_with": made_with, "libraries": libraries, "worlds": found}
    return present("recipes", results, head, markdown(found), save=given.save)


if __name__ == "__main__":
    sys.exit(main())

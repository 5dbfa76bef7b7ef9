"""Effect of the order of rows on SGD: the numpy recipe of docs/consumers.md on three orders.

On the synthetic world at the design's size, with `--split last-trip --negatives catalog:16`. Reported is the share of test rows
whose positive the model prefers; 0.5 is chance.

    python -m benchmarks.training_value.row_order [--database-url URL] [--save]
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds

import etl
from benchmarks.harness.command import command_parser, with_exit_codes
from benchmarks.harness.database import fresh_database, server
from benchmarks.harness.results import RESULTS, describe_environment, environment, table_row
from etl.pipeline import database
from etl.settings.sources import load_settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "consumers.md"
BATCHES = (256, 8)


def recipe() -> str:
    """Return the code of the numpy recipe."""
    found = re.search(r"^## numpy$.*?```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    if found is None:
        raise ValueError(f"{PAGE} has no numpy recipe.")
    return found.group(1)


def share_preferred(root: str, code: str) -> float:
    """Return the share of test rows whose positive the model prefers, after training with the recipe."""
    names: dict[str, Any] = {"root": root, "split": "train"}
    exec(compile(code, str(PAGE), "exec"), names)  # noqa: S102 - our own page
    columns = ["user_id", "pos_item", "neg_item"]
    test = ds.dataset(f"{root}/triples/split=test", format="parquet").to_table(columns=columns)
    codes = []
    for column, ids in zip(columns, (names["users"], names["items"], names["items"]), strict=True):
        place = {text: code for code, text in enumerate(ids.dictionary.to_pylist())}
        codes.append(np.array([place.get(text, -1) for text in test[column].to_pylist()]))
    known = np.logical_and.reduce([code >= 0 for code in codes])
    user, positive, negative = (code[known] for code in codes)
    of_users, of_items = names["P"], names["Q"]
    return float(((of_users[user] * (of_items[positive] - of_items[negative])).sum(axis=1) > 0).mean())


def measure(url: str, folder: Path) -> list[tuple[str, list[float]]]:
    """Return each order with its metric per batch size."""
    database.synth(load_settings({"database_url": url}, {}))
    options = {"database_url": url, "split": "last-trip", "negatives": ["catalog:16"]}
    etl.run(load_settings({**options, "out": str(folder / "plain")}, {}))
    roots = {
        shuffle: str(
            etl.export(load_settings({**options, "shuffle": shuffle, "out": str(folder / str(shuffle))}, {})).snapshot
        )
        for shuffle in (False, True)
    }
    as_it_lies = recipe().replace("random.permutation(len(user))", "np.arange(len(user))")
    orders = (
        ("shuffled every epoch, as in the recipe", roots[False], recipe()),
        ("as published with `--shuffle`", roots[True], as_it_lies),
        ("as published without", roots[False], as_it_lies),
    )
    return [
        (name, [share_preferred(root, code.replace("// 256", f"// {batch}")) for batch in BATCHES])
        for name, root, code in orders
    ]


@with_exit_codes
def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table."""
    parser = command_parser(
        "training_value.row_order", "Effect of the order of rows on SGD.", database=True, saves=".md"
    )
    given = parser.parse_args(arguments)
    with (
        server(given.database_url) as url_of,
        fresh_database(url_of, "row_order") as url,
        tempfile.TemporaryDirectory(prefix="bpr-order-") as folder,
    ):
        measured = measure(url, Path(folder))
        made_with = environment(url)
    head = ("order in which an epoch takes the rows", *(f"batches of {batch}" for batch in BATCHES))
    lines = [table_row(head), table_row(("---", *("---:" for _ in BATCHES)))]
    lines += [table_row((name, *(f"{value:.3f}" for value in values))) for name, values in measured]
    table = "\n".join(lines) + "\n"
    print(table, end="")
    if given.save:
        about = "# Effect of the order of rows on SGD\n\n`python -m benchmarks row_order --save`: the numpy recipe of "
        about += "docs/consumers.md; the share of test rows whose positive is preferred.\n\n"
        about += f"{describe_environment(made_with)}\n\n"
        (RESULTS / "row_order.md").write_text(about + table, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

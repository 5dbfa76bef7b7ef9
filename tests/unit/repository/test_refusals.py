"""Internal checks between parts of the program, and of the installation: a bug must not become a wrong row."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from etl.errors import SchemaError, SettingsError
from etl.load.copy import _check_types
from etl.runtime import run_record as journal
from etl.settings.values import NegativeStrategies
from etl.transform.arrays import list_series
from etl.triples.dataset import _affinities

COLUMNS = {"id": "text", "day": "int4", "score": "float8", "made": "timestamp", "ids": "_text", "kind": "enum"}
ROWS = pl.DataFrame(
    {
        "id": ["a"],
        "day": pl.Series([1], dtype=pl.Int32),
        "score": [0.5],
        "made": [datetime(2026, 1, 1)],  # noqa: DTZ001 - timestamps without zone are UTC
        "ids": [["a"]],
        "kind": ["x"],
    }
)


def check(rows: pl.DataFrame, columns: dict[str, str] = COLUMNS) -> None:
    _check_types(rows.to_arrow(compat_level=pl.CompatLevel.oldest()), columns, '"Trip"')


@pytest.mark.parametrize(
    ("column", "wrong"),
    [
        ("day", pl.Series([1], dtype=pl.Int64)),
        ("day", pl.Series([1.0])),
        ("score", pl.Series([1], dtype=pl.Int64)),  # as wide as float8: COPY would store 5e-324
        ("made", pl.Series([1], dtype=pl.Int64)),
        ("id", pl.Series([b"a"])),
        ("ids", pl.Series([[1]])),
    ],
)
def test_a_column_of_another_type_is_refused_before_a_byte_is_sent(column, wrong):
    check(ROWS)
    with pytest.raises(SchemaError, match=rf"Column '{column}' of table \"Trip\" has type {COLUMNS[column]}"):
        check(ROWS.with_columns(wrong.alias(column)))


def test_a_missing_column_or_an_unsupported_type_is_refused():
    with pytest.raises(SchemaError, match=r"Table \"Trip\" has no column 'score'. See `bpr-etl schema check`."):
        check(ROWS, {name: kind for name, kind in COLUMNS.items() if name != "score"})
    with pytest.raises(SchemaError, match="Column 'score' of table \"Trip\" has type numeric"):
        check(ROWS, COLUMNS | {"score": "numeric"})


def test_an_empty_list_of_an_enum_is_refused():
    nodes = pl.Series(["a", "b"], dtype=pl.Enum(["a", "b"]))
    assert list_series(np.array([1, 1]), nodes).to_list() == [["a"], ["b"]]
    with pytest.raises(ValueError, match="An empty list of an Enum"):
        list_series(np.array([1, 0, 1]), nodes)


def test_no_strategy_at_all_is_refused():
    with pytest.raises(SettingsError, match="must name at least one strategy"):
        NegativeStrategies([])


def test_a_foreign_vector_gives_its_finite_numbers():
    """Null, no JSON, no object, too deep, too large, no number: each gives null, without an error."""
    values = [
        *(None, "", "half past", "[]", "null", '"0.5"', "[" * 100_000, "7"),
        *('{"a": 0.5, "b": true, "c": "1"}', '{"a": 1e999, "b": NaN, "c": -3}', '{"c": ' + "9" * 400 + "}", '{"z": 1}'),
    ]
    found = pl.DataFrame(_affinities(pl.Series(values, dtype=pl.String), pl.Series(["a", "b", "c"])))
    assert found.columns == ["affinity_a", "affinity_b", "affinity_c"]
    nothing = (None, None, None)
    assert found.rows() == [nothing] * 8 + [(0.5, None, None), (None, None, -3.0), nothing, nothing]


def test_the_peak_is_that_of_this_process_if_the_system_reports_it(monkeypatch, tmp_path):
    own = journal.peak_mib()
    assert own > 1

    def status(text: str) -> None:
        (tmp_path / "status").write_text(text)
        monkeypatch.setattr(journal, "Path", lambda _: tmp_path / "status")

    status("Name:\tx\nVmHWM:\t  2048 kB\nVmRSS:\t 1 kB\n")
    assert journal.peak_mib() == 2.0
    status("Name:\tx\n")  # a kernel without VmHWM: ru_maxrss is used, which is never smaller
    assert journal.peak_mib() >= own - 1
    monkeypatch.setattr(journal, "Path", lambda _: Path(tmp_path, "none"))
    assert journal.peak_mib() >= own - 1

"""Published rows against the oracle's: every column, with ids as strings, indexes or both."""

from __future__ import annotations

from dataclasses import astuple, fields
from typing import Any

import polars as pl
import pytest

from tests.property import oracle_next

NAMES = {
    "user_id": "user_idx",
    "item_id": "item_idx",
    "prev_item": "prev_idx",
    "pos_item": "pos_idx",
    "neg_item": "neg_idx",
}
HISTORY = [column.name for column in fields(oracle_next.History)]


def table_columns(row_type: type, ids: str, *, history: bool) -> list[str]:
    """`--ids index` writes indexes in the places of the strings, `both` behind all columns; `--history` comes last."""
    texts = [column.name for column in fields(row_type)]
    wanted = [NAMES.get(name, name) for name in texts] if ids == "index" else texts
    behind = [NAMES[name] for name in texts if name in NAMES] if ids == "both" else []
    return [*wanted, *behind, *(HISTORY if history else [])]


def are_rows(found: pl.DataFrame, rows: list[Any], vocabularies: tuple[pl.Series, pl.Series]) -> None:
    """A table has these rows of the oracle. `vocabularies` are the ids of users and items, by index."""
    for place, name in enumerate(column.name for column in fields(type(rows[0]))):
        values = [astuple(row)[place] for row in rows]
        if NAMES.get(name) in found.columns:
            ids = vocabularies[name != "user_id"]
            assert found[NAMES[name]].dtype == pl.UInt32
            assert ids.gather(found[NAMES[name]]).to_list() == values
        if name in {"pos_km", "neg_km"}:
            same_distances(found[name], values)
        elif name in found.columns:
            assert found[name].to_list() == values


def same_distances(found: pl.Series, expected: list[float | None]) -> None:
    """Distances agree to the last bits of a float32; of antipodes, where haversine is weak, to 10 cm."""
    assert found.dtype == pl.Float32
    assert found.is_null().to_list() == [each is None for each in expected]
    for ours, theirs in zip(found.drop_nulls(), (each for each in expected if each is not None), strict=True):
        assert ours == pytest.approx(theirs, rel=3e-7, abs=1e-4 if theirs > 20_000 else 1e-9)


def has_history(found: pl.DataFrame, rows: list[oracle_next.History]) -> None:
    """A table has these columns of `--history`, with their types."""
    assert [found[name].dtype for name in HISTORY] == [pl.Int32, pl.Int32, pl.Float32, pl.Float32]
    assert found.select(HISTORY).rows() == [*map(astuple, rows)]

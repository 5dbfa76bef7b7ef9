"""The hashes of lists that a run computes are those that the server computes of its arrays."""

from __future__ import annotations

import polars as pl
import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.load.changes import TextHashes
from etl.postgres.connection import connect
from etl.postgres.url import parse_url

TEXTS = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=40)
LISTS = st.lists(st.none() | st.lists(TEXTS | st.sampled_from(["a", "b", "'", "\\", ""]), max_size=25), max_size=12)


@pytest.fixture(scope="session")
def url(make_database) -> str:
    return make_database()


@given(LISTS)
def test_lists_hash_as_the_server_s_arrays(url, lists):
    """As texts and as an Enum, which events have; an Enum's other categories make no difference."""
    with psycopg.connect(url) as connection:
        wanted = [
            connection.execute('SELECT hash_array_extended(%s::text[] COLLATE "C", 0)', (each,)).fetchone()[0]
            for each in lists
        ]
    texts = pl.Series("x", lists, dtype=pl.List(pl.String))
    categories = sorted({text for each in lists for text in each or []} | {"another"})
    with connect(parse_url(url, {})) as connection:
        for column in (texts, texts.cast(pl.List(pl.Enum(categories)))):
            hashes = TextHashes(connection)
            hashes.learn(column.to_frame())
            assert hashes.of_lists(column).to_list() == wanted

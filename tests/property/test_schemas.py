"""The same rows in any schema give the same snapshot; what can't work ends with exit 4 and names table and column."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings

import etl
from etl.pipeline import database
from etl.postgres.naming import MODELS
from etl.settings.sources import load_settings
from tests.property import shapes


@pytest.fixture(scope="module")
def expected(make_database, small_world_template, tmp_path_factory) -> str:
    """The content hash of a run on Prisma's own schema."""
    out = str(tmp_path_factory.mktemp("expected"))
    run = etl.run(load_settings({"database_url": make_database(small_world_template), "out": out}, {}))
    return content_hash(run)


class OneDatabase:
    """Fresh databases with the small world, of which only the last one is kept."""

    def __init__(self, server_url: str, template: str) -> None:
        self._server, self._template = server_url, urlsplit(template).path.lstrip("/")

    def fresh(self) -> str:
        """The URL of the next one."""
        with psycopg.connect(self._server, autocommit=True) as connection:
            connection.execute("DROP DATABASE IF EXISTS shaped WITH (FORCE)")
            connection.execute(f'CREATE DATABASE shaped TEMPLATE "{self._template}"')
        return urlunsplit(urlsplit(self._server)._replace(path="/shaped"))


@pytest.fixture
def databases(server_url, small_world_template) -> OneDatabase:
    return OneDatabase(server_url, small_world_template)


def content_hash(run: etl.RunResult) -> str:
    return json.loads((Path(str(run.snapshot)) / "manifest.json").read_text(encoding="utf-8"))["content_sha256"]


def reshaped(url: str, shape: shapes.Shape) -> None:
    with psycopg.connect(url) as connection:
        for statement in shapes.statements(shape):
            connection.execute(statement)


def test_the_same_rows_in_any_schema_give_the_same_snapshot(databases, expected, tmp_path, effort, tally):
    @given(shapes.shapes())
    @settings(max_examples=effort(12, 400), phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    def check(shape: shapes.Shape) -> None:
        url = databases.fresh()
        reshaped(url, shape)
        options = {"database_url": url, "out": str(tmp_path / "out"), "map": shapes.mapping(shape) or None}
        assert content_hash(etl.run(load_settings(options, {}))) == expected
        again = etl.run(load_settings(options, {}))
        assert content_hash(again) == expected
        assert database.validate_database(load_settings(options, {})).broken == []
        exported = etl.export(load_settings(options, {}))
        assert content_hash(exported) == expected
        tally("schemas drawn")

    check()


def test_the_types_that_are_drawn_belong_to_columns_of_the_contract():
    assert set(shapes.READ_TYPES) | set(shapes.WRITTEN_TYPES) == set(MODELS)

"""The real Prisma holds our SQL, and the databases that we made or wrote to, against schema.prisma."""

from __future__ import annotations

import re

import psycopg
import pytest

import etl
from etl.pipeline import database
from etl.postgres.naming import Naming
from etl.postgres.schema.ddl import schema_prisma, schema_sql
from tests.integration.postgres.prisma_engine import drift, script

NAMINGS = ["model", "mapped"]


def statements(sql: str) -> list[str]:
    """The statements of a script: no comments, white space folded, no schema, which Prisma creates in any case."""
    bare = re.sub(r"^--.*$", "", sql, flags=re.MULTILINE).replace('"public".', "")
    folded = [" ".join(text.split()) for text in bare.split(";")]
    return [text for text in folded if text and text != 'CREATE SCHEMA IF NOT EXISTS "public"']


@pytest.mark.parametrize("kind", NAMINGS)
def test_our_sql_is_what_prisma_makes(kind):
    naming = Naming(kind)
    assert statements(script(schema_prisma(naming))) == statements(schema_sql(naming))


@pytest.mark.parametrize("kind", NAMINGS)
def test_an_application_that_adds_what_is_printed_has_all_of_it(kind, database_url):
    """The text of `schema print --format prisma` behind the application's own models, its index line where it says."""
    naming = Naming(kind)
    whole, added = schema_prisma(naming), schema_prisma(naming, added=True)
    hint, index, rest = added.split("\n", 2)
    own = re.sub(
        r"(?m)^(?://.*\n)*(?:model|enum) (?:ModelStage|PersonaDimension|RankingEvent|ModelRegistry) \{\n(?s:.*?)^\}\n*",
        "",
        whole,
    )
    own = own.replace(f"\n{index.removeprefix('//')}", "")
    assert "RankingEvent" not in own
    assert "@@index([tripId, dayNumber])" not in own
    model = hint.removeprefix("// Add this to the model ").removesuffix(":")
    together = re.sub(rf"(?ms)^(model {model} \{{.*?)^\}}", rf"\1{index.removeprefix('//')}\n}}", own) + rest
    assert sorted(statements(script(together))) == sorted(statements(schema_sql(naming)))
    # And of the SQL: run behind the application's own tables, it leaves no drift.
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(script(own).replace('CREATE SCHEMA IF NOT EXISTS "public";', ""))
        connection.execute(schema_sql(naming, added=True))
    assert drift(database_url, whole) == ""


@pytest.mark.parametrize("kind", NAMINGS)
def test_no_drift_after_schema_apply_and_none_after_a_run(kind, database_url, settings_for):
    prisma = schema_prisma(Naming(kind))
    settings = settings_for(database_url, naming=kind, scale=0.02)
    database.apply_schema(settings)
    assert drift(database_url, prisma) == ""
    database.synth(settings)
    etl.run(settings)
    assert drift(database_url, prisma) == ""
    assert database.validate_database(settings_for(database_url)).broken == []


def test_the_index_alone_is_created_with_prisma_s_name(database_url, settings_for):
    """An application that has everything but the index: `schema apply` leaves nothing for `prisma db push` to do."""
    settings = settings_for(database_url)
    database.apply_schema(settings)
    with psycopg.connect(database_url) as connection:
        connection.execute('DROP INDEX "ItinerarySlot_tripId_dayNumber_idx"')
        connection.execute('DROP TABLE "RankingEvent"')
    missing = drift(database_url, schema_prisma(Naming("model")))
    assert "tripId" in missing
    assert "RankingEvent" in missing
    assert "ItinerarySlot_tripId_dayNumber_idx" in database.apply_schema(settings)
    assert drift(database_url, schema_prisma(Naming("model"))) == ""
    assert database.apply_schema(settings) == []

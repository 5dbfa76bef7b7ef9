"""Names, quoting and DDL: texts in, texts out, no server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.errors import SettingsError
from etl.postgres.naming import MODELS, SOURCE_MODELS, WRITTEN_MODELS, Naming, quote_identifier, quote_literal
from etl.postgres.schema.ddl import COLUMNS, schema_prisma, schema_sql, schema_statements
from etl.runtime.resources import bundled_cli, resource

MODEL, MAPPED = Naming("model"), Naming("mapped")


def unquoted(literal: str) -> str:
    """What PostgreSQL reads in a literal, by its lexical rules: quotes doubled, backslashes doubled in E''."""
    body = literal.removeprefix("E")[1:-1].replace("''", "'")
    return body.replace("\\\\", "\\") if literal.startswith("E") else body


@pytest.mark.parametrize(
    ("name", "quoted"), [("Trip", '"Trip"'), ('a"b', '"a""b"'), ("a.b", '"a.b"'), ("é" * 31, f'"{"é" * 31}"')]
)
def test_an_identifier_is_quoted_with_its_quotes_doubled(name, quoted):
    assert quote_identifier(name) == quoted


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 64, "é" * 32, "\udc80"])
def test_what_can_t_be_a_name_is_refused(name):
    with pytest.raises(SettingsError):
        quote_identifier(name)


@pytest.mark.parametrize(
    ("text", "literal"), [("", "''"), ("it's", "'it''s'"), ("a\\b", "E'a\\\\b'"), ("\\'", "E'\\\\'''"), ("%_", "'%_'")]
)
def test_a_literal_reads_the_same_whatever_the_server_makes_of_backslashes(text, literal):
    assert quote_literal(text) == literal


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_a_literal_never_ends_early_and_gives_the_text_back(text):
    literal = quote_literal(text)
    assert unquoted(literal) == text
    assert literal.startswith("E") == ("\\" in text)


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_what_postgresql_can_t_store_is_no_literal(text):
    with pytest.raises(SettingsError):
        quote_literal(text)


def test_a_table_is_named_by_model_or_by_map_in_its_schema():
    assert MODEL.table("Trip") == '"public"."Trip"'
    assert Naming("mapped", 'o"dd').table("Trip") == '"o""dd"."trips"'
    assert [MAPPED.table_name(model) for model in MODELS] == list(MODELS.values())


def test_an_index_has_prisma_s_name():
    assert MODEL.constraint("ItinerarySlot", "tripId_dayNumber", "idx") == "ItinerarySlot_tripId_dayNumber_idx"
    assert MAPPED.constraint("ItinerarySlot", "tripId_dayNumber", "idx") == "itinerary_slots_tripId_dayNumber_idx"


def test_a_long_name_is_cut_before_the_suffix_and_never_within_a_character():
    assert MODEL.constraint("Trip", "x" * 80, "idx") == f"Trip_{'x' * 54}_idx"
    assert MODEL.constraint("Trip", "x" * 80, "fkey") == f"Trip_{'x' * 53}_fkey"
    assert MODEL.constraint("Trip", "é" * 40, "idx") == f"Trip_{'é' * 27}_idx"
    assert MODEL.constraint("Trip", f"x{'é' * 40}", "idx") == f"Trip_x{'é' * 26}_idx"


def test_the_script_in_model_naming_is_what_prisma_made():
    """`schema.sql` is the output of Prisma's engine for data/schema.prisma; test_prisma_drift.py asks the engine itself."""
    assert schema_sql(MODEL).replace('"public".', "") == (Path(__file__).parent / "schema.sql").read_text(
        encoding="utf-8"
    )


def test_the_mapped_script_renames_tables_and_constraints_but_no_enum():
    names = {(statement.kind, statement.name) for statement in schema_statements(MAPPED)}
    assert {
        ("enum", "SlotStatus"),
        ("table", "itinerary_slots"),
        ("index", "users_email_key"),
        ("index", "itinerary_slots_tripId_dayNumber_idx"),
        ("foreign_key", "itinerary_slots_activityNodeId_fkey"),
    } <= names
    script = schema_sql(MAPPED)
    assert 'CONSTRAINT "users_pkey" PRIMARY KEY' in script
    assert 'REFERENCES "public"."activity_nodes"("id")' in script
    assert not [model for model in MODELS if re.search(rf'"{model}["_]', script)]


def test_every_table_and_type_carries_its_schema():
    script = schema_sql(Naming("model", "app"))
    named = set(MODELS) | {each.name for each in schema_statements(MODEL) if each.kind == "enum"}
    bare = [name for name in named if re.search(rf'(?<!"app"\.)"{name}"', script)]
    assert bare == []


def test_another_schema_than_public_is_created_first():
    assert schema_sql(Naming("model", "app")).startswith('-- CreateSchema\nCREATE SCHEMA IF NOT EXISTS "app";\n')
    assert "CREATE SCHEMA" not in schema_sql(MODEL)


def test_the_statements_of_some_models_are_theirs_alone_with_the_enums_they_use():
    names = [statement.name for statement in schema_statements(MODEL, WRITTEN_MODELS)]
    assert names[:4] == ["ModelStage", "PersonaDimension", "RankingEvent", "ModelRegistry"]
    assert not [name for name in names if name.startswith(SOURCE_MODELS)]
    assert schema_statements(MODEL, []) == []


def test_a_foreign_key_comes_only_with_both_of_its_tables():
    assert [each for each in schema_statements(MODEL, ["Trip"]) if each.kind == "foreign_key"] == []
    (key,) = [each for each in schema_statements(MODEL, ["Trip", "User"]) if each.kind == "foreign_key"]
    assert (key.name, key.models) == ("Trip_userId_fkey", ("Trip", "User"))


def test_an_index_says_what_it_is_on():
    found = {each.name: (each.columns, each.unique) for each in schema_statements(MODEL) if each.kind == "index"}
    assert found["ItinerarySlot_tripId_dayNumber_idx"] == (("tripId", "dayNumber"), False)
    assert found["ModelRegistry_modelName_modelVersion_key"] == (("modelName", "modelVersion"), True)


@pytest.mark.parametrize("naming", [MODEL, MAPPED])
def test_what_the_design_adds_is_three_tables_their_enum_and_an_index(naming):
    made = re.findall(
        r"^CREATE (TABLE|TYPE|INDEX|UNIQUE INDEX) (.*?)(?: ON (.*)\(.*)?(?: AS .*| \()?;?$",
        schema_sql(naming, added=True),
        re.MULTILINE,
    )
    assert [name for kind, name, _ in made if kind == "TYPE"] == [naming.qualified("ModelStage")]
    tables = [naming.table(model) for model in WRITTEN_MODELS]
    assert [name for kind, name, _ in made if kind == "TABLE"] == tables
    on = {table for kind, _, table in made if "INDEX" in kind}
    assert on == {*tables, naming.table("ItinerarySlot")}

    text = schema_prisma(naming, added=True)
    assert re.findall(r"^(?:model|enum) (\w+)", text, re.MULTILINE) == ["ModelStage", *WRITTEN_MODELS]
    assert text.startswith("// Add this to the model ItinerarySlot:\n//  @@index([tripId, dayNumber])\n\nenum")
    whole = schema_prisma(naming)
    assert all(block in whole for block in text.split("\n\n", 1)[1].split("\n}\n"))


def test_the_prisma_text_is_the_file_and_mapped_the_file_with_one_map_line_per_model():
    source = resource("schema.prisma").read_text(encoding="utf-8")
    assert schema_prisma(MODEL) == source
    added = [line for line in schema_prisma(MAPPED).splitlines() if line.startswith("  @@map(")]
    assert added == [f'  @@map("{table}")' for table in MODELS.values()]
    # Prisma's own formatting wants an empty line between the last field and the first block attribute.
    kept = [line for line in schema_prisma(MAPPED).splitlines() if line.strip() and line not in added]
    assert kept == [line for line in source.splitlines() if line.strip()]


SQL_TYPES = {
    "TEXT": "text",
    "TEXT[]": "_text",
    "INTEGER": "int4",
    "DOUBLE PRECISION": "float8",
    "TIMESTAMP(3)": "timestamp",
    "JSONB": "jsonb",
}


@pytest.mark.parametrize("model", MODELS)
def test_the_columns_that_are_checked_are_those_that_are_created(model):
    """COLUMNS and the SQL name the same columns, with the same types and nullability."""
    (table,) = [each.sql for each in schema_statements(MODEL, [model]) if each.kind == "table"]
    lines = re.findall(
        r'^    "(\w+)" (TEXT\[\]|[A-Z]+(?: PRECISION)?(?:\(3\))?|"public"\."\w+")( NOT NULL)?', table, re.MULTILINE
    )
    created = {name: (SQL_TYPES.get(type_, "enum"), not not_null) for name, type_, not_null in lines}
    assert created == {column.name: (column.type, column.nullable) for column in COLUMNS[model]}


def test_the_labels_that_are_needed_are_labels_that_are_created():
    enums = {each.name: each.sql for each in schema_statements(MODEL) if each.kind == "enum"}
    for model, enum in (
        ("ItinerarySlot", "SlotStatus"),
        ("ActivityNode", "NodeStatus"),
        ("ModelRegistry", "ModelStage"),
    ):
        labels = {label for column in COLUMNS[model] for label in column.labels}
        assert labels
        assert labels <= set(re.findall(r"'(\w+)'", enums[enum]))


def test_null_is_written_only_where_null_is_allowed():
    columns = [column for model in MODELS for column in COLUMNS[model]]
    assert all(column.nullable for column in columns if column.writes_null)


def test_the_files_that_are_read_are_there():
    for path in (resource("schema.prisma"), bundled_cli()):
        assert path.is_file()

"""`synth` fills an empty database, and another one only where that is asked for."""

from __future__ import annotations

import psycopg
import pytest

from etl.errors import SettingsError
from etl.pipeline import database
from etl.postgres.naming import MODELS, Naming
from tests.faults.calling import call

INSERTS = {
    "User": """INSERT INTO {table} (id, email) VALUES ('u', 'real@example.com')""",
    "ActivityNode": """INSERT INTO {table} (id, city, category, name, latitude, longitude)
                       VALUES ('n', 'Oslo', 'dining', 'a place', 59.9, 10.7)""",
    "RankingEvent": """INSERT INTO {table} (id, "userId", "tripId", "dayNumber", "modelName", "modelVersion", surface)
                       VALUES ('e', 'u', 't', 1, 'm', '1', 'itinerary')""",
}


def counts(url: str, naming: Naming) -> dict[str, int]:
    with psycopg.connect(url) as connection:
        return {m: connection.execute(f"SELECT count(*) FROM {naming.table(m)}").fetchone()[0] for m in MODELS}


@pytest.mark.parametrize("kind", ["model", "mapped"])
@pytest.mark.parametrize("model", INSERTS)
def test_a_database_with_rows_is_left_as_it_is(database_url, settings_for, kind, model):
    naming = Naming(kind)
    settings = settings_for(database_url, naming=kind, scale=0.01)
    database.apply_schema(settings)
    with psycopg.connect(database_url) as connection:
        connection.execute(INSERTS[model].format(table=naming.table(model)))
    before = counts(database_url, naming)
    with pytest.raises(SettingsError) as refused:
        database.synth(settings)
    assert f"already holds rows: 1 in {naming.table(model)}. " in str(refused.value)
    assert counts(database_url, naming) == before


def test_nothing_is_created_beside_rows_of_an_application(database_url, settings_for):
    """The tables that are missing are not made, and no index on those that are there."""
    database.apply_schema(settings_for(database_url))
    with psycopg.connect(database_url) as connection:
        connection.execute(INSERTS["User"].format(table='"User"'))
        connection.execute('DROP TABLE "RankingEvent"')
    with pytest.raises(SettingsError, match="already holds rows"):
        database.synth(settings_for(database_url, scale=0.01))
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT to_regclass('\"RankingEvent\"')").fetchone()[0] is None


def test_the_command_names_table_count_and_database_and_takes_a_yes(database_url):
    assert call("synth", "--scale", "0.01", "--database-url", database_url).returncode == 0
    refused = call("synth", "--scale", "0.01", "--database-url", database_url)
    database = database_url.partition("?")[0].rpartition("/")[2]
    assert refused.returncode == 2
    assert f'The database "{database}" already holds rows: ' in refused.stderr
    assert 'in "public"."User", ' in refused.stderr
    assert "--into-existing" in refused.stderr
    assert "postgresql://" not in refused.stderr
    assert call("synth", "--scale", "0.01", "--database-url", database_url).stdout == ""


def test_into_existing_adds_to_what_is_there(database_url, settings_for):
    database.apply_schema(settings_for(database_url))
    with psycopg.connect(database_url) as connection:
        connection.execute(INSERTS["User"].format(table='"User"'))
    added = database.synth(settings_for(database_url, scale=0.01, into_existing=True))
    assert counts(database_url, Naming("model"))["User"] == added["User"] + 1
    # Its users' ids and emails are the same every time: a second world does not go beside the first.
    again = call("synth", "--into-existing", "--scale", "0.01", "--database-url", database_url)
    assert again.returncode == 5, again.stderr
    assert "Traceback" not in again.stderr
    assert counts(database_url, Naming("model"))["User"] == added["User"] + 1

"""The command as a user calls it: exit codes, one JSON object on stdout, plain sentences on stderr."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from etl.pipeline import run as pipeline
from etl.postgres.url import target_of
from etl.settings.model import Settings

ROOT = Path(__file__).parents[3]
NOWHERE = "postgresql://someone:s3cr3t-word@127.0.0.1:1/nothing?schema=app&connection_limit=5"


def call(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("BPR_ETL_", "PG")) and k not in {"DATABASE_URL", "DIRECT_URL"}
    }
    return subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *arguments],
        cwd=cwd,
        env=clean | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_a_night_as_cron_calls_it(small_world, tmp_path):
    done = call("run", "--out", str(tmp_path / "out"), DATABASE_URL=small_world)
    assert done.returncode == 0, done.stderr
    for word in (
        "Mexico City",
        "Tokyo",
        "Excluded rows",
        "Snapshot: ",
        "no trip with a usable persona seed",
    ):
        assert word in done.stdout
    assert "Traceback" not in done.stderr


def test_json_is_one_object(small_world, tmp_path):
    done = call("run", "--json", "--out", str(tmp_path / "out"), "--database-url", small_world)
    assert done.returncode == 0
    answer = json.loads(done.stdout)
    assert answer["ok"] is True
    assert answer["positives"] == answer["published"]["positives"]  # as the terminal has it
    assert answer["positives_selected"] == answer["positives"] + sum(answer["published"]["positives_left_out"].values())
    assert Path(answer["snapshot"]).is_dir()
    validated = call("validate", "--json", "--database-url", small_world)
    assert validated.returncode == 0
    assert len(json.loads(validated.stdout)["rows"]) == 10
    checked = call("validate", "--snapshot", str(tmp_path / "out"))
    assert checked.returncode == 0, checked.stdout
    again = call("run", "--json", "--skip-unchanged", "--out", str(tmp_path / "out"), "--database-url", small_world)
    assert again.returncode == 99
    nothing = json.loads(again.stdout)
    assert (nothing["ok"], nothing["exit_code"], nothing["snapshot"]) == (True, 99, None)
    fine = call("run", "--json", "--skip-unchanged=ok", "--out", str(tmp_path / "out"), "--database-url", small_world)
    assert fine.returncode == 0
    assert json.loads(fine.stdout) | {"ok": True, "exit_code": 0, "snapshot": None} == json.loads(fine.stdout)
    assert len(list((tmp_path / "out" / "snapshots").iterdir())) == 1
    exported = call("export", "--json", "--out", str(tmp_path / "other"), "--database-url", small_world)
    assert exported.returncode == 0
    assert json.loads(exported.stdout)["published"] == answer["published"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run"], "No database was named"),
        (["run", "--naming", "snake"], "must be one of auto, model, mapped"),
        (["run", "--ids", "strings"], "did you mean 'string'"),
        (["run", "--shadow-prefix", ""], "must not be empty"),
        (["run", "--database-url", "mysql://x:s3cr3t-word@y/z"], "must be postgresql"),
        (["run", "--database-url", "postgresql://x:s3cr3t-word@y/z?sslmod=require"], "sslmod"),
        (["run", "--rows-per-file", "0"], "whole number from 1"),
        (["run", "--config", "nowhere.toml"], "settings file"),
        (["run", "--negatives", "rankin"], "did you mean 'ranking'"),
        (["runn"], "No such command"),
    ],
)
def test_wrong_settings_exit_2(arguments, said, tmp_path):
    done = call(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "s3cr3t-word" not in done.stdout + done.stderr


def test_a_variable_that_polars_dies_of_is_refused():
    done = call("run", "--database-url", NOWHERE, POLARS_MAX_THREADS="0")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: POLARS_MAX_THREADS is 0")


def test_an_unreachable_server_exits_3_without_its_password():
    done = call("run", "--json", "--database-url", NOWHERE)
    assert done.returncode == 3
    assert "Cannot reach the database" in done.stderr
    assert "s3cr3t-word" not in done.stdout + done.stderr
    assert json.loads(done.stdout)["exit_code"] == 3


def test_a_database_that_is_not_there_exits_3(database_url):
    done = call("run", "--database-url", database_url.replace("bpr_test_", "bpr_gone_"))
    assert done.returncode == 3
    assert "does not exist" in done.stderr


def test_a_schema_that_does_not_fit_exits_4(database_url, tmp_path):
    empty = call("run", "--out", str(tmp_path / "out"), "--database-url", database_url)
    assert empty.returncode == 4
    assert "schema apply" in empty.stderr
    assert call("schema", "apply", "--database-url", database_url).returncode == 0
    assert call("schema", "check", "--database-url", database_url).returncode == 0
    with psycopg.connect(database_url) as connection:
        connection.execute('DROP TABLE "RankingEvent"')
    missing = call("run", "--out", str(tmp_path / "out"), "--database-url", database_url)
    assert missing.returncode == 4
    assert "RankingEvent" in missing.stderr
    assert call("schema", "check", "--database-url", database_url).returncode == 4


def test_what_a_run_would_set_off_is_listed_and_keeps_no_run_from_working(small_world, tmp_path):
    with psycopg.connect(small_world) as connection:
        connection.execute('CREATE TABLE "Feedback" ("event" text REFERENCES "RankingEvent"("id") ON DELETE CASCADE)')
    run = ("run", "--out", str(tmp_path / "out"), "--database-url", small_world, "--seed")
    assert call(*run, "0").returncode == 0
    checked = call("schema", "check", "--database-url", small_world)
    assert checked.returncode == 0
    assert 'Rows of public."Feedback" refer to' in checked.stdout.replace("\n", " ")
    with psycopg.connect(small_world) as connection:
        connection.execute(
            """INSERT INTO "Feedback" SELECT "id" FROM "RankingEvent" WHERE "userId" IN
            (SELECT "id" FROM "User" WHERE starts_with("email", 'shadow-')) LIMIT 3"""
        )
    stopped = call(*run, "1")
    assert stopped.returncode == 5
    assert "--allow-side-effects 'public.\"Feedback\"'" in stopped.stderr
    assert call(*run, "1", "--allow-side-effects", "Feedbak").returncode == 2
    assert call(*run, "1", "--allow-side-effects", 'public."Feedback"').returncode == 0
    with psycopg.connect(small_world) as connection:
        assert connection.execute('SELECT count(*) FROM "Feedback"').fetchone() == (0,)
    assert call("export", "--allow-side-effects", "Feedback").returncode == 2


def test_a_held_lock_exits_6(small_world, tmp_path):
    address = target_of(Settings(database_url=small_world))
    with pipeline.connect(address) as other, pipeline.advisory_lock(other, "public"):
        done = call("run", "--out", str(tmp_path / "out"), "--database-url", small_world)
    assert done.returncode == 6
    assert "Another bpr-etl run" in done.stderr


def test_a_broken_law_exits_5(small_world):
    done = call("validate", "--database-url", small_world)
    assert done.returncode == 5
    assert "broken" in done.stdout


def test_option_beats_environment_beats_file(small_world, tmp_path):
    (tmp_path / "own.toml").write_text('seed = 1\nids = "both"\nmin-catalog = 1\n')
    done = call(
        *("run", "--json", "--dry-run", "--config", "own.toml", "--ids", "string", "--out", "out"),
        cwd=tmp_path,
        BPR_ETL_SEED="2",
        DATABASE_URL=NOWHERE,
        DIRECT_URL=NOWHERE,
        BPR_ETL_DATABASE_URL=small_world,
    )
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "out").exists()
    assert "Tokyo" in json.loads(done.stdout)["published"]["triples"]


def test_the_index_s_absence_is_said_and_no_more(small_world, tmp_path):
    with psycopg.connect(small_world) as connection:
        connection.execute('DROP INDEX "ItinerarySlot_tripId_dayNumber_idx"')
    done = call("run", "--out", str(tmp_path / "out"), "--database-url", small_world)
    assert done.returncode == 0
    assert "Note: " in done.stdout
    with psycopg.connect(small_world) as connection:
        found = connection.execute(
            "SELECT count(*) FROM pg_indexes WHERE indexname LIKE 'ItinerarySlot_tripId%'"
        ).fetchone()
    assert found == (0,)


@pytest.mark.parametrize(
    "command",
    [["run"], ["export"], ["validate"], ["synth"], ["demo"], ["schema", "print"], ["schema", "apply"], ["db", "start"]],
)
def test_every_command_has_help_with_an_example(command):
    done = call(*command, "--help")
    assert done.returncode == 0
    assert "Example" in done.stdout


@pytest.mark.parametrize(("kind", "user"), [("model", '"app"."User"'), ("mapped", '"app"."users"')])
def test_schema_print_names_the_tables_as_the_database_does(database_url, kind, user):
    """The three things that it prints, where DATABASE_URL is Prisma's: with its schema."""
    env = {"DATABASE_URL": f"{database_url}{'&' if '?' in database_url else '?'}schema=app"}
    call("schema", "apply", "--naming", kind, **env)
    assert (
        f'GRANT SELECT ("id", "email") ON {user} TO "someone";'
        in call("schema", "print", "--role", "someone", **env).stdout
    )
    assert f"CREATE TABLE {user} (" in call("schema", "print", "--all", **env).stdout
    prisma = call("schema", "print", "--format", "prisma", **env).stdout
    assert ('@@map("ranking_events")' in prisma) == (kind == "mapped")
    assert "--naming" not in prisma
    assert (
        user
        not in call(
            "schema", "print", "--role", "someone", "--naming", {"model": "mapped", "mapped": "model"}[kind], **env
        ).stdout
    )


def test_schema_print_does_not_guess_where_the_database_can_t_be_asked():
    env = {"DATABASE_URL": "postgresql://someone:s3cr3t-word@127.0.0.1:1/nothing"}
    done = call("schema", "print", "--role", "someone", **env)
    assert (done.returncode, done.stdout) == (3, "")
    assert "With --naming model or --naming mapped, this command needs no database" in done.stderr
    assert "s3cr3t-word" not in done.stderr
    assert call("schema", "print", "--role", "someone", "--naming", "mapped", **env).returncode == 0


def test_schema_print_needs_no_database():
    sql = call("schema", "print").stdout
    assert sql.startswith("-- For tables named by model")
    assert 'CREATE TABLE "public"."RankingEvent"' in sql
    assert 'CREATE TABLE "public"."User"' not in sql
    assert 'CREATE TABLE "public"."User"' in call("schema", "print", "--all").stdout
    mapped = call("schema", "print", "--naming", "mapped", "--format", "prisma").stdout
    assert '@@map("ranking_events")' in mapped


IMPORTED = """
import atexit, pathlib, sys
found, *words = sys.argv[1:]
atexit.register(lambda: pathlib.Path(found).write_text(" ".join(sys.modules)))
sys.argv = ["bpr-etl", *words]
sys.path.insert(0, ".")
import cli
cli.main()
"""


def imported(file: Path, *words: str, **environment: str) -> set[str]:
    """The modules that a command has imported when it ends."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, str(file), *words],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return set(file.read_text().split())


def test_a_run_imports_nothing_that_it_does_not_use(small_world, tmp_path):
    words = ("run", "--json", "--out", str(tmp_path / "out"))
    for _ in range(2):  # a first run, and one after which nothing has changed
        there = imported(tmp_path / "modules", *words, DATABASE_URL=small_world)
        assert {"polars", "numpy", "pyarrow", "dataframely", "connectorx", "jinja2"} <= there
        unused = "pandas matplotlib scipy torch duckdb ray openlineage boto3 obstore numpy.random pydantic rich asyncio"
        assert there & {*unused.split(), "http.client", "pyarrow.dataset", "adbc_driver_manager.dbapi"} == set()


def test_help_imports_no_library_but_typer(tmp_path):
    there = imported(tmp_path / "modules", "run", "--help")
    assert "typer" in there
    assert there & {"polars", "numpy", "pyarrow", "pydantic", "rich", "importlib.metadata", "jinja2"} == set()

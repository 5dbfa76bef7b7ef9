"""Mistakes that people make, and settings of machines and databases that would do harm in silence: each is refused in a sentence."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.faults.calling import ROOT, call, environment, said


def published(url: str, out: Path) -> Path:
    """Publish a snapshot; return its folder."""
    done = call("run", "--quiet", "--database-url", url, "--out", str(out))
    assert done.returncode == 0, said(done)
    return out / "snapshots" / (out / "LATEST").read_text()


@pytest.mark.parametrize(
    "name", ["LATEST", "snapshots/@/manifest.json", "snapshots/@/users.parquet", "snapshots/@/new.prom"]
)
def test_a_metrics_file_inside_the_output_folder_is_refused(small_world, tmp_path, name):
    snapshot = published(small_world, tmp_path / "out")
    target = tmp_path / "out" / name.replace("@", snapshot.name)
    before = target.read_bytes() if target.exists() else None
    done = call(
        *("run", "--database-url", small_world, "--out", str(tmp_path / "out"), "--metrics-file", str(target)),
    )
    assert done.returncode == 2, said(done)
    assert "--metrics-file" in done.stderr
    assert (target.read_bytes() if target.exists() else None) == before


def test_a_metrics_file_replaces_only_a_metrics_file(small_world, tmp_path):
    config = tmp_path / "my.toml"
    config.write_text("seed = 3\n")
    arguments = ("run", "--quiet", "--database-url", small_world, "--out", str(tmp_path / "out"))
    done = call(*arguments, "--config", str(config), "--metrics-file", str(config))
    assert done.returncode == 2, said(done)
    assert config.read_text() == "seed = 3\n"
    for _ in range(2):
        assert call(*arguments, "--metrics-file", str(tmp_path / "bpr.prom")).returncode == 0
    (tmp_path / "empty.prom").touch()
    assert call(*arguments, "--metrics-file", str(tmp_path / "empty.prom")).returncode == 0


@pytest.mark.parametrize("inside", ["snapshots/@", "snapshots", "snapshots/@/deeper"])
def test_an_output_folder_inside_another_one_s_snapshots_is_refused(small_world, tmp_path, inside):
    snapshot = published(small_world, tmp_path / "out")
    out = tmp_path / "out" / inside.replace("@", snapshot.name)
    done = call("run", "--database-url", small_world, "--out", str(out))
    assert done.returncode == 2, said(done)
    assert call("validate", "--snapshot", str(snapshot)).returncode == 0


@pytest.mark.parametrize("name", ["SHADOW_DOMAIN", "EXPECT_USERS", "MAX_BAD", "SEED", "OUT", "DRY_RUN"])
def test_an_empty_variable_is_not_taken_for_an_absent_one(small_world, tmp_path, name):
    done = call("run", "--database-url", small_world, cwd=tmp_path, env={f"BPR_ETL_{name}": ""})
    assert done.returncode == 2, said(done)
    assert f"BPR_ETL_{name}" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("files", [12, 18, 21, 40])
def test_too_few_open_files_are_a_sentence_and_no_standstill(small_world, tmp_path, files):
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), "run", "--database-url", small_world, "--out", str(tmp_path / "out")],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files)),
    )
    assert done.returncode in (0, 3), said(done)
    assert done.returncode == 0 or "ulimit -n" in done.stderr
    assert "Traceback" not in said(done)


def test_an_id_that_two_users_share_is_refused(small_world, tmp_path):
    """Whose rows are those of such an id? Without a unique index the application may make one at any time."""
    with psycopg.connect(small_world, autocommit=True) as connection:
        connection.execute('ALTER TABLE "User" DROP CONSTRAINT "User_pkey" CASCADE')
        connection.execute(
            """INSERT INTO "User" ("id", "email") SELECT "id", 'ana@real.test' FROM "User" WHERE starts_with("email", 'shadow-') LIMIT 1"""
        )
        before = connection.execute('SELECT count(*) FROM "RankingEvent"').fetchone()
    done = call("run", "--database-url", small_world, "--out", str(tmp_path / "out"))
    assert done.returncode == 4, said(done)
    assert "User" in done.stderr
    with psycopg.connect(small_world) as connection:
        assert connection.execute('SELECT count(*) FROM "RankingEvent"').fetchone() == before
    assert call("schema", "check", "--database-url", small_world).returncode == 4


def test_a_role_whose_foreign_keys_are_switched_off_has_them_on_in_a_run(small_world, tmp_path):
    published(small_world, tmp_path / "out")
    with psycopg.connect(small_world, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(
            """CREATE TABLE child (id int, event text REFERENCES "RankingEvent" ("id"));
            INSERT INTO child SELECT 1, min("id") FROM "RankingEvent" """
        )
        connection.execute(f'ALTER ROLE postgres IN DATABASE "{name}" SET session_replication_role = replica')
    done = call("run", "--database-url", small_world, "--out", str(tmp_path / "out"), "--seed", "7")
    assert done.returncode == 5, said(done)
    with psycopg.connect(small_world, autocommit=True) as connection:
        assert connection.execute('SELECT count(*) FROM child JOIN "RankingEvent" e ON e."id" = event').fetchone() == (
            1,
        )


def test_a_report_without_charts_is_still_a_report(small_world, tmp_path):
    env = {"MPLCONFIGDIR": "/proc/1/root/x"}
    done = call("run", "--database-url", small_world, "--out", str(tmp_path / "out"), env=env)
    assert done.returncode == 0, said(done)
    snapshot = tmp_path / "out" / "snapshots" / (tmp_path / "out" / "LATEST").read_text()
    assert (snapshot / "report.html").is_file()
    again = call("report", str(tmp_path / "out"), env=env)
    assert again.returncode == 0, said(again)


def test_schema_apply_makes_no_application_where_another_schema_has_it(small_world):
    """A forgotten ?schema= must not put a second, empty set of tables into the database."""
    with psycopg.connect(small_world, autocommit=True) as connection:
        connection.execute("ALTER SCHEMA public RENAME TO planner")
        connection.execute("CREATE SCHEMA public")
    for command in (("schema", "check"), ("schema", "apply"), ("run", "--out", "nowhere")):
        done = call(*command, "--database-url", small_world)
        assert done.returncode == 4, said(done)
        assert "planner" in said(done)
    with psycopg.connect(small_world) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)


@pytest.mark.parametrize("seed", ["{}", '{"pacePreference": "packed", "categoryAffinities": {"dining": 0.9}}'])
def test_seeds_of_which_nothing_is_used_are_warned_of(small_world, tmp_path, seed):
    with psycopg.connect(small_world, autocommit=True) as connection:
        connection.execute('UPDATE "Trip" SET "personaSeed" = %s::jsonb WHERE "personaSeed" IS NOT NULL', [seed])
    done = call("run", "--quiet", "--database-url", small_world, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, said(done)
    assert "pace_preference" in done.stderr
    assert "personaSeed" in done.stderr


def test_affinities_on_another_scale_are_warned_of(small_world, tmp_path):
    with psycopg.connect(small_world, autocommit=True) as connection:
        connection.execute(
            """UPDATE "Trip" SET "personaSeed" = jsonb_set("personaSeed", '{category_affinities}', (SELECT jsonb_object_agg(k,
            round(v::numeric * 100, 2)) FROM jsonb_each_text("personaSeed"->'category_affinities') x(k, v)))
            WHERE jsonb_typeof("personaSeed"->'category_affinities') = 'object'
            AND NOT jsonb_path_exists("personaSeed", '$.category_affinities.* ? (@.type() != "number")')"""
        )
    done = call("run", "--quiet", "--database-url", small_world, "--out", str(tmp_path / "out"))
    assert done.returncode == 0, said(done)
    assert "from 0 to 1" in done.stderr

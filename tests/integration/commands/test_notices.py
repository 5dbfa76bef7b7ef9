"""What the server says at connect, and whatever a C library writes to stderr, is a log line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from urllib.parse import urlsplit

import psycopg
import pytest

from tests.integration.commands.test_cli import ROOT, call

LOGIN = (
    "CREATE FUNCTION hi() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN "
    r"RAISE WARNING E'\x1b[31mred\nError: forged' USING DETAIL = 'more of it'; RAISE NOTICE '%', repeat('x', 300000); END $$"
)


@pytest.fixture
def talking(small_world) -> str:
    """A database that greets whoever connects: with a colour, a second line, and more than a pipe holds."""
    with psycopg.connect(small_world, autocommit=True) as connection:
        if connection.info.server_version < 170_000:
            pytest.skip("login triggers are PostgreSQL 17's")
        connection.execute(LOGIN)
        connection.execute("CREATE EVENT TRIGGER hi ON login EXECUTE FUNCTION hi()")
    return small_world


@pytest.mark.parametrize("command", ["run", "export", "doctor", "schema check"])
def test_every_line_is_json(talking, tmp_path, command):
    environ = {"DATABASE_URL": talking, "BPR_ETL_OUT": str(tmp_path / "out"), "BPR_ETL_ALLOW_EMPTY": "true"}
    done = call(*command.split(), "--log-format", "json", **environ)
    lines = list(map(json.loads, done.stderr.splitlines()))
    warned, noticed = (each for each in lines if each["event"].startswith("The server says"))
    assert done.returncode == 0
    assert warned["event"] == "The server says: WARNING:  \x1b[31mred Error: forged DETAIL:  more of it"
    assert warned["level"] == noticed["level"] == "info"
    assert noticed["event"].startswith("The server says: NOTICE:  xxx")
    assert len(noticed["event"]) < 2_100


def test_people_are_shown_it_escaped_and_who_wants_quiet_is_not(talking):
    shown = call("schema", "check", DATABASE_URL=talking)
    assert r"The server says: WARNING:  \x1b[31mred Error: forged" in shown.stderr
    assert "\x1b" not in shown.stderr
    quiet = call("schema", "check", "--quiet", DATABASE_URL=talking)
    assert (quiet.returncode, quiet.stderr) == (0, "")


def test_a_collation_of_another_version(make_database, server_url):
    """As after an upgrade of the operating system: PostgreSQL warns at every connect."""
    url = make_database()
    with psycopg.connect(server_url, autocommit=True) as connection:
        name = urlsplit(url).path[1:]
        if connection.info.server_version < 170_000:
            pytest.skip("the builtin locale provider is PostgreSQL 17's")
        connection.execute(f'DROP DATABASE "{name}"')
        connection.execute(
            f"CREATE DATABASE \"{name}\" TEMPLATE template0 LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8' LOCALE 'C' "
            "ENCODING 'UTF8'"
        )
        connection.execute(f"UPDATE pg_database SET datcollversion = '0.9' WHERE datname = '{name}'")
    done = call("schema", "apply", "--log-format", "json", DATABASE_URL=url)
    first = json.loads(done.stderr.splitlines()[0])
    assert done.returncode == 0
    assert "collation version mismatch DETAIL:  The database was created using collation version 0.9" in first["event"]
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()].count(first["event"]) == 1


NATIVE = """
import os, subprocess, sys
from etl.runtime import logs, notices
logs.configure(as_json=True)
with notices.as_log_lines():
    os.write(2, b"NOTICE:  one\\nHINT:  of two\\nWARNUNG:  another\\n")
    print(subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL).pid, flush=True)
    print("by Python", file=sys.stderr)
    os.write(2, b"a library, without an end")
print("after", file=sys.stderr)
os.write(2, b"and as it was")
"""


def test_what_lives_on_keeps_nobody_waiting_and_the_descriptor_is_given_back():
    started = subprocess.run(
        [sys.executable, "-c", NATIVE],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    os.kill(int(started.stdout), signal.SIGKILL)
    *lines, last = started.stderr.splitlines()
    assert [line for line in lines if not line.startswith("{")] == ["by Python", "after"]
    # Where the reader is slow, what has no severity belongs to the notice before it.
    told = " ".join(json.loads(line)["event"] for line in lines if line.startswith("{"))
    assert told.startswith("The server says: NOTICE:  one HINT:  of two The server says: WARNUNG:  another")
    assert told.endswith("a library, without an end")
    assert last == "and as it was"


def test_a_closed_stderr_is_no_obstacle(small_world, tmp_path):
    command = f"{sys.executable} cli.py schema check --json 2>&-"
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=ROOT,
        env={"DATABASE_URL": small_world, "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert json.loads(done.stdout)["ok"] is True

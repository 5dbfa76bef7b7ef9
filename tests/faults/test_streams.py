"""What happens to stdout and stderr (full, closed, a reader that left, another encoding) changes neither the work nor its exit code."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psycopg
import pytest

from tests.faults.calling import ROOT, call, environment
from tests.unit.reporting.test_metrics_file import samples

LOST = "could not be printed on stdout"
FULL, CLOSED, GONE, READ = "full", "closed", "gone", "read"
STREAMS = [(FULL, READ), (CLOSED, READ), (GONE, READ), (READ, FULL), (READ, CLOSED), (READ, GONE), (FULL, FULL)]
STREAMS += [(CLOSED, CLOSED)]


def told(
    *words: str, streams: tuple[str, str], cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """`bpr-etl WORDS` with stdout and stderr in these states."""
    shell, handles = "exec ", []
    for number, (name, state) in enumerate(zip(("stdout", "stderr"), streams, strict=True), 1):
        if state == FULL:
            handles.append((name, os.open("/dev/full", os.O_WRONLY)))
        elif state == GONE:
            ours, theirs = os.pipe()
            os.close(ours)
            handles.append((name, theirs))
        else:
            shell += f"{number}>&- " if state == CLOSED else ""
    if streams == (CLOSED, CLOSED):
        shell += "0<&- "
    try:
        command = ["sh", "-c", f'{shell} "$@"', "sh", sys.executable, str(ROOT / "cli.py"), *words]
        pipes: dict[str, int] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | dict(handles)
        return subprocess.run(command, cwd=cwd, env=environment(**env or {}), check=False, timeout=120, **pipes)
    finally:
        for _, handle in handles:
            os.close(handle)


@pytest.fixture(scope="module")
def place(make_database, small_world_template, tmp_path_factory) -> Path:
    """A folder with an --out in it, and the settings file that names the database."""
    folder = tmp_path_factory.mktemp("streams")
    url = make_database(small_world_template)
    (folder / "bpr-etl.toml").write_text(f'database_url = "{url}"\nout = "out"\n')
    done = call("run", "--quiet", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("streams", STREAMS, ids="-".join)
@pytest.mark.parametrize("form", [(), ("--json",)], ids=["shown", "json"])
def test_a_run_is_done_and_says_so_by_its_exit_code_whoever_listens(place, streams, form):
    before = (place / "out" / "LATEST").read_text()
    done = told("run", "--verbose", "--metrics-file", "bpr.prom", *form, streams=streams, cwd=place)
    assert done.returncode == 0, done.stderr
    name = (place / "out" / "LATEST").read_text()
    assert name > before
    assert json.loads((place / "out" / "snapshots" / name / "manifest.json").read_text())["files"]
    assert samples(place / "bpr.prom")["bpr_etl_exit_code",] == 0
    if streams[1] == READ:
        assert b"Traceback" not in done.stderr
        # Who left or wanted no stdout has nothing to be told, unless there was one object to be read.
        assert (LOST.encode() in done.stderr) == bool(form or streams[0] == FULL)
    if streams[0] == READ:
        shown = done.stdout.decode()
        assert json.loads(shown)["ok"] if form else shown.startswith("Done")


COMMANDS = {
    "help": ("--help",),
    "a command's help": ("run", "--help"),
    "list": ("list",),
    "schema": ("schema", "print"),
    "settings": ("config", "show", "--json"),
    "doctor": ("doctor",),
    "laws": ("validate",),
    "files": ("validate", "--snapshot", "out", "--json"),
    "no server": ("db", "url", "--data-dir", "nowhere"),
    "an option that is wrong": ("run", "--seed", "-1"),
    "a word that is wrong": ("rum",),
    "a limit": ("run", "--expect-users", "1", "--json", "--log-format", "json"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_ends_with_its_own_exit_code_whoever_listens(place, name, effort):
    words = COMMANDS[name]
    usual = told(*words, streams=(READ, READ), cwd=place).returncode
    states = [(FULL, READ), (GONE, READ), (CLOSED, CLOSED), *STREAMS]
    for streams in states[: effort(3, len(states))]:
        done = told(*words, streams=streams, cwd=place)
        assert (streams, done.returncode) == (streams, usual), done.stderr
        assert b"Traceback" not in (done.stderr or b"")


def test_a_closed_stderr_is_not_what_the_next_file_or_socket_becomes():
    look = "import cli, os, sys, etl.commands.terminal.streams as s; s.open_closed(); print(*(os.readlink(f'/proc/self/fd/{n}') for n in (0, 2)))"
    done = subprocess.run(
        ["sh", "-c", '"$@" 0<&- 2>&-', "sh", sys.executable, "-c", look],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        check=True,
    )
    assert done.stdout.split() == [b"/dev/null", b"/dev/null"]


def test_a_terminal_that_went_away_in_mid_run_changes_nothing(small_world, tmp_path):
    ours, theirs = pty.openpty()
    words = ["run", "--verbose", "--out", "out", "--database-url", small_world]
    with psycopg.connect(small_world) as connection:
        connection.execute('LOCK TABLE "ActivityNode" IN ACCESS EXCLUSIVE MODE')  # the run waits for it
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "cli.py"), *words],
            cwd=tmp_path,
            env=environment(TERM="xterm-256color"),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,  # so that it hears no SIGHUP, as under nohup
        )
        os.close(theirs)
        assert os.read(ours, 1)
        time.sleep(1.5)  # something moves by now
        os.close(ours)
        time.sleep(0.5)
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "out" / "LATEST").is_file()


@pytest.mark.parametrize(
    "locale",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1:strict"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["ascii", "latin-1", "C"],
)
def test_a_city_that_the_locale_can_not_spell_stops_nothing(small_world, tmp_path, locale):
    with psycopg.connect(small_world) as connection:
        for table in ("Trip", "ActivityNode"):
            connection.execute(f"""UPDATE "{table}" SET city = 'Zürich 東京 🏙' WHERE city = 'New York'""")
    words = ("--out", "out", "--database-url", small_world)
    for form in ((), ("--json",), ("--log-format", "json")):
        done = told("run", *words, *form, streams=(READ, READ), cwd=tmp_path, env=locale)
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr
        if form == ("--json",):
            encoding = "latin-1" if "latin" in str(locale) else "ascii"
            assert "Zürich 東京 🏙" in str(json.loads(done.stdout.decode(encoding)))
    for words in (("list", "out"), ("inspect", "out"), ("inspect", "out", "--json"), ("diff", "out")):
        done = told(*words, streams=(READ, READ), cwd=tmp_path, env=locale)
        assert done.returncode == 0, done.stderr

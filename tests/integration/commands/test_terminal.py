"""What a person, a cron mail and a log collector see of a night, each in its own way."""

from __future__ import annotations

import json
import logging
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg

from etl.commands import runner as terminal
from etl.settings.sources import load_settings
from tests.faults.calling import ROOT, call, environment
from tests.unit.reporting.test_metrics_file import samples

ESCAPE = "\x1b["
SPINNER = "[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]"
NOWHERE = "postgresql://someone@127.0.0.1:1/nothing"


def in_terminal(
    *arguments: str, cwd: Path, columns: int = 110, heard: Callable[[str], object] = lambda _said: None
) -> tuple[int, str]:
    """`bpr-etl ARGUMENTS` on a terminal of so many columns: its exit code, and all that the terminal was sent.

    `heard` is told all that was sent so far, whenever there is more.
    """
    ours, theirs = pty.openpty()
    env = environment(TERM="xterm-256color", COLUMNS=str(columns))
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "cli.py"), *arguments], cwd=cwd, env=env, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            piece = os.read(ours, 65_536)
        except OSError:  # how Linux says that the other end is closed
            break
        if not piece:
            break
        said += piece
        heard(said.decode(errors="replace"))
    os.close(ours)
    return process.wait(timeout=60), said.decode()


def test_on_a_terminal_a_step_that_takes_long_moves_and_is_gone_in_the_end(small_world, tmp_path):
    waited = rf"{SPINNER}\S* read[^\n]* (?!0:00)\d+:\d\d"
    with psycopg.connect(small_world) as holder:
        holder.execute('LOCK TABLE "ActivityNode" IN ACCESS EXCLUSIVE MODE')
        deadline = time.monotonic() + 120

        def let_go(so_far: str) -> None:
            """Whoever reads waits for the lock until the terminal has shown that, however slow this machine is."""
            if re.search(waited, so_far) or time.monotonic() > deadline:
                holder.rollback()

        arguments = ["run", "--verbose", "--out", "out", "--database-url", small_world]
        code, said = in_terminal(*arguments, cwd=tmp_path, heard=let_go)
    assert code == 0, said
    moving, _, summary = said.partition("Done: a snapshot")
    assert re.search(waited, moving)
    assert "Step began." in moving  # log lines go above what moves
    assert ESCAPE in moving
    assert not re.search(SPINNER, summary)
    assert "Volumes compared with earlier runs" in summary


def test_what_commands_print_fits_80_columns(small_world, tmp_path):
    database = ["--database-url", small_world]
    for words in (
        [
            "run",
            "--out",
            "out",
            "--split",
            "last-trip",
            "--task",
            "triples",
            "--task",
            "next",
            "--profile",
            "--verbose",
            *database,
        ],
        ["expand", "out", "--out", "out", "--negatives", "recommended", "--split", "last-trip", "--probe"],
        ["probe", "out", "--verbose"],
        ["list", "out"],
        ["inspect", "out", "--verbose"],
        ["diff", "out"],
        ["validate", "--verbose", *database],
        ["validate", "--snapshot", "out"],
        ["doctor", "--out", "out", "--verbose", *database],
        ["schema", "check", *database],
        ["prune", "out", "--keep", "1", "--dry-run"],
    ):
        code, said = in_terminal(*words, cwd=tmp_path, columns=80)
        assert code == 0, said
        lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said))
        longest = max((line for line in lines if not re.match(r"\d{4}-\d\d-\d\dT", line)), key=len)  # not the log's
        assert len(longest) <= 80, (words, longest)
        if words[0] in ("probe", "list", "inspect", "diff"):
            assert "┃" in said  # a table


def test_a_mail_has_a_summary_a_collector_json_lines_and_prometheus_nights_good_and_bad(small_world, tmp_path):
    metrics, log = tmp_path / "bpr.prom", ["--log-format", "json", "--metrics-file", "bpr.prom", "--out", "out"]
    (tmp_path / "bpr-etl.toml").write_text("verbose = true\n")
    done = call("run", *log, "--database-url", small_world, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert ESCAPE not in done.stdout + done.stderr
    assert done.stdout.startswith("Done: a snapshot was published")
    asked = [
        "Volumes compared with earlier runs",
        "What was published, by city",
        "Excluded rows",
        "Remarks on published",
    ]
    assert sorted(asked, key=done.stdout.index) == asked
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    (run_id,) = {each["run_id"] for each in lines if "run_id" in each}
    assert "Settings are read from bpr-etl.toml" in lines[0]["event"]
    assert lines[-1]["event"] == "Done."
    manifest = json.loads((tmp_path / lines[-1]["snapshot"] / "manifest.json").read_text())
    assert manifest["run_id"] == run_id
    good = samples(metrics)
    assert good["bpr_etl_exit_code",] == 0
    assert good["bpr_etl_rows", "triples"] == sum(manifest["published"]["triples"].values())
    began = [each["step"] for each in lines if each["event"] == "Step began."]
    assert sorted(began) == sorted(key[1] for key in good if key[0] == "bpr_etl_step_seconds")
    failed = call("run", *log, "--expect-users", "1", "--database-url", small_world, cwd=tmp_path)
    assert failed.returncode == 5
    last = json.loads(failed.stderr.splitlines()[-1])
    assert (last["level"], last["exit_code"], last["error"]) == ("error", 5, "DataError")
    assert last["run_id"] != run_id
    assert samples(metrics)["bpr_etl_exit_code",] == 5
    assert call("run", *log, "--seed", "-1", cwd=tmp_path).returncode == 2
    after = samples(metrics)
    assert after["bpr_etl_exit_code",] == 2
    assert after["bpr_etl_last_success_timestamp_seconds",] == good["bpr_etl_last_success_timestamp_seconds",]
    assert after["bpr_etl_last_run_timestamp_seconds",] > good["bpr_etl_last_run_timestamp_seconds",]
    assert after["bpr_etl_rows", "triples"] == good["bpr_etl_rows", "triples"]


def test_who_asks_for_quiet_hears_of_what_is_wrong_and_of_nothing_else(small_world, tmp_path):
    (tmp_path / "bpr-etl.toml").write_text("quiet = true\n")
    assert told(call("schema", "check", "--database-url", small_world, cwd=tmp_path)) == (0, "", "")
    code, out, err = told(call("schema", "check", "--database-url", NOWHERE, cwd=tmp_path))
    assert (code, out) == (3, "")
    assert err.startswith("Error: Cannot reach the database")


def told(done: subprocess.CompletedProcess[str]) -> tuple[int, str, str]:
    return done.returncode, done.stdout, done.stderr


def measured(folder: Path) -> terminal._MetricsFile:
    return terminal._MetricsFile({"metrics_file": str(folder / "bpr.prom")}, {})


def test_a_rehearsal_is_no_night(tmp_path):
    for dry_run in (True, False):
        of = measured(tmp_path)
        of.begin(load_settings({"metrics_file": str(tmp_path / "bpr.prom"), "dry_run": dry_run}, {}))
        of.write(0, {})
        assert (tmp_path / "bpr.prom").exists() is not dry_run


def test_metrics_that_can_t_be_written_are_refused_before_the_night_and_warned_of_after_it(tmp_path):
    done = call("run", "--metrics-file", "nowhere/bpr.prom", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: --metrics-file nowhere/bpr.prom can't be written")
    assert len(done.stderr.splitlines()) == 1
    of = measured(tmp_path)
    of.begin(load_settings({"metrics_file": str(tmp_path / "bpr.prom")}, {}))
    (tmp_path / "bpr.prom").mkdir()
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    terminal.log.addHandler(handler)
    try:
        of.write(0, {})
    finally:
        terminal.log.removeHandler(handler)
    assert ["could not be written" in record.getMessage() for record in records] == [True]


def test_a_command_that_takes_no_metrics_file_writes_none(tmp_path):
    env = {"BPR_ETL_METRICS_FILE": str(tmp_path / "bpr.prom")}
    assert call("schema", "print", env=env, cwd=tmp_path).returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_init_writes_a_file_that_is_read_and_config_show_says_so(tmp_path):
    done = call("init", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    again = call("init", "--json", cwd=tmp_path)
    assert again.returncode == 2
    assert "is there already" in json.loads(again.stdout)["message"]
    file = tmp_path / "bpr-etl.toml"
    file.write_text(file.read_text().replace("#ids = ", "ids = ").replace('"string"', '"both"'))
    env = {"DATABASE_URL": "postgresql://app:s3cr3t@h/d", "BPR_ETL_SEED": "4"}
    told = call("config", "show", "--json", "--split", "last-trip", cwd=tmp_path, env=env)
    assert told.returncode == 0, told.stderr
    settings = json.loads(told.stdout)["settings"]
    assert settings["ids"] == {"value": "both", "from": "bpr-etl.toml"}
    assert settings["seed"] == {"value": 4, "from": "environment: BPR_ETL_SEED"}
    assert settings["split"] == {"value": "last-trip", "from": "the command line"}
    assert settings["database_url"] == {"value": "postgresql://app:***@h/d", "from": "environment: DATABASE_URL"}
    assert json.loads(told.stdout)["file"] == "bpr-etl.toml"
    assert "Settings are read from bpr-etl.toml in this folder" in told.stderr
    without = call("config", "show", "--config", "", "--quiet", cwd=tmp_path)
    assert without.stderr == ""
    assert "Settings file: none" in without.stdout  # what was asked for is shown, however quiet
    assert '"both"' not in without.stdout


def test_quiet_and_verbose_contradict_each_other(tmp_path):
    done = call("schema", "print", "--quiet", "--verbose", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Error: --quiet and --verbose contradict each other: give one of them.\n"


def test_a_bug_is_one_json_line_too_and_holds_no_password(tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
        "from etl.pipeline import run as pipeline\n"
        "def run(settings, *_, **__): raise RuntimeError(settings.database_url)\n"
        "pipeline.run = run\n"
        "import cli; cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT), "run", "--log-format", "json"],
        env=environment(DATABASE_URL="postgresql://app:s3cr3t@h/d"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert json.loads(line)["level"] == "critical"
    assert "RuntimeError: postgresql://app:***@h/d" in json.loads(line)["exception"]

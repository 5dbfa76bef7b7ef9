"""The recipes of docs/recipes.md, as far as they can be checked without the programs that they are for.

`make check-recipes` checks them with those programs, where these are installed.
"""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from cli import app
from etl.postgres.url import target_of
from etl.reporting.metrics_file import METRICS
from etl.runtime.resources import __version__
from etl.settings.model import Settings
from etl.settings.sources import ENVIRONMENT_PREFIX, load_settings

DOCS = Path(__file__).parents[3] / "docs"
RECIPES = DOCS / "recipes"
FILES = sorted(path for path in RECIPES.iterdir() if path.is_file())
NO_RETRY, RETRY, FINE = {"1", "2", "4", "5"}, {"3", "6"}, {"0", "99"}


def read(name: str) -> str:
    return (RECIPES / name).read_text(encoding="utf-8")


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(read(name))
    return parser


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_named_options_and_variables_exist(path):
    text = path.read_text(encoding="utf-8")
    options = {option for command in get_command(app).commands["run"].params for option in command.opts}
    for call in re.findall(r"bpr-etl run([^\n\"|&>;]*)", text):
        assert set(re.findall(r"--[a-z-]+", call)) <= options
    named = {name.removeprefix(ENVIRONMENT_PREFIX).lower() for name in re.findall(r"\bBPR_ETL_[A-Z_]+", text)}
    of_the_script = {"env", "pauses"}
    assert named - of_the_script <= set(Settings.__dataclass_fields__)


def test_the_environment_file_is_valid_and_means_the_same_to_a_shell_and_to_systemd():
    lines = [line for line in read("env").splitlines() if line and not line.startswith("#")]
    of_systemd = {name: value.strip("'") for name, _, value in (line.partition("=") for line in lines)}
    shell = subprocess.run(
        ["sh", "-c", f"set -a; . {RECIPES / 'env'}; env"], capture_output=True, text=True, check=True, env={}
    ).stdout
    of_shell = dict(line.split("=", 1) for line in shell.splitlines())
    assert of_systemd.items() <= of_shell.items()
    settings = load_settings({}, of_shell)
    assert target_of(settings)
    assert (settings.negatives, settings.split, settings.skip_unchanged) == (("recommended",), "last-trip", True)
    assert settings.fail_on_change


@pytest.fixture
def cron_script(tmp_path):
    """Run the cron script with a fake bpr-etl that exits with these codes in turn and prints `says` each time.

    Returns its exit code, its output, and the number of calls.
    """

    def run(*codes: int, says: str = "") -> tuple[int, str, int]:
        called = tmp_path / "called"
        called.unlink(missing_ok=True)
        fake = tmp_path / "bpr-etl"
        fake.write_text(
            f'#!/bin/sh\n[ "$*" = "run --quiet" ] || exit 77\necho x >> {called}\nprintf "{says}" >&2\n'
            f"set -- {' '.join(map(str, codes))}\nshift $(($(wc -l < {called}) - 1))\nexit $1\n"
        )
        fake.chmod(0o755)
        environ = {
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "BPR_ETL_ENV": str(RECIPES / "env"),
            "BPR_ETL_PAUSES": "0.01 0.01 0.01",
        }
        done = subprocess.run(
            ["sh", RECIPES / "bpr-etl-cron"], capture_output=True, text=True, check=False, env=environ
        )
        return done.returncode, done.stdout, len(called.read_text().splitlines())

    return run


@pytest.mark.parametrize(
    ("codes", "ends", "calls"),
    [
        ((0,), 0, 1),
        ((99,), 0, 1),
        ((5,), 5, 1),
        ((2,), 2, 1),
        ((3, 6, 0), 0, 3),
        ((3, 4), 4, 2),
        ((6, 6, 6, 6), 6, 4),
    ],
)
def test_the_cron_script_retries_temporary_failures_and_prints_messages(cron_script, codes, ends, calls):
    for says in ("", "a warning\\n"):
        code, said, called = cron_script(*codes, says=says)
        assert (code, called) == (ends, calls)
        first = "" if ends == 0 else f"bpr-etl run ended with exit code {ends}:\n"
        assert said == first + says.replace("\\n", "\n")


@pytest.mark.parametrize(
    ("code", "answer", "told"), [(0, 200, "0"), (99, 200, "0"), (5, 200, "5"), (3, 404, "3"), (0, None, None)]
)
def test_the_ping_tells_start_and_exit_code_and_leaves_that_alone(code, answer, told):
    """The watchdog takes pings, refuses them, or is not there."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    paths: list[str] = []

    class Watchdog(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(answer)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with HTTPServer(("127.0.0.1", 0), Watchdog) as server:
        url = f"http://127.0.0.1:{server.server_port}/uuid"
        if answer is None:
            server.server_close()
        else:
            threading.Thread(target=server.serve_forever, daemon=True).start()
        env = {"PATH": os.environ["PATH"], "PING_URL": url}
        done = subprocess.run([RECIPES / "bpr-etl-ping", "sh", "-c", f"exit {code}"], env=env, timeout=60, check=False)
        if answer is not None:
            server.shutdown()
    assert done.returncode == code
    assert paths == ([] if told is None else ["/uuid/start", f"/uuid/{told}"])


def test_the_cron_line_has_a_user_and_an_existing_script():
    lines = [line for line in read("bpr-etl.cron").splitlines() if re.match(r"[\d*]", line)]
    assert [line.split()[5:] for line in lines] == [["bpr-etl", "bpr-etl-cron"]]
    assert (RECIPES / "bpr-etl-cron").stat().st_mode & 0o111


def test_the_systemd_unit_handles_exit_codes_the_same_way():
    service = unit("bpr-etl.service")["Service"]
    assert service["SuccessExitStatus"] == "99"
    assert set(service["RestartPreventExitStatus"].split()) == NO_RETRY
    assert service["Restart"] == "on-failure"
    assert service["ExecStart"].endswith("/bpr-etl run")
    assert unit("bpr-etl.timer")["Timer"]["OnCalendar"] == "*-*-* 03:17"


@pytest.mark.parametrize("name", ["airflow_dag.py", "dagster_defs.py"])
def test_what_runs_in_python_retries_the_same_exit_codes(name):
    (retried,) = [
        ast.literal_eval(node.value)
        for node in ast.parse(read(name)).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "WORTH_A_RETRY"
    ]
    assert {str(code) for code in retried} == RETRY


def test_the_airflow_dag_skips_where_there_is_nothing_new():
    assert "skip_on_exit_code=99" in read("airflow_dag.py")
    assert "run --skip-unchanged --fail-on-change --json" in read("airflow_dag.py")


def test_the_github_workflow_loads_and_its_scripts_parse():
    flow = yaml.safe_load(read("github-actions.yml"))
    assert flow["concurrency"] == {"group": "bpr-etl", "cancel-in-progress": False}
    scripts = [step["run"] for step in flow["jobs"]["run"]["steps"] if "run" in step]
    assert len(scripts) == 2
    for script in scripts:
        subprocess.run(["bash", "-n", "-c", script], check=True)
    assert set(re.findall(r"^ +(\d[\d |]*)\)", scripts[1], re.MULTILINE)) == {"0", "99", "3 | 6"}
    assert flow["jobs"]["run"]["env"]["BPR_ETL_FAIL_ON_CHANGE"] == "true"


def cron_job() -> tuple[dict, dict, dict]:
    """The job, its pod and its container."""
    job = yaml.safe_load(read("kubernetes-cronjob.yml"))["spec"]["jobTemplate"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    return job, pod, container


def test_the_cron_job_handles_exit_codes_the_same_way():
    job, pod, container = cron_job()
    assert pod["restartPolicy"] == "Never"  # else there is no podFailurePolicy
    failing, ignored = job["podFailurePolicy"]["rules"]
    assert failing["action"] == "FailJob"
    assert failing["onExitCodes"]["containerName"] == container["name"]
    assert {str(code) for code in failing["onExitCodes"]["values"]} == NO_RETRY
    assert (ignored["action"], ignored["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    assert job["backoffLimit"] > 0
    environ = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    settings = load_settings({}, environ)
    assert settings.skip_unchanged == "ok"  # of 99, Kubernetes makes a failure
    assert (settings.negatives, settings.split, settings.fail_on_change) == (("recommended",), "last-trip", True)
    assert container["image"].endswith(f":{__version__}")


def test_the_image_is_what_the_cron_job_takes_it_for():
    """The user, the folder that may be written, and the files that the wheel is built from."""
    _, pod, container = cron_job()
    lines = (DOCS.parent / "Dockerfile").read_text(encoding="utf-8")
    user = f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"
    assert re.findall(r"^USER (.+)$", lines, re.MULTILINE) == [user]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    mounts = {each["mountPath"] for each in container["volumeMounts"]}
    assert mounts == {re.search(r"BPR_ETL_OUT=(\S+)", lines)[1], "/tmp"}  # noqa: S108 - its path there
    assert "[" not in re.search(r"pip install .*", lines)[0]  # no extra
    copied = {each for line in re.findall(r"^COPY (?!--)(.+)$", lines, re.MULTILINE) for each in line.split()[:-1]}
    ignored = (DOCS.parent / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == copied


@pytest.mark.parametrize(
    ("result", "code", "annotations", "summary"),
    [
        ({"snapshot": "/out/s", "warnings": []}, 0, [], ["/out/s"]),
        ({"snapshot": "/out/s", "warnings": ["Odd.", "Odder."]}, 0, ["Odd.", "Odder."], ["/out/s", "Odd.", "Odder."]),
        ({"message": "Half of them are gone."}, 5, [], ["Half of them are gone."]),
    ],
)
def test_the_github_script_shows_warnings_of_a_successful_run(tmp_path, result, code, annotations, summary):
    script = yaml.safe_load(read("github-actions.yml"))["jobs"]["run"]["steps"][-1]["run"]
    fake = tmp_path / "bpr-etl"
    fake.write_text(f"#!/bin/sh\necho '{json.dumps(result)}'\nexit {code}\n")
    fake.chmod(0o755)
    (tmp_path / "python").symlink_to(sys.executable)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "GITHUB_STEP_SUMMARY": str(tmp_path / "summary")}
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (code, "")
    assert [line for line in done.stdout.splitlines() if line] == [f"::warning::{each}" for each in annotations]
    assert (tmp_path / "summary").read_text() == "\n\n".join(summary) + "\n"


def test_alerts_use_metrics_that_are_written():
    rules = yaml.safe_load((DOCS / "alerts" / "bpr-etl.rules.yml").read_text(encoding="utf-8"))
    asked = {
        metric
        for group in rules["groups"]
        for rule in group["rules"]
        for metric in re.findall(r"\bbpr_etl_\w+", rule["expr"])
    }
    assert asked
    assert asked <= set(METRICS)


def test_the_page_groups_exit_codes_as_the_recipes_do():
    page = (DOCS / "recipes.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([\d, ]+) \| (.+) \|$", page, re.MULTILINE))
    again = {code for codes, what in rows.items() if what.startswith("try again") for code in codes.split(", ")}
    fine = {code for codes, what in rows.items() if what.startswith("go on") for code in codes.split(", ")}
    assert (again, fine) == (RETRY, FINE)

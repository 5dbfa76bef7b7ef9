"""The Python examples of docs/api.md and docs/start.md, run as they are."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import uuid
from urllib.parse import parse_qs, quote, urlsplit, urlunsplit

import psycopg
import pytest

import etl
from etl.settings.sources import load_settings
from tests.faults.calling import ROOT, environment

DOCS = ROOT / "docs"


def example(page: str) -> str:
    found = re.search(r"^```python\n(.*?)^```$", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert found
    return found[1]


def test_the_api_s_example_and_the_start_s(small_world, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {"url": small_world, "out": "bpr-etl-demo", "other_out": str(tmp_path / "other")}
    exec(compile(example("api.md"), "docs/api.md", "exec"), names)  # noqa: S102 - it is our page
    assert names["result"].committed
    assert names["other"].counts["published"]["triples_by_neg_source"].keys() == {"shown"}
    said = capsys.readouterr().out
    assert f"{names['result'].snapshot} {names['result'].counts['ranking_events']} " in said
    assert "part-00000.parquet" in said
    snapshot = names["snapshot"]
    assert snapshot.parts("triples") == snapshot.data_files("triples") != []  # the old name

    exec(compile(example("start.md"), "docs/start.md", "exec"), names)  # noqa: S102
    assert names["triples"].height == sum(names["result"].counts["published"]["triples"].values())


def test_a_call_needs_no_settings_and_takes_the_environment(small_world, tmp_path, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", f"{small_world}{'&' if '?' in small_world else '?'}connection_limit=5")
    monkeypatch.setenv("BPR_ETL_SEED", "7")
    result = etl.run(out=tmp_path / "out")
    assert etl.open_snapshot(result.snapshot).settings["seed"] == 7
    given = etl.Settings(database_url=small_world, out=str(tmp_path / "out"))
    again = etl.export(given, negatives="shown")
    assert etl.open_snapshot(again.snapshot).settings["negatives"] == ["shown"]
    for wrong in ({"negatives": "shwon"}, {"audience": "shadwo"}, {"outt": "x"}):
        with pytest.raises(etl.EtlError, match="did you mean") as caught:
            etl.run(**{"out": str(tmp_path / "none"), **wrong})
        assert caught.value.exit_code == 2
    assert not (tmp_path / "none").exists()


def test_the_role_s_lines_work_with_a_prisma_url(make_database, small_world_template):
    """Psql refuses Prisma's parameters; the first and the third line, since the second asks for a password."""
    psql = shutil.which("psql")
    if psql is None:
        pytest.skip("there is no psql")
    url = make_database(template=small_world_template)
    name = f"bpr_test_{uuid.uuid4().hex[:12]}"
    lines = [line for line in (DOCS / "start.md").read_text(encoding="utf-8").splitlines() if 'psql "' in line]
    assert len(lines) == 3
    parts = urlsplit(url)
    host = parse_qs(parts.query).get("host", [parts.netloc.rpartition("@")[2]])[0]  # a socket's folder, before the ?
    netloc = f"{parts.netloc.rpartition('@')[0]}@{quote(host, safe=':')}"
    prisma = urlunsplit(parts._replace(netloc=netloc, query="schema=public&connection_limit=5"))
    env = environment(DATABASE_URL=prisma)
    called = f"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT / 'cli.py'))} "
    try:
        for line in (lines[0], lines[2]):
            script = "set -e -o pipefail; " + line.replace("bpr-etl ", called, 1).replace("bpr_etl", name)
            done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            assert "ERROR" not in done.stderr
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")


def test_an_error_has_a_sentence_and_an_exit_code(small_world, tmp_path):
    with pytest.raises(etl.EtlError, match="expect-users") as caught:
        etl.run(load_settings({"database_url": small_world, "out": str(tmp_path / "out"), "expect_users": "1"}, {}))
    assert caught.value.exit_code == 5

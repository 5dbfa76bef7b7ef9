"""The Python of docs/api.md and docs/start.md, run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import etl
from etl.config import resolve

DOCS = Path(__file__).parents[2] / "docs"


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

    exec(compile(example("start.md"), "docs/start.md", "exec"), names)  # noqa: S102
    assert names["triples"].height == sum(names["result"].counts["published"]["triples"].values())


def test_an_error_has_a_sentence_and_an_exit_code(small_world, tmp_path):
    with pytest.raises(etl.EtlError, match="expect-users") as caught:
        etl.run(resolve({"database_url": small_world, "out": str(tmp_path / "out"), "expect_users": "1"}, {}))
    assert caught.value.exit_code == 5

"""Output locations with other things in them: named in a sentence, never deleted, and no run is stopped by them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import pytest
from typer.testing import CliRunner

import cli
from tests.object_store import Bucket

OLD, LATER = (f"{year}0101T000000000000Z-0123456789ab" for year in (2020, 2099))


@pytest.fixture
def call(small_world_template, monkeypatch) -> Callable[..., tuple[int, str, dict]]:
    """Call a command with --json: its exit code, what it printed on stderr, and the object."""
    monkeypatch.setenv("DATABASE_URL", small_world_template)

    def go(*arguments: str) -> tuple[int, str, dict]:
        done = CliRunner().invoke(
            cli.app, [*arguments, "--json", "--audience", "all"][: None if "export" in arguments else -2]
        )
        return done.exit_code, done.stderr, json.loads(done.stdout)

    return go


def put(bucket: Bucket, path: str, content: bytes = b"x") -> None:
    bucket.client.put_object(Bucket=bucket.name, Key=f"nights/out/{path}", Body=content)


def published(call, out: str) -> str:
    """Publish a snapshot. Returns its name."""
    code, said, answer = call("export", "--out", out)
    assert code == 0, said
    return answer["snapshot"].rpartition("/")[2]


def doctored(call, out: str) -> list[dict]:
    _, _, answer = call("doctor", "--out", out)
    return [each for each in answer["checks"] if each["name"] == "snapshots" and each["state"] != "ok"]


STRAYS = {
    "a file": (["readme.txt"], ["readme.txt"]),
    "a file with a snapshot's name": ([OLD], [OLD]),
    "a later file with a snapshot's name": ([LATER], [LATER]),
    "a folder of another name": (["notes/x.txt"], ["notes/"]),
    "a folder marker": ([f"{OLD}/"], [f"{OLD}/"]),
    "a later folder marker": ([f"{LATER}/", f"{LATER}/triples/"], [f"{LATER}/"]),
    "markers of the folders themselves": (["", "../"], []),
}


@pytest.mark.parametrize("what", STRAYS)
def test_strays_of_an_object_store_are_named_and_left_alone(bucket, call, what):
    names, expected = STRAYS[what]
    first = published(call, bucket.out)
    for name in names:
        path = "" if name == "../" else f"snapshots/{name}"
        put(bucket, path, b"" if path.endswith("/") or not path else b"x")
    before = {path for path in bucket.objects() if not path.startswith(f"snapshots/{first}")} - {"LATEST"}
    second = published(call, bucket.out)
    _, _, listed = call("list", bucket.out)
    assert (listed["strays"], listed["unfinished"]) == (expected, [])
    assert [each["name"] for each in listed["snapshots"]] == [second, first]
    found = doctored(call, bucket.out)
    assert [each["state"] for each in found] == ["warning"] * len(expected)
    assert all(name in each["found"] for name, each in zip(expected, found, strict=True))
    code, _, pruned = call("prune", bucket.out, "--keep", "1")
    assert (code, pruned["removed"], pruned["litter"], pruned["strays"]) == (0, [first], [], expected)
    assert call("prune", bucket.out, "--keep", "1")[0] == 99  # what can't be removed is not removed again every night
    assert before <= set(bucket.objects())


BLOCKING = {
    "an empty part": ["snapshots//x"],
    "points": ["snapshots/../x"],
    "a control character": ["snapshots/a\x01b"],
    "an empty part in a later folder": [f"snapshots/{LATER}//x"],
}


@pytest.mark.parametrize("what", BLOCKING)
def test_a_key_that_can_t_be_read_stops_no_run_and_is_named(bucket, call, what):
    """The remedy: what the sentence names is deleted, and all is as before."""
    first = published(call, bucket.out)
    for path in BLOCKING[what]:
        put(bucket, path)
    second = published(call, bucket.out)
    code, _, answer = call("export", "--out", bucket.out, "--keep", "1")
    third = answer["snapshot"].rpartition("/")[2]
    sentence = next(text for text in answer["warnings"] if "can't be listed" in text)
    assert code == 0
    assert bucket.objects()["LATEST"].decode() == third
    assert {first, second} <= {path.split("/")[1] for path in bucket.objects() if path.count("/") > 1}
    assert call("validate", "--snapshot", bucket.out)[0] == 0
    assert call("report", bucket.out)[0] == 0
    code, _, refused = call("prune", bucket.out, "--keep", "1")
    assert (code, "can't be listed because of the object" in refused["message"]) == (3, True)
    key = re.search(rf"the object s3://{bucket.name}/(.*): its key has", sentence)[1].encode().decode("unicode_escape")
    doomed = bucket.client.list_objects_v2(Bucket=bucket.name, Prefix=unquote(key))["Contents"]
    assert len(doomed) == len(BLOCKING[what])
    for each in doomed:
        bucket.client.delete_object(Bucket=bucket.name, Key=each["Key"])
    code, _, answer = call("export", "--out", bucket.out, "--keep", "1")
    assert code == 0
    assert not any("can't be listed" in text for text in answer["warnings"])
    assert any(first in note and third in note for note in answer["notes"])


def test_prune_says_the_bytes_of_all_that_it_removes(bucket, call, tmp_path):
    for out in (bucket.out, str(tmp_path / "out")):
        first = published(call, out)
        published(call, out)
        if out == bucket.out:
            put(bucket, f"snapshots/{OLD}/users.parquet", b"x" * 1234)
            sizes = {path: len(content) for path, content in bucket.objects().items()}
            size = sum(number for path, number in sizes.items() if path.startswith(f"snapshots/{first}/"))
        else:
            folder = Path(out) / "snapshots"
            (folder / OLD).mkdir()
            (folder / OLD / "users.parquet").write_bytes(b"x" * 1234)
            size = sum(path.stat().st_size for path in (folder / first).rglob("*") if path.is_file())
        done = CliRunner().invoke(cli.app, ["prune", out, "--keep", "1", "--dry-run"])
        assert f"would be removed: {OLD}, 1.2 kB (no snapshot: it has no manifest)" in done.stdout
        code, _, pruned = call("prune", out, "--keep", "1")
        assert (code, pruned["sizes"], pruned["bytes"]) == (0, {OLD: 1234, first: size}, size)


def test_strays_of_a_folder_are_named_and_left_alone(call, tmp_path):
    out = tmp_path / "out"
    first = published(call, str(out))
    folder = out / "snapshots"
    (folder / "readme.txt").write_text("x")
    (folder / OLD).write_text("a file")
    (folder / LATER).symlink_to("/nonexistent")
    (folder / "notes").mkdir()
    (folder / ".DS_Store").write_text("x")
    second = published(call, str(out))
    expected = [OLD, LATER, "notes", "readme.txt"]
    _, _, listed = call("list", str(out))
    assert (listed["strays"], listed["unfinished"]) == (expected, [])
    assert [each["name"] for each in listed["snapshots"]] == [second, first]
    assert "and 1 more in snapshots/" in doctored(call, str(out))[0]["found"]
    code, _, pruned = call("prune", str(out), "--keep", "1")
    assert (code, pruned["removed"], pruned["strays"]) == (0, [first], expected)
    assert sorted(path.name for path in folder.iterdir()) == sorted([".DS_Store", second, *expected])

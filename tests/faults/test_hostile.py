"""Snapshots that somebody else made, and odd things in an --out: every command that reads them ends with a sentence.

Each case changes one place of a real manifest, or one of its files, and all commands that read snapshots look at it. A case
passes when each of them succeeds or says what is wrong: no traceback, no control character on the terminal, no hanging.
"""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import cli
import etl
from etl.commands.terminal.help import run_app
from etl.errors import ConnectError, DataError
from etl.runtime.files import file_sha256
from etl.settings.sources import load_settings
from etl.snapshots.manifest import Manifest, Published, parse_manifest
from etl.snapshots.reading.snapshot import MANIFEST, PROBE
from tests.states import database_state

# What is put in a manifest's place; those in RAW are JSON that Python would not write.
RAW = {
    "deep object": '{"a":' * 20_000 + "1" + "}" * 20_000,
    "deep list": "[" * 100_000 + "]" * 100_000,
    "5000 digits": "9" * 5_000,
    "1e400": "1e400",
    "NaN": "NaN",
    "-Infinity": "-Infinity",
    "half a surrogate": '"\\ud800"',
}
DROPPED = "the key is dropped"
VALUES: list[Any] = [
    *(
        None,
        "",
        "\x1b[31mred\x07\n",
        "\x00",
        -1,
        10**30,
        1e308,
        True,
        [],
        {},
        [[[]]],
        {"a": {"b": 1}},
        "..",
        "/etc/passwd",
    ),
    *("a" * 5_000, "2026-13-45", 0.5, DROPPED, *RAW),
]
FILES = [
    *("folder", "pipe", "link to itself", "device", "empty", "random", "half of it", "flipped bits", "gone"),
    *("column dropped", "column renamed", "nulls", "null type", "numbers", "nan", "texts", "lists", "largest"),
    *("no rows", "every row twice", "rows in another order", "other columns", "a name with an escape"),
]
COMMANDS = {
    "list": ["list", "{out}"],
    "inspect": ["inspect", "{out}"],
    "inspect --json": ["inspect", "{out}", "--json"],
    "validate": ["validate", "--snapshot", "{out}"],
    "diff": ["diff", "{out}"],
    "expand": ["expand", "{out}", "--negatives", "catalog:2", "--split", "last-trip", "--out", "{elsewhere}"],
    "convert": ["convert", "{out}", "{elsewhere}/converted/trips"],
    "report": ["report", "{out}"],
    "probe": ["probe", "{out}"],
}


@pytest.fixture(scope="module")
def published(make_database, small_world_template) -> Iterator[Path]:
    """An --out with two snapshots, of a run and of an export; `expand` and `diff` can do their work on it."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        common = {"database_url": make_database(small_world_template), "out": str(out)}
        etl.run(load_settings(common, {}))
        more = {"audience": "all", "negatives": ["recommended"], "split": "last-trip", "task": ["triples", "next"]}
        etl.export(load_settings(common | more, {}))
        yield out


def newest(out: Path) -> Path:
    return out / "snapshots" / (out / "LATEST").read_text()


def look(out: Path, which: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> int:
    """Call a command as the command line does; its exit code. Whatever is raised is a fault."""
    shutil.rmtree(elsewhere / "converted", ignore_errors=True)  # which has to be a new folder
    words = [word.format(out=out, elsewhere=elsewhere) for word in COMMANDS[which]]
    capsys.readouterr()
    code = run_app(cli.app, words, {"BPR_ETL_CONFIG": ""})
    said = capsys.readouterr()
    text = said.out + said.err
    assert code in {0, 2, 3, 5}, text
    assert "Traceback" not in text
    assert [each for each in text if not each.isprintable() and each != "\n"] == [], repr(text)
    return code


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a manifest; of a list its first two."""
    yield place
    inner = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*place, key))


def changed(manifest: dict[str, Any], place: tuple[Any, ...], value: Any) -> str:
    """The manifest's JSON with another value in one place."""
    found = copy.deepcopy(manifest)
    if not place:
        found = value
    else:
        inner = found
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        if value is DROPPED:
            del inner[place[-1]]
    text = json.dumps(found)
    for name, raw in RAW.items():
        text = text.replace(json.dumps(name), raw)
    return text


def harm(path: Path, how: str, rng: random.Random) -> None:
    """Put something else in a file's place."""
    content = path.read_bytes()
    flipped = bytearray(content)
    for _ in range(4):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    raw = {
        "empty": b"",
        "random": rng.randbytes(500),
        "half of it": content[: len(content) // 2],
        "flipped bits": bytes(flipped),
    }
    instead: dict[str, Callable[[], object]] = {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "link to itself": lambda: path.symlink_to(path.name),
        "device": lambda: path.symlink_to("/dev/zero"),
        "gone": lambda: None,
    }
    path.unlink()
    if how in instead:
        instead[how]()
    elif how in raw:
        path.write_bytes(raw[how])
    else:
        pq.write_table(another(pq.read_table(pa.BufferReader(content)), how, rng), path)


def another(table: pa.Table, how: str, rng: random.Random) -> pa.Table:
    """A table that is not as published ones are, mostly in one column."""
    place = rng.randrange(table.num_columns)
    name, rows = table.column_names[place], table.num_rows
    type_ = table.schema.field(place).type
    columns = {
        "nulls": lambda: pa.nulls(rows, type_),
        "null type": lambda: pa.nulls(rows),
        "numbers": lambda: pa.array([-(2**40)] * rows),
        "nan": lambda: pa.array([float("nan")] * rows),
        "texts": lambda: pa.array(["\x1b[31m"] * rows),
        "lists": lambda: pa.array([["a"]] * rows),
        "largest": lambda: pa.array([2**31 - 1] * rows, type_ if pa.types.is_integer(type_) else pa.int64()),
    }
    if how in columns:
        return table.set_column(place, name, columns[how]())
    if how == "column dropped":
        return table.drop_columns([name])
    if how in {"column renamed", "a name with an escape"}:
        new = f"{name}_" if how == "column renamed" else f"\x1b[31m{name}"
        return table.rename_columns([new if each == name else each for each in table.column_names])
    if how == "other columns":
        return pa.table({"x": [1]})
    if how == "every row twice":
        return pa.concat_tables([table, table])
    return table.slice(0, 0) if how == "no rows" else table.take(list(reversed(range(rows))))


def relisted(snapshot: Path, path: Path) -> None:
    """Have the manifest list a changed file as it is now, as somebody who made it on purpose would."""
    manifest = json.loads((snapshot / MANIFEST).read_text())
    for entry in manifest["files"]:
        if snapshot / entry["path"] == path:
            entry |= {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    (snapshot / MANIFEST).write_text(json.dumps(manifest))


def test_what_a_manifest_says_is_checked_where_it_is_read(published):
    for snapshot in (published / "snapshots").iterdir():
        manifest = json.loads((snapshot / MANIFEST).read_text())
        assert manifest.keys() - Manifest.__annotations__.keys() == {"format"}
        assert manifest["published"].keys() <= Published.__annotations__.keys()


@pytest.fixture
def manifests(published, tmp_path) -> dict[Path, dict[str, Any]]:
    """Copies of the --out, and the manifest of the newest snapshot of each: every snapshot is the newest of one."""
    found = {}
    for snapshot in sorted((published / "snapshots").iterdir()):
        out = tmp_path / snapshot.name
        shutil.copytree(published, out)
        (out / "LATEST").write_text(snapshot.name)
        found[out] = json.loads((snapshot / MANIFEST).read_text())
    return found


def test_a_manifest_without_one_of_its_keys_is_refused_or_shown(manifests, tmp_path, capsys, effort, tally):
    without = [
        (out, changed(manifest, place, DROPPED))
        for out, manifest in manifests.items()
        for place in places(manifest)
        if place
    ]
    for out, text in random.Random(14).sample(without, effort(100, len(without))):  # noqa: S311
        for command in ("inspect", "report"):
            (newest(out) / MANIFEST).write_text(text)
            look(out, command, tmp_path / "elsewhere", capsys)
        tally("hostile manifests")


def test_a_probe_without_one_of_its_keys_is_refused_or_shown(manifests, tmp_path, capsys, effort, tally):
    out = max(manifests)
    assert look(out, "probe", tmp_path / "elsewhere", capsys) == 0
    file = newest(out) / PROBE
    found = json.loads(file.read_text())
    without = [changed(found, place, DROPPED) for place in places(found) if place]
    for text in random.Random(14).sample(without, effort(60, len(without))):  # noqa: S311
        file.write_text(text)
        look(out, "report", tmp_path / "elsewhere", capsys)
        tally("hostile manifests")


def test_no_manifest_makes_a_command_crash(manifests, tmp_path, capsys, effort, tally):
    rng = random.Random(14)  # noqa: S311
    for _ in range(effort(60, 1_500)):
        out, manifest = rng.choice(list(manifests.items()))
        text = changed(manifest, rng.choice(list(places(manifest))), rng.choice(VALUES))
        (newest(out) / MANIFEST).write_text(text)
        try:
            parse_manifest(text.encode(), "it")
            which = list(COMMANDS)
        except (
            DataError
        ):  # all commands refuse it at the same place: a quick one and one that reads the files stand for all
            which = ["list", "expand"]
        for command in which:
            look(out, command, tmp_path / "elsewhere", capsys)
            (newest(out) / MANIFEST).write_text(text)  # report and probe write it anew
        tally("hostile manifests")


def test_no_file_of_a_snapshot_makes_a_command_crash(published, tmp_path, capsys, effort, tally):
    rng = random.Random(14)  # noqa: S311
    kept = ("users.parquet", "items.parquet", "trips.parquet")
    every = sorted(path.relative_to(newest(published)).as_posix() for path in newest(published).rglob("*.parquet"))
    for _ in range(effort(15, 400)):
        out = tmp_path / "out"
        shutil.copytree(published, out)
        snapshot, name, how = newest(out), rng.choice([*every, *kept * 3]), rng.choice(FILES)
        harm(snapshot / name, how, rng)
        if how not in FILES[:4] and how != "gone" and rng.random() < 0.5:
            relisted(snapshot, snapshot / name)
        for command in COMMANDS:
            look(out, command, tmp_path / "elsewhere", capsys)
        shutil.rmtree(out)
        tally("hostile files")


@pytest.mark.parametrize(
    ("what", "kind", "says"),
    [
        ("LATEST names a folder above", DataError, r"LATEST in .* does not hold the name of a snapshot \('\.\.'\)"),
        ("LATEST is a folder", DataError, r"LATEST is not a file"),
        ("LATEST is a pipe", DataError, r"LATEST is not a file"),
        ("LATEST is a link to itself", ConnectError, r"LATEST can't be read: Too many levels of symbolic links"),
        ("snapshots is a file", ConnectError, r"snapshots takes no snapshots: Not a directory"),
        ("snapshots leads nowhere", ConnectError, r"snapshots takes no snapshots: No such file or directory"),
        (
            "snapshots is on another file system",
            ConnectError,
            r"snapshots takes no snapshots: Invalid cross-device link",
        ),
    ],
)
def test_where_publishing_cannot_work_nothing_is_written(what, kind, says, small_world, settings_for, tmp_path):
    out = tmp_path / "out"
    (out / "snapshots").mkdir(parents=True)
    latest, snapshots = out / "LATEST", out / "snapshots"
    if what == "LATEST names a folder above":
        latest.write_text("..")
    elif what == "LATEST is a folder":
        latest.mkdir()
    elif what == "LATEST is a pipe":
        os.mkfifo(latest)
    elif what == "LATEST is a link to itself":
        latest.symlink_to(latest.name)
    elif what == "snapshots is a file":
        snapshots.rmdir()
        snapshots.touch()
    else:
        snapshots.rmdir()
        snapshots.symlink_to("/nowhere" if what == "snapshots leads nowhere" else other_file_system(out))
    before = database_state(small_world)
    with pytest.raises(kind, match=says):
        etl.run(settings_for(small_world))
    assert database_state(small_world) == before
    assert sorted(path.name for path in out.iterdir() if path.name.startswith(".")) == []


def other_file_system(here: Path) -> Path:
    """A folder on another file system than a folder's."""
    there = Path("/dev/shm")  # noqa: S108 - a file system of its own wherever Linux has it
    if not there.is_dir() or there.stat().st_dev == here.stat().st_dev:
        pytest.skip("There is no second file system to be had here.")
    return Path(tempfile.mkdtemp(dir=there))


@pytest.fixture
def without_rights() -> Iterator[None]:
    """Take root's rights away for the length of a test, which else may enter and read everything."""
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(65_534)
    yield
    os.seteuid(mine)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("what", ["a file", "a folder"])
def test_what_may_not_be_read_is_no_bug_and_no_damage(published, tmp_path, capsys, request, command, what):
    out = Path(tempfile.mkdtemp(dir="/tmp")) / "out"
    try:
        shutil.copytree(published, out)
        out.parent.chmod(0o755)
        # It also imports what the command needs: the other user may not read all of the interpreter's own folder.
        assert look(out, command, tmp_path / "before", capsys) == 0
        barred = newest(out) / "users.parquet" if what == "a file" else out / "snapshots"
        barred.chmod(0)
        request.getfixturevalue("without_rights")
        # What reads no users.parquet goes on.
        codes = {0, 3} if (command, what) == ("list", "a file") else {3}
        assert look(out, command, tmp_path / "elsewhere", capsys) in codes
    finally:
        os.seteuid(os.getuid())
        shutil.rmtree(out.parent, onerror=lambda *_: None)

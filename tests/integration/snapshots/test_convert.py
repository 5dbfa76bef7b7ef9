"""`convert`: RecBole's atomic files have every row of the snapshot, as pandas reads them, which RecBole reads by."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import polars as pl
import psycopg
import pytest
from typer.testing import CliRunner

import cli
import etl
from etl.settings.sources import load_settings

NAMES = ["a\ttab", 'a "quote"', "two\nlines", "NA", " spaces ", "São Paulo, 名"]


@pytest.fixture(scope="module")
def roots(make_database, small_world_template, tmp_path_factory) -> dict[str, Path]:
    """Snapshots without a split and with two kinds, of a world with names that need quotes."""
    url = make_database(small_world_template)
    with psycopg.connect(url) as connection:
        ids = [row[0] for row in connection.execute('SELECT id FROM "ActivityNode" ORDER BY id LIMIT 6')]
        for item, name in zip(ids, NAMES, strict=True):
            connection.execute('UPDATE "ActivityNode" SET name = %s WHERE id = %s', (name, item))
    found = {}
    for split in ("none", "last-trip", "time:2025-06-01"):
        out = tmp_path_factory.mktemp("convert") / "out"
        options = {"split": split, "rows_per_file": 300, "small_catalog": "keep", "allow_empty": True}
        found[split] = Path(etl.run(load_settings({"database_url": url, "out": str(out), **options}, {})).snapshot)
    return found


def called(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(cli.app, [*map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.exit_code, done.output


def read(path: Path) -> pl.DataFrame:
    """The file as RecBole reads it: the types are in the first line, its fields behind tabs."""
    head = path.read_text(encoding="utf-8").split("\n", 1)[0].split("\t")
    types = dict(each.split(":") for each in head)
    assert set(types.values()) <= {"token", "token_seq", "float"}
    dtype = {f"{name}:{kind}": "float64" if kind == "float" else "str" for name, kind in types.items()}
    frame = pd.read_csv(path, delimiter="\t", usecols=list(dtype), dtype=dtype, encoding="utf-8")
    return pl.from_pandas(frame).rename(lambda name: name.split(":")[0])


def as_read(frame: pl.DataFrame) -> pl.DataFrame:
    """What reading makes of the rows: numbers are floats, and a name that is a word for nothing is nothing."""
    numbers = frame.with_columns(pl.selectors.numeric().cast(pl.Float64))
    return numbers.with_columns(pl.col(pl.String).replace({"NA": None, "": None}))


@pytest.mark.parametrize("split", ["none", "last-trip", "time:2025-06-01"])
def test_every_row_is_in_the_file_of_its_part(split, roots, tmp_path):
    folder = tmp_path / "new" / "trips"
    code, said = called("convert", roots[split], folder, "--to", "recbole", "--json")
    assert code == 0, said
    facts = json.loads(said)
    opened = etl.open_snapshot(roots[split])
    parts = {"none": [None], "last-trip": ["train", "valid", "test"]}.get(split, ["train", "test"])
    expected = {f"trips.{part}.inter" if part else "trips.inter": opened.interactions(part).collect() for part in parts}
    expected |= {"trips.user": opened.users, "trips.item": opened.items}
    assert facts["folder"] == str(folder)
    assert facts["rows"] == {name: rows.height for name, rows in expected.items()}
    assert sorted(path.name for path in folder.iterdir()) == sorted(expected)
    assert [path.name for path in folder.parent.iterdir()] == ["trips"]
    for name, rows in expected.items():
        found = read(folder / name)
        if name.endswith(".inter"):
            assert found.columns == ["user_id", "item_id", "timestamp", "weight", "trip_id", "day_number", "position"]
            assert rows.height > 20
        else:
            assert set(rows.columns) - set(found.columns) == {f"{name[6:]}_idx"}
        assert found.equals(as_read(rows.select(found.columns)))
    assert set(opened.items["name"]) >= set(NAMES)


def test_a_folder_that_is_there_is_left_as_it_is(roots, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert called("convert", roots["last-trip"])[0] == 0
    before = {path: path.read_bytes() for path in Path("dataset/bpr").iterdir()}
    assert len(before) == 5
    code, said = called("convert", roots["none"])
    assert (code, "is there already" in said) == (2, True)
    assert {path: path.read_bytes() for path in Path("dataset/bpr").iterdir()} == before
    assert called("convert", roots["none"], "other", "--to", "excel")[0] == 2
    assert called("convert", tmp_path / "nowhere", "other")[0] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_named(roots, tmp_path):
    tmp_path.chmod(0o500)
    assert called("convert", roots["none"], tmp_path / "x")[0] == 3


def test_below_a_file_no_folder_can_be_made(roots, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    code, said = called("convert", roots["none"], tmp_path / "file" / "x")
    assert (code, "Cannot write to" in said) == (3, True)


def harmed(root: Path, tmp_path: Path, name: str, change) -> Path:
    """A copy of a snapshot with another table in a file's place."""
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    path = next(copy.glob(name))
    change(pl.read_parquet(path, hive_partitioning=False)).write_parquet(path)
    return copy


@pytest.mark.parametrize("word", ["NA", "null", "None", ""])
def test_an_id_that_recbole_takes_for_a_missing_value_is_refused(word, roots, tmp_path):
    def change(items: pl.DataFrame) -> pl.DataFrame:
        return items.with_columns(item_id=pl.when(pl.col("item_idx") == 3).then(pl.lit(word)).otherwise("item_id"))

    copy = harmed(roots["none"], tmp_path, "items.parquet", change)
    code, said = called("convert", copy, tmp_path / "x")
    assert (code, "1 values of item_id are words" in said) == (5, True)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_what_is_damaged_or_older_is_no_bug(roots, tmp_path):
    copy = harmed(roots["none"], tmp_path, "interactions/*/*.parquet", lambda rows: rows.drop("position"))
    assert called("convert", copy, tmp_path / "x")[0] == 5
    manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"] = [each for each in manifest["files"] if not each["path"].startswith("interactions/")]
    (copy / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    code, said = called("convert", copy, tmp_path / "x")
    assert (code, "bpr-etl expand" in said) == (5, True)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_from_an_object_store_the_files_are_the_same(roots, bucket, tmp_path):
    given = {"snapshot": str(roots["none"]), "out": bucket.out, "small_catalog": "keep"}
    etl.expand(load_settings(given, bucket.environ))
    assert called("convert", bucket.out, tmp_path / "far" / "x")[0] == 0
    assert called("convert", roots["none"], tmp_path / "near" / "x")[0] == 0
    for path in (tmp_path / "near" / "x").iterdir():
        assert (tmp_path / "far" / "x" / path.name).read_bytes() == path.read_bytes()

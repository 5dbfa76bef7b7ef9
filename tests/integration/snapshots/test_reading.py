"""The reading API on real snapshots, in a folder and in an object store: the rows of the files, and as many as are listed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import psycopg
import pyarrow.parquet as pq
import pytest

import etl
from etl.errors import ConnectError, SettingsError
from etl.settings.sources import load_settings
from etl.snapshots import parquet
from tests.integration.snapshots.test_consumers import CITIES, assert_same_rows

NAMES = sorted(CITIES.values(), key=str.encode)
TABLES = ["triples", "next", "interactions", "events"]
SPLITS = ["train", "valid", "test"]
OPTIONS = {"split": "last-trip", "task": ("triples", "next"), "rows_per_file": 1_500, "small_catalog": "keep"}


@pytest.fixture(scope="module")
def folder(make_database, small_world_template, tmp_path_factory) -> Path:
    """A snapshot with every table and split, several files and row groups, and cities with strange names."""
    url = make_database(small_world_template)
    with psycopg.connect(url) as connection:
        for old, new in CITIES.items():
            connection.execute('UPDATE "Trip" SET "city" = %s WHERE "city" = %s', (new, old))
            connection.execute('UPDATE "ActivityNode" SET "city" = %s WHERE "city" = %s', (new, old))
    out = str(tmp_path_factory.mktemp("reading=1") / "[out] 100%20")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "ROW_GROUP", 400)
        return Path(etl.run(load_settings({"database_url": url, "out": out, **OPTIONS}, {})).snapshot)


@pytest.fixture(params=["folder", "s3"])
def snapshot(request, folder) -> etl.Snapshot:
    if request.param == "folder":
        return etl.open_snapshot(folder)
    bucket = request.getfixturevalue("bucket")
    given = {"snapshot": str(folder), "out": bucket.out, **OPTIONS}
    published = etl.expand(load_settings(given, bucket.environ)).snapshot
    return etl.open_snapshot(published)


def in_files(folder: Path, table: str) -> dict[tuple[str, str], pl.DataFrame]:
    """The rows of a table by split and city, read file by file from the folder."""
    found: dict[tuple[str, str], list[pl.DataFrame]] = {}
    for split, city, path in etl.open_snapshot(folder).data_files(table):
        rows = pl.DataFrame(pq.ParquetFile(path).read())
        found.setdefault((split, city), []).append(rows.with_columns(split=pl.lit(split), city=pl.lit(city)))
    return {key: pl.concat(frames) for key, frames in found.items()}


@pytest.mark.parametrize("table", TABLES)
def test_a_scan_has_the_rows_of_the_files_with_split_and_city(table, snapshot, folder):
    wanted = in_files(folder, table)
    assert {city for _, city in wanted} == {*NAMES}
    everything = snapshot.scan(table)
    assert isinstance(everything, pl.LazyFrame)
    assert everything.collect().equals(pl.concat(wanted.values()))
    published = snapshot.manifest["published"]
    counted = everything.group_by("split", "city").len().collect().rows()
    assert sorted(counted) == sorted(
        (each["split"], each["city"], each[table]) for each in published["partitions"] if each[table]
    )
    one = snapshot.scan(table, split="test", cities=["0042"]).collect()
    assert one.equals(wanted["test", "0042"])
    assert one.height > 0
    two = snapshot.scan(table, split="train", cities=NAMES[:2]).collect()
    assert two.equals(
        pl.concat([rows for (split, city), rows in wanted.items() if split == "train" and city in NAMES[:2]])
    )


def test_vocabularies_and_interactions(snapshot, folder):
    assert snapshot.users.equals(pl.read_parquet(folder / "users.parquet", glob=False, hive_partitioning=False))
    assert snapshot.items.equals(pl.read_parquet(folder / "items.parquet", glob=False, hive_partitioning=False))
    rows = snapshot.interactions("valid", ["0042"]).collect()
    assert rows.equals(snapshot.scan("interactions", "valid", ["0042"]).collect())
    assert rows.height == sum(
        each["interactions"]
        for each in snapshot.manifest["published"]["partitions"]
        if (each["split"], each["city"]) == ("valid", "0042")
    )


def test_latest_and_a_name_open_the_same_snapshot(folder, bucket):
    first = etl.expand(load_settings({"snapshot": str(folder), "out": bucket.out}, bucket.environ)).snapshot
    other = {"snapshot": str(folder), "out": bucket.out, "negatives": ("catalog:2",)}
    second = etl.expand(load_settings(other, bucket.environ)).snapshot
    assert etl.open_snapshot(bucket.out).manifest["snapshot"] == Path(second).name
    assert etl.open_snapshot(first).manifest["snapshot"] == Path(first).name
    assert (
        etl.open_snapshot(first).scan("triples").collect().height
        != etl.open_snapshot(second).scan("triples").collect().height
    )
    for given in (folder, str(folder), folder.parents[1], str(folder.parents[1])):
        assert etl.open_snapshot(given).folder == folder
    with pytest.raises(ConnectError, match="no manifest"):
        etl.open_snapshot(f"{bucket.out}/snapshots/none")
    with pytest.raises(ConnectError, match="nothing was published"):
        etl.open_snapshot(f"s3://{bucket.name}/elsewhere")
    with pytest.raises(SettingsError, match="no local files"):
        etl.open_snapshot(first).data_files("triples")


def test_what_is_not_there_is_refused_by_name(folder, tmp_path):
    snapshot = etl.open_snapshot(folder)
    with pytest.raises(SettingsError, match="no table 'trips', but events, interactions, triples, next"):
        snapshot.scan("trips")
    with pytest.raises(SettingsError, match=r"no split 'dev'\. It has test, train, valid"):
        snapshot.scan("triples", split="dev")
    with pytest.raises(SettingsError, match="no city 'Atlantis'"):
        snapshot.scan("triples", cities=["0042", "Atlantis"])
    with pytest.raises(SettingsError, match="no column 'event_id' of numbers, but user_idx"):
        snapshot.batches(columns=["event_id"])
    for plan in ({"rank": 2, "world_size": 2}, {"batch_size": 1}, {"world_size": 10**9}):
        with pytest.raises(SettingsError):
            snapshot.batches(**plan)
    with pytest.raises(SettingsError, match=r"world_size is 2, and rank is not given\. .* from 0 to 1"):
        snapshot.batches(world_size=2)
    plain = etl.open_snapshot(etl.expand(load_settings({"snapshot": str(folder), "out": str(tmp_path)}, {})).snapshot)
    assert plain.scan("triples", split="train").collect()["split"].null_count() == sum(
        plain.manifest["published"]["triples"].values()
    )
    with pytest.raises(SettingsError, match=r"no split 'test'\. It has none"):
        plain.scan("triples", split="test")
    with pytest.raises(SettingsError, match="no table 'next'"):
        plain.scan("next")


def test_a_city_without_rows_in_a_split_gives_the_columns(folder, tmp_path):
    given = {"snapshot": str(folder), "out": str(tmp_path), "split": "time:2099-01-01"}
    snapshot = etl.open_snapshot(etl.expand(load_settings(given, {})).snapshot)
    there = snapshot.scan("triples", split="train")
    for city in NAMES:
        none = snapshot.scan("triples", split="test", cities=[city]).collect()
        assert (none.height, none.schema) == (0, there.collect_schema())
    assert list(snapshot.batches(split="test")) == []


def numbered(snapshot: etl.Snapshot, table: str, split: str) -> pl.DataFrame:
    """The rows in numbers, joined with the vocabularies."""
    rows = snapshot.scan(table, split).collect()
    for text, index in (
        ("user_id", "user_idx"),
        ("prev_item", "prev_idx"),
        ("pos_item", "pos_idx"),
        ("neg_item", "neg_idx"),
    ):
        if text in rows.columns and index not in rows.columns:
            numbers = snapshot.users if text == "user_id" else snapshot.items
            rows = rows.join(numbers.select(pl.nth(0).alias(text), pl.nth(1).cast(pl.Int64).alias(index)), on=text)
    return rows.select(pl.exclude("split", "city")).select(pl.selectors.numeric() | pl.selectors.boolean())


def as_frame(batches: list[dict[str, np.ndarray]]) -> pl.DataFrame:
    return pl.concat([pl.DataFrame(batch) for batch in batches]).fill_nan(None)


@pytest.mark.parametrize("table", ["triples", "next", "interactions"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_out_every_row_in_the_same_number_of_batches(table, world_size, snapshot, monkeypatch):
    monkeypatch.setattr("etl.snapshots.reading.batches.ROW_GROUP", 700)  # chunks that are not the files' row groups
    ranks = [
        snapshot.batches(table, batch_size=97, rank=rank, world_size=world_size, buffer_rows=1_000)
        for rank in range(world_size)
    ]
    made = [list(each) for each in ranks]
    assert {len(each) for each in made} == {len(ranks[0])}
    sizes = Counter(len(next(iter(batch.values()))) for each in made for batch in each)
    assert max(sizes) <= 97
    assert max(sizes) - min(sizes) <= 1
    found = as_frame([batch for each in made for batch in each])
    wanted = numbered(snapshot, table, "train")
    assert {*found.columns} == {*wanted.columns}
    assert_same_rows(found, wanted)
    assert found.height > 500


def test_order_depends_on_seed_and_epoch_alone(folder):
    snapshot = etl.open_snapshot(folder)

    def epoch(number: int, **plan: int) -> pl.DataFrame:
        batches = snapshot.batches(rank=1, world_size=2, **plan)
        batches.set_epoch(number)
        return as_frame(list(batches))

    assert epoch(0).equals(epoch(0))
    assert not epoch(0).equals(epoch(1))
    assert not epoch(0).equals(epoch(0, seed=1))
    in_order = as_frame(list(snapshot.batches("next", "valid", columns=["timestamp", "pos_km"], shuffle=False)))
    assert in_order.equals(snapshot.scan("next", "valid").select("timestamp", "pos_km").collect())
    # In the files one positive fills row after row.
    assert (epoch(0)["pos_idx"] == epoch(0)["pos_idx"].shift(1)).mean() < 0.2


SCRIPT = """
import sys

import polars as pl
import torch
from torch.utils.data import DataLoader

import etl

if __name__ == "__main__":
    snapshot = etl.open_snapshot(sys.argv[1])
    for rank in range(3):
        batches = snapshot.torch("triples", "train", batch_size=128, rank=rank, world_size=3, columns=["user_idx", "pos_idx", "neg_idx", "weight"])
        loader = DataLoader(batches, batch_size=None, num_workers=2, multiprocessing_context="spawn", persistent_workers=True, timeout=120)
        for epoch in range(2):
            batches.set_epoch(epoch)
            made = list(loader)
            assert len(made) == len(loader) == len(batches), (len(made), len(loader))
            assert {name: value.dtype for name, value in made[0].items()} == {
                "user_idx": torch.int64, "pos_idx": torch.int64, "neg_idx": torch.int64, "weight": torch.float32
            }
            rows = pl.concat([pl.DataFrame({name: value.numpy() for name, value in batch.items()}) for batch in made])
            rows.write_parquet(f"{sys.argv[2]}/{epoch}-{rank}-{len(made)}.parquet")
"""


def test_torch_has_the_same_batches_on_every_rank_and_its_workers_share_them(snapshot, tmp_path):
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed: `make consumers` adds it")
    script = tmp_path / "read.py"
    script.write_text(SCRIPT, encoding="utf-8")
    found = tmp_path / "found"
    found.mkdir()
    given = [snapshot.url if snapshot.remote else snapshot.folder, found]
    done = subprocess.run(
        [sys.executable, script, *given], env=os.environ, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "UserWarning" not in done.stderr
    epochs = [[pl.read_parquet(path) for path in sorted(found.glob(f"{number}-*"))] for number in range(2)]
    assert len({path.stem.rpartition("-")[2] for path in found.iterdir()}) == 1
    wanted = numbered(snapshot, "triples", "train").select("user_idx", "pos_idx", "neg_idx", "weight")
    for frames in epochs:
        assert len(frames) == 3
        assert_same_rows(pl.concat(frames), wanted)
    assert not epochs[0][0].equals(epochs[1][0])


def test_without_torch_numpy_is_enough(folder):
    hidden = "import sys; sys.modules['torch'] = None; import etl; s = etl.open_snapshot(sys.argv[1]); print(len(list(s.batches())))\n"
    hidden += "try:\n    s.torch()\nexcept etl.EtlError as error:\n    print(error)"
    done = subprocess.run(
        [sys.executable, "-c", hidden, folder], capture_output=True, text=True, timeout=120, check=True
    )
    count, message = done.stdout.splitlines()
    assert int(count) > 0
    assert "needs PyTorch" in message


def test_the_page_s_example_reads_it(snapshot):
    page = (Path(__file__).parents[3] / "docs" / "api.md").read_text(encoding="utf-8")
    code = page.split("## Reading snapshots")[1].split("```python\n")[1].split("```")[0]
    assert code.count("s3://bucket/nightly") == code.count('["Rome", "São Paulo"]') == 1
    where = snapshot.url if snapshot.remote else snapshot.folder
    seen: list[int] = []
    code = code.replace("s3://bucket/nightly", str(where)).replace('["Rome", "São Paulo"]', str(NAMES[:2]))
    names = {"bpr_etl": etl, "step": lambda user, *_: seen.append(len(user))}
    exec(compile(code, "docs/api.md", "exec"), names)  # noqa: S102 - it is our page
    assert sum(seen) == snapshot.scan("triples", "train").collect().height
    assert 0 < names["train"].collect().height < sum(seen)
    assert names["history"].height == snapshot.scan("interactions", "train").collect().height

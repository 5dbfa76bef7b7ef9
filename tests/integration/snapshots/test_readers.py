"""What is published reads back the same with pyarrow, DuckDB and pandas, and is what the contract says."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import duckdb
import pandas as pd
import polars as pl
import psycopg
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import etl

TRIPLES = {
    "user_id": pa.string(),
    "pos_item": pa.string(),
    "neg_item": pa.string(),
    "timestamp": pa.int64(),
    "event_id": pa.string(),
    "trip_id": pa.string(),
    "day_number": pa.int32(),
    "neg_source": pa.string(),
    "pos_in_candidates": pa.bool_(),
    "weight": pa.float32(),
}


@pytest.fixture(scope="module")
def snapshot(make_database, small_world_template, tmp_path_factory) -> Path:
    url = make_database(small_world_template)
    out = tmp_path_factory.mktemp("readers") / "out"
    return Path(etl.run(etl.Settings(database_url=url, out=str(out), ids="both", rows_per_file=5_000)).snapshot)


@pytest.fixture(scope="module")
def manifest(snapshot):
    return json.loads((snapshot / "manifest.json").read_text())


def test_every_file_has_the_contract_s_columns_and_types(snapshot):
    files = sorted((snapshot / "triples").rglob("*.parquet"))
    assert len(files) > 4
    for path in files:
        schema = pq.read_schema(path)
        both = {"user_idx": pa.uint32(), "pos_idx": pa.uint32(), "neg_idx": pa.uint32()}
        assert dict(zip(schema.names, schema.types, strict=True)) == TRIPLES | both
        assert schema.names[:4] == ["user_id", "pos_item", "neg_item", "timestamp"]
        footer = pq.read_metadata(path).row_group(0)
        assert any("DICTIONARY" in encoding for encoding in footer.column(0).encodings)


def test_pyarrow_duckdb_and_pandas_count_the_manifest_s_rows(snapshot, manifest):
    listed = Counter()
    for entry in manifest["files"]:
        if entry["path"].startswith("triples/"):
            listed[manifest["cities"][entry["path"].split("/")[1]]] += entry["rows"]
    assert dict(listed) == manifest["published"]["triples"]

    arrow = ds.dataset(
        snapshot / "triples", partitioning=ds.partitioning(pa.schema([("city", pa.string())]), flavor="hive")
    )
    assert Counter(arrow.to_table(columns=["city"])["city"].to_pylist()) == listed

    duck = duckdb.sql(
        f"SELECT city, count(*) FROM read_parquet('{snapshot}/triples/**/*.parquet', hive_partitioning=true, "
        "hive_types_autocast=false) GROUP BY city"
    ).fetchall()
    assert {city.replace("%20", " "): rows for city, rows in duck} == listed

    pandas = pd.concat(pd.read_parquet(path) for path in sorted((snapshot / "triples").rglob("*.parquet")))
    assert len(pandas) == sum(listed.values())
    assert pandas["weight"].eq(1.0).all()


RAY = """
import json
import sys

import ray

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
partitioning = ray.data.datasource.partitioning.Partitioning("hive", field_types={"city": str})
rows = ray.data.read_parquet(sys.argv[1], partitioning=partitioning, columns=["weight", "city"])
print(json.dumps({each["city"]: each["count()"] for each in rows.groupby("city").count().take_all()}))
"""


def test_ray_data_counts_the_manifest_s_rows(snapshot, manifest):
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: `make ray-extra` adds it")
    done = subprocess.run(
        [sys.executable, "-c", RAY, snapshot / "triples"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    counted = {unquote(city): rows for city, rows in json.loads(done.stdout.splitlines()[-1]).items()}
    assert counted == manifest["published"]["triples"]


def test_readers_agree_on_every_value(snapshot):
    path = min((snapshot / "triples").rglob("*.parquet"))
    expected = pl.read_parquet(path, hive_partitioning=False)
    assert pl.from_arrow(pq.ParquetFile(path).read()).equals(expected)
    assert duckdb.sql(f"FROM read_parquet('{path}', hive_partitioning=false)").pl().equals(expected)
    assert pl.from_pandas(pd.read_parquet(path)).cast(expected.schema).equals(expected)


def test_triples_are_the_events_explained(snapshot):
    """Plain Python over `events/`: positives x (candidates - positives), in that order."""
    for folder in sorted((snapshot / "triples").iterdir()):
        found = pl.concat(
            [pl.read_parquet(p, hive_partitioning=False) for p in sorted(folder.glob("*.parquet"))]
        ).select(
            "event_id", "user_id", "trip_id", "day_number", "timestamp", "pos_item", "neg_item", "pos_in_candidates"
        )
        events = pl.concat(
            [pl.read_parquet(p, hive_partitioning=False) for p in sorted((snapshot / "events" / folder.name).glob("*"))]
        )
        expected = [
            (e["event_id"], e["user_id"], e["trip_id"], e["day_number"], e["timestamp"], i, j, i in e["candidate_ids"])
            for e in events.iter_rows(named=True)
            for i in e["selected_ids"]
            for j in e["candidate_ids"]
            if j not in e["selected_ids"]
        ]
        assert found.rows() == expected


def test_parts_are_full_but_for_the_last(snapshot):
    for folder in (snapshot / "triples").iterdir():
        rows = [pq.read_metadata(path).num_rows for path in sorted(folder.glob("*.parquet"))]
        assert rows[:-1] == [5_000] * (len(rows) - 1)
        assert 0 < rows[-1] <= 5_000


def test_indexes_point_at_the_vocabularies(snapshot):
    users = pl.read_parquet(snapshot / "users.parquet")
    items = pl.read_parquet(snapshot / "items.parquet")
    for vocabulary, name, index in ((users, "user_id", "user_idx"), (items, "item_id", "item_idx")):
        assert vocabulary[name].to_list() == sorted(vocabulary[name])
        assert vocabulary[index].to_list() == list(range(vocabulary.height))
        assert vocabulary.schema[index] == pl.UInt32
    triples = pl.read_parquet(snapshot / "triples" / "**" / "*.parquet", hive_partitioning=False)
    for text, index, vocabulary in (
        ("user_id", "user_idx", users["user_id"]),
        ("pos_item", "pos_idx", items["item_id"]),
        ("neg_item", "neg_idx", items["item_id"]),
    ):
        assert vocabulary.gather(triples[index]).equals(triples[text], check_names=False)


def test_users_have_their_dimensions(snapshot):
    users = pl.read_parquet(snapshot / "users.parquet")
    dimensions = [
        *("pace_preference", "budget_sensitivity", "cuisine_openness", "social_mode"),
        *("time_orientation", "primary_interest", "trip_count", "category_affinities"),
    ]
    assert users.columns[2:10] == dimensions
    assert users.columns[10:26] == [f"{name}_{what}" for what in ("confidence", "source") for name in dimensions]
    affinities = [name for name in users.columns if name.startswith("affinity_")]
    assert users.columns[26:] == [*affinities, "status", "n_trips", "n_events", "n_selected", "n_triples"]
    assert len(affinities) > 5
    without = users.filter(pl.col("pace_preference").is_null())
    assert 0 < without.height < users.height
    features = [*users.columns[2:26], *affinities]
    assert without.select(pl.all_horizontal(pl.col(features).is_null().all())).item()
    assert users["status"].unique().to_list() == ["present"]


def test_features_are_what_the_database_says(snapshot):
    """Numbers beside the texts: openness, the affinity of each category; confidence and source as they were written."""
    users = pl.read_parquet(snapshot / "users.parquet").drop_nulls("category_affinities")
    for row in users.head(50).iter_rows(named=True):
        affinities = json.loads(row["category_affinities"])
        columns = {name.removeprefix("affinity_"): v for name, v in row.items() if name.startswith("affinity_")}
        assert columns == {name: affinities.get(name) for name in columns}
    expected = {"onboarding": 1.0, "default": 0.0, "reconstructed": 0.95}
    for name in ("pace_preference", "category_affinities", "trip_count"):
        assert users[f"{name}_confidence"].equals(
            users[f"{name}_source"].replace_strict(expected, return_dtype=pl.Float64), check_names=False
        )


def test_index_alone_leaves_the_texts_out(make_database, small_world_template, tmp_path):
    url = make_database(small_world_template)
    settings = etl.Settings(database_url=url, out=str(tmp_path / "out"), ids="index")
    path = next((Path(etl.run(settings).snapshot) / "triples").rglob("*.parquet"))
    assert pq.read_schema(path).names == ["user_idx", "pos_idx", "neg_idx", *list(TRIPLES)[3:]]


@pytest.mark.parametrize(("small_catalog", "weight"), [("weight", 0.4), ("keep", 1.0)])
def test_small_catalogues_are_kept_when_asked_for(make_database, small_world_template, tmp_path, small_catalog, weight):
    url = make_database(small_world_template)
    settings = etl.Settings(database_url=url, out=str(tmp_path / "out"), small_catalog=small_catalog)
    snapshot = Path(etl.run(settings).snapshot)
    tokyo = pl.read_parquet(snapshot / "triples" / "city=Tokyo" / "*.parquet", hive_partitioning=False)
    assert tokyo["weight"].unique().to_list() == [pytest.approx(weight)]
    others = pl.read_parquet(snapshot / "triples" / "city=New%20York" / "*.parquet", hive_partitioning=False)
    assert others["weight"].unique().to_list() == [1.0]


def test_cities_with_any_name_survive_the_round_trip(make_database, small_world_template, tmp_path):
    """Nothing leaves the folder, no two share one, and the manifest says which folder is which city."""
    names = [
        "../../x",
        "a/b",
        "",
        "007",
        "CON",
        "x" * 300,
        "東京" * 40,
        "🗼=%2F",
        "__HIVE_DEFAULT_PARTITION__",
        ".",
        "a b&c",
    ]
    url = make_database(small_world_template)
    with psycopg.connect(url) as connection:
        trips = connection.execute('SELECT "id" FROM "Trip" ORDER BY "id"').fetchall()
        for number, (trip,) in enumerate(trips):
            connection.execute('UPDATE "Trip" SET "city" = %s WHERE "id" = %s', (names[number % len(names)], trip))
        for name in names:
            connection.execute(
                """INSERT INTO "ActivityNode" ("id", "city", "category", "status", "name", "latitude", "longitude")
                SELECT "id" || md5(%(city)s), %(city)s, "category", "status", "name", "latitude", "longitude"
                FROM "ActivityNode" WHERE "city" = 'New York'""",
                {"city": name},
            )
    out = tmp_path / "out"
    snapshot = Path(etl.run(etl.Settings(database_url=url, out=str(out))).snapshot)
    manifest = json.loads((snapshot / "manifest.json").read_text())
    assert sorted(manifest["cities"].values()) == sorted(names)
    assert sorted(manifest["published"]["triples"]) == sorted(names)
    for folder in manifest["cities"]:
        assert len(folder.encode()) <= 255
        assert (snapshot / "triples" / folder / "part-00000.parquet").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    read = ds.dataset(
        snapshot / "events", partitioning=ds.partitioning(pa.schema([("city", pa.string())]), flavor="hive")
    )
    assert read.count_rows() == sum(manifest["published"]["events"].values())

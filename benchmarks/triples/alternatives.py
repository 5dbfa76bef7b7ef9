"""Other ways from a snapshot's events to partitioned triples on disk: all ten columns, negatives `ranking`.

Each takes (snapshot, out) and writes `out/city=.../*.parquet`; the call is timed. They do less than `expand`: no copy of the
events, no vocabularies, no checksums, no manifest, no fsync, and no fixed order of rows. Cities that are too small for triples
are excluded beforehand: each variant gets the files of the other cities.
"""

from __future__ import annotations

import importlib
import io
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from etl.snapshots import parquet

THREADS = 2
TEXTS = ("user_id", "pos_item", "neg_item", "event_id", "trip_id", "neg_source")
ROW_GROUP = 131_072
_ZSTD = 1
"""What ours has too: rows of a row group, the level of compression."""

Way = Callable[[Path, Path], None]


def folders(snapshot: Path) -> list[str]:
    """The folders of the cities that have triples."""
    return sorted(each.name for each in (snapshot / "triples").iterdir())


def files(snapshot: Path) -> list[str]:
    """The events files of the cities that have triples."""
    return [str(part) for city in folders(snapshot) for part in sorted((snapshot / "events" / city).glob("*.parquet"))]


def duckdb_way(*, enums: bool, filter_first: bool, per_city: bool, ordered: bool) -> Way:
    """DuckDB with two threads.

    `enums`: ids as ENUM instead of VARCHAR, types and casts timed. `filter_first`: what is taken leaves the candidates
    before they are unnested, not after. `per_city`: one COPY per city instead of PARTITION_BY. `ordered`: the rows' order
    is kept, which is DuckDB's default.
    """

    def write(snapshot: Path, out: Path) -> None:
        with duckdb.connect() as connection:
            connection.execute(f"SET threads = {THREADS}; SET preserve_insertion_order = {ordered}")
            if enums:
                connection.execute(_types(snapshot))
            source = _events(files(snapshot), enums=enums)
            triples = (_filtered_first if filter_first else _filtered_last)(source, enums=enums)
            options = f"FORMAT parquet, COMPRESSION zstd, COMPRESSION_LEVEL {_ZSTD}"
            if not per_city:
                connection.execute(f"COPY ({triples}) TO '{out}' ({options}, PARTITION_BY (city))")
                return
            for folder in folders(snapshot):
                (out / folder).mkdir(parents=True)
                city = unquote(folder.removeprefix("city=")).replace("'", "''")
                rows = f"SELECT * EXCLUDE (city) FROM ({triples}) WHERE city = '{city}'"
                connection.execute(f"COPY ({rows}) TO '{out / folder / 'part-0.parquet'}' ({options})")

    return write


def _types(snapshot: Path) -> str:
    """Return SQL that creates an ENUM per kind of id. Events and trips stay strings, because each occurs once."""
    return (
        f"CREATE TYPE user_enum AS ENUM (SELECT user_id FROM read_parquet('{snapshot}/users.parquet'));"
        f"CREATE TYPE item_enum AS ENUM (SELECT item_id FROM read_parquet('{snapshot}/items.parquet'));"
        "CREATE TYPE source_enum AS ENUM ('ranking', 'shown', 'catalog')"
    )


def _events(parts: list[str], *, enums: bool) -> str:
    user, items = ("::user_enum", "::item_enum[]") if enums else ("", "")
    return (
        f"SELECT user_id{user} AS user_id, timestamp, event_id, trip_id, day_number, city, "
        f"candidate_ids{items} AS candidate_ids, selected_ids{items} AS selected_ids "
        f"FROM read_parquet({parts!r}, hive_partitioning = true)"
    )


def _columns(*, enums: bool) -> str:
    kind = "::source_enum" if enums else ""
    return (
        "user_id, pos AS pos_item, neg AS neg_item, timestamp, event_id, trip_id, day_number, "
        f"'ranking'{kind} AS neg_source, known AS pos_in_candidates, 1::FLOAT AS weight, city"
    )


def _filtered_last(source: str, *, enums: bool) -> str:
    return f"""
        SELECT {_columns(enums=enums)} FROM (
            SELECT *, unnest(candidate_ids) AS neg FROM (
                SELECT *, list_contains(candidate_ids, pos) AS known
                FROM (SELECT *, unnest(selected_ids) AS pos FROM ({source}))))
        WHERE NOT list_contains(selected_ids, neg)"""


def _filtered_first(source: str, *, enums: bool) -> str:
    left = "list_filter(candidate_ids, lambda item: NOT list_contains(selected_ids, item))"
    return f"""
        SELECT {_columns(enums=enums)} FROM (
            SELECT * EXCLUDE (left_over), unnest(left_over) AS neg FROM (
                SELECT * EXCLUDE (candidate_ids), list_contains(candidate_ids, pos) AS known FROM (
                    SELECT * EXCLUDE (selected_ids), unnest(selected_ids) AS pos
                    FROM (SELECT *, {left} AS left_over FROM ({source})))))"""


def pandas_way(snapshot: Path, out: Path) -> None:
    """pandas: negatives by a comprehension, then two explodes."""
    pd = importlib.import_module("pandas")  # here, since the other variants' memory should not have it

    columns = ["user_id", "timestamp", "event_id", "trip_id", "day_number", "candidate_ids", "selected_ids", "city"]
    events = pd.read_parquet(files(snapshot), columns=columns, partitioning="hive")
    both = list(zip(events.pop("candidate_ids"), events.pop("selected_ids"), strict=True))
    events["neg_item"] = [[item for item in offered if item not in set(taken)] for offered, taken in both]
    events["pos_item"] = [list(taken) for _, taken in both]
    events["pos_in_candidates"] = [[item in set(offered) for item in taken] for offered, taken in both]
    triples = events.explode(["pos_item", "pos_in_candidates"]).explode("neg_item")
    triples = triples.dropna(subset=["pos_item", "neg_item"])
    triples["neg_source"] = "ranking"
    triples["weight"] = 1.0
    triples = triples.astype({"pos_in_candidates": "bool", "weight": "float32", "day_number": "int32"})
    triples.to_parquet(out, partition_cols=["city"], compression="zstd", compression_level=_ZSTD, index=False)


def expanded(snapshot: Path) -> dict[str, pl.DataFrame]:
    """Return the snapshot's own triples by city folder, in memory, with ids as Enum: the input of the lower bounds."""
    frames = {}
    for city in folders(snapshot):
        frame = pl.read_parquet(snapshot / "triples" / city / "*.parquet", hive_partitioning=False)
        types = {name: pl.Enum(frame[name].unique(maintain_order=True)) for name in TEXTS}
        frames[city] = frame.cast(types).rechunk()  # type: ignore[arg-type]  # the stubs don't know a name to cast
    return frames


def tables(frames: Mapping[str, pl.DataFrame]) -> dict[str, list[pa.Table]]:
    """Return the expanded frames as Arrow row groups with dictionaries of their own: the input of the pyarrow lower bound."""
    return {
        city: [_table(frame.slice(start, ROW_GROUP)) for start in range(0, frame.height, ROW_GROUP)]
        for city, frame in frames.items()
    }


def _table(rows: pl.DataFrame) -> pa.Table:
    """Return one row group. A dictionary holds only the strings that occur in it, in order of appearance."""
    arrays = {name: rows[name].cast(pl.String).to_arrow(compat_level=pl.CompatLevel.oldest()) for name in TEXTS}
    texts = {name: array.cast(pa.string()).dictionary_encode() for name, array in arrays.items()}
    return pa.table({name: texts[name] if name in texts else rows[name].rechunk().to_arrow() for name in rows.columns})


def floor_polars(frames: Mapping[str, pl.DataFrame], out: Path) -> None:
    """Write the expanded frames with Polars' own writer, which uses all cores and whose bytes depend on their number."""
    for city, frame in frames.items():
        (out / city).mkdir(parents=True)
        path = out / city / "part-0.parquet"
        frame.write_parquet(path, compression="zstd", compression_level=_ZSTD, row_group_size=ROW_GROUP)


def floor_pyarrow(groups: Mapping[str, list[pa.Table]], out: Path) -> None:
    """Write the expanded row groups with pyarrow, as `expand` does: a thread per city."""

    def write(city: str) -> None:
        (out / city).mkdir(parents=True)
        options = {"compression": "zstd", "compression_level": _ZSTD, "store_schema": False}
        with pq.ParquetWriter(out / city / "part-0.parquet", groups[city][0].schema, **options) as writer:
            for table in groups[city]:
                writer.write_table(table, row_group_size=ROW_GROUP)

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(write, groups))


def writing_costs(groups: list[pa.Table]) -> dict[str, tuple[float, float]]:
    """Return what pyarrow's writer takes for a row with other options than ours: nanoseconds of one core, and bytes."""
    required = pa.schema([column.with_nullable(False) for column in groups[0].schema])
    ours = {**parquet.WRITER_OPTIONS, "use_dictionary": parquet.with_dictionary(required)}
    pages, dictionaries, summaries = {"max_rows_per_page": None}, {"use_dictionary": True}, {"write_statistics": True}
    ways: dict[str, tuple[dict[str, Any], pa.Schema]] = {
        "as ours": (ours, required),
        "columns that may be null": (ours, groups[0].schema),
        "pages of 20,000 rows, pyarrow's default": (ours | pages, required),
        "dictionaries for all columns": (ours | dictionaries, required),
        "statistics of all columns": (ours | summaries, required),
        "all of these: the floor": (ours | pages | dictionaries | summaries, groups[0].schema),
        "ours, not compressed": (ours | {"compression": "none", "compression_level": None}, required),
    }
    rows, found = sum(table.num_rows for table in groups), {}
    for name, (options, schema) in ways.items():
        tables = [pa.Table.from_batches(each.combine_chunks().to_batches()).cast(schema) for each in groups]
        seconds = []
        for _ in range(5):
            sink, start = io.BytesIO(), time.thread_time()
            with pq.ParquetWriter(sink, schema, **options) as writer:
                for table in tables:
                    writer.write_table(table, row_group_size=ROW_GROUP)
            seconds.append(time.thread_time() - start)
        found[name] = round(1e9 * statistics.median(seconds) / rows, 2), round(len(sink.getvalue()) / rows, 3)
    return found


WAYS: dict[str, Way] = {
    "DuckDB, texts, unnest then filter": duckdb_way(enums=False, filter_first=False, per_city=False, ordered=True),
    "DuckDB, texts, filter then unnest": duckdb_way(enums=False, filter_first=True, per_city=False, ordered=False),
    "DuckDB, ENUM, unnest then filter": duckdb_way(enums=True, filter_first=False, per_city=False, ordered=False),
    "DuckDB, ENUM, filter then unnest": duckdb_way(enums=True, filter_first=True, per_city=False, ordered=False),
    "DuckDB, ENUM, filter then unnest, a COPY per city": duckdb_way(
        enums=True, filter_first=True, per_city=True, ordered=False
    ),
}


def row_counts_and_checksums(parts: str) -> dict[str, list[Any]]:
    """Return rows and an order-independent checksum over the ten columns, per city, of Parquet files on disk."""
    texts = ", ".join(f"{name}::VARCHAR" for name in TEXTS)
    numbers = "timestamp::BIGINT, day_number::INTEGER, pos_in_candidates::BOOLEAN, weight::FLOAT"
    query = (
        f"SELECT city, count(*), sum(hash({texts}, {numbers}))::VARCHAR "
        f"FROM read_parquet('{parts}', hive_partitioning = true) GROUP BY city ORDER BY city"
    )
    with duckdb.connect() as connection:
        return {city: list(rest) for city, *rest in connection.execute(query).fetchall()}


def run_alternative(way: str, snapshot: str, out: str) -> dict[str, Any]:
    """Run one way in this process, for `call_in_process`. Returns its seconds, and its answer, which is not timed."""
    write = pandas_way if way == "pandas" else WAYS[way]
    start = time.perf_counter()
    write(Path(snapshot), Path(out))
    return {"seconds": time.perf_counter() - start}

"""The recipes of docs/consumers.md, run as they stand there: each reads exactly the rows that the manifest counts.

PyTorch and Hugging Face datasets are optional (`make consumers`). Their recipes run in a process of their own, as a
user's script does: workers are spawned from it, it may be killed, and no other test pays for the import. LensKit and Cornac
are run where they are installed, RecBole where BPR_ETL_TEST_RECBOLE names an interpreter that has it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import psycopg
import pyarrow.parquet as pq
import pytest

import etl
from etl.settings.sources import load_settings
from etl.snapshots import parquet

PAGE = (Path(__file__).parents[3] / "docs" / "consumers.md").read_text(encoding="utf-8")
RECIPES = {
    section.partition("\n")[0]: code[1]
    for section in PAGE.split("\n## ")[1:]
    if (code := re.search(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE))
}

FOUR = ["user_id", "pos_item", "neg_item", "timestamp"]
# A number as a name, a name with everything that is encoded, and one that is too long for a folder.
CITIES = {"New York": "0042", "Mexico City": "São Paulo / 100% a=b", "Tokyo": "Llan" * 100}
# Small parts with several row groups each: what several workers share out.
OPTIONS = {"rows_per_file": 1_500, "small_catalog": "weight"}
KINDS = {
    "plain": OPTIONS,
    "split": OPTIONS | {"split": "last-trip", "negatives": ("catalog:4",), "shuffle": True},
    "next": OPTIONS | {"split": "last-trip", "task": ("triples", "next")},
    "index": OPTIONS | {"split": "last-trip", "negatives": ("catalog:4",), "shuffle": True, "ids": "index"},
}


@pytest.fixture(scope="module")
def snapshots(make_database, small_world_template, tmp_path_factory) -> dict[str, Path]:
    url = make_database(small_world_template)
    with psycopg.connect(url) as connection:
        for old, new in CITIES.items():
            connection.execute('UPDATE "Trip" SET "city" = %s WHERE "city" = %s', (new, old))
            connection.execute('UPDATE "ActivityNode" SET "city" = %s WHERE "city" = %s', (new, old))
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "ROW_GROUP", 400)
        for kind, options in KINDS.items():
            out = tmp_path_factory.mktemp(kind) / "out"
            made[kind] = Path(etl.run(load_settings({"database_url": url, "out": str(out), **options}, {})).snapshot)
    return made


@pytest.fixture(params=["plain", "split"])
def root(request, snapshots) -> Path:
    return snapshots[request.param]


def listed(root: Path) -> dict[str | None, list[tuple[str, Path, int]]]:
    """What the manifest lists of the triples, by split: city, file and rows."""
    manifest = json.loads((root / "manifest.json").read_text())
    found: dict[str | None, list[tuple[str, Path, int]]] = {}
    for entry in manifest["files"]:
        place = entry["path"].split("/")
        if place[0] == "triples":
            split = place[1].removeprefix("split=") if len(place) == 4 else None
            found.setdefault(split, []).append((manifest["cities"][place[-2]], root / entry["path"], entry["rows"]))
    return found


def expected(root: Path, columns: list[str]) -> dict[str | None, pl.DataFrame]:
    """The rows themselves, by split, read file by file; as many as the manifest counts."""
    read = {}
    for split, parts in listed(root).items():
        frames = []
        for city, path, rows in parts:
            frame = pl.DataFrame(pq.ParquetFile(path).read()).with_columns(city=pl.lit(city))
            assert frame.height == rows
            frames.append(frame)
        read[split] = pl.concat(frames).select(columns)
    return read


def assert_same_rows(found: pl.DataFrame, wanted: pl.DataFrame) -> None:
    """The same rows, each as often, in any order."""
    assert found.height == wanted.height
    found = found.select(wanted.columns).cast(dict(wanted.schema))
    assert found.sort(pl.all()).equals(wanted.sort(pl.all()))


def run_here(recipe: str, **given: object) -> dict[str, object]:
    """Run a recipe in this process: its variables."""
    variables = dict(given)
    exec(compile(RECIPES[recipe], f"docs/consumers.md, {recipe}", "exec"), variables)  # noqa: S102 - it is our page
    return variables


def run_as_script(recipe: str, folder: Path, root: Path, split: str | None, before: str, after: str) -> None:
    """Run a recipe as a script of its own, between the test's own lines."""
    script = folder / "recipe.py"
    given = f"root, split, folder = {str(root)!r}, {split!r}, {str(folder)!r}"
    script.write_text("\n".join([given, before, RECIPES[recipe], after]), encoding="utf-8")
    offline = {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, script], env=os.environ | offline, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


def need(*modules: str) -> None:
    """Skip where an optional package is missing, without importing it."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed (`make consumers` adds PyTorch, datasets and implicit)")


def test_every_recipe_of_the_page_is_run_here():
    tested = Path(__file__).read_text(encoding="utf-8")
    assert len(RECIPES) == PAGE.count("```python") == 15
    for recipe in RECIPES:
        assert f'"{recipe}"' in tested


def test_the_snapshots_have_what_the_recipes_are_tried_on(snapshots):
    assert set(listed(snapshots["plain"])) == {None}
    assert set(listed(snapshots["split"])) == set(listed(snapshots["index"])) == {"train", "valid", "test"}
    for root in snapshots.values():
        parts = [part for found in listed(root).values() for part in found]
        assert {city for city, _, _ in parts} == set(CITIES.values())
        assert len(parts) > 5
        assert max(pq.read_metadata(path).num_row_groups for _, path, _ in parts) > 2
        weights = pl.concat(expected(root, ["weight"]).values())["weight"]
        assert weights.n_unique() == 2


def test_latest_names_the_snapshot(root):
    assert run_here("Where the snapshot is", out=str(root.parents[1]))["root"] == root


def test_numpy_learns_from_the_four_columns(root):
    for split, wanted in expected(root, FOUR).items():
        found = run_here("numpy", root=root, split=split)
        triples = pl.DataFrame(found["triples"])
        assert triples.columns == FOUR
        assert_same_rows(triples, wanted)
        users, items = (pl.Series(found[name].dictionary).cast(pl.String) for name in ("users", "items"))
        seen = pl.DataFrame(
            [users.gather(found["user"]), items.gather(found["pos"]), items.gather(found["neg"])], schema=FOUR[:3]
        )
        assert_same_rows(seen, wanted.select(FOUR[:3]))
        p, q = found["P"][found["user"]], found["Q"][found["pos"]] - found["Q"][found["neg"]]
        # A model that has learned nothing prefers the positive in half of the rows.
        assert np.mean((p * q).sum(axis=1) > 0) > 0.6


def test_polars_reads_it_all_with_split_and_city(root):
    wanted = expected(root, [*FOUR, "weight", "city"])
    found = run_here("polars", root=root)["triples"].collect()
    for split, rows in wanted.items():
        assert_same_rows(found if split is None else found.filter(split=split), rows)
    assert found.height == sum(rows.height for rows in wanted.values())


def test_pandas_reads_it_all_with_split_and_city(root):
    wanted = expected(root, [*FOUR, "weight", "city"])
    variables = run_here("pandas", root=root)
    for name in ("triples", "shuffled"):
        found = pl.from_pandas(variables[name])
        for split, rows in wanted.items():
            assert_same_rows(found if split is None else found.filter(split=split), rows)
        assert found.height == sum(rows.height for rows in wanted.values())


def test_duckdb_reads_it_all_with_split_and_city(root):
    wanted = expected(root, [*FOUR, "weight", "city"])
    variables = run_here("DuckDB", root=root)
    found = variables["database"].sql("FROM triples").pl()
    for split, rows in wanted.items():
        assert_same_rows(found if split is None else found.filter(split=split), rows)
    assert sum(count for _, _, count in variables["per_city"]) == sum(rows.height for rows in wanted.values())


def test_interactions_and_choices_are_read_whole_and_judged_by_the_untrained_rule(snapshots):
    root = snapshots["next"]
    found = run_here("Interactions and choices", root=root)
    manifest = json.loads((root / "manifest.json").read_text())["published"]
    read = found["interactions"].group_by("city", "split").len().rows()
    listed_ = [(each["city"], each["split"], each["interactions"]) for each in manifest["partitions"]]
    assert sorted(read) == sorted(each for each in listed_ if each[2])
    assert found["snapshot"].scan("next").collect().height == sum(manifest["next"].values())
    assert set(found["per_city"]["city"]) == {*manifest["next"]}
    assert found["per_city"]["right"].is_between(0, 1, closed="none").all()


TORCH_AFTER = """
import polars as pl

if __name__ == "__main__":

    def write(loader, number, name):
        loader.dataset.set_epoch(number)
        batches = [pl.DataFrame({key: value.numpy() for key, value in batch.items()}) for batch in loader]
        assert len(batches) == len(loader.dataset)
        pl.concat(batches).write_parquet(f"{folder}/{name}.parquet")

    for name, number in (("first", 0), ("second", 1), ("again", 0)):
        write(loader, number, name)  # by the recipe's own workers, which have been through its epochs already
    small = snapshot.torch("triples", split, columns=columns, batch_size=100, buffer_rows=1_000)  # filled many times
    write(DataLoader(small, batch_size=None), 0, "alone")
    for name in others:
        write(DataLoader(snapshot.torch("triples", name, columns=columns), batch_size=None), 0, name)
"""


@pytest.mark.parametrize("kind", ["plain", "split", "index"])
def test_pytorch_workers_share_out_every_row_once(kind, snapshots, tmp_path):
    need("torch")
    root = snapshots[kind]
    wanted = numbered(root)
    others = [split for split in wanted if split not in {None, "train"}]
    split = "train" if "train" in wanted else None
    run_as_script("PyTorch", tmp_path, root, split, f"others = {others}", TORCH_AFTER)
    read = {path.stem: pl.read_parquet(path) for path in tmp_path.glob("*.parquet")}
    for name, rows in read.items():
        assert_same_rows(rows, wanted[name if name in others else split])
    assert len(read) == 4 + len(others)
    assert read["again"].equals(read["first"])
    assert not read["second"].equals(read["first"])
    # In the files of `plain` one positive fills row after row.
    for name in ("first", "alone"):
        assert (read[name]["pos_idx"] == read[name]["pos_idx"].shift(1)).mean() < 0.2


def numbered(root: Path) -> dict[str | None, pl.DataFrame]:
    """The rows with the numbers of users.parquet and items.parquet, however the triples name them."""
    texts = "user_id" in pq.read_schema(next((root / "triples").rglob("*.parquet"))).names
    ids = FOUR[:3] if texts else ["user_idx", "pos_idx", "neg_idx"]
    vocabularies = [pl.read_parquet(root / f"{name}.parquet") for name in ("users", "items")]
    by_text = dict(pair for frame in vocabularies for pair in frame.select(pl.nth(0), pl.nth(1)).iter_rows())
    return {
        split: frame.select(
            *(
                (pl.col(column).replace_strict(by_text, return_dtype=pl.Int32) if texts else pl.col(column)).alias(name)
                for column, name in zip(ids, ("user_idx", "pos_idx", "neg_idx"), strict=True)
            ),
            "weight",
        )
        for split, frame in expected(root, [*ids, "weight"]).items()
    }


@pytest.mark.parametrize("line", re.findall(r"^\| [\w-]+ \| `(\w+\..*\(.*)` \|$", PAGE, re.MULTILINE))
def test_each_line_at_the_top_reads_what_is_to_be_trained_on(line, snapshots):
    root = snapshots["split"]
    read = eval(line, {"bpr_etl": etl, "pl": pl, "pd": pd, "duckdb": duckdb, "root": root})  # noqa: S307 - it is our page
    if isinstance(read, pl.LazyFrame):
        found = read.collect()
    else:
        found = pl.from_pandas(read) if isinstance(read, pd.DataFrame) else read.pl()
    assert_same_rows(found.select(FOUR), expected(root, FOUR)["train"])


def test_there_is_a_line_for_each_reader():
    assert len(re.findall(r"^\| (bpr-etl|polars|pandas|DuckDB) \| `", PAGE, re.MULTILINE)) == 4


@pytest.fixture(scope="module")
def judged(small_world_template, make_database, tmp_path_factory) -> dict[str, object]:
    """The variables of the recipe of held-out figures, on a world whose places have their own names."""
    given = {"database_url": make_database(small_world_template), "out": str(tmp_path_factory.mktemp("judged") / "out")}
    options = {"split": "last-trip", "negatives": ("recommended",), "small_catalog": "keep"}
    root = Path(etl.run(load_settings(given | options, {})).snapshot)
    return run_here("Held-out figures", root=root)


def test_held_out_figures_are_those_of_the_definition(judged):
    """AUC and NDCG@10 by loops over pairs and ranks."""
    snapshot, n_users = judged["snapshot"], judged["n_users"]
    rows = snapshot.interactions("test").collect()
    of_user: dict[int, list[tuple[float, float]]] = {}
    for (city, user), chosen in rows.group_by("city", "user_idx"):
        positives = set(chosen["item_idx"])
        own = snapshot.items.filter(city=city)["item_idx"].to_list()
        pairs = [(n_users[p], n_users[n]) for p in own if p in positives for n in own if n not in positives]
        auc = sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs)
        ranked = sorted(own, key=lambda item: (-n_users[item], item))[:10]
        gain = sum(1 / np.log2(2 + place) for place, item in enumerate(ranked) if item in positives)
        best = sum(1 / np.log2(2 + place) for place in range(min(10, len(positives))))
        of_user.setdefault(user, []).append((auc, gain / best))
    means = np.mean([np.mean(figures, axis=0) for figures in of_user.values()], axis=0)
    assert np.allclose(judged["popularity"], means)
    assert judged["history"] != judged["popularity"]


@pytest.mark.parametrize(
    ("recipe", "modules"), [("BPR with early stopping", ()), ("Interactions with implicit", ("implicit",))]
)
def test_what_is_trained_ranks_held_out_items_better_than_popularity(recipe, modules, judged, capsys, monkeypatch):
    need(*modules)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    found = run_here(recipe, **judged)
    assert found["model"][0] > judged["popularity"][0]
    assert found["model"][1] > judged["popularity"][1]
    assert "NDCG@10" in capsys.readouterr().out
    if "best_epoch" in found:
        assert 0 < found["best_epoch"] < 99
        assert found["best"] < np.log(2)


@pytest.mark.parametrize(
    ("recipe", "module"), [("Interactions with LensKit", "lenskit"), ("Interactions with Cornac", "cornac")]
)
def test_models_of_other_libraries_know_more_than_chance(recipe, module, judged, capsys, monkeypatch):
    """Of so few users no more can be asked; the page says what they are worth at the design's size."""
    need(module)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    found = run_here(recipe, **judged)
    assert found["model"][0] > 0.55
    assert found["model"] not in (judged["popularity"], judged["history"])
    assert "NDCG@10" in capsys.readouterr().out


def test_recbole_trains_on_what_convert_writes(judged, tmp_path):
    python = os.environ.get("BPR_ETL_TEST_RECBOLE")
    if not python:
        pytest.skip("BPR_ETL_TEST_RECBOLE names no interpreter that has RecBole, which needs an older numpy")
    snapshot = judged["snapshot"]
    command = [sys.executable, "-m", "etl", "convert", snapshot.folder, "dataset/bpr", "--to", "recbole"]
    at_root = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    subprocess.run(command, cwd=tmp_path, env=at_root, check=True, capture_output=True)
    after = "\nprint([train.dataset.user_num, train.dataset.item_num], [len(each.dataset) for each in (train, valid, test)])"
    done = subprocess.run(
        [python, "-c", RECIPES["RecBole"] + after],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    popularity, model, read = done.stdout.splitlines()[-3:]
    assert popularity.startswith("popularity by users: AUC 0.")
    assert float(re.search(r"NDCG@10 ([\d.]+)", model)[1]) > 0
    rows = [snapshot.interactions(part).collect() for part in ("train", "valid", "test")]
    users = pl.concat(rows)["user_id"].n_unique()
    assert read == f"{[users + 1, snapshot.items.height + 1]} {[each.height for each in rows]}"  # and one for padding


def test_the_next_item_model_is_judged_by_the_rows_of_the_held_out_part(snapshots, tmp_path):
    need("torch")
    root = snapshots["next"]
    after = "\nimport json\nfrom pathlib import Path\nPath(folder, 'found.json').write_text(json.dumps([figures, best_epoch]))"
    run_as_script("A next-item model in PyTorch", tmp_path, root, None, "", after)
    figures, best_epoch = json.loads((tmp_path / "found.json").read_text())
    opened = etl.open_snapshot(root)
    rows = opened.scan("next", "test").filter(pl.col("is_new")).collect()
    n_users = dict(opened.items.select("item_id", "n_users").iter_rows())
    rows = rows.with_columns(
        pl.col(f"{side}_item").replace_strict(n_users).log1p().alias(f"{side}_users") for side in ("pos", "neg")
    )
    popular = pl.col("pos_users") - pl.col("neg_users")
    near = (0.1 + pl.col("neg_km")).log() - (0.1 + pl.col("pos_km")).log()
    for name, difference in (("popularity by users", popular), ("users / distance", popular + near)):
        share = rows.select(0.5 + difference.sign().mean() / 2).item()
        assert abs(figures[name] - share) < 1e-3
    assert rows.height > 500
    assert figures["model"] > 0.52  # of chance it is 0.5
    assert best_epoch > 0


DATASETS_BEFORE = """
from torch.utils.data import get_worker_info

streamed = {}

def with_worker(row):
    return {"worker": get_worker_info().id}

def train_step(batch):
    rows = streamed.setdefault(epoch, {})
    for column, values in batch.items():
        rows.setdefault(column, []).extend(values.tolist() if hasattr(values, "tolist") else values)
"""
DATASETS_AFTER = """
if __name__ == "__main__":
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in triples:
        pq.write_table(triples[name].data.table, f"{folder}/mapped-{name}.parquet")
    pq.write_table(shuffled.with_format("arrow")[:], f"{folder}/shuffled-train.parquet")
    for epoch, rows in streamed.items():
        pq.write_table(pa.table(rows), f"{folder}/stream{epoch}-train.parquet")
    numbered = DataLoader(
        stream.map(with_worker), batch_size=1024, num_workers=2, multiprocessing_context="spawn", timeout=120
    )
    workers = [number for batch in numbered for number in batch["worker"].tolist()]
    Path(folder, "workers.json").write_text(json.dumps(workers))
"""


def test_datasets_reads_each_split_whole_and_as_a_stream(root, tmp_path):
    need("datasets", "torch")
    columns = [*FOUR, "weight"]
    wanted = {split or "train": rows for split, rows in expected(root, columns).items()}
    run_as_script("Hugging Face datasets", tmp_path, root, None, DATASETS_BEFORE, DATASETS_AFTER)
    read = {path.stem: pl.read_parquet(path) for path in tmp_path.glob("*.parquet")}
    assert set(read) == {f"mapped-{split}" for split in wanted} | {"shuffled-train", "stream0-train", "stream1-train"}
    for name, rows in read.items():
        assert_same_rows(rows, wanted[name.split("-")[1]])
    assert not read["stream0-train"].equals(read["stream1-train"])
    # Each worker has its share of the files, none is idle.
    workers = json.loads((tmp_path / "workers.json").read_text())
    shares = [workers.count(number) / wanted["train"].height for number in (0, 1)]
    assert sum(shares) == 1
    assert min(shares) > 0.2
    assert not read["shuffled-train"].equals(read["mapped-train"])


def expanded(snapshots: dict[str, Path], out: Path, **options: object) -> Path:
    """A snapshot of the plain one's events, with other options."""
    given = {"snapshot": str(snapshots["plain"]), "out": str(out), **options}
    return Path(etl.expand(load_settings(given, {})).snapshot)


@pytest.fixture(scope="module")
def without_rows(snapshots, tmp_path_factory) -> Path:
    """A snapshot whose cities are all too small, so that no part of its split has a triple."""
    out = tmp_path_factory.mktemp("empty") / "out"
    return expanded(snapshots, out, min_catalog=9_999, split="last-trip", allow_empty=True)


def test_where_there_are_no_triples_every_recipe_reads_no_rows(without_rows):
    counted = {split: sum(rows for *_, rows in parts) for split, parts in listed(without_rows).items()}
    assert counted == dict.fromkeys(("train", "valid", "test"), 0)
    for split in counted:
        assert run_here("numpy", root=without_rows, split=split)["triples"].num_rows == 0
    assert run_here("polars", root=without_rows)["triples"].collect().height == 0
    assert len(run_here("pandas", root=without_rows)["shuffled"]) == 0
    assert run_here("DuckDB", root=without_rows)["per_city"] == []
    plain = pl.read_parquet_schema(next((without_rows / "triples").rglob("*.parquet")))
    assert list(plain.items())[:4] == [*((name, pl.String) for name in FOUR[:3]), ("timestamp", pl.Int64)]


def test_where_there_are_no_triples_pytorch_reads_no_rows(without_rows, tmp_path):
    need("torch")
    after = "\nif __name__ == '__main__':\n    assert list(loader) == []\n"
    run_as_script("PyTorch", tmp_path, without_rows, "train", "", after)


def test_datasets_reads_the_parts_that_have_rows(snapshots, tmp_path):
    """It refuses a split without rows, wherever that comes from."""
    need("datasets", "torch")
    root = expanded(snapshots, tmp_path / "out", split="time:2099-01-01")
    counted = {split: sum(rows for *_, rows in parts) for split, parts in listed(root).items()}
    assert counted["test"] == 0
    after = f"\nif __name__ == '__main__':\n    assert {{k: len(v) for k, v in triples.items()}} == {{'train': {counted['train']}}}"
    run_as_script("Hugging Face datasets", tmp_path, root, None, DATASETS_BEFORE, after)

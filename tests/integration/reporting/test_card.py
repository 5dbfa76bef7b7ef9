"""README.md of a snapshot: its counts, its columns, its own examples, and the header that Hugging Face reads."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import polars as pl
import psycopg
import pyarrow.parquet as pq
import pytest

import etl
from etl.reporting import card
from etl.settings.sources import load_settings
from etl.snapshots import descriptions
from etl.snapshots.validation import validate_snapshot
from tests.integration.snapshots.test_consumers import CITIES, need

KINDS = {
    "plain": {},
    "split": {
        "split": "last-trip",
        "task": ("triples", "next"),
        "ids": "both",
        "history": True,
        "small_catalog": "keep",
    },
    "index": {"split": "time:2099-01-01", "task": "next", "ids": "index"},
}


@pytest.fixture(scope="module")
def snapshots(make_database, small_world_template, tmp_path_factory) -> dict[str, Path]:
    url = make_database(small_world_template)
    with psycopg.connect(url) as connection:
        for old, new in CITIES.items():
            connection.execute('UPDATE "Trip" SET "city" = %s WHERE "city" = %s', (new, old))
            connection.execute('UPDATE "ActivityNode" SET "city" = %s WHERE "city" = %s', (new, old))
    made = {}
    for kind, options in KINDS.items():
        given = {"database_url": url, "out": str(tmp_path_factory.mktemp(kind)), "rows_per_file": 2_000, **options}
        made[kind] = Path(etl.run(load_settings(given, {})).snapshot)
    return made


@pytest.fixture(params=KINDS)
def folder(request, snapshots) -> Path:
    return snapshots[request.param]


def counted(folder: Path) -> dict[str, dict[str, int]]:
    """Rows on disk by table and part, read from the footers."""
    found: dict[str, dict[str, int]] = {}
    for path in folder.rglob("*.parquet"):
        place = path.relative_to(folder).parts
        part = place[1].removeprefix("split=") if place[1:] and place[1].startswith("split=") else "all rows"
        parts = found.setdefault(place[0].removesuffix(".parquet"), {})
        parts[part] = parts.get(part, 0) + pq.read_metadata(path).num_rows
    return found


def test_the_card_counts_the_rows_and_describes_every_column(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| (train|valid|test|all rows) \| ([\d,]+) \|$", text, re.MULTILINE)
    assert {(table, part, int(rows.replace(",", ""))) for table, part, rows in rows} == {
        (table, part, rows) for table, parts in counted(folder).items() for part, rows in parts.items()
    }
    for table in counted(folder):
        section = text.split(f"\n### {table}\n")[1].split("\n### ")[0]
        path = next(
            each for each in sorted(folder.rglob("*.parquet")) if each.relative_to(folder).parts[0].startswith(table)
        )
        assert re.findall(r"^\| `(\w+)` \| \S", section, re.MULTILINE) == pq.read_schema(path).names
    settings = json.loads(text.split("```json\n")[1].split("```")[0])
    assert settings == json.loads((folder / "manifest.json").read_text())["settings"]


def test_only_persona_features_are_described_by_their_name_alone(folder):
    """A new column of another table needs its own text."""
    for path in folder.rglob("*.parquet"):
        if path.name != "users.parquet":
            assert set(pq.read_schema(path).names) <= descriptions.COLUMNS.keys()


def test_every_parquet_file_describes_its_table_and_columns_as_the_card_does(folder):
    card_text = (folder / "README.md").read_text(encoding="utf-8")
    for path in folder.rglob("*.parquet"):
        table = path.relative_to(folder).parts[0].removesuffix(".parquet")
        schema, section = pq.read_schema(path), card_text.split(f"\n### {table}\n")[1].split("\n### ")[0]
        texts = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| (.+) \|$", section, re.MULTILINE))
        assert {field.name: field.metadata[b"description"].decode() for field in schema} == texts
        assert not [field for field in schema if "dictionary" in str(field.type)]
        query = f"SELECT decode(key), decode(value) FROM parquet_kv_metadata('{path}')"
        found = dict(duckdb.sql(query).fetchall())
        assert found["description"] == schema.metadata[b"description"].decode() == section.strip().splitlines()[0]
        assert json.loads(found["columns"]) == texts


def test_the_card_is_a_listed_file_that_does_not_change_the_content_hash(folder, tmp_path):
    assert [finding for finding in validate_snapshot(folder) if finding.broken] == []
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [each["rows"] for each in manifest["files"] if each["path"] == "README.md"] == [0]
    given = {
        name: manifest["settings"][name]
        for name in ("split", "task", "ids", "history", "small_catalog", "rows_per_file")
    }
    settings = load_settings({"snapshot": str(folder), "out": str(tmp_path), **given, "task": tuple(given["task"])}, {})
    again = json.loads((Path(etl.expand(settings).snapshot) / "manifest.json").read_text())
    assert again["content_sha256"] == manifest["content_sha256"]
    assert card.build_card(manifest, folder) == (folder / "README.md").read_text(encoding="utf-8")
    (folder / "README.md").write_text("edited", encoding="utf-8")
    try:
        assert any(finding.broken for finding in validate_snapshot(folder))
    finally:
        (folder / "README.md").write_text(card.build_card(manifest, folder), encoding="utf-8")


def test_the_card_s_own_lines_read_the_table(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    codes = [each.split("```")[0] for each in text.split("```python\n")[1:]]
    assert len(codes) == 5
    main = "next" if "\n### triples\n" not in text else "triples"
    whole = sum(counted(folder)[main].values())
    for code, wanted in zip(codes[:4], (None, whole, None, whole), strict=True):
        names: dict = {"path": str(folder)}
        exec(compile(code, "README.md", "exec"), names)  # noqa: S102 - it is our card
        read = names.get("rows", names.get("items"))
        assert len(read) > 0
        if wanted is not None:
            assert len(read) == wanted
            assert "0042" in read["city"].to_list()


def test_croissant_describes_the_files_and_their_columns(folder):
    found = json.loads((folder / "croissant.json").read_text(encoding="utf-8"))
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {each["name"] for each in found["recordSet"]} == counted(folder).keys()
    files = {each["@id"]: each.get("includes", each.get("contentUrl")) for each in found["distribution"]}
    for table in found["recordSet"]:
        source = table["field"][0]["source"]
        pattern = files[source.get("fileSet", source.get("fileObject"))["@id"]]
        schema = pq.read_schema(next(folder.glob(pattern)))
        assert [(each["name"], each["description"]) for each in table["field"]] == [
            (field.name, field.metadata[b"description"].decode()) for field in schema
        ]
        assert [each["name"] for each in table["field"] if each.get("repeated")] == [
            field.name for field in schema if "list" in str(field.type)
        ]
    hashes = {each["path"]: each["sha256"] for each in manifest["files"]}
    assert {each["contentUrl"]: each["sha256"] for each in found["distribution"] if "sha256" in each} == {
        f"{table}.parquet": hashes[f"{table}.parquet"] for table in ("users", "items", "trips")
    }
    assert "croissant.json" in hashes
    assert card.citation(manifest) in (folder / "README.md").read_text(encoding="utf-8")


def test_mlcroissant_finds_no_error_and_reads_every_row(folder):
    mlcroissant = pytest.importorskip("mlcroissant", reason="mlcroissant is not installed: `pip install mlcroissant`")
    dataset = mlcroissant.Dataset(jsonld=folder / "croissant.json")
    issues = dataset.metadata.ctx.issues
    assert not issues.errors
    assert all("license" in each for each in issues.warnings)  # the owner of the data has to state it
    for table, parts in counted(folder).items():
        assert sum(1 for _ in dataset.records(table)) == sum(parts.values())


def test_a_card_that_cannot_be_made_is_a_warning(small_world, settings_for, monkeypatch):
    def broken(*_):
        raise ValueError

    monkeypatch.setattr("etl.pipeline.publication.build_card", broken)
    result = etl.run(settings_for(small_world))
    assert [each for each in result.warnings if each.startswith("README.md could not be made (ValueError")]
    assert not (Path(result.snapshot) / "README.md").exists()
    assert (Path(result.snapshot) / "report.html").exists()


HUGGING_FACE = """
import json
import sys

from datasets import get_dataset_config_names, load_dataset

path = sys.argv[1]
configs = get_dataset_config_names(path)
found = {name: {part: len(rows) for part, rows in load_dataset(path, name).items()} for name in configs}
print("FOUND" + json.dumps([found, {part: len(rows) for part, rows in load_dataset(path).items()}]))
"""


def test_hugging_face_finds_every_table_with_its_splits(folder, tmp_path):
    need("datasets")
    environ = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", HUGGING_FACE, folder],
        env=environ,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, default = json.loads(done.stdout.split("FOUND")[1])
    wanted = {
        table: {part.replace("all rows", "train"): rows for part, rows in parts.items() if rows}
        for table, parts in counted(folder).items()
    }
    assert found == wanted
    assert default == wanted.get("triples", wanted.get("next"))
    assert pl.read_parquet(folder / "users.parquet").height == found["users"]["train"]

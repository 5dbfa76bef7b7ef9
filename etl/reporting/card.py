"""A snapshot's dataset card: README.md for people and for Hugging Face `datasets`, croissant.json for other programs.

Both depend on the manifest and the columns of the files alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from etl.reporting.history import run_metrics
from etl.reporting.page import load_template
from etl.snapshots.descriptions import TABLES


def build_card(manifest: Mapping[str, Any], folder: Path) -> str:
    """Build README.md of a staged snapshot from its manifest and the footers of one file per table in `folder`."""
    counts = _counts(manifest)
    columns = {
        table: [(field.name, _type(field), _description(field)) for field in schema]
        for table, schema in _schemas(manifest, counts, folder)
    }
    card: str = load_template("card.md").render(
        manifest=manifest,
        what=_WHAT.format(**manifest["tool"]),
        tables=counts,
        main=next(iter(counts)),
        files={each["path"] for each in manifest["files"]},
        cities=run_metrics(manifest)["cities"],
        settings=json.dumps(manifest["settings"], indent=2, ensure_ascii=False, sort_keys=True),
        citation=citation(manifest),
        texts=TABLES,
        columns=columns,
    )
    return card


def build_croissant(manifest: Mapping[str, Any], folder: Path) -> str:
    """Build croissant.json of a staged snapshot, as `build_card`: its files, and the columns of each table."""
    hashes = {each["path"]: each["sha256"] for each in manifest["files"]}
    files, tables = [], []
    for table, schema in _schemas(manifest, _counts(manifest), folder):
        file = {"@id": f"{table}-files", "encodingFormat": "application/x-parquet"}
        path = f"{table}.parquet"
        if path in hashes:
            file |= {"@type": "cr:FileObject", "name": path, "contentUrl": path, "sha256": hashes[path]}
            source = {"fileObject": {"@id": file["@id"]}}
        else:
            file |= {"@type": "cr:FileSet", "name": table, "includes": f"{table}/**/*.parquet"}
            source = {"fileSet": {"@id": file["@id"]}}
        files.append(file)
        columns = [_croissant_field(table, source, field) for field in schema]
        tables.append(
            {"@type": "cr:RecordSet", "@id": table, "name": table, "description": TABLES[table], "field": columns}
        )
    text = {
        "@context": _CROISSANT_CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": manifest["snapshot"],
        "description": f"{_WHAT.format(**manifest['tool'])} README.md describes it.",
        "datePublished": manifest["started_at"][:10],
        "version": "1.0.0",  # a snapshot never changes
        "citeAs": citation(manifest),
        "distribution": files,
        "recordSet": tables,
    }
    return json.dumps(text, indent=1, ensure_ascii=False) + "\n"


def _description(field: pa.Field) -> str:
    text: bytes = field.metadata[b"description"]
    return text.decode()


def _croissant_field(table: str, source: Mapping[str, Any], field: pa.Field) -> dict[str, Any]:
    of_list = pa.types.is_list(field.type)
    kind = field.type.value_type if of_list else field.type
    return {
        "@type": "cr:Field",
        "@id": f"{table}/{field.name}",
        "name": field.name,
        "description": _description(field),
        "dataType": next(name for name, fits in _CROISSANT_TYPES.items() if fits(kind)),
        **({"repeated": True} if of_list else {}),
        "source": {**source, "extract": {"column": field.name}},
    }


_CROISSANT_TYPES = {
    "sc:Text": pa.types.is_string,
    "sc:Integer": pa.types.is_integer,
    "sc:Float": pa.types.is_floating,
    "sc:Boolean": pa.types.is_boolean,
}
_CROISSANT_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "citeAs": "cr:citeAs",
    "conformsTo": "dct:conformsTo",
    "column": "cr:column",
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "includes": "cr:includes",
    "recordSet": "cr:recordSet",
    "repeated": "cr:repeated",
    "source": "cr:source",
}
_WHAT = (
    "Training data for ranking places by preference (Bayesian Personalized Ranking), made from a trip planner's database by "
    "{name} {version}."
)


def citation(manifest: Mapping[str, Any]) -> str:
    """How to cite a snapshot: its content hash tells it apart from all others."""
    tool, year = manifest["tool"], manifest["started_at"][:4]
    return f"Snapshot {manifest['snapshot']} ({year}), content {manifest['content_sha256']}, {tool['name']} {tool['version']}."


def _schemas(manifest: Mapping[str, Any], tables: Iterable[str], folder: Path) -> Iterator[tuple[str, pa.Schema]]:
    for table in tables:
        path = next(folder / each["path"] for each in manifest["files"] if _table(each["path"]) == table)
        yield table, pq.read_schema(path.absolute())


def _table(path: str) -> str:
    return path.split("/", 1)[0].removesuffix(".parquet")


def _type(field: Any) -> str:
    return str(field.type).replace("<element: ", " of ").replace(">", "")


def _counts(manifest: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """The rows of each table by part of the split; without a split, and for whole files, under an empty name."""
    found: dict[str, dict[str, int]] = {}
    for entry in manifest["files"]:
        table, *folders = entry["path"].split("/")
        if not entry["path"].endswith(".parquet"):
            continue
        part = folders[0].removeprefix("split=") if folders and folders[0].startswith("split=") else ""
        parts = found.setdefault(table.removesuffix(".parquet"), {})
        parts[part] = parts.get(part, 0) + entry["rows"]
    return {table: found[table] for table in TABLES if table in found}

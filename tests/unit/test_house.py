"""The house's rules, parsed from the code: who may import whom, and nothing of this workplace in the wheel."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Data flows one way: a room imports only rooms before it. ARCHITECTURE.md has the same table, for people.
MAY_IMPORT = {
    "__init__": set(),
    "errors": set(),
    "resources": set(),
    "stable": set(),
    "__main__": {"resources"},
    "address": {"errors"},
    "choices": {"errors"},
    "config": {"errors", "address", "choices"},
    "contracts": {"errors"},
    "prisma": {"errors", "resources"},
    "schema": {"errors", "prisma"},
    "stopping": {"errors"},
    "limits": {"choices", "errors"},
    "privileges": {"errors", "prisma"},
    "scope": {"config", "database", "journal", "limits", "privileges", "queries", "schema"},
    "ledger": {"database", "errors", "prisma", "queries"},
    "database": {"errors", "address", "prisma", "stopping"},
    "queries": {"prisma"},
    "affinity": {"resources"},
    "buckets": {"stable"},
    "counts": set(),
    "lists": set(),
    "personas": {"contracts", "affinity", "counts", "stable"},
    "candidates": {"contracts", "draws", "lists", "stable"},
    "rankings": {"candidates", "contracts", "counts", "stable"},
    "compact": {"buckets", "contracts", "lists", "parquet", "rankings"},
    "splits": {"choices"},
    "draws": {"stable"},
    "triples": {"choices", "draws", "parquet", "stable"},
    "training": {"choices", "compact", "draws", "splits", "triples"},
    "sign": {"draws"},
    "bpr": set(),
    "metrics": set(),
    "event_files": {"buckets", "compact", "errors", "lists", "stable"},
    "snapshot": {"__init__", "buckets", "compact", "errors", "event_files", "parquet"},
    "heldout": {"compact", "draws", "metrics"},
    "question": {"columns", "compact", "draws", "heldout", "snapshot", "training"},
    "probe": {"bpr", "heldout", "journal", "metrics", "question"},
    "columns": {"compact", "parquet", "triples"},
    "shuffle": {"columns", "triples"},
    "stage": {
        *(
            "buckets",
            "choices",
            "columns",
            "compact",
            "draws",
            "errors",
            "journal",
            "parquet",
            "shuffle",
            "sign",
            "snapshot",
            "training",
        ),
        "triples",
    },
    "extract": {"buckets", "contracts", "database", "queries"},
    "load": {"contracts", "database", "errors", "ledger", "prisma", "queries", "rankings", "stable", "synthetic"},
    "parquet": {"errors"},
    "publish": {"errors", "parquet", "snapshot", "stage", "stopping"},
    "laws": {"candidates", "contracts", "load", "prisma", "queries", "rankings"},
    "validate": {"affinity", "database", "laws", "parquet", "queries", "snapshot"},
    "summary": {"errors", "journal"},
    "embedded": {"errors"},
    "synthetic": {"errors", "resources"},
    "journal": {"__init__", "config", "stopping"},
    "release": {
        *(
            "affinity",
            "compact",
            "config",
            "errors",
            "journal",
            "probe",
            "publish",
            "question",
            "sign",
            "snapshot",
            "stopping",
        ),
        *("stage", "training"),
    },
    "pipeline": {
        *(
            "affinity",
            "buckets",
            "compact",
            "config",
            "contracts",
            "database",
            "extract",
            "journal",
            "load",
            "personas",
        ),
        *("ledger", "limits", "prisma", "probe", "publish", "queries", "rankings", "release", "schema", "scope"),
        *("snapshot", "stopping", "synthetic", "validate"),
    },
    "options": {"config"},
    "terminal": {"address", "config", "errors", "stopping"},
    "answers": {
        *("config", "demo", "embedded", "errors", "pipeline", "prisma", "privileges", "stopping", "summary"),
        *("terminal", "validate"),
    },
    "demo": {"address", "config", "database", "embedded", "pipeline", "prisma", "stopping"},
}
# The synthetic world is one room with several files.
FAMILIES = {
    "synthetic_draws": "synthetic",
    "synthetic_real": "synthetic",
    "synthetic_slots": "synthetic",
    "synthetic_tables": "synthetic",
}

MODULES = sorted(path.stem for path in (ROOT / "etl").glob("*.py"))


def imported(module: str) -> set[str]:
    tree = ast.parse((ROOT / "etl" / f"{module}.py").read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "etl":
            found |= {
                alias.name if (ROOT / "etl" / f"{alias.name}.py").exists() else "__init__" for alias in node.names
            }
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("etl."):
            found.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("etl.")}
    return found


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_what_it_may(module):
    room = FAMILIES.get(module, module)
    rooms = {FAMILIES.get(name, name) for name in imported(module)} - {room}
    assert rooms <= MAY_IMPORT[room]


@pytest.mark.parametrize("module", MODULES)
def test_the_environment_and_the_clock_enter_at_the_top(module):
    """`config` is given the environment, `pipeline` the clock; nobody else looks."""
    source = (ROOT / "etl" / f"{module}.py").read_text()
    if module != "embedded":
        assert "os.environ" not in source
        assert "getenv" not in source
    if module != "pipeline":
        assert "datetime.now" not in source

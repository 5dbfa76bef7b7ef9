"""The house's rules, parsed from the code: who may import whom, and nothing of this workplace in the wheel."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Data flows one way: a room imports only rooms before it. ARCHITECTURE.md has the same table, for people.
MAY_IMPORT = {
    "__init__": {"config", "errors", "journal", "pipeline", "snapshot"},  # named there, imported when asked for
    "errors": set(),
    "manifest": {"errors"},
    "resources": set(),
    "stable": set(),
    "__main__": {"resources"},
    "address": {"errors"},
    "choices": {"errors"},
    "parsers": {"choices", "errors"},
    "files": set(),
    "config": {"errors", "address", "choices", "files", "parsers"},
    "contracts": {"errors"},
    "prisma": {"errors", "resources"},
    "schema": {"errors", "prisma"},
    "stopping": {"errors"},
    "notices": set(),
    "nights": set(),
    "limits": {"choices", "errors", "losses", "nights"},
    "privileges": {"errors", "prisma"},
    "scope": {"config", "database", "errors", "journal", "limits", "privileges", "queries", "schema"},
    "ledger": {"choices", "database", "errors", "prisma", "queries"},
    "database": {"errors", "address", "prisma", "stopping"},
    "queries": {"prisma"},
    "affinity": {"resources"},
    "buckets": {"stable"},
    "counts": set(),
    "lists": set(),
    "personas": {"contracts", "affinity", "counts", "stable"},
    "candidates": {"contracts", "draws", "lists", "stable"},
    "rankings": {"candidates", "contracts", "counts", "personas", "stable"},
    "engine": {"__init__", "errors", "ray_engine", "stopping"},
    "ray_engine": {"engine", "errors", "stopping", "temporary"},
    "compact": {"buckets", "contracts", "lists", "parquet", "rankings"},
    "splits": {"choices"},
    "draws": {"stable"},
    "triples": {"choices", "draws", "parquet", "stable"},
    "training": {"choices", "compact", "draws", "splits", "triples"},
    "sign": {"draws"},
    "bpr": set(),
    "metrics": set(),
    "event_files": {"buckets", "compact", "errors", "lists", "stable"},
    "snapshot": {"__init__", "buckets", "compact", "contracts", "errors", "event_files", "manifest", "parquet"},
    "heldout": {"compact", "draws", "metrics"},
    "question": {"columns", "compact", "draws", "heldout", "snapshot", "training"},
    "probe": {"bpr", "choices", "heldout", "journal", "metrics", "question"},
    "columns": {"compact", "parquet", "triples"},
    "expansion": {"columns", "draws", "losses", "training", "triples"},
    "apart": {
        *("choices", "columns", "draws", "engine", "errors", "expansion", "parquet", "training", "triples"),
    },
    "staged": {"compact", "losses", "triples"},
    "shuffle": {"columns", "triples"},
    "stage": {
        *("apart", "engine", "expansion", "staged"),
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
    "temporary": {"errors"},
    "store": {"errors", "files", "manifest", "objects", "parsers", "snapshot", "stopping", "temporary"},
    "history": {"errors", "nights", "snapshot", "store"},
    "drift": set(),
    "compare": {"contracts", "drift", "errors", "nights", "snapshot"},
    "tables": {"compare", "doctor", "drift", "errors", "history", "nights", "numbers", "summary"},
    "doctor": {
        *("address", "config", "database", "errors", "history", "lease", "ledger", "limits", "numbers", "objects"),
        *(
            "prisma",
            "privileges",
            "queries",
            "resources",
            "schema",
            "scope",
            "snapshot",
            "stopping",
            "store",
            "temporary",
        ),
    },
    "looking": {
        *("compare", "config", "doctor", "errors", "history", "numbers", "pipeline", "publish", "stopping", "store"),
        *("summary", "tables", "terminal"),
    },
    "cloud": {"address", "errors"},
    "objects": {"cloud", "errors", "files", "lease", "snapshot", "stopping", "store", "temporary"},
    "lease": {"errors"},
    "publish": {"errors", "snapshot", "staged", "stopping", "store"},
    "laws": {"candidates", "contracts", "load", "prisma", "queries", "rankings"},
    "validate": {"affinity", "database", "journal", "laws", "parquet", "queries", "snapshot", "stopping", "store"},
    "summary": {"errors", "journal", "losses", "nights"},
    "losses": set(),
    "numbers": set(),
    "event_tally": {"compact", "draws", "triples"},
    "charts": {"errors", "numbers", "temporary"},
    "report_facts": {"choices", "event_tally", "losses", "nights"},
    "report_tables": {"compact", "contracts", "draws", "event_tally"},
    "report_days": {"numbers"},
    "report_answers": {"losses", "nights", "numbers", "report_facts"},
    "report": {
        *("charts", "errors", "event_tally", "losses", "nights", "numbers", "report_answers", "report_days"),
        *("manifest", "report_facts", "report_tables", "resources", "snapshot"),
    },
    "reporting": {"compact", "errors", "event_tally", "journal", "nights", "report", "snapshot"},
    "embedded": {"errors"},
    "synthetic": {"errors", "resources"},
    "journal": {"__init__", "config", "nights", "stopping"},
    "release": {
        *(
            "affinity",
            "choices",
            "compact",
            "config",
            "errors",
            "history",
            "journal",
            "limits",
            "nights",
            "probe",
            "publish",
            "question",
            "reporting",
            "sign",
            "snapshot",
            "stopping",
        ),
        *("engine", "stage", "staged", "store", "temporary", "training"),
    },
    "pipeline": {
        *(
            "affinity",
            "buckets",
            "compact",
            "config",
            "contracts",
            "database",
            "errors",
            "extract",
            "history",
            "journal",
            "load",
            "personas",
        ),
        *(
            "ledger",
            "limits",
            "prisma",
            "probe",
            "publish",
            "queries",
            "rankings",
            "release",
            "reporting",
            "schema",
            "scope",
        ),
        *("engine", "snapshot", "stopping", "store", "synthetic", "validate"),
    },
    "options": {"config"},
    "logs": {"errors", "journal"},
    "streams": set(),
    "progress": {"journal", "logs"},
    "prometheus": {"errors", "files", "nights"},
    "terminal": {*("address", "config", "errors", "journal", "logs", "pipeline", "progress", "prometheus", "stopping")},
    "commands": {"errors", "options", "terminal"},
    "settings_file": {"address", "config", "errors", "options"},
    "answers": {
        *("config", "demo", "embedded", "errors", "journal", "pipeline", "prisma", "privileges", "settings_file"),
        *("stopping", "summary", "terminal", "validate"),
    },
    "demo": {"address", "config", "database", "embedded", "pipeline", "prisma", "stopping"},
}
# The synthetic world is one room with several files.
FAMILIES = {
    "doctor_check": "doctor",
    "doctor_database": "doctor",
    "doctor_store": "doctor",
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
    """`config` looks at the environment where it is given none, `pipeline` at the clock; nobody else does."""
    source = (ROOT / "etl" / f"{module}.py").read_text()
    if module == "config":
        assert source.count("os.environ") == 1
    # Ray and matplotlib can be told some things by the environment alone, and object stores' library finds its endpoint there.
    elif module not in {"charts", "cloud", "embedded", "ray_engine"}:
        assert "os.environ" not in source
        assert "getenv" not in source
    if module != "pipeline":
        assert "datetime.now" not in source


def test_one_file_imports_ray():
    """The extra is for one engine: nothing else may need it."""
    importing = [
        path.relative_to(ROOT).as_posix()
        for path in [ROOT / "cli.py", *(ROOT / "etl").glob("*.py")]
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "ray" for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ray")
    ]
    assert set(importing) == {"etl/ray_engine.py"}


def test_the_page_for_people_has_every_room():
    rows = [row for row in (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines() if row.startswith("| `")]
    rooms = [FAMILIES.get(module, module) for module in MODULES if not module.startswith("__")]
    assert len(rows) > 50
    assert [room for room in rooms if not any(f"`etl/{room}" in row for row in rows)] == []

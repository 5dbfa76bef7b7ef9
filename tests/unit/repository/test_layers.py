"""Rules for the code that no linter checks. Which package may import which is import-linter's part: `make lint`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MODULES = sorted(
    path.relative_to(ROOT).as_posix() for path in (ROOT / "etl").rglob("*.py") if "_bundled" not in path.parts
)
READS_ENVIRONMENT = {
    # They configure libraries that take some settings only from the environment.
    "etl/__init__.py",
    "etl/postgres/embedded.py",
    "etl/runtime/ray_executor.py",
    "etl/snapshots/stores/object_store_client.py",
}
PACKAGES = sorted(path.parent.name for path in (ROOT / "etl").glob("*/__init__.py"))


@pytest.mark.parametrize("module", MODULES)
def test_the_environment_and_the_clock_enter_at_the_top(module):
    """Only the settings read the environment, and only the pipeline reads the clock."""
    source = (ROOT / module).read_text(encoding="utf-8")
    if module == "etl/settings/sources.py":
        assert source.count("os.environ") == 1
    elif module not in READS_ENVIRONMENT:
        assert "os.environ" not in source
        assert "getenv" not in source
    if module != "etl/pipeline/context.py":
        assert "datetime.now" not in source


def test_one_file_imports_ray():
    """Ray is an extra: nothing else may need it."""
    importing = [
        module
        for module in ["cli.py", *MODULES]
        for node in ast.walk(ast.parse((ROOT / module).read_text(encoding="utf-8")))
        if (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == "ray" for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ray")
    ]
    assert set(importing) == {"etl/runtime/ray_executor.py"}


def test_etl_holds_the_errors_and_packages():
    assert [module for module in MODULES if module.count("/") == 1] == [
        "etl/__init__.py",
        "etl/__main__.py",
        "etl/errors.py",
    ]


def test_the_architecture_page_has_a_line_for_every_package():
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert len(PACKAGES) > 10
    assert [name for name in PACKAGES if f"| `{name}/` |" not in page] == []

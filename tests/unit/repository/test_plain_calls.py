"""No shipped code executes data: no eval, no pickle, no shell."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SHIPPED = sorted([*(ROOT / "etl").rglob("*.py"), ROOT / "cli.py", ROOT / "hatch_build.py"])

MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "pty", "commands", "code"}
"""Modules that create objects or code from bytes."""

CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp", "yaml.load"),
    *("subprocess.getoutput", "subprocess.getstatusoutput", "np.load", "numpy.load", "pd.read_pickle"),
}
RUNNERS = {"subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_call", "subprocess.check_output"}


def name_of(node: ast.expr) -> str:
    """`a.b.c` of a call's function, as written."""
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def dangers(source: str) -> list[str]:
    """Forbidden imports and calls in a source text."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".")[0]
            found += [module] if module in MODULES else []
            found += [f"{module}.{a.name}" for a in node.names if f"{module}.{a.name}" in CALLS | RUNNERS]
        elif isinstance(node, ast.Call):
            name = name_of(node.func)
            keywords = {word.arg: word.value for word in node.keywords}
            found += [name] if name in CALLS else []
            found += ["shell="] if "shell" in keywords else []
            found += (
                ["a string as command"]
                if name in RUNNERS and isinstance(node.args[0], ast.Constant | ast.JoinedStr)
                else []
            )
    return found


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_shipped_code_executes_no_data(path):
    assert dangers(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import os.path, marshal",
        "from yaml import safe_load",
        "from subprocess import getoutput",
        "eval('1')",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
        "subprocess.run('ls', check=True)",
        "subprocess.run(f'ls {x}')",
        "subprocess.run(['ls'], shell=True)",
        "def f():\n    return os.system('ls')",
        "tempfile.mktemp()",
    ],
)
def test_the_check_finds_forbidden_calls(source):
    assert dangers(source) != []


def test_the_check_covers_all_shipped_code():
    assert {"embedded.py", "cli.py", "url.py"} <= {path.name for path in SHIPPED}
    assert dangers("subprocess.run(command, check=False)\nre.compile('x')\nrow.load()") == []

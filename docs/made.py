"""Generates parts of the documentation: commands, settings, measurements, and the page of ARCHITECTURE.md.

A page includes a part by `<!-- made: commands -->`, so it can't become outdated. Links that leave `docs/`, which are right in a
checkout, are rewritten to the site's pages of the same files.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer.main

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from cli import app  # noqa: E402 - at the top of the repository, which is on sys.path only now
from etl.settings.model import OPTIONS, PANELS  # noqa: E402
from etl.settings.sources import ENVIRONMENT_PREFIX  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
_HEADING = re.compile("\x08|Examples?:$")  # typer's mark for unwrapped lines, and the heading of examples
_OUT_OF_DOCS = re.compile(r"\]\((?:\.\./)?(?:benchmarks/results/|(?=\w+\.(?:md|svg)\)))(\w+)\.(md|svg)\)")


def commands() -> str:
    """Return the reference of all commands, from their help."""
    return "\n".join(_command(("bpr-etl",), typer.main.get_command(app)))


def _command(path: tuple[str, ...], command: Any) -> Iterator[str]:
    below = [each for each in getattr(command, "commands", {}).values() if not each.hidden]
    if len(path) > 1:
        yield f"## {' '.join(path[1:])}\n"
    yield f"{_cell(command.help or '')}\n"
    if not below:
        words = [*path, *(_name(each) for each in command.params if _is_argument(each)), "[OPTIONS]"]
        yield f"```text\n{' '.join(words)}\n```\n"
        if command.epilog:
            yield f"```sh\n{_examples(command.epilog)}\n```\n"
    yield "| option | | environment |\n|---|---|---|"
    panels: dict[str, list[str]] = {}
    for each in command.params:
        if not getattr(each, "hidden", False):
            panels.setdefault(_panel(each), []).append(_parameter(each))
    for panel in sorted(panels, key=lambda panel: PANELS.index(panel) if panel in PANELS else -1):
        yield from [f"| **{panel}** | | |"] if panel else []
        yield from panels[panel]
    yield ""
    for each in below:
        yield from _command((*path, each.name), each)


def _panel(parameter: Any) -> str:
    """Return the panel of `--help` that shows the parameter; empty if the command has no panels."""
    panel = getattr(parameter, "rich_help_panel", None)
    return panel if isinstance(panel, str) else ""


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _name(parameter: Any) -> str:
    return f"[{parameter.metavar or parameter.name.upper()}]"


def _examples(epilog: str) -> str:
    """Return the examples, one per line, ready to paste."""
    return "\n".join(line.strip() for line in epilog.splitlines() if line.strip() and not _HEADING.match(line))


def _parameter(parameter: Any) -> str:
    text = parameter.help or ""
    variable = f"`{ENVIRONMENT_PREFIX}{parameter.name.upper()}`" if parameter.name in {*OPTIONS, "config"} else ""
    value = f" {parameter.metavar}" if parameter.metavar else ""
    options = [*(each + value for each in parameter.opts), *parameter.secondary_opts]
    name = ", ".join(f"`{_code(each)}`" for each in ([_name(parameter)] if _is_argument(parameter) else options))
    return f"| {name} | {_cell(text)} | {variable} |"


def _cell(text: str) -> str:
    """Escape plain text for a Markdown table: no dashes or markup are interpreted."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("--", "\\-\\-").replace("*", "\\*")


def _code(text: str) -> str:
    """Escape code for a table cell."""
    return text.replace("|", "\\|")


def settings() -> str:
    """Return a table of all settings: name in a settings file, name in Python, default."""
    rows = [
        f"| `{name.replace('_', '-')}` | `{name}` | `{_toml(option.default)}` |" for name, option in OPTIONS.items()
    ]
    return "\n".join(["| in a settings file | in Python | default |", "|---|---|---|", *rows])


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else f'"{value}"' if isinstance(value, str) else f"{value}"


def measured() -> str:
    """Return all result pages, one after the other; each begins with the command that measures it."""
    pages = sorted(path for path in RESULTS.glob("*.md") if path.stem != "README")
    return "\n".join(f"({path.stem})=\n" + _lowered(path.read_text(encoding="utf-8")) for path in pages)


def architecture() -> str:
    """Return ARCHITECTURE.md without its title, with links to pages of the site."""
    return (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").partition("\n")[2].replace("](docs/", "](")


def _lowered(page: str) -> str:
    return re.sub(r"^(#+) ", r"#\1 ", page, flags=re.MULTILINE)


MADE: dict[str, Callable[[], str]] = {each.__name__: each for each in (commands, settings, measured, architecture)}


def fill(page: str) -> str:
    """Return the page with generated parts inserted and links rewritten to pages of the site."""
    page = re.sub(r"<!-- made: (\w+) -->", lambda found: MADE[found[1]](), page)
    page = page.replace("](../ARCHITECTURE.md)", "](architecture.md)")
    return _OUT_OF_DOCS.sub(_site_link, page)


def _site_link(link: re.Match[str]) -> str:
    name, kind = link[1], link[2]
    if not (RESULTS / f"{name}.{kind}").exists():
        return link[0]
    return f"](measured.md#{name})" if kind == "md" else f"](../benchmarks/results/{name}.svg)"

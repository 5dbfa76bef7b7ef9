"""What is not written by hand in these pages: commands, settings and measurements, made of the program and its results.

A page says `<!-- made: commands -->` where it wants them, so nothing can go stale. Links that lead out of `docs/`, as they are
right in a checkout, are led to the pages that the site has of the same files.
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

from cli import app  # noqa: E402 - stands at the top of the repository
from etl.settings.model import OPTIONS, PANELS  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
_HEADING = re.compile("\x08|Examples?:$")  # typer's mark that lines stay lines, and the word above them
_ENVIRONMENT = re.compile(r" \[env: (\w+)\]$")
_OUT_OF_DOCS = re.compile(r"\]\((?:\.\./)?(?:benchmarks/results/|(?=\w+\.(?:md|svg)\)))(\w+)\.(md|svg)\)")


def commands() -> str:
    """The reference of commands, from the command line's own help."""
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
    """The heading that `--help` has it under; none where the command has but a few."""
    panel = getattr(parameter, "rich_help_panel", None)
    return panel if isinstance(panel, str) else ""


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _name(parameter: Any) -> str:
    return f"[{parameter.metavar or parameter.name.upper()}]"


def _examples(epilog: str) -> str:
    """Each example on a line of its own, ready to be pasted."""
    return "\n".join(line.strip() for line in epilog.splitlines() if line.strip() and not _HEADING.match(line))


def _parameter(parameter: Any) -> str:
    said = parameter.help or ""
    variable = _ENVIRONMENT.search(said)
    value = f" {parameter.metavar}" if parameter.metavar else ""
    options = [*(each + value for each in parameter.opts), *parameter.secondary_opts]
    name = ", ".join(f"`{_code(each)}`" for each in ([_name(parameter)] if _is_argument(parameter) else options))
    return f"| {name} | {_cell(_ENVIRONMENT.sub('', said))} | {f'`{variable[1]}`' if variable else ''} |"


def _cell(text: str) -> str:
    """Plain text, as Markdown says it: no smart dashes, no markup."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("--", "\\-\\-").replace("*", "\\*")


def _code(text: str) -> str:
    """A piece of code in a table's cell."""
    return text.replace("|", "\\|")


def settings() -> str:
    """Every setting: its name in a settings file and in Python, and its default."""
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
    """Every page of results, one after the other, each with its own way of being measured again."""
    pages = sorted(path for path in RESULTS.glob("*.md") if path.stem != "README")
    return "\n".join(f"({path.stem})=\n" + _lowered(path.read_text(encoding="utf-8")) for path in pages)


def architecture() -> str:
    """ARCHITECTURE.md without its title, with links that stay in the site."""
    return (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").partition("\n")[2].replace("](docs/", "](")


def _lowered(page: str) -> str:
    return re.sub(r"^(#+) ", r"#\1 ", page, flags=re.MULTILINE)


MADE: dict[str, Callable[[], str]] = {each.__name__: each for each in (commands, settings, measured, architecture)}


def fill(page: str) -> str:
    """The page with what is made in its places, and with links that stay in the site."""
    page = re.sub(r"<!-- made: (\w+) -->", lambda found: MADE[found[1]](), page)
    page = page.replace("](../ARCHITECTURE.md)", "](architecture.md)")
    return _OUT_OF_DOCS.sub(_led, page)


def _led(link: re.Match[str]) -> str:
    name, kind = link[1], link[2]
    if not (RESULTS / f"{name}.{kind}").exists():
        return link[0]
    return f"](measured.md#{name})" if kind == "md" else f"](../benchmarks/results/{name}.svg)"

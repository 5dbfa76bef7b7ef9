"""The command line's own manners: help by panels, options that all commands have, and wrong words told in one line."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from functools import wraps
from itertools import pairwise
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from etl.commands import runner as terminal
from etl.commands.options import COMMON, PANELS
from etl.errors import escape_control_characters

_panel_context: ContextVar[Mapping[str, Any]] = ContextVar("said")


def common_options() -> Mapping[str, Any]:
    """What was said on the command line for the options in COMMON that the command in hand does not list itself."""
    return _panel_context.get({})


class Command(TyperCommand):
    """A command whose help has its options by panel."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, a section a panel."""
        _format_panels(self, ctx, formatter)


class Group(TyperGroup):
    """Commands; its help has them by panel, too, each with the whole first sentence of its own."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options and the commands, a section a panel."""
        _format_panels(self, ctx, formatter)
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            if not command.hidden:
                panel = getattr(command, "rich_help_panel", None)
                said = (command.help or "").split("\n\n")[0].replace("\n", " ")
                sections.setdefault(panel if isinstance(panel, str) else "Commands", []).append((name, said))
        for panel, rows in sections.items():
            with formatter.section(panel):
                formatter.write_dl(rows)


def _format_panels(command: Any, ctx: Any, formatter: Any) -> None:
    sections: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is not None:
            sections.setdefault(_panel(command, parameter), []).append(record)
    for panel in sorted(sections, key=lambda panel: PANELS.index(panel) if panel in PANELS else len(PANELS)):
        with formatter.section(panel):
            formatter.write_dl(sections[panel])


def _panel(command: Any, parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return PANELS[0]
    if parameter.name == "help" and isinstance(command, Command):
        return PANELS[-1]
    return getattr(parameter, "rich_help_panel", None) or "Options"


class App(typer.Typer):
    """A Typer whose commands take COMMON, whether they list it or not, and whose help is plain text by panels."""

    def __init__(self, **words: Any) -> None:
        super().__init__(
            cls=Group,
            no_args_is_help=True,
            pretty_exceptions_enable=False,
            rich_markup_mode=None,
            context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
            **words,
        )

    def command(  # type: ignore[override]
        self, name: str | None = None, **words: Any
    ) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """As Typer's; the function is registered with COMMON."""
        register = super().command(name, cls=Command, **words)

        def decorate(function: Callable[..., None]) -> Callable[..., None]:
            register(_with_common(function))
            return function

        return decorate


def _with_common(function: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(function, eval_str=True)
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in COMMON.items()
        if name not in {each.rstrip("_") for each in signature.parameters}
    ]

    @wraps(function)
    def called(**words: Any) -> None:
        _panel_context.set({each.name: words.pop(each.name) for each in more})
        function(**words)

    parameters = [*signature.parameters.values(), *more]
    called.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {each.name: each.annotation for each in parameters}
    return called


def main(app: typer.Typer, words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Do what the words say; gives the exit code. A word that is wrong is told in one line, with what was meant, perhaps."""
    try:
        return get_command(app).main(args=list(words), standalone_mode=False) or 0
    except Exception as error:
        if not hasattr(error, "format_message"):  # which all have that Typer raises for wrong words
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.format_message(), err=True)
        else:
            terminal.report_error(_usage_error(error, words), 2, "UsageError", _peek_output_options(words), environ)
        return 2


def _usage_error(error: Any, words: Sequence[str]) -> str:
    """What is wrong with the words, in plain sentences.

    A word too many is not repeated beside an address: it may be the rest of a password with a space in it.
    """
    said = str(error.format_message())
    if said.startswith("Got unexpected extra argument") and any("://" in each or "password" in each for each in words):
        said = "There is a word too many: what has a space in it stands in quotes."
    if option := getattr(error, "option_name", None) if "No such option" in said else None:
        near = difflib.get_close_matches(option, error.possibilities or [], 1, 0)
        said = f"No such option {option}" + (f"; did you mean {near[0]}?" if near else ".")
    if said.startswith("No such command"):  # Typer names all that are near, the nearest first
        what, _, near_ones = said.partition(". Did you mean ")
        said = what.rstrip(".") + (f"; did you mean {near_ones.partition(',')[0].rstrip('?')}?" if near_ones else ".")
    said = said if said.endswith((".", "?")) else f"{said}."
    path = error.ctx.command_path if getattr(error, "ctx", None) else ""
    return escape_control_characters(f"{said} See `{path} --help`." if path else said)


def _peek_output_options(words: Sequence[str]) -> dict[str, Any]:
    """As much of what was given as decides how an error is told, where the words as a whole make no sense."""
    formats = [word.partition("=")[2] for word in words if word.startswith("--log-format=")]
    formats += [after for word, after in pairwise(words) if word == "--log-format"]
    return {"json": "--json" in words or None, "log_format": formats[-1] if formats else None}

"""The Typer classes: help as plain text in panels, options that all commands have, and usage errors in one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from functools import partial
from itertools import pairwise
from textwrap import wrap
from typing import Any, get_args

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from etl.commands.options import ALL, declaration, with_parameters
from etl.commands.runner import CommandResult, report_error, run_command
from etl.errors import escape_control_characters
from etl.settings.model import OPTIONS, PANELS, Need
from etl.settings.sources import ENVIRONMENT_PREFIX
from etl.settings.values import format_option

_NEEDS = {need: f"{need.capitalize()} needed" for need in get_args(Need)}
_RARELY = _NEEDS["rarely"]
_MANY = 30
"""From so many options on, `--help` does not describe those that are rarely needed."""

_ELSEWHERE = (
    f"Each option can also be set by an environment variable ({ENVIRONMENT_PREFIX}OUT is --out) or in a settings file; "
    "--no-NAME turns a flag off."
)
_WORDED = {format_option(name): name for name, each in OPTIONS.items() if each.kind is bool and each.completion}
"""Flags that may have a word after "=", which a flag of Typer's can't."""


class _Plain:
    """Takes the parameters' values as they are given: texts, lists of texts and flags, which our own parsers check.

    Typer would check their types through pydantic, whose import and adapters take 0.05 s of every command.
    """

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, each with our `process_value`."""
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for each in parameters:
            each.process_value = partial(_process, each)
        return parameters


def _process(parameter: Any, ctx: Any, value: Any) -> Any:
    """Return a parameter's value, after its callback if it has one."""
    taken = list(value) if isinstance(value, tuple) else value
    return parameter.callback(ctx, parameter, taken) if parameter.callback else taken


class Command(_Plain, TyperCommand):
    """A command whose help has its options by panel, and whose flags may have words: `--skip-unchanged=ok`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words of flags apart: for Typer, the flag is given without a word."""
        pairs = [each.partition("=") if each.partition("=")[0] in _WORDED else (each, "", "") for each in args]
        rest: list[str] = super().parse_args(ctx, [flag for flag, _, _ in pairs])
        words = {_WORDED[flag]: word for flag, equals, word in pairs if equals}
        ctx.params.update((name, word) for name, word in words.items() if ctx.params.get(name))
        return rest

    def format_help_text(self, ctx: Any, formatter: Any) -> None:
        """Write what the command does, examples, and the sentence about the environment."""
        super().format_help_text(ctx, formatter)
        super().format_epilog(ctx, formatter)
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(_ELSEWHERE)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options by how often they are needed; those that rarely are, where there are many, as names alone."""
        rows = [(each, record) for each in self.get_params(ctx) if (record := _record(each, ctx))]
        if ctx.meta.get(ALL):
            _write_sections(_grouped(rows, _panel), formatter)
            return
        groups = _grouped(rows, _need)
        folded = groups.pop(_RARELY, []) if len(rows) > _MANY else []
        _write_sections(groups, formatter)
        if folded:
            with formatter.section(f"{_RARELY} (described by --help-all)"):
                names = ", ".join(flag.split()[0] for flag, _ in folded)
                margin = " " * formatter.current_indent
                lines = wrap(
                    names, formatter.width, break_on_hyphens=False, initial_indent=margin, subsequent_indent=margin
                )
                formatter.write("\n".join(lines) + "\n")

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write nothing: the examples come first."""


class Group(_Plain, TyperGroup):
    """Commands; their help is by panel, too, each with the whole first sentence of its own."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options and the commands, a section per panel."""
        rows = [record for each in self.get_params(ctx) if (record := _record(each, ctx))]
        sections: dict[str, list[tuple[str, str]]] = {"Options": rows}
        for name, command in self.commands.items():
            panel = getattr(command, "rich_help_panel", None)
            sentence = (command.help or "").split("\n\n")[0].replace("\n", " ")
            sections.setdefault(panel if isinstance(panel, str) else "Commands", []).append((name, sentence))
        _write_sections(sections, formatter)


def _grouped(
    rows: Iterable[tuple[Any, tuple[str, str]]], heading: Callable[[Any], str]
) -> dict[str, list[tuple[str, str]]]:
    """Return the lines of parameters by their headings, in the order of headings."""
    groups: dict[str, list[tuple[str, str]]] = {each: [] for each in (*PANELS, *_NEEDS.values())}
    for parameter, record in rows:
        groups.setdefault(heading(parameter), []).append(record)
    return groups


def _record(parameter: Any, ctx: Any) -> tuple[str, str] | None:
    """Return a parameter's line of help: without the `--no-` form of a flag, and without the type of a plain text."""
    record = parameter.get_help_record(ctx)
    return record and (re.sub(r" / --no-\S+| <str>", "", record[0]), record[1])


def _write_sections(sections: Mapping[str, list[tuple[str, str]]], formatter: Any) -> None:
    for title, rows in sections.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows, col_max=27)


def _need(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return PANELS[0]
    return _NEEDS["sometimes" if parameter.name in ("help", "help_all") else declaration(parameter.name).need]


def _panel(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return PANELS[0]
    return getattr(parameter, "rich_help_panel", None) or PANELS[-1]


class App(typer.Typer):
    """A Typer whose commands name their options, and whose help is plain text by panels."""

    def __init__(self, environ: Mapping[str, str], **kwargs: Any) -> None:
        self._environ = environ
        super().__init__(
            cls=Group,
            no_args_is_help=True,
            pretty_exceptions_enable=False,
            rich_markup_mode=None,
            context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
            **kwargs,
        )

    def register(
        self,
        name: str,
        work: Callable[..., CommandResult],
        options: str,
        *examples: str,
        panel: str | None = None,
        reads_file: bool = True,
    ) -> None:
        """Add a command that does some work, with the named options (`etl.commands.options`).

        The docstring of `work` is the command's help. Without `reads_file` it gets the settings file's name as `config`.
        """

        def command(*, help_all: bool, **given: Any) -> None:  # noqa: ARG001 - it is eager: never set here
            run_command(given, self._environ, work, reads_file=reads_file)

        # \b keeps each example on a line of its own, however narrow the terminal is.
        lines = ["\b", "Example:" if len(examples) == 1 else "Examples:", *(f"  {each}" for each in examples)]
        add = self.command(name, cls=Command, help=work.__doc__, epilog="\n".join(lines), rich_help_panel=panel)
        add(with_parameters(options, command, name))


def run_app(app: typer.Typer, words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run the command that the words name and return its exit code. A usage error is one line, with what may be meant."""
    try:
        return get_command(_named_alone(app, words)).main(args=list(words), standalone_mode=False) or 0
    except Exception as error:
        if not hasattr(error, "format_message"):  # which all of Typer's usage errors have
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.format_message(), err=True)
        else:
            report_error(_usage_error(error, words), 2, "UsageError", _peek_output_options(words), environ)
        return 2


def _named_alone(app: typer.Typer, words: Sequence[str]) -> typer.Typer:
    """The app with the command or group alone that the words begin with, if they do: to build all takes 15 ms."""
    alone = copy(app)
    alone.registered_commands = [each for each in app.registered_commands if each.name in words[:1]]
    alone.registered_groups = [each for each in app.registered_groups if each.name in words[:1]]
    return alone if alone.registered_commands or alone.registered_groups else app


def _usage_error(error: Any, words: Sequence[str]) -> str:
    """What is wrong with the words, in plain sentences."""
    said = str(error.format_message())
    path = error.ctx.command_path if getattr(error, "ctx", None) else ""
    if said.startswith("Got unexpected extra argument"):
        # The extra word is not repeated after an address: it may be the rest of a password with a space in it.
        if any("://" in each or "password" in each for each in words):
            said = "There are too many arguments: put a value with a space in quotes."
        elif path.endswith(" validate"):
            said = said.rstrip(".") + "; a snapshot is named with --snapshot."
    if option := getattr(error, "option_name", None) if "No such option" in said else None:
        near = difflib.get_close_matches(option, error.possibilities or [], 1, 0)
        said = f"No such option {option}" + (f"; did you mean {near[0]}?" if near else ".")
    if said.startswith("No such command"):  # Typer names all that are near, the nearest first
        what, _, near_ones = said.partition(". Did you mean ")
        said = what.rstrip(".") + (f"; did you mean {near_ones.partition(',')[0].rstrip('?')}?" if near_ones else ".")
    said = said if said.endswith((".", "?")) else f"{said}."
    return escape_control_characters(f"{said} See `{path} --help`." if path else said)


def _peek_output_options(words: Sequence[str]) -> dict[str, Any]:
    """The options that decide how an error is reported, where the words as a whole can't be parsed."""
    formats = [word.partition("=")[2] for word in words if word.startswith("--log-format=")]
    formats += [after for word, after in pairwise(words) if word == "--log-format"]
    return {"json": "--json" in words or None, "log_format": formats[-1] if formats else None}

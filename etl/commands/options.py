"""The command line's options and arguments, made from the declarations of `etl.settings.model`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import cache
from typing import Annotated, Any

import typer

from etl.settings.model import OPTIONS, OUTPUT, Option
from etl.settings.sources import DEFAULT_FILE
from etl.settings.values import format_option, parse_text

_CONFIG = Option(
    OUTPUT,
    f'Settings file; default ./{DEFAULT_FILE}; "" for none.',
    parse_text,
    metavar="FILE",
    example=DEFAULT_FILE,
    need="often",
    says={"init": f"File to write; default {DEFAULT_FILE}."},
)
_COMMON = ("config", "json", "log_format", "quiet", "verbose")
"""The options of every command."""

_ARGUMENTS = {
    "SNAPSHOT": "A snapshot, or an --out folder: its newest.",
    "NEWER": "The newer snapshot. Without it, SNAPSHOT is an --out folder: its newest is compared with the one before.",
    "FOLDER": "Folder to create; its name becomes that of the data set. Default dataset/bpr.",
    "OUT": "The --out folder; default out.",
}


ALL = "bpr_etl.help_all"
"""The key, in a Typer context's `meta`, by which help knows that it was asked for in full."""


def _show_all(ctx: typer.Context, asked: bool) -> None:  # noqa: FBT001 - Typer's form of a callback
    if asked:
        ctx.meta[ALL] = True
        typer.echo(ctx.get_help())
        raise typer.Exit


_HELP_ALL = typer.Option(
    "--help-all",
    callback=_show_all,
    is_eager=True,
    help="Show every option, by subject.",
    rich_help_panel=OUTPUT,
    show_default=False,
)


def declaration(name: str) -> Option:
    """Return the declaration of a command's option, by the parameter's name."""
    return OPTIONS.get(name, _CONFIG)


def with_parameters(names: str, function: Callable[..., Any], command: str = "") -> Callable[..., Any]:
    """Give a function of `**options` the parameters that Typer reads: the named ones, and every command's.

    `command` is its name, which has help texts of its own. `names` are separated by spaces: options by
    their settings, arguments in upper case. Options have the order of their declarations.

    Raises ValueError for a name that is not declared.
    """
    wanted = set(names.split())
    annotations = dict(_parameters(wanted, command))
    if unknown := {name.lower() for name in wanted} - annotations.keys():
        raise ValueError(f"No option or argument is declared for {', '.join(sorted(unknown))}.")
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=each)
            for name, each in annotations.items()
        ]
    )
    function.__annotations__ = annotations
    return function


def _parameters(names: set[str], command: str) -> Iterable[tuple[str, Any]]:
    for name, text in _ARGUMENTS.items():
        if name in names:
            yield name.lower(), Annotated[str | None, typer.Argument(help=text, metavar=name, show_default=False)]
    own = (name for name in OPTIONS if name in names and name not in _COMMON)
    for name in (*own, *_COMMON):
        option = declaration(name)
        yield name, _annotation(name, option.says.get(command, option.help))
    yield "help_all", Annotated[bool, _HELP_ALL]


@cache
def _annotation(name: str, text: str) -> Any:
    """A parameter as Typer reads it, with its help. All but flags arrive as text: the option's own parser words the error."""
    option = declaration(name)
    flag, metavar = format_option(name), option.metavar
    type_: Any = str
    if option.kind is bool:
        flag, type_ = f"{flag}/--no-{flag[2:]}", bool
    elif issubclass(option.kind, tuple):
        type_ = list[str]
    elif option.kind in {int, float}:
        metavar = metavar or f"<{option.kind.__name__}>"
    return Annotated[
        type_ | None,
        typer.Option(
            flag,
            help=text,
            rich_help_panel=option.panel,
            show_default=False,
            metavar=metavar,
            autocompletion=(lambda: list(option.completion)) if option.completion else None,
        ),
    ]

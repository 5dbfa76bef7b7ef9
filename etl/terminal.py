"""What stands between a command and the person, cron or pipe that called it: settings in, answer out, an exit code."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from etl.address import Discreet, secrets_of
from etl.config import Settings, resolve, wants_json
from etl.errors import EtlError, visible
from etl.stopping import Stop, StoppedError, interruptible

if TYPE_CHECKING:
    from rich.console import RenderableType

log = logging.getLogger("bpr-etl")


@dataclass(frozen=True)
class Answer:
    """What a command has to say: facts for `--json`, what a person is shown, and the exit code."""

    facts: dict[str, Any]
    shown: list[RenderableType | str]
    exit_code: int = 0


Work = Callable[[Settings, Stop], Answer]
"""What a command does, with its settings, until it is asked to stop."""


def answer(options: Mapping[str, Any], environ: Mapping[str, str], work: Work) -> None:
    """Resolve the settings, do the work, show its answer, leave with its exit code.

    The work hears signals (`etl.stopping`). Who was stopped by one ends by it, as its caller expects of a program.

    `options` are a command's `locals()`, so that a parameter's name is its setting's.
    """
    given = {name.rstrip("_"): value for name, value in options.items()}
    as_json = wants_json(given, environ)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s")
    # A library's own progress notes are not ours to print.
    logging.getLogger("r2d2").setLevel(logging.ERROR)
    try:
        settings = resolve(given, environ)
        as_json = settings.json
        _hide_password(settings, given)
        said = interruptible(lambda stop: work(settings, stop))
    except EtlError as error:
        if as_json:
            _print_json(
                {"ok": False, "exit_code": error.exit_code, "error": type(error).__name__, "message": str(error)}
            )
        typer.echo(f"Error: {visible(str(error))}", err=True)
        if isinstance(error, StoppedError):
            _end_by(error.signal)
        raise typer.Exit(error.exit_code) from None
    if as_json:
        _print_json({"ok": said.exit_code == 0, "exit_code": said.exit_code, **said.facts})
    else:
        _show(said.shown)
    raise typer.Exit(said.exit_code)


def _hide_password(settings: Settings, given: Mapping[str, Any]) -> None:
    """Know the password wherever it came from, and say so where everybody on the machine can see it."""
    if isinstance(sys.stderr, Discreet):
        sys.stderr.hide(secrets_of(settings.database_url or "", settings.environ))
    if secrets_of(given.get("database_url") or "", {}):
        log.warning(
            "The password on the command line can be read by everybody on this machine while this runs (ps): "
            "put the URL into DATABASE_URL, or the password into PGPASSWORD or .pgpass."
        )


def _end_by(number: int) -> None:
    """End as if the signal had not been caught: shells, make and systemd tell that from a failure."""
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _print_json(answer: dict[str, Any]) -> None:
    typer.echo(json.dumps(answer, ensure_ascii=False, default=str))


def _show(shown: list[RenderableType | str]) -> None:
    from rich.console import Console

    # A pipe or a cron mail has no width of its own: 100 columns, so that no law is cut in two.
    # No markup: what is shown holds names that anybody may have given a city.
    console = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 100)
    for part in shown:
        if isinstance(part, str):
            console.print(part, soft_wrap=True)  # paths stay in one piece
        else:
            console.print(part)


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A line on a terminal's stderr that says how far something long is; nothing where nobody looks."""
    if not sys.stderr.isatty():
        yield lambda _what, _done, _of: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None, visible=False)

        def show(what: str, done: int, of: int) -> None:
            bars.update(task, description=what, completed=done, total=of, visible=of > 1)

        yield show

"""What stands between a command and the person, cron or pipe that called it: settings in, answer out, an exit code."""

from __future__ import annotations

import codecs
import errno
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from etl.errors import ConnectError, EtlError, NothingToDo, SettingsError, escape_control_characters, unreadable
from etl.runtime.cancellation import CancelledError, CancelToken, interruptible
from etl.settings.model import (
    ENVIRONMENT_PREFIX,
    Settings,
    default_settings_file,
    load_settings,
    unknown_variables,
    wants_json,
    wants_json_log,
)
from etl.settings.redaction import RedactingStream, secrets_of

if TYPE_CHECKING:
    from rich.console import RenderableType

    from etl.runtime.run_record import RunObserver

log = logging.getLogger("bpr-etl")


@dataclass(frozen=True)
class CommandResult:
    """What a command has to say: facts for `--json`, what a person is shown, and the exit code.

    `primary`: what is shown is the thing itself (a URL, a schema) and not an account of it, so `--quiet` does not hide it.
    """

    facts: dict[str, Any]
    output: list[RenderableType | str]
    exit_code: int = 0
    primary: bool = False


Command = Callable[[Settings, CancelToken], CommandResult]
"""What a command does, with its settings, until it is asked to stop."""


def run_command(options: Mapping[str, Any], environ: Mapping[str, str], work: Command) -> None:
    """Resolve the settings, do the work, show its answer, leave with its exit code.

    The work hears signals (`etl.runtime.cancellation`). Who was stopped by one ends by it, as its caller expects of a program.

    `options` are a command's `locals()`, so that a parameter's name is its setting's.
    """
    from etl.runtime import logs

    given = {name.rstrip("_"): value for name, value in options.items()}
    logs.configure(as_json=wants_json_log(given, environ))
    measured = _MetricsFile(given, environ)
    try:
        settings = _settings(given, environ)
        measured.begin(settings)
        said = interruptible(lambda stop: work(settings, stop))
    except (EtlError, PermissionError) as raised:
        error = ConnectError(unreadable(raised)) if isinstance(raised, PermissionError) else raised
        measured.write(error.exit_code)
        report_error(str(error), error.exit_code, type(error).__name__, given, environ)
        if isinstance(error, CancelledError):
            _reraise_signal(error.signal)
        raise typer.Exit(error.exit_code) from None
    except Exception:
        measured.write(1)
        if not wants_json_log(given, environ):
            raise
        log.critical("A bug: please report it.", exc_info=True)
        raise typer.Exit(1) from None
    measured.write(said.exit_code, said.facts)
    if settings.json:
        _print_json({"ok": said.exit_code in (0, NothingToDo.exit_code), "exit_code": said.exit_code, **said.facts})
    elif said.primary or not settings.quiet or said.exit_code not in (0, NothingToDo.exit_code):
        _show(said.output)  # where it failed, that is the error, which --quiet shows
    _tell_of_loss(every=settings.json)
    raise typer.Exit(said.exit_code)


def _settings(given: dict[str, Any], environ: Mapping[str, str]) -> Settings:
    """The settings; from here on, log lines are as these say. A settings file that nobody named is told of."""
    from etl.runtime import logs

    at_hand = default_settings_file(given, environ)
    given["config"] = at_hand or given.get("config")
    settings = load_settings(given, environ)
    if (threads := environ.get("POLARS_MAX_THREADS", "")).isdecimal() and not int(threads):
        raise SettingsError(
            f"POLARS_MAX_THREADS is {threads}, and polars needs at least 1 thread: raise it, or unset it."
        )
    given |= {"json": settings.json, "log_format": settings.log_format}
    logs.configure(as_json=settings.log_format == "json", quiet=settings.quiet, verbose=settings.verbose)
    if at_hand:
        log.info('Settings are read from %s in this folder; --config "" reads none.', at_hand)
    if strange := unknown_variables(environ):
        log.warning("%s in the environment: bpr-etl has no such option, and takes no notice.", ", ".join(strange))
    _hide_password(settings, given)
    return settings


def report_error(message: str, exit_code: int, kind: str, given: Mapping[str, Any], environ: Mapping[str, str]) -> None:
    """Say why nothing came of a command: a line on stderr, and with `--json` the object on stdout."""
    if wants_json(given, environ):
        _print_json({"ok": False, "exit_code": exit_code, "error": kind, "message": message})
    if wants_json_log(given, environ):
        from etl.runtime import logs

        if not any(isinstance(each, logs.LogHandler) for each in logging.getLogger().handlers):
            logs.configure(as_json=True)
        log.error(message, extra={"exit_code": exit_code, "error": kind})
    else:
        typer.echo(f"Error: {escape_control_characters(message)}", err=True)


class _MetricsFile:
    """The file of `--metrics-file`: written when a command that takes the option ends, well or not; not for a rehearsal."""

    def __init__(self, given: Mapping[str, Any], environ: Mapping[str, str]) -> None:
        self._takes_it = "metrics_file" in given
        # Where the settings as a whole can't be resolved, that is a failed night, too.
        named = given.get("metrics_file") or environ.get(f"{ENVIRONMENT_PREFIX}METRICS_FILE")
        self._path = Path(named) if self._takes_it and named else None
        self._began = time.perf_counter()

    def begin(self, settings: Settings) -> None:
        """Take the settings' word for it. Raises SettingsError where the file can't be written."""
        wanted = settings.metrics_file if self._takes_it and not settings.dry_run else None
        self._path = None
        if wanted:
            from etl.reporting import metrics_file as prometheus

            prometheus.require_writable(Path(wanted))
            self._path = Path(wanted)

    def write(self, exit_code: int, facts: Mapping[str, Any] | None = None) -> None:
        """Write it. A good night stays one where it can't be written: then there is a warning."""
        if self._path is None:
            return
        from etl.pipeline.context import utc_now
        from etl.reporting import metrics_file as prometheus
        from etl.runtime.run_record import peak_mib

        try:
            seconds, peak = time.perf_counter() - self._began, peak_mib() * 2**20
            prometheus.write(self._path, prometheus.Outcome(utc_now(), seconds, exit_code, peak, facts or {}))
        except (OSError, ValueError) as error:  # ValueError: a path that is none
            why = error.strerror if isinstance(error, OSError) else error
            log.warning("The metrics file %s could not be written: %s.", self._path, why)


def _hide_password(settings: Settings, given: Mapping[str, Any]) -> None:
    """Know the password wherever it came from, and say so where everybody on the machine can see it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, RedactingStream):
            stream.add_secrets(secrets_of(settings.database_url or "", settings.environ))
    if secrets_of(given.get("database_url") or "", {}):
        log.warning(
            "The password on the command line can be read by everybody on this machine while this runs (ps): "
            "put the URL into DATABASE_URL, or the password into PGPASSWORD or .pgpass."
        )


def _reraise_signal(number: int) -> None:
    """End as if the signal had not been caught: shells, make and systemd tell that from a failure."""
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _print_json(answer: dict[str, Any]) -> None:
    """Print one object on one line. What a terminal might obey is escaped, as JSON itself allows."""
    # Where the locale's encoding is another, what it lacks would be escaped in a way that JSON does not know.
    plain = codecs.lookup(sys.stdout.encoding or "ascii").name != "utf-8"
    text = json.dumps(answer, ensure_ascii=plain, default=str)
    typer.echo("".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text))


def _tell_of_loss(*, every: bool) -> None:
    """Say on stderr that the answer could not be printed. Who left or closed it hears that only if `every` loss counts."""
    sys.stdout.flush()
    lost: OSError | None = getattr(sys.stdout, "lost", None)
    if lost and (every or lost.errno not in (errno.EPIPE, errno.EBADF)):
        log.warning(
            "What this command has to say could not be printed on stdout (%s). It ends with its own exit code all the same.",
            lost.strerror,
        )


def _show(shown: list[RenderableType | str]) -> None:
    from rich.console import Console
    from rich.text import Text

    # A pipe or a cron mail has no width of its own: 100 columns, so that no law is cut in two.
    # No markup: what is shown holds names that anybody may have given a city.
    console = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 100)
    for part in shown:
        if isinstance(part, str | Text):
            console.print(part, soft_wrap=True)  # paths stay in one piece
        else:
            console.print(part)


@contextmanager
def observe_run(settings: Settings) -> Iterator[RunObserver]:
    """Yields what follows a command's work: the log; and the progress display on a terminal, unless asked for quiet."""
    from etl.runtime import logs

    root = logging.getLogger().handlers
    lines = next((each for each in root if isinstance(each, logs.LogHandler)), None) or logs.LogHandler(as_json=False)
    if sys.stderr.isatty() and not settings.quiet and settings.log_format == "console":
        from etl.runtime import progress

        with progress.show_progress(lines) as display:
            yield display
    else:
        yield logs.StepLogger(lines)

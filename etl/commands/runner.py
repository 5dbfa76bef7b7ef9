"""What is around every command: settings in, result out, an exit code."""

from __future__ import annotations

import codecs
import errno
import gc
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from etl.errors import ConnectError, EtlError, NothingToDo, SettingsError, escape_control_characters, unreadable
from etl.runtime.cancellation import CancelledError, CancelToken, interruptible
from etl.runtime.run_record import Progress
from etl.settings.model import OPTIONS, Settings
from etl.settings.redaction import hide_secrets, secrets_of
from etl.settings.sources import (
    ENVIRONMENT_PREFIX,
    default_settings_file,
    explicit_settings_file,
    load_settings,
    unknown_variables,
    wants_json,
    wants_json_log,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from etl.runtime.run_record import RunObserver

log = logging.getLogger("bpr-etl")


@dataclass(frozen=True)
class CommandResult:
    """The result of a command: facts for `--json`, output for people, and the exit code.

    `primary` output is what was asked for (a URL, a schema), not an account of the work, so `--quiet` does not hide it.
    """

    facts: dict[str, Any]
    output: Sequence[RenderableType | str]
    exit_code: int = 0
    primary: bool = False


def run_command(
    given: dict[str, Any], environ: Mapping[str, str], work: Callable[..., CommandResult], *, reads_file: bool = True
) -> None:
    """Resolve the settings, do the work, print its result, and raise typer.Exit with its exit code.

    `given` has the command line's options and arguments by name, None for those not given. The work is called with the
    settings and a CancelToken; arguments that are no settings are passed by name. Signals cancel the work
    (`etl.runtime.cancellation`); the process then ends by the same signal, as its caller expects.
    """
    from etl.runtime import logs

    arguments = {name: given.pop(name) for name in list(given) if name not in OPTIONS and name != "config"}
    if not reads_file:
        arguments["config"] = explicit_settings_file(given, environ)
        given["config"] = ""
    logs.configure(as_json=wants_json_log(given, environ))
    metrics = _MetricsFile(given, environ)
    try:
        settings = _settings(given, environ)
        metrics.begin(settings)
        result = interruptible(lambda stop: work(settings, stop, **arguments))
    except (EtlError, PermissionError) as raised:
        error = ConnectError(unreadable(raised)) if isinstance(raised, PermissionError) else raised
        metrics.write(error.exit_code)
        report_error(str(error), error.exit_code, type(error).__name__, given, environ)
        if isinstance(error, CancelledError):
            _reraise_signal(error.signal)
        raise typer.Exit(error.exit_code) from None
    except Exception:
        metrics.write(1)
        if not wants_json_log(given, environ):
            raise
        log.critical("A bug: please report it.", exc_info=True)
        raise typer.Exit(1) from None
    metrics.write(result.exit_code, result.facts)
    good = result.exit_code in (0, NothingToDo.exit_code)
    if settings.json:
        _print_json({"ok": good, "exit_code": result.exit_code, **result.facts})
    elif result.primary or not settings.quiet or not good:
        _print(result.output, as_it_is=result.primary)  # of a failure, that is the error, which --quiet does not hide
    _warn_of_lost_output(every=settings.json)
    raise typer.Exit(result.exit_code)


def _settings(given: dict[str, Any], environ: Mapping[str, str]) -> Settings:
    """Resolve the settings and configure logging by them. Logs the use of a settings file that was not named."""
    from etl.runtime import logs

    default_file = default_settings_file(given, environ)
    given["config"] = default_file or given.get("config")
    settings = load_settings(given, environ)
    if (threads := environ.get("POLARS_MAX_THREADS", "")).isdecimal() and not int(threads):
        raise SettingsError(
            f"POLARS_MAX_THREADS is {threads}, and polars needs at least 1 thread: raise it, or unset it."
        )
    given |= {"json": settings.json, "log_format": settings.log_format}
    plain = not sys.stderr.isatty() or environ.get("NO_COLOR") or environ.get("TERM", "dumb") == "dumb"
    logs.configure(
        as_json=settings.log_format == "json", colors=not plain, quiet=settings.quiet, verbose=settings.verbose
    )
    if default_file:
        log.info('Settings are read from %s in this folder; --config "" reads none.', default_file)
    if unknown := unknown_variables(environ):
        log.warning("%s in the environment: bpr-etl has no such option, and ignores it.", ", ".join(unknown))
    _hide_password(settings, given)
    return settings


def report_error(message: str, exit_code: int, kind: str, given: Mapping[str, Any], environ: Mapping[str, str]) -> None:
    """Report a failed command: a line on stderr, and with `--json` an object on stdout."""
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
    """The file of `--metrics-file`: written when a command with this option ends, well or not; not for a dry run."""

    def __init__(self, given: Mapping[str, Any], environ: Mapping[str, str]) -> None:
        self._takes_it = "metrics_file" in given
        # Settings that can't be resolved are a failed run, too, so the file is named before they are.
        named = given.get("metrics_file") or environ.get(f"{ENVIRONMENT_PREFIX}METRICS_FILE")
        self._path = Path(named) if self._takes_it and named else None
        self._began = time.perf_counter()

    def begin(self, settings: Settings) -> None:
        """Use the resolved settings' file. Raises SettingsError if it can't be written."""
        wanted = settings.metrics_file if self._takes_it and not settings.dry_run else None
        self._path = None
        if wanted:
            from etl.reporting import metrics_file

            metrics_file.require_writable(Path(wanted), settings.out)
            self._path = Path(wanted)

    def write(self, exit_code: int, facts: Mapping[str, Any] | None = None) -> None:
        """Write the file. If it can't be written, that is a warning: the run's exit code stays."""
        if self._path is None:
            return
        from etl.pipeline.context import utc_now
        from etl.reporting import metrics_file
        from etl.runtime.run_record import peak_mib

        try:
            seconds, peak = time.perf_counter() - self._began, peak_mib() * 2**20
            metrics_file.write(self._path, metrics_file.Outcome(utc_now(), seconds, exit_code, peak, facts or {}))
        except (OSError, ValueError) as error:  # ValueError: a path that is none
            why = error.strerror if isinstance(error, OSError) else error
            log.warning("The metrics file %s could not be written: %s.", self._path, why)


def _hide_password(settings: Settings, given: Mapping[str, Any]) -> None:
    """Redact the resolved URL's password, and warn of one that other users of the machine can see."""
    hide_secrets(secrets_of(settings.database_url or "", settings.environ))
    if secrets_of(given.get("database_url") or "", {}):
        log.warning(
            "The password on the command line can be read by everybody on this machine while this runs (ps): "
            "put the URL into DATABASE_URL, or the password into PGPASSWORD or .pgpass."
        )


def _reraise_signal(number: int) -> None:
    """End as if the signal had not been caught: shells, make and systemd distinguish that from a failure."""
    sys.stdout.flush()
    sys.stderr.flush()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _print_json(answer: dict[str, Any]) -> None:
    """Print one object on one line, with control characters escaped as JSON does."""
    # In another encoding, the stream would escape missing characters in a way that JSON does not know.
    plain = codecs.lookup(sys.stdout.encoding or "ascii").name != "utf-8"
    text = json.dumps(answer, ensure_ascii=plain, default=str)
    typer.echo("".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text))


def _warn_of_lost_output(*, every: bool) -> None:
    """Warn if stdout could not be written. A closed stdout or pipe is reported only with `every`."""
    sys.stdout.flush()
    lost: OSError | None = getattr(sys.stdout, "lost", None)
    if lost and (every or lost.errno not in (errno.EPIPE, errno.EBADF)):
        log.warning(
            "The result could not be printed on stdout (%s). The exit code is not affected.",
            lost.strerror,
        )


def _print(output: Sequence[RenderableType | str], *, as_it_is: bool) -> None:
    from rich.console import Console
    from rich.text import Text

    # No markup: the output holds cities' names, which may be any text.
    console = Console(highlight=False, markup=False, emoji=False)
    unwrapped = as_it_is or not sys.stdout.isatty()  # a sentence in a file or a mail is one line
    for part in output:
        if isinstance(part, str | Text):
            longest = max(map(len, str(part).split()), default=0)
            # A path stays in one piece, and so does a command, which is indented.
            console.print(part, soft_wrap=unwrapped or longest > console.width or str(part).startswith("  "))
        else:
            console.print(part)


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep the garbage collector out of a block that imports libraries: it would look for 0.03 s, and find nothing."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # nor will it find any there later
        gc.enable()


@contextmanager
def observe_run(settings: Settings) -> Iterator[RunObserver]:
    """An observer that logs steps, and shows progress where stderr is a terminal."""
    from etl.runtime import logs

    root = logging.getLogger().handlers
    lines = next((each for each in root if isinstance(each, logs.LogHandler)), None) or logs.LogHandler(as_json=False)
    if sys.stderr.isatty() and not settings.quiet and settings.log_format == "console":
        from etl.runtime import progress

        with progress.show_progress(lines) as display:
            yield display
    else:
        yield logs.StepLogger(lines)


@contextmanager
def observe_step(settings: Settings, stop: CancelToken, name: str) -> Iterator[tuple[Progress, Callable[[int], None]]]:
    """The only step of a command, observed: yields what is called with its progress, and what counts its rows."""
    from etl.pipeline.context import utc_now
    from etl.runtime.run_record import RunRecord

    with observe_run(settings) as observer:
        record = RunRecord("", utc_now(), stop=stop, observer=observer)  # not a run, so without an id
        with record.step(name) as rows:
            yield record.progress, rows

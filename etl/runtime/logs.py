"""Log lines on stderr, through structlog: one an event, with run and step, for people or as JSON; ours and the libraries'."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from etl.errors import escape_control_characters
from etl.runtime.run_record import RunObserver, RunResult, Step

if TYPE_CHECKING:
    from structlog.typing import Processor

log = logging.getLogger("bpr-etl")

Event = MutableMapping[str, Any]
_SHORT = 8
"""Of a run's id, what a person is shown: it tells tonight's lines from last night's."""


class LogHandler(logging.Handler):
    """Where all log lines go. It knows which run and which step is being worked on, by thread; see `StepLogger`."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self.as_json = as_json
        self.sink: Callable[[str], object] = self._to_stderr
        self.run_id: str | None = None
        self.steps = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        """Put out a line."""
        try:
            self.sink(self.format(record))
        except Exception:  # noqa: BLE001 - a line that can't be written ends no night
            self.handleError(record)

    def setFormatter(self, fmt: logging.Formatter | None) -> None:  # noqa: N802 - logging's name
        """Refuse the formatter that `basicConfig` gives to every handler: ours is made when there is something to say."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        if self.formatter is None:
            self.formatter = _formatter(self)
        return super().format(record)

    @contextmanager
    def redirect(self, put: Callable[[str], object]) -> Iterator[None]:
        """Put lines out another way during the block: above what moves on a terminal."""
        self.sink = put
        try:
            yield
        finally:
            self.sink = self._to_stderr

    @staticmethod
    def _to_stderr(line: str) -> None:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def _formatter(logs: LogHandler) -> logging.Formatter:
    import structlog  # noqa: PLC0415 - it takes its time, and most commands have nothing to log
    from rich.console import Console  # noqa: PLC0415

    def context(_logger: Any, _method: str, event: Event) -> Event:
        """The time, the run and the step."""
        record: logging.LogRecord = event["_record"]
        moment = datetime.fromtimestamp(record.created, UTC)
        event["timestamp"] = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        run_id, step = logs.run_id, getattr(logs.steps, "name", None)
        first = {name: event.pop(name) for name in ("timestamp", "level", "event", "logger")}
        return {
            **first,
            **({"run_id": run_id if logs.as_json else run_id[:_SHORT]} if run_id else {}),
            **({"step": step} if step else {}),
            **{name: value for name, value in event.items() if not name.startswith("_ray_")},  # Ray marks every record
        }

    def plain(_logger: Any, _method: str, event: Event) -> Event:
        """Whoever named a city has no say in what the terminal does."""
        event["event"] = escape_control_characters(str(event["event"]))
        if event.get("logger") == log.name:
            del event["logger"]
        return event

    before: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        context,
    ]
    meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    if logs.as_json:
        last: list[Processor] = [
            meta,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ]
    else:
        console = Console(stderr=True)
        colors = console.is_terminal and not console.no_color
        traceback = structlog.dev.plain_traceback
        last = [
            meta,
            plain,
            structlog.dev.ConsoleRenderer(
                colors=colors, pad_event_to=0, pad_level=False, sort_keys=False, exception_formatter=traceback
            ),
        ]
    return structlog.stdlib.ProcessorFormatter(foreign_pre_chain=before, processors=last)


def configure(*, as_json: bool, quiet: bool = False, verbose: bool = False) -> LogHandler:
    """Send every log line of this process to stderr, from `quiet` (warnings) to `verbose` (each step)."""
    logs = LogHandler(as_json=as_json)
    logging.basicConfig(handlers=[logs], level=logging.WARNING if quiet else logging.INFO, force=True)
    log.setLevel(logging.DEBUG if verbose else logging.NOTSET)
    logging.getLogger("r2d2").setLevel(logging.ERROR)  # a library's own progress notes are not ours to print
    return logs


class StepLogger(RunObserver):
    """Says in the log which steps begin and end, and tells the log lines of a thread which step they belong to."""

    def __init__(self, logs: LogHandler) -> None:
        self._logs = logs

    def on_run_start(self, report: RunResult) -> None:
        """Remember the run's id."""
        self._logs.run_id = report.run_id

    def on_step_start(self, step: Step) -> None:
        """Say so, the first time; a step that is done by bucket begins once."""
        self._logs.steps.name = step.name
        if not step.seconds:
            log.debug("Step began.")

    def on_step_end(self, step: Step, seconds: float) -> None:
        """Say so, with the rows and the seconds so far."""
        rows: dict[str, Any] = {"rows": step.rows} if step.rows is not None else {}
        facts = {**rows, "seconds": round(step.seconds, 3)}
        if seconds == step.seconds:
            log.debug("Step ended.", extra=facts)
        else:  # a piece of it: nobody knows which is the last
            log.debug("Step went on.", extra={**facts, "piece_seconds": round(seconds, 3)})
        self._logs.steps.name = None


class CompositeObserver(RunObserver):
    """Several watchers as one."""

    def __init__(self, watchers: Sequence[RunObserver]) -> None:
        self._watchers = watchers

    def __call__(self, what: str, done: int, of: int) -> None:
        """Tell all."""
        for each in self._watchers:
            each(what, done, of)

    def on_run_start(self, report: RunResult) -> None:
        """Tell all."""
        for each in self._watchers:
            each.on_run_start(report)

    def on_step_start(self, step: Step) -> None:
        """Tell all."""
        for each in self._watchers:
            each.on_step_start(step)

    def on_step_end(self, step: Step, seconds: float) -> None:
        """Tell all."""
        for each in self._watchers:
            each.on_step_end(step, seconds)

"""Log lines on stderr, through structlog: one per event, with run and step, for people or as JSON. Libraries' lines too."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from etl.errors import escape_control_characters
from etl.runtime.run_record import RunObserver, RunRecord, Step

if TYPE_CHECKING:
    from structlog.typing import Processor

log = logging.getLogger("bpr-etl")

Event = MutableMapping[str, Any]
_SHORT_ID = 8
"""Characters of the run's id that a person is shown: enough to tell two runs apart."""

_step: ContextVar[str | None] = ContextVar("step", default=None)
"""The step that this thread works on. A new thread begins without one."""


class LogHandler(logging.Handler):
    """Writes all log lines. `run_id` is the process's; the step is each thread's. `StepLogger` sets both."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self.as_json = as_json
        self.sink: Callable[[str], object] = self._to_stderr
        self.run_id: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        try:
            self.sink(self.format(record))
        except Exception:  # noqa: BLE001 - a line that can't be written must not end a run
            self.handleError(record)

    def format(self, record: logging.LogRecord) -> str:
        """Returns the record as a line."""
        if self.formatter is None:
            self.formatter = _formatter(self)
        return super().format(record)

    @contextmanager
    def redirect(self, sink: Callable[[str], object]) -> Iterator[None]:
        """Write lines elsewhere during the block: above the progress display."""
        self.sink = sink
        try:
            yield
        finally:
            self.sink = self._to_stderr

    @staticmethod
    def _to_stderr(line: str) -> None:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def _formatter(logs: LogHandler) -> logging.Formatter:
    import structlog  # noqa: PLC0415 - slow to import, and most commands log nothing
    from rich.console import Console  # noqa: PLC0415

    def context(_logger: Any, _method: str, event: Event) -> Event:
        moment = datetime.fromtimestamp(event["_record"].created, UTC)
        event["timestamp"] = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if logs.run_id:
            event["run_id"] = logs.run_id if logs.as_json else logs.run_id[:_SHORT_ID]
        if step := _step.get():
            event["step"] = step
        return event

    def plain(_logger: Any, _method: str, event: Event) -> Event:
        """Escapes control characters, since a line may hold names from the database; omits our own logger's name."""
        event["event"] = escape_control_characters(str(event["event"]))
        if event.get("logger") == log.name:
            del event["logger"]
        return event

    before: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        context,
        structlog.stdlib.ExtraAdder(),
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
    """Send every log line of this process to stderr: warnings alone with `quiet`, each step with `verbose`."""
    logs = LogHandler(as_json=as_json)
    root = logging.getLogger()
    root.handlers[:] = [logs]
    root.setLevel(logging.WARNING if quiet else logging.INFO)
    log.setLevel(logging.DEBUG if verbose else logging.NOTSET)
    for name in ("r2d2", "openlineage", "urllib3"):  # connectorx's pool, what sends lineage: their retries are no news
        logging.getLogger(name).setLevel(logging.ERROR)
    return logs


class StepLogger(RunObserver):
    """Logs which steps begin and end, and marks the log lines of each thread with its step."""

    def __init__(self, logs: LogHandler) -> None:
        self._logs = logs

    def on_run_start(self, record: RunRecord) -> None:
        self._logs.run_id = record.run_id

    def on_step_start(self, step: Step) -> None:
        _step.set(step.name)
        if not step.seconds:  # a step that is done by bucket begins once
            log.debug("Step began.")

    def on_step_end(self, step: Step, seconds: float) -> None:
        rows: dict[str, Any] = {"rows": step.rows} if step.rows is not None else {}
        facts = {**rows, "seconds": round(step.seconds, 3)}
        if seconds == step.seconds:
            log.debug("Step ended.", extra=facts)
        else:  # one more piece of it; which piece is the last is not known here
            log.debug("Step went on.", extra={**facts, "piece_seconds": round(seconds, 3)})
        _step.set(None)

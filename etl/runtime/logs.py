"""Log lines on stderr: one per event, with run and step, for people or as JSON. Libraries' lines too."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from etl.errors import escape_control_characters
from etl.runtime.run_record import RunObserver, RunRecord, Step

log = logging.getLogger("bpr-etl")

_SHORT_ID = 8
"""Characters of the run's id that a person is shown: enough to tell two runs apart."""

_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}
"""What every record has; all else was added by `extra`."""

_TRACEBACKS = logging.Formatter()
_BOLD, _DIM, _CYAN = 1, 2, 36
_COLORS = {"debug": (32,), "info": (32,), "warning": (33,), "error": (31,), "critical": (31,)}

_step: ContextVar[str | None] = ContextVar("step", default=None)
"""The step that this thread works on. A new thread begins without one."""


class LogHandler(logging.Handler):
    """Writes all log lines. `run_id` is the process's; the step is each thread's. `StepLogger` sets both."""

    def __init__(self, *, as_json: bool, colors: bool = False) -> None:
        super().__init__()
        self.as_json, self.colors = as_json, colors
        self.sink: Callable[[str], object] = self._to_stderr
        self.run_id: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        try:
            self.sink(self.format(record))
        except Exception:  # noqa: BLE001 - a line that can't be written must not end a run
            self.handleError(record)

    def format(self, record: logging.LogRecord) -> str:
        """Returns the record as a line: time, level, event, logger, run and step, and what `extra` added."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        level, event, step = record.levelname.lower(), record.getMessage(), _step.get()
        run_id = self.run_id and (self.run_id if self.as_json else self.run_id[:_SHORT_ID])
        extra = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        # Ray marks every record.
        extra = {name: value for name, value in extra.items() if not name.startswith("_ray_")}
        facts = {**({"run_id": run_id} if run_id else {}), **({"step": step} if step else {}), **extra}
        trace = _TRACEBACKS.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else None
        if self.as_json:
            first = {"timestamp": moment, "level": level, "event": event, "logger": record.name}
            return json.dumps({**first, **facts, **({"exception": trace} if trace else {})}, default=str)
        # Control characters are escaped, since a line may hold names from the database. Our own logger's name is omitted.
        pieces = [self._paint(moment, _DIM), f"[{self._paint(level, *_COLORS.get(level, ()))}]"]
        pieces += [self._paint(escape_control_characters(event), _BOLD)]
        pieces += [f"[{self._paint(record.name, _BOLD)}]"] if record.name != log.name else []
        pieces += [f"{self._paint(name, _CYAN)}={_shown(value)}" for name, value in facts.items()]
        return " ".join(pieces) + (f"\n{trace}" if trace else "")

    def _paint(self, text: str, *codes: int) -> str:
        return f"\x1b[{';'.join(map(str, codes))}m{text}\x1b[0m" if self.colors and codes else text

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


def _shown(value: object) -> str:
    """Returns a fact as text, in quotes where its end would not be seen."""
    plain = isinstance(value, str) and value.isprintable() and not set(value) & set(" ='\"")
    return str(value) if plain else repr(value)


def configure(*, as_json: bool, colors: bool = False, quiet: bool = False, verbose: bool = False) -> LogHandler:
    """Send every log line of this process to stderr: warnings alone with `quiet`, each step with `verbose`."""
    logs = LogHandler(as_json=as_json, colors=colors)
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

"""The progress display on a terminal: a line for each step that takes longer than a second.

Apart from `etl.runtime.logs`, so that a run without a terminal need not import rich's live display. Drawn on our own table:
`rich.progress` has no tasks that appear only after a while.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from etl.runtime.logs import LogHandler, StepLogger
from etl.runtime.run_record import RunRecord, Step

MIN_SECONDS = 1.0
"""Seconds that a step takes before it is shown. A step done in pieces stays for as long when it rests."""

_MIN_TOTAL_SECONDS = 0.3
"""Seconds that such a step must have taken in total to be shown while it rests."""

_BAR_WIDTH = 20


@dataclass
class _Line:
    """A step on display: when it first began and last rested, how often it went on, pieces done and in all."""

    step: Step
    began: float
    rested: float = 0.0
    times: int = 0
    what: str = ""
    done: int = 0
    total: int = 0

    def shown(self, now: float) -> bool:
        """Whether it is worth a line: under way for long enough, or at rest for a moment."""
        pauses = self.times > 1 and self.step.seconds >= _MIN_TOTAL_SECONDS and now - self.rested < MIN_SECONDS
        return (self.step.since is not None or self.done < self.total or pauses) and now - self.began >= MIN_SECONDS

    def cells(self, now: float) -> list[str]:
        """Returns pieces, rows, rows a second, time so far, and time left if the other pieces take as long as those done."""
        seconds = self.step.seconds + (now - self.step.since if self.step.since is not None else 0.0)
        rows, left = self.step.rows, ""
        if 0 < self.done < self.total:
            left = f"{_clock((now - self.began) / self.done * (self.total - self.done))} left"
        return [
            f"{self.done:,}/{self.total:,}" if self.total > 1 else "",
            f"{rows:,} rows" if rows else "",
            f"{rows / seconds:,.0f} rows/s" if rows and seconds else "",
            _clock(now - self.began),
            left,
        ]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class ProgressDisplay(StepLogger):
    """The steps under way, as a table that rich draws again and again; logs them, too. Several threads write, one reads."""

    def __init__(self, logs: LogHandler, *, narrow: bool = False) -> None:
        super().__init__(logs)
        self._lines: dict[str, _Line] = {}
        self._narrow = narrow
        self._spinner = Spinner("dots")

    def on_run_start(self, record: RunRecord) -> None:
        super().on_run_start(record)
        self._lines = {}  # those of an attempt that came to nothing

    def on_step_start(self, step: Step) -> None:
        super().on_step_start(step)
        self._lines.setdefault(step.name, _Line(step, time.perf_counter(), what=step.name)).times += 1

    def on_step_end(self, step: Step, seconds: float) -> None:
        super().on_step_end(step, seconds)
        if line := self._lines.get(step.name):
            line.rested = time.perf_counter()

    def on_progress(self, what: str, done: int, total: int) -> None:
        if line := self._lines.get(what.partition(":")[0]):
            if what != line.what:  # each model of a probe has its own time
                line.what, line.began = what, time.perf_counter()
            line.done, line.total = done, total

    def __rich__(self) -> Table:
        now = time.perf_counter()
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        for _ in range(5):
            table.add_column(justify="right", no_wrap=True)
        for line in [each for each in list(self._lines.values()) if each.shown(now)]:
            name = Table.grid(padding=(0, 1))
            name.add_row(self._spinner.render(now), Text(line.what, no_wrap=True, overflow="ellipsis"))
            width = _BAR_WIDTH // 2 if self._narrow else _BAR_WIDTH
            bar = ProgressBar(line.total, line.done, width) if line.total > 1 else ProgressBar(width=width, pulse=True)
            table.add_row(name, bar, *(cell for cell in line.cells(now) if not (self._narrow and "rows/s" in cell)))
        return table


@contextmanager
def show_progress(logs: LogHandler) -> Iterator[ProgressDisplay]:
    """Show the steps on stderr during the block; log lines go above them."""
    console = Console(stderr=True)
    display = ProgressDisplay(logs, narrow=console.width < 100)
    with (
        Live(
            display, console=console, transient=True, refresh_per_second=8, redirect_stdout=False, redirect_stderr=False
        ),
        logs.redirect(lambda line: console.print(Text.from_ansi(line), soft_wrap=True)),
    ):
        yield display

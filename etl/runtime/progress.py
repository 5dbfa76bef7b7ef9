"""What moves on a terminal while a command works: a line for each step that takes longer than a second."""

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

from etl.runtime.logs import LogHandler
from etl.runtime.run_record import RunObserver, RunResult, Step

MIN_SECONDS = 1.0
"""Seconds that a step may take without being shown; one done piece by piece stays so long when it rests, too."""

_MIN_TOTAL_SECONDS = 0.3
"""Seconds that such a step must have taken altogether to be shown while it rests."""

_BAR = 20


@dataclass
class _Line:
    """A step as it is watched: when it first began and last rested, how often it went on, and its pieces that are done."""

    step: Step
    began: float
    rested: float = 0.0
    times: int = 0
    what: str = ""
    done: int = 0
    of: int = 0

    def shown(self, now: float) -> bool:
        """Whether it is worth a line: under way for long enough."""
        pauses = self.times > 1 and self.step.seconds >= _MIN_TOTAL_SECONDS and now - self.rested < MIN_SECONDS
        return (self.step.since is not None or self.done < self.of or pauses) and now - self.began >= MIN_SECONDS

    def cells(self, now: float) -> list[str]:
        """Pieces, rows, rows a second, seconds so far, and those left where the pieces tell."""
        seconds = self.step.seconds + (now - self.step.since if self.step.since is not None else 0.0)
        rows, left = self.step.rows, ""
        if 0 < self.done < self.of:
            left = f"{_clock((now - self.began) / self.done * (self.of - self.done))} left"
        return [
            f"{self.done:,}/{self.of:,}" if self.of > 1 else "",
            f"{rows:,} rows" if rows else "",
            f"{rows / seconds:,.0f} rows/s" if rows and seconds else "",
            _clock(now - self.began),
            left,
        ]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class ProgressDisplay(RunObserver):
    """The steps under way, as a table that rich draws again and again. Told by several threads, read by one more."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._spinner = Spinner("dots")

    def __call__(self, what: str, done: int, of: int) -> None:
        """`what` is a step's name, or that and a colon and more."""
        if line := self._lines.get(what.partition(":")[0]):
            if what != line.what:
                line.what, line.began = what, time.perf_counter()
            line.done, line.of = done, of

    def on_run_start(self, report: RunResult) -> None:  # noqa: ARG002 - a Watcher's
        """Forget the lines of an attempt that came to nothing."""
        self._lines = {}

    def on_step_start(self, step: Step) -> None:
        """A line more, as soon as it has been under way for long enough."""
        self._lines.setdefault(step.name, _Line(step, time.perf_counter(), what=step.name)).times += 1

    def on_step_end(self, step: Step, seconds: float) -> None:  # noqa: ARG002 - a Watcher's
        """It rests, or is done."""
        if line := self._lines.get(step.name):
            line.rested = time.perf_counter()

    def __rich__(self) -> Table:
        now = time.perf_counter()
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        for _ in range(5):
            table.add_column(justify="right", no_wrap=True)
        for line in [each for each in list(self._lines.values()) if each.shown(now)]:
            name = Table.grid(padding=(0, 1))
            name.add_row(self._spinner.render(now), Text(line.what))
            bar = ProgressBar(line.of, line.done, _BAR) if line.of > 1 else ProgressBar(width=_BAR, pulse=True)
            table.add_row(name, bar, *line.cells(now))
        return table


@contextmanager
def show_progress(logs: LogHandler) -> Iterator[RunObserver]:
    """Steps move on stderr during the block; log lines go above them."""
    shown, console = ProgressDisplay(), Console(stderr=True)
    with (
        Live(
            shown, console=console, transient=True, refresh_per_second=8, redirect_stdout=False, redirect_stderr=False
        ),
        logs.redirect(lambda line: console.print(Text.from_ansi(line), soft_wrap=True)),
    ):
        yield shown

"""What moves on a terminal: the steps that take longer than a second, with rows, rate and the time that is left."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from rich.console import Console

from etl.runtime import progress
from etl.runtime import run_record as journal
from etl.runtime.logs import LogHandler
from etl.runtime.progress import ProgressDisplay
from etl.runtime.run_record import RunRecord


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (journal, progress):
        monkeypatch.setattr(module, "time", clock)
    return clock


def seen(lines: ProgressDisplay) -> list[str]:
    console = Console(width=160, color_system=None)
    with console.capture() as captured:
        console.print(lines)
    return [
        " ".join(line.replace("━", "").replace("╺", "").replace("╸", "").split()[1:])
        for line in captured.get().splitlines()
    ]


@pytest.fixture
def night(clock: Clock) -> tuple[RunRecord, ProgressDisplay]:  # noqa: ARG001 - its clock begins first
    lines = ProgressDisplay(LogHandler(as_json=False))
    return RunRecord("1", datetime(2026, 1, 1, tzinfo=UTC), observer=lines), lines


def test_a_step_is_shown_once_it_has_taken_a_second_and_while_it_goes_on(night, clock):
    report, lines = night
    with report.step("read") as rows:
        rows(500)
        clock.now += 0.9
        assert seen(lines) == []
        clock.now += 0.1
        assert seen(lines) == ["read 500 rows 500 rows/s 0:01"]
        rows(9_500)
        clock.now += 99
        assert seen(lines) == ["read 10,000 rows 100 rows/s 1:40"]
        clock.now += 3_600
        assert seen(lines)[0].endswith("1:01:40")
    assert seen(lines) == []


def test_pieces_that_are_done_say_what_is_left(night, clock):
    report, lines = night
    with report.step("stage files"):
        lines.on_progress("stage files", 0, 8)
        clock.now += 2
        assert seen(lines) == ["stage files 0/8 0:02"]
        lines.on_progress("stage files", 2, 8)
        clock.now += 2
        assert seen(lines) == ["stage files 2/8 0:04 0:12 left"]
        lines.on_progress("stage files", 8, 8)
        assert seen(lines) == ["stage files 8/8 0:04"]


def test_a_step_in_pieces_stays_while_it_rests_for_a_moment(night, clock):
    report, lines = night
    for _ in range(3):
        with report.step("compact"):
            clock.now += 0.4
        clock.now += 0.2
    assert seen(lines) == ["compact 0:01"]
    clock.now += 1
    assert seen(lines) == []


def test_a_step_that_is_over_in_no_time_is_never_shown(night, clock):
    report, lines = night
    for _ in range(2):
        with report.step("delete"):
            clock.now += 0.01
        clock.now += 0.99
        assert seen(lines) == []


def test_steps_side_by_side_have_a_line_each_and_an_attempt_that_begins_anew_has_none(night, clock):
    report, lines = night
    with report.step("rankings"), report.step("write events"):
        clock.now += 1
        assert [line.split(" 0:")[0] for line in seen(lines)] == ["rankings", "write events"]
        RunRecord("2", datetime(2026, 1, 1, tzinfo=UTC), observer=lines)
        assert seen(lines) == []


def test_a_probe_s_models_are_named_each_with_its_own_time(night, clock):
    report, lines = night
    with report.step("probe"):
        lines.on_progress("probe: variant 1 of 2", 1, 10)
        clock.now += 5
        lines.on_progress("probe: variant 2 of 2", 1, 10)
        assert seen(lines) == []
        clock.now += 1
        assert seen(lines) == ["probe: variant 2 of 2 1/10 0:01 0:09 left"]


def test_what_nobody_began_is_not_shown(night, clock):
    _, lines = night
    lines.on_progress("something else", 1, 2)
    clock.now += 5
    assert seen(lines) == []

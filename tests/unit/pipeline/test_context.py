"""The result of a run: whom its progress is passed to, and what a cancelled run does."""

from __future__ import annotations

import pytest

from etl.pipeline.context import new_result, utc_now
from etl.runtime.cancellation import CancelledError, CancelToken
from etl.runtime.run_record import RunObserver


def test_progress_may_be_a_function_or_an_observer():
    seen: list[tuple[str, int, int]] = []

    class Observer(RunObserver):
        def on_progress(self, what: str, done: int, total: int) -> None:
            seen.append((what, done, total))

    for progress in (lambda *piece: seen.append(piece), Observer(), None):
        new_result(utc_now, CancelToken(), progress).progress("rankings", 1, 2)
    assert seen == [("rankings", 1, 2)] * 2


def test_a_cancelled_run_stops_at_its_next_step_or_piece():
    stop = CancelToken()
    result = new_result(utc_now, stop, None, ["a note"])
    assert result.notes == ["a note"]
    with result.step("read"):
        stop.cancel()
        with pytest.raises(CancelledError):
            result.progress("read", 1, 2)
    with pytest.raises(CancelledError), result.step("personas"):
        raise AssertionError
    assert [name for name, *_ in result.steps] == ["read"]


def test_each_attempt_has_an_id_of_its_own():
    one, two = (new_result(utc_now, CancelToken(), None) for _ in range(2))
    assert one.run_id != two.run_id

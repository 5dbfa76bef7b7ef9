"""The connection is cut, stalled, delayed or ended by an administrator: what became of COMMIT is looked up, not guessed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from random import Random

import pytest

from etl.errors import ConnectError, EtlError
from etl.postgres import transaction as database
from etl.postgres.connection import Connection
from tests.faults.nights import SECONDS_TO_STOP, SEEDS, Ended, Nights, call, end_sessions
from tests.faults.proxy import Message, is_commit, is_commit_reply, is_copy_data, proxy


@pytest.fixture(scope="module")
def nights(make_database, small_world_template, tmp_path_factory) -> Nights:
    return Nights.prepared(make_database(small_world_template), tmp_path_factory.mktemp("cuts") / "out")


def require_told(nights: Nights, before, seed: int, error: EtlError | None) -> str:
    """What the run said is what is: success is all of it, an error leaves the folder as it was."""
    state = nights.require_before_or_after(before, seed)
    if error is None:
        assert state == "after"
    else:
        assert isinstance(error, ConnectError), error
        assert state in {"before", "folder behind"}
        assert "nothing was written" not in str(error).lower() or state == "before", error
    return state


def test_cuts_at_any_message(nights, effort, tally):
    """A night's n-th message, of whoever, is lost together with its connection."""
    with proxy(nights.url) as counting:
        assert nights.night(nights.other_seed(), counting.url(nights.url)) is None
        total = counting.messages
    random = Random(1)  # noqa: S311 - no secret
    number = effort(4, 150)
    for _ in range(number):
        n = random.randint(1, total) if random.random() < 0.6 else random.randint(max(1, total - 40), total)
        seen = 0
        lock = threading.Lock()

        def judge(_message, n=n, lock=lock):
            nonlocal seen
            with lock:
                seen += 1
                return "cut" if seen == n else None

        seed, before = nights.other_seed(), nights.state()
        with proxy(nights.url, judge=judge) as cutting:
            error = nights.night(seed, cutting.url(nights.url))
        nights.require_no_session()
        require_told(nights, before, seed, error)
        tally("connections cut at any message")
    nights.require_mended(SEEDS[0])


@pytest.mark.parametrize(
    ("lost", "committed"),
    [
        ("the request", False),
        ("the request, after it arrived", True),
        ("the reply", True),
        ("all after the reply", True),
    ],
)
def test_a_lost_commit_is_looked_up(nights, tally, lost, committed):
    """Exactly before and exactly after COMMIT and its reply; the server can be asked afterwards."""

    def judge(message):
        if lost.startswith("the request") and is_commit(message):
            return "cut" if lost == "the request" else "pass and cut"
        if is_commit_reply(message) and not lost.startswith("the request"):
            return "cut" if lost == "the reply" else "pass and cut"
        return None

    seed, before = nights.other_seed(), nights.state()
    with proxy(nights.url, judge=judge) as cutting:
        error = nights.night(seed, cutting.url(nights.url))
        assert cutting.cuts
    state = require_told(nights, before, seed, error)
    tally("COMMITs lost and looked up")
    if lost == "the request":
        assert "COMMIT was not done" in str(error)
    assert (state == "after") is committed
    assert (error is None) is committed


def test_a_commit_whose_outcome_nobody_can_tell_publishes_nothing(nights, tally, monkeypatch):
    """The reply is lost, and the server stays out of reach: said, and the next night mends it."""
    monkeypatch.setattr(database, "SETTLE_SECONDS", 0.5)
    seed, before = nights.other_seed(), nights.state()
    with proxy(nights.url) as cutting:

        def judge(message):
            if is_commit_reply(message):
                cutting.refusing = True
                return "cut"
            return None

        cutting.judge = judge
        error = nights.night(seed, cutting.url(nights.url))
    assert "could not be asked for its outcome. Nothing was published" in str(error)
    assert require_told(nights, before, seed, error) == "folder behind"
    tally("COMMITs lost for good")
    nights.require_mended(seed)


def stalled_night(nights: Nights, seed: int, at: Callable[[Message], bool]) -> Ended:
    """A night over a line that stalls for good at the first such message, and SIGTERM then: the end comes in time."""
    stalled = threading.Event()
    with proxy(nights.url) as stalling:

        def judge(message):
            if not stalled.is_set() and at(message):
                stalled.set()
                stalling.stall()
                stalling.open.wait()

        stalling.judge = judge

        def meanwhile(process):
            assert stalled.wait(60)
            process.terminate()
            meanwhile.asked = time.monotonic()

        ended = call(nights.command(seed), stalling.url(nights.url), meanwhile=meanwhile)
        assert time.monotonic() - meanwhile.asked < SECONDS_TO_STOP
    assert ended.code == -15
    return ended


def test_a_stalled_commit_ends_at_a_signal(nights, tally):
    """SIGTERM while COMMIT's reply is on its way for ever: the end says that it does not know."""
    seed, before = nights.other_seed(), nights.state()
    ended = stalled_night(nights, seed, is_commit_reply)
    assert "its outcome is not known" in ended.err
    assert nights.require_before_or_after(before, seed) == "folder behind"
    tally("stalls ended by a signal")
    nights.require_mended(seed)


def test_a_stall_in_mid_run_ends_at_a_signal(nights, tally):
    """Everything stalls while events are copied."""
    seed, before = nights.other_seed(), nights.state()
    ended = stalled_night(nights, seed, is_copy_data)
    assert "Stopped by SIGTERM" in ended.err
    nights.require_no_session()
    assert nights.require_before_or_after(before, seed) == "before"
    tally("stalls ended by a signal")


def test_a_slow_line_changes_nothing(nights, effort, tally):
    seed = nights.other_seed()
    with proxy(nights.url, delay=effort(1, 4) / 2000) as slow:
        assert nights.night(seed, slow.url(nights.url)) is None
    assert nights.published() == nights.settled[seed][1]
    tally("nights over a slow line")


def test_an_administrator_ends_the_session_at_any_statement(nights, effort, tally, monkeypatch):
    """pg_terminate_backend before the n-th thing that is asked of the server."""
    original = Connection._mapped_errors
    count = 0
    end_at = 0

    def counted(self, *table):
        nonlocal count
        count += 1
        if count == end_at:
            end_sessions(nights.url)
        return original(self, *table)

    monkeypatch.setattr(Connection, "_mapped_errors", counted)
    assert nights.night(nights.other_seed()) is None
    total = count
    points = list(range(2, total + 1, max(1, total // effort(5, total))))
    for point in points:
        seed, before = nights.other_seed(), nights.state()
        count, end_at = 0, point
        error = nights.night(seed)
        end_at = 0
        require_told(nights, before, seed, error)
        tally("sessions ended by an administrator, at a statement")
    nights.require_mended(SEEDS[0])


def test_an_administrator_ends_the_session_at_any_time(nights, effort, tally):
    """pg_terminate_backend while statements run: the time is random."""
    random = Random(7)  # noqa: S311 - no secret
    for _ in range(effort(3, 60)):
        seed, before = nights.other_seed(), nights.state()
        after = random.uniform(0.02, 0.6)

        def end(after=after):
            time.sleep(after)
            end_sessions(nights.url)

        ending = threading.Thread(target=end)
        ending.start()
        error = nights.night(seed)
        ending.join()
        require_told(nights, before, seed, error)
        tally("sessions ended by an administrator, at a time")
    nights.require_mended(SEEDS[0])

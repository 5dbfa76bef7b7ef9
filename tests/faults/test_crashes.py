"""A night is hit by SIGKILL, SIGTERM or Ctrl-C, at every boundary and at any moment: before or after, never between."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections import Counter
from random import Random

import psycopg
import pytest

import etl
from etl.snapshots.reading.snapshot import LATEST, MANIFEST
from etl.snapshots.validation import validate_snapshot
from tests.faults.nights import SECONDS_TO_STOP, SEEDS, Ended, Nights, call, until_it_waits

WAITS = {
    "a row that the backfill wants": 'SELECT FROM "BehavioralSignal" FOR UPDATE',
    "the nodes, which connectorx reads": 'LOCK "ActivityNode" IN ACCESS EXCLUSIVE MODE',
    "the slots, which are streamed": 'LOCK "ItinerarySlot" IN ACCESS EXCLUSIVE MODE',
    "the events, which are written": 'LOCK "RankingEvent" IN SHARE MODE',
}
"""What somebody else holds, so that a query of ours takes as long as one likes."""

STEPS = (
    *(
        "read",
        "compare",
        "delete",
        "personas",
        "write personas",
        "read back",
        "registry",
        "rankings",
        "write events",
        "compact",
    ),
    *("stage files", "report", "secure files", "backfill", "check", "switch"),
)
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT")
NUMBER = {"SIGKILL": 9, "SIGTERM": 15, "SIGINT": 2}


@pytest.fixture(scope="module")
def crash_world(make_database, small_world_template):
    """A database of this module's own, with the small synthetic world."""
    return make_database(small_world_template)


@pytest.fixture(scope="module")
def nights(crash_world, tmp_path_factory) -> Nights:
    return Nights.prepared(crash_world, tmp_path_factory.mktemp("crashes") / "out")


@pytest.fixture(scope="module")
def calls(nights) -> int:
    """How many calls and returns of functions of `etl` a night has."""
    ended = call(nights.command(SEEDS[1]), nights.url, {"at": "count"})
    return int(re.search(r"calls: (\d+)", ended.err)[1])


def hit(nights: Nights, spec: dict[str, object], write: str = "changes") -> str:
    """A night of the seed whose rows aren't there, hit; gives what state it left."""
    seed = nights.other_seed()
    nights.forget_versions()
    before = nights.state()
    ended = call(nights.command(seed, "--write", write), nights.url, spec)
    number = NUMBER[spec["signal"]]
    state = nights.require_before_or_after(before, seed)
    if ended.code == 0:
        # The signal came when COMMIT was under way, or never: then the night is whole.
        assert state == "after", ended.err
        assert spec["signal"] != "SIGKILL" or "never" in spec, "the night was over before it was hit"
        return "finished"
    assert ended.code == -number, ended.err
    if spec["signal"] != "SIGKILL":
        assert f"Stopped by {spec['signal']}" in ended.err
        assert "Traceback" not in ended.err
        nights.require_no_session()
        if "nothing was committed" in ended.err:
            assert state == "before"
    return state


def long_query(nights: Nights, held: str, name: str) -> tuple[Ended, float]:
    """A night that waits for what somebody holds, hit while it waits; gives its end, and the seconds that it took to come."""
    asked = 0.0

    def meanwhile(process: subprocess.Popen[str]) -> None:
        nonlocal asked
        until_it_waits(nights.url, process)
        process.send_signal(NUMBER[name])
        asked = time.monotonic()

    nights.forget_versions()
    with psycopg.connect(nights.url) as holder:
        holder.execute(WAITS[held])
        ended = call(nights.command(SEEDS[0]), nights.url, meanwhile=meanwhile)
        took = time.monotonic() - asked
        # Ours are gone while the other one still holds what they waited for.
        deadline = time.monotonic() + SECONDS_TO_STOP
        with psycopg.connect(nights.url, autocommit=True) as looking:
            while looking.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid NOT IN (%s, %s) "
                "AND backend_type = 'client backend'",
                (looking.info.backend_pid, holder.info.backend_pid),
            ).fetchone()[0]:
                assert time.monotonic() < deadline, "a server process of ours is left"
                time.sleep(0.05)
    return ended, took


@pytest.mark.parametrize("held", WAITS)
def test_a_long_query_ends_at_a_signal(nights, effort, tally, held):
    """It is cancelled on the server; of a killed run, too, since the server looks whether we are still there."""
    names = SIGNALS if effort(1, 3) == 3 else (SIGNALS[(list(WAITS).index(held) + 1) % 3],)
    for name in names:
        if name == "SIGKILL" and "connectorx" in held:
            # It waits for the lock before its session is told to look after us: an idle waiter, which ends with the wait.
            continue
        before = nights.state()
        ended, took = long_query(nights, held, name)
        assert ended.code == -NUMBER[name], ended.err
        assert took < SECONDS_TO_STOP
        if name != "SIGKILL":
            assert f"Stopped by {name}: nothing was committed or published." in ended.err
        assert nights.published() == before[1]
        tally("long queries ended by a signal")


def test_other_commands_end_at_a_signal(nights, tmp_path, tally):
    """An export that waits for the events, and a validation."""
    for command in (("export", "--out", str(tmp_path / "out")), ("validate",)):
        with psycopg.connect(nights.url) as holder:
            holder.execute('LOCK "RankingEvent" IN ACCESS EXCLUSIVE MODE')

            def meanwhile(process: subprocess.Popen[str]) -> None:
                until_it_waits(nights.url, process)
                process.send_signal(NUMBER["SIGTERM"])

            ended = call(command, nights.url, meanwhile=meanwhile)
        assert ended.code == -NUMBER["SIGTERM"], ended.err
        assert "Stopped by SIGTERM: nothing was committed or published." in ended.err
        tally("long queries ended by a signal")
    nights.require_no_session()


def all_points() -> list[dict[str, object]]:
    """Every named moment: both edges of every step, early and late in COPY and in writing."""
    return [
        *({"at": "step", "name": name, "edge": edge} for name in STEPS for edge in ("begin", "end")),
        *({"at": "copy", "n": n} for n in (1, 2)),
        *({"at": "write", "n": n} for n in (1, 3, 6)),
    ]


def test_the_steps_hit_are_the_steps_there_are(small_world, settings_for):
    assert tuple(name for name, *_ in etl.run(settings_for(small_world)).steps) == STEPS


@pytest.mark.parametrize("name", SIGNALS)
def test_every_boundary(nights, effort, tally, name):
    """Quick: a few of the moments for each signal; `--full` has all of them."""
    points = all_points()
    third = SIGNALS.index(name)
    chosen = effort(len(points[third::12]), len(points))
    for number, spec in enumerate(points if chosen == len(points) else points[third::12]):
        ways = ("changes",) if spec.get("name") == "compare" else ("changes", "replace")  # which compares nothing
        hit(nights, {**spec, "signal": name}, ways[number % len(ways)])
        tally(f"named moments hit by {name}")
    nights.require_mended(SEEDS[0])


@pytest.mark.parametrize("name", SIGNALS)
def test_while_unchanged_files_are_linked(nights, effort, tally, name):
    """A run on unchanged data is hit while it links the newest snapshot's files, and while the links are put on disk.

    The snapshot that the files belong to stays whole and the newest; the next run links them all.
    """
    seed = SEEDS[0]
    nights.require_mended(seed)
    files = len(nights.published())
    points = [
        {"at": at, "n": n} for at, numbers in (("link", (1, files // 2, files)), ("upload", (1,))) for n in numbers
    ]
    step = effort(3, 1)
    for point in points[SIGNALS.index(name) % step :: step]:
        newest = (nights.out / LATEST).read_text()
        nights.forget_versions()  # else nothing would be lost with the transaction
        before = nights.state()
        ended = call(nights.command(seed), nights.url, {**point, "signal": name})
        assert ended.code == -NUMBER[name], ended.err
        assert nights.require_before_or_after(before, seed) == "before"
        assert (nights.out / LATEST).read_text() == newest
        assert not [each for each in validate_snapshot(nights.out / "snapshots" / newest) if each.broken]
        nights.require_mended(seed)
        manifest = json.loads((nights.out / "snapshots" / (nights.out / LATEST).read_text() / MANIFEST).read_text())
        assert manifest["linked_from"] == newest
        tally(f"moments of linking hit by {name}")


@pytest.mark.parametrize("part", range(4))
def test_any_moment(nights, calls, effort, tally, part):
    """The moment is the n-th call or return of a function of `etl`, the signal any; one in eight is mended at once."""
    random = Random(part)  # noqa: S311 - no secret
    states: Counter[str] = Counter()
    for number in range(effort(1, 260)):
        # A tenth of them late, where COMMIT and the switch are.
        n = random.randint(1, calls) if random.random() < 0.9 else random.randint(int(calls * 0.97), calls)
        spec = {"at": "call", "n": n, "signal": random.choice(SIGNALS), "never": "the count varies a little"}
        states[hit(nights, spec, random.choice(("changes", "replace")))] += 1
        tally(f"random moments hit by {spec['signal']}")
        if number % 8 == 7:
            nights.require_mended(random.choice(SEEDS))
            tally("nights after a crash, compared byte by byte")
    for state, times in states.items():
        tally(f"crashes that left: {state}", times)
    nights.require_mended(SEEDS[0])
    tally("nights after a crash, compared byte by byte")

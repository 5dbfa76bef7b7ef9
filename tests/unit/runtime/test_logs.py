"""Log lines: one an event, with run and step, for people or as JSON; whoever names a city forges none."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest

from etl.runtime.logs import LogHandler, StepLogger, log
from etl.runtime.run_record import RunRecord


@pytest.fixture
def listen() -> Iterator[Callable[..., tuple[LogHandler, list[str]]]]:
    """Listen to our log and to a library's, at its loudest, and hand over the lines."""
    library, handlers = logging.getLogger("library"), []
    before = log.level, library.level

    def begin(*, as_json: bool) -> tuple[LogHandler, list[str]]:
        lines: list[str] = []
        logs = LogHandler(as_json=as_json)
        logs.sink = lines.append
        handlers.append(logs)
        for each in (log, library):
            each.addHandler(logs)
            each.setLevel(logging.DEBUG)
        return logs, lines

    yield begin
    for handler in handlers:
        log.removeHandler(handler)
        library.removeHandler(handler)
    log.setLevel(before[0])
    library.setLevel(before[1])


def a_run(logs: LogHandler) -> RunRecord:
    return RunRecord("0123456789abcdef", datetime(2026, 1, 1, tzinfo=UTC), observer=StepLogger(logs))


def test_json_has_a_line_per_event_with_run_and_step(listen):
    logs, lines = listen(as_json=True)
    log.info("Before any run.")
    report = a_run(logs)
    with report.step("read") as rows:
        rows(12)
        logging.getLogger("library").warning("slow: %d s", 5)
    log.info("After it.", extra={"snapshot": "out/1"})
    before, began, warned, ended, after = map(json.loads, lines)
    assert "run_id" not in before
    assert {each["run_id"] for each in (began, warned, ended, after)} == {report.run_id}
    assert [each.get("step") for each in (began, warned, ended, after)] == ["read", "read", "read", None]
    assert (warned["event"], warned["level"], warned["logger"]) == ("slow: 5 s", "warning", "library")
    assert (ended["event"], ended["level"], ended["rows"]) == ("Step ended.", "debug", 12)
    assert ended["seconds"] >= 0
    assert after["snapshot"] == "out/1"
    for each in (before, after):
        assert datetime.fromisoformat(each["timestamp"]).tzinfo is not None


def test_a_step_in_pieces_begins_once_and_goes_on(listen):
    logs, lines = listen(as_json=True)
    report = a_run(logs)
    for number in (1, 2):
        with report.step("compact") as rows:
            rows(number)
    said = [(each["event"], each.get("rows")) for each in map(json.loads, lines)]
    assert said == [("Step began.", None), ("Step ended.", 1), ("Step went on.", 3)]


def test_each_thread_s_lines_bear_its_own_step(listen):
    logs, lines = listen(as_json=True)
    report, inside = a_run(logs), threading.Barrier(2, timeout=60)

    def work(name: str) -> None:
        with report.step(name):
            inside.wait()
            log.info("%s", name)
            inside.wait()

    threads = [threading.Thread(target=work, args=(name,)) for name in ("read", "write")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    own = [each for each in map(json.loads, lines) if each["level"] == "info"]
    assert len(own) == 2
    assert all(each["event"] == each["step"] for each in own)


def test_a_person_s_line_is_plain_short_and_obeys_nobody(listen):
    logs, lines = listen(as_json=False)
    a_run(logs)
    log.warning("city %s", "\x1b[31mred\nERROR forged", extra={"_ray_of_a_test": 1})
    (line,) = lines
    assert "\x1b" not in line
    assert "\n" not in line
    assert "[warning] city \\x1b[31mred\\nERROR forged" in line
    assert line.endswith(" run_id=01234567")


def test_what_is_added_to_a_line_is_told_apart_from_it(listen):
    logs, lines = listen(as_json=False)
    logging.getLogger("library").info("There.", extra={"folder": "out/a b", "rows": 7, "name_": 'a"b', "at": None})
    (line,) = lines
    assert line.endswith("""Z [info] There. [library] folder='out/a b' rows=7 name_='a"b' at=None""")
    logs.colors = True
    log.error("Lost.", extra={"rows": 7})
    assert re.sub(r"\x1b\[\d+m", "", lines[1]).endswith("Z [error] Lost. rows=7")
    assert "\x1b[31merror\x1b[0m" in lines[1]


@pytest.mark.parametrize("as_json", [True, False])
def test_a_traceback_is_part_of_its_line(listen, as_json):
    _, lines = listen(as_json=as_json)
    try:
        {}["what"]
    except KeyError:
        log.exception("A bug.")
    (line,) = lines
    assert "KeyError" in line
    assert "Traceback" in (json.loads(line)["exception"] if as_json else line)


def test_a_line_that_can_t_be_written_ends_nothing(listen, capsys):
    logs, _ = listen(as_json=True)

    def refuse(_line: str) -> None:
        raise OSError("no space")

    logs.sink = refuse
    log.info("lost")
    assert "no space" in capsys.readouterr().err

"""What a person reads at the end: tables with every figure, and nothing where there is nothing to say."""

from __future__ import annotations

from datetime import UTC, datetime

import polars as pl
import pytest
from rich.console import Console, RenderableType

from etl.commands.database import db_url
from etl.commands.doctor_checks import failed
from etl.commands.terminal.console import TextTable, findings_lines, probe_tables, rows_table, run_summary, status_lines
from etl.commands.terminal.tables import checks_table
from etl.errors import ConnectError
from etl.load.constraints import Finding
from etl.pipeline.context import RunResult
from etl.reporting.history import Metric, PreviousRun, compare_with_history, run_metrics
from etl.runtime.cancellation import CancelToken
from etl.runtime.run_record import Step
from etl.settings.sources import load_settings

RULES = str.maketrans(dict.fromkeys("│┃╇╈┼━─", " ") | {"\N{EN DASH}": "-"})


def read(what: RenderableType) -> list[str]:
    """The lines that a person sees: without the rules between columns, spaces drawn together."""
    console = Console(width=200, color_system=None)
    with console.capture() as captured:
        console.print(what)
    plain = (" ".join(line.translate(RULES).split()) for line in captured.get().splitlines())
    return [line for line in plain if line]


def report(**counts: object) -> RunResult:
    steps = [Step("read", 2.0, 5_000, 120.4), Step("stage", 0.0, 7, 130.0), Step("COMMIT", 0.5, None, 131.6)]
    return RunResult("1", datetime(2026, 1, 1, tzinfo=UTC), steps, counts)


def nights(*triples: int) -> list[PreviousRun]:
    return [PreviousRun(str(number), {}, {"triples": each}) for number, each in enumerate(triples)]


def test_the_first_lines_say_whether_it_worked():
    night = report()
    night.snapshot, night.committed, night.retries = "out/snapshots/1", True, 2
    night.warnings, night.notes = ["Odd."], ["An index is missing.", "Dry."]
    first, *others = status_lines(night)
    assert first.startswith("Done: a snapshot was published, the database was written and committed; ")
    assert first.endswith(" s, 2 retries, 1 warning, 2 notes.")
    assert others == ["Snapshot: out/snapshots/1", "Warning: Odd.", "Note: An index is missing.", "Note: Dry."]


@pytest.mark.parametrize(
    ("committed", "dry_run", "said"),
    [
        (False, True, "Dry run: everything was done and rolled back, nothing was published; "),
        (
            True,
            False,
            "Nothing to do: the newest snapshot has the same data; the database was written anyway",
        ),
        (False, False, "Nothing to do: the newest snapshot has the same data; the database was only read; "),
    ],
)
def test_a_night_that_published_nothing_says_why(committed, dry_run, said):
    night = report()
    night.committed = committed
    assert status_lines(night, dry_run=dry_run)[0].startswith(said)


def test_a_run_without_figures_says_that_nothing_was_excluded_and_no_more():
    assert read(run_summary(report())) == ["Nothing was excluded."]


def test_a_profile_has_rows_a_second_where_there_are_both_and_the_peak():
    lines = read(run_summary(report(), profile=True))
    assert lines[:3] == ["Nothing was excluded.", "Steps", "step rows seconds rows/s peak MiB"]
    assert lines[3:6] == ["read 5,000 2.00 2,500 120", "stage 7 0.00 130", "COMMIT 0.50 132"]


@pytest.mark.parametrize(
    ("before", "verdict", "row"),
    [
        ([], "no earlier run", "triples 900"),
        ([1_000], "no expected range yet (1 of 5 runs)", "triples 900 1,000 \N{MINUS SIGN}10%"),
        ([0], "no expected range yet (1 of 5 runs)", "triples 900 0"),
        ([900], "no expected range yet (1 of 5 runs)", "triples 900 900 ±0%"),
        (
            [1_500, 1_501, 1_499, 1_500, 1_500],
            "1 of 3 metrics out of the expected range",
            "triples 900 1,500 \N{MINUS SIGN}40% 1,050 to 2,143 below",
        ),
        ([890, 905, 899, 902, 901], "all within the expected range", "triples 900 901 \N{MINUS SIGN}0.1% 631 to 1,287"),
        (
            [10, 10, 11, 9, 9],
            "1 of 3 metrics out of the expected range",
            "triples 900 9 +9,900% 1 to 19 above",
        ),
    ],
)
def test_each_figure_stands_beside_the_last_night_s_and_the_usual_range(before, verdict, row):
    night = report(published={"events": {"Rome": 1}, "triples": {"Rome": 900}, "signs": {}})
    night.metrics = compare_with_history(nights(*before), {}, run_metrics(night.counts), None)
    lines = read(run_summary(night))
    assert lines[0] == f"Volumes compared with earlier runs: {verdict}"
    heads = ["this run", "last run", "change", "expected range"]
    assert lines[1] == " ".join(heads[: 1 + bool(before) + bool(any(before)) + (len(before) >= 5)])
    assert [line for line in lines if line.startswith("triples")] == [row]


def test_where_nothing_but_losses_left_their_range_the_amounts_are_usual():
    night = report()
    night.metrics = [Metric("triples", 9, 9, "1", 5, (8, 10)), Metric("left out: positives", 90, 9, "1", 5, (0, 18))]
    lines = read(run_summary(night))
    assert lines[0] == "Volumes compared with earlier runs: 1 of 2 metrics out of the expected range"
    assert "excluded positives 90 9 +900% 0 to 18 above" in lines


def test_what_was_published_is_added_up_and_what_was_left_out_has_its_reason():
    published = {
        "events": {"Rome": 1_200, "Village": 30},
        "triples": {"Rome": 24_000},
        "signs": {"Rome": 0.25},
        "cities_left_out": {"Village": "3 nodes, and --min-catalog is 50"},
        "positives_left_out": {"no_negatives": 4, "whole_catalog_seen": 0},
    }
    counts = {"set_aside": {"slots": {"day_number nullability": 3}}, "days_without_event": {"city_without_nodes": 2}}
    night = report(published=published, **counts)
    night.metrics = compare_with_history([], {}, run_metrics(night.counts), None)
    lines = read(run_summary(night, profile=True, verbose=True))
    assert "Rome 1,200 24,000 0.25" in lines
    assert "Village 30 excluded" in lines
    assert "all 1,230 24,000" in lines
    assert "events of Village no triples: 3 nodes, and --min-catalog is 50 30" in lines
    assert "rows of slots rejected by the rule day_number nullability 3" in lines
    assert "trip-days city has no eligible node 2" in lines
    assert "positives event has no negative to stand against 4" in lines
    assert not any("whole catalogue" in line for line in lines)
    titles = ("Volumes", "What was published", "Excluded rows", "Remarks on published rows", "Steps")
    assert [title for line in lines for title in titles if line.startswith(title)] == list(titles)
    assert lines.index("events of Village no triples: 3 nodes, and --min-catalog is 50 30") > lines.index(
        "Remarks on published rows"
    )
    short = read(run_summary(night))
    assert "1 remark on published rows: --verbose shows it." in short
    assert not any("Village no triples" in line for line in short)


def test_a_dry_run_does_not_say_that_anything_was_published():
    night = report(published={"events": {"Rome": 1}, "triples": {"Rome": 2}, "signs": {}})
    lines = read(run_summary(night, dry_run=True))
    assert "What would be published, by city" in lines
    assert not any("was published" in line for line in lines)


def test_of_many_cities_the_largest_are_shown_and_the_others_counted():
    events = {f"city {number}": number for number in range(100)}
    left_out = dict.fromkeys(events, "too small")
    published = {"events": events, "triples": {}, "signs": {}, "cities_left_out": left_out}
    lines = read(run_summary(report(published=published), verbose=True))
    assert "city 99 99 excluded" in lines
    assert "city 60 60 excluded" in lines
    assert "city 59 59 excluded" not in lines
    assert "(60 cities with fewer events)" in lines
    assert f"events of 60 more cities no triples, for such reasons {sum(range(40, 100)):,}" in lines


@pytest.mark.parametrize("columns", [80, 120])
def test_the_summary_fits_a_terminal(columns):
    names = {f"{'Llanfairpwllgwyngyll' * 4}{number}": 10**9 for number in range(3)}
    published = {"events": names, "triples": names, "signs": dict.fromkeys(names, -0.5)}
    night = report(published=published, shadow_users=10**9, days_without_event={"city_without_nodes": 10**9})
    before = [PreviousRun("1", {}, {"shadow users": 10**9 + each, "triples": 10**9}) for each in range(6)]
    night.metrics = compare_with_history(before, {}, run_metrics(night.counts), None)
    console = Console(width=columns, color_system=None)
    with console.capture() as captured:
        console.print(run_summary(night, profile=True, verbose=True))
    assert max(map(len, captured.get().splitlines())) <= columns
    assert "…" not in captured.get()


def interval(mean: float | None) -> dict[str, float | None]:
    return {"mean": mean, "low": None if mean is None else mean - 0.01, "high": None if mean is None else mean + 0.01}


def test_a_probe_is_one_line_of_a_run_s_summary():
    probe = {"split": "last-trip", "users": 1_234, "auc": interval(0.7), "ndcg_at_10": interval(0.125)}
    lines = read(run_summary(report(probe=probe | {"auc_of_popularity": interval(0.6)})))
    (told,) = [line for line in lines if line.startswith("Probe")]
    assert told == (
        "Probe (last-trip, 1,234 users): AUC 0.700 (0.690-0.710), popularity 0.600 (0.590-0.610), "
        "NDCG@10 0.125 (0.115-0.135)"
    )


def test_a_probe_s_tables_have_the_rankings_that_were_made_and_a_dash_where_nobody_could_be_judged():
    figures = {"auc": interval(0.7), "ndcg_at_10": interval(0.2), "recall_at_10": interval(0.3)}
    nobody = dict.fromkeys(figures, interval(None))
    rankings = {"random": {"all": figures, "new": nobody}, "model": {"all": figures, "new": figures}}
    following = {"users": 9, "choices": 1_234, "rankings": {"users_by_distance": figures}, "cities": {}}
    facts = {"split": "time:2026-01-01", "users": 1_000, "users_with_new_places": 0, "rankings": rankings}
    facts |= {
        "users_passed_over": 4_000,
        "users_sampled": 5_000,
        "users_in_all": 9_000,
        "cities": {},
        "next": following,
    }
    lines = read(probe_tables(facts, verbose=True))
    row = "0.700 (0.690-0.710) 0.200 (0.190-0.210) 0.300 (0.290-0.310)"
    sampled = " (of a random 5,000 of 9,000 users)"
    assert lines[0] == f"Held out by time:2026-01-01: 1,000 users{sampled}, mean and 95% interval"
    assert "The next item, where it is new: 1,234 choices of 9 users" in lines
    assert f"users \N{DIVISION SIGN} distance {row}" in lines
    assert [line for line in lines if line.startswith("BPR on these triples")] == [f"BPR on these triples {row}"] * 2
    assert [line for line in lines if line.startswith("chance")] == [f"chance {row}", "chance - - -"]
    assert "Items new to the user: 0 users" in lines
    assert not any(line.startswith("popularity") for line in lines)


@pytest.mark.parametrize(("broken", "verdict"), [(0, "ok"), (12_000, "12,000 {} broken")])
def test_a_check_is_ok_or_says_how_many_rows_break_it(broken, verdict):
    findings = [
        Finding("no row is twice", broken, unit="rows of Trip"),
        Finding("none is \x1b[31mred", broken, "e1, e2"),
    ]
    lines = read(findings_lines(findings))
    state = "FAILED" if broken else "ok"
    assert f"{state} no row is twice" + (f": {verdict.format('rows of Trip')}" if broken else "") in lines
    assert lines[0] == ("2 of 2 checks failed." if broken else "All 2 checks passed.")
    assert any(line.startswith(f"{state} none is ") and ": e1, e2" in line for line in lines)
    assert not any("\x1b" in line for line in lines)


def test_a_hint_of_doctor_is_a_sentence_after_what_was_found():
    check = failed("store", ConnectError, "/out can't be written to: Read-only file system", "Give another --out.")
    [line] = [line for line in read(checks_table([check], verbose=False)) if line.startswith("FAILED")]
    assert line == "FAILED store: /out can't be written to: Read-only file system. Give another --out."


def test_the_command_that_starts_a_server_has_the_data_folder_of_the_call(tmp_path):
    with pytest.raises(ConnectError, match=f"`bpr-etl db start --data-dir {tmp_path}/data`"):
        db_url(load_settings({"data_dir": str(tmp_path / "data")}, {}), CancelToken())


def test_a_table_leaves_out_spare_columns_where_they_do_not_fit_and_where_they_are_empty():
    def heads(width: int) -> str:
        table = TextTable(None, "name", "???published", ">?rows", "?note", legend="rows: of all files")
        table.add_row("n" * 20, "2026-01-01 00:00", "1,000", "")
        console = Console(width=width, color_system=None)
        with console.capture() as captured:
            console.print(table)
        first, *_, last = captured.get().splitlines()
        assert max(map(len, captured.get().splitlines())) <= width
        assert last.strip() == "rows: of all files"
        return " ".join(first.translate(RULES).split())

    assert heads(60) == "name published rows"
    assert heads(30) == "name rows"
    assert heads(22) == "name"


def test_a_frame_is_shown_as_it_is_and_a_null_is_empty():
    lines = read(rows_table("Rows", pl.DataFrame({"a": ["x", None], "b": [None, 2.5]})))
    assert (lines[0], lines[1], lines[2:]) == ("Rows", "a b", ["x", "2.5"])

"""report.html on a real server: published with every snapshot, made anew by command, and never the reason that a night fails."""

from __future__ import annotations

import html
import json
import os
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import psycopg
import pytest

import etl
from etl.errors import LockedError
from etl.pipeline import published
from etl.runtime.files import file_sha256
from etl.settings.sources import load_settings
from etl.snapshots.publish import locked_store
from etl.snapshots.validation import validate_snapshot
from tests.states import data_files, folder_state


def page_of(report) -> str:
    return (Path(report.snapshot) / "report.html").read_text(encoding="utf-8")


def text_of(page: str) -> str:
    """What a person reads, in one line."""
    words: list[str] = []
    parser = HTMLParser()
    parser.handle_data = words.append
    parser.feed(page)
    return " ".join(" ".join(words).split())


@pytest.fixture(scope="module")
def night(make_database, small_world_template, tmp_path_factory):
    """A night that was published, and the database that it ran on."""
    url = make_database(small_world_template)
    out = str(tmp_path_factory.mktemp("report") / "out")
    return url, out, etl.run(load_settings({"database_url": url, "out": out}, {}))


def test_a_night_s_report_is_listed_beside_its_data_and_made_anew_with_the_same_bytes(night):
    _, out, report = night
    folder = Path(report.snapshot)
    manifest, data = json.loads((folder / "manifest.json").read_text()), data_files(folder)
    (entry,) = [each for each in manifest["files"] if each["path"] == "report.html"]
    page = (folder / "report.html").read_bytes()
    assert (entry["rows"], entry["bytes"], entry["sha256"]) == (0, len(page), file_sha256(folder / "report.html"))
    assert [finding for finding in validate_snapshot(folder) if finding.broken] == []
    assert [step.name for step in report.steps].index("report") < [step.name for step in report.steps].index("backfill")
    (folder / "report.html").write_text("something else")
    assert published.report(load_settings({"snapshot": out}, {})) == str(folder / "report.html")
    assert (folder / "report.html").read_bytes() == page
    assert data_files(folder) == data
    assert json.loads((folder / "manifest.json").read_text())["content_sha256"] == manifest["content_sha256"]
    assert [finding for finding in validate_snapshot(folder) if finding.broken] == []


def test_the_report_says_what_the_night_counted(night):
    _, _, report = night
    said, counts = text_of(page_of(report)), report.counts
    published = counts["published"]
    triples, selected = sum(published["triples"].values()), counts["positives"]
    assert (
        f"{triples:,} triples from {counts['ranking_events']:,} ranking events in 2 cities" in said
    )  # one of 3 is too small
    assert "2 cities have triples; 1 more has ranking events only" in said
    assert f"{published['positives']:,} of {selected:,} are in the triples" in said
    assert f"{counts['positives_outside_candidates']:,} of {selected:,}" in said
    assert "first snapshot of this output location" in said
    assert "Done, with a warning" in said  # the popularity correlation of the design's negatives is low
    for city, number in published["triples"].items():
        assert f"{city} {number:,}" in said


def test_a_probe_and_the_nights_before_show_in_the_report(night):
    url, out, _ = night
    given = {"database_url": url, "out": out, "split": "last-trip", "negatives": ["recommended"]}
    report = etl.export(load_settings(given, {}))
    before = page_of(report)
    assert "It was not measured" in before
    assert "2 snapshots of this output location" in before
    assert "negatives ranking recommended" in text_of(before)  # settings that are not the last night's
    found = published.probe(load_settings({"snapshot": report.snapshot}, {}))
    after = text_of(page_of(report))
    auc = found.facts["rankings"]["model"]["all"]["auc"]
    assert f"{auc['mean']:.3f} ({auc['low']:.3f}\N{EN DASH}{auc['high']:.3f})" in after
    assert "It was not measured" not in after
    assert [finding for finding in validate_snapshot(Path(report.snapshot)) if finding.broken] == []
    again = (Path(report.snapshot) / "report.html").read_bytes()
    published.report(load_settings({"snapshot": report.snapshot}, {}))
    assert (Path(report.snapshot) / "report.html").read_bytes() == again


@pytest.mark.parametrize(
    "options",
    [
        {"split": "time:2024-10-01,2025-04-01", "ids": "index"},
        {"negatives": ["shown", "catalog:4"], "small_catalog": "weight", "shuffle": True},
        {"min_catalog": 10_000, "allow_empty": True},
    ],
    ids=["time split, indexes", "all sources, small cities", "no city left"],
)
def test_other_options_and_no_counts_of_personas_make_a_sensible_page(night, tmp_path, options):
    _, _, first = night
    report = etl.expand(load_settings({"snapshot": first.snapshot, "out": str(tmp_path / "out"), **options}, {}))
    said = text_of(page_of(report))
    triples = sum(report.counts["published"]["triples"].values())
    assert f"{triples:,} triples from" in said
    assert "Expanded from" in said
    assert ("there are no triples" in said) == (triples == 0)
    assert not [warning for warning in report.warnings if "report" in warning]


def test_a_night_without_events_makes_a_sensible_page(small_world, settings_for):
    report = etl.export(settings_for(small_world, allow_empty=True))  # before any run: no shadow user has one
    said = text_of(page_of(report))
    assert "0 triples from 0 ranking events in 0 cities" in said
    assert "Done, but there are no triples" in said
    assert "There is no event." in said
    assert "No event names an item." in said
    assert [warning.partition(":")[0] for warning in report.warnings] == ["There are no triples"]


def test_real_users_events_make_a_sensible_page_and_names_are_only_text(small_world, settings_for):
    with psycopg.connect(small_world) as connection:
        connection.execute("""UPDATE "ActivityNode" SET "name" = '<b>$x$</b>'""")
    report = etl.export(settings_for(small_world, audience="real"))
    page = page_of(report)
    said = text_of(page)
    assert "Audience real users" in said
    assert f"{sum(report.counts['published']['triples'].values()):,} triples from" in said
    assert "<b>$x$</b>" not in page
    assert "&lt;b&gt;$x$&lt;/b&gt;" in page
    assert [warning for warning in report.warnings if "report" in warning] == []


@pytest.mark.parametrize("broken_part", ["etl.reporting.event_stats.EventStats.add", "etl.reporting.page.headlines"])
def test_a_report_that_can_t_be_made_is_a_warning_and_the_night_is_published(
    small_world, settings_for, monkeypatch, broken_part
):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(broken_part, broken)
    report = etl.run(settings_for(small_world))
    assert report.committed
    (warning,) = [each for each in report.warnings if "report.html" in each]
    assert "ZeroDivisionError" in warning
    assert "`bpr-etl report SNAPSHOT`" in warning
    assert not (Path(report.snapshot) / "report.html").exists()
    assert [finding for finding in validate_snapshot(Path(report.snapshot)) if finding.broken] == []
    monkeypatch.undo()
    published.report(load_settings({"snapshot": report.snapshot}, {}))
    assert "triples from" in page_of(report)
    assert [finding for finding in validate_snapshot(Path(report.snapshot)) if finding.broken] == []


AXE = """axe.run().then(found => { document.body.textContent = "AXE" + JSON.stringify(found.violations.map(
each => [each.id, each.nodes.map(node => node.html)])) + "AXE"; });"""


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", [0, 1], ids=["dark", "light"])
def test_axe_core_finds_nothing(night, tmp_path, width, scheme):
    browser, axe = shutil.which("chromium"), os.environ.get("BPR_ETL_TEST_AXE")
    if browser is None or axe is None:
        pytest.skip("Chromium is not installed, or BPR_ETL_TEST_AXE does not name axe.min.js (`npm install axe-core`)")
    code = Path(axe).read_text(encoding="utf-8").replace("</script", "<\\/script")
    page = page_of(night[2]).replace("</body>", f"<script>{code}</script><script>{AXE}</script></body>")
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    flags = [
        "--headless=new",
        "--no-sandbox",
        f"--window-size={width},1000",
        "--virtual-time-budget=20000",
        "--dump-dom",
    ]
    command = [browser, *flags, f"--blink-settings=preferredColorScheme={scheme}", (tmp_path / "page.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert json.loads(html.unescape(shown.split("AXE")[1])) == []


def test_a_report_is_not_made_anew_while_a_run_writes_there(night):
    _, out, _ = night
    before = folder_state(Path(out))
    with locked_store(out), pytest.raises(LockedError):
        published.report(load_settings({"snapshot": out}, {}))
    assert folder_state(Path(out)) == before

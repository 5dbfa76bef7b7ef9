"""The report without a database: its facts against plain Python over the oracle's worlds, its days, its charts, its page."""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from dataclasses import asdict, replace
from datetime import UTC, date, datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.pipeline.context import RunResult
from etl.reporting import charts, wording
from etl.reporting.charts import MAX_BINS, bin_by_time
from etl.reporting.event_stats import (
    AFFINITY_STEPS,
    CANDIDATE,
    SELECTED_IN,
    SELECTED_OUTSIDE,
    BackgroundCount,
    CityStats,
    EventStats,
    count_events,
)
from etl.reporting.history import Metric, PreviousRun, run_metrics
from etl.reporting.page import build_report
from etl.reporting.page_data import cities_of, funnel, trends
from etl.reporting.page_stats import item_stats, user_stats
from etl.reporting.wording import exclusions
from etl.runtime.resources import resource
from etl.runtime.workers import ordered_worker
from etl.settings.sources import load_settings
from etl.snapshots.manifest import build_manifest
from etl.snapshots.publish import snapshot_name
from etl.snapshots.writer import StageOptions, write_data_files
from etl.transform.personas import affinity_model
from tests.property import oracle
from tests.property.dense import both_settings
from tests.property.in_memory import WORLDS, dataset_of, training_options

MODEL = affinity_model()
NOW = datetime(2026, 11, 25, 3, 0, tzinfo=UTC)
EVIL = '</text><script>alert("1")</script>$x^2$ {{ 7*7 }} &amp; \u202e東京🗼 مدينة\x1b[31m'


class Page(HTMLParser):
    """What a page holds: its tags with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.ids: Counter[str] = Counter()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids.update(value for name, value in attrs if name == "id" and value)

    def handle_data(self, data):
        self.text += data


def no_progress(*_: object) -> None:
    """Ignore progress."""


def staged(folder: Path, make, number, other=0, **changes):
    """A world's night, staged in memory: the events that the oracle exports, the dataset's counts, the snapshot's manifest."""
    world, options = make(number), both_settings(number)[other]
    after = oracle.after_run(world, options, MODEL.raw)
    exported = oracle.exported(after, options)
    dataset = dataset_of(after, exported, options)
    out, scratch = folder / "staged", folder / "scratch"
    out.mkdir()
    scratch.mkdir()
    with ordered_worker() as worker:
        counted = BackgroundCount(dataset, MODEL.default_affinity, worker)
        stage = StageOptions(training_options(options))
        account = write_data_files(dataset, stage, out, scratch, no_progress, observe=counted.add)
        tally = counted.result()
    report = RunResult("run", NOW)
    report.counts["published"] = account.counts(dataset)
    settings = load_settings(
        {"split": options.split, "negatives": list(options.negatives), "audience": "all", **changes}, {}
    )
    manifest = build_manifest(snapshot_name(account, NOW), report.manifest_facts(settings, NOW), account)
    events = [(city, event) for city, events in exported.cities.items() for event in events]
    return dataset, events, tally, out, manifest


@pytest.mark.parametrize(("make", "number"), WORLDS[::2])
def test_the_tally_is_what_counting_one_by_one_gives(tmp_path, make, number):
    dataset, events, tally, _, _ = staged(tmp_path, make, number)
    users = {row["user_id"]: row for row in dataset.users.iter_rows(named=True)}
    categories = dict(dataset.items.select("item_id", "category").iter_rows())
    offered, taken, per_city, days = Counter(), Counter(), {}, Counter()
    liked = {name: Counter() for name in (CANDIDATE, SELECTED_IN, SELECTED_OUTSIDE)}
    for city, event in events:
        candidates, selected = event.candidate_ids, event.selected_ids
        offered.update(candidates)
        taken.update(selected)
        outside = [node for node in selected if node not in candidates]
        total = per_city.setdefault(city, [0, 0, 0, 0])
        for place, more in enumerate((1, not selected, len(selected), len(outside))):
            total[place] += more
        days[event.created_at.toordinal() - date(1970, 1, 1).toordinal()] += 1
        affinities = {name: v for name, v in users[event.user_id].items() if name.startswith("affinity_")}
        if all(value is None for value in affinities.values()):
            continue
        for name, nodes in (
            (CANDIDATE, candidates),
            (SELECTED_IN, [node for node in selected if node in candidates]),
            (SELECTED_OUTSIDE, outside),
        ):
            values = [affinities.get(f"affinity_{categories[node]}") for node in nodes]
            known = (MODEL.default_affinity if value is None else min(max(value, 0.0), 1.0) for value in values)
            liked[name].update(round(value * AFFINITY_STEPS) for value in known)
    items = dataset.items["item_id"]
    assert dict(zip(items, tally.candidate.tolist(), strict=True)) == {node: offered[node] for node in items}
    assert dict(zip(items, tally.selected.tolist(), strict=True)) == {node: taken[node] for node in items}
    assert {name: list(asdict(city).values()) for name, city in tally.cities.items()} == per_city
    assert tally.days == days
    assert set(dataset.users["user_id"].filter(pl.Series(tally.has_events))) == {event.user_id for _, event in events}
    for name, times in liked.items():
        assert {
            int(place): int(tally.affinities[name][place]) for place in np.flatnonzero(tally.affinities[name])
        } == +times


@pytest.mark.parametrize(("make", "number"), WORLDS[1::5])
def test_every_step_of_the_funnel_adds_up_and_the_cities_are_the_manifest_s(tmp_path, make, number):
    dataset, events, tally, out, manifest = staged(tmp_path, make, number, other=1)
    people = user_stats(out)
    steps = funnel(manifest, tally, dataset.trips.height, people.users)
    for step in steps:
        assert step.retained + sum(loss.rows for loss in step.excluded) == step.incoming, step
        assert all(loss.rows > 0 for loss in step.excluded), step
    found = {step.what: step for step in steps}
    choices = ["choices"] if "choices" in manifest["published"] else []
    assert list(found) == ["users", "trips", "events", "ranking events", "positives", *choices]
    assert found["positives"].incoming == sum(len(event.selected_ids) for _, event in events)
    assert found["ranking events"].retained == sum(bool(event.selected_ids) for _, event in events)
    cities = cities_of(manifest, tally)
    assert {city.name: city.all_rows for city in cities if city.all_rows} == {
        name: number for name, number in manifest["published"]["triples"].items() if number
    }
    assert [city.all_rows for city in cities] == sorted((city.all_rows for city in cities), reverse=True)


@pytest.mark.parametrize(("make", "number"), WORLDS[1::5])
def test_nodes_and_people_are_those_of_the_files(tmp_path, make, number):
    dataset, events, tally, out, _ = staged(tmp_path, make, number)
    nodes, people = item_stats(out, tally, []), user_stats(out)
    offered = set(dataset.eligible_items()["item_id"])
    named = {node for _, event in events for node in (*event.candidate_ids, *event.selected_ids)}
    assert (nodes.offered, nodes.never_offered) == (len(offered), len(offered - named))
    assert len(nodes.never_listed) == min(50, nodes.never_offered)
    chosen = {node for _, event in events for node in event.selected_ids}
    unoffered = replace(tally, candidate=np.zeros_like(tally.candidate))
    assert item_stats(out, unoffered, []).never_offered == len(offered - chosen)
    triples = pl.read_parquet(out / "items.parquet")
    for role in ("positive", "negative"):
        assert nodes.counts[role].tolist() == sorted((n for n in triples[f"n_{role}"] if n), reverse=True)
    users = pl.read_parquet(out / "users.parquet")
    assert people.users == users.height
    for dimension in people.dimensions:
        sources = Counter(users[f"{dimension.name}_source"].drop_nulls())
        assert dimension.sources == sources
        if dimension.name in ("pace_preference", "social_mode"):
            assert dict(dimension.values) == Counter(users[dimension.name].drop_nulls())
            assert dimension.without == users[dimension.name].null_count()


@pytest.mark.parametrize(("make", "number"), WORLDS[1::5])
def test_items_are_ranked_among_those_of_the_given_cities_alone(tmp_path, make, number):
    _, events, tally, out, _ = staged(tmp_path, make, number)
    items = pl.read_parquet(out / "items.parquet")
    cities = items["city"].drop_nulls().unique().sort().to_list()[:1]
    there = set(items.filter(pl.col("city").is_in(cities))["item_id"])
    chosen = Counter(node for _, event in events for node in event.selected_ids if node in there)
    found = item_stats(out, tally, cities)
    assert found.counts["selected"].tolist() == sorted(chosen.values(), reverse=True)
    assert {item["city"] for item in found.top} <= set(cities)
    assert [item["n_selected"] for item in found.top] == sorted(chosen.values(), reverse=True)[: len(found.top)]


def test_a_map_has_the_items_with_coordinates_at_their_distances_and_counts_the_others(tmp_path):
    _, _, tally, out, _ = staged(tmp_path, *WORLDS[1])
    items = pl.read_parquet(out / "items.parquet")
    number = np.arange(items.height)
    longitude = np.where(number % 2, 179.99, -179.99)  # a city on both sides of the 180th meridian: 2.2 km apart
    latitude = np.where(number == 3, 91.0, 0.0)
    placed = items.with_columns(city=pl.lit("Suva"), latitude=pl.Series(latitude), longitude=pl.Series(longitude))
    placed.with_columns(longitude=pl.when(pl.Series(number != 4)).then("longitude")).write_parquet(
        out / "items.parquet"
    )
    (found,) = item_stats(out, tally, ["Suva", "Without items"]).maps
    assert (found.city, found.others, len(found.places)) == ("Suva", 2, items.height - 2)
    assert {round(east, 2) for east, _ in found.places} == {-1.11, 1.11}
    assert sorted(found.selected.tolist()) == sorted(np.delete(tally.selected, [3, 4]).tolist())
    svg = charts.item_map(found.side, found.places, found.selected, "Map")
    assert svg.count("h0") == len(found.places)
    assert "0 km" in svg or "00 m" in svg or " km" in svg


def nights_of(manifest: dict, number: int) -> list[PreviousRun]:
    return [
        PreviousRun(f"202611{day + 1:02}T030000000000Z-0123456789ab", manifest["settings"], run_metrics(manifest))
        for day in range(number)
    ]


@pytest.mark.parametrize(("make", "number", "nights"), [(*WORLDS[1], 0), (*WORLDS[6], 1), (*WORLDS[11], 7)])
def test_a_page_is_the_same_bytes_again_asks_nobody_and_has_each_id_once(tmp_path, make, number, nights):
    dataset, _, tally, out, manifest = staged(tmp_path, make, number)
    before = nights_of(manifest, nights)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = build_report(manifest, out, tally, dataset.trips.height, before)
    again = count_events(dataset, MODEL.default_affinity, no_progress)
    assert page == build_report(manifest, out, again, dataset.trips.height, before)
    read = Page(page)
    assert not [(tag, name, value) for tag, names in read.tags for name, value in names.items() if fetches(name, value)]
    assert "http://" not in page
    assert "https://" not in page
    assert "@import" not in page
    assert [each for each, times in read.ids.items() if times > 1] == []
    named = set(re.findall(r"(?:url\(#|href=\"#)([\w-]+)", page))
    assert named <= set(read.ids)
    assert len(page.encode()) < 400_000
    for section in (
        "trend",
        "probe",
        "funnel",
        "cities",
        "items",
        "affinity",
        "days",
        "people",
        "published",
    ):
        assert read.ids[section] == 1
    assert ("first snapshot of this output location" in page) == (nights == 0)


def fetches(name: str, value: str | None) -> bool:
    """Whether an attribute makes a browser ask somebody for something."""
    return name in ("src", "href", "xlink:href", "srcset", "data", "action") and not str(value).startswith(
        ("#", "data:,")
    )


def renamed(manifest: dict, tally: EventStats, out: Path) -> None:
    """Give a city, its places and their categories a name that means harm."""
    published = manifest["published"]
    victim = published["partitions"][0]["city"]
    for entry in published["partitions"]:
        entry["city"] = EVIL if entry["city"] == victim else entry["city"]
    for group in ("events", "triples", "signs", "cities_left_out"):
        published[group] = {EVIL if city == victim else city: value for city, value in published[group].items()}
    tally.cities[EVIL] = tally.cities.pop(victim)
    items = pl.read_parquet(out / "items.parquet")
    items.with_columns(pl.lit(EVIL).alias(name) for name in ("city", "name", "category")).write_parquet(
        out / "items.parquet"
    )
    users = pl.read_parquet(out / "users.parquet")
    first = next(name for name in users.columns if name.startswith("affinity_"))
    harm = [pl.lit(EVIL).alias(name) for name in ("pace_preference", "pace_preference_source")]
    users.with_columns(*harm, pl.lit(0.5).alias(first)).rename({first: f"affinity_{EVIL}"}).write_parquet(
        out / "users.parquet"
    )
    manifest["warnings"] = [EVIL]
    manifest["settings"]["shadow_prefix"] = EVIL


@pytest.mark.parametrize(("make", "number"), WORLDS[:2])
def test_names_that_mean_harm_are_only_text(tmp_path, make, number):
    dataset, _, tally, out, manifest = staged(tmp_path, make, number)
    renamed(manifest, tally, out)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a glyph that no font has is one
        page = build_report(manifest, out, tally, dataset.trips.height, [])
    read = Page(page)
    assert sum(tag == "script" for tag, _ in read.tags) == 1
    assert "<script>alert" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    # Where it is cut to fit, too: in the chart's label, as text.
    assert page.count("&lt;/text&gt;") >= 8
    assert re.search(r"<text[^>]*>&lt;/text&gt;", page)
    assert "{{ 7*7 }}" in read.text


def test_of_thousands_of_cities_the_largest_are_shown_and_the_others_added_up(tmp_path):
    dataset, _, tally, out, manifest = staged(tmp_path, *WORLDS[1])
    published = manifest["published"]
    for group in ("events", "triples", "signs", "cities_left_out", "partitions"):
        published[group].clear()
    for number in range(3000):
        name = f"City {number}"
        entry = {"folder": f"city={number}", "split": None, "city": name, "events": 2, "positives": 1, "weight": 1.0}
        published["partitions"].append({**entry, "triples": number + 1})
        published["triples"][name], published["events"][name] = number + 1, 2
        tally.cities[name] = CityStats(events=2, selected=1)
        if number % 2:
            published["cities_left_out"][name] = "too small"
    page = build_report(manifest, out, tally, dataset.trips.height, [])
    assert len(page.encode()) < 400_000
    read = " ".join(Page(page).text.split())
    assert f"and 2,970 more cities, with {sum(range(1, 2971)):,} triples of 5,940 events" in read
    assert "the 15 cities with most" in read
    assert "City 2999" in read
    assert "City 2900 " not in read


def test_a_label_from_data_is_escaped_in_a_chart():
    rows = [("$\\frac{", {"all": 3}), ("<b>&", {"all": 1}), ("東京🗼", {"all": 2})]
    svg = charts.stacked_bars(rows, ["all"], 'a"<')
    assert ">$\\frac{</text>" in svg
    assert "&lt;b&gt;&amp;</text>" in svg
    assert "東京🗼</text>" in svg
    assert 'aria-label="a&quot;&lt;"' in svg
    assert "<b>" not in svg


def luminance(colour: str) -> float:
    """Relative luminance of a colour, as WCAG 2 defines it."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_texts_charts_and_bands_stand_out_from_the_page(scheme):
    block = re.findall(r":root \{(.*?)\}", resource("report").joinpath("style.css").read_text(), re.DOTALL)[scheme]
    light = {name: luminance(colour) for name, colour in re.findall(r"--([\w-]+): (#\w{6})", block)}

    def contrast(one: str, other: str) -> float:
        low, high = sorted((light[one], light[other]))
        return (high + 0.05) / (low + 0.05)

    for back in ("paper", "raised"):
        assert all(contrast(text, back) >= 4.5 for text in ("ink", "muted", "good", "odd", "bad", "series-2"))
        assert all(contrast(f"series-{number}", back) >= 3 for number in (1, 2, 3, 4))
    assert contrast("band", "paper") > 1.25
    assert contrast("series-1", "band") >= 3


def test_an_axis_that_does_not_start_at_0_says_so():
    for values, said in (([100.0, 101.0], True), ([0.0, 101.0], False), ([10.0, 101.0], False)):
        svg = charts.trend([Metric("users", value) for value in values], ("1 Jan", "2 Jan"), "trend")
        assert ("axis starts at" in svg) == said
        assert said or ">0</text>" in svg
    assert "axis starts at" in charts.interval_plot([("ours", 0.668, 0.661, 0.675, True)], 0.5, "AUC")


def test_numbers_in_the_text_of_a_chart_are_not_shortened():
    svg = charts.interval_plot([("ours", 0.668, 0.661, 0.675, True)], 0.5, "AUC")
    assert ">0.668</text>" in svg


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(2, 5), st.booleans())
def test_ticks_are_few_round_and_inside(low, length, count, whole):
    high = low + length
    found = list(charts._ticks(low, high, count, whole=whole))
    assert len(found) <= count + 1
    assert all(low - length * 1e-3 <= tick <= high + length * 1e-3 for tick in found)
    if whole:
        assert all(float(tick).is_integer() for tick in found)


@pytest.mark.parametrize("values", [[5.0], [5.0, 5.0], [0.0, 0.0], [1.0, None, 3.0, 4.0], [None, 2.0]])
def test_a_trend_of_few_constant_or_missing_values_is_drawn(values):
    runs = [
        None if value is None else Metric("users", value, expected=(4, 5) if value == 3 else (0, 9) if place else None)
        for place, value in enumerate(values)
    ]
    svg = charts.trend(runs, ("1 Jan", "2 Jan"), "trend")
    assert svg.count("<circle") == sum(value is not None for value in values) + sum(value == 3.0 for value in values)
    assert "nan" not in svg


DAYS = st.dictionaries(st.integers(-719_162, 2_932_896), st.integers(1, 1000), min_size=1, max_size=60)


@given(DAYS)
def test_events_by_day_fit_into_a_chart_and_none_is_lost(counts):
    days = bin_by_time(counts)
    assert sum(days.values) + days.outliers == sum(counts.values())
    assert len(days.values) == len(days.starts) <= MAX_BINS
    assert days.starts == sorted(set(days.starts))
    assert days.outliers <= 2 * 0.0005 * sum(counts.values())
    assert days.starts[0] <= days.first <= days.last
    assert days.busiest[1] == max(days.values)
    assert 1 <= len(days.labels) <= 4
    assert len(set(days.labels.values())) == len(days.labels)


@pytest.mark.parametrize(
    ("span", "unit"),
    [(1, "day"), (120, "day"), (121, "week"), (800, "week"), (1000, "month"), (4000, "year"), (60_000, "decade")],
)
def test_columns_are_as_fine_as_a_chart_can_show(span, unit):
    assert bin_by_time(dict.fromkeys(range(20_000, 20_000 + span), 1)).unit == unit


def test_a_few_events_of_another_age_don_t_crowd_the_rest_together():
    days = bin_by_time({-700_000: 1, **dict.fromkeys(range(20_000, 20_100), 100), 2_900_000: 2})
    assert (days.unit, days.outliers, len(days.values)) == ("day", 3, 100)


def test_no_event_has_no_days():
    assert bin_by_time({}) is None


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (wording.format_number(680207), "680,207"),
        (wording.format_number(0.66789), "0.668"),
        (wording.format_number(None), "\N{EN DASH}"),
        (wording.format_si(680207), "680k"),
        (wording.format_si(0.65), "0.65"),
        (wording.format_percent(9547, 46953), "20.3%"),
        (wording.format_percent(1, 100_000), "< 0.1%"),
        (wording.format_percent(99_999, 100_000), "> 99.9%"),
        (wording.format_percent(0, 5), "0%"),
        (wording.format_percent(5, 5), "100%"),
        (wording.format_percent(1, 0), "\N{EN DASH}"),
        (wording.format_change(0.0123), "+1.2%"),
        (wording.format_change(-0.53), "\N{MINUS SIGN}53%"),
        (wording.format_change(0), "±0%"),
        (wording.format_change(0.0003), "+0.03%"),
        (wording.format_bytes(395_776), "395.8 kB"),
        (wording.format_bytes(12), "12 B"),
        (wording.format_duration(3.31), "3.3 s"),
        (wording.format_duration(7300), "2.0 h"),
        (wording.format_range((-3.0, 17.4), whole=True), "0 to 17"),
        (wording.format_range((0.66123, 0.674), whole=False), "0.661 to 0.674"),
        (wording.format_datetime(NOW), "25 Nov 2026, 03:00 UTC"),
    ],
)
def test_numbers_are_written_with_their_units(written, expected):
    assert written == expected


def manifest_of(triples: int) -> dict:
    published = {"triples": {"Rome": triples}, "events": {"Rome": 10}, "positives": 5}
    return {"settings": {}, "published": published}


def test_a_figure_is_marked_where_it_left_the_range_of_the_nights_before_it():
    nights = [
        PreviousRun(str(day), {}, run_metrics(manifest_of(number)))
        for day, number in enumerate([100, 101, 99, 100, 101, 40, 100])
    ]
    found = trends(manifest_of(300), nights)
    triples = found["triples"]
    assert [each.value for each in triples] == [100, 101, 99, 100, 101, 40, 100, 300]
    assert [each.out_of_range for each in triples] == [False] * 5 + [True, False, True]
    assert [each.expected for each in triples[:5]] == [None] * 5
    assert triples[-1].change == 2.0
    assert not found["ranking events"][-1].out_of_range


def test_every_figure_that_left_its_range_has_a_chart_directly_under_the_three_questions(tmp_path):
    dataset, _, tally, out, manifest = staged(tmp_path, *WORLDS[1])
    manifest["warnings"] = ["Do this. It is why."]
    nights = nights_of(manifest, 7)
    page = build_report(manifest, out, tally, dataset.trips.height, nights)
    assert (
        page.index('class="answers"')
        < page.index('id="trend"')
        < page.index('id="warnings"')
        < page.index('id="probe"')
    )
    assert "<p>Do this.</p>" in page
    assert "items over 8 runs" not in page
    for night in nights:
        night.metrics["items"] *= 100
    odd = build_report(manifest, out, tally, dataset.trips.height, nights)
    assert "items over 8 runs" in odd
    assert odd.index("items over 8 runs") < odd.index("triples over 8 runs")
    assert "below expected range" in odd


@pytest.mark.parametrize("tasks", [["next"], ["triples", "next"]])
def test_the_figures_of_next_are_shown(tmp_path, tasks):
    dataset, _, tally, out, manifest = staged(tmp_path, *WORLDS[6])
    manifest["settings"]["task"] = tasks
    published = manifest["published"]
    rows, choices = sum(published["next"].values()), published["choices"]
    read = " ".join(Page(build_report(manifest, out, tally, dataset.trips.height, [])).text.split())
    assert rows > 0
    assert f"{rows} rows of next from" in read
    assert f"{choices} of {choices + sum(published['choices_left_out'].values())} of a next place are in next" in read
    assert f"next {rows} rows, {rows / choices:.1f} for each choice" in read
    assert ("are in the triples" in read) == (tasks != ["next"])


def test_what_is_usual_is_so_among_nights_of_the_same_settings():
    shown = [PreviousRun(f"shown {day}", {"negatives": ["shown"]}, run_metrics(manifest_of(9))) for day in range(5)]
    ours = [PreviousRun(f"ours {day}", {}, run_metrics(manifest_of(100))) for day in range(5)]
    mixed = [night for pair in zip(shown, ours, strict=True) for night in pair]
    found = trends(manifest_of(100), [*mixed, shown[0]])["triples"][-1]
    assert found.expected == pytest.approx((70, 100 / 0.7))
    assert (found.before, found.runs, found.out_of_range) == (100, 5, False)


def test_a_night_s_losses_have_words_for_every_reason_of_the_manifest():
    reasons = ["user_without_persona", "city_without_nodes", "date_out_of_range", "trip_gone", "small_catalog"]
    found = list(exclusions({"days_without_event": dict.fromkeys(reasons, 1)}))
    assert not [loss.why for loss in found if "_" in loss.why]


def test_a_tally_of_no_event_is_all_nought(tmp_path):
    dataset, *_ = staged(tmp_path, *WORLDS[0])
    tally = EventStats.of(dataset, MODEL.default_affinity)
    tally.add(pl.concat(list(dataset.events))[:0])
    assert tally.candidate.sum() == tally.selected.sum() == len(tally.days) == len(tally.cities) == 0
    assert json.dumps({name: int(times.sum()) for name, times in tally.affinities.items()})

"""The dense worlds of the tests have what they are to have: a law that never meets its case proves nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime

from etl.transform.personas import affinity_model
from tests.property import oracle, oracle_training
from tests.property.dense import both_settings, dense_world

MODEL = affinity_model().raw
OPTIONS = oracle.Settings(min_catalog=2)


def features(world: oracle.World) -> set[str]:
    """What a world has under plain options."""
    personas, persona_counts = oracle.personas(world, OPTIONS, MODEL)
    events, event_counts = oracle.events(world, personas, OPTIONS)
    exported = oracle.exported(oracle.after_run(world, OPTIONS, MODEL), OPTIONS)
    made = oracle_training.training(world, exported, OPTIONS)
    counted = persona_counts | {f"events: {name}": n for name, n in event_counts.items()}
    counted |= {f"left out: {reason}": n for reason, n in made.left_out.items()}
    found = {name for name, number in counted.items() if number}
    found |= {f"{len(event.candidate_ids)} candidates" for event in events}
    found |= {"no positive" for event in events if not event.selected_ids}
    found |= {"shown" for rows in exported.cities.values() for event in rows if event.shown_ids}
    rows = [row for of_city in made.triples.values() for row in of_city]
    found |= {f"a positive {'among' if row.pos_in_candidates else 'outside'} the candidates" for row in rows}
    return found


def training_features(after: oracle.World, options: oracle.Settings) -> Iterator[str]:
    """What a world, as a run has left it, meets with these settings."""
    exported = oracle.exported(after, options)
    made = oracle_training.training(after, exported, options)
    kind = options.split.split(":")[0]
    yield from (f"{kind}: {split} events" for split, _ in made.events)
    yield from (f"{kind}: {split} triples" for split, _ in made.triples)
    yield from (f"{name} triples" for name in made.by_source)
    yield from made.left_out
    yield from ("a sign" if value is not None else "no sign" for value in made.signs.values())
    cities = {city for _, city in made.triples}
    weighted = {city for city, _ in options.city_weight}
    yield from ("a city's own weight" for _ in weighted & cities)
    yield from ("a weight for a city that is not there" for _ in weighted - {*exported.cities})
    if options.small_catalog == "weight":
        small = {city for city in cities if len(oracle_training.catalogue(after, city)) < options.min_catalog}
        yield from ("a small catalogue's weight" for _ in small)
    if (
        options.shuffle
        and made.triples != oracle_training.training(after, exported, replace(options, shuffle=False)).triples
    ):
        yield "a shuffle"
    yield from (f"ids: {options.ids}" for _ in cities)
    yield from _of_the_draws(after, exported, made, options)
    yield from _of_the_splits(exported, made, options)


def _of_the_draws(
    after: oracle.World, exported: oracle.Exported, made: oracle_training.Training, options: oracle.Settings
) -> Iterator[str]:
    count = oracle_training.catalog_size(options.negatives)
    if count is None:
        return
    times = oracle_training.times_selected(exported, made.split_of)
    for (split, city), rows in made.triples.items():
        places = oracle_training.catalogue(after, city)
        if options.catalog_alpha and len({times[node_id] for node_id in places}) > 1:
            yield "uneven weights"
        with_catalog = {row.event_id for row in rows if row.neg_source == "catalog"}
        for event in made.events[split, city]:
            if event.event_id in with_catalog:
                rejected = oracle_training.rejected(event, exported, made.split_of, options)
                size = len({*places} - rejected)
                yield (
                    "the whole pool"
                    if size <= count
                    else f"drawn {'by weights' if options.catalog_alpha else 'evenly'}"
                )
                if {*places} & (rejected - {*event.selected_ids}):
                    yield "a node seen on another day"
                # Most of the pool: the tries run out, or the places that were taken are met.
                if count < size <= count + 2:
                    yield f"a close draw {'by weights' if options.catalog_alpha else 'evenly'}"
                if {*event.candidate_ids, *event.shown_ids} & {*places} and len(options.negatives) > 1:
                    yield "a draw beside other sources"


def _of_the_splits(
    exported: oracle.Exported, made: oracle_training.Training, options: oracle.Settings
) -> Iterator[str]:
    cuts = {*options.split.removeprefix("time:").split(",")} if options.split.startswith("time:") else set()
    moments = {event.created_at for rows in exported.cities.values() for event in rows}
    yield from ("an event at the cut" for cut in cuts if datetime.fromisoformat(cut) in moments)
    if options.split == "last-trip":
        splits: dict[tuple[str, str], set[str]] = {}
        for city, rows in exported.cities.items():
            for event in rows:
                name = "left out" if made.weights[city] is None else "kept"
                splits.setdefault((event.user_id, name), set()).add(made.split_of[event.event_id])
        yield from (
            f"a left-out trip in {split}" for (_, name), of in splits.items() if name == "left out" for split in of
        )
        yield from ("a user with three splits" for (_, name), of in splits.items() if name == "kept" and len(of) == 3)
        yield from ("a user with one split" for (_, name), of in splits.items() if name == "kept" and of == {"train"})
    seen = {split: set() for split in oracle_training.SPLITS}
    for (split, _), rows in made.events.items():
        seen[split].update((event.user_id, node_id) for event in rows for node_id in event.selected_ids)
    if (seen["valid"] | seen["test"]) - seen["train"]:
        yield "selected in a later split alone"
    if (seen["valid"] | seen["test"]) & seen["train"]:
        yield "selected again in a later split"


def too_rare(seen: Counter[str], wanted: set[str]) -> set[str]:
    return {name for name in wanted if seen[name] < 3}


def test_every_feature_occurs():
    seen: Counter[str] = Counter()
    for number in range(40):
        seen.update(features(dense_world(number)))
    wanted = {
        *("shadow_users", "users_without_persona", "source_onboarding", "source_default", "source_reconstructed"),
        *("affinities_unknown_category", "affinities_not_a_number", "events: events", "events: user_without_persona"),
        *("events: city_without_nodes", "events: date_out_of_range", "events: positives_outside_candidates"),
        *("left out: small_catalog", "left out: no_negatives", "no positive", "shown"),
        *("1 candidates", "19 candidates", "20 candidates"),
        *("a positive among the candidates", "a positive outside the candidates"),
    }
    assert too_rare(seen, wanted) == set()


def test_every_feature_of_the_training_data_occurs():
    seen: Counter[str] = Counter()
    for number in range(40):
        one, other = both_settings(number)
        after = oracle.after_run(dense_world(number), one, MODEL)
        seen.update({*training_features(after, one), *training_features(after, other)})
    wanted = {
        *(
            f"{kind}: {split} {what}"
            for kind in ("last-trip", "time")
            for split in oracle_training.SPLITS
            for what in ("events", "triples")
        ),
        *("none: train events", "none: train triples", "an event at the cut", "a user with three splits"),
        *("a user with one split", "a left-out trip in train", "a left-out trip in test"),
        *("selected in a later split alone", "selected again in a later split", "a node seen on another day"),
        *("ranking triples", "shown triples", "catalog triples", "drawn evenly", "drawn by weights", "the whole pool"),
        *("uneven weights", "a close draw evenly", "a close draw by weights", "a draw beside other sources"),
        *("small_catalog", "no_negatives", "whole_catalog_seen", "a sign", "no sign", "a shuffle"),
        *("a city's own weight", "a weight for a city that is not there", "a small catalogue's weight"),
        *("ids: string", "ids: index", "ids: both"),
    }
    assert too_rare(seen, wanted) == set()

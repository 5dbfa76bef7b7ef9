"""The dense worlds of the tests have what they are to have: a law that never meets its case proves nothing."""

from __future__ import annotations

from collections import Counter

from etl.affinity import affinity_model
from tests.property import oracle
from tests.property.dense import dense_world

MODEL = affinity_model().raw
OPTIONS = oracle.Settings(min_catalog=2)


def features(world: oracle.World) -> set[str]:
    personas, persona_counts = oracle.personas(world, OPTIONS, MODEL)
    events, event_counts = oracle.events(world, personas, OPTIONS)
    exported = oracle.exported(oracle.after_run(world, OPTIONS, MODEL), OPTIONS)
    triples, triple_counts = oracle.triples(world, exported, OPTIONS)
    counted = persona_counts | {f"events: {name}": n for name, n in event_counts.items()} | triple_counts
    found = {name for name, number in counted.items() if number}
    found |= {f"{len(event.candidate_ids)} candidates" for event in events}
    found |= {"no positive" for event in events if not event.selected_ids}
    found |= {"shown" for rows in exported.cities.values() for event in rows if event.shown_ids}
    found |= {"a positive among the candidates" for rows in triples.values() for row in rows if row.pos_in_candidates}
    found |= {"a positive outside them" for rows in triples.values() for row in rows if not row.pos_in_candidates}
    return found


def test_every_feature_occurs():
    seen: Counter[str] = Counter()

    for number in range(40):
        seen.update(features(dense_world(number)))
    wanted = {
        *("shadow_users", "users_without_persona", "source_onboarding", "source_default", "source_reconstructed"),
        *("affinities_unknown_category", "affinities_not_a_number", "events: events", "events: user_without_persona"),
        *("events: city_without_nodes", "events: date_out_of_range", "events: positives_outside_candidates"),
        *("triples", "cities_left_out", "positives_without_negatives", "no positive", "shown"),
        *("1 candidates", "19 candidates", "20 candidates"),
        *("a positive among the candidates", "a positive outside them"),
    }
    assert {name for name in wanted if seen[name] < 3} == set()

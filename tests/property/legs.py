"""Worlds whose trips have legs with a city each."""

from __future__ import annotations

import random
from dataclasses import replace

from tests.property.oracle import Leg, World


def with_legs(world: World, number: int) -> World:
    """The world with up to three legs a trip, most of them with a city; slots lie in a leg of their trip, of another, or in none.

    Some trips have no city of their own.
    """
    r = random.Random(number)  # noqa: S311 - a test's own choices
    cities = sorted({node.city for node in world.nodes} | {trip.city for trip in world.trips if trip.city}) or ["Tokyo"]
    legs = tuple(
        Leg(f"leg {trip.id} {position}", trip.id, r.choice([*cities, *cities, None]))
        for trip in world.trips
        for position in range(r.randrange(4))
    )
    of_trip = {trip.id: [leg.id for leg in legs if leg.trip_id == trip.id] for trip in world.trips}
    anywhere = [None, *(leg.id for leg in legs)]
    slots = tuple(
        replace(slot, leg_id=r.choice(of_trip[slot.trip_id] or [None]) if r.random() < 0.8 else r.choice(anywhere))
        for slot in world.slots
    )
    trips = tuple(replace(trip, city=None) if r.random() < 0.3 else trip for trip in world.trips)
    return replace(world, trips=trips, slots=slots, legs=legs)

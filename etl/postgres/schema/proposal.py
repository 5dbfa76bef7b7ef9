"""A proposed mapping for the database at hand: `[map.Model]` tables for what is not found automatically (`schema map`)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from operator import itemgetter

from etl.postgres.connection import Connection
from etl.postgres.naming import MODELS, SOURCE_MODELS, WRITTEN_MODELS, quote_identifier
from etl.postgres.schema.catalog import READABLE, Attribute, literals, read_attributes
from etl.postgres.schema.ddl import Column, columns_used
from etl.postgres.schema.mapping import accepted_types, conventions, deletion_condition

_SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "userId": ("owner", "account", "traveler", "traveller", "author", "customer", "member"),
    "activityNodeId": ("node", "place", "poi", "venue", "activity", "location"),
    "tripId": ("journey", "itinerary", "plan", "voyage"),
    "city": ("town", "destination", "location"),
    "startDate": ("start", "starts", "begin", "begins", "from", "arrival"),
    "createdAt": ("created", "inserted", "added"),
    "dayNumber": ("day",),
    "sortOrder": ("position", "order", "sequence", "seq", "rank", "idx"),
    "status": ("state",),
    "category": ("kind", "type"),
    "name": ("title", "label"),
    "latitude": ("lat",),
    "longitude": ("lng", "lon", "long"),
    "personaSeed": ("persona", "seed"),
    "email": ("mail",),
    "modelVersion": ("version",),
}
"""Names of a column in other projects."""

_TABLES: Mapping[str, tuple[str, ...]] = {
    "User": ("account", "member", "customer", "profile", "person"),
    "Trip": ("journey", "itinerary", "plan", "travel"),
    "ItinerarySlot": ("slot", "tripslot", "stop", "itineraryitem", "tripitem"),
    "ActivityNode": ("node", "place", "poi", "venue", "activity", "attraction"),
    "BehavioralSignal": ("signal", "behavior", "behaviour", "interaction", "usersignal"),
}
"""Names of a table in other projects, as `_stem` returns them."""

_REFERENCES = {"userId": "User", "tripId": "Trip", "activityNodeId": "ActivityNode", "slotId": "ItinerarySlot"}
_LIKE = 0.75
"""The likeness (difflib's) from which two names may mean the same."""

_MIN_SHARE = 0.6
"""The share of a model's columns that a relation of another name must have to be proposed for it."""


@dataclass
class _Candidate:
    """A relation of the database. `references` has the OIDs of the relations that columns refer to, by the columns' names."""

    oid: str
    schema: str
    name: str
    attributes: dict[str, Attribute] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{quote_identifier(self.schema)}.{quote_identifier(self.name)}"


def propose(connection: Connection, schema: str) -> str:
    """Propose where each model is, as a fragment of a settings file. Reads the catalogs alone.

    Comments name what is found automatically. Likely matches are settings with a comment. What is unknown is a comment
    with `DECIDE`, one in a line.
    """
    relations = _relations(connection)
    chosen = {model: _best(relations, model, schema) for model in MODELS}
    blocks = [_block(model, found, schema, chosen) for model, found in chosen.items()]
    return "\n".join(line for block in blocks for line in block).strip()


def _relations(connection: Connection) -> list[_Candidate]:
    """Return every relation that can be read, of all schemas but the server's own."""
    own = (
        "(SELECT c.oid::text AS model, c.oid FROM pg_catalog.pg_class c "
        "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        f"WHERE c.relkind IN ({literals(READABLE)}) AND NOT c.relispartition AND n.nspname !~ '^pg_' "
        "AND n.nspname <> 'information_schema') ours"
    )
    rows = connection.fetch_rows(
        f"SELECT ours.model, n.nspname::text, c.relname::text FROM {own} JOIN pg_catalog.pg_class c ON c.oid = ours.oid "
        "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace ORDER BY 2, 3"
    )
    found = {oid: _Candidate(oid, schema, name) for oid, schema, name in rows}
    for oid, column, target in connection.fetch_rows(
        f"SELECT ours.model, a.attname::text, f.confrelid::text FROM {own} JOIN pg_catalog.pg_constraint f "
        "ON f.conrelid = ours.oid AND f.contype = 'f' AND cardinality(f.conkey) = 1 "
        "JOIN pg_catalog.pg_attribute a ON a.attrelid = f.conrelid AND a.attnum = f.conkey[1]"
    ):
        found[oid].references[column] = target
    for oid, column, attribute in read_attributes(connection, own):
        found[oid].attributes[column] = attribute
    return list(found.values())


def _best(relations: Sequence[_Candidate], model: str, schema: str) -> _Candidate | None:
    """Return the relation that most likely holds a model's rows: by its name, then by how many of the columns it has."""
    scored = ((_score(each, model, schema), each) for each in relations)
    return max((each for each in scored if each[0]), key=itemgetter(0), default=((), None))[1]


def _score(relation: _Candidate, model: str, schema: str) -> tuple[float, ...]:
    """Return the sort key of a relation; empty if it can't be the model's."""
    columns = columns_used(model, legs=False)
    share = sum(any(_stands_for(name, each) for name in relation.attributes) for each in columns) / len(columns)
    name = _stem(relation.name)
    likeness = 2 if name == _stem(model) else 1 if name in _TABLES.get(model, ()) else 0
    return (likeness, share, relation.schema == schema) if likeness == 2 or share >= _MIN_SHARE else ()


def _stands_for(name: str, column: Column) -> bool:
    return name in conventions(column.name) or bool({*_words(name)} & {*_SYNONYMS.get(column.name, ())})


def _block(model: str, found: _Candidate | None, schema: str, chosen: Mapping[str, _Candidate | None]) -> Iterator[str]:
    if found is None:
        if model in WRITTEN_MODELS:
            yield f"# {model}: missing; `bpr-etl schema apply` creates it."
        else:
            yield f'# [map.{model}]\n# table = "schema.table"  # DECIDE: no relation looks like it'
        return
    lines = list(_entries(model, found, chosen))
    if found.schema != schema or found.name not in (model, MODELS[model]):
        lines.insert(0, f"table = {_toml(f'{_sql(found.schema)}.{_sql(found.name)}')}")
    if not lines:
        yield f"# {model}: found as {found.key}"
        return
    yield f"\n[map.{model}]"
    yield from lines


def _entries(model: str, found: _Candidate, chosen: Mapping[str, _Candidate | None]) -> Iterator[str]:
    """Yield one line per column that is not found automatically, and one for soft deletes."""
    columns = columns_used(model, legs=False)
    taken = {name for each in columns for name in conventions(each.name)}
    for column in columns:
        if any(name in found.attributes for name in conventions(column.name)):
            continue
        name, why = _alternative(column, model, found, taken, chosen)
        if name is None:
            yield f"# {column.name} = '...'  # DECIDE: no column looks like it; a name, or SQL in parentheses"
        else:
            yield f"{column.name} = {_toml(_sql(name))}  # {why}"
            taken.add(name)
    if model in SOURCE_MODELS:
        for name, attribute in found.attributes.items():
            if (condition := deletion_condition(name, attribute)) is not None:
                yield f"# where = {_toml(condition)}  # DECIDE: leaves out what the application has deleted"


def _alternative(
    column: Column, model: str, found: _Candidate, taken: set[str], chosen: Mapping[str, _Candidate | None]
) -> tuple[str | None, str]:
    """Return the column that most likely corresponds to one of the contract, and why."""
    types = accepted_types(model, column.type)
    free = [name for name, each in found.attributes.items() if name not in taken and each.type in types]
    target = chosen.get(_REFERENCES.get(column.name, ""))
    for name in free:
        if target is not None and found.references.get(name) == target.oid:
            return name, f"refers to {target.key}"
    for name in free:
        if _stands_for(name, column):
            return name, "check: by its name"
    like = [(SequenceMatcher(None, _stem(name), _stem(column.name)).ratio(), name) for name in free]
    best = max(like, default=(0.0, ""))
    return (best[1], "check: a similar name") if best[0] >= _LIKE else (None, "")


def _sql(name: str) -> str:
    """Return a name as SQL, in quotes if it needs them."""
    return name if re.fullmatch(r"[a-z_][a-z0-9_]*", name) else quote_identifier(name)


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if "'" in text else f"'{text}'"


def _words(name: str) -> list[str]:
    """Return the words of a name in camelCase or snake_case, in lower case."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().split("_")


def _stem(name: str) -> str:
    """Return a name without case, separators and plural."""
    bare = re.sub(r"[^a-z0-9]", "", name.lower())
    return f"{bare[:-3]}y" if bare.endswith("ies") else bare.removesuffix("s")

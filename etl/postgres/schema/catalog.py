"""What PostgreSQL's catalogs say about the relations of the models: kinds, columns, types and indexes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from etl.postgres.connection import Connection
from etl.postgres.naming import LEGS, MODELS, Naming, quote_literal
from etl.postgres.schema.ddl import schema_statements

READABLE = ("r", "p", "v", "m", "f")
"""The `pg_class.relkind` of relations that rows can be read from."""

_KINDS = {
    "r": "a table",
    "p": "a table",
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table",
    "i": "an index",
}


@dataclass(frozen=True)
class Attribute:
    """A column as it is in the database. Of a domain, `type` and `modifier` are those of the type below it.

    `type` is the name in pg_type, `enum` for any enum and `_enum` for an array of one. `sql_type` is the column's own type as
    SQL spells it, with its modifier. `length` is that of varchar(n) and char(n), `precision` the decimals of a
    timestamp; None if there is no limit. `labels` are an enum's values. `always` says that the server makes the value:
    generated, or an identity GENERATED ALWAYS. `deterministic` is that of the collation.
    """

    type: str
    sql_type: str
    is_domain: bool
    length: int | None
    precision: int | None
    not_null: bool
    has_default: bool
    always: bool
    deterministic: bool
    labels: Sequence[str]


@dataclass(frozen=True)
class Index:
    """A valid, complete B-tree index. An expression counts as a column without a name."""

    model: str
    unique: bool
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Catalog:
    """What the catalogs say.

    `kinds` has the kind of each model's relation, if there is one. `names` has the kind of each name that is needed in
    the naming's schema. `attributes` has the columns of each model's relation by (model, name). `secured` are the
    models whose relation is under row security for this role.
    """

    kinds: Mapping[str, str]
    names: Mapping[str, str]
    types: frozenset[str]
    attributes: Mapping[tuple[str, str], Attribute]
    indexes: Sequence[Index]
    secured: frozenset[str]

    def columns(self, model: str) -> Iterator[tuple[str, Attribute]]:
        """Yield the columns of a model's relation in their order there."""
        return ((name, found) for (owner, name), found in self.attributes.items() if owner == model)

    def is_table(self, model: str) -> bool:
        """Whether the model's relation is an ordinary or a partitioned table."""
        return self.kinds.get(model) in {"r", "p"}


def kind_name(kind: str) -> str:
    """Return what a `pg_class.relkind` is called."""
    return _KINDS.get(kind, "a relation")


def read_catalog(connection: Connection, naming: Naming) -> Catalog:
    """Read the catalogs: one query each for relations, names, types, columns and indexes."""
    statements = schema_statements(naming)
    names = literals(each.name for each in statements if each.kind in {"table", "index"})
    enums = literals(each.name for each in statements if each.kind == "enum")
    schema = f"(SELECT n.oid FROM pg_catalog.pg_namespace n WHERE n.nspname = {quote_literal(naming.schema)})"
    ours = relations_sql(naming, (*MODELS, LEGS))
    taken = connection.fetch_rows(
        "SELECT c.relname::text, c.relkind::text FROM pg_catalog.pg_class c "
        f"WHERE c.relnamespace = {schema} AND c.relname IN ({names})"
    )
    types = connection.fetch_rows(
        f"SELECT t.typname::text FROM pg_catalog.pg_type t WHERE t.typnamespace = {schema} AND t.typname IN ({enums})"
    )
    kinds = connection.fetch_rows(
        f"SELECT ours.model, c.relkind::text, row_security_active(c.oid) FROM {ours} "
        "JOIN pg_catalog.pg_class c ON c.oid = ours.oid"
    )
    indexes = connection.fetch_rows(
        "SELECT ours.model, i.indisunique AND i.indimmediate, "
        "ARRAY(SELECT COALESCE(a.attname::text, '') FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place) "
        "LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = ours.oid AND a.attnum = k.attnum AND k.attnum <> 0 "
        "WHERE k.place <= i.indnkeyatts ORDER BY k.place) "
        f"FROM {ours} JOIN pg_catalog.pg_index i ON i.indrelid = ours.oid "
        "JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid JOIN pg_catalog.pg_am m ON m.oid = x.relam "
        "WHERE m.amname = 'btree' AND i.indisvalid AND i.indpred IS NULL"
    )
    return Catalog(
        kinds={model: kind for model, kind, _ in kinds if kind in READABLE},
        names=dict(taken),
        types=frozenset(name for (name,) in types),
        attributes={(model, name): attribute for model, name, attribute in read_attributes(connection, ours)},
        indexes=[Index(model, unique, tuple(columns)) for model, unique, columns in indexes],
        secured=frozenset(model for model, _, secured in kinds if secured),
    )


def read_attributes(connection: Connection, ours: str) -> Iterator[tuple[str, str, Attribute]]:
    """Yield (model, column, attribute) in the order of the columns. `ours` is SQL of `ours(model, oid)`."""
    rows = connection.fetch_rows(
        # A domain may be one over a domain; a modifier belongs to the innermost level that has one.
        "WITH RECURSIVE base(model, attnum, type, modifier) AS (SELECT ours.model, a.attnum, a.atttypid, a.atttypmod "
        f"FROM {ours} JOIN pg_catalog.pg_attribute a ON a.attrelid = ours.oid WHERE a.attnum > 0 AND NOT a.attisdropped "
        "UNION ALL SELECT b.model, b.attnum, t.typbasetype, GREATEST(b.modifier, t.typtypmod) FROM base b "
        "JOIN pg_catalog.pg_type t ON t.oid = b.type WHERE t.typtype = 'd') "
        "SELECT ours.model, a.attname::text, CASE WHEN t.typtype = 'e' THEN 'enum' WHEN e.typtype = 'e' THEN '_enum' "
        "ELSE t.typname::text END, format_type(a.atttypid, a.atttypmod), a.atttypid <> b.type, "
        "CASE WHEN t.typname IN ('varchar', 'bpchar', '_varchar', '_bpchar') AND b.modifier > 4 THEN b.modifier - 4 END, "
        "CASE WHEN t.typname IN ('timestamp', 'timestamptz') AND b.modifier >= 0 THEN b.modifier END, "
        "a.attnotnull, a.atthasdef OR a.attidentity <> '', a.attgenerated <> '' OR a.attidentity = 'a', "
        "COALESCE(l.collisdeterministic, true), "
        "ARRAY(SELECT v.enumlabel::text FROM pg_catalog.pg_enum v WHERE v.enumtypid = b.type ORDER BY v.enumsortorder) "
        f"FROM {ours} JOIN pg_catalog.pg_attribute a ON a.attrelid = ours.oid AND a.attnum > 0 AND NOT a.attisdropped "
        "JOIN base b ON b.model = ours.model AND b.attnum = a.attnum "
        "JOIN pg_catalog.pg_type t ON t.oid = b.type AND t.typtype <> 'd' "
        "LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem AND t.typcategory = 'A' "
        "LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation ORDER BY ours.model, a.attnum"
    )
    for model, name, *rest in rows:
        yield model, name, Attribute(*rest)


def relations_sql(naming: Naming, models: Iterable[str]) -> str:
    """Return SQL of `ours(model, oid)`. It avoids `to_regclass`, which fails for a role that may not use the schema."""
    relations = ((model, naming.relation(model)) for model in models)
    rows = ", ".join(
        f"({quote_literal(model)}, {quote_literal(each.schema)}, {quote_literal(each.name)})"
        for model, each in relations
    )
    return (
        "(SELECT v.model, c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
        f"JOIN (VALUES {rows}) v(model, schema, name) ON v.name = c.relname AND v.schema = n.nspname) ours"
    )


def literals(texts: Iterable[str]) -> str:
    """Return texts as SQL literals, separated by commas."""
    return ", ".join(map(quote_literal, texts))

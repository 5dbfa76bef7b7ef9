"""From events to BPR triples: one row per (event, positive, negative) (design, "BPR training pair construction"; CONTRACT, 3).

Rendle et al. 2009 (BPR: Bayesian Personalized Ranking from Implicit Feedback) learn from (user, i, j) where the user
took i and not j. Here i is a positive; where j comes from is `Negatives`. Nodes travel as codes: rows of `items.parquet`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from etl.choices import Negatives
from etl.draws import I64, U64, Pools, draw
from etl.stable import SEPARATOR, hash64, mix64_array

SOURCES = ("ranking", "shown", "catalog")
"""Where a negative comes from; where several give the same one, the first of this order counts."""

INDEXES = {"user_id": "user_idx", "pos_item": "pos_idx", "neg_item": "neg_idx"}
"""The columns of ids, and what their indexes are called (CONTRACT, section 3, `--ids`)."""

NO_NEGATIVES, WHOLE_CATALOGUE_SEEN = "no_negatives", "whole_catalog_seen"


@dataclass(frozen=True)
class Catalogue:
    """What a city offers, and what each event of a partition may draw from it.

    `codes` are its eligible nodes' codes, ascending by id; `groups` says for each event which pool of `even` (and of
    `weighted`, with draws in proportion to popularity) it draws from.
    """

    codes: I64
    groups: I64
    even: Pools
    weighted: Pools | None = None


@dataclass(frozen=True)
class Expanded:
    """The triples of some events, and the account of their positives: events x selected = positives + left out.

    `triples` has the contract's ten columns, in the events' order, then the positives' in `selected_ids`, then the
    negatives': candidates, shown, drawn, or in a seeded random order. `users_through` are the users of
    positives left out because their users have selected the whole catalogue.
    """

    triples: pl.DataFrame
    positives: int
    left_out: dict[str, int] = field(default_factory=dict)
    users_through: frozenset[str] = frozenset()


def expand(
    events: pl.DataFrame, negatives: Negatives, catalogue: Catalogue, *, weight: float, seed: int, shuffle: bool
) -> Expanded:
    """The triples of `events`, ids as in there: `user_id` and the lists of nodes are Enums over the vocabularies.

    A positive without a negative gives no row and is counted with the reason. A negative is never a positive of the same
    event, and no (event, positive, negative) stands twice.
    """
    nodes = _vocabulary(events)
    pairs = _Long.of(events, "selected_ids")
    rows = _rows(events, pairs, negatives, catalogue, _Keys(events, nodes, seed))
    triples = _columns(events, pairs, rows, nodes, weight)
    if shuffle:
        order = _Keys(events, nodes, seed).of_rows(pairs, rows)
        triples = triples[np.argsort(order, kind="stable")]
    return _accounted(triples, events, pairs, rows, negatives, catalogue)


def indexes() -> list[pl.Expr]:
    """The indexes of a triple's ids: the physical value of an Enum is its row in users.parquet or items.parquet."""
    return [pl.col(text).to_physical().cast(pl.UInt32).alias(index) for text, index in INDEXES.items()]


@dataclass(frozen=True)
class _Long:
    """A column of lists, one row per element: the event's row and the node's code, in order."""

    event: I64
    code: I64

    @classmethod
    def of(cls, events: pl.DataFrame, column: str) -> _Long:
        lengths = events[column].list.len().to_numpy()
        codes = events.select(pl.col(column).explode(empty_as_null=False, keep_nulls=False)).to_series().to_physical()
        return cls(np.repeat(np.arange(events.height), lengths), codes.cast(pl.Int64).to_numpy())

    def keys(self, nodes: int) -> I64:
        """(event, node) as one number."""
        return self.event * nodes + self.code


@dataclass(frozen=True)
class _Rows:
    """The triples as numbers: the row of the pair (event, positive), the negative's code, the place in SOURCES."""

    pair: I64
    code: I64
    source: npt.NDArray[np.int8]


@dataclass(frozen=True)
class _Keys:
    """Hashes that seed what is drawn: functions of the row's own key and the seed, of nothing around it."""

    events: pl.DataFrame
    nodes: pl.Series
    seed: int

    def of_pairs(self, pairs: _Long) -> U64:
        """One key per (event, positive)."""
        return mix64_array(
            self._of_events("negative", "user_id", "event_id")[pairs.event] ^ self._of_nodes()[pairs.code]
        )

    def of_rows(self, pairs: _Long, rows: _Rows) -> U64:
        """One key per triple: its place in the shuffled order."""
        nodes = self._of_nodes()
        of_pairs = mix64_array(self._of_events("shuffle", "event_id")[pairs.event] ^ nodes[pairs.code])
        return mix64_array(of_pairs[rows.pair] ^ nodes[rows.code])

    def _of_events(self, kind: str, *key: str) -> U64:
        parts = [pl.lit(SEPARATOR.join([kind, str(self.seed)])), *(pl.col(name).cast(pl.String) for name in key)]
        return self.events.select(hash64(pl.concat_str(parts, separator=SEPARATOR))).to_series().to_numpy()

    def _of_nodes(self) -> U64:
        return self.nodes.to_frame("node").select(hash64(pl.col("node").cast(pl.String))).to_series().to_numpy()


def _vocabulary(events: pl.DataFrame) -> pl.Series:
    """Every node of the vocabulary as an Enum: the row is the code."""
    dtype = events.schema["selected_ids"].inner  # type: ignore[attr-defined]
    return dtype.categories.cast(dtype)  # type: ignore[no-any-return]


def _rows(events: pl.DataFrame, pairs: _Long, negatives: Negatives, catalogue: Catalogue, keys: _Keys) -> _Rows:
    """Each pair's negatives: those its event has for all its positives, then those drawn for it alone."""
    named, source = _named(events, pairs, negatives)
    shared = _of_all_positives(pairs, named, source, events.height)
    if not negatives.catalog:
        return shared
    places, counts = draw(
        keys.of_pairs(pairs), catalogue.groups[pairs.event], negatives.catalog, catalogue.even, catalogue.weighted
    )
    pair = np.repeat(np.arange(len(pairs.event)), counts.sum(axis=0))
    drawn = _Rows(pair, catalogue.codes[places.T[counts.T]], np.full(len(pair), SOURCES.index("catalog"), np.int8))
    if not len(named.event):
        return drawn
    nodes = len(keys.nodes)
    new = ~np.isin(pairs.event[drawn.pair] * nodes + drawn.code, named.keys(nodes))
    both = [
        np.concatenate([ours, theirs[new]])
        for ours, theirs in ((shared.pair, drawn.pair), (shared.code, drawn.code), (shared.source, drawn.source))
    ]
    order = np.argsort(both[0], kind="stable")
    return _Rows(both[0][order], both[1][order], both[2][order])


def _named(events: pl.DataFrame, pairs: _Long, negatives: Negatives) -> tuple[_Long, npt.NDArray[np.int8]]:
    """The negatives that an event itself names, candidates before shown ones, each once, no positive among them."""
    lists = [("candidate_ids", 0)] * negatives.ranking + [("shown_ids", 1)] * negatives.shown
    columns = [(_Long.of(events, column), source) for column, source in lists]
    empty = pl.DataFrame(schema={"event": pl.Int64, "code": pl.Int64, "source": pl.Int8})
    frames = [
        pl.DataFrame({"event": long.event, "code": long.code}).with_columns(source=pl.lit(source, dtype=pl.Int8))
        for long, source in columns
    ]
    taken = pl.DataFrame({"event": pairs.event, "code": pairs.code})
    named = pl.concat([empty, *frames]).join(taken, on=["event", "code"], how="anti", maintain_order="left")
    if len(lists) > 1:
        named = named.unique(["event", "code"], keep="first", maintain_order=True).sort("event", maintain_order=True)
    return _Long(named["event"].to_numpy(), named["code"].to_numpy()), named["source"].to_numpy()


def _of_all_positives(pairs: _Long, named: _Long, source: npt.NDArray[np.int8], events: int) -> _Rows:
    """Every pair with every negative that its event names."""
    per_event = np.bincount(named.event, minlength=events)
    first = np.cumsum(per_event) - per_event
    per_pair = per_event[pairs.event]
    pair = np.repeat(np.arange(len(per_pair)), per_pair)
    within = np.arange(len(pair)) - np.repeat(np.cumsum(per_pair) - per_pair, per_pair)
    row = first[pairs.event][pair] + within
    return _Rows(pair, named.code[row], source[row])


def _columns(events: pl.DataFrame, pairs: _Long, rows: _Rows, nodes: pl.Series, weight: float) -> pl.DataFrame:
    """The contract's ten columns, in its order."""
    among = np.isin(pairs.keys(len(nodes)), _Long.of(events, "candidate_ids").keys(len(nodes)))
    event = pairs.event[rows.pair]
    # Texts that stand in every triple of an event as Enum: four bytes each here, dictionary codes in the file.
    own = [pl.col(name).cast(pl.Enum(events[name].unique(maintain_order=True))) for name in ("event_id", "trip_id")]
    of_event = events.select("user_id", "timestamp", *own, "day_number")[event]
    sources = pl.Series(SOURCES, dtype=pl.Enum(SOURCES))
    return of_event.select(
        "user_id",
        nodes[pairs.code[rows.pair]].alias("pos_item"),
        nodes[rows.code].alias("neg_item"),
        "timestamp",
        "event_id",
        "trip_id",
        "day_number",
        sources[rows.source.astype(np.int64)].alias("neg_source"),
        pl.Series("pos_in_candidates", among[rows.pair], dtype=pl.Boolean),
        pl.lit(weight, dtype=pl.Float32).alias("weight"),
    )


def _accounted(
    triples: pl.DataFrame, events: pl.DataFrame, pairs: _Long, rows: _Rows, negatives: Negatives, catalogue: Catalogue
) -> Expanded:
    """The triples with what became of each positive."""
    without = pairs.event[np.bincount(rows.pair, minlength=len(pairs.event)) == 0]
    empty = catalogue.even.sizes[catalogue.groups[without]] == 0
    through = without[empty] if negatives.catalog and len(catalogue.codes) else without[:0]
    left_out = {NO_NEGATIVES: len(without) - len(through), WHOLE_CATALOGUE_SEEN: len(through)}
    users = events["user_id"][np.unique(through)].unique().cast(pl.String)
    return Expanded(triples, len(pairs.event) - len(without), left_out, frozenset(users.to_list()))

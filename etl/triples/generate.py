"""From events to BPR triples: one row per (event, positive, negative) (design, "BPR training pair construction"; CONTRACT, 3).

Rendle et al. 2009 (BPR: Bayesian Personalized Ranking from Implicit Feedback) learn from (user, i, j) where the user
took i and not j. Here i is a positive; where j comes from is `Negatives`. Users, trips and nodes travel as codes, rows of
the vocabularies, and triples as arrays of numbers in blocks that fit into a core's cache: texts come in when they are written.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Self

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from etl.settings.values import NegativeSampling
from etl.transform.arrays import I64, U64, Flags, to_arrow
from etl.transform.hashing import SEPARATOR, hash64, mix64
from etl.triples.sampling import SamplingPools, sample

I32 = npt.NDArray[np.int32]
U32 = npt.NDArray[np.uint32]

SOURCES = ("ranking", "shown", "catalog")
"""Where a negative comes from; where several give the same one, the first of this order counts."""

NO_NEGATIVES, WHOLE_CATALOGUE_SEEN = "no_negatives", "whole_catalog_seen"

BLOCK = 1 << 18
"""About how many triples are made at a time."""

_MARKS = 1 << 25  # (event, node) cells that a block may have: a byte each


@dataclass(frozen=True)
class ListColumn:
    """A column of lists of codes: those of row r stand in `codes` from `ends[r]` to `ends[r + 1]`."""

    ends: I64
    codes: U32

    @classmethod
    def of(cls, column: pl.Series) -> ListColumn:
        """From a column of type List(UInt32) without nulls."""
        lengths = column.list.len().to_numpy().astype(np.int64)
        codes = column.explode(empty_as_null=False).cast(pl.UInt32).to_numpy()
        return cls(np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]), codes)

    @property
    def lengths(self) -> I64:
        """How many codes each row has."""
        return np.diff(self.ends)

    def long(self, first: int, end: int) -> FlatPairs:
        """The rows from `first` to `end`, one element each; rows are counted from `first`."""
        rows = np.repeat(np.arange(end - first, dtype=np.int32), np.diff(self.ends[first : end + 1]))
        return FlatPairs(rows, self.codes[self.ends[first] : self.ends[end]])


NO_LISTS = ListColumn(np.zeros(1, np.int64), np.zeros(0, np.uint32))
"""Of events whose lists nobody needs any more."""


@dataclass(frozen=True)
class FlatPairs:
    """One row per element of some lists: the event's row and the node's code, in order."""

    event: I32
    code: U32

    def keys(self, nodes: int) -> I64:
        """(event, node) as one number."""
        return self.event.astype(np.int64) * nodes + self.code


NOTHING = FlatPairs(np.zeros(0, np.int32), np.zeros(0, np.uint32))


@dataclass(frozen=True)
class EventArrays:
    """Events of one partition as arrays: a row per event, in file order. Ids are texts, all else codes and numbers."""

    ids: pa.StringArray
    users: U32
    trips: U32
    timestamps: I64
    days: I32
    candidates: ListColumn
    selected: ListColumn
    shown: ListColumn

    @classmethod
    def of(cls, events: pl.DataFrame) -> EventArrays:
        """From a frame with the columns of `Dataset.events`."""
        return cls(
            ids=to_arrow(events["event_id"]),
            users=events["user_idx"].to_numpy(),
            trips=events["trip_idx"].to_numpy(),
            timestamps=events["timestamp"].to_numpy(),
            days=events["day_number"].to_numpy(),
            candidates=ListColumn.of(events["candidate_idx"]),
            selected=ListColumn.of(events["selected_idx"]),
            shown=ListColumn.of(events["shown_idx"]),
        )

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Catalogue:
    """What a city offers, and what each event of a partition may draw from it.

    `codes` are its eligible nodes' codes, ascending by id; `groups` says for each event which pool of `even` (and of
    `weighted`, with draws in proportion to popularity) it draws from.
    """

    codes: I64
    groups: I64
    even: SamplingPools
    weighted: SamplingPools | None = None


@dataclass(frozen=True)
class HashKeys:
    """What seeds the hashes that draws and the shuffled order come from: the ids' own hashes, by code, and the seed."""

    users: pl.Series
    nodes: U64
    seed: int

    @classmethod
    def of(cls, users: pl.Series, items: pl.Series, seed: int) -> HashKeys:
        """Of the vocabularies' ids, in the order of their indexes."""
        return cls(users, items.to_frame("node").select(hash64(pl.col("node"))).to_series().to_numpy(), seed)

    def of_events(self, kind: str, events: EventArrays, *, with_user: bool) -> U64:
        """A hash per event."""
        key = {"user": self.users.gather(events.users)} if with_user else {}
        frame = pl.DataFrame({**key, "event": pl.Series(events.ids)})
        parts = [pl.lit(SEPARATOR.join([kind, str(self.seed)])), *map(pl.col, frame.columns)]
        return frame.select(hash64(pl.concat_str(parts, separator=SEPARATOR))).to_series().to_numpy()


@dataclass(frozen=True)
class TripleBlock:
    """Triples of some events of a partition, a row each, and the account of their positives.

    `event` is the row of the partition's events; `positive` and `negative` are codes; `source` the place in SOURCES; `among`
    whether the positive is a candidate of its event; `order`, with `shuffle`, what the rows are to be sorted by. Rows come in
    the events' order, then the positives' in `selected`, then the negatives': candidates, shown, drawn.

    `pairs` are all (event, positive), those without a row too, and `per_pair` counts the rows of each.
    Events x selected = `positives` + `left_out`, by reason. `exhausted_users` are the users of positives left out because
    they have selected the whole catalogue.
    """

    event: I32
    positive: U32
    negative: U32
    source: npt.NDArray[np.int8]
    in_candidates: Flags
    order: U64 | None = None
    pairs: FlatPairs = field(default_factory=lambda: NOTHING)
    per_pair: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    positives: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    exhausted_users: U32 = field(default_factory=lambda: np.zeros(0, np.uint32))

    def __len__(self) -> int:
        return len(self.event)

    def slice(self, which: slice | I64) -> TripleBlock:
        """Some of the rows."""
        order = None if self.order is None else self.order[which]
        return TripleBlock(
            self.event[which],
            self.positive[which],
            self.negative[which],
            self.source[which],
            self.in_candidates[which],
            order,
        )


def generate_triples(
    events: EventArrays, negatives: NegativeSampling, catalogue: Catalogue, keys: HashKeys, *, shuffle: bool = False
) -> Iterator[TripleBlock]:
    """The triples of a partition's events, block by block.

    A positive without a negative gives no row and is counted with the reason. A negative is never a positive of the same
    event, and no (event, positive, negative) stands twice. Neither the blocks nor the other events decide what comes out.
    """
    expansion = _Generator(events, negatives, catalogue, keys, shuffle)
    bounds = _bounds(events, negatives, len(keys.nodes))
    for first, end in pairwise(bounds):
        yield expansion.block(first, end)


def _bounds(events: EventArrays, negatives: NegativeSampling, nodes: int) -> list[int]:
    """Where blocks begin and end: about BLOCK triples each, and no more events than the table of marks has cells for."""
    per_positive = negatives.ranking * events.candidates.lengths + negatives.shown * events.shown.lengths
    rows = np.cumsum(events.selected.lengths * (per_positive + (negatives.catalog or 0)))
    most = max(1, _MARKS // max(1, nodes))
    bounds = [0]
    while bounds[-1] < len(events):
        first = bounds[-1]
        full = np.searchsorted(rows, (rows[first - 1] if first else 0) + BLOCK, side="right")
        bounds.append(min(max(first + 1, int(full)), first + most, len(events)))
    return bounds


class _MembershipTable:
    """Set membership for (event, node) keys of a block: a table of marks, wiped after each use where it was written."""

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes
        self._table = np.zeros(0, np.bool_)

    def among(self, long: FlatPairs, others: FlatPairs) -> Flags:
        """Which rows of `long` stand in `others` too."""
        ours, theirs = long.keys(self.nodes), others.keys(self.nodes)
        size = max(int(ours.max(initial=-1)), int(theirs.max(initial=-1))) + 1
        if size > len(self._table):
            self._table = np.zeros(size, np.bool_)
        self._table[theirs] = True
        found = self._table[ours]
        self._table[theirs] = False
        return found


@dataclass(frozen=True)
class _EventNegatives:
    """The negatives that events themselves name: candidates before shown ones, each once, no positive among them."""

    long: FlatPairs
    source: npt.NDArray[np.int8]


class _Generator:
    """What the blocks of a partition share."""

    def __init__(
        self,
        events: EventArrays,
        negatives: NegativeSampling,
        catalogue: Catalogue,
        keys: HashKeys,
        shuffle: bool,  # noqa: FBT001
    ) -> None:
        self.events = events
        self.negatives = negatives
        self.catalogue = catalogue
        self.nodes = keys.nodes
        self.marks = _MembershipTable(len(keys.nodes))
        self.to_draw = keys.of_events("negative", events, with_user=True) if negatives.catalog else None
        self.to_shuffle = keys.of_events("shuffle", events, with_user=False) if shuffle else None

    def block(self, first: int, end: int) -> TripleBlock:
        """The triples of the events from `first` to `end`."""
        pairs = self.events.selected.long(first, end)
        candidates = self.events.candidates.long(first, end)
        named = self._named(pairs, candidates, self.events.shown.long(first, end))
        pair, code, source = _of_all_positives(pairs, named, end - first)
        if self.to_draw is not None:
            pair, code, source = self._with_drawn(first, pairs, named, (pair, code, source))
        order = None
        if self.to_shuffle is not None:
            of_pairs = mix64(self.to_shuffle[first + pairs.event] ^ self.nodes[pairs.code])
            order = mix64(of_pairs[pair] ^ self.nodes[code])
        per_pair = np.bincount(pair, minlength=len(pairs.event))
        event = (first + pairs.event).astype(np.int32)
        without = event[per_pair == 0]
        through = without[self._catalog_exhausted(without)]
        return TripleBlock(
            event[pair],
            pairs.code[pair],
            code,
            source,
            self.marks.among(pairs, candidates)[pair],
            order,
            FlatPairs(event, pairs.code),
            per_pair,
            len(pairs.event) - len(without),
            {NO_NEGATIVES: len(without) - len(through), WHOLE_CATALOGUE_SEEN: len(through)},
            np.unique(self.events.users[through]),
        )

    def _named(self, pairs: FlatPairs, candidates: FlatPairs, shown: FlatPairs) -> _EventNegatives:
        asked = [candidates if self.negatives.ranking else NOTHING, shown if self.negatives.shown else NOTHING]
        kept = []
        for place, long in enumerate(asked):
            new = ~self.marks.among(long, pairs)
            if place and len(asked[0].event):
                new &= ~self.marks.among(long, asked[0])
            kept.append(FlatPairs(long.event[new], long.code[new]))
        source = np.repeat(np.arange(2, dtype=np.int8), [len(long.event) for long in kept])
        if not len(kept[1].event):
            return _EventNegatives(kept[0], source)
        event, code = (np.concatenate([getattr(long, name) for long in kept]) for name in ("event", "code"))
        order = np.argsort(event, kind="stable")
        return _EventNegatives(FlatPairs(event[order], code[order]), source[order])

    def _with_drawn(self, first: int, pairs: FlatPairs, named: _EventNegatives, shared: _Rows) -> _Rows:
        """Each pair's negatives: those its event has for all its positives, then those drawn for it alone."""
        assert self.to_draw is not None  # noqa: S101 - for the type checker
        event = first + pairs.event
        places, counts = sample(
            mix64(self.to_draw[event] ^ self.nodes[pairs.code]),
            self.catalogue.groups[event],
            self.negatives.catalog,
            self.catalogue.even,
            self.catalogue.weighted,
        )
        pair = np.repeat(np.arange(len(event), dtype=np.int32), counts.sum(axis=0))
        code = self.catalogue.codes.astype(np.uint32)[places.T[counts.T]]
        if len(named.long.event):
            new = ~self.marks.among(FlatPairs(pairs.event[pair], code), named.long)
            pair, code = pair[new], code[new]
        drawn = (pair, code, np.full(len(pair), SOURCES.index("catalog"), np.int8))
        if not len(shared[0]):
            return drawn
        both = tuple(np.concatenate([shared[place], drawn[place]]) for place in range(3))
        order = np.argsort(both[0], kind="stable")
        return both[0][order], both[1][order], both[2][order]

    def _catalog_exhausted(self, events: I32) -> Flags:
        """Whether nothing was left to draw for these events, and something could have been offered."""
        if not (self.negatives.catalog and len(self.catalogue.codes)):
            return np.zeros(len(events), np.bool_)
        return self.catalogue.even.sizes[self.catalogue.groups[events]] == 0  # type: ignore[no-any-return]


_Rows = tuple[I32, U32, npt.NDArray[np.int8]]
"""Triples of a block as numbers: the row of the pair (event, positive), the negative's code, the place in SOURCES."""


def _of_all_positives(pairs: FlatPairs, named: _EventNegatives, events: int) -> _Rows:
    """Every pair with every negative that its event names."""
    per_event = np.bincount(named.long.event, minlength=events)
    per_pair = per_event[pairs.event]
    pair = np.repeat(np.arange(len(per_pair), dtype=np.int32), per_pair)
    # Of each pair's run of rows, how far it lies from the run of its event's negatives.
    shift = (np.cumsum(per_event) - per_event)[pairs.event] - (np.cumsum(per_pair) - per_pair)
    row = np.arange(len(pair)) + np.repeat(shift, per_pair)
    return pair, named.long.code[row], named.source[row]


@dataclass(frozen=True)
class TripleBatch:
    """Triples with the events that they are of."""

    events: EventArrays
    block: TripleBlock

    def __len__(self) -> int:
        return len(self.block)

    def slice(self, which: slice) -> Self:
        """Some of them."""
        return type(self)(self.events, self.block.slice(which))


@dataclass(frozen=True)
class EventBatch:
    """Events: a frame with the columns of `Dataset.events`."""

    events: pl.DataFrame

    def __len__(self) -> int:
        return self.events.height

    def slice(self, which: slice) -> Self:
        """Some of them."""
        return type(self)(self.events[which])

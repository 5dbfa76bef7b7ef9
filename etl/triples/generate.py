"""Turn events into BPR triples: one row per (event, positive, negative).

Rendle et al. 2009 (BPR: Bayesian Personalized Ranking from Implicit Feedback) learn from (user, i, j) where the user chose i
and not j. Here i is a positive, and `NegativeSampling` says where j comes from. Users, trips and items are indexes into the
vocabularies. Triples are arrays in batches that fit into a core's cache; ids are written only when a file is encoded.
docs/contract.md, "What is published", defines the rows and their order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from etl.settings.values import NegativeSampling
from etl.transform.arrays import I64, U64, Flags, to_arrow
from etl.transform.hashing import SEPARATOR, hash64, mix64
from etl.triples.sampling import AliasTable, SamplingPools, sample

I32 = npt.NDArray[np.int32]
U32 = npt.NDArray[np.uint32]

SOURCES = ("ranking", "shown", "catalog")
"""Where a negative comes from: `catalog` also with `recommended`. If several yield the same negative, the first counts."""

NO_NEGATIVES, WHOLE_CATALOGUE_SEEN = "no_negatives", "whole_catalog_seen"

BATCH = 1 << 18
"""About how many triples are generated at a time."""

MARKS = 1 << 25
"""The most (event, item) cells of a batch: one byte each."""


@cache
def _first_numbers() -> I64:
    first = np.arange(2 * BATCH)
    first.flags.writeable = False
    return first


def _numbers(count: int) -> I64:
    """0, 1, 2 and so on, read-only. Kept, because new memory costs more than what is done with a batch's numbers."""
    return _first_numbers()[:count] if count <= 2 * BATCH else np.arange(count)


@dataclass(frozen=True)
class ListColumn:
    """A column of lists of item indexes: the list of row r is `codes[ends[r] : ends[r + 1]]`."""

    ends: I64
    codes: U32

    @classmethod
    def of(cls, column: pl.Series) -> ListColumn:
        """From a column of type List(UInt32) without nulls."""
        lengths = column.list.len().to_numpy().astype(np.int64)
        codes = column.explode(empty_as_null=False).cast(pl.UInt32).to_numpy()
        return cls.of_lengths(lengths, codes)

    @classmethod
    def of_lengths(cls, lengths: I64, codes: U32) -> ListColumn:
        """From the length of each list, and the elements of all lists, one list's after the other's."""
        return cls(np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]), codes)

    @property
    def lengths(self) -> I64:
        """The length of each list."""
        return np.diff(self.ends)

    def counts(self, items: int) -> I64:
        """How many of the lists name each of so many items, by index."""
        return np.bincount(self.codes, minlength=items)

    def positions(self, rows: I64 | I32) -> I64:
        """Where the elements of some rows are in `codes`, one row's after the other's."""
        lengths = self.lengths[rows]
        positions = np.repeat(self.ends[rows] - (np.cumsum(lengths) - lengths), lengths)
        positions += _numbers(len(positions))
        return positions

    def long(self, first: int, end: int) -> FlatPairs:
        """The elements of the rows `first` to `end`, one per row, with rows counted from `first`."""
        rows = np.repeat(np.arange(end - first, dtype=np.int32), np.diff(self.ends[first : end + 1]))
        return FlatPairs(rows, self.codes[self.ends[first] : self.ends[end]])


NO_LISTS = ListColumn(np.zeros(1, np.int64), np.zeros(0, np.uint32))
"""The lists of events that are only written, and not expanded."""


@dataclass(frozen=True)
class FlatPairs:
    """One row per element of some lists, in order: the row of its event and the index of the item."""

    event: I32
    code: U32

    def where(self, which: Flags) -> FlatPairs:
        """Some of the rows."""
        rows = np.flatnonzero(which)  # to take these is faster than to select by flags, twice
        return FlatPairs(self.event.take(rows), self.code.take(rows))

    def keys(self, nodes: int) -> I64:
        """(event, item) as one number."""
        return self.event.astype(np.int64) * nodes + self.code


@dataclass(frozen=True)
class _Negatives(FlatPairs):
    """Negatives of events, or of (event, positive) pairs: `event` is then the row of the pair. `source` indexes SOURCES."""

    source: npt.NDArray[np.int8]

    def concat(self, other: _Negatives) -> _Negatives:
        """Both, sorted by `event`; within one, those of `self` first."""
        event, code, source = (
            np.concatenate([ours, theirs])
            for ours, theirs in ((self.event, other.event), (self.code, other.code), (self.source, other.source))
        )
        order = np.argsort(event, kind="stable")
        return _Negatives(event[order], code[order], source[order])


_NOTHING_NAMED = _Negatives(np.zeros(0, np.int32), np.zeros(0, np.uint32), np.zeros(0, np.int8))


@dataclass(frozen=True)
class EventArrays:
    """The events of one partition as arrays, one row per event, in file order."""

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
        """Convert a frame with the columns of `ENCODED_EVENTS`."""
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

    def without_lists(self) -> EventArrays:
        """Return what a file of triples needs: all columns but the lists."""
        return replace(self, candidates=NO_LISTS, selected=NO_LISTS, shown=NO_LISTS)


@dataclass(frozen=True)
class EventRows:
    """Rows of a published table that come from events of a partition: one array per column.

    `values` has one value per row, `runs` one per run of rows that share it, and `lengths` counts the rows of each run. The
    column `event` is a row of `events`; the rows of an event are adjacent, unless there is an `order`: the sort key of a
    shuffled file, which has no runs.
    """

    events: EventArrays
    values: Mapping[str, npt.NDArray[Any]]
    runs: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    lengths: I64 = field(default_factory=lambda: np.zeros(0, np.int64))

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def __getitem__(self, which: slice) -> EventRows:
        values = {name: column[which] for name, column in self.values.items()}
        if not self.runs:
            return EventRows(self.events, values)
        start, stop, _ = which.indices(len(self))
        ends = np.clip(self._ends, start, stop) - start
        lengths = np.diff(ends, prepend=0)
        used = slice(int(np.count_nonzero(ends == 0)), int(np.searchsorted(ends, ends[-1])) + 1)
        runs = {name: column[used] for name, column in self.runs.items()}
        return EventRows(self.events, values, runs, lengths[used])

    @cached_property
    def _ends(self) -> I64:
        """Where each run ends."""
        return np.cumsum(self.lengths)

    @property
    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """All columns with one value per row."""
        return {name: np.repeat(column, self.lengths) for name, column in self.runs.items()} | dict(self.values)

    @classmethod
    def of_runs(
        cls,
        events: EventArrays,
        runs: Mapping[str, npt.NDArray[Any]],
        lengths: I64,
        values: Mapping[str, npt.NDArray[Any]],
        order: U64 | None,
    ) -> EventRows:
        """Return the rows of runs, some of which may be empty. With `order`, they are those of a shuffled file."""
        if not lengths.all():
            some = np.flatnonzero(lengths)
            runs, lengths = {name: column[some] for name, column in runs.items()}, lengths[some]
        rows = cls(events, values, runs, lengths)
        return rows if order is None else cls(events, rows.columns | {"order": order})

    @classmethod
    def concat(cls, batches: Sequence[EventRows]) -> EventRows:
        """Join rows of the same events, of which there must be one."""
        values, runs = (
            {
                name: np.concatenate([getattr(batch, kind)[name] for batch in batches])
                for name in getattr(batches[0], kind)
            }
            for kind in ("values", "runs")
        )
        return cls(batches[0].events.without_lists(), values, runs, np.concatenate([b.lengths for b in batches]))


@dataclass(frozen=True)
class Catalogue:
    """What each event of a partition may sample from its city's catalogue.

    `codes` are the indexes of the eligible items, ascending by id. `groups` has the pool of each event: a group of `pools`.
    `popularity` samples in proportion to it, if that is wanted.
    """

    codes: I64
    groups: I64
    pools: SamplingPools
    popularity: AliasTable | None = None


@dataclass(frozen=True)
class HashKeys:
    """Inputs of the hashes for sampling and shuffling: user ids and hashes of item ids, by index, and the seed."""

    users: pl.Series
    nodes: U64
    seed: int

    @classmethod
    def of(cls, users: pl.Series, items: pl.Series, seed: int) -> HashKeys:
        """Hash the ids of the vocabularies, in index order."""
        return cls(users, items.to_frame("node").select(hash64(pl.col("node"))).to_series().to_numpy(), seed)

    def of_events(self, kind: str, events: EventArrays, *, with_user: bool) -> U64:
        """Return one hash per event."""
        key = {"user": self.users.gather(events.users)} if with_user else {}
        frame = pl.DataFrame({**key, "event": pl.Series(events.ids)})
        parts = [pl.lit(SEPARATOR.join([kind, str(self.seed)])), *map(pl.col, frame.columns)]
        return frame.select(hash64(pl.concat_str(parts, separator=SEPARATOR))).to_series().to_numpy()


@dataclass(frozen=True)
class TripleBatch:
    """Triples of some events of a partition, with counts of the positives that they come from.

    `pairs` are all (event, positive), also those without a triple: `pairs.event` is a row of `events`, `pairs.code` an item
    index. `known` says whether the positive is a candidate of its event, `per_pair` counts the triples of the pair. By triple:
    `negative` is an item index, `source` indexes SOURCES, `order` is the sort key of a shuffled file, None without `shuffle`.
    Triples are in the order of the pairs, then of the negatives: candidates, shown, sampled.

    Events x selected = `positives` + `left_out`, by reason. `exhausted_users` are the users of positives that were excluded
    because the user had selected the whole catalogue.
    """

    events: EventArrays
    pairs: FlatPairs
    known: Flags
    per_pair: I64
    negative: U32
    source: npt.NDArray[np.int8]
    order: U64 | None
    positives: int
    left_out: dict[str, int]
    exhausted_users: U32

    def __len__(self) -> int:
        return len(self.negative)

    @property
    def rows(self) -> EventRows:
        """The triples without the counts; those of a shuffled file have no runs."""
        runs = {"event": self.pairs.event, "positive": self.pairs.code, "in_candidates": self.known}
        values: dict[str, npt.NDArray[Any]] = {"negative": self.negative, "source": self.source}
        return EventRows.of_runs(self.events, runs, self.per_pair, values, self.order)

    @property
    def event(self) -> I32:
        """The row of the event of each triple."""
        return np.repeat(self.pairs.event, self.per_pair)

    @property
    def positive(self) -> U32:
        """The index of the positive of each triple."""
        return np.repeat(self.pairs.code, self.per_pair)

    @property
    def in_candidates(self) -> Flags:
        """Whether the positive of each triple is a candidate of its event."""
        return np.repeat(self.known, self.per_pair)


def generate_triples(
    events: EventArrays, negatives: NegativeSampling, catalogue: Catalogue, keys: HashKeys, *, shuffle: bool = False
) -> Iterator[TripleBatch]:
    """Generate the triples of a partition's events, batch by batch.

    A positive without a negative yields no row and is counted with the reason. A negative is never a positive of the same
    event, and no (event, positive, negative) occurs twice. The rows of an event depend on no other event, and not on how
    events are cut into batches.
    """
    generator = _Generator(events, negatives, catalogue, keys, shuffle)
    for first, end in pairwise(_bounds(events, negatives, len(keys.nodes))):
        yield generator.batch(first, end)


def _bounds(events: EventArrays, negatives: NegativeSampling, nodes: int) -> list[int]:
    """The bounds of batches: about BATCH triples each, and at most MARKS (event, item) cells."""
    per_positive = negatives.ranking * events.candidates.lengths + negatives.shown * events.shown.lengths
    rows = np.cumsum(events.selected.lengths * (per_positive + (negatives.catalog or 0)))
    most = max(1, MARKS // max(1, nodes))
    bounds = [0]
    while bounds[-1] < len(events):
        first = bounds[-1]
        full = np.searchsorted(rows, (rows[first - 1] if first else 0) + BATCH, side="right")
        bounds.append(min(max(first + 1, int(full)), first + most, len(events)))
    return bounds


class MembershipTable:
    """Set membership of (event, item) keys: a table of flags. Each use resets the cells that it set."""

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes
        self._table = np.zeros(0, np.bool_)

    def among(self, long: FlatPairs, others: FlatPairs) -> Flags:
        """Which rows of `long` are in `others`, too."""
        ours, theirs = long.keys(self.nodes), others.keys(self.nodes)
        size = max(int(ours.max(initial=-1)), int(theirs.max(initial=-1))) + 1
        if size > len(self._table):
            self._table = np.zeros(size, np.bool_)
        self._table[theirs] = True
        found = self._table[ours]
        self._table[theirs] = False
        return found

    def common(self, long: FlatPairs, few: FlatPairs) -> tuple[Flags, Flags]:
        """Which rows of `long` are in `few`, and which of `few` are in `long`: faster than to look up every row twice."""
        inside = self.among(long, few)
        return inside, self.among(few, long.where(inside))


class _Generator:
    """Generates the batches of a partition."""

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
        self.marks = MembershipTable(len(keys.nodes))
        self.to_sample = keys.of_events("negative", events, with_user=True) if negatives.catalog else None
        self.to_shuffle = keys.of_events("shuffle", events, with_user=False) if shuffle else None

    def batch(self, first: int, end: int) -> TripleBatch:
        """The triples of the events from `first` to `end`."""
        pairs = self.events.selected.long(first, end)
        candidates = self.events.candidates.long(first, end)
        inside, known = self.marks.common(candidates, pairs)
        named = self._named(pairs, candidates, inside, self.events.shown.long(first, end))
        negative, source, per_pair = _of_all_positives(pairs, named, end - first)
        if self.to_sample is not None:
            pair = np.repeat(np.arange(len(per_pair), dtype=np.int32), per_pair)
            rows = self._with_sampled(first, pairs, named, _Negatives(pair, negative, source))
            negative, source, per_pair = rows.code, rows.source, np.bincount(rows.event, minlength=len(per_pair))
        order = None
        if self.to_shuffle is not None:
            of_pairs = mix64(self.to_shuffle[first + pairs.event] ^ self.nodes[pairs.code])
            order = mix64(np.repeat(of_pairs, per_pair) ^ self.nodes[negative])
        event = (first + pairs.event).astype(np.int32)
        without = event[per_pair == 0]
        exhausted = without[self._catalog_exhausted(without)]
        return TripleBatch(
            self.events,
            FlatPairs(event, pairs.code),
            known,
            per_pair,
            negative,
            source,
            order,
            len(pairs.event) - len(without),
            {NO_NEGATIVES: len(without) - len(exhausted), WHOLE_CATALOGUE_SEEN: len(exhausted)},
            np.unique(self.events.users[exhausted]),
        )

    def _named(self, pairs: FlatPairs, candidates: FlatPairs, inside: Flags, shown: FlatPairs) -> _Negatives:
        """The negatives that the events themselves name: candidates before shown items, each once, without positives.

        `inside` says which candidates are positives.
        """
        named = _NOTHING_NAMED
        for source, long in (("ranking", candidates), ("shown", shown)):
            if not getattr(self.negatives, source):
                continue
            new = ~(inside if long is candidates else self.marks.among(long, pairs))
            if len(named.event):
                new &= ~self.marks.among(long, named)
            kept = long.where(new)
            found = _Negatives(kept.event, kept.code, np.full(len(kept.code), SOURCES.index(source), np.int8))
            named = named.concat(found) if len(named.event) else found
        return named

    def _with_sampled(self, first: int, pairs: FlatPairs, named: _Negatives, shared: _Negatives) -> _Negatives:
        """The negatives of each pair: those that its event has for all its positives, then those sampled for the pair."""
        assert self.to_sample is not None  # noqa: S101 - for the type checker
        event = first + pairs.event
        positions, counts = sample(
            mix64(self.to_sample[event] ^ self.nodes[pairs.code]),
            self.catalogue.groups[event],
            self.negatives.catalog,
            self.catalogue.pools,
            self.catalogue.popularity,
        )
        pair = np.repeat(np.arange(len(event), dtype=np.int32), counts.sum(axis=0))
        code = self.catalogue.codes.astype(np.uint32)[positions.T[counts.T]]
        if len(named.event):
            new = ~self.marks.among(FlatPairs(pairs.event[pair], code), named)
            pair, code = pair[new], code[new]
        sampled = _Negatives(pair, code, np.full(len(pair), SOURCES.index("catalog"), np.int8))
        return shared.concat(sampled) if len(shared.event) else sampled

    def _catalog_exhausted(self, events: I32) -> Flags:
        """Whether the pool of each event is empty although its city has eligible items."""
        if not (self.negatives.catalog and len(self.catalogue.codes)):
            return np.zeros(len(events), np.bool_)
        return self.catalogue.pools.sizes[self.catalogue.groups[events]] == 0  # type: ignore[no-any-return]


def _of_all_positives(pairs: FlatPairs, named: _Negatives, events: int) -> tuple[U32, npt.NDArray[np.int8], I64]:
    """Every pair with every negative that its event names: the negatives, their sources, and how many each pair has."""
    per_event = np.bincount(named.event, minlength=events)
    rows = ListColumn.of_lengths(per_event, named.code).positions(pairs.event)
    return named.code.take(rows), named.source.take(rows), per_event[pairs.event]

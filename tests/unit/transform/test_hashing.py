"""Ids, ties and texts of numbers against Python's own."""

from __future__ import annotations

import hashlib
import json
import uuid

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from etl.transform.hashing import (
    NAMESPACE,
    format_float,
    format_millionths,
    hash64,
    md5_64,
    mix64,
    round_to_millionths,
    stable_id,
)

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
UNIT = (
    st.floats(0, 1)
    | st.integers(0, 10**7).map(lambda n: n / 10**7)
    | st.integers(0, 499_999).map(lambda n: (2 * n + 1) / 2e6)
)


def one(expression: pl.Expr, **columns: object) -> object:
    return pl.DataFrame({name: [value] for name, value in columns.items()}).select(expression).item()


@given(TEXTS, TEXTS, st.integers(0, 2**40))
def test_an_id_is_python_s_uuid5_of_the_key(first, second, seed):
    expected = uuid.uuid5(NAMESPACE, "\x00".join(["kind", str(seed), first, second]))
    assert one(stable_id("kind", seed, "a", "b"), a=first, b=second) == str(expected)


@given(TEXTS)
def test_hashes_are_those_of_hashlib(text):
    assert one(hash64(pl.col("a")), a=text) == int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    assert one(md5_64(pl.col("a")), a=text) == int.from_bytes(hashlib.md5(text.encode()).digest()[:8], "big")


@given(st.integers(0, 2**64 - 1))
def test_mix64_is_splitmix64_s_finalizer(number):
    mask, z = 2**64 - 1, number
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    assert int(mix64(np.array([number], np.uint64))[0]) == z ^ (z >> 31)


@given(UNIT)
def test_rounding_is_python_s_and_its_text_is_json_s(number):
    millionths = round_to_millionths(pl.col("a"))
    assert one(millionths, a=number) == round(round(number, 6) * 1e6)
    assert one(format_millionths(millionths), a=number) == json.dumps(round(number, 6))


def test_every_text_of_millionths_is_json_s():
    every = pl.DataFrame({"a": range(0, 1_000_001, 7)})
    assert every.select(format_millionths(pl.col("a"))).to_series().to_list() == [
        json.dumps(n / 1e6) for n in every["a"]
    ]


@given(st.floats(allow_nan=False, allow_infinity=False) | st.floats(-2e-4, 2e-4))
def test_a_decimal_is_the_shortest_without_a_needless_point(number):
    expected = "0" if number == 0 else repr(number).removesuffix(".0")
    assert one(format_float(pl.col("a")), a=number) == expected
    assert float(expected) == number

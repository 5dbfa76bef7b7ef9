"""Ids, ties and number formatting that stay the same on any machine and with any later release of the libraries.

`Expr.hash` changes between Polars releases (docs/pitfalls.md, 9), so everything that reaches a row comes from a published
algorithm: SHA-1 for UUIDs (RFC 9562, version 5), SHA-256, and the finalizer of splitmix64. What is hashed is always a
list of texts joined by NUL, which PostgreSQL's text can't hold, so two different keys never join to the same text.
"""

from __future__ import annotations

import hashlib
import io
import uuid
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import polars_hash as plh
import pyarrow as pa

# The namespace of every id that bpr-etl makes. Ids can be checked with Python's `uuid.uuid5`.
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "bpr-etl")

SEPARATOR = "\x00"


def stable_id(kind: str, seed: int, *key: str) -> pl.Expr:
    """Returns a row's id: the UUID version 5 of (kind, seed, values of the key columns), as lower-case text."""
    prefix = pl.lit(SEPARATOR.join([kind, str(seed)]))
    name = pl.concat_str([prefix, *(pl.col(column).cast(pl.String) for column in key)], separator=SEPARATOR)
    return _hashing(name).uuidhash.uuid5(str(NAMESPACE))


def sha256_hex(text: pl.Expr) -> pl.Expr:
    """Returns the SHA-256 of the UTF-8 bytes, as 64 hexadecimal digits: PostgreSQL's `encode(sha256(...), 'hex')`."""
    return _hashing(text).chash.sha2_256()


def hash64(text: pl.Expr) -> pl.Expr:
    """Returns the first eight bytes of SHA-256, big-endian, as UInt64."""
    return sha256_hex(text).str.slice(0, 16).str.to_integer(base=16, dtype=pl.UInt64)


def md5_64(text: pl.Expr) -> pl.Expr:
    """Returns the first eight bytes of MD5, big-endian, as UInt64: a checksum that PostgreSQL can compute, not a signature."""
    return _hashing(text).nchash.md5().str.slice(0, 16).str.to_integer(base=16, dtype=pl.UInt64)


def mix64(number: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Returns the finalizer of splitmix64 (Steele, Lea, Flood 2014): one to one, each bit depends on all. A new array."""
    z = number ^ (number >> np.uint64(30))
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def update_with_frame(digest: hashlib._Hash, frame: pl.DataFrame) -> None:
    """Add the names, types and values of a frame to a hash. Only within one version of the libraries is it always the same."""
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest()).combine_chunks()
    with pa.ipc.new_stream(pa.PythonFile(_HashSink(digest), mode="w"), table.schema) as stream:
        stream.write_table(table)


class _HashSink(io.RawIOBase):
    """A file that keeps nothing but the hash of what is written to it."""

    def __init__(self, digest: hashlib._Hash) -> None:
        self._digest = digest

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, content: Any) -> int:
        """Hash the next bytes."""
        self._digest.update(content)
        return len(content)


def round_to_millionths(number: pl.Expr) -> pl.Expr:
    """Returns a float in [0, 1] as integer millionths (Int64), rounded half-even as by `round(x, 6)`. Null stays null."""
    # Multiplying by 1e6 alone would round twice and see ties where there are none (0.1234565 is below one). So the
    # product's error is computed too (Dekker 1971), and decides the ties.
    product = number * 2e6
    high = number * 134217729.0 - (number * 134217729.0 - number)  # 2**27 + 1: the upper half of the bits
    error = (high * 2e6 - product) + (number - high) * 2e6
    halved = product * 0.5
    nearest = halved.round(0, mode="half_to_even")
    remainder = halved - nearest
    up = ((remainder == 0.5) & (error > 0)).cast(pl.Int64)
    down = ((remainder == -0.5) & (error < 0)).cast(pl.Int64)
    return nearest.cast(pl.Int64) + up - down


def format_millionths(millionths: pl.Expr) -> pl.Expr:
    """Returns integer millionths in [0, 1000000] as the shortest decimal of that float, as JSON has it: 0.85, 1.0, 2.5e-05."""
    # From the digits, not by division: Polars multiplies by the reciprocal, which is off by one bit.
    digits = millionths.cast(pl.String)
    plain = "0." + digits.str.zfill(6).str.strip_chars_end("0")
    tens = digits.str.slice(0, 1) + pl.when(millionths % 10 == 0).then(pl.lit("")).otherwise(
        "." + digits.str.slice(1, 1)
    )
    return (
        pl.when(millionths == 0)
        .then(pl.lit("0.0"))
        .when(millionths == 1_000_000)
        .then(pl.lit("1.0"))
        .when(millionths < 10)
        .then(digits + "e-06")
        .when(millionths < 100)
        .then(tens + "e-05")
        .otherwise(plain)
    )


def format_float(number: pl.Expr) -> pl.Expr:
    """Returns the shortest decimal that gives the same float64: 0.85, 1, 1.5e-05, 1e+16. Null stays null.

    That is Python's `repr` without a trailing `.0`. Polars writes the same digits, but other exponents.
    """
    text = number.cast(pl.String).str.strip_suffix(".0")
    exponent = text.str.replace(r"e-(\d)$", "e-0$1")
    # One decade, 1e-5 to 1e-4, has no exponent in Polars.
    digits = text.str.strip_chars_start("-").str.strip_prefix("0.0000")
    fraction = digits.str.slice(1)
    mantissa = digits.str.slice(0, 1) + pl.when(fraction == "").then(pl.lit("")).otherwise("." + fraction)
    sign = pl.when(number < 0).then(pl.lit("-")).otherwise(pl.lit(""))
    in_decade = number.abs().is_between(1e-5, 1e-4, closed="left")
    return pl.when(in_decade).then(sign + mantissa + "e-05").when(number == 0).then(pl.lit("0")).otherwise(exponent)


def _hashing(text: pl.Expr) -> plh.HExpr:
    return text  # type: ignore[return-value]  # importing polars_hash gives every expression its namespaces

"""Numbers, sizes, shares and moments as the report writes them: in the same way whatever the machine's language is."""

from __future__ import annotations

import math
from datetime import date, datetime

NONE = "\N{EN DASH}"
_SHORT = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def format_number(value: float | None) -> str:
    """`680,207`; a number that is not whole with three decimals."""
    if value is None or not math.isfinite(value):
        return NONE
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.3f}"


def counted(number: int, one: str, many: str | None = None) -> str:
    """`1 check`, `3 checks`; `many` where that is more than an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def format_range(bounds: tuple[float, float] | None, *, whole: bool) -> str:
    """A range: `9,114 to 9,454`; what counts something is never below 0."""
    if bounds is None:
        return NONE
    low, high = (round(max(0.0, bound), 0 if whole else 3) for bound in bounds)
    return f"{format_number(low)} to {format_number(high)}"


def format_si(value: float) -> str:
    """For axes: `680k`, `1.2M`, `0.65`."""
    for unit, letter in _SHORT:
        if abs(value) >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def format_percent(part: float, whole: float | None = 1.0) -> str:
    """`20.3%`; what is not nought and not all is never written as if it were."""
    if not whole:
        return NONE
    percent = part / whole * 100
    if 0 < percent < 0.05:
        return "< 0.1%"
    if 99.95 <= percent < 100:
        return "> 99.9%"
    return f"{percent:.1f}%" if percent % 100 else f"{percent:.0f}%"


def format_change(value: float | None) -> str:
    """A change as a part of what was there before: `+1.2%`, `-53%`, `±0%`."""
    if value is None or not math.isfinite(value):
        return NONE
    if value == 0:
        return "±0%"
    percent = abs(value) * 100
    sign = "+" if value > 0 else "\N{MINUS SIGN}"
    if percent < 0.1:
        return f"{sign}{percent:.2f}%"
    return f"{sign}{percent:.1f}%" if percent < 10 else f"{sign}{percent:,.0f}%"


def format_bytes(number: float) -> str:
    """Bytes: `395.8 kB`, in powers of 1,000."""
    for unit, letter in _SHORT:
        if number >= unit:
            return f"{number / unit:.1f} {letter}B"
    return f"{number:,.0f} B"


def format_duration(value: float) -> str:
    """`3.3 s`, `12 min`, `2.5 h`."""
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def format_date(moment: date) -> str:
    """`25 Nov 2026`, in English."""
    return f"{moment.day} {MONTHS[moment.month - 1]} {moment.year}"


def format_datetime(moment: datetime) -> str:
    """`25 Nov 2026, 19:59 UTC`, of a moment in UTC."""
    return f"{format_date(moment)}, {moment:%H:%M} UTC"


MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

"""Names of cities that somebody could give a trip, and a world whose trips go there."""

from __future__ import annotations

import unicodedata

import psycopg
from psycopg.types.json import Jsonb

COMBINED = unicodedata.normalize("NFC", "Orléans")
TAKEN_APART = unicodedata.normalize("NFD", "Orléans")

OUT_OF_THE_FOLDER = (
    "../x",
    "../../../../etc/cron.d/x",
    "..",
    ".",
    "...",
    "a/b",
    "/",
    "//",
    "/etc/passwd",
    "a/../../b",
    "./x",
)
OF_OTHER_SYSTEMS = (
    "CON",
    "con",
    "NUL",
    "aux.txt",
    "COM1",
    "C:\\x",
    "..\\x",
    "a\\b",
    "a:b",
    "x:$DATA",
    "dot.",
    "space ",
    " space",
)
ENCODED = ("%2F", "..%2f..%2fx", "%", "%%", "%00", "%c3%28", "a+b", "&amp;", "%7E")
CONTROL = (
    "new\nline",
    "tab\tand\rreturn",
    "\x01\x02\x1f\x7f",
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "\x85\u2028\u2029",
    "\u202egnp.exe",
)
LONG = ("x" * 249, "x" * 250, "x" * 251, "x" * 300, "東" * 100, "🏙" * 300)
ALIKE = ("Paris", "paris", "PARIS", COMBINED, TAKEN_APART, "P\u0430ris", "ﬁ", "fi")
OF_READERS = (
    "city=x",
    "a=b",
    "split=train",
    "__HIVE_DEFAULT_PARTITION__",
    "null",
    "NULL",
    "None",
    "nan",
    "007",
    "1e5",
    "true",
    "2024-01-01",
)
OF_SHELLS = ("~", "~root", "$HOME", "`id`", '\'; DROP TABLE "Trip"; --', '"', "*", "?[a]", "<|>", "-rf", "#x", "")
OF_TABLES = ("[/red]", "[bold]x", "[link=file:///etc/passwd]x[/link]", ":smiley:", "👩‍👩‍👧", "\ufeff", "\u200b")
NAMES = tuple(
    dict.fromkeys(
        (
            *OUT_OF_THE_FOLDER,
            *OF_OTHER_SYSTEMS,
            *ENCODED,
            *CONTROL,
            *LONG,
            *ALIKE,
            *OF_READERS,
            *OF_SHELLS,
            *OF_TABLES,
        )
    )
)


def add_trips(url: str, cities: tuple[str, ...]) -> None:
    """Send a shadow user on one more trip to each of the cities, each with four places, of which a day's slot has one."""
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        (trip, slot), *_ = cursor.execute(
            """SELECT t."id", min(s."id") FROM "Trip" t JOIN "User" u ON u."id" = t."userId"
            JOIN "ItinerarySlot" s ON s."tripId" = t."id" WHERE starts_with(u."email", 'shadow-')
            AND t."personaSeed" IS NOT NULL AND s."status" = 'confirmed' GROUP BY 1 ORDER BY 1 LIMIT 1"""
        ).fetchall()
        categories = cursor.execute("""SELECT unnest(enum_range(NULL::"ActivityCategory"))::text LIMIT 4""").fetchall()

        def like(table: str, row: str, **changed: str) -> None:
            query = """INSERT INTO "{0}" SELECT (jsonb_populate_record(x, %s)).* FROM "{0}" x WHERE x."id" = %s"""
            cursor.execute(query.format(table).encode(), [Jsonb(changed), row])

        for number, city in enumerate(cities):
            for place, (category,) in enumerate(categories):
                cursor.execute(
                    """INSERT INTO "ActivityNode" ("id", "city", "category", "status", "name", "latitude", "longitude")
                    VALUES (%s, %s, %s::"ActivityCategory", 'approved', 'a place', 0, 0)""",
                    [f"node-{number}-{place}", city, category],
                )
            like("Trip", trip, id=f"trip-{number}", city=city)
            like("ItinerarySlot", slot, id=f"slot-{number}", tripId=f"trip-{number}", activityNodeId=f"node-{number}-0")

"""An application at work: people and synthetic users plan, change and delete trips, slots and signals all the time."""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Self

import psycopg


@dataclass
class Application:
    """Threads that write as an application does, each transaction a few statements, until it is stopped.

    They change the trips of shadow users, and those of `app-` users that they make themselves; the real users that were there
    before are left alone, so that their rows can be compared. `done` counts transactions by kind.
    """

    url: str
    threads: int = 2
    done: Counter[str] = field(default_factory=Counter)
    failures: list[BaseException] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _workers: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        for number in range(self.threads):
            self._workers.append(threading.Thread(target=self._work, args=(number,)))
        self._workers.append(threading.Thread(target=self._read))
        for worker in self._workers:
            worker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for worker in self._workers:
            worker.join()

    def _work(self, number: int) -> None:
        random = Random(number)  # noqa: S311 - no secret
        kinds = (self._plan, self._move, self._drop, self._act, self._act, self._judge, self._forget)
        try:
            with psycopg.connect(self.url) as connection:
                while not self._stop.is_set():
                    kind = random.choice(kinds)
                    try:
                        with connection.transaction():
                            kind(connection, random)
                        self.done[kind.__name__.strip("_")] += 1
                    except (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected):
                        self.done["retried"] += 1
                    except psycopg.errors.ForeignKeyViolation:
                        self.done["too late"] += 1  # the other thread has deleted what this one wanted
                    self._stop.wait(0.01)
        except BaseException as error:
            self.failures.append(error)
            raise

    def _read(self) -> None:
        """A reader who would notice a moment without rows, with half of them, or with persona rows of half a user."""
        try:
            with psycopg.connect(self.url, autocommit=True) as connection:
                while not self._stop.is_set():
                    events, twice, halves = connection.execute(
                        """SELECT (SELECT count(*) FROM "RankingEvent" e JOIN "User" u ON u."id" = e."userId"
                            WHERE starts_with(u."email", 'shadow-')),
                          (SELECT count(*) FROM (SELECT FROM "RankingEvent" GROUP BY "tripId", "dayNumber" HAVING count(*) > 1) d),
                          (SELECT count(*) FROM (SELECT FROM "PersonaDimension" p JOIN "User" u ON u."id" = p."userId"
                            WHERE starts_with(u."email", 'shadow-') GROUP BY p."userId" HAVING count(*) <> 8) h)"""
                    ).fetchone()
                    assert events > 0, "a reader saw no ranking event"
                    assert twice == 0, "a reader saw the events of two nights"
                    assert halves == 0, "a reader saw persona rows of half a user"
                    self.done["read"] += 1
                    self._stop.wait(0.01)
        except BaseException as error:
            self.failures.append(error)
            raise

    @staticmethod
    def _someone(connection: psycopg.Connection, random: Random) -> str:
        """A shadow user, or a person of our own making."""
        if random.random() < 0.6:
            ids = connection.execute(
                """SELECT "id" FROM "User" WHERE starts_with("email", 'shadow-') ORDER BY "id" """
            ).fetchall()
            return random.choice(ids)[0]
        own = f"app-{random.randint(1, 20)}"
        connection.execute(
            """INSERT INTO "User" ("id", "email") VALUES (%s, %s) ON CONFLICT ("id") DO NOTHING""",
            (own, f"{own}@example.test"),
        )
        return own

    def _plan(self, connection: psycopg.Connection, random: Random) -> None:
        """A new trip with days and slots."""
        user, trip = self._someone(connection, random), str(uuid.UUID(int=random.getrandbits(128)))
        city = connection.execute('SELECT "city" FROM "ActivityNode" ORDER BY random() LIMIT 1').fetchone()[0]
        connection.execute(
            """INSERT INTO "Trip" ("id", "userId", "city", "startDate", "createdAt", "personaSeed")
            VALUES (%s, %s, %s, now(), now(), '{"pace": "packed"}')""",
            (trip, user, city),
        )
        connection.execute(
            """INSERT INTO "ItinerarySlot" ("id", "tripId", "activityNodeId", "dayNumber", "sortOrder", "status")
            SELECT %s || n, %s, (SELECT "id" FROM "ActivityNode" WHERE "city" = %s ORDER BY random() LIMIT 1),
              1 + n / 4, n, 'confirmed' FROM generate_series(1, 12) n""",
            (trip, trip, city),
        )

    def _move(self, connection: psycopg.Connection, random: Random) -> None:
        """A trip to another city, in one transaction with its slots: nobody may see it half moved."""
        found = connection.execute(
            'SELECT "tripId" FROM "ItinerarySlot" ORDER BY md5("id" || %s) LIMIT 1', (str(random.random()),)
        ).fetchone()
        if found:
            connection.execute(
                """UPDATE "ItinerarySlot" SET "dayNumber" = "dayNumber" %% 5 + 1, "sortOrder" = "sortOrder" + 1
                WHERE "tripId" = %s AND "tripId" IN (SELECT t."id" FROM "Trip" t JOIN "User" u ON u."id" = t."userId"
                  WHERE starts_with(u."email", 'shadow-') OR starts_with(u."email", 'app-'))""",
                found,
            )

    def _drop(self, connection: psycopg.Connection, random: Random) -> None:
        """One of the application's own trips goes, with all that hangs on it."""
        trip = connection.execute(
            """SELECT "id" FROM "Trip" WHERE "personaSeed" = '{"pace": "packed"}' ORDER BY md5("id" || %s) LIMIT 1""",
            (str(random.random()),),
        ).fetchone()
        if trip:
            connection.execute('DELETE FROM "BehavioralSignal" WHERE "tripId" = %s', trip)
            connection.execute('DELETE FROM "ItinerarySlot" WHERE "tripId" = %s', trip)
            connection.execute('DELETE FROM "Trip" WHERE "id" = %s', trip)

    def _act(self, connection: psycopg.Connection, random: Random) -> None:
        """A new signal, without a model version: the backfill wants it, where it is a shadow user's."""
        connection.execute(
            """INSERT INTO "BehavioralSignal" ("id", "userId", "signalType") SELECT %s, %s,
            (SELECT "signalType" FROM "BehavioralSignal" LIMIT 1)""",
            (str(uuid.UUID(int=random.getrandbits(128))), self._someone(connection, random)),
        )

    def _judge(self, connection: psycopg.Connection, random: Random) -> None:
        """Signals change: where the backfill wants the same ones, one of the two has to give way."""
        connection.execute(
            """UPDATE "BehavioralSignal" SET "modelVersion" = NULL WHERE "id" IN (SELECT s."id" FROM "BehavioralSignal" s
              JOIN "User" u ON u."id" = s."userId" WHERE (starts_with(u."email", 'shadow-') OR starts_with(u."email", 'app-'))
              AND (%s OR s."modelVersion" IS NULL) ORDER BY md5(s."id" || %s) LIMIT 1)""",
            (random.random() < 0.985, str(random.random())),
        )

    def _forget(self, connection: psycopg.Connection, random: Random) -> None:
        """A signal goes."""
        connection.execute(
            """DELETE FROM "BehavioralSignal" WHERE "id" IN (SELECT s."id" FROM "BehavioralSignal" s JOIN "User" u
              ON u."id" = s."userId" WHERE starts_with(u."email", 'app-') ORDER BY md5(s."id" || %s) LIMIT 1)""",
            (str(random.random()),),
        )

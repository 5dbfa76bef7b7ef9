"""Threads that work ahead or behind: one ordered worker, and prefetching of an iterator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class OrderedWorker:
    """Runs submitted functions on one thread, in order. After a failure the later ones fail with the same error."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._waiting: list[Future[Any]] = []

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Run a function after all that were submitted before, unless one of them failed."""
        before = self._waiting[-1] if self._waiting else None

        def in_turn() -> T:
            if before is not None:
                before.result()
            return work()

        future = self._pool.submit(in_turn)
        self._waiting.append(future)
        return future

    def wait(self) -> None:
        """Wait until all submitted functions are done. Raises the first failure."""
        while self._waiting:
            self._waiting.pop(0).result()


@contextmanager
def ordered_worker() -> Iterator[OrderedWorker]:
    """Start a worker for a block. It is meant for work that mostly waits for the server.

    When the block raises, functions that have not begun are dropped, and the running one is waited for.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="behind")
    try:
        yield OrderedWorker(pool)
    finally:
        pool.shutdown(cancel_futures=True)


def prefetch(items: Iterator[T]) -> Iterator[T]:
    """Yield the same items, each produced on another thread while the one before is worked on. None ends the items."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        following = pool.submit(next, items, None)
        while (item := following.result()) is not None:
            following = pool.submit(next, items, None)
            yield item

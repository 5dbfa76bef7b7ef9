"""Cancellation: a signal cancels the work within seconds, on the server too, and what was begun is undone.

Python handles signals on the main thread only, between bytecodes, and drivers wait in C. So `interruptible` does the work on
another thread while the main thread waits for signals. The work checks the `CancelToken` that it was given at every step.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from typing import TypeVar

from etl.errors import EtlError

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that cancel, unless the caller has them ignored (nohup, a shell's background job)."""

GRACE_SECONDS = 3.5
"""Seconds that the work has to undo itself. Then the process ends all the same, which is as safe as a crash."""

RETRY_SECONDS = 0.5
"""Seconds between two attempts to cancel what the server is doing."""

POLL_SECONDS = 0.2
"""Seconds between two checks of a condition that another process changes."""


class CancelledError(EtlError):
    """The run was cancelled: nothing was committed or published. `signal` is the number of the signal."""

    exit_code = 130

    def __init__(self, message: str, signal_number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signal = signal_number
        self.exit_code = 128 + signal_number


class CancelToken:
    """Whether the work was cancelled. One thread cancels; the working threads check, and register callbacks.

    After `begin_critical` cancelling has no effect: what was begun (COMMIT, the switch of LATEST) is finished.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._critical = False
        self._callbacks: list[Callable[[], object]] = []

    def cancel(self) -> bool:
        """Cancel, and call the callbacks. Returns False where it is too late."""
        with self._lock:
            if self._critical:
                return False
            self._cancelled.set()
            callbacks = list(self._callbacks)
        for cancel in callbacks:
            # Each on a daemon thread: cancelling a query needs a connection, and the server may be unreachable.
            threading.Thread(target=_quietly, args=(cancel,), daemon=True, name="cancel").start()
        return True

    def raise_if_cancelled(self) -> None:
        """Raise CancelledError if the work was cancelled."""
        if self._cancelled.is_set():
            raise CancelledError("Stopped.")

    def sleep(self, seconds: float) -> None:
        """Wait, at most until the work is cancelled: then raise CancelledError."""
        self._cancelled.wait(seconds)
        self.raise_if_cancelled()

    def poll(self, ready: Callable[[], bool], seconds: float) -> bool:
        """Wait until something is ready. Returns False if it is not in time. Raises CancelledError."""
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() >= deadline:
                return False
            self.sleep(POLL_SECONDS)
        return True

    def begin_critical(self) -> None:
        """Make cancelling impossible from now on. Raises CancelledError if the work was cancelled before."""
        with self._lock:
            self.raise_if_cancelled()
            self._critical = True

    def end_critical(self) -> None:
        """Make cancelling possible again: what had been begun was undone."""
        with self._lock:
            self._critical = False

    @contextmanager
    def on_cancel(self, cancel: Callable[[], object]) -> Iterator[None]:
        """Have `cancel` called when the work is cancelled during the block. Raises CancelledError if it was already."""
        with self._lock:
            self.raise_if_cancelled()
            self._callbacks.append(cancel)
        try:
            yield
        finally:
            with self._lock:
                self._callbacks.remove(cancel)


def _quietly(cancel: Callable[[], object]) -> None:
    with suppress(Exception):
        cancel()


def interruptible(work: Callable[[CancelToken], T]) -> T:
    """Do work on another thread while this one, the main thread, waits for SIGNALS. Returns the work's result.

    The first signal cancels; further ones change nothing. Raises CancelledError when the work has undone itself, or has not
    after GRACE_SECONDS, and what the work raises by itself. Where the signal comes too late, the work's own outcome counts.
    """
    stop, done = CancelToken(), Future[T]()
    received: list[int] = []

    def target() -> None:
        try:
            done.set_result(work(stop))
        except BaseException as error:  # noqa: BLE001 - raised again by result(), on the main thread
            done.set_exception(error)

    with _catch_signals(received):
        threading.Thread(target=target, daemon=True, name="work").start()
        while not done.done() and not received:
            # In short pieces: the system may give a signal to another thread, and this one handles it when it next wakes.
            wait([done], POLL_SECONDS)
        if received:  # also if the work has ended: Polars ends its own at SIGINT, with a KeyboardInterrupt
            _end(stop, done, received[0])
        return done.result()


@contextmanager
def _catch_signals(received: list[int]) -> Iterator[None]:
    """Append the numbers of SIGNALS that arrive during the block."""
    before = {
        number: signal.signal(number, lambda number, _frame: received.append(number))
        for number in SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(stop: CancelToken, done: Future[T], number: int) -> None:
    """Cancel and wait. Raises CancelledError, unless the work ended by itself all the same."""
    name = signal.Signals(number).name
    deadline = time.monotonic() + GRACE_SECONDS
    in_time = stop.cancel()
    while not done.done() and time.monotonic() < deadline:
        wait([done], RETRY_SECONDS)
        stop.cancel()  # again: a cancel request that arrives just before its query is lost
    if not done.done():
        state = (
            "the work could not be undone in time; the server rolls it back, and the next run clears the rest"
            if in_time
            else "COMMIT was under way, and its outcome is not known: the next run mends what is missing"
        )
        raise CancelledError(f"Stopped by {name}: {state}.", number)
    if in_time and done.exception() is not None:
        raise CancelledError(f"Stopped by {name}: nothing was committed or published.", number) from None

"""To stop in mid-run: a signal is heard at once, carried to the server, and everything under way is undone.

Drivers wait in C, where Python hears no signal; so the work is done on a thread of its own (`interruptible`), and the main
thread does nothing but listen. Whoever works looks at the `CancelToken` that it was given at every step.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import TypeVar

from etl.errors import EtlError

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Those that ask for an end, but where the caller has them ignored (nohup, a shell's background job)."""

GRACE_SECONDS = 3.5
"""Seconds that the work has to undo itself. After these the process ends all the same: as safe, since a crash is, too."""

AGAIN_SECONDS = 0.5
"""Seconds between two tries to cancel what the server is doing."""

POLL_SECONDS = 0.2
"""Seconds between two looks at whether another process has done what is waited for."""


class CancelledError(EtlError):
    """Somebody asked for an end: nothing was committed or published. `signal` is what asked."""

    exit_code = 130

    def __init__(self, message: str, signal_number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.signal = signal_number
        self.exit_code = 128 + signal_number


class CancelToken:
    """Whether an end was asked for. One thread asks; the working ones look, and say what is to be called at once.

    After `begin_critical` it is too late: what was begun (COMMIT, the switch of LATEST) is finished, which takes little time.
    Then nobody can have asked, nor can ask: `check` has nothing to raise.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = threading.Event()
        self._shielded = False
        self._at_once: list[Callable[[], object]] = []

    def cancel(self) -> bool:
        """Ask for an end, and have the waiting server calls cancelled; False where it is too late."""
        with self._lock:
            if self._shielded:
                return False
            self._asked.set()
            at_once = list(self._at_once)
        for cancel in at_once:
            # Each on a thread that nobody waits for: to cancel is to connect, and the server may be unreachable.
            threading.Thread(target=_quietly, args=(cancel,), daemon=True, name="cancel").start()
        return True

    def raise_if_cancelled(self) -> None:
        """Raise StoppedError where an end was asked for in time."""
        if self._asked.is_set():
            raise CancelledError("Stopped.")

    def sleep(self, seconds: float) -> None:
        """Wait, but not for longer than until an end is asked for: then raise StoppedError."""
        self._asked.wait(seconds)
        self.raise_if_cancelled()

    def poll(self, ready: Callable[[], bool], seconds: float) -> bool:
        """Look again and again whether something is ready, for so long; whether it was. Raises StoppedError."""
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() >= deadline:
                return False
            self.sleep(POLL_SECONDS)
        return True

    def begin_critical(self) -> None:
        """From now on it is too late. Raises StoppedError where an end was asked for before."""
        with self._lock:
            self.raise_if_cancelled()
            self._shielded = True

    def end_critical(self) -> None:
        """It is not too late any more: what had been begun came to nothing."""
        with self._lock:
            self._shielded = False

    @contextmanager
    def on_cancel(self, cancel: Callable[[], object]) -> Iterator[None]:
        """Have something called as soon as an end is asked for, during the block. Raises StoppedError if it was already."""
        with self._lock:
            self.raise_if_cancelled()
            self._at_once.append(cancel)
        try:
            yield
        finally:
            with self._lock:
                self._at_once.remove(cancel)


def _quietly(cancel: Callable[[], object]) -> None:
    with suppress(Exception):
        cancel()


def interruptible(work: Callable[[CancelToken], T]) -> T:
    """Do work on a thread of its own while this one, the main one, listens to SIGNALS; gives what the work gives.

    A first signal asks for an end, further ones change nothing. Raises StoppedError when the work has undone itself, or has
    not after GRACE seconds; what the work raises of itself goes through. Where the signal comes too late, the work's end
    is the end.
    """
    stop, done = CancelToken(), Future[T]()
    with _listening() as news:

        def target() -> None:
            try:
                done.set_result(work(stop))
            except BaseException as error:  # noqa: BLE001 - raised again, on the thread that asked
                done.set_exception(error)
            news.end()

        threading.Thread(target=target, daemon=True, name="work").start()
        number = news.next()
        if number:
            _end(stop, done, number, news)
        return done.result()


class _SignalPipe:
    """What the main thread waits for: the number of a signal, or 0 for the work's end. See `_listening`."""

    def __init__(self) -> None:
        self.ended = False
        self.ours, self.theirs = os.pipe()
        os.set_blocking(self.theirs, False)

    def end(self) -> None:
        """Say that the work has ended."""
        os.write(self.theirs, b"\0")

    def next(self, seconds: float | None = None) -> int | None:
        """The next thing that happens; None when nothing does for so long."""
        while select.select([self.ours], [], [], seconds)[0]:
            number = os.read(self.ours, 1)[0]
            self.ended = self.ended or number == 0
            if number in (0, *SIGNALS):  # other signals with a handler come by here, too
                return number
        return None


@contextmanager
def _listening() -> Iterator[_SignalPipe]:
    """Hear SIGNALS during the block.

    Through a pipe that Python's own handler writes to (`set_wakeup_fd`): the system may give a signal to any thread, and then
    nothing else wakes the main one, where alone Python hears them.
    """
    news = _SignalPipe()
    before = {
        number: signal.signal(number, lambda _number, _frame: None)
        for number in SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    woken = signal.set_wakeup_fd(news.theirs, warn_on_full_buffer=False)
    try:
        yield news
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        if news.ended:  # else it stays open: work that could not be undone in time still writes its end to it
            os.close(news.ours)
            os.close(news.theirs)


def _end(stop: CancelToken, done: Future[T], number: int, news: _SignalPipe) -> None:
    """Ask for an end and wait for it. Raises StoppedError but where the work came to its own end all the same."""
    name = signal.Signals(number).name
    deadline = time.monotonic() + GRACE_SECONDS
    in_time = stop.cancel()
    while not news.ended and time.monotonic() < deadline:
        news.next(AGAIN_SECONDS)  # the end, or one more signal of an impatient person
        stop.cancel()  # again, since a cancel that comes just before its query begins is lost
    if not news.ended:
        state = (
            "the work could not be undone in time; the server rolls it back, and the next run clears the rest"
            if in_time
            else "COMMIT was under way, and its outcome is not known: the next run mends what is missing"
        )
        raise CancelledError(f"Stopped by {name}: {state}.", number)
    if in_time and done.exception() is not None:
        raise CancelledError(f"Stopped by {name}: nothing was committed or published.", number) from None

"""Who does the steps that go bucket by bucket: this process, or a Ray cluster (`--engine`). The steps are the same functions.

A step is a function of a module, pure but for the files that it is told to write, so that it may be done twice. It is given
what all its calls share, then its own arguments. Results are asked for in the order in which the calls were begun.
"""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Protocol

from etl.errors import ConnectError
from etl.runtime.version import __version__

LOCAL, RAY = "local", "ray"

TaskFunction = Callable[..., Any]
ObjectRef = Any
"""A value that stays where it was made; an engine fetches it, and a step that is given one gets the value."""


class Task(Protocol):
    """A call that was begun."""

    def result(self) -> Any:
        """What it gave; waits for it. Raises what it raised, StoppedError; ConnectError where the engine is lost."""

    @property
    def outputs(self) -> Sequence[ObjectRef]:
        """What it made beside its result, where that stays; known when the result is."""


class Executor(ABC):
    """Who does the steps. `apart`: in other processes, so that what they are given and give travels."""

    apart = False

    @property
    def max_pending(self) -> int:
        """How many calls may be under way before the first one's result is asked for."""
        return 0

    @abstractmethod
    def broadcast(self, value: Any) -> Any:
        """Something that all calls of a step are given; it travels once."""

    @abstractmethod
    def submit(self, step: TaskFunction, shared: Any, *arguments: Any, num_outputs: int = 0) -> Task:
        """Call a step. One that `keeps` so many values gives its result and a list of them."""

    @abstractmethod
    def get(self, held: ObjectRef) -> Any:
        """A value that was kept."""


@dataclass(frozen=True)
class CompletedTask:
    """A call that was done at once."""

    value: Any
    outputs: Sequence[ObjectRef] = ()

    def result(self) -> Any:
        """What it gave."""
        return self.value


class LocalExecutor(Executor):
    """This process, one call after the other; Polars and what writes files have threads of their own."""

    def broadcast(self, value: Any) -> Any:
        """The value itself."""
        return value

    def submit(self, step: TaskFunction, shared: Any, *arguments: Any, num_outputs: int = 0) -> Task:
        """See Executor. It is done when this returns."""
        answer = step(shared, *arguments)
        return CompletedTask(*answer) if num_outputs else CompletedTask(answer)

    def get(self, held: ObjectRef) -> Any:
        """The value itself."""
        return held


LOCAL_EXECUTOR = LocalExecutor()


def map_ordered(
    engine: Executor, step: TaskFunction, shared: Any, calls: Iterable[tuple[Any, ...]], num_outputs: int = 0
) -> Iterator[Task]:
    """Call a step with each of many arguments, a bounded number of calls under way, and give them in their order."""
    waiting: deque[Task] = deque()
    for arguments in calls:
        waiting.append(engine.submit(step, shared, *arguments, num_outputs=num_outputs))
        if len(waiting) > engine.max_pending:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def versions() -> dict[str, str]:
    """What decides bytes: everybody who does steps must have the same."""
    deciding = ("polars", "pyarrow", "numpy", "polars-hash")
    return {"bpr-etl": __version__, "Python": platform.python_version()} | {name: version(name) for name in deciding}


def require_same(wanted: Mapping[str, str]) -> None:
    """Raise ConnectError where this process has other versions than the one that it works for."""
    here = versions()
    other = [f"{name} {here[name]} and not {number}" for name, number in wanted.items() if here[name] != number]
    if other:
        raise ConnectError(
            f"A worker has {', '.join(other)}. Install the same versions on all machines, since bytes depend on them."
        )

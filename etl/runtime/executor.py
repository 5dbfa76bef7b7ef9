"""Executors: where bucket tasks run, in this process or on a Ray cluster (`--engine`). The tasks are the same functions.

A task function belongs to a module and is pure, except for the files that its arguments name, so that it may run twice. Its
first argument is shared by all calls. Results are fetched in the order of the calls.
"""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from etl.errors import ConnectError
from etl.runtime.resources import __version__, installed_version

LOCAL, RAY = "local", "ray"

TaskFunction = Callable[..., Any]
ObjectRef = Any
"""A value that stays where it was made. `Executor.get` fetches it; a task that is given one receives the value."""


class Task(Protocol):
    """A submitted call."""

    def result(self) -> Any:
        """Wait for the result. Raises what the call raised, CancelledError, or ConnectError where the executor is lost."""

    @property
    def outputs(self) -> Sequence[ObjectRef]:
        """References to its further outputs. Known once `result` has returned."""


class Executor(ABC):
    """Runs task functions. `apart` is true where they run in other processes, so that arguments and results are sent."""

    apart = False

    @property
    def max_pending(self) -> int:
        """Calls that may be pending before the first one's result is fetched."""
        return 0

    @abstractmethod
    def broadcast(self, value: Any) -> Any:
        """Returns a reference to a value that all calls share; the value is sent once."""

    @abstractmethod
    def submit(self, function: TaskFunction, shared: Any, *arguments: Any, num_outputs: int = 0) -> Task:
        """Call a task function. With `num_outputs`, it returns (result, list of so many outputs)."""

    @abstractmethod
    def get(self, held: ObjectRef) -> Any:
        """Fetch an output."""


@dataclass(frozen=True)
class CompletedTask:
    """A call that is finished."""

    value: Any
    outputs: Sequence[ObjectRef] = ()

    def result(self) -> Any:
        """Returns the result."""
        return self.value


class LocalExecutor(Executor):
    """Runs calls in this process, one after the other; Polars and the file writers have threads of their own."""

    def broadcast(self, value: Any) -> Any:
        """Returns the value itself."""
        return value

    def submit(self, function: TaskFunction, shared: Any, *arguments: Any, num_outputs: int = 0) -> Task:
        """Call it now."""
        answer = function(shared, *arguments)
        return CompletedTask(*answer) if num_outputs else CompletedTask(answer)

    def get(self, held: ObjectRef) -> Any:
        """Returns the value itself."""
        return held


LOCAL_EXECUTOR = LocalExecutor()


def map_ordered(
    executor: Executor, function: TaskFunction, shared: Any, calls: Iterable[tuple[Any, ...]], num_outputs: int = 0
) -> Iterator[Task]:
    """Call a function with each of many arguments. Yields the tasks in their order; at most `max_pending` + 1 are pending."""
    waiting: deque[Task] = deque()
    for arguments in calls:
        waiting.append(executor.submit(function, shared, *arguments, num_outputs=num_outputs))
        if len(waiting) > executor.max_pending:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def versions() -> dict[str, str]:
    """Returns the versions that decide published bytes: all workers must have the same."""
    deciding = ("polars", "pyarrow", "numpy", "polars-hash")
    return {"bpr-etl": __version__, "Python": platform.python_version()} | {
        name: installed_version(name) for name in deciding
    }


def require_same(wanted: Mapping[str, str]) -> None:
    """Raise ConnectError where this process has other versions than the driver."""
    here = versions()
    other = [f"{name} {here[name]} and not {number}" for name, number in wanted.items() if here[name] != number]
    if other:
        raise ConnectError(
            f"A worker has {', '.join(other)}. Install the same versions on all machines, since bytes depend on them."
        )

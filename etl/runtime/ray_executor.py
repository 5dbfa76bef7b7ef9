"""Runs tasks on a Ray cluster (https://docs.ray.io, Ray Core). The only file that imports ray.

A call is a Ray task. Its arguments and outputs lie in Ray's object store, which spills to disk; what all calls share is sent
once to each machine and unpacked once by each worker. Ray repeats a task that was lost with its worker or machine, and the
tasks that made its lost arguments. A task that all others wait for is started a second time while the first goes on.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from etl.errors import ConnectError, EtlError, SettingsError
from etl.runtime.cancellation import POLL_SECONDS, CancelToken
from etl.runtime.executor import LOCAL, LOCAL_EXECUTOR, RAY, Executor, ObjectRef, TaskFunction, require_same, versions
from etl.runtime.files import temporary_folder

log = logging.getLogger(__name__)

RETRIES = 8
"""How often a task is repeated whose worker was lost. Ray counts workers that it kills for lack of memory separately."""

SPECULATE_AFTER = 60.0
"""Seconds without a result before the task that is waited for is started a second time."""

OBJECT_STORE = 1 << 30
"""Bytes of shared memory for objects in a cluster of our own. The rest lies on disk."""

THREADS = {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Each task uses one core, since many of them run on a machine."""

_LOOPBACK = "127.0.0.1"
_CONNECT_SECONDS = 5.0
_MAX_FOLDER = 24
"""Characters of the temporary folder's path: a socket's path has at most 107, and we and Ray append up to 83."""

_SMALL = (int, float, str, bytes, type(None))


@dataclass(frozen=True)
class Broadcast:
    """A value that all calls share: where Ray keeps it, and the versions of the driver. The key identifies it."""

    key: str
    place: Any = field(compare=False)
    versions: dict[str, str] = field(compare=False)


@lru_cache(maxsize=2)  # a run shares one value after the other
def _unpack(shared: Broadcast) -> Any:
    """Returns the value, in a worker. Raises ConnectError where the worker has other versions than the driver."""
    require_same(shared.versions)
    import ray  # noqa: PLC0415

    return ray.get(shared.place)


def _run_task(step: TaskFunction, shared: Broadcast, keeps: int, *arguments: Any) -> Any:
    """Call a task function, in a worker. Returns the result with the seconds that it took, and the outputs."""
    import pyarrow as pa  # noqa: PLC0415

    pa.set_cpu_count(1)
    began = time.perf_counter()
    answer = step(_unpack(shared), *arguments)
    result, kept = answer if keeps else (answer, [])
    seconds = time.perf_counter() - began
    return ((result, seconds), *kept) if keeps else (result, seconds)


class RayTask:
    """A call that is pending in the cluster, possibly twice."""

    def __init__(
        self, engine: RayExecutor, step: TaskFunction, shared: Broadcast, arguments: Sequence[Any], keeps: int
    ) -> None:
        self._engine, self._step, self._shared, self._arguments = engine, step, shared, arguments
        self._returns = 1 + keeps
        self._copies = [self._submit()]
        self.outputs: Sequence[ObjectRef] = ()

    def _submit(self) -> list[Any]:
        call = self._engine.call.options(num_returns=self._returns)
        refs = call.remote(self._step, self._shared, self._returns - 1, *self._arguments)
        refs = refs if isinstance(refs, list) else [refs]
        self._engine.under_way[refs[0]] = self
        return refs

    def result(self) -> Any:
        """Wait for the result of the first copy that ends."""
        ray, engine, began = self._engine.ray, self._engine, time.monotonic()
        while True:
            engine.stop.raise_if_cancelled()
            ready, _ = ray.wait([refs[0] for refs in self._copies], num_returns=1, timeout=POLL_SECONDS)
            if ready:
                break
            waited = time.monotonic() - began
            if len(self._copies) == 1 and waited > max(SPECULATE_AFTER, 4 * engine.longest):
                log.info("No result of a task for %.0f s: it is started a second time.", waited)
                self._copies.append(self._submit())
        done = next(refs for refs in self._copies if refs[0] == ready[0])
        result, seconds = engine.get(done[0])
        engine.longest = max(engine.longest, seconds)
        self.outputs = done[1:]
        self._release(done)
        return result

    def _release(self, done: list[Any] | None = None) -> None:
        """Cancel the copies that are not needed any more, and drop all references."""
        for refs in self._copies:
            self._engine.under_way.pop(refs[0], None)
            if refs is not done:
                with suppress(Exception):
                    self._engine.ray.cancel(refs[0], force=True)
        self._copies, self._arguments = [], ()

    cancel = _release


class RayExecutor(Executor):
    """Runs calls on the workers of a cluster. See `open_executor`."""

    apart = True

    def __init__(self, ray: Any, stop: CancelToken) -> None:
        self.ray, self.stop, self.longest = ray, stop, 0.0
        self.under_way: dict[Any, RayTask] = {}
        self.call = ray.remote(max_retries=RETRIES, num_cpus=1, runtime_env={"env_vars": THREADS})(_run_task)

    @property
    def max_pending(self) -> int:
        """Two for each core of the cluster: one runs, one waits."""
        return max(2, 2 * int(self.ray.cluster_resources().get("CPU", 1)))

    def broadcast(self, value: Any) -> Broadcast:
        """Put the value into the object store."""
        return Broadcast(uuid.uuid4().hex, self.ray.put(value), versions())

    def submit(self, step: TaskFunction, shared: Broadcast, *arguments: Any, num_outputs: int = 0) -> RayTask:
        """Start a Ray task. Larger arguments go through the object store."""
        self.stop.raise_if_cancelled()
        direct = (*_SMALL, self.ray.ObjectRef)
        placed = [each if isinstance(each, direct) else self.ray.put(each) for each in arguments]
        return RayTask(self, step, shared, placed, num_outputs)

    def get(self, ref: ObjectRef) -> Any:
        """Fetch an object. Raises what its task raised; ConnectError where the object is lost."""
        errors = self.ray.exceptions
        try:
            while True:
                self.stop.raise_if_cancelled()
                with suppress(errors.GetTimeoutError):
                    return self.ray.get(ref, timeout=5 * POLL_SECONDS)
        except errors.RayTaskError as error:
            if isinstance(error.cause, EtlError):
                raise error.cause from None
            raise
        except errors.RayError as error:
            raise ConnectError(
                f"The Ray cluster lost a task for good ({_first_line(error)}). Nothing was committed or published; see to the "
                "cluster and run again."
            ) from None

    def close(self) -> None:
        """Cancel what is pending."""
        for task in set(self.under_way.values()):
            task.cancel()


@contextmanager
def cluster(
    address: str | None, stop: CancelToken, cores: int | None = None, store: int = OBJECT_STORE
) -> Iterator[RayExecutor]:
    """Yields an executor on the cluster at an address, or on one of our own, which ends with the block.

    A cluster of our own has `cores` workers, by default one per core, and `store` bytes for objects. Where this process has a
    Ray session already, that is used, and stays. Raises SettingsError where Ray is not installed, ConnectError where the
    cluster can't be reached.
    """
    own = {"num_cpus": cores or len(os.sched_getaffinity(0)), "object_store_memory": store}
    with ExitStack() as stack:
        stack.enter_context(_ray_environment(alone=address is None))
        ray = _ray()
        if not ray.is_initialized():
            parent = temporary_folder()
            if len(str(parent)) > _MAX_FOLDER:
                parent = Path("/tmp")  # noqa: S108 - the folder in it is private
            private = TemporaryDirectory(prefix="bpr-ray-", dir=parent, ignore_cleanup_errors=True)
            # A folder in the private one, since Ray makes its own readable by all.
            folder = f"{stack.enter_context(private)}/r"
            stack.callback(ray.shutdown)
            with _preserve_signals():
                _begin_session(ray, address, own | {"_temp_dir": folder})
        executor = RayExecutor(ray, stop)
        stack.callback(executor.close)
        yield executor


def _ray() -> Any:
    factory = logging.getLogRecordFactory()
    try:
        import ray  # noqa: PLC0415 - it takes a second, and need not be there
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise SettingsError("--engine ray needs Ray, which is not installed: pip install 'bpr-etl[ray]'.") from None
    logging.setLogRecordFactory(factory)  # Ray's factory would add a field to every log record of this process
    logging.getLogger("ray").setLevel(logging.ERROR)
    return ray


@contextmanager
def _ray_environment(*, alone: bool) -> Iterator[None]:
    """Set what Ray reads from the environment only: no usage reports, and loopback only for a cluster of our own.

    RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 means loopback only on any system, whatever its name says.
    """
    values = {"RAY_USAGE_STATS_ENABLED": "0"} | ({"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"} if alone else {})
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


@contextmanager
def _preserve_signals() -> Iterator[None]:
    """Restore the handler of SIGTERM, which Ray replaces when it is started on the main thread."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGTERM, before)


def _begin_session(ray: Any, address: str | None, own: dict[str, Any]) -> None:
    """Join the cluster at an address, or start one of our own on loopback. Nothing goes to stdout or stderr."""
    quiet = {"log_to_driver": False, "configure_logging": False}
    try:
        if address is not None:
            _require_reachable(address)
            ray.init(address=address, **quiet)
            return
        # Ray reads the environment variable when it is imported. A program that had imported it before us would listen on all
        # interfaces, and there is no public setting.
        with suppress(AttributeError):
            ray._private.ray_constants.ENABLE_RAY_CLUSTER = False  # noqa: SLF001
        ray.init(address="local", include_dashboard=False, _node_ip_address=_LOOPBACK, **own, **quiet)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        where = f"The Ray cluster at {address} can't be joined" if address else "Ray can't be started on this machine"
        raise ConnectError(f"{where}: {_first_line(error)}. {_ADVICE if address else ''}".strip()) from None


_ADVICE = (
    "The address is that of the cluster's head, port 6379 by default, and this machine must be part of the cluster: "
    "`ray start --address HOST:PORT --num-cpus 0`."
)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200].rstrip('.')}" if lines else type(error).__name__


def _require_reachable(address: str) -> None:
    """Raise OSError where nothing listens at the address: Ray itself would try for a minute."""
    host, separator, port = address.rpartition(":")
    if separator and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()


@contextmanager
def open_executor(name: str, environ: Mapping[str, str], stop: CancelToken) -> Iterator[Executor]:
    """Yields the executor that the setting `engine` names: `local`, `ray`, `ray://host:port`.

    `ray` alone means the cluster of RAY_ADDRESS, or else one on this machine that ends with the block. Raises SettingsError
    where Ray is not installed, ConnectError where the cluster can't be reached.
    """
    if name == LOCAL:
        yield LOCAL_EXECUTOR
        return
    address = name.removeprefix(RAY).removeprefix("://") or environ.get("RAY_ADDRESS") or None
    with cluster(address, stop) as engine:
        yield engine

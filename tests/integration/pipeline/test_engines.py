"""Who does the steps shows in no byte and no row: this process, or Ray's workers, whatever happens to them on the way."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

import etl
from etl.errors import ConnectError, SettingsError
from etl.pipeline import run as pipeline
from etl.runtime import ray_executor as ray_engine
from etl.runtime.cancellation import CancelledError, CancelToken
from etl.runtime.executor import CompletedTask, Executor, LocalExecutor, versions
from etl.runtime.ray_executor import open_executor
from etl.runtime.run_record import no_progress
from etl.settings.sources import load_settings
from etl.snapshots import writer
from etl.snapshots.manifest import DataSummary
from etl.snapshots.reading.snapshot import Snapshot, open_snapshot, read_dataset
from etl.snapshots.writer import StageOptions, write_data_files
from etl.triples.partitions import TripleOptions
from tests.states import data_files, database_state, folder_state

ROOT = Path(__file__).parents[3]
WITHOUT_RAY = "Ray is not installed: `make ray-extra` does that"
OPTIONS = {
    "as it is": {},
    "drawn, last trips": {"negatives": ("ranking", "shown", "catalog:3"), "split": "last-trip"},
    "by popularity, by time, the event's own": {
        "negatives": ("catalog:4",),
        "catalog_alpha": 0.5,
        "reject": "event",
        "split": "time:2025-03-01,2025-06-01",
    },
    "next and its history": {"task": ("triples", "next"), "history": True, "split": "last-trip", "shuffle": True},
    "next alone": {"task": ("next",), "negatives": ("catalog:5",), "reject": "event"},
    "shuffled, small cities left out": {"negatives": ("recommended",), "shuffle": True, "small_catalog": "exclude"},
}


class Travelling(LocalExecutor):
    """This process, but what is given and what comes back travels, as with workers elsewhere."""

    apart, max_pending = True, 3

    def broadcast(self, value: Any) -> Any:
        return pickle.loads(pickle.dumps(value))  # noqa: S301

    def submit(self, step: Callable[..., Any], shared: Any, *arguments: Any, num_outputs: int = 0) -> CompletedTask:
        return pickle.loads(pickle.dumps(super().submit(step, shared, *arguments, num_outputs=num_outputs)))  # noqa: S301


@pytest.fixture(scope="module")
def published(make_database: Callable[..., str], small_world_template: str, tmp_path_factory: Any) -> Snapshot:
    """A snapshot of the small world, every city in it, whose events others are staged from."""
    url, out = make_database(small_world_template), tmp_path_factory.mktemp("published")
    done = etl.run(load_settings({"database_url": url, "out": str(out), "small_catalog": "keep"}, {}))
    return open_snapshot(str(done.snapshot))


@pytest.fixture(scope="module")
def ray() -> Iterator[ModuleType]:
    """A Ray session of two workers in this process, which an engine then uses."""
    pytest.importorskip("ray", reason=WITHOUT_RAY)
    with ray_engine.cluster(None, CancelToken(), cores=2, store=200 << 20) as engine:
        yield engine.ray


def staged(
    snapshot: Snapshot, folder: Path, engine: Executor, buckets: int, **options: Any
) -> tuple[DataSummary, dict]:
    """What staging the snapshot's events anew comes to."""
    data, scratch = folder / "data", folder / "scratch"
    for each in (data, scratch):
        each.mkdir(parents=True)
    training = TripleOptions(**{"small_catalog": "keep", **options})
    dataset = read_dataset(snapshot, buckets)
    account = write_data_files(
        dataset, StageOptions(training, "both", 700), data, scratch, no_progress, executor=engine
    )
    return account, account.counts(dataset)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("shares_disk", [True, False])
def test_steps_may_be_done_elsewhere(published, tmp_path, monkeypatch, options, shares_disk):
    if not shares_disk:
        monkeypatch.setattr(writer.PartContext, "sees_driver_disk", lambda _: False)
    here, counts = staged(published, tmp_path / "here", LocalExecutor(), 1, **options)
    assert len(here.files) > 20
    for buckets in (1, 7):
        there, theirs = staged(published, tmp_path / f"{buckets}", Travelling(), buckets, **options)
        assert (there.files, theirs) == (here.files, counts)
    assert data_files(tmp_path / "7" / "data") == data_files(tmp_path / "here" / "data")


@pytest.mark.parametrize("options", list(OPTIONS.values())[1:], ids=list(OPTIONS)[1:])
def test_ray_stages_the_same_bytes(ray, published, tmp_path, options):
    del ray
    here, counts = staged(published, tmp_path / "here", LocalExecutor(), 1, **options)
    with open_executor("ray", {}, CancelToken()) as engine:
        there, theirs = staged(published, tmp_path / "there", engine, 7, **options)
    assert (there.files, theirs) == (here.files, counts)


def dies_once(marker: str, step: Callable[..., Any], shared: Any, *arguments: Any) -> Any:
    """A step whose worker is killed in the midst of it, the first time that it is called."""
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return step(shared, *arguments)
    step(shared, *arguments)
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_a_night_on_ray_is_the_same_night(ray, small_world, make_database, small_world_template, tmp_path, monkeypatch):
    """In one bucket and in five; a worker is killed when it has ranked one, and another does it again."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    options = {"small_catalog": "keep", "rows_per_file": 5_000, "task": ["triples", "next"], "history": True}
    nights = []
    for engine, buckets, url in (
        ("local", 1, small_world),
        ("ray", 1, make_database(small_world_template)),
        ("ray", 5, small_world),
    ):
        out = tmp_path / f"{engine}{buckets}"
        if buckets == 5:
            monkeypatch.setattr(
                pipeline, "rank_bucket", partial(dies_once, str(tmp_path / "killed"), pipeline.rank_bucket)
            )
        settings = load_settings(
            {"database_url": url, "out": str(out), "engine": engine, "buckets": buckets, **options}, {}
        )
        done = etl.run(settings)
        of_the_database = {"signals_backfilled", "written"}  # they depend on what stood there before
        counts = {name: value for name, value in done.counts.items() if name not in of_the_database}
        nights.append((data_files(str(done.snapshot)), database_state(url), counts))
        assert not list(out.glob(".staging-*"))
    assert (tmp_path / "killed").exists()
    assert nights[0] == nights[1] == nights[2]


def test_a_worker_that_is_killed_changes_nothing(ray, published, tmp_path, monkeypatch):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    here, counts = staged(published, tmp_path / "here", LocalExecutor(), 1, split="last-trip")
    for name in ("expand_bucket_task", "write_part"):
        killed = partial(dies_once, str(tmp_path / name), getattr(writer, name))
        monkeypatch.setattr(writer, name, killed)
    with open_executor("ray", {}, CancelToken()) as engine:
        there, theirs = staged(published, tmp_path / "there", engine, 5, split="last-trip")
    assert (tmp_path / "expand_bucket_task").exists()
    assert (tmp_path / "write_part").exists()
    assert (there.files, theirs) == (here.files, counts)


def sleeps_once(shared: str) -> str:
    """A step that takes its time, the first time."""
    marker = Path(shared)
    if not marker.exists():
        marker.touch()
        time.sleep(600)
    return "done"


def test_what_keeps_everybody_waiting_is_begun_again(ray, tmp_path, monkeypatch):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(ray_engine, "SPECULATE_AFTER", 1.0)
    began = time.monotonic()
    with open_executor("ray", {}, CancelToken()) as engine:
        assert engine.submit(sleeps_once, engine.broadcast(str(tmp_path / "marker"))).result() == "done"
    assert time.monotonic() - began < 300


def fails(_shared: None, kind: type[Exception]) -> None:
    """A step that raises."""
    raise kind("Said by a step.")


def test_errors_come_through_and_an_end_is_heard(ray):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    stop = CancelToken()
    with open_executor("ray", {}, stop) as engine:
        nothing = engine.broadcast(None)
        with pytest.raises(ConnectError, match=r"^Said by a step\.$"):
            engine.submit(fails, nothing, ConnectError).result()
        with pytest.raises(ZeroDivisionError, match="Said by a step"):
            engine.submit(fails, nothing, ZeroDivisionError).result()
        task = engine.submit(sleeps_once, engine.broadcast("/nowhere/to/be/found"))
        del task
        task = engine.submit(fails, nothing, ConnectError)
        stop.cancel()
        with pytest.raises(CancelledError):
            task.result()
        assert engine.under_way
    assert not engine.under_way


def test_other_versions_are_refused():
    shared = ray_engine.Broadcast("key", None, versions() | {"pyarrow": "1.0"})
    with pytest.raises(ConnectError, match=r"^A worker has pyarrow \S+ and not 1\.0\. Install the same versions"):
        ray_engine._unpack(shared)


def called(process: psutil.Process) -> str:
    """A process's command line."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def works(process: psutil.Process) -> bool:
    """Whether a process is a worker with a task."""
    return called(process).startswith("ray::_run_task")


def listens(process: psutil.Process) -> set[str]:
    """The addresses at which it can be reached."""
    with suppress(psutil.Error):
        found = {each.laddr.ip for each in process.net_connections() if each.status == psutil.CONN_LISTEN}
        return {address.removeprefix("::ffff:") for address in found}
    return set()


def test_an_end_in_mid_run_leaves_no_process_and_nobody_else_is_let_in(small_world, tmp_path):
    """The whole command with a cluster of its own, asked to end while its workers work."""
    pytest.importorskip("ray", reason=WITHOUT_RAY)
    command = [sys.executable, "cli.py", "run", "--engine", "ray", "--buckets", "64", "--out", str(tmp_path / "out")]
    environment = os.environ | {"BPR_ETL_DATABASE_URL": small_world}
    before = database_state(small_world)
    child = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        ours = psutil.Process(child.pid)
        deadline = time.monotonic() + 120
        while not any(works(each) for each in ours.children(recursive=True)):
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        processes = [ours, *ours.children(recursive=True)]
        assert set().union(*map(listens, processes)) == {"127.0.0.1"}
        (folder,) = {found[0] for each in processes if (found := re.search(r"/[\w/.-]*?bpr-ray-\w+", called(each)))}
        assert Path(folder).stat().st_mode & 0o777 == 0o700  # what Ray makes in it is everybody's
        assert Path(folder, "r").stat().st_mode & 0o777 == 0o777
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == -signal.SIGTERM
        _, alive = psutil.wait_procs(processes, timeout=60)
        assert alive == []
    finally:
        child.kill()
    assert child.stderr is not None
    assert "Stopped by SIGTERM: nothing was committed or published." in child.stderr.read()
    assert database_state(small_world) == before
    assert not Path(folder).exists()
    assert folder_state(tmp_path / "out") == {}


def test_without_ray_one_sentence_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    settings = load_settings({"snapshot": str(tmp_path), "engine": "ray"}, {})
    with pytest.raises(SettingsError) as refused, open_executor(settings.engine, {}, CancelToken()):
        pass
    assert str(refused.value) == "--engine ray needs Ray, which is not installed: pip install 'bpr-etl[ray]'."


def test_a_cluster_that_is_not_there(published, tmp_path):
    """In a process of its own, which has no session yet."""
    pytest.importorskip("ray", reason=WITHOUT_RAY)
    command = [sys.executable, "cli.py", "expand", str(published.folder), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [*command, "--engine", "ray://127.0.0.1:1"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (ConnectError.exit_code, "")
    assert done.stderr.startswith("Error: The Ray cluster at 127.0.0.1:1 can't be joined: ConnectionRefusedError")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("word", ["Ray", "ray:", "ray://", "ray://host", "ray://host:port", "ray://:6379", "dask", ""])
def test_other_words_are_refused(word):
    with pytest.raises(SettingsError, match="--engine must be local, ray or ray://HOST:PORT"):
        load_settings({"engine": word}, {})

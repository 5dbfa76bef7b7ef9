"""Publishing, to a folder and to an object store: the same tests, and what an object store has of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import boto3
import pytest
from obstore.store import from_url
from typer.testing import CliRunner

import cli
import etl
from etl.commands.doctor import run_checks
from etl.errors import ConnectError, DataError, LockedError, SettingsError
from etl.pipeline import database, published
from etl.pipeline.context import RunResult, utc_now
from etl.runtime.cancellation import CancelledError, CancelToken
from etl.snapshots.publish import locked_store
from etl.snapshots.reading.snapshot import MANIFEST
from etl.snapshots.stores import object_store as objects
from etl.snapshots.stores.locations import local_snapshot, open_store
from etl.snapshots.stores.lock import LOCK, Lease, owner
from etl.snapshots.stores.object_store import ObjectStore
from etl.snapshots.stores.store import LocalStore
from etl.snapshots.validation import validate_snapshot
from tests.object_store import Bucket, Flaky, Forgetful
from tests.states import database_state, folder_state


class Injected(Exception):  # noqa: N818
    """Not a kind of EtlError: nothing may catch it on its way."""


@dataclass(frozen=True)
class Place:
    """Where a test publishes to, and what lies there."""

    out: str
    bucket: Bucket | None = None

    def state(self) -> dict[str, str]:
        return self.bucket.state() if self.bucket else folder_state(Path(self.out))

    def latest(self) -> str:
        """The name that LATEST has."""
        return open_store(self.out).latest_name()

    def snapshots(self) -> list[str]:
        return open_store(self.out).names()


@pytest.fixture(scope="session")
def other_server():
    """The endpoint of a second server, with buckets of its own, that looks at no signature."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], **quiet)
    try:
        assert CancelToken().poll(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, 60)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.fixture(params=["folder", "s3"])
def place(request, tmp_path):
    if request.param == "folder":
        return Place(str(tmp_path / "out"))
    bucket = request.getfixturevalue("bucket")
    return Place(bucket.out, bucket)


@pytest.fixture
def night(small_world, settings_for, place):
    """Run a night into the place: `night(seed=1)`."""
    return lambda **options: etl.run(settings_for(small_world, out=place.out, **options))


@pytest.fixture
def night_of_bucket(small_world, settings_for, bucket):
    """Run a night into the bucket."""
    return lambda **options: etl.run(settings_for(small_world, out=bucket.out, **options))


def data(state: dict[str, str], name: str) -> dict[str, str]:
    """The digests of a snapshot's data files."""
    start = f"snapshots/{name}/"
    return {path.removeprefix(start): it for path, it in state.items() if path.startswith(start) and ".parquet" in path}


def fail_after(monkeypatch, name):
    """Make a run fail as soon as the named step is done."""
    original = RunResult.step

    @contextmanager
    def step(self, step_name):
        with original(self, step_name) as rows:
            yield rows
        if step_name == name:
            raise Injected

    monkeypatch.setattr(RunResult, "step", step)


def test_a_night_is_published_whole(night, place, tmp_path, small_world, settings_for):
    """LATEST names it, its manifest lists every file, and its bytes are those of a folder."""
    report = night()
    name = place.latest()
    assert report.snapshot == open_store(place.out).location_of(name)
    state = place.state()
    listed = {entry["path"]: entry["sha256"] for entry in open_store(place.out).manifest(name)["files"]}
    there = {path.removeprefix(f"snapshots/{name}/"): digest for path, digest in state.items() if path != "LATEST"}
    assert there.pop(MANIFEST)
    assert listed == there
    assert [finding for finding in validate_snapshot(report.snapshot) if finding.broken] == []
    exported = etl.export(settings_for(small_world, out=str(tmp_path / "other")))
    other = folder_state(tmp_path / "other")
    assert data(state, name) == data(other, Path(exported.snapshot).name) != {}


def test_nights_follow_one_another(night, place):
    first, second = night(seed=1), night()
    assert place.snapshots() == [Path(first.snapshot).name, Path(second.snapshot).name]
    assert place.latest() == Path(second.snapshot).name
    assert [each.name for each in second.previous_runs] == [Path(first.snapshot).name]
    before = place.state()
    assert night(skip_unchanged=True).snapshot is None
    assert place.state() == before
    assert night().snapshot is not None


@pytest.mark.parametrize("step", ["secure files", "check"])
def test_a_failure_leaves_everything_as_it_was(night, place, small_world, monkeypatch, step):
    night(seed=1)
    rows, files = database_state(small_world), place.state()
    with monkeypatch.context() as patch:
        fail_after(patch, step)
        with pytest.raises(Injected):
            night()
    assert database_state(small_world) == rows
    assert place.state() == files
    new = night()
    assert place.latest() == Path(new.snapshot).name


def test_an_end_between_commit_and_switch_is_mended_by_the_next_night(night, place, monkeypatch):
    old = night(seed=1)
    files = place.state()
    store = type(open_store(place.out))
    with monkeypatch.context() as patch:
        patch.setattr(store, "publish", lambda *_: (_ for _ in ()).throw(Injected()))
        with pytest.raises(Injected):
            night()
    assert place.state() == files
    mended = night(skip_unchanged=True)
    state = place.state()
    assert data(state, Path(mended.snapshot).name) != data(state, Path(old.snapshot).name)
    assert place.latest() == Path(mended.snapshot).name


def test_a_place_that_fails_after_commit_is_told_apart(night, place, small_world, settings_for, monkeypatch):
    store = type(open_store(place.out))

    def full(*_):
        raise ConnectError("The store has gone.") if place.bucket else OSError(28, "No space left on device")

    monkeypatch.setattr(store, "publish", full)
    with pytest.raises(ConnectError, match="The database has been written, and the next run publishes what it holds"):
        night()
    assert database.validate_database(settings_for(small_world)).broken == []


def test_one_writer_at_a_time(night, place):
    with locked_store(place.out), pytest.raises(LockedError, match="publishing"):
        night()
    assert night().snapshot


def test_who_waits_comes_next(night, place):
    held, done = threading.Event(), threading.Event()

    def hold():
        with locked_store(place.out):
            held.set()
            done.wait(0.5)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    assert night(wait_lock=True, max_wait=30).snapshot
    thread.join()


def test_a_dry_run_leaves_nothing(night, place):
    night(seed=1)
    files = place.state()
    dry = night(dry_run=True)
    assert dry.snapshot is None
    assert not any("rolled back" in note for note in dry.notes)  # the summary begins with it
    assert place.state() == files


def test_a_published_snapshot_is_expanded_probed_and_kept_to(night, place, small_world, settings_for):
    report = night(split="last-trip")
    expanded = etl.expand(settings_for(small_world, out=place.out, negatives=["shown"], split="last-trip"))
    assert open_store(place.out).latest()["settings"]["negatives"] == ["shown"]
    found = published.probe(settings_for(small_world, snapshot=expanded.snapshot))
    manifest = open_store(place.out).manifest(Path(expanded.snapshot).name)
    assert manifest["probe"] == found.manifest_entry()
    assert [finding for finding in validate_snapshot(expanded.snapshot) if finding.broken] == []
    kept = night(vocab_from=place.out)
    with local_snapshot(kept.snapshot) as new, local_snapshot(report.snapshot) as old:
        assert new.manifest["published"]["users"] == old.manifest["published"]["users"]
    with pytest.raises(ConnectError, match="no snapshot"), local_snapshot(f"{place.out}/snapshots/none"):
        pass


MOMENTS = {
    "begin of the upload": {"at": "step", "name": "secure files", "edge": "begin"},
    "in mid-upload": {"at": "upload", "n": 3},
    "end of the upload": {"at": "step", "name": "secure files", "edge": "end"},
    "before COMMIT": {"at": "step", "name": "check", "edge": "end"},
    "after COMMIT": {"at": "step", "name": "switch", "edge": "begin"},
    "before LATEST": {"at": "latest"},
}


# tests/faults/test_crashes.py has the folder's crashes by the hundred.
@pytest.mark.parametrize(
    ("place", "signal_name", "moment"),
    [
        *(("s3", "SIGKILL", moment) for moment in MOMENTS),
        *(("s3", "SIGTERM", moment) for moment in ("in mid-upload", "before LATEST")),
        *(("folder", "SIGKILL", moment) for moment in ("in mid-upload", "before LATEST")),
    ],
    indirect=["place"],
)
def test_a_crash_is_mended_by_the_next_night(night, place, small_world, tally, moment, signal_name):
    """The same bytes as an undisturbed night, no litter, and LATEST on a whole snapshot all the time."""
    tally("crashes while publishing, to a folder and to an object store")
    old = night(seed=1)
    files, rows = place.state(), database_state(small_world)
    spec = {**MOMENTS[moment], "signal": signal_name}
    environ = {**os.environ, **(place.bucket.environ if place.bucket else {})}
    arguments = ["run", "--database-url", small_world, "--out", place.out]
    ended = subprocess.run(  # noqa: PLW1510 - how it ended is what is asked
        [sys.executable, "-m", "tests.faults.child", json.dumps(spec), *arguments],
        env=environ,
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=60,
    )
    # From COMMIT on a SIGTERM comes too late: what is left is soon done.
    late = signal_name == "SIGTERM" and moment in {"after COMMIT", "before LATEST"}
    assert ended.returncode == (0 if late else -getattr(signal, signal_name)), ended.stderr
    if not late:
        assert place.latest() == Path(old.snapshot).name
        kept = {path: digest for path, digest in place.state().items() if path in files}
        assert kept == files
        assert "Traceback" not in ended.stderr
    committed = moment in {"after COMMIT", "before LATEST"}
    assert (database_state(small_world) != rows) == committed
    new = night()
    state = place.state()
    whole = {f"snapshots/{name}/" for name in place.snapshots()}
    assert [path for path in state if path != "LATEST" and not path.startswith(tuple(whole))] == []
    assert place.latest() == Path(new.snapshot).name
    again = night()
    assert data(state, Path(new.snapshot).name) == data(place.state(), Path(again.snapshot).name) != {}
    if place.bucket:
        assert place.bucket.unfinished() == []


def test_whoever_looks_at_snapshots_sees_them_there(night, place, small_world):
    """list, inspect, diff, report, doctor and prune: the same answers of a folder and of an object store."""

    def say(*arguments, code=0):
        done = CliRunner().invoke(cli.app, [*arguments, "--json"])
        assert done.exit_code == code, done.output
        return json.loads(done.stdout)

    first, second = (Path(night(seed=seed).snapshot).name for seed in (1, 0))
    assert [line["name"] for line in say("list", place.out)["snapshots"]] == [second, first]
    assert say("inspect", place.out)["snapshot"] == second
    moved = say("diff", *(open_store(place.out).location_of(name) for name in (first, second)))
    assert moved["same_data"] is False
    page = open_store(place.out).read(f"snapshots/{second}/report.html")
    say("report", open_store(place.out).location_of(second))
    assert open_store(place.out).read(f"snapshots/{second}/report.html") == page
    checks = {each["name"]: each for each in say("doctor", "--database-url", small_world, "--out", place.out)["checks"]}
    assert {checks[name]["state"] for name in ("store", "store's lock", "snapshots")} == {"ok"}
    with locked_store(place.out):
        held = say("doctor", "--database-url", small_world, "--out", place.out, code=6)
    assert [each["name"] for each in held["checks"] if each["state"] == "failed"] == ["store's lock"]
    assert say("prune", place.out, "--keep", "1")["removed"] == [first]
    assert place.snapshots() == [second]
    assert not any(first in path for path in place.state())


# What an object store has of its own.


def test_large_files_go_in_parts(bucket, monkeypatch):
    monkeypatch.setattr(objects, "PART_BYTES", 5 * 1024 * 1024)
    store = ObjectStore(bucket.out, {})
    content = os.urandom(12 * 1024 * 1024)
    with store.lock(0), store.staging("run") as (staged, _):
        (staged / "large").write_bytes(content)
        store.persist(staged, "20260101T000000000000Z-0123456789ab")
        key = "nights/out/snapshots/20260101T000000000000Z-0123456789ab/large"
        assert bucket.client.head_object(Bucket=bucket.name, Key=key)["ETag"].endswith('-3"')
        assert bucket.client.get_object(Bucket=bucket.name, Key=key)["Body"].read() == content
    assert bucket.objects() == {}  # it never became a snapshot
    assert bucket.unfinished() == []


def test_an_upload_hears_that_an_end_was_asked_for(bucket, monkeypatch):
    monkeypatch.setattr(objects, "PART_BYTES", 5 * 1024 * 1024)
    stop = CancelToken()
    store = ObjectStore(bucket.out, {}, stop)
    original = store._chunks

    def chunks(path):
        for number, chunk in enumerate(original(path)):
            if number == 1:
                stop.cancel()
            yield chunk

    monkeypatch.setattr(store, "_chunks", chunks)
    with store.lock(0), store.staging("run") as (staged, _):
        (staged / "large").write_bytes(bytes(16 * 1024 * 1024))
        with pytest.raises(CancelledError):
            store.persist(staged, "20260101T000000000000Z-0123456789ab")
    assert bucket.objects() == {}


@pytest.mark.parametrize("after", [0, 20], ids=["no reply", "half a reply"])
def test_replies_that_are_lost_are_asked_for_again(
    bucket, object_server, monkeypatch, small_world, settings_for, after
):
    """What was written before its reply was lost is ours all the same, the lock too."""
    flaky = Flaky(object_server.endpoint, lambda number: number % 3 == 1, after)
    monkeypatch.setenv("AWS_ENDPOINT_URL", flaky.endpoint)
    report = etl.run(settings_for(small_world, out=bucket.out))
    flaky.stop()
    assert flaky.dropped > 3
    monkeypatch.setenv("AWS_ENDPOINT_URL", object_server.endpoint)
    assert [finding for finding in validate_snapshot(report.snapshot) if finding.broken] == []
    assert LOCK not in bucket.objects()


def test_a_store_that_goes_in_mid_upload_stops_the_night(bucket, object_server, monkeypatch, small_world, settings_for):
    flaky = Flaky(object_server.endpoint, lambda _: False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", flaky.endpoint)
    monkeypatch.setattr(objects, "open_object_store", reach_at_once)
    rows = database_state(small_world)
    original = ObjectStore._upload

    def upload(self, path, key):
        flaky.stop()
        original(self, path, key)

    monkeypatch.setattr(ObjectStore, "_upload", upload)
    with pytest.raises(ConnectError, match="cannot be reached"):
        etl.run(settings_for(small_world, out=bucket.out))
    assert database_state(small_world) == rows
    monkeypatch.setenv("AWS_ENDPOINT_URL", object_server.endpoint)
    assert open_store(bucket.out).names() == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "refused us .*SignatureDoesNotMatch.*Check the credentials"),
        ({"AWS_ACCESS_KEY_ID": "AKIAUNKNOWN"}, "refused us .*InvalidAccessKeyId.*Check the credentials"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "cannot be reached .Connection refused.*Check the URL"),
        ({"AWS_ENDPOINT_URL": "http://no-such-host.invalid"}, "cannot be reached .failed to lookup.*Check the URL"),
    ],
)
def test_a_store_that_does_not_let_us_in_says_what_to_do(bucket, monkeypatch, small_world, settings_for, change, said):
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(objects, "open_object_store", reach_at_once)
    rows = database_state(small_world)
    with pytest.raises(ConnectError, match=said) as refused:
        etl.run(settings_for(small_world, out=bucket.out))
    assert "\n" not in str(refused.value)
    assert bucket.environ["AWS_SECRET_ACCESS_KEY"] not in str(refused.value)
    assert database_state(small_world) == rows


def reach_at_once(url, _environ):
    """Without the seconds between retries."""
    return from_url(
        url, client_options={"allow_http": True}, retry_config={"max_retries": 1, "retry_timeout": timedelta(seconds=5)}
    )


def test_the_credentials_of_a_profile_are_found(bucket, monkeypatch, tmp_path):
    file = tmp_path / "credentials"
    key, secret = bucket.environ["AWS_ACCESS_KEY_ID"], bucket.environ["AWS_SECRET_ACCESS_KEY"]
    file.write_text(f"[nights]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
    profile = {"AWS_SHARED_CREDENTIALS_FILE": str(file), "AWS_PROFILE": "nights"}
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name, value in profile.items():
        monkeypatch.setenv(name, value)
    store = open_store(bucket.out, profile)
    store.write("hello", b"world")
    assert bucket.objects() == {"hello": b"world"}


def test_a_bucket_that_is_not_there_is_told_from_an_empty_place(bucket, small_world, settings_for):
    with pytest.raises(ConnectError, match="no such bucket"):
        etl.run(settings_for(small_world, out="s3://no-such-bucket/out"))
    with pytest.raises(ConnectError, match="nothing was published there"), local_snapshot(bucket.out):
        pass


def test_other_urls_are_refused(small_world, settings_for):
    for url in ("ftp://host/out", "file:///tmp/out", "s3://"):
        with pytest.raises(SettingsError, match="--out must be a local folder, or one of s3:"):
            etl.run(settings_for(small_world, out=url))


def test_a_living_lock_of_another_machine_is_respected_and_a_dead_one_is_not(bucket, monkeypatch):
    store = ObjectStore(bucket.out, {})
    theirs = Lease(store, owner("their token", "other", bucket.out))
    assert theirs.acquire()
    with pytest.raises(LockedError, match=r"publishing to .* \(on other\)"), store.lock(0):
        pass
    monkeypatch.setattr(theirs, "_renew_after", 1e9)
    late = Lease(store, owner("token", "third", bucket.out), lease=-1.0)
    assert late.acquire()
    with pytest.raises(ConnectError, match="was lost"):
        theirs.assert_held()
    late.assert_held()
    theirs.release()  # takes nothing away from the one who has it now
    late.assert_held()
    late.release()
    assert bucket.objects() == {}


def test_a_lock_of_this_machine_whose_folder_nobody_holds_is_dead(bucket):
    """A run that was killed: its place in the temporary folder is free again, so nobody waits for its lease."""
    store = ObjectStore(bucket.out, {})
    with store.lock(0):
        abandoned = bucket.objects()[LOCK]
    bucket.client.put_object(Bucket=bucket.name, Key=f"nights/out/{LOCK}", Body=abandoned)
    with store.lock(0):
        pass


def test_a_lock_is_renewed_as_long_as_its_owner_lives(bucket):
    store = ObjectStore(bucket.out, {})
    ours = Lease(store, owner("token", "host", bucket.out), renew=0.02)
    assert ours.acquire()
    first = store.state(LOCK)
    assert CancelToken().poll(lambda: store.state(LOCK) != first, 10)
    ours.assert_held()
    ours.release()
    assert store.state(LOCK) is None


def test_who_has_lost_the_lock_publishes_nothing(bucket, small_world, settings_for, monkeypatch):
    original = ObjectStore.persist

    def robbed(self, staged, name):
        original(self, staged, name)
        bucket.client.put_object(Bucket=bucket.name, Key=f"nights/out/{LOCK}", Body=b"{}")

    monkeypatch.setattr(ObjectStore, "persist", robbed)
    with pytest.raises(ConnectError, match="was lost"):
        etl.run(settings_for(small_world, out=bucket.out))
    assert set(bucket.objects()) == {LOCK}


def test_latest_is_not_written_over_what_another_run_has_published(bucket, night_of_bucket, monkeypatch):
    """A run that was cut off between its last look at the lock and LATEST: compare-and-swap refuses its write."""
    original = ObjectStore.write_latest
    for first in (True, False):  # LATEST is not there yet, or has another version than when the lock was taken

        def overtaken(self, name):
            bucket.client.put_object(Bucket=bucket.name, Key="nights/out/LATEST", Body=b"another")
            original(self, name)

        if not first:
            bucket.client.delete_object(Bucket=bucket.name, Key="nights/out/LATEST")
            assert night_of_bucket(seed=1).snapshot
        with monkeypatch.context() as patch:
            patch.setattr(ObjectStore, "write_latest", overtaken)
            with pytest.raises(ConnectError, match=r"was changed since this run began.*the next run publishes"):
                night_of_bucket()
        assert bucket.objects()["LATEST"] == b"another"


def test_latest_whose_reply_was_lost_is_written(bucket):
    store = ObjectStore(bucket.out, {})
    for name in ("first", "second"):
        with store.lock(0):
            bucket.client.put_object(Bucket=bucket.name, Key="nights/out/LATEST", Body=name.encode())
            store.write_latest(name)  # the retry of a write that succeeded
            with pytest.raises(ConnectError, match=r"was changed since this run began"):
                store.write_latest("other")


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        (("if-none-match", "if-match"), "If-None-Match"),
        (("if-none-match",), "If-None-Match"),
        (("if-match",), "If-Match"),
    ],
)
def test_a_store_that_ignores_conditions_is_not_trusted(
    bucket, other_server, monkeypatch, small_world, settings_for, conditions, said
):
    """Its lock keeps nobody out: two runs at once would both end well, and LATEST name a snapshot without files."""
    there = replace(bucket, client=boto3.client("s3", endpoint_url=other_server))
    there.client.create_bucket(Bucket=there.name)
    store = Forgetful(other_server, *conditions)
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
    rows, settings = database_state(small_world), settings_for(small_world, out=there.out)
    found = {check.name: check for check in run_checks(settings, utc_now)}["store"]
    assert (found.state, found.exit_code) == ("failed", 3)
    assert f"ignores the conditions of writes ({said})" in found.found
    with pytest.raises(ConnectError, match=rf"ignores the conditions of writes \({said}\)"):
        etl.run(settings)
    store.stop()
    assert there.objects() == {}
    assert database_state(small_world) == rows


def test_a_probe_that_a_killed_run_left_is_as_good_as_none(bucket):
    store = ObjectStore(bucket.out, {})
    store.write("probe", b"1")
    store.require_conditions("probe")
    assert bucket.objects() == {}


HARMS = {"gone": ("users.parquet", None), "shorter": ("users.parquet", b"PAR1"), "one more": ("more.parquet", b"PAR1")}


@pytest.mark.parametrize("harm", HARMS)
def test_a_folder_is_compared_before_the_manifest_and_before_commit(
    small_world, settings_for, tmp_path, monkeypatch, harm
):
    """Whoever took a staged file away or put one there, as a file system may that sees no case."""
    original, (name, content) = LocalStore.persist, HARMS[harm]

    def spoiled(self, staged, snapshot):
        original(self, staged, snapshot)
        (staged / name).unlink() if content is None else (staged / name).write_bytes(content)

    rows = database_state(small_world)
    monkeypatch.setattr(LocalStore, "persist", spoiled)
    with pytest.raises(DataError, match=rf"{name} \(1 of [\d,]+\)"):
        etl.run(settings_for(small_world))
    assert folder_state(tmp_path / "out") == {}
    assert database_state(small_world) == rows


@pytest.mark.parametrize("harm", HARMS)
def test_an_object_store_is_compared_before_the_manifest(bucket, small_world, settings_for, monkeypatch, harm):
    """Whoever took an object away or put one there after it was uploaded: no manifest lists what is not there."""
    first = etl.run(settings_for(small_world, out=bucket.out, seed=1))
    before, original, (name, content) = bucket.state(), ObjectStore.publish, HARMS[harm]

    def spoiled(self, staged, snapshot):
        key = f"snapshots/{snapshot}/{name}"
        self.delete(key) if content is None else self.write(key, content)
        original(self, staged, snapshot)

    monkeypatch.setattr(ObjectStore, "publish", spoiled)
    with pytest.raises(ConnectError, match=rf"{name} \(1 of [\d,]+\)") as refused:
        etl.run(settings_for(small_world, out=bucket.out))
    monkeypatch.setattr(ObjectStore, "publish", original)
    assert "The database has been written, and the next run publishes what it holds." in str(refused.value)
    assert bucket.state() == before
    assert open_store(bucket.out).latest_name() == Path(first.snapshot).name
    assert etl.run(settings_for(small_world, out=bucket.out)).snapshot is not None


def test_one_name_at_two_endpoints_is_two_places(bucket, other_server, monkeypatch):
    """Another store at another address, whose bucket happens to be called the same, does not wait."""
    boto3.client("s3", endpoint_url=other_server).create_bucket(Bucket=bucket.name)
    with ObjectStore(bucket.out, {}).lock(0):
        with pytest.raises(LockedError), ObjectStore(bucket.out, {}).lock(0):
            pass
        monkeypatch.setenv("AWS_ENDPOINT_URL", other_server)
        with ObjectStore(bucket.out, {}).lock(0):
            pass


@pytest.mark.parametrize("kind", ["link", "file", "open to all", "another's"])
def test_a_staging_place_that_is_not_ours_alone_is_refused(bucket, tmp_path, kind):
    store = ObjectStore(bucket.out, {})
    with store.lock(0):
        (place,) = tmp_path.glob("bpr-etl-*")
    shutil.rmtree(place)
    if kind == "link":
        (tmp_path / "elsewhere").mkdir()
        place.symlink_to(tmp_path / "elsewhere")
    elif kind == "file":
        place.write_text("")
    else:
        place.mkdir()
        place.chmod(0o777)
        if kind == "another's":
            if os.geteuid() != 0:
                pytest.skip("only root gives folders away")
            place.chmod(0o700)
            os.chown(place, 65534, 65534)
    with (
        pytest.raises(SettingsError, match=f"The staging folder for uploads, {place}, .*Set TMPDIR"),
        store.lock(0),
    ):
        pass
    assert bucket.objects() == {}


def test_names_of_any_kind_keep_their_key(bucket):
    """What a folder is called is what the key says: nothing is encoded twice."""
    store = ObjectStore(bucket.out, {})
    with store.lock(0), store.staging("run") as (staged, _):
        (staged / "city=New%20York").mkdir()
        (staged / "city=New%20York" / "part~0.parquet").write_bytes(b"x")
        store.persist(staged, "20260101T000000000000Z-0123456789ab")
        assert "snapshots/20260101T000000000000Z-0123456789ab/city=New%20York/part~0.parquet" in bucket.objects()

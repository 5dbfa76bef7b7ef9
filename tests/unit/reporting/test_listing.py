"""Which snapshots stay: a list of them, and a prune that may end at any moment."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.errors import ConnectError
from etl.reporting.history import (
    incomplete,
    list_snapshots,
    misdated,
    previous_runs,
    prune,
    published,
    require_published,
    to_remove,
)
from etl.snapshots.stores.store import LocalStore
from tests.manifests import FILE, SOUND

NAMES = [f"2026112{day}T030000000000Z-0123456789ab" for day in range(6)]
NOW = datetime(2026, 11, 25, 4, tzinfo=UTC)
FUTURE = "20360101T030000000000Z-0123456789ab"


def out(tmp_path: Path, names: list[str] = NAMES, latest: str | None = NAMES[-1]) -> LocalStore:
    for name in names:
        folder = tmp_path / "snapshots" / name
        (folder / "events").mkdir(parents=True)
        (folder / "events" / "part-00000.parquet").write_bytes(b"x" * 10)
        published = SOUND["published"] | {"events": {"Rome": 2}, "triples": {"Rome": 5}, "users": 1}
        files = [FILE | {"path": "users.parquet", "bytes": 10}]
        manifest = SOUND | {"snapshot": name, "published": published, "files": files}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    if latest:
        (tmp_path / "LATEST").write_text(latest)
    return LocalStore(tmp_path)


def there(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "snapshots").iterdir())


@given(st.integers(0, 6), st.integers(1, 8), st.integers(0, 6))
def test_the_oldest_go_and_never_the_newest(count, keep, latest):
    names = NAMES[:count]
    named = NAMES[latest] if latest < 6 else None
    gone = to_remove(names, named, keep)
    assert named not in gone
    assert len(names) - len(gone) == min(count, keep)
    stay = [name for name in names if name not in {*gone, named}]
    assert all(old < new for old in gone for new in stay)


def test_a_prune_takes_the_oldest_and_says_how_much(tmp_path):
    store = out(tmp_path)
    size = 10 + (tmp_path / "snapshots" / NAMES[0] / "manifest.json").stat().st_size
    found = prune(store, 2, NOW)
    assert (found.removed, found.kept, found.bytes) == (NAMES[:4], NAMES[4:], 4 * size)
    assert found.sizes == dict.fromkeys(NAMES[:4], size)
    assert there(tmp_path) == NAMES[4:]
    again = prune(LocalStore(tmp_path), 2, NOW)
    assert (again.removed, again.litter) == ([], [])


def test_the_one_that_latest_names_stays_when_somebody_put_it_back(tmp_path):
    found = prune(out(tmp_path, latest=NAMES[1]), 2, NOW)
    assert found.kept == [NAMES[1], NAMES[5]]
    assert there(tmp_path) == [NAMES[1], NAMES[5]]


def test_what_is_dated_after_now_takes_nobody_s_place_unless_latest_names_it(tmp_path):
    assert misdated(out(tmp_path), NOW) is None
    store = out(tmp_path, [FUTURE], NAMES[-1])
    assert misdated(store, NOW) == f"dated after now (2026-11-25 04:00 UTC): {FUTURE}"
    assert prune(store, 6, NOW, dry_run=True).removed == [FUTURE]
    assert prune(store, 5, NOW, dry_run=True).removed == [FUTURE, NAMES[0]]
    (tmp_path / "LATEST").write_text(FUTURE)
    assert prune(store, 2, NOW).kept == [FUTURE, NAMES[-1]]


def test_the_last_run_is_the_one_that_latest_names(tmp_path):
    store = out(tmp_path, [*NAMES, FUTURE, "kept"], NAMES[-1])
    assert [night.name for night in previous_runs(store, published(store, NOW))] == NAMES
    (tmp_path / "LATEST").write_text(NAMES[2])  # somebody took the newest back, or a clock was behind
    assert published(store, NOW) == NAMES[:3]
    (tmp_path / "LATEST").write_text(FUTURE)  # just published: it is the last one, whatever its date
    assert published(store, NOW) == [*NAMES, FUTURE]
    (tmp_path / "LATEST").write_text("gone")
    assert published(store, NOW) == [*NAMES, "kept"]


def test_a_dry_run_takes_nothing(tmp_path):
    found = prune(out(tmp_path), 1, NOW, dry_run=True)
    assert found.removed == NAMES[:5]
    assert there(tmp_path) == NAMES


def test_what_somebody_else_put_there_is_left_alone_and_does_not_count(tmp_path):
    store = out(tmp_path)
    (tmp_path / "snapshots" / NAMES[0]).rename(tmp_path / "snapshots" / "before-the-move")
    (tmp_path / "snapshots" / "notes").mkdir()
    assert prune(store, 5, NOW).removed == []
    assert prune(store, 4, NOW).removed == [NAMES[1]]
    assert {"before-the-move", "notes"} <= set(there(tmp_path))


@pytest.mark.parametrize("manifest", ["whole", "none"])
def test_a_linked_snapshot_is_somebody_else_s(tmp_path, manifest):
    """It is listed like any, does not count, and nothing of what it leads to is taken away."""
    store, elsewhere = out(tmp_path / "out", NAMES[1:]), tmp_path / "elsewhere"
    out(elsewhere, NAMES[:1])
    theirs = elsewhere / "snapshots" / NAMES[0]
    if manifest == "none":
        (theirs / "manifest.json").unlink()
    link = tmp_path / "out" / "snapshots" / NAMES[0]
    link.symlink_to(theirs)
    before = sorted(path.relative_to(elsewhere) for path in elsewhere.rglob("*"))
    assert store.names() == (NAMES if manifest == "whole" else NAMES[1:])
    found = prune(store, 3, NOW)
    assert (found.removed, found.litter) == (NAMES[1:3], [])
    with pytest.raises(OSError, match="Not a directory"):
        store.remove(NAMES[0])
    assert link.is_symlink()
    assert sorted(path.relative_to(elsewhere) for path in elsewhere.rglob("*")) == before


def test_a_prune_that_was_killed_in_the_middle_is_taken_up_by_the_next(tmp_path, monkeypatch):
    store = out(tmp_path)

    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("etl.snapshots.stores.store.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            prune(store, 3, NOW)
    assert NAMES[0] in there(tmp_path)
    assert store.names() == NAMES[1:]  # half removed is no snapshot
    assert incomplete(store) == [NAMES[0]]
    found = prune(store, 3, NOW)
    assert (found.litter, found.removed) == ([NAMES[0]], NAMES[1:3])
    assert there(tmp_path) == NAMES[3:]


def test_what_cannot_be_removed_is_said(tmp_path, monkeypatch):
    def refused(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("etl.snapshots.stores.store.shutil.rmtree", refused)
    with pytest.raises(ConnectError, match="can't be removed: Permission denied"):
        prune(out(tmp_path), 1, NOW)


def test_a_list_has_a_line_for_each_and_says_which_is_the_newest(tmp_path):
    store = out(tmp_path, NAMES[:2], NAMES[1])
    (tmp_path / "snapshots" / NAMES[0] / "manifest.json").write_text("{")
    broken, whole = list_snapshots(store)
    assert broken.trouble
    assert (whole.latest, whole.events, whole.triples, whole.users, whole.bytes) == (True, 2, 5, 1, 10)


def test_a_place_where_nothing_was_published_is_likely_to_be_mistyped(tmp_path):
    with pytest.raises(ConnectError, match="nothing was published there yet"):
        require_published(LocalStore(tmp_path / "nowhere"))
    require_published(out(tmp_path))

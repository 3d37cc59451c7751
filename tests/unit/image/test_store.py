# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Kept packages are never believed, and a lock is renewed only when that is allowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cvmtool.errors import BuildError
from cvmtool.image import build, store
from cvmtool.image.archive import Archive, UnavailableError
from cvmtool.image.build import LOCK_FILE, obtain_lock
from cvmtool.image.lock import Lock, Package, parse_lock
from cvmtool.image.recipe import Request
from cvmtool.image.store import Store
from tests.unit.image.parts import make_package

REQUEST = Request(suites=("trixie",), fallback_suites=(), roles={}, wheels=None)
ARCHIVE = Archive(main="http://archive.invalid/debian", security="http://archive.invalid/security")
OLD, NEW = make_package("zlib", b"old"), make_package("zlib", b"new")
CONTENT = {OLD.sha256: b"old", NEW.sha256: b"new"}


def lock_of(package: Package) -> Lock:
    return Lock(request=REQUEST.digest(), packages=(package,))


class FakeArchive:
    """Serves some packages; answers every request with the newest."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, serves: tuple[Package, ...]) -> None:
        self.serves = {package.sha256 for package in serves}
        self.asked = 0
        monkeypatch.setattr(store, "download_debs", self.download)
        monkeypatch.setattr(build, "resolve", self.resolve)

    def find(self) -> Archive:
        return ARCHIVE

    def download(self, packages: list[Package], archive: Archive, folder: Path) -> None:
        assert archive is ARCHIVE
        for package in packages:
            if package.sha256 not in self.serves:
                raise UnavailableError("not served")
            (folder / package.sha256).write_bytes(CONTENT[package.sha256])

    def resolve(self, request: Request, archive: Archive, *, notice: Callable[[str], None]) -> Lock:
        assert request is REQUEST
        self.asked += 1
        return lock_of(NEW)


def obtain(tmp_path: Path, fake: FakeArchive, *, locked: bool, notices: list[str]) -> Lock:
    return obtain_lock(
        tmp_path / LOCK_FILE,
        REQUEST,
        store=Store(folder=tmp_path / "kept"),
        find_archive=fake.find,
        locked=locked,
        notice=notices.append,
    )


def test_a_served_lock_is_kept_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeArchive(monkeypatch, (OLD,))
    (tmp_path / LOCK_FILE).write_bytes(lock_of(OLD).encode())
    notices: list[str] = []
    assert obtain(tmp_path, fake, locked=False, notices=notices) == lock_of(OLD)
    assert (fake.asked, notices) == (0, [])


def test_a_lock_that_is_no_longer_served_is_renewed_with_a_notice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeArchive(monkeypatch, (NEW,))
    (tmp_path / LOCK_FILE).write_bytes(lock_of(OLD).encode())
    notices: list[str] = []
    assert obtain(tmp_path, fake, locked=False, notices=notices) == lock_of(NEW)
    assert parse_lock((tmp_path / LOCK_FILE).read_bytes()) == lock_of(NEW)
    assert any("zlib" in notice for notice in notices)


def test_locked_never_renews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeArchive(monkeypatch, (NEW,))
    (tmp_path / LOCK_FILE).write_bytes(lock_of(OLD).encode())
    with pytest.raises(BuildError):
        obtain(tmp_path, fake, locked=True, notices=[])
    assert fake.asked == 0
    assert parse_lock((tmp_path / LOCK_FILE).read_bytes()) == lock_of(OLD)


def test_locked_refuses_a_lock_for_another_recipe_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeArchive(monkeypatch, (OLD, NEW))
    with pytest.raises(BuildError, match="missing"):
        obtain(tmp_path, fake, locked=True, notices=[])
    (tmp_path / LOCK_FILE).write_bytes(Lock(request="00" * 32, packages=(OLD,)).encode())
    with pytest.raises(BuildError, match="another recipe"):
        obtain(tmp_path, fake, locked=True, notices=[])


def test_kept_packages_answer_without_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeArchive(monkeypatch, ())
    (tmp_path / LOCK_FILE).write_bytes(lock_of(OLD).encode())
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / OLD.sha256).write_bytes(b"old")
    assert obtain(tmp_path, fake, locked=True, notices=[]) == lock_of(OLD)


def test_a_damaged_kept_package_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeArchive(monkeypatch, (OLD,))
    kept = Store(folder=tmp_path)
    (tmp_path / OLD.sha256).write_bytes(b"bad")
    with pytest.raises(UnavailableError, match="SHA-256"):
        kept.path(OLD)
    assert kept.fetch([OLD], ARCHIVE) == OLD.size
    assert kept.path(OLD).read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == [OLD.sha256]


def test_wrong_bytes_from_the_archive_are_never_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeArchive(monkeypatch, (OLD,))
    monkeypatch.setitem(CONTENT, OLD.sha256, b"evil")
    kept = Store(folder=tmp_path)
    with pytest.raises(UnavailableError, match="SHA-256"):
        kept.fetch([OLD], ARCHIVE)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_downloaded_without_an_archive(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="not kept"):
        Store(folder=tmp_path).fetch([OLD], None)

# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What every kind of host's files does; tests/integration/test_remote.py holds the ones behind SSH to the same."""

import hashlib
import os
import stat
import time
from pathlib import Path

import pytest

from cvmtool.errors import HostError
from cvmtool.host.files import LocalFiles


@pytest.fixture
def files():
    return LocalFiles()


def mode(path):
    return stat.S_IMODE(Path(path).stat().st_mode)


def nothing(_done, _total):
    pass


def test_what_is_written_can_be_read_by_everybody_and_replaces(files, tmp_path):
    path = tmp_path / "a"
    os.umask(os.umask(0o077))
    files.write(str(path), b"one")
    (tmp_path / "b").hardlink_to(path)
    files.write(str(path), b"two")
    assert (path.read_bytes(), (tmp_path / "b").read_bytes(), mode(path)) == (b"two", b"one", 0o644)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a", "b"]


def test_reading_is_bounded(files, tmp_path):
    (tmp_path / "a").write_bytes(b"abcdef")
    assert files.read(str(tmp_path / "a"), 4) == b"abcd"
    assert files.read(str(tmp_path / "a"), 100) == b"abcdef"


def test_directories_are_passable_whatever_the_umask(files, tmp_path):
    before = os.umask(0o077)
    try:
        files.make_dir(str(tmp_path / "x" / "y"))
        files.make_dir(str(tmp_path / "x" / "y"))
        assert files.make_new_dir(str(tmp_path / "x" / "y" / "z")) is True
        assert files.make_new_dir(str(tmp_path / "x" / "y" / "z")) is False
    finally:
        os.umask(before)
    assert [mode(tmp_path / path) for path in ("x", "x/y", "x/y/z")] == [0o755] * 3


def test_a_sparse_file_is_private_zero_and_made_once(files, tmp_path):
    path = tmp_path / "volume.img"
    assert files.make_sparse(str(path), 1 << 30) is True
    assert (path.stat().st_size, mode(path)) == (1 << 30, 0o600)
    assert path.stat().st_blocks * 512 < 1 << 20
    path.write_bytes(b"data")
    assert files.make_sparse(str(path), 1 << 30) is False
    assert path.read_bytes() == b"data"
    with pytest.raises(HostError):
        files.make_sparse(str(tmp_path / "missing" / "volume.img"), 1)


def test_sizes_and_entries(files, tmp_path):
    assert files.size(str(tmp_path / "a")) is None
    assert files.entries(str(tmp_path / "missing")) == []
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    (tmp_path / "old").write_bytes(b"")
    os.utime(tmp_path / "old", (0, time.time() - 90_000))
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "folder").mkdir()
    assert files.size(str(tmp_path / "a")) == 5
    found = {entry.name: (entry.size, entry.links, entry.stale) for entry in files.entries(str(tmp_path))}
    assert found == {"a": (5, 2, False), "b": (5, 2, False), "old": (0, 1, True)}


@pytest.mark.parametrize("start", [0, 1, 5, 10])
def test_sending_goes_on_where_it_stopped(files, tmp_path, start):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"0123456789")
    target.write_bytes(b"ABCDEFGHIJKLMN")
    told = []
    files.append(source, str(target), start=start, progress=lambda done, total: told.append((done, total)))
    assert target.read_bytes() == (b"ABCDEFGHIJ"[:start] + b"0123456789"[start:])
    assert told == ([(10, 10)] if start < 10 else [])
    assert files.digest(str(target)) == hashlib.sha256(target.read_bytes()).hexdigest()


def test_links_and_names(files, tmp_path):
    a, b, c = (str(tmp_path / name) for name in "abc")
    assert files.link(a, b) is False
    files.write(a, b"x")
    assert files.link(a, b) is True
    with pytest.raises(HostError):
        files.link(a, b)
    files.write(c, b"y")
    files.rename(c, a)
    assert (files.read(a, 9), files.read(b, 9), files.size(c)) == (b"y", b"x", None)
    files.remove(a)
    files.remove(a)
    assert files.size(a) is None


def test_a_tree_goes_and_what_its_links_name_stays(files, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_bytes(b"")
    (tmp_path / "tree" / "below").mkdir(parents=True)
    (tmp_path / "tree" / "below" / "file").write_bytes(b"")
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "kept")
    files.remove_tree(str(tmp_path / "tree"))
    files.remove_tree(str(tmp_path / "tree"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "kept"]


def test_what_the_host_cannot_do_is_its_failure(files, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    below = str(tmp_path / "file" / "below")
    for call in (
        lambda: files.read(below, 1),
        lambda: files.write(below, b""),
        lambda: files.make_dir(below),
        lambda: files.make_new_dir(below),
        lambda: files.digest(below),
        lambda: files.append(tmp_path / "file", below, start=0, progress=nothing),
        lambda: files.append(tmp_path / "missing", str(tmp_path / "x"), start=0, progress=nothing),
        lambda: files.rename(below, str(tmp_path / "x")),
    ):
        with pytest.raises(HostError):
            call()
    assert (files.size(below), files.entries(below)) == (None, [])
    files.remove(below)
    files.remove_tree(below)

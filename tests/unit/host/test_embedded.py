# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Where libvirt's sockets have room, and whose directory they may stand in."""

import os
from pathlib import Path

import pytest

from cvmtool.errors import HostError
from cvmtool.host import embedded
from cvmtool.host.embedded import embedded_root, embedded_uri, prepare, session_fits
from cvmtool.host.hypervisor import choose_uri


def test_session_has_room_in_a_common_home(tmp_path: Path) -> None:
    assert session_fits(Path("/"), Path("/"))
    assert choose_uri(uid=1000, runtime=Path("/"), config=Path("/")) == "qemu:///session"


@pytest.mark.parametrize("long", ["runtime", "config"])
def test_long_home_takes_the_driver_inside(long: str) -> None:
    paths = {"runtime": Path("/"), "config": Path("/"), long: Path("/" + "h" * 50)}
    assert not session_fits(**paths)
    assert choose_uri(uid=1000, **paths) == f"qemu:///embed?root=/tmp/cvmtool-1000/{os.getpid()}"


def test_the_last_byte_of_a_socket_counts() -> None:
    room = embedded._SOCKET_BYTES - len(embedded._LONGEST_RUNTIME) - 2
    assert session_fits(Path("/" + "r" * room), Path("/")) == os.access("/", os.W_OK)
    assert not session_fits(Path("/" + "r" * (room + 1)), Path("/"))


def test_runtime_directory_that_may_not_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda _path, mode: mode == os.F_OK)
    assert not session_fits(Path("/"), Path("/"))


def test_uri_and_root_are_a_pair() -> None:
    uri = embedded_uri(uid=0, pid=7)
    assert embedded_root(uri) == Path("/run/cvmtool/7")
    assert embedded_root("qemu:///system") is None


@pytest.fixture
def users_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory of an ordinary user's embedded roots, which does not exist yet."""
    monkeypatch.setattr(embedded, "embedded_dir", lambda _uid: tmp_path / "cvmtool-1000")
    uid = os.getuid() or 1000
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    if os.getuid() == 0:
        os.chown(tmp_path, 1000, -1)
    return tmp_path / "cvmtool-1000"


def make(folder: Path, mode: int, uid: int) -> None:
    folder.mkdir()
    folder.chmod(mode)
    if os.getuid() == 0:
        os.chown(folder, uid, -1)


def test_user_gets_no_line_about_root(users_dir: Path) -> None:
    make(users_dir, 0o700, 1000)
    prepare(users_dir / "7")
    assert 'stdio_handler = "file"' in (users_dir / "7/etc/qemu.conf").read_text()
    assert "root" not in (users_dir / "7/etc/qemu.conf").read_text()
    assert (users_dir / "7/cache").resolve() == users_dir / "cache"


def test_directory_open_to_others_is_refused(users_dir: Path) -> None:
    make(users_dir, 0o770, 1000)
    with pytest.raises(HostError):
        prepare(users_dir / "7")
    assert not (users_dir / "7").exists()


def test_link_that_another_user_planted_is_refused(users_dir: Path, tmp_path: Path) -> None:
    make(tmp_path / "elsewhere", 0o700, 1000)
    users_dir.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(HostError):
        prepare(users_dir / "7")
    assert not (tmp_path / "elsewhere/7").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make another user's directory")
def test_directory_of_another_user_is_refused(users_dir: Path) -> None:
    make(users_dir, 0o700, 1001)
    with pytest.raises(HostError):
        prepare(users_dir / "7")

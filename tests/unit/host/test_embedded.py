# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Where libvirt's sockets have room, and whose directory they may stand in."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cvmtool.errors import HostError
from cvmtool.host import embedded
from cvmtool.host.embedded import (
    embedded_machine_uri,
    embedded_root,
    embedded_uri,
    is_held,
    prepare,
    qemu_lives,
    session_fits,
)
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


def test_machines_that_outlive_a_process_have_short_roots_of_their_own() -> None:
    one = embedded_root(embedded_machine_uri(uid=0, name="a" * 64))
    other = embedded_root(embedded_machine_uri(uid=0, name="b" * 64))
    assert one is not None
    assert other is not None
    assert one != other
    assert len(f"{one}/lib/qemu/channel/target/domain-99999-{'a' * 20}/org.cvmtool.agent.0") <= 107


def test_a_number_in_a_file_alone_is_no_living_process(tmp_path: Path) -> None:
    root = tmp_path / "vm"
    (root / "run/qemu").mkdir(parents=True)
    assert not qemu_lives(root, "m1")
    for text in ("", "x", "99999999", "1"):
        (root / "run/qemu/m1.pid").write_text(text)
        assert not qemu_lives(root, "m1")


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds the file of its number, as libvirt and its QEMUs do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    script = (
        "import fcntl, os, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX);"
        "file.write(str(os.getpid())); file.flush(); print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_process_that_holds_the_file_lives(tmp_path: Path) -> None:
    with holder(tmp_path / "run/qemu/driver.pid") as process:
        assert is_held(tmp_path)
        process.kill()
        process.wait()
        assert not is_held(tmp_path)


STARTING, RUNNING = "state='paused' reason='starting up' pid='0'", "state='running' reason='booted' pid='7'"


def status_of(root: Path, state: str) -> Path:
    path = root / "run/qemu/m1.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"<!-- libvirt's -->\n\n<domstatus {state}>\n<domain type='qemu'/>\n</domstatus>\n")
    return path


def test_what_a_killed_driver_was_starting_is_ended_and_forgotten(tmp_path: Path) -> None:
    status = status_of(tmp_path, STARTING)
    with holder(tmp_path / "run/qemu/m1.pid") as qemu:
        prepare(tmp_path)
        assert qemu.wait(0) == -signal.SIGKILL
    assert not status.exists()


def test_its_qemu_may_be_gone_already(tmp_path: Path) -> None:
    status = status_of(tmp_path, STARTING)
    (tmp_path / "run/qemu/m1.pid").write_text(str(os.getpid()))  # another process has the number by now
    prepare(tmp_path)
    assert not status.exists()


@pytest.mark.parametrize("state", [RUNNING, "state='running", "reason='starting up'><!"])
def test_what_runs_or_cannot_be_read_is_libvirts(tmp_path: Path, state: str) -> None:
    status = status_of(tmp_path, state)
    with holder(tmp_path / "run/qemu/m1.pid") as qemu:
        prepare(tmp_path)
        assert (qemu.poll(), status.exists()) == (None, True)


def test_what_a_driver_that_lives_is_starting_is_left_to_it(tmp_path: Path) -> None:
    status = status_of(tmp_path, STARTING)
    with holder(tmp_path / "run/qemu/driver.pid"), holder(tmp_path / "run/qemu/m1.pid") as qemu:
        prepare(tmp_path)
        assert (qemu.poll(), status.exists()) == (None, True)

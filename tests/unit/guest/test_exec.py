# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Commands with a shell in crun's place, and plain files for the control group; crun itself is proven in a booted guest."""

import json
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from cvmtool.formats.control import TUNNEL_PIECE, LogReader, Stream
from cvmtool.formats.wire import Frame, Kind, read_frame
from cvmtool.guest import exec as commands
from cvmtool.guest import programs
from cvmtool.guest.container import Rooms
from tests.unit.guest import samples

END = Frame(Kind.END, b"").encode()


class Running:
    """A command, and its owner's end of the connection."""

    def __init__(self, root, monkeypatch, script):
        self.rooms = Rooms(work=root, cgroups=root / "cgroups")
        self.group = self.rooms.container_cgroup / "exec-1"
        self.group.parent.mkdir(parents=True)
        self.argv, self.process = None, None
        self.script = script
        self.pids = root / "pids"
        monkeypatch.setattr(commands, "converse_by_pipes", self.start)
        self.owner, self.guest = socket.socketpair()
        self.owner.settimeout(20)
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def start(self, *argv):
        self.argv = argv
        self.process = json.loads(Path(argv[5].removeprefix("--process=")).read_text())
        (self.group / "cgroup.events").write_text("populated 0\n")
        running = programs.converse_by_pipes("sh", "-c", f"PIDS={self.pids}; echo $$ >> $PIDS; {self.script}")
        threading.Thread(target=self.killer, args=(running.process,), daemon=True).start()
        return running

    def killer(self, process):
        """What the kernel does on cgroup.kill: to those whose numbers the script wrote down."""
        while not (self.group / "cgroup.kill").exists():
            time.sleep(0.01)
        process.kill()
        for pid in self.pids.read_text().split():
            if int(pid) != process.pid:
                os.kill(int(pid), 9)

    def run(self):
        with self.guest:
            args = ("/bin/tool", "x y")
            commands.run_command(samples.manifest(), args, self.rooms, name="exec-1", owner=self.guest)

    def frames(self):
        while True:
            try:
                yield read_frame(self.exactly)
            except EOFError:
                return

    def exactly(self, size):
        data = b""
        while len(data) < size:
            piece = self.owner.recv(size - len(data))
            if not piece:
                raise EOFError
            data += piece
        return data

    def outcome(self):
        """Return what it wrote, by stream, and the exit code; None if that did not come."""
        reader, written, code = LogReader(), {Stream.STDOUT: b"", Stream.STDERR: b""}, None
        for frame in self.frames():
            assert code is None  # it is the last word
            if frame.kind is Kind.JSON:
                code = json.loads(frame.payload)["exit_code"]
                self.owner.shutdown(socket.SHUT_WR)
            else:
                for record in reader.feed(frame.payload):
                    written[record.stream] += record.data
        return written, code

    def over(self):
        self.thread.join(20)
        return not self.thread.is_alive()


@pytest.fixture
def start(tmp_path, monkeypatch):
    made = []

    def make(script):
        made.append(Running(tmp_path, monkeypatch, script))
        return made[-1]

    yield make
    for running in made:
        running.owner.close()
        assert running.over()
        assert not list(tmp_path.glob("exec-1.json"))


def test_both_streams_and_the_exit_code(start):
    running = start("echo out; echo err >&2; exit 3")
    assert running.outcome() == ({Stream.STDOUT: b"out\n", Stream.STDERR: b"err\n"}, 3)


def test_what_crun_is_told(start):
    running = start("true")
    assert running.outcome()[1] == 0
    crun, root, manager, verb, cgroup, _, name = running.argv
    assert (crun, verb, name) == ("crun", "exec", "job")
    assert (root, manager, cgroup) == (
        f"--root={running.rooms.work}/crun",
        "--cgroup-manager=cgroupfs",
        "--cgroup=exec-1",
    )
    process = running.process
    assert process["args"] == ["/bin/tool", "x y"]
    assert process["user"] == {"uid": 65_534, "gid": 65_534, "umask": 0o022}
    assert set(map(tuple, process["capabilities"].values())) == {()}
    assert process["noNewPrivileges"] is True
    assert "HOME=/scratch" in process["env"]
    assert process["cwd"] == "/app"


def test_input_is_handed_over_to_its_end(start):
    running = start("cat; echo done")
    data = os.urandom(300_000)
    for at in range(0, len(data), TUNNEL_PIECE):
        running.owner.sendall(Frame(Kind.DATA, data[at : at + TUNNEL_PIECE]).encode())
    running.owner.sendall(END)
    written, code = running.outcome()
    assert (written[Stream.STDOUT], code) == (data + b"done\n", 0)


def test_a_command_need_not_read_its_input(start):
    running = start("exit 4")
    running.owner.sendall(Frame(Kind.DATA, b"x" * TUNNEL_PIECE).encode() + END)
    assert running.outcome()[1] == 4


def test_what_it_leaves_behind_ends_with_it(start):
    running = start("sleep 300 & echo $! >> $PIDS; echo begun; exit 0")
    written, code = running.outcome()  # the pipes are closed, so nobody holds them
    assert (written[Stream.STDOUT], code) == (b"begun\n", 0)


def test_a_signal_is_an_exit_code_of_its_own(start):
    assert start("kill -TERM $$").outcome()[1] == 143


def test_an_owner_that_goes_ends_it(start):
    running = start("echo begun; exec sleep 300")
    next(running.frames())
    running.owner.close()
    assert running.over()


def test_an_owner_that_goes_ends_it_although_it_reads_no_input(start):
    running = start("echo begun; exec sleep 300")
    next(running.frames())
    running.owner.sendall(2 * Frame(Kind.DATA, bytes(60_000)).encode())
    time.sleep(0.2)
    running.owner.close()
    assert running.over()


@pytest.mark.parametrize(
    "bad",
    [Frame(Kind.JSON, b"{}").encode(), END + END, Frame(Kind.DATA, bytes(TUNNEL_PIECE + 1)).encode(), b"X\0\0\0\0"],
    ids=["json", "two ends", "too long", "unknown kind"],
)
def test_what_is_no_input_ends_it(start, bad):
    running = start("echo begun; exec sleep 300")
    next(running.frames())
    running.owner.sendall(bad)
    assert running.outcome()[1] == 137


def test_a_container_that_has_ended(tmp_path):
    rooms = Rooms(work=tmp_path, cgroups=tmp_path / "cgroups")
    owner, guest = socket.socketpair()
    with owner, guest:
        commands.run_command(samples.manifest(), ("true",), rooms, name="exec-1", owner=guest)
        guest.close()
        assert owner.recv(1) == b""

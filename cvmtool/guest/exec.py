# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""One command of the owner in the running container, with the rights of the job and no more.

Zone: guest (measured).
Spec: docs/protocol.md sections 5 and 8.

crun starts it with the container's own user, environment, namespaces and seccomp filter, in a control group below the container's:
the job's limits are for both together. What is in that group does not outlive the command, or the owner's connection.
"""

from __future__ import annotations

import os
import select
import selectors
import socket
import threading
import time
from contextlib import suppress

from cvmtool.errors import FormatError
from cvmtool.formats.control import TUNNEL_PIECE, LogRecord, Stream
from cvmtool.formats.job import JobManifest
from cvmtool.formats.wire import Frame, Kind, canonical_json, json_frame
from cvmtool.guest.container import CONTAINER_ID, Cgroup, Rooms, exit_code
from cvmtool.guest.frames import hand_over, receive
from cvmtool.guest.oci import render_process
from cvmtool.guest.programs import Piped, converse_by_pipes

_AGAIN_SECONDS = 0.2  # before what may only just be starting is killed once more


def run_command(manifest: JobManifest, args: tuple[str, ...], rooms: Rooms, *, name: str, owner: socket.socket) -> None:
    """Run a command: its input comes in frames, its output goes as log records, its exit code comes last.

    `name`: of its control group, no other command's. Whoever goes, the owner or the container, ends it.
    """
    owner.settimeout(None)
    group = rooms.container_cgroup / name
    description = rooms.work / f"{name}.json"
    try:
        group.mkdir()
        description.write_bytes(canonical_json(render_process(manifest, args)))
        running = converse_by_pipes(
            "crun",
            f"--root={rooms.work}/crun",
            "--cgroup-manager=cgroupfs",
            "exec",
            f"--cgroup={name}",
            f"--process={description}",
            CONTAINER_ID,
        )
        _Attendance(owner, running, Cgroup(group)).attend()
    except OSError:
        return
    finally:
        description.unlink(missing_ok=True)
        with suppress(OSError):
            group.rmdir()


class _Attendance:
    """Stays by a command until it is gone, and all that it started."""

    def __init__(self, owner: socket.socket, running: Piped, group: Cgroup) -> None:
        self._owner = owner
        self._running = running
        self._group = group
        self._gone = os.pidfd_open(running.process.pid)

    def attend(self) -> None:
        """Carry what goes in and what comes out; stay until the owner closes, who has heard the exit code by then.

        Raises:
            OSError: the owner has gone, and the command with it.
        """
        feeder = threading.Thread(target=self._feed, name="exec", daemon=True)
        feeder.start()
        try:
            self._forward()
            self._owner.sendall(json_frame({"exit_code": exit_code(self._running.process.wait())}))
        except OSError:
            with suppress(OSError):
                self._owner.shutdown(socket.SHUT_RDWR)
            raise
        finally:
            self._end()
            for pipe in (self._running.stdout, self._running.stderr):
                os.close(pipe)
            feeder.join()
            os.close(self._gone)

    def _forward(self) -> None:
        began = time.monotonic_ns()
        with selectors.DefaultSelector() as selector:
            selector.register(self._gone, selectors.EVENT_READ)
            selector.register(self._running.stdout, selectors.EVENT_READ, Stream.STDOUT)
            selector.register(self._running.stderr, selectors.EVENT_READ, Stream.STDERR)
            while selector.get_map():
                for key, _ in selector.select():
                    if key.fd == self._gone:
                        self._end()  # what it left behind holds the pipes open
                        selector.unregister(self._gone)
                        continue
                    data = os.read(key.fd, TUNNEL_PIECE)
                    if not data:
                        selector.unregister(key.fd)
                        continue
                    microseconds = (time.monotonic_ns() - began) // 1000
                    record = LogRecord(stream=key.data, microseconds=microseconds, data=data)
                    self._owner.sendall(Frame(Kind.DATA, record.encode()).encode())

    def _feed(self) -> None:
        """Hand over the command's input, and end the command when its owner's connection ends."""
        pipe: int | None = self._running.stdin
        try:
            while True:
                pipe = self._take(pipe)
        except (OSError, FormatError):
            self._end()
            with suppress(OSError):  # what is not read when a connection closes costs the other side the last words
                while self._owner.recv(TUNNEL_PIECE):
                    pass
        finally:
            if pipe is not None:
                os.close(pipe)

    def _take(self, pipe: int | None) -> int | None:
        """Take one frame of input; return the pipe, or None once the input has ended."""
        frame = receive(self._owner, most=TUNNEL_PIECE)
        if pipe is None or frame.kind is Kind.JSON:
            raise FormatError(f"a frame of kind {frame.kind.value!r} is no input, or comes after its end")
        if frame.kind is Kind.END:
            os.close(pipe)
            return None
        with suppress(BrokenPipeError):  # it may take no input
            hand_over(frame.payload, lambda data: os.write(pipe, data), pipe, owner=self._owner)
        return pipe

    def _end(self) -> None:
        """Kill all of it. What crun is only just about to start is not in the group yet, so once may not be enough."""
        while True:
            with suppress(OSError):
                self._group.kill()
            if select.select([self._gone], [], [], _AGAIN_SECONDS)[0]:
                return

# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A running job's machine as another process finds it: sockets of its ports, and behind each the guest's own code.

What is not real: QEMU between the two, and the container, for which a server on this machine's loopback stands.
"""

from __future__ import annotations

import http.server
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import paramiko
import pytest

from cvmtool.config import Settings
from cvmtool.flows import visit
from cvmtool.flows.jobs import MANIFEST_FILE, POLICY_FILE, JobDir
from cvmtool.flows.prepare import load_keys
from cvmtool.flows.records import MachineRecord, save_record
from cvmtool.formats.channel import CLIENT_PORTS, find_last_open, ready_line
from cvmtool.formats.control import CLIENT_ADDRESS, CLIENT_OPS, CONTROL_ADDRESS, LogRecord, Stage, Stream
from cvmtool.formats.jobterms import Access
from cvmtool.formats.wire import Frame, Kind, json_frame
from cvmtool.guest.container import Rooms
from cvmtool.guest.control import ControlService
from cvmtool.guest.reach import Reach
from cvmtool.guest.tunnel import Namespace
from cvmtool.owner.policyfile import encode_policy
from tests import samples
from tests.fakes.guest import FakeGuest

PORT = 8000

_HOLD = (
    "import fcntl, os, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX);"
    "file.write(str(os.getpid())); file.flush(); print(flush=True); sys.stdin.read()"
)


class Life:
    """A guest's life whose container runs until `stage` says otherwise."""

    def __init__(self, reach: Reach, *, exec_allowed: bool) -> None:
        self.reach = reach
        self.stage = Stage.RUNNING
        self.stopped: list[int] = []
        self.job = self
        self.tunnel = reach.tunnel
        self.command = self._shout if exec_allowed else reach.command

    def status(self) -> dict[str, object]:
        return {"stage": self.stage.value}

    def stop(self, grace_seconds: int) -> None:
        self.stopped.append(grace_seconds)

    def _shout(self, args: tuple[str, ...], owner: socket.socket) -> None:
        """In place of a container: give back what comes in, in capitals; the exit code is the number of words."""
        owner.sendall(json_frame({"ok": True}))
        stream = owner.makefile("rb")
        while (head := stream.read(5))[:1] == b"D":
            data = stream.read(int.from_bytes(head[1:], "big")).upper()
            record = LogRecord(stream=Stream.STDOUT, microseconds=2, data=data)
            owner.sendall(Frame(Kind.DATA, record.encode()).encode())
        record = LogRecord(stream=Stream.STDERR, microseconds=3, data=" ".join(args).encode())
        owner.sendall(Frame(Kind.DATA, record.encode()).encode() + json_frame({"exit_code": len(args)}))


class Sshd(paramiko.ServerInterface):
    """Lets each key forward to the address that the guest's sshd opens for it, and to no other."""

    def __init__(self, allowed: dict[bytes, tuple[str, int]]) -> None:
        self._allowed = allowed
        self._for: tuple[str, int] | None = None

    def get_allowed_auths(self, username):
        return "publickey"

    def check_auth_publickey(self, username, key):
        self._for = self._allowed.get(key.asbytes()[-32:])
        return paramiko.AUTH_SUCCESSFUL if self._for else paramiko.AUTH_FAILED

    def check_channel_direct_tcpip_request(self, chanid, origin, destination):
        if destination == self._for:
            return paramiko.OPEN_SUCCEEDED
        return paramiko.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED


class Agent:
    """The agent of one guest: it answers challenges at a port, and lets each key through to the service at its address."""

    def __init__(
        self,
        guest: FakeGuest,
        folder: Path,
        services: dict[tuple[str, int], ControlService],
        allowed: dict[bytes, tuple[str, int]],
    ) -> None:
        self.guest = guest
        self.services = services
        self.allowed = allowed
        for service in services.values():
            service.start()
        guest.keys.write_host_key(folder / "key")
        self._host_key = paramiko.Ed25519Key.from_private_key_file(str(folder / "key"))
        self._transports: list[paramiko.Transport] = []
        self.sessions = 0
        """How often a port was connected to."""
        self.logins = 0
        """How often SSH was begun at one."""

    def serve(self, port: socket.socket) -> None:
        """Serve whoever has connected to the port, until they go."""
        self.sessions += 1
        with suppress(OSError, EOFError, paramiko.SSHException):
            heard = b""
            while (found := find_last_open(heard)) is None:
                data = port.recv(65_536)
                if not data:
                    return
                heard += data
            port.sendall(ready_line(found[0].nonce, self.guest.answer(found[0])))
            first = port.recv(1, socket.MSG_PEEK)
            self.logins += bool(first)
            transport = paramiko.Transport(port)
            self._transports.append(transport)
            transport.add_server_key(self._host_key)
            sshd = Sshd(self.allowed)
            transport.start_server(server=sshd)
            while transport.is_active():
                channel = transport.accept(timeout=0.2)
                if channel is not None:
                    address = self.services[sshd._for].address
                    threading.Thread(target=self._join, args=(channel, address), daemon=True).start()

    def _join(self, channel: paramiko.Channel, address: tuple[str, int]) -> None:
        with socket.create_connection(address) as there:
            back = threading.Thread(target=self._pump, args=(there.recv, channel), daemon=True)
            back.start()
            self._pump(channel.recv, there)
            with suppress(OSError):
                there.shutdown(socket.SHUT_WR)
            back.join()

    @staticmethod
    def _pump(receive, to) -> None:
        with suppress(OSError, EOFError):
            while data := receive(65_536):
                to.sendall(data)
        with suppress(OSError, EOFError):
            to.shutdown_write() if isinstance(to, paramiko.Channel) else None

    def cut(self) -> None:
        """Cut every session."""
        for transport in self._transports:
            transport.close()


class RunningJob(Agent):
    """A job of `settings`' owner that runs in a machine of an embedded libvirt, which another process holds."""

    def __init__(self, folder: Path, settings: Settings, *, access: Access, name: str = "serving") -> None:
        self.root = folder / "root"
        (self.root / "run/qemu").mkdir(parents=True)
        owner = load_keys(settings).public.hex()
        manifest = samples.manifest(owner_key=owner, access=access)
        self.life = Life(
            Reach(manifest, Rooms(work=folder, cgroups=folder)),
            exec_allowed=access.exec,
        )
        super().__init__(
            FakeGuest(folder / "guest", manifest),
            folder,
            {
                CONTROL_ADDRESS: ControlService(self.life, pytest.fail, address=("127.0.0.1", 0)),
                CLIENT_ADDRESS: ControlService(self.life, pytest.fail, address=("127.0.0.1", 0), ops=CLIENT_OPS),
            },
            {bytes.fromhex(owner): CONTROL_ADDRESS}
            | {bytes.fromhex(client): CLIENT_ADDRESS for client in access.clients},
        )
        self._listeners: list[socket.socket] = []
        self._holder: subprocess.Popen[bytes] | None = None
        self.job = JobDir.create(settings.jobs_dir, name, simulated=True)
        self.job.write(MANIFEST_FILE, manifest.encode())
        self.job.write(POLICY_FILE, encode_policy(self.guest.policy()).encode())
        self._describe()
        uri = f"qemu:///embed?root={self.root}"
        self.record = MachineRecord(
            name=self.job.record.machine, job=self.job.record.id, host=uri, uri=uri, machines=str(folder), pid=1
        )
        save_record(settings.records_dir, self.record)

    def _describe(self) -> None:
        """Write what libvirt keeps of the running domain, and listen on its ports."""
        channels = ""
        for number, port in enumerate(CLIENT_PORTS):
            path = self.root / str(number)
            channels += f"<channel type='unix'><source mode='bind' path='{path}'/><target name='{port}'/></channel>"
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(path))
            listener.listen()
            self._listeners.append(listener)
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        status = f"<domstatus><domain><devices>{channels}</devices></domain></domstatus>"
        (self.root / f"run/qemu/{self.job.record.machine}.xml").write_text(status)

    def hold(self) -> None:
        """Have another process hold the embedded libvirt."""
        command = [sys.executable, "-c", _HOLD, str(self.root / "run/qemu/driver.pid")]
        self._holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        self._holder.stdout.readline()

    def let_go(self) -> None:
        """Kill that process."""
        if self._holder is not None:
            self._holder.kill()
            self._holder.communicate()
            self._holder = None

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                port, _ = listener.accept()
                threading.Thread(target=self.serve, args=(port,), daemon=True).start()

    def close(self) -> None:
        self.let_go()
        self.cut()
        for listener in self._listeners:
            listener.close()
        self.job.let_go()


class Echo(http.server.BaseHTTPRequestHandler):
    """Says back what it is sent."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def running_job(settings: Settings, monkeypatch: pytest.MonkeyPatch, *, access: Access) -> Iterator[RunningJob]:
    """A running job, in whose container an HTTP server answers at `PORT`."""
    # Short: a socket's path has little room.
    with (
        tempfile.TemporaryDirectory(dir="/tmp", prefix="r") as folder,
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server,
    ):
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        monkeypatch.setattr(Namespace, "connect", lambda _, _port: socket.create_connection(server.server_address))
        monkeypatch.setattr(visit, "embedded_dir", lambda _uid: Path(folder))
        running = RunningJob(Path(folder), settings, access=access)
        running.hold()
        try:
            yield running
        finally:
            running.close()
            server.shutdown()


def post(url: str, body: bytes) -> bytes:
    """Ask that server."""
    with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=60) as answer:
        return answer.read()

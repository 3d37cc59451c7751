# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The image's sshd configuration and the bridge, with the real sshd of this machine and the real client.

In the guest the session's user is `owner`; here it is whoever runs the tests, and the paths are a private directory's. The
rest of the configuration is the image's own file. OpenSSH before 9.9 does not know ML-KEM, so that one name is left out.
"""

import getpass
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

import paramiko
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cvmtool.formats.channel import Open, answer_to
from cvmtool.formats.evidence import host_data
from cvmtool.guest import attest, device
from cvmtool.guest.channel import Bridge
from cvmtool.guest.keys import BootKeys
from cvmtool.guest.shell import Shell
from tests.unit.guest.samples import report

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = REPOSITORY / "images/base/overlay/etc/cvmtool/sshd_config"
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/bin")
MANIFEST = b"m" * 32

pytestmark = pytest.mark.skipif(SSHD is None, reason="sshd is not installed (package openssh-server)")


class Key(paramiko.Ed25519Key):
    """A paramiko key of a key of ours."""

    def __init__(self, private: Ed25519PrivateKey):
        path = Path(tempfile.mkstemp()[1])
        path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        try:
            super().__init__(filename=str(path))
        finally:
            path.unlink()


class Guest:
    """The guest's end: attestor, bridge and sshd, on a socket instead of a virtio port; and an echo for its control service."""

    def __init__(self, work: Path, owner: bytes, client: bytes):
        self.owner = owner
        self.client_listener = socket.create_server(("127.0.0.1", 0))
        self.client_port = self.client_listener.getsockname()[1]
        threading.Thread(target=self.echo, args=(self.client_listener,), daemon=True).start()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.control_port = self.listener.getsockname()[1]
        threading.Thread(target=self.echo, args=(self.listener,), daemon=True).start()
        keys = BootKeys()
        keys.write_host_key(work / "ssh_host_ed25519_key")
        attestor = attest.Attestor(keys, device.Paths(), work / "authorized_keys", Shell(allowed=False))
        # The key file's own permitopen names the real port; the configuration's is what is tested here.
        attest_key = attest.authorized_key
        self.key_line = lambda key, **options: self.here(attest_key(key, **options).decode()).encode()
        attestor.admit((client,))
        text = self.here(CONFIG.read_text().replace("/run/cvmtool/", f"{work}/"))
        text = text.replace("AllowUsers owner", f"AllowUsers {getpass.getuser()}").replace("mlkem768x25519-sha256,", "")
        self.config = work / "sshd_config"
        self.config.write_text(text)
        self.port, self.guest = socket.socketpair()
        self.port.settimeout(30)
        self.guest.setblocking(False)
        self.bridge = Bridge(self.guest.fileno(), attestor.answer, sshd=lambda: (SSHD, "-i", "-f", str(self.config)))
        self.thread = threading.Thread(target=self.bridge.serve)

    def here(self, text: str) -> str:
        """Return text with this machine's ports in it."""
        return text.replace(":7010", f":{self.control_port}").replace(":7011", f":{self.client_port}")

    @staticmethod
    def echo(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                while data := connection.recv(1 << 16):
                    connection.sendall(data)

    def challenge(self, nonce: bytes) -> bytes:
        """Send OPEN, return the SSH host key of the evidence that comes."""
        self.port.sendall(Open(nonce=nonce, owner_key=self.owner, manifest_sha256=MANIFEST).encode())
        seen = b""
        while (answer := answer_to(seen, nonce)) is None:
            seen += self.port.recv(1)
        return answer[0].ssh_host_key

    def session(self, nonce: bytes = b"n" * 32) -> paramiko.Transport:
        """Begin SSH with the host key that the evidence vouches for; not yet logged in."""
        host_key = self.challenge(nonce)
        transport = paramiko.Transport(self.port)
        transport.start_client(timeout=30)
        assert transport.get_remote_server_key().asbytes()[-32:] == host_key
        return transport

    def close(self) -> None:
        self.bridge.stop()
        self.thread.join(20)
        for end in (self.listener, self.client_listener, self.port, self.guest):
            end.close()


@pytest.fixture(scope="module")
def owner():
    return Ed25519PrivateKey.generate()


@pytest.fixture(scope="module")
def client():
    return Ed25519PrivateKey.generate()


@pytest.fixture
def guest(owner, client, monkeypatch):
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd insists on it as root
    # Not below /tmp: StrictModes refuses key files under a directory that others may write to.
    work = Path(tempfile.mkdtemp(prefix=".cvmtool-sshd-", dir=pwd.getpwuid(os.getuid()).pw_dir))
    public = owner.public_key().public_bytes_raw()
    launched = host_data(owner_key=public, manifest_sha256=MANIFEST)
    monkeypatch.setattr(
        device, "get_report", lambda data, paths: device.RawReport(report=report(data, launched), cert_table=b"")
    )
    guest = Guest(work, public, client.public_key().public_bytes_raw())
    monkeypatch.setattr(attest, "authorized_key", guest.key_line)
    guest.thread.start()
    yield guest
    guest.close()
    shutil.rmtree(work)


@pytest.fixture
def transport(guest):
    transport = guest.session()
    yield transport
    transport.close()


@pytest.fixture
def logged_in(transport, owner):
    transport.auth_publickey(getpass.getuser(), Key(owner))
    return transport


def test_configuration_is_valid(guest):
    done = subprocess.run([SSHD, "-t", "-f", str(guest.config)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_the_client_library_cannot_ask_for_is_off(guest):
    done = subprocess.run([SSHD, "-T", "-f", str(guest.config)], capture_output=True, text=True, check=True)
    effective = set(done.stdout.splitlines())
    for line in (
        "allowagentforwarding no", "allowstreamlocalforwarding no", "allowtcpforwarding local", "compression no",
        "gatewayports no", "kbdinteractiveauthentication no", "maxsessions 0", "permitlisten none", "permittty no",
        "permittunnel no", "permituserenvironment no", "permituserrc no", "strictmodes yes", "x11forwarding no",
    ):  # fmt: skip
        assert line in effective


def test_owner_reaches_the_control_service(guest, logged_in):
    channel = logged_in.open_channel("direct-tcpip", ("127.0.0.1", guest.control_port), ("127.0.0.1", 0), timeout=30)
    channel.sendall(b"hello")
    assert channel.recv(5) == b"hello"


def test_the_owner_does_not_reach_what_is_clients(guest, logged_in):
    with pytest.raises(paramiko.ChannelException):
        logged_in.open_channel("direct-tcpip", ("127.0.0.1", guest.client_port), ("127.0.0.1", 0), timeout=30)


def test_a_client_reaches_what_is_clients_and_nothing_else(guest, transport, client):
    transport.auth_publickey(getpass.getuser(), Key(client))
    channel = transport.open_channel("direct-tcpip", ("127.0.0.1", guest.client_port), ("127.0.0.1", 0), timeout=30)
    channel.sendall(b"hello")
    assert channel.recv(5) == b"hello"
    with pytest.raises(paramiko.ChannelException):
        transport.open_channel("direct-tcpip", ("127.0.0.1", guest.control_port), ("127.0.0.1", 0), timeout=30)
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(paramiko.ChannelException):
        transport.open_channel("direct-tcpip", ("127.0.0.1", other.getsockname()[1]), ("127.0.0.1", 0), timeout=30)
    with pytest.raises(paramiko.ChannelException):
        transport.open_session(timeout=30)
    with pytest.raises(paramiko.SSHException):
        transport.request_port_forward("127.0.0.1", 0)


def test_ciphers_authenticate(logged_in):
    assert logged_in.remote_cipher.endswith("-gcm@openssh.com")
    assert logged_in.local_cipher.endswith("-gcm@openssh.com")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_no_other_port(guest, logged_in, host):
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(paramiko.ChannelException):
        logged_in.open_channel("direct-tcpip", (host, other.getsockname()[1]), ("127.0.0.1", 0), timeout=30)


def test_no_other_name_of_the_control_service(guest, logged_in):
    with pytest.raises(paramiko.ChannelException):
        logged_in.open_channel("direct-tcpip", ("0.0.0.0", guest.control_port), ("127.0.0.1", 0), timeout=30)


def test_no_session_channel_and_so_no_shell_command_terminal_or_sftp(logged_in):
    with pytest.raises(paramiko.ChannelException):
        logged_in.open_session(timeout=30)


def test_no_remote_forwarding(logged_in):
    with pytest.raises(paramiko.SSHException):
        logged_in.request_port_forward("127.0.0.1", 0)


@pytest.mark.parametrize("kind", ["auth-agent@openssh.com", "session@evil"])
def test_no_other_channel(logged_in, kind):
    with pytest.raises(paramiko.ChannelException):
        logged_in.open_channel(kind, timeout=30)


def test_no_other_key(transport):
    with pytest.raises(paramiko.AuthenticationException):
        transport.auth_publickey(getpass.getuser(), Key(Ed25519PrivateKey.generate()))


@pytest.mark.parametrize("user", sorted({"root", "nobody", "nobody-at-all", ""} - {getpass.getuser()}))
def test_no_other_user(transport, owner, user):
    with pytest.raises(paramiko.SSHException):
        transport.auth_publickey(user, Key(owner))


def test_no_password(transport):
    with pytest.raises(paramiko.BadAuthenticationType) as caught:
        transport.auth_password(getpass.getuser(), "x")
    assert caught.value.allowed_types == ["publickey"]


def test_session_that_was_abandoned_is_ended_by_the_next_open(guest, owner):
    guest.challenge(b"a" * 32)
    while not guest.port.recv(1 << 16).startswith(b"SSH-2.0"):
        pass
    guest.port.sendall(b"SSH-2.0-half a")
    transport = guest.session(b"b" * 32)
    transport.auth_publickey(getpass.getuser(), Key(owner))
    assert transport.is_authenticated()
    transport.close()

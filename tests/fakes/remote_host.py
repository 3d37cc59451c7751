# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Another host, on this machine: sshd on the loopback with keys of its own and, as root, a libvirtd in a mount namespace.

What the namespace has below /run/libvirt, /var/lib/libvirt and /var/lib/cvmtool nobody outside of it sees, so a machine that
starts there was started through the connection and from files that went through it.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.pki import write_pki

SSHD = "/usr/sbin/sshd"
LIBVIRTD = "/usr/sbin/libvirtd"
_SERVER = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
Subsystem sftp internal-sftp
"""
# QEMU as root: /dev/kvm may be root's alone, and libvirt would ask QEMU again for minutes (docs/adr/0014).
_QEMU = 'user = "root"\ngroup = "root"\nstdio_handler = "file"\nnamespaces = []\nremember_owner = 0\n'
_LIBVIRTD = """\
auth_unix_rw = "none"
listen_addr = "127.0.0.1"
tls_port = "{port}"
ca_file = "{pki}/cacert.pem"
cert_file = "{pki}/servercert.pem"
key_file = "{pki}/serverkey.pem"
"""
_NAMESPACE = """
set -e
umask 022
for pair in etc:/etc/libvirt run:/run/libvirt lib:/var/lib/libvirt cache:/var/cache/libvirt log:/var/log/libvirt \\
    cvmtool:/var/lib/cvmtool; do
    mkdir -p "$1/${pair%%:*}" "${pair#*:}"
    mount --bind "$1/${pair%%:*}" "${pair#*:}"
done
/usr/sbin/libvirtd -d -l -p "$1/libvirtd.pid"
exec /usr/sbin/sshd -D -f "$1/sshd_config" -E "$1/sshd.log"
"""


@dataclass
class RemoteHost:
    """Where it is and how it is reached."""

    folder: Path
    port: int
    user: str
    process: subprocess.Popen[bytes]
    tls_port: int
    """Of its libvirtd."""

    @property
    def uri(self) -> str:
        return f"qemu+ssh://{self.user}@127.0.0.1:{self.port}/system"

    @property
    def tls_uri(self) -> str:
        return f"qemu+tls://127.0.0.1:{self.tls_port}/system?pkipath={self.folder / 'pki'}"

    @property
    def identity(self) -> Path:
        return self.folder / "id"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    @property
    def machines(self) -> Path:
        """Its /var/lib/cvmtool/machines, seen from here."""
        return self.folder / "cvmtool" / "machines"

    def fingerprint(self) -> str:
        """As OpenSSH's own program says."""
        listed = subprocess.run(
            ["ssh-keygen", "-lf", str(self.folder / "host_key.pub")], check=True, capture_output=True, text=True
        )
        return listed.stdout.split()[1]

    def sessions(self) -> list[int]:
        """Return the processes that serve its connections."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                fields = path.read_text().rpartition(")")[2].split()
                if int(fields[1]) == self.process.pid and (path.parent / "cmdline").read_bytes().startswith(b"sshd"):
                    found.append(int(path.parent.name))
        return found

    @contextmanager
    def unreachable(self) -> Iterator[None]:
        """Stop its sshd, cut what goes through it, and start it again after the block."""
        self.cut()
        self.process.kill()
        self.process.wait()
        try:
            yield
        finally:
            inside = ["nsenter", "--mount", "--target", (self.folder / "libvirtd.pid").read_text().strip()]
            server = [SSHD, "-D", "-f", str(self.folder / "sshd_config"), "-E", str(self.folder / "sshd.log")]
            self.process = subprocess.Popen([*inside, *server], stdin=subprocess.DEVNULL)
            _await(self.port, self.process)

    @property
    def _libvirtd(self) -> int:
        return int((self.folder / "libvirtd.pid").read_text())

    def restart_libvirtd(self) -> None:
        """Kill its libvirtd and start it again, as a service manager would."""
        number = self._libvirtd
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
        while Path(f"/proc/{number}").exists():
            time.sleep(0.02)
        inside = ["nsenter", "--mount", "--target", str(self.process.pid)]
        command = [*inside, LIBVIRTD, "-d", "-l", "-p", str(self.folder / "libvirtd.pid")]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)

    @contextmanager
    def kept_alive(self) -> Iterator[None]:
        """Start its libvirtd again whenever it dies, while the block runs."""
        over = threading.Event()

        def supervise() -> None:
            while not over.wait(0.5):
                if not Path(f"/proc/{self._libvirtd}").exists():
                    self.restart_libvirtd()

        thread = threading.Thread(target=supervise)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def cut(self) -> None:
        """Cut every connection."""
        for pid in self.sessions():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def lacking(*, libvirt: bool) -> str | None:
    """Say why there can be no such host here."""
    programs = [SSHD, "ssh-keygen", *([LIBVIRTD] if libvirt else [])]
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        return f"{', '.join(missing)} missing: sh tools/setup.sh --tests"
    if libvirt and os.geteuid() != 0:
        return "a second libvirtd in a mount namespace needs root"
    return None


def _key(path: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)], check=True)
    return path.with_suffix(".pub").read_text()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError("the other host's sshd does not answer")


@contextmanager
def remote_host(*, libvirt: bool) -> Iterator[RemoteHost]:
    """Start one; it ends with the block, and so does what it started."""
    with tempfile.TemporaryDirectory(prefix="cvmtool-host-", dir="/var/tmp") as name:
        folder, port, tls_port = Path(name), _free_port(), _free_port()
        folder.chmod(0o755)
        shown = _key(folder / "host_key").split()
        (folder / "authorized_keys").write_text(_key(folder / "id"))
        (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {shown[0]} {shown[1]}\n")
        (folder / "sshd_config").write_text(_SERVER.format(port=port, folder=folder))
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        command = [SSHD, "-D", "-f", str(folder / "sshd_config"), "-E", str(folder / "sshd.log")]
        if libvirt:
            (folder / "etc").mkdir()
            (folder / "etc" / "qemu.conf").write_text(_QEMU)
            write_pki(folder / "pki")
            (folder / "etc" / "libvirtd.conf").write_text(_LIBVIRTD.format(port=tls_port, pki=folder / "pki"))
            command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _NAMESPACE, "sh", str(folder)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=sys.stderr)
        user = pwd.getpwuid(os.geteuid()).pw_name
        host = RemoteHost(folder=folder, port=port, user=user, process=process, tls_port=tls_port)
        try:
            _await(port, process)
            yield host
        finally:
            host.cut()
            host.process.kill()
            host.process.wait()
            with suppress(OSError, ValueError):
                os.kill(int((folder / "libvirtd.pid").read_text()), signal.SIGTERM)
                time.sleep(0.5)

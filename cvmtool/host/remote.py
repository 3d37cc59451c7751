# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A remote host over SSH: its key, its files, and how libvirt reaches it with the same key.

Zone: host. A door to paramiko. A host's key is in a known_hosts file before anything is said to it: never accepted at first use.
Files go through SFTP; what SFTP cannot do is done by fixed programs of the host (`find`, `openssl` or `sha256sum`, `ln`, `rm`),
whose answers are claims like everything else.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
import secrets
import shlex
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import paramiko

from cvmtool.errors import HostError
from cvmtool.host.address import RemoteUri, SshAddress
from cvmtool.host.files import PRIVATE_FILE, PUBLIC_DIR, PUBLIC_FILE, STALE_MINUTES, Entry, Progress

_CONNECT_SECONDS = 20.0
_SILENCE_SECONDS = 120.0  # of a server that was asked something small
_HASH_SECONDS = 3600.0  # for a digest of a very large file
_KEEPALIVE_SECONDS = 15
_WINDOW = 1 << 26  # bytes in flight
_REQUEST = 32_768  # bytes of one write that every server takes (draft-ietf-secsh-filexfer-02, section 3)
_OPENSSH_REQUEST = 255 << 10  # OpenSSH's own limit: a packet of 256 KiB
_MAX_ANSWER = 16 << 20  # bytes of a program's output
_NOT_FOUND = 127  # what a shell ends with for a program that is not there
_DIGEST = re.compile(rb"\\?([0-9a-f]{64}) [^\n]*\n")
_ENTRY = re.compile(rb"(new|old) ([0-9]{1,18}) ([0-9]{1,9}) ([A-Za-z0-9._-]{1,255})")
_CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")  # several times as fast as the others here

logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # it logs what it raises as well


@dataclass(frozen=True, slots=True, kw_only=True)
class SshAccess:
    """How to reach an account, and which keys are its machine's."""

    address: SshAddress
    known_hosts: Path
    identity: Path | None
    """A private key; None tries the agent and the account's own keys."""


def fingerprint(key: bytes) -> str:
    """Return a public key's fingerprint as OpenSSH writes it."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(key).digest()).decode("ascii").rstrip("=")


def fetch_host_key(address: SshAddress) -> tuple[str, bytes]:
    """Return the type and the bytes of the key that a machine shows, unverified; nothing else is said to it.

    Raises:
        HostError: nothing answers.
    """
    with _told(f"{address.known_as} does not answer to SSH"):
        connection = socket.create_connection((address.host, address.port), _CONNECT_SECONDS)
        transport = paramiko.Transport(connection)
        try:
            transport.start_client(timeout=_CONNECT_SECONDS)
            key = transport.get_remote_server_key()
            return key.get_name(), key.asbytes()
        finally:
            transport.close()


def known_hosts_line(address: SshAddress, kind: str, key: bytes) -> str:
    """Return the line of a known_hosts file."""
    return f"{address.known_as} {kind} {base64.b64encode(key).decode('ascii')}\n"


def connection_uri(remote: RemoteUri, access: SshAccess | None, *, write_wrapper: Callable[[str], Path]) -> str:
    """Return the URI for libvirt to reach a host with the same key and identity as we do.

    Args:
        remote: the host.
        access: how SSH reaches it; None for TLS.
        write_wrapper: writes a program of this text, and returns its path.
    """
    if access is None:
        return remote.uri
    if remote.transport == "ssh":
        return remote.with_query(command=str(write_wrapper(_wrapper(access))))
    options = {"known_hosts": str(access.known_hosts), "known_hosts_verify": "normal", "sshauth": "agent,privkey"}
    if access.identity is not None:
        options |= {"keyfile": str(access.identity), "sshauth": "privkey"}
    return remote.with_query(**options)


def _wrapper(access: SshAccess) -> str:
    """Return a program that is ssh with our settings and nobody else's: libvirt itself knows no strict known_hosts for it."""
    known = str(access.known_hosts).replace("%", "%%").replace('"', '\\"')
    options = [
        "BatchMode=yes",
        "StrictHostKeyChecking=yes",
        f'UserKnownHostsFile="{known}"',
        "GlobalKnownHostsFile=/dev/null",
        "UpdateHostKeys=no",
        f"ConnectTimeout={_CONNECT_SECONDS:.0f}",
        f"ServerAliveInterval={_KEEPALIVE_SECONDS}",
        "ServerAliveCountMax=3",
        f"Ciphers=^{','.join(_CIPHERS)}",
    ]
    words = ["ssh", "-F", "none", *(f"-o{option}" for option in options)]
    if access.identity is not None:
        words += ["-oIdentitiesOnly=yes", "-i", str(access.identity)]
    return f'#!/bin/sh\n# Written by cvmtool for libvirt.\nexec {shlex.join(words)} "$@"\n'


class RemoteFiles:
    """The files of a host, over one SSH connection."""

    def __init__(self, access: SshAccess) -> None:
        """Connect.

        Raises:
            HostError: nothing answers, another key than the known one, or no identity is accepted.
        """
        self._client = paramiko.SSHClient()
        try:
            self._sftp = self._connect(access)
        except BaseException:
            self._client.close()
            raise

    def _connect(self, access: SshAccess) -> paramiko.SFTPClient:
        address = access.address
        with suppress(FileNotFoundError):
            self._client.load_host_keys(str(access.known_hosts))
        self._client.set_missing_host_key_policy(_Refuse(access))
        try:
            with _told(f"{address.known_as} does not answer to SSH"):
                self._client.connect(
                    address.host,
                    address.port,
                    username=address.user,
                    key_filename=None if access.identity is None else str(access.identity),
                    allow_agent=access.identity is None,
                    look_for_keys=access.identity is None,
                    timeout=_CONNECT_SECONDS,
                    banner_timeout=_CONNECT_SECONDS,
                    auth_timeout=_CONNECT_SECONDS,
                    transport_factory=cast("Any", _transport),
                )
                transport = self._client.get_transport()
                if transport is None:
                    raise paramiko.SSHException("no transport")
                transport.set_keepalive(_KEEPALIVE_SECONDS)
                self._request = _OPENSSH_REQUEST if "OpenSSH" in transport.remote_version else _REQUEST
                sftp = self._client.open_sftp()
                channel = sftp.get_channel()
                if channel is not None:
                    channel.settimeout(_SILENCE_SECONDS)
                return sftp
        except HostError as error:
            raise _explained(error, access) or error from error

    @property
    def connection(self) -> paramiko.SSHClient:
        """The connection itself, for what only looks (`cvmtool.host.doctor.distant`)."""
        return self._client

    @property
    def home(self) -> str:
        """The account's home directory."""
        with _told("the host does not say where the account's home is"):
            home = self._sftp.normalize(".")
            if not re.fullmatch(r"(/[A-Za-z0-9._-]{1,255}){1,32}", home):
                raise HostError("the account's home directory has no plain path", detail=home[:200])
            return home

    def read(self, path: str, most: int) -> bytes:
        """Return the first `most` bytes of a file."""
        with _told(f"the host's {path} cannot be read"), self._sftp.open(path, "rb") as file:
            size = file.stat().st_size or 0
            file.prefetch(min(size, most))
            return file.read(most)

    def write(self, path: str, data: bytes) -> None:
        """Make or replace a small public file."""
        folder, _, _ = path.rpartition("/")
        temporary = f"{folder}/.{secrets.token_hex(8)}"
        with _told(f"the host's {path} cannot be written"):
            try:
                with self._sftp.open(temporary, "wxb") as file:
                    file.chmod(PUBLIC_FILE)
                    file.write(data)
                self._sftp.posix_rename(temporary, path)
            except BaseException:
                with suppress(OSError, EOFError, paramiko.SSHException):
                    self._sftp.remove(temporary)
                raise

    def make_dir(self, path: str) -> None:
        """Make a public directory and those above it."""
        parts = path.strip("/").split("/")
        with _told(f"the host's {path} cannot be made"):
            for count in range(1, len(parts) + 1):
                folder = "/" + "/".join(parts[:count])
                try:
                    status = self._sftp.stat(folder)
                    if not stat.S_ISDIR(status.st_mode or 0):
                        raise NotADirectoryError(folder)
                except FileNotFoundError:
                    with suppress(OSError):  # another process of ours may be quicker; the next one finds out
                        self._sftp.mkdir(folder, PUBLIC_DIR)
                    self._sftp.chmod(folder, PUBLIC_DIR)

    def make_new_dir(self, path: str) -> bool:
        """Make a public directory; False if the name is taken."""
        with _told(f"the host's {path} cannot be made"):
            try:
                self._sftp.mkdir(path, PUBLIC_DIR)
            except OSError:
                with suppress(FileNotFoundError):
                    self._sftp.lstat(path)
                    return False
                raise
            self._sftp.chmod(path, PUBLIC_DIR)
            return True

    def size(self, path: str) -> int | None:
        """Return a file's size; None if there is nothing."""
        with _told(f"the host's {path} cannot be looked at"):
            try:
                return self._sftp.stat(path).st_size or 0
            except FileNotFoundError:
                return None

    def entries(self, path: str) -> list[Entry]:
        """List the regular files right below a directory."""
        if self.size(path) is None:
            return []
        shape = "%s %n %f\\n"
        words = ["find", f"{path}/", "-mindepth", "1", "-maxdepth", "1", "-type", "f"]
        words += ["(", "-mmin", f"-{STALE_MINUTES}", "-printf", f"new {shape}", "-o", "-printf", f"old {shape}", ")"]
        found = []
        for line in self._run(words, f"the host's {path} cannot be listed").splitlines():
            match = _ENTRY.fullmatch(line)
            if match is not None:  # other names are not ours
                name = match[4].decode("ascii")
                found.append(Entry(name=name, size=int(match[2]), links=int(match[3]), stale=match[1] == b"old"))
        return found

    def append(self, source: Path, path: str, *, start: int, progress: Progress) -> None:
        """Send `source` from byte `start` on, without waiting for each answer."""
        with _told(f"{source.name} cannot be sent to the host's {path}"), source.open("rb") as file:
            total = source.stat().st_size
            file.seek(start)
            with self._sftp.open(path, "r+b" if start else "wb") as target:
                target.chmod(PUBLIC_FILE)
                target.truncate(start)
                target.seek(start)
                target.set_pipelined(True)
                target.MAX_REQUEST_SIZE = self._request
                while piece := file.read(self._request):
                    target.write(piece)
                    progress(file.tell(), total)
            # The answers to the last writes came with the closing, and a refusal among them is not told.
            arrived = self._sftp.stat(path).st_size
            if arrived != total:
                raise OSError(f"{arrived} of {total} bytes arrived; is there room on the host's disk?")

    def make_sparse(self, path: str, size: int) -> bool:
        """Make a private file of zeroes."""
        with _told(f"the host's {path} cannot be made"):
            try:
                with self._sftp.open(path, "wxb") as file:
                    file.chmod(PRIVATE_FILE)
                    file.truncate(size)
            except OSError:
                # SFTP version 3 has no word for "exists".
                if self.size(path) is None:
                    raise
                return False
        return True

    def digest(self, path: str) -> str:
        """Return a file's SHA-256, as the host says."""
        action = f"the host's {path} cannot be hashed"
        # coreutils hashes in plain C on many distributions, at a third of OpenSSL's speed and slower than the network.
        code, said, _ = self._ask(["openssl", "dgst", "-sha256", "-r", path], action, seconds=_HASH_SECONDS)
        if code == _NOT_FOUND:
            said = self._run(["sha256sum", "--", path], action, seconds=_HASH_SECONDS)
        match = _DIGEST.fullmatch(said)
        if match is None:
            raise HostError(action, detail="it answers with no digest")
        return match[1].decode("ascii")

    def link(self, path: str, name: str) -> bool:
        """Give a file a second name."""
        if self.size(name) is not None:
            raise HostError(f"the host's {name} cannot be linked", detail="there is something of that name")
        return self._ask(["ln", "-T", "--", path, name], "the host cannot link files")[0] == 0

    def rename(self, path: str, name: str) -> None:
        """Rename a file."""
        with _told(f"the host's {path} cannot be renamed"):
            self._sftp.posix_rename(path, name)

    def remove(self, path: str) -> None:
        """Remove a file."""
        with _told(f"the host's {path} cannot be removed"), suppress(FileNotFoundError):
            self._sftp.remove(path)

    def remove_tree(self, path: str) -> None:
        """Remove a directory and what is in it."""
        self._run(["rm", "-rf", "--", path], f"the host's {path} cannot be removed")

    def close(self) -> None:
        """Disconnect."""
        self._client.close()

    def _run(self, words: list[str], action: str, *, seconds: float = _SILENCE_SECONDS) -> bytes:
        code, output, errors = self._ask(words, action, seconds=seconds)
        if code != 0:
            raise HostError(action, detail=errors.decode("utf-8", "replace")[:400] or f"{words[0]} ended with {code}")
        return output

    def _ask(self, words: list[str], action: str, *, seconds: float = _SILENCE_SECONDS) -> tuple[int, bytes, bytes]:
        with _told(action):
            _, output, errors = self._client.exec_command(shlex.join(words), timeout=seconds)
            said = output.read(_MAX_ANSWER + 1)
            complaint = errors.read(4096)
            if len(said) > _MAX_ANSWER:
                raise OSError(f"{words[0]} answers with more than {_MAX_ANSWER} bytes")
            return output.channel.recv_exit_status(), said, complaint


class _Refuse(paramiko.MissingHostKeyPolicy):
    def __init__(self, access: SshAccess) -> None:
        self._access = access

    def missing_host_key(self, client: object, hostname: str, key: paramiko.PKey) -> None:  # noqa: ARG002 - paramiko's
        raise HostError(
            f"the key of {hostname} is {fingerprint(key.asbytes())} ({key.get_name()}), "
            f"and {self._access.known_hosts} knows none of it",
            hint="compare it with what the host itself says (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then: "
            f"cvmtool host add NAME URI --host-key {fingerprint(key.asbytes())}",
        )


def _transport(connection: socket.socket, **options: Any) -> paramiko.Transport:  # noqa: ANN401 - paramiko's
    transport = paramiko.Transport(connection, default_window_size=_WINDOW, **options)
    security = transport.get_security_options()
    security.ciphers = (*_CIPHERS, *(name for name in security.ciphers if name not in _CIPHERS))
    return transport


def _explained(error: HostError, access: SshAccess) -> HostError | None:
    """Return what paramiko's failure means, or None if there is nothing to add."""
    cause, address = error.__cause__, access.address
    if isinstance(cause, paramiko.BadHostKeyException):
        return HostError(
            f"the key of {address.known_as} is {fingerprint(cause.key.asbytes())}; "
            f"{fingerprint(cause.expected_key.asbytes())} is required ({access.known_hosts})",
            hint="another machine answers there, or it was installed anew; ask its operator, then: cvmtool host remove and add",
        )
    if isinstance(cause, paramiko.PasswordRequiredException):
        return HostError(f"the key {access.identity} has a passphrase", hint=f"ssh-add {access.identity}")
    if isinstance(cause, paramiko.AuthenticationException):
        return HostError(
            f"{address.known_as} accepts no key of ours for {address.user or 'this account'}",
            detail=str(cause),
            hint="name one: identity of the host in cvmtool.toml, or cvmtool host add --identity FILE",
        )
    return None


@contextmanager
def _told(message: str) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, paramiko.SSHException) as error:
        raise HostError(message, detail=str(error) or type(error).__name__) from error

# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The three keys of one boot: SSH host key, HPKE key, receipt key; the report binds their public halves.

Zone: guest (measured).
Spec: docs/protocol.md section 3; OpenSSH's PROTOCOL.key ("openssh-key-v1").

All are made in memory. The SSH host key also lies in a file, on memory-backed storage, because sshd takes it from
nowhere else. The format is written out here: it is a little framing, and the library's serialisers would slow a boot.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cvmtool.formats.control import CONTROL_ADDRESS
from cvmtool.formats.wire import lp

_KIND = b"ssh-ed25519"
_BLOCK = 8  # bytes; the unencrypted section is padded 1, 2, 3, ... to a multiple of this


class BootKeys:
    """Keys that exist for one boot of one guest. Dropped at power-off; never stored, never printed."""

    def __init__(self) -> None:
        self._ssh = Ed25519PrivateKey.generate()
        self.hpke = X25519PrivateKey.generate()
        self.receipt = Ed25519PrivateKey.generate()
        self.ssh_host_key = self._ssh.public_key().public_bytes_raw()
        self.hpke_key = self.hpke.public_key().public_bytes_raw()
        self.receipt_key = self.receipt.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return "<boot keys>"

    def write_host_key(self, path: Path) -> None:
        """Write the SSH host key for sshd, mode 0600.

        Raises:
            OSError: the file exists or cannot be written.
        """
        secret = self._ssh.private_bytes_raw() + self.ssh_host_key
        check = os.urandom(4)
        private = check + check + lp(_KIND, self.ssh_host_key, secret, b"")
        private += bytes(range(1, -len(private) % _BLOCK + 1))
        blob = b"openssh-key-v1\0" + lp(b"none", b"none", b"") + (1).to_bytes(4, "big")
        blob += lp(lp(_KIND, self.ssh_host_key), private)
        text = base64.b64encode(blob).decode("ascii")
        lines = "\n".join(text[at : at + 70] for at in range(0, len(text), 70))
        name = "OPENSSH PRIVATE KEY"
        write_private(path, f"-----BEGIN {name}-----\n{lines}\n-----END {name}-----\n".encode("ascii"))


def authorized_key(key: bytes, *, address: tuple[str, int] = CONTROL_ADDRESS, terminal: bool = False) -> bytes:
    """Return the authorized_keys line of a raw Ed25519 key: it may open that address, and a terminal if there is a shell."""
    blob = base64.b64encode(lp(_KIND, key))
    options = b'restrict,port-forwarding,permitopen="%b:%d"' % (address[0].encode("ascii"), address[1])
    return b"%b %b %b\n" % (options + (b",pty" if terminal else b""), _KIND, blob)


def write_private(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Create `path` with `data`; it never exists with wider rights or half written.

    Raises:
        OSError: it cannot be written.
    """
    new = path.with_name(path.name + ".new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        os.fchmod(file.fileno(), mode)
    new.replace(path)

# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Where a remote host is: libvirt URIs and SSH addresses, read strictly.

Zone: host. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cvmtool.errors import ConfigError

_NAME = (
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9._-]{0,63})@)?(?P<host>[A-Za-z0-9][A-Za-z0-9.-]{0,252}|\[[0-9A-Fa-f:.]{2,45}\])"
)
_PORT = r"(?::(?P<port>[0-9]{1,5}))?"
_URI = re.compile(
    rf"qemu\+(?P<transport>[a-z0-9]+)://{_NAME}{_PORT}/(?P<path>system|session)(?:\?(?P<query>[!-~]{{1,1024}}))?"
)
_SFTP = re.compile(rf"sftp://{_NAME}{_PORT}/?")
SSH_TRANSPORTS = ("ssh", "libssh", "libssh2")
_TRANSPORTS = (*SSH_TRANSPORTS, "tls")
# What a URI may ask of libvirt. Host keys, identities and the ssh command are settings of the host; no check can be turned off.
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789/-._~,")
_OPTIONS = frozenset({"socket", "mode", "proxy", "netcat", "pkipath", "tls_priority"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SshAddress:
    """An account on a machine. `user` None is the local user's name."""

    user: str | None
    host: str
    port: int

    @property
    def known_as(self) -> str:
        """Its name in a known_hosts file."""
        return self.host if self.port == 22 else f"[{self.host}]:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteUri:
    """A libvirt URI of another machine."""

    uri: str
    transport: str
    address: SshAddress
    """For `tls`, the port is libvirt's."""
    session: bool
    """The account's own libvirt instead of the system's."""
    query: str

    def with_query(self, **options: str) -> str:
        """Return the URI with further options."""
        query = "&".join(filter(None, (self.query, *(f"{name}={_quoted(value)}" for name, value in options.items()))))
        return self.uri.partition("?")[0] + (f"?{query}" if query else "")


def _quoted(value: str) -> str:
    """Return text as it stands in a URI (RFC 3986, section 2.1)."""
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in value.encode("utf-8"))


def parse_remote(uri: str) -> RemoteUri | None:
    """Read a libvirt URI; None if it names this machine.

    Raises:
        ConfigError: it is neither, or asks for what may not be asked for.
    """
    if re.match(r"qemu(\+unix)?:///", uri):
        return None
    match = _URI.fullmatch(uri)
    if match is None or match["transport"] not in _TRANSPORTS:
        raise ConfigError(
            f"host is {uri[:200]!r}; a named host, qemu:///... or qemu+ssh://[USER@]HOST[:PORT]/system is required",
            hint="cvmtool host list; libssh and tls are transports too",
        )
    for option in (match["query"] or "").split("&") if match["query"] else ():
        name = option.partition("=")[0]
        if name not in _OPTIONS:
            raise ConfigError(
                f"host {uri[:200]!r} has the option {name[:40]!r}; allowed: {', '.join(sorted(_OPTIONS))}",
                hint="keys are settings: cvmtool host add NAME URI --identity FILE --host-key SHA256:...",
            )
    tls = match["transport"] == "tls"
    return RemoteUri(
        uri=uri,
        transport=match["transport"],
        address=_address(match, 16514 if tls else 22),
        session=match["path"] == "session",
        query=match["query"] or "",
    )


def parse_sftp(text: str) -> SshAddress:
    """Read `sftp://[USER@]HOST[:PORT]`.

    Raises:
        ConfigError: it is something else.
    """
    match = _SFTP.fullmatch(text)
    if match is None:
        raise ConfigError(f"files is {text[:200]!r}; sftp://[USER@]HOST[:PORT] is required")
    return _address(match, 22)


def _address(match: re.Match[str], default: int) -> SshAddress:
    port = int(match["port"] or default)
    if not 0 < port < 65_536:
        raise ConfigError(f"port is {port}; 1 to 65535 are allowed")
    return SshAddress(user=match["user"], host=match["host"].strip("[]"), port=port)

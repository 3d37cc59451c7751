# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The packages lock: every package an image is made of, with its SHA-256, as diffable text.

Zone: image. Pure: no I/O.

    # comment
    request <sha256 of what was asked for>
    deb <name> <version> <architecture> <suite> <roles> <size> <sha256> <path in the archive>
    whl <name> <version> <tags>         pypi    <roles> <size> <sha256> <file name>

One line a package, sorted; `roles` are joined with commas. The request digest tells a lock that answers another recipe.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from cvmtool.errors import FormatError

MAX_LOCK = 1 << 20  # bytes
MAX_PACKAGE = 1 << 32  # bytes of one package
HEADER = "# cvmtool packages lock v1. `cvmtool image build` renews it; every build checks every SHA-256."
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+:~_-]*")
_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+:~_%-]*(/[A-Za-z0-9][A-Za-z0-9.+:~_%-]*)*")


class PackageKind(StrEnum):
    """Where a package comes from."""

    DEB = "deb"
    WHEEL = "whl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One locked package."""

    kind: PackageKind
    name: str
    version: str
    arch: str
    """Debian architecture, or a wheel's tags."""
    suite: str
    """Debian suite that served it, or `pypi`."""
    roles: frozenset[str]
    """What it is used for: rootfs, initrd, kernel, firmware, extra, tools, modules."""
    size: int
    """Bytes."""
    sha256: str
    """64 hex digits."""
    path: str
    """Path below the archive's base, or the wheel's file name."""

    @property
    def label(self) -> str:
        """Name and version, for messages."""
        return f"{self.name} {self.version}"

    def line(self) -> str:
        """Return the package's line in a lock."""
        roles = ",".join(sorted(self.roles))
        fields = (
            self.kind,
            self.name,
            self.version,
            self.arch,
            self.suite,
            roles,
            str(self.size),
            self.sha256,
            self.path,
        )
        return " ".join(fields)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """Packages that answer one request."""

    request: str
    """SHA-256 of the request, 64 hex digits."""
    packages: tuple[Package, ...]

    def role(self, name: str) -> tuple[Package, ...]:
        """Return the packages of one role, in order."""
        return tuple(package for package in self.packages if name in package.roles)

    def encode(self) -> bytes:
        """Return the lock file."""
        lines = sorted(package.line() for package in self.packages)
        return "\n".join([HEADER, f"request {self.request}", *lines, ""]).encode()


def parse_lock(data: bytes) -> Lock:
    """Read a lock file.

    Raises:
        FormatError: not in the one form that `Lock.encode` writes (comments may differ).
    """
    if len(data) > MAX_LOCK:
        raise FormatError(f"packages lock has {len(data)} bytes; at most {MAX_LOCK} are allowed")
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        raise FormatError(f"packages lock is not ASCII: {error}") from error
    request = ""
    lines = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line or line.startswith("#"):
            continue
        if line.startswith("request "):
            request = line.removeprefix("request ")
        else:
            lines.append((number, line))
    if not re.fullmatch(r"[0-9a-f]{64}", request):
        raise FormatError(f"packages lock: request is {request[:64]!r}; 64 hex digits are required")
    packages = tuple(_parse_line(line, number) for number, line in lines)
    written = [package.line() for package in packages]
    if written != sorted(set(written)) or written != [line for _, line in lines]:
        raise FormatError("packages lock is not in its one form: sorted lines without duplicates are required")
    return Lock(request=request, packages=packages)


def _parse_line(line: str, number: int) -> Package:
    fields = line.split(" ")
    if len(fields) != 9:
        raise FormatError(f"packages lock line {number} has {len(fields)} fields; 9 are required")
    kind, name, version, arch, suite, roles, size, sha256, path = fields
    where = f"packages lock line {number}"
    try:
        parsed_kind = PackageKind(kind)
    except ValueError as error:
        raise FormatError(f"{where}: kind is {kind[:32]!r}; deb or whl is required") from error
    for field, value in (("name", name), ("version", version), ("arch", arch), ("suite", suite)):
        if not _WORD.fullmatch(value):
            raise FormatError(f"{where}: {field} is {value[:64]!r}; a word is required")
    if not all(_WORD.fullmatch(role) for role in roles.split(",")):
        raise FormatError(f"{where}: roles is {roles[:64]!r}; words joined with commas are required")
    if not re.fullmatch(r"[1-9][0-9]{0,9}", size) or int(size) > MAX_PACKAGE:
        raise FormatError(f"{where}: size is {size[:32]!r}; 1 to {MAX_PACKAGE} is required")
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise FormatError(f"{where}: sha256 is {sha256[:64]!r}; 64 hex digits are required")
    if not _PATH.fullmatch(path):
        raise FormatError(f"{where}: path is {path[:64]!r}; a relative path is required")
    return Package(
        kind=parsed_kind,
        name=name,
        version=version,
        arch=arch,
        suite=suite,
        roles=frozenset(roles.split(",")),
        size=int(size),
        sha256=sha256,
        path=path,
    )

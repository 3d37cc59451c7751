# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Small real inputs: a Debian package, a kernel module, a lock."""

from __future__ import annotations

import hashlib
import struct
import subprocess
from pathlib import Path

from cvmtool.image.lock import Lock, Package, PackageKind


def make_deb(folder: Path, name: str, files: dict[str, bytes | str], *, modes: dict[str, int] | None = None) -> Path:
    """Build a package whose files are bytes, or links where the value is a string."""
    root = folder / f"{name}.root"
    (root / "DEBIAN").mkdir(parents=True)
    control = f"Package: {name}\nVersion: 1\nArchitecture: amd64\nMaintainer: nobody\nDescription: a test\n"
    (root / "DEBIAN/control").write_text(control)
    for path, content in files.items():
        to = root / path
        to.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            to.symlink_to(content)
        else:
            to.write_bytes(content)
            to.chmod((modes or {}).get(path, 0o644))
    out = folder / f"{name}.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Zgzip", "--build", root, out], check=True, capture_output=True)
    return out


def make_elf(sections: dict[str, bytes]) -> bytes:
    """Return an ELF file with these sections, as a kernel module has them."""
    names = b"\0"
    rows = [(0, 0, 0, 0)]
    body = b""
    for name, data in {**sections, ".shstrtab": b""}.items():
        at = len(names)
        names += name.encode() + b"\0"
        content = names if name == ".shstrtab" else data
        rows.append((at, 3 if name == ".shstrtab" else 1, 64 + len(body), len(content)))
        body += content
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQ", 1, 62, 1, 0, 0, 64 + len(body))
    header += struct.pack("<IHHHHHH", 0, 64, 56, 0, 64, len(rows), len(rows) - 1)
    table = b"".join(
        struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, at, size, 0, 0, 0, 0) for name, kind, at, size in rows
    )
    return header + body + table


def make_module(*, depends: str = "") -> bytes:
    return make_elf({".text": b"code", ".modinfo": f"license=GPL\0depends={depends}\0name=x\0".encode()})


def make_package(name: str, data: bytes = b"bytes", *, roles: frozenset[str] = frozenset({"rootfs"})) -> Package:
    return Package(
        kind=PackageKind.DEB,
        name=name,
        version="1.0-1",
        arch="amd64",
        suite="trixie",
        roles=roles,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        path=f"pool/main/{name[0]}/{name}/{name}_1.0-1_amd64.deb",
    )


def make_lock(*packages: Package) -> Lock:
    return Lock(request="ab" * 32, packages=tuple(sorted(packages, key=Package.line)))

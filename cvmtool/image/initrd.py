# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The initrd: a deterministic cpio archive of busybox, dmsetup, a few kernel modules and one short script.

Zone: image. Pure but for the tree it reads.
Spec: Linux Documentation/driver-api/early-userspace/buffer-format.rst, "newc".
"""

from __future__ import annotations

import hashlib
import io
import posixpath
import re

from cvmtool.errors import BuildError
from cvmtool.image.libraries import needs_of
from cvmtool.image.tree import NodeKind, Tree

_TYPE = {NodeKind.FILE: 0o100000, NodeKind.DIRECTORY: 0o040000, NodeKind.LINK: 0o120000}
_CONSOLE = "dev/console"
_HEADER = re.compile(rb"070701([0-9A-F]{104})")


def pack_initrd(tree: Tree, *, init: bytes, programs: tuple[str, ...], modules: dict[str, bytes], time: int) -> bytes:
    """Return a cpio archive of `init`, of `programs` of the tree with the libraries they need, and of `modules`.

    Programs stand in /bin, libraries where the dynamic linker looks without a cache, modules in /modules, and their
    load order in /modules.order.

    Raises:
        BuildError: a program or a library is not in the tree.
    """
    with Tree() as out:
        for folder in ("dev", "proc", "sys", "root"):
            out.add_directory(folder)
        for link in ("lib", "lib64"):
            out.add_link(link, f"usr/{link}")
        for program in programs:
            out.add_file(f"usr/bin/{posixpath.basename(program)}", tree.read(program), mode=0o755)
        out.add_link("bin", "usr/bin")
        for library, source in needs_of(tree, programs).items():
            out.add_file(library, tree.read(source), mode=0o755)
        for path, data in modules.items():
            out.add_file(f"modules/{posixpath.basename(path)}", data)
        out.add_file("modules.order", "".join(posixpath.basename(path) + "\n" for path in modules).encode())
        out.add_file("init", init, mode=0o755)
        return _cpio(out, time=time)


def pack_files(files: dict[str, tuple[bytes, int]], *, time: int) -> bytes:
    """Return a cpio archive of files, path -> (content, mode). Behind another archive it replaces what has their names there."""
    with Tree() as out:
        for path, (data, mode) in files.items():
            out.add_file(path, data, mode=mode)
        return _cpio(out, time=time)


def list_cpio(data: bytes) -> dict[str, str]:
    """Return path -> mode and SHA-256 of every entry of a `newc` archive.

    Raises:
        BuildError: not such an archive.
    """
    found: dict[str, str] = {}
    at = 0
    while True:
        header = _HEADER.fullmatch(data[at : at + 110])
        if header is None:
            raise BuildError(f"the initrd is not a cpio archive: bytes {at} to {at + 110} are no header")
        fields = [int(header[1][start : start + 8], 16) for start in range(0, 104, 8)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        start = -(-(at + 110 + name_size) // 4) * 4
        path = data[at + 110 : at + 110 + name_size].rstrip(b"\0").decode("utf-8", "replace")
        if path == "TRAILER!!!":
            return found
        found[path] = f"{mode:o} {hashlib.sha256(data[start : start + size]).hexdigest()}"
        at = -(-(start + size) // 4) * 4


def _cpio(tree: Tree, *, time: int) -> bytes:
    out = io.BytesIO()
    inode = 0
    for path, node in tree.items():
        inode += 1
        data = tree.read(path) if node.kind is NodeKind.FILE else node.target.encode()
        _entry(out, path, data, mode=_TYPE[node.kind] | node.mode, inode=inode, time=time)
        if path == posixpath.dirname(_CONSOLE):
            # Without it the kernel starts /init with no standard output: devtmpfs comes too late.
            inode += 1
            _entry(out, _CONSOLE, b"", mode=0o020600, inode=inode, time=time, device=(5, 1))
    _entry(out, "TRAILER!!!", b"", mode=0, inode=0, time=0)
    out.write(bytes(-out.tell() % 512))
    return out.getvalue()


def _entry(
    out: io.BytesIO, path: str, data: bytes, *, mode: int, inode: int, time: int, device: tuple[int, int] = (0, 0)
) -> None:
    name = path.encode() + b"\0"
    links = 1
    fields = (inode, mode, 0, 0, links, time, len(data), 0, 0, *device, len(name), 0)
    out.write(b"070701" + b"".join(b"%08X" % field for field in fields))
    out.write(name)
    out.write(bytes(-out.tell() % 4))
    out.write(data)
    out.write(bytes(-out.tell() % 4))

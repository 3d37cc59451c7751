# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A file tree put together from packages, without root and without running any of their scripts.

Zone: image. Reads packages, spools contents to one unnamed temporary file.

A node has a kind, a mode and its bytes; owner is always 0:0 and the time stamp is given when the tree is written. So
two trees of the same inputs are the same archive, whoever builds them. Set-uid and set-gid bits are cleared: nothing in
these images gains rights by being executed.
"""

from __future__ import annotations

import fnmatch
import io
import posixpath
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from cvmtool.errors import BuildError
from cvmtool.image.run import drain

MAX_TREE = 8 << 30  # bytes of all contents
_MERGED = ("bin", "lib", "lib64", "sbin")  # links into usr since Debian 12
_CHUNK = 1 << 20


class NodeKind(StrEnum):
    """What a path is. Images have no device nodes, sockets or fifos."""

    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One path of a tree."""

    kind: NodeKind
    mode: int
    offset: int = 0
    """Where a file's contents begin in the spool."""
    size: int = 0
    target: str = ""
    """What a link says."""


class Tree:
    """Paths (relative, without `./`) and their nodes. Use as a context manager: it owns a temporary file."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._spool = tempfile.TemporaryFile()  # noqa: SIM115  closed by __exit__
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spool.close()

    def __contains__(self, path: str) -> bool:
        return path in self._nodes

    def items(self) -> Iterator[tuple[str, Node]]:
        """Yield paths and nodes, parents first, in one fixed order."""
        for path in sorted(self._nodes, key=lambda path: path.split("/")):
            yield path, self._nodes[path]

    def read(self, path: str) -> bytes:
        """Return a file's contents; links are followed.

        Raises:
            BuildError: no such file.
        """
        return self._contents(self._file(path))

    def mode(self, path: str) -> int:
        """Return a file's mode; links are followed.

        Raises:
            BuildError: no such file.
        """
        return self._file(path).mode

    def _file(self, path: str) -> Node:
        node = self._nodes.get(self.resolve(path))
        if node is None or node.kind is not NodeKind.FILE:
            raise BuildError(f"{path} is not a file of the image; one is required")
        return node

    def head(self, node: Node, size: int) -> bytes:
        """Return up to `size` bytes of a file's beginning."""
        self._spool.seek(node.offset)
        return self._spool.read(min(size, node.size))

    def _contents(self, node: Node) -> bytes:
        self._spool.seek(node.offset)
        return self._spool.read(node.size)

    def resolve(self, path: str) -> str:
        """Return `path` with every symbolic link followed inside the tree.

        Raises:
            BuildError: a loop.
        """
        done: list[str] = []
        todo = path.split("/")
        hops = 0
        while todo:
            part = todo.pop(0)
            if part in ("", "."):
                continue
            if part == "..":
                done = done[:-1]
                continue
            if not done and part in _MERGED:
                done = ["usr"]  # with or without the links, which one package has
            node = self._nodes.get("/".join([*done, part]))
            if node is None or node.kind is not NodeKind.LINK:
                done.append(part)
                continue
            hops += 1
            if hops > 40:
                raise BuildError(f"{path} is a loop of symbolic links")
            if node.target.startswith("/"):
                done = []
            todo = [*node.target.split("/"), *todo]
        return "/".join(done)

    def add_file(self, path: str, data: bytes | IO[bytes], *, mode: int = 0o644, replace: bool = False) -> None:
        """Add a file.

        Raises:
            BuildError: the path is taken by other contents and `replace` is not given, or the tree is over `MAX_TREE`.
        """
        source = io.BytesIO(data) if isinstance(data, bytes) else data
        offset = self._end
        self._spool.seek(offset)
        shutil.copyfileobj(source, self._spool, _CHUNK)
        self._end = self._spool.tell()
        if self._end > MAX_TREE:
            raise BuildError(f"the image has over {MAX_TREE} bytes of files; that is the limit")
        node = Node(kind=NodeKind.FILE, mode=mode & 0o777, offset=offset, size=self._end - offset)
        self._put(path, node, replace=replace)

    def add_link(self, path: str, target: str, *, replace: bool = False) -> None:
        """Add a symbolic link."""
        self._put(path, Node(kind=NodeKind.LINK, mode=0o777, target=target), replace=replace)

    def add_directory(self, path: str, *, mode: int = 0o755) -> None:
        """Add a directory and what is above it; one that is there keeps its mode."""
        if self._normal(path) in _MERGED:
            path = f"usr/{path}"
        self._put(path, Node(kind=NodeKind.DIRECTORY, mode=mode & 0o1777), replace=False)

    def _put(self, path: str, node: Node, *, replace: bool) -> None:
        path = self._normal(path)
        if not path:
            return
        parent = posixpath.dirname(path)
        if parent and parent not in self._nodes:
            self.add_directory(parent)
        known = self._nodes.get(path)
        if known is not None:
            if known.kind is NodeKind.DIRECTORY and node.kind in (NodeKind.DIRECTORY, NodeKind.LINK):
                return  # a package's directory where another has the link, or the same directory again
            if known.kind is NodeKind.LINK and node.kind is NodeKind.DIRECTORY:
                return
            if not replace and not self._same(known, node):
                raise BuildError(f"{path} comes from two sources with different contents; one is required")
        self._nodes[path] = node

    def _same(self, one: Node, other: Node) -> bool:
        if (one.kind, one.mode, one.size, one.target) != (other.kind, other.mode, other.size, other.target):
            return False
        return one.kind is not NodeKind.FILE or self._contents(one) == self._contents(other)

    @staticmethod
    def _normal(path: str) -> str:
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise BuildError(f"path {path[:128]!r} leaves the image; it must stay below /")
        if len(parts) > 1 and parts[0] in _MERGED:
            parts.insert(0, "usr")
        return "/".join(parts)

    def add_deb(self, package: Path, *, only: Iterable[str] | None = None) -> None:
        """Add the files of a Debian package; its scripts are not run.

        `only` keeps the paths that match one of its globs.

        Raises:
            BuildError: dpkg-deb fails, or the package holds a device node.
        """
        with drain(["dpkg-deb", "--fsys-tarfile", package]) as pipe:
            try:
                with tarfile.open(fileobj=pipe, mode="r|") as archive:
                    for member in archive:
                        if only is None or matches(self._normal(member.name), only):
                            self._add_member(archive, member, package)
            except tarfile.TarError as error:
                raise BuildError(f"{package.name} holds no tar archive: {error}") from error

    def _add_member(self, archive: tarfile.TarFile, member: tarfile.TarInfo, package: Path) -> None:
        if member.isdir():
            self.add_directory(member.name, mode=member.mode)
        elif member.issym():
            self.add_link(member.name, member.linkname)
        elif member.isfile():
            self.add_file(member.name, archive.extractfile(member) or b"", mode=member.mode)
        elif member.islnk():
            original = self._nodes.get(self._normal(member.linkname))
            if original is None:
                raise BuildError(
                    f"{package.name}: {member.name} links to {member.linkname}, which does not come before it"
                )
            self._put(member.name, original, replace=False)
        else:
            raise BuildError(f"{package.name}: {member.name} is a special file; none may stand in an image")

    def add_wheel(self, wheel: Path, where: str) -> None:
        """Unpack a Python wheel below `where`.

        Raises:
            BuildError: not a wheel.
        """
        try:
            with zipfile.ZipFile(wheel) as archive:
                for info in archive.infolist():
                    if not info.is_dir():
                        with archive.open(info) as source:
                            self.add_file(f"{where}/{info.filename}", source)
        except (zipfile.BadZipFile, OSError) as error:
            raise BuildError(f"{wheel.name} is not a wheel: {error}") from error

    def add_files(self, folder: Path, where: str = "") -> None:
        """Copy a folder of the source tree, replacing what is there.

        Modes are 0755 and 0644 by the execute bit, whatever the umask of the checkout was; byte code is left out.
        """
        for path in sorted(folder.rglob("*")):
            name = posixpath.join(where, path.relative_to(folder).as_posix())
            if "__pycache__" in path.parts:
                continue
            if path.is_symlink():
                self.add_link(name, str(path.readlink()), replace=True)
            elif path.is_dir():
                self.add_directory(name)
            else:
                mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
                self.add_file(name, path.read_bytes(), mode=mode, replace=True)

    def prune(self, globs: Iterable[str]) -> None:
        """Remove what matches a glob, with all that is below it."""
        patterns = tuple(globs)
        gone = {path for path in self._nodes if matches(path, patterns)}
        for path in gone:
            del self._nodes[path]

    def write_tar(self, out: IO[bytes], *, time: int) -> None:
        """Write the tree as a tar archive: sorted, owner 0:0, every time stamp `time`."""
        with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
            for path, node in self.items():
                info = tarfile.TarInfo(path)
                info.mode = node.mode
                info.mtime = time
                if node.kind is NodeKind.DIRECTORY:
                    info.type = tarfile.DIRTYPE
                    archive.addfile(info)
                elif node.kind is NodeKind.LINK:
                    info.type = tarfile.SYMTYPE
                    info.linkname = node.target
                    archive.addfile(info)
                else:
                    info.size = node.size
                    self._spool.seek(node.offset)
                    archive.addfile(info, self._spool)

    def extract(self, where: Path, globs: Iterable[str] = ("*",)) -> None:
        """Write the files that match a glob (and links) below a new folder."""
        patterns = tuple(globs)
        for path, node in self.items():
            if not matches(path, patterns):
                continue
            to = where / path
            to.parent.mkdir(parents=True, exist_ok=True)
            if node.kind is NodeKind.DIRECTORY:
                to.mkdir(exist_ok=True)
            elif node.kind is NodeKind.LINK:
                to.symlink_to(node.target)
            else:
                to.write_bytes(self._contents(node))
                to.chmod(0o755 if node.mode & 0o100 else 0o644)


def matches(path: str, globs: Iterable[str]) -> bool:
    """Say whether a path or a folder above it matches one of the globs, part by part (`*` does not cross a `/`)."""
    parts = path.split("/")
    for pattern in globs:
        wanted = pattern.split("/")
        if len(wanted) <= len(parts) and all(map(fnmatch.fnmatchcase, parts, wanted)):
            return True
    return False

# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Merge the layers of an image, member by member, from the top layer down.

Zone: data. Pure: tar members come in, tar members go out.
Spec: OCI image-spec v1, layer.md (whiteouts, hard links).

A hard link names a file of its own layer, or of one below. That file may be hidden or replaced by a layer above, which
the link is not. So a file is written under the first of its names that survives, and its other names link to that one.
"""

from __future__ import annotations

import copy
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator

from cvmtool.errors import FormatError

_OPAQUE = ".wh..wh..opq"
_WHITEOUT = ".wh."


class Merge:
    """What the layers so far, from the top, have written and hidden. For each layer: `begin`, then `take` each member."""

    def __init__(self, reference: str) -> None:
        self._reference = reference
        self._seen: set[str] = set()
        self._hidden: set[str] = set()  # paths; with a slash at the end: what is below, and not the path itself
        self._below: set[str] = set()  # what this layer hides of the ones under it
        self._links: dict[str, list[tarfile.TarInfo]] = defaultdict(list)  # by the file they wait for
        self._last: dict[str, int] = {}  # by path: which of this layer's members of that name counts
        self._index = 0

    def begin(self, members: Iterable[tarfile.TarInfo]) -> None:
        """Look a layer through for its hard links, and for names that it has twice (the last one counts).

        Raises:
            FormatError: a name leads out of the image.
        """
        self._hidden |= self._below
        self._below, self._last, self._index = set(), {}, 0
        targets: dict[str, tuple[str, tarfile.TarInfo]] = {}
        for index, member in enumerate(members):
            path = self._clean(member.name)
            self._last[path] = index
            targets.pop(path, None)
            if member.islnk():
                targets[path] = (self._clean(member.linkname), member)
        for path, (first, member) in targets.items():
            if path in self._seen or self._is_hidden(path):
                continue
            target, steps = first, 0
            while target in targets:  # a link to a link is one to its file
                target, steps = targets[target][0], steps + 1
                if steps > len(targets):
                    raise FormatError(f"{self._reference}: hard links of a layer link to each other")
            self._links[target].append(member)
            self._seen.add(path)
            self._below.add(path + "/")

    def take(self, member: tarfile.TarInfo) -> Iterator[tarfile.TarInfo]:
        """Yield what a member of the layer adds to the image: nothing, itself, or itself and further names.

        Raises:
            FormatError: a name leads out of the image.
        """
        path = self._clean(member.name)
        index, self._index = self._index, self._index + 1
        folder, _, leaf = path.rpartition("/")
        if self._last[path] != index or member.islnk():
            return  # another of that name counts; a link comes with its file
        if leaf == _OPAQUE:
            self._below.add(folder + "/")
        elif leaf.startswith(_WHITEOUT):
            self._below.add(f"{folder}/{leaf.removeprefix(_WHITEOUT)}".lstrip("/"))
        else:
            yield from self._write(path, member)

    def end(self) -> None:
        """Say that there is no further layer.

        Raises:
            FormatError: a hard link names a file that no layer has.
        """
        if self._links:
            raise FormatError(
                f"{self._reference}: a hard link names {next(iter(self._links))[:80]!r}, which no layer has"
            )

    def _write(self, path: str, member: tarfile.TarInfo) -> Iterator[tarfile.TarInfo]:
        wanted = path not in self._seen and not self._is_hidden(path)
        links = [] if member.isdir() else self._links.pop(path, [])
        names = [path] if wanted else []
        names += [self._clean(link.name) for link in links]
        if wanted:
            self._seen.add(path)
            if not member.isdir():
                self._below.add(path + "/")
        for name in names:
            written = copy.copy(member)
            # A record of the source's own name would win over the name that is set here.
            kept = {key: value for key, value in member.pax_headers.items() if key not in ("path", "linkpath")}
            written.pax_headers = {key: value for key, value in kept.items() if not key.startswith("GNU.sparse")}
            written.name = name or "."
            if name != names[0]:
                written.type, written.linkname, written.size = tarfile.LNKTYPE, names[0], 0
            elif member.issparse():
                written.type = tarfile.REGTYPE  # its holes are read as zeros
            yield written

    def _clean(self, name: str) -> str:
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise FormatError(f"{self._reference}: a layer names the path {name[:80]!r}; '..' is not allowed")
        return "/".join(parts)

    def _is_hidden(self, path: str) -> bool:
        if path in self._hidden:
            return True
        folder = path
        while "/" in folder:
            folder = folder.rpartition("/")[0]
            if folder in self._hidden or folder + "/" in self._hidden:
                return True
        return "/" in self._hidden  # an opaque root

# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The licences of packages that are not of the archive's main component, as their copyright files have them.

Zone: image. Reads kept packages.
Spec: Debian, machine-readable debian/copyright file, version 1.0 ("DEP-5").
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from cvmtool.image.lock import Lock, Package, PackageKind
from cvmtool.image.store import Store
from cvmtool.image.tree import Tree

_FORMAT = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Licence:
    """A licence and its text."""

    name: str
    """As the copyright file calls it."""
    text: str

    @property
    def identifier(self) -> str:
        """SPDX's name for it in one document: two texts under one name are two."""
        digest = hashlib.sha256(self.text.encode()).hexdigest()[:8]
        return "LicenseRef-" + re.sub(r"[^A-Za-z0-9.]+", "-", self.name) + f"-{digest}"


def licences_of(lock: Lock, store: Store) -> dict[str, tuple[Licence, ...]]:
    """Return the licences of each locked package that is not of the main component, by the package's name.

    Raises:
        BuildError: a package is not kept, or has no copyright file.
    """
    return {package.name: _read(package, store) for package in lock.packages if not is_of_main(package)}


def is_of_main(package: Package) -> bool:
    """Say whether a package is a wheel, or of the component that holds free software alone."""
    _, first, second, *_ = package.path.split("/") if package.kind is PackageKind.DEB else ("", "main", "")
    return (second if first == "updates" else first) == "main"


def parse_copyright(data: bytes) -> tuple[Licence, ...]:
    """Return the licences that a copyright file names, each once; the whole file is one where it is not machine-readable."""
    text = data.decode("utf-8", "replace")
    if not text.startswith(_FORMAT):
        return (Licence(name="copyright", text=text),)
    texts: dict[str, str] = {}
    for paragraph in re.split(r"\n(?:[ \t]*\n)+", text):
        found = re.search(r"^License:[ \t]*(\S.*)\n?((?:[ \t].*\n?)*)", paragraph, re.MULTILINE | re.IGNORECASE)
        if found:
            # A line with a dot alone is an empty one.
            lines = [line.strip() for line in found[2].splitlines()]
            body = "\n".join("" if line == "." else line for line in lines)
            texts[found[1].strip()] = body or texts.get(found[1].strip(), "")
    return tuple(Licence(name=name, text=body) for name, body in texts.items())


def _read(package: Package, store: Store) -> tuple[Licence, ...]:
    path = f"usr/share/doc/{package.name}"
    with Tree() as tree:
        tree.add_deb(store.path(package), only=(path,))
        return parse_copyright(tree.read(f"{path}/copyright"))

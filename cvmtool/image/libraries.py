# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Shared libraries of a tree: what a program needs, and the proof that nothing is missing.

Zone: image. Pure but for the tree it reads.

Packages are unpacked without their dependencies' scripts and a recipe drops those that only scripts need. This check
makes that safe: an ELF file whose library is not in the image fails the build, not the guest.
"""

from __future__ import annotations

import posixpath

from cvmtool.errors import BuildError
from cvmtool.image.elf import is_elf, linkage
from cvmtool.image.tree import NodeKind, Tree

SEARCH = ("usr/lib/x86_64-linux-gnu", "usr/lib")
"""Where Debian's dynamic linker looks without a cache (the image has no ld.so.cache)."""
LINKER = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
_LINKER_NAME = "usr/lib64/ld-linux-x86-64.so.2"


def needs_of(tree: Tree, programs: tuple[str, ...]) -> dict[str, str]:
    """Return path in the image -> path of the file in `tree` for every library that `programs` need, and their linker.

    Raises:
        BuildError: a library is not in the tree.
    """
    found: dict[str, str] = {}
    todo = list(programs)
    while todo:
        path = todo.pop()
        links = linkage(tree.read(path))
        if links.interpreter:
            found[_LINKER_NAME] = tree.resolve(links.interpreter)
        for name in links.needed:
            library = _find(tree, name, user=path)
            if library not in found and not name.startswith("ld-linux"):
                found[library] = tree.resolve(library)
                todo.append(library)
    return dict(sorted(found.items()))


def check(tree: Tree, *, extra: tuple[str, ...] = ()) -> None:
    """Check that every ELF file of the tree finds its libraries, in `SEARCH` or in the folders `extra`.

    Raises:
        BuildError: some do not; the message names the first, the detail all.
    """
    lacking = []
    for path, node in tree.items():
        if node.kind is not NodeKind.FILE or path.endswith(".ko") or not is_elf(tree.head(node, 16)):
            continue
        links = linkage(tree.read(path))
        names = [*links.needed, *([posixpath.basename(links.interpreter)] if links.interpreter else [])]
        for name in names:
            folders = (*SEARCH, "usr/lib64", *extra, posixpath.dirname(path))
            if not any(tree.resolve(f"{folder}/{name}") in tree for folder in folders):
                lacking.append(f"{path} needs {name}")
    if lacking:
        raise BuildError(
            f"{lacking[0]}, which no locked package provides",
            detail="\n".join(lacking),
            hint="take the package out of `drop`, or prune the file, in the image's recipe",
        )


def _find(tree: Tree, name: str, *, user: str) -> str:
    for folder in (*SEARCH, "usr/lib64"):
        if tree.resolve(f"{folder}/{name}") in tree:
            return f"{folder}/{name}"
    raise BuildError(f"{user} needs {name}, which no locked package provides")

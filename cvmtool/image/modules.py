# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Kernel modules by name, with what they depend on, uncompressed and in load order.

Zone: image. Pure but for the tree it reads.
"""

from __future__ import annotations

import lzma
import posixpath
from dataclasses import dataclass, field

from cvmtool.errors import BuildError
from cvmtool.image.elf import modinfo
from cvmtool.image.tree import NodeKind, Tree

ROOT = "usr/lib/modules"


@dataclass(slots=True, kw_only=True)
class Modules:
    """The modules of one unpacked kernel package."""

    tree: Tree
    release: str
    """The kernel's release, the name of its module folder."""
    _paths: dict[str, str]
    _builtin: frozenset[str]
    _bytes: dict[str, bytes] = field(default_factory=dict)

    def closure(self, names: tuple[str, ...]) -> dict[str, bytes]:
        """Return path below the module folder (`kernel/....ko`) -> module, in load order: `names` and what they need.

        What is built into the kernel is left out.

        Raises:
            BuildError: the kernel has no such module.
        """
        order: dict[str, bytes] = {}
        for name in names:
            self._visit(_canonical(name), order, ())
        return order

    def _visit(self, name: str, order: dict[str, bytes], above: tuple[str, ...]) -> None:
        if name in self._builtin or name in above:
            return
        path = self._paths.get(name)
        if path is None:
            raise BuildError(
                f"kernel {self.release} has no module {name}", hint="change the module lists in the image's image.toml"
            )
        plain = path.removesuffix(".xz")
        if plain in order:
            return
        data = self._load(path)
        info = modinfo(data)
        needs = [need for line in info.get("depends", []) for need in line.split(",") if need]
        for need in needs:
            self._visit(_canonical(need), order, (*above, name))
        order[plain] = data

    def _load(self, path: str) -> bytes:
        if path not in self._bytes:
            data = self.tree.read(f"{ROOT}/{self.release}/{path}")
            try:
                self._bytes[path] = lzma.decompress(data) if path.endswith(".xz") else data
            except lzma.LZMAError as error:
                raise BuildError(f"kernel module {path} does not decompress: {error}") from error
        return self._bytes[path]


def find_modules(tree: Tree) -> Modules:
    """Index the modules of an unpacked kernel package.

    Raises:
        BuildError: not exactly one kernel release.
    """
    release = kernel_release(tree)
    folder = f"{ROOT}/{release}/"
    paths = {}
    for path, node in tree.items():
        if node.kind is NodeKind.FILE and path.startswith(folder) and path.endswith((".ko", ".ko.xz")):
            paths[_canonical(path)] = path.removeprefix(folder)
    builtin = frozenset(_canonical(line) for line in tree.read(f"{folder}modules.builtin").decode().split())
    return Modules(tree=tree, release=release, _paths=paths, _builtin=builtin)


def kernel_release(tree: Tree) -> str:
    """Return the release of an unpacked kernel package.

    Raises:
        BuildError: not exactly one.
    """
    releases = {path.split("/")[3] for path, _ in tree.items() if path.startswith(ROOT + "/")}
    if len(releases) != 1:
        raise BuildError(f"the kernel package has the releases {sorted(releases)}; exactly one is required")
    return releases.pop()


def add_compiled(tree: Tree, modules: dict[str, bytes]) -> None:
    """Put modules that were compiled for the kernel of `tree` beside its own, by name.

    Raises:
        BuildError: not exactly one kernel release.
    """
    folder = f"{ROOT}/{kernel_release(tree)}/updates"
    for name, data in modules.items():
        tree.add_file(f"{folder}/{name}.ko", data)


def _canonical(name: str) -> str:
    return posixpath.basename(name).split(".ko")[0].replace("-", "_")

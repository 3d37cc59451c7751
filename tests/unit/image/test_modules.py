# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Kernel modules: dependencies first, built-in ones left out."""

from __future__ import annotations

import lzma

import pytest

from cvmtool.errors import BuildError
from cvmtool.image.modules import find_modules
from cvmtool.image.tree import Tree
from tests.unit.image.parts import make_module

FOLDER = "usr/lib/modules/6.1-test"


def kernel(tree: Tree) -> None:
    tree.add_file(f"{FOLDER}/modules.builtin", b"kernel/crypto/sha.ko\n")
    for name, depends in (("dm-verity", "dm-bufio,sha"), ("dm-bufio", "dm_mod"), ("dm-mod", "")):
        tree.add_file(f"{FOLDER}/kernel/md/{name}.ko.xz", lzma.compress(make_module(depends=depends)))


def test_closure_is_in_load_order_and_plain() -> None:
    with Tree() as tree:
        kernel(tree)
        order = find_modules(tree).closure(("dm-verity", "dm_mod"))
        assert list(order) == ["kernel/md/dm-mod.ko", "kernel/md/dm-bufio.ko", "kernel/md/dm-verity.ko"]
        assert order["kernel/md/dm-mod.ko"] == make_module()


def test_an_unknown_module_is_refused() -> None:
    with Tree() as tree:
        kernel(tree)
        with pytest.raises(BuildError, match="no module nosuch"):
            find_modules(tree).closure(("nosuch",))


def test_two_kernels_are_refused() -> None:
    with Tree() as tree:
        kernel(tree)
        tree.add_file("usr/lib/modules/6.2-test/modules.builtin", b"")
        with pytest.raises(BuildError, match="exactly one"):
            find_modules(tree)


def test_a_damaged_module_is_refused() -> None:
    with Tree() as tree:
        kernel(tree)
        tree.add_file(f"{FOLDER}/kernel/bad.ko.xz", b"\xfd7zXZ\0 nonsense")
        with pytest.raises(BuildError, match="decompress"):
            find_modules(tree).closure(("bad",))

# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The initrd archive: what it holds, read back by cpio itself, and the same bytes each time."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cvmtool.errors import BuildError
from cvmtool.image.initrd import list_cpio, pack_files, pack_initrd
from cvmtool.image.tree import Tree
from tests.unit.image.parts import make_elf

STATIC = make_elf({".text": b"static"})


def archive(init: bytes = b"#!/bin/busybox sh\n") -> bytes:
    with Tree() as tree:
        tree.add_file("usr/bin/busybox", STATIC, mode=0o755)
        modules = {"kernel/md/dm-mod.ko": b"one", "kernel/fs/squashfs.ko": b"two"}
        return pack_initrd(tree, init=init, programs=("usr/bin/busybox",), modules=modules, time=1)


def test_it_holds_init_programs_modules_and_a_console() -> None:
    found = list_cpio(archive())
    assert found["init"].startswith("100755 ")
    assert found["dev/console"].startswith("20600 ")
    assert {
        "usr/bin/busybox",
        "modules/dm-mod.ko",
        "modules/squashfs.ko",
        "modules.order",
        "root",
        "proc",
        "sys",
    } < set(found)


def test_cpio_reads_it_in_the_same_order() -> None:
    if shutil.which("cpio") is None:
        pytest.skip("cpio is not installed")
    done = subprocess.run(["cpio", "-it", "--quiet"], input=archive(), capture_output=True, check=True)
    assert done.stdout.decode().split("\n")[:-1] == list(list_cpio(archive()))


def test_it_is_the_same_twice_and_another_with_another_init() -> None:
    assert archive() == archive()
    assert archive() != archive(b"#!/bin/busybox ash\n")


def test_a_missing_program_is_refused() -> None:
    with Tree() as tree, pytest.raises(BuildError, match="usr/bin/busybox"):
        pack_initrd(tree, init=b"", programs=("usr/bin/busybox",), modules={}, time=1)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_list_or_a_build_error(data: bytes) -> None:
    with pytest.raises(BuildError):
        list_cpio(data)


@given(st.integers(0, 2000), st.binary(min_size=1, max_size=4))
def test_a_damaged_archive_is_a_list_or_a_build_error(at: int, patch: bytes) -> None:
    data = archive()
    try:
        list_cpio(data[:at] + patch + data[at + len(patch) :])
    except BuildError:
        return


def test_files_behind_an_archive_replace_those_in_it(tmp_path) -> None:
    """As the kernel unpacks it: one archive, then the other, into one tree."""
    behind = pack_files({"init": (b"#!/bin/busybox sh\n# another\n", 0o755), "plain.py": (b"pass\n", 0o644)}, time=0)
    assert list_cpio(behind)["init"].startswith("100755 ")
    assert list_cpio(behind)["plain.py"].startswith("100644 ")
    if shutil.which("cpio") is None:
        pytest.skip("cpio is not installed")
    for part in (archive(), behind):
        command = ["cpio", "--extract", "--make-directories", "--unconditional", "--quiet", "--nonmatching", "dev/*"]
        subprocess.run(command, input=part, cwd=tmp_path, check=True)
    assert (tmp_path / "init").read_text().endswith("# another\n")
    assert (tmp_path / "modules.order").exists()

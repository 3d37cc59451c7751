# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The hash tree, against veritysetup and against a changed byte."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from cvmtool.errors import BuildError
from cvmtool.image.verity import BLOCK, Verity, append_tree

SALT = bytes(range(32))
VERITYSETUP = shutil.which("veritysetup", path="/usr/sbin:/sbin:/usr/bin")


def make(path: Path, size: int) -> Verity:
    path.write_bytes(bytes(at * 7 & 0xFF for at in range(size)))
    return append_tree(path, salt=SALT)


def check(path: Path, verity: Verity) -> bool:
    if VERITYSETUP is None:
        pytest.skip("veritysetup is not installed")
    done = subprocess.run(
        [
            *(VERITYSETUP, "verify", "--no-superblock", "--format=1", "--data-block-size=4096"),
            *("--hash-block-size=4096", f"--data-blocks={verity.blocks}", f"--hash-offset={verity.blocks * BLOCK}"),
            *(f"--salt={verity.salt}", path, path, verity.root),
        ],
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


@pytest.mark.parametrize("size", [1, BLOCK, BLOCK + 1, 128 * BLOCK, 129 * BLOCK, 128 * 128 * BLOCK + 5])
def test_veritysetup_agrees(tmp_path: Path, size: int) -> None:
    verity = make(tmp_path / "disk", size)
    assert verity.blocks == -(-size // BLOCK)
    assert check(tmp_path / "disk", verity)


def test_veritysetup_sees_a_changed_byte(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    verity = make(path, 200 * BLOCK)
    data = bytearray(path.read_bytes())
    data[150 * BLOCK + 3] ^= 1
    path.write_bytes(data)
    assert not check(path, verity)


def test_the_word_says_all_that_opens_it(tmp_path: Path) -> None:
    verity = make(tmp_path / "disk", 3 * BLOCK)
    assert verity.word() == f"cvmtool.verity=3:3:{verity.root}:{SALT.hex()}"
    assert (tmp_path / "disk").stat().st_size == 4 * BLOCK


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"")
    with pytest.raises(BuildError, match="empty"):
        append_tree(tmp_path / "disk", salt=SALT)

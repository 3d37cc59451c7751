# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The proof that no library is missing, on the building machine's own programs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from cvmtool.errors import BuildError
from cvmtool.image.libraries import check, needs_of
from cvmtool.image.tree import Tree

LINKER = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"


def base(tree: Tree, *libraries: str) -> None:
    tree.add_file("usr/bin/ls", Path("/bin/ls").read_bytes(), mode=0o755)
    tree.add_link("usr/lib64/ld-linux-x86-64.so.2", "../lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")
    tree.add_file(LINKER, Path("/lib64/ld-linux-x86-64.so.2").read_bytes())
    for library in libraries:
        tree.add_file(f"usr/lib/x86_64-linux-gnu/{library}", Path("/lib/x86_64-linux-gnu", library).read_bytes())


def test_a_missing_library_fails_the_build_and_names_its_user() -> None:
    with Tree() as tree:
        base(tree)
        with pytest.raises(BuildError, match=r"usr/bin/ls needs lib"):
            check(tree)
        with pytest.raises(BuildError, match=r"usr/bin/ls needs lib"):
            needs_of(tree, ("usr/bin/ls",))


def test_a_complete_tree_passes() -> None:
    # What /bin/ls needs differs from one Debian to the next; the dynamic linker itself says.
    said = subprocess.run(["/lib64/ld-linux-x86-64.so.2", "--list", "/bin/ls"], capture_output=True, check=True)
    libraries = re.findall(r"^\t(\S+) => ", said.stdout.decode(), re.MULTILINE)
    assert "libc.so.6" in libraries
    with Tree() as tree:
        base(tree, *libraries)
        check(tree)
        found = needs_of(tree, ("usr/bin/ls",))
    assert found["usr/lib64/ld-linux-x86-64.so.2"] == LINKER
    named = {f"usr/lib/x86_64-linux-gnu/{library}" for library in libraries}
    assert set(found) == {"usr/lib64/ld-linux-x86-64.so.2", *named}

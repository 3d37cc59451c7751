# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The commands that busybox answers to. All else of a root file system is tried on a real one (tests/integration/test_image.py)."""

from __future__ import annotations

import pytest

from cvmtool.errors import BuildError
from cvmtool.image.rootfs import _add_busybox
from cvmtool.image.tree import Tree

BUSYBOX = b"\x7fELF...\0ash\0cat\0sha256sum\0zcat\0...usage: tac"


def test_a_command_is_a_link_unless_a_program_of_that_name_is_there() -> None:
    with Tree() as tree:
        tree.add_file("usr/bin/busybox", BUSYBOX)
        tree.add_file("usr/sbin/zcat", b"another")
        _add_busybox(tree, ("ash", "cat", "zcat"))
        nodes = dict(tree.items())
        assert (nodes["usr/bin/ash"].target, nodes["usr/bin/cat"].target) == ("busybox", "busybox")
        assert "usr/bin/zcat" not in tree


@pytest.mark.parametrize("applet", ["tac", "sum", "sha256", "nohup", "usage"])
def test_a_command_that_busybox_does_not_know_fails_the_build(applet: str) -> None:
    with Tree() as tree:
        tree.add_file("usr/bin/busybox", BUSYBOX)
        with pytest.raises(BuildError, match=f"busybox has no {applet}"):
            _add_busybox(tree, ("ash", applet))

# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Python byte code for a tree, made by the tree's own Python version.

Zone: image. Starts one process.

Without it every import compiles its source again, each time, which costs seconds under emulation.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cvmtool.errors import BuildError
from cvmtool.image.tools import Tools
from cvmtool.image.tree import NodeKind, Tree, matches


def add_byte_code(tree: Tree, globs: Iterable[str], *, tools: Tools, work: Path) -> None:
    """Compile every module that matches one of `globs` and add the byte code; `work` is a folder to use.

    Raises:
        BuildError: nothing matches, or a module does not compile.
    """
    patterns = tuple(globs)
    for path, node in tree.items():
        if node.kind is NodeKind.FILE and path.endswith(".py") and matches(path, patterns):
            to = work / path
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(tree.read(path))
    tools.compile_python(work)
    compiled = sorted(work.rglob("*.pyc"))
    if not compiled:
        raise BuildError(f"no Python module matches {', '.join(patterns)}; at least one is required")
    for file in compiled:
        tree.add_file(file.relative_to(work).as_posix(), file.read_bytes())

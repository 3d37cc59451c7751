# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Put `images/` and `templates/` into the wheel as `cvmtool/_share/` (ADR-0007). All else stands in pyproject.toml."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHARED = ("images", "templates")  # what cvmtool.config.resources() looks for


class BuildWithShare(build_py):
    """Copy the shared folders beside the modules; an editable install reads them in the checkout."""

    def run(self) -> None:
        """Build, then copy. Modes are kept: the execute bit of a file is part of a guest image."""
        super().run()
        if self.editable_mode:
            return
        for name in SHARED:
            target = Path(self.build_lib) / "cvmtool" / "_share" / name
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(name, target)


setup(cmdclass={"build_py": BuildWithShare})

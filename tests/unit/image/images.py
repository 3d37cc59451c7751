# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Small guest images on disk, whose firmware can be measured."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from cvmtool.formats.manifest import Artefact, Mode
from cvmtool.image.bundle import MANIFEST_FILE
from tests.unit.formats.test_manifest import MANIFEST
from tests.unit.measure.test_ovmf import firmware

FIRMWARE = firmware(pages=2)
LINE = MANIFEST.cmdline[Mode.PRODUCTION]


def make_image(folder: Path, *, line: str = LINE, **files: bytes) -> Path:
    """Write a guest image; `files` are the contents that shall be others than their own names."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {}
    for name in ("firmware", "kernel", "initrd", "rootfs", "sbom"):
        content = files.get(name, FIRMWARE if name == "firmware" else name.encode())
        (folder / name).write_bytes(content)
        parts[name] = Artefact(file=name, sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    cmdline = {Mode.PRODUCTION: line, Mode.DRYRUN: f"{line} cvmtool.dryrun=1"}
    (folder / MANIFEST_FILE).write_bytes(dataclasses.replace(MANIFEST, cmdline=cmdline, **parts).encode())
    return folder

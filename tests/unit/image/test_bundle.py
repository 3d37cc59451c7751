# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A bundle is what its manifest says, or it is refused."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest

from cvmtool.errors import BuildError, FormatError
from cvmtool.formats.manifest import Artefact
from cvmtool.image.bundle import MANIFEST_FILE, load_bundle
from tests.unit.formats.test_manifest import MANIFEST

NAMES = ("firmware", "kernel", "initrd", "rootfs", "sbom")


def make(folder: Path) -> Path:
    parts = {}
    for name in NAMES:
        (folder / name).write_bytes(name.encode())
        digest = hashlib.sha256(name.encode()).hexdigest()
        parts[name] = Artefact(file=name, sha256=digest, size=len(name))
    (folder / MANIFEST_FILE).write_bytes(dataclasses.replace(MANIFEST, **parts).encode())
    return folder


def test_a_whole_bundle_loads(tmp_path: Path) -> None:
    bundle = load_bundle(make(tmp_path))
    assert bundle.kernel.read_bytes() == b"kernel"
    assert bundle.digest == hashlib.sha256((tmp_path / MANIFEST_FILE).read_bytes()).hexdigest()


@pytest.mark.parametrize("name", NAMES)
def test_a_changed_missing_or_longer_file_is_refused(tmp_path: Path, name: str) -> None:
    make(tmp_path)
    for content in (name.upper().encode(), name.encode() + b"!"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BuildError, match=name):
            load_bundle(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(BuildError, match=name):
        load_bundle(tmp_path)


def test_no_bundle_and_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="no guest image"):
        load_bundle(tmp_path / "nothing")
    (tmp_path / MANIFEST_FILE).write_bytes(b"{}")
    with pytest.raises(FormatError):
        load_bundle(tmp_path)

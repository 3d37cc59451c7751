# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What a rebuild reports, without building."""

from __future__ import annotations

import dataclasses

from cvmtool.image.bundle import Bundle
from cvmtool.image.reproduce import Reproduction, _causes, _differing
from tests.unit.formats.test_manifest import MANIFEST


def bundle(**change: object) -> Bundle:
    manifest = dataclasses.replace(MANIFEST, **change)  # type: ignore[arg-type]
    return Bundle(folder=None, manifest=manifest, manifest_bytes=manifest.encode())  # type: ignore[arg-type]


def test_no_difference_is_identical() -> None:
    assert Reproduction(rebuilt="", differences=()).identical
    assert not Reproduction(rebuilt="", differences=("x",)).identical


def test_files_are_named() -> None:
    assert _differing({"a": "1", "b": "1", "c": "1"}, {"a": "1", "b": "2", "d": "1"}) == [
        "b differs",
        "c is gone",
        "d is new",
    ]


def test_causes_come_from_the_manifests() -> None:
    assert _causes(bundle(), bundle()) == []
    assert "packages.lock" in _causes(bundle(), bundle(lock_sha256="00" * 32, inputs_sha256="00" * 32))[0]
    assert "sources" in _causes(bundle(), bundle(inputs_sha256="00" * 32))[0]
    assert _causes(bundle(), bundle(builder={"zstd": "2"})) == ["builder: zstd was 1.5.7 and is 2"]
    assert _causes(bundle(), bundle(builder={"zstd": "1.5.7", "kmod": "1"})) == ["builder: kmod was absent and is 1"]

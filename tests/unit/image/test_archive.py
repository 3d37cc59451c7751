# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Which archive the machine uses, and what apt's plan says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from cvmtool.errors import BuildError
from cvmtool.image import archive
from cvmtool.image.archive import Archive, find_archive


def answers(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    def run(argv: Sequence[str | Path]) -> bytes:
        assert argv[0] == "apt-get"
        return text.encode()

    monkeypatch.setattr(archive, "run", run)


def test_the_machine_s_own_mirror_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(
        monkeypatch,
        "http://vendor.invalid/deb/|nodistro|main|Vendor\n"
        "http://mirror.invalid/debian/|bookworm|main|Debian\n"
        "http://mirror.invalid/debian/|bookworm|contrib|Debian\n"
        "http://mirror.invalid/debian-security/|bookworm-security|main|Debian\n",
    )
    found = find_archive()
    assert found == Archive(main="http://mirror.invalid/debian", security="http://mirror.invalid/debian-security")
    assert found.base("trixie-updates") == found.main
    assert found.base("trixie-security") == found.security


def test_before_the_first_update_the_origin_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, "http://m.invalid/debian/|trixie|main|$(ORIGIN)\nhttp://v.invalid/x/|trixie|main|$(ORIGIN)\n")
    assert find_archive() == Archive(main="http://m.invalid/debian", security="http://m.invalid/debian-security")


def test_a_machine_without_a_debian_archive_is_told_what_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, "http://archive.invalid/ubuntu/|noble|main|Ubuntu\n")
    with pytest.raises(BuildError, match="no Debian archive") as caught:
        find_archive()
    assert "--mirror" in (caught.value.hint or "")


def test_the_plan_of_apt_is_read() -> None:
    plan = (
        "Inst base-files (13.8+deb13u7 Debian:13.7/stable, Debian-Security:13/stable-security [amd64])\n"
        "Inst tzdata [2025a] (2026f-0+deb13u1 Debian:13.7/stable [all])\n"
        "Conf base-files (13.8+deb13u7 Debian:13.7/stable [amd64])\n"
    )
    assert archive._INSTALL.findall(plan) == [
        ("base-files", "13.8+deb13u7", "amd64"),
        ("tzdata", "2026f-0+deb13u1", "all"),
    ]


def test_apt_is_asked_for_the_components_of_the_recipe() -> None:
    source = archive._source("http://mirror.invalid/debian", "trixie trixie-updates", ("main", "contrib"))
    fields = dict(line.split(": ", 1) for line in source.splitlines())
    assert (fields["Suites"], fields["Components"]) == ("trixie trixie-updates", "main contrib")
    assert fields["Signed-By"] == str(archive.KEYRING)


def test_a_stanza_becomes_a_package() -> None:
    stanza = "Package: a\nVersion: 1:2-3\nArchitecture: all\nSize: 5\nSHA256: " + "ab" * 32
    stanza += "\nFilename: pool/a.deb\nDescription: x\n continued: y"
    package = archive._package(stanza, "trixie")
    assert package is not None
    assert (package.name, package.version, package.size, package.path) == ("a", "1:2-3", 5, "pool/a.deb")
    assert archive._package("", "trixie") is None

# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The bill of materials names every package with its digest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cvmtool.image.licences import is_of_main, licences_of, parse_copyright
from cvmtool.image.lock import PackageKind
from cvmtool.image.sbom import encode_sbom
from cvmtool.image.store import Store
from tests.unit.image.parts import make_deb, make_lock, make_package

LOCK = make_lock(make_package("libc6"), make_package("zstd", roles=frozenset({"tools"})))


def test_every_package_stands_in_it_once() -> None:
    document = json.loads(encode_sbom("base", LOCK, time=0, licences={}))
    assert document["spdxVersion"] == "SPDX-2.3"
    assert document["creationInfo"]["created"] == "1970-01-01T00:00:00Z"
    by_name = {package["name"]: package for package in document["packages"][1:]}
    assert {name: item["checksums"][0]["checksumValue"] for name, item in by_name.items()} == {
        package.name: package.sha256 for package in LOCK.packages
    }
    identifiers = [package["SPDXID"] for package in document["packages"]]
    assert len(set(identifiers)) == len(identifiers)
    for relation in document["relationships"]:
        assert {relation["spdxElementId"], relation["relatedSpdxElement"]} <= {*identifiers, "SPDXRef-DOCUMENT"}


def test_a_builder_s_tool_is_not_content() -> None:
    relations = json.loads(encode_sbom("base", LOCK, time=0, licences={}))["relationships"]
    kinds = {item["relationshipType"] for item in relations if "zstd" in str(item)}
    assert kinds == {"BUILD_TOOL_OF"}


COPYRIGHT = b"""\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: driver

Files: *
Copyright: 2026 somebody
License: Not-free

Files: debian/*
Copyright: 2026 somebody else
License: Expat
 Do what
 .
 you want.

License: Not-free
 Do nothing.
"""


def test_licences_are_those_of_the_copyright_file() -> None:
    expat, other = sorted(parse_copyright(COPYRIGHT), key=lambda licence: licence.name)
    assert (expat.name, expat.text) == ("Expat", "Do what\n\nyou want.")
    assert (other.name, other.text) == ("Not-free", "Do nothing.")
    (whole,) = parse_copyright(b"All rights reserved.\n")
    assert whole.text == "All rights reserved.\n"


def test_what_is_not_free_says_its_licences_and_what_is_free_nothing(tmp_path: Path) -> None:
    deb = make_deb(tmp_path, "driver", {"usr/share/doc/driver/copyright": COPYRIGHT}).read_bytes()
    driver = replace(make_package("driver", deb), path="pool/non-free/d/driver/driver.deb")
    (tmp_path / driver.sha256).write_bytes(deb)
    lock = make_lock(make_package("libc6"), driver)
    found = licences_of(lock, Store(folder=tmp_path))
    assert found.keys() == {"driver"}
    document = json.loads(encode_sbom("gpu", lock, time=0, licences=found))
    texts = {info["licenseId"]: info["extractedText"] for info in document["hasExtractedLicensingInfos"]}
    by_name = {package["name"]: package["licenseDeclared"] for package in document["packages"]}
    assert by_name["libc6"] == "NOASSERTION"
    assert [texts[name] for name in by_name["driver"].split(" AND ")] == ["Do nothing.", "Do what\n\nyou want."]
    assert "hasExtractedLicensingInfos" not in json.loads(encode_sbom("base", LOCK, time=0, licences={}))


@pytest.mark.parametrize(
    ("path", "free"),
    [
        ("pool/main/z/zstd/zstd.deb", True),
        ("pool/updates/main/l/linux/linux.deb", True),
        ("pool/contrib/n/nvidia/a.deb", False),
        ("pool/updates/non-free/n/nvidia/a.deb", False),
        ("pool/non-free-firmware/n/nvidia/a.deb", False),
    ],
)
def test_the_component_is_in_the_path(path: str, free: bool) -> None:
    assert is_of_main(replace(make_package("a"), path=path)) is free


def test_a_wheel_is_of_no_component() -> None:
    assert is_of_main(replace(make_package("a"), kind=PackageKind.WHEEL, path="a-1-py3-none-any.whl"))


def test_what_modules_were_compiled_with_is_not_content() -> None:
    lock = make_lock(
        make_package("gcc-14", roles=frozenset({"modules"})),
        make_package("libc6", roles=frozenset({"modules", "rootfs"})),
    )
    relations = json.loads(encode_sbom("gpu", lock, time=0, licences={}))["relationships"]
    kinds = {str(item): item["relationshipType"] for item in relations}
    assert {kind for text, kind in kinds.items() if "gcc-14" in text} == {"BUILD_DEPENDENCY_OF"}
    assert {kind for text, kind in kinds.items() if "libc6" in text} == {"CONTAINS"}


def test_it_follows_the_lock() -> None:
    assert encode_sbom("base", LOCK, time=0, licences={}) == encode_sbom("base", LOCK, time=0, licences={})
    other = make_lock(make_package("libc6", b"other"), make_package("zstd", roles=frozenset({"tools"})))
    assert encode_sbom("base", other, time=0, licences={}) != encode_sbom("base", LOCK, time=0, licences={})

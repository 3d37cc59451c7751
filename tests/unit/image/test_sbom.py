# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The bill of materials names every package with its digest."""

from __future__ import annotations

import json

from cvmtool.image.sbom import encode_sbom
from tests.unit.image.parts import make_lock, make_package

LOCK = make_lock(make_package("libc6"), make_package("zstd", roles=frozenset({"tools"})))


def test_every_package_stands_in_it_once() -> None:
    document = json.loads(encode_sbom("base", LOCK, time=0))
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
    relations = json.loads(encode_sbom("base", LOCK, time=0))["relationships"]
    kinds = {item["relationshipType"] for item in relations if "zstd" in str(item)}
    assert kinds == {"BUILD_TOOL_OF"}


def test_it_follows_the_lock() -> None:
    assert encode_sbom("base", LOCK, time=0) == encode_sbom("base", LOCK, time=0)
    other = make_lock(make_package("libc6", b"other"), make_package("zstd", roles=frozenset({"tools"})))
    assert encode_sbom("base", other, time=0) != encode_sbom("base", LOCK, time=0)

# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The software bill of materials of an image, from its lock.

Zone: image. Pure: no I/O.
Spec: SPDX 2.3, JSON.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from cvmtool.image.licences import Licence
from cvmtool.image.lock import Lock, Package, PackageKind

_MAKERS = {
    frozenset({"tools"}): "BUILD_TOOL_OF",
    frozenset({"tools", "modules"}): "BUILD_TOOL_OF",
    frozenset({"modules"}): "BUILD_DEPENDENCY_OF",
}
"""What a package is to the image that it is not part of, by its roles."""


def encode_sbom(name: str, lock: Lock, *, time: int, licences: Mapping[str, tuple[Licence, ...]]) -> bytes:
    """Return an SPDX document of every package that went into an image or made it, stamped with `time`.

    `licences`: those of packages that are not of the archive's main component, by the package's name.
    """
    digest = hashlib.sha256(lock.encode()).hexdigest()
    root = "SPDXRef-image"
    packages: list[dict[str, Any]] = [
        {
            "SPDXID": root,
            "name": f"cvmtool guest image {name}",
            "downloadLocation": "NOASSERTION",
            "filesAnalyzed": False,
            "licenseConcluded": "NOASSERTION",
            "licenseDeclared": "NOASSERTION",
            "copyrightText": "NOASSERTION",
        }
    ]
    relations = [{"spdxElementId": "SPDXRef-DOCUMENT", "relationshipType": "DESCRIBES", "relatedSpdxElement": root}]
    for package in lock.packages:
        described = _describe(package)
        if package.name in licences:
            declared = " AND ".join(licence.identifier for licence in licences[package.name])
            described["licenseDeclared"] = declared or "NOASSERTION"
        packages.append(described)
        if package.roles in _MAKERS:
            relation = (described["SPDXID"], _MAKERS[package.roles], root)
        else:
            relation = (root, "CONTAINS", described["SPDXID"])
        relations.append(
            {"spdxElementId": relation[0], "relationshipType": relation[1], "relatedSpdxElement": relation[2]}
        )
    document = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": f"cvmtool-{name}",
        "documentNamespace": f"urn:cvmtool:sbom:{name}:{digest}",
        "creationInfo": {
            "created": datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "creators": ["Tool: cvmtool"],
        },
        "packages": packages,
        "relationships": relations,
    }
    texts = {licence.identifier: licence for found in licences.values() for licence in found}
    if texts:
        document["hasExtractedLicensingInfos"] = [
            {"licenseId": identifier, "name": licence.name, "extractedText": licence.text}
            for identifier, licence in sorted(texts.items())
        ]
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def _describe(package: Package) -> dict[str, Any]:
    version = quote(package.version, safe=".-_~")
    if package.kind is PackageKind.DEB:
        locator = f"pkg:deb/debian/{quote(package.name, safe='.-_')}@{version}?arch={package.arch}"
    else:
        locator = f"pkg:pypi/{package.name.lower().replace('_', '-')}@{version}"
    return {
        "SPDXID": "SPDXRef-" + re.sub(r"[^A-Za-z0-9.]", "-", f"{package.kind}-{package.name}-{package.arch}"),
        "name": package.name,
        "versionInfo": package.version,
        "downloadLocation": "NOASSERTION",
        "packageFileName": package.path.rsplit("/", 1)[-1],
        "filesAnalyzed": False,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "NOASSERTION",
        "copyrightText": "NOASSERTION",
        "checksums": [{"algorithm": "SHA256", "checksumValue": package.sha256}],
        "externalRefs": [
            {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": locator}
        ],
        "comment": f"used for: {', '.join(sorted(package.roles))}; suite {package.suite}",
    }

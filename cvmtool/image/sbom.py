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
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from cvmtool.image.lock import Lock, Package, PackageKind


def encode_sbom(name: str, lock: Lock, *, time: int) -> bytes:
    """Return an SPDX document of every package that went into an image or made it, stamped with `time`."""
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
        packages.append(described)
        if package.roles == {"tools"}:
            relation = (described["SPDXID"], "BUILD_TOOL_OF", root)
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

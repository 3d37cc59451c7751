# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""NVIDIA's reference manifests: which measurements a driver or a VBIOS must have, signed by NVIDIA.

Zone: owner (trusted). Pure: no I/O, no clock. The only door to lxml and signxml, which come with `cvmtool[gpu]`.
Spec: TCG Reference Integrity Manifest Information Model 1.01; ISO 19770-2 (SWID tags); XML Signature 1.1.

A manifest comes from a service or a mirror that is not trusted. Its certificates are read from the unverified document and must
lead to NVIDIA's root; with the first of them the signature is checked; and only what the signature covers is read.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from datetime import datetime
from typing import Any

from cryptography import x509

from cvmtool.errors import ConfigError, FormatError
from cvmtool.formats.spdm import DIGEST_BYTES
from cvmtool.formats.wire import parse_hex
from cvmtool.owner.checks import Check, NotGenuineError
from cvmtool.owner.nvidia import MAX_CHAIN, NVIDIA, UNREADABLE, Chain, verify_chain

_MADE_HERE = object()
MAX_MANIFEST = 1 << 20  # bytes
_MAX_RESOURCES = 254
_MAX_ALTERNATIVES = 64
_SWID = "{http://standards.iso.org/iso/19770/-2/2015/schema.xsd}"
_DSIG = "{http://www.w3.org/2000/09/xmldsig#}"
_SHA384 = "{http://www.w3.org/2001/04/xmlenc#sha384}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceManifest:
    """What NVIDIA states of one version of a driver or a VBIOS; only `verify_manifest` makes one."""

    product: str
    """The chip, such as GH100."""
    version: str
    """Of the driver or the VBIOS, as the manifest spells it."""
    measurements: Mapping[int, frozenset[bytes]]
    """The values that are right, 48 bytes each, by SPDM's index (1 and up). What is not listed is not compared."""
    chain: Chain
    """Of the key that signed it."""
    token: InitVar[object]

    def __post_init__(self, token: object) -> None:
        if token is not _MADE_HERE:
            raise TypeError("a ReferenceManifest is made by verify_manifest alone")


def verify_manifest(document: bytes, at: datetime, *, root: bytes = NVIDIA.manifests) -> ReferenceManifest:
    """Return what a signed manifest states; `root` is the SHA-256 of the root that is believed, NVIDIA's unless in a test.

    Raises:
        NotGenuineError: not signed by a key that leads to `root` at the time `at`.
        FormatError: not a manifest.
        ConfigError: `cvmtool[gpu]` is not installed.
    """
    if len(document) > MAX_MANIFEST:
        raise FormatError(f"the reference manifest has {len(document)} bytes; at most {MAX_MANIFEST} are allowed")
    try:
        from lxml import etree  # noqa: PLC0415 - an extra, and slow to load
        from signxml.algorithms import DigestAlgorithm, SignatureMethod  # noqa: PLC0415
        from signxml.exceptions import SignXMLException  # noqa: PLC0415
        from signxml.verifier import SignatureConfiguration, XMLVerifier  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(
            "reference manifests of GPUs cannot be read: signxml is not installed", hint="pip install 'cvmtool[gpu]'"
        ) from error
    try:
        parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
        certificates = _certificates(etree.fromstring(document, parser))
        chain = verify_chain(certificates, root, at, what="gpu-manifest-chain")
        signed = XMLVerifier().verify(
            document,
            x509_cert=chain.leaf,
            expect_config=SignatureConfiguration(
                location="./",
                expect_references=1,
                signature_methods=frozenset({SignatureMethod.ECDSA_SHA384}),
                digest_algorithms=frozenset({DigestAlgorithm.SHA384}),
                verification_time=at,
            ),
        )
    except etree.Error as error:
        raise FormatError("the reference manifest is not XML", detail=str(error)) from error
    except SignXMLException as error:
        raise NotGenuineError(
            Check(
                code="gpu-manifest-signature",
                actual="not that of this document",
                required="a signature by the manifest's own certificate",
                passed=False,
                why="who may change a manifest chooses which firmware is right",
            )
        ) from error
    return _read(getattr(signed, "signed_xml", None), chain)


def _certificates(document: Any) -> tuple[x509.Certificate, ...]:  # noqa: ANN401 - lxml has no types
    found = document.findall(f"./{_DSIG}Signature/{_DSIG}KeyInfo/{_DSIG}X509Data/{_DSIG}X509Certificate")
    if not 2 <= len(found) <= MAX_CHAIN:
        raise FormatError(f"the reference manifest has {len(found)} certificates; 2 to {MAX_CHAIN} are required")
    try:
        return tuple(
            x509.load_der_x509_certificate(base64.b64decode("".join((item.text or "").split()), validate=True))
            for item in found
        )
    except UNREADABLE as error:
        raise FormatError("the reference manifest's certificates cannot be read", detail=str(error)) from error


def _read(signed: Any, chain: Chain) -> ReferenceManifest:  # noqa: ANN401 - lxml has no types
    if signed is None or signed.tag != f"{_SWID}SoftwareIdentity":
        raise FormatError("the reference manifest's signature does not cover a SoftwareIdentity")
    meta, payload = signed.findall(f"./{_SWID}Meta"), signed.findall(f"./{_SWID}Payload")
    if len(meta) != 1 or len(payload) != 1:
        raise FormatError(
            f"the reference manifest has {len(meta)} Meta and {len(payload)} Payload; one each is required"
        )
    resources = payload[0].findall(f"./{_SWID}Resource")
    if len(resources) > _MAX_RESOURCES:
        raise FormatError(f"the reference manifest has {len(resources)} entries; at most {_MAX_RESOURCES} are allowed")
    found: dict[int, frozenset[bytes]] = {}
    seen: set[int] = set()
    for resource in resources:
        index = _number(resource, "index", _MAX_RESOURCES - 1) + 1  # a manifest counts from 0
        active = resource.get("active")
        if index in seen or active not in ("True", "False"):
            raise FormatError(f"the reference manifest has index {index - 1} twice, or active {str(active)[:16]!r}")
        seen.add(index)
        if active == "True":
            found[index] = frozenset(
                parse_hex(
                    resource.get(f"{_SHA384}Hash{number}"), DIGEST_BYTES, what=f"reference measurement {index - 1}"
                )
                for number in range(_number(resource, "alternatives", _MAX_ALTERNATIVES))
            )
    if not found or not all(found.values()):
        raise FormatError("the reference manifest states no measurement, or one without a value")
    return ReferenceManifest(
        product=_text(meta[0], "product"),
        version=_text(meta[0], "colloquialVersion"),
        measurements=found,
        chain=chain,
        token=_MADE_HERE,
    )


def _number(element: Any, name: str, most: int) -> int:  # noqa: ANN401 - lxml has no types
    text = element.get(name) or ""
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and int(text) <= most):
        raise FormatError(f"the reference manifest's {name} is {text[:32]!r}; a number up to {most} is required")
    return int(text)


def _text(element: Any, name: str) -> str:  # noqa: ANN401 - lxml has no types
    text = element.get(name) or ""
    if not text or len(text) > 64 or not (text.isascii() and text.isprintable()):
        raise FormatError(f"the reference manifest's {name} is {text[:32]!r}; a short text is required")
    return str(text)

# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""An NVIDIA of our own: roots, GPUs that answer over SPDM, signed reference manifests, and a status service.

It proves that the verifier refuses what it must; that it accepts NVIDIA's own is proven with NVIDIA's samples.
"""

import struct
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cvmtool.formats.gpu import GpuEvidence, gpu_nonce
from cvmtool.owner.nvidia import NvidiaRoots

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
DAY = timedelta(days=1)
TCB_INFO = x509.ObjectIdentifier("2.23.133.5.4.1")
FIRMWARE_ID = bytes(range(48))
DRIVER, VBIOS = "550.90.07", "96.00.9F.00.01"
MEASUREMENTS = {number: bytes([number]) * 48 for number in range(1, 65)}
DRIVER_INDEXES, VBIOS_INDEXES = (8, 22, 36), (1, 2, 9)


@dataclass(frozen=True)
class Issued:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)


def issue(
    name, by=None, *, ca=True, path=None, serial=None, firmware=None, responder=False, extensions=(), key=None,
    since=NOW - 900 * DAY, until=NOW + 900 * DAY,
):  # fmt: skip
    """Make a certificate: an authority unless `ca` is False or None (no word of it). `extensions`: (value, critical)."""
    key = key or ec.generate_private_key(ec.SECP384R1())
    names = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    names += [x509.NameAttribute(NameOID.SERIAL_NUMBER, serial)] if serial else []
    subject = x509.Name(names)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if by is None else by.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(until)
    )
    if ca:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=path), critical=True)
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical=critical)
    if firmware is not None:
        value = b"\x30\x3f" + bytes.fromhex("060960864801650304020204 30") + firmware
        builder = builder.add_extension(x509.UnrecognizedExtension(TCB_INFO, value), critical=False)
    if responder:
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING])
        builder = builder.add_extension(usage, critical=False)
    return Issued(builder.sign(key if by is None else by.key, hashes.SHA384()), key)


def resource(index, *digests, active="True", alternatives=None):
    """Return a row of a manifest, which counts from 0."""
    hashes_ = " ".join(f's:Hash{at}="{digest.hex()}"' for at, digest in enumerate(digests))
    count = len(digests) if alternatives is None else alternatives
    return f'<n:Resource index="{index}" active="{active}" alternatives="{count}" name="m" size="48" {hashes_}/>'


def swid(meta, *rows, root="SoftwareIdentity", more=""):
    """Return an unsigned manifest."""
    namespace = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
    return (
        f'<{root} xmlns="{namespace}" xmlns:n="{namespace}" xmlns:s="http://www.w3.org/2001/04/xmlenc#sha384">'
        f"<n:Meta {meta}/><n:Payload>{''.join(rows)}</n:Payload>{more}</{root}>"
    )


class FakeNvidia:
    """Makes GPUs and what vouches for them."""

    def __init__(self):
        self.device_root = issue("A Device Identity CA")
        self.identity = issue("A GH100 Identity", self.device_root)
        self.rim_root = issue("A CoRIM Root")
        self.rim_ca = issue("A RIM CA", self.rim_root)
        self.rim_signer = issue("A RIM Signer", self.rim_ca, ca=False)

    @property
    def roots(self):
        device, rim = (one.certificate.fingerprint(hashes.SHA256()) for one in (self.device_root, self.rim_root))
        return NvidiaRoots(device=device, manifests=rim)

    def gpu(self, serial="41431D480FE5E87274", **changes):
        return FakeGpu.make(self, serial, **changes)

    def sign(self, document, *, signer=None, certificates=None):
        """Return XML with its signature in it."""
        from lxml import etree
        from signxml import XMLSigner

        chain = certificates or [self.rim_signer, self.rim_ca, self.rim_root]
        key = (signer or self.rim_signer).key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        signed = XMLSigner(signature_algorithm="ecdsa-sha384", digest_algorithm="sha384").sign(
            etree.fromstring(document), key=key, cert=[one.certificate for one in chain]
        )
        return etree.tostring(signed)

    def manifest(self, version, indexes, *, product="GH100", override=None, signer=None, certificates=None):
        """Return a signed manifest of the right measurements at SPDM's `indexes`; `override`: index -> digests."""
        wanted = {number: [MEASUREMENTS[number]] for number in indexes} | (override or {})
        rows = [
            resource(number - 1, *wanted.get(number, [bytes(48)]), active=str(number in wanted))
            for number in range(1, 65)
        ]
        document = swid(f'product="{product}" colloquialVersion="{version}"', *rows)
        return self.sign(document, signer=signer, certificates=certificates)

    def manifests(self):
        return {
            f"NV_GPU_DRIVER_GH100_{DRIVER}": self.manifest(DRIVER, DRIVER_INDEXES),
            "NV_GPU_VBIOS_1010_0200_882_96009F0001": self.manifest(VBIOS, VBIOS_INDEXES),
        }

    def status(self, issued, issuer, *, signer=None, status=ocsp.OCSPCertStatus.GOOD, at=NOW, lasts=DAY, more=()):
        """Return what the status service says of a certificate; `signer` defaults to the issuer."""
        signer = signer or issuer
        revoked = status is ocsp.OCSPCertStatus.REVOKED
        builder = ocsp.OCSPResponseBuilder().add_response(
            cert=issued.certificate,
            issuer=issuer.certificate,
            algorithm=hashes.SHA384(),
            cert_status=status,
            this_update=at - DAY,
            next_update=None if lasts is None else at - DAY + 2 * lasts,
            revocation_time=at - 2 * DAY if revoked else None,
            revocation_reason=None,
        )
        builder = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, signer.certificate)
        if signer is not issuer:
            builder = builder.certificates([*(one.certificate for one in more), signer.certificate])
        return builder.sign(signer.key, hashes.SHA384()).public_bytes(Encoding.DER)

    def statuses(self, gpu):
        links = [
            (gpu.brom, self.identity),
            (self.identity, self.device_root),
            (self.rim_signer, self.rim_ca),
            (self.rim_ca, self.rim_root),
        ]
        return [self.status(one, above) for one, above in links]


@dataclass(frozen=True)
class FakeGpu:
    """A GPU with an identity; `evidence` answers a session. What it tells can be changed with `replace`."""

    nvidia: FakeNvidia = field(repr=False)
    brom: Issued = field(repr=False)
    leaf: Issued = field(repr=False)
    firmware: bytes | None = FIRMWARE_ID
    driver: bytes = DRIVER.encode() + b"\0"
    vbios: bytes = bytes.fromhex("009f009601000000")
    nvdec: bytes = b"\xaa"
    protected_pcie: bytes = b"\x55"
    measurements: dict[int, bytes] = field(default_factory=lambda: dict(MEASUREMENTS))
    devtools: bool = False

    @classmethod
    def make(cls, nvidia, serial, *, chip="GH100", certified=FIRMWARE_ID, by=None, **changes):
        brom = issue(f"{chip} A01 GSP BROM", by or nvidia.identity, serial=serial)
        leaf = issue(f"{chip} A01 GSP FMC LF", brom, ca=False, serial="00", firmware=certified)
        return replace(cls(nvidia, brom, leaf), **changes)

    @property
    def pem(self):
        chain = (self.leaf, self.brom, self.nvidia.identity, self.nvidia.device_root)
        return b"".join(one.certificate.public_bytes(Encoding.PEM) for one in chain)

    def report(self, nonce):
        blocks = b"".join(
            struct.pack("<BBHBH", number, 1, 3 + len(value), 1, len(value)) + value
            for number, value in self.measurements.items()
        )
        fields = {
            6: self.vbios, 15: b"882\0", 17: b"1010\0", 18: b"0200\0", 3: self.driver, 11: self.nvdec,
            20: self.firmware, 21: self.protected_pcie,
        }  # fmt: skip
        opaque = b"".join(
            struct.pack("<HH", kind, len(value)) + value for kind, value in fields.items() if value is not None
        )
        signed = (
            bytes.fromhex("11e001ff") + nonce + b"\0"
            + bytes.fromhex("11600000") + bytes([len(self.measurements)]) + len(blocks).to_bytes(3, "little") + blocks
            + b"N" * 32 + len(opaque).to_bytes(2, "little") + opaque
        )  # fmt: skip
        r, s = utils.decode_dss_signature(self.leaf.key.sign(signed, ec.ECDSA(hashes.SHA384())))
        return signed + r.to_bytes(48, "big") + s.to_bytes(48, "big")

    def evidence(self, report_data, index=0):
        report = self.report(gpu_nonce(report_data, index))
        return GpuEvidence(report=report, certificates=self.pem, devtools=self.devtools)

# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A fake AMD: root, intermediate and chips, made on this machine at first use, for dry runs alone.

Zone: dryrun (simulated; never confidential).
Spec: AMD 57230 VCEK and KDS: names, keys, signatures and extensions are AMD's, so that any verifier that is given this
root accepts what it endorses. A verifier that is not given it refuses: no policy for real hardware can name this root.

Three things say aloud what this is: a comment in root and intermediate, a CHIP_ID that begins with SIMULATED NOT
CONFIDENTIAL (SIM! on Turin, where it has 8 bytes), and the type of root that the verifier was given.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cvmtool.dryrun import x509
from cvmtool.errors import ConfigError
from cvmtool.formats.certtable import CertKind, CertTable
from cvmtool.formats.report import P384_ORDER
from cvmtool.formats.tcb import ProductLine, Tcb

MARK = b"SIMULATED NOT CONFIDENTIAL (cvmtool dry run)"
MARK_SHORT = b"SIM!"
COMMENT = "SIMULATED, NOT CONFIDENTIAL: made by cvmtool for dry runs on this machine"

_VEK_ARC = "1.3.6.1.4.1.3704.1."
_COMMENT_OID = "2.16.840.1.113730.1.13"
_ROOT_YEARS = 25
_VCEK_YEARS = 7
_YEAR = timedelta(days=365)
_SEED_BYTES = 32
_SERIALS = {ProductLine.MILAN: 0x10000, ProductLine.GENOA: 0x20000, ProductLine.TURIN: 0x30000}
_PRODUCT_NAMES = {ProductLine.MILAN: "Milan-B0", ProductLine.GENOA: "Genoa", ProductLine.TURIN: "Turin"}
_FILES = ("ark.key", "ask.key", "chip.seed", "ark.der", "ask.der")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """A simulated processor. `chip_id`: 64 bytes as in a report; `hwid`: as in its certificate (8 bytes on Turin)."""

    chip_id: bytes
    hwid: bytes
    seed: bytes

    def __repr__(self) -> str:
        return f"Chip(hwid={self.hwid.hex()})"

    def vcek(self, tcb: Tcb) -> ec.EllipticCurvePrivateKey:
        """Return the chip's key at `tcb`: derived, as a real chip derives it, so another TCB has another key."""
        # 16 bytes more than the order has, so that the remainder is not skewed (FIPS 186-5 A.4.1).
        derived = HKDF(hashes.SHA384(), 64, None, b"cvmtool/v1/dryrun/vcek" + tcb.encode()).derive(self.seed)
        return ec.derive_private_key(int.from_bytes(derived, "big") % (P384_ORDER - 1) + 1, ec.SECP384R1())


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Keys:
    """The secrets of a fake AMD: two RSA-4096 keys, and 32 bytes that every chip is derived from."""

    ark: rsa.RSAPrivateKey
    ask: rsa.RSAPrivateKey
    seed: bytes


class FakeAmd:
    """Root, intermediate and one chip of a product line. `load_or_create` or `temporary` make one."""

    def __init__(self, line: ProductLine, keys: Keys, ark: bytes, ask: bytes) -> None:
        self.line = line
        self.ark = ark
        self.ask = ask
        self._keys = keys

    @classmethod
    def load_or_create(cls, directory: Path, line: ProductLine = ProductLine.GENOA) -> FakeAmd:
        """Return the fake AMD kept under `directory`, made now if there is none (seconds: two RSA-4096 keys).

        Directories are 0700, files 0600. Two processes may race: one of them wins whole.

        Raises:
            ConfigError: what is kept there is damaged.
        """
        home = directory / f"amd-{line.value.lower()}"
        if not home.is_dir():
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=".amd-", dir=directory))  # 0700
            try:
                cls.temporary(line).save(draft)
                draft.rename(home)
            except OSError:
                if not home.is_dir():
                    raise
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        return cls._load(home, line)

    @classmethod
    def temporary(cls, line: ProductLine = ProductLine.GENOA) -> FakeAmd:
        """Return a new fake AMD that nothing else has seen and that is kept nowhere."""
        ark_key, ask_key = (rsa.generate_private_key(public_exponent=65537, key_size=4096) for _ in range(2))
        made = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
        issuer = f"ARK-{line}"
        ark, ask = (
            x509.certificate(
                x509.Subject(
                    serial=_SERIALS[line] + offset,
                    common_name=common_name,
                    spki=_spki(key.public_key()),
                    not_before=made,
                    not_after=made + _ROOT_YEARS * _YEAR,
                    extensions=_ca_extensions(line, key.public_key(), ark_key.public_key(), root=not offset),
                ),
                issuer,
                ark_key,
            )
            for offset, common_name, key in ((0, issuer, ark_key), (1, f"SEV-{line}", ask_key))
        )
        return cls(line, Keys(ark=ark_key, ask=ask_key, seed=secrets.token_bytes(_SEED_BYTES)), ark, ask)

    @classmethod
    def _load(cls, home: Path, line: ProductLine) -> FakeAmd:
        try:
            ark_key, ask_key, seed, ark, ask = ((home / name).read_bytes() for name in _FILES)
            # Unchecked: a check takes longer than the rest of a run, and a damaged key makes signatures that nobody accepts.
            keys = [
                serialization.load_pem_private_key(key, None, unsafe_skip_rsa_key_validation=True)
                for key in (ark_key, ask_key)
            ]
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"simulated root at {home} cannot be read: {error}",
                hint=f"remove {home}; a new one is made by the next dry run",
            ) from error
        if len(seed) != _SEED_BYTES or not all(isinstance(key, rsa.RSAPrivateKey) for key in keys):
            raise ConfigError(
                f"simulated root at {home} is damaged", hint=f"remove {home}; a new one is made by the next dry run"
            )
        ark_private, ask_private = (key for key in keys if isinstance(key, rsa.RSAPrivateKey))
        return cls(line, Keys(ark=ark_private, ask=ask_private, seed=seed), ark, ask)

    def save(self, home: Path) -> None:
        """Write keys, seed and certificates into the directory `home`, each 0600."""
        contents = (_pem(self._keys.ark), _pem(self._keys.ask), self._keys.seed, self.ark, self.ask)
        for name, content in zip(_FILES, contents, strict=True):
            with os.fdopen(os.open(home / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(content)

    @property
    def root_fingerprint(self) -> bytes:
        """SHA-256 of the root certificate's DER, 32 bytes: what a simulated policy names."""
        return hashlib.sha256(self.ark).digest()

    def chip(self, number: int = 0) -> Chip:
        """Return chip `number` of this machine; 0 is the one that dry runs use."""
        label = b"cvmtool/v1/dryrun/chip" + number.to_bytes(4, "big")
        derived = HKDF(hashes.SHA384(), _SEED_BYTES + 16, None, label).derive(self._keys.seed)
        seed, unique = derived[:_SEED_BYTES], derived[_SEED_BYTES:]
        if self.line is ProductLine.TURIN:
            hwid = MARK_SHORT + unique[:4]
            return Chip(chip_id=hwid.ljust(64, b"\0"), hwid=hwid, seed=seed)
        hwid = MARK.ljust(48) + unique
        return Chip(chip_id=hwid, hwid=hwid, seed=seed)

    def vcek_certificate(self, chip: Chip, tcb: Tcb, *, not_after: datetime | None = None) -> bytes:
        """Return the DER of the VCEK certificate of `chip` at `tcb`, valid for seven years (or until `not_after`)."""
        now = datetime.now(UTC).replace(microsecond=0)
        not_after = not_after or now + _VCEK_YEARS * _YEAR
        return x509.certificate(
            x509.Subject(
                serial=0,
                common_name="SEV-VCEK",
                spki=_spki(chip.vcek(tcb).public_key()),
                not_before=min(now, not_after) - timedelta(days=1),
                not_after=not_after,
                extensions=_vcek_extensions(self.line, chip, tcb),
            ),
            f"SEV-{self.line}",
            self._keys.ask,
        )

    def crl(self, *, revoke_ask: bool = False) -> bytes:
        """Return the DER of the root's revocation list, valid for 30 days from an hour ago."""
        now = datetime.now(UTC).replace(microsecond=0)
        revoked = [_SERIALS[self.line] + 1] if revoke_ask else []
        return x509.revocation_list(
            f"ARK-{self.line}", self._keys.ark, revoked, now - timedelta(hours=1), now + timedelta(days=30)
        )

    def table(self, vcek: bytes, crl: bytes | None) -> CertTable:
        """Return a certificate table with `vcek`, this intermediate and root, and `crl` if there is one."""
        entries: list[tuple[str, bytes]] = [
            (CertKind.VCEK, vcek),
            (CertKind.ASK, self.ask),
            (CertKind.ARK, self.ark),
        ]
        if crl is not None:
            entries.append((CertKind.CRL, crl))
        return CertTable(tuple((str(guid), blob) for guid, blob in entries))


def _ca_extensions(
    line: ProductLine, key: rsa.RSAPublicKey, issuer: rsa.RSAPublicKey, *, root: bool
) -> x509.Extensions:
    constraints = x509.sequence(x509.tlv(0x01, b"\xff"), b"" if root else x509.integer(0))
    # keyCertSign, and cRLSign for the root: bits 5 and 6.
    usage = x509.bits(b"\x06", 1) if root else x509.bits(b"\x04", 2)
    own = ("2.5.29.14", False, x509.octets(_key_id(key)))
    above = ("2.5.29.35", False, x509.sequence(x509.tlv(0x80, _key_id(issuer))))
    return (
        *((own,) if root else (own, above)),
        ("2.5.29.19", True, constraints),
        ("2.5.29.15", True, usage),
        ("2.5.29.31", False, x509.sequence(x509.sequence(_crl_address(line)))),
        (_COMMENT_OID, False, x509.ia5(COMMENT)),
    )


def _crl_address(line: ProductLine) -> bytes:
    """Where AMD's certificates say that the list is; nobody asks there about a fake root."""
    return x509.tlv(0xA0, x509.tlv(0xA0, x509.tlv(0x86, f"https://kdsintf.amd.com/vcek/v1/{line}/crl".encode("ascii"))))


def _vcek_extensions(line: ProductLine, chip: Chip, tcb: Tcb) -> x509.Extensions:
    turin = line is ProductLine.TURIN
    values = [
        ("1", x509.integer(1 if turin else 0)),
        ("2", x509.ia5(_PRODUCT_NAMES[line])),
        *([("3.9", x509.integer(tcb.fmc or 0))] if turin else []),
        ("3.1", x509.integer(tcb.bootloader)),
        ("3.2", x509.integer(tcb.tee)),
        *([] if turin else [("3.4", x509.integer(0))]),
        *((f"3.{number}", x509.integer(0)) for number in (5, 6, 7)),
        ("3.3", x509.integer(tcb.snp)),
        ("3.8", x509.integer(tcb.microcode)),
        ("4", chip.hwid),
    ]
    return [(_VEK_ARC + suffix, False, value) for suffix, value in values]


def _spki(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _key_id(key: rsa.RSAPublicKey) -> bytes:
    return hashlib.sha256(_spki(key)).digest()[:20]


def _pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )

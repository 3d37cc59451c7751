# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The owner's keys: one seed, from which every other key is derived.

Zone: owner. Pure: the seed comes in as bytes; where it is kept is `cvmtool.config`'s and the caller's business.
HKDF-SHA256 (RFC 5869) with one label a use, so that no key tells anything of another.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cvmtool.errors import ConfigError
from cvmtool.formats.pack import PASSPHRASE_SIZE
from cvmtool.formats.report import P384_ORDER
from cvmtool.formats.wire import lp

SEED_SIZE = 32  # bytes
_FILE_PREFIX = "CVMTOOL-OWNER-SEED-1 "
_OWNER = b"cvmtool/v1/owner-ssh"
_PACK = b"cvmtool/v1/pack-passphrase"
_VOLUME = b"cvmtool/v1/volume-passphrase"
_LAUNCH = b"cvmtool/v1/launch-id-key"
_SCRUB = b"cvmtool/v1/scrub-key"
_MODEL = b"cvmtool/v1/model-signing-key"
_AGE = b"cvmtool/v1/age-identity"


@dataclass(frozen=True, slots=True)
class OwnerKeys:
    """The owner's seed and what follows from it. Never printed."""

    _seed: bytes = field(repr=False)

    @property
    def public(self) -> bytes:
        """The owner's Ed25519 public key, 32 bytes raw: the one that HOST_DATA commits to."""
        return self._signing_key().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the public key, hex: how a person tells keys apart."""
        return hashlib.sha256(self.public).hexdigest()

    def sign(self, data: bytes) -> bytes:
        """Return the Ed25519 signature (64 bytes) of `data`."""
        return self._signing_key().sign(data)

    def pack_passphrase(self, luks_uuid: str) -> bytes:
        """Return the passphrase (32 bytes) of the pack with that LUKS UUID."""
        return self._derive(lp(_PACK, luks_uuid.encode("ascii")), PASSPHRASE_SIZE)

    def volume_passphrase(self, luks_uuid: str) -> bytes:
        """Return the passphrase (32 bytes) of the volume with that LUKS UUID."""
        return self._derive(lp(_VOLUME, luks_uuid.encode("ascii")), PASSPHRASE_SIZE)

    def scrub_key(self, name: str) -> bytes:
        """Return the key (32 bytes) of hashes and tokens of the pipelines that name it so."""
        return self._derive(lp(_SCRUB, name.encode("utf-8")), 32)

    @property
    def age_identity(self) -> X25519PrivateKey:
        """The key that opens what was sealed to `recipient`."""
        return X25519PrivateKey.from_private_bytes(self._derive(lp(_AGE), 32))

    @property
    def recipient(self) -> bytes:
        """The owner's X25519 public key, 32 bytes: to which others, and guests, seal age files."""
        return self.age_identity.public_key().public_bytes_raw()

    def launch_key(self) -> ec.EllipticCurvePrivateKey:
        """Return the ID key (P-384) that signs the launches of this owner: firmware takes no Ed25519."""
        return self._p384_key(_LAUNCH)

    def model_key(self) -> ec.EllipticCurvePrivateKey:
        """Return the key (P-384) that signs this owner's models: OpenSSF Model Signing has no Ed25519."""
        return self._p384_key(_MODEL)

    def _p384_key(self, label: bytes) -> ec.EllipticCurvePrivateKey:
        # FIPS 186-5 A.2.1: 64 bits more than the order has, so that the remainder is even to 2^-64.
        wide = int.from_bytes(self._derive(lp(label), 56), "big")
        return ec.derive_private_key(wide % (P384_ORDER - 1) + 1, ec.SECP384R1())

    def _signing_key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self._derive(lp(_OWNER), 32))

    def _derive(self, info: bytes, size: int) -> bytes:
        return HKDF(algorithm=hashes.SHA256(), length=size, salt=None, info=info).derive(self._seed)

    def encode(self) -> bytes:
        """Return the key file's content (it is the secret itself: 0600)."""
        return f"{_FILE_PREFIX}{self._seed.hex()}\n".encode("ascii")


def generate_keys() -> OwnerKeys:
    """Make new keys from the operating system's randomness."""
    return OwnerKeys(secrets.token_bytes(SEED_SIZE))


def parse_keys(data: bytes) -> OwnerKeys:
    """Read a key file. The message never repeats its content.

    Raises:
        ConfigError: it is not one.
    """
    text = data.decode("ascii", "replace").removesuffix("\n")
    seed = text.removeprefix(_FILE_PREFIX)
    if not text.startswith(_FILE_PREFIX) or len(seed) != 2 * SEED_SIZE or not set(seed) <= set("0123456789abcdef"):
        raise ConfigError(
            "the owner's key file is not one", hint="cvmtool key show names the file; restore it from a backup"
        )
    return OwnerKeys(bytes.fromhex(seed))

# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Sign the files of a model, and verify that a model's files are the ones that somebody signed.

Zone: data (the owner's machine). Reads the model's files.
Spec: OpenSSF Model Signing v1.0, with elliptic curve keys: ECDSA over P-256, P-384 or P-521 with SHA-256, SHA-384 or SHA-512.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from cvmtool.errors import ConfigError, VerificationError
from cvmtool.formats.dsse import pae
from cvmtool.formats.modelsig import IGNORED, SIGNATURE_FILE, ModelBundle, ModelStatement, parse_bundle, parse_statement

MAX_KEY = 65_536  # bytes of a PEM file
_HASHES: dict[str, Callable[[], hashes.HashAlgorithm]] = {
    "secp256r1": hashes.SHA256,
    "secp384r1": hashes.SHA384,
    "secp521r1": hashes.SHA512,
}
Progress = Callable[[int, int], None]


def read_private_key(data: bytes) -> ec.EllipticCurvePrivateKey:
    """Read a private key without a passphrase, PEM.

    Raises:
        ConfigError: it is none, or not of P-256, P-384 or P-521. The message never repeats its content.
    """
    try:
        key = load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError("the signing key is no PEM private key without a passphrase") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in _HASHES:
        raise ConfigError("the signing key is of another kind; one of P-256, P-384 or P-521 is required")
    return key


def read_public_key(data: bytes) -> ec.EllipticCurvePublicKey:
    """Read a public key, PEM.

    Raises:
        ConfigError: it is none, or not of P-256, P-384 or P-521.
    """
    try:
        key = load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError("the signer's key is no PEM public key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _HASHES:
        raise ConfigError("the signer's key is of another kind; one of P-256, P-384 or P-521 is required")
    return key


def public_pem(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return a public key as PEM (SubjectPublicKeyInfo)."""
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """Return the SHA-256 of a public key's PEM text, hex: how signatures name a key."""
    return hashlib.sha256(public_pem(key)).hexdigest()


def sign_model(
    folder: Path, key: ec.EllipticCurvePrivateKey, *, progress: Progress = lambda _done, _all: None
) -> ModelBundle:
    """Return the signature over every file of a model but a signature that is there already.

    Raises:
        ConfigError: the model has no file, has links, or cannot be read.
    """
    ignored = (*IGNORED, SIGNATURE_FILE)
    statement = ModelStatement(
        name=folder.resolve().name,
        files=_digests(folder, ignored, links=False, progress=progress),
        ignored=ignored,
        links=False,
    )
    payload = statement.encode()
    signature = key.sign(pae(payload), ec.ECDSA(_HASHES[key.curve.name]()))
    return ModelBundle(payload=payload, signature=signature, hint=fingerprint(key.public_key()))


def verify_model(
    folder: Path,
    signature: bytes,
    key: ec.EllipticCurvePublicKey,
    *,
    progress: Progress = lambda _done, _all: None,
) -> ModelStatement:
    """Check that the holder of `key` signed exactly the files that are in `folder`.

    What must hold: (1) the signature is over the statement and by this key; (2) each file of the statement is there with the
    digest that it names; (3) no other file is there, but for the paths that the signer said are not part of the model.

    Raises:
        ConfigError: the model cannot be read.
        FormatError: the signature is of a form that is not supported.
        VerificationError: one of the three does not hold.
    """
    bundle = parse_bundle(signature)
    statement = parse_statement(_signed(bundle, key))
    own = (SIGNATURE_FILE,)  # a file does not sign itself, whoever forgot to say so
    found = _digests(folder, (*statement.ignored, *own), links=statement.links, progress=progress)
    for name in sorted(statement.files.keys() | found.keys()):
        if name not in found:
            raise VerificationError(f"{folder / name} is missing; the model's signer signed it")
        if name not in statement.files:
            raise VerificationError(f"{folder / name} is not one of the files that the model's signer signed")
        if statement.files[name] != found[name]:
            raise VerificationError(
                f"{folder / name} has the SHA-256 {found[name].hex()[:16]}...; "
                f"the model's signer signed {statement.files[name].hex()[:16]}...",
                hint="it was changed, or not fetched whole: get the model again",
            )
    return statement


def _signed(bundle: ModelBundle, key: ec.EllipticCurvePublicKey) -> bytes:
    """Return the payload of a bundle whose signature holds."""
    try:
        key.verify(bundle.signature, pae(bundle.payload), ec.ECDSA(_HASHES[key.curve.name]()))
    except InvalidSignature:
        other = f", and names the key {bundle.hint[:16]}..." if bundle.hint and bundle.hint != fingerprint(key) else ""
        raise VerificationError(
            f"the model's signature does not hold under the key {fingerprint(key)[:16]}...{other}",
            hint="is it the public key of who signed this model?",
        ) from None
    return bundle.payload


def _digests(folder: Path, ignored: tuple[str, ...], *, links: bool, progress: Progress) -> dict[str, bytes]:
    """Return the SHA-256 of each file of a model by its path, in the order that the specification lists them."""
    found = sorted(_files(folder, ignored, links=links), key=lambda path: path.relative_to(folder).parts)
    if not found:
        raise ConfigError(f"{folder} has no files; a model's directory is required")
    try:
        sizes = [path.stat().st_size for path in found]
        digests, done = {}, 0
        for path, size in zip(found, sizes, strict=True):
            with path.open("rb") as file:
                digests[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").digest()
            done += size
            progress(done, sum(sizes))
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read", detail=str(error)) from error
    return digests


def _files(folder: Path, ignored: tuple[str, ...], *, links: bool) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read", detail=str(error)) from error
    for entry in entries:
        if entry.name in ignored:
            continue
        path = Path(entry.path)
        below = tuple(item.removeprefix(f"{entry.name}/") for item in ignored if item.startswith(f"{entry.name}/"))
        if entry.is_symlink() and not links:
            raise ConfigError(
                f"{path} is a link; the signature of a model covers files",
                hint=f"copy what the links lead to: cp -rL {folder} NEW",
            )
        if entry.is_dir():
            yield from _files(path, below, links=links)
        elif entry.is_file():
            yield path
        else:
            raise ConfigError(f"{path} is neither a file nor a directory")

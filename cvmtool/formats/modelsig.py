# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A model's signature: a Sigstore bundle around a DSSE envelope around an in-toto statement that lists the model's files.

Zone: shared. Pure: no I/O and no keys. `data/modelsign.py` signs and verifies.
Spec: OpenSSF Model Signing v1.0 (predicate https://model_signing/signature/v1.0, of whole files by SHA-256); Sigstore bundle
v0.3; DSSE v1. Members that the specification tells verifiers to ignore are ignored; whatever decides is read strictly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from cvmtool.errors import FormatError
from cvmtool.formats.dsse import PAYLOAD_TYPE
from cvmtool.formats.wire import canonical_json, parse_base64, parse_hex, parse_json, to_base64, typed

SIGNATURE_FILE = "model.sig"
IGNORED = (".git", ".gitattributes", ".github", ".gitignore")
"""What belongs to a checkout and not to the model; the signature itself comes on top of these."""
MAX_BUNDLE = 32 << 20  # bytes; a hundred thousand files
MAX_FILES = 100_000
_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_MAX_SIGNATURE = 256  # bytes; DER of two numbers of 521 bits has 139


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatement:
    """What was signed: every file of a model, its path from the model's directory and its SHA-256 (32 bytes)."""

    name: str
    files: dict[str, bytes]
    ignored: tuple[str, ...]
    """Paths that are not part of the model; a directory stands for all below it."""
    links: bool
    """Whether symbolic links stand for what they lead to; otherwise there are none."""

    def encode(self) -> bytes:
        """Return the in-toto statement."""
        serialization = {"method": "files", "hash_type": "sha256", "allow_symlinks": self.links}
        resources = [
            {"name": name, "algorithm": "sha256", "digest": digest.hex()} for name, digest in self.files.items()
        ]
        return canonical_json(
            {
                "_type": _STATEMENT,
                "subject": [{"name": self.name, "digest": {"sha256": _root(self.files.values()).hex()}}],
                "predicateType": _PREDICATE,
                "predicate": {
                    "serialization": {**serialization, "ignore_paths": list(self.ignored)},
                    "resources": resources,
                },
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelBundle:
    """A signature file, its signature not yet checked."""

    payload: bytes = field(repr=False)
    signature: bytes
    """ECDSA, DER."""
    hint: str | None
    """SHA-256 of the public key's PEM text, hex, where the signer says it."""

    def encode(self) -> bytes:
        """Return the bundle as JSON."""
        return canonical_json(
            {
                "mediaType": _MEDIA_TYPE,
                "verificationMaterial": {"publicKey": {"hint": self.hint}, "tlogEntries": []},
                "dsseEnvelope": {
                    "payloadType": PAYLOAD_TYPE,
                    "payload": to_base64(self.payload),
                    "signatures": [{"keyid": "", "sig": to_base64(self.signature)}],
                },
            }
        )


def parse_bundle(data: bytes) -> ModelBundle:
    """Read a signature file that was made with a key.

    Raises:
        FormatError: no such bundle; one that was made with a certificate is named as such.
    """
    what = "model signature"
    value = parse_json(data, what=what, limit=MAX_BUNDLE)
    if value.get("mediaType") != _MEDIA_TYPE:
        raise FormatError(f"{what} has the media type {str(value.get('mediaType'))[:80]!r}; {_MEDIA_TYPE} is required")
    material = typed(value, "verificationMaterial", dict, what=what)
    if "publicKey" not in material:
        raise FormatError(
            f"{what} was made with a certificate ({', '.join(sorted(material))[:80]}); one made with a key is required",
            hint="verify it with the model_signing program, and sign the model with a key of your own: cvmtool model sign",
        )
    hint = typed(material, "publicKey", dict, what=what).get("hint")
    envelope = typed(value, "dsseEnvelope", dict, what=what)
    if envelope.get("payloadType") != PAYLOAD_TYPE:
        raise FormatError(f"{what} is of {str(envelope.get('payloadType'))[:80]!r}; {PAYLOAD_TYPE} is required")
    signatures = typed(envelope, "signatures", list, what=what)
    if len(signatures) != 1 or not isinstance(signatures[0], dict):
        raise FormatError(f"{what} has {len(signatures)} signatures; exactly one is required")
    return ModelBundle(
        payload=parse_base64(envelope.get("payload"), what=f"{what} payload", limit=MAX_BUNDLE),
        signature=parse_base64(signatures[0].get("sig"), what=f"{what} sig", limit=_MAX_SIGNATURE),
        hint=None if hint is None else parse_hex(hint, 32, what=f"{what} hint").hex(),
    )


def parse_statement(data: bytes) -> ModelStatement:
    """Read what a bundle signs. Only for bytes whose signature holds.

    Raises:
        FormatError: another predicate or way of hashing, a path that leads out, or a digest over all files that is not theirs.
    """
    what = "signed statement"
    value = parse_json(data, what=what, limit=MAX_BUNDLE)
    if value.get("_type") != _STATEMENT or value.get("predicateType") != _PREDICATE:
        raise FormatError(f"{what} is a {str(value.get('predicateType'))[:80]!r}; {_PREDICATE} is required")
    subjects = typed(value, "subject", list, what=what)
    if len(subjects) != 1 or not isinstance(subjects[0], dict):
        raise FormatError(f"{what} has {len(subjects)} subjects; exactly one is required")
    predicate = typed(value, "predicate", dict, what=what)
    how = typed(predicate, "serialization", dict, what=what)
    if (how.get("method"), how.get("hash_type")) != ("files", "sha256"):
        found = f"{str(how.get('method'))[:20]} by {str(how.get('hash_type'))[:20]}"
        raise FormatError(f"{what} hashes {found}; files by sha256 are required")
    ignored = how.get("ignore_paths", [])
    if not isinstance(ignored, list) or len(ignored) > MAX_FILES:
        raise FormatError(f"{what} ignore_paths is no list of paths")
    files = _files(typed(predicate, "resources", list, what=what), what)
    digest = typed(subjects[0], "digest", dict, what=what)
    root = parse_hex(digest.get("sha256"), 32, what=f"{what} digest")
    if _root(files.values()) != root:
        raise FormatError(
            f"{what} has the digest {root.hex()[:16]}...; its files have {_root(files.values()).hex()[:16]}..."
        )
    return ModelStatement(
        name=typed(subjects[0], "name", str, what=what),
        files=files,
        ignored=tuple(_path(path, what) for path in ignored),
        links=typed(how, "allow_symlinks", bool, what=what),
    )


def _files(resources: list[object], what: str) -> dict[str, bytes]:
    if not 0 < len(resources) <= MAX_FILES:
        raise FormatError(f"{what} lists {len(resources)} files; 1 to {MAX_FILES} are required")
    files: dict[str, bytes] = {}
    for resource in resources:
        if not isinstance(resource, dict) or resource.get("algorithm") != "sha256":
            raise FormatError(f"{what} lists something that is no file with a sha256")
        name = _path(resource.get("name"), what)
        if name in files:
            raise FormatError(f"{what} lists {name[:80]!r} twice")
        files[name] = parse_hex(resource.get("digest"), 32, what=f"{what} digest")
    return files


def _path(value: object, what: str) -> str:
    """Return a relative path of plain names, as it is spelled."""
    if not isinstance(value, str) or "\0" in value or {"", ".", ".."} & set(value.split("/")):
        raise FormatError(f"{what} names {str(value)[:80]!r}; a path below the model's directory is required")
    return value


def _root(digests: Iterable[bytes]) -> bytes:
    return hashlib.sha256(b"".join(digests)).digest()

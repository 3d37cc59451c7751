# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Models of their owner: signed, verified, checked and sealed for a job.

Zone: flows (owner's machine).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from cvmtool.config import Settings, write_atomic
from cvmtool.data.model import check_model
from cvmtool.data.modelsign import (
    MAX_KEY,
    fingerprint,
    public_pem,
    read_private_key,
    read_public_key,
    sign_model,
    verify_model,
)
from cvmtool.data.sealed import Progress
from cvmtool.errors import ConfigError, VerificationError
from cvmtool.flows.packfile import is_pack, read_pack, seal_input
from cvmtool.flows.packs import SealedPack, seal_tree
from cvmtool.formats.modelsig import MAX_BUNDLE, SIGNATURE_FILE, parse_statement
from cvmtool.formats.packheader import ContentKind
from cvmtool.owner.jobmodel import MODEL
from cvmtool.owner.keystore import OwnerKeys


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedModel:
    """A model's directory with a signature that holds: where that is, the fingerprint of its key, and the files' paths."""

    path: Path
    signer: str
    files: tuple[str, ...]


def own_public_key(keys: OwnerKeys) -> str:
    """Return the public key that verifies what the owner signs, as PEM."""
    return public_pem(keys.model_key().public_key()).decode("ascii")


def sign_folder(
    folder: Path, *, key: Path | None, keys: Callable[[], OwnerKeys], progress: Progress = lambda _done, _all: None
) -> SignedModel:
    """Sign a model's directory with the private key in the file `key`, or with the owner's own.

    Raises:
        ConfigError: the key or the model cannot be used, or the signature not written.
    """
    private = read_private_key(_read(key, MAX_KEY)) if key else keys().model_key()
    bundle = sign_model(folder, private, progress=progress)
    path = folder / SIGNATURE_FILE
    try:
        write_atomic(path, bundle.encode(), mode=0o644)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written", detail=str(error)) from error
    files = parse_statement(bundle.payload).files
    return SignedModel(path=path, signer=fingerprint(private.public_key()), files=tuple(files))


def verify_folder(
    folder: Path, *, signer: Path | None, keys: Callable[[], OwnerKeys], progress: Progress = lambda _done, _all: None
) -> SignedModel:
    """Check a model's directory against the signature in it, and that by the public key in `signer`, or the owner's own.

    Raises:
        ConfigError: the key or the model cannot be read.
        FormatError: the signature is of a form that is not supported.
        VerificationError: there is no signature, it is another's, or the model is not the one that was signed.
    """
    public = read_public_key(_read(signer, MAX_KEY)) if signer else keys().model_key().public_key()
    path = folder / SIGNATURE_FILE
    if not path.is_file():
        raise VerificationError(
            f"{path} is missing; a signature is required",
            hint=f"who made the model signs it: cvmtool model sign {folder}",
        )
    statement = verify_model(folder, _read(path, MAX_BUNDLE), public, progress=progress)
    return SignedModel(path=path, signer=fingerprint(public), files=tuple(statement.files))


def check_folder(
    folder: Path, *, signer: Path | None, keys: Callable[[], OwnerKeys], progress: Progress = lambda _done, _all: None
) -> str | None:
    """Check a directory that is to be sealed as a model; return what its owner should know, None for nothing.

    Raises:
        ConfigError: it is no model, or holds a pickle.
        FormatError: a shard, a JSON file or the signature does not parse.
        VerificationError: `signer` is named, and did not sign exactly this.
    """
    check_model(folder)
    if signer is not None:
        verify_folder(folder, signer=signer, keys=keys, progress=progress)
    elif (folder / SIGNATURE_FILE).exists():
        return f"{folder} is signed, but nobody said by whom it should be; name the public key as its signer"
    return None


def seal_model(
    path: Path,
    *,
    signer: Path | None,
    settings: Settings,
    keys: OwnerKeys,
    progress: Progress,
    notice: Callable[[str], None],
    parties: Collection[str] = (),
) -> SealedPack:
    """Check and seal a job's model as the input `model`, or take a pack of one, ours or of one of the `parties`, as it is.

    Raises:
        ConfigError: it is no model, or a pack of something else; or a signer is named for a pack.
        FormatError: as `check_folder`.
        VerificationError: as `check_folder`, or the pack is another owner's.
    """
    if not is_pack(path):
        if remark := check_folder(path, signer=signer, keys=lambda: keys, progress=progress):
            notice(remark)
        return seal_tree(path, MODEL, settings=settings, keys=keys, progress=progress)
    header = read_pack(path).header
    if header is None or header.content.kind is not ContentKind.MODEL:
        raise ConfigError(
            f"pack {path} is {f'a {header.content.kind.value}' if header else 'of an older version'}; a model is required",
            hint="cvmtool data pack DIR --kind model",
        )
    if signer is not None:
        raise ConfigError(
            f"model.signer is given for the pack {path}; a signature is verified when a model is packed",
            hint="cvmtool data pack DIR --kind model --signer KEY",
        )
    return seal_input(path, MODEL, settings=settings, keys=keys, progress=progress, parties=parties)


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read", detail=str(error)) from error
    if len(data) > limit:
        raise ConfigError(f"{path} has over {limit} bytes; it is another thing")
    return data

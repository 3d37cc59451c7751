# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool measure id-block` and `id-check`: sign a launch digest, and check such a signature.

Zone: cli. The two files are what QEMU (`id-block`, `id-auth`) and libvirt (`idBlock`, `idAuth`) take in base64. Private keys
are read from files and never written, shown or passed on.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cvmtool.cli.files import read_file
from cvmtool.cli.verdict import print_json

if TYPE_CHECKING:
    from cvmtool.formats.idblock import IdAuth, IdBlock

BLOCK_FILE = "id-block.bin"
AUTH_FILE = "id-auth.bin"
MAX_FILE_BYTES = 64 << 10

Json = Annotated[bool, typer.Option("--json", help="Write one JSON document to standard output.")]


def id_block(
    *,
    digest: Annotated[str, typer.Option("--digest", help="The launch digest, 96 hex digits.", metavar="HEX")],
    id_key: Annotated[Path, typer.Option("--id-key", help="Private key on P-384 that signs, PEM.", metavar="PEM")],
    author_key: Annotated[
        Path | None, typer.Option("--author-key", help="Private key that signs the ID key, PEM.", metavar="PEM")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for id-block.bin and id-auth.bin.", metavar="DIR")],
    family_id: Annotated[str, typer.Option("--family-id", help="FAMILY_ID, 32 hex digits.", metavar="HEX")] = "0" * 32,
    image_id: Annotated[str, typer.Option("--image-id", help="IMAGE_ID, 32 hex digits.", metavar="HEX")] = "0" * 32,
    guest_svn: Annotated[int, typer.Option("--guest-svn", help="Security version of the image.", min=0)] = 0,
    policy: Annotated[
        str, typer.Option("--policy", help="GUEST_POLICY of the launch, hex.", metavar="HEX")
    ] = "0x30000",
    as_json: Json = False,
) -> None:
    """Sign a launch digest: the firmware then refuses to finish a launch that has another one."""
    from cvmtool.config import write_atomic
    from cvmtool.errors import ConfigError
    from cvmtool.formats.idblock import IdBlock
    from cvmtool.formats.policybits import GuestPolicy
    from cvmtool.formats.wire import parse_hex
    from cvmtool.owner.launchsign import load_signing_key, sign_launch

    try:
        bits = int(policy, 16)
    except ValueError:
        raise ConfigError(f"--policy is {policy!r}; required: a hexadecimal number") from None
    block = IdBlock(
        digest=parse_hex(digest, 48, what="--digest"),
        family_id=parse_hex(family_id, 16, what="--family-id"),
        image_id=parse_hex(image_id, 16, what="--image-id"),
        guest_svn=guest_svn,
        policy=GuestPolicy(bits),
    )
    author = None if author_key is None else load_signing_key(read_file(author_key, most=MAX_FILE_BYTES))
    auth = sign_launch(block, load_signing_key(read_file(id_key, most=MAX_FILE_BYTES)), author)
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / BLOCK_FILE, block.encode())
        write_atomic(out / AUTH_FILE, auth.encode())
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}") from None
    _print({"schema": "cvmtool/measure-id-block/v1", **_fields(block, auth)}, as_json=as_json)


def id_check(
    folder: Annotated[Path, typer.Argument(help="A folder with id-block.bin and id-auth.bin.", metavar="DIR")],
    *,
    digest: Annotated[
        str | None, typer.Option("--digest", help="The launch digest it must be for, 96 hex digits.", metavar="HEX")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check both signatures of a signed launch digest (exit 5 if one does not hold) and show whose they are."""
    from cvmtool.errors import VerificationError
    from cvmtool.formats.idblock import parse_id_auth, parse_id_block
    from cvmtool.formats.wire import parse_hex
    from cvmtool.owner.launchsign import verify_launch_signature

    block, auth = (
        parse_id_block(read_file(folder / BLOCK_FILE, most=MAX_FILE_BYTES)),
        parse_id_auth(read_file(folder / AUTH_FILE, most=MAX_FILE_BYTES)),
    )
    verify_launch_signature(block, auth)
    if digest is not None and block.digest != parse_hex(digest, 48, what="--digest"):
        raise VerificationError(f"the id block is for launch digest {block.digest.hex()}; required: {digest}")
    _print({"schema": "cvmtool/measure-id-check/v1", **_fields(block, auth)}, as_json=as_json)


def _fields(block: IdBlock, auth: IdAuth) -> dict[str, Any]:
    from cvmtool.formats.wire import to_base64

    return {
        "launch_digest": block.digest.hex(),
        "family_id": block.family_id.hex(),
        "image_id": block.image_id.hex(),
        "guest_svn": block.guest_svn,
        "policy": hex(block.policy.value),
        "id_key_digest": auth.key.digest.hex(),
        "author_key_digest": None if auth.author is None else auth.author.key.digest.hex(),
        "id_block": to_base64(block.encode()),
        "id_auth": to_base64(auth.encode()),
    }


def _print(document: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(document)
        return
    for name, value in document.items():
        if name != "schema":
            typer.echo(f"{name}: {'none' if value is None else value}")

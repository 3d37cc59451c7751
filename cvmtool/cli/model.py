# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool model`: sign a model's files, and verify who signed them.

Zone: cli.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cvmtool.cli.options import Json

app = typer.Typer(help="Sign models, and verify who signed them (OpenSSF Model Signing).", no_args_is_help=True)

_Folder = Annotated[Path, typer.Argument(help="A model's directory.", metavar="DIR", show_default=False)]


@app.command()
def sign(
    folder: _Folder,
    *,
    key: Annotated[
        Path | None,
        typer.Option("--key", help="A private key (PEM, P-256, P-384 or P-521); else your own.", metavar="FILE"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Sign every file of a directory; the signature goes beside them, as model.sig."""
    from cvmtool.cli.render import TerminalReporter, emit_schema
    from cvmtool.config import load_settings
    from cvmtool.flows.models import sign_folder
    from cvmtool.flows.prepare import load_keys
    from cvmtool.flows.reporter import Stage

    reporter = TerminalReporter()
    with reporter.stage(Stage.PACK, f"signing {folder}"):
        signed = sign_folder(folder, key=key, keys=lambda: load_keys(load_settings()), progress=reporter.progress)
    if as_json:
        emit_schema("model-sign", path=str(signed.path), signer=signed.signer, files=signed.files)
    else:
        typer.echo(signed.path)


@app.command()
def verify(
    folder: _Folder,
    *,
    signer: Annotated[
        Path | None, typer.Option("--signer", help="The signer's public key (PEM); else your own.", metavar="FILE")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check that exactly the files of a directory were signed, and by whom (exit 5 if not)."""
    from cvmtool.cli.render import TerminalReporter, emit_schema
    from cvmtool.config import load_settings
    from cvmtool.flows.models import verify_folder
    from cvmtool.flows.prepare import load_keys
    from cvmtool.flows.reporter import Stage

    reporter = TerminalReporter()
    with reporter.stage(Stage.PACK, f"verifying {folder}"):
        signed = verify_folder(
            folder, signer=signer, keys=lambda: load_keys(load_settings()), progress=reporter.progress
        )
    if as_json:
        emit_schema("model-verify", path=str(signed.path), signer=signed.signer, files=signed.files)
    else:
        typer.echo(f"{len(signed.files)} files, as the holder of the key {signed.signer[:16]}... signed them")


@app.command()
def key(as_json: Json = False) -> None:
    """Print the public key that verifies what you sign, as PEM."""
    from cvmtool.cli.render import emit_schema
    from cvmtool.config import load_settings
    from cvmtool.flows.models import own_public_key
    from cvmtool.flows.prepare import load_keys

    pem = own_public_key(load_keys(load_settings()))
    if as_json:
        emit_schema("model-key", pem=pem)
    else:
        typer.echo(pem, nl=False)

# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool key`: the owner's keys.

Zone: cli.
"""

from __future__ import annotations

import typer

from cvmtool.cli.options import Json

app = typer.Typer(help="The owner's keys: one seed, from which all others follow.", no_args_is_help=True)


@app.command()
def show(as_json: Json = False) -> None:
    """Show the owner's public keys, and the file that holds the seed. Makes the seed at first use."""
    from cvmtool.cli.render import emit_schema
    from cvmtool.config import load_settings
    from cvmtool.flows.prepare import load_keys
    from cvmtool.owner.age import render_recipient
    from cvmtool.owner.sshkey import render_ssh_key

    settings = load_settings()
    keys = load_keys(settings)
    recipient, ssh = render_recipient(keys.recipient), render_ssh_key(keys.public)
    if as_json:
        emit_schema(
            "key-show",
            public=keys.public.hex(),
            fingerprint=keys.fingerprint,
            recipient=recipient,
            ssh=ssh,
            file=str(settings.keystore),
        )
        return
    typer.echo(f"public       {keys.public.hex()}")
    typer.echo(f"fingerprint  sha256:{keys.fingerprint}")
    typer.echo(f"recipient    {recipient}")
    typer.echo(f"ssh          {ssh}")
    typer.echo(f"file         {settings.keystore}  (back it up: without it no pack opens)")

# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool unseal`: results that a job sealed to you.

Zone: cli.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cvmtool.cli.options import Json

app = typer.Typer()


@app.command()
def unseal(
    source: Annotated[Path, typer.Argument(help="An age file, or a directory of them.", metavar="FILE.age")],
    *,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where the files go, in clear; by default beside.", metavar="DIR")
    ] = None,
    identity: Annotated[
        Path | None,
        typer.Option("--identity", help="A key of age-keygen's; by default your own.", metavar="FILE"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Open results that a job sealed to its recipients. age opens them, too: age -d -i FILE."""
    from cvmtool.cli.render import TerminalReporter, emit_schema
    from cvmtool.config import load_settings
    from cvmtool.flows.prepare import load_keys
    from cvmtool.flows.reporter import Stage
    from cvmtool.flows.unseal import read_identities
    from cvmtool.flows.unseal import unseal as open_files

    identities = [load_keys(load_settings()).age_identity] if identity is None else read_identities(identity)
    reporter = TerminalReporter()
    with reporter.stage(Stage.RESULTS, f"opening {source}"):
        opened = open_files(source, out, identities, step=reporter.step)
    if as_json:
        emit_schema("unseal", files=[item.to_json() for item in opened])
        return
    for item in opened:
        typer.echo(item.path)

# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool data`: seal inputs into packs, and look at packs.

Zone: cli.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cvmtool.cli.options import Json

app = typer.Typer(help="Seal data into packs that only an attested guest opens.", no_args_is_help=True)


@app.command()
def pack(
    source: Annotated[Path, typer.Argument(help="A directory or a file.", metavar="DIR")],
    *,
    out: Annotated[
        Path, typer.Option("--out", help="The pack to write; its descriptor goes beside it.", metavar="PACK")
    ],
    name: Annotated[str | None, typer.Option("--name", help="The pack's name in a job.")] = None,
    as_json: Json = False,
) -> None:
    """Seal a directory: compressed, encrypted (LUKS2), under a hash tree (dm-verity). Needs no root."""
    from cvmtool.cli.render import emit_schema
    from cvmtool.config import load_settings
    from cvmtool.flows.packs import pack_to_file
    from cvmtool.flows.prepare import load_keys

    descriptor = pack_to_file(source, out, name=name or _name(source), keys=load_keys(load_settings()))
    if as_json:
        emit_schema("data-pack", path=str(out), pack=descriptor.to_json())
    else:
        typer.echo(descriptor.root_hash)


@app.command()
def show(
    pack: Annotated[Path, typer.Argument(help="A pack file.", metavar="PACK")],
    as_json: Json = False,
) -> None:
    """Show what the world may know of a pack, after checking its file against it."""
    from cvmtool.cli.render import emit_schema
    from cvmtool.flows.packs import check_pack

    descriptor = check_pack(pack)
    if as_json:
        emit_schema("data-show", path=str(pack), pack=descriptor.to_json())
        return
    for key, value in descriptor.to_json().items():
        typer.echo(f"{key:<18} {value}")


def _name(source: Path) -> str:
    """Make a pack's name of a file's: lower case, and what no name may hold becomes a dash."""
    lowered = source.resolve().name.lower()
    kept = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in lowered)
    return kept.strip("._-")[:64].strip("._-") or "data"

# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool data`: seal inputs into packs; look at packs, check them, seal them anew, open them.

Zone: cli.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvmtool.cli.options import Json
from cvmtool.formats.packheader import ContentKind, Sensitivity

if TYPE_CHECKING:
    from cvmtool.flows.packfile import PackFile

app = typer.Typer(help="Seal data into packs that only an attested guest opens.", no_args_is_help=True)

_PackArgument = Annotated[Path, typer.Argument(help="A pack file.", metavar="PACK")]


@app.command()
def pack(
    source: Annotated[
        str, typer.Argument(help="A directory, a file, oci:DIR or oci-archive:FILE.", metavar="DIR", show_default=False)
    ],
    *,
    out: Annotated[Path, typer.Option("--out", help="The pack to write; its header goes beside it.", metavar="PACK")],
    name: Annotated[str | None, typer.Option("--name", help="The pack's name in a job.")] = None,
    kind: Annotated[
        ContentKind | None,
        typer.Option("--kind", help="What it is; a model is checked: safetensors, no pickle. [default: tree]"),
    ] = None,
    digest: Annotated[
        str | None, typer.Option("--digest", help="Of an image's manifest.", metavar="sha256:HEX")
    ] = None,
    metadata: Annotated[
        Path | None, typer.Option("--metadata", help="What to say of it, as TOML; options win.", metavar="FILE")
    ] = None,
    owner: Annotated[str | None, typer.Option("--owner", help="Whose data it is, in words.")] = None,
    sensitivity: Annotated[
        Sensitivity | None, typer.Option("--sensitivity", help="Who would be hurt if it came out.")
    ] = None,
    origin: Annotated[str | None, typer.Option("--origin", help="Where it comes from.")] = None,
    handling: Annotated[str | None, typer.Option("--handling", help="What may be done with it.")] = None,
    licence: Annotated[str | None, typer.Option("--licence", help="Under which licence it is.")] = None,
    made_from: Annotated[
        list[Path] | None, typer.Option("--made-from", help="A pack that it was made from.", metavar="PACK")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a pack that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Seal a directory: compressed, encrypted (LUKS2), under a hash tree (dm-verity). Needs no root."""
    from cvmtool.cli.render import TerminalReporter, emit_schema
    from cvmtool.config import load_settings
    from cvmtool.errors import ConfigError
    from cvmtool.flows.packfile import Source, pack_to_file, read_metadata, read_pack
    from cvmtool.flows.prepare import load_keys
    from cvmtool.flows.reporter import Stage

    is_image = source.startswith(("oci:", "oci-archive:"))
    if kind is not None and is_image is not (kind is ContentKind.CONTAINER):
        raise ConfigError(
            f"{source} is {'an' if is_image else 'no'} OCI image; --kind {kind.value} is another thing",
            hint="an image is named oci:DIR or oci-archive:FILE",
        )
    said = {"owner": owner, "sensitivity": sensitivity, "origin": origin, "handling": handling, "licence": licence}
    what = Source(reference=source, kind=ContentKind.CONTAINER if is_image else kind or ContentKind.TREE, digest=digest)
    parents = [found.header for found in map(read_pack, made_from or []) if found.header]
    if len(parents) != len(made_from or []):
        raise ConfigError("--made-from names a pack without a signed header", hint="pack it again first")
    reporter = TerminalReporter()
    with reporter.stage(Stage.PACK, f"sealing {source}"):
        header = pack_to_file(
            what,
            out,
            name=name or _name(Path(source.rpartition(":")[2] if is_image else source)),
            metadata=read_metadata(metadata, {key: str(value) for key, value in said.items() if value is not None}),
            made_from=parents,
            keys=load_keys(load_settings()),
            force=force,
            progress=reporter.progress,
        )
    if as_json:
        emit_schema("data-pack", path=str(out), pack=header.pack.to_json(), header=header.to_json())
    else:
        typer.echo(header.pack.root_hash)


@app.command()
def show(pack: _PackArgument, as_json: Json = False) -> None:
    """Show what is said of a pack, after verifying its signature. The pack's own bytes: `data verify`."""
    from cvmtool.cli.render import emit_schema
    from cvmtool.flows.packfile import read_pack

    found = read_pack(pack)
    if as_json:
        emit_schema("data-show", path=str(pack), pack=found.descriptor.to_json(), header=_header(found))
    else:
        _print(found)


@app.command()
def verify(pack: _PackArgument, as_json: Json = False) -> None:
    """Check every block of a pack against its header, and the header's signature (exit 5 if it is not genuine)."""
    from cvmtool.cli.render import TerminalReporter, emit_schema
    from cvmtool.flows.packfile import check_pack
    from cvmtool.flows.reporter import Stage

    reporter = TerminalReporter()
    with reporter.stage(Stage.PACK, f"checking {pack}"):
        found = check_pack(pack, progress=reporter.progress)
    if as_json:
        emit_schema("data-verify", path=str(pack), pack=found.descriptor.to_json(), header=_header(found))
    else:
        _print(found)


@app.command()
def rekey(pack: _PackArgument, as_json: Json = False) -> None:
    """Seal a pack anew in its place: another key, other ciphertext. The old one stays until the new one is whole."""
    from cvmtool.cli.render import TerminalReporter, emit_schema
    from cvmtool.config import load_settings
    from cvmtool.flows.packfile import rekey_pack
    from cvmtool.flows.prepare import load_keys
    from cvmtool.flows.reporter import Stage

    reporter = TerminalReporter()
    with reporter.stage(Stage.PACK, f"sealing {pack} anew"):
        found = rekey_pack(pack, keys=load_keys(load_settings()), progress=reporter.progress)
    if as_json:
        emit_schema("data-rekey", path=str(pack), pack=found.descriptor.to_json(), header=_header(found))
    else:
        _print(found)


@app.command("open")
def open_(
    pack: _PackArgument,
    *,
    out: Annotated[Path, typer.Option("--out", help="The new directory for the files, in clear.", metavar="DIR")],
    as_json: Json = False,
) -> None:
    """Bring the files of a pack of yours back, in clear."""
    from cvmtool.cli.render import TerminalReporter, emit_schema
    from cvmtool.config import load_settings
    from cvmtool.flows.packfile import open_pack
    from cvmtool.flows.prepare import load_keys
    from cvmtool.flows.reporter import Stage

    reporter = TerminalReporter()
    with reporter.stage(Stage.PACK, f"opening {pack}"):
        found, in_memory = open_pack(pack, out, keys=load_keys(load_settings()), progress=reporter.progress)
    if not in_memory:
        reporter.notice(f"the image had no room in memory; it was in a file without a name beside {out}, now gone")
    if as_json:
        emit_schema("data-open", path=str(out), root_hash=found.descriptor.root_hash, in_memory=in_memory)
    else:
        typer.echo(out)


def _print(found: PackFile) -> None:
    from cvmtool.cli.render import printable

    rows, header = dict(found.descriptor.to_json()), found.header
    if header is not None:
        rows |= header.metadata.to_json()
        rows |= {"kind": header.content.kind.value, "content": header.content.digest, "signed_by": header.owner_key}
        for step in header.lineage:
            made = ", ".join(f"{source.name} {source.root_hash[:16]}" for source in step.sources)
            rows[step.action.value] = f"{step.at} by {step.by}{' from ' + made if made else ''}"
    for key, value in rows.items():
        typer.echo(f"{key:<18} {printable(str(value))}")


def _header(found: PackFile) -> dict[str, object] | None:
    return found.header.to_json() if found.header else None


def _name(source: Path) -> str:
    """Make a pack's name of a file's: lower case, and what no name may hold becomes a dash."""
    lowered = source.resolve().name.lower()
    kept = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in lowered)
    return kept.strip("._-")[:64].strip("._-") or "data"

# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool data`: seal inputs into packs; look at packs, check them, seal them anew, open them.

Zone: cli.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvmtool.cli.options import Json
from cvmtool.formats.packheader import ContentKind, Sensitivity

if TYPE_CHECKING:
    from cvmtool.flows.packfile import PackFile

app = typer.Typer(help="Seal data into packs that only an attested guest opens.", no_args_is_help=True)

_PackArgument = Annotated[Path, typer.Argument(help="A pack file.", metavar="PACK")]
_Name = Annotated[str | None, typer.Option("--name", help="The pack's name in a job.")]
_MetadataFile = Annotated[
    Path | None, typer.Option("--metadata", help="What to say of it, as TOML; options win.", metavar="FILE")
]
_Owner = Annotated[str | None, typer.Option("--owner", help="Whose data it is, in words.")]
_Sensitivity = Annotated[Sensitivity | None, typer.Option("--sensitivity", help="Who would be hurt if it came out.")]
_Origin = Annotated[str | None, typer.Option("--origin", help="Where it comes from.")]
_Handling = Annotated[str | None, typer.Option("--handling", help="What may be done with it.")]
_Licence = Annotated[str | None, typer.Option("--licence", help="Under which licence it is.")]
_Force = Annotated[bool, typer.Option("--force", help="Replace a pack that is there.")]


@app.command()
def pack(
    source: Annotated[
        str, typer.Argument(help="A directory, a file, oci:DIR or oci-archive:FILE.", metavar="DIR", show_default=False)
    ],
    *,
    out: Annotated[Path, typer.Option("--out", help="The pack to write; its header goes beside it.", metavar="PACK")],
    name: _Name = None,
    kind: Annotated[
        ContentKind | None,
        typer.Option("--kind", help="What it is; a model is checked: safetensors, no pickle. [default: tree]"),
    ] = None,
    digest: Annotated[
        str | None, typer.Option("--digest", help="Of an image's manifest.", metavar="sha256:HEX")
    ] = None,
    signer: Annotated[
        Path | None,
        typer.Option("--signer", help="Of a model: public key (PEM) of who must have signed it.", metavar="FILE"),
    ] = None,
    metadata: _MetadataFile = None,
    owner: _Owner = None,
    sensitivity: _Sensitivity = None,
    origin: _Origin = None,
    handling: _Handling = None,
    licence: _Licence = None,
    made_from: Annotated[
        list[Path] | None, typer.Option("--made-from", help="A pack that it was made from.", metavar="PACK")
    ] = None,
    force: _Force = False,
    as_json: Json = False,
) -> None:
    """Seal a directory: compressed, encrypted (LUKS2), under a hash tree (dm-verity). Needs no root."""
    from cvmtool.cli.render import TerminalReporter, emit_schema
    from cvmtool.config import load_settings
    from cvmtool.errors import ConfigError
    from cvmtool.flows.models import check_folder
    from cvmtool.flows.packfile import Source, pack_to_file, read_metadata, read_pack
    from cvmtool.flows.prepare import load_keys
    from cvmtool.flows.reporter import Stage

    is_image = source.startswith(("oci:", "oci-archive:"))
    if kind is not None and is_image is not (kind is ContentKind.CONTAINER):
        raise ConfigError(
            f"{source} is {'an' if is_image else 'no'} OCI image; --kind {kind.value} is another thing",
            hint="an image is named oci:DIR or oci-archive:FILE",
        )
    if signer is not None and kind is not ContentKind.MODEL:
        raise ConfigError("--signer is given, and --kind model is not; who signed it is checked of models")
    said = _said(owner=owner, sensitivity=sensitivity, origin=origin, handling=handling, licence=licence)
    what = Source(reference=source, kind=ContentKind.CONTAINER if is_image else kind or ContentKind.TREE, digest=digest)
    parents = [found.header for found in map(read_pack, made_from or []) if found.header]
    if len(parents) != len(made_from or []):
        raise ConfigError("--made-from names a pack without a signed header", hint="pack it again first")
    reporter = TerminalReporter()
    keys = load_keys(load_settings())
    with reporter.stage(Stage.PACK, f"sealing {source}"):
        remark = check_folder(Path(source), signer=signer, keys=lambda: keys) if kind is ContentKind.MODEL else None
        if remark:
            reporter.notice(remark)
        header = pack_to_file(
            what,
            out,
            name=name or _name(Path(source.rpartition(":")[2] if is_image else source)),
            metadata=read_metadata(metadata, said),
            made_from=parents,
            keys=keys,
            force=force,
            progress=reporter.progress,
        )
    if as_json:
        emit_schema("data-pack", path=str(out), pack=header.pack.to_json(), header=header.to_json())
    else:
        typer.echo(header.pack.root_hash)


@app.command()
def scrub(
    source: Annotated[Path, typer.Argument(help="A directory or file, in clear.", metavar="SOURCE")],
    *,
    pipeline: Annotated[Path, typer.Option("--pipeline", help="What happens to it, as TOML.", metavar="FILE")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The pack to write; its header goes beside it.", metavar="PACK")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Say what would be changed, and write nothing.")] = False,
    name: _Name = None,
    metadata: _MetadataFile = None,
    owner: _Owner = None,
    sensitivity: _Sensitivity = None,
    origin: _Origin = None,
    handling: _Handling = None,
    licence: _Licence = None,
    force: _Force = False,
    as_json: Json = False,
) -> None:
    """Scrub a source on its way into a pack: drop, hash, tokenise, generalise, redact. No clear copy touches a disk."""
    from cvmtool.cli.render import TerminalReporter, emit_schema, print_table
    from cvmtool.config import load_settings
    from cvmtool.errors import ConfigError
    from cvmtool.flows.packfile import read_metadata
    from cvmtool.flows.prepare import load_keys
    from cvmtool.flows.reporter import Stage
    from cvmtool.flows.scrub import look_through, read_pipeline, scrub_to_file

    if (out is None) is not check:
        raise ConfigError("neither or both of --out and --check are given; required: one of them")
    said = _said(owner=owner, sensitivity=sensitivity, origin=origin, handling=handling, licence=licence)
    rules, keys, header = read_pipeline(pipeline), load_keys(load_settings()), None
    reporter = TerminalReporter()
    with reporter.stage(Stage.PACK, f"{'looking through' if check else 'scrubbing'} {source}"):
        if out is None:
            report = look_through(source, rules, keys=keys, progress=reporter.progress)
        else:
            header, report = scrub_to_file(
                source,
                rules,
                out,
                name=name or _name(source),
                metadata=read_metadata(metadata, said),
                keys=keys,
                force=force,
                progress=reporter.progress,
            )
    if as_json:
        emit_schema(
            "data-scrub",
            path=None if out is None else str(out),
            pipeline=rules.digest,
            content=report.digest,
            counts=[count.to_json() for count in report.counts],
            files=[file.to_json() for file in report.files],
            header=header.to_json() if header else None,
        )
        return
    print_table(("CHANGED", "RULE"), [(str(count.changed), count.rule) for count in report.counts], to=sys.stderr)
    typer.echo(header.pack.root_hash if header else report.digest)


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
            ending = f" from {made}" if made else ""
            ending += f", {sum(count.changed for count in step.counts)} changes" if step.counts else ""
            rows[step.action.value] = f"{step.at} by {step.by}{ending}"
            rows |= {"pipeline": step.pipeline} if step.pipeline else {}
            rows |= {f"  {count.rule}": str(count.changed) for count in step.counts}
    for key, value in rows.items():
        typer.echo(f"{key:<18} {printable(str(value))}")


def _said(**said: str | None) -> dict[str, str]:
    return {key: str(value) for key, value in said.items() if value is not None}


def _header(found: PackFile) -> dict[str, object] | None:
    return found.header.to_json() if found.header else None


def _name(source: Path) -> str:
    """Make a pack's name of a file's: lower case, and what no name may hold becomes a dash."""
    lowered = source.resolve().name.lower()
    kept = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in lowered)
    return kept.strip("._-")[:64].strip("._-") or "data"

# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool image`: build guest images and training containers, look at them, and prove that they can be built again.

Zone: cli.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from cvmtool.image.archive import Archive
    from cvmtool.image.bundle import Bundle

app = typer.Typer(
    help="Build guest images and training containers, and prove that they can be built again.", no_args_is_help=True
)

Json = Annotated[bool, typer.Option("--json", help="Write one JSON document to standard output.")]
Locked = Annotated[bool, typer.Option("--locked", help="Accept the packages of packages.lock and nothing else.")]
Mirror = Annotated[
    str | None, typer.Option("--mirror", help="Debian archive; apt's configuration by default.", metavar="URI")
]
Security = Annotated[str | None, typer.Option("--security-mirror", help="Debian security archive.", metavar="URI")]
BundleName = Annotated[
    str, typer.Argument(help="A guest image: its name, or the folder of its bundle.", metavar="BUNDLE")
]


@app.command()
def build(
    name: Annotated[str, typer.Argument(help="A folder of images/.", metavar="NAME")] = "base",
    *,
    out: Annotated[Path | None, typer.Option("--out", help="The bundle's folder.", metavar="DIR")] = None,
    locked: Locked = False,
    force: Annotated[bool, typer.Option("--force", help="Build even if nothing changed.")] = False,
    mirror: Mirror = None,
    security_mirror: Security = None,
    as_json: Json = False,
) -> None:
    """Build a guest image: firmware, kernel, initrd, root file system, and the launch digests that follow from them."""
    from cvmtool.cli.render import emit_schema
    from cvmtool.config import load_settings
    from cvmtool.flows.images import image_source, package_store
    from cvmtool.image.build import build_image

    settings = load_settings()
    with _stages() as (progress, notice):
        bundle = build_image(
            image_source(name),
            out or settings.bundles_dir / name,
            store=package_store(settings),
            find_archive=_archive_finder(mirror, security_mirror),
            locked=locked,
            force=force,
            progress=progress,
            notice=notice,
        )
    if as_json:
        emit_schema("image-build", **_as_json(bundle))
    else:
        _print(bundle)


@app.command("list")
def list_images(as_json: Json = False) -> None:
    """List the guest images that were built here."""
    from cvmtool.cli.render import emit_schema, print_table
    from cvmtool.config import load_settings
    from cvmtool.errors import CvmError
    from cvmtool.image.bundle import MANIFEST_FILE, load_bundle

    rows: list[dict[str, Any]] = []
    for path in sorted(load_settings().bundles_dir.glob(f"*/{MANIFEST_FILE}")):
        try:
            bundle = load_bundle(path.parent)
        except CvmError as error:
            rows.append({"name": path.parent.name, "state": "damaged", "why": error.message})
        else:
            size = sum(artefact.size for artefact in bundle.manifest.artefacts())
            rows.append({"name": path.parent.name, "state": "ok", "digest": bundle.digest, "size": size})
    if as_json:
        emit_schema("image-list", images=rows)
        return
    if not rows:
        typer.echo("no guest image yet: cvmtool image build base", err=True)
        return
    print_table(
        ("NAME", "STATE", "MIB", "MANIFEST SHA-256"),
        (
            (
                row["name"],
                row["state"],
                f"{row['size'] / (1 << 20):.1f}" if "size" in row else "",
                row.get("digest", row.get("why", "")),
            )
            for row in rows
        ),
    )


@app.command()
def show(bundle: BundleName, as_json: Json = False) -> None:
    """Show what a guest image is made of, after checking every file's SHA-256."""
    from cvmtool.cli.render import emit_schema

    loaded = _load(bundle)
    if as_json:
        emit_schema("image-show", **_as_json(loaded))
    else:
        _print(loaded)


@app.command()
def reproduce(
    bundle: BundleName,
    mirror: Mirror = None,
    security_mirror: Security = None,
    as_json: Json = False,
) -> None:
    """Build a guest image again, compare it byte for byte, and say what differs."""
    from cvmtool.cli.render import emit_schema
    from cvmtool.config import load_settings
    from cvmtool.errors import BuildError
    from cvmtool.flows.images import image_source, package_store
    from cvmtool.image.reproduce import reproduce_bundle

    standing = _load(bundle)
    with _stages() as (progress, notice):
        result = reproduce_bundle(
            standing,
            image_source(standing.manifest.name),
            store=package_store(load_settings()),
            find_archive=_archive_finder(mirror, security_mirror),
            progress=progress,
            notice=notice,
        )
    if as_json:
        emit_schema(
            "image-reproduce",
            bundle=str(standing.folder),
            identical=result.identical,
            differences=list(result.differences),
        )
    else:
        from rich.console import Console

        console = Console()
        for difference in result.differences:
            console.print(difference, markup=False, highlight=False)
        if result.identical:
            console.print(f"identical: {standing.digest}", highlight=False)
    if not result.identical:
        if as_json:
            raise typer.Exit(BuildError.exit_code)  # the one document says it
        raise BuildError(f"{bundle} is not what its inputs make: {len(result.differences)} differences; none may be")


@app.command()
def container(
    folder: Annotated[Path, typer.Argument(help="Folder with container.toml.", metavar="DIR")],
    *,
    out: Annotated[Path, typer.Option("--out", help="The oci-archive to write.", metavar="FILE")],
    pin: Annotated[
        Path | None, typer.Option("--pin", help="Write the digest into this job file.", metavar="JOB")
    ] = None,
    locked: Locked = False,
    mirror: Mirror = None,
    security_mirror: Security = None,
    as_json: Json = False,
) -> None:
    """Build a training container from Debian packages, the same bytes each time, and print its digest."""
    from cvmtool.cli.render import emit_schema
    from cvmtool.config import load_settings
    from cvmtool.flows.images import package_store
    from cvmtool.image.container import build_container

    with _stages() as (progress, notice):
        built = build_container(
            folder,
            out,
            store=package_store(load_settings()),
            find_archive=_archive_finder(mirror, security_mirror),
            locked=locked,
            progress=progress,
            notice=notice,
        )
        changed = pin is not None and _pin(pin, built.digest)
        if changed:
            notice(f"{pin}: container.digest is now {built.digest}")
    if as_json:
        emit_schema("image-container", image=f"oci-archive:{out}", digest=built.digest, pinned=changed)
    else:
        typer.echo(built.digest)


def _pin(path: Path, digest: str) -> bool:
    from cvmtool.config import write_atomic
    from cvmtool.errors import ConfigError
    from cvmtool.image.container import pin

    try:
        old = path.read_text("utf-8")
        mode = path.stat().st_mode & 0o777
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read", detail=str(error)) from error
    new = pin(old, digest)
    if new != old:
        write_atomic(path, new.encode(), mode=mode)
    return new != old


def _archive_finder(mirror: str | None, security: str | None) -> Callable[[], Archive]:
    def find() -> Archive:
        from cvmtool.image.archive import Archive, find_archive

        if mirror is None:
            return find_archive()
        return Archive(main=mirror.rstrip("/"), security=(security or f"{mirror.rstrip('/')}-security").rstrip("/"))

    return find


def _load(name: str) -> Bundle:
    from cvmtool.config import load_settings
    from cvmtool.image.bundle import MANIFEST_FILE, load_bundle

    path = Path(name)
    if "/" in name or (path / MANIFEST_FILE).is_file():
        return load_bundle(path)
    return load_bundle(load_settings().bundles_dir / name)


@contextmanager
def _stages() -> Iterator[tuple[Callable[[str], None], Callable[[str], None]]]:
    """Show the running stage on standard error, and each one's duration when it ends."""
    from rich.console import Console

    console = Console(stderr=True)
    started = time.monotonic()
    stage = ""

    def end() -> None:
        if stage and console.is_terminal:
            console.print(f"  {stage} [dim]{time.monotonic() - started:.1f} s[/dim]", highlight=False)

    with console.status("") as status:

        def progress(name: str) -> None:
            nonlocal stage, started
            end()
            stage, started = name, time.monotonic()
            status.update(name)

        def notice(text: str) -> None:
            console.print(f"notice: {text}", markup=False, highlight=False)

        yield progress, notice
    end()


def _as_json(bundle: Bundle) -> dict[str, Any]:
    return {"folder": str(bundle.folder), "digest": bundle.digest, "manifest": json.loads(bundle.manifest_bytes)}


def _print(bundle: Bundle) -> None:
    from cvmtool.formats.manifest import Mode

    image = bundle.manifest
    # Plain lines: a digest that is cut to fit a column is of no use.
    rows = [
        ("name", image.name),
        ("folder", str(bundle.folder)),
        ("manifest", f"sha256:{bundle.digest}"),
        ("kernel", image.kernel_release),
        ("command line", image.cmdline[Mode.PRODUCTION]),
        *((item.file, f"{item.size / (1 << 20):6.2f} MiB  sha256:{item.sha256}") for item in image.artefacts()),
    ]
    rows += [(f"{cpu}, 1 vCPU", digests[0]) for cpu, digests in image.launch_digests[Mode.PRODUCTION].items()]
    for key, value in rows:
        typer.echo(f"{key:<18} {value}")

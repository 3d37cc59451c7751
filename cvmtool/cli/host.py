# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool host`: the hosts that have a name, and what they keep.

Zone: cli.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvmtool.cli.options import Json

if TYPE_CHECKING:
    from cvmtool.flows.named import HostKey

app = typer.Typer(help="Name the hosts that machines run on, and look after what they keep.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The host's name.", metavar="NAME")]


@app.command()
def add(
    name: Name,
    uri: Annotated[str, typer.Argument(help="libvirt's URI, such as qemu+ssh://USER@HOST/system.", metavar="URI")],
    *,
    identity: Annotated[
        Path | None, typer.Option("--identity", help="A private SSH key; else the agent and your own.", metavar="FILE")
    ] = None,
    host_key: Annotated[
        str | None,
        typer.Option("--host-key", help="The fingerprint that the host must show.", metavar="SHA256:..."),
    ] = None,
    files: Annotated[
        str | None,
        typer.Option("--files", help="How files get there with qemu+tls.", metavar="sftp://USER@HOST"),
    ] = None,
    machines: Annotated[
        str | None, typer.Option("--machines", help="The host's directory for machines.", metavar="DIR")
    ] = None,
    accelerator: Annotated[
        str | None, typer.Option("--accelerator", help="kvm or qemu, in dry runs.", metavar="KIND")
    ] = None,
    as_json: Json = False,
) -> None:
    """Give a host a name. Its SSH key is shown, and compared or confirmed, before anything is said to it."""
    from dataclasses import asdict

    from cvmtool.cli.render import emit_schema, error_console
    from cvmtool.config import load_settings
    from cvmtool.flows.named import add_host, offered_key, settings_of

    settings = load_settings()
    target = settings_of(name, uri, identity=identity, machines=machines, files=files, accelerator=accelerator)
    with error_console().status("asking for the host's key"):
        key = offered_key(target, settings)
    if key is not None:
        _agree(key, host_key)
    with error_console().status("trying its libvirt"):
        added = add_host(target, key, settings)
    if as_json:
        emit_schema("host-add", **asdict(added))
    else:
        typer.echo(f"{name} added: {added.emulator} answers there; use it with --host {name}", err=True)


def _agree(key: HostKey, required: str | None) -> None:
    from cvmtool.errors import ConfigError
    from cvmtool.flows.named import require_fingerprint

    if required is not None:
        require_fingerprint(key, required)
        return
    typer.echo(f"{key.known_as} shows the key {key.fingerprint} ({key.kind})", err=True)
    if not sys.stdin.isatty():
        raise ConfigError(
            f"whether {key.fingerprint} is the key of {key.known_as} is for you to say; --host-key is required",
            hint="on the host: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub",
        )
    typer.echo("on the host, ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub shows what it must be", err=True)
    typer.confirm("is it the host's own?", abort=True, err=True)


@app.command("list")
def list_hosts(as_json: Json = False) -> None:
    """List the hosts that have a name. Nobody is asked."""
    from cvmtool.cli.render import emit_schema, print_table
    from cvmtool.config import load_settings

    settings = load_settings()
    hosts = [settings.hosts[name] for name in sorted(settings.hosts)]
    if as_json:
        rows = [
            {
                "name": host.name,
                "uri": host.uri,
                "identity": None if host.identity is None else str(host.identity),
                "known_hosts": str(host.known_hosts or settings.known_hosts),
                "machines": host.machines,
                "files": host.files,
                "accelerator": host.accelerator,
            }
            for host in hosts
        ]
        emit_schema("host-list", hosts=rows, chosen=settings.host)
        return
    if not hosts:
        typer.echo("no host has a name", err=True)
        return
    print_table(("HOST", "URI"), ((host.name, host.uri) for host in hosts))


@app.command()
def remove(name: Name, as_json: Json = False) -> None:
    """Forget a host that was added. What it keeps stays there; `cvmtool host gc` first empties it."""
    from cvmtool.cli.render import emit_schema
    from cvmtool.config import load_settings
    from cvmtool.flows.named import remove_host

    remove_host(name, load_settings())
    if as_json:
        emit_schema("host-remove", name=name)
    else:
        typer.echo(f"{name} removed", err=True)


@app.command()
def gc(
    name: Annotated[
        str | None, typer.Argument(help="A host's name or URI; by default the one of the settings.", metavar="HOST")
    ] = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Have the host hash what stays; what is damaged goes too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Remove from a host's store what no machine uses, and uploads that were given up a day ago."""
    from dataclasses import asdict

    from cvmtool.cli.render import emit_schema, error_console, print_table
    from cvmtool.config import load_settings
    from cvmtool.flows.named import collect_garbage

    with error_console().status("opening the host") as status:
        host, removed = collect_garbage(load_settings(host=name), verify=verify, dry_run=dry_run, step=status.update)
    total = sum(item.size for item in removed)
    if as_json:
        objects = [asdict(item) for item in removed]
        emit_schema("host-gc", host=host, dry_run=dry_run, objects=objects, bytes=total)
        return
    if removed:
        print_table(("OBJECT", "MIB", "WHY"), ((item.name[:16], f"{item.size >> 20}", item.why) for item in removed))
    typer.echo(f"{host}: {total >> 20} MiB {'would be' if dry_run else 'are'} free", err=True)

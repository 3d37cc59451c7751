# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Named hosts: add one with the key that it must show, try it, remove it; and what its store no longer needs.

Zone: flows. What is added lies in a directory of its own, so that no file that somebody wrote by hand is changed.
"""

from __future__ import annotations

import hmac
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from cvmtool.config import (
    HOST_FILE,
    HOST_NAME,
    KNOWN_HOSTS_FILE,
    HostSettings,
    Settings,
    private_dir,
    write_atomic,
)
from cvmtool.errors import ConfigError, HostError
from cvmtool.flows.hosts import open_host, ssh_access
from cvmtool.flows.records import records
from cvmtool.host.address import parse_remote
from cvmtool.host.store import Removed


@dataclass(frozen=True, slots=True, kw_only=True)
class HostKey:
    """The SSH key that a host shows: a claim, until its fingerprint is compared."""

    known_as: str
    kind: str
    fingerprint: str
    line: str
    """Of a known_hosts file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedHost:
    """A host that was added, and what it answered."""

    name: str
    uri: str
    fingerprint: str | None
    """None where nothing goes through SSH."""
    emulator: str


def offered_key(target: HostSettings, settings: Settings) -> HostKey | None:
    """Ask a host for its SSH key; None if it is this machine.

    Raises:
        ConfigError: the URI cannot be used.
        HostError: nothing answers.
    """
    from cvmtool.host.remote import fetch_host_key, fingerprint, known_hosts_line

    remote = parse_remote(target.uri)
    if remote is None:
        return None
    address = ssh_access(target, remote, settings).address
    kind, key = fetch_host_key(address)
    return HostKey(
        known_as=address.known_as,
        kind=kind,
        fingerprint=fingerprint(key),
        line=known_hosts_line(address, kind, key),
    )


def require_fingerprint(key: HostKey, required: str) -> None:
    """Compare the key that a host shows with the one that its operator names.

    Raises:
        HostError: it is another.
    """
    if not hmac.compare_digest(key.fingerprint.encode("utf-8"), required.rstrip("=").encode("utf-8")):
        raise HostError(
            f"the key of {key.known_as} is {key.fingerprint} ({key.kind}); {required[:80]} is required",
            hint="somebody else answers there, or the fingerprint is of a key of another kind",
        )


def add_host(target: HostSettings, key: HostKey | None, settings: Settings) -> AddedHost:
    """Write a host's settings and its key, and try it. One that cannot be reached is not kept.

    Raises:
        ConfigError: the name is taken, or none.
        HostError: its SSH or its libvirt does not answer.
    """
    if not HOST_NAME.fullmatch(target.name):
        raise ConfigError(
            f"a host's name is {target.name[:80]!r}; lower-case letters, digits, '.', '_' and '-' are required"
        )
    if target.name in settings.hosts:
        raise ConfigError(f"there is a host {target.name} already", hint=f"cvmtool host remove {target.name}")
    folder = private_dir(settings.hosts_dir / target.name)
    try:
        if key is not None:
            write_atomic(folder / KNOWN_HOSTS_FILE, key.line.encode("ascii"))
            target = replace(target, known_hosts=folder / KNOWN_HOSTS_FILE)
        write_atomic(folder / HOST_FILE, _toml(target).encode("utf-8"))
        host = open_host(replace(settings, host=target.name, hosts={target.name: target}))
        try:
            emulator = host.hypervisor.capabilities().emulator
            host.files.make_dir(host.machines)
        finally:
            host.close()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return AddedHost(
        name=target.name, uri=target.uri, fingerprint=None if key is None else key.fingerprint, emulator=emulator
    )


def _toml(target: HostSettings) -> str:
    values = {
        "uri": target.uri,
        "identity": target.identity,
        "known_hosts": KNOWN_HOSTS_FILE if target.known_hosts else None,
        "machines": target.machines,
        "files": target.files,
        "accelerator": target.accelerator,
    }
    # A JSON string that is not escaped beyond need is a TOML string.
    lines = [f"{key} = {json.dumps(str(value), ensure_ascii=False)}" for key, value in values.items() if value]
    return "# Written by cvmtool host add.\n" + "\n".join(lines) + "\n"


def remove_host(name: str, settings: Settings) -> None:
    """Forget a host that was added.

    Raises:
        ConfigError: it was not added, or machines of ours are on it.
    """
    if name not in settings.hosts:
        raise ConfigError(f"there is no host {name[:80]!r}", hint="cvmtool host list")
    folder = settings.hosts_dir / name
    if not (folder / HOST_FILE).exists():
        raise ConfigError(f"host {name} is a table [hosts.{name}] of a cvmtool.toml; it is removed by hand")
    there = [record.name for record in records(settings.records_dir) if record.host == name]
    if there:
        raise ConfigError(f"machines of ours are on {name}: {', '.join(there)}", hint=f"cvmtool vm destroy {there[0]}")
    for path in (folder / HOST_FILE, folder / KNOWN_HOSTS_FILE):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # somebody keeps something else there
        folder.rmdir()


def collect_garbage(
    settings: Settings, *, verify: bool, dry_run: bool, step: Callable[[str], None]
) -> tuple[str, list[Removed]]:
    """Remove from a host's store what no machine uses; return the host's name and what went.

    Raises:
        HostError: the host does not answer.
    """
    host = open_host(settings)
    removed = []
    try:
        step(f"looking at the store of {host.name}")
        for item in host.store.collect(verify=verify, dry_run=dry_run):
            step(f"{item.name[:12]}: {item.why}")
            removed.append(item)
    finally:
        host.close()
    return host.name, removed


def settings_of(
    name: str,
    uri: str,
    *,
    identity: Path | None,
    machines: str | None,
    files: str | None,
    accelerator: str | None,
) -> HostSettings:
    """Return what the command line says of a host.

    Raises:
        ConfigError: a value cannot be used.
    """
    if identity is not None and not identity.expanduser().is_file():
        raise ConfigError(
            f"identity {identity} is no file; a private SSH key is required", hint="ssh-keygen -t ed25519"
        )
    if machines is not None and not machines.startswith("/"):
        raise ConfigError(f"machines is {machines!r}; an absolute path of the host is required")
    if accelerator not in (None, "kvm", "qemu"):
        raise ConfigError(f"accelerator is {accelerator!r}; kvm or qemu is required")
    return HostSettings(
        name=name,
        uri=uri,
        identity=None if identity is None else identity.expanduser().absolute(),
        machines=machines,
        files=files,
        accelerator=accelerator,
    )

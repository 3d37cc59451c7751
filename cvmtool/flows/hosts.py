# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Open a host: its libvirt and its files, here or elsewhere.

Zone: flows.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cvmtool.config import (
    LIBVIRT_LOG_FILE,
    HostSettings,
    Settings,
    forget_foreign_runtime_dir,
    private_dir,
    session_dirs,
    write_atomic,
)
from cvmtool.errors import ConfigError
from cvmtool.host.address import SSH_TRANSPORTS, RemoteUri, parse_remote, parse_sftp
from cvmtool.host.embedded import embedded_root
from cvmtool.host.files import HostFiles, LocalFiles
from cvmtool.host.hypervisor import Hypervisor, choose_uri
from cvmtool.host.storage import MachineDir
from cvmtool.host.store import Store

if TYPE_CHECKING:
    from cvmtool.host.remote import SshAccess


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """An open host."""

    name: str
    """As the settings name it: a named host, or a libvirt URI."""
    uri: str
    hypervisor: Hypervisor
    files: HostFiles
    machines: str
    """Its directory of machines."""
    store: Store
    local: bool
    """It is this machine."""
    accelerator: str | None = None
    """libvirt's domain type in dry runs, if the settings say."""

    @property
    def privileged(self) -> bool:
        """Its libvirt runs as root, and gives the files of a machine to QEMU's user unless it is told not to."""
        if embedded_root(self.uri) is not None:
            return os.geteuid() == 0
        return self.uri.partition("?")[0].endswith("/system")

    def directory(self, machine: str) -> MachineDir:
        """Return a machine's directory on it.

        Raises:
            ConfigError: no machine can have the name.
        """
        return MachineDir(self.files, self.machines, machine)

    def close(self) -> None:
        """Disconnect."""
        self.hypervisor.close()
        self.files.close()


OpenHost = Callable[[Settings], Host]


def open_host(settings: Settings) -> Host:
    """Connect to the host of the settings; None chooses one on this machine.

    Raises:
        HostError: it does not answer, or with another SSH key than the known one.
        ConfigError: there is no such host, its settings do not suffice, or libvirt-python is missing.
    """
    forget_foreign_runtime_dir()
    target = settings.target()
    remote = None if target is None else parse_remote(target.uri)
    return _open_local(target, settings) if target is None or remote is None else _open_remote(target, remote, settings)


def _open_local(target: HostSettings | None, settings: Settings) -> Host:
    runtime, config = session_dirs()
    uri = target.uri if target else choose_uri(uid=os.geteuid(), runtime=runtime, config=config)
    hypervisor = Hypervisor.open(uri, log=_log(settings))
    files = LocalFiles()
    machines = (target.machines if target else None) or str(settings.machines_dir.absolute())
    return Host(
        name=target.name if target else uri,
        uri=uri,
        hypervisor=hypervisor,
        files=files,
        machines=machines,
        store=_store(files, machines, settings),
        local=True,
        accelerator=target.accelerator if target else None,
    )


def ssh_access(target: HostSettings, remote: RemoteUri, settings: Settings) -> SshAccess:
    """Return how a remote host is reached for its files, and by libvirt too where that goes through SSH.

    Raises:
        ConfigError: the settings do not say.
    """
    from cvmtool.host.remote import SshAccess

    if remote.transport not in SSH_TRANSPORTS and target.files is None:
        raise ConfigError(
            f"host {target.name[:80]} is reached by {remote.transport}, which carries no files; files is required",
            hint='[hosts.NAME] in cvmtool.toml: files = "sftp://USER@HOST"',
        )
    return SshAccess(
        address=parse_sftp(target.files) if target.files else remote.address,
        known_hosts=target.known_hosts or settings.known_hosts,
        identity=target.identity,
    )


def _open_remote(target: HostSettings, remote: RemoteUri, settings: Settings) -> Host:
    # paramiko is slow to import, and a local run needs none of it before its guest answers.
    from cvmtool.host.remote import RemoteFiles, connection_uri

    access = ssh_access(target, remote, settings)

    def write_wrapper(text: str) -> Path:
        folder = private_dir(settings.ssh_dir)
        path = folder / hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]
        write_atomic(path, text.encode("utf-8"), mode=0o700)
        return path

    files = RemoteFiles(access)
    try:
        through_ssh = access if remote.transport in SSH_TRANSPORTS else None
        uri = connection_uri(remote, through_ssh, write_wrapper=write_wrapper)
        hypervisor = Hypervisor.open(uri, log=_log(settings))
        machines = target.machines or (
            f"{files.home}/.local/state/cvmtool/machines" if remote.session else "/var/lib/cvmtool/machines"
        )
    except BaseException:
        files.close()
        raise
    return Host(
        name=target.name,
        uri=target.uri,
        hypervisor=hypervisor,
        files=files,
        machines=machines,
        store=_store(files, machines, settings),
        local=False,
        accelerator=target.accelerator,
    )


def _log(settings: Settings) -> Path:
    return private_dir(settings.state_dir) / LIBVIRT_LOG_FILE


def _store(files: HostFiles, machines: str, settings: Settings) -> Store:
    # Two computers, or two accounts of one, never write the same half of an object.
    whose = f"{platform.node()}\0{os.geteuid()}\0{settings.state_dir.absolute()}"
    uploader = hashlib.sha256(whose.encode("utf-8")).hexdigest()[:12]
    return Store(files, machines, uploader=uploader, locks=private_dir(settings.locks_dir))

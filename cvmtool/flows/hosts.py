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

from cvmtool.config import LIBVIRT_LOG_FILE, Settings, forget_foreign_runtime_dir, private_dir, session_dirs
from cvmtool.host.files import HostFiles, LocalFiles
from cvmtool.host.hypervisor import Hypervisor, choose_uri
from cvmtool.host.storage import MachineDir
from cvmtool.host.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """An open host."""

    name: str
    """As the settings name it: a libvirt URI, or the name of one."""
    uri: str
    hypervisor: Hypervisor
    files: HostFiles
    machines: str
    """Its directory of machines."""
    store: Store
    local: bool
    """It is this machine."""

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
        HostError: it does not answer.
        ConfigError: libvirt-python is missing.
    """
    forget_foreign_runtime_dir()
    runtime, config = session_dirs()
    uri = settings.host or choose_uri(uid=os.geteuid(), runtime=runtime, config=config)
    hypervisor = Hypervisor.open(uri, log=private_dir(settings.state_dir) / LIBVIRT_LOG_FILE)
    files = LocalFiles()
    machines = str(settings.machines_dir.absolute())
    return Host(
        name=settings.host or uri,
        uri=uri,
        hypervisor=hypervisor,
        files=files,
        machines=machines,
        store=_store(files, machines, settings),
        local=True,
    )


def _store(files: HostFiles, machines: str, settings: Settings) -> Store:
    # Two computers, or two accounts of one, never write the same half of an object.
    whose = f"{platform.node()}\0{os.geteuid()}\0{settings.state_dir.absolute()}"
    uploader = hashlib.sha256(whose.encode("utf-8")).hexdigest()[:12]
    return Store(files, machines, uploader=uploader, locks=private_dir(settings.locks_dir))

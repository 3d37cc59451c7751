# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Machines without a job for scenario tests, with disks that the tests, as the host, may read and change."""

from __future__ import annotations

import secrets
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import paramiko

from cvmtool.cli.render import JsonReporter
from cvmtool.config import Settings
from cvmtool.flows.attach import Attached, Challenge, attach
from cvmtool.flows.hostile import hostile
from cvmtool.flows.launch import Launch
from cvmtool.flows.machine import Machine, start_machine
from cvmtool.flows.platform import DryRun
from cvmtool.flows.prepare import load_keys
from cvmtool.flows.train import BOOT_SECONDS, job_policy
from cvmtool.formats.control import Op
from cvmtool.formats.job import Resources
from cvmtool.formats.machine import MachineManifest
from cvmtool.formats.manifest import Mode
from cvmtool.formats.policybits import GuestPolicy
from cvmtool.formats.release import Secrets
from cvmtool.formats.volume import Volume
from cvmtool.formats.wire import JsonObject, to_base64
from cvmtool.image.bundle import Bundle
from cvmtool.owner.epochs import History
from cvmtool.owner.seal import seal

RESOURCES = Resources(vcpus=1, memory_mib=1024, cpu="EPYC-Genoa")
_POLICY = GuestPolicy(0x30000)


def new_volume(name: str, *, create: bool = True) -> Volume:
    return Volume(name=name, luks_uuid=str(uuid.uuid4()), size=256 << 20, create=create)


@dataclass(kw_only=True)
class Workbench:
    """One owner's machine: its image, its volumes, the disks that carry them and what the owner knows of their states."""

    settings: Settings
    bundle: Bundle
    platform: DryRun
    folder: Path
    volumes: tuple[Volume, ...]
    shell: bool = True
    history: dict[str, History] = field(default_factory=dict)
    salt: str = field(default_factory=lambda: secrets.token_hex(32))

    @property
    def manifest(self) -> MachineManifest:
        return MachineManifest(
            name="workbench",
            salt=self.salt,
            owner_key=load_keys(self.settings).public.hex(),
            volumes=self.volumes,
            shell=self.shell,
            resources=RESOURCES,
        )

    def disk(self, volume: Volume) -> Path:
        """Return the disk of a volume; blank at first."""
        path = self.folder / f"{volume.name}.img"
        if not path.exists():
            with path.open("wb") as file:
                file.truncate(volume.size)
        return path

    def start(self) -> Machine:
        launch = Launch(
            label="workbench",
            bundle=self.bundle,
            mode=Mode.DRYRUN,
            host_data=self.manifest.host_data,
            policy=_POLICY,
            resources=RESOURCES,
            packs=(),
        )
        return start_machine(
            f"workbench-{secrets.token_hex(4)}",
            launch,
            settings=self.settings,
            reporter=JsonReporter(),
            open_host=hostile(lambda _live, xml, _files: self._with_disks(xml)),
        )

    def _with_disks(self, xml: str) -> str:
        root = ET.fromstring(xml)
        devices = root.find("devices")
        assert devices is not None
        for index, volume in enumerate(self.volumes):
            disk = ET.SubElement(devices, "disk", type="file", device="disk")
            ET.SubElement(disk, "driver", name="qemu", type="raw", cache="none")
            ET.SubElement(disk, "source", file=str(self.disk(volume)))
            ET.SubElement(disk, "target", dev=f"vd{chr(ord('p') + index)}", bus="virtio")
            ET.SubElement(disk, "serial").text = volume.serial
        return ET.tostring(root, encoding="unicode")

    @property
    def challenge(self) -> Challenge:
        manifest = cast("Any", self.manifest)  # flows know jobs; what a challenge needs of a manifest both kinds have
        return Challenge(
            keys=load_keys(self.settings),
            manifest=manifest,
            policy=job_policy(self.bundle, manifest, self.platform),
            cases_dir=self.settings.cases_dir,
            boot_seconds=BOOT_SECONDS,
        )

    @contextmanager
    def attach(self, machine: Machine) -> Iterator[Attached]:
        with attach(machine, self.challenge, self.platform, stage=lambda _stage, _text: nullcontext()) as attached:
            yield attached

    def configure(self, attached: Attached) -> None:
        attached.channel.request(Op.CONFIGURE, manifest=to_base64(self.manifest.encode()), certificates="")

    def release(self, attached: Attached) -> JsonObject:
        """Begin a state of every volume, release what opens it, and acknowledge the state when the guest has written it."""
        keys = load_keys(self.settings)
        for volume in self.volumes:
            self._begin(volume)
        released = {
            volume.luks_uuid: self.history[volume.name].secret(keys.volume_passphrase(volume.luks_uuid))
            for volume in self.volumes
        }
        sealed = seal(attached.guest, Secrets(volumes=released), manifest=self.manifest)
        answer = attached.channel.request(Op.RELEASE, sealed=to_base64(sealed))
        self._acknowledge()
        return answer

    def commit(self, attached: Attached, *, heard: bool = True) -> None:
        """Have every volume written and marked. `heard`: whether the answer reaches the owner."""
        for volume in self.volumes:
            self._begin(volume)
        epochs = {name: history.next.to_json() for name, history in self.history.items()}
        attached.channel.request(Op.COMMIT, epochs=epochs)
        if heard:
            self._acknowledge()

    def _begin(self, volume: Volume) -> None:
        known = self.history.get(volume.name, History())
        self.history[volume.name] = known.begin(secrets.token_bytes(32))

    def _acknowledge(self) -> None:
        self.history = {name: history.acknowledge() for name, history in self.history.items()}


def run(attached: Attached, command: str, *, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
    """Run a command in the guest's shell; return exit code, output and errors."""
    session = transport(attached).open_session(timeout=60)
    session.settimeout(120)
    session.exec_command(command)
    session.sendall(stdin)
    session.shutdown_write()
    output, errors = session.makefile("rb").read(), session.makefile_stderr("rb").read()
    code = session.recv_exit_status()
    session.close()
    return code, output, errors


def transport(attached: Attached) -> paramiko.Transport:
    return attached.channel._ssh()

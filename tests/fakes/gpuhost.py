# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A host of machines with GPUs: a libvirt that starts the guest's own code in this process, and GPUs that it plugs in as it likes.

What is not real: libvirt and QEMU between owner and guest, the disks, AMD and NVIDIA. NVIDIA's Python binding is its own, on a
libnvidia-ml of ours (tests/fakes/nvml.c).
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cvmtool.config import Settings, private_dir
from cvmtool.errors import HostError
from cvmtool.flows.hosts import Host
from cvmtool.flows.prepare import load_keys
from cvmtool.flows.vmrecords import POLICY_FILE, load_vm
from cvmtool.formats.control import CONTROL_ADDRESS
from cvmtool.formats.machine import MachineManifest
from cvmtool.formats.release import VolumeSecret
from cvmtool.formats.volume import Volume
from cvmtool.guest.console import Console
from cvmtool.guest.control import ControlService
from cvmtool.guest.life import Life
from cvmtool.guest.machine import Hands, Machine
from cvmtool.guest.shell import Shell
from cvmtool.guest.volumes import Opened, Places
from cvmtool.host.capabilities import HostCapabilities
from cvmtool.host.events import Event, Happening
from cvmtool.host.files import LocalFiles
from cvmtool.host.hypervisor import MachineState
from cvmtool.host.live import LiveDomain, parse_live_domain
from cvmtool.host.store import Store
from cvmtool.owner.policyfile import encode_policy
from tests.fakes.guest import FakeGuest
from tests.fakes.kernel import OtherKernel
from tests.fakes.nvidia import FakeGpu
from tests.fakes.running import Agent

ABLE = HostCapabilities(
    emulator="/usr/bin/qemu-system-x86_64",
    machine="pc-q35-10.0",
    cpus=frozenset({"EPYC-Genoa"}),
    launch_security=frozenset({"sev-snp"}),
    cbitpos=51,
    reduced_phys_bits=1,
    max_es_guests=99,
)


class GpuGuest(FakeGuest):
    """One boot of a machine's guest. Its driver has whatever GPUs its host plugs in when a session begins."""

    def __init__(self, folder: Path, manifest: MachineManifest, plug: Callable[[bytes], None]) -> None:
        super().__init__(folder, manifest)  # type: ignore[arg-type]
        self._plug = plug
        self.keys_of: dict[str, bytes] = {}
        """The passphrase of each volume that was opened, by name."""
        hands = Hands(
            load_modules=lambda: None,
            open_volume=self._open_volume,
            commit=lambda opened, epoch, _places: Opened(volume=opened.volume, epoch=epoch, created=False, errors={}),
            is_damaged=lambda _opened, _places: False,
            close_volume=lambda _volume, _places: None,
        )
        places = Places(whole=folder / "whole", volumes=folder / "volumes")
        self.life = Life(
            self.keys,
            lambda: self._current,
            Console(folder / "console"),
            make_job=lambda *_: pytest.fail("this is no job"),
            make_machine=lambda manifest: Machine(manifest, Shell(allowed=False), places=places, hands=hands),
            kernel=OtherKernel(),
        )

    def answer(self, challenge):
        evidence = super().answer(challenge)
        self._plug(self._current.report_data)
        return evidence

    def _open_volume(self, volume: Volume, secret: VolumeSecret, _places: Places) -> Opened:
        self.keys_of[volume.name] = bytes(secret.passphrase)
        return Opened(volume=volume, epoch=secret.next, created=False, errors={})


class GpuHost:
    """A host, with the libvirt on it. `driver`: the directory that the guest's libnvidia-ml reads."""

    uri = "qemu:///system"
    alive = True

    def __init__(self, settings: Settings, folder: Path, driver: Path) -> None:
        self._settings = settings
        self._folder = folder
        self._driver = driver
        self.gpus: tuple[FakeGpu, ...] = ()
        """What it plugs in."""
        self.replay: bytes | None = None
        """REPORT_DATA of another session, whose evidence it gives."""
        self.xml = ""
        self.boots: list[Agent] = []
        self._name = ""
        self._state = MachineState.STOPPED
        self._listeners: list[Callable[[Event], None]] = []
        self.events = self

    # ---- what the owner's side calls ---------------------------------------------------------------------------------

    def open(self, settings: Settings) -> Host:
        machines = str(self._settings.machines_dir)
        return Host(
            name=settings.host or self.uri,
            uri=self.uri,
            hypervisor=self,  # type: ignore[arg-type]
            files=LocalFiles(),
            machines=machines,
            store=Store(
                LocalFiles(), machines, uploader="0" * 12, locks=private_dir(self._settings.state_dir / "locks")
            ),
            local=True,
        )

    def close(self) -> None:
        pass

    def capabilities(self, **_given: str) -> HostCapabilities:
        return ABLE

    def version(self) -> tuple[int, int, int]:
        return 11, 3, 0

    def define(self, xml: str) -> None:
        self.xml = xml

    def defined(self, _name: str) -> LiveDomain:
        return parse_live_domain(self.xml)

    def state(self, name: str) -> MachineState:
        if not self.boots:
            raise HostError(f"there is no {name}")
        return self._state

    def start(self, name: str) -> None:
        folder = self._folder / str(len(self.boots))
        vm = load_vm(self._settings.vms_dir, name)
        guest = GpuGuest(folder, vm.manifest(), self._plug)
        vm.write(POLICY_FILE, encode_policy(guest.policy()).encode())  # the image of the tests cannot be measured
        (self._driver / "state").write_bytes(bytes((1, 0, 0)))
        service = ControlService(guest.life, self._power_off, address=("127.0.0.1", 0))
        owner = load_keys(self._settings).public
        self.boots.append(Agent(guest, folder, {CONTROL_ADDRESS: service}, {owner: CONTROL_ADDRESS}))
        self._state = MachineState.RUNNING

    def destroy(self, _name: str) -> bool:
        ran, self._state = self._state is MachineState.RUNNING, MachineState.STOPPED
        return ran

    def open_port(self, _name: str, _port: str) -> socket.socket:
        ours, theirs = socket.socketpair()
        threading.Thread(target=self.boots[-1].serve, args=(theirs,), daemon=True).start()
        return ours

    @contextmanager
    def listen(self, _name: str, put: Callable[[Event], None]) -> Iterator[None]:
        self._listeners.append(put)
        yield
        self._listeners.remove(put)

    @contextmanager
    def gather(self, name: str) -> Iterator[queue.SimpleQueue[Event]]:
        happened: queue.SimpleQueue[Event] = queue.SimpleQueue()
        with self.listen(name, happened.put):
            yield happened

    # ---- what happens at the host ------------------------------------------------------------------------------------

    @property
    def guest(self) -> GpuGuest:
        """The guest that runs."""
        guest = self.boots[-1].guest
        assert isinstance(guest, GpuGuest)
        return guest

    @property
    def works(self) -> bool:
        """Whether the guest's driver lets its GPUs take work."""
        return self._driver.joinpath("state").read_bytes()[2] == 1

    def die(self, state: MachineState = MachineState.CRASHED, what: Happening = Happening.DIED) -> None:
        """Have QEMU end."""
        self._state = state
        self.boots[-1].cut()
        for put in tuple(self._listeners):
            put(Event(what=what))

    def _power_off(self) -> None:
        self.die(MachineState.STOPPED, Happening.ENDED)

    def _plug(self, report_data: bytes) -> None:
        (self._driver / "count").write_bytes(bytes([len(self.gpus)]))
        for index, gpu in enumerate(self.gpus):
            evidence = gpu.evidence(self.replay or report_data, index)
            (self._driver / f"{index}.report").write_bytes(evidence.report)
            (self._driver / f"{index}.pem").write_bytes(evidence.certificates)

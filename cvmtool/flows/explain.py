# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What this machine knows that somebody may have launched instead: the guest images that were built here.

Zone: flows. Reads manifests, and a firmware whose seed is not kept yet. Nothing here is a decision.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cvmtool.config import Settings
from cvmtool.errors import CvmError
from cvmtool.flows.seeds import SeedStore
from cvmtool.formats.manifest import MAX_MANIFEST, ImageManifest, Mode, parse_image_manifest
from cvmtool.image.bundle import MANIFEST_FILE, Bundle
from cvmtool.measure.deviations import (
    Deviation,
    Launch,
    Part,
    boot_files,
    command_line,
    command_lines,
    virtual_cpus,
)
from cvmtool.measure.explain import Expectation
from cvmtool.measure.hashes import KernelHashes
from cvmtool.measure.launch import FirmwareSeed
from cvmtool.measure.vmsa import Vmm, cpu_signature

_MODE_NAMES = {Mode.PRODUCTION: "the command line of production", Mode.DRYRUN: "the command line of dry runs"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What of a launch does not come from files. `cpu`: a QEMU model, or CPUID leaf 1 EAX."""

    cpu: str | int
    vcpus: int
    guest_features: int
    vmm: Vmm


@dataclass(frozen=True, slots=True, kw_only=True)
class Files:
    """What of the expected launch comes from files; `image` is the guest image that they are of, if it is one.

    `others` are command lines that the same image offers besides.
    """

    firmware: FirmwareSeed
    hashes: KernelHashes | None
    cmdline: str
    mode: Mode | None = None
    image: str | None = None
    others: tuple[Deviation, ...] = ()

    def expected(self, machine: Machine) -> Expectation:
        """Return the launch of these files on a machine.

        Raises:
            ConfigError: the CPU model is unknown.
        """
        launch = Launch(
            firmware=self.firmware,
            # Without a kernel neither of the others is measured.
            kernel=None if self.hashes is None else self.hashes.kernel,
            initrd=b"" if self.hashes is None else self.hashes.initrd,
            cmdline=b"" if self.hashes is None else self.hashes.cmdline,
            cpu=cpu_signature(machine.cpu),
            guest_features=machine.guest_features,
            vmm=machine.vmm,
            vcpus=machine.vcpus,
        )
        return Expectation(launch=launch, names=self._names())

    def _names(self) -> dict[Part, str]:
        whole = "the given files" if self.image is None else f"guest image {self.image}"
        line = "the given one" if self.mode is None else f"{_MODE_NAMES[self.mode]} of {whole}"
        of_image = "the given one" if self.image is None else f"that of {whole}"
        return {
            **dict.fromkeys((Part.FIRMWARE, Part.KERNEL, Part.INITRD), of_image),
            Part.CMDLINE: line,
            Part.MODE: line,
            Part.IMAGE: whole,
        }


def seed_store(settings: Settings) -> SeedStore:
    """Return the kept seeds."""
    return SeedStore(settings.seeds_dir)


def files_of_image(bundle: Bundle, mode: Mode, seeds: SeedStore) -> Files:
    """Return what a guest image launches, whose files were checked against its manifest.

    Raises:
        ConfigError, FormatError: its firmware cannot be read, or is none.
    """
    manifest = bundle.manifest
    hashes = KernelHashes(
        kernel=bytes.fromhex(manifest.kernel.sha256),
        initrd=bytes.fromhex(manifest.initrd.sha256),
        cmdline=_cmdline_hash(manifest.cmdline[mode]),
    )
    others = (
        Deviation(part=Part.MODE, actual=_MODE_NAMES[other], values={"cmdline": _cmdline_hash(manifest.cmdline[other])})
        for other in Mode
        if other is not mode
    )
    return Files(
        firmware=seeds.seed_of_file(bundle.firmware, manifest.firmware.sha256),
        hashes=hashes,
        cmdline=manifest.cmdline[mode],
        mode=mode,
        image=bundle.folder.name,
        others=tuple(others),
    )


def suspects(files: Files, processor: int | None, settings: Settings, seeds: SeedStore) -> tuple[Deviation, ...]:
    """Return everything that may be another than expected, likely ones first. `processor`: its CPUID signature, if known."""
    lines = () if files.hashes is None else command_lines(files.cmdline)
    return (*files.others, *virtual_cpus(processor), *boot_files(), *lines, *built_here(settings, seeds))


def built_here(settings: Settings, seeds: SeedStore) -> Iterator[Deviation]:
    """Yield what every guest image of this machine offers: its files, its command lines, and the whole of it.

    What is malformed or damaged is passed over: it is no suspect that could be named.
    """
    for path in sorted(settings.bundles_dir.glob(f"*/{MANIFEST_FILE}")):
        try:
            with path.open("rb") as file:
                manifest = parse_image_manifest(file.read(MAX_MANIFEST + 1))
            firmware = seeds.seed_of_file(path.parent / manifest.firmware.file, manifest.firmware.sha256)
        except (OSError, CvmError):
            continue
        yield from _offered(path.parent, manifest, firmware)


def _offered(folder: Path, manifest: ImageManifest, firmware: FirmwareSeed) -> Iterator[Deviation]:
    image = f"guest image {folder.name}"
    files: tuple[tuple[Part, bytes | FirmwareSeed], ...] = (
        (Part.KERNEL, bytes.fromhex(manifest.kernel.sha256)),
        (Part.INITRD, bytes.fromhex(manifest.initrd.sha256)),
        (Part.FIRMWARE, firmware),
    )
    for part, value in files:
        yield Deviation(part=part, actual=f"the {part} of {image}", values={str(part): value})
    for mode in Mode:
        yield command_line(manifest.cmdline[mode], f"{_MODE_NAMES[mode]} of {image}")
        whole: dict[str, bytes | FirmwareSeed] = {str(part): value for part, value in files}
        whole["cmdline"] = _cmdline_hash(manifest.cmdline[mode])
        yield Deviation(part=Part.IMAGE, actual=f"{image} and {_MODE_NAMES[mode]}", values=whole)


def _cmdline_hash(line: str) -> bytes:
    return hashlib.sha256(line.encode() + b"\0").digest()

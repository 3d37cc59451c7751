# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""What a launch digest is worked out from, as `cvmtool measure` is told it: options, files, images by folder or name.

Zone: cli.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvmtool.cli.files import read_file
from cvmtool.errors import ConfigError

if TYPE_CHECKING:
    from cvmtool.formats.job import Resources
    from cvmtool.formats.manifest import Mode
    from cvmtool.image.bundle import Bundle
    from cvmtool.measure.hashes import KernelHashes
    from cvmtool.measure.launch import FirmwareSeed
    from cvmtool.measure.vmsa import Vmm

MAX_FILE_BYTES = 1 << 31
"""Of a kernel or initrd; QEMU maps both below 4 GiB."""

DEFAULT_CPU = "EPYC-Genoa"

Json = Annotated[bool, typer.Option("--json", help="Write one JSON document to standard output.")]
BundleFolder = Annotated[Path, typer.Argument(help="The folder of a guest image.", metavar="BUNDLE")]
Cpu = Annotated[
    str | None, typer.Option("--cpu", help="QEMU CPU model, or CPUID leaf 1 EAX as 0x hex.", metavar="MODEL")
]
Features = Annotated[str, typer.Option("--guest-features", help="SEV_FEATURES of the guest, 0x hex.", metavar="HEX")]
FirmwareFile = Annotated[Path | None, typer.Option("--firmware", help="Firmware image, such as OVMF.amdsev.fd.")]
SeedFile = Annotated[
    Path | None, typer.Option("--seed", help="Instead of the firmware: what `measure seed` wrote of it.")
]
KernelFile = Annotated[Path | None, typer.Option("--kernel", help="Kernel, as given to QEMU.")]
InitrdFile = Annotated[Path | None, typer.Option("--initrd", help="Initrd.")]
CommandLine = Annotated[str, typer.Option("--cmdline", help="Command line, exactly as given to QEMU.")]
VcpusOfJob = Annotated[int | None, typer.Option("--vcpus", help="Virtual CPUs; those of JOB, or 1.", min=1)]
JobFile = Annotated[Path | None, typer.Option("--job", help="A job file, for its CPUs.")]
Trace = Annotated[
    bool, typer.Option("--trace", help="Show the pages of each type, and the digest after each run of them.")
]
VmmName = Annotated[str, typer.Option("--vmm", help="qemu, qemu-legacy, ec2, ec2-rdx0 or gce.", metavar="VMM")]


def firmware_or_seed(image: Path | None, seed: Path | None) -> bytes | FirmwareSeed:
    """Return the firmware image, or the seed that stands for it.

    Raises:
        ConfigError: neither or both are given, or the file cannot be read.
        FormatError: the seed is malformed.
    """
    from cvmtool.errors import ConfigError

    if image is not None and seed is None:
        return read_file(image, most=MAX_FILE_BYTES)
    if seed is not None and image is None:
        from cvmtool.measure.seed import parse_seed

        return parse_seed(read_file(seed, most=MAX_FILE_BYTES))
    raise ConfigError("neither or both of --firmware and --seed are given; required: one of them")


def file_hashes(kernel: Path | None, initrd: Path | None, cmdline: str) -> KernelHashes | None:
    """Return the hashes of what a machine boots, None without a kernel.

    Raises:
        ConfigError: a file cannot be read, or an initrd or a command line is given without a kernel.
    """
    from cvmtool.measure.hashes import kernel_hashes

    if kernel is None:
        if initrd is not None or cmdline:
            raise ConfigError("an initrd or a command line is given without a kernel; required: --kernel")
        return None
    return kernel_hashes(
        read_file(kernel, most=MAX_FILE_BYTES),
        b"" if initrd is None else read_file(initrd, most=MAX_FILE_BYTES),
        cmdline,
    )


def named_bundle(folder: Path) -> Bundle:
    """Load a bundle by its folder, or by the name under which it was built here."""
    from cvmtool.config import load_settings
    from cvmtool.image.bundle import load_bundle

    return load_bundle(folder if folder.is_dir() else load_settings().bundles_dir / folder)


def bundle_hashes(bundle: Bundle) -> dict[Mode, KernelHashes]:
    """Return the hashes of a bundle's kernel and initrd, with the command line of each mode."""
    from cvmtool.formats.manifest import Mode
    from cvmtool.measure.hashes import kernel_hashes

    kernel, initrd = bundle.kernel.read_bytes(), bundle.initrd.read_bytes()
    return {mode: kernel_hashes(kernel, initrd, bundle.cmdline(mode)) for mode in Mode}


def resources_of(job: Path) -> Resources:
    """Return the resources that a job file asks for.

    Raises:
        ConfigError: the file cannot be read or used.
    """
    from cvmtool.owner.jobfile import parse_job_file

    try:
        return parse_job_file(read_file(job, most=MAX_FILE_BYTES).decode()).resources
    except UnicodeDecodeError as error:
        raise ConfigError(f"{job} is not utf-8: {error.reason}") from None


def cpu_of(text: str) -> str | int:
    """Return a CPU model's name as it is, and a CPUID signature (0x hex) as a number.

    Raises:
        ConfigError: a malformed number.
    """
    return hexadecimal(text, "--cpu") if text.startswith("0x") else text


def vmm_of(name: str) -> Vmm:
    """Return the monitor of that name.

    Raises:
        ConfigError: there is none.
    """
    from cvmtool.measure.vmsa import Vmm

    try:
        return Vmm(name)
    except ValueError:
        raise ConfigError(f"vmm is {name!r}; required: one of {', '.join(Vmm)}") from None


def hexadecimal(text: str, option: str) -> int:
    """Return the number that `option` was given.

    Raises:
        ConfigError: it is no hexadecimal number.
    """
    try:
        return int(text, 16)
    except ValueError:
        raise ConfigError(f"{option} is {text!r}; required: a hexadecimal number") from None

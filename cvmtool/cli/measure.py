# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool measure`: which launch digest a machine must have, and why another one is not it.

Zone: cli. Standard output carries the digests (or one JSON document), standard error everything else.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from cvmtool.cli.files import read_file
from cvmtool.cli.idblock import id_block, id_check
from cvmtool.cli.verdict import print_json

if TYPE_CHECKING:
    from cvmtool.formats.job import Resources
    from cvmtool.image.bundle import Bundle
    from cvmtool.measure.hashes import KernelHashes
    from cvmtool.measure.launch import FirmwareSeed

MAX_FILE_BYTES = 1 << 31
"""Of a kernel or initrd; QEMU maps both below 4 GiB."""

DEFAULT_CPU = "EPYC-Genoa"

_DEFAULT_COMMAND = "bundle"


class _DefaultsToBundle(TyperGroup):
    """`measure BUNDLE` is `measure bundle BUNDLE`: a first word that is no command names a bundle."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - click's, which typer brings along
        if args and args[0] not in self.commands and args[0] != "--help":
            args = [_DEFAULT_COMMAND, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    help="The launch digest that a machine must have, worked out without it. `measure BUNDLE` measures a guest image.",
    no_args_is_help=True,
    cls=_DefaultsToBundle,
)

Json = Annotated[bool, typer.Option("--json", help="Write one JSON document to standard output.")]
BundleFolder = Annotated[Path, typer.Argument(help="The folder of a guest image.", metavar="BUNDLE")]
Cpu = Annotated[
    str | None, typer.Option("--cpu", help="QEMU CPU model, or CPUID leaf 1 EAX as 0x hex.", metavar="MODEL")
]
Features = Annotated[str, typer.Option("--guest-features", help="SEV_FEATURES of the guest, 0x hex.", metavar="HEX")]
VmmName = Annotated[str, typer.Option("--vmm", help="qemu, qemu-legacy, ec2, ec2-rdx0 or gce.", metavar="VMM")]


@app.command(_DEFAULT_COMMAND)
def measure_bundle(
    bundle: BundleFolder,
    *,
    vcpus: Annotated[int | None, typer.Option("--vcpus", help="Virtual CPUs; those of JOB, or 1.", min=1)] = None,
    cpu: Cpu = None,
    job: Annotated[Path | None, typer.Option("--job", help="A job file, for its CPUs.")] = None,
    as_json: Json = False,
) -> None:
    """Measure a guest image: both of its command lines, worked out again from its files."""
    from cvmtool.cli.render import print_table
    from cvmtool.formats.manifest import Mode
    from cvmtool.measure.launch import launch_digest

    loaded = _load_bundle(bundle)
    resources = None if job is None else _resources_of(job)
    count = vcpus or (1 if resources is None else resources.vcpus)
    model = cpu or (DEFAULT_CPU if resources is None else resources.cpu)
    firmware, hashes = loaded.firmware.read_bytes(), _bundle_hashes(loaded)
    rows = [
        {
            "mode": str(mode),
            "cmdline": loaded.cmdline(mode),
            "launch_digest": launch_digest(firmware, hashes=hashes[mode], cpu=_cpu(model), vcpus=count).hex(),
        }
        for mode in Mode
    ]
    if as_json:
        print_json(
            {
                "schema": "cvmtool/measure/v1",
                "bundle": str(loaded.folder),
                "image_digest": loaded.digest,
                "cpu": model,
                "vcpus": count,
                "digests": rows,
            }
        )
        return
    print_table(
        ("MODE", "CPU", "VCPUS", "LAUNCH DIGEST"),
        ((row["mode"], model, str(count), row["launch_digest"]) for row in rows),
    )


@app.command()
def raw(
    *,
    firmware: Annotated[Path | None, typer.Option("--firmware", help="Firmware image, such as OVMF.amdsev.fd.")] = None,
    seed: Annotated[
        Path | None, typer.Option("--seed", help="Instead of the firmware: what `measure seed` wrote of it.")
    ] = None,
    kernel: Annotated[Path | None, typer.Option("--kernel", help="Kernel, as given to QEMU.")] = None,
    initrd: Annotated[Path | None, typer.Option("--initrd", help="Initrd.")] = None,
    cmdline: Annotated[str, typer.Option("--cmdline", help="Command line, exactly as given to QEMU.")] = "",
    vcpus: Annotated[int, typer.Option("--vcpus", help="Virtual CPUs.", min=1)] = 1,
    cpu: Cpu = None,
    guest_features: Features = "0x1",
    vmm: VmmName = "qemu",
    trace: Annotated[bool, typer.Option("--trace", help="Show the digest after each run of pages.")] = False,
    as_json: Json = False,
) -> None:
    """Measure files: firmware, and the kernel, initrd and command line that it boots."""
    from cvmtool.cli.render import print_table
    from cvmtool.errors import ConfigError
    from cvmtool.measure.explain import trace as trace_launch
    from cvmtool.measure.hashes import kernel_hashes
    from cvmtool.measure.vmsa import Vmm

    if kernel is None and (initrd is not None or cmdline):
        raise ConfigError("an initrd or a command line is given without a kernel; required: --kernel")
    hashes: KernelHashes | None = None
    if kernel is not None:
        hashes = kernel_hashes(
            read_file(kernel, most=MAX_FILE_BYTES),
            b"" if initrd is None else read_file(initrd, most=MAX_FILE_BYTES),
            cmdline,
        )
    try:
        monitor = Vmm(vmm)
    except ValueError:
        raise ConfigError(f"vmm is {vmm!r}; required: one of {', '.join(Vmm)}") from None
    steps = trace_launch(
        _firmware(firmware, seed),
        hashes,
        cpu=_cpu(cpu or DEFAULT_CPU),
        vcpus=vcpus,
        guest_features=_number(guest_features, "--guest-features"),
        vmm=monitor,
    )
    digest = steps[-1].digest.hex()
    if as_json:
        document: dict[str, Any] = {
            "schema": "cvmtool/measure-raw/v1",
            "launch_digest": digest,
            "cpu": cpu or DEFAULT_CPU,
            "vcpus": vcpus,
            "guest_features": guest_features,
            "vmm": str(monitor),
        }
        if trace:
            document["trace"] = [
                {"pages": s.kind.name.lower(), "gpa": hex(s.gpa), "count": s.count, "digest": s.digest.hex()}
                for s in steps
            ]
        print_json(document)
        return
    if trace:
        print_table(
            ("PAGES", "FROM", "COUNT", "DIGEST AFTER"),
            ((step.kind.name.lower(), hex(step.gpa), str(step.count), step.digest.hex()) for step in steps),
            to=sys.stderr,
        )
    typer.echo(digest)


@app.command("seed")
def write_seed(
    firmware: Annotated[Path, typer.Argument(help="Firmware image, such as OVMF.amdsev.fd.", metavar="FIRMWARE")],
    *,
    out: Annotated[Path, typer.Option("--out", help="Where the seed goes, JSON.", metavar="FILE")],
    as_json: Json = False,
) -> None:
    """Write what launch digests need of a firmware: `measure raw --seed` then needs no image."""
    from cvmtool.config import write_atomic
    from cvmtool.errors import ConfigError
    from cvmtool.measure.launch import firmware_seed
    from cvmtool.measure.seed import encode_seed

    measured = firmware_seed(read_file(firmware, most=MAX_FILE_BYTES))
    try:
        write_atomic(out, encode_seed(measured), mode=0o644)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}") from None
    if as_json:
        size = measured.firmware.size
        print_json(
            {"schema": "cvmtool/measure-seed/v1", "digest": measured.digest.hex(), "size": size, "file": str(out)}
        )
        return
    typer.echo(measured.digest.hex())


app.command("id-block")(id_block)
app.command("id-check")(id_check)


@app.command()
def explain(
    bundle: BundleFolder,
    *,
    report: Annotated[Path | None, typer.Option("--report", help="An attestation report, 1184 bytes.")] = None,
    digest: Annotated[str | None, typer.Option("--digest", help="A launch digest, 96 hex digits.")] = None,
    as_json: Json = False,
) -> None:
    """Find out which inputs give a digest that was not expected: CPUs, model, features, monitor, command line."""
    from dataclasses import asdict

    from cvmtool.cli.render import print_table
    from cvmtool.errors import ConfigError
    from cvmtool.formats.report import parse_report
    from cvmtool.formats.wire import parse_hex
    from cvmtool.measure.explain import find_inputs

    if (report is None) == (digest is None):
        raise ConfigError("neither or both of --report and --digest are given; required: one of them")
    loaded = _load_bundle(bundle)
    wanted = (
        parse_hex(digest, 48, what="--digest")
        if report is None
        else parse_report(read_file(report, most=MAX_FILE_BYTES)).measurement
    )
    kernels: dict[str, KernelHashes | None] = {str(mode): h for mode, h in _bundle_hashes(loaded).items()}
    matches = list(find_inputs(loaded.firmware.read_bytes(), {**kernels, "no kernel": None}, wanted))
    if as_json:
        print_json(
            {
                "schema": "cvmtool/measure-explain/v1",
                "launch_digest": wanted.hex(),
                "matches": [{**asdict(match), "vmm": str(match.vmm)} for match in matches],
            }
        )
        return
    if not matches:
        typer.echo(
            "no honest mistake gives this digest: firmware, kernel, initrd or command line are others than the image's"
        )
        return
    print_table(
        ("COMMAND LINE", "CPU", "VCPUS", "FEATURES", "MONITOR"),
        (
            (match.kernel, " ".join(match.cpus), str(match.vcpus), hex(match.guest_features), str(match.vmm))
            for match in matches
        ),
    )


def _firmware(image: Path | None, seed: Path | None) -> bytes | FirmwareSeed:
    from cvmtool.errors import ConfigError
    from cvmtool.measure.seed import parse_seed

    if image is not None and seed is None:
        return read_file(image, most=MAX_FILE_BYTES)
    if seed is not None and image is None:
        return parse_seed(read_file(seed, most=MAX_FILE_BYTES))
    raise ConfigError("neither or both of --firmware and --seed are given; required: one of them")


def _load_bundle(folder: Path) -> Bundle:
    """Load a bundle by its folder, or by the name under which it was built here."""
    from cvmtool.config import load_settings
    from cvmtool.image.bundle import load_bundle

    return load_bundle(folder if folder.is_dir() else load_settings().bundles_dir / folder)


def _bundle_hashes(bundle: Bundle) -> dict[Any, KernelHashes]:
    from cvmtool.formats.manifest import Mode
    from cvmtool.measure.hashes import kernel_hashes

    kernel, initrd = bundle.kernel.read_bytes(), bundle.initrd.read_bytes()
    return {mode: kernel_hashes(kernel, initrd, bundle.cmdline(mode)) for mode in Mode}


def _resources_of(job: Path) -> Resources:
    from cvmtool.owner.jobfile import parse_job_file

    try:
        return parse_job_file(read_file(job, most=MAX_FILE_BYTES).decode()).resources
    except UnicodeDecodeError as error:
        from cvmtool.errors import ConfigError

        raise ConfigError(f"{job} is not utf-8: {error.reason}") from None


def _cpu(text: str) -> str | int:
    return _number(text, "--cpu") if text.startswith("0x") else text


def _number(text: str, option: str) -> int:
    from cvmtool.errors import ConfigError

    try:
        return int(text, 16)
    except ValueError:
        raise ConfigError(f"{option} is {text!r}; required: a hexadecimal number") from None

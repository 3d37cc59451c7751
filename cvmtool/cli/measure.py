# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool measure`: which launch digest a machine must have, and why another one is not it.

Zone: cli. Standard output carries the digests (or one JSON document), standard error everything else.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cvmtool.cli.explain import explain
from cvmtool.cli.files import read_file
from cvmtool.cli.groups import DefaultsTo
from cvmtool.cli.idblock import id_block, id_check
from cvmtool.cli.inputs import (
    DEFAULT_CPU,
    MAX_FILE_BYTES,
    BundleFolder,
    CommandLine,
    Cpu,
    Features,
    FirmwareFile,
    InitrdFile,
    JobFile,
    Json,
    KernelFile,
    SeedFile,
    Trace,
    VcpusOfJob,
    VmmName,
    bundle_hashes,
    cpu_of,
    file_hashes,
    firmware_or_seed,
    hexadecimal,
    named_bundle,
    resources_of,
    vmm_of,
)
from cvmtool.cli.trace import show_trace, trace_fields
from cvmtool.cli.verdict import print_json


class _DefaultsToBundle(DefaultsTo):
    """`measure BUNDLE` is `measure bundle BUNDLE`."""

    default = "bundle"


app = typer.Typer(
    help="The launch digest that a machine must have, worked out without it. `measure BUNDLE` measures a guest image.",
    no_args_is_help=True,
    cls=_DefaultsToBundle,
)


@app.command(_DefaultsToBundle.default)
def measure_bundle(
    bundle: BundleFolder,
    *,
    vcpus: VcpusOfJob = None,
    cpu: Cpu = None,
    job: JobFile = None,
    trace: Trace = False,
    as_json: Json = False,
) -> None:
    """Measure a guest image: both of its command lines, worked out again from its files."""
    from cvmtool.cli.render import print_table
    from cvmtool.formats.manifest import Mode
    from cvmtool.measure.launch import firmware_seed
    from cvmtool.measure.trace import trace as trace_launch
    from cvmtool.measure.vmsa import GUEST_FEATURES_SNP, Vmm

    loaded = named_bundle(bundle)
    resources = None if job is None else resources_of(job)
    count = vcpus or (1 if resources is None else resources.vcpus)
    model = cpu or (DEFAULT_CPU if resources is None else resources.cpu)
    seed, hashes = firmware_seed(loaded.firmware.read_bytes()), bundle_hashes(loaded)
    launches = {
        mode: trace_launch(
            seed,
            hashes[mode],
            cpu=cpu_of(model),
            vcpus=count,
            guest_features=GUEST_FEATURES_SNP,
            vmm=Vmm.QEMU,
        )
        for mode in Mode
    }
    if as_json:
        print_json(
            {
                "schema": "cvmtool/measure/v1",
                "bundle": str(loaded.folder),
                "image_digest": loaded.digest,
                "cpu": model,
                "vcpus": count,
                "digests": [
                    {
                        "mode": str(mode),
                        "cmdline": loaded.cmdline(mode),
                        "launch_digest": steps[-1].digest.hex(),
                        **(trace_fields(steps) if trace else {}),
                    }
                    for mode, steps in launches.items()
                ],
            }
        )
        return
    if trace:
        for mode, steps in launches.items():
            typer.echo(f"{mode}:", err=True)
            show_trace(steps, to=sys.stderr)
    print_table(
        ("MODE", "CPU", "VCPUS", "LAUNCH DIGEST"),
        ((str(mode), model, str(count), steps[-1].digest.hex()) for mode, steps in launches.items()),
    )


@app.command()
def raw(
    *,
    firmware: FirmwareFile = None,
    seed: SeedFile = None,
    kernel: KernelFile = None,
    initrd: InitrdFile = None,
    cmdline: CommandLine = "",
    vcpus: Annotated[int, typer.Option("--vcpus", help="Virtual CPUs.", min=1)] = 1,
    cpu: Cpu = None,
    guest_features: Features = "0x1",
    vmm: VmmName = "qemu",
    trace: Trace = False,
    as_json: Json = False,
) -> None:
    """Measure files: firmware, and the kernel, initrd and command line that it boots."""
    from cvmtool.measure.trace import trace as trace_launch

    steps = trace_launch(
        firmware_or_seed(firmware, seed),
        file_hashes(kernel, initrd, cmdline),
        cpu=cpu_of(cpu or DEFAULT_CPU),
        vcpus=vcpus,
        guest_features=hexadecimal(guest_features, "--guest-features"),
        vmm=vmm_of(vmm),
    )
    digest = steps[-1].digest.hex()
    if as_json:
        document: dict[str, Any] = {
            "schema": "cvmtool/measure-raw/v1",
            "launch_digest": digest,
            "cpu": cpu or DEFAULT_CPU,
            "vcpus": vcpus,
            "guest_features": guest_features,
            "vmm": vmm,
        }
        print_json(document | (trace_fields(steps) if trace else {}))
        return
    if trace:
        show_trace(steps, to=sys.stderr)
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
app.command()(explain)

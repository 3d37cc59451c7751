# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool measure explain`: what was launched, when the launch digest is not the expected one.

Zone: cli. The answer is one sentence on standard output, or one JSON document. It is a hint for people, never a reason to trust.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cvmtool.cli.inputs import (
    DEFAULT_CPU,
    CommandLine,
    Cpu,
    Features,
    FirmwareFile,
    InitrdFile,
    JobFile,
    Json,
    KernelFile,
    SeedFile,
    VcpusOfJob,
    VmmName,
    cpu_of,
    file_hashes,
    firmware_or_seed,
    hexadecimal,
    named_bundle,
    resources_of,
    vmm_of,
)
from cvmtool.cli.reports import RAW, Wrapping, read_report
from cvmtool.cli.trace import show_trace, trace_fields
from cvmtool.cli.verdict import print_json
from cvmtool.errors import AppraisalError, ConfigError, Finding

if TYPE_CHECKING:
    from cvmtool.flows.explain import Files
    from cvmtool.flows.seeds import SeedStore
    from cvmtool.measure.explain import Explanation, Findings, Progress
    from cvmtool.measure.trace import Step

PATIENCE_SECONDS = 2.0
"""A search that takes longer shows what it is trying."""

Expected = Annotated[
    Path | None,
    typer.Argument(help="The guest image that was expected: its folder, or its name here.", metavar="[BUNDLE]"),
]
Report = Annotated[
    Path | None,
    typer.Option(
        "--report",
        help="The machine's report, 1184 bytes or in CONTAINER; or the directory of a refusal or a run.",
        metavar="FILE",
    ),
]
Digest = Annotated[
    str | None, typer.Option("--digest", help="Instead of a report: its launch digest, 96 hex digits.", metavar="HEX")
]
ModeName = Annotated[
    str, typer.Option("--mode", help="Which command line of BUNDLE: production or dryrun.", metavar="MODE")
]


def explain(
    bundle: Expected = None,
    *,
    report: Report = None,
    digest: Digest = None,
    container: Wrapping = RAW,
    mode: ModeName = "production",
    firmware: FirmwareFile = None,
    seed: SeedFile = None,
    kernel: KernelFile = None,
    initrd: InitrdFile = None,
    cmdline: CommandLine = "",
    vcpus: VcpusOfJob = None,
    cpu: Cpu = None,
    guest_features: Features = "0x1",
    vmm: VmmName = "qemu",
    job: JobFile = None,
    as_json: Json = False,
) -> None:
    """Say in one sentence why a launch digest is not the expected one. Exit 6 if no known mistake gives it.

    What was expected is a guest image, or single files, on a machine of --vcpus, --cpu, --guest-features and --vmm.
    """
    from cvmtool.config import load_settings
    from cvmtool.flows.explain import Machine, seed_store, suspects
    from cvmtool.measure.explain import explain as find
    from cvmtool.measure.trace import trace

    wanted, processor = _launched(report, digest, container)
    resources = None if job is None else resources_of(job)
    machine = Machine(
        cpu=cpu_of(cpu or (DEFAULT_CPU if resources is None else resources.cpu)),
        vcpus=vcpus or (1 if resources is None else resources.vcpus),
        guest_features=hexadecimal(guest_features, "--guest-features"),
        vmm=vmm_of(vmm),
    )
    settings = load_settings()
    seeds = seed_store(settings)
    if bundle is None and firmware is None and seed is None:
        raise ConfigError("nothing says what was expected; required: BUNDLE, or --firmware or --seed")
    if bundle is None:
        files = _files(firmware, seed, kernel, initrd, cmdline)
    elif any((firmware, seed, kernel, initrd, cmdline)):
        raise ConfigError("a guest image and single files are given; required: one or the other")
    else:
        files = _image(bundle, mode, seeds)
    expected = files.expected(machine)
    with _progress() as progress:
        found = find(expected, suspects(files, processor, settings, seeds), wanted, progress=progress)
    launch = expected.launch
    steps = trace(
        launch.firmware,
        launch.hashes,
        cpu=launch.cpu,
        vcpus=launch.vcpus,
        guest_features=launch.guest_features,
        vmm=launch.vmm,
    )
    _show(found, steps, wanted, as_json=as_json)


def _launched(report: Path | None, digest: str | None, container: str) -> tuple[bytes, int | None]:
    """Return the digest to explain, and the signature of the processor that the report names."""
    from cvmtool.formats.report import parse_report
    from cvmtool.formats.wire import parse_hex
    from cvmtool.measure.vmsa import signature_of

    if digest is not None and report is None:
        return parse_hex(digest, 48, what="--digest"), None
    if report is None or digest is not None:
        raise ConfigError("neither or both of --report and --digest are given; required: one of them")
    claims = parse_report(read_report(report, container).unwrapped.report)
    cpuid = claims.cpuid
    known = cpuid is not None and cpuid.line is not None
    signature = signature_of(cpuid.family, cpuid.model, cpuid.stepping) if cpuid is not None and known else None
    return claims.measurement, signature


def _image(bundle: Path, mode: str, seeds: SeedStore) -> Files:
    from cvmtool.flows.explain import files_of_image
    from cvmtool.formats.manifest import Mode

    if mode not in set(Mode):
        raise ConfigError(f"--mode is {mode!r}; required: one of {', '.join(Mode)}")
    return files_of_image(named_bundle(bundle), Mode(mode), seeds)


def _files(firmware: Path | None, seed: Path | None, kernel: Path | None, initrd: Path | None, cmdline: str) -> Files:
    from cvmtool.flows.explain import Files
    from cvmtool.measure.launch import seed_of

    return Files(
        firmware=seed_of(firmware_or_seed(firmware, seed)),
        hashes=file_hashes(kernel, initrd, cmdline),
        cmdline=cmdline,
    )


@contextmanager
def _progress() -> Iterator[Progress]:
    """Give what shows what is being tried, once it lasts."""
    from cvmtool.cli.render import error_console

    begun = time.monotonic()
    status = error_console().status("")

    def progress(text: str) -> None:
        if time.monotonic() - begun > PATIENCE_SECONDS:
            status.update(f"trying {text}")
            status.start()

    try:
        yield progress
    finally:
        status.stop()


def _show(found: Findings, steps: tuple[Step, ...], wanted: bytes, *, as_json: bool) -> None:
    expected = steps[-1].digest
    explained = bool(found.explanations)
    if as_json:
        document: dict[str, Any] = {
            "schema": "cvmtool/measure-explain/v1",
            "launch_digest": wanted.hex(),
            "expected_digest": expected.hex(),
            "as_expected": wanted == expected,
            "explanations": [_fields(explanation) for explanation in found.explanations],
            "ruled_out": [{"what": item.what, "launches": item.launches} for item in found.ruled_out],
        }
        print_json(document | ({} if explained else trace_fields(steps)))
        if not explained:
            raise typer.Exit(AppraisalError.exit_code)
        return
    for number, explanation in enumerate(found.explanations):
        typer.echo(f"{'or ' if number else ''}{explanation.sentence}")
    if explained:
        return
    typer.echo(
        f"none of {sum(item.launches for item in found.ruled_out)} launches that we tried has this digest; ruled out:"
    )
    for item in found.ruled_out:
        typer.echo(f"  {item.what} ({item.launches:,} launches)")
    typer.echo("the expected launch, page by page:")
    show_trace(steps)
    raise AppraisalError(
        "no known mistake gives this launch digest",
        findings=(
            Finding(
                code="measurement",
                field="measurement",
                actual=wanted.hex(),
                required=expected.hex(),
                why="firmware, kernel, initrd or command line are others than every one that is kept here",
            ),
        ),
        hint="are these the files that the host was given? compare their SHA-256, or the trace above with the host's own",
    )


def _fields(explanation: Explanation) -> dict[str, Any]:
    from dataclasses import asdict

    launch = explanation.launch
    return {
        "sentence": explanation.sentence,
        "differences": [asdict(difference) for difference in explanation.differences],
        "vcpus": launch.vcpus,
        "cpu": hex(launch.cpu),
        "guest_features": hex(launch.guest_features),
        "vmm": str(launch.vmm),
    }

# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool measure explain`: why a launch digest is not the one that was expected.

Zone: cli.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvmtool.cli.files import read_file
from cvmtool.cli.inputs import MAX_FILE_BYTES, BundleFolder, Json, bundle_hashes, named_bundle
from cvmtool.cli.verdict import print_json

if TYPE_CHECKING:
    from cvmtool.measure.hashes import KernelHashes


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
    loaded = named_bundle(bundle)
    wanted = (
        parse_hex(digest, 48, what="--digest")
        if report is None
        else parse_report(read_file(report, most=MAX_FILE_BYTES)).measurement
    )
    kernels: dict[str, KernelHashes | None] = {str(mode): h for mode, h in bundle_hashes(loaded).items()}
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

# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool attest policy`: start a policy from a guest image, and check one that was edited.

Zone: cli. Standard output carries the policy or what it asks, standard error everything else.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cvmtool.cli.files import read_file
from cvmtool.cli.verdict import print_json

if TYPE_CHECKING:
    from cvmtool.formats.job import JobManifest, Resources
    from cvmtool.formats.manifest import ImageManifest
    from cvmtool.owner.amdroots import Roots

MAX_FILE_BYTES = 4 << 20
DEFAULT_CPU = "EPYC-Genoa"

app = typer.Typer(help="What is acceptable: start a policy, and check one.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Write one JSON document to standard output.")]


@app.command("init")
def init(
    bundle: Annotated[Path, typer.Argument(help="A guest image: its folder, or its name here.", metavar="BUNDLE")],
    *,
    job: Annotated[
        Path | None,
        typer.Option(
            "--job", help="A job file, for its CPUs; or a run's manifest.json, for HOST_DATA too.", metavar="JOB"
        ),
    ] = None,
    vcpus: Annotated[int | None, typer.Option("--vcpus", help="Virtual CPUs; those of JOB, or 1.", min=1)] = None,
    cpu: Annotated[
        str | None, typer.Option("--cpu", help=f"CPU model; that of JOB, or {DEFAULT_CPU}.", metavar="MODEL")
    ] = None,
    simulated_root: Annotated[
        str | None,
        typer.Option("--simulated-root", help="For dry runs: SHA-256 of the simulated root.", metavar="HEX"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a commented policy for a guest image to standard output: cvmtool's baseline, to be read and changed."""
    from cvmtool.formats.manifest import Mode
    from cvmtool.formats.wire import parse_hex
    from cvmtool.owner.amdroots import AmdRoots, SimulatedRoot
    from cvmtool.owner.policy import baseline
    from cvmtool.owner.policytext import commented_policy

    image, digest = _image(bundle)
    resources, manifest = _job(job)
    roots: Roots = AmdRoots()
    mode = Mode.PRODUCTION
    if simulated_root is not None:
        roots, mode = SimulatedRoot(parse_hex(simulated_root, 32, what="--simulated-root")), Mode.DRYRUN
    model = cpu or (DEFAULT_CPU if resources is None else resources.cpu)
    count = vcpus or (1 if resources is None else resources.vcpus)
    measurement = image.launch_digest(mode, model, count)
    host_data = None if manifest is None else frozenset({manifest.host_data})
    policy = baseline(roots=roots, measurements=frozenset({measurement}), host_data=host_data)
    text = commented_policy(
        policy,
        preface=f"For guest image {image.name}, manifest {digest},\n{count} virtual CPUs of model {model}.",
    )
    if as_json:
        print_json(
            {
                "schema": "cvmtool/attest-policy-init/v1",
                "image_digest": digest,
                "measurement": measurement.hex(),
                "unchecked": list(policy.unchecked),
                "policy": text,
            }
        )
        return
    typer.echo(text, nl=False)


@app.command("check")
def check(
    policy: Annotated[Path, typer.Argument(help="A policy, TOML.", metavar="FILE")],
    as_json: Json = False,
) -> None:
    """Read a policy as strictly as a decision does (exit 3 if it cannot be used), and say what it leaves unchecked."""
    from cvmtool.owner.policyfile import parse_policy

    rules = parse_policy(read_file(policy, most=MAX_FILE_BYTES).decode("utf-8", "replace"))
    document: dict[str, Any] = {
        "schema": "cvmtool/attest-policy-check/v1",
        "simulated": rules.trusted_roots().simulated,
        "products": sorted(rules.products),
        "measurements": len(rules.measurements.union(*(entry.digests for entry in rules.measurement_sets))),
        "revoked_measurements": len(rules.revoked_measurements),
        "floors": [f"{f.component}>={f.value} ({f.bulletin}, {f.checked})" for f in rules.tcb_floors or ()],
        "unchecked": list(rules.unchecked),
    }
    if as_json:
        print_json(document)
        return
    for name, value in document.items():
        if name != "schema":
            typer.echo(f"{name}: {', '.join(map(str, value)) or 'nothing' if isinstance(value, list) else value}")


def _image(bundle: Path) -> tuple[ImageManifest, str]:
    """Return the manifest of a guest image whose files are those it names, and the manifest's SHA-256."""
    from cvmtool.config import load_settings
    from cvmtool.image.bundle import load_bundle

    loaded = load_bundle(bundle if bundle.is_dir() else load_settings().bundles_dir / bundle)
    return loaded.manifest, loaded.digest


def _job(path: Path | None) -> tuple[Resources | None, JobManifest | None]:
    """Read a job file, or the canonical manifest that a run left: by its name, never by trying."""
    from cvmtool.errors import ConfigError
    from cvmtool.formats.job import parse_job_manifest
    from cvmtool.owner.jobfile import parse_job_file

    if path is None:
        return None, None
    data = read_file(path, most=MAX_FILE_BYTES)
    if path.suffix == ".json":
        manifest = parse_job_manifest(data)
        return manifest.resources, manifest
    try:
        return parse_job_file(data.decode()).resources, None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not utf-8: {error.reason}") from None

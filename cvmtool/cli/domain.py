# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool vm render`: the domain that a job would define.

Zone: cli. It is a command of `cvmtool.cli.vm`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cvmtool.cli.gpus import GpuAddresses, GpuPolicyFile, gpu_wish
from cvmtool.cli.options import Host, Json


def render(
    job: Annotated[Path, typer.Argument(help="The job file.", metavar="JOB.yaml")],
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="The machine of a dry run; no host is asked.")] = False,
    host: Host = None,
    gpu: GpuAddresses = None,
    gpu_policy: GpuPolicyFile = None,
    argv: Annotated[bool, typer.Option("--argv", help="The arguments that libvirt would give QEMU, instead.")] = False,
    as_json: Json = False,
) -> None:
    """Print the libvirt domain that a job would define. Nothing is started; the salt differs each time."""
    from cvmtool.cli.render import TerminalReporter, emit_schema
    from cvmtool.config import load_settings
    from cvmtool.flows.gpu import refuse_gpus_in_a_dry_run
    from cvmtool.flows.images import bring_up_to_date
    from cvmtool.flows.launch import Site
    from cvmtool.flows.machine import render_argv, render_machine
    from cvmtool.flows.prepare import prepare, read_job
    from cvmtool.formats.manifest import Mode

    settings = load_settings(host=host)
    reporter = TerminalReporter()
    gpus, file = gpu_wish(gpu, gpu_policy, dry_run=dry_run), read_job(job)
    if dry_run:
        refuse_gpus_in_a_dry_run(file.resources.gpus)
    bundle = bring_up_to_date(file.image, settings, progress=reporter.step, notice=reporter.notice)
    prepared = prepare(job, bundle, settings=settings, reporter=reporter)
    mode = Mode.DRYRUN if dry_run else Mode.PRODUCTION
    launch = prepared.launch(mode, Site(gpus=gpus.devices))
    show = render_argv if argv else render_machine
    text = show("cvmtool-render", launch, settings)
    if as_json:
        emit_schema("vm-render", **({"argv": text} if argv else {"xml": text}))
    else:
        typer.echo(text, nl=False)

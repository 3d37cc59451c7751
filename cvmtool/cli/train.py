# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool train`: one command from a job file to a model and a receipt.

Zone: cli.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvmtool.cli.files import read_file
from cvmtool.cli.options import Host, Json

_MAX_POLICY = 1 << 20  # bytes

if TYPE_CHECKING:
    from cvmtool.cli.render import JsonReporter, TerminalReporter
    from cvmtool.config import Settings
    from cvmtool.flows.decisions import Gate
    from cvmtool.flows.jobplan import Plan
    from cvmtool.flows.jobs import JobDir
    from cvmtool.flows.prepare import Prepared
    from cvmtool.image.bundle import Bundle

app = typer.Typer()


DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Run under QEMU without SEV-SNP: SIMULATED / NOT CONFIDENTIAL.")
]
Detach = Annotated[
    bool, typer.Option("--detach", "-d", help="Run in the background; `jobs attach` looks on, `jobs cancel` ends it.")
]
Results = Annotated[Path | None, typer.Option("--results", help="Where outputs and receipt go.", metavar="DIR")]
PolicyFile = Annotated[
    Path | None,
    typer.Option("--policy", help="What is acceptable; by default cvmtool's baseline for this job.", metavar="FILE"),
]
RulesFile = Annotated[Path | None, typer.Option("--rules", help="What may go in and come out.", metavar="FILE")]
Kds = Annotated[
    str | None,
    typer.Option("--kds", envvar="CVMTOOL_KDS", help="AMD's key service, or a mirror of it.", metavar="URL"),
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Use certificates that the host gives or that are kept; ask nobody.")
]
Pin = Annotated[
    str | None, typer.Option("--pin", help="Host CPUs, one for each virtual one, such as 8,9.", metavar="CPUS")
]
Numa = Annotated[int | None, typer.Option("--numa", help="NUMA node of the memory.", min=0, metavar="NODE")]
Hugepages = Annotated[
    int | None, typer.Option("--hugepages", help="Size of the huge pages to use, in KiB.", min=4, metavar="KIB")
]
GpuAddresses = Annotated[
    list[str] | None, typer.Option("--gpu", help="A GPU of the host, for each that the job wants.", metavar="PCI")
]
GpuPolicyFile = Annotated[
    Path | None, typer.Option("--gpu-policy", help="What is acceptable of the GPUs.", metavar="FILE")
]
ExchangeDir = Annotated[
    Path | None,
    typer.Option(
        "--exchange", help="Where the other owners of its packs are met; for jobs with parties.", metavar="DIR"
    ),
]
BootTimeout = Annotated[float, typer.Option("--boot-timeout", help="Seconds that the guest may take to answer.", min=1)]


@app.command()
def train(
    job: Annotated[Path, typer.Argument(help="The job file.", metavar="JOB.yaml")],
    *,
    dry_run: DryRun = False,
    detach: Detach = False,
    host: Host = None,
    results: Results = None,
    policy: PolicyFile = None,
    rules: RulesFile = None,
    kds: Kds = None,
    offline: Offline = False,
    pin: Pin = None,
    numa: Numa = None,
    hugepages: Hugepages = None,
    gpu: GpuAddresses = None,
    gpu_policy: GpuPolicyFile = None,
    exchange: ExchangeDir = None,
    boot_timeout: BootTimeout = 300.0,
    as_json: Json = False,
) -> None:
    """Train on sealed data inside a confidential VM, and bring the model and a receipt home."""
    from cvmtool.cli.render import JsonReporter, TerminalReporter
    from cvmtool.config import load_settings
    from cvmtool.flows.decisions import read_rules
    from cvmtool.flows.jobplan import Plan
    from cvmtool.flows.launch import parse_site
    from cvmtool.flows.supervise import carry_out, put_on_record, send_off
    from cvmtool.owner.kds import AMD_URL
    from cvmtool.owner.policyfile import parse_policy

    settings = load_settings(host=host)
    reporter = JsonReporter() if as_json else TerminalReporter()
    if dry_run and isinstance(reporter, TerminalReporter):
        reporter.banner()
    plan = Plan(
        simulated=dry_run,
        results=results,
        host=settings.host,
        boot_seconds=boot_timeout,
        site=parse_site(pin=pin, numa_node=numa, hugepages_kib=hugepages, gpus=gpu or ()),
        key_service=None if offline else kds or AMD_URL,
        rules=() if rules is None else (read_rules(rules),),
        gpu_policy=None if gpu_policy is None else _read_text(gpu_policy),
        exchange=exchange,
    )
    judged_by = None if policy is None else parse_policy(_read_text(policy))
    gate = plan.gate(settings)
    plan.platform(settings)
    prepared = _prepared(job, plan, gate, settings, reporter)
    run = put_on_record(prepared, plan, judged_by, settings=settings, reporter=reporter, gate=gate)
    if detach:
        send_off(run, prepared)
        _detached(run.job, reporter)
    else:
        carry_out(run, prepared, plan, settings)
        summarise(run.job, reporter)


def _read_text(path: Path) -> str:
    return read_file(path, most=_MAX_POLICY).decode("utf-8", "replace")


def _prepared(
    job: Path, plan: Plan, gate: Gate, settings: Settings, reporter: JsonReporter | TerminalReporter
) -> Prepared:
    """Seal a job that fits, for its guest image as it is now."""
    from cvmtool.flows.consents import require_exchange
    from cvmtool.flows.fit import refuse_unfit
    from cvmtool.flows.prepare import prepare, read_job

    file, base = read_job(job), job.resolve().parent
    require_exchange(file, plan.exchange)
    bundle = _bundle(file.image, settings, reporter)
    simulated, results = plan.simulated, plan.results
    refuse_unfit(file, base, bundle, settings=settings, simulated=simulated, reporter=reporter, results=results)
    return prepare(job, bundle, settings=settings, reporter=reporter, gate=gate)


def _bundle(name: str, settings: Settings, reporter: JsonReporter | TerminalReporter) -> Bundle:
    """Load the guest image; build it if it was never built or its sources changed."""
    from cvmtool.flows.images import bring_up_to_date
    from cvmtool.flows.reporter import Stage

    with reporter.stage(Stage.BUILD, f"guest image {name}"):
        return bring_up_to_date(name, settings, progress=reporter.step, notice=reporter.notice)


def _detached(job: JobDir, reporter: JsonReporter | TerminalReporter) -> None:
    from cvmtool.cli.render import TerminalReporter, emit_schema

    name = job.record.id
    if not isinstance(reporter, TerminalReporter):
        emit_schema("train-detached", job=name, simulated=job.record.simulated, folder=str(job.path))
        return
    for line in (
        f"job {name} runs in the background",
        f"  look on: cvmtool jobs attach {name}",
        f"  end it:  cvmtool jobs cancel {name}",
    ):
        reporter.console.print(line, markup=False)


def summarise(job: JobDir, reporter: JsonReporter | TerminalReporter) -> None:
    """Say what a run brought home that is done."""
    from cvmtool.cli.render import BANNER, TerminalReporter, emit_schema
    from cvmtool.flows.jobevents import RESULTS

    record = job.record
    found = job.database.latest(record.id)[RESULTS]
    outputs, receipt, policy = found["outputs"], found["receipt"], found["policy"]
    if not isinstance(reporter, TerminalReporter):
        emit_schema(
            "train",
            job=record.id,
            simulated=record.simulated,
            exit_code=found["exit_code"],
            stages=record.stages,
            outputs=outputs,
            receipt=receipt,
            policy=policy,
        )
        return
    console, folder = reporter.console, str(record.results)
    console.print(f"results in {folder}", markup=False)
    width = max((len(item["name"]) for item in outputs), default=0)
    for item in outputs:
        console.print(
            f"  {item['name']:<{width}}  {item['size']:>10,} bytes  sha256 {item['sha256'][:8]}..{item['sha256'][-4:]}",
            markup=False,
        )
    clear = folder
    if any(item["sealed"] for item in outputs):
        clear = "DIR"
        console.print("they are sealed to the job's recipients, each of whom opens them with:", markup=False)
        console.print(f"  {shlex.join(['cvmtool', 'unseal', folder, '--out', clear])}", markup=False)
    console.print("check the receipt, and the files with it, at any time and offline:", markup=False)
    words = ["cvmtool", "receipt", "verify", receipt, "--job", record.id, "--files", clear]
    console.print(f"  {shlex.join(words)}", markup=False)
    ending = f": {BANNER}" if record.simulated else ""
    console.print(f"job {record.id} done in {sum(record.stages.values()):.1f} s{ending}", markup=False)

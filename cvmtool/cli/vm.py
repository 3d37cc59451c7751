# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool vm`: the virtual machines themselves.

Zone: cli.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvmtool.cli import domain
from cvmtool.cli.gpus import GpuAddresses, GpuPolicyFile, gpu_wish
from cvmtool.cli.options import Host, Json
from cvmtool.cli.standing import listed, show_standing, size_of, standing_fields, volume_fields, volume_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cvmtool.cli.render import JsonReporter, TerminalReporter
    from cvmtool.config import Settings
    from cvmtool.flows.vmrecords import VmDir
    from cvmtool.flows.vms import Vm
    from cvmtool.flows.vmsession import VmSession

app = typer.Typer(
    help="Confidential machines without a job: start, attest, unlock, work in them, stop. And every machine there is.",
    no_args_is_help=True,
)

Machine = Annotated[str, typer.Argument(help="The machine's name.", metavar="NAME")]
BootTimeout = Annotated[float, typer.Option("--boot-timeout", help="Seconds that the guest may take to answer.", min=1)]


@app.command()
def start(
    image: Annotated[str, typer.Argument(help="A guest image; or a machine that is stopped.", metavar="IMAGE|NAME")],
    *,
    name: Annotated[str | None, typer.Option("--name", help="The machine's name; the image's by default.")] = None,
    volume: Annotated[
        list[str] | None,
        typer.Option("--volume", help="A new encrypted volume, which outlives the machine.", metavar="NAME:SIZE"),
    ] = None,
    disk: Annotated[
        list[str] | None,
        typer.Option("--disk", help="A volume that was kept: its name, UUID or file on the host.", metavar="VOLUME"),
    ] = None,
    shell: Annotated[bool, typer.Option("--shell", help="Give its owner a shell; the image must allow it.")] = False,
    vcpus: Annotated[int, typer.Option("--vcpus", help="Virtual CPUs; measured.", min=1, max=512)] = 1,
    memory: Annotated[str, typer.Option("--memory", help="Of the machine.", metavar="SIZE")] = "1GiB",
    cpu: Annotated[str, typer.Option("--cpu", help="QEMU's CPU model; measured.")] = "EPYC-Genoa",
    restart: Annotated[
        str, typer.Option("--restart", help="never, or on-failure: cvmtool vm watch starts it again when it dies.")
    ] = "never",
    policy: Annotated[
        Path | None,
        typer.Option("--policy", help="What is acceptable; by default cvmtool's baseline.", metavar="FILE"),
    ] = None,
    gpu: GpuAddresses = None,
    gpu_policy: GpuPolicyFile = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Run under QEMU without SEV-SNP: SIMULATED / NOT CONFIDENTIAL.")
    ] = False,
    host: Host = None,
    as_json: Json = False,
) -> None:
    """Start a machine, or start one again that is stopped. It stays when this command ends; nothing is proven yet."""
    from cvmtool.config import load_settings
    from cvmtool.flows.vmrecords import find_vm

    settings = load_settings(host=host)
    reporter = _reporter(as_json=as_json)
    found = find_vm(settings.vms_dir, name or image)
    gpus = gpu_wish(gpu, gpu_policy, dry_run=dry_run)
    if found is not None and (name is None or found.record.image == image):
        if gpus.devices:
            raise typer.BadParameter(f"{found.record.name} is there already, with the GPUs it has", param_hint="--gpu")
        _start_again(found, settings, reporter, as_json=as_json)
        return
    from cvmtool.cli.files import read_file
    from cvmtool.flows.images import bring_up_to_date
    from cvmtool.flows.reporter import Stage
    from cvmtool.flows.vms import Wanted, start_vm
    from cvmtool.formats.job import Resources
    from cvmtool.owner.jobfile import Restart
    from cvmtool.owner.policyfile import parse_policy

    if restart not in tuple(Restart):
        raise typer.BadParameter("never or on-failure is required", param_hint="--restart")
    resources = Resources(vcpus=vcpus, memory_mib=size_of(memory, "--memory") >> 20, cpu=cpu)
    volumes_of_it = tuple(volume_of(text) for text in volume or ())
    judged_by = None if policy is None else parse_policy(read_file(policy, most=1 << 20).decode("utf-8", "replace"))
    with reporter.stage(Stage.BUILD, f"guest image {image}"):
        bundle = bring_up_to_date(image, settings, progress=reporter.step, notice=reporter.notice)
    wanted = Wanted(
        name=name or image,
        bundle=bundle,
        resources=resources,
        shell=shell,
        restart=Restart(restart),
        simulated=dry_run,
        volumes=volumes_of_it,
        disks=tuple(disk or ()),
        policy=judged_by,
        gpus=gpus,
    )
    with reporter.stage(Stage.START, f"starting {wanted.name}"):
        folder = start_vm(wanted, settings, reporter)
    _started(folder, settings, as_json=as_json)


@app.command()
def attest(machine: Machine, *, boot_timeout: BootTimeout = 300.0, as_json: Json = False) -> None:
    """Challenge a machine's guest with a new nonce, and judge what it shows. Nothing is released."""
    from cvmtool.cli.render import emit_schema

    with _in_hand(machine, boot_timeout, as_json=as_json) as (vm, reporter, settings):
        from cvmtool.flows.vmsession import session

        with session(vm, stage=reporter.stage) as opened:
            _show_verdict(opened, reporter)
        agent, gpus = opened.stage.value, opened.gpus
        if as_json:
            emit_schema("vm-attest", **standing_fields(vm.folder, settings, agent=agent, gpus=gpus))
        else:
            show_standing(vm.folder, settings, agent=agent, gpus=gpus)


@app.command()
def unlock(machine: Machine, *, boot_timeout: BootTimeout = 300.0, as_json: Json = False) -> None:
    """Attest a machine, and release what opens its volumes. One that is unlocked gets nothing again."""
    from cvmtool.cli.render import emit_schema

    with _in_hand(machine, boot_timeout, as_json=as_json) as (vm, reporter, settings):
        from cvmtool.flows.reporter import Stage
        from cvmtool.flows.vmsession import session
        from cvmtool.flows.vmsession import unlock as release

        with session(vm, stage=reporter.stage) as opened:
            _show_verdict(opened, reporter)
            with reporter.stage(Stage.UNLOCK, "releasing the keys"):
                release(vm, opened)
        hint = f"cvmtool vm ssh {machine}" if vm.challenge.manifest.shell else None
        if as_json:
            emit_schema("vm-unlock", **standing_fields(vm.folder, settings, agent="unlocked", gpus=opened.gpus))
        else:
            show_standing(vm.folder, settings, agent="unlocked", gpus=opened.gpus, hint=hint)


@app.command(context_settings={"allow_interspersed_args": False})
def ssh(
    machine: Machine,
    command: Annotated[
        list[str] | None, typer.Argument(help="What to run; the login shell by default.", metavar="COMMAND")
    ] = None,
) -> None:
    """Attest an unlocked machine and work in it. The exit status is the command's. A second session ends the first."""
    from cvmtool.cli.render import TerminalReporter
    from cvmtool.cli.terminal import raw, standard_ends, window
    from cvmtool.config import load_settings
    from cvmtool.flows.vmrecords import load_vm
    from cvmtool.flows.vms import open_vm
    from cvmtool.flows.vmsession import session
    from cvmtool.flows.vmshell import work_in

    settings, reporter = load_settings(), TerminalReporter()
    vm = open_vm(load_vm(settings.vms_dir, machine), settings, reporter, boot_seconds=60)
    try:
        with session(vm, stage=_quiet) as opened:
            # As ssh: the words are one line for the guest's shell. An option-like first word may be set off by `--`.
            given = command[1:] if command and command[0] == "--" else command
            words = " ".join(given) if given else None
            here = window() if words is None else None
            if here is None:
                status = work_in(vm, opened, words, ends=standard_ends(), window=None)
            else:
                with raw() as resized:
                    status = work_in(vm, opened, words, ends=standard_ends(), window=here, resized=resized)
    finally:
        vm.close()
    raise typer.Exit(status)


@app.command()
def status(
    machine: Machine,
    *,
    ask: Annotated[
        bool, typer.Option("--ask/--no-ask", help="Attest its guest; without, nobody is asked but the host.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Say how a machine stands, and what speaks for it. Ready is what its agent says in an attested session of its own."""
    from cvmtool.cli.render import TerminalReporter, emit_schema
    from cvmtool.config import load_settings
    from cvmtool.errors import HostError
    from cvmtool.flows.vmrecords import load_vm
    from cvmtool.flows.vms import open_vm
    from cvmtool.flows.vmsession import session

    settings = load_settings()
    folder = load_vm(settings.vms_dir, machine)
    agent, said, gpus = None, None, None
    if ask:
        reporter = TerminalReporter()
        try:
            vm = open_vm(folder, settings, reporter, boot_seconds=15)
            try:
                if vm.runs:
                    with session(vm, stage=_quiet) as opened:
                        agent, said, gpus = opened.stage.value, opened.status, opened.gpus
            finally:
                vm.close()
        except HostError as error:
            reporter.notice(error.message)
        folder = load_vm(settings.vms_dir, machine)
    if as_json:
        emit_schema("vm-status", **standing_fields(folder, settings, agent=agent, said=said, gpus=gpus))
    else:
        show_standing(folder, settings, agent=agent, gpus=gpus)


@app.command()
def stop(
    machine: Machine,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="As if its power failed; without, its guest closes the volumes first.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Stop a machine; its volumes and record stay, and `vm start NAME` starts it again. Idempotent."""
    from cvmtool.cli.render import emit_schema

    with _in_hand(machine, 60, as_json=as_json) as (vm, reporter, settings):
        from cvmtool.flows.vmsession import stop as stop_in_order
        from cvmtool.flows.vmsession import stop_by_force

        if vm.runs and force:
            with vm.folder.alone():
                stop_by_force(vm)
        elif vm.runs:
            stop_in_order(vm, stage=reporter.stage)
        if as_json:
            emit_schema("vm-stop", **standing_fields(vm.folder, settings))
        else:
            show_standing(vm.folder, settings, hint=f"cvmtool vm start {machine}")


@app.command()
def resume(machine: Machine, as_json: Json = False) -> None:
    """Let a machine go on that somebody paused, or whose host had no room. `train` and `vm watch` do so by themselves."""
    from cvmtool.cli.render import emit_schema
    from cvmtool.config import load_settings
    from cvmtool.flows.vms import resume_machine

    resume_machine(machine, load_settings())
    if as_json:
        emit_schema("vm-resume", machine=machine)
    else:
        typer.echo(f"{machine}: goes on", err=True)


@app.command()
def watch(
    machine: Annotated[list[str] | None, typer.Argument(help="Machines.", metavar="NAME")] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="Every machine that shall be started again.")] = False,
    as_json: Json = False,
) -> None:
    """Stand by machines with --restart on-failure: when one dies, start, attest and unlock it again. Until Ctrl-C."""
    from cvmtool.config import load_settings
    from cvmtool.flows.vmrecords import load_vm, load_vms
    from cvmtool.flows.vmwatch import watch_all
    from cvmtool.owner.jobfile import Restart

    settings = load_settings()
    if every:
        folders = [item for item in load_vms(settings.vms_dir) if item.record.restart is Restart.ON_FAILURE]
    else:
        folders = [load_vm(settings.vms_dir, name) for name in machine or ()]
    if not folders:
        raise typer.BadParameter("NAME or --all is required, and a machine with --restart on-failure")
    watch_all(folders, settings, lambda: _reporter(as_json=as_json))


@app.command("list")
def list_machines(as_json: Json = False) -> None:
    """List the machines that were started from this account, of jobs and without, and how each stands."""
    from cvmtool.cli.render import emit_schema, print_table
    from cvmtool.config import load_settings
    from cvmtool.flows.vmlist import list_machines as find

    found = find(load_settings())
    if as_json:
        emit_schema("vm-list", machines=[listed(item) for item in found])
        return
    if not found:
        typer.echo("no machine", err=True)
        return
    rows = ((item.name, item.standing.state.value, item.job, item.stage, item.uri) for item in found)
    print_table(("MACHINE", "STATE", "IMAGE/JOB", "LAST STAGE", "HOST"), rows)


@app.command()
def volumes(
    *,
    remove: Annotated[
        str | None, typer.Option("--remove", help="Delete a volume that no machine has, for good.", metavar="UUID")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the volumes of this account: encrypted disks on hosts, which outlive machines."""
    from cvmtool.cli.render import emit_schema, print_table
    from cvmtool.config import load_settings
    from cvmtool.flows.vms import remove_volume
    from cvmtool.flows.volumes import Volumes

    settings = load_settings()
    known = Volumes(settings.volumes_dir)
    if remove is not None:
        remove_volume(known.load(remove), settings)
    found = list(known.all())
    if as_json:
        emit_schema("vm-volumes", volumes=[volume_fields(record) for record in found])
        return
    if not found:
        typer.echo("no volume", err=True)
        return
    rows = (
        (item.name, item.luks_uuid, f"{item.size >> 20} MiB", item.machine or "kept", f"{item.host}: {item.path}")
        for item in found
    )
    print_table(("VOLUME", "UUID", "SIZE", "MACHINE", "WHERE"), rows)


@app.command()
def destroy(
    machine: Machine,
    *,
    host: Host = None,
    keep_volumes: Annotated[
        bool, typer.Option("--keep-volumes", help="Leave its volumes: another machine can have them.")
    ] = False,
    forget: Annotated[
        bool,
        typer.Option("--forget", help="Drop the record of a machine whose host is gone for good; nobody is asked."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Stop a machine at once and delete what its host holds of it. Idempotent. --host: for one that is not on record here."""
    from cvmtool.cli.render import emit_schema
    from cvmtool.config import load_settings
    from cvmtool.flows.vms import destroy_vm

    found = destroy_vm(machine, load_settings(host=host), keep_volumes=keep_volumes, forget=forget)
    if as_json:
        emit_schema("vm-destroy", machine=machine, found=found)
    else:
        typer.echo(f"{machine}: {'gone' if found else 'there was none'}", err=True)


app.command()(domain.render)


def _reporter(*, as_json: bool) -> JsonReporter | TerminalReporter:
    from cvmtool.cli.render import JsonReporter, TerminalReporter

    return JsonReporter() if as_json else TerminalReporter()


def _show_verdict(opened: VmSession, reporter: JsonReporter | TerminalReporter) -> None:
    reporter.verdict(opened.attached.guest)
    if opened.gpus is not None:
        reporter.gpu_verdict(opened.gpus)


def _quiet(_stage: object, _text: str) -> AbstractContextManager[None]:
    """Say nothing of stages: what a session shows is the guest's."""
    return nullcontext()


@contextmanager
def _in_hand(
    name: str, boot_seconds: float, *, as_json: bool
) -> Iterator[tuple[Vm, JsonReporter | TerminalReporter, Settings]]:
    from cvmtool.config import load_settings
    from cvmtool.flows.vmrecords import load_vm
    from cvmtool.flows.vms import open_vm

    settings, reporter = load_settings(), _reporter(as_json=as_json)
    vm = open_vm(load_vm(settings.vms_dir, name), settings, reporter, boot_seconds=boot_seconds)
    try:
        yield vm, reporter, settings
    finally:
        vm.close()


def _start_again(
    folder: VmDir, settings: Settings, reporter: JsonReporter | TerminalReporter, *, as_json: bool
) -> None:
    from cvmtool.flows.reporter import Stage
    from cvmtool.flows.vms import open_vm, start_again

    name = folder.record.name
    vm = open_vm(folder, settings, reporter)
    try:
        with folder.alone():
            if vm.runs:
                reporter.notice(f"{name} runs already")
            else:
                with reporter.stage(Stage.START, f"starting {name} again"):
                    start_again(vm, settings, reporter)
    finally:
        vm.close()
    _started(folder, settings, as_json=as_json)


def _started(folder: VmDir, settings: Settings, *, as_json: bool) -> None:
    from cvmtool.cli.render import emit_schema

    if as_json:
        emit_schema("vm-start", **standing_fields(folder, settings))
    else:
        show_standing(folder, settings, hint=f"cvmtool vm unlock {folder.record.name}")

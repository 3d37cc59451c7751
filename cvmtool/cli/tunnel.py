# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool jobs tunnel`, `exec` and `share`: the ways into a running job.

Zone: cli. They are commands of `cvmtool.cli.jobs`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvmtool.cli.options import Host, Json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cvmtool.cli.render import JsonReporter, TerminalReporter
    from cvmtool.config import Settings
    from cvmtool.flows.reporter import Stage
    from cvmtool.formats.control import LogRecord
    from cvmtool.owner.invitation import Invitation

Job = Annotated[
    str, typer.Argument(help="A run's id, the beginning of it, or the job's name (its latest run).", metavar="JOB")
]


def tunnel(
    job: Annotated[
        str | None, typer.Argument(help="A running job of this account; or --shared.", metavar="JOB")
    ] = None,
    port: Annotated[
        int | None,
        typer.Argument(help="A port that the job names; it may be left out if there is one.", metavar="PORT"),
    ] = None,
    *,
    listen: Annotated[
        str, typer.Option("--listen", help="Where to listen here; port 0 is any.", metavar="ADDRESS:PORT")
    ] = "127.0.0.1:0",
    shared: Annotated[
        Path | None,
        typer.Option("--shared", help="A job of another account: the file of its `jobs share`.", metavar="FILE"),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy", help="With --shared: what is acceptable, instead of what the file says.", metavar="FILE"
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --shared: the job may be a dry run's, SIMULATED / NOT CONFIDENTIAL.")
    ] = False,
    host: Host = None,
    as_json: Json = False,
) -> None:
    """Attest a running job's guest, and carry connections from here to one of its ports. Ctrl-C ends it; the job goes on."""
    from cvmtool.cli.render import emit_schema
    from cvmtool.flows.prepare import load_keys
    from cvmtool.flows.tunnel import listen as listening
    from cvmtool.flows.tunnel import serve
    from cvmtool.flows.visit import visit

    if shared is not None and job is not None and port is None and job.isdecimal():
        port, job = int(job), None  # the one number that is given is the port
    way = _way(job, shared, policy, host, dry_run=dry_run)
    invitation, settings = way.invitation, way.settings
    inside = _port(port, invitation)
    address, here = _address(listen)
    reporter = _reporter(as_json=as_json)
    try:
        with (
            visit(invitation, load_keys(settings), settings, kept_in=way.kept_in, stage=reporter.stage) as visited,
            listening(address, here) as listener,
        ):
            reporter.verdict(visited.guest)
            bound, number = listener.getsockname()[:2]
            if as_json:
                emit_schema(
                    "jobs-tunnel",
                    machine=invitation.machine,
                    simulated=visited.guest.simulated,
                    address=bound,
                    port=number,
                    inside=inside,
                    owner=invitation.manifest.owner_key,
                    case=str(visited.case),
                )
            else:
                typer.echo(f"http://{f'[{bound}]' if ':' in bound else bound}:{number}")
                if shared is not None:
                    owner = sha256(bytes.fromhex(invitation.manifest.owner_key)).hexdigest()
                    reporter.notice(
                        f"the job {invitation.manifest.name} of the owner with the fingerprint sha256:{owner}"
                    )
                reporter.notice(f"connections there reach port {inside} of {invitation.machine}, until Ctrl-C")
                reporter.notice(f"what speaks for its guest: cvmtool attest replay {visited.case}")
            serve(listener, visited.channel, inside, notice=reporter.notice, is_over=way.is_over)
            reporter.notice(f"the container of {invitation.machine} has ended")
    except KeyboardInterrupt:
        reporter.notice("closed; the job goes on")


def execute(
    job: Job,
    command: Annotated[list[str], typer.Argument(help="What to run, and its arguments.", metavar="COMMAND...")],
    *,
    as_json: Json = False,
) -> None:
    """Attest a running job's guest and run a command in its container, with the job's rights. The exit status is the command's."""
    from cvmtool.cli.render import JsonReporter, emit_schema
    from cvmtool.errors import ConfigError
    from cvmtool.flows.prepare import load_keys
    from cvmtool.flows.tunnel import run_command
    from cvmtool.flows.visit import visit

    way = _way_to(job)
    invitation, settings = way.invitation, way.settings
    if not invitation.manifest.access.exec:
        raise ConfigError(
            f"the job {invitation.manifest.name} allows no exec",
            hint="access: {exec: true} in job.yaml; what a job allows is fixed when it starts, and in its receipt",
        )
    # As with docker exec: all that follows the job is the command's. An option-like first word may be set off by `--`.
    given = tuple(command[1:] if command[0] == "--" else command)
    show = JsonReporter().log if as_json else _pass_on
    with visit(invitation, load_keys(settings), settings, kept_in=way.kept_in, stage=_quiet) as visited:
        status = run_command(visited.channel, given, stdin=sys.stdin.fileno(), show=show)
        if as_json:
            emit_schema(
                "jobs-exec",
                machine=invitation.machine,
                simulated=visited.guest.simulated,
                exit_code=status,
                case=str(visited.case),
            )
    raise typer.Exit(status)


def share(
    job: Job,
    *,
    out: Annotated[Path, typer.Option("--out", help="The file to write.", metavar="FILE")],
    as_json: Json = False,
) -> None:
    """Write what a client of a running job needs to find and to judge it. Nothing in it is secret; it lets nobody in by itself."""
    from cvmtool.cli.render import emit_schema
    from cvmtool.config import write_atomic

    invitation = _way_to(job).invitation
    write_atomic(out, invitation.encode() + b"\n", mode=0o644)
    access = invitation.manifest.access
    if as_json:
        emit_schema("jobs-share", file=str(out), tunnels=list(access.tunnels), clients=list(access.clients))
        return
    how = " --dry-run" if invitation.policy.trusted_roots().simulated else ""
    typer.echo(
        f"clients who are let in: {len(access.clients)}; each runs: cvmtool jobs tunnel --shared {out}{how}", err=True
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """All that a session with a running job needs, and what is known here of the job's end."""

    invitation: Invitation
    settings: Settings
    kept_in: Path
    is_over: Callable[[], bool]


def _way(job: str | None, shared: Path | None, policy: Path | None, host: str | None, *, dry_run: bool) -> _Way:
    from cvmtool.config import load_settings

    if (job is None) == (shared is None):
        raise typer.BadParameter("a job, or --shared FILE, is required", param_hint="JOB")
    if shared is not None:
        return _shared_way(shared, policy, load_settings(host=host), dry_run=dry_run)
    if policy is not None or host is not None or dry_run:
        raise typer.BadParameter(
            "belongs to --shared; a job's record knows it", param_hint="--policy, --host, --dry-run"
        )
    return _way_to(str(job))


def _way_to(job: str) -> _Way:
    from cvmtool.config import VISITS_DIR, load_settings
    from cvmtool.flows.jobs import load_job
    from cvmtool.flows.tunnel import comes_to_its_end
    from cvmtool.flows.visit import host_of, invite

    settings = load_settings()
    found = load_job(settings.jobs_dir, job)
    return _Way(
        invitation=invite(found, settings),
        settings=host_of(found, settings),
        kept_in=found.path / VISITS_DIR,
        is_over=partial(comes_to_its_end, found),
    )


def _shared_way(file: Path, policy: Path | None, settings: Settings, *, dry_run: bool) -> _Way:
    from cvmtool.cli.files import read_file
    from cvmtool.errors import ConfigError
    from cvmtool.owner.invitation import MAX_INVITATION, parse_invitation
    from cvmtool.owner.policyfile import parse_policy

    invitation = parse_invitation(read_file(file, most=MAX_INVITATION))
    if policy is not None:
        text = read_file(policy, most=MAX_INVITATION).decode("utf-8", "replace")
        invitation = replace(invitation, policy=parse_policy(text))
    if invitation.policy.trusted_roots().simulated and not dry_run:
        # Whoever can change the file could make a real service a pretended one.
        raise ConfigError(
            f"{policy or file} accepts simulated evidence: nothing of that job is confidential",
            hint="--dry-run says that this is meant",
        )
    return _Way(
        invitation=invitation,
        settings=settings,
        kept_in=settings.visits_dir,
        is_over=lambda: False,  # its owner alone knows
    )


def _port(port: int | None, invitation: Invitation) -> int:
    from cvmtool.errors import ConfigError

    named = invitation.manifest.access.tunnels
    if port is None and len(named) == 1:
        return named[0]
    if port not in named:
        listed = ", ".join(map(str, named)) or "none"
        raise ConfigError(
            f"port {'is missing' if port is None else port}; one that the job names is required: {listed}",
            hint="access: {tunnels: [PORT]} in job.yaml",
        )
    return port


def _address(text: str) -> tuple[str, int]:
    address, colon, port = text.rpartition(":")
    if not colon or not address or not port.isdecimal() or int(port) > 65_535:
        raise typer.BadParameter("ADDRESS:PORT is required, such as 127.0.0.1:8000", param_hint="--listen")
    return address.removeprefix("[").removesuffix("]"), int(port)


@contextmanager
def _quiet(_stage: Stage, _text: str) -> Iterator[None]:
    """Show nothing: standard error is the command's."""
    yield


def _pass_on(record: LogRecord) -> None:
    """Write what a command wrote, byte for byte, to the stream of ours that it is for."""
    descriptor = sys.stdout.fileno() if record.stream == 1 else sys.stderr.fileno()
    data = record.data
    with suppress(BrokenPipeError):  # whoever read it has seen enough; the exit code is still wanted
        while data:
            data = data[os.write(descriptor, data) :]


def _reporter(*, as_json: bool) -> JsonReporter | TerminalReporter:
    from cvmtool.cli.render import JsonReporter, TerminalReporter

    return JsonReporter() if as_json else TerminalReporter()

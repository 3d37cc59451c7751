# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""How a machine stands, for people and scripts; and sizes as people write them.

Zone: cli.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from cvmtool.config import Settings
    from cvmtool.flows.vmlist import Listed
    from cvmtool.flows.vmrecords import VmDir
    from cvmtool.flows.volumes import VolumeRecord
    from cvmtool.owner.gpu import VerifiedGpus

_SIZE = re.compile(r"([1-9][0-9]{0,8})(MiB|GiB|TiB)")
_UNITS = {"MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def standing_fields(
    folder: VmDir,
    settings: Settings,
    *,
    agent: str | None = None,
    said: dict[str, Any] | None = None,
    gpus: VerifiedGpus | None = None,
) -> dict[str, Any]:
    """Return what JSON says of one machine.

    `agent`: the stage it has just said in an attested session; `said`: all of that; `gpus`: verified in it.
    """
    from dataclasses import asdict

    from cvmtool.cli.gpus import gpu_fields
    from cvmtool.flows.volumes import Volumes

    record, known = folder.record, Volumes(settings.volumes_dir)
    return {
        **listed(_stand(folder, settings, agent)),
        "image": record.image,
        "image_digest": record.image_digest,
        "restart": record.restart.value,
        "created": record.created,
        "times": record.times,
        "attempts": [asdict(attempt) for attempt in record.attempts],
        "volumes": [volume_fields(known.load(luks_uuid)) for luks_uuid in record.volumes],
        "gpus": gpu_fields(record, gpus),
        "agent": said,
        "error": record.error,
        "folder": str(folder.path),
    }


def show_standing(
    folder: VmDir,
    settings: Settings,
    *,
    agent: str | None = None,
    gpus: VerifiedGpus | None = None,
    hint: str | None = None,
) -> None:
    """Tell a person how a machine stands, and what to do next."""
    from cvmtool.cli.gpus import gpu_line
    from cvmtool.cli.render import BANNER, printable

    found, record = _stand(folder, settings, agent), folder.record
    typer.echo(f"{record.name}: {found.standing.state.value}{', ready' if found.standing.ready else ''}")
    typer.echo(f"  {found.standing.evidence}")
    if found.simulated:
        typer.echo(f"  {BANNER}")
    if record.gpus:
        typer.echo(f"  {gpu_line(record, gpus)}")
    if record.error:
        typer.echo(f"  last refusal or failure: {printable(record.error)}")
    for milestone, time in record.times.items():
        typer.echo(f"  {milestone:<9} {time}")
    if hint is not None:
        typer.echo(f"next: {hint}", err=True)


def _stand(folder: VmDir, settings: Settings, agent: str | None) -> Listed:
    from cvmtool.flows.vmlist import stand
    from cvmtool.formats.control import Stage

    return stand(folder, settings, agent=None if agent is None else Stage(agent))


def listed(item: Listed) -> dict[str, Any]:
    """Return what JSON says of a machine in a list."""
    return {
        "name": item.name,
        "kind": item.kind,
        "state": item.standing.state.value,
        "ready": item.standing.ready,
        "evidence": item.standing.evidence,
        "job": item.job,
        "stage": item.stage,
        "uri": item.uri,
        "simulated": item.simulated,
    }


def volume_fields(record: VolumeRecord) -> dict[str, Any]:
    """Return what JSON says of a volume."""
    newest = record.history.acknowledged
    return {
        "name": record.name,
        "uuid": record.luks_uuid,
        "size": record.size,
        "host": record.host,
        "path": record.path,
        "machine": record.machine,
        "counter": newest.counter if newest else None,
    }


def volume_of(text: str) -> tuple[str, int]:
    """Read NAME:SIZE; the size in bytes."""
    name, _, size = text.partition(":")
    return name, size_of(size, "--volume")


def size_of(text: str, option: str) -> int:
    """Read a size, in bytes."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise typer.BadParameter(
            f"{text!r} is no size; a whole number with MiB, GiB or TiB is required", param_hint=option
        )
    return int(match[1]) * _UNITS[match[2]]

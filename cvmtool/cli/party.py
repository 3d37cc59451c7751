# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool party`: allow a job of somebody else to use your packs, look at its guest yourself, release them to it.

Zone: cli.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cvmtool.cli.files import read_file
from cvmtool.cli.options import Json

if TYPE_CHECKING:
    from cvmtool.config import Settings
    from cvmtool.flows.grants import KeptGrant
    from cvmtool.flows.party import PolicyOf
    from cvmtool.formats.job import JobManifest
    from cvmtool.owner.amdroots import Roots
    from cvmtool.owner.policy import Policy

_MAX_POLICY = 1 << 20  # bytes

app = typer.Typer(help="Let a job of other owners use your packs, on your terms.", no_args_is_help=True)

_Folder = Annotated[Path, typer.Argument(help="The exchange directory.", metavar="DIR", show_default=False)]
_Job = Annotated[str, typer.Option("--job", help="The job's id there, or its beginning.", metavar="ID")]


@app.command()
def show(folder: _Folder, *, job: _Job = "", as_json: Json = False) -> None:
    """Tell what a job wants to do with your packs, and whether a grant of yours allows it."""
    from cvmtool.cli.render import emit_schema, printable
    from cvmtool.config import load_settings
    from cvmtool.flows.grants import load_grants
    from cvmtool.flows.party import find_job
    from cvmtool.flows.prepare import load_keys
    from cvmtool.owner.age import render_recipient
    from cvmtool.owner.grants import ConsentError, choose_grant, packs_of

    settings = load_settings()
    keys = load_keys(settings)
    exchange, pooled = find_job(keys, folder, job)
    manifest, own = pooled.manifest, keys.public.hex()
    grants = [(kept.grant, kept.used()) for kept in load_grants(settings)]
    against: str | None = None
    try:
        grant: str | None = choose_grant(grants, manifest, at=datetime.now(UTC)).id
    except ConsentError as error:
        grant, against = None, error.message
    packs = {pack.name: pack.root_hash for pack in packs_of(manifest, own)}
    recipients = [render_recipient(bytes.fromhex(key)) for key in manifest.recipients]
    if as_json:
        emit_schema(
            "party-show",
            job=exchange.id,
            name=manifest.name,
            manifest=manifest.sha256.hex(),
            coordinator=manifest.owner_key,
            parties=dict(pooled.names),
            packs=packs,
            container_root=manifest.container_pack.root_hash,
            container=manifest.container.to_json(),
            outputs=[output.to_json() for output in manifest.outputs],
            recipients=recipients,
            log_mib=manifest.limits.log_mib,
            grant=grant,
            against=against,
        )
        return
    container = manifest.container
    lines = {
        "job": f"{exchange.id} ({manifest.name})",
        "coordinator": manifest.owner_key,
        "your packs": ", ".join(f"{name} ({root[:16]}...)" for name, root in packs.items()),
        "other parties": ", ".join(name for name, key in pooled.names.items() if key != own) or "none",
        "container": f"{container.oci_digest}, in the pack {manifest.container_pack.root_hash[:16]}...",
        "runs": f"{list(container.args)!r} in {container.workdir}",
        "environment": ", ".join(f"{name}={value}" for name, value in container.env) or "none",
        "may leave": ", ".join(f"{item.name} ({item.kind}, {item.max_bytes:,} bytes)" for item in manifest.outputs),
        "sealed to": ", ".join(recipients),
        "prints": f"at most {manifest.limits.log_mib} MiB, which the coordinator reads in clear",
        "network": "none",
        "grant": grant or f"none: {against}",
    }
    width = max(map(len, lines))
    for name, text in lines.items():
        typer.echo(f"{name:<{width}}  {printable(text)}".replace("\n", " "))


@app.command("grant")
def grant_job(
    folder: _Folder,
    *,
    packs: Annotated[
        list[Path],
        typer.Option("--pack", help="A pack of yours that the job may open.", metavar="PACK", show_default=False),
    ],
    job: _Job = "",
    expires: Annotated[str, typer.Option("--expires", help="For how long, such as 12h or 30d.", metavar="TIME")] = "7d",
    uses: Annotated[int, typer.Option("--uses", help="How many guests may open them.", min=1, max=1_000)] = 1,
    any_manifest: Annotated[
        bool,
        typer.Option(
            "--any-manifest", help="Also for later jobs with this container, command, outputs, recipients and log."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Allow a job that you looked at (`party show`) to use packs of yours. Nothing is released yet."""
    from cvmtool.cli.render import emit_schema
    from cvmtool.config import load_settings
    from cvmtool.flows.grants import give_grant
    from cvmtool.flows.party import find_job
    from cvmtool.flows.prepare import load_keys
    from cvmtool.owner.grants import Terms
    from cvmtool.owner.strictyaml import Reader

    settings = load_settings()
    keys = load_keys(settings)
    _, pooled = find_job(keys, folder, job)
    seconds = Reader({"--expires": expires}, "option", page="docs/howto/several-owners.md").seconds(
        "--expires", expires
    )
    terms = Terms(expires=datetime.now(UTC) + timedelta(seconds=seconds), uses=uses, any_manifest=any_manifest)
    kept = give_grant(pooled.manifest, packs, terms, settings=settings, keys=keys)
    if as_json:
        emit_schema("party-grant", **_row(kept), file=str(kept.folder / "grant.json"))
    else:
        typer.echo(kept.grant.id)


@app.command()
def refuse(
    folder: _Folder,
    *,
    reason: Annotated[str, typer.Option("--reason", help="Why: the coordinator sees it.", show_default=False)],
    job: _Job = "",
    as_json: Json = False,
) -> None:
    """Say no to a job: it does not run, for nobody."""
    from cvmtool.cli.render import emit_schema
    from cvmtool.config import load_settings
    from cvmtool.flows import party
    from cvmtool.flows.prepare import load_keys

    keys = load_keys(load_settings())
    exchange, pooled = party.find_job(keys, folder, job)
    party.refuse(keys, exchange, pooled, reason)
    if as_json:
        emit_schema("party-refuse", job=exchange.id, name=pooled.manifest.name, reason=reason)


@app.command()
def grants(as_json: Json = False) -> None:
    """List what you allowed, and how often it was used."""
    from cvmtool.cli.render import emit_schema, print_table
    from cvmtool.config import load_settings
    from cvmtool.flows.grants import load_grants

    kept_grants = load_grants(load_settings())
    if as_json:
        emit_schema("party-grants", grants=[_row(kept) for kept in kept_grants])
        return
    print_table(
        ("GRANT", "COORDINATOR", "PACKS", "FOR", "USED", "EXPIRES"),
        [
            (
                kept.grant.id[:8],
                f"{kept.grant.coordinator[:16]}...",
                str(len(kept.grant.packs)),
                "any manifest" if kept.grant.manifest is None else f"{kept.grant.manifest[:16]}...",
                f"{len(kept.used())} of {kept.grant.uses}",
                kept.grant.expires,
            )
            for kept in kept_grants
        ],
    )


@app.command()
def revoke(
    grant: Annotated[str, typer.Argument(help="A grant's id, or its beginning.", metavar="GRANT", show_default=False)],
    *,
    as_json: Json = False,
) -> None:
    """Take a grant back: nothing is released under it any more. What a guest got before, it has."""
    from cvmtool.cli.render import emit_schema
    from cvmtool.config import load_settings
    from cvmtool.flows.grants import revoke_grant

    revoked = revoke_grant(load_settings(), grant)
    if as_json:
        emit_schema("party-revoke", id=revoked.id)
    else:
        typer.echo(revoked.id)


@app.command()
def answer(
    folder: _Folder,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Go on for ever, for every job that a grant allows.")] = False,
    image: Annotated[str, typer.Option("--image", help="The guest image that you accept.", metavar="NAME")] = "base",
    policy: Annotated[
        Path | None,
        typer.Option("--policy", help="What you accept of a guest; by default cvmtool's baseline.", metavar="FILE"),
    ] = None,
    simulated_root: Annotated[
        str | None,
        typer.Option("--simulated-root", help="For dry runs: SHA-256 of the coordinator's root.", metavar="HEX"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Consent to a job that a grant allows, judge its guest yourself, and release your packs to it; or say why not."""
    from cvmtool.cli.render import BANNER, emit_schema, error_console, printable, show_error
    from cvmtool.config import load_settings
    from cvmtool.flows import party as flow
    from cvmtool.flows.prepare import load_keys

    settings = load_settings()
    policy_of = _policy_of(settings, image, policy, simulated_root)
    party = flow.Party(keys=load_keys(settings), settings=settings, policy_of=policy_of)

    def told(event: flow.Event) -> None:
        guest = event.guest
        if as_json:
            emit_schema(
                "party-answer",
                job=event.job,
                name=event.name,
                round=event.round,
                grant=event.grant,
                event="consented" if guest is None else "released",
                simulated=guest.simulated if guest else None,
                checks=[check.to_json() for check in guest.checks] if guest else [],
            )
        elif guest is None:
            typer.echo(
                f"{event.job} ({printable(event.name)}): consented with grant {event.grant[:8]}; waiting for its guest"
            )
        else:
            typer.echo(
                f"{event.job} ({printable(event.name)}): the guest passed {len(guest.checks)} checks; released your packs to it"
                + (f": {BANNER}" if guest.simulated else "")
            )

    if not as_json:
        error_console().print(f"waiting for jobs that want packs of yours in {folder}", markup=False)
    if watch:
        flow.watch(party, folder, told=told, refused=lambda _, error: show_error(error, as_json=as_json))
    else:
        flow.answer(party, folder, told=told)


def _row(kept: KeptGrant) -> dict[str, object]:
    grant = kept.grant
    return {
        "id": grant.id,
        "coordinator": grant.coordinator,
        "manifest": grant.manifest,
        "packs": [pack.root_hash for pack in grant.packs],
        "uses": grant.uses,
        "used": dict(kept.used()),
        "expires": grant.expires,
    }


def _policy_of(settings: Settings, image: str, policy: Path | None, simulated_root: str | None) -> PolicyOf:
    """Return what this owner accepts: a policy of theirs, or the baseline for a guest image that they have themselves."""
    from cvmtool.cli.render import TerminalReporter
    from cvmtool.flows.images import bring_up_to_date
    from cvmtool.flows.reporter import Stage
    from cvmtool.formats.manifest import Mode
    from cvmtool.formats.wire import parse_hex
    from cvmtool.owner.amdroots import AmdRoots, SimulatedRoot
    from cvmtool.owner.policy import baseline
    from cvmtool.owner.policyfile import parse_policy

    if policy is not None:
        judged_by = parse_policy(read_file(policy, most=_MAX_POLICY).decode("utf-8", "replace"))
        return lambda _manifest: judged_by
    roots: Roots = AmdRoots()
    mode = Mode.PRODUCTION
    if simulated_root is not None:
        roots, mode = SimulatedRoot(parse_hex(simulated_root, 32, what="--simulated-root")), Mode.DRYRUN
    reporter = TerminalReporter()
    with reporter.stage(Stage.BUILD, f"guest image {image}"):
        bundle = bring_up_to_date(image, settings, progress=reporter.step, notice=reporter.notice)

    def of(manifest: JobManifest) -> Policy:
        shape = manifest.resources
        return baseline(
            roots=roots,
            measurements=frozenset({bundle.manifest.launch_digest(mode, shape.cpu, shape.vcpus)}),
            host_data=frozenset({manifest.host_data}),
        )

    return of

# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""`cvmtool receipt`: what a run proved, checked offline.

Zone: cli.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cvmtool.cli.options import Json

if TYPE_CHECKING:
    from cvmtool.formats.receipt import Statement
    from cvmtool.owner.receiptplain import Account
    from cvmtool.owner.receipts import AuthenticReceipt, VerifiedReceipt

app = typer.Typer(help="Read and verify the receipts of runs, offline.", no_args_is_help=True)

Receipt = Annotated[Path, typer.Argument(help="A receipt.", metavar="FILE")]
At = Annotated[
    datetime | None,
    typer.Option("--at", help="The time to verify at (UTC); now by default.", formats=["%Y-%m-%dT%H:%M:%SZ"]),
]


@app.command()
def show(
    receipt: Receipt,
    *,
    plain: Annotated[
        bool,
        typer.Option(
            "--plain", help="In plain words: what was proven and by whom, what is somebody's word, what is not shown."
        ),
    ] = False,
    policy: Annotated[
        Path | None,
        typer.Option("--policy", help="With --plain: also judge the guest that signed it.", metavar="FILE"),
    ] = None,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Show what a receipt says, unverified; with --plain verify it against AMD's roots, and say what it is worth."""
    from cvmtool.cli.render import emit_schema
    from cvmtool.formats.dsse import parse_envelope
    from cvmtool.formats.receipt import parse_statement
    from cvmtool.owner.receiptplain import account

    data = _read(receipt)
    statement = parse_statement(parse_envelope(data).payload)
    if plain:
        held = _held(data, statement, policy, at)
        told = account(statement, held)
        if as_json:
            emit_schema("receipt-plain", simulated=statement.simulated, verified=held is not None, **told.to_json())
            return
        _tell(told)
        return
    if policy is not None or at is not None:
        raise typer.BadParameter("--policy and --at belong to --plain, or to cvmtool receipt verify")
    if as_json:
        emit_schema("receipt-show", verified=False, **_as_json(statement))
        return
    typer.echo("unverified; cvmtool receipt verify checks it", err=True)
    _print(statement)
    if statement.simulated:
        typer.echo(_worth(), err=True)


@app.command()
def verify(
    receipt: Receipt,
    *,
    policy: Annotated[Path | None, typer.Option("--policy", help="What is acceptable.", metavar="FILE")] = None,
    job: Annotated[
        str | None,
        typer.Option(
            "--job",
            help="A run of this account, as for `jobs show`: what was acceptable to it, and its manifest.",
            metavar="JOB",
        ),
    ] = None,
    at: At = None,
    files: Annotated[
        Path | None, typer.Option("--files", help="Also check the outputs in this directory.", metavar="DIR")
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(
            "--manifest", help="Also check it against the job's manifest (manifest.json of its record).", metavar="FILE"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify a receipt: report, keys, job, signature. A simulated one never passes a policy for real hardware.

    What is acceptable says either --policy, or --job of who ran it.
    """
    from cvmtool.cli.render import emit_schema
    from cvmtool.owner.policyfile import parse_policy
    from cvmtool.owner.receipts import require_manifest, verify_receipt

    policy, manifest = _required(policy, manifest, job)
    verified = verify_receipt(_read(receipt), parse_policy(_read(policy).decode("utf-8", "replace")), _moment(at))
    if manifest is not None:
        require_manifest(verified.statement, _read(manifest))
    if files is not None:
        _check_files(verified.statement, files)
    if as_json:
        emit_schema(
            "receipt-verify", verified=True, by_simulated_root=verified.guest.simulated, **_as_json(verified.statement)
        )
        return
    _print(verified.statement)
    typer.echo(f"verified: {_worth()}" if verified.guest.simulated else "verified", err=True)


def _required(policy: Path | None, manifest: Path | None, job: str | None) -> tuple[Path, Path | None]:
    """Return the policy and the manifest that are asked for, or those of the record of a run."""
    if job is None:
        if policy is None:
            raise typer.BadParameter("--policy FILE is required, or --job JOB for a run of this account")
        return policy, manifest
    if policy is not None or manifest is not None:
        raise typer.BadParameter("--job stands for --policy and --manifest; one or the other is required")
    from cvmtool.config import load_settings
    from cvmtool.flows.jobs import MANIFEST_FILE, POLICY_FILE, load_job

    folder = load_job(load_settings().jobs_dir, job).path
    return folder / POLICY_FILE, folder / MANIFEST_FILE


def _moment(at: datetime | None) -> datetime:
    from datetime import UTC

    return at.replace(tzinfo=UTC) if at else datetime.now(UTC)


def _held(
    data: bytes, statement: Statement, policy: Path | None, at: datetime | None
) -> VerifiedReceipt | AuthenticReceipt | None:
    """Verify as much as can be: a simulated receipt without a policy names no root that anybody could be asked about."""
    from cvmtool.owner.amdroots import AmdRoots
    from cvmtool.owner.policyfile import parse_policy
    from cvmtool.owner.receipts import authenticate_receipt, verify_receipt

    if policy is not None:
        return verify_receipt(data, parse_policy(_read(policy).decode("utf-8", "replace")), _moment(at))
    return None if statement.simulated else authenticate_receipt(data, AmdRoots(), _moment(at))


def _tell(told: Account) -> None:
    from textwrap import fill

    from cvmtool.cli.render import printable

    typer.echo(told.headline)
    for title, sentences in (
        ("Proven", told.proven or ("nothing",)),
        ("Said by the program in the guest; as good as that program", told.said_by_the_guest),
        ("Said by the owner or the host", told.said_by_owner_or_host),
        ("Not shown by this or any receipt", told.not_shown),
    ):
        typer.echo(f"\n{title}")
        for sentence in sentences:
            typer.echo(
                fill(printable(sentence), 100, initial_indent="  - ", subsequent_indent="    ", break_long_words=False)
            )


def _worth() -> str:
    """What stands on every screen that shows a simulated receipt."""
    from cvmtool.cli.render import BANNER
    from cvmtool.owner.receiptplain import SIMULATED

    return f"{BANNER}: {SIMULATED}"


def _read(path: Path) -> bytes:
    from cvmtool.errors import ConfigError
    from cvmtool.formats.dsse import MAX_ENVELOPE

    try:
        with path.open("rb") as file:
            return file.read(2 * MAX_ENVELOPE)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read", detail=str(error)) from error


def _check_files(statement: Statement, folder: Path) -> None:
    import hashlib

    from cvmtool.errors import VerificationError

    for item in statement.outputs:
        try:
            with (folder / item.name).open("rb") as file:
                actual = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise VerificationError(f"output {item.name} cannot be read", detail=str(error)) from error
        if actual != item.sha256:
            raise VerificationError(f"output {item.name} is sha256:{actual}; the receipt says sha256:{item.sha256}")


def _as_json(statement: Statement) -> dict[str, Any]:
    return {
        "simulated": statement.simulated,
        "launch_digest": statement.measurement.hex(),
        "image_id": statement.image_id.hex(),
        "owner_key": statement.owner_key.hex(),
        "manifest_sha256": statement.manifest_sha256.hex(),
        "container_digest": statement.container_digest,
        "inputs": [
            {"name": item.name, "role": item.role.value, "root_hash": item.root_hash, "owner": item.owner}
            for item in statement.inputs
        ],
        "network": statement.network.value,
        "access": [item.value for item in statement.access],
        "accesses": statement.accesses.to_json(),
        "destinations": [flow.to_json() for flow in statement.egress.flows] if statement.egress else [],
        "turned_away": statement.egress.turned_away if statement.egress else 0,
        "gpus": statement.gpus,
        "outputs": [
            {"name": item.name, "kind": item.kind.value, "size": item.size, "sha256": item.sha256}
            for item in statement.outputs
        ],
        "log": {"sha256": statement.log_sha256, "size": statement.log_size},
        "exit_code": statement.exit_code,
        "started": statement.started,
        "finished": statement.finished,
    }


def _in_words(part: object) -> str:
    return ", ".join(part) if isinstance(part, list) else str(part)


def _print(statement: Statement) -> None:
    from cvmtool.cli.render import printable

    for key, value in _as_json(statement).items():
        items = (value or ["none"]) if isinstance(value, list) else [value]
        for item in items:
            text = "  ".join(map(_in_words, item.values())) if isinstance(item, dict) else str(item)
            typer.echo(f"{key:<18} {printable(text)}")

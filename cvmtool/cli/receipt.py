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

app = typer.Typer(help="Read and verify the receipts of runs, offline.", no_args_is_help=True)

Receipt = Annotated[Path, typer.Argument(help="A receipt.", metavar="FILE")]


@app.command()
def show(receipt: Receipt, as_json: Json = False) -> None:
    """Show what a receipt says, unverified."""
    from cvmtool.cli.render import emit_schema
    from cvmtool.formats.receipt import parse_envelope, parse_statement

    statement = parse_statement(parse_envelope(_read(receipt)).payload)
    if as_json:
        emit_schema("receipt-show", verified=False, **_as_json(statement))
        return
    typer.echo("unverified; cvmtool receipt verify checks it", err=True)
    _print(statement)


@app.command()
def verify(
    receipt: Receipt,
    *,
    policy: Annotated[Path, typer.Option("--policy", help="What is acceptable.", metavar="FILE")],
    at: Annotated[
        datetime | None,
        typer.Option("--at", help="The time to verify at (UTC); now by default.", formats=["%Y-%m-%dT%H:%M:%SZ"]),
    ] = None,
    files: Annotated[
        Path | None, typer.Option("--files", help="Also check the outputs in this directory.", metavar="DIR")
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify a receipt: report, keys, job, signature. A simulated one never passes a policy for real hardware."""
    from datetime import UTC

    from cvmtool.cli.render import BANNER, emit_schema
    from cvmtool.owner.policyfile import parse_policy
    from cvmtool.owner.receipts import verify_receipt

    moment = at.replace(tzinfo=UTC) if at else datetime.now(UTC)
    verified = verify_receipt(_read(receipt), parse_policy(_read(policy).decode("utf-8", "replace")), moment)
    if files is not None:
        _check_files(verified.statement, files)
    if as_json:
        emit_schema(
            "receipt-verify", verified=True, by_simulated_root=verified.guest.simulated, **_as_json(verified.statement)
        )
        return
    _print(verified.statement)
    typer.echo(f"verified: {BANNER}" if verified.guest.simulated else "verified", err=True)


def _read(path: Path) -> bytes:
    from cvmtool.errors import ConfigError
    from cvmtool.formats.receipt import MAX_RECEIPT

    try:
        with path.open("rb") as file:
            return file.read(2 * MAX_RECEIPT)
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
        "owner_key": statement.owner_key.hex(),
        "manifest_sha256": statement.manifest_sha256.hex(),
        "container_digest": statement.container_digest,
        "inputs": [{"name": name, "root_hash": root} for name, root in statement.inputs],
        "outputs": [{"name": item.name, "size": item.size, "sha256": item.sha256} for item in statement.outputs],
        "log": {"sha256": statement.log_sha256, "size": statement.log_size},
        "exit_code": statement.exit_code,
        "started": statement.started,
        "finished": statement.finished,
    }


def _print(statement: Statement) -> None:
    from cvmtool.cli.render import printable

    for key, value in _as_json(statement).items():
        items = value if isinstance(value, list) else [value]
        for item in items:
            text = "  ".join(str(part) for part in item.values()) if isinstance(item, dict) else str(item)
            typer.echo(f"{key:<18} {printable(text)}")

# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The root of the command line, and the one place where an error becomes a message and an exit code.

Zone: cli. `COMMANDS` is all that the root knows of what lies below it: the module of a command is imported when it is called.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

from cvmtool import __version__
from cvmtool.cli import interrupt
from cvmtool.errors import CvmError

_INTERRUPTED = 130

COMMANDS = {
    "train": "Train on sealed data inside a confidential VM, and bring the model and a receipt home.",
    "fit": "Say whether a job fits, with numbers, before anything is sealed or started.",
    "bench": "Say what confidentiality costs a job: its time by phase natively, in a plain VM and in the confidential VM.",
    "doctor": "Say what a host can run, and how to mend what it cannot.",
    "drill": "Attack a dry run in every way we know, and see each attack refused: `drill NAME`, or `drill` for all of them.",
    "image": "Build guest images and training containers, and prove that they can be built again.",
    "measure": "The launch digest that a machine must have, worked out without it. `measure BUNDLE` measures a guest image.",
    "attest": "Read an attestation report, and decide whether to believe and accept it.",
    "data": "Seal data into packs that only an attested guest opens.",
    "model": "Sign models, and verify who signed them (OpenSSF Model Signing).",
    "party": "Let a job of other owners use your packs, on your terms.",
    "jobs": "Look at runs, reach into them, end them, take them up again.",
    "host": "Name the hosts that machines run on, and look after what they keep.",
    "vm": "Confidential machines without a job: start, attest, unlock, work in them, stop. And every machine there is.",
    "unseal": "Open results that a job sealed to its recipients. age opens them, too: age -d -i FILE.",
    "receipt": "Read and verify the receipts of runs, offline.",
    "rules": "What a run may take, where it may run and what may come out.",
    "key": "The owner's keys: one seed, from which all others follow.",
}
"""Name -> what it says of itself in one line. Command or group NAME is the `app` of `cvmtool.cli.NAME`."""


class Later(TyperCommand):
    """A command or group that shows its one line, and is imported when it is called or completed."""

    def load(self) -> TyperCommand | TyperGroup:
        """Import it. A module of one command holds it under its own name."""
        group = get_group(import_module(f"cvmtool.cli.{self.name}").app)
        single = group.commands.get(str(self.name))
        return single if isinstance(single, TyperCommand) else group

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:  # noqa: ANN401 - click's
        """Go on with what this stands for: from here on the context has that command."""
        return self.load().make_context(info_name, args, parent, **extra)


class _Commands(TyperGroup):
    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - Typer's
        super().__init__(**options)
        self.commands = {name: Later(name, help=line) for name, line in COMMANDS.items()}


app = typer.Typer(
    name="cvmtool",
    cls=_Commands,
    help="Train on data nobody else may see: AMD SEV-SNP confidential virtual machines, built, attested and run.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"cvmtool {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line and exit with the code that docs/reference/errors.md lists."""
    interrupt.install()
    try:
        # No command returns a value; what comes back is the code of a typer.Exit, an interruption's 130 included.
        code = app(standalone_mode=False) or 0
    except CvmError as error:
        from cvmtool.cli.render import show_error

        show_error(error, as_json="--json" in sys.argv)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("cvmtool: interrupted", err=True)
        sys.exit(_INTERRUPTED)
    except Exception as error:
        # Click's usage errors know how to show themselves; typer does not export their class.
        if not hasattr(error, "show") or not hasattr(error, "exit_code"):
            raise
        if "--json" in sys.argv:
            from cvmtool.cli.render import emit_schema

            emit_schema(
                "error",
                exit_code=2,
                error="UsageError",
                message=error.format_message() if hasattr(error, "format_message") else str(error),
                detail=None,
                hint="cvmtool COMMAND --help",
                findings=[],
            )
        else:
            error.show()
        sys.exit(2)
    if code == _INTERRUPTED:
        typer.echo("cvmtool: interrupted", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()

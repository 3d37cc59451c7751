# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The root of the command line, and the one place where an error becomes a message and an exit code.

Zone: cli.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cvmtool import __version__
from cvmtool.cli import attest, data, image, interrupt, jobs, key, measure, receipt, vm
from cvmtool.cli.drill import drill
from cvmtool.cli.train import train
from cvmtool.errors import CvmError

_INTERRUPTED = 130

app = typer.Typer(
    name="cvmtool",
    help="Train on data nobody else may see: AMD SEV-SNP confidential virtual machines, built, attested and run.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
app.command()(train)
app.command()(drill)
app.add_typer(image.app, name="image")
app.add_typer(measure.app, name="measure")
app.add_typer(attest.app, name="attest")
app.add_typer(data.app, name="data")
app.add_typer(jobs.app, name="jobs")
app.add_typer(vm.app, name="vm")
app.add_typer(receipt.app, name="receipt")
app.add_typer(key.app, name="key")


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

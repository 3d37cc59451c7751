# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share.

Zone: cli.
"""

from __future__ import annotations

from typing import Annotated

import typer

Host = Annotated[
    str | None, typer.Option("--host", help="A libvirt URI, or the name of a host in the settings.", metavar="HOST")
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")]

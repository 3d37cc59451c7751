# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A group of commands one of which is meant when no other is named.

Zone: cli.
"""

from __future__ import annotations

from typing import Any, ClassVar

from typer.core import TyperGroup


class DefaultsTo(TyperGroup):
    """`GROUP WORD` is `GROUP DEFAULT WORD` where WORD is no command; `GROUP` alone is DEFAULT too, unless it shows help."""

    default: ClassVar[str]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - click's, which typer brings along
        """Put the default in front of words that name no command."""
        named = args[0] in (*self.commands, "--help") if args else self.no_args_is_help
        return super().parse_args(ctx, args if named else [self.default, *args])

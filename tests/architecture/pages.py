# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""docs/reference/cli.md as the commands themselves tell it; `pytest --update-golden` writes it anew."""

from typing import Any

import typer

from cvmtool.cli.app import Later, app

HEAD = """\
# The command line

Made from the commands themselves; `pytest tests/architecture/test_docs.py --update-golden` writes this page anew.

Data goes to standard output, everything else to standard error. With `--json` standard output carries one document, or JSON lines
for a run ([json.md](json.md)); an error is a document too. Exit codes: [errors.md](errors.md). Settings come from flags, then
`CVMTOOL_*`, then `cvmtool.toml` ([files.md](files.md)).
"""


def commands() -> dict[str, Any]:
    """Return every command by its words, groups left out."""
    found: dict[str, Any] = {}

    def walk(words: tuple[str, ...], command: Any) -> None:
        command = command.load() if isinstance(command, Later) else command
        inner = getattr(command, "commands", None)
        if inner is None:
            found[" ".join(words)] = command
            return
        for name, further in inner.items():
            walk((*words, name), further)

    walk(("cvmtool",), typer.main.get_command(app))
    return found


def render_cli() -> str:
    """Return the page."""
    parts = [HEAD]
    group = ""
    for words, command in commands().items():
        section = words.split(" ")[1]
        if section != group:
            group = section
            parts.append(f"## {section}\n")
        arguments = [param for param in command.params if param.param_type_name == "argument"]
        options = [param for param in command.params if param.param_type_name == "option"]
        usage = " ".join([words, *(_usage(argument) for argument in arguments), "[OPTIONS]"])
        parts.append(f"### `{words}`\n\n{' '.join((command.help or '').split())}\n\n    {usage}\n")
        rows = [f"| `{_name(argument)}` | {argument.help or ''}{_default(argument)} |" for argument in arguments]
        rows += [f"| `{_option(option)}` | {option.help or ''}{_default(option)} |" for option in options]
        if rows:
            parts.append("| | |\n|---|---|\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def _name(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper()).strip("[]")


def _usage(argument: Any) -> str:
    return _name(argument) if argument.required else f"[{_name(argument)}]"


def _option(option: Any) -> str:
    if getattr(option, "is_flag", False):
        return ", ".join(option.opts)
    return f"{', '.join(option.opts)} {option.metavar or option.name.upper()}"


def _default(param: Any) -> str:
    if param.required:
        return " Required." if param.param_type_name == "option" else ""
    return "" if param.default in (None, False, "") else f" Default: `{param.default}`."

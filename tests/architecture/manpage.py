# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""docs/man/cvmtool.1 as the commands themselves tell it; `pytest --update-golden` writes it anew."""

import inspect
import re
from typing import Any

from cvmtool import errors
from tests.architecture.pages import commands

HEAD = """\
.\\" Made from the commands themselves: pytest tests/architecture/test_docs.py --update-golden
.TH CVMTOOL 1 "" cvmtool "User Commands"
.SH NAME
cvmtool \\- build, start, attest and use AMD SEV\\-SNP confidential virtual machines
.SH SYNOPSIS
.B cvmtool
.I COMMAND
.RI [ ARGUMENTS ]
.RI [ OPTIONS ]
.SH DESCRIPTION
Train on data nobody else may see: the data is sealed on its owner's machine, and its keys leave for a virtual machine whose
launch and processor were verified, on a host that is trusted with nothing.
.PP
Data goes to standard output, everything else to standard error.
With
.B \\-\\-json
standard output carries one document, or JSON lines for a run; an error is a document too.
A dry run
.RB ( \\-\\-dry\\-run )
goes the same way without SEV\\-SNP, with memory encryption and AMD's signature simulated. It is confidential to nobody.
"""
TAIL = """\
.SH ENVIRONMENT
.TP
.B CVMTOOL_*
Settings by their name in upper case, such as
.BR CVMTOOL_HOST .
Flags win over them, and they over the settings file.
.TP
.B XDG_STATE_HOME\\fR, \\fBXDG_DATA_HOME\\fR, \\fBXDG_CACHE_HOME\\fR, \\fBXDG_CONFIG_HOME
Where keys and runs, guest images, what can be fetched again, and the settings are kept.
.SH FILES
.TP
.I $XDG_STATE_HOME/cvmtool
The owner's seed, sealed packs, runs and refusals. Whoever reads the seed opens every pack.
.TP
.I cvmtool.toml
Settings: in the working directory, else below
.IR $XDG_CONFIG_HOME .
.SH COMPLETION
.nf
cvmtool \\-\\-install\\-completion
.fi
for the shell that is running; it takes effect in the next one.
.SH SEE ALSO
.BR virsh (1),
.BR qemu\\-system\\-x86_64 (1),
.BR cryptsetup (8)
.PP
What is not proven: docs/limitations.md in the source.
"""
_OWN_CODES = ((0, "success"), (1, "a fault in cvmtool"), (2, "wrong usage"), (130, "interrupted"))


def render_man() -> str:
    """Return the page in the man macros of groff and mandoc."""
    parts = [HEAD, ".SH COMMANDS\n"]
    for words, command in commands().items():
        arguments = [param for param in command.params if param.param_type_name == "argument"]
        usage = " ".join(_argument(argument) for argument in arguments)
        parts.append(f".SS {_text(f'{words} {usage}'.strip())}\n{_line(' '.join((command.help or '').split()))}\n")
        parts += [f".TP\n{_head(param)}\n{_line(param.help)}\n" for param in command.params if param.help]
    parts.append(".SH EXIT STATUS\n")
    parts += [f".TP\n.B {code}\n{_line(text)}\n" for code, text in sorted((*_OWN_CODES, *_codes()))]
    parts.append(TAIL)
    return "".join(parts)


def _codes() -> list[tuple[int, str]]:
    found = []
    for cls in vars(errors).values():
        if inspect.isclass(cls) and issubclass(cls, errors.CvmError) and cls is not errors.CvmError:
            text = (inspect.getdoc(cls) or "").split(": `findings`", maxsplit=1)[0].split("\n", maxsplit=1)[0]
            found.append((cls.exit_code, f"{text[0].lower()}{text[1:].rstrip('.')}"))
    return found


def _argument(argument: Any) -> str:
    name = str(argument.metavar or argument.name.upper()).strip("[]")
    return name if argument.required else f"[{name}]"


def _head(param: Any) -> str:
    if param.param_type_name == "argument":
        return f".I {_text(str(param.metavar or param.name.upper()).strip('[]'))}"
    names = ", ".join(param.opts)
    value = "" if getattr(param, "is_flag", False) else f" \\fI{_text(str(param.metavar or param.name.upper()))}"
    return f".B {_text(names)}{value}"


def _line(text: str) -> str:
    escaped = _text(text)
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def _text(text: str) -> str:
    return re.sub(r"[\\-]", lambda match: "\\e" if match[0] == "\\" else "\\-", text).replace("`", "")

# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Completion in a real bash: the script that `--show-completion` prints is sourced, and its function asked."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BINARIES = Path(sys.executable).parent
ASK = """\
eval "$(cvmtool --show-completion)"
COMP_WORDS=({words}) COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
_cvmtool_completion cvmtool
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def complete(words):
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    done = subprocess.run(
        [bash, "--norc", "-c", f"PATH={BINARIES}:$PATH\n" + ASK.format(words=words)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("cvmtool rec", ["receipt"]),
        ("cvmtool attest ver", ["verify"]),
        ("cvmtool train --dry", ["--dry-run"]),
        ("cvmtool nothing-like-this", []),
    ],
)
def test_bash_completes(words, found):
    assert complete(words) == found


def test_every_group_is_offered():
    offered = complete("cvmtool ''")
    assert {"train", "image", "measure", "attest", "vm", "doctor"} <= set(offered)

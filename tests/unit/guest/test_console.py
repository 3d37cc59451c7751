# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

from cvmtool.guest.console import Console, Word


def test_each_word_is_said_once(tmp_path):
    path = tmp_path / "console"
    path.touch()
    console = Console(path)
    lines = []
    for word in (Word.AGENT, Word.AGENT, Word.DONE):
        console.say(word)
        lines.append(path.read_bytes())
    assert lines == [b"CVM-STAGE agent\n", b"CVM-STAGE agent\n", b"CVM-STAGE done\n"]


def test_a_console_that_is_gone_is_no_reason_to_stop():
    Console(Path("/nonexistent/console")).say(Word.AGENT)

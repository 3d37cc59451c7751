# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from cvmtool.cli import interrupt
from cvmtool.cli.interrupt import PATIENCE_SECONDS, Interruption


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_first_ends_and_the_next_let_it_clean_up(clock, capfd):
    handler = Interruption()
    with pytest.raises(KeyboardInterrupt):
        handler(signal.SIGINT, None)
    assert capfd.readouterr().err == ""
    for _ in range(3):
        handler(signal.SIGINT, None)
    assert capfd.readouterr().err.count("removing what was started") == 1


def test_a_clean_up_that_hangs_can_be_ended(clock):
    handler = Interruption()
    with pytest.raises(KeyboardInterrupt):
        handler(signal.SIGTERM, None)
    clock[0] += PATIENCE_SECONDS
    handler(signal.SIGTERM, None)
    clock[0] += 0.1
    with pytest.raises(KeyboardInterrupt):
        handler(signal.SIGTERM, None)


def test_a_terminal_that_is_gone_is_not_written_to():
    pid, master = pty.fork()
    if pid == 0:
        handler = Interruption()
        os.close(0)
        try:
            handler(signal.SIGHUP, None)
        except KeyboardInterrupt:
            os._exit(0 if not os.isatty(1) and not os.isatty(2) and os.write(2, b"x") == 1 else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(master)


def test_what_was_ignored_stays_ignored(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        interrupt.install()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert isinstance(signal.getsignal(signal.SIGTERM), Interruption)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


ENDING = """
import os, sys
from cvmtool.cli import interrupt

class Late:
    def __del__(self, write=os.write, read=os.read):
        write(1, b"ended\\n")  # Python has given the signals back by now
        read(0, 1)

interrupt.install()
sys.last = Late()
sys.exit(130)
"""


def test_a_signal_while_python_ends_takes_no_exit_code_away():
    with subprocess.Popen([sys.executable, "-c", ENDING], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"ended\n"
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            process.send_signal(number)
        process.communicate(b"\n", timeout=30)
    assert process.returncode == 130


@pytest.fixture
def run(tmp_path):
    """Run a program as `python -m` does, under which alone CPython looks out for a KeyboardInterrupt that it met anywhere."""

    def run_program(text):
        (tmp_path / "program.py").write_text(text)
        return subprocess.run(
            [sys.executable, "-m", "program"], check=False, cwd=tmp_path, capture_output=True, text=True, timeout=60
        )

    return run_program


def test_an_interruption_inside_exec_takes_no_exit_code_away(run):
    """Where a module that is imported makes a dataclass. Of a plain KeyboardInterrupt CPython would die."""
    program = """
import os, signal, sys
from cvmtool.cli import interrupt

interrupt.install()
try:
    exec("os.kill(os.getpid(), signal.SIGTERM)\\nfor _ in range(100): pass")
except KeyboardInterrupt:
    sys.exit(130)
print("go on")
"""
    assert run(program).returncode == 130
    plain = program.replace("interrupt.install()", "signal.signal(signal.SIGTERM, signal.default_int_handler)")
    assert run(plain).returncode == -signal.SIGINT


@pytest.mark.parametrize("slow", [False, True], ids=["quick", "slow"])
def test_an_interruption_that_python_can_only_ignore_comes_again(run, slow):
    """On a machine that is slow it does so before Python has made an end of the first, and would be lost with that."""
    program = f"""
import os, signal, sys, time
from cvmtool.cli import interrupt

class Slow(interrupt.Interruption):
    waits = {slow}

    def _raise_later(self):
        super()._raise_later()
        if self.waits:
            self.waits = False
            time.sleep(0.5)

interrupt.Interruption = Slow

class Final:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)  # SIGINT is ignored below whoever started the tests in the background

interrupt.install()
try:
    Final()
    for _ in range(6000):
        time.sleep(0.01)
except KeyboardInterrupt:
    sys.exit(130)
print("go on")
"""
    assert run(program).returncode == 130


def test_of_anything_else_that_is_lost_python_says_what_it_always_does(run):
    program = """
from cvmtool.cli import interrupt

class Final:
    def __del__(self):
        raise ValueError("in a finalizer")

interrupt.install()
Final()
"""
    result = run(program)
    assert "ValueError: in a finalizer" in result.stderr
    assert result.returncode == 0

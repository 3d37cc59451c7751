# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import json
import os
import re
import signal
import subprocess
import sys

import pytest
import typer

from cvmtool import __version__, errors
from cvmtool.cli import app as module
from cvmtool.errors import AppraisalError, CvmError, Finding
from cvmtool.flows import jobs

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@pytest.fixture
def run(monkeypatch, capsys):
    """A function that runs the command line as a process would, and returns its code and what it wrote."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["cvmtool", *arguments])
        with pytest.raises(SystemExit) as ending:
            module.main()
        said = capsys.readouterr()
        return ending.value.code or 0, said.out, said.err

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


def failing(monkeypatch, error):
    def load(_folder):
        raise error

    monkeypatch.setattr(jobs, "load_jobs", load)


def test_the_version(run):
    assert run("--version") == (0, f"cvmtool {__version__}\n", "")


@pytest.mark.parametrize(
    "arguments", [("nothing",), ("jobs", "nothing"), ("jobs", "list", "--nothing"), ("jobs", "show")]
)
def test_wrong_usage_is_code_2_and_said_on_stderr(run, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert "Usage" in err


def test_wrong_usage_with_json_is_a_document(run):
    code, out, err = run("jobs", "show", "--json")
    document = json.loads(out)
    assert (code, err, document["exit_code"], document["error"]) == (2, "", 2, "UsageError")
    assert document["message"]


ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CvmError)]
HOSTILE = "it \x1b[2J[bold]failed\x07"


def made(kind):
    if kind is AppraisalError:
        findings = (Finding(code="measurement", field="f", actual=HOSTILE, required="r"),)
        return kind(HOSTILE, findings=findings, detail=HOSTILE, hint="do this")
    return kind(HOSTILE, detail=HOSTILE, hint="do this")


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_ends_in_its_code_and_speaks_on_stderr(run, monkeypatch, kind):
    failing(monkeypatch, made(kind))
    code, out, err = run("jobs", "list")
    assert (code, out) == (kind.exit_code, "")
    assert "cvmtool: error: it \\x1b[2J[bold]failed\\x07" in err
    assert "cvmtool: hint: do this" in err
    assert CONTROL.search(err) is None


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_with_json_is_one_document_on_stdout(run, monkeypatch, kind):
    failing(monkeypatch, made(kind))
    code, out, err = run("jobs", "list", "--json")
    document = json.loads(out)
    assert (code, err) == (kind.exit_code, "")
    assert document["schema"] == "cvmtool/error/v1"
    assert (document["exit_code"], document["error"]) == (kind.exit_code, kind.__name__)
    assert (document["message"], document["detail"], document["hint"]) == (HOSTILE, HOSTILE, "do this")
    assert len(document["findings"]) == (kind is AppraisalError)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), typer.Abort()])
def test_an_interruption_is_code_130(run, monkeypatch, error):
    failing(monkeypatch, error)
    code, out, err = run("jobs", "list")
    assert (code, out) == (130, "")
    assert "interrupted" in err


def test_being_terminated_is_an_interruption(run, monkeypatch):
    monkeypatch.setattr(jobs, "load_jobs", lambda _folder: os.kill(os.getpid(), signal.SIGTERM))
    assert run("jobs", "list")[0] == 130


def test_an_exit_code_of_a_command_is_the_processs(run, monkeypatch):
    failing(monkeypatch, typer.Exit(7))
    assert run("jobs", "list")[0] == 7


def test_a_bug_is_not_hidden(monkeypatch):
    handler = signal.getsignal(signal.SIGTERM)
    failing(monkeypatch, ZeroDivisionError("a bug"))
    monkeypatch.setattr(sys, "argv", ["cvmtool", "jobs", "list"])
    try:
        with pytest.raises(ZeroDivisionError):
            module.main()
    finally:
        signal.signal(signal.SIGTERM, handler)


def commands(group, path=()):
    for name, entry in group.commands.items():
        command = entry.load() if isinstance(entry, module.Later) else entry
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands(typer.main.get_command(module.app)))


def test_the_names_that_scripts_rely_on_are_there():
    for text in (
        "train",
        "drill run",
        "drill export",
        "image build",
        "image list",
        "image show",
        "image reproduce",
        "measure raw",
        "measure explain",
        "attest show",
        "attest verify",
        "attest replay",
        "data pack",
        "data show",
        "jobs list",
        "jobs show",
        "jobs logs",
        "vm list",
        "vm destroy",
        "vm render",
        "receipt show",
        "receipt verify",
        "key show",
    ):
        assert tuple(text.split()) in COMMANDS, text


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_takes_json_and_says_what_it_does(path):
    command = COMMANDS[path]
    if path != ("vm", "ssh"):  # it passes on the bytes of a session, whatever they are
        assert any("--json" in parameter.opts for parameter in command.params)
    assert command.help
    for parameter in command.params:
        assert getattr(parameter, "help", None), parameter.name


@pytest.mark.parametrize("name", module.COMMANDS)
def test_the_root_says_of_each_command_what_it_says_of_itself(name):
    command = module.Later(name).load()
    assert command.help.split("\n\n")[0].replace("\n", " ") == module.COMMANDS[name]


def test_a_command_that_is_not_there_is_guessed(run):
    code, _, err = run("measur")
    assert code == 2
    assert "Did you mean 'measure'?" in " ".join(err.split())


@pytest.mark.parametrize(
    ("words", "at", "offered"),
    [("", 1, {*module.COMMANDS}), ("vm ", 2, {"list", "destroy", "render"}), ("jobs show --j", 3, {"--json"})],
    ids=["root", "group", "option"],
)
def test_the_shell_completes_what_is_imported_later(words, at, offered):
    asked = {"_CVMTOOL_COMPLETE": "complete_bash", "COMP_WORDS": f"cvmtool {words}", "COMP_CWORD": str(at)}
    code = "import sys; sys.argv[0] = 'cvmtool'; from cvmtool.cli.app import main; main()"
    environment = {**os.environ, **asked}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert offered <= set(ran.stdout.split())

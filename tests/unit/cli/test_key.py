# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import json
import stat

import pytest
from typer.testing import CliRunner

from cvmtool.cli.app import app
from cvmtool.config import load_settings
from cvmtool.errors import ConfigError
from cvmtool.owner.age import parse_recipient
from cvmtool.owner.keystore import parse_keys
from cvmtool.owner.sshkey import parse_ssh_key


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CVMTOOL_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "state"


def show(*arguments):
    return CliRunner().invoke(app, ["key", "show", *arguments])


def test_the_seed_is_the_owners_alone(home):
    assert show().exit_code == 0
    assert stat.S_IMODE(load_settings().keystore.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_it_is_made_once_and_never_shown(home):
    first, second = json.loads(show("--json").stdout), json.loads(show("--json").stdout)
    assert first == second
    assert first["schema"] == "cvmtool/key-show/v1"
    data = load_settings().keystore.read_bytes()
    assert first["public"] == parse_keys(data).public.hex()
    assert parse_recipient(first["recipient"]) == parse_keys(data).recipient
    assert parse_ssh_key(first["ssh"]) == parse_keys(data).public
    assert first["ssh"] in show().output
    seed = data.decode().split()[1]
    assert seed not in show().output
    assert seed not in json.dumps(first)


def test_a_damaged_file_is_named_and_neither_shown_nor_replaced(home):
    show()
    path = load_settings().keystore
    damaged = path.read_bytes()[:-9]
    path.write_bytes(damaged)
    result = show()
    assert isinstance(result.exception, ConfigError)
    assert damaged.decode().split()[1] not in str(result.exception)
    assert path.read_bytes() == damaged

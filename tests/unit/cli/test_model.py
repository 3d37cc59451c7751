# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from cvmtool.cli.app import app
from cvmtool.errors import ConfigError, VerificationError


def model(*arguments):
    return CliRunner().invoke(app, ["model", *map(str, arguments)])


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_what_is_signed_is_verified_by_the_key_that_is_printed(folder, tmp_path):
    signed = model("sign", folder)
    assert (signed.exit_code, signed.stdout.strip()) == (0, str(folder / "model.sig"))
    (tmp_path / "key.pem").write_text(model("key").stdout)
    assert model("verify", folder).exit_code == 0
    verified = json.loads(model("verify", folder, "--signer", tmp_path / "key.pem", "--json").stdout)
    assert verified["files"] == ["config.json"]
    assert verified == json.loads(model("sign", folder, "--json").stdout) | {"schema": "cvmtool/model-verify/v1"}
    assert json.loads(model("key", "--json").stdout)["pem"] == (tmp_path / "key.pem").read_text()


def test_another_model_is_not_verified(folder):
    model("sign", folder)
    (folder / "config.json").write_text("{ }")
    refused = model("verify", folder)
    assert isinstance(refused.exception, VerificationError)
    assert refused.exception.exit_code == 5


def test_a_model_is_packed_if_its_signer_is_the_one_named(folder, tmp_path):
    save_file({"w": np.zeros(3, np.float32)}, folder / "model.safetensors")
    (tmp_path / "key.pem").write_text(model("key").stdout)

    def pack(*arguments):
        command = ["data", "pack", folder, "--out", tmp_path / "p", "--signer", tmp_path / "key.pem", *arguments]
        return CliRunner().invoke(app, list(map(str, command)))

    assert isinstance(pack("--kind", "model").exception, VerificationError)
    model("sign", folder)
    assert isinstance(pack().exception, ConfigError)
    assert not (tmp_path / "p").exists()
    assert pack("--kind", "model").exit_code == 0

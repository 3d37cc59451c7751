# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""The service of the digits, run as its container runs it, on this machine. (In a guest: tests/scenario/test_serve.py.)"""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cvmtool.owner.jobfile import parse_job_file

EXAMPLES = Path(__file__).parents[3] / "examples"
FOLDER = EXAMPLES / "serve-digits"
THREE = (FOLDER / "three.json").read_bytes()


class Service:
    def __init__(self):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        command = [sys.executable, FOLDER / "app/serve.py", "--model", EXAMPLES / "digits/inputs/model"]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.port)],
            env={"PYTHONPATH": str(EXAMPLES / "digits"), "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for line in self.process.stdout:
            if "on port" in line:
                break

    def ask(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        said = json.load(answer)
        connection.close()
        return answer.status, said

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        said, _ = self.process.communicate(timeout=30)
        return self.process.returncode, said


@pytest.fixture(scope="module")
def service():
    service = Service()
    yield service
    service.process.kill()
    service.process.communicate()


def test_it_tells_a_three(service):
    status, said = service.ask("POST", "/v1/predict", THREE)
    assert status == 200
    assert [item["digit"] for item in said["predictions"]] == [3]
    assert said["predictions"][0]["probability"] > 0.99


def test_several_at_once(service):
    images = json.loads(THREE)["images"] * 5
    _, said = service.ask("POST", "/v1/predict", json.dumps({"images": images}))
    assert [item["digit"] for item in said["predictions"]] == [3] * 5


def test_it_says_that_it_is_ready(service):
    assert service.ask("GET", "/health") == (200, {"status": "ready"})


@pytest.mark.parametrize("path", ["/", "/v1/predict"])
def test_there_is_nothing_else_to_get(service, path):
    assert service.ask("GET", path)[0] == 404


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no json",
        b"[]",
        b"{}",
        b'{"images": []}',
        b'{"images": [1]}',
        b'{"images": [["a"]]}',
        json.dumps({"images": [[0] * 63]}).encode(),
        json.dumps({"images": [[2] * 64]}).encode(),
        json.dumps({"images": [[0] * 64] * 257}).encode(),
        json.dumps({"images": [[0] * 63 + [float("nan")]]}).encode(),
        json.dumps({"images": [[0] * 64], "more": 1}).encode(),
        b"[" * 100_000,
    ],
    ids=lambda body: repr(body[:24]),
)
def test_what_is_no_question_gets_its_reason(service, body):
    status, said = service.ask("POST", "/v1/predict", body)
    assert (status, set(said)) == (400, {"error"})


def test_a_question_has_a_size(service):
    assert service.ask("POST", "/v1/predict", b"", **{"Content-Length": str(2 << 20)})[0] == 413


def test_it_ends_in_order_when_it_is_asked_to():
    service = Service()
    service.ask("POST", "/v1/predict", THREE)
    code, said = service.end()
    assert code == 0
    assert '{"requests": 1}' in said
    assert said.endswith("1 requests answered\n")


JOBS = (EXAMPLES / "serve-digits/job.yaml", EXAMPLES / "transformer/serve.yaml")


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.parent.name)
def test_a_service_of_the_examples_is_a_job_with_its_trainings_container(path):
    text = path.read_text()
    job = parse_job_file(text)
    assert job.access.tunnels == (8000,)
    folder = (path.parent / re.search("oci-archive:(.*)", text)[1]).resolve().parent
    assert parse_job_file((folder / "job.yaml").read_text()).container_digest == job.container_digest

# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Manifest and status services on this machine, a GPU of our own, and a session with a verified guest."""

import base64
import json
import threading
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cvmtool.errors import ConfigError, FormatError
from cvmtool.flows.collateral import KeyService, Store
from cvmtool.flows.gpu import (
    GpuWish,
    NvidiaCollateral,
    attest_gpus,
    nvidia_collateral,
    refuse_gpus_in_a_dry_run,
)
from cvmtool.formats.channel import find_last_open
from cvmtool.formats.control import Op
from cvmtool.formats.gpu import parse_gpu_evidence
from cvmtool.owner.appraise import RefusedError
from cvmtool.owner.checks import NotGenuineError
from cvmtool.owner.gpu import StaleGpuError
from cvmtool.owner.gpupolicy import encode_gpu_policy
from cvmtool.owner.ocsp import status_path
from tests.fakes.guest import FakeGuest
from tests.fakes.nvidia import DRIVER, NOW, FakeNvidia
from tests.unit.owner.test_gpupolicy import LOOSE, POLICY

NVIDIA = FakeNvidia()
GPU = NVIDIA.gpu()


class Services:
    """Answers both by path; `asked` is what was asked for."""

    def __init__(self):
        self.answers = {
            f"/v1/rim/{name}": json.dumps({"id": name, "rim": base64.b64encode(document).decode()}).encode()
            for name, document in NVIDIA.manifests().items()
        }
        self.asked = []
        links = [
            (GPU.brom, NVIDIA.identity),
            (NVIDIA.identity, NVIDIA.device_root),
            (NVIDIA.rim_signer, NVIDIA.rim_ca),
            (NVIDIA.rim_ca, NVIDIA.rim_root),
        ]
        for one, above in links:
            self.answers[status_path(one.certificate, above.certificate)] = NVIDIA.status(one, above)

    @contextmanager
    def serving(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append(self.path)
                body = outer.answers.get(self.path)
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()


@pytest.fixture
def services():
    found = Services()
    with found.serving() as url:
        found.url = url
        yield found


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    base = FakeGuest(tmp_path_factory.mktemp("base")).manifest
    manifest = replace(base, resources=replace(base.resources, gpus=1))
    return FakeGuest(tmp_path_factory.mktemp("guest"), manifest=manifest)


@pytest.fixture(scope="module")
def guest(fake):
    session = fake.session()
    return session.judge(fake.answer(find_last_open(session.challenge())[0]), datetime.now(UTC))


class Channel:
    """The session with the guest, whose driver has these GPUs."""

    def __init__(self, report_data, *gpus):
        self.report_data, self.gpus = report_data, gpus

    def request(self, op):
        assert op is Op.GPU_EVIDENCE
        return {"ok": True, "gpus": [gpu.evidence(self.report_data, n).to_json() for n, gpu in enumerate(self.gpus)]}


@pytest.fixture
def attest(tmp_path, fake, guest, services):
    def attest(*gpus, policy=POLICY, online=True, report_data=guest.report_data, manifest=fake.manifest, at=NOW):
        service = KeyService(services.url, attempts=1) if online else None
        collateral = NvidiaCollateral(
            store=Store(tmp_path / "kept"), manifests=service, statuses=service, roots=NVIDIA.roots
        )
        attest.kept = []
        channel = Channel(report_data, *gpus)
        return attest_gpus(channel, guest, manifest, policy, collateral=collateral, at=at, keep=attest.kept.append)

    return attest


def codes(caught):
    return [finding.code for finding in caught.value.findings]


def test_the_gpus_of_a_verified_guest_are_verified(attest, guest):
    gpus = attest(GPU)
    assert (gpus.report_data, gpus.devices) == (guest.report_data, ("41431d480fe5e87274",))
    (document,) = attest.kept
    assert json.loads(document)["report_data"] == guest.report_data.hex()
    assert parse_gpu_evidence({"gpus": json.loads(document)["gpus"]})[0].certificates == GPU.pem


def test_a_job_without_gpus_asks_nobody(attest, fake, services):
    manifest = replace(fake.manifest, resources=replace(fake.manifest.resources, gpus=0))
    assert attest(GPU, manifest=manifest) is None
    assert services.asked == attest.kept == []


def test_without_a_policy_nothing_is_trusted(attest):
    with pytest.raises(ConfigError, match="no GPU policy"):
        attest(GPU, policy=None)


def test_evidence_of_another_session_is_stale_and_kept(attest):
    with pytest.raises(StaleGpuError):
        attest(GPU, report_data=b"E" * 64)
    assert len(attest.kept) == 1


def test_what_was_fetched_serves_again_without_the_services(attest, services):
    attest(GPU)
    services.asked.clear()
    assert attest(GPU, online=False).devices
    assert services.asked == []


def test_manifests_are_fetched_once_and_the_status_each_time(attest, services):
    attest(GPU)
    services.asked.clear()
    attest(GPU)
    assert len(services.asked) == 4
    assert not [path for path in services.asked if path.startswith("/v1/rim/")]


def test_without_anything_kept_there_is_no_trust(attest):
    with pytest.raises(RefusedError) as caught:
        attest(GPU, online=False)
    assert codes(caught) == ["gpu-driver-manifest", "gpu-vbios-manifest", "gpu-measurements", "gpu-revocation"]


def test_services_that_know_nothing_are_findings_not_failures(attest, services):
    services.answers.clear()
    with pytest.raises(RefusedError) as caught:
        attest(GPU)
    assert "gpu-driver-manifest" in codes(caught)


def test_a_policy_that_leaves_revocation_unchecked_asks_nobody_about_it(attest, services):
    assert attest(GPU, policy=LOOSE)
    assert len(services.asked) == 2


def test_a_manifest_of_somebody_else_is_refused(attest, services):
    forged = FakeNvidia().manifest(DRIVER, (8, 22, 36))
    name = f"/v1/rim/NV_GPU_DRIVER_GH100_{DRIVER}"
    services.answers[name] = json.dumps({"rim": base64.b64encode(forged).decode()}).encode()
    with pytest.raises(NotGenuineError):
        attest(GPU)


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b'{"rim": 1}', b'{"rim": "!"}', b'{"rim": "AAAA"}'])
def test_an_answer_that_is_none_is_refused(attest, services, answer):
    services.answers[f"/v1/rim/NV_GPU_DRIVER_GH100_{DRIVER}"] = answer
    with pytest.raises(FormatError):
        attest(GPU)


def test_a_kept_manifest_that_somebody_changed_is_fetched_anew(attest, services, tmp_path):
    attest(GPU)
    kept = tmp_path / f"kept/NV_GPU_DRIVER_GH100_{DRIVER}.swidtag"
    kept.write_bytes(kept.read_bytes().replace(b"550.90.07", b"550.90.08"))
    services.asked.clear()
    assert attest(GPU)
    assert f"/v1/rim/NV_GPU_DRIVER_GH100_{DRIVER}" in services.asked


def test_gpus_and_their_policy_are_wanted_together():
    text = encode_gpu_policy(POLICY)
    wish = GpuWish.named(["0000:41:00.0"], text)
    assert ([gpu.address for gpu in wish.devices], wish.judged_by) == (["0000:41:00.0"], POLICY)
    assert GpuWish.named((), None) == GpuWish()
    assert GpuWish().judged_by is None


@pytest.mark.parametrize(
    ("addresses", "policy", "complaint"),
    [
        (["0000:41:00.0"], None, "1 GPUs are named and no GPU policy is given"),
        ([], encode_gpu_policy(POLICY), "a GPU policy is given and no GPU is named"),
        ([], "", "a GPU policy is given and no GPU is named"),
        (["0000:41:00.0"], "", "gpu policy"),
        (["41:00.0"], encode_gpu_policy(POLICY), "GPU address"),
        (["0000:41:00.0"] * 2, encode_gpu_policy(POLICY), "twice"),
        ([f"0000:{number}:00.0" for number in range(40, 49)], encode_gpu_policy(POLICY), "at most 8"),
    ],
)
def test_what_is_no_wish_is_refused(addresses, policy, complaint):
    with pytest.raises(ConfigError, match=complaint):
        GpuWish.named(addresses, policy)


def test_nobody_is_asked_where_nobody_shall_be(tmp_path):
    offline = nvidia_collateral(tmp_path, online=False)
    assert (offline.manifests, offline.statuses) == (None, None)
    assert nvidia_collateral(tmp_path).manifests is not None


def test_a_dry_run_has_no_gpu():
    with pytest.raises(ConfigError, match=r"resources\.gpus is 1; a dry run has none"):
        refuse_gpus_in_a_dry_run(1)
    refuse_gpus_in_a_dry_run(0)

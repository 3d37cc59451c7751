# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A key service on this machine that throttles, truncates, lies and dies."""

import contextlib
import itertools
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from cvmtool.errors import ConfigError, FormatError, HostError, VerificationError
from cvmtool.flows import collateral
from cvmtool.flows.collateral import KeyService, Store, collect
from cvmtool.formats.report import parse_report
from cvmtool.formats.tcb import ProductLine
from cvmtool.owner.amdroots import AmdRoots, SimulatedRoot
from cvmtool.owner.kds import inquire
from tests import fakes

AMD = fakes.fake_amd()
REPORT = fakes.launch(AMD).report
INQUIRY = inquire(parse_report(REPORT))
VCEK = AMD.vcek_certificate(AMD.chip(), INQUIRY.tcb)
ROOT = SimulatedRoot(AMD.root_fingerprint)
NOW = datetime.now(UTC)


def pem(der):
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509 import load_der_x509_certificate

    return load_der_x509_certificate(der).public_bytes(Encoding.PEM)


CHAIN = pem(AMD.ask) + pem(AMD.ark)


def honest():
    return {INQUIRY.vek_path: VCEK, INQUIRY.chain_path: CHAIN, INQUIRY.crl_path: AMD.crl()}


class Server:
    """Answers by path; `script` holds what happens first, one entry a request."""

    def __init__(self):
        self.answers = honest()
        self.script: list[Callable[[BaseHTTPRequestHandler], None]] = []
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.asked.append(self.path)
                if outer.script:
                    outer.script.pop(0)(self)
                    return
                if self.path not in outer.answers:
                    status(404)(self)
                    return
                body = outer.answers[self.path]
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


def status(code, **headers):
    def answer(handler):
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def truncated(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(VCEK)))
    handler.end_headers()
    handler.wfile.write(VCEK[:100])
    handler.close_connection = True


def dead(handler):
    handler.close_connection = True
    handler.connection.close()


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(bytes(collateral.MAX_ANSWER_BYTES + 1))


@pytest.fixture
def server():
    made = Server()
    yield made
    made.close()


@pytest.fixture
def waits():
    return []


@pytest.fixture
def ask(server, waits, tmp_path):
    """Collect for the report, from this server and a store of this test."""
    service = KeyService(server.url, sleep=waits.append, clock=NOW.timestamp, timeout=5)

    def call(**changes):
        arguments = {"roots": ROOT, "at": NOW, "store": Store(tmp_path / "kds"), "service": service, **changes}
        return collect(arguments.pop("report", REPORT), **arguments)

    return call


def kept(tmp_path):
    return sorted(path.name for path in (tmp_path / "kds").rglob("*") if path.is_file())


def test_everything_is_fetched_once_and_then_kept(ask, server, tmp_path):
    first = ask()
    assert first.certificates == (VCEK, CHAIN)
    assert first.crl == server.answers[INQUIRY.crl_path]
    assert sorted(first.fetched) == sorted(server.answers)
    assert len(server.asked) == 3
    again = ask()
    assert again.fetched == ()
    assert (again.certificates, again.crl) == (first.certificates, first.crl)
    assert ask(service=None).certificates == first.certificates
    assert len(server.asked) == 3
    assert kept(tmp_path) == sorted([f"{INQUIRY.hwid.hex()}-{INQUIRY.tcb.encode().hex()}.der", "vcek.crl", "vcek.pem"])


def test_what_is_given_is_not_asked_for(ask, server):
    assert ask(given=(VCEK,)).fetched == (INQUIRY.chain_path, INQUIRY.crl_path)
    server.asked.clear()
    assert ask(given=(VCEK, AMD.ask, AMD.ark), crl=AMD.crl()).fetched == ()
    assert server.asked == []


def test_without_a_network_what_is_missing_is_named(ask, server):
    with pytest.raises(HostError) as refused:
        ask(service=None)
    assert "simulated/Genoa/" in refused.value.message
    assert server.asked == []


@pytest.mark.parametrize("code", [429, 503])
def test_a_busy_service_is_waited_for_as_it_asks(ask, server, waits, code):
    server.script = [status(code, Retry_After="7"), status(code, Retry_After="junk"), status(code)]
    assert ask().certificates[0] == VCEK
    assert waits == [7.0, 4.0, 8.0]


def test_a_date_is_a_way_to_ask_too(ask, server, waits):
    from email.utils import format_datetime

    when = (NOW + timedelta(seconds=30)).replace(microsecond=0)
    server.script = [status(429, Retry_After=format_datetime(when, usegmt=True))]
    ask()
    assert 28 < waits[0] <= 30


def test_a_service_that_asks_for_too_much_patience_is_given_up(ask, server, waits):
    server.script = [status(429, Retry_After="3600")]
    with pytest.raises(HostError) as refused:
        ask()
    assert "http status 429" in refused.value.message
    assert waits == []


def test_a_service_that_stays_busy_is_given_up_within_the_budget(ask, server, waits):
    server.script = [status(429, Retry_After="50")] * 50
    with pytest.raises(HostError):
        ask()
    assert len(server.asked) <= collateral.ATTEMPTS
    assert sum(waits) <= collateral.BUDGET_SECONDS


@pytest.mark.parametrize("fault", [truncated, dead, status(500), status(502)], ids=["truncated", "dead", "500", "502"])
def test_a_fault_that_passes_is_survived(ask, server, waits, fault):
    server.script = [fault]
    assert ask().certificates[0] == VCEK
    assert waits == [2.0]


@pytest.mark.parametrize("fault", [truncated, dead], ids=["truncated", "dead"])
def test_a_fault_that_stays_is_the_hosts_and_nothing_is_kept(ask, server, tmp_path, fault):
    server.script = [fault] * 50
    with pytest.raises(HostError) as refused:
        ask()
    assert refused.value.exit_code == 8
    assert len(server.asked) == collateral.ATTEMPTS
    assert kept(tmp_path) == []


def test_a_server_that_drips_is_ended(server, waits, monkeypatch):
    def drip(handler):
        handler.send_response(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(20):
                handler.wfile.write(b"x")

    # A clock that runs a second at each look.
    monkeypatch.setattr(collateral, "time", SimpleNamespace(monotonic=itertools.count(0.0).__next__))
    server.script = [drip] * collateral.ATTEMPTS
    with pytest.raises(HostError) as refused:
        KeyService(server.url, sleep=waits.append, timeout=0.1).get("/x")
    assert "TimeoutError" in refused.value.message


@pytest.mark.parametrize(
    ("fault", "asked"), [(status(404), 1), (status(403), 1), (endless, 1), (status(302, Location="/elsewhere"), 1)]
)
def test_a_plain_no_is_not_asked_again(ask, server, waits, fault, asked):
    server.script = [fault]
    with pytest.raises(HostError):
        ask()
    assert len(server.asked) == asked
    assert waits == []


def other(number=1):
    return AMD.vcek_certificate(AMD.chip(number), INQUIRY.tcb)


@pytest.mark.parametrize(
    ("path", "lie", "error"),
    [
        (INQUIRY.vek_path, other(), VerificationError),
        (INQUIRY.vek_path, b"<html>sign in to the network</html>", FormatError),
        (INQUIRY.vek_path, b"", FormatError),
        (INQUIRY.chain_path, VCEK, VerificationError),
        (INQUIRY.chain_path, b"-----BEGIN CERTIFICATE-----", FormatError),
        (INQUIRY.crl_path, AMD.crl(revoke_ask=True), VerificationError),
        (INQUIRY.crl_path, VCEK, FormatError),
    ],
    ids=["another chip", "portal", "nothing", "no chain", "half a chain", "revoked", "no list"],
)
def test_a_lie_is_refused_and_not_kept(ask, server, tmp_path, path, lie, error):
    server.answers[path] = lie
    with pytest.raises(error):
        ask()
    assert kept(tmp_path) == []
    server.answers = honest()
    assert ask().certificates == (VCEK, CHAIN)


def test_a_simulated_chain_is_no_amd_chain(ask, tmp_path):
    with pytest.raises(VerificationError):
        ask(roots=AmdRoots())
    assert kept(tmp_path) == []


@pytest.mark.parametrize("damage", [b"", b"junk", VCEK[:-1], bytes(collateral.MAX_ANSWER_BYTES + 1)])
def test_a_damaged_store_is_mended(ask, server, tmp_path, damage):
    ask()
    for path in (tmp_path / "kds").rglob("*.der"):
        path.write_bytes(damage)
    server.asked.clear()
    assert ask().certificates == (VCEK, CHAIN)
    assert INQUIRY.vek_path in server.asked
    server.asked.clear()
    assert ask().fetched == ()
    assert server.asked == []


def test_a_list_is_fetched_again_when_its_time_is_over(ask, server):
    ask()
    server.asked.clear()
    # The service has no newer one: refused as stale, and it was asked.
    with pytest.raises(VerificationError):
        ask(at=NOW + timedelta(days=31))
    assert server.asked[0] == INQUIRY.crl_path


def test_a_store_that_cannot_be_written_costs_nothing(ask, tmp_path):
    (tmp_path / "kds").write_bytes(b"a file where the folder should be")
    assert ask().certificates == (VCEK, CHAIN)


def test_turin_has_its_own_request(tmp_path, server, waits):
    amd = fakes.fake_amd(ProductLine.TURIN)
    report = fakes.launch(amd).report
    inquiry = inquire(parse_report(report))
    vcek = amd.vcek_certificate(amd.chip(), inquiry.tcb)
    chain = pem(amd.ask) + pem(amd.ark)
    server.answers = {inquiry.vek_path: vcek, inquiry.chain_path: chain, inquiry.crl_path: amd.crl()}
    found = collect(
        report,
        roots=SimulatedRoot(amd.root_fingerprint),
        at=NOW,
        store=Store(tmp_path),
        service=KeyService(server.url + "/", sleep=waits.append),
    )
    assert found.certificates[0] == vcek
    assert server.asked[0].startswith("/vcek/v1/Turin/")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host", "host", ""])
def test_only_http_is_spoken(url):
    with pytest.raises(ConfigError):
        KeyService(url)

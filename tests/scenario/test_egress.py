# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A container with two destinations, in a real guest behind QEMU's user network, tries everything else as well.

The outside is this machine's loopback, which the user network shows as 10.0.2.2. A service of this machine that the manifest does
not name is as near as the one that it does. Meanwhile the host types into the guest's console: one run serves both tests.
"""

from __future__ import annotations

import json
import socket
import ssl
import tempfile
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cvmtool.cli.render import JsonReporter
from cvmtool.config import Settings
from cvmtool.errors import HostError
from cvmtool.flows import prepare as preparing
from cvmtool.flows.egress import pin
from cvmtool.flows.hostile import hostile
from cvmtool.flows.hosts import Host
from cvmtool.flows.platform import dry_run
from cvmtool.flows.prepare import prepare
from cvmtool.flows.train import train
from cvmtool.formats.dsse import parse_envelope
from cvmtool.formats.receipt import parse_statement
from cvmtool.host.files import HostFiles
from cvmtool.host.live import LiveDomain
from cvmtool.image.bundle import Bundle

pytestmark = [pytest.mark.vm, pytest.mark.image]
HERE = "10.0.2.2"  # this machine, as the guest sees it
NAME = "data.example"
BULK = 2 << 20  # bytes

PROGRAM = """
import json, os, socket, ssl, sys, time
named, waived, other = map(int, sys.argv[1:4])
trust = ssl.create_default_context(cafile="/inputs/data/ca.pem")
blind = ssl.create_default_context()
blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
found = {}

def attempt(what):
    def run(act):
        try:
            found[what] = act()
        except Exception as error:
            found[what] = type(error).__name__
    return run

def all_of(peer):
    said = b""
    while piece := peer.recv(65536):
        said += piece
    return said

@attempt("named")
def _():
    with trust.wrap_socket(socket.create_connection(("data.example", named)), server_hostname="data.example") as peer:
        peer.sendall(b"x" * int(sys.argv[4]))
        peer.sendall(b"\\n")
        return all_of(peer).decode()

@attempt("waived")
def _():
    with socket.create_connection(("10.0.2.2", waived)) as peer:
        peer.sendall(b"plain\\n")
        return all_of(peer).decode()

@attempt("plaintext")
def _():
    with socket.create_connection(("data.example", named)) as peer:
        peer.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
        return all_of(peer).decode()

@attempt("another name")
def _():
    with blind.wrap_socket(socket.create_connection(("data.example", named)), server_hostname="evil.example"):
        return "reached"

@attempt("another port")
def _():
    socket.create_connection(("10.0.2.2", other), timeout=20).close()
    return "reached"

@attempt("another address")
def _():
    socket.create_connection(("192.0.2.1", 443), timeout=20).close()
    return "reached"

@attempt("the resolver")
def _():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.sendto(b"?", ("10.0.2.3", 53))
    return "reached"

attempt("a name")(lambda: socket.getaddrinfo("example.org", 443)[0][4][0])
attempt("the pinned name")(lambda: sorted({item[4][0] for item in socket.getaddrinfo("data.example", 443)}))
attempt("interfaces")(lambda: os.listdir("/sys/class/net"))
json.dump(found, open("/outputs/found.json", "w"))
"""


class Service:
    """Hears a line, says how long it was, and keeps what it heard."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.context = context
        self.connections = 0
        self.heard: list[int] = []
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            with peer:
                if self.context is not None:
                    peer = self.context.wrap_socket(peer, server_side=True)
                with peer, peer.makefile("rb") as reader:
                    self.heard.append(len(reader.readline()))
                    peer.sendall(f"{self.heard[-1]} bytes".encode())

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def certify(folder: Path) -> ssl.SSLContext:
    """A certificate for NAME that signs itself, and the service's end of TLS."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "data/ca.pem").write_bytes(pem)
    (folder / "server.pem").write_bytes(pem + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return context


class Typist:
    """A host that turns the serial console into a terminal and types: a login, commands, and breaks with keys for SysRq."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "console"
        self.typed = self.broken = 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.type, daemon=True)
        self.host: Host | None = None
        self.name, self.said = "", Path()

    def open(self, settings: Settings) -> Host:
        self.host = hostile(self.tamper)(settings)
        return self.host

    def tamper(self, live: LiveDomain, xml: str, _files: HostFiles) -> str:
        root = ET.fromstring(xml)
        for device in (*root.iterfind("devices/serial"), *root.iterfind("devices/console")):
            device.set("type", "unix")
            (source,) = device.findall("source")
            source.attrib = {"mode": "bind", "path": str(self.path)}
            ET.SubElement(device, "log", file=live.console, append="on")
        self.name, self.said = live.name, Path(live.console)
        self.thread.start()
        return ET.tostring(root, encoding="unicode")

    def type(self) -> None:
        # Before the kernel has read its command line, a break and a key restart it: that ends a boot, which any host can.
        while not self.said.exists() or b"CVM-STAGE" not in self.said.read_bytes():
            if self.over.wait(0.1):
                return
        with socket.socket(socket.AF_UNIX) as terminal:
            terminal.connect(str(self.path))
            while not self.over.wait(1):
                with suppress(OSError, HostError):
                    assert self.host is not None
                    terminal.sendall(b"\x03\x04\nroot\nroot\npoweroff -f; echo o >/proc/sysrq-trigger\n")
                    self.typed += 1
                    self.host.hypervisor.monitor(self.name, "chardev-send-break charserial0")
                    terminal.sendall(b"b")
                    self.broken += 1

    def close(self) -> None:
        self.over.set()
        if self.thread.is_alive():
            self.thread.join()


@dataclass(frozen=True, kw_only=True)
class Run:
    """What came of the run."""

    services: tuple[Service, Service, Service]
    typist: Typist
    results: Path


@pytest.fixture(scope="module")
def folder(place: Path) -> Path:
    folder = place / "egress"
    (folder / "data").mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def services(folder: Path) -> Iterator[tuple[Service, Service, Service]]:
    made = (Service(certify(folder)), Service(), Service())
    yield made
    for service in made:
        service.close()


@pytest.fixture(scope="module")
def ran(
    services: tuple[Service, Service, Service], folder: Path, example: Path, bundle: Bundle, settings: Settings
) -> Run:
    named, waived, other = services
    head = example.read_text().split("\ncommand:")[0]
    head = head.replace("oci-archive:container.oci.tar", f"oci-archive:{example.parent / 'container.oci.tar'}")
    arguments = "".join(f"- '{value}'\n" for value in (named.port, waived.port, other.port, BULK))
    program = PROGRAM.replace("\n", "\n    ")
    (folder / "job.yaml").write_text(
        f"{head}\ncommand:\n- python3\n- -c\n- |{program}\n{arguments}inputs: {{data: data}}\n"
        "outputs: {found.json: {kind: json, max: 1MiB}}\nresources: {vcpus: 1, memory: 768MiB}\n"
        f"network: {{allow: ['{NAME}:{named.port}'], plaintext: ['{HERE}:{waived.port}']}}\n"
    )
    with pytest.MonkeyPatch.context() as patched:
        # The one thing that is not real: no name server knows this name.
        patched.setattr(preparing, "pin", partial(pin, resolve={NAME: {HERE}}.__getitem__))
        prepared = prepare(folder / "job.yaml", bundle, settings=settings, reporter=JsonReporter())
    with tempfile.TemporaryDirectory() as short:
        typist = Typist(Path(short))
        try:
            train(
                prepared,
                platform=dry_run(settings),
                settings=settings,
                reporter=JsonReporter(),
                results=folder / "results",
                open_host=typist.open,
            )
        finally:
            typist.close()
    return Run(services=services, typist=typist, results=folder / "results")


def test_the_container_reaches_its_destinations_and_nothing_else(ran: Run) -> None:
    named, waived, other = ran.services
    found = json.loads((ran.results / "found.json").read_text())
    cut = {"", "ConnectionResetError"}
    assert found.pop("plaintext") in cut
    assert found.pop("another name") in {"SSLEOFError", "SSLError", "ConnectionResetError", "SSLZeroReturnError"}
    assert found == {
        "named": f"{BULK + 1} bytes",
        "waived": "6 bytes",
        "another port": "ConnectionRefusedError",
        "another address": "OSError",
        "the resolver": "OSError",
        "a name": "gaierror",
        "the pinned name": [HERE],
        "interfaces": ["lo"],
    }
    assert (named.heard, waived.heard) == ([BULK + 1], [6])
    assert (named.connections, waived.connections, other.connections) == (1, 1, 0)
    statement = parse_statement(parse_envelope((ran.results / "receipt.json").read_bytes()).payload)
    assert statement.egress is not None
    counts = {flow.destination.host: flow for flow in statement.egress.flows}
    assert [flow.connections for flow in counts.values()] == [1, 1]
    assert counts[NAME].sent > BULK
    assert (counts[HERE].sent, counts[HERE].received) == (6, 7)
    assert statement.egress.turned_away >= 5


def test_what_a_host_types_into_the_console_reaches_nobody(ran: Run) -> None:
    assert ran.typist.typed > 3
    assert ran.typist.broken > 3
    statement = parse_statement(parse_envelope((ran.results / "receipt.json").read_bytes()).payload)
    assert statement.exit_code == 0

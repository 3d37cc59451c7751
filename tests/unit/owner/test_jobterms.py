# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import pytest

from cvmtool.formats.job import Kind, Network
from cvmtool.formats.jobterms import NO_ACCESS
from cvmtool.owner.age import parse_recipient, render_recipient
from cvmtool.owner.jobterms import CheckpointWish, Wish
from cvmtool.owner.keystore import OwnerKeys
from cvmtool.owner.sshkey import render_ssh_key
from tests.unit.owner.test_age import RECIPIENT
from tests.unit.owner.test_jobfile import job, refused

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 42 + "B somebody@somewhere"
RAW = "00" * 31 + "01"


CLIENTS = [render_ssh_key(number.to_bytes(32, "big")) for number in range(65)]
RECIPIENTS = [render_recipient(OwnerKeys(bytes((number,)) * 32).recipient) for number in range(21)]


def test_a_job_asks_for_nothing_by_itself():
    read = job()
    assert (read.kind, read.network, read.destinations) == (Kind.TRAIN, Network.NONE, ())
    assert (read.access, read.checkpoint, read.recipients) == (NO_ACCESS, None, ())


def test_a_service_has_a_tunnel_to_its_port_and_needs_no_outputs():
    read = job(kind="serve", serve={"port": 8080}, access={"tunnels": [6006]}, outputs={})
    assert (read.kind, read.access.tunnels, read.outputs) == (Kind.SERVE, (6006, 8080), ())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "Serve"}, "train or serve is required"),
        ({"kind": "serve"}, "'serve' is missing"),
        ({"kind": "serve", "serve": {}}, "'serve.port' is missing"),
        ({"kind": "serve", "serve": {"port": 0}}, "serve.port is 0"),
        ({"kind": "serve", "serve": {"port": 65_536}}, "serve.port is 65536"),
        ({"network": {"allow": ["a:1"], "deny": ["b:1"]}}, "unknown key 'network.deny'"),
        ({"access": {"exec": True, "shell": True}}, "unknown key 'access.shell'"),
        ({"access": {"tunnels": [0]}}, "a list of ports"),
        ({"access": {"tunnels": [65_536]}}, "a list of ports"),
        ({"access": {"tunnels": [1], "clients": CLIENTS}}, "65 keys"),
        ({"recipients": RECIPIENTS}, "21 entries"),
        ({"kind": "serve", "serve": {"port": 80, "host": "x"}}, "unknown key 'serve.host'"),
        ({"serve": {"port": 80}}, "belongs to kind: serve"),
        ({"network": "any"}, "none, or a mapping with allow, is required"),
        ({"network": {}}, "0 destinations"),
        ({"network": {"allow": ["example.org"]}}, "host:port"),
        ({"network": {"allow": ["example.org:0"]}}, "host:port"),
        ({"network": {"allow": ["example.org:65536"]}}, "host:port"),
        ({"network": {"allow": ["Example.org:443"]}}, "host:port"),
        ({"network": {"allow": ["*.example.org:443"]}}, "host:port"),
        ({"network": {"allow": ["::1:443"]}}, "host:port"),
        ({"network": {"allow": ["a:1"], "plaintext": ["a:1"]}}, "twice"),
        ({"network": {"allow": [f"a:{port}" for port in range(1, 66)]}}, "65 destinations"),
        ({"access": {"tunnels": ["6006"]}}, "a list of ports"),
        ({"access": {"tunnels": [True]}}, "a list of ports"),
        ({"access": {"tunnels": 6006}}, "a list of ports"),
        ({"access": {"tunnels": list(range(1, 18))}}, "17 ports"),
        ({"access": {"exec": "yes"}}, "true or false"),
        ({"access": {"clients": [KEY]}}, "no port that they could use"),
        ({"access": {"tunnels": [1], "clients": ["ssh-rsa AAAA"]}}, "Ed25519"),
        ({"access": {"tunnels": [1], "clients": ["ssh-ed25519"]}}, "Ed25519"),
        ({"access": {"tunnels": [1], "clients": ["ssh-ed25519 !"]}}, "Ed25519"),
        ({"access": {"tunnels": [1], "clients": [KEY[:40]]}}, "Ed25519"),
        ({"checkpoint": {"size": "255MiB"}}, "at least"),
        ({"checkpoint": {"size": "1025TiB"}}, "at most"),
        ({"checkpoint": {"size": "1GiB", "grace": "2h"}}, "at most 3600"),
        ({"checkpoint": {"size": "1GiB", "every": "0s"}}, "checkpoint.every"),
        ({"checkpoint": {"sizes": "1GiB"}}, "did you mean 'size'"),
        ({"recipients": ["age1x"]}, "no age recipient"),
        ({"recipients": RECIPIENT}, "a list of strings"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(changes, said):
    error = refused(changes)
    assert said in f"{error.message} {error.hint}"


def test_bounds_are_within():
    assert len(job(network={"allow": [f"a:{port}" for port in range(1, 65)]}).destinations) == 64
    assert job(network={"allow": ["a:1"]}).destinations == (Wish(host="a", port=1, tls=True),)
    assert job(network={"allow": ["a:65535"]}).destinations == (Wish(host="a", port=65_535, tls=True),)
    assert job(access={"tunnels": [1, 65_535]}).access.tunnels == (1, 65_535)
    assert len(job(access={"tunnels": list(range(1, 17))}).access.tunnels) == 16
    for port in (1, 65_535):
        assert job(kind="serve", serve={"port": port}).access.tunnels == (port,)
    assert len(job(access={"tunnels": [1], "clients": CLIENTS[:64]}).access.clients) == 64
    assert len(job(recipients=RECIPIENTS[:20]).recipients) == 20


def test_destinations_are_sorted_and_encrypted_unless_waived():
    network = {"allow": ["example.org:443", "[2001:db8::1]:853"], "plaintext": ["192.0.2.7:80"]}
    assert job(network=network).destinations == (
        Wish(host="192.0.2.7", port=80, tls=False),
        Wish(host="2001:db8::1", port=853, tls=True),
        Wish(host="example.org", port=443, tls=True),
    )
    assert job(network=network).network is Network.ALLOW


def test_clients_are_named_by_their_ssh_keys():
    read = job(access={"tunnels": [8080], "clients": [KEY, KEY], "exec": True})
    assert (read.access.exec, read.access.clients) == (True, (RAW,))


def test_a_checkpoint_has_a_rhythm_and_a_grace():
    assert job(checkpoint={}).checkpoint.size == 256 << 20
    assert job(checkpoint={"size": "1024TiB"}).checkpoint.size == 1 << 50
    assert job(checkpoint={"size": "1GiB"}).checkpoint == CheckpointWish(
        size=1 << 30, every_seconds=60, grace_seconds=30
    )
    wish = job(checkpoint={"size": "256MiB", "every": "10m", "grace": "1s"}).checkpoint
    assert wish == CheckpointWish(size=256 << 20, every_seconds=600, grace_seconds=1)


def test_recipients_are_ages():
    assert job(recipients=[RECIPIENT, RECIPIENT]).recipients == (parse_recipient(RECIPIENT).hex(),)

# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""A receipt that the guest's own code signed on a simulated launch, and every forgery that each verifier must refuse."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from cvmtool.dryrun.amd import FakeAmd
from cvmtool.formats.certtable import CertKind, CertTable, parse_cert_table
from cvmtool.formats.channel import find_last_open
from cvmtool.formats.control import Stage
from cvmtool.formats.dsse import Envelope, key_id, pae, parse_envelope
from cvmtool.formats.evidence import Evidence
from cvmtool.formats.job import Network, OutputKind
from cvmtool.formats.pack import Role
from cvmtool.formats.receipt import Access, Accesses, InputDigest, OutputDigest, Statement, parse_statement
from cvmtool.formats.release import Secrets
from cvmtool.formats.report import parse_report
from cvmtool.formats.tcb import ProductLine, parse_tcb
from cvmtool.formats.wire import canonical_json
from cvmtool.guest.keys import BootKeys
from cvmtool.owner.receipts import verify_receipt
from cvmtool.owner.seal import seal
from tests import fakes
from tests.fakes.guest import FakeGuest
from tests.unit.formats.test_egress import EGRESS

NOW = datetime.now(UTC)


class Receipt:
    """A receipt as the guest signed it, and the means to forge others."""

    def __init__(self, folder):
        self.guest = FakeGuest(folder)
        session = self.guest.session()
        evidence = self.guest.answer(find_last_open(session.challenge())[0])
        held = session.judge(evidence, NOW)
        life = self.guest.life
        life.configure(self.guest.manifest.encode(), certificates=evidence.cert_table)
        packs = {pack.root_hash: b"p" * 32 for pack in self.guest.manifest.packs}
        life.release(seal(held, Secrets(packs=packs), manifest=self.guest.manifest))
        life.job.run()
        deadline = time.monotonic() + 60
        while life.status()["stage"] != Stage.DONE:
            assert time.monotonic() < deadline, "the pretended job has died"
            time.sleep(0.01)
        self.results = life.job.results()
        self.data = canonical_json(self.results["receipt"])
        self.envelope = parse_envelope(self.data)
        self.statement = parse_statement(self.envelope.payload)

    def signed(self, statement: Statement, keys: BootKeys | None = None) -> bytes:
        """What a guest with `keys` (this one's own) would sign."""
        keys = keys or self.guest.keys
        payload = statement.encode()
        return Envelope(
            payload=payload, keyid=key_id(keys.receipt_key), signature=keys.receipt.sign(pae(payload))
        ).encode()

    def verify(self, data=None, at=NOW, **policy):
        return verify_receipt(self.data if data is None else data, self.guest.policy(**policy), at)

    @property
    def root(self) -> bytes:
        """The fingerprint of the simulated root."""
        return fakes.fake_amd().root_fingerprint

    def changed(self, **fields: Any) -> Statement:
        return replace(self.statement, **fields)

    def unsigned(self, statement: Statement) -> bytes:
        """Another statement under the old signature."""
        return replace(self.envelope, payload=statement.encode()).encode()

    def with_table(self, *left_out: CertKind, **entries: bytes) -> bytes:
        """What a guest would sign that was handed other certificates."""
        held = parse_cert_table(self.statement.evidence.cert_table)
        kept = {kind: held.get(kind) for kind in CertKind if kind not in left_out}
        kept |= {CertKind[name]: blob for name, blob in entries.items()}
        table = CertTable(tuple((str(kind), blob) for kind, blob in kept.items() if blob is not None))
        return self.with_evidence(replace(self.statement.evidence, cert_table=table.encode()))

    def with_evidence(self, evidence: Evidence, keys: BootKeys | None = None) -> bytes:
        return self.signed(self.changed(evidence=evidence), keys)

    def with_report(self, at: int, mask: int = 1) -> bytes:
        report = bytearray(self.statement.evidence.report)
        report[at] ^= mask
        return self.with_evidence(replace(self.statement.evidence, report=bytes(report)))

    def rewritten(self, change: Callable[[dict[str, Any]], None]) -> bytes:
        """The envelope's JSON, changed."""
        document = json.loads(self.data)
        change(document)
        return canonical_json(document)


CHANGES: dict[str, Any] = {
    "outputs": (OutputDigest(name="model.safetensors", kind=OutputKind.FILE, size=1, sha256="00" * 32),),
    "manifest_sha256": b"o" * 32,
    "network": Network.ALLOW,
    "egress": EGRESS,
    "accesses": Accesses(exec=1),
    "access": (Access.SHELL,),
    "gpus": 1,
    "container_digest": "sha256:" + "00" * 32,
    "inputs": (InputDigest(name="data", role=Role.INPUT, root_hash="00" * 32),),
    "measurement": b"o" * 48,
    "image_id": b"o" * 16,
    "started": "2020-01-01T00:00:00Z",
    "finished": "2020-01-01T00:00:00Z",
    "log_sha256": "00" * 32,
    "log_size": 1,
    "exit_code": 1,
    "simulated": False,
    "nonce": b"o" * 32,
    "owner_key": b"o" * 32,
}
"""A lie for each field of a statement."""

BOUND = ("manifest_sha256", "owner_key", "nonce", "simulated", "measurement", "image_id")
"""Fields that not even the attested guest can lie about."""


def _foreign_keys(receipt: Receipt, key: str) -> bytes:
    forger = BootKeys()
    return receipt.with_evidence(replace(receipt.statement.evidence, **{key: getattr(forger, key)}), forger)


def _renamed(receipt: Receipt) -> bytes:
    """Another key's signature under the name of the attested one."""
    forged = parse_envelope(receipt.signed(receipt.statement, BootKeys()))
    return replace(forged, keyid=receipt.envelope.keyid).encode()


def _later(receipt: Receipt) -> bytes:
    """Another report of the same guest, over another nonce."""
    challenge = find_last_open(receipt.guest.session(b"l" * 32).challenge())[0]
    return receipt.with_evidence(receipt.guest.answer(challenge))


def _flipped_signature(receipt: Receipt) -> bytes:
    signature = bytes((receipt.envelope.signature[0] ^ 1, *receipt.envelope.signature[1:]))
    return replace(receipt.envelope, signature=signature).encode()


def _bare(receipt: Receipt) -> bytes:
    """Signed without DSSE's pre-authentication encoding."""
    return replace(receipt.envelope, signature=receipt.guest.keys.receipt.sign(receipt.envelope.payload)).encode()


def _certificate(receipt: Receipt, amd: FakeAmd, chip: int = 0) -> bytes:
    """The certificate of a chip at the versions of the receipt's report."""
    reported = parse_report(receipt.statement.evidence.report).reported_tcb
    return amd.vcek_certificate(amd.chip(chip), parse_tcb(reported, amd.line))


def _other_root(receipt: Receipt) -> bytes:
    """A chain of the same names, and none of the same keys."""
    other = FakeAmd.temporary(ProductLine.GENOA)
    return receipt.with_table(ARK=other.ark, ASK=other.ask, CRL=other.crl(), VCEK=_certificate(receipt, other))


TAMPERINGS: dict[str, Callable[[Receipt], bytes]] = {
    **{
        f"{field} changed under the old signature": lambda r, f=field: r.unsigned(r.changed(**{f: CHANGES[f]}))
        for field in CHANGES
    },
    **{f"the guest lies about {field}": lambda r, f=field: r.signed(r.changed(**{f: CHANGES[f]})) for field in BOUND},
    **{f"another {key}": lambda r, k=key: _foreign_keys(r, k) for key in ("ssh_host_key", "hpke_key", "receipt_key")},
    "signed by another key": lambda r: r.signed(r.statement, BootKeys()),
    "signed by another key under the attested one's name": _renamed,
    "a bit of the signature": _flipped_signature,
    "signed without the payload's type": _bare,
    "another payload type": lambda r: r.rewritten(lambda d: d.update(payloadType="application/json")),
    "no signature": lambda r: r.rewritten(lambda d: d.update(signatures=[])),
    "two signatures": lambda r: r.rewritten(lambda d: d["signatures"].append(d["signatures"][0])),
    "a report over another nonce": _later,
    "a bit of the report's policy": lambda r: r.with_report(0x0A, 0x08),
    "a bit of the report's launch digest": lambda r: r.with_report(0x90),
    "a bit of the report's signature": lambda r: r.with_report(0x2A0),
    "another root": _other_root,
    "no certificate of the chip": lambda r: r.with_table(CertKind.VCEK),
    "no intermediate": lambda r: r.with_table(CertKind.ASK),
    "no revocation list": lambda r: r.with_table(CertKind.CRL),
    "the intermediate is revoked": lambda r: r.with_table(CRL=fakes.fake_amd().crl(revoke_ask=True)),
    "another root's revocation list": lambda r: r.with_table(CRL=FakeAmd.temporary(ProductLine.GENOA).crl()),
    "another chip's certificate": lambda r: r.with_table(VCEK=_certificate(r, fakes.fake_amd(), chip=1)),
}
"""Forgeries by name. Whoever verifies receipts refuses each."""

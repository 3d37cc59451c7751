# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Every parser of hostile bytes, what it may refuse with, and samples that it accepts.

A parser is named as its function is. One that takes more than bytes gets it from here, never from the input.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from cvmtool.dryrun import x509
from cvmtool.errors import ConfigError, FormatError, HostError
from cvmtool.formats import (
    certtable,
    channel,
    containers,
    control,
    dsse,
    evidence,
    idblock,
    job,
    manifest,
    pack,
    receipt,
    release,
    report,
    reportmsg,
    tcb,
    wire,
)
from cvmtool.formats.job import OutputKind
from cvmtool.guest import kinds, lukshdr
from cvmtool.host import capabilities, gpu, live
from cvmtool.image import container, elf, licences, lock, recipe
from cvmtool.measure import hashes, ovmf, seed
from cvmtool.measure.launch import firmware_seed
from cvmtool.owner import certificate, crl, floors, jobfile, keystore, launchsign, policyfile, toml, vek
from cvmtool.owner.der import Der
from tests import fakes, samples, vectors
from tests.fuzz import doctor, jobs, machines, packs, pooled
from tests.fuzz.parser import Parser, each, encode, json_object, seeds, text
from tests.unit.formats import (
    test_dsse,
    test_evidence,
    test_idblock,
    test_manifest,
    test_pickles,
    test_receipt,
    test_report,
    test_reportmsg,
    test_volume,
)
from tests.unit.guest import test_kinds
from tests.unit.guest.samples import UUID
from tests.unit.guest.samples import pack as guest_pack
from tests.unit.host import test_capabilities
from tests.unit.image import parts, test_container, test_lock, test_recipe, test_sbom
from tests.unit.measure import test_ovmf
from tests.unit.owner import test_floors, test_keystore, test_policyfile

ROOT = Path(__file__).parents[2]
LINES = tuple(tcb.ProductLine)
TABLE = certtable.CertTable(((certtable.CertKind.VCEK, b"vcek"), (certtable.CertKind.ASK, b"ask")))


# ---- samples that take a moment to make, or that may be absent ------------------------------------------------------


@cache
def shown(line: tcb.ProductLine) -> evidence.Evidence:
    return fakes.launch(fakes.fake_amd(line))


def real(pattern: str) -> tuple[bytes, ...]:
    """The published files below tests' vectors that match; none where the folder is absent."""
    return tuple(path.read_bytes() for path in sorted(vectors.VECTORS.glob(pattern))) if vectors.present() else ()


def files(pattern: str) -> tuple[bytes, ...]:
    return tuple(path.read_bytes() for path in sorted(ROOT.glob(pattern)))


def reports() -> tuple[bytes, ...]:
    made = (test_report.BASE.encode(), test_report.V2.encode(), *(shown(line).report for line in LINES))
    return made + tuple({row.report[:2]: row.report for row in vectors.reports()}.values())


def veks() -> tuple[bytes, ...]:
    made = tuple(
        certtable.parse_cert_table(shown(line).cert_table).get(certtable.CertKind.VCEK) or b"" for line in LINES
    )
    return made + real("*/*.vek.der")[:6]


def certificates() -> tuple[bytes, ...]:
    amd = fakes.fake_amd()
    return (*veks(), amd.ask, amd.ark)


def crls() -> tuple[bytes, ...]:
    return tuple(fakes.fake_amd(line).crl(revoke_ask=revoke) for line in LINES[:2] for revoke in (False, True))


def names() -> tuple[bytes, ...]:
    return tuple(certificate.parse_certificate(der).subject for der in certificates())


def keys() -> tuple[bytes, ...]:
    return tuple(certificate.parse_certificate(der).spki for der in certificates())


def extensions() -> tuple[bytes, ...]:
    rows = x509.sequence(x509.oid("1.3.6.1.4.1.3704.1.1"), x509.octets(x509.integer(0)))
    return (
        x509.sequence(rows),
        x509.sequence(rows, x509.sequence(x509.oid("2.5.29.19"), b"\1\1\xff", x509.octets(b"0\0"))),
    )


def pems() -> tuple[bytes, ...]:
    return (
        real("amd-roots/ask_ark_*.pem")[:2]
        + certificates()[:1]
        + (b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n",)
    )


# ---- parsers that need more than the bytes --------------------------------------------------------------------------


def tcbs(data: bytes) -> object:
    return each(*(lambda data, line=line: tcb.parse_tcb(data, line) for line in LINES))(data)


def unwrapped(data: bytes) -> object:
    auxblob = certtable.CertTable().encode()
    one = [lambda data, kind=kind: containers.unwrap(data, kind, auxblob=auxblob) for kind in containers.Container]
    return each(*one)(data)


def veks_of(data: bytes) -> object:
    read = certificate.parse_certificate(data)
    return each(*(lambda _, line=line: vek.parse_vek(read, line) for line in LINES))(data)


def frames(data: bytes) -> object:
    stream = io.BytesIO(data)

    def exactly(count: int) -> bytes:
        piece = stream.read(count)
        if len(piece) != count:
            raise FormatError("the stream ended")
        return piece

    found = []
    while stream.tell() < len(data):
        found.append(wire.read_frame(exactly))
    return found


def records(data: bytes) -> object:
    """The records of a stream, which must be the same however it is cut."""
    reader = control.LogReader()
    cut = [record for at in range(0, len(data), 7) for record in reader.feed(data[at : at + 7])]
    whole = control.LogReader().feed(data)
    if cut != whole:
        raise AssertionError("records depend on how the stream was cut")
    return whole


def der_walk(data: bytes, depth: int = 4) -> object:
    """Whatever each element may be read as, down to `depth` levels of elements in elements."""
    found = []
    cursor = Der(data, "sample")
    while (tag := cursor.peek()) is not None:
        whole = cursor.take_whole(tag)
        for method in (Der.integer, Der.boolean, Der.bits, Der.oid, Der.time):
            try:
                found.append(method(Der(whole, "sample")))
            except FormatError:
                continue
        if tag & 0x20 and depth:
            found.append(der_walk(Der(whole, "sample").take(tag), depth - 1))
    cursor.finish()
    return found


LUKS = {
    "keyslots": {
        "0": {
            "type": "luks2",
            "key_size": 64,
            "af": {"type": "luks1", "stripes": 4000, "hash": "sha256"},
            "area": {
                "type": "raw",
                "offset": "32768",
                "size": "258048",
                "encryption": "aes-xts-plain64",
                "key_size": 64,
            },
            "kdf": {"type": "pbkdf2", "hash": "sha256", "iterations": 1000, "salt": "A" * 43 + "="},
        }
    },
    "tokens": {},
    "segments": {
        "0": {
            "type": "crypt",
            "offset": "1048576",
            "size": "dynamic",
            "iv_tweak": "0",
            "encryption": "aes-xts-plain64",
            "sector_size": 4096,
        }
    },
    "digests": {
        "0": {
            "type": "pbkdf2",
            "keyslots": ["0"],
            "segments": ["0"],
            "hash": "sha256",
            "iterations": 1000,
            "salt": "A" * 43 + "=",
            "digest": "A" * 43 + "=",
        }
    },
    "config": {"json_size": "12288", "keyslots_size": "1015808"},
}


def _volume() -> object:
    """The metadata of a volume: each sector is authenticated, and its key longer by that."""
    shown = json.loads(json.dumps(LUKS))
    slot, segment = shown["keyslots"]["0"], shown["segments"]["0"]
    slot |= {"key_size": 96, "area": slot["area"] | {"size": "385024"}}
    segment["integrity"] = {"type": "hmac(sha256)", "journal_encryption": "none", "journal_integrity": "none"}
    return shown


def luks_area(index: int, metadata: bytes) -> bytes:
    """One copy of a LUKS2 header, 16 KiB, around `metadata`, with the checksum that it must have."""
    fields = (2, 16384, 1, b"", b"sha256", b"salt", UUID.encode(), b"", index * 16384, b"", b"", b"")
    blank = lukshdr._BINARY.pack(lukshdr._MAGIC[index], *fields) + metadata.ljust(12288, b"\0")[:12288]
    return blank[:448] + hashlib.sha256(blank).digest().ljust(64, b"\0") + blank[512:]


def luks_header(data: bytes) -> object:
    """JSON is put into two copies with their checksums right; anything else stands for the copies themselves."""
    areas = luks_area(0, data) + luks_area(1, data) if data[:1] == b"{" else data[:32768]
    header = areas.ljust(pack.HEADER_SIZE, b"\0")
    described = guest_pack(header_sha256=hashlib.sha256(header).hexdigest())
    lukshdr.check_header(header, described)
    return None


def volume_header(data: bytes) -> object:
    """The same of a volume, whose manifest names no digest of a mebibyte that would have to be computed for each input."""
    areas = luks_area(0, data) + luks_area(1, data) if data[:1] == b"{" else data[:32768]
    lukshdr.check_volume_header(areas.ljust(pack.HEADER_SIZE, b"\0"), replace(test_volume.VOLUME, luks_uuid=UUID))


def output(kind: OutputKind) -> Callable[[bytes], object]:
    return lambda data: kinds.check_kind(io.BytesIO(data), len(data), kind, name="out")


# ---- the table ------------------------------------------------------------------------------------------------------

_LUKS_JSON = json.dumps(LUKS, sort_keys=True, separators=(",", ":")).encode()
_VOLUME_JSON = json.dumps(_volume(), sort_keys=True, separators=(",", ":")).encode()
_NONCE = b"N" * 32
_OPEN = channel.Open(nonce=_NONCE, owner_key=b"O" * 32, manifest_sha256=b"M" * 32).encode()
_RECORD = control.LogRecord(stream=control.Stream.STDOUT, microseconds=1, data=b"text\n").encode()
_FRAMES = (
    wire.json_frame({"op": "status"})
    + wire.Frame(wire.Kind.DATA, b"data").encode()
    + wire.Frame(wire.Kind.END, b"").encode()
)
_SECRETS = release.Secrets(packs={"0a" * 32: b"k" * 32}).encode()
_FIRMWARE = test_ovmf.firmware(pages=1)
_POLICY = policyfile.encode_policy(test_policyfile.BASE).encode()
_FULL_POLICY = policyfile.encode_policy(test_policyfile.FULL).encode()

PARSERS: dict[str, Parser] = {
    **jobs.PARSERS,
    **machines.PARSERS,
    **packs.PARSERS,
    **pooled.PARSERS,
    "formats.certtable.parse_cert_table": Parser(
        certtable.parse_cert_table, seeds(TABLE.encode(), TABLE.encode().ljust(4096, b"\0")), write=encode
    ),
    "formats.channel.find_last_open": Parser(channel.find_last_open, seeds(_OPEN, _OPEN * 2, b"login:" + _OPEN)),
    "formats.channel.answer_to": Parser(
        lambda data: channel.answer_to(data, _NONCE),
        lambda: (
            channel.ready_line(_NONCE, test_evidence.EVIDENCE),
            channel.refused_line(_NONCE, channel.Refusal.BUSY),
        ),
    ),
    "formats.containers.unwrap": Parser(
        unwrapped,
        lambda: (
            test_report.BASE.encode() + TABLE.encode(),
            reportmsg.ReportResponse(status=0, report=test_report.BASE.encode()).encode(),
            b"HCLA\1\0\0\0" + bytes(24) + test_report.BASE.encode() + b"\x16\0\0\0\1\0\0\0\2\0\0\0\1\0\0\0\2\0\0\0{}",
        ),
    ),
    "formats.control.LogReader.feed": Parser(records, seeds(_RECORD, _RECORD * 3)),
    "formats.evidence.parse_evidence": Parser(
        evidence.parse_evidence, seeds(test_evidence.EVIDENCE.encode()), write=encode
    ),
    "formats.idblock.parse_id_auth": Parser(idblock.parse_id_auth, seeds(test_idblock.AUTH.encode()), write=encode),
    "formats.idblock.parse_id_block": Parser(idblock.parse_id_block, seeds(test_idblock.BLOCK.encode()), write=encode),
    "formats.idblock.parse_key": Parser(idblock.parse_key, seeds(test_idblock.KEY.encode()), write=encode),
    "formats.job.parse_job_manifest": Parser(
        job.parse_job_manifest, seeds(samples.manifest().encode(), samples.ample_manifest().encode()), write=encode
    ),
    "formats.manifest.parse_image_manifest": Parser(
        manifest.parse_image_manifest, seeds(test_manifest.MANIFEST.encode()), write=encode
    ),
    "formats.pack.parse_pack_descriptor": Parser(
        json_object(pack.parse_pack_descriptor),
        seeds(wire.canonical_json(samples.pack("data").to_json())),
        write=lambda value: wire.canonical_json(value.to_json()),
    ),
    "formats.dsse.parse_envelope": Parser(dsse.parse_envelope, seeds(test_dsse.ENVELOPE.encode()), write=encode),
    "formats.receipt.parse_statement": Parser(
        receipt.parse_statement, seeds(test_receipt.STATEMENT.encode()), write=encode
    ),
    "formats.release.parse_secrets": Parser(release.parse_secrets, seeds(_SECRETS), write=encode),
    "formats.report.parse_report": Parser(report.parse_report, reports, write=encode),
    "formats.reportmsg.parse_request": Parser(
        reportmsg.parse_request, seeds(test_reportmsg.REQUEST.encode()), write=encode
    ),
    "formats.reportmsg.parse_response": Parser(
        reportmsg.parse_response, seeds(test_reportmsg.RESPONSE.encode()), write=encode
    ),
    "formats.tcb.parse_tcb": Parser(tcbs, seeds(bytes((10, 1, 0, 0, 0, 0, 27, 88)), bytes((1, 2, 3, 4, 0, 0, 0, 71)))),
    "formats.wire.parse_base64": Parser(
        text(lambda value: wire.parse_base64(value, what="sample", limit=64)), seeds(b"QUJD", b"QQ==", b"A" * 43 + b"=")
    ),
    "formats.wire.parse_canonical_json": Parser(
        lambda data: wire.parse_canonical_json(data, what="sample", limit=1 << 20),
        seeds(samples.manifest().encode(), b'{"":[{},1,"\\u0000"]}'),
        write=wire.canonical_json,
    ),
    "formats.wire.parse_hex": Parser(text(lambda value: wire.parse_hex(value, 4, what="sample")), seeds(b"0123abef")),
    "formats.wire.parse_json": Parser(
        lambda data: wire.parse_json(data, what="sample", limit=1 << 20), seeds(b'{"a":[1,"\\ud83d\\ude00",null]}')
    ),
    "formats.wire.parse_lp": Parser(
        lambda data: wire.parse_lp(data, 3, what="sample"),
        seeds(wire.lp(b"a", b"", b"ccc")),
        write=lambda value: wire.lp(*value),
    ),
    "formats.wire.read_frame": Parser(frames, seeds(_FRAMES)),
    "guest.kinds.file": Parser(output(OutputKind.FILE), seeds(*test_pickles.OTHERS.values())),
    "guest.kinds.json": Parser(output(OutputKind.JSON), seeds(b'{"a":[1.5,null]}')),
    "guest.kinds.safetensors": Parser(
        output(OutputKind.SAFETENSORS), seeds(test_kinds.GOOD, test_kinds.tensors({"a": test_kinds.tensor()}, bytes(4)))
    ),
    "guest.lukshdr.check_header": Parser(
        luks_header, lambda: (_LUKS_JSON, luks_area(0, _LUKS_JSON) + luks_area(1, _LUKS_JSON))
    ),
    "guest.lukshdr.check_volume_header": Parser(
        volume_header, lambda: (_VOLUME_JSON, luks_area(0, _VOLUME_JSON) + luks_area(1, _VOLUME_JSON))
    ),
    "host.capabilities.parse_capabilities": Parser(
        text(capabilities.parse_capabilities), seeds(test_capabilities.XML.encode()), HostError
    ),
    "host.gpu.parse_gpus": Parser(
        text(lambda words: gpu.parse_gpus(words.split())),
        seeds(b"0000:41:00.0", b"0000:41:00.0 0000:c1:00.0"),
        refusal=ConfigError,
        write=lambda gpus: " ".join(one.address for one in gpus).encode(),
    ),
    "host.live.parse_live_domain": Parser(
        text(live.parse_live_domain), lambda: files("tests/golden/domain-*.xml"), HostError
    ),
    "guest.kinds.text": Parser(output(OutputKind.CSV), seeds("é,1\n".encode())),
    "image.container.parse_container": Parser(container.parse_container, seeds(test_container.RECIPE), ConfigError),
    "image.elf.linkage": Parser(elf.linkage, seeds(parts.make_module(), Path("/bin/true").read_bytes())),
    "image.elf.modinfo": Parser(elf.modinfo, seeds(parts.make_module(depends="a"))),
    "image.licences.parse_copyright": Parser(licences.parse_copyright, seeds(test_sbom.COPYRIGHT)),
    "image.lock.parse_lock": Parser(lock.parse_lock, seeds(test_lock.LOCK.encode()), write=encode),
    "image.recipe.parse_recipe": Parser(recipe.parse_recipe, seeds(test_recipe.RECIPE), ConfigError),
    "image.recipe.parse_toml": Parser(
        lambda data: recipe.parse_toml(data, "sample"), seeds(b'a = 1\n[b]\nc = "d"\n'), ConfigError
    ),
    "measure.hashes.parse_table": Parser(
        hashes.parse_table, seeds(hashes.kernel_hashes(b"kernel", b"initrd", "quiet").table())
    ),
    "measure.ovmf.parse_firmware": Parser(ovmf.parse_firmware, seeds(_FIRMWARE)),
    "measure.seed.parse_seed": Parser(
        seed.parse_seed, lambda: (seed.encode_seed(firmware_seed(_FIRMWARE)),), write=seed.encode_seed
    ),
    "owner.certificate.amd_common_name": Parser(certificate.amd_common_name, names),
    "owner.certificate.p384_key": Parser(certificate.p384_key, keys),
    "owner.certificate.parse_certificate": Parser(certificate.parse_certificate, certificates),
    "owner.certificate.parse_extensions": Parser(
        lambda data: certificate.parse_extensions(Der(data, "sample").enter(0x30), "sample"), extensions
    ),
    "owner.certificate.rsa_key": Parser(certificate.rsa_key, keys),
    "owner.certificate.split_certificates": Parser(certificate.split_certificates, pems),
    "owner.crl.parse_crl": Parser(crl.parse_crl, crls),
    "owner.der.Der": Parser(der_walk, lambda: (*extensions(), names()[0])),
    "owner.floors.parse_floors": Parser(text(floors.parse_floors), seeds(test_floors.TEXT.encode()), ConfigError),
    "owner.jobfile.parse_job_file": Parser(text(jobfile.parse_job_file), seeds(samples.JOB_YAML.encode()), ConfigError),
    "owner.keystore.parse_keys": Parser(keystore.parse_keys, seeds(test_keystore.FILE), ConfigError, write=encode),
    "owner.launchsign.load_signing_key": Parser(launchsign.load_signing_key, lambda: (_signing_key(),), ConfigError),
    "owner.policyfile.parse_policy": Parser(
        text(policyfile.parse_policy),
        seeds(_POLICY, _FULL_POLICY),
        ConfigError,
        write=lambda value: policyfile.encode_policy(value).encode(),
    ),
    "owner.toml.load_table": Parser(
        text(lambda value: toml.load_table(value, "sample")), seeds(b"a = 1\n[[b]]\nc = 2026-01-31\n"), ConfigError
    ),
    "owner.vek.parse_vek": Parser(veks_of, veks),
}


for _parse, _samples in doctor.SAMPLES.items():
    _read = text(_parse) if _parse.__name__ == "parse_version" else _parse
    PARSERS[f"host.doctor.texts.{_parse.__name__}"] = Parser(_read, seeds(*_samples))


@cache
def _signing_key() -> bytes:
    key = fakes.fake_amd().chip().vcek(tcb.Tcb(line=tcb.ProductLine.GENOA, bootloader=1, tee=1, snp=1, microcode=1))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key.private_bytes(*form)

# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Headers made by the real cryptsetup, and what an attacker would make of them."""

import dataclasses
import hashlib
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvmtool.errors import FormatError
from cvmtool.formats.pack import HEADER_SIZE
from cvmtool.formats.volume import Volume
from cvmtool.guest.lukshdr import check_header, check_volume_header
from tests.unit.guest import samples

AREA, JSON_AT, CHECKSUM = 16_384, 4_096, slice(448, 512)


@pytest.fixture(scope="session")
def container(tmp_path_factory):
    path = tmp_path_factory.mktemp("luks") / "container"
    samples.luks_format(path)
    return path


@pytest.fixture(scope="session")
def header(container):
    return samples.header_of(container)


def metadata(header, copy=0):
    return json.loads(header[copy * AREA + JSON_AT : (copy + 1) * AREA].rstrip(b"\0"))


def described(header):
    """The descriptor that names this header, whatever it is: so that the digest never decides."""
    digest = metadata(header)["digests"].get("0", {}).get("digest")
    return samples.pack(header_sha256=hashlib.sha256(header).hexdigest(), volume_key_digest=digest)


def seal(header):
    """Give both copies the checksum of what they hold."""
    header = bytearray(header)
    for copy in (0, 1):
        area = header[copy * AREA : (copy + 1) * AREA]
        area[CHECKSUM] = bytes(64)
        start = copy * AREA + CHECKSUM.start
        header[start : start + 64] = hashlib.sha256(area).digest().ljust(64, b"\0")
    return bytes(header)


def with_metadata(header, change, copies=(0, 1)):
    header = bytearray(header)
    for copy in copies:
        document = metadata(header, copy)
        change(document)
        text = json.dumps(document).encode().ljust(AREA - JSON_AT, b"\0")
        header[copy * AREA + JSON_AT : (copy + 1) * AREA] = text
    return seal(header)


def with_bytes(header, at, data, copies=(0, 1)):
    header = bytearray(header)
    for copy in copies:
        header[copy * AREA + at : copy * AREA + at + len(data)] = data
    return seal(header)


def refused(header, pack=None):
    with pytest.raises(FormatError) as caught:
        check_header(header, pack or described(header))
    return caught.value.message


def test_header_of_the_real_tool_is_accepted(header):
    check_header(header, described(header))


def test_digest_in_the_manifest_decides_first(header):
    changed = bytearray(header)
    changed[-1] ^= 1
    assert "sha-256" in refused(bytes(changed), described(header))


@pytest.mark.parametrize("cut", [0, 1, AREA, HEADER_SIZE - 1])
def test_cut_header(header, cut):
    assert "bytes" in refused(header[:cut], described(header))


def test_another_uuid(header):
    pack = dataclasses.replace(described(header), luks_uuid="00000000-0000-4000-8000-000000000000")
    assert "uuid" in refused(header, pack)


def test_another_volume_key(header):
    pack = dataclasses.replace(described(header), volume_key_digest="B" * 43 + "=")
    assert "digest" in refused(header, pack)


def test_null_cipher_made_by_the_real_tool(tmp_path, header):
    def null(document):
        document["segments"]["0"]["encryption"] = "cipher_null-ecb"

    assert "segment.encryption" in refused(with_metadata(header, null))


def test_second_key_slot_made_by_the_real_tool(tmp_path):
    path = tmp_path / "container"
    samples.luks_format(path)
    key, new = tmp_path / "key", tmp_path / "new"
    key.write_bytes(b"k" * 32)
    new.write_bytes(b"n" * 32)
    samples.luks_tool(path, "luksAddKey", "--batch-mode", "--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000",
                      f"--key-file={key}", f"--new-keyfile={new}")  # fmt: skip
    header = samples.header_of(path)
    assert "keyslots" in refused(header)


def test_token_made_by_the_real_tool(tmp_path):
    path = tmp_path / "container"
    samples.luks_format(path)
    samples.luks_tool(path, "token", "import", stdin=b'{"type":"evil","keyslots":["0"]}')
    assert "tokens" in refused(samples.header_of(path))


def test_label_made_by_the_real_tool(tmp_path):
    path = tmp_path / "container"
    samples.luks_format(path)
    samples.luks_tool(path, "config", "--label=evil")
    assert "label" in refused(samples.header_of(path))


def put(*path, value):
    def change(document):
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


def drop(*path):
    def change(document):
        for key in path[:-1]:
            document = document[key]
        del document[path[-1]]

    return change


MUTATIONS = {
    "slot cipher": (put("keyslots", "0", "area", "encryption", value="cipher_null-ecb"), "area.encryption"),
    "slot key size": (put("keyslots", "0", "key_size", value=32), "key_size"),
    "slot priority": (put("keyslots", "0", "priority", value=0), "priority"),
    "slot stripes": (put("keyslots", "0", "af", "stripes", value=1), "af"),
    "slot over metadata": (put("keyslots", "0", "area", "offset", value="16384"), "area"),
    "slot over payload": (put("keyslots", "0", "area", "offset", value=str(HEADER_SIZE - 4096)), "area"),
    "slot offset form": (put("keyslots", "0", "area", "offset", value="032768"), "area.offset"),
    "slot offset number": (put("keyslots", "0", "area", "offset", value=32768), "area.offset"),
    "kdf": (put("keyslots", "0", "kdf", "type", value="argon2id"), "kdf.type"),
    "kdf work": (put("keyslots", "0", "kdf", "iterations", value=1 << 40), "iterations"),
    "kdf none": (put("keyslots", "0", "kdf", "iterations", value=1), "iterations"),
    "no slot": (drop("keyslots", "0"), "keyslots"),
    "segment type": (put("segments", "0", "type", value="linear"), "segment.type"),
    "segment offset": (put("segments", "0", "offset", value="0"), "segment.offset"),
    "segment size": (put("segments", "0", "size", value="4096"), "segment.size"),
    "segment tweak": (put("segments", "0", "iv_tweak", value="8"), "iv_tweak"),
    "segment sectors": (put("segments", "0", "sector_size", value=512), "sector_size"),
    "segment flags": (put("segments", "0", "flags", value=["backup-final"]), "flags"),
    "segment integrity": (put("segments", "0", "integrity", value={}), "integrity"),
    "two segments": (lambda document: document["segments"].update({"1": document["segments"]["0"]}), "segments"),
    "digest of no slot": (put("digests", "0", "keyslots", value=[]), "digest.keyslots"),
    "digest of no segment": (put("digests", "0", "segments", value=[]), "digest.segments"),
    "digest work": (put("digests", "0", "iterations", value=True), "iterations"),
    "requirements": (put("config", "requirements", value={"mandatory": ["online-reencrypt"]}), "requirements"),
    "flags": (put("config", "flags", value=["allow-discards"]), "flags"),
    "slots area": (put("config", "keyslots_size", value="4096"), "keyslots_size"),
    "unknown section": (put("evil", value={}), "evil"),
    "missing section": (drop("tokens"), "tokens"),
}


@pytest.mark.parametrize(("change", "field"), MUTATIONS.values(), ids=MUTATIONS)
def test_changed_metadata_with_good_checksums(header, change, field):
    changed = with_metadata(header, change)
    assert field in refused(
        changed, dataclasses.replace(described(header), header_sha256=hashlib.sha256(changed).hexdigest())
    )


BINARY = {
    "magic": (0, b"LUKT", "magic"),
    "version 1": (6, b"\0\1", "version"),
    "size": (8, (32_768).to_bytes(8, "big"), "size"),
    "label": (24, b"evil", "label"),
    "checksum algorithm": (72, b"sha1\0\0", "algorithm"),
    "subsystem": (208, b"evil", "subsystem"),
    "offset": (256, (1).to_bytes(8, "big"), "offset"),
    "padding": (300, b"\1", "padding"),
    "behind the metadata": (AREA - 1, b"x", "behind"),
}


@pytest.mark.parametrize(("at", "data", "field"), BINARY.values(), ids=BINARY)
def test_changed_binary_header_with_good_checksums(header, at, data, field):
    changed = with_bytes(header, at, data)
    assert field in refused(
        changed, dataclasses.replace(described(header), header_sha256=hashlib.sha256(changed).hexdigest())
    )


@pytest.mark.parametrize("copy", [0, 1])
@pytest.mark.parametrize(
    ("at", "data"),
    [(16, (99).to_bytes(8, "big")), (168, b"00000000-0000-4000-8000-000000000000")],
    ids=["sequence number", "uuid"],
)
def test_copies_that_differ(header, copy, at, data):
    """cryptsetup takes the copy with the higher sequence number, so the one that was not checked would count."""
    changed = with_bytes(header, at, data, copies=(copy,))
    assert "copies differ" in refused(changed)


def test_copies_with_different_metadata(header):
    changed = with_metadata(header, put("segments", "0", "encryption", value="cipher_null-ecb"), copies=(1,))
    assert "copies differ" in refused(changed)


def test_wrong_checksum(header):
    changed = bytearray(header)
    changed[200] ^= 1
    assert "checksum" in refused(bytes(changed))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 2 * AREA - 1), data=st.binary(min_size=1, max_size=64))
def test_any_bytes_are_accepted_or_refused(header, at, data):
    changed = bytearray(header)
    changed[at : at + len(data)] = data
    changed = seal(changed[:HEADER_SIZE])
    pack = dataclasses.replace(described(header), header_sha256=hashlib.sha256(changed).hexdigest())
    try:
        check_header(changed, pack)
    except FormatError:
        return
    # What passes says the same as the original, byte for byte, but for salts, checksums and white space.
    assert metadata(changed)["segments"] == metadata(header)["segments"]
    assert metadata(changed)["digests"]["0"]["digest"] == metadata(header)["digests"]["0"]["digest"]


# ---- volumes --------------------------------------------------------------------------------------------------------

VOLUME = Volume(name="data", luks_uuid=samples.UUID, size=1 << 30, create=True)
# What cryptsetup 2.7.5 writes for --cipher=aes-xts-plain64 --integrity=hmac-sha256; this needs the kernel's dm-integrity.
VOLUME_METADATA = json.loads(
    '{"keyslots":{"0":{"type":"luks2","key_size":96,"af":{"type":"luks1","stripes":4000,"hash":"sha256"},"area":{"type":'
    '"raw","offset":"32768","size":"385024","encryption":"aes-xts-plain64","key_size":64},"kdf":{"type":"pbkdf2",'
    '"hash":"sha256","iterations":1000,"salt":"oSGTnT6qfcpy5So3+by5n52S4QNBUNu3cQginDDOJA0="}}},"tokens":{},"segments"'
    ':{"0":{"type":"crypt","offset":"1048576","size":"dynamic","iv_tweak":"0","encryption":"aes-xts-plain64",'
    '"sector_size":4096,"integrity":{"type":"hmac(sha256)","journal_encryption":"none","journal_integrity":"none"}}},'
    '"digests":{"0":{"type":"pbkdf2","keyslots":["0"],"segments":["0"],"hash":"sha256","iterations":1000,"salt":'
    '"tjJbNfhWd7P9BZe0p4eSW7FHGa79WYRod2vcoS5K2Xs=","digest":"XKra+AqfhKa5Qz6PhOGK8gRPq+AGLai+rFRMeW985hw="}},'
    '"config":{"json_size":"12288","keyslots_size":"1015808"}}'
)


def volume_header(header, change=lambda document: None):
    def replace(document):
        document.clear()
        document.update(json.loads(json.dumps(VOLUME_METADATA)))
        change(document)

    return with_metadata(header, replace)


def test_a_volume_of_the_real_tool_is_accepted(header):
    check_volume_header(volume_header(header), VOLUME)


def test_a_volume_is_no_pack_and_a_pack_no_volume(header):
    with pytest.raises(FormatError):
        check_volume_header(header, VOLUME)
    assert "key_size" in refused(volume_header(header))


def test_another_volume_is_refused(header):
    other = dataclasses.replace(VOLUME, luks_uuid="00000000" + samples.UUID[8:])
    with pytest.raises(FormatError, match="uuid"):
        check_volume_header(volume_header(header), other)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("segments", "encryption", "cipher_null-ecb"),
        ("segments", "encryption", "aes-cbc-essiv:sha256"),
        ("segments", "integrity", None),
        ("segments", "integrity", {"type": "none"}),
        ("segments", "integrity", {"type": "crc32c", "journal_encryption": "none", "journal_integrity": "none"}),
        ("segments", "integrity", {**VOLUME_METADATA["segments"]["0"]["integrity"], "more": 1}),
        ("segments", "offset", "4096"),
        ("segments", "size", "1048576"),
        ("segments", "sector_size", 512),
        ("segments", "flags", ["backup-final"]),
        ("keyslots", "key_size", 64),
        ("keyslots", "priority", 2),
        ("digests", "digest", ""),
        ("digests", "digest", "QUJD"),
        ("digests", "keyslots", ["0", "1"]),
    ],
)
def test_a_volume_whose_header_the_host_rewrote(header, section, key, value):
    changed = volume_header(header, lambda document: document[section]["0"].update({key: value}))
    with pytest.raises(FormatError):
        check_volume_header(changed, VOLUME)


@pytest.mark.parametrize("key", ["integrity", "encryption", "sector_size"])
def test_a_volume_lacks_nothing(header, key):
    with pytest.raises(FormatError, match=key):
        check_volume_header(volume_header(header, lambda document: document["segments"]["0"].pop(key)), VOLUME)


@pytest.mark.parametrize("encryption", ["cipher_null-ecb", "aes-ecb"])
def test_a_volume_whose_key_slot_hides_nothing(header, encryption):
    def change(document):
        document["keyslots"]["0"]["area"]["encryption"] = encryption

    with pytest.raises(FormatError, match="encryption"):
        check_volume_header(volume_header(header, change), VOLUME)


def test_a_second_key_slot_in_a_volume(header):
    def change(document):
        document["keyslots"]["1"] = document["keyslots"]["0"]

    with pytest.raises(FormatError, match="keyslots"):
        check_volume_header(volume_header(header, change), VOLUME)

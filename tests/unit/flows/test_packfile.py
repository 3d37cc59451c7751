# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
import json
import os
import secrets
import stat

import pytest

from cvmtool.config import load_settings
from cvmtool.data import opening
from cvmtool.errors import BuildError, ConfigError, FormatError, VerificationError
from cvmtool.flows import packfile
from cvmtool.flows.packfile import (
    Source,
    check_pack,
    is_pack,
    open_pack,
    pack_to_file,
    read_metadata,
    read_pack,
    rekey_pack,
    seal_input,
    sidecar_of,
    take_container,
)
from cvmtool.flows.packs import encode_descriptor, tree_digest
from cvmtool.formats.pack import HEADER_SIZE, Role
from cvmtool.formats.packheader import Action, ContentKind, Metadata, Sensitivity, encode_header
from cvmtool.owner.keystore import OwnerKeys
from tests.unit.data.oci_images import Image, layer, member

KEYS, OTHER = OwnerKeys(b"seed" * 8), OwnerKeys(b"SEED" * 8)
SAID = Metadata(sensitivity=Sensitivity.CONFIDENTIAL, origin="the north ward")


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    (folder / "sub").mkdir(parents=True)
    (folder / "noise").write_bytes(secrets.token_bytes(5 << 20))
    (folder / "sub/b").write_bytes(b"B")
    (folder / "link").symlink_to("sub/b")
    return folder


@pytest.fixture
def sealed(source, tmp_path):
    make(source, tmp_path / "p")
    return tmp_path / "p"


def make(source, out, **changes):
    arguments = {"name": "data", "metadata": SAID, "keys": KEYS, **changes}
    return pack_to_file(Source(reference=str(source), kind=ContentKind.TREE), out, **arguments)


def used_as(path, name, *, keys):
    return seal_input(path, name, settings=load_settings(), keys=keys, progress=lambda _done, _all: None)


def names(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir() if path.name != "source")


def test_a_pack_has_its_signed_header_beside_it(source, tmp_path):
    header = make(source, tmp_path / "p")
    found = check_pack(tmp_path / "p")
    assert found.header == header
    assert found.descriptor == header.pack
    assert header.content.digest == f"sha256:{tree_digest(source).hex()}"
    assert header.metadata.created == header.lineage[0].at
    assert stat.S_IMODE(sidecar_of(found.path).stat().st_mode) == 0o600


def test_what_is_said_of_a_pack_is_not_in_the_pack(sealed):
    """The pack goes to a host; its header does not."""
    data = sealed.read_bytes()
    assert b"the north ward" not in data
    assert b"confidential" not in data


def test_a_pack_names_what_it_was_made_from(source, sealed, tmp_path):
    parent = read_pack(sealed).header
    made = make(source, tmp_path / "q", made_from=[parent])
    assert made.lineage[0].sources == (parent.source,)


def test_nothing_is_replaced_unasked(source, sealed, tmp_path):
    before = sealed.read_bytes()
    with pytest.raises(ConfigError, match="exists"):
        make(source, sealed)
    assert sealed.read_bytes() == before
    sealed.rename(tmp_path / "away")
    with pytest.raises(ConfigError, match=r"p\.json"):
        make(source, sealed)
    make(source, sealed, force=True)
    check_pack(sealed)
    with pytest.raises(ConfigError, match="directory"):
        make(source, source, force=True)


def test_a_missing_source_is_named_for_the_command_line(tmp_path):
    with pytest.raises(ConfigError) as refusal:
        make(tmp_path / "missing", tmp_path / "q")
    assert "job file" not in refusal.value.hint
    assert names(tmp_path) == []


def test_a_pack_is_not_packed(sealed, tmp_path):
    assert is_pack(sealed)
    assert not is_pack(sidecar_of(sealed))
    with pytest.raises(ConfigError, match="already"):
        make(sealed, tmp_path / "q")


def test_an_image_is_packed_by_its_digest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = Image(layer(member("a", b"1")))
    image.write(tmp_path / "layout")

    def packed(digest):
        source = Source(reference="oci:layout", kind=ContentKind.CONTAINER, digest=digest)
        return pack_to_file(source, tmp_path / "p", name="c", metadata=Metadata(), keys=KEYS)

    for digest, error in ((None, ConfigError), ("sha256:" + "0" * 64, VerificationError)):
        with pytest.raises(error):
            packed(digest)
    header = packed(image.digest)
    assert (header.pack.role, header.content.digest) == (Role.CONTAINER, image.digest)
    with pytest.raises(ConfigError, match="input"):
        used_as(tmp_path / "p", "data", keys=KEYS)


def test_a_model_is_checked_before_it_is_packed(source, tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json"):
        pack_to_file(
            Source(reference=str(source), kind=ContentKind.MODEL),
            tmp_path / "p",
            name="m",
            metadata=Metadata(),
            keys=KEYS,
        )
    assert names(tmp_path) == []


@pytest.mark.parametrize("damage", ["block", "short", "header", "unsigned", "v3"])
def test_a_pack_is_checked_against_its_header(sealed, damage):
    sidecar = sidecar_of(sealed)
    text = sidecar.read_text()
    if damage == "block":
        with sealed.open("r+b") as file:
            file.seek(HEADER_SIZE + 5000)
            file.write(b"!!")
    elif damage == "short":
        os.truncate(sealed, 5000)
    else:
        change = {
            "header": ("north", "south"),
            "unsigned": ('"signature": "', '"signature": "00'),
            "v3": ("/v2", "/v3"),
        }
        sidecar.write_text(text.replace(*change[damage]))
    with pytest.raises((VerificationError, FormatError)):
        check_pack(sealed)


def test_what_an_older_version_wrote_is_read(sealed):
    descriptor = read_pack(sealed).descriptor
    sidecar_of(sealed).write_bytes(encode_descriptor(descriptor))
    found = check_pack(sealed)
    assert (found.descriptor, found.header) == (descriptor, None)
    again = rekey_pack(sealed, keys=KEYS)
    assert again.header is None
    assert check_pack(sealed).descriptor == again.descriptor


def test_a_pack_comes_back_as_it_went_in(source, sealed, tmp_path):
    _, in_memory = open_pack(sealed, tmp_path / "out", keys=KEYS)
    assert in_memory
    assert tree_digest(tmp_path / "out") == tree_digest(source)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700
    assert names(tmp_path) == ["out", "p", "p.json"]


def test_a_pack_larger_than_memory_comes_back_too(source, sealed, tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "_free_memory", lambda: 1 << 20)
    _, in_memory = open_pack(sealed, tmp_path / "out", keys=KEYS)
    assert not in_memory
    assert tree_digest(tmp_path / "out") == tree_digest(source)
    assert names(tmp_path) == ["out", "p", "p.json"]


@pytest.mark.parametrize("at", [100, HEADER_SIZE + 9, -1], ids=["LUKS header", "first block", "last block"])
def test_nothing_comes_out_of_a_pack_that_was_changed(sealed, tmp_path, at):
    end = read_pack(sealed).descriptor.hash_offset
    with sealed.open("r+b") as file:
        file.seek(at if at >= 0 else end + at)
        byte = file.read(1)[0]
        file.seek(at if at >= 0 else end + at)
        file.write(bytes([byte ^ 1]))
    before = sealed.read_bytes()
    for act in (lambda: open_pack(sealed, tmp_path / "out", keys=KEYS), lambda: rekey_pack(sealed, keys=KEYS)):
        with pytest.raises(VerificationError):
            act()
    assert names(tmp_path) == ["p", "p.json"]
    assert sealed.read_bytes() == before


def test_another_owner_can_neither_open_nor_rekey_nor_use_it(sealed, tmp_path):
    for act in (
        lambda: open_pack(sealed, tmp_path / "out", keys=OTHER),
        lambda: rekey_pack(sealed, keys=OTHER),
        lambda: used_as(sealed, "data", keys=OTHER),
    ):
        with pytest.raises(VerificationError, match="signed by"):
            act()
    assert names(tmp_path) == ["p", "p.json"]


def test_another_owners_name_on_a_pack_does_not_open_it(sealed, tmp_path):
    sidecar_of(sealed).write_bytes(encode_descriptor(read_pack(sealed).descriptor))
    with pytest.raises(BuildError, match="LUKS header"):
        open_pack(sealed, tmp_path / "out", keys=OTHER)


def test_an_existing_directory_is_not_opened_into(sealed, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfigError, match="exists"):
        open_pack(sealed, tmp_path / "out", keys=KEYS)


def test_a_rekeyed_pack_shares_nothing_with_the_old_but_its_content(source, sealed, tmp_path):
    before, old = read_pack(sealed), sealed.read_bytes()
    after = rekey_pack(sealed, keys=KEYS)
    for field in ("root_hash", "salt", "luks_uuid", "volume_key_digest", "header_sha256"):
        assert getattr(before.descriptor, field) != getattr(after.descriptor, field)
    new, end = sealed.read_bytes(), after.descriptor.hash_offset
    assert not any(old[at : at + 16] == new[at : at + 16] for at in range(HEADER_SIZE, end, 16))
    assert check_pack(sealed).header == after.header
    assert after.header.content == before.header.content
    assert [step.action for step in after.header.lineage] == [Action.PACKED, Action.REKEYED]
    assert after.header.lineage[-1].sources == (before.header.source,)
    open_pack(sealed, tmp_path / "out", keys=KEYS)
    assert tree_digest(tmp_path / "out") == tree_digest(source)
    assert [step.action for step in rekey_pack(sealed, keys=KEYS).header.lineage] == [Action.PACKED, Action.REKEYED]


@pytest.mark.parametrize("step", ["reseal_pack", "sign_header", "write_atomic", "encode_header"])
def test_a_rekey_that_fails_leaves_a_whole_pair(sealed, monkeypatch, step):
    old = sealed.read_bytes()

    def fails(*_arguments, **_named):
        raise OSError("on purpose")

    monkeypatch.setattr(packfile, step, fails)
    with pytest.raises(ConfigError):
        rekey_pack(sealed, keys=KEYS)
    monkeypatch.undo()
    assert sealed.read_bytes() == old
    check_pack(sealed)
    kept = sealed.with_name("p.old")
    if kept.exists():
        check_pack(kept)
        with pytest.raises(ConfigError, match="interrupted"):
            rekey_pack(sealed, keys=KEYS)
    assert not list(sealed.parent.glob(".p.*"))


def test_a_pack_is_used_under_the_jobs_name(sealed):
    used = used_as(sealed, "other", keys=KEYS)
    assert (used.descriptor.name, used.path, used.reused) == ("other", sealed, True)
    assert used.header.metadata.sensitivity is Sensitivity.CONFIDENTIAL


def test_what_is_no_pack_is_sealed(source):
    sealed = used_as(source, "other", keys=KEYS)
    assert (sealed.descriptor.name, sealed.header, sealed.reused) == ("other", None, False)


def test_metadata_comes_from_a_file_and_options_win(tmp_path):
    path = tmp_path / "about.toml"
    path.write_text('owner = "us"\nlicence = "MIT"\nsensitivity = "internal"\ncreated = 2026-01-31T12:00:00+01:00\n')
    found = read_metadata(path, {"licence": "CC0-1.0"})
    assert found == Metadata(
        owner="us", licence="CC0-1.0", sensitivity=Sensitivity.INTERNAL, created="2026-01-31T11:00:00Z"
    )
    assert read_metadata(None, {}) == Metadata()


@pytest.mark.parametrize("text", ["ownr = 'x'", "owner = 3", "created = 2026-01-31", "sensitivity = 'x'", "", "owner"])
def test_a_metadata_file_is_read_strictly(tmp_path, text):
    path = tmp_path / "about.toml"
    path.write_text(text)
    with pytest.raises((ConfigError, FormatError)):
        read_metadata(path, {})
    with pytest.raises(ConfigError):
        read_metadata(tmp_path / "missing", {})


def test_the_header_is_json_that_a_script_can_read(sealed):
    document = json.loads(sidecar_of(sealed).read_text())
    assert document["metadata"]["origin"] == "the north ward"
    assert encode_header(read_pack(sealed).header) == sidecar_of(sealed).read_bytes()


def test_a_pack_of_a_party_is_taken_as_it_is_and_of_nobody_else(sealed):
    others = {"settings": load_settings(), "keys": OTHER, "progress": lambda _done, _all: None}
    assert seal_input(sealed, "theirs", parties=[KEYS.public.hex()], **others).header.owner_key == KEYS.public.hex()
    with pytest.raises(VerificationError, match="is signed by the key"):
        seal_input(sealed, "theirs", parties=["77" * 32], **others)


@pytest.fixture
def container(tmp_path):
    image = Image(layer(member("train", b"#!")))
    image.write(tmp_path / "oci")
    out = tmp_path / "container.pack"
    source = Source(reference=f"oci:{tmp_path / 'oci'}", kind=ContentKind.CONTAINER, digest=image.digest)
    pack_to_file(source, out, name="tools", metadata=Metadata(), keys=KEYS)
    return out, image.digest


def test_a_sealed_container_is_taken_of_us_or_a_party_if_it_is_of_that_image(container):
    path, digest = container
    assert take_container(path, digest, keys=KEYS).descriptor.name == "container"
    theirs = take_container(path, digest, keys=OTHER, parties=[KEYS.public.hex()])
    assert (theirs.path, theirs.descriptor.role, theirs.reused) == (path, Role.CONTAINER, True)
    with pytest.raises(VerificationError, match="is signed by the key"):
        take_container(path, digest, keys=OTHER)
    with pytest.raises(VerificationError, match="is of the image"):
        take_container(path, "sha256:" + "0" * 64, keys=KEYS)


def test_data_is_no_container(sealed):
    with pytest.raises(ConfigError, match="is of no container"):
        take_container(sealed, "sha256:" + "0" * 64, keys=KEYS)

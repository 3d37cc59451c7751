# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""Packs made by the real tools, and opened by them."""

import hashlib
import os
import secrets
import stat
import subprocess
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from cvmtool.data import pack as packing
from cvmtool.data import sealed as sealing
from cvmtool.data.pack import TarSource, TreeSource, make_pack
from cvmtool.data.sealed import verify_pack
from cvmtool.errors import BuildError, ConfigError, VerificationError
from cvmtool.formats.pack import BLOCK, HEADER_SIZE, Role, parse_pack_descriptor
from tests.unit.data.oci_images import directory, hard, layer, member, symbolic

PASSPHRASE = bytes(range(32))
WINDOW = 32 << 20  # bytes that packing may be ahead of encryption


def make(source, out, **changes):
    arguments = {"name": "data", "role": Role.INPUT, "passphrase_for": lambda _uuid: PASSPHRASE, **changes}
    return make_pack(source, out, **arguments)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    (folder / "sub").mkdir(parents=True)
    (folder / "a").write_bytes(b"A" * 10_000)
    (folder / "sub/b").write_bytes(b"B")
    (folder / "sub/link").symlink_to("../a")
    return folder


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """A pack of 3 MiB that does not compress, made once; tests work on copies."""
    folder = tmp_path_factory.mktemp("sealed")
    (folder / "source").mkdir()
    (folder / "source/noise").write_bytes(secrets.token_bytes(3 << 20))
    return folder / "pack", make(TreeSource(path=folder / "source"), folder / "pack")


def cryptsetup(*arguments, passphrase=PASSPHRASE):
    return subprocess.run(["cryptsetup", *arguments], input=passphrase, capture_output=True, check=False)


def payload(pack, descriptor, tmp_path):
    """Decrypt a pack with the key that cryptsetup gives for the passphrase; return the file system's image."""
    key = tmp_path / "volume-key"
    dumped = cryptsetup(
        "luksDump", "--batch-mode", "--dump-volume-key", "--volume-key-file", str(key), "--key-file", "-", str(pack)
    )
    assert dumped.returncode == 0, dumped.stderr
    aes = algorithms.AES(key.read_bytes())
    data = pack.read_bytes()[HEADER_SIZE : descriptor.hash_offset]
    image = tmp_path / "image"
    with image.open("wb") as file:
        for at in range(0, len(data), BLOCK):
            tweak = (at // 512).to_bytes(16, "little")
            file.write(Cipher(aes, modes.XTS(tweak)).decryptor().update(data[at : at + BLOCK]))
    return image


def compression(image):
    """Return squashfs's number of the compression: 5 is lz4, 6 zstd."""
    return int.from_bytes(image.read_bytes()[20:22], "little")


def unpacked(pack, descriptor, tmp_path):
    target = tmp_path / "unpacked"
    image = payload(pack, descriptor, tmp_path)
    subprocess.run(["unsquashfs", "-q", "-n", "-d", str(target), str(image)], check=True, capture_output=True)
    return target


def test_cryptsetup_opens_a_pack_with_its_passphrase_and_no_other(sealed):
    path, _ = sealed
    test = ("open", "--test-passphrase", "--type", "luks2", "--key-file", "-", str(path), "x")
    assert cryptsetup(*test).returncode == 0
    assert cryptsetup(*test, passphrase=PASSPHRASE[::-1]).returncode == 2


def test_what_was_packed_comes_out(source, tmp_path):
    pack = tmp_path / "pack"
    target = unpacked(pack, make(TreeSource(path=source), pack), tmp_path)
    assert (target / "a").read_bytes() == b"A" * 10_000
    assert (target / "sub/b").read_bytes() == b"B"
    assert (target / "sub/link").readlink().as_posix() == "../a"
    assert sorted(path.name for path in target.rglob("*")) == ["a", "b", "link", "sub"]


def test_the_descriptor_says_what_the_file_is(sealed):
    path, descriptor = sealed
    assert parse_pack_descriptor(descriptor.to_json()) == descriptor
    assert descriptor.size == path.stat().st_size
    assert descriptor.hash_offset == descriptor.data_blocks * BLOCK
    with path.open("rb") as file:
        assert hashlib.sha256(file.read(HEADER_SIZE)).hexdigest() == descriptor.header_sha256
    dumped = cryptsetup("luksUUID", str(path)).stdout.decode().strip()
    assert dumped == descriptor.luks_uuid
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_two_packs_of_one_source_share_nothing(source, tmp_path):
    one, two = (make(TreeSource(path=source), tmp_path / name) for name in ("one", "two"))
    for field in ("root_hash", "salt", "luks_uuid", "volume_key_digest", "header_sha256"):
        assert getattr(one, field) != getattr(two, field)
    first, second = ((tmp_path / name).read_bytes()[HEADER_SIZE : one.hash_offset] for name in ("one", "two"))
    assert not any(first[at : at + 16] == second[at : at + 16] for at in range(0, len(first), 16))


def test_the_passphrase_is_asked_for_the_packs_own_uuid(source, tmp_path):
    asked = []
    descriptor = make(
        TreeSource(path=source), tmp_path / "pack", passphrase_for=lambda uuid: asked.append(uuid) or PASSPHRASE
    )
    assert asked == [descriptor.luks_uuid]


def test_progress_ends_at_the_whole(source, tmp_path):
    (source / "noise").write_bytes(secrets.token_bytes(20 << 20))
    seen = []
    make(TreeSource(path=source), tmp_path / "pack", progress=lambda done, total: seen.append((done, total)))
    assert len(seen) >= 5
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]


def test_veritysetup_finds_the_same_tree(sealed):
    path, descriptor = sealed
    arguments = ["veritysetup", "verify", "--hash=sha256", "--salt", descriptor.salt]
    arguments += ["--hash-offset", str(descriptor.hash_offset), str(path), str(path), descriptor.root_hash]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


REGIONS = {
    "first byte": lambda d: 0,
    "LUKS header": lambda d: 5_000,
    "second LUKS header": lambda d: 16_384 + 100,
    "key slot": lambda d: 40_000,
    "end of the header": lambda d: HEADER_SIZE - 1,
    "first block": lambda d: HEADER_SIZE,
    "middle": lambda d: (HEADER_SIZE + d.hash_offset) // 2,
    "last block": lambda d: d.hash_offset - 1,
    "hash tree's head": lambda d: d.hash_offset,
    "salt in the head": lambda d: d.hash_offset + 100,
    "padding of the head": lambda d: d.hash_offset + 4_000,
    "root block of the tree": lambda d: d.hash_offset + BLOCK + 10,
    "leaf of the tree": lambda d: d.hash_offset + 3 * BLOCK + 10,
    "last byte": lambda d: d.size - 1,
}


@pytest.mark.parametrize("region", REGIONS)
def test_a_flipped_bit_is_found_wherever_it_is(sealed, region):
    path, descriptor = sealed
    verify_pack(path, descriptor)
    at = REGIONS[region](descriptor)
    with path.open("r+b") as file:
        original = os.pread(file.fileno(), 1, at)
        os.pwrite(file.fileno(), bytes([original[0] ^ 0x10]), at)
        try:
            with pytest.raises(VerificationError):
                verify_pack(path, descriptor)
        finally:
            os.pwrite(file.fileno(), original, at)


@pytest.mark.parametrize("change", [BLOCK, 1, -1, -BLOCK])
def test_a_longer_or_shorter_pack_is_found(sealed, change):
    path, descriptor = sealed
    whole = path.read_bytes()
    try:
        os.truncate(path, len(whole) + change)
        with pytest.raises(VerificationError):
            verify_pack(path, descriptor)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("field", ["root_hash", "salt", "header_sha256"])
def test_another_descriptor_does_not_fit(sealed, field):
    path, descriptor = sealed
    with pytest.raises(VerificationError):
        verify_pack(path, replace(descriptor, **{field: "00" * 32}))


def test_a_single_file_is_a_tree_of_one(source, tmp_path):
    pack = tmp_path / "pack"
    target = unpacked(pack, make(TreeSource(path=source / "a"), pack), tmp_path)
    assert [(path.name, path.read_bytes()) for path in target.iterdir()] == [("a", b"A" * 10_000)]
    assert stat.S_IMODE(target.stat().st_mode) & 0o555 == 0o555


def test_a_link_to_a_source_is_the_source(source, tmp_path):
    (tmp_path / "link").symlink_to("source")
    pack = tmp_path / "pack"
    target = unpacked(pack, make(TreeSource(path=tmp_path / "link"), pack), tmp_path)
    assert (target / "sub/b").read_bytes() == b"B"


def test_a_link_to_a_file_is_refused_and_not_packed_as_a_link(source, tmp_path):
    (tmp_path / "link").symlink_to("source/a")
    with pytest.raises(ConfigError) as refusal:
        make(TreeSource(path=tmp_path / "link"), tmp_path / "pack")
    assert str(source / "a") in refusal.value.hint


def listing(image):
    """Mode, owner and time of each path, as unsquashfs tells them."""
    printed = subprocess.run(["unsquashfs", "-lln", str(image)], check=True, capture_output=True, text=True).stdout
    rows = [line.split(maxsplit=5) for line in printed.splitlines() if "squashfs-root" in line]
    return {
        row[5].split(" -> ")[0].removeprefix("squashfs-root"): (row[0], row[1], f"{row[3]} {row[4]}") for row in rows
    }


def test_the_owners_umask_times_and_names_stay_at_home(source, tmp_path):
    (source / "a").chmod(0o600)
    (source / "sub").chmod(0o700)
    (source / "sub/b").chmod(0o700)
    source.chmod(0o700)
    if os.geteuid() == 0:
        os.chown(source / "a", 1234, 1234)
    pack = tmp_path / "pack"
    image = payload(pack, make(TreeSource(path=source), pack), tmp_path)
    assert compression(image) == 6
    found = listing(image)
    assert found[""][0] == "drwxr-xr-x"
    assert found["/a"][0] == "-rw-r--r--"
    assert found["/sub"][0] == "drwxr-xr-x"
    assert found["/sub/b"][0] == "-rwxr-xr-x"
    assert {owner for _, owner, _ in found.values()} == {"0/0"}
    assert {time for _, _, time in found.values()} == {"1970-01-01 00:00"}


def test_a_container_keeps_the_owners_modes_and_links_of_its_layers(tmp_path):
    tar = layer(
        directory("etc", mode=0o755),
        member("etc/shadow", b"s", uid=0, gid=42, mode=0o640, mtime=1_000_000_000),
        member("bin", b"x" * 70_000, uid=1000, gid=1000, mode=0o4755),
        hard("bin2", "bin"),
        symbolic("sh", "/bin"),
    )
    pack = tmp_path / "pack"
    pieces = [tar[at : at + 1000] for at in range(0, len(tar), 1000)]
    descriptor = make(TarSource(pieces=pieces), pack, name="container", role=Role.CONTAINER)
    image = payload(pack, descriptor, tmp_path)
    found = listing(image)
    assert compression(image) == 5
    assert descriptor.role is Role.CONTAINER
    assert found["/etc/shadow"] == ("-rw-r-----", "0/42", "2001-09-09 01:46")
    assert found["/bin"][:2] == found["/bin2"][:2] == ("-rwsr-xr-x", "1000/1000")
    assert found[""][:2] == ("drwxr-xr-x", "0/0")
    assert "/sh" in found


def left(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir() if path.name != "source")


def test_a_source_that_is_missing_is_named_and_nothing_left(tmp_path):
    with pytest.raises(ConfigError) as refusal:
        make(TreeSource(path=tmp_path / "missing"), tmp_path / "pack")
    assert "missing" in refusal.value.message
    assert left(tmp_path) == []


@pytest.mark.parametrize("name", ["", "Data", "a b", "../x", "é"])
def test_a_name_that_no_manifest_could_carry_is_refused_first(source, tmp_path, name):
    with pytest.raises(ConfigError):
        make(TreeSource(path=source), tmp_path / "pack", name=name)
    assert left(tmp_path) == []


def test_a_target_that_cannot_be_written_is_named(source, tmp_path):
    for out in (tmp_path / "missing/pack", source / "a/pack"):
        with pytest.raises(ConfigError) as refusal:
            make(TreeSource(path=source), out)
        assert str(out) in refusal.value.message


def fails(*_arguments, **_named):
    raise KeyError("on purpose")


@pytest.mark.parametrize("step", ["_squash", "_format", "_write_at", "_superblock", "_volume_key_digest"])
def test_whatever_fails_leaves_the_old_pack_and_nothing_else(source, tmp_path, monkeypatch, step):
    (tmp_path / "pack").write_bytes(b"old")
    monkeypatch.setattr(packing if step == "_squash" else sealing, step, fails)
    with pytest.raises(KeyError):
        make(TreeSource(path=source), tmp_path / "pack")
    assert left(tmp_path) == ["pack"]
    assert (tmp_path / "pack").read_bytes() == b"old"


def test_a_tree_of_many_pieces_comes_out_as_it_went_in(tmp_path):
    """Larger than the window, with blocks that compress, blocks that do not, and many small files in fragments."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "noise").write_bytes(secrets.token_bytes(WINDOW + (9 << 20) + 17))
    (folder / "zeros").write_bytes(bytes(3 << 20))
    (folder / "text").write_bytes(b"the same line again and again\n" * 200_000)
    for number in range(300):
        (folder / f"small-{number}").write_bytes(secrets.token_bytes(number * 7))
    descriptor = make(TreeSource(path=folder), tmp_path / "pack")
    verify_pack(tmp_path / "pack", descriptor)
    target = unpacked(tmp_path / "pack", descriptor, tmp_path)
    assert {path.name for path in target.iterdir()} == {path.name for path in folder.iterdir()}
    for path in folder.iterdir():
        assert (target / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_key_that_is_not_given_leaves_nothing(source, tmp_path):
    with pytest.raises(KeyError):
        make(TreeSource(path=source), tmp_path / "pack", passphrase_for=fails)
    assert left(tmp_path) == []


def test_a_container_whose_layer_turns_out_wrong_leaves_nothing(tmp_path):
    def pieces():
        yield layer(member("a", b"1" * 50_000))[:20_000]
        raise VerificationError("a layer's digest is another")

    with pytest.raises(VerificationError):
        make(TarSource(pieces=pieces()), tmp_path / "pack")
    assert left(tmp_path) == []


def test_a_stream_that_is_no_tar_is_a_failure(tmp_path):
    with pytest.raises(BuildError):
        make(TarSource(pieces=[b"no tar" * 1000]), tmp_path / "pack")
    assert left(tmp_path) == []


def test_neither_key_is_on_disk_in_an_argument_or_in_the_environment(source, tmp_path, monkeypatch):
    volume_key = bytes(range(100, 164))
    random = secrets.token_bytes
    monkeypatch.setattr(sealing.secrets, "token_bytes", lambda size: volume_key if size == 64 else random(size))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    told = []
    real = packing.run

    def watched(arguments, **named):
        told.append(" ".join(arguments).encode())
        printed = real(arguments, **named)
        told.extend([printed.encode(), *(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())])
        return printed

    monkeypatch.setattr(packing, "run", watched)
    monkeypatch.setattr(sealing, "run", watched)
    descriptor = make(TreeSource(path=source), tmp_path / "pack")
    told += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()] + [repr(descriptor).encode()]
    for secret in (volume_key, volume_key[:32], volume_key[32:], PASSPHRASE):
        for spelled in (secret, secret.hex().encode(), secret.hex().upper().encode()):
            assert not any(spelled in text for text in told)
    # The key that was looked for is the one that was used.
    test = ("luksDump", "--batch-mode", "--dump-volume-key", "--key-file", "-", str(tmp_path / "pack"))
    shown = cryptsetup(*test).stdout.decode().replace(" ", "").replace("\n", "").replace("\t", "")
    assert volume_key[:16].hex() in shown


def test_no_plaintext_is_on_disk(source, tmp_path, monkeypatch):
    noise = secrets.token_bytes(4096)
    (source / "noise").write_bytes(noise)
    seen = []
    real = packing.run

    def watched(arguments, **named):
        printed = real(arguments, **named)
        files = [path for path in tmp_path.rglob("*") if path.is_file() and source not in path.parents]
        seen.extend(path.read_bytes() for path in files)
        return printed

    monkeypatch.setattr(packing, "run", watched)
    monkeypatch.setattr(sealing, "run", watched)
    make(TreeSource(path=source), tmp_path / "pack")
    assert seen
    assert not any(noise[:64] in data for data in seen)

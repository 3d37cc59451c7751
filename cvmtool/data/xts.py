# SPDX-FileCopyrightText: The cvmtool authors
# SPDX-License-Identifier: Apache-2.0
"""AES-256-XTS sector by sector, as dm-crypt has it: 4096-byte sectors, plain64 tweaks in units of 512 bytes.

Zone: data (the owner's machine).
Each sector begins a new XTS unit, which in `cryptography` costs a new cipher object: a third of the speed of the system's
OpenSSL, that only takes another tweak. So the system's is used where there is one, after it has agreed with `cryptography`
about a sector (ADR-0023).
"""

from __future__ import annotations

import ctypes
import secrets
from collections.abc import Callable
from functools import cache, partial

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from cvmtool.errors import BuildError
from cvmtool.formats.pack import BLOCK, VOLUME_KEY_SIZE

_LIBRARY = "libcrypto.so.3"
_TWEAK_UNIT = 512  # bytes

Apply = Callable[[int, memoryview, bytearray | memoryview], None]
"""Gets the offset of some sectors in the payload, the sectors, and where the result goes: as many bytes."""


class SectorCipher:
    """Encrypts or decrypts sectors with one key, until it is closed."""

    def __init__(self, volume_key: bytearray, *, encrypt: bool) -> None:
        """Take the key: 64 bytes, the two halves of which differ."""
        library = system_library()
        make = _portable if library is None else partial(_native, library)
        self._apply, self._free = make(bytes(volume_key), encrypt=encrypt)

    def apply(self, start: int, source: memoryview, target: bytearray | memoryview) -> None:
        """Turn the sectors of `source`, which stand at `start` of the payload, into `target`, of the same size.

        Raises:
            BuildError: the cipher failed.
        """
        self._apply(start, source, target)

    def close(self) -> None:
        """Forget the key. Call it once."""
        self._free()


def _tweak(offset: int) -> bytes:
    return (offset // _TWEAK_UNIT).to_bytes(16, "little")


def _portable(key: bytes, *, encrypt: bool) -> tuple[Apply, Callable[[], None]]:
    aes = algorithms.AES(key)

    def apply(start: int, source: memoryview, target: bytearray | memoryview) -> None:
        with memoryview(target) as into:
            for at in range(0, len(source), BLOCK):
                cipher = Cipher(aes, modes.XTS(_tweak(start + at)))
                context = cipher.encryptor() if encrypt else cipher.decryptor()
                context.update_into(source[at : at + BLOCK], into[at : at + BLOCK])

    return apply, lambda: None


def _native(library: ctypes.PyDLL, key: bytes, *, encrypt: bool) -> tuple[Apply, Callable[[], None]]:
    context = library.EVP_CIPHER_CTX_new()
    if not context:
        raise BuildError("OpenSSL gives no cipher context")
    if library.EVP_CipherInit_ex(context, library.EVP_aes_256_xts(), None, key, None, int(encrypt)) != 1:
        library.EVP_CIPHER_CTX_free(context)
        raise BuildError("OpenSSL takes no AES-256-XTS key")

    def apply(start: int, source: memoryview, target: bytearray | memoryview) -> None:
        size = len(source)
        if len(target) != size or size % BLOCK:
            raise BuildError(f"sealing {size} bytes into {len(target)}; whole sectors, as many, are required")
        # The two arrays keep the buffers where they are while OpenSSL works on their addresses.
        inputs, outputs = (ctypes.c_char * size).from_buffer(source), (ctypes.c_char * size).from_buffer(target)
        begin, end = ctypes.addressof(inputs), ctypes.addressof(outputs)
        init, cipher = library.EVP_CipherInit_ex, library.EVP_Cipher
        for at in range(0, size, BLOCK):
            tweaked = init(context, None, None, None, _tweak(start + at), int(encrypt))
            if tweaked != 1 or cipher(context, end + at, begin + at, BLOCK) <= 0:
                raise BuildError("OpenSSL failed to turn a sector")

    return apply, partial(library.EVP_CIPHER_CTX_free, context)


@cache
def system_library() -> ctypes.PyDLL | None:
    """Return the system's OpenSSL, if it is there and does what `cryptography` does."""
    try:
        # Keeps the interpreter's lock: a sector takes a microsecond, letting go and taking it again takes longer.
        library = ctypes.PyDLL(_LIBRARY)
        pointer, number = ctypes.c_void_p, ctypes.c_int
        library.EVP_CIPHER_CTX_new.restype = library.EVP_aes_256_xts.restype = pointer
        library.EVP_CIPHER_CTX_free.argtypes, library.EVP_CIPHER_CTX_free.restype = [pointer], None
        library.EVP_CipherInit_ex.argtypes = [*[pointer] * 3, ctypes.c_char_p, ctypes.c_char_p, number]
        library.EVP_Cipher.argtypes = [*[pointer] * 3, ctypes.c_uint]
    except (OSError, AttributeError):
        return None
    return library if _agrees(library) else None


def _agrees(library: ctypes.PyDLL) -> bool:
    key, plain = secrets.token_bytes(VOLUME_KEY_SIZE), bytearray(secrets.token_bytes(2 * BLOCK))
    ours, theirs = bytearray(2 * BLOCK), bytearray(2 * BLOCK)
    try:
        apply, free = _native(library, key, encrypt=True)
        apply(1 << 40, memoryview(plain), theirs)
        free()
    except BuildError:
        return False
    _portable(key, encrypt=True)[0](1 << 40, memoryview(plain), ours)
    return ours == theirs

"""BLAKE3's key derivation for short input: what the order of an epoch needs, without a dependency.

After the reference implementation of BLAKE3 (https://github.com/BLAKE3-team/BLAKE3-specs), for context and material of
one chunk, up to 1024 bytes each. It takes a millisecond; bulk data is hashed by the daemon.
"""

from __future__ import annotations

import struct

IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
_ORDER = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)  # of a round's words in the next
_COLUMNS = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
_DIAGONALS = ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))
_START, _END, _ROOT, _CONTEXT, _MATERIAL = 1, 2, 8, 32, 64  # flags
_M = 0xFFFFFFFF
CHUNK = 1024  # bytes
BLOCK = 64  # bytes

Words = tuple[int, ...]


def derive_key(context: str, material: bytes, size: int = 32) -> bytes:
    """`size` bytes of BLAKE3's derive_key; ValueError for input of more than one chunk."""
    key = struct.unpack("<8I", _chunk(IV, context.encode(), _CONTEXT, 32))
    return _chunk(key, material, _MATERIAL, size)


def _chunk(key: Words, data: bytes, flags: int, size: int) -> bytes:
    """The output of a tree that is one chunk."""
    if len(data) > CHUNK:
        raise ValueError(f"{len(data)} bytes; one chunk of BLAKE3 has {CHUNK}")
    blocks = [data[i : i + BLOCK] for i in range(0, len(data), BLOCK)] or [b""]
    value = key
    for i, block in enumerate(blocks):
        f = flags | (_START if i == 0 else 0)
        words = struct.unpack("<16I", block.ljust(BLOCK, b"\0"))
        if i < len(blocks) - 1:
            value = _compress(value, words, 0, len(block), f)[:8]
            continue
        f |= _END | _ROOT
        out = b"".join(
            struct.pack("<16I", *_compress(value, words, n, len(block), f)) for n in range(-(-size // BLOCK))
        )
        return out[:size]
    raise AssertionError("unreachable")


def _compress(value: Words, words: Words, counter: int, length: int, flags: int) -> Words:
    v = [*value, *IV[:4], counter & _M, counter >> 32, length, flags]
    for _ in range(7):
        for i, (a, b, c, d) in enumerate(_COLUMNS + _DIAGONALS):
            _mix(v, a, b, c, d, words[2 * i], words[2 * i + 1])
        words = tuple(words[i] for i in _ORDER)
    return tuple(v[i] ^ v[i + 8] for i in range(8)) + tuple(v[i + 8] ^ value[i] for i in range(8))


def _mix(v: list[int], a: int, b: int, c: int, d: int, x: int, y: int) -> None:
    v[a] = (v[a] + v[b] + x) & _M
    v[d] = _rotr(v[d] ^ v[a], 16)
    v[c] = (v[c] + v[d]) & _M
    v[b] = _rotr(v[b] ^ v[c], 12)
    v[a] = (v[a] + v[b] + y) & _M
    v[d] = _rotr(v[d] ^ v[a], 8)
    v[c] = (v[c] + v[d]) & _M
    v[b] = _rotr(v[b] ^ v[c], 7)


def _rotr(x: int, n: int) -> int:
    return (x >> n | x << (32 - n)) & _M

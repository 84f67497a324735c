"""The header of a shard: building and parsing safetensors (see shardwriter/shardfile/FORMAT.md).

A shard is a plain safetensors file: eight bytes of length, JSON, padding by
spaces so that data begins on a 4 KiB boundary, then the tensors without holes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from ._errors import Corrupt, Invalid
from ._kinds import is_dict, is_list

ALIGN = 4096
MAX_HEADER = 100_000_000  # bytes of JSON, as in the safetensors crate

# Bits of one element, for every type of the format.
BITS: dict[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One tensor of a shard."""

    name: str
    dtype: str  # by its safetensors name
    shape: tuple[int, ...]
    offset: int  # of its first byte, from the beginning of the file
    size: int  # bytes


@dataclass(frozen=True)
class Header:
    """What the first bytes of a shard say."""

    start: int  # bytes before the first tensor's data
    size: int  # bytes of the whole file
    entries: dict[str, Entry]  # in the order of their bytes
    meta: dict[str, str]


def count(shape: Iterable[int]) -> int:
    """Number of elements."""
    n = 1
    for d in shape:
        n *= d
    return n


def nbytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor."""
    bits = count(shape) * BITS[dtype]
    if bits % 8:
        raise Invalid(f"a {dtype} tensor of shape {list(shape)} does not end on a whole byte")
    return bits // 8


def build(tensors: Sequence[tuple[str, str, tuple[int, ...]]], meta: dict[str, str]) -> tuple[bytes, Header]:
    """Lay out (name, dtype, shape) in the order given; gives the bytes before the data, and what they say."""
    obj: dict[str, Any] = {"__metadata__": meta} if meta else {}
    at = 0
    sizes: list[int] = []
    for name, dtype, shape in tensors:
        size = nbytes(dtype, shape)
        obj[name] = {"dtype": dtype, "shape": shape, "data_offsets": (at, at + size)}
        sizes.append(size)
        at += size
    body = json.dumps(obj, separators=(",", ":"), ensure_ascii=False).encode()
    start = -(-(8 + len(body)) // ALIGN) * ALIGN
    if start - 8 > MAX_HEADER:
        raise Invalid(
            f"the header of this shard would be {start} bytes; the limit is {MAX_HEADER}",
            "fewer or shorter tensor names: stack small tensors",
        )
    entries: dict[str, Entry] = {}
    at = start
    for (name, dtype, shape), size in zip(tensors, sizes, strict=True):
        entries[name] = Entry(name, dtype, shape, at, size)
        at += size
    return struct.pack("<Q", start - 8) + body.ljust(start - 8, b" "), Header(start, at, entries, meta)


def length(prefix: bytes | memoryview, size: int) -> int:
    """Bytes before the data, from at least the first eight bytes of a file of `size` bytes."""
    if len(prefix) < 8:
        raise Corrupt("shard header: the file is shorter than its own length field")
    (n,) = struct.unpack_from("<Q", prefix)
    if n > MAX_HEADER or n + 8 > size:
        raise Corrupt(f"shard header: it claims {n} bytes in a file of {size}")
    return n + 8


def parse(prefix: bytes | memoryview, size: int) -> Header:
    """Read a header from a prefix of a file of `size` bytes; anything amiss is Corrupt."""
    start = length(prefix, size)
    if len(prefix) < start:
        raise Corrupt(f"shard header: {len(prefix)} of {start} bytes")
    try:
        obj = json.loads(bytes(prefix[8:start]).decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as e:
        raise Corrupt(f"shard header: {e}") from None
    if not is_dict(obj):
        raise Corrupt("shard header: not a JSON object")
    meta: Any = obj.pop("__metadata__", None) or {}
    if not is_dict(meta) or not all(isinstance(v, str) for v in meta.values()):
        raise Corrupt("shard header: __metadata__ is not a map of strings")
    entries = sorted((_entry(name, v, start) for name, v in obj.items()), key=lambda e: (e.offset, e.size))
    at = start
    for e in entries:
        if e.offset != at:
            raise Corrupt(f"shard header: tensor {e.name!r} begins at {e.offset}, the one before it ends at {at}")
        at += e.size
    if at != size:
        raise Corrupt(f"shard header: the tensors end at {at}, the file at {size}")
    return Header(start, size, {e.name: e for e in entries}, meta)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    d = dict(pairs)
    if len(d) != len(pairs):
        raise ValueError("a name occurs twice")
    return d


def _entry(name: str, v: Any, start: int) -> Entry:
    def bad(why: str) -> Corrupt:
        return Corrupt(f"shard header: tensor {name!r}: {why}")

    if not is_dict(v):
        raise bad("not an object")
    dtype, shape, offs = v.get("dtype"), v.get("shape"), v.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise bad(f"unknown dtype {dtype!r}")
    if not _sizes(shape) or len(shape) > 64 or not _sizes(offs) or len(offs) != 2:
        raise bad("damaged shape or offsets")
    lo, hi = offs
    bits = count(shape) * BITS[dtype]
    if lo > hi or bits % 8 or bits // 8 != hi - lo:
        raise bad(f"{hi - lo} bytes for {dtype} {shape}")
    return Entry(name, dtype, tuple(shape), start + lo, hi - lo)


def _sizes(v: Any) -> TypeGuard[list[int]]:
    return is_list(v) and all(type(d) is int and 0 <= d < 1 << 63 for d in v)

"""The index of a version, read in place (datasets/FORMAT.md). Whatever its bytes are: an answer, or Corrupt."""

from __future__ import annotations

import bisect
import mmap
import os
import struct
from dataclasses import dataclass

from .._errors import Corrupt

MAX_ENTRIES, MAX_PACKS, MAX_SAMPLES, MAX_FIELDS = 1 << 27, 1 << 22, 1 << 40, 1024
EMPTY = 0xFFFFFFFF  # the pack of an empty file
_HEADER, _ENTRY, _PACK, _GROUP = 4096, 48, 80, 32
_SECTIONS = 9
FOLDER, FILE, LINK = 1, 2, 3


@dataclass(frozen=True)
class Pack:
    """A pack of the version."""

    set: str  # RUN@STEP#ATTEMPT
    size: int  # bytes
    raw: bool  # exactly the bytes of one file
    first: int  # its first sample
    samples: int


@dataclass(frozen=True)
class Field:
    """A range of bytes that is (a part of) a sample."""

    file: int  # number of the entry
    pack: int  # EMPTY for an empty file
    offset: int  # in the pack
    size: int  # bytes


class Index:
    """Over a read-only mapping of the whole file."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self._b = b = memoryview(data)
        if len(b) < _HEADER or bytes(b[:8]) != b"ckptINDX":
            raise Corrupt("index: it does not begin as one")
        version, sections, size, self.entries, self.files, self.bytes, self.samples, self.packs = struct.unpack_from(
            "<II6Q", b, 8
        )
        if version != 1:
            raise Corrupt(f"index of version {version}: it was written by a newer ckptd")
        if sections != _SECTIONS or size != len(b) or not 1 <= self.entries <= MAX_ENTRIES:
            raise Corrupt(f"index: {sections} sections, {self.entries} entries, {size} bytes of {len(b)}")
        if self.samples > MAX_SAMPLES or self.packs > MAX_PACKS or self.files > self.entries:
            raise Corrupt(f"index: {self.samples} samples, {self.packs} packs, {self.files} files")
        self.digest = bytes(b[64:96])
        self._parts: list[memoryview] = [b[:0]]
        at = _HEADER
        for i in range(1, _SECTIONS + 1):
            number, section, offset, length = struct.unpack_from("<IIQQ", b, 128 + 32 * (i - 1))
            if number != i or section != 1 or offset < at or offset % 64 or offset + length > len(b):
                raise Corrupt(f"index: section {i} is number {number}, {length} bytes at {offset}")
            self._parts.append(b[offset : offset + length])
            at = offset + length
        for i, want in ((1, self.entries * _ENTRY), (3, self.entries * 32), (5, self.packs * _PACK)):
            if len(self._parts[i]) != want:
                raise Corrupt(f"index: section {i} has {len(self._parts[i])} bytes, want {want}")
        if len(self._parts[7]) % _GROUP:
            raise Corrupt("index: the groups end in the middle of one")
        self._groups = len(self._parts[7]) // _GROUP
        if bool(self._groups) != bool(self.samples):
            raise Corrupt(f"index: {self.samples} samples in {self._groups} groups")

    @classmethod
    def of(cls, fd: int) -> Index:
        """Map the file behind a descriptor, which stays the caller's."""
        size = os.fstat(fd).st_size
        if size < _HEADER:
            raise Corrupt(f"index of {size} bytes")
        return cls(mmap.mmap(fd, size, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED))

    def pack(self, i: int) -> Pack:
        """Pack i of the version."""
        if not 0 <= i < self.packs:
            raise Corrupt(f"index: pack {i} of {self.packs}")
        step, attempt, kind, size = struct.unpack_from("<QIIQ", self._parts[5], i * _PACK)
        first, samples, at, n = struct.unpack_from("<QQII", self._parts[5], i * _PACK + 56)
        if kind not in (1, 2) or at + n > len(self._parts[6]) or first + samples > self.samples:
            raise Corrupt(f"index: pack {i} is of kind {kind}, with samples {first} to {first + samples}")
        try:
            run = bytes(self._parts[6][at : at + n]).decode("ascii")
        except UnicodeDecodeError:
            raise Corrupt(f"index: pack {i} has no run's name") from None
        return Pack(f"{run}@{step}#{attempt}", size, kind == 2, first, samples)

    def kind(self, i: int) -> int:
        """Of an entry: FOLDER, FILE or LINK."""
        if not 0 <= i < self.entries:
            raise Corrupt(f"index: entry {i} of {self.entries}")
        return self._parts[1][i * _ENTRY + 7]

    def name(self, i: int) -> bytes:
        """The name of an entry; the root's is empty."""
        if not 0 <= i < self.entries:
            raise Corrupt(f"index: entry {i} of {self.entries}")
        (word,) = struct.unpack_from("<Q", self._parts[1], i * _ENTRY)
        at, n = word & ((1 << 48) - 1), word >> 48 & 0xFF
        if at + n > len(self._parts[2]):
            raise Corrupt(f"index: the name of entry {i} lies behind the names")
        return bytes(self._parts[2][at : at + n])

    def path(self, i: int) -> bytes:
        """The path of an entry from the root, without a slash at its beginning."""
        names: list[bytes] = []
        while i:
            names.append(self.name(i))
            (parent,) = struct.unpack_from("<I", self._parts[1], i * _ENTRY + 16)
            if parent >= i:
                raise Corrupt(f"index: entry {i} is below entry {parent}")
            i = parent
        return b"/".join(reversed(names))

    def find(self, path: bytes) -> int | None:
        """The entry at a path, or None."""
        at = 0
        for name in path.split(b"/") if path else []:
            child = self.child(at, name) if self.kind(at) == FOLDER else None
            if child is None:
                return None
            at = child
        return at

    def child(self, folder: int, name: bytes) -> int | None:
        """The entry of this name in a folder, or None."""
        inside = self.children(folder)
        i = inside.start + bisect.bisect_left(inside, name, key=self.name)
        return None if i == inside.stop or self.name(i) != name else i

    def children(self, i: int) -> range:
        """The entries in a folder, sorted by name."""
        if self.kind(i) != FOLDER:
            raise Corrupt(f"index: entry {i} is no folder")
        (first,) = struct.unpack_from("<I", self._parts[1], i * _ENTRY + 20)
        (count,) = struct.unpack_from("<I", self._parts[1], i * _ENTRY + 32)
        if first + count > self.entries or (count and first <= i):
            raise Corrupt(f"index: the children of folder {i} are {first} to {first + count}")
        return range(first, first + count)

    def target(self, i: int) -> bytes:
        """Where a link leads."""
        if self.kind(i) != LINK:
            raise Corrupt(f"index: entry {i} is no link")
        (word,) = struct.unpack_from("<Q", self._parts[1], i * _ENTRY)
        (n,) = struct.unpack_from("<Q", self._parts[1], i * _ENTRY + 24)
        at = (word & ((1 << 48) - 1)) + (word >> 48 & 0xFF)
        if not 0 < n <= 4095 or at + n > len(self._parts[2]):
            raise Corrupt(f"index: the target of link {i} has {n} bytes")
        return bytes(self._parts[2][at : at + n])

    def mtime(self, i: int) -> float:
        """When an entry was changed last, in seconds since 1970."""
        self.kind(i)
        (word,) = struct.unpack_from("<Q", self._parts[1], i * _ENTRY + 8)
        return (word >> 30) - (1 << 31) + (word & ((1 << 30) - 1)) / 1e9

    def hash(self, i: int) -> bytes:
        """BLAKE3 of a file's bytes."""
        self.kind(i)
        return bytes(self._parts[3][i * 32 : i * 32 + 32])

    def file(self, i: int) -> Field:
        """The bytes of a file."""
        if self.kind(i) != FILE:
            raise Corrupt(f"index: entry {i} is no file")
        pack, size, offset = struct.unpack_from("<IQQ", self._parts[1], i * _ENTRY + 20)
        if pack == EMPTY:
            if size or offset:
                raise Corrupt(f"index: file {i} is in no pack and has {size} bytes")
        elif offset + size > self.pack_size(pack):
            raise Corrupt(f"index: file {i} ends behind its pack")
        return Field(i, pack, offset, size)

    def pack_size(self, i: int) -> int:
        """Bytes of pack i."""
        if not 0 <= i < self.packs:
            raise Corrupt(f"index: pack {i} of {self.packs}")
        return struct.unpack_from("<Q", self._parts[5], i * _PACK + 16)[0]

    def _first(self, k: int) -> int:
        return struct.unpack_from("<Q", self._parts[7], k * _GROUP)[0]

    def sample(self, i: int) -> list[Field]:
        """The fields of a sample, 1 or more."""
        if not 0 <= i < self.samples:
            raise IndexError(f"sample {i} of {self.samples}")
        k = bisect.bisect_right(range(self._groups), i, key=self._first) - 1
        if k < 0:
            raise Corrupt(f"index: no group has sample {i}")
        first, kind, version, count, zero, at, starts = struct.unpack_from("<QBBHIQQ", self._parts[7], k * _GROUP)
        if kind not in _WIDTH or version != 1 or zero or count > MAX_FIELDS or (count == 0 and kind == 3):
            raise Corrupt(f"index: group {k} is of kind {kind}, version {version}, {count} fields a sample")
        j, width = i - first, _WIDTH[kind]
        begin = 0 if kind == 3 else j * count
        if count == 0:
            a, b = struct.unpack("<II", self._fields(starts + 4 * j, 8))
            if not a < b <= a + MAX_FIELDS:
                raise Corrupt(f"index: sample {i} has the fields {a} to {b}")
            begin, count = a, b - a
        raw = self._fields(at + begin * width, count * width)
        return [self._field(kind, raw[o : o + width], j) for o in range(0, len(raw), width)]

    def _fields(self, at: int, n: int) -> memoryview:
        if at + n > len(self._parts[8]):
            raise Corrupt(f"index: fields of {n} bytes at {at} of {len(self._parts[8])}")
        return self._parts[8][at : at + n]

    def _field(self, kind: int, raw: memoryview, j: int) -> Field:
        (number,) = struct.unpack_from("<I", raw)
        f = self.file(number)
        if kind == 1:
            return f
        if kind == 2:
            lo, hi, n_lo, n_hi = struct.unpack_from("<IHIH", raw, 4)
            offset, size = lo | hi << 32, n_lo | n_hi << 32
        else:
            offset, stride, size = struct.unpack_from("<QQQ", raw, 8)
            offset += j * stride
        if offset + size > f.size:
            raise Corrupt(f"index: a field of {size} bytes at {offset} of a file of {f.size}")
        return Field(number, f.pack, f.offset + offset, size)


_WIDTH = {1: 4, 2: 16, 3: 32}  # bytes of a field by the group's kind

"""A reader of packs and indexes written from datasets/FORMAT.md alone: that page is enough, and Go follows it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

DATASETS = Path(__file__).resolve().parents[3] / "datasets"
INDEX = (DATASETS / "index" / "testdata" / "pets.index").read_bytes()
PACK = (DATASETS / "pack" / "testdata" / "small.pack").read_bytes()

TABLE = []
for byte in range(256):
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    TABLE.append(byte)


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for b in data:
        crc = crc >> 8 ^ TABLE[(crc ^ b) & 0xFF]
    return crc ^ 0xFFFFFFFF


def u(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")


def read_pack(b: bytes) -> list[dict[str, Any]]:
    assert b[:8] == b"ckptPACK"
    assert u(b, 8, 4) == 1
    assert u(b, 12, 4) == 64
    assert crc32c(b[:60]) == u(b, 60, 4)
    f = b[-64:]
    assert f[:8] == b"ckptPEND"
    assert u(f, 8, 4) == 1
    assert crc32c(f[:60]) == u(f, 60, 4)
    table, n, total = struct.unpack_from("<QQQ", f, 16)
    assert len(b) == table + 64 * n + 64
    assert crc32c(b[table:-64]) == u(f, 56, 4)
    records, at = [], 64
    for i in range(n):
        off, size, crc, zero, stamp, blake3 = struct.unpack_from("<QQIIQ32s", b, table + 64 * i)
        assert off == at
        assert zero == 0
        assert crc32c(b[off : off + size]) == crc
        at = (off + size + 63) // 64 * 64
        assert not any(b[off + size : at])
        records.append({"size": size, "stamp": stamp, "blake3": blake3})
    assert at == table
    assert sum(r["size"] for r in records) == total
    return records


class Index:
    def __init__(self, b: bytes) -> None:
        assert b[:8] == b"ckptINDX"
        assert u(b, 8, 4) == 1
        assert u(b, 12, 4) == 9
        assert crc32c(b[:4092]) == u(b, 4092, 4)
        size, self.entries, self.files, self.bytes, self.samples, self.packs = struct.unpack_from("<6Q", b, 16)
        assert size == len(b)
        self.part: list[bytes] = [b""]
        at = 4096
        for i in range(9):
            number, version, off, n, crc, zero = struct.unpack_from("<IIQQII", b, 128 + 32 * i)
            assert (number, version, zero) == (i + 1, 1, 0)
            assert off == (at + 63) // 64 * 64
            self.part.append(b[off : off + n])
            assert crc32c(self.part[-1]) == crc
            at = off + n
        assert at == size

    def entry(self, i: int) -> dict[str, Any]:
        word, time, parent, a, size, c, crc, mode, _ = struct.unpack_from("<QQIIQQIHH", self.part[1], 48 * i)
        at, n = word & (1 << 48) - 1, word >> 48 & 0xFF
        e = {"name": self.part[2][at : at + n], "parent": parent, "kind": word >> 56, "mode": mode, "crc": crc}
        e["size"] = size
        e["mtime"] = ((time >> 30) - (1 << 31), time & (1 << 30) - 1)
        if e["kind"] == 1:
            e.update(first=a, count=c & 0xFFFFFFFF, folders=c >> 32)
        elif e["kind"] == 2:
            e.update(pack=a, offset=c, hash=self.part[3][32 * i : 32 * i + 32])
        else:
            e.update(target=self.part[2][at + n : at + n + size])
        return e

    def path(self, i: int) -> bytes:
        names = []
        while i:
            e = self.entry(i)
            names.append(e["name"])
            i = e["parent"]
        return b"/".join(reversed(names))

    def sample(self, i: int) -> list[tuple[int, int, int]]:
        groups = [struct.unpack_from("<QBBHIQQ", self.part[7], at) for at in range(0, len(self.part[7]), 32)]
        first, kind, version, fields, _, at, starts = [g for g in groups if g[0] <= i][-1]
        assert version == 1
        j, data = i - first, self.part[8]
        if kind == 3:
            rules = [struct.unpack_from("<IIQQQ", data, at + 32 * k) for k in range(fields)]
            return [(file, off + j * stride, size) for file, _, off, stride, size in rules]
        lo, hi = j * fields, (j + 1) * fields
        if fields == 0:
            lo, hi = struct.unpack_from("<II", data, starts + 4 * j)
        if kind == 1:
            files = [u(data, at + 4 * k, 4) for k in range(lo, hi)]
            return [(file, 0, self.entry(file)["size"]) for file in files]
        rows = [at + 16 * k for k in range(lo, hi)]
        return [(u(data, row, 4), u(data, row + 4, 6), u(data, row + 10, 6)) for row in rows]


def test_a_pack_is_what_the_page_says():
    assert [r["size"] for r in read_pack(PACK)] == [1, 64, 200]
    assert len({r["stamp"] for r in read_pack(PACK)}) == 3


def test_an_index_is_what_the_page_says():
    x = Index(INDEX)
    assert [x.path(i) for i in range(x.entries)] == [
        b"", b"cats", b"dogs", b"empty", b"lines.jsonl", b"notes", b"rows.npy",
        b"cats/0001.cls", b"cats/0001.jpg", b"cats/0002.jpg", b"cats/link", b"dogs/none", b"dogs/\xff.jpg",
    ]  # fmt: skip
    entries = [x.entry(i) for i in range(x.entries)]
    assert (entries[0]["first"], entries[0]["count"], entries[0]["folders"]) == (1, 6, 3)
    assert entries[3]["mode"] == 0o1777
    assert entries[3]["mtime"] == (-5, 7)
    assert entries[10]["target"] == b"../dogs/\xff.jpg"
    files = [e for e in entries if e["kind"] == 2]
    assert len(files) == x.files
    assert sum(e["size"] for e in files) == x.bytes
    by_hash = [u(x.part[4], at, 4) for at in range(0, len(x.part[4]), 4)]
    assert by_hash == sorted(by_hash, key=lambda i: entries[i]["hash"])
    assert len(by_hash) == x.files
    assert entries[11]["pack"] == 0xFFFFFFFF
    assert entries[9]["pack"] == 0
    assert entries[9]["offset"] == 256


def test_the_packs_of_an_index():
    x = Index(INDEX)
    first = 0
    for i in range(x.packs):
        step, attempt, kind, _, root, start, n, at, length = struct.unpack_from("<QIIQ32sQQII", x.part[5], 80 * i)
        assert (step, attempt, kind) == (1000 + i, 1, 1 if i == 0 else 2)
        assert any(root)
        assert start == first
        assert x.part[6][at : at + length] == b"_packs/pets"
        first += n
    assert first == x.samples - 1  # one is of an empty file
    assert x.part[9] == b'{"kind":"pets"}'


def test_the_samples_of_an_index():
    x = Index(INDEX)
    samples = [[(x.path(f), off, size) for f, off, size in x.sample(i)] for i in range(x.samples)]
    assert samples[:3] == [
        [(b"cats/0001.jpg", 0, 100), (b"cats/0001.cls", 0, 2)],
        [(b"cats/0002.jpg", 0, 300)],
        [(b"dogs/\xff.jpg", 0, 64)],
    ]
    assert samples[3:13] == [[(b"lines.jsonl", at, 99)] for at in range(0, 1000, 100)]
    assert samples[13:63] == [[(b"rows.npy", 128 + 64 * i, 64)] for i in range(50)]
    assert samples[63:] == [[(b"dogs/none", 0, 0)]]

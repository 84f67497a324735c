"""The golden shards and seals of shardwriter/shardfile, read without ckptd.

What Go wrote opens with the real safetensors package, and a seal is decoded here
from FORMAT.md alone, so the formats are not merely what the Go code happens to do.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import pytest
import safetensors

GOLDEN = Path(__file__).resolve().parents[3] / "shardwriter" / "shardfile" / "testdata"
BLOCK = 1 << 20
ALIGN = 4096

BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32,
    "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I8": 8, "U8": 8, "BOOL": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip


def pattern(name: str, dtype: str, size: int) -> bytes:
    """What every golden tensor holds; see golden_test.go."""
    seed = zlib.crc32(name.encode())
    mask = 1 if dtype == "BOOL" else 0xFF
    return bytes(((seed >> (8 * (j % 4))) + j * 7) & mask for j in range(size))


def _crc_table() -> list[int]:
    table = []
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ 0x82F63B78 if n & 1 else n >> 1
        table.append(n)
    return table


_CRC = _crc_table()


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


class Seal(NamedTuple):
    name: str
    size: int
    info: dict
    crcs: tuple[int, ...]

    @property
    def root(self) -> str:
        return hashlib.sha256(struct.pack(f"<Q{len(self.crcs)}I", self.size, *self.crcs)).hexdigest()


def parse_seal(data: bytes) -> Seal:
    """Decodes a seal by the table of FORMAT.md; anything amiss is ValueError."""
    if len(data) < 36 or data[:8] != b"ckptSEAL":
        raise ValueError("no seal")
    body, (total,) = data[:-4], struct.unpack("<I", data[-4:])
    if crc32c(body) != total:
        raise ValueError("checksum mismatch")
    version, block, size, name_len, info_len = struct.unpack_from("<IIQII", body, 8)
    if version != 1 or block != BLOCK or size > 1 << 42 or name_len > 1024 or info_len > 1 << 20:
        raise ValueError("a field is out of range")
    blocks = -(-size // BLOCK)
    if len(body) != 32 + name_len + info_len + 4 * blocks:
        raise ValueError("length mismatch")
    at = 32 + name_len
    name, info = body[32:at].decode(), body[at : at + info_len]
    return Seal(name, size, json.loads(info) if info else {}, struct.unpack_from(f"<{blocks}I", body, at + info_len))


def header(data: bytes) -> tuple[int, dict]:
    (n,) = struct.unpack_from("<Q", data)
    return 8 + n, json.loads(data[8 : 8 + n])


SHARDS = sorted(p.name for p in GOLDEN.glob("*.safetensors"))


def test_there_are_golden_shards() -> None:
    assert {"ckptd-mixed.safetensors", "ckptd-empty.safetensors", "st-dtypes.safetensors"} <= set(SHARDS)


@pytest.mark.parametrize("name", SHARDS)
def test_opens_with_safetensors(name: str) -> None:
    data = (GOLDEN / name).read_bytes()
    _, head = header(data)
    head.pop("__metadata__", None)
    got = dict(safetensors.deserialize(data))
    assert set(got) == set(head)
    for tensor, info in got.items():
        bits = BITS[info["dtype"]]
        for dim in info["shape"]:
            bits *= dim
        assert bytes(info["data"]) == pattern(tensor, info["dtype"], bits // 8), tensor
        assert info["dtype"] == head[tensor]["dtype"]
        assert info["shape"] == head[tensor]["shape"]


@pytest.mark.parametrize("name", [s for s in SHARDS if s.startswith("ckptd-")])
def test_data_begins_on_a_page(name: str) -> None:
    data = (GOLDEN / name).read_bytes()
    start, head = header(data)
    assert start % ALIGN == 0
    assert head["__metadata__"]["ckptd.version"] == "1"


def test_every_dtype_is_there() -> None:
    _, head = header((GOLDEN / "ckptd-mixed.safetensors").read_bytes())
    assert {t["dtype"] for n, t in head.items() if n != "__metadata__"} == set(BITS)


def test_tensors_are_aligned_to_their_width() -> None:
    _, head = header((GOLDEN / "ckptd-mixed.safetensors").read_bytes())
    for name, t in head.items():
        if name != "__metadata__" and BITS[t["dtype"]] >= 8:
            assert t["data_offsets"][0] % (BITS[t["dtype"]] // 8) == 0, name


def test_metadata_through_safe_open() -> None:
    with safetensors.safe_open(GOLDEN / "ckptd-mixed.safetensors", framework="np") as f:
        meta = f.metadata()
        assert json.loads(meta["ckptd.state"]) == {"epoch": 3, "note": 'a "quoted" 層'}
        assert json.loads(meta["ckptd.pieces"]) == {
            "piece.rows": {"global": [8, 3], "start": [6, 0]},
            "piece.empty": {"global": [5], "start": [5]},
        }
        rows = f.get_tensor("piece.rows")
        assert rows.shape == (2, 3)
        assert rows.tobytes() == pattern("piece.rows", "F32", 24)


def test_seal_by_the_format_alone() -> None:
    shard = (GOLDEN / "ckptd-mixed.safetensors").read_bytes()
    seal = parse_seal((GOLDEN / "golden.seal").read_bytes())
    assert seal.name == "llama/7b/000000001200-000003/rank-00000.safetensors"
    assert seal.size == len(shard)
    assert seal.info["set"] == {"run": "llama/7b", "step": 1200, "attempt": 3}
    assert seal.crcs == tuple(crc32c(shard[i : i + BLOCK]) for i in range(0, len(shard), BLOCK))
    assert f"`{seal.root}`" in (GOLDEN.parent / "FORMAT.md").read_text(encoding="utf-8")


def test_crc32c_is_castagnoli() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of the CRC catalogue


def test_no_damaged_seal_is_read() -> None:
    good = (GOLDEN / "golden.seal").read_bytes()
    for n in range(len(good)):
        with pytest.raises(ValueError, match=r"seal|mismatch"):
            parse_seal(good[:n])
        with pytest.raises(ValueError, match=r"seal|mismatch"):
            parse_seal(good[:n] + bytes([good[n] ^ 1]) + good[n + 1 :])
    with pytest.raises(ValueError, match="mismatch"):
        parse_seal(good + b"\0")

"""Shards are safetensors files: both ways with the real package, and hostile headers."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from shards import decode, encode, equal

import ckptd
from ckptd import _header


def test_the_package_reads_what_we_write(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    model = {"w": rng.random((7, 5), np.float32), "b": rng.integers(0, 9, 3), "z": np.zeros((0, 2), np.float16)}
    state = {"model": model, "flag": np.array(True), "epoch": 3}
    f = tmp_path / "rank-00000.safetensors"
    encode(state).tofile(f)
    got = safetensors.numpy.load_file(f)
    assert set(got) == {"model.w", "model.b", "model.z", "flag"}
    assert equal(got["model.w"], model["w"])
    assert equal(got["model.b"], model["b"])
    assert got["model.z"].shape == (0, 2)
    assert got["flag"] == np.array(True)
    with safetensors.safe_open(f, "np") as o:
        assert json.loads(o.metadata()["ckptd.state"])["epoch"] == 3


def test_we_read_what_the_package_writes(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    state = {"b.w": rng.random((7, 5)), "a": rng.integers(0, 9, 3, np.uint8), "c": np.array(1, np.float32),
             "h": rng.random(3).astype(np.float16)}  # fmt: skip
    for meta in (None, {"format": "pt"}):
        f = tmp_path / "x.safetensors"
        safetensors.numpy.save_file(state, f, metadata=meta)
        got = decode(np.fromfile(f, np.uint8))
        assert set(got) == set(state)
        assert all(equal(got[k], state[k]) for k in state)


def test_data_begins_on_a_page() -> None:
    for n in (0, 1, 100, 1000):
        data = encode({f"tensor{i}": np.full(3, i) for i in range(n)})
        assert _header.length(memoryview(data[:8]), data.size) % 4096 == 0


def test_cut_anywhere_it_is_corrupt() -> None:
    data = encode({"a": np.arange(5), "b": [1, "x"]})
    for n in range(0, data.size, 7):
        with pytest.raises(ckptd.Corrupt):
            decode(data[:n].copy())


def test_a_flipped_byte_is_read_or_refused() -> None:
    data = encode({"a": np.arange(5), "s": np.arange(9.0)[::2], "b": [1, "x", 1 << 70, b"b", (2j,)], "c": {2: 3}})
    end = int(struct.unpack("<Q", bytes(data[:8]))[0]) + 8
    body = bytes(data[:end]).rstrip(b" ")
    for i in range(len(body)):
        for flip in (0x01, 0x10, 0x80):
            bad = data.copy()
            bad[i] ^= flip
            try:
                decode(bad)
            except (ckptd.Corrupt, ckptd.Invalid):
                continue


HOSTILE = [
    (b"", "shorter"),
    (struct.pack("<Q", 1 << 63) + b"{}", "claims"),
    (struct.pack("<Q", 100) + b"{}", "claims"),
    (struct.pack("<Q", 2) + b"[]", "not a JSON object"),
    (struct.pack("<Q", 100_000) + b"[" * 100_000, "recursion"),
]


@pytest.mark.parametrize(("raw", "why"), HOSTILE, ids=[w for _, w in HOSTILE])
def test_a_crafted_prefix_is_corrupt(raw: bytes, why: str) -> None:
    with pytest.raises(ckptd.Corrupt, match=why):
        _header.parse(raw, len(raw))


CRAFTED = {
    "hole": {"a": ("U8", [2], [0, 2]), "b": ("U8", [2], [3, 5])},
    "overlap": {"a": ("U8", [2], [0, 2]), "b": ("U8", [2], [1, 3])},
    "beyond": {"a": ("U8", [9], [0, 9])},
    "short": {"a": ("U8", [3], [0, 3])},
    "dtype": {"a": ("X9", [5], [0, 5])},
    "overflow": {"a": ("U8", [1 << 62, 1 << 62], [0, 5])},
    "negative": {"a": ("U8", [-5], [0, 5])},
    "backwards": {"a": ("U8", [0], [5, 0])},
    "float": {"a": ("U8", [5.0], [0, 5])},
    "sub-byte": {"a": ("F4", [9], [0, 5])},
}


@pytest.mark.parametrize("case", CRAFTED)
def test_a_crafted_table_is_corrupt(case: str) -> None:
    obj = {n: {"dtype": d, "shape": s, "data_offsets": o} for n, (d, s, o) in CRAFTED[case].items()}
    body = json.dumps(obj).encode()
    with pytest.raises(ckptd.Corrupt):
        _header.parse(struct.pack("<Q", len(body)) + body + b"12345", 8 + len(body) + 5)


def test_a_name_may_occur_once() -> None:
    t = '"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
    body = f"{{{t},{t}}}".encode()
    with pytest.raises(ckptd.Corrupt, match="twice"):
        _header.parse(struct.pack("<Q", len(body)) + body + b"1", 9 + len(body))


STATES = [
    '{"$tensor":"nope"}', '{"$new":1}', '{"$int":"zz"}', '{"$bytes":"*"}', '{"$dict":[1]}', '{"$tuple":3}', "{",
    '{"$json":"x"}', '{"$tensor":["a"]}', '{"$set":[[1]]}', '{"$range":[0,1,0]}', '{"$numpy.dtype":{"raw":"|O"}}',
    '{"$tensor":"a","view":{"offset":0,"strides":[8],"shape":[1000],"dtype":"F64"}}',
    '{"$tensor":"a","view":{"offset":-8,"strides":[8],"shape":[1],"dtype":"F64"}}',
    '{"$tensor":"a","view":{"offset":0,"strides":[-8],"shape":[5],"dtype":"F64"}}',
    '{"$tensor":"a","as":"torch","view":{"offset":0,"strides":[8],"shape":[99],"dtype":"F64"}}',
    '{"$tensor":"a","dtype":"|O","shape":[5]}', '{"$tensor":"a","dtype":[["x","|O"]],"shape":[5]}',
    '{"$tensor":"a","shape":[1099511627776]}',
]  # fmt: skip


@pytest.mark.parametrize("text", STATES)
def test_a_crafted_state_is_corrupt(text: str) -> None:
    head, header = _header.build([("a", "F64", (5,))], {"ckptd.state": text})
    data = np.zeros(header.size, np.uint8)
    data[: len(head)] = np.frombuffer(head, np.uint8)
    with pytest.raises(ckptd.Corrupt):
        decode(data)

"""The order of an epoch: bit by bit what Go computes (datasets/order/testdata/vectors.json)."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

import ckptd
from ckptd._blake3 import derive_key
from ckptd._order import MAX_GROUP, MAX_SAMPLES, Cursor, Mode, Order, key

VECTORS: dict[str, Any] = json.loads((ROOT / "datasets/order/testdata/vectors.json").read_text())


def test_derive_key_of_the_published_vectors() -> None:
    # https://github.com/BLAKE3-team/BLAKE3/blob/master/test_vectors/test_vectors.json: input 0, 1, … 250, 0, …
    context = "BLAKE3 2019-12-27 16:29:52 test vectors context"
    material = bytes(i % 251 for i in range(1024))
    assert derive_key(context, b"").hex() == "2cc39783c223154fea8dfb7c1b1660f2ac2dcbd1c1de8277b0b0dd39b7e50d7d"
    assert derive_key(context, material[:1]).hex() == "b3e2e340a117a499c6cf2398a19ee0d29cca2bb7404c73063382693bf66cb06c"
    assert derive_key(context, material).hex()[:32] == "7356cd7720d5b66b6d0697eb3177d9f8"
    with pytest.raises(ValueError, match="1025"):
        derive_key(context, bytes(1025))


@pytest.mark.parametrize("v", VECTORS["keys"], ids=lambda v: v["seed"])
def test_keys(v: dict[str, Any]) -> None:
    got = key(bytes.fromhex(v["digest"]), int(v["seed"]), int(v["epoch"]))
    assert [f"{w:016x}" for w in got] == v["words"]


@pytest.mark.parametrize("v", VECTORS["orders"], ids=lambda v: f"{v['n']}-{v['mode']}-{v['seed'][:4]}")
def test_orders(v: dict[str, Any]) -> None:
    """Four of these are of one million indices each."""
    mode = Mode.parse(v["mode"])
    assert str(mode) == v["mode"]
    o = Order(v["n"], bytes.fromhex(v["digest"]), int(v["seed"]), int(v["epoch"]), mode)
    assert o.at(v["positions"]).tolist() == v["samples"]
    assert o.find(v["samples"]).tolist() == v["positions"]
    h = hashlib.sha256()
    for p in range(0, v["count"], 1 << 16):
        h.update(o.at(np.arange(p, min(p + (1 << 16), v["count"]))).astype("<i8").tobytes())
    assert h.hexdigest() == v["sha256"]


def test_one_million_indices_are_among_the_vectors() -> None:
    assert [v["mode"] for v in VECTORS["orders"] if v["count"] == 1_000_000] == ["global", "window:5000:16"] * 2


def test_every_small_order_is_a_permutation() -> None:
    for n in range(24):
        modes = [Mode(), *(Mode(s, g) for s in range(1, n + 2) for g in (1, 2, 5))]
        for mode in modes:
            o = Order(n, bytes(range(32)), 5, n, mode)
            at = o.at(np.arange(n))
            assert sorted(at.tolist()) == list(range(n))
            assert o.find(at).tolist() == list(range(n))


def test_cursors() -> None:
    for text in VECTORS["cursors"]:
        assert str(Cursor.parse(text)) == text
    good = VECTORS["cursors"][0]
    more = [good.replace("at=", "at=0"), good.replace("seed=7", "seed=99999999999999999999"), good + "\n", good.upper()]
    for text in [*VECTORS["bad_cursors"], *more, good.replace("global", "window:0:1"), ";" * 5, "x" * 100_000]:
        with pytest.raises(ckptd.Invalid):
            Cursor.parse(text)


def test_bad_numbers() -> None:
    digest = bytes(32)
    for make in (
        lambda: Order(-1, digest), lambda: Order(MAX_SAMPLES + 1, digest), lambda: Order(1, b""),
        lambda: Order(1, digest, -1), lambda: Order(1, digest, 0, 1 << 64), lambda: Mode(-1), lambda: Mode(0, 3),
        lambda: Mode(1, MAX_GROUP + 1), lambda: Mode.parse("window:1"), lambda: Mode.parse("window:1:1 "),
    ):  # fmt: skip
        with pytest.raises(ckptd.Invalid):
            make()
    for bad in ([-1], [10], 10):
        with pytest.raises(IndexError):
            Order(10, digest).at(bad)

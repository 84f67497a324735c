"""ckptd.data over data sets that `ckpt dataset import` made and a daemon serves."""

from __future__ import annotations

import json
import multiprocessing
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Daemon
from imports import load, write_tar

import ckptd
import ckptd.data
import ckptd.monitor

N = 90


def content(i: int) -> bytes:
    return f"{i} ".encode() * (1 + 97 * i % 1000)


@pytest.fixture(scope="module")
def tree(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    """The daemon, with version 1 of `py-tree`."""
    folder = tmp_path_factory.mktemp("tree")
    for i in range(N):
        (folder / f"c{i % 3}").mkdir(exist_ok=True)
        (folder / f"c{i % 3}" / f"{i:03d}.bin").write_bytes(content(i))
    assert load(daemon, folder, "py-tree")["samples"] == N
    return daemon


def dataset(daemon: Daemon, **options: Any) -> ckptd.data.Dataset:
    return ckptd.data.Dataset("py-tree", client=ckptd.connect(daemon.socket), **options)


def number(sample: bytes) -> int:
    return int(sample.split()[0])


def test_samples_are_the_files(tree: Daemon) -> None:
    with dataset(tree) as d, ckptd.monitor.watch() as m:
        assert (d.ref, len(d)) == ("py-tree@1", N)
        for i in range(N):
            n = int(d.key(i).rpartition("/")[2])
            assert d.key(i) == f"c{n % 3}/{n:03d}"
            assert d[i] == content(n)
    s = m.summary()
    assert s["sources"]["local"]["bytes"] == s["bytes"] == sum(len(content(i)) for i in range(N))
    assert s["sources"]["local"]["reads"] == N
    assert s["hit_rate"] == 1


@pytest.mark.parametrize("mode", ["global", "window:7:3"])
def test_an_epoch_over_three_ranks_has_every_sample_once(tree: Daemon, mode: str) -> None:
    seen: list[int] = []
    for rank in range(3):
        with dataset(tree, seed=5, mode=mode, rank=rank, world_size=3) as d:
            seen += map(number, d)
    assert sorted(seen) == list(range(N))
    assert seen != sorted(seen)


def test_another_number_of_ranks_goes_on_in_the_epoch(tree: Daemon) -> None:
    seen: list[int] = []
    states = []
    for rank in range(3):
        with dataset(tree, seed=6, rank=rank, world_size=3) as d:
            loader = d.loader(batch_size=4)
            for _, batch in zip(range(2), loader, strict=False):
                seen += map(number, batch)
            states.append(loader.state_dict())
    assert states[0] == states[1] == states[2]
    for rank in range(5):
        with dataset(tree, rank=rank, world_size=5) as d:
            d.load_state_dict(states[0])
            assert d.at == 24
            seen += map(number, d)
    assert sorted(seen) == list(range(N))


def _child(d: ckptd.data.Dataset) -> list[bytes]:
    return d.samples(range(N))


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_processes_read_it_too(tree: Daemon, how: str) -> None:
    with dataset(tree) as d:
        here = d.samples(range(10))
        with multiprocessing.get_context(how).Pool(2) as pool:
            there = pool.map(_child, [d, d])
        assert there[0] == there[1]
        assert there[0][:10] == here
        assert sorted(map(number, there[0])) == list(range(N))
        assert d.samples(range(10)) == here


def test_the_cursor_of_an_import_lies_in_the_checkpoint(tree: Daemon, client: ckptd.Client, run: str) -> None:
    with dataset(tree, seed=2, rank=0, world_size=1) as d:
        loader = d.loader(batch_size=10)
        batches = iter(loader)
        seen = [number(s) for _ in range(3) for s in next(batches)]
        client.save(run, step=1, state={"x": 1}, data=loader).wait("local")
    with dataset(tree, seed=77, rank=0, world_size=1) as d:
        loader = d.loader(batch_size=7)
        assert client.load(f"{run}@1", data=loader) == {"x": 1}
        assert d.at == 30
        assert sorted(seen + [number(s) for b in loader for s in b]) == list(range(N))


def test_webdataset(daemon: Daemon, tmp_path: Path) -> None:
    want = {f"{i:03d}": {"jpg": content(i), "cls": b"%d" % i} for i in range(20)}
    write_tar(tmp_path / "w.tar", want)
    load(daemon, tmp_path / "w.tar", "py-web", "--format", "webdataset")
    got: dict[str, dict[str, bytes]] = {}
    for rank in range(2):
        for s in ckptd.data.webdataset("py-web", client=ckptd.connect(daemon.socket), rank=rank, world_size=2):
            key = s.pop("__key__").rpartition("/")[2]
            assert key not in got
            got[key] = s
    assert got == want


def test_lines_of_jsonl(daemon: Daemon, tmp_path: Path) -> None:
    rows = [{"i": i, "text": "é" * random.Random(i).randrange(50)} for i in range(40)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    load(daemon, tmp_path / "r.jsonl", "py-lines")
    with ckptd.data.Dataset("py-lines", decode=json.loads, client=ckptd.connect(daemon.socket)) as d:
        assert [d[i] for i in range(len(d))] == rows


@pytest.mark.parametrize("rows", [1000, 300_000], ids=["in a pack", "a pack by itself"])
def test_memmap(daemon: Daemon, tmp_path: Path, rows: int) -> None:
    want = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    np.save(tmp_path / "a.npy", want)
    name = f"py-array-{rows}"
    load(daemon, tmp_path / "a.npy", name, "--raw-from", "1")
    client = ckptd.connect(daemon.socket)
    got = ckptd.data.memmap(name, client=client)
    assert got.dtype == want.dtype
    assert np.array_equal(got, want)
    assert not got.flags.writeable
    with ckptd.data.Dataset(name, client=client) as d:
        assert len(d) == rows
        assert d[7] == want[7].tobytes()
        assert d.version.index.pack(0).raw == (rows > 1000)


def test_what_is_no_checkpoint_is_not_loaded(tree: Daemon) -> None:
    """The shards of a version are raw: load says so, and what to do, before it reads a byte."""
    with ckptd.connect(socket=tree.socket) as c:
        for load_it in (c.load, lambda ref: c.load(ref, rank="all")):
            with pytest.raises(ckptd.Invalid, match=r"not tensors(.|\n)*ckpt restore"):
                load_it("_datasets/py-tree@1")

"""ckptd.data: samples, order, cursors and monitors over a version that FORMAT.md describes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import packs
import pytest
from conftest import ROOT

import ckptd
import ckptd.data
import ckptd.monitor
from ckptd.data._index import FILE, Index

N = 101


def content(i: int, ext: str) -> bytes:
    return f"{i}.{ext} ".encode() * (1 + i % 7)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[packs.Server]:
    files = [(f"s{i:04d}.{ext}", content(i, ext)) for i in range(N) for ext in ("cls", "jpg")]
    cut = [files[:60], files[60:130], files[130:]]
    packs.write(tmp_path, cut, [[2 * i, 2 * i + 1] for i in range(N)])
    s = packs.Server(tmp_path)
    yield s
    s.close()


def dataset(server: packs.Server, **options: Any) -> ckptd.data.Dataset:
    return ckptd.data.Dataset("flowers@latest", client=ckptd.connect(server.path), **options)


def number(sample: dict[str, bytes]) -> int:
    return int(sample["jpg"].split(b".")[0])


@pytest.mark.parametrize("complete", [True, False], ids=["mapped", "ranges"])
def test_samples_have_the_bytes_that_were_stored(server: packs.Server, complete: bool) -> None:
    server.complete = complete
    with dataset(server) as d, ckptd.monitor.watch() as m:
        assert (d.ref, len(d), d.digest) == ("flowers@3", N, bytes(range(1, 33)))
        numbers = random.Random(1).sample(range(N), 40)
        for i, got in zip(numbers, d.batch(numbers), strict=True):
            assert {k: v.tobytes() for k, v in got.items()} == {e: content(i, e) for e in ("cls", "jpg")}
            assert not got["jpg"].flags.writeable
        assert d[-1] == d[N - 1]
        assert d.key(7) == "s0007"
        for bad in (N, -N - 1):
            with pytest.raises(IndexError):
                d[bad]
    s = m.summary()
    assert s["hit_rate"] == (1.0 if complete else 0.0)
    assert s["sources"]["local" if complete else "remote"]["bytes"] == s["bytes"] > 0
    assert 'ckptd_data_reads_total{source="local"}' in m.prometheus()
    assert "of the bytes from this node" in str(m)


@pytest.mark.parametrize("mode", ["global", "window:10:3"])
def test_a_change_of_world_size_repeats_and_skips_nothing(server: packs.Server, mode: str) -> None:
    r = random.Random(5)
    for _ in range(5):
        seen: list[int] = []
        state: dict[str, Any] | None = None
        while True:
            world, steps, states = r.randint(1, 5), r.randint(1, 4), []
            for rank in range(world):
                with dataset(server, seed=9, mode=mode, rank=rank, world_size=world) as d:
                    if state:
                        d.load_state_dict(state)
                    loader = d.loader(batch_size=3)
                    for _, batch in zip(range(steps), loader, strict=False):
                        seen += map(number, batch)
                    states.append(loader.state_dict())
            assert all(s == states[0] for s in states)
            state = states[0]
            if f";at={N};" in state["cursor"]:
                break
        assert sorted(seen) == list(range(N))


def test_epochs_differ_and_come_again(server: packs.Server) -> None:
    with dataset(server, seed=1, rank=0, world_size=1) as d:
        first = [number(s) for s in d]
        assert first == [number(s) for s in d]
        d.set_epoch(1)
        second = [number(s) for s in d]
        assert sorted(first) == sorted(second) == list(range(N))
        assert first != second
        assert first != sorted(first)


def test_drop_last_gives_every_rank_as_many(server: packs.Server) -> None:
    counts = []
    for rank in range(4):
        with dataset(server, rank=rank, world_size=4, drop_last=True) as d:
            counts.append(sum(1 for _ in d))
    assert counts == [N // 4] * 4


def test_webdataset(server: packs.Server) -> None:
    got = list(ckptd.data.webdataset("flowers", client=ckptd.connect(server.path), rank=0, world_size=1))
    assert sorted(s["__key__"] for s in got) == [f"s{i:04d}" for i in range(N)]
    assert all(set(s) == {"__key__", "cls", "jpg"} for s in got)


def _child(d: ckptd.data.Dataset) -> bytes:
    return d[5]["jpg"]


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_after_fork_and_spawn(server: packs.Server, how: str) -> None:
    with dataset(server) as d:
        assert d[1]["jpg"] == content(1, "jpg")
        if how == "fork":
            r, w = os.pipe()
            if os.fork() == 0:
                os.write(w, d[90]["jpg"])  # of a pack that the parent has not asked for
                os._exit(0)
            os.wait()
            assert os.read(r, 1000) == content(90, "jpg")
            os.close(r)
            os.close(w)
        else:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                assert pool.apply(_child, (d,)) == content(5, "jpg")
        assert pickle.loads(pickle.dumps(d))[5] == d[5]
        assert d[60]["jpg"] == content(60, "jpg")


def test_a_restarted_daemon_is_found_again(server: packs.Server) -> None:
    with dataset(server) as d:
        d[1]
        server.hang_up()
        assert d[90]["jpg"] == content(90, "jpg")


def test_the_daemon_hears_where_readers_are(server: packs.Server) -> None:
    with dataset(server, seed=3, mode="window", window=(10, 4), rank=1, world_size=2) as d:
        next(iter(d))
    told = next(m for m in server.asked if m["t"] == "reader")
    assert told["order"] == {"mode": "window", "seed": "3", "epoch": "0", "slice": 10, "group": 4}
    assert (told["rank"], told["world"], told["at"]) == (1, 2, 0)


def test_memmap(server: packs.Server) -> None:
    client = ckptd.connect(server.path)
    a = ckptd.data.memmap("flowers", file="s0000.cls", client=client)
    assert a.tobytes() == content(0, "cls")
    with pytest.raises(ckptd.Invalid, match="file=PATH"):
        ckptd.data.memmap("flowers", client=client)
    with pytest.raises(ckptd.NotFound):
        ckptd.data.memmap("flowers", file="nothing", client=client)
    with pytest.raises(ckptd.Invalid):
        ckptd.data.memmap("flowers", "f8", (3,), file="s0000.cls", client=client)
    server.complete = False
    with pytest.raises(ckptd.Incomplete, match="warm"):
        ckptd.data.memmap("flowers", file="s0000.cls", client=client)


def test_bad_input_is_refused(server: packs.Server) -> None:
    with pytest.raises(ckptd.NotFound):
        ckptd.data.Dataset("trees", client=ckptd.connect(server.path))
    for options in ({"seed": -1}, {"epoch": 1 << 64}, {"mode": "shuffle"}, {"window": (0, -1)}, {"mode": "window:0:1"}):
        with pytest.raises(ckptd.Invalid):
            dataset(server, **options)
    with dataset(server) as d:
        text = d.state_dict()["cursor"]
        for bad in ("", text.replace("flowers", "trees"), text.replace("at=0", "at=102"), text.replace("0102", "0202")):
            with pytest.raises(ckptd.Invalid):
                d.load_state_dict({"cursor": bad})
        with pytest.raises(ckptd.Invalid):
            d.loader(0)
        with pytest.raises(ckptd.Invalid, match="sampler"):
            d.loader(1, sampler=[1])


def test_an_index_that_go_wrote() -> None:
    x = Index((ROOT / "datasets/index/testdata/pets.index").read_bytes())
    paths = [x.path(i) for i in range(x.entries)]
    assert [x.find(p) for p in paths] == list(range(x.entries))
    assert sum(x.kind(i) == FILE for i in range(x.entries)) == x.files
    for i in range(x.samples):
        for f in x.sample(i):
            whole = x.file(f.file)
            assert whole.offset <= f.offset <= f.offset + f.size <= whole.offset + whole.size
    first = 0
    for i in range(x.packs):
        p = x.pack(i)
        assert (p.first, p.set.partition("/")[0]) == (first, "_packs")
        first += p.samples


def test_a_hostile_index_is_corrupt_and_nothing_else(server: packs.Server) -> None:
    good = (server.folder / "index").read_bytes()

    def walk(b: bytes) -> None:
        x = Index(b)
        for i in range(0, min(x.samples, 2 * N), 20):
            x.sample(i)
        for i in range(min(x.packs, 5)):
            x.pack(i)
        x.find(b"s0003.jpg")
        x.path(min(x.entries - 1, 5))

    walk(good)
    for cut in range(0, len(good), 173):
        with pytest.raises(ckptd.Corrupt):
            walk(good[:cut])
    r = random.Random(1)
    for at in [*range(500), *(r.randrange(len(good)) for _ in range(1500))]:
        bad = bytearray(good)
        bad[at] ^= 1 << r.randrange(8)
        with contextlib.suppress(ckptd.Corrupt):
            walk(bytes(bad))


def test_the_cursor_lies_in_the_checkpoint(server: packs.Server, client: ckptd.Client, run: str) -> None:
    with dataset(server, seed=2, rank=0, world_size=1) as d:
        loader = d.loader(batch_size=10)
        batches = iter(loader)
        seen = [number(s) for _ in range(3) for s in next(batches)]
        client.save(run, step=1, state={"x": 1}, data=loader).wait("local")
        next(batches)
    with dataset(server, seed=77, rank=0, world_size=1) as d:
        loader = d.loader(batch_size=7)
        assert client.load(f"{run}@1", data=loader) == {"x": 1}
        assert d.at == 30
        assert sorted(seen + [number(s) for b in loader for s in b]) == list(range(N))
    client.save(run, step=2, state={"x": 1}).wait("local")
    with pytest.raises(ckptd.NotFound, match="data"):
        client.load(f"{run}@2", data=loader)


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_workers_of_torch(server: packs.Server, how: str) -> None:
    import torch  # noqa: F401  its tests are never skipped: make installs it
    with dataset(server, seed=4, rank=0, world_size=1) as d, ckptd.monitor.watch() as m:
        loader = d.loader(batch_size=8, num_workers=2, multiprocessing_context=how)
        first = [number(s) for _, b in zip(range(3), loader, strict=False) for s in b]
        assert d.at == 24
        assert sorted(first + [number(s) for b in loader for s in b]) == list(range(N))
    assert m.summary()["sources"]["local"]["reads"] > 0

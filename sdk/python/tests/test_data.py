"""ckptd.data over samples of two fields that a daemon serves: what is read, in which order, and what is refused."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Daemon
from imports import load, write_tar

import ckptd
import ckptd.data
import ckptd.monitor
from ckptd.data._index import FILE, Index
from ckptd.data._version import Version

N = 101
GOLDEN = ROOT / "datasets/index/testdata/pets.index"


def content(i: int, ext: str) -> bytes:
    return f"{i}.{ext} ".encode() * (1 + i % 7)


def flowers(folder: Path) -> Path:
    path = folder / "flowers.tar"
    write_tar(path, {f"s{i:04d}": {ext: content(i, ext) for ext in ("cls", "jpg")} for i in range(N)})
    return path


@pytest.fixture(scope="module")
def served(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    """The daemon, with version 1 of `py-flowers`."""
    load(daemon, flowers(tmp_path_factory.mktemp("flowers")), "py-flowers", "--format", "webdataset")
    return daemon


def dataset(daemon: Daemon, **options: Any) -> ckptd.data.Dataset:
    return ckptd.data.Dataset("py-flowers@latest", client=ckptd.connect(daemon.socket), **options)


def number(sample: dict[str, bytes]) -> int:
    return int(sample["jpg"].split(b".")[0])


@pytest.fixture
def no_packs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no pack was whole on this node: the daemon is asked for ranges."""
    monkeypatch.setattr(Version, "pack", lambda self, number: None)


@pytest.mark.parametrize("complete", [True, False], ids=["mapped", "ranges"])
def test_samples_have_the_bytes_that_were_stored(
    served: Daemon, complete: bool, request: pytest.FixtureRequest
) -> None:
    if not complete:
        request.getfixturevalue("no_packs")
    with dataset(served) as d, ckptd.monitor.watch() as m:
        assert (d.ref, len(d)) == ("py-flowers@1", N)
        numbers = random.Random(1).sample(range(N), 40)
        for i, got in zip(numbers, d.batch(numbers), strict=True):
            n = int(d.key(i).removeprefix("s"))
            assert {k: v.tobytes() for k, v in got.items()} == {e: content(n, e) for e in ("cls", "jpg")}
            assert not got["jpg"].flags.writeable
        assert d[-1] == d[N - 1]
        for bad in (N, -N - 1):
            with pytest.raises(IndexError):
                d[bad]
    s = m.summary()
    assert s["sources"]["local"]["bytes"] == s["bytes"] > 0
    assert 'ckptd_data_reads_total{source="local"}' in m.prometheus()
    assert "of the bytes from this node" in str(m)


@pytest.mark.parametrize("mode", ["global", "window:10:3"])
def test_a_change_of_world_size_repeats_and_skips_nothing(served: Daemon, mode: str) -> None:
    r = random.Random(5)
    for _ in range(5):
        seen: list[int] = []
        state: dict[str, Any] | None = None
        while True:
            world, steps, states = r.randint(1, 5), r.randint(1, 4), []
            for rank in range(world):
                with dataset(served, seed=9, mode=mode, rank=rank, world_size=world) as d:
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


def test_epochs_differ_and_come_again(served: Daemon) -> None:
    with dataset(served, seed=1, rank=0, world_size=1) as d:
        first = [number(s) for s in d]
        assert first == [number(s) for s in d]
        d.set_epoch(1)
        second = [number(s) for s in d]
        assert sorted(first) == sorted(second) == list(range(N))
        assert first != second
        assert first != sorted(first)


def test_drop_last_gives_every_rank_as_many(served: Daemon) -> None:
    counts = []
    for rank in range(4):
        with dataset(served, rank=rank, world_size=4, drop_last=True) as d:
            counts.append(sum(1 for _ in d))
    assert counts == [N // 4] * 4


def test_a_restarted_daemon_is_found_again(own_daemon: Daemon, tmp_path: Path) -> None:
    load(own_daemon, flowers(tmp_path), "py-flowers", "--format", "webdataset")
    with dataset(own_daemon) as d:
        want = d.samples(range(N))
    with dataset(own_daemon) as d:
        own_daemon.kill()
        own_daemon.start()
        assert d.samples(range(N)) == want  # its first read: by a connection that is new


def test_the_daemon_hears_where_readers_are(served: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[dict[str, Any]] = []
    ask = Version.ask

    def listen(self: Version, msg: dict[str, Any], *args: Any, **options: Any) -> Any:
        answer = ask(self, msg, *args, **options)
        if msg["t"] == "reader":
            heard.append(answer.msg)
        return answer

    monkeypatch.setattr(Version, "ask", listen)
    with dataset(served, seed=3, mode="window", window=(10, 4), rank=1, world_size=2) as d:
        next(iter(d))
    assert heard[0]["order"] == {"mode": "window", "seed": "3", "epoch": "0", "slice": 10, "group": 4}
    assert (heard[0]["rank"], heard[0]["world"], heard[0].get("at", 0)) == (1, 2, 0)
    with dataset(served, rank=1, world_size=2) as d:
        numbers = iter(d.sampler())
        for _ in range(5):
            next(numbers)
        d._told = 0
        d.tell(10)
    assert heard[-1]["at"] == 10


def test_a_reader_that_the_daemon_refuses_is_warned_once(served: Daemon, recwarn: pytest.WarningsRecorder) -> None:
    with dataset(served, rank=0, world_size=1) as d:
        for _ in range(3):
            d.version.tell(d.cursor, 7, 2)  # no such rank
        assert [str(w.message).partition(":")[0] for w in recwarn] == ["py-flowers@1"]
        assert "nothing is fetched ahead" in str(recwarn[0].message)
        assert number(d[5]) >= 0


def test_memmap(served: Daemon, request: pytest.FixtureRequest) -> None:
    client = ckptd.connect(served.socket)
    with dataset(served) as d:
        file = d.version.index.path(d.version.index.sample(0)[0].file).decode()
    a = ckptd.data.memmap("py-flowers", file=file, client=client)
    assert a.tobytes() == content(int(file[1:5]), "cls")
    with pytest.raises(ckptd.Invalid, match="file=PATH"):
        ckptd.data.memmap("py-flowers", client=client)
    with pytest.raises(ckptd.NotFound):
        ckptd.data.memmap("py-flowers", file="nothing", client=client)
    with pytest.raises(ckptd.Invalid):
        ckptd.data.memmap("py-flowers", "f8", (3, 1000), file=file, client=client)
    request.getfixturevalue("no_packs")
    with pytest.raises(ckptd.Incomplete, match="warm"):
        ckptd.data.memmap("py-flowers", file=file, client=client)


def test_bad_input_is_refused(served: Daemon, client: ckptd.Client) -> None:
    with pytest.raises(ckptd.NotFound):
        ckptd.data.Dataset("py-trees", client=client)
    for options in ({"seed": -1}, {"epoch": 1 << 64}, {"mode": "shuffle"}, {"window": (0, -1)}, {"mode": "window:0:1"}):
        with pytest.raises(ckptd.Invalid):
            dataset(served, **options)
    with dataset(served) as d:
        text = d.state_dict()["cursor"]
        digest = d.digest.hex()
        for bad in (
            "", text.replace("flowers", "trees"), text.replace("at=0", "at=102"), text.replace(digest, digest[::-1])
        ):  # fmt: skip
            with pytest.raises(ckptd.Invalid):
                d.load_state_dict({"cursor": bad})
        with pytest.raises(ckptd.Invalid):
            d.loader(0)
        with pytest.raises(ckptd.Invalid, match="sampler"):
            d.loader(1, sampler=[1])


def test_a_cursor_is_of_one_version_also_where_another_has_the_same_content(daemon: Daemon, tmp_path: Path) -> None:
    for _ in range(2):
        load(daemon, flowers(tmp_path), "py-twice", "--force")
    client = ckptd.connect(daemon.socket)
    one, two = (ckptd.data.Dataset(f"py-twice@{v}", client=client) for v in (1, 2))
    assert one.digest == two.digest
    with pytest.raises(ckptd.Invalid, match="same content") as e:
        two.load_state_dict(one.state_dict())
    assert "py-twice@1" in str(e.value)
    one.close()
    two.close()


def test_a_checkpoint_without_a_cursor_says_so(served: Daemon, client: ckptd.Client, run: str) -> None:
    client.save(run, step=1, state={"x": 1}).wait("local")
    with dataset(served) as d, pytest.raises(ckptd.NotFound, match="data"):
        client.load(f"{run}@1", data=d)


# --- the index --------------------------------------------------------------------------------------------------------


def test_an_index_that_go_wrote() -> None:
    x = Index(GOLDEN.read_bytes())
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


def walk(b: bytes) -> None:
    x = Index(b)
    for i in range(0, min(x.samples, 200), 3):
        x.sample(i)
    for i in range(min(x.packs, 5)):
        x.pack(i)
    for i in range(0, min(x.entries, 50), 5):
        x.find(x.path(i))


def damaged(good: bytes) -> Iterator[bytes]:
    r = random.Random(1)
    for at in [*range(500), *(r.randrange(len(good)) for _ in range(1500))]:
        bad = bytearray(good)
        bad[at] ^= 1 << r.randrange(8)
        yield bytes(bad)


def test_a_hostile_index_is_corrupt_and_nothing_else() -> None:
    good = GOLDEN.read_bytes()
    walk(good)
    for cut in range(0, len(good), 173):
        with pytest.raises(ckptd.Corrupt):
            walk(good[:cut])
    for bad in damaged(good):
        with contextlib.suppress(ckptd.Corrupt):
            walk(bad)


def test_data_sets_and_versions_are_listed(served: Daemon) -> None:
    client = ckptd.connect(served.socket)
    newest = {d.name: d for d in ckptd.data.datasets(client=client)}["py-flowers"]
    assert (newest.ref, newest.version, newest.state) == ("py-flowers@1", 1, "committed")
    assert (newest.samples, newest.files) == (N, 2 * N)
    assert newest.level in ckptd.LEVELS[2:]
    assert len(newest.digest) == 64
    assert newest.packs == 1
    assert not newest.missing
    assert newest.bytes == sum(len(content(i, e)) for i in range(N) for e in ("cls", "jpg")) < newest.stored
    assert newest.committed is not None
    assert newest.begun is not None
    assert newest.begun <= newest.committed
    assert [v.ref for v in ckptd.data.versions("py-flowers", client=client)] == ["py-flowers@1"]
    with pytest.raises(ckptd.NotFound):
        ckptd.data.versions("py-none", client=client)

"""The loaders of others over ckptd.data: torch's workers, torchdata's StatefulDataLoader, grain. They are real."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Daemon
from imports import load

import ckptd
import ckptd.data
import ckptd.monitor

N = 101


def content(i: int) -> bytes:
    return f"{i} ".encode() * (1 + i % 7)


@pytest.fixture(scope="module")
def leaves(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    """The daemon, with version 1 of `py-leaves`."""
    folder = tmp_path_factory.mktemp("leaves")
    for i in range(N):
        (folder / f"{i:03d}.bin").write_bytes(content(i))
    assert load(daemon, folder, "py-leaves")["samples"] == N
    return daemon


def number(sample: bytes) -> int:
    return int(sample.split()[0])


def dataset(daemon: Daemon, **options: Any) -> ckptd.data.Dataset:
    return ckptd.data.Dataset("py-leaves", client=ckptd.connect(daemon.socket), decode=number, **options)


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_workers_of_torch(leaves: Daemon, how: str) -> None:
    with dataset(leaves, seed=4, rank=0, world_size=1) as d, ckptd.monitor.watch() as m:
        loader = d.loader(batch_size=8, num_workers=2, multiprocessing_context=how)
        first = [n for _, b in zip(range(3), loader, strict=False) for n in b]
        assert d.at == 24
        assert sorted(first + [n for b in loader for n in b]) == list(range(N))
    assert m.summary()["sources"]["local"]["reads"] > 0


def stateful(d: Any, workers: int) -> Any:
    from torchdata.stateful_dataloader import StatefulDataLoader

    return StatefulDataLoader(d, batch_size=4, sampler=d.sampler(), num_workers=workers, collate_fn=list)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batches", [1, 7])
def test_torchdatas_stateful_loader_goes_on_where_it_was(leaves: Daemon, workers: int, batches: int) -> None:
    with dataset(leaves, seed=8, rank=0, world_size=1) as d:
        want = list(d)
    with dataset(leaves, seed=8, rank=0, world_size=1) as d:
        loader = stateful(d, workers)
        seen = [n for _, b in zip(range(batches), loader, strict=False) for n in b]
        state = loader.state_dict()
    with dataset(leaves, seed=1, rank=0, world_size=1) as d:  # the seed is the state's
        loader = stateful(d, workers)
        loader.load_state_dict(state)
        seen += [n for b in loader for n in b]
        assert seen == want
        assert [n for b in loader for n in b] == want  # the epoch again, from its first sample
        loader.sampler.set_epoch(1)
        second = [n for b in loader for n in b]
        assert sorted(second) == sorted(want) != second != want


def test_the_state_of_a_stateful_loader_fits_any_number_of_ranks(leaves: Daemon) -> None:
    seen: list[int] = []
    states = []
    for rank in range(3):
        with dataset(leaves, seed=8, rank=rank, world_size=3) as d:
            loader = stateful(d, 2)
            seen += [n for _, b in zip(range(5), loader, strict=False) for n in b]
            states.append(loader.state_dict())
    for rank in range(5):
        with dataset(leaves, rank=rank, world_size=5) as d:
            loader = stateful(d, 2)
            loader.load_state_dict(states[rank % 3])
            seen += [n for b in loader for n in b]
    assert sorted(seen) == list(range(N))


def test_a_stateful_loader_is_no_cursor(leaves: Daemon, client: ckptd.Client, run: str) -> None:
    """Its state_dict is kept as a part of the state, and comes back as it was."""
    with dataset(leaves, seed=8, rank=0, world_size=1) as d:
        loader = stateful(d, 2)
        seen = [n for _, b in zip(range(6), loader, strict=False) for n in b]
        with pytest.raises(ckptd.Invalid, match="no cursor"):
            client.save(run, step=1, state={}, data=loader)
        client.save(run, step=2, state={"loader": loader.state_dict()}).wait("local")
    with dataset(leaves, rank=0, world_size=1) as d:
        loader = stateful(d, 2)
        loader.load_state_dict(client.load(f"{run}@2")["loader"])
        seen += [n for b in loader for n in b]
    assert sorted(seen) == list(range(N))


def test_torchs_own_loader_takes_the_sampler(leaves: Daemon) -> None:
    from torch.utils.data import DataLoader

    seen: list[int] = []
    for rank in range(2):
        with dataset(leaves, seed=8, rank=rank, world_size=2) as d:
            loader = DataLoader(d, batch_size=7, sampler=d.sampler(), num_workers=1, collate_fn=list)  # type: ignore
            assert len(loader) == -(-len(d.positions(0)) // 7)
            mine = [n for b in loader for n in b]
            assert mine == list(d)
            seen += mine
    assert sorted(seen) == list(range(N))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="grain is for Python 3.11 and newer")
def test_grain_reads_an_epoch_in_order_and_goes_on_in_it(leaves: Daemon, tmp_path: Path) -> None:
    import grain

    with dataset(leaves, seed=8, rank=0, world_size=1) as d:
        want = list(d)
        source = d.in_order()
        assert source[-1] == source[N - 1] == want[-1]
        with pytest.raises(IndexError):
            source[N]
        seen: list[int] = []
        for rank in range(2):
            part = iter(grain.MapDataset.source(source)[rank::2].to_iter_dataset())
            mine = [next(part) for _ in range(20)]
            state = part.get_state()
            again = iter(grain.MapDataset.source(source)[rank::2].to_iter_dataset())
            again.set_state(state)
            mine += list(again)
            assert mine == want[rank::2]
            seen += mine
        assert sorted(seen) == list(range(N))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="grain is for Python 3.11 and newer")
def test_workers_of_grain(leaves: Daemon) -> None:
    """A data set is a random access source as it is: pickled to grain's processes, which connect by themselves."""
    import grain
    from absl import flags

    flags.FLAGS.mark_as_parsed()  # which grain reads, and only an absl program parses
    with dataset(leaves, rank=0, world_size=1) as d:
        sampler = grain.samplers.IndexSampler(N, shard_options=grain.sharding.NoSharding(), num_epochs=1)
        loader = grain.DataLoader(data_source=d, sampler=sampler, worker_count=2)
        assert sorted(loader) == list(range(N))

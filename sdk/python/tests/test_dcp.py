"""torch.distributed.checkpoint over ckptd: real process groups, FSDP2 and tensor parallelism on the CPU."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import Daemon
from torch.distributed.checkpoint.api import CheckpointException

import ckptd
from ckptd.torch import Reader, Writer

HERE = Path(__file__).resolve().parent


def port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Daemon]]:
    """Two daemons of one cluster; the first has the catalog."""
    nats = f"127.0.0.1:{port()}"
    common = ["--arena", "64MiB", "--remote", "none"]
    a = Daemon(
        tmp_path_factory.mktemp("a"), "--nats-listen", nats, "--listen", f"127.0.0.1:{port()}", *common
    )  # fmt: skip
    b = Daemon(
        tmp_path_factory.mktemp("b"), "--name", "n2", "--nats", f"nats://{nats}", "--listen", f"127.0.0.1:{port()}",
        *common,
    )  # fmt: skip
    yield a, b
    b.close()
    a.close()


class Ranks:
    """The processes of one launch; half of them talk to each daemon."""

    def __init__(self, world: int, two: tuple[Daemon, Daemon], tmp: Path, *args: Any) -> None:
        name = uuid.uuid4().hex[:8]
        self.out = [(tmp / f"{name}.{r}").open("w+") for r in range(world)]
        self.ps = [
            subprocess.Popen(
                [sys.executable, str(HERE / "dcp_job.py"), *map(str, args)], stdout=self.out[r], stderr=self.out[r],
                env={
                    **os.environ, "RANK": str(r), "WORLD_SIZE": str(world), "CKPTD_LAUNCH": name,
                    "CKPTD_SOCKET": str(two[2 * r // world].socket), "RENDEZVOUS": str(tmp / f"{name}.rendezvous"),
                    "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",
                },
            )
            for r in range(world)
        ]  # fmt: skip

    def text(self) -> str:
        def one(f: Any) -> str:
            f.seek(0)
            return f.read()[-4000:]

        return "\n".join(f"--- rank {r}\n{one(f)}" for r, f in enumerate(self.out))

    def finish(self) -> str:
        end = time.monotonic() + 120
        try:
            for p in self.ps:
                p.wait(max(1.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            pytest.fail(self.text())
        finally:
            self.kill()
        assert all(p.returncode == 0 for p in self.ps), self.text()
        return self.text()

    def kill(self) -> None:
        for p in self.ps:
            if p.poll() is None:
                p.kill()
            p.wait()


def test_a_job_killed_in_its_async_save_and_reloaded_on_two_and_three(
    two: tuple[Daemon, Daemon], tmp_path: Path
) -> None:
    run, at = f"dcp/{uuid.uuid4().hex[:8]}", tmp_path / "reference"
    client = ckptd.Client(two[0].socket)
    dying = Ranks(4, two, tmp_path, "save", run, at, "dying")
    dying.ps[3].wait(300)
    assert dying.ps[3].returncode == -signal.SIGKILL, dying.text()
    time.sleep(2)  # the others are given the time to make a mistake
    dying.kill()
    assert client.list(run) == []

    saving = Ranks(4, two, tmp_path, "save", run, at, "thread")
    end = time.monotonic() + 200
    while not any(s.step == 1 for s in client.list(run)) and time.monotonic() < end and saving.ps[3].poll() is None:
        time.sleep(0.05)
    saving.finish()
    assert sorted(s.step for s in client.list(run)) == [1, 2, 3]
    assert not any(s.attempt == 1 for s in client.list(run)), "nothing of the killed launch"
    two[1].kill()
    two[1].start()  # half of the shards are its own
    for world, tp in ((2, 1), (2, 2), (3, 1)):
        how = "into" if world == 3 else "dcp"
        assert "equal" in Ranks(world, two, tmp_path, "load", run, at, tp, how).finish()


@pytest.mark.parametrize("how", ["sync", "process", "alone"])
def test_every_way_to_save_loads_into_another_layout(how: str, two: tuple[Daemon, Daemon], tmp_path: Path) -> None:
    run, at = f"dcp/{uuid.uuid4().hex[:8]}", tmp_path / "reference"
    Ranks(4, two, tmp_path, "save", run, at, how).finish()
    found = ckptd.Client(two[0].socket).list(run)
    assert sorted(s.step for s in found) == [1, 2, 3]
    assert "equal" in Ranks(3, two, tmp_path, "load", run, at, 1, "dcp").finish()


def test_refusals_say_what_to_do(daemon: Daemon) -> None:
    client = ckptd.Client(daemon.socket)
    with pytest.raises(ckptd.NotFound):
        Reader("nobody/saved@latest", client=client)
    with pytest.raises(ckptd.Invalid, match="RUN@STEP"):
        Writer(client=client).reset("no-step")
    run = f"dcp/{uuid.uuid4().hex[:8]}"
    with pytest.raises(CheckpointException, match="allow_pickle"):
        dcp.save({"x": Odd()}, storage_writer=Writer(run, step=1, client=client))
    dcp.save({"x": Odd(), "w": torch.ones(3)}, storage_writer=Writer(run, step=1, client=client, allow_pickle=True))
    with pytest.raises(CheckpointException, match="allow_pickle"):
        dcp.load({"x": None}, storage_reader=Reader(f"{run}@1", client=client))
    into: dict[str, Any] = {"x": None, "w": torch.zeros(3, dtype=torch.float64)}
    with pytest.raises(CheckpointException, match="cast=True"):
        dcp.load(into, storage_reader=Reader(f"{run}@1", client=client, allow_pickle=True))
    dcp.load(into, storage_reader=Reader(f"{run}@1", client=client, allow_pickle=True, cast=True))
    assert (into["w"] == 1).all()
    assert isinstance(into["x"], Odd)


class Odd:
    """Nothing that a checkpoint can hold without pickle."""


def test_a_reader_reads_what_save_saved_and_the_other_way(daemon: Daemon) -> None:
    client = ckptd.Client(daemon.socket)
    run = f"dcp/{uuid.uuid4().hex[:8]}"
    w = torch.arange(12.0).view(3, 4)
    state = {"a": {"w": w, "tied": w.t()}, "n": 3, "pair": (torch.ones(2), "x"), "list": [w[0], w[1]]}
    for rank in range(2):
        piece = ckptd.Piece(torch.full((2, 5), float(rank)), (4, 5), (2 * rank, 0))
        more = state if rank == 0 else {}
        ckptd.save(run, step=1, state={**more, "p": piece}, rank=rank, world_size=2, launch="x", client=client)
    client.wait(f"{run}@1", timeout=60)
    into: dict[str, Any] = {
        "a": {"w": torch.zeros(3, 4), "tied": torch.zeros(4, 3)}, "n": 0, "pair": None, "p": torch.zeros(4, 5),
        "list": [torch.zeros(4), torch.zeros(4)],
    }  # fmt: skip
    dcp.load(into, storage_reader=Reader(f"{run}@1", client=client))
    assert torch.equal(into["a"]["w"], w)
    assert torch.equal(into["a"]["tied"], w.t())
    assert torch.equal(into["list"][1], w[1])
    assert into["n"] == 3
    assert into["pair"][1] == "x"
    assert into["p"].tolist() == [[0.0] * 5] * 2 + [[1.0] * 5] * 2


def test_staging_copies_only_what_this_rank_writes_and_never_tears(daemon: Daemon) -> None:
    client = ckptd.Client(daemon.socket)
    run = f"dcp/{uuid.uuid4().hex[:8]}"
    state = {"w": torch.zeros(3 << 20), "n": 0}
    writer = Writer(run, client=client)
    for step in range(1, 6):
        state["w"].fill_(step)
        state["n"] = step
        future = dcp.async_save(state, checkpoint_id=f"{run}@{step}", storage_writer=writer)
        state["w"].fill_(-1)
        future.result()
        got = client.load(f"{run}@{step}")
        assert got["n"] == step
        assert (got["w"] == step).all()
    writer.step = 9
    writer.stage(state)
    writer.close()  # given up: nothing of it is left
    assert [s.step for s in client.list(run)] == [5, 4, 3, 2, 1]

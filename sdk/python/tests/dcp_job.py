"""One rank of a small training job under torch.distributed (gloo): `python dcp_job.py WHAT RUN DIR ARG…`.

The model is tensor-parallel within pairs and sharded by FSDP2 across them, with sizes that no number of ranks divides,
a plain replicated tensor, and objects. REFERENCE is the job's state assembled whole, as rank 0 wrote it.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import ckptd
from ckptd.torch import Reader, Writer

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(37, 46)
        self.down = torch.nn.Linear(46, 37, bias=False)
        self.norm = torch.nn.LayerNorm(37)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.down(torch.relu(self.up(x))))


class Job:
    """The model, its optimizer and what is plain, laid out over `tp` ranks of tensor parallelism."""

    def __init__(self, tp: int, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.net = Net()
        mesh = init_device_mesh("cpu", (WORLD // tp, tp), mesh_dim_names=("dp", "tp"))
        if tp > 1:
            parallelize_module(self.net, mesh["tp"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
        fully_shard(self.net, mesh=mesh["dp"])
        self.opt = torch.optim.AdamW(self.net.parameters(), lr=0.1)
        self.plain = torch.zeros(1001, dtype=torch.bfloat16)
        self.steps = 0

    def train(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.opt.zero_grad()
            torch.manual_seed(self.steps)
            self.net(torch.randn(8, 37)).square().sum().backward()
            self.opt.step()
            self.plain += 1
            self.steps += 1

    def state(self) -> dict[str, Any]:
        return {
            "model": self.net.state_dict(), "optim": self.opt.state_dict(),
            "plain": self.plain, "steps": self.steps, "names": ("a", {"b": 2}),
        }  # fmt: skip

    def whole(self) -> dict[str, torch.Tensor]:
        """Every tensor by name, assembled from all ranks."""
        out = {f"model.{k}": full(v) for k, v in self.net.state_dict().items()}
        for i, s in self.opt.state_dict()["state"].items():
            out |= {f"optim.{i}.{k}": full(v) for k, v in s.items()}
        return {**out, "plain": self.plain.clone(), "steps": torch.tensor(self.steps)}


def full(x: torch.Tensor) -> torch.Tensor:
    """The whole of it, put together from what the ranks hold. x.full_tensor() gives another order of rows where
    FSDP2 over tensor parallelism does not divide them evenly (torch 2.9); see check_layout."""
    if not isinstance(x, DTensor):
        return x.detach().clone()
    local = x.detach().to_local()
    shape, start = compute_local_shape_and_global_offset(x.shape, x.device_mesh, x.placements)
    parts: list[Any] = [None] * WORLD
    dist.all_gather_object(parts, (start, shape, local.clone()))
    out = torch.empty(x.shape, dtype=x.dtype)
    for start, shape, part in parts:
        out[tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))] = part
    return out


def check_layout(job: Job) -> None:
    """Before any step the parts make up what the plain model has, whatever its sharding."""
    torch.manual_seed(0)
    for name, want in Net().state_dict().items():
        assert torch.equal(full(job.net.state_dict()[name]), want), name


class Dying(Writer):
    """Its last rank is killed where the others go on: after staging, before its write is done."""

    def write_data(self, *args: Any) -> Any:
        if RANK == WORLD - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().write_data(*args)


def save(run: str, at: Path, how: str) -> None:
    """Three saves, by HOW: sync, thread, process, alone (use_collectives=False); then the reference of the last."""
    job = Job(tp=2)
    check_layout(job)
    apart = dist.new_group(backend="gloo")  # DCP's own, since its thread talks while training does
    writer = (Dying if how == "dying" else Writer)(run, process_group=apart)
    for step in (1, 2, 3):
        job.train()
        more: dict[str, Any] = {"process_group": apart, "use_collectives": how != "alone"}
        if how == "process":
            more["async_checkpointer_type"] = AsyncCheckpointerType.PROCESS
        if how == "sync":
            dcp.save(job.state(), checkpoint_id=f"{run}@{step}", storage_writer=writer, process_group=apart)
            continue
        future = dcp.async_save(job.state(), checkpoint_id=f"{run}@{step}", storage_writer=writer, **more)
        whole = job.whole() if step == 3 else {}
        job.train(2)  # while the save goes on; its step is undone by nothing, and the saved state must not show it
        future.result()
        if step < 3:
            continue
        if RANK == 0:
            torch.save(whole, at)
    if how == "sync":
        whole = job.whole()
        if RANK == 0:
            torch.save(whole, at)


def load(run: str, at: Path, tp: str, how: str) -> None:
    """Into another layout, by HOW: dcp, or into (ckptd.load_into)."""
    job = Job(int(tp), seed=99)
    job.train()  # the optimizer's state exists from here on
    state = job.state()
    if how == "dcp":
        dcp.load(state, storage_reader=Reader(f"{run}@3"))
        job.steps = state["steps"]
        assert state["names"] == ("a", {"b": 2}), state["names"]
    else:
        into = {"model": state["model"], "optim": {"state": state["optim"]["state"]}, "plain": job.plain}
        ckptd.load_into(f"{run}@3", into, strict=False)
        job.steps = ckptd.load(f"{run}@3", only="steps")["steps"]
    got, want = job.whole(), torch.load(at)
    assert got.keys() == want.keys()
    for k in want:
        assert got[k].dtype == want[k].dtype, k
        assert torch.equal(got[k], want[k]), f"{k} differs by {(got[k] - want[k]).abs().max()}"
    if RANK == 0:
        print("equal", len(want))


def main() -> None:
    what, run, at, *args = sys.argv[1:]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{os.environ['RENDEZVOUS']}", rank=RANK, world_size=WORLD)
    {"save": save, "load": load}[what](run, Path(at), *args)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

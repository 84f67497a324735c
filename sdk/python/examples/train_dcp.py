"""torch.distributed.checkpoint over ckptd: a model sharded by FSDP2, saved by async_save.

    ckptd serve &                 # or: with ckptd.local(): …
    torchrun --nproc-per-node 2 train_dcp.py --run demo/dcp --steps 60

Kill it at any moment and start it again, with another number of ranks if you like: it goes on from the newest
checkpoint. With the same number it ends with the same weights as a run that nobody killed.
"""

# pyright: basic, reportPrivateImportUsage=false
from __future__ import annotations

import argparse
import contextlib
import os
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import ckptd
from ckptd.torch import Reader, Writer


def train(run: str, steps: int, every: int = 5) -> dict[str, Any]:
    """Train, resuming where the run is; gives the final weights. Alone where no launcher says otherwise."""
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "0")
    many: dict[str, Any] = {} if "RANK" in os.environ else {"rank": 0, "world_size": 1, "store": dist.HashStore()}
    dist.init_process_group("gloo", **many)
    apart: Any = dist.new_group(backend="gloo")  # of the saving thread, which talks while training does
    torch.manual_seed(2)
    net = torch.nn.Sequential(torch.nn.Linear(30, 61), torch.nn.ReLU(), torch.nn.Linear(61, 1))
    fully_shard(net, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    opt = torch.optim.AdamW(net.parameters(), lr=1e-2)
    begun, writer = 0, Writer(run, process_group=apart)
    saving: Any = None
    last = newest(run, apart)
    if last:
        model, optim = get_state_dict(net, opt)
        state: dict[str, Any] = {"model": model, "optim": optim, "step": 0}
        dcp.load(state, storage_reader=Reader(last))
        set_state_dict(net, opt, model_state_dict=state["model"], optim_state_dict=state["optim"])
        begun = state["step"]
    for step in range(begun + 1, steps + 1):
        g = torch.Generator().manual_seed(step)
        x = torch.randn(16, 30, generator=g)
        opt.zero_grad()
        torch.nn.functional.mse_loss(net(x), x.sum(1, keepdim=True)).backward()
        opt.step()
        if step % every == 0:
            if saving is not None:
                saving.result()
            model, optim = get_state_dict(net, opt)
            state = {"model": model, "optim": optim, "step": step}
            saving = dcp.async_save(
                state, checkpoint_id=f"{run}@{step}", storage_writer=writer, process_group=apart
            )  # fmt: skip
    if saving is not None:
        saving.result()
    weights = {k: v.full_tensor() for k, v in net.state_dict().items()}
    dist.destroy_process_group()
    return weights


def newest(run: str, group: dist.ProcessGroup) -> str:
    """The newest checkpoint, as rank 0 sees it, for all ranks; "" where there is none."""
    found = [""]
    if dist.get_rank() == 0:
        with contextlib.suppress(ckptd.NotFound, ckptd.Incomplete):
            found = [ckptd.Client().set(f"{run}@latest:local").id]
    dist.broadcast_object_list(found, group=group)
    return found[0]


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--run", default="demo/dcp")
    p.add_argument("--steps", type=int, default=60)
    a = p.parse_args()
    weights = train(a.run, a.steps)
    print(f"{len(weights)} tensors, sum {sum(float(w.double().sum()) for w in weights.values()):.6f}")

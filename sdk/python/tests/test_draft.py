"""Checkpoints that torch writes by itself, without this package, into a mount."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import Daemon

import ckptd


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """The folder of a run that does not exist yet, in a mount of a daemon."""
    mount = tmp_path / "mnt"
    mount.mkdir()
    d = Daemon(tmp_path, "--arena", "64MiB", "--remote", "none", "--mount", str(mount))
    end = time.monotonic() + 60
    while not (mount / "checkpoints").is_dir():  # the daemon answers before it has mounted
        if time.monotonic() > end:
            pytest.fail(f"nothing was mounted:\n{d.log.read_text()}", pytrace=False)
        time.sleep(0.02)
    yield mount / "checkpoints" / "torch" / "run"
    d.close()


def state(seed: int) -> dict[str, object]:
    g = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(300, 700, generator=g), "b": torch.arange(17, dtype=torch.bfloat16), "step": seed}


def same(got: dict[str, object], want: dict[str, object]) -> bool:
    return got.keys() == want.keys() and all(
        torch.equal(got[k], v) if isinstance(v, torch.Tensor) else got[k] == v for k, v in want.items()
    )


def test_torch_save_into_a_mount(run: Path, tmp_path: Path) -> None:
    for step in (1, 2):
        draft = run / ".write" / str(step)
        draft.mkdir(parents=True)
        for rank in range(2):
            torch.save(state(10 * step + rank), draft / f"rank{rank}.pt")
        with pytest.raises(FileNotFoundError):
            torch.load(run / str(step) / "rank0.pt")
        os.rename(draft, run / str(step))
        for rank in range(2):
            assert same(torch.load(run / "latest" / f"rank{rank}.pt"), state(10 * step + rank))
            assert same(torch.load(run / "latest" / f"rank{rank}.pt", mmap=True), state(10 * step + rank))
    client = ckptd.connect(tmp_path / "s")
    assert [s.step for s in client.list("torch/run")] == [2, 1]
    with pytest.raises((OSError, RuntimeError)):  # which of them is torch's matter
        torch.save(state(0), run / "2" / "rank0.pt")


def test_dcp_into_a_mount(run: Path) -> None:
    for step in (1, 2):
        draft = run / ".write" / str(step)
        draft.mkdir(parents=True)
        dcp.save(state(step), checkpoint_id=draft, no_dist=True)
        if step == 1:
            os.rename(draft, run / str(step))
        else:
            subprocess.run(["mv", draft, run / str(step)], check=True)
        got = {"w": torch.zeros(300, 700), "b": torch.zeros(17, dtype=torch.bfloat16), "step": 0}
        dcp.load(got, checkpoint_id=run / str(step), no_dist=True)
        assert same(got, state(step))
        assert sorted(os.listdir(run / str(step))) == [".manifest.json", ".metadata", "__0_0.distcp"]

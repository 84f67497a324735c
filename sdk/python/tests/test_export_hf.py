"""`ckpt export --hf`: what a job saved in pieces, as Hugging Face's own loaders read it."""

from __future__ import annotations

import json
import subprocess
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Daemon, binary
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

import ckptd


def export(daemon: Daemon, *args: str) -> subprocess.CompletedProcess[str]:
    program = binary().with_name("ckpt")
    return subprocess.run(
        [program, "export", "--socket", daemon.socket, *args], text=True, capture_output=True, timeout=120
    )  # fmt: skip


def pieces(t: torch.Tensor, rank: int, ranks: int) -> Any:
    """The rows of rank `rank`; what has too few rows is held by rank 0 alone."""
    if t.ndim == 0 or t.shape[0] < ranks:
        return t if rank == 0 else None
    part = t.chunk(ranks)[rank]
    return ckptd.Piece(part, tuple(t.shape), (sum(c.shape[0] for c in t.chunk(ranks)[:rank]),) + (0,) * (t.ndim - 1))


def test_a_model_saved_in_pieces_is_loaded_by_from_pretrained(daemon: Daemon, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = BertModel(BertConfig(vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=2))
    client, run = ckptd.Client(daemon.socket), f"hf/{uuid.uuid4().hex[:8]}"
    for rank in range(3):
        held = {k: pieces(v, rank, 3) for k, v in model.state_dict().items()}
        state = {"model": {k: v for k, v in held.items() if v is not None}, "optim": {f"m{rank}": torch.ones(5)}}
        ckptd.save(run, step=4, state=state, rank=rank, world_size=3, launch="x", client=client)
    client.wait(f"{run}@4", timeout=60)
    to = tmp_path / "model"
    got = export(daemon, f"{run}@4", str(to), "--hf", "--strip", "model.", "--max-file", "64KiB", "--json")
    assert got.returncode == 0, got.stderr
    files = sorted(p.name for p in to.iterdir())
    index = json.loads((to / "model.safetensors.index.json").read_text())
    assert len(files) > 2
    assert set(index["weight_map"]) == set(model.state_dict())
    assert sorted({*index["weight_map"].values(), "model.safetensors.index.json"}) == files
    assert sorted(json.loads(got.stdout)["files"]) == files
    for name in set(index["weight_map"].values()):
        for k, t in load_file(to / name).items():
            assert torch.equal(t, model.state_dict()[k]), k
    model.config.save_pretrained(to)
    again = BertModel.from_pretrained(to)
    assert all(torch.equal(again.state_dict()[k], v) for k, v in model.state_dict().items())

    one = tmp_path / "one"
    assert export(daemon, f"{run}@4", str(one), "--hf", "--only", "model.embeddings.*").returncode == 0
    assert [p.name for p in one.iterdir()] == ["model.safetensors"]
    assert all(k.startswith("model.embeddings.") for k in load_file(one / "model.safetensors"))


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["--hf", "--strip", "nothing."], 3, "no tensor"),
        (["--hf", "--max-file", "0"], 2, "--max-file"),
        (["--hf", "--only", "["], 2, "pattern"),
        (["--strip", "w"], 2, "--hf"),
    ],
)
def test_refusals(args: list[str], code: int, says: str, daemon: Daemon, tmp_path: Path) -> None:
    client, run = ckptd.Client(daemon.socket), f"hf/{uuid.uuid4().hex[:8]}"
    ckptd.save(run, step=1, state={"w": torch.ones(3)}, client=client).wait("local", 60)
    got = export(daemon, f"{run}@1", str(tmp_path / "to"), *args)
    assert got.returncode == code, got.stderr
    assert says in got.stderr
    assert not (tmp_path / "to").exists()

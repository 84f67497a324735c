"""torch tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from shards import decode, encode, names

import ckptd

TYPES = [
    n for n in (
        "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32",
        "uint64", "bool", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu",
        "float4_e2m1fn_x2",
    ) if hasattr(torch, n)
]  # fmt: skip


def bits(t: Any) -> bytes:
    return t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b""


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("shape", [(), (0,), (4,), (2, 3, 4)], ids=str)
def test_every_type_and_shape_comes_back_bit_for_bit(name: str, shape: tuple[int, ...]) -> None:
    dtype = getattr(torch, name)
    n = int(np.prod(shape)) * dtype.itemsize
    raw = torch.from_numpy(np.random.default_rng(2).integers(0, 2, n, dtype=np.uint8))
    t = raw.view(dtype).view(shape) if n else torch.empty(shape, dtype=dtype)
    got = decode(encode({"t": t}))["t"]
    assert isinstance(got, torch.Tensor)
    assert (got.dtype, got.shape) == (t.dtype, t.shape)
    assert bits(got) == bits(t)


def test_a_module_and_its_optimizer_come_back() -> None:
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2)).to(torch.bfloat16)
    opt = torch.optim.AdamW(net.parameters(), lr=1e-3)
    net(torch.ones(3, 4, dtype=torch.bfloat16)).sum().backward()
    opt.step()
    got = decode(encode({"model": net.state_dict(), "optim": opt.state_dict(), "rng": torch.get_rng_state()}))
    twin = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2)).to(torch.bfloat16)
    twin.load_state_dict(got["model"])
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), twin.parameters(), strict=True))
    again = torch.optim.AdamW(twin.parameters(), lr=9.0)
    again.load_state_dict(got["optim"])
    assert again.param_groups[0]["lr"] == 1e-3
    assert all(torch.equal(a, b) for p, q in zip(net.parameters(), twin.parameters(), strict=True)
               for a, b in zip(opt.state[p].values(), again.state[q].values(), strict=True))  # fmt: skip
    torch.set_rng_state(got["rng"])


def test_tied_weights_are_written_once_and_stay_tied() -> None:
    w = torch.nn.Parameter(torch.arange(12.0).view(3, 4))
    state = {"embed": w, "head": w.detach(), "t": w.detach().t(), "row": w.detach()[1]}
    assert names(state) == ["embed"]
    got = decode(encode(state))
    assert isinstance(got["embed"], torch.nn.Parameter)
    assert got["embed"].requires_grad
    assert not got["head"].requires_grad
    with torch.no_grad():
        got["head"][1, 2] = -1
    assert got["embed"][1, 2] == got["t"][2, 1] == got["row"][2] == -1


def test_overlapping_slices_share_again() -> None:
    w = torch.arange(100, dtype=torch.bfloat16)
    state = {"a": w[:60], "b": w[40:]}
    assert names(state) == ["a~storage"]
    got = decode(encode(state))
    got["a"][50] = -1
    assert got["b"][10] == -1


def test_numpy_and_torch_share_across() -> None:
    a = np.arange(10.0)
    state = {"n": a, "t": torch.from_numpy(a)}
    assert names(state) == ["n"]
    got = decode(encode(state))
    got["n"][3] = -1
    assert got["t"][3] == -1


def test_layouts_and_lazy_bits() -> None:
    c = torch.view_as_complex(torch.arange(8.0).view(4, 2))
    t = torch.arange(24.0).view(2, 3, 4)
    for x in (c.conj(), torch._neg_view(t), t.permute(2, 0, 1), t[:, ::2], t.expand(5, 2, 3, 4)):
        assert torch.equal(decode(encode({"x": x}))["x"], x)


def test_types_and_devices_are_values() -> None:
    state = {"dtype": torch.bfloat16, "device": torch.device("cuda", 1), "size": torch.Size([2, 3])}
    got = decode(encode(state))
    assert (got["dtype"], got["device"], got["size"]) == (torch.bfloat16, torch.device("cuda:1"), (2, 3))


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: torch.eye(3).to_sparse(), "layout"),
        (lambda: torch.empty(3, device="meta"), "meta"),
    ],
)
def test_what_has_no_plain_bytes_is_refused(make: Any, what: str) -> None:
    with pytest.raises(ckptd.Invalid, match=f"x: .*{what}"):
        encode({"x": make()})


def test_device_moves_each_storage_once() -> None:
    w = torch.arange(4.0)
    got = decode(encode({"a": w, "b": w.view(2, 2)}), device="meta")
    assert got["a"].device.type == "meta"
    assert got["b"].shape == (2, 2)


def test_without_torch_they_are_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptd import _dtypes

    data = encode({"a": torch.arange(3.0), "p": torch.nn.Parameter(torch.ones(2))})
    monkeypatch.setattr(_dtypes, "optional", lambda module: None)
    got = decode(data)
    assert got["a"].tolist() == [0, 1, 2]
    assert isinstance(got["p"], np.ndarray)


def test_a_module_is_filled_in_place_through_the_daemon(client: ckptd.Client, run: str) -> None:
    torch.manual_seed(2)
    net, twin = (torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64)) for _ in range(2))
    net(torch.randn(8, 64))
    client.save(run, step=1, state={"model": net.state_dict()}).wait(timeout=60)
    addresses = [p.data_ptr() for p in twin.parameters()]
    client.load_into(f"{run}@1", {"model": twin.state_dict()})
    assert [p.data_ptr() for p in twin.parameters()] == addresses
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), twin.state_dict().values(), strict=True))
    with pytest.raises(ckptd.Invalid, match="is float64 here and float32"):
        client.load_into(f"{run}@1", {"model": twin.double().state_dict()})
    got = client.load(f"{run}@1", only="model.0.*", device="cpu")
    assert set(got["model"]) == {"0.weight", "0.bias"}


def test_pieces_of_torch_tensors_make_up_the_whole(client: ckptd.Client, run: str) -> None:
    whole = torch.arange(64, dtype=torch.bfloat16).view(8, 8)
    for r in range(2):
        part = ckptd.Piece(whole[:, r * 4 : (r + 1) * 4], (8, 8), (0, r * 4))
        h = client.save(run, step=1, state={"w": part}, rank=r, world_size=2, launch="l")
    h.wait(timeout=60)
    assert torch.equal(client.load(f"{run}@1")["w"], whole)
    mine = ckptd.Piece(torch.zeros(3, 8, dtype=torch.bfloat16), (8, 8), (5, 0))
    client.load_into(f"{run}@1", {"w": mine})
    assert torch.equal(mine.array, whole[5:])

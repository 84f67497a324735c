"""Saving and loading through a real daemon."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from conftest import Daemon
from shards import equal

import ckptd
from ckptd import _shard

MiB = 1 << 20


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, n, dtype=np.uint8)


def sample(seed: int = 0) -> dict[str, Any]:
    w = noise(3 * MiB, seed).view(np.float32)
    return {
        "model": {"embed": w, "head": w, "row": w.reshape(1024, -1)[3], "bias": np.zeros(7, np.float16)},
        "optim": [{"m": noise(5000, 1), "step": np.int64(7)}, ("adam", 1e-3, None)],
        "epoch": 3, "big": 1 << 100, "nan": float("nan"), "blob": noise(100_000).tobytes(), "empty": np.zeros((0, 4)),
        "text": "ü" * 100, 5: b"five",
    }  # fmt: skip


def test_a_state_comes_back_as_it_was(client: ckptd.Client, run: str) -> None:
    state = sample()
    h = client.save(run, step=1, state=state, metrics={"loss": 1.5, "lr": 1e-3})
    assert h.set == f"{run}@1#1"
    assert h.level in ("staged", "local")
    assert 0 < h.stall < 60
    done = h.wait("local", timeout=60)
    assert done is not None
    assert done.reached("local")
    assert h.done()
    assert equal(client.load(f"{run}@1"), state)
    assert equal(client.load(f"{run}@latest", check=False, copy=True), state)
    (listed,) = client.list(run)
    assert (listed.ref, listed.step, listed.world, listed.size) == (f"{run}@1", 1, 1, h.size)
    assert listed.metrics == {"loss": 1.5, "lr": 1e-3}
    assert listed.committed is not None


def test_the_state_may_change_the_moment_save_returns(client: ckptd.Client, run: str) -> None:
    w = noise(20 * MiB)
    before = w.copy()
    h = client.save(run, step=1, state={"w": w})
    w[:] = 0
    h.wait(timeout=60)
    assert np.array_equal(client.load(f"{run}@1")["w"], before)


def test_what_was_loaded_may_change_and_the_file_does_not(client: ckptd.Client, run: str) -> None:
    client.save(run, step=1, state={"w": np.ones(MiB)}).wait(timeout=60)
    a = client.load(f"{run}@1")["w"]
    a[:] = 7
    assert (client.load(f"{run}@1")["w"] == 1).all()


def test_a_shard_larger_than_the_arena_streams_through(client: ckptd.Client, run: str) -> None:
    state = {"small": np.arange(3), "w": noise(150 * MiB), "x": noise(10 * MiB + 13, 1)}
    client.save(run, step=1, state=state).wait(timeout=120)
    assert equal(client.load(f"{run}@1"), state)


def test_sessions_and_their_memory_are_used_again(client: ckptd.Client, run: str) -> None:
    for step in range(5):
        state = {"w": noise(9 * MiB + step, step), "step": step}
        client.save(run, step=step, state=state).wait(timeout=60)
        assert equal(client.load(f"{run}@{step}"), state)
    assert [s.step for s in client.list(run)] == [4, 3, 2, 1, 0]


def test_saves_follow_each_other_before_their_slots_are_written(client: ckptd.Client, run: str) -> None:
    handles = []
    for step in range(8):
        w = noise(17 * MiB + step, step)
        handles.append(client.save(run, step=step, state=w))
        w[:] = 0
    for step, h in enumerate(handles):
        h.wait(timeout=60)
        assert equal(client.load(h.set), noise(17 * MiB + step, step))


def test_many_small_tensors_and_long_headers(client: ckptd.Client, run: str) -> None:
    state = {f"layer.{i}.a-rather-long-name-to-fill-the-header": np.full(3, i, np.int16) for i in range(30_000)}
    client.save(run, step=1, state=state).wait(timeout=60)
    assert equal(client.load(f"{run}@1"), state)
    assert equal(
        client.load(f"{run}@1", only="layer.777.*"), {k: v for k, v in state.items() if k.startswith("layer.777.")}
    )


@pytest.mark.parametrize("state", [None, {}, [], 3, "text", np.arange(4), np.zeros(0)], ids=str)
def test_the_smallest_states(client: ckptd.Client, run: str, state: Any) -> None:
    client.save(run, step=1, state=state).wait(timeout=60)
    assert equal(client.load(f"{run}@1"), state)


def test_only_reads_and_returns_a_part(client: ckptd.Client, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_shard, "WHOLE", 0)
    asked: list[Any] = []
    fetch = _shard.Shard.fetch
    monkeypatch.setattr(_shard.Shard, "fetch", lambda self, ranges: (asked.append(ranges), fetch(self, ranges))[1])
    state = sample()
    client.save(run, step=1, state=state).wait(timeout=60)
    got = client.load(f"{run}@1", only=["model.bias", "optim.0.step", "epoch"])
    assert equal(got, {"model": {"bias": state["model"]["bias"]}, "optim": [{"step": np.int64(7)}, None], "epoch": 3})
    assert asked[0] == [(0, MiB)], "the header first"
    assert sum(n for _, n in asked[1]) < 100
    with pytest.raises(ckptd.NotFound, match=r"nothing in it matches(?s:.*)--tensors"):
        client.load(f"{run}@1", only="nope.*")


def test_one_tensor_and_its_rows(client: ckptd.Client, run: str) -> None:
    state = sample()
    client.save(run, step=1, state=state).wait(timeout=60)
    w = state["model"]["embed"]
    assert equal(client.tensor(f"{run}@1", "model.embed"), w)
    assert equal(client.tensor(f"{run}@1", "model.embed", [(3, 5), (0, 1), (9, 9)]), np.concatenate([w[3:5], w[:1]]))
    with pytest.raises(ckptd.Invalid, match="rows 0 to 99"):
        client.tensor(f"{run}@1", "model.bias", [(0, 99)])
    with pytest.raises(ckptd.NotFound, match="no tensor 'nope'"):
        client.tensor(f"{run}@1", "nope")


def test_load_into_fills_in_place_or_not_at_all(client: ckptd.Client, run: str) -> None:
    w = np.arange(MiB, dtype=np.float32)
    client.save(run, step=1, state={"w": w, "opt": [{"m": w + 1}, 2], "epoch": 3}).wait(timeout=60)
    mine: dict[str, Any] = {"w": np.zeros_like(w), "opt": [{"m": np.zeros_like(w)}, 0], "epoch": 0}
    target = mine["w"]
    assert client.load_into(f"{run}@1", mine) is mine
    assert mine["w"] is target
    assert equal(mine, {"w": w, "opt": [{"m": w + 1}, 2], "epoch": 3})
    wrong: dict[str, Any] = {"w": np.zeros_like(w), "opt": [{"m": np.zeros(3, np.float32)}, 0], "epoch": 0, "new": 1}
    with pytest.raises(ckptd.Invalid, match=r"opt\.0\.m has shape \[3\] here.*new is only in the state"):
        client.load_into(f"{run}@1", wrong)
    assert not wrong["w"].any(), "nothing is changed unless all fits"
    part: dict[str, Any] = {"w": np.zeros_like(w), "new": 1}
    client.load_into(f"{run}@1", part, strict=False)
    assert equal(part, {"w": w, "new": 1})
    with pytest.raises(ckptd.Invalid, match="is float64 here and float32"):
        client.load_into(f"{run}@1", {"w": np.zeros(w.shape)}, strict=False)


def test_tags_pins_and_removal(client: ckptd.Client, run: str) -> None:
    client.save(run, step=1, state=1).wait(timeout=60)
    assert client.tag(f"{run}@1", {"a": "1"}, stage="final").tags == {"a": "1", "stage": "final"}
    assert client.tag(f"{run}@1", a=None).tags == {"stage": "final"}
    assert client.pin(f"{run}@1").pinned
    assert not client.pin(f"{run}@1", False).pinned
    m = client.manifest(f"{run}@1")
    assert (m["world"], m["shards"][0]["rank"]) == (1, 0)
    client.save(run, step=2, state=2).wait(timeout=60)
    client.remove(f"{run}@1")
    assert [s.step for s in client.list(run)] == [2]
    assert {s.state for s in client.list(run, all=True)} == {"committed", "pruned"}
    with pytest.raises(FileNotFoundError):
        client.load(f"{run}@1")
    assert run in client.runs()


def test_the_file_in_the_data_directory_is_safetensors(client: ckptd.Client, daemon: Daemon, run: str) -> None:
    state = {"model": {"w": noise(3 * MiB).view(np.float32), "b": np.arange(3)}}
    client.save(run, step=12, state=state).wait(timeout=60)
    f = daemon.data / "local" / "shards" / run / "000000000012-000001" / "rank-00000.safetensors"
    got = safetensors.numpy.load_file(f)
    assert equal(got["model.w"], state["model"]["w"])
    assert equal(got["model.b"], state["model"]["b"])


def save_ranks(
    client: ckptd.Client, run: str, states: list[Any], step: int = 1, launch: str = "l1"
) -> list[ckptd.Handle]:
    n = len(states)
    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(
            lambda r: client.save(run, step=step, state=states[r], rank=r, world_size=n, launch=launch), range(n)
        ))  # fmt: skip


def test_a_set_is_there_when_its_last_rank_is(client: ckptd.Client, run: str) -> None:
    h = client.save(run, step=1, state={"w": np.ones(5)}, rank=0, world_size=2, launch="l1")
    assert h.level == "staged"
    with pytest.raises(ckptd.Incomplete) as e:
        h.wait("local", timeout=0.3)
    assert isinstance(e.value, TimeoutError)
    assert client.list(run) == []
    with pytest.raises(ckptd.Incomplete):
        client.load(f"{run}@latest")
    client.save(run, step=1, state={"v": np.ones(5)}, rank=1, world_size=2, launch="l1")
    h.wait("local", timeout=60)
    assert equal(client.load(f"{run}@1", rank=1), {"v": np.ones(5)})


def test_what_was_just_saved_is_loaded(client: ckptd.Client, run: str) -> None:
    for step in range(1, 21):
        client.save(run, step=step, state={"step": step, "w": noise(MiB, step)})
        got = client.load(f"{run}@latest" if step % 2 else f"{run}@{step}", only="step")
        assert got == {"step": step}
    client.save(run, step=3000, state={"step": 3000}, rank=0, world_size=2, launch="l2")
    assert client.load(f"{run}@latest", only="step") == {"step": 20}  # of two ranks: others' time is not waited for


def test_ranks_are_loaded_one_all_or_merged(client: ckptd.Client, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    states = [{"model": {f"part{r}": noise(2 * MiB, r)}, "epoch": 3} for r in range(4)]
    save_ranks(client, run, states)[0].wait(timeout=60)
    ref = f"{run}@1"
    assert equal(client.load(ref, rank=2), states[2])
    assert equal(client.load(ref, rank="all"), states)
    merged = client.load(ref)
    assert merged["epoch"] == 3
    assert equal(merged["model"], {f"part{r}": states[r]["model"][f"part{r}"] for r in range(4)})
    assert equal(client.load(ref, only="model.part3"), {"model": {"part3": states[3]["model"]["part3"]}})
    assert equal(client.tensor(ref, "model.part1"), states[1]["model"]["part1"])
    with pytest.raises(ckptd.NotFound, match="there is no rank 4"):
        client.load(ref, rank=4)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert equal(client.load(ref), states[3]), "one of as many ranks gets its own"


def test_ranks_that_differ_are_not_merged(client: ckptd.Client, run: str) -> None:
    save_ranks(client, run, [{"w": np.full(3, r), "same": np.ones(2)} for r in range(2)])[0].wait(timeout=60)
    with pytest.raises(ckptd.Invalid, match=r'differ in w(?s:.*)rank="all"'):
        client.load(f"{run}@1")
    assert equal(client.load(f"{run}@1", only="same"), {"same": np.ones(2)}), "equal on all ranks"


def test_pieces_make_up_the_whole_and_are_cut_anew(client: ckptd.Client, run: str) -> None:
    whole = noise(64 * 1024).view(np.float32).reshape(128, 128)
    rows = [ckptd.Piece(whole[r * 32 : (r + 1) * 32], (128, 128), (r * 32, 0)) for r in range(4)]
    save_ranks(client, run, [{"w": p, "step": 9} for p in rows])[0].wait(timeout=60)
    ref = f"{run}@1"
    assert equal(client.load(ref), {"w": whole, "step": 9})
    assert equal(client.tensor(ref, "w"), whole)
    assert equal(client.load(ref, rank=1)["w"].array, rows[1].array)
    assert client.manifest(ref)["shards"][1]["tensors"][0]["start"] == [32, 0]
    columns = ckptd.Piece(np.zeros((128, 50), np.float32), (128, 128), (0, 78))
    got = client.load_into(ref, {"w": columns, "step": 0})
    assert equal(columns.array, np.ascontiguousarray(whole[:, 78:]))
    assert got["step"] == 9


def test_a_committed_set_never_changes(client: ckptd.Client, run: str) -> None:
    client.save(run, step=1, state=1).wait(timeout=60)
    with pytest.raises(ckptd.Conflict) as e:
        client.save(run, step=1, state=2)
    assert isinstance(e.value, FileExistsError)
    assert client.load(f"{run}@1") == 1


def test_an_older_launch_is_fenced(client: ckptd.Client, run: str) -> None:
    client.save(run, step=1, state=1, launch="old").wait(timeout=60)
    client.save(run, step=2, state=2, launch="new").wait(timeout=60)
    with pytest.raises(ckptd.Fenced):
        client.save(run, step=3, state=3, launch="old")
    assert client.load(f"{run}@latest") == 2


def test_refusals_come_before_any_byte_and_leave_the_client_usable(client: ckptd.Client, run: str) -> None:
    with pytest.raises(ckptd.Invalid, match="run name"):
        client.save("../up", step=1, state=1)
    with pytest.raises(ckptd.Invalid, match="step"):
        client.save(run, step=-1, state=1)
    with pytest.raises(ckptd.Invalid, match="launch="):
        client.save(run, step=1, state=1, rank=0, world_size=2)
    with pytest.raises(ckptd.Invalid, match="cannot hold"):
        client.save(run, step=1, state={"x": object()})
    with pytest.raises(ckptd.NotFound):
        client.load(f"{run}@latest")
    with pytest.raises(ckptd.Invalid, match="reference"):
        client.load("no-step")
    with pytest.raises(ckptd.Invalid, match="level"):
        client.wait(f"{run}@1", "safest")
    with pytest.warns(UserWarning, match="loss"):
        client.save(run, step=1, state=1, metrics={"loss": float("nan"), "ok": 1}).wait(timeout=60)
    assert client.set(f"{run}@1").metrics == {"ok": 1}


def test_a_failing_copy_leaves_nothing(client: ckptd.Client, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptd import _tensors

    def broken(data: Any) -> Any:
        raise RuntimeError("device lost")

    with monkeypatch.context() as m:
        m.setattr(_tensors, "_bytes", broken)
        with pytest.raises(RuntimeError, match="device lost"):
            client.save(run, step=1, state={"w": np.ones(5)})
    client.save(run, step=1, state={"w": np.ones(5)}).wait(timeout=60)
    assert equal(client.load(f"{run}@1"), {"w": np.ones(5)})


def test_no_daemon_names_every_socket_and_how_to_start_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(ckptd.Unavailable) as e:
        ckptd.connect().status()
    assert isinstance(e.value, ConnectionError)
    for part in (f"{tmp_path}/ckptd/ckptd.sock", "/run/ckptd/ckptd.sock", "ckptd serve", "CKPTD_SOCKET"):
        assert part in str(e.value)
    monkeypatch.setenv("CKPTD_SOCKET", str(tmp_path / "mine"))
    with pytest.raises(ckptd.Unavailable, match="mine"):
        ckptd.save("r", step=1, state=1)
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.delenv("CKPTD_SOCKET")
    with pytest.raises(ckptd.Unavailable, match=f"/tmp/ckptd-{os.getuid()}/ckptd.sock"):
        ckptd.connect().runs()


def test_the_module_finds_the_daemon(daemon: Daemon, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPTD_SOCKET", str(daemon.socket))
    h = ckptd.save(run, step=1, state={"w": np.ones(3)})
    ckptd.wait(h.set, timeout=60)
    assert equal(ckptd.load(f"{run}@1"), {"w": np.ones(3)})
    assert [s.step for s in ckptd.list(run)] == [1]
    again = pickle.loads(pickle.dumps(h))
    assert again.done()
    assert (again.set, again.stall) == (h.set, h.stall)


def test_asyncio_waits_beside_the_loop(daemon: Daemon, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPTD_SOCKET", str(daemon.socket))

    async def story() -> Any:
        h = await ckptd.asave(run, step=1, state={"w": np.ones(3)})
        await ckptd.await_level(h.set, "local", timeout=60)
        assert [s.step for s in await ckptd.alist(run)] == [1]
        return await ckptd.aload(f"{run}@1")

    assert equal(asyncio.run(story()), {"w": np.ones(3)})


def test_threads_save_and_load_at_once(client: ckptd.Client, run: str) -> None:
    def work(i: int) -> bool:
        state = {"w": noise(6 * MiB + i, i)}
        client.save(f"{run}-{i}", step=1, state=state).wait(timeout=60)
        return equal(client.load(f"{run}-{i}@1"), state)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(12)))


def test_a_copy_on_several_threads_is_the_same(client: ckptd.Client, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ckptd import _fill

    monkeypatch.setattr(_fill, "PARALLEL_BYTES", 0)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(4))
    state = {f"t{i}": noise(n, i) for i, n in enumerate([1, 5 * MiB, 3, 90 * MiB, 4096, 7 * MiB + 1])}
    state["strided"] = noise(40 * MiB).reshape(2, -1).T
    client.save(run, step=1, state=state).wait(timeout=60)
    assert equal(client.load(f"{run}@1"), {**state, "strided": np.ascontiguousarray(state["strided"])})
    assert threading.active_count() < 20


def test_errors_keep_their_class_everywhere() -> None:
    from ckptd import _errors

    for code, cls in _errors.CODES.items():
        e = _errors.from_wire(code, "what", "do this")
        assert type(e) is cls
        assert str(e) == "what\n  hint: do this"
        twin = pickle.loads(pickle.dumps(e))
        assert (type(twin), twin.hint, str(twin)) == (cls, e.hint, str(e))
    assert _errors.NoSpace("x").errno == errno.ENOSPC
    protocol = (Path(__file__).resolve().parents[2] / "wire" / "PROTOCOL.md").read_text()
    table = protocol.split("## Error codes")[1].split("## HTTP")[0]
    codes = {line.split("`")[1] for line in table.splitlines() if line.startswith("| `")}
    assert codes == set(_errors.CODES), "one exception for every code of the protocol"
    assert isinstance(_errors.from_wire("new-code", None), _errors.Internal)
    assert json.dumps(ckptd.LEVELS)

"""Forked, spawned and killed processes, and a daemon that dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Daemon
from shards import equal

import ckptd

HERE = Path(ckptd.__file__).resolve().parents[1]
MiB = 1 << 20


def noise(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, n, dtype=np.uint8)


def python(code: str, daemon: Daemon, *args: Any, **env: str) -> subprocess.Popen[str]:
    """A process of its own, so that fork meets no threads of the test's libraries."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", "import os, sys, numpy as np, ckptd\n" + code, *map(str, args)],
        env={**os.environ, "CKPTD_SOCKET": str(daemon.socket), "PYTHONPATH": str(HERE), **env},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(p: subprocess.Popen[str]) -> str:
    out, _ = p.communicate(timeout=120)
    assert p.returncode == 0, out
    return out


def test_four_processes_make_one_set(daemon: Daemon, client: ckptd.Client, run: str) -> None:
    code = (
        "r = int(os.environ['RANK'])\n"
        "w = np.random.default_rng(r).integers(0, 256, (30 << 20) + r, dtype=np.uint8)\n"
        "h = ckptd.save(sys.argv[1], step=7, state={'model': {f'w{r}': w}, 'rank': r})\n"
        "assert h.set == sys.argv[1] + '@7#1', h.set\n"
    )
    env = {"WORLD_SIZE": "4", "CKPTD_LAUNCH": "one"}
    for p in [python(code, daemon, run, RANK=str(r), **env) for r in range(4)]:
        finish(p)
    client.wait(f"{run}@7", timeout=60)  # no process of the job is alive any more
    got = client.load(f"{run}@7", rank="all")
    assert [g["rank"] for g in got] == [0, 1, 2, 3]
    for r, g in enumerate(got):
        assert equal(g["model"][f"w{r}"], noise((30 << 20) + r, r))


FORKS = """
run = sys.argv[1]
state = {"w": np.arange(3 << 20), "who": "parent"}
ckptd.save(run, step=1, state=state).wait(timeout=60)      # the parent has a session and mapped memory
held = ckptd.load(run + "@1")["w"]
def child():
    ckptd.save(run + "/child", step=1, state={"w": held * 2, "who": "child"}).wait(timeout=60)
    assert ckptd.load(run + "@1")["who"] == "parent"
"""


def test_a_forked_child_has_connections_of_its_own(daemon: Daemon, client: ckptd.Client, run: str) -> None:
    code = FORKS + (
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    child()\n"
        "    os._exit(0)\n"
        "for step in range(2, 6):\n"  # the parent goes on in its own session meanwhile
        "    ckptd.save(run, step=step, state=state).wait(timeout=60)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0\n"
        "assert (held == np.arange(3 << 20)).all()\n"
    )
    finish(python(code, daemon, run))
    assert [s.step for s in client.list(run)] == [5, 4, 3, 2, 1]
    got = client.load(f"{run}/child@1")
    assert got["who"] == "child"
    assert equal(got["w"], np.arange(3 << 20) * 2)


def test_spawned_and_pooled_processes(daemon: Daemon, client: ckptd.Client, run: str, tmp_path: Path) -> None:
    script = tmp_path / "pool.py"
    script.write_text(
        "import multiprocessing, sys, numpy as np, ckptd\n"
        "def work(args):\n"
        "    c, run, i = args\n"
        "    h = c.save(f'{run}/{i}', step=1, state=np.full(100_000, i))\n"
        "    h.wait(timeout=60)\n"
        "    return h\n"
        "if __name__ == '__main__':\n"
        "    run = sys.argv[1]\n"
        "    with multiprocessing.get_context('spawn').Pool(2) as pool:\n"
        "        hs = pool.map(work, [(ckptd.connect(), run, i) for i in range(4)])\n"
        "    assert all(h.done() for h in hs)\n"
    )
    env = {**os.environ, "CKPTD_SOCKET": str(daemon.socket), "PYTHONPATH": str(HERE)}
    subprocess.run([sys.executable, script, run], env=env, check=True, timeout=120)
    for i in range(4):
        assert (client.load(f"{run}/{i}@1") == i).all()


def test_a_rank_killed_while_it_copies_leaves_nothing(daemon: Daemon, client: ckptd.Client, run: str) -> None:
    code = (
        "from ckptd import _fill\n"
        "copy = _fill.Filler._copy\n"
        "def die(self, memory, lo, hi):\n"
        "    copy(self, memory, lo, hi)\n"
        "    if lo: print('copying', flush=True); os.kill(os.getpid(), 9)\n"
        "_fill.Filler._copy = die\n"
        "ckptd.save(sys.argv[1], step=1, state={'w': np.ones(40 << 17)})\n"
    )
    p = python(code, daemon, run)
    out, _ = p.communicate(timeout=60)
    assert out.startswith("copying")
    assert p.returncode == -signal.SIGKILL
    assert client.list(run) == []
    state = {"w": noise(90 * MiB)}  # needs the whole arena: what was lent came back
    client.save(run, step=2, state=state).wait(timeout=60)
    assert equal(client.load(f"{run}@latest"), state)


def test_what_save_returned_for_survives_the_daemon(own_daemon: Daemon) -> None:
    with ckptd.connect(own_daemon.socket) as c:
        state = {"w": noise(40 * MiB)}
        h = c.save("r", step=1, state=state)
        own_daemon.kill()
        with pytest.raises(ckptd.Unavailable):
            c.list("r")
        own_daemon.start()
        h.wait("local", timeout=60)
        assert equal(c.load("r@1"), state)
        c.save("r", step=2, state=state).wait(timeout=60)  # an idle session of before is not used
        assert [s.step for s in c.list("r")] == [2, 1]


def shard(d: Daemon, step: int) -> Path:
    return d.data / "local" / "shards" / "r" / f"{step:012d}-000001" / "rank-00000.safetensors"


def test_lost_and_damaged_local_copies_are_read_from_remote(own_daemon: Daemon) -> None:
    state = {"a": noise(9 * MiB), "b": noise(9 * MiB, 1), "n": 3}
    with ckptd.connect(own_daemon.socket) as c:
        for step in (1, 2):
            c.save("r", step=step, state=state).wait("verified", timeout=60)
        with open(shard(own_daemon, 1), "r+b") as f:
            f.seek(10 * MiB)
            f.write(bytes(64))
        shard(own_daemon, 2).unlink()
        for step in (1, 2):
            part = c.load(f"r@{step}", only="b")
            assert equal(part, {"b": state["b"]})
            part["b"][:] = 0
            assert equal(c.load(f"r@{step}"), state)
            assert equal(c.tensor(f"r@{step}", "a", [(5, 3 * MiB)]), state["a"][5 : 3 * MiB])


def test_no_good_copy_is_corrupt_and_older_ones_are_named(own_daemon: Daemon) -> None:
    with ckptd.connect(own_daemon.socket) as c:
        for step in (1, 2):
            c.save("r", step=step, state={"w": noise(5 * MiB, step)}).wait("remote", timeout=60)
        shard(own_daemon, 2).write_bytes(noise(5 * MiB).tobytes())
        for column in own_daemon.data.glob("targets/*/columns/**/*"):
            if column.is_file() and "000000000002-" in str(column):
                column.write_bytes(b"garbage")
        with pytest.raises(ckptd.Corrupt) as e:
            c.load("r@2")
        assert isinstance(e.value, OSError)
        assert "r@1" in str(e.value)
        assert equal(c.load("r@1"), {"w": noise(5 * MiB, 1)})


def test_ctrl_c_in_a_save_leaves_nothing(daemon: Daemon, client: ckptd.Client, run: str) -> None:
    code = (
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in what a shell starts with &
        "from ckptd import _fill\n"
        "copy = _fill.Filler._copy\n"
        "def stop(self, memory, lo, hi):\n"
        "    if lo > 20 << 20: signal.raise_signal(signal.SIGINT)\n"
        "    copy(self, memory, lo, hi)\n"
        "_fill.Filler._copy = stop\n"
        "try:\n"
        "    ckptd.save(sys.argv[1], step=1, state={'w': np.ones(40 << 17)})\n"
        "except KeyboardInterrupt:\n"
        "    _fill.Filler._copy = copy\n"
        "    ckptd.save(sys.argv[1], step=2, state={'w': np.ones(3)}).wait(timeout=60)\n"
        "    print('stopped')\n"
    )
    assert finish(python(code, daemon, run)) == "stopped\n"
    assert [s.step for s in client.list(run)] == [2]

"""ckptd.local: a daemon of one's own starts, is used, and leaves nothing, however its process ends."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, binary

import ckptd
from ckptd import _local, _program

PATIENCE = 60.0
README = Path(__file__).parents[1] / "README.md"
QUICK = ("--remote", "none")


@pytest.fixture(autouse=True)
def _program_under_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPTD_BIN", str(binary()))


@pytest.fixture
def private() -> Iterator[ckptd.Local]:
    """As the README tells pytest's users."""
    with ckptd.local(arena="64MiB", options=QUICK, program=binary()) as d:
        yield d


def start(**kw: object) -> ckptd.Local:
    return ckptd.local(**{"arena": "64MiB", "options": QUICK, **kw})  # type: ignore[arg-type]


def until(what: str, done: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end, f"{what}: not within {PATIENCE:g} s"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """Whether a process is no more, or only its exit code is."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def left(d: ckptd.Local) -> list[Path]:
    return [p for p in (d._home.root, d._home.arena) if p.exists()]


def test_block_saves_loads_and_leaves_nothing() -> None:
    w = np.arange(1000, dtype=np.float32)
    with start() as d:
        ckptd.save("mnist", step=1, state={"w": w, "epoch": 3}).wait("local", timeout=PATIENCE)
        got = ckptd.load("mnist@latest", copy=True)
        assert [s.step for s in d.client.list("mnist")] == [1]
        assert os.environ["CKPTD_SOCKET"] == d.socket
    assert got["epoch"] == 3
    assert np.array_equal(got["w"], w)
    assert gone(d.pid)
    assert left(d) == []
    assert d.closed
    assert "CKPTD_SOCKET" not in os.environ
    d.close()  # a second time does nothing
    with pytest.raises(ckptd.Invalid, match="was stopped"):
        d.use()


def test_fixture_is_the_default_client(private: ckptd.Local) -> None:
    ckptd.save("fixture", step=1, state={"x": 1}).wait("local", timeout=PATIENCE)
    assert [s.step for s in private.client.list("fixture")] == [1]


def test_nested_and_two_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPTD_SOCKET", "/nobody/listens")
    with start() as outer:
        ckptd.save("outer", step=1, state={"x": 1}).wait("local", timeout=PATIENCE)
        with start() as inner:
            with pytest.raises(ckptd.NotFound):
                ckptd.list("outer")
            ckptd.save("inner", step=2, state={"x": 2}).wait("local", timeout=PATIENCE)
            assert outer.client.runs() == ["outer"]
            assert inner.client.runs() == ["inner"]
            outer.close()  # out of turn: the inner one stays the one in use
            assert ckptd.load("inner@latest") == {"x": 2}
        assert os.environ["CKPTD_SOCKET"] == "/nobody/listens"
        with pytest.raises(ckptd.Unavailable, match="/nobody/listens"):
            ckptd.list("outer")


def test_kept_data_is_there_the_next_time(tmp_path: Path) -> None:
    with start(data=tmp_path / "kept"):
        ckptd.save("kept", step=7, state={"x": [1, 2]}).wait("local", timeout=PATIENCE)
    with start(data=tmp_path / "kept"):
        assert ckptd.load("kept@7") == {"x": [1, 2]}
        with pytest.raises(ckptd.Unavailable, match="another"):
            start(data=tmp_path / "kept")
        assert ckptd.load("kept@7") == {"x": [1, 2]}


def test_plain_object_and_forgotten_object() -> None:
    d = start()
    assert "CKPTD_SOCKET" not in os.environ  # not in use, only there
    assert d.client.status()["node"] == "local"
    assert "ckptd starts" in d.log
    pid, was = d.pid, left(d)
    assert len(was) == 2 or not Path("/dev/shm").is_dir()
    del d
    gc.collect()
    assert gone(pid)
    assert [p for p in was if p.exists()] == []


def test_within_a_running_event_loop() -> None:
    async def cell() -> object:
        with start():
            await asyncio.gather(*(ckptd.asave("loop", step=s, state={"s": s}) for s in (1, 2)))
            await ckptd.await_level("loop@2", timeout=PATIENCE)
            return await ckptd.aload("loop@2")

    assert asyncio.run(cell()) == {"s": 2}


def test_its_own_words_when_it_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ckptd.Unavailable, match="unknown flag: --nonsense"):
        start(options=["--nonsense"])
    with pytest.raises(ckptd.Invalid, match="give data="):
        start(options=["--data=/x"])
    with pytest.raises(ckptd.Invalid, match="give a list"):
        start(options="--remote none")
    wrong = tmp_path / "ckptd"
    wrong.write_text("no program")
    wrong.chmod(0o755)
    with pytest.raises(ckptd.Unavailable, match=r"starting .*ckptd"):
        start(program=wrong)
    assert list(Path(tempfile.gettempdir()).glob(f"{_local.PREFIX}*/new")) == []


def test_a_daemon_that_died_is_told() -> None:
    d = start()
    os.kill(d.pid, signal.SIGKILL)
    d._process.wait(PATIENCE)
    with pytest.raises(ckptd.Unavailable, match=r"ended by itself \(killed by signal 9\).*\n.*ckptd starts"):
        d.close()
    assert left(d) == []
    with pytest.raises(ckptd.Unavailable) as told, start() as d:  # noqa: PT012
        os.kill(d.pid, signal.SIGKILL)
        until("the daemon is gone", lambda: gone(d.pid))
        ckptd.list("x")
    if sys.version_info >= (3, 11):
        assert "ended by itself" in "".join(told.value.__notes__)


CHILD = """
import os, sys, time, ckptd
d = ckptd.local(arena="64MiB", options=["--remote", "none"]).use()
if "fork" in sys.argv and os.fork() == 0:
    try:
        d.close()            # in the child: the daemon is the parent's
        time.sleep(600)      # and a child that lives on does not keep the daemon
    finally:
        os._exit(0)
print(d.pid, d._home.root, d._home.arena, flush=True)
ckptd.save("child", step=1, state={"x": 1})
if "end" in sys.argv:
    sys.exit(0)              # without closing
time.sleep(600)
"""


@pytest.mark.parametrize("how", ["end", "kill", "kill fork"])
def test_dies_with_its_process(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env = {**os.environ, "PYTHONPATH": str(README.parent)}
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, *how.split()], stdout=subprocess.PIPE, text=True, env=env, start_new_session=True
    )
    try:
        assert child.stdout is not None
        pid, root, arena = child.stdout.readline().split()
        if "kill" in how:
            assert not gone(int(pid))
            child.kill()
        child.wait(PATIENCE)
        until("the daemon ends after its process", lambda: gone(int(pid)))
        if how == "kill fork":
            os.killpg(child.pid, signal.SIGKILL)  # the child's child, which holds the lock too
        if "kill" in how:  # nobody was left to remove them; the next one does

            def swept() -> bool:
                _local._sweep()
                return not Path(root).exists() and not Path(arena).exists()

            until("what was left is swept", swept)
        assert not Path(root).exists()
        assert not Path(arena).exists()
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def test_sweep_leaves_what_is_in_use(private: ckptd.Local) -> None:
    _local._sweep()
    assert private.client.status()["node"] == "local"
    assert left(private) != []


def test_long_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with start() as d:
        assert len(d.socket) <= _local.MAX_SOCKET
    assert left(d) == []


def test_program_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _program.daemon_program() == binary().absolute()
    monkeypatch.setenv("CKPTD_BIN", str(tmp_path))
    with pytest.raises(ckptd.Unavailable, match="is no program"):
        _program.daemon_program()
    monkeypatch.delenv("CKPTD_BIN")
    if (ROOT / "bin" / "ckptd").exists():
        assert _program.daemon_program() == ROOT / "bin" / "ckptd"
    monkeypatch.setattr(_program, "__file__", str(tmp_path / "site" / "ckptd" / "_program.py"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ckptd.Unavailable, match="pip install"):
        _program.daemon_program()
    (tmp_path / "ckptd").write_text("#!/bin/sh\n")
    (tmp_path / "ckptd").chmod(0o755)
    assert _program.daemon_program() == tmp_path / "ckptd"


def test_readme_recipe_for_pytest(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (recipe,) = [b for b in blocks if "@pytest.fixture" in b]
    (tmp_path / "test_recipe.py").write_text(recipe)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(README.parent)}, timeout=5 * PATIENCE, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout

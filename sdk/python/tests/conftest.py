"""A real daemon for the tests that need one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckptd

ROOT = Path(__file__).resolve().parents[3]


def binary() -> Path:
    """The daemon's program: CKPTD_BIN, or bin/ckptd of this tree, built by `make build`."""
    path = Path(os.environ.get("CKPTD_BIN", ROOT / "bin" / "ckptd"))
    if not path.exists():
        pytest.fail(f"{path} is not there: `make build` first, or set CKPTD_BIN", pytrace=False)
    return path


class Daemon:
    """One `ckptd serve` on a directory of its own."""

    def __init__(self, root: Path, *flags: str) -> None:
        self.root, self.flags = root, flags
        self.data, self.socket, self.log = root / "data", root / "s", root / "log"
        self.start()

    def start(self) -> None:
        arena = self.root / "arena"
        args = [binary(), "serve", "--data", self.data, "--socket", self.socket, "--name", "n1"]
        if os.path.isdir("/dev/shm"):
            arena = Path("/dev/shm") / f"ckptd-test-{os.getpid()}-{self.root.name}"
        self.arena = arena
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [*args, "--arena-dir", arena, *self.flags], stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + 60
        while True:  # a process that is to listen can only be asked whether it does
            try:
                ckptd.connect(self.socket).status()
                return
            except ckptd.Unavailable:
                if self.process.poll() is not None or time.monotonic() > end:
                    pytest.fail(f"the daemon did not start:\n{self.log.read_text()}", pytrace=False)
                time.sleep(0.02)

    def kill(self, how: int = signal.SIGKILL) -> None:
        self.process.send_signal(how)
        self.process.wait(timeout=60)

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill(signal.SIGTERM)
        shutil.rmtree(self.arena, ignore_errors=True)


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all tests that leave it alone; they use runs of their own."""
    d = Daemon(tmp_path_factory.mktemp("ckptd"), "--arena", "64MiB")
    yield d
    d.close()


@pytest.fixture
def own_daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon to be killed or damaged."""
    d = Daemon(tmp_path, "--arena", "64MiB")
    yield d
    d.close()


@pytest.fixture
def client(daemon: Daemon) -> Iterator[ckptd.Client]:
    with ckptd.connect(socket=daemon.socket) as c:
        yield c


@pytest.fixture
def run(request: pytest.FixtureRequest) -> str:
    """A run that is this test's alone."""
    return "py/" + "".join(c if c.isalnum() or c in "-_" else "-" for c in request.node.name)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CKPTD_SOCKET", "CKPTD_LAUNCH", "RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)

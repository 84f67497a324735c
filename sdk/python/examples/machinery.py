"""What the stories of the quickstart run on: processes that end with it, a daemon, a folder that goes away."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from telling import Failed, until

import ckptd

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPING = 15  # seconds a daemon has for it, then it is killed


class Processes:
    """Every process this script starts, so that none outlives it."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[str]] = []

    def start(self, args: list[str], orphaned: int = signal.SIGKILL, **options: Any) -> subprocess.Popen[str]:
        """orphaned: the signal that the process gets when this script is gone, even by SIGKILL."""

        def child() -> None:
            ctypes.CDLL(None).prctl(1, orphaned)  # PR_SET_PDEATHSIG
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

        # No interrupt between the start of a process and its place in the list. A session of its own: a Ctrl-C in the
        # terminal reaches this script alone, which then cleans up.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        try:
            process = subprocess.Popen(args, text=True, start_new_session=True, preexec_fn=child, **options)
            self.started.append(process)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return process

    def kill(self) -> None:
        for process in reversed(self.started):  # the ranks before their daemon
            kill_all(process)
        for process in self.started:
            process.wait()


def kill_all(process: subprocess.Popen[str]) -> None:
    """SIGKILL for a process and those it has started: they are one session."""
    if process.returncode is None:  # not waited for, so its number is not another's
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


class Daemon:
    """A ckptd with its defaults: embedded catalog, three local targets, layout 2+1."""

    def __init__(self, program: Path, home: Path, processes: Processes) -> None:
        self.program, self.home, self.processes = program, home, processes
        self.data, self.socket, self.log = home / "data", home / "s", home / "ckptd.log"
        self.mount = home / "mnt"  # where its files are shown, if they are
        self.arena = Path("/dev/shm") / home.name  # outlives a daemon that is killed: that is its purpose
        self.process: subprocess.Popen[str] | None = None

    def start(self, *flags: str) -> float:
        """Start, and say after how many seconds it answered."""
        args = [str(self.program), "serve", "--data", str(self.data), "--socket", str(self.socket)]
        args += ["--arena", "256MiB", "--arena-dir", str(self.arena), *flags]
        with self.log.open("a") as log:
            # Without this script it ends by itself, and takes its mount away.
            self.process = self.processes.start(args, orphaned=signal.SIGTERM, stdout=log, stderr=log)
        return until("the daemon to answer", 30, self.answers)

    def answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise Failed(f"the daemon ended by itself, with code {self.process.returncode}")
        try:
            with ckptd.connect(socket=str(self.socket)) as client:
                client.status()
        except ckptd.Unavailable:
            return False
        return True

    def level(self, run: str) -> str:
        """The level of the newest visible set; "" while there is none."""
        with ckptd.connect(socket=str(self.socket)) as client, contextlib.suppress(ckptd.NotFound):
            return next((str(s.level) for s in client.list(run)), "")
        return ""

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """Ask it to end, which takes its mount away; whatever is left of both is taken away by force."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOPPING)
        self.processes.kill()
        shutil.rmtree(self.arena, ignore_errors=True)
        if mounted(self.mount):  # of a daemon that was killed and not started again
            away = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-uz"]
            subprocess.run([*away, str(self.mount)], capture_output=True, check=False)

    def shards(self, run: str) -> list[Path]:
        return sorted((self.data / "local" / "shards" / run).rglob("rank-*.safetensors"))

    def columns(self, run: str, rank: int | None = None) -> list[Path]:
        """The finished column files of the shards on all targets."""
        of = "rank-*.safetensors" if rank is None else f"rank-{rank:05d}.safetensors"
        return sorted((self.data / "targets").glob(f"t*/columns/{run}/*/{of}/*.col"))


def commands(bin_dir: Path, env: dict[str, str]) -> Callable[..., str]:
    """ckpt(*args): what the command says; Failed, with its own words, where it fails."""

    def ckpt(*args: str) -> str:
        done = subprocess.run([str(bin_dir / "ckpt"), *args], env=env, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Failed(f"ckpt {' '.join(args)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    return ckpt


def mounts() -> list[tuple[str, str]]:
    """Mount points and the types of their file systems."""
    rows = (line.split(" ") for line in Path("/proc/self/mounts").read_text().splitlines())
    return [(row[1], row[2]) for row in rows]


def mounted(folder: Path) -> bool:
    return any(at == str(folder) for at, _ in mounts())


def on_disk(path: Path) -> bool:
    """Whether a folder lies on a disk, not in memory."""
    best, kind = "", ""
    for at, fstype in mounts():
        if path.resolve().is_relative_to(at) and len(at) >= len(best):
            best, kind = at, fstype
    return kind not in ("tmpfs", "ramfs")


@contextlib.contextmanager
def temporary_home() -> Generator[Path, None, None]:
    """A folder on a disk with a gigabyte to spare, with a path short enough for a unix socket (108 bytes)."""
    for parent in (os.environ.get("TMPDIR", ""), "/tmp", "/var/tmp", os.path.expanduser("~/.cache")):
        base = Path(parent)
        if parent and len(parent) < 70 and base.is_dir() and os.access(base, os.W_OK) and on_disk(base):
            if shutil.disk_usage(base).free < 1 << 30:
                continue
            with tempfile.TemporaryDirectory(prefix="ckptd-quickstart-", dir=base, ignore_cleanup_errors=True) as home:
                yield Path(home).resolve()
                return
    raise Failed("found no folder on a disk with 1 GiB free in /tmp, /var/tmp or ~/.cache; set TMPDIR to one")

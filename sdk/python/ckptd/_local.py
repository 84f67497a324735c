"""A daemon of one's own, for tests and notebooks."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from . import _api
from ._client import Client
from ._errors import Invalid, Unavailable
from ._program import daemon_program

STOP_SECONDS = 60.0  # for the daemon to end in order, before it is killed
MAX_SOCKET = 107  # bytes of a unix socket's path
PREFIX = f"ckptd-local-{os.getuid()}-"
SHM = Path("/dev/shm")
_TAIL = 4096  # bytes of the daemon's log that an error shows
_VARIABLE = "CKPTD_SOCKET"
_OWN_FLAGS = {
    "--data": "give data=",
    "--arena": "give arena=",
    "--arena-dir": "it is below /dev/shm",
    "--socket": "the object's `socket` says where it is",
    "--stop-at-eof": "there is nothing to change",
}


def local(
    data: str | os.PathLike[str] | None = None, *, arena: str = "256MiB", options: Sequence[str] = (),
    program: str | os.PathLike[str] | None = None, timeout: float = 60.0,
) -> Local:  # fmt: skip
    """Start a private daemon, wait until it answers, and give the object it is stopped by.

        with ckptd.local():
            ckptd.save("mnist", step=1, state={"w": w})
            state = ckptd.load("mnist@latest")

    Within the block the functions of this module, and every process started in it, use this daemon. Without a block:
    `d = ckptd.local()`, then `d.client`, and at last `d.close()`; `d.use()` does for cells of a notebook what the
    block does. It stops when it is closed, when this process ends, and when this process is killed.

    data: a folder where everything is kept for the next time; by default a temporary one that is removed.
    arena: shared memory for saves, as "64MiB", all of it taken; larger states are saved piece by piece.
    options: more flags of `ckptd serve`, as ["--remote", "none"].
    program: the daemon's program; by default CKPTD_BIN, what the wheel brought, or the one in PATH.
    timeout: seconds for the daemon to answer.

    Raises Unavailable, with the daemon's own words, when it does not start.
    """
    return Local(data, arena=arena, options=options, program=program, timeout=timeout)


class Local:
    """A private daemon; see ckptd.local. `socket`, `data` and `pid` say where it is, `log` what it said."""

    def __init__(
        self, data: str | os.PathLike[str] | None = None, *, arena: str = "256MiB", options: Sequence[str] = (),
        program: str | os.PathLike[str] | None = None, timeout: float = 60.0,
    ) -> None:  # fmt: skip
        _check(options)
        path = daemon_program() if program is None else Path(program)
        _sweep()
        self._home = _Home()
        try:
            self.data = Path(data).absolute() if data is not None else self._home.root / "data"
            self.socket = str(self._home.root / "s")
            self.client = Client(self.socket)
            args = ["serve", "--data", self.data, "--socket", self.socket, "--name", "local", "--stop-at-eof"]
            args += ["--arena", arena, "--arena-dir", self._home.arena, *options]
            with open(self._home.log, "wb") as log:
                process = subprocess.Popen(
                    [path, *args], stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=[self._home.lock],
                    start_new_session=True,  # Ctrl-C is this process's; the daemon ends with the pipe
                )  # fmt: skip
        except BaseException as e:
            self._home.remove()
            if isinstance(e, OSError):
                raise Unavailable(f"starting {path}: {e.strerror or e}", "is it the ckptd of this machine?") from e
            raise
        self._process = process
        self.pid = process.pid
        # Also runs when the object is forgotten, and at the end of the interpreter.
        self._owner = os.getpid()
        self._finalizer = weakref.finalize(self, _stop, process, self._home, self._owner)
        _all.add(self)
        try:
            self._await(timeout)
        except BaseException:
            self._finalizer()
            raise

    def _await(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        while True:  # a process that is to listen can only be asked whether it does
            try:
                self.client.status()
                return
            except Unavailable:
                if self._process.poll() is not None:
                    raise Unavailable(self._obituary("before it was ready"), "see `ckptd serve --help`") from None
                if time.monotonic() > end:
                    raise Unavailable(
                        f"the daemon does not answer after {timeout:g} s; it said:\n{self._tail()}",
                        "give it longer with timeout=",
                    ) from None
                time.sleep(0.02)

    def use(self) -> Local:
        """Make this the daemon of the module's functions and of processes started from now on, until it is closed."""
        if self.closed:
            raise Invalid("this daemon was stopped", "ckptd.local() starts another")
        _in_use.push(self)
        return self

    def __enter__(self) -> Local:
        return self.use()

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        if isinstance(e, Unavailable) and self._owner == os.getpid():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.5)  # a daemon that is about to be dead
        try:
            self.close()
        except Unavailable as end:  # it had ended by itself, which may be why e was raised
            if e is None:
                raise
            note = getattr(e, "add_note", None)  # Python 3.11
            if note is not None:
                note(str(end))
            else:
                warnings.warn(str(end), stacklevel=2)

    @property
    def closed(self) -> bool:
        return not self._finalizer.alive

    def close(self) -> None:
        """Stop the daemon, and remove what it had in memory and in temporary folders. Does nothing the second time.

        Raises Unavailable, with the daemon's last words, when it had ended by itself."""
        if self.closed:
            return
        obituary = ""
        if self._owner == os.getpid() and self._process.poll() is not None:
            obituary = self._obituary("by itself")
        _in_use.drop(self)
        self.client.close()
        self._finalizer()
        if obituary:
            raise Unavailable(obituary)

    @property
    def log(self) -> str:
        """The end of what the daemon said, at most 64 KiB; nothing once it is closed."""
        return self._tail(1 << 16)

    def _tail(self, most: int = _TAIL) -> str:
        try:
            with open(self._home.log, "rb") as f:
                f.seek(max(0, os.fstat(f.fileno()).st_size - most))
                return f.read().decode("utf-8", "replace").strip()
        except FileNotFoundError:
            return ""

    def _obituary(self, when: str) -> str:
        code = self._process.returncode
        how = f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
        return f"the daemon ended {when} ({how}); its last words:\n{self._tail()}"

    def _after_fork(self) -> None:
        """In a forked child: let go of the pipe, so that the daemon ends with its parent and not with its child."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    def __repr__(self) -> str:
        return f"<ckptd.Local {'closed' if self.closed else self.socket}>"


def _check(options: Sequence[str]) -> None:
    if isinstance(options, str):
        raise Invalid(f"options={options!r} is one text", 'give a list of flags, as ["--remote", "none"]')
    for o in options:
        flag = o.split("=")[0]
        if flag in _OWN_FLAGS:
            raise Invalid(f"{flag} in options", f"ckptd.local sets it itself; {_OWN_FLAGS[flag]}")


class _Home:
    """Where a daemon has what lasts no longer than itself: its socket, its log, its arena.

    A lock that this process and the daemon hold says that it is in use; who died and left it is swept after.
    """

    def __init__(self) -> None:
        root = tempfile.mkdtemp(prefix=PREFIX)
        if len(os.fsencode(root)) + len("/s") > MAX_SOCKET:  # TMPDIR may be anything
            os.rmdir(root)
            root = tempfile.mkdtemp(prefix=PREFIX, dir="/tmp")
        self.root = Path(root)
        self.log = self.root / "log"
        self.arena = _arena_of(self.root)
        self.lock = os.open(self.root / "new", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        os.rename(self.root / "new", self.root / "lock")  # locked from the first moment that it has this name

    def remove(self) -> None:
        shutil.rmtree(self.arena, ignore_errors=True)
        shutil.rmtree(self.root, ignore_errors=True)
        os.close(self.lock)


def _arena_of(root: Path) -> Path:
    return SHM / root.name if SHM.is_dir() else root / "arena"


def _sweep() -> None:
    """Remove what processes left that were killed together with their daemons."""
    for folder in {tempfile.gettempdir(), "/tmp"}:
        for root in Path(folder).glob(PREFIX + "*"):
            try:
                lock = os.open(root / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:  # just being made, or another sweeps
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock).st_uid == os.getuid():
                    shutil.rmtree(_arena_of(root), ignore_errors=True)
                    shutil.rmtree(root, ignore_errors=True)
            except BlockingIOError:
                pass
            finally:
                os.close(lock)


def _stop(process: subprocess.Popen[bytes], home: _Home, owner: int) -> None:
    if os.getpid() != owner:  # a forked child that ends: the daemon is its parent's
        return
    try:
        if process.stdin is not None:
            process.stdin.close()
        process.terminate()
        process.wait(STOP_SECONDS)
    except BaseException as e:  # too late, or Ctrl-C while it was waited for
        process.kill()
        process.wait()
        if not isinstance(e, subprocess.TimeoutExpired):
            raise
        warnings.warn(f"the local daemon did not stop in {STOP_SECONDS:g} s and was killed", stacklevel=2)
    finally:
        home.remove()


class _InUse:
    """The daemons whose blocks are open, the innermost last; what was so before comes back after the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the rest
        self._stack: list[Local] = []
        self._before: str | None = None

    def push(self, d: Local) -> None:
        with self._lock:
            if not self._stack:
                self._before = os.environ.get(_VARIABLE)
            self._stack.append(d)
            self._apply()

    def drop(self, d: Local) -> None:
        with self._lock:
            if d in self._stack:
                self._stack = [x for x in self._stack if x is not d]
                self._apply()

    def _apply(self) -> None:
        top = self._stack[-1] if self._stack else None
        _api.use(top.client if top else None)
        value = top.socket if top else self._before
        if value is not None:
            os.environ[_VARIABLE] = value
        else:
            os.environ.pop(_VARIABLE, None)


_in_use = _InUse()
_all: weakref.WeakSet[Local] = weakref.WeakSet()


def _living() -> Iterator[Local]:
    return (d for d in list(_all) if not d.closed)


def _after_fork() -> None:
    for d in _living():
        d._after_fork()


os.register_at_fork(after_in_child=_after_fork)

"""The client of one node's daemon."""

from __future__ import annotations

import atexit
import builtins
import contextlib
import json
import os
import threading
import time
import weakref
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any

from . import _http, _load, _save
from ._errors import Error, Incomplete, Invalid, Unavailable
from ._kinds import dicts
from ._save import Handle
from ._session import Session
from ._sets import Set

MAX_IDLE = 16  # sessions kept for the next call
PATIENCE = 60.0  # seconds a wait without timeout bears a daemon that does not answer
SETTLE = 60.0  # seconds a load waits for the commit of what this client has just saved
_MAX_SAVED = 1024  # runs of which the last save is remembered
_ASK = 60.0  # seconds the daemon waits in one call, at most

_clients: weakref.WeakSet[Client] = weakref.WeakSet()


class Client:
    """A connection to the daemon on this node, to be used from any thread, and after a fork or spawn as well.

    `socket`: the daemon's socket; by default CKPTD_SOCKET, else the user's runtime directory, else /run/ckptd.
    Nothing is connected before it is needed.
    """

    def __init__(self, socket: str | os.PathLike[str] | None = None) -> None:
        self.socket = None if socket is None else os.fspath(socket)
        self._attempts: dict[tuple[str, str, int], int] = {}
        self._saved: dict[str, tuple[int, str]] = {}  # run -> step and set of the last save that no load has met
        self._reset()
        _clients.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()  # guards the two below
        self._idle: builtins.list[Session] = []
        self._open: weakref.WeakSet[Session] = weakref.WeakSet()

    def _after_fork(self) -> None:
        """In a forked child: the sessions are the parent's, and the lock may have been held."""
        for s in builtins.list(self._open):
            s.close()
        self._reset()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up the idle sessions. The client can be used again."""
        with self._lock:
            idle, self._idle = self._idle, []
        for s in idle:
            s.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"socket": self.socket}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["socket"])

    def __repr__(self) -> str:
        return f"<ckptd.Client {self.socket or 'default'}>"

    @property
    def paths(self) -> builtins.list[str]:
        """The sockets to try, in order."""
        return [self.socket] if self.socket is not None else _http.candidates()

    @contextlib.contextmanager
    def session(self) -> Generator[Session, None, None]:
        """Borrow a session; it goes back unless it broke."""
        s = self.borrow()
        try:
            yield s
        except Error:  # a refusal leaves the session as it was; anything worse has closed it
            self.give_back(s)
            raise
        except BaseException:
            s.close()
            raise
        self.give_back(s)

    def borrow(self) -> Session:
        """A session for one save or load; to be given back, or closed."""
        while True:
            with self._lock:
                s = self._idle.pop() if self._idle else None
            if s is None:
                s = Session(self.paths)
                with self._lock:
                    self._open.add(s)
                return s
            if not s.stale():
                return s
            s.close()

    def give_back(self, s: Session) -> None:
        """Keep a session for the next call."""
        if s.closed:
            return
        with self._lock:
            if len(self._idle) < MAX_IDLE:
                self._idle.append(s)
                return
        s.close()

    def _get(self, path: str, **query: Any) -> Any:
        return _http.call_json(self.paths, "GET", path, query=query)

    def _post(self, path: str, **body: Any) -> Any:
        return _http.call_json(self.paths, "POST", path, body=body)

    def attach(self, run: str, launch: str, world: int) -> int:
        """The attempt of this launch: the same number in all its ranks, asked for once."""
        key = (run, launch, world)
        if key not in self._attempts:
            self._attempts[key] = int(self._post("/v1/attach", run=run, launch=launch, world=world)["attempt"])
        return self._attempts[key]

    def saved(self, run: str, step: int, set_id: str) -> None:
        """Note a save that makes a set alone: it will be committed by itself, in a moment."""
        while len(self._saved) >= _MAX_SAVED:
            self._saved.pop(next(iter(self._saved)), None)
        self._saved[run] = step, set_id

    def settle(self, ref: str) -> None:
        """Before a load: what this client saved last, if that is what `ref` may mean, is waited for, so that a load
        after a save gives what was saved. Other processes' sets, and those of several ranks, are met as they are."""
        run, _, rest = ref.partition("@")
        last = self._saved.get(run)
        if last is None:
            return
        step, set_id = last
        if rest not in ("latest", "latest:local", str(step), f"{step}:local"):
            return
        self._saved.pop(run, None)
        with contextlib.suppress(Error):  # the load says it better
            self.wait(set_id, timeout=SETTLE)

    def save(
        self, run: str, *, step: int, state: Any, rank: int | None = None, world_size: int | None = None,
        launch: str | None = None, metrics: Mapping[str, float] | None = None, allow_pickle: bool = False,
        data: Any = None,
    ) -> Handle:  # fmt: skip
        """Save this rank's state as its shard of RUN@STEP; returns as soon as training may go on.

        state: any nesting of dicts, lists and tuples of numpy arrays, torch tensors, jax arrays, numbers, strings,
        bytes and None. It may be changed the moment this returns. Tensors that share memory are written once.
        rank, world_size, launch: found by themselves under torchrun, SLURM or torch.distributed; alone otherwise.
        data: a ckptd.data.Loader or Dataset; where the job is in its data is kept with the shard, for load(data=).
        metrics: numbers kept with the set, for `prune --keep-best`.

        Raises Invalid for what can never be saved, NoSpace, Exists, Fenced, Unavailable; then nothing is left behind.
        """
        return _save.save(
            self, run, step=step, state=state, rank=rank, world_size=world_size, launch=launch, metrics=metrics,
            allow_pickle=allow_pickle, data=data,
        )  # fmt: skip

    def load(
        self, ref: str, *, only: str | Iterable[str] | None = None, rank: int | str | None = None, device: Any = None,
        check: bool = True, copy: bool = False, allow_pickle: bool = False, data: Any = None,
    ) -> Any:  # fmt: skip
        """The state that was saved as REF (RUN@STEP, RUN@latest, RUN@latest:LEVEL), in the same structure.

        only: dotted names or globs ("model.*"); the rest is neither read nor returned (None within lists and tuples).
        rank: whose shard; "all" for a list of them. By default this process's own rank when it is one of as many
        as saved; otherwise the ranks' dicts are merged, which they must allow: disjoint, or pieces of one tensor.
        What this client has just saved alone (world size 1) is waited for until it is committed.
        data: a ckptd.data.Loader or Dataset of the same version, which goes on where the job was (see save).
        device: where torch tensors and jax arrays go. check=False trusts the bytes of a local file.
        copy: arrays get memory of their own; otherwise they lie in a private mapping of the shard, writable.

        Raises NotFound, Corrupt (no good copy is left), Invalid, Unavailable.
        """
        return _load.load(
            self, ref, only=only, rank=rank, device=device, check=check, copy=copy, allow_pickle=allow_pickle, data=data
        )

    def load_into(
        self, ref: str, state: Any, *, strict: bool = True, rank: int | None = None, check: bool = True,
        allow_pickle: bool = False,
    ) -> Any:  # fmt: skip
        """Load REF into the arrays and tensors that `state` holds, in place; numbers and strings in its dicts and
        lists are replaced. Nothing is changed unless everything fits. strict: both must name the same things.
        A ckptd.Piece in `state` is filled from the whole tensor, however that was cut when saved. Returns `state`."""
        return _load.load_into(self, ref, state, strict=strict, rank=rank, check=check, allow_pickle=allow_pickle)

    def tensor(
        self, ref: str, name: str, ranges: Sequence[tuple[int, int]] | None = None, *, rank: int | None = None,
        check: bool = True,
    ) -> Any:  # fmt: skip
        """One tensor by the name it has in its shard, as a numpy array. ranges: (start, stop) pairs of rows (of the
        first dimension); only their bytes are read, and they come back one after the other."""
        return _load.tensor(self, ref, name, ranges, rank=rank, check=check)

    def list(self, run: str, *, all: bool = False) -> builtins.list[Set]:
        """The sets of a run, newest first. all: those writing, aborted and pruned as well."""
        return [Set.of(s) for s in dicts(self._get("/v1/sets", run=run, all=all).get("sets"))]

    def runs(self) -> builtins.list[str]:
        """The names of all runs."""
        return [str(r["name"]) for r in dicts(self._get("/v1/runs").get("runs"))]

    def set(self, ref: str) -> Set:
        """One set."""
        return Set.of(self.detail(ref))

    def detail(self, ref: str, *, tensors: bool = False) -> dict[str, Any]:
        """A set with its shards, places and events, as `ckpt show --json`."""
        return self._get("/v1/set", ref=ref, tensors=tensors)

    def manifest(self, ref: str) -> dict[str, Any]:
        """The committed list of a set's shards and tensors."""
        raw, _ = _http.call(self.paths, "GET", "/v1/manifest", query={"ref": ref})
        return json.loads(raw)

    def wait(self, ref: str, level: str = "local", *, timeout: float | None = None) -> Set:
        """Wait until REF is at this level or safer; Incomplete (a TimeoutError) after `timeout` seconds.

        A daemon that restarts meanwhile is waited for.
        """
        _save._level(level)
        begun = time.monotonic()
        end = None if timeout is None else begun + timeout
        answered, pause = begun, 0.05
        while True:
            left = _ASK if end is None else end - time.monotonic()
            asked = time.monotonic()
            try:
                body = {"ref": ref, "level": level, "timeout": min(max(left, 0.0), _ASK)}
                return Set.of(_http.call_json(self.paths, "POST", "/v1/wait", body=body, timeout=2 * _ASK))
            except Incomplete:
                answered = time.monotonic()
                if end is not None and answered >= end:
                    raise
            except Unavailable:
                now = time.monotonic()
                if now >= (answered + PATIENCE if end is None else end):
                    raise
            if time.monotonic() - asked < 0.5:  # it did not wait: do not press it
                time.sleep(pause if end is None else max(0.0, min(pause, end - time.monotonic())))
                pause = min(2 * pause, 1.0)

    def tag(self, ref: str, tags: Mapping[str, str | None] | None = None, **more: str | None) -> Set:
        """Set tags of a set; None removes one."""
        both = {**(tags or {}), **more}
        if not both:
            raise Invalid("no tags given", 'tag(ref, {"stage": "final"}) or tag(ref, stage="final")')
        return Set.of(self._post("/v1/tag", ref=ref, tags={k: v if v is None else str(v) for k, v in both.items()}))

    def pin(self, ref: str, pinned: bool = True) -> Set:
        """Keep a set from being pruned, or stop to."""
        return Set.of(self._post("/v1/pin", ref=ref, pinned=pinned))

    def remove(self, ref: str) -> Set:
        """Remove a set: it is gone from lists at once, its bytes after a grace."""
        return Set.of(self._post("/v1/remove", ref=ref))

    def status(self) -> dict[str, Any]:
        """The node, its tiers and backlog, and `trouble`: anything wrong, empty when healthy."""
        return self._get("/v1/status")


def _after_fork() -> None:
    for c in builtins.list(_clients):
        c._after_fork()


def _at_exit() -> None:
    for c in builtins.list(_clients):
        c.close()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)

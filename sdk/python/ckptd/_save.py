"""Saving: state in, a handle out, and the stall between."""

from __future__ import annotations

import math
import operator
import os
import time
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import _header
from ._errors import Conflict, Error, Incomplete, Invalid, NotFound, Unavailable
from ._fill import Filler
from ._launch import launch as launch_name
from ._launch import rank_world
from ._sets import LEVELS, Set
from ._tree import Flat, flatten

if TYPE_CHECKING:
    from ._client import Client

MAX_WORKERS = 4
CURSOR = "ckptd.cursor"  # in a shard's metadata: where its job was in its data


class Handle:
    """A save whose bytes the daemon has: the trainer may go on, or die.

    set: RUN@STEP#ATTEMPT. stall: seconds the save call took. size: bytes of this rank's shard.
    """

    def __init__(self, client: Client, set_id: str, rank: int, size: int, stall: float) -> None:
        self._client = client
        self.set, self.rank, self.size, self.stall = set_id, rank, size, stall

    @property
    def level(self) -> str:
        """How safe the whole set is now: "staged" until every rank's shard is durable and the set committed."""
        try:
            s = self._client.set(self.set)
        except (NotFound, Incomplete):
            return "staged"
        if s.state == "aborted":
            raise Conflict(f"{self.set} was aborted: {s.reason or 'no reason given'}")
        return s.level if s.state == "committed" else "staged"

    def done(self, level: str = "local") -> bool:
        """Whether the set is at this level or safer."""
        return LEVELS.index(self.level) >= _level(level)

    def wait(self, level: str = "local", timeout: float | None = None) -> Set | None:
        """Wait until the set is at this level or safer; Incomplete (a TimeoutError) after `timeout` seconds.

        Gives the set, or None for "staged", which every handle is from the beginning.
        """
        if _level(level) <= LEVELS.index("staged"):
            return None
        return self._client.wait(self.set, level, timeout=timeout)

    def __repr__(self) -> str:
        return f"<ckptd.Handle {self.set} rank {self.rank}: {self.size} bytes in {self.stall:.3f} s>"


def cursor_of(data: Any) -> str:
    cursor = data.state_dict().get("cursor")
    if not isinstance(cursor, str):
        raise Invalid(
            f"data={type(data).__name__}: its state_dict has no cursor",
            "give a ckptd.data Loader or Dataset; the state_dict of another loader can be a part of state=",
        )
    return cursor


def _level(level: str) -> int:
    if level not in LEVELS:
        raise Invalid(f"level {level!r}: want one of {', '.join(LEVELS[1:])}")
    return LEVELS.index(level)


def save(
    client: Client, run: str, *, step: int, state: Any, rank: int | None, world_size: int | None,
    launch: str | None, metrics: Mapping[str, float] | None, allow_pickle: bool, data: Any = None,
) -> Handle:  # fmt: skip
    """See Client.save."""
    begun = time.perf_counter()
    rank, world = rank_world(rank, world_size)
    flat = flatten(state, allow_pickle=allow_pickle)
    if data is not None:
        flat.meta[CURSOR] = cursor_of(data)
    saving = Saving(client, run, step, flat, rank=rank, world=world, launch=launch, metrics=metrics)
    return saving.seal(begun)


class Saving:
    """One rank's shard whose every byte the daemon has been given, and which is not yet sealed.

    It is the set's only when seal() has returned; before that, hanging up (abort(), or the end of the process)
    leaves nothing of it.
    """

    def __init__(
        self, client: Client, run: str, step: int, flat: Flat, *, rank: int, world: int, launch: str | None,
        metrics: Mapping[str, float] | None,
    ) -> None:  # fmt: skip
        self._client, self.rank, self._alone = client, rank, world == 1
        self._run, self._step = run, operator.index(step)
        head, header = _header.build(flat.tensors, flat.meta)
        self.size = header.size
        attempt = client.attach(run, launch_name(launch, world), world)
        request = {
            "t": "save", "run": run, "step": self._step, "attempt": attempt, "rank": rank, "world": world,
            "size": header.size, "metrics": _metrics(metrics),
        }  # fmt: skip
        s = self._session = client.borrow()
        try:
            if len(head) > s.max_header:
                raise Invalid(f"the header of this shard is {len(head)} bytes; the daemon takes {s.max_header}")
            s.early.clear()
            self.set = str(s.ask(request, "admitted", head).msg.get("set", f"{run}@{self._step}#{attempt}"))
        except Error:  # a refusal leaves the session as it was; anything worse has closed it
            client.give_back(s)
            raise
        except BaseException:
            s.close()
            raise
        try:
            offsets = [e.offset for e in header.entries.values()]
            workers = min(MAX_WORKERS, len(os.sched_getaffinity(0)))
            Filler(s, flat.sources, offsets, header.size, workers=workers).run()
        except BaseException:
            s.close()
            raise

    def seal(self, begun: float | None = None) -> Handle:
        """Have the daemon keep it. begun: when the call that this ends was begun, by time.perf_counter."""
        begun = time.perf_counter() if begun is None else begun
        s = self._session
        if s.closed:
            raise Unavailable(f"{self.set} rank {self.rank}: its session is gone", "save it again")
        try:
            s.seal()
        except BaseException:
            s.close()
            raise
        self._client.give_back(s)
        if self._alone:
            self._client.saved(self._run, self._step, self.set)
        return Handle(self._client, self.set, self.rank, self.size, time.perf_counter() - begun)

    def abort(self) -> None:
        """Leave nothing of it. Not after seal()."""
        self._session.close()


def _metrics(metrics: Mapping[str, float] | None) -> dict[str, float]:
    out = {str(k): float(v) for k, v in (metrics or {}).items()}
    lost = [k for k, v in out.items() if not math.isfinite(v)]
    if lost:  # a diverged loss must not cost the checkpoint as well
        warnings.warn(f"metrics that are no finite numbers are not recorded: {', '.join(lost)}", stacklevel=4)
    return {k: v for k, v in out.items() if k not in lost}

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
from ._errors import Conflict, Incomplete, Invalid, NotFound
from ._fill import Filler
from ._launch import launch as launch_name
from ._launch import rank_world
from ._sets import LEVELS, Set
from ._tree import flatten

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


def _cursor(data: Any) -> str:
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
    step = operator.index(step)
    flat = flatten(state, allow_pickle=allow_pickle)
    if data is not None:
        flat.meta[CURSOR] = _cursor(data)
    head, header = _header.build(flat.tensors, flat.meta)
    attempt = client.attach(run, launch_name(launch, world), world)
    request = {
        "t": "save", "run": run, "step": step, "attempt": attempt, "rank": rank, "world": world,
        "size": header.size, "metrics": _metrics(metrics),
    }  # fmt: skip
    with client.session() as s:
        if len(head) > s.max_header:
            raise Invalid(f"the header of this shard is {len(head)} bytes; the daemon takes {s.max_header}")
        s.early.clear()
        set_id = str(s.ask(request, "admitted", head).msg.get("set", f"{run}@{step}#{attempt}"))
        offsets = [e.offset for e in header.entries.values()]
        workers = min(MAX_WORKERS, len(os.sched_getaffinity(0)))
        Filler(s, flat.sources, offsets, header.size, workers=workers).run()
        s.seal()
    if world == 1:
        client.saved(run, step, set_id)
    return Handle(client, set_id, rank, header.size, time.perf_counter() - begun)


def _metrics(metrics: Mapping[str, float] | None) -> dict[str, float]:
    out = {str(k): float(v) for k, v in (metrics or {}).items()}
    lost = [k for k, v in out.items() if not math.isfinite(v)]
    if lost:  # a diverged loss must not cost the checkpoint as well
        warnings.warn(f"metrics that are no finite numbers are not recorded: {', '.join(lost)}", stacklevel=4)
    return {k: v for k, v in out.items() if k not in lost}

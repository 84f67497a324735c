"""The module's functions: the methods of a default client, which finds the daemon by itself."""

from __future__ import annotations

import builtins
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ._client import Client
from ._save import Handle
from ._sets import Set

_own = Client()
_default = _own


def default() -> Client:
    """The client of the functions below."""
    return _default


def use(client: Client | None) -> None:
    """Make this the client of the functions below; None: the one that finds the daemon by itself."""
    global _default
    _default = client or _own


def connect(socket: str | os.PathLike[str] | None = None) -> Client:
    """A client of the daemon at `socket`, to be used as a context manager."""
    return Client(socket)


def save(
    run: str, *, step: int, state: Any, rank: int | None = None, world_size: int | None = None,
    launch: str | None = None, metrics: Mapping[str, float] | None = None, allow_pickle: bool = False,
    data: Any = None, client: Client | None = None,
) -> Handle:  # fmt: skip
    return (client or _default).save(
        run, step=step, state=state, rank=rank, world_size=world_size, launch=launch, metrics=metrics,
        allow_pickle=allow_pickle, data=data,
    )  # fmt: skip


def load(
    ref: str, *, only: str | Iterable[str] | None = None, rank: int | str | None = None, device: Any = None,
    check: bool = True, copy: bool = False, allow_pickle: bool = False, data: Any = None,
    client: Client | None = None,
) -> Any:  # fmt: skip
    return (client or _default).load(
        ref, only=only, rank=rank, device=device, check=check, copy=copy, allow_pickle=allow_pickle, data=data
    )


def load_into(
    ref: str, state: Any, *, strict: bool = True, rank: int | None = None, check: bool = True,
    allow_pickle: bool = False, client: Client | None = None,
) -> Any:  # fmt: skip
    return (client or _default).load_into(
        ref, state, strict=strict, rank=rank, check=check, allow_pickle=allow_pickle
    )  # fmt: skip


def tensor(
    ref: str, name: str, ranges: Sequence[tuple[int, int]] | None = None, *, rank: int | None = None,
    check: bool = True, client: Client | None = None,
) -> Any:  # fmt: skip
    return (client or _default).tensor(ref, name, ranges, rank=rank, check=check)


def list(run: str, *, all: bool = False, client: Client | None = None) -> builtins.list[Set]:
    return (client or _default).list(run, all=all)


def manifest(ref: str, *, client: Client | None = None) -> dict[str, Any]:
    return (client or _default).manifest(ref)


def wait(ref: str, level: str = "local", *, timeout: float | None = None, client: Client | None = None) -> Set:
    return (client or _default).wait(ref, level, timeout=timeout)


def tag(
    ref: str, tags: Mapping[str, str | None] | None = None, *, client: Client | None = None, **more: str | None
) -> Set:
    return (client or _default).tag(ref, tags, **more)


def pin(ref: str, pinned: bool = True, *, client: Client | None = None) -> Set:
    return (client or _default).pin(ref, pinned)


for _f in (save, load, load_into, tensor, list, manifest, wait, tag, pin):
    _f.__doc__ = getattr(Client, _f.__name__).__doc__

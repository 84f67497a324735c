"""The same for asyncio: each call waits in a thread of its own, so the loop goes on."""

from __future__ import annotations

import asyncio
from typing import Any

from . import _api
from ._save import Handle
from ._sets import Set


async def asave(run: str, **kw: Any) -> Handle:
    """ckptd.save, awaited. The state must not change until this returns."""
    return await asyncio.to_thread(_api.save, run, **kw)


async def aload(ref: str, **kw: Any) -> Any:
    """ckptd.load, awaited."""
    return await asyncio.to_thread(_api.load, ref, **kw)


async def aload_into(ref: str, state: Any, **kw: Any) -> Any:
    """ckptd.load_into, awaited."""
    return await asyncio.to_thread(_api.load_into, ref, state, **kw)


async def atensor(ref: str, name: str, **kw: Any) -> Any:
    """ckptd.tensor, awaited."""
    return await asyncio.to_thread(_api.tensor, ref, name, **kw)


async def await_level(ref: str, level: str = "local", **kw: Any) -> Set:
    """ckptd.wait, awaited."""
    return await asyncio.to_thread(_api.wait, ref, level, **kw)


async def alist(run: str, **kw: Any) -> list[Set]:
    """ckptd.list, awaited."""
    return await asyncio.to_thread(_api.list, run, **kw)

"""Checkpoints of large training jobs, saved in the time of a memory copy.

    import ckptd

    h = ckptd.save("llama/7b-sft", step=1200, state={"model": model.state_dict(), "epoch": 3}, metrics={"loss": 1.9})
    h.wait("remote", timeout=600)
    state = ckptd.load("llama/7b-sft@latest")

1. When save returns, the bytes are the daemon's: the state may change and the process may die.
2. A set is loadable only when every rank's shard of it is durable; nobody sees half of one.
3. load returns no byte that failed its checksum, unless told check=False.
4. No pickle is written or read unless allow_pickle=True; everything else that is read is only data.

`with ckptd.local():` starts a private daemon, for tests and notebooks.
Errors are ckptd.NotFound, Corrupt, NoSpace, Fenced, Conflict …, each also the builtin it means.
For asyncio the same functions are asave, aload, aload_into, atensor, alist and await_level.
"""

from ._api import connect, list, load, load_into, manifest, pin, save, tag, tensor, wait
from ._client import Client
from ._errors import (
    Conflict,
    Corrupt,
    Error,
    Exists,
    Fenced,
    Incomplete,
    Internal,
    Invalid,
    NoSpace,
    NotFound,
    Unauthorized,
    Unavailable,
)
from ._local import Local, local
from ._save import Handle
from ._sets import LEVELS, Set
from ._tree import Piece
from .aio import alist, aload, aload_into, asave, atensor, await_level

__version__ = "0.1.0"

__all__ = [
    "LEVELS",
    "Client",
    "Conflict",
    "Corrupt",
    "Error",
    "Exists",
    "Fenced",
    "Handle",
    "Incomplete",
    "Internal",
    "Invalid",
    "Local",
    "NoSpace",
    "NotFound",
    "Piece",
    "Set",
    "Unauthorized",
    "Unavailable",
    "alist",
    "aload",
    "aload_into",
    "asave",
    "atensor",
    "await_level",
    "connect",
    "list",
    "load",
    "load_into",
    "local",
    "manifest",
    "pin",
    "save",
    "tag",
    "tensor",
    "wait",
]

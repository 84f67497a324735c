"""Shards as the files they are: ranges of any of them, and files of any kind saved as a set."""

from __future__ import annotations

import mmap
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ._errors import Corrupt, Error, Invalid, Unavailable
from ._fill import Filler
from ._session import Frame, Message, Session
from ._tensors import Source

if TYPE_CHECKING:
    from ._client import Client

MAX_READ = 32 << 20  # bytes of one request
COMMIT_SECONDS = 600.0  # for a set whose every byte is the daemon's to be committed


def read_shard(client: Client, set_id: str, rank: int, start: int, stop: int) -> bytes:
    """Bytes start to stop of a shard, wherever it is; checked by the daemon."""
    out = bytearray()
    while start + len(out) < stop:
        at = start + len(out)
        out += _part(client, set_id, rank, at, min(stop - at, MAX_READ))
    return bytes(out)


def _part(client: Client, set_id: str, rank: int, at: int, n: int) -> bytes:
    memory = os.memfd_create(f"ckptd {set_id} {rank}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(memory, n)
        request: Message = {"t": "load", "set": set_id, "rank": rank, "ranges": [[at, n]], "off": at}
        try:
            frame = _ask(client, request, memory)
        except Unavailable:  # the daemon restarted under an idle session
            frame = _ask(client, request, memory)
        try:
            raw = os.pread(frame.fds[0], n, at) if frame.fds else os.pread(memory, n, 0)
        finally:
            frame.close()
    finally:
        os.close(memory)
    if len(raw) != n:
        raise Corrupt(f"{set_id} rank {rank}: {len(raw)} bytes at {at}, want {n}")
    return raw


def _ask(client: Client, request: Message, memory: int) -> Frame:
    with client.session() as s:
        return s.ask(request, "loaded", fds=[memory])


@dataclass(frozen=True)
class Upload:
    """A file to be saved as a raw shard, under `name`."""

    name: str
    path: str


def save_files(client: Client, run: str, step: int, files: Sequence[Upload]) -> str:
    """Save files as RUN@STEP, one raw shard each; returns the set's id when it is committed.

    A step that has a set already gets a new attempt, which is what is read from then on.
    """
    sizes = [os.path.getsize(f.path) for f in files]
    for f, size in zip(files, sizes, strict=True):
        if size == 0:
            raise Invalid(f"{f.name} is empty, and a shard has a byte at least", "leave it out")
    names = [f.name for f in files]
    if len(set(names)) < len(names):
        raise Invalid(f"{run}@{step} would have two files of the name {max(names, key=names.count)!r}")
    attempt = client.attach(run, f"files-{uuid.uuid4().hex}", len(files))
    set_id = f"{run}@{step}#{attempt}"
    for rank, (f, size) in enumerate(zip(files, sizes, strict=True)):
        request: Message = {
            "t": "save", "run": run, "step": step, "attempt": attempt, "rank": rank, "world": len(files),
            "size": size, "metrics": {}, "raw": True, "file": f.name,
        }  # fmt: skip
        s = client.borrow()
        try:
            s.early.clear()
            s.ask(request, "admitted")
            _fill(s, f.path, size)
            s.seal()
        except Error:
            client.give_back(s)
            raise
        except BaseException:
            s.close()
            raise
        client.give_back(s)
    client.wait(set_id, timeout=COMMIT_SECONDS)
    return set_id


def _fill(s: Session, path: str, size: int) -> None:
    with open(path, "rb") as f:
        raw = np.frombuffer(mmap.mmap(f.fileno(), size, access=mmap.ACCESS_READ), np.uint8)
    try:
        Filler(s, [Source("file", "bytes", "U8", raw.shape, raw)], [0], size).run()
    except BaseException:
        s.close()  # what was half copied must not be sealed
        raise

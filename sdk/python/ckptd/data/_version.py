"""One version of a data set in this process: its index and the packs it maps, by a connection of its own."""

from __future__ import annotations

import mmap
import os
import threading
import time
import uuid
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._errors import Corrupt, Error, Unavailable
from .._order import Cursor
from .._session import Frame, Session
from .._shard import merge
from .._tensors import Bytes
from ..monitor import record
from ._index import EMPTY, Field, Index

if TYPE_CHECKING:
    from .._client import Client

MAX_MAPPED = 64  # packs; arrays that are still in use keep theirs beyond that
MAX_MISSING = 256 << 20  # bytes of one request where a pack is not whole on this node
_NOTHING = np.empty(0, np.uint8)


class Version:
    """A version, held by the connection's lease so that nothing of it goes away."""

    def __init__(self, client: Client, ref: str) -> None:
        self.client = client
        self._lock = threading.RLock()
        self._session: Session | None = None
        self._packs: OrderedDict[int, Bytes] = OrderedDict()  # the least recently used first
        self._warned = False
        self._reader = uuid.uuid4().hex[:16]  # this reader among others, also after the daemon's restart
        frame = self._open(ref)
        try:
            self.set = str(frame.msg["set"])
            self.ref = _ref(frame.msg)
            self.index = Index.of(frame.fds[0])
        except (KeyError, IndexError, ValueError, TypeError) as e:
            raise Corrupt(f"{ref}: the daemon answered with no index ({e!r})") from e
        finally:
            frame.close()
        os.register_at_fork(after_in_child=_Child(self))

    def _open(self, ref: str) -> Frame:
        self._session = Session(self.client.paths)
        return self._session.ask({"t": "dataset", "ref": ref}, "dataset")

    def close(self) -> None:
        """Hang up; mapped packs stay as long as arrays of them are in use."""
        with self._lock:
            if self._session is not None:
                self._session.close()
            self._session = None
            self._packs.clear()

    def forked(self) -> None:
        """In a forked child: the connection is the parent's, and the lock may have been held. Mappings stay good."""
        self._lock = threading.RLock()
        if self._session is not None:
            self._session.close()
            self._session = None

    def ask(self, msg: dict[str, Any], answer: str, fds: Sequence[int] = ()) -> Frame:
        """A request on this version's connection, which is opened anew after a fork or a restart of the daemon."""
        with self._lock:
            for last in (False, True):
                try:
                    if self._session is None or self._session.closed:
                        self._open(self.ref).close()
                    assert self._session is not None
                    return self._session.ask(msg, answer, fds=fds)
                except Unavailable:
                    if last:
                        raise
                    self._session = None
        raise AssertionError("unreachable")

    def read(self, fields: Sequence[Field]) -> list[Bytes]:
        """The bytes of these fields, read-only, in memory that is shared with the node's copy where it has one."""
        out: list[Bytes] = [_NOTHING] * len(fields)
        by_pack: dict[int, list[int]] = {}
        for i, f in enumerate(fields):
            if f.pack != EMPTY and f.size:
                by_pack.setdefault(f.pack, []).append(i)
        for pack, wanted in by_pack.items():
            begun = time.perf_counter()
            size = sum(fields[i].size for i in wanted)
            mapped = self.pack(pack)
            if mapped is not None:
                for i in wanted:
                    out[i] = mapped[fields[i].offset : fields[i].offset + fields[i].size]
                record("local", size, time.perf_counter() - begun)
                continue
            wanted.sort(key=lambda i: fields[i].offset)
            while wanted:  # a stretch of the pack at a time, so that what is missing is bounded too
                low, n = fields[wanted[0]].offset, 1
                while n < len(wanted) and fields[wanted[n]].offset + fields[wanted[n]].size - low <= MAX_MISSING:
                    n += 1
                part, wanted = wanted[:n], wanted[n:]
                begun = time.perf_counter()
                memory, base, source = self._missing(pack, [fields[i] for i in part])
                for i in part:
                    out[i] = memory[fields[i].offset - base : fields[i].offset - base + fields[i].size]
                record(source, sum(fields[i].size for i in part), time.perf_counter() - begun)
        return out

    def tell(self, cursor: Cursor, rank: int, world: int) -> None:
        """Say where a reader of this version is, so that the daemon fetches what comes next. It is advice: a daemon
        that does not take it serves reads all the same, so a refusal is a warning, once."""
        order = {
            "mode": "window" if cursor.mode.slice else "global", "seed": str(cursor.seed), "epoch": str(cursor.epoch),
            "slice": cursor.mode.slice, "group": cursor.mode.group,
        }  # fmt: skip
        msg = {
            "t": "reader", "set": self.set, "id": self._reader, "order": order, "rank": rank, "world": world,
            "at": cursor.at,
        }  # fmt: skip
        try:
            self.ask(msg, "reader").close()
        except Unavailable:
            pass  # reads that need the daemon say so
        except Error as e:
            if not self._warned:
                self._warned = True
                warnings.warn(f"{self.ref}: nothing is fetched ahead for this reader: {e}", RuntimeWarning, 2)

    def pack(self, number: int) -> Bytes | None:
        """The whole pack, mapped, when it is whole on this node."""
        with self._lock:
            mapped = self._packs.get(number)
            if mapped is not None:
                self._packs.move_to_end(number)
                return mapped
            frame = self.ask({"t": "pack", "set": self.set, "pack": number}, "pack")
            try:
                if not frame.msg.get("complete") or not frame.fds:
                    return None
                size = self.index.pack_size(number)
                if os.fstat(frame.fds[0]).st_size != size:
                    raise Corrupt(f"pack {number} of {self.ref} is a file of another size than {size} bytes")
                mapped = np.frombuffer(mmap.mmap(frame.fds[0], size, prot=mmap.PROT_READ), np.uint8)
            finally:
                frame.close()
            self._packs[number] = mapped
            while len(self._packs) > MAX_MAPPED:
                self._packs.popitem(last=False)
            return mapped

    def _missing(self, number: int, fields: Sequence[Field]) -> tuple[Bytes, int, str]:
        """Ranges of a pack that is not whole here: memory, the pack's offset of its first byte, where it came from."""
        low = fields[0].offset
        high = max(f.offset + f.size for f in fields)
        fd = os.memfd_create("ckptd pack", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(fd, high - low)  # sparse between the ranges
            ranges = merge([(f.offset, f.size) for f in fields], gap=1 << 16)
            request = {"t": "load", "set": self.index.pack(number).set, "rank": 0, "ranges": ranges, "off": low}
            frame = self.ask(request, "loaded", fds=[fd])
            try:
                source = str(frame.msg.get("from", "remote"))
                if not frame.fds:
                    return _frozen(mmap.mmap(fd, high - low)), low, source
                size = self.index.pack_size(number)
                if os.fstat(frame.fds[0]).st_size < size:
                    raise Corrupt(f"pack {number} of {self.ref} is a file of less than {size} bytes")
                whole = np.frombuffer(mmap.mmap(frame.fds[0], size, prot=mmap.PROT_READ), np.uint8)
                return whole[low:high], low, source
            finally:
                frame.close()
        finally:
            os.close(fd)


class _Child:
    """Tells a version of a fork, as long as there is one."""

    def __init__(self, version: Version) -> None:
        self._version = weakref.ref(version)

    def __call__(self) -> None:
        v = self._version()
        if v is not None:
            v.forked()


def _frozen(m: mmap.mmap) -> Bytes:
    a = np.frombuffer(m, np.uint8)
    a.flags.writeable = False
    return a


def _ref(msg: dict[str, Any]) -> str:
    """NAME@VERSION of the set _datasets/NAME@VERSION#ATTEMPT."""
    name = str(msg["set"]).split("@")[0].removeprefix("_datasets/")
    return f"{name}@{int(msg['version'])}"

"""The bytes of a set's shards in this process: mapped where the shard is on this node, else filled in by the daemon."""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _header
from ._errors import Corrupt, Incomplete, Invalid, NotFound, Unavailable
from ._header import Entry, Header
from ._kinds import dicts, is_dict
from ._session import Session
from ._tensors import Bytes
from ._tree import STATE, VERSION
from ._untree import Memory, Only, flat_tree, restore, tree_of

if TYPE_CHECKING:
    from ._client import Client

LEASE_SECONDS = 3600  # the lease ends with the load; this is for a process that is stopped in the middle
HEAD = 1 << 20  # bytes read first where only a part is wanted; most headers are shorter
WHOLE = 4 << 20  # bytes; a shard up to this size is always read whole
GAP = 1 << 20  # bytes; ranges closer together than this are read as one (the unit of checksums)
MAX_RANGES = 4096  # of one request

Range = tuple[int, int]  # offset and length


class Checkpoint:
    """A committed set, held by a lease so that nothing of it goes away while it is read."""

    def __init__(self, client: Client, ref: str, *, check: bool) -> None:
        self.client, self.ref, self.check = client, ref, check
        self._lease: Session | None = None

    def __enter__(self) -> Checkpoint:
        self.client.settle(self.ref)
        for last in (False, False, True):
            self.detail = self.client.detail(self.ref)
            self.id, self.world = str(self.detail["id"]), int(self.detail["world"])
            state = self.detail.get("state")
            if state != "committed":
                cls = Incomplete if state == "writing" else NotFound
                raise cls(f"{self.id} is {state}, not committed", f"ckpt why {self.ref}")
            self._lease = Session(self.client.paths)
            try:
                self._lease.ask({"t": "lease", "set": self.id, "seconds": LEASE_SECONDS}, "leased")
                return self
            except NotFound:  # pruned between the two questions: "latest" may mean another one now
                self._lease.close()
                if last:
                    raise
            except BaseException:
                self._lease.close()
                raise
        raise AssertionError("unreachable")

    def __exit__(self, *exc: object) -> None:
        if self._lease is not None:
            self._lease.close()

    def size(self, rank: int) -> int:
        """Bytes of a rank's shard."""
        for s in dicts(self.detail.get("shards")):
            if s["rank"] == rank and s.get("size"):
                return int(s["size"])
        return int(self.client.manifest(self.id)["shards"][rank]["size"])

    def must_have_header(self, rank: int) -> None:
        """Refuses a raw shard before any byte of it is read: it is a file of any kind, without tensors."""
        for s in dicts(self.detail.get("shards")):
            if s["rank"] == rank and s.get("raw"):
                raise Invalid(
                    f"{self.ref} rank {rank} is the file {s.get('file', '')!r}, not tensors: there is nothing to load",
                    f"ckpt restore {self.ref} DEST writes its files",
                )

    def shard(self, rank: int) -> Shard:
        """One rank's shard."""
        if not 0 <= rank < self.world:
            raise NotFound(f"{self.ref} was saved by {self.world} ranks; there is no rank {rank}")
        self.must_have_header(rank)
        return Shard(self, rank)


class Shard:
    """One rank's shard, read as far as it was asked for."""

    def __init__(self, ck: Checkpoint, rank: int, header: Header | None = None) -> None:
        """header: what the manifest says of it, so that it need not be read."""
        self._ck, self.rank, self.size = ck, rank, ck.size(rank) if header is None else header.size
        self.data: Bytes = np.empty(0, np.uint8)
        self._local = False
        self._memfd = -1
        self._have_all = False
        self._header = header

    def __enter__(self) -> Shard:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it. What was handed out stays."""
        if self._memfd >= 0:
            os.close(self._memfd)  # the mapping stays
            self._memfd = -1

    def header(self) -> Header:
        """The shard's header; reads it when nothing was read yet."""
        if self._header is None:
            if not self._have_all:
                n = min(self.size, HEAD)
                self.fetch([(0, n)] if self.size > WHOLE else None)
                n = _header.length(memoryview(self.data[:8]), self.size)
                if n > HEAD and not self._have_all:
                    self.fetch([(0, n)])
            n = _header.length(memoryview(self.data[:8]), self.size)
            self._header = _header.parse(memoryview(self.data[:n]), self.size)
        if self._header.meta.get(VERSION, "1") != "1":
            raise Corrupt(f"shard of version {self._header.meta[VERSION]!r}: it was written by a newer ckptd")
        return self._header

    def fetch(self, ranges: list[Range] | None) -> None:
        """Have these ranges in `data`; None for all of them."""
        if self._have_all or ranges == []:
            return
        whole = ranges is None or sum(n for _, n in ranges) >= self.size
        request: dict[str, Any] = {"t": "load", "set": self._ck.id, "rank": self.rank, "no_check": not self._ck.check}
        if not whole:
            request["ranges"] = merge(ranges or [])
        for last in (False, True):
            try:
                with self._ck.client.session() as s:
                    self._ask(s, request)
                break
            except Unavailable:  # the daemon restarted under an idle session
                if last:
                    raise
        self._have_all = whole

    def _ask(self, s: Session, request: dict[str, Any]) -> None:
        if self._memfd < 0:
            self._memfd = os.memfd_create(f"ckptd {self._ck.id} {self.rank}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self._memfd, self.size)  # sparse: costs nothing until the daemon fills it
        frame = s.ask(request, "loaded", fds=[self._memfd])
        try:
            if frame.fds:
                if not self._local:
                    self.data = _map(frame.fds[0], self.size, mmap.MAP_PRIVATE)
                self._local = True
            elif self._local or not self.data.size:
                self.data = _map(self._memfd, self.size, mmap.MAP_SHARED)
                self._local = False
        finally:
            frame.close()

    def state(self, *, only: Only | None, copy: bool, device: Any, allow_pickle: bool) -> Any:
        """The state in this shard, or LEFT_OUT when `only` wants nothing of it."""
        if only is None:
            self.fetch(None)
        tree = self.tree()
        if only is not None:
            wanted: dict[str, Entry] = {}
            memory = Memory(self.data, self.header(), copy=False, device=None, allow_pickle=False)
            restore(tree, lambda leaf: wanted.update({leaf["$tensor"]: memory.entry(leaf["$tensor"])}), only)
            self.fetch([(e.offset, e.size) for e in wanted.values() if e.size])
        memory = Memory(self.data, self.header(), copy=copy, device=device, allow_pickle=allow_pickle)
        return restore(tree, memory.tensor, only)

    def tree(self) -> Any:
        """The tree of the state in this shard; a plain safetensors file is a dict of its tensors."""
        header = self.header()
        tree = tree_of(header)
        if STATE not in header.meta:
            return flat_tree(header)
        if is_dict(tree) and "$json" in tree:
            e = header.entries.get(str(tree["$json"]))
            if e is None:
                raise Corrupt(f"{STATE} is said to be in a tensor that the shard does not have")
            self.fetch([(e.offset, e.size)])
            tree = tree_of(header, self.data[e.offset : e.offset + e.size].tobytes())
        return tree


def merge(ranges: Iterable[Range], gap: int = GAP, limit: int = MAX_RANGES) -> list[list[int]]:
    """The fewest ranges that cover these and read no more than `gap` in vain between two; at most `limit`."""
    ordered = sorted(ranges)
    while True:
        out: list[list[int]] = []
        for lo, n in ordered:
            if out and lo <= out[-1][0] + out[-1][1] + gap:
                out[-1][1] = max(out[-1][1], lo + n - out[-1][0])
            else:
                out.append([lo, n])
        if len(out) <= limit:
            return out
        gap *= 2


def _map(fd: int, size: int, flags: int) -> Bytes:
    """Map a shard, writable: a private mapping copies a page when it is written, so the file never changes."""
    if os.fstat(fd).st_size < size:
        raise Corrupt(f"the shard's file has {os.fstat(fd).st_size} bytes, its record says {size}")
    more: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}
    return np.frombuffer(mmap.mmap(fd, size, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE, **more), np.uint8)

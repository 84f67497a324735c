"""The tensors of a set by name, and parts of them, whichever ranks hold them.

The set's manifest says which rank's shard has which box of which tensor, so what
a rank needs is planned before a byte of tensors is read, and only that is read:
the plan is pure (choose), the reading is one request a shard (Parts.read).
"""

from __future__ import annotations

import bisect
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from . import _boxes
from ._boxes import Box
from ._each import each
from ._errors import Corrupt, Invalid
from ._header import BITS, Entry, Header, count
from ._kinds import dicts
from ._shard import GAP, Checkpoint, Shard
from ._tree import Piece
from ._untree import Memory, restore


@dataclass(frozen=True, eq=False)
class Stored:
    """One box of a tensor as one rank's shard holds it."""

    rank: int
    entry: Entry
    leaf: dict[str, Any]  # of the tree: see _tree._leaf
    box: Box
    shape: tuple[int, ...]  # of the whole tensor
    dtype: str  # by its safetensors name, or the note of one that has none there

    @property
    def whole(self) -> bool:
        return self.box.shape == self.shape

    def needs(self, part: Box) -> list[tuple[int, int]]:
        """The bytes of its shard that `part` of it needs."""
        if not self.entry.size:
            return []
        bits = BITS[self.entry.dtype]
        plain = "view" not in self.leaf and "shape" not in self.leaf and bits % 8 == 0
        if not plain:
            return [(self.entry.offset, self.entry.size)]
        found = _boxes.ranges(part, self.box, bits // 8, GAP)
        return [(self.entry.offset + lo, n) for lo, n in found]


def stored(rank: int, header: Header, leaf: dict[str, Any]) -> Stored:
    """What a leaf of a shard's tree stands for."""
    name = leaf.get("$tensor")
    entry = header.entries.get(name) if isinstance(name, str) else None
    if entry is None:
        raise Corrupt(f"the state of rank {rank} names tensor {str(name)[:80]!r}, the shard has none such")
    try:
        view = leaf.get("view")
        shape = tuple(int(n) for n in (view["shape"] if view else leaf.get("shape", entry.shape)))
        dtype = str(leaf.get("dtype") or (view["dtype"] if view else entry.dtype))
        if entry.dtype == "F4" and "shape" not in leaf and shape:
            shape = (*shape[:-1], shape[-1] // 2)
        start = tuple(0 for _ in shape)
        whole = shape
        if "piece" in leaf:
            start = tuple(int(n) for n in leaf["piece"]["start"])
            whole = tuple(int(n) for n in leaf["piece"]["global"])
    except (TypeError, ValueError, KeyError) as e:
        raise Corrupt(f"rank {rank}: the state says nonsense of tensor {name!r}: {e}") from None
    inside = len(start) == len(shape) == len(whole) and all(
        a >= 0 and n >= 0 and a + n <= g for a, n, g in zip(start, shape, whole, strict=True)
    )
    if not inside:
        raise Corrupt(f"rank {rank}: a piece of {name!r} of shape {list(shape)} at {list(start)} not in {list(whole)}")
    return Stored(rank, entry, leaf, Box(start, shape), whole, dtype)


def choose(want: Box, held: Sequence[Stored], name: str, me: int = 0) -> list[tuple[Stored, Box]]:
    """Who gives which part of `want`, no element twice. Where several ranks hold the same, rank `me` is asked first,
    and others spread by their numbers, so that many readers do not all ask one shard."""
    near = [s for s in held if s.rank == me]
    others = _window(want, [s for s in held if s.rank != me])
    turn = (zlib.crc32(name.encode()) + me) % len(others) if others else 0
    out: list[tuple[Stored, Box]] = []
    left = [want] if want.size else []
    for s in (*near, *others[turn:], *others[:turn]):
        if not left:
            break
        rest: list[Box] = []
        for box in left:
            both = box.overlap(s.box)
            if both is None:
                rest.append(box)
                continue
            out.append((s, both))
            rest.extend(_boxes.minus(box, both))
        left = rest
    if left:
        missing = sum(b.size for b in left)
        raise Invalid(f"{name}: {missing} of {want.size} elements of the part asked for are in no rank's shard")
    return out


def _window(want: Box, held: list[Stored]) -> list[Stored]:
    """Those that can meet `want`, found without looking at all of many."""
    if len(held) < 16 or not want.shape:
        return held
    spread = [len({s.box.start[d] for s in held}) for d in range(len(want.shape))]
    d = spread.index(max(spread))
    held = sorted(held, key=lambda s: s.box.start[d])
    longest = max(s.box.shape[d] for s in held)
    lo = bisect.bisect_right(held, want.start[d] - longest, key=lambda s: s.box.start[d])
    hi = bisect.bisect_left(held, want.start[d] + want.shape[d], key=lambda s: s.box.start[d])
    return held[lo:hi]


class Parts:
    """The shards of an open checkpoint as the tensors they make up."""

    def __init__(self, ck: Checkpoint) -> None:
        self._ck = ck
        self._shards: dict[int, Shard] = {}
        for s in ck.client.manifest(ck.id)["shards"]:
            rank = int(s["rank"])
            ck.must_have_header(rank)
            entries = {
                t["name"]: Entry(t["name"], t["dtype"], tuple(t["shape"]), int(t["offset"]), int(t["size"]))
                for t in dicts(s.get("tensors"))
            }
            header = Header(int(s["header"]), int(s["size"]), entries, dict(s.get("meta") or {}))
            self._shards[rank] = Shard(ck, rank, header)
        self.ranks = sorted(self._shards)

    def close(self) -> None:
        """Let go of what was read. Arrays that were handed out stay."""
        for s in self._shards.values():
            s.close()

    def trees(self) -> list[Any]:
        """Each rank's state with a Stored in the place of each tensor, by rank."""
        return each(self.ranks, self._tree)

    def _tree(self, rank: int) -> Any:
        shard = self._shards[rank]
        header = shard.header()
        made: dict[int, Stored] = {}

        def leaf(x: dict[str, Any]) -> Stored:
            if id(x) not in made:
                made[id(x)] = stored(rank, header, x)
            return made[id(x)]

        return restore(shard.tree(), leaf)

    def value(self, rank: int, path: str, allow_pickle: bool) -> Any:
        """The state under a dotted path as it was saved."""
        shard = self._shards[rank]
        return shard.state(only=lambda p: p == path, copy=True, device=None, allow_pickle=allow_pickle)

    def read(
        self, wanted: Sequence[tuple[Stored, Box]], take: Callable[[int, Any], None], *, allow_pickle: bool = False
    ) -> None:
        """Read these parts; `take` gets the number of each and its array, rank after rank, from one thread at a time.

        All bytes of one shard are there, and checked, before the first of its arrays is given.
        """
        by_rank: dict[int, list[int]] = {}
        for i, (s, _) in enumerate(wanted):
            by_rank.setdefault(s.rank, []).append(i)
        ranks = sorted(by_rank)

        def fetch(rank: int) -> int:
            needed = [r for i in by_rank[rank] for r in wanted[i][0].needs(wanted[i][1])]
            self._shards[rank].fetch(needed)
            return rank

        for rank in each(ranks, fetch):
            shard = self._shards[rank]
            memory = Memory(shard.data, shard.header(), copy=False, device=None, allow_pickle=allow_pickle)
            for i in by_rank[rank]:
                s, part = wanted[i]
                whole = memory.tensor(s.leaf)
                whole = whole.array if isinstance(whole, Piece) else whole
                take(i, whole[part.within(s.box)] if s.box.shape and hasattr(whole, "shape") else whole)


def bytes_of(wanted: Iterable[tuple[Stored, Box]]) -> int:
    """Bytes of the elements in these parts."""
    return sum(p.size * (s.entry.size // max(1, count(s.box.shape))) for s, p in wanted)

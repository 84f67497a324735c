"""Loading: which ranks' shards are wanted, and what becomes of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _dtypes
from ._boxes import Box
from ._each import each
from ._errors import Conflict, Invalid, NotFound
from ._into import fill, leaf_paths
from ._kinds import dicts
from ._launch import detect
from ._merge import assemble, merge_states
from ._parts import Stored, stored
from ._reshard import state_for
from ._save import CURSOR
from ._shard import Checkpoint, Shard
from ._tree import Piece
from ._untree import LEFT_OUT, Memory, flat_tree, only_of, restore

if TYPE_CHECKING:
    from ._client import Client


def load(
    client: Client, ref: str, *, only: str | Iterable[str] | None, rank: int | str | None, device: Any, check: bool,
    copy: bool, allow_pickle: bool, data: Any = None,
) -> Any:  # fmt: skip
    """See Client.load."""
    wanted = only_of(only if only is None or isinstance(only, str) else list(only))

    def state(shard: Shard) -> Any:
        with shard:
            got = shard.state(only=wanted, copy=copy, device=device, allow_pickle=allow_pickle)
            if data is not None:
                cursors.add(shard.header().meta.get(CURSOR, ""))
            return got

    cursors: set[str] = set()
    with Checkpoint(client, ref, check=check) as ck:
        ranks, merging = _ranks(rank, ck)
        states = each(ranks, lambda r: state(ck.shard(r)))
        if all(s is LEFT_OUT for s in states):
            raise NotFound(
                f"{ref}: nothing in it matches only={only!r}", f"ckpt show {ref} --tensors lists what it has"
            )
        if data is not None:
            data.load_state_dict({"cursor": _cursor(cursors, ref)})
        if rank == "all":
            return [None if s is LEFT_OUT else s for s in states]
        if not merging:
            return states[0]
        return merge_states([(r, s) for r, s in zip(ranks, states, strict=True) if s is not LEFT_OUT], ref)


def _cursor(found: set[str], ref: str) -> str:
    """Where the job was in its data, which all ranks must say alike."""
    if "" in found:
        raise NotFound(f"{ref} says nothing of its data", "save it with data=LOADER")
    if len(found) > 1:
        raise Conflict(
            f"the ranks of {ref} were at different places of their data",
            "save when all ranks have taken the same number of batches, of the same size",
        )
    return next(iter(found))


def _ranks(rank: int | str | None, ck: Checkpoint) -> tuple[list[int], bool]:
    """Whose shards to read, and whether to merge them."""
    if rank == "all":
        return list(range(ck.world)), False
    if isinstance(rank, str):
        raise Invalid(f'rank={rank!r}: want a number or "all"')
    if rank is not None:
        return [rank], False
    if ck.world == 1:
        return [0], False
    found = detect()
    if found is not None and found[1] == ck.world:
        return [found[0]], False
    return list(range(ck.world)), True


def load_into(
    client: Client, ref: str, state: Any, *, strict: bool, rank: int | None, check: bool, allow_pickle: bool
) -> Any:
    """See Client.load_into."""
    mine = leaf_paths(state)
    with Checkpoint(client, ref, check=check) as ck:
        own, merging = _ranks(rank, ck)
        if any(isinstance(v, Piece) for v in mine.values()) and rank is None:
            here = own[0] if not merging else -1
            if here < 0 or not _same_pieces(mine, ck, here):  # cut differently from what this rank saved
                found = detect()
                me = found[0] if found is not None else 0
                got = state_for(ck, mine, me, strict=strict, allow_pickle=allow_pickle)
                return fill(state, got, ref, strict=strict)
    got = load(
        client, ref, only=None if strict else list(mine), rank=rank, device=None, check=check, copy=False,
        allow_pickle=allow_pickle,
    )  # fmt: skip
    return fill(state, got, ref, strict=strict)


def _same_pieces(mine: dict[str, Any], ck: Checkpoint, rank: int) -> bool:
    """Whether this rank's own shard has all that it wants, and in just these pieces, by the shard's header."""
    with ck.shard(rank) as shard:
        header = shard.header()
        theirs = leaf_paths(restore(shard.tree(), lambda leaf: stored(rank, header, leaf)))

    def alike(p: Piece, s: Any) -> bool:
        if not isinstance(s, Stored) or s.shape != tuple(p.global_shape):
            return False
        return s.whole or s.box == Box(tuple(p.start), tuple(p.array.shape))

    return all(path in theirs for path in mine) and all(
        alike(p, theirs[path]) for path, p in mine.items() if isinstance(p, Piece)
    )


def tensor(
    client: Client, ref: str, name: str, ranges: Sequence[tuple[int, int]] | None, *, rank: int | None, check: bool
) -> Any:
    """See Client.tensor."""
    with Checkpoint(client, ref, check=check) as ck:
        ranks = [rank] if rank is not None else [0] if ck.world == 1 else _holders(client, ck, name)
        parts = each(ranks, lambda r: _tensor(ck.shard(r), name, ranges, ref))
    if len(parts) == 1:
        return parts[0].array if isinstance(parts[0], Piece) and rank is not None else _whole(parts, name)
    if not all(isinstance(p, Piece) for p in parts):
        raise Invalid(f"{ref}: {len(parts)} ranks have a tensor {name!r}", f"name one: rank={ranks[0]}")
    if ranges is not None:
        raise Invalid(
            f"{ref}: {name!r} is in pieces on {len(parts)} ranks", "name a rank with ranges=, or read it whole"
        )
    return _whole(parts, name)


def _whole(parts: list[Any], name: str) -> Any:
    return assemble(parts, name) if isinstance(parts[0], Piece) else parts[0]


def _holders(client: Client, ck: Checkpoint, name: str) -> list[int]:
    shards = client.manifest(ck.id)["shards"]
    found = [int(s["rank"]) for s in shards if any(t["name"] == name for t in dicts(s.get("tensors")))]
    if not found:
        raise NotFound(f"{ck.ref} has no tensor {name!r}", f"ckpt show {ck.ref} --tensors lists what it has")
    return found


def _tensor(shard: Shard, name: str, ranges: Sequence[tuple[int, int]] | None, ref: str) -> Any:
    with shard:
        header = shard.header()
        e = header.entries.get(name)
        if e is None:
            raise NotFound(
                f"{ref} has no tensor {name!r} in rank {shard.rank}", f"ckpt show {ref} --tensors lists them"
            )
        if ranges is None:
            shard.fetch([(e.offset, e.size)] if e.size else [])
            memory = Memory(shard.data, header, copy=False, device=None, allow_pickle=False)
            return memory.tensor(flat_tree(header)[name])
        if not e.shape or not e.size:
            raise Invalid(f"{name!r} of shape {list(e.shape)} has no rows to take ranges of")
        row = e.size // e.shape[0]
        if row * e.shape[0] != e.size:
            raise Invalid(f"a row of {name!r} ({e.dtype} {list(e.shape)}) is not whole bytes")
        for a, b in ranges:
            if not 0 <= a <= b <= e.shape[0]:
                raise Invalid(f"rows {a} to {b} of {name!r}, which has {e.shape[0]}")
        shard.fetch([(e.offset + a * row, (b - a) * row) for a, b in ranges if b > a])
        rows = [shard.data[e.offset + a * row : e.offset + b * row] for a, b in ranges]
        raw = rows[0] if len(rows) == 1 else np.concatenate(rows) if rows else np.empty(0, np.uint8)
        dtype = _dtypes.to_numpy(e.dtype)
        packed = e.dtype in ("F4", "F6_E2M3", "F6_E3M2")
        shape = (raw.size // row, row) if packed else (raw.size // row, *e.shape[1:])
        return np.ndarray(shape, dtype, buffer=raw) if raw.size else np.empty(shape, dtype)

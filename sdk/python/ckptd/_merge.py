"""Several ranks' states as one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from ._errors import Invalid
from ._kinds import is_array, is_dict, is_scalar, is_sequence
from ._tensors import is_jax, is_torch
from ._tree import Piece

Ranks = list[tuple[int, Any]]  # what each rank has of one place in the state


def merge_states(states: Ranks, ref: str) -> Any:
    """The union of the ranks' dicts. What several ranks have must be equal, or pieces of one tensor."""
    return union(states, ref, lambda values, path: assemble(values, f"{ref}: {path}"), Piece)


def union(states: Ranks, ref: str, join: Callable[[list[Any], str], Any], joined: type, path: str = "") -> Any:
    """The ranks' states as one: dicts united, `join` for what is `joined` in all that have it, else all the same."""
    values = [v for _, v in states]
    first = values[0]

    def within(key: Any, has: Callable[[Any], bool]) -> Any:
        at = f"{path}.{key}" if path else str(key)
        return union([(r, v[key]) for r, v in states if has(v)], ref, join, joined, at)

    if all(is_dict(v) for v in values):
        return {k: within(k, lambda v, k=k: k in v) for k in dict.fromkeys(k for v in values for k in v)}
    if all(isinstance(v, joined) for v in values):
        return join(values, path)
    if is_sequence(first) and all(type(v) is type(first) and len(v) == len(first) for v in values):
        return type(first)([within(i, lambda _: True) for i in range(len(first))])
    if all(same(first, v) for v in values[1:]):
        return first
    raise Invalid(
        f"{ref}: ranks {', '.join(str(r) for r, _ in states[:8])} differ in {path or 'state'}: they cannot be merged",
        'load one rank with rank=, or rank="all" for a list',
    )


def same(a: Any, b: Any) -> bool:
    """Whether two leaves, or lists of them, hold the same values; NaN is itself here."""
    if type(a) is not type(b):
        return False
    if is_torch(a):
        torch = sys.modules["torch"]
        return a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(a, b) or _bits(a, b))
    if is_jax(a):
        a, b = np.asarray(a), np.asarray(b)
    if is_array(a) or is_scalar(a):
        return a.dtype == b.dtype and a.shape == b.shape and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    if is_sequence(a):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if is_dict(a):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return a == b or (a != a and b != b)


def _bits(a: Any, b: Any) -> bool:
    from ._tensors import _bytes

    return bool(np.array_equal(_bytes(a.detach()), _bytes(b.detach())))


def assemble(pieces: list[Piece], name: str) -> Any:
    """The whole tensor that these pieces make up."""
    whole = tuple(pieces[0].global_shape)
    if any(tuple(p.global_shape) != whole for p in pieces):
        raise Invalid(f"{name}: its pieces belong to tensors of different shapes")
    parts = {(tuple(p.start), tuple(p.array.shape)): p for p in pieces}  # replicas are the same piece
    first = pieces[0].array
    if is_torch(first):
        out = first.new_empty(whole)
    else:
        out = np.empty(whole, np.asarray(first).dtype)
    count = 0
    for p in parts.values():
        out[region(p)] = p.array if is_torch(first) else np.asarray(p.array)
        count += int(np.prod(p.array.shape, dtype=np.int64))
    total = int(np.prod(whole, dtype=np.int64))
    if count != total and (count < total or not _covered(list(parts.values()), whole)):
        raise Invalid(f"{name}: the pieces at hand make up {count} of {total} elements", "load it from all ranks")
    return out


def region(p: Piece) -> tuple[slice, ...]:
    """Where in the whole tensor a piece lies."""
    return tuple(slice(a, a + n) for a, n in zip(p.start, p.array.shape, strict=True))


def _covered(pieces: list[Piece], whole: tuple[int, ...]) -> bool:
    seen = np.zeros(whole, bool)
    for p in pieces:
        seen[region(p)] = True
    return bool(seen.all())

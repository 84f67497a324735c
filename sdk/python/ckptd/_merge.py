"""Several ranks' states as one."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from ._errors import Invalid
from ._kinds import is_array, is_dict, is_scalar, is_sequence
from ._tensors import is_jax, is_torch
from ._tree import Piece


def merge_states(states: list[tuple[int, Any]], ref: str) -> Any:
    """The union of the ranks' dicts. What several ranks have must be equal, or pieces of one tensor."""
    return _merge(states, "", ref)


def _merge(states: list[tuple[int, Any]], path: str, ref: str) -> Any:
    values = [v for _, v in states]
    if all(isinstance(v, dict) for v in values):
        keys = dict.fromkeys(k for v in values for k in v)
        return {
            k: _merge([(r, v[k]) for r, v in states if k in v], f"{path}.{k}" if path else str(k), ref) for k in keys
        }
    if all(isinstance(v, Piece) for v in values):
        return assemble(values, f"{ref}: {path}")
    if all(same(values[0], v) for v in values[1:]):
        return values[0]
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

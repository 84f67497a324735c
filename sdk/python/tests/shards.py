"""Shards in memory: a state to the bytes of its file and back, without a daemon."""

from __future__ import annotations

from typing import Any

import numpy as np

from ckptd import _header, _tree, _untree


def encode(state: Any, **kw: Any) -> np.ndarray:
    """The bytes of the shard that this state makes."""
    flat = _tree.flatten(state, **kw)
    head, header = _header.build(flat.tensors, flat.meta)
    out = np.zeros(header.size, np.uint8)
    out[: len(head)] = np.frombuffer(head, np.uint8)
    for e, s in zip(header.entries.values(), flat.sources, strict=True):
        out[e.offset : e.offset + e.size] = s.bytes()
    return out


def decode(data: np.ndarray, *, only: Any = None, copy: bool = False, device: Any = None, pickle: bool = False) -> Any:
    """The state in the bytes of a shard."""
    n = _header.length(memoryview(data[:8]), data.size)
    header = _header.parse(memoryview(data[:n]), data.size)
    memory = _untree.Memory(data, header, copy=copy, device=device, allow_pickle=pickle)
    tree = _untree.tree_of(header)
    if "ckptd.state" not in header.meta:
        tree = _untree.flat_tree(header)
    if isinstance(tree, dict) and "$json" in tree:
        tree = _untree.tree_of(header, memory.raw(memory.entry(tree["$json"])).tobytes())
    return _untree.restore(tree, memory.tensor, _untree.only_of(only))


def names(state: Any) -> list[str]:
    """The names of the tensors that a state makes, in the order of their bytes."""
    return [n for n, _, _ in _tree.flatten(state).tensors]


def equal(a: Any, b: Any) -> bool:
    """Same types, same structure, same bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (np.ndarray, np.generic)):
        x, y = np.asarray(a), np.asarray(b)
        return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and [type(k) for k in a] == [type(k) for k in b] and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float):
        return a.hex() == b.hex() if a == a else b != b
    return bool(a == b) or repr(a) == repr(b)  # complex with NaN

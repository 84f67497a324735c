"""Filling one rank's state from a set that was saved in other pieces: only what it needs is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import _dtypes
from ._boxes import Box
from ._errors import Invalid
from ._into import leaf_paths
from ._kinds import is_dict, is_sequence
from ._merge import Ranks, union
from ._parts import Parts, Stored, choose
from ._shard import Checkpoint
from ._tensors import is_torch
from ._tree import Piece


class Spread:
    """A tensor of the set: the boxes of it that the ranks hold."""

    def __init__(self, held: list[Stored], path: str) -> None:
        self.held, self.path = held, path
        self.shape, self.dtype = held[0].shape, held[0].dtype
        if any((s.shape, s.dtype) != (self.shape, self.dtype) for s in held):
            raise Invalid(f"{path}: ranks {[s.rank for s in held[:8]]} hold pieces of different tensors")

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """Its elements' type for numpy."""
        leaf, entry = self.held[0].leaf, self.held[0].entry
        return _dtypes.to_numpy(leaf["view"]["dtype"] if "view" in leaf else entry.dtype, leaf.get("dtype"))


def state_for(ck: Checkpoint, mine: dict[str, Any], rank: int, *, strict: bool, allow_pickle: bool) -> Any:
    """The set's state with the arrays that `mine` (the leaves of this rank's state by path) asks for: a Piece for a
    Piece, else the whole tensor. What mine does not name stays a Spread, or is left out when not strict."""
    parts = Parts(ck)
    try:
        tree = merge_trees(list(zip(parts.ranks, parts.trees(), strict=True)), ck.ref)
        wanted: list[tuple[Stored, Box]] = []
        goes: list[tuple[str, Box]] = []  # of each part: whose, and the box that one asked for
        for path, x in leaf_paths(tree).items():
            if not isinstance(x, Spread) or path not in mine:
                continue
            to = mine[path]
            piece = isinstance(to, Piece)
            if piece and tuple(to.global_shape) != x.shape:
                continue  # does not fit: fill says so
            box = Box(tuple(to.start), tuple(to.array.shape)) if piece else Box(tuple(0 for _ in x.shape), x.shape)
            for s, part in choose(box, x.held, f"{ck.ref}: {path}", rank):
                wanted.append((s, part))
                goes.append((path, box))
            if not box.size:
                wanted.append((x.held[0], Box(x.held[0].box.start, tuple(0 for _ in x.shape))))
                goes.append((path, box))
        made: dict[str, Any] = {}

        def take(i: int, array: Any) -> None:
            path, box = goes[i]
            part = wanted[i][1]
            if path not in made and part == box:
                made[path] = array  # one part is all of it: no copy
                return
            if path not in made:
                made[path] = array.new_empty(box.shape) if is_torch(array) else np.empty(box.shape, array.dtype)
            if part.size:
                made[path][part.within(box)] = array

        parts.read(wanted, take, allow_pickle=allow_pickle)
        return _with(tree, lambda path, x: _as(made.get(path, x), mine.get(path)))
    finally:
        parts.close()


def _as(x: Any, to: Any) -> Any:
    return Piece(x, to.global_shape, to.start) if isinstance(to, Piece) and not isinstance(x, Spread) else x


def merge_trees(states: Ranks, ref: str) -> Any:
    """The ranks' states (Parts.trees) as one, with a Spread for each tensor; what several have must be equal."""
    return union(states, ref, Spread, Stored)


def _with(tree: Any, change: Callable[[str, Any], Any], path: str = "") -> Any:
    if is_dict(tree):
        return {k: _with(v, change, f"{path}.{k}" if path else str(k)) for k, v in tree.items()}
    if is_sequence(tree):
        return type(tree)(_with(v, change, f"{path}.{i}" if path else str(i)) for i, v in enumerate(tree))
    return change(path, tree)

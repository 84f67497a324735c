"""Filling the caller's own arrays from a loaded state, all or nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, MutableSequence
from typing import Any

import numpy as np

from . import _dtensor
from ._errors import Invalid
from ._kinds import is_array, is_dict, is_mutable_mapping, is_sequence
from ._merge import region
from ._tensors import is_torch
from ._tree import Piece


def leaf_paths(state: Any, path: str = "") -> dict[str, Any]:
    """Every leaf of a state by its dotted path; a DTensor is the Piece that this rank has of it."""
    items: list[tuple[Any, Any]]
    if is_mutable_mapping(state):
        items = list(state.items())
    elif is_sequence(state):
        items = list(enumerate(state))
    else:
        return {path: Piece(*_dtensor.part(state)) if _dtensor.is_dtensor(state) else state}
    out: dict[str, Any] = {}
    for k, v in items:
        out.update(leaf_paths(v, f"{path}.{k}" if path else str(k)))
    return out


def fill(state: Any, got: Any, ref: str, *, strict: bool) -> Any:
    """Copy `got` into what `state` holds. Checks everything first, then copies."""
    f = _Filling(strict)
    f.visit(state, got, "", None)
    if f.problems:
        more = len(f.problems) - 10
        text = "; ".join(f.problems[:10]) + (f"; and {more} more" if more > 0 else "")
        raise Invalid(f"{ref} does not fit: {text}", "strict=False takes what both have" if f.names else "")
    for act in f.actions:
        act()
    return state


class _Filling:
    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.actions: list[Callable[[], None]] = []
        self.problems: list[str] = []
        self.names = False  # a problem is about a name that only one side has

    def missing(self, path: str, side: str) -> None:
        if self.strict:
            self.problems.append(f"{path} is only in {side}")
            self.names = True

    def visit(self, mine: Any, theirs: Any, path: str, put: Callable[[Any], None] | None) -> None:
        """Plan to bring `theirs` into `mine`; `put` replaces `mine` in its container, where that can be done."""
        if is_mutable_mapping(mine) and is_dict(theirs):
            left = dict(theirs)
            named = {str(k): k for k in theirs}  # some that save states make "0" of a dict's 0
            for k in mine:
                at = f"{path}.{k}" if path else str(k)
                key = k if k in theirs else named.get(str(k), k)
                if key in left:
                    self.visit(mine[k], left.pop(key), at, _setter(mine, k))
                else:
                    self.missing(at, "the state to fill")
            for k in left:
                self.missing(f"{path}.{k}" if path else str(k), "the checkpoint")
        elif is_sequence(mine) and is_sequence(theirs):
            if len(mine) != len(theirs):
                self.problems.append(f"{path} has {len(mine)} items here and {len(theirs)} in the checkpoint")
                return
            for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
                if b is None and a is not None and not self.strict:
                    continue  # left out
                setter = _setter(mine, i) if isinstance(mine, MutableSequence) else None
                self.visit(a, b, f"{path}.{i}" if path else str(i), setter)
        else:
            self.leaf(mine, theirs, path, put)

    def leaf(self, mine: Any, theirs: Any, path: str, put: Callable[[Any], None] | None) -> None:
        if _dtensor.is_dtensor(mine):
            mine = Piece(*_dtensor.part(mine))
        if isinstance(mine, Piece):
            theirs = self.part(mine, theirs, path)
            mine = mine.array
        elif isinstance(theirs, Piece):
            theirs = theirs.array
        if theirs is None and isinstance(mine, (np.ndarray,)):
            self.problems.append(f"{path} is None in the checkpoint")
        elif is_array(mine):
            if self.fits(mine, theirs, path):
                self.actions.append(lambda: np.copyto(mine, _numpy(theirs), casting="same_kind"))
        elif is_torch(mine):
            if self.fits(mine, theirs, path):
                self.actions.append(lambda: _torch_copy(mine, theirs))
        elif put is not None:
            self.actions.append(lambda: put(theirs))
        elif not (mine is theirs or (type(mine) is type(theirs) and mine == theirs)):
            self.problems.append(f"{path} is {theirs!r:.40} in the checkpoint and cannot be replaced in a tuple")

    def part(self, mine: Piece, theirs: Any, path: str) -> Any:
        """What of `theirs` belongs into this piece."""
        if isinstance(theirs, Piece):
            if tuple(theirs.start) == tuple(mine.start) and tuple(theirs.array.shape) == tuple(mine.array.shape):
                return theirs.array
            self.problems.append(f"{path} is another piece in the checkpoint")
            return mine.array
        if tuple(getattr(theirs, "shape", ())) != tuple(mine.global_shape):
            self.problems.append(f"{path} is no tensor of shape {list(mine.global_shape)} in the checkpoint")
            return mine.array
        return theirs[region(mine)]

    def fits(self, mine: Any, theirs: Any, path: str) -> bool:
        if not hasattr(theirs, "shape") or not hasattr(theirs, "dtype"):
            self.problems.append(f"{path} is a tensor here and a {type(theirs).__name__} in the checkpoint")
        elif tuple(mine.shape) != tuple(theirs.shape):
            self.problems.append(f"{path} has shape {list(mine.shape)} here, {list(theirs.shape)} in the checkpoint")
        elif _name(mine) != _name(theirs):
            self.problems.append(f"{path} is {_name(mine)} here and {_name(theirs)} in the checkpoint")
        else:
            return True
        return False


def _name(x: Any) -> str:
    return str(x.dtype).removeprefix("torch.")


def _setter(container: Any, key: Any) -> Callable[[Any], None]:
    return lambda v: container.__setitem__(key, v)


def _numpy(x: Any) -> Any:
    return x.detach().cpu().numpy() if is_torch(x) else np.asarray(x)


def _torch_copy(mine: Any, theirs: Any) -> None:
    torch = sys.modules["torch"]
    if not is_torch(theirs):
        theirs = torch.from_numpy(np.ascontiguousarray(theirs))
    with torch.no_grad():
        mine.copy_(theirs)

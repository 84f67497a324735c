"""Boxes of tensors: where two overlap, and which bytes of a stored one a part of it needs.

A box is a start and a shape, one number a dimension, in elements of the whole
tensor. Stored boxes are row-major.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ._header import count

Ints = Sequence[int]
Range = tuple[int, int]  # offset and length in bytes

MAX_RUNS = 4096  # ranges of one box; more are read as one


@dataclass(frozen=True)
class Box:
    """A part of a tensor."""

    start: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Elements."""
        return count(self.shape)

    def overlap(self, other: Box) -> Box | None:
        """What both have, or None. Boxes without dimensions are scalars: the same."""
        start = tuple(max(a, b) for a, b in zip(self.start, other.start, strict=True))
        shape = tuple(
            min(a + n, b + m) - s
            for a, n, b, m, s in zip(self.start, self.shape, other.start, other.shape, start, strict=True)
        )
        return None if any(n <= 0 for n in shape) else Box(start, shape)

    def within(self, outer: Box) -> tuple[slice, ...]:
        """The index that takes this box out of an array that holds `outer`."""
        return tuple(slice(a - b, a - b + n) for a, n, b in zip(self.start, self.shape, outer.start, strict=True))


def ranges(part: Box, of: Box, itemsize: int, gap: int) -> list[Range]:
    """The bytes of `part` within the row-major array of `of`; runs closer together than `gap` bytes are one."""
    if part.size == 0:
        return []
    strides, s = [0] * len(of.shape), itemsize
    for d in reversed(range(len(of.shape))):
        strides[d] = s
        s *= of.shape[d]
    first = sum((a - b) * st for a, b, st in zip(part.start, of.start, strides, strict=True))
    length, d = itemsize, len(of.shape) - 1
    while d >= 0 and (part.shape[d] == 1 or strides[d] - length <= gap):
        length += (part.shape[d] - 1) * strides[d]
        d -= 1
    runs = [first]
    for e in range(d, -1, -1):
        if part.shape[e] == 1:
            continue
        if len(runs) * part.shape[e] > MAX_RUNS:
            last = first + sum((n - 1) * st for n, st in zip(part.shape, strides, strict=True)) + itemsize
            return [(first, last - first)]
        runs = [r + i * strides[e] for i in range(part.shape[e]) for r in runs]
    return [(r, length) for r in runs]


def minus(box: Box, cut: Box) -> list[Box]:
    """`box` without what `cut` has of it, as boxes that do not overlap: at most two a dimension."""
    both = box.overlap(cut)
    if both is None:
        return [box]
    out: list[Box] = []
    start, shape = list(box.start), list(box.shape)
    for d in range(len(shape)):
        before, after = both.start[d] - start[d], start[d] + shape[d] - both.start[d] - both.shape[d]
        if before:
            out.append(Box(tuple(start), (*shape[:d], before, *shape[d + 1 :])))
        if after:
            at = both.start[d] + both.shape[d]
            out.append(Box((*start[:d], at, *start[d + 1 :]), (*shape[:d], after, *shape[d + 1 :])))
        start[d], shape[d] = both.start[d], both.shape[d]
    return out

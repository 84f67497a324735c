"""Boxes and the choice of who gives what, against slow references that look at every element."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from ckptd import _boxes
from ckptd._boxes import Box
from ckptd._errors import Invalid
from ckptd._header import Entry
from ckptd._parts import Stored, choose


def any_box(r: random.Random, shape: tuple[int, ...]) -> Box:
    start = tuple(r.randint(0, n) for n in shape)
    return Box(start, tuple(r.randint(0, n - a) for a, n in zip(start, shape, strict=True)))


def elements(shape: tuple[int, ...], *boxes: Box) -> np.ndarray[Any, Any]:
    """How many of the boxes have each element."""
    out = np.zeros(shape, int)
    for b in boxes:
        out[b.within(Box(tuple(0 for _ in shape), shape))] += 1
    return out


@pytest.mark.parametrize("seed", range(200))
def test_ranges_are_the_bytes_of_a_part(seed: int) -> None:
    r = random.Random(seed)
    shape = tuple(r.randint(1, 6) for _ in range(r.randint(0, 4)))
    outer = Box(tuple(r.randint(0, 9) for _ in shape), shape)
    inner = any_box(r, shape)
    part = Box(tuple(a + b for a, b in zip(outer.start, inner.start, strict=True)), inner.shape)
    size = r.choice([1, 2, 4, 8])
    gap = r.choice([0, 0, 3, 16, 1000])
    got = np.zeros(int(np.prod(shape, dtype=int)) * size, int)
    for lo, n in _boxes.ranges(part, outer, size, gap):
        got[lo : lo + n] += 1
    want = elements(shape, inner)
    want = np.repeat(want.reshape(-1), size)
    assert (got <= 1).all()
    assert (got >= want).all()
    if gap == 0:
        assert (got == want).all()


def test_a_part_of_too_many_runs_is_read_as_one() -> None:
    outer = Box((0, 0), (_boxes.MAX_RUNS + 1, 4))
    assert _boxes.ranges(Box((0, 1), (_boxes.MAX_RUNS + 1, 2)), outer, 1, 0) == [(1, 4 * _boxes.MAX_RUNS + 2)]


@pytest.mark.parametrize("seed", range(100))
def test_minus_agrees_with_every_element(seed: int) -> None:
    r = random.Random(seed)
    shape = tuple(r.randint(1, 7) for _ in range(r.randint(1, 3)))
    a, b = any_box(r, shape), any_box(r, shape)
    rest = _boxes.minus(a, b)
    assert (elements(shape, *rest) == np.maximum(elements(shape, a) - elements(shape, b), 0)).all()


def held(rank: int, box: Box, shape: tuple[int, ...]) -> Stored:
    n = box.size * 4
    return Stored(rank, Entry("w", "F32", box.shape, 4096, n), {"$tensor": "w"}, box, shape, "F32")


def tiling(r: random.Random, shape: tuple[int, ...], ways: int, replicas: int) -> list[Stored]:
    """The tensor cut along one dimension into `ways` parts (some empty), each on `replicas` ranks."""
    d = r.randrange(len(shape))
    cuts = [0, *sorted(r.randint(0, shape[d]) for _ in range(ways - 1)), shape[d]]
    out: list[Stored] = []
    for i, (lo, hi) in enumerate(pairwise(cuts)):
        start = tuple(lo if e == d else 0 for e in range(len(shape)))
        box = Box(start, tuple(hi - lo if e == d else n for e, n in enumerate(shape)))
        out += [held(ways * k + i, box, shape) for k in range(replicas)]
    return out


@pytest.mark.parametrize("seed", range(200))
def test_what_is_chosen_makes_up_the_part_once(seed: int) -> None:
    r = random.Random(seed)
    shape = tuple(r.randint(1, 40) for _ in range(r.randint(1, 3)))
    have = tiling(r, shape, r.randint(1, 30), r.randint(1, 3))
    want, me = any_box(r, shape), r.randrange(90)
    got = choose(want, have, "w", me)
    assert (elements(shape, *(b for _, b in got)) == elements(shape, want)).all()
    for s, b in got:
        assert b.overlap(s.box) == b
        assert s.rank == me or not any(o.rank == me and o.box.overlap(b) for o in have)


def test_a_hole_is_said_by_name() -> None:
    shape = (10, 4)
    have = [held(0, Box((0, 0), (4, 4)), shape), held(1, Box((5, 0), (5, 4)), shape)]
    with pytest.raises(Invalid, match=r"model\.w: 4 of 40 elements"):
        choose(Box((0, 0), shape), have, "model.w")


def test_readers_spread_over_replicas() -> None:
    shape = (8, 8)
    have = [held(r, Box((0, 0), shape), shape) for r in range(64)]
    asked = {choose(Box((0, 0), shape), have, f"layer.{i}", 64 + me)[0][0].rank for i in range(8) for me in range(16)}
    assert len(asked) > 32

"""The same work on several shards at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

MAX_PARALLEL = 8  # shards read at once

T = TypeVar("T")


def each(ranks: Sequence[int], work: Callable[[int], T]) -> list[T]:
    """work(rank) for all, in their order."""
    if len(ranks) == 1:
        return [work(ranks[0])]
    with ThreadPoolExecutor(min(MAX_PARALLEL, max(1, len(ranks)))) as pool:
        return list(pool.map(work, ranks))

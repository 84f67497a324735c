"""Batches for a training loop, with workers of torch's DataLoader, and a cursor that counts what the loop was given."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import monitor
from .._errors import Invalid

if TYPE_CHECKING:
    from ._dataset import Dataset


class Loader:
    """This rank's samples of the epoch in batches, in the data set's order.

    batch_size: samples of a batch on this rank; the last batch of an epoch may be shorter.
    collate: makes a batch of a list of samples; by default it stays a list.
    num_workers: processes that read and decode, by torch.utils.data.DataLoader; 0 needs no torch. More options are
    the DataLoader's (multiprocessing_context="spawn", prefetch_factor, pin_memory, …).

    state_dict is that of the data set after the last batch that was given out. `for batch in loader` goes on from
    there; after the end of an epoch it begins the same epoch again, or another one after set_epoch.
    """

    def __init__(
        self, dataset: Dataset, batch_size: int = 1, *, collate: Callable[[list[Any]], Any] | None = None,
        num_workers: int = 0, **options: Any,
    ) -> None:  # fmt: skip
        if batch_size < 1:
            raise Invalid(f"batch_size={batch_size}: want 1 or more")
        taken = {"dataset", "shuffle", "sampler", "batch_sampler", "drop_last", "collate_fn"} & options.keys()
        if taken:
            raise Invalid(f"{', '.join(sorted(taken))}: the data set's order decides that", "collate= makes batches")
        self.dataset, self.batch_size, self.num_workers = dataset, batch_size, num_workers
        self._collate, self._options = collate, options

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank."""
        return -(-len(self.dataset.positions(0)) // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch at its first sample."""
        self.dataset.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the training loop is."""
        return self.dataset.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where state_dict was taken, with any number of ranks and any batch size."""
        self.dataset.load_state_dict(state)

    def __iter__(self) -> Iterator[Any]:
        d = self.dataset
        if d.at >= d.end():
            d.at = 0
        begun, mine = d.at, d.positions(d.at)
        if not len(mine):
            d.at = d.end()
        batches = self._batches(mine)
        for lo in range(0, len(mine), self.batch_size):
            d.tell()
            asked = time.perf_counter()
            batch, events = next(batches)
            monitor.waited(time.perf_counter() - asked)
            for e in events:
                monitor.record(*e)
            done = min(lo + self.batch_size, len(mine))
            # It is given out: what the loop does with it, and a checkpoint it takes meanwhile, come after it.
            d.at = d.end() if done == len(mine) else d.taken(begun, done)
            yield batch

    def _batches(self, mine: range) -> Iterator[tuple[Any, list[monitor.Event]]]:
        numbers = _Numbers(self.dataset, mine, self.batch_size)
        if self.num_workers == 0:
            for b in numbers:
                samples = self.dataset.samples(b)
                yield (self._collate(samples) if self._collate else samples), []
            return
        try:
            torch_data: Any = importlib.import_module("torch.utils.data")
        except ImportError as e:
            raise Invalid(
                f"num_workers={self.num_workers} needs torch, which cannot be imported: {e}",
                "install torch, or use num_workers=0",
            ) from e
        yield from torch_data.DataLoader(
            _Reads(self.dataset), batch_sampler=numbers, collate_fn=_Collate(self._collate),
            num_workers=self.num_workers, **self._options,
        )  # fmt: skip


class _Numbers:
    """The numbers of each batch's samples, computed as they are asked for."""

    def __init__(self, dataset: Dataset, mine: range, batch_size: int) -> None:
        self._order, self._mine, self._size = dataset.order, mine, batch_size

    def __len__(self) -> int:
        return -(-len(self._mine) // self._size)

    def __iter__(self) -> Iterator[list[int]]:
        for lo in range(0, len(self._mine), self._size):
            yield self._order.at(np.asarray(self._mine[lo : lo + self._size])).tolist()


class _Reads:
    """The data set in a worker: the samples of a batch, and what reading them took."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, i: int) -> Any:
        return self._dataset[i]

    def __getitems__(self, indices: list[int]) -> tuple[list[Any], list[monitor.Event]]:
        with monitor.Collect() as reads:
            samples = self._dataset.samples(indices)
        return samples, reads.events()


class _Collate:
    def __init__(self, collate: Callable[[list[Any]], Any] | None) -> None:
        self._collate = collate

    def __call__(self, read: tuple[list[Any], list[monitor.Event]]) -> tuple[Any, list[monitor.Event]]:
        samples, events = read
        return (self._collate(samples) if self._collate else samples), events

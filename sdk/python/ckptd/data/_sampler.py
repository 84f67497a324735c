"""The order of an epoch for the loaders of others: a sampler for torch's and torchdata's, a source for grain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .._order import Cursor

if TYPE_CHECKING:
    from ._dataset import Dataset

AHEAD = 256  # samples whose numbers are computed at once


class Sampler:
    """This rank's sample numbers of an epoch, from the data set's cursor to the end of the epoch.

    Made by Dataset.sampler(). Every iteration but the first begins the epoch at its first sample; see set_epoch.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.at = dataset.at  # where the next iteration begins

    def __len__(self) -> int:
        """Samples of a whole epoch on this rank."""
        return len(self.dataset.positions(0))

    def __iter__(self) -> Iterator[int]:
        begun, self.at = self.at, 0
        return Numbers(self.dataset, begun)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch at its first sample."""
        self.dataset.set_epoch(epoch)
        self.at = 0


class Numbers(Iterator[int]):
    """One iteration. Its state is the cursor after the numbers it has given."""

    def __init__(self, dataset: Dataset, begun: int) -> None:
        self._dataset = dataset
        self._begin(begun)

    def _begin(self, at: int) -> None:
        self._begun, self._given, self._part = at, 0, iter(())
        self._mine = self._dataset.positions(at)

    def __next__(self) -> int:
        if self._given == len(self._mine):
            raise StopIteration
        number = next(self._part, None)
        if number is None:
            self._dataset.tell(self._at())
            positions = self._mine[self._given : self._given + AHEAD]
            self._part = iter(self._dataset.order.at(np.asarray(positions)).tolist())
            number = next(self._part)
        self._given += 1
        return number

    def _at(self) -> int:
        d = self._dataset
        return d.end() if self._given == len(self._mine) else d.taken(self._begun, self._given)

    def state_dict(self) -> dict[str, Any]:
        """{"cursor": text}, the same on every rank that has taken as many samples."""
        return {"cursor": str(replace(self._dataset.cursor, at=self._at()))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where state_dict was taken, with any number of ranks."""
        self._dataset.load_state_dict(state)
        self._begin(Cursor.parse(state["cursor"]).at)


class InOrder:
    """The samples of one epoch by their position in its order: what grain calls a random access source.

    Made by Dataset.in_order(). `grain.MapDataset.source(data.in_order())[rank::world]` is a rank's part of the epoch.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset, self._order = dataset, dataset.order

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, position: int) -> Any:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[Any]:
        n = len(self)
        return self._dataset.samples(self._order.at(np.asarray([p + n if -n <= p < 0 else p for p in positions])))

    def __repr__(self) -> str:
        return f"<ckptd.data.InOrder of {self._dataset!r}>"

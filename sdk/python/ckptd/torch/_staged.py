"""What stage() copied, and who of the ranks writes what."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch.distributed.checkpoint.metadata import MetadataIndex

from .._save import Handle, Saving
from ._state import Items

MAX_STRUCTURES = 8  # remembered; a job has one, or two until its optimizer's first step


@dataclass
class Staged:
    """A save whose bytes are the daemon's and whose plan is still to come."""

    saving: Saving | None  # None in the checkpointer process: the trainer's sealed it
    items: frozenset[MetadataIndex]  # what was copied
    once: frozenset[MetadataIndex]  # what this rank writes when nobody coordinates
    structure: bytes
    _handle: Handle | None = None

    @property
    def set(self) -> str:
        return self._handle.set if self._handle is not None else self.saving.set if self.saving is not None else ""

    def seal(self) -> Handle:
        """Have the daemon keep it; again is the same."""
        if self._handle is None:
            assert self.saving is not None
            self._handle = self.saving.seal()
        return self._handle

    def abort(self) -> None:
        if self._handle is None and self.saving is not None:
            self.saving.abort()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "saving": None}


@dataclass
class Decisions:
    """Of each structure of state: which of the items that several ranks hold this rank writes.

    The ranks agree on that in DCP's plan, which comes after staging. So the first state of a structure is staged
    whole, and from then on what the plan said then: that is the same again while no rank's structure changes, and
    where one did, the writer notices before it seals.
    """

    known: dict[bytes, frozenset[MetadataIndex]] = field(default_factory=dict)

    def mine(self, found: Items) -> list[MetadataIndex]:
        """What to stage."""
        wanted = self.known.get(found.structure)
        return [i for i in found.write if wanted is None or i in wanted]

    def learn(self, structure: bytes, items: Iterable[MetadataIndex]) -> None:
        while len(self.known) >= MAX_STRUCTURES and structure not in self.known:
            self.known.pop(next(iter(self.known)))
        self.known[structure] = frozenset(items)

    def forget(self) -> None:
        self.known.clear()

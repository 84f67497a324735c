"""The StorageReader of torch.distributed.checkpoint."""

from __future__ import annotations

import io
import os
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from .. import _dtypes
from .._boxes import Box
from .._client import Client
from .._errors import Conflict, Corrupt, Error, Invalid, NotFound
from .._parts import Parts, Stored
from .._shard import Checkpoint
from ._state import TORCH_SAVED

TENSORS = ("numpy", "torch", "jax")  # kinds of leaves that are tensors to DCP; others are objects


@dataclass(frozen=True)
class Kept:
    """An object that is no tensor: which rank has it, and under which keys of its state."""

    rank: int
    path: tuple[Any, ...]


class Reader(StorageReader):
    """Loads RUN@STEP, RUN@latest or RUN@latest:LEVEL through DCP, into any sharding.

    The reference is resolved when the Reader is made (or reset), so that NotFound is raised there, and "latest" is
    one set from then on. check: hold every byte against its checksum. cast: convert where the checkpoint has another
    dtype than the tensor to fill, which is an error otherwise. allow_pickle: unpickle objects that were saved so.
    """

    def __init__(
        self, ref: str | None = None, *, check: bool = True, cast: bool = False, allow_pickle: bool = False,
        client: Client | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self._client, self._check, self._cast, self._pickle = client or Client(), check, cast, allow_pickle
        self._ck: Checkpoint | None = None
        self._parts: Parts | None = None
        self._objects: dict[str, Kept] = {}
        self._values: dict[str, Any] = {}
        self.set = ""
        if ref is not None:
            self.reset(ref)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        run, at, which = os.fspath(checkpoint_id).partition("@")
        return bool(run and at and which)

    @property
    def checkpoint_id(self) -> str:
        """RUN@STEP#ATTEMPT, for DCP's log."""
        return self.set

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        if checkpoint_id is None:
            return
        self._close()
        self.set = self._client.set(os.fspath(checkpoint_id)).id

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if not self.set:
            raise Invalid("a load needs a reference", 'Reader("RUN@latest"), or checkpoint_id="RUN@STEP"')
        try:
            return self._open()
        except Error as e:
            warnings.warn(f"{self.set}: {e}", stacklevel=2)  # DCP drops it, and only says that there is no metadata
            raise

    def _open(self) -> Metadata:
        self._close()
        self._ck = Checkpoint(self._client, self.set, check=self._check)
        self._ck.__enter__()
        self._parts = parts = Parts(self._ck)
        me = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        found = _Found(me)
        for rank, tree in zip(parts.ranks, parts.trees(), strict=True):
            found.add(rank, tree, self.set)
        self._objects, self._values = found.objects, found.values
        return Metadata(
            state_dict_metadata=found.known, planner_data=found.mappings, storage_data=found.stored(),
            storage_meta=StorageMeta(checkpoint_id=self.set),
        )  # fmt: skip

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self._storage: dict[MetadataIndex, Stored] = metadata.storage_data or {}

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return LoadPlan(plan.items, storage_data=self.set, planner_data=plan.planner_data)

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        sets = sorted({str(p.storage_data) for p in plans})
        if len(sets) > 1:
            raise Conflict(
                f"the ranks would load different sets: {', '.join(sets[:4])}", 'name one step, not "latest"'
            )
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        try:
            self._read(plan, planner)
        finally:
            self._close()
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read(self, plan: LoadPlan, planner: LoadPlanner) -> None:
        if self._parts is None:
            raise Invalid("read_data before read_metadata")
        items: list[ReadItem] = []
        wanted: list[tuple[Stored, Box]] = []
        for item in plan.items:
            if item.type == LoadItemType.BYTE_IO:
                planner.load_bytes(item, self._bytes(item.storage_index.fqn))
                continue
            s = self._storage.get(item.storage_index)
            if s is None:
                raise NotFound(f"{self.set} has no {item.storage_index.fqn} at {item.storage_index.offset}")
            start = tuple(a + o for a, o in zip(s.box.start, item.storage_offsets, strict=True))
            items.append(item)
            wanted.append((s, Box(start, tuple(item.lengths))))

        def take(i: int, array: Any) -> None:
            target = planner.resolve_tensor(items[i]).detach()
            if not isinstance(array, torch.Tensor):
                array = torch.from_numpy(array)
            if array.dtype != target.dtype and not self._cast:
                raise Invalid(
                    f"{items[i].storage_index.fqn} is {array.dtype} in {self.set}, {target.dtype} here",
                    "Reader(cast=True) converts",
                )
            target.copy_(array.reshape(target.shape))
            planner.commit_tensor(items[i], target)

        self._parts.read(wanted, take, allow_pickle=self._pickle)

    def _bytes(self, fqn: str) -> io.BytesIO:
        """An object in the bytes that load_bytes wants, which are torch.save's."""
        if fqn in self._values:
            value = self._values[fqn]
        else:
            kept = self._objects.get(fqn)
            if kept is None or self._parts is None:
                raise NotFound(f"{self.set} has no object {fqn!r}")
            value = _follow(self._parts.value(kept.rank, ".".join(map(str, kept.path)), self._pickle), kept.path)
        if isinstance(value, dict) and set(value) == {TORCH_SAVED}:
            if not self._pickle:
                raise Invalid(f"{fqn} was pickled by a planner", "if you trust who saved it: Reader(allow_pickle=True)")
            return io.BytesIO(value[TORCH_SAVED])
        out = io.BytesIO()
        torch.save(value, out)
        out.seek(0)
        return out

    def _close(self) -> None:
        if self._parts is not None:
            self._parts.close()
        if self._ck is not None:
            self._ck.__exit__()
        self._parts = self._ck = None


class _Found:
    """What the ranks' states hold, by DCP's names."""

    def __init__(self, me: int) -> None:
        self.known: dict[str, STORAGE_TYPES] = {}
        self.mappings: dict[str, tuple[Any, ...]] = {}
        self.objects: dict[str, Kept] = {}
        self.values: dict[str, Any] = {}  # of objects, where no tensor is in them
        self._held: dict[MetadataIndex, list[Stored]] = {}
        self._me = me

    def add(self, rank: int, tree: Any, ref: str) -> None:
        if not isinstance(tree, Mapping):
            raise Invalid(f"{ref} rank {rank} holds no dict of names", "load it with ckptd.load")
        flat, mappings = flatten_state_dict({k: _planned(v) for k, v in tree.items()})
        for fqn, x in flat.items():
            self.mappings.setdefault(fqn, mappings[fqn])
            s = getattr(x, "ckptd", None) if isinstance(x, torch.Tensor) else None
            if s is not None:
                self._tensor(fqn, s, x.dtype, ref)
                continue
            if isinstance(self.known.setdefault(fqn, BytesStorageMetadata()), TensorStorageMetadata):
                raise Corrupt(f"{ref}: {fqn} is a tensor in one rank and an object in rank {rank}")
            if fqn not in self.objects or rank == self._me:  # of several, one's own
                self.objects[fqn] = Kept(rank, mappings[fqn])
                self.values.pop(fqn, None)
                if not _has_stored(x):
                    self.values[fqn] = x

    def _tensor(self, fqn: str, s: Stored, dtype: torch.dtype, ref: str) -> None:
        known = self.known.setdefault(
            fqn, TensorStorageMetadata(TensorProperties(dtype), torch.Size(s.shape), [])
        )  # fmt: skip
        if not isinstance(known, TensorStorageMetadata):
            raise Corrupt(f"{ref}: {fqn} is an object in one rank and a tensor in rank {s.rank}")
        if tuple(known.size) != s.shape or known.properties.dtype != dtype:
            raise Invalid(
                f"{ref}: {fqn} is {list(known.size)} {known.properties.dtype} in one rank, {list(s.shape)} {dtype} in "
                f"rank {s.rank}: ranks that hold different things under one name cannot be loaded as one state",
                "ckptd.load(ref, rank=N)",
            )
        index = MetadataIndex(fqn, torch.Size(s.box.start))
        held = self._held.setdefault(index, [])
        if not held:
            known.chunks.append(ChunkStorageMetadata(torch.Size(s.box.start), torch.Size(s.box.shape)))
        if not held or held[0].box == s.box:
            held.append(s)

    def stored(self) -> dict[MetadataIndex, Stored]:
        """Whose shard to read each chunk from: one's own where it has it, else spread over those that do."""
        return {
            i: next((s for s in held if s.rank == self._me), held[(zlib.crc32(i.fqn.encode()) + self._me) % len(held)])
            for i, held in self._held.items()
        }


def _planned(x: Any) -> Any:
    """A state with meta tensors in the place of Stored, as DCP's own flattening wants to see them."""
    if isinstance(x, Stored):
        name = x.leaf["view"]["dtype"] if "view" in x.leaf else x.entry.dtype
        dtype = _dtypes.to_torch(torch, name, x.leaf.get("dtype"))
        if x.leaf.get("as", "numpy") not in TENSORS or dtype is None:
            return x
        x.leaf["as"] = "torch"
        out = torch.empty(x.box.shape, dtype=dtype, device="meta")
        out.ckptd = x  # type: ignore[attr-defined]
        return out
    if isinstance(x, dict):
        return {k: _planned(v) for k, v in x.items()}
    if isinstance(x, list):
        return [_planned(v) for v in x]
    return x


def _has_stored(x: Any) -> bool:
    if isinstance(x, dict):
        return any(_has_stored(v) for v in x.values())
    if isinstance(x, (list, tuple, set, frozenset)):
        return any(_has_stored(v) for v in x)
    return isinstance(x, Stored) or (isinstance(x, torch.Tensor) and hasattr(x, "ckptd"))


def _follow(tree: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        if isinstance(tree, dict):
            tree = next(v for k, v in tree.items() if str(k) == str(part))
        else:
            tree = tree[int(part)]
    return tree

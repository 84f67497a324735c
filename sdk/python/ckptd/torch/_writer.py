"""The StorageWriter and AsyncStager of torch.distributed.checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from .._client import Client
from .._errors import Conflict, Invalid
from .._save import CURSOR, Handle, Saving, _level, cursor_of
from .._tree import Piece, flatten
from ._staged import Decisions, Staged
from ._state import TORCH_SAVED, is_ours, items_of, nested, placeholder

TIMEOUT = 1800.0  # seconds to wait for the commit: as long as DCP's own collectives wait


class Writer(StorageWriter):
    """Saves through DCP into RUN@STEP.

    run, step: which set; or checkpoint_id="RUN@STEP" of dcp.save. level: how safe the set is when dcp.save returns or
    async_save's future is done: "staged" (the bytes are the daemons'), "local" or any later one. timeout: seconds to
    wait for that. launch, metrics, data, allow_pickle: see ckptd.save. process_group: the one given to dcp.save, where
    it is not the default one.

    Keep one Writer for all steps of a job: it remembers who of the ranks writes what of a state of the same structure,
    so that async_save copies only that. One save at a time.
    """

    def __init__(
        self, run: str | None = None, *, step: int | None = None, level: str = "local", timeout: float = TIMEOUT,
        launch: str | None = None, metrics: Mapping[str, float] | None = None, data: Any = None,
        allow_pickle: bool = False, process_group: dist.ProcessGroup | None = None, client: Client | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        _level(level)
        self.run, self.step, self.level, self.timeout = run, step, level, timeout
        self.launch, self.metrics, self.data, self.allow_pickle = launch, metrics, data, allow_pickle
        self._group, self._client = process_group, client or Client()
        self._rank, self._world, self._collective = 0, 1, True
        self._staged: Staged | None = None
        self._decisions = Decisions()
        self._handle: Handle | None = None

    # --- which set ---

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        try:
            parse(checkpoint_id)
        except Invalid:
            return False
        return True

    @property
    def checkpoint_id(self) -> str:
        """RUN@STEP, for DCP's log."""
        return f"{self.run}@{self.step}"

    @property
    def handle(self) -> Handle | None:
        """Of this rank's shard of the set that was saved last."""
        return self._handle

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        if checkpoint_id is None:
            return
        run, step = parse(checkpoint_id)
        if self._staged is not None and (run, step) != (self.run, self.step):
            self._drop()
        self.run, self.step = run, step

    def _named(self) -> tuple[str, int]:
        if self.run is None or self.step is None:
            raise Invalid("a save needs a run and a step", 'Writer("RUN", step=N), or checkpoint_id="RUN@N"')
        return self.run, self.step

    # --- the plan ---

    def storage_meta(self) -> StorageMeta | None:
        return StorageMeta(checkpoint_id=self.checkpoint_id)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self._named()
        self._collective = bool(kwargs.get("use_collectives", True))
        self._rank, self._world = self._place()

    def _place(self) -> tuple[int, int]:
        if dist.is_available() and dist.is_initialized():
            return dist.get_rank(self._group), dist.get_world_size(self._group)
        return 0, 1

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        if self._collective and len(plans) != self._world:
            raise Invalid(
                f"{len(plans)} ranks take part in a save by {self._world}",
                "give the Writer the process_group that dcp.save has",
            )
        return plans

    # --- the bytes ---

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        staged, self._staged = self._staged, None
        if staged is None:
            self._handle = self._save_now(plan, planner)
        else:
            self._handle = self._seal(staged, plan)
        done: Future[list[WriteResult]] = Future()
        done.set_result([
            WriteResult(index=i.index, size_in_bytes=_size(i), storage_data=self._handle.set) for i in plan.items
        ])  # fmt: skip
        return done

    def _save_now(self, plan: SavePlan, planner: SavePlanner) -> Handle:
        values: dict[str, Any] = {}
        state = getattr(planner, "state_dict", {})
        for item in plan.items:
            if not self._collective and not is_ours(item.index.fqn, state.get(item.index.fqn)):
                continue
            if item.index.fqn in values:
                raise Invalid(f"{item.index.fqn}: this rank holds several pieces of it", "use DTensor, one a rank")
            values[item.index.fqn] = self._resolve(item, planner)
        saving = self._begin(values, plan.planner_data)
        return saving.seal()

    def _resolve(self, item: WriteItem, planner: SavePlanner) -> Any:
        if item.type == WriteItemType.BYTE_IO:
            lookup = getattr(planner, "lookup_object", None)
            if lookup is not None:
                return lookup(item.index)
            raw = planner.resolve_data(item)
            if not self.allow_pickle:
                raise Invalid(f"{item.index.fqn}: {type(planner).__name__} pickles it", "Writer(allow_pickle=True)")
            return {TORCH_SAVED: cast(Any, raw).getvalue()}
        return piece_of(item, cast(torch.Tensor, planner.resolve_data(item)).detach())

    def _begin(self, values: Mapping[str, Any], mappings: Any) -> Saving:
        run, step = self._named()
        flat = flatten(nested(values, mappings), allow_pickle=self.allow_pickle)
        if self.data is not None:
            flat.meta[CURSOR] = cursor_of(self.data)
        return Saving(
            self._client, run, step, flat, rank=self._rank, world=self._world, launch=self.launch, metrics=self.metrics
        )

    def _seal(self, staged: Staged, plan: SavePlan) -> Handle:
        """End the save that stage() began, if it has all that the ranks agreed this one should write."""
        wanted = [i.index for i in plan.items if self._collective or i.index in staged.once]
        lost = [i.fqn for i in wanted if i not in staged.items]
        if lost:
            staged.abort()
            self._decisions.forget()
            raise Conflict(
                f"{staged.set} rank {self._rank}: {len(lost)} tensors of the plan were not staged, {lost[0]} first",
                "the state's structure changed on another rank, or a planner of your own renames; save again",
            )
        self._decisions.learn(staged.structure, wanted)
        return staged.seal()

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        metadata.storage_data = {w.index: w.storage_data for ws in results for w in ws}
        metadata.storage_meta = self.storage_meta()
        if self._handle is not None:
            self._handle.wait(self.level, self.timeout)

    # --- staging: AsyncStager ---

    _synchronize_after_execute = False

    @property
    def should_synchronize_after_execute(self) -> bool:
        return False

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Copy what this rank writes into the daemon's memory; gives a state of the same structure without bytes."""
        self._drop()
        self._rank, self._world = self._place()
        found = items_of(state_dict, self._rank == 0)
        mine = self._decisions.mine(found)
        saving = self._begin({i.fqn: found.value(i) for i in mine}, found.mappings)
        self._staged = Staged(saving, frozenset(mine), found.once, found.structure)
        return placeholder(state_dict)

    def synchronize_staging(self) -> None:
        """Staging is done when stage() has returned."""

    def close(self) -> None:
        """Give up what was staged and not written. The Writer can be used again."""
        self._drop()

    def _drop(self) -> None:
        staged, self._staged = self._staged, None
        if staged is not None:
            staged.abort()

    def __getstate__(self) -> dict[str, Any]:
        """For the checkpointer process. What was staged is sealed here, by the process that has the session: it holds
        every tensor of this rank, since decisions of that process never come back."""
        if self._staged is not None:
            self._staged.seal()
        return {**self.__dict__, "_group": None, "data": None, "_decisions": Decisions(), "_handle": None}


def piece_of(item: WriteItem, tensor: torch.Tensor) -> Any:
    """The tensor of a write item as ckptd saves it: a Piece unless it is the whole."""
    data = item.tensor_data
    assert data is not None
    if tuple(tensor.shape) == tuple(data.size) or data.chunk is None:
        return tensor
    return Piece(tensor, tuple(data.size), tuple(data.chunk.offsets))


def parse(checkpoint_id: str | os.PathLike[str]) -> tuple[str, int]:
    """RUN@STEP, or Invalid."""
    run, at, step = os.fspath(checkpoint_id).rpartition("@")
    if not at or not run or not step.isdecimal():
        raise Invalid(f"checkpoint_id {os.fspath(checkpoint_id)!r}: want RUN@STEP", "for example llama/7b-sft@1200")
    return run, int(step)


def _size(item: WriteItem) -> int:
    data = item.tensor_data
    if data is None or data.chunk is None:
        return 0
    n = data.properties.dtype.itemsize
    for d in data.chunk.sizes:
        n *= d
    return n



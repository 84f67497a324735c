"""A state dict as DCP sees it, and as ckptd does.

DCP calls the leaves by their path joined with dots (fqn). Dicts are taken apart,
lists only where they hold tensors; everything else is one object. ckptd keeps
the nested state, in which a list that DCP took apart is a dict with numbers as
keys, because ranks may hold different elements of it.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint._nested_dict import flatten_state_dict
from torch.distributed.checkpoint.default_planner import create_default_local_save_plan
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.tensor import DTensor

from .. import _dtensor
from .._errors import Invalid
from .._tree import Piece

TORCH_SAVED = "ckptd.torch_saved"  # of an object that only a planner of the user's own could turn into bytes


def nested(values: Mapping[str, Any], mappings: Mapping[str, tuple[Any, ...]] | None) -> dict[Any, Any]:
    """Values by fqn as a nested state. mappings: the path of each fqn; without, names stay flat."""
    out: dict[Any, Any] = {}
    for fqn, value in values.items():
        *way, last = (mappings or {}).get(fqn, (fqn,))
        at = out
        for part in way:
            at = at.setdefault(part, {})
        at[last] = value
    return out


@dataclass(frozen=True)
class Items:
    """What one rank's state holds, by the index DCP knows it under."""

    write: dict[MetadataIndex, WriteItem]
    flat: dict[str, Any]
    mappings: dict[str, tuple[Any, ...]]
    structure: bytes  # equal for states that differ only in the values of tensors

    @property
    def once(self) -> frozenset[MetadataIndex]:
        """What this rank writes when the ranks do not coordinate."""
        return frozenset(i for i in self.write if is_ours(i.fqn, self.flat[i.fqn]))

    def value(self, index: MetadataIndex) -> Any:
        """The tensor (a Piece where it is a part), or the object."""
        x = self.flat[index.fqn]
        if isinstance(x, DTensor):
            local, whole, start = _dtensor.part(x)
            return local if tuple(local.shape) == tuple(whole) else Piece(local, whole, start)
        return x.detach() if isinstance(x, torch.Tensor) else x


def items_of(state_dict: dict[str, Any], is_coordinator: bool) -> Items:
    """Take a state apart as DefaultSavePlanner does."""
    flat, mappings = flatten_state_dict(state_dict)
    plan = create_default_local_save_plan(flat, is_coordinator)
    write: dict[MetadataIndex, WriteItem] = {}
    names: set[str] = set()
    digest = hashlib.blake2b(digest_size=16)
    for i in plan.items:
        if i.index.fqn in names:
            raise Invalid(f"{i.index.fqn}: this rank holds several pieces of it", "use DTensor, one a rank")
        names.add(i.index.fqn)
        write[i.index] = i
        data = i.tensor_data
        shape = (data.size, data.chunk, data.properties.dtype) if data is not None else None
        digest.update(repr((i.index, i.type, shape)).encode())
    return Items(write, flat, mappings, digest.digest())


def is_ours(fqn: str, x: Any) -> bool:
    """Whether this rank writes its part of x when the ranks do not coordinate: of those that a DTensor's mesh says
    hold the same, one, by the name. What is no DTensor every rank writes, as nothing says who else has it."""
    if not isinstance(x, DTensor):
        return True
    index, count = _dtensor.replica(x)
    return zlib.crc32(fqn.encode()) % count == index


def placeholder(x: Any) -> Any:
    """The same state without its tensors' bytes: on the meta device, which planning does not notice."""
    if isinstance(x, DTensor):
        local = x.to_local().detach().to("meta")
        return DTensor.from_local(
            local, x.device_mesh, x.placements, run_check=False, shape=x.shape, stride=x.stride()
        )  # fmt: skip
    if isinstance(x, torch.Tensor):
        return x.detach().to("meta")
    if isinstance(x, Mapping):
        return {k: placeholder(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        items = [placeholder(v) for v in x]
        return items if isinstance(x, list) else tuple(items)
    return x

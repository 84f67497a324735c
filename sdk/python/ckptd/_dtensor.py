"""torch's DTensors as pieces of whole tensors.

A DTensor says by its mesh and placements which box of the whole tensor this
rank holds; torch computes that box (also for FSDP over tensor parallelism,
where the two shard one dimension in the reverse order of the mesh).
"""

from __future__ import annotations

import sys
from typing import Any

from ._errors import Invalid


def is_dtensor(x: Any) -> bool:
    """Whether x is a torch DTensor; imports nothing."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(x, module.DTensor)


def box(x: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(start, shape) of this rank's part within the whole tensor.

    Invalid: this rank is no part of the tensor's mesh, or what it holds is a
    summand (placement Partial) and so no part of the tensor's values.
    """
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    if x.device_mesh.get_coordinate() is None:
        raise Invalid("this rank is no part of the DTensor's mesh", "leave it out of this rank's state")
    if any(p.is_partial() for p in x.placements):
        raise Invalid("a DTensor with a Partial placement is not reduced yet", "x.full_tensor(), or redistribute it")
    shape, start = compute_local_shape_and_global_offset(x.shape, x.device_mesh, x.placements)
    return tuple(int(n) for n in start), tuple(int(n) for n in shape)


def part(x: Any) -> tuple[Any, tuple[int, ...], tuple[int, ...]]:
    """(array, global shape, start): the arguments of a Piece around the DTensor's own memory."""
    start, shape = box(x)
    local = x.detach().to_local()
    if tuple(local.shape) != shape:
        raise Invalid(f"a DTensor whose local part is {list(local.shape)}, and by its placements {list(shape)}")
    return local, tuple(x.shape), start


def replica(x: Any) -> tuple[int, int]:
    """(index, count): which of how many ranks with the same part this one is."""
    index, count = 0, 1
    where = x.device_mesh.get_coordinate() or [0] * x.device_mesh.ndim
    for dim, p in enumerate(x.placements):
        if p.is_replicate():
            index = index * x.device_mesh.size(dim) + where[dim]
            count *= x.device_mesh.size(dim)
    return index, count

# pyright: basic, reportPrivateImportUsage=false
# (jax is typed in parts)
"""Pytrees of jax arrays with their shardings.

    import ckptd.jax

    ckptd.jax.save("llama/7b", step=1200, state=train_state)           # in every process of the job
    train_state = ckptd.jax.restore("llama/7b@latest", train_state)    # into the shardings of what is given

Any pytree is saved (dicts, lists, named tuples, registered dataclasses: flax and optax states), as the nested state
that `ckptd.load` and every other reader of ckptd sees. A process saves what its own devices hold, each element once in
the whole job. restore takes a tree of the same structure, of arrays or of jax.ShapeDtypeStruct with shardings, over any
number of processes and devices, and reads only what this process's devices need.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.tree_util import tree_flatten_with_path, tree_unflatten

from ._boxes import Box
from ._client import Client
from ._errors import Invalid
from ._into import leaf_paths
from ._parts import Parts, Stored, choose
from ._reshard import Spread, merge_trees
from ._save import Handle
from ._shard import Checkpoint
from ._tree import Piece

KEY = "ckptd.jax.key"  # of typed random keys: their data lies beside the name of their implementation


def save(
    run: str, *, step: int, state: Any, launch: str | None = None, metrics: Mapping[str, float] | None = None,
    data: Any = None, allow_pickle: bool = False, client: Client | None = None,
) -> Handle:  # fmt: skip
    """Save a pytree as RUN@STEP, in every process of jax.distributed; returns as soon as training may go on.

    Leaves: jax arrays of any sharding, typed random keys, numpy arrays, numbers, strings and None. What is the same in
    all processes (numbers, fully replicated arrays) one of them writes. See ckptd.save for the other arguments;
    Invalid for an array of which this process's devices hold parts that make no box together.
    """
    rank, world = jax.process_index(), jax.process_count()
    out: dict[Any, Any] = {}
    for path, leaf in tree_flatten_with_path(state)[0]:
        names = [_name(k) for k in path]
        mine = _mine(leaf, rank, ".".join(names))
        if mine is _NOTHING:
            continue
        if not names:
            return _client(client).save(
                run, step=step, state=mine, rank=rank, world_size=world, launch=launch, metrics=metrics, data=data,
                allow_pickle=allow_pickle,
            )  # fmt: skip
        at = out
        for n in names[:-1]:
            at = at.setdefault(n, {})
        at[names[-1]] = mine
    return _client(client).save(
        run, step=step, state=out, rank=rank, world_size=world, launch=launch, metrics=metrics,
        data=data, allow_pickle=allow_pickle,
    )  # fmt: skip


def restore(ref: str, like: Any, *, strict: bool = True, check: bool = True, client: Client | None = None) -> Any:
    """The pytree that was saved as REF, in the structure and the shardings of `like`.

    Leaves of `like` that are jax arrays or ShapeDtypeStructs say shape, dtype and sharding (the default device where
    they have none); others are replaced by what was saved. strict=False keeps leaves that the set does not have.
    Raises Invalid with the names that are missing or do not fit, before anything is read; NotFound, Corrupt.
    """
    paths, treedef = tree_flatten_with_path(like)
    with Checkpoint(_client(client), ref, check=check) as ck:
        parts = Parts(ck)
        try:
            tree = merge_trees(list(zip(parts.ranks, parts.trees(), strict=True)), ck.ref)
            leaves = _fill(parts, ck.ref, leaf_paths(tree), [(".".join(map(_name, p)), x) for p, x in paths], strict)
        finally:
            parts.close()
    return tree_unflatten(treedef, leaves)


def _client(client: Client | None) -> Client:
    from ._api import _default

    return client or _default


def _name(key: Any) -> str:
    for of in ("key", "name", "idx"):
        if hasattr(key, of):
            return str(getattr(key, of))
    return str(key)


_NOTHING = object()


def _is_key(x: Any) -> bool:
    return hasattr(x, "dtype") and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _mine(leaf: Any, rank: int, name: str) -> Any:
    """What this process saves of a leaf, or _NOTHING."""
    if not isinstance(leaf, jax.Array):
        return leaf if rank == 0 else _NOTHING
    if _is_key(leaf):
        data = _mine(jax.random.key_data(leaf), rank, name)
        return data if data is _NOTHING else {KEY: str(jax.random.key_impl(leaf)), "data": data}
    if leaf.is_fully_addressable and jax.process_count() == 1:
        return leaf
    held = {}
    for s in leaf.addressable_shards:
        if s.replica_id == 0:
            held[_box(s.index, leaf.shape)] = s.data
    held = {b: d for b, d in held.items() if b.size or not leaf.size}
    if not held:
        return _NOTHING
    if len(held) == 1:
        ((box, data),) = held.items()
        if box.shape == leaf.shape:
            return data
        return Piece(np.asarray(data), leaf.shape, box.start)
    start = tuple(min(b.start[d] for b in held) for d in range(leaf.ndim))
    stop = tuple(max(b.start[d] + b.shape[d] for b in held) for d in range(leaf.ndim))
    box = Box(start, tuple(b - a for a, b in zip(start, stop, strict=True)))
    if sum(b.size for b in held) != box.size:
        raise Invalid(
            f"{name}: this process's devices hold {len(held)} parts of it that make no box together",
            "order the mesh so that the devices of one process are neighbours: jax.make_mesh does",
        )
    whole = np.empty(box.shape, leaf.dtype)
    for b, d in held.items():
        whole[b.within(box)] = np.asarray(d)
    return Piece(whole, leaf.shape, box.start)


def _box(index: tuple[slice, ...], shape: tuple[int, ...]) -> Box:
    bounds = [s.indices(n)[:2] for s, n in zip(index, shape, strict=True)]
    return Box(tuple(a for a, _ in bounds), tuple(b - a for a, b in bounds))


def _fill(
    parts: Parts, ref: str, found: dict[str, Any], want: list[tuple[str, Any]], strict: bool
) -> list[Any]:  # fmt: skip
    problems: list[str] = []
    wanted: list[tuple[Stored, Box]] = []
    goes: list[tuple[int, Box]] = []  # of each part: the leaf and the box of it that was asked for
    boxes: list[dict[Box, Any]] = []  # of each leaf: what its devices here need
    for i, (name, x) in enumerate(want):
        boxes.append({})
        at = f"{name}.data" if _is_key(x) else name
        if at not in found:
            if strict:
                problems.append(f"{name} is not in the checkpoint")
            continue
        s = found[at]
        if not _is_array(x):
            if isinstance(s, Spread):
                boxes[i][Box(tuple(0 for _ in s.shape), s.shape)] = None
            continue
        shape, dtype = _shape_dtype(x)
        if not isinstance(s, Spread):
            problems.append(f"{name} is an array here and {type(s).__name__} in the checkpoint")
        elif s.shape != shape:
            problems.append(f"{name} has shape {list(shape)} here, {list(s.shape)} in the checkpoint")
        elif s.numpy_dtype != dtype:
            problems.append(f"{name} is {dtype} here and {s.numpy_dtype} in the checkpoint")
        else:
            needed: Any = _sharding(x).addressable_devices_indices_map(shape)
            for index in needed.values():
                boxes[i][_box(index or (slice(None),) * len(shape), shape)] = None
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise Invalid(f"{ref} does not fit: {'; '.join(problems[:10])}{more}", "strict=False keeps what is missing")
    me = jax.process_index()
    for i, (name, x) in enumerate(want):
        s = found.get(f"{name}.data" if _is_key(x) else name)
        for box in boxes[i]:
            assert isinstance(s, Spread)
            boxes[i][box] = np.empty(box.shape, s.numpy_dtype)
            for stored, part in choose(box, s.held, f"{ref}: {name}", me):
                stored.leaf["as"] = "numpy"  # jax arrays are made below, where they belong
                wanted.append((stored, part))
                goes.append((i, box))

    def take(n: int, array: Any) -> None:
        i, box = goes[n]
        boxes[i][box][wanted[n][1].within(box)] = array

    parts.read(wanted, take)
    return [_made(x, boxes[i], found, name) for i, (name, x) in enumerate(want)]


def _made(x: Any, boxes: dict[Box, Any], found: dict[str, Any], name: str) -> Any:
    if not _is_array(x):
        value = found.get(name, x)
        if not isinstance(value, Spread):
            return value
        (array,) = boxes.values()
        return array if array.ndim or isinstance(x, np.ndarray) else array[()]
    if not boxes:
        return x
    shape, _ = _shape_dtype(x)
    out = jax.make_array_from_callback(shape, _sharding(x), lambda index: boxes[_box(index or (), shape)])
    return jax.random.wrap_key_data(out, impl=found[f"{name}.{KEY}"]) if _is_key(x) else out


def _is_array(x: Any) -> bool:
    return isinstance(x, (jax.Array, jax.ShapeDtypeStruct))


def _shape_dtype(x: Any) -> tuple[tuple[int, ...], Any]:
    if _is_key(x):
        x = jax.eval_shape(jax.random.key_data, x)
    return tuple(x.shape), np.dtype(x.dtype)


def _sharding(x: Any) -> Any:
    s = getattr(x, "sharding", None)
    if s is None:
        return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if _is_key(x):
        data = jax.eval_shape(jax.random.key_data, x)
        return s if isinstance(s, jax.sharding.SingleDeviceSharding) else data.sharding or s
    return s

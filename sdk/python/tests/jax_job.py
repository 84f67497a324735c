"""One process of a jax job: `python jax_job.py WHAT RUN AXES`, with RANK, WORLD_SIZE, COORDINATOR and DEVICES set.

AXES is the shape of the mesh (2x2), over all devices of all processes.
"""

from __future__ import annotations

import os
import sys
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={os.environ['DEVICES']}"
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import ckptd.jax

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def whole() -> dict[str, Any]:
    r = np.random.default_rng(1)
    return {
        "a": r.standard_normal((8, 12)).astype(np.float32),
        "b": r.standard_normal((8,)).astype(jnp.bfloat16),
        "c": r.integers(0, 9, (4, 4, 8)).astype(np.int8),
        "same": r.standard_normal((5, 7)).astype(np.float32),
        "one": np.float32(3.5),
    }


def tree(axes: tuple[int, ...], fill: bool) -> dict[str, Any]:
    mesh = jax.make_mesh(axes, ("x", "y")[: len(axes)])
    y = "y" if len(axes) > 1 else None
    specs = {
        "a": PartitionSpec("x", y), "b": PartitionSpec("x"), "c": PartitionSpec(None, y, "x"), "same": PartitionSpec(),
        "one": PartitionSpec(),
    }  # fmt: skip
    out: dict[str, Any] = {}
    for name, w in whole().items():
        sharding = NamedSharding(mesh, specs[name])
        source = np.asarray(w) if fill else np.zeros_like(w)
        out[name] = jax.make_array_from_callback(source.shape, sharding, source.__getitem__)
    return {"layers": [out, {"n": 7 if fill else 0}], "key": jax.random.key(5 if fill else 0)}


def main() -> None:
    what, run, axes = sys.argv[1], sys.argv[2], tuple(map(int, sys.argv[3].split("x")))
    if WORLD > 1:
        jax.distributed.initialize(os.environ["COORDINATOR"], WORLD, RANK)
    if what == "save":
        ckptd.jax.save(run, step=1, state=tree(axes, True)).wait("local", 60)
        return
    got = ckptd.jax.restore(f"{run}@1", tree(axes, False))
    assert got["layers"][1] == {"n": 7}
    assert (jax.random.key_data(got["key"]) == jax.random.key_data(jax.random.key(5))).all()
    like = tree(axes, False)["layers"][0]
    for name, w in whole().items():
        x = got["layers"][0][name]
        assert x.sharding == like[name].sharding, name
        for s in x.addressable_shards:
            assert np.asarray(s.data).tobytes() == np.asarray(w)[s.index].tobytes(), (name, s.index)


if __name__ == "__main__":
    main()

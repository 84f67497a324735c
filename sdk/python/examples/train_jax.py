# pyright: basic
"""jax over ckptd: a small network with Adam written out, its parameters spread over all devices.

    ckptd serve &                 # or: with ckptd.local(): …
    python train_jax.py --run demo/jax --steps 60

Kill it at any moment and start it again: it goes on from the newest checkpoint, and ends with the same weights as a
run that nobody killed.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import ckptd
import ckptd.jax


class State(NamedTuple):
    params: dict[str, jax.Array]
    mean: dict[str, jax.Array]
    square: dict[str, jax.Array]
    key: jax.Array
    step: jax.Array


def fresh() -> State:
    spread = NamedSharding(jax.make_mesh((len(jax.devices()),), ("d",)), PartitionSpec("d"))
    a, b, key = jax.random.split(jax.random.key(4), 3)
    params = {"up": jax.random.normal(a, (16, 24)) * 0.1, "down": jax.random.normal(b, (24, 8)) * 0.1}
    params = jax.device_put(params, spread)
    zeros = jax.tree.map(jnp.zeros_like, params)
    return State(params, zeros, jax.tree.map(jnp.zeros_like, params), key, jnp.int32(0))


def loss(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return jnp.mean((jax.nn.relu(x @ params["up"]) @ params["down"] - x[:, :8]) ** 2)


@jax.jit
def update(s: State) -> State:
    key, now = jax.random.split(s.key)
    grads = jax.grad(loss)(s.params, jax.random.normal(now, (32, 16)))
    step = s.step + 1
    mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, s.mean, grads)
    square = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, s.square, grads)
    move = functools.partial(_move, step)
    return State(jax.tree.map(move, s.params, mean, square), mean, square, key, step)


def _move(step: jax.Array, p: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
    return p - 0.01 * (m / (1 - 0.9**step)) / (jnp.sqrt(v / (1 - 0.999**step)) + 1e-8)


def train(run: str, steps: int, every: int = 5) -> dict[str, Any]:
    """Train, resuming where the run is; gives the final weights."""
    state = fresh()
    with contextlib.suppress(ckptd.NotFound, ckptd.Incomplete):  # the first time
        state = ckptd.jax.restore(f"{run}@latest:local", state)
    for step in range(int(state.step) + 1, steps + 1):
        state = update(state)
        if step % every == 0:
            saved = ckptd.jax.save(run, step=step, state=state)
            if step == steps:
                saved.wait("local")
    return {k: np.asarray(v) for k, v in state.params.items()}


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--run", default="demo/jax")
    p.add_argument("--steps", type=int, default=60)
    a = p.parse_args()
    weights = train(a.run, a.steps)
    print(f"{len(weights)} arrays, sum {sum(float(w.astype(np.float64).sum()) for w in weights.values()):.6f}")

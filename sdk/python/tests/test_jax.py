"""Pytrees of jax arrays, saved and restored over several processes and devices."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from conftest import Daemon

import ckptd

jax = pytest.importorskip("jax", reason="jax needs Python 3.11") if sys.version_info < (3, 11) else __import__("jax")

HERE = Path(__file__).resolve().parent


def job(daemon: Daemon, processes: int, devices: int, *args: str) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{s.getsockname()[1]}"
    ps = [
        subprocess.Popen(
            [sys.executable, str(HERE / "jax_job.py"), *args], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={
                **os.environ, "RANK": str(r), "WORLD_SIZE": str(processes), "DEVICES": str(devices),
                "COORDINATOR": coordinator, "CKPTD_SOCKET": str(daemon.socket), "CKPTD_LAUNCH": uuid.uuid4().hex,
                "PYTHONPATH": str(HERE.parent),
            } | ({"CKPTD_LAUNCH": coordinator} if processes > 1 else {}),
        )
        for r in range(processes)
    ]  # fmt: skip
    for p in ps:
        out, _ = p.communicate(timeout=300)
        assert p.returncode == 0, out[-4000:]


def test_any_mesh_into_any_other(daemon: Daemon) -> None:
    for saved, restored in (
        ((2, 2, "2x2"), [(1, 1, "1"), (1, 8, "2x4")]),
        ((1, 4, "4"), [(2, 1, "2")]),
    ):
        run = f"jax/{uuid.uuid4().hex[:8]}"
        job(daemon, saved[0], saved[1], "save", run, saved[2])
        for processes, devices, mesh in restored:
            job(daemon, processes, devices, "restore", run, mesh)


def test_what_does_not_fit_is_named(daemon: Daemon) -> None:
    import jax.numpy as jnp

    import ckptd.jax as cj

    client, run = ckptd.Client(daemon.socket), f"jax/{uuid.uuid4().hex[:8]}"
    state: dict[str, Any] = {"w": jnp.ones((4, 4)), "n": 3}
    cj.save(run, step=1, state=state, client=client)
    got = cj.restore(f"{run}@1", {"w": jax.ShapeDtypeStruct((4, 4), jnp.float32), "n": 0}, client=client)
    assert isinstance(got["w"], jax.Array)
    assert (got["w"] == 1).all()
    assert got["n"] == 3
    like = {"w": jnp.ones((4, 5)), "n": 0, "b": jnp.zeros(3)}
    with pytest.raises(ckptd.Invalid, match=r"b is not in the checkpoint; w has shape \[4, 5\] here"):
        cj.restore(f"{run}@1", like, client=client)
    like = {"w": jnp.ones((4, 4), jnp.bfloat16), "b": jnp.zeros(3)}
    with pytest.raises(ckptd.Invalid, match="bfloat16 here and float32"):
        cj.restore(f"{run}@1", like, client=client)
    like = {"w": jnp.zeros((4, 4)), "b": jnp.full(3, 2.0)}
    got = cj.restore(f"{run}@1", like, strict=False, client=client)
    assert (got["b"] == 2).all()
    assert (got["w"] == 1).all()
    assert (client.load(f"{run}@1")["w"] == 1).all()

"""Which rank this process is, of how many, and in which launch of the job.

Rank and world size: the caller's, else torch.distributed's where it is
initialised, else RANK and WORLD_SIZE, else SLURM's step. The launch: the
caller's, else CKPTD_LAUNCH, else torchrun's run id and restart count, else
SLURM's job, step and restart. A process that is alone in its job is a launch of
its own.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Mapping
from typing import Any

from ._errors import Invalid

_alone: tuple[int, str] | None = None  # (pid, name): a forked child must not inherit its parent's


def detect(env: Mapping[str, str] | None = None) -> tuple[int, int] | None:
    """(rank, world size) as found, or None when nothing says so."""
    env = os.environ if env is None else env
    dist: Any = sys.modules.get("torch.distributed")
    if dist is not None and dist.is_available() and dist.is_initialized():
        return int(dist.get_rank()), int(dist.get_world_size())
    found = _pair(env, "RANK", "WORLD_SIZE")
    if found is None and env.get("SLURM_STEP_ID"):  # inside srun; a batch script alone is no rank
        world = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
        found = _pair(env, "SLURM_PROCID", world)
    return found


def _pair(env: Mapping[str, str], rank: str, world: str) -> tuple[int, int] | None:
    if rank not in env or world not in env:
        return None
    try:
        r, w = int(env[rank]), int(env[world])
    except ValueError:
        raise Invalid(f"{rank}={env[rank]!r} and {world}={env[world]!r} are not numbers") from None
    _check(r, w)
    return r, w


def rank_world(rank: int | None, world: int | None) -> tuple[int, int]:
    """The caller's word, filled up with what was found; alone when nothing was."""
    if rank is None or world is None:
        found = detect()
        if found is None:
            if rank is not None:
                raise Invalid(f"rank={rank} of how many?", "give world_size= too")
            if world not in (None, 1):
                raise Invalid(f"world_size={world}, but which rank is this?", "give rank= too")
            found = (0, 1)
        rank = found[0] if rank is None else rank
        world = found[1] if world is None else world
    _check(rank, world)
    return rank, world


def _check(rank: int, world: int) -> None:
    if world < 1 or not 0 <= rank < world:
        raise Invalid(f"rank {rank} of {world}: ranks count from 0 to world_size-1")


def launch(given: str | None, world: int, env: Mapping[str, str] | None = None) -> str:
    """The name of this launch of the job, the same in all its ranks and in no other launch."""
    env = os.environ if env is None else env
    name = given or env.get("CKPTD_LAUNCH") or _torchrun(env) or _slurm(env)
    if name:
        return name
    if world == 1:
        return _of_this_process()
    raise Invalid(
        f"{world} ranks, and nothing names the launch they belong to",
        "give every rank the same launch=, one that is new each time the job (re)starts, or set CKPTD_LAUNCH",
    )


def _torchrun(env: Mapping[str, str]) -> str | None:
    run = env.get("TORCHELASTIC_RUN_ID")
    if not run:
        return None
    restarts = env.get("TORCHELASTIC_RESTART_COUNT", "0")
    if run != "none":
        return f"torchrun-{run}-{restarts}"
    if env.get("LOCAL_WORLD_SIZE") != env.get("WORLD_SIZE"):
        raise Invalid(
            'torchrun runs on several nodes without a run id (it says "none")',
            "start it with --rdzv-id NAME, new for each launch, or set CKPTD_LAUNCH",
        )
    return f"torchrun-{_agent()}-{restarts}"


def _agent() -> str:
    """Names the torchrun that started this process: the nearest ancestor that is not itself a worker's.

    A pid alone comes again; with its start time and the boot it does not.
    """
    pid = os.getppid()
    while pid > 1 and b"TORCHELASTIC_RUN_ID=" in _proc(pid, "environ"):
        pid = int(_stat(pid)[1] or 0)
    boot = _read("/proc/sys/kernel/random/boot_id")[:8].decode()
    return f"{boot}-{pid}-{_stat(pid)[19]}"


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the command's name: state, ppid, …, [19] the start time."""
    fields = _proc(pid, "stat").rpartition(b")")[2].decode().split()
    return fields + ["0"] * (20 - len(fields))


def _proc(pid: int, name: str) -> bytes:
    return _read(f"/proc/{pid}/{name}")


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as f:
            return f.read()
    except OSError:
        return b""


def _slurm(env: Mapping[str, str]) -> str | None:
    job, step = env.get("SLURM_JOB_ID"), env.get("SLURM_STEP_ID")
    if not job or not step:
        return None
    return f"slurm-{job}.{step}-{env.get('SLURM_RESTART_COUNT', '0')}"


def _of_this_process() -> str:
    global _alone
    if _alone is None or _alone[0] != os.getpid():
        _alone = (os.getpid(), f"process-{uuid.uuid4()}")
    return _alone[1]

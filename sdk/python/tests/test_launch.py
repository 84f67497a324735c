"""Rank, world size and launch, as the environment tells them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import ckptd
from ckptd import _launch

HERE = os.path.dirname(os.path.dirname(ckptd.__file__))
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8", "TORCHELASTIC_RUN_ID": "job7",
            "TORCHELASTIC_RESTART_COUNT": "2"}  # fmt: skip
SLURM = {"SLURM_JOB_ID": "99", "SLURM_STEP_ID": "1", "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "16"}


def test_ranks_are_found() -> None:
    assert _launch.detect({}) is None
    assert _launch.detect(TORCHRUN) == (3, 8)
    assert _launch.detect(SLURM) == (5, 16)
    assert _launch.detect({"SLURM_JOB_ID": "99", "SLURM_PROCID": "0", "SLURM_NTASKS": "16"}) is None, "a batch script"
    with pytest.raises(ckptd.Invalid, match="not numbers"):
        _launch.detect({"RANK": "x", "WORLD_SIZE": "2"})
    with pytest.raises(ckptd.Invalid, match="count from 0"):
        _launch.detect({"RANK": "2", "WORLD_SIZE": "2"})


def test_the_caller_has_the_first_word(monkeypatch: pytest.MonkeyPatch) -> None:
    for k, v in TORCHRUN.items():
        monkeypatch.setenv(k, v)
    assert _launch.rank_world(None, None) == (3, 8)
    assert _launch.rank_world(1, 2) == (1, 2)
    assert _launch.rank_world(1, None) == (1, 8)
    for k in TORCHRUN:
        monkeypatch.delenv(k)
    assert _launch.rank_world(None, None) == (0, 1)
    assert _launch.rank_world(None, 1) == (0, 1)
    for bad in ((1, None), (None, 4), (4, 4), (-1, 4)):
        with pytest.raises(ckptd.Invalid):
            _launch.rank_world(*bad)


def test_launches_are_named() -> None:
    assert _launch.launch("mine", 8, TORCHRUN) == "mine"
    assert _launch.launch(None, 8, {**TORCHRUN, "CKPTD_LAUNCH": "env"}) == "env"
    assert _launch.launch(None, 8, TORCHRUN) == "torchrun-job7-2"
    assert _launch.launch(None, 16, SLURM) == "slurm-99.1-0"
    assert _launch.launch(None, 16, {**SLURM, "SLURM_RESTART_COUNT": "4"}) == "slurm-99.1-4"
    with pytest.raises(ckptd.Invalid, match="launch="):
        _launch.launch(None, 2, {})


def test_torchrun_without_a_name_on_several_nodes_is_refused() -> None:
    with pytest.raises(ckptd.Invalid, match="rdzv-id"):
        _launch.launch(None, 8, {**TORCHRUN, "TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "4"})


def test_torchrun_without_a_name_is_named_by_its_agent() -> None:
    """Two workers of one agent agree, one of them behind a shell; those of another agent do not."""
    worker = f"import sys; sys.path.insert(0, {HERE!r}); from ckptd import _launch; print(_launch.launch(None, 2))"
    agent = (
        "import os, subprocess, sys\n"
        "env = {**os.environ, 'TORCHELASTIC_RUN_ID': 'none', 'WORLD_SIZE': '2', 'LOCAL_WORLD_SIZE': '2'}\n"
        f"w = {worker!r}\n"
        "a = subprocess.check_output([sys.executable, '-c', w], env=env, text=True)\n"
        "b = subprocess.check_output(['sh', '-c', '\"$0\" -c \"$1\"; true', sys.executable, w], env=env, text=True)\n"
        "print(a.strip(), b.strip())\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "CKPTD_LAUNCH"}
    outs = [subprocess.check_output([sys.executable, "-c", agent], env=env, text=True).split() for _ in range(2)]
    assert outs[0][0] == outs[0][1]
    assert outs[1][0] == outs[1][1]
    assert outs[0][0] != outs[1][0]


def test_a_process_alone_is_a_launch_that_no_forked_child_inherits() -> None:
    code = (
        "import os, sys; from ckptd import _launch as l\n"
        "mine = l.launch(None, 1, {}); assert mine == l.launch(None, 1, {})\n"
        "print(mine, flush=True)\n"
        "if os.fork() == 0: print(l.launch(None, 1, {}), flush=True); os._exit(0)\n"
        "os.wait()\n"
    )
    names = subprocess.check_output([sys.executable, "-c", code], cwd=HERE, text=True).split()
    assert len(set(names)) == 2

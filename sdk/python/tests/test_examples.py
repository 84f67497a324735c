"""The example scripts: killed at random moments, resumed, and equal to a run that nobody killed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Daemon

HERE = Path(__file__).resolve().parent
KILLS = int(os.environ.get("CKPTD_EXAMPLE_KILLS", "10"))
EXAMPLES = sorted(p.stem for p in (HERE.parent / "examples").glob("train_*.py"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_killed_example_ends_with_the_same_weights(name: str, daemon: Daemon) -> None:
    seed = random.randrange(1 << 30)
    env = {**os.environ, "CKPTD_SOCKET": str(daemon.socket), "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    got = subprocess.run(
        [sys.executable, str(HERE / "kill_example.py"), name, str(KILLS), "40", str(seed)],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900,
    )  # fmt: skip
    assert got.returncode == 0, got.stdout[-6000:]
    assert f"{KILLS} kills" in got.stdout or int(got.stdout.rpartition(": ")[2].split()[0]) >= KILLS

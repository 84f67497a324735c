"""One rank of the quickstart's training job: a torch DataLoader over a data set, and a checkpoint in the middle.

`quickstart_rank.py begin|resume WORLD RANK` says the key and SHA-256 of each sample it trains on, a line each, and
"over" after its checkpoint or, when it resumes, after the end of the epoch.
"""

from __future__ import annotations

import hashlib
import io
import json
import signal
import sys
from typing import Any

import numpy as np

import ckptd
import ckptd.data

NAME, RUN, STEP, SEED = "icons", "quickstart/icons", 100, 7
BATCH, WORKERS, PIXELS = 32, 2, 32


def decode(sample: bytes) -> tuple[str, Any]:
    """In a worker: the SHA-256 of the file and its image as a tensor of 3 × PIXELS × PIXELS; black if it is none."""
    import torch
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(sample)) as image:
            pixels = np.asarray(image.convert("RGBA").convert("RGB").resize((PIXELS, PIXELS))).copy()
    except (UnidentifiedImageError, OSError):
        pixels = np.zeros((PIXELS, PIXELS, 3), np.uint8)
    return hashlib.sha256(sample).hexdigest(), torch.from_numpy(pixels).permute(2, 0, 1)


def collate(samples: list[tuple[str, Any]]) -> tuple[list[str], Any]:
    """In a worker: a batch's sums, and its images as one tensor."""
    import torch

    return [sha for sha, _ in samples], torch.stack([pixels for _, pixels in samples])


def main(resume: bool, world: int, rank: int) -> None:
    import torch

    torch.set_num_threads(1)  # the ranks of a node share its cores
    state = {"model": {"mean": torch.zeros(3, PIXELS, PIXELS)}}
    with ckptd.data.Dataset(NAME, seed=SEED, rank=rank, world_size=world, decode=decode) as data:
        loader = data.loader(BATCH, num_workers=WORKERS, collate=collate)
        if resume:
            ckptd.load(f"{RUN}@latest", rank=rank % world, data=loader)
        numbers = iter(data.order.at(np.asarray(data.positions(data.at))))
        last = None if resume else len(data) // (2 * world * BATCH)  # batches before the checkpoint
        saved = False
        for count, (sums, pixels) in enumerate(loader, 1):
            state["model"]["mean"] += pixels.float().mean(0)  # the training step
            if saved:
                continue  # what is not in a checkpoint when the job dies was for nothing
            for sha in sums:
                print(json.dumps([data.key(int(next(numbers))), sha]))
            if count == last:
                ckptd.save(RUN, step=STEP, state=state, rank=rank, world_size=world, launch="icons", data=loader)
                print("over", flush=True)
                saved = True
    if resume:
        print("over", flush=True)
        return
    while True:
        signal.pause()  # a rank that was quick has read its part of the epoch


if __name__ == "__main__":
    main(sys.argv[1] == "resume", int(sys.argv[2]), int(sys.argv[3]))

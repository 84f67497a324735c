"""Checkpoints of PyTorch Lightning in ckptd.

    from ckptd.lightning import CheckpointIO

    trainer = Trainer(plugins=[CheckpointIO("resnet/50")], callbacks=[ModelCheckpoint(every_n_train_steps=100)])
    trainer.fit(model, ckpt_path=CheckpointIO("resnet/50").last())     # None the first time

What Lightning hands over is saved as RUN@global_step; save_checkpoint returns when the bytes are the daemon's, so no
AsyncCheckpointIO is needed around it. The paths that Lightning makes up stay names: the set carries each as a tag, by
which it is loaded and removed again; `ckpt_path` may be a reference (RUN@latest, RUN@1200) as well. Nothing is written
to those paths.
"""

# pyright: basic
# (lightning is typed in parts)
from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO as Base

from ._client import Client
from ._errors import Incomplete, Invalid, NotFound
from ._save import Handle, _level
from ._sets import Set

Path = str | os.PathLike[str]

TAG = "lightning-"  # and a hash of the path, for paths are longer than tags may be


class CheckpointIO(Base):
    """A plugin of lightning's Trainer and Fabric.

    run: where the checkpoints go. level: what teardown waits for, for at most `timeout` seconds: "local" by default.
    allow_pickle: for checkpoints that hold objects of other kinds than tensors, numbers, strings and containers, as
    hyperparameters may; they are refused otherwise. storage_options of trainer.save_checkpoint: {"metrics": {…}}.
    """

    def __init__(
        self, run: str, *, level: str = "local", timeout: float = 600.0, allow_pickle: bool = False,
        client: Client | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        _level(level)
        self.run, self.level, self.timeout, self.allow_pickle = run, level, timeout, allow_pickle
        self._client = client or Client()
        self._last: Handle | None = None
        self._untagged: dict[str, str] = {}  # of sets not yet committed, which can have no tags: tag -> set

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Path, storage_options: Any | None = None) -> None:
        """Save what Lightning dumped; its global_step is the step. The same step again is one more name for it."""
        if "global_step" not in checkpoint:
            raise Invalid("a Lightning checkpoint without global_step", "trainer.save_checkpoint makes them")
        step = int(checkpoint["global_step"])
        more: Mapping[str, Any] = storage_options or {}
        self._settle()  # two sets of one step cannot both be its newest
        if self._last is None or _step(self._last.set) != step:
            self._last = self._client.save(
                self.run, step=step, state=checkpoint, rank=0, world_size=1, allow_pickle=self.allow_pickle, **more
            )
        self._untagged[_tag(path)] = self._last.set

    def load_checkpoint(
        self, path: Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """A checkpoint by the path it was saved under, or by reference. weights_only=False allows pickled objects."""
        self._settle()
        device = map_location if not callable(map_location) and not isinstance(map_location, dict) else None
        return self._client.load(
            self._ref(path), rank=0, device=device, copy=True,
            allow_pickle=self.allow_pickle and weights_only is not True,
        )  # fmt: skip

    def remove_checkpoint(self, path: Path) -> None:
        """Take a name from its set; a set that has no more names is removed, by ckptd's rules: bytes go later."""
        self._settle()
        found = self._find(path)
        if found is None:
            return
        found = self._client.tag(found.id, {_tag(path): None})
        if not any(t.startswith(TAG) for t in found.tags):
            self._client.remove(found.id)

    def teardown(self) -> None:
        """Wait for the last checkpoint's safety."""
        self._settle()
        if self._last is not None:
            self._last.wait(self.level, self.timeout)

    def last(self) -> str | None:
        """The reference of the run's newest checkpoint, for ckpt_path; None where there is none."""
        try:
            return self._client.set(f"{self.run}@latest:local").id
        except (NotFound, Incomplete):  # the first is still being written
            return None

    def _settle(self) -> None:
        """Give the names to the sets, which must be committed for that: soon after their save returned."""
        while self._untagged:
            tag, of = next(iter(self._untagged.items()))
            self._client.wait(of, "local", timeout=self.timeout)
            self._client.tag(of, {tag: "1"})
            self._untagged.pop(tag)

    def _find(self, path: Path) -> Set | None:
        tag = _tag(path)
        return next((s for s in self._client.list(self.run) if tag in s.tags), None)

    def _ref(self, path: Path) -> str:
        name = os.fspath(path)
        found = self._find(path)
        if found is not None:
            return found.id
        if "@" in os.path.basename(name) or name.startswith(f"{self.run}@"):
            return name
        raise NotFound(f"run {self.run} has no checkpoint {name!r}", f"ckpt_path='{self.run}@latest'")


def _tag(path: Path) -> str:
    return TAG + hashlib.blake2b(os.fsencode(os.path.abspath(path)), digest_size=10).hexdigest()


def _step(set_id: str) -> int:
    return int(set_id.rpartition("@")[2].partition("#")[0])



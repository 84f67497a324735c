"""Checkpoints of Hugging Face's Trainer in ckptd.

    from ckptd.transformers import Callback

    saver = Callback("bert/sst2")
    trainer = Trainer(model, args, train_dataset=data, callbacks=[saver])     # save_strategy="steps" or "epoch"
    trainer.train(resume_from_checkpoint=saver.resume())                      # None the first time

Whenever the Trainer is about to save, the callback saves instead: model, optimizer, scheduler, gradient scaler, the
Trainer's own state and each process's random numbers, as RUN@global_step; training goes on when the bytes are the
daemon's, and no checkpoint folder is written. resume() makes such a folder of a set, for the Trainer to read, and
takes it away when training has ended.
"""

# pyright: basic
# (transformers is typed in parts)
from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import random
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from ._client import Client
from ._errors import Incomplete, Invalid, NotFound
from ._save import Handle, _level

FOLDER = "ckptd-resume-"
FRESH = 60.0  # seconds within which a folder without a lock may be about to get it


class Callback(TrainerCallback):
    """Saves what the Trainer would, and gives it back.

    run: where the checkpoints go. level: what the end of training waits for, for at most `timeout` seconds.
    trainer: only to keep the state of other callbacks that have one (ExportableState), as early stopping has.

    Not for FSDP and DeepSpeed, whose state no callback sees (torch.distributed.checkpoint and ckptd.torch.Writer are
    for them), nor for save_strategy="best" and load_best_model_at_end, which need the Trainer's own folders
    (`ckpt prune --keep-best` and RUN@STEP do that here); each is refused when training begins.
    """

    def __init__(
        self, run: str, *, level: str = "local", timeout: float = 600.0, trainer: Trainer | None = None,
        client: Client | None = None,
    ) -> None:  # fmt: skip
        _level(level)
        self.run, self.level, self.timeout, self.trainer = run, level, timeout, trainer
        self._client = client or Client()
        self._last: Handle | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._held = -1  # the lock of it

    # --- saving ---

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        if args.load_best_model_at_end or str(getattr(args.save_strategy, "value", args.save_strategy)) == "best":
            raise Invalid(
                "the best model is found in folders that the Trainer writes, and ckptd keeps none",
                "save_strategy='steps' or 'epoch'; metrics are kept with each set, for ckpt prune --keep-best",
            )
        if getattr(args, "fsdp", None) or getattr(args, "deepspeed", None):
            raise Invalid(
                "the state of FSDP and DeepSpeed is spread over the ranks and seen by no callback",
                "torch.distributed.checkpoint with ckptd.torch.Writer",
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        self._save_instead(args, state, control, kw)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        self._save_instead(args, state, control, kw)

    def _save_instead(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, kw: Mapping[str, Any]
    ) -> None:
        if not control.should_save:
            return
        control.should_save = False
        if self._last is not None and self._last.set.partition("#")[0] == f"{self.run}@{state.global_step}":
            return  # the last step of an epoch is both
        one: dict[str, Any] = {"rng": _random()}
        if state.is_world_process_zero:
            one |= {"model": _plain(kw["model"]).state_dict(), "trainer": self._state(state, control)}
            if not args.save_only_model:
                one |= {"optimizer": kw["optimizer"].state_dict(), "scheduler": kw["lr_scheduler"].state_dict()}
                scaler = getattr(getattr(self.trainer, "accelerator", None), "scaler", None)
                if scaler is not None:
                    one["scaler"] = scaler.state_dict()
        self._last = self._client.save(
            self.run, step=state.global_step, state=one, rank=args.process_index, world_size=args.world_size,
            metrics=_metrics(state),
        )  # fmt: skip

    def _state(self, state: TrainerState, control: TrainerControl) -> dict[str, Any]:
        """The Trainer's state as the JSON it reads back, with that of the callbacks as they are now."""
        out = dataclasses.asdict(state)
        handler = getattr(self.trainer, "callback_handler", None)
        for c in [*(handler.callbacks if handler is not None else []), control]:
            if isinstance(c, ExportableState):
                name, now = type(c).__name__, c.state()
                before = out["stateful_callbacks"].get(name)
                out["stateful_callbacks"][name] = [*before, now] if isinstance(before, list) else now
        out["stateful_callbacks"].get("TrainerControl", {}).get("attributes", {}).pop("should_save", None)
        return out

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        self._clear()
        if self._last is not None:
            self._last.wait(self.level, self.timeout)

    # --- resuming ---

    def _clear(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
            os.close(self._held)

    def resume(self, ref: str | None = None) -> str | None:
        """A folder for train(resume_from_checkpoint=), made of `ref` (RUN@latest when None); None where the run has no
        checkpoint yet. It is in the system's folder for temporary files, and gone when training ends."""
        try:
            found = self._client.set(ref or f"{self.run}@latest:local")
        except (NotFound, Incomplete):
            if ref is not None:
                raise
            return None
        states = self._client.load(found.id, rank="all")
        zero = states[0]
        if "trainer" not in zero or "model" not in zero:
            raise Invalid(f"{found.id} was not saved by this callback", "ckptd.load gives its state")
        self._clear()
        _sweep()
        self._folder = tempfile.TemporaryDirectory(prefix=FOLDER)
        self._held = _lock(self._folder.name)
        at = self._folder.name
        torch.save(zero["model"], os.path.join(at, "pytorch_model.bin"))
        names = {"optimizer": "optimizer.pt", "scheduler": "scheduler.pt", "scaler": "scaler.pt"}
        for key, name in names.items():
            if key in zero:
                torch.save(zero[key], os.path.join(at, name))
        for rank, s in enumerate(states):
            torch.save(s["rng"], os.path.join(at, "rng_state.pth" if len(states) == 1 else f"rng_state_{rank}.pth"))
        TrainerState(**zero["trainer"]).save_to_json(os.path.join(at, "trainer_state.json"))
        return at


def _lock(folder: str | os.PathLike[str]) -> int:
    """Hold a folder for as long as this process lives; BlockingIOError where another one does."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _sweep() -> None:
    """Take away the folders of processes that were killed while they trained."""
    for left in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > FRESH:
                fd = _lock(left)
                shutil.rmtree(left, ignore_errors=True)
                os.close(fd)


def _plain(model: Any) -> Any:
    while hasattr(model, "module") and isinstance(model.module, torch.nn.Module):
        model = model.module
    return model


def _random() -> dict[str, Any]:
    """This process's random numbers, under the names that the Trainer reads."""
    out: dict[str, Any] = {"python": random.getstate(), "numpy": np.random.get_state()}
    out["cpu"] = torch.random.get_rng_state()
    if torch.cuda.is_available():
        many = torch.distributed.is_available() and torch.distributed.is_initialized()
        out["cuda"] = torch.cuda.random.get_rng_state_all() if many else torch.cuda.random.get_rng_state()
    return out


def _metrics(state: TrainerState) -> dict[str, float]:
    """The newest of the numbers that were logged."""
    out: dict[str, float] = {}
    for entry in state.log_history[-20:]:
        out |= {k: float(v) for k, v in entry.items() if isinstance(v, (int, float)) and k not in ("step", "epoch")}
    return out

"""Hugging Face's Trainer over ckptd: a tiny BERT that learns to tell which half of its input is larger.

    ckptd serve &                 # or: with ckptd.local(): …
    python train_transformers.py --run bert/tiny --steps 40

Kill it at any moment and start it again: it goes on from the newest checkpoint, and ends with the same weights as a
run that nobody killed.
"""

# pyright: basic
from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

from ckptd.transformers import Callback


class Halves(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 256

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(1, 60, (8,), generator=torch.Generator().manual_seed(i))
        return {"input_ids": ids, "labels": (ids[:4].sum() > ids[4:].sum()).long()}


def train(run: str, steps: int, every: int = 5) -> dict[str, Any]:
    """Train, resuming where the run is; gives the final weights."""
    set_seed(11)
    config = BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=8,
    )  # fmt: skip
    saver = Callback(run)
    with tempfile.TemporaryDirectory() as out:  # for the Trainer's own files, of which there are none
        args = TrainingArguments(
            out, max_steps=steps, save_strategy="steps", save_steps=every, per_device_train_batch_size=8,
            learning_rate=1e-3, logging_steps=every, report_to=[], disable_tqdm=True, use_cpu=True,
        )  # fmt: skip
        trainer = Trainer(BertForSequenceClassification(config), args, train_dataset=Halves(), callbacks=[saver])
        trainer.train(resume_from_checkpoint=saver.resume())
    assert trainer.model is not None
    return trainer.model.state_dict()


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--run", default="bert/tiny")
    p.add_argument("--steps", type=int, default=40)
    a = p.parse_args()
    weights = train(a.run, a.steps)
    print(f"{len(weights)} tensors, sum {sum(float(w.double().sum()) for w in weights.values()):.6f}")

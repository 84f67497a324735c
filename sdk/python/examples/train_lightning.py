"""Lightning's Trainer over ckptd: a small regression with dropout and a learning-rate schedule.

    ckptd serve &                 # or: with ckptd.local(): …
    python train_lightning.py --run demo/lightning --steps 60

Kill it at any moment and start it again: it goes on from the newest checkpoint, and ends with the same weights as a
run that nobody killed.
"""

# pyright: basic
from __future__ import annotations

import argparse
import tempfile
import warnings
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader  # pyright: ignore[reportMissingTypeStubs]

from ckptd.lightning import CheckpointIO


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layers = torch.nn.Sequential(torch.nn.Linear(12, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        torch.manual_seed(self.global_step)  # dropout by the step, so that a resumed run drops the same
        x, y = batch
        return torch.nn.functional.mse_loss(self.layers(torch.nn.functional.dropout(x, 0.1)), y)

    def configure_optimizers(self) -> Any:
        opt = torch.optim.AdamW(self.parameters(), lr=1e-2)
        # By the step: one by the epoch, saved at an epoch's last step, Lightning itself does not resume exactly.
        return [opt], [{"scheduler": torch.optim.lr_scheduler.StepLR(opt, 10, 0.9), "interval": "step"}]


def train(run: str, steps: int, every: int = 5) -> dict[str, Any]:
    """Train, resuming where the run is; gives the final weights."""
    warnings.filterwarnings("ignore", module="lightning")
    g = torch.Generator().manual_seed(3)
    x = torch.randn(160, 12, generator=g)
    # Lightning resumes within an epoch only where the loader can say where it is.
    data = StatefulDataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8)
    store = CheckpointIO(run)
    with tempfile.TemporaryDirectory() as out:  # for Lightning's own files, of which there are none
        keep = ModelCheckpoint(dirpath=out, every_n_train_steps=every, save_top_k=-1)
        trainer = Trainer(
            max_steps=steps, plugins=[store], callbacks=[keep], accelerator="cpu", devices=1, logger=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=out,
        )  # fmt: skip
        net = Net()
        trainer.fit(net, data, ckpt_path=store.last(), weights_only=False)
    return net.state_dict()


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--run", default="demo/lightning")
    p.add_argument("--steps", type=int, default=60)
    a = p.parse_args()
    weights = train(a.run, a.steps)
    print(f"{len(weights)} tensors, sum {sum(float(w.double().sum()) for w in weights.values()):.6f}")

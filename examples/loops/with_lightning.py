"""Progressive learning in Lightning (pip install lightning). Run: python examples/loops/with_lightning.py"""

import sys

import lightning
import torch
from photos import PLAN, Photos
from torch.utils.data import DataLoader

import efficientnetv2 as ev2

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 60
photos = Photos()


class Classifier(lightning.LightningModule):
    """Any network. The setting is applied before each batch; of several processes each draws its share of it."""

    def __init__(self):
        super().__init__()
        self.network = ev2.create("efficientnetv2_b0", num_classes=len(photos.classes))

    def train_dataloader(self):
        words = {"rank": self.trainer.global_rank, "world": self.trainer.world_size}
        batches = ev2.ProgressiveBatches(len(photos), batch_images=16, progressive=PLAN, steps=steps, **words)
        return DataLoader(photos, batch_sampler=batches)

    def on_train_batch_start(self, batch, batch_idx):
        setting = PLAN.at(self.global_step, steps=steps)
        ev2.apply_setting(self.network, dropout=setting.dropout, drop_path=setting.drop_path)
        print(f"step {self.global_step}: {batch[0].shape[-1]} px, dropout {setting.dropout:.2f}")

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return torch.nn.functional.cross_entropy(self.network(images), labels)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
lightning.Trainer(max_steps=steps, use_distributed_sampler=False, **quiet).fit(Classifier())

"""Progressive learning in Lightning (pip install lightning). Run: python examples/loops/with_lightning.py [STEPS]"""

import sys

import lightning
import torch
from photos import PLAN, Growing, Photos, Whole, collate
from torch.utils.data import DataLoader

import efficientnetv2 as ev2


class Classifier(lightning.LightningModule):
    """Any network. The trainer gives the number of steps, processes and micro-batches, and the first step."""

    def __init__(self, network, photos, held_out):
        super().__init__()
        self.network, self.photos, self.held_out = network, photos, held_out

    def train_dataloader(self):
        of = self.trainer
        words = {"rank": of.global_rank, "world": of.world_size, "accumulate": of.accumulate_grad_batches}
        words |= {"progressive": PLAN, "steps": of.max_steps, "first_step": of.global_step}
        batches = ev2.ProgressiveBatchSampler(len(self.photos), batch_size=16, **words)
        return DataLoader(Growing(self.photos), batch_sampler=batches, collate_fn=plain)

    def training_step(self, batch, batch_idx):
        setting = ev2.StepSettings(**batch["setting"])
        reached = ev2.apply_regularization(self.network, setting)
        at = f"{setting.image_size} px, dropout {setting.dropout:.2f}"
        print(f"step {self.global_step}: {at}; set: {reached}")
        return self._loss(batch)

    def val_dataloader(self):
        return DataLoader(Whole(self.held_out, PLAN.last), batch_size=16, collate_fn=plain)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self._loss(batch), batch_size=len(batch["labels"]))

    def _loss(self, batch):
        return torch.nn.functional.cross_entropy(self.network(batch["images"]), batch["labels"])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def plain(samples):
    """The setting as plain values: Lightning rebuilds the content of a batch and rejects frozen classes."""
    batch = collate(samples)
    return batch | {"setting": batch["setting"].to_json()}


def train(steps=60, checkpoint=None, **words):
    """A run, or what is left of it after a checkpoint; further words go to Lightning's Trainer, which is returned."""
    photos = Photos()
    network = ev2.create("efficientnetv2_b0", num_classes=len(photos.classes)).train()
    often = {"val_check_interval": 20, "check_val_every_n_epoch": None}  # the whole run is one epoch
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    # The sampler splits the batches over the processes already: Lightning must not split them again.
    trainer = lightning.Trainer(max_steps=steps, use_distributed_sampler=False, **(often | quiet | words))
    trainer.fit(Classifier(network, photos, Photos(held_out=True)), ckpt_path=checkpoint)
    return trainer


if __name__ == "__main__":
    print(train(*map(int, sys.argv[1:])).callback_metrics)

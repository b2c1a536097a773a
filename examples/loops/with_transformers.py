"""Progressive learning in Hugging Face's Trainer (pip install transformers accelerate).

Run: python examples/loops/with_transformers.py [STEPS]
"""

import sys
import tempfile

import torch
from photos import PLAN, Photos, collate
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

import efficientnetv2 as ev2


class ProgressiveTrainer(Trainer):
    """Applies each batch's setting. A run that goes on skips what it had by itself, so there is no ``first_step``."""

    def get_train_dataloader(self):
        of = self.args
        words = {
            "rank": of.process_index,
            "world": of.world_size,
            "accumulate": of.gradient_accumulation_steps,
        }
        images = of.train_batch_size * words["world"] * words["accumulate"]
        batches = ev2.ProgressiveBatches(
            len(self.train_dataset), batch_images=images, progressive=PLAN, steps=of.max_steps, **words
        )
        return DataLoader(self.train_dataset, batch_sampler=batches, collate_fn=collate)

    def training_step(self, model, inputs, *others):
        *batch, setting = inputs
        ev2.apply_setting(model, setting)
        dropout = next(m.p for m in model.modules() if isinstance(m, torch.nn.Dropout))
        print(f"step {self.state.global_step}: {batch[0].shape[-1]} px, dropout {dropout:.2f}")
        return super().training_step(model, batch, *others)

    def compute_loss(self, model, inputs, **others):
        images, labels = inputs
        return torch.nn.functional.cross_entropy(model(images), labels)


def train(steps=60, checkpoint=None, callbacks=(), **words):
    """A run, or what is left of it after a checkpoint; further words go to TrainingArguments."""
    photos = Photos()
    network = ev2.create("efficientnetv2_b0", num_classes=len(photos.classes))
    quiet = {"save_strategy": "no", "report_to": [], "remove_unused_columns": False, "disable_tqdm": True}
    quiet |= {"per_device_train_batch_size": 16, "max_steps": steps, "learning_rate": 1e-3}
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(**({"output_dir": folder} | quiet | words))
        trainer = ProgressiveTrainer(
            model=network, args=arguments, train_dataset=photos, callbacks=[*callbacks]
        )
        trainer.train(resume_from_checkpoint=checkpoint)


if __name__ == "__main__":
    train(*map(int, sys.argv[1:]))

"""Progressive learning in Hugging Face's Trainer (pip install transformers accelerate).

Run: python examples/loops/with_transformers.py
"""

import sys
import tempfile

import torch
from photos import PLAN, Photos
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

import efficientnetv2 as ev2

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 60
photos = Photos()


class ProgressiveTrainer(Trainer):
    """Applies the setting before each step. Of several processes each draws its share of a batch."""

    def get_train_dataloader(self):
        words = {"rank": self.args.process_index, "world": self.args.world_size}
        batches = ev2.ProgressiveBatches(len(photos), batch_images=16, progressive=PLAN, steps=steps, **words)
        return DataLoader(photos, batch_sampler=batches)

    def training_step(self, model, inputs, *others):
        setting = PLAN.at(self.state.global_step, steps=steps)
        ev2.apply_setting(model, dropout=setting.dropout, drop_path=setting.drop_path)
        dropout = next(m.p for m in model.modules() if isinstance(m, torch.nn.Dropout))
        print(f"step {self.state.global_step}: {inputs[0].shape[-1]} px, dropout {dropout:.2f}")
        return super().training_step(model, inputs, *others)

    def compute_loss(self, model, inputs, **others):
        images, labels = inputs
        return torch.nn.functional.cross_entropy(model(images), labels)


network = ev2.create("efficientnetv2_b0", num_classes=len(photos.classes))
quiet = {"save_strategy": "no", "report_to": [], "remove_unused_columns": False, "disable_tqdm": True}
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(output_dir=folder, max_steps=steps, learning_rate=1e-3, **quiet)
    ProgressiveTrainer(model=network, args=arguments, train_dataset=photos).train()

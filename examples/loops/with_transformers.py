"""Progressive learning in Hugging Face's Trainer (pip install transformers accelerate).

Run: python examples/loops/with_transformers.py
"""

import sys
import tempfile

import torch
from photos import PLAN, Photos
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments

import efficientnetv2 as ev2

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 60
photos = Photos()


class Growing(TrainerCallback):
    """Sets dropout and stochastic depth of the network before each step."""

    def on_step_begin(self, args, state, control, model=None, **others):
        setting = PLAN.at(state.global_step, steps=steps)
        ev2.apply_setting(model, dropout=setting.dropout, drop_path=setting.drop_path)


class ProgressiveTrainer(Trainer):
    """Takes its batches from our sampler."""

    def get_train_dataloader(self):
        batches = ev2.ProgressiveBatches(len(photos), batch_images=16, progressive=PLAN, steps=steps)
        return DataLoader(photos, batch_sampler=batches)

    def compute_loss(self, model, inputs, **others):
        images, labels = inputs
        dropout = next(m.p for m in model.modules() if isinstance(m, torch.nn.Dropout))
        print(f"step {self.state.global_step}: {images.shape[-1]} px, dropout {dropout:.2f}")
        return torch.nn.functional.cross_entropy(model(images), labels)


with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        learning_rate=1e-3,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    network = ev2.create("efficientnetv2_b0", num_classes=len(photos.classes))
    ProgressiveTrainer(model=network, args=arguments, train_dataset=photos, callbacks=[Growing()]).train()

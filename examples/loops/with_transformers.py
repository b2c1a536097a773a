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
        of, photos = self.args, self.train_dataset
        world, accumulate = of.world_size, of.gradient_accumulation_steps
        words = {"rank": of.process_index, "world": world, "accumulate": accumulate}
        words |= {"progressive": PLAN, "steps": of.max_steps}
        images = of.train_batch_size * world * accumulate
        batches = ev2.ProgressiveBatches(len(photos), batch_images=images, **words)
        return DataLoader(photos, batch_sampler=batches, collate_fn=collate)

    def training_step(self, model, inputs, *others):
        ev2.apply_setting(model, inputs["setting"])
        dropout = next(m.p for m in model.modules() if isinstance(m, torch.nn.Dropout))
        print(f"step {self.state.global_step}: {inputs['images'].shape[-1]} px, dropout {dropout:.2f}")
        return super().training_step(model, inputs, *others)

    def compute_loss(self, model, inputs, return_outputs=False, **others):
        logits = model(inputs["images"])
        loss = torch.nn.functional.cross_entropy(logits, inputs["labels"])
        return (loss, {"logits": logits}) if return_outputs else loss


def train(steps=60, checkpoint=None, callbacks=(), **words):
    """A run, or what is left of it after a checkpoint; further words go to TrainingArguments. Returns the trainer."""
    photos, held_out = Photos(), Photos(held_out=PLAN.last)
    network = ev2.create("efficientnetv2_b0", num_classes=len(photos.classes))
    often = {
        "eval_strategy": "steps",
        "eval_steps": 20,
        "label_names": ["labels"],
    }  # the whole run is one epoch
    quiet = {"save_strategy": "no", "report_to": [], "remove_unused_columns": False, "disable_tqdm": True}
    size = {"per_device_train_batch_size": 16, "max_steps": steps, "learning_rate": 1e-3}
    data = {"train_dataset": photos, "eval_dataset": held_out, "data_collator": collate}
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(**({"output_dir": folder} | often | quiet | size | words))
        trainer = ProgressiveTrainer(model=network, args=arguments, callbacks=[*callbacks], **data)
        trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


if __name__ == "__main__":
    train(*map(int, sys.argv[1:]))

"""Progressive learning in Hugging Face's Trainer, with a model of transformers (pip install transformers accelerate).

Run: python examples/loops/with_transformers.py [STEPS]
"""

import sys
import tempfile

from photos import PLAN, Growing, Photos, Whole, collate
from torch.utils.data import DataLoader
from transformers import EfficientNetConfig, EfficientNetForImageClassification, Trainer, TrainingArguments

import efficientnetv2 as ev2


class ProgressiveTrainer(Trainer):
    """Applies the setting of each batch. A resumed run skips earlier batches, so ``first_step`` is not needed."""

    def __init__(self, *words, **more):
        super().__init__(*words, **more)
        # The loss of these models is the mean of a micro-batch, so it must be divided by their number.
        self.model_accepts_loss_kwargs = False

    def get_train_dataloader(self):
        of, photos = self.args, self.train_dataset
        world, accumulate = of.world_size, of.gradient_accumulation_steps
        words = {"rank": of.process_index, "world": world, "accumulate": accumulate}
        images = of.train_batch_size * world * accumulate
        words |= {"progressive": PLAN, "steps": of.max_steps, "batch_size": images}
        batches = ev2.ProgressiveBatchSampler(len(photos), **words)
        return DataLoader(Growing(photos), batch_sampler=batches, collate_fn=with_setting)

    def training_step(self, model, inputs, *others):
        setting = inputs.pop("setting")
        model.train()  # an evaluation has left it in evaluation mode
        reached = ev2.apply_regularization(model, setting)
        at = f"{setting.image_size} px, dropout {setting.dropout:.2f}"
        print(f"step {self.state.global_step}: {at}; set: {reached}")
        return super().training_step(model, inputs, *others)


def as_inputs(samples):
    """Images and labels by the names that models of transformers take."""
    batch = collate(samples)
    return {"pixel_values": batch["images"], "labels": batch["labels"]}


def with_setting(samples):
    """The same, with the setting."""
    return as_inputs(samples) | {"setting": samples[0][2]}


def network_for(classes):
    """EfficientNet-B0 of transformers, untrained."""
    size = {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280}
    return EfficientNetForImageClassification(EfficientNetConfig(num_labels=len(classes), **size))


def train(steps=60, checkpoint=None, callbacks=(), **words):
    """A run, or what is left of it after a checkpoint; further words go to TrainingArguments. Returns the trainer."""
    photos, held_out = Photos(), Whole(Photos(held_out=True), PLAN.last)
    often = {"eval_strategy": "steps", "eval_steps": 20}  # the whole run is one epoch
    quiet = {"save_strategy": "no", "report_to": [], "remove_unused_columns": False, "disable_tqdm": True}
    size = {"per_device_train_batch_size": 16, "max_steps": steps, "learning_rate": 1e-3}
    data = {"train_dataset": photos, "eval_dataset": held_out, "data_collator": as_inputs}
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(**({"output_dir": folder} | often | quiet | size | words))
        network = network_for(photos.classes)
        trainer = ProgressiveTrainer(model=network, args=arguments, callbacks=[*callbacks], **data)
        trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


if __name__ == "__main__":
    train(*map(int, sys.argv[1:]))

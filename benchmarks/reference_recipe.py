"""torchvision's reference training of EfficientNetV2, shortened: a plain loop with its transforms and its recipe.

Run: python -m benchmarks.reference_recipe PICTURES --output FILE.json [--epochs 10] [--lr 0.03125] [--seed 0]

From pytorch/vision, references/classification (README, "EfficientNet-V2"):

- SGD with momentum 0.9, learning rate 0.5 for 1,024 images (here in proportion to the batch size).
- Linear warm-up (there 5 of 600 epochs, here 1) from a hundredth, then cosine. Here the rate changes with each step.
  With a change per epoch, a tenth of this short run would have a hundredth of the rate.
- Weight decay 2e-5, except for norms.
- TrivialAugment, random erasing 0.1, label smoothing 0.1, mixup 0.2 or CutMix 1.0.
- A moving average every 32 steps that covers the same fraction of the run.

Not used: the 600 epochs, and repeated augmentation, which is for several processes. The architecture is timm's, as for
the other programs. Writes top-1 of the average on PICTURES/val, and the seconds of the steps with waiting for images.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import timm
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, default_collate
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Every 32 steps. There each update has weight 0.00109 (from decay, batch size, epochs), and a run has 23,456 updates.
# With torchvision's formula, the average of a short run would stay near the weights of its first epoch.
_EMA_STEPS, _EMA_WHOLE_RUN = 32, 0.00109 * 23_456


def loaders(options: argparse.Namespace) -> tuple[DataLoader, DataLoader, int]:
    """Return training and validation batches, and the number of classes."""
    px = options.image_size
    end = [v2.PILToTensor(), v2.ToDtype(torch.float, scale=True), v2.Normalize(_MEAN, _STD)]
    augment = [v2.RandomResizedCrop(px), v2.RandomHorizontalFlip(), v2.TrivialAugmentWide()]
    train = ImageFolder(options.pictures / "train", v2.Compose([*augment, *end, v2.RandomErasing(0.1)]))
    whole = [v2.Resize(round(px / 0.875)), v2.CenterCrop(px)]
    val = ImageFolder(options.pictures / "val", v2.Compose([*whole, *end]))
    classes = len(train.classes)
    mix = v2.RandomChoice([v2.MixUp(alpha=0.2, num_classes=classes), v2.CutMix(alpha=1.0, num_classes=classes)])
    return (
        DataLoader(
            train, options.batch_size, shuffle=True, drop_last=True, num_workers=options.workers,
            collate_fn=lambda batch: mix(*default_collate(batch)), persistent_workers=options.workers > 0,
        ),
        DataLoader(val, options.batch_size, num_workers=options.workers),
        classes,
    )  # fmt: skip


def trained(train: DataLoader, classes: int, options: argparse.Namespace) -> tuple[nn.Module, float]:
    """Return the moving average after training, and the seconds of the steps."""
    model = timm.create_model("tf_efficientnetv2_b0", num_classes=classes)
    model = model.to(memory_format=torch.channels_last).train()
    steps = len(train)
    alpha = min(1.0, _EMA_WHOLE_RUN * _EMA_STEPS / (steps * options.epochs))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(1 - alpha), use_buffers=True)
    norms = [
        weight
        for part in model.modules()
        if isinstance(part, nn.BatchNorm2d)
        for weight in part.parameters(recurse=False)
    ]
    norm_ids = {id(weight) for weight in norms}
    others = [weight for weight in model.parameters() if id(weight) not in norm_ids]
    optimizer = torch.optim.SGD(
        [{"params": norms, "weight_decay": 0.0}, {"params": others, "weight_decay": 2e-5}], lr=options.lr, momentum=0.9
    )
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=steps)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, steps * (options.epochs - 1)))
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], milestones=[steps])
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)
    began = time.perf_counter()
    for epoch in range(options.epochs):
        for step, (images, labels) in enumerate(train):
            images = images.to(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
                loss = loss_of(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % _EMA_STEPS == 0:
                average.update_parameters(model)
                if epoch < 1:  # during warmup-up, the average is the model
                    average.n_averaged.fill_(0)
        print(f"epoch {epoch + 1} of {options.epochs}: loss {loss.item():.2f} ({steps} steps)", flush=True)
    return average, time.perf_counter() - began


@torch.inference_mode()
def top1(model: nn.Module, val: DataLoader) -> float:
    """Return the fraction of correct predictions on ``val``."""
    model.eval()
    correct = [(model(images).argmax(1) == labels).float() for images, labels in val]
    return float(torch.cat(correct).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="train/ and val/ with a folder per class")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=0.5 * 64 / 1024)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    train, val, classes = loaders(options)
    model, seconds = trained(train, classes, options)
    found = {"top1": top1(model, val), "train_s": round(seconds, 2), "epochs": options.epochs}
    options.output.write_text(json.dumps(found) + "\n", encoding="utf-8")
    print(found)


if __name__ == "__main__":
    main()

"""torchvision's reference training of EfficientNetV2, cut to a short run: a plain loop, its transforms, its recipe.

Run: python -m benchmarks.reference_recipe PICTURES --output FILE.json [--epochs 10] [--lr 0.03125] [--seed 0]

From pytorch/vision, references/classification (README, "EfficientNet-V2"): SGD with momentum 0.9, rate 0.5 for 1,024
images (here in proportion to the batch), linear warm-up (5 of 600 epochs there, 1 here) from a hundredth, cosine;
weight decay 2e-5, none of norms; TrivialAugment, random erasing 0.1, label smoothing 0.1, mixup 0.2 or CutMix 1.0; a
moving average every 32 steps that spans the same share of the run as there. The rate changes with every step, not with
every epoch: a tenth of so short a run would else be at a hundredth of it. Not taken over: repeated augmentation, which
is for several processes, and the 600 epochs. The network is timm's, the one that the others train.

Writes top-1 of the average on PICTURES/val, and the seconds of the steps, waiting for images included.
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
# Every 32 steps; there each counts 0.00109 (from decay, batch and epochs), and a run has 23,456 of them. By the formula
# that gives it there, the average of a short run would stay near the weights of its first epoch.
_EMA_STEPS, _EMA_WHOLE_RUN = 32, 0.00109 * 23_456


def loaders(options: argparse.Namespace) -> tuple[DataLoader, DataLoader, int]:
    """Training and validation batches, and the number of classes."""
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
    """The moving average after training, and the seconds of the steps."""
    network = timm.create_model("tf_efficientnetv2_b0", num_classes=classes)
    network = network.to(memory_format=torch.channels_last).train()
    steps = len(train)
    alpha = min(1.0, _EMA_WHOLE_RUN * _EMA_STEPS / (steps * options.epochs))
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(1 - alpha), use_buffers=True)
    norms = [
        weight
        for part in network.modules()
        if isinstance(part, nn.BatchNorm2d)
        for weight in part.parameters(recurse=False)
    ]
    held = {id(weight) for weight in norms}
    others = [weight for weight in network.parameters() if id(weight) not in held]
    optimizer = torch.optim.SGD(
        [{"params": norms, "weight_decay": 0.0}, {"params": others, "weight_decay": 2e-5}], lr=options.lr, momentum=0.9
    )
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=steps)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(1, steps * (options.epochs - 1)))
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], milestones=[steps])
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.1)
    began = time.perf_counter()
    for epoch in range(options.epochs):
        for step, (images, labels) in enumerate(train):
            images = images.to(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
                loss = loss_of(network(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % _EMA_STEPS == 0:
                average.update_parameters(network)
                if epoch < 1:  # while the rate warms up the average is the network
                    average.n_averaged.fill_(0)
        print(f"epoch {epoch + 1} of {options.epochs}: loss {loss.item():.2f} ({steps} steps)", flush=True)
    return average, time.perf_counter() - began


@torch.inference_mode()
def top1(network: nn.Module, val: DataLoader) -> float:
    """Share of the images of ``val`` that are answered rightly."""
    network.eval()
    right = [(network(images).argmax(1) == labels).float() for images, labels in val]
    return float(torch.cat(right).mean())


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
    network, seconds = trained(train, classes, options)
    found = {"top1": top1(network, val), "train_s": round(seconds, 2), "epochs": options.epochs}
    options.output.write_text(json.dumps(found) + "\n", encoding="utf-8")
    print(found)


if __name__ == "__main__":
    main()

"""The entries of Imagenette's leaderboard for 128 px and 5 or 20 epochs, with the fastai package.

Run: FASTAI_PYTHON benchmarks/leaderboard_recipe.py PICTURES --output FILE.json [--epochs 5] [--lr 0.008] [--seed 0]

FASTAI_PYTHON is a Python with fastai 2 (``pip install fastai "fastprogress<1.1"``). The file imports nothing else of
this repository.

Both entries: ``xse_resnext50`` with Mish and self-attention, MaxBlurPool in place of max pooling, Ranger, a constant
learning rate of 0.008 and a cosine in the last quarter, weight decay 0.01, label smoothing.

- up to 5 epochs: batches of 32, the whole image cropped to a square, flips. 87.43 % there
  (radekosmulski/imagenette-LB-entry at f96d0a0, "imagenette - 5 epochs.ipynb"; its first version had weight decay
  0.0001 and 87.53 %).
- more epochs: batches of 64, random crops of at least 0.35 of the area, flips. 91.57 % there after 20 epochs
  (ducha-aiki/imagewoofv2-fastv2-maxpoolblur; values: fastai/imagenette, 2020-01-train.md).

The published entries use Imagenette at 320 px and a GPU, the second entry in half precision. ``--bf16`` is the
equivalent on a CPU.

Writes top-1 on PICTURES/val after the last epoch, the seconds of all training batches, with waiting for images, and
when each epoch began and ended.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from fastai.callback.core import Callback, CancelValidException
from fastai.callback.schedule import fit_flat_cos  # noqa: F401  (a method of Learner)
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import GrandparentSplitter, get_image_files, parent_label
from fastai.layers import MaxPool
from fastai.learner import Learner
from fastai.losses import LabelSmoothingCrossEntropy
from fastai.metrics import accuracy
from fastai.optimizer import ranger
from fastai.torch_core import set_seed
from fastai.vision.augment import FlipItem, RandomResizedCrop, Resize
from fastai.vision.data import ImageBlock
from fastai.vision.models.xresnet import xse_resnext50
from torch import nn
from torch.nn import functional


class MaxBlurPool(nn.Module):
    """Maximum of 2 x 2 pixels with stride 1, then a binomial 3 x 3 filter with stride 2."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> half of the height and width."""
        images = functional.max_pool2d(images, 2, stride=1, ceil_mode=True)
        row = torch.tensor([1.0, 2.0, 1.0], dtype=images.dtype, device=images.device) / 4
        channels = images.shape[1]
        kernel = torch.outer(row, row).expand(channels, 1, 3, 3)
        return functional.conv2d(images, kernel, stride=2, padding=1, groups=channels)


class TrainingTime(Callback):
    """Store when each epoch of training began and ended, and skip the validation within ``fit``."""

    def before_fit(self) -> None:
        """Forget earlier epochs."""
        self.spans: list[tuple[float, float]] = []

    def before_train(self) -> None:
        """Start the clock."""
        self.began = time.perf_counter()

    def after_train(self) -> None:
        """Add an epoch."""
        self.spans.append((self.began, time.perf_counter()))

    def before_validate(self) -> None:
        """Skip the validation."""
        raise CancelValidException


class CpuBf16(Callback):
    """Mixed precision on a CPU. fastai's callback supports only CUDA."""

    def before_batch(self) -> None:
        """Enter autocast."""
        self.precision = torch.autocast("cpu", torch.bfloat16)
        self.precision.__enter__()

    def after_pred(self) -> None:
        """Return to fp32 for the loss."""
        self.learn.pred = self.pred.float()

    def after_loss(self) -> None:
        """Leave autocast before the backward pass."""
        self.precision.__exit__(None, None, None)


def with_blur(model: nn.Module) -> nn.Module:
    """Replace each max pooling of a model with ``MaxBlurPool``."""
    for name, part in model.named_children():
        setattr(model, name, MaxBlurPool() if isinstance(part, nn.MaxPool2d) else with_blur(part))
    return model


def learner(options: argparse.Namespace) -> Learner:
    """Model, data and optimizer of the entry."""
    short, px = options.epochs <= 5, options.image_size
    crop = Resize(px) if short else RandomResizedCrop(px, min_scale=0.35)
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label,
        splitter=GrandparentSplitter(valid_name="val"), item_tfms=[crop, FlipItem(0.5)],
    )  # fmt: skip
    loaders = block.dataloaders(options.pictures, bs=32 if short else 64, num_workers=options.workers, device="cpu")
    model = with_blur(xse_resnext50(n_out=loaders.c, act_cls=nn.Mish, sa=1, sym=0, pool=MaxPool))
    if options.channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = partial(ranger, mom=0.95, sqr_mom=0.99, eps=1e-6, beta=0)
    callbacks = [CpuBf16()] if options.bf16 else []
    return Learner(
        loaders, model, loss_func=LabelSmoothingCrossEntropy(), opt_func=optimizer, metrics=accuracy, cbs=callbacks
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="train/ and val/ with a folder per class")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=8e-3)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    set_seed(options.seed)
    learn, timed = learner(options), TrainingTime()
    with learn.no_bar(), learn.no_logging():
        learn.fit_flat_cos(options.epochs, options.lr, wd=1e-2, cbs=timed)
        _, top1 = learn.validate()
    versions = {name: version(name) for name in ("torch", "torchvision", "pillow", "fastai")}
    train_s = round(sum(end - began for began, end in timed.spans), 2)
    found = {
        "top1": top1, "train_s": train_s, "spans": timed.spans, "epochs": options.epochs, "versions": versions,
    }  # fmt: skip
    options.output.write_text(json.dumps(found) + "\n", encoding="utf-8")
    print(found)


if __name__ == "__main__":
    main()

"""The pictures of the three examples: those that come with the repository, each at the size its setting asks for."""

import csv
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms import v2

import efficientnetv2 as ev2

FOLDER = Path(__file__).resolve().parents[1] / "land_cover"
PLAN = ev2.Progressive(
    stages=3, image_px=ev2.Ramp(32, 64), randaugment=ev2.Ramp(2, 6), dropout=ev2.Ramp(0.0, 0.2)
)


class Photos(Dataset):
    """``photos[index, setting]``, to train on: a picture of ``setting.image_px``, its class and the setting.

    With ``held_out`` every fifth picture instead, ``photos[index]``, to validate on: whole, at the setting given.
    """

    def __init__(self, held_out=None):
        rows = list(csv.DictReader((FOLDER / "pictures.csv").read_text().splitlines()))
        self.classes = sorted({row["label"] for row in rows})
        self.held_out = held_out
        self.rows = [row for n, row in enumerate(rows) if (n % 5 == 0) == (held_out is not None)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, asked):
        index, setting = asked if self.held_out is None else (asked, self.held_out)
        row = self.rows[index]
        augmented = [
            v2.RandomResizedCrop(setting.image_px, scale=(0.35, 1), antialias=True),
            v2.RandomHorizontalFlip(),
            # Of a plan's magnitudes 10 is the full range of most operations, of torchvision's 30.
            v2.RandAugment(2, round(3 * setting.randaugment)),
        ]
        whole = [v2.Resize((setting.image_px, setting.image_px), antialias=True)]
        transform = v2.Compose([*(augmented if self.held_out is None else whole), v2.PILToTensor()])
        with Image.open(FOLDER / row["path"]) as file:
            image = transform(file.convert("RGB"))
        return image.float() / 127.5 - 1, self.classes.index(row["label"]), setting


def collate(samples):
    """Images, labels and the setting that all of them were made for."""
    images, labels, settings = zip(*samples, strict=True)
    return {"images": torch.stack(images), "labels": torch.tensor(labels), "setting": settings[0]}

"""Datasets whose image size grows during training, and the images of the three examples."""

import csv
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset
from torchvision.transforms import v2

import efficientnetv2 as ev2

FOLDER = Path(__file__).resolve().parents[1] / "land_cover"
PLAN = ev2.ProgressiveSchedule(
    stages=3, image_size=ev2.Ramp(32, 64), randaugment=ev2.Ramp(2, 6), dropout=ev2.Ramp(0.0, 0.2)
)
TO_FLOATS = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]


def augmentation(setting):
    """The augmentation of an image, at the size and magnitude of a setting."""
    parts = [v2.RandomResizedCrop(setting.image_size, scale=(0.35, 1)), v2.RandomHorizontalFlip()]
    if setting.randaugment:
        # Of a plan's magnitudes 10 is the full range of most operations; of torchvision's it is 30, the largest.
        parts.append(v2.RandAugment(2, min(30, round(3 * setting.randaugment))))
    return v2.Compose([*parts, *TO_FLOATS])


class Growing(Dataset):
    """``growing[index, setting]``: an image augmented by the setting, its class, and the setting."""

    def __init__(self, photos):
        self.photos = photos  # photos[index] is a PIL image and its class, as in ImageFolder

    def __len__(self):
        return len(self.photos)

    def __getitem__(self, asked):
        index, setting = asked
        image, label = self.photos[index]
        return augmentation(setting)(image), label, setting


def collate(samples):
    """Images, labels and their common setting."""
    images, labels, settings = zip(*samples, strict=True)
    return {"images": torch.stack(images), "labels": torch.tensor(labels), "setting": settings[0]}


class Whole(Dataset):
    """``whole[index]``: a validation image at the size of the setting, its class, and the setting."""

    def __init__(self, photos, setting):
        self.photos, self.setting = photos, setting
        size = (setting.image_size, setting.image_size)
        self.transform = v2.Compose([v2.Resize(size), *TO_FLOATS])

    def __len__(self):
        return len(self.photos)

    def __getitem__(self, index):
        image, label = self.photos[index]
        return self.transform(image), label, self.setting


class Photos(Dataset):
    """The images of the repository, with their classes: every fifth held out, or all others."""

    def __init__(self, *, held_out=False):
        rows = list(csv.DictReader((FOLDER / "images.csv").read_text().splitlines()))
        self.classes = sorted({row["label"] for row in rows})
        self.rows = [row for number, row in enumerate(rows) if (number % 5 == 0) == held_out]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        with Image.open(FOLDER / row["path"]) as file:
            return ImageOps.exif_transpose(file).convert("RGB"), self.classes.index(row["label"])

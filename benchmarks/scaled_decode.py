"""Cost of scaled JPEG decoding in accuracy: one trained model on the same images, decoded in two ways.

Run: python -m benchmarks.scaled_decode MODEL DATA [--pictures 1000] [--record]

MODEL is a model file or run folder, DATA its labeled validation images. The images are enlarged four times and stored
as JPEG files again, so that there is something to skip. The model predicts each image twice: decoded at the smallest
sufficient scale, and decoded fully.

- ``scaled_decode_eval_gain``: top-1 of scaled − full decoding in points, with a 95 % interval over the images, with the
  crop of evaluation.
- ``scaled_decode_train_gain``: the same with a random crop of 35 to 100 % of the area, as in training.

It also prints the mean difference of the pixels in gray levels.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable

import numpy as np
import torch
from benchmarks.record import record
from PIL import Image

from efficientnetv2.data.dataset import ImageDataset, load_dataset
from efficientnetv2.data.decode import CROP_UNIFORMS, load_eval_image, load_image, load_train_image
from efficientnetv2.data.image_io import Pixels, Source
from efficientnetv2.models import model_file
from efficientnetv2.models.efficientnet import Network
from efficientnetv2.transforms.pipeline import normalize
from efficientnetv2.utils.random_key import Key

ENLARGED, QUALITY, AREA_MIN, BATCH = 4, 92, 0.35, 64
_PICTURES = 1000


def enlarged(path: str) -> bytes:
    """Return the image as a JPEG file with four times the width and height."""
    image = load_image(path)
    large = image.resize((image.width * ENLARGED, image.height * ENLARGED), Image.Resampling.BICUBIC)
    content = io.BytesIO()
    large.save(content, "JPEG", quality=QUALITY)
    return content.getvalue()


def predicted_classes(model: Network, images: list[Pixels]) -> np.ndarray:
    """Predict the class of each image."""
    preprocessing = model.preprocessing
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        inputs = normalize(batch, mean=preprocessing.mean, std=preprocessing.std)
        return model(inputs).argmax(1).numpy()


def measured(
    model: Network, dataset: ImageDataset, rows: np.ndarray, framed: Callable[[Source, int], Pixels]
) -> tuple[np.ndarray, float]:
    """Return (N, 2) correct predictions (scaled, full), and the mean difference of the pixels."""
    correct, differences = [], []
    for first in range(0, len(rows), BATCH):
        batch = rows[first : first + BATCH].tolist()
        scaled, whole = [], []
        for row in batch:
            content = enlarged(dataset.file(row))
            scaled.append(framed(content, row))
            whole.append(framed(load_image(content), row))  # an image that is already decoded
        labels = dataset.labels[batch]
        correct.append(np.stack([predicted_classes(model, images) == labels for images in (scaled, whole)], axis=1))
        differences.append(np.abs(np.stack(scaled).astype(int) - np.stack(whole)).mean())
    return np.concatenate(correct), float(np.mean(differences))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--pictures", type=int, default=_PICTURES)
    parser.add_argument("--record", action="store_true", help="write results/summary.json")
    options = parser.parse_args()
    model = model_file.load(options.model).eval()
    dataset = load_dataset(options.data)
    if (dataset.split == "val").any():
        dataset = dataset.subset("val")
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(options.pictures, len(dataset))).astype(int))
    preprocessing = model.preprocessing
    uniforms = Key.of(0).uniform_rows(range(len(dataset)), CROP_UNIFORMS).tolist()

    def as_training(source: Source, row: int) -> Pixels:
        return load_train_image(
            source,
            image_size=preprocessing.image_size,
            crop_mode=preprocessing.crop_mode,
            area_min=AREA_MIN,
            uniforms=uniforms[row],
            interpolation=preprocessing.interpolation,
            mean=preprocessing.mean,
        )

    decoders = {"eval": lambda source, _row: load_eval_image(source, preprocessing), "train": as_training}
    for name, framed in decoders.items():
        correct, difference = measured(model, dataset, rows, framed)
        gain = 100 * (correct[:, 0].astype(float) - correct[:, 1])
        half = 1.96 * gain.std(ddof=1) / len(gain) ** 0.5
        print(
            f"{name}: top-1 {correct[:, 0].mean():.1%} scaled, {correct[:, 1].mean():.1%} whole; "
            f"pixels differ by {difference:.2f} grey levels in the mean"
        )
        claim = f"scaled_decode_{name}_gain"
        value = float(gain.mean())
        print(f"{claim}: {value:+.2f} points ({value - half:+.2f} to {value + half:+.2f}), n = {len(rows)}")
        if options.record:
            more = "" if options.pictures == _PICTURES else f" --pictures {options.pictures}"
            command = f"python -m benchmarks.scaled_decode MODEL DATA{more} --record"
            record(claim, value, unit="points", low=value - half, high=value + half, n=len(rows), command=command)


if __name__ == "__main__":
    main()

"""What decoding little costs in accuracy: one trained network on the same images, decoded both ways.

Run: python -m benchmarks.scaled_decode MODEL DATA [--pictures 1000] [--record]

MODEL is a model file or run folder, DATA the labelled images it was validated on. They are enlarged four times and
stored as JPEG files again, so that there is something to leave out. Each is then answered as evaluation frames it, and
as a random crop of 35 to 100 % of its area as training cuts it: decoded at the smallest scale that suffices, and
decoded whole. The gain is of the former over the latter, in points of top-1, with the 95 % interval of the pairs; the
mean difference of the pixels is in grey levels.
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
    """The image as a JPEG file of four times its sides."""
    picture = load_image(path)
    large = picture.resize((picture.width * ENLARGED, picture.height * ENLARGED), Image.Resampling.BICUBIC)
    content = io.BytesIO()
    large.save(content, "JPEG", quality=QUALITY)
    return content.getvalue()


def answered(network: Network, pictures: list[Pixels]) -> np.ndarray:
    """The class given to each."""
    preprocessing = network.preprocessing
    batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        inputs = normalize(batch, mean=preprocessing.mean, std=preprocessing.std)
        return network(inputs).argmax(1).numpy()


def measured(
    network: Network, dataset: ImageDataset, rows: np.ndarray, framed: Callable[[Source, int], Pixels]
) -> tuple[np.ndarray, float]:
    """Per image whether it is answered rightly (scaled, whole), and the mean difference of the pixels."""
    right, differences = [], []
    for first in range(0, len(rows), BATCH):
        some = rows[first : first + BATCH].tolist()
        scaled, whole = [], []
        for row in some:
            content = enlarged(dataset.file(row))
            scaled.append(framed(content, row))
            whole.append(framed(load_image(content), row))  # an image that is decoded already
        labels = dataset.labels[some]
        right.append(np.stack([answered(network, way) == labels for way in (scaled, whole)], axis=1))
        differences.append(np.abs(np.stack(scaled).astype(int) - np.stack(whole)).mean())
    return np.concatenate(right), float(np.mean(differences))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--pictures", type=int, default=_PICTURES)
    parser.add_argument("--record", action="store_true", help="write results/summary.json")
    options = parser.parse_args()
    network = model_file.load(options.model).eval()
    dataset = load_dataset(options.data)
    if (dataset.split == "val").any():
        dataset = dataset.subset("val")
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(options.pictures, len(dataset))).astype(int))
    preprocessing = network.preprocessing
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

    ways = {"eval": lambda source, _row: load_eval_image(source, preprocessing), "train": as_training}
    for name, framed in ways.items():
        right, difference = measured(network, dataset, rows, framed)
        gain = 100 * (right[:, 0].astype(float) - right[:, 1])
        half = 1.96 * gain.std(ddof=1) / len(gain) ** 0.5
        print(
            f"{name}: top-1 {right[:, 0].mean():.1%} scaled, {right[:, 1].mean():.1%} whole; "
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

"""Classify images with an exported ONNX model. Needs numpy, Pillow and onnxruntime; neither torch nor efficientnetv2.

    python classify.py model.onnx photo.jpg folder/

prints a line of CSV per image: path, label, probability. In a program: ``Classifier("model.onnx")(["photo.jpg"])``.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_BATCH = 32
_FLIPS = Image.Transpose
# Of the EXIF tag Orientation.
_UPRIGHT = {
    2: _FLIPS.FLIP_LEFT_RIGHT,
    3: _FLIPS.ROTATE_180,
    4: _FLIPS.FLIP_TOP_BOTTOM,
    5: _FLIPS.TRANSPOSE,
    6: _FLIPS.ROTATE_270,
    7: _FLIPS.TRANSVERSE,
    8: _FLIPS.ROTATE_90,
}


def load_pixels(path: str | Path, info: Mapping[str, str]) -> Any:
    """An image file as the model sees it: (S, S, 3) uint8. ``info`` is the metadata of the model."""
    kept: tuple[float, ...]
    size, mode = int(info["image_size"]), info["crop_mode"]
    with Image.open(path) as stored:
        image: Image.Image = stored
        width, height = image.size
        if mode == "border":
            factor = size / max(width, height)
            kept, target = (width, height), (max(1, round(width * factor)), max(1, round(height * factor)))
        else:
            shortest = (min(width, height),) * 2 if mode == "center" else (width, height)
            kept, target = tuple(float(info["crop_pct"]) * side for side in shortest), (size, size)
        # A large JPEG is decoded at a fraction of its size, with at least twice the pixels that are needed.
        largest = min(kept[0] / (2 * target[0]), kept[1] / (2 * target[1]))
        fraction = max(scale for scale in (1, 2, 4, 8) if scale <= max(1, largest))
        image.draft("RGB", (width // fraction, height // fraction))
        scale_x, scale_y = width / image.width, height / image.height
        left, top = (width - kept[0]) / 2 / scale_x, (height - kept[1]) / 2 / scale_y
        box = (left, top, min(image.width, left + kept[0] / scale_x), min(image.height, top + kept[1] / scale_y))
        small = to_rgb(image).resize(target, _FILTERS[info["interpolation"]], box=box)
        turn = _UPRIGHT.get(image.getexif().get(0x0112, 1))
        image = small if turn is None else small.transpose(turn)
    if mode == "border":
        fill = tuple(min(255, max(0, round(255 * mean))) for mean in json.loads(info["mean"]))
        canvas = Image.new("RGB", (size, size), fill)
        canvas.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
        image = canvas
    return np.asarray(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """The image as RGB; what is transparent becomes white."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def normalize(pixels: Any, info: Mapping[str, str]) -> Any:
    """(N, S, S, 3) uint8 to (N, 3, S, S) float32."""
    mean, std = (np.array(json.loads(info[name]), np.float64) for name in ("mean", "std"))
    scaled = pixels * (1 / (255 * std)).astype(np.float32) + (-mean / std).astype(np.float32)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32)


class Classifier:
    """An exported ONNX model."""

    def __init__(self, model: str | Path) -> None:
        import onnxruntime  # type: ignore[import-untyped,unused-ignore]

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self.info = self.session.get_modelmeta().custom_metadata_map
        if "bands" in self.info:
            raise ValueError("this model reads bands of rasters; read them with efficientnetv2")
        self.names = json.loads(self.info["names"])

    def __call__(self, paths: Sequence[str | Path]) -> list[tuple[str, Any]]:
        """Label and probabilities of each image file."""
        found = []
        for start in range(0, len(paths), _BATCH):
            pixels = np.stack([load_pixels(path, self.info) for path in paths[start : start + _BATCH]])
            images = pixels if self.info["input"] == "uint8" else normalize(pixels, self.info)
            (probabilities,) = self.session.run(["probabilities"], {"images": images})
            found += [(self.names[int(row.argmax())], row) for row in probabilities]
        return found


def main() -> None:
    """Classify the files and folders of the command line."""
    model, *paths = sys.argv[1:]
    known = set(Image.registered_extensions())
    files = []
    for path in map(Path, paths):
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in known) if path.is_dir() else [path]
        files += inside
    table = csv.writer(sys.stdout)
    table.writerow(["path", "predicted_label", "probability"])
    for file, (label, row) in zip(files, Classifier(model)(files), strict=True):
        table.writerow([file, label, f"{row.max():.6f}"])


if __name__ == "__main__":
    main()

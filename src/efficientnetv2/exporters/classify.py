"""Classify images with an exported ONNX model. Needs numpy, Pillow and onnxruntime; neither torch nor efficientnetv2.

    python classify.py model.onnx photo.jpg folder/

prints a line of CSV per image: path, predicted label (of a multi-label model all, joined by ";") and probability.
In a program: ``Classifier("model.onnx")(["photo.jpg"])``.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

PngImagePlugin.MAX_TEXT_CHUNK = 2**24  # 1 MiB refuses PNGs with a large color profile
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_TURN = Image.Transpose
# By the EXIF tag Orientation.
_UPRIGHT = {
    2: _TURN.FLIP_LEFT_RIGHT, 3: _TURN.ROTATE_180, 4: _TURN.FLIP_TOP_BOTTOM, 5: _TURN.TRANSPOSE, 6: _TURN.ROTATE_270,
    7: _TURN.TRANSVERSE, 8: _TURN.ROTATE_90,
}  # fmt: skip


def load_input(path: str | Path, info: Mapping[str, str]) -> Any:
    """An image file as the model takes it, as a batch of one. ``info`` is the metadata of the model."""
    with Image.open(path) as stored:
        if info["input"] == "uint8":  # the model crops and resizes
            return np.asarray(_upright(_to_rgb(stored), stored))[None]
        pixels = np.asarray(_square(stored, info))[None]
    mean, std = (np.array(json.loads(info[name]), np.float64) for name in ("mean", "std"))
    scaled = pixels * (1 / (255 * std)).astype(np.float32) + (-mean / std).astype(np.float32)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32)


def _square(image: Image.Image, info: Mapping[str, str]) -> Image.Image:
    """The part of an image that the model sees, upright, at the model's size."""
    size, (width, height) = int(info["image_size"]), image.size
    kept, target = (float(width), float(height)), (size, size)
    if info["crop_mode"] == "border":
        factor = size / max(width, height)
        target = max(1, round(width * factor)), max(1, round(height * factor))
    else:
        sides = (min(width, height),) * 2 if info["crop_mode"] == "center" else (width, height)
        kept = float(info["crop_pct"]) * sides[0], float(info["crop_pct"]) * sides[1]
    # A large JPEG is decoded at a fraction of its size, with at least twice the pixels that are needed.
    most = min(kept[0] / (2 * target[0]), kept[1] / (2 * target[1]))
    scale = max(scale for scale in (1, 2, 4, 8) if scale <= max(1, most))
    image.draft("RGB", (width // scale, height // scale))
    scale = scale if image.size != (width, height) else 1
    left, top = (width - kept[0]) / 2 / scale, (height - kept[1]) / 2 / scale
    box = (left, top, min(image.width, left + kept[0] / scale), min(image.height, top + kept[1] / scale))
    part = _upright(_to_rgb(image).resize(target, _FILTERS[info["interpolation"]], box=box), image)
    canvas = Image.new("RGB", (size, size), tuple(min(255, max(0, round(255 * m))) for m in json.loads(info["mean"])))
    canvas.paste(part, ((size - part.width) // 2, (size - part.height) // 2))
    return canvas


def _to_rgb(image: Image.Image) -> Image.Image:
    """The image as RGB. What is transparent becomes white; of 16 bits the upper 8 count, and floats are 0 to 1."""
    if image.mode[0] in "IF":
        values = np.nan_to_num(np.asarray(image, np.float64), posinf=0, neginf=0)
        levels = values.clip(0, 65535) // 256 if image.mode[0] == "I" else values.clip(0, 1) * 255
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image, stored: Image.Image) -> Image.Image:
    try:
        return image.transpose(_UPRIGHT[stored.getexif()[0x0112]])
    except Exception:  # upright, or damaged metadata, which does not spoil the pixels
        return image


class Classifier:
    """An exported ONNX model."""

    def __init__(self, model: str | Path) -> None:
        import onnxruntime  # type: ignore[import-untyped,unused-ignore]

        onnxruntime.set_default_logger_severity(3)
        self.session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        self.info = self.session.get_modelmeta().custom_metadata_map
        if "bands" in self.info:
            raise ValueError("this model reads bands of rasters; read them with efficientnetv2")
        self.names = json.loads(self.info["names"])

    def __call__(self, paths: Iterable[str | Path]) -> list[tuple[str, Any]]:
        """Label and probabilities of each image file."""
        return [self.predict(path) for path in paths]

    def predict(self, path: str | Path) -> tuple[str, Any]:
        """Label and probabilities of an image file."""
        (rows,) = self.session.run(["probabilities"], {"images": load_input(path, self.info)})
        return self.label(rows[0]), rows[0]

    def label(self, probabilities: Any) -> str:
        """The most probable class, or all labels of a multi-label model, the most probable first."""
        order = np.argsort(-probabilities, kind="stable")
        if self.info["problem_type"].startswith("multi"):
            return ";".join(self.names[index] for index in order if probabilities[index] >= 0.5)
        return str(self.names[order[0]])


def main() -> None:
    """Classify the files and folders of the command line."""
    if len(sys.argv) < 3:
        sys.exit(f"{__doc__}\nerror: give a model and at least one image or folder")
    model, *paths = sys.argv[1:]
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files: list[Path] = []
    for path in map(Path, paths):
        files += sorted(one for one in path.rglob("[!.]*") if one.suffix.lower() in known) if path.is_dir() else [path]
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    table, classifier, skipped = csv.writer(sys.stdout, lineterminator="\n"), Classifier(model), 0
    table.writerow(["path", "predicted_label", "probability"])
    for file in files:
        try:
            label, probabilities = classifier.predict(file)
        except Exception as error:  # Pillow raises nearly everything
            print(f"skipped {file}: {error}", file=sys.stderr)
            skipped += 1
        else:
            table.writerow([file, label, f"{probabilities.max():.6f}"])
    if skipped:
        sys.exit(f"{skipped} of {len(files)} images could not be read.")


if __name__ == "__main__":
    main()

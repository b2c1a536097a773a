"""Equal logits with equal weights: ours against timm, torchvision and Keras, through files in both directions.

Run: make parity            (tens of minutes and some gigabytes of memory on two cores; runs/parity stores finished
                            rows, and the same code and versions read them again)
     python -m benchmarks.parity --only efficientnetv2_b0

A row compares the logits of two photographs, at the evaluation size of the architecture and at an odd size. Each side
gets the same pixels and normalizes them with its own values. Read: their file in our model. Written: our file in their
model. The distance is the largest difference / the standard deviation of the logits. Rows named "wrong" have a
deliberate error and must have a large distance. Writes results/parity.json, except with --only.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.parity_sides import Keras, Timm, Torchvision, same_shapes
from benchmarks.random_weights import distance, randomise
from benchmarks.search_trials import code
from torch import Tensor, nn

from efficientnetv2.architectures.registry import NAMES, get_architecture, get_model_info
from efficientnetv2.data.decode import load_eval_image
from efficientnetv2.inference.predict import predict
from efficientnetv2.models.conversion import convert
from efficientnetv2.models.efficientnet import EfficientNet
from efficientnetv2.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    SYMMETRIC_MEAN,
    SYMMETRIC_STD,
    Preprocessing,
)  # fmt: skip
from efficientnetv2.transforms.pipeline import normalize
from efficientnetv2.utils.io import write_text_atomically

TOLERANCE = 1e-4
WRONG = 10 * TOLERANCE  # minimum distance of rows with a deliberate error
# Becomes 86, 43, 22, 11, 6. Both paddings are equal where an odd side is halved. So some sides must be even.
ODD_PX = 171
PICTURES = sorted((Path(__file__).parent.parent / "examples" / "land_cover" / "images").glob("*.jpg"))
RESULT = Path(__file__).parent / "results" / "parity.json"
KEPT = Path("runs/parity")
PACKAGES = ("efficientnetv2", "torch", "timm", "torchvision", "keras")

LOGITS = [name for name in NAMES if name.startswith("efficientnetv2") and not name.endswith("xl")] + [
    "efficientnet_b0", "efficientnet_b4",
]  # fmt: skip
SHAPES = ["efficientnetv2_xl", *(f"efficientnet_b{number}" for number in range(8))]

Row = dict[str, Any]


def photographs(preprocessing: Preprocessing, px: int, number: int = 2) -> Tensor:
    """Return (number, 3, px, px) uint8, from JPEG files, cropped as in the preprocessing."""
    images = [load_eval_image(path, replace(preprocessing, image_size=px)) for path in PICTURES[:number]]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


def our_logits(model: EfficientNet, pixels: Tensor) -> Tensor:
    """Return the logits of ``effnetv2 predict``."""
    return predict(model, [pixels], preprocessing=model.preprocessing)


def random_weights(model: nn.Module, name: str) -> nn.Module:
    """Set random weights with which photographs have logits of ordinary size.

    The batch-norm statistics come from photographs and noise. Photographs of land are alike: with these alone, the
    activations of a deep model would explode on the next image.
    """
    preprocessing = get_model_info(name).preprocessing
    pixels = photographs(preprocessing, 128, number=16)
    real = normalize(pixels, mean=preprocessing.mean, std=preprocessing.std)
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    return randomise(model, torch.cat([real, noise]))


def torch_rows(side: Timm | Torchvision, place: Path, sizes: Sequence[int] | None) -> Iterator[Row]:
    """Rows of a PyTorch library: read, written, round trip bit for bit, and wrong."""
    theirs = random_weights(side.create(), side.name)
    imported = convert.read(side.save(theirs, place))
    ours = imported.network
    assert imported.name == side.name
    back, out = side.load(ours, place)
    for px in sizes or (ours.preprocessing.image_size, ODD_PX):
        pixels = photographs(ours.preprocessing, px)
        expected, got = side.logits(theirs, pixels), our_logits(ours, pixels)
        yield {"what": "read", "px": px, "distance": distance(got, expected)}
        yield {"what": "written", "px": px, "distance": distance(side.logits(back, pixels), got)}
    again = convert.read(out).network
    yield {
        "what": "round trip",
        "identical": _equal(theirs.state_dict(), back.state_dict())
        and _equal(ours.state_dict(), again.state_dict())
        and (ours.architecture, ours.preprocessing) == (again.architecture, again.preprocessing),
    }
    yield from wrong_rows(ours, expected, pixels)


def keras_rows(side: Keras, place: Path, sizes: Sequence[int] | None) -> Iterator[Row]:
    """Rows of Keras: our random weights written for Keras, and the file of Keras read."""
    ours = random_weights(EfficientNet(get_architecture(side.name)), side.name)
    assert isinstance(ours, EfficientNet)
    ours.preprocessing = get_model_info(side.name).preprocessing
    for px in sizes or (ours.preprocessing.image_size, ODD_PX):
        theirs = side.load(ours, place, px)
        read = convert.read(side.save(theirs, place)).network
        pixels = photographs(ours.preprocessing, px)
        expected = side.logits(theirs, pixels)
        yield {"what": "read", "px": px, "distance": distance(our_logits(read, pixels), expected)}
        yield {"what": "written", "px": px, "distance": distance(expected, our_logits(ours, pixels))}
    # Keras does not count batches.
    before, after = (
        {name: tensor for name, tensor in one.state_dict().items() if not name.endswith("num_batches_tracked")}
        for one in (ours, read)
    )
    yield {"what": "round trip", "identical": _equal(before, after)}
    yield from wrong_rows(read, expected, pixels)


def wrong_rows(ours: EfficientNet, expected: Tensor, pixels: Tensor) -> Iterator[Row]:
    """Rows with the same weights, but with changed padding, epsilon or preprocessing."""
    architecture, crop_mode = ours.architecture, ours.preprocessing
    imagenet = crop_mode.mean == IMAGENET_MEAN
    mean, std = (SYMMETRIC_MEAN, SYMMETRIC_STD) if imagenet else (IMAGENET_MEAN, IMAGENET_STD)
    padding = replace(architecture, padding="symmetric" if architecture.padding == "same" else "same")
    epsilon = replace(architecture, batch_norm_epsilon=1e-5 if architecture.batch_norm_epsilon > 1e-4 else 1e-3)
    for what, changed, preprocessing in (
        ("padding", padding, crop_mode),
        ("epsilon", epsilon, crop_mode),
        ("preprocessing", architecture, replace(crop_mode, mean=mean, std=std)),
    ):
        with torch.device("meta"):
            model = EfficientNet(changed)
        model.load_state_dict(ours.state_dict(), assign=True)
        model.preprocessing = preprocessing
        got = our_logits(model.eval(), pixels)
        yield {"what": f"wrong {what}", "px": pixels.shape[-1], "distance": distance(got, expected)}


def shape_rows(name: str) -> Iterator[Row]:
    """Check that each of their tensors is one of ours, in name and shape."""
    for library in (Timm, Torchvision):
        if library.has(name):
            yield {"against": library.title, "what": "shapes", "identical": same_shapes(library(name))}
    if Keras.has(name):
        # Keras cannot build a model without weights. Reading its whole file checks every tensor.
        with tempfile.TemporaryDirectory() as folder:
            found = convert.read(Keras(name).save(Keras(name).create(ODD_PX), Path(folder))).name
        yield {"against": "keras", "what": "shapes", "identical": found == name}


def logit_rows(name: str, sizes: Sequence[int] | None) -> Iterator[Row]:
    """Rows that compute logits."""
    for library in (Timm, Torchvision, Keras):
        if not library.has(name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            side, place = library(name), Path(folder)
            many = keras_rows if isinstance(side, Keras) else torch_rows
            yield from ({"against": library.title} | row for row in many(side, place, sizes))
        gc.collect()


def rows_of(name: str, sizes: Sequence[int] | None = None) -> Iterator[Row]:
    """All rows of one architecture.

    Args:
        name: Our name of the architecture.
        sizes: Image sizes in pixels. None takes the evaluation size and an odd size.
    """
    if name in SHAPES:
        yield from ({"network": name} | row for row in shape_rows(name))
    if name in LOGITS:
        yield from ({"network": name} | row for row in logit_rows(name, sizes))


def made_by() -> dict[str, Any]:
    """Return what decides the rows: versions of all sides, and digests of our package and of these scripts."""
    scripts = (f"{name}.py" for name in ("parity", "parity_sides", "random_weights"))
    text = b"\0".join((Path(__file__).parent / script).read_bytes() for script in scripts)
    return {
        "versions": {package: version(package) for package in PACKAGES},
        "code": code(),
        "scripts": hashlib.blake2b(text, digest_size=16).hexdigest(),
    }


def kept_rows(name: str, by: dict[str, Any]) -> Iterator[Row]:
    """Return ``rows_of``, or the stored rows if ``made_by`` is unchanged.

    Args:
        name: Our name of the architecture.
        by: Result of ``made_by``. Stored rows of other code or versions, or without this entry, are computed again.
    """
    file = KEPT / f"{name}.json"
    stored = json.loads(file.read_text()) if file.exists() else None
    if isinstance(stored, dict) and stored["by"] == by:
        yield from stored["rows"]
        return
    rows = []
    for row in rows_of(name):
        rows.append(row)
        yield row
    KEPT.mkdir(parents=True, exist_ok=True)
    write_text_atomically(file, json.dumps({"by": by, "rows": rows}))


def passes(row: Row) -> bool:
    """Check a row: the distance or identity is as expected."""
    if "identical" in row:
        return bool(row["identical"])
    return bool(row["distance"] >= WRONG if row["what"].startswith("wrong") else row["distance"] <= TOLERANCE)


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _line(row: Row) -> str:
    value = ("yes" if row["identical"] else "no") if "identical" in row else f"{row['distance']:.1e}"
    verdict = "" if passes(row) else "FAILS"
    return f"| {row['network']} | {row['against']} | {row['what']} | {row.get('px', '')} | {value} | {verdict} |"


def main() -> int:
    """Print the table. Return 1 if a row fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=NAMES, action="append", help="only this architecture; can be repeated")
    options = parser.parse_args()
    print("| network | against | what | px | distance, or identical | |\n|---|---|---|---|---|---|")
    rows, by = [], made_by()
    for name in options.only or dict.fromkeys([*LOGITS, *SHAPES]):
        for row in kept_rows(name, by):
            rows.append(row | {"passes": passes(row)})
            print(_line(row), flush=True)
    if not options.only:
        result = {"tolerance": TOLERANCE, "wrong": WRONG, "versions": by["versions"], "rows": rows}
        write_text_atomically(RESULT, json.dumps(result, indent=1) + "\n")
    return 0 if all(row["passes"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Equal answers on equal weights: ours against timm, torchvision and Keras, through files in both directions.

Run: make parity            (all of it: tens of minutes and some gigabytes of memory on two cores; what is done is
                            kept in runs/parity, and not done again by the same code and versions)
     python -m benchmarks.parity --only efficientnetv2_b0

A row compares the logits of two real photographs, at the size the network is evaluated at and at an odd one, from the
pixels on: each side normalises by what it was told. Read: their file, our network. Written: our file, their network.
The figure is the greatest difference over the spread (standard deviation) of the logits. Rows marked wrong were broken
on purpose, and must be far off. Writes results/parity.json, unless told --only.
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
WRONG = 10 * TOLERANCE  # what is broken on purpose is at least this far off
# Becomes 86, 43, 22, 11, 6. Both paddings are the same where an odd side is halved, so even ones must be among them.
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
    """(number, 3, px, px) uint8, from JPEG files, as the network's own preprocessing frames them."""
    framed = [load_eval_image(path, replace(preprocessing, image_size=px)) for path in PICTURES[:number]]
    return torch.from_numpy(np.stack(framed)).permute(0, 3, 1, 2)


def our_logits(network: EfficientNet, pixels: Tensor) -> Tensor:
    """As ``effnetv2 predict`` has them."""
    return predict(network, [pixels], preprocessing=network.preprocessing)


def random_weights(network: nn.Module, name: str) -> nn.Module:
    """Weights with which photographs give logits of ordinary size.

    Noise is among the images that the statistics are taken from, for photographs of land are alike: a deep network
    that only knew a few of them would explode on the next.
    """
    preprocessing = get_model_info(name).preprocessing
    pixels = photographs(preprocessing, 128, number=16)
    real = normalize(pixels, mean=preprocessing.mean, std=preprocessing.std)
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    return randomise(network, torch.cat([real, noise]))


def torch_rows(side: Timm | Torchvision, place: Path, sizes: Sequence[int] | None) -> Iterator[Row]:
    """Of a PyTorch library: read, written, bit for bit, and broken."""
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
    """Of Keras: our random weights written for it, and its file of them read."""
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
    # How many batches were counted is nothing that Keras knows.
    before, after = (
        {name: tensor for name, tensor in one.state_dict().items() if not name.endswith("num_batches_tracked")}
        for one in (ours, read)
    )
    yield {"what": "round trip", "identical": _equal(before, after)}
    yield from wrong_rows(read, expected, pixels)


def wrong_rows(ours: EfficientNet, expected: Tensor, pixels: Tensor) -> Iterator[Row]:
    """The same weights with padding, epsilon and preprocessing of the other kind."""
    table, crop_mode = ours.architecture, ours.preprocessing
    imagenet = crop_mode.mean == IMAGENET_MEAN
    mean, std = (SYMMETRIC_MEAN, SYMMETRIC_STD) if imagenet else (IMAGENET_MEAN, IMAGENET_STD)
    padding = replace(table, padding="symmetric" if table.padding == "same" else "same")
    epsilon = replace(table, batch_norm_epsilon=1e-5 if table.batch_norm_epsilon > 1e-4 else 1e-3)
    for what, wrong, preprocessing in (
        ("padding", padding, crop_mode),
        ("epsilon", epsilon, crop_mode),
        ("preprocessing", table, replace(crop_mode, mean=mean, std=std)),
    ):
        with torch.device("meta"):
            network = EfficientNet(wrong)
        network.load_state_dict(ours.state_dict(), assign=True)
        network.preprocessing = preprocessing
        got = our_logits(network.eval(), pixels)
        yield {"what": f"wrong {what}", "px": pixels.shape[-1], "distance": distance(got, expected)}


def shape_rows(name: str) -> Iterator[Row]:
    """Whether every tensor of theirs is one of ours, in name and shape."""
    for kind in (Timm, Torchvision):
        if kind.has(name):
            yield {"against": kind.title, "what": "shapes", "identical": same_shapes(kind(name))}
    if Keras.has(name):
        # Keras has no weightless networks: its file is read whole, which accounts for every tensor.
        with tempfile.TemporaryDirectory() as folder:
            found = convert.read(Keras(name).save(Keras(name).create(ODD_PX), Path(folder))).name
        yield {"against": "keras", "what": "shapes", "identical": found == name}


def logit_rows(name: str, sizes: Sequence[int] | None) -> Iterator[Row]:
    """Everything that is computed with a network."""
    for kind in (Timm, Torchvision, Keras):
        if not kind.has(name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            side, place = kind(name), Path(folder)
            many = keras_rows if isinstance(side, Keras) else torch_rows
            yield from ({"against": kind.title} | row for row in many(side, place, sizes))
        gc.collect()


def rows_of(name: str, sizes: Sequence[int] | None = None) -> Iterator[Row]:
    """Everything there is to say about one network.

    Args:
        name: ours.
        sizes: of the images, in pixels; None is the size it is evaluated at and an odd one.
    """
    if name in SHAPES:
        yield from ({"network": name} | row for row in shape_rows(name))
    if name in LOGITS:
        yield from ({"network": name} | row for row in logit_rows(name, sizes))


def made_by() -> dict[str, Any]:
    """What the rows are of: versions of all sides, and digests of our package and of these scripts."""
    scripts = (f"{name}.py" for name in ("parity", "parity_sides", "random_weights"))
    text = b"\0".join((Path(__file__).parent / script).read_bytes() for script in scripts)
    return {
        "versions": {package: version(package) for package in PACKAGES},
        "code": code(),
        "scripts": hashlib.blake2b(text, digest_size=16).hexdigest(),
    }


def kept_rows(name: str, by: dict[str, Any]) -> Iterator[Row]:
    """``rows_of``; of a network that was done before by the same, what is kept of that.

    Args:
        name: ours.
        by: as ``made_by`` has it; what others made, or what does not say who did, is made again.
    """
    kept = KEPT / f"{name}.json"
    found = json.loads(kept.read_text()) if kept.exists() else None
    if isinstance(found, dict) and found["by"] == by:
        yield from found["rows"]
        return
    rows = []
    for row in rows_of(name):
        rows.append(row)
        yield row
    KEPT.mkdir(parents=True, exist_ok=True)
    write_text_atomically(kept, json.dumps({"by": by, "rows": rows}))


def passes(row: Row) -> bool:
    """Whether a row says what it should."""
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
    """Print the table; 1 if a row fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=NAMES, action="append", help="this network alone; may be repeated")
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

"""Compare the export formats of several models: agreement with PyTorch, size and speed.

Run: python -m benchmarks.formats NAME=MODEL [NAME=MODEL ...] [--data IMAGES] [--calibration IMAGES] [--record]

MODEL is a run or a model file. IMAGES is a folder or table of images. A run has its own validation images. The rows are
those of ``effnetv2 export MODEL --benchmark``. The formats are timed in turn. A format that is not installed has no
row. A format that cannot be exported has its error. ``--record`` writes results/formats.json.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from importlib.util import find_spec

import pandas as pd
from benchmarks.record import NAMED, RESULTS, hardware

import efficientnetv2 as ev2
from efficientnetv2.utils.io import write_text_atomically

SHOWN = [
    "model", "format", "precision", "megabytes", "label_agreement", "max_difference", "difference", "low", "high",
    "milliseconds", "images_per_s", "error",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--data", help="images to compare on; default: validation images of the run")
    parser.add_argument("--calibration", help="images for int8; default: training images of the run")
    parser.add_argument("--num-images", type=int, default=500)
    parser.add_argument("--record", action="store_true", help="write results/formats.json")
    options = parser.parse_args()
    tables = []
    for name, _, model in (argument.partition("=") for argument in options.models):
        if not model:
            parser.error(f"'{name}' is not NAME=MODEL.")
        table = ev2.benchmark(model, options.data, calibration=options.calibration, num_images=options.num_images)
        tables.append(table.assign(model=name))
        print(tables[-1][SHOWN].to_string(index=False, float_format="{:.4g}".format), flush=True)
    if options.record:
        mobile = [name for name in ("ai-edge-litert", "executorch") if find_spec(name.replace("-", "_"))]
        rows = json.loads(pd.concat(tables)[SHOWN].to_json(orient="records"))
        found = {
            "images": options.num_images,
            "hardware": hardware(),
            "versions": {name: version(name) for name in (*NAMED, "onnxruntime", "openvino", "nncf", *mobile)},
            "rows": rows,
        }
        write_text_atomically(RESULTS / "formats.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Classify image files by a server of the Open Inference Protocol V2, with Triton's client library.

pip install "tritonclient[http]"
python classify.py 127.0.0.1:8000 MODEL photo.jpg other.png
"""

import sys
from pathlib import Path

import numpy as np
import tritonclient.http as triton


def main(address: str, model: str, *files: str) -> None:
    """Print a CSV line for each file: path, label and probability."""
    with triton.InferenceServerClient(address) as client:
        images = triton.InferInput("images", [len(files)], "BYTES")
        images.set_data_from_numpy(np.array([Path(file).read_bytes() for file in files], dtype=object))
        response = client.infer(model, [images])
        labels, probabilities = response.as_numpy("label"), response.as_numpy("probability")
    for file, label, probability in zip(files, labels, probabilities, strict=True):
        print(f"{file},{label.decode()},{probability:.4f}")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])

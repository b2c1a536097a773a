"""Effect of a temperature on calibration: fitted on half of the val images of a run, evaluated on the other half.

Run: python -m benchmarks.calibration scratch=RUN finetuned=RUN [--record]

RUN is the folder of a finished run. Its predictions.csv has the predictions on val. The images are split into random
halves. Each half is evaluated with the temperature of the other half. For each NAME and half,
results/calibration.json has the temperature, the expected calibration error (15 bins) without and with it, the error
that is expected by chance, and the log-loss.

The recorded runs are OUT/pretrained/aerial and OUT/pretrained/both of ``benchmarks.land_cover --only pretrain wide``:
V2-B0 on the aerial images of AID, 20 epochs from scratch and 5 epochs from ImageNet weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from benchmarks.record import RESULTS
from scipy.special import softmax

from efficientnetv2.metrics.calibration import (
    calibration_error_by_chance,
    expected_calibration_error,
    fit_temperature,
    log_loss,
    reliability_bins,
)
from efficientnetv2.utils.io import write_text_atomically
from efficientnetv2.utils.random_key import Key

# Replaces smaller probabilities, because predictions.csv rounds.
_LEAST = 1e-7


def halves(labels: np.ndarray, probabilities: np.ndarray, key: Key) -> list[dict[str, Any]]:
    """Evaluate each half of the predictions with the temperature of the other half.

    Args:
        labels: (N,) true class ids.
        probabilities: (N, K).
        key: Key of the random split.
    """
    logits, order = np.log(np.maximum(probabilities, _LEAST)), key.generator().permutation(len(labels))
    cut = len(labels) // 2
    results = []
    for fit_rows, eval_rows in ((order[:cut], order[cut:]), (order[cut:], order[:cut])):
        temperature = fit_temperature(labels[fit_rows], logits[fit_rows])
        eval_labels, eval_logits = labels[eval_rows], logits[eval_rows]
        results.append(
            {
                "pictures": len(eval_rows),
                "temperature": temperature,
                "top1": float((eval_logits.argmax(axis=1) == eval_labels).mean()),
                "without": _evaluated(eval_labels, eval_logits, key),
                "with": _evaluated(eval_labels, eval_logits / temperature, key),
            }
        )
    return results


def _evaluated(labels: np.ndarray, logits: np.ndarray, key: Key) -> dict[str, float]:
    probabilities = softmax(logits, axis=1)
    return {
        "ece": expected_calibration_error(labels, probabilities),
        "ece_by_chance": calibration_error_by_chance(reliability_bins(labels, probabilities), key=key.fold("chance")),
        "stated": float(probabilities.max(axis=1).mean()),
        "log_loss": log_loss(labels, logits),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--record", action="store_true", help="replace the record in benchmarks/results")
    options, found = parser.parse_args(), {}
    for word in options.runs:
        name, _, folder = word.partition("=")
        predictions = pd.read_csv(Path(folder) / "predictions.csv")
        names = sorted(predictions["true_label"].unique())
        labels = np.searchsorted(names, predictions["true_label"])
        found[name] = halves(labels, predictions[names].to_numpy(dtype=np.float64), Key.of(0).fold("halves"))
    text = json.dumps(found, indent=1)
    if options.record:
        write_text_atomically(RESULTS / "calibration.json", text + "\n")
    print(text)


if __name__ == "__main__":
    main()

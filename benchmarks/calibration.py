"""What a temperature does to how sure a network says it is: fitted on half of its val images, judged on the others.

Run: python -m benchmarks.calibration scratch=RUN finetuned=RUN

Those in results/ are what ``benchmarks.land_cover --only pretrain wide`` leaves in OUT/pretrained, aerial and both:
V2-B0 on the aerial images of AID, for 20 epochs from scratch and for 5 from ImageNet's weights.

RUN is the folder of a run that is done; its predictions.csv gives the answers to val. The images are cut in two at
random, and each half is judged with the temperature of the other. What it finds goes into results/calibration.json,
by NAME: of each half the temperature, the expected calibration error (15 bins) without and with it, what chance alone
would give, and the log-loss.
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

# predictions.csv rounds probabilities; what is below its last digit is taken to be this.
_LEAST = 1e-7


def halves(labels: np.ndarray, probabilities: np.ndarray, key: Key) -> list[dict[str, Any]]:
    """Each half of the answers, judged with the temperature of the other.

    Args:
        labels: (N,) true class ids.
        probabilities: (N, K).
        key: of the cut.
    """
    logits, order = np.log(np.maximum(probabilities, _LEAST)), key.generator().permutation(len(labels))
    cut = len(labels) // 2
    told = []
    for fitted, judged in ((order[:cut], order[cut:]), (order[cut:], order[:cut])):
        temperature = fit_temperature(labels[fitted], logits[fitted])
        true, given = labels[judged], logits[judged]
        told.append(
            {
                "pictures": len(judged),
                "temperature": temperature,
                "top1": float((given.argmax(axis=1) == true).mean()),
                "without": _judged(true, given, key),
                "with": _judged(true, given / temperature, key),
            }
        )
    return told


def _judged(labels: np.ndarray, logits: np.ndarray, key: Key) -> dict[str, float]:
    shares = softmax(logits, axis=1)
    return {
        "ece": expected_calibration_error(labels, shares),
        "ece_by_chance": calibration_error_by_chance(reliability_bins(labels, shares), key=key.fold("chance")),
        "stated": float(shares.max(axis=1).mean()),
        "log_loss": log_loss(labels, logits),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    found = {}
    for word in parser.parse_args().runs:
        name, _, folder = word.partition("=")
        answers = pd.read_csv(Path(folder) / "predictions.csv")
        names = sorted(answers["true_label"].unique())
        labels = np.searchsorted(names, answers["true_label"])
        found[name] = halves(labels, answers[names].to_numpy(dtype=np.float64), Key.of(0).fold("halves"))
    text = json.dumps(found, indent=1)
    write_text_atomically(RESULTS / "calibration.json", text + "\n")
    print(text)


if __name__ == "__main__":
    main()

"""The temperature of a run's network, fitted on minival: pictures that neither trained it nor give its figure."""

from __future__ import annotations

from efficientnetv2.metrics.calibration import LEAST_PICTURES, fit_temperature
from efficientnetv2.models.calibrated import Calibration
from efficientnetv2.training.distributed import by_first
from efficientnetv2.training.job import Job, kept
from efficientnetv2.training.state import State


def calibrate(job: Job, state: State) -> Calibration | None:
    """Give the network that is kept its temperature; under many processes each calls it and gets the same.

    Without minival there is nothing to fit it on: the pictures of val give the figures.

    Args:
        job: as it was when the size at evaluation was chosen.
        state: at the end of training, with the weights to keep.

    Returns:
        None where there is no minival, or too little of it.
    """
    if job.minival is None:
        return None
    if len(job.minival) < LEAST_PICTURES:
        job.folder.log(
            f"No temperature was fitted: minival has {len(job.minival)} pictures, and it takes {LEAST_PICTURES}."
        )
        return None
    answers = job.predict(state, job.minival)

    def fitted() -> Calibration | None:
        if len(answers.labels) < LEAST_PICTURES:  # the others could not be read
            return None
        temperature = fit_temperature(answers.labels, answers.logits.numpy())
        return Calibration(temperature, len(answers.labels), "minival")

    found = by_first(job.world, fitted)
    if found is not None:
        kept(state).calibration = found
        job.folder.log(
            f"Temperature {found.temperature:.3g}, fitted on {found.pictures} pictures of minival: probabilities are "
            "stated by it."
        )
    return found

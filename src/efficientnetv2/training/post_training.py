"""At which size the network of a run looks at pictures: where sizes are to be tried, minival chooses among them.

Which size is best is hard to know beforehand: above that of training, as random crops magnify (arXiv:1906.06423), by
how much depends on the pictures.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from efficientnetv2.inference.predict import Predictions
from efficientnetv2.inference.resolutions import SizeMetrics, best_size, evaluate_sizes
from efficientnetv2.metrics.calibration import MIN_TEMPERATURE_IMAGES, fit_temperature
from efficientnetv2.models.temperature import Calibration
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.run_config import RunConfig, eval_network
from efficientnetv2.training.train_state import TrainState
from efficientnetv2.utils.distributed import broadcast_from_main

_logger = logging.getLogger(__name__)

_STRIDE = 32


@dataclass(frozen=True)
class EvalSizeSelection:
    """What minival says of each size.

    Args:
        points: by growing size.
        by: the figure that chooses.
    """

    points: tuple[SizeMetrics, ...]
    by: Literal["top1", "macro_f1"]

    @property
    def image_px(self) -> int:
        """The best size; of equal ones the smallest, which is the fastest."""
        return best_size(self.points, self.by).image_px

    def chosen(self, job: RunConfig) -> RunConfig:
        """The same job, its pictures seen at the best size from now on."""
        return replace(job, preprocessing=replace(job.preprocessing, image_px=self.image_px))

    def to_json(self) -> dict[str, Any]:
        """What was chosen, and from what; for the report."""
        return {"image_px": self.image_px, "sizes": [asdict(point) for point in self.points]}

    def __str__(self) -> str:
        """What was chosen, in a sentence."""
        found = best_size(self.points, self.by)
        figure = f"top-1 {found.top1:.1%}" if self.by == "top1" else f"macro-F1 {found.macro_f1:.1%}"
        among = ", ".join(str(point.image_px) for point in self.points)
        return f"Evaluation at {found.image_px} px, which was best on minival, {figure}, of {among}."


def default_eval_sizes(trained_px: int) -> tuple[int, ...]:
    """The sizes that ``auto`` tries: from that of training on, up to half as large again.

    As far apart as an eighth of it, in whole steps of 32 px, the stride of most networks: 128, 160 and 192; 224, 256,
    288 and 320. Random crops magnify (arXiv:1906.06423), so that the best size is above: 1.17 to 1.33 times that of
    training in the released networks (B0 to XL, google/automl). The steps and the end are ours.

    Args:
        trained_px: side of the last training pictures.
    """
    step = _STRIDE * math.ceil(trained_px / 8 / _STRIDE)
    return tuple(range(trained_px, trained_px * 3 // 2 + 1, step))


def eval_size_candidates(recipe: Recipe) -> tuple[int, ...]:
    """The sizes that a settled recipe names, that of evaluation among them, growing; none where it tries none."""
    if recipe.eval_px_tried is None or recipe.eval_px_tried == "auto" or recipe.eval_px is None:
        return ()
    return tuple(sorted({*recipe.eval_px_tried, recipe.eval_px}))


def select_eval_size(job: RunConfig, state: TrainState) -> EvalSizeSelection:
    """Look at minival's pictures at each size; under many processes each calls it and gets the same.

    Args:
        job: with minival and sizes to try.
        state: at the end of training, with the weights to keep.
    """
    assert job.minival is not None, "a recipe that tries sizes has minival"
    answers: dict[int, tuple[Predictions, float]] = {}
    for px in eval_size_candidates(job.recipe):
        began = time.perf_counter()
        resized = replace(job, preprocessing=replace(job.preprocessing, image_px=px))
        answers[px] = resized.predict(state, job.minival), time.perf_counter() - began
    points = broadcast_from_main(
        job.world, lambda: evaluate_sizes(answers.__getitem__, list(answers), job.train.class_names)
    )
    return EvalSizeSelection(points, job.recipe.chosen_by)


def calibrate(job: RunConfig, state: TrainState) -> Calibration | None:
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
    if len(job.minival) < MIN_TEMPERATURE_IMAGES:
        _logger.info(
            f"No temperature was fitted: minival has {len(job.minival)} images, "
            f"but a temperature needs {MIN_TEMPERATURE_IMAGES}."
        )
        return None
    answers = job.predict(state, job.minival)

    def fitted() -> Calibration | None:
        if len(answers.labels) < MIN_TEMPERATURE_IMAGES:  # the others could not be read
            return None
        temperature = fit_temperature(answers.labels, answers.logits.numpy())
        return Calibration(temperature, len(answers.labels), "minival")

    found = broadcast_from_main(job.world, fitted)
    if found is not None:
        eval_network(state).calibration = found
        _logger.info(
            f"Temperature {found.temperature:.3g}, fitted on {found.pictures} pictures of minival: probabilities are "
            "stated by it."
        )
    return found

"""Which weights of a run are kept, and when training ends early: both by validations on minival.

The model before training is a candidate if it can classify, so that no run ends with a worse model than it began with.
With ``minival: auto`` it and the last weights are the only candidates: of many validations on few images the best is
mostly the luckiest, and its weights miss the end of the schedule. ``val``, which gives the metrics of the run, selects
nothing. The selection is part of each checkpoint, so a resumed run selects the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from efficientnetv2.progressive.schedule import StepPlan
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.step_schedule import RunLength, stage_ends, validation_steps
from efficientnetv2.utils.errors import pluralize

_METRIC_NAMES = {"top1": "top-1", "macro_f1": "macro-F1"}


@dataclass(frozen=True)
class Validation:
    """A validation on minival after ``step`` steps. Of the metric, higher is better."""

    step: int
    metric: float


def best_validation(validations: Sequence[Validation]) -> Validation:
    """The best validation; of equal ones the latest, whose weights have seen more images. Ours."""
    return max(validations, key=lambda validation: (validation.metric, validation.step))


def validations_without_improvement(validations: Sequence[Validation], *, first_step: int) -> int:
    """Validations after ``first_step`` since the best metric first appeared."""
    metrics = [validation.metric for validation in validations]
    first_best = metrics.index(max(metrics)) if metrics else 0
    return sum(validation.step > first_step for validation in validations[first_best + 1 :])


def unused_patience(recipe: Recipe, length: RunLength) -> list[str]:
    """A note if ``patience`` is set but can't end the run early."""
    last_stage = [0, *stage_ends(recipe, length)][-2]
    count = sum(step > last_stage for step in validation_steps(recipe, length))
    if recipe.patience is None or recipe.patience < count:
        return []
    fewer = f", or a patience of {count - 1} at most" if count > 1 else ""
    return [
        f"`patience` is {recipe.patience}, but the last stage has {pluralize(count, 'validation')}, so it can't end "
        f"this run early. Take more epochs{fewer}."
    ]


class ModelSelection:
    """Keeps the weights that are best on minival, and decides when early stopping ends the run.

    ``plan`` has the steps of a run whose number may change. With ``ends_only``, the start and the last weights are the
    only candidates.
    """

    def __init__(self, recipe: Recipe, length: RunLength, plan: StepPlan | None = None) -> None:
        self._by, self._patience, self._length = recipe.monitor, recipe.patience, length
        self.ends_only = recipe.minival == "auto" and recipe.patience is None
        self._plan = plan or StepPlan(length.steps)
        self._last_stage = [0, *stage_ends(recipe, length)][-2]
        self._validations: list[Validation] = []
        self._weights: dict[str, Tensor] = {}
        self._start_name = ""

    def add(self, step: int, metrics: dict[str, float], network: nn.Module, *, start_name: str = "") -> bool:
        """Add a validation after ``step`` steps; returns whether its weights are kept, as none before were better.

        ``metrics`` have the names of ``monitor``. ``start_name`` describes the model before training, of step 0.
        """
        if step == 0:
            self._start_name = start_name
        self._validations.append(Validation(step, metrics[self._by]))
        if step and self.ends_only and step < self._plan.steps:
            return False
        if best_validation(self._candidates).step != step:
            return False
        self._weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in network.state_dict().items()}
        return True

    @property
    def _candidates(self) -> list[Validation]:
        if not self.ends_only:
            return self._validations
        last = self._validations[-1]
        return [validation for validation in self._validations if validation.step == 0 or validation is last]

    @property
    def over(self) -> bool:
        """Whether training ends now, before its last step."""
        if self._patience is None:
            return False
        steps = (validation.step for validation in self._validations)
        before = max((step for step in steps if self._plan.position(step) <= self._last_stage), default=0)
        return validations_without_improvement(self._validations, first_step=before) >= self._patience

    def apply(self, network: nn.Module) -> None:
        """Load the best weights into a model of the same shape."""
        network.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for a checkpoint."""
        points = [(validation.step, validation.metric) for validation in self._validations]
        return {"points": points, "weights": self._weights, "start": self._start_name}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self._validations = [Validation(*point) for point in state["points"]]
        self._weights = state["weights"]
        self._start_name = state.get("start", "")  # missing in checkpoints of earlier versions

    def to_json(self) -> dict[str, Any]:
        """The selection, for the report and the model file."""
        best, start, trained = self._outcome()
        return {
            "kept_model": "start" if best.step == 0 else "trained",
            "start_metric": start,
            "trained_metric": trained,
            "selected_on": "minival",
            "selected_by": self._by,
            "selected_step": best.step,
            "selected_epoch": self._epoch(best.step),
            "selected_score": best.metric,
            "validations": len(self._validations),
            "stopped_early": self.over and self._validations[-1].step < self._plan.steps,
        }

    def __str__(self) -> str:
        """The selection, in sentences."""
        (best, start, trained), name = self._outcome(), _METRIC_NAMES[self._by]
        if best.step == 0:
            at_most = "" if self.ends_only else " at most"
            kept = f"{self._start_name}, before the training"
            other = "" if trained is None else f" Training reached {trained:.1%}{at_most}."
        else:
            count = pluralize(len(self._validations), "validation")
            which = "the last weights" if self.ends_only else f"the best weights of {count}"
            kept = f"{which}, after step {best.step:,} (epoch {self._epoch(best.step):.3g})"
            other = "" if start is None else f" Before training it was {start:.1%}."
        return f"Kept: {kept}. On minival its {name} is {best.metric:.1%}.{other} The images of val selected nothing."

    def _outcome(self) -> tuple[Validation, float | None, float | None]:
        """The best candidate, the metric of the model before training, and the best of the trained candidates."""
        start = next((validation.metric for validation in self._validations if validation.step == 0), None)
        trained = [validation.metric for validation in self._candidates if validation.step]
        return best_validation(self._candidates), start, max(trained, default=None)

    def why_over(self) -> str:
        """Why training ends early, in a sentence."""
        last = self._validations[-1].step
        return (
            f"Stopped early, after step {last} of {self._plan.steps} (epoch {self._epoch(last):g}): "
            f"{_METRIC_NAMES[self._by]} on minival has not risen for {pluralize(self._patience or 0, 'validation')} "
            "(patience)."
        )

    def _epoch(self, step: int) -> float:
        return round(step / self._length.steps_per_epoch, 4)

"""Which weights of a run are kept: with minival, those of the validation that was best on it.

The model before training is a candidate where it can classify, so no run ends with a worse model than it began with.
With ``minival: auto`` it and the last weights are the only candidates: of many validations on few images the best one
is mostly the luckiest one, and its weights have not seen the end of the schedule.
``val``, of which the run's figure is, chooses nothing. The choice travels in the checkpoints, so that a run that
is killed and goes on chooses the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from efficientnetv2.progressive.step_plan import StepPlan
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.training.schedule_points import stage_ends, validation_steps
from efficientnetv2.training.train_state import RunLength
from efficientnetv2.utils.errors import count_of

_WORDS = {"top1": "top-1", "macro_f1": "macro-F1"}


@dataclass(frozen=True)
class Validation:
    """A validation on minival.

    Args:
        step: steps done; 0 is the model before training.
        figure: higher is better.
    """

    step: int
    figure: float


def best_validation(points: Sequence[Validation]) -> Validation:
    """The best validation; of equals the latest, whose weights have seen more pictures. Ours."""
    return max(points, key=lambda point: (point.figure, point.step))


def validations_without_improvement(points: Sequence[Validation], *, first_step: int) -> int:
    """How many validations have passed without a better figure than all before them.

    Args:
        points: in order.
        first_step: those up to this step are not counted.
    """
    top = max((point.figure for point in points), default=0.0)
    since = next((number for number, point in enumerate(points) if point.figure == top), 0)
    return sum(point.step > first_step for point in points[since + 1 :])


def unused_patience(recipe: Recipe, length: RunLength) -> list[str]:
    """That patience cannot end a run before its last step, in a sentence; none where it can, or is not asked for.

    Args:
        recipe: of the run.
        length: of the run.
    """
    begun = [0, *stage_ends(recipe, length)][-2]
    count = sum(step > begun for step in validation_steps(recipe, length))
    if recipe.patience is None or recipe.patience < count:
        return []
    fewer = f", or a patience of {count - 1} at most" if count > 1 else ""
    return [
        f"patience is {recipe.patience}, but the last stage has {count_of(count, 'validation')}, the run's end among "
        f"them, and only those count: it cannot end this run early. Take more epochs{fewer}."
    ]


class ModelSelection:
    """Keeps the weights that were best on minival, and says when waiting for better ones is over.

    Args:
        recipe: of the run, with minival.
        length: of the run.
        plan: Steps of the run where their number may change. None takes those of ``length``.

    Attributes:
        ends_only: Whether the start and the last weights are the only candidates.
    """

    def __init__(self, recipe: Recipe, length: RunLength, plan: StepPlan | None = None) -> None:
        self._by, self._patience, self._length = recipe.chosen_by, recipe.patience, length
        self.ends_only = recipe.minival == "auto" and recipe.patience is None
        self._plan = plan or StepPlan(length.steps)
        self._last_stage = [0, *stage_ends(recipe, length)][-2]
        self._points: list[Validation] = []
        self._weights: dict[str, Tensor] = {}
        self._start = ""

    def add_start(self, figures: dict[str, float], network: nn.Module, *, what: str) -> None:
        """The model before training, as a candidate.

        Args:
            figures: on minival, as ``add`` takes them.
            network: that had them.
            what: it is, in words.
        """
        self._start = what
        self.add(0, figures, network)

    def add(self, step: int, figures: dict[str, float], network: nn.Module) -> bool:
        """After a validation: its weights are kept if they are a candidate and no candidate before was better.

        Args:
            step: steps done.
            figures: on minival, by the names that ``chosen_by`` has.
            network: that had them.

        Returns:
            Whether they are.
        """
        self._points.append(Validation(step, figures[self._by]))
        if step and self.ends_only and step < self._plan.steps:
            return False
        if best_validation(self._candidates).step != step:
            return False
        self._weights = {
            name: one.detach().to("cpu", copy=True) for name, one in network.state_dict().items()
        }
        return True

    @property
    def _candidates(self) -> list[Validation]:
        """The validations whose weights may be kept: all, or those of the first and of the last model."""
        if not self.ends_only:
            return self._points
        return [point for point in self._points if point.step == 0 or point is self._points[-1]]

    @property
    def over(self) -> bool:
        """Whether training ends now, before its last step."""
        if self._patience is None:
            return False
        before = (one.step for one in self._points if self._plan.position(one.step) <= self._last_stage)
        return (
            validations_without_improvement(self._points, first_step=max(before, default=0)) >= self._patience
        )

    def apply(self, network: nn.Module) -> None:
        """Give a network of the same shape the weights that were best."""
        network.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for a checkpoint."""
        points = [(point.step, point.figure) for point in self._points]
        return {"points": points, "weights": self._weights, "start": self._start}

    def load_state_dict(self, kept: dict[str, Any]) -> None:
        """Take over what ``to_dict`` gave."""
        self._points = [Validation(*point) for point in kept["points"]]
        self._weights = kept["weights"]
        self._start = kept.get("start", "")  # of an earlier version there is none

    def to_json(self) -> dict[str, Any]:
        """What was chosen, and how; for the report and the model file."""
        best = best_validation(self._candidates)
        start, trained = self._sides()
        return {
            "kept_model": "start" if best.step == 0 else "trained",
            "start_metric": start,
            "trained_metric": trained,
            "selected_on": "minival",
            "selected_by": self._by,
            "selected_step": best.step,
            "selected_epoch": self._epoch(best.step),
            "selected_figure": best.figure,
            "validations": len(self._points),
            "stopped_early": self.over and self._points[-1].step < self._plan.steps,
        }

    def __str__(self) -> str:
        """What was chosen, in sentences."""
        best = best_validation(self._candidates)
        start, trained = self._sides()
        figure = f"{best.figure:.1%}"
        if best.step == 0:
            at_most = "" if self.ends_only else " at most"
            most = "" if trained is None else f" Training reached {trained:.1%}{at_most}."
            return (
                f"Kept: {self._start}, without the training. On minival its {_WORDS[self._by]} is {figure}.{most} "
                "The images of val chose nothing."
            )
        before = "" if start is None else f" Before training it was {start:.1%}."
        if self.ends_only:
            return (
                f"Kept: the last weights (epoch {self._epoch(best.step):.3g}), whose {_WORDS[self._by]} on minival is "
                f"{figure}.{before} The images of val chose nothing."
            )
        return (
            f"Kept: the weights after step {best.step} (epoch {self._epoch(best.step):.3g}), which were best on "
            f"minival, {_WORDS[self._by]} {figure}, of {count_of(len(self._points), 'validation')}.{before} "
            "The pictures of val chose nothing."
        )

    def _sides(self) -> tuple[float | None, float | None]:
        """The metric of the model before training, and the best of those that training came to, if candidates."""
        start = next((point.figure for point in self._points if point.step == 0), None)
        return start, max((point.figure for point in self._candidates if point.step), default=None)

    def why_over(self) -> str:
        """Why training ends, in a sentence."""
        last = self._points[-1].step
        return (
            f"Stopped early, after step {last} of {self._plan.steps} (epoch {self._epoch(last):g}): "
            f"{_WORDS[self._by]} on minival has not risen for {count_of(self._patience or 0, 'validation')} "
            f"(patience)."
        )

    def _epoch(self, step: int) -> float:
        return round(step / self._length.steps_per_epoch, 4)

"""The samplers of a study, ours and Optuna's.

Ours keep no state: each proposal is a function of the study's trials and of a key of the seed and the trial's number.
So workers may come and go, a resumed study continues as if it had never stopped, and a seed repeats a run exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, get_args

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from efficientnetv2.nas.evolution import PastTrial, RegularizedEvolution, sample_untried
from efficientnetv2.nas.policy_gradient import PolicyGradient
from efficientnetv2.nas.space import Space
from efficientnetv2.nas.stage_choices import Point
from efficientnetv2.utils.errors import InputError, did_you_mean
from efficientnetv2.utils.rng import Key

Name = Literal["policy", "evolution", "random", "tpe", "nsga2"]
NAMES: tuple[Name, ...] = get_args(Name)


class Proposer(Protocol):
    """Chooses the point to try next from a space and past trials."""

    def propose(self, space: Space, past: Sequence[PastTrial], key: Key) -> Point:
        """A canonical point, the same for the same arguments."""


class RandomSearch:
    """Draws architectures uniformly, none twice."""

    def propose(self, space: Space, past: Sequence[PastTrial], key: Key) -> Point:
        """A canonical point that was not tried."""
        return sample_untried(space.sample, space, past, key)


class SpaceSampler(BaseSampler):
    """A proposer as an Optuna sampler. ``seed`` and the trial's number determine all draws."""

    def __init__(self, proposer: Proposer, space: Space, *, seed: int) -> None:
        self.proposer = proposer
        self.space = space
        self.key = Key.of(seed).fold("sampler")

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All of the space: its decisions are made together."""
        return distributions(self.space)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The options of the point to try next. Raises InputError unless the study maximizes one reward."""
        past = past_trials(study, self.space)
        return dict(self.space.choices(self.proposer.propose(self.space, past, self.key.fold(trial.number))))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Raises InputError: the parameter is no decision of the space."""
        raise InputError(f"'{param_name}' is no decision of the space that this sampler was made for")


def _reseeded(kind: type[TPESampler | NSGAIISampler], seed: int) -> BaseSampler:
    """An Optuna sampler that starts anew for every trial, with a seed of its own.

    Optuna's samplers draw from a running stream: workers with one seed would propose the same architectures, and a
    resumed study would repeat its first ones.
    """
    key = Key.of(seed).fold("sampler")

    class Reseeded(kind):  # type: ignore[misc, valid-type]
        def before_trial(self, study: Study, trial: FrozenTrial) -> None:
            # Optuna's seeds have 32 bits.
            kind.__init__(self, seed=key.fold(trial.number).torch_seed() % 2**32)
            super().before_trial(study, trial)

    return Reseeded(seed=0)


def create_sampler(name: str, space: Space, *, seed: int) -> BaseSampler:
    """A sampler by its name: ``policy``, ``evolution``, ``random``, or Optuna's ``tpe`` and ``nsga2``.

    Raises:
        InputError: An unknown name.
    """
    ours: dict[str, Proposer] = {
        "policy": PolicyGradient(),
        "evolution": RegularizedEvolution(),
        "random": RandomSearch(),
    }
    if name in ours:
        return SpaceSampler(ours[name], space, seed=seed)
    if name in ("tpe", "nsga2"):
        return _reseeded(TPESampler if name == "tpe" else NSGAIISampler, seed)
    raise InputError(f"there is no sampler '{name}'{did_you_mean(name, NAMES)} Known: {', '.join(NAMES)}.")


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """A space as Optuna's: one categorical parameter for each decision."""
    return {name: CategoricalDistribution(options) for name, options in space.decisions}


def suggest(trial: Trial, space: Space) -> Point:
    """The canonical point that a study's sampler chooses for a trial."""
    return space.point({name: trial.suggest_categorical(name, options) for name, options in space.decisions})


def past_trials(study: Study, space: Space) -> list[PastTrial]:
    """The trials of a study in the order of their numbers, as our samplers see them.

    Pruned and failed trials count with the lowest reward above 0: a single 0 among rewards that hardly differ would
    hide their differences. Trials whose process was killed are left out.

    Raises:
        InputError: The study does not maximize one reward.
    """
    if study.directions != [StudyDirection.MAXIMIZE]:
        directions = ", ".join(direction.name.lower() for direction in study.directions)
        raise InputError(
            f"this sampler maximizes one reward, but the study has the directions {directions}: create it with "
            "maximize, or use the sampler nsga2."
        )
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING, TrialState.WAITING)
    names = {name for name, _ in space.decisions}
    # A trial that has just started may have no decisions yet.
    trials = [one for one in study.get_trials(deepcopy=False, states=states) if names <= one.params.keys()]
    rewards = [trial.values[0] for trial in trials if trial.state is TrialState.COMPLETE]
    lowest = min((reward for reward in rewards if reward > 0), default=None)

    def reward(trial: FrozenTrial) -> float | None:
        if trial.state is TrialState.PRUNED:
            return lowest
        if trial.state is TrialState.COMPLETE:
            return float(trial.values[0]) if lowest is None else max(trial.values[0], lowest)
        return None

    return [
        PastTrial(space.point({name: trial.params[name] for name in names}), reward(trial))
        for trial in sorted(trials, key=lambda trial: trial.number)
    ]


class BottomQuartilePruner(BasePruner):
    """Prunes a trial that is in the bottom quartile at the second point of its curve, once ten trials came there.

    Pruned trials count too, and a trial is judged once. If it were compared with finished trials alone, as in Optuna's
    pruner, the bar would rise with each one that passes, and most trials would be pruned. All numbers are ours.
    """

    POINT, QUANTILE, MIN_TRIALS = 2, 0.25, 10

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether to prune the trial after its last reported point."""
        if trial.last_step != self.POINT:
            return False
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        values = [
            one.intermediate_values[self.POINT] for one in ended if self.POINT in one.intermediate_values
        ]
        if len(values) < self.MIN_TRIALS:
            return False
        return bool(trial.intermediate_values[self.POINT] < np.quantile(values, self.QUANTILE))

"""Who says which network is tried next: our samplers and Optuna's, for a study of Optuna's.

Ours keep no state: each proposal is a function of the study's trials and of a key of seed and trial number. So workers
may come and go, a study that is opened anew goes on as if it had never stopped, and one worker's run is repeated
exactly by its seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, get_args

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from efficientnetv2.nas.evolution import RegularizedEvolution, Tried, untried
from efficientnetv2.nas.policy_gradient import PolicyGradient
from efficientnetv2.nas.space import Space
from efficientnetv2.nas.stage_choices import Point
from efficientnetv2.utils.errors import InputError, did_you_mean
from efficientnetv2.utils.rng import Key

Name = Literal["policy", "evolution", "random", "tpe", "nsga2"]
NAMES: tuple[Name, ...] = get_args(Name)


class Proposer(Protocol):
    """What decides, of a space and what was tried, the point to try next."""

    def propose(self, space: Space, tried: Sequence[Tried], key: Key) -> Point:
        """A canonical point; the same for the same arguments."""


class RandomSearch:
    """Every network as likely as every other, none twice."""

    def propose(self, space: Space, tried: Sequence[Tried], key: Key) -> Point:
        """A canonical point that was not tried."""
        return untried(space.sample, space, tried, key)


class SpaceSampler(BaseSampler):
    """A proposer as a sampler of Optuna.

    Args:
        proposer: decides.
        space: the study's.
        seed: of all that is drawn, with the trial's number.
    """

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
        """The options of the point to try next, by the names of their decisions.

        Raises:
            InputError: the study does not seek one largest reward.
        """
        point = self.proposer.propose(self.space, history(study, self.space), self.key.fold(trial.number))
        return dict(self.space.choices(point))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """There is none: asked for a parameter that is no decision of the space.

        Raises:
            InputError: always; names the parameter.
        """
        raise InputError(f"'{param_name}' is no decision of the space that this sampler was made for")


class EachTrialAnew(BaseSampler):
    """A sampler of Optuna's, made anew for every trial with a seed of its own.

    Optuna's samplers learn all they know from the study, but draw from random numbers that go on: workers with one
    seed would propose the same networks, and a study that is resumed would repeat its first ones.

    Args:
        make: a sampler of a seed.
        seed: of all that is drawn, with the trial's number.
    """

    def __init__(self, make: Callable[[int], BaseSampler], *, seed: int) -> None:
        self.make = make
        self.key = Key.of(seed).fold("sampler")
        self._running: dict[int, BaseSampler] = {}

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As the sampler has it."""
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the sampler has it."""
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As the sampler has it."""
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """As the sampler has it."""
        self._of(trial).before_trial(study, trial)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """As the sampler has it, which is done with."""
        self._of(trial).after_trial(study, trial, state, values)
        self._running.pop(trial.number, None)

    def _of(self, trial: FrozenTrial) -> BaseSampler:
        if trial.number not in self._running:
            # Optuna's seeds have 32 bits.
            self._running[trial.number] = self.make(self.key.fold(trial.number).torch_seed() % 2**32)
        return self._running[trial.number]


def sampler(name: str, space: Space, *, seed: int) -> BaseSampler:
    """A sampler by its name.

    Args:
        name: ``policy`` (policy gradient, the paper's kind), ``evolution`` (regularised evolution), ``random`` (the
            paper's other one), or Optuna's ``tpe`` and ``nsga2`` with its own defaults.
        space: the study's.
        seed: the same gives the same trials, with one worker.

    Raises:
        InputError: no such sampler; names the nearest.
    """
    ours: dict[str, Proposer] = {
        "policy": PolicyGradient(),
        "evolution": RegularizedEvolution(),
        "random": RandomSearch(),
    }
    if name in ours:
        return SpaceSampler(ours[name], space, seed=seed)
    if name == "tpe":
        return EachTrialAnew(lambda seed: TPESampler(seed=seed), seed=seed)
    if name == "nsga2":
        return EachTrialAnew(lambda seed: NSGAIISampler(seed=seed), seed=seed)
    raise InputError(f"there is no sampler '{name}'{did_you_mean(name, NAMES)} Known: {', '.join(NAMES)}.")


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """A space as Optuna has it: a categorical parameter for every decision, by its name."""
    return {name: CategoricalDistribution(options) for name, options in space.decisions}


def suggest(trial: Trial, space: Space) -> Point:
    """What a study's sampler decides for a trial, as a canonical point."""
    return space.point({name: trial.suggest_categorical(name, options) for name, options in space.decisions})


def history(study: Study, space: Space) -> list[Tried]:
    """The trials of a study by their numbers, as our samplers see them.

    A pruned trial was hopeless, and a network that failed is worth 0: both count with the lowest reward above 0, for a
    single 0 among rewards that hardly differ would hide how they do. A trial whose process was killed says nothing
    about its network and is left out.

    Raises:
        InputError: the study does not seek one largest reward.
    """
    if study.directions != [StudyDirection.MAXIMIZE]:
        sought = ", ".join(direction.name.lower() for direction in study.directions)
        raise InputError(
            f"this sampler makes one reward as large as can be, but the study was made to {sought}: make it with the "
            "direction maximize, or take the sampler nsga2."
        )
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING, TrialState.WAITING)
    # A trial that has just begun, or waits to begin, may have decided nothing yet.
    trials = [trial for trial in study.get_trials(deepcopy=False, states=states) if _decided(trial, space)]
    rewards = [trial.values[0] for trial in trials if trial.state is TrialState.COMPLETE]
    lowest = min((reward for reward in rewards if reward > 0), default=None)

    def reward(trial: FrozenTrial) -> float | None:
        if trial.state is TrialState.PRUNED:
            return lowest
        if trial.state is TrialState.COMPLETE:
            return float(trial.values[0]) if lowest is None else max(trial.values[0], lowest)
        return None

    return [
        Tried(space.point({name: trial.params[name] for name, _ in space.decisions}), reward(trial))
        for trial in sorted(trials, key=lambda trial: trial.number)
    ]


def _decided(trial: FrozenTrial, space: Space) -> bool:
    return all(name in trial.params for name, _ in space.decisions)


# At the second point of the curve the worst quarter of all that came so far is stopped, once there are ten. Ours.
_POINT, _WORST, _AMONG = 2, 0.25, 10


class WorstQuarter(BasePruner):
    """Stops a trial that at the second point of its curve is among the worst quarter of all that came there.

    Those that were stopped there count too, and a trial is asked once: were it compared with those alone that have
    finished, as Optuna's own pruner does, the bar would rise with each that passes it, and most would be stopped.
    """

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial is hopeless; asked after each point that it has told of."""
        if trial.last_step != _POINT:
            return False
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        there = [one.intermediate_values[_POINT] for one in ended if _POINT in one.intermediate_values]
        if len(there) < _AMONG:
            return False
        return bool(trial.intermediate_values[_POINT] < np.quantile(there, _WORST))

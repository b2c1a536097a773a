"""The samplers of a study, ours and Optuna's.

Ours keep no state: each proposal is a function of the study's trials and of a key of the seed and the trial's number.
So workers may come and go, a resumed study continues as if it had never stopped, and a seed repeats a run exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState
from scipy.special import softmax

from efficientnetv2.nas.space import Space
from efficientnetv2.nas.stage_choices import Point
from efficientnetv2.utils.errors import InputError, did_you_mean
from efficientnetv2.utils.random_key import Floats, Key

# Ours. A converged policy draws known architectures; each further draw costs a millisecond, a trial minutes.
_MAX_DRAWS = 50

Name = Literal["policy", "evolution", "random", "tpe", "nsga2"]
NAMES: tuple[Name, ...] = get_args(Name)


@dataclass(frozen=True)
class PastTrial:
    """The canonical point of a trial and its reward, None while it runs."""

    point: Point
    reward: float | None


def sample_untried(draw: Callable[[Key], Point], space: Space, past: Sequence[PastTrial], key: Key) -> Point:
    """The first point drawn that was not tried, running trials included.

    If ``draw`` gives only tried points, an untried neighbor of the last one; else any untried point of the space; else,
    where all were tried, the last one drawn.
    """
    known = {trial.point for trial in past}
    for turn in range(_MAX_DRAWS):
        point = draw(key.fold(turn))
        if point not in known:
            return point
    if neighbors := [other for other in space.neighbors(point) if other not in known]:
        return neighbors[int(key.fold("near").generator().integers(len(neighbors)))]
    for turn in range(_MAX_DRAWS):
        other = space.sample(key.fold("any", turn))
        if other not in known:
            return other
    return next((other for other in space.points() if other not in known), point)


@dataclass(frozen=True)
class RegularizedEvolution:
    """Regularized evolution: mutate the best of a random ``tournament`` of the newest ``population`` of trials.

    Source: arXiv:1802.01548 (aging evolution, Algorithm 1). Ours draws the tournament without replacement, has no
    identity mutation, and never repeats an architecture. The defaults are ours.
    """

    population: int = 20
    tournament: int = 12

    def propose(self, space: Space, past: Sequence[PastTrial], key: Key) -> Point:
        """The point to try next. ``past`` is in the order of trial numbers."""
        rewarded = [(trial.reward, trial.point) for trial in past if trial.reward is not None]
        if len(rewarded) < self.population:
            return sample_untried(space.sample, space, past, key)
        living = rewarded[-self.population :]

        def child(key: Key) -> Point:
            generator = key.generator()
            rivals = generator.choice(len(living), size=min(self.tournament, len(living)), replace=False)
            _, parent = max(living[index] for index in rivals)
            return mutate(space, parent, key.fold("mutation"))

        return sample_untried(child, space, past, key)


def mutate(space: Space, point: Point, key: Key) -> Point:
    """The point with one decision changed; the decision and its new option are drawn uniformly."""
    changes: dict[int, list[Point]] = {}
    for other in space.neighbors(point):
        # A stage's number of layers is its last decision: where a stage goes or comes back, that one differs last.
        last = max(place for place, (a, b) in enumerate(zip(point, other, strict=True)) if a != b)
        changes.setdefault(last, []).append(other)
    generator = key.generator()
    chosen = changes[sorted(changes)[generator.integers(len(changes))]]
    return chosen[generator.integers(len(chosen))]


@dataclass(frozen=True)
class PolicyGradient:
    """Policy gradient over factorized choices, after the controller of MnasNet and of the EfficientNetV2 search.

    A policy draws architectures, and each reward makes the options that it took more or less likely (arXiv:1807.11626,
    section 4.2; arXiv:2104.00298, section 3.3). Their policy is a recurrent network trained by PPO on a thousand
    samples. Ours is a vector of logits for each decision, drawn independently as in TuNAS (arXiv:2008.06120), trained
    by REINFORCE (Williams 1992) on a hundred: with a moving baseline, rewards normalized by their spread, and an
    entropy bonus. The defaults are ours.

    ``warmup`` trials are drawn uniformly before the policy is used, and learned from. ``most_advantage`` limits the
    reward minus the baseline, in standard deviations of the rewards.
    """

    learning_rate: float = 0.4
    warmup: int = 10
    baseline_decay: float = 0.9
    entropy: float = 0.01
    most_advantage: float = 1.5

    def propose(self, space: Space, past: Sequence[PastTrial], key: Key) -> Point:
        """The point to try next. ``past`` is in the order of trial numbers."""
        rewarded = [trial for trial in past if trial.reward is not None]
        if len(rewarded) < self.warmup:
            return sample_untried(space.sample, space, past, key)
        cumulative = np.cumsum(softmax(self.logits(space, rewarded), axis=1), axis=1)

        def draw(key: Key) -> Point:
            below = key.generator().random((len(cumulative), 1)) >= cumulative[:, :-1]
            return space.canonical(tuple(int(index) for index in below.sum(axis=1)))

        return sample_untried(draw, space, past, key)

    def logits(self, space: Space, past: Sequence[PastTrial]) -> Floats:
        """The policy after trials that all have a reward: (decisions, options) float64, padded with -inf."""
        sizes = np.array([len(decision.options) for decision in space.decisions])
        logits = np.where(np.arange(sizes.max()) < sizes[:, None], 0.0, -np.inf)
        taken = np.array([trial.point for trial in past])[:, :, None] == np.arange(sizes.max())
        effective = np.array([space.effective(trial.point) for trial in past])[:, :, None]
        rewards = np.array([trial.reward for trial in past], dtype=float)
        for took, counts, advantage in zip(taken, effective, self._advantages(rewards), strict=True):
            chances = softmax(logits, axis=1)
            step = advantage * (took - chances) * counts + self.entropy * _entropy_gradient(chances)
            logits = logits + self.learning_rate * step
        return logits

    def _advantages(self, rewards: Floats) -> Floats:
        """(N,) The advantage of each trial, from the rewards up to it."""
        advantages = np.zeros(len(rewards))
        baseline = rewards[: self.warmup].mean() if len(rewards) else 0.0
        for index, reward in enumerate(rewards):
            spread = rewards[: max(index + 1, self.warmup)].std()
            if spread > 0:
                limit = self.most_advantage
                advantages[index] = np.clip((reward - baseline) / spread, -limit, limit)
            if index >= self.warmup:
                baseline = self.baseline_decay * baseline + (1 - self.baseline_decay) * reward
        return advantages


def _entropy_gradient(chances: Floats) -> Floats:
    """The gradient of each row's entropy H in its logits: -p (log p + H)."""
    logs = np.log(np.where(chances > 0, chances, 1.0))
    entropy = -(chances * logs).sum(axis=1, keepdims=True)
    gradient: Floats = -chances * (logs + entropy)
    return gradient


class RandomSearch:
    """Draws architectures uniformly, none twice."""

    def propose(self, space: Space, past: Sequence[PastTrial], key: Key) -> Point:
        """A canonical point that was not tried."""
        return sample_untried(space.sample, space, past, key)


#: Chooses the point to try next: the same for the same space, past trials and key.
Proposer = PolicyGradient | RegularizedEvolution | RandomSearch


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
        """The options of the point to try next. The study must maximize one reward."""
        past = past_trials(study, self.space)
        return dict(self.space.choices(self.proposer.propose(self.space, past, self.key.fold(trial.number))))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Raises InputError: the parameter is no decision of the space."""
        raise InputError(f"'{param_name}' is not a decision of this sampler's space")


def _reseeded(kind: type[TPESampler | NSGAIISampler], seed: int) -> BaseSampler:
    """An Optuna sampler with a new seed for every trial."""
    # Optuna's draw from one stream: workers with one seed, and a resumed study, would propose the same architectures.
    key = Key.of(seed).fold("sampler")

    class Reseeded(kind):  # type: ignore[misc, valid-type]
        def before_trial(self, study: Study, trial: FrozenTrial) -> None:
            # Optuna's seeds have 32 bits.
            kind.__init__(self, seed=key.fold(trial.number).torch_seed() % 2**32)
            super().before_trial(study, trial)

    return Reseeded(seed=0)


def create_sampler(name: str, space: Space, *, seed: int) -> BaseSampler:
    """A sampler by its name: ``policy``, ``evolution``, ``random``, or Optuna's ``tpe`` and ``nsga2``."""
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
    """
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING, TrialState.WAITING)
    names = {name for name, _ in space.decisions}
    # A trial that has just started may have no decisions yet.
    trials = [trial for trial in study.get_trials(deepcopy=False, states=states) if names <= {*trial.params}]
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
    """Prunes a trial that is in the bottom quartile at the second point of its curve, once ten trials came there. Ours.

    Pruned trials count too: compared with finished trials alone, as in Optuna's pruner, most would be pruned.
    """

    POINT, QUANTILE, MIN_TRIALS = 2, 0.25, 10

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether to prune the trial after its last reported point."""
        if trial.last_step != self.POINT:
            return False
        ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        curves = [trial.intermediate_values for trial in ended]
        values = [curve[self.POINT] for curve in curves if self.POINT in curve]
        if len(values) < self.MIN_TRIALS:
            return False
        return bool(trial.intermediate_values[self.POINT] < np.quantile(values, self.QUANTILE))

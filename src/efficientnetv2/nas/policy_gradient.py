"""Policy gradient over factorized choices, after the controller of MnasNet and of the EfficientNetV2 search.

A policy draws architectures, and each reward makes the options that it took more or less likely (arXiv:1807.11626,
section 4.2; arXiv:2104.00298, section 3.3). Their policy is a recurrent network trained by PPO on a thousand samples.
Ours is a vector of logits for each decision, drawn independently as in TuNAS (arXiv:2008.06120), trained by REINFORCE
(Williams 1992) on a hundred: with a moving baseline, rewards normalized by their spread, and an entropy bonus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from efficientnetv2.nas.evolution import PastTrial, sample_untried
from efficientnetv2.nas.space import Space
from efficientnetv2.nas.stage_choices import Point
from efficientnetv2.utils.rng import Floats, Key


@dataclass(frozen=True)
class PolicyGradient:
    """The defaults are ours; ``benchmarks/samplers_replay.py --tune`` compares others with them.

    Args:
        learning_rate: Of the logits, for each finished trial at an advantage of 1.
        warmup: Trials drawn uniformly before the policy is used; the policy learns from them too.
        baseline_decay: Of the moving mean that each reward is compared with.
        entropy: Weight of the policy's entropy, against early convergence.
        most_advantage: Limit of the advantage, the reward minus the baseline in standard deviations of the rewards.

    Raises:
        ValueError: ``warmup`` is below 1.
    """

    learning_rate: float = 0.4
    warmup: int = 10
    baseline_decay: float = 0.9
    entropy: float = 0.01
    most_advantage: float = 1.5

    def __post_init__(self) -> None:
        if self.warmup < 1:
            raise ValueError(
                f"warmup is {self.warmup}, but must be at least 1: rewards are compared with others"
            )

    def propose(self, space: Space, past: Sequence[PastTrial], key: Key) -> Point:
        """The point to try next. ``past`` is in the order of trial numbers."""
        rewarded = [trial for trial in past if trial.reward is not None]
        if len(rewarded) < self.warmup:
            return sample_untried(space.sample, space, past, key)
        cumulative = np.cumsum(_softmax(self.logits(space, rewarded)), axis=1)

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
            chances = _softmax(logits)
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


def _softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances: Floats = powers / powers.sum(axis=1, keepdims=True)
    return chances


def _entropy_gradient(chances: Floats) -> Floats:
    """The gradient of each row's entropy H in its logits: -p (log p + H)."""
    logs = np.log(np.where(chances > 0, chances, 1.0))
    entropy = -(chances * logs).sum(axis=1, keepdims=True)
    gradient: Floats = -chances * (logs + entropy)
    return gradient

"""Policy gradient over factorised choices: the controller of MnasNet and of the EfficientNetV2 search, made small.

The loop is that of MnasNet (arXiv:1807.11626, section 4.2), which the search of EfficientNetV2 builds on
(arXiv:2104.00298, section 3.3): a policy draws networks, and the reward of each makes the options that it took likelier
or less likely. Their policy is a recurrent network that decides one thing after the other and is trained by proximal
policy optimization, on about a thousand samples or more. Ours is a vector of logits for each decision, drawn from by
itself as in TuNAS (arXiv:2008.06120), and learns from a hundred by REINFORCE: each reward is compared with a moving
baseline, over the spread of those so far, and the entropy of the policy is ascended beside it.

Source: Williams 1992, "Simple statistical gradient-following algorithms", for the gradient and its baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from efficientnetv2.nas.evolution import Tried, untried
from efficientnetv2.nas.space import Space
from efficientnetv2.nas.stage_choices import Point
from efficientnetv2.utils.rng import Key

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PolicyGradient:
    """How a policy learns. The defaults are ours; ``benchmarks/samplers_replay.py --tune`` compares others with them.

    Args:
        learning_rate: of the logits, for each finished trial, at an advantage of 1.
        warmup: trials drawn uniformly before the policy is asked; they teach it all the same.
        baseline_decay: of the moving mean of rewards that each reward is compared with.
        entropy: weight of the policy's entropy in what is ascended, against settling early.
        most_advantage: the advantage is the reward less the baseline, over the standard deviation of the rewards so
            far; beyond this, on either side, it counts as this.

    Raises:
        ValueError: no trial to begin with.
    """

    learning_rate: float = 0.4
    warmup: int = 10
    baseline_decay: float = 0.9
    entropy: float = 0.01
    most_advantage: float = 1.5

    def __post_init__(self) -> None:
        if self.warmup < 1:
            raise ValueError(
                f"warmup is {self.warmup}, but has to be at least 1: rewards are compared with others"
            )

    def propose(self, space: Space, tried: Sequence[Tried], key: Key) -> Point:
        """A canonical point to try next, another than those tried where the policy draws one.

        Args:
            space: to choose from.
            tried: by the trials' numbers.
            key: of this proposal.
        """
        rewarded = [one for one in tried if one.reward is not None]
        if len(rewarded) < self.warmup:
            return untried(space.sample, space, tried, key)
        chances = np.cumsum(_chances(self.logits(space, rewarded)), axis=1)

        def draw(key: Key) -> Point:
            below = key.generator().random((len(chances), 1)) >= chances[:, :-1]
            return space.canonical(tuple(int(index) for index in below.sum(axis=1)))

        return untried(draw, space, tried, key)

    def logits(self, space: Space, tried: Sequence[Tried]) -> Floats:
        """What the policy has learnt from trials in their order.

        Args:
            space: of the points.
            tried: those that have a reward.

        Returns:
            (D, K) float64: of each decision's options; -inf beyond its own number of them.
        """
        sizes = np.array([len(decision.options) for decision in space.decisions])
        there = np.arange(sizes.max()) < sizes[:, None]
        logits = np.where(there, 0.0, -np.inf)
        taken = np.array([one.point for one in tried])[:, :, None] == np.arange(sizes.max())
        counts = np.array([space.effective(one.point) for one in tried])[:, :, None]
        rewards = np.array([one.reward for one in tried], dtype=float)
        for took, counting, advantage in zip(taken, counts, self._advantages(rewards), strict=True):
            chances = _chances(logits)
            step = advantage * (took - chances) * counting + self.entropy * _entropy_gradient(chances)
            logits = logits + self.learning_rate * step
        return logits

    def _advantages(self, rewards: Floats) -> Floats:
        """(N,) of each trial, from the rewards up to it."""
        found = np.zeros(len(rewards))
        baseline = rewards[: self.warmup].mean() if len(rewards) else 0.0
        for index, reward in enumerate(rewards):
            spread = rewards[: max(index + 1, self.warmup)].std()
            if spread > 0:
                found[index] = np.clip(
                    (reward - baseline) / spread, -self.most_advantage, self.most_advantage
                )
            if index >= self.warmup:
                baseline = self.baseline_decay * baseline + (1 - self.baseline_decay) * reward
        return found


def _chances(logits: Floats) -> Floats:
    """Softmax of each row."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances: Floats = powers / powers.sum(axis=1, keepdims=True)
    return chances


def _entropy_gradient(chances: Floats) -> Floats:
    """Of each row's entropy H in its logits: -p (log p + H)."""
    logs = np.log(np.where(chances > 0, chances, 1.0))
    entropy = -(chances * logs).sum(axis=1, keepdims=True)
    gradient: Floats = -chances * (logs + entropy)
    return gradient

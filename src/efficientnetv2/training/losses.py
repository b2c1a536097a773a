"""What a recipe does about rare classes beside drawing them more often: in the loss, and in the augmentation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from efficientnetv2.data.records import Ints
from efficientnetv2.data.sampler import Floats, class_fractions, image_weights
from efficientnetv2.training.recipe import Recipe
from efficientnetv2.transforms.pipeline import soft_labels

# What shares may differ by that are computed in two ways and are the same: far above rounding, and far below what one
# picture more or less makes. Ours.
_ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class ClassTerms:
    """What differs from class to class in training; None is alike for all.

    Args:
        weights: (K,) of each class in the loss.
        offsets: (K,) added to the logits in the loss, in training alone.
        towards: (K,) where label smoothing goes; None is to all classes alike.
        stronger: (K,) what RandAugment's magnitude of a class's pictures is multiplied by; always on the CPU.
    """

    weights: Tensor | None = None
    offsets: Tensor | None = None
    towards: Tensor | None = None
    stronger: Tensor | None = None

    def to(self, device: torch.device) -> ClassTerms:
        """The same, on a device what the loss uses."""
        weights, offsets, towards = (
            None if part is None else part.to(device) for part in (self.weights, self.offsets, self.towards)
        )
        return ClassTerms(weights, offsets, towards, self.stronger)

    def targets(self, counted: Tensor, smoothing: float) -> Tensor:
        """What the loss compares with: (N, K) float32, rows sum to what their picture counts.

        Args:
            counted: (N, K), as ``soft_labels`` takes them.
            smoothing: the share, 0 to 1.
        """
        return soft_labels(counted, smoothing, weights=self.weights, towards=self.towards)


NO_CLASS_TERMS = ClassTerms()


def class_terms(targets: Ints, num_classes: int, recipe: Recipe) -> ClassTerms:
    """What a recipe asks for, with the numbers of these training pictures.

    Weights are scaled so that the pictures as they are drawn have weight 1 on average: the loss, and with it the
    learning rate that suits it, stay of their size. (The paper scales them to a mean of 1 over classes.)

    Args:
        targets: (N,) classes of the training pictures; or (N, M) of several labels each, -1 behind the last. Pictures
            are drawn by the first of them; each label counts by its share in its picture's target.
        num_classes: K.
        recipe: ``balance``, ``class_weights``, ``logit_adjustment``, ``rare_randaugment`` and ``effective_beta`` of it.

    Source: weights: arXiv:1901.05555, equations 2 and 3. Offsets: arXiv:2007.07314, equation 10: the logarithm of how
        often each class is seen in training, here after balancing, times a temperature. Smoothing with offsets goes to
        the classes by what is added to their logits, so that without it all have the same of it: alike for all, the
        share that a rare class has of each common picture would be more than it has of pictures. Stronger augmentation
        where pictures are repeated: ours, both.
    """
    counts, drawn = _shares(targets, num_classes, recipe)
    weights = offsets = towards = stronger = None
    if recipe.class_weights is not None:
        each = image_weights(counts, recipe.class_weights, recipe.effective_beta)
        weights = _tensor(each / (each * drawn).sum())
    if recipe.logit_adjustment is not None:
        # A class that is never seen gets no offset: nothing can be learnt of it either way.
        logarithms = np.log(drawn, out=np.zeros_like(drawn), where=drawn > 0)
        offsets = _tensor(recipe.logit_adjustment * logarithms)
        powers = drawn**recipe.logit_adjustment
        towards = _tensor(powers / powers.sum())
    if recipe.rare_randaugment != 1:
        # By what they are drawn by, their first label: a class that most pictures have as a second is not rare.
        firsts = _firsts(targets, num_classes)
        often = class_fractions(firsts, recipe.balance, recipe.effective_beta)
        repeated = often > firsts / firsts.sum() * (1 + _ROUNDING)
        stronger = _tensor(np.where(repeated, recipe.rare_randaugment, 1.0))
    return ClassTerms(weights, offsets, towards, stronger)


def _shares(targets: Ints, num_classes: int, recipe: Recipe) -> tuple[Floats, Floats]:
    """(K,) how many pictures each class has, and (K,) which share it has of all that is drawn."""
    several, firsts = _labelled(targets), _firsts(targets, num_classes)
    if several.shape[1] == 1:
        return firsts.astype(np.float64), class_fractions(firsts, recipe.balance, recipe.effective_beta)
    there = several >= 0
    share = there / there.sum(axis=1, keepdims=True)
    often = np.ones(len(several))
    if recipe.balance is not None:
        often = image_weights(firsts, recipe.balance, recipe.effective_beta)[several[:, 0]]
    counts = np.bincount(several[there], weights=share[there], minlength=num_classes)
    drawn = np.bincount(several[there], weights=(share * often[:, None])[there], minlength=num_classes)
    return counts.astype(np.float64), np.asarray(drawn / drawn.sum(), dtype=np.float64)


def _labelled(targets: Ints) -> Ints:
    """(N, M) labels of the pictures that have some."""
    several = targets.reshape(len(targets), -1)
    return several[several[:, 0] >= 0]


def _firsts(targets: Ints, num_classes: int) -> Ints:
    """(K,) how many pictures have each class as their first label."""
    return np.bincount(_labelled(targets)[:, 0], minlength=num_classes)


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def cross_entropy(logits: Tensor, labels: Tensor, *, offsets: Tensor | None = None) -> Tensor:
    """Mean cross-entropy against label distributions.

    Smoothing, mixing and weighing have happened before, in the labels; see ``transforms.pipeline``.

    Args:
        logits: (N, K) float.
        labels: (N, K) float, rows sum to 1, or to what their picture counts. The mean is over pictures, not over that.
        offsets: (K,) added to the logits.

    Returns:
        A scalar, in nats.
    """
    adjusted = logits.float() if offsets is None else logits.float() + offsets
    return functional.cross_entropy(adjusted, labels)


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over pictures of the sum over classes of binary cross-entropies: each class is a yes or no of its own.

    The sum, so that a class that is answered wrong pulls at its row of the classifier as hard as in ``cross_entropy``
    (probability minus target, at most 1), however many other classes there are: learning rates and the norm that
    gradients are clipped to serve both losses. In a mean over classes it would be 1/K of that.

    Smoothing and mixing have happened before, in the labels; see ``transforms.pipeline``.

    Args:
        logits: (N, K) float.
        labels: (N, K) float, 0 to 1.

    Returns:
        A scalar, in nats.

    Source: timm's ``BinaryCrossEntropy`` with ``sum_classes``; arXiv:2009.14119's code sums over classes too.
    """
    each = functional.binary_cross_entropy_with_logits(logits.float(), labels, reduction="none")
    return each.sum(dim=1).mean()
